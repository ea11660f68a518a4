//! Products with `AᵀA` and scans: against the reference with its bounds, and the same bits on every instruction set, with any threads,
//! strides and company.

mod common;

use common::*;
use dualprop_kernels::gram::{abs_gram, gram, image, wide_gram};
use dualprop_kernels::isa::Isa;
use dualprop_kernels::product::Scratch;
use dualprop_kernels::scan::{NotFinite, Scan, scan};
use dualprop_reference::bound::{Bounded, Precision};
use dualprop_reference::elementary::Wide;
use dualprop_reference::generate::{Family, generate};
use dualprop_reference::gram as reference;
use dualprop_reference::product::Matrix;
use faer::{MatMut, MatRef, Par};
use rayon::ThreadPoolBuilder;

tests_of_both_types!(
    sweeps,
    rows_begin_anywhere_in_a_line,
    shared_sweeps,
    small_integers_are_exact,
    poison_propagates,
    bounds_notice_a_missing_row,
    empty,
    misfits,
    scans,
    sums_follow_memory,
    scans_of_extreme_matrices,
    scans_find_the_first_odd_element,
    brackets,
);

/// Tails of lines, groups and tiles.
const SHAPES: [(usize, usize); 9] = [(1, 1), (3, 17), (8, 16), (4, 33), (9, 64), (12, 129), (21, 100), (65, 7), (30, 259)];

/// Layouts whose rows are contiguous.
fn layouts() -> impl Iterator<Item = Layout> {
    Layout::all().filter(|layout| !layout.by_columns && !layout.cols_reversed)
}

/// All results of the sweeps: `y`, `squares`, `|A|ᵀ|A||x₀|`, `A x₀`.
type Results<T> = (Grid<T>, Vec<f64>, Vec<f64>, Vec<f64>);

fn sweep<T: Scalar>(isa: Isa, par: Par, a: &Grid<T>, x: &Grid<T>, scratch: &mut (Scratch<T>, Scratch<f64>)) -> Results<T> {
    let ((m, n), (p, _)) = (a.shape(), x.shape());
    let (mut y, mut squares) = (Grid::blank(p, n, Layout { padding: 5, ..Layout::default() }), vec![f64::NAN; p]);
    gram(isa, par, a.view(), x.view(), y.view_mut(), &mut squares, &mut scratch.0);
    y.check_canaries(&(isa.name(), m, n, p)).unwrap();
    let wide: Vec<f64> = (0..n).map(|j| x.get(0, j).to_f64()).collect();
    let sizes: Vec<f64> = wide.iter().map(|x| x.abs()).collect();
    let (mut abs, mut product) = (vec![f64::NAN; n], vec![f64::NAN; m]);
    abs_gram(isa, par, a.view(), &sizes, &mut abs, &mut scratch.1);
    image(isa, par, a.view(), &wide, &mut product);
    (y, squares, abs, product)
}

fn check_same<T: Scalar>(got: &Results<T>, wanted: &Results<T>, what: &impl core::fmt::Debug) {
    got.0.check_bits(&wanted.0, what).unwrap();
    for (got, wanted) in [(&got.1, &wanted.1), (&got.2, &wanted.2), (&got.3, &wanted.3)] {
        assert!(got.iter().zip(wanted).all(|(&got, &wanted)| same(got, wanted)), "{what:?}");
    }
}

