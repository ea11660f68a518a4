//! Certified norms of convolutions, one group of frequencies at a time.

use dualprop_kernels::elementary::cos_pi;
use dualprop_kernels::reduce;
use dualprop_kernels::vector::Real;

use super::certificate::Certificate;
use super::convolution::{Convolution, Geometry, Padding};
use super::dense::Dense;
use super::enclose::enclose;
use super::enclosure::{Certainty, Enclosed, Enclosure, Proof, Search, Status};
use super::lanczos::Lanczos;
use super::operator::Operator;
use super::rounding::{down, exponent_of, gamma, scaled, up};
use crate::check;
use crate::error::Error;
use crate::matrix::RowMajor;
use crate::runtime::Runtime;
use crate::workspace::Workspace;

/// Halvings of the interval of a block's norm: to the last bit, if the gap asks for it.
const BISECTIONS: usize = 60;

/// Lanczos steps for the vector of the best block, and their seed. Any vector gives a lower bound.
const STEPS: usize = 64;
const SEED: u64 = 1;

/// The chance with which the search for a lower bound may end too soon.
const DELTA: f64 = 1e-3;

/// An enclosure of the norm of a convolution by its blocks `F(ω) = Σ w[a, b] e^{i(aω₁ + bω₂)}`, `c_out × c_in` for each frequency.
///
/// On a torus of `N` pixels that a stride `s` divides, the discrete Fourier transform takes the map apart (Sedghi, Gupta & Long 2019): its norm
/// *is* the largest `‖[F(ω_1) ⋯ F(ω_s)]‖₂/√s` over the groups of frequencies `2πl/N` that the stride makes one (`s` means both directions
/// multiplied). With zeros at the edges the map is a part of that on every torus of at least `N + k − 1` pixels, so that the largest norm is an
/// upper bound, the better the larger the image. So it is without the stride on a torus that the stride does not divide.
///
/// `upper` holds with all rounding: the error of a block is bounded, and its norm proven by Cholesky as in [`Proof::Cholesky`]. Only blocks that could
/// be the largest are factored; real weights make half of the frequencies enough. `lower` is `‖Ax‖/‖x‖` for the wave of the best group, which on a torus
/// is the norm but for rounding. Where that leaves a gap of more than [`Search::gap`] it is that of [`enclose`], which takes `search` for all but the
/// certainty. `search.gap` is not reached where the padding alone makes a larger one.
///
/// Costs `O(c_out·c_in·(k_h·k_w + c))` flops for each frequency, with `c` the smaller number of channels.
///
/// # Errors
/// As [`enclose`].
pub fn frequencies<T: Real>(convolution: &Convolution<'_, T>, search: &Search, runtime: &Runtime) -> Result<Enclosed, Error> {
    check::not_negative("gap", search.gap)?;
    let bracket = convolution.bracket()?;
    if bracket.upper == 0.0 {
        return Ok(Enclosed { enclosure: Enclosure::ZERO, witness: vec![] });
    }
    let grid = Grid::new(convolution.geometry());
    let exponent = exponent_of(convolution.weights().iter().fold(0.0, |most, w| f64::max(most, w.abs().to_f64())));
    let weights: Vec<f64> = convolution.weights().iter().map(|w| scaled(w.to_f64(), -exponent)).collect();
    let spectrum = Spectrum::new(&grid, &weights);
    let (upper, base) = spectrum.largest(search.gap, runtime);
    let upper = scaled(upper, exponent).next_up();

    let wave = spectrum.wave(base, runtime);
    let mut image = vec![0.0; convolution.shape().0];
    let error = convolution.image(&wave, &mut image);
    let length = |x: &[f64]| reduce::norm(runtime.isa(), x);
    let stretched = down((down(length(&image), image.len() + 4) - error).max(0.0), 1);
    let lower = down(stretched / up(length(&wave), wave.len() + 4), 1);
    let mut found = if lower >= bracket.lower { (lower, wave) } else { (bracket.lower, vec![]) };
    let mut products = 0;
    let is_reached = |lower: f64| upper <= (1.0 + search.gap) * lower;
    if !is_reached(found.0) {
        let search = Search { certainty: Certainty::Probabilistic { delta: DELTA }, ..*search };
        let Enclosed { enclosure, witness } = enclose(convolution, &search, runtime)?;
        products = enclosure.products;
        if enclosure.lower > found.0 {
            found = (enclosure.lower, witness);
        }
    }
    let (lower, witness) = found;
    let (upper, proof) = if upper <= bracket.upper { (upper, Proof::Frequencies) } else { (bracket.upper, bracket.proof) };
    let status = if is_reached(lower) { Status::GapReached } else { Status::Budget };
    Ok(Enclosed { enclosure: Enclosure { lower, upper, proof, status, products }, witness })
}

