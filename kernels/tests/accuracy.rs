//! How much of its error bound each kernel uses. A loss of precision that stays within the bounds is seen here.
//!
//! Each element of a result is compared with the exact value of its formula, in double-double, and the error is divided by its bound: that of
//! `dualprop-reference` for products with epilogues, the documented one for reductions and rows, an ulp for elementary functions.
//! `tests/accuracy/percentiles.txt` has the 99.9th percentile of these ratios for each kernel and family of inputs. Inputs come from
//! seeds, kernels have the same bits everywhere, and exact values owe nothing to a library's functions but a first guess of `ln`; so the
//! three digits of the file are the same everywhere. A larger one fails, and so does a smaller one, which has become the standard:
//! `GOLDEN=write cargo test -p dualprop-kernels --test accuracy` writes the file anew; `-- --nocapture` shows medians and maxima, too.

mod common;

use common::{Call, Grid, Layout, Problem, Scalar, bounds, chains, exact};
use dualprop_kernels::activation::{Activation, LeakyRelu};
use dualprop_kernels::elementary::{Function, log_sum_exp, map, softmax};
use dualprop_kernels::epilogue::{Epilogue, Nudge};
use dualprop_kernels::isa::Isa;
use dualprop_kernels::optimizer::{Decay, Descent, Optimizer, Update};
use dualprop_kernels::reduce::{dot, norm, sum};
use dualprop_reference::activation::Activation as Reference;
use dualprop_reference::bound::{self, Bounded, Precision, affine, gamma, scaled_affine, scaled_dot};
use dualprop_reference::elementary::Wide;
use dualprop_reference::generate::{Family, SplitMix64, generate};
use dualprop_reference::optimizer::{self as reference, Slots};
use dualprop_reference::product::Matrix;
use dualprop_reference::relax::{self, relax, relax_damped};
use std::fmt::Write as _;
use std::path::Path;
use std::thread;

/// A product, so shallow that each rounding counts; arguments of an elementary function; cases of a reduction. The 99.9th percentile
/// leaves out at least the largest.
const SHAPE: [usize; 3] = [64, 128, 6];
const POINTS: usize = 16_384;
const VECTORS: usize = 3000;

/// Parameters that f32 holds, so that their rounding hides nothing.
const SCALE: f64 = -0.125;
const ALPHA: f64 = 0.25;
const LAMBDA: f64 = 0.5;
const RATE: f64 = 0.125;
const DECAY: f64 = 1.0 / 1024.0;
const MU: f64 = 0.875;
const BETAS: [f64; 2] = [0.875, 0.984_375];
const EPSILON: f64 = 1.0 / (1 << 20) as f64;
const STEP: u64 = 3;

/// Unit roundoff of f64.
const U64: f64 = f64::EPSILON / 2.0;

/// `|got − value| / bound`; fails unless the bound admits `got`.
fn ratio(got: f64, value: Wide, bound: Bounded) -> f64 {
    assert!(bound.admits(got), "{got:e} is not within {bound:?}");
    let error = (Wide::from(got) - value).abs().hi;
    if error == 0.0 { 0.0 } else { error / bound.error }
}

/// The smallest of `ratios` (ascending) that is at least as large as this share of them.
fn percentile(ratios: &[f64], share: f64) -> f64 {
    ratios[(share * ratios.len() as f64).ceil() as usize - 1]
}

/// Ratios of error and bound of a kernel, for each family, ascending.
struct Line {
    name: String,
    families: [Vec<f64>; 6],
}

impl Line {
    fn new(name: String, mut families: [Vec<f64>; 6]) -> Line {
        families.iter_mut().for_each(|ratios| ratios.sort_unstable_by(f64::total_cmp));
        Line { name, families }
    }

    /// The line of the file: the 99.9th percentiles.
    fn stored(&self) -> String {
        let percentiles = self.families.iter().map(|ratios| format!(" {:>11.2e}", percentile(ratios, 0.999)));
        format!("{:<34}{}", self.name, percentiles.collect::<String>())
    }

    /// Median, 99.9th percentile and maximum over all families.
    fn summary(&self) -> String {
        let mut all = self.families.concat();
        all.sort_unstable_by(f64::total_cmp);
        let [median, high, largest] = [0.5, 0.999, 1.0].map(|share| percentile(&all, share));
        format!("{:<34} {median:>9.2e} {high:>9.2e} {largest:>9.2e}", self.name)
    }
}

