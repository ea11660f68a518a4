//! Products with some rows of a matrix, or some rows and columns, and inner products of a few rows: what Jacobians of networks are made of.
//!
//! Slopes that are 0 take rows out of a product, other ones for each sample. What is left of a sample is a few rows (those of the outputs) times the
//! rows of `W` that a list names:
//!
//! ```text
//! for group of rows o               as many as the registers hold sums of
//!   for block of columns j          stays in the cache
//!     for sample
//!       for p in its list           one row of W, vectors of it at once; z[p][o] goes to all lanes
//!         sums[o][j] += z[p][o]·w[p][j]
//! ```
//!
//! Every sum is one chain of fused multiply-adds in the order of the list: the groups, blocks and the instruction set change no bit.

use faer::{MatMut, MatRef};
use pulp::Simd;

use crate::gram::{fold, lanes};
use crate::isa::{Isa, Kernel};
use crate::vector::{Real, Vector};

/// A product with some rows of a matrix: `out[o][j] ← start[o][j] + Σ_p z[p][o]·w[p][j]`.
#[derive(Debug)]
pub struct Selected<'a, T> {
    /// The rows `p`, ascending.
    pub rows: &'a [u32],
    /// `z[p][o]`, the factors of each of these rows behind one another.
    pub factors: &'a [T],
    /// What the sums begin with, or 0.
    pub start: Option<MatRef<'a, T>>,
    /// Ascending columns of which alone the sums are wanted: others may keep what they had.
    pub wanted: Option<&'a [u32]>,
    /// The sums: as many columns as the matrix has, or the first ones alone.
    pub out: MatMut<'a, T>,
}

/// Several products with some rows each of one `matrix` `W`; if it is lower triangular, nothing right of its diagonal blocks is read.
///
/// A row that is left out because its factors are 0 would change no sum of finite numbers but for the sign of a zero. Error at most
/// `γ_k·(|start| + Σ_p |z[p][o]·w[p][j]|)` for `k` rows. Costs `2mkn` flops for `m × n` sums, and reads the rows once for each 12 rows of the
/// result (6 with AVX2); half of both for lower triangles. Allocates nothing.
///
/// # Panics
/// If shapes do not fit or differ in their rows, rows of a matrix are not contiguous, or a list is not ascending or leaves the matrix.
pub fn selected<T: Real>(isa: Isa, matrix: MatRef<'_, T>, lower: bool, products: &mut [Selected<'_, T>]) {
    (T::kernels().selected)(isa, matrix, lower, products);
}

pub(crate) fn run_selected<T: Real>(isa: Isa, matrix: MatRef<'_, T>, lower: bool, products: &mut [Selected<'_, T>]) {
    let Some(first) = products.first() else { return };
    let m = first.out.nrows();
    let ascend =
        |list: &[u32], end: usize| list.is_sorted_by(|a, b| a < b) && list.last().is_none_or(|&last| (last as usize) < end);
    for Selected { rows, factors, start, wanted, out } in &*products {
        let n = out.ncols();
        assert!(out.nrows() == m && n <= matrix.ncols(), "all have the same number of rows, and no more columns than the matrix");
        assert_eq!(factors.len(), m * rows.len(), "a factor for each row of the result and each row of the matrix");
        assert!(start.is_none_or(|start| start.shape() == (m, n)), "the start has the shape of the result");
        assert!(ascend(rows, matrix.nrows()), "the rows ascend within the matrix");
        assert!(wanted.is_none_or(|wanted| ascend(wanted, n)), "the columns ascend within the result");
        let strides = [Some(matrix.col_stride()), start.map(|start| start.col_stride()), Some(out.col_stride())];
        assert!(n <= 1 || strides.into_iter().flatten().all(|stride| stride == 1), "the rows are contiguous");
    }
    if m > 0 {
        isa.run::<T, _>(Work { matrix, lower, m, products });
    }
}

struct Work<'a, 'b, T> {
    matrix: MatRef<'b, T>,
    lower: bool,
    m: usize,
    products: &'b mut [Selected<'a, T>],
}

