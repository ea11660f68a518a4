//! What products do with the sums of a layer, against the formulas in f64 with their bounds: drives, forward passes, relaxations and
//! derivatives, for every activation, and slopes.

mod common;

use common::*;
use core::fmt::Debug;
use dualprop_kernels::activation::{Activation, LeakyRelu};
use dualprop_kernels::epilogue::{Epilogue, Nudge};
use dualprop_kernels::isa::Isa;
use dualprop_kernels::strided::Input;
use dualprop_kernels::vector::Real;
use dualprop_reference::activation::Activation as Reference;
use dualprop_reference::bound::{Precision, affine, dot};
use dualprop_reference::generate::Family;
use dualprop_reference::product::Matrix;
use dualprop_reference::relax::{self, relax, relax_damped};
use proptest::sample::select;
use proptest::test_runner::TestCaseResult;

tests_of_both_types!(
    random_layers,
    kinks_and_extremes,
    differences_are_accurate_relative_to_the_feedback,
    a_weight_of_0_or_1_gives_one_compartment_to_the_bit,
    no_feedback_gives_the_forward_pass_to_the_bit,
    derivatives_at_kinks,
    a_drive_is_never_minus_zero,
    known_feedback_gives_the_bits_of_two_products,
    nan_propagates,
    a_slope_of_zero_hides_the_sum,
    operands_of_another_shape_panic,
);

/// The reference's function of that name.
fn reference(activation: Activation) -> Reference {
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

/// The ways to nudge a layer, with their parameter.
#[derive(Clone, Copy, Debug)]
enum Rule {
    Dp(f64),
    DpTransposed(f64),
    Gain(f64),
}

impl Rule {
    /// Every way, with parameters that every type holds and some that it rounds.
    fn all() -> Vec<Rule> {
        let weights = [0.0, 0.25, 0.5, 1.0, 0.3].into_iter().flat_map(|alpha| [Rule::Dp(alpha), Rule::DpTransposed(alpha)]);
        weights.chain([0.0625, 1.7].map(Rule::Gain)).collect()
    }

    /// As the kernels take it.
    fn nudge<T: Real>(self) -> Nudge<T> {
        let (up, down, gain, alpha) = match self {
            Rule::Dp(alpha) => (alpha, alpha - 1.0, 1.0, alpha),
            Rule::DpTransposed(alpha) => (1.0 - alpha, -alpha, 1.0, alpha),
            Rule::Gain(gain) => (0.5 * gain, -0.5 * gain, gain, 0.5),
        };
        let [up, down, gain, alpha] = [up, down, gain, alpha].map(T::from_f64);
        Nudge { up, down, gain, alpha }
    }

    /// As the reference takes it.
    fn reference(self, precision: Precision) -> relax::Nudge {
        match self {
            Rule::Dp(alpha) => relax::Nudge::dp(precision, alpha),
            Rule::DpTransposed(alpha) => relax::Nudge::dp_transpose(precision, alpha),
            Rule::Gain(gain) => relax::Nudge::gain(precision, gain),
        }
    }
}

/// A product whose sums belong to a layer with an activation.
struct Layer<'a, T> {
    call: &'a Call,
    isa: Isa,
    rows: &'a Grid<T>,
    lanes: &'a Grid<T>,
    activation: Activation,
}

