//! Sparse products, updates and sums against the promised order of operations to the bit, and against bounds of the reference.

mod common;

use common::*;
use dualprop_kernels::activation::Activation;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::optimizer::{Decay, Descent, Optimizer, Update};
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::sparse::{self, Matrix, Pattern};
use dualprop_reference::bound::{Bounded, Precision, dot, gamma};
use dualprop_reference::generate::{Family, SplitMix64, generate};
use dualprop_reference::product::Matrix as Exact;
use dualprop_reference::sparse::Sparse as Reference;
use faer::{MatMut, MatRef, Par};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseResult;
use rayon::ThreadPoolBuilder;

tests_of_both_types!(
    products_and_grams,
    epilogues_are_those_of_the_dense_product,
    updates,
    threads_change_nothing,
    wide_indices,
    empty_matrices,
    not_a_number_stays_in_its_lines,
    sums_in_f64,
);

/// A sparse matrix as a list of rows.
#[derive(Clone, Debug)]
struct Case<T> {
    cols: usize,
    rows: Vec<Vec<(usize, T)>>,
}

impl<T: Scalar> Case<T> {
    /// Each element is stored with a chance of `density`; some rows and columns are empty, some full.
    fn random(rows: usize, cols: usize, density: f64, family: Family, seed: u64) -> Self {
        let mut random = SplitMix64::new(seed);
        let mut chance = |of: f64| random.symmetric() < 2.0 * of - 1.0;
        let (empty, full): (Vec<_>, Vec<_>) = (0..cols).map(|_| (chance(0.05), chance(0.05))).unzip();
        let mut kept = Vec::new();
        for _ in 0..rows {
            let (no, all) = (chance(0.1), chance(0.05));
            kept.push((0..cols).filter(|&j| !no && (all || full[j] || !empty[j] && chance(density))).collect::<Vec<_>>());
        }
        let mut values = generate(family, kept.iter().map(Vec::len).sum(), seed ^ 1, T::PRECISION).into_iter();
        let mut row =
            |kept: Vec<usize>| kept.into_iter().map(|j| (j, T::from_f64(values.next().expect("one for each")))).collect();
        Self { cols, rows: kept.into_iter().map(&mut row).collect() }
    }

    fn matrix(&self) -> Matrix<T> {
        let mut start = vec![0];
        self.rows.iter().for_each(|row| start.push(start[start.len() - 1] + row.len()));
        let (indices, values): (Vec<_>, Vec<_>) = self.rows.iter().flatten().copied().unzip();
        Matrix::new(Pattern::new(self.rows.len(), self.cols, &start, &indices).expect("a sound pattern"), values)
    }

    fn transposed(&self) -> Self {
        let mut rows = vec![Vec::new(); self.cols];
        for (i, row) in self.rows.iter().enumerate() {
            row.iter().for_each(|&(j, value)| rows[j].push((i, value)));
        }
        Self { cols: self.rows.len(), rows }
    }

    fn reference(&self) -> Reference {
        let row = |row: &Vec<(usize, T)>| row.iter().map(|&(j, value)| (j, exact(value))).collect();
        Reference { cols: self.cols, rows: self.rows.iter().map(row).collect() }
    }

    fn dense(&self) -> Grid<T> {
        let element = |i: usize, j| self.rows[i].iter().find(|&&(at, _)| at == j).map_or(T::ZERO, |&(_, value)| value);
        Grid::from_fn(self.rows.len(), self.cols, Layout::default(), element)
    }

    /// `x Aᵀ` in the promised order.
    fn promised(&self, x: &Grid<T>) -> Grid<T> {
        let p = x.shape().0;
        Grid::from_fn(p, self.rows.len(), Layout::default(), |b, i| {
            let terms: Vec<_> = self.rows[i].iter().map(|&(j, value)| (value, x.get(b, j))).collect();
            if p == 1 { in_lanes(&terms) } else { chain(&terms) }
        })
    }
}

/// One chain of fused multiply-adds.
fn chain<T: Scalar>(terms: &[(T, T)]) -> T {
    terms.iter().fold(T::ZERO, |sum, &(a, b)| a.mul_add(b, sum))
}

