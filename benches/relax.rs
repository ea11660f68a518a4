//! Relaxation of a hidden layer by DP⊤: drive from below, feedback from above, both compartments.

mod common;

use common::ours::Plan;
use common::passes::{Dyads, pass};
use common::peers::Peer;
use common::{Bench, By, Expected, RowMajor, Scalar, Work};
use dualprop::Activation;
use dualprop_kernels::epilogue::{Epilogue, Nudge};
use dualprop_kernels::strided::{Input, Output};
use dualprop_reference::activation::Activation as Slow;
use dualprop_reference::bound::{affine, dot};
use dualprop_reference::relax;
use std::cell::OnceCell;

/// α = ½.
const NUDGE: Nudge<f32> = Nudge { up: 0.5, down: -0.5, gain: 1.0, alpha: 0.5 };

/// What the peers may be further off than the reference allows: their `tanh` is good to a few ulp, and they subtract compartments.
const PEER_SLACK: f64 = 1e-6;

fn main() {
    let mut bench = Bench::new();
    for (below, here, above, batch) in [(784, 512, 512, 32), (512, 512, 10, 32), (784, 1000, 1000, 100)] {
        let layer = Layer::new(below, here, above, batch);
        layer.rows(&mut bench, Activation::Relu, Slow::Relu);
        layer.rows(&mut bench, Activation::Tanh, Slow::Tanh);
    }
    bench.finish();
}

/// A layer with the weights from below and to above.
struct Layer {
    incoming: RowMajor<f32>,
    bias: RowMajor<f32>,
    outgoing: RowMajor<f32>,
    below: RowMajor<f32>,
    above: RowMajor<f32>,
}

/// What a row works with.
struct State {
    up: Plan<f32>,
    down: Plan<f32>,
    drive: RowMajor<f32>,
    /// Of the peers.
    feedback: RowMajor<f32>,
    mean: RowMajor<f32>,
    diff: RowMajor<f32>,
}

impl Layer {
    fn new(below: usize, here: usize, above: usize, batch: usize) -> Self {
        let size = |n: usize| (3.0 / n as f64).sqrt();
        Self {
            incoming: RowMajor::uniform(here, below, size(below), 1),
            bias: RowMajor::uniform(1, here, 0.5, 2),
            outgoing: RowMajor::uniform(above, here, size(above), 3),
            below: RowMajor::uniform(batch, below, 1.0, 4),
            above: RowMajor::uniform(batch, above, 0.1, 5),
        }
    }

    fn rows(&self, bench: &mut Bench, activation: Activation, slow: Slow) {
        let isa = bench.isa;
        let (batch, n_in) = self.below.view().shape();
        let (n_above, here) = self.outgoing.view().shape();
        let (incoming, outgoing) = (self.incoming.view(), self.outgoing.view());
        let (below, above, bias) = (self.below.view(), self.above.view(), self.bias.row(0));
        let work = Work {
            flops: 2 * batch * here * (n_in + n_above),
            bytes: 4 * (here * (n_in + n_above) + batch * (n_in + n_above + 4 * here)),
        };
        let mut group = bench.group(&format!("relax/{activation} {n_in}-[{here}]-{n_above} B={batch}"), work);

        let expected = OnceCell::new();
        let check = |state: &State, slack: f64| {
            let [mean, diff] = expected.get_or_init(|| self.reference(slow));
            mean.check(&state.mean, slack);
            diff.check(&state.diff, slack);
        };
        let zeros = || RowMajor::zeros(batch, here);
        let state = |up, down| State { up, down, drive: zeros(), feedback: zeros(), mean: zeros(), diff: zeros() };
        let packed = || state(Plan::packed(isa, incoming), Plan::packed(isa, outgoing));
        let plain = || state(Plan::new(isa), Plan::new(isa));
        let ours = |state: &mut State, once: bool| {
            let up = Epilogue::Drive { drive: Output::new(state.drive.view_mut()), bias: Input::repeated(bias, batch) };
            if once {
                state.up.forward_once(incoming, below, up)
            } else {
                state.up.forward(below, up)
            }
            let down = Epilogue::Dyad {
                drive: Input::new(state.drive.view()),
                feedback: None,
                mean: Output::new(state.mean.view_mut()),
                diff: Output::new(state.diff.view_mut()),
                nudge: NUDGE,
                damping: None,
                activation,
            };
            if once { state.down.top_down_once(outgoing, above, down) } else { state.down.top_down(above, down) }
        };
        group.row(By::Dualprop, "packed beforehand", packed, |s| ours(s, false), |s| check(s, 0.0));
        group.row(By::Dualprop, "weights used once", plain, |s| ours(s, true), |s| check(s, 0.0));
        for peer in Peer::ALL {
            let run = |state: &mut State| {
                peer.product(state.drive.view_mut(), 0.0, 1.0, below, incoming.transpose());
                peer.product(state.feedback.view_mut(), 0.0, 1.0, above, outgoing);
                let State { drive, feedback, mean, diff, .. } = state;
                pass(Dyads { drive, feedback, bias, mean, diff, tanh: activation == Activation::Tanh });
            };
            group.row(By::Peer(peer), "two products, then a pass", plain, run, |s| check(s, PEER_SLACK));
        }
    }

    /// Mean and difference.
    fn reference(&self, activation: Slow) -> [Expected; 2] {
        let precision = f32::PRECISION;
        let dyad = |i: usize, j: usize| {
            let up = (0..self.below.cols()).map(|p| (self.below.exact(i, p), self.incoming.exact(j, p)));
            let down = (0..self.above.cols()).map(|p| (self.above.exact(i, p), self.outgoing.exact(p, j)));
            let (drive, feedback) = (affine(self.bias.exact(0, j), up), dot(precision, down));
            relax::relax(activation, relax::Nudge::dp_transpose(precision, 0.5), drive, feedback)
        };
        let (batch, here) = (self.below.rows(), self.incoming.rows());
        [Expected::new(batch, here, |i, j| dyad(i, j).mean), Expected::new(batch, here, |i, j| dyad(i, j).diff)]
    }
}
