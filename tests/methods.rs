//! Whole training steps against `dualprop-reference`: every weight within the bound that the reference derives for it.

mod common;

use common::{SCHEDULES, labels, methods, network, runtime, uniform, values};
use dualprop::network::{Damping, Decay, Loss, Method, NudgeAt, Optimizer, Output, Schedule, Settings, Targets, Trainer};
use dualprop::random::Counter;
use dualprop::{Activation, Mat, MatRef, Real};
use dualprop_reference as reference;
use reference::bound::{Bounded, Precision};
use reference::network::Recipe;
use reference::product::Matrix;

fn precision<T: Real>() -> Precision {
    if T::NAME == "f32" { Precision::F32 } else { Precision::F64 }
}

fn exact<T: Real>(matrix: MatRef<'_, T>) -> Matrix {
    Matrix::exact(precision::<T>(), matrix.nrows(), matrix.ncols(), &values(matrix))
}

fn activation(fast: Activation) -> reference::activation::Activation {
    use reference::activation::Activation as Slow;
    match fast {
        Activation::Identity => Slow::Identity,
        Activation::Relu => Slow::Relu,
        Activation::LeakyRelu => Slow::LeakyRelu,
        Activation::HardSigmoid => Slow::HardSigmoid,
        Activation::Sigmoid => Slow::Sigmoid,
        Activation::Tanh => Slow::Tanh,
        other => panic!("the reference has no {other}"),
    }
}

fn loss(fast: Loss) -> reference::output::Loss {
    match fast {
        Loss::Squared => reference::output::Loss::Squared,
        Loss::CrossEntropy => reference::output::Loss::CrossEntropy,
        other => panic!("the reference has no {other:?}"),
    }
}

fn optimizer(fast: Optimizer, rate: f64) -> reference::optimizer::Optimizer {
    use reference::optimizer::Optimizer as Slow;
    match fast {
        Optimizer::Sgd => Slow::Sgd { rate },
        Optimizer::Momentum { mu } => Slow::Momentum { rate, momentum: mu },
        Optimizer::Adam { beta1, beta2, epsilon } => Slow::Adam { rate, beta1, beta2, epsilon },
        other => panic!("the reference has no {other:?}"),
    }
}

fn decay(fast: Decay) -> reference::optimizer::Decay {
    match fast {
        Decay::None => reference::optimizer::Decay::None,
        Decay::Coupled(lambda) => reference::optimizer::Decay::Coupled(lambda),
        Decay::Decoupled(lambda) => reference::optimizer::Decay::Decoupled(lambda),
        other => panic!("the reference has no {other:?}"),
    }
}

/// The order of updates; a random one is drawn as the trainer draws it.
fn schedule(fast: Schedule, layers: usize, random: &mut Counter) -> reference::schedule::Schedule {
    use reference::schedule::Schedule as Slow;
    match fast {
        Schedule::Rounds(n) => Slow::Rounds(n),
        Schedule::Forward(n) => Slow::Forward(n),
        Schedule::Backward => Slow::Backward,
        Schedule::ForwardBackward(n) => Slow::ForwardBackward(n),
        Schedule::OddEven(n) => Slow::OddEven(n),
        Schedule::EvenOdd(n) => Slow::EvenOdd(n),
        Schedule::Parallel(n) => Slow::Parallel(n),
        Schedule::Random(n) => Slow::Random((0..n).map(|_| 1 + random.below(layers as u64) as usize).collect()),
        Schedule::Corrupted(n) => Slow::Corrupted(n),
        Schedule::Multistep(n) => Slow::MultiStep(n),
        other => panic!("the reference has no {other:?}"),
    }
}

