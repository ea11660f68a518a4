//! Plain forward passes outside of training.

use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::strided::{Input, Output};
use dualprop_kernels::threads;
use dualprop_kernels::vector::Real;
use faer::prelude::ReborrowMut;
use faer::{MatMut, MatRef, Par};

use super::Network;
use super::synapse::Synapse;
use crate::matrix::RowMajor;
use crate::runtime::Runtime;
use crate::workspace::Workspace;

/// Samples that a thread takes through all layers at once.
const CHUNK: usize = 128;

/// Memory for plain forward passes outside of training. Threads share out the samples, and each goes through all layers on its own.
#[derive(Clone, Debug)]
pub(crate) struct Evaluator<T> {
    drive: RowMajor<T>,
    means: [RowMajor<T>; 2],
    runtime: Runtime,
    /// One for each thread.
    works: Vec<Workspace<T>>,
}

/// States of some samples.
struct States<'a, T> {
    drive: MatMut<'a, T>,
    means: [MatMut<'a, T>; 2],
}

impl<'a, T: Real> States<'a, T> {
    /// Those of the first `rows` samples, and the others.
    fn split_at(self, rows: usize) -> (Self, Self) {
        let Self { drive, means: [even, odd] } = self;
        let ((drive, drives), (even, evens), (odd, odds)) =
            (drive.split_at_row_mut(rows), even.split_at_row_mut(rows), odd.split_at_row_mut(rows));
        (Self { drive, means: [even, odd] }, Self { drive: drives, means: [evens, odds] })
    }
}

/// A network with packed weights.
#[derive(Clone, Copy)]
struct Layers<'a, T> {
    network: &'a Network<T>,
    synapses: &'a [Synapse<T>],
    zeros: &'a [T],
}

impl<T: Real> Evaluator<T> {
    /// For at least `rows` samples at once.
    pub(crate) fn new(rows: usize, widest: usize, runtime: &Runtime) -> Self {
        let rows = rows.max(CHUNK * runtime.threads());
        let zeros = || RowMajor::zeros(rows, widest);
        let work = Workspace::new(&Runtime::new(runtime.isa(), Par::Seq));
        Self { drive: zeros(), means: [zeros(), zeros()], runtime: *runtime, works: vec![work; runtime.threads()] }
    }

    /// Samples that [`predict`](Self::predict) takes at most.
    pub(crate) fn capacity(&self) -> usize {
        self.drive.rows()
    }

    /// Outputs for at most as many samples as there is room for.
    pub(crate) fn predict(
        &mut self,
        network: &Network<T>,
        synapses: &mut [Synapse<T>],
        zeros: &[T],
        x: MatRef<'_, T>,
    ) -> MatRef<'_, T> {
        let rows = x.nrows();
        for (k, synapse) in synapses.iter_mut().enumerate() {
            synapse.pack(&self.runtime, network.weights(k));
        }
        let threads = threads::tasks(self.runtime.par(), rows * network.largest()).min(rows.div_ceil(32));
        let [even, odd] = &mut self.means;
        let states = States { drive: self.drive.view_mut(), means: [even.view_mut(), odd.view_mut()] };
        Layers { network, synapses, zeros }.share(&mut self.works[..threads], states.split_at(rows).0, x);
        self.drive.view().submatrix(0, 0, rows, *network.widths.last().expect("a network has layers"))
    }
}

impl<T: Real> Layers<'_, T> {
    fn share(self, works: &mut [Workspace<T>], states: States<'_, T>, x: MatRef<'_, T>) {
        if let [work] = works {
            return self.forward(work, states, x);
        }
        let (left, right) = works.split_at_mut(works.len() / 2);
        let rows = x.nrows() * left.len() / (left.len() + right.len());
        let ((first, second), (x, rest)) = (states.split_at(rows), x.split_at_row(rows));
        threads::join(|| self.share(left, first, x), || self.share(right, second, rest));
    }

    fn forward(self, work: &mut Workspace<T>, mut states: States<'_, T>, x: MatRef<'_, T>) {
        let (rows, layers) = (x.nrows(), self.network.layers());
        for k in 1..=layers {
            let (n_in, n_out) = (self.network.widths[k - 1], self.network.widths[k]);
            let [even, odd] = &mut states.means;
            let (from, to) = if k % 2 == 0 { (odd, even) } else { (even, odd) };
            let below = if k == 1 { x } else { from.as_ref().subcols(0, n_in) };
            let bias = Input::repeated(self.network.incoming(k, self.zeros).1, rows);
            let drive = Output::new(states.drive.rb_mut().subcols_mut(0, n_out));
            let epilogue = if k < layers {
                let mean = Output::new(to.rb_mut().subcols_mut(0, n_out));
                Epilogue::Forward { drive, bias, mean, activation: self.network.activation }
            } else {
                Epilogue::Drive { drive, bias }
            };
            work.packed(self.synapses[k - 1].packed(), below, epilogue);
        }
    }
}