// ---------------------------------------------------------------------------------------------- exact values

fn wide(x: f64) -> Wide {
    Wide::from(x)
}

fn is_less(a: Wide, b: Wide) -> bool {
    (a - b).hi < 0.0
}

fn lower(a: Wide, b: Wide) -> Wide {
    if is_less(b, a) { b } else { a }
}

/// `√x`, by a step of Newton's.
fn sqrt(x: Wide) -> Wide {
    let root = wide(x.hi.sqrt());
    if root.hi == 0.0 { root } else { root + (x - root * root) / (root + root) }
}

/// `f(x)`.
fn value(f: Activation, x: Wide) -> Wide {
    let (zero, one) = (wide(0.0), wide(1.0));
    match f {
        Activation::Identity => x,
        Activation::Relu => zero - lower(zero, -x),
        Activation::LeakyRelu if x.hi > 0.0 => x,
        Activation::LeakyRelu => x * wide(LeakyRelu::SLOPE),
        Activation::HardSigmoid => lower(zero - lower(zero, -x), one),
        Activation::Sigmoid => x.sigmoid_scaled(0),
        Activation::Tanh => x.tanh(),
        _ => panic!("{f} has no exact value"),
    }
}

/// `f'(x)`.
fn slope(f: Activation, x: f64) -> Wide {
    let of_smooth = |k: f64| {
        let z = (wide(x.abs()) * wide(-2.0 * k)).exp();
        z / ((wide(1.0) + z) * (wide(1.0) + z))
    };
    match f {
        Activation::Identity => wide(1.0),
        Activation::Relu => wide(f64::from(x > 0.0)),
        Activation::LeakyRelu => wide(if x > 0.0 { 1.0 } else { LeakyRelu::SLOPE }),
        Activation::HardSigmoid => wide(f64::from(x > 0.0 && x < 1.0)),
        Activation::Sigmoid => of_smooth(0.5),
        Activation::Tanh => wide(4.0) * of_smooth(1.0),
        _ => panic!("{f} has no exact slope"),
    }
}

/// `f(plus) − f(minus)` with `q = plus − minus`, by the formulas of `dualprop_reference::activation`.
fn rise(f: Activation, plus: Wide, minus: Wide, q: Wide) -> Wide {
    if q.hi < 0.0 {
        return -rise(f, minus, plus, -q);
    }
    let (zero, one) = (wide(0.0), wide(1.0));
    let above_zero = |x: Wide| if is_less(x, zero) { zero } else { x };
    let smooth = |k: f64| {
        let decayed = |x: Wide| (x.abs() * wide(-2.0 * k)).exp();
        let (z_plus, z_minus) = (decayed(plus), decayed(minus));
        let overlap = match (plus.hi < 0.0) == (minus.hi < 0.0) {
            true if is_less(z_plus, z_minus) => z_minus,
            true => z_plus,
            false => one,
        };
        -(q * wide(-2.0 * k)).exp_m1() * overlap * wide(2.0 * k) / ((one + z_plus) * (one + z_minus))
    };
    match f {
        Activation::Identity => q,
        Activation::Relu => above_zero(lower(q, plus)),
        Activation::LeakyRelu => {
            let above = above_zero(lower(q, plus));
            above + wide(LeakyRelu::SLOPE) * (q - above)
        }
        Activation::HardSigmoid => above_zero(lower(lower(q, plus), lower(one - minus, one))),
        Activation::Sigmoid => smooth(0.5),
        Activation::Tanh => smooth(1.0),
        _ => panic!("{f} has no exact rise"),
    }
}

/// Mean and difference of a unit of DP with α = [`ALPHA`]; with the old ones, damped by [`LAMBDA`].
fn dyad(f: Activation, a: Wide, v: Wide, old: Option<[f64; 2]>) -> [Wide; 2] {
    let w = wide(ALPHA);
    let rest = wide(1.0) - w;
    let (mut plus, mut minus, mut q) = (a + w * v, a - rest * v, v);
    if let Some([mean, diff]) = old.map(|old| old.map(wide)) {
        let (lambda, total) = (wide(LAMBDA), wide(1.0 + LAMBDA));
        plus = (plus + lambda * (mean + rest * diff)) / total;
        minus = (minus + lambda * (mean - w * diff)) / total;
        q = (q + lambda * diff) / total;
    }
    [w * value(f, plus) + rest * value(f, minus), rise(f, plus, minus, q)]
}

