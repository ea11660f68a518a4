//! Chains and convolutions as operators: exact on integers, within their bounds on anything else, the same bits everywhere.

mod common;

use common::{runtime, uniform, values};
use dualprop::lipschitz::{
    Bracket, Certainty, Chain, Convolution, Geometry, Operator, Padding, Proof, Search, Status, collatz, enclose, frequencies,
};
use dualprop::random::Counter;
use dualprop::{Error, Isa, Mat, MatRef, Par, Real, Runtime, Workspace};

/// Integers from −3 to 3: all sums below are exact, in f32 too.
fn integers<T: Real>(rows: usize, cols: usize, seed: u64) -> Mat<T> {
    let mut random = Counter::new(seed, 3);
    Mat::from_fn(rows, cols, |_, _| T::from_f64(random.below(7) as f64 - 3.0))
}

fn wide<T: Real>(matrix: MatRef<'_, T>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)].to_f64())
}

/// The elements as the operator tells them, and how far off they may be.
fn materialised<T: Real>(operator: &dyn Operator<T>) -> (Mat<f64>, f64) {
    let (m, n) = operator.shape();
    let mut matrix = Mat::from_fn(m, n, |_, _| f64::NAN);
    let error = operator.block(0, 0, matrix.as_mut()).expect("elements are known");
    (matrix, error)
}

/// Naive product of integers, exact in any order.
fn times(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), b.ncols(), |i, j| (0..a.ncols()).map(|p| a[(i, p)] * b[(p, j)]).sum())
}

/// Row-major and interleaved, with NaN in the output beforehand.
fn applied<T: Real>(operator: &dyn Operator<T>, x: MatRef<'_, T>, transposed: bool, runtime: &Runtime) -> [Mat<T>; 2] {
    let (m, n) = operator.shape();
    let width = if transposed { n } else { m };
    let mut work = Workspace::new(runtime);
    let nan = |rows, cols| Mat::from_fn(rows, cols, |_, _| T::from_f64(f64::NAN));
    let (mut by_cols, mut by_rows) = (nan(x.nrows(), width), nan(width, x.nrows()));
    let by_row = Mat::from_fn(x.ncols(), x.nrows(), |j, i| x[(i, j)]);
    if transposed {
        operator.apply_transposed(x, by_cols.as_mut(), &mut work);
        operator.apply_transposed(by_row.transpose(), by_rows.as_mut().transpose_mut(), &mut work);
    } else {
        operator.apply(x, by_cols.as_mut(), &mut work);
        operator.apply(by_row.transpose(), by_rows.as_mut().transpose_mut(), &mut work);
    }
    let by_rows = Mat::from_fn(x.nrows(), width, |i, j| by_rows[(j, i)]);
    [by_cols, by_rows]
}

