//! Memory and machine for kernels: the products of a layer in their three directions.

use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::gram::gram;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::online;
use dualprop_kernels::pack::{Bands, PACKING, Panels};
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::threads;
use dualprop_kernels::vector::Real;
use faer::{MatMut, MatRef, Par, RowRef};

use crate::runtime::Runtime;

/// Memory that kernels work in, and where they run.
///
/// It grows to the largest operands that it has seen and then allocates nothing. Results do not depend on what it was used for before.
#[derive(Clone, Debug)]
pub struct Workspace<T> {
    runtime: Runtime,
    bands: Bands<T>,
    panels: Panels<T>,
    pub(crate) scratch: Scratch<T>,
    /// Vectors between two products. Who takes one puts it back, so that its memory is not lost.
    pub(crate) spare: [Vec<T>; 3],
}

/// Whether a factor of outer products is read where it is as fast as from a packed copy: contiguous rows that stay in the second-level
/// cache, and do not begin in few of the sets of the first-level cache.
fn is_near<T: Real>(factor: MatRef<'_, T>) -> bool {
    let row = factor.row_stride().unsigned_abs() * size_of::<T>();
    factor.col_stride() == 1 && !row.is_multiple_of(1024) && row * factor.nrows() <= 1 << 19
}

fn near_rows<'a, T: Real>(isa: Isa, factor: MatRef<'a, T>, bands: &'a mut Bands<T>) -> Rows<'a, T> {
    if is_near(factor.transpose()) {
        return Rows::View(factor);
    }
    bands.pack(isa, factor);
    Rows::Packed(bands)
}

fn near_lanes<'a, T: Real>(isa: Isa, factor: MatRef<'a, T>, panels: &'a mut Panels<T>) -> Lanes<'a, T> {
    // What is left of a row behind whole vectors would be packed again for each band of rows.
    if is_near(factor) && factor.ncols().is_multiple_of(isa.lanes::<T>()) {
        return Lanes::View(factor);
    }
    panels.pack(isa, Par::Seq, factor);
    Lanes::Packed(panels)
}

fn contiguous<'a, T: Real>(row: RowRef<'a, T>, copy: &'a mut Vec<T>) -> &'a [T] {
    if let Some(row) = row.try_as_row_major() {
        return row.as_slice();
    }
    copy.clear();
    copy.extend(row.iter());
    copy
}

impl<T: Real> Workspace<T> {
    /// An empty workspace.
    pub fn new(runtime: &Runtime) -> Self {
        Self { runtime: *runtime, bands: Bands::new(), panels: Panels::new(), scratch: Scratch::new(), spare: Default::default() }
    }

    /// Where its kernels run.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// `below·Wᵀ` (`batch × n_out`) with weights read where they are: turned in registers for few samples, else each block of them packed while it is
    /// near; but where samples nearly fill a vector, and sums are so deep that results far apart do not matter, these are the lanes.
    pub(crate) fn forward(&mut self, weights: MatRef<'_, T>, below: MatRef<'_, T>, epilogue: Epilogue<'_, T>) {
        let (isa, par, batch) = (self.runtime.isa(), self.runtime.par(), below.nrows());
        let lanes = isa.lanes::<T>();
        // Measured on Zen 4: 0.8 of packing for 14 of 16 lanes, 1.2 for 10; strided results cost more than packing below a depth of some hundred.
        if batch > isa.few().max(3 * lanes / 4) && batch <= lanes && below.ncols() >= 512 {
            self.panels.pack(isa, Par::Seq, below.transpose());
            let (rows, lanes) = (Rows::View(weights), Lanes::Packed(&self.panels));
            let blocking = Blocking::streaming_rows::<T>(isa, below.ncols());
            return product(isa, par, rows, lanes, epilogue.transposed(), blocking, &mut self.scratch);
        }
        let (rows, lanes) = (Rows::View(below), Lanes::View(weights.transpose()));
        product(isa, par, rows, lanes, epilogue, Blocking::on_the_fly(batch), &mut self.scratch);
    }

    /// `rows·panels` for a batch and packed weights.
    pub(crate) fn packed(&mut self, panels: &Panels<T>, rows: MatRef<'_, T>, epilogue: Epilogue<'_, T>) {
        let (isa, par) = (self.runtime.isa(), self.runtime.par());
        let blocking = Blocking::streaming_panels::<T>(isa, rows.nrows());
        product(isa, par, Rows::View(rows), Lanes::Packed(panels), epilogue, blocking, &mut self.scratch);
    }

    /// `above·W` (`batch × n_in`) with weights read where they are.
    pub(crate) fn top_down(&mut self, weights: MatRef<'_, T>, above: MatRef<'_, T>, epilogue: Epilogue<'_, T>) {
        let (isa, par, batch) = (self.runtime.isa(), self.runtime.par(), above.nrows());
        let blocking = Blocking::in_place::<T>(isa, batch);
        product(isa, par, Rows::View(above), Lanes::View(weights), epilogue, blocking, &mut self.scratch);
    }

    /// `aboveᵀ·below` (`n_out × n_in`): the outer products of a batch.
    pub(crate) fn outer(&mut self, above: MatRef<'_, T>, below: MatRef<'_, T>, epilogue: Epilogue<'_, T>) {
        let (isa, par, batch) = (self.runtime.isa(), self.runtime.par(), above.nrows());
        let epilogue = match epilogue {
            Epilogue::Update(descent) if batch == 1 => {
                let [diff, mean, _] = &mut self.spare;
                return online::update(isa, par, descent, contiguous(above.row(0), diff), contiguous(below.row(0), mean));
            }
            other => other,
        };
        if batch > 512 && above.ncols() <= 1024 {
            self.bands.pack(isa, above.transpose());
            let is_far = below.nrows() * below.ncols() * size_of::<T>() > 1 << 24;
            let lanes = if is_far && above.ncols() >= 64 { Lanes::Piecewise(below) } else { Lanes::View(below) };
            let blocking = Blocking::deep(above.ncols());
            return product(isa, par, Rows::Packed(&self.bands), lanes, epilogue, blocking, &mut self.scratch);
        }
        let (bands, panels) = (&mut self.bands, &mut self.panels);
        let (rows, lanes) = if threads::tasks(par, PACKING * batch * above.ncols().min(below.ncols())) > 1 {
            threads::join(|| near_rows(isa, above.transpose(), bands), || near_lanes(isa, below, panels))
        } else {
            (near_rows(isa, above.transpose(), bands), near_lanes(isa, below, panels))
        };
        product(isa, par, rows, lanes, epilogue, Blocking::streaming_rows::<T>(isa, batch), &mut self.scratch);
    }

    /// `yᵢ ← AᵀA xᵢ` and `squaresᵢ ← ‖A xᵢ‖²` in one sweep over a matrix with contiguous rows.
    pub(crate) fn gram(&mut self, matrix: MatRef<'_, T>, x: MatRef<'_, T>, y: MatMut<'_, T>, squares: &mut [f64]) {
        gram(self.runtime.isa(), self.runtime.par(), matrix, x, y, squares, &mut self.scratch);
    }
}
