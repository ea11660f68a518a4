//! A value together with how far any correct evaluation may lie from it.
//!
//! # What a [`Bounded`] means
//!
//! Let a formula be given. An *evaluation* of it replaces every operation `∘` by one that returns `(x ∘ y)(1 + δ) + η` with
//! `|δ| ≤ u` (rounding to nearest) and, for products and quotients, `|η| ≤ tiny` (gradual underflow). Roundings may also be left
//! out, as a fused multiply-add or the exact evaluation does. `Bounded { value, error }` says:
//!
//! > the exact result and the result of every evaluation lie in `[value − error, value + error]`.
//!
//! `value` is computed in f64 by the reference itself. The statement carries over from operands to results. If `x̂` and `ŷ` are
//! any points of the two operands' intervals, `x`, `y` their centres and `p ≥ |x̂∘ŷ − x∘y|`, then an evaluation returns a number
//! within `p + u(|x∘y| + p) + tiny` of `x∘y`, and `value = fl64(x∘y)` is within `2⁻⁵³|value|` (and the f64 underflow) of it:
//!
//! ```text
//! error = p + (u + 2⁻⁵³)(|value| + p) + underflow                                                       (R)
//! ```
//!
//! times `1 + 2⁻⁴⁸`, which pays for second-order terms `2⁻⁵³u|value|` and for evaluating (R) itself in f64. (Higham, *Accuracy and
//! Stability of Numerical Algorithms*, 2002, sections 2.2 and 3.1, gives the model and `γ_n`.) With u = 2⁻⁵³ the bound thus
//! covers both the rounding errors of the tested code and those of the reference.
//!
//! # NaN, infinity, overflow
//!
//! NaN and infinite values follow IEEE arithmetic; their error is 0. Where an operation may leave the finite range of the
//! precision (`|value| + error > largest`), its error becomes infinite: from there on everything except NaN is admitted. Tests
//! that must not pass vacuously check [`Bounded::is_informative`].

use std::ops::{Add, Div, Mul, Neg, Sub};

/// Unit roundoff of f64, the arithmetic in which the reference computes: 2⁻⁵³.
const U64: f64 = f64::EPSILON / 2.0;

/// Pays for the roundings of an error bound's own evaluation in f64: room for 32 of them.
const ENLARGE: f64 = 1.0 + 1.0 / (1u64 << 48) as f64;

/// The arithmetic of the code under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
}

impl Precision {
    /// Unit roundoff `u`: 2⁻²⁴ or 2⁻⁵³. One ulp is at most `2u` in relative terms.
    pub const fn unit_roundoff(self) -> f64 {
        match self {
            Precision::F32 => f32::EPSILON as f64 / 2.0,
            Precision::F64 => U64,
        }
    }

    /// `u + 2⁻⁵³`: one rounding of the tested code and one of the reference.
    pub fn unit(self) -> f64 {
        self.unit_roundoff() + U64
    }

    /// Smallest positive number, `tiny`: 2⁻¹⁴⁹ or 2⁻¹⁰⁷⁴. Twice the error of a gradual underflow.
    pub const fn tiny(self) -> f64 {
        match self {
            Precision::F32 => f32::from_bits(1) as f64,
            Precision::F64 => f64::from_bits(1),
        }
    }

    /// Largest finite number.
    pub const fn largest(self) -> f64 {
        match self {
            Precision::F32 => f32::MAX as f64,
            Precision::F64 => f64::MAX,
        }
    }

    /// The number of this precision nearest to `x`.
    pub const fn nearest(self, x: f64) -> f64 {
        match self {
            Precision::F32 => x as f32 as f64,
            Precision::F64 => x,
        }
    }

    /// `γ_n(u) + γ_n(2⁻⁵³)` with `γ_n(u) = n·u/(1 − n·u)`: relative error of `n` roundings in a row, in the tested code and in
    /// the reference (Higham 2002, lemma 3.1).
    ///
    /// # Panics
    /// If `n·u ≥ 1`: there is no such bound.
    pub fn gamma(self, n: usize) -> f64 {
        gamma(n, self.unit_roundoff()) + gamma(n, U64)
    }

    /// An input both sides hold exactly: error 0.
    ///
    /// # Panics
    /// If `x` is not a number of this precision; [`Precision::parameter`] is for those.
    pub fn exact(self, x: f64) -> Bounded {
        assert!(x.is_nan() || self.nearest(x) == x, "{x:e} is not a {self:?} number");
        Bounded { value: x, error: 0.0, precision: self }
    }

