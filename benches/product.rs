//! Products of a batch with the weights of a layer, up and down.

mod common;

use std::cell::OnceCell;

use common::ours::Plan;
use common::passes::{BiasRelu, pass};
use common::peers::Peer;
use common::{Bench, By, Expected, RowMajor, Scalar, Work};
use dualprop::Activation;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::strided::{Input, Output};
use dualprop_reference::bound::{affine, dot};

fn main() {
    let mut bench = Bench::new();
    for (n_out, n_in) in [(256, 784), (512, 512), (1024, 1024), (4096, 4096)] {
        for batch in [1, 2, 4, 8, 16] {
            let layer = Layer::<f32>::new(n_out, n_in, batch);
            layer.forward(&mut bench, false);
            layer.top_down(&mut bench);
        }
    }
    for (n_out, n_in) in [(1024, 1024), (512, 784), (128, 128), (1000, 784)] {
        for batch in [50, 256] {
            Layer::<f32>::new(n_out, n_in, batch).rows(&mut bench);
        }
    }
    Layer::<f64>::new(1024, 1024, 256).rows(&mut bench);
    bench.finish();
}

/// Weights, and states on both sides of them.
struct Layer<T> {
    weights: RowMajor<T>,
    bias: RowMajor<T>,
    below: RowMajor<T>,
    above: RowMajor<T>,
}

/// What a row works with.
struct State<T> {
    plan: Plan<T>,
    drive: RowMajor<T>,
    mean: RowMajor<T>,
}

impl<T: Scalar> Layer<T> {
    fn new(n_out: usize, n_in: usize, batch: usize) -> Self {
        Self {
            weights: RowMajor::uniform(n_out, n_in, 1.0, 1),
            bias: RowMajor::uniform(1, n_out, 1.0, 2),
            below: RowMajor::uniform(batch, n_in, 1.0, 3),
            above: RowMajor::uniform(batch, n_out, 1.0, 4),
        }
    }

    fn rows(&self, bench: &mut Bench) {
        self.forward(bench, true);
        self.forward(bench, false);
        self.top_down(bench);
    }

    /// One multiply-add for each weight and sample; weights in, one state in, `outputs` matrices out.
    fn group<'a>(&self, bench: &'a mut Bench, what: &str, outputs: usize) -> common::Group<'a> {
        let (n_out, n_in, batch) = (self.weights.rows(), self.weights.cols(), self.below.rows());
        let states = if what == "top-down" { n_out + outputs * n_in } else { n_in + outputs * n_out };
        let work = Work { flops: 2 * n_out * n_in * batch, bytes: size_of::<T>() * (n_out * n_in + batch * states) };
        bench.group(&format!("product/{what} {} {n_out}x{n_in} B={batch}", T::NAME), work)
    }

    /// `S Wᵀ`, with bias and ReLU or without.
    fn forward(&self, bench: &mut Bench, relu: bool) {
        let isa = bench.isa;
        let (weights, below, bias) = (self.weights.view(), self.below.view(), self.bias.row(0));
        let (batch, n_out) = (self.below.rows(), self.weights.rows());
        let (what, outputs) = if relu { ("forward with bias and ReLU", 2) } else { ("forward", 1) };
        let mut group = self.group(bench, what, outputs);

        let expected = OnceCell::new();
        let reference = || {
            Expected::new(batch, n_out, |i, j| {
                let pairs = (0..self.weights.cols()).map(|p| (self.below.exact(i, p), self.weights.exact(j, p)));
                if relu { affine(self.bias.exact(0, j), pairs) } else { dot(T::PRECISION, pairs) }
            })
        };
        let check = |state: &mut State<T>| {
            let drive = expected.get_or_init(reference);
            drive.check(&state.drive, 0.0);
            if relu {
                drive.map(|a| dualprop_reference::activation::Activation::Relu.value(a)).check(&state.mean, 0.0);
            }
        };
        let state = |plan| State { plan, drive: RowMajor::zeros(batch, n_out), mean: RowMajor::zeros(batch, n_out) };
        let ours = |state: &mut State<T>, once: bool| {
            let drive = Output::new(state.drive.view_mut());
            let epilogue = if relu {
                let (bias, mean) = (Input::repeated(bias, batch), Output::new(state.mean.view_mut()));
                Epilogue::Forward { drive, bias, mean, activation: Activation::Relu }
            } else {
                Epilogue::Store { out: drive, scale: T::ONE }
            };
            if once { state.plan.forward_once(weights, below, epilogue) } else { state.plan.forward(below, epilogue) }
        };
        group.row(By::Dualprop, "packed beforehand", || state(Plan::packed(isa, weights)), |s| ours(s, false), check);
        group.row(By::Dualprop, "weights in place", || state(Plan::new(isa)), |s| ours(s, true), check);
        for peer in Peer::ALL {
            let run = |state: &mut State<T>| {
                peer.product(state.drive.view_mut(), T::ZERO, T::ONE, below, weights.transpose());
                if relu {
                    pass(BiasRelu { drive: &mut state.drive, mean: &mut state.mean, bias });
                }
            };
            let what = if relu { "then a pass" } else { "" };
            group.row(By::Peer(peer), what, || state(Plan::new(isa)), run, check);
        }
    }

    /// `Δ W`.
    fn top_down(&self, bench: &mut Bench) {
        let isa = bench.isa;
        let (weights, above) = (self.weights.view(), self.above.view());
        let (batch, n_in) = (self.above.rows(), self.weights.cols());
        let mut group = self.group(bench, "top-down", 1);

        let expected = OnceCell::new();
        let reference = || {
            Expected::new(batch, n_in, |i, j| {
                let pairs = (0..self.weights.rows()).map(|p| (self.above.exact(i, p), self.weights.exact(p, j)));
                dot(T::PRECISION, pairs)
            })
        };
        let check = |(_, out): &mut (Plan<T>, RowMajor<T>)| expected.get_or_init(reference).check(out, 0.0);
        let state = |plan| (plan, RowMajor::zeros(batch, n_in));
        let ours = |(plan, out): &mut (Plan<T>, RowMajor<T>), once: bool| {
            let epilogue = Epilogue::Store { out: Output::new(out.view_mut()), scale: T::ONE };
            if once { plan.top_down_once(weights, above, epilogue) } else { plan.top_down(above, epilogue) }
        };
        group.row(By::Dualprop, "packed beforehand", || state(Plan::packed(isa, weights)), |s| ours(s, false), check);
        group.row(By::Dualprop, "weights in place", || state(Plan::new(isa)), |s| ours(s, true), check);
        for peer in Peer::ALL {
            let run = |(_, out): &mut (Plan<T>, RowMajor<T>)| peer.product(out.view_mut(), T::ZERO, T::ONE, above, weights);
            group.row(By::Peer(peer), "", || state(Plan::new(isa)), run, check);
        }
    }
}
