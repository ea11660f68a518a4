//! Matrices as kernels see them: a pointer, two strides, and vectors along the columns.

use core::marker::PhantomData;
use faer::{MatMut, MatRef};

use crate::arch;
use crate::vector::{Real, Vector};

/// What a product asks of an operand of its epilogue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// Rows and columns.
    pub(crate) shape: (usize, usize),
    /// Whether the columns are contiguous.
    pub(crate) is_unit: bool,
    /// Bytes from one row to the next, which may be anything where there is one row.
    pub(crate) row: isize,
}

/// A matrix that is only read. Strides are in elements; a row stride of 0 repeats one row.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a, T> {
    ptr: *const T,
    row_stride: isize,
    col_stride: isize,
    rows: usize,
    cols: usize,
    data: PhantomData<&'a T>,
}

// SAFETY: an `Input` gives read access only, as `&[T]` does.
unsafe impl<T: Sync> Send for Input<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Input<'_, T> {}

impl<'a, T: Real> Input<'a, T> {
    /// The elements of `view`.
    pub fn new(view: MatRef<'a, T>) -> Self {
        Self {
            ptr: view.as_ptr(),
            row_stride: view.row_stride(),
            col_stride: view.col_stride(),
            rows: view.nrows(),
            cols: view.ncols(),
            data: PhantomData,
        }
    }

    /// `row` under itself, `rows` times: a bias for every sample of a batch.
    pub fn repeated(row: &'a [T], rows: usize) -> Self {
        Self { ptr: row.as_ptr(), row_stride: 0, col_stride: 1, rows, cols: row.len(), data: PhantomData }
    }

    /// Rows become columns.
    pub fn transpose(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, rows: self.cols, cols: self.rows, ..self }
    }

    /// Rows and columns.
    pub fn shape(self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Whether the columns are contiguous.
    pub fn is_unit(self) -> bool {
        self.col_stride == 1
    }

    pub(crate) fn form(self) -> Form {
        Form { shape: self.shape(), is_unit: self.is_unit(), row: self.row_stride.wrapping_mul(size_of::<T>() as isize) }
    }

    /// [`Target::prefetch`].
    #[inline(always)]
    pub(crate) fn prefetch<const SECOND: bool>(self, row: usize, col: usize) {
        prefetch::<T, SECOND>(self.ptr.wrapping_offset(row as isize * self.row_stride).wrapping_add(col));
    }

    /// Elements `col..col + live` of row `row`; the other lanes are zero.
    ///
    /// # Safety
    /// `row < rows`, `1 ≤ live ≤ LANES`, `col + live ≤ cols`; nobody writes these elements meanwhile; `UNIT` only if
    /// [`is_unit`](Self::is_unit).
    #[inline(always)]
    pub unsafe fn load<S: Vector<T>, const UNIT: bool>(self, simd: S, row: usize, col: usize, live: usize) -> S::V {
        let stride = if UNIT { 1 } else { self.col_stride };
        let at = self.ptr.wrapping_offset(row as isize * self.row_stride).wrapping_offset(col as isize * stride);
        if UNIT {
            // SAFETY: `live` contiguous elements of the view (contract).
            return unsafe { simd.load_live(at, live) };
        }
        // SAFETY: `live` elements of the view (contract).
        unsafe { gather(simd, at, stride, live) }
    }
}

/// A matrix that a product writes.
///
/// Made from a `MatMut` and, like it, not to be copied: nothing else reaches its elements for `'a`.
#[derive(Debug)]
pub struct Output<'a, T>(pub(crate) Target<'a, T>);

impl<'a, T: Real> Output<'a, T> {
    /// The elements of `view`.
    pub fn new(view: MatMut<'a, T>) -> Self {
        Self(Target::new(view))
    }

    /// Rows become columns.
    pub fn transpose(self) -> Self {
        Self(self.0.transpose())
    }
}

/// A matrix that several calls of one kernel write, each element by one of them.
///
/// Comes from an [`Output`], so nothing but copies of it reaches its elements for `'a`; who may touch which element when is the contract of
/// [`load`](Self::load) and [`store`](Self::store).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a, T> {
    ptr: *mut T,
    row_stride: isize,
    col_stride: isize,
    rows: usize,
    cols: usize,
    data: PhantomData<&'a mut T>,
}

// SAFETY: elements are only touched under the contracts of `load` and `store`, which exclude races.
unsafe impl<T: Send> Send for Target<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Target<'_, T> {}

impl<'a, T: Real> Target<'a, T> {
    /// The elements of `view`.
    pub(crate) fn new(view: MatMut<'a, T>) -> Self {
        Self {
            row_stride: view.row_stride(),
            col_stride: view.col_stride(),
            rows: view.nrows(),
            cols: view.ncols(),
            ptr: view.as_ptr_mut(),
            data: PhantomData,
        }
    }

