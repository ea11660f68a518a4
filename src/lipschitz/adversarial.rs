//! Pairs of inputs that a network drives apart: lower bounds of its Lipschitz constant that anyone can replay.

use dualprop_kernels::activation::Activation;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::reduce;
use dualprop_kernels::strided::{Input, Output};
use dualprop_kernels::vector::Real;
use faer::MatRef;

use super::rounding::{down, gamma, up};
use crate::check;
use crate::error::Error;
use crate::matrix::RowMajor;
use crate::network::Network;
use crate::random::Counter;
use crate::runtime::Runtime;
use crate::workspace::Workspace;

/// Two inputs, and what the network makes of their distance.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// One input.
    pub a: Vec<f64>,
    /// The other.
    pub b: Vec<f64>,
    /// Not above `‖f(a) − f(b)‖/‖a − b‖`: [`stretch`] of the pair.
    pub lower: f64,
}

/// A lower bound of `‖f(a) − f(b)‖₂/‖a − b‖₂`, evaluated in f64 with all rounding taken off; 0 for equal inputs.
///
/// The error of each unit is carried along: `|ẑ − z| ≤ |W|e + γ_{n+2}(|W||v| + |b|)`, then `Lip(φ)` of it and the rounding of `φ` itself, 4 ulp.
///
/// # Errors
/// [`Error::Length`] and [`Error::NotFinite`] for the arguments.
pub fn stretch<T: Real>(network: &Network<T>, a: &[f64], b: &[f64], runtime: &Runtime) -> Result<f64, Error> {
    network.check_finite()?;
    for (name, x) in [("a", a), ("b", b)] {
        check::length(name, x.len(), network.widths()[0])?;
        check::finite(name, MatRef::from_row_major_slice(x, 1, x.len()))?;
    }
    let ((fa, ea), (fb, eb)) = (evaluate(network, a, runtime), evaluate(network, b, runtime));
    let norm = |x: &[f64]| reduce::norm(runtime.isa(), x);
    let (rise, errors): (Vec<_>, Vec<_>) =
        fa.iter().zip(&fb).zip(ea.iter().zip(&eb)).map(|((fa, fb), (ea, eb))| (fa - fb, ea + eb)).unzip();
    let distance: Vec<_> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let (rise, error) = (down(norm(&rise), rise.len() + 8), up(norm(&errors), errors.len() + 8));
    let lower = down(down(rise - error, 1) / up(norm(&distance), distance.len() + 8), 1);
    // Not for NaN.
    Ok(if lower > 0.0 && lower.is_finite() { lower } else { 0.0 })
}

/// `f(x)` in f64, and bounds of its errors.
fn evaluate<T: Real>(network: &Network<T>, x: &[f64], runtime: &Runtime) -> (Vec<f64>, Vec<f64>) {
    let (mut values, mut errors) = (x.to_vec(), vec![0.0; x.len()]);
    for k in 0..network.layers() {
        let weights = network.weights(k);
        let (m, n) = (weights.nrows(), weights.ncols());
        let (mut drives, mut drive_errors) = (vec![0.0; m], vec![0.0; m]);
        for i in 0..m {
            let bias = network.bias(k).map_or(0.0, |bias| bias[i].to_f64());
            let (mut sum, mut size, mut error) = (bias, bias.abs(), 0.0);
            for (w, (v, e)) in weights.row(i).iter().zip(values.iter().zip(&errors)) {
                let w = w.to_f64();
                sum += w * v;
                size += (w * v).abs();
                error += w.abs() * e;
            }
            drives[i] = sum;
            drive_errors[i] = up(error + gamma(n + 2) * size + n as f64 * f64::TINY, n + 6);
        }
        if k + 1 == network.layers() {
            return (drives, drive_errors);
        }
        let activation = network.activation();
        values = vec![0.0; m];
        activation.values(runtime.isa(), &mut values, &drives).expect("slices of one length");
        let own = match activation {
            Activation::Identity | Activation::Relu | Activation::HardSigmoid => 0.0,
            _ => 8.0 * f64::UNIT_ROUNDOFF,
        };
        errors = drive_errors
            .iter()
            .zip(&values)
            .map(|(e, v)| up(steepest(activation) * e + own * v.abs() + f64::MIN_POSITIVE, 3))
            .collect();
    }
    (values, errors)
}

