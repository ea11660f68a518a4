//! Odd sizes and the smallest calls, by the public functions, on one thread.
//!
//! ```text
//! cargo bench --bench sizes               all; `-- latency`, `-- update`, `-- Adam`, `-- drive`, `-- relax` a part
//! ```
//!
//! For each shape every dimension goes 16 up and down, one at a time, but not below its half: memory then takes the place of arithmetic. A size is timed in turns with the shape itself; what counts is the time of a
//! multiply-add against that of the shape's, the median of the turns. The worst of the 33 sizes is printed for each dimension.

mod common;

use std::hint::black_box;
use std::time::Instant;

use common::RowMajor;
use dualprop::hebbian::{self, Decay, Optimizer, Update};
use dualprop::relax::{self, Variant};
use dualprop::{Activation, Isa, Par, Runtime, Workspace};

const TURNS: usize = 9;

/// Seconds of a turn, at the least.
const SLICE: f64 = 2e-4;

#[derive(Clone, Copy)]
enum Kernel {
    Update(Optimizer),
    Drive,
    Relax,
}

/// What a call works on: `W` (`m × n`) and a batch of `b`, and vectors of both lengths for it.
struct Problem {
    kernel: Kernel,
    weights: RowMajor<f32>,
    moments: Vec<RowMajor<f32>>,
    above: RowMajor<f32>,
    below: RowMajor<f32>,
    outs: [RowMajor<f32>; 3],
    bias: Vec<f32>,
    work: Workspace<f32>,
}

impl Problem {
    fn new(kernel: Kernel, [m, n, b]: [usize; 3]) -> Self {
        let moments = if let Kernel::Update(optimizer) = kernel { optimizer.moments() } else { 0 };
        let outs = if let Kernel::Drive = kernel { m } else { n };
        Self {
            kernel,
            weights: RowMajor::uniform(m, n, 1.0, 1),
            moments: (0..moments).map(|_| RowMajor::zeros(m, n)).collect(),
            above: RowMajor::uniform(b, m, 1.0, 2),
            below: RowMajor::uniform(b, n, 1.0, 3),
            outs: [(); 3].map(|()| RowMajor::zeros(b, outs)),
            bias: vec![0.0; m],
            work: Workspace::new(&Runtime::new(Isa::best(), Par::Seq)),
        }
    }

    fn call(&mut self) {
        let Self { weights, above, below, outs: [out, mean, diff], work, .. } = self;
        match self.kernel {
            Kernel::Update(optimizer) => {
                let step = Update { optimizer, decay: Decay::Decoupled(1e-2), learning_rate: 1e-6, step: 1, scale: -1.0 };
                match &mut self.moments[..] {
                    [] => hebbian::update(weights.view_mut(), &mut [], above.view(), below.view(), &step, work),
                    [m, v] => {
                        let moments = &mut [m.view_mut(), v.view_mut()];
                        hebbian::update(weights.view_mut(), moments, above.view(), below.view(), &step, work)
                    }
                    _ => unreachable!("SGD and Adam"),
                }
            }
            Kernel::Drive => relax::drive(out.view_mut(), below.view(), weights.view(), &self.bias, work),
            Kernel::Relax => {
                let (variant, relu) = (Variant::DpTranspose { alpha: 0.5 }, Activation::Relu);
                relax::relax(mean.view_mut(), diff.view_mut(), out.view(), above.view(), weights.view(), variant, relu, work)
            }
        }
        .expect("shapes that fit");
    }

    /// Seconds of a call, of as many as fill the time.
    fn time(&mut self, seconds: f64) -> f64 {
        // Calls between two looks at the clock, which itself takes as long as a third of the smallest call.
        let many = if self.weights.rows() <= 10 { 32 } else { 1 };
        let (start, mut calls) = (Instant::now(), 0);
        loop {
            (0..many).for_each(|_| black_box(&mut *self).call());
            calls += many;
            let passed = start.elapsed().as_secs_f64();
            if passed >= seconds {
                return passed / f64::from(calls);
            }
        }
    }
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// The time of a multiply-add at `sizes` against that at `shape`.
fn against(kernel: Kernel, shape: &mut Problem, [m, n, b]: [usize; 3], sizes: [usize; 3], turns: usize) -> f64 {
    let mut other = Problem::new(kernel, sizes);
    let share = (m * n * b) as f64 / sizes.iter().product::<usize>() as f64;
    other.time(0.0);
    median((0..turns).map(|_| other.time(SLICE) / shape.time(SLICE) * share).collect())
}

fn worst(name: &str, kernel: Kernel, shape: [usize; 3], turns: usize) {
    let mut nominal = Problem::new(kernel, shape);
    nominal.time(0.0);
    let [m, n, b] = shape;
    print!("{name} {m}x{n}x{b}:");
    for dimension in 0..3 {
        let at = |size: usize| {
            let mut sizes = shape;
            sizes[dimension] = size;
            sizes
        };
        let from = (shape[dimension] - 16).max(shape[dimension].div_ceil(2));
        let found = (from..=shape[dimension] + 16).map(|size| (against(kernel, &mut nominal, shape, at(size), turns), size));
        let (ratio, size) = found.max_by(|a, b| a.0.total_cmp(&b.0)).expect("33 sizes");
        print!("  {} = {size}: {ratio:.2}", ["m", "n", "B"][dimension]);
    }
    println!();
}

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted = |name: &str| filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
    let turns = if std::env::args().any(|argument| argument == "--test") { 1 } else { TURNS };
    let kernels = [
        ("update", Kernel::Update(Optimizer::Sgd)),
        ("Adam", Kernel::Update(Optimizer::ADAM)),
        ("drive", Kernel::Drive),
        ("relax", Kernel::Relax),
    ];
    if wanted("latency") {
        for (name, kernel) in kernels {
            let mut problem = Problem::new(kernel, [10, 10, 1]);
            println!("latency of {name} 10x10, B = 1: {:.0} ns", 1e9 * median((0..101).map(|_| problem.time(1e-4)).collect()));
        }
    }
    let small = [[256, 784, 32], [256, 784, 128], [512, 512, 50], [1000, 784, 100], [1024, 1024, 16], [1024, 1024, 64]];
    for (name, kernel) in kernels {
        for shape in small.into_iter().filter(|_| wanted(name)) {
            worst(name, kernel, shape, turns);
        }
    }
}
