//! Elementary functions: `exp`, `expm1`, `tanh` and the logistic sigmoid on vectors, log-sum-exp and softmax of a row, and the
//! scalar `ln` and `cos(πx)` that the library needs with bits of its own.
//!
//! Everything is made of the operations of [`Vector`], each rounded once, in a fixed order: the bits are the same on every
//! instruction set, in every lane and at every length. Errors are in units in the last place of the exact result (ulp; below the
//! normal range the spacing of the subnormals). For `f32` they are maxima over all 2³² inputs; for `f64` the largest found on
//! random points, the edges of the reduction and of the subnormals, against double-double (`tests/elementary.rs` has both) and against
//! MPFR (`mpfr`, 10⁶ points: exp 0.745, expm1 0.794, tanh 0.669, sigmoid 0.745, none larger than below).
//!
//! All functions but `tanh` and the sigmoid in `f32` share one reduction: `x = n·ln 2 + r` with `|r| ≤ 0.3467`, `e^r = 1 + r + r²·q(r)`.
//! `ln 2` is split into its nearest `T` and the rest; with a fused multiply-add `x − n·ln2` is exact, because it is a multiple of half an
//! ulp of `ln2` below ½ (Cody and Waite 1980, Muller 2016). `q` is our own minimax polynomial (Remez exchange on the relative error of
//! `e^r − 1`; coefficients rounded one after the other, the rest refitted; constant term ½). Those two have tables of 16 entries, a
//! permutation on AVX-512 and two on AVX2 (Tang 1989, Gal 1986), with polynomials made in the same way.

use crate::gram::widen;
use crate::isa::{Isa, Kernel};
use crate::vector::{Arithmetic, Lockstep, Real, Vector};
use core::fmt;
use faer::reborrow::ReborrowMut;
use faer::{ContiguousFwd, MatMut, MatRef};

/// The constants of the reduction for one element type, all of them exact in it.
struct Reduction {
    log2_e: f64,
    ln2: f64,
    ln2_rest: f64,
    /// `e^lowest` rounds to zero, and `e^highest` to infinity.
    lowest: f64,
    highest: f64,
    /// `e^(−settled)` is far below an ulp of 1, and a normal number.
    settled: f64,
    /// `2^(n + lift)` is a normal number for `lowest − 4 ≤ n·ln 2 ≤ 0`, and so is `2^(−lift)`.
    lift: i32,
}

const SINGLE: Reduction = Reduction {
    log2_e: 1.442_695_021_629_333_5,
    ln2: 0.693_147_182_464_599_6,
    ln2_rest: -1.904_654_212_125_933_6e-9,
    lowest: -104.0,
    highest: 89.0,
    settled: 32.0,
    lift: 64,
};

const DOUBLE: Reduction = Reduction {
    log2_e: core::f64::consts::LOG2_E,
    ln2: core::f64::consts::LN_2,
    ln2_rest: 2.319_046_813_846_299_6e-17,
    lowest: -746.0,
    highest: 710.0,
    settled: 64.0,
    lift: 512,
};

/// `q` for `f32`: relative error of `e^r − 1` at most 2⁻³¹·⁰.
const SINGLE_Q: [f64; 6] = [
    0.5,
    0.166_666_656_732_559_2,
    0.041_666_466_742_753_98,
    0.008_333_643_898_367_882,
    0.001_393_503_742_292_523_4,
    0.000_196_629_259_062_652_28,
];

/// `q` for `f64`: relative error of `e^r − 1` at most 2⁻⁶¹·⁵.
const DOUBLE_Q: [f64; 11] = [
    0.5,
    0.166_666_666_666_666_77,
    0.041_666_666_666_666_685,
    0.008_333_333_333_321_823,
    0.001_388_888_888_889_566_6,
    0.000_198_412_698_852_539_12,
    2.480_158_727_155_248_6e-5,
    2.755_724_524_206_329_8e-6,
    2.755_733_842_975_016e-7,
    2.510_865_781_823_507_8e-8,
    2.089_048_777_126_658e-9,
];

const fn is_single<T: Real>() -> bool {
    size_of::<T>() == size_of::<f32>()
}

#[inline(always)]
fn reduction<T: Real>() -> &'static Reduction {
    const { if is_single::<T>() { &SINGLE } else { &DOUBLE } }
}

#[inline(always)]
pub(crate) fn splat<T: Real, S: Arithmetic<T>>(simd: S, x: f64) -> S::V {
    simd.splat(T::from_f64(x))
}

#[inline(always)]
fn horner<T: Real, S: Arithmetic<T>, const N: usize>(simd: S, x: S::V, coefficients: &[f64; N]) -> S::V {
    let mut sum = splat(simd, coefficients[N - 1]);
    let mut k = N - 1;
    while k > 0 {
        k -= 1;
        sum = simd.mul_add(sum, x, splat(simd, coefficients[k]));
    }
    sum
}

/// `x·factor` rounded to a whole number, for one far below `2^(p−2)`, and that plus [`Real::SHIFT`].
#[inline(always)]
fn whole<T: Real, S: Arithmetic<T>>(simd: S, x: S::V, factor: f64) -> (S::V, S::V) {
    let shift = simd.splat(T::SHIFT);
    let shifted = simd.mul_add(x, splat(simd, factor), shift);
    (simd.sub(shifted, shift), shifted)
}

/// `e^x = 2ⁿ·(1 + r + w)`, `r = head − n·ln2_rest`, `w = r²·q(r)`; `head` is exact and `r` rounded.
struct Reduced<V> {
    n: V,
    /// `n` plus [`Real::SHIFT`].
    shifted: V,
    head: V,
    r: V,
    w: V,
}

#[inline(always)]
fn reduce<T: Real, S: Arithmetic<T>>(simd: S, x: S::V) -> Reduced<S::V> {
    let constants = reduction::<T>();
    let (n, shifted) = whole(simd, x, constants.log2_e);
    let head = simd.neg_mul_add(n, splat(simd, constants.ln2), x);
    let r = simd.neg_mul_add(n, splat(simd, constants.ln2_rest), head);
    let q = if is_single::<T>() { horner(simd, r, &SINGLE_Q) } else { horner(simd, r, &DOUBLE_Q) };
    let w = simd.mul(simd.mul(r, r), q);
    Reduced { n, shifted, head, r, w }
}

/// An unevaluated sum, `|lo|` at most about half an ulp of `hi`.
struct Two<V> {
    hi: V,
    lo: V,
}

/// `e^r` as a rounded sum.
#[inline(always)]
fn power<T: Real, S: Arithmetic<T>>(simd: S, x: &Reduced<S::V>) -> Two<S::V> {
    let one = simd.splat(T::ONE);
    let hi = simd.add(one, x.head);
    let lo = simd.sub(x.head, simd.sub(hi, one));
    let tail = simd.add(lo, simd.neg_mul_add(x.n, splat(simd, reduction::<T>().ln2_rest), x.w));
    let sum = simd.add(hi, tail);
    Two { hi: sum, lo: simd.sub(tail, simd.sub(sum, hi)) }
}

