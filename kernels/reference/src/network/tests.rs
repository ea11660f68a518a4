use super::*;
use crate::generate::{Family, generate, one_hot};

const SIZES: [usize; 4] = [5, 7, 6, 4];
const BATCH: usize = 3;
const P: Precision = Precision::F64;

/// Weights of a network of moderate norms, from a seed.
fn weights(sizes: &[usize], seed: u64) -> Vec<Vec<f64>> {
    let entries = |w: &[usize]| {
        let uniform = generate(Family::Uniform, w[0] * w[1], seed + w[0] as u64, P);
        uniform.into_iter().map(|x| P.nearest(1.5 * x / (w[0] as f64).sqrt())).collect()
    };
    sizes.windows(2).map(entries).collect()
}

fn network_of(sizes: &[usize], activation: Activation, seed: u64) -> Network {
    let biases: Vec<Vec<f64>> = sizes[1..].iter().map(|&n| generate(Family::Uniform, n, seed + 77, P)).collect();
    Network::new(P, activation, sizes, &weights(sizes, seed), Some(&biases))
}

fn network(activation: Activation) -> Network {
    network_of(&SIZES, activation, 1)
}

fn batch(seed: u64) -> (Matrix, Matrix) {
    let x = generate(Family::Uniform, BATCH * SIZES[0], seed, P);
    let y = one_hot(BATCH, SIZES[3], seed);
    (Matrix::exact(P, BATCH, SIZES[0], &x), Matrix::exact(P, BATCH, SIZES[3], &y))
}

fn recipe(method: Method, output: Output, schedule: Schedule) -> Recipe {
    Recipe { method, loss: Loss::Squared, output, schedule }
}

fn backprop(loss: Loss) -> Recipe {
    Recipe { method: Method::Backprop, loss, output: Output::Proximal, schedule: Schedule::Backward }
}

/// All values of a gradient, weights then biases.
fn flat(gradients: &Gradients) -> Vec<f64> {
    let weights = gradients.weights.iter().flat_map(Matrix::values);
    weights.chain(gradients.biases.iter().flatten().map(|b| b.value)).collect()
}

/// Values of all means and differences of layers 1 to L.
fn state_values(states: &States) -> Vec<f64> {
    states.mean[1..].iter().chain(&states.diff[1..]).flat_map(Matrix::values).collect()
}

fn gradient_of(network: &Network, recipe: &Recipe) -> Vec<f64> {
    let (x, y) = batch(2);
    flat(&network.gradients(recipe, &network.infer(recipe, &x, &y, None)))
}

/// `‖x − y‖/‖y‖`.
fn distance(x: &[f64], y: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    let apart: f64 = x.iter().zip(y).map(|(x, y)| square(x - y)).sum();
    (apart / y.iter().map(|&y| square(y)).sum::<f64>()).sqrt()
}

/// Order in the nudging strength at which a method's gradient approaches back-propagation's.
fn order_of(network: &Network, loss: Loss, output: Output, schedule: Schedule, method: impl Fn(f64) -> Method) -> f64 {
    let exact = gradient_of(network, &backprop(loss));
    let error = |strength: f64| {
        let recipe = Recipe { method: method(strength), loss, output, schedule: schedule.clone() };
        distance(&gradient_of(network, &recipe), &exact)
    };
    let (coarse, fine) = (error(1e-2), error(1e-3));
    assert!(coarse < 0.3 && fine > 1e-13, "errors {coarse}, {fine}");
    (coarse / fine).log10()
}

#[test]
fn gradients_approach_back_propagation_at_the_order_of_the_text() {
    // mathematics.md 1.7, item 1: slope 2 for α = ½, slope 1 otherwise, for every output rule.
    for activation in [Activation::Tanh, Activation::Sigmoid] {
        let network = network(activation);
        for (loss, output) in [
            (Loss::Squared, Output::Proximal),
            (Loss::Squared, Output::LinearisedCurrent),
            (Loss::Squared, Output::LinearisedInitial),
            (Loss::CrossEntropy, Output::LinearisedCurrent),
            (Loss::CrossEntropy, Output::LinearisedInitial),
        ] {
            for schedule in [Schedule::Rounds(3), Schedule::Forward(8)] {
                for alpha in [0.0, 0.25, 0.5, 1.0] {
                    let expected = if alpha == 0.5 { 2.0 } else { 1.0 };
                    let dp = order_of(&network, loss, output, schedule.clone(), |beta| Method::Dp { alpha, beta });
                    let transposed =
                        order_of(&network, loss, output, schedule.clone(), |beta| Method::DpTranspose { alpha, beta });
                    assert!((dp - expected).abs() < 0.15, "DP, α = {alpha}, {loss:?}, {output:?}, {schedule:?}: {dp}");
                    assert!((transposed - expected).abs() < 0.15, "DP⊤, α = {alpha}, {loss:?}, {output:?}: {transposed}");
                }
            }
        }
    }
}

