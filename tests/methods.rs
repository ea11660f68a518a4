//! Whole training steps against `dualprop-reference`: every weight within the bound that the reference derives for it.

mod common;

use common::{SCHEDULES, labels, methods, network, runtime, uniform, values};
use dualprop::lipschitz::Tracking;
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

/// `λ_k` of the hidden layers as the trainer may compute it from its upper bound of `‖W_k‖₂`.
///
/// For few outputs the bound is that of `WWᵀ` in f64: its elements, the quotient below and Cholesky's algorithm above are off by
/// `γ_{n+8}‖W‖_F²`, `γ_{4m+8}‖W‖_F²` and `γ_{m+3}(m+2)‖W‖_F²`, with room of four times as much between; a change of the square moves the norm by
/// half of it over the norm. As much again, and some roundings in the type of the network, are left for the SVD here.
/// Errors `E` of the weights themselves move the norm by at most `‖E‖_F`.
fn lambdas(network: &reference::network::Network, alpha: f64, damping: Damping) -> Vec<Bounded> {
    let p = network.precision;
    let lambda = |weights: &Matrix| {
        let (m, n) = (weights.rows, weights.cols);
        assert!(n <= 6, "too many inputs, {m} × {n}");
        let of = |part: fn(Bounded) -> f64| Mat::from_fn(m, n, |i, j| part(weights[(i, j)]));
        let (value, error) = (of(|w| w.value), of(|w| w.error));
        let norms = value.singular_values().expect("a finite matrix has them");
        let (size, wide) = (value.norm_l2() + error.norm_l2(), Precision::F64);
        let square = 3.0 * (wide.gamma(4 * m + 8) + wide.gamma(m + 3) * (m + 2) as f64 + wide.gamma(n + 8)) * size * size;
        let rounding = p.gamma(2 * (m + 2 * n) + 4 * (m + n)) * value.norm_l2() + square / norms[0];
        let gamma = Bounded::new(norms[0], rounding + error.norm_l2(), p);
        let rule = match damping {
            Damping::Scaled => reference::relax::Damping::Asymmetric,
            _ => reference::relax::Damping::Plain,
        };
        rule.lambda(p.parameter(alpha), gamma)
    };
    network.weights[1..].iter().map(lambda).collect()
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
    /// What the reference follows.
    settings: Settings,
    random: Counter,
}

