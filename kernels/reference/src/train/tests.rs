use super::*;
use crate::activation::Activation;
use crate::bound::Precision;
use crate::generate::{Family, SplitMix64, generate, one_hot};
use crate::network::Output;
use crate::output::Loss;

const SIZES: [usize; 4] = [5, 7, 6, 4];
const BATCH: usize = 3;

/// Weights, biases, inputs and targets of a problem, f32 numbers.
struct Problem {
    weights: Vec<Vec<f64>>,
    biases: Vec<Vec<f64>>,
    x: Vec<f64>,
    y: Vec<f64>,
}

impl Problem {
    fn new(seed: u64) -> Self {
        let uniform = |len, salt| generate(Family::Uniform, len, 1000 * seed + salt, Precision::F32);
        Problem {
            weights: SIZES.windows(2).map(|s| uniform(s[0] * s[1], s[0] as u64)).collect(),
            biases: SIZES[1..].iter().map(|&n| uniform(n, 50 + n as u64)).collect(),
            x: uniform(BATCH * SIZES[0], 100),
            y: one_hot(BATCH, SIZES[3], seed),
        }
    }

    fn trainer(&self, precision: Precision, activation: Activation, optimizer: Optimizer, decay: Decay) -> Trainer {
        let network = Network::new(precision, activation, &SIZES, &self.weights, Some(&self.biases));
        Trainer::new(network, optimizer, decay)
    }

    fn batch(&self, precision: Precision) -> (Matrix, Matrix) {
        (Matrix::exact(precision, BATCH, SIZES[0], &self.x), Matrix::exact(precision, BATCH, SIZES[3], &self.y))
    }
}

/// A DP step in f32 as somebody else might write it: sums backwards with fused multiply-add, `s̄ = s⁻ + αΔ`, `tanh`'s rise by
/// `tanh(q)(1 − s⁺s⁻)`, momentum. `transposed` exchanges the nudges; back-propagation is left out.
struct Single {
    weights: Vec<Vec<f32>>,
    biases: Vec<Vec<f32>>,
    momenta: Vec<Vec<f32>>,
    bias_momenta: Vec<Vec<f32>>,
    relu: bool,
}

/// `(mean, diff)` of the layers of one sample.
type Sample = (Vec<Vec<f32>>, Vec<Vec<f32>>);

impl Single {
    fn new(problem: &Problem, relu: bool) -> Self {
        let narrow =
            |lists: &[Vec<f64>]| -> Vec<Vec<f32>> { lists.iter().map(|list| list.iter().map(|&x| x as f32).collect()).collect() };
        let (weights, biases) = (narrow(&problem.weights), narrow(&problem.biases));
        let zeros = |lists: &[Vec<f32>]| lists.iter().map(|list| vec![0.0; list.len()]).collect();
        Single { momenta: zeros(&weights), bias_momenta: zeros(&biases), weights, biases, relu }
    }

    fn drive(&self, k: usize, below: &[f32]) -> Vec<f32> {
        let rows = self.weights[k - 1].chunks(below.len()).zip(&self.biases[k - 1]);
        rows.map(|(row, b)| row.iter().zip(below).rev().fold(*b, |sum, (w, s)| w.mul_add(*s, sum))).collect()
    }

    fn feedback(&self, k: usize, above: &[f32]) -> Vec<f32> {
        let n = SIZES[k];
        (0..n).map(|j| above.iter().enumerate().rev().fold(0.0, |v, (i, d)| self.weights[k][i * n + j].mul_add(*d, v))).collect()
    }

    fn hidden(&self, k: usize, (mean, diff): &mut Sample, alpha: f32, transposed: bool) {
        let (plus, minus) = if transposed { (1.0 - alpha, -alpha) } else { (alpha, alpha - 1.0) };
        let (a, v) = (self.drive(k, &mean[k - 1]), self.feedback(k, &diff[k + 1]));
        for j in 0..a.len() {
            let (p, m, q) = (plus.mul_add(v[j], a[j]), minus.mul_add(v[j], a[j]), v[j]);
            let s_minus = if self.relu { m.max(0.0) } else { m.tanh() };
            diff[k][j] = match self.relu {
                true if q >= 0.0 => q.min(p).max(0.0),
                true => q.max(-m).min(0.0),
                false => q.tanh() * (1.0 - p.tanh() * m.tanh()),
            };
            mean[k][j] = alpha.mul_add(diff[k][j], s_minus);
        }
    }

