//! Local Lipschitz constants: the norm of the Jacobian at every sample of a batch.

use dualprop_kernels::activation::Activation;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::pack::Panels;
use dualprop_kernels::reduce;
use dualprop_kernels::strided::{Input, Output};
use dualprop_kernels::vector::Real;
use faer::MatRef;

use super::cholesky::Cholesky;
use super::dense::Dense;
use super::enclose::enclose;
use super::enclosure::{Enclosure, Proof, Search, Status};
use super::rounding::{down, gamma, up};
use super::small::Small;
use crate::check;
use crate::error::Error;
use crate::matrix::RowMajor;
use crate::network::Network;
use crate::runtime::Runtime;
use crate::workspace::Workspace;

/// The slope of an activation at a kink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kinks {
    /// The smaller one: 0 for ReLU at 0. What back-propagation uses.
    Smaller,
    /// Both, for all units that are at a kink together; the larger norm counts.
    Both,
}

/// Samples that share a product.
const CHUNK: usize = 256;

/// The part of the gap that the proof takes, in `‖J‖²` (half of that in `‖J‖`): the rest is for rounding.
const PROOF: f64 = 0.125;

/// How near the norms of the factors are known; they weigh rounding errors alone.
const NEAR: f64 = 0.1;

/// `‖J_i‖₂` for every row `x_i` of `x` (`samples × inputs`, any strides), `J_i = W_{L−1} D_{L−2}(x_i) W_{L−2} ⋯ D_0(x_i) W_0`.
///
/// The slopes `D` are those of the activations at the drives of a forward pass in `T`: each answer is an enclosure for the real product of the
/// stored weights and these slopes. `J_i` is multiplied out from its outputs, `n_L` rows for each sample in one product for many samples, and
/// `J_iJ_iᵀ` (`n_L × n_L`, f64) is enclosed by powers and Cholesky's algorithm ([`Proof::Cholesky`]); the
/// last factor is not `W_0` but a triangular `C` with `CCᵀ = W_0W_0ᵀ` if there are fewer hidden units than inputs: `‖ZW_0‖ = ‖ZC‖`.
///
/// Rounding is in the bounds. Each element of a product `S = ZW` is one chain of fused multiply-adds: step `p` is off by at most `u` times the
/// sum it leaves, and by nothing if the slope `d_p` is 0, for then column `p` of `Z` is 0. The sums that are left after step `p` are, together,
/// `S_p = Z_{:,..p} W_{..p,:}` up to their own error, and `‖S_p‖_F ≤ ‖Z‖_F ‖W‖₂`. With `a` slopes that are not 0,
///
/// ```text
/// ‖E_p‖_F ≤ ‖E_{p−1}‖_F + u (‖S_p‖_F + ‖E_p‖_F)   so   ‖E‖_F ≤ ((1−u)^{−a} − 1) ‖Z‖_F ‖W‖₂ ≤ γ_a ‖Z‖_F ‖W‖₂
/// ```
///
/// where the usual bound has `γ_n` and `‖ |W| ‖₂`, which is larger by some `√n` for random signs. The slope behind a product is one more
/// rounding, and errors pass on by the norms of what follows. Samples that miss `gap` in f32 are repeated in f64.
///
/// Costs `2 n_L (Σ_{0<k<L−1} n_k n_{k+1} + n_1 min(n_0, n_1))` flops a sample beside the forward pass, and as many in f64 for samples that f32
/// is not enough for (f64 alone once those were most of a chunk); memory for 256 samples. The result has the same bits for every instruction set
/// and number of threads.
///
/// # Errors
/// [`Error::Shape`] and [`Error::NotFinite`] for the arguments, [`Error::Parameter`] for a gap that is negative or NaN.
pub fn local<T: Real>(
    network: &Network<T>,
    x: MatRef<'_, T>,
    kinks: Kinks,
    gap: f64,
    runtime: &Runtime,
) -> Result<Vec<Enclosure>, Error> {
    check::not_negative("gap", gap)?;
    check::shape("x", x, (x.nrows(), network.widths()[0]))?;
    check::finite("x", x)?;
    network.check_finite()?;
    let mut slopes = Slopes::new(network, CHUNK.min(x.nrows()), runtime);
    let mut native = Jacobians::<T>::new(network, &slopes, runtime)?;
    let (mut native_pays, mut wide) = (true, None);
    let mut found = Vec::with_capacity(x.nrows());
    for from in (0..x.nrows()).step_by(CHUNK) {
        let rows = CHUNK.min(x.nrows() - from);
        slopes.take(network, x.subrows(from, rows));
        let mut constants = |slopes: &Slopes<T>| -> Result<Vec<Enclosure>, Error> {
            let mut found = vec![Enclosure::ZERO; rows];
            let mut missed: Vec<usize> = (0..rows).collect();
            if native_pays {
                native.enclose(slopes, &missed, gap, &mut found);
                if T::NAME == "f64" {
                    return Ok(found);
                }
                missed.retain(|&i| found[i].status != Status::GapReached);
                native_pays = 2 * missed.len() <= rows;
            }
            if !missed.is_empty() {
                let wide = match &mut wide {
                    Some(wide) => wide,
                    none => none.insert(Jacobians::<f64>::new(network, slopes, runtime)?),
                };
                wide.enclose(slopes, &missed, gap, &mut found);
            }
            Ok(found)
        };
        found.extend(constants(&slopes)?);
        if kinks == Kinks::Both && slopes.lift_kinks(network.activation()) {
            for (kept, other) in found[from..].iter_mut().zip(constants(&slopes)?) {
                kept.lower = kept.lower.max(other.lower);
                if other.upper > kept.upper {
                    (kept.upper, kept.proof) = (other.upper, other.proof);
                }
                kept.status = if kept.gap() <= gap { Status::GapReached } else { Status::Budget };
            }
        }
    }
    Ok(found)
}