/// All that an operator promises, with integers for elements and in the vectors: products, their transposes, the Gram product, image, sizes, and
/// parts of the elements, against `exact`.
#[track_caller]
fn assert_is<T: Real>(operator: &dyn Operator<T>, exact: MatRef<'_, f64>, absolute: MatRef<'_, f64>) {
    let (m, n) = operator.shape();
    assert_eq!((m, n), exact.shape());
    for p in [1, 3, 17] {
        let (x, y) = (integers::<T>(p, n, 5), integers::<T>(p, m, 6));
        let wanted = times(wide(x.as_ref()).as_ref(), exact.transpose());
        for got in applied(operator, x.as_ref(), false, &runtime()) {
            assert_eq!(wide(got.as_ref()), wanted, "A x");
        }
        let back = times(wide(y.as_ref()).as_ref(), exact);
        for got in applied(operator, y.as_ref(), true, &runtime()) {
            assert_eq!(wide(got.as_ref()), back, "Aᵀ y");
        }
        let (mut gram, mut squares) = (Mat::from_fn(p, n, |_, _| T::ZERO), vec![0.0; p]);
        operator.gram(x.as_ref(), gram.as_mut(), &mut squares, &mut Workspace::new(&runtime()));
        assert_eq!(wide(gram.as_ref()), times(wanted.as_ref(), exact), "AᵀA x");
        let lengths: Vec<f64> = (0..p).map(|i| wanted.row(i).iter().map(|y| y * y).sum()).collect();
        assert_eq!(squares, lengths);
    }
    let x: Vec<f64> = values(integers::<f64>(1, n, 7).as_ref());
    let mut y = vec![f64::NAN; m];
    assert!(operator.image(&x, &mut y).is_finite());
    let column = MatRef::from_column_major_slice(&x, n, 1);
    assert_eq!(y, values(times(exact, column).as_ref()), "image");

    let x: Vec<f64> = x.iter().map(|x| x.abs()).collect();
    let mut y = vec![f64::NAN; n];
    assert!(operator.abs_gram(&x, &mut y));
    let column = MatRef::from_column_major_slice(&x, n, 1);
    let sizes = values(times(absolute.transpose(), times(absolute, column).as_ref()).as_ref());
    // Both directions round up where they round at all.
    let slack = 1.0 + 8.0 * (m + n + operator.stored()) as f64 * f64::EPSILON;
    assert!(y.iter().zip(&sizes).all(|(y, size)| y >= size && *y <= size * slack), "{y:?} {sizes:?}");

    let (whole, error) = materialised(operator);
    let off = Mat::from_fn(m, n, |i, j| whole[(i, j)] - exact[(i, j)]);
    assert!(off.norm_l2() <= error && error < 1e-9, "{error}");
    if m > 2 && n > 2 {
        let mut part = Mat::from_fn(m - 2, 2, |_, _| f64::NAN);
        operator.block(1, n - 2, part.as_mut()).expect("elements are known");
        assert_eq!(part.as_ref(), whole.as_ref().submatrix(1, n - 2, m - 2, 2));
        let mut part = Mat::from_fn(n - 1, 2, |_, _| f64::NAN);
        operator.block(m - 2, 1, part.as_mut().transpose_mut()).expect("elements are known");
        assert_eq!(part.transpose(), whole.as_ref().submatrix(m - 2, 1, 2, n - 1));
    }
    assert_bracket(operator, exact);
}

/// The bracket encloses the norms of `exact`.
#[track_caller]
fn assert_bracket<T: Real>(operator: &dyn Operator<T>, exact: MatRef<'_, f64>) {
    let Bracket { largest, lower, upper, frobenius, proof } = operator.bracket().expect("finite elements");
    let (most, norms) = (exact.norm_max(), exact.singular_values().expect("a finite matrix has them"));
    // A decomposition is backward stable: `p(m,n)·u·‖A‖`.
    let (m, n) = exact.shape();
    let norm = norms.first().copied().unwrap_or(0.0);
    let slack = 1.0 + 8.0 * (m + n) as f64 * f64::EPSILON;
    assert!(
        lower <= norm * slack && norm <= upper * slack && exact.norm_l2() <= frobenius * slack,
        "{lower} {norm} {upper} {frobenius}"
    );
    assert!(largest == most || largest == f64::INFINITY, "{largest} {most}");
    assert_eq!(upper == 0.0, proof == Proof::Zero);
}

/// The definition, pixel by pixel.
fn naive<T: Real>(weights: &[T], g: &Geometry) -> Mat<f64> {
    let ([oh, ow], [h, w], [kh, kw]) = (g.output(), g.image, g.kernel);
    let mut matrix = Mat::zeros(g.channels_out * oh * ow, g.channels_in * h * w);
    for o in 0..g.channels_out {
        for (i, j) in (0..oh).flat_map(|i| (0..ow).map(move |j| (i, j))) {
            for c in 0..g.channels_in {
                for (a, b) in (0..kh).flat_map(|a| (0..kw).map(move |b| (a, b))) {
                    let [r, q] = [(i * g.stride[0] + a) as isize, (j * g.stride[1] + b) as isize];
                    let [r, q] = match g.padding {
                        Padding::Zeros([p, l]) => [r - p as isize, q - l as isize],
                        _ => [
                            (r - (kh as isize - 1) / 2).rem_euclid(h as isize),
                            (q - (kw as isize - 1) / 2).rem_euclid(w as isize),
                        ],
                    };
                    if (0..h as isize).contains(&r) && (0..w as isize).contains(&q) {
                        let at = ((o * oh + i) * ow + j, (c * h + r as usize) * w + q as usize);
                        matrix[at] += weights[((o * g.channels_in + c) * kh + a) * kw + b].to_f64();
                    }
                }
            }
        }
    }
    matrix
}

