//! What portable vectors cannot express, with the portable form beside it.

use crate::isa::Isa;
use crate::vector::Real;
use pulp::Simd;

#[cfg(target_arch = "x86_64")]
mod x86_64;

/// Asks for the cache line at an address, which need not be valid, in the first-level cache.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    x86_64::prefetch(at.cast());
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The same in the second-level cache.
#[inline(always)]
pub(crate) fn prefetch_second<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    x86_64::prefetch_second(at.cast());
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The entry of `table` whose number is in the last four bits of each lane.
#[inline(always)]
pub(crate) fn pick<S: Simd>(simd: S, mut index: S::f32s, table: &[f32; 16]) -> S::f32s {
    #[cfg(target_arch = "x86_64")]
    if let Some(picked) = x86_64::pick(simd, index, table) {
        return picked;
    }
    let _ = simd;
    for lane in bytemuck::cast_slice_mut::<_, u32>(core::slice::from_mut(&mut index)) {
        *lane = table[(*lane % 16) as usize].to_bits();
    }
    index
}

/// Side of the squares that [`transpose`] moves: a vector of the instruction set, but no less than 8.
pub(crate) fn square<T: Real>(isa: Isa) -> usize {
    isa.lanes::<T>().max(8)
}

/// Transposes `n × n` squares, `n` being [`square`]: `to[r·width + c] = from[c·stride + r]` for `c < n`, `r < n·squares`.
///
/// # Safety
/// `from + c·stride` is readable for `n·squares` elements for every `c < n`; `to + r·width` is writable for `n` elements for every
/// `r < n·squares`; the two do not overlap.
pub(crate) unsafe fn transpose<T: Real>(isa: Isa, from: *const T, stride: isize, to: *mut T, width: usize, squares: usize) {
    // `Real` is f32 or f64, told apart by size.
    #[cfg(target_arch = "x86_64")]
    match (isa, size_of::<T>()) {
        // SAFETY: the set is AVX-512, whose square is 16 for f32; the rest is passed on.
        (Isa::Avx512(_), 4) => return unsafe { x86_64::transpose_f32x16(from.cast(), stride, to.cast(), width, squares) },
        // SAFETY: the set is AVX2, whose square is 8 for f32; the rest is passed on.
        (Isa::Avx2(_), 4) => return unsafe { x86_64::transpose_f32x8(from.cast(), stride, to.cast(), width, squares) },
        // SAFETY: both sets include AVX2, and the square is 8 for f64; the rest is passed on.
        (Isa::Avx512(_) | Isa::Avx2(_), _) => unsafe {
            return x86_64::transpose_f64x4(from.cast(), stride, to.cast(), width, squares);
        },
        _ => {}
    }
    let n = square::<T>(isa);
    for c in 0..n {
        for r in 0..n * squares {
            // SAFETY: `c < n`, `r < n·squares` (contract).
            let x = unsafe { *from.wrapping_offset(c as isize * stride).wrapping_add(r) };
            // SAFETY: as above.
            unsafe { *to.wrapping_add(r * width + c) = x };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every set, the portable loops too: products reach them on NEON only.
    fn squares_are_transposed<T: Real>() {
        const SQUARES: usize = 3;
        for isa in Isa::available() {
            let n = square::<T>(isa);
            let (rows, stride, width) = (n * SQUARES, n * SQUARES + 5, n + 3);
            let from: Vec<T> = (0..n * stride).map(|i| T::from_f64(i as f64)).collect();
            let mut to = vec![T::from_f64(-1.0); rows * width];
            // SAFETY: `n` columns of `stride ≥ rows` elements, and `rows` rows of `width ≥ n`.
            unsafe { transpose(isa, from.as_ptr(), stride as isize, to.as_mut_ptr(), width, SQUARES) };
            for (i, x) in to.into_iter().enumerate() {
                let (r, c) = (i / width, i % width);
                let wanted = if c < n { (c * stride + r) as f64 } else { -1.0 };
                assert_eq!(x.to_f64(), wanted, "({r}, {c}) on {isa}, {}", T::NAME);
            }
        }
    }

    #[test]
    fn squares_are_transposed_in_both_types() {
        squares_are_transposed::<f32>();
        squares_are_transposed::<f64>();
    }
}
