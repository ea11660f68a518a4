//! One relaxation of a hidden unit: its mean and its difference from the drives of its neighbours.
//!
//! ```text
//! p⁺ = a + c⁺ v ,   p⁻ = a + c⁻ v ,      s± = f(p±) ,      mean = w s⁺ + (1 − w) s⁻ ,   diff = s⁺ − s⁻
//! ```
//!
//! | rule | `c⁺` | `c⁻` | `w` | source (`mathematics.md`) |
//! |---|---|---|---|---|
//! | DP | α | −ᾱ | α | 1.2.1 (1) |
//! | DP⊤ | ᾱ | −α | α | 1.2.1 (2) |
//! | gain | γ/2 | −γ/2 | ½ | 2.2 (3) |

use crate::activation::Activation;
use crate::bound::{Bounded, Precision};

/// State of a unit: what its neighbours see.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dyad {
    /// `s̄ = w s⁺ + (1 − w) s⁻`, sent up.
    pub mean: Bounded,
    /// `Δ = s⁺ − s⁻`, sent down.
    pub diff: Bounded,
}

/// How feedback enters the two compartments and how they are averaged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nudge {
    /// `c⁺`.
    pub plus: Bounded,
    /// `c⁻`.
    pub minus: Bounded,
    /// `c⁺ − c⁻` in closed form: 1 for DP and DP⊤, γ for the gain.
    pub gain: Bounded,
    /// Weight `w` of `s⁺` in the mean.
    pub weight: Bounded,
}

impl Nudge {
    /// DP: `(c⁺, c⁻) = (α, −ᾱ)`, mean by α (1.2.1, eq. 1).
    pub fn dp(precision: Precision, alpha: f64) -> Self {
        let (one, weight) = (precision.exact(1.0), precision.parameter(alpha));
        Nudge { plus: weight, minus: -weight.complement(), gain: one, weight }
    }

    /// DP⊤: `(c⁺, c⁻) = (ᾱ, −α)`, mean by α (1.2.1, eq. 2).
    pub fn dp_transpose(precision: Precision, alpha: f64) -> Self {
        let (one, weight) = (precision.exact(1.0), precision.parameter(alpha));
        Nudge { plus: weight.complement(), minus: -weight, gain: one, weight }
    }

    /// Feedback gain: `(c⁺, c⁻) = (γ/2, −γ/2)`, mean by ½ (2.2, eq. 3).
    pub fn gain(precision: Precision, gamma: f64) -> Self {
        let (half, gain) = (precision.exact(0.5), precision.parameter(gamma));
        Nudge { plus: half * gain, minus: -(half * gain), gain, weight: half }
    }
}

/// Damping constant `λ` of a layer with outgoing spectral norm `γ` (`mathematics.md` 1.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damping {
    /// `λ = |1 − 2α| max(0, (γ² − 1)/2)`: the MLP code.
    Asymmetric,
    /// `λ = max(0, (γ² − 1)/2)`: the CNN code.
    Plain,
}

impl Damping {
    /// `λ` for asymmetry `α` and outgoing spectral norm `γ_k`.
    pub fn lambda(self, alpha: Bounded, gamma: Bounded) -> Bounded {
        let precision = alpha.precision;
        let [zero, half, one, two] = [0.0, 0.5, 1.0, 2.0].map(|x| precision.exact(x));
        let plain = (half * (gamma * gamma - one)).max(zero);
        let skew = one - two * alpha;
        match self {
            Damping::Asymmetric => skew.max(-skew) * plain,
            Damping::Plain => plain,
        }
    }
}

/// Relaxes a unit: the formulas of the [module](self) for bottom-up drive `a` and top-down drive `v`.
///
/// Bounds: input errors by the mean value theorem, own roundings beside them (see `Arguments` in the source): five of `p±` (three for
/// a coefficient, a product and a sum; five admit `p⁻ = p⁺ − q`) and four of `q = (c⁺ − c⁻) v` (two coefficients, their difference, a
/// product).
pub fn relax(activation: Activation, nudge: Nudge, a: Bounded, v: Bounded) -> Dyad {
    let precision = a.precision;
    let (c_plus, c_minus, gain) = (nudge.plus.value, nudge.minus.value, nudge.gain.value);
    let size = a.magnitude() + (c_plus.abs() + c_minus.abs()) * v.magnitude();
    Arguments {
        precision,
        plus: a.value + c_plus * v.value,
        minus: a.value + c_minus * v.value,
        spread: gain * v.value,
        shift: a.error,
        inputs: vec![Input { plus: c_plus, minus: c_minus, gap: gain, error: v.error }],
        own: precision.gamma(5) * size + 4.0 * precision.tiny(),
        own_spread: precision.gamma(4) * gain.abs() * v.magnitude() + 4.0 * precision.tiny(),
    }
    .dyad(activation, nudge.weight.value)
}