/// `Lip(φ)`.
pub(crate) fn steepest(activation: Activation) -> f64 {
    if activation == Activation::Sigmoid { 0.25 } else { 1.0 }
}

/// Rounds of the search.
const ROUNDS: usize = 48;

/// Distances of the pairs that are begun at a sample, relative to its norm: the first within one linear piece, if there are any, the
/// others over more and more of them.
const DISTANCES: [f64; 4] = [1e-6, 1e-2, 0.1, 0.5];

/// The pair that a search from these inputs finds (`starts × inputs`); `None` without starts, or if no outputs ever differ.
///
/// Projected ascent on `‖f(a) − f(b)‖/‖a − b‖` in f64: with `d = f(a) − f(b)` the difference of the inputs becomes `½(J(a) + J(b))ᵀd` at its
/// old length, which is a power step where the network is linear, and their mean follows `(J(a) − J(b))ᵀd`. The best pair of each start is kept,
/// and the best of all by [`stretch`] is returned. All starts share their products.
pub(crate) fn search<T: Real>(
    network: &Network<T>,
    starts: MatRef<'_, T>,
    seed: u64,
    runtime: &Runtime,
) -> Result<Option<Pair>, Error> {
    let n = network.widths()[0];
    let pairs = starts.nrows() * DISTANCES.len();
    let mut climb = Climb::new(network, pairs, runtime);
    for p in 0..pairs {
        let (sample, relative) = (starts.row(p / DISTANCES.len()), DISTANCES[p % DISTANCES.len()]);
        let sample: Vec<f64> = sample.iter().map(|x| x.to_f64()).collect();
        let mut random = Counter::new(seed, p as u64);
        let mut direction: Vec<f64> = (0..n).map(|_| random.normal()).collect();
        let size = reduce::norm(runtime.isa(), &sample).max(1.0) * relative / reduce::norm(runtime.isa(), &direction);
        direction.iter_mut().for_each(|d| *d *= 0.5 * size);
        for (side, sign) in [(0, 1.0), (1, -1.0)] {
            let x = climb.x.row_mut(side * pairs + p);
            x.iter_mut().zip(sample.iter().zip(&direction)).for_each(|(x, (s, d))| *x = s + sign * d);
        }
    }
    for _ in 0..ROUNDS {
        climb.round();
    }
    let mut best: Option<Pair> = None;
    for (_, a, b) in climb.best.iter().filter(|(ratio, ..)| *ratio > 0.0) {
        let lower = stretch(network, a, b, runtime)?;
        if lower > best.as_ref().map_or(0.0, |best| best.lower) {
            best = Some(Pair { a: a.clone(), b: b.clone(), lower });
        }
    }
    Ok(best)
}

/// Pairs on their way: `a` in the first half of the rows, `b` in the second.
struct Climb {
    work: Workspace<f64>,
    activation: Activation,
    weights: Vec<RowMajor<f64>>,
    biases: Vec<Vec<f64>>,
    x: RowMajor<f64>,
    drives: Vec<RowMajor<f64>>,
    means: Vec<RowMajor<f64>>,
    diffs: Vec<RowMajor<f64>>,
    back: RowMajor<f64>,
    best: Vec<(f64, Vec<f64>, Vec<f64>)>,
}

