//! One sample at a time: an update of the weights and the product of the new ones with the next input, in one sweep.
//!
//! ```text
//! for group of rows
//!   for run of columns
//!     for row, for vector of columns
//!       weights ← optimizer(weights, δ s̄)      they come from memory and go back
//!       sums += weights · x                     they are still in registers
//! ```
//!
//! The rows of a group are far apart: the hardware fetches ahead along a few streams, each in the order of memory, but not along as many rows
//! side by side. Beside that only sweeps with a product ask for weights, and only far ones: others would lose by it. From memory these take more
//! streams than others.
//!
//! A load waits for stores before it that look alike in a page, and rows of a group often do. So runs are long; where they always do, and the caches
//! hold the weights, plain descent goes along the rows abreast, or, beyond the second-level cache and without a product, along whole rows of two
//! halves in turn: then a vector of the sample is loaded for each row, which costs less than to wait if it is a whole cache line.

use crate::cache;
use crate::gram::{fold, lanes};
use crate::isa::{Isa, Kernel};
use crate::optimizer::{Descending, Descent, Parameters, Rule, Visit};
use crate::product::{Apply, FAR_AHEAD};
use crate::strided::Input;
use crate::threads;
use crate::vector::{Real, Vector};

use faer::{MatRef, Par};

/// Rows of a group, each with a chain of sums: four to six streams with the moments; twice as many for plain sweeps with a product from memory.
const GROUP: usize = 4;

/// Bytes of a row of the weights, and of a sample, that leave room for others in the first-level cache.
const NEAR: usize = 8 << 10;

/// `W ← descent(W, δ s̄ᵀ)`, `image ← W x` with the new weights, for `δ` = `diff` (`n_out`), `s̄` = `mean` and `x` = `next` (`n_in` each).
///
/// Weights and moments have the bits of [`update`]. An `image` is summed in the lanes of one cache line, as the products of
/// [`gram`](crate::gram) are: error at most `γ_{⌈n_in/L⌉+log₂ L}·(|W||x|)_i` with `L` = 16 for f32 and 8 for f64, the same bits for every
/// instruction set and number of threads, but others than those of [`product`](crate::product::product). NaN and infinity propagate.
///
/// Costs `4·n_out·n_in` flops and those of the optimizer, and one pass over weights and moments. Contiguous rows are fast.
///
/// # Panics
/// If lengths do not fit.
pub fn online<T: Real>(isa: Isa, par: Par, descent: Descent<'_, T>, diff: &[T], mean: &[T], next: &[T], image: &mut [T]) {
    (T::kernels().online)(isa, par, descent, diff, mean, Some((next, image)));
}

/// `W ← descent(W, δ s̄ᵀ)` alone, for `δ` = `diff` (`n_out`) and `s̄` = `mean` (`n_in`); for a transposed descent
/// ([`Epilogue::transposed`](crate::epilogue::Epilogue::transposed)) `s̄` comes first.
///
/// A product of depth 1 with this epilogue, to the bit, in less time; but [`Optimizer::Sgd`](crate::optimizer::Optimizer::Sgd) without coupled
/// decay is `fl(keep·w) − fl(η·scale·δ)·s̄`, rounded once: an operation less and the same error bound. That is where every `η·scale·δ` is a normal
/// number or `δ` is 0; else `s̄` might have brought back what the product loses, and it comes first.
///
/// Costs `2·n_out·n_in` flops and those of the optimizer, and one pass over weights and moments.
///
/// # Panics
/// If lengths do not fit.
pub fn update<T: Real>(isa: Isa, par: Par, descent: Descent<'_, T>, diff: &[T], mean: &[T]) {
    (T::kernels().online)(isa, par, descent, diff, mean, None);
}

pub(crate) fn run<T: Real>(
    isa: Isa,
    par: Par,
    descent: Descent<'_, T>,
    diff: &[T],
    mean: &[T],
    product: Option<(&[T], &mut [T])>,
) {
    let (m, n) = descent.shape();
    assert_eq!(diff.len(), m, "diff has an element for each row of the weights");
    assert_eq!(mean.len(), n, "mean has an element for each column of the weights");
    let (tasks, is_transposed) = (threads::tasks(par, 4 * m * n), descent.is_transposed());
    match product {
        Some((next, image)) => {
            assert_eq!(image.len(), m, "image has an element for each row of the weights");
            assert_eq!(next.len(), n, "next has an element for each column of the weights");
            descent.visit(Sweep::<T, true> { isa, tasks, is_transposed, diff, mean, next, image });
        }
        None => descent.visit(Sweep::<T, false> { isa, tasks, is_transposed, diff, mean, next: &[], image: &mut [] }),
    }
}

