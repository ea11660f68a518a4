//! Local constants at samples where few units are active.

use dualprop_kernels::reduce;
use dualprop_kernels::selected::{OUTPUTS, crossing};
use dualprop_kernels::vector::Real;
use faer::{MatRef, Par};

use super::certificate::Certificate;
use super::dense::Dense;
use super::enclosure::Enclosure;
use super::local::{CHUNK, PROOF, Slopes, conclude, share};
use super::rounding::{at_most, gamma, rounding, up};
use super::small::{Largest, Small};
use crate::matrix::RowMajor;
use crate::network::Network;
use crate::runtime::Runtime;

/// Jacobians in f64, of which nothing is multiplied out but what active units of two layers share: `J = ZᵀW_0` and `JJᵀ = ZᵀGZ` with `G = W_0W_0ᵀ`.
///
/// From layer to layer `Z ← DWᵀZ`; chains of `k` are off by `γ_k ‖W‖_F ‖Z‖_F` at the most, in the Frobenius norm, and `ZᵀGZ` with a `G` that is off
/// by `e` is by `‖Z‖_F² (e + γ_{2k} ‖G‖_F)`, twice the second part as only the upper triangle is kept. `‖G‖_F ≤ tr G`.
pub(super) struct Few<T> {
    runtime: Runtime,
    n_out: usize,
    /// Numbers for each unit: `n_out`, and zeros.
    outputs: usize,
    /// Where the units of each hidden layer are stored: often active ones first, in the same few lines of a cache.
    places: Vec<Vec<u32>>,
    /// The last weights: a row for each unit of the last hidden layer.
    last: RowMajor<f64>,
    /// The weights between hidden layers from the outputs down, and their Frobenius norms, not below.
    between: Vec<(RowMajor<T>, f64)>,
    gram: RowMajor<f64>,
    /// Not below `tr G`, of the stored `G` and the one it stands for.
    trace: f64,
    /// Not below the error of `G`.
    error: f64,
    /// `0, 1, …`
    count: Vec<u32>,
    /// For each thread.
    memory: Vec<Memory>,
}

struct Memory {
    /// Active units of the layer above and of that below.
    above: Vec<u32>,
    below: Vec<u32>,
    factors: Vec<f64>,
    /// `Z`, with `outputs` numbers for each of the units above, and the one that is made of it; there is room for all units of a layer.
    z: Vec<f64>,
    next: Vec<f64>,
    /// `ZᵀGZ`.
    square: Vec<f64>,
    small: Small,
}

/// Whether [`Few`] does for `network`: there are hidden units, fewer in the first layer than inputs.
pub(super) fn is_possible<T: Real>(network: &Network<T>) -> bool {
    network.layers() > 1 && network.widths()[1] < network.widths()[0]
}

/// Whether it takes fewer flops, those in f64 counted twice, than the products of whole rows would, of which patterns save about half.
pub(super) fn pays<T: Real>(network: &Network<T>, slopes: &Slopes<T>, sample: usize) -> bool {
    let hidden = &network.widths()[1..network.layers()];
    let n_out = network.widths()[network.layers()];
    let active = |k: usize| slopes.count(k, sample);
    let (mut few, mut whole) = (active(0) * active(0), active(0) * hidden[0] / 2);
    for k in 1..hidden.len() {
        few += active(k) * active(k - 1);
        whole += active(k) * hidden[k - 1];
    }
    4 * n_out.next_multiple_of(OUTPUTS) * few <= n_out * whole
}

impl<T: Real> Few<T> {
    pub(super) fn new(network: &Network<T>, slopes: &Slopes<T>, runtime: &Runtime) -> Self {
        let hidden = network.layers() - 1;
        let orders: Vec<Vec<u32>> = (0..hidden).map(|k| slopes.by_activity(k)).collect();
        let places = |order: &Vec<u32>| {
            let mut places = vec![0; order.len()];
            (0..).zip(order).for_each(|(place, &unit)| places[unit as usize] = place);
            places
        };
        let n_out = network.widths()[hidden + 1];
        let outputs = n_out.next_multiple_of(OUTPUTS);
        let stored = network.weights(hidden);
        let mut last = RowMajor::zeros(orders[hidden - 1].len(), outputs);
        for (place, &unit) in orders[hidden - 1].iter().enumerate() {
            let row = last.row_mut(place)[..n_out].iter_mut().enumerate();
            row.for_each(|(o, w)| *w = stored[(o, unit as usize)].to_f64());
        }
        let ordered = |k: usize, columns: Option<&Vec<u32>>| {
            let stored = network.weights(k);
            let mut weights = RowMajor::<T>::zeros(stored.nrows(), stored.ncols());
            for (place, &unit) in orders[k].iter().enumerate() {
                let (row, stored) = (weights.row_mut(place), stored.row(unit as usize));
                match columns {
                    Some(order) => row.iter_mut().zip(order).for_each(|(w, &j)| *w = stored[j as usize]),
                    None => row.iter_mut().zip(stored.iter()).for_each(|(w, &stored)| *w = stored),
                }
            }
            weights
        };
        let between = |k: usize| {
            let weights = ordered(k, Some(&orders[k - 1]));
            let square = (0..weights.rows()).map(|i| reduce::norm(runtime.isa(), weights.row(i)).powi(2)).sum::<f64>();
            let norm = at_most(at_most(square, weights.cols() / 16 + weights.rows() + 20).sqrt(), 1);
            (weights, norm)
        };
        let first = ordered(0, None);
        let (n, depth) = (first.rows(), first.cols());
        let certificate = Certificate::new(&Dense::new(first.view()), runtime).expect("a matrix knows its elements");
        let upper = certificate.gram();
        let mut gram = RowMajor::zeros(n, n);
        for i in 0..n {
            gram.row_mut(i)[i..].copy_from_slice(&upper.row(i)[i..]);
            for j in 0..i {
                gram.row_mut(i)[j] = upper.row(j)[i];
            }
        }
        // Each sum a step more for each slab that it is made of.
        let trace = up((0..n).map(|i| gram.row(i)[i]).sum(), n + depth + 3);
        let error = rounding::<f64>(depth + 1, trace, n * n);
        let trace = up(trace + error, 1);
        let threads = match runtime.par() {
            Par::Rayon(threads) => threads.get().min(CHUNK),
            Par::Seq => 1,
        };
        let widest = orders.iter().map(Vec::len).max().unwrap_or(0);
        let room = || vec![0.0; widest * outputs];
        let memory = || Memory {
            above: vec![],
            below: vec![],
            factors: vec![],
            z: room(),
            next: room(),
            square: vec![0.0; n_out * outputs],
            small: Small::new(n_out),
        };
        Self {
            runtime: *runtime,
            n_out,
            outputs,
            places: orders.iter().map(places).collect(),
            last,
            between: (1..hidden).rev().map(between).collect(),
            gram,
            trace,
            error,
            count: (0..n.max(n_out) as u32).collect(),
            memory: (0..threads).map(|_| memory()).collect(),
        }
    }

