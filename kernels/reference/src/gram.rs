//! `Aᵀ(A x)`, `|A|ᵀ|A| x` and `A x`, and the sums behind cheap bounds of a norm, by the formulas.

use crate::bound::{Bounded, Precision, dot, gamma};
use crate::product::Matrix;

/// `y = Aᵀ(A x)` and `‖A x‖²`, the latter of products as rounded to the precision of `A`, summed in f64. Bounds: [`dot`] twice; and
/// `Σ (2|t| + e)e` for products `t ± e`, with `γ_{m+1}·Σ (|t| + e)²` for the sum.
pub fn gram(a: &Matrix, x: &[Bounded]) -> (Vec<Bounded>, Bounded) {
    let products = image(a, x);
    let y = (0..a.cols).map(|j| dot(x[j].precision, (0..a.rows).map(|i| (a[(i, j)], products[i])))).collect();
    let value = products.iter().map(|t| t.value * t.value).sum();
    let spread: f64 = products.iter().map(|t| (2.0 * t.value.abs() + t.error) * t.error).sum();
    let size: f64 = products.iter().map(|t| t.magnitude() * t.magnitude()).sum();
    let error = spread + Precision::F64.gamma(a.rows + 1) * size;
    // The error's own evaluation, and underflow of the squares.
    let error = error * (1.0 + gamma(a.rows + 4, f64::EPSILON));
    (y, Bounded::new(value, error, Precision::F64).underflow(a.rows as f64))
}

/// `y = A x`. Bound: [`dot`].
pub fn image(a: &Matrix, x: &[Bounded]) -> Vec<Bounded> {
    assert_eq!(a.cols, x.len(), "columns of the matrix and elements of the vector");
    (0..a.rows).map(|i| dot(x[0].precision, a.row(i).iter().copied().zip(x.iter().copied()))).collect()
}

/// `y = |A|ᵀ(|A| x)` in f64 for `x ≥ 0`: relative error `γ_{m+n}` of the tested code and of this one, if nothing underflows.
pub fn abs_gram(a: &Matrix, x: &[f64]) -> Vec<Bounded> {
    let products: Vec<f64> = (0..a.rows).map(|i| a.row(i).iter().zip(x).map(|(a, x)| a.value.abs() * x).sum()).collect();
    let sum = |j| (0..a.rows).map(|i| a[(i, j)].value.abs() * products[i]).sum::<f64>();
    let relative = Precision::F64.gamma(a.rows + a.cols);
    (0..a.cols).map(sum).map(|y| Bounded::new(y, relative * y, Precision::F64)).collect()
}

/// Row and column sums of a matrix: of the sizes of its elements, and of their squares; and the sum of all squares.
#[derive(Clone, Debug, PartialEq)]
pub struct Sums {
    /// `Σ_j |a_ij|`.
    pub rows: Vec<f64>,
    /// `Σ_i |a_ij|`.
    pub cols: Vec<f64>,
    /// `Σ_j a_ij²`.
    pub row_squares: Vec<f64>,
    /// `Σ_i a_ij²`.
    pub col_squares: Vec<f64>,
    /// `Σ a_ij²`.
    pub square: f64,
}

/// The sums of `a_ij·scale`, each with a relative error of at most `γ_{m+n}`, if nothing overflows or underflows.
pub fn sums(a: &Matrix, scale: f64) -> Sums {
    let size = |i: usize, j: usize| (a[(i, j)].value * scale).abs();
    let row = |f: fn(f64) -> f64| (0..a.rows).map(|i| (0..a.cols).map(|j| f(size(i, j))).sum()).collect();
    let col = |f: fn(f64) -> f64| (0..a.cols).map(|j| (0..a.rows).map(|i| f(size(i, j))).sum()).collect();
    let row_squares: Vec<f64> = row(|x| x * x);
    let square = row_squares.iter().sum();
    Sums { rows: row(|x| x), cols: col(|x| x), col_squares: col(|x| x * x), row_squares, square }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_matrix_by_hand() {
        let a = Matrix::exact(Precision::F32, 2, 2, &[1.0, -2.0, 3.0, 4.0]);
        let x = [Precision::F32.exact(1.0), Precision::F32.exact(1.0)];
        let (y, square) = gram(&a, &x);
        assert_eq!(y.iter().map(|y| y.value).collect::<Vec<_>>(), [20.0, 30.0]);
        assert_eq!(square.value, 50.0);
        assert_eq!(abs_gram(&a, &[1.0, 1.0]).iter().map(|y| y.value).collect::<Vec<_>>(), [24.0, 34.0]);
        let sums = sums(&a, 2.0);
        assert_eq!((sums.rows, sums.cols), (vec![6.0, 14.0], vec![8.0, 12.0]));
        assert_eq!((sums.row_squares, sums.col_squares, sums.square), (vec![20.0, 100.0], vec![40.0, 80.0], 120.0));
    }
}