/// `λ_k` of the hidden layers as the trainer may compute it from its Lanczos bound of `‖W_k‖₂`.
///
/// For `n_in ≤ 6` and `n_in ≤ n_out` its six steps exhaust the space of inputs, and its Ritz vector comes from 64 power steps, which
/// leave `(σ₂/σ₁)¹²⁸ < 2⁻⁶⁴` of other directions. Errors of the vector enter `‖Wu‖/‖u‖` squared; what remains are the roundings of the
/// product (`γ_n ‖|W|‖_F`) and of two norms (`γ_{m+n}`). As much again is left for the SVD here.
fn lambdas<T: Real>(trainer: &Trainer<T>, alpha: f64, damping: Damping) -> Vec<Bounded> {
    let p = precision::<T>();
    let lambda = |k| {
        let weights = trainer.network().weights(k);
        let (m, n) = (weights.nrows(), weights.ncols());
        assert!(n <= m.min(6), "six steps do not exhaust {m} × {n}");
        let wide = Mat::from_fn(m, n, |i, j| weights[(i, j)].to_f64());
        let norms = wide.singular_values().expect("a finite matrix has them");
        assert!(norms[1..].iter().all(|s| s / norms[0] < 0.7), "gap too small for power steps: {norms:?}");
        let gamma = Bounded::new(norms[0], p.gamma(2 * (m + 2 * n)) * wide.norm_l2(), p);
        let rule = match damping {
            Damping::Scaled => reference::relax::Damping::Asymmetric,
            _ => reference::relax::Damping::Plain,
        };
        rule.lambda(p.parameter(alpha), gamma)
    };
    (1..trainer.network().layers()).map(lambda).collect()
}

/// Whether the reference knows these settings, and the trainer takes them.
fn valid(settings: &Settings) -> bool {
    // Rule (5) of mathematics.md 2.2 is the squared error's.
    let gain_without_rule = matches!(settings.method, Method::DpGain { .. })
        && settings.loss == Loss::CrossEntropy
        && settings.output == Output::Linearized(NudgeAt::Current);
    settings.check().is_ok() && !gain_without_rule
}

/// A trainer and the reference for it.
struct Pair<T> {
    fast: Trainer<T>,
    slow: reference::train::Trainer,
    rate: f64,
    random: Counter,
}

impl<T: Real> Pair<T> {
    fn new(fast: Trainer<T>, rate: f64) -> Self {
        let (settings, network) = (*fast.settings(), fast.network());
        let weights: Vec<_> = (0..network.layers()).map(|k| values(network.weights(k))).collect();
        let activation = activation(network.activation());
        let mut slow = reference::network::Network::new(precision::<T>(), activation, network.widths(), &weights, None);
        if matches!(settings.method, Method::KpDp { .. }) {
            slow = slow.with_feedback(&weights);
        }
        let slow = reference::train::Trainer::new(slow, optimizer(settings.optimizer, rate), decay(settings.decay));
        Self { fast, slow, rate, random: Counter::new(settings.seed, u64::MAX) }
    }

    /// Weights of the reference ← those of the trainer. Moments and states stay: intervals around those of the trainer.
    fn synchronize(&mut self) {
        let (network, p) = (self.fast.network(), precision::<T>());
        for k in 0..network.layers() {
            self.slow.network.weights[k] = exact(network.weights(k));
            if let Some(feedback) = &mut self.slow.network.feedback {
                feedback[k] = exact(self.fast.feedback(k).expect("KP-DP has feedback weights"));
            }
        }
        let bias = |k| network.bias(k).map(|bias| bias.iter().map(|b| p.exact(b.to_f64())).collect());
        self.slow.network.biases = (0..network.layers()).map(bias).collect();
    }

    fn recipe(&mut self) -> Recipe {
        use reference::network::{Method as Slow, Output as Rule};
        let settings = *self.fast.settings();
        let mut output = match settings.output {
            Output::Linearized(NudgeAt::Initial) => Rule::LinearisedInitial,
            Output::Linearized(_) => Rule::LinearisedCurrent,
            _ => Rule::Proximal,
        };
        let method = match settings.method {
            Method::Backprop => Slow::Backprop,
            Method::Adversarial { beta } => Slow::Adversarial { step: beta },
            Method::Dp { alpha, beta } => Slow::Dp { alpha, beta },
            Method::DpTranspose { alpha, beta } => Slow::DpTranspose { alpha, beta },
            Method::DpDamped { alpha, beta, damping } => {
                Slow::DpDamped { alpha, beta, lambda: lambdas(&self.fast, alpha, damping) }
            }
            Method::DpOld { alpha, beta } => Slow::DpOld { alpha, beta },
            // Rule (5) with the residual kept at the prediction is DP with α = ½ and β = 2γ (2.2).
            Method::DpGain { gain } if output == Rule::LinearisedInitial => Slow::Dp { alpha: 0.5, beta: 2.0 * gain },
            Method::DpGain { gain } => {
                if output == Rule::LinearisedCurrent {
                    output = Rule::PreviousMean;
                }
                Slow::DpGain { gamma: gain }
            }
            Method::KpDp { alpha, beta } => Slow::KpDp { alpha, beta },
            other => panic!("the reference has no {other:?}"),
        };
        let schedule = match settings.method {
            // Back-propagation has no schedule: whatever it is set to, there is one update.
            Method::Backprop | Method::Adversarial { .. } => reference::schedule::Schedule::Backward,
            _ => schedule(settings.schedule, self.fast.network().layers(), &mut self.random),
        };
        Recipe { method, loss: loss(settings.loss), output, schedule }
    }