#[test]
fn gain_and_old_style_approach_back_propagation() {
    let network = network(Activation::Tanh);
    // (4): the factor 1/(1 − γ²/4) of 2.2. (5): as DP with α = ½. Linearised: the nudges γ/2·v are themselves O(γ²).
    for (output, expected) in [(Output::Proximal, 2.0), (Output::PreviousMean, 2.0), (Output::LinearisedCurrent, 4.0)] {
        let order = order_of(&network, Loss::Squared, output, Schedule::Rounds(0), |gamma| Method::DpGain { gamma });
        assert!((order - expected).abs() < 0.15, "gain, {output:?}: {order}");
    }
    let old = |beta| Method::DpOld { alpha: 0.0, beta };
    let order = order_of(&network, Loss::Squared, Output::Proximal, Schedule::Rounds(3), old);
    assert!((order - 1.0).abs() < 0.15, "old style: {order}");
}

#[test]
fn back_propagation_matches_central_differences_of_the_loss() {
    let (x, y) = batch(2);
    for activation in Activation::ALL {
        for loss in [Loss::Squared, Loss::CrossEntropy] {
            let mut network = network(activation);
            let gradients = network.gradients(&backprop(loss), &network.infer(&backprop(loss), &x, &y, None));
            let step = 1e-6;
            for k in 0..network.layers() {
                for at in [0, 3, 11] {
                    let start = network.weights[k].data[at];
                    let mut moved = |by: f64| {
                        network.weights[k].data[at] = P.exact(start.value + by);
                        network.loss(loss, &x, &y).value
                    };
                    let quotient = (moved(step) - moved(-step)) / (2.0 * step);
                    moved(0.0);
                    assert!((gradients.weights[k].data[at].value - quotient).abs() < 1e-8, "{activation:?} {loss:?} W_{k}");
                }
                let start = network.biases.as_ref().unwrap()[k][1];
                let mut moved = |by: f64| {
                    network.biases.as_mut().unwrap()[k][1] = P.exact(start.value + by);
                    network.loss(loss, &x, &y).value
                };
                let quotient = (moved(step) - moved(-step)) / (2.0 * step);
                moved(0.0);
                assert!((gradients.biases[k][1].value - quotient).abs() < 1e-8, "{activation:?} {loss:?} b_{k}");
            }
        }
    }
}

#[test]
fn adversarial_input_climbs_the_loss_of_each_sample() {
    let (x, y) = batch(2);
    let network = network(Activation::Tanh);
    let attacked = network.adversarial_input(Loss::Squared, 0.5, &x, &y);
    for (i, j) in [(0, 0), (1, 3), (2, 4)] {
        let moved = |by: f64| {
            let mut x = x.clone();
            x[(i, j)].value += by;
            // The mean loss is 1/B of the sample's.
            BATCH as f64 * network.loss(Loss::Squared, &x, &y).value
        };
        let quotient = (moved(1e-6) - moved(-1e-6)) / 2e-6;
        assert!((attacked[(i, j)].value - x[(i, j)].value - 0.5 * quotient).abs() < 1e-8);
    }
    let method = Method::Adversarial { step: 0.5 };
    let states = network.infer(&recipe(method, Output::Proximal, Schedule::Backward), &x, &y, None);
    assert_eq!(states, network.infer(&backprop(Loss::Squared), &attacked, &y, None));
    let small = network.adversarial_input(Loss::Squared, 0.01, &x, &y);
    assert!(network.loss(Loss::Squared, &small, &y).value > network.loss(Loss::Squared, &x, &y).value);
}

