//! Gradients against back-propagation in f64: exact to f32 for any nudge, and at the right order in the nudge.

mod common;

use common::{labels, methods, network, runtime, uniform, values};
use dualprop::network::{Loss, Method, Network, NudgeAt, Output, Schedule, Settings, Targets, Trainer};
use dualprop::{Activation, Mat, MatRef, Real};

const OUTPUTS: [(Loss, Output); 5] = [
    (Loss::Squared, Output::Prox),
    (Loss::Squared, Output::Linearized(NudgeAt::Initial)),
    (Loss::Squared, Output::Linearized(NudgeAt::Current)),
    (Loss::CrossEntropy, Output::Linearized(NudgeAt::Initial)),
    (Loss::CrossEntropy, Output::Linearized(NudgeAt::Current)),
];

/// Gradient of each layer's weights.
fn gradients<T: Real>(network: &Network<T>, settings: &Settings, x: MatRef<'_, T>, labels: &[u32]) -> Vec<Vec<f64>> {
    let mut trainer = Trainer::new(network.clone(), settings, x.nrows(), &runtime()).expect("sound settings");
    trainer.infer(x, Targets::Classes(labels)).expect("a sound batch");
    let gradient = |k| {
        let weights = network.weights(k);
        let (mut gradient, mut bias) =
            (Mat::from_fn(weights.nrows(), weights.ncols(), |_, _| T::ZERO), vec![T::ZERO; weights.nrows()]);
        trainer.gradient(k, gradient.as_mut(), &mut bias).expect("a layer of weights");
        values(gradient.as_ref())
    };
    (0..network.layers()).map(gradient).collect()
}

fn wide<T: Real>(matrix: MatRef<'_, T>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)].to_f64())
}

fn one_hot(labels: &[u32], classes: usize) -> Mat<f64> {
    Mat::from_fn(labels.len(), classes, |i, j| if labels[i] as usize == j { 1.0 } else { 0.0 })
}

/// Entry by entry.
fn zip<T: Real>(a: &Mat<T>, b: &Mat<T>, f: impl Fn(T, T) -> T) -> Mat<T> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| f(a[(i, j)], b[(i, j)]))
}

/// Back-propagation of the mean squared error through ReLU layers without biases, in f64, straight from the formulas.
fn back_propagation(weights: &[Mat<f64>], x: &Mat<f64>, y: &Mat<f64>) -> Vec<Mat<f64>> {
    let mut drives: Vec<Mat<f64>> = Vec::new();
    let mut states = vec![x.clone()];
    for w in weights {
        let drive = &states[states.len() - 1] * w.transpose();
        states.push(zip(&drive, &drive, |a, _| a.max(0.0)));
        drives.push(drive);
    }
    let mut error = zip(&drives[weights.len() - 1], y, |a, y| a - y);
    let mut gradients = Vec::new();
    for k in (0..weights.len()).rev() {
        gradients.push(zip(&(error.transpose() * &states[k]), &weights[k], |g, _| g / x.nrows() as f64));
        if k > 0 {
            error = zip(&(&error * &weights[k]), &drives[k - 1], |v, a| if a > 0.0 { v } else { 0.0 });
        }
    }
    gradients.reverse();
    gradients
}

/// The same by DP⊤ with α = ½ in f32, keeping `s⁺` and `s⁻` and subtracting them: what the library must not do.
fn by_subtraction(weights: &[Mat<f32>], x: &Mat<f32>, y: &Mat<f32>, beta: f32) -> Vec<Mat<f32>> {
    let mut drives: Vec<Mat<f32>> = Vec::new();
    let mut means = vec![x.clone()];
    for w in weights {
        let drive = &means[means.len() - 1] * w.transpose();
        means.push(zip(&drive, &drive, |a, _| a.max(0.0)));
        drives.push(drive);
    }
    let output = &drives[weights.len() - 1];
    let nudged = |sign: f32| zip(output, y, |a, y| a + sign * 0.5 * beta * (y - a));
    let mut diff = zip(&nudged(1.0), &nudged(-1.0), |plus, minus| plus - minus);
    let mut gradients = Vec::new();
    for k in (0..weights.len()).rev() {
        let feedback = &diff * &weights[k];
        let above = diff;
        if k > 0 {
            let nudged = |sign: f32| zip(&drives[k - 1], &feedback, |a, v| (a + sign * 0.5 * v).max(0.0));
            let (plus, minus) = (nudged(1.0), nudged(-1.0));
            means[k] = zip(&plus, &minus, |plus, minus| 0.5 * (plus + minus));
            diff = zip(&plus, &minus, |plus, minus| plus - minus);
        } else {
            diff = Mat::new();
        }
        gradients.push(zip(&(above.transpose() * &means[k]), &weights[k], |g, _| -g));
    }
    gradients.reverse();
    gradients
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b);
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn no_nudge_is_too_small_for_f32() {
    const WIDTHS: [usize; 5] = [784, 512, 512, 512, 10];
    let (batch, classes) = (16, 10);
    let network = network::<f32>(&WIDTHS, Activation::Relu, false, 1);
    let (x, labels) = (uniform::<f32>(batch, WIDTHS[0], [0.0, 1.0], 1), labels(batch, classes, 1));
    let (weights, y): (Vec<_>, _) = ((0..4).map(|k| wide(network.weights(k))).collect(), one_hot(&labels, classes));
    let exact: Vec<_> = back_propagation(&weights, &wide(x.as_ref()), &y).iter().map(|g| values(g.as_ref())).collect();

    for beta in [1e-4, 1e-5, 1e-6, 1e-7, 1e-8] {
        for output in [Output::Prox, Output::Linearized(NudgeAt::Initial), Output::Linearized(NudgeAt::Current)] {
            let settings = Settings { output, ..Settings::new(Method::DpTranspose { alpha: 0.5, beta }) };
            for (k, (got, exact)) in gradients(&network, &settings, x.as_ref(), &labels).iter().zip(&exact).enumerate() {
                let cosine = cosine(got, exact);
                assert!(cosine >= 1.0 - 1e-10, "β = {beta}, {output:?}, layer {k}: 1 − {:e}", 1.0 - cosine);
            }
        }
    }

    let narrow = |matrix: &Mat<f64>| Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)] as f32);
    let weights: Vec<_> = weights.iter().map(narrow).collect();
    for (beta, lost) in [(0.1, false), (1e-6, true), (1e-7, true)] {
        let subtracted = by_subtraction(&weights, &x, &narrow(&y), beta);
        let worst = subtracted.iter().zip(&exact).map(|(got, exact)| cosine(&values(got.as_ref()), exact)).fold(1.0, f64::min);
        assert_eq!(worst < 0.99, lost, "β = {beta}: {worst}");
    }
}