    /// A parameter (α, β, a learning rate, …) that the tested code may hold rounded: exact if `x` is a number of this precision,
    /// otherwise with error `u|x|`.
    pub fn parameter(self, x: f64) -> Bounded {
        if x.is_nan() || self.nearest(x) == x { self.exact(x) } else { self.constant(x) }
    }

    /// A real constant that is known to f64 only and that the tested code holds rounded: relative error `u`.
    pub fn constant(self, x: f64) -> Bounded {
        Bounded::rounded(x, 0.0, self.tiny(), self)
    }
}

/// `γ_n = n·u / (1 − n·u)`: relative error of `n` roundings in a row (Higham 2002, lemma 3.1).
///
/// # Panics
/// If `n·u ≥ 1`.
pub fn gamma(n: usize, u: f64) -> f64 {
    let nu = n as f64 * u;
    assert!(nu < 1.0, "no bound for {n} roundings");
    nu / (1.0 - nu)
}

/// A result in f64 and the radius of an interval that holds every correct evaluation (see the [module](self)).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounded {
    /// The reference's result.
    pub value: f64,
    /// Bound on the distance of the exact result and of any correct evaluation from `value`.
    pub error: f64,
    /// Arithmetic for which `error` holds.
    pub precision: Precision,
}

impl Bounded {
    /// The interval `value ± error`, with the rules for NaN, infinity and overflow of the [module](self).
    pub fn new(value: f64, error: f64, precision: Precision) -> Self {
        let error = if !value.is_finite() {
            0.0
        } else if error.is_nan() || value.abs() + error > precision.largest() {
            f64::INFINITY
        } else {
            error
        };
        Bounded { value, error, precision }
    }

    /// Result of one operation, formula (R): `propagated` is the bound `p` on what the operands' errors do.
    fn rounded(value: f64, propagated: f64, underflow: f64, precision: Precision) -> Self {
        let error = propagated + precision.unit() * (value.abs() + propagated) + underflow;
        Self::new(value, error * ENLARGE, precision)
    }

    /// Whether a correct evaluation may have returned `got`.
    ///
    /// NaN is admitted if and only if the value is NaN; an infinite value admits only itself.
    pub fn admits(self, got: f64) -> bool {
        if self.value.is_nan() || got.is_nan() {
            self.value.is_nan() && got.is_nan()
        } else if self.value.is_infinite() {
            got == self.value
        } else {
            (got - self.value).abs() <= self.error
        }
    }

    /// `|got − value| / error`, for reports: at most 1 exactly if `got` is admitted.
    pub fn ratio(self, got: f64) -> f64 {
        let distance = (got - self.value).abs();
        if self.admits(got) {
            // Covers 0/0, ∞/∞ and the matching NaN and infinities.
            if self.error > 0.0 && self.error.is_finite() { distance / self.error } else { 0.0 }
        } else if distance.is_finite() {
            distance / self.error
        } else {
            f64::INFINITY
        }
    }

    /// Whether value and error are finite, so that [`Bounded::admits`] says something.
    pub fn is_informative(self) -> bool {
        self.value.is_finite() && self.error.is_finite()
    }

    /// `|value| + error`: no evaluation is larger in magnitude.
    pub fn magnitude(self) -> f64 {
        self.value.abs() + self.error
    }

    /// Makes room for another, algebraically equal form: `n` more roundings of quantities of magnitude at most `size`.
    pub fn widen(self, n: usize, size: f64) -> Self {
        Self::new(self.value, (self.error + self.precision.gamma(n) * size) * ENLARGE, self.precision)
    }

    /// Makes room for `n` losses of at most `tiny` to underflow.
    pub fn underflow(self, n: f64) -> Self {
        Self::new(self.value, self.error + n * self.precision.tiny(), self.precision)
    }

    /// `1 − x`, for a parameter and its counterpart (α and ᾱ): exact if `x` is exact and `1 − x` a number of the precision, because
    /// then no correctly rounded subtraction can miss it.
    pub fn complement(self) -> Self {
        let difference = self.precision.exact(1.0) - self;
        let value = difference.value;
        let exact = self.error == 0.0 && 1.0 - value == self.value && self.precision.nearest(value) == value;
        if exact { self.precision.exact(value) } else { difference }
    }

