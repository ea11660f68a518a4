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
//! For some epilogues sums of tiles come from registers, or those of a block between the multiply-adds of the next.
//!
//! No constant of it and no number of threads changes a bit: every sum is one chain of fused multiply-adds in ascending depth.

use core::ops::Range;

use faer::{MatRef, Par, RowRef};

use crate::arch;
use crate::buffer::Buffer;
use crate::cache;
use crate::epilogue::Epilogue;
use crate::isa::{Isa, Kernel};
use crate::pack::{Bands, Panels, pack_blocks, panel_width};
use crate::strided::Form;
use crate::threads;
use crate::tile::{self, Ask, NOTHING, Operand, Tiles};
use crate::turned::{self, Turned};
use crate::vector::{Real, Vector};

/// What happens to a finished sum: the inner part of an [`Epilogue`], compiled for each instruction set.
///
/// # Safety
/// [`all`](Self::all) asks of every operand, and [`apply`](Self::apply) keeps to these where they have the shape of the product.
pub(crate) unsafe trait Apply<T: Real>: Copy + Send + Sync {
    /// When sums of whole tiles had best meet the epilogue, if the whole depth is done at once and columns are contiguous.
    const TIME: Time = Time::Afterwards;

    /// Whether `holds` is true of every operand.
    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool;

    /// Whether the operands have the shape of a product of `rows × cols`.
    fn fits(&self, rows: usize, cols: usize) -> bool {
        self.all(|operand| operand.shape == (rows, cols))
    }

    /// Whether the columns of all operands are contiguous.
    fn is_unit(&self) -> bool {
        self.all(|operand| operand.is_unit)
    }

    /// Whether rows so far apart look alike in all operands: a load waits for stores before it whose addresses agree in the last 12 bits.
    fn look_alike(&self, apart: usize) -> bool {
        self.all(|operand| operand.row.wrapping_mul(apart as isize) % 4096 == 0)
    }

    /// Asks for the operands of element `(row, col)`, which need not exist, as [`Target::prefetch`](crate::strided::Target::prefetch) does.
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize);

    /// Takes the sums of elements `col..col + live` of row `row`.
    ///
    /// # Safety
    /// It [`fits`](Self::fits) the product; `row < rows`, `col + live ≤ cols`, `1 ≤ live ≤ LANES`; no two calls on one product share an element;
    /// `UNIT` only if [`is_unit`](Self::is_unit).
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize);

    /// Takes the sums of a tile of whole vectors, of which the first is at `(row, col)`, for [`Time::InRegisters`].
    ///
    /// # Safety
    /// As for [`apply`](Self::apply), each vector of it, and [`is_unit`](Self::is_unit).
    #[inline(always)]
    unsafe fn apply_tile<S: Vector<T>, const R: usize, const V: usize>(
        &self,
        simd: S,
        sums: [[S::V; V]; R],
        row: usize,
        col: usize,
    ) {
        // SAFETY: passed on.
        unsafe { row_by_row::<T, S, Self, R, V>(self, simd, sums, row, col) };
    }
}

/// [`Apply::apply_tile`] in the order of rows.
///
/// # Safety
/// The same.
#[inline(always)]
pub(crate) unsafe fn row_by_row<T: Real, S: Vector<T>, A: Apply<T>, const R: usize, const V: usize>(
    epilogue: &A,
    simd: S,
    sums: [[S::V; V]; R],
    row: usize,
    col: usize,
) {
    for r in 0..R {
        for v in 0..V {
            // SAFETY: passed on.
            unsafe { epilogue.apply::<S, true>(simd, sums[r][v], row + r, col + v * S::LANES, S::LANES) };
        }
    }
}

/// When the sums of a block meet the epilogue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Time {
    /// When the block is done, row by row.
    Afterwards,
    /// Tile by tile, in registers: for epilogues whose traffic is large against the arithmetic.
    InRegisters,
    /// While the next block is summed, row by row, some vectors at a time between multiply-adds: for epilogues with so much traffic and such
    /// slow operations that they had better hide behind those.
    Beside,
}

/// An [`Apply`] behind a pointer, so that the loops are compiled once.
pub(crate) trait Finish<T: Real>: Sync {
    /// [`Apply::fits`].
    fn suits(&self, rows: usize, cols: usize) -> bool;

    /// [`Apply::TIME`], if the columns are contiguous.
    fn time(&self) -> Time;

    /// Asks in the second-level cache for what the sums of these rows and columns are to meet, if columns are contiguous.
    fn ask(&self, rows: Range<usize>, cols: Range<usize>);