    fn step(&mut self, problem: &Problem, alpha: f32, beta: f32, rounds: usize, transposed: bool, rate: f32) {
        let mut samples: Vec<Sample> = Vec::new();
        for b in 0..BATCH {
            let x = problem.x[b * SIZES[0]..][..SIZES[0]].iter().map(|&x| x as f32).collect();
            let y: Vec<f32> = problem.y[b * SIZES[3]..][..SIZES[3]].iter().map(|&y| y as f32).collect();
            let mut sample: Sample = (vec![x], SIZES.iter().map(|&n| vec![0.0; n]).collect());
            for k in 1..=3 {
                sample.0.push(vec![0.0; SIZES[k]]);
                if k < 3 {
                    self.hidden(k, &mut sample, alpha, transposed);
                }
            }
            for k in Schedule::Rounds(rounds).order(3) {
                if k < 3 {
                    self.hidden(k, &mut sample, alpha, transposed);
                } else {
                    let c = beta / ((1.0 + alpha * beta) * (1.0 - (1.0 - alpha) * beta));
                    let a = self.drive(3, &sample.0[2]);
                    sample.1[3] = a.iter().zip(&y).map(|(a, y)| c * (y - a)).collect();
                }
            }
            samples.push(sample);
        }
        let scale = -1.0 / (beta * BATCH as f32);
        for k in 0..3 {
            for i in 0..SIZES[k + 1] {
                for j in 0..SIZES[k] {
                    let sum = samples.iter().rev().fold(0.0f32, |sum, s| s.1[k + 1][i].mul_add(s.0[k][j], sum));
                    let at = i * SIZES[k] + j;
                    self.momenta[k][at] = 0.9f32.mul_add(self.momenta[k][at], scale * sum);
                    self.weights[k][at] -= rate * self.momenta[k][at];
                }
                let sum: f32 = samples.iter().map(|s| s.1[k + 1][i] * scale).sum();
                self.bias_momenta[k][i] = 0.9f32.mul_add(self.bias_momenta[k][i], sum);
                self.biases[k][i] -= rate * self.bias_momenta[k][i];
            }
        }
    }

    /// Worst ratio of all parameters to their bounds, `None` if one is not admitted.
    fn worst(&self, network: &Network) -> Option<f64> {
        let mut worst: f64 = 0.0;
        for k in 0..3 {
            let wide = |list: &[f32]| list.iter().map(|&x| x.into()).collect::<Vec<f64>>();
            worst = worst.max(network.weights[k].worst_ratio(&wide(&self.weights[k])));
            let biases = network.biases.as_ref().unwrap()[k].iter().zip(wide(&self.biases[k]));
            worst = biases.map(|(bound, got)| bound.ratio(got)).fold(worst, f64::max);
        }
        (worst <= 1.0).then_some(worst)
    }
}

const MOMENTUM: Optimizer = Optimizer::Momentum { rate: 0.125, momentum: 0.9 };

/// The recipe that [`Single::step`] follows.
fn recipe(alpha: f64, beta: f64, rounds: usize, transposed: bool) -> Recipe {
    let method = if transposed { Method::DpTranspose { alpha, beta } } else { Method::Dp { alpha, beta } };
    Recipe { method, loss: Loss::Squared, output: Output::Proximal, schedule: Schedule::Rounds(rounds) }
}

#[test]
fn steps_of_an_f32_code_are_admitted_and_wrong_ones_are_not() {
    let (mut worst, mut errors): (f64, f64) = (0.0, 0.0);
    for seed in 0..60 {
        let problem = Problem::new(seed);
        let (x, y) = problem.batch(Precision::F32);
        for relu in [false, true] {
            let activation = if relu { Activation::Relu } else { Activation::Tanh };
            for (alpha, transposed) in [(0.5f32, false), (0.0, true), (0.25, true), (0.75, false), (1.0, true)] {
                let beta: f64 = if seed % 2 == 0 { 0.5 } else { 2f64.powi(-16) };
                let (rounds, mut single) = (seed as usize % 2, Single::new(&problem, relu));
                let mut trainer = problem.trainer(Precision::F32, activation, MOMENTUM, Decay::None);
                for _ in 0..2 {
                    single.step(&problem, alpha, beta as f32, rounds, transposed, 0.125);
                    trainer.step(&recipe(alpha.into(), beta, rounds, transposed), &x, &y);
                    let ratio = single.worst(&trainer.network);
                    worst = worst.max(ratio.unwrap_or_else(|| panic!("seed {seed}, {activation:?}, α = {alpha}: not admitted")));
                }
                let parameters = trainer.network.weights.iter().flat_map(|w| &w.data);
                errors = parameters.map(|w| w.error / (1.0 + w.value.abs())).fold(errors, f64::max);
                // Another α, the other rule, another rate. For a β so small only the rate has a visible effect for sure.
                for (wrong_alpha, wrong_rate, exchanged) in [(0.3, 0.125, false), (alpha, 0.125, true), (alpha, 0.1251, false)] {
                    let mut wrong = Single::new(&problem, relu);
                    for _ in 0..2 {
                        wrong.step(&problem, wrong_alpha, beta as f32, rounds, transposed != exchanged, wrong_rate);
                    }
                    let noticed = wrong.worst(&trainer.network).is_none();
                    let same = exchanged && alpha == 0.5;
                    assert!(!(noticed && same), "α = ½ is the same rule");
                    let visible = !same && (beta == 0.5 || wrong_rate != 0.125);
                    assert!(
                        noticed || !visible,
                        "seed {seed}, {activation:?}, α = {alpha}: {wrong_alpha}, {wrong_rate}, {exchanged}"
                    );
                }
            }
        }
    }
    assert!(worst > 0.01 && errors < 1e-2, "bounds are far too wide: worst ratio {worst}, largest bound {errors}");
}

