//! Matrices of bounded numbers and the three products of a layer.
//!
//! States are `batch × units`, weights `n_out × n_in`, both row-major; `mathematics.md` writes states transposed.

use crate::bound::{Bounded, Precision, affine, dot, scaled_dot};
use std::ops::{Index, IndexMut};

/// A row-major matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Entries, row after row.
    pub data: Vec<Bounded>,
}

impl Matrix {
    /// The matrix with entry `entry(i, j)` in row `i` and column `j`.
    pub fn from_fn(rows: usize, cols: usize, mut entry: impl FnMut(usize, usize) -> Bounded) -> Self {
        let mut data = Vec::with_capacity(rows * cols);
        for i in 0..rows {
            for j in 0..cols {
                data.push(entry(i, j));
            }
        }
        Matrix { rows, cols, data }
    }

    /// An input matrix from its row-major entries, without error.
    ///
    /// # Panics
    /// If the number of entries is not `rows·cols`, or one is not a number of this precision.
    pub fn exact(precision: Precision, rows: usize, cols: usize, entries: &[f64]) -> Self {
        assert_eq!(entries.len(), rows * cols, "a {rows} × {cols} matrix from {} entries", entries.len());
        Self::from_fn(rows, cols, |i, j| precision.exact(entries[i * cols + j]))
    }

    /// The zero matrix.
    pub fn zeros(precision: Precision, rows: usize, cols: usize) -> Self {
        Self::from_fn(rows, cols, |_, _| precision.exact(0.0))
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[Bounded] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }

    /// The matrix of `f(entry)`.
    pub fn map(&self, f: impl Fn(Bounded) -> Bounded) -> Self {
        Matrix { rows: self.rows, cols: self.cols, data: self.data.iter().map(|&x| f(x)).collect() }
    }

    /// The matrix of `f(entry, other's entry)`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn zip(&self, other: &Matrix, f: impl Fn(Bounded, Bounded) -> Bounded) -> Self {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols), "shapes differ");
        Self::from_fn(self.rows, self.cols, |i, j| f(self[(i, j)], other[(i, j)]))
    }

    /// The values, row after row.
    pub fn values(&self) -> Vec<f64> {
        self.data.iter().map(|x| x.value).collect()
    }

    /// Row and column of the first entry of `got` (row-major) that is not admitted.
    ///
    /// # Panics
    /// If the number of entries differs.
    pub fn first_refused(&self, got: &[f64]) -> Option<(usize, usize)> {
        assert_eq!(got.len(), self.data.len(), "number of entries");
        let at = self.data.iter().zip(got).position(|(bound, &got)| !bound.admits(got))?;
        Some((at / self.cols, at % self.cols))
    }

    /// Largest [`Bounded::ratio`] over the entries of `got` (row-major); 0 for an empty matrix.
    ///
    /// # Panics
    /// If the number of entries differs.
    pub fn worst_ratio(&self, got: &[f64]) -> f64 {
        assert_eq!(got.len(), self.data.len(), "number of entries");
        self.data.iter().zip(got).map(|(bound, &got)| bound.ratio(got)).fold(0.0, f64::max)
    }
}

impl Index<(usize, usize)> for Matrix {
    type Output = Bounded;
    fn index(&self, (i, j): (usize, usize)) -> &Bounded {
        assert!(i < self.rows && j < self.cols, "entry ({i}, {j}) of a {} × {} matrix", self.rows, self.cols);
        &self.data[i * self.cols + j]
    }
}

impl IndexMut<(usize, usize)> for Matrix {
    fn index_mut(&mut self, (i, j): (usize, usize)) -> &mut Bounded {
        assert!(i < self.rows && j < self.cols, "entry ({i}, {j}) of a {} × {} matrix", self.rows, self.cols);
        &mut self.data[i * self.cols + j]
    }
}

/// Bottom-up drive `A = S Wᵀ + b`, so `A_ij = b_j + Σ_p S_ip W_jp` (`mathematics.md` 0.3): `batch × n_out` from `batch × n_in`
/// states and `n_out × n_in` weights. Bound: [`affine`], or [`dot`] without bias.
///
/// # Panics
/// If the shapes do not fit.
pub fn forward(precision: Precision, states: &Matrix, weights: &Matrix, bias: Option<&[Bounded]>) -> Matrix {
    assert_eq!(states.cols, weights.cols, "units of the states and columns of the weights");
    assert!(bias.is_none_or(|b| b.len() == weights.rows), "entries of the bias and rows of the weights");
    Matrix::from_fn(states.rows, weights.rows, |i, j| {
        let pairs = (0..weights.cols).map(|p| (states[(i, p)], weights[(j, p)]));
        match bias {
            Some(bias) => affine(bias[j], pairs),
            None => dot(precision, pairs),
        }
    })
}

