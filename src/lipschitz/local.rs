//! Local Lipschitz constants: the norm of the Jacobian at every sample of a batch.

use dualprop_kernels::activation::Activation;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::pack::Panels;
use dualprop_kernels::reduce;
use dualprop_kernels::selected::{Selected, inner, selected};
use dualprop_kernels::strided::{Input, Output};
use dualprop_kernels::threads;
use dualprop_kernels::vector::Real;
use faer::{MatRef, Par};

use super::certificate::Certificate;
use super::cholesky::Cholesky;
use super::dense::Dense;
use super::enclose::enclose;
use super::enclosure::{Enclosure, Proof, Search, Status};
use super::few::{self, Few};
use super::rounding::{at_most, down, gamma, rounding, up};
use super::small::{Largest, Small};
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

/// Samples that share a forward pass.
pub(super) const CHUNK: usize = 128;

/// A product is taken row by row where one of so many units below has another value than 0.
const FEW: usize = 8;

/// Samples that go through a product together: each block of its matrix comes into the cache once.
const GROUP: usize = 8;

/// The part of the gap that the proof takes, in `‖J‖²` (half of that in `‖J‖`): the rest is for rounding.
pub(super) const PROOF: f64 = 0.125;

/// Most patterns of active units that products begin with.
const PATTERNS: usize = 16;

/// Samples that there are for each pattern, at the least.
const PER_PATTERN: usize = 8;

/// Rounds of Lloyd's algorithm.
const ROUNDS: usize = 4;

/// How near the norms of the factors are known; they weigh rounding errors alone.
const NEAR: f64 = 0.1;

/// Products with a Gram matrix that are to come as near as that to its largest eigenvalue.
const POWERS: usize = 16;

