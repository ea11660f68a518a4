//! A layer of weights in training: packed copies, optimizer state, and the three products.

use dualprop_kernels::activation::Activation;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::optimizer::{Descent, Optimizer, Update};
use dualprop_kernels::pack::{Bands, Panels};
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::strided::{Input, Output};
use dualprop_kernels::vector::Real;
use faer::{MatMut, MatRef};

use crate::matrix::RowMajor;
use crate::runtime::Runtime;

/// Up to this batch, weights that are used once are read where they are; above, packing them pays.
const SMALL_BATCH: usize = 16;

/// Memory that all layers share.
#[derive(Clone, Debug)]
pub(crate) struct Workspace<T> {
    bands: Bands<T>,
    panels: Panels<T>,
    scratch: Scratch<T>,
}

impl<T: Real> Workspace<T> {
    pub(crate) fn new() -> Self {
        Self { bands: Bands::new(), panels: Panels::new(), scratch: Scratch::new() }
    }
}

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
            self.panels.pack(runtime.isa(), operand);
            self.fresh = true;
        }
        &self.panels
    }
}

/// Weights with the state of their optimizer.
#[derive(Clone, Debug)]
pub(crate) struct Moments<T>(Vec<RowMajor<T>>);

impl<T: Real> Moments<T> {
    pub(crate) fn new(optimizer: Optimizer, rows: usize, cols: usize) -> Self {
        Self((0..optimizer.moments()).map(|_| RowMajor::zeros(rows, cols)).collect())
    }