/// Relaxes a damped unit from its state `old` (`mathematics.md` 1.2.4):
///
/// ```text
/// p± = (a + c± v + λ s±)/(1 + λ) ,   s⁺ = s̄ + ᾱΔ ,   s⁻ = s̄ − αΔ ,      q = p⁺ − p⁻ = ((c⁺ − c⁻) v + λΔ)/(1 + λ)
/// ```
///
/// For ReLU, hard sigmoid and identity the fixed points are those of [`relax`]. For the others they are not: `s = f(p)` solves
/// `s = f((p + λs)/(1 + λ))` only where `f(s) = s`.
///
/// Bounds: as for [`relax`], with twelve roundings of `p±` and of `q`. An error of `λ` moves them by at most
/// `e_λ |s± − p±|/(1 + λ)` and `e_λ |Δ − q|/(1 + λ)`, and counts as a rounding.
pub fn relax_damped(activation: Activation, nudge: Nudge, lambda: Bounded, a: Bounded, v: Bounded, old: Dyad) -> Dyad {
    let precision = a.precision;
    let (c_plus, c_minus, gain, w) = (nudge.plus.value, nudge.minus.value, nudge.gain.value, nudge.weight.value);
    let total = 1.0 + lambda.value;
    let s_plus = old.mean.value + (1.0 - w) * old.diff.value;
    let s_minus = old.mean.value - w * old.diff.value;
    let states = old.mean.magnitude() + old.diff.magnitude();
    let feedback = (c_plus.abs() + c_minus.abs()) * v.magnitude();
    let size = (a.magnitude() + feedback + lambda.magnitude() * states) / total;
    let gap = (gain.abs() * v.magnitude() + lambda.magnitude() * old.diff.magnitude()) / total;
    // An error of λ; the divisor that an evaluation sees is at least 1 + λ − e.
    let drift = lambda.error / (total - lambda.error).max(1.0);
    Arguments {
        precision,
        plus: (a.value + c_plus * v.value + lambda.value * s_plus) / total,
        minus: (a.value + c_minus * v.value + lambda.value * s_minus) / total,
        spread: (gain * v.value + lambda.value * old.diff.value) / total,
        shift: (a.error + lambda.magnitude() * old.mean.error) / total,
        inputs: vec![
            Input { plus: c_plus / total, minus: c_minus / total, gap: gain / total, error: v.error },
            Input { plus: 1.0 - w, minus: -w, gap: 1.0, error: old.diff.error * lambda.magnitude() / total },
        ],
        own: precision.gamma(12) * size + drift * (states + size) + 8.0 * precision.tiny(),
        own_spread: precision.gamma(12) * gap + drift * (old.diff.magnitude() + gap) + 8.0 * precision.tiny(),
    }
    .dyad(activation, nudge.weight.value)
}

/// An input of a unit that moves its two arguments differently.
struct Input {
    /// `∂p⁺/∂input`.
    plus: f64,
    /// `∂p⁻/∂input`.
    minus: f64,
    /// `∂q/∂input = ∂p⁺/∂input − ∂p⁻/∂input`, in closed form.
    gap: f64,
    /// Error of the input.
    error: f64,
}

