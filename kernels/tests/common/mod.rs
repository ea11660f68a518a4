//! What the kernel tests share: matrices in every layout with canaries around them, ways to call a product, and comparisons.
#![allow(dead_code, unused_macros, unused_imports, reason = "every test crate uses its part")]

use core::cell::Cell;
use core::fmt::Debug;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::pack::{Bands, Panels};
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::strided::{Input, Output};
use dualprop_kernels::vector::Real;
use dualprop_reference::bound::{Bounded, Precision};
use dualprop_reference::generate::{Family, generate};
use dualprop_reference::product::Matrix;
use faer::{MatMut, MatRef, Par};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{TestCaseResult, TestRunner};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Makes tests `of_f32::name` and `of_f64::name` from generic functions `name`.
macro_rules! tests_of_both_types {
    ($($name:ident),* $(,)?) => {
        mod of_f32 { $( #[test] fn $name() { super::$name::<f32>(); } )* }
        mod of_f64 { $( #[test] fn $name() { super::$name::<f64>(); } )* }
    };
}
pub(crate) use tests_of_both_types;

/// An element type as the reference knows it.
pub(crate) trait Scalar: Real {
    const PRECISION: Precision;
    /// A quiet NaN whose payload no arithmetic makes.
    const CANARY: Self;
}

impl Scalar for f32 {
    const PRECISION: Precision = Precision::F32;
    const CANARY: f32 = f32::from_bits(0x7fdd_ca4a);
}

impl Scalar for f64 {
    const PRECISION: Precision = Precision::F64;
    const CANARY: f64 = f64::from_bits(0x7ffd_ca4a_ca4a_ca4a);
}

/// `x`, an input without error.
pub(crate) fn exact<T: Scalar>(x: T) -> Bounded {
    T::PRECISION.exact(x.to_f64())
}

/// Equal to the bit, where any NaN equals any other.
pub(crate) fn same<T: Real>(a: T, b: T) -> bool {
    a.to_bits() == b.to_bits() || (a.to_f64().is_nan() && b.to_f64().is_nan())
}

/// Whether `a` and `b` have the same bits but for the sign of a zero, which is not promised where rows of zeros are left out.
pub(crate) fn equal<T: Scalar>(a: T, b: T) -> bool {
    same(a, b) || a == b
}

/// Where the elements of a matrix are in memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Layout {
    /// Columns are contiguous, not rows.
    pub(crate) by_columns: bool,
    /// Elements between one contiguous line and the next.
    pub(crate) padding: usize,
    /// The row stride is negative.
    pub(crate) rows_reversed: bool,
    /// The column stride is negative.
    pub(crate) cols_reversed: bool,
}

impl Layout {
    /// All layouts, dense and padded.
    pub(crate) fn all() -> impl Iterator<Item = Layout> {
        (0..16).map(|bits| Layout {
            by_columns: bits & 1 != 0,
            padding: if bits & 2 != 0 { 3 } else { 0 },
            rows_reversed: bits & 4 != 0,
            cols_reversed: bits & 8 != 0,
        })
    }
}

/// Elements before and after a matrix: more than a vector, and odd, so that nothing is aligned.
const MARGIN: usize = 17;

/// A matrix in memory of its own that is otherwise full of canaries.
#[derive(Clone, Debug)]
pub(crate) struct Grid<T> {
    memory: Vec<T>,
    rows: usize,
    cols: usize,
    layout: Layout,
}

impl<T: Scalar> Grid<T> {
    /// Nothing but canaries.
    pub(crate) fn blank(rows: usize, cols: usize, layout: Layout) -> Self {
        let (lines, length) = if layout.by_columns { (cols, rows) } else { (rows, cols) };
        let memory = vec![T::CANARY; 2 * MARGIN + lines * (length + layout.padding)];
        Self { memory, rows, cols, layout }
    }

    /// Element `(i, j)` is `element(i, j)`.
    pub(crate) fn from_fn(rows: usize, cols: usize, layout: Layout, mut element: impl FnMut(usize, usize) -> T) -> Self {
        let mut grid = Self::blank(rows, cols, layout);
        for i in 0..rows {
            for j in 0..cols {
                grid.set(i, j, element(i, j));
            }
        }
        grid
    }

    /// Numbers of `family`, row-major and dense.
    pub(crate) fn random(rows: usize, cols: usize, family: Family, seed: u64) -> Self {
        let numbers = generate(family, rows * cols, seed, T::PRECISION);
        Self::from_fn(rows, cols, Layout::default(), |i, j| T::from_f64(numbers[i * cols + j]))
    }

    /// The same matrix in another layout.
    pub(crate) fn relaid(&self, layout: Layout) -> Self {
        Self::from_fn(self.rows, self.cols, layout, |i, j| self.get(i, j))
    }

    /// The transposed matrix, row-major and dense.
    pub(crate) fn transposed(&self) -> Self {
        Self::from_fn(self.cols, self.rows, Layout::default(), |i, j| self.get(j, i))
    }

    /// The matrix of `f(element)`.
    pub(crate) fn map(&self, f: impl Fn(T) -> T) -> Self {
        Self::from_fn(self.rows, self.cols, self.layout, |i, j| f(self.get(i, j)))
    }

    /// Rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Elements from one contiguous line to the next.
    fn stride(&self) -> usize {
        self.layout.padding + if self.layout.by_columns { self.rows } else { self.cols }
    }

    /// Place of element `(i, j)` in the memory.
    fn at(&self, i: usize, j: usize) -> usize {
        assert!(i < self.rows && j < self.cols, "element ({i}, {j}) of {:?}", self.shape());
        let i = if self.layout.rows_reversed { self.rows - 1 - i } else { i };
        let j = if self.layout.cols_reversed { self.cols - 1 - j } else { j };
        let (line, place) = if self.layout.by_columns { (j, i) } else { (i, j) };
        MARGIN + line * self.stride() + place
    }

    /// Element `(i, j)`.
    pub(crate) fn get(&self, i: usize, j: usize) -> T {
        self.memory[self.at(i, j)]
    }

    /// Overwrites element `(i, j)`.
    pub(crate) fn set(&mut self, i: usize, j: usize, value: T) {
        let at = self.at(i, j);
        self.memory[at] = value;
    }

    /// The matrix as kernels read it.
    pub(crate) fn view(&self) -> MatRef<'_, T> {
        let (memory, stride) = (&self.memory[MARGIN..], self.stride());
        let view = if self.layout.by_columns {
            MatRef::from_column_major_slice_with_stride(memory, self.rows, self.cols, stride)
        } else {
            MatRef::from_column_major_slice_with_stride(memory, self.cols, self.rows, stride).transpose()
        };
        let view = if self.layout.rows_reversed { view.reverse_rows() } else { view };
        if self.layout.cols_reversed { view.reverse_cols() } else { view }
    }

    /// The matrix as kernels write it.
    pub(crate) fn view_mut(&mut self) -> MatMut<'_, T> {
        let (stride, layout) = (self.stride(), self.layout);
        let memory = &mut self.memory[MARGIN..];
        let view = if layout.by_columns {
            MatMut::from_column_major_slice_with_stride_mut(memory, self.rows, self.cols, stride)
        } else {
            MatMut::from_column_major_slice_with_stride_mut(memory, self.cols, self.rows, stride).transpose_mut()
        };
        let view = if layout.rows_reversed { view.reverse_rows_mut() } else { view };
        if layout.cols_reversed { view.reverse_cols_mut() } else { view }
    }

    /// The operand of an epilogue that is read.
    pub(crate) fn input(&self) -> Input<'_, T> {
        Input::new(self.view())
    }

    /// The operand of an epilogue that is written.
    pub(crate) fn output(&mut self) -> Output<'_, T> {
        Output::new(self.view_mut())
    }

    /// The matrix as the reference takes it.
    pub(crate) fn exact(&self) -> Matrix {
        Matrix::from_fn(self.rows, self.cols, |i, j| exact(self.get(i, j)))
    }

    /// Fails if a canary was overwritten.
    pub(crate) fn check_canaries(&self, what: &impl Debug) -> TestCaseResult {
        let mut rest = self.memory.clone();
        for i in 0..self.rows {
            for j in 0..self.cols {
                rest[self.at(i, j)] = T::CANARY;
            }
        }
        let broken = rest.iter().position(|x| x.to_bits() != T::CANARY.to_bits());
        prop_assert!(broken.is_none(), "memory {broken:?} beside a {:?} in {:?}: {what:?}", self.shape(), self.layout);
        Ok(())
    }

    /// Fails unless this has the bits of `wanted` and all of its canaries.
    pub(crate) fn check_bits(&self, wanted: &Grid<T>, what: &impl Debug) -> TestCaseResult {
        self.check_canaries(what)?;
        prop_assert_eq!(self.shape(), wanted.shape());
        for i in 0..self.rows {
            for j in 0..self.cols {
                let (got, want) = (self.get(i, j), wanted.get(i, j));
                prop_assert!(same(got, want), "({i}, {j}) is {got:e}, not {want:e}: {what:?}");
            }
        }
        Ok(())
    }
}

