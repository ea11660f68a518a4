//! `y = Aᵀ(A x)` in one sweep over the elements, the same and `y = |A|ᵀ|A| x` in f64, and `y = A x` in f64.
//!
//! ```text
//! for group of rows
//!   for vector of columns
//!     rows of this group times x             they come from memory; their sums are in registers
//!     y += t · rows of the group before      they are in the cache, and their products t are known
//! ```
//!
//! The two lines in one loop let the stream from memory go on while `y` is worked on, so that the whole takes little longer than reading
//! `A` once: about half of the time of two matrix-vector products. Groups are pairs of rows there, and two of them stay in the first-level
//! cache; where three do, the loop also asks for the next pair. (Groups of four, or products two groups ahead: a fifth slower at 1024 × 1024.)
//!
//! Longer rows, rows that begin anywhere in a line of the cache, and several `x` at once (they are bound by arithmetic) take two loops for each
//! group, both with a register tile; if the matrix is large, additions ask for the next group, so that the stream goes on.
//!
//! The order of all operations is a function of the shape alone. A product `t` of a row is summed in the lanes of one cache line (column
//! `j` belongs to lane `j mod L`, `L` being 16 for f32 and 8 for f64; each lane is a chain of fused multiply-adds in ascending `j`), and the
//! lanes are added up by halves. Rows come in up to [`PARTS`] parts; in each part every `y_j` is a chain of fused multiply-adds in
//! ascending rows from zero, and the parts are added in their order. So the instruction set, threads, alignment, the groups and the number of
//! vectors `x` that share a sweep change no bit.

use core::marker::PhantomData;
use core::ops::Range;
use faer::{MatMut, MatRef, Par};

use crate::arch;
use crate::cache;
use crate::isa::{Isa, Kernel};
use crate::product::Scratch;
use crate::strided::{MAX_LANES, Target};
use crate::threads;
use crate::vector::{Real, Vector};

/// Most parts that rows are split into; a power of two.
pub const PARTS: usize = 16;

/// Bytes of `A` in a part, at the least. So much is read in some 10 µs, which is what waking a thread costs.
const PART_BYTES: usize = 1 << 18;

/// Rows of a part are a multiple of this, and no group has more.
const GROUP: usize = 8;

/// Rows of a group where two groups are worked on in one loop.
const PAIR: usize = 2;

/// Bytes of a matrix for which the next group is fetched during additions: others are in a cache that is quick enough without.
const FETCHED: usize = 4 << 20;

/// Rows of each part but the last, and parts: a function of shape and type only.
fn cut<E>(m: usize, n: usize) -> (usize, usize) {
    let most = (m * n * size_of::<E>() / PART_BYTES).clamp(1, PARTS);
    let rows = m.div_ceil(1 << most.ilog2()).next_multiple_of(GROUP);
    (rows, m.div_ceil(rows))
}

/// `y_i ← Aᵀ(A x_i)`, `squares_i ← ‖A x_i‖²`, where `x_i` and `y_i` are rows of `x` and `y` (`p × n`).
///
/// Needs rows of `A`, `x` and `y` that are contiguous; `A` may have any row stride. (For a column-major matrix take the transposed one: `AAᵀ`
/// has the same eigenvalues, but for zeros.) Eight vectors, or four, share a sweep.
///
/// Error of `y_ij` at most `γ_{m+n}·(|A|ᵀ|A||x_i|)_j`, mostly far less (a product has `n/L + log₂ L` roundings). `squares` are of the products as
/// rounded to `T`, summed in f64 with a relative error of at most `γ_m`; for f64 their squares may overflow or underflow. NaN and infinity
/// propagate. Costs `4pmn` flops and one read of `A` for each eight vectors. Allocates only when `scratch` was never used for a matrix as
/// wide.
///
/// # Panics
/// If shapes or lengths do not fit, or rows are not contiguous.
pub fn gram<T: Real>(
    isa: Isa,
    par: Par,
    a: MatRef<'_, T>,
    x: MatRef<'_, T>,
    y: MatMut<'_, T>,
    squares: &mut [f64],
    scratch: &mut Scratch<T>,
) {
    (T::kernels().gram)(isa, par, a, x, y, squares, scratch);
}

pub(crate) fn run_gram<T: Real>(
    isa: Isa,
    par: Par,
    a: MatRef<'_, T>,
    x: MatRef<'_, T>,
    mut y: MatMut<'_, T>,
    squares: &mut [f64],
    scratch: &mut Scratch<T>,
) {
    let p = x.nrows();
    assert_eq!((x.ncols(), y.shape()), (a.ncols(), x.shape()), "x and y have a row for each vector, of the length of a row of A");
    assert_eq!(squares.len(), p, "a square for each vector");
    let mut from = 0;
    while from < p {
        let width = [8, 4, 1].into_iter().find(|&width| width <= p - from).unwrap_or(1);
        let (x, y) = (x.subrows(from, width), y.as_mut().subrows_mut(from, width));
        let squares = &mut squares[from..from + width];
        match width {
            8 => drive::<T, Plain, 8>(isa, par, a, x, y, squares, scratch),
            4 => drive::<T, Plain, 4>(isa, par, a, x, y, squares, scratch),
            _ => drive::<T, Plain, 1>(isa, par, a, x, y, squares, scratch),
        }
        from += width;
    }
}

