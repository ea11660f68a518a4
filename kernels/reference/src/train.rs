//! One training step: inference, gradients, optimizer.

use crate::bound::Bounded;
use crate::network::{Gradients, Method, Network, Recipe, States};
use crate::optimizer::{Decay, Optimizer, Slots};
use crate::product::Matrix;
use crate::schedule::Schedule;

/// A network in training.
#[derive(Clone, Debug)]
pub struct Trainer {
    /// The network.
    pub network: Network,
    /// Optimizer; its rate may be changed between steps.
    pub optimizer: Optimizer,
    /// Weight decay, of weights, biases and feedback weights alike (1.2.6, 1.3.3).
    pub decay: Decay,
    /// Optimizer's memory of `weights[k]`, row-major.
    pub weight_slots: Vec<Vec<Slots>>,
    /// Optimizer's memory of `biases[k]`.
    pub bias_slots: Vec<Vec<Slots>>,
    /// Optimizer's memory of `feedback[k]`, row-major.
    pub feedback_slots: Vec<Vec<Slots>>,
    /// States the last inference left.
    pub states: Option<States>,
    /// Weight updates so far.
    pub updates: u32,
}

impl Trainer {
    /// A network before its first step.
    pub fn new(network: Network, optimizer: Optimizer, decay: Decay) -> Self {
        let zero = Slots::zero(network.precision);
        let like = |matrices: &[Matrix]| matrices.iter().map(|m| vec![zero; m.data.len()]).collect::<Vec<_>>();
        Trainer {
            weight_slots: like(&network.weights),
            bias_slots: network.weights.iter().map(|w| vec![zero; w.rows]).collect(),
            feedback_slots: like(network.feedback.as_deref().unwrap_or(&[])),
            states: None,
            updates: 0,
            network,
            optimizer,
            decay,
        }
    }

    /// Inference on the batch and one weight update; for [`Schedule::MultiStep`]`(N)`, N passes with an update after each (2.3).
    ///
    /// # Panics
    /// As [`Network::infer`].
    pub fn step(&mut self, recipe: &Recipe, x: &Matrix, y: &Matrix) {
        let mut states = self.network.infer(recipe, x, y, self.states.as_ref());
        self.apply(recipe, &self.network.gradients(recipe, &states));
        if let Schedule::MultiStep(passes) = recipe.schedule {
            for _ in 1..passes {
                self.network.resume(recipe, x, y, &mut states);
                self.apply(recipe, &self.network.gradients(recipe, &states));
            }
        }
        self.states = Some(states);
    }

    /// One optimizer step with given gradients. For KP-DP the feedback weights receive the same gradient and the same decay, of
    /// themselves (2.6); their optimizer memory is their own.
    pub fn apply(&mut self, recipe: &Recipe, gradients: &Gradients) {
        self.updates += 1;
        let (optimizer, decay, t) = (self.optimizer, self.decay, self.updates);
        let update = |weights: &mut [Bounded], slots: &mut [Slots], gradients: &[Bounded]| {
            assert!(weights.len() == slots.len() && weights.len() == gradients.len(), "shapes of weights and gradients differ");
            for ((weight, slots), &gradient) in weights.iter_mut().zip(slots).zip(gradients) {
                *weight = optimizer.update(decay, t, *weight, slots, gradient);
            }
        };
        for k in 0..self.network.layers() {
            let gradient = &gradients.weights[k].data;
            update(&mut self.network.weights[k].data, &mut self.weight_slots[k], gradient);
            if let Some(biases) = &mut self.network.biases {
                update(&mut biases[k], &mut self.bias_slots[k], &gradients.biases[k]);
            }
            if let (Method::KpDp { .. }, Some(feedback)) = (&recipe.method, &mut self.network.feedback) {
                update(&mut feedback[k].data, &mut self.feedback_slots[k], gradient);
            }
        }
    }
}

#[cfg(test)]
mod tests;