/// The whole groups in lanes, which are added up by halves, then the chain of the rest.
fn in_lanes<T: Scalar>(terms: &[(T, T)]) -> T {
    let count = 64 / size_of::<T>();
    let groups = terms.chunks_exact(count);
    let rest = chain(groups.remainder());
    let mut lanes = vec![T::ZERO; count];
    for group in groups {
        lanes.iter_mut().zip(group).for_each(|(lane, &(a, b))| *lane = a.mul_add(b, *lane));
    }
    while lanes.len() > 1 {
        let upper = lanes.split_off(lanes.len() / 2);
        lanes.iter_mut().zip(upper).for_each(|(lane, other)| *lane += other);
    }
    lanes[0] + rest
}

fn layouts() -> impl Strategy<Value = Layout> {
    (any::<[bool; 3]>(), select(vec![0, 3])).prop_map(|([by_columns, rows_reversed, cols_reversed], padding)| Layout {
        by_columns,
        padding,
        rows_reversed,
        cols_reversed,
    })
}

fn cases<T: Scalar>() -> impl Strategy<Value = Case<T>> {
    let densities = select(vec![0.02, 0.2, 0.6, 1.0]);
    (0..150usize, 0..90usize, densities, select(Family::ALL.to_vec()), any::<u64>())
        .prop_map(|(m, n, density, family, seed)| Case::random(m, n, density, family, seed))
}

/// `Σ y²` over the elements of each row: `γ_m` of it, in f64.
fn squares_bound<T: Scalar>(y: &Grid<T>, i: usize) -> Bounded {
    let m = y.shape().1;
    let value = (0..m).map(|j| y.get(i, j).to_f64().powi(2)).sum::<f64>();
    Bounded::new(value, (gamma(m + 1, f64::EPSILON / 2.0) * 2.0) * value, Precision::F64).underflow(2.0 * m as f64)
}

fn products_and_grams<T: Scalar>() {
    let (products, grams) = (Tally::default(), Tally::default());
    let vectors = select(vec![0, 1, 2, 4, 7, 8, 9, 16, 17, 24, 35]);
    let check = |case: Case<T>, p: usize, family: Family, [of_x, of_y]: [Layout; 2], seed: u64| -> TestCaseResult {
        let matrix = case.matrix();
        let x = Grid::<T>::random(p, case.cols, family, seed);
        let (up, back) = (case.promised(&x), case.transposed());
        let gram = back.promised(&up);
        let what = (&case, p, family, of_x, of_y);
        for isa in Isa::available() {
            let (from, mut scratch) = (x.relaid(of_x), Scratch::new());
            let mut y = Grid::blank(p, case.rows.len(), of_y);
            sparse::apply(isa, Par::Seq, matrix.rows(), from.view(), y.view_mut(), &mut scratch);
            y.check_bits(&up, &(isa, what))?;
            let (mut z, mut squares) = (Grid::blank(p, case.cols, of_y), vec![f64::NAN; p]);
            sparse::gram(isa, Par::Seq, &matrix, from.view(), z.view_mut(), &mut squares, &mut scratch);
            z.check_bits(&gram, &(isa, what))?;
            for (i, &square) in squares.iter().enumerate() {
                let bound = squares_bound(&up, i);
                prop_assert!(bound.admits(square), "square {i} is {square:e}, not {:e}: {:?}", bound.value, (isa, what));
            }
            let mut z = Grid::blank(p, case.cols, of_y);
            sparse::apply(isa, Par::Seq, matrix.columns(), up.view(), z.view_mut(), &mut scratch);
            z.check_bits(&gram, &(isa, what))?;
        }
        products.check(&case.reference().product(T::PRECISION, &x.exact()), &up, &what)?;
        grams.check(&case.reference().gram(T::PRECISION, &x.exact()), &gram, &what)
    };
    for_all(
        300,
        (cases::<T>(), vectors, select(Family::ALL.to_vec()), [layouts(), layouts()], any::<u64>()),
        |(a, p, f, l, s)| check(a, p, f, l, s),
    );
    // Interleaved in full blocks: read and written where they are.
    let interleaved = Layout { by_columns: true, ..Layout::default() };
    for (seed, p) in [1, 8, 16, 32].into_iter().enumerate() {
        let case = Case::random(300, 280, 0.3, Family::Uniform, seed as u64);
        check(case, p, Family::Uniform, [interleaved; 2], seed as u64).unwrap();
    }
    products.conclude::<T>("sparse product");
    grams.conclude::<T>("sparse gram");
}

