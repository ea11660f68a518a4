//! Products with sparse matrices, weight updates on a fixed pattern, and sums over the stored elements.
//!
//! A [`Matrix`] is kept by rows and once more by columns, each with 16-bit indices where they suffice, so that `A` and `Aᵀ` are the same
//! loop: a sum for each line, over gathered elements of the operand. Nothing is ever scattered, so threads share out lines and
//! no number of them changes a bit.
//!
//! * A batch (or several vectors) is worked on in blocks of 16 or 8 that lie interleaved: one index fetches a whole vector register. Every
//!   sum is **one chain of fused multiply-adds** from zero in ascending index, as in [`product`](mod@crate::product), several lines at a time.
//! * A single vector: of the whole groups of `L` terms of a line, `L` being the elements of a cache line (16 for f32, 8 for f64), the term
//!   `k` belongs to lane `k mod L`, each lane is one chain in ascending `k`, and the lanes are added up by halves. The terms that are
//!   left form a chain of their own, which is added last.
//! * The gradient of a stored element is a sum over the batch in such lanes, with zeros up to a whole group.
//!
//! So the bits depend on the matrix, the operand and on whether a vector comes alone, and on nothing else.

use core::ops::Range;
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{MatMut, MatRef, Par};

use crate::epilogue::Epilogue;
use crate::gram::{fold, lanes};
use crate::isa::{Isa, Kernel};
use crate::optimizer::{Descent, Update};
use crate::product::{Finish, Part, Scratch, Sums};
use crate::threads;
use crate::vector::{Real, Vector};

/// Vectors of a full block, and of the smallest one.
const WIDE: usize = 16;
const NARROW: usize = 8;

/// Lines whose squares are summed together, and that one call of a kernel works on; a multiple of every [`arch::square`](crate::arch::square).
const PART: usize = 128;

/// Gradients that are handed to the optimizer at once.
const GRADIENTS: usize = 1024;

/// What is wrong with raw parts of a compressed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line (row of CSR, column of CSC) where it is.
    pub line: usize,
    /// Which stored element of all, or which pointer if it is a pointer.
    pub position: usize,
    /// What has to hold there.
    pub rule: &'static str,
}

/// Indices of the stored elements within their lines.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Indices {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

/// Which elements of `lines × across` are stored: in every line, at strictly ascending indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Length `lines + 1`, from 0, never falling, to the number of indices.
    start: Vec<usize>,
    /// All below `across`.
    indices: Indices,
    across: usize,
}

impl Pattern {
    /// Checks and takes raw parts: line `i` has the indices `indices[start[i]..start[i + 1]]`.
    ///
    /// # Errors
    /// The first [`Fault`]: pointers that are not `lines + 1`, do not begin with 0, fall, or do not end with the number of indices; an index
    /// that is negative, not below `across`, or not above the one before it (so a duplicate is refused as any other disorder is).
    pub fn new<P, I>(lines: usize, across: usize, start: &[P], indices: &[I]) -> Result<Self, Fault>
    where
        P: Copy + TryInto<usize>,
        I: Copy + TryInto<usize>,
    {
        let fault = |line, position, rule| Err(Fault { line, position, rule });
        if lines as u64 > 1 << 32 || across as u64 > 1 << 32 {
            return fault(0, 0, "there must be at most 2^32 rows and columns");
        }
        if start.len() != lines.saturating_add(1) {
            return fault(lines, start.len(), "there must be a pointer for each line and one for the end");
        }
        let mut starts = Vec::with_capacity(start.len());
        for (line, &pointer) in start.iter().enumerate() {
            match (pointer.try_into(), starts.last()) {
                (Ok(0), None) => starts.push(0),
                (_, None) => return fault(0, 0, "the first pointer must be 0"),
                (Ok(pointer), Some(&before)) if pointer >= before => starts.push(pointer),
                _ => return fault(line - 1, line, "pointers must not fall"),
            }
        }
        if starts[lines] != indices.len() {
            return fault(lines, lines, "the last pointer must be the number of indices");
        }
        let mut checked = if across <= 1 << 16 {
            Indices::Narrow(Vec::with_capacity(indices.len()))
        } else {
            Indices::Wide(Vec::with_capacity(indices.len()))
        };
        for line in 0..lines {
            let mut least = 0;
            for position in starts[line]..starts[line + 1] {
                match indices[position].try_into() {
                    Ok(index) if index >= across => {
                        return fault(line, position, "indices must be below the number of columns (CSC: rows)");
                    }
                    Ok(index) if index < least => {
                        return fault(line, position, "indices must ascend strictly: sorted, no duplicates");
                    }
                    Ok(index) => {
                        least = index + 1;
                        match &mut checked {
                            Indices::Narrow(checked) => checked.push(index as u16),
                            Indices::Wide(checked) => checked.push(index as u32),
                        }
                    }
                    Err(_) => return fault(line, position, "indices must be whole numbers that are not negative"),
                }
            }
        }
        Ok(Self { start: starts, indices: checked, across })
    }

    /// Rows of CSR, columns of CSC.
    pub fn lines(&self) -> usize {
        self.start.len() - 1
    }