    /// Applies the epilogue to what it has not met of a block.
    ///
    /// # Safety
    /// [`suits`](Self::suits) holds for a product that contains the block, and no other call on that product shares an element with it.
    unsafe fn finish(&self, isa: Isa, sums: &Sums<'_, T>);

    /// Computes a run of whole tiles of MR × NR, from zero, and applies the epilogue to vectors of another block between their multiply-adds.
    /// Returns [`Part::done`] of that block. `narrow` if its rows are only a part of those of the product.
    ///
    /// # Safety
    /// As [`finish`](Self::finish) for the block; the contract of [`tile::run`] for the tiles. [`time`](Self::time) is [`Time::Beside`].
    unsafe fn finish_beside(&self, isa: Isa, tiles: &Tiles<T>, sums: &Sums<'_, T>, narrow: bool) -> usize;

    /// Computes a run of tiles of MR rows and `vectors` whole vectors, from zero, and applies the epilogue to each; the first starts at
    /// `(row, col)` of the product, the next ones lie to its right. Their sums are not stored. `far` if what they meet comes from memory.
    ///
    /// # Safety
    /// As [`finish`](Self::finish) for the tiles; contracts 1 and 2 of [`tile::run`] for MR rows and `vectors`, from 1 to NV.
    /// [`time`](Self::time) is [`Time::InRegisters`].
    unsafe fn finish_tiles(&self, isa: Isa, tiles: &Tiles<T>, vectors: usize, row: usize, col: usize, far: bool);
}

/// A part of a product of which the sums are there.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    /// First row.
    pub(crate) i0: usize,
    /// Rows.
    pub(crate) height: usize,
    /// First column.
    pub(crate) j0: usize,
    /// Columns.
    pub(crate) cols: usize,
    /// Whole vectors, in the order of rows, that have met the epilogue.
    pub(crate) done: usize,
}

/// The sums of a block: element `(i, j)` of the product is at `(i − i0)·stride + j − j0`.
pub(crate) struct Sums<'a, T> {
    pub(crate) sums: &'a [T],
    pub(crate) stride: usize,
    pub(crate) part: Part,
}

impl<T: Real, A: Apply<T>> Finish<T> for A {
    fn suits(&self, rows: usize, cols: usize) -> bool {
        self.fits(rows, cols)
    }

    fn time(&self) -> Time {
        if self.is_unit() { A::TIME } else { Time::Afterwards }
    }

    fn ask(&self, rows: Range<usize>, cols: Range<usize>) {
        if !self.is_unit() {
            return;
        }
        // The last element of each line: where rows do not begin with a line, the first ones came with the columns before.
        let line = 64 / size_of::<T>();
        for row in rows {
            for col in cols.clone().step_by(line) {
                self.prefetch::<true>(row, (col + line).min(cols.end) - 1);
            }
        }
    }

    unsafe fn finish(&self, isa: Isa, sums: &Sums<'_, T>) {
        isa.run::<T, _>(Applied { sums, epilogue: *self });
    }

    unsafe fn finish_beside(&self, isa: Isa, tiles: &Tiles<T>, sums: &Sums<'_, T>, narrow: bool) -> usize {
        if A::TIME == Time::Beside { isa.run::<T, _>(Beside { tiles, sums, narrow, epilogue: *self }) } else { sums.part.done }
    }

    unsafe fn finish_tiles(&self, isa: Isa, tiles: &Tiles<T>, vectors: usize, row: usize, col: usize, far: bool) {
        if A::TIME == Time::InRegisters {
            isa.run::<T, _>(InRegisters { tiles, vectors, row, col, far, epilogue: *self });
        }
    }
}

/// Vectors between what an epilogue works on beside multiply-adds and what it asks for.
const AHEAD: usize = 24;

/// Bytes between what is worked on and what is asked for in the second-level cache, where so little is done with each number that memory takes
/// the time: more is on its way then than the first-level cache has places for.
pub(crate) const FAR_AHEAD: usize = 4096;

/// A run of whole tiles, and the epilogue over another block in between.
struct Beside<'a, 'b, T, A> {
    tiles: &'a Tiles<T>,
    sums: &'a Sums<'b, T>,
    narrow: bool,
    epilogue: A,
}

impl<T: Real, A: Apply<T>> Kernel<T> for Beside<'_, '_, T, A> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) -> usize {
        // The tile shapes of the table in `isa.rs`.
        match const { S::TILE.0 } {
            8 if self.narrow => self.tiles::<S, 8, 3, true>(simd),
            8 => self.tiles::<S, 8, 3, false>(simd),
            6 if self.narrow => self.tiles::<S, 6, 2, true>(simd),
            6 => self.tiles::<S, 6, 2, false>(simd),
            4 => self.tiles::<S, 4, 2, false>(simd),
            _ => unreachable!("no tile has so many rows"),
        }
    }
}

