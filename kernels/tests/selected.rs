//! Products with some rows of a matrix, and inner products: the bits that are promised, and the reference with its bounds.

mod common;

use common::*;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::selected::{OUTPUTS, Selected, crossing, inner, selected};
use dualprop_reference::bound::{Precision, affine, dot};
use dualprop_reference::generate::{Family, SplitMix64, generate};

tests_of_both_types!(
    sums_are_chains,
    rows_of_zeros_may_be_left_out,
    crossings,
    inner_products,
    inner_products_that_underflow,
    misfits,
);

/// Rows of the result, columns, rows of the matrix.
const SHAPES: [(usize, usize, usize); 8] =
    [(1, 1, 1), (1, 300, 50), (2, 17, 9), (3, 130, 64), (5, 64, 30), (10, 97, 97), (13, 33, 40), (31, 16, 7)];

struct Problem<T> {
    matrix: Grid<T>,
    lower: bool,
    rows: Vec<u32>,
    factors: Vec<T>,
    start: Grid<T>,
}

impl<T: Scalar> Problem<T> {
    fn all() -> impl Iterator<Item = Problem<T>> {
        (0..SHAPES.len() * Family::ALL.len() * 2).map(|number| {
            let ((m, n, height), lower) = (SHAPES[number % SHAPES.len()], number % 2 == 1);
            let family = Family::ALL[number / SHAPES.len() % Family::ALL.len()];
            let whole = Grid::<T>::random(height, n, family, number as u64);
            let matrix = |p, j| if lower && j > p { T::ZERO } else { whole.get(p, j) };
            let mut random = SplitMix64::new(number as u64);
            let rows: Vec<u32> = (0..height as u32).filter(|_| random.below(2) == 0).collect();
            let factors = generate(family, m * rows.len(), number as u64 + 1000, T::PRECISION);
            Problem {
                matrix: Grid::from_fn(height, n, Layout::default(), matrix),
                lower,
                rows,
                factors: factors.into_iter().map(T::from_f64).collect(),
                start: Grid::random(m, n, family, number as u64 + 2000),
            }
        })
    }

    fn run(&self, isa: Isa, from_zero: bool) -> Grid<T> {
        let (m, n) = self.start.shape();
        let mut out = Grid::blank(m, n, Layout { padding: 3, ..Layout::default() });
        let start = (!from_zero).then(|| self.start.view());
        let product = Selected { rows: &self.rows, factors: &self.factors, start, wanted: None, out: out.view_mut() };
        selected(isa, self.matrix.view(), self.lower, &mut [product]);
        out
    }

    fn factor(&self, at: usize, i: usize) -> T {
        self.factors[at * self.start.shape().0 + i]
    }
}

fn sums_are_chains<T: Scalar>() {
    let tally = Tally::default();
    for problem in Problem::<T>::all() {
        let (m, n) = problem.start.shape();
        let (exact, start) = (problem.matrix.exact(), problem.start.exact());
        for from_zero in [false, true] {
            let first = |i, j| if from_zero { T::ZERO } else { problem.start.get(i, j) };
            let chain = |i, j| {
                (0..problem.rows.len()).fold(first(i, j), |sum, at| {
                    problem.factor(at, i).mul_add(problem.matrix.get(problem.rows[at] as usize, j), sum)
                })
            };
            for isa in Isa::available() {
                let got = problem.run(isa, from_zero);
                got.check_canaries(&isa.name()).unwrap();
                for i in 0..m {
                    for j in 0..n {
                        assert!(equal(got.get(i, j), chain(i, j)), "{isa} ({i}, {j}) of {m} x {n}");
                        let pairs = (0..problem.rows.len()).map(|at| {
                            (T::PRECISION.exact(problem.factor(at, i).to_f64()), exact[(problem.rows[at] as usize, j)])
                        });
                        let bound = if from_zero { dot(T::PRECISION, pairs) } else { affine(start[(i, j)], pairs) };
                        tally.check_one(bound, got.get(i, j).to_f64(), &isa.name()).unwrap();
                    }
                }
            }
        }
    }
    tally.conclude::<T>("selected");
}

fn rows_of_zeros_may_be_left_out<T: Scalar>() {
    for mut problem in Problem::<T>::all() {
        let without = problem.run(Isa::best(), false);
        let (m, n) = problem.start.shape();
        let mut factors = vec![T::ZERO; m * problem.matrix.shape().0];
        for (at, &p) in problem.rows.iter().enumerate() {
            factors[p as usize * m..][..m].copy_from_slice(&problem.factors[at * m..][..m]);
        }
        (problem.rows, problem.factors) = ((0..problem.matrix.shape().0 as u32).collect(), factors);
        let with = problem.run(Isa::best(), false);
        assert!((0..m).all(|i| (0..n).all(|j| equal(with.get(i, j), without.get(i, j)))));
    }
}