    /// Length of a line with all that is not stored.
    pub fn across(&self) -> usize {
        self.across
    }

    /// Stored elements.
    pub fn stored(&self) -> usize {
        self.start[self.lines()]
    }

    /// Where the elements of a line are stored.
    ///
    /// # Panics
    /// If there is no such line.
    pub fn line(&self, line: usize) -> Range<usize> {
        self.start[line]..self.start[line + 1]
    }

    /// Index of a stored element within its line.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn index(&self, position: usize) -> usize {
        match &self.indices {
            Indices::Narrow(indices) => indices[position].into(),
            Indices::Wide(indices) => indices[position] as usize,
        }
    }

    /// The line of a stored element.
    fn line_of(&self, position: usize) -> usize {
        self.start.partition_point(|&start| start <= position) - 1
    }

    /// The same elements by the other dimension.
    fn transposed(&self) -> Self {
        let mut start = vec![0; self.across + 1];
        (0..self.stored()).for_each(|k| start[self.index(k) + 1] += 1);
        (0..self.across).for_each(|j| start[j + 1] += start[j]);
        let mut next = start.clone();
        let mut lines = vec![0u32; self.stored()];
        for line in 0..self.lines() {
            for k in self.line(line) {
                let place = &mut next[self.index(k)];
                lines[*place] = line as u32;
                *place += 1;
            }
        }
        let indices = if self.lines() <= 1 << 16 {
            Indices::Narrow(lines.iter().map(|&line| line as u16).collect())
        } else {
            Indices::Wide(lines)
        };
        Self { start, indices, across: self.lines() }
    }
}

/// A pattern and a value for each of its elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Compressed<T> {
    pattern: Pattern,
    values: Vec<T>,
}

impl<T: Real> Compressed<T> {
    /// Which elements are stored.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// The stored elements, line by line.
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// Takes the values from the same matrix by its other dimension.
    fn refresh(&mut self, other: &Self) {
        let mut next = self.pattern.start.clone();
        let mut take = |index: usize, value| {
            self.values[next[index]] = value;
            next[index] += 1;
        };
        match &other.pattern.indices {
            Indices::Narrow(indices) => indices.iter().zip(&other.values).for_each(|(&j, &v)| take(j.into(), v)),
            Indices::Wide(indices) => indices.iter().zip(&other.values).for_each(|(&j, &v)| take(j as usize, v)),
        }
    }
}

/// A sparse matrix by rows and by columns: `2·(size of T + 2 or 4)` bytes for each stored element.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix<T> {
    rows: Compressed<T>,
    columns: Compressed<T>,
}

impl<T: Real> Matrix<T> {
    /// From its rows.
    ///
    /// # Panics
    /// Unless there is a value for each element of the pattern.
    pub fn new(pattern: Pattern, values: Vec<T>) -> Self {
        assert_eq!(values.len(), pattern.stored(), "a value for each stored element");
        let columns = Compressed { pattern: pattern.transposed(), values: vec![T::ZERO; values.len()] };
        let mut matrix = Self { rows: Compressed { pattern, values }, columns };
        matrix.columns.refresh(&matrix.rows);
        matrix
    }

    /// Rows become columns.
    pub fn transpose(self) -> Self {
        Self { rows: self.columns, columns: self.rows }
    }

    /// `A`.
    pub fn rows(&self) -> &Compressed<T> {
        &self.rows
    }

    /// `Aᵀ`.
    pub fn columns(&self) -> &Compressed<T> {
        &self.columns
    }

    /// Changes stored elements, which come row by row. Costs a pass over both copies besides.
    pub fn edit<R>(&mut self, edit: impl FnOnce(&mut [T]) -> R) -> R {
        let result = edit(&mut self.rows.values);
        self.columns.refresh(&self.rows);
        result
    }
}

/// `y_i ← A x_i`, where `x_i` and `y_i` are rows of `x` (`p × across`) and `y` (`p × lines`); for `Aᵀ` take [`Matrix::columns`].
///
/// Any strides; fastest if 8 or 16 vectors lie interleaved (row stride 1, column stride `p`). Error of a sum of `k` terms at most
/// `γ_k Σ|a x|`. NaN and infinity propagate from stored elements and from the elements of `x` that they meet. Costs `2p` flops and, for
/// each 16 vectors, one read of each stored element.
///
/// # Panics
/// If shapes do not fit.
pub fn apply<T: Real>(isa: Isa, par: Par, a: &Compressed<T>, x: MatRef<'_, T>, y: MatMut<'_, T>, scratch: &mut Scratch<T>) {
    assert_eq!((x.ncols(), y.shape()), (a.pattern.across, (x.nrows(), a.pattern.lines())), "a row of x and y for each vector");
    (T::kernels().sparse_chain)(isa, par, &[a], x, y, &mut [], scratch);
}

