//! Weight updates: a sum of outer products that becomes a step of an optimizer.

mod common;

use std::cell::OnceCell;

use common::passes::{Adam, HeavyBall, pass};
use common::peers::Peer;
use common::{Bench, By, Expected, RowMajor, Scalar, Work};
use dualprop::hebbian::{self, Decay, Optimizer, Update};
use dualprop::{Isa, Par, Runtime, Workspace};
use dualprop_reference::bound::scaled_dot;
use dualprop_reference::optimizer as reference;

/// Small, so that weights stay where they are however often criterion calls.
const RATE: f64 = 1e-4;
const DECAY: f64 = 1e-2;
const MU: f64 = 0.9;

fn main() {
    let mut bench = Bench::new();
    for (n_out, n_in) in [(1024, 1024), (256, 784), (1000, 784)] {
        for batch in [1, 8, 16, 32, 64, 256] {
            let layer = Layer::<f32>::new(n_out, n_in, batch);
            layer.plain(&mut bench);
            layer.with_moments(&mut bench, "momentum", Optimizer::Momentum { mu: MU });
            layer.with_moments(&mut bench, "Adam", Optimizer::ADAM);
        }
    }
    // What a call costs.
    Layer::<f32>::new(10, 10, 1).plain(&mut bench);
    for (n_out, n_in, batch) in [(256, 784, 32), (1000, 784, 100), (1024, 1024, 64)] {
        Layer::<f64>::new(n_out, n_in, batch).plain(&mut bench);
    }
    bench.finish();
}

/// Weights and the two factors of their gradient.
struct Layer<T> {
    weights: RowMajor<T>,
    below: RowMajor<T>,
    above: RowMajor<T>,
}

/// What a row works with.
struct State<T> {
    work: Workspace<T>,
    weights: RowMajor<T>,
    moments: Vec<RowMajor<T>>,
    /// Of the peers.
    gradient: RowMajor<T>,
}

impl<T: Scalar> Layer<T> {
    fn new(n_out: usize, n_in: usize, batch: usize) -> Self {
        Self {
            weights: RowMajor::uniform(n_out, n_in, 1.0, 1),
            below: RowMajor::uniform(batch, n_in, 1.0, 2),
            above: RowMajor::uniform(batch, n_out, 1.0, 3),
        }
    }

    /// What turns the sum over the batch into the gradient.
    fn scale(&self) -> f64 {
        -1.0 / self.below.rows() as f64
    }

    fn state(&self, isa: Isa, optimizer: Optimizer) -> State<T> {
        let zeros = || RowMajor::zeros(self.weights.rows(), self.weights.cols());
        let moments = (0..optimizer.moments()).map(|_| zeros()).collect();
        let work = Workspace::new(&Runtime::new(isa, Par::Seq));
        State { work, weights: self.weights.clone(), moments, gradient: zeros() }
    }

    fn group<'a>(&self, bench: &'a mut Bench, name: &str, optimizer: Optimizer) -> common::Group<'a> {
        let (n_out, n_in, batch) = (self.weights.rows(), self.weights.cols(), self.below.rows());
        let numbers = 2 * n_out * n_in * (1 + optimizer.moments()) + batch * (n_out + n_in);
        let work = Work { flops: 2 * n_out * n_in * batch, bytes: size_of::<T>() * numbers };
        let name = if T::NAME == "f32" { name.to_owned() } else { format!("{name} {}", T::NAME) };
        bench.group(&format!("update/{name} {n_out}x{n_in} B={batch}"), work)
    }

    /// Our step of `optimizer` with decoupled decay.
    fn ours(&self, state: &mut State<T>, optimizer: Optimizer) {
        let decay = Decay::Decoupled(DECAY);
        let update = Update { optimizer, decay, learning_rate: RATE, step: 1, scale: self.scale() };
        let State { work, weights, moments, .. } = state;
        let (diff, mean) = (self.above.view(), self.below.view());
        match &mut moments[..] {
            [] => hebbian::update(weights.view_mut(), &mut [], diff, mean, &update, work),
            [m] => hebbian::update(weights.view_mut(), &mut [m.view_mut()], diff, mean, &update, work),
            [m, v, ..] => hebbian::update(weights.view_mut(), &mut [m.view_mut(), v.view_mut()], diff, mean, &update, work),
        }
        .expect("shapes that fit");
    }

    /// Gradient descent.
    fn plain(&self, bench: &mut Bench) {
        let (below, above) = (self.below.view(), self.above.view());
        let [decayed, without_decay] = [OnceCell::new(), OnceCell::new()];
        let check = |state: &mut State<T>| {
            decayed.get_or_init(|| self.reference(Optimizer::Sgd, DECAY)).check(&state.weights, 0.0);
        };
        let accumulate = |state: &mut State<T>, peer: Peer, keep: f64| {
            let (keep, scale) = (T::from_f64(keep), T::from_f64(-RATE * self.scale()));
            peer.product(state.weights.view_mut(), keep, scale, above.transpose(), below);
        };
        let isa = bench.isa;
        let make = || self.state(isa, Optimizer::Sgd);
        let mut group = self.group(bench, "plain", Optimizer::Sgd);
        group.row(By::Dualprop, "", make, |state| self.ours(state, Optimizer::Sgd), check);
        for peer in Peer::ALL {
            if peer.scales() {
                group.row(By::Peer(peer), "decay by beta", make, |s| accumulate(s, peer, 1.0 - RATE * DECAY), check);
            }
            let check = |state: &mut State<T>| {
                without_decay.get_or_init(|| self.reference(Optimizer::Sgd, 0.0)).check(&state.weights, 0.0);
            };
            group.row(By::Peer(peer), "beta = 1 (no decay)", make, |s| accumulate(s, peer, 1.0), check);
        }
    }

    /// The weights after the first step.
    fn reference(&self, optimizer: Optimizer, decay: f64) -> Expected {
        let precision = T::PRECISION;
        let scale = precision.parameter(self.scale());
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

impl Layer<f32> {
    /// An optimizer with moments; peers take the gradient first.
    fn with_moments(&self, bench: &mut Bench, name: &str, optimizer: Optimizer) {
        let (isa, below, above) = (bench.isa, self.below.view(), self.above.view());
        let expected = OnceCell::new();
        let check = |state: &mut State<f32>| expected.get_or_init(|| self.reference(optimizer, DECAY)).check(&state.weights, 0.0);
        let make = || self.state(isa, optimizer);
        let mut group = self.group(bench, name, optimizer);
        group.row(By::Dualprop, "", make, |state| self.ours(state, optimizer), check);
        let (keep, rate) = ((1.0 - RATE * DECAY) as f32, RATE as f32);
        for peer in Peer::ALL {
            let two_passes = |state: &mut State<f32>| {
                peer.product(state.gradient.view_mut(), 0.0, self.scale() as f32, above.transpose(), below);
                let State { weights, moments, gradient, .. } = state;
                match optimizer {
                    Optimizer::Momentum { .. } => pass(HeavyBall { weights, moments, gradient, mu: MU as f32, keep, rate }),
                    _ => pass(Adam { weights, moments, gradient, keep, rate, step: 1 }),
                }
            };
            group.row(By::Peer(peer), "gradient, then a pass", make, two_passes, check);
        }
    }
}