/// Weight and moments after a step with gradient `g`.
fn updated(update: Update, [w, m, v]: [f64; 3], g: Wide) -> [Wide; 3] {
    let (w, rate) = (wide(w), wide(RATE));
    let (kept, g) = match update.decay {
        Decay::None => (w, g),
        Decay::Coupled(decay) => (w, g + wide(decay) * w),
        Decay::Decoupled(decay) => ((wide(1.0) - rate * wide(decay)) * w, g),
        other => panic!("{other:?} has no exact form"),
    };
    match update.optimizer {
        Optimizer::Sgd => [kept - rate * g, wide(0.0), wide(0.0)],
        Optimizer::Momentum { mu } => {
            let m = wide(mu) * wide(m) + g;
            [kept - rate * m, m, wide(0.0)]
        }
        Optimizer::Adam { beta1, beta2, epsilon } => {
            let average = |beta: f64, old: f64, new: Wide| wide(beta) * wide(old) + (wide(1.0) - wide(beta)) * new;
            let unbiased = |beta: f64, x: Wide| x / (wide(1.0) - (0..STEP).fold(wide(1.0), |power, _| power * wide(beta)));
            let (m, v) = (average(beta1, m, g), average(beta2, v, g * g));
            let direction = unbiased(beta1, m) / (sqrt(unbiased(beta2, v)) + wide(epsilon));
            [kept - rate * direction, m, v]
        }
        other => panic!("{other:?} has no exact form"),
    }
}

// ------------------------------------------------------------------------------------------------- products

/// The operands of products for one family, and the exact sums.
struct Layer<T> {
    rows: Grid<T>,
    lanes: Grid<T>,
    /// Drive or weights; old mean or first moment; old difference or second moment.
    operands: [Grid<T>; 3],
    bias: Grid<T>,
    sums: Vec<Wide>,
}

/// What the product of a [`Layer`] leaves: outputs, exact values, bounds.
struct Outcome<T> {
    got: Grid<T>,
    value: Vec<Wide>,
    bound: Matrix,
}

impl<T: Scalar> Outcome<T> {
    fn ratios(&self) -> Vec<f64> {
        let [m, n, _] = SHAPE;
        let at = (0..m).flat_map(|i| (0..n).map(move |j| (i, j)));
        at.zip(&self.value).map(|((i, j), &value)| ratio(self.got.get(i, j).to_f64(), value, self.bound[(i, j)])).collect()
    }
}

impl<T: Scalar> Layer<T> {
    fn new(family: Family) -> Self {
        let [m, n, depth] = SHAPE;
        let problem = Problem { m, n, depth, families: [family; 2], seed: 1 };
        let (rows, lanes) = (problem.rows::<T>(), problem.lanes::<T>());
        let term = |i, j, p| Wide::product(rows.get(i, p).to_f64(), lanes.get(p, j).to_f64());
        let sum = |i, j| (0..depth).fold(wide(0.0), |sum, p| sum + term(i, j, p));
        let sums = (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| sum(i, j)).collect();
        let line = Grid::<T>::random(1, n, family, 2);
        let bias = Grid::from_fn(m, n, Layout::default(), |_, j| line.get(0, j));
        let operands = [0, 1, 2].map(|number| problem.operand(family, number));
        Self { rows, lanes, operands, bias, sums }
    }

    fn blank(&self) -> Grid<T> {
        Grid::blank(SHAPE[0], SHAPE[1], Layout::default())
    }

    fn run(&self, epilogue: Epilogue<'_, T>) {
        Call::plain().product(Isa::best(), &self.rows, &self.lanes, epilogue);
    }

    /// The matrix of `element(sum, i, j)`, row-major.
    fn values(&self, element: impl Fn(Wide, usize, usize) -> Wide) -> Vec<Wide> {
        self.sums.iter().enumerate().map(|(at, &sum)| element(sum, at / SHAPE[1], at % SHAPE[1])).collect()
    }

    fn bounds(&self, bound: impl Fn(&mut dyn Iterator<Item = (Bounded, Bounded)>, usize, usize) -> Bounded) -> Matrix {
        bounds(&self.rows, &self.lanes, bound)
    }

    fn operand(&self, number: usize, i: usize, j: usize) -> f64 {
        self.operands[number].get(i, j).to_f64()
    }

