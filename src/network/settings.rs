//! What a training step does: method, loss, output rule, schedule, optimizer.

pub use dualprop_kernels::optimizer::{Decay, Optimizer};

use super::loss::Loss;
use super::schedule::Schedule;
use crate::check;
use crate::error::Error;
use crate::lipschitz::Tracking;

/// A learning method. `α` weighs the upper compartment (0 to 1), `β > 0` is the strength of the nudge.
///
/// In every method the layers of units are numbered `k = 1 … L`, `a_k = W_{k−1} s̄_{k−1} + b_{k−1}` is the bottom-up drive,
/// `v_k = W_kᵀ Δ_{k+1}` the top-down drive, `s̄ = α s⁺ + (1−α) s⁻` the mean and `Δ = s⁺ − s⁻` the difference.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Method {
    /// Back-propagation in the same kernels.
    Backprop,
    /// One-step adversarial training: back-propagation at `x + β ∇ₓℓ`.
    Adversarial {
        /// `β`.
        beta: f64,
    },
    /// Dual propagation: `s⁺ = f(a + αv)`, `s⁻ = f(a − (1−α)v)` (Høier & Zach 2024).
    Dp {
        /// `α`.
        alpha: f64,
        /// `β`.
        beta: f64,
    },
    /// DP⊤, the improved variant: `s⁺ = f(a + (1−α)v)`, `s⁻ = f(a − αv)` (Høier & Zach 2024, eq. 19).
    DpTranspose {
        /// `α`.
        alpha: f64,
        /// `β`.
        beta: f64,
    },
    /// DP whose states are averaged with the old ones, by `λ_k` from an upper bound of the norm of `W_k`: never too little.
    DpDamped {
        /// `α`.
        alpha: f64,
        /// `β`.
        beta: f64,
        /// The formula for `λ_k`.
        damping: Damping,
    },
    /// "Old-style" DP: `α` at the output only, ½ in the hidden layers and means.
    DpOld {
        /// `α`.
        alpha: f64,
        /// `β`.
        beta: f64,
    },
    /// Dual propagation of 2023 with feedback gain γ: `z± = f(a ± (γ/2)v)`; the output is nudged by γ in place of β
    /// (Høier, Staudt & Zach 2023). With a linearised output the gain acts only there (their `betaL` variant).
    DpGain {
        /// `γ`, between 0 and 2.
        gain: f64,
    },
    /// DP without weight transport: feedback through own weights that receive the same update (Kolen & Pollack 1994).
    KpDp {
        /// `α`.
        alpha: f64,
        /// `β`.
        beta: f64,
    },
}

/// The damping `λ_k` of a hidden layer, with `γ_k` for `‖W_k‖₂` (Høier & Zach 2024, code; here the upper bound of a
/// [`Tracker`](crate::lipschitz::Tracker), at most 5 % above the norm unless [`Settings::norms`] says otherwise).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damping {
    /// `|1−2α|·max(0, (γ² − 1)/2)`, the MLP experiments.
    Scaled,
    /// `max(0, (γ² − 1)/2)`, the CNN experiments.
    Plain,
}

/// How the loss nudges the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Closed-form proximal step of the squared error: `Δ_L = β/((1+αβ)(1−(1−α)β))·(y − a_L)`; needs `(1−α)β < 1`.
    Prox,
    /// A step along the gradient: `Δ_L = −β ∇ℓ`.
    Linearized(NudgeAt),
}

/// Where the linearised output takes the gradient of the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NudgeAt {
    /// At the prediction of the plain forward pass.
    Initial,
    /// At the current `a_L`.
    Current,
}

/// Everything that a [`Trainer`](super::Trainer) is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The learning method.
    pub method: Method,
    /// What is reduced.
    pub loss: Loss,
    /// How the output is nudged; back-propagation and adversarial training do not use it.
    pub output: Output,
    /// The order of relaxation; back-propagation and adversarial training do not use it.
    pub schedule: Schedule,
    /// How weights follow their gradient. At every 256th step subnormal numbers among its moments become zero, since decay would never make them
    /// so and they slow it down.
    pub optimizer: Optimizer,
    /// How weights are pulled to zero.
    pub decay: Decay,
    /// Seed of the random schedule, of the feedback weights of KP-DP, and of the start vectors of spectral norms.
    pub seed: u64,
    /// Makes room to compare each step's gradient with back-propagation.
    pub alignment: bool,
    /// Makes room to follow the norms of all weights, which [`Trainer::norms`](super::Trainer::norms) gives when asked.
    pub norms: Option<Tracking>,
    /// Skips layers, and products, whose inputs have not changed since the last time; the bits are the same without, only later.
    pub skip: bool,
}

