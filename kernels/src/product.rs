//! The loops around the micro-kernel, and what becomes of finished sums.
//!
//! ```text
//! for group of panels                    so that the packed right operand of a group stays in the cache
//!   for block of MC rows                 these two loops are shared out over the threads
//!     for block of NC panels
//!       for block of KC depth            sums wait in the scratch, their chains go on
//!         for panel, for tile of MR rows
//!           micro-kernel
//!       epilogue                         sees each complete sum once
//! ```
//!
//! No constant of it and no number of threads changes a bit: every sum is one chain of fused multiply-adds in ascending depth.

use faer::{MatRef, Par};

use crate::buffer::Buffer;
use crate::epilogue::Epilogue;
use crate::isa::{Isa, Kernel};
use crate::pack::{Bands, Panels, pack_blocks, panel_width};
use crate::tile::{self, Tile};
use crate::vector::{Real, Vector};

/// What happens to a finished sum: the inner part of an [`Epilogue`], compiled for each instruction set.
///
/// # Safety
/// [`fits`](Self::fits) may return `true` only if [`apply`](Self::apply) keeps to its operands for every element of a
/// `rows × cols` product.
pub(crate) unsafe trait Apply<T: Real>: Copy + Send + Sync {
    /// Whether the operands have the shape of a product of `rows × cols`.
    fn fits(&self, rows: usize, cols: usize) -> bool;

    /// Whether the columns of all operands are contiguous.
    fn is_unit(&self) -> bool;

    /// Takes the sums of elements `(row, col..col + live)`.
    ///
    /// # Safety
    /// [`fits`](Self::fits) holds for a shape with `row < rows`, `col + live ≤ cols`, `1 ≤ live ≤ LANES`; no two calls on one product
    /// share an element; `UNIT` only if [`is_unit`](Self::is_unit).
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize);
}

/// An [`Apply`] behind a pointer, so that the loops are compiled once.
pub(crate) trait Finish<T: Real>: Sync {
    /// [`Apply::fits`].
    fn suits(&self, rows: usize, cols: usize) -> bool;

    /// Applies the epilogue to a block of sums.
    ///
    /// # Safety
    /// [`suits`](Self::suits) holds for a product that contains the block, and no other call on that product shares an element with it.
    unsafe fn finish(&self, isa: Isa, block: &Sums<'_, T>);
}

/// A block of finished sums: element `(i, j)` of the product is at `(i − i0)·stride + j − j0`.
pub(crate) struct Sums<'a, T> {
    sums: &'a [T],
    stride: usize,
    i0: usize,
    height: usize,
    j0: usize,
    cols: usize,
}

impl<T: Real, A: Apply<T>> Finish<T> for A {
    fn suits(&self, rows: usize, cols: usize) -> bool {
        self.fits(rows, cols)
    }

    unsafe fn finish(&self, isa: Isa, block: &Sums<'_, T>) {
        isa.run::<T, _>(Applied { block, epilogue: *self });
    }
}

/// The left operand, `m × depth`.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a, T> {
    /// Read where it is: right for unit stride along the depth.
    View(MatRef<'a, T>),
    /// Packed beforehand.
    Packed(&'a Bands<T>),
}

/// The right operand, `depth × n`: its columns are the lanes of the vectors.
#[derive(Clone, Copy, Debug)]
pub enum Lanes<'a, T> {
    /// Read where it is if its columns have unit stride, else packed block by block.
    View(MatRef<'a, T>),
    /// Packed beforehand.
    Packed(&'a Panels<T>),
}

impl<T: Real> Rows<'_, T> {
    fn shape(&self) -> (usize, usize) {
        match self {
            Rows::View(view) => (view.nrows(), view.ncols()),
            Rows::Packed(bands) => bands.shape(),
        }
    }
}

impl<T: Real> Lanes<'_, T> {
    fn shape(&self) -> (usize, usize) {
        match self {
            Lanes::View(view) => (view.nrows(), view.ncols()),
            Lanes::Packed(panels) => panels.shape(),
        }
    }
}

/// How the loops are cut. Affects speed only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocking {
    /// Rows of a block (MC); rounded up to whole bands.
    pub mc: usize,
    /// Depth of a block (KC).
    pub kc: usize,
    /// Panels of a block (NC, in panels).
    pub nc: usize,
    /// Blocks of panels that one block of rows meets before the next block of rows comes.
    pub group: usize,
}