    fn stored(&self) -> Vec<Outcome<T>> {
        let mut got = self.blank();
        self.run(Epilogue::Store { out: got.output(), scale: T::from_f64(SCALE) });
        let bound = self.bounds(|terms, _, _| scaled_dot(T::PRECISION.exact(SCALE), terms));
        vec![Outcome { got, value: self.values(|sum, _, _| sum * wide(SCALE)), bound }]
    }

    fn accumulated(&self) -> Vec<Outcome<T>> {
        let mut got = self.operands[0].clone();
        self.run(Epilogue::Accumulate { out: got.output(), scale: T::from_f64(SCALE) });
        let old = |i, j| exact(self.operands[0].get(i, j));
        let bound = self.bounds(|terms, i, j| scaled_affine(old(i, j), T::PRECISION.exact(SCALE), terms));
        vec![Outcome { got, value: self.values(|sum, i, j| wide(self.operand(0, i, j)) + sum * wide(SCALE)), bound }]
    }

    /// Drive and mean.
    fn forward(&self, activation: Activation) -> Vec<Outcome<T>> {
        let (mut drive, mut mean) = (self.blank(), self.blank());
        let bias = self.bias.input();
        self.run(Epilogue::Forward { drive: drive.output(), bias, mean: mean.output(), activation });
        let drives = self.bounds(|terms, i, j| affine(exact(self.bias.get(i, j)), terms));
        let means = drives.map(|a| of_reference(activation).value(a));
        let a = |sum, i, j| wide(self.bias.get(i, j).to_f64()) + sum;
        let value = self.values(|sum, i, j| value(activation, a(sum, i, j)));
        vec![Outcome { got: drive, value: self.values(a), bound: drives }, Outcome { got: mean, value, bound: means }]
    }

    /// Mean and difference.
    fn relaxed(&self, activation: Activation, damped: bool) -> Vec<Outcome<T>> {
        let [drive, mut mean, mut diff] = self.operands.clone();
        let [up, down, gain, alpha] = [ALPHA, ALPHA - 1.0, 1.0, ALPHA].map(T::from_f64);
        self.run(Epilogue::Dyad {
            drive: drive.input(),
            feedback: None,
            mean: mean.output(),
            diff: diff.output(),
            nudge: Nudge { up, down, gain, alpha },
            damping: damped.then_some(LAMBDA),
            activation,
        });
        let precision = T::PRECISION;
        let (f, nudge, lambda) = (of_reference(activation), relax::Nudge::dp(precision, ALPHA), precision.exact(LAMBDA));
        let bound = |v: Bounded, i, j| {
            let [a, mean, diff] = [0, 1, 2].map(|number| exact(self.operands[number].get(i, j)));
            if damped { relax_damped(f, nudge, lambda, a, v, relax::Dyad { mean, diff }) } else { relax(f, nudge, a, v) }
        };
        let v = self.bounds(|terms, _, _| bound::dot(precision, terms));
        let value = |(at, &v): (usize, &Wide)| {
            let (i, j) = (at / SHAPE[1], at % SHAPE[1]);
            let old = damped.then(|| [1, 2].map(|number| self.operand(number, i, j)));
            dyad(activation, wide(self.operand(0, i, j)), v, old)
        };
        let values: Vec<[Wide; 2]> = self.sums.iter().enumerate().map(value).collect();
        let [m, n, _] = SHAPE;
        let dyads: Vec<relax::Dyad> = (0..m * n).map(|at| bound(v.data[at], at / n, at % n)).collect();
        let matrix = |part: fn(&relax::Dyad) -> Bounded| Matrix::from_fn(m, n, |i, j| part(&dyads[i * n + j]));
        let value = |part: usize| values.iter().map(|dyad| dyad[part]).collect();
        vec![
            Outcome { got: mean, value: value(0), bound: matrix(|dyad| dyad.mean) },
            Outcome { got: diff, value: value(1), bound: matrix(|dyad| dyad.diff) },
        ]
    }

    fn derivative(&self, activation: Activation) -> Vec<Outcome<T>> {
        let mut got = self.blank();
        self.run(Epilogue::Derivative { drive: self.operands[0].input(), diff: got.output(), activation });
        let a = |i, j| exact(self.operands[0].get(i, j));
        let bound = self.bounds(|terms, i, j| of_reference(activation).derivative(a(i, j)) * bound::dot(T::PRECISION, terms));
        vec![Outcome { got, value: self.values(|sum, i, j| slope(activation, self.operand(0, i, j)) * sum), bound }]
    }

