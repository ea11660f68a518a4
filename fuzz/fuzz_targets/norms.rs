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
use dualprop_reference::bound::{Bounded, Precision};
use dualprop_reference::gram as reference;
use dualprop_reference::product::Matrix;
use faer::{Mat, Par};
use libfuzzer_sys::fuzz_target;

/// The largest singular value, over that power of two which brings the largest element near 1, and the error of both: what the decomposition is off
/// by (Golub & Van Loan 2013, section 8.6), and elements that are lost by the scale.
struct Norm {
    exponent: i32,
    value: f64,
    error: f64,
}

/// `x·2^exponent`, rounded at most once.
fn scaled(x: f64, exponent: i32) -> f64 {
    (0..4).fold(x, |x, k| x * 2f64.powi(exponent / 4 + i32::from(k < exponent % 4) - i32::from(-k > exponent % 4)))
}

impl Norm {
    fn new<T: Scalar>(a: &Grid<T>) -> Self {
        let (m, n) = a.shape();
        let largest = elements(a).map(|x| x.to_f64().abs()).fold(0.0, f64::max);
        let exponent = if largest == 0.0 { 0 } else { largest.log2().floor() as i32 };
        let matrix = Mat::from_fn(m, n, |i, j| scaled(a.get(i, j).to_f64(), -exponent));
        let value = matrix.singular_values().expect("a finite matrix").first().copied().unwrap_or(0.0);
        Self { exponent, value, error: (m * n) as f64 * 2.0 * f64::EPSILON * value }
    }

    fn check(&self, what: &str, found: &Enclosure, case: &impl core::fmt::Debug) {
        let [lower, upper] = [found.lower, found.upper].map(|x| scaled(x, -self.exponent));
        let Self { value, error, .. } = *self;
        assert!(
            lower <= value + error && value - error <= upper && found.lower <= found.upper,
            "{what}: {lower:e} ≤ {value:e} ± {error:e} ≤ {upper:e}, {found:?}: {case:?}"
        );
    }
}

fn enclosures<T: Scalar>(u: &mut Unstructured<'_>, a: &Grid<T>, layout: Layout) -> Result<()> {
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
    let layouts = [any_layout(&mut u)?, any_layout(&mut u)?];
    if m * n <= 40 * 40 && u.arbitrary()? {
        return enclosures(&mut u, &a, layouts[0]);
    }
    // Products need contiguous rows.
    let [of_a, of_x] = layouts.map(|layout| Layout { by_columns: false, cols_reversed: false, ..layout });
    let mut first = None;
    let mut scan_of_first = None;
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
        assert_eq!(scan_of_first.get_or_insert(found), &found, "{isa} {:?}", (m, n, of_a));
        let (_, wanted) = first.get_or_insert_with(|| (y.clone(), wide.clone()));
        wide.iter().zip(wanted).for_each(|(got, wanted)| check_same(got, wanted, &(isa, m, n, p)));
        let (wanted, _) = first.as_ref().expect("set above");
        y.check_bits(wanted, &(isa, m, n, p, of_a, of_x)).unwrap();
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
    // Its relative bound supposes that no product underflows.
    let is_tame = |x: f64| x == 0.0 || (1e-75..1e75).contains(&x.abs());
    if elements(&a).all(|a| is_tame(a.to_f64())) && row.iter().all(|x| is_tame(x.value)) {
        let sizes: Vec<f64> = row.iter().map(|x| x.value.abs()).collect();
        let bounds = reference::abs_gram(&widely, &sizes);
        bounds.into_iter().zip(&wide[1]).for_each(|(bound, &got)| check_bound(bound, got, &("sizes", m, n)));
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    // Too few bytes are no case.
    let _ = match data.split_first() {
        Some((kind, rest)) if kind % 2 == 0 => run::<f32>(Unstructured::new(rest)),
        Some((_, rest)) => run::<f64>(Unstructured::new(rest)),
        None => return,
    };
});