/// Bytes of second-level cache that the blocking counts on: half of what small current cores have.
const CACHE: usize = 1 << 19;

impl Blocking {
    /// A few rows (a batch) against panels that are read once (weights): panels outermost, all rows meet a panel while it is near.
    pub fn streaming_panels<T: Real>(isa: Isa, rows: usize) -> Self {
        let mc = rows.clamp(1, 128);
        let kc = CACHE / size_of::<T>() / (mc + panel_width::<T>(isa));
        Self { mc, kc: kc.next_multiple_of(8).max(256), nc: 1, group: 1 }
    }

    /// Many rows of output that are read and written once (a weight update): rows outermost, the packed panels stay near.
    pub fn streaming_rows<T: Real>(isa: Isa, depth: usize) -> Self {
        let (mr, width) = (isa.tile().0, panel_width::<T>(isa));
        let kc = depth.clamp(1, 512);
        Self { mc: mr, kc, nc: 4, group: (2 * CACHE / size_of::<T>() / (kc * width)).max(1) }
    }

    /// A few rows against a right operand that is read in place row by row (weights of a small batch): shallow blocks of depth, so
    /// that memory is walked in its own order.
    pub fn in_place<T: Real>(isa: Isa, rows: usize) -> Self {
        let mc = rows.clamp(1, 16);
        Self { mc, kc: 32, nc: (CACHE / 4 / size_of::<T>() / (mc * panel_width::<T>(isa))).max(1), group: 1 }
    }
}

/// Memory for the sums of unfinished blocks, one part for each thread.
#[derive(Clone, Debug, Default)]
pub struct Scratch<T>(Buffer<T>);

impl<T: Real> Scratch<T> {
    /// Nothing yet; a product makes room for itself.
    pub fn new() -> Self {
        Self(Buffer::default())
    }
}

/// Products of fewer multiply-adds than this stay on the calling thread: waking another costs as much.
const SEQUENTIAL: usize = 1 << 19;

/// A product and what to do with it.
pub(crate) struct Problem<'a, T> {
    isa: Isa,
    par: Par,
    rows: Rows<'a, T>,
    lanes: Lanes<'a, T>,
    epilogue: Epilogue<'a, T>,
    blocking: Blocking,
}

/// Hands every sum `Σ_p rows[i][p]·lanes[p][j]` to the epilogue.
///
/// Each sum is one chain of fused multiply-adds from zero in ascending `p`: error at most `γ_depth·Σ|rows·lanes|`, and the same
/// bits for every instruction set, blocking, thread count and packing. Empty depth gives zero sums; NaN and infinity propagate.
/// Costs `2·m·n·depth` flops. Allocates only when `scratch` was never used on a problem as large.
///
/// # Panics
/// If the depths of the operands differ, the epilogue does not fit, or an operand was packed for another instruction set.
pub fn product<T: Real>(
    isa: Isa,
    par: Par,
    rows: Rows<'_, T>,
    lanes: Lanes<'_, T>,
    epilogue: Epilogue<'_, T>,
    blocking: Blocking,
    scratch: &mut Scratch<T>,
) {
    (T::kernels().product)(&Problem { isa, par, rows, lanes, epilogue, blocking }, scratch);
}

pub(crate) fn run<T: Real>(problem: &Problem<'_, T>, scratch: &mut Scratch<T>) {
    problem.epilogue.with(&mut |epilogue| drive(problem, epilogue, scratch));
}

fn drive<T: Real>(problem: &Problem<'_, T>, epilogue: &dyn Finish<T>, scratch: &mut Scratch<T>) {
    let Problem { isa, par, rows, lanes, blocking, .. } = *problem;
    let ((m, depth), (lanes_depth, n)) = (rows.shape(), lanes.shape());
    assert_eq!(depth, lanes_depth, "the operands of a product share their depth");
    assert!(epilogue.suits(m, n), "the epilogue has operands of another shape than the product, {m} × {n}");
    let (mr, nv) = isa.tile();
    let width = panel_width::<T>(isa);
    if let Rows::Packed(bands) = rows {
        assert_eq!(bands.height(), mr, "bands were packed for another instruction set");
    }
    if let Lanes::Packed(panels) = lanes {
        assert_eq!(panels.width(), width, "panels were packed for another instruction set");
    }
    if m == 0 || n == 0 {
        return;
    }

    let mc = blocking.mc.clamp(1, m).next_multiple_of(mr);
    let kc = blocking.kc.clamp(1, depth.max(1));
    let panels = n.div_ceil(width);
    let nc = blocking.nc.clamp(1, panels);
    let grid = Grid { row_blocks: m.div_ceil(mc), col_blocks: panels.div_ceil(nc), group: blocking.group.max(1) };
    let tasks = match par {
        Par::Rayon(threads) if m * n * depth.max(1) >= SEQUENTIAL => threads.get().min(grid.len()),
        _ => 1,
    };
    let pack_len = if matches!(lanes, Lanes::View(_)) { kc * width } else { 0 };
    let part = (mc * nc * width + pack_len).next_multiple_of(64 / size_of::<T>());
    scratch.0.reserve(part * tasks);
    let work = Work { isa, rows, lanes, epilogue, m, n, depth, mr, nv, width, mc, kc, nc, grid };
    work.share(0, grid.len(), tasks, part, &mut scratch.0.as_mut_slice()[..part * tasks]);
}

