//! Row-major storage.

use faer::{Mat, MatMut, MatRef};

use dualprop_kernels::vector::Real;

/// A row-major matrix whose rows start at cache lines where faer sees fit.
#[derive(Clone, Debug)]
pub(crate) struct RowMajor<T>(Mat<T>);

impl<T: Real> RowMajor<T> {
    pub(crate) fn zeros(rows: usize, cols: usize) -> Self {
        Self(Mat::from_fn(cols, rows, |_, _| T::ZERO))
    }

    pub(crate) fn view(&self) -> MatRef<'_, T> {
        self.0.as_ref().transpose()
    }

    pub(crate) fn view_mut(&mut self) -> MatMut<'_, T> {
        self.0.as_mut().transpose_mut()
    }

    pub(crate) fn row(&self, row: usize) -> &[T] {
        self.0.col_as_slice(row)
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [T] {
        self.0.col_as_slice_mut(row)
    }

    pub(crate) fn rows(&self) -> usize {
        self.0.ncols()
    }

    pub(crate) fn cols(&self) -> usize {
        self.0.nrows()
    }

    pub(crate) fn fill(&mut self, value: T) {
        for row in 0..self.rows() {
            self.row_mut(row).fill(value);
        }
    }
}
