//! Lipschitz constants of networks: local ones for a batch, and norms that are tracked along a training.
//!
//! In the rows of training the weights move on from call to call, as they do in a training.
//!
//! Local constants are taken twice: of an untrained network at uniform inputs, and, where Fashion-MNIST is found, of one that was trained on it at all
//! its test pictures. With `LOCAL=directory` weights, inputs, bounds and our seconds of both are left in its folders `untrained` and `trained`, as raw
//! numbers, for `python benches/peers/local.py directory/trained`: it times the same as PyTorch users compute it, and compares.

mod common;
#[expect(dead_code, reason = "shared with the examples, which use the rest")]
#[path = "../examples/common/data.rs"]
mod data;

use std::cell::LazyCell;
use std::path::Path;
use std::time::Instant;
use std::{fs, io};

use common::{Bench, By, RowMajor, Work};
use dualprop::lipschitz::{Enclosure, Kinks, Tracker, Tracking, local};
use dualprop::network::{Damping, Init, Method, Network, Schedule, Settings, Targets, Trainer};
use dualprop::random::Counter;
use dualprop::{Activation, MatRef, Par, Runtime, Workspace};

use data::Dataset;

const WIDTHS: [usize; 4] = [784, 512, 512, 10];
const SAMPLES: usize = 10_000;
/// Rows of a training step.
const BATCH: usize = 50;
const EPOCHS: u64 = 5;

fn main() {
    let mut bench = Bench::new();
    let runtime = Runtime::new(bench.isa, Par::Seq);
    let mut network = Network::<f32>::new(&WIDTHS, Activation::Relu, true).expect("sound widths");
    network.initialize(Init::LecunNormal, 1);
    let x = LazyCell::new(|| RowMajor::<f32>::uniform(SAMPLES, WIDTHS[0], 1.0, 2));
    constants(&mut bench, "untrained", "uniform inputs", || (network.clone(), x.view()), &runtime);
    if let Ok(data) = Dataset::fashion_mnist() {
        let trained = LazyCell::new(|| trained(&network, &data, &runtime));
        let test = MatRef::from_row_major_slice(&data.x_test, data.y_test.len(), data.features);
        let what = format!("Fashion-MNIST after {EPOCHS} epochs");
        constants(&mut bench, "trained", &what, || (trained.clone(), test), &runtime);
    }
    norms(&mut bench, &network, &runtime);
    training(&mut bench, &network, &runtime);
    bench.finish();
}

/// The network after some epochs by the settings of Høier & Zach 2024, section 6.1: DP⊤ with α = β = ½, Adam at 1e-3, the first 50,000 rows in batches
/// of 50 in an order that is drawn anew each epoch.
fn trained(network: &Network<f32>, data: &Dataset<f32>, runtime: &Runtime) -> Network<f32> {
    let settings = Settings { schedule: Schedule::Rounds(5), ..Settings::new(Method::DpTranspose { alpha: 0.5, beta: 0.5 }) };
    let mut trainer = Trainer::new(network.clone(), &settings, BATCH, runtime).expect("sound settings");
    let x = MatRef::from_row_major_slice(&data.x_train, data.y_train.len(), data.features);
    let mut order: Vec<_> = (0..50_000 / BATCH).collect();
    for epoch in 0..EPOCHS {
        Counter::new(1, epoch).shuffle(&mut order);
        for from in order.iter().map(|block| block * BATCH) {
            let labels = Targets::Classes(&data.y_train[from..from + BATCH]);
            trainer.step(x.subrows(from, BATCH), labels, 1e-3).expect("a training that converges");
        }
    }
    trainer.network().clone()
}

