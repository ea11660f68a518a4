//! Lipschitz constants of networks against explicit Jacobians, all patterns of tiny networks, and certified norms along a training.

mod common;

use common::{labels, network, runtime, uniform};
use dualprop::lipschitz::{Dense, Kinks, Proof, Search, Tracker, Tracking, enclose, global, local, stretch};
use dualprop::network::{Damping, Init, Method, Network, Settings, Targets, Trainer};
use dualprop::{Activation, Error, Isa, Mat, MatRef, Par, Real, Runtime, Workspace};

fn wide<T: Real>(matrix: MatRef<'_, T>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)].to_f64())
}

fn norm(matrix: &Mat<f64>) -> f64 {
    matrix.singular_values().expect("a finite matrix has them")[0]
}

/// What a decomposition in f64 may miss of norms of this size.
fn slack(size: f64) -> f64 {
    1000.0 * f64::EPSILON * size
}

/// `W_L D ⋯ D W_0` with the slopes of each hidden layer.
fn jacobian<T: Real>(network: &Network<T>, slopes: impl Fn(usize, usize) -> f64) -> Mat<f64> {
    let mut product = wide(network.weights(0));
    for k in 1..network.layers() {
        product = Mat::from_fn(product.nrows(), product.ncols(), |i, j| slopes(k - 1, i) * product[(i, j)]);
        product = wide(network.weights(k)) * product;
    }
    product
}

/// Slopes of all hidden layers at a sample, in f64, and the smallest distance of a drive from 0.
fn slopes<T: Real>(network: &Network<T>, x: &[f64]) -> (Vec<Vec<f64>>, f64) {
    let (mut state, mut slopes, mut nearest) = (x.to_vec(), vec![], f64::INFINITY);
    for k in 0..network.layers() - 1 {
        let weights = network.weights(k);
        let drive: Vec<f64> = (0..weights.nrows())
            .map(|i| {
                let bias = network.bias(k).map_or(0.0, |bias| bias[i].to_f64());
                bias + weights.row(i).iter().zip(&state).map(|(w, x)| w.to_f64() * x).sum::<f64>()
            })
            .collect();
        nearest = drive.iter().fold(nearest, |m, a| m.min(a.abs()));
        let map = |derivative: bool| {
            let mut out = vec![0.0; drive.len()];
            let activation = network.activation();
            let done = if derivative {
                activation.derivatives(Isa::best(), &mut out, &drive)
            } else {
                activation.values(Isa::best(), &mut out, &drive)
            };
            done.expect("one length");
            out
        };
        slopes.push(map(true));
        state = map(false);
    }
    (slopes, nearest)
}

fn check_local<T: Real>(widths: &[usize], activation: Activation, gap: f64) {
    const SAMPLES: usize = 300;
    let network = network::<T>(widths, activation, true, 3);
    let x = uniform::<T>(SAMPLES, widths[0], [-1.0, 1.0], 4);
    let found = local(&network, x.as_ref(), Kinks::Smaller, gap, &runtime()).expect("sound arguments");
    assert_eq!(found.len(), SAMPLES);
    let mut compared = 0;
    for (i, found) in found.iter().enumerate() {
        assert!(found.gap() <= gap, "{widths:?} {activation} {found:?}");
        let sample: Vec<f64> = x.row(i).iter().map(|x| x.to_f64()).collect();
        let (slopes, nearest) = slopes(&network, &sample);
        // Closer to a kink than that, drives of both precisions may lie on different sides of it.
        if T::NAME == "f32" && nearest < 1e-4 {
            continue;
        }
        compared += 1;
        let exact = norm(&jacobian(&network, |k, i| slopes[k][i]));
        let size: f64 = (0..network.layers()).map(|k| wide(network.weights(k)).norm_l2()).product();
        let slack = slack(size);
        assert!(found.lower <= exact + slack && exact <= found.upper + slack, "{widths:?} {activation} {found:?} {exact}");
    }
    assert!(compared > SAMPLES / 4, "{compared} samples compared");
}