/// The sums of the promise: for each element one chain of fused multiply-adds from zero in ascending depth.
pub(crate) fn chains<T: Scalar>(rows: &Grid<T>, lanes: &Grid<T>) -> Grid<T> {
    let ((m, depth), n) = (rows.shape(), lanes.cols);
    let chain = |i, j| (0..depth).fold(T::ZERO, |sum, p| rows.get(i, p).mul_add(lanes.get(p, j), sum));
    Grid::from_fn(m, n, Layout::default(), chain)
}

/// The matrix of `bound(terms of the sum (i, j), i, j)`.
pub(crate) fn bounds<T: Scalar>(
    rows: &Grid<T>,
    lanes: &Grid<T>,
    bound: impl Fn(&mut dyn Iterator<Item = (Bounded, Bounded)>, usize, usize) -> Bounded,
) -> Matrix {
    let (left, right) = (rows.exact(), lanes.exact());
    Matrix::from_fn(rows.rows, lanes.cols, |i, j| bound(&mut (0..rows.cols).map(|p| (left[(i, p)], right[(p, j)])), i, j))
}

/// Compares with bounds, and counts how much that says.
#[derive(Default)]
pub(crate) struct Tally {
    entries: Cell<usize>,
    telling: Cell<usize>,
    worst: Cell<f64>,
}

