//! Outer-product updates: `W ← optimizer(W, scale·Δᵀ S̄)` and the gradient alone.
//!
//! The contraction runs over the batch; the optimizer is the epilogue of the product, so the gradient never goes to memory.

use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::optimizer::Descent;
use dualprop_kernels::strided::Output;
use dualprop_kernels::vector::Real;
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{MatMut, MatRef};

pub use dualprop_kernels::optimizer::{Decay, Optimizer, Update};

use crate::check;
use crate::error::Error;
use crate::workspace::Workspace;

/// One step of an optimizer on `weights` (`n_out × n_in`) along the gradient `update.scale·diffᵀ·mean` (+ decay), for
/// `diff` (`batch × n_out`) and `mean` (`batch × n_in`); `moments` are as many matrices of state as
/// [`Optimizer::moments`] says, of the shape of `weights`, zero before the first step.
///
/// With `scale = −1/(βB)` this is the update of dual propagation (Høier & Zach 2024, section 1.3.1 of their code's notation:
/// `∂ℓ/∂W = −(1/βB) Σ Δ s̄ᵀ`); with a positive learning rate, [`Optimizer::Sgd`] and `scale = −1` it is plain Hebb, `W ← W + η ΔᵀS̄`.
///
/// Any strides; unit stride along either dimension of weights and moments is fast. Each sum is one chain of fused multiply-adds over
/// the batch: error at most `γ_B Σ|Δ s̄|`. Costs `2·B·n_out·n_in` flops and one pass over weights and moments.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Length`] name the operand that does not fit; [`Error::Parameter`] for step 0. NaN and infinity are not
/// looked for: they propagate.
pub fn update<T: Real>(
    weights: MatMut<'_, T>,
    moments: &mut [MatMut<'_, T>],
    diff: MatRef<'_, T>,
    mean: MatRef<'_, T>,
    update: &Update,
    workspace: &mut Workspace<T>,
) -> Result<(), Error> {
    check_shapes(weights.rb(), diff, mean)?;
    check::length("moments", moments.len(), update.optimizer.moments())?;
    for moment in moments.iter() {
        check::shape("moments", moment.rb(), (weights.nrows(), weights.ncols()))?;
    }
    check::parameter("step", update.step as f64, "at least 1", update.step > 0)?;
    let moments = moments.iter_mut().map(|moment| moment.rb_mut());
    if is_column_major(weights.rb()) {
        let moments = moments.map(|moment| moment.transpose_mut());
        workspace.outer(mean, diff, Epilogue::Update(Descent::new(weights.transpose_mut(), moments, *update)));
    } else {
        workspace.outer(diff, mean, Epilogue::Update(Descent::new(weights, moments, *update)));
    }
    Ok(())
}

/// `gradient ← scale·diffᵀ·mean` (`n_out × n_in`), whatever was there before; operands as for [`update`].
///
/// # Errors
/// [`Error::Shape`] names the operand that does not fit.
pub fn gradient<T: Real>(
    gradient: MatMut<'_, T>,
    diff: MatRef<'_, T>,
    mean: MatRef<'_, T>,
    scale: T,
    workspace: &mut Workspace<T>,
) -> Result<(), Error> {
    check_shapes(gradient.rb(), diff, mean)?;
    if is_column_major(gradient.rb()) {
        workspace.outer(mean, diff, Epilogue::Store { out: Output::new(gradient.transpose_mut()), scale });
    } else {
        workspace.outer(diff, mean, Epilogue::Store { out: Output::new(gradient), scale });
    }
    Ok(())
}

fn check_shapes<T>(weights: MatRef<'_, T>, diff: MatRef<'_, T>, mean: MatRef<'_, T>) -> Result<(), Error> {
    check::shape("diff", diff, (mean.nrows(), weights.nrows()))?;
    check::shape("mean", mean, (diff.nrows(), weights.ncols()))
}

/// The lanes of the vectors should run along the contiguous dimension of the output.
fn is_column_major<T>(weights: MatRef<'_, T>) -> bool {
    weights.row_stride() == 1 && weights.col_stride() != 1
}