/// Drives and slopes of the hidden layers for a chunk of samples.
struct Slopes<T> {
    work: Workspace<T>,
    drives: Vec<RowMajor<T>>,
    means: Vec<RowMajor<T>>,
    slopes: Vec<RowMajor<T>>,
    zeros: Vec<T>,
    rows: usize,
}

impl<T: Real> Slopes<T> {
    fn new(network: &Network<T>, rows: usize, runtime: &Runtime) -> Self {
        let hidden = &network.widths()[1..network.layers()];
        let states = || hidden.iter().map(|&n| RowMajor::zeros(rows, n)).collect();
        let widest = hidden.iter().copied().max().unwrap_or(0);
        Self {
            work: Workspace::new(runtime),
            drives: states(),
            means: states(),
            slopes: states(),
            zeros: vec![T::ZERO; widest],
            rows: 0,
        }
    }

    fn take(&mut self, network: &Network<T>, x: MatRef<'_, T>) {
        self.rows = x.nrows();
        for k in 0..self.drives.len() {
            let (weights, bias) = network.incoming(k + 1, &self.zeros);
            let (before, here) = self.means.split_at_mut(k);
            let below = before.last().map_or(x, |below| below.view().subrows(0, x.nrows()));
            let forward = Epilogue::Forward {
                drive: Output::new(self.drives[k].view_mut().subrows_mut(0, x.nrows())),
                bias: Input::repeated(bias, x.nrows()),
                mean: Output::new(here[0].view_mut().subrows_mut(0, x.nrows())),
                activation: network.activation(),
            };
            self.work.forward(weights, below, forward);
            for row in 0..x.nrows() {
                let (isa, drive) = (self.work.runtime().isa(), self.drives[k].row(row));
                network.activation().derivatives(isa, self.slopes[k].row_mut(row), drive).expect("rows of one layer");
            }
        }
    }

    /// Gives units at a kink the larger slope, which is 1 for every activation that has kinks. Returns whether there are any.
    fn lift_kinks(&mut self, activation: Activation) -> bool {
        let mut found = false;
        for (slopes, drives) in self.slopes.iter_mut().zip(&self.drives) {
            for row in 0..self.rows {
                for (slope, &drive) in slopes.row_mut(row).iter_mut().zip(drives.row(row)) {
                    let at_kink = match activation {
                        Activation::Relu | Activation::LeakyRelu => drive == T::ZERO,
                        Activation::HardSigmoid => drive == T::ZERO || drive == T::ONE,
                        _ => false,
                    };
                    if at_kink {
                        (*slope, found) = (T::ONE, true);
                    }
                }
            }
        }
        found
    }
}

