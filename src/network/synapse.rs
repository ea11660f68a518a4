//! A layer of weights in training: packed copies, optimizer state, and the three products.

use dualprop_kernels::activation::Activation;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::optimizer::{Descent, Optimizer, Update};
use dualprop_kernels::pack::Panels;
use dualprop_kernels::strided::{Input, Output};
use dualprop_kernels::vector::Real;
use faer::{MatMut, MatRef};

use crate::matrix::RowMajor;
use crate::runtime::Runtime;
use crate::workspace::Workspace;

/// Copies of weights in the layouts that the products like, made when first asked for after a change.
#[derive(Clone, Debug)]
struct Packed<T> {
    panels: Panels<T>,
    fresh: bool,
}

impl<T: Real> Packed<T> {
    fn new() -> Self {
        Self { panels: Panels::new(), fresh: false }
    }

    fn get(&mut self, runtime: &Runtime, operand: MatRef<'_, T>) -> &Panels<T> {
        if !self.fresh {
            self.panels.pack(runtime.isa(), runtime.par(), operand);
            self.fresh = true;
        }
        &self.panels
    }
}

/// Steps after which moments that have decayed to subnormal numbers become zero. By decay alone they never would, 0.9 times four of the smallest
/// number being four of them again, and square roots and quotients of them take thrice the time.
const FLUSH: u64 = 256;

/// The state of an optimizer.
#[derive(Clone, Debug)]
pub(crate) struct Moments<T>(Vec<RowMajor<T>>);

impl<T: Real> Moments<T> {
    pub(crate) fn new(optimizer: Optimizer, rows: usize, cols: usize) -> Self {
        Self((0..optimizer.moments()).map(|_| RowMajor::zeros(rows, cols)).collect())
    }

    /// One step of the optimizer on `weights`, which have the shape of these moments; at every [`FLUSH`]th they are first rid of subnormal numbers.
    fn descend<'a>(&'a mut self, weights: MatMut<'a, T>, update: &Update) -> Epilogue<'a, T> {
        if update.step.is_multiple_of(FLUSH) {
            for moment in &mut self.0 {
                for row in 0..moment.rows() {
                    moment.row_mut(row).iter_mut().filter(|x| x.abs() < T::from_f64(T::NORMAL)).for_each(|x| *x = T::ZERO);
                }
            }
        }
        Epilogue::Update(Descent::new(weights, self.0.iter_mut().map(RowMajor::view_mut), *update))
    }
}

/// Feedback weights of KP-DP.
#[derive(Clone, Debug)]
pub(crate) struct Feedback<T> {
    pub(crate) weights: RowMajor<T>,
    moments: Moments<T>,
}

/// What a layer of weights needs beside the weights.
#[derive(Clone, Debug)]
pub(crate) struct Synapse<T> {
    up: Packed<T>,
    down: Packed<T>,
    moments: Moments<T>,
    bias_moments: Moments<T>,
    feedback: Option<Feedback<T>>,
    /// Whether the weights serve several products between two updates.
    repeats: bool,
}

impl<T: Real> Synapse<T> {
    pub(crate) fn new(optimizer: Optimizer, n_out: usize, n_in: usize, feedback: Option<RowMajor<T>>, repeats: bool) -> Self {
        Self {
            up: Packed::new(),
            down: Packed::new(),
            moments: Moments::new(optimizer, n_out, n_in),
            bias_moments: Moments::new(optimizer, 1, n_out),
            feedback: feedback.map(|weights| Feedback { weights, moments: Moments::new(optimizer, n_out, n_in) }),
            repeats,
        }
    }

    /// The packed copies are of other weights than the layer has.
    pub(crate) fn stale(&mut self) {
        self.up.fresh = false;
        self.down.fresh = false;
    }

    /// `below·Wᵀ`, `batch × n_out`, to an epilogue.
    pub(crate) fn forward(
        &mut self,
        work: &mut Workspace<T>,
        weights: MatRef<'_, T>,
        below: MatRef<'_, T>,
        epilogue: Epilogue<'_, T>,
    ) {
        if self.repeats || self.up.fresh {
            let panels = self.up.get(work.runtime(), weights.transpose());
            work.packed(panels, below, epilogue);
        } else {
            work.forward(weights, below, epilogue);
        }
    }

    /// Packs the weights for [`forward`](Self::forward) unless that is done.
    pub(crate) fn pack(&mut self, runtime: &Runtime, weights: MatRef<'_, T>) {
        self.up.get(runtime, weights.transpose());
    }

    /// The weights as they were when packed last.
    pub(crate) fn packed(&self) -> &Panels<T> {
        &self.up.panels
    }