impl Climb {
    fn new<T: Real>(network: &Network<T>, pairs: usize, runtime: &Runtime) -> Self {
        let widths = network.widths();
        let layers = || widths[1..].iter().map(|&n| RowMajor::zeros(2 * pairs, n)).collect();
        let weights = |k: usize| {
            let mut weights = RowMajor::zeros(widths[k + 1], widths[k]);
            for i in 0..widths[k + 1] {
                weights.row_mut(i).iter_mut().zip(network.weights(k).row(i).iter()).for_each(|(to, from)| *to = from.to_f64());
            }
            weights
        };
        let bias = |k: usize| network.bias(k).map_or(vec![0.0; widths[k + 1]], |b| b.iter().map(|b| b.to_f64()).collect());
        Self {
            work: Workspace::new(runtime),
            activation: network.activation(),
            weights: (0..network.layers()).map(weights).collect(),
            biases: (0..network.layers()).map(bias).collect(),
            x: RowMajor::zeros(2 * pairs, widths[0]),
            drives: layers(),
            means: layers(),
            diffs: layers(),
            back: RowMajor::zeros(2 * pairs, widths[0]),
            best: vec![(0.0, vec![], vec![]); pairs],
        }
    }

    fn round(&mut self) {
        let (rows, last, isa) = (self.x.rows(), self.weights.len() - 1, self.work.runtime().isa());
        for k in 0..=last {
            let (below, here) = self.means.split_at_mut(k);
            let below = below.last().unwrap_or(&self.x).view();
            let (drive, bias) = (Output::new(self.drives[k].view_mut()), Input::repeated(&self.biases[k], rows));
            let epilogue = if k == last {
                Epilogue::Drive { drive, bias }
            } else {
                Epilogue::Forward { drive, bias, mean: Output::new(here[0].view_mut()), activation: self.activation }
            };
            self.work.forward(self.weights[k].view(), below, epilogue);
        }
        let pairs = rows / 2;
        let mut ratios = vec![0.0; pairs];
        for p in 0..pairs {
            let (a, b) = (self.drives[last].row(p), self.drives[last].row(pairs + p));
            let rise: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
            let apart: Vec<f64> = self.x.row(p).iter().zip(self.x.row(pairs + p)).map(|(a, b)| a - b).collect();
            ratios[p] = reduce::norm(isa, &rise) / reduce::norm(isa, &apart);
            if ratios[p] > self.best[p].0 && ratios[p].is_finite() {
                self.best[p] = (ratios[p], self.x.row(p).to_vec(), self.x.row(pairs + p).to_vec());
            }
            self.diffs[last].row_mut(p).copy_from_slice(&rise);
            self.diffs[last].row_mut(pairs + p).copy_from_slice(&rise);
        }
        for k in (0..=last).rev() {
            let (below, here) = self.diffs.split_at_mut(k);
            let epilogue = match below.last_mut() {
                Some(below) => Epilogue::Derivative {
                    drive: Input::new(self.drives[k - 1].view()),
                    diff: Output::new(below.view_mut()),
                    activation: self.activation,
                },
                None => Epilogue::Store { out: Output::new(self.back.view_mut()), scale: 1.0 },
            };
            self.work.top_down(self.weights[k].view(), here[0].view(), epilogue);
        }
        for p in 0..pairs {
            let (ga, gb) = (self.back.row(p), self.back.row(pairs + p));
            let (a, b) = (self.x.row(p), self.x.row(pairs + p));
            let apart: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
            let along: Vec<f64> = ga.iter().zip(gb).map(|(a, b)| a + b).collect();
            let across: Vec<f64> = ga.iter().zip(gb).map(|(a, b)| a - b).collect();
            let length = reduce::norm(isa, &apart);
            let (turn, shift) = (0.5 * length / reduce::norm(isa, &along), 0.25 * length / reduce::norm(isa, &across));
            if !turn.is_finite() {
                continue;
            }
            let shift = if shift.is_finite() { shift } else { 0.0 };
            for j in 0..apart.len() {
                let middle = 0.5 * self.x.row(p)[j] + 0.5 * self.x.row(pairs + p)[j] + shift * across[j];
                self.x.row_mut(p)[j] = middle + turn * along[j];
                self.x.row_mut(pairs + p)[j] = middle - turn * along[j];
            }
        }
    }
}
