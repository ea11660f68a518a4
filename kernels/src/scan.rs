//! What one pass over the elements of a matrix tells about its norms.

use faer::MatRef;

use crate::gram::widen;
use crate::isa::{Isa, Kernel};
use crate::product::Scratch;
use crate::vector::{Real, Vector};

/// Sizes of a matrix `A` of finite elements: sums over `a_ij·2^−exponent`, the largest of all rows or columns, in f64.
///
/// All sums are of terms that are not negative, so each has a relative error of at most `γ_{m+n}`; what underflows is below it, as the
/// largest scaled element is at least 2⁻⁴⁰⁰ in size, its square thus 2²⁷⁴ times the smallest number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scan {
    /// Rows and columns.
    pub shape: (usize, usize),
    /// `max |a_ij|`, exactly and not scaled; 0 if there are no elements.
    pub largest: f64,
    /// Of the scale: 0 but for f64 elements whose squares might overflow or underflow.
    pub exponent: i32,
    /// `max_i Σ_j |a_ij|`: `‖A‖_∞`.
    pub row_sum: f64,
    /// `max_j Σ_i |a_ij|`: `‖A‖₁`.
    pub col_sum: f64,
    /// `max_i Σ_j a_ij²`.
    pub row_square: f64,
    /// `max_j Σ_i a_ij²`.
    pub col_square: f64,
    /// `Σ a_ij²`: `‖A‖_F²`.
    pub square: f64,
}

/// An element that is infinite or NaN: the first, row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite {
    /// Its row.
    pub row: usize,
    /// Its column.
    pub col: usize,
}

impl Scan {
    /// A number that is not above `‖A‖₂`: the largest norm of a row or column, less all rounding.
    pub fn lower(&self) -> f64 {
        let lower = self.unscaled(self.row_square.max(self.col_square).sqrt() * (1.0 - self.slack()));
        // Not above the largest number, even if the norm is; and not rounded up where it is subnormal.
        self.largest.max(lower.min(f64::MAX).next_down())
    }

    /// A number that is not below `‖A‖_F`.
    pub fn frobenius(&self) -> f64 {
        self.above(self.square.sqrt())
    }

    /// A number that is not below `√(‖A‖₁‖A‖_∞)`.
    pub fn holder(&self) -> f64 {
        // Roots first: the product may overflow. They are two roundings more, for which the slack has room.
        self.above(self.row_sum.sqrt() * self.col_sum.sqrt())
    }

    /// More than the relative error of a sum and four roundings after it: `γ_k ≤ 2ku` for `ku ≤ ½`, `k = m + n + 8`.
    fn slack(&self) -> f64 {
        (self.shape.0 + self.shape.1 + 8) as f64 * f64::EPSILON
    }

    fn above(&self, norm: f64) -> f64 {
        if self.largest == 0.0 { 0.0 } else { self.unscaled(norm * (1.0 + self.slack())).next_up() }
    }

    fn unscaled(&self, x: f64) -> f64 {
        x * power_of_two(self.exponent)
    }
}

/// `2^n` for `|n| ≤ 1000`.
fn power_of_two(n: i32) -> f64 {
    f64::from_bits(((1023 + n) as u64) << 52)
}

/// Scans `A`, of any strides; contiguous rows or columns are fastest.
///
/// The order of the sums follows memory: for a column-major matrix it is that of the transposed one. It depends on nothing else. Costs one
/// read of the elements (two if f64 elements have to be scaled), and memory for two sums a column (row) in `scratch`.
///
/// # Errors
/// [`NotFinite`] with the position of the first infinity or NaN.
pub fn scan<T: Real>(isa: Isa, a: MatRef<'_, T>, scratch: &mut Scratch<f64>) -> Result<Scan, NotFinite> {
    (T::kernels().scan)(isa, a, scratch)
}