fn sweeps<T: Scalar>() {
    let [of_y, of_squares, of_abs, of_image] = core::array::from_fn(|_| Tally::default());
    let mut scratch = (Scratch::new(), Scratch::new());
    for (number, (m, n)) in SHAPES.into_iter().enumerate() {
        for family in Family::ALL {
            let p = [1, 4, 8, 3, 13][number % 5];
            let (a, x) = (Grid::<T>::random(m, n, family, number as u64), Grid::random(p, n, Family::Uniform, 9));
            let first = sweep(Isa::best(), Par::Seq, &a, &x, &mut scratch);
            let exactly = a.exact();
            for i in 0..p {
                let xs: Vec<Bounded> = (0..n).map(|j| exact(x.get(i, j))).collect();
                let (y, square) = reference::gram(&exactly, &xs);
                for j in 0..n {
                    of_y.check_one(y[j], first.0.get(i, j).to_f64(), &(m, n, family, i, j)).unwrap();
                }
                of_squares.check_one(square, first.1[i], &(m, n, family, i)).unwrap();
            }
            let wide = |x: T| Precision::F64.exact(x.to_f64());
            let widely = Matrix::from_fn(m, n, |i, j| wide(a.get(i, j)));
            let xs: Vec<Bounded> = (0..n).map(|j| wide(x.get(0, j))).collect();
            for (bound, &got) in reference::image(&widely, &xs).into_iter().zip(&first.3) {
                of_image.check_one(bound, got, &(m, n, family)).unwrap();
            }
            if !(family == Family::Subnormal && T::NAME == "f64") {
                let sizes: Vec<f64> = xs.iter().map(|x| x.value.abs()).collect();
                for (bound, &got) in reference::abs_gram(&widely, &sizes).into_iter().zip(&first.2) {
                    of_abs.check_one(bound, got, &(m, n, family)).unwrap();
                }
            }
            for isa in Isa::available() {
                for layout in layouts() {
                    let got = sweep(isa, Par::Seq, &a.relaid(layout), &x.relaid(layout), &mut scratch);
                    check_same(&got, &first, &(isa.name(), layout, m, n, family));
                }
                // A vector alone has the bits that it has in company.
                for i in 0..p {
                    let alone = Grid::from_fn(1, n, Layout::default(), |_, j| x.get(i, j));
                    let (y, squares, ..) = sweep(isa, Par::Seq, &a, &alone, &mut scratch);
                    assert!(same(squares[0], first.1[i]));
                    assert!((0..n).all(|j| same(y.get(0, j), first.0.get(i, j))), "vector {i} of {p}: {m} × {n} on {isa}");
                }
            }
        }
    }
    of_y.conclude::<T>("gram");
    of_squares.conclude::<T>("squares");
    of_abs.conclude::<T>("abs_gram");
    of_image.conclude::<T>("image");
}

/// Large enough for several parts (for f32: 4, 8, 16 and, in the third, the most that rows allow), which are of uneven height.
fn shared_sweeps<T: Scalar>() {
    let pools = [1, 2, 3, 4, 7, 8, 16].map(|threads| ThreadPoolBuilder::new().num_threads(threads).build().expect("threads"));
    for (m, n, p) in [(901, 300, 1), (1001, 784, 5), (20, 54_000, 1)] {
        let (a, x) = (Grid::<T>::random(m, n, Family::Uniform, 1), Grid::random(p, n, Family::Uniform, 2));
        let first = sweep(Isa::best(), Par::Seq, &a, &x, &mut (Scratch::new(), Scratch::new()));
        let exactly = a.exact();
        let xs: Vec<Bounded> = (0..n).map(|j| exact(x.get(p - 1, j))).collect();
        let (y, square) = reference::gram(&exactly, &xs);
        assert!(square.admits(first.1[p - 1]));
        let got: Vec<f64> = (0..n).map(|j| first.0.get(p - 1, j).to_f64()).collect();
        assert!(y.iter().zip(&got).all(|(bound, &got)| bound.is_informative() && bound.admits(got)), "{m} × {n}");
        for isa in Isa::available() {
            let mut scratch = (Scratch::new(), Scratch::new());
            for pool in &pools {
                let par = Par::rayon(pool.current_num_threads());
                let got = pool.install(|| sweep(isa, par, &a, &x, &mut scratch));
                check_same(&got, &first, &(isa.name(), par, m, n));
            }
        }
    }
}

/// All tails, against sums of integers; no sum exceeds what `T` holds exactly.
fn small_integers_are_exact<T: Scalar>() {
    let (most_rows, most_cols) = (17, 35);
    let (a, x) = (Grid::<T>::random(most_rows, most_cols, Family::Integer, 1), Grid::random(8, most_cols, Family::Integer, 2));
    let integer = |x: T| x.to_f64() as i64;
    let mut nonzero = 0;
    for m in 0..=most_rows {
        for n in 0..=most_cols {
            for p in [1, 4, 8] {
                let part = |grid: &Grid<T>, rows| Grid::from_fn(rows, n, Layout::default(), |i, j| grid.get(i, j));
                let (a, x) = (part(&a, m), part(&x, p));
                let product = |i: usize, r| (0..n).map(|j| integer(a.get(r, j)) * integer(x.get(i, j))).sum::<i64>();
                let products: Vec<Vec<i64>> = (0..p).map(|i| (0..m).map(|r| product(i, r)).collect()).collect();
                for isa in Isa::available() {
                    let (y, squares, ..) = sweep(isa, Par::Seq, &a, &x, &mut (Scratch::new(), Scratch::new()));
                    for i in 0..p {
                        assert_eq!(squares[i], products[i].iter().map(|t| t * t).sum::<i64>() as f64, "{m} × {n} on {isa}");
                        for j in 0..n {
                            let wanted: i64 = (0..m).map(|r| integer(a.get(r, j)) * products[i][r]).sum();
                            assert_eq!(y.get(i, j).to_f64(), wanted as f64, "({i}, {j}) of {m} × {n} on {isa}");
                            nonzero += usize::from(wanted != 0);
                        }
                    }
                }
            }
        }
    }
    assert!(nonzero > 1000);
}