/// `y ← |A|ᵀ(|A| x)` in f64. For `x ≥ 0` every `y_j` has a relative error of at most `γ_{m+n}`, unless a product underflows.
///
/// Needs contiguous rows. Costs, order and memory are as those of [`gram`].
///
/// # Panics
/// If lengths do not fit, or rows are not contiguous.
pub fn abs_gram<T: Real>(isa: Isa, par: Par, a: MatRef<'_, T>, x: &[f64], y: &mut [f64], scratch: &mut Scratch<f64>) {
    (T::kernels().abs_gram)(isa, par, a, x, y, scratch);
}

pub(crate) fn run_abs_gram<T: Real>(isa: Isa, par: Par, a: MatRef<'_, T>, x: &[f64], y: &mut [f64], scratch: &mut Scratch<f64>) {
    in_f64::<T, true>(isa, par, a, x, y, scratch);
}

fn in_f64<T: Real, const ABS: bool>(isa: Isa, par: Par, a: MatRef<'_, T>, x: &[f64], y: &mut [f64], scratch: &mut Scratch<f64>) {
    assert_eq!((x.len(), y.len()), (a.ncols(), a.ncols()), "x and y have the length of a row of A");
    let (x, y) = (MatRef::from_row_major_slice(x, 1, x.len()), MatMut::from_row_major_slice_mut(y, 1, x.len()));
    drive::<f64, Wide<T, ABS>, 1>(isa, par, a, x, y, &mut [0.0], scratch);
}

/// `y ← Aᵀ(A x)` in f64: error of `y_j` at most `γ_{m+n}·(|A|ᵀ|A||x|)_j`, unless a product underflows.
///
/// Needs contiguous rows. Costs, order and memory are as those of [`gram`].
///
/// # Panics
/// If lengths do not fit, or rows are not contiguous.
pub fn wide_gram<T: Real>(isa: Isa, par: Par, a: MatRef<'_, T>, x: &[f64], y: &mut [f64], scratch: &mut Scratch<f64>) {
    (T::kernels().wide_gram)(isa, par, a, x, y, scratch);
}

pub(crate) fn run_wide_gram<T: Real>(isa: Isa, par: Par, a: MatRef<'_, T>, x: &[f64], y: &mut [f64], scratch: &mut Scratch<f64>) {
    in_f64::<T, false>(isa, par, a, x, y, scratch);
}

/// `y ← A x` in f64: error of `y_i` at most `γ_{⌈n/8⌉+3}·(|A||x|)_i`, with the products of f32 elements rounded only when they are added.
///
/// Needs contiguous rows. Costs `2mn` flops and one read of `A`.
///
/// # Panics
/// If lengths do not fit, or rows are not contiguous.
pub fn image<T: Real>(isa: Isa, par: Par, a: MatRef<'_, T>, x: &[f64], y: &mut [f64]) {
    (T::kernels().image)(isa, par, a, x, y);
}

pub(crate) fn run_image<T: Real>(isa: Isa, par: Par, a: MatRef<'_, T>, x: &[f64], y: &mut [f64]) {
    assert_eq!((x.len(), y.len()), (a.ncols(), a.nrows()), "x has the length of a row of A, y that of a column");
    check_rows(a);
    let (_, parts) = cut::<T>(y.len().max(1), x.len());
    let x = MatRef::from_row_major_slice(x, 1, x.len());
    share_image(isa, tasks(par, parts), a, x, y);
}

/// Row by row, so that threads may split it anywhere.
fn share_image<T: Real>(isa: Isa, tasks: usize, a: MatRef<'_, T>, x: MatRef<'_, f64>, y: &mut [f64]) {
    if tasks <= 1 {
        isa.run::<f64, _>(Image::<T> { a, x, y });
        return;
    }
    let left = tasks / 2;
    let middle = (y.len() * left / tasks).next_multiple_of(GROUP).min(y.len());
    let ((top, bottom), (y, z)) = (a.split_at_row(middle), y.split_at_mut(middle));
    threads::join(|| share_image(isa, left, top, x, y), || share_image(isa, tasks - left, bottom, x, z));
}

fn check_rows<E>(rows: MatRef<'_, E>) {
    assert!(rows.ncols() <= 1 || rows.col_stride() == 1, "the rows of a matrix of a sweep are contiguous");
}

