//! Lipschitz constants of networks: local ones for a batch, and norms that are tracked along a training.
//!
//! In the rows of training the weights move on from call to call, as they do in a training.
//!
//! With `LOCAL=directory` the weights, inputs and bounds of the local constants are left there, as raw numbers, for
//! `python benches/peers/local.py directory`: it times the same as PyTorch users compute it, and compares.

mod common;

use std::path::Path;
use std::{fs, io};

use common::{Bench, By, RowMajor, Work};
use dualprop::lipschitz::{Enclosure, Kinks, Tracker, Tracking, local};
use dualprop::network::{Damping, Init, Method, Network, Schedule, Settings, Targets, Trainer};
use dualprop::{Activation, Par, Runtime, Workspace};

const WIDTHS: [usize; 4] = [784, 512, 512, 10];
const SAMPLES: usize = 10_000;

fn main() {
    let mut bench = Bench::new();
    let runtime = Runtime::new(bench.isa, Par::Seq);
    let mut network = Network::<f32>::new(&WIDTHS, Activation::Relu, true).expect("sound widths");
    network.initialize(Init::LecunNormal, 1);
    constants(&mut bench, &network, &runtime);
    norms(&mut bench, &network, &runtime);
    training(&mut bench, &network, &runtime);
    bench.finish();
}

/// The Jacobians of all samples take `n_L` rows each through all layers but the last, the first of them by a root of its Gram matrix. Throughput is in
/// the flops of these products with nothing left out.
fn constants(bench: &mut Bench, network: &Network<f32>, runtime: &Runtime) {
    let [inputs, first, second, outputs] = WIDTHS;
    let forward = 2 * (inputs * first + first * second);
    let flops = SAMPLES * (2 * outputs * (first * second + first * first.min(inputs)) + forward);
    let x = RowMajor::<f32>::uniform(SAMPLES, inputs, 1.0, 2);
    let mut group = bench.group(&format!("lipschitz/local 784-512-512-10, {SAMPLES} samples"), Work { flops, bytes: 0 });
    for (name, gap) in [("gap 1e-3", 1e-3), ("gap 5e-2", 5e-2)] {
        let run =
            |found: &mut Vec<Enclosure>| *found = local(network, x.view(), Kinks::Smaller, gap, runtime).expect("sound samples");
        let check = |found: &mut Vec<Enclosure>| assert!(found.iter().all(|found| found.gap() <= gap), "the gap is reached");
        group.row(By::Dualprop, name, Vec::new, run, check);
    }
    if let Some(directory) = std::env::var_os("LOCAL") {
        let found = local(network, x.view(), Kinks::Smaller, 1e-3, runtime).expect("sound samples");
        leave(Path::new(&directory), network, &x, &found).expect("a directory to write to");
    }
}

fn leave(directory: &Path, network: &Network<f32>, x: &RowMajor<f32>, found: &[Enclosure]) -> io::Result<()> {
    let write = |name: &str, numbers: &mut dyn Iterator<Item = f32>| {
        fs::write(directory.join(name), numbers.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
    };
    for k in 0..network.layers() {
        let weights = network.weights(k);
        write(&format!("w{k}"), &mut (0..weights.nrows()).flat_map(|i| weights.row(i).iter().copied()))?;
        write(&format!("b{k}"), &mut network.bias(k).into_iter().flatten().copied())?;
    }
    write("x", &mut (0..x.rows()).flat_map(|i| x.row(i).iter().copied()))?;
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
    const BATCH: usize = 50;
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