#[test]
fn a_multistep_is_passes_with_updates_between_them() {
    let problem = Problem::new(1);
    let (x, y) = problem.batch(Precision::F64);
    let at = |schedule| Recipe { schedule, ..recipe(0.5, 0.5, 0, false) };
    let fresh = || problem.trainer(Precision::F64, Activation::Tanh, MOMENTUM, Decay::None);
    let (mut multi, mut single) = (fresh(), fresh());
    multi.step(&at(Schedule::MultiStep(1)), &x, &y);
    single.step(&at(Schedule::Rounds(0)), &x, &y);
    assert_eq!(multi.network, single.network);
    let mut three = fresh();
    three.step(&at(Schedule::MultiStep(3)), &x, &y);
    assert_eq!(three.updates, 3);
    let corrupted = at(Schedule::Corrupted(1));
    single.step(&corrupted, &x, &y);
    single.step(&corrupted, &x, &y);
    assert_eq!(three.network.weights, single.network.weights, "further passes start from the states at hand");
}

#[test]
fn training_lowers_the_loss_for_every_method() {
    let problem = Problem::new(2);
    let (x, y) = problem.batch(Precision::F64);
    let lambda = vec![Precision::F64.exact(0.5); 2];
    let (alpha, beta) = (0.5, 0.25);
    for (method, output) in [
        (Method::Backprop, Output::Proximal),
        (Method::Adversarial { step: 0.01 }, Output::Proximal),
        (Method::Dp { alpha, beta }, Output::Proximal),
        (Method::DpTranspose { alpha: 0.0, beta }, Output::LinearisedInitial),
        (Method::DpDamped { alpha, beta, lambda }, Output::LinearisedCurrent),
        (Method::DpOld { alpha: 1.0, beta }, Output::Proximal),
        (Method::DpGain { gamma: 0.5 }, Output::Proximal),
        (Method::DpGain { gamma: 0.5 }, Output::PreviousMean),
        (Method::KpDp { alpha, beta }, Output::Proximal),
    ] {
        for optimizer in [
            Optimizer::Sgd { rate: 0.05 },
            Optimizer::Momentum { rate: 0.02, momentum: 0.5 },
            Optimizer::Adam { rate: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 },
        ] {
            let mut trainer = problem.trainer(Precision::F64, Activation::Tanh, optimizer, Decay::Decoupled(1e-4));
            trainer.network = trainer.network.with_feedback(&problem.weights);
            trainer = Trainer::new(trainer.network, optimizer, trainer.decay);
            let recipe = Recipe { method: method.clone(), loss: Loss::Squared, output, schedule: Schedule::Rounds(1) };
            let before = trainer.network.loss(Loss::Squared, &x, &y).value;
            for _ in 0..10 {
                trainer.step(&recipe, &x, &y);
            }
            let after = trainer.network.loss(Loss::Squared, &x, &y).value;
            assert!(after < 0.8 * before, "{method:?} with {optimizer:?}: {before} to {after}");
        }
    }
}

#[test]
fn feedback_weights_get_the_gradient_of_the_weights_and_their_own_decay() {
    let problem = Problem::new(3);
    let p = Precision::F64;
    let (x, y) = problem.batch(p);
    let mut random = SplitMix64::new(8);
    let feedback: Vec<Vec<f64>> =
        problem.weights.iter().map(|w| w.iter().map(|_| p.nearest(random.symmetric())).collect()).collect();
    let kp = Recipe { method: Method::KpDp { alpha: 0.5, beta: 0.5 }, ..recipe(0.5, 0.5, 0, false) };
    for decay in [Decay::Coupled(0.125), Decay::Decoupled(0.125)] {
        let network = Network::new(p, Activation::Tanh, &SIZES, &problem.weights, Some(&problem.biases));
        let mut trainer = Trainer::new(network.with_feedback(&feedback), Optimizer::Sgd { rate: 0.5 }, decay);
        trainer.step(&kp, &x, &y);
        // W − C shrinks by 1 − lr·wd in each step (Kolen–Pollack).
        let trained = trainer.network.feedback.as_ref().unwrap();
        for k in 0..3 {
            for at in 0..problem.weights[k].len() {
                let gap = trainer.network.weights[k].data[at] - trained[k].data[at];
                assert!(gap.admits((1.0 - 0.5 * 0.125) * (problem.weights[k][at] - feedback[k][at])));
            }
        }
    }
}