/// Blocks of output in the order in which they are worked on.
#[derive(Clone, Copy)]
struct Grid {
    row_blocks: usize,
    col_blocks: usize,
    group: usize,
}

impl Grid {
    fn len(self) -> usize {
        self.row_blocks * self.col_blocks
    }

    /// Block of rows and block of panels at a position of the order: groups of panels, in them rows, in them panels.
    fn at(self, position: usize) -> (usize, usize) {
        let full = self.group * self.row_blocks;
        let (group, rest) = (position / full, position % full);
        let wide = self.group.min(self.col_blocks - group * self.group);
        (rest / wide, group * self.group + rest % wide)
    }
}

#[derive(Clone, Copy)]
struct Work<'a, T> {
    isa: Isa,
    rows: Rows<'a, T>,
    lanes: Lanes<'a, T>,
    epilogue: &'a dyn Finish<T>,
    m: usize,
    n: usize,
    depth: usize,
    mr: usize,
    nv: usize,
    width: usize,
    mc: usize,
    kc: usize,
    nc: usize,
    grid: Grid,
}

impl<T: Real> Work<'_, T> {
    /// Works on positions `from..to` with `tasks` tasks, each with its part of the scratch.
    fn share(&self, from: usize, to: usize, tasks: usize, part: usize, scratch: &mut [T]) {
        if tasks <= 1 {
            for position in from..to {
                self.block(position, scratch);
            }
            return;
        }
        let left = tasks / 2;
        let middle = from + (to - from) * left / tasks;
        let (a, b) = scratch.split_at_mut(left * part);
        rayon::join(|| self.share(from, middle, left, part, a), || self.share(middle, to, tasks - left, part, b));
    }

    /// One block of output, from first product to epilogue.
    fn block(&self, position: usize, scratch: &mut [T]) {
        let (row_block, col_block) = self.grid.at(position);
        let i0 = row_block * self.mc;
        let height = self.mc.min(self.m - i0);
        let panel0 = col_block * self.nc;
        let panels = self.nc.min(self.n.div_ceil(self.width) - panel0);
        let stride = self.nc * self.width;
        let (sums, packed) = scratch.split_at_mut(self.mc * stride);
        for p0 in (0..self.depth.max(1)).step_by(self.kc) {
            let deep = self.kc.min(self.depth - p0);
            for panel in 0..panels {
                let j0 = (panel0 + panel) * self.width;
                let cols = self.width.min(self.n - j0);
                let vectors = cols.div_ceil(self.width / self.nv);
                let (right, lane_step) = self.right(p0, deep, j0, cols, packed);
                for i in (0..height).step_by(self.mr) {
                    let high = self.mr.min(height - i);
                    let at = &mut sums[i * stride + panel * self.width..];
                    // SAFETY: depth `p0..p0 + deep`, rows `i0 + i..i0 + i + high` and columns `j0..j0 + cols` are in the product; `at` holds
                    // `high` rows of `stride` elements less what is before this panel.
                    let tile = unsafe { self.tile(p0, deep, i0 + i, right, lane_step, at, stride) };
                    // SAFETY: `1 ≤ high ≤ mr ≤ MAX_MR` and `1 ≤ vectors ≤ nv ≤ MAX_NV`, the shape described above.
                    unsafe { tile::run(self.isa, &tile, high, vectors) };
                }
            }
        }
        let j0 = panel0 * self.width;
        let cols = (panels * self.width).min(self.n - j0);
        let block = Sums { sums, stride, i0, height, j0, cols };
        // SAFETY: `drive` has checked that the epilogue fits the product, which contains the block; blocks do not overlap.
        unsafe { self.epilogue.finish(self.isa, &block) };
    }

    /// The tile from `row` over `deep` steps of depth from `depth0`, with the right operand from [`right`](Self::right).
    ///
    /// # Safety
    /// `row` and `depth0..depth0 + deep` are in the product, `right` came from `self.right(depth0, deep, …)`, and the tile is run with no
    /// more rows than the product or `sums` (rows `stride` apart) has, and with the vectors of that panel.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "two operands and an output")]
    unsafe fn tile(&self, depth0: usize, deep: usize, row: usize, right: *const T, lane_step: isize, sums: &mut [T], stride: usize) -> Tile<T> {
        let (left, row_stride, row_step) = self.left(depth0, row);
        // SAFETY, by the numbers of the contract: 1. `self.left`; 2. `self.right`; 3. `sums` is borrowed mutably.
        unsafe { Tile::new(left, row_stride, row_step, right, lane_step, deep, sums.as_mut_ptr(), stride, depth0 > 0) }
    }

    /// Pointer to element `(row, depth0)` of the left operand, and its strides along rows and depth, good for a band from `row`.
    fn left(&self, depth0: usize, row: usize) -> (*const T, isize, isize) {
        match self.rows {
            Rows::View(view) => {
                let (row_stride, row_step) = (view.row_stride(), view.col_stride());
                (view.as_ptr().wrapping_offset(row as isize * row_stride + depth0 as isize * row_step), row_stride, row_step)
            }
            // `row` starts a band: blocks of rows are whole bands.
            Rows::Packed(bands) => {
                let from = row * self.depth + depth0 * self.mr;
                (bands.as_slice().as_ptr().wrapping_add(from), 1, self.mr as isize)
            }
        }
    }

    /// Pointer to element `(depth0, col)` of the right operand and its stride along the depth, with whole vectors readable over
    /// `deep` rows: where they would reach past the last column, or the columns are not contiguous, they are copied to `packed`.
    fn right(&self, depth0: usize, deep: usize, col: usize, cols: usize, packed: &mut [T]) -> (*const T, isize) {
        match self.lanes {
            Lanes::Packed(panels) => {
                let from = col * self.depth + depth0 * self.width;
                (panels.as_slice().as_ptr().wrapping_add(from), self.width as isize)
            }
            Lanes::View(view) if view.col_stride() == 1 && cols == self.width => {
                let at = view.as_ptr().wrapping_offset(depth0 as isize * view.row_stride()).wrapping_add(col);
                (at, view.row_stride())
            }
            Lanes::View(view) => {
                pack_blocks(self.isa, &mut packed[..deep * self.width], self.width, self.width / self.nv, view.submatrix(depth0, col, deep, cols));
                (packed.as_ptr(), self.width as isize)
            }
        }
    }
}

