//! The micro-kernel: a register tile of sums, MR rows by NV vectors.

use crate::isa::{Isa, Kernel};
use crate::vector::{Real, Vector};

/// Most rows and vectors that a tile of any instruction set has.
pub(crate) const MAX_MR: usize = 8;
pub(crate) const MAX_NV: usize = 3;

/// One tile's work: `sums[r][l] (+)= Σ_p rows[r][p·row_step] · lanes[p·lane_step + l]` for `r < R`, `l < V·LANES`.
///
/// Each sum is one chain of fused multiply-adds in ascending `p`, begun at zero or continued from the stored sum, so that
/// cutting the depth into blocks changes no bit.
pub(crate) struct Tile<T> {
    rows: [*const T; MAX_MR],
    row_step: isize,
    lanes: *const T,
    lane_step: isize,
    depth: usize,
    sums: *mut T,
    sums_stride: usize,
    resume: bool,
}

impl<T: Real> Tile<T> {
    /// A tile of `R` rows and `V` vectors.
    ///
    /// # Safety
    /// For as long as the tile is used, with the `R`, `V` and instruction set that it is [`run`] with:
    /// 1. `rows + r·row_stride + p·row_step` is readable for all `r < R`, `p < depth`;
    /// 2. `lanes + p·lane_step + l` is readable for all `p < depth`, `l < V·LANES`;
    /// 3. `sums + r·sums_stride + l` is readable and writable, by nobody else, for all `r < R`, `l < V·LANES`.
    #[expect(clippy::too_many_arguments, reason = "two strided operands and an output: the contract names each")]
    pub(crate) unsafe fn new(
        rows: *const T,
        row_stride: isize,
        row_step: isize,
        lanes: *const T,
        lane_step: isize,
        depth: usize,
        sums: *mut T,
        sums_stride: usize,
        resume: bool,
    ) -> Self {
        let rows = core::array::from_fn(|r| rows.wrapping_offset(r as isize * row_stride));
        Self { rows, row_step, lanes, lane_step, depth, sums, sums_stride, resume }
    }
}

/// Computes the tile with `rows` rows and `vectors` vectors.
///
/// # Safety
/// `rows` and `vectors` are those of the contract of [`Tile::new`], within `1..=MAX_MR` and `1..=MAX_NV`.
#[inline(always)]
pub(crate) unsafe fn run<T: Real>(isa: Isa, tile: &Tile<T>, rows: usize, vectors: usize) {
    Table::<T>::KERNELS[rows - 1][vectors - 1](isa, tile);
}

/// The sums of a tile of `R` rows and `V` vectors, in registers.
///
/// # Safety
/// `R` and `V` are those of the contract of [`Tile::new`].
#[inline(always)]
pub(crate) unsafe fn accumulate<T: Real, S: Vector<T>, const R: usize, const V: usize>(simd: S, tile: &Tile<T>) -> [[S::V; V]; R] {
    let mut acc = [[simd.splat(T::ZERO); V]; R];
    if tile.resume {
        for r in 0..R {
            for v in 0..V {
                // SAFETY: contract 3 of `Tile::new`, `r < R`, `v < V`.
                let at = unsafe { tile.sums.add(r * tile.sums_stride + v * S::LANES) };
                // SAFETY: as above; `LANES` elements.
                acc[r][v] = unsafe { at.cast::<S::V>().read_unaligned() };
            }
        }
    }
    let mut lanes = tile.lanes;
    let mut offset = 0isize;
    for _ in 0..tile.depth {
        let mut b = [simd.splat(T::ZERO); V];
        for v in 0..V {
            // SAFETY: contract 2, `p < depth`, `v < V`.
            b[v] = unsafe { lanes.add(v * S::LANES).cast::<S::V>().read_unaligned() };
        }
        for r in 0..R {
            // SAFETY: contract 1, `r < R`, `offset = p·row_step`.
            let a = simd.splat(unsafe { *tile.rows[r].offset(offset) });
            for v in 0..V {
                acc[r][v] = simd.mul_add(a, b[v], acc[r][v]);
            }
        }
        lanes = lanes.wrapping_offset(tile.lane_step);
        offset += tile.row_step;
    }
    acc
}

struct Micro<'a, T, const R: usize, const V: usize>(&'a Tile<T>);

impl<T: Real, const R: usize, const V: usize> Kernel<T> for Micro<'_, T, R, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        let tile = self.0;
        // SAFETY: whoever runs the tile with `R` rows and `V` vectors vouches for them (`run`).
        let acc = unsafe { accumulate::<T, S, R, V>(simd, tile) };
        for r in 0..R {
            for v in 0..V {
                // SAFETY: contract 3, `r < R`, `v < V`.
                let at = unsafe { tile.sums.add(r * tile.sums_stride + v * S::LANES) };
                // SAFETY: as above; `LANES` elements.
                unsafe { at.cast::<S::V>().write_unaligned(acc[r][v]) };
            }
        }
    }
}

/// A micro-kernel of fixed shape; takes the instruction set at each call, which costs one predicted branch.
type MicroKernel<T> = fn(Isa, &Tile<T>);

fn entry<T: Real, const R: usize, const V: usize>(isa: Isa, tile: &Tile<T>) {
    isa.run::<T, _>(Micro::<T, R, V>(tile));
}

struct Table<T>(core::marker::PhantomData<T>);

impl<T: Real> Table<T> {
    const KERNELS: [[MicroKernel<T>; MAX_NV]; MAX_MR] = [
        [entry::<T, 1, 1>, entry::<T, 1, 2>, entry::<T, 1, 3>],
        [entry::<T, 2, 1>, entry::<T, 2, 2>, entry::<T, 2, 3>],
        [entry::<T, 3, 1>, entry::<T, 3, 2>, entry::<T, 3, 3>],
        [entry::<T, 4, 1>, entry::<T, 4, 2>, entry::<T, 4, 3>],
        [entry::<T, 5, 1>, entry::<T, 5, 2>, entry::<T, 5, 3>],
        [entry::<T, 6, 1>, entry::<T, 6, 2>, entry::<T, 6, 3>],
        [entry::<T, 7, 1>, entry::<T, 7, 2>, entry::<T, 7, 3>],
        [entry::<T, 8, 1>, entry::<T, 8, 2>, entry::<T, 8, 3>],
    ];
}
