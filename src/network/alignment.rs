//! The comparison of a step's gradient with back-propagation.

use dualprop_kernels::isa::Isa;
use dualprop_kernels::reduce;
use dualprop_kernels::vector::Real;

use super::state::Units;
use crate::matrix::RowMajor;

/// States and gradients for the comparison with back-propagation.
#[derive(Clone, Debug)]
pub(crate) struct Alignment<T> {
    pub(crate) units: Vec<Units<T>>,
    /// Ours and that of back-propagation; large enough for every layer.
    pub(crate) gradients: [Gradient<T>; 2],
    pub(crate) cosine: Vec<f64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Gradient<T> {
    pub(crate) weights: RowMajor<T>,
    pub(crate) bias: Vec<T>,
}

impl<T: Real> Alignment<T> {
    pub(crate) fn new(widths: &[usize], batch: usize) -> Self {
        let n_out = widths[1..].iter().copied().max().unwrap_or(0);
        let n_in = widths[..widths.len() - 1].iter().copied().max().unwrap_or(0);
        let gradient = || Gradient { weights: RowMajor::zeros(n_out, n_in), bias: vec![T::ZERO; n_out] };
        Self {
            units: widths.iter().map(|&n| Units::new(batch, n)).collect(),
            gradients: [gradient(), gradient()],
            cosine: vec![0.0; widths.len() - 1],
        }
    }
}

impl<T: Real> Gradient<T> {
    /// Inner product over the first `n_out × n_in` weights and, if asked for, the biases.
    pub(crate) fn dot(&self, other: &Self, isa: Isa, n_out: usize, n_in: usize, with_bias: bool) -> f64 {
        let rows = (0..n_out).map(|r| reduce::dot(isa, &self.weights.row(r)[..n_in], &other.weights.row(r)[..n_in]));
        let bias = if with_bias { reduce::dot(isa, &self.bias[..n_out], &other.bias[..n_out]) } else { 0.0 };
        rows.fold(bias, |sum, dot| sum + dot)
    }
}