fn schedules() -> Vec<Schedule> {
    vec![
        Schedule::Rounds(2),
        Schedule::Forward(7),
        Schedule::Backward,
        Schedule::ForwardBackward(3),
        Schedule::OddEven(4),
        Schedule::EvenOdd(4),
        Schedule::Parallel(8),
        Schedule::Random(vec![1, 2, 3, 3, 1, 2, 2, 1, 3, 2, 1]),
        Schedule::Corrupted(2),
        Schedule::MultiStep(2),
    ]
}

#[test]
fn dp_and_its_transpose_are_identical_for_alpha_one_half() {
    let (x, y) = batch(2);
    for activation in Activation::ALL {
        let network = network(activation);
        for schedule in schedules() {
            for output in [Output::Proximal, Output::LinearisedCurrent, Output::LinearisedInitial] {
                let dp = recipe(Method::Dp { alpha: 0.5, beta: 0.5 }, output, schedule.clone());
                let transposed = Recipe { method: Method::DpTranspose { alpha: 0.5, beta: 0.5 }, ..dp.clone() };
                assert_eq!(network.infer(&dp, &x, &y, None), network.infer(&transposed, &x, &y, None));
            }
        }
    }
}

#[test]
fn one_sweep_up_and_one_down_is_the_fixed_point_of_dp_transpose_at_the_ends() {
    // mathematics.md 1.6 E: every schedule that is long enough ends in the same states, to the bit.
    let (x, y) = batch(2);
    for activation in Activation::ALL {
        let network = network(activation);
        for alpha in [0.0, 1.0] {
            let at = |schedule| recipe(Method::DpTranspose { alpha, beta: 0.5 }, Output::LinearisedCurrent, schedule);
            let states = network.infer(&at(Schedule::Rounds(0)), &x, &y, None);
            let (_, plain) = network.forward_pass(&x);
            assert_eq!(states.mean[1].values(), plain[1].values());
            assert_eq!(states.mean[2].values(), plain[2].values());
            for schedule in schedules() {
                let other = network.infer(&at(schedule.clone()), &x, &y, None);
                assert_eq!(state_values(&other), state_values(&states), "{activation:?}, α = {alpha}, {schedule:?}");
            }
        }
    }
}

#[test]
fn further_rounds_change_dp_unless_alpha_is_one_half() {
    let (x, y) = batch(2);
    let network = network(Activation::Tanh);
    for (alpha, changes) in [(0.0, true), (0.5, false), (1.0, true)] {
        let at = |rounds| {
            let recipe = recipe(Method::Dp { alpha, beta: 0.01 }, Output::Proximal, Schedule::Rounds(rounds));
            state_values(&network.infer(&recipe, &x, &y, None))
        };
        // To first order in v the mean moves by (2α − 1) f' v.
        assert_eq!(distance(&at(1), &at(0)) > 1e-4, changes, "α = {alpha}");
    }
}

#[test]
fn a_gain_of_one_is_dp_with_alpha_one_half_and_beta_one() {
    let (x, y) = batch(2);
    let network = network(Activation::Relu);
    for output in [Output::Proximal, Output::LinearisedCurrent] {
        let gain = recipe(Method::DpGain { gamma: 1.0 }, output, Schedule::Rounds(2));
        let dp = Recipe { method: Method::Dp { alpha: 0.5, beta: 1.0 }, ..gain.clone() };
        let (gain_states, dp_states) = (network.infer(&gain, &x, &y, None), network.infer(&dp, &x, &y, None));
        assert_eq!(state_values(&gain_states), state_values(&dp_states));
        assert_eq!(flat(&network.gradients(&gain, &gain_states)), flat(&network.gradients(&dp, &dp_states)));
    }
    // 2.2: Δ_L = 4/3 (y − a_L) for γ = 1.
    let gain = recipe(Method::DpGain { gamma: 1.0 }, Output::Proximal, Schedule::Backward);
    let states = network.infer(&gain, &x, &y, None);
    let expected = states.prediction.zip(&y, |a, y| P.exact(4.0 / 3.0) * (y - a));
    assert_eq!(expected.first_refused(&states.diff[3].values()), None);
}

