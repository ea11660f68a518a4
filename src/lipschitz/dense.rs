//! Matrices as operators.

use std::sync::OnceLock;

use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::product::Scratch;
use dualprop_kernels::scan::{NotFinite, scan};
use dualprop_kernels::strided::Output;
use dualprop_kernels::vector::Real;
use dualprop_kernels::{gram, reduce};
use faer::prelude::ReborrowMut;
use faer::{MatMut, MatRef};

use super::enclosure::{Bracket, Proof};
use super::operator::Operator;
use super::rounding::{gamma, scaled, up};
use crate::error::Error;
use crate::matrix::RowMajor;
use crate::workspace::Workspace;
use crate::{Isa, Par};

/// A matrix.
///
/// Rows that are contiguous are read where they are; a matrix of any other strides is copied.
#[derive(Clone, Debug)]
pub struct Dense<'a, T> {
    elements: Elements<'a, T>,
    /// A bound of the Frobenius norm of what elements have lost in scaling.
    lost: f64,
    bracket: OnceLock<Result<Bracket, Error>>,
}

#[derive(Clone, Debug)]
enum Elements<'a, T> {
    View(MatRef<'a, T>),
    Copy(RowMajor<T>),
}

impl<'a, T: Real> Dense<'a, T> {
    /// `matrix`.
    pub fn new(matrix: MatRef<'a, T>) -> Self {
        if matrix.col_stride() == 1 {
            return Self { elements: Elements::View(matrix), lost: 0.0, bracket: OnceLock::new() };
        }
        Self::copied(matrix, |x| x)
    }

    /// `|matrix|`, element by element; a copy.
    pub fn absolute(matrix: MatRef<'_, T>) -> Self {
        Self::copied(matrix, Real::abs)
    }

    fn copied(matrix: MatRef<'_, T>, element: impl Fn(T) -> T) -> Self {
        /// Squares of this side stay in the nearest cache, whatever the strides.
        const SIDE: usize = 32;
        let (m, n) = (matrix.nrows(), matrix.ncols());
        let mut copy = RowMajor::zeros(m, n);
        for i0 in (0..m).step_by(SIDE) {
            for j0 in (0..n).step_by(SIDE) {
                for i in i0..m.min(i0 + SIDE) {
                    let row = &mut copy.row_mut(i)[j0..n.min(j0 + SIDE)];
                    row.iter_mut().zip(j0..).for_each(|(x, j)| *x = element(matrix[(i, j)]));
                }
            }
        }
        Self { elements: Elements::Copy(copy), lost: 0.0, bracket: OnceLock::new() }
    }

    /// The elements; rows are contiguous.
    pub fn matrix(&self) -> MatRef<'_, T> {
        match &self.elements {
            Elements::View(view) => *view,
            Elements::Copy(copy) => copy.view(),
        }
    }

    fn scan(&self) -> Result<Bracket, Error> {
        let matrix = self.matrix();
        let scan = scan(Isa::best(), matrix, &mut Scratch::new()).map_err(|NotFinite { row, col }| {
            let value = matrix[(row, col)].to_f64();
            Error::NotFinite { argument: "matrix", row, col, value }
        })?;
        let (lower, frobenius, holder) = (scan.lower(), scan.frobenius(), scan.holder());
        let (upper, proof) = match () {
            () if scan.largest == 0.0 => (0.0, Proof::Zero),
            () if frobenius <= holder => (frobenius, Proof::Frobenius),
            () => (holder, Proof::Holder),
        };
        Ok(Bracket { largest: scan.largest, lower, upper, frobenius, proof })
    }
}

impl<T: Real> Operator<T> for Dense<'_, T> {
    fn shape(&self) -> (usize, usize) {
        self.matrix().shape()
    }

    fn apply(&self, x: MatRef<'_, T>, y: MatMut<'_, T>, work: &mut Workspace<T>) {
        work.forward(self.matrix(), x, Epilogue::Store { out: Output::new(y), scale: T::ONE });
    }

    fn apply_transposed(&self, y: MatRef<'_, T>, x: MatMut<'_, T>, work: &mut Workspace<T>) {
        work.top_down(self.matrix(), y, Epilogue::Store { out: Output::new(x), scale: T::ONE });
    }

    fn gram(&self, x: MatRef<'_, T>, y: MatMut<'_, T>, squares: &mut [f64], work: &mut Workspace<T>) {
        work.gram(self.matrix(), x, y, squares);
    }

    fn bracket(&self) -> Result<Bracket, Error> {
        self.bracket.get_or_init(|| self.scan()).clone()
    }

    fn image(&self, x: &[f64], y: &mut [f64]) -> f64 {
        let Ok(Bracket { frobenius, .. }) = self.bracket() else { return f64::INFINITY };
        let (m, n) = self.shape();
        gram::image(Isa::best(), Par::Seq, self.matrix(), x, y);
        let size = up(reduce::norm(Isa::best(), x), n + 8);
        // Sums of `⌈n/8⌉ + 3` roundings, and what underflows in them.
        let rounding = gamma(n.div_ceil(8) + 3) * frobenius * size + (m * n) as f64 * f64::TINY;
        up(rounding + self.lost * size, 8)
    }

    fn abs_gram(&self, x: &[f64], y: &mut [f64]) -> bool {
        gram::abs_gram(Isa::best(), Par::Seq, self.matrix(), x, y, &mut Scratch::new());
        true
    }

    fn block(&self, row: usize, col: usize, mut out: MatMut<'_, f64>) -> Option<f64> {
        /// Squares of this side stay in the nearest cache, whatever the strides.
        const SIDE: usize = 32;
        let from = self.matrix().submatrix(row, col, out.nrows(), out.ncols());
        if out.col_stride() == 1 {
            for i in 0..from.nrows() {
                let (from, to) = (from.row(i).try_as_row_major()?, out.rb_mut().row_mut(i).try_as_row_major_mut()?);
                to.as_slice_mut().iter_mut().zip(from.as_slice()).for_each(|(to, x)| *to = x.to_f64());
            }
            return Some(self.lost);
        }
        for i0 in (0..from.nrows()).step_by(SIDE) {
            let high = SIDE.min(from.nrows() - i0);
            for j in 0..from.ncols() {
                for i in i0..i0 + high {
                    out[(i, j)] = from[(i, j)].to_f64();
                }
            }
        }
        Some(self.lost)
    }

    fn elements(&self) -> Option<MatRef<'_, T>> {
        // Scaling has to be exact.
        (self.lost == 0.0).then(|| self.matrix())
    }

    fn rescaled(&self, power: i32) -> Option<Box<dyn Operator<T> + '_>> {
        let mut lost = 0.0;
        let mut copy = Self::copied(self.matrix(), |x| T::from_f64(scaled(x.to_f64(), power)));
        for i in 0..self.shape().0 {
            for j in 0..self.shape().1 {
                let (old, new) = (self.matrix()[(i, j)], copy.matrix()[(i, j)]);
                if scaled(new.to_f64(), -power) != old.to_f64() {
                    // A subnormal result is off by half a unit; one that overflows is of no use.
                    lost += if new.is_finite() { T::TINY } else { f64::INFINITY };
                }
            }
        }
        copy.lost = up(lost + scaled_lost(self.lost, power), self.shape().0 * self.shape().1);
        Some(Box::new(copy))
    }
}

fn scaled_lost(lost: f64, power: i32) -> f64 {
    if lost == 0.0 { 0.0 } else { scaled(lost, power).next_up() }
}