#[test]
fn local_constants_are_those_of_explicit_jacobians() {
    for activation in Activation::ALL.iter().copied() {
        for widths in [&[20, 12, 9, 4][..], &[5, 12, 9, 4], &[12, 30, 1], &[9, 7], &[30, 8, 8, 8, 3]] {
            check_local::<f64>(widths, activation, 1e-6);
        }
    }
    // The slopes of smooth activations differ between precisions; these are constant beside their kinks.
    for activation in [Activation::Relu, Activation::Identity] {
        for widths in [&[20, 12, 9, 4][..], &[5, 12, 9, 4], &[9, 7]] {
            check_local::<f32>(widths, activation, 1e-3);
            check_local::<f32>(widths, activation, 0.1);
            // Nothing that f32 alone can reach.
            check_local::<f32>(widths, activation, 1e-6);
        }
    }
}

/// `W_0W_0ᵀ` has no Cholesky factor, or hardly one.
#[test]
fn local_constants_of_singular_first_weights() {
    let mut network = network::<f32>(&[20, 12, 9, 4], Activation::Identity, true, 3);
    let x = uniform::<f32>(2, 20, [-1.0, 1.0], 4);
    let mut rows: Vec<Vec<f32>> = (0..12).map(|i| network.weights(0).row(i).iter().copied().collect()).collect();
    rows[5] = rows[2].clone();
    for near in [1e-6, 0.0] {
        rows[7] = rows[2].iter().map(|w| near * w).collect();
        let mut weights = network.weights_mut(0);
        for (i, row) in rows.iter().enumerate() {
            (0..20).for_each(|j| weights[(i, j)] = row[j]);
        }
        let exact = norm(&jacobian(&network, |_, _| 1.0));
        for gap in [1e-3, 1e-7] {
            for found in local(&network, x.as_ref(), Kinks::Smaller, gap, &runtime()).expect("sound arguments") {
                assert!(found.lower <= exact + slack(10.0) && exact <= found.upper + slack(10.0), "{found:?} {exact}");
                assert!(found.gap() <= gap, "{found:?}");
            }
        }
    }
}

#[test]
fn both_slopes_at_kinks() {
    let network = network::<f64>(&[6, 5, 4, 3], Activation::Relu, false, 1);
    let zeros = Mat::<f64>::zeros(2, 6);
    let constants = |kinks| local(&network, zeros.as_ref(), kinks, 1e-6, &runtime()).expect("sound arguments");
    for found in constants(Kinks::Smaller) {
        assert_eq!((found.lower, found.upper), (0.0, 0.0));
    }
    let exact = norm(&jacobian(&network, |_, _| 1.0));
    for found in constants(Kinks::Both) {
        assert!(found.lower <= exact + slack(10.0) && exact <= found.upper + slack(10.0), "{found:?} {exact}");
    }
}

/// Samples that fall into groups, some of them where all units are dead: what products begin with must not be seen, not even in a zero.
#[test]
fn local_constants_of_samples_that_are_alike() {
    const SAMPLES: usize = 400;
    let mut network = network::<f32>(&[20, 40, 30, 4], Activation::Relu, true, 3);
    for k in 0..2 {
        network.bias_mut(k).expect("it has one").fill(-0.5);
    }
    let (centres, noise) = (uniform::<f32>(5, 20, [-2.0, 2.0], 4), uniform::<f32>(SAMPLES, 20, [-0.1, 0.1], 5));
    let x = Mat::from_fn(SAMPLES, 20, |i, j| if i % 6 == 5 { 0.0 } else { centres[(i % 6, j)] + noise[(i, j)] });
    let (mut zeros, mut compared) = (0, 0);
    for gap in [1e-3, 1e-8] {
        let found = local(&network, x.as_ref(), Kinks::Smaller, gap, &runtime()).expect("sound arguments");
        for (i, found) in found.iter().enumerate() {
            let sample: Vec<f64> = x.row(i).iter().map(|&x| f64::from(x)).collect();
            let (slopes, nearest) = slopes(&network, &sample);
            if nearest < 1e-4 {
                continue;
            }
            let exact = norm(&jacobian(&network, |k, i| slopes[k][i]));
            let slack = slack(10.0);
            assert!(found.lower <= exact + slack && exact <= found.upper + slack, "{found:?} {exact}");
            assert!(found.gap() <= gap, "{found:?}");
            compared += 1;
            if slopes[1].iter().all(|&d| d == 0.0) {
                assert_eq!((found.lower, found.upper, found.proof), (0.0, 0.0, Proof::Zero));
                zeros += 1;
            }
        }
    }
    assert!(zeros >= SAMPLES / 6 && compared > SAMPLES, "{zeros} zeros, {compared} samples compared");
}

