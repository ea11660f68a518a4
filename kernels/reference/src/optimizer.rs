//! One step of an optimizer on one parameter (`mathematics.md` 1.3.2, 1.3.3).

use crate::bound::{Bounded, Precision};

/// An optimizer and its constants. Constants that are not numbers of the precision may be held rounded by the tested code
/// ([`Precision::parameter`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// `w ← w − lr·g`.
    Sgd {
        /// Learning rate `lr`.
        rate: f64,
    },
    /// Heavy ball: `m ← μm + g`, `w ← w − lr·m`.
    Momentum {
        /// Learning rate `lr`.
        rate: f64,
        /// `μ`.
        momentum: f64,
    },
    /// Adam (Kingma & Ba 2015, algorithm 1).
    Adam {
        /// Learning rate `lr`.
        rate: f64,
        /// Decay `β₁` of the first moment.
        beta1: f64,
        /// Decay `β₂` of the second moment.
        beta2: f64,
        /// `ε > 0`, outside the square root.
        epsilon: f64,
    },
}

/// Weight decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// None.
    None,
    /// Coupled: `g + wd·w` takes the place of `g` before anything else.
    Coupled(f64),
    /// Decoupled: `(1 − lr·wd)·w` takes the place of `w` in the last formula, `g` is left alone.
    Decoupled(f64),
}

/// What an optimizer remembers of one parameter: momentum or Adam's two moments. Zero before the first step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slots {
    /// Momentum, or first moment `m`.
    pub first: Bounded,
    /// Second moment `v`.
    pub second: Bounded,
}

impl Slots {
    /// Memory before the first step.
    pub fn zero(precision: Precision) -> Self {
        Slots { first: precision.exact(0.0), second: precision.exact(0.0) }
    }
}

impl Optimizer {
    /// The parameter after step `t = 1, 2, …` with gradient `g`; `slots` is brought up to date.
    ///
    /// Bounds follow the formulas as printed; four roundings of `|w| + |lr·step|` and of the parts of `m` and `v`
    /// allow for fused and rearranged forms, such as `m + (1 − β₁)(g − m)` or `(1 − lr·wd)w − lr·g` for coupled decay without memory.
    ///
    /// # Panics
    /// If `t` is 0.
    pub fn update(self, decay: Decay, t: u32, weight: Bounded, slots: &mut Slots, gradient: Bounded) -> Bounded {
        let precision = weight.precision;
        assert!(t > 0, "steps are counted from 1");
        let gradient = match decay {
            Decay::Coupled(decay) => gradient + precision.parameter(decay) * weight,
            Decay::None | Decay::Decoupled(_) => gradient,
        };
        let (rate, direction) = match self {
            Optimizer::Sgd { rate } => (rate, gradient),
            Optimizer::Momentum { rate, momentum } => {
                slots.first = precision.parameter(momentum) * slots.first + gradient;
                (rate, slots.first)
            }
            Optimizer::Adam { rate, beta1, beta2, epsilon } => {
                let [beta1, beta2, epsilon] = [beta1, beta2, epsilon].map(|x| precision.parameter(x));
                slots.first = moving_average(beta1, slots.first, gradient);
                slots.second = moving_average(beta2, slots.second, gradient * gradient);
                (rate, adam_direction(beta1, beta2, epsilon, t, *slots))
            }
        };
        let rate = precision.parameter(rate);
        let kept = match decay {
            Decay::Decoupled(decay) => (precision.exact(1.0) - rate * precision.parameter(decay)) * weight,
            Decay::None | Decay::Coupled(_) => weight,
        };
        let step = rate * direction;
        (kept - step).widen(4, weight.magnitude() + step.magnitude())
    }
}

/// `βm + (1 − β)g`, with four roundings of `|m| + (1 − β)|g|` for the form `m + (1 − β)(g − m)`.
fn moving_average(beta: Bounded, old: Bounded, new: Bounded) -> Bounded {
    let rest = beta.complement();
    (beta * old + rest * new).widen(4, old.magnitude() + rest.magnitude() * new.magnitude())
}