#[test]
fn rule_five_lags_one_output_update_behind() {
    let (x, y) = batch(2);
    let network = network(Activation::Tanh);
    let at = |schedule| recipe(Method::DpGain { gamma: 0.25 }, Output::PreviousMean, schedule);
    let states = network.infer(&at(Schedule::Rounds(0)), &x, &y, None);
    let expected = network.predict(&x).zip(&y, |a, y| P.exact(0.5) * (y - a));
    assert_eq!(states.diff[3].values(), expected.values());
    // The second nudge uses the mean of the first, which was the prediction.
    let states = network.infer(&at(Schedule::Rounds(1)), &x, &y, None);
    assert_eq!(states.diff[3].values(), expected.values());
    let states = network.infer(&at(Schedule::Rounds(2)), &x, &y, None);
    assert_ne!(states.diff[3].values(), expected.values());
}

#[test]
fn old_style_uses_alpha_at_the_output_only() {
    let (x, y) = batch(2);
    let network = network(Activation::Tanh);
    let at = |method| network.infer(&recipe(method, Output::Proximal, Schedule::Rounds(2)), &x, &y, None);
    let same = [at(Method::DpOld { alpha: 0.5, beta: 0.5 }), at(Method::Dp { alpha: 0.5, beta: 0.5 })];
    assert_eq!(same[0], same[1]);
    // A linear hidden layer with α = ½ passes the mean unchanged, so Δ_L = c(α, β)(y − a_L) with the plain prediction.
    let linear = network_of(&SIZES, Activation::Identity, 1);
    let old = recipe(Method::DpOld { alpha: 0.0, beta: 0.5 }, Output::Proximal, Schedule::Rounds(2));
    let states = linear.infer(&old, &x, &y, None);
    let expected = linear.predict(&x).zip(&y, |a, y| y - a);
    assert_eq!(expected.map(|d| d.widen(100, 1.0)).first_refused(&states.diff[3].values()), None);
}

#[test]
fn damping_changes_the_way_but_not_the_fixed_point_of_piecewise_linear_units() {
    let (x, y) = batch(2);
    for activation in Activation::ALL {
        let network = network(activation);
        let alpha = 0.75;
        let at = |lambda: f64, rounds| {
            let method = Method::DpDamped { alpha, beta: 0.1, lambda: vec![P.exact(lambda); 2] };
            state_values(&network.infer(&recipe(method, Output::Proximal, Schedule::Rounds(rounds)), &x, &y, None))
        };
        let dp = |rounds| {
            let recipe = recipe(Method::Dp { alpha, beta: 0.1 }, Output::Proximal, Schedule::Rounds(rounds));
            state_values(&network.infer(&recipe, &x, &y, None))
        };
        assert!(distance(&at(0.0, 2), &dp(2)) < 1e-14);
        if activation != Activation::Identity {
            assert!(distance(&at(0.5, 2), &dp(2)) > 1e-6);
        }
        assert!(distance(&at(0.5, 100), &at(0.5, 101)) < 1e-14 && distance(&dp(100), &dp(101)) < 1e-14);
        let keeps = matches!(activation, Activation::Identity | Activation::Relu | Activation::HardSigmoid);
        assert_eq!(distance(&at(0.5, 100), &dp(100)) < 1e-12, keeps, "{activation:?}");
    }
}

#[test]
fn feedback_weights_replace_the_transport() {
    let (x, y) = batch(2);
    let plain = network(Activation::Relu);
    let kp = recipe(Method::KpDp { alpha: 0.5, beta: 0.5 }, Output::Proximal, Schedule::Rounds(0));
    let dp = Recipe { method: Method::Dp { alpha: 0.5, beta: 0.5 }, ..kp.clone() };
    let expected = plain.infer(&dp, &x, &y, None);
    let same = plain.clone().with_feedback(&weights(&SIZES, 1));
    assert_eq!(same.infer(&kp, &x, &y, None), expected);
    let other = plain.with_feedback(&weights(&SIZES, 9));
    let states = other.infer(&kp, &x, &y, None);
    assert_eq!(states.diff[3], expected.diff[3]);
    assert_ne!(states.diff[2], expected.diff[2]);
    assert_eq!(other.infer(&dp, &x, &y, None), expected, "other methods do not look at C");
}