/// One of seven units can be active, slopes of 1 and of other sizes; at every third sample more of them.
#[test]
fn local_constants_where_few_units_are_active() {
    fn check<T: Real>(activation: Activation, off: f64, far: f64, gap: f64) {
        const SAMPLES: usize = 300;
        let mut network = network::<T>(&[60, 50, 40, 10], activation, true, 3);
        for k in 0..2 {
            let biases = network.bias_mut(k).expect("it has one").iter_mut().enumerate();
            biases.filter(|(unit, _)| unit % 7 != 0).for_each(|(_, bias)| *bias = T::from_f64(off));
        }
        let mut x = uniform::<T>(SAMPLES, 60, [-1.0, 1.0], 4);
        for i in (0..SAMPLES).step_by(3) {
            (0..60).for_each(|j| x[(i, j)] = x[(i, j)] * T::from_f64(far));
        }
        let found = local(&network, x.as_ref(), Kinks::Smaller, gap, &runtime()).expect("sound arguments");
        let mut compared = 0;
        for (i, found) in found.iter().enumerate() {
            let sample: Vec<f64> = x.row(i).iter().map(|x| x.to_f64()).collect();
            let (slopes, nearest) = slopes(&network, &sample);
            if T::NAME == "f32" && nearest < 1e-3 {
                continue;
            }
            compared += 1;
            let exact = norm(&jacobian(&network, |k, i| slopes[k][i]));
            let slack = slack(10.0);
            assert!(found.lower <= exact + slack && exact <= found.upper + slack, "{activation} {found:?} {exact}");
            assert!(found.gap() <= gap, "{activation} {found:?}");
        }
        assert!(compared > SAMPLES / 2, "{compared} samples compared");
    }
    for gap in [1e-3, 1e-9] {
        check::<f32>(Activation::Relu, -100.0, 200.0, gap);
        check::<f64>(Activation::Relu, -100.0, 200.0, gap);
        check::<f64>(Activation::HardSigmoid, -100.0, 200.0, gap);
    }
    check::<f64>(Activation::Tanh, 40.0, 1.0, 1e-6);
}

/// The largest norm over all patterns of active units.
fn exhaustive<T: Real>(network: &Network<T>) -> f64 {
    let hidden = &network.widths()[1..network.layers()];
    let units: usize = hidden.iter().sum();
    let first = |k: usize| hidden[..k].iter().sum::<usize>();
    (0u32..1 << units).map(|mask| norm(&jacobian(network, |k, i| f64::from(mask >> (first(k) + i) & 1)))).fold(0.0, f64::max)
}