impl Tally {
    /// Fails unless `bound` admits `got`, element by element.
    pub(crate) fn check<T: Scalar>(&self, bound: &Matrix, got: &Grid<T>, what: &impl Debug) -> TestCaseResult {
        prop_assert_eq!((bound.rows, bound.cols), got.shape());
        for i in 0..got.rows {
            for j in 0..got.cols {
                self.check_one(bound[(i, j)], got.get(i, j).to_f64(), &(i, j, what))?;
            }
        }
        Ok(())
    }

    /// Fails unless `bound` admits `got`.
    pub(crate) fn check_one(&self, bound: Bounded, got: f64, what: &impl Debug) -> TestCaseResult {
        self.entries.set(self.entries.get() + 1);
        if bound.is_informative() && bound.value.abs() > bound.error {
            self.telling.set(self.telling.get() + 1);
        }
        prop_assert!(bound.admits(got), "{got:e} is not within {:e} ± {:e}: {what:?}", bound.value, bound.error);
        self.worst.set(self.worst.get().max(bound.ratio(got)));
        Ok(())
    }

    /// Fails unless zero would have been refused for at least a quarter of the elements; prints the worst ratio of error and bound.
    pub(crate) fn conclude<T: Scalar>(&self, what: &str) {
        let (entries, telling) = (self.entries.get(), self.telling.get());
        println!("{what} {}: {entries} elements, {telling} telling, error/bound at most {:.3}", T::NAME, self.worst.get());
        assert!(4 * telling > entries, "{what}: only {telling} of {entries} bounds exclude zero");
    }
}

/// How a factor of a product is handed over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// Packed beforehand from the layout, not read from it.
    pub(crate) packed: bool,
    /// Where the elements come from.
    pub(crate) layout: Layout,
}

impl Form {
    /// All layouts, read in place and packed.
    pub(crate) fn all() -> impl Iterator<Item = Form> {
        Layout::all().flat_map(|layout| [false, true].map(|packed| Form { packed, layout }))
    }
}