#[test]
fn the_alignment_is_the_cosine_to_back_propagation() {
    // Without biases the cosine of a layer is that of its weights.
    let network = network::<f64>(&[5, 7, 6, 4], Activation::Tanh, false, 1);
    let (x, labels) = (uniform::<f64>(3, 5, [-1.0, 1.0], 1), labels(3, 4, 1));
    let exact = gradients(&network, &Settings::new(Method::Backprop), x.as_ref(), &labels);
    for method in methods(0.0, 0.5) {
        let settings = Settings { alignment: true, schedule: Schedule::Rounds(1), ..Settings::new(method) };
        let got = gradients(&network, &settings, x.as_ref(), &labels);
        let mut trainer = Trainer::new(network.clone(), &settings, 3, &runtime()).expect("sound settings");
        let step = trainer.step(x.as_ref(), Targets::Classes(&labels), 0.01).expect("a sound batch");
        assert_eq!(step.cosine.len(), 3);
        for (k, &measured) in step.cosine.iter().enumerate() {
            let expected = cosine(&got[k], &exact[k]);
            // Two sums of at most 42 products, and a few more roundings.
            assert!((measured - expected).abs() <= 100.0 * f64::EPSILON, "{method:?}, layer {k}: {measured} for {expected}");
            assert!(method != Method::Backprop || measured >= 1.0 - 100.0 * f64::EPSILON);
        }
        trainer.measure_alignment(false);
        let step = trainer.step(x.as_ref(), Targets::Classes(&labels), 0.01).expect("a sound batch");
        assert!(step.cosine.is_empty());
    }
}

/// Slope of the least-squares line through the points.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let (mean_x, mean_y) = points.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0 / n, y + p.1 / n));
    let (xy, xx) =
        points.iter().fold((0.0, 0.0), |(xy, xx), &(x, y)| (xy + (x - mean_x) * (y - mean_y), xx + (x - mean_x).powi(2)));
    xy / xx
}

#[test]
fn errors_vanish_at_the_order_of_the_nudge() {
    let network = network::<f64>(&[5, 7, 6, 4], Activation::Tanh, true, 1);
    let (x, labels) = (uniform::<f64>(3, 5, [-1.0, 1.0], 1), labels(3, 4, 1));
    let flat = |settings: &Settings| gradients(&network, settings, x.as_ref(), &labels).concat();
    for (loss, output) in OUTPUTS {
        let exact = flat(&Settings { loss, ..Settings::new(Method::Backprop) });
        let norm = exact.iter().fold(0.0, |sum, g| sum + g * g);
        for schedule in [Schedule::Rounds(0), Schedule::Rounds(5), Schedule::Forward(8)] {
            for alpha in [0.0, 0.25, 0.5, 0.75, 1.0] {
                let order = |method: fn(f64, f64) -> Method| {
                    let point = |i: i32| {
                        let beta = 10f64.powf(-2.0 - 0.5 * f64::from(i));
                        let got = flat(&Settings { loss, output, schedule, ..Settings::new(method(alpha, beta)) });
                        let error = got.iter().zip(&exact).fold(0.0, |sum, (g, e)| sum + (g - e).powi(2));
                        (beta.ln(), 0.5 * (error / norm).ln())
                    };
                    slope(&(0..5).map(point).collect::<Vec<_>>())
                };
                let expected = if alpha == 0.5 { 2.0 } else { 1.0 };
                let orders =
                    [order(|alpha, beta| Method::Dp { alpha, beta }), order(|alpha, beta| Method::DpTranspose { alpha, beta })];
                let holds = orders.iter().all(|order| (order - expected).abs() < 0.1);
                assert!(holds, "{loss:?}, {output:?}, {schedule:?}, α = {alpha}: {orders:?}");
            }
        }
    }
}