/// `e^r − 1` as a rounded sum.
#[inline(always)]
fn power_less_one<T: Real, S: Arithmetic<T>>(simd: S, x: &Reduced<S::V>) -> Two<S::V> {
    let rest = simd.neg_mul_add(x.n, splat(simd, reduction::<T>().ln2_rest), simd.sub(x.head, x.r));
    let hi = simd.add(x.r, x.w);
    let lo = simd.add(simd.sub(x.w, simd.sub(hi, x.r)), simd.mul_add(rest, x.r, rest));
    Two { hi, lo }
}

/// Two normal powers of two whose product is `2ⁿ`, also where that is subnormal, zero or infinite.
#[inline(always)]
fn factors<T: Real, S: Arithmetic<T>>(simd: S, x: &Reduced<S::V>) -> (S::V, S::V) {
    let (half, half_shifted) = whole(simd, x.n, 0.5);
    (simd.exp2_shifted(half_shifted, 0), simd.exp2_shifted(simd.sub(x.shifted, half), 0))
}

/// The same for `lowest − 4 ≤ n·ln 2 ≤ 0`, the second one a constant.
#[inline(always)]
fn factors_below_one<T: Real, S: Arithmetic<T>>(simd: S, x: &Reduced<S::V>) -> (S::V, S::V) {
    let lift = reduction::<T>().lift;
    (simd.exp2_shifted(x.shifted, lift), splat(simd, power_of_two(-lift)))
}

/// `2ⁿ` for `−1022 ≤ n ≤ 1023`.
const fn power_of_two(n: i32) -> f64 {
    f64::from_bits(((1023 + n) as u64) << 52)
}

/// `2ⁿ·(1 + d) − 1` for `n ≤ 0`, `scale = 2ⁿ`.
#[inline(always)]
fn less_one<T: Real, S: Arithmetic<T>>(simd: S, scale: S::V, d: &Two<S::V>) -> Two<S::V> {
    let one = simd.splat(T::ONE);
    let base = simd.sub(scale, one);
    let base_lo = simd.sub(scale, simd.add(base, one));
    let hi = simd.mul_add(scale, d.hi, base);
    let lo = simd.add(simd.mul_add(scale, d.hi, simd.sub(base, hi)), simd.mul_add(scale, d.lo, base_lo));
    Two { hi, lo }
}

/// `−y`, or `−limit` where `y` is above it; NaN stays.
#[inline(always)]
fn negated<T: Real, S: Arithmetic<T>>(simd: S, y: S::V, limit: f64) -> S::V {
    simd.at_least(simd.neg(y), splat(simd, -limit))
}

/// `e^x` for `x ≤ 0`.
#[inline(always)]
fn exp_below_one<T: Real, S: Arithmetic<T>>(simd: S, x: S::V) -> S::V {
    let reduced = reduce(simd, simd.at_least(x, splat(simd, reduction::<T>().lowest)));
    let (a, b) = factors_below_one(simd, &reduced);
    simd.mul(simd.mul(power(simd, &reduced).hi, a), b)
}

/// `e^x`: `2ⁿ·(1 + r + r²·q(r))`, the powers of two in two exact factors.
///
/// Error at most 0.765 ulp in `f32` (at −87.71555, a subnormal result), largest found 0.765 ulp in `f64`. Monotone over all `f32`.
/// `e^(−∞) = 0`, `e^∞ = ∞`; overflows to ∞, underflows gradually; NaN stays NaN.
#[inline(always)]
pub fn exp<T: Real, S: Arithmetic<T>>(simd: S, x: S::V) -> S::V {
    let constants = reduction::<T>();
    let x = simd.at_least(simd.at_most(x, splat(simd, constants.highest)), splat(simd, constants.lowest));
    let reduced = reduce(simd, x);
    let (a, b) = factors(simd, &reduced);
    simd.mul(simd.mul(power(simd, &reduced).hi, a), b)
}

/// `e^(−y) − 1` for `y ≥ 0`: `2ⁿ·(r + r²·q(r)) + (2ⁿ − 1)`, high and low parts apart up to the last addition.
///
/// Error at most 0.818 ulp in `f32` (at 0.2864157), largest found 0.817 ulp in `f64`. Monotone over all `f32`. `y = ±0` gives 0 (of
/// either sign), `y = ∞` gives −1, a subnormal `y` gives `−y`; NaN stays NaN. Meaningless for `y < 0`.
#[inline(always)]
pub fn expm1_neg<T: Real, S: Arithmetic<T>>(simd: S, y: S::V) -> S::V {
    let reduced = reduce(simd, negated(simd, y, reduction::<T>().settled));
    let em = less_one(simd, simd.exp2_shifted(reduced.shifted, 0), &power_less_one(simd, &reduced));
    simd.add(em.hi, em.lo)
}

/// A function of `z = e^(−|x|)` or `e^(−2|x|)`, and what its difference needs.
pub(crate) struct Smooth<V> {
    pub(crate) value: V,
    pub(crate) z: V,
    /// `1/(1 + z)`.
    pub(crate) recip: V,
}

/// `1/(den.hi + den.lo)` from `recip = 1/den.hi` by a step of Newton's.
#[inline(always)]
fn refine<T: Real, S: Arithmetic<T>>(simd: S, den: &Two<S::V>, recip: S::V) -> S::V {
    let rest = simd.neg_mul_add(recip, den.lo, simd.neg_mul_add(recip, den.hi, simd.splat(T::ONE)));
    simd.mul_add(rest, recip, recip)
}

/// `(num.hi + num.lo)/(den.hi + den.lo)` from `recip = 1/den.hi` in the same way.
#[inline(always)]
fn quotient<T: Real, S: Arithmetic<T>>(simd: S, num: &Two<S::V>, den: &Two<S::V>, recip: S::V) -> S::V {
    let q = simd.mul(num.hi, recip);
    let rest = simd.add(simd.neg_mul_add(q, den.hi, num.hi), simd.neg_mul_add(q, den.lo, num.lo));
    simd.mul_add(rest, recip, q)
}

/// `tanh x = −em/(2 + em)`, `em = e^(−2|x|) − 1`, in `f64`. `z` is right for every `x` if `DEEP`, else in `f64` for `2|x| ≤ settled`; the
/// value is the same.
#[inline(always)]
pub(crate) fn tanh_parts<T: Real, S: Arithmetic<T>, const DEEP: bool>(simd: S, x: S::V) -> Smooth<S::V> {
    let constants = reduction::<T>();
    if is_single::<T>() {
        let (one, y) = (simd.splat(T::ONE), simd.abs(simd.add(x, x)));
        let z = exp_by_sixteenths(simd, negated(simd, y, -constants.lowest));
        return Smooth { value: tanh_by_cells(simd, x), z, recip: simd.div(one, simd.add(one, z)) };
    }
    let limit = if DEEP { -constants.lowest } else { constants.settled };
    let y = simd.neg(simd.abs(x));
    let reduced = reduce(simd, simd.at_least(simd.add(y, y), splat(simd, -limit)));
    let (scale, z) = if DEEP {
        let (a, b) = factors_below_one(simd, &reduced);
        (simd.mul(a, b), simd.mul(simd.mul(power(simd, &reduced).hi, a), b))
    } else {
        let scale = simd.exp2_shifted(reduced.shifted, 0);
        (scale, simd.mul(power(simd, &reduced).hi, scale))
    };
    let em = less_one(simd, scale, &power_less_one(simd, &reduced));
    let two = splat(simd, 2.0);
    let hi = simd.add(two, em.hi);
    let den = Two { hi, lo: simd.add(simd.sub(em.hi, simd.sub(hi, two)), em.lo) };
    let recip = simd.div(simd.splat(T::ONE), hi);
    let value = simd.copysign(quotient(simd, &em, &den, recip), x);
    Smooth { value, z, recip: refine(simd, &den, recip) }
}