impl<T: Scalar> Layer<'_, T> {
    fn blank(&self, operand: usize) -> Grid<T> {
        Grid::blank(self.rows.shape().0, self.lanes.shape().1, self.call.operands[operand])
    }

    fn run(&self, epilogue: Epilogue<'_, T>) {
        self.call.product(self.isa, self.rows, self.lanes, epilogue);
    }

    fn drive(&self, bias: Input<'_, T>) -> Grid<T> {
        let mut drive = self.blank(0);
        self.run(Epilogue::Drive { drive: drive.output(), bias });
        drive
    }

    /// Drive and mean.
    fn forward(&self, bias: Input<'_, T>) -> [Grid<T>; 2] {
        let (mut drive, mut mean) = (self.blank(0), self.blank(1));
        self.run(Epilogue::Forward { drive: drive.output(), bias, mean: mean.output(), activation: self.activation });
        [drive, mean]
    }

    fn derivative(&self, drive: &Grid<T>) -> Grid<T> {
        let (drive, mut diff) = (drive.relaid(self.call.operands[0]), self.blank(1));
        self.run(Epilogue::Derivative { drive: drive.input(), diff: diff.output(), activation: self.activation });
        diff
    }

    fn masked(&self, slope: &Grid<T>) -> Grid<T> {
        let (slope, mut out) = (slope.relaid(self.call.operands[0]), self.blank(1));
        self.run(Epilogue::Masked { slope: slope.input(), out: out.output() });
        out
    }

    /// Mean and difference, from the old ones if damped.
    fn relax(&self, drive: &Grid<T>, rule: Rule, damping: Option<(f64, &[Grid<T>; 2])>) -> [Grid<T>; 2] {
        let [mut mean, mut diff] = match damping {
            None => [self.blank(1), self.blank(2)],
            Some((_, [mean, diff])) => [mean.relaid(self.call.operands[1]), diff.relaid(self.call.operands[2])],
        };
        let drive = drive.relaid(self.call.operands[0]);
        self.run(Epilogue::Dyad {
            drive: drive.input(),
            feedback: None,
            mean: mean.output(),
            diff: diff.output(),
            nudge: rule.nudge(),
            damping: damping.map(|(lambda, _)| lambda),
            activation: self.activation,
        });
        [mean, diff]
    }
}

/// Feedback is kept as a product stores it, and a layer that is relaxed from below with it is what a drive and then a relaxation give.
fn known_feedback_gives_the_bits_of_two_products<T: Scalar>() {
    let settings = (select(Activation::ALL), select(Rule::all()), select(vec![None, Some(0.5), Some(3.0)]));
    for_all(200, (problem(), call(), settings), |(problem, call, (activation, rule, damping))| {
        let (rows, lanes) = (problem.rows::<T>(), problem.lanes::<T>());
        let [bias, old_mean, old_diff] = [0, 1, 2].map(|operand| problem.operand::<T>(Family::Uniform, operand));
        for isa in Isa::available() {
            let layer = Layer { call: &call, isa, rows: &rows, lanes: &lanes, activation };
            let drive = layer.drive(bias.relaid(call.operands[1]).input());
            let old = damping.map(|lambda| (lambda, [old_mean.clone(), old_diff.clone()]));
            let wanted = layer.relax(&drive, rule, old.as_ref().map(|(lambda, old)| (*lambda, old)));
            let states = || match &old {
                None => [layer.blank(1), layer.blank(2)],
                Some((_, [mean, diff])) => [mean.relaid(call.operands[1]), diff.relaid(call.operands[2])],
            };
            let nudge = rule.nudge();

            let (mut product, mut kept) = (layer.blank(0), layer.blank(0));
            layer.run(Epilogue::Store { out: product.output(), scale: T::ONE });
            let [mut mean, mut diff] = states();
            let (from, feedback) = (drive.relaid(call.operands[1]), Some(kept.output()));
            let (to_mean, to_diff) = (mean.output(), diff.output());
            layer.run(Epilogue::Dyad { drive: from.input(), feedback, mean: to_mean, diff: to_diff, nudge, damping, activation });
            kept.check_bits(&product, &"feedback")?;
            agree(&mut wanted.to_vec(), vec![mean, diff], &"keeping")?;

            let [mut mean, mut diff] = states();
            let mut new_drive = layer.blank(0);
            let (bias, feedback) = (bias.relaid(call.operands[2]), kept.relaid(call.operands[0]));
            layer.run(Epilogue::DyadFromBelow {
                drive: new_drive.output(),
                bias: bias.input(),
                feedback: feedback.input(),
                mean: mean.output(),
                diff: diff.output(),
                nudge,
                damping,
                activation,
            });
            new_drive.check_bits(&drive, &"drive")?;
            agree(&mut wanted.to_vec(), vec![mean, diff], &"from below")?;
        }
        Ok(())
    });
}

/// The reference's dyads of a layer.
struct Dyads {
    means: Matrix,
    diffs: Matrix,
}

impl Dyads {
    /// Row `i`, column `j` is `dyad((i, j))`.
    fn from_fn(rows: usize, cols: usize, dyad: impl Fn((usize, usize)) -> relax::Dyad) -> Self {
        let means = Matrix::from_fn(rows, cols, |i, j| dyad((i, j)).mean);
        Self { means, diffs: Matrix::from_fn(rows, cols, |i, j| dyad((i, j)).diff) }
    }
}