    /// `drive ← below·Wᵀ + b`.
    pub(crate) fn drive(
        &mut self,
        work: &mut Workspace<T>,
        (weights, bias): (MatRef<'_, T>, &[T]),
        below: MatRef<'_, T>,
        drive: MatMut<'_, T>,
    ) {
        let epilogue = Epilogue::Drive { drive: Output::new(drive), bias: Input::repeated(bias, below.nrows()) };
        self.forward(work, weights, below, epilogue);
    }

    /// `drive ← below·Wᵀ + b`, `mean ← f(drive)`.
    pub(crate) fn activate(
        &mut self,
        work: &mut Workspace<T>,
        (weights, bias): (MatRef<'_, T>, &[T]),
        below: MatRef<'_, T>,
        (drive, mean, activation): (MatMut<'_, T>, MatMut<'_, T>, Activation),
    ) {
        let bias = Input::repeated(bias, below.nrows());
        let epilogue = Epilogue::Forward { drive: Output::new(drive), bias, mean: Output::new(mean), activation };
        self.forward(work, weights, below, epilogue);
    }

    /// `above·W`, `batch × n_in`, to an epilogue, through the feedback weights if the layer has them.
    pub(crate) fn feed_back(
        &mut self,
        work: &mut Workspace<T>,
        weights: MatRef<'_, T>,
        above: MatRef<'_, T>,
        epilogue: Epilogue<'_, T>,
    ) {
        let weights = self.feedback.as_ref().map_or(weights, |feedback| feedback.weights.view());
        if self.repeats {
            work.packed(self.down.get(work.runtime(), weights), above, epilogue);
        } else {
            work.top_down(weights, above, epilogue);
        }
    }

    /// The feedback weights of KP-DP.
    pub(crate) fn feedback(&self) -> Option<MatRef<'_, T>> {
        self.feedback.as_ref().map(|feedback| feedback.weights.view())
    }

    /// Updates weights, biases and feedback weights along `scale·aboveᵀ·below`; the bias takes the batch of `ones` for `below`.
    pub(crate) fn update(
        &mut self,
        work: &mut Workspace<T>,
        weights: MatMut<'_, T>,
        bias: Option<&mut [T]>,
        (above, below, ones): (MatRef<'_, T>, MatRef<'_, T>, &[T]),
        update: &Update,
    ) {
        work.outer(above, below, self.moments.descend(weights, update));
        if let Some(Feedback { weights, moments }) = &mut self.feedback {
            work.outer(above, below, moments.descend(weights.view_mut(), update));
        }
        if let Some(bias) = bias {
            let n_out = bias.len();
            let descent = self.bias_moments.descend(MatMut::from_row_major_slice_mut(bias, 1, n_out), update);
            work.top_down(above, MatRef::from_row_major_slice(ones, 1, ones.len()), descent);
        }
        self.stale();
    }
}

/// `gradient ← scale·aboveᵀ·below`, `bias_gradient ← scale·Σ above`.
pub(crate) fn gradient<T: Real>(
    work: &mut Workspace<T>,
    gradient: MatMut<'_, T>,
    bias_gradient: &mut [T],
    (above, below, ones): (MatRef<'_, T>, MatRef<'_, T>, &[T]),
    scale: f64,
) {
    let scale = T::from_f64(scale);
    work.outer(above, below, Epilogue::Store { out: Output::new(gradient), scale });
    let n_out = bias_gradient.len();
    let out = Output::new(MatMut::from_row_major_slice_mut(bias_gradient, 1, n_out));
    work.top_down(above, MatRef::from_row_major_slice(ones, 1, ones.len()), Epilogue::Store { out, scale });
}

#[cfg(test)]
mod tests {
    use super::*;
    use dualprop_kernels::optimizer::Decay;
    use faer::prelude::ReborrowMut;

    #[test]
    fn subnormal_moments_end() {
        let mut weights = RowMajor::<f32>::zeros(2, 3);
        let mut moments = Moments::new(Optimizer::ADAM, 2, 3);
        let values = [f32::MIN_POSITIVE, -f32::MIN_POSITIVE / 2.0, f32::from_bits(1)];
        for moment in &mut moments.0 {
            moment.row_mut(1).copy_from_slice(&values);
        }
        let step = |step| Update { optimizer: Optimizer::ADAM, decay: Decay::None, learning_rate: 1e-3, step, scale: 1.0 };
        for (t, after) in [(FLUSH - 1, values), (FLUSH, [f32::MIN_POSITIVE, 0.0, 0.0])] {
            moments.descend(weights.view_mut().rb_mut(), &step(t));
            for moment in &moments.0 {
                assert_eq!((moment.row(0), moment.row(1)), (&[0.0; 3][..], &after[..]), "step {t}");
            }
        }
    }
}