fn check_global<T: Real>(widths: &[usize], seed: u64) {
    let network = network::<T>(widths, Activation::Relu, true, seed);
    let samples = uniform::<T>(50, widths[0], [-2.0, 2.0], seed);
    let found = global(&network, samples.as_ref(), &Search::default(), &runtime()).expect("a sound network");
    let (most, slack) = (exhaustive(&network), 1e-9);
    assert!(found.enclosure.lower <= most * (1.0 + slack), "{found:?} {most}");
    for upper in [found.enclosure.upper, found.product, found.eclipse, found.absolute] {
        assert!(upper >= most * (1.0 - slack), "{found:?} {most}");
    }
    assert!(found.eclipse <= found.product * (1.0 + 1e-6), "{found:?}");
    let (_, best) = found.local.expect("there are samples");
    // Where all units are dead there is nothing to find.
    if let Some(pair) = &found.pair {
        assert_eq!(stretch(&network, &pair.a, &pair.b, &runtime()), Ok(found.enclosure.lower));
    }
    // A pair within one linear piece reaches what the Jacobian there has.
    assert!(found.enclosure.lower >= 0.99 * best.lower, "{} {best:?}", found.enclosure.lower);
    let proxy = norm(&jacobian(&network, |_, _| 1.0));
    assert!(
        found.proxy.lower <= proxy * (1.0 + slack) && proxy <= found.proxy.upper * (1.0 + slack),
        "{:?} {proxy}",
        found.proxy
    );
}

#[test]
fn tiny_networks_against_all_patterns() {
    for seed in 0..4 {
        check_global::<f64>(&[3, 5, 4, 2], seed);
        check_global::<f32>(&[3, 5, 4, 2], seed);
        check_global::<f64>(&[4, 3, 3, 3, 2], seed);
        check_global::<f32>(&[2, 6, 1], seed);
    }
}

#[test]
fn wide_networks_and_other_activations() {
    for activation in Activation::ALL.iter().copied() {
        let network = network::<f32>(&[40, 60, 50, 10], activation, true, 5);
        let samples = uniform::<f32>(30, 40, [-1.0, 1.0], 6);
        let found = global(&network, samples.as_ref(), &Search::default(), &runtime()).expect("a sound network");
        assert!(found.enclosure.lower > 0.0 && found.enclosure.lower <= found.enclosure.upper, "{activation} {found:?}");
        assert!(found.eclipse <= found.product * (1.0 + 1e-6), "{activation} {found:?}");
        // Two layers of random weights leave something to gain.
        if activation != Activation::Identity {
            assert!(found.eclipse < 0.95 * found.product, "{activation} {found:?}");
        }
    }
}

#[test]
fn degenerate_networks() {
    let zero = Network::<f32>::new(&[3, 4, 2], Activation::Relu, true).expect("sound widths");
    let found = global(&zero, Mat::zeros(0, 3).as_ref(), &Search::default(), &runtime()).expect("a sound network");
    assert_eq!((found.enclosure.lower, found.enclosure.upper), (0.0, 0.0));
    assert!(local(&zero, Mat::zeros(0, 3).as_ref(), Kinks::Smaller, 0.1, &runtime()).expect("no samples").is_empty());
    let found = local(&zero, Mat::zeros(1, 3).as_ref(), Kinks::Both, 0.1, &runtime()).expect("one sample");
    assert_eq!((found[0].lower, found[0].upper), (0.0, 0.0));
    let wrong = local(&zero, Mat::zeros(1, 4).as_ref(), Kinks::Smaller, 0.1, &runtime());
    assert_eq!(wrong, Err(Error::Shape { argument: "x", found: (1, 4), expected: (1, 3) }));
    assert!(matches!(stretch(&zero, &[0.0; 3], &[f64::NAN; 3], &runtime()), Err(Error::NotFinite { argument: "b", .. })));
    assert_eq!(stretch(&zero, &[0.0; 3], &[1.0; 3], &runtime()), Ok(0.0));
}

/// Trains for some steps and calls `see` after each.
fn train<T: Real>(
    method: Method,
    tracking: Tracking,
    runtime: &Runtime,
    rate: f64,
    steps: u64,
    mut see: impl FnMut(&mut Trainer<T>),
) {
    let mut network = Network::<T>::new(&[30, 40, 24, 10], Activation::Relu, true).expect("sound widths");
    network.initialize(Init::LecunNormal, 1);
    let settings = Settings { norms: Some(tracking), ..Settings::new(method) };
    let mut trainer = Trainer::new(network, &settings, 20, runtime).expect("sound settings");
    for i in 0..steps {
        let (x, y) = (uniform::<T>(20, 30, [0.0, 1.0], i), labels(20, 10, i));
        trainer.step(x.as_ref(), Targets::Classes(&y), rate).expect("a sound step");
        see(&mut trainer);
    }
}