/// Rows or columns at once for which there are registers enough, with what each of their steps needs beside the sums.
const fn together<S: Simd>() -> usize {
    match (S::REGISTER_COUNT, S::IS_SCALAR) {
        (32, _) => 12,
        (_, false) => 6,
        (_, true) => 4,
    }
}

impl<T: Real> Kernel<T> for Work<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(mut self, simd: S) {
        // Few rows have more vectors, so that chains enough run at a time.
        let most = const { together::<S>() };
        let groups = self.m.div_ceil(most);
        for group in 0..groups {
            let (from, to) = (self.m * group / groups, self.m * (group + 1) / groups);
            let count = to - from;
            if const { together::<S>() == 12 } {
                match count {
                    1 => self.columns::<S, 1, 8>(simd, from),
                    2 => self.columns::<S, 2, 8>(simd, from),
                    3 => self.columns::<S, 3, 8>(simd, from),
                    4 => self.columns::<S, 4, 4>(simd, from),
                    5 => self.columns::<S, 5, 4>(simd, from),
                    6 => self.columns::<S, 6, 4>(simd, from),
                    7 => self.columns::<S, 7, 2>(simd, from),
                    8 => self.columns::<S, 8, 2>(simd, from),
                    9 => self.columns::<S, 9, 2>(simd, from),
                    10 => self.columns::<S, 10, 2>(simd, from),
                    11 => self.columns::<S, 11, 2>(simd, from),
                    _ => self.columns::<S, 12, 2>(simd, from),
                }
            } else {
                match count {
                    1 => self.columns::<S, 1, 4>(simd, from),
                    2 => self.columns::<S, 2, 4>(simd, from),
                    3 => self.columns::<S, 3, 2>(simd, from),
                    4 => self.columns::<S, 4, 2>(simd, from),
                    5 => self.columns::<S, 5, 2>(simd, from),
                    _ => self.columns::<S, 6, 2>(simd, from),
                }
            }
        }
    }
}

impl<T: Real> Work<'_, '_, T> {
    /// Rows `from..from + R` of the results, `V` vectors of columns at a time.
    #[inline(always)]
    fn columns<S: Vector<T>, const R: usize, const V: usize>(&mut self, simd: S, from: usize) {
        assert!(from + R <= self.m);
        let width = V * S::LANES;
        for col in (0..self.matrix.ncols()).step_by(width) {
            for product in &mut *self.products {
                let n = product.out.ncols();
                let is_wanted = |wanted: &[u32]| {
                    let next = wanted.partition_point(|&j| (j as usize) < col);
                    next < wanted.len() && (wanted[next] as usize) < col + width
                };
                if col >= n || !product.wanted.is_none_or(is_wanted) {
                    continue;
                }
                let skip = if self.lower { product.rows.partition_point(|&p| (p as usize) < col) } else { 0 };
                if col + width <= n {
                    // SAFETY: `from + R ≤ m`, `col + V·LANES ≤ n`, and `skip` is at most the number of rows.
                    unsafe { tile::<T, S, R, V>(simd, self.matrix, product, [from, col], S::LANES, skip) };
                } else {
                    for col in (col..n).step_by(S::LANES) {
                        // SAFETY: as above for one vector.
                        unsafe { tile::<T, S, R, 1>(simd, self.matrix, product, [from, col], S::LANES.min(n - col), skip) };
                    }
                }
            }
        }
    }
}

