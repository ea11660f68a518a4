//! Sparse matrices as operators.

use dualprop_kernels::vector::Real;
use dualprop_kernels::{reduce, sparse};
use faer::{MatMut, MatRef};

use super::enclosure::{Bracket, Proof};
use super::operator::Operator;
use super::rounding::{down, exponent_of, gamma, scaled, up};
use crate::error::Error;
use crate::sparse::Sparse;
use crate::workspace::Workspace;
use crate::{Isa, Par};

impl<T: Real> Sparse<T> {
    /// The first element by rows that is not finite.
    fn not_finite(&self) -> Option<Error> {
        let at = self.values().iter().position(|x| !x.is_finite())?;
        let pattern = self.matrix.rows().pattern();
        let row = (0..pattern.lines()).find(|&row| pattern.line(row).contains(&at))?;
        Some(Error::NotFinite { argument: "matrix", row, col: pattern.index(at), value: self.values()[at].to_f64() })
    }
}

fn runtime<T: Real>(work: &Workspace<T>) -> (Isa, Par) {
    (work.runtime().isa(), work.runtime().par())
}

impl<T: Real> Operator<T> for Sparse<T> {
    fn shape(&self) -> (usize, usize) {
        self.shape()
    }

    fn apply(&self, x: MatRef<'_, T>, y: MatMut<'_, T>, work: &mut Workspace<T>) {
        let (isa, par) = runtime(work);
        sparse::apply(isa, par, self.matrix.rows(), x, y, &mut work.scratch);
    }

    fn apply_transposed(&self, y: MatRef<'_, T>, x: MatMut<'_, T>, work: &mut Workspace<T>) {
        let (isa, par) = runtime(work);
        sparse::apply(isa, par, self.matrix.columns(), y, x, &mut work.scratch);
    }

    fn gram(&self, x: MatRef<'_, T>, y: MatMut<'_, T>, squares: &mut [f64], work: &mut Workspace<T>) {
        let (isa, par) = runtime(work);
        sparse::gram(isa, par, &self.matrix, x, y, squares, &mut work.scratch);
    }

    fn stored(&self) -> usize {
        self.stored()
    }

    fn bracket(&self) -> Result<Bracket, Error> {
        let largest = reduce::max_abs(Isa::best(), self.values());
        if let Some(error) = (!largest.is_finite()).then(|| self.not_finite()).flatten() {
            return Err(error);
        }
        if largest == 0.0 {
            return Ok(Bracket { largest, lower: 0.0, upper: 0.0, frobenius: 0.0, proof: Proof::Zero });
        }
        // With the largest element from 1 to 2, squares neither overflow nor, where they count, underflow.
        let exponent = exponent_of(largest);
        let scale = scaled(1.0, -exponent);
        let (rows, cols) = (sparse::scan(self.matrix.rows(), scale), sparse::scan(self.matrix.columns(), scale));
        let (m, n) = self.shape();
        // A double that is scaled down may become subnormal, and its square may vanish.
        let vanished = self.stored() as f64 * f64::TINY;
        let roundings = m + n + 6;
        let lower = down(rows.line_square.max(cols.line_square).sqrt(), roundings);
        let frobenius = up((rows.square + vanished).sqrt(), roundings);
        let holder = up(((rows.line + vanished) * (cols.line + vanished)).sqrt(), roundings);
        let is_line = m == 1 || n == 1;
        let (upper, proof) = if is_line || frobenius <= holder { (frobenius, Proof::Frobenius) } else { (holder, Proof::Holder) };
        let back = |x: f64| scaled(x, exponent);
        // Only where the result leaves the normal range is scaling not exact.
        Ok(Bracket {
            largest,
            lower: back(lower).min(f64::MAX).next_down().max(largest),
            upper: back(upper).next_up(),
            frobenius: back(frobenius).next_up(),
            proof,
        })
    }

