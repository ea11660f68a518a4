//! Plain forward passes outside of training.

use dualprop_kernels::vector::Real;
use faer::MatRef;

use super::Network;
use super::synapse::Synapse;
use crate::matrix::RowMajor;
use crate::workspace::Workspace;

/// Memory for plain forward passes outside of training.
#[derive(Clone, Debug)]
pub(crate) struct Evaluator<T> {
    drive: RowMajor<T>,
    means: [RowMajor<T>; 2],
}

impl<T: Real> Evaluator<T> {
    pub(crate) fn new(rows: usize, widest: usize) -> Self {
        let zeros = || RowMajor::zeros(rows, widest);
        Self { drive: zeros(), means: [zeros(), zeros()] }
    }

    /// Outputs for at most as many rows as it was made for.
    pub(crate) fn predict(
        &mut self,
        work: &mut Workspace<T>,
        network: &Network<T>,
        synapses: &mut [Synapse<T>],
        zeros: &[T],
        x: MatRef<'_, T>,
    ) -> MatRef<'_, T> {
        let (rows, layers) = (x.nrows(), network.layers());
        for k in 1..=layers {
            let (n_in, n_out) = (network.widths[k - 1], network.widths[k]);
            let [even, odd] = &mut self.means;
            let (from, to) = if k % 2 == 0 { (odd, even) } else { (even, odd) };
            let below = if k == 1 { x } else { from.view().submatrix(0, 0, rows, n_in) };
            let incoming = network.incoming(k, zeros);
            let drive = self.drive.view_mut().submatrix_mut(0, 0, rows, n_out);
            if k < layers {
                let mean = to.view_mut().submatrix_mut(0, 0, rows, n_out);
                synapses[k - 1].activate(work, incoming, below, (drive, mean, network.activation), false);
            } else {
                synapses[k - 1].drive(work, incoming, below, drive, false);
            }
        }
        self.drive.view().submatrix(0, 0, rows, network.widths[layers])
    }
}
