//! Outer-product updates: `W ← optimizer(W, scale·Δᵀ S̄)` and the gradient alone.
//!
//! The contraction runs over the batch; the optimizer is the epilogue of the product, so the gradient never goes to memory.

use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::online as kernel;
use dualprop_kernels::optimizer::Descent;
use dualprop_kernels::strided::Output;
use dualprop_kernels::vector::Real;
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{MatMut, MatRef};

pub use dualprop_kernels::optimizer::{Decay, Optimizer, Update};

use crate::check;
use crate::error::Error;
use crate::runtime::Runtime;
use crate::workspace::Workspace;

/// One step of an optimizer on `weights` (`n_out × n_in`) along the gradient `update.scale·diffᵀ·mean` (+ decay), for
/// `diff` (`batch × n_out`) and `mean` (`batch × n_in`); `moments` are as many matrices of state as
/// [`Optimizer::moments`] says, of the shape of `weights`, zero before the first step.
///
/// With `scale = −1/(βB)` this is the update of dual propagation (Høier & Zach 2024:
/// `∂ℓ/∂W = −(1/βB) Σ Δ s̄ᵀ`); with a positive learning rate, [`Optimizer::Sgd`] and `scale = −1` it is plain Hebb, `W ← W + η ΔᵀS̄`.
///
/// Any strides; unit stride along either dimension of weights and moments is fast. Each sum is one chain of fused multiply-adds over
/// the batch: error at most `γ_B Σ|Δ s̄|`. Costs `2·B·n_out·n_in` flops and one pass over weights and moments.
///
/// Plain descent ([`Optimizer::Sgd`] without coupled decay) of one sample is `w ← keep·w − (η·scale·δ)·s̄`, as in `ger`: two operations a weight,
/// with no more roundings than `η·scale·(δ s̄)` has. Where an `η·scale·δ` is subnormal or not finite, though `δ` is not 0, `δ s̄` comes
/// first for all: nothing is lost by the order.
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
    check_state(weights.rb(), moments, update)?;
    let is_column_major = is_column_major(weights.rb());
    let moments = moments.iter_mut().map(|moment| moment.rb_mut());
    let epilogue = Epilogue::Update(Descent::new(weights, moments, *update));
    if is_column_major {
        workspace.outer(mean, diff, epilogue.transposed());
    } else {
        workspace.outer(diff, mean, epilogue);
    }
    Ok(())
}

/// [`update`] for one sample, `W ← optimizer(W, scale·δ s̄ᵀ)` with `δ` = `diff` (`n_out`) and `s̄` = `mean` (`n_in`), and `image ← W x` with the
/// new weights for `x` = `next` (`n_in`), in one pass over the weights: the end of an online step and the beginning of the next.
///
/// Weights and moments have the bits that [`update`] gives them for a batch of one. Element `i` of `image` (`n_out`) is off by at most
/// `γ_{⌈n_in/L⌉+log₂ L}·(|W||x|)_i`, `L` being 16 for f32 and 8 for f64; it has the same bits on every instruction set and for every number of
/// threads, but not those of [`relax::drive`](crate::relax::drive), which adds in another order. Contiguous rows are fast. Costs
/// `4·n_out·n_in` flops beside those of the optimizer.
///
/// # Errors
/// [`Error::Length`] and [`Error::Shape`] name the operand that does not fit; [`Error::Parameter`] for step 0. NaN and infinity propagate.
#[expect(clippy::too_many_arguments, reason = "weights and state, a sample, a rule, another sample: one idea each")]
pub fn online<T: Real>(
    weights: MatMut<'_, T>,
    moments: &mut [MatMut<'_, T>],
    diff: &[T],
    mean: &[T],
    update: &Update,
    next: &[T],
    image: &mut [T],
    runtime: &Runtime,
) -> Result<(), Error> {
    let (n_out, n_in) = (weights.nrows(), weights.ncols());
    check::length("diff", diff.len(), n_out)?;
    check::length("mean", mean.len(), n_in)?;
    check::length("next", next.len(), n_in)?;
    check::length("image", image.len(), n_out)?;
    check_state(weights.rb(), moments, update)?;
    let descent = Descent::new(weights, moments.iter_mut().map(|moment| moment.rb_mut()), *update);
    kernel::online(runtime.isa(), runtime.par(), descent, diff, mean, next, image);
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

fn check_state<T>(weights: MatRef<'_, T>, moments: &[MatMut<'_, T>], update: &Update) -> Result<(), Error> {
    check::length("moments", moments.len(), update.optimizer.moments())?;
    for moment in moments {
        check::shape("moments", moment.rb(), (weights.nrows(), weights.ncols()))?;
    }
    check::parameter("step", update.step as f64, "at least 1", update.step > 0)
}

fn check_shapes<T>(weights: MatRef<'_, T>, diff: MatRef<'_, T>, mean: MatRef<'_, T>) -> Result<(), Error> {
    check::shape("diff", diff, (mean.nrows(), weights.nrows()))?;
    check::shape("mean", mean, (diff.nrows(), weights.ncols()))
}

/// The lanes of the vectors should run along the contiguous dimension of the output.
fn is_column_major<T>(weights: MatRef<'_, T>) -> bool {
    weights.row_stride() == 1 && weights.col_stride() != 1
}