impl<T: Real> Pair<T> {
    fn new(fast: Trainer<T>, settings: Settings) -> Self {
        let network = fast.network();
        let weights: Vec<_> = (0..network.layers()).map(|k| values(network.weights(k))).collect();
        let activation = activation(network.activation());
        let mut slow = reference::network::Network::new(precision::<T>(), activation, network.widths(), &weights, None);
        if matches!(settings.method, Method::KpDp { .. }) {
            slow = slow.with_feedback(&weights);
        }
        let slow = reference::train::Trainer::new(slow, optimizer(settings.optimizer, 0.0), decay(settings.decay));
        Self { fast, slow, settings, random: Counter::new(settings.seed, u64::MAX) }
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

    /// The settings in the reference's words.
    fn recipe(&mut self) -> Recipe {
        use reference::network::{Method as Slow, Output as Rule};
        let mut output = match self.settings.output {
            Output::Linearized(NudgeAt::Initial) => Rule::LinearisedInitial,
            Output::Linearized(_) => Rule::LinearisedCurrent,
            _ => Rule::Proximal,
        };
        let method = match self.settings.method {
            Method::Backprop => Slow::Backprop,
            Method::Adversarial { beta } => Slow::Adversarial { step: beta },
            Method::Dp { alpha, beta } => Slow::Dp { alpha, beta },
            Method::DpTranspose { alpha, beta } => Slow::DpTranspose { alpha, beta },
            Method::DpDamped { alpha, beta, damping } => {
                Slow::DpDamped { alpha, beta, lambda: lambdas(&self.slow.network, alpha, damping) }
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
        let schedule = match self.settings.method {
            // Back-propagation does not use its schedule: there is one update, whatever it says.
            Method::Backprop | Method::Adversarial { .. } => reference::schedule::Schedule::Backward,
            _ => schedule(self.settings.schedule, self.fast.network().layers(), &mut self.random),
        };
        Recipe { method, loss: loss(self.settings.loss), output, schedule }
    }

    /// The reference's step. In a damped multistep the trainer's `λ` follows the weights from update to update.
    fn slow_step(&mut self, x: &Matrix, y: &Matrix) {
        let mut recipe = self.recipe();
        let (Method::DpDamped { .. }, Schedule::Multistep(updates)) = (self.settings.method, self.settings.schedule) else {
            return self.slow.step(&recipe, x, y);
        };
        let mut states = self.slow.network.infer(&recipe, x, y, None);
        self.slow.apply(&recipe, &self.slow.network.gradients(&recipe, &states));
        for _ in 1..updates {
            recipe = self.recipe();
            self.slow.network.resume(&recipe, x, y, &mut states);
            self.slow.apply(&recipe, &self.slow.network.gradients(&recipe, &states));
        }
    }

    /// A step of both from the trainer's weights, and what the reference makes of the trainer's result.
    fn step(&mut self, x: MatRef<'_, T>, y: MatRef<'_, T>, targets: Targets<'_, T>, rate: f64) -> Verdict {
        self.synchronize();
        let (x_slow, y_slow) = (exact(x), exact(y));
        let loss = self.slow.network.loss(loss(self.settings.loss), &x_slow, &y_slow);
        self.slow.optimizer = optimizer(self.settings.optimizer, rate);
        self.slow_step(&x_slow, &y_slow);
        let step = self.fast.step(x, targets, rate).expect("a sound step");
        let mut verdict = Verdict { admitted: loss.is_informative() && loss.admits(step.loss), resolution: 0.0 };
        let (bounds, got) = (self.bounds(), self.parameters());
        assert_eq!(bounds.len(), got.len());
        for (bound, got) in bounds.into_iter().zip(got) {
            verdict.admitted &= bound.admits(got);
            verdict.resolution = verdict.resolution.max(bound.error / rate);
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
    fn bounds(&self) -> Vec<Bounded> {
        let network = &self.slow.network;
        let feedback = network.feedback.iter().flatten();
        let matrices = network.weights.iter().chain(feedback).flat_map(|w| &w.data);
        matrices.chain(network.biases.iter().flatten().flatten()).copied().collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Verdict {
    /// Loss and parameters are within their bounds.
    admitted: bool,
    /// Largest bound on a parameter in units of the learning rate: a larger error of a gradient would have shown.
    resolution: f64,
}

/// A problem and its settings.
#[derive(Clone, Copy, Debug)]
struct Case {
    widths: &'static [usize],
    batch: usize,
    activation: Activation,
    bias: bool,
    settings: Settings,
    seed: u64,
}

impl Case {
    fn trainer<T: Real>(&self) -> Trainer<T> {
        let mut network = network::<T>(self.widths, self.activation, self.bias, self.seed);
        for k in 0..network.layers() {
            let mut weights = network.weights_mut(k);
            // Small enough that DP with α ≠ ½ does not diverge; for damping a norm above 1 along one direction (see `lambdas`).
            let (norm, scale) = match self.settings.method {
                Method::DpDamped { .. } if k > 0 => (1.25, 0.25),
                _ => (0.0, 0.75),
            };
            let mean = norm / ((weights.nrows() * weights.ncols()) as f64).sqrt();
            for i in 0..weights.nrows() {
                for j in 0..weights.ncols() {
                    weights[(i, j)] = T::from_f64(mean + scale * weights[(i, j)].to_f64());
                }
            }
        }
        // The tightest upper bound of the norms: that of an exhausted Krylov space (see `lambdas`).
        let tightest = Tracking { gap: f64::MIN_POSITIVE, ..Tracking::new() };
        let settings = Settings { norms: Some(tightest), ..self.settings };
        Trainer::new(network, &settings, self.batch, &runtime()).expect("sound settings")
    }

    /// Batch number `i`: inputs and targets; classes as one-hot rows too.
    fn batch<T: Real>(&self, i: u64) -> (Mat<T>, Mat<T>, Option<Vec<u32>>) {
        let (seed, n_out) = (64 * self.seed + i, self.widths[self.widths.len() - 1]);
        let x = uniform(self.batch, self.widths[0], [-1.0, 1.0], seed);
        if seed % 2 == 0 {
            return (x, uniform(self.batch, n_out, [0.0, 1.0], !seed), None);
        }
        let labels = labels(self.batch, n_out, seed);
        let y = Mat::from_fn(self.batch, n_out, |i, j| if labels[i] as usize == j { T::ONE } else { T::ZERO });
        (x, y, Some(labels))
    }

    /// Verdicts on the first steps of a trainer with these settings.
    fn run<T: Real>(&self, rates: &[f64]) -> Vec<Verdict> {
        self.judge(self.trainer::<T>(), rates)
    }

    /// Verdicts on the first steps of a trainer that should have these settings.
    fn judge<T: Real>(&self, fast: Trainer<T>, rates: &[f64]) -> Vec<Verdict> {
        let mut pair = Pair::new(fast, self.settings);
        let step = |(i, &rate): (usize, &f64)| {
            let (x, y, labels) = self.batch::<T>(i as u64);
            let targets = labels.as_deref().map_or(Targets::Values(y.as_ref()), Targets::Classes);
            pair.step(x.as_ref(), y.as_ref(), targets, rate)
        };
        rates.iter().enumerate().map(step).collect()
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

/// Every method, output, schedule, α and activation. Widths, batch, biases, optimizer and decay are drawn anew for each.
fn cases() -> Vec<Case> {
    let mut random = Counter::new(1, 0);
    let mut draw = |n: usize| random.below(n as u64) as usize;
    let mut cases = Vec::new();
    for alpha in ALPHAS {
        for method in methods(alpha, 0.25) {
            let widths = if matches!(method, Method::DpDamped { .. }) { GROWING } else { WIDTHS };
            for (loss, output) in OUTPUTS {
                for schedule in SCHEDULES {
                    for &activation in Activation::ALL {
                        let (optimizer, decay, seed) = (OPTIMIZERS[draw(3)], DECAYS[draw(3)], draw(1000) as u64);
                        let settings = Settings { loss, output, schedule, optimizer, decay, seed, ..Settings::new(method) };
                        let (widths, batch, bias) = (widths[draw(3)], [1, 3, 17][draw(3)], draw(2) == 0);
                        let case = Case { widths, batch, activation, bias, settings, seed: draw(1000) as u64 };
                        if valid(&settings) {
                            cases.push(case);
                        }
                    }
                }
            }
        }
    }
    cases
}

/// All verdicts admit, and this share of them could see an error of this size in a gradient. Interval bounds of DP with α ≠ ½ grow with
/// every round, and Adam divides by gradients however small: for some cases the reference has little to say.
#[track_caller]
fn assert_verdicts(verdicts: &[(Case, Verdict)], resolution: f64, share: f64) {
    for (case, verdict) in verdicts {
        assert!(verdict.admitted, "{verdict:?} {case:?}");
    }
    let sharp = verdicts.iter().filter(|(_, verdict)| verdict.resolution <= resolution).count();
    assert!(sharp as f64 >= share * verdicts.len() as f64, "only {sharp} of {} resolve {resolution}", verdicts.len());
}

#[test]
fn every_f64_step_equals_the_reference() {
    let of = |case: Case| case.run::<f64>(&[0.01; 2]).into_iter().map(move |verdict| (case, verdict));
    let verdicts: Vec<_> = cases().into_iter().flat_map(of).collect();
    assert_verdicts(&verdicts, 1e-8, 0.99);
    assert_verdicts(&verdicts, 1e-3, 0.999);
}

#[test]
fn f32_steps_equal_the_reference() {
    let of = |case: Case| case.run::<f32>(&[0.01; 2]).into_iter().map(move |verdict| (case, verdict));
    let verdicts: Vec<_> = cases().into_iter().step_by(7).flat_map(of).collect();
    assert_verdicts(&verdicts, 1e-2, 0.9);
}

/// A case with a visible effect of every setting.
fn case(method: Method) -> Case {
    let settings = Settings { schedule: Schedule::Rounds(1), optimizer: Optimizer::Sgd, seed: 5, ..Settings::new(method) };
    let widths = if matches!(method, Method::DpDamped { .. }) { GROWING[0] } else { WIDTHS[0] };
    Case { widths, batch: 3, activation: Activation::Tanh, bias: true, settings, seed: 3 }
}

#[test]
fn optimizers_and_decays_equal_the_reference_over_several_steps() {
    let mut verdicts = Vec::new();
    for method in methods(0.25, 0.25) {
        for optimizer in OPTIMIZERS.into_iter().chain([
            Optimizer::Momentum { mu: 0.0 },
            Optimizer::Momentum { mu: 0.3 },
            Optimizer::Adam { beta1: 0.0, beta2: 0.0, epsilon: 1e-3 },
            Optimizer::Adam { beta1: 0.7, beta2: 0.4, epsilon: 0.5 },
        ]) {
            for decay in DECAYS.into_iter().chain([Decay::Coupled(0.0), Decay::Decoupled(1.0)]) {
                let mut case = case(method);
                case.settings = Settings { optimizer, decay, ..case.settings };
                let rates = [0.01, 0.02, 0.005, 0.25, 0.0078125, 0.01];
                verdicts.extend(case.run::<f64>(&rates).into_iter().map(|verdict| (case, verdict)));
            }
        }
    }
    assert_verdicts(&verdicts, 1e-8, 0.999);
}

#[test]
fn schedules_without_a_pass_equal_the_reference() {
    let mut verdicts = Vec::new();
    for method in methods(0.25, 0.25) {
        for schedule in [
            Schedule::Forward(0),
            Schedule::ForwardBackward(0),
            Schedule::OddEven(0),
            Schedule::EvenOdd(0),
            Schedule::Parallel(0),
            Schedule::Parallel(2),
            Schedule::Random(0),
            Schedule::Corrupted(0),
            Schedule::Multistep(0),
        ] {
            let mut case = case(method);
            case.settings.schedule = schedule;
            verdicts.extend(case.run::<f64>(&[0.25; 2]).into_iter().map(|verdict| (case, verdict)));
        }
    }
    assert_verdicts(&verdicts, 1e-8, 1.0);
}

#[test]
fn wrong_settings_are_refused() {
    // A millionth more.
    const MORE: f64 = 1.0 + 1e-6;
    let judge = |right: Case, wrong: Settings| right.judge(Case { settings: wrong, ..right }.trainer::<f64>(), &[0.25; 2])[1];
    let [right, other_alpha, other_beta] =
        [methods(0.25, 0.25), methods(0.25 * MORE, 0.25), methods(0.25, 0.25 * MORE)].map(|methods| methods.map(case));
    for (i, right) in right.into_iter().enumerate() {
        let settings = right.settings;
        assert!(judge(right, settings).admitted, "{right:?}");
        for wrong in [other_alpha[i], other_beta[i]] {
            let visible = wrong.settings != settings;
            assert_eq!(judge(right, wrong.settings).admitted, !visible, "{:?} for {right:?}", wrong.settings.method);
        }
        let mut wrong = vec![
            Settings { optimizer: Optimizer::MOMENTUM, ..settings },
            Settings { decay: Decay::Coupled(1e-6), ..settings },
            Settings { decay: Decay::Decoupled(1e-6), ..settings },
            Settings { loss: Loss::CrossEntropy, output: Output::Linearized(NudgeAt::Current), ..settings },
        ];
        if settings.method.alpha().is_some() {
            let output = Output::Linearized(NudgeAt::Initial);
            wrong.extend([Settings { output, ..settings }, Settings { schedule: Schedule::Forward(3), ..settings }]);
        }
        for wrong in wrong {
            assert!(!judge(right, wrong).admitted, "{wrong:?} for {right:?}");
        }
    }
    let [dp, transposed] = [right[2], right[3]];
    assert!(!judge(dp, Settings { method: transposed.settings.method, ..dp.settings }).admitted, "DP⊤ for DP");
    let right = Case { settings: Settings { optimizer: Optimizer::ADAM, decay: Decay::Coupled(0.1), ..dp.settings }, ..dp };
    assert!(!judge(right, Settings { decay: Decay::Decoupled(0.1), ..right.settings }).admitted, "decoupled for coupled");
}

#[test]
fn predictions_and_evaluations_equal_the_reference() {
    // More samples than are evaluated at once, and views of any strides.
    const SAMPLES: usize = 600;
    fn check<T: Real>(loss_: Loss, bias: bool) {
        let network = network::<T>(&[5, 7, 6, 4], Activation::Sigmoid, bias, 1);
        let settings = Settings { loss: loss_, ..Settings::new(Method::Backprop) };
        let trainer = Trainer::new(network, &settings, 3, &runtime()).expect("sound settings");
        let mut pair = Pair::new(trainer, settings);
        pair.synchronize();
        let x = uniform::<T>(SAMPLES, 5, [-1.0, 1.0], 1);
        let labels = labels(SAMPLES, 4, 1);
        let y = Mat::from_fn(SAMPLES, 4, |i, j| if labels[i] as usize == j { T::ONE } else { T::ZERO });
        let expected = pair.slow.network.predict(&exact(x.as_ref()));
        let loss = loss(loss_).mean(&expected, &exact(y.as_ref()));

        let rows = Mat::from_fn(5, SAMPLES, |j, i| x[(i, j)]);
        let reversed = Mat::from_fn(SAMPLES, 5, |i, j| x[(SAMPLES - 1 - i, 4 - j)]);
        let inside = |i: usize, j: usize| (1..=SAMPLES).contains(&i) && (2..7).contains(&j);
        let part = Mat::from_fn(SAMPLES + 2, 9, |i, j| if inside(i, j) { x[(i - 1, j - 2)] } else { T::from_f64(f64::NAN) });
        let part = part.as_ref().submatrix(1, 2, SAMPLES, 5);
        for x in [x.as_ref(), rows.transpose(), reversed.as_ref().reverse_rows_and_cols(), part] {
            let mut out = Mat::from_fn(SAMPLES, 4, |_, _| T::ZERO);
            pair.fast.predict(x, out.as_mut()).expect("sound arguments");
            assert_eq!(expected.first_refused(&values(out.as_ref())), None);
            let hits = (0..SAMPLES).filter(|&i| (0..4).all(|j| out[(i, j)] <= out[(i, labels[i] as usize)])).count();
            for targets in [Targets::Classes(&labels), Targets::Values(y.as_ref())] {
                let evaluation = pair.fast.evaluate(x, targets).expect("sound arguments");
                assert!(loss.is_informative() && loss.admits(evaluation.loss), "{evaluation:?} {loss:?}");
                assert_eq!(evaluation.accuracy, hits as f64 / SAMPLES as f64);
            }
        }
        assert_eq!(pair.fast.predict(x.subrows(0, 0), Mat::from_fn(0, 4, |_, _| T::ZERO).as_mut()), Ok(()));
    }
    for bias in [false, true] {
        for loss in [Loss::Squared, Loss::CrossEntropy] {
            check::<f32>(loss, bias);
            check::<f64>(loss, bias);
        }
    }
}

#[test]
fn hits_are_counted() {
    let mut network = dualprop::network::Network::<f64>::new(&[4, 4], Activation::Relu, false).expect("sound widths");
    for i in 0..4 {
        network.weights_mut(0)[(i, i)] = 1.0;
    }
    let x = Mat::from_fn(8, 4, |i, j| if i % 4 == j { 1.0 } else { 0.0 });
    let labels = [0, 1, 2, 3, 1, 1, 1, 1];
    for method in methods(0.5, 0.5) {
        let mut trainer = Trainer::new(network.clone(), &Settings::new(method), 8, &runtime()).expect("sound settings");
        let evaluation = trainer.evaluate(x.as_ref(), Targets::Classes(&labels)).expect("a sound batch");
        // Five hits; each of the three misses has ½(1² + 1²).
        assert_eq!((evaluation.accuracy, evaluation.loss), (0.625, 0.375));
        let step = trainer.step(x.as_ref(), Targets::Classes(&labels), 0.5).expect("a sound batch");
        assert_eq!((step.correct, step.loss), (5, 0.375));
    }
}