/// A choice of the blocking.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// These numbers.
    Given(Blocking),
    /// [`Blocking::streaming_panels`] for the shape.
    StreamingPanels,
    /// [`Blocking::streaming_rows`] for the shape.
    StreamingRows,
    /// [`Blocking::in_place`] for the shape.
    InPlace,
    /// [`Blocking::deep`] for the shape.
    Deep,
}

impl Cut {
    /// Tiny blocks, so that every loop runs several times; `mc` is given in rows.
    pub(crate) fn tiny(isa: Isa) -> Vec<Cut> {
        let mr = isa.tile().0;
        let mut cuts = Vec::new();
        for mc in [1, mr, mr + 1] {
            for kc in [1, 3, 7] {
                for nc in [1, 2] {
                    cuts.extend([1, 2, 5].map(|group| Cut::Given(Blocking { mc, kc, nc, group })));
                }
            }
        }
        cuts
    }

    fn blocking<T: Real>(self, isa: Isa, rows: usize, depth: usize) -> Blocking {
        match self {
            Cut::Given(blocking) => blocking,
            Cut::StreamingPanels => Blocking::streaming_panels::<T>(isa, rows),
            Cut::StreamingRows => Blocking::streaming_rows::<T>(isa, depth),
            Cut::InPlace => Blocking::in_place::<T>(isa, rows),
            Cut::Deep => Blocking::deep(rows),
        }
    }
}

/// All that must not change a bit of a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// The left factor.
    pub(crate) rows: Form,
    /// The right factor.
    pub(crate) lanes: Form,
    /// Packs the right factor piece by piece, if it is not packed beforehand.
    pub(crate) piecewise: bool,
    /// The operands of the epilogue.
    pub(crate) operands: [Layout; 3],
    /// The blocking.
    pub(crate) cut: Cut,
    /// The threads.
    pub(crate) par: Par,
    /// Computes the transposed product: the factors change roles, the epilogue is transposed.
    pub(crate) swapped: bool,
}

impl Call {
    /// Row-major operands in one block, on one thread.
    pub(crate) fn plain() -> Call {
        let form = Form { packed: false, layout: Layout::default() };
        let cut = Cut::StreamingPanels;
        Call { rows: form, lanes: form, piecewise: false, operands: [Layout::default(); 3], cut, par: Par::Seq, swapped: false }
    }

    /// Every form of each operand and every tiny blocking, in both roles, the rest as in [`Call::plain`].
    pub(crate) fn each(isa: Isa) -> Vec<Call> {
        let plain = Call::plain();
        let forms = Form::all().flat_map(|form| [Call { rows: form, ..plain }, Call { lanes: form, ..plain }]);
        let operands = Layout::all().map(|layout| Call { operands: [layout; 3], ..plain });
        let cuts = [Cut::StreamingPanels, Cut::StreamingRows, Cut::InPlace, Cut::Deep].into_iter().chain(Cut::tiny(isa));
        let cuts = cuts.map(|cut| Call { cut, ..plain });
        let pieces = Layout::all().map(|layout| Call { lanes: Form { packed: false, layout }, piecewise: true, ..plain });
        forms
            .chain(operands)
            .chain(cuts)
            .chain(pieces)
            .flat_map(|call| [false, true].map(|swapped| Call { swapped, ..call }))
            .collect()
    }

    /// `product(rows, lanes)` in this way.
    pub(crate) fn product<T: Scalar>(&self, isa: Isa, rows: &Grid<T>, lanes: &Grid<T>, epilogue: Epilogue<'_, T>) {
        let (rows, lanes, epilogue) = if self.swapped {
            (lanes.transposed(), rows.transposed(), epilogue.transposed())
        } else {
            (rows.clone(), lanes.clone(), epilogue)
        };
        let (rows, lanes) = (rows.relaid(self.rows.layout), lanes.relaid(self.lanes.layout));
        let (mut bands, mut panels) = (Bands::new(), Panels::new());
        let blocking = self.cut.blocking::<T>(isa, rows.rows, rows.cols);
        let left = if self.rows.packed {
            bands.pack(isa, rows.view());
            Rows::Packed(&bands)
        } else {
            Rows::View(rows.view())
        };
        let right = if self.lanes.packed {
            panels.pack(isa, Par::Seq, lanes.view());
            Lanes::Packed(&panels)
        } else if self.piecewise {
            Lanes::Piecewise(lanes.view())
        } else {
            Lanes::View(lanes.view())
        };
        product(isa, self.par, left, right, epilogue, blocking, &mut Scratch::new());
    }
}