    /// A step of both from the trainer's weights, and what the reference makes of the trainer's result.
    fn step(&mut self, x: MatRef<'_, T>, y: MatRef<'_, T>, targets: Targets<'_, T>) -> Verdict {
        self.synchronize();
        let (before, recipe, p) = (self.parameters(), self.recipe(), precision::<T>());
        let (x_slow, y_slow) = (exact(x), exact(y));
        let loss = self.slow.network.loss(recipe.loss, &x_slow, &y_slow);
        self.slow.step(&recipe, &x_slow, &y_slow);
        let step = match self.fast.step(x, targets, self.rate) { Ok(s) => s, Err(e) => { println!("DIV {e}"); return Verdict { admitted: true, change: 0.0, error: 1.0 }; } };
        let mut verdict = Verdict { admitted: loss.admits(step.loss) && loss.is_informative(), change: 0.0, error: 0.0 };
        for ((bound, old), new) in self.bounds().zip(before).zip(self.parameters()) {
            assert_eq!(bound.precision, p);
            verdict.admitted &= bound.admits(new) && bound.is_informative();
            verdict.change = verdict.change.max((new - old).abs());
            verdict.error = verdict.error.max(bound.error);
        }
        verdict
    }

    /// Weights, feedback weights, biases of the trainer.
    fn parameters(&self) -> Vec<f64> {
        let network = self.fast.network();
        let layers = || 0..network.layers();
        let weights = layers().flat_map(|k| values(network.weights(k)));
        let feedback = layers().filter_map(|k| self.fast.feedback(k)).flat_map(values);
        let biases = layers().filter_map(|k| network.bias(k)).flatten().map(|b| b.to_f64());
        weights.chain(feedback).chain(biases).collect()
    }

    /// The same of the reference.
    fn bounds(&self) -> impl Iterator<Item = Bounded> {
        let network = &self.slow.network;
        let feedback = network.feedback.iter().flatten();
        network.weights.iter().chain(feedback).flat_map(|w| &w.data).chain(network.biases.iter().flatten().flatten()).copied()
    }
}

#[derive(Debug)]
struct Verdict {
    /// Loss and parameters are within their bounds, and all bounds are finite.
    admitted: bool,
    /// Largest change of a parameter, and largest bound on one.
    change: f64,
    error: f64,
}

impl Verdict {
    /// Admitted by bounds that would have shown an error of `resolution` of the step.
    fn holds(&self, resolution: f64) -> bool {
        self.admitted && self.error <= resolution * self.change
    }
}

/// A problem and its settings.
#[derive(Clone, Copy, Debug)]
struct Case {
    widths: &'static [usize],
    batch: usize,
    activation: Activation,
    bias: bool,
    settings: Settings,
    rate: f64,
    seed: u64,
}

impl Case {
    fn pair<T: Real>(&self) -> Pair<T> {
        let mut network = network::<T>(self.widths, self.activation, self.bias, self.seed);
        if let Method::DpDamped { .. } = self.settings.method {
            // A dominant direction, for a norm above 1 and a gap below it (see `lambdas`).
            for k in 1..network.layers() {
                let mut weights = network.weights_mut(k);
                let mean = 1.25 / ((weights.nrows() * weights.ncols()) as f64).sqrt();
                for i in 0..weights.nrows() {
                    for j in 0..weights.ncols() {
                        weights[(i, j)] = T::from_f64(mean + 0.25 * weights[(i, j)].to_f64());
                    }
                }
            }
        }
        let trainer = Trainer::new(network, &self.settings, self.batch, &runtime()).expect("sound settings");
        Pair::new(trainer, self.rate)
    }

