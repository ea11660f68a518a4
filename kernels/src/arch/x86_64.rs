//! AVX2 and AVX-512: shuffles for transposition, which pulp lacks.
//!
//! Packing 1024 × 1024 weights for the forward product takes a quarter of the time of the compiler's own code for the same loops; for few samples turned
//! pieces go to the sums as they are, which takes half the time of packing.

use bytemuck::cast;
use core::any::Any;
use core::arch::x86_64::*;
use pulp::Simd;
use pulp::x86::{V3, V4};

use crate::vector::{Real, Vector};

#[inline(always)]
pub(super) fn prefetch(at: *const i8) {
    // SAFETY: a hint: it reads nothing and never faults; SSE belongs to x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
}

#[inline(always)]
pub(super) fn prefetch_second(at: *const i8) {
    // SAFETY: as above.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at) };
}

/// `arch::pick` by permutations, where there are any.
#[inline(always)]
pub(super) fn pick<S: Simd>(simd: S, index: S::f32s, table: &[f32; 16]) -> Option<S::f32s> {
    let simd: &dyn Any = &simd;
    if let Some(simd) = simd.downcast_ref::<V4>() {
        let picked = simd.avx512f._mm512_permutexvar_ps(cast(index), cast(*table));
        return Some(cast(picked));
    }
    let simd = simd.downcast_ref::<V3>()?;
    let index: __m256i = cast(index);
    let [low, high]: [__m256; 2] = cast(*table);
    let low = simd.avx2._mm256_permutevar8x32_ps(low, index);
    let high = simd.avx2._mm256_permutevar8x32_ps(high, index);
    // The fourth bit decides; a blend looks at the sign.
    let upper: __m256 = cast(simd.avx2._mm256_slli_epi32::<28>(index));
    Some(cast(simd.avx._mm256_blendv_ps(low, high, upper)))
}

/// `arch::turn` by half vectors from memory and shuffles, where there are any.
///
/// # Safety
/// As `arch::turn`.
#[inline(always)]
pub(super) unsafe fn turn<T: Real, S: Vector<T>>(simd: S, column: impl Fn(usize) -> *const T) -> Option<[S::V; 8]> {
    let set: &dyn Any = &simd;
    let mut rows = [simd.splat(T::ZERO); 8];
    // `Real` is f32 or f64, told apart by size.
    if let Some(&set) = set.downcast_ref::<V4>() {
        if size_of::<T>() == 4 {
            // SAFETY: vectors of 16 (contract).
            rows = cast(unsafe { turn_f32x16(set, column) });
        } else {
            // SAFETY: vectors of 8 (contract).
            rows[..4].copy_from_slice(&cast::<_, [S::V; 4]>(unsafe { turn_f64x8(set, column) }));
        }
        return Some(rows);
    }
    let &set = set.downcast_ref::<V3>()?;
    if size_of::<T>() == 4 {
        // SAFETY: vectors of 8 (contract).
        rows[..4].copy_from_slice(&cast::<_, [S::V; 4]>(unsafe { turn_f32x8(set, column) }));
    } else {
        // SAFETY: vectors of 4 (contract).
        rows[..2].copy_from_slice(&cast::<_, [S::V; 2]>(unsafe { turn_f64x4(set, column) }));
    }
    Some(rows)
}

/// Half a vector from `low` and half a one from `high`.
///
/// # Safety
/// Both are readable.
#[inline(always)]
unsafe fn halves_512<T>(simd: V4, low: *const T, high: *const T) -> __m512 {
    // SAFETY: contract.
    let low = unsafe { low.cast::<__m256>().read_unaligned() };
    // SAFETY: as above.
    let high = unsafe { high.cast::<__m256>().read_unaligned() };
    simd.avx512dq._mm512_insertf32x8::<1>(simd.avx512f._mm512_castps256_ps512(low), high)
}

/// Half a vector from `low` and half a one from `high`.
///
/// # Safety
/// Both are readable.
#[inline(always)]
unsafe fn halves_256<T>(simd: V3, low: *const T, high: *const T) -> __m256 {
    // SAFETY: contract.
    let low = unsafe { low.cast::<__m128>().read_unaligned() };
    // SAFETY: as above.
    let high = unsafe { high.cast::<__m128>().read_unaligned() };
    simd.avx._mm256_insertf128_ps::<1>(simd.avx._mm256_castps128_ps256(low), high)
}

