//! Sparse matrices: constructors that check once, products, training on a fixed pattern, and norms.

use dualprop_kernels::activation::Activation;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::optimizer::Update;
use dualprop_kernels::sparse::{self, Fault, Matrix, Pattern};
use dualprop_kernels::strided::{Input, Output};
use dualprop_kernels::vector::Real;
use faer::prelude::Reborrow;
use faer::sparse::{SparseColMatRef, SparseRowMatRef};
use faer::{Index, MatMut, MatRef};

use crate::check;
use crate::error::Error;
use crate::relax::Variant;
use crate::workspace::Workspace;

/// A sparse matrix, from any of the usual formats.
///
/// Every constructor checks its input once, by one rule: within each row (column, block row) indices ascend strictly and stay in range, so that
/// duplicates and disorder are refused with the place of the first. What is not stored is never read: NaN may stand under a mask. Stored
/// elements may be zero, NaN or infinite; [`Operator::bracket`](crate::lipschitz::Operator::bracket) finds the latter.
///
/// It is kept by rows and again by columns, so that products with `A` and with `Aᵀ` both gather and none scatters: for each stored element
/// twice its value and twice an index of 16 bits (32 where a side is longer than 65536). It is an
/// [`Operator`](crate::lipschitz::Operator): `AᵀA x` for blocks of 16 or 8 interleaved vectors costs a few times that of one.
///
/// Values come and go [row by row](Self::row), whatever format they came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparse<T> {
    pub(crate) matrix: Matrix<T>,
}

impl<T: Real> Sparse<T> {
    /// Compressed rows: row `i` has `values[k]` in column `indices[k]` for `k` in `indptr[i]..indptr[i + 1]`. Pointers and indices may be of any
    /// integer type.
    ///
    /// # Errors
    /// [`Error::Pattern`] names the first row, position and rule that is broken, [`Error::Length`] another number of values.
    pub fn from_csr<P, I>(rows: usize, cols: usize, indptr: &[P], indices: &[I], values: &[T]) -> Result<Self, Error>
    where
        P: Copy + TryInto<usize>,
        I: Copy + TryInto<usize>,
    {
        check::length("values", values.len(), indices.len())?;
        let pattern = Pattern::new(rows, cols, indptr, indices).map_err(|fault| broken("row", fault))?;
        Ok(Self { matrix: Matrix::new(pattern, values.to_vec()) })
    }

    /// Compressed columns: column `j` has `values[k]` in row `indices[k]` for `k` in `indptr[j]..indptr[j + 1]`.
    ///
    /// # Errors
    /// As [`from_csr`](Self::from_csr), with columns for rows.
    pub fn from_csc<P, I>(rows: usize, cols: usize, indptr: &[P], indices: &[I], values: &[T]) -> Result<Self, Error>
    where
        P: Copy + TryInto<usize>,
        I: Copy + TryInto<usize>,
    {
        check::length("values", values.len(), indices.len())?;
        let pattern = Pattern::new(cols, rows, indptr, indices).map_err(|fault| broken("column", fault))?;
        Ok(Self { matrix: Matrix::new(pattern, values.to_vec()).transpose() })
    }

    /// Blocks of `block.0 × block.1` in compressed block rows: block `k` of `indptr[i]..indptr[i + 1]` is at block row `i` and block column
    /// `indices[k]`, and its elements are a row-major matrix in `values`, one block behind the other. All elements of a block are stored, zeros too.
    ///
    /// # Errors
    /// [`Error::Pattern`] as for [`from_csr`](Self::from_csr), of block rows and blocks; [`Error::Length`] another number of values;
    /// [`Error::Parameter`] a shape that blocks do not tile, and blocks without elements.
    pub fn from_bsr<P, I>(
        rows: usize,
        cols: usize,
        block: (usize, usize),
        indptr: &[P],
        indices: &[I],
        values: &[T],
    ) -> Result<Self, Error>
    where
        P: Copy + TryInto<usize>,
        I: Copy + TryInto<usize>,
    {
        let (high, wide) = block;
        check::parameter("block", high.min(wide) as f64, "of at least 1 × 1", high > 0 && wide > 0)?;
        check::parameter("rows", rows as f64, "a multiple of the rows of a block", rows.is_multiple_of(high))?;
        check::parameter("cols", cols as f64, "a multiple of the columns of a block", cols.is_multiple_of(wide))?;
        check::length("values", values.len(), indices.len().saturating_mul(high).saturating_mul(wide))?;
        let blocks = Pattern::new(rows / high, cols / wide, indptr, indices).map_err(|fault| broken("block row", fault))?;
        Self::from_rows(rows, cols, |row, push| {
            for k in blocks.line(row / high) {
                let elements = &values[(k * high + row % high) * wide..][..wide];
                elements.iter().enumerate().for_each(|(j, &x)| push(blocks.index(k) * wide + j, x));
            }
        })
    }

