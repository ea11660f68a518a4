//! Products with sparse matrices: sums over the stored elements and nothing else.

use crate::bound::{Bounded, Precision, dot};
use crate::product::Matrix;

/// A sparse matrix by rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparse {
    /// Number of columns.
    pub cols: usize,
    /// Column and value of every stored element of every row.
    pub rows: Vec<Vec<(usize, Bounded)>>,
}

impl Sparse {
    /// Rows become columns.
    pub fn transposed(&self) -> Self {
        let mut rows = vec![Vec::new(); self.cols];
        for (i, row) in self.rows.iter().enumerate() {
            for &(j, value) in row {
                rows[j].push((i, value));
            }
        }
        Sparse { cols: self.rows.len(), rows }
    }

    /// `x Aᵀ` for `x` of `batch × cols`.
    pub fn product(&self, precision: Precision, x: &Matrix) -> Matrix {
        Matrix::from_fn(x.rows, self.rows.len(), |b, i| dot(precision, self.rows[i].iter().map(|&(j, value)| (x[(b, j)], value))))
    }

    /// `x AᵀA`.
    pub fn gram(&self, precision: Precision, x: &Matrix) -> Matrix {
        self.transposed().product(precision, &self.product(precision, x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_that_of_the_dense_matrix() {
        let precision = Precision::F64;
        let x = |value: f64| precision.exact(value);
        // (1 0 2; 0 3 0)
        let sparse = Sparse { cols: 3, rows: vec![vec![(0, x(1.0)), (2, x(2.0))], vec![(1, x(3.0))]] };
        let vectors = Matrix::exact(precision, 1, 3, &[1.0, 10.0, 100.0]);
        assert_eq!(sparse.product(precision, &vectors).values(), [201.0, 30.0]);
        assert_eq!(sparse.gram(precision, &vectors).values(), [201.0, 90.0, 402.0]);
        assert_eq!(sparse.transposed().transposed(), sparse);
    }
}