impl<T: Real, A: Apply<T>> Beside<'_, '_, T, A> {
    #[inline(always)]
    fn tiles<S: Vector<T>, const R: usize, const V: usize, const NARROW: bool>(self, simd: S) -> usize {
        let Tiles { rows, mut lanes, sums: mut to, depth, count, .. } = *self.tiles;
        let Sums { sums, stride, part: Part { i0, height, j0, cols, done } } = *self.sums;
        let whole = cols / S::LANES;
        let (mut row, mut v) = (done / whole.max(1), done % whole.max(1));
        // Each tile takes a share of one row, such that the run gets through the block if it has as many tiles as rows.
        let most = whole.div_ceil((count / height).max(1));
        let (mut planned, mut together, mut deep) = (0, 0, 0);
        // Few steps for the bytes of a vector: memory takes the time.
        let second = depth < 2 * S::LANES;
        let ahead = if second { FAR_AHEAD / size_of::<T>() } else { AHEAD * S::LANES };
        for _ in 0..count {
            let mut acc = [[simd.splat(T::ZERO); V]; R];
            let (mut left, mut right, mut rest) = (rows, lanes, depth);
            let share = if row < height { most.min(whole - v) } else { 0 };
            if share > 0 {
                // In a narrow block the last share of a row asks for the beginning of the next one; else that lies ahead anyway.
                let (next, shift) = match NARROW && v + share == whole {
                    true => (i0 + row + 1, (v * S::LANES).wrapping_neg()),
                    false => (i0 + row, ahead),
                };
                let (vectors, _) = S::as_vectors(&sums[row * stride..][..whole * S::LANES]);
                if share != planned {
                    // Vectors that come together, at least two whose slow operations overlap, and the piece of depth before them, two steps
                    // at least.
                    (planned, together) = (share, 2 * share.div_ceil(depth.max(1)));
                    deep = depth / share.div_ceil(together);
                }
                for vectors in vectors[v..v + share].chunks(together) {
                    // SAFETY: contract of `Finish::finish_beside`: as many pieces of `deep` as there are chunks are no more than the depth.
                    acc = unsafe { tile::accumulate::<T, S, R, V, NOTHING>(simd, acc, left, right, deep, right) };
                    left.at = left.at.wrapping_offset(deep as isize * left.step);
                    right.at = right.at.wrapping_offset(deep as isize * right.step);
                    rest -= deep;
                    for &sums in vectors {
                        let col = j0 + v * S::LANES;
                        if second {
                            self.epilogue.prefetch::<true>(next, col.wrapping_add(shift));
                        } else {
                            self.epilogue.prefetch::<false>(next, col.wrapping_add(shift));
                        }
                        // SAFETY: contract of `Finish::finish_beside`: vector `v` of row `row` is one of the block that has not met the epilogue,
                        // and columns are contiguous.
                        unsafe { self.epilogue.apply::<S, true>(simd, sums, i0 + row, col, S::LANES) };
                        v += 1;
                    }
                }
                if v == whole {
                    (row, v) = (row + 1, 0);
                }
            }
            // SAFETY: as above, what is left of the depth.
            let acc = unsafe { tile::accumulate::<T, S, R, V, NOTHING>(simd, acc, left, right, rest, right) };
            // SAFETY: contract 3 of `tile::run`.
            unsafe { tile::store::<T, S, R, V>(to, acc) };
            lanes.at = lanes.at.wrapping_offset(lanes.jump);
            to.at = to.at.wrapping_offset(to.jump);
        }
        row * whole + v
    }
}

/// A run of tiles of whole vectors whose sums go to the epilogue in registers.
struct InRegisters<'a, T, A> {
    tiles: &'a Tiles<T>,
    vectors: usize,
    row: usize,
    col: usize,
    far: bool,
    epilogue: A,
}

impl<T: Real, A: Apply<T>> Kernel<T> for InRegisters<'_, T, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        // The tile shapes of the table in `isa.rs`, and the ends of their rows.
        match const { S::TILE.0 } {
            8 => match self.vectors {
                3 => self.tiles::<S, 8, 3>(simd),
                2 => self.tiles::<S, 8, 2>(simd),
                _ => self.tiles::<S, 8, 1>(simd),
            },
            6 if self.vectors == 2 => self.tiles::<S, 6, 2>(simd),
            6 => self.tiles::<S, 6, 1>(simd),
            4 if self.vectors == 2 => self.tiles::<S, 4, 2>(simd),
            4 => self.tiles::<S, 4, 1>(simd),
            _ => unreachable!("no tile has so many rows"),
        }
    }
}

/// Steps of depth that a tile takes while what it is to meet comes from the last-level cache.
const SOON: usize = 48;