/// Products with the Jacobians of a chunk, in the precision `U`.
struct Jacobians<U> {
    work: Workspace<U>,
    /// The last weights, whose rows each chain begins with.
    last: RowMajor<U>,
    last_is_zero: bool,
    /// The other factors from the outputs down.
    factors: Vec<Factor<U>>,
    /// Not below `‖CCᵀ − W_0W_0ᵀ‖₂`; 0 if the last factor is `W_0`.
    moved: f64,
    slopes: Vec<RowMajor<U>>,
    /// `Z` before a product and behind it, a block of samples for each output.
    states: [Vec<RowMajor<U>>; 2],
    /// Bounds for each sample of the error of its rows, in the Frobenius norm.
    errors: Vec<f64>,
    /// Bounds for each sample of `‖Z‖_F` before the last product.
    before: Vec<f64>,
    /// The Jacobian of one sample, or `ZC`.
    jacobian: RowMajor<f64>,
    small: Small,
}

/// A matrix that is multiplied with, and what it makes of errors.
struct Factor<U> {
    panels: Panels<U>,
    cols: usize,
    /// Not below the 2-norm, of the weights and of what is stored for them.
    norm: f64,
    /// Of the stored matrix against the one it stands for, in the 2-norm.
    error: f64,
}

/// [`up`], and exactly 0 for 0.
fn at_most(x: f64, roundings: usize) -> f64 {
    if x == 0.0 { 0.0 } else { up(x, roundings) }
}

fn converted<T: Real, U: Real>(from: MatRef<'_, T>) -> RowMajor<U> {
    let mut to = RowMajor::zeros(from.nrows(), from.ncols());
    for i in 0..from.nrows() {
        to.row_mut(i).iter_mut().zip(from.row(i).iter()).for_each(|(to, from)| *to = U::from_f64(from.to_f64()));
    }
    to
}

/// `γ_k·size` for roundings to `U`, and what `count` such chains lose to underflow.
fn rounding<U: Real>(k: usize, size: f64, count: usize) -> f64 {
    let ku = k as f64 * U::UNIT_ROUNDOFF;
    let gamma = if ku < 1.0 { ku / (1.0 - ku) } else { f64::INFINITY };
    up(gamma * size + (k * count) as f64 * U::TINY, 6)
}

impl<U: Real> Jacobians<U> {
    fn new<T: Real>(network: &Network<T>, slopes: &Slopes<T>, runtime: &Runtime) -> Result<Self, Error> {
        let (layers, widths) = (network.layers(), network.widths());
        let rows = slopes.slopes.first().map_or(CHUNK, RowMajor::rows);
        let search = Search { gap: NEAR, ..Search::default() };
        let mut factors = Vec::new();
        let mut moved = 0.0;
        for k in (0..layers - 1).rev() {
            let mut weights = converted(network.weights(k));
            let (mut norm, mut error) = (enclose(&Dense::<U>::new(weights.view()), &search, runtime)?.enclosure.upper, 0.0);
            if k == 0
                && let Some(root) = Root::new(network.weights(0), runtime)
            {
                (weights, error, moved) = (root.factor, root.error, root.moved);
                norm = up(up(norm * norm + moved, 2).sqrt() + error, 2);
            }
            let mut panels = Panels::new();
            panels.pack(runtime.isa(), weights.view());
            factors.push(Factor { panels, cols: weights.cols(), norm, error });
        }
        let last: RowMajor<U> = converted(network.weights(layers - 1));
        let n_out = last.rows();
        let widest = widths[..layers].iter().copied().max().unwrap_or(0);
        let state = || (0..n_out).map(|_| RowMajor::zeros(rows, widest)).collect();
        Ok(Self {
            work: Workspace::new(runtime),
            last_is_zero: (0..n_out).all(|o| last.row(o).iter().all(|&w| w == U::ZERO)),
            last,
            factors,
            moved,
            slopes: slopes.slopes.iter().map(|s| RowMajor::zeros(s.rows(), s.cols())).collect(),
            states: [state(), state()],
            errors: vec![0.0; rows],
            before: vec![0.0; rows],
            jacobian: RowMajor::zeros(n_out, widest),
            small: Small::new(n_out),
        })
    }

