//! State functions: value, derivative, and the difference `f(hi) − f(lo)` without the subtraction.
//!
//! An activation is one `impl Activate` and one line in the table at the end.
//!
//! **Why a `rise`.** In dyadic learning the two arguments differ by a nudge that may be far below an ulp of either, while the
//! difference `q = hi − lo` itself is known to full relative accuracy. `f(hi) − f(lo)` of the rounded arguments has lost it. Here it is
//! computed from `q`: piecewise linear functions clamp `q` against their kinks, the smooth ones use
//! `tanh a − tanh b = sinh(a − b)/(cosh a·cosh b)` written with decaying exponentials only.

use crate::elementary::{
    LengthMismatch, Pointwise, Smooth, expm1_neg, map_pointwise, sigmoid_parts, sigmoid_slope, splat, tanh_parts,
};
use crate::isa::Isa;
use crate::vector::{Arithmetic, Real};
use core::fmt;

/// Both values of a dyad and their difference.
#[derive(Clone, Copy, Debug)]
pub struct Pair<V> {
    /// `f(hi)`.
    pub hi: V,
    /// `f(lo)`.
    pub lo: V,
    /// `f(hi) − f(lo)` with the relative accuracy of `q`.
    pub rise: V,
}

/// A pointwise non-decreasing state function.
pub trait Activate: Copy + Send + Sync + 'static {
    /// The name in configurations: lower case, hyphens.
    const NAME: &'static str;
    /// `|f(x) − f(y)| ≤ LIPSCHITZ·|x − y|`.
    const LIPSCHITZ: f64;

    /// `f(x)`.
    fn value<T: Real, S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V;
    /// `f(hi)`, `f(lo)` and their difference, for rounded arguments `hi` and `lo` and an accurate `q = hi − lo` of either sign.
    /// The values have the bits of [`Activate::value`]. NaN in any argument gives a NaN rise.
    fn pair<T: Real, S: Arithmetic<T>>(self, simd: S, hi: S::V, lo: S::V, q: S::V) -> Pair<S::V>;
    /// `f'(x)`; at a kink the smaller slope. NaN stays NaN.
    fn derivative<T: Real, S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V;

    /// The definition of the value, for references and tests.
    fn exact(self, x: f64) -> f64;
    /// The definition of the rise.
    fn exact_rise(self, hi: f64, lo: f64, q: f64) -> f64;
    /// The definition of the derivative.
    fn exact_derivative(self, x: f64) -> f64;
}

/// `x`.
#[derive(Clone, Copy, Debug)]
pub struct Identity;

/// `max(x, 0)`. NaN stays NaN, `−0` becomes `+0`. Exact; slope 0 at 0.
///
/// Rise: `max(0, min(q, hi))` for `q ≥ 0`, else `min(0, max(q, −lo))`; relative error at most `u`, that of the rounded argument.
#[derive(Clone, Copy, Debug)]
pub struct Relu;

/// `x` for `x > 0`, else [`LeakyRelu::SLOPE`]`·x`. NaN stays NaN. Error below zero 1.5 ulp (slope and product rounded).
///
/// Rise: `above + SLOPE·(q − above)` with the rise `above` of [`Relu`]; relative error at most `3u`, and exactly `q` above zero.
#[derive(Clone, Copy, Debug)]
pub struct LeakyRelu;

impl LeakyRelu {
    /// The slope below zero, 1/100 rounded to the element type.
    pub const SLOPE: f64 = 0.01;
}

/// `x` clipped to `[0, 1]`. NaN stays NaN, `−0` becomes `+0`. Exact; slope 1 on the open interval, 0 at its ends.
///
/// Rise: `min(q, hi, 1 − lo, 1)`, at least 0, for `q ≥ 0`, else `−min(−q, lo, 1 − hi, 1)`; relative error at most `u` but for `1 − hi`: a span
/// that crosses 1 downwards, or starts within an ulp of it, has the absolute error `u·|hi|`, that of the rounded argument.
#[derive(Clone, Copy, Debug)]
pub struct HardSigmoid;