/// `y_i ← AᵀA x_i`, `squares_i ← ‖A x_i‖²` (of the elements as rounded to `T`, summed in f64 with a relative error of at most `γ_m`; for f64
/// their squares may overflow or underflow). Otherwise as [`apply`] with `A` and then `Aᵀ`, to the bit.
///
/// # Panics
/// If shapes do not fit.
pub fn gram<T: Real>(
    isa: Isa,
    par: Par,
    a: &Matrix<T>,
    x: MatRef<'_, T>,
    y: MatMut<'_, T>,
    squares: &mut [f64],
    scratch: &mut Scratch<T>,
) {
    assert_eq!((x.ncols(), y.shape()), (a.rows.pattern.across, x.shape()), "x and y have a row for each vector");
    assert_eq!(squares.len(), x.nrows(), "a square for each vector");
    (T::kernels().sparse_chain)(isa, par, &[&a.rows, &a.columns], x, y, squares, scratch);
}

/// Hands every sum `Σ_j x_ij a_kj` of the product `x Aᵀ` (`batch × lines`) to the epilogue: the forward pass of a layer for
/// [`Matrix::rows`], its top-down pass for [`Matrix::columns`].
///
/// Every sum is one chain of fused multiply-adds in ascending `j` over the stored elements, whatever the batch; otherwise as [`apply`].
///
/// # Panics
/// If the shapes of `x` or of the epilogue do not fit.
pub fn product<T: Real>(
    isa: Isa,
    par: Par,
    a: &Compressed<T>,
    x: MatRef<'_, T>,
    epilogue: Epilogue<'_, T>,
    scratch: &mut Scratch<T>,
) {
    (T::kernels().sparse_product)(isa, par, a, x, epilogue, scratch);
}

/// A step of an optimizer on the stored elements, along the gradient `update.scale·Σ_b above_bi below_bj`.
///
/// `above` is `batch × rows`, `below` `batch × columns`; `moments` are the optimizer's state, as long as the stored elements and in their order
/// by rows. The term of sample `b` belongs to lane `b mod L` (see the [module](self)): error at most `γ_{B/L+5} Σ|above·below|`. The gradient
/// never goes to memory. Costs `2B` flops for each stored element and one pass over both copies.
///
/// # Panics
/// If shapes, lengths or the number of moments do not fit.
#[expect(clippy::too_many_arguments, reason = "weights, moments, two states, the rule, and where to work")]
pub fn update<T: Real>(
    isa: Isa,
    par: Par,
    a: &mut Matrix<T>,
    moments: &mut [&mut [T]],
    above: MatRef<'_, T>,
    below: MatRef<'_, T>,
    update: Update,
    scratch: &mut Scratch<T>,
) {
    (T::kernels().sparse_update)(isa, par, a, moments, above, below, update, scratch);
}

/// `y_i = Σ_j a_ij x_j` and `sizes_i = Σ_j |a_ij||x_j|` in f64, each one chain of fused multiply-adds in ascending `j`: errors of at most
/// `γ_k Σ|a_ij||x_j|` for `k` terms, unless products underflow.
///
/// # Panics
/// If lengths do not fit.
pub fn wide<T: Real>(isa: Isa, a: &Compressed<T>, x: &[f64], y: &mut [f64], sizes: &mut [f64]) {
    let lines = a.pattern.lines();
    assert_eq!([x.len(), y.len(), sizes.len()], [a.pattern.across, lines, lines], "one element for each line or column");
    (T::kernels().sparse_wide)(isa, a, x, y, sizes);
}

/// What one pass over the stored elements tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scan {
    /// `max_i Σ_j |s a_ij|`.
    pub line: f64,
    /// `max_i Σ_j (s a_ij)²`.
    pub line_square: f64,
    /// `Σ (s a_ij)²`.
    pub square: f64,
}

/// Sums over the lines of `s·A`; `s` is a power of two that brings the largest element near 1, so that nothing overflows.
///
/// Relative error at most `γ_{k+1}` for a line of `k` elements and `γ_{k+lines+1}` for all, and `2⁻¹⁰⁷⁴` for each element that vanishes.
pub fn scan<T: Real>(a: &Compressed<T>, s: f64) -> Scan {
    let mut scan = Scan { line: 0.0, line_square: 0.0, square: 0.0 };
    for line in 0..a.pattern.lines() {
        let (mut sum, mut square) = (0.0, 0.0);
        for value in &a.values[a.pattern.line(line)] {
            let size = value.to_f64().abs() * s;
            sum += size;
            square += size * size;
        }
        scan.line = scan.line.max(sum);
        scan.line_square = scan.line_square.max(square);
        scan.square += square;
    }
    scan
}

/// An index type of a pattern.
trait Index: Copy + Send + Sync {
    fn at(self) -> usize;
}

impl Index for u16 {
    #[inline(always)]
    fn at(self) -> usize {
        self.into()
    }
}

impl Index for u32 {
    #[inline(always)]
    fn at(self) -> usize {
        self as usize
    }
}

/// The widest instruction set whose vectors are not longer than a block of `width`; all give the same bits.
fn within<T: Real>(isa: Isa, width: usize) -> Isa {
    let fits = |isa: &Isa| isa.lanes::<T>() <= width;
    if fits(&isa) { isa } else { Isa::available().find(fits).unwrap_or(isa) }
}