/// Drive and activation of a layer have the bits of the dense product with zeros (stored elements are not zero, so that no sign of a zero differs).
fn epilogues_are_those_of_the_dense_product<T: Scalar>() {
    for (seed, (m, n, batch)) in [(1, 1, 1), (5, 40, 3), (130, 70, 8), (128, 33, 16), (300, 50, 37)].into_iter().enumerate() {
        let case = Case::<T>::random(m, n, 0.3, Family::Uniform, seed as u64);
        let (below, bias) = (Grid::random(batch, n, Family::Uniform, 7), Grid::random(batch, m, Family::Uniform, 8));
        for isa in Isa::available() {
            for layout in Layout::all() {
                let [mut drive, mut mean, mut drive2, mut mean2] = [(); 4].map(|()| Grid::<T>::blank(batch, m, layout));
                let bias = bias.relaid(layout);
                let activation = Activation::Tanh;
                let epilogue = Epilogue::Forward { drive: drive.output(), bias: bias.input(), mean: mean.output(), activation };
                let (from, mut scratch) = (below.relaid(layout), Scratch::new());
                sparse::product(isa, Par::Seq, case.matrix().rows(), from.view(), epilogue, &mut scratch);
                let epilogue = Epilogue::Forward { drive: drive2.output(), bias: bias.input(), mean: mean2.output(), activation };
                let dense = case.dense();
                let lanes = Lanes::View(dense.view().transpose());
                let blocking = Blocking::on_the_fly(batch);
                product(isa, Par::Seq, Rows::View(from.view()), lanes, epilogue, blocking, &mut scratch);
                drive.check_bits(&drive2, &(isa, layout)).unwrap();
                mean.check_bits(&mean2, &(isa, layout)).unwrap();
            }
        }
    }
}

