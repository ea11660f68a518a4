//! The linear output layer: losses, their gradients, and the rules that nudge the output (`mathematics.md` 1.2.2 and 2.2).

use crate::bound::{Bounded, scaled_dot, sum};
use crate::product::Matrix;
use crate::relax::Dyad;

/// Loss of a prediction `a` against a target `y`, per sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// `½‖a − y‖²`.
    Squared,
    /// Softmax cross-entropy `−Σ_j y_j ln softmax(a)_j`.
    CrossEntropy,
}

impl Loss {
    /// Mean loss over the batch; `predictions` and `targets` are `batch × classes`.
    ///
    /// Squared: one sum of `batch·classes` squares, scaled by `1/(2B)`. Cross-entropy: `Σ_j y_j (lse − a_j)`, or
    /// `lse Σ_j y_j − Σ_j y_j a_j`, with `lse` by [`log_sum_exp`]; the second form's roundings, `classes + 3` of the parts, are
    /// allowed for.
    ///
    /// # Panics
    /// If the shapes differ or the batch is empty.
    pub fn mean(self, predictions: &Matrix, targets: &Matrix) -> Bounded {
        assert!(!predictions.data.is_empty(), "the mean loss of an empty batch");
        let precision = predictions.data[0].precision;
        let per_sample = precision.exact(1.0) / precision.exact(predictions.rows as f64);
        match self {
            Loss::Squared => {
                let distance = predictions.zip(targets, |a, y| a - y);
                scaled_dot(precision.exact(0.5) * per_sample, distance.data.iter().map(|&d| (d, d)))
            }
            Loss::CrossEntropy => {
                let lse: Vec<Bounded> = (0..predictions.rows).map(|i| log_sum_exp(predictions.row(i))).collect();
                let surprise = Matrix::from_fn(predictions.rows, predictions.cols, |i, j| lse[i] - predictions[(i, j)]);
                let mut size = 0.0;
                for i in 0..predictions.rows {
                    for j in 0..predictions.cols {
                        size += targets[(i, j)].magnitude() * (lse[i].magnitude() + predictions[(i, j)].magnitude());
                    }
                }
                let pairs = targets.data.iter().copied().zip(surprise.data.iter().copied());
                scaled_dot(per_sample, pairs).widen(predictions.cols + 3, size * per_sample.magnitude())
            }
        }
    }

    /// Gradient of the per-sample loss with respect to the prediction, **not** divided by the batch size:
    /// `a − y`, or `softmax(a) Σ_j y_j − y` (for one-hot targets: `softmax(a) − y`).
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn gradient(self, predictions: &Matrix, targets: &Matrix) -> Matrix {
        match self {
            Loss::Squared => predictions.zip(targets, |a, y| a - y),
            Loss::CrossEntropy => {
                let mut gradient = predictions.zip(targets, |a, _| a);
                for i in 0..predictions.rows {
                    let probabilities = softmax(predictions.row(i));
                    for (j, &p) in probabilities.iter().enumerate() {
                        let mass = sum(p.precision, targets.row(i).iter().copied());
                        gradient[(i, j)] = p * mass - targets[(i, j)];
                    }
                }
                gradient
            }
        }
    }
}

/// A row of predictions, shifted so that its largest value is 0.
struct Shifted {
    /// `max_j a_j`.
    max: f64,
    /// `max_j e_j`.
    error: f64,
    /// `e^(a_j − max)`.
    powers: Vec<f64>,
    /// `Σ_j e^(a_j − max)`.
    total: f64,
    /// `Σ_j p_j |a_j − max|`, with `p` the softmax.
    mean_shift: f64,
}

impl Shifted {
    fn new(row: &[Bounded]) -> Self {
        let max = row.iter().map(|a| a.value).fold(f64::NEG_INFINITY, f64::max);
        let error = row.iter().map(|a| a.error).fold(0.0, f64::max);
        let powers: Vec<f64> = row.iter().map(|a| (a.value - max).exp()).collect();
        let total: f64 = powers.iter().sum();
        let mean_shift = row.iter().zip(&powers).filter(|(_, p)| **p > 0.0).map(|(a, p)| (max - a.value) * p / total).sum();
        Shifted { max, error, powers, total, mean_shift }
    }
}

