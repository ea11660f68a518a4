//! Weight updates: a sum of outer products that becomes a step of an optimizer.

mod common;

use std::cell::OnceCell;

use common::ours::Plan;
use common::passes::{Adam, HeavyBall, pass};
use common::peers::Peer;
use common::{Bench, By, Expected, RowMajor, Scalar, Work};
use dualprop::network::{Decay, Optimizer};
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::optimizer::{Descent, Update};
use dualprop_reference::bound::scaled_dot;
use dualprop_reference::optimizer as reference;

/// Small, so that weights stay where they are however often criterion calls.
const RATE: f64 = 1e-4;
const DECAY: f64 = 1e-2;
const MU: f64 = 0.9;

fn main() {
    let mut bench = Bench::new();
    for (n_out, n_in) in [(1024, 1024), (256, 784), (1000, 784)] {
        for batch in [8, 32, 64, 256] {
            let layer = Layer::new(n_out, n_in, batch);
            layer.rows(&mut bench, "plain", Optimizer::Sgd);
            layer.rows(&mut bench, "momentum", Optimizer::Momentum { mu: MU });
            layer.rows(&mut bench, "Adam", Optimizer::ADAM);
        }
    }
    bench.finish();
}

/// Weights and the two factors of their gradient.
struct Layer {
    weights: RowMajor<f32>,
    below: RowMajor<f32>,
    above: RowMajor<f32>,
}

/// What a row works with.
struct State {
    plan: Plan<f32>,
    weights: RowMajor<f32>,
    moments: Vec<RowMajor<f32>>,
    /// Of the peers.
    gradient: RowMajor<f32>,
}

impl Layer {
    fn new(n_out: usize, n_in: usize, batch: usize) -> Self {
        Self {
            weights: RowMajor::uniform(n_out, n_in, 1.0, 1),
            below: RowMajor::uniform(batch, n_in, 1.0, 2),
            above: RowMajor::uniform(batch, n_out, 1.0, 3),
        }
    }

    /// One step of `optimizer` with decoupled decay.
    fn rows(&self, bench: &mut Bench, name: &str, optimizer: Optimizer) {
        let isa = bench.isa;
        let (n_out, n_in, batch) = (self.weights.rows(), self.weights.cols(), self.below.rows());
        let (below, above) = (self.below.view(), self.above.view());
        let scale = -1.0 / batch as f64;
        let work = Work {
            flops: 2 * n_out * n_in * batch,
            bytes: 8 * n_out * n_in * (1 + optimizer.moments()) + 4 * batch * (n_out + n_in),
        };
        let mut group = bench.group(&format!("update/{name} {n_out}x{n_in} B={batch}"), work);

        let update = Update { optimizer, decay: Decay::Decoupled(DECAY), learning_rate: RATE, step: 1, scale };
        let state = || State {
            plan: Plan::new(isa),
            weights: self.weights.clone(),
            moments: vec![RowMajor::zeros(n_out, n_in); optimizer.moments()],
            gradient: RowMajor::zeros(n_out, n_in),
        };
        let [expected, without_decay] = [OnceCell::new(), OnceCell::new()];
        let check = |state: &mut State| expected.get_or_init(|| self.reference(optimizer, DECAY)).check(&state.weights, 0.0);
        let ours = |state: &mut State| {
            let moments = state.moments.iter_mut().map(RowMajor::view_mut);
            let descent = Descent::new(state.weights.view_mut(), moments, update);
            state.plan.outer(above, below, Epilogue::Update(descent));
        };
        group.row(By::Dualprop, "", state, ours, check);

        let (keep, rate) = ((1.0 - RATE * DECAY) as f32, RATE as f32);
        for peer in Peer::ALL {
            if optimizer == Optimizer::Sgd {
                let accumulate = |state: &mut State, keep: f32| {
                    peer.product(state.weights.view_mut(), keep, (-RATE * scale) as f32, above.transpose(), below);
                };
                if peer.scales() {
                    group.row(By::Peer(peer), "decay by beta", state, |s| accumulate(s, keep), check);
                }
                let check = |state: &mut State| {
                    without_decay.get_or_init(|| self.reference(optimizer, 0.0)).check(&state.weights, 0.0);
                };
                group.row(By::Peer(peer), "beta = 1 (no decay)", state, |s| accumulate(s, 1.0), check);
            } else {
                let two_passes = |state: &mut State| {
                    peer.product(state.gradient.view_mut(), 0.0, scale as f32, above.transpose(), below);
                    let State { weights, moments, gradient, .. } = state;
                    match optimizer {
                        Optimizer::Momentum { .. } => pass(HeavyBall { weights, moments, gradient, mu: MU as f32, keep, rate }),
                        _ => pass(Adam { weights, moments, gradient, keep, rate, step: 1 }),
                    }
                };
                group.row(By::Peer(peer), "gradient, then a pass", state, two_passes, check);
            }
        }
    }

    /// The weights after the first step.
    fn reference(&self, optimizer: Optimizer, decay: f64) -> Expected {
        let precision = f32::PRECISION;
        let scale = precision.parameter(-1.0 / self.below.rows() as f64);
        let rule = match optimizer {
            Optimizer::Sgd => reference::Optimizer::Sgd { rate: RATE },
            Optimizer::Momentum { mu } => reference::Optimizer::Momentum { rate: RATE, momentum: mu },
            Optimizer::Adam { beta1, beta2, epsilon } => reference::Optimizer::Adam { rate: RATE, beta1, beta2, epsilon },
            other => panic!("the reference has no {other:?}"),
        };
        Expected::new(self.weights.rows(), self.weights.cols(), |i, j| {
            let pairs = (0..self.below.rows()).map(|t| (self.above.exact(t, i), self.below.exact(t, j)));
            let mut slots = reference::Slots::zero(precision);
            let decay = reference::Decay::Decoupled(decay);
            rule.update(decay, 1, self.weights.exact(i, j), &mut slots, scaled_dot(scale, pairs))
        })
    }
}