/// `1/(1 + e^(−x))`; see [`crate::elementary::sigmoid`]. The slope `z/(1 + z)²`, `z = e^(−|x|)`, is within 1.98 ulp (all f32), never above ¼.
///
/// Rise: `sign(q)·(1 − e^(−|q|))·E/((1 + z⁺)(1 + z⁻))` with `E = max(z⁺, z⁻)` where `hi` and `lo` have one sign, else 1. Relative error at most
/// `9u`, and `u·max(|hi|, |lo|)` for the rounding of the arguments: their ulp is a relative error of `E`.
#[derive(Clone, Copy, Debug)]
pub struct Sigmoid;

/// `tanh x`; see [`crate::elementary::tanh`]. The slope `4z/(1 + z)²`, `z = e^(−2|x|)`, is within 1.98 ulp (all f32), never above 1.
///
/// Rise: twice that of [`struct@Sigmoid`] at twice the arguments; `9u + 2u·max(|hi|, |lo|)`.
#[derive(Clone, Copy, Debug)]
pub struct Tanh;

/// `yes` where `a ≤ b`, else `no`.
#[inline(always)]
fn where_le<T: Real, S: Arithmetic<T>>(simd: S, a: S::V, b: S::V, yes: S::V, no: S::V) -> S::V {
    simd.select(simd.le(a, b), yes, no)
}

/// The smaller of both; `a` if one is NaN.
#[inline(always)]
fn lower<T: Real, S: Arithmetic<T>>(simd: S, a: S::V, b: S::V) -> S::V {
    simd.select(simd.lt(b, a), b, a)
}

/// `max(x, 0)` with `+0` at `−0`; NaN stays.
#[inline(always)]
fn ramp<T: Real, S: Arithmetic<T>>(simd: S, x: S::V) -> S::V {
    let zero = simd.splat(T::ZERO);
    where_le(simd, x, zero, zero, x)
}

/// The arguments ordered by the sign of `q`, for functions that measure a part of `[bottom, top]`; `length = |q|`.
struct Span<V> {
    top: V,
    bottom: V,
    length: V,
    q: V,
}

#[inline(always)]
fn span<T: Real, S: Arithmetic<T>>(simd: S, hi: S::V, lo: S::V, q: S::V) -> Span<S::V> {
    let falls = simd.lt(q, simd.splat(T::ZERO));
    Span { top: simd.select(falls, lo, hi), bottom: simd.select(falls, hi, lo), length: simd.abs(q), q }
}

impl<V: Copy> Span<V> {
    /// `measure` with the sign of `q`; NaN if an argument was.
    #[inline(always)]
    fn signed<T: Real, S: Arithmetic<T, V = V>>(&self, simd: S, measure: V) -> V {
        let zero = simd.splat(T::ZERO);
        let signed = simd.select(simd.lt(self.q, zero), simd.sub(zero, measure), measure);
        let known = simd.both(simd.le(self.top, self.top), simd.le(self.bottom, self.bottom));
        simd.select(known, signed, simd.add(self.top, self.bottom))
    }
}

/// The length of `[bottom, top]` above 0, with the sign of `q`.
#[inline(always)]
fn ramp_rise<T: Real, S: Arithmetic<T>>(simd: S, hi: S::V, lo: S::V, q: S::V) -> S::V {
    let span = span(simd, hi, lo, q);
    span.signed(simd, ramp(simd, lower(simd, span.length, span.top)))
}

fn ramp_exact_rise(hi: f64, lo: f64, q: f64) -> f64 {
    if hi.is_nan() || lo.is_nan() || q.is_nan() {
        f64::NAN
    } else if q >= 0.0 {
        q.min(hi).max(0.0)
    } else {
        q.max(-lo).min(0.0)
    }
}

impl Activate for Identity {
    const NAME: &'static str = "identity";
    const LIPSCHITZ: f64 = 1.0;

    #[inline(always)]
    fn value<T: Real, S: Arithmetic<T>>(self, _: S, x: S::V) -> S::V {
        x
    }
    #[inline(always)]
    fn pair<T: Real, S: Arithmetic<T>>(self, simd: S, hi: S::V, lo: S::V, q: S::V) -> Pair<S::V> {
        let known = simd.both(simd.le(hi, hi), simd.le(lo, lo));
        Pair { hi, lo, rise: simd.select(known, q, simd.add(hi, lo)) }
    }
    #[inline(always)]
    fn derivative<T: Real, S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
        where_le(simd, x, x, simd.splat(T::ONE), x)
    }

    fn exact(self, x: f64) -> f64 {
        x
    }
    fn exact_rise(self, hi: f64, lo: f64, q: f64) -> f64 {
        if hi.is_nan() || lo.is_nan() { f64::NAN } else { q }
    }
    fn exact_derivative(self, x: f64) -> f64 {
        if x.is_nan() { x } else { 1.0 }
    }
}