/// At the beginning of a cache line: a vector that is stored across two of them cannot be loaded before it has reached the cache.
#[repr(align(64))]
struct Lines<T>(T);

/// One entry for each cell, or for each sixteenth.
type Table = Lines<[f32; 16]>;

/// Where `tanh` has settled at 1.
const TANH_SETTLED: f64 = 9.02;
/// `13/16·|x| + ½` tells the cells apart, by the last two bits of its exponent and the first two of its fraction; the tables begin at 2.
/// From 0 to 6/13 there are three, from there to [`TANH_SETTLED`] thirteen.
const TANH_CELLS: [f64; 2] = [0.8125, 0.5];
/// Where the polynomial of a cell has its origin; 0 in the first three.
#[rustfmt::skip]
static TANH_ORIGIN: Table = Lines([
    2.156_361, 2.767_927_6, 3.384_169, 4.003_724_6, 4.925_512, 6.159_015_7, 7.381_865, 8.664_34,
    0.0, 0.0, 0.0, 0.486_861_44, 0.700_624_35, 1.075_787, 1.385_092, 1.691_854_7,
]);
/// `tanh` there to within 1/300 of an ulp, for which the origin was chosen (Gal 1986), and below every number of the cell. No limit in the
/// first three.
#[rustfmt::skip]
static TANH_BASE: Table = Lines([
    0.973_560_15, 0.992_145_3, 0.997_703_43, 0.999_334_3, 0.999_894_6, 0.999_991_06, 0.999_999_2, 0.999_999_94,
    3.0e38, 3.0e38, 3.0e38, 0.451_721_85, 0.604_763_9, 0.791_631_5, 0.882_086_4, 0.934_383_03,
]);
/// `(tanh(origin + y) − base)/y`, in the first three `(tanh y − y)/y`, by ascending powers of `y`; relative error of `tanh` at most 2⁻²⁸·⁷.
#[rustfmt::skip]
static TANH_P: [Table; 6] = [
    Lines([
        0.052_180_603, 0.015_647_713, 0.004_587_862, 0.001_331_006_4, 0.000_210_765_52, 1.788_257_6e-5, 1.549_834_7e-6, 1.192_072e-7,
        0.0, 4.066_471e-6, 1.745_299_8e-5, 0.795_947_4, 0.634_260_54, 0.373_319_54, 0.221_923_59, 0.126_928_34,
    ]),
    Lines([
        -0.050_800_893, -0.015_524_792, -0.004_577_316_3, -0.001_330_124_3, -0.000_210_740_39, -1.788_359_8e-5, -1.549_784_5e-6, -1.192_270_2e-7,
        -1.077_411_65e-7, -0.000_115_457_98, -0.000_366_394_52, -0.359_546_84, -0.383_577_8, -0.295_531_42, -0.195_755_8, -0.118_599_676,
    ]),
    Lines([
        0.032_066_25, 0.010_186_144, 0.003_037_194, 0.000_885_457_1, 0.000_140_123_81, 1.189_355_9e-5, 1.030_641_3e-6, 7.954_247e-8,
        -0.333_323_36, -0.331_971_53, -0.330_100_03, -0.102_900_5, 0.020_574_251, 0.109_512_41, 0.098_700_33, 0.068_508_77,
    ]),
    Lines([
        -0.014_286_783_5, -0.004_932_100_4, -0.001_504_798, -0.000_441_461_07, -7.003_749_5e-5, -5.940_157_7e-6, -5.156_587_7e-7, -3.933_746_5e-8,
        -0.000_300_366_32, -0.008_583_932, -0.015_541_421, 0.166_373_7, 0.115_328_5, 0.011_810_489, -0.021_808_738, -0.024_481_006,
    ]),
    Lines([
        0.004_334_524_3, 0.001_862_618_3, 0.000_598_592_6, 0.000_178_247_78, 2.983_985e-5, 2.533_849_7e-6, 2.199_172_7e-7, 1.563_722e-8,
        0.137_291_49, 0.164_116_53, 0.177_028_55, -0.024_249_136, -0.063_888_48, -0.037_592_854, -0.008_896_164, 0.002_774_731_3,
    ]),
    Lines([
        -0.000_573_098, -0.000_531_511_2, -0.000_190_808_29, -5.937_120_7e-5, -9.935_393e-6, -8.554_73e-7, -7.266_772_4e-8, -7.472_527_5e-9,
        -0.023_804_048, -0.060_711_153, -0.070_289_52, -0.043_265_98, 0.002_235_344_6, 0.019_252_632, 0.010_643_028, 0.002_912_585_2,
    ]),
];