#[test]
fn tracked_norms_enclose_certified_ones_along_a_training() {
    for (rate, tracking) in [(1e-3, Tracking::new()), (1e-5, Tracking { gap: 0.01, starts: 1, ..Tracking::new() })] {
        let mut products = 0;
        train::<f32>(Method::DpTranspose { alpha: 0.5, beta: 0.5 }, tracking, &runtime(), rate, 100, |trainer| {
            let found = trainer.norms().to_vec();
            assert_eq!(found.len(), 3);
            for (k, found) in found.iter().enumerate() {
                let weights = Dense::new(trainer.network().weights(k));
                let certified = enclose(&weights, &Search::default(), &runtime()).expect("finite weights").enclosure;
                assert!(found.lower <= certified.upper && certified.lower <= found.upper, "{k} {found:?} {certified:?}");
                assert!(found.gap() <= tracking.gap, "{k} {found:?}");
                products += found.products;
            }
            // Nothing is computed twice.
            assert_eq!(trainer.norms(), &found[..]);
        });
        // Small steps are followed by drift alone most of the time: two sweeps a call are its least.
        if rate == 1e-5 {
            assert!(products < 100 * 3 * 4, "{products}");
        }
    }
}

#[test]
fn a_tracker_survives_jumps_and_zeros() {
    let mut work = Workspace::new(&runtime());
    let mut tracker = Tracker::<f32>::new(12, 9, &Tracking::new()).expect("sound settings");
    let mut tall = Tracker::<f32>::new(24, 9, &Tracking::new()).expect("sound settings");
    for (i, size) in [1.0, 1.001, 100.0, 0.0, 1e-3, 1.0].into_iter().enumerate() {
        for (rows, tracker) in [(12, &mut tracker), (24, &mut tall)] {
            let matrix = uniform::<f32>(rows, 9, [-size, size], 3);
            let found = tracker.update(matrix.as_ref(), &mut work).expect("the shape it was made for");
            let exact = norm(&wide(matrix.as_ref()));
            assert!(found.lower <= exact && exact <= found.upper && found.gap() <= 0.05, "{i} {found:?} {exact}");
        }
    }
    assert!(matches!(tracker.update(Mat::zeros(9, 12).as_ref(), &mut work), Err(Error::Shape { .. })));
    assert!(matches!(Tracker::<f32>::new(2, 2, &Tracking { delta: 0.0, ..Tracking::new() }), Err(Error::Parameter { .. })));
}

/// `size·ab̄ᵀ + noise` with unit vectors `a` and `b̄ ∝ b + turn·c`.
fn spiked(size: f64, turn: f64, noise: f64) -> Mat<f32> {
    const SHAPE: (usize, usize) = (60, 40);
    let unit = |n: usize, seed: u64| wide(uniform::<f64>(n, 1, [-1.0, 1.0], seed).as_ref());
    let (a, b, c, rest) =
        (unit(SHAPE.0, 1), unit(SHAPE.1, 2), unit(SHAPE.1, 3), uniform::<f64>(SHAPE.0, SHAPE.1, [-1.0, 1.0], 4));
    let b = Mat::from_fn(SHAPE.1, 1, |j, _| b[(j, 0)] + turn * c[(j, 0)]);
    let (size, noise) = (size / (a.norm_l2() * b.norm_l2()), noise / norm(&rest));
    Mat::from_fn(SHAPE.0, SHAPE.1, |i, j| (size * a[(i, 0)] * b[(j, 0)] + noise * rest[(i, j)]) as f32)
}

