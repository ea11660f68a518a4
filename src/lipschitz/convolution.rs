//! Convolutions as linear maps between images.

use std::borrow::Cow;

use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::reduce;
use dualprop_kernels::strided::Output;
use dualprop_kernels::vector::Real;
use faer::prelude::ReborrowMut;
use faer::{MatMut, MatRef};

use super::chain::underflow;
use super::enclosure::{Bracket, Proof};
use super::operator::Operator;
use super::rounding::{down, exponent_of, gamma, scaled, up};
use crate::Isa;
use crate::check;
use crate::error::Error;
use crate::workspace::Workspace;

/// What a two-dimensional convolution meets at the edges of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Padding {
    /// So many zeros above and below, left and right.
    Zeros([usize; 2]),
    /// The opposite edge: the image is a torus. There is an output for every `stride`-th pixel, which tap `⌊(k−1)/2⌋` of the kernel meets.
    Circular,
}

/// The sizes of a two-dimensional convolution; pairs are vertical and horizontal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// `c_out`.
    pub channels_out: usize,
    /// `c_in`.
    pub channels_in: usize,
    /// Taps `[k_h, k_w]`.
    pub kernel: [usize; 2],
    /// Pixels of an input channel `[h, w]`.
    pub image: [usize; 2],
    /// Pixels from one output to the next.
    pub stride: [usize; 2],
    /// The edges.
    pub padding: Padding,
}

impl Geometry {
    /// Pixels of an output channel: `⌊(h + 2p − k)/s⌋ + 1` with zeros, none if the kernel is larger than the padded image; `⌈h/s⌉` on a torus.
    pub fn output(&self) -> [usize; 2] {
        [0, 1].map(|d| match self.padding {
            Padding::Zeros(p) => {
                (self.image[d] + 2 * p[d]).checked_sub(self.kernel[d]).map_or(0, |rest| rest / self.stride[d] + 1)
            }
            Padding::Circular => self.image[d].div_ceil(self.stride[d]),
        })
    }

    /// Pixels by which the first tap of the first output lies before the image.
    pub(super) fn before(&self, d: usize) -> usize {
        match self.padding {
            Padding::Zeros(p) => p[d],
            Padding::Circular => (self.kernel[d] - 1) / 2,
        }
    }

    /// The pixel that tap `tap` of output `at` meets along direction `d`.
    fn pixel(&self, d: usize, at: usize, tap: usize) -> Option<usize> {
        let (place, before, n) = (at * self.stride[d] + tap, self.before(d), self.image[d]);
        match self.padding {
            Padding::Zeros(_) => place.checked_sub(before).filter(|&pixel| pixel < n),
            // No kernel is larger than the torus.
            Padding::Circular => Some((place + n - before) % n),
        }
    }

    /// For every tap along direction `d`: outputs that meet neighbouring pixels.
    fn runs(&self, d: usize) -> Vec<Vec<Run>> {
        let outputs = self.output()[d];
        let of_tap = |tap| {
            let mut runs: Vec<Run> = Vec::new();
            for (at, pixel) in (0..outputs).filter_map(|at| Some((at, self.pixel(d, at, tap)?))) {
                match runs.last_mut() {
                    Some(run) if run.at + run.len == at && run.pixel + run.len * self.stride[d] == pixel => run.len += 1,
                    _ => runs.push(Run { at, pixel, len: 1 }),
                }
            }
            runs
        };
        (0..self.kernel[d]).map(of_tap).collect()
    }
}

/// Outputs `at..at + len` and the pixels from `pixel` on, a stride apart, that one tap pairs with them.
#[derive(Clone, Copy, Debug)]
struct Run {
    at: usize,
    pixel: usize,
    len: usize,
}

/// A two-dimensional convolution (the cross-correlation of deep learning) as the linear map that it is:
///
/// `y[o, i, j] = Σ_{c, a, b} w[o, c, a, b] · x[c, s_h·i + a − p_h, s_w·j + b − p_w]`.
///
/// Vectors are images with one channel behind the other, row by row: `c_in·h·w` before it, `c_out·h'·w'` after it. Its norm is that of this
/// map, which depends on the image, the padding and the stride. It is *not* the norm of the kernel reshaped to `c_out × c_in·k_h·k_w`: that one is
/// too small by up to `√(k_h·k_w)`.
///
/// Products go through the matrix of patches of one image, `c_in·k_h·k_w × h'·w'`, which the workspace keeps.
#[derive(Clone, Debug)]
pub struct Convolution<'a, T: Real> {
    weights: Cow<'a, [T]>,
    geometry: Geometry,
    /// Vertical and horizontal.
    runs: [Vec<Vec<Run>>; 2],
}