/// The table as one of `T`, which is `f32`.
#[inline(always)]
fn entries<T: Real>(table: &'static Table) -> &'static [T; 16] {
    bytemuck::cast_ref(&table.0)
}

/// `base + y·P(y)` with `y = |x| − origin`, or `y + y·P(y)` in the first cells; for `f32`.
#[inline(always)]
fn tanh_by_cells<T: Real, S: Arithmetic<T>>(simd: S, x: S::V) -> S::V {
    let size = simd.at_most(simd.abs(x), splat(simd, TANH_SETTLED));
    let [scale, first] = TANH_CELLS;
    let cell = simd.leading(simd.mul_add(size, splat(simd, scale), splat(simd, first)));
    let y = simd.sub(size, simd.pick(cell, entries(&TANH_ORIGIN)));
    let mut p = simd.pick(cell, entries(&TANH_P[5]));
    for k in (0..5).rev() {
        p = simd.mul_add(p, y, simd.pick(cell, entries(&TANH_P[k])));
    }
    let base = simd.at_most(size, simd.pick(cell, entries(&TANH_BASE)));
    simd.copysign(simd.mul_add(p, y, base), x)
}

/// `ln 2/16` as the nearest `f32` and the rest, and its reciprocal.
const SIXTEENTH: f64 = 0.043_321_698_904_037_476;
const SIXTEENTH_REST: f64 = -1.190_408_882_578_708_5e-10;
const PER_SIXTEENTH: f64 = 23.083_120_346_069_336;
/// `(e^r − 1 − r)/r²` for `|r| ≤ ln 2/32`: relative error of `e^r` at most 2⁻²⁹·².
const SIXTEENTH_Q: [f64; 2] = [0.500_016_272_068_023_7, 0.166_670_098_900_794_98];
/// `2^(k/16)` rounded, with what [`Arithmetic::add_sixteenths`] adds for `k` taken out.
#[rustfmt::skip]
#[expect(clippy::approx_constant, reason = "an entry is the root of 2, rounded like the others")]
static POWERS: Table = {
    let powers: [f32; 16] = [
        1.0, 1.044_273_7, 1.090_507_7, 1.138_788_6, 1.189_207_1, 1.241_857_8, 1.296_839_6, 1.354_255_6,
        1.414_213_5, 1.476_826_2, 1.542_210_8, 1.610_490_3, 1.681_792_9, 1.756_252_2, 1.834_008_1, 1.915_206_6,
    ];
    let (mut table, mut k) = ([0.0; 16], 0);
    while k < 16 {
        table[k] = f32::from_bits(powers[k].to_bits() - ((k as u32) << 19));
        k += 1;
    }
    Lines(table)
};
/// `2^(k/16)` over that, less 1.
#[rustfmt::skip]
static POWERS_REST: Table = Lines([
    0.0, 4.628_547e-8, -1.199_215_75e-8, 4.729_782_4e-8, 3.193_418e-8, 3.621_057_2e-8, -3.099_072e-8, -7.475_213e-9,
    1.711_427_1e-8, -3.047_683_4e-8, 5.233_334e-9, 6.107_591_8e-9, -1.471_960_5e-8, -5.258_795e-9, -6.128_259_7e-9, 5.140_609_3e-9,
]);

/// `scale` and `t` with `e^y = 2^(−lift)·scale·(1 + t)`, for `f32` and a normal `2^lift·e^y`.
#[inline(always)]
fn sixteenths<T: Real, S: Arithmetic<T>>(simd: S, y: S::V, lift: i32) -> (S::V, S::V) {
    let shift = simd.splat(T::from_f64(T::SHIFT.to_f64() + f64::from(16 * lift)));
    let shifted = simd.mul_add(y, splat(simd, PER_SIXTEENTH), shift);
    let m = simd.sub(shifted, shift);
    let r = simd.neg_mul_add(m, splat(simd, SIXTEENTH_REST), simd.neg_mul_add(m, splat(simd, SIXTEENTH), y));
    let q = horner(simd, r, &SIXTEENTH_Q);
    let t = simd.mul_add(simd.mul(r, r), q, simd.add(r, simd.pick(shifted, entries(&POWERS_REST))));
    (simd.add_sixteenths(simd.pick(shifted, entries(&POWERS)), shifted), t)
}

/// By how many powers of two the parts of small numbers are larger, so that they are normal.
const LIFT: i32 = 64;

/// `e^y` for `lowest ≤ y ≤ 0` in `f32`.
#[inline(always)]
fn exp_by_sixteenths<T: Real, S: Arithmetic<T>>(simd: S, y: S::V) -> S::V {
    let (scale, t) = sixteenths(simd, y, LIFT);
    simd.mul(simd.mul_add(scale, t, scale), splat(simd, power_of_two(-LIFT)))
}

/// `1/(1 + e^|x|)` by one division and a step of Newton's, all of it times 2⁻⁶⁴ until then; it, or 1 less it. For `f32`.
#[inline(always)]
fn sigmoid_by_sixteenths<T: Real, S: Arithmetic<T>>(simd: S, x: S::V) -> Smooth<S::V> {
    let (one, low) = (simd.splat(T::ONE), splat(simd, power_of_two(-LIFT)));
    let y = simd.at_most(simd.abs(x), splat(simd, -reduction::<T>().lowest));
    let (scale, t) = sixteenths(simd, y, -LIFT);
    let sum = simd.add(low, scale);
    let sum_lo = simd.sub(low, simd.sub(sum, scale));
    let hi = simd.mul_add(scale, t, sum);
    let lo = simd.add(simd.mul_add(scale, t, simd.sub(sum, hi)), sum_lo);
    let part = refine(simd, &Two { hi, lo }, simd.div(one, hi));
    let (left, right) = (simd.mul(part, low), simd.neg_mul_add(part, low, one));
    let value = simd.select(simd.lt(x, simd.splat(T::ZERO)), left, right);
    Smooth { value, z: exp_by_sixteenths(simd, simd.neg(y)), recip: right }
}

/// In `f32` by a polynomial in each of 16 cells of `|x|`, in `f64` `−em/(2 + em)`, `em = e^(−2|x|) − 1` in two parts, by one division and a
/// step of Newton's; the sign is copied.
///
/// Error at most 0.643 ulp in `f32` (at ±0.45903206), largest found 0.754 ulp in `f64`. Monotone over all `f32`. Odd, `±0` and
/// subnormals stay themselves, `tanh(±∞) = ±1`; NaN stays NaN.
#[inline(always)]
pub fn tanh<T: Real, S: Arithmetic<T>>(simd: S, x: S::V) -> S::V {
    tanh_parts::<T, S, false>(simd, x).value
}

/// `e^(−|x|) = 2ⁿ·power`, `2ⁿ = a·b`, and `den = 1 + e^(−|x|)`; `|x|` is cut at `limit`.
struct Logistic<V> {
    power: Two<V>,
    a: V,
    b: V,
    den: Two<V>,
    /// `1/den.hi`.
    recip: V,
}

#[inline(always)]
fn logistic<T: Real, S: Arithmetic<T>>(simd: S, x: S::V, limit: f64) -> Logistic<S::V> {
    let one = simd.splat(T::ONE);
    let reduced = reduce(simd, negated(simd, simd.abs(x), limit));
    let power = power(simd, &reduced);
    let (a, b) = factors_below_one(simd, &reduced);
    let scale = simd.mul(a, b);
    let hi = simd.mul_add(scale, power.hi, one);
    let lo = simd.mul_add(scale, power.lo, simd.mul_add(scale, power.hi, simd.sub(one, hi)));
    Logistic { power, a, b, den: Two { hi, lo }, recip: simd.div(one, hi) }
}

/// `1/(1 + z)` or `z/(1 + z)` with `z = e^(−|x|)`; scaled by `2ⁿ` only at the end.
#[inline(always)]
pub(crate) fn sigmoid_parts<T: Real, S: Arithmetic<T>>(simd: S, x: S::V) -> Smooth<S::V> {
    if is_single::<T>() {
        return sigmoid_by_sixteenths(simd, x);
    }
    let (zero, one) = (simd.splat(T::ZERO), simd.splat(T::ONE));
    let Logistic { power, a, b, den, recip } = logistic(simd, x, -reduction::<T>().lowest);
    let left = simd.lt(x, zero);
    let num = Two { hi: simd.select(left, power.hi, one), lo: simd.select(left, power.lo, zero) };
    let q = quotient(simd, &num, &den, recip);
    let value = simd.mul(simd.mul(q, simd.select(left, a, splat(simd, power_of_two(reduction::<T>().lift)))), b);
    Smooth { value, z: simd.mul(simd.mul(power.hi, a), b), recip: refine(simd, &den, recip) }
}

/// `slope·σ'(x)` with `σ'(x) = z/(1 + z)²`, `z = e^(−|x|)`, and never more than `slope/4`.
#[inline(always)]
pub(crate) fn sigmoid_slope<T: Real, S: Arithmetic<T>>(simd: S, x: S::V, slope: f64) -> S::V {
    // The slope is at most 4 < e⁴.
    let Logistic { power, a, b, den, recip } = logistic(simd, x, 4.0 - reduction::<T>().lowest);
    let q = simd.mul(quotient(simd, &power, &den, recip), simd.mul(refine(simd, &den, recip), splat(simd, slope)));
    let steepest = splat(simd, slope / 4.0);
    let q = simd.mul(simd.mul(q, a), b);
    simd.select(simd.lt(steepest, q), steepest, q)
}

/// `1/(1 + e^(−x))`, the logistic function. In `f32` `1 − w` or, for `x < 0`, `w = 1/(1 + e^|x|)`; in `f64` `1/(1 + z)` or `z/(1 + z)`,
/// `z = e^(−|x|)`.
///
/// Error at most 0.768 ulp in `f32` (at 0.23808558), largest found 0.765 ulp in `f64`: the left tail keeps
/// its relative accuracy down to the subnormals. Monotone over all `f32`. `σ(−∞) = 0`, `σ(±0) = ½`, `σ(∞) = 1`; NaN stays NaN.
#[inline(always)]
pub fn sigmoid<T: Real, S: Arithmetic<T>>(simd: S, x: S::V) -> S::V {
    sigmoid_parts(simd, x).value
}

/// `ln x`, with bits that do not depend on the platform's library.
///
/// `x = 2^k·(1 + f)`, `s = f/(2 + f)`, `ln(1 + f) = f − f²/2 + s·(f²/2 + s²·P(s²))` (as in fdlibm) with `f − f²/2` and the sum with
/// `k·ln 2` in two parts; `P` by our own Remez exchange, error 2⁻⁶⁶·⁵. Largest error found 0.603 ulp (just below √½).
/// `ln ±0 = −∞`, `ln ∞ = ∞`, NaN for `x < 0` and NaN; subnormals are exact inputs like others.
#[inline(always)] // under FMA it is some instructions, else a dozen calls
pub fn ln(x: f64) -> f64 {
    /// `ln 2` in 42 bits, so that a multiple of it by an exponent is exact, and the rest.
    const LN2: f64 = 0.693_147_180_559_890_3;
    const LN2_REST: f64 = 5.497_923_018_708_371e-14;
    /// `(ln((1+s)/(1−s)) − 2s)/s³` in `s²`.
    const P: [f64; 8] = [
        0.666_666_666_666_666_6,
        0.400_000_000_000_049_26,
        0.285_714_285_694_096_46,
        0.222_222_226_072_781_08,
        0.181_817_783_254_303_9,
        0.153_869_903_262_466_5,
        0.132_521_121_013_485_2,
        0.132_351_225_761_912_3,
    ];
    if x.is_nan() || x == f64::INFINITY {
        return x;
    }
    if x <= 0.0 {
        return if x == 0.0 { f64::NEG_INFINITY } else { f64::NAN };
    }
    let (bits, offset) = if x < f64::MIN_POSITIVE { ((x * (1u64 << 54) as f64).to_bits(), 54) } else { (x.to_bits(), 0) };
    let exponent = (bits as i64 - core::f64::consts::FRAC_1_SQRT_2.to_bits() as i64) >> 52;
    let f = f64::from_bits((bits as i64 - (exponent << 52)) as u64) - 1.0;
    let k = (exponent - offset) as f64;
    let s = f / (2.0 + f);
    let z = s * s;
    let p = P.iter().rev().fold(0.0, |sum: f64, &c| sum.mul_add(z, c));
    let half = 0.5 * f;
    let h = half * f;
    let h_lo = half.mul_add(f, -h);
    let a = f - h;
    let a_lo = (f - a) - h;
    let b = k * LN2;
    let sum = b + a;
    let sum_lo = a - (sum - b);
    sum + (sum_lo + k.mul_add(LN2_REST, s.mul_add(z.mul_add(p, h), a_lo - h_lo)))
}

/// `cos(πx)` for `0 ≤ x ≤ 1`, NaN elsewhere.
///
/// `±cos(πt)` within ¼ of an end, else `sin(π(½ − x))`, by minimax polynomials (our own Remez exchange) and a two-part leading
/// term. Largest error found 0.676 ulp, 7.5·10⁻¹⁷ absolutely; exact at 0, ½ and 1.
pub fn cos_pi(x: f64) -> f64 {
    const PI_REST: f64 = 1.224_646_799_147_353_2e-16;
    const HALF_PI_SQUARED: f64 = 4.934_802_200_544_679;
    const HALF_PI_SQUARED_REST: f64 = 3.132_647_754_369_855_7e-16;
    /// `(sin(πt)/t − π)/t²` and `((cos(πt) − 1)/t² + π²/2)/t²` in `t²`.
    const SIN: [f64; 7] = [
        -5.167_712_780_049_97,
        2.550_164_039_877_415,
        -0.599_264_529_327_834,
        0.082_145_886_937_352_64,
        -0.007_370_438_457_690_959,
        0.000_466_383_982_272_151,
        -2.218_520_040_027_04e-5,
    ];
    const COS: [f64; 7] = [
        4.058_712_126_416_768_5,
        -1.335_262_768_854_646_8,
        0.235_330_630_363_486_95,
        -0.025_806_891_570_115_67,
        0.001_929_578_001_819_537,
        -0.000_104_675_627_270_309_03,
        4.441_767_915_033_242e-6,
    ];
    if !(0.0..=1.0).contains(&x) {
        return f64::NAN;
    }
    let fold = |c: &[f64; 7], u: f64| c.iter().rev().fold(0.0, |sum: f64, &c| sum.mul_add(u, c));
    if (0.25..=0.75).contains(&x) {
        let t = 0.5 - x;
        let u = t * t;
        let hi = t * core::f64::consts::PI;
        let lo = t.mul_add(core::f64::consts::PI, -hi);
        return hi + t.mul_add(u.mul_add(fold(&SIN, u), PI_REST), lo);
    }
    let t = if x < 0.5 { x } else { 1.0 - x };
    let u = t * t;
    let u_lo = t.mul_add(t, -u);
    let v = HALF_PI_SQUARED * u;
    let v_lo = HALF_PI_SQUARED.mul_add(u, -v) + HALF_PI_SQUARED.mul_add(u_lo, HALF_PI_SQUARED_REST * u);
    let c = 1.0 - v;
    let c_lo = (1.0 - c) - v;
    let cosine = c + (c_lo + (u * u).mul_add(fold(&COS, u), -v_lo));
    if x < 0.5 { cosine } else { -cosine }
}

/// Two slices that should have the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthMismatch {
    /// Elements of the output.
    pub out: usize,
    /// Elements of the input.
    pub x: usize,
}