/// Lines that [`Work`] is done on: the sums of `width` vectors for each.
struct Work<'a, T> {
    isa: Isa,
    a: &'a Compressed<T>,
    /// Interleaved, `across × width`.
    x: &'a [T],
    width: usize,
}

impl<'a, T: Real> Work<'a, T> {
    /// # Panics
    /// Unless `x` is `across × width`, which the kernels count on, and `width` is 1, 8 or 16.
    fn new(isa: Isa, a: &'a Compressed<T>, x: &'a [T], width: usize) -> Self {
        assert!(x.len() == a.pattern.across * width && [1, NARROW, WIDE].contains(&width));
        Self { isa: if width == 1 { within::<T>(isa, lanes::<T>()) } else { within::<T>(isa, width) }, a, x, width }
    }

    fn tasks(&self, par: Par) -> usize {
        threads::tasks(par, 4 * self.a.pattern.stored() * self.width)
    }

    /// The sums of the lines of some parts, and the sums of their squares in each part if there is room for them.
    fn sums(&self, parts: Range<usize>, y: &mut [T], squares: &mut [f64], tasks: usize) {
        if tasks <= 1 || parts.len() <= 1 {
            for part in parts.clone() {
                let done = part - parts.start;
                let lines = part * PART..self.a.pattern.lines().min((part + 1) * PART);
                let y = &mut y[done * PART * self.width..][..lines.len() * self.width];
                self.part(lines, y);
                if let Some(squares) = squares.get_mut(done * self.width..(done + 1) * self.width) {
                    self.isa.run::<T, _>(Squares { y, squares });
                }
            }
            return;
        }
        let (left, middle) = self.cut(&parts, tasks);
        let (top, bottom) = y.split_at_mut((middle - parts.start) * PART * self.width);
        let (first, second) = squares.split_at_mut(squares.len().min((middle - parts.start) * self.width));
        threads::join(
            || self.sums(parts.start..middle, top, first, left),
            || self.sums(middle..parts.end, bottom, second, tasks - left),
        );
    }

    /// Tasks of the left half, and the part where the right half begins: stored elements in proportion.
    fn cut(&self, parts: &Range<usize>, tasks: usize) -> (usize, usize) {
        let start = |part: usize| self.a.pattern.start[self.a.pattern.lines().min(part * PART)];
        let left = tasks / 2;
        let (from, to) = (start(parts.start), start(parts.end));
        let wanted = from + ((to - from) as u128 * left as u128 / tasks as u128) as usize;
        let middle = (parts.start..parts.end).find(|&part| start(part) >= wanted).unwrap_or(parts.end);
        (left, middle.clamp(parts.start + 1, parts.end - 1))
    }

    /// The sums of some lines.
    fn part(&self, lines: Range<usize>, y: &mut [T]) {
        let Compressed { pattern, values } = self.a;
        match &pattern.indices {
            Indices::Narrow(indices) => self.run(&pattern.start[lines.start..=lines.end], indices, values, y),
            Indices::Wide(indices) => self.run(&pattern.start[lines.start..=lines.end], indices, values, y),
        }
    }

    fn run<I: Index>(&self, start: &[usize], indices: &[I], values: &[T], y: &mut [T]) {
        // The patterns are checked, so that every index is below `across`; the rest of what the kernels count on.
        assert!(
            indices.len() == values.len() && start[start.len() - 1] <= values.len() && y.len() == (start.len() - 1) * self.width
        );
        match self.width {
            1 => self.isa.run::<T, _>(Single { start, indices, values, x: self.x, y }),
            NARROW => self.isa.run::<T, _>(Block::<T, I, NARROW> { start, indices, values, x: self.x, y }),
            _ => self.isa.run::<T, _>(Block::<T, I, WIDE> { start, indices, values, x: self.x, y }),
        }
    }
}

/// `squares_i ← Σ y²` of an interleaved block, in f64, ascending.
struct Squares<'a, T> {
    y: &'a [T],
    squares: &'a mut [f64],
}

impl<T: Real> Kernel<T> for Squares<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, _: S) {
        let width = self.squares.len();
        self.squares.fill(0.0);
        for y in self.y.chunks_exact(width) {
            for (square, y) in self.squares.iter_mut().zip(y) {
                *square = y.to_f64().mul_add(y.to_f64(), *square);
            }
        }
    }
}

/// Sums of lines with `W` interleaved vectors.
///
/// `start` has a pointer more than `y` has lines; pointers ascend to at most the number of indices and values; every index is below the
/// number of `W`-blocks of `x`.
struct Block<'a, T, I, const W: usize> {
    start: &'a [usize],
    indices: &'a [I],
    values: &'a [T],
    x: &'a [T],
    y: &'a mut [T],
}

impl<T: Real, I: Index, const W: usize> Kernel<T> for Block<'_, T, I, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        // Lines at a time: enough chains to hide the latency of an addition, in no more than half of the registers.
        match const { W / S::LANES } {
            1 => self.lines::<S, 1, 4>(simd),
            2 => self.lines::<S, 2, 4>(simd),
            4 => self.lines::<S, 4, 2>(simd),
            8 => self.lines::<S, 8, 1>(simd),
            16 => self.lines::<S, 16, 1>(simd),
            _ => unreachable!("`within` has chosen vectors of 1 to `W` lanes"),
        }
    }
}