    /// Weights and moments.
    fn updated(&self, optimizer: Optimizer, decay: Decay) -> Vec<Outcome<T>> {
        let update = Update { optimizer, decay, learning_rate: RATE, step: STEP, scale: SCALE };
        let [weights, first, second] = self.operands.each_ref();
        let old = [weights.clone(), first.clone(), second.map(T::abs)];
        let mut new = old[..=optimizer.moments()].to_vec();
        let (weights, moments) = new.split_first_mut().expect("weights");
        self.run(Epilogue::Update(Descent::new(weights.view_mut(), moments.iter_mut().map(Grid::view_mut), update)));

        let (rule, pull) = of_reference_update(update);
        let gradients = self.bounds(|terms, _, _| scaled_dot(T::PRECISION.exact(SCALE), terms));
        let bound = |number: usize, i, j| {
            let [weight, first, second] = old.each_ref().map(|grid| exact(grid.get(i, j)));
            let mut slots = Slots { first, second };
            let weight = rule.update(pull, STEP as u32, weight, &mut slots, gradients[(i, j)]);
            [weight, slots.first, slots.second][number]
        };
        let value = |sum: Wide, i, j| updated(update, old.each_ref().map(|grid| grid.get(i, j).to_f64()), sum * wide(SCALE));
        let outcome = |(number, got)| Outcome {
            got,
            value: self.values(|sum, i, j| value(sum, i, j)[number]),
            bound: Matrix::from_fn(SHAPE[0], SHAPE[1], |i, j| bound(number, i, j)),
        };
        new.into_iter().enumerate().map(outcome).collect()
    }
}

/// The reference's function of that name.
fn of_reference(activation: Activation) -> Reference {
    match activation {
        Activation::Identity => Reference::Identity,
        Activation::Relu => Reference::Relu,
        Activation::LeakyRelu => Reference::LeakyRelu,
        Activation::HardSigmoid => Reference::HardSigmoid,
        Activation::Sigmoid => Reference::Sigmoid,
        Activation::Tanh => Reference::Tanh,
        _ => panic!("{activation} has no reference"),
    }
}

/// The reference's form of an update.
fn of_reference_update(update: Update) -> (reference::Optimizer, reference::Decay) {
    let rate = update.learning_rate;
    let optimizer = match update.optimizer {
        Optimizer::Sgd => reference::Optimizer::Sgd { rate },
        Optimizer::Momentum { mu } => reference::Optimizer::Momentum { rate, momentum: mu },
        Optimizer::Adam { beta1, beta2, epsilon } => reference::Optimizer::Adam { rate, beta1, beta2, epsilon },
        other => panic!("{other:?} has no reference"),
    };
    let decay = match update.decay {
        Decay::None => reference::Decay::None,
        Decay::Coupled(lambda) => reference::Decay::Coupled(lambda),
        Decay::Decoupled(lambda) => reference::Decay::Decoupled(lambda),
        other => panic!("{other:?} has no reference"),
    };
    (optimizer, decay)
}

fn products<T: Scalar>() -> Vec<Line> {
    let layers = Family::ALL.map(Layer::<T>::new);
    let mut lines = Vec::new();
    let mut add = |names: &[String], run: &dyn Fn(&Layer<T>) -> Vec<Outcome<T>>| {
        let outcomes = layers.each_ref().map(run);
        for (number, name) in names.iter().enumerate() {
            let families = outcomes.each_ref().map(|outcomes| outcomes[number].ratios());
            lines.push(Line::new(format!("{}/{name}", T::NAME), families));
        }
    };
    add(&["store".into()], &Layer::stored);
    add(&["accumulate".into()], &Layer::accumulated);
    add(&["drive".into(), "forward/identity".into()], &|layer| layer.forward(Activation::Identity));
    for &f in Activation::ALL {
        if f != Activation::Identity {
            add(&[format!("forward/{f}")], &|layer| layer.forward(f).split_off(1));
        }
        for (name, damped) in [("dyad", false), ("damped-dyad", true)] {
            add(&["mean", "diff"].map(|part| format!("{name}/{f}/{part}")), &|layer| layer.relaxed(f, damped));
        }
        add(&[format!("derivative/{f}")], &|layer| layer.derivative(f));
    }
    let adam = Optimizer::Adam { beta1: BETAS[0], beta2: BETAS[1], epsilon: EPSILON };
    for (rule, optimizer) in [("sgd", Optimizer::Sgd), ("momentum", Optimizer::Momentum { mu: MU }), ("adam", adam)] {
        let decays = [("plain", Decay::None), ("coupled", Decay::Coupled(DECAY)), ("decoupled", Decay::Decoupled(DECAY))];
        for (pull, decay) in decays {
            let names = ["weights", "first", "second"].map(|part| format!("{rule}/{pull}/{part}"));
            add(&names[..=optimizer.moments()], &|layer| layer.updated(optimizer, decay));
        }
    }
    lines
}