#[test]
fn parallel_nudges_its_output_from_step_l_on() {
    let (x, y) = batch(2);
    let network = network(Activation::Tanh);
    let at = |steps| {
        let method = Method::Dp { alpha: 0.5, beta: 0.5 };
        network.infer(&recipe(method, Output::Proximal, Schedule::Parallel(steps)), &x, &y, None)
    };
    let (_, plain) = network.forward_pass(&x);
    let silent = |states: &States, k: usize| states.diff[k].values().iter().all(|&d| d == 0.0);
    let states = at(1);
    assert_eq!(states.mean[1].values(), plain[1].values());
    assert_ne!(states.mean[2].values(), plain[2].values(), "layer 2 still saw 0 below it");
    let states = at(2);
    assert!((1..=3).all(|k| silent(&states, k)));
    let states = at(3);
    assert!(silent(&states, 1) && silent(&states, 2) && !silent(&states, 3));
    assert!(silent(&at(4), 1) && !silent(&at(4), 2) && !silent(&at(5), 1));
}

#[test]
fn forward_sweeps_carry_the_error_down_one_layer_each() {
    // mathematics.md 1.2.3: in pass p the feedback first reaches layer L + 1 − p.
    let (x, y) = batch(2);
    let network = network(Activation::Tanh);
    for sweeps in 1..=4 {
        let method = Method::DpTranspose { alpha: 0.5, beta: 0.5 };
        let states = network.infer(&recipe(method, Output::LinearisedInitial, Schedule::Forward(sweeps)), &x, &y, None);
        for k in 1..=3 {
            assert_eq!(states.diff[k].values().iter().any(|&d| d != 0.0), k + sweeps > 3, "pass {sweeps}, layer {k}");
        }
    }
}

#[test]
fn corrupted_states_persist() {
    let network = network(Activation::Tanh);
    let at = |sweeps| recipe(Method::Dp { alpha: 0.5, beta: 0.5 }, Output::Proximal, Schedule::Corrupted(sweeps));
    let ((x, y), (other_x, other_y)) = (batch(2), batch(3));
    let first = network.infer(&at(1), &other_x, &other_y, None);
    let second = network.infer(&at(1), &x, &y, Some(&first));
    assert_ne!(state_values(&second), state_values(&network.infer(&at(1), &x, &y, None)));
    assert_eq!(second.mean[0], x);
    // Two sweeps on one batch are one sweep that starts where another left.
    let once = network.infer(&at(1), &x, &y, None);
    assert_eq!(network.infer(&at(1), &x, &y, Some(&once)), network.infer(&at(2), &x, &y, None));
}

#[test]
fn the_frozen_gradient_is_that_of_the_initial_prediction() {
    let (x, y) = batch(2);
    let network = network(Activation::Tanh);
    for loss in [Loss::Squared, Loss::CrossEntropy] {
        let method = Method::Dp { alpha: 0.0, beta: 0.5 };
        let frozen = Recipe { method, loss, output: Output::LinearisedInitial, schedule: Schedule::Rounds(2) };
        let fresh = Recipe { output: Output::LinearisedCurrent, ..frozen.clone() };
        let expected = loss.gradient(&network.predict(&x), &y).map(|g| P.exact(-0.5) * g);
        assert_eq!(network.infer(&frozen, &x, &y, None).diff[3].values(), expected.values());
        assert_ne!(network.infer(&fresh, &x, &y, None).diff[3].values(), expected.values());
    }
}

#[test]
fn a_network_without_biases_and_one_with_zero_biases_agree() {
    let (x, y) = batch(2);
    let zeros: Vec<Vec<f64>> = SIZES[1..].iter().map(|&n| vec![0.0; n]).collect();
    let with = Network::new(P, Activation::Relu, &SIZES, &weights(&SIZES, 1), Some(&zeros));
    let without = Network::new(P, Activation::Relu, &SIZES, &weights(&SIZES, 1), None);
    let dp = recipe(Method::Dp { alpha: 0.25, beta: 0.5 }, Output::Proximal, Schedule::Rounds(1));
    assert_eq!(state_values(&with.infer(&dp, &x, &y, None)), state_values(&without.infer(&dp, &x, &y, None)));
}