    /// The norms for these samples of the chunk, each to its place.
    pub(super) fn enclose(&mut self, slopes: &Slopes<T>, samples: &[usize], gap: f64, to: &mut [Enclosure]) {
        let mut memory = core::mem::take(&mut self.memory);
        let mut found = vec![Enclosure::ZERO; samples.len()];
        let each = |samples: &[usize], memory: &mut [Memory], to: &mut [Enclosure]| {
            for (&sample, to) in samples.iter().zip(to) {
                *to = self.norm(slopes, sample, gap, &mut memory[0]);
            }
        };
        share(samples, &mut memory, 1, &mut found, &each);
        self.memory = memory;
        samples.iter().zip(found).for_each(|(&sample, found)| to[sample] = found);
    }

    fn norm(&self, slopes: &Slopes<T>, sample: usize, gap: f64, memory: &mut Memory) -> Enclosure {
        let (isa, outputs) = (self.runtime.isa(), self.outputs);
        let Memory { above, below, factors, z, next, square, small } = memory;
        let take = |layer: usize, units: &mut Vec<u32>, factors: &mut Vec<f64>| {
            units.clear();
            factors.clear();
            slopes.active(layer, sample, |unit, slope| {
                units.push(self.places[layer][unit]);
                factors.push(slope.to_f64());
            });
        };
        take(self.between.len(), above, factors);
        if above.is_empty() {
            return conclude(Largest::ZERO, 0.0, 0.0, gap, self.n_out);
        }
        for ((z, &place), &d) in z.chunks_exact_mut(outputs).zip(&*above).zip(&*factors) {
            z.iter_mut().zip(self.last.row(place as usize)).for_each(|(z, w)| *z = d * w);
        }
        let mut size = self.size(&z[..above.len() * outputs]);
        let mut error = if is_signs(factors) { 0.0 } else { rounding::<f64>(1, size, above.len() * outputs) };
        for (layer, (weights, norm)) in (0..self.between.len()).rev().zip(&self.between) {
            take(layer, below, factors);
            if below.is_empty() {
                return conclude(Largest::ZERO, 0.0, 0.0, gap, self.n_out);
            }
            let made = &mut next[..below.len() * outputs];
            crossing(isa, weights.view(), above, below, &z[..above.len() * outputs], outputs, made);
            let mut slope: f64 = 1.0;
            if !is_signs(factors) {
                slope = factors.iter().fold(1.0, |m, d| m.max(d.abs()));
                made.chunks_exact_mut(outputs).zip(&*factors).for_each(|(z, d)| z.iter_mut().for_each(|z| *z *= d));
            }
            // The slope behind a chain is a rounding more.
            let fresh = rounding::<f64>(above.len() + 1, up(norm * size, 1), made.len());
            error = at_most(slope * (error * norm + fresh), 4);
            core::mem::swap(above, below);
            size = self.size(made);
            core::mem::swap(z, next);
        }
        let (z, image) = (&z[..above.len() * outputs], &mut next[..above.len() * outputs]);
        crossing(isa, self.gram.view(), above, above, z, outputs, image);
        let (rows, columns) = (&self.count[..above.len()], &self.count[..self.n_out]);
        crossing(isa, MatRef::from_row_major_slice(z, above.len(), outputs), rows, columns, image, outputs, square);
        for i in 0..self.n_out {
            (i..self.n_out).for_each(|j| small.set(i, j, square[i * outputs + j]));
        }
        let (square, steps) = (size * size, above.len());
        // What underflows in `GZ` is multiplied once more.
        let vanished = (steps * outputs * (1 + steps)) as f64 * f64::TINY * (1.0 + size);
        let chains = gamma(2 * steps) * square * self.trace + vanished;
        let square = small.enclose(isa, up(square * self.error + 2.0 * chains, 8), gap * PROOF);
        conclude(square, at_most(error * self.trace.sqrt(), 3), 0.0, gap, self.n_out)
    }

    /// Not below `‖Z‖_F`.
    fn size(&self, z: &[f64]) -> f64 {
        at_most(reduce::norm(self.runtime.isa(), z), z.len() / 32 + 8)
    }
}

/// Whether multiplying by them is exact whatever the numbers.
fn is_signs(slopes: &[f64]) -> bool {
    slopes.iter().all(|d| d.abs() == 1.0)
}