pub(crate) fn run<T: Real>(isa: Isa, a: MatRef<'_, T>, scratch: &mut Scratch<f64>) -> Result<Scan, NotFinite> {
    let along_columns = a.col_stride().unsigned_abs() > a.row_stride().unsigned_abs();
    let lines = if along_columns { a.transpose() } else { a };
    let mut sizes = pass(isa, lines, 0, scratch);
    if !sizes.square.is_finite() || !(sizes.largest == 0.0 || (MOST.recip()..=MOST).contains(&sizes.largest)) {
        for row in 0..a.nrows() {
            if let Some(col) = a.row(row).iter().position(|x| !x.is_finite()) {
                return Err(NotFinite { row, col });
            }
        }
        // The power of two of the largest element, such that it and its inverse are normal.
        let exponent = ((sizes.largest.to_bits() >> 52) as i32 - 1023).clamp(-1000, 1000);
        sizes = pass(isa, lines, exponent, scratch);
    }
    if along_columns {
        sizes = Scan {
            shape: a.shape(),
            row_sum: sizes.col_sum,
            col_sum: sizes.row_sum,
            row_square: sizes.col_square,
            col_square: sizes.row_square,
            ..sizes
        };
    }
    Ok(sizes)
}

/// 2⁴⁰⁰: squares of sizes up to it, and up to 2²²³ of them, do not overflow.
const MOST: f64 = f64::from_bits((1023 + 400) << 52);

fn pass<T: Real>(isa: Isa, a: MatRef<'_, T>, exponent: i32, scratch: &mut Scratch<f64>) -> Scan {
    let n = a.ncols().next_multiple_of(LANES);
    scratch.0.reserve(2 * n);
    let (sums, squares) = scratch.0.as_mut_slice()[..2 * n].split_at_mut(n);
    sums.fill(0.0);
    squares.fill(0.0);
    isa.run::<f64, _>(Pass { a, exponent, sums, squares })
}

/// Virtual lanes of the sums of a row: column `j` belongs to lane `j mod 8`, and lanes are added up by halves.
const LANES: usize = 8;

/// Rows that share a load of the sums of columns.
const GROUP: usize = 4;

struct Pass<'a, T> {
    a: MatRef<'a, T>,
    exponent: i32,
    /// Of columns.
    sums: &'a mut [f64],
    squares: &'a mut [f64],
}

/// Lanes of the sums of a row.
#[derive(Clone, Copy)]
struct Lines<V, const K: usize> {
    sum: [V; K],
    square: [V; K],
}

impl<T: Real> Kernel<f64> for Pass<'_, T> {
    type Output = Scan;

    #[inline(always)]
    fn run<S: Vector<f64>>(self, simd: S) -> Scan {
        let is_unit = self.a.ncols() <= 1 || self.a.col_stride() == 1;
        // Vectors of a line of lanes.
        match const { LANES / S::LANES } {
            1 if is_unit => self.rows::<S, 1, true>(simd),
            1 => self.rows::<S, 1, false>(simd),
            2 if is_unit => self.rows::<S, 2, true>(simd),
            2 => self.rows::<S, 2, false>(simd),
            4 if is_unit => self.rows::<S, 4, true>(simd),
            4 => self.rows::<S, 4, false>(simd),
            _ if is_unit => self.rows::<S, 8, true>(simd),
            _ => self.rows::<S, 8, false>(simd),
        }
    }
}