    /// Dense values and a bit for each: element `(i, j)` is stored if bit `j mod 64` of `mask[i·⌈cols/64⌉ + ⌊j/64⌋]` is set. Values without a
    /// bit are not read.
    ///
    /// # Errors
    /// [`Error::Length`] for a mask of another number of words, [`Error::Pattern`] for a bit behind the last column.
    pub fn from_mask(values: MatRef<'_, T>, mask: &[u64]) -> Result<Self, Error> {
        let (rows, cols) = values.shape();
        let words = cols.div_ceil(64);
        check::length("mask", mask.len(), rows.saturating_mul(words))?;
        for row in 0..rows {
            let behind = |word: &u64| !cols.is_multiple_of(64) && word >> (cols % 64) != 0;
            if mask[row * words..][..words].last().is_some_and(behind) {
                let fault = Fault { line: row, position: (row + 1) * words - 1, rule: "bits behind the last column must be 0" };
                return Err(broken("row", fault));
            }
        }
        Self::from_dense(values, |row, col| mask[row * words + col / 64] >> (col % 64) & 1 == 1)
    }

    /// The elements of a matrix that `keep` holds for; the others are not read.
    ///
    /// # Errors
    /// [`Error::Pattern`] for more than 2³² rows or columns.
    pub fn from_dense(values: MatRef<'_, T>, keep: impl Fn(usize, usize) -> bool) -> Result<Self, Error> {
        let (rows, cols) = values.shape();
        Self::from_rows(rows, cols, |row, push| {
            (0..cols).filter(|&col| keep(row, col)).for_each(|col| push(col, values[(row, col)]))
        })
    }

    /// A view of faer's row-major format, uncompressed ones included.
    ///
    /// # Errors
    /// [`Error::Pattern`] as for [`from_csr`](Self::from_csr): faer itself admits disorder and duplicates.
    pub fn from_faer_rows<I: Index>(matrix: SparseRowMatRef<'_, I, T>) -> Result<Self, Error> {
        let (rows, cols) = (matrix.nrows(), matrix.ncols());
        Self::from_rows(rows, cols, |row, push| {
            let indices = matrix.symbolic().col_idx_of_row_raw(row);
            indices.iter().zip(matrix.val_of_row(row)).for_each(|(col, &x)| push(col.zx(), x));
        })
    }

    /// A view of faer's column-major format, uncompressed ones included.
    ///
    /// # Errors
    /// As [`from_faer_rows`](Self::from_faer_rows), with columns for rows.
    pub fn from_faer_cols<I: Index>(matrix: SparseColMatRef<'_, I, T>) -> Result<Self, Error> {
        match Self::from_faer_rows(matrix.transpose()) {
            Ok(sparse) => Ok(Self { matrix: sparse.matrix.transpose() }),
            Err(Error::Pattern { index, position, rule, .. }) => Err(Error::Pattern { line: "column", index, position, rule }),
            Err(error) => Err(error),
        }
    }

    fn from_rows(rows: usize, cols: usize, each: impl Fn(usize, &mut dyn FnMut(usize, T))) -> Result<Self, Error> {
        let (mut indptr, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
        for row in 0..rows {
            each(row, &mut |col, x| {
                indices.push(col);
                values.push(x);
            });
            indptr.push(indices.len());
        }
        let pattern = Pattern::new(rows, cols, &indptr, &indices).map_err(|fault| broken("row", fault))?;
        Ok(Self { matrix: Matrix::new(pattern, values) })
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        let pattern = self.matrix.rows().pattern();
        (pattern.lines(), pattern.across())
    }

    /// Stored elements.
    pub fn stored(&self) -> usize {
        self.values().len()
    }

    /// Columns and values of a row, in ascending order.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> impl ExactSizeIterator<Item = (usize, T)> + '_ {
        let pattern = self.matrix.rows().pattern();
        pattern.line(row).map(|k| (pattern.index(k), self.values()[k]))
    }

    /// All stored values, row by row.
    pub fn values(&self) -> &[T] {
        self.matrix.rows().values()
    }

    /// Changes stored values, which come row by row, and brings the copy by columns up to date.
    pub fn edit<R>(&mut self, edit: impl FnOnce(&mut [T]) -> R) -> R {
        self.matrix.edit(edit)
    }

    /// Bottom-up drive `a = below·Wᵀ + b` with this as `W` (`n_out × n_in`); operands, errors and bits as those of [`relax::drive`](crate::relax::drive)
    /// with weights that are zero where nothing is stored, but for the sign of a zero. Costs `2` flops for each stored element and sample.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Length`] name the operand that does not fit. NaN and infinity propagate.
    pub fn drive(
        &self,
        drive: MatMut<'_, T>,
        below: MatRef<'_, T>,
        bias: &[T],
        workspace: &mut Workspace<T>,
    ) -> Result<(), Error> {
        let (n_out, n_in) = self.shape();
        check::shape("below", below, (drive.nrows(), n_in))?;
        check::shape("drive", drive.rb(), (below.nrows(), n_out))?;
        check::length("bias", bias.len(), n_out)?;
        let bias = Input::repeated(bias, drive.nrows());
        self.forward_product(below, Epilogue::Drive { drive: Output::new(drive), bias }, workspace);
        Ok(())
    }