    /// Rows become columns.
    pub(crate) fn transpose(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, rows: self.cols, cols: self.rows, ..self }
    }

    /// The same without the first rows.
    ///
    /// # Panics
    /// If there are fewer rows.
    #[inline(always)]
    pub(crate) fn skip_rows(self, rows: usize) -> Self {
        assert!(rows <= self.rows);
        Self { ptr: self.ptr.wrapping_offset(rows as isize * self.row_stride), rows: self.rows - rows, ..self }
    }

    /// Rows and columns.
    pub(crate) fn shape(self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    pub(crate) fn form(self) -> Form {
        Form { shape: self.shape(), is_unit: self.col_stride == 1, row: self.row_stride.wrapping_mul(size_of::<T>() as isize) }
    }

    /// Elements `col..col + live` of row `row`; the other lanes are zero.
    ///
    /// # Safety
    /// `row < rows`, `1 ≤ live ≤ LANES`, `col + live ≤ cols`; no other thread touches these elements meanwhile; `UNIT` only if
    /// columns are contiguous.
    #[inline(always)]
    pub(crate) unsafe fn load<S: Vector<T>, const UNIT: bool>(self, simd: S, row: usize, col: usize, live: usize) -> S::V {
        let at = self.at::<UNIT>(row, col);
        if UNIT {
            // SAFETY: `live` contiguous elements of the view (contract).
            return unsafe { simd.load_live(at, live) };
        }
        // SAFETY: `live` elements of the view (contract).
        unsafe { gather(simd, at, self.col_stride, live) }
    }

    /// Asks for the cache line of element `(row, col)`, which need not exist, in the first-level cache or the second-level one. Columns are
    /// contiguous.
    #[inline(always)]
    pub(crate) fn prefetch<const SECOND: bool>(self, row: usize, col: usize) {
        prefetch::<T, SECOND>(self.at::<true>(row, col));
    }

    #[inline(always)]
    fn at<const UNIT: bool>(self, row: usize, col: usize) -> *mut T {
        let stride = if UNIT { 1 } else { self.col_stride };
        self.ptr.wrapping_offset(row as isize * self.row_stride).wrapping_offset(col as isize * stride)
    }

    /// Overwrites elements `col..col + live` of row `row` with the first lanes.
    ///
    /// # Safety
    /// As for [`load`](Self::load).
    #[inline(always)]
    pub(crate) unsafe fn store<S: Vector<T>, const UNIT: bool>(self, simd: S, row: usize, col: usize, live: usize, value: S::V) {
        let at = self.at::<UNIT>(row, col);
        if UNIT {
            // SAFETY: `live` contiguous elements of the view (contract).
            return unsafe { simd.store_live(at, live, value) };
        }
        let mut lanes = [T::ZERO; MAX_LANES];
        // SAFETY: `live ≤ LANES ≤ MAX_LANES` elements of `lanes` are writable.
        unsafe { simd.store_live(lanes.as_mut_ptr(), live, value) };
        for (l, &x) in lanes.iter().enumerate().take(live) {
            // SAFETY: `l < live`, so column `col + l` is in the view (contract).
            unsafe { at.wrapping_offset(l as isize * self.col_stride).write(x) };
        }
    }
}

#[inline(always)]
fn prefetch<T, const SECOND: bool>(at: *const T) {
    if SECOND { arch::prefetch_second(at) } else { arch::prefetch(at) }
}

/// Lanes of the widest vector: `f32` under AVX-512.
pub(crate) const MAX_LANES: usize = 16;

/// # Safety
/// `1 ≤ live ≤ LANES`, and the `live` elements at `at`, `stride` apart, are readable.
#[inline(always)]
unsafe fn gather<T: Real, S: Vector<T>>(simd: S, at: *const T, stride: isize, live: usize) -> S::V {
    let mut lanes = [T::ZERO; MAX_LANES];
    for (l, x) in lanes.iter_mut().enumerate().take(live) {
        // SAFETY: `l < live` (contract).
        *x = unsafe { *at.wrapping_offset(l as isize * stride) };
    }
    // SAFETY: `1 ≤ live ≤ LANES ≤ MAX_LANES` elements of `lanes`.
    unsafe { simd.load_live(lanes.as_ptr(), live) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faer::Mat;

    #[test]
    fn the_other_rows_stay() {
        let mut matrix = Mat::<f32>::zeros(5, 3);
        let target = Target::new(matrix.as_mut());
        assert_eq!(target.skip_rows(2).shape(), (3, 3));
        assert_eq!(target.transpose().skip_rows(2).shape(), (1, 5));
    }
}
