//! Products of a matrix with its own transpose.

use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::pack::{Bands, Panels};
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::strided::Output;
use dualprop_kernels::vector::Real;
use faer::prelude::ReborrowMut;
use faer::{MatMut, MatRef};

use crate::runtime::Runtime;

/// Rows and columns of a block: whole tiles of every instruction set.
pub(crate) const BLOCK: usize = 48;

/// Memory of such products.
pub(crate) struct Symmetric<T> {
    bands: Bands<T>,
    panels: Vec<Panels<T>>,
    scratch: Scratch<T>,
}

impl<T: Real> Symmetric<T> {
    pub(crate) fn new() -> Self {
        Self { bands: Bands::new(), panels: vec![], scratch: Scratch::new() }
    }

    /// `out ← out + scale·SᵀS` in the blocks that meet the upper triangle: every sum is one chain over the rows of `S`.
    pub(crate) fn add(&mut self, scale: T, s: MatRef<'_, T>, mut out: MatMut<'_, T>, runtime: &Runtime) {
        let (isa, par) = (runtime.isa(), runtime.par());
        let starts = || (0..s.ncols()).step_by(BLOCK);
        let block = |from: usize| s.subcols(from, BLOCK.min(s.ncols() - from));
        self.panels.resize_with(starts().len(), Panels::new);
        for (panels, from) in self.panels.iter_mut().zip(starts()) {
            panels.pack(isa, par, block(from));
        }
        for (b, i) in starts().enumerate() {
            self.bands.pack(isa, block(i).transpose());
            for (panels, j) in self.panels.iter().zip(starts()).skip(b) {
                let out = out.rb_mut().submatrix_mut(i, j, block(i).ncols(), block(j).ncols());
                let epilogue = Epilogue::Accumulate { out: Output::new(out), scale };
                let blocking = Blocking { mc: BLOCK, kc: 256, nc: 1, group: 1 };
                product(isa, par, Rows::Packed(&self.bands), Lanes::Packed(panels), epilogue, blocking, &mut self.scratch);
            }
        }
    }
}