/// The arguments of a unit's two compartments, and their errors of two kinds.
///
/// *Errors of the inputs* move `p⁺`, `p⁻` and `q` consistently, so they act through the exact functions `diff(inputs)` and
/// `mean(inputs)`: by the mean value theorem, the derivatives with `f'` at `p±` anywhere in its interval times the errors. Taking the
/// three arguments as independent would count an error of `v` twice, and lose that DP⊤ keeps it out of the mean.
/// *Own roundings* of `p±` and `q` are independent; the forms in which the result may be computed differ in what they make of them.
struct Arguments {
    precision: Precision,
    /// `p⁺`.
    plus: f64,
    /// `p⁻`.
    minus: f64,
    /// `q = p⁺ − p⁻`, computed as such.
    spread: f64,
    /// Input error that moves `p⁺` and `p⁻` by the same amount.
    shift: f64,
    /// The other inputs.
    inputs: Vec<Input>,
    /// Own rounding error of `p⁺` and of `p⁻`.
    own: f64,
    /// Own rounding error of `q`.
    own_spread: f64,
}

impl Arguments {
    /// `p⁺`, `p⁻` and `q` with all their errors.
    fn bounded(&self) -> [Bounded; 3] {
        let moved = |by: fn(&Input) -> f64| self.inputs.iter().map(|input| by(input).abs() * input.error).sum::<f64>();
        let plus = self.shift + moved(|input| input.plus) + self.own;
        let minus = self.shift + moved(|input| input.minus) + self.own;
        let spread = moved(|input| input.gap) + self.own_spread;
        [(self.plus, plus), (self.minus, minus), (self.spread, spread)]
            .map(|(value, error)| Bounded::new(value, error * (1.0 + 16.0 * self.precision.unit()), self.precision))
    }

    /// The new state for mean weight `w`.
    fn dyad(&self, activation: Activation, w: f64) -> Dyad {
        let [plus, minus, spread] = self.bounded();
        let rise = activation.rise(plus, minus, spread);
        let [s_plus, s_minus] = [plus, minus].map(|p| activation.value(p));
        let slopes = [plus, minus].map(|p| activation.slopes(p.value - p.error, p.value + p.error));
        let own_rise = self.own_of_rise(activation, rise, slopes);
        let diff = match activation.smooth_scale() {
            Some(scale) => self.smooth_diff(rise, own_rise, [s_plus, s_minus], slopes, scale),
            None => rise,
        };
        Dyad { mean: self.mean(activation, w, [s_plus, s_minus], slopes, own_rise), diff }
    }

    /// What own roundings do to `diff`.
    ///
    /// The derivatives of the rise as a function of independent arguments are at most `S`, the largest slope, by `q`, and for the smooth
    /// functions relative to the rise at most `2k` by `p±` (see [`Activation::rise`]); for the others they are at most `S` by each, and
    /// only one of the three is not zero. Then come the roundings of the rise itself.
    fn own_of_rise(&self, activation: Activation, rise: Bounded, slopes: [[f64; 2]; 2]) -> f64 {
        let largest = slopes[0][1].max(slopes[1][1]);
        let allowed = self.precision.unit() * activation.rise_roundings() as f64;
        match activation.smooth_scale() {
            Some(scale) => {
                let relative = 4.0 * scale * self.own + allowed;
                largest * self.own_spread * (2.0 * self.own_spread).exp() + rise.magnitude() * relative.exp_m1()
            }
            None => largest * self.own.max(self.own_spread) + rise.magnitude() * allowed,
        }
    }

    /// `diff` of `tanh` (`k = 1`) and the sigmoid (`k = ½`).
    ///
    /// A shift of both arguments changes it relatively: `∂ ln diff/∂a = −k(tanh kp⁺ + tanh kp⁻)`, since `diff` is proportional to
    /// `sinh(kq)/(cosh kp⁺ cosh kp⁻)`; at most `2k`, and zero in the middle. Other inputs change it by
    /// `|∂p⁺ f'(p⁺) − ∂p⁻ f'(p⁻)|` at most. So `diff` stays accurate relative to `q`.
    fn smooth_diff(&self, rise: Bounded, own: f64, states: [Bounded; 2], slopes: [[f64; 2]; 2], scale: f64) -> Bounded {
        // tanh kp = (s − middle)/k with middle 0 for tanh and ½ for the sigmoid.
        let middle = if scale == 1.0 { 0.0 } else { 0.5 };
        let [s_plus, s_minus] = states;
        let tilt = (s_plus.value - middle + s_minus.value - middle).abs() + s_plus.error + s_minus.error;
        let shifted = rise.value.abs() * (tilt.min(2.0 * scale) * self.shift).exp_m1();
        let moved: f64 = self.inputs.iter().map(|input| largest_change([input.plus, -input.minus], slopes) * input.error).sum();
        let error = (shifted + moved) * (1.0 + 32.0 * self.precision.unit()) + own;
        Bounded::new(rise.value, error.min(rise.error), self.precision).underflow(8.0)
    }

