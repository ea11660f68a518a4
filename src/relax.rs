//! Relaxation of a layer of dyads: its drive from below, and its mean and difference from drive and feedback.

use dualprop_kernels::epilogue::{Epilogue, Nudge};
use dualprop_kernels::strided::{Input, Output};
use dualprop_kernels::vector::Real;
use faer::prelude::Reborrow;
use faer::{MatMut, MatRef};

use dualprop_kernels::activation::Activation;

use crate::check;
use crate::error::Error;
use crate::workspace::Workspace;

/// Which compartment is nudged how much: `s⁺ = f(a + c⁺v)`, `s⁻ = f(a + c⁻v)`, `mean = α s⁺ + (1−α) s⁻`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Variant {
    /// Dual propagation: `(c⁺, c⁻) = (α, α−1)` (Høier & Zach 2024).
    Dp {
        /// `α`.
        alpha: f64,
    },
    /// DP⊤: `(c⁺, c⁻) = (1−α, −α)` (Høier & Zach 2024, eq. 19).
    DpTranspose {
        /// `α`.
        alpha: f64,
    },
    /// Feedback gain γ: `(c⁺, c⁻) = (γ/2, −γ/2)`, α = ½ (Høier, Staudt & Zach 2023).
    Gain {
        /// `γ`.
        gain: f64,
    },
}

impl Variant {
    /// `α`, the weight of the upper compartment in the mean.
    pub(crate) fn alpha(self) -> f64 {
        match self {
            Variant::Dp { alpha } | Variant::DpTranspose { alpha } => alpha,
            Variant::Gain { .. } => 0.5,
        }
    }

    /// `c⁺ − c⁻`.
    pub(crate) fn gain(self) -> f64 {
        match self {
            Variant::Gain { gain } => gain,
            _ => 1.0,
        }
    }

    /// The nudge, if its parameters are in their ranges.
    pub(crate) fn checked<T: Real>(self) -> Result<Nudge<T>, Error> {
        check::alpha(self.alpha())?;
        let gain = self.gain();
        check::parameter("gain", gain, "positive, and finite and not zero in the element type", is_positive::<T>(gain))?;
        Ok(self.nudge())
    }

    pub(crate) fn nudge<T: Real>(self) -> Nudge<T> {
        let (up, down) = match self {
            Variant::Dp { alpha } => (alpha, alpha - 1.0),
            Variant::DpTranspose { alpha } => (1.0 - alpha, -alpha),
            Variant::Gain { gain } => (gain / 2.0, -gain / 2.0),
        };
        let c = T::from_f64;
        Nudge { up: c(up), down: c(down), gain: c(self.gain()), alpha: c(self.alpha()) }
    }
}

/// Bottom-up drive `a = below·Wᵀ + b`: `drive` is `batch × n_out`, `below` `batch × n_in`, `weights` `n_out × n_in`, `bias` one number for
/// each of `n_out` units.
///
/// Any strides; unit stride along units and along `n_in` is fast. Error at most `γ_{n_in+2}(Σ|below·W| + |b|)`. Costs `2·batch·n_out·n_in`
/// flops and reads the weights once.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Length`] name the operand that does not fit. NaN and infinity propagate.
pub fn drive<T: Real>(
    drive: MatMut<'_, T>,
    below: MatRef<'_, T>,
    weights: MatRef<'_, T>,
    bias: &[T],
    workspace: &mut Workspace<T>,
) -> Result<(), Error> {
    check::shape("below", below, (drive.nrows(), weights.ncols()))?;
    check::shape("drive", drive.rb(), (below.nrows(), weights.nrows()))?;
    check::length("bias", bias.len(), weights.nrows())?;
    let epilogue = Epilogue::Drive { bias: Input::repeated(bias, drive.nrows()), drive: Output::new(drive) };
    workspace.forward(weights, below, epilogue);
    Ok(())
}

/// Relaxes a layer once, from its drive `a` (`batch × units`) and the feedback `v = above·W` of the layer above:
/// `above` is the difference there (`batch × n_above`) and `weights` (`n_above × units`) lead there.
///
/// `mean` and `diff` are overwritten and never read. For piecewise linear activations `diff` is accurate relative to `v`, for smooth ones
/// relative to itself, however small the nudge is against the drive (see [`Activation`]). Any strides; unit stride along units is fast.
/// Costs `2·batch·n_above·units` flops and reads the weights once.
///
/// # Errors
/// [`Error::Shape`] names the operand that does not fit, [`Error::Parameter`] an `α` outside 0 to 1 or a gain that is not positive. NaN
/// and infinity propagate.
#[expect(clippy::too_many_arguments, reason = "two outputs, three inputs, the rule, and where to work: one idea each")]
pub fn relax<T: Real>(
    mean: MatMut<'_, T>,
    diff: MatMut<'_, T>,
    drive: MatRef<'_, T>,
    above: MatRef<'_, T>,
    weights: MatRef<'_, T>,
    variant: Variant,
    activation: Activation,
    workspace: &mut Workspace<T>,
) -> Result<(), Error> {
    let nudge = variant.checked()?;
    let shape = (drive.nrows(), drive.ncols());
    check::shape("mean", mean.rb(), shape)?;
    check::shape("diff", diff.rb(), shape)?;
    check::shape("above", above, (shape.0, weights.nrows()))?;
    check::shape("weights", weights, (above.ncols(), shape.1))?;
    let (drive, mean, diff) = (Input::new(drive), Output::new(mean), Output::new(diff));
    let epilogue = Epilogue::Dyad { drive, feedback: None, mean, diff, nudge, damping: None, activation };
    workspace.top_down(weights, above, epilogue);
    Ok(())
}

fn is_positive<T: Real>(x: f64) -> bool {
    let x = T::from_f64(x);
    x > T::ZERO && x.is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, Par, Runtime};
    use faer::Mat;

    /// The formulas of the module on one unit and one input, where each product is a single rounding.
    #[test]
    fn one_unit_follows_the_formulas() {
        let mut work = Workspace::new(&Runtime::new(Isa::best(), Par::Seq));
        let one = |x: f64| Mat::from_fn(1, 1, |_, _| x);
        let (mut a, mut mean, mut diff) = (one(f64::NAN), one(f64::NAN), one(f64::NAN));
        drive(a.as_mut(), one(0.5).as_ref(), one(3.0).as_ref(), &[0.25], &mut work).unwrap();
        assert_eq!(a[(0, 0)], 1.75);
        let dp = Variant::Dp { alpha: 0.25 };
        relax(
            mean.as_mut(),
            diff.as_mut(),
            a.as_ref(),
            one(0.5).as_ref(),
            one(2.0).as_ref(),
            dp,
            Activation::Identity,
            &mut work,
        )
        .unwrap();
        // v = 1: s⁺ = 2, s⁻ = 1, mean = 1.25.
        assert_eq!((mean[(0, 0)], diff[(0, 0)]), (1.25, 1.0));
        let bad = Variant::Dp { alpha: 1.5 };
        let error = relax(
            mean.as_mut(),
            diff.as_mut(),
            a.as_ref(),
            one(0.5).as_ref(),
            one(2.0).as_ref(),
            bad,
            Activation::Relu,
            &mut work,
        );
        assert_eq!(error.unwrap_err().to_string(), "alpha is 1.5, but must be from 0 to 1");
        let error = drive(a.as_mut(), Mat::zeros(1, 2).as_ref(), one(3.0).as_ref(), &[0.25], &mut work);
        assert_eq!(error.unwrap_err().to_string(), "below is 1 × 2, but must be 1 × 1");
    }
}
