//! What portable vectors cannot express, with the portable form beside it.

use crate::isa::Isa;
use crate::vector::Real;

#[cfg(target_arch = "x86_64")]
mod x86_64;

/// Side of the squares that [`transpose`] moves.
pub(crate) const SQUARE: usize = 8;

/// Transposes squares of 8 × 8: `to[(8q + p)·width + c] = from[c·stride + 8q + p]` for `c, p < 8`, `q < squares`.
///
/// # Safety
/// `from + c·stride` is readable for `8·squares` elements for every `c < 8`; `to + r·width` is writable for 8 elements for every
/// `r < 8·squares`; the two do not overlap.
pub(crate) unsafe fn transpose<T: Real>(isa: Isa, from: *const T, stride: isize, to: *mut T, width: usize, squares: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Isa::Avx512(_) | Isa::Avx2(_) = isa {
        // `Real` is f32 or f64, told apart by size.
        if size_of::<T>() == 4 {
            // SAFETY: both sets include AVX2; the rest is passed on.
            return unsafe { x86_64::transpose_f32(from.cast(), stride, to.cast(), width, squares) };
        }
        // SAFETY: as above.
        return unsafe { x86_64::transpose_f64(from.cast(), stride, to.cast(), width, squares) };
    }
    let _ = isa;
    for c in 0..SQUARE {
        for r in 0..SQUARE * squares {
            // SAFETY: `c < 8`, `r < 8·squares` (contract).
            let x = unsafe { *from.wrapping_offset(c as isize * stride).wrapping_add(r) };
            // SAFETY: as above.
            unsafe { *to.wrapping_add(r * width + c) = x };
        }
    }
}
