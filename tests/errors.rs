//! Bad input is an error that names the argument, its value and what is allowed, and changes nothing; nothing panics.

mod common;

use common::{bits, labels, methods, network, runtime, uniform};
use dualprop::hebbian::{self, Update};
use dualprop::lipschitz::{Dense, lower_bound};
use dualprop::network::{
    Decay, Init, LearningRate, Loss, Method, Network, NudgeAt, Optimizer, Output, Schedule, Settings, Targets, Trainer,
};
use dualprop::{Activation, Error, Isa, Mat, MatRef, Real, Runtime};
use proptest::prelude::*;

const WIDTHS: [usize; 3] = [3, 5, 4];
const BATCH: usize = 2;
const CURRENT: Output = Output::Linearized(NudgeAt::Current);

fn dp(alpha: f64, beta: f64) -> Settings {
    Settings::new(Method::Dp { alpha, beta })
}

/// The message for settings, which `Settings::check` and `Trainer::new` must both refuse.
#[track_caller]
fn refused(settings: Settings) -> String {
    let message = settings.check().expect_err("bad settings").to_string();
    let network = network::<f32>(&WIDTHS, Activation::Relu, true, 1);
    let error = Trainer::new(network, &settings, BATCH, &runtime()).expect_err("bad settings");
    assert_eq!(error.to_string(), message);
    message
}

