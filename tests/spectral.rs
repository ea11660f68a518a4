//! Lower bounds of spectral norms against a dense singular value decomposition in f64.

mod common;

use common::{network, runtime, uniform, values};
use dualprop::lipschitz::{Chain, Dense, MAX_STEPS, lower_bound};
use dualprop::network::{Method, Settings, Trainer};
use dualprop::random::Counter;
use dualprop::{Activation, Error, Mat, MatRef, Real};

/// Rows and columns. Wide ones map part of their input space to zero.
const TALL: [(usize, usize); 6] = [(1, 1), (9, 1), (3, 2), (7, 7), (40, 5), (20, 20)];
const WIDE: [(usize, usize); 5] = [(1, 9), (2, 3), (5, 40), (10, 64), (6, 7)];

fn wide<T: Real>(matrix: MatRef<'_, T>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)].to_f64())
}

/// `‖A_n ⋯ A_1‖₂`, and what rounding may add to or take from a bound of it.
///
/// `‖Au‖/‖u‖` takes a product with each matrix, whose error is at most `γ_n ‖A_i‖_F` of its operand, and two norms. The product of the
/// matrices in f64 here is off by as much at most, and so is its decomposition.
fn norm<T: Real>(chain: &[MatRef<'_, T>]) -> (f64, f64) {
    let (first, rest) = chain.split_first().expect("not empty");
    let (mut product, mut size, mut roundings) = (wide(*first), wide(*first).norm_l2(), first.nrows() + 2 * first.ncols());
    for matrix in rest {
        product = wide(*matrix) * product;
        size *= wide(*matrix).norm_l2();
        roundings += matrix.nrows() + matrix.ncols();
    }
    let norms = product.singular_values().expect("a finite matrix has them");
    (norms[0], 2.0 * roundings as f64 * T::UNIT_ROUNDOFF * size)
}

fn bound<T: Real>(chain: &[MatRef<'_, T>], steps: usize) -> f64 {
    match *chain {
        [matrix] => lower_bound(&Dense::new(matrix), steps, 7, &runtime()),
        _ => lower_bound(&Chain::new(chain).expect("a sound chain"), steps, 7, &runtime()),
    }
    .expect("finite elements")
}

/// The bound for enough steps is the norm, up to rounding and a millionth of it.
#[track_caller]
fn assert_norm<T: Real>(chain: &[MatRef<'_, T>]) {
    let ((exact, rounding), got) = (norm(chain), bound(chain, MAX_STEPS));
    assert!((got - exact).abs() <= 1e-6 * exact + rounding, "{} {got} for {exact}", T::NAME);
}

fn for_both(shapes: &[(usize, usize)], check_f32: impl Fn(MatRef<'_, f32>), check_f64: impl Fn(MatRef<'_, f64>)) {
    for &(m, n) in shapes {
        for seed in 0..5 {
            check_f32(uniform::<f32>(m, n, [-1.0, 1.0], seed).as_ref());
            check_f64(uniform::<f64>(m, n, [-1.0, 1.0], seed).as_ref());
            check_f64(uniform::<f64>(n, m, [-1.0, 1.0], seed).transpose());
        }
    }
}

#[test]
fn bounds_are_never_above_the_norm() {
    fn check<T: Real>(matrix: MatRef<'_, T>) {
        let (exact, rounding) = norm(&[matrix]);
        for steps in [1, 2, 3, 6, 20, MAX_STEPS, usize::MAX] {
            let got = bound(&[matrix], steps);
            assert!(got >= 0.0 && got <= exact + rounding, "{steps} steps: {got} for {exact}");
        }
    }
    for_both(&TALL, check, check);
    for_both(&WIDE, check, check);
    for_both(&[(100, 90), (90, 100)], check, check);
}

#[test]
fn enough_steps_give_the_norm() {
    for_both(&TALL, |a| assert_norm(&[a]), |a| assert_norm(&[a]));
}

#[test]
fn enough_steps_give_the_norm_of_wide_matrices() {
    for_both(&WIDE, |a| assert_norm(&[a]), |a| assert_norm(&[a]));
}

#[test]
fn singular_values_may_be_close() {
    for gap in [0.1, 0.03, 0.01, 0.003, 1e-4, 0.0] {
        let a = Mat::from_fn(5, 5, |i, j| if i == j { 1.0 - gap * i as f64 } else { 0.0 });
        assert_norm(&[a.as_ref()]);
    }
}

#[test]
fn scale_does_not_matter() {
    // Powers of two that neither overflow nor underflow an entry.
    let a = uniform::<f32>(6, 5, [0.5, 1.0], 1);
    for power in [-100, -70, -40, 40, 70, 100] {
        let scaled = Mat::from_fn(6, 5, |i, j| a[(i, j)] * 2f32.powi(power));
        assert_norm(&[scaled.as_ref()]);
    }
}

#[test]
fn more_steps_are_not_worse() {
    let a = uniform::<f64>(60, 50, [-1.0, 1.0], 3);
    let bounds: Vec<_> = (1..20).map(|steps| bound(&[a.as_ref()], steps)).collect();
    let (_, rounding) = norm(&[a.as_ref()]);
    assert!(bounds.windows(2).all(|pair| pair[1] >= pair[0] - rounding), "{bounds:?}");
    assert!(bounds[18] > bounds[0]);
}

#[test]
fn chains_are_products() {
    for seed in 0..5 {
        for widths in [&[4, 5, 6, 7][..], &[7, 6, 5, 4], &[5, 3, 6], &[3, 1, 3], &[12, 4]] {
            let pairs = || widths.windows(2).zip(10 * seed..);
            let f32s: Vec<_> = pairs().map(|(w, seed)| uniform::<f32>(w[1], w[0], [-1.0, 1.0], seed)).collect();
            let f64s: Vec<_> = pairs().map(|(w, seed)| uniform::<f64>(w[1], w[0], [-1.0, 1.0], seed)).collect();
            assert_norm(&f32s.iter().map(Mat::as_ref).collect::<Vec<_>>());
            assert_norm(&f64s.iter().map(Mat::as_ref).collect::<Vec<_>>());
        }
    }
}

#[test]
fn nothing_has_norm_zero() {
    for (m, n) in [(0, 0), (0, 3), (3, 0), (1, 1), (4, 6)] {
        let zeros = Mat::<f64>::zeros(m, n);
        assert_eq!(lower_bound(&Dense::new(zeros.as_ref()), 5, 1, &runtime()), Ok(0.0), "{m} × {n}");
    }
    let (some, zeros) = (uniform::<f32>(3, 4, [0.0, 1.0], 1), Mat::<f32>::zeros(2, 3));
    assert_eq!(bound(&[some.as_ref(), zeros.as_ref()], 5), 0.0);
}

#[test]
fn bad_chains_are_errors() {
    let (a, mut b) = (uniform::<f64>(3, 4, [0.0, 1.0], 1), uniform::<f64>(5, 2, [0.0, 1.0], 1));
    let error = |chain: &[MatRef<'_, f64>]| Chain::new(chain).expect_err("a bad chain");
    assert_eq!(error(&[]).to_string(), "factors has 0 elements, but must have 1");
    assert_eq!(error(&[a.as_ref(), b.as_ref()]), Error::Shape { argument: "factors", found: (5, 2), expected: (5, 3) });
    let steps = lower_bound(&Dense::new(a.as_ref()), 0, 1, &runtime()).expect_err("no steps");
    assert_eq!(steps.to_string(), "steps is 0, but must be at least 1");
    b[(4, 1)] = f64::NEG_INFINITY;
    assert_eq!(error(&[b.as_ref()]).to_string(), "factors has -inf at row 4, column 1, but must be finite");
    let infinite = lower_bound(&Dense::new(b.as_ref()), 5, 1, &runtime()).expect_err("an infinity");
    assert_eq!(infinite.to_string(), "matrix has -inf at row 4, column 1, but must be finite");
}

#[test]
fn the_proxy_is_the_norm_of_the_product() {
    const WIDTHS: [usize; 4] = [64, 128, 128, 10];
    fn check<T: Real>(strength: f64) {
        let mut network = network::<T>(&WIDTHS, Activation::Relu, true, 1);
        // Training leaves directions that stand out.
        let mut random = Counter::new(1, 9);
        for k in 0..3 {
            let (u, v): (Vec<_>, Vec<_>) =
                ((0..WIDTHS[k + 1]).map(|_| random.normal()).collect(), (0..WIDTHS[k]).map(|_| random.normal()).collect());
            let mut weights = network.weights_mut(k);
            for i in 0..WIDTHS[k + 1] {
                for j in 0..WIDTHS[k] {
                    weights[(i, j)] = T::from_f64(weights[(i, j)].to_f64() + strength * u[i] * v[j]);
                }
            }
        }
        let mut trainer = Trainer::new(network.clone(), &Settings::new(Method::Backprop), 1, &runtime()).expect("sound settings");
        let chain: Vec<_> = (0..3).map(|k| network.weights(k)).collect();
        let (exact, rounding) = norm(&chain);
        let got = trainer.proxy_lipschitz();
        assert!((got - exact).abs() <= 1e-6 * exact + rounding, "{got} for {exact}");
        // The last vector is where the next bound starts from.
        let again = trainer.proxy_lipschitz();
        assert!((again - exact).abs() <= 1e-6 * exact + rounding, "{again} for {exact}");
        assert_eq!(values(trainer.network().weights(2)), values(network.weights(2)));
    }
    for strength in [0.01, 0.0] {
        check::<f32>(strength);
        check::<f64>(strength);
    }
}