/// Top-down drive `V = Δ W`, so `V_ij = Σ_p Δ_ip W_pj` (`mathematics.md` 0.3): `batch × n_in` from `batch × n_out` differences and
/// `n_out × n_in` weights. Bound: [`dot`].
///
/// # Panics
/// If the shapes do not fit.
pub fn top_down(precision: Precision, diff: &Matrix, weights: &Matrix) -> Matrix {
    assert_eq!(diff.cols, weights.rows, "units of the differences and rows of the weights");
    Matrix::from_fn(diff.rows, weights.cols, |i, j| dot(precision, (0..weights.rows).map(|p| (diff[(i, p)], weights[(p, j)]))))
}

/// Outer products summed over the batch and scaled, `scale · Δᵀ S̄`, so entry `(i, j)` is `scale · Σ_t Δ_ti S̄_tj`
/// (`mathematics.md` 1.3.1): `n_out × n_in`. Bound: [`scaled_dot`].
///
/// # Panics
/// If the batches differ.
pub fn outer(scale: Bounded, diff: &Matrix, states: &Matrix) -> Matrix {
    assert_eq!(diff.rows, states.rows, "batch of the differences and of the states");
    Matrix::from_fn(diff.cols, states.cols, |i, j| scaled_dot(scale, (0..diff.rows).map(|t| (diff[(t, i)], states[(t, j)]))))
}

/// Column sums over the batch, scaled: `scale · Σ_t Δ_ti` ([`outer`] with a constant state 1).
pub fn column_sums(scale: Bounded, diff: &Matrix) -> Vec<Bounded> {
    let one = scale.precision.exact(1.0);
    outer(scale, diff, &Matrix::from_fn(diff.rows, 1, |_, _| one)).data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Family, generate};

    fn values(matrix: &Matrix) -> Vec<f64> {
        matrix.values()
    }

    #[test]
    fn products_of_small_integers() {
        let p = Precision::F32;
        let states = Matrix::exact(p, 1, 3, &[1.0, 2.0, 3.0]);
        let weights = Matrix::exact(p, 2, 3, &[1.0, 0.0, -1.0, 2.0, 1.0, 0.0]);
        let bias = [p.exact(10.0), p.exact(20.0)];
        assert_eq!(values(&forward(p, &states, &weights, Some(&bias))), [8.0, 24.0]);
        assert_eq!(values(&forward(p, &states, &weights, None)), [-2.0, 4.0]);
        let diff = Matrix::exact(p, 1, 2, &[1.0, -1.0]);
        assert_eq!(values(&top_down(p, &diff, &weights)), [-1.0, -1.0, -1.0]);
        assert_eq!(values(&outer(p.exact(2.0), &diff, &states)), [2.0, 4.0, 6.0, -2.0, -4.0, -6.0]);
        assert_eq!(column_sums(p.exact(2.0), &diff).iter().map(|x| x.value).collect::<Vec<_>>(), [2.0, -2.0]);
    }

    #[test]
    fn forward_and_top_down_are_adjoint() {
        let p = Precision::F64;
        let states = Matrix::exact(p, 4, 6, &generate(Family::Uniform, 24, 1, p));
        let weights = Matrix::exact(p, 5, 6, &generate(Family::Uniform, 30, 2, p));
        let diff = Matrix::exact(p, 4, 5, &generate(Family::Uniform, 20, 3, p));
        let inner = |x: &Matrix, y: &Matrix| dot(p, x.data.iter().zip(&y.data).map(|(&x, &y)| (x, y)));
        let up = inner(&diff, &forward(p, &states, &weights, None));
        let down = inner(&top_down(p, &diff, &weights), &states);
        let gradient = inner(&outer(p.exact(1.0), &diff, &states), &weights);
        assert!(up.admits(down.value) && down.admits(up.value) && up.admits(gradient.value));
    }

    #[test]
    fn comparisons_name_the_first_refused_entry() {
        let matrix = Matrix::from_fn(2, 3, |_, _| Bounded::new(1.0, 0.1, Precision::F32));
        assert_eq!(matrix.first_refused(&[1.0; 6]), None);
        assert_eq!(matrix.first_refused(&[1.0, 1.05, 1.0, 1.0, 1.2, 2.0]), Some((1, 1)));
        assert!((matrix.worst_ratio(&[1.0, 1.05, 1.0, 1.0, 1.0, 1.0]) - 0.5).abs() < 1e-12);
        assert_eq!(Matrix::zeros(Precision::F32, 0, 3).first_refused(&[]), None);
    }
}
