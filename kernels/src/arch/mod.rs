//! What portable vectors cannot express, with the portable form beside it.

use crate::isa::{Isa, Kernel};
use crate::vector::{Real, Vector};
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

/// LANES/2 elements from each of LANES columns, turned: vector `r` of the result has element `r` of every column `c`, which begins at `column(c)`.
/// `None` where there is nothing faster than element by element.
///
/// # Safety
/// For every `c < LANES` these elements are readable.
#[inline(always)]
pub(crate) unsafe fn turn<T: Real, S: Vector<T>>(simd: S, column: impl Fn(usize) -> *const T) -> Option<[S::V; 8]> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the contract.
    return unsafe { x86_64::turn(simd, column) };
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (simd, column);
        None
    }
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
    let side = square::<T>(isa);
    isa.run::<T, _>(Squares { from, stride, to, width, side, deep: side * squares });
}

/// The arguments of [`transpose`], and its contract.
struct Squares<T> {
    from: *const T,
    stride: isize,
    to: *mut T,
    width: usize,
    side: usize,
    deep: usize,
}

impl<T: Real> Kernel<T> for Squares<T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        let Squares { from, stride, to, width, side, deep } = self;
        let step = (S::LANES / 2).max(1);
        for r in (0..deep).step_by(step) {
            for c in (0..side).step_by(S::LANES) {
                let column = |lane: usize| from.wrapping_offset((c + lane) as isize * stride).wrapping_add(r);
                // SAFETY: `c + LANES ≤ side`, `r + LANES/2 ≤ deep`: both are multiples (contract of `transpose`).
                if let Some(rows) = unsafe { turn(simd, column) } {
                    for (i, &row) in rows.iter().enumerate().take(step) {
                        // SAFETY: as above.
                        unsafe { to.wrapping_add((r + i) * width + c).cast::<S::V>().write_unaligned(row) };
                    }
                    continue;
                }
                for i in 0..step {
                    for lane in 0..S::LANES {
                        // SAFETY: as above.
                        let x = unsafe { *column(lane).wrapping_add(i) };
                        // SAFETY: as above.
                        unsafe { *to.wrapping_add((r + i) * width + c + lane) = x };
                    }
                }
            }
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