impl Activate for Relu {
    const NAME: &'static str = "relu";
    const LIPSCHITZ: f64 = 1.0;

    #[inline(always)]
    fn value<T: Real, S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
        ramp(simd, x)
    }
    #[inline(always)]
    fn pair<T: Real, S: Arithmetic<T>>(self, simd: S, hi: S::V, lo: S::V, q: S::V) -> Pair<S::V> {
        Pair { hi: ramp(simd, hi), lo: ramp(simd, lo), rise: ramp_rise(simd, hi, lo, q) }
    }
    #[inline(always)]
    fn derivative<T: Real, S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
        let zero = simd.splat(T::ZERO);
        simd.select(simd.lt(zero, x), simd.splat(T::ONE), where_le(simd, x, zero, zero, x))
    }

    fn exact(self, x: f64) -> f64 {
        if x <= 0.0 { 0.0 } else { x }
    }
    fn exact_rise(self, hi: f64, lo: f64, q: f64) -> f64 {
        ramp_exact_rise(hi, lo, q)
    }
    fn exact_derivative(self, x: f64) -> f64 {
        if x.is_nan() { x } else { f64::from(u8::from(x > 0.0)) }
    }
}

impl Activate for LeakyRelu {
    const NAME: &'static str = "leaky-relu";
    const LIPSCHITZ: f64 = 1.0;

    #[inline(always)]
    fn value<T: Real, S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
        // Adding zero turns the −0 of an underflow into +0, which every other path to this state gives.
        let zero = simd.splat(T::ZERO);
        where_le(simd, x, zero, simd.add(simd.mul(x, splat(simd, Self::SLOPE)), zero), x)
    }
    #[inline(always)]
    fn pair<T: Real, S: Arithmetic<T>>(self, simd: S, hi: S::V, lo: S::V, q: S::V) -> Pair<S::V> {
        let above = ramp_rise(simd, hi, lo, q);
        // Equal where all of the span is above zero: then the rise is `q` itself, also at infinity.
        let below = where_le(simd, simd.abs(q), simd.abs(above), simd.splat(T::ZERO), simd.sub(q, above));
        let rise = simd.mul_add(splat(simd, Self::SLOPE), below, above);
        Pair { hi: self.value(simd, hi), lo: self.value(simd, lo), rise }
    }
    #[inline(always)]
    fn derivative<T: Real, S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
        let zero = simd.splat(T::ZERO);
        simd.select(simd.lt(zero, x), simd.splat(T::ONE), where_le(simd, x, zero, splat(simd, Self::SLOPE), x))
    }

    fn exact(self, x: f64) -> f64 {
        if x <= 0.0 { Self::SLOPE * x } else { x }
    }
    fn exact_rise(self, hi: f64, lo: f64, q: f64) -> f64 {
        Self::SLOPE * q + (1.0 - Self::SLOPE) * ramp_exact_rise(hi, lo, q)
    }
    fn exact_derivative(self, x: f64) -> f64 {
        if x.is_nan() || x > 0.0 { x.signum() } else { Self::SLOPE }
    }
}

impl Activate for HardSigmoid {
    const NAME: &'static str = "hard-sigmoid";
    const LIPSCHITZ: f64 = 1.0;