/// The torus whose frequencies are looked at.
#[derive(Clone, Copy, Debug)]
struct Grid {
    geometry: Geometry,
    /// Pixels, vertically and horizontally.
    size: [usize; 2],
    /// Frequencies of a group.
    aliases: [usize; 2],
}

impl Grid {
    fn new(geometry: &Geometry) -> Self {
        let of_direction = |d: usize| {
            let (n, stride) = (geometry.image[d], geometry.stride[d]);
            match geometry.padding {
                // No window that meets the image reaches around the torus to its other side.
                Padding::Zeros(_) => ((n + geometry.kernel[d] - 1).next_multiple_of(stride), stride),
                Padding::Circular if n % stride == 0 => (n, stride),
                // A part of the outputs without stride.
                Padding::Circular => (n, 1),
            }
        };
        let [(height, vertical), (width, horizontal)] = [0, 1].map(of_direction);
        Self { geometry: *geometry, size: [height, width], aliases: [vertical, horizontal] }
    }

    /// Groups: that of `l` has the frequencies `l, l + groups, …`.
    fn groups(&self) -> [usize; 2] {
        [0, 1].map(|d| self.size[d] / self.aliases[d])
    }

    /// The first frequencies of the groups, of conjugate ones one.
    fn bases(&self) -> impl Iterator<Item = [usize; 2]> {
        let [high, wide] = self.groups();
        (0..=wide / 2).flat_map(move |w| {
            let is_own_conjugate = w == 0 || 2 * w == wide;
            (0..if is_own_conjugate { high / 2 + 1 } else { high }).map(move |h| [h, w])
        })
    }

    /// The frequencies of a group.
    fn group(&self, [h, w]: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
        let ([high, wide], [vertical, horizontal]) = (self.groups(), self.aliases);
        (0..vertical).flat_map(move |i| (0..horizontal).map(move |j| [h + i * high, w + j * wide]))
    }

    /// `s`: frequencies of a group.
    fn group_size(&self) -> usize {
        self.aliases[0] * self.aliases[1]
    }
}

/// The blocks of a convolution whose largest weight is from 1 to 2, made when they are asked for.
struct Spectrum<'a> {
    grid: &'a Grid,
    weights: &'a [f64],
    /// `e^{2πir/N}` for `r < N`, vertically and horizontally.
    roots: [Vec<[f64; 2]>; 2],
    /// The 2-norm of the error of `F(ω)` is not above.
    error: f64,
}

impl<'a> Spectrum<'a> {
    fn new(grid: &'a Grid, weights: &'a [f64]) -> Self {
        let [kh, kw] = grid.geometry.kernel;
        let sizes: Vec<f64> = weights.chunks_exact(kh * kw).map(|taps| taps.iter().map(|w| w.abs()).sum()).collect();
        let size = up(reduce::norm(crate::Isa::best(), &sizes), kh * kw + sizes.len() + 4);
        // Of the sum of sizes: γ_{k_w} for the inner sum, γ_{2k_h} for the outer one, 4u for each root; in both parts, with γ_aγ_b ≤ u/2.
        let error = up(core::f64::consts::SQRT_2 * gamma(kw + 2 * kh + 12) * size, 4);
        Self { grid, weights, roots: grid.size.map(|n| (0..n).map(|r| root(r, n)).collect()), error }
    }

