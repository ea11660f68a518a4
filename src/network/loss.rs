//! Losses: their value, and the residual that nudges the output.

use dualprop_kernels::elementary::{log_sum_exp_rows, softmax_rows};
use dualprop_kernels::isa::Isa;
use dualprop_kernels::reduce;
use dualprop_kernels::vector::Real;
use faer::MatRef;

use crate::matrix::RowMajor;

/// What the network is trained to reduce, as a mean over the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss {
    /// `½‖s − y‖²`.
    Squared,
    /// `−Σ y ln softmax(s)`.
    CrossEntropy,
}

impl Loss {
    /// What [`value`](Self::value) needs of all samples: `ln Σ e^(s_j)` if it is for cross-entropy.
    pub(crate) fn totals<T: Real>(self, isa: Isa, totals: &mut [f64], predictions: MatRef<'_, T>) {
        if self == Loss::CrossEntropy {
            log_sum_exp_rows(isa, totals, predictions);
        }
    }

    /// Loss of one sample with its total, in f64.
    pub(crate) fn value<T: Real>(self, isa: Isa, total: f64, prediction: &[T], target: &[T]) -> f64 {
        match self {
            Loss::Squared => {
                prediction.iter().zip(target).map(|(p, y)| p.to_f64() - y.to_f64()).fold(0.0, |sum, e| sum + e * e) / 2.0
            }
            Loss::CrossEntropy => reduce::sum(isa, target) * total - reduce::dot(isa, target, prediction),
        }
    }

    /// `residual ← −∇ℓ(prediction)` of each sample: `y − p`, or `y − softmax(p)·Σy`.
    pub(crate) fn residual<T: Real>(
        self,
        isa: Isa,
        residual: &mut RowMajor<T>,
        predictions: MatRef<'_, T>,
        targets: &RowMajor<T>,
    ) {
        if self == Loss::CrossEntropy {
            softmax_rows(isa, residual.view_mut(), predictions);
        }
        for row in 0..residual.rows() {
            let (residual, target) = (residual.row_mut(row), targets.row(row));
            match self {
                Loss::Squared => {
                    for ((e, &p), &y) in residual.iter_mut().zip(predictions.row(row).iter()).zip(target) {
                        *e = y - p;
                    }
                }
                Loss::CrossEntropy => {
                    let mass = T::from_f64(reduce::sum(isa, target));
                    for (e, &y) in residual.iter_mut().zip(target) {
                        *e = y - *e * mass;
                    }
                }
            }
        }
    }
}