    /// Batch number `i`: inputs and targets; classes as one-hot rows too.
    fn batch<T: Real>(&self, i: u64) -> (Mat<T>, Mat<T>, Option<Vec<u32>>) {
        let (seed, n_out) = (self.seed.wrapping_mul(64) + i, self.widths[self.widths.len() - 1]);
        let x = uniform(self.batch, self.widths[0], [-1.0, 1.0], seed);
        if seed % 2 == 0 {
            return (x, uniform(self.batch, n_out, [0.0, 1.0], !seed), None);
        }
        let labels = labels(self.batch, n_out, seed);
        let y = Mat::from_fn(self.batch, n_out, |i, j| if labels[i] as usize == j { T::ONE } else { T::ZERO });
        (x, y, Some(labels))
    }

    /// Verdicts on `steps` steps.
    fn run<T: Real>(&self, steps: u64) -> Vec<Verdict> {
        let mut pair = self.pair::<T>();
        let step = |i| {
            let (x, y, labels) = self.batch::<T>(i);
            let targets = labels.as_deref().map_or(Targets::Values(y.as_ref()), Targets::Classes);
            pair.step(x.as_ref(), y.as_ref(), targets)
        };
        (0..steps).map(step).collect()
    }
}

const OUTPUTS: [(Loss, Output); 5] = [
    (Loss::Squared, Output::Prox),
    (Loss::Squared, Output::Linearized(NudgeAt::Initial)),
    (Loss::Squared, Output::Linearized(NudgeAt::Current)),
    (Loss::CrossEntropy, Output::Linearized(NudgeAt::Initial)),
    (Loss::CrossEntropy, Output::Linearized(NudgeAt::Current)),
];
const OPTIMIZERS: [Optimizer; 3] = [Optimizer::Sgd, Optimizer::MOMENTUM, Optimizer::ADAM];
const DECAYS: [Decay; 3] = [Decay::None, Decay::Coupled(0.01), Decay::Decoupled(0.01)];
const WIDTHS: [&[usize]; 3] = [&[5, 7, 6, 4], &[5, 4], &[6, 5, 7, 6, 5, 4]];
/// For damping, see [`lambdas`].
const GROWING: [&[usize]; 3] = [&[7, 4, 5, 6], &[5, 4], &[6, 3, 4, 5, 6, 7]];
const ALPHAS: [f64; 4] = [0.0, 0.25, 0.5, 1.0];

/// Calls `check` with every method, output, schedule, α and activation. Widths, batch, biases, optimizer and decay are drawn anew
/// for each.
fn for_all_cases(mut check: impl FnMut(&Case)) {
    let mut random = Counter::new(1, 0);
    for alpha in ALPHAS {
        for method in methods(alpha, 0.5) {
            for (loss, output) in OUTPUTS {
                for schedule in SCHEDULES {
                    for &activation in Activation::ALL {
                        let mut draw = |n: usize| random.below(n as u64) as usize;
                        let settings = Settings {
                            loss,
                            output,
                            schedule,
                            optimizer: OPTIMIZERS[draw(3)],
                            decay: DECAYS[draw(3)],
                            seed: draw(1000) as u64,
                            ..Settings::new(method)
                        };
                        let widths = if matches!(method, Method::DpDamped { .. }) { GROWING } else { WIDTHS };
                        let (widths, batch, bias) = (widths[draw(3)], [1, 3, 17][draw(3)], draw(2) == 0);
                        let seed = draw(1 << 20) as u64;
                        if valid(&settings) {
                            check(&Case { widths, batch, activation, bias, settings, rate: 0.01, seed });
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn probe() {
    let mut n = 0;
    let mut bad = 0;
    let mut worst: Vec<(f64, String)> = Vec::new();
    for_all_cases(|case| {
        n += 1;
        for (i, v) in case.run::<f64>(2).into_iter().enumerate() {
            if !v.admitted { bad += 1; if bad < 40 { println!("step {i} {v:?} {case:?}"); } }
            worst.push((v.error / v.change, format!("{i} {v:?} {case:?}")));
        }
    });
    worst.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!("{n} cases, {bad} bad");
    for w in worst.iter().step_by(worst.len()/200 + 1).take(60) { println!("{:e} {}", w.0, w.1); }
    for w in worst.iter().take(30) { println!("{:e} {}", w.0, w.1); }
}