/// NaN and infinity in the matrix spoil every `y_j` (`∞·0` where the column is zero), and in one vector that vector alone.
fn poison_propagates<T: Scalar>() {
    for (m, n) in [(1, 1), (9, 35), (13, 64)] {
        for poison in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for place in 0..m * n {
                let a =
                    Grid::from_fn(m, n, Layout::default(), |i, j| if i * n + j == place { T::from_f64(poison) } else { T::ONE });
                let x = Grid::from_fn(1, n, Layout::default(), |_, _| T::ONE);
                let wanted = |j| if poison.is_nan() || j != place % n { T::from_f64(poison) } else { T::from_f64(f64::INFINITY) };
                for isa in Isa::available() {
                    let (y, squares, abs, product) = sweep(isa, Par::Seq, &a, &x, &mut (Scratch::new(), Scratch::new()));
                    assert!((0..n).all(|j| same(y.get(0, j), wanted(j))), "{poison} at {place} of {m} × {n} on {isa}");
                    assert!(same(squares[0], poison.abs()) && abs.iter().all(|&x| same(x, poison.abs())));
                    assert!((0..m).all(|i| same(product[i], if i == place / n { poison } else { n as f64 })));
                }
            }
        }
        let (a, p) = (Grid::from_fn(m, n, Layout::default(), |_, _| T::ONE), 8);
        let x = Grid::from_fn(p, n, Layout::default(), |i, j| T::from_f64(if (i, j) == (3, n - 1) { f64::NAN } else { 1.0 }));
        for isa in Isa::available() {
            let (y, ..) = sweep(isa, Par::Seq, &a, &x, &mut (Scratch::new(), Scratch::new()));
            assert!((0..p).all(|i| (0..n).all(|j| y.get(i, j).to_f64().is_nan() == (i == 3))), "{m} × {n} on {isa}");
        }
    }
}

/// Elements of size 1 to 2: without a row every `y_j` and `‖Ax‖²` leaves its bound.
fn bounds_notice_a_missing_row<T: Scalar>() {
    let (m, n) = (40, 70);
    let a = Grid::<T>::random(m, n, Family::Uniform, 4).map(|x| x.abs() + T::ONE);
    let x = Grid::from_fn(1, n, Layout::default(), |_, _| T::ONE);
    let xs: Vec<Bounded> = (0..n).map(|j| exact(x.get(0, j))).collect();
    let (bounds, square) = reference::gram(&a.exact(), &xs);
    for missing in 0..m {
        let mut a = a.clone();
        (0..n).for_each(|j| a.set(missing, j, T::ZERO));
        for isa in Isa::available() {
            let (y, squares, ..) = sweep(isa, Par::Seq, &a, &x, &mut (Scratch::new(), Scratch::new()));
            assert!(
                !square.admits(squares[0]) && (0..n).all(|j| !bounds[j].admits(y.get(0, j).to_f64())),
                "without row {missing}"
            );
        }
    }
}