impl<T: Real, I: Index, const W: usize> Block<'_, T, I, W> {
    #[inline(always)]
    fn lines<S: Vector<T>, const V: usize, const R: usize>(mut self, simd: S) {
        let lines = self.start.len() - 1;
        let mut line = 0;
        while line + R <= lines {
            self.several::<S, V, R>(simd, line);
            line += R;
        }
        while line < lines {
            self.several::<S, V, 1>(simd, line);
            line += 1;
        }
    }

    /// `R` lines, together as far as the shortest goes, then one after the other.
    #[inline(always)]
    fn several<S: Vector<T>, const V: usize, const R: usize>(&mut self, simd: S, line: usize) {
        let bounds = &self.start[line..=line + R];
        let together = (0..R).map(|r| bounds[r + 1] - bounds[r]).min().unwrap_or(0);
        let mut sums = [[simd.splat(T::ZERO); V]; R];
        for k in 0..together {
            for r in 0..R {
                // SAFETY: `bounds[r] + k < bounds[r + 1]`, at most the number of elements.
                sums[r] = unsafe { self.step(simd, sums[r], bounds[r] + k) };
            }
        }
        for r in 0..R {
            let mut sum = sums[r];
            for k in bounds[r] + together..bounds[r + 1] {
                // SAFETY: as above.
                sum = unsafe { self.step(simd, sum, k) };
            }
            let y = &mut self.y[(line + r) * W..][..W];
            S::as_vectors_mut(y).0.copy_from_slice(&sum);
        }
    }

    /// Adds the term of stored element `k`.
    ///
    /// # Safety
    /// `k` is below the number of indices and values.
    #[inline(always)]
    unsafe fn step<S: Vector<T>, const V: usize>(&self, simd: S, mut sum: [S::V; V], k: usize) -> [S::V; V] {
        // SAFETY: contract.
        let value = simd.splat(*unsafe { self.values.get_unchecked(k) });
        // SAFETY: contract.
        let index = unsafe { self.indices.get_unchecked(k) }.at();
        for v in 0..V {
            let at = self.x.as_ptr().wrapping_add(index * W + v * S::LANES).cast::<S::V>();
            // SAFETY: `V·LANES = W` elements of block `index` of `x` (`Block`).
            sum[v] = simd.mul_add(value, unsafe { at.read_unaligned() }, sum[v]);
        }
        sum
    }
}

/// Sums of lines with one vector; the fields are as those of [`Block`] for `W = 1`.
struct Single<'a, T, I> {
    start: &'a [usize],
    indices: &'a [I],
    values: &'a [T],
    x: &'a [T],
    y: &'a mut [T],
}

impl<T: Real, I: Index> Kernel<T> for Single<'_, T, I> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        // Vectors in a line of lanes.
        match const { lanes::<T>() / S::LANES } {
            1 => self.lines::<S, 1>(simd),
            2 => self.lines::<S, 2>(simd),
            4 => self.lines::<S, 4>(simd),
            8 => self.lines::<S, 8>(simd),
            _ => self.lines::<S, 16>(simd),
        }
    }
}

impl<T: Real, I: Index> Single<'_, T, I> {
    #[inline(always)]
    fn lines<S: Vector<T>, const V: usize>(self, simd: S) {
        let lanes = V * S::LANES;
        for (bounds, y) in self.start.windows(2).zip(self.y) {
            let (indices, values) = (&self.indices[bounds[0]..bounds[1]], &self.values[bounds[0]..bounds[1]]);
            let mut sums = [simd.splat(T::ZERO); V];
            let whole = values.len() / lanes * lanes;
            for k in (0..whole).step_by(lanes) {
                for v in 0..V {
                    let k = k + v * S::LANES;
                    // SAFETY: `k + LANES ≤ values.len()`.
                    let a = unsafe { simd.load_live(values.as_ptr().wrapping_add(k), S::LANES) };
                    // SAFETY: as above, and `indices` is as long; each is below the length of `x` (`Single`).
                    let x = unsafe { gather(simd, indices.as_ptr().wrapping_add(k), self.x) };
                    sums[v] = simd.mul_add(a, x, sums[v]);
                }
            }
            let mut rest = T::ZERO;
            for (&a, &index) in values[whole..].iter().zip(&indices[whole..]) {
                // SAFETY: an index of the pattern is below the length of `x` (`Single`).
                rest = a.mul_add(*unsafe { self.x.get_unchecked(index.at()) }, rest);
            }
            *y = fold(simd, sums) + rest;
        }
    }
}

/// The elements of `x` at `LANES` indices.
///
/// # Safety
/// `LANES` indices at `indices` are readable, and each is below the length of `x`.
#[inline(always)]
unsafe fn gather<T: Real, I: Index, S: Vector<T>>(_: S, indices: *const I, x: &[T]) -> S::V {
    let mut lanes = [T::ZERO; 16];
    for l in 0..S::LANES {
        // SAFETY: `l < LANES` (contract).
        let index = unsafe { *indices.wrapping_add(l) }.at();
        // SAFETY: contract.
        lanes[l] = *unsafe { x.get_unchecked(index) };
    }
    S::as_vectors(&lanes).0[0]
}

