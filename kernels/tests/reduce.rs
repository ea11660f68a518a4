//! Reductions against sums in double-double with the documented bounds, and against naive searches.

mod common;

use common::*;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::reduce::{arg_max, dot, max_abs, norm, square_distance, sum};
use dualprop_kernels::vector::Real;
use dualprop_reference::bound::{Bounded, Precision, gamma};
use dualprop_reference::elementary::Wide;
use dualprop_reference::generate::{Family, generate};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseResult;

tests_of_both_types!(
    random_vectors,
    small_integers_are_exact,
    bounds_notice_a_missing_element,
    norms_neither_overflow_nor_underflow,
    not_finite,
    arg_max_of_ties_and_nan,
);

/// `u` of f64, in which all reductions compute.
const U: f64 = f64::EPSILON / 2.0;

/// All tails, and some long vectors.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=100).chain([1000, 2047, 2048, 2049, 4099])
}

/// Numbers of `family`.
fn vector<T: Scalar>(family: Family, len: usize, seed: u64) -> Vec<T> {
    generate(family, len, seed, T::PRECISION).into_iter().map(T::from_f64).collect()
}

/// `Σ x_i y_i`: `γ_{n/32+6}·Σ|x_i y_i|`, an underflow for each product, and the rounding of the value itself.
fn dot_bound<T: Real>(x: &[T], y: &[T]) -> Bounded {
    let terms = || x.iter().zip(y).map(|(x, y)| Wide::product(x.to_f64(), y.to_f64()));
    let value = terms().fold(Wide::from(0.0), |sum, term| sum + term).hi;
    let size = terms().fold(Wide::from(0.0), |sum, term| sum + term.abs()).hi;
    let error = gamma(x.len() / 32 + 6, U) * size + U * (size + value.abs());
    Bounded::new(value, error, Precision::F64).underflow(x.len() as f64)
}

/// `Σ (x_i − y_i)²`: `γ_{n/32+9}` of it and an underflow for each term, both of `T`, and `u` for the value itself.
fn distance_bound<T: Scalar>(x: &[T], y: &[T]) -> Bounded {
    let square = |difference: Wide| difference * difference;
    let terms = x.iter().zip(y).map(|(x, y)| square(Wide::sum(x.to_f64(), -y.to_f64())));
    let value = terms.fold(Wide::from(0.0), |sum, term| sum + term).hi;
    let error = (T::PRECISION.gamma(x.len() / 32 + 9) + U) * value;
    Bounded::new(value, error, T::PRECISION).underflow(x.len() as f64)
}

/// `√Σ x_i²` of numbers `x = scaled·2^exponent` whose squares neither overflow nor underflow: relative error `γ_{n/64+4}`, `2u` for
/// the value itself, and an underflow.
fn norm_bound(scaled: &[f64], exponent: i32) -> Bounded {
    let square = scaled.iter().fold(Wide::from(0.0), |sum, &x| sum + Wide::product(x, x)).hi;
    let value = Wide::from(square.sqrt()).scale(exponent).hi;
    Bounded::new(value, value * (gamma(scaled.len() / 64 + 4, U) + 2.0 * U), Precision::F64).underflow(1.0)
}

/// The value of `reduce` on every instruction set, which must be one to the bit.
fn agreed(reduce: impl Fn(Isa) -> f64) -> Result<f64, TestCaseError> {
    let first = reduce(Isa::best());
    for isa in Isa::available() {
        prop_assert!(same(reduce(isa), first), "{} instead of {first} on {isa}", reduce(isa));
    }
    Ok(first)
}

/// The first NaN, or else the first of the largest.
fn naive_arg_max<T: Real>(x: &[T]) -> Option<usize> {
    let largest = x.iter().map(|x| x.to_f64()).fold(f64::NEG_INFINITY, f64::max);
    x.iter().position(|x| x.to_f64().is_nan()).or_else(|| x.iter().position(|x| x.to_f64() == largest))
}

