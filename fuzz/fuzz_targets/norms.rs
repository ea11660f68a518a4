//! Any matrix: products with `AᵀA` and a scan on each instruction set to the bit and within the bounds of the reference; and every enclosure of
//! its norm around the largest singular value of a dense decomposition.
#![no_main]

mod case;
#[path = "../../kernels/tests/common/mod.rs"]
mod common;

use arbitrary::{Result, Unstructured};
use case::*;
use common::*;
use dualprop::lipschitz::{Dense, Enclosed, Enclosure, Search, Seed, certify, collatz, enclose, gram_iteration};
use dualprop::{Error, Runtime};
use dualprop_kernels::gram::{abs_gram, gram, image, wide_gram};
use dualprop_kernels::isa::Isa;
use dualprop_kernels::product::Scratch;
use dualprop_kernels::scan::scan;
use dualprop_reference::bound::{Bounded, Precision, gamma};
use dualprop_reference::gram as reference;
use dualprop_reference::product::Matrix;
use faer::{Mat, MatRef, Par};
use libfuzzer_sys::fuzz_target;

/// Where the norm of a matrix lies, over that power of two which brings the largest element near 1.
struct Norm {
    exponent: i32,
    low: f64,
    high: f64,
}

/// `x·2^exponent`.
fn scaled(x: f64, exponent: i32) -> f64 {
    x * 2f64.powi(exponent / 2) * 2f64.powi(exponent - exponent / 2)
}

impl Norm {
    /// From a decomposition `USVᵀ` that need not be exact: `‖A‖ ≥ |uᵀAv|/(‖u‖‖v‖)` for any two vectors, here the first columns, and
    /// `‖A‖ ≤ s₁‖U‖‖V‖ + ‖A − USVᵀ‖_F` with `‖U‖² ≤ 1 + ‖UᵀU − I‖_F`. No product here has a chain of more than `k = m + n + 8` roundings with those
    /// after it, which change an element by at most `γ_k` times the sum of its terms' sizes, whose norms are at most the products of the factors'.
    fn new<T: Scalar>(a: &Grid<T>) -> Self {
        let (m, n) = a.shape();
        let largest = elements(a).map(|x| x.to_f64().abs()).fold(0.0, f64::max);
        if largest == 0.0 {
            return Self { exponent: 0, low: 0.0, high: 0.0 };
        }
        let exponent = largest.log2().floor() as i32;
        let matrix = Mat::from_fn(m, n, |i, j| scaled(a.get(i, j).to_f64(), -exponent));
        let svd = matrix.thin_svd().expect("a finite matrix");
        let (u, s, v) = (svd.U(), svd.S(), svd.V());
        let gamma = gamma(m + n + 8, f64::EPSILON / 2.0);
        let square = |q: MatRef<'_, f64>| {
            let apart = q.transpose() * q - Mat::<f64>::identity(q.ncols(), q.ncols());
            1.0 + apart.norm_l2() + gamma * (q.squared_norm_l2() + (q.ncols() as f64).sqrt())
        };
        let (first, second) = (u.col(0), v.col(0));
        let (frobenius, largest) = (matrix.norm_l2(), s[0]);
        let low = (first.transpose() * &matrix * second).abs() / (first.norm_l2() * second.norm_l2()) - gamma * frobenius;
        let rest = (&matrix - u * s * v.transpose()).norm_l2() + gamma * (frobenius + largest * u.norm_l2() * v.norm_l2());
        let high = largest * (square(u) * square(v)).sqrt() + rest;
        // What is lost to underflow, and the roundings of these two sums themselves.
        let lost = (m * n) as f64 * f64::MIN_POSITIVE + 4.0 * f64::EPSILON * high;
        Self { exponent, low: low - lost, high: high + lost }
    }

    fn check(&self, what: &str, found: &Enclosure, case: &impl core::fmt::Debug) {
        let [lower, upper] = [found.lower, found.upper].map(|x| scaled(x, -self.exponent));
        let Self { low, high, .. } = *self;
        assert!(
            lower <= high && low <= upper && found.lower <= found.upper,
            "{what}: {found:?}, for a norm from {low:e} to {high:e}, over 2^{}: {case:?}",
            self.exponent
        );
    }
}