/// `softmax(a)_i = e^(a_i − max)/Σ_j e^(a_j − max)`. NaN anywhere gives NaN everywhere.
///
/// The bound is relative. With `e = max_j e_j`: since `∂ ln p_i/∂a_j = δ_ij − p_j`, argument errors change `ln p_i` by at most `2e`.
/// Rounding `a_j − max` changes `ln p_i` by at most `u(|a_i − max| + Σ_j p_j|a_j − max| + 4e)`. The two exponentials (one ulp each),
/// `n − 1` additions and the quotient, or the product with a reciprocal, are `n + 6` roundings. For `n ≤ 2` that is four ulp.
pub fn softmax(row: &[Bounded]) -> Vec<Bounded> {
    let shifted = Shifted::new(row);
    let powers = row.iter().zip(&shifted.powers);
    let probability = |(a, power): (&Bounded, &f64)| {
        let shifts = (shifted.max - a.value).abs() + shifted.mean_shift + 4.0 * shifted.error;
        let relative = 2.0 * shifted.error + a.precision.unit() * (shifts + row.len() as f64 + 6.0);
        let value = power / shifted.total;
        // A value of 0 has an infinite shift at worst; its error is underflow alone.
        let error = if value == 0.0 { 0.0 } else { value * relative.exp_m1() * (1.0 + 2f64.powi(-40)) };
        Bounded::new(value, error, a.precision).underflow(8.0)
    };
    powers.map(probability).collect()
}

/// `ln Σ_j e^{a_j} = max + ln Σ_j e^(a_j − max)`.
///
/// The gradient is the softmax, so argument errors change it by at most `e = max_j e_j`. Roundings: `u(Σ_j p_j|a_j − max| + 2e)` from
/// the shifts, `n + 1` of the sum and its exponentials (absolute after the logarithm), one ulp of the logarithm, and the last sum.
///
/// # Panics
/// If the row is empty.
pub fn log_sum_exp(row: &[Bounded]) -> Bounded {
    let precision = row[0].precision;
    let shifted = Shifted::new(row);
    let log = shifted.total.ln();
    let value = shifted.max + log;
    let shifts = shifted.mean_shift + 2.0 * shifted.error;
    let size = shifts + row.len() as f64 + 1.0 + 2.0 * log.abs() + value.abs();
    Bounded::new(value, shifted.error + precision.unit() * size * (1.0 + 1e-6), precision).underflow(8.0)
}

/// Rule (a): the output is the proximal point of the squared error (1.2.2 (a); 2.2 (4) is `α = ½`, `β = γ`).
///
/// ```text
/// s⁺ = (a + αβy)/(1 + αβ) ,   s⁻ = (a − ᾱβy)/(1 − ᾱβ) ,   diff = c (y − a) ,   c = β/((1 + αβ)(1 − ᾱβ)) ,
/// mean = w s⁺ + (1 − w) s⁻
/// ```
///
/// `α` belongs to `s⁺` for DP and DP⊤ alike; `w = α` but for "old style" DP, whose means are taken with ½.
/// Bounds: running analysis of these formulas, and 4 roundings of `diff` and 12 of the parts of `mean` for other forms, enlarged by
/// `1/(1 − ᾱβ)`, the condition of that difference.
///
/// # Panics
/// Unless `ᾱβ < 1`: otherwise the maximisation over `s⁻` is unbounded (1.6 D).
pub fn proximal(alpha: Bounded, beta: Bounded, weight: Bounded, a: Bounded, y: Bounded) -> Dyad {
    let one = alpha.precision.exact(1.0);
    let (pull, push) = (alpha * beta, alpha.complement() * beta);
    assert!(push.magnitude() < 1.0, "the proximal output needs (1 − α)β < 1");
    let condition = 1.0 / (1.0 - push.magnitude());
    let s_plus = (a + pull * y) / (one + pull);
    let s_minus = (a - push * y) / (one - push);
    let diff = beta / ((one + pull) * (one - push)) * (y - a);
    let mean = weight * s_plus + weight.complement() * s_minus;
    let parts = (2.0 * a.magnitude() + 2.0 * y.magnitude()) * condition + diff.magnitude();
    Dyad { mean: mean.widen(12, parts * condition), diff: diff.widen(4, diff.magnitude() * condition) }
}