impl<'a, T: Real> Convolution<'a, T> {
    /// The convolution with `weights`, `c_out × c_in × k_h × k_w` in this order.
    ///
    /// # Errors
    /// [`Error::Length`] for another number of weights, [`Error::Parameter`] for a kernel or stride of 0, and for a kernel larger than a torus.
    pub fn new(weights: &'a [T], geometry: Geometry) -> Result<Self, Error> {
        for d in 0..2 {
            let (kernel, stride) = (geometry.kernel[d], geometry.stride[d]);
            check::parameter("kernel", kernel as f64, "at least 1", kernel > 0)?;
            check::parameter("stride", stride as f64, "at least 1", stride > 0)?;
            let fits = geometry.padding != Padding::Circular || kernel <= geometry.image[d];
            check::parameter("kernel", kernel as f64, "at most as large as the image, which is a torus", fits)?;
        }
        let Geometry { channels_out, channels_in, kernel, .. } = geometry;
        check::length("weights", weights.len(), channels_out * channels_in * kernel[0] * kernel[1])?;
        Ok(Self { weights: Cow::Borrowed(weights), runs: [0, 1].map(|d| geometry.runs(d)), geometry })
    }

    /// The sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The weights in the order of [`new`](Self::new).
    pub fn weights(&self) -> &[T] {
        &self.weights
    }

    /// Columns of the kernel as a matrix: `c_in·k_h·k_w`.
    fn taps(&self) -> usize {
        self.geometry.channels_in * self.geometry.kernel[0] * self.geometry.kernel[1]
    }