impl<T: Real> Pass<'_, T> {
    #[inline(always)]
    fn rows<S: Vector<f64>, const K: usize, const UNIT: bool>(mut self, simd: S) -> Scan {
        let (m, n) = self.a.shape();
        let mut largest = simd.splat(0.0);
        let (mut row_sum, mut row_square, mut square) = (0.0, 0.0, 0.0);
        for row in (0..m).step_by(GROUP) {
            let mut lines = [Lines { sum: [simd.splat(0.0); K], square: [simd.splat(0.0); K] }; GROUP];
            if row + GROUP <= m {
                self.group::<S, K, GROUP, UNIT>(simd, row, &mut lines, &mut largest);
            } else {
                for r in row..m {
                    self.group::<S, K, 1, UNIT>(simd, r, &mut lines[r - row..], &mut largest);
                }
            }
            for line in &lines[..GROUP.min(m - row)] {
                let (of_row, of_squares) = (fold::<S, K>(&line.sum), fold::<S, K>(&line.square));
                row_sum = f64::max(row_sum, of_row);
                row_square = f64::max(row_square, of_squares);
                square += of_squares;
            }
        }
        let top = |numbers: &[f64]| numbers.iter().fold(0.0, |top, &x| f64::max(top, x));
        let mut lanes = [0.0; LANES];
        S::as_vectors_mut(&mut lanes).0[0] = largest;
        Scan {
            shape: (m, n),
            largest: top(&lanes),
            exponent: self.exponent,
            row_sum,
            col_sum: top(&self.sums[..n]),
            row_square,
            col_square: top(&self.squares[..n]),
            square,
        }
    }

    /// `R` rows from `row`.
    #[inline(always)]
    fn group<S: Vector<f64>, const K: usize, const R: usize, const UNIT: bool>(
        &mut self,
        simd: S,
        row: usize,
        lines: &mut [Lines<S::V, K>],
        largest: &mut S::V,
    ) {
        let n = self.a.ncols();
        let scale = simd.splat(power_of_two(-self.exponent));
        // One for each row: a chain of comparisons would be the longest.
        let mut tops = [*largest; R];
        let (mut sum, mut square) = ([[simd.splat(0.0); K]; R], [[simd.splat(0.0); K]; R]);
        for r in 0..R {
            (sum[r], square[r]) = (lines[r].sum, lines[r].square);
        }
        let (row_stride, stride) = (self.a.row_stride(), if UNIT { 1 } else { self.a.col_stride() });
        let first = self.a.as_ptr().wrapping_offset(row as isize * row_stride);
        let (col_sums, _) = S::as_vectors_mut(self.sums);
        let (col_squares, _) = S::as_vectors_mut(self.squares);
        for col in (0..n).step_by(LANES) {
            for k in 0..K {
                let at = col + k * S::LANES;
                if at >= n {
                    break; // zeros change neither a sum nor a square
                }
                let live = S::LANES.min(n - at);
                let (mut col_sum, mut col_square) = (col_sums[at / S::LANES], col_squares[at / S::LANES]);
                for r in 0..R {
                    let from = first.wrapping_offset(r as isize * row_stride + at as isize * stride);
                    let x = if UNIT {
                        // SAFETY: `live` elements of row `row + r` from column `at`, contiguous; `1 ≤ live ≤ LANES`.
                        unsafe { widen::<T, S>(simd, from, live) }
                    } else {
                        let mut lanes = [0.0; LANES];
                        for l in 0..live {
                            // SAFETY: `l < live`, so column `at + l` of row `row + r`.
                            lanes[l] = unsafe { *from.wrapping_offset(l as isize * stride) }.to_f64();
                        }
                        S::as_vectors(&lanes).0[0]
                    };
                    let size = simd.abs(x);
                    tops[r] = simd.select(simd.lt(tops[r], size), size, tops[r]);
                    let size = simd.mul(size, scale);
                    sum[r][k] = simd.add(sum[r][k], size);
                    square[r][k] = simd.mul_add(size, size, square[r][k]);
                    col_sum = simd.add(col_sum, size);
                    col_square = simd.mul_add(size, size, col_square);
                }
                (col_sums[at / S::LANES], col_squares[at / S::LANES]) = (col_sum, col_square);
            }
        }
        for r in 0..R {
            (lines[r].sum, lines[r].square) = (sum[r], square[r]);
        }
        *largest = tops.into_iter().fold(*largest, |top, of_row| simd.select(simd.lt(top, of_row), of_row, top));
    }
}

/// Adds up the lanes by halves.
#[inline(always)]
fn fold<S: Vector<f64>, const K: usize>(line: &[S::V; K]) -> f64 {
    let mut lanes = [0.0; LANES];
    S::as_vectors_mut(&mut lanes).0.copy_from_slice(line);
    for half in [4, 2, 1] {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
    }
    lanes[0]
}