    /// `max(x, y)`, an exact operation; NaN if either is NaN.
    ///
    /// If the intervals are disjoint the error is that of the larger. Otherwise it is the larger error, because
    /// `|max(x̂, ŷ) − max(x, y)| ≤ max(|x̂ − x|, |ŷ − y|)`.
    pub fn max(self, other: Self) -> Self {
        -(-self).min(-other)
    }

    /// `min(x, y)`, an exact operation; NaN if either is NaN. Error as in [`Bounded::max`].
    pub fn min(self, other: Self) -> Self {
        let precision = self.agree(other);
        if self.value.is_nan() || self.surely_below(other) {
            self
        } else if other.value.is_nan() || other.surely_below(self) {
            other
        } else {
            Self::new(self.value.min(other.value), self.error.max(other.error), precision)
        }
    }

    /// Whether every evaluation of `self` is below every evaluation of `other`. The last term pays for the f64 comparison.
    fn surely_below(self, other: Self) -> bool {
        let slack = 4.0 * U64 * (self.magnitude() + other.magnitude());
        self.value + self.error + slack < other.value - other.error
    }

    /// `√x` for an `x` that is nonnegative in every evaluation.
    ///
    /// `|√x̂ − √x| = |x̂ − x|/(√x̂ + √x) ≤ e/(√x + √(x − e))` if `e < x`. If `e ≥ x`, the distance is at most `√x` below and
    /// `√(x + e) − √x ≤ √e` above, together `√e`.
    pub fn sqrt(self) -> Self {
        let (x, e) = (self.value, self.error);
        let propagated = if e < x { e / (x.sqrt() + (x - e).sqrt()) } else { e.sqrt() };
        Self::rounded(x.sqrt(), propagated, 0.0, self.precision)
    }

    /// `xⁿ` by products in any order (at most `n` roundings) or by a power function that is good to one ulp.
    ///
    /// `|x̂ⁿ − xⁿ| ≤ n e (|x| + e)ⁿ⁻¹`. Each of at most `n` products may underflow; later factors enlarge that by at most
    /// `max(1, |x| + e)ⁿ`.
    pub fn powi(self, n: u32) -> Self {
        if n == 0 {
            return self.precision.exact(1.0);
        }
        let value = self.value.powi(n as i32);
        let propagated = f64::from(n) * self.error * self.magnitude().powi(n as i32 - 1);
        let relative = self.precision.gamma(n as usize + 1);
        let underflow = 2.0 * f64::from(n) * self.precision.tiny() * self.magnitude().max(1.0).powi(n as i32);
        let error = propagated + relative * (value.abs() + propagated) + underflow;
        Self::new(value, error * ENLARGE, self.precision)
    }

    /// `self / divisor` for a divisor of which every evaluation is known to be at least `floor > 0`, whatever its interval says
    /// (Adam's `√v̂ + ε ≥ ε`).
    ///
    /// `|x̂/ŷ − x/y| = |(x̂ − x)y − x(ŷ − y)|/|ŷ y| ≤ (e_x + |x/y| e_y)/|ŷ|`, and `|ŷ| ≥ max(|y| − e_y, floor)`.
    pub fn div_above(self, divisor: Self, floor: f64) -> Self {
        let precision = self.agree(divisor);
        let value = self.value / divisor.value;
        let smallest = (divisor.value.abs() - divisor.error).max(floor);
        let propagated = if smallest > 0.0 { (self.error + value.abs() * divisor.error) / smallest } else { f64::INFINITY };
        Self::rounded(value, propagated, 4.0 * precision.tiny(), precision)
    }

    /// The common precision of two operands.
    fn agree(self, other: Self) -> Precision {
        assert_eq!(self.precision, other.precision, "operands of one formula must have one precision");
        self.precision
    }
}

/// `p = e_x + e_y`. Sums do not underflow.
impl Add for Bounded {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self::rounded(self.value + other.value, self.error + other.error, 0.0, self.agree(other))
    }
}

/// `p = e_x + e_y`. Differences do not underflow.
impl Sub for Bounded {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

/// Exact.
impl Neg for Bounded {
    type Output = Self;
    fn neg(self) -> Self {
        Bounded { value: -self.value, ..self }
    }
}

/// `p = |x| e_y + |y| e_x + e_x e_y`.
impl Mul for Bounded {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let precision = self.agree(other);
        Self::rounded(self.value * other.value, spread(self, other), 4.0 * precision.tiny(), precision)
    }
}