fn random_vectors<T: Scalar>() {
    let [sums, dots, distances, norms] = [(); 4].map(|()| Tally::default());
    let check = |families: [Family; 2], len: usize, seed: u64| -> TestCaseResult {
        let (x, y) = (vector::<T>(families[0], len, seed), vector::<T>(families[1], len, seed ^ 1));
        let (ones, what) = (vec![T::ONE; len], (families, len, seed));
        sums.check_one(dot_bound(&x, &ones), agreed(|isa| sum(isa, &x))?, &what)?;
        dots.check_one(dot_bound(&x, &y), agreed(|isa| dot(isa, &x, &y))?, &what)?;
        distances.check_one(distance_bound(&x, &y), agreed(|isa| square_distance(isa, &x, &y))?, &what)?;
        let wide: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
        let largest = wide.iter().fold(0.0, |largest, x| f64::max(largest, x.abs()));
        prop_assert_eq!(agreed(|isa| max_abs(isa, &x))?, largest);
        prop_assert_eq!(arg_max(&x), naive_arg_max(&x));
        if families[0] != Family::Subnormal {
            norms.check_one(norm_bound(&wide, 0), agreed(|isa| norm(isa, &x))?, &what)?;
        }
        Ok(())
    };
    for family in Family::ALL {
        lengths().for_each(|len| check([family; 2], len, len as u64).unwrap());
    }
    let family = select(Family::ALL.to_vec());
    for_all(1000, ([family.clone(), family], 0..=300usize, any::<u64>()), |(families, len, seed)| check(families, len, seed));
    sums.conclude::<T>("sum");
    dots.conclude::<T>("dot");
    distances.conclude::<T>("square distance");
    norms.conclude::<T>("norm");
}

fn small_integers_are_exact<T: Scalar>() {
    for len in lengths() {
        let (x, y) = (vector::<T>(Family::Integer, len, 1), vector::<T>(Family::Integer, len, 2));
        let integer = |x: T| x.to_f64() as i64;
        let total: i64 = x.iter().map(|&x| integer(x)).sum();
        let products: i64 = x.iter().zip(&y).map(|(&x, &y)| integer(x) * integer(y)).sum();
        let squares: i64 = x.iter().map(|&x| integer(x).pow(2)).sum();
        let distance: i64 = x.iter().zip(&y).map(|(&x, &y)| (integer(x) - integer(y)).pow(2)).sum();
        for isa in Isa::available() {
            assert_eq!(sum(isa, &x), total as f64, "sum of {len} on {isa}");
            assert_eq!(dot(isa, &x, &y), products as f64, "dot of {len} on {isa}");
            assert_eq!(square_distance(isa, &x, &y), distance as f64, "distance of {len} on {isa}");
            assert_eq!(norm(isa, &x), (squares as f64).sqrt(), "norm of {len} on {isa}");
        }
    }
}

/// Elements of size 1 to 2: leaving one out exceeds every bound.
fn bounds_notice_a_missing_element<T: Scalar>() {
    for len in lengths().filter(|&len| len > 0) {
        let x: Vec<T> = vector::<T>(Family::Uniform, len, 3).into_iter().map(|x| x.abs() + T::ONE).collect();
        let wide: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
        let (sum_bound, dot_bound, norm_bound) = (dot_bound(&x, &vec![T::ONE; len]), dot_bound(&x, &x), norm_bound(&wide, 0));
        let (zeros, distance_bound) = (vec![T::ZERO; len], distance_bound(&x, &vec![T::ZERO; len]));
        for missing in [0, len / 2, len - 1] {
            let mut x = x.clone();
            x[missing] = T::ZERO;
            for isa in Isa::available() {
                assert!(!sum_bound.admits(sum(isa, &x)), "sum of {len} without {missing}");
                assert!(!dot_bound.admits(dot(isa, &x, &x)), "dot of {len} without {missing}");
                assert!(!distance_bound.admits(square_distance(isa, &x, &zeros)), "distance of {len} without {missing}");
                assert!(!norm_bound.admits(norm(isa, &x)), "norm of {len} without {missing}");
            }
        }
    }
}