/// Fails unless `outputs` have the bits of the first ones that came; keeps the first.
fn agree<T: Scalar>(first: &mut Vec<Grid<T>>, outputs: Vec<Grid<T>>, what: &impl Debug) -> TestCaseResult {
    for (number, got) in outputs.iter().enumerate() {
        got.check_bits(first.get(number).unwrap_or(got), &(number, what))?;
    }
    if first.is_empty() {
        *first = outputs;
    }
    Ok(())
}

fn random_layers<T: Scalar>() {
    let tallies: [Tally; 8] = core::array::from_fn(|_| Tally::default());
    let settings = (select(Activation::ALL), select(Rule::all()), select(vec![0.5, 3.0, 0.1]), select(Family::ALL.to_vec()));
    for_all(500, (problem(), [call(), call()], settings), |(problem, calls, (activation, rule, lambda, family))| {
        let (rows, lanes) = (problem.rows::<T>(), problem.lanes::<T>());
        let (m, n, precision) = (problem.m, problem.n, T::PRECISION);
        let bias = Grid::<T>::random(1, n, family, problem.seed ^ 100);
        let biases: Vec<T> = (0..n).map(|j| bias.get(0, j)).collect();
        let bias = Grid::from_fn(m, n, Layout::default(), |_, j| biases[j]);
        let drive = problem.operand::<T>(family, 0);
        let old = [problem.operand::<T>(Family::Uniform, 1), problem.operand::<T>(Family::Uniform, 2)];

        let mut first = Vec::new();
        for isa in Isa::available() {
            for call in &calls {
                let layer = Layer { call, isa, rows: &rows, lanes: &lanes, activation };
                let [forward_drive, forward_mean] = layer.forward(Input::repeated(&biases, m));
                layer.drive(bias.relaid(call.operands[2]).input()).check_bits(&forward_drive, &(isa.name(), call))?;
                let [mean, diff] = layer.relax(&drive, rule, None);
                let [damped_mean, damped_diff] = layer.relax(&drive, rule, Some((lambda, &old)));
                let derivative = layer.derivative(&drive);
                let masked = layer.masked(&drive);
                let outputs = vec![forward_drive, forward_mean, mean, diff, damped_mean, damped_diff, derivative, masked];
                agree(&mut first, outputs, &(isa.name(), call))?;
            }
        }

        let (f, nudge, a) = (reference(activation), rule.reference(precision), drive.exact());
        let drives = bounds(&rows, &lanes, |terms, i, j| affine(exact(bias.get(i, j)), terms));
        let v = bounds(&rows, &lanes, |terms, _, _| dot(precision, terms));
        let old = |(i, j)| relax::Dyad { mean: exact(old[0].get(i, j)), diff: exact(old[1].get(i, j)) };
        let relaxed = Dyads::from_fn(m, n, |at| relax(f, nudge, a[at], v[at]));
        let damped = Dyads::from_fn(m, n, |at| relax_damped(f, nudge, precision.parameter(lambda), a[at], v[at], old(at)));
        let forward = drives.map(|a| f.value(a));
        let derivative = a.zip(&v, |a, v| f.derivative(a) * v);
        let masked = a.zip(&v, |slope, v| slope * v);
        let wanted = [drives, forward, relaxed.means, relaxed.diffs, damped.means, damped.diffs, derivative, masked];
        for ((tally, wanted), got) in tallies.iter().zip(&wanted).zip(&first) {
            tally.check(wanted, got, &problem)?;
        }
        Ok(())
    });
    let names = ["drive", "forward mean", "mean", "diff", "damped mean", "damped diff", "derivative", "masked"];
    tallies.iter().zip(names).for_each(|(tally, name)| tally.conclude::<T>(name));
}

/// Factors whose sums are the elements of `sums`, exactly.
fn factors<T: Scalar>(sums: &Grid<T>) -> [Grid<T>; 2] {
    let n = sums.shape().1;
    let identity = Grid::from_fn(n, n, Layout::default(), |i, j| if i == j { T::ONE } else { T::ZERO });
    [sums.clone(), identity]
}