    /// `w s⁺ + (1 − w) s⁻`, by any of the forms
    ///
    /// ```text
    /// w s⁺ + (1 − w) s⁻ ,     s⁻ + w Δ ,     s⁺ − (1 − w) Δ .
    /// ```
    ///
    /// Inputs change it by `|w ∂p⁺ f'(p⁺) + (1 − w) ∂p⁻ f'(p⁻)|` at most. In the last two forms own roundings are those of one state
    /// (`S` times that of its argument, and those of `f`), of `Δ`, and four more for the weight, its counterpart, the product and the
    /// sum; in the first form those of the states and the four.
    fn mean(&self, activation: Activation, w: f64, states: [Bounded; 2], slopes: [[f64; 2]; 2], own_rise: f64) -> Bounded {
        let weights = [w, 1.0 - w];
        let value = weights[0] * states[0].value + weights[1] * states[1].value;
        let shifted = (weights[0] * slopes[0][1] + weights[1] * slopes[1][1]) * self.shift;
        let change = |input: &Input| largest_change([weights[0] * input.plus, weights[1] * input.minus], slopes);
        let moved: f64 = self.inputs.iter().map(|input| change(input) * input.error).sum();
        let own = slopes[0][1].max(slopes[1][1]) * self.own + own_rise;
        let error = (shifted + moved) * (1.0 + 32.0 * self.precision.unit()) + own;
        Bounded::new(value, error, self.precision)
            .widen(4 + activation.roundings(), states[0].magnitude() + states[1].magnitude())
            .underflow(8.0)
    }
}