    #[inline(always)]
    fn value<T: Real, S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
        lower(simd, ramp(simd, x), simd.splat(T::ONE))
    }
    #[inline(always)]
    fn pair<T: Real, S: Arithmetic<T>>(self, simd: S, hi: S::V, lo: S::V, q: S::V) -> Pair<S::V> {
        let one = simd.splat(T::ONE);
        let span = span(simd, hi, lo, q);
        // `min(top, 1) − max(bottom, 0)`, the four differences apart.
        let inside = lower(simd, lower(simd, span.length, span.top), lower(simd, simd.sub(one, span.bottom), one));
        let rise = span.signed(simd, ramp(simd, inside));
        Pair { hi: self.value(simd, hi), lo: self.value(simd, lo), rise }
    }
    #[inline(always)]
    fn derivative<T: Real, S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
        let (zero, one) = (simd.splat(T::ZERO), simd.splat(T::ONE));
        let open = simd.both(simd.lt(zero, x), simd.lt(x, one));
        simd.select(open, one, where_le(simd, x, x, zero, x))
    }

    fn exact(self, x: f64) -> f64 {
        x.clamp(0.0, 1.0)
    }
    fn exact_rise(self, hi: f64, lo: f64, q: f64) -> f64 {
        if hi.is_nan() || lo.is_nan() || q.is_nan() {
            f64::NAN
        } else if q >= 0.0 {
            q.min(hi).min(1.0 - lo).clamp(0.0, 1.0)
        } else {
            q.max(-lo).max(hi - 1.0).clamp(-1.0, 0.0)
        }
    }
    fn exact_derivative(self, x: f64) -> f64 {
        if x.is_nan() { x } else { f64::from(u8::from(x > 0.0 && x < 1.0)) }
    }
}

/// `(1 − e^(−y))·E/((1 + z⁺)(1 + z⁻))` with the sign of `q`: `E` is the larger `z` where both arguments have one sign, else 1.
/// `E` is multiplied last, so that only it can underflow.
#[inline(always)]
fn smooth_rise<T: Real, S: Arithmetic<T>>(
    simd: S,
    hi: (S::V, &Smooth<S::V>),
    lo: (S::V, &Smooth<S::V>),
    q: S::V,
    front: S::V,
) -> S::V {
    let one = simd.splat(T::ONE);
    let same = simd.lt(simd.splat(T::ZERO), simd.mul(simd.copysign(one, hi.0), lo.0));
    let larger = simd.select(simd.lt(hi.1.z, lo.1.z), lo.1.z, hi.1.z);
    let size = simd.mul(simd.mul(front, simd.mul(hi.1.recip, lo.1.recip)), simd.select(same, larger, one));
    simd.copysign(size, q)
}

impl Activate for Sigmoid {
    const NAME: &'static str = "sigmoid";
    const LIPSCHITZ: f64 = 0.25;

    #[inline(always)]
    fn value<T: Real, S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
        sigmoid_parts(simd, x).value
    }
    #[inline(always)]
    fn pair<T: Real, S: Arithmetic<T>>(self, simd: S, hi: S::V, lo: S::V, q: S::V) -> Pair<S::V> {
        let (up, down) = (sigmoid_parts(simd, hi), sigmoid_parts(simd, lo));
        let front = simd.neg(expm1_neg(simd, simd.abs(q)));
        Pair { hi: up.value, lo: down.value, rise: smooth_rise(simd, (hi, &up), (lo, &down), q, front) }
    }
    #[inline(always)]
    fn derivative<T: Real, S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
        sigmoid_slope(simd, x, 1.0)
    }

    fn exact(self, x: f64) -> f64 {
        let z = (-x.abs()).exp();
        (if x < 0.0 { z } else { 1.0 }) / (1.0 + z)
    }
    fn exact_rise(self, hi: f64, lo: f64, q: f64) -> f64 {
        exact_sigmoid_rise(hi, lo, q)
    }
    fn exact_derivative(self, x: f64) -> f64 {
        let z = (-x.abs()).exp();
        z / (1.0 + z).powi(2)
    }
}

impl Activate for Tanh {
    const NAME: &'static str = "tanh";
    const LIPSCHITZ: f64 = 1.0;

    #[inline(always)]
    fn value<T: Real, S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
        tanh_parts::<T, S, false>(simd, x).value
    }
    #[inline(always)]
    fn pair<T: Real, S: Arithmetic<T>>(self, simd: S, hi: S::V, lo: S::V, q: S::V) -> Pair<S::V> {
        let (up, down) = (tanh_parts::<T, S, true>(simd, hi), tanh_parts::<T, S, true>(simd, lo));
        let y = simd.abs(q);
        let front = simd.mul(splat(simd, -2.0), expm1_neg(simd, simd.add(y, y)));
        Pair { hi: up.value, lo: down.value, rise: smooth_rise(simd, (hi, &up), (lo, &down), q, front) }
    }
    #[inline(always)]
    fn derivative<T: Real, S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
        // tanh'(x) = 4σ'(2x)
        sigmoid_slope(simd, simd.add(x, x), 4.0)
    }

    fn exact(self, x: f64) -> f64 {
        x.tanh()
    }
    fn exact_rise(self, hi: f64, lo: f64, q: f64) -> f64 {
        2.0 * exact_sigmoid_rise(2.0 * hi, 2.0 * lo, 2.0 * q)
    }
    fn exact_derivative(self, x: f64) -> f64 {
        let z = (-2.0 * x.abs()).exp();
        4.0 * z / (1.0 + z).powi(2)
    }
}