    /// Forward pass: [`drive`](Self::drive) and `mean = f(drive)`, in one.
    ///
    /// # Errors
    /// As [`drive`](Self::drive).
    pub fn forward(
        &self,
        drive: MatMut<'_, T>,
        mean: MatMut<'_, T>,
        below: MatRef<'_, T>,
        bias: &[T],
        activation: Activation,
        workspace: &mut Workspace<T>,
    ) -> Result<(), Error> {
        let (n_out, n_in) = self.shape();
        check::shape("below", below, (drive.nrows(), n_in))?;
        check::shape("drive", drive.rb(), (below.nrows(), n_out))?;
        check::shape("mean", mean.rb(), (below.nrows(), n_out))?;
        check::length("bias", bias.len(), n_out)?;
        let bias = Input::repeated(bias, drive.nrows());
        let epilogue = Epilogue::Forward { drive: Output::new(drive), bias, mean: Output::new(mean), activation };
        self.forward_product(below, epilogue, workspace);
        Ok(())
    }

    /// Feedback `out = above·W` (`batch × n_in`) from `above` (`batch × n_out`).
    ///
    /// # Errors
    /// [`Error::Shape`] names the operand that does not fit. NaN and infinity propagate.
    pub fn top_down(&self, out: MatMut<'_, T>, above: MatRef<'_, T>, workspace: &mut Workspace<T>) -> Result<(), Error> {
        let (n_out, n_in) = self.shape();
        check::shape("above", above, (out.nrows(), n_out))?;
        check::shape("out", out.rb(), (above.nrows(), n_in))?;
        self.feedback(above, Epilogue::Store { out: Output::new(out), scale: T::ONE }, workspace);
        Ok(())
    }

    /// Relaxes a layer once with these weights above it: [`relax::relax`](crate::relax::relax).
    ///
    /// # Errors
    /// As [`relax::relax`](crate::relax::relax).
    #[expect(clippy::too_many_arguments, reason = "as `relax::relax`")]
    pub fn relax(
        &self,
        mean: MatMut<'_, T>,
        diff: MatMut<'_, T>,
        drive: MatRef<'_, T>,
        above: MatRef<'_, T>,
        variant: Variant,
        activation: Activation,
        workspace: &mut Workspace<T>,
    ) -> Result<(), Error> {
        let nudge = variant.checked()?;
        let (n_above, units) = self.shape();
        check::shape("drive", drive, (above.nrows(), units))?;
        check::shape("mean", mean.rb(), drive.shape())?;
        check::shape("diff", diff.rb(), drive.shape())?;
        check::shape("above", above, (drive.nrows(), n_above))?;
        let (drive, mean, diff) = (Input::new(drive), Output::new(mean), Output::new(diff));
        self.feedback(above, Epilogue::Dyad { drive, feedback: None, mean, diff, nudge, damping: None, activation }, workspace);
        Ok(())
    }

    /// One step of an optimizer on the stored elements: [`hebbian::update`](crate::hebbian::update) on a fixed pattern. `moments` are as long as
    /// [`values`](Self::values), in their order, zero before the first step.
    ///
    /// A gradient is summed in the lanes of a cache line: error at most `γ_{B/8+5} Σ|Δ s̄|`. Costs `2·B` flops for each stored element, which does
    /// not go to memory as a gradient, and a pass over both copies of the values.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Length`] name the operand that does not fit; [`Error::Parameter`] for step 0. NaN and infinity propagate.
    pub fn update(
        &mut self,
        moments: &mut [&mut [T]],
        diff: MatRef<'_, T>,
        mean: MatRef<'_, T>,
        update: &Update,
        workspace: &mut Workspace<T>,
    ) -> Result<(), Error> {
        let (n_out, n_in) = self.shape();
        check::shape("diff", diff, (mean.nrows(), n_out))?;
        check::shape("mean", mean, (diff.nrows(), n_in))?;
        check::length("moments", moments.len(), update.optimizer.moments())?;
        for moment in moments.iter() {
            check::length("moments", moment.len(), self.stored())?;
        }
        check::parameter("step", update.step as f64, "at least 1", update.step > 0)?;
        let (isa, par) = (workspace.runtime().isa(), workspace.runtime().par());
        sparse::update(isa, par, &mut self.matrix, moments, diff, mean, *update, &mut workspace.scratch);
        Ok(())
    }

    fn forward_product(&self, below: MatRef<'_, T>, epilogue: Epilogue<'_, T>, work: &mut Workspace<T>) {
        let (isa, par) = (work.runtime().isa(), work.runtime().par());
        sparse::product(isa, par, self.matrix.rows(), below, epilogue, &mut work.scratch);
    }

    fn feedback(&self, above: MatRef<'_, T>, epilogue: Epilogue<'_, T>, work: &mut Workspace<T>) {
        let (isa, par) = (work.runtime().isa(), work.runtime().par());
        sparse::product(isa, par, self.matrix.columns(), above, epilogue, &mut work.scratch);
    }
}

fn broken(line: &'static str, Fault { line: index, position, rule }: Fault) -> Error {
    Error::Pattern { line, index, position, rule }
}