// -------------------------------------------------------------------------------------------------- vectors

/// Vectors of up to 200 numbers, in pairs.
fn vectors<T: Scalar>(family: Family) -> impl Iterator<Item = [Vec<T>; 2]> {
    let numbers = move |len, seed| generate(family, len, seed, T::PRECISION).into_iter().map(T::from_f64).collect::<Vec<T>>();
    (0..VECTORS as u64).map(move |seed| {
        let len = 1 + SplitMix64::new(seed).below(200) as usize;
        [numbers(len, 2 * seed), numbers(len, 2 * seed + 1)]
    })
}

/// `Σ x_i y_i` and its bound: `γ_{n/32+6}·Σ|x_i y_i|`, and an underflow for each product.
fn dot_ratio<T: Scalar>(got: f64, x: &[T], y: &[T]) -> f64 {
    let terms = || x.iter().zip(y).map(|(x, y)| Wide::product(x.to_f64(), y.to_f64()));
    let value = terms().fold(wide(0.0), |sum, term| sum + term);
    let size = terms().fold(wide(0.0), |sum, term| sum + term.abs()).hi;
    let error = gamma(x.len() / 32 + 6, U64) * size + U64 * value.hi.abs();
    ratio(got, value, Bounded::new(value.hi, error, Precision::F64).underflow(x.len() as f64))
}

/// `√Σ x_i²` and its bound: `γ_{n/64+4}` relatively, and an underflow. Squares of subnormals are formed at a larger scale.
fn norm_ratio<T: Scalar>(got: f64, x: &[T]) -> f64 {
    let shift = if x.iter().all(|x| x.to_f64().abs() < 1e-200) { 1000 } else { 0 };
    let scaled = x.iter().map(|x| wide(x.to_f64()).scale(shift));
    let value = sqrt(scaled.fold(wide(0.0), |sum, x| sum + x * x));
    let error = value.hi * (gamma(x.len() / 64 + 4, U64) + U64) + wide(f64::from_bits(1)).scale(shift).hi;
    ratio(wide(got).scale(shift).hi, value, Bounded::new(value.hi, error, Precision::F64))
}

fn reductions<T: Scalar>() -> Vec<Line> {
    let isa = Isa::best();
    let line = |name: &str, ratio: fn(Isa, [Vec<T>; 2]) -> f64| {
        Line::new(format!("{}/{name}", T::NAME), Family::ALL.map(|family| vectors(family).map(|pair| ratio(isa, pair)).collect()))
    };
    vec![
        line("sum", |isa, [x, _]| dot_ratio(sum(isa, &x), &x, &vec![T::ONE; x.len()])),
        line("dot", |isa, [x, y]| dot_ratio(dot(isa, &x, &y), &x, &y)),
        line("norm", |isa, [x, _]| norm_ratio(norm(isa, &x), &x)),
    ]
}

/// Numbers of `family` within ±80, every other one times 16.
fn points<T: Scalar>(family: Family, len: usize, seed: u64) -> Vec<T> {
    let numbers = generate(family, len, seed, T::PRECISION).into_iter().enumerate();
    numbers.map(|(i, x)| T::from_f64(if i % 2 == 0 { x } else { 16.0 * x } % 80.0)).collect()
}

/// The error of `got` in ulp of `value`.
fn ulps<T: Scalar>(got: f64, value: Wide) -> f64 {
    let exponent = ((value.hi.abs().to_bits() >> 52) as i32 - 1023).max(-1022);
    let ulp = (2f64.powi(exponent) * 2.0 * T::UNIT_ROUNDOFF).max(T::TINY);
    ratio(got, value, Bounded::new(value.hi, ulp, Precision::F64))
}