/// The sums are those in lanes, and the optimizer is that of the dense update, to the bit; both copies of the weights follow.
fn updates<T: Scalar>() {
    let tally = Tally::default();
    let check = |case: Case<T>, batch: usize, family: Family, optimizer: Optimizer, decay: Decay, seed: u64| -> TestCaseResult {
        let (m, n) = (case.rows.len(), case.cols);
        let above = Grid::<T>::random(batch, m, family, seed);
        let below = Grid::<T>::random(batch, n, family, seed ^ 1);
        let places: Vec<_> = (0..m).flat_map(|i| case.rows[i].iter().map(move |&(j, _)| (i, j))).collect();
        let stored = places.len();
        let count = 64 / size_of::<T>();
        let sums = Grid::from_fn(1, stored, Layout::default(), |_, k| {
            let (i, j) = places[k];
            let mut terms: Vec<_> = (0..batch).map(|b| (above.get(b, i), below.get(b, j))).collect();
            terms.resize(batch.next_multiple_of(count), (T::ZERO, T::ZERO));
            in_lanes(&terms)
        });
        let bound = Exact::from_fn(1, stored, |_, k| {
            let (i, j) = places[k];
            dot(T::PRECISION, (0..batch).map(|b| (exact(above.get(b, i)), exact(below.get(b, j)))))
        });
        tally.check(&bound, &sums, &(batch, family, seed))?;
        let update = Update { optimizer, decay, learning_rate: 0.1, step: 3, scale: -0.125 };
        let state: Vec<_> = (0..optimizer.moments() as u64)
            .map(|k| Grid::<T>::random(1, stored, Family::Uniform, seed ^ (k + 2)).map(T::abs))
            .collect();
        for isa in Isa::available() {
            let mut scratch = Scratch::new();
            let mut wanted: Vec<_> = state.clone();
            let mut weights = Grid::from_fn(1, stored, Layout::default(), |_, k| case.matrix().rows().values()[k]);
            {
                let moments: Vec<_> = wanted.iter_mut().map(Grid::view_mut).collect();
                let one = [T::ONE];
                let (rows, lanes) = (Rows::View(MatRef::from_row_major_slice(&one, 1, 1)), Lanes::View(sums.view()));
                let epilogue = Epilogue::Update(Descent::new(weights.view_mut(), moments, update));
                product(isa, Par::Seq, rows, lanes, epilogue, Blocking::on_the_fly(1), &mut scratch);
            }
            let mut matrix = case.matrix();
            let mut moments: Vec<Vec<T>> = state.iter().map(|grid| (0..stored).map(|k| grid.get(0, k)).collect()).collect();
            let mut slices: Vec<_> = moments.iter_mut().map(Vec::as_mut_slice).collect();
            sparse::update(isa, Par::Seq, &mut matrix, &mut slices, above.view(), below.view(), update, &mut scratch);
            for k in 0..stored {
                let got = matrix.rows().values()[k];
                prop_assert!(same(got, weights.get(0, k)), "weight {k} is {got:e}, not {:e} on {isa}", weights.get(0, k));
                for (got, wanted) in moments.iter().zip(&wanted) {
                    prop_assert!(same(got[k], wanted.get(0, k)), "moment {k} on {isa}");
                }
            }
            let other = matrix.columns();
            for j in 0..n {
                for k in other.pattern().line(j) {
                    let place = (other.pattern().index(k), j);
                    let row = places.iter().position(|&at| at == place).expect("stored in both");
                    prop_assert!(same(other.values()[k], matrix.rows().values()[row]), "copies differ at {place:?}");
                }
            }
        }
        Ok(())
    };
    let small = (0..40usize, 0..60usize, select(vec![0.1, 0.5, 1.0]), any::<u64>())
        .prop_map(|(m, n, density, seed)| Case::random(m, n, density, Family::Uniform, seed));
    let optimizers = select(vec![Optimizer::Sgd, Optimizer::MOMENTUM, Optimizer::ADAM]);
    let decays = select(vec![Decay::None, Decay::Coupled(5e-4), Decay::Decoupled(1e-2)]);
    let families = select(vec![Family::Uniform, Family::Mixed, Family::Cancelling]);
    for_all(60, (small, 0..70usize, families, optimizers, decays, any::<u64>()), |(a, b, f, o, d, s)| check(a, b, f, o, d, s));
    tally.conclude::<T>("sparse gradient");
}

/// Large enough to be shared out; every number of threads gives the bits of one.
fn threads_change_nothing<T: Scalar>() {
    let case = Case::<T>::random(700, 650, 0.2, Family::Uniform, 3);
    let matrix = case.matrix();
    let x = Grid::<T>::random(16, 650, Family::Uniform, 4).relaid(Layout { by_columns: true, ..Layout::default() });
    let above = Grid::<T>::random(16, 700, Family::Uniform, 5);
    let update = Update { optimizer: Optimizer::Sgd, decay: Decay::None, learning_rate: 0.1, step: 1, scale: 1.0 };
    let run = |par| {
        let mut scratch = Scratch::new();
        let (mut y, mut squares) = (Grid::blank(16, 650, Layout::default()), vec![0.0; 16]);
        sparse::gram(Isa::best(), par, &matrix, x.view(), y.view_mut(), &mut squares, &mut scratch);
        let mut out = Grid::blank(16, 700, Layout::default());
        let epilogue = Epilogue::Store { out: out.output(), scale: T::ONE };
        sparse::product(Isa::best(), par, matrix.rows(), x.view(), epilogue, &mut scratch);
        let mut changed = matrix.clone();
        sparse::update(Isa::best(), par, &mut changed, &mut [], above.view(), x.view(), update, &mut scratch);
        (y, squares, out, changed)
    };
    let (y, squares, out, changed) = run(Par::Seq);
    for threads in [2, 3, 4, 7, 16] {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let shared = pool.install(|| run(Par::rayon(threads)));
        shared.0.check_bits(&y, &threads).unwrap();
        shared.2.check_bits(&out, &threads).unwrap();
        assert_eq!((&shared.1, &shared.3), (&squares, &changed), "{threads} threads");
    }
}