/// `‖J_i‖₂` for every row `x_i` of `x` (`samples × inputs`, any strides), `J_i = W_{L−1} D_{L−2}(x_i) W_{L−2} ⋯ D_0(x_i) W_0`.
///
/// The slopes `D` are those of the activations at the drives of a forward pass in `T`: each answer is an enclosure for the real product of the
/// stored weights and these slopes. `J_i` is multiplied out from its outputs, `n_L` rows `Z` for each sample, and `J_iJ_iᵀ` (`n_L × n_L`) is
/// enclosed by its powers ([`Proof::Gram`]).
///
/// A trained network leaves few units active at a sample. What active units of two layers share is then picked out and multiplied in f64, and
/// `J_iJ_iᵀ = Z G Zᵀ` with `G = W_0W_0ᵀ`: where that takes less than a quarter of the flops of whole rows, and there are fewer units in
/// the first hidden layer than inputs. Otherwise rows are multiplied in `T`. What is not multiplied then:
///
/// * rows of a matrix whose slopes are 0, and blocks of columns whose next slopes are all 0;
/// * the upper half of the last factor: it is not `W_0` but a triangular `C` with `CCᵀ = W_0W_0ᵀ` if there are fewer hidden units than inputs:
///   `‖ZW_0‖ = ‖ZC‖`. Units come in the order of how often they are active, so that long rows of `C` are seldom needed;
/// * what samples share, for slopes of 0 and 1: the first product begins with that of a pattern of active units that the sample is near to, made in
///   f64 and rounded once, and adds or takes off the units that differ. Patterns (16 at most) and the order of units come from the first samples.
///
/// Rounding is in the bounds. Each element of a product `S = ZW` is one chain of fused multiply-adds: step `p` is off by at most `u` times the
/// sum it leaves. The sums that are left after step `p` are, together, the product `S_p` of the units that are in by then, up to their own error
/// `E_p`, and `‖S_p‖_F ≤ ‖Z‖_F ‖W‖₂`, where `Z` has the columns of all units that are in at any time: the active ones, and those of the pattern
/// that is begun with. From an error `E_0` of what is begun with (or 0), `k` steps lead to
///
/// ```text
/// ‖E_p‖_F ≤ ‖E_{p−1}‖_F + u (‖S_p‖_F + ‖E_p‖_F)
/// ‖E_k‖_F ≤ (1−u)^{−k} ‖E_0‖_F + ((1−u)^{−k} − 1) ‖Z‖_F ‖W‖₂ ≤ ‖E_0‖_F + γ_k (‖Z‖_F ‖W‖₂ + ‖E_0‖_F)
/// ```
///
/// where the usual bound has `γ_n` and `‖ |W| ‖₂`, which is larger by some `√n` for random signs. Slopes and signs of 1 are exact; the slope behind
/// a product is one more rounding, and errors pass on by the norms of what follows. The inner products of `JJᵀ` are summed in the lanes of a cache
/// line: `γ_q ‖J‖_F²` for `q = ⌈n/16⌉ + 4` in f32. Samples that miss `gap` in f32 are repeated in f64.
///
/// Costs, beside the forward pass (which leaves out units of value 0 if most are), where `a_k` of `n_k` units are active: `2 n_L (a_1² + Σ_{0<k<L−1}
/// a_{k+1} a_k)` flops in f64 for samples with few active units, `n_L` rounded up to 16; for others `2 n_L (Σ_{0<k<L−1} a_{k+1} n_k + a_1 n_1/2)`
/// (and `a_1 n_0` if there is no `C`), where in the first product `a_k` differ from a pattern, and as many in f64 if f32 is not enough for them
/// (f64 alone once those were most of a chunk). Once, `n_1²n_0` in f64 for `G`; for the others the same, `n_1³` for `C`, and what [`enclose`] takes
/// for the other matrices. Memory for the slopes of 128 samples, and the Jacobians of 8 on each thread. The result has the same bits for every
/// instruction set and number of threads; the last bits of a bound, not what it bounds, depend on the first 128 samples of `x` as well.
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
    check::finite_on(runtime.par(), "x", x)?;
    network.check_finite()?;
    let mut slopes = Slopes::new(network, CHUNK.min(x.nrows()), runtime);
    let (mut native_pays, mut few, mut native, mut wide) = (true, None, None, None);
    let mut found = Vec::with_capacity(x.nrows());
    for from in (0..x.nrows()).step_by(CHUNK) {
        let rows = CHUNK.min(x.nrows() - from);
        slopes.take(network, x.subrows(from, rows));
        let mut constants = |slopes: &Slopes<T>| -> Result<Vec<Enclosure>, Error> {
            let mut found = vec![Enclosure::ZERO; rows];
            let (of_few, mut missed): (Vec<_>, Vec<_>) =
                (0..rows).partition(|&i| few::is_possible(network) && few::pays(network, slopes, i));
            if !of_few.is_empty() {
                let few = match &mut few {
                    Some(few) => few,
                    none => none.insert(Few::new(network, slopes, runtime)),
                };
                few.enclose(slopes, &of_few, gap, &mut found);
                missed.extend(of_few.into_iter().filter(|&i| found[i].status != Status::GapReached));
                missed.sort_unstable();
            }
            if native_pays && !missed.is_empty() {
                let native = match &mut native {
                    Some(native) => native,
                    none => none.insert(Jacobians::<T>::new(network, slopes, runtime)?),
                };
                native.enclose(slopes, &missed, gap, &mut found);
                if T::NAME == "f64" {
                    return Ok(found);
                }
                let tried = missed.len();
                missed.retain(|&i| found[i].status != Status::GapReached);
                native_pays = 2 * missed.len() <= tried;
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
pub(super) struct Slopes<T> {
    work: Workspace<T>,
    /// The transposed weights of the hidden layers, packed, and as rows where few units below have other values than 0.
    panels: Vec<Panels<T>>,
    columns: Vec<Option<RowMajor<T>>>,
    drives: Vec<RowMajor<T>>,
    means: Vec<RowMajor<T>>,
    slopes: Vec<RowMajor<T>>,
    /// A bit for each unit whose slope is not 0, sample after sample.
    active: Vec<Vec<u64>>,
    zeros: Vec<T>,
    rows: usize,
}

impl<T: Real> Slopes<T> {
    fn new(network: &Network<T>, rows: usize, runtime: &Runtime) -> Self {
        let hidden = &network.widths()[1..network.layers()];
        let states = || hidden.iter().map(|&n| RowMajor::zeros(rows, n)).collect();
        let widest = hidden.iter().copied().max().unwrap_or(0);
        let packed = |k: usize| {
            let mut panels = Panels::new();
            panels.pack(runtime.isa(), runtime.par(), network.weights(k).transpose());
            panels
        };
        Self {
            work: Workspace::new(runtime),
            panels: (0..hidden.len()).map(packed).collect(),
            columns: vec![None; hidden.len()],
            drives: states(),
            means: states(),
            slopes: states(),
            active: vec![vec![]; hidden.len()],
            zeros: vec![T::ZERO; widest],
            rows: 0,
        }
    }

    fn take(&mut self, network: &Network<T>, x: MatRef<'_, T>) {
        self.rows = x.nrows();
        let isa = self.work.runtime().isa();
        for k in 0..self.drives.len() {
            let (_, bias) = network.incoming(k + 1, &self.zeros);
            let (before, here) = self.means.split_at_mut(k);
            let below = before.last().map(|below| Nonzero::new(below, x.nrows()));
            match below {
                Some(below) if FEW * below.units.len() <= x.nrows() * network.widths()[k] => {
                    let columns = self.columns[k].get_or_insert_with(|| converted(network.weights(k).transpose()));
                    below.multiply(isa, columns, &mut self.drives[k]);
                    for row in 0..x.nrows() {
                        let drive = self.drives[k].row_mut(row);
                        drive.iter_mut().zip(bias).for_each(|(drive, &bias)| *drive = *drive + bias + T::ZERO);
                        network.activation().values(isa, here[0].row_mut(row), drive).expect("rows of one layer");
                    }
                }
                _ => {
                    let below = before.last().map_or(x, |below| below.view().subrows(0, x.nrows()));
                    let forward = Epilogue::Forward {
                        drive: Output::new(self.drives[k].view_mut().subrows_mut(0, x.nrows())),
                        bias: Input::repeated(bias, x.nrows()),
                        mean: Output::new(here[0].view_mut().subrows_mut(0, x.nrows())),
                        activation: network.activation(),
                    };
                    self.work.packed(&self.panels[k], below, forward);
                }
            }
            for row in 0..x.nrows() {
                let drive = self.drives[k].row(row);
                network.activation().derivatives(isa, self.slopes[k].row_mut(row), drive).expect("rows of one layer");
            }
        }
        self.set_active();
    }

    fn set_active(&mut self) {
        for (active, slopes) in self.active.iter_mut().zip(&self.slopes) {
            active.clear();
            (0..self.rows).for_each(|row| active.extend(nonzero(slopes.row(row))));
        }
    }

    fn bits(&self, layer: usize, sample: usize) -> &[u64] {
        let words = self.active[layer].len() / self.rows;
        &self.active[layer][sample * words..][..words]
    }

    /// Units of a layer whose slope at a sample is not 0.
    pub(super) fn count(&self, layer: usize, sample: usize) -> usize {
        count(self.bits(layer, sample)) as usize
    }

    /// Hands each of them and its slope to `take`.
    pub(super) fn active(&self, layer: usize, sample: usize, mut take: impl FnMut(usize, T)) {
        let slopes = self.slopes[layer].row(sample);
        each_bit(self.bits(layer, sample), |unit| take(unit, slopes[unit]));
    }

    /// Units of a layer, those that are active in most samples first.
    pub(super) fn by_activity(&self, layer: usize) -> Vec<u32> {
        let mut counts = vec![0u32; self.slopes[layer].cols()];
        (0..self.rows).for_each(|sample| each_bit(self.bits(layer, sample), |unit| counts[unit] += 1));
        let mut order: Vec<u32> = (0..counts.len() as u32).collect();
        order.sort_by_key(|&unit| core::cmp::Reverse(counts[unit as usize]));
        order
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
        self.set_active();
        found
    }
}

/// Units of a layer whose values are not 0, for some samples.
struct Nonzero<T> {
    units: Vec<u32>,
    values: Vec<T>,
    /// Where those of each sample end.
    ends: Vec<usize>,
}

impl<T: Real> Nonzero<T> {
    fn new(layer: &RowMajor<T>, rows: usize) -> Self {
        let mut found = Self { units: vec![], values: vec![], ends: vec![] };
        for row in (0..rows).map(|row| layer.row(row)) {
            for (w, word) in nonzero(row).enumerate() {
                each_bit(&[word], |bit| {
                    found.units.push((64 * w + bit) as u32);
                    found.values.push(row[64 * w + bit]);
                });
            }
            found.ends.push(found.units.len());
        }
        found
    }

    /// Their products with the rows of a matrix that belong to them: to the bit those of all units, for weights are finite.
    fn multiply(&self, isa: Isa, weights: &RowMajor<T>, to: &mut RowMajor<T>) {
        let mut begin = 0;
        let mut products = Vec::with_capacity(self.ends.len());
        let mut rest = to.view_mut();
        for &end in &self.ends {
            let (out, others) = rest.split_at_row_mut(1);
            rest = others;
            let (rows, factors) = (&self.units[begin..end], &self.values[begin..end]);
            products.push(Selected { rows, factors, start: None, wanted: None, out });
            begin = end;
        }
        selected(isa, weights.view(), false, &mut products);
    }
}

/// A bit for each number that is not 0.
fn nonzero<T: Real>(x: &[T]) -> impl Iterator<Item = u64> {
    x.chunks(64).map(|x| {
        let mut bytes = [[0; 8]; 8];
        bytes.as_flattened_mut().iter_mut().zip(x).for_each(|(byte, &x)| *byte = u8::from(x != T::ZERO));
        // The factor has a bit for each byte that takes its lowest bit to the highest byte.
        let gathered = bytes.map(|eight| u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56);
        gathered.iter().rev().fold(0, |word, eight| word << 8 | eight)
    })
}

fn each_bit(bits: &[u64], mut take: impl FnMut(usize)) {
    for (w, &word) in bits.iter().enumerate() {
        let mut rest = word;
        while rest != 0 {
            take(64 * w + rest.trailing_zeros() as usize);
            rest &= rest - 1;
        }
    }
}

/// Products with the Jacobians of a chunk, in the precision `U`.
struct Jacobians<U> {
    runtime: Runtime,
    /// The last weights, transposed: a row for each unit of the last hidden layer, in the order of the units; without hidden layers as they are.
    last: RowMajor<U>,
    /// `‖·‖²` of these rows, not below.
    squares: Vec<f64>,
    last_is_zero: bool,
    n_out: usize,
    /// The units of each hidden layer: often active ones first.
    orders: Vec<Vec<u32>>,
    /// The other factors from the outputs down, rows and columns in the order of the units.
    factors: Vec<Factor<U>>,
    /// Made for the first samples.
    common: Option<Vec<Common<U>>>,
    /// Not below `‖CCᵀ − W_0W_0ᵀ‖₂`; 0 if the last factor is `W_0`.
    moved: f64,
    /// A group for each thread.
    samples: Vec<Sample<U>>,
}

/// A matrix that is multiplied with, and what it makes of errors.
struct Factor<U> {
    /// Behind the last column is a cache line of zeros: rows of a whole number of pages would meet in the same sets of a cache.
    rows: RowMajor<U>,
    cols: usize,
    lower: bool,
    /// Not below the 2-norm, of the weights and of what is stored for them.
    norm: f64,
    /// Of the stored matrix against the one it stands for, in the 2-norm.
    error: f64,
}

impl<U: Real> Factor<U> {
    fn matrix(&self) -> MatRef<'_, U> {
        self.rows.view().subcols(0, self.cols)
    }
}

/// What first products may begin with, where all slopes are 0 or 1: the product of the units of the last hidden layer that are active in most of
/// some samples that are alike.
struct Common<U> {
    /// A bit for each unit, in their order.
    active: Vec<u64>,
    product: RowMajor<U>,
    /// Not below the error of the product, in the Frobenius norm.
    error: f64,
    /// The sum of `squares` of these units.
    square: f64,
}

/// The Jacobian of a sample.
struct Sample<U> {
    /// Units of the layer above that are active and their slopes, and the same for the layer below.
    above: Active<U>,
    below: Active<U>,
    /// `Z` without the columns of units that are not active: `n_L` elements for each of the others.
    factors: Vec<U>,
    product: RowMajor<U>,
    /// Columns of the product.
    width: usize,
    /// The active units of the last hidden layer, bit by bit.
    bits: Vec<u64>,
    /// What the first product begins with.
    start: Option<usize>,
    /// Not below `‖Z‖_F` before the last product.
    size: f64,
    /// Not below the error of `Z`, in the Frobenius norm.
    error: f64,
    small: Small,
}

#[derive(Clone, Default)]
struct Active<U> {
    units: Vec<u32>,
    slopes: Vec<U>,
}

impl<U: Real> Active<U> {
    /// Units of a layer whose slope is not 0.
    fn take<T: Real>(&mut self, order: &[u32], slopes: &[T]) {
        self.units.resize(order.len(), 0);
        self.slopes.resize(order.len(), U::ZERO);
        let mut count = 0;
        for (i, &unit) in order.iter().enumerate() {
            let slope = slopes[unit as usize];
            (self.units[count], self.slopes[count]) = (i as u32, U::from_f64(slope.to_f64()));
            count += usize::from(slope != T::ZERO);
        }
        self.units.truncate(count);
        self.slopes.truncate(count);
    }

    /// The units that are active here and not there with 1, and those that are active there and not here with −1.
    fn differ(&mut self, here: &[u64], there: &[u64]) {
        self.units.clear();
        self.slopes.clear();
        for (w, (here, there)) in (0..).zip(here.iter().zip(there)) {
            let mut rest = here ^ there;
            while rest != 0 {
                let bit = rest.trailing_zeros();
                self.units.push(64 * w + bit);
                self.slopes.push(if here >> bit & 1 == 1 { U::ONE } else { -U::ONE });
                rest &= rest - 1;
            }
        }
    }
}

/// A bit for each unit of a layer, in their order, whose slope is not 0. Returns whether all others are 1.
fn set_bits<T: Real>(to: &mut Vec<u64>, order: &[u32], slopes: &[T]) -> bool {
    let mut is_binary = true;
    to.clear();
    to.extend(order.chunks(64).map(|units| {
        units.iter().rev().fold(0, |word, &unit| {
            let slope = slopes[unit as usize];
            is_binary &= (slope == T::ZERO) | (slope == T::ONE);
            word << 1 | u64::from(slope != T::ZERO)
        })
    }));
    is_binary
}

fn count(bits: &[u64]) -> u32 {
    bits.iter().map(|word| word.count_ones()).sum()
}

/// The nearest of some patterns, and how many units it has otherwise.
fn nearest<'a>(bits: &[u64], patterns: impl Iterator<Item = &'a [u64]>) -> Option<(usize, u32)> {
    let distance = |pattern: &[u64]| bits.iter().zip(pattern).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
    patterns.map(distance).enumerate().min_by_key(|&(_, distance)| distance)
}

/// Patterns that these are near to, by Lloyd's algorithm: each becomes what most of those do that it is the nearest to.
fn patterns_of(samples: &[Vec<u64>], count: usize) -> Vec<Vec<u64>> {
    let mut patterns: Vec<Vec<u64>> = (0..count).map(|c| samples[samples.len() * c / count].clone()).collect();
    for _ in 0..ROUNDS {
        let mut members: Vec<Vec<&[u64]>> = vec![vec![]; count];
        for sample in samples {
            if let Some((c, _)) = nearest(sample, patterns.iter().map(Vec::as_slice)) {
                members[c].push(sample);
            }
        }
        for (pattern, members) in patterns.iter_mut().zip(&members) {
            for (w, word) in pattern.iter_mut().enumerate() {
                let active = |bit: usize| members.iter().filter(|sample| sample[w] >> bit & 1 == 1).count();
                *word = (0..64).filter(|&bit| 2 * active(bit) > members.len()).fold(0, |word, bit| word | 1 << bit);
            }
        }
    }
    patterns
}

fn converted<T: Real, U: Real>(from: MatRef<'_, T>) -> RowMajor<U> {
    let mut to = RowMajor::zeros(from.nrows(), from.ncols());
    for i in 0..from.nrows() {
        to.row_mut(i).iter_mut().zip(from.row(i).iter()).for_each(|(to, from)| *to = U::from_f64(from.to_f64()));
    }
    to
}

impl<U: Real> Jacobians<U> {
    fn new<T: Real>(network: &Network<T>, slopes: &Slopes<T>, runtime: &Runtime) -> Result<Self, Error> {
        let (layers, widths) = (network.layers(), network.widths());
        let search = Search { gap: NEAR, ..Search::default() };
        let orders: Vec<Vec<u32>> = (0..layers - 1).map(|k| slopes.by_activity(k)).collect();
        let mut factors = Vec::new();
        let mut moved = 0.0;
        for k in (0..layers - 1).rev() {
            // Units in their order.
            let stored = network.weights(k);
            let above = &orders[k];
            let element = |i: usize, j: usize| stored[(above[i] as usize, if k == 0 { j } else { orders[k - 1][j] as usize })];
            let mut weights = RowMajor::<T>::zeros(stored.nrows(), stored.ncols());
            for i in 0..stored.nrows() {
                weights.row_mut(i).iter_mut().enumerate().for_each(|(j, w)| *w = element(i, j));
            }
            let root = if k == 0 { Root::new(weights.view(), runtime) } else { None };
            let lower = root.is_some();
            let (found, norm, error) = match root {
                Some(root) => {
                    moved = root.moved;
                    (root.factor, up(up(root.norm * root.norm + moved, 2).sqrt() + root.error, 2), root.error)
                }
                None => {
                    let norm = enclose(&Dense::<T>::new(weights.view()), &search, runtime)?.enclosure.upper;
                    (converted(weights.view()), norm, 0.0)
                }
            };
            let cols = found.cols();
            let mut rows = RowMajor::zeros(found.rows(), padded::<U>(cols));
            (0..found.rows()).for_each(|i| rows.row_mut(i)[..cols].copy_from_slice(found.row(i)));
            factors.push(Factor { rows, cols, lower, norm, error });
        }
        let stored = network.weights(layers - 1);
        let n_out = stored.nrows();
        let last: RowMajor<U> = match orders.last() {
            Some(order) => {
                let mut last = RowMajor::zeros(order.len(), n_out);
                for (i, &unit) in order.iter().enumerate() {
                    let row = last.row_mut(i).iter_mut().enumerate();
                    row.for_each(|(o, w)| *w = U::from_f64(stored[(o, unit as usize)].to_f64()));
                }
                last
            }
            None => converted(stored),
        };
        let squares = (0..last.rows()).map(|i| up(reduce::norm(runtime.isa(), last.row(i)).powi(2), n_out + 10)).collect();
        let widest = widths[..layers].iter().copied().max().unwrap_or(0);
        let sample = || Sample {
            above: Active::default(),
            below: Active::default(),
            factors: Vec::with_capacity(n_out * widest),
            product: RowMajor::zeros(n_out, padded::<U>(widest)),
            width: 0,
            bits: Vec::new(),
            start: None,
            size: 0.0,
            error: 0.0,
            small: Small::new(n_out),
        };
        let threads = match runtime.par() {
            Par::Rayon(threads) => threads.get().min(CHUNK / GROUP),
            Par::Seq => 1,
        };
        Ok(Self {
            runtime: *runtime,
            last_is_zero: (0..last.rows()).all(|i| last.row(i).iter().all(|&w| w == U::ZERO)),
            last,
            squares,
            n_out,
            orders,
            factors,
            common: None,
            moved,
            samples: (0..threads * GROUP).map(|_| sample()).collect(),
        })
    }

    fn common(&self) -> &[Common<U>] {
        self.common.as_deref().unwrap_or_default()
    }

    /// The norms for these samples of the chunk, each to its place.
    fn enclose<T: Real>(&mut self, slopes: &Slopes<T>, samples: &[usize], gap: f64, to: &mut [Enclosure]) {
        if self.common.is_none() {
            self.common = Some(self.common_of(slopes, samples));
        }
        let mut memory = core::mem::take(&mut self.samples);
        let mut found = vec![Enclosure::ZERO; samples.len()];
        let each =
            |samples: &[usize], memory: &mut [Sample<U>], to: &mut [Enclosure]| self.group(slopes, samples, gap, memory, to);
        share(samples, &mut memory, GROUP, &mut found, &each);
        self.samples = memory;
        samples.iter().zip(found).for_each(|(&sample, found)| to[sample] = found);
    }

    /// What first products may begin with, for samples like these.
    fn common_of<T: Real>(&self, slopes: &Slopes<T>, samples: &[usize]) -> Vec<Common<U>> {
        let (Some(layer), Some(factor), Some(order)) = (slopes.slopes.last(), self.factors.first(), self.orders.last()) else {
            return vec![];
        };
        let mut bits = vec![vec![]; samples.len()];
        let is_binary = bits.iter_mut().zip(samples).all(|(bits, &sample)| set_bits(bits, order, layer.row(sample)));
        let count = PATTERNS.min(samples.len() / PER_PATTERN);
        if !is_binary || count == 0 {
            return vec![];
        }
        let wide: RowMajor<f64> = converted(factor.matrix());
        let common = |active: Vec<u64>| {
            let units: Vec<u32> = (0..order.len() as u32).filter(|&i| active[i as usize / 64] >> (i % 64) & 1 == 1).collect();
            let factors: Vec<f64> = units.iter().flat_map(|&i| self.last.row(i as usize)).map(|w| w.to_f64()).collect();
            let mut exact = RowMajor::<f64>::zeros(self.n_out, factor.cols);
            let sum = Selected { rows: &units, factors: &factors, start: None, wanted: None, out: exact.view_mut() };
            selected(self.runtime.isa(), wide.view(), factor.lower, &mut [sum]);
            let square = at_most(units.iter().map(|&i| self.squares[i as usize]).sum(), units.len());
            let (size, count) = (up(at_most(square.sqrt(), 1) * factor.norm, 1), self.n_out * factor.cols);
            let chains = rounding::<f64>(units.len(), size, count);
            let error = up(chains + rounding::<U>(1, up(size + chains, 1), count), 1);
            Common { active, product: converted(exact.view()), error, square }
        };
        patterns_of(&bits, count).into_iter().map(common).collect()
    }

    /// The norms of the Jacobians at a few samples of the chunk.
    fn group<T: Real>(&self, slopes: &Slopes<T>, samples: &[usize], gap: f64, memory: &mut [Sample<U>], to: &mut [Enclosure]) {
        let memory = &mut memory[..samples.len()];
        memory.iter_mut().zip(samples).for_each(|(memory, &sample)| self.begin(slopes, sample, memory));
        for (f, factor) in self.factors.iter().enumerate() {
            let hidden = (self.orders.len() - 1).checked_sub(f + 1);
            for (memory, &sample) in memory.iter_mut().zip(samples) {
                memory.width = factor.cols;
                match hidden {
                    Some(hidden) => memory.below.take(&self.orders[hidden], slopes.slopes[hidden].row(sample)),
                    // Behind the last active unit there are zeros.
                    None if factor.lower && memory.start.is_none() => {
                        memory.width = memory.above.units.last().map_or(0, |&last| last as usize + 1);
                    }
                    None => {}
                }
            }
            let product = |memory| {
                let &mut Sample { ref above, ref below, ref factors, ref mut product, width, start, .. } = memory;
                Selected {
                    rows: &above.units,
                    factors,
                    start: start.map(|c| self.common()[c].product.view()),
                    wanted: hidden.map(|_| &below.units[..]),
                    out: product.view_mut().subcols_mut(0, width),
                }
            };
            let mut products: Vec<_> = memory.iter_mut().map(product).collect();
            selected(self.runtime.isa(), factor.matrix(), factor.lower, &mut products);
            memory.iter_mut().for_each(|memory| self.descend(factor, hidden.is_some(), memory));
        }
        memory.iter_mut().zip(to).for_each(|(memory, to)| *to = self.end(gap, memory));
    }

    /// `Z` before the first product: the last weights and slopes, or what distinguishes them from the common ones.
    fn begin<T: Real>(&self, slopes: &Slopes<T>, sample: usize, memory: &mut Sample<U>) {
        let isa = self.runtime.isa();
        let Sample { above, factors, product, width, bits, start, size, error, .. } = memory;
        (*start, *size, *error) = (None, 0.0, 0.0);
        let Some(order) = self.orders.last() else {
            *width = self.last.cols();
            (0..self.n_out).for_each(|o| product.row_mut(o)[..*width].copy_from_slice(self.last.row(o)));
            return;
        };
        let slopes = slopes.slopes[self.orders.len() - 1].row(sample);
        if !self.common().is_empty() && set_bits(bits, order, slopes) {
            let found = nearest(bits, self.common().iter().map(|common| &common.active[..]));
            *start = found.filter(|&(_, distance)| distance < count(bits)).map(|(c, _)| c);
        }
        if let Some(c) = *start {
            let common = &self.common()[c];
            above.differ(bits, &common.active);
            let come =
                above.units.iter().zip(&above.slopes).map(|(&i, &d)| if d == U::ONE { self.squares[i as usize] } else { 0.0 });
            *size = at_most(at_most(common.square + come.sum::<f64>(), order.len()).sqrt(), 1);
        } else {
            above.take(order, slopes);
        }
        factors.clear();
        for (&i, &d) in above.units.iter().zip(&above.slopes) {
            factors.extend(self.last.row(i as usize).iter().map(|&w| d * w));
        }
        if start.is_none() {
            *size = norm(isa, factors);
        }
        // `D W_{L−1}`: one rounding of each element.
        if !self.last_is_zero && above.slopes.iter().any(|&d| d.abs() != U::ONE) {
            *error = rounding::<U>(1, *size, factors.len());
        }
    }

    /// What a product does to the error; if another one follows, the slopes that come before it.
    fn descend(&self, factor: &Factor<U>, follows: bool, memory: &mut Sample<U>) {
        let Sample { above, below, factors, product, start, size, error, .. } = memory;
        // The chains hand on the error that they begin with. A slope behind the product is a rounding more.
        let start = start.take().map_or(0.0, |c| self.common()[c].error);
        let steps = above.units.len() + 1;
        let fresh = start + rounding::<U>(steps, up(factor.norm * *size + start, 2), self.n_out * factor.cols);
        let (before, mut slope) = (*size, 1.0);
        if follows {
            core::mem::swap(above, below);
            slope = reduce::max_abs(self.runtime.isa(), &above.slopes);
            factors.clear();
            factors.resize(self.n_out * above.units.len(), U::ZERO);
            gather(factors, self.n_out, above, product);
            *size = norm(self.runtime.isa(), factors);
        }
        // What a slope below 1 loses to underflow is not more than a step of the chain.
        let fresh = up(slope.max(1.0) * up(fresh, 1), 1) + slope * factor.error * before;
        let fresh = if before == 0.0 || slope == 0.0 { 0.0 } else { fresh };
        *error = at_most(slope * *error * factor.norm + fresh, 8);
    }

    /// The norm of a Jacobian.
    fn end(&self, gap: f64, memory: &mut Sample<U>) -> Enclosure {
        let (isa, n_out) = (self.runtime.isa(), self.n_out);
        let Sample { product, width, small, size, error, .. } = memory;
        let (width, before, error) = (*width, *size, *error);
        inner(isa, product.view().subcols(0, width), small.matrix_mut());
        // The lanes of a dot product are chains, and are added by halves.
        let (steps, trace) = (width.div_ceil(64 / size_of::<U>()) + 4, small.trace());
        let ku = (steps + 1) as f64 * U::UNIT_ROUNDOFF;
        let square = up((trace + (n_out * steps) as f64 * U::TINY) / (1.0 - ku), n_out + 4);
        let dots = if width == 0 || before == 0.0 && !self.factors.is_empty() {
            0.0
        } else if ku < 0.5 {
            rounding::<U>(steps, square, n_out * n_out)
        } else {
            f64::INFINITY
        };
        let square = small.enclose(isa, dots, gap * PROOF);
        // `‖ZW_0‖² − ‖ZC‖²`.
        conclude(square, error, at_most(self.moved * before * before, 3), gap, n_out)
    }
}

/// The answer for a Jacobian `J` that is within `error` of a `J̃`, from `‖J̃‖² − square`, not above `moved`.
pub(super) fn conclude(square: Largest, error: f64, moved: f64, gap: f64, n_out: usize) -> Enclosure {
    // Rounding comes off `‖J̃‖` first: the other way round would claim too much.
    let lower = down(down(down(square.lower.sqrt(), 2) - error, 1).powi(2) - moved, 3).sqrt().next_down().max(0.0);
    let upper = at_most(at_most(square.upper + moved, 1).sqrt() + error, 3);
    let (proof, status) = (if upper == 0.0 { Proof::Zero } else { square.proof }, Status::GapReached);
    let mut enclosure = Enclosure { lower, upper, proof, status, products: n_out as u32 };
    if upper.is_nan() {
        // Beyond the range of numbers.
        (enclosure.upper, enclosure.proof) = (f64::INFINITY, Proof::None);
    }
    if enclosure.gap().is_nan() || enclosure.gap() > gap {
        enclosure.status = Status::Budget;
    }
    enclosure
}

/// Runs `each` on the samples, `group` of them at a time, on as many threads as there is memory for such groups.
pub(super) fn share<M: Send>(
    samples: &[usize],
    memory: &mut [M],
    group: usize,
    to: &mut [Enclosure],
    each: &(impl Fn(&[usize], &mut [M], &mut [Enclosure]) + Sync),
) {
    let tasks = (memory.len() / group).min(samples.len().div_ceil(group));
    if tasks <= 1 {
        samples.chunks(group).zip(to.chunks_mut(group)).for_each(|(samples, to)| each(samples, memory, to));
        return;
    }
    let middle = samples.len() * (tasks / 2) / tasks;
    let ((a, b), (to_a, to_b)) = (samples.split_at(middle), to.split_at_mut(middle));
    let (left, right) = memory.split_at_mut(tasks / 2 * group);
    let right = &mut right[..(tasks - tasks / 2) * group];
    threads::join(|| share(a, left, group, to_a, each), || share(b, right, group, to_b, each));
}

/// Columns to store, for rows that begin in different sets of a cache.
fn padded<U>(cols: usize) -> usize {
    let line = 64 / size_of::<U>();
    cols.next_multiple_of(line) + line
}

/// The columns of active units, each times its slope: `to[i·m + o] ← d_i·product[o][unit_i]`.
fn gather<U: Real>(to: &mut [U], m: usize, active: &Active<U>, product: &RowMajor<U>) {
    let from = |o: usize| product.row(o);
    let mut o = 0;
    // The rows of a block share the check of an index.
    while o + 5 <= m {
        gather_rows::<U, 5>(to, m, o, active, core::array::from_fn(|r| from(o + r)));
        o += 5;
    }
    (o..m).for_each(|o| gather_rows::<U, 1>(to, m, o, active, [from(o)]));
}

fn gather_rows<U: Real, const R: usize>(to: &mut [U], m: usize, from: usize, active: &Active<U>, rows: [&[U]; R]) {
    let n = rows[0].len();
    let rows = rows.map(|row| &row[..n]);
    for ((to, &j), &d) in to.chunks_exact_mut(m).zip(&active.units).zip(&active.slopes) {
        let to = &mut to[from..from + R];
        for r in 0..R {
            to[r] = d * rows[r][j as usize];
        }
    }
}

/// Not below `‖x‖`; 0 for nothing but zeros.
fn norm<U: Real>(isa: Isa, x: &[U]) -> f64 {
    at_most(reduce::norm(isa, x), x.len() / 32 + 8)
}

/// A lower triangular `C` with `CCᵀ = WWᵀ`, by Cholesky's algorithm in f64.
struct Root<U> {
    /// `C`, rounded to `U`.
    factor: RowMajor<U>,
    /// Of that against `C`, in the 2-norm.
    error: f64,
    /// Not below `‖CCᵀ − WWᵀ‖₂`.
    moved: f64,
    /// Not below `‖W‖₂`.
    norm: f64,
}

impl<U: Real> Root<U> {
    /// `None` if it would have no fewer columns than `W`, or if `WWᵀ` is too near to a singular matrix. Takes `n²·inputs + 2n³/3` flops.
    fn new<T: Real>(weights: MatRef<'_, T>, runtime: &Runtime) -> Option<Self> {
        let (n, depth) = (weights.nrows(), weights.ncols());
        if n >= depth {
            return None;
        }
        let mut certificate = Certificate::new(&Dense::new(weights), runtime)?;
        // `−WWᵀ`, for it is `τI − G` that is factored.
        let mut gram = RowMajor::<f64>::zeros(n, n);
        for i in 0..n {
            gram.row_mut(i)[i..].iter_mut().zip(&certificate.gram().row(i)[i..]).for_each(|(to, g)| *to = -g);
        }
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
        // Of the products `‖ |W||W|ᵀ ‖_F ≤ ‖W‖_F² = tr WWᵀ`, a step more for each slab that they are summed in, and of the factorization `φ tr`
        // (see `certificate.rs`).
        let trace = up((0..n).map(|i| -gram.row(i)[i]).sum(), n + depth + 3);
        let vanished = (n * n) as f64 * f64::MIN_POSITIVE * (1.0 + trace);
        let moved = up(rounding::<f64>(depth + 1, trace, n * n) + gamma(n + 2) * trace + vanished, 4);
        // Where powers lead is not far below the norm.
        let mut tau = largest(certificate.gram()) * (1.0 + NEAR);
        for _ in 0..8 {
            if certificate.holds(tau, runtime) {
                return Some(Self { factor, error, moved, norm: certificate.bound(tau) });
            }
            tau *= 1.0 + NEAR;
        }
        None
    }
}

/// About the largest eigenvalue of the positive semidefinite matrix of which this is the upper triangle, mostly from below.
fn largest(upper: &RowMajor<f64>) -> f64 {
    let n = upper.rows();
    let (mut v, mut image, mut size) = (vec![1.0; n], vec![0.0; n], 0.0);
    for _ in 0..POWERS {
        image.fill(0.0);
        for i in 0..n {
            let row = &upper.row(i)[i..];
            let mut sum = row[0] * v[i];
            for (&g, (image, &other)) in row[1..].iter().zip(image[i + 1..].iter_mut().zip(&v[i + 1..])) {
                *image += g * v[i];
                sum += g * other;
            }
            image[i] += sum;
        }
        size = image.iter().map(|x| x * x).sum::<f64>().sqrt();
        v.iter_mut().zip(&image).for_each(|(v, x)| *v = x / size);
    }
    size
}