impl fmt::Display for LengthMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`out` has {} elements and `x` has {}", self.out, self.x)
    }
}

impl core::error::Error for LengthMismatch {}

#[inline]
fn check_lengths<T>(out: &[T], x: &[T]) -> Result<(), LengthMismatch> {
    if out.len() == x.len() { Ok(()) } else { Err(LengthMismatch { out: out.len(), x: x.len() }) }
}

/// A function of one vector. A trait and not a closure: a closure called for the body and for the tail is not inlined.
pub(crate) trait Pointwise<T: Real>: Copy {
    /// Vectors in lockstep, [`CHAINED`] or [`SPARING`].
    const ABREAST: usize = CHAINED;

    fn at<S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V;
}

/// Vectors in lockstep: registers are spilled, but with fewer vectors the units wait for results.
const CHAINED: usize = 8;

/// As many as spill few registers: exponentials take 0.83 to 0.92 of their time with eight on Zen 4, tanh 1.04.
const SPARING: usize = 4;

/// `out = f(x)`, whole vectors and then the tail; the lengths are equal.
#[inline(always)]
pub(crate) fn map_in<T: Real, S: Vector<T>, F: Pointwise<T>>(simd: S, f: F, out: &mut [T], x: &[T]) {
    match F::ABREAST {
        SPARING => map_abreast::<T, S, F, SPARING>(simd, f, out, x),
        _ => map_abreast::<T, S, F, CHAINED>(simd, f, out, x),
    }
}