/// More than 65536 columns: 32-bit indices one way, 16-bit the other.
fn wide_indices<T: Scalar>() {
    let cols = 70_000;
    let row = |i: usize| (0..cols).step_by(997 + i).chain([cols - 1]).map(|j| (j, T::from_f64((j % 7) as f64 - 3.0))).collect();
    let mut case = Case::<T> { cols, rows: (0..5).map(row).collect() };
    case.rows.iter_mut().for_each(|row| row.dedup_by_key(|&mut (j, _)| j));
    for p in [1, 3, 16] {
        let x = Grid::<T>::random(p, cols, Family::Uniform, 1);
        let (up, mut back) = (case.promised(&x), Grid::blank(p, cols, Layout::default()));
        let gram = case.transposed().promised(&up);
        for isa in Isa::available() {
            let mut squares = vec![0.0; p];
            sparse::gram(isa, Par::Seq, &case.matrix(), x.view(), back.view_mut(), &mut squares, &mut Scratch::new());
            back.check_bits(&gram, &(isa, p)).unwrap();
        }
    }
}

/// Without rows, columns or elements: zeros, and nothing else is touched.
fn empty_matrices<T: Scalar>() {
    for (m, n) in [(0, 0), (0, 5), (5, 0), (1, 1), (300, 200)] {
        let case = Case::<T> { cols: n, rows: vec![Vec::new(); m] };
        let matrix = case.matrix();
        for p in [0, 1, 3, 16] {
            for isa in Isa::available() {
                // NaN all over: none of it is stored.
                let x = Grid::from_fn(p, n, Layout::default(), |_, _| T::CANARY);
                let (mut y, mut squares) = (Grid::blank(p, n, Layout::default()), vec![f64::NAN; p]);
                sparse::gram(isa, Par::Seq, &matrix, x.view(), y.view_mut(), &mut squares, &mut Scratch::new());
                y.check_bits(&Grid::from_fn(p, n, Layout::default(), |_, _| T::ZERO), &(isa, m, n, p)).unwrap();
                assert_eq!(squares, vec![0.0; p]);
            }
        }
        assert_eq!(sparse::scan(matrix.rows(), 1.0), sparse::Scan { line: 0.0, line_square: 0.0, square: 0.0 });
    }
}

fn not_a_number_stays_in_its_lines<T: Scalar>() {
    let case = Case::<T>::random(60, 70, 0.2, Family::Uniform, 9);
    let matrix = case.matrix();
    for p in [1, 5, 16] {
        for bad in 0..70 {
            let mut x = Grid::<T>::random(p, 70, Family::Uniform, 1);
            x.set(p - 1, bad, T::from_f64(f64::NAN));
            for isa in Isa::available() {
                let mut y = Grid::blank(p, 60, Layout::default());
                sparse::apply(isa, Par::Seq, matrix.rows(), x.view(), y.view_mut(), &mut Scratch::new());
                for i in 0..p {
                    for (row, stored) in case.rows.iter().enumerate() {
                        let meets = i == p - 1 && stored.iter().any(|&(j, _)| j == bad);
                        assert_eq!(y.get(i, row).to_f64().is_nan(), meets, "vector {i} of {p}, row {row}, NaN at {bad} on {isa}");
                    }
                }
            }
        }
    }
}