/// Drives at, beside and far from every kink.
fn drives<T: Scalar>() -> Vec<T> {
    let ulp = 2.0 * T::UNIT_ROUNDOFF;
    let sizes = [T::TINY, 1e-30, 0.25, 0.7, 1.0 - ulp / 2.0, 1.0, 1.0 + ulp, 1.3, 3.0, 20.0, 200.0];
    [0.0].into_iter().chain(sizes.into_iter().flat_map(|x| [x, -x])).map(T::from_f64).collect()
}

/// A row of feedbacks for each drive: none, tiny ones, some that end at a kink, and some across all kinks; never −0, which no sum is.
fn feedbacks<T: Scalar>(drive: T) -> Vec<T> {
    let (a, u) = (drive.to_f64(), T::UNIT_ROUNDOFF);
    let sizes = [T::TINY, 1e-30, u * a, 16.0 * u * a, a, 1.0 - a, 2.0 * a, 0.3, 1.0, 2.5, 100.0];
    [0.0].into_iter().chain(sizes.into_iter().flat_map(|v| [v, -v])).map(|v| T::from_f64(v) + T::ZERO).collect()
}

/// Every pair of [`drives`] and [`feedbacks`]: the drives, and the feedbacks.
fn extremes<T: Scalar>() -> [Grid<T>; 2] {
    let drives = drives::<T>();
    let feedbacks: Vec<Vec<T>> = drives.iter().map(|&a| feedbacks(a)).collect();
    let (m, n) = (drives.len(), feedbacks[0].len());
    [Grid::from_fn(m, n, Layout::default(), |i, _| drives[i]), Grid::from_fn(m, n, Layout::default(), |i, j| feedbacks[i][j])]
}

/// Zeros for the biases of a layer of `n` units.
fn no_bias<T: Scalar>(n: usize) -> Vec<T> {
    vec![T::ZERO; n]
}

fn kinks_and_extremes<T: Scalar>() {
    let [drive, feedback] = extremes::<T>();
    let (m, n) = drive.shape();
    let ([rows, lanes], [a, v]) = (factors(&feedback), [drive.exact(), feedback.exact()]);
    let old = [0, 1].map(|seed| Grid::<T>::random(m, n, Family::Uniform, seed));
    let lambda = 0.3;
    let exact_lambda = T::PRECISION.parameter(lambda);
    let (mean_tally, diff_tally) = (Tally::default(), Tally::default());
    for &activation in Activation::ALL {
        for rule in Rule::all() {
            let (f, nudge) = (reference(activation), rule.reference(T::PRECISION));
            let dyad = |(i, j)| relax::Dyad { mean: exact(old[0].get(i, j)), diff: exact(old[1].get(i, j)) };
            let relaxed = Dyads::from_fn(m, n, |at| relax(f, nudge, a[at], v[at]));
            let damped = Dyads::from_fn(m, n, |at| relax_damped(f, nudge, exact_lambda, a[at], v[at], dyad(at)));
            let mut first = Vec::new();
            for isa in Isa::available() {
                let call = &Call::plain();
                let layer = Layer { call, isa, rows: &rows, lanes: &lanes, activation };
                let [mean, diff] = layer.relax(&drive, rule, None);
                let [damped_mean, damped_diff] = layer.relax(&drive, rule, Some((lambda, &old)));
                agree(&mut first, vec![mean, diff, damped_mean, damped_diff], &(isa.name(), activation, rule)).unwrap();
            }
            for (got, dyads) in first.chunks_exact(2).zip([relaxed, damped]) {
                mean_tally.check(&dyads.means, &got[0], &(activation, rule, &drive, &feedback)).unwrap();
                diff_tally.check(&dyads.diffs, &got[1], &(activation, rule)).unwrap();
            }
        }
    }
    mean_tally.conclude::<T>("means at kinks");
    diff_tally.conclude::<T>("diffs at kinks");
}