/// Ratios for `function` with every result changed by `change(argument, result)`.
fn function_ratios<T: Scalar>(function: Function, family: Family, change: impl Fn(T, T) -> T) -> Vec<f64> {
    let mut x = points::<T>(family, POINTS, 3);
    if function == Function::Expm1Neg {
        x.iter_mut().for_each(|x| *x = x.abs());
    }
    let mut out = x.clone();
    map(Isa::best(), function, &mut out, &x).expect("one length");
    let value = |x: f64| match function {
        Function::Exp => wide(x).exp(),
        Function::Expm1Neg => wide(-x).exp_m1(),
        Function::Tanh => wide(x).tanh(),
        Function::Sigmoid => wide(x).sigmoid_scaled(0),
        other => panic!("{other:?} has no exact value"),
    };
    x.iter().zip(&out).map(|(&x, &out)| ulps::<T>(change(x, out).to_f64(), value(x.to_f64()))).collect()
}

/// The terms `e^(x_i − m)` of a row, their sum, and `m`.
fn exponentials<T: Scalar>(x: &[T]) -> (Vec<Wide>, Wide, Wide) {
    let peak = wide(x.iter().map(|x| x.to_f64()).fold(f64::NEG_INFINITY, f64::max));
    let terms: Vec<Wide> = x.iter().map(|x| (wide(x.to_f64()) - peak).exp()).collect();
    let sum = terms.iter().fold(wide(0.0), |sum, &term| sum + term);
    (terms, sum, peak)
}

/// Rows of up to 40 points.
fn rows<T: Scalar>(family: Family) -> impl Iterator<Item = Vec<T>> {
    (0..VECTORS as u64).map(move |seed| points(family, 1 + SplitMix64::new(seed).below(40) as usize, seed))
}

fn softmax_ratios<T: Scalar>(x: &[T]) -> Vec<f64> {
    let mut out = x.to_vec();
    softmax(Isa::best(), &mut out, x).expect("one length");
    let (terms, sum, _) = exponentials(x);
    let relative = 5.0 * T::UNIT_ROUNDOFF + (x.len() as f64 / 16.0 + 8.0) * U64;
    let bound = |value: Wide| Bounded::new(value.hi, relative * value.hi + 2.0 * T::TINY, Precision::F64);
    terms.iter().map(|&term| term / sum).zip(out).map(|(value, got)| ratio(got.to_f64(), value, bound(value))).collect()
}

fn log_sum_exp_ratio<T: Scalar>(x: &[T]) -> f64 {
    let (_, sum, peak) = exponentials(x);
    let value = peak + sum.ln();
    let n = x.len() as f64;
    let own = 3.0 * T::UNIT_ROUNDOFF + (n / 16.0 + 5.0) * U64;
    let error = own + U64 * (2.0 * value.hi.abs() + 2.0 * n.ln() + 1.0);
    ratio(log_sum_exp(Isa::best(), x), value, Bounded::new(value.hi, error, Precision::F64))
}

fn elementary<T: Scalar>() -> Vec<Line> {
    let line =
        |name: &str, ratios: &dyn Fn(Family) -> Vec<f64>| Line::new(format!("{}/{name}", T::NAME), Family::ALL.map(ratios));
    let functions = Function::ALL.iter().map(|&function| {
        line(&format!("{function:?}").to_lowercase(), &|family| function_ratios::<T>(function, family, |_, result| result))
    });
    let softmax = line("softmax", &|family| rows::<T>(family).flat_map(|row| softmax_ratios(&row)).collect());
    let log = line("log-sum-exp", &|family| rows::<T>(family).map(|row| log_sum_exp_ratio(&row)).collect());
    functions.chain([softmax, log]).collect()
}

// ---------------------------------------------------------------------------------------------------- tests

fn of_type<T: Scalar>() -> Vec<Line> {
    [products::<T>(), reductions::<T>(), elementary::<T>()].into_iter().flatten().collect()
}

const HEAD: &str = "\
# 99.9th percentile of error/bound; `kernels/tests/accuracy.rs` says of what. A change is noted in the changelog.
# GOLDEN=write cargo test -p dualprop-kernels --test accuracy
";

