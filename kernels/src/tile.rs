//! The micro-kernel: a register tile of sums, MR rows by NV vectors.

use crate::arch;
use crate::isa::{Isa, Kernel};
use crate::vector::{Real, Vector};

/// Most rows and vectors that a tile of any instruction set has.
pub(crate) const MAX_MR: usize = 8;
pub(crate) const MAX_NV: usize = 3;

/// A run of tiles: `sums[r][l] (+)= Σ_p rows[r][p]·lanes[p][l]` for `r < R`, `l < V·LANES`, and the same again a jump further.
///
/// Each sum is one chain of fused multiply-adds in ascending `p`, begun at zero or continued from the stored sum, so that
/// cutting the depth into blocks changes no bit.
pub(crate) struct Tiles<T> {
    pub(crate) rows: Operand<*const T>,
    pub(crate) lanes: Operand<*const T>,
    pub(crate) sums: Operand<*mut T>,
    pub(crate) depth: usize,
    pub(crate) count: usize,
    pub(crate) resume: bool,
    pub(crate) ask: Ask<T>,
    /// Vectors of a narrower tile behind the last one, or 0; for one row of packed panels.
    pub(crate) tail: usize,
}

/// What a run of tiles asks for meanwhile, which need not exist.
#[derive(Clone, Copy)]
pub(crate) enum Ask<T> {
    Nothing,
    /// A line at each step of depth, in the second-level cache.
    Line(Operand<*const T>),
    /// So many elements behind each vector of the right operand, in the first-level cache. Tiles abreast ask for nothing.
    First(isize),
    /// The same in the second-level cache.
    Second(isize),
}

/// Where one operand of a run of tiles is, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Operand<P> {
    pub(crate) at: P,
    /// From one row of the tile to the next (not used for the lanes, which are the columns).
    pub(crate) row: isize,
    /// From one step of depth to the next (not used for the sums, which have none).
    pub(crate) step: isize,
    /// From one tile to the next.
    pub(crate) jump: isize,
}

/// Computes tiles of `rows` rows and `vectors` vectors.
///
/// # Safety
/// `1 ≤ rows ≤ MAX_MR`, `1 ≤ vectors ≤ MAX_NV`, and for every tile `t < count`, with each operand `t·jump` further:
/// 1. `rows.at + r·row + p·step` is readable for all `r < rows`, `p < depth`;
/// 2. `lanes.at + p·step + l` is readable for all `p < depth`, `l < vectors·LANES`;
/// 3. `sums.at + r·row + l` is readable and writable, by nobody else, for all `r < rows`, `l < vectors·LANES`.
///
/// A tail is for `rows = 1` and rows that do not jump, `count ≥ 2`, and `tail < vectors`: contracts 2 and 3 for tile `count` with as many vectors.
#[inline(always)]
pub(crate) unsafe fn run<T: Real>(isa: Isa, tiles: &Tiles<T>, rows: usize, vectors: usize) {
    Table::<T>::KERNELS[rows - 1][vectors - 1](isa, tiles);
}

struct Micro<'a, T, const R: usize, const V: usize>(&'a Tiles<T>);

