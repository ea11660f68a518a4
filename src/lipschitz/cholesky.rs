//! Cholesky's algorithm on the product kernel: the same bits on every instruction set and number of threads.

use dualprop_kernels::cholesky::{BLOCK, COLUMNS, factor, solve};
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::pack::Bands;
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::strided::Output;
use faer::prelude::{Reborrow, ReborrowMut};

use crate::matrix::RowMajor;
use crate::runtime::Runtime;

/// Memory of factorizations.
pub(crate) struct Cholesky {
    /// `R` in the upper triangle, something else below it in the diagonal blocks. Columns behind the last are zero.
    factor: RowMajor<f64>,
    bands: Bands<f64>,
    scratch: Scratch<f64>,
}

impl Cholesky {
    pub(crate) fn new(n: usize) -> Self {
        // Rows of a whole number of pages would meet in the same sets of a cache.
        let width = n.next_multiple_of(COLUMNS) + COLUMNS;
        Self { factor: RowMajor::zeros(n, width), bands: Bands::new(), scratch: Scratch::new() }
    }

    /// Factors `τI − G = RᵀR`, where `gram` has the upper triangle of `G`. Returns whether all pivots were positive numbers.
    ///
    /// Block by block of rows: what is left of them after all rows above, in one product; the diagonal block; the rows to its right.
    pub(crate) fn runs_to_its_end(&mut self, tau: f64, gram: &RowMajor<f64>, runtime: &Runtime) -> bool {
        let n = gram.rows();
        let (isa, par) = (runtime.isa(), runtime.par());
        for i0 in (0..n).step_by(BLOCK) {
            let end = n.min(i0 + BLOCK);
            for i in i0..end {
                let row = &mut self.factor.row_mut(i)[i0..];
                row.iter_mut().zip(&gram.row(i)[i0..]).for_each(|(r, g)| *r = -g);
                row[i - i0] += tau;
            }
            let (above, rest) = self.factor.view_mut().split_at_row_mut(i0);
            let mut rows = rest.subrows_mut(0, end - i0);
            if i0 > 0 {
                let above = above.rb();
                self.bands.pack(isa, above.subcols(i0, end - i0).transpose());
                let out = Output::new(rows.rb_mut().subcols_mut(i0, n - i0));
                let lanes = Lanes::View(above.subcols(i0, n - i0));
                let epilogue = Epilogue::Accumulate { out, scale: -1.0 };
                let blocking = Blocking { mc: BLOCK, kc: 256, nc: 1, group: 1 };
                product(isa, par, Rows::Packed(&self.bands), lanes, epilogue, blocking, &mut self.scratch);
            }
            let mut block = core::array::from_fn(|i| core::array::from_fn(|j| f64::from(u8::from(i == j))));
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
    pub(crate) fn row(&self, i: usize) -> &[f64] {
        &self.factor.row(i)[i..self.factor.rows()]
    }
}