impl<T: Real, A: Apply<T>> InRegisters<'_, T, A> {
    #[inline(always)]
    fn tiles<S: Vector<T>, const R: usize, const V: usize>(self, simd: S) {
        let Tiles { rows, mut lanes, depth, count, .. } = *self.tiles;
        // What a tile is to meet is asked for so late that the panels do not drive it out again; or, since the hardware does not see far along so
        // many rows at once, some tiles ahead if they are done soon. From memory that is for the second-level cache: the first-level one has few
        // places for lines on their way.
        let early = depth.saturating_sub(SOON);
        let ahead = if early > 0 { 0 } else { (128 / depth.max(1)).clamp(2, 8) };
        for t in 0..count {
            let (mut left, mut right) = (rows, lanes);
            // SAFETY: contract of `Finish::finish_tiles`: `early` steps of the depth.
            let sums = unsafe {
                tile::accumulate::<T, S, R, V, NOTHING>(simd, [[simd.splat(T::ZERO); V]; R], left, right, early, right)
            };
            left.at = left.at.wrapping_offset(early as isize * left.step);
            right.at = right.at.wrapping_offset(early as isize * right.step);
            // Behind the last one come the first ones of the next band.
            let (next, tile) = if t + ahead < count { (self.row, t + ahead) } else { (self.row + R, t + ahead - count) };
            for v in 0..V {
                for r in 0..R {
                    let (row, col) = (next + r, self.col + (tile * V + v) * S::LANES);
                    if self.far {
                        self.epilogue.prefetch::<true>(row, col);
                    } else {
                        self.epilogue.prefetch::<false>(row, col);
                    }
                }
            }
            // SAFETY: as above, the other steps.
            let sums = unsafe { tile::accumulate::<T, S, R, V, NOTHING>(simd, sums, left, right, depth - early, right) };
            let col = self.col + t * V * S::LANES;
            // SAFETY: the epilogue fits the product, the tile is in it and ours, and `time` has asked for unit columns.
            unsafe { self.epilogue.apply_tile::<S, R, V>(simd, sums, self.row, col) };
            lanes.at = lanes.at.wrapping_offset(lanes.jump);
        }
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
    /// Read where it is if its columns have unit stride, else packed block by block; each block of a large one is asked for while the one before
    /// is worked on. With few rows ([`Isa::few`]) and contiguous columns neither: these are turned in registers.
    View(MatRef<'a, T>),
    /// Packed and asked for like that whatever its strides: right for an operand that is far away, if many rows meet each block.
    Piecewise(MatRef<'a, T>),
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
            Lanes::View(view) | Lanes::Piecewise(view) => (view.nrows(), view.ncols()),
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

/// Bytes of second-level cache that the blocking counts on.
const CACHE: usize = cache::SECOND / 2;

impl Blocking {
    /// A few rows (a batch) against packed panels: panels outermost, all rows meet a panel while it is near.
    pub fn streaming_panels<T: Real>(isa: Isa, rows: usize) -> Self {
        let mc = rows.clamp(1, 128);
        let kc = CACHE / size_of::<T>() / (mc + panel_width::<T>(isa));
        // Few rows go over some panels abreast.
        let nc = match rows {
            0 | 1 => 16,
            2 => 4,
            _ => 1,
        };
        Self { mc, kc: kc.next_multiple_of(8).max(256), nc, group: 1 }
    }

    /// A few rows against panels that are read or packed where they are: as deep as a packed block stays in the first-level cache.
    pub fn on_the_fly(rows: usize) -> Self {
        Self { mc: rows.clamp(1, 128), kc: 128, nc: 1, group: 1 }
    }

    /// Many rows of output that are read and written once (a weight update): rows outermost, the packed panels stay near.
    pub fn streaming_rows<T: Real>(isa: Isa, depth: usize) -> Self {
        let (mr, width) = (isa.tile().0, panel_width::<T>(isa));
        let kc = depth.clamp(1, 512);
        // Long rows: an epilogue walks along each of them.
        let near = 2 * CACHE / size_of::<T>() / (kc * width);
        Self { mc: mr, kc, nc: near.clamp(1, 128), group: 1 }
    }

    /// Some hundred rows of output over so much depth that a packed right operand would not stay near: for [`Lanes::View`], or
    /// [`Lanes::Piecewise`] if the operand is far away.
    pub fn deep(rows: usize) -> Self {
        Self { mc: rows.clamp(1, 512), kc: 512, nc: 1, group: 1 }
    }

    /// A few rows against a right operand with contiguous columns that is read where it is: for hardly any rows shallow blocks of depth
    /// over all columns, so that memory is walked in its own order, else [`on_the_fly`](Self::on_the_fly).
    pub fn in_place<T: Real>(isa: Isa, rows: usize) -> Self {
        if rows > 16 {
            return Self { kc: 512, ..Self::on_the_fly(rows) };
        }
        let mc = rows.max(1);
        let nc = CACHE / 4 / size_of::<T>() / (mc * panel_width::<T>(isa));
        Self { mc, kc: (8 * mc).min(64), nc: nc.max(1), group: 1 }
    }
}

/// Memory for the sums of unfinished blocks, one part for each thread.
#[derive(Clone, Debug, Default)]
pub struct Scratch<T>(pub(crate) Buffer<T>);

impl<T: Real> Scratch<T> {
    /// Nothing yet; a product makes room for itself.
    pub fn new() -> Self {
        Self(Buffer::default())
    }
}

/// Bytes between the scratch of two threads. Prefetchers run past the end of what a thread reads again and again, up to the end of a page; what another
/// one writes there would go to and fro between their caches.
const APART: usize = 4096;

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
    let Problem { isa, par, rows, lanes, .. } = *problem;
    let ((m, depth), (lanes_depth, n)) = (rows.shape(), lanes.shape());
    assert_eq!(depth, lanes_depth, "the operands of a product share their depth");
    assert!(epilogue.suits(m, n), "the epilogue has operands of another shape than the product, {m} × {n}");
    if let Rows::Packed(bands) = rows {
        assert_eq!(bands.height(), isa.tile().0, "bands were packed for another instruction set");
    }
    if let Lanes::Packed(panels) = lanes {
        assert_eq!(panels.width(), panel_width::<T>(isa), "panels were packed for another instruction set");
    }
    if m == 0 || n == 0 {
        return;
    }

    let multiplications = m * n * depth.max(1);
    let (threads, most) = (threads::tasks(par, multiplications), threads::most(par, multiplications));
    let work = Work::new(problem, epilogue, threads);
    // Who is awake decides how the work is cut, but not what is allocated.
    let other = if most > 1 { Work::new(problem, epilogue, if threads > 1 { 1 } else { most }).room() } else { 0 };
    scratch.0.reserve(work.room().max(other));
    work.share(0, work.grid.len(), work.tasks, &mut scratch.0.as_mut_slice()[..work.room()]);
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
    time: Time,
    /// Few rows, and lanes that are turned in registers.
    turns: bool,
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
    tasks: usize,
    /// Elements of the scratch of a task.
    part: usize,
}

impl<'a, T: Real> Work<'a, T> {
    /// Cuts a product of at least one element for so many threads.
    fn new(problem: &Problem<'a, T>, epilogue: &'a dyn Finish<T>, threads: usize) -> Self {
        let Problem { isa, rows, lanes, blocking, .. } = *problem;
        let ((m, depth), (_, n)) = (rows.shape(), lanes.shape());
        let (mr, mut nv) = isa.tile();
        let is_batch = blocking.mc > mr && matches!((rows, lanes), (Rows::View(_), Lanes::Packed(_)));
        // Threads take samples rather than units: what one of them writes is then what it reads in the next product.
        let parts = if is_batch { threads.min(m / (2 * mr)).max(1) } else { 1 };
        let mc = match blocking.mc.clamp(1, m) {
            mc if parts > 1 => m.div_ceil(parts * m.div_ceil(parts * mc)),
            mc => mc.next_multiple_of(mr),
        };
        let turns = matches!((rows, lanes), (Rows::View(_), Lanes::View(view)) if m <= isa.few() && view.row_stride() == 1 && view.col_stride() != 1);
        let kc = if turns { depth } else { blocking.kc }.clamp(1, depth.max(1));
        let time = match epilogue.time() {
            _ if turns => Time::Afterwards,
            // Needs a whole band in a block, and some multiply-adds to hide behind.
            Time::Beside if mc > mr || kc < depth || depth < 8 => Time::Afterwards,
            time => time,
        };
        let row_blocks = m.div_ceil(mc);
        if threads > 1 && blocking.nc == 1 && time == Time::Afterwards && !matches!(lanes, Lanes::Packed(_)) {
            // Columns of the thread that has most: narrower panels can be shared out more evenly, and cost a little more each.
            let most = |nv: usize| {
                let width = nv * isa.lanes::<T>();
                (row_blocks * n.div_ceil(width)).div_ceil(threads) * width
            };
            if 20 * most(nv) > 21 * most(2) {
                nv = 2;
            }
        }
        let width = nv * isa.lanes::<T>();
        let panels = n.div_ceil(width);
        // Blocks alike: a last one of a panel or two would cost a walk of its own, and be the whole share of a thread. As many for each thread.
        let alike = if row_blocks == 1 { threads } else { 1 };
        let nc = panels.div_ceil(panels.div_ceil(blocking.nc.clamp(1, panels)).next_multiple_of(alike));
        let col_blocks = panels.div_ceil(nc);
        let group = if parts > 1 { col_blocks } else { blocking.group.max(1) };
        let grid = Grid { row_blocks, col_blocks, group };
        let tasks = threads.min(grid.len());
        let pack_len = if turns || matches!(lanes, Lanes::Packed(_)) { 0 } else { kc * width };
        let places = if time == Time::Beside { 2 } else { 1 };
        let part = (places * mc * nc * width + pack_len).next_multiple_of(64 / size_of::<T>()) + APART / size_of::<T>();
        Self { isa, rows, lanes, epilogue, time, turns, m, n, depth, mr, nv, width, mc, kc, nc, grid, tasks, part }
    }

    /// Elements of scratch for all tasks.
    fn room(&self) -> usize {
        self.tasks * self.part
    }

    /// Works on positions `from..to` with `tasks` tasks, each with its part of the scratch.
    fn share(&self, from: usize, to: usize, tasks: usize, scratch: &mut [T]) {
        if tasks <= 1 {
            let size = self.mc * self.nc * self.width;
            let (mut here, rest) = scratch.split_at_mut(size);
            let (mut before, packed) = rest.split_at_mut(if self.time == Time::Beside { size } else { 0 });
            let mut pending = None;
            for position in from..to {
                pending = self.block(position, here, packed, (pending, before));
                if self.time == Time::Beside {
                    core::mem::swap(&mut here, &mut before);
                }
            }
            self.finish(pending, before);
            return;
        }
        let left = tasks / 2;
        let middle = from + (to - from) * left / tasks;
        let (a, b) = scratch.split_at_mut(left * self.part);
        threads::join(|| self.share(from, middle, left, a), || self.share(middle, to, tasks - left, b));
    }

    /// What is left of the epilogue of a part.
    fn finish(&self, part: Option<Part>, sums: &[T]) {
        if let Some(part) = part {
            // SAFETY: `drive` has checked that the epilogue fits the product, which contains the block; blocks do not overlap.
            unsafe { self.epilogue.finish(self.isa, &Sums { sums, stride: self.nc * self.width, part }) };
        }
    }

    /// One block of output, from first product to epilogue; and the epilogue of the block before. Returns the block if its epilogue is to be applied
    /// beside the next.
    fn block(&self, position: usize, sums: &mut [T], packed: &mut [T], before: (Option<Part>, &[T])) -> Option<Part> {
        let (row_block, col_block) = self.grid.at(position);
        let i0 = row_block * self.mc;
        let height = self.mc.min(self.m - i0);
        let panel0 = col_block * self.nc;
        let panels = self.nc.min(self.n.div_ceil(self.width) - panel0);
        let stride = self.nc * self.width;
        let (mut pending, before) = before;
        // Columns before this one have met the epilogue already, in registers.
        let mut done = panel0 * self.width;
        for p0 in (0..self.depth.max(1)).step_by(self.kc) {
            let deep = self.kc.min(self.depth - p0);
            let mut panel = 0;
            while panel < panels {
                let j0 = (panel0 + panel) * self.width;
                let cols = self.width.min(self.n - j0);
                if self.turns {
                    self.turned((i0, height), (j0, cols), &mut sums[panel * self.width..], stride);
                    panel += 1;
                    continue;
                }
                // Panels that lie as they should, and one behind the other.
                let alike = if self.lies_well(cols) { (self.n - j0).div_euclid(self.width).clamp(1, panels - panel) } else { 1 };
                let lanes = self.right(p0, deep, j0, cols, packed);
                let is_whole_band = deep == self.depth && height == self.mr;
                let lanes_of_one = self.width / self.nv;
                let to = &mut sums[panel * self.width..];
                match (self.time, &mut pending) {
                    (Time::InRegisters, _) if is_whole_band && cols.is_multiple_of(lanes_of_one) => {
                        let rows = self.left(0, i0);
                        let unused = Operand { at: core::ptr::null_mut(), row: 0, step: 0, jump: 0 };
                        let tiles = Tiles {
                            rows,
                            lanes,
                            sums: unused,
                            depth: deep,
                            count: alike,
                            resume: false,
                            ask: Ask::Nothing,
                            tail: 0,
                        };
                        let far = bytes::<T>(self.m, self.n) > cache::MEMORY;
                        // SAFETY: as for `finish`; the operands are good for MR rows and `alike` panels of `cols` columns, as in `tiles`, and those
                        // are whole vectors.
                        unsafe { self.epilogue.finish_tiles(self.isa, &tiles, cols / lanes_of_one, i0, j0, far) };
                        done = j0 + (alike - 1) * self.width + cols;
                    }
                    (Time::Beside, Some(part)) if is_whole_band && cols == self.width => {
                        let to = Operand { at: to.as_mut_ptr(), row: stride as isize, step: 0, jump: self.width as isize };
                        let tiles = Tiles {
                            rows: self.left(0, i0),
                            lanes,
                            sums: to,
                            depth: deep,
                            count: alike,
                            resume: false,
                            ask: Ask::Nothing,
                            tail: 0,
                        };
                        let sums = Sums { sums: before, stride, part: *part };
                        // SAFETY: as for `finish`; the operands are good for MR rows and `alike` whole panels, as in `tiles`.
                        part.done = unsafe { self.epilogue.finish_beside(self.isa, &tiles, &sums, part.cols < self.n) };
                    }
                    _ => {
                        // A single row takes a narrower panel at the end along: by itself that has too few sums in flight.
                        let rest = panel + alike < panels && alike >= 2 && height == 1 && matches!(self.lanes, Lanes::Packed(_));
                        let tail = if rest { (self.n - j0).div_ceil(lanes_of_one) % self.nv } else { 0 };
                        let next = self.piece_after(p0, j0);
                        self.tiles(next, p0, deep, (i0, j0), height, lanes, (cols, alike, tail), to, stride);
                        panel += usize::from(tail > 0);
                    }
                }
                panel += alike;
            }
        }
        self.finish(pending, before);
        let end = ((panel0 + panels) * self.width).min(self.n);
        let part = (done < end).then_some(Part { i0, height, j0: done, cols: end - done, done: 0 });
        if self.time == Time::Beside {
            return part;
        }
        self.finish(part, &sums[done - panel0 * self.width..]);
        None
    }

    /// Sums of `high` rows from `i0` and `cols` columns from `j0`, which are turned, over the whole depth.
    fn turned(&self, (i0, high): (usize, usize), (j0, cols): (usize, usize), sums: &mut [T], stride: usize) {
        let Lanes::View(view) = self.lanes else { unreachable!("only views are turned") };
        let columns = Operand {
            at: view.as_ptr().wrapping_offset(j0 as isize * view.col_stride()),
            row: view.col_stride(),
            step: 1,
            jump: 0,
        };
        let sums = Operand { at: sums.as_mut_ptr(), row: stride as isize, step: 0, jump: 0 };
        let turned = Turned { rows: self.left(0, i0), high, columns, cols, sums, depth: self.depth };
        // SAFETY: `1 ≤ high`, and
        // 1. `self.left` is good for `high` rows, since they are not packed (`turns`);
        // 2. `cols` columns from `j0` are contiguous (`turns`);
        // 3. `sums` has `high` rows of `stride` elements, of which a panel of whole vectors is ours.
        unsafe { turned::run(self.isa, &turned) };
    }

    /// Sums of `height` rows from `i0` and `alike` panels of `cols` columns from `j0`, the first of them at `lanes`, over one block of depth; of one row
    /// those of the next `tail` vectors too.
    #[expect(clippy::too_many_arguments, reason = "a piece of a product in three dimensions")]
    fn tiles(
        &self,
        next: Option<MatRef<'_, T>>,
        p0: usize,
        deep: usize,
        (i0, j0): (usize, usize),
        height: usize,
        lanes: Operand<*const T>,
        (cols, alike, tail): (usize, usize, usize),
        sums: &mut [T],
        stride: usize,
    ) {
        let vectors = cols.div_ceil(self.width / self.nv);
        let mut run = |i: usize, high: usize, count: usize, along_rows: bool, lanes: Operand<*const T>, panel: usize| {
            let rows = self.left(p0, i0 + i);
            let at = sums[i * stride + panel * self.width..].as_mut_ptr();
            let sums_jump = if along_rows { self.mr * stride } else { self.width };
            let tiles = Tiles {
                rows: Operand { jump: if along_rows { rows.jump } else { 0 }, ..rows },
                lanes: Operand { jump: if along_rows { 0 } else { lanes.jump }, ..lanes },
                sums: Operand { at, row: stride as isize, step: 0, jump: sums_jump as isize },
                depth: deep,
                count,
                resume: p0 > 0,
                ask: self.ask(lanes, deep, (i / self.mr, height.div_ceil(self.mr)), alike),
                tail: if along_rows { 0 } else { tail },
            };
            // SAFETY: `1 ≤ high ≤ mr ≤ MAX_MR`, `1 ≤ vectors ≤ nv ≤ MAX_NV`, and
            // 1. `self.left` is good for the whole bands, or the rest of one, that `count` and `high` span within `height` rows;
            // 2. `self.right` is good for `alike` panels, and `count` is `alike` when the tiles go along them; `block` has asked for the tail, that
            //    the panel behind them is packed and in the block;
            // 3. `sums` has `height` rows of `stride` elements, of which `alike` panels and the tail are ours.
            unsafe { tile::run(self.isa, &tiles, high, vectors) };
        };
        let whole = height / self.mr;
        let rest = height % self.mr;
        if alike > whole {
            (0..height).step_by(self.mr).for_each(|i| run(i, self.mr.min(height - i), alike, false, lanes, 0));
            return;
        }
        for panel in 0..alike {
            let lanes = Operand { at: lanes.at.wrapping_offset(panel as isize * lanes.jump), ..lanes };
            // What the epilogue meets soon and what is packed next is asked for a few rows at a time.
            let meets_soon = p0 + deep == self.depth && self.meets_far();
            let bands = if meets_soon {
                1
            } else if next.is_some() {
                ASKED
            } else {
                whole
            };
            for band in (0..whole).step_by(bands.max(1)) {
                let share = |rows: usize| rows * band / whole..rows * (band + bands).min(whole) / whole;
                if meets_soon {
                    let (rows, col) = (share(height), j0 + panel * self.width);
                    self.epilogue.ask(i0 + rows.start..i0 + rows.end, col..col + cols);
                }
                run(band * self.mr, self.mr, bands.min(whole - band), true, lanes, panel);
                if let Some(next) = next {
                    share(next.nrows()).for_each(|row| prefetch(next.row(row)));
                }
            }
            if rest > 0 {
                run(whole * self.mr, rest, 1, true, lanes, panel);
            }
        }
    }

    /// What to ask for while band `band` of `bands` meets `alike` panels and those after it meet them: what comes after these, if it may be far away.
    fn ask(&self, lanes: Operand<*const T>, deep: usize, (band, bands): (usize, usize), alike: usize) -> Ask<T> {
        let (bytes, is_first_of_few) = (bytes::<T>(self.depth, self.n), band == 0 && bands <= 2);
        match self.lanes {
            // 48 steps of depth ahead for up to four samples, 96 from eight on, which take as much time. From seven on in the second-level cache: lines on
            // their way to the first-level one would block its few places.
            Lanes::Packed(_) if bytes > cache::MEMORY && is_first_of_few => match (12 * self.m.clamp(4, 8) * self.width) as isize
            {
                ahead if self.m <= 6 => Ask::First(ahead),
                ahead => Ask::Second(ahead),
            },
            Lanes::Packed(_) if bands > 2 && alike == 1 => {
                // They lie behind these: all of them, evenly over the steps of depth of all bands.
                let step = self.width.div_ceil(bands);
                let at = lanes.at.wrapping_add((deep * self.width) + band * step * deep);
                Ask::Line(Operand { at, row: 0, step: step as isize, jump: (step * deep) as isize })
            }
            Lanes::View(view) if bytes > BEYOND_SECOND && lanes.step == view.row_stride() => {
                if bands > 2 {
                    // A line of each row for the first band, the next line for the next.
                    let line = 64 / size_of::<T>();
                    let at = lanes.at.wrapping_add(alike * self.width + band * line);
                    Ask::Line(Operand { at, row: 0, step: lanes.step, jump: line as isize })
                } else if is_first_of_few && (self.m > 3 || bytes > cache::MEMORY) {
                    // The next panel, of which each row is a stream of its own. Up to three samples gain by it only where it comes from memory.
                    Ask::Second(self.width as isize)
                } else {
                    Ask::Nothing
                }
            }
            _ => Ask::Nothing,
        }
    }

    /// Whether what the epilogue meets comes from the last-level cache, and multiply-adds take long enough to ask for it meanwhile.
    fn meets_far(&self) -> bool {
        self.time == Time::Afterwards && bytes::<T>(self.m, self.n) >= LARGE_RESULT && self.depth >= 64
    }

    /// The piece of the right operand that is packed after that at `depth0` and `col`, where the product goes on with it and had better ask for it;
    /// its rows are contiguous.
    fn piece_after(&self, depth0: usize, col: usize) -> Option<MatRef<'_, T>> {
        let view = match self.lanes {
            Lanes::Piecewise(view) => view,
            Lanes::View(view)
                if view.row_stride() == 1 && self.m > 2 * self.mr && bytes::<T>(self.depth, self.n) > BEYOND_SECOND =>
            {
                view
            }
            _ => return None,
        };
        let depth0 = depth0 + self.kc;
        let (depth0, col) = if depth0 < self.depth { (depth0, col) } else { (0, col + self.width) };
        let piece =
            (col < self.n).then(|| view.submatrix(depth0, col, self.kc.min(self.depth - depth0), self.width.min(self.n - col)));
        piece.map(|piece| if piece.row_stride() == 1 { piece.transpose() } else { piece })
    }

    /// Element `(depth0, row)` of the left operand and the way from there; the jump is to the next band.
    fn left(&self, depth0: usize, row: usize) -> Operand<*const T> {
        match self.rows {
            Rows::View(view) => {
                let (row_stride, step) = (view.row_stride(), view.col_stride());
                let at = view.as_ptr().wrapping_offset(row as isize * row_stride + depth0 as isize * step);
                Operand { at, row: row_stride, step, jump: self.mr as isize * row_stride }
            }
            // `row` starts a band: blocks of rows are whole bands.
            Rows::Packed(bands) => {
                let at = bands.as_slice().as_ptr().wrapping_add(row * self.depth + depth0 * self.mr);
                Operand { at, row: 1, step: self.mr as isize, jump: (self.depth * self.mr) as isize }
            }
        }
    }

    /// Whether a panel of `cols` columns can be read where it is: packed, or contiguous in whole vectors.
    fn lies_well(&self, cols: usize) -> bool {
        match self.lanes {
            Lanes::Packed(_) => true,
            Lanes::Piecewise(_) => false,
            Lanes::View(view) => view.col_stride() == 1 && cols.is_multiple_of(self.width / self.nv),
        }
    }

    /// Element `(depth0, col)` of the right operand and the way from there, with whole vectors readable over `deep` rows; the jump is
    /// to the next panel. A panel that does not lie well is copied to `packed`.
    fn right(&self, depth0: usize, deep: usize, col: usize, cols: usize, packed: &mut [T]) -> Operand<*const T> {
        let width = self.width as isize;
        match self.lanes {
            Lanes::Packed(panels) => {
                let at = panels.as_slice().as_ptr().wrapping_add(col * self.depth + depth0 * self.width);
                Operand { at, row: 0, step: width, jump: self.depth as isize * width }
            }
            Lanes::View(view) if self.lies_well(cols) => {
                let at = view.as_ptr().wrapping_offset(depth0 as isize * view.row_stride()).wrapping_add(col);
                Operand { at, row: 0, step: view.row_stride(), jump: width }
            }
            Lanes::View(view) | Lanes::Piecewise(view) => {
                let panel = &mut packed[..deep * self.width];
                pack_blocks(self.isa, panel, self.width, self.width / self.nv, view.submatrix(depth0, col, deep, cols));
                Operand { at: packed.as_ptr(), row: 0, step: width, jump: 0 }
            }
        }
    }
}

fn bytes<T>(rows: usize, cols: usize) -> usize {
    rows * cols * size_of::<T>()
}

/// Bytes above which a matrix that is read by itself is taken to come from the last-level cache, most of it.
const BEYOND_SECOND: usize = 2 * cache::SECOND;

/// Bytes of the result from which what the epilogue meets, some matrices of that size, is taken to come from the last-level cache.
const LARGE_RESULT: usize = 1 << 18;

/// Bands of rows between which some of the next piece is asked for.
const ASKED: usize = 4;

/// Asks for a row in the second-level cache.
fn prefetch<T: Real>(row: RowRef<'_, T>) {
    for col in (0..row.ncols()).step_by(64 / size_of::<T>()) {
        arch::prefetch_second(row.as_ptr().wrapping_offset(col as isize * row.col_stride()));
    }
}

/// An epilogue over what is left of a block, under an instruction set.
struct Applied<'a, 'b, T, A> {
    sums: &'a Sums<'b, T>,
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
        let Sums { sums, stride, part: Part { i0, height, j0, cols, done } } = *self.sums;
        for i in 0..height {
            let (vectors, _) = S::as_vectors(&sums[i * stride..][..cols.next_multiple_of(S::LANES)]);
            let whole = cols / S::LANES;
            for (v, &sums) in vectors.iter().enumerate().take(whole).skip(done.saturating_sub(i * whole)) {
                // SAFETY: contract of `Finish::finish`: the epilogue fits, and the elements are of this block; `UNIT` was asked for.
                unsafe { self.epilogue.apply::<S, UNIT>(simd, sums, i0 + i, j0 + v * S::LANES, S::LANES) };
            }
            let rest = cols % S::LANES;
            if rest > 0 {
                // SAFETY: as above, with `whole·LANES + rest = cols`.
                unsafe { self.epilogue.apply::<S, UNIT>(simd, vectors[whole], i0 + i, j0 + whole * S::LANES, rest) };
            }
        }
    }
}