fn tasks(par: Par, parts: usize) -> usize {
    match par {
        Par::Rayon(threads) => threads.get().min(parts),
        Par::Seq => 1,
    }
}

/// How elements of `A` become numbers of `T`.
trait Source<T: Real>: Copy + Send + Sync {
    /// What `A` consists of.
    type Element: Real;

    /// `live` elements from `at`; the other lanes are zero.
    ///
    /// # Safety
    /// `1 ≤ live ≤ LANES`, and `at` is valid for reading `live` elements.
    unsafe fn load<S: Vector<T>>(simd: S, at: *const Self::Element, live: usize) -> S::V;

    /// Elements `from..to` behind `at` in their lanes; the other lanes are zero.
    ///
    /// # Safety
    /// `from ≤ to ≤ LANES`, and these elements are valid for reading.
    unsafe fn load_between<S: Vector<T>>(simd: S, at: *const Self::Element, from: usize, to: usize) -> S::V;
}

/// As they are.
#[derive(Clone, Copy)]
struct Plain;

impl<T: Real> Source<T> for Plain {
    type Element = T;

    #[inline(always)]
    unsafe fn load<S: Vector<T>>(simd: S, at: *const T, live: usize) -> S::V {
        // SAFETY: passed on.
        unsafe { simd.load_live(at, live) }
    }

    #[inline(always)]
    unsafe fn load_between<S: Vector<T>>(simd: S, at: *const T, from: usize, to: usize) -> S::V {
        // SAFETY: passed on.
        unsafe { simd.load_between(at, from, to) }
    }
}

/// In f64, their sizes if `ABS`.
#[derive(Clone, Copy)]
struct Wide<E, const ABS: bool>(PhantomData<E>);

impl<E: Real, const ABS: bool> Source<f64> for Wide<E, ABS> {
    type Element = E;

    #[inline(always)]
    unsafe fn load<S: Vector<f64>>(simd: S, at: *const E, live: usize) -> S::V {
        // SAFETY: passed on.
        let x = unsafe { widen::<E, S>(simd, at, live) };
        if ABS { simd.abs(x) } else { x }
    }

    #[inline(always)]
    unsafe fn load_between<S: Vector<f64>>(_: S, at: *const E, from: usize, to: usize) -> S::V {
        let mut lanes = [0.0; 8];
        for l in from..to {
            // SAFETY: `from ≤ l < to` (contract).
            let x = unsafe { *at.wrapping_add(l) };
            lanes[l] = if ABS { x.abs() } else { x }.to_f64();
        }
        S::as_vectors(&lanes).0[0]
    }
}

/// `live` elements from `at` in f64; the other lanes are zero.
///
/// # Safety
/// `1 ≤ live ≤ LANES`, and `at` is valid for reading `live` elements.
#[inline(always)]
pub(crate) unsafe fn widen<E: Real, S: Vector<f64>>(simd: S, at: *const E, live: usize) -> S::V {
    // `Real` is f32 or f64, told apart by size.
    if size_of::<E>() == 8 {
        // SAFETY: passed on.
        return unsafe { simd.load_live(at.cast(), live) };
    }
    let mut lanes = [0.0; 8];
    if live == S::LANES {
        for l in 0..S::LANES {
            // SAFETY: `l < LANES = live` (contract).
            lanes[l] = unsafe { *at.wrapping_add(l) }.to_f64();
        }
    } else {
        for l in 0..live {
            // SAFETY: `l < live` (contract).
            lanes[l] = unsafe { *at.wrapping_add(l) }.to_f64();
        }
    }
    S::as_vectors(&lanes).0[0]
}

/// A sweep with `P` vectors.
struct Sweep<'a, T: Real, Q: Source<T>, const P: usize> {
    a: MatRef<'a, Q::Element>,
    /// `P × (lead + n)`.
    x: MatRef<'a, T>,
    /// `P` rows of `y` for each part, like those of `x`.
    y: Target<'a, T>,
    /// Columns of `x` and `y` before that which belongs to the first of `A`.
    lead: usize,
    /// Rows of a part.
    rows: usize,
    /// Two rows at a time, with the additions of the two before them.
    paired: bool,
}