    /// `[F(ω_1) ⋯ F(ω_s)]` of a group in real numbers, `(Re, −Im; Im, Re)`: `2c_out × 2c_in·s`.
    fn block(&self, base: [usize; 2]) -> RowMajor<f64> {
        let Geometry { channels_out, channels_in, kernel: [kh, kw], .. } = self.grid.geometry;
        let cols = channels_in * self.grid.group_size();
        let mut block = RowMajor::zeros(2 * channels_out, 2 * cols);
        for (g, frequency) in self.grid.group(base).enumerate() {
            let [down, right] = [(0, kh), (1, kw)].map(|(d, taps)| -> Vec<[f64; 2]> {
                (0..taps).map(|tap| self.roots[d][tap * frequency[d] % self.grid.size[d]]).collect()
            });
            for o in 0..channels_out {
                for c in 0..channels_in {
                    let (mut re, mut im) = (0.0, 0.0);
                    let taps = &self.weights[(o * channels_in + c) * kh * kw..][..kh * kw];
                    for (taps, down) in taps.chunks_exact(kw).zip(&down) {
                        let (mut x, mut y) = (0.0, 0.0);
                        for (w, right) in taps.iter().zip(&right) {
                            x += w * right[0];
                            y += w * right[1];
                        }
                        re += x * down[0] - y * down[1];
                        im += x * down[1] + y * down[0];
                    }
                    let col = g * channels_in + c;
                    for (row, parts) in [(o, [re, -im]), (channels_out + o, [im, re])] {
                        let row = block.row_mut(row);
                        [row[col], row[cols + col]] = parts;
                    }
                }
            }
        }
        block
    }

    /// What no group's norm is above, and the group with the largest.
    fn largest(&self, gap: f64, runtime: &Runtime) -> (f64, [usize; 2]) {
        let (mut top, mut best) = (0.0, [0, 0]);
        for base in self.grid.bases() {
            let block = self.block(base);
            let dense = Dense::new(block.view());
            let Ok(bracket) = dense.bracket() else { return (f64::INFINITY, base) };
            // Every singular value is there twice.
            let mut high = f64::min(bracket.upper, up(bracket.frobenius / core::f64::consts::SQRT_2, 2));
            if high <= top {
                continue;
            }
            let Some(mut certificate) = Certificate::new(&dense, runtime) else { return (f64::INFINITY, base) };
            let mut proves = |bound: f64| {
                let tau = certificate.tau(bound);
                certificate.holds(tau, runtime) && certificate.bound(tau) <= bound
            };
            if top > 0.0 && proves(top) {
                continue;
            }
            let mut low = f64::max(top, bracket.lower);
            for _ in 0..BISECTIONS {
                let middle = low + 0.5 * (high - low);
                if high - low <= 0.25 * gap * low || middle <= low || middle >= high {
                    break;
                }
                if proves(middle) { high = middle } else { low = middle }
            }
            (top, best) = (high, base);
        }
        let root = (self.grid.group_size() as f64).sqrt();
        // The errors of the group's blocks side by side are those of one, √s times.
        (up(top / root + self.error, 4), best)
    }

    /// The real part of the wave that a group's block stretches most: its right singular vector times `e^{iω·pixel}` for each frequency.
    fn wave(&self, base: [usize; 2], runtime: &Runtime) -> Vec<f64> {
        let block = self.block(base);
        let dense = Dense::new(block.view());
        let mut work = Workspace::new(runtime);
        let mut lanczos = Lanczos::new(block.cols(), STEPS, 1);
        lanczos.begin(SEED, 0);
        while lanczos.may_go_on() {
            lanczos.step(&dense, &mut work);
        }
        let mut amplitudes = vec![0.0; block.cols()];
        if let Some(ritz) = lanczos.best() {
            lanczos.vector(ritz, &mut amplitudes);
        }
        let geometry = &self.grid.geometry;
        let (Geometry { channels_in, image: [h, w], .. }, size) = (*geometry, self.grid.size);
        let (re, im) = amplitudes.split_at(block.cols() / 2);
        let mut wave = vec![0.0; channels_in * h * w];
        for (g, frequency) in self.grid.group(base).enumerate() {
            for (at, x) in wave.iter_mut().enumerate() {
                let (c, place) = (at / (h * w), [at / w % h, at % w]);
                // The outputs of stride `s` begin before the image.
                let [a, b] = [0, 1].map(|d| self.roots[d][(place[d] + geometry.before(d)) * frequency[d] % size[d]]);
                let (cos, sin) = (a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]);
                *x += re[g * channels_in + c] * cos - im[g * channels_in + c] * sin;
            }
        }
        wave
    }
}

/// `e^{2πir/n}`, each part within `4u`: `2u` of the cosine, and `πx·sin(πx)·u` of its argument `x`.
fn root(r: usize, n: usize) -> [f64; 2] {
    // In quarters of a step; sin(x) = cos(x − π/2) = cos(x + 3π/2).
    let cosine = |quarters: usize| {
        let turn = quarters % (4 * n);
        cos_pi(turn.min(4 * n - turn) as f64 / (2 * n) as f64)
    };
    [cosine(4 * r), cosine(4 * r + 3 * n)]
}