#[inline(always)]
fn map_abreast<T: Real, S: Vector<T>, F: Pointwise<T>, const N: usize>(simd: S, f: F, out: &mut [T], x: &[T]) {
    let (body, tail) = S::as_vectors(x);
    let (out_body, out_tail) = S::as_vectors_mut(out);
    let ((groups, last), (out_groups, out_last)) = (body.as_chunks::<N>(), out_body.as_chunks_mut::<N>());
    for (out, &x) in out_groups.iter_mut().zip(groups) {
        *out = f.at(Lockstep(simd), x);
    }
    for (out, &x) in out_last.iter_mut().zip(last) {
        *out = f.at(simd, x);
    }
    if !tail.is_empty() {
        simd.store_partial(out_tail, f.at(simd, simd.load_partial(tail)));
    }
}

struct Map<'a, T, F> {
    f: F,
    out: &'a mut [T],
    x: &'a [T],
}

impl<T: Real, F: Pointwise<T>> Kernel<T> for Map<'_, T, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        map_in(simd, self.f, self.out, self.x);
    }
}

/// `out = f(x)`; checks the lengths.
pub(crate) fn map_pointwise<T: Real, F: Pointwise<T>>(isa: Isa, f: F, out: &mut [T], x: &[T]) -> Result<(), LengthMismatch> {
    check_lengths(out, x)?;
    isa.run(Map { f, out, x });
    Ok(())
}

/// The functions of [`map`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Function {
    /// [`exp`].
    Exp,
    /// [`expm1_neg`].
    Expm1Neg,
    /// [`tanh`].
    Tanh,
    /// [`sigmoid`].
    Sigmoid,
}

macro_rules! pointwise {
    ($($name:ident = $function:ident, $abreast:ident;)*) => { $(
        #[derive(Clone, Copy)]
        struct $name;
        impl<T: Real> Pointwise<T> for $name {
            const ABREAST: usize = $abreast;

            #[inline(always)]
            fn at<S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
                $function(simd, x)
            }
        }
    )* };
}

pointwise! {
    Exp = exp, SPARING;
    Expm1Neg = expm1_neg, CHAINED;
    Tanh = tanh, CHAINED;
    Sigmoid = sigmoid, CHAINED;
}

impl Function {
    /// All of them.
    pub const ALL: &'static [Function] = &[Function::Exp, Function::Expm1Neg, Function::Tanh, Function::Sigmoid];
}

/// `out = f(x)`, element by element.
///
/// # Errors
/// [`LengthMismatch`] if the slices differ in length; then `out` is untouched.
pub fn map<T: Real>(isa: Isa, function: Function, out: &mut [T], x: &[T]) -> Result<(), LengthMismatch> {
    match function {
        Function::Exp => map_pointwise(isa, Exp, out, x),
        Function::Expm1Neg => map_pointwise(isa, Expm1Neg, out, x),
        Function::Tanh => map_pointwise(isa, Tanh, out, x),
        Function::Sigmoid => map_pointwise(isa, Sigmoid, out, x),
    }
}

/// Elements of the buffer of [`log_sum_exp`], a multiple of [`CHAINS`] and of every vector length.
const BLOCK: usize = 128;
/// Partial sums of a row: element `i` goes to sum `i mod CHAINS`, on every instruction set.
const CHAINS: usize = 16;

/// The sum of a row in f64, in an order that depends on its length only.
struct Chains([f64; CHAINS]);

impl Chains {
    /// Adds the next elements of the row.
    #[inline(always)]
    fn add<T: Real>(&mut self, terms: &[[T; CHAINS]]) {
        for chunk in terms {
            for i in 0..CHAINS {
                self.0[i] += chunk[i].to_f64();
            }
        }
    }

    #[inline(always)]
    fn total(self) -> f64 {
        let mut eight = [0.0; CHAINS / 2];
        for i in 0..8 {
            eight[i] = self.0[i] + self.0[i + 8];
        }
        folded(&eight)
    }
}

/// The sum of what two halves of the chains have made.
#[inline(always)]
fn folded(eight: &[f64; CHAINS / 2]) -> f64 {
    let mut four = [0.0; CHAINS / 4];
    for i in 0..4 {
        four[i] = eight[i] + eight[i + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3])
}

/// The largest element, −∞ if there is none; anything if one is NaN.
#[inline(always)]
fn maximum<T: Real, S: Vector<T>>(simd: S, x: &[T]) -> T {
    let lowest = T::from_f64(f64::NEG_INFINITY);
    let (body, tail) = S::as_vectors(x);
    let mut peaks = [simd.splat(lowest); 4];
    let (groups, last) = body.as_chunks();
    for group in groups {
        peaks = Lockstep(simd).at_least(*group, peaks);
    }
    for &x in last {
        peaks[0] = simd.at_least(x, peaks[0]);
    }
    if !tail.is_empty() {
        peaks[1] = simd.at_least(simd.first(tail.len(), simd.load_partial(tail), lowest), peaks[1]);
    }
    simd.largest(simd.at_least(simd.at_least(peaks[0], peaks[1]), simd.at_least(peaks[2], peaks[3])))
}

/// `e^(x − peak)` for finite `peak ≥ x`, NaN if either is, or `x = peak` infinite: the rounding error of the difference, known exactly, is a
/// factor `1 + rest` (to first order).
#[inline(always)]
fn exp_shifted<T: Real, S: Arithmetic<T>>(simd: S, x: S::V, peak: S::V) -> S::V {
    let d = simd.sub(x, peak);
    let back = simd.sub(d, x);
    let rest = simd.sub(simd.sub(x, simd.sub(d, back)), simd.add(peak, back));
    // Below `lowest` the result is 0, and the rest may be NaN.
    let rest = simd.select(simd.le(splat(simd, reduction::<T>().lowest), d), rest, simd.splat(T::ZERO));
    let e = exp_below_one(simd, d);
    simd.mul_add(e, rest, e)
}

/// [`exp_shifted`] with one peak.
#[derive(Clone, Copy)]
struct Shifted<T> {
    peak: T,
}

impl<T: Real> Pointwise<T> for Shifted<T> {
    const ABREAST: usize = SPARING;

    #[inline(always)]
    fn at<S: Arithmetic<T>>(self, simd: S, x: S::V) -> S::V {
        exp_shifted(simd, x, simd.splat(self.peak))
    }
}

