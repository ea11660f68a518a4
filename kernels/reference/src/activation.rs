//! Activation functions, their derivatives, and their differences without cancellation.
//!
//! `tanh` and the sigmoid may be off by four roundings (2 ulp): the exponential functions they are made of are allowed one ulp each. Argument errors are propagated by the mean value theorem: if an argument lies in `x ± e`, the function moves by
//! at most `e` times the largest slope there.

use crate::bound::Bounded;

/// Roundings allowed in a value of `tanh` or the sigmoid.
const SMOOTH: usize = 4;

/// Roundings allowed in a value of the leaky ReLU: the slope, `1 − slope`, two products or one product and one sum.
const LEAKY: usize = 4;

/// Roundings allowed in a rise of `tanh` or the sigmoid: `E` 2, the two factors `1/(1 + z)` 3 each, `expm1` 2, and five products,
/// quotients and signs, rounded up.
const RISE: usize = 16;

/// Slope of the leaky ReLU for negative arguments. Codes hold it rounded: its relative error is `u`.
pub const LEAKY_SLOPE: f64 = 0.01;

/// The activations of `mathematics.md` 1.1.2: `f = (∇G)⁻¹` for a convex potential `G`. All are nondecreasing with slope at most 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `f(x) = x`.
    Identity,
    /// `f(x) = max(0, x)`.
    Relu,
    /// `f(x) = x` for x > 0, `0.01 x` otherwise.
    LeakyRelu,
    /// `f(x) = min(max(0, x), 1)`.
    HardSigmoid,
    /// `f(x) = 1/(1 + e^−x)`.
    Sigmoid,
    /// `f(x) = tanh x`.
    Tanh,
}

impl Activation {
    /// All activations.
    pub const ALL: [Activation; 6] = [
        Activation::Identity,
        Activation::Relu,
        Activation::LeakyRelu,
        Activation::HardSigmoid,
        Activation::Sigmoid,
        Activation::Tanh,
    ];

    /// `f(x)`. NaN gives NaN.
    ///
    /// Error: largest slope on `x ± e` times `e`; no rounding for identity, ReLU and the hard sigmoid, which only select;
    /// otherwise the allowances of the [module](self) and one underflow.
    pub fn value(self, x: Bounded) -> Bounded {
        let value = self.at(x.value);
        let [_, slope] = self.slopes(x.value - x.error, x.value + x.error);
        let moved = Bounded::new(value, times(slope, x.error), x.precision);
        if self.roundings() == 0 { moved } else { moved.widen(self.roundings(), moved.magnitude()).underflow(4.0) }
    }

    /// `f'(x)`, with `f'(0) = 0` for the ReLU, `f'(0) = 0.01` for the leaky one and `f' = 0` at both kinks of the hard sigmoid.
    /// NaN gives NaN.
    ///
    /// If the interval of `x` holds a kink (even exactly: conventions differ there) the error is the height of the jump.
    /// `tanh' = 1 − s²` and `σ' = s(1 − s)` are computed from the value, so their error is absolute, not relative to `f'`. Code may also take
    /// `4z/(1+z)²` with `z = e^(−2|x|)` and `z/(1+z)²` with `z = e^(−|x|)`: an exponential off by one ulp counts for two roundings above the
    /// bar and, with `z/(1+z) ≤ ½`, for two below it; the sum there counts twice; square and quotient once each: 8 roundings of `f'`.
    pub fn derivative(self, x: Bounded) -> Bounded {
        let precision = x.precision;
        let (zero, one) = (precision.exact(0.0), precision.exact(1.0));
        let slope = precision.constant(LEAKY_SLOPE);
        let kinked = |kinks: &[f64], outside: Bounded, inside: bool| {
            let at_kink = kinks.iter().any(|kink| (x.value - kink).abs() <= x.error);
            let value = if inside { one } else { outside };
            let jump = if at_kink { 1.0 - outside.value } else { 0.0 };
            Bounded::new(value.value, value.error.max(outside.error) + jump, precision)
        };
        if x.value.is_nan() {
            return x;
        }
        match self {
            Activation::Identity => one,
            Activation::Relu => kinked(&[0.0], zero, x.value > 0.0),
            Activation::LeakyRelu => kinked(&[0.0], slope, x.value > 0.0),
            Activation::HardSigmoid => kinked(&[0.0, 1.0], zero, x.value > 0.0 && x.value < 1.0),
            Activation::Sigmoid => {
                let s = self.value(x);
                // d(s(1 − s)) = (1 − 2s) ds; the product below counts s twice, which is a bound too.
                let slope = s * (one - s);
                slope.widen(8, slope.magnitude())
            }
            Activation::Tanh => {
                let s = self.value(x);
                let slope = one - s * s;
                slope.widen(8, slope.magnitude())
            }
        }
    }