    /// One step of the optimizer on `weights`, which have the shape of these moments.
    fn descend<'a>(&'a mut self, weights: MatMut<'a, T>, update: &Update) -> Epilogue<'a, T> {
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

    /// `below·Wᵀ`, `batch × n_out`, to an epilogue; `once` if the weights will not soon be used again.
    pub(crate) fn forward(
        &mut self,
        runtime: &Runtime,
        work: &mut Workspace<T>,
        weights: MatRef<'_, T>,
        below: MatRef<'_, T>,
        epilogue: Epilogue<'_, T>,
        once: bool,
    ) {
        let (isa, par, batch) = (runtime.isa(), runtime.par(), below.nrows());
        if batch <= SMALL_BATCH && once && !self.repeats && !self.up.fresh {
            work.panels.pack(isa, below.transpose());
            let (rows, lanes) = (Rows::View(weights), Lanes::Packed(&work.panels));
            let blocking = Blocking::streaming_rows::<T>(isa, weights.ncols());
            product(isa, par, rows, lanes, epilogue.transposed(), blocking, &mut work.scratch);
        } else {
            let panels = self.up.get(runtime, weights.transpose());
            let blocking = Blocking::streaming_panels::<T>(isa, batch);
            product(isa, par, Rows::View(below), Lanes::Packed(panels), epilogue, blocking, &mut work.scratch);
        }
    }

    /// `drive ← below·Wᵀ + b`.
    pub(crate) fn drive(
        &mut self,
        runtime: &Runtime,
        work: &mut Workspace<T>,
        (weights, bias): (MatRef<'_, T>, &[T]),
        below: MatRef<'_, T>,
        drive: MatMut<'_, T>,
        once: bool,
    ) {
        let epilogue = Epilogue::Drive { drive: Output::new(drive), bias: Input::repeated(bias, below.nrows()) };
        self.forward(runtime, work, weights, below, epilogue, once);
    }

    /// `drive ← below·Wᵀ + b`, `mean ← f(drive)`.
    pub(crate) fn activate(
        &mut self,
        runtime: &Runtime,
        work: &mut Workspace<T>,
        (weights, bias): (MatRef<'_, T>, &[T]),
        below: MatRef<'_, T>,
        (drive, mean, activation): (MatMut<'_, T>, MatMut<'_, T>, Activation),
        once: bool,
    ) {
        let bias = Input::repeated(bias, below.nrows());
        let epilogue = Epilogue::Forward { drive: Output::new(drive), bias, mean: Output::new(mean), activation };
        self.forward(runtime, work, weights, below, epilogue, once);
    }

    /// `above·W`, `batch × n_in`, to an epilogue.
    pub(crate) fn top_down(
        runtime: &Runtime,
        work: &mut Workspace<T>,
        weights: MatRef<'_, T>,
        above: MatRef<'_, T>,
        epilogue: Epilogue<'_, T>,
    ) {
        let blocking = in_place::<T>(runtime, above.nrows());
        product(runtime.isa(), runtime.par(), Rows::View(above), Lanes::View(weights), epilogue, blocking, &mut work.scratch);
    }

    /// The same through the feedback weights, if the layer has them, and through packed weights, if they serve several times.
    pub(crate) fn feed_back(
        &mut self,
        runtime: &Runtime,
        work: &mut Workspace<T>,
        weights: MatRef<'_, T>,
        above: MatRef<'_, T>,
        epilogue: Epilogue<'_, T>,
    ) {
        let weights = self.feedback.as_ref().map_or(weights, |feedback| feedback.weights.view());
        if !self.repeats {
            return Self::top_down(runtime, work, weights, above, epilogue);
        }
        let panels = self.down.get(runtime, weights);
        let blocking = Blocking::streaming_panels::<T>(runtime.isa(), above.nrows());
        product(runtime.isa(), runtime.par(), Rows::View(above), Lanes::Packed(panels), epilogue, blocking, &mut work.scratch);
    }

    /// The feedback weights of KP-DP.
    pub(crate) fn feedback(&self) -> Option<MatRef<'_, T>> {
        self.feedback.as_ref().map(|feedback| feedback.weights.view())
    }

    /// Updates weights, biases and feedback weights along `scale·aboveᵀ·below`.
    pub(crate) fn update(
        &mut self,
        runtime: &Runtime,
        work: &mut Workspace<T>,
        weights: MatMut<'_, T>,
        bias: Option<&mut [T]>,
        (above, below, ones): (MatRef<'_, T>, MatRef<'_, T>, &[T]),
        update: &Update,
    ) {
        let (isa, par, batch) = (runtime.isa(), runtime.par(), above.nrows());
        work.bands.pack(isa, above.transpose());
        work.panels.pack(isa, below);
        let (rows, lanes) = (Rows::Packed(&work.bands), Lanes::Packed(&work.panels));
        let blocking = Blocking::streaming_rows::<T>(isa, batch);
        product(isa, par, rows, lanes, self.moments.descend(weights, update), blocking, &mut work.scratch);
        if let Some(Feedback { weights, moments }) = &mut self.feedback {
            product(isa, par, rows, lanes, moments.descend(weights.view_mut(), update), blocking, &mut work.scratch);
        }
        if let Some(bias) = bias {
            let n_out = bias.len();
            let rows = Rows::View(MatRef::from_row_major_slice(&ones[..batch], 1, batch));
            let descent = self.bias_moments.descend(MatMut::from_row_major_slice_mut(bias, 1, n_out), update);
            product(isa, par, rows, Lanes::View(above), descent, in_place::<T>(runtime, 1), &mut work.scratch);
        }
        self.stale();
    }

    /// `gradient ← scale·aboveᵀ·below`, `bias_gradient ← scale·Σ above`.
    pub(crate) fn gradient(
        runtime: &Runtime,
        work: &mut Workspace<T>,
        gradient: MatMut<'_, T>,
        bias_gradient: &mut [T],
        (above, below, ones): (MatRef<'_, T>, MatRef<'_, T>, &[T]),
        scale: f64,
    ) {
        let (isa, par, batch, scale) = (runtime.isa(), runtime.par(), above.nrows(), T::from_f64(scale));
        work.bands.pack(isa, above.transpose());
        work.panels.pack(isa, below);
        let (rows, lanes) = (Rows::Packed(&work.bands), Lanes::Packed(&work.panels));
        let store = Epilogue::Store { out: Output::new(gradient), scale };
        product(isa, par, rows, lanes, store, Blocking::streaming_rows::<T>(isa, batch), &mut work.scratch);
        let n_out = bias_gradient.len();
        let store = Epilogue::Store { out: Output::new(MatMut::from_row_major_slice_mut(bias_gradient, 1, n_out)), scale };
        let rows = Rows::View(MatRef::from_row_major_slice(&ones[..batch], 1, batch));
        product(isa, par, rows, Lanes::View(above), store, in_place::<T>(runtime, 1), &mut work.scratch);
    }
}

fn in_place<T: Real>(runtime: &Runtime, batch: usize) -> Blocking {
    if batch <= SMALL_BATCH {
        Blocking::in_place::<T>(runtime.isa(), batch)
    } else {
        Blocking::streaming_panels::<T>(runtime.isa(), batch)
    }
}
