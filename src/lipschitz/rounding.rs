//! Bounds of rounding errors in f64, for numbers that are not negative.

use dualprop_kernels::vector::Real;

/// `γ_k = ku/(1 − ku)`; infinity for `ku ≥ 1`.
pub(crate) fn gamma(k: usize) -> f64 {
    gamma_in::<f64>(k)
}

/// The same for the unit roundoff of `T`.
pub(crate) fn gamma_in<T: Real>(k: usize) -> f64 {
    let ku = k as f64 * T::UNIT_ROUNDOFF;
    if ku < 1.0 { up(ku / (1.0 - ku), 2) } else { f64::INFINITY }
}

/// Not below what came out as `x` after so many roundings.
pub(crate) fn up(x: f64, roundings: usize) -> f64 {
    // (1 + u)^k ≤ 1/(1 − ku), and two roundings here.
    (x / (1.0 - (roundings + 2) as f64 * f64::UNIT_ROUNDOFF)).next_up()
}

/// Not above what came out as `x` after so many roundings.
pub(crate) fn down(x: f64, roundings: usize) -> f64 {
    (x * (1.0 - (roundings + 2) as f64 * f64::UNIT_ROUNDOFF)).next_down().max(0.0)
}

/// [`up`], and exactly 0 for 0.
pub(crate) fn at_most(x: f64, roundings: usize) -> f64 {
    if x == 0.0 { 0.0 } else { up(x, roundings) }
}

/// `γ_k·size` for roundings to `T`, and what `count` such chains lose to underflow.
pub(crate) fn rounding<T: Real>(k: usize, size: f64, count: usize) -> f64 {
    let ku = k as f64 * T::UNIT_ROUNDOFF;
    let gamma = if ku < 1.0 { ku / (1.0 - ku) } else { f64::INFINITY };
    up(gamma * size + (k * count) as f64 * T::TINY, 6)
}

/// The exponent `e` for which `x·2^−e` is from 1 to 2, within that of normal numbers; 0 for 0.
pub(crate) fn exponent_of(x: f64) -> i32 {
    if x == 0.0 { 0 } else { ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).clamp(-1022, 1022) }
}

/// `x·2^exponent`: exact unless it leaves the normal range.
pub(crate) fn scaled(mut x: f64, mut exponent: i32) -> f64 {
    let power = |e: i32| f64::from_bits(((e + 1023) as u64) << 52);
    while exponent > 1022 && x != 0.0 && x.is_finite() {
        (x, exponent) = (x * power(1022), exponent - 1022);
    }
    while exponent < -1022 && x != 0.0 {
        (x, exponent) = (x * power(-1022), exponent + 1022);
    }
    x * power(exponent.clamp(-1022, 1022))
}