impl Settings {
    /// Settings to begin with: squared error, Adam; prox output for the DP family and the linearised one at the current prediction for DP⊤; one
    /// sweep up and one down, or 15 rounds for damped DP. Not those of the papers' experiments, which took
    /// [`Rounds(5)`](Schedule::Rounds) for DP and DP⊤.
    pub fn new(method: Method) -> Self {
        let output = match method {
            Method::DpTranspose { .. } => Output::Linearized(NudgeAt::Current),
            _ => Output::Prox,
        };
        let rounds = if matches!(method, Method::DpDamped { .. }) { 15 } else { 0 };
        Self {
            method,
            loss: Loss::Squared,
            output,
            schedule: Schedule::Rounds(rounds),
            optimizer: Optimizer::ADAM,
            decay: Decay::None,
            seed: 0,
            alignment: false,
            norms: None,
            skip: true,
        }
    }

    /// Checks every number and every combination.
    ///
    /// # Errors
    /// [`Error::Parameter`] and [`Error::Settings`] name the argument, its value and what is allowed.
    pub fn check(&self) -> Result<(), Error> {
        match self.method {
            Method::Backprop => {}
            Method::Adversarial { beta } => check::positive("beta", beta)?,
            Method::DpGain { gain } => check::parameter("gain", gain, "above 0 and below 2", gain > 0.0 && gain < 2.0)?,
            Method::Dp { alpha, beta }
            | Method::DpTranspose { alpha, beta }
            | Method::DpDamped { alpha, beta, .. }
            | Method::DpOld { alpha, beta }
            | Method::KpDp { alpha, beta } => {
                check::alpha(alpha)?;
                check::positive("beta", beta)?;
                if self.output == Output::Prox {
                    let allowed = "such that (1 − alpha)·beta is below 1 with the prox output";
                    check::parameter("beta", beta, allowed, (1.0 - alpha) * beta < 1.0)?;
                }
            }
        }
        if self.nudges() && self.loss == Loss::CrossEntropy && self.output == Output::Prox {
            let allowed = "linearized with the cross-entropy loss, which has no closed-form prox";
            return Err(Error::Settings { argument: "output", value: "prox", allowed });
        }
        match self.optimizer {
            Optimizer::Momentum { mu } => check::parameter("mu", mu, "at least 0 and below 1", (0.0..1.0).contains(&mu))?,
            Optimizer::Adam { beta1, beta2, epsilon } => {
                check::parameter("beta1", beta1, "at least 0 and below 1", (0.0..1.0).contains(&beta1))?;
                check::parameter("beta2", beta2, "at least 0 and below 1", (0.0..1.0).contains(&beta2))?;
                check::positive("epsilon", epsilon)?;
            }
            _ => {}
        }
        if let Some(tracking) = &self.norms {
            tracking.check()?;
        }
        match self.decay {
            Decay::Coupled(lambda) | Decay::Decoupled(lambda) => {
                check::parameter("weight decay", lambda, "from 0 to 1", (0.0..=1.0).contains(&lambda))
            }
            _ => Ok(()),
        }
    }

    /// Whether the method relaxes dyads.
    pub(crate) fn nudges(&self) -> bool {
        !matches!(self.method, Method::Backprop | Method::Adversarial { .. })
    }
}

impl Method {
    /// The name in configurations.
    pub const fn name(&self) -> &'static str {
        match self {
            Method::Backprop => "backprop",
            Method::Adversarial { .. } => "adversarial",
            Method::Dp { .. } => "dp",
            Method::DpTranspose { .. } => "dp-transpose",
            Method::DpDamped { .. } => "dp-damped",
            Method::DpOld { .. } => "dp-old",
            Method::DpGain { .. } => "dp-gain",
            Method::KpDp { .. } => "kp-dp",
        }
    }

    /// `α`, if the method has one.
    pub const fn alpha(&self) -> Option<f64> {
        match *self {
            Method::Dp { alpha, .. }
            | Method::DpTranspose { alpha, .. }
            | Method::DpDamped { alpha, .. }
            | Method::DpOld { alpha, .. }
            | Method::KpDp { alpha, .. } => Some(alpha),
            _ => None,
        }
    }

    /// `β`, if the method has one.
    pub const fn beta(&self) -> Option<f64> {
        match *self {
            Method::Adversarial { beta }
            | Method::Dp { beta, .. }
            | Method::DpTranspose { beta, .. }
            | Method::DpDamped { beta, .. }
            | Method::DpOld { beta, .. }
            | Method::KpDp { beta, .. } => Some(beta),
            _ => None,
        }
    }
}