/// Odd and even sizes, all edges, strides that divide and that do not, single pixels and taps, kernels larger than the image.
fn geometries() -> Vec<Geometry> {
    let mut all = vec![];
    for (kernel, image) in
        [([1, 1], [1, 1]), ([1, 1], [4, 3]), ([3, 3], [5, 4]), ([2, 3], [3, 6]), ([5, 4], [2, 3]), ([3, 1], [6, 1])]
    {
        for stride in [[1, 1], [2, 2], [3, 1]] {
            let paddings = [[0, 0], [1, 1], [2, 0], [4, 3]].map(Padding::Zeros).into_iter().chain([Padding::Circular]);
            for padding in paddings {
                for (channels_out, channels_in) in [(1, 1), (3, 2), (2, 5)] {
                    let g = Geometry { channels_out, channels_in, kernel, image, stride, padding };
                    if padding != Padding::Circular || (kernel[0] <= image[0] && kernel[1] <= image[1]) {
                        all.push(g);
                    }
                }
            }
        }
    }
    all
}

fn weights<T: Real>(g: &Geometry, seed: u64) -> Vec<T> {
    let matrix = integers::<T>(g.channels_out, g.channels_in * g.kernel[0] * g.kernel[1], seed);
    values(matrix.as_ref()).into_iter().map(T::from_f64).collect()
}

#[test]
fn convolutions_are_their_definition() {
    fn check<T: Real>() {
        for (seed, g) in geometries().iter().enumerate() {
            let weights = weights::<T>(g, seed as u64);
            let convolution = Convolution::new(&weights, *g).expect("sound sizes");
            let exact = naive(&weights, g);
            let absolute = Mat::from_fn(exact.nrows(), exact.ncols(), |i, j| exact[(i, j)].abs());
            assert_is(&convolution, exact.as_ref(), absolute.as_ref());
            let (_, error) = materialised(&convolution);
            assert_eq!(error, 0.0);
        }
    }
    check::<f32>();
    check::<f64>();
}

/// Of the norm that is asked for a reference comes from a decomposition of the materialised map, which is backward stable.
#[test]
fn frequencies_enclose_the_norm() {
    let mut closed = 0;
    for (seed, g) in geometries().iter().enumerate() {
        let mut random = Counter::new(seed as u64, 9);
        let weights: Vec<f64> =
            (0..g.channels_out * g.channels_in * g.kernel[0] * g.kernel[1]).map(|_| random.normal()).collect();
        let convolution = Convolution::new(&weights, *g).expect("sound sizes");
        let exact = naive(&weights, g);
        let norm = exact.singular_values().expect("finite").first().copied().unwrap_or(0.0);
        let slack = 8.0 * (exact.nrows() + exact.ncols()) as f64 * f64::EPSILON * norm;
        let search = Search { gap: 1e-9, ..Search::new() };
        let found = frequencies(&convolution, &search, &runtime()).expect("finite weights");
        let e = found.enclosure;
        assert!(e.lower <= norm + slack && norm <= e.upper + slack, "{g:?}: {e:?} for {norm}");
        let divides = g.image[0] % g.stride[0] == 0 && g.image[1] % g.stride[1] == 0;
        if g.padding == Padding::Circular && divides {
            assert!(e.gap() <= 2e-9 && e.status == Status::GapReached, "{g:?}: {e:?} for {norm}");
            closed += usize::from(e.proof == Proof::Frequencies);
        }
        if !found.witness.is_empty() {
            let x = MatRef::from_column_major_slice(&found.witness, found.witness.len(), 1);
            let stretch = times(exact.as_ref(), x).norm_l2() / x.norm_l2();
            assert!(stretch >= e.lower * (1.0 - 1e-12), "{g:?}: {stretch} {e:?}");
        }
    }
    assert!(closed >= 15, "{closed}");
}