/// Elements `col..col + (V − 1)·LANES + live` of rows `from..from + R`, without the first `skip` rows of the matrix.
///
/// # Safety
/// `run_selected` has checked shapes, strides and lists of the product; `from + R ≤ m`, `col + (V − 1)·LANES + live ≤ n`, `1 ≤ live ≤ LANES`,
/// and `skip` is at most the number of rows.
#[inline(always)]
unsafe fn tile<T: Real, S: Vector<T>, const R: usize, const V: usize>(
    simd: S,
    matrix: MatRef<'_, T>,
    product: &mut Selected<'_, T>,
    [from, col]: [usize; 2],
    live: usize,
    skip: usize,
) {
    let mut sums = [[simd.splat(T::ZERO); V]; R];
    if let Some(start) = product.start {
        for r in 0..R {
            let row = start.as_ptr().wrapping_offset((from + r) as isize * start.row_stride()).wrapping_add(col);
            // SAFETY: row `from + r < m` of the start, which has the shape of the result, from column `col` on (contract).
            sums[r] = unsafe { load(simd, row, live) };
        }
    }
    let m = product.out.nrows();
    let mut factors = product.factors.as_ptr().wrapping_add(skip * m + from);
    for &p in &product.rows[skip..] {
        let row = matrix.as_ptr().wrapping_offset(p as isize * matrix.row_stride()).wrapping_add(col);
        // SAFETY: row `p` of the matrix, which has at least `n` columns, from column `col` on (contract).
        let b: [S::V; V] = unsafe { load(simd, row, live) };
        for r in 0..R {
            // SAFETY: there are `m` factors for each row, and `from + r < m`.
            let a = simd.splat(unsafe { *factors.wrapping_add(r) });
            for v in 0..V {
                sums[r][v] = simd.mul_add(a, b[v], sums[r][v]);
            }
        }
        factors = factors.wrapping_add(m);
    }
    let (out, stride) = (product.out.as_ptr_mut(), product.out.row_stride());
    for r in 0..R {
        let row = out.wrapping_offset((from + r) as isize * stride).wrapping_add(col);
        for v in 0..V {
            let live = if v + 1 == V { live } else { S::LANES };
            // SAFETY: row `from + r < m` of the result from column `col` on (contract).
            unsafe { simd.store_live(row.wrapping_add(v * S::LANES), live, sums[r][v]) };
        }
    }
}

/// `V` vectors from `at` on; the last one has `live` elements, and then zeros.
///
/// # Safety
/// `1 ≤ live ≤ LANES`, and `(V − 1)·LANES + live` elements at `at` are readable.
#[inline(always)]
unsafe fn load<T: Real, S: Vector<T>, const V: usize>(simd: S, at: *const T, live: usize) -> [S::V; V] {
    let mut vectors = [simd.splat(T::ZERO); V];
    for v in 0..V {
        // SAFETY: whole vectors but the last one, which has `live` elements (contract).
        vectors[v] = unsafe { simd.load_live(at.wrapping_add(v * S::LANES), if v + 1 == V { live } else { S::LANES }) };
    }
    vectors
}

/// Rows of the result are a multiple of this number in [`crossing`].
pub const OUTPUTS: usize = 16;

/// `out[j][o] ← Σ_p z[p][o]·w[p][j]` for the rows `p` and columns `j` of the matrix that two lists name, in f64: for few of both.
///
/// `z` and `out` have the `outputs` numbers of each row, and of each column, behind one another, in the order of the lists. Each sum is one chain
/// of fused multiply-adds in the order of the rows: error at most `γ_k·Σ_p |z[p][o]·w[p][j]|` for `k` rows. Costs `2mkn` flops for `k` rows,
/// `n` columns and `m` outputs, and reads elements of the matrix one by one, once for every 16 outputs (8 with AVX2). Allocates nothing.
///
/// # Panics
/// If `outputs` is not a multiple of [`OUTPUTS`], lengths do not fit, or a list leaves the matrix.
pub fn crossing<T: Real>(
    isa: Isa,
    matrix: MatRef<'_, T>,
    rows: &[u32],
    columns: &[u32],
    z: &[f64],
    outputs: usize,
    out: &mut [f64],
) {
    (T::kernels().crossing)(isa, &mut Crossing { matrix, rows, columns, z, outputs, out });
}

/// The arguments of [`crossing`].
pub(crate) struct Crossing<'a, T> {
    matrix: MatRef<'a, T>,
    rows: &'a [u32],
    columns: &'a [u32],
    z: &'a [f64],
    outputs: usize,
    out: &'a mut [f64],
}