/// The Jacobians of all samples take `n_L` rows each through all layers but the last, the first of them by a root of its Gram matrix. Throughput is in
/// the flops of these products with nothing left out.
fn constants<'a>(
    bench: &mut Bench,
    name: &str,
    what: &str,
    problem: impl Fn() -> (Network<f32>, MatRef<'a, f32>),
    runtime: &Runtime,
) {
    let [inputs, first, second, outputs] = WIDTHS;
    let forward = 2 * (inputs * first + first * second);
    let flops = SAMPLES * (2 * outputs * (first * second + first * first.min(inputs)) + forward);
    let title = format!("lipschitz/local 784-512-512-10 {name}, {what}, {SAMPLES} samples");
    let mut group = bench.group(&title, Work { flops, bytes: 0 });
    for (row, gap) in [("gap 1e-3", 1e-3), ("gap 5e-2", 5e-2)] {
        let make = || (problem(), Vec::new());
        let run = |((network, x), found): &mut ((Network<f32>, MatRef<'a, f32>), Vec<Enclosure>)| {
            *found = local(network, *x, Kinks::Smaller, gap, runtime).expect("sound samples");
        };
        let check = |(_, found): &mut (_, Vec<Enclosure>)| {
            assert!(found.len() == SAMPLES && found.iter().all(|found| found.gap() <= gap), "the gap is reached");
        };
        group.row(By::Dualprop, row, make, run, check);
    }
    drop(group);
    if let Some(directory) = std::env::var_os("LOCAL") {
        let (network, x) = problem();
        leave(&Path::new(&directory).join(name), &network, x, runtime).expect("a directory to write to");
    }
}

fn leave(directory: &Path, network: &Network<f32>, x: MatRef<'_, f32>, runtime: &Runtime) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let write = |name: &str, numbers: &mut dyn Iterator<Item = f32>| {
        fs::write(directory.join(name), numbers.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
    };
    for k in 0..network.layers() {
        let weights = network.weights(k);
        write(&format!("w{k}"), &mut (0..weights.nrows()).flat_map(|i| weights.row(i).iter().copied()))?;
        write(&format!("b{k}"), &mut network.bias(k).into_iter().flatten().copied())?;
    }
    write("x", &mut (0..x.nrows()).flat_map(|i| x.row(i).iter().copied()))?;
    let mut seconds = [0.0f64; 9];
    let mut found = Vec::new();
    for seconds in &mut seconds {
        let start = Instant::now();
        found = local(network, x, Kinks::Smaller, 1e-3, runtime).expect("sound samples");
        *seconds = start.elapsed().as_secs_f64();
    }
    write("seconds", &mut seconds.into_iter().map(|seconds| seconds as f32))?;
    let bounds: Vec<u8> = found.iter().flat_map(|e| [e.lower, e.upper]).flat_map(f64::to_le_bytes).collect();
    fs::write(directory.join("bounds"), bounds)
}

/// A certificate from nothing, and a call in which nothing has moved.
fn norms(bench: &mut Bench, network: &Network<f32>, runtime: &Runtime) {
    for k in 0..network.layers() {
        let weights = network.weights(k);
        let (m, n) = (weights.nrows(), weights.ncols());
        let mut group = bench.group(&format!("lipschitz/tracked norm f32 {m}x{n}"), Work { flops: 0, bytes: 4 * m * n });
        let make = |starts: usize| {
            let tracking = Tracking { starts, ..Tracking::new() };
            (Tracker::<f32>::new(m, n, &tracking).expect("sound settings"), Workspace::new(runtime), 0.0)
        };
        let check =
            |(_, _, gap): &mut (Tracker<f32>, Workspace<f32>, f64)| assert!(*gap <= Tracking::new().gap, "the gap is {gap}");
        for starts in [1, 2, 4, 8] {
            let run = |(tracker, work, gap): &mut (Tracker<f32>, Workspace<f32>, f64)| {
                tracker.forget();
                *gap = tracker.update(weights, work).expect("its shape").gap();
            };
            group.row(By::Dualprop, &format!("certificate, {starts} starts"), || make(starts), run, check);
        }
        let run = |(tracker, work, gap): &mut (Tracker<f32>, Workspace<f32>, f64)| {
            *gap = tracker.update(weights, work).expect("its shape").gap();
        };
        group.row(By::Dualprop, "nothing moved", || make(4), run, check);
    }
}

/// Steps of Adam at the published rate, with norms that are asked for after each of some steps, and damped ones, which ask in every step (of the layers
/// but the first).
fn training(bench: &mut Bench, network: &Network<f32>, runtime: &Runtime) {
    let batches: Vec<_> = (0..40).map(|seed| RowMajor::<f32>::uniform(BATCH, WIDTHS[0], 1.0, seed)).collect();
    let labels: Vec<u32> = (0..BATCH as u32).map(|i| i % 10).collect();
    let plain = Settings::new(Method::DpTranspose { alpha: 0.5, beta: 0.5 });
    let damped = Settings {
        schedule: Schedule::Rounds(15),
        ..Settings::new(Method::DpDamped { alpha: 0.25, beta: 0.25, damping: Damping::Plain })
    };
    for (title, settings) in [("DPt one up, one down", plain), ("DP damped, 15 rounds", damped)] {
        let name = format!("lipschitz/10 steps {title} 784-512-512-10 B=50, Adam 1e-3");
        let mut group = bench.group(&name, Work { flops: 1, bytes: 0 });
        for (name, every) in [("no norms", u64::MAX), ("norms after each", 1), ("after the 10th", 10), ("after the 50th", 50)] {
            let settings = Settings { norms: (every < u64::MAX).then(Tracking::new), ..settings };
            let make = || (Trainer::new(network.clone(), &settings, BATCH, runtime).expect("sound settings"), 0u64);
            let run = |(trainer, steps): &mut (Trainer<f32>, u64)| {
                for _ in 0..10 {
                    let x = &batches[*steps as usize % batches.len()];
                    trainer.step(x.view(), Targets::Classes(&labels), 1e-3).expect("a sound batch");
                    *steps += 1;
                    if steps.is_multiple_of(every) {
                        let widest = trainer.norms().iter().map(Enclosure::gap).fold(0.0, f64::max);
                        assert!(widest <= Tracking::new().gap, "step {steps}: the gap is {widest}");
                    }
                }
            };
            group.row(By::Dualprop, name, make, run, |_| {});
        }
    }
}