/// As [`Bounded::div_above`] without a floor: infinite if the divisor may be zero.
impl Div for Bounded {
    type Output = Self;
    fn div(self, divisor: Self) -> Self {
        self.div_above(divisor, 0.0)
    }
}

/// Bound on `|x̂ŷ − xy|`.
fn spread(x: Bounded, y: Bounded) -> f64 {
    x.value.abs() * y.error + y.value.abs() * x.error + x.error * y.error
}

/// `Σ x_i y_i` over `k` pairs, in any order, with or without fused multiply-add.
///
/// A term passes one product and at most `k − 1` additions, so the rounding error is at most `γ_k Σ|x̂_i ŷ_i|`
/// (Higham 2002, eq. 3.5); the operands' errors add `Σ p_i` with `p_i` as for a product.
pub fn dot(precision: Precision, pairs: impl IntoIterator<Item = (Bounded, Bounded)>) -> Bounded {
    scaled_sum(precision.exact(0.0), precision.exact(1.0), pairs, 0)
}

/// `start + Σ x_i y_i`, where `start` may enter the sum at any place: [`dot`] with one addition more, `γ_{k+1}(|start| + Σ|x̂ŷ|)`.
pub fn affine(start: Bounded, pairs: impl IntoIterator<Item = (Bounded, Bounded)>) -> Bounded {
    scaled_sum(start, start.precision.exact(1.0), pairs, 1)
}

/// `scale · Σ x_i y_i`, where `scale` may be applied to the sum, to the terms, or to either factor: [`dot`] with one product more,
/// `γ_{k+1} |scale| Σ|x̂ŷ|`.
pub fn scaled_dot(scale: Bounded, pairs: impl IntoIterator<Item = (Bounded, Bounded)>) -> Bounded {
    scaled_sum(scale.precision.exact(0.0), scale, pairs, 1)
}

/// `start + scale · Σ x_i y_i`: one product and one addition more than [`dot`], `γ_{k+2} (|start| + |scale| Σ|x̂ŷ|)`.
pub fn scaled_affine(start: Bounded, scale: Bounded, pairs: impl IntoIterator<Item = (Bounded, Bounded)>) -> Bounded {
    scaled_sum(start, scale, pairs, 2)
}

/// `Σ x_i`, in any order: at most `k − 1` roundings a term; `γ_k` is used.
pub fn sum(precision: Precision, terms: impl IntoIterator<Item = Bounded>) -> Bounded {
    let one = precision.exact(1.0);
    dot(precision, terms.into_iter().map(|x| (x, one)))
}

