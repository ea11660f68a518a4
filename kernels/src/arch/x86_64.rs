//! AVX2 and AVX-512: shuffles for transposition, which pulp lacks.
//!
//! Packing 1024 × 1024 weights for the forward product takes a quarter of the time of the compiler's own code for the same loops.

use bytemuck::cast;
use core::any::Any;
use core::arch::x86_64::*;
use pulp::Simd;
use pulp::x86::{V3, V4};

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

/// # Safety
/// As `arch::transpose`, with squares of 16.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose_f32x16(from: *const f32, stride: isize, to: *mut f32, width: usize, squares: usize) {
    for q in 0..squares {
        let mut r = [_mm512_setzero_ps(); 16];
        for (c, r) in r.iter_mut().enumerate() {
            // SAFETY: 16 elements of column `c`, square `q` (contract).
            *r = unsafe { _mm512_loadu_ps(from.wrapping_offset(c as isize * stride).wrapping_add(16 * q)) };
        }
        // Rows 4h..4h+4 become, in each 128-bit lane, the transposed 4 × 4 of those rows.
        let mut t = [_mm512_setzero_ps(); 16];
        for h in 0..4 {
            let a = _mm512_unpacklo_ps(r[4 * h], r[4 * h + 1]);
            let b = _mm512_unpackhi_ps(r[4 * h], r[4 * h + 1]);
            let c = _mm512_unpacklo_ps(r[4 * h + 2], r[4 * h + 3]);
            let d = _mm512_unpackhi_ps(r[4 * h + 2], r[4 * h + 3]);
            t[4 * h] = _mm512_shuffle_ps::<0x44>(a, c);
            t[4 * h + 1] = _mm512_shuffle_ps::<0xEE>(a, c);
            t[4 * h + 2] = _mm512_shuffle_ps::<0x44>(b, d);
            t[4 * h + 3] = _mm512_shuffle_ps::<0xEE>(b, d);
        }
        // Lane l of t[4h + i] holds column 4l + i of rows 4h..4h+4: transpose the 4 × 4 of lanes.
        for i in 0..4 {
            let a = _mm512_shuffle_f32x4::<0x44>(t[i], t[4 + i]);
            let b = _mm512_shuffle_f32x4::<0xEE>(t[i], t[4 + i]);
            let c = _mm512_shuffle_f32x4::<0x44>(t[8 + i], t[12 + i]);
            let d = _mm512_shuffle_f32x4::<0xEE>(t[8 + i], t[12 + i]);
            r[i] = _mm512_shuffle_f32x4::<0x88>(a, c);
            r[4 + i] = _mm512_shuffle_f32x4::<0xDD>(a, c);
            r[8 + i] = _mm512_shuffle_f32x4::<0x88>(b, d);
            r[12 + i] = _mm512_shuffle_f32x4::<0xDD>(b, d);
        }
        for (p, r) in r.iter().enumerate() {
            // SAFETY: 16 elements of row `16q + p` (contract).
            unsafe { _mm512_storeu_ps(to.wrapping_add((16 * q + p) * width), *r) };
        }
    }
}

/// # Safety
/// As `arch::transpose`, with squares of 8.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn transpose_f32x8(from: *const f32, stride: isize, to: *mut f32, width: usize, squares: usize) {
    for q in 0..squares {
        let mut r = [_mm256_setzero_ps(); 8];
        for (c, r) in r.iter_mut().enumerate() {
            // SAFETY: 8 elements of column `c`, square `q` (contract).
            *r = unsafe { _mm256_loadu_ps(from.wrapping_offset(c as isize * stride).wrapping_add(8 * q)) };
        }
        let mut t = [_mm256_setzero_ps(); 8];
        for h in 0..4 {
            t[2 * h] = _mm256_unpacklo_ps(r[2 * h], r[2 * h + 1]);
            t[2 * h + 1] = _mm256_unpackhi_ps(r[2 * h], r[2 * h + 1]);
        }
        for h in 0..2 {
            let (a, b, c, d) = (t[4 * h], t[4 * h + 1], t[4 * h + 2], t[4 * h + 3]);
            r[4 * h] = _mm256_shuffle_ps::<0x44>(a, c);
            r[4 * h + 1] = _mm256_shuffle_ps::<0xEE>(a, c);
            r[4 * h + 2] = _mm256_shuffle_ps::<0x44>(b, d);
            r[4 * h + 3] = _mm256_shuffle_ps::<0xEE>(b, d);
        }
        for h in 0..4 {
            t[h] = _mm256_permute2f128_ps::<0x20>(r[h], r[h + 4]);
            t[h + 4] = _mm256_permute2f128_ps::<0x31>(r[h], r[h + 4]);
        }
        for (p, t) in t.iter().enumerate() {
            // SAFETY: 8 elements of row `8q + p` (contract).
            unsafe { _mm256_storeu_ps(to.wrapping_add((8 * q + p) * width), *t) };
        }
    }
}

/// # Safety
/// As `arch::transpose`, with squares of 8.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn transpose_f64x4(from: *const f64, stride: isize, to: *mut f64, width: usize, squares: usize) {
    for q in 0..2 * squares {
        for half in 0..2 {
            let mut r = [_mm256_setzero_pd(); 4];
            for (c, r) in r.iter_mut().enumerate() {
                // SAFETY: 4 elements of column `4·half + c < 8` from `4q ≤ 8·squares − 4` (contract).
                *r = unsafe { _mm256_loadu_pd(from.wrapping_offset((4 * half + c) as isize * stride).wrapping_add(4 * q)) };
            }
            let a = _mm256_unpacklo_pd(r[0], r[1]);
            let b = _mm256_unpackhi_pd(r[0], r[1]);
            let c = _mm256_unpacklo_pd(r[2], r[3]);
            let d = _mm256_unpackhi_pd(r[2], r[3]);
            let t = [
                _mm256_permute2f128_pd::<0x20>(a, c),
                _mm256_permute2f128_pd::<0x20>(b, d),
                _mm256_permute2f128_pd::<0x31>(a, c),
                _mm256_permute2f128_pd::<0x31>(b, d),
            ];
            for (p, t) in t.iter().enumerate() {
                // SAFETY: 4 elements of row `4q + p < 8·squares` from column `4·half` (contract).
                unsafe { _mm256_storeu_pd(to.wrapping_add((4 * q + p) * width + 4 * half), *t) };
            }
        }
    }
}