/// `to[j·width + i] ← x[(i, j)]`, zeros for `i` from the rows of `x` to `width`.
fn interleave<T: Real>(x: MatRef<'_, T>, width: usize, to: &mut [T]) {
    let (p, n) = x.shape();
    for from in (0..n).step_by(PART) {
        let some = PART.min(n - from);
        let to = &mut to[from * width..(from + some) * width];
        for i in 0..width {
            if i >= p {
                (0..some).for_each(|j| to[j * width + i] = T::ZERO);
                continue;
            }
            match x.row(i).try_as_row_major() {
                Some(row) => {
                    row.as_slice()[from..from + some].iter().zip(to[i..].iter_mut().step_by(width)).for_each(|(&x, to)| *to = x)
                }
                None => (0..some).for_each(|j| to[j * width + i] = x[(i, from + j)]),
            }
        }
    }
}

/// `y[(i, j)] ← from[j·width + i]`.
fn separate<T: Real>(from: &[T], width: usize, mut y: MatMut<'_, T>) {
    let n = y.ncols();
    for first in (0..n).step_by(PART) {
        for i in 0..y.nrows() {
            for j in first..n.min(first + PART) {
                y[(i, j)] = from[j * width + i];
            }
        }
    }
}

/// The elements of a view that lies interleaved as a block of `width` does.
fn interleaved<T: Real>(x: MatRef<'_, T>, width: usize) -> Option<&[T]> {
    let (p, n) = x.shape();
    let lies = p == width && (p == 1 || x.row_stride() == 1) && (n <= 1 || x.col_stride() == width as isize);
    if !lies || n == 0 {
        return None;
    }
    // SAFETY: the elements of the view are `n·width` contiguous ones from its pointer, and live as long.
    Some(unsafe { core::slice::from_raw_parts(x.as_ptr(), n * width) })
}

/// As [`interleaved`].
fn interleaved_mut<T: Real>(mut y: MatMut<'_, T>, width: usize) -> Option<&mut [T]> {
    let len = interleaved(y.rb(), width)?.len();
    // SAFETY: `interleaved` has found that the view is `len` contiguous elements; the view gives unique access to them.
    Some(unsafe { core::slice::from_raw_parts_mut(y.rb_mut().as_ptr_mut(), len) })
}

/// Vectors of the next block when so many are left: a single one is one only if it is alone from the beginning.
fn block_width(left: usize) -> usize {
    if left > NARROW { WIDE } else { NARROW }
}

/// `y_i ← A_2 A_1 x_i` for one or two factors, the squares of the elements in between.
pub(crate) fn run_chain<T: Real>(
    isa: Isa,
    par: Par,
    factors: &[&Compressed<T>],
    x: MatRef<'_, T>,
    mut y: MatMut<'_, T>,
    squares: &mut [f64],
    scratch: &mut Scratch<T>,
) {
    let p = x.nrows();
    let (Some(first), Some(last)) = (factors.first(), factors.last()) else { return };
    let round = |len: usize| len.next_multiple_of(lanes::<T>());
    let mut of_parts = Vec::new();
    let mut from = 0;
    while from < p {
        let width = if p == 1 { 1 } else { block_width(p - from) };
        let live = width.min(p - from);
        let (n, m, k) = (first.pattern.across * width, first.pattern.lines() * width, last.pattern.lines() * width);
        scratch.0.reserve(round(n) + round(m) + round(k));
        let (packed, rest) = scratch.0.as_mut_slice().split_at_mut(round(n));
        let (middle, rest) = rest.split_at_mut(round(m));
        let x = x.subrows(from, live);
        let x = match interleaved(x, width) {
            Some(x) => x,
            None => {
                interleave(x, width, &mut packed[..n]);
                &packed[..n]
            }
        };
        let mut y = y.rb_mut().subrows_mut(from, live);
        {
            let mut direct = interleaved_mut(y.rb_mut(), width);
            let out = direct.as_deref_mut().unwrap_or(&mut rest[..k]);
            let work = Work::new(isa, first, x, width);
            if let [_, second] = factors {
                let parts = first.pattern.lines().div_ceil(PART);
                of_parts.clear();
                of_parts.resize(parts * width, 0.0);
                work.sums(0..parts, &mut middle[..m], &mut of_parts, work.tasks(par));
                for (i, square) in squares[from..from + live].iter_mut().enumerate() {
                    *square = (0..parts).fold(0.0, |sum, part| sum + of_parts[part * width + i]);
                }
                let work = Work::new(isa, second, &middle[..m], width);
                work.sums(0..second.pattern.lines().div_ceil(PART), out, &mut [], work.tasks(par));
            } else {
                work.sums(0..first.pattern.lines().div_ceil(PART), out, &mut [], work.tasks(par));
            }
            if direct.is_some() {
                from += live;
                continue;
            }
        }
        separate(&rest[..k], width, y);
        from += live;
    }
}