/// A difference of neighbours on a torus of even size has the norm 2, and twice in both directions 4: `|1 − e^{iω}|` at `ω = π`.
#[test]
fn known_spectra() {
    let search = Search { gap: 1e-12, ..Search::new() };
    let torus = |kernel, image, channels: [usize; 2], stride| Geometry {
        channels_out: channels[0],
        channels_in: channels[1],
        kernel,
        image,
        stride,
        padding: Padding::Circular,
    };
    let check = |weights: &[f32], g: Geometry, norm: f64, gap: f64| {
        let e = frequencies(&Convolution::new(weights, g).unwrap(), &search, &runtime()).unwrap().enclosure;
        assert!(e.lower <= norm && norm <= e.upper && e.gap() <= gap, "{e:?} for {norm}");
    };
    check(&[1.0, -1.0], torus([1, 2], [3, 8], [1, 1], [1, 1]), 2.0, 1e-11);
    check(&[1.0, -1.0, -1.0, 1.0], torus([2, 2], [6, 8], [1, 1], [1, 1]), 4.0, 1e-11);
    // The mean of a row: 1 at frequency 0.
    check(&[0.25; 4], torus([1, 4], [1, 4], [1, 1], [1, 1]), 1.0, 1e-11);
    // A shift is orthogonal; one output of four keeps the norm.
    check(&[0.0, 0.0, 1.0], torus([3, 1], [8, 4], [1, 1], [1, 1]), 1.0, 1e-11);
    check(&[0.0, 0.0, 1.0], torus([3, 1], [8, 4], [1, 1], [2, 2]), 1.0, 1e-11);
    // Windows that do not overlap: the norm of a row, √(1 + 4 + 4 + 16).
    check(&[1.0, 2.0, 2.0, 4.0], torus([2, 2], [6, 4], [1, 1], [2, 2]), 5.0, 1e-11);
    // One tap is a matrix for every pixel: (3, 4; −4, 3) is 5 times a rotation.
    check(&[3.0, 4.0, -4.0, 3.0], torus([1, 1], [3, 5], [2, 2], [1, 1]), 5.0, 1e-11);
    // The reshaped kernel of ones has the norm 3, the map 9.
    check(&[1.0; 9], torus([3, 3], [5, 7], [1, 1], [1, 1]), 9.0, 1e-11);
    // Out of the range of squares.
    check(&[1e-38, 0.0, -1e-38], torus([1, 3], [2, 8], [1, 1], [1, 1]), 2.0 * f64::from(1e-38f32), 1e-11);
    check(&[1e38, 0.0, -1e38], torus([1, 3], [2, 8], [1, 1], [1, 1]), 2.0 * f64::from(1e38f32), 1e-11);
    // With zeros at the edges, (1, −1) on n pixels: 2 cos(π/(2(n+1))) by the eigenvalues of the second difference.
    let g = Geometry { padding: Padding::Zeros([0, 1]), ..torus([1, 2], [1, 7], [1, 1], [1, 1]) };
    let norm = 2.0 * (core::f64::consts::PI / 16.0).cos();
    let e = frequencies(&Convolution::new(&[1.0f64, -1.0], g).unwrap(), &search, &runtime()).unwrap().enclosure;
    assert!(e.lower <= norm * (1.0 + 4.0 * f64::EPSILON) && e.lower > norm * (1.0 - 1e-9), "{e:?} for {norm}");
    assert!((norm..2.0 + 1e-9).contains(&e.upper), "{e:?} for {norm}");
}

#[test]
fn zero_weights_and_no_output() {
    let g = Geometry {
        channels_out: 2,
        channels_in: 1,
        kernel: [2, 2],
        image: [3, 3],
        stride: [1, 1],
        padding: Padding::Zeros([0, 0]),
    };
    let zeros = [0.0f32; 8];
    let e = frequencies(&Convolution::new(&zeros, g).unwrap(), &Search::new(), &runtime()).unwrap().enclosure;
    assert_eq!((e.lower, e.upper, e.proof), (0.0, 0.0, Proof::Zero));
    // A kernel that never lies in the image has no output.
    let none = Geometry { image: [1, 1], ..g };
    let e = frequencies(&Convolution::new(&[1.0f32; 8], none).unwrap(), &Search::new(), &runtime()).unwrap().enclosure;
    assert_eq!((e.lower, e.upper, e.proof), (0.0, 0.0, Proof::Zero));
}