/// Name and numbers of each line.
fn parse(text: &str) -> Vec<(&str, Vec<f64>)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().expect("a name");
            (name, words.map(|word| word.parse().expect("a number")).collect())
        })
        .collect()
}

#[test]
fn no_kernel_uses_more_of_its_bound_than_before() {
    let lines: Vec<Line> = thread::scope(|scope| {
        let halves = [scope.spawn(of_type::<f32>), scope.spawn(of_type::<f64>)];
        halves.into_iter().flat_map(|half| half.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    println!("{:<34} {:>9} {:>9} {:>9}", "error/bound", "median", "99.9 %", "largest");
    lines.iter().for_each(|line| println!("{}", line.summary()));

    let families = Family::ALL.map(|family| format!(" {:>11}", format!("{family:?}")));
    let mut now = format!("{HEAD}# {:<32}{}\n", "kernel", families.concat());
    lines.iter().for_each(|line| writeln!(now, "{}", line.stored()).expect("a string takes everything"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/accuracy/percentiles.txt");
    if std::env::var_os("GOLDEN").is_some_and(|golden| golden == "write") {
        std::fs::write(&path, now).expect("the file of the percentiles");
        return;
    }
    let stored = std::fs::read_to_string(&path).expect("the file of the percentiles");
    let (stored, now) = (parse(&stored), parse(&now));
    let changed: Vec<String> = now.iter().filter(|line| !stored.contains(line)).map(|line| format!("{line:?}")).collect();
    let gone: Vec<String> = stored.iter().filter(|line| !now.contains(line)).map(|line| format!("{line:?}")).collect();
    assert!(
        changed.is_empty() && gone.is_empty(),
        "The share of the bounds that is used has changed. Now:\n  {}\nin the file:\n  {}\nIf that was decided, note it in the changelog and \
         run\n  GOLDEN=write cargo test -p dualprop-kernels --test accuracy",
        changed.join("\n  "),
        gone.join("\n  "),
    );
}

/// The 99.9th percentile of ratios in any order.
fn high(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_unstable_by(f64::total_cmp);
    percentile(&ratios, 0.999)
}

/// The watch has teeth: one more rounding in each term is within the bounds, and seen.
#[test]
fn a_product_without_fusion_is_noticed() {
    fn case<T: Scalar>() {
        for family in [Family::Uniform, Family::Cancelling, Family::Mixed, Family::HeavyTailed] {
            let layer = Layer::<T>::new(family);
            let mut outcome = layer.stored().remove(0);
            let fused = high(outcome.ratios());
            let chain = chains(&layer.rows, &layer.lanes).map(|x| T::from_f64(SCALE) * x);
            outcome.got.check_bits(&chain, &family).unwrap();
            let [m, n, depth] = SHAPE;
            let term = |i, j, p| layer.rows.get(i, p) * layer.lanes.get(p, j);
            let sum = |i, j| (0..depth).fold(T::ZERO, |sum, p| sum + term(i, j, p));
            outcome.got = Grid::from_fn(m, n, Layout::default(), |i, j| T::from_f64(SCALE) * sum(i, j));
            let unfused = high(outcome.ratios());
            // Three digits show it.
            assert!(unfused > 1.01 * fused, "{} {family:?}: {fused:.3e} fused, {unfused:.3e} without", T::NAME);
        }
    }
    case::<f32>();
    case::<f64>();
}

/// The second nearest number instead of the nearest, for a fiftieth of the arguments: within the bound of an ulp, and seen.
#[test]
fn a_gap_in_an_elementary_function_is_noticed() {
    fn case<T: Scalar>() {
        let other_side = |x: T, y: T| {
            // In [½, 1) an ulp is `UNIT_ROUNDOFF`.
            let ulp = T::from_f64(T::UNIT_ROUNDOFF);
            if is_less(wide(y.to_f64()), wide(x.to_f64()).tanh()) { y + ulp } else { y - ulp }
        };
        let with = |change: &dyn Fn(T, T) -> T| high(function_ratios::<T>(Function::Tanh, Family::Uniform, change));
        let (sound, gap) = (with(&|_, y| y), with(&|x, y| if (x.to_f64() - 0.6).abs() < 0.02 { other_side(x, y) } else { y }));
        assert!(sound < 0.8 && gap > 0.95, "{}: {sound:.3e} and {gap:.3e}", T::NAME);
    }
    case::<f32>();
    case::<f64>();
}