pub(crate) fn run_product<T: Real>(
    isa: Isa,
    par: Par,
    a: &Compressed<T>,
    x: MatRef<'_, T>,
    epilogue: Epilogue<'_, T>,
    scratch: &mut Scratch<T>,
) {
    let (batch, lines) = (x.nrows(), a.pattern.lines());
    assert_eq!(x.ncols(), a.pattern.across, "a sample has an element for each column");
    epilogue.with(&mut |epilogue| {
        assert!(epilogue.suits(batch, lines), "the epilogue has operands of another shape than the product, {batch} × {lines}");
        for from in (0..batch).step_by(WIDE) {
            let live = WIDE.min(batch - from);
            let width = block_width(live);
            let n = a.pattern.across * width;
            let tasks = threads::tasks(par, 4 * a.pattern.stored() * width);
            let room = 2 * PART * width;
            let packed = n.next_multiple_of(lanes::<T>());
            scratch.0.reserve(packed + threads::most(par, 4 * a.pattern.stored() * width) * room);
            let (packed, rest) = scratch.0.as_mut_slice().split_at_mut(packed);
            interleave(x.subrows(from, live), width, &mut packed[..n]);
            let work = Work::new(isa, a, &packed[..n], width);
            let finished = Finished { work, isa, epilogue, from, live };
            finished.share(0..lines.div_ceil(PART), tasks, &mut rest[..tasks * room]);
        }
    });
}

/// A block of a batch on its way to the epilogue.
struct Finished<'a, T> {
    work: Work<'a, T>,
    isa: Isa,
    epilogue: &'a dyn Finish<T>,
    from: usize,
    live: usize,
}

impl<T: Real> Finished<'_, T> {
    /// Works on some parts with `tasks` tasks, each with its part of the scratch.
    fn share(&self, parts: Range<usize>, tasks: usize, scratch: &mut [T]) {
        if tasks <= 1 || parts.len() <= 1 {
            parts.for_each(|part| self.part(part, scratch));
            return;
        }
        let (left, middle) = self.work.cut(&parts, tasks);
        let (a, b) = scratch.split_at_mut(scratch.len() / tasks * left);
        threads::join(|| self.share(parts.start..middle, left, a), || self.share(middle..parts.end, tasks - left, b));
    }

    fn part(&self, part: usize, scratch: &mut [T]) {
        let width = self.work.width;
        let lines = part * PART..self.work.a.pattern.lines().min((part + 1) * PART);
        let count = lines.len();
        let (by_line, by_sample) = scratch.split_at_mut(PART * width);
        self.work.part(lines.clone(), &mut by_line[..count * width]);
        // The epilogue wants lines along its vectors.
        let square = crate::arch::square::<T>(self.isa);
        if width.is_multiple_of(square) {
            for first in (0..count).step_by(square) {
                let (from, to) = (by_line[first * width..].as_ptr(), by_sample[first..].as_mut_ptr());
                // SAFETY: `square` lines of `width` sums from `first ≤ PART − square`; `width` rows of `PART` behind one another.
                unsafe { crate::arch::transpose(self.isa, from, width as isize, to, PART, width / square) };
            }
        } else {
            for (i, sums) in by_line[..count * width].chunks_exact(width).enumerate() {
                sums.iter().enumerate().for_each(|(sample, &sum)| by_sample[sample * PART + i] = sum);
            }
        }
        let part = Part { i0: self.from, height: self.live, j0: lines.start, cols: count, done: 0 };
        let sums = Sums { sums: by_sample, stride: PART, part };
        // SAFETY: `run_product` has asked whether the epilogue suits the product, and each of its blocks comes here once.
        unsafe { self.epilogue.finish(self.isa, &sums) };
    }
}

#[expect(clippy::too_many_arguments, reason = "as `update`")]
pub(crate) fn run_update<T: Real>(
    isa: Isa,
    par: Par,
    a: &mut Matrix<T>,
    moments: &mut [&mut [T]],
    above: MatRef<'_, T>,
    below: MatRef<'_, T>,
    update: Update,
    scratch: &mut Scratch<T>,
) {
    let Matrix { rows: Compressed { pattern, values }, .. } = a;
    let (m, n, stored, batch) = (pattern.lines(), pattern.across, pattern.stored(), above.nrows());
    assert_eq!((above.ncols(), below.shape()), (m, (batch, n)), "a row of states for each sample, above and below");
    assert!(moments.iter().all(|moment| moment.len() == stored), "a moment for each stored element");
    let depth = batch.next_multiple_of(lanes::<T>());
    let tasks = threads::tasks(par, 4 * stored * batch);
    scratch.0.reserve((m + n) * depth + threads::most(par, 4 * stored * batch) * GRADIENTS);
    let (upper, rest) = scratch.0.as_mut_slice().split_at_mut(m * depth);
    let (lower, sums) = rest.split_at_mut(n * depth);
    if batch > 0 {
        interleave(above, depth, upper);
        interleave(below, depth, lower);
    }
    let moments = moments.iter_mut().map(|moment| MatMut::from_row_major_slice_mut(moment, 1, stored));
    let descent = Descent::new(MatMut::from_row_major_slice_mut(values, 1, stored), moments, update);
    descent.with(&mut |epilogue| {
        assert!(epilogue.suits(1, stored));
        let work = Gradients { isa: within::<T>(isa, lanes::<T>()), pattern, upper, lower, depth, epilogue };
        work.share(0..stored.div_ceil(GRADIENTS), tasks, &mut sums[..tasks * GRADIENTS]);
    });
    a.columns.refresh(&a.rows);
}

