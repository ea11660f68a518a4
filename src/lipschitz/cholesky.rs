//! Cholesky's algorithm on the product kernel: the same bits on every instruction set and number of threads.

use dualprop_kernels::cholesky::{BLOCK, COLUMNS, factor, solve};
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::pack::Bands;
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::strided::Output;
use dualprop_kernels::vector::Real;
use faer::MatMut;
use faer::prelude::{Reborrow, ReborrowMut};

use crate::matrix::RowMajor;
use crate::runtime::Runtime;

/// Depth of a chain of products.
pub(crate) const CHAIN: usize = 128;

/// A symmetric matrix, and memory to factor it.
pub(crate) struct Cholesky<T> {
    /// Upper triangle of `B`, then `R`; something else below it in the diagonal blocks. Columns behind the last are zero.
    factor: RowMajor<T>,
    bands: Bands<T>,
    scratch: Scratch<T>,
}

impl<T: Real> Cholesky<T> {
    pub(crate) fn new(n: usize) -> Self {
        // Rows of a whole number of pages would meet in the same sets of a cache.
        let width = n.next_multiple_of(COLUMNS) + COLUMNS;
        Self { factor: RowMajor::zeros(n, width), bands: Bands::new(), scratch: Scratch::new() }
    }

    /// `B`, to be set: only the upper triangle decides.
    pub(crate) fn matrix(&mut self) -> MatMut<'_, T> {
        let n = self.factor.rows();
        self.factor.view_mut().subcols_mut(0, n)
    }

    /// Factors `τI − G = RᵀR`, where `gram` has the upper triangle of `G`. Returns whether all pivots were positive numbers.
    pub(crate) fn runs_to_its_end(&mut self, tau: T, gram: &RowMajor<T>, runtime: &Runtime) -> bool {
        for i in 0..gram.rows() {
            let row = &mut self.factor.row_mut(i)[i..];
            row.iter_mut().zip(&gram.row(i)[i..]).for_each(|(r, &g)| *r = -g);
            row[0] += tau;
        }
        self.factor(runtime)
    }

    /// Factors `B = RᵀR`. Returns whether all pivots were positive numbers.
    ///
    /// Block by block of rows: what is left of them after all rows above, in products of [`CHAIN`] rows; the diagonal block; the rows to its
    /// right. See [`roundings`].
    pub(crate) fn factor(&mut self, runtime: &Runtime) -> bool {
        let n = self.factor.rows();
        let (isa, par) = (runtime.isa(), runtime.par());
        for i0 in (0..n).step_by(BLOCK) {
            let end = n.min(i0 + BLOCK);
            let (above, rest) = self.factor.view_mut().split_at_row_mut(i0);
            let mut rows = rest.subrows_mut(0, end - i0);
            for p0 in (0..i0).step_by(CHAIN) {
                let above = above.rb().subrows(p0, CHAIN.min(i0 - p0));
                self.bands.pack(isa, above.subcols(i0, end - i0).transpose());
                let out = Output::new(rows.rb_mut().subcols_mut(i0, n - i0));
                let lanes = Lanes::View(above.subcols(i0, n - i0));
                let epilogue = Epilogue::Accumulate { out, scale: -T::ONE };
                let blocking = Blocking { mc: BLOCK, kc: CHAIN, nc: 1, group: 1 };
                product(isa, par, Rows::Packed(&self.bands), lanes, epilogue, blocking, &mut self.scratch);
            }
            let mut block = core::array::from_fn(|i| core::array::from_fn(|j| if i == j { T::ONE } else { T::ZERO }));
            for i in i0..end {
                for j in i..end {
                    block[i - i0][j - i0] = rows[(i - i0, j)];
                }
            }
            if !factor(isa, &mut block) {
                return false;
            }
            for i in i0..end {
                for j in i..end {
                    rows[(i - i0, j)] = block[i - i0][j - i0];
                }
            }
            if end < n {
                solve(isa, par, &block, rows.subcols_mut(end, n.next_multiple_of(COLUMNS) - end));
            }
        }
        true
    }

    /// Row `i` of `R` from the diagonal on, once a factorization came to its end.
    pub(crate) fn row(&self, i: usize) -> &[T] {
        &self.factor.row(i)[i..self.factor.rows()]
    }
}

/// `k` for which `RᵀR = B + ΔB` with `|ΔB| ≤ γ_k |R|ᵀ|R|`, for matrices of this size.
///
/// An element of `B` that has gone through `p` subtractions and a division becomes one of `R`; roundings that it shares with a term of its sum
/// cancel (Higham 2002, 8.1). So a term of a chain of products has those of its chain and of the subtractions up to it, at most one for each chain
/// and each row of a block, and the last has the division or the root.
pub(crate) fn roundings(n: usize) -> usize {
    CHAIN.max(BLOCK) + n.div_ceil(CHAIN) + 3
}