/// Elements around `2^exponent` for exponents to both ends of the range, and some with a much smaller or larger one among them.
fn norms_neither_overflow_nor_underflow<T: Scalar>() {
    let tally = Tally::default();
    let (smallest, largest): (i32, i32) = if T::NAME == "f32" { (-149, 127) } else { (-1074, 1023) };
    let near = if T::NAME == "f32" { [100, -100] } else { [997, -997] }; // 1e±30, 1e±300
    for exponent in [smallest, smallest + 1, smallest + 20, largest - 13, 0, -511, 511, -465, 465].into_iter().chain(near) {
        let exponent = exponent.clamp(smallest, largest);
        for len in lengths().filter(|&len| len > 0) {
            for odd_one in [None, Some(smallest), Some((exponent + smallest) / 2), Some((exponent + 300).min(largest))] {
                let mut x: Vec<T> = vector::<T>(Family::Uniform, len, len as u64);
                x.iter_mut().for_each(|x| *x = T::from_f64(Wide::from(x.to_f64()).scale(exponent).hi));
                if let Some(odd_one) = odd_one {
                    x[len / 2] = T::from_f64(Wide::from(1.0).scale(odd_one).hi);
                }
                // Scaled by the size of the largest element; what underflows then is far below the error.
                let top = max_abs(Isa::best(), &x).max(T::TINY).log2().floor() as i32;
                let scaled: Vec<f64> = x.iter().map(|x| Wide::from(x.to_f64()).scale(-top).hi).collect();
                let got = agreed(|isa| norm(isa, &x)).unwrap();
                tally.check_one(norm_bound(&scaled, top), got, &(exponent, odd_one, len)).unwrap();
            }
        }
    }
    tally.conclude::<T>("extreme norm");
    for isa in Isa::available() {
        assert_eq!(norm::<T>(isa, &[]), 0.0);
        assert_eq!(norm(isa, &[T::ZERO; 70]), 0.0);
    }
    if T::NAME == "f64" {
        assert_eq!(norm(Isa::best(), &[f64::MAX; 2]), f64::INFINITY, "the norm itself overflows");
        assert_eq!(norm(Isa::best(), &[f64::MAX]), f64::MAX);
        assert_eq!(norm(Isa::best(), &[f64::from_bits(1)]), f64::from_bits(1));
    }
}

/// NaN and infinity at every place of every tail.
fn not_finite<T: Scalar>() {
    for isa in Isa::available() {
        for len in 1..=70 {
            for at in 0..len {
                for odd_one in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                    let mut x = vec![T::ONE; len];
                    x[at] = T::from_f64(odd_one);
                    let (ones, zeros) = (vec![T::ONE; len], vec![T::ZERO; len]);
                    let what = format!("{odd_one} at {at} of {len} on {isa}");
                    assert!(same(sum(isa, &x), odd_one), "sum: {what}");
                    assert!(same(dot(isa, &x, &ones), odd_one), "dot: {what}");
                    assert!(dot(isa, &x, &zeros).is_nan(), "dot with zeros: {what}");
                    assert!(same(square_distance(isa, &ones, &x), odd_one.abs()), "square_distance: {what}");
                    assert_eq!(max_abs(isa, &x), f64::INFINITY, "max_abs: {what}");
                    assert!(same(norm(isa, &x), odd_one.abs()), "norm: {what}");
                }
            }
        }
        assert_panics("one length", || {
            dot(isa, &[T::ONE; 3], &[T::ONE; 4]);
        });
        assert_panics("one length", || {
            square_distance(isa, &[T::ONE; 3], &[T::ONE; 4]);
        });
    }
}

fn arg_max_of_ties_and_nan<T: Scalar>() {
    let of = |numbers: &[f64]| arg_max(&numbers.iter().map(|&x| T::from_f64(x)).collect::<Vec<_>>());
    let (nan, infinity) = (f64::NAN, f64::INFINITY);
    assert_eq!(of(&[]), None);
    assert_eq!(of(&[-infinity]), Some(0));
    assert_eq!(of(&[1.0, 3.0, 2.0, 3.0]), Some(1));
    assert_eq!(of(&[0.0, -0.0, 0.0]), Some(0));
    assert_eq!(of(&[-0.0, 0.0]), Some(0));
    assert_eq!(of(&[-infinity, -infinity]), Some(0));
    assert_eq!(of(&[infinity, nan, nan]), Some(1));
    assert_eq!(of(&[nan, infinity]), Some(0));
    let values = vec![nan, -infinity, -1.0, -0.0, 0.0, 1.0, infinity];
    for_all(1000, prop::collection::vec(select(values), 0..20), |numbers| {
        prop_assert_eq!(of(&numbers), naive_arg_max(&numbers));
        Ok(())
    });
}