/// Adam's `m̂/(√v̂ + ε)`, `m̂ = m/(1 − β₁^t)`, `v̂ = v/(1 − β₂^t)`, with twelve roundings for forms like
/// `√(1 − β₂^t)/(1 − β₁^t) · m/(√v + ε√(1 − β₂^t))`.
///
/// The divisor is at least ε in every evaluation, up to its few roundings (a thousandth is more than enough). So a gradient that is
/// zero up to rounding gives a finite bound, at most `e/ε`; it is large when `e > ε`, and so is the distance between two correct
/// codes, because Adam normalises whatever rounding left over.
fn adam_direction(beta1: Bounded, beta2: Bounded, epsilon: Bounded, t: u32, slots: Slots) -> Bounded {
    let first = slots.first / beta1.powi(t).complement();
    let second = slots.second / beta2.powi(t).complement();
    let direction = first.div_above(second.sqrt() + epsilon, 0.999 * epsilon.value);
    direction.widen(12, direction.magnitude())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Family, SplitMix64, generate};

    const ADAM: Optimizer = Optimizer::Adam { rate: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    const OPTIMIZERS: [Optimizer; 3] = [Optimizer::Sgd { rate: 0.1 }, Optimizer::Momentum { rate: 0.1, momentum: 0.9 }, ADAM];

    /// The recursion written out in f64, by other forms: moving averages as corrections, Adam with its corrections moved.
    fn plain(optimizer: Optimizer, decay: Decay, gradients: &[f64], mut w: f64) -> f64 {
        let (mut m, mut v) = (0.0, 0.0);
        for (t, &g) in gradients.iter().enumerate() {
            let g = if let Decay::Coupled(wd) = decay { g + wd * w } else { g };
            let (rate, direction) = match optimizer {
                Optimizer::Sgd { rate } => (rate, g),
                Optimizer::Momentum { rate, momentum } => {
                    m = momentum * m + g;
                    (rate, m)
                }
                Optimizer::Adam { rate, beta1, beta2, epsilon } => {
                    let (c1, c2) = (1.0 - beta1.powi(t as i32 + 1), 1.0 - beta2.powi(t as i32 + 1));
                    m += (1.0 - beta1) * (g - m);
                    v += (1.0 - beta2) * (g * g - v);
                    (rate, c2.sqrt() / c1 * m / (v.sqrt() + epsilon * c2.sqrt()))
                }
            };
            let kept = if let Decay::Decoupled(wd) = decay { w - rate * wd * w } else { w };
            w = kept - rate * direction;
        }
        w
    }

    /// The same in f32, by the printed formulas.
    fn plain_f32(optimizer: Optimizer, decay: Decay, gradients: &[f64], w: f64) -> f64 {
        let (mut m, mut v, mut w) = (0.0f32, 0.0f32, w as f32);
        for (t, &g) in gradients.iter().enumerate() {
            let g = if let Decay::Coupled(wd) = decay { (wd as f32).mul_add(w, g as f32) } else { g as f32 };
            let (rate, direction) = match optimizer {
                Optimizer::Sgd { rate } => (rate as f32, g),
                Optimizer::Momentum { rate, momentum } => {
                    m = (momentum as f32).mul_add(m, g);
                    (rate as f32, m)
                }
                Optimizer::Adam { rate, beta1, beta2, epsilon } => {
                    let (beta1, beta2) = (beta1 as f32, beta2 as f32);
                    let (c1, c2) = (1.0 - beta1.powi(t as i32 + 1), 1.0 - beta2.powi(t as i32 + 1));
                    m = beta1 * m + (1.0 - beta1) * g;
                    v = beta2 * v + (1.0 - beta2) * g * g;
                    (rate as f32, m / c1 / ((v / c2).sqrt() + epsilon as f32))
                }
            };
            let kept = if let Decay::Decoupled(wd) = decay { (1.0 - rate * wd as f32) * w } else { w };
            w = kept - rate * direction;
        }
        w.into()
    }

    fn run(precision: Precision, optimizer: Optimizer, decay: Decay, gradients: &[f64], w: f64) -> Bounded {
        let (mut slots, mut weight) = (Slots::zero(precision), precision.exact(w));
        for (t, &g) in gradients.iter().enumerate() {
            weight = optimizer.update(decay, t as u32 + 1, weight, &mut slots, precision.exact(g));
        }
        weight
    }

    #[test]
    fn other_forms_and_f32_are_admitted() {
        for optimizer in OPTIMIZERS {
            for decay in [Decay::None, Decay::Coupled(5e-4), Decay::Decoupled(1e-2)] {
                for seed in 0..300 {
                    let gradients = generate(Family::Mixed, 1 + seed as usize % 12, seed, Precision::F32);
                    let w = Precision::F32.nearest(SplitMix64::new(seed).symmetric());
                    let bound = run(Precision::F64, optimizer, decay, &gradients, w);
                    let got = plain(optimizer, decay, &gradients, w);
                    assert!(bound.admits(got), "{optimizer:?} {decay:?}: {got}, {bound:?}");
                    let bound = run(Precision::F32, optimizer, decay, &gradients, w);
                    let got = plain_f32(optimizer, decay, &gradients, w);
                    assert!(bound.admits(got), "{optimizer:?} {decay:?}: {got}, {bound:?}");
                    let step = (bound.value - w).abs();
                    assert!(bound.error < 1e-3 * step + 1e-5 * w.abs(), "{optimizer:?} {decay:?}: {bound:?}");
                }
            }
        }
    }

    #[test]
    fn the_two_decays_differ() {
        let gradients = [0.5, -0.25, 1.0];
        for optimizer in OPTIMIZERS {
            let results = [Decay::None, Decay::Coupled(0.125), Decay::Decoupled(0.125)]
                .map(|decay| run(Precision::F32, optimizer, decay, &gradients, 0.75));
            assert!(!results[0].admits(results[1].value) && !results[0].admits(results[2].value));
            let same = results[1].admits(results[2].value);
            assert_eq!(same, matches!(optimizer, Optimizer::Sgd { .. }), "without memory they coincide, and only then");
        }
    }

    #[test]
    fn first_step_of_adam_has_the_size_of_the_rate() {
        for g in [1e-3, -0.5, 700.0] {
            let w = run(Precision::F64, ADAM, Decay::None, &[g], 0.0);
            assert!((w.value + 1e-3 * g.signum()).abs() < 1e-7);
        }
    }

    #[test]
    fn a_gradient_that_is_zero_up_to_rounding_has_a_finite_bound() {
        let p = Precision::F32;
        let gradient = Bounded::new(0.0, 1e-7, p);
        let w = ADAM.update(Decay::None, 1, p.exact(1.0), &mut Slots::zero(p), gradient);
        assert!(w.is_informative() && w.admits(1.0 - 1e-3) && w.admits(1.0 + 1e-3) && w.error < 0.02);
    }
}