/// The factors of a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Problem {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) depth: usize,
    /// Families of the left and the right factor.
    pub(crate) families: [Family; 2],
    pub(crate) seed: u64,
}

impl Problem {
    /// The left factor.
    pub(crate) fn rows<T: Scalar>(&self) -> Grid<T> {
        Grid::random(self.m, self.depth, self.families[0], self.seed)
    }

    /// The right factor.
    pub(crate) fn lanes<T: Scalar>(&self) -> Grid<T> {
        Grid::random(self.depth, self.n, self.families[1], self.seed ^ 1)
    }

    /// Another matrix of the shape of the product.
    pub(crate) fn operand<T: Scalar>(&self, family: Family, number: u64) -> Grid<T> {
        Grid::random(self.m, self.n, family, self.seed ^ (2 + number))
    }
}

/// A layout.
pub(crate) fn layout() -> impl Strategy<Value = Layout> {
    let fields = (any::<bool>(), select(vec![0, 1, 5]), any::<bool>(), any::<bool>());
    fields.prop_map(|(by_columns, padding, rows_reversed, cols_reversed)| Layout {
        by_columns,
        padding,
        rows_reversed,
        cols_reversed,
    })
}

/// A way to call a product.
pub(crate) fn call() -> impl Strategy<Value = Call> {
    let form = || (any::<bool>(), layout()).prop_map(|(packed, layout)| Form { packed, layout });
    let blocking = (1..=20usize, prop_oneof![select(vec![1, 3, 7]), 1..=80usize], 1..=3usize, select(vec![1, 2, 5]));
    let given = blocking.prop_map(|(mc, kc, nc, group)| Cut::Given(Blocking { mc, kc, nc, group }));
    let cut = prop_oneof![3 => given, 1 => select(vec![Cut::StreamingPanels, Cut::StreamingRows, Cut::InPlace, Cut::Deep])];
    let par = select(vec![Par::Seq, Par::rayon(2), Par::rayon(3), Par::rayon(8)]);
    let fields = (form(), form(), any::<bool>(), [layout(), layout(), layout()], cut, par, any::<bool>());
    fields.prop_map(|(rows, lanes, piecewise, operands, cut, par, swapped)| Call {
        rows,
        lanes,
        piecewise,
        operands,
        cut,
        par,
        swapped,
    })
}

/// A problem with sizes up to 70, and around multiples of the tile sizes up to 97.
pub(crate) fn problem() -> impl Strategy<Value = Problem> {
    let tile =
        (select(vec![4, 6, 8, 16, 24, 48]), 1..=2usize, 0..=2usize).prop_map(|(tile, count, more)| tile * count + more - 1);
    let size = prop_oneof![3 => (0..=70usize).boxed(), 1 => tile.boxed()];
    let family = select(Family::ALL.to_vec());
    let fields = (size.clone(), size.clone(), size, [family.clone(), family], any::<u64>());
    fields.prop_map(|(m, n, depth, families, seed)| Problem { m, n, depth, families, seed })
}

/// Runs `test` on `cases` random values, or as many as `PROPTEST_CASES` says; panics with the smallest value that fails.
pub(crate) fn for_all<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value) -> TestCaseResult) {
    let config = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { config.cases } else { cases };
    let config = ProptestConfig { cases, failure_persistence: None, ..config };
    if let Err(error) = TestRunner::new(config).run(&strategy, test) {
        panic!("{error}");
    }
}

/// Fails unless `run` panics with a message that contains `part`.
pub(crate) fn assert_panics(part: &str, run: impl FnOnce()) {
    let payload = catch_unwind(AssertUnwindSafe(run)).expect_err(part);
    let message = payload.downcast_ref::<String>().cloned().or_else(|| payload.downcast_ref::<&str>().map(|s| s.to_string()));
    assert!(message.as_ref().is_some_and(|message| message.contains(part)), "{message:?} instead of {part:?}");
}