/// Feedback of a few units in the last place of the drive, or less: `f(p⁺) − f(p⁻)` by subtraction is mostly refused.
fn differences_are_accurate_relative_to_the_feedback<T: Scalar>() {
    let (m, n) = (40, 50);
    let drive = Grid::<T>::random(m, n, Family::Uniform, 1).map(|x| x + x);
    let random = Grid::<T>::random(m, n, Family::Uniform, 2);
    let small = |i, j| random.get(i, j).to_f64() * 16.0 * T::UNIT_ROUNDOFF * drive.get(i, j).to_f64();
    let feedback = Grid::from_fn(m, n, Layout::default(), |i, j| T::from_f64(if j % 2 == 0 { small(i, j) } else { 1e-30 }));
    let [rows, lanes] = factors(&feedback);
    let tally = Tally::default();
    for &activation in Activation::ALL {
        for rule in Rule::all() {
            let (f, nudge) = (reference(activation), rule.reference(T::PRECISION));
            let at = |(i, j)| relax(f, nudge, exact(drive.get(i, j)), exact(feedback.get(i, j)));
            let wanted = Dyads::from_fn(m, n, at).diffs;
            for isa in Isa::available() {
                let layer = Layer { call: &Call::plain(), isa, rows: &rows, lanes: &lanes, activation };
                let [_, diff] = layer.relax(&drive, rule, None);
                tally.check(&wanted, &diff, &(isa.name(), activation, rule)).unwrap();
            }
            let nudge = rule.nudge::<T>();
            let (mut refused, mut entries) = (0, 0);
            for i in 0..m {
                for j in (0..n).filter(|&j| wanted[(i, j)].value != 0.0) {
                    let [up, down] =
                        [nudge.up, nudge.down].map(|c| value(activation, c.mul_add(feedback.get(i, j), drive.get(i, j))));
                    entries += 1;
                    refused += usize::from(!wanted[(i, j)].admits((up - down).to_f64()));
                }
            }
            assert!(2 * refused > entries, "{activation} {rule:?}: subtraction is refused only {refused} times of {entries}");
        }
    }
    tally.conclude::<T>("diffs for tiny feedback");
}

/// `f(x)`.
fn value<T: Real>(activation: Activation, x: T) -> T {
    let mut out = [T::ZERO];
    activation.values(Isa::best(), &mut out, &[x]).expect("one element each");
    out[0]
}

/// With all the weight on one compartment the mean is its `f(a + cv)` as a forward pass computes it, and hence, for DP⊤, `f(a)`.
fn a_weight_of_0_or_1_gives_one_compartment_to_the_bit<T: Scalar>() {
    let [drive, feedback] = extremes::<T>();
    let ((m, n), [rows, lanes]) = (drive.shape(), factors(&feedback));
    for &activation in Activation::ALL {
        for rule in [Rule::Dp(0.0), Rule::Dp(1.0), Rule::DpTransposed(0.0), Rule::DpTransposed(1.0)] {
            let nudge = rule.nudge::<T>();
            let c = if nudge.alpha == T::ONE { nudge.up } else { nudge.down };
            let argument = Grid::from_fn(m, n, Layout::default(), |i, j| c.mul_add(feedback.get(i, j), drive.get(i, j)));
            let [forward_rows, forward_lanes] = factors(&argument);
            for isa in Isa::available() {
                let call = &Call::plain();
                let layer = Layer { call, isa, rows: &rows, lanes: &lanes, activation };
                let [mean, _] = layer.relax(&drive, rule, None);
                let layer = Layer { rows: &forward_rows, lanes: &forward_lanes, ..layer };
                let [_, forward] = layer.forward(Input::repeated(&no_bias(n), m));
                mean.check_bits(&forward, &(isa.name(), activation, rule)).unwrap();
            }
        }
    }
}

fn no_feedback_gives_the_forward_pass_to_the_bit<T: Scalar>() {
    let [drive, _] = extremes::<T>();
    let (m, n) = drive.shape();
    let zeros = drive.map(|_| T::ZERO);
    let ([rows, lanes], [silent, _]) = (factors(&drive), factors(&zeros));
    for &activation in Activation::ALL {
        for isa in Isa::available() {
            let call = &Call::plain();
            let layer = Layer { call, isa, rows: &rows, lanes: &lanes, activation };
            let [drive, forward] = layer.forward(Input::repeated(&no_bias(n), m));
            for rule in Rule::all() {
                let [mean, diff] = Layer { rows: &silent, ..layer }.relax(&drive, rule, None);
                mean.check_bits(&forward, &(isa.name(), activation, rule)).unwrap();
                diff.map(T::abs).check_bits(&zeros, &(isa.name(), activation, rule)).unwrap();
            }
        }
    }
}