impl<T: Real> Shifted<T> {
    /// The terms of the end of a row, fewer than [`BLOCK`], and their sum with those before. The zeros behind them stay.
    #[inline(always)]
    fn end<S: Vector<T>>(self, simd: S, terms: &mut Lines<[T; BLOCK]>, x: &[T], sum: &mut Chains) {
        let (body, tail) = S::as_vectors(x);
        let (to, _) = S::as_vectors_mut(&mut terms.0);
        for (to, &x) in to.iter_mut().zip(body) {
            *to = self.at(simd, x);
        }
        if !tail.is_empty() {
            // A whole vector: what is stored under a mask cannot be loaded before it has reached the cache.
            to[body.len()] = simd.first(tail.len(), self.at(simd, simd.load_partial(tail)), T::ZERO);
        }
        sum.add(&terms.0.as_chunks().0[..x.len().div_ceil(CHAINS)]);
    }
}

/// Short rows in flight at once.
const SHORT: usize = 8;

/// Some rows of at most [`CHAINS`] elements, with the bits of a row alone.
struct Short<T> {
    /// `e^(x − peak)`, zeros behind.
    terms: Lines<[[T; CHAINS]; SHORT]>,
    /// The largest element of a row, in all places.
    peaks: Lines<[[T; CHAINS]; SHORT]>,
    /// Of the terms of a row.
    sums: [f64; SHORT],
}

impl<T: Real> Short<T> {
    fn new() -> Self {
        Self { terms: Lines([[T::ZERO; CHAINS]; SHORT]), peaks: Lines([[T::ZERO; CHAINS]; SHORT]), sums: [0.0; SHORT] }
    }

    /// Takes the rows of `x`, at most [`SHORT`].
    #[inline(always)]
    fn take<S: Vector<T>>(&mut self, simd: S, x: RowMajorRef<'_, T>) {
        let lowest = T::from_f64(f64::NEG_INFINITY);
        let rows = x.nrows();
        for (row, (terms, peaks)) in self.terms.0[..rows].iter_mut().zip(&mut self.peaks.0[..rows]).enumerate() {
            let (body, tail) = S::as_vectors(x.row(row).as_slice());
            let (terms, peaks) = (S::as_vectors_mut(terms).0, S::as_vectors_mut(peaks).0);
            let mut peak = simd.splat(lowest);
            for (i, term) in terms.iter_mut().enumerate() {
                *term = if i < body.len() {
                    body[i]
                } else if i == body.len() && !tail.is_empty() {
                    simd.first(tail.len(), simd.load_partial(tail), lowest)
                } else {
                    simd.splat(lowest)
                };
                peak = simd.at_least(*term, peak);
            }
            let peak = simd.splat(simd.largest(peak));
            for to in peaks {
                *to = peak;
            }
        }
        let (terms, peaks) = (self.terms.0[..rows].as_flattened_mut(), self.peaks.0[..rows].as_flattened());
        let ((terms, last), (peaks, last_peaks)) =
            (S::as_vectors_mut(terms).0.as_chunks_mut::<CHAINED>(), S::as_vectors(peaks).0.as_chunks::<CHAINED>());
        for (terms, &peaks) in terms.iter_mut().zip(peaks) {
            *terms = exp_shifted(Lockstep(simd), *terms, peaks);
        }
        for (terms, &peaks) in last.iter_mut().zip(last_peaks) {
            *terms = exp_shifted(simd, *terms, peaks);
        }
        for (sum, terms) in self.sums[..rows].iter_mut().zip(&self.terms.0) {
            *sum = sum_of_terms(simd, terms);
        }
    }
}

/// The sum by [`Chains`] of one chunk.
#[inline(always)]
fn sum_of_terms<T: Real, S: Vector<f64>>(simd: S, terms: &[T; CHAINS]) -> f64 {
    const HALF: usize = CHAINS / 2;
    let mut half = Lines([0.0; HALF]);
    for (at, sum) in (0..HALF).step_by(S::LANES).zip(S::as_vectors_mut(&mut half.0).0) {
        let [low, high] = [at, at + HALF].map(|at| &terms[at..][..S::LANES]);
        // SAFETY: the slice has `LANES` elements.
        let low = unsafe { widen(simd, low.as_ptr(), S::LANES) };
        // SAFETY: as above.
        let high = unsafe { widen(simd, high.as_ptr(), S::LANES) };
        *sum = simd.add(low, high);
    }
    folded(&half.0)
}

/// `peak + ln sum`; what the elements say where the largest is not finite.
#[inline(always)]
fn log_of_sum<T: Real>(x: &[T], peak: T, sum: f64) -> f64 {
    if peak.is_finite() {
        return peak.to_f64() + ln(sum);
    }
    x.iter().find(|x| x.partial_cmp(x).is_none()).unwrap_or(&peak).to_f64()
}

struct LogSumExp<'a, T> {
    x: &'a [T],
}

impl<T: Real> Kernel<T> for LogSumExp<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) -> f64 {
        let peak = maximum(simd, self.x);
        let mut sum = Chains([0.0; CHAINS]);
        let (blocks, end) = self.x.as_chunks::<BLOCK>();
        let mut terms = Lines([T::ZERO; BLOCK]);
        for x in blocks {
            map_in(simd, Shifted { peak }, &mut terms.0, x);
            sum.add(terms.0.as_chunks().0);
        }
        Shifted { peak }.end(simd, &mut Lines([T::ZERO; BLOCK]), end, &mut sum);
        log_of_sum(self.x, peak, sum.total())
    }
}

/// Rows of at most [`CHAINS`] elements.
struct ShortLogSumExp<'a, T> {
    out: &'a mut [f64],
    x: RowMajorRef<'a, T>,
}

impl<T: Real> Kernel<T> for ShortLogSumExp<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        let mut short = Short::new();
        for (block, out) in self.out.chunks_mut(SHORT).enumerate() {
            let x = self.x.subrows(SHORT * block, out.len());
            short.take(simd, x);
            for (row, out) in out.iter_mut().enumerate() {
                *out = log_of_sum(x.row(row).as_slice(), short.peaks.0[row][0], short.sums[row]);
            }
        }
    }
}

/// `ln Σ e^(xᵢ) = m + ln Σ e^(xᵢ − m)`, `m` the largest entry.
///
/// The rounding error of `xᵢ − m` is made good (Blanchard, Higham & Higham 2021 have the bound without that), the terms are in `T`,
/// and their sum in f64 with 16 partial sums, the same on every instruction set. Absolute error at most
/// `3u + (n/16 + 5)·u₆₄ + u₆₄·(2|result| + 2 ln n + 1)`, `u` the unit roundoff of `T`.
///
/// An empty row, and one of −∞ only, has −∞ (the logarithm of 0); +∞ anywhere gives ∞, and NaN anywhere NaN.
pub fn log_sum_exp<T: Real>(isa: Isa, x: &[T]) -> f64 {
    (T::kernels().log_sum_exp)(isa, x)
}