fn drive<T: Real, Q: Source<T>, const P: usize>(
    isa: Isa,
    par: Par,
    a: MatRef<'_, Q::Element>,
    x: MatRef<'_, T>,
    mut y: MatMut<'_, T>,
    squares: &mut [f64],
    scratch: &mut Scratch<T>,
) {
    check_rows(a);
    check_rows(x);
    check_rows(y.as_ref());
    let (m, n) = a.shape();
    squares.fill(0.0);
    if m == 0 || n == 0 {
        y.fill(T::ZERO);
        return;
    }
    let (rows, parts) = cut::<Q::Element>(m, n);
    // A copy of `x` and all parts of `y` lie in the scratch, each row a line further: rows a power of two apart would drive each other out of
    // the cache.
    let paired = P == 1 && is_paired::<T, _>(a);
    // Columns that would have to precede those of `A` for every row to begin a line of lanes.
    let lead = if paired { a.as_ptr() as usize / size_of::<Q::Element>() % lanes::<T>() } else { 0 };
    let stride = (lead + n).next_multiple_of(MAX_LANES) + MAX_LANES;
    let height = P + parts * P;
    scratch.0.reserve(height * stride);
    let (copy, sums) = scratch.0.as_mut_slice()[..height * stride].split_at_mut(P * stride);
    copy.fill(T::ZERO);
    for (i, line) in copy.chunks_exact_mut(stride).enumerate() {
        line[lead..].iter_mut().zip(x.row(i).iter()).for_each(|(to, &from)| *to = from);
    }
    let x = MatRef::from_column_major_slice_with_stride(copy, stride, P, stride).transpose();
    let sums = MatMut::from_column_major_slice_with_stride_mut(sums, stride, parts * P, stride).transpose_mut();
    let sweep = Sweep::<T, Q, P> { a, x, y: Target::new(sums), lead, rows, paired };
    let mut of_parts = [[0.0; P]; PARTS];
    sweep.share(isa, 0, &mut of_parts[..parts], tasks(par, parts));
    for of_part in &of_parts[..parts] {
        for (square, of_part) in squares.iter_mut().zip(of_part) {
            *square += of_part;
        }
    }
    isa.run::<T, _>(Combine { y: Target::new(y), parts: sweep.y, lead });
}

/// Bytes of so many rows of `A`, `x` and a `y`.
fn bytes<T, E>(rows: usize, n: usize) -> usize {
    n * (rows * size_of::<E>() + 2 * size_of::<T>())
}

/// Whether one loop works on two pairs of rows: both have to be in the first-level cache, and to begin at the same place of a line of lanes, as
/// reads across lines take twice as long.
fn is_paired<T: Real, E>(a: MatRef<'_, E>) -> bool {
    bytes::<T, E>(2 * PAIR, a.ncols()) <= cache::FIRST && a.row_stride() % lanes::<T>() as isize == 0
}

impl<T: Real, Q: Source<T>, const P: usize> Sweep<'_, T, Q, P> {
    /// Works on the parts from `part` that `squares` are of, with `tasks` tasks.
    fn share(&self, isa: Isa, part: usize, squares: &mut [[f64; P]], tasks: usize) {
        if tasks <= 1 {
            let walk = Walk { sweep: self, part, squares };
            if P == 1 && self.paired {
                isa.run::<T, _>(Pairs(walk));
            } else {
                isa.run::<T, _>(walk);
            }
            return;
        }
        let left = tasks / 2;
        let middle = squares.len() * left / tasks;
        let (a, b) = squares.split_at_mut(middle);
        threads::join(|| self.share(isa, part, a, left), || self.share(isa, part + middle, b, tasks - left));
    }

    /// Rows of a part.
    #[inline(always)]
    fn rows(&self, part: usize) -> Range<usize> {
        part * self.rows..self.a.nrows().min((part + 1) * self.rows)
    }

    /// Where a part adds up its `y`.
    #[inline(always)]
    fn target(&self, part: usize) -> Target<'_, T> {
        self.y.skip_rows(part * P)
    }
}

/// Adds the parts, in their order.
struct Combine<'a, T> {
    y: Target<'a, T>,
    parts: Target<'a, T>,
    lead: usize,
}

impl<T: Real> Kernel<T> for Combine<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        let (p, n) = self.y.shape();
        for i in 0..p {
            for col in (0..n).step_by(S::LANES) {
                let live = S::LANES.min(n - col);
                // SAFETY: `live` columns from `lead + col` of a row of the first part, all ours; rows are contiguous.
                let mut sum = unsafe { self.parts.load::<S, true>(simd, i, self.lead + col, live) };
                for row in (p + i..self.parts.shape().0).step_by(p) {
                    // SAFETY: as above: there are `p` rows for each part.
                    sum = simd.add(sum, unsafe { self.parts.load::<S, true>(simd, row, self.lead + col, live) });
                }
                // SAFETY: `live` columns of a row of `y`, which is contiguous and ours.
                unsafe { self.y.store::<S, true>(simd, i, col, live, sum) };
            }
        }
    }
}

/// A run of parts, under an instruction set.
struct Walk<'a, 'b, T: Real, Q: Source<T>, const P: usize> {
    sweep: &'a Sweep<'b, T, Q, P>,
    part: usize,
    squares: &'a mut [[f64; P]],
}