    fn image(&self, x: &[f64], y: &mut [f64]) -> f64 {
        let rows = self.matrix.rows();
        let mut errors = vec![0.0; y.len()];
        sparse::wide(Isa::best(), rows, x, y, &mut errors);
        for (row, error) in errors.iter_mut().enumerate() {
            // `γ_k` of the exact `Σ|a||x|`, which is at most `1 + γ_k` times as large as it came out, and what underflows in both.
            let k = rows.pattern().line(row).len();
            *error = up(gamma(2 * k) * *error + k as f64 * f64::TINY, 3);
        }
        let bound = up(reduce::norm(Isa::best(), &errors), y.len() + 8);
        if bound.is_finite() { bound } else { f64::INFINITY }
    }

    fn abs_gram(&self, x: &[f64], y: &mut [f64]) -> bool {
        let m = self.shape().0;
        let (mut sums, mut sizes) = (vec![0.0; m], vec![0.0; m]);
        sparse::wide(Isa::best(), self.matrix.rows(), x, &mut sums, &mut sizes);
        let mut signed = vec![0.0; y.len()];
        sparse::wide(Isa::best(), self.matrix.columns(), &sizes, &mut signed, y);
        true
    }

    fn block(&self, row: usize, col: usize, mut out: MatMut<'_, f64>) -> Option<f64> {
        out.fill(0.0);
        let pattern = self.matrix.rows().pattern();
        for i in 0..out.nrows() {
            let line = pattern.line(row + i);
            let mut from = line.start;
            let mut until = line.end;
            while from < until {
                let middle = from + (until - from) / 2;
                if pattern.index(middle) < col { from = middle + 1 } else { until = middle }
            }
            let end = col + out.ncols();
            for k in (from..line.end).take_while(|&k| pattern.index(k) < end) {
                out[(i, pattern.index(k) - col)] = self.values()[k].to_f64();
            }
        }
        Some(0.0)
    }

    fn rescaled(&self, power: i32) -> Option<Box<dyn Operator<T> + '_>> {
        let mut sparse = self.clone();
        let mut lost = 0.0;
        sparse.edit(|values| {
            for x in values {
                let old = x.to_f64();
                *x = T::from_f64(scaled(old, power));
                if scaled(x.to_f64(), -power) != old {
                    // A subnormal result is off by half a unit; one that overflows is of no use.
                    lost += if x.is_finite() { T::TINY } else { f64::INFINITY };
                }
            }
        });
        Some(Box::new(Rescaled { sparse, lost: up(lost, self.stored()) }))
    }
}

/// `2^power · A` with rounded elements.
struct Rescaled<T> {
    sparse: Sparse<T>,
    /// A bound of the Frobenius norm of what elements have lost.
    lost: f64,
}

impl<T: Real> Operator<T> for Rescaled<T> {
    fn shape(&self) -> (usize, usize) {
        self.sparse.shape()
    }

    fn apply(&self, x: MatRef<'_, T>, y: MatMut<'_, T>, work: &mut Workspace<T>) {
        self.sparse.apply(x, y, work);
    }

    fn apply_transposed(&self, y: MatRef<'_, T>, x: MatMut<'_, T>, work: &mut Workspace<T>) {
        self.sparse.apply_transposed(y, x, work);
    }

    fn gram(&self, x: MatRef<'_, T>, y: MatMut<'_, T>, squares: &mut [f64], work: &mut Workspace<T>) {
        self.sparse.gram(x, y, squares, work);
    }

    fn stored(&self) -> usize {
        self.sparse.stored()
    }

    fn bracket(&self) -> Result<Bracket, Error> {
        self.sparse.bracket()
    }

    fn image(&self, x: &[f64], y: &mut [f64]) -> f64 {
        let bound = self.sparse.image(x, y);
        if self.lost == 0.0 {
            return bound;
        }
        up(bound + self.lost * up(reduce::norm(Isa::best(), x), x.len() + 8), 4)
    }

    fn abs_gram(&self, x: &[f64], y: &mut [f64]) -> bool {
        self.sparse.abs_gram(x, y)
    }

    fn block(&self, row: usize, col: usize, out: MatMut<'_, f64>) -> Option<f64> {
        self.sparse.block(row, col, out).map(|_| self.lost)
    }
}
