//! A method resolved into the coefficients that the kernels take.

use dualprop_kernels::epilogue::Nudge;
use dualprop_kernels::vector::Real;

use crate::relax::Variant;

use super::settings::{Damping, Method, NudgeAt, Output, Settings};

/// How hidden layers and output are nudged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    hidden: Variant,
    pub(crate) output: OutputRule,
    /// `β_L`, what the output difference carries.
    beta: f64,
    pub(crate) damping: Option<Damping>,
}

/// `Δ_L = gain·e` with the residual `e = −∇ℓ` (`y − a` for the squared error). The mean of the output feeds nothing: the state keeps
/// `a_L` in its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputRule {
    pub(crate) gain: f64,
    pub(crate) residual: Residual,
}

/// Where the residual is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Residual {
    /// At the prediction.
    Initial,
    /// At the current `a_L`.
    Current,
    /// At the `a_L` of the last update of the output.
    Previous,
}

impl Rule {
    pub(crate) fn new(settings: &Settings) -> Self {
        // The hidden layers; α and β of the output.
        let (hidden, alpha, beta) = match settings.method {
            Method::Backprop | Method::Adversarial { .. } => (Variant::Dp { alpha: 0.5 }, 0.5, 1.0),
            Method::Dp { alpha, beta } | Method::DpDamped { alpha, beta, .. } | Method::KpDp { alpha, beta } => {
                (Variant::Dp { alpha }, alpha, beta)
            }
            Method::DpTranspose { alpha, beta } => (Variant::DpTranspose { alpha }, alpha, beta),
            Method::DpOld { alpha, beta } => (Variant::Dp { alpha: 0.5 }, alpha, beta),
            Method::DpGain { gain } => match settings.output {
                Output::Prox => (Variant::Gain { gain }, 0.5, gain),
                Output::Linearized(_) => (Variant::Gain { gain: 1.0 }, 0.5, 2.0 * gain),
            },
        };
        let residual = match (settings.method, settings.output) {
            (Method::DpGain { .. }, Output::Linearized(NudgeAt::Current)) => Residual::Previous,
            (_, Output::Linearized(NudgeAt::Initial)) => Residual::Initial,
            _ => Residual::Current,
        };
        let gain = if settings.nudges() && settings.output == Output::Prox {
            beta / ((1.0 + alpha * beta) * (1.0 - (1.0 - alpha) * beta))
        } else {
            beta
        };
        let residual = if settings.nudges() { residual } else { Residual::Current };
        let output = OutputRule { gain, residual };
        let damping = match settings.method {
            Method::DpDamped { damping, .. } => Some(damping),
            _ => None,
        };
        Self { hidden, output, beta, damping }
    }

    /// The nudge of hidden layers.
    pub(crate) fn nudge<T: Real>(&self) -> Nudge<T> {
        self.hidden.nudge()
    }

    /// `β_k/β_{k+1}` of neighbouring layers.
    pub(crate) fn gain(&self) -> f64 {
        self.hidden.gain()
    }

    /// `1/β_k` for the layer of units `k` of `layers`: what turns `−Δ_k` into `∂ℓ/∂a_k` as the nudge goes to zero.
    pub(crate) fn inverse_beta(&self, k: usize, layers: usize) -> f64 {
        let mut beta = self.beta;
        for _ in k..layers {
            beta *= self.gain();
        }
        1.0 / beta
    }

    /// Whether the means are those of the plain forward pass to the bit, whatever the feedback: one compartment has all the weight
    /// in the mean and is not nudged (DP⊤ with α of 0 or 1).
    pub(crate) fn mean_is_forward(&self) -> bool {
        matches!(self.hidden, Variant::DpTranspose { alpha } if alpha == 0.0 || alpha == 1.0)
    }

    /// `λ` for a norm of the outgoing weights.
    pub(crate) fn lambda(&self, norm: f64) -> f64 {
        let plain = ((norm * norm - 1.0) / 2.0).max(0.0);
        match self.damping {
            Some(Damping::Scaled) => (1.0 - 2.0 * self.hidden.alpha()).abs() * plain,
            Some(Damping::Plain) => plain,
            None => 0.0,
        }
    }
}