impl<T: Real, Q: Source<T>, const P: usize> Kernel<T> for Walk<'_, '_, T, Q, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        // Vectors in a line of lanes, then rows and vectors `x` of a tile of products, then vectors along a tile of `y`: sums and operands
        // of a step fit the registers (32 of 512 bits, 16 of 256, 32 of 128, scalars).
        match const { lanes::<T>() / S::LANES } {
            1 if const { P == 1 } => self.walk::<S, 1, 4, 1, 8>(simd),
            1 => self.walk::<S, 1, 4, 4, 4>(simd),
            2 if const { P == 1 } => self.walk::<S, 2, 4, 1, 8>(simd),
            2 => self.walk::<S, 2, 2, 2, 4>(simd),
            4 if const { P == 1 } => self.walk::<S, 4, 4, 1, 8>(simd),
            4 => self.walk::<S, 4, 2, 2, 4>(simd),
            8 => self.walk::<S, 8, 1, 1, 2>(simd),
            _ => self.walk::<S, 16, 1, 1, 2>(simd),
        }
    }
}

/// Virtual lanes of a product: a cache line.
pub(crate) const fn lanes<T>() -> usize {
    64 / size_of::<T>()
}

/// Rows that are worked on together.
#[derive(Clone, Copy)]
struct Group {
    row: usize,
    height: usize,
    part: usize,
}

impl<T: Real, Q: Source<T>, const P: usize> Walk<'_, '_, T, Q, P> {
    #[inline(always)]
    fn walk<S: Vector<T>, const K: usize, const R: usize, const V: usize, const J: usize>(self, simd: S) {
        let Self { sweep, part: from, squares } = self;
        let (m, n) = sweep.a.shape();
        // Smaller ones are in a cache that is quick enough without.
        let fetched = m * n * size_of::<Q::Element>() > FETCHED;
        let mut factors = [[T::ZERO; P]; GROUP];
        for (part, squares) in (from..).zip(squares) {
            sweep.clear(simd, part);
            let rows = sweep.rows(part);
            for row in rows.clone().step_by(GROUP) {
                let group = Group { row, height: GROUP.min(rows.end - row), part };
                sweep.products::<S, K, R, V>(simd, group, &mut factors);
                add_squares(&factors[..group.height], squares);
                if fetched {
                    sweep.additions::<S, V, J, true>(simd, group, &factors);
                } else {
                    sweep.additions::<S, V, J, false>(simd, group, &factors);
                }
            }
        }
    }
}

/// A run of parts for one vector, two rows at a time, with the additions of the two before them.
struct Pairs<'a, 'b, T: Real, Q: Source<T>, const P: usize>(Walk<'a, 'b, T, Q, P>);

impl<T: Real, Q: Source<T>, const P: usize> Kernel<T> for Pairs<'_, '_, T, Q, P> {
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

impl<T: Real, Q: Source<T>, const P: usize> Pairs<'_, '_, T, Q, P> {
    #[inline(always)]
    fn lines<S: Vector<T>, const K: usize>(self, simd: S) {
        let sweep = self.0.sweep;
        let (m, n) = sweep.a.shape();
        // The two rows after them are asked for as one stream, if they are one and the cache has room for them.
        let gap = sweep.a.row_stride().abs_diff(n as isize);
        if 8 * gap <= n && bytes::<T, Q::Element>(3 * PAIR, n) <= cache::FIRST && m * n * size_of::<Q::Element>() > cache::SECOND
        {
            self.walk::<S, K, true>(simd);
        } else {
            self.walk::<S, K, false>(simd);
        }
    }

    #[inline(always)]
    fn walk<S: Vector<T>, const K: usize, const FETCH: bool>(self, simd: S) {
        let Walk { sweep, part: from, squares } = self.0;
        // A copy: else every store to `y` might change it, and all is computed anew for each pair.
        let sweep = Sweep { ..*sweep };
        let mut factors = [[T::ZERO; P]; GROUP];
        let mut old = Group { row: 0, height: 0, part: from };
        for (part, squares) in (from..).zip(squares) {
            sweep.clear(simd, part);
            let rows = sweep.rows(part);
            for row in rows.clone().step_by(PAIR) {
                let new = Group { row, height: PAIR.min(rows.end - row), part };
                if (new.height, old.height) == (PAIR, PAIR) {
                    let t = [simd.splat(factors[0][0]), simd.splat(factors[1][0])];
                    let products = sweep.both::<S, K, FETCH>(simd, new, old, &t);
                    for r in 0..PAIR {
                        factors[r][0] = products[r];
                    }
                    add_squares(&factors[..PAIR], squares);
                } else {
                    sweep.additions::<S, 1, 2, false>(simd, old, &factors);
                    sweep.products::<S, K, PAIR, 1>(simd, new, &mut factors);
                    add_squares(&factors[..new.height], squares);
                }
                old = new;
            }
        }
        sweep.additions::<S, 1, 2, false>(simd, old, &factors);
    }
}

#[inline(always)]
fn add_squares<T: Real, const P: usize>(products: &[[T; P]], squares: &mut [f64; P]) {
    for products in products {
        for i in 0..P {
            let t = products[i].to_f64();
            squares[i] = t.mul_add(t, squares[i]);
        }
    }
}

/// Adds up the lanes of a line by halves: the same however they are rotated.
#[inline(always)]
pub(crate) fn fold<T: Real, S: Vector<T>, const K: usize>(simd: S, mut line: [S::V; K]) -> T {
    let mut half = K / 2;
    while half > 0 {
        for k in 0..half {
            line[k] = simd.add(line[k], line[k + half]);
        }
        half /= 2;
    }
    simd.sum(line[0])
}

impl<T: Real, Q: Source<T>, const P: usize> Sweep<'_, T, Q, P> {
    /// Sets `y` of a part to zero.
    #[inline(always)]
    fn clear<S: Vector<T>>(&self, simd: S, part: usize) {
        let end = self.lead + self.a.ncols();
        for i in 0..P {
            for col in (0..end).step_by(S::LANES) {
                // SAFETY: columns of a row of `y`, of a part that nobody else works on; rows are contiguous, and a line longer.
                unsafe { self.target(part).store::<S, true>(simd, i, col, S::LANES, simd.splat(T::ZERO)) };
            }
        }
    }

