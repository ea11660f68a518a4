//! Problems from seeds, and views of results, for the integration tests.
#![allow(dead_code, unreachable_pub, reason = "every test file is a crate of its own and uses a part of this one")]

use dualprop::network::{Damping, Init, Method, Network, Schedule, Trainer};
use dualprop::random::Counter;
use dualprop::{Activation, Isa, Mat, MatRef, Par, Real, Runtime};

/// The best instruction set, one thread.
pub fn runtime() -> Runtime {
    Runtime::new(Isa::best(), Par::Seq)
}

/// A matrix with entries uniform in `[low, high)`, rounded to `T`; column-major, as faer has it.
pub fn uniform<T: Real>(rows: usize, cols: usize, [low, high]: [f64; 2], seed: u64) -> Mat<T> {
    let mut random = Counter::new(seed, 0);
    Mat::from_fn(rows, cols, |_, _| T::from_f64(low + (high - low) * random.uniform()))
}

/// Classes drawn uniformly.
pub fn labels(samples: usize, classes: usize, seed: u64) -> Vec<u32> {
    let mut random = Counter::new(seed, 1);
    (0..samples).map(|_| random.below(classes as u64) as u32).collect()
}

/// LeCun weights and, if there are any, biases uniform in `[−½, ½)`.
pub fn network<T: Real>(widths: &[usize], activation: Activation, bias: bool, seed: u64) -> Network<T> {
    let mut network = Network::new(widths, activation, bias).expect("sound widths");
    network.initialize(Init::LecunNormal, seed);
    let mut random = Counter::new(seed, 2);
    for k in 0..network.layers() {
        for b in network.bias_mut(k).into_iter().flatten() {
            *b = T::from_f64(random.uniform() - 0.5);
        }
    }
    network
}

/// Entries in row order, exactly.
pub fn values<T: Real>(matrix: MatRef<'_, T>) -> Vec<f64> {
    (0..matrix.nrows()).flat_map(|i| (0..matrix.ncols()).map(move |j| matrix[(i, j)].to_f64())).collect()
}

/// All weights and biases, and the feedback weights of KP-DP, as bit patterns.
pub fn bits<T: Real>(trainer: &Trainer<T>) -> Vec<u64> {
    let mut bits = Vec::new();
    for k in 0..trainer.network().layers() {
        for matrix in [Some(trainer.network().weights(k)), trainer.feedback(k)].into_iter().flatten() {
            bits.extend((0..matrix.nrows()).flat_map(|i| (0..matrix.ncols()).map(move |j| matrix[(i, j)].to_bits())));
        }
        bits.extend(trainer.network().bias(k).into_iter().flatten().map(|b| b.to_bits()));
    }
    bits
}

/// Every method, those with an `α` at this one.
pub fn methods(alpha: f64, beta: f64) -> [Method; 9] {
    [
        Method::Backprop,
        Method::Adversarial { beta },
        Method::Dp { alpha, beta },
        Method::DpTranspose { alpha, beta },
        Method::DpDamped { alpha, beta, damping: Damping::Scaled },
        Method::DpDamped { alpha, beta, damping: Damping::Plain },
        Method::DpOld { alpha, beta },
        Method::DpGain { gain: beta },
        Method::KpDp { alpha, beta },
    ]
}

/// Every schedule, long enough for feedback to reach the first of five layers (with luck, in the random one).
pub const SCHEDULES: [Schedule; 12] = [
    Schedule::Rounds(0),
    Schedule::Rounds(1),
    Schedule::Rounds(5),
    Schedule::Forward(6),
    Schedule::Backward,
    Schedule::ForwardBackward(2),
    Schedule::OddEven(4),
    Schedule::EvenOdd(4),
    Schedule::Parallel(9),
    Schedule::Random(24),
    Schedule::Corrupted(2),
    Schedule::Multistep(3),
];