/// An epilogue over one block, under an instruction set.
struct Applied<'a, 'b, T, A> {
    block: &'a Sums<'b, T>,
    epilogue: A,
}

impl<T: Real, A: Apply<T>> Kernel<T> for Applied<'_, '_, T, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        if self.epilogue.is_unit() { self.rows::<S, true>(simd) } else { self.rows::<S, false>(simd) }
    }
}

impl<T: Real, A: Apply<T>> Applied<'_, '_, T, A> {
    #[inline(always)]
    fn rows<S: Vector<T>, const UNIT: bool>(self, simd: S) {
        let (epilogue, Sums { sums, stride, i0, height, j0, cols }) = (self.epilogue, self.block);
        for i in 0..*height {
            let (vectors, _) = S::as_vectors(&sums[i * stride..(i + 1) * stride]);
            let whole = cols / S::LANES;
            for (v, &sums) in vectors.iter().enumerate().take(whole) {
                // SAFETY: contract of `Finish::finish`: the epilogue fits, and the elements are of this block; `UNIT` was asked for.
                unsafe { epilogue.apply::<S, UNIT>(simd, sums, i0 + i, j0 + v * S::LANES, S::LANES) };
            }
            let rest = cols % S::LANES;
            if rest > 0 {
                // SAFETY: as above, with `whole·LANES + rest = cols`.
                unsafe { epilogue.apply::<S, UNIT>(simd, vectors[whole], i0 + i, j0 + whole * S::LANES, rest) };
            }
        }
    }
}