/// A sweep, `IMAGE` with the product.
struct Sweep<'a, T, const IMAGE: bool> {
    isa: Isa,
    tasks: usize,
    is_transposed: bool,
    diff: &'a [T],
    mean: &'a [T],
    next: &'a [T],
    image: &'a mut [T],
}

impl<T: Real, const IMAGE: bool> Visit<T> for Sweep<'_, T, IMAGE> {
    fn visit<A: Rule<T>>(self, epilogue: Descending<'_, T, A>) {
        let (m, n) = (self.diff.len(), self.mean.len());
        assert!(epilogue.fits(m, n), "the moments have the shape of the weights, {m} × {n}");
        let Sweep { isa, tasks, is_transposed, diff, mean, next, image } = self;
        let rate = epilogue.rule.fold(if is_transposed { mean } else { diff });
        let asks = m * n * (1 + A::MOMENTS) * size_of::<T>() > cache::MEMORY;
        Rows::<T, A, IMAGE> { epilogue, rate, is_transposed, asks, first: 0, diff, mean, next, image }.share(isa, tasks);
    }
}

/// Rows of the weights from `first` on, as many as `diff` has elements.
struct Rows<'a, T, A, const IMAGE: bool> {
    epilogue: Descending<'a, T, A>,
    /// What `δ` is multiplied by: `diff`, or `mean` if the weights are transposed.
    rate: Option<T>,
    is_transposed: bool,
    /// Whether weights come from so far that they are asked for.
    asks: bool,
    first: usize,
    diff: &'a [T],
    mean: &'a [T],
    next: &'a [T],
    image: &'a mut [T],
}

impl<T: Real, A: Rule<T>, const IMAGE: bool> Rows<'_, T, A, IMAGE> {
    /// They are independent, so that threads may split them anywhere.
    fn share(self, isa: Isa, tasks: usize) {
        let rows = self.diff.len();
        if tasks <= 1 || rows < 2 * GROUP {
            return isa.run::<T, _>(self);
        }
        let left = tasks / 2;
        let middle = rows * left / tasks;
        let ((above, below), (top, bottom)) =
            (self.diff.split_at(middle), self.image.split_at_mut(if IMAGE { middle } else { 0 }));
        let (first, second) =
            (Rows { diff: above, image: top, ..self }, Rows { diff: below, image: bottom, first: self.first + middle, ..self });
        threads::join(|| first.share(isa, left), || second.share(isa, tasks - left));
    }
}

impl<T: Real, A: Rule<T>, const IMAGE: bool> Kernel<T> for Rows<'_, T, A, IMAGE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        // Vectors in a line of lanes, and lines of a run: four vectors, for as many registers.
        match const { lanes::<T>() / S::LANES } {
            1 => self.rows::<S, 1, 4>(simd),
            2 => self.rows::<S, 2, 2>(simd),
            4 => self.rows::<S, 4, 1>(simd),
            8 => self.rows::<S, 8, 1>(simd),
            _ => self.rows::<S, 16, 1>(simd),
        }
    }
}