    fn kernel(&self) -> MatRef<'_, T> {
        MatRef::from_row_major_slice(&self.weights, self.geometry.channels_out, self.taps())
    }

    /// Calls `pair(row of the patches, output pixel, input pixel, length)` for all neighbouring pixels that tap `(c, a, b)`, which is the row,
    /// pairs with neighbouring outputs; pixels of the output are those of one channel.
    fn patches(&self, mut pair: impl FnMut(usize, usize, usize, usize)) {
        let Geometry { channels_in, kernel, image, .. } = self.geometry;
        let width = self.geometry.output()[1];
        for c in 0..channels_in {
            for (a, vertical) in self.runs[0].iter().enumerate() {
                for (b, horizontal) in self.runs[1].iter().enumerate() {
                    let row = (c * kernel[0] + a) * kernel[1] + b;
                    for run in vertical {
                        for i in 0..run.len {
                            let (line, pixel) = (run.at + i, run.pixel + i * self.geometry.stride[0]);
                            for run in horizontal {
                                pair(row, line * width + run.at, (c * image[0] + pixel) * image[1] + run.pixel, run.len);
                            }
                        }
                    }
                }
            }
        }
    }

    /// `y ← f(A) x` with `f` of every weight, in f64, as a sum in a fixed order.
    fn forward(&self, f: impl Fn(f64) -> f64, x: &[f64], y: &mut [f64]) {
        let (step, pixels) = (self.geometry.stride[1], self.pixels());
        y.fill(0.0);
        self.patches(|row, to, from, len| {
            for o in 0..self.geometry.channels_out {
                let w = f(self.weights[o * self.taps() + row].to_f64());
                let y = &mut y[o * pixels + to..][..len];
                for (y, x) in y.iter_mut().zip(x[from..].iter().step_by(step)) {
                    *y += w * x;
                }
            }
        });
    }

    /// `x ← f(A)ᵀ y`.
    fn backward(&self, f: impl Fn(f64) -> f64, y: &[f64], x: &mut [f64]) {
        let (step, pixels) = (self.geometry.stride[1], self.pixels());
        x.fill(0.0);
        self.patches(|row, from, to, len| {
            for o in 0..self.geometry.channels_out {
                let w = f(self.weights[o * self.taps() + row].to_f64());
                for (x, y) in x[to..].iter_mut().step_by(step).zip(&y[o * pixels + from..][..len]) {
                    *x += w * y;
                }
            }
        });
    }

    /// Pixels of an output channel.
    fn pixels(&self) -> usize {
        self.geometry.output().iter().product()
    }

    /// Most terms that a sum of [`forward`](Self::forward) or [`backward`](Self::backward) has.
    fn terms(&self) -> usize {
        let Geometry { channels_out, channels_in, kernel, .. } = self.geometry;
        channels_in.max(channels_out) * kernel[0] * kernel[1]
    }

    /// The largest row sum of `f(A)`, and its largest column sum.
    fn sums(&self, f: impl Fn(f64) -> f64) -> [f64; 2] {
        let (m, n) = self.shape();
        let (mut rows, mut cols) = (vec![0.0; m], vec![0.0; n]);
        self.forward(&f, &vec![1.0; n], &mut rows);
        self.backward(&f, &vec![1.0; m], &mut cols);
        [rows, cols].map(|sums| sums.into_iter().fold(0.0, f64::max))
    }

    /// Norms from the sums of sizes and of squares, and the largest size of an element; sizes are taken in units of `2^exponent`.
    fn norms(&self) -> Norms {
        let mut used = vec![false; self.taps()];
        self.patches(|row, _, _, _| used[row] = true);
        let largest = self.weights.iter().zip(used.iter().cycle()).filter(|(_, used)| **used);
        let largest = largest.fold(0.0, |most, (w, _)| f64::max(most, w.abs().to_f64()));
        let exponent = exponent_of(largest);
        let unit = |w: f64| scaled(w.abs(), -exponent);
        let [row_sum, col_sum] = self.sums(unit);
        let [row_square, col_square] = self.sums(|w| unit(w) * unit(w));
        let mut outputs = vec![0.0; self.shape().0];
        self.forward(|w| unit(w) * unit(w), &vec![1.0; self.shape().1], &mut outputs);
        let roundings = self.terms() + outputs.len() + 4;
        let back = |x: f64, bound: fn(f64, usize) -> f64| bound(scaled(x, exponent), roundings);
        Norms {
            largest,
            lower: back(f64::max(row_square, col_square).sqrt(), down),
            frobenius: back(outputs.iter().sum::<f64>().sqrt(), up),
            holder: back((row_sum * col_sum).sqrt(), up),
        }
    }
}

struct Norms {
    largest: f64,
    lower: f64,
    frobenius: f64,
    holder: f64,
}