    /// `f(p⁺) − f(p⁻)`, given also the spread `q = p⁺ − p⁻` with a bound of its own, accurate relative to `q` (`design.md` 2.2).
    /// Signs as in the formula: negative if `q < 0`. NaN in any argument gives NaN.
    ///
    /// The plain subtraction is *not* within the bound when `|q|` is small beside `|p|`: that is the point.
    pub fn rise(self, plus: Bounded, minus: Bounded, q: Bounded) -> Bounded {
        if plus.value.is_nan() || minus.value.is_nan() || q.value.is_nan() {
            return q.precision.exact(f64::NAN);
        }
        let one = q.precision.exact(1.0);
        match self {
            Activation::Identity => q,
            Activation::Relu => clipped_rise(plus, minus, q, false),
            Activation::HardSigmoid => clipped_rise(plus, minus, q, true),
            Activation::LeakyRelu => {
                // f(x) = slope·x + (1 − slope)·relu(x)
                let slope = q.precision.constant(LEAKY_SLOPE);
                let rise = slope * q + (one - slope) * clipped_rise(plus, minus, q, false);
                rise.widen(LEAKY, rise.magnitude())
            }
            Activation::Tanh => smooth_rise(plus, minus, q, 1.0),
            Activation::Sigmoid => smooth_rise(plus, minus, q, 0.5),
        }
    }

    /// Smallest and largest derivative on `[from, to]`; one-sided derivatives at a kink count.
    ///
    /// For `tanh` and the sigmoid the derivative is `sech²` (of half the argument, a quarter of it), which falls with the distance
    /// from 0; it is computed as `4z/(1 + z)²`, `z = e^−2|x|`, and moved outwards by 2⁻⁴⁰ for its f64 roundings.
    pub fn slopes(self, from: f64, to: f64) -> [f64; 2] {
        let nearest = if from <= 0.0 && to >= 0.0 { 0.0 } else { from.abs().min(to.abs()) };
        let farthest = from.abs().max(to.abs());
        let sech2 = |x: f64| {
            let z = (-2.0 * x).exp();
            4.0 * z / (1.0 + z).powi(2)
        };
        let outwards = 2f64.powi(-40);
        let falling = |scale: f64, factor: f64| {
            [factor * sech2(scale * farthest) * (1.0 - outwards), factor * sech2(scale * nearest) * (1.0 + outwards)]
        };
        // The slope 0.01 as any precision may round it.
        let leak = f64::from(f32::EPSILON);
        match self {
            Activation::Identity => [1.0, 1.0],
            Activation::Relu => [f64::from(from > 0.0), f64::from(to >= 0.0)],
            Activation::LeakyRelu => {
                let [smallest, largest] = [LEAKY_SLOPE * (1.0 - leak), LEAKY_SLOPE * (1.0 + leak)];
                [if from > 0.0 { 1.0 } else { smallest }, if to >= 0.0 { 1.0 } else { largest }]
            }
            Activation::HardSigmoid => [f64::from(from > 0.0 && to < 1.0), f64::from(to >= 0.0 && from <= 1.0)],
            Activation::Sigmoid => falling(0.5, 0.25),
            Activation::Tanh => falling(1.0, 1.0),
        }
    }

    /// Roundings allowed in [`Activation::value`] beyond those of its argument.
    pub fn roundings(self) -> usize {
        match self {
            Activation::Identity | Activation::Relu | Activation::HardSigmoid => 0,
            Activation::LeakyRelu => LEAKY,
            Activation::Sigmoid | Activation::Tanh => SMOOTH,
        }
    }

    /// Roundings allowed in [`Activation::rise`], relative to its result.
    pub fn rise_roundings(self) -> usize {
        match self {
            Activation::Identity | Activation::Relu | Activation::HardSigmoid => 2,
            Activation::LeakyRelu => LEAKY,
            Activation::Sigmoid | Activation::Tanh => RISE,
        }
    }