pub(crate) fn run_crossing<T: Real>(isa: Isa, crossing: &mut Crossing<'_, T>) {
    let within = |list: &[u32], end: usize| list.iter().all(|&at| (at as usize) < end);
    assert!(crossing.outputs.is_multiple_of(OUTPUTS), "outputs come in multiples of {OUTPUTS}");
    assert_eq!(crossing.z.len(), crossing.rows.len() * crossing.outputs, "a number for each row and output");
    assert_eq!(crossing.out.len(), crossing.columns.len() * crossing.outputs, "a number for each column and output");
    assert!(within(crossing.rows, crossing.matrix.nrows()), "the rows are in the matrix");
    assert!(within(crossing.columns, crossing.matrix.ncols()), "the columns are in the matrix");
    isa.run::<f64, _>(crossing);
}

impl<T: Real> Kernel<f64> for &mut Crossing<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<f64>>(self, simd: S) {
        // Two vectors for each column, two of `z` and an element.
        let most = const { together::<S>() };
        let groups = self.columns.len().div_ceil(most);
        for group in 0..groups {
            let (from, to) = (self.columns.len() * group / groups, self.columns.len() * (group + 1) / groups);
            match to - from {
                1 => self.columns::<S, 1>(simd, from),
                2 => self.columns::<S, 2>(simd, from),
                3 => self.columns::<S, 3>(simd, from),
                4 => self.columns::<S, 4>(simd, from),
                5 => self.columns::<S, 5>(simd, from),
                6 => self.columns::<S, 6>(simd, from),
                _ if const { together::<S>() < 12 } => unreachable!("groups are smaller"),
                7 => self.columns::<S, 7>(simd, from),
                8 => self.columns::<S, 8>(simd, from),
                9 => self.columns::<S, 9>(simd, from),
                10 => self.columns::<S, 10>(simd, from),
                11 => self.columns::<S, 11>(simd, from),
                _ => self.columns::<S, 12>(simd, from),
            }
        }
    }
}

impl<T: Real> Crossing<'_, T> {
    /// The sums of columns `from..from + C` of the list.
    #[inline(always)]
    fn columns<S: Vector<f64>, const C: usize>(&mut self, simd: S, from: usize) {
        let (row_stride, col_stride) = (self.matrix.row_stride(), self.matrix.col_stride());
        let columns: [*const T; C] =
            core::array::from_fn(|c| self.matrix.as_ptr().wrapping_offset(self.columns[from + c] as isize * col_stride));
        for output in (0..self.outputs).step_by(2 * S::LANES) {
            let mut sums = [[simd.splat(0.0); 2]; C];
            for (&p, z) in self.rows.iter().zip(self.z.chunks_exact(self.outputs)) {
                let (z, _) = S::as_vectors(&z[output..output + 2 * S::LANES]);
                let z = [z[0], z[1]];
                for c in 0..C {
                    // SAFETY: an element of the matrix: `run_crossing` has checked the row and the column.
                    let element = unsafe { *columns[c].wrapping_offset(p as isize * row_stride) };
                    let element = simd.splat(element.to_f64());
                    for v in 0..2 {
                        sums[c][v] = simd.mul_add(element, z[v], sums[c][v]);
                    }
                }
            }
            for c in 0..C {
                let at = (from + c) * self.outputs + output;
                S::as_vectors_mut(&mut self.out[at..at + 2 * S::LANES]).0.copy_from_slice(&sums[c]);
            }
        }
    }
}

/// `out[i][j] ← Σ_p x_ip·x_jp` for all rows of `x`, in the arithmetic of `T`: `XXᵀ`.
///
/// Column `p` belongs to lane `p mod L` of a cache line (`L` is 16 for f32 and 8 for f64); each lane is a chain of fused multiply-adds in
/// ascending `p`, and lanes are added by halves. Error at most `γ_{⌈n/L⌉+4}·Σ_p |x_ip·x_jp|`. Costs about `m²n` flops for `m × n` elements. Allocates
/// nothing.
///
/// # Panics
/// If `out` is not square with a row for each of `x`, or rows of `x` are not contiguous.
pub fn inner<T: Real>(isa: Isa, x: MatRef<'_, T>, out: MatMut<'_, f64>) {
    (T::kernels().inner)(isa, x, out);
}

pub(crate) fn run_inner<T: Real>(isa: Isa, x: MatRef<'_, T>, out: MatMut<'_, f64>) {
    assert_eq!(out.shape(), (x.nrows(), x.nrows()), "a product for each pair of rows");
    assert!(x.ncols() <= 1 || x.col_stride() == 1, "the rows are contiguous");
    isa.run::<T, _>(Inner { x, out });
}

