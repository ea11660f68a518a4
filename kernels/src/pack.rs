//! Packed operands: bands of MR rows and panels of NV vectors, each contiguous along the depth.

use faer::{MatRef, Par};

use crate::arch;
use crate::buffer::Buffer;
use crate::isa::{Isa, Kernel};
use crate::strided::Input;
use crate::threads;
use crate::vector::{Real, Vector};

/// The left operand of a product (`m × depth`) in bands of MR rows: element `(i, p)` is at `(i / MR)·depth·MR + p·MR + i mod MR`.
#[derive(Clone, Debug)]
pub struct Bands<T> {
    data: Buffer<T>,
    rows: usize,
    depth: usize,
    height: usize,
}

impl<T: Real> Bands<T> {
    /// Nothing packed yet.
    pub fn new() -> Self {
        Self { data: Buffer::default(), rows: 0, depth: 0, height: 1 }
    }

    /// Copies `view`. Allocates only if no earlier operand was as large.
    pub fn pack(&mut self, isa: Isa, view: MatRef<'_, T>) {
        let (rows, depth) = (view.nrows(), view.ncols());
        let height = isa.tile().0;
        (self.rows, self.depth, self.height) = (rows, depth, height);
        if rows == 0 || depth == 0 {
            return;
        }
        self.data.reserve(rows.div_ceil(height) * height * depth);
        pack_blocks(isa, self.data.as_mut_slice(), height, 1, view.transpose());
    }

    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.depth)
    }

    pub(crate) fn height(&self) -> usize {
        self.height
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        self.data.as_slice()
    }
}

/// The right operand of a product (`depth × n`) in panels of NR = NV·LANES columns: element `(p, j)` is at
/// `(j / NR)·depth·NR + p·NR + j mod NR`.
///
/// Columns past the last are zero to the end of their vector.
#[derive(Clone, Debug)]
pub struct Panels<T> {
    data: Buffer<T>,
    depth: usize,
    cols: usize,
    width: usize,
}

impl<T: Real> Default for Panels<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Real> Default for Bands<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Real> Panels<T> {
    /// Nothing packed yet.
    pub fn new() -> Self {
        Self { data: Buffer::default(), depth: 0, cols: 0, width: 1 }
    }

    /// Copies `view`. Allocates only if no earlier operand was as large.
    pub fn pack(&mut self, isa: Isa, par: Par, view: MatRef<'_, T>) {
        let (depth, cols) = (view.nrows(), view.ncols());
        let width = panel_width::<T>(isa);
        (self.depth, self.cols, self.width) = (depth, cols, width);
        if depth == 0 || cols == 0 {
            return;
        }
        self.data.reserve(cols.div_ceil(width) * width * depth);
        share(isa, threads::tasks(par, PACKING * depth * cols), self.data.as_mut_slice(), width, view);
    }

    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.depth, self.cols)
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        self.data.as_slice()
    }
}

/// Multiply-adds in the time of packing an element.
pub const PACKING: usize = 32;

/// Panels are independent.
fn share<T: Real>(isa: Isa, tasks: usize, to: &mut [T], width: usize, view: MatRef<'_, T>) {
    let panels = view.ncols().div_ceil(width);
    if tasks <= 1 || panels <= 1 {
        return pack_blocks(isa, to, width, isa.lanes::<T>(), view);
    }
    let left = tasks / 2;
    let middle = (panels * left).div_ceil(tasks) * width;
    let ((a, b), (first, second)) = (view.split_at_col(middle), to.split_at_mut(middle * view.nrows()));
    threads::join(|| share(isa, left, first, width, a), || share(isa, tasks - left, second, width, b));
}

/// NR: columns of a panel.
pub(crate) fn panel_width<T: Real>(isa: Isa) -> usize {
    isa.tile().1 * isa.lanes::<T>()
}

/// Copies `view` (`depth × n`) into blocks of `width` columns, each contiguous along the depth; behind the last column come zeros up to
/// a multiple of `lanes`, and then whatever was there.
pub(crate) fn pack_blocks<T: Real>(isa: Isa, to: &mut [T], width: usize, lanes: usize, view: MatRef<'_, T>) {
    (T::kernels().pack)(isa, to, width, lanes, view);
}

pub(crate) fn run<T: Real>(isa: Isa, to: &mut [T], width: usize, lanes: usize, view: MatRef<'_, T>) {
    let (depth, cols) = (view.nrows(), view.ncols());
    assert!(to.len() >= cols.div_ceil(width) * width * depth, "room for whole blocks");
    if view.row_stride() == 1 && view.col_stride() != 1 {
        pack_transposed(isa, to, width, lanes, view);
    } else {
        isa.run::<T, _>(Copied { to, width, lanes, view });
    }
}

struct Copied<'a, T> {
    to: &'a mut [T],
    width: usize,
    lanes: usize,
    view: MatRef<'a, T>,
}

impl<T: Real> Kernel<T> for Copied<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        match (self.view.col_stride() == 1, self.width) {
            // The heights of bands: chunks of a constant length.
            (true, 8) => self.chunks::<8>(),
            (true, 6) => self.chunks::<6>(),
            (true, 4) => self.chunks::<4>(),
            (true, _) => self.vectors::<S, true>(simd),
            (false, _) => self.vectors::<S, false>(simd),
        }
    }
}

/// Rows that are copied at a time: few enough cache lines, whatever the strides, that none evicts another.
const ROWS: usize = 8;