/// `start + scale Σ x_i y_i` with at most `k + extra` roundings on the way of every term.
///
/// With `size = Σ|x_i y_i|`, `spread = Σ p_i` and the scale's own error `e`, the operands' errors change the result by at most
/// `p = e_start + |scale| spread + e (size + spread)`, and no intermediate result exceeds
/// `S = |start| + e_start + (|scale| + e)(size + spread)`. Underflow: a product loses at most `tiny`; a loss before the
/// multiplication by `scale`, `x_i` or `y_i` is multiplied by it. The last factor pays for the f64 sums `size` and `spread`.
fn scaled_sum(start: Bounded, scale: Bounded, pairs: impl IntoIterator<Item = (Bounded, Bounded)>, extra: usize) -> Bounded {
    let precision = start.agree(scale);
    let (mut total, mut size, mut spread_total, mut underflow, mut k) = (0.0, 0.0, 0.0, 0.0, 0);
    for (x, y) in pairs {
        assert!(x.precision == precision && y.precision == precision, "operands of one formula must have one precision");
        let term = x.value * y.value;
        total += term;
        size += term.abs();
        spread_total += spread(x, y);
        underflow += precision.tiny() * (2.0 + scale.magnitude() + x.magnitude() + y.magnitude());
        k += 1;
    }
    let value = start.value + scale.value * total;
    let propagated = start.error + scale.value.abs() * spread_total + scale.error * (size + spread_total);
    let largest = start.magnitude() + scale.magnitude() * (size + spread_total);
    let error = propagated + precision.gamma(k + extra) * largest + underflow;
    if largest > precision.largest() {
        return Bounded::new(value, f64::INFINITY, precision);
    }
    Bounded::new(value, error * (ENLARGE + gamma(2 * k, U64)), precision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Family, generate};

    /// The pairs of two exact vectors.
    fn pairs(x: &[f64], y: &[f64], precision: Precision) -> Vec<(Bounded, Bounded)> {
        x.iter().zip(y).map(|(&x, &y)| (precision.exact(x), precision.exact(y))).collect()
    }

    /// Three f32 evaluations of a dot product: ascending, descending with fused multiply-add, and pairwise.
    fn evaluations(x: &[f64], y: &[f64]) -> [f32; 3] {
        fn pairwise(terms: &[f32]) -> f32 {
            match terms {
                [] => 0.0,
                [t] => *t,
                _ => pairwise(&terms[..terms.len() / 2]) + pairwise(&terms[terms.len() / 2..]),
            }
        }
        let (x, y): (Vec<f32>, Vec<f32>) = x.iter().zip(y).map(|(&x, &y)| (x as f32, y as f32)).unzip();
        let terms: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x * y).collect();
        let fused = x.iter().zip(&y).rev().fold(0.0f32, |sum, (x, y)| x.mul_add(*y, sum));
        [terms.iter().sum(), fused, pairwise(&terms)]
    }

    #[test]
    fn every_order_of_a_dot_product_is_admitted() {
        for family in Family::ALL {
            for seed in 0..200 {
                let len = seed as usize % 101;
                let x = generate(family, len, seed, Precision::F32);
                let y = generate(family, len, !seed, Precision::F32);
                let bound = dot(Precision::F32, pairs(&x, &y, Precision::F32));
                assert!(bound.is_informative());
                for got in evaluations(&x, &y) {
                    assert!(bound.admits(got.into()), "{family:?} {seed}: {got} is not within {bound:?}");
                }
            }
        }
    }

    #[test]
    fn a_missing_term_is_not_admitted() {
        for seed in 0..200 {
            let len = 1 + seed as usize % 100;
            let shift = |x: f64| if x < 0.0 { x / 2.0 - 0.5 } else { x / 2.0 + 0.5 };
            let x: Vec<f64> = generate(Family::Uniform, len, seed, Precision::F32).into_iter().map(shift).collect();
            let y: Vec<f64> = generate(Family::Uniform, len, !seed, Precision::F32).into_iter().map(shift).collect();
            let (x, y): (Vec<f64>, Vec<f64>) =
                x.iter().zip(&y).map(|(&x, &y)| (Precision::F32.nearest(x), Precision::F32.nearest(y))).unzip();
            let bound = dot(Precision::F32, pairs(&x, &y, Precision::F32));
            for missing in 0..len {
                let (mut x, mut y) = (x.clone(), y.clone());
                x.remove(missing);
                y.remove(missing);
                for got in evaluations(&x, &y) {
                    assert!(!bound.admits(got.into()), "seed {seed}: term {missing} of {len} is not missed");
                }
            }
        }
    }

    #[test]
    fn formulas_in_f32_are_admitted_and_their_bound_is_small() {
        let mut worst: f64 = 0.0;
        for seed in 0..2000 {
            let [a, b, c, d]: [f64; 4] = generate(Family::Uniform, 4, seed, Precision::F32).try_into().unwrap();
            let [x, y, z, w] = [a, b, c, d].map(|x| Precision::F32.exact(x));
            let exact = (x * y + z) * w / (x * x + y * y).sqrt() - z.powi(3);
            let [x, y, z, w] = [a, b, c, d].map(|x| x as f32);
            let plain = (x * y + z) * w / (x * x + y * y).sqrt() - z * z * z;
            let fused = x.mul_add(y, z) * w / x.mul_add(x, y * y).sqrt() - z * (z * z);
            assert!(exact.admits(plain.into()) && exact.admits(fused.into()), "{seed}: {exact:?}, {plain}, {fused}");
            worst = worst.max(exact.ratio(plain.into()));
            assert!(exact.error < 1e-5 * (1.0 + exact.value.abs()) || a.abs() + b.abs() < 0.2);
        }
        assert!(worst > 0.05, "the bound is far too wide: {worst}");
    }

    #[test]
    fn scaled_and_affine_sums_admit_every_place_of_the_scale_and_of_the_start() {
        for family in Family::ALL {
            for seed in 0..100 {
                let x = generate(family, 20, seed, Precision::F32);
                let y = generate(family, 20, !seed, Precision::F32);
                let (scale, start) = (Precision::F32.nearest(-0.3), Precision::F32.nearest(0.7));
                let scaled = scaled_dot(Precision::F32.exact(scale), pairs(&x, &y, Precision::F32));
                let shifted = affine(Precision::F32.exact(start), pairs(&x, &y, Precision::F32));
                let (scale, start) = (scale as f32, start as f32);
                let terms = || x.iter().zip(&y).map(|(&x, &y)| (x as f32, y as f32));
                let after = scale * terms().map(|(x, y)| x * y).sum::<f32>();
                let before: f32 = terms().map(|(x, y)| (scale * x) * y).sum();
                let first = terms().fold(start, |sum, (x, y)| x.mul_add(y, sum));
                let last = terms().map(|(x, y)| x * y).sum::<f32>() + start;
                assert!(scaled.admits(after.into()) && scaled.admits(before.into()), "{family:?} {seed}");
                assert!(shifted.admits(first.into()) && shifted.admits(last.into()), "{family:?} {seed}");
            }
        }
    }

    #[test]
    fn products_that_underflow_are_admitted() {
        let (x, y) = (1.5 * f64::from(f32::MIN_POSITIVE), 2f64.powi(-20) * 1.25);
        let bound = Precision::F32.exact(x) * Precision::F32.exact(y);
        assert!(bound.admits((x as f32 * y as f32).into()));
        assert!(!bound.admits(2.0 * x * y));
    }

    #[test]
    fn nan_infinity_and_overflow_are_told_apart() {
        let p = Precision::F32;
        let nan = p.exact(f64::NAN) + p.exact(1.0);
        assert!(nan.admits(f64::NAN) && !nan.admits(1.0) && !nan.admits(f64::INFINITY));
        let infinite = p.exact(f64::INFINITY) * p.exact(2.0);
        assert!(infinite.admits(f64::INFINITY) && !infinite.admits(1.0) && !infinite.admits(f64::NAN));
        let overflow = p.exact(2f64.powi(100)) * p.exact(2f64.powi(100));
        assert!(overflow.admits(f64::INFINITY) && !overflow.admits(f64::NAN) && !overflow.is_informative());
        assert!(!p.exact(1.0).admits(f64::NAN) && !p.exact(1.0).admits(f64::INFINITY));
        for (bound, got) in [(nan, f64::NAN), (infinite, f64::INFINITY), (p.exact(1.0), 1.0)] {
            assert_eq!(bound.ratio(got), 0.0);
        }
        assert_eq!(p.exact(1.0).ratio(f64::NAN), f64::INFINITY);
        assert!((p.exact(0.0) / p.exact(0.0)).admits(f64::NAN));
    }

    #[test]
    fn complements_are_exact_where_they_can_be() {
        let p = Precision::F32;
        assert_eq!(p.exact(0.25).complement(), p.exact(0.75));
        for x in [2f64.powi(-30), 2f64.powi(-140), 0.1f32.into()] {
            let complement = p.exact(x).complement();
            assert!(complement.error > 0.0 && complement.admits(f64::from(1.0 - x as f32)));
        }
        assert!(p.parameter(0.3).complement().error > 0.0);
    }

    #[test]
    fn minimum_takes_the_error_of_the_operand_that_is_certain() {
        let p = Precision::F64;
        let (small, large) = (Bounded::new(1.0, 0.1, p), Bounded::new(2.0, 0.5, p));
        assert_eq!(small.min(large), small);
        assert_eq!(small.max(large), large);
        assert_eq!(large.min(Bounded::new(2.2, 0.1, p)), large);
        assert!(small.min(p.exact(f64::NAN)).value.is_nan() && p.exact(f64::NAN).max(small).value.is_nan());
    }

    #[test]
    fn a_divisor_that_may_vanish_gives_no_bound_unless_it_has_a_floor() {
        let p = Precision::F64;
        let divisor = Bounded::new(1e-8, 1e-7, p);
        assert!(!(p.exact(1e-8) / divisor).is_informative());
        let quotient = p.exact(1e-8).div_above(divisor, 1e-8);
        assert!(quotient.is_informative() && quotient.admits(1e-8 / 1.1e-7) && quotient.admits(1.0));
    }
}