/// `max |k⁺ f⁺ + k⁻ f⁻|` for slopes `f±` in their intervals: at one of the corners.
fn largest_change(factors: [f64; 2], slopes: [[f64; 2]; 2]) -> f64 {
    let mut largest: f64 = 0.0;
    for at_plus in slopes[0] {
        for at_minus in slopes[1] {
            largest = largest.max((factors[0] * at_plus + factors[1] * at_minus).abs());
        }
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::SplitMix64;

    const ALPHAS: [f64; 5] = [0.0, 0.25, 0.5, 0.8, 1.0];

    /// A drive pair of an f64 state of moderate size.
    fn drives(random: &mut SplitMix64, precision: Precision) -> [Bounded; 2] {
        [3.0 * random.symmetric(), 2.0 * random.symmetric()].map(|x| precision.exact(precision.nearest(x)))
    }

    #[test]
    fn the_definition_in_f64() {
        let mut random = SplitMix64::new(1);
        for f in Activation::ALL {
            for alpha in ALPHAS {
                for _ in 0..200 {
                    let [a, v] = drives(&mut random, Precision::F64);
                    let value = |p: f64| f.value(Precision::F64.exact(p)).value;
                    for (nudge, c_plus, c_minus, w) in [
                        (Nudge::dp(Precision::F64, alpha), alpha, alpha - 1.0, alpha),
                        (Nudge::dp_transpose(Precision::F64, alpha), 1.0 - alpha, -alpha, alpha),
                        (Nudge::gain(Precision::F64, alpha), alpha / 2.0, -alpha / 2.0, 0.5),
                    ] {
                        let dyad = relax(f, nudge, a, v);
                        let s_plus = value(a.value + c_plus * v.value);
                        let s_minus = value(a.value + c_minus * v.value);
                        let mean = w * s_plus + (1.0 - w) * s_minus;
                        assert!((dyad.mean.value - mean).abs() < 2e-15 && dyad.mean.error < 1e-13);
                        assert!((dyad.diff.value - (s_plus - s_minus)).abs() < 4e-15 && dyad.diff.error < 1e-13);
                    }
                }
            }
        }
    }

    #[test]
    fn every_form_of_the_mean_in_f32_is_admitted() {
        let mut random = SplitMix64::new(2);
        let mut worst: f64 = 0.0;
        for _ in 0..50_000 {
            for alpha in ALPHAS {
                let [a, v] = drives(&mut random, Precision::F32);
                let relu = relax(Activation::Relu, Nudge::dp(Precision::F32, alpha), a, v);
                let tanh = relax(Activation::Tanh, Nudge::dp(Precision::F32, alpha), a, v);
                let (a, v, w) = (a.value as f32, v.value as f32, alpha as f32);
                let (plus, minus) = (a + w * v, a - (1.0 - w) * v);
                let rise = if v >= 0.0 { v.min(plus).max(0.0) } else { v.max(-minus).min(0.0) };
                for (bound, s_plus, s_minus, diff) in [
                    (relu, plus.max(0.0), minus.max(0.0), rise),
                    (tanh, plus.tanh(), minus.tanh(), v.tanh() * (1.0 - plus.tanh() * minus.tanh())),
                ] {
                    let forms = [
                        w * s_plus + (1.0 - w) * s_minus,
                        w.mul_add(s_plus, (1.0 - w) * s_minus),
                        s_minus + w * diff,
                        s_plus - (1.0 - w) * diff,
                    ];
                    for mean in forms {
                        assert!(bound.mean.admits(mean.into()), "α = {alpha}, a = {a}, v = {v}: {mean} {bound:?}");
                        worst = worst.max(bound.mean.ratio(mean.into()));
                    }
                }
            }
        }
        assert!(worst > 0.1, "the bound is far too wide: {worst}");
    }

    #[test]
    fn every_point_of_the_input_intervals_is_admitted_and_the_bound_is_not_much_wider() {
        let p = Precision::F64;
        let mut random = SplitMix64::new(4);
        for f in Activation::ALL {
            let (mut reach, mut room): (f64, f64) = (0.0, 0.0);
            for _ in 0..5_000 {
                let alpha = ALPHAS[random.below(5) as usize];
                let nudge = if random.bits() & 1 == 0 { Nudge::dp(p, alpha) } else { Nudge::dp_transpose(p, alpha) };
                let [a, v] = drives(&mut random, p);
                let [s, d, lambda] = [random.symmetric(), random.symmetric(), random.symmetric().abs()].map(|x| p.exact(x));
                let e = 1e-3 * random.symmetric().abs();
                let wide = |x: Bounded| Bounded::new(x.value, e, p);
                let relaxed = relax(f, nudge, wide(a), wide(v));
                let damped = relax_damped(f, nudge, wide(lambda), wide(a), wide(v), Dyad { mean: wide(s), diff: wide(d) });
                let mut farthest: f64 = 0.0;
                for _ in 0..8 {
                    let mut near = |x: Bounded| p.exact(x.value + e * random.symmetric().signum());
                    let (a, v) = (near(a), near(v));
                    let moved = relax(f, nudge, a, v);
                    assert!(relaxed.mean.admits(moved.mean.value) && relaxed.diff.admits(moved.diff.value), "{f:?} {relaxed:?}");
                    let old = Dyad { mean: near(s), diff: near(d) };
                    let again = relax_damped(f, nudge, near(lambda), a, v, old);
                    assert!(damped.mean.admits(again.mean.value) && damped.diff.admits(again.diff.value), "{f:?} {damped:?}");
                    farthest = farthest.max((moved.diff.value - relaxed.diff.value).abs());
                }
                reach += farthest;
                room += relaxed.diff.error;
            }
            assert!(room < 3.0 * reach, "{f:?}: bounds of {room} for distances of {reach}");
        }
    }

    #[test]
    fn own_roundings_at_a_kink_are_admitted() {
        // p⁺ = a + αv nearly cancels: diff = p⁺ carries the roundings of numbers of the size of a.
        let mut random = SplitMix64::new(5);
        let (p, mut off) = (Precision::F32, 0);
        for _ in 0..10_000 {
            let [alpha, v] = [0.5 + 0.3 * random.symmetric(), random.symmetric().abs()].map(|x| x as f32);
            let a = -alpha * v * (1.0 + 1e-5 * random.symmetric() as f32);
            let dyad = relax(Activation::Relu, Nudge::dp(p, alpha.into()), p.exact(a.into()), p.exact(v.into()));
            let (plain, fused) = ((a + alpha * v).max(0.0), alpha.mul_add(v, a).max(0.0));
            assert!(dyad.diff.admits(plain.into()) && dyad.diff.admits(fused.into()), "{dyad:?}, {plain}, {fused}");
            assert!(dyad.diff.error < 1e-6 * f64::from(v));
            off += usize::from((f64::from(plain) - dyad.diff.value).abs() > 1e-3 * dyad.diff.value);
        }
        assert!(off > 1000, "the roundings do not show: {off}");
    }

    #[test]
    fn exchanged_nudges_are_noticed() {
        let p = Precision::F32;
        let (a, v) = (p.exact(0.5), p.exact(0.25));
        let dp = relax(Activation::Tanh, Nudge::dp(p, 0.25), a, v);
        let transposed = relax(Activation::Tanh, Nudge::dp_transpose(p, 0.25), a, v);
        assert!(!dp.mean.admits(transposed.mean.value) && !dp.diff.admits(transposed.diff.value));
    }

    #[test]
    fn for_alpha_one_half_both_rules_are_the_same() {
        for precision in [Precision::F32, Precision::F64] {
            let [dp, transposed] = [Nudge::dp(precision, 0.5), Nudge::dp_transpose(precision, 0.5)];
            let mut random = SplitMix64::new(3);
            for f in Activation::ALL {
                let [a, v] = drives(&mut random, precision);
                assert_eq!(relax(f, dp, a, v), relax(f, transposed, a, v));
            }
        }
    }

    #[test]
    fn relu_mean_of_dp_transpose_is_the_forward_activation_away_from_the_kink() {
        let p = Precision::F64;
        for alpha in ALPHAS {
            let dyad = relax(Activation::Relu, Nudge::dp_transpose(p, alpha), p.exact(0.75), p.exact(0.125));
            assert!(dyad.mean.admits(0.75) && dyad.diff.admits(0.125));
            let closed = relax(Activation::Relu, Nudge::dp_transpose(p, alpha), p.exact(-0.75), p.exact(0.125));
            assert_eq!((closed.mean.value, closed.diff.value), (0.0, 0.0));
        }
    }

    #[test]
    fn damping_keeps_the_fixed_point_and_slows_the_way_to_it() {
        let p = Precision::F64;
        let (a, v) = (p.exact(0.6), p.exact(0.3));
        let nudge = Nudge::dp(p, 0.25);
        for f in Activation::ALL {
            // If λ = 0 the old state does not matter.
            let zero = p.exact(0.0);
            let undamped = relax(f, nudge, a, v);
            let old = Dyad { mean: p.exact(0.2), diff: p.exact(0.1) };
            let damped = relax_damped(f, nudge, zero, a, v, old);
            assert!(damped.mean.admits(undamped.mean.value) && damped.diff.admits(undamped.diff.value));
            // s± = 0.2 + 0.75·0.1 and 0.2 − 0.25·0.1; λ = 1.
            let damped = relax_damped(f, nudge, p.exact(1.0), a, v, old);
            let value = |x: f64| f.value(p.exact(x)).value;
            let (s_plus, s_minus) = (value((0.6 + 0.25 * 0.3 + 0.275) / 2.0), value((0.6 - 0.75 * 0.3 + 0.175) / 2.0));
            assert!((damped.diff.value - (s_plus - s_minus)).abs() < 1e-15);
            assert!((damped.mean.value - (0.25 * s_plus + 0.75 * s_minus)).abs() < 1e-15);
        }
    }

    #[test]
    fn damping_constants() {
        let p = Precision::F64;
        for (rule, alpha, gamma, lambda) in [
            (Damping::Plain, 0.0, 3.0, 4.0),
            (Damping::Plain, 0.5, 3.0, 4.0),
            (Damping::Asymmetric, 0.0, 3.0, 4.0),
            (Damping::Asymmetric, 1.0, 3.0, 4.0),
            (Damping::Asymmetric, 0.5, 3.0, 0.0),
            (Damping::Asymmetric, 0.25, 3.0, 2.0),
            (Damping::Asymmetric, 0.25, 0.5, 0.0),
        ] {
            assert_eq!(rule.lambda(p.exact(alpha), p.exact(gamma)).value, lambda);
        }
    }
}