impl<T: Real, A: Rule<T>, const IMAGE: bool> Rows<'_, T, A, IMAGE> {
    #[inline(always)]
    fn rows<S: Vector<T>, const K: usize, const N: usize>(self, simd: S) {
        match (self.epilogue.is_unit(), self.rate) {
            (true, Some(_)) if A::FOLDS => self.ordered::<S, true, true, K, N>(simd),
            (false, Some(_)) if A::FOLDS => self.ordered::<S, false, true, K, N>(simd),
            (true, _) => self.ordered::<S, true, false, K, N>(simd),
            (false, _) => self.ordered::<S, false, false, K, N>(simd),
        }
    }

    #[inline(always)]
    fn ordered<S: Vector<T>, const UNIT: bool, const FOLDED: bool, const K: usize, const N: usize>(mut self, simd: S) {
        let m = self.diff.len();
        let row = size_of_val(self.mean);
        let bytes = m * row * (1 + A::MOMENTS);
        let (stays, is_far) = (bytes <= cache::LAST, bytes > cache::SECOND);
        // Where a vector is a line.
        let halves = UNIT && K == 1 && !IMAGE && stays && (A::MOMENTS > 0 || is_far) && self.epilogue.look_alike(GROUP);
        // What constants rule out is not compiled. Scalar code need not be fast.
        let done = if const { !UNIT || S::IS_SCALAR } || halves {
            0
        } else if const { K == 1 && A::MOMENTS == 0 && IMAGE } && !stays {
            self.groups::<S, UNIT, FOLDED, K, { 2 * GROUP }, N>(simd, false)
        } else if const { K == 1 && A::MOMENTS == 0 } && stays && self.epilogue.look_alike(m / GROUP) {
            self.groups::<S, UNIT, FOLDED, K, GROUP, N>(simd, true)
        } else if const { A::MOMENTS == 0 } && !(IMAGE && row <= NEAR && is_far) {
            self.groups::<S, UNIT, FOLDED, K, GROUP, N>(simd, false)
        } else {
            self.groups::<S, UNIT, FOLDED, K, 2, N>(simd, false)
        };
        for i in done..m {
            // Of two halves in turn; the last row of an odd number is on its own.
            let row = if halves && i < m / 2 * 2 { i / 2 + i % 2 * (m / 2) } else { i };
            self.group::<S, UNIT, FOLDED, K, 1, N>(simd, row, 0, false);
        }
    }

    /// Groups of `R` rows; returns how many rows are in one.
    #[inline(always)]
    fn groups<S: Vector<T>, const UNIT: bool, const FOLDED: bool, const K: usize, const R: usize, const N: usize>(
        &mut self,
        simd: S,
        abreast: bool,
    ) -> usize {
        let apart = self.diff.len() / R;
        for row in 0..apart {
            self.group::<S, UNIT, FOLDED, K, R, N>(simd, row, apart, abreast);
        }
        apart * R
    }

    /// 1, 2, 4 or 8 rows that are `apart`, in runs of `N` lines; if `abreast`, vectors below each other are loaded before one of them is stored. The
    /// caller names that as a constant.
    #[inline(always)]
    fn group<S: Vector<T>, const UNIT: bool, const FOLDED: bool, const K: usize, const R: usize, const N: usize>(
        &mut self,
        simd: S,
        row: usize,
        apart: usize,
        abreast: bool,
    ) {
        let (n, rate) = (self.mean.len(), self.rate.unwrap_or(T::ONE));
        let mut diff = [simd.splat(T::ZERO); R];
        for r in 0..R {
            let d = self.diff[row + r * apart];
            diff[r] = simd.splat(if FOLDED && !self.is_transposed { rate * d } else { d });
        }
        let mut sums = [[simd.splat(T::ZERO); K]; R];
        let length = K * S::LANES;
        let mut line = 0;
        while line + N * length <= n {
            // SAFETY: `N` lines of whole vectors; `rows` has asked for `UNIT`; `ordered` and `groups` give each row to one group.
            unsafe { self.lines::<S, UNIT, FOLDED, K, R, N>(simd, (row, apart, abreast), &diff, line, |_| S::LANES, &mut sums) };
            line += N * length;
        }
        while line < n {
            // SAFETY: each vector as far as there are columns; the rest as above.
            unsafe {
                self.lines::<S, UNIT, FOLDED, K, R, 1>(
                    simd,
                    (row, apart, abreast),
                    &diff,
                    line,
                    |col| S::LANES.min(n.saturating_sub(col)),
                    &mut sums,
                );
            }
            line += length;
        }
        for (r, sums) in sums.iter().enumerate().filter(|_| IMAGE) {
            self.image[row + r * apart] = fold(simd, *sums);
        }
    }

    /// `N` lines of columns of `R` rows (1, 2, 4 or 8), from `line`.
    ///
    /// # Safety
    /// For each vector of them, which starts at a column `col`, `live(col)` is zero, or at most `LANES` with `col + live(col) ≤ n`. Rows
    /// `row + r·apart`, `r < R`, are among those that `diff` has elements for, and no other call has them. `UNIT` only if the epilogue is.
    #[inline(always)]
    unsafe fn lines<S: Vector<T>, const UNIT: bool, const FOLDED: bool, const K: usize, const R: usize, const N: usize>(
        &self,
        simd: S,
        (row, apart, abreast): (usize, usize, bool),
        diff: &[S::V; R],
        line: usize,
        live: impl Fn(usize) -> usize + Copy,
        sums: &mut [[S::V; K]; R],
    ) {
        let (zero, rate) = (simd.splat(T::ZERO), simd.splat(self.rate.unwrap_or(T::ONE)));
        let [mean, next] = [self.mean, self.next].map(|row| Input::new(MatRef::from_row_major_slice(row, 1, row.len())));
        let (mut s, mut x) = ([[zero; K]; N], [[zero; K]; N]);
        for v in 0..N {
            for k in 0..K {
                let col = line + (v * K + k) * S::LANES;
                if live(col) > 0 {
                    // SAFETY: `1 ≤ live`, `col + live ≤ n` (contract); this vector is only read.
                    s[v][k] = unsafe { mean.load::<S, true>(simd, 0, col, live(col)) };
                    if FOLDED && self.is_transposed {
                        s[v][k] = simd.mul(rate, s[v][k]);
                    }
                    if IMAGE {
                        // SAFETY: as above.
                        x[v][k] = unsafe { next.load::<S, true>(simd, 0, col, live(col)) };
                    }
                }
            }
        }
        if abreast {
            for v in 0..N {
                for k in 0..K {
                    let col = line + (v * K + k) * S::LANES;
                    let mut new = [[zero; 3]; R];
                    for r in 0..R {
                        let row = row + r * apart;
                        // SAFETY: the contract.
                        new[r] = unsafe {
                            self.step::<S, UNIT, FOLDED>(simd, row, diff[r], (col, live(col)), s[v][k], x[v][k], &mut sums[r][k])
                        };
                    }
                    for r in 0..R {
                        if live(col) > 0 {
                            // SAFETY: the contract of `step`.
                            unsafe { self.epilogue.store::<S, UNIT>(simd, self.first + row + r * apart, col, live(col), new[r]) };
                        }
                    }
                }
            }
            return;
        }
        // In a loop over the rows the compiler would keep the sums in memory.
        macro_rules! run_of {
            ($($r:literal)*) => { $(
                if R > $r {
                    let (row, sum) = (row + $r * apart, &mut sums[$r]);
                    // SAFETY: the contract, row by row.
                    unsafe { self.run_of::<S, UNIT, FOLDED, K, N>(simd, row, diff[$r], line, live, (&s, &x), sum) };
                }
            )* };
        }
        run_of!(0 1 2 3 4 5 6 7);
    }

    /// `N` lines of row `row` from `line`, for these vectors of `mean` and `next`.
    ///
    /// # Safety
    /// As for [`lines`](Self::lines), for this row.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "a part of `lines`")]
    unsafe fn run_of<S: Vector<T>, const UNIT: bool, const FOLDED: bool, const K: usize, const N: usize>(
        &self,
        simd: S,
        row: usize,
        diff: S::V,
        line: usize,
        live: impl Fn(usize) -> usize + Copy,
        (s, x): (&[[S::V; K]; N], &[[S::V; K]; N]),
        sum: &mut [S::V; K],
    ) {
        for v in 0..N {
            for k in 0..K {
                let col = line + (v * K + k) * S::LANES;
                // SAFETY: the contract.
                let new =
                    unsafe { self.step::<S, UNIT, FOLDED>(simd, row, diff, (col, live(col)), s[v][k], x[v][k], &mut sum[k]) };
                if live(col) > 0 {
                    // SAFETY: the contract of `step`.
                    unsafe { self.epilogue.store::<S, UNIT>(simd, self.first + row, col, live(col), new) };
                }
            }
        }
    }

    /// The new parameters of `live` columns from `col` of row `row`, and their part of the product.
    ///
    /// # Safety
    /// As for [`lines`](Self::lines), for these columns of this row.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "a part of `lines`")]
    unsafe fn step<S: Vector<T>, const UNIT: bool, const FOLDED: bool>(
        &self,
        simd: S,
        row: usize,
        diff: S::V,
        (col, live): (usize, usize),
        mean: S::V,
        next: S::V,
        sum: &mut S::V,
    ) -> Parameters<S::V> {
        let (row, zero) = (self.first + row, simd.splat(T::ZERO));
        if live == 0 {
            // What a wider vector does in the lanes behind the last column.
            *sum = simd.mul_add(zero, zero, *sum);
            return [zero; 3];
        }
        // With vectors shorter than a line the question costs more than it saves.
        if IMAGE && (const { S::LANES < lanes::<T>() } || self.asks) {
            self.epilogue.prefetch::<true>(row, col + FAR_AHEAD / size_of::<T>());
        }
        // SAFETY: the epilogue fits the weights, of which this row is one and ours alone, since `share` gives no row to two; `1 ≤ live`,
        // `col + live ≤ n` (contract).
        let old = unsafe { self.epilogue.load::<S, UNIT>(simd, row, col, live) };
        let rule = self.epilogue.rule;
        let new = match FOLDED {
            true => rule.follow_folded(simd, diff, mean, old),
            false => rule.follow(simd, simd.mul_add(diff, mean, zero), old),
        };
        if IMAGE {
            // Lanes without a weight may have become 0/0.
            let w = if live < S::LANES { simd.first(live, new[0], T::ZERO) } else { new[0] };
            *sum = simd.mul_add(w, next, *sum);
        }
        new
    }
}