/// The piecewise linear functions have the smaller slope at a kink; the product with it is rounded once.
fn derivatives_at_kinks<T: Scalar>() {
    let [drive, feedback] = extremes::<T>();
    let [rows, lanes] = factors(&feedback);
    let leak = T::from_f64(LeakyRelu::SLOPE);
    let functions: [(Activation, fn(f64) -> bool, T); 4] = [
        (Activation::Identity, |_| true, T::ZERO),
        (Activation::Relu, |a| a > 0.0, T::ZERO),
        (Activation::LeakyRelu, |a| a > 0.0, leak),
        (Activation::HardSigmoid, |a| a > 0.0 && a < 1.0, T::ZERO),
    ];
    for (activation, is_steep, flat) in functions {
        let slope = |a: T| if is_steep(a.to_f64()) { T::ONE } else { flat };
        let (m, n) = drive.shape();
        let wanted = Grid::from_fn(m, n, Layout::default(), |i, j| slope(drive.get(i, j)) * feedback.get(i, j));
        for isa in Isa::available() {
            let layer = Layer { call: &Call::plain(), isa, rows: &rows, lanes: &lanes, activation };
            layer.derivative(&drive).check_bits(&wanted, &(isa.name(), activation)).unwrap();
        }
    }
}

/// A sum that underflows to −0, and a bias of −0.
fn a_drive_is_never_minus_zero<T: Scalar>() {
    let tiny = T::from_f64(T::TINY);
    let rows = Grid::from_fn(3, 1, Layout::default(), |_, _| tiny);
    let lanes = Grid::from_fn(1, 19, Layout::default(), |_, _| -tiny);
    assert_eq!(chains(&rows, &lanes).get(0, 0).to_bits(), (-T::ZERO).to_bits(), "the sum is −0");
    let zeros = Grid::from_fn(3, 19, Layout::default(), |_, _| T::ZERO);
    for isa in Isa::available() {
        let layer = Layer { call: &Call::plain(), isa, rows: &rows, lanes: &lanes, activation: Activation::Identity };
        let bias = vec![-T::ZERO; 19];
        layer.drive(Input::repeated(&bias, 3)).check_bits(&zeros, &isa.name()).unwrap();
        layer.forward(Input::repeated(&bias, 3)).iter().for_each(|out| out.check_bits(&zeros, &isa.name()).unwrap());
    }
}

/// NaN in the drive or in the feedback of a unit makes all of its outputs NaN, and those of no other.
fn nan_propagates<T: Scalar>() {
    let (m, n) = (9, 51);
    let [drive, feedback] = [1, 2].map(|seed| Grid::<T>::random(m, n, Family::Uniform, seed));
    let old = [3, 4].map(|seed| Grid::<T>::random(m, n, Family::Uniform, seed));
    let nan = T::from_f64(f64::NAN);
    for &activation in Activation::ALL {
        for isa in Isa::available() {
            let call = &Call::plain();
            let outputs = |drive: &Grid<T>, feedback: &Grid<T>| {
                let [rows, lanes] = factors(feedback);
                let layer = Layer { call, isa, rows: &rows, lanes: &lanes, activation };
                let [damped, plain] = [Some((0.5, &old)), None].map(|damping| layer.relax(drive, Rule::Dp(0.25), damping));
                let forward = layer.forward(drive.input());
                [&damped[..], &plain, &forward, &[layer.derivative(drive)]].concat()
            };
            let clean = outputs(&drive, &feedback);
            for (row, col) in [(0, 0), (4, 48), (m - 1, n - 1)] {
                let mut poisoned = drive.clone();
                poisoned.set(row, col, nan);
                for (clean, got) in clean.iter().zip(outputs(&poisoned, &feedback)) {
                    let mut wanted = clean.clone();
                    wanted.set(row, col, nan);
                    got.check_bits(&wanted, &(isa.name(), activation, row, col)).unwrap();
                }
                // The sums of the whole row meet the NaN: 0·NaN = NaN.
                let mut poisoned = feedback.clone();
                poisoned.set(row, col, nan);
                for (clean, got) in clean.iter().zip(outputs(&drive, &poisoned)) {
                    let wanted = Grid::from_fn(m, n, Layout::default(), |i, j| if i == row { nan } else { clean.get(i, j) });
                    got.check_bits(&wanted, &(isa.name(), activation, row, col)).unwrap();
                }
            }
        }
    }
}