    /// `k` with `f(x) = const + k tanh(kx)`: 1 for `tanh`, ½ for the sigmoid `½ + ½ tanh(x/2)`.
    /// `None` for the piecewise linear functions.
    pub fn smooth_scale(self) -> Option<f64> {
        match self {
            Activation::Tanh => Some(1.0),
            Activation::Sigmoid => Some(0.5),
            _ => None,
        }
    }

    /// `f(x)` in f64.
    fn at(self, x: f64) -> f64 {
        match self {
            _ if x.is_nan() => f64::NAN,
            Activation::Identity => x,
            Activation::Relu => x.max(0.0),
            Activation::LeakyRelu if x > 0.0 => x,
            Activation::LeakyRelu => LEAKY_SLOPE * x,
            Activation::HardSigmoid => x.clamp(0.0, 1.0),
            // e^−x would overflow before e^x underflows.
            Activation::Sigmoid if x < 0.0 => x.exp() / (1.0 + x.exp()),
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Activation::Tanh => x.tanh(),
        }
    }
}

/// `slope · e`, 0 if the slope is 0 even if `e` is infinite.
fn times(slope: f64, e: f64) -> f64 {
    if slope == 0.0 { 0.0 } else { slope * e }
}

/// Rise of the ReLU, or of the hard sigmoid if `capped`:
///
/// ```text
/// q ≥ 0:   max(0, min(q, p⁺))      and     max(0, min(q, p⁺, 1 − p⁻, 1))                                (*)
/// q < 0:   the same with p⁺ and p⁻ exchanged, negated
/// ```
///
/// because `min(p⁺, 1) − max(p⁻, 0)` is the smallest of the four differences of `{p⁺, 1}` and `{p⁻, 0}`.
/// [`Bounded::min`] and [`Bounded::max`] propagate the errors. If the sign of `q` is not certain the result of every evaluation
/// still lies between 0 and its own `q̂`, hence within `|q| + e + |value|` of the value.
fn clipped_rise(plus: Bounded, minus: Bounded, q: Bounded, capped: bool) -> Bounded {
    if q.value < 0.0 {
        return -clipped_rise(minus, plus, -q, capped);
    }
    let one = q.precision.exact(1.0);
    let mut rise = q.min(plus);
    if capped {
        rise = rise.min(one - minus).min(one);
    }
    let rise = rise.max(q.precision.exact(0.0));
    if q.value > q.error { rise } else { Bounded::new(rise.value, q.magnitude() + rise.value.abs(), q.precision) }
}