/// `A x` and `|A||x|` in f64 within `γ_k` of sums that the reference bounds, and the sums of one pass.
fn sums_in_f64<T: Scalar>() {
    let tally = Tally::default();
    for (seed, family) in Family::ALL.into_iter().enumerate() {
        let case = Case::<T>::random(50, 200, 0.4, family, seed as u64);
        let (matrix, x) = (case.matrix(), generate(Family::Uniform, 200, seed as u64, Precision::F64));
        for isa in Isa::available() {
            let (mut y, mut sizes) = (vec![f64::NAN; 50], vec![f64::NAN; 50]);
            sparse::wide(isa, matrix.rows(), &x, &mut y, &mut sizes);
            for (i, row) in case.rows.iter().enumerate() {
                let wide = |f: fn(f64) -> f64| {
                    let pair = move |&(j, a): &(usize, T)| (f(a.to_f64()), j);
                    let terms = row.iter().map(pair).map(|(a, j)| (Precision::F64.exact(a), Precision::F64.exact(f(x[j]))));
                    dot(Precision::F64, terms)
                };
                tally.check_one(wide(|a| a), y[i], &(isa, family, i)).unwrap();
                tally.check_one(wide(f64::abs), sizes[i], &(isa, family, i)).unwrap();
            }
        }
        let scan = sparse::scan(matrix.rows(), 1.0);
        let of_rows = |f: fn(f64) -> f64| case.rows.iter().map(move |row| row.iter().map(|&(_, a)| f(a.to_f64())).sum::<f64>());
        assert_eq!(scan.line, of_rows(f64::abs).fold(0.0, f64::max));
        assert_eq!(scan.line_square, of_rows(|a| a * a).fold(0.0, f64::max));
        assert_eq!(scan.square, of_rows(|a| a * a).sum());
    }
    tally.conclude::<T>("sparse sums in f64");
}

#[test]
fn broken_patterns_are_refused_by_one_rule() {
    let fault = |start: &[i32], indices: &[i32]| Pattern::new(2, 3, start, indices).map(|_| ()).map_err(|f| (f.line, f.position));
    assert_eq!(fault(&[0, 2, 3], &[0, 2, 1]), Ok(()));
    assert_eq!(fault(&[0, 0, 0], &[]), Ok(()));
    // Pointers: too few, too many, not from 0, falling, negative, beyond the end or short of it.
    assert_eq!(fault(&[0, 1], &[0]), Err((2, 2)));
    assert_eq!(fault(&[], &[]), Err((2, 0)));
    assert_eq!(fault(&[0, 0, 0, 0], &[]), Err((2, 4)));
    assert_eq!(fault(&[1, 1, 1], &[0]), Err((0, 0)));
    assert_eq!(fault(&[0, 2, 1], &[0, 1]), Err((1, 2)));
    assert_eq!(fault(&[0, -1, 1], &[0]), Err((0, 1)));
    assert_eq!(fault(&[0, 1, 4], &[0, 1, 2]), Err((2, 2)));
    assert_eq!(fault(&[0, 1, 2], &[0, 1, 2]), Err((2, 2)));
    // Indices: duplicate, unsorted, out of range, negative; the first is named.
    assert_eq!(fault(&[0, 2, 3], &[1, 1, 0]), Err((0, 1)));
    assert_eq!(fault(&[0, 0, 3], &[0, 2, 1]), Err((1, 2)));
    assert_eq!(fault(&[0, 1, 2], &[0, 3]), Err((1, 1)));
    assert_eq!(fault(&[0, 1, 2], &[-1, 7]), Err((0, 0)));
    // Other index types, and sides that no index could name.
    assert!(Pattern::new(1, 1 << 17, &[0u64, 1], &[(1u64 << 17) - 1]).is_ok());
    assert!(Pattern::new(0, usize::MAX, &[0u8], &[] as &[u16]).is_err());
    assert!(Pattern::new(usize::MAX, 1, &[0u8], &[] as &[u16]).is_err());
}

#[test]
fn shapes_that_do_not_fit_panic() {
    let matrix = Case::<f32>::random(4, 6, 0.5, Family::Uniform, 1).matrix();
    let (x, mut y, mut squares) = ([0f32; 24], [0f32; 24], [0f64; 4]);
    assert_panics("a row of x and y", || {
        let (x, y) = (MatRef::from_row_major_slice(&x[..20], 4, 5), MatMut::from_row_major_slice_mut(&mut y[..16], 4, 4));
        sparse::apply(Isa::best(), Par::Seq, matrix.rows(), x, y, &mut Scratch::new());
    });
    assert_panics("a square for each vector", || {
        let (x, y) = (MatRef::from_row_major_slice(&x, 4, 6), MatMut::from_row_major_slice_mut(&mut y, 4, 6));
        sparse::gram(Isa::best(), Par::Seq, &matrix, x, y, &mut squares[..3], &mut Scratch::new());
    });
    assert_panics("a value for each stored element", || {
        Matrix::new(matrix.rows().pattern().clone(), vec![0f32; 1]);
    });
}