#[test]
fn errors_of_convolutions() {
    let g = Geometry {
        channels_out: 1,
        channels_in: 1,
        kernel: [3, 3],
        image: [2, 5],
        stride: [1, 1],
        padding: Padding::Zeros([1, 1]),
    };
    let weights = [1.0f32; 9];
    assert_eq!(Convolution::new(&weights[1..], g).unwrap_err(), Error::Length { argument: "weights", found: 8, expected: 9 });
    let refused = |g| matches!(Convolution::new(&weights, g), Err(Error::Parameter { .. }));
    assert!(refused(Geometry { padding: Padding::Circular, ..g }));
    assert!(refused(Geometry { stride: [1, 0], ..g }));
    assert!(refused(Geometry { kernel: [0, 3], ..g }));
    let mut broken = weights;
    broken[5] = f32::NAN;
    let broken = Convolution::new(&broken, g).unwrap();
    let is_named = |e: Error| matches!(e, Error::NotFinite { argument: "weights", row: 0, col: 5, .. });
    assert!(is_named(broken.bracket().unwrap_err()));
    assert!(is_named(frequencies(&broken, &Search::new(), &runtime()).unwrap_err()));
}

/// Widths of chains, in the order of application.
const CHAINS: [&[usize]; 6] = [&[4, 3], &[5, 1, 4], &[3, 8, 2], &[20, 17, 33, 5], &[2, 2, 2, 2, 2], &[1, 70, 1]];

fn factors<T: Real>(widths: &[usize], seed: u64) -> Vec<Mat<T>> {
    widths.windows(2).enumerate().map(|(l, w)| integers(w[1], w[0], seed + 10 * l as u64)).collect()
}