/// [`log_sum_exp`] of each row of `x`, to the bit; rows of up to 16 elements are computed side by side.
///
/// # Panics
/// If `out` has not as many elements as `x` rows, or the elements of a row are not next to each other.
pub fn log_sum_exp_rows<T: Real>(isa: Isa, out: &mut [f64], x: MatRef<'_, T>) {
    assert_eq!(out.len(), x.nrows(), "elements of `out`, rows of `x`");
    if x.nrows() == 0 || x.ncols() == 0 {
        return out.fill(f64::NEG_INFINITY);
    }
    let x = x.try_as_row_major().expect("elements of a row of `x` next to each other");
    if x.ncols() <= CHAINS {
        return (T::kernels().short_log_sum_exp)(isa, out, x);
    }
    for (row, out) in out.iter_mut().enumerate() {
        *out = log_sum_exp(isa, x.row(row).as_slice());
    }
}

pub(crate) fn run_log_sum_exp<T: Real>(isa: Isa, x: &[T]) -> f64 {
    isa.run(LogSumExp { x })
}

pub(crate) fn run_short_log_sum_exp<T: Real>(isa: Isa, out: &mut [f64], x: RowMajorRef<'_, T>) {
    isa.run(ShortLogSumExp { out, x });
}

struct Softmax<'a, T> {
    out: RowMajorMut<'a, T>,
    x: RowMajorRef<'a, T>,
}

impl<T: Real> Kernel<T> for Softmax<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        // Terms of the row before, to be divided by their sum: slow operations that hide between the exponentials of the next row. The last ones
        // come first, since loads wait for stores that look alike within a page, as those of rows a page apart do.
        let (mut before, mut divisor) = ([].iter_mut(), simd.splat(T::ZERO));
        for (out, x) in self.out.row_iter_mut().zip(self.x.row_iter()) {
            let (out, x) = (out.as_slice_mut(), x.as_slice());
            let peak = maximum(simd, x);
            let mut sum = Chains([0.0; CHAINS]);
            let ((blocks, end), (out_blocks, out_end)) = (x.as_chunks::<BLOCK>(), out.as_chunks_mut::<BLOCK>());
            for (out, x) in out_blocks.iter_mut().zip(blocks) {
                map_in(simd, Shifted { peak }, out, x);
                sum.add(out.as_chunks().0);
                if let Some(terms) = before.next_back() {
                    divide(simd, terms, divisor);
                }
            }
            let mut terms = Lines([T::ZERO; BLOCK]);
            Shifted { peak }.end(simd, &mut terms, end, &mut sum);
            // NaN and +∞ make a term NaN, and so does a row of −∞.
            let sum = sum.total();
            divisor = simd.splat(T::from_f64(sum));
            if sum.is_nan() {
                fill_with_nan(out_blocks.as_flattened_mut());
                fill_with_nan(out_end);
                before = [].iter_mut();
            } else {
                store_quotients(simd, out_end, &terms.0, divisor);
                before = out_blocks.iter_mut();
            }
        }
        before.for_each(|terms| divide(simd, terms, divisor));
    }
}

/// Whole vectors of terms by their sum.
#[inline(always)]
fn divide<T: Real, S: Vector<T>>(simd: S, terms: &mut [T; BLOCK], sum: S::V) {
    for term in S::as_vectors_mut(terms).0 {
        *term = simd.div(*term, sum);
    }
}

#[cold]
#[inline(never)]
fn fill_with_nan<T: Real>(out: &mut [T]) {
    out.fill(T::from_f64(f64::NAN));
}

/// `out = terms/sum`; there may be more terms.
#[inline(always)]
fn store_quotients<T: Real, S: Vector<T>>(simd: S, out: &mut [T], terms: &[T], sum: S::V) {
    let (terms, _) = S::as_vectors(terms);
    let (body, tail) = S::as_vectors_mut(out);
    for (out, &term) in body.iter_mut().zip(terms) {
        *out = simd.div(term, sum);
    }
    if !tail.is_empty() {
        simd.store_partial(tail, simd.div(terms[body.len()], sum));
    }
}

/// Rows of at most [`CHAINS`] elements.
struct ShortSoftmax<'a, T> {
    out: RowMajorMut<'a, T>,
    x: RowMajorRef<'a, T>,
}

impl<T: Real> Kernel<T> for ShortSoftmax<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        let Self { mut out, x } = self;
        let mut short = Short::new();
        for from in (0..x.nrows()).step_by(SHORT) {
            let rows = SHORT.min(x.nrows() - from);
            short.take(simd, x.subrows(from, rows));
            for row in 0..rows {
                let out = out.rb_mut().row_mut(from + row).as_slice_mut();
                let sum = short.sums[row];
                if sum.is_nan() {
                    fill_with_nan(out);
                } else {
                    store_quotients(simd, out, &short.terms.0[row], simd.splat(T::from_f64(sum)));
                }
            }
        }
    }
}

/// `outᵢ = e^(xᵢ − m) / Σ e^(xⱼ − m)` of one row, `m` the largest entry, by a division for each element.
///
/// Terms and sum as in [`log_sum_exp`]. Relative error at most `5u + (n/16 + 8)·u₆₄`, and two spacings of the subnormals.
/// −∞ among finite entries gives 0. A row with NaN or +∞, or of −∞ only, becomes NaN throughout (`∞ − ∞` and `0/0`).
///
/// # Errors
/// [`LengthMismatch`] if the slices differ in length; then `out` is untouched.
pub fn softmax<T: Real>(isa: Isa, out: &mut [T], x: &[T]) -> Result<(), LengthMismatch> {
    check_lengths(out, x)?;
    let n = x.len();
    let (out, x) = (MatMut::from_row_major_slice_mut(out, 1, n), MatRef::from_row_major_slice(x, 1, n));
    let (out, x) = (out.try_as_row_major_mut(), x.try_as_row_major());
    (T::kernels().softmax)(isa, out.expect("a slice is contiguous"), x.expect("a slice is contiguous"));
    Ok(())
}

/// [`softmax`] of each row of `x`, to the bit; rows of up to 16 elements are computed side by side.
///
/// # Panics
/// If the shapes differ, or the elements of a row are not next to each other.
pub fn softmax_rows<T: Real>(isa: Isa, out: MatMut<'_, T>, x: MatRef<'_, T>) {
    assert_eq!(out.shape(), x.shape(), "shapes of `out` and `x`");
    if x.nrows() == 0 || x.ncols() == 0 {
        return;
    }
    let out = out.try_as_row_major_mut().expect("elements of a row of `out` next to each other");
    let x = x.try_as_row_major().expect("elements of a row of `x` next to each other");
    let softmax = if x.ncols() <= CHAINS { T::kernels().short_softmax } else { T::kernels().softmax };
    softmax(isa, out, x);
}

pub(crate) fn run_softmax<T: Real>(isa: Isa, out: RowMajorMut<'_, T>, x: RowMajorRef<'_, T>) {
    isa.run(Softmax { out, x });
}

pub(crate) fn run_short_softmax<T: Real>(isa: Isa, out: RowMajorMut<'_, T>, x: RowMajorRef<'_, T>) {
    isa.run(ShortSoftmax { out, x });
}

/// A matrix whose rows are slices.
pub(crate) type RowMajorRef<'a, T> = MatRef<'a, T, usize, usize, isize, ContiguousFwd>;
/// As [`RowMajorRef`].
pub(crate) type RowMajorMut<'a, T> = MatMut<'a, T, usize, usize, isize, ContiguousFwd>;