/// # Safety
/// As `arch::turn`.
#[inline(always)]
unsafe fn turn_f32x16<T>(simd: V4, column: impl Fn(usize) -> *const T) -> [__m512; 8] {
    let set = simd.avx512f;
    // In lanes of 128 bits: four elements of columns `c` twice, and of columns `c + 4` twice. Then, lane by lane, four columns of one element.
    let mut turned = [[set._mm512_setzero_ps(); 4]; 2];
    for (h, turned) in turned.iter_mut().enumerate() {
        let c = 8 * h;
        // SAFETY: columns below 16, 8 elements of each (contract).
        let r0 = unsafe { halves_512(simd, column(c), column(c + 4)) };
        // SAFETY: as above.
        let r1 = unsafe { halves_512(simd, column(c + 1), column(c + 5)) };
        // SAFETY: as above.
        let r2 = unsafe { halves_512(simd, column(c + 2), column(c + 6)) };
        // SAFETY: as above.
        let r3 = unsafe { halves_512(simd, column(c + 3), column(c + 7)) };
        let (a, b) = (set._mm512_unpacklo_ps(r0, r1), set._mm512_unpackhi_ps(r0, r1));
        let (c, d) = (set._mm512_unpacklo_ps(r2, r3), set._mm512_unpackhi_ps(r2, r3));
        turned[0] = set._mm512_shuffle_ps::<0x44>(a, c);
        turned[1] = set._mm512_shuffle_ps::<0xEE>(a, c);
        turned[2] = set._mm512_shuffle_ps::<0x44>(b, d);
        turned[3] = set._mm512_shuffle_ps::<0xEE>(b, d);
    }
    // Even lanes have elements 0 to 3, odd ones 4 to 7.
    let [low, high] = turned;
    let mut rows = [set._mm512_setzero_ps(); 8];
    for i in 0..4 {
        rows[i] = set._mm512_shuffle_f32x4::<0x88>(low[i], high[i]);
        rows[4 + i] = set._mm512_shuffle_f32x4::<0xDD>(low[i], high[i]);
    }
    rows
}

/// # Safety
/// As `arch::turn`.
#[inline(always)]
unsafe fn turn_f64x8<T>(simd: V4, column: impl Fn(usize) -> *const T) -> [__m512d; 4] {
    let set = simd.avx512f;
    // As above, with two elements in a lane.
    let mut turned = [[set._mm512_setzero_pd(); 2]; 2];
    for (h, turned) in turned.iter_mut().enumerate() {
        let c = 4 * h;
        // SAFETY: columns below 8, 4 elements of each (contract).
        let r0 = set._mm512_castps_pd(unsafe { halves_512(simd, column(c), column(c + 2)) });
        // SAFETY: as above.
        let r1 = set._mm512_castps_pd(unsafe { halves_512(simd, column(c + 1), column(c + 3)) });
        *turned = [set._mm512_unpacklo_pd(r0, r1), set._mm512_unpackhi_pd(r0, r1)];
    }
    let [low, high] = turned;
    [
        set._mm512_shuffle_f64x2::<0x88>(low[0], high[0]),
        set._mm512_shuffle_f64x2::<0x88>(low[1], high[1]),
        set._mm512_shuffle_f64x2::<0xDD>(low[0], high[0]),
        set._mm512_shuffle_f64x2::<0xDD>(low[1], high[1]),
    ]
}

/// # Safety
/// As `arch::turn`.
#[inline(always)]
unsafe fn turn_f32x8<T>(simd: V3, column: impl Fn(usize) -> *const T) -> [__m256; 4] {
    let set = simd.avx;
    // SAFETY: columns below 8, 4 elements of each (contract).
    let r0 = unsafe { halves_256(simd, column(0), column(4)) };
    // SAFETY: as above.
    let r1 = unsafe { halves_256(simd, column(1), column(5)) };
    // SAFETY: as above.
    let r2 = unsafe { halves_256(simd, column(2), column(6)) };
    // SAFETY: as above.
    let r3 = unsafe { halves_256(simd, column(3), column(7)) };
    let (a, b) = (set._mm256_unpacklo_ps(r0, r1), set._mm256_unpackhi_ps(r0, r1));
    let (c, d) = (set._mm256_unpacklo_ps(r2, r3), set._mm256_unpackhi_ps(r2, r3));
    [
        set._mm256_shuffle_ps::<0x44>(a, c),
        set._mm256_shuffle_ps::<0xEE>(a, c),
        set._mm256_shuffle_ps::<0x44>(b, d),
        set._mm256_shuffle_ps::<0xEE>(b, d),
    ]
}

/// # Safety
/// As `arch::turn`.
#[inline(always)]
unsafe fn turn_f64x4<T>(simd: V3, column: impl Fn(usize) -> *const T) -> [__m256d; 2] {
    let set = simd.avx;
    // SAFETY: columns below 4, 2 elements of each (contract).
    let r0 = set._mm256_castps_pd(unsafe { halves_256(simd, column(0), column(2)) });
    // SAFETY: as above.
    let r1 = set._mm256_castps_pd(unsafe { halves_256(simd, column(1), column(3)) });
    [set._mm256_unpacklo_pd(r0, r1), set._mm256_unpackhi_pd(r0, r1)]
}