impl<T: Real> Copied<'_, T> {
    #[inline(always)]
    fn chunks<const W: usize>(self) {
        let (depth, cols) = (self.view.nrows(), self.view.ncols());
        for p0 in (0..depth).step_by(ROWS) {
            let deep = ROWS.min(depth - p0);
            for j0 in (0..cols).step_by(W) {
                let wide = W.min(cols - j0);
                let (blocks, _) = self.to[j0 * depth + p0 * W..][..deep * W].as_chunks_mut::<W>();
                for (p, to) in blocks.iter_mut().enumerate() {
                    let at = self.view.as_ptr().wrapping_offset((p0 + p) as isize * self.view.row_stride()).wrapping_add(j0);
                    if wide == W {
                        // SAFETY: `W` contiguous elements of row `p0 + p` from column `j0`, as `j0 + W ≤ cols`.
                        *to = unsafe { at.cast::<[T; W]>().read() };
                    } else {
                        for (j, to) in to.iter_mut().enumerate().take(wide.next_multiple_of(self.lanes).min(W)) {
                            *to = if j < wide { self.view[(p0 + p, j0 + j)] } else { T::ZERO };
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn vectors<S: Vector<T>, const UNIT: bool>(self, simd: S) {
        let (depth, cols) = (self.view.nrows(), self.view.ncols());
        let from = Input::new(self.view);
        for p0 in (0..depth).step_by(ROWS) {
            let deep = ROWS.min(depth - p0);
            for j0 in (0..cols).step_by(self.width) {
                let wide = self.width.min(cols - j0);
                let start = j0 * depth + p0 * self.width;
                for (p, to) in self.to[start..start + deep * self.width].chunks_exact_mut(self.width).enumerate() {
                    for j in (0..wide).step_by(S::LANES) {
                        let live = S::LANES.min(wide - j);
                        // SAFETY: `p0 + p < depth`, `j0 + j + live ≤ cols`, `1 ≤ live ≤ LANES`, and `UNIT` was asked for.
                        let x = unsafe { from.load::<S, UNIT>(simd, p0 + p, j0 + j, live) };
                        // Lanes behind the last column are zero and belong to the block, unless a vector is wider than it.
                        let room = if self.lanes == S::LANES { S::LANES } else { live };
                        // SAFETY: `j + live ≤ wide ≤ width = to.len()`, and `width` is a multiple of `lanes`.
                        unsafe { simd.store_live(to[j..].as_mut_ptr(), room, x) };
                    }
                }
            }
        }
    }
}

/// The case of unit stride along the depth: squares, a few of them deep before the next columns.
fn pack_transposed<T: Real>(isa: Isa, to: &mut [T], width: usize, lanes: usize, view: MatRef<'_, T>) {
    const DEEP: usize = 64;
    let side = arch::square::<T>(isa);
    let (depth, cols) = (view.nrows(), view.ncols());
    for j0 in (0..cols).step_by(width) {
        let wide = width.min(cols - j0);
        let block = &mut to[j0 * depth..][..width * depth];
        let filled = wide.next_multiple_of(lanes);
        for p0 in (0..depth).step_by(DEEP) {
            let end = depth.min(p0 + DEEP);
            for j in (0..filled).step_by(side) {
                let cols = side.min(wide.saturating_sub(j));
                let squares = if cols == side { (end - p0) / side } else { 0 };
                let from = view.submatrix(p0, j0 + j, squares * side, cols);
                if squares > 0 && view.ncols() > width {
                    // The next squares of these columns, or the first ones of as many of the next block: the hardware sees only short runs. A product
                    // asks itself for the blocks that it packs one by one.
                    let (p, col) = if end < depth { (end, j0 + j) } else { (0, j0 + j + width) };
                    for col in col..col + side {
                        let at = view.as_ptr().wrapping_offset(col as isize * view.col_stride()).wrapping_add(p);
                        (0..DEEP).step_by(64 / size_of::<T>()).for_each(|p| arch::prefetch_second(at.wrapping_add(p)));
                    }
                }
                let rows = &mut block[p0 * width + j..];
                // SAFETY: if there are any squares, `from` has `side` columns of `side·squares` contiguous elements (unit row stride); the last
                // of as many rows of `rows` starts at `(side·squares − 1)·width` and has `side` elements because `j + side ≤ wide ≤ width`.
                unsafe { arch::transpose(isa, from.as_ptr(), from.col_stride(), rows.as_mut_ptr(), width, squares) };
                for p in (p0 + squares * side..end).step_by(side) {
                    let part = view.submatrix(p, j0 + j, side.min(end - p), cols);
                    transpose_part(isa, part, &mut block[p * width + j..], width, side.min(filled - j));
                }
            }
        }
    }
}

/// Largest side of a square.
const MAX_SIDE: usize = 16;

/// Transposes a part of a square, of unit row stride, by way of a whole one: rows of `room` elements, zeros behind the last column.
fn transpose_part<T: Real>(isa: Isa, part: MatRef<'_, T>, to: &mut [T], width: usize, room: usize) {
    let side = arch::square::<T>(isa);
    let (mut square, mut turned) = ([T::ZERO; MAX_SIDE * MAX_SIDE], [T::ZERO; MAX_SIDE * MAX_SIDE]);
    for (c, square) in square.chunks_exact_mut(side).enumerate().take(part.ncols()) {
        let column = part.col(c).try_as_col_major().expect("unit row stride").as_slice();
        square[..column.len()].copy_from_slice(column);
    }
    // SAFETY: both have `side ≤ MAX_SIDE` rows of `side` elements.
    unsafe { arch::transpose(isa, square.as_ptr(), side as isize, turned.as_mut_ptr(), side, 1) };
    for (r, turned) in turned.chunks_exact(side).enumerate().take(part.nrows()) {
        to[r * width..][..room].copy_from_slice(&turned[..room]);
    }
}