    /// [`products`](Self::products) of one group and [`additions`](Self::additions) of the other, vector by vector, for one `x` and
    /// two rows in each. With `FETCH`, asks for the two rows after them, in their order: one stream from memory.
    #[inline(always)]
    fn both<S: Vector<T>, const K: usize, const FETCH: bool>(
        &self,
        simd: S,
        new: Group,
        old: Group,
        t: &[S::V; PAIR],
    ) -> [T; PAIR] {
        let (end, length, stride) = (self.lead + self.a.ncols(), K * S::LANES, self.a.row_stride());
        let row = |row: usize| self.a.as_ptr().wrapping_offset(row as isize * stride).wrapping_sub(self.lead);
        let news: [*const Q::Element; PAIR] = core::array::from_fn(|r| row(new.row + r));
        let olds: [*const Q::Element; PAIR] = core::array::from_fn(|r| row(old.row + r));
        let mut sums = [[simd.splat(T::ZERO); K]; PAIR];
        // Whole lines are from `first` to `last`.
        let first = if self.lead > 0 { length } else { 0 };
        let last = end / length * length;
        if first > 0 {
            self.edge::<S, K>(simd, 0, (&news, &olds), old.part, t, &mut sums);
        }
        let (x, y) = (self.x.as_ptr().wrapping_add(first), self.target(old.part).transpose().skip_rows(first).transpose());
        let inner = |row: &*const Q::Element| row.wrapping_add(first);
        let (inner_news, inner_olds) = (news.each_ref().map(inner), olds.each_ref().map(inner));
        let next = row(new.row + PAIR);
        // Pointers to where the loop starts and one index from zero: else LLVM moves every pointer, and so many instructions more leave fewer loads
        // in flight (a fifth of the time of a matrix in memory).
        for col in (0..last.saturating_sub(first)).step_by(length) {
            if FETCH {
                for r in 0..PAIR {
                    arch::prefetch(next.wrapping_add(PAIR * col + r * length));
                }
            }
            for k in 0..K {
                let at = col + k * S::LANES;
                // SAFETY: `first + at + LANES ≤ lead + n`, for the only row of `x`.
                let q = unsafe { simd.load_live(x.wrapping_add(at), S::LANES) };
                // SAFETY: the same columns of the only row of `y`, of a part that nobody else works on; rows are contiguous.
                let mut sum = unsafe { y.load::<S, true>(simd, 0, at, S::LANES) };
                for r in 0..PAIR {
                    // SAFETY: `LANES` columns of a row of `a`.
                    let p = unsafe { Q::load(simd, inner_olds[r].wrapping_add(at), S::LANES) };
                    sum = simd.mul_add(t[r], p, sum);
                }
                // SAFETY: as for the load.
                unsafe { y.store::<S, true>(simd, 0, at, S::LANES, sum) };
                for r in 0..PAIR {
                    // SAFETY: as above.
                    let p = unsafe { Q::load(simd, inner_news[r].wrapping_add(at), S::LANES) };
                    sums[r][k] = simd.mul_add(p, q, sums[r][k]);
                }
            }
        }
        if (first..end).contains(&last) {
            self.edge::<S, K>(simd, last, (&news, &olds), old.part, t, &mut sums);
        }
        let mut products = [T::ZERO; PAIR];
        for r in 0..PAIR {
            products[r] = product(simd, sums[r]);
        }
        products
    }