/// The rise of the sigmoid; half that of `tanh` at half the arguments.
fn exact_sigmoid_rise(hi: f64, lo: f64, q: f64) -> f64 {
    let (up, down) = ((-hi.abs()).exp(), (-lo.abs()).exp());
    let larger = if (hi > 0.0 && lo > 0.0) || (hi < 0.0 && lo < 0.0) { up.max(down) } else { 1.0 };
    -(-q.abs()).exp_m1() * larger / ((1.0 + up) * (1.0 + down)) * q.signum()
}

/// Receives the concrete type behind an [`Activation`], so that loops are monomorphic inside.
pub trait Visit {
    /// What it returns.
    type Output;
    /// The body, generic over the activation.
    fn visit<A: Activate>(self, activation: A) -> Self::Output;
}

macro_rules! activations {
    ($( $(#[$doc:meta])* $kind:ident; )*) => {
        /// An activation chosen at run time.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Activation { $( $(#[$doc])* $kind, )* }

        impl Activation {
            /// All of them: tests and benches iterate over this.
            pub const ALL: &'static [Activation] = &[ $( Activation::$kind, )* ];

            /// The name in configurations.
            pub const fn name(self) -> &'static str {
                match self { $( Activation::$kind => <$kind as Activate>::NAME, )* }
            }

            /// Hands the concrete type to `visitor`.
            #[inline]
            pub fn visit<V: Visit>(self, visitor: V) -> V::Output {
                match self { $( Activation::$kind => visitor.visit($kind), )* }
            }
        }
    };
}

activations! {
    /// [`Identity`](struct@Identity).
    Identity;
    /// [`Relu`](struct@Relu).
    Relu;
    /// [`LeakyRelu`](struct@LeakyRelu).
    LeakyRelu;
    /// [`HardSigmoid`](struct@HardSigmoid).
    HardSigmoid;
    /// [`Sigmoid`](struct@Sigmoid).
    Sigmoid;
    /// [`Tanh`](struct@Tanh).
    Tanh;
}

impl Activation {
    /// The activation of that name.
    pub fn by_name(name: &str) -> Option<Activation> {
        Activation::ALL.iter().copied().find(|activation| activation.name() == name)
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Clone, Copy)]
struct Value<A>(A);

impl<T: Real, A: Activate> Pointwise<T> for Value<A> {
    #[inline(always)]
    fn at<S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
        self.0.value(simd, x)
    }
}

#[derive(Clone, Copy)]
struct Derivative<A>(A);

impl<T: Real, A: Activate> Pointwise<T> for Derivative<A> {
    #[inline(always)]
    fn at<S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
        self.0.derivative(simd, x)
    }
}

struct MapVisit<'a, T> {
    isa: Isa,
    derivative: bool,
    out: &'a mut [T],
    x: &'a [T],
}

impl<T: Real> Visit for MapVisit<'_, T> {
    type Output = Result<(), LengthMismatch>;
    fn visit<A: Activate>(self, activation: A) -> Self::Output {
        if self.derivative {
            map_pointwise(self.isa, Derivative(activation), self.out, self.x)
        } else {
            map_pointwise(self.isa, Value(activation), self.out, self.x)
        }
    }
}

impl Activation {
    /// `out = f(x)`, element by element.
    ///
    /// # Errors
    /// [`LengthMismatch`] if the slices differ in length; then `out` is untouched.
    pub fn values<T: Real>(self, isa: Isa, out: &mut [T], x: &[T]) -> Result<(), LengthMismatch> {
        self.visit(MapVisit { isa, derivative: false, out, x })
    }

    /// `out = f'(x)`, element by element.
    ///
    /// # Errors
    /// As [`Activation::values`].
    pub fn derivatives<T: Real>(self, isa: Isa, out: &mut [T], x: &[T]) -> Result<(), LengthMismatch> {
        self.visit(MapVisit { isa, derivative: true, out, x })
    }
}