fn enclosures<T: Scalar>(u: &mut Unstructured<'_>, a: &Grid<T>) -> Result<()> {
    let layout = any_layout(u)?;
    let search = Search {
        gap: *u.choose(&[0.5, 1e-3, 1e-9])?,
        max_steps: u.int_in_range(1..=40)?,
        starts: u.int_in_range(1..=3)?,
        seed: Seed::Fixed(u.arbitrary::<u8>()?.into()),
        ..Search::new()
    };
    let (sweeps, squarings) = (u.int_in_range(1..=20u32)?, u.int_in_range(0..=8u32)?);
    let factor = 1.0 + f64::from(u.arbitrary::<i8>()?) / 256.0;
    let (relaid, is_finite) = (a.relaid(layout), elements(a).all(|x| x.is_finite()));
    let operator = Dense::new(relaid.view());
    let norm = is_finite.then(|| Norm::new(a));
    let mut first: Option<Enclosed> = None;
    for isa in Isa::available() {
        let (runtime, case) = (Runtime::new(isa, Par::Seq), (isa, a.shape(), layout, search));
        let found = enclose(&operator, &search, &runtime);
        let Some(norm) = &norm else {
            assert!(matches!(found, Err(Error::NotFinite { .. })), "{found:?}: {case:?}");
            continue;
        };
        let found = found.unwrap_or_else(|error| panic!("{error}: {case:?}"));
        norm.check("search", &found.enclosure, &case);
        norm.check("Collatz", &collatz(&operator, sweeps).expect("a finite matrix"), &case);
        norm.check("Gram iteration", &gram_iteration(&operator, squarings, &runtime).expect("a finite matrix"), &case);
        let bound = found.enclosure.upper * factor;
        if bound > 0.0
            && bound.is_finite()
            && let Some(certificate) = certify(&operator, bound, &runtime).expect("a finite matrix and a bound")
        {
            norm.check("certificate", &certificate, &case);
        }
        assert_eq!(first.get_or_insert_with(|| found.clone()), &found, "{case:?}");
    }
    Ok(())
}

fn run<T: Scalar>(mut u: Unstructured<'_>) -> Result<()> {
    let (m, n, p) = (size(&mut u, 90)?, size(&mut u, 150)?, u.int_in_range(1..=9usize)?);
    let (a, x) = (grid::<T>(&mut u, m, n)?, grid::<T>(&mut u, p, n)?);
    if m * n <= 40 * 40 && u.arbitrary()? {
        return enclosures(&mut u, &a);
    }
    let (of_a, of_x) = (any_layout_by_rows(&mut u)?, any_layout_by_rows(&mut u)?);
    let mut first = None;
    let mut first_scan = None;
    for isa in Isa::available() {
        let (a, x, mut scratch, mut in_f64) = (a.relaid(of_a), x.relaid(of_x), Scratch::new(), Scratch::new());
        let (mut y, mut squares) = (Grid::blank(p, n, of_x), Guarded::new(p));
        gram(isa, Par::Seq, a.view(), x.view(), y.view_mut(), squares.slice(), &mut scratch);
        let wide: Vec<f64> = (0..n).map(|j| x.get(0, j).to_f64()).collect();
        let sizes: Vec<f64> = wide.iter().map(|x| x.abs()).collect();
        let (mut of_sizes, mut twice, mut once) = (Guarded::new(n), Guarded::new(n), Guarded::new(m));
        abs_gram(isa, Par::Seq, a.view(), &sizes, of_sizes.slice(), &mut in_f64);
        wide_gram(isa, Par::Seq, a.view(), &wide, twice.slice(), &mut in_f64);
        image(isa, Par::Seq, a.view(), &wide, once.slice());
        let wide: Vec<Vec<f64>> = [squares, of_sizes, twice, once].into_iter().map(Guarded::finish).collect();
        let found = scan(isa, a.view(), &mut in_f64);
        assert_eq!(found.is_ok(), elements(&a).all(|x| x.is_finite()), "{found:?}");
        assert_eq!(first_scan.get_or_insert(found), &found, "{isa} {:?}", (m, n, of_a));
        let (first_y, first_wide) = first.get_or_insert_with(|| (y.clone(), wide.clone()));
        y.check_bits(first_y, &(isa, m, n, p, of_a, of_x)).unwrap();
        wide.iter().zip(first_wide).for_each(|(got, wanted)| check_same(got, wanted, &(isa, m, n, p)));
    }
    let (y, wide) = first.expect("the portable set is always available");
    if n == 0 {
        return Ok(());
    }
    let exactly = a.exact();
    for i in 0..p {
        let row: Vec<Bounded> = (0..n).map(|j| exact(x.get(i, j))).collect();
        let (of_y, square) = reference::gram(&exactly, &row);
        of_y.into_iter().enumerate().for_each(|(j, bound)| check_bound(bound, y.get(i, j), &(i, j, m, n, p)));
        check_bound(square, wide[0][i], &(i, m, n, p));
    }
    let widely = Matrix::from_fn(m, n, |i, j| Precision::F64.exact(a.get(i, j).to_f64()));
    let row: Vec<Bounded> = (0..n).map(|j| Precision::F64.exact(x.get(0, j).to_f64())).collect();
    let (of_twice, _) = reference::gram(&widely, &row);
    of_twice.into_iter().zip(&wide[2]).for_each(|(bound, &got)| check_bound(bound, got, &("wide", m, n)));
    reference::image(&widely, &row).into_iter().zip(&wide[3]).for_each(|(bound, &got)| check_bound(bound, got, &("image", m, n)));
    // Its relative bound supposes that no product underflows or overflows: three factors.
    let is_tame = |x: f64| x == 0.0 || (1e-75..1e75).contains(&x.abs());
    if elements(&a).all(|a| is_tame(a.to_f64())) && row.iter().all(|x| is_tame(x.value)) {
        let sizes: Vec<f64> = row.iter().map(|x| x.value.abs()).collect();
        let bounds = reference::abs_gram(&widely, &sizes);
        bounds.into_iter().zip(&wide[1]).for_each(|(bound, &got)| check_bound(bound, got, &("sizes", m, n)));
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| of_either_type(data, run::<f32>, run::<f64>));