fn empty<T: Scalar>() {
    for isa in Isa::available() {
        for (m, n, p) in [(0, 0, 1), (0, 5, 8), (5, 0, 4), (3, 4, 0)] {
            let a = Grid::<T>::random(m, n, Family::Uniform, 1);
            let mut y = Grid::blank(p, n, Layout::default());
            let (x, mut squares) = (Grid::random(p, n, Family::Uniform, 2), vec![f64::NAN; p]);
            gram(isa, Par::rayon(2), a.view(), x.view(), y.view_mut(), &mut squares, &mut Scratch::new());
            assert!(squares.iter().all(|&square| square == 0.0) && (0..p).all(|i| (0..n).all(|j| y.get(i, j) == T::ZERO)));
            let (mut abs, mut product) = (vec![f64::NAN; n], vec![f64::NAN; m]);
            abs_gram(isa, Par::Seq, a.view(), &vec![1.0; n], &mut abs, &mut Scratch::new());
            image(isa, Par::rayon(2), a.view(), &vec![1.0; n], &mut product);
            assert!(m * n > 0 || abs.iter().chain(&product).all(|&x| x == 0.0));
            if m * n == 0 {
                let sizes = scan(isa, a.view(), &mut Scratch::new()).expect("nothing that is not finite");
                assert_eq!(
                    (sizes.largest, sizes.square, sizes.lower(), sizes.frobenius(), sizes.holder()),
                    (0.0, 0.0, 0.0, 0.0, 0.0)
                );
            }
        }
    }
}

fn misfits<T: Scalar>() {
    let (isa, by_columns) = (Isa::best(), Layout { by_columns: true, ..Layout::default() });
    let a = Grid::<T>::random(3, 4, Family::Uniform, 1);
    let (x, mut squares) = (Grid::<T>::random(2, 4, Family::Uniform, 1), [0.0; 2]);
    let run = |a: &Grid<T>, x: &Grid<T>, (p, n): (usize, usize), squares: &mut [f64]| {
        gram(isa, Par::Seq, a.view(), x.view(), Grid::blank(p, n, Layout::default()).view_mut(), squares, &mut Scratch::new());
    };
    assert_panics("contiguous", || run(&a.relaid(by_columns), &x, (2, 4), &mut squares));
    assert_panics("contiguous", || run(&a, &x.relaid(by_columns), (2, 4), &mut [0.0; 2]));
    assert_panics("a row for each vector", || run(&a, &x, (1, 4), &mut [0.0; 2]));
    assert_panics("a row for each vector", || run(&a.transposed(), &x, (2, 4), &mut [0.0; 2]));
    assert_panics("a square for each vector", || run(&a, &x, (2, 4), &mut [0.0; 3]));
    assert_panics("length of a row", || abs_gram(isa, Par::Seq, a.view(), &[1.0; 4], &mut [0.0; 3], &mut Scratch::new()));
    assert_panics("length of a row", || image(isa, Par::Seq, a.view(), &[1.0; 4], &mut [0.0; 4]));
    assert_panics("contiguous", || image(isa, Par::Seq, a.relaid(by_columns).view(), &[1.0; 4], &mut [0.0; 3]));
}

/// The scan of `a` in every layout on every instruction set; alike to the bit but for the two orders of the sums.
fn scanned<T: Scalar>(a: &Grid<T>) -> Vec<Scan> {
    let mut scratch = Scratch::new();
    let mut different: Vec<Scan> = Vec::new();
    for isa in Isa::available() {
        for layout in Layout::all() {
            let got = scan(isa, a.relaid(layout).view(), &mut scratch).expect("finite elements");
            if !different.contains(&got) {
                different.push(got);
            }
        }
        let plain = scan(isa, a.view(), &mut scratch).expect("finite elements");
        assert_eq!(plain, scan(Isa::best(), a.view(), &mut scratch).expect("finite elements"), "{isa}");
    }
    different
}

fn scans<T: Scalar>() {
    let tally = Tally::default();
    for (number, (m, n)) in SHAPES.into_iter().chain([(100, 301)]).enumerate() {
        for family in Family::ALL {
            let a = Grid::<T>::random(m, n, family, number as u64);
            let relative = Precision::F64.gamma(m + n);
            for got in scanned(&a) {
                let scale = Wide::from(1.0).scale(-got.exponent).hi;
                let wanted = reference::sums(&Matrix::from_fn(m, n, |i, j| Precision::F64.exact(a.get(i, j).to_f64())), scale);
                let top = |numbers: &[f64]| numbers.iter().fold(0.0, |top, &x| f64::max(top, x));
                let check = |got: f64, wanted: f64| {
                    let bound = Bounded::new(wanted, relative * wanted, Precision::F64);
                    tally.check_one(bound, got, &(m, n, family)).unwrap();
                };
                check(got.row_sum, top(&wanted.rows));
                check(got.col_sum, top(&wanted.cols));
                check(got.row_square, top(&wanted.row_squares));
                check(got.col_square, top(&wanted.col_squares));
                check(got.square, wanted.square);
                let sizes = (0..m * n).map(|k| a.get(k / n, k % n).to_f64().abs());
                assert_eq!((got.largest, got.shape), (sizes.fold(0.0, f64::max), (m, n)));
                assert!(got.lower() <= got.frobenius().min(got.holder()) && got.largest <= got.lower());
            }
        }
    }
    tally.conclude::<T>("scan");
}