impl<T: Real, const R: usize, const V: usize> Kernel<T> for Micro<'_, T, R, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        if const { R > S::TILE.0 || V > S::TILE.1 } {
            unreachable!("tiles of this instruction set are smaller");
        }
        let Tiles { mut rows, mut lanes, mut sums, depth, mut count, resume, mut ask, tail } = *self.0;
        // One row of one panel has too few sums in flight, and so have two of a packed one.
        while R <= 2 && rows.jump == 0 && count >= 2 && (R == 1 || lanes.jump > lanes.step) {
            let together = match count {
                _ if R == 2 => 2,
                2 | 4 => count,
                3 | 5 | 6 => 3,
                _ => 4,
            };
            let tail = if together == count { tail } else { 0 };
            match together {
                // SAFETY: the contracts of `run` for as many tiles, of the same rows, and the tail.
                4 => unsafe { with_tail::<T, S, R, V, 4>(simd, rows, lanes, sums, depth, resume, tail) },
                // SAFETY: as above.
                3 => unsafe { with_tail::<T, S, R, V, 3>(simd, rows, lanes, sums, depth, resume, tail) },
                // SAFETY: as above.
                _ => unsafe { with_tail::<T, S, R, V, 2>(simd, rows, lanes, sums, depth, resume, tail) },
            }
            lanes.at = lanes.at.wrapping_offset(together as isize * lanes.jump);
            sums.at = sums.at.wrapping_offset(together as isize * sums.jump);
            count -= together;
        }
        for _ in 0..count {
            let mut acc = [[simd.splat(T::ZERO); V]; R];
            if resume {
                for r in 0..R {
                    for v in 0..V {
                        let at = sums.at.wrapping_offset(r as isize * sums.row).wrapping_add(v * S::LANES);
                        // SAFETY: contract 3 of `run`, `r < R`, `v < V`.
                        acc[r][v] = unsafe { at.cast::<S::V>().read_unaligned() };
                    }
                }
            }
            let acc = match &mut ask {
                // SAFETY: contracts 1 and 2 of `run`.
                Ask::Nothing => unsafe { accumulate::<T, S, R, V, NOTHING>(simd, acc, rows, lanes, depth, lanes) },
                Ask::Line(line) => {
                    // SAFETY: as above.
                    let acc = unsafe { accumulate::<T, S, R, V, LINE>(simd, acc, rows, lanes, depth, *line) };
                    line.at = line.at.wrapping_offset(line.jump);
                    acc
                }
                Ask::First(distance) => {
                    let behind = Operand { at: lanes.at.wrapping_offset(*distance), ..lanes };
                    // SAFETY: as above.
                    unsafe { accumulate::<T, S, R, V, FIRST>(simd, acc, rows, lanes, depth, behind) }
                }
                Ask::Second(distance) => {
                    let behind = Operand { at: lanes.at.wrapping_offset(*distance), ..lanes };
                    // SAFETY: as above.
                    unsafe { accumulate::<T, S, R, V, SECOND>(simd, acc, rows, lanes, depth, behind) }
                }
            };
            // SAFETY: contract 3 of `run`.
            unsafe { store::<T, S, R, V>(sums, acc) };
            rows.at = rows.at.wrapping_offset(rows.jump);
            lanes.at = lanes.at.wrapping_offset(lanes.jump);
            sums.at = sums.at.wrapping_offset(sums.jump);
        }
    }
}

/// Computes `N` tiles and the tail behind them.
///
/// # Safety
/// As for [`abreast`], for a tail of `tail` vectors.
#[inline(always)]
unsafe fn with_tail<T: Real, S: Vector<T>, const R: usize, const V: usize, const N: usize>(
    simd: S,
    rows: Operand<*const T>,
    lanes: Operand<*const T>,
    sums: Operand<*mut T>,
    depth: usize,
    resume: bool,
    tail: usize,
) {
    match tail {
        // SAFETY: passed on.
        1 if const { R == 1 && V > 1 } => unsafe { abreast::<T, S, R, V, N, 1>(simd, rows, lanes, sums, depth, resume) },
        // SAFETY: passed on.
        2 if const { R == 1 && V > 2 } => unsafe { abreast::<T, S, R, V, N, 2>(simd, rows, lanes, sums, depth, resume) },
        // SAFETY: passed on.
        _ => unsafe { abreast::<T, S, R, V, N, 0>(simd, rows, lanes, sums, depth, resume) },
    }
}

/// Computes `N` tiles, and of another one behind them the first row of `W` vectors, step by step of depth.
///
/// # Safety
/// The contracts of [`run`] for `R` rows, `V` vectors and as many tiles, whose rows are the same; contracts 2 and 3 for one row and `W` vectors of the
/// tile behind them.
#[inline(always)]
unsafe fn abreast<T: Real, S: Vector<T>, const R: usize, const V: usize, const N: usize, const W: usize>(
    simd: S,
    rows: Operand<*const T>,
    lanes: Operand<*const T>,
    sums: Operand<*mut T>,
    depth: usize,
    resume: bool,
) {
    let mut acc = [[[simd.splat(T::ZERO); V]; R]; N];
    let mut tail = [simd.splat(T::ZERO); W];
    let sum = |t: usize, r: usize, v: usize| {
        let row = sums.at.wrapping_offset(t as isize * sums.jump + r as isize * sums.row);
        row.wrapping_add(v * S::LANES).cast::<S::V>()
    };
    if resume {
        for t in 0..N {
            for r in 0..R {
                for v in 0..V {
                    // SAFETY: contract 3, tile `t`, `r < R`, `v < V`.
                    acc[t][r][v] = unsafe { sum(t, r, v).read_unaligned() };
                }
            }
        }
        for v in 0..W {
            // SAFETY: contract 3 of the tile behind them, `v < W`.
            tail[v] = unsafe { sum(N, 0, v).read_unaligned() };
        }
    }
    let mut row: [*const T; R] = core::array::from_fn(|r| rows.at.wrapping_offset(r as isize * rows.row));
    let mut lane: [*const T; N] = core::array::from_fn(|t| lanes.at.wrapping_offset(t as isize * lanes.jump));
    let mut behind = lanes.at.wrapping_offset(N as isize * lanes.jump);
    for _ in 0..depth {
        let mut a = [simd.splat(T::ZERO); R];
        for r in 0..R {
            // SAFETY: contract 1, `r < R`, `p < depth`.
            a[r] = simd.splat(unsafe { *row[r] });
            row[r] = row[r].wrapping_offset(rows.step);
        }
        for t in 0..N {
            for v in 0..V {
                // SAFETY: contract 2, tile `t`, `p < depth`, `v < V`.
                let b = unsafe { lane[t].wrapping_add(v * S::LANES).cast::<S::V>().read_unaligned() };
                for r in 0..R {
                    acc[t][r][v] = simd.mul_add(a[r], b, acc[t][r][v]);
                }
            }
            lane[t] = lane[t].wrapping_offset(lanes.step);
        }
        for v in 0..W {
            // SAFETY: contract 2 of the tile behind them, `p < depth`, `v < W`.
            let b = unsafe { behind.wrapping_add(v * S::LANES).cast::<S::V>().read_unaligned() };
            tail[v] = simd.mul_add(a[0], b, tail[v]);
        }
        behind = behind.wrapping_offset(lanes.step);
    }
    for t in 0..N {
        for r in 0..R {
            for v in 0..V {
                // SAFETY: contract 3, tile `t`, `r < R`, `v < V`.
                unsafe { sum(t, r, v).write_unaligned(acc[t][r][v]) };
            }
        }
    }
    for v in 0..W {
        // SAFETY: contract 3 of the tile behind them, `v < W`.
        unsafe { sum(N, 0, v).write_unaligned(tail[v]) };
    }
}