/// Rise of `tanh` (`scale = 1`), and of the sigmoid `½(1 + tanh(x/2))` (`scale = ½`, with arguments and result halved):
///
/// ```text
/// tanh p⁺ − tanh p⁻ = sinh(q)/(cosh p⁺ cosh p⁻) = 2 sign(q) (−expm1(−2|q|)) E / ((1 + z⁺)(1 + z⁻)) ,
/// z± = e^−2|p±| ,   E = max(z⁺, z⁻) if p⁺ and p⁻ have the same sign, 1 otherwise.
/// ```
///
/// Since `cosh p = e^|p|(1 + z)/2` and `sinh|q| = −e^|q| expm1(−2|q|)/2`, the exponentials leave `E = e^(|q| − |p⁺| − |p⁻|)`, whose
/// exponent is 0 for opposite signs and `−2 min(|p⁺|, |p⁻|)` for equal ones.
///
/// The bound is relative. As a function of three independent arguments `ln rise` has the derivatives
///
/// ```text
/// by q:    2/(e^2|q| − 1) ≤ 1/|q| ,      by p±:  at most 1 + tanh|p±| ≤ 2 in magnitude,
/// ```
///
/// and `tanh(q)(1 − s⁺s⁻)` has no larger ones. So with the errors `e` of the arguments (halved for the sigmoid) and n = 16 roundings
/// `|ln rise^ − ln rise| ≤ e_q/(|q| − e_q) + 2(e⁺ + e⁻) + n(u + 2⁻⁵³)`. Four `tiny` a factor `z` pay for underflow. If the sign
/// of `q` is not certain, `|rise| ≤ |q|` (slope at most 1) takes the place of this bound.
fn smooth_rise(plus: Bounded, minus: Bounded, q: Bounded, scale: f64) -> Bounded {
    let z = |p: Bounded| (-2.0 * scale * p.value.abs()).exp();
    let (z_plus, z_minus) = (z(plus), z(minus));
    let same_sign = (plus.value < 0.0) == (minus.value < 0.0);
    let overlap = if same_sign { z_plus.max(z_minus) } else { 1.0 };
    let height = -(-2.0 * scale * q.value.abs()).exp_m1();
    let value = 2.0 * scale * q.value.signum() * height * overlap / ((1.0 + z_plus) * (1.0 + z_minus));
    if q.value.abs() <= q.error {
        return Bounded::new(value, q.magnitude() + value.abs(), q.precision);
    }
    let relative =
        q.error / (q.value.abs() - q.error) + 2.0 * scale * (plus.error + minus.error) + RISE as f64 * q.precision.unit();
    // The factor pays for the few f64 roundings of this bound.
    Bounded::new(value, value.abs() * relative.exp_m1() * (1.0 + 2f64.powi(-40)), q.precision).underflow(8.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bound::Precision;
    use crate::generate::SplitMix64;

    /// `f` in f32 by the formula of the definition.
    fn value_f32(f: Activation, x: f32) -> f32 {
        match f {
            Activation::Identity => x,
            Activation::Relu => x.max(0.0),
            Activation::LeakyRelu => x.max(0.01 * x),
            Activation::HardSigmoid => x.clamp(0.0, 1.0),
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Activation::Tanh => x.tanh(),
        }
    }

    /// A rise in f32 by another formula than the reference's.
    fn rise_f32(f: Activation, plus: f32, minus: f32, q: f32) -> f32 {
        let relu = if q >= 0.0 { q.min(plus).max(0.0) } else { q.max(-minus).min(0.0) };
        let tanh = |plus: f32, minus: f32, q: f32| {
            let (e_plus, e_minus) = ((-plus.abs()).exp(), (-minus.abs()).exp());
            let (a, b) = (e_plus * e_plus, e_minus * e_minus);
            if a * b > 1e-3 {
                q.tanh() * (1.0 - plus.tanh() * minus.tanh())
            } else if (plus < 0.0) == (minus < 0.0) {
                -2.0 * q.signum() * (-2.0 * q.abs()).exp_m1() * a.max(b) / (1.0 + a) / (1.0 + b)
            } else {
                -2.0 * q.signum() * (-2.0 * q.abs()).exp_m1() / ((1.0 + a) * (1.0 + b))
            }
        };
        match f {
            Activation::Identity => q,
            Activation::Relu => relu,
            Activation::LeakyRelu => 0.01 * q + 0.99 * relu,
            Activation::HardSigmoid if q >= 0.0 => q.min(plus).min(1.0 - minus).clamp(0.0, 1.0),
            Activation::HardSigmoid => -(-q).min(minus).min(1.0 - plus).clamp(0.0, 1.0),
            Activation::Sigmoid => 0.5 * tanh(plus / 2.0, minus / 2.0, q / 2.0),
            Activation::Tanh => tanh(plus, minus, q),
        }
    }

    /// `(a, v)`, with sizes of `v` from 2⁻³⁰ to 2³.
    fn drives(random: &mut SplitMix64) -> (f32, f32) {
        let a = 6.0 * random.symmetric() * random.symmetric();
        let v = random.symmetric() * 2f64.powi(3 - random.below(34) as i32);
        (a as f32, v as f32)
    }

    #[test]
    fn values_in_f32_are_admitted() {
        let mut random = SplitMix64::new(1);
        for f in Activation::ALL {
            for _ in 0..20_000 {
                let (a, v) = drives(&mut random);
                let p = Precision::F32.exact(a.into()) + Precision::F32.exact(v.into());
                let bound = f.value(p);
                assert!(bound.admits(value_f32(f, a + v).into()), "{f:?}({a} + {v})");
                assert!(!bound.admits(bound.value + 1e-5 * a.abs().max(1.0) as f64), "{f:?} bound is too wide: {bound:?}");
            }
        }
    }

    #[test]
    fn rises_in_f32_are_admitted_and_plain_subtractions_are_not() {
        let mut random = SplitMix64::new(2);
        for f in Activation::ALL {
            let (mut caught, mut small) = (0, 0);
            for _ in 0..20_000 {
                let (a, v) = drives(&mut random);
                let (half, p) = (Precision::F32.exact(0.5), Precision::F32);
                let (drive, feedback) = (p.exact(a.into()), p.exact(v.into()));
                let (plus, minus) = (drive + half * feedback, drive - half * feedback);
                let bound = f.rise(plus, minus, feedback);
                let (plus, minus) = (a + 0.5 * v, a - 0.5 * v);
                let got = rise_f32(f, plus, minus, v);
                assert!(bound.admits(got.into()), "{f:?}, a = {a}, v = {v}: {got} is not within {bound:?}");
                if v.abs() < 1e-4 * a.abs() && bound.value != 0.0 {
                    small += 1;
                    let subtracted = value_f32(f, plus) - value_f32(f, minus);
                    caught += usize::from(!bound.admits(subtracted.into()));
                    assert!(bound.error < 1e-4 * f64::from(v.abs()) || f == Activation::HardSigmoid, "{f:?}: {bound:?}");
                }
            }
            assert!(small > 1000 && caught * 10 > small * 7, "{f:?}: only {caught} of {small} subtractions noticed");
        }
    }

    #[test]
    fn rises_in_f64_agree_with_the_difference_of_values() {
        let mut random = SplitMix64::new(3);
        for f in Activation::ALL {
            for _ in 0..20_000 {
                let (a, v) = (4.0 * random.symmetric(), 4.0 * random.symmetric());
                let (plus, minus) = (Precision::F64.exact(a), Precision::F64.exact(v));
                let difference = f.at(a) - f.at(v);
                let rise = f.rise(plus, minus, plus - minus);
                assert!(
                    (rise.value - difference).abs() < 1e-15 * (4.0 + a.abs() + v.abs()),
                    "{f:?} {a} {v}: {rise:?}, {difference}"
                );
            }
        }
    }

    #[test]
    fn saturated_rises_keep_their_relative_accuracy() {
        // tanh(30) − tanh(29.5) = 2(e^−59 − e^−60) up to e^−118, far below the resolution of 1.
        let exact = 2.0 * ((-59f64).exp() - (-60f64).exp());
        let p = Precision::F32;
        let rise = Activation::Tanh.rise(p.exact(30.0), p.exact(29.5), p.exact(0.5));
        assert!((rise.value / exact - 1.0).abs() < 1e-14 && rise.error < 1e-5 * exact, "{rise:?}");
        let rise = Activation::Sigmoid.rise(p.exact(-59.0), p.exact(-60.0), p.exact(1.0));
        assert!((rise.value / ((-59f64).exp() - (-60f64).exp()) - 1.0).abs() < 1e-14 && rise.error < 1e-5 * exact);
    }

    #[test]
    fn derivatives_match_central_differences_and_cover_both_sides_of_a_kink() {
        let p = Precision::F64;
        for f in Activation::ALL {
            for x in [-2.3, -0.7, 0.2, 0.9, 1.8] {
                let quotient = (f.at(x + 1e-6) - f.at(x - 1e-6)) / 2e-6;
                let derivative = f.derivative(p.exact(x));
                assert!((derivative.value - quotient).abs() < 1e-9 && derivative.error < 1e-14, "{f:?}'({x})");
                let [smallest, largest] = f.slopes(x - 0.5, x + 0.25);
                for other in [x - 0.5, x, x + 0.25] {
                    let derivative = f.derivative(p.exact(other)).value;
                    assert!(smallest <= derivative && derivative <= largest);
                }
            }
        }
        for (f, kink) in [(Activation::Relu, 0.0), (Activation::HardSigmoid, 0.0), (Activation::HardSigmoid, 1.0)] {
            for x in [p.exact(kink), Bounded::new(kink + 0.05, 0.1, p), Bounded::new(kink - 0.05, 0.1, p)] {
                let derivative = f.derivative(x);
                assert!(derivative.admits(0.0) && derivative.admits(1.0));
            }
        }
        let derivative = Activation::LeakyRelu.derivative(p.exact(0.0));
        assert!(derivative.admits(1.0) && derivative.admits(LEAKY_SLOPE));
        let derivative = Activation::Relu.derivative(Bounded::new(0.2, 0.1, p));
        assert!(derivative.admits(1.0) && !derivative.admits(0.0));
    }

    #[test]
    fn nan_stays_nan() {
        let (nan, one) = (Precision::F32.exact(f64::NAN), Precision::F32.exact(1.0));
        for f in Activation::ALL {
            assert!(f.value(nan).value.is_nan() && f.derivative(nan).value.is_nan());
            assert!(f.rise(nan, one, one).value.is_nan() && f.rise(one, one, nan).value.is_nan());
        }
    }
}