/// Along rows the sums of columns are taken one row after the other; a matrix by columns has the bits of the transposed one by rows; and
/// neither direction nor distance of the lines has a part in them.
fn sums_follow_memory<T: Scalar>() {
    let mut scratch = Scratch::new();
    let mut orders_differ = false;
    for (m, n) in SHAPES {
        let a = Grid::<T>::random(m, n, Family::Uniform, 7);
        let down = |j| (0..m).map(move |i| (i, j));
        let size = |(i, j)| T::to_f64(a.get(i, j)).abs();
        let sum = |j| down(j).fold(0.0, |sum, at| sum + size(at));
        let square = |j| down(j).fold(0.0, |sum, at| size(at).mul_add(size(at), sum));
        let [col_sum, col_square] = [(0..n).map(sum).fold(0.0, f64::max), (0..n).map(square).fold(0.0, f64::max)];
        for isa in Isa::available() {
            let mut scan = |a: &Grid<T>| scan(isa, a.view(), &mut scratch).expect("finite elements");
            let by_rows = scan(&a);
            assert_eq!((by_rows.col_sum, by_rows.col_square), (col_sum, col_square), "{m} × {n} on {isa}");
            let turned = scan(&a.transposed());
            let by_columns = Scan {
                shape: (m, n),
                row_sum: turned.col_sum,
                col_sum: turned.row_sum,
                row_square: turned.col_square,
                col_square: turned.row_square,
                ..turned
            };
            orders_differ |= by_rows != by_columns;
            for layout in Layout::all() {
                let wanted = if layout.by_columns { by_columns } else { by_rows };
                assert_eq!(scan(&a.relaid(layout)), wanted, "{m} × {n} on {isa}, {layout:?}");
            }
        }
    }
    assert!(orders_differ, "the orders have the same bits: nothing was tested");
}

/// Elements `±2^exponent` for exponents to both ends of the range: bounds are those of `±1`, scaled. Among subnormal numbers, rounded
/// to nearest, the norm of a row would be too large for a lower bound and that of all elements too small for an upper one.
fn scans_of_extreme_matrices<T: Scalar>() {
    let (smallest, largest) = if T::NAME == "f32" { (-149, 127) } else { (-1074, 1023) };
    let (m, n) = (6, 45);
    let signs = Grid::<T>::random(m, n, Family::Uniform, 3).map(|x| if x < T::ZERO { -T::ONE } else { T::ONE });
    // The promised (m + n + 8)ε and the four roundings of a bound.
    let slack = (m + n + 12) as f64 * f64::EPSILON;
    let (of_all, of_rows) = (((m * n) as f64).sqrt(), (n as f64).sqrt());
    for exponent in [smallest, smallest + 1, -400, -401, 0, 400, 401, 511, largest - 8, largest] {
        let exponent = exponent.clamp(smallest, largest);
        let a = signs.map(|x| T::from_f64(Wide::from(x.to_f64()).scale(exponent).hi));
        let at = |x: f64| Wide::from(x).scale(exponent).hi;
        // Not rounded, unless it overflows.
        let of = |x: f64| Wide::from(x).scale(-exponent).hi;
        for got in scanned(&a) {
            assert_eq!(got.largest, at(1.0));
            let tight = |got: f64, norm: f64| {
                // One ulp more among subnormal numbers; what overflows is infinite.
                let most = at(norm * (1.0 + slack)) + f64::from_bits(1);
                let is_above = got == f64::INFINITY || of(got) >= norm;
                assert!(is_above && got <= most, "{got:e}, not {:e}, at 2^{exponent}", at(norm));
            };
            tight(got.frobenius(), of_all);
            tight(got.holder(), of_all);
            let least = at(of_rows).min(f64::MAX) * (1.0 - slack) - f64::from_bits(1);
            assert!(of(got.lower()) <= of_rows && got.lower() >= least, "{:e} at 2^{exponent}", got.lower());
        }
    }
}

