//! The triangular parts of Cholesky's algorithm by blocks of rows, `B = RᵀR` with `R` upper triangular; the rest are products.
//!
//! Every element of `R` is what is left of that of `B` after a chain of fused multiply-adds in ascending rows, over the pivot (or its root):
//! as many roundings as in the textbook's loops, and the same bits on every instruction set.

use faer::prelude::ReborrowMut;
use faer::{MatMut, Par};

use crate::isa::{Isa, Kernel};
use crate::threads;
use crate::vector::{Real, Vector};

/// Rows and columns of a diagonal block.
pub const BLOCK: usize = 64;

/// Columns that [`solve`] takes are a multiple of this.
pub const COLUMNS: usize = 32;

/// Columns of [`solve`] that a thread is woken for.
const SHARE: usize = 256;

/// A diagonal block, row by row.
pub type Block<T> = [[T; BLOCK]; BLOCK];

/// `B ← R`. Only the upper triangle of `B` decides, and below the diagonal of `R` is nothing of use. Returns whether all pivots were positive
/// and finite; if not, `B` is lost. Each element is one chain of fused multiply-adds and a division (see `roundings` in `dualprop::lipschitz` for what
/// that is off by). Costs `n³/3` flops for `n` = [`BLOCK`].
pub fn factor<T: Real>(isa: Isa, block: &mut Block<T>) -> bool {
    (T::kernels().factor)(isa, block)
}

pub(crate) fn run_factor<T: Real>(isa: Isa, block: &mut Block<T>) -> bool {
    struct Factor<'a, T>(&'a mut Block<T>);
    impl<T: Real> Kernel<T> for Factor<'_, T> {
        type Output = bool;
        #[inline(always)]
        fn run<S: Vector<T>>(self, simd: S) -> bool {
            for i in 0..BLOCK {
                let (above, rest) = self.0.split_at_mut(i);
                let (row, _) = S::as_vectors_mut(&mut rest[0]);
                for (v, x) in row.iter_mut().enumerate().skip(i / S::LANES) {
                    for above in &*above {
                        *x = simd.neg_mul_add(simd.splat(above[i]), S::as_vectors(above).0[v], *x);
                    }
                }
                let pivot = rest[0][i];
                if !(pivot > T::ZERO && pivot.is_finite()) {
                    return false;
                }
                let root = simd.splat(pivot.sqrt());
                let (row, _) = S::as_vectors_mut(&mut rest[0]);
                row.iter_mut().skip(i / S::LANES).for_each(|x| *x = simd.div(*x, root));
                rest[0][i] = pivot.sqrt();
            }
            true
        }
    }
    isa.run::<T, _>(Factor(block))
}

/// `X ← R⁻ᵀX` for a factored block and as many rows (or fewer: then the block ends in rows of the identity). Costs `n²` flops a column.
///
/// # Panics
/// If `x` has more rows than a block, rows that are not contiguous, or columns that are no multiple of [`COLUMNS`].
pub fn solve<T: Real>(isa: Isa, par: Par, factor: &Block<T>, x: MatMut<'_, T>) {
    (T::kernels().solve)(isa, par, factor, x);
}

pub(crate) fn run_solve<T: Real>(isa: Isa, par: Par, factor: &Block<T>, x: MatMut<'_, T>) {
    assert!(x.nrows() <= BLOCK && x.ncols().is_multiple_of(COLUMNS), "a block of rows of whole vectors");
    assert!(x.ncols() == 0 || x.col_stride() == 1, "the rows are contiguous");
    let tasks = match par {
        Par::Rayon(threads) => threads.get().min(x.ncols() / SHARE).max(1),
        Par::Seq => 1,
    };
    share(isa, tasks, factor, x);
}

fn share<T: Real>(isa: Isa, tasks: usize, factor: &Block<T>, x: MatMut<'_, T>) {
    if tasks <= 1 {
        isa.run::<T, _>(Solve { factor, x });
        return;
    }
    let left = tasks / 2;
    let middle = (x.ncols() * left / tasks).next_multiple_of(COLUMNS);
    let (a, b) = x.split_at_col_mut(middle);
    threads::join(|| share(isa, left, factor, a), || share(isa, tasks - left, factor, b));
}

struct Solve<'a, T> {
    factor: &'a Block<T>,
    x: MatMut<'a, T>,
}

impl<T: Real> Kernel<T> for Solve<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        // Sums and operands of a step fit the registers.
        if const { S::REGISTER_COUNT == 32 } { self.columns::<S, 8>(simd) } else { self.columns::<S, 4>(simd) }
    }
}

/// Vectors of columns that are solved together.
const V: usize = 2;

impl<T: Real> Solve<'_, T> {
    #[inline(always)]
    fn columns<S: Vector<T>, const R: usize>(mut self, simd: S) {
        let (rows, cols) = (self.x.nrows(), self.x.ncols());
        let wide = V * S::LANES;
        let mut solved = [[simd.splat(T::ZERO); V]; BLOCK];
        for col in (0..cols).step_by(wide) {
            for (i, solved) in solved.iter_mut().enumerate().take(rows) {
                if let Some(row) = self.x.rb_mut().row_mut(i).try_as_row_major_mut() {
                    solved.copy_from_slice(S::as_vectors(&row.as_slice_mut()[col..col + wide]).0);
                }
            }
            for i0 in (0..BLOCK).step_by(R) {
                let (above, rest) = solved.split_at_mut(i0);
                let mut sums = [[simd.splat(T::ZERO); V]; R];
                sums.copy_from_slice(&rest[..R]);
                for (above, factors) in above.iter().zip(self.factor) {
                    for r in 0..R {
                        let factor = simd.splat(factors[i0 + r]);
                        for v in 0..V {
                            sums[r][v] = simd.neg_mul_add(factor, above[v], sums[r][v]);
                        }
                    }
                }
                for r in 0..R {
                    for k in 0..r {
                        let factor = simd.splat(self.factor[i0 + k][i0 + r]);
                        for v in 0..V {
                            sums[r][v] = simd.neg_mul_add(factor, sums[k][v], sums[r][v]);
                        }
                    }
                    let pivot = simd.splat(self.factor[i0 + r][i0 + r]);
                    for v in 0..V {
                        sums[r][v] = simd.div(sums[r][v], pivot);
                    }
                }
                rest[..R].copy_from_slice(&sums);
            }
            for (i, solved) in solved.iter().enumerate().take(rows) {
                if let Some(row) = self.x.rb_mut().row_mut(i).try_as_row_major_mut() {
                    S::as_vectors_mut(&mut row.as_slice_mut()[col..col + wide]).0.copy_from_slice(solved);
                }
            }
        }
    }
}