impl<T: Real> Operator<T> for Convolution<'_, T> {
    fn shape(&self) -> (usize, usize) {
        let Geometry { channels_out, channels_in, image, .. } = self.geometry;
        (channels_out * self.pixels(), channels_in * image[0] * image[1])
    }

    fn apply(&self, x: MatRef<'_, T>, mut y: MatMut<'_, T>, work: &mut Workspace<T>) {
        let (pixels, taps, step) = (self.pixels(), self.taps(), self.geometry.stride[1]);
        let [mut patches, mut vector] = [0, 1].map(|i| core::mem::take(&mut work.spare[i]));
        for sample in 0..x.nrows() {
            vector.clear();
            vector.extend(x.row(sample).iter());
            patches.clear();
            patches.resize(taps * pixels, T::ZERO);
            self.patches(|row, to, from, len| {
                let to = &mut patches[row * pixels + to..][..len];
                if step == 1 {
                    to.copy_from_slice(&vector[from..][..len]);
                } else {
                    to.iter_mut().zip(vector[from..].iter().step_by(step)).for_each(|(to, x)| *to = *x);
                }
            });
            vector.resize(self.shape().0, T::ZERO);
            let out = Output::new(MatMut::from_row_major_slice_mut(&mut vector, self.geometry.channels_out, pixels));
            let patches = MatRef::from_row_major_slice(&patches, taps, pixels);
            work.top_down(patches, self.kernel(), Epilogue::Store { out, scale: T::ONE });
            y.rb_mut().row_mut(sample).iter_mut().zip(&vector).for_each(|(y, v)| *y = *v);
        }
        [work.spare[0], work.spare[1]] = [patches, vector];
    }

    fn apply_transposed(&self, y: MatRef<'_, T>, mut x: MatMut<'_, T>, work: &mut Workspace<T>) {
        let (pixels, taps, step) = (self.pixels(), self.taps(), self.geometry.stride[1]);
        let [mut patches, mut vector] = [0, 1].map(|i| core::mem::take(&mut work.spare[i]));
        for sample in 0..y.nrows() {
            vector.clear();
            vector.extend(y.row(sample).iter());
            patches.resize(taps * pixels, T::ZERO);
            let out = Output::new(MatMut::from_row_major_slice_mut(&mut patches, taps, pixels));
            let image = MatRef::from_row_major_slice(&vector, self.geometry.channels_out, pixels);
            work.top_down(image, self.kernel().transpose(), Epilogue::Store { out, scale: T::ONE });
            vector.clear();
            vector.resize(self.shape().1, T::ZERO);
            self.patches(|row, from, to, len| {
                let from = &patches[row * pixels + from..][..len];
                vector[to..].iter_mut().step_by(step).zip(from).for_each(|(x, y)| *x += *y);
            });
            x.rb_mut().row_mut(sample).iter_mut().zip(&vector).for_each(|(x, v)| *x = *v);
        }
        [work.spare[0], work.spare[1]] = [patches, vector];
    }

    fn stored(&self) -> usize {
        self.weights.len()
    }

    /// Costs a few products in f64. An error's row is the output channel, its column the tap.
    fn bracket(&self) -> Result<Bracket, Error> {
        check::finite("weights", self.kernel())?;
        let Norms { largest, lower, frobenius, holder } = self.norms();
        let (upper, proof) = match largest {
            0.0 => (0.0, Proof::Zero),
            _ if frobenius <= holder => (frobenius, Proof::Frobenius),
            _ => (holder, Proof::Holder),
        };
        let frobenius = if largest == 0.0 { 0.0 } else { frobenius };
        Ok(Bracket { largest, lower, upper, frobenius, proof })
    }

    /// `γ_K √(‖A‖₁‖A‖_∞)‖x‖` for sums of `K` terms.
    fn image(&self, x: &[f64], y: &mut [f64]) -> f64 {
        self.forward(|w| w, x, y);
        let terms = self.terms();
        let error = gamma(terms) * self.norms().holder * reduce::norm(Isa::best(), x);
        let error = up(error + underflow(terms * y.len()), x.len() / 64 + 8);
        if error.is_finite() { error } else { f64::INFINITY }
    }

    fn abs_gram(&self, x: &[f64], y: &mut [f64]) -> bool {
        let mut image = vec![0.0; self.shape().0];
        self.forward(f64::abs, x, &mut image);
        self.backward(f64::abs, &image, y);
        true
    }

    /// Exact.
    fn block(&self, row: usize, col: usize, mut out: MatMut<'_, f64>) -> Option<f64> {
        let Geometry { kernel, image, .. } = self.geometry;
        let (pixels, [_, width]) = (self.pixels(), self.geometry.output());
        let along =
            |d: usize, at: usize, pixel: usize| (0..kernel[d]).find(|&tap| self.geometry.pixel(d, at, tap) == Some(pixel));
        for i in 0..out.nrows() {
            let (o, place) = ((row + i) / pixels, (row + i) % pixels);
            for j in 0..out.ncols() {
                let (c, pixel) = ((col + j) / (image[0] * image[1]), (col + j) % (image[0] * image[1]));
                let (a, b) = (along(0, place / width, pixel / image[1]), along(1, place % width, pixel % image[1]));
                out[(i, j)] = match (a, b) {
                    (Some(a), Some(b)) => self.kernel()[(o, (c * kernel[0] + a) * kernel[1] + b)].to_f64(),
                    _ => 0.0,
                };
            }
        }
        Some(0.0)
    }

    /// `None` if a weight does not survive the scaling exactly.
    fn rescaled(&self, power: i32) -> Option<Box<dyn Operator<T> + '_>> {
        let scale = |w: &T| T::from_f64(scaled(w.to_f64(), power));
        let weights: Vec<T> = self.weights.iter().map(scale).collect();
        let is_exact = weights.iter().zip(&*self.weights).all(|(to, from)| scaled(to.to_f64(), -power) == from.to_f64());
        is_exact.then(|| Box::new(Convolution { weights: Cow::Owned(weights), ..self.clone() }) as _)
    }
}