/// The first in rows, whatever the layout.
fn scans_find_the_first_odd_element<T: Scalar>() {
    let (m, n) = (7, 21);
    for place in 0..m * n {
        for odd_one in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            // A second one in a row below.
            let second = (place + n + 3).min(m * n - 1);
            let mut a = Grid::<T>::random(m, n, Family::Uniform, 5);
            a.set(second / n, second % n, T::from_f64(f64::NAN));
            a.set(place / n, place % n, T::from_f64(odd_one));
            let wanted = Err(NotFinite { row: place / n, col: place % n });
            for isa in Isa::available() {
                for layout in Layout::all() {
                    assert_eq!(scan(isa, a.relaid(layout).view(), &mut Scratch::new()), wanted, "{isa}, {layout:?}");
                }
            }
        }
    }
}

/// The bits are the same wherever the rows begin, and what lies between them has no part in it.
fn rows_begin_anywhere_in_a_line<T: Scalar>() {
    for (m, n) in [(12, 3), (9, 16), (20, 33), (16, 64), (21, 100)] {
        let (a, x) = (Grid::<T>::random(m, n, Family::Uniform, 3), Grid::<T>::random(1, n, Family::Uniform, 4));
        let wide: Vec<f64> = (0..n).map(|j| x.get(0, j).to_f64()).collect();
        let widely = Matrix::from_fn(m, n, |i, j| Precision::F64.exact(a.get(i, j).to_f64()));
        let exactly: Vec<Bounded> = wide.iter().map(|&x| Precision::F64.exact(x)).collect();
        let (bounds, _) = reference::gram(&widely, &exactly);
        let stride = n.next_multiple_of(16) + 16;
        let mut first = None;
        for isa in Isa::available() {
            for offset in 0..16 {
                let mut buffer = vec![T::from_f64(f64::NAN); offset + m * stride];
                for i in 0..m {
                    (0..n).for_each(|j| buffer[offset + i * stride + j] = a.get(i, j));
                }
                let view = MatRef::from_column_major_slice_with_stride(&buffer[offset..], n, m, stride).transpose();
                let (mut y, mut in_f64, mut square) = (vec![T::ZERO; n], vec![0.0; n], [0.0]);
                let out = MatMut::from_row_major_slice_mut(&mut y, 1, n);
                gram(isa, Par::Seq, view, x.view(), out, &mut square, &mut Scratch::new());
                wide_gram(isa, Par::Seq, view, &wide, &mut in_f64, &mut Scratch::new());
                for (bound, &got) in bounds.iter().zip(&in_f64) {
                    assert!(bound.admits(got), "{m} × {n} from {offset} on {isa}");
                }
                let bits: Vec<u64> = y.iter().map(|y| y.to_f64().to_bits()).chain(in_f64.iter().map(|y| y.to_bits())).collect();
                assert_eq!(*first.get_or_insert((bits.clone(), square)), (bits, square), "{m} × {n} from {offset} on {isa}");
            }
        }
    }
}

/// Matrices whose norm is known: `lower` and the lesser of the upper bounds enclose it.
fn brackets<T: Scalar>() {
    for (m, n) in SHAPES {
        // Rank one, with integers: the norm is ‖u‖‖v‖, in f64 to two roundings; Frobenius is tight.
        let numbers = |len, seed| generate(Family::Integer, len, seed, T::PRECISION);
        let (u, v) = (numbers(m, 1), numbers(n, 2));
        let square = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
        let norm = (square(&u) * square(&v)).sqrt();
        for got in scanned(&Grid::from_fn(m, n, Layout::default(), |i, j| T::from_f64(u[i] * v[j]))) {
            assert!(got.lower() <= norm * (1.0 + f64::EPSILON) && got.holder() >= norm * (1.0 - f64::EPSILON));
            let slack = (m + n + 12) as f64 * f64::EPSILON;
            assert!(got.frobenius() >= norm * (1.0 - f64::EPSILON) && got.frobenius() <= norm * (1.0 + slack));
        }
        // Diagonal: the norm is the largest element, and lower and Hölder meet there.
        let diagonal = |i: usize, j: usize| if i == j { T::from_f64(1.0 + i as f64) } else { T::ZERO };
        for got in scanned(&Grid::from_fn(m, n, Layout::default(), diagonal)) {
            let norm = m.min(n) as f64;
            assert_eq!(got.lower(), norm);
            assert!(got.holder() >= norm && got.holder() <= norm * (1.0 + (m + n + 12) as f64 * f64::EPSILON));
        }
    }
}