    /// A line of lanes from column `col` of `x` and `y`, not all of which belong to columns of `A`.
    #[inline(always)]
    fn edge<S: Vector<T>, const K: usize>(
        &self,
        simd: S,
        col: usize,
        (news, olds): (&[*const Q::Element; PAIR], &[*const Q::Element; PAIR]),
        part: usize,
        t: &[S::V; PAIR],
        sums: &mut [[S::V; K]; PAIR],
    ) {
        let (x, y) = (self.x.as_ptr(), self.target(part));
        let end = self.lead + self.a.ncols();
        for k in 0..K {
            let at = col + k * S::LANES;
            let from = self.lead.saturating_sub(at).min(S::LANES);
            let to = end.saturating_sub(at).min(S::LANES).max(from);
            // SAFETY: rows of `x` are a line longer than what belongs to columns of `A`.
            let q = unsafe { simd.load_live(x.wrapping_add(at), S::LANES) };
            // SAFETY: so are those of `y`, here of a part that nobody else works on; rows are contiguous.
            let mut sum = unsafe { y.load::<S, true>(simd, 0, at, S::LANES) };
            for r in 0..PAIR {
                // SAFETY: `lead ≤ at + from` and `at + to ≤ lead + n`, or there are none: columns of a row of `a`.
                let p = unsafe { Q::load_between(simd, news[r].wrapping_add(at), from, to) };
                sums[r][k] = simd.mul_add(p, q, sums[r][k]);
            }
            for r in 0..PAIR {
                // SAFETY: as above.
                let p = unsafe { Q::load_between(simd, olds[r].wrapping_add(at), from, to) };
                sum = simd.mul_add(t[r], p, sum);
            }
            // SAFETY: as for the load.
            unsafe { y.store::<S, true>(simd, 0, at, S::LANES, sum) };
        }
    }

    /// Products of a group with every `x`.
    #[inline(always)]
    fn products<S: Vector<T>, const K: usize, const R: usize, const V: usize>(
        &self,
        simd: S,
        group: Group,
        factors: &mut [[T; P]; GROUP],
    ) {
        let whole = group.height / R * R;
        for r in (0..whole).step_by(R) {
            for i in (0..P).step_by(V) {
                self.product_tile::<S, K, R, V>(simd, (group.row, r), i, factors);
            }
        }
        for r in whole..group.height {
            for i in (0..P).step_by(V) {
                self.product_tile::<S, K, 1, V>(simd, (group.row, r), i, factors);
            }
        }
    }