/// Rows and columns in any order, some of them twice; matrices of any strides.
fn crossings<T: Scalar>() {
    let tally = Tally::default();
    for (number, problem) in Problem::<T>::all().enumerate() {
        let (height, width) = problem.matrix.shape();
        let mut random = SplitMix64::new(number as u64);
        let mut list = |end: usize| (0..random.below(30)).map(|_| random.below(end as u64) as u32).collect::<Vec<_>>();
        let (rows, columns) = (list(height), list(width));
        let outputs = OUTPUTS * (1 + number % 3);
        let z = generate(Family::Uniform, rows.len() * outputs, number as u64, Precision::F64);
        let (matrix, exact) = (problem.matrix.view(), |x| Precision::F64.exact(x));
        let turned = Grid::from_fn(width, height, Layout::default(), |j, p| problem.matrix.get(p, j));
        for isa in Isa::available() {
            for matrix in [matrix, turned.view().transpose()] {
                let mut out = vec![f64::NAN; columns.len() * outputs];
                crossing(isa, matrix, &rows, &columns, &z, outputs, &mut out);
                for (at, &got) in out.iter().enumerate() {
                    let (j, o) = (columns[at / outputs] as usize, at % outputs);
                    let factors = || rows.iter().enumerate().map(|(i, &p)| (p as usize, z[i * outputs + o]));
                    let chain = factors().fold(0.0, |sum, (p, z)| matrix[(p, j)].to_f64().mul_add(z, sum));
                    assert!(same(got, chain), "{isa} {j} {o}");
                    let bound = dot(Precision::F64, factors().map(|(p, z)| (exact(matrix[(p, j)].to_f64()), exact(z))));
                    tally.check_one(bound, got, &isa.name()).unwrap();
                }
            }
        }
    }
    tally.conclude::<f64>("crossing");
}

fn inner_products<T: Scalar>() {
    let tally = Tally::default();
    for problem in Problem::<T>::all() {
        let (m, n) = problem.start.shape();
        let exact = problem.start.exact();
        let products = |isa| {
            let mut out = Grid::<f64>::blank(m, m, Layout::default());
            inner(isa, problem.start.view(), out.view_mut());
            out
        };
        let wanted = products(Isa::best());
        for i in 0..m {
            for j in 0..m {
                let bound = dot(T::PRECISION, (0..n).map(|p| (exact[(i, p)], exact[(j, p)])));
                tally.check_one(bound, wanted.get(i, j), &(m, n)).unwrap();
            }
        }
        for isa in Isa::available() {
            products(isa).check_bits(&wanted, &isa.name()).unwrap();
        }
    }
    tally.conclude::<T>("inner");
}

/// Every product is `-0`; lanes without a column, of which vectors of some instruction sets have none, add 0.
fn inner_products_that_underflow<T: Scalar>() {
    let tiny = T::from_f64(if T::NAME == "f32" { f64::from(f32::MIN_POSITIVE) } else { f64::MIN_POSITIVE });
    for n in (1..=20).chain([32, 33, 72, 73]) {
        let x = Grid::from_fn(2, n, Layout::default(), |i, _| if i == 0 { tiny } else { -tiny });
        let line = if T::NAME == "f32" { 16 } else { 8 };
        let crossed = if n % line == 0 { -0.0 } else { 0.0 };
        for isa in Isa::available() {
            let mut out = Grid::<f64>::blank(2, 2, Layout::default());
            inner(isa, x.view(), out.view_mut());
            for (at, wanted) in [((0, 0), 0.0), ((0, 1), crossed), ((1, 0), crossed), ((1, 1), 0.0)] {
                assert!(same(out.get(at.0, at.1), wanted), "{isa} {n} {at:?}: {:?}", out.get(at.0, at.1));
            }
        }
    }
}

fn misfits<T: Scalar>() {
    let matrix = Grid::<T>::random(4, 3, Family::Uniform, 1);
    let factors = vec![T::ONE; 4];
    let panics = |part: &str, rows: &[u32], wanted: Option<&[u32]>, (m, n): (usize, usize)| {
        let mut out = Grid::<T>::blank(m, n, Layout::default());
        assert_panics(part, || {
            let product = Selected { rows, factors: &factors, start: None, wanted, out: out.view_mut() };
            selected(Isa::best(), matrix.view(), false, &mut [product]);
        });
    };
    panics("the rows ascend", &[1, 0], None, (2, 3));
    panics("the rows ascend", &[1, 1], None, (2, 3));
    panics("the rows ascend", &[1, 4], None, (2, 3));
    panics("a factor for each", &[0, 1], None, (1, 3));
    panics("no more columns", &[0, 1], None, (2, 4));
    panics("the columns ascend", &[0, 1], Some(&[3]), (2, 3));
    let crosses = |part: &str, rows: &[u32], columns: &[u32], outputs: usize, length: usize| {
        let z = vec![1.0; rows.len() * OUTPUTS];
        assert_panics(part, || crossing(Isa::best(), matrix.view(), rows, columns, &z, outputs, &mut vec![0.0; length]));
    };
    crosses("the rows are in", &[4], &[0], OUTPUTS, OUTPUTS);
    crosses("the columns are in", &[0], &[3], OUTPUTS, OUTPUTS);
    crosses("a number for each row", &[0], &[0], 2 * OUTPUTS, 2 * OUTPUTS);
    crosses("a number for each column", &[0], &[0], OUTPUTS, 1);
    crosses("multiples", &[0], &[0], 1, 1);
    let mut out = Grid::<f64>::blank(3, 4, Layout::default());
    assert_panics("each pair", || inner(Isa::best(), matrix.view(), out.view_mut()));
}