/// Slopes of 0 and −0 give +0 for any sum, NaN and infinity included; a NaN shows wherever the slope is not 0.
fn a_slope_of_zero_hides_the_sum<T: Scalar>() {
    let sums = [f64::NAN, f64::INFINITY, -1.5, -0.0, 1e-30].map(T::from_f64);
    let slopes = [0.0, -0.0, 1.0, -0.5, f64::NAN].map(T::from_f64);
    let (m, n) = (sums.len(), 53);
    // One column, so that no other element of the row meets the sum.
    let rows = Grid::from_fn(m, 1, Layout::default(), |i, _| sums[i]);
    let lanes = Grid::from_fn(1, n, Layout::default(), |_, _| T::ONE);
    let row: Vec<T> = (0..n).map(|j| slopes[j % 5]).collect();
    let slope = Grid::from_fn(m, n, Layout::default(), |_, j| row[j]);
    let product = |i, j| slope.get(i, j) * chains(&rows, &lanes).get(i, j);
    let wanted = Grid::from_fn(m, n, Layout::default(), |i, j| if j % 5 < 2 { T::ZERO } else { product(i, j) });
    for isa in Isa::available() {
        for call in Call::each(isa) {
            let layer = Layer { call: &call, isa, rows: &rows, lanes: &lanes, activation: Activation::Identity };
            layer.masked(&slope).check_bits(&wanted, &(isa.name(), call)).unwrap();
            let mut out = layer.blank(1);
            layer.run(Epilogue::Masked { slope: Input::repeated(&row, m), out: out.output() });
            out.check_bits(&wanted, &(isa.name(), call)).unwrap();
        }
    }
}

/// Each operand in turn.
fn operands_of_another_shape_panic<T: Scalar>() {
    let (m, n) = (5, 9);
    let problem = Problem { m, n, depth: 4, families: [Family::Uniform; 2], seed: 1 };
    let (rows, lanes) = (problem.rows::<T>(), problem.lanes());
    let activation = Activation::Relu;
    for isa in Isa::available() {
        let run = |epilogue: Epilogue<'_, T>| assert_panics("epilogue", || Call::plain().product(isa, &rows, &lanes, epilogue));
        for (rows, cols) in [(m - 1, n), (m + 1, n), (m, n - 1), (m, n + 1), (n, m), (0, 0)] {
            for wrong in 0..5 {
                let shape = |operand| if operand == wrong { (rows, cols) } else { (m, n) };
                let blank = |operand| Grid::<T>::blank(shape(operand).0, shape(operand).1, Layout::default());
                let (read, [mut first, mut second, mut third], feedback) = (blank(0), [1, 2, 3].map(blank), blank(4));
                let nudge = Rule::Dp(0.5).nudge();
                for damping in [None, Some(1.0)] {
                    let (drive, mean, diff) = (third.output(), first.output(), second.output());
                    let (bias, feedback) = (read.input(), feedback.input());
                    run(Epilogue::DyadFromBelow { drive, bias, feedback, mean, diff, nudge, damping, activation });
                }
                if wrong == 4 {
                    continue;
                }
                for damping in [None, Some(1.0)] {
                    let (feedback, mean, diff) = (Some(third.output()), first.output(), second.output());
                    run(Epilogue::Dyad { drive: read.input(), feedback, mean, diff, nudge, damping, activation });
                }
                if wrong == 3 {
                    continue;
                }
                run(Epilogue::Forward { bias: read.input(), drive: first.output(), mean: second.output(), activation });
                for damping in [None, Some(1.0)] {
                    let (mean, diff) = (first.output(), second.output());
                    run(Epilogue::Dyad { drive: read.input(), feedback: None, mean, diff, nudge, damping, activation });
                }
                if wrong < 2 {
                    run(Epilogue::Drive { bias: read.input(), drive: first.output() });
                    run(Epilogue::Derivative { drive: read.input(), diff: first.output(), activation });
                    run(Epilogue::Masked { slope: read.input(), out: first.output() });
                }
            }
        }
    }
}
