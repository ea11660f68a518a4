//! Losses: their value, and the residual that nudges the output.

use dualprop_kernels::elementary::{log_sum_exp, softmax};
use dualprop_kernels::isa::Isa;
use dualprop_kernels::reduce;
use dualprop_kernels::vector::Real;

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
    /// Loss of one sample, in f64.
    pub(crate) fn value<T: Real>(self, isa: Isa, prediction: &[T], target: &[T]) -> f64 {
        match self {
            Loss::Squared => {
                prediction.iter().zip(target).map(|(p, y)| p.to_f64() - y.to_f64()).fold(0.0, |sum, e| sum + e * e) / 2.0
            }
            Loss::CrossEntropy => reduce::sum(isa, target) * log_sum_exp(isa, prediction) - reduce::dot(isa, target, prediction),
        }
    }

    /// `residual ← −∇ℓ(prediction)`: `y − p`, or `y − softmax(p)·Σy`.
    pub(crate) fn residual<T: Real>(self, isa: Isa, residual: &mut [T], prediction: &[T], target: &[T]) {
        match self {
            Loss::Squared => {
                for ((e, &p), &y) in residual.iter_mut().zip(prediction).zip(target) {
                    *e = y - p;
                }
            }
            Loss::CrossEntropy => {
                softmax(isa, residual, prediction).expect("rows of one width");
                let mass = T::from_f64(reduce::sum(isa, target));
                for (e, &y) in residual.iter_mut().zip(target) {
                    *e = y - *e * mass;
                }
            }
        }
    }
}