    /// The norms for these samples of the chunk, each to its place.
    fn enclose<T: Real>(&mut self, slopes: &Slopes<T>, samples: &[usize], gap: f64, to: &mut [Enclosure]) {
        let (isa, rows) = (self.work.runtime().isa(), samples.len());
        for (own, slopes) in self.slopes.iter_mut().zip(&slopes.slopes) {
            for (i, &sample) in samples.iter().enumerate() {
                own.row_mut(i).iter_mut().zip(slopes.row(sample)).for_each(|(own, d)| *own = U::from_f64(d.to_f64()));
            }
        }
        let n_out = self.last.rows();
        let mut width = self.last.cols();
        for (o, state) in self.states[0].iter_mut().enumerate() {
            for i in 0..rows {
                let state = &mut state.row_mut(i)[..width];
                match self.slopes.last() {
                    Some(slopes) => {
                        let row = slopes.row(i).iter().zip(self.last.row(o));
                        state.iter_mut().zip(row).for_each(|(z, (&d, &w))| *z = d * w);
                    }
                    None => state.copy_from_slice(self.last.row(o)),
                }
            }
        }
        // Not below `‖Z‖_F` of a sample; 0 for nothing but zeros.
        let mut norms = vec![0.0; n_out];
        let mut size = |states: &[RowMajor<U>], i: usize, width: usize| {
            norms.iter_mut().zip(states).for_each(|(norm, state)| *norm = reduce::norm(isa, &state.row(i)[..width]));
            let most = norms.iter().copied().fold(0.0, f64::max);
            let relative: f64 = norms.iter().map(|norm| (norm / most).powi(2)).sum();
            if most == 0.0 { 0.0 } else { up(most * relative.sqrt(), width + 4 * n_out + 8) }
        };
        let active = |slopes: &RowMajor<U>, i: usize| slopes.row(i).iter().filter(|&&d| d != U::ZERO).count();
        for i in 0..rows {
            // `D W_{L−1}`: one rounding of each element.
            let exact = self.last_is_zero || self.slopes.last().is_none_or(|slopes| active(slopes, i) == 0);
            self.errors[i] = if exact { 0.0 } else { rounding::<U>(1, size(&self.states[0], i, width), n_out * width) };
        }
        for (f, factor) in self.factors.iter().enumerate() {
            let (hidden, is_last) = (self.slopes.len() - 1 - f, f + 1 == self.factors.len());
            let slopes = (!is_last).then(|| &self.slopes[hidden - 1]);
            let [from, into] = &mut self.states;
            for (from, into) in from.iter().zip(into.iter_mut()) {
                let out = Output::new(into.view_mut().submatrix_mut(0, 0, rows, factor.cols));
                let epilogue = match slopes {
                    Some(slopes) => Epilogue::Masked { slope: Input::new(slopes.view().subrows(0, rows)), out },
                    None => Epilogue::Store { out, scale: U::ONE },
                };
                self.work.packed(&factor.panels, from.view().submatrix(0, 0, rows, width), epilogue);
            }
            for i in 0..rows {
                let (size, k) = (size(from, i, width), active(&self.slopes[hidden], i) + 1);
                let slope = slopes.map_or(1.0, |slopes| reduce::max_abs(isa, slopes.row(i)));
                // What a slope below 1 loses to underflow is not more than a step of the chain.
                let fresh = slope.max(1.0) * rounding::<U>(k, factor.norm * size, n_out * factor.cols);
                let fresh = if size == 0.0 || slope == 0.0 { 0.0 } else { fresh + slope * factor.error * size };
                self.errors[i] = at_most(slope * self.errors[i] * factor.norm + fresh, 8);
                self.before[i] = size;
            }
            self.states.swap(0, 1);
            width = factor.cols;
        }
        for (i, &sample) in samples.iter().enumerate() {
            for (o, state) in self.states[0].iter().enumerate() {
                self.jacobian.row_mut(o).iter_mut().zip(&state.row(i)[..width]).for_each(|(wide, x)| *wide = x.to_f64());
            }
            let row = |o: usize| &self.jacobian.row(o)[..width];
            for o in 0..n_out {
                for p in o..n_out {
                    self.small.set(o, p, reduce::dot(isa, row(o), row(p)));
                }
            }
            let (size, lost) = (size(&self.states[0], i, width), self.errors[i]);
            let dots = if size == 0.0 { 0.0 } else { rounding::<f64>(width + 2, size * size, n_out * n_out) };
            let square = self.small.enclose(dots, gap * PROOF);
            // `‖ZW_0‖² − ‖ZC‖²`. Rounding comes off `‖ZC‖` first: the other way round would claim too much.
            let moved = at_most(self.moved * self.before[i] * self.before[i], 3);
            let lower = down(down(down(square.lower.sqrt(), 2) - lost, 1).powi(2) - moved, 3).sqrt().next_down().max(0.0);
            let upper = at_most(at_most(square.upper + moved, 1).sqrt() + lost, 3);
            let (proof, status) = (if upper == 0.0 { Proof::Zero } else { square.proof }, Status::GapReached);
            let mut enclosure = Enclosure { lower, upper, proof, status, products: n_out as u32 };
            if upper.is_nan() {
                // Beyond the range of numbers.
                (enclosure.upper, enclosure.proof) = (f64::INFINITY, Proof::None);
            }
            if enclosure.gap().is_nan() || enclosure.gap() > gap {
                enclosure.status = Status::Budget;
            }
            to[sample] = enclosure;
        }
    }
}