    /// The same for rows `r..r + R` of the group and vectors `i..i + V`.
    #[inline(always)]
    fn product_tile<S: Vector<T>, const K: usize, const R: usize, const V: usize>(
        &self,
        simd: S,
        (row, r0): (usize, usize),
        i0: usize,
        factors: &mut [[T; P]; GROUP],
    ) {
        let (n, length) = (self.a.ncols(), K * S::LANES);
        let mut sums = [[[simd.splat(T::ZERO); K]; V]; R];
        let stride = self.a.row_stride();
        // Else LLVM computes them anew from the stride in every step: so many instructions more leave fewer loads in flight (an eighth of the
        // time at 4096 × 4096).
        let a: [*const Q::Element; R] =
            core::hint::black_box(core::array::from_fn(|r| self.a.as_ptr().wrapping_offset((row + r0 + r) as isize * stride)));
        let x: [*const T; V] = core::array::from_fn(|v| {
            self.x.as_ptr().wrapping_offset((i0 + v) as isize * self.x.row_stride()).wrapping_add(self.lead)
        });
        let whole = n / length * length;
        for col in (0..whole).step_by(length) {
            for k in 0..K {
                let at = col + k * S::LANES;
                let mut q = [simd.splat(T::ZERO); V];
                for v in 0..V {
                    // SAFETY: `LANES` elements of row `i0 + v < P` of `x`, whose rows are contiguous; `at + LANES ≤ n`.
                    q[v] = unsafe { simd.load_live(x[v].wrapping_add(at), S::LANES) };
                }
                for r in 0..R {
                    // SAFETY: the same columns of row `row + r0 + r` of `a`.
                    let p = unsafe { Q::load(simd, a[r].wrapping_add(at), S::LANES) };
                    for v in 0..V {
                        sums[r][v][k] = simd.mul_add(p, q[v], sums[r][v][k]);
                    }
                }
            }
        }
        // The other lanes of the last line add zeros, as they do where a vector is a whole line.
        if whole < n {
            for k in 0..K {
                let at = whole + k * S::LANES;
                let live = n.saturating_sub(at).min(S::LANES);
                for r in 0..R {
                    for v in 0..V {
                        let (mut p, mut q) = (simd.splat(T::ZERO), simd.splat(T::ZERO));
                        if live > 0 {
                            // SAFETY: `live` elements of a row of `a` from column `at`.
                            p = unsafe { Q::load(simd, a[r].wrapping_add(at), live) };
                            // SAFETY: the same columns of a row of `x`.
                            q = unsafe { simd.load_live(x[v].wrapping_add(at), live) };
                        }
                        sums[r][v][k] = simd.mul_add(p, q, sums[r][v][k]);
                    }
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                factors[r0 + r][i0 + v] = product(simd, sums[r][v]);
            }
        }
    }

    /// Adds the rows of a group, times their products, to its `y`. With `FETCH`, asks for the rows of the next group meanwhile.
    #[inline(always)]
    fn additions<S: Vector<T>, const V: usize, const J: usize, const FETCH: bool>(
        &self,
        simd: S,
        group: Group,
        factors: &[[T; P]; GROUP],
    ) {
        if group.height == 0 {
            return;
        }
        let (n, target) = (self.a.ncols(), self.target(group.part));
        for i in (0..P).step_by(V) {
            let y: [Target<'_, T>; V] = core::array::from_fn(|v| target.skip_rows(i + v));
            let mut col = 0;
            while col + J * S::LANES <= n {
                self.addition_tile::<S, V, J, FETCH>(simd, group, y, i, (col, S::LANES), factors);
                col += J * S::LANES;
            }
            while col < n {
                let live = S::LANES.min(n - col);
                self.addition_tile::<S, V, 1, FETCH>(simd, group, y, i, (col, live), factors);
                col += live;
            }
        }
    }

    /// The same for vectors `i..i + V`, whose `y` these are, and `J` vectors of columns; in the last of them `live` columns.
    #[inline(always)]
    fn addition_tile<S: Vector<T>, const V: usize, const J: usize, const FETCH: bool>(
        &self,
        simd: S,
        group: Group,
        y: [Target<'_, T>; V],
        i: usize,
        (col, live): (usize, usize),
        factors: &[[T; P]; GROUP],
    ) {
        let mut sums = [[simd.splat(T::ZERO); J]; V];
        for v in 0..V {
            for j in 0..J {
                // SAFETY: `live ≤ LANES` columns of the product's `y`, of a part that nobody else works on; rows are contiguous.
                sums[v][j] = unsafe { y[v].load::<S, true>(simd, 0, self.lead + col + j * S::LANES, live) };
            }
        }
        let stride = self.a.row_stride();
        let mut row = self.a.as_ptr().wrapping_offset(group.row as isize * stride).wrapping_add(col);
        let ahead = GROUP as isize * stride;
        for factors in &factors[..group.height] {
            if FETCH && i == 0 {
                for j in (0..J * S::LANES).step_by(lanes::<Q::Element>()) {
                    arch::prefetch_second(row.wrapping_add(j).wrapping_offset(ahead));
                }
            }
            let mut a = [simd.splat(T::ZERO); J];
            for j in 0..J {
                // SAFETY: the same columns of a row of the group.
                a[j] = unsafe { Q::load(simd, row.wrapping_add(j * S::LANES), live) };
            }
            for v in 0..V {
                let t = simd.splat(factors[i + v]);
                for j in 0..J {
                    sums[v][j] = simd.mul_add(t, a[j], sums[v][j]);
                }
            }
            row = row.wrapping_offset(stride);
        }
        for v in 0..V {
            for j in 0..J {
                // SAFETY: as for the load.
                unsafe { y[v].store::<S, true>(simd, 0, self.lead + col + j * S::LANES, live, sums[v][j]) };
            }
        }
    }
}

/// Adds up the lanes of a product. Not a negative zero, whichever lanes were empty at the ends of a row.
#[inline(always)]
fn product<T: Real, S: Vector<T>, const K: usize>(simd: S, line: [S::V; K]) -> T {
    fold(simd, line) + T::ZERO
}

/// Rows of `A` times one vector.
struct Image<'a, T> {
    a: MatRef<'a, T>,
    x: MatRef<'a, f64>,
    y: &'a mut [f64],
}

impl<T: Real> Kernel<f64> for Image<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<f64>>(self, simd: S) {
        let none = Target::new(MatMut::from_row_major_slice_mut(&mut [], 0, 0));
        let sweep = Sweep::<f64, Wide<T, false>, 1> { a: self.a, x: self.x, y: none, lead: 0, rows: 0, paired: false };
        let mut products = [[0.0]; GROUP];
        for (row, y) in (0..).step_by(GROUP).zip(self.y.chunks_mut(GROUP)) {
            let group = Group { row, height: y.len(), part: 0 };
            match const { lanes::<f64>() / S::LANES } {
                1 => sweep.products::<S, 1, 4, 1>(simd, group, &mut products),
                2 => sweep.products::<S, 2, 4, 1>(simd, group, &mut products),
                4 => sweep.products::<S, 4, 4, 1>(simd, group, &mut products),
                _ => sweep.products::<S, 8, 1, 1>(simd, group, &mut products),
            }
            for (y, [product]) in y.iter_mut().zip(products) {
                *y = product;
            }
        }
    }
}