#[test]
fn parameters_of_methods() {
    for (alpha, value) in [(-0.1, "-0.1"), (1.5, "1.5"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        for method in methods(alpha, 0.5).into_iter().filter(|method| method.alpha().is_some()) {
            assert_eq!(refused(Settings::new(method)), format!("alpha is {value}, but must be from 0 to 1"), "{method:?}");
        }
    }
    for (beta, value) in [(0.0, "0"), (-0.5, "-0.5"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        for method in methods(0.5, beta).into_iter().filter(|method| method.beta().is_some()) {
            assert_eq!(refused(Settings::new(method)), format!("beta is {value}, but must be positive and finite"), "{method:?}");
        }
        let gain = Settings::new(Method::DpGain { gain: beta });
        assert_eq!(refused(gain), format!("gain is {value}, but must be above 0 and below 2"));
    }
    assert_eq!(refused(Settings::new(Method::DpGain { gain: 2.0 })), "gain is 2, but must be above 0 and below 2");
    let gain = Settings { output: CURRENT, ..Settings::new(Method::DpGain { gain: 2.5 }) };
    assert_eq!(refused(gain), "gain is 2.5, but must be above 0 and below 2");
}

#[test]
fn outputs_without_a_solution() {
    for (alpha, beta) in [(0.0, 1.0), (0.5, 2.0), (0.25, 1.5)] {
        let allowed = "such that (1 − alpha)·beta is below 1 with the prox output";
        for method in methods(alpha, beta).into_iter().filter(|method| method.alpha().is_some()) {
            let settings = Settings { output: Output::Prox, ..Settings::new(method) };
            assert_eq!(refused(settings), format!("beta is {beta}, but must be {allowed}"));
            assert_eq!(Settings { output: CURRENT, ..settings }.check(), Ok(()));
        }
    }
    assert_eq!(dp(1.0, 1e3).check(), Ok(()));
    let message = refused(Settings { loss: Loss::CrossEntropy, ..dp(0.5, 0.5) });
    assert_eq!(message, "output is prox, but must be linearized with the cross-entropy loss, which has no closed-form prox");
    assert_eq!(Settings { loss: Loss::CrossEntropy, output: CURRENT, ..dp(0.5, 0.5) }.check(), Ok(()));
    assert_eq!(Settings { loss: Loss::CrossEntropy, ..Settings::new(Method::Backprop) }.check(), Ok(()));
}

#[test]
fn parameters_of_optimizers() {
    let with = |optimizer| refused(Settings { optimizer, ..dp(0.5, 0.5) });
    let adam = |beta1, beta2, epsilon| with(Optimizer::Adam { beta1, beta2, epsilon });
    for (value, text) in [(-0.1, "-0.1"), (1.0, "1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        assert_eq!(with(Optimizer::Momentum { mu: value }), format!("mu is {text}, but must be at least 0 and below 1"));
        assert_eq!(adam(value, 0.9, 1e-8), format!("beta1 is {text}, but must be at least 0 and below 1"));
        assert_eq!(adam(0.9, value, 1e-8), format!("beta2 is {text}, but must be at least 0 and below 1"));
    }
    for (value, text) in [(0.0, "0"), (-1e-8, "-0.00000001"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        assert_eq!(adam(0.9, 0.9, value), format!("epsilon is {text}, but must be positive and finite"));
    }
    for (value, text) in [(-0.5, "-0.5"), (1.5, "1.5"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        for decay in [Decay::Coupled(value), Decay::Decoupled(value)] {
            let message = refused(Settings { decay, ..dp(0.5, 0.5) });
            assert_eq!(message, format!("weight decay is {text}, but must be from 0 to 1"));
        }
    }
}

#[test]
fn learning_rate_schedules() {
    let good = LearningRate { start: 0.0, peak: 0.1, end: 0.01, warmup: 3.0, total: 10.0 };
    assert_eq!(good.check(), Ok(()));
    let error = |rate: LearningRate| rate.check().expect_err("a bad schedule").to_string();
    assert_eq!(error(LearningRate { start: -1.0, ..good }), "start is -1, but must be finite and at least 0");
    assert_eq!(error(LearningRate { peak: f64::NAN, ..good }), "peak is NaN, but must be finite and at least 0");
    assert_eq!(error(LearningRate { end: f64::INFINITY, ..good }), "end is inf, but must be finite and at least 0");
    assert_eq!(error(LearningRate { total: f64::NAN, ..good }), "total is NaN, but must be finite and at least 0");
    assert_eq!(error(LearningRate { warmup: 11.0, ..good }), "warmup is 11, but must be no longer than the whole schedule");
    assert_eq!(error(LearningRate { total: 0.0, ..good }), "warmup is 3, but must be no longer than the whole schedule");
    assert_eq!(LearningRate::constant(0.1).check(), Ok(()));
}

#[test]
fn widths_and_batches() {
    let error = |widths: &[usize]| Network::<f32>::new(widths, Activation::Tanh, true).expect_err("bad widths");
    assert_eq!(error(&[]), Error::Length { argument: "widths", found: 0, expected: 2 });
    assert_eq!(error(&[3]), Error::Length { argument: "widths", found: 1, expected: 2 });
    assert_eq!(error(&[3, 0, 4]).to_string(), "width is 0, but must be at least 1");
    assert_eq!(error(&[0, 4]).to_string(), "width is 0, but must be at least 1");
    let network = network::<f64>(&WIDTHS, Activation::Tanh, true, 1);
    let error = Trainer::new(network, &dp(0.5, 0.5), 0, &runtime()).expect_err("an empty batch");
    assert_eq!(error.to_string(), "batch is 0, but must be at least 1");
}

#[test]
fn sizes_beyond_the_address_space() {
    for widths in [[usize::MAX, 1], [1, usize::MAX], [1 << 40, 1 << 40], [usize::MAX / 4, 4]] {
        assert!(Network::<f32>::new(&widths, Activation::Tanh, false).is_err(), "{widths:?}");
    }
    for batch in [usize::MAX, usize::MAX / 4, 1 << 62] {
        let network = network::<f32>(&WIDTHS, Activation::Tanh, true, 1);
        assert!(Trainer::new(network, &dp(0.5, 0.5), batch, &runtime()).is_err(), "a batch of {batch}");
    }
}

#[test]
fn nudges_too_small_for_the_type() {
    // 1/β is infinite in f32.
    let new =
        |method| Trainer::new(network::<f32>(&WIDTHS, Activation::Tanh, true, 1), &Settings::new(method), BATCH, &runtime());
    let message = new(Method::Dp { alpha: 0.5, beta: 1e-39 }).expect_err("a β too small").to_string();
    assert!(message.starts_with("beta is 0.000") && message.ends_with("the gradient's factor 1/beta is finite"), "{message}");
    assert!(new(Method::Dp { alpha: 0.5, beta: 1e-38 }).is_ok());
    let message = new(Method::DpGain { gain: 1e-20 }).expect_err("a γ too small").to_string();
    assert!(message.starts_with("gain is 0.000"), "{message}");
}

#[test]
fn weights_that_are_not_finite() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut weights = network::<f32>(&WIDTHS, Activation::Tanh, true, 1);
        weights.weights_mut(1)[(2, 3)] = value;
        let error = Trainer::new(weights, &dp(0.5, 0.5), BATCH, &runtime()).expect_err("bad weights");
        assert_eq!(error.to_string(), format!("weights has {value} at row 2, column 3, but must be finite"));
        let mut bias = network::<f32>(&WIDTHS, Activation::Tanh, true, 1);
        bias.bias_mut(0).expect("biases")[4] = value;
        let error = Trainer::new(bias, &dp(0.5, 0.5), BATCH, &runtime()).expect_err("bad biases");
        assert_eq!(error.to_string(), format!("bias has {value} at row 0, column 4, but must be finite"));
    }
}

/// Every bad call of a trainer for batches of 2 samples with 3 inputs and 4 outputs, with its message.
fn bad_calls(trainer: &mut Trainer<f64>) -> Vec<(Error, &'static str)> {
    let x = |rows, cols| uniform::<f64>(rows, cols, [0.0, 1.0], 1);
    let (good, mut nan) = (x(BATCH, 3), x(BATCH, 3));
    nan[(1, 2)] = f64::NAN;
    let (values, mut infinite) = (x(BATCH, 4), x(BATCH, 4));
    infinite[(0, 3)] = f64::NEG_INFINITY;
    let classes = Targets::Classes(&[1, 3]);
    let mut errors = Vec::new();
    let rate = "learning_rate is";
    for (x, targets, learning_rate, message) in [
        (&x(BATCH, 4), classes, 0.1, "x is 2 × 4, but must be 2 × 3"),
        (&x(3, 3), classes, 0.1, "x is 3 × 3, but must be 2 × 3"),
        (&x(0, 3), classes, 0.1, "x is 0 × 3, but must be 2 × 3"),
        (&nan, classes, 0.1, "x has NaN at row 1, column 2, but must be finite"),
        (&good, Targets::Classes(&[1]), 0.1, "targets has 1 elements, but must have 2"),
        (&good, Targets::Classes(&[]), 0.1, "targets has 0 elements, but must have 2"),
        (&good, Targets::Classes(&[3, 4]), 0.1, "label 1 of the batch is 4, but must be below the 4 outputs"),
        (&good, Targets::Classes(&[u32::MAX, 0]), 0.1, "label 0 of the batch is 4294967295, but must be below the 4 outputs"),
        (&good, Targets::Values(good.as_ref()), 0.1, "targets is 2 × 3, but must be 2 × 4"),
        (&good, Targets::Values(infinite.as_ref()), 0.1, "targets has -inf at row 0, column 3, but must be finite"),
        (&good, classes, -0.1, "learning_rate is -0.1, but must be from 0 to 1e6"),
        (&good, classes, f64::NAN, "learning_rate is NaN, but must be from 0 to 1e6"),
        (&good, classes, f64::INFINITY, "learning_rate is inf, but must be from 0 to 1e6"),
        (&good, classes, 2e6, "learning_rate is 2000000, but must be from 0 to 1e6"),
        (&good, classes, 3.0, "learning_rate is 3, but must be such that learning rate times weight decay is at most 1"),
    ] {
        errors.push((trainer.step(x.as_ref(), targets, learning_rate).expect_err(message), message));
        if message.starts_with(rate) {
            continue;
        }
        errors.push((trainer.infer(x.as_ref(), targets).expect_err(message), message));
        // These take any number of samples; that of the targets has to be the same.
        if x.nrows() == BATCH {
            errors.push((trainer.evaluate(x.as_ref(), targets).expect_err(message), message));
        }
    }
    let no_samples = trainer.evaluate(x(0, 3).as_ref(), Targets::Classes(&[])).expect_err("no samples");
    errors.push((no_samples, "samples is 0, but must be at least 1"));
    let mut predict =
        |x: MatRef<'_, f64>, rows, cols| trainer.predict(x, Mat::zeros(rows, cols).as_mut()).expect_err("a bad call");
    errors.push((predict(values.as_ref(), 2, 4), "x is 2 × 4, but must be 2 × 3"));
    errors.push((predict(good.as_ref(), 2, 3), "out is 2 × 3, but must be 2 × 4"));
    errors.push((predict(good.as_ref(), 1, 4), "out is 1 × 4, but must be 2 × 4"));
    errors.push((predict(nan.as_ref(), 2, 4), "x has NaN at row 1, column 2, but must be finite"));
    let mut gradient =
        |k, rows, bias: &mut [f64]| trainer.gradient(k, Mat::zeros(rows, 5).as_mut(), bias).expect_err("a bad call");
    errors.push((gradient(2, 4, &mut [0.0; 4]), "k is 2, but must be below the number of weight layers"));
    errors.push((gradient(1, 3, &mut [0.0; 4]), "weights is 3 × 5, but must be 4 × 5"));
    errors.push((gradient(1, 4, &mut [0.0; 3]), "bias has 3 elements, but must have 4"));
    errors
}

#[test]
fn bad_calls_are_named_and_leave_no_trace() {
    for schedule in common::SCHEDULES {
        for method in methods(0.25, 0.25) {
            let settings = Settings { schedule, decay: Decay::Coupled(0.5), ..Settings::new(method) };
            let network = network::<f64>(&WIDTHS, Activation::Tanh, true, 1);
            let fresh = Trainer::new(network, &settings, BATCH, &runtime()).expect("sound settings");
            let mut trainers = [fresh.clone(), fresh];
            for i in 0..3 {
                let before = bits(&trainers[0]);
                for (error, message) in bad_calls(&mut trainers[0]) {
                    assert_eq!(error.to_string(), message, "{settings:?}");
                }
                assert_eq!(bits(&trainers[0]), before, "{settings:?}");
                for trainer in &mut trainers {
                    let (x, labels) = (uniform::<f64>(BATCH, 3, [0.0, 1.0], i), labels(BATCH, 4, i));
                    trainer.step(x.as_ref(), Targets::Classes(&labels), 0.01).expect("a sound step");
                }
                // The one that was not bothered has the same weights.
                assert_eq!(bits(&trainers[0]), bits(&trainers[1]), "step {i}: {settings:?}");
            }
        }
    }
}

#[test]
fn divergence_keeps_the_weights() {
    fn check<T: Real>() {
        let mut network = network::<T>(&[6, 20, 20, 4], Activation::Relu, true, 1);
        for k in 0..3 {
            let mut weights = network.weights_mut(k);
            for i in 0..weights.nrows() {
                for j in 0..weights.ncols() {
                    weights[(i, j)] = T::from_f64(3.0 * weights[(i, j)].to_f64());
                }
            }
        }
        let settings = Settings { schedule: Schedule::Rounds(1000), ..dp(0.0, 0.5) };
        let mut trainer = Trainer::new(network, &settings, 5, &runtime()).expect("sound settings");
        let before = bits(&trainer);
        for step in 1..=3 {
            let (x, labels) = (uniform::<T>(5, 6, [0.0, 1.0], step), labels(5, 4, step));
            let error = trainer.step(x.as_ref(), Targets::Classes(&labels), 0.01).expect_err("it diverges");
            assert!(matches!(error, Error::Diverged { layer: 1..=3, step: at } if at == step), "{error:?}");
            let message = error.to_string();
            assert!(message.ends_with(&format!("at step {step}; the weights are those of before that step")), "{message}");
            assert_eq!(bits(&trainer), before);
        }
        let x = uniform::<T>(5, 6, [0.0, 1.0], 1);
        let evaluation = trainer.evaluate(x.as_ref(), Targets::Classes(&[0, 1, 2, 3, 0])).expect("finite weights");
        assert!(evaluation.loss.is_finite());
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn divergence_over_many_steps_keeps_the_weights_finite() {
    // Back-propagation at a rate far too large: the weights grow until a step is refused, again and again.
    for optimizer in [Optimizer::Sgd, Optimizer::MOMENTUM, Optimizer::ADAM] {
        let settings = Settings { optimizer, ..Settings::new(Method::Backprop) };
        let network = network::<f32>(&[6, 20, 4], Activation::Identity, true, 1);
        let mut trainer = Trainer::new(network, &settings, 5, &runtime()).expect("sound settings");
        let mut refused = 0;
        for i in 0..50 {
            let (x, labels, before) = (uniform::<f32>(5, 6, [0.0, 1.0], i), labels(5, 4, i), bits(&trainer));
            if let Err(error) = trainer.step(x.as_ref(), Targets::Classes(&labels), 1e6) {
                assert!(matches!(error, Error::Diverged { step, .. } if step == i + 1), "{error:?}");
                assert_eq!(bits(&trainer), before);
                refused += 1;
            }
            assert!(finite(&trainer), "{optimizer:?}, step {i}");
        }
        assert!(refused > 0, "{optimizer:?}");
    }
}

fn finite<T: Real>(trainer: &Trainer<T>) -> bool {
    let network = trainer.network();
    (0..network.layers()).all(|k| {
        let matrices = [Some(network.weights(k)), trainer.feedback(k)];
        let mut biases = network.bias(k).into_iter().flatten();
        matrices.into_iter().flatten().all(|w| common::values(w).iter().all(|w| w.is_finite())) && biases.all(|b| b.is_finite())
    })
}

/// A step of a network of one weight whose gradient is 0, with any sound optimizer and decay.
fn step_without_gradient<T: Real>(optimizer: Optimizer, decay: Decay, rate: f64) -> bool {
    let mut network = Network::<T>::new(&[1, 1], Activation::Relu, true).expect("sound widths");
    network.weights_mut(0)[(0, 0)] = T::from_f64(2.0);
    let settings = Settings { optimizer, decay, ..Settings::new(Method::Backprop) };
    let Ok(mut trainer) = Trainer::new(network, &settings, 1, &runtime()) else { return true };
    let (x, y) = (Mat::from_fn(1, 1, |_, _| T::ZERO), Mat::from_fn(1, 1, |_, _| T::ZERO));
    let before = bits(&trainer);
    let stepped = trainer.step(x.as_ref(), Targets::Values(y.as_ref()), rate).is_ok();
    finite(&trainer) && (stepped || bits(&trainer) == before)
}

#[test]
fn an_epsilon_too_small_for_the_type_is_no_division_by_zero() {
    assert!(step_without_gradient::<f32>(Optimizer::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-60 }, Decay::None, 1e-3));
    assert!(step_without_gradient::<f64>(Optimizer::Adam { beta1: 0.9, beta2: 0.999, epsilon: 5e-324 }, Decay::None, 1e-3));
}

#[test]
fn an_epsilon_too_small_for_a_past_gradient_keeps_the_weights_finite() {
    fn after_a_gradient<T: Real>(epsilon: f64) -> bool {
        let mut network = Network::<T>::new(&[1, 1], Activation::Identity, false).expect("sound widths");
        network.weights_mut(0)[(0, 0)] = T::ONE;
        let optimizer = Optimizer::Adam { beta1: 0.5, beta2: 0.0, epsilon };
        let settings = Settings { optimizer, ..Settings::new(Method::Backprop) };
        let Ok(mut trainer) = Trainer::new(network, &settings, 1, &runtime()) else { return false };
        for x in [T::ONE, T::ZERO] {
            let (x, y) = (Mat::from_fn(1, 1, |_, _| x), Mat::from_fn(1, 1, |_, _| T::ZERO));
            trainer.step(x.as_ref(), Targets::Values(y.as_ref()), 0.5).expect("a finite step");
            assert!(finite(&trainer), "{epsilon:e}");
        }
        true
    }
    assert!(!after_a_gradient::<f32>(1e-40) && after_a_gradient::<f32>(1e-20));
    assert!(!after_a_gradient::<f64>(1e-310) && after_a_gradient::<f64>(1e-158));
}

#[test]
fn weights_too_large_to_be_squared_by_coupled_decay_keep_finite() {
    fn check<T: Real>(weight: f64, optimizer: Optimizer, goes_on: bool) {
        let mut network = Network::<T>::new(&[1, 1], Activation::Identity, false).expect("sound widths");
        network.weights_mut(0)[(0, 0)] = T::from_f64(weight);
        let settings = Settings { optimizer, decay: Decay::Coupled(1.0), ..Settings::new(Method::Backprop) };
        let mut trainer = Trainer::new(network, &settings, 1, &runtime()).expect("sound settings");
        let zero = Mat::from_fn(1, 1, |_, _| T::ZERO);
        for _ in 0..3 {
            let step = trainer.step(zero.as_ref(), Targets::Values(zero.as_ref()), 0.0);
            assert_eq!(step.is_ok(), goes_on, "{weight:e}, {optimizer:?}");
            assert!(finite(&trainer), "{weight:e}, {optimizer:?}");
        }
    }
    let adam = Optimizer::Adam { beta1: 0.5, beta2: 0.0, epsilon: 1e-8 };
    for optimizer in [adam, Optimizer::MOMENTUM] {
        check::<f32>(1e30, optimizer, false);
        check::<f32>(1e15, optimizer, true);
        check::<f64>(1e300, optimizer, false);
        check::<f64>(1e120, optimizer, true);
    }
    check::<f64>(1e300, Optimizer::Sgd, true);
}

#[test]
fn a_decay_too_large_for_the_type_keeps_the_weights_finite() {
    for optimizer in [Optimizer::Sgd, Optimizer::MOMENTUM, Optimizer::ADAM] {
        assert!(step_without_gradient::<f32>(optimizer, Decay::Coupled(1e300), 0.0), "{optimizer:?}");
        assert!(step_without_gradient::<f64>(optimizer, Decay::Coupled(1.5e308), 1e-310), "{optimizer:?}");
    }
}

#[test]
fn a_nudge_too_large_for_a_sum_keeps_the_weights_finite() {
    // Each difference is finite, their sum over the batch is not; times 1/β it would have been.
    fn check<T: Real>(beta: f64) {
        let settings = Settings { output: CURRENT, ..dp(0.5, beta) };
        let network = Network::<T>::new(&[1, 1], Activation::Relu, true).expect("sound widths");
        let mut trainer = Trainer::new(network, &settings, 4, &runtime()).expect("sound settings");
        let ones = Mat::from_fn(4, 1, |_, _| T::ONE);
        let (before, result) = (bits(&trainer), trainer.step(ones.as_ref(), Targets::Values(ones.as_ref()), 0.5).map(|_| ()));
        assert!(finite(&trainer), "β = {beta:e} in {}, {result:?}", T::NAME);
        assert!(result.is_ok() || bits(&trainer) == before);
    }
    check::<f32>(1e20);
    check::<f32>(2e38);
    check::<f64>(1e160);
    check::<f64>(1e308);
}

/// What `Runtime::from_env` says in a process of its own, whose environment has this variable.
fn runtime_with(variable: &str, value: &str) -> String {
    let tests = std::env::current_exe().expect("a path");
    let mut child = std::process::Command::new(tests);
    child.args(["--exact", "report_runtime", "--ignored", "--nocapture"]);
    child.env_remove("DUALPROP_ISA").env_remove("DUALPROP_NUM_THREADS").env_remove("DUALPROP_VERBOSE").env(variable, value);
    let output = child.output().expect("the tests run");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("plain text");
    let (_, report) = text.split_once("RUNTIME ").expect("a report");
    report.lines().next().expect("a line").to_owned()
}

#[test]
#[ignore = "only to be run in a process of its own, by `the_environment_is_checked`"]
fn report_runtime() {
    match Runtime::from_env() {
        Ok(runtime) => println!("RUNTIME {} on {}", runtime.isa(), runtime.threads()),
        Err(error) => println!("RUNTIME {error}"),
    }
}

#[test]
fn the_environment_is_checked() {
    let names = Isa::NAMES.join(", ");
    for value in ["sse9", "", "AVX2", "avx2 "] {
        assert_eq!(runtime_with("DUALPROP_ISA", value), format!("DUALPROP_ISA is {value:?}, but must be one of {names}"));
    }
    let available: Vec<_> = Isa::available().map(Isa::name).collect();
    for &name in Isa::NAMES {
        let expected = if available.contains(&name) {
            format!("{name} on 1")
        } else {
            let allowed = format!("an instruction set that this machine supports: {}", available.join(", "));
            format!("DUALPROP_ISA is {name:?}, but must be {allowed}")
        };
        assert_eq!(runtime_with("DUALPROP_ISA", name), expected);
    }
    assert_eq!(runtime_with("DUALPROP_NUM_THREADS", "3"), format!("{} on 3", Isa::best()));
    for value in ["two", "-1", "1.5", ""] {
        let expected = format!("DUALPROP_NUM_THREADS is {value:?}, but must be a number of threads, 0 for one on each core");
        assert_eq!(runtime_with("DUALPROP_NUM_THREADS", value), expected);
    }
}

/// Any number, most often one of ordinary size.
fn number() -> impl Strategy<Value = f64> + Clone {
    let special = [0.0, -0.0, 1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE, 5e-324];
    prop_oneof![8 => -2.0..2.0, 1 => any::<f64>(), 1 => proptest::sample::select(special.to_vec())]
}

/// A number that is most often from this range.
fn mostly(range: core::ops::Range<f64>) -> impl Strategy<Value = f64> {
    prop_oneof![12 => range, 1 => number()]
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let method = (0..9usize, mostly(0.0..1.0), mostly(0.01..0.9)).prop_map(|(i, alpha, beta)| methods(alpha, beta)[i]);
    let output = proptest::sample::select(vec![Output::Prox, Output::Linearized(NudgeAt::Initial), CURRENT]);
    let schedule = (0..10usize, 0..5usize).prop_map(|(i, n)| {
        [
            Schedule::Rounds(n),
            Schedule::Forward(n),
            Schedule::Backward,
            Schedule::ForwardBackward(n),
            Schedule::OddEven(n),
            Schedule::EvenOdd(n),
            Schedule::Parallel(n),
            Schedule::Random(n),
            Schedule::Corrupted(n),
            Schedule::Multistep(n),
        ][i]
    });
    let adam = (mostly(0.0..1.0), mostly(0.0..1.0), mostly(1e-9..1e-3));
    let optimizer = prop_oneof![
        Just(Optimizer::Sgd),
        mostly(0.0..1.0).prop_map(|mu| Optimizer::Momentum { mu }),
        adam.prop_map(|(beta1, beta2, epsilon)| Optimizer::Adam { beta1, beta2, epsilon }),
    ];
    let decay =
        prop_oneof![Just(Decay::None), mostly(0.0..0.1).prop_map(Decay::Coupled), mostly(0.0..0.1).prop_map(Decay::Decoupled)];
    let loss = proptest::sample::select(vec![Loss::Squared, Loss::CrossEntropy]);
    let rest = (any::<u64>(), any::<bool>(), any::<bool>());
    (method, loss, output, schedule, optimizer, decay, rest).prop_map(
        |(method, loss, output, schedule, optimizer, decay, (seed, alignment, skip))| Settings {
            loss,
            output,
            schedule,
            optimizer,
            decay,
            seed,
            alignment,
            skip,
            ..Settings::new(method)
        },
    )
}

/// A matrix and how to look at it.
#[derive(Clone, Debug)]
struct Data {
    rows: usize,
    cols: usize,
    entries: Vec<f64>,
    view: u8,
}

impl Data {
    /// Mostly of this shape, mostly of ordinary numbers.
    fn any(rows: usize, cols: usize) -> impl Strategy<Value = Self> {
        let shape = prop_oneof![12 => Just((rows, cols)), 1 => (0..6usize, 0..6usize)];
        (shape, 0..4u8, 0..16u8).prop_flat_map(|((rows, cols), view, kind)| {
            let entry = if kind == 0 { number().boxed() } else { (-2.0..2.0).boxed() };
            proptest::collection::vec(entry, rows * cols).prop_map(move |entries| Self { rows, cols, entries, view })
        })
    }

    /// Hands over a view of the matrix with other strides: by rows, by columns, backwards, a part.
    fn with<T: Real, R>(&self, use_it: impl FnOnce(MatRef<'_, T>) -> R) -> R {
        let (m, n) = (self.rows, self.cols);
        let at = |i: usize, j: usize| T::from_f64(self.entries[i * n + j]);
        match self.view {
            0 => use_it(Mat::from_fn(m, n, at).as_ref()),
            1 => use_it(Mat::from_fn(n, m, |j, i| at(i, j)).transpose()),
            2 => use_it(Mat::from_fn(m, n, |i, j| at(m - 1 - i, n - 1 - j)).as_ref().reverse_rows_and_cols()),
            _ => use_it(Mat::from_fn(m + 3, n + 1, |i, j| if i < m && j < n { at(i, j) } else { T::ONE }).submatrix(0, 0, m, n)),
        }
    }
}

/// A network, settings and calls.
#[derive(Clone, Debug)]
struct Calls {
    widths: Vec<usize>,
    activation: Activation,
    bias: bool,
    init: Option<Init>,
    settings: Settings,
    batch: usize,
    x: Data,
    values: Data,
    classes: Option<Vec<u32>>,
    out: (usize, usize),
    rates: [f64; 2],
}

fn any_calls() -> impl Strategy<Value = Calls> {
    let widths = prop_oneof![12 => proptest::collection::vec(1..7usize, 2..5), 1 => proptest::collection::vec(0..3usize, 0..4)];
    (widths, 0..20usize).prop_flat_map(|(widths, batch)| {
        let (n_in, n_out) = (*widths.first().unwrap_or(&1), *widths.last().unwrap_or(&1));
        let label = prop_oneof![30 => 0..n_out.max(1) as u32, 1 => any::<u32>()];
        let labels = prop_oneof![12 => proptest::collection::vec(label, batch), 1 => proptest::collection::vec(0..3u32, 0..6)];
        let shape = prop_oneof![12 => Just((batch, n_out)), 1 => (0..6usize, 0..6usize)];
        let init = proptest::option::of(proptest::sample::select(vec![Init::LecunNormal, Init::GlorotUniform]));
        let network = (proptest::sample::select(Activation::ALL), any::<bool>(), init);
        let data = (Data::any(batch, n_in), Data::any(batch, n_out), proptest::option::of(labels), shape);
        let rates = [mostly(0.0..0.1), mostly(0.0..0.1)];
        (network, any_settings(), data, rates).prop_map(
            move |((activation, bias, init), settings, (x, values, classes, out), rates)| Calls {
                widths: widths.clone(),
                activation,
                bias,
                init,
                settings,
                batch,
                x,
                values,
                classes,
                out,
                rates,
            },
        )
    })
}

/// Makes all calls; they may fail, but neither panic nor leave other than finite weights, nor change any when they fail.
fn make<T: Real>(calls: &Calls) {
    let Ok(mut network) = Network::<T>::new(&calls.widths, calls.activation, calls.bias) else { return };
    if let Some(init) = calls.init {
        network.initialize(init, calls.settings.seed);
    }
    let Ok(mut trainer) = Trainer::new(network, &calls.settings, calls.batch, &runtime()) else { return };
    calls.x.with(|x: MatRef<'_, T>| {
        calls.values.with(|values| {
            let targets = calls.classes.as_deref().map_or(Targets::Values(values), Targets::Classes);
            for rate in calls.rates {
                let before = bits(&trainer);
                let failed = trainer.step(x, targets, rate).is_err();
                let several = matches!(calls.settings.schedule, Schedule::Multistep(_));
                assert!(finite(&trainer), "weights are not finite (an error: {failed})");
                assert!(!failed || several || bits(&trainer) == before, "an error, but other weights");
            }
            let before = bits(&trainer);
            let mut out = Mat::from_fn(calls.out.0, calls.out.1, |_, _| T::ONE);
            let results = (trainer.evaluate(x, targets), trainer.predict(x, out.as_mut()), trainer.proxy_lipschitz());
            assert_eq!(bits(&trainer), before, "{results:?}");
        });
        let _ = lower_bound(&Dense::new(x), x.nrows(), calls.settings.seed, &runtime());
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics(calls in any_calls()) {
        make::<f32>(&calls);
        make::<f64>(&calls);
    }
}

#[test]
fn operands_of_an_online_step() {
    let adam = Update { optimizer: Optimizer::ADAM, decay: Decay::None, learning_rate: 0.1, step: 1, scale: -1.0 };
    let message = |lens: [usize; 4], moments: &[(usize, usize)], update: &Update| {
        let mut weights = Mat::<f32>::zeros(2, 3);
        let mut moments: Vec<Mat<f32>> = moments.iter().map(|&(m, n)| Mat::zeros(m, n)).collect();
        let mut moments: Vec<_> = moments.iter_mut().map(Mat::as_mut).collect();
        let [diff, mean, next, mut image] = lens.map(|len| vec![1.0; len]);
        let result = hebbian::online(weights.as_mut(), &mut moments, &diff, &mean, update, &next, &mut image, &runtime());
        if result.is_err() {
            assert_eq!((weights, image), (Mat::zeros(2, 3), vec![1.0; lens[3]]), "nothing is written");
        }
        result.map_err(|error| error.to_string())
    };
    let both = [(2, 3); 2];
    assert_eq!(message([2, 3, 3, 2], &both, &adam), Ok(()));
    for (lens, wanted) in [
        ([1, 3, 3, 2], "diff has 1 elements, but must have 2"),
        ([2, 2, 3, 2], "mean has 2 elements, but must have 3"),
        ([2, 3, 4, 2], "next has 4 elements, but must have 3"),
        ([2, 3, 3, 3], "image has 3 elements, but must have 2"),
    ] {
        assert_eq!(message(lens, &both, &adam), Err(wanted.to_owned()));
    }
    assert_eq!(message([2, 3, 3, 2], &both[..1], &adam), Err("moments has 1 elements, but must have 2".to_owned()));
    assert_eq!(message([2, 3, 3, 2], &[(2, 3), (3, 2)], &adam), Err("moments is 3 × 2, but must be 2 × 3".to_owned()));
    let early = Update { step: 0, ..adam };
    assert_eq!(message([2, 3, 3, 2], &both, &early), Err("step is 0, but must be at least 1".to_owned()));
}
