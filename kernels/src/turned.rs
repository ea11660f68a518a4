//! Few rows against a right operand whose columns are contiguous along the depth, as the weights of a layer are for its drive.
//!
//! ```text
//! for vector of columns
//!   for half a vector of depth
//!     turn a piece of LANES columns            in registers: what packing would write and read again
//!     for step of depth, for row
//!       sums += row · turned vector
//! ```

use crate::arch;
use crate::isa::{Isa, Kernel};
use crate::tile::Operand;
use crate::vector::{Real, Vector};

/// `sums[r][c] = Σ_p rows[r][p]·columns[c][p]` for `r < high`, `c < cols`: the chains of [`tile`](crate::tile), to the bit.
pub(crate) struct Turned<T> {
    pub(crate) rows: Operand<*const T>,
    pub(crate) high: usize,
    /// The step of depth is 1; the row is from one column to the next.
    pub(crate) columns: Operand<*const T>,
    pub(crate) cols: usize,
    pub(crate) sums: Operand<*mut T>,
    pub(crate) depth: usize,
}

/// # Safety
/// For `1 ≤ high`:
/// 1. `rows.at + r·row + p·step` is readable for all `r < high`, `p < depth`;
/// 2. `columns.at + c·row + p` is readable for all `c < cols`, `p < depth`;
/// 3. `sums.at + r·row + c` is writable, by nobody else, for all `r < high` and `c` below `cols` rounded up to whole vectors.
pub(crate) unsafe fn run<T: Real>(isa: Isa, turned: &Turned<T>) {
    isa.run::<T, _>(turned);
}

impl<T: Real> Kernel<T> for &Turned<T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        for col in (0..self.cols).step_by(S::LANES) {
            for row in (0..self.high).step_by(ABREAST) {
                match self.high - row {
                    1 => self.sums::<S, 1>(simd, row, col),
                    2 => self.sums::<S, 2>(simd, row, col),
                    3 | 4 => self.sums::<S, 4>(simd, row, col),
                    _ => self.sums::<S, ABREAST>(simd, row, col),
                }
            }
        }
    }
}

/// Rows that meet a turned piece at once: as many registers, beside those of the piece.
const ABREAST: usize = 8;

impl<T: Real> Turned<T> {
    /// A vector of columns from `col` and up to `R` rows from `row`, of which the last takes the place of those that there are not.
    #[inline(always)]
    fn sums<S: Vector<T>, const R: usize>(&self, simd: S, row: usize, col: usize) {
        let half = (S::LANES / 2).max(1);
        let (high, wide) = (R.min(self.high - row), S::LANES.min(self.cols - col));
        let at: [*const T; R] =
            core::array::from_fn(|r| self.rows.at.wrapping_offset((row + r.min(high - 1)) as isize * self.rows.row));
        let column = |c: usize, p: usize| self.columns.at.wrapping_offset((col + c) as isize * self.columns.row).wrapping_add(p);
        let mut acc = [simd.splat(T::ZERO); R];
        let mut p = 0;
        while p < self.depth {
            let deep = half.min(self.depth - p);
            let vectors = if deep < half {
                None
            } else if wide == S::LANES {
                // SAFETY: contract 2 of `run`, `col + LANES ≤ cols`, `p + LANES/2 ≤ depth`.
                unsafe { arch::turn(simd, |c| column(c, p)) }
            } else {
                // SAFETY: as above, with the last column again for those that there are not.
                unsafe { arch::turn(simd, |c| column(c.min(wide - 1), p)) }
            };
            let vectors = vectors.unwrap_or_else(|| {
                let mut vectors = [simd.splat(T::ZERO); 8];
                for (i, vector) in vectors.iter_mut().enumerate().take(deep) {
                    let lanes: &mut [T] = bytemuck::cast_slice_mut(core::slice::from_mut(vector));
                    for (c, lane) in lanes.iter_mut().enumerate().take(wide) {
                        // SAFETY: contract 2 of `run`, `col + c < cols`, `p + i < depth`.
                        *lane = unsafe { *column(c, p + i) };
                    }
                }
                vectors
            });
            for (i, &vector) in vectors.iter().enumerate().take(deep) {
                for r in 0..R {
                    // SAFETY: contract 1 of `run`, `p + i < depth`.
                    let a = simd.splat(unsafe { *at[r].wrapping_offset((p + i) as isize * self.rows.step) });
                    acc[r] = simd.mul_add(a, vector, acc[r]);
                }
            }
            p += deep;
        }
        for r in 0..high {
            let sum = self.sums.at.wrapping_offset((row + r) as isize * self.sums.row).wrapping_add(col);
            // SAFETY: contract 3 of `run`, `row + r < high`.
            unsafe { sum.cast::<S::V>().write_unaligned(acc[r]) };
        }
    }
}