#[test]
fn chains_are_their_product() {
    fn check<T: Real>() {
        for widths in CHAINS {
            let factors = factors::<T>(widths, 1);
            let views: Vec<_> = factors.iter().map(|f| f.as_ref()).collect();
            // Halves and zeros: exact.
            let slopes = |l: usize| -> Vec<f64> { (0..widths[l]).map(|j| [1.0, 0.0, 0.5, -1.0][(j + l) % 4]).collect() };
            let product = |of: fn(f64) -> f64, has_slopes: bool| {
                let first = wide(views[0]);
                let mut product = Mat::from_fn(first.nrows(), first.ncols(), |i, j| of(first[(i, j)]));
                for (l, factor) in views.iter().enumerate().skip(1) {
                    let d = if has_slopes { slopes(l) } else { vec![1.0; widths[l]] };
                    let factor = Mat::from_fn(factor.nrows(), factor.ncols(), |i, j| of(factor[(i, j)].to_f64() * d[j]));
                    product = times(factor.as_ref(), product.as_ref());
                }
                product
            };
            let plain = Chain::new(&views).expect("factors fit");
            assert_is(&plain, product(|x| x, false).as_ref(), product(f64::abs, false).as_ref());
            let mut sloped = plain.clone();
            for l in 1..views.len() {
                let slopes: Vec<T> = slopes(l).into_iter().map(T::from_f64).collect();
                sloped = sloped.with_slopes(l, &slopes).expect("slopes fit");
            }
            assert_is(&sloped, product(|x| x, true).as_ref(), product(f64::abs, true).as_ref());
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn masks_are_slopes_of_zero_and_one() {
    let factors = factors::<f32>(&[7, 70, 3], 4);
    let views: Vec<_> = factors.iter().map(|f| f.as_ref()).collect();
    let mask = [0x5a3c_99f0_0123_4567, u64::MAX << 3];
    let slopes: Vec<f32> = (0..70).map(|j| if mask[j / 64] >> (j % 64) & 1 == 1 { 1.0 } else { 0.0 }).collect();
    let (masked, sloped) =
        (Chain::new(&views).unwrap().with_mask(1, &mask).unwrap(), Chain::new(&views).unwrap().with_slopes(1, &slopes).unwrap());
    assert_eq!(materialised(&masked).0, materialised(&sloped).0);
    let all = Chain::new(&views).unwrap().with_mask(1, &[0, 0]).unwrap();
    assert_eq!(all.bracket().unwrap().proof, Proof::Zero);
    let is_parameter = |e: Error| matches!(e, Error::Parameter { argument: "layer", .. });
    assert!([0, 2, 9].into_iter().all(|layer| is_parameter(masked.clone().with_mask(layer, &mask).unwrap_err())));
    assert_eq!(masked.clone().with_mask(1, &mask[..1]).unwrap_err(), Error::Length { argument: "mask", found: 1, expected: 2 });
    assert!(matches!(masked.with_slopes(1, &[f32::NAN; 70]), Err(Error::Parameter { argument: "slopes", .. })));
}

/// The bound of the chain of sizes holds for every choice of slopes from −1 to 1.
#[test]
fn sizes_bound_every_mask() {
    let factors: Vec<Mat<f64>> = [(6, 5, 1), (6, 6, 2), (4, 6, 3)].map(|(m, n, seed)| uniform(m, n, [-1.0, 1.0], seed)).into();
    let views: Vec<_> = factors.iter().map(|f| f.as_ref()).collect();
    let plain = Chain::new(&views).unwrap();
    let bound = collatz(&plain, 40).unwrap().upper;
    let product = plain.bracket().unwrap().upper;
    let mut most: f64 = 0.0;
    for mask in 0..1u64 << 12 {
        let chain = plain.clone().with_mask(1, &[mask & 63]).unwrap().with_mask(2, &[mask >> 6]).unwrap();
        most = most.max(materialised(&chain).0.norm_l2());
    }
    let exact = |mask: u64| materialised(&plain.clone().with_mask(1, &[mask]).unwrap()).0.singular_values().unwrap()[0];
    assert!((0..64).all(|mask| exact(mask) <= bound && exact(mask) <= product), "{bound} {product} {most}");
    // Without negative factors it is the norm.
    let factors: Vec<Mat<f64>> = factors.iter().map(|f| Mat::from_fn(f.nrows(), f.ncols(), |i, j| f[(i, j)].abs())).collect();
    let views: Vec<_> = factors.iter().map(|f| f.as_ref()).collect();
    let chain = Chain::new(&views).unwrap();
    let (norm, bound) = (materialised(&chain).0.singular_values().unwrap()[0], collatz(&chain, 60).unwrap().upper);
    assert!(norm <= bound * (1.0 + 1e-14) && bound <= norm * (1.0 + 1e-9), "{norm} {bound}");
}

/// On numbers that round, images and blocks are within the errors that they tell; these are small against the norm.
#[test]
fn errors_of_images_and_blocks_are_bounded() {
    fn check<T: Real>(operator: &dyn Operator<T>, exact: impl Fn(&[f64]) -> Vec<f64>, what: &str) {
        let (m, n) = operator.shape();
        let (matrix, error) = materialised(operator);
        let norm = matrix.norm_l2();
        assert!(error <= 1e-12 * norm, "{what}: {error} for {norm}");
        let x = values(uniform::<f64>(1, n, [-1.0, 1.0], 3).as_ref());
        let mut y = vec![0.0; m];
        let bound = operator.image(&x, &mut y);
        let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let off: Vec<f64> = y.iter().zip(exact(&x)).map(|(y, e)| y - e).collect();
        assert!(length(&off) <= 2.0 * bound && bound <= 1e-12 * norm * length(&x), "{what}: {} {bound}", length(&off));
        // The elements times the vector, by another order of summation.
        let image = times(matrix.as_ref(), MatRef::from_column_major_slice(&x, n, 1));
        let off: Vec<f64> = y.iter().zip(image.col(0).iter()).map(|(y, e)| y - e).collect();
        let rounding = n as f64 * f64::EPSILON * matrix.norm_l2() * length(&x);
        assert!(length(&off) <= bound + error * length(&x) + rounding, "{what}: {} {bound}", length(&off));
    }
    // Chains of numbers on a coarse grid, whose products are exact in 128-bit integers.
    let grid = |m, n, seed| -> Mat<f64> {
        let matrix = uniform::<f64>(m, n, [-1e6, 1e6], seed);
        Mat::from_fn(m, n, |i, j| matrix[(i, j)].round())
    };
    let factors = [grid(30, 20, 1), grid(25, 30, 2), grid(10, 25, 3)];
    let views: Vec<_> = factors.iter().map(|f| f.as_ref()).collect();
    for some in 1..=3 {
        let exact = |x: &[f64]| {
            // 2⁵³x is whole; all sums stay below 2¹²⁷.
            let mut state: Vec<i128> = x.iter().map(|x| (x * (1u64 << 53) as f64) as i128).collect();
            for factor in &factors[..some] {
                let row = |i: usize| (0..factor.ncols()).map(|j| factor[(i, j)] as i128 * state[j]).sum();
                state = (0..factor.nrows()).map(row).collect();
            }
            state.iter().map(|&x| x as f64 / (1u64 << 53) as f64).collect()
        };
        check(&Chain::new(&views[..some]).unwrap(), exact, "a chain");
    }
    let g =
        Geometry { channels_out: 9, channels_in: 8, kernel: [3, 3], image: [7, 6], stride: [1, 1], padding: Padding::Circular };
    let weights: Vec<f64> = values(grid(9, 72, 4).as_ref());
    let elements = naive(&weights, &g);
    let exact = |x: &[f64]| -> Vec<f64> {
        let x: Vec<i128> = x.iter().map(|x| (x * (1u64 << 53) as f64) as i128).collect();
        let row = |i: usize| (0..elements.ncols()).map(|j| elements[(i, j)] as i128 * x[j]).sum::<i128>();
        (0..elements.nrows()).map(|i| row(i) as f64 / (1u64 << 53) as f64).collect()
    };
    check(&Convolution::new(&weights, g).unwrap(), exact, "a convolution");
}

/// A certificate of the product of a classifier's layers, from its few outputs.
#[test]
fn deterministic_enclosure_of_a_chain() {
    let factors: Vec<Mat<f32>> =
        [(60, 90, 1), (50, 60, 2), (10, 50, 3)].map(|(m, n, seed)| uniform(m, n, [-0.2, 0.2], seed)).into();
    let views: Vec<_> = factors.iter().map(|f| f.as_ref()).collect();
    let chain = Chain::new(&views).unwrap().with_mask(1, &[0x0f0f_3355_aaaa_ffff]).unwrap();
    let found = enclose(&chain, &Search { gap: 1e-8, ..Search::new() }, &runtime()).unwrap().enclosure;
    let (matrix, error) = materialised(&chain);
    let norm = matrix.singular_values().unwrap()[0];
    let slack = error + 1e-13 * norm;
    assert!(found.lower <= norm + slack && norm <= found.upper + slack && found.gap() <= 1e-8, "{found:?} for {norm}");
    assert!(matches!(found.proof, Proof::Cholesky { .. }), "{found:?}");
}

#[test]
fn the_same_bits_everywhere() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    let g = Geometry {
        channels_out: 24,
        channels_in: 20,
        kernel: [3, 3],
        image: [13, 11],
        stride: [1, 2],
        padding: Padding::Zeros([1, 1]),
    };
    let weights: Vec<f32> = values(uniform::<f32>(24, 180, [-1.0, 1.0], 1).as_ref()).into_iter().map(|x| x as f32).collect();
    let convolution = Convolution::new(&weights, g).unwrap();
    let factors: Vec<Mat<f32>> =
        [(300, 200, 1), (260, 300, 2), (150, 260, 3)].map(|(m, n, seed)| uniform(m, n, [-1.0, 1.0], seed)).into();
    let views: Vec<_> = factors.iter().map(|f| f.as_ref()).collect();
    let slopes: Vec<f32> = (0..300).map(|j| [0.0, 1.0, 0.3][j % 3]).collect();
    let chain = Chain::new(&views).unwrap().with_slopes(1, &slopes).unwrap();
    let mut first = None;
    for isa in Isa::available() {
        for threads in [1, 2, 5] {
            let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
            let runtime = Runtime::new(isa, par);
            let found = pool(threads).install(|| {
                let mut bits: Vec<u64> = vec![];
                for operator in [&convolution as &dyn Operator<f32>, &chain] {
                    let (m, n) = operator.shape();
                    for p in [1, 40] {
                        for (width, transposed) in [(n, false), (m, true)] {
                            let x = uniform::<f32>(p, width, [-1.0, 1.0], 8);
                            let [a, b] = applied(operator, x.as_ref(), transposed, &runtime);
                            assert_eq!(a, b);
                            bits.extend(values(a.as_ref()).iter().map(|x| x.to_bits()));
                            if p == 40 {
                                // A sample has the same bits alone.
                                let [alone, _] = applied(operator, x.as_ref().subrows(7, 1), transposed, &runtime);
                                assert_eq!(alone.as_ref(), a.as_ref().subrows(7, 1));
                            }
                        }
                    }
                }
                let search = Search { gap: 1e-3, certainty: Certainty::Deterministic, max_steps: 12, ..Search::new() };
                let e = frequencies(&convolution, &search, &runtime).unwrap();
                bits.extend([e.enclosure.lower, e.enclosure.upper].map(f64::to_bits));
                bits.extend(e.witness.iter().map(|x| x.to_bits()));
                bits
            });
            assert!(first.get_or_insert_with(|| found.clone()) == &found, "other bits on {isa} with {threads} threads");
        }
    }
}