/// Steps that are much longer together than the gap, along the first singular vector, across it and beside it: as long as nothing beside it can have
/// become as long, one certificate serves all of them; and what then does is found.
#[test]
fn a_certificate_serves_while_the_first_singular_value_is_apart() {
    let mut work = Workspace::new(&runtime());
    let mut tracker = Tracker::<f32>::new(60, 40, &Tracking::new()).expect("sound settings");
    let mut follow = |matrix: Mat<f32>| {
        let found = tracker.update(matrix.as_ref(), &mut work).expect("the shape it was made for");
        let exact = norm(&wide(matrix.as_ref()));
        assert!(found.lower <= exact && exact <= found.upper && found.gap() <= 0.05, "{found:?} {exact}");
        tracker.certificates()
    };
    // The second certificate begins with a vector that is known.
    follow(spiked(4.0, 0.0, 1.0));
    let before = follow(spiked(8.0, 0.0, 1.0));
    for i in 1..=20 {
        let t = f64::from(i) / 20.0;
        assert_eq!(follow(spiked(8.0 + 2.0 * t, 0.0, 1.0)), before, "along it, {t}");
    }
    for i in 1..=20 {
        let t = f64::from(i) / 20.0;
        assert_eq!(follow(spiked(10.0, 0.1 * t, 1.0 - 0.5 * t)), before, "across and beside it, {t}");
    }
    assert!(follow(spiked(10.0, 0.1, 30.0)) > before);
    assert!(follow(spiked(0.1, 0.1, 3.0)) > before);
}

#[test]
fn few_rows_are_proven() {
    let mut work = Workspace::new(&runtime());
    for (rows, cols) in [(1, 1), (1, 50), (10, 3), (16, 300)] {
        let mut tracker = Tracker::<f32>::new(rows, cols, &Tracking::new()).expect("sound settings");
        let matrix = uniform::<f32>(rows, cols, [-1.0, 1.0], 1);
        let found = tracker.update(matrix.as_ref(), &mut work).expect("the shape it was made for");
        let exact = norm(&wide(matrix.as_ref()));
        assert!(!matches!(found.proof, Proof::Probabilistic { .. } | Proof::Drift { .. }), "{found:?}");
        assert!(found.lower <= exact * (1.0 + 1e-14) && exact <= found.upper && found.gap() <= 0.05, "{found:?} {exact}");
        assert_eq!(tracker.certificates(), 0);
    }
}

#[test]
fn the_same_bits_everywhere() {
    let network = network::<f32>(&[40, 50, 30, 10], Activation::Relu, true, 5);
    let samples = uniform::<f32>(300, 40, [-1.0, 1.0], 6);
    // Some of its samples leave few units active.
    let mut shifted = common::network::<f32>(&[40, 30, 30, 10], Activation::Relu, true, 5);
    (0..2).for_each(|k| shifted.bias_mut(k).expect("it has one").fill(-0.6));
    let all = |runtime: &Runtime| {
        let search = Search::default();
        let mut tracked = vec![];
        let method = Method::DpDamped { alpha: 0.25, beta: 0.25, damping: Damping::Plain };
        train::<f32>(method, Tracking::new(), runtime, 1e-3, 5, |trainer| tracked.extend_from_slice(trainer.norms()));
        (
            local(&network, samples.as_ref(), Kinks::Smaller, 1e-3, runtime).expect("sound arguments"),
            local(&network, samples.as_ref(), Kinks::Smaller, 0.1, runtime).expect("sound arguments"),
            local(&shifted, samples.as_ref(), Kinks::Smaller, 1e-3, runtime).expect("sound arguments"),
            global(&network, samples.as_ref(), &search, runtime).expect("sound arguments"),
            tracked,
        )
    };
    let expected = all(&runtime());
    for isa in Isa::available() {
        for par in [Par::Seq, Par::rayon(2)] {
            assert!(all(&Runtime::new(isa, par)) == expected, "{isa} {par:?}");
        }
    }
}
