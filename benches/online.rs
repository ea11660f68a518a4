//! The online step of a layer: its weights follow one sample, then meet the next one.

mod common;

use common::peers::Peer;
use common::{Bench, By, Expected, RowMajor, Scalar, Work};
use dualprop::hebbian::{Decay, Optimizer, Update, online};
use dualprop::{Par, Runtime};
use dualprop_reference::bound::affine;

const RATE: f64 = 1.0 / 1024.0;
const KEEP: f64 = 1.0 - 1.0 / 1024.0;

struct State {
    weights: RowMajor<f32>,
    out: RowMajor<f32>,
}

fn main() {
    let mut bench = Bench::new();
    for (n_out, n_in) in [(256, 784), (512, 512), (1024, 1024), (4096, 4096)] {
        rows(&mut bench, n_out, n_in);
    }
    bench.finish();
}

fn rows(bench: &mut Bench, n_out: usize, n_in: usize) {
    let weights = RowMajor::<f32>::uniform(n_out, n_in, 1.0, 1);
    let (diff, mean) = (RowMajor::uniform(1, n_out, 1.0, 2), RowMajor::uniform(1, n_in, 1.0, 3));
    let next = RowMajor::<f32>::uniform(1, n_in, 1.0, 4);
    let runtime = Runtime::new(bench.isa, Par::Seq);
    let work = Work { flops: 4 * n_out * n_in, bytes: 8 * n_out * n_in };
    let mut group = bench.group(&format!("online/{n_out}x{n_in}"), work);

    let make = || State { weights: weights.clone(), out: RowMajor::zeros(1, n_out) };
    let check = |state: &mut State, keep: f64| {
        let precision = f32::PRECISION;
        let weight = |i: usize, j: usize| {
            let pair = (precision.parameter(RATE) * diff.exact(0, i), mean.exact(0, j));
            affine(precision.parameter(keep) * weights.exact(i, j), [pair])
        };
        Expected::new(n_out, n_in, weight).check(&state.weights, 0.0);
    };
    let ours = |state: &mut State| {
        // keep = 1 − rate·decay.
        let decay = Decay::Decoupled((1.0 - KEEP) / RATE);
        let step = Update { optimizer: Optimizer::Sgd, decay, learning_rate: RATE, step: 1, scale: -1.0 };
        let State { weights, out } = state;
        online(weights.view_mut(), &mut [], diff.row(0), mean.row(0), &step, next.row(0), out.row_mut(0), &runtime)
            .expect("shapes that fit");
    };
    group.row(By::Dualprop, "", make, ours, |state| check(state, KEEP));
    for peer in Peer::ALL {
        let keep = if peer.scales() { KEEP } else { 1.0 };
        let run = |state: &mut State| {
            let State { weights, out } = state;
            peer.product(weights.view_mut(), keep as f32, RATE as f32, diff.view().transpose(), mean.view());
            peer.product(out.view_mut(), 0.0, 1.0, next.view(), weights.view().transpose());
        };
        let what = if peer.scales() { "two products" } else { "two products (no decay)" };
        group.row(By::Peer(peer), what, make, run, |state| check(state, keep));
    }
}