struct Inner<'a, T> {
    x: MatRef<'a, T>,
    out: MatMut<'a, f64>,
}

impl<T: Real> Kernel<T> for Inner<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(mut self, simd: S) {
        // Sums, rows and a vector fit the registers.
        match const { lanes::<T>() / S::LANES } {
            1 => self.blocks::<S, 5, 1>(simd),
            2 => self.blocks::<S, 2, 2>(simd),
            4 => self.blocks::<S, 2, 4>(simd),
            8 => self.blocks::<S, 1, 8>(simd),
            _ => self.blocks::<S, 1, 16>(simd),
        }
    }
}

impl<T: Real> Inner<'_, T> {
    #[inline(always)]
    fn blocks<S: Vector<T>, const B: usize, const V: usize>(&mut self, simd: S) {
        let m = self.x.nrows();
        for i0 in (0..m).step_by(B) {
            for j0 in (i0..m).step_by(B) {
                let sums = self.block::<S, B, V>(simd, i0, j0);
                for i in i0..m.min(i0 + B) {
                    for j in j0.max(i)..m.min(j0 + B) {
                        let product = fold(simd, sums[i - i0][j - j0]).to_f64();
                        self.out[(i, j)] = product;
                        self.out[(j, i)] = product;
                    }
                }
            }
        }
    }

    /// The lanes of the products of rows from `i0` on with those from `j0` on; rows behind the last are the last one again.
    #[inline(always)]
    fn block<S: Vector<T>, const B: usize, const V: usize>(&self, simd: S, i0: usize, j0: usize) -> [[[S::V; V]; B]; B] {
        let (m, n) = self.x.shape();
        let row = |i: usize| self.x.as_ptr().wrapping_offset(i.min(m - 1) as isize * self.x.row_stride());
        let (left, right): ([*const T; B], [*const T; B]) =
            (core::array::from_fn(|r| row(i0 + r)), core::array::from_fn(|r| row(j0 + r)));
        let mut sums = [[[simd.splat(T::ZERO); V]; B]; B];
        let whole = n - n % (V * S::LANES);
        for col in (0..whole).step_by(V * S::LANES) {
            for v in 0..V {
                // SAFETY: whole vectors of rows of `n ≥ whole` elements.
                unsafe { multiply(simd, &mut sums, v, left, right, col + v * S::LANES, S::LANES) };
            }
        }
        for (v, col) in (whole..n).step_by(S::LANES).enumerate() {
            // SAFETY: `live ≥ 1` elements of rows of `n` from `col` on.
            unsafe { multiply(simd, &mut sums, v, left, right, col, S::LANES.min(n - col)) };
        }
        if whole < n {
            // What a wider vector does in the lanes behind the last column: a sum of -0 becomes 0.
            let zero = simd.splat(T::ZERO);
            for v in (n - whole).div_ceil(S::LANES)..V {
                for sums in sums.as_flattened_mut() {
                    sums[v] = simd.mul_add(zero, zero, sums[v]);
                }
            }
        }
        sums
    }
}

/// Adds products of elements `col..col + live` of rows to vector `v` of their sums.
///
/// # Safety
/// These elements of all rows are readable, `1 ≤ live ≤ LANES`.
#[inline(always)]
unsafe fn multiply<T: Real, S: Vector<T>, const B: usize, const V: usize>(
    simd: S,
    sums: &mut [[[S::V; V]; B]; B],
    v: usize,
    left: [*const T; B],
    right: [*const T; B],
    col: usize,
    live: usize,
) {
    let mut a = [simd.splat(T::ZERO); B];
    for r in 0..B {
        // SAFETY: the contract.
        a[r] = unsafe { simd.load_live(left[r].wrapping_add(col), live) };
    }
    for s in 0..B {
        // SAFETY: the contract.
        let b = unsafe { simd.load_live(right[s].wrapping_add(col), live) };
        for r in 0..B {
            sums[r][s][v] = simd.mul_add(a[r], b, sums[r][s][v]);
        }
    }
}