/// Rules (b)–(e): the output moves along the loss gradient `g` (1.2.2; which prediction `g` is taken at is the caller's choice).
///
/// ```text
/// s⁺ = a − αβg ,   s⁻ = a + ᾱβg ,   diff = −βg ,   mean = w s⁺ + (1 − w) s⁻ = a + (w − ᾱ) diff
/// ```
///
/// since `wα − (1 − w)ᾱ = w − ᾱ`. Variant (c) of the CNN code has α and ᾱ exchanged in `s±`, which changes only this mean, and
/// nothing reads the mean of the output. Bounds: these formulas, and 6 roundings of the parts for other forms.
pub fn linearised(alpha: Bounded, beta: Bounded, weight: Bounded, a: Bounded, gradient: Bounded) -> Dyad {
    let diff = -(beta * gradient);
    let mean = a + (weight - alpha.complement()) * diff;
    Dyad { mean: mean.widen(6, a.magnitude() + diff.magnitude()), diff }
}

/// Rule (5) of the 2023 gain (2.2): `s± = a ± γ(y − z*)` with `z*` the mean of the output before this update.
///
/// ```text
/// diff = 2γ(y − z*) ,   mean = a
/// ```
pub fn from_previous_mean(gamma: Bounded, a: Bounded, y: Bounded, previous_mean: Bounded) -> Dyad {
    let diff = gamma.precision.exact(2.0) * gamma * (y - previous_mean);
    Dyad { mean: a.widen(3, a.magnitude() + diff.magnitude()), diff }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bound::Precision;
    use crate::generate::{Family, SplitMix64, generate, one_hot};

    const ALPHAS: [f64; 4] = [0.0, 0.25, 0.5, 1.0];

    fn matrix(precision: Precision, seed: u64) -> Matrix {
        Matrix::exact(precision, 3, 4, &generate(Family::Uniform, 12, seed, precision)).map(|x| precision.exact(4.0 * x.value))
    }

    #[test]
    fn proximal_output_minimises_and_maximises_its_objective() {
        // s⁺ minimises α ℓ(s) + (1/β)(½s² − s a), s⁻ maximises ᾱ ℓ(s) − (1/β)(½s² − s a): the derivatives vanish.
        let p = Precision::F64;
        for alpha in ALPHAS {
            let (beta, a, y) = (0.5, 0.7, -0.3);
            let [alpha_, beta_, a_, y_] = [alpha, beta, a, y].map(|x| p.exact(x));
            let dyad = proximal(alpha_, beta_, alpha_, a_, y_);
            let s_plus = dyad.mean.value + (1.0 - alpha) * dyad.diff.value;
            let s_minus = dyad.mean.value - alpha * dyad.diff.value;
            assert!((alpha * (s_plus - y) + (s_plus - a) / beta).abs() < 1e-15);
            assert!(((1.0 - alpha) * (s_minus - y) - (s_minus - a) / beta).abs() < 1e-15);
        }
    }

    #[test]
    fn effective_feedback_of_the_text() {
        // 1.2.2: for β = ½, c = 1, 8/15, 1/3 at α = 0, ½, 1. 2.2: for γ = 1, 4/3.
        let p = Precision::F64;
        let c = |alpha, beta| proximal(p.exact(alpha), p.exact(beta), p.exact(alpha), p.exact(0.0), p.exact(1.0)).diff;
        assert!(c(0.0, 0.5).admits(1.0) && c(0.5, 0.5).admits(8.0 / 15.0) && c(1.0, 0.5).admits(1.0 / 3.0));
        assert!(c(0.5, 1.0).admits(4.0 / 3.0));
    }

    #[test]
    fn compartments_of_the_linearised_output() {
        let p = Precision::F64;
        for (alpha, weight) in [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0), (0.25, 0.5)] {
            let (beta, a, g) = (0.5, 0.7, -0.3);
            let dyad = linearised(p.exact(alpha), p.exact(beta), p.exact(weight), p.exact(a), p.exact(g));
            let (s_plus, s_minus) = (a - alpha * beta * g, a + (1.0 - alpha) * beta * g);
            assert!(dyad.diff.admits(s_plus - s_minus) && dyad.mean.admits(weight * s_plus + (1.0 - weight) * s_minus));
        }
        let dyad = from_previous_mean(p.exact(0.5), p.exact(2.0), p.exact(1.0), p.exact(0.25));
        assert_eq!((dyad.mean.value, dyad.diff.value), (2.0, 0.75));
    }

    #[test]
    fn f32_outputs_are_admitted() {
        let p = Precision::F32;
        let mut random = SplitMix64::new(5);
        for _ in 0..20_000 {
            for alpha in ALPHAS {
                let [beta, a, y] = [0.5 + 0.4 * random.symmetric(), random.symmetric(), random.symmetric()].map(|x| x as f32);
                let [beta_, a_, y_] = [beta, a, y].map(|x| p.exact(x.into()));
                let (alpha_, alpha) = (p.exact(alpha), alpha as f32);
                let bound = proximal(alpha_, beta_, alpha_, a_, y_);
                let other = 1.0 - alpha;
                let s_plus = (a + alpha * beta * y) / (1.0 + alpha * beta);
                let s_minus = (a - other * beta * y) / (1.0 - other * beta);
                let diff = beta / ((1.0 + alpha * beta) * (1.0 - other * beta)) * (y - a);
                assert!(bound.diff.admits(diff.into()));
                assert!(bound.mean.admits((alpha * s_plus + other * s_minus).into()));
                assert!(bound.mean.admits((s_minus + alpha * diff).into()) && bound.mean.admits((s_plus - other * diff).into()));
                assert!(bound.diff.error < 1e-4 * bound.diff.value.abs() + 1e-30);
            }
        }
    }

    #[test]
    fn softmax_and_log_sum_exp_in_f32_are_admitted() {
        for seed in 0..2000 {
            let rows = matrix(Precision::F32, seed).map(|x| Precision::F32.exact(x.value * 8.0));
            let row = rows.row(0);
            let x: Vec<f32> = row.iter().map(|a| a.value as f32).collect();
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f32 = x.iter().map(|x| (x - max).exp()).sum();
            for (bound, x) in softmax(row).into_iter().zip(&x) {
                assert!(bound.admits(((x - max).exp() / total).into()), "{bound:?}");
                assert!(bound.admits(((x - max).exp() * (1.0 / total)).into()));
                assert!(bound.error < 1e-5 * bound.value + 1e-40);
            }
            let bound = log_sum_exp(row);
            assert!(bound.admits((max + total.ln()).into()) && bound.error < 1e-5 * (1.0 + bound.value.abs()));
        }
    }

    #[test]
    fn gradients_of_the_losses_match_central_differences() {
        let p = Precision::F64;
        let predictions = matrix(p, 1);
        let soft = matrix(p, 2).map(|x| x * x);
        let hard = Matrix::exact(p, 3, 4, &one_hot(3, 4, 3));
        for (loss, targets) in [(Loss::Squared, &soft), (Loss::CrossEntropy, &soft), (Loss::CrossEntropy, &hard)] {
            let gradient = loss.gradient(&predictions, targets);
            for i in 0..3 {
                for j in 0..4 {
                    let moved = |step: f64| {
                        let mut moved = predictions.clone();
                        moved[(i, j)].value += step;
                        3.0 * loss.mean(&moved, targets).value
                    };
                    let quotient = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    assert!((gradient[(i, j)].value - quotient).abs() < 1e-6 * (1.0 + quotient.abs()), "{loss:?}");
                }
            }
        }
    }

    #[test]
    fn f32_losses_are_admitted() {
        let p = Precision::F32;
        for seed in 0..500 {
            let predictions = matrix(p, seed);
            let targets = Matrix::exact(p, 3, 4, &one_hot(3, 4, seed));
            let a: Vec<f32> = predictions.values().iter().map(|&x| x as f32).collect();
            let y: Vec<f32> = targets.values().iter().map(|&x| x as f32).collect();
            let squared = a.iter().zip(&y).map(|(a, y)| 0.5 * (a - y) * (a - y)).sum::<f32>() / 3.0;
            assert!(Loss::Squared.mean(&predictions, &targets).admits(squared.into()));
            let lse = |row: &[f32]| row.iter().map(|x| x.exp()).sum::<f32>().ln();
            let entropy =
                |(a, y): (&[f32], &[f32])| lse(a) * y.iter().sum::<f32>() - a.iter().zip(y).map(|(a, y)| a * y).sum::<f32>();
            let entropy = a.chunks(4).zip(y.chunks(4)).map(entropy).sum::<f32>() / 3.0;
            let bound = Loss::CrossEntropy.mean(&predictions, &targets);
            assert!(bound.admits(entropy.into()) && bound.error < 1e-5, "{bound:?} {entropy}");
            let gradient = Loss::CrossEntropy.gradient(&predictions, &targets);
            let total: f32 = a[..4].iter().map(|x| x.exp()).sum();
            assert!(gradient[(0, 0)].admits((a[0].exp() / total - y[0]).into()));
        }
    }
}