/// A lower triangular `C` with `CCᵀ = WWᵀ`, by Cholesky's algorithm in f64.
struct Root<U> {
    /// `C`, rounded to `U`.
    factor: RowMajor<U>,
    /// Of that against `C`, in the 2-norm.
    error: f64,
    /// Not below `‖CCᵀ − WWᵀ‖₂`.
    moved: f64,
}

impl<U: Real> Root<U> {
    /// `None` if it would have no fewer columns than `W`, or if `WWᵀ` is too near to a singular matrix. Takes `n²·inputs + n³/3` flops.
    fn new<T: Real>(weights: MatRef<'_, T>, runtime: &Runtime) -> Option<Self> {
        let (n, depth) = (weights.nrows(), weights.ncols());
        if n >= depth {
            return None;
        }
        let weights = converted::<T, f64>(weights);
        // `−WWᵀ`, for it is `τI − G` that is factored.
        let mut gram = RowMajor::<f64>::zeros(n, n);
        let store = Epilogue::Store { out: Output::new(gram.view_mut()), scale: -1.0 };
        Workspace::new(runtime).outer(weights.view().transpose(), weights.view().transpose(), store);
        let mut cholesky = Cholesky::new(n);
        if !cholesky.runs_to_its_end(0.0, &gram, runtime) {
            return None;
        }
        let (mut factor, mut square) = (RowMajor::<U>::zeros(n, n), 0.0);
        for p in 0..n {
            for (i, &r) in (p..n).zip(cholesky.row(p)) {
                factor.row_mut(i)[p] = U::from_f64(r);
                square += r * r;
            }
        }
        let error = rounding::<U>(1, up(up(square, n * n).sqrt(), 1), n * n);
        // Of the products `‖ |W||W|ᵀ ‖_F ≤ ‖W‖_F² = tr WWᵀ`, and of the factorization `φ tr` (see `certificate.rs`).
        let trace = up((0..n).map(|i| -gram.row(i)[i]).sum(), n + depth + 2);
        let vanished = (n * n) as f64 * f64::MIN_POSITIVE * (1.0 + trace);
        let moved = up(rounding::<f64>(depth, trace, n * n) + gamma(n + 2) * trace + vanished, 4);
        Some(Self { factor, error, moved })
    }
}
