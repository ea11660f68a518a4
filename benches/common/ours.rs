//! Our products with the choices of a training plan (`src/workspace.rs`).

use dualprop::{Isa, MatRef, Par};
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::pack::Panels;
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};

use super::Scalar;

/// A layer's packed weights and workspace.
pub struct Plan<T> {
    isa: Isa,
    up: Panels<T>,
    down: Panels<T>,
    scratch: Scratch<T>,
}

impl<T: Scalar> Plan<T> {
    /// Nothing packed.
    pub fn new(isa: Isa) -> Self {
        Self { isa, up: Panels::new(), down: Panels::new(), scratch: Scratch::new() }
    }

    /// Packs the weights for both directions.
    pub fn packed(isa: Isa, weights: MatRef<'_, T>) -> Self {
        let mut plan = Self::new(isa);
        plan.up.pack(isa, Par::Seq, weights.transpose());
        plan.down.pack(isa, Par::Seq, weights);
        plan
    }

    /// `below·Wᵀ` with the packed weights.
    pub fn forward(&mut self, below: MatRef<'_, T>, epilogue: Epilogue<'_, T>) {
        let blocking = Blocking::streaming_panels::<T>(self.isa, below.nrows());
        product(self.isa, Par::Seq, Rows::View(below), Lanes::Packed(&self.up), epilogue, blocking, &mut self.scratch);
    }

    /// `below·Wᵀ` with weights that are used only once.
    pub fn forward_once(&mut self, weights: MatRef<'_, T>, below: MatRef<'_, T>, epilogue: Epilogue<'_, T>) {
        let (rows, lanes) = (Rows::View(below), Lanes::View(weights.transpose()));
        let blocking = Blocking::on_the_fly(below.nrows());
        product(self.isa, Par::Seq, rows, lanes, epilogue, blocking, &mut self.scratch);
    }

    /// `above·W` with the packed weights.
    pub fn top_down(&mut self, above: MatRef<'_, T>, epilogue: Epilogue<'_, T>) {
        let blocking = Blocking::streaming_panels::<T>(self.isa, above.nrows());
        product(self.isa, Par::Seq, Rows::View(above), Lanes::Packed(&self.down), epilogue, blocking, &mut self.scratch);
    }

    /// `above·W` with weights that are used only once.
    pub fn top_down_once(&mut self, weights: MatRef<'_, T>, above: MatRef<'_, T>, epilogue: Epilogue<'_, T>) {
        let blocking = Blocking::in_place::<T>(self.isa, above.nrows());
        product(self.isa, Par::Seq, Rows::View(above), Lanes::View(weights), epilogue, blocking, &mut self.scratch);
    }
}