/// What [`accumulate`] asks for at each step of depth: nothing, a line in the second-level cache, as many vectors as the tile has in the first-level
/// cache, as many in the second-level one.
pub(crate) const NOTHING: u8 = 0;
const LINE: u8 = 1;
const FIRST: u8 = 2;
const SECOND: u8 = 3;

/// Adds the products of a tile to its sums, in registers.
///
/// # Safety
/// Contracts 1 and 2 of [`run`] for `R` rows, `V` vectors and one tile.
#[inline(always)]
pub(crate) unsafe fn accumulate<T: Real, S: Vector<T>, const R: usize, const V: usize, const ASK: u8>(
    simd: S,
    mut acc: [[S::V; V]; R],
    rows: Operand<*const T>,
    lanes: Operand<*const T>,
    depth: usize,
    ask: Operand<*const T>,
) -> [[S::V; V]; R] {
    let row: [*const T; R] = core::array::from_fn(|r| rows.at.wrapping_offset(r as isize * rows.row));
    let (mut lane, mut asked) = (lanes.at, ask.at);
    let mut offset = 0isize;
    for _ in 0..depth {
        let mut b = [simd.splat(T::ZERO); V];
        for v in 0..V {
            // SAFETY: contract 2, `p < depth`, `v < V`.
            b[v] = unsafe { lane.wrapping_add(v * S::LANES).cast::<S::V>().read_unaligned() };
        }
        for r in 0..R {
            // SAFETY: contract 1, `r < R`, `offset = p·step`.
            let a = simd.splat(unsafe { *row[r].wrapping_offset(offset) });
            for v in 0..V {
                acc[r][v] = simd.mul_add(a, b[v], acc[r][v]);
            }
        }
        match ASK {
            LINE => arch::prefetch_second(asked),
            FIRST => (0..V).for_each(|v| arch::prefetch(asked.wrapping_add(v * S::LANES))),
            SECOND => (0..V).for_each(|v| arch::prefetch_second(asked.wrapping_add(v * S::LANES))),
            _ => {}
        }
        asked = asked.wrapping_offset(ask.step);
        lane = lane.wrapping_offset(lanes.step);
        offset += rows.step;
    }
    acc
}

/// Stores the sums of a tile.
///
/// # Safety
/// Contract 3 of [`run`] for `R` rows, `V` vectors and one tile.
#[inline(always)]
pub(crate) unsafe fn store<T: Real, S: Vector<T>, const R: usize, const V: usize>(sums: Operand<*mut T>, acc: [[S::V; V]; R]) {
    for r in 0..R {
        for v in 0..V {
            let at = sums.at.wrapping_offset(r as isize * sums.row).wrapping_add(v * S::LANES);
            // SAFETY: contract 3, `r < R`, `v < V`.
            unsafe { at.cast::<S::V>().write_unaligned(acc[r][v]) };
        }
    }
}

/// A micro-kernel of fixed shape; takes the instruction set at each call, which costs one predicted branch.
type MicroKernel<T> = fn(Isa, &Tiles<T>);

fn entry<T: Real, const R: usize, const V: usize>(isa: Isa, tiles: &Tiles<T>) {
    isa.run::<T, _>(Micro::<T, R, V>(tiles));
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