/// Gradients of stored elements on their way to the optimizer.
struct Gradients<'a, T> {
    isa: Isa,
    pattern: &'a Pattern,
    /// `depth` samples for each row and for each column.
    upper: &'a [T],
    lower: &'a [T],
    depth: usize,
    epilogue: &'a dyn Finish<T>,
}

impl<T: Real> Gradients<'_, T> {
    fn share(&self, blocks: Range<usize>, tasks: usize, sums: &mut [T]) {
        if tasks <= 1 || blocks.len() <= 1 {
            blocks.for_each(|block| self.block(block, &mut sums[..GRADIENTS]));
            return;
        }
        let left = tasks / 2;
        let middle = blocks.start + blocks.len() * left / tasks;
        let (a, b) = sums.split_at_mut(left * GRADIENTS);
        threads::join(|| self.share(blocks.start..middle, left, a), || self.share(middle..blocks.end, tasks - left, b));
    }

    fn block(&self, block: usize, sums: &mut [T]) {
        let elements = block * GRADIENTS..self.pattern.stored().min((block + 1) * GRADIENTS);
        match &self.pattern.indices {
            Indices::Narrow(indices) => self.isa.run::<T, _>(Dots { work: self, indices, elements: elements.clone(), sums }),
            Indices::Wide(indices) => self.isa.run::<T, _>(Dots { work: self, indices, elements: elements.clone(), sums }),
        }
        let part = Part { i0: 0, height: 1, j0: elements.start, cols: elements.len(), done: 0 };
        let sums = Sums { sums, stride: GRADIENTS, part };
        // SAFETY: `run_update` has asked whether the epilogue suits, and each block comes here once.
        unsafe { self.epilogue.finish(self.isa, &sums) };
    }
}

/// The dot products of the stored `elements`.
struct Dots<'a, 'b, T, I> {
    work: &'a Gradients<'b, T>,
    indices: &'a [I],
    elements: Range<usize>,
    sums: &'a mut [T],
}

impl<T: Real, I: Index> Kernel<T> for Dots<'_, '_, T, I> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        match const { lanes::<T>() / S::LANES } {
            1 => self.dots::<S, 1>(simd),
            2 => self.dots::<S, 2>(simd),
            4 => self.dots::<S, 4>(simd),
            8 => self.dots::<S, 8>(simd),
            _ => self.dots::<S, 16>(simd),
        }
    }
}

impl<T: Real, I: Index> Dots<'_, '_, T, I> {
    #[inline(always)]
    fn dots<S: Vector<T>, const V: usize>(self, simd: S) {
        let Gradients { pattern, upper, lower, depth, .. } = *self.work;
        let mut line = pattern.line_of(self.elements.start);
        for (k, out) in self.elements.zip(self.sums) {
            while k >= pattern.start[line + 1] {
                line += 1;
            }
            let above = &upper[line * depth..][..depth];
            let below = &lower[self.indices[k].at() * depth..][..depth];
            let mut sums = [simd.splat(T::ZERO); V];
            let (above, below) = (S::as_vectors(above).0, S::as_vectors(below).0);
            for (a, b) in above.as_chunks::<V>().0.iter().zip(below.as_chunks::<V>().0) {
                for v in 0..V {
                    sums[v] = simd.mul_add(a[v], b[v], sums[v]);
                }
            }
            *out = fold(simd, sums);
        }
    }
}

pub(crate) fn run_wide<T: Real>(isa: Isa, a: &Compressed<T>, x: &[f64], y: &mut [f64], sizes: &mut [f64]) {
    match &a.pattern.indices {
        Indices::Narrow(indices) => isa.run::<T, _>(Widened { a, indices, x, y, sizes }),
        Indices::Wide(indices) => isa.run::<T, _>(Widened { a, indices, x, y, sizes }),
    }
}

struct Widened<'a, T, I> {
    a: &'a Compressed<T>,
    indices: &'a [I],
    x: &'a [f64],
    y: &'a mut [f64],
    sizes: &'a mut [f64],
}

impl<T: Real, I: Index> Kernel<T> for Widened<'_, T, I> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, _: S) {
        for (line, (y, size)) in self.y.iter_mut().zip(self.sizes).enumerate() {
            let stored = self.a.pattern.line(line);
            (*y, *size) = (0.0, 0.0);
            for (a, index) in self.a.values[stored.clone()].iter().zip(&self.indices[stored]) {
                let (a, x) = (a.to_f64(), self.x[index.at()]);
                *y = a.mul_add(x, *y);
                *size = a.abs().mul_add(x.abs(), *size);
            }
        }
    }
}
