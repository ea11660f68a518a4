//! Whole training runs have the same bits for every number of threads, on every instruction set, with and without skipping.

mod common;

use common::{SCHEDULES, bits, labels, methods, network, runtime, uniform};
use dualprop::hebbian::{self, Update};
use dualprop::network::{Damping, Decay, Loss, Method, NudgeAt, Optimizer, Output, Schedule, Settings, Step, Targets, Trainer};
use dualprop::relax;
use dualprop::{Activation, Error, Isa, Mat, MatMut, MatRef, Par, Real, Runtime, Workspace};
use faer::prelude::ReborrowMut;

const CURRENT: Output = Output::Linearized(NudgeAt::Current);
const INITIAL: Output = Output::Linearized(NudgeAt::Initial);

/// A training run on random batches.
#[derive(Clone, Copy, Debug)]
struct Run {
    widths: &'static [usize],
    batch: usize,
    activation: Activation,
    bias: bool,
    settings: Settings,
    steps: u64,
}

/// What a run leaves.
#[derive(Debug, PartialEq)]
struct Trace {
    parameters: Vec<u64>,
    losses: Vec<u64>,
    /// Why a step was refused, if one was. Runs may diverge, as long as they do so alike.
    error: Option<Error>,
    updates: usize,
    skipped: usize,
}

impl Run {
    fn on<T: Real>(&self, runtime: &Runtime) -> Trace {
        self.with::<T>(runtime, |trainer, x, labels| trainer.step(x, Targets::Classes(labels), 0.01).map(counted))
    }

    fn alone<T: Real>(&self) -> Trace {
        self.on::<T>(&runtime())
    }

    /// A run in which `step` makes the steps.
    fn with<T: Real>(
        &self,
        runtime: &Runtime,
        mut step: impl FnMut(&mut Trainer<T>, MatRef<'_, T>, &[u32]) -> Result<Counted, Error>,
    ) -> Trace {
        let network = network::<T>(self.widths, self.activation, self.bias, 1);
        let n_out = self.widths[self.widths.len() - 1];
        let mut trainer = Trainer::new(network, &self.settings, self.batch, runtime).expect("sound settings");
        let mut trace = Trace { parameters: Vec::new(), losses: Vec::new(), error: None, updates: 0, skipped: 0 };
        for i in 0..self.steps {
            let x = uniform(self.batch, self.widths[0], [0.0, 1.0], i);
            match step(&mut trainer, x.as_ref(), &labels(self.batch, n_out, i)) {
                Ok((loss, updates, skipped)) => {
                    trace.losses.push(loss);
                    trace.updates += updates;
                    trace.skipped += skipped;
                }
                Err(error) => trace.error = trace.error.or(Some(error)),
            }
        }
        trace.parameters = bits(&trainer);
        trace
    }
}

/// The loss of a step, its updates and those it skipped.
type Counted = (u64, usize, usize);

fn counted(step: Step<'_>) -> Counted {
    (step.loss.to_bits(), step.updates, step.skipped)
}

/// Runs of 20 steps on a network, with every method, schedule, optimizer, loss and activation somewhere.
fn runs(widths: &'static [usize], batch: usize) -> Vec<Run> {
    let decays = [Decay::None, Decay::Coupled(0.01), Decay::Decoupled(0.01)];
    let optimizers = [Optimizer::ADAM, Optimizer::Sgd, Optimizer::MOMENTUM];
    let outputs = [(Loss::Squared, Output::Prox), (Loss::CrossEntropy, INITIAL), (Loss::Squared, CURRENT)];
    let run = |(i, schedule): (usize, Schedule)| {
        let (methods, (loss, output)) = (methods(0.25 * (i % 5) as f64, 0.5), outputs[i % 3]);
        let settings = Settings {
            loss,
            output,
            schedule,
            optimizer: optimizers[i % 3],
            decay: decays[i / 2 % 3],
            ..Settings::new(methods[(i + 2) % methods.len()])
        };
        let activation = Activation::ALL[(i + 1) % Activation::ALL.len()];
        Run { widths, batch, activation, bias: i % 4 != 0, settings, steps: 20 }
    };
    SCHEDULES.into_iter().enumerate().map(run).collect()
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    // Products of the second have 24·300·300 multiply-adds, enough for threads to share them.
    const { assert!(24 * 300 * 300 >= dualprop_kernels::threads::SEQUENTIAL) };
    for run in runs(&[20, 24, 18, 10], 12).into_iter().chain(runs(&[300, 300, 300, 10], 24)) {
        let alone = (run.alone::<f32>(), run.alone::<f64>());
        for threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let runtime = Runtime::new(Isa::best(), Par::rayon(threads));
            let shared = pool.install(|| (run.on::<f32>(&runtime), run.on::<f64>(&runtime)));
            assert!(shared == alone, "{threads} threads: {run:?}");
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for run in runs(&[20, 24, 18, 10], 12) {
        let best = (run.alone::<f32>(), run.alone::<f64>());
        for isa in Isa::available() {
            let runtime = Runtime::new(isa, Par::Seq);
            assert!((run.on::<f32>(&runtime), run.on::<f64>(&runtime)) == best, "{isa}: {run:?}");
        }
    }
    // One run with several blocks of every loop.
    let settings = Settings::new(Method::DpTranspose { alpha: 0.5, beta: 0.5 });
    let run = Run { widths: &[300, 300, 300, 10], batch: 20, activation: Activation::Relu, bias: true, settings, steps: 20 };
    let best = run.alone::<f32>();
    for isa in Isa::available() {
        assert!(run.on::<f32>(&Runtime::new(isa, Par::Seq)) == best, "{isa}: {run:?}");
    }
}

#[test]
fn dp_and_its_transpose_are_the_same_at_one_half() {
    for (i, schedule) in SCHEDULES.into_iter().enumerate() {
        for (loss, output) in
            [(Loss::Squared, Output::Prox), (Loss::Squared, INITIAL), (Loss::Squared, CURRENT), (Loss::CrossEntropy, CURRENT)]
        {
            for &activation in Activation::ALL {
                let run = |method| {
                    let settings = Settings { loss, output, schedule, ..Settings::new(method) };
                    Run { widths: &[20, 24, 18, 10], batch: 12, activation, bias: i % 2 == 0, settings, steps: 10 }
                };
                let [dp, transposed] =
                    [Method::Dp { alpha: 0.5, beta: 0.5 }, Method::DpTranspose { alpha: 0.5, beta: 0.5 }].map(run);
                assert!(dp.alone::<f32>() == transposed.alone::<f32>(), "{dp:?}");
                assert!(dp.alone::<f64>() == transposed.alone::<f64>(), "{dp:?}");
            }
        }
    }
}

#[test]
fn strides_change_no_bit() {
    for run in runs(&[20, 24, 18, 10], 12) {
        let alone = run.alone::<f32>();
        let (m, n) = (run.batch, run.widths[0]);
        for view in 0..3 {
            let step = |trainer: &mut Trainer<f32>, x: MatRef<'_, f32>, labels: &[u32]| {
                let y = Mat::from_fn(10, m, |j, i| if labels[i] as usize == j { 1.0 } else { 0.0 });
                let mut step = |x| trainer.step(x, Targets::Values(y.transpose()), 0.01).map(counted);
                match view {
                    0 => step(Mat::from_fn(n, m, |j, i| x[(i, j)]).transpose()),
                    1 => step(Mat::from_fn(m, n, |i, j| x[(m - 1 - i, n - 1 - j)]).as_ref().reverse_rows_and_cols()),
                    _ => step(
                        Mat::from_fn(2 * m, n + 1, |i, j| if i < m && j < n { x[(i, j)] } else { 7.0 }).submatrix(0, 0, m, n),
                    ),
                }
            };
            assert!(run.with(&runtime(), step) == alone, "view {view}: {run:?}");
        }
    }
}

/// Steps of one sample, plain (whose rate is folded into `diff`, whichever factor of a transposed product that is) or not.
#[test]
fn layouts_change_no_bit_of_a_step_of_one_sample() {
    let (n_out, n_in) = (37, 83);
    let old = uniform::<f32>(n_out, n_in, [-1.0, 1.0], 1);
    let [diff, mean, next] =
        [(n_out, 2), (n_in, 3), (n_in, 4)].map(|(n, seed)| uniform::<f32>(3, n, [-1.0, 1.0], seed).subrows(1, 1).to_owned());
    let near = [&diff, &mean, &next].map(|row| row.row(0).iter().copied().collect::<Vec<f32>>());
    // The middle row of three, whose numbers are not side by side.
    let far = [&diff, &mean].map(|row| Mat::from_fn(3, row.ncols(), |i, j| if i == 1 { row[(0, j)] } else { 7.0 }));
    let mut work = Workspace::new(&runtime());
    for optimizer in [Optimizer::Sgd, Optimizer::MOMENTUM] {
        let update = Update { optimizer, decay: Decay::Decoupled(0.01), learning_rate: 0.1, step: 1, scale: -0.7 };
        let step = |rows: bool, run: &mut dyn FnMut(MatMut<'_, f32>, &mut [MatMut<'_, f32>])| {
            let lay = |matrix: &Mat<f32>| if rows { matrix.transpose().to_owned() } else { matrix.clone() };
            let mut state = vec![lay(&old)];
            state.resize(1 + optimizer.moments(), lay(&Mat::zeros(n_out, n_in)));
            let mut views: Vec<_> =
                state.iter_mut().map(|matrix| if rows { matrix.transpose_mut() } else { matrix.as_mut() }).collect();
            let (weights, moments) = views.split_first_mut().expect("weights");
            run(weights.rb_mut(), moments);
            state.iter().map(lay).collect::<Vec<_>>()
        };
        let mut image = vec![0.0; n_out];
        let wanted = step(true, &mut |weights, moments| {
            let [diff, mean, next] = &near;
            hebbian::online(weights, moments, diff, mean, &update, next, &mut image, &runtime()).expect("shapes that fit");
        });
        assert_ne!(wanted[0], old);
        for (rows, far_diff, far_mean) in (0..8).map(|i| (i & 1 > 0, i & 2 > 0, i & 4 > 0)) {
            let got = step(rows, &mut |weights, moments| {
                let [diff, mean] = [(0, far_diff), (1, far_mean)].map(|(factor, is_far)| {
                    if is_far {
                        far[factor].subrows(1, 1)
                    } else {
                        MatRef::from_row_major_slice(&near[factor], 1, near[factor].len())
                    }
                });
                hebbian::update(weights, moments, diff, mean, &update, &mut work).expect("shapes that fit");
            });
            assert_eq!(got, wanted, "{optimizer:?}; rows: {rows}, far: {far_diff}, {far_mean}");
        }
    }
}

/// However many samples there are, weights are turned, packed or met by samples as lanes; each sum is the same chain.
#[test]
fn a_sample_has_the_same_drive_in_every_batch() {
    fn each<T: Real>(isa: Isa) {
        let [n_out, n_in] = [37, 515];
        let weights = uniform::<T>(n_out, n_in, [-1.0, 1.0], 1);
        let by_rows = Mat::from_fn(n_in, n_out, |i, j| weights[(j, i)]);
        let bias = vec![T::ONE; n_out];
        let mut work = Workspace::new(&Runtime::new(isa, Par::Seq));
        let all = uniform::<T>(40, n_in, [-1.0, 1.0], 2);
        let mut drive = |samples: MatRef<'_, T>, weights: MatRef<'_, T>| {
            let mut drive = Mat::from_fn(n_out, samples.nrows(), |_, _| T::ZERO);
            relax::drive(drive.transpose_mut(), samples, weights, &bias, &mut work).expect("shapes that fit");
            drive
        };
        let wanted = drive(all.as_ref(), weights.as_ref());
        for batch in (1..=18).chain([32, 40]) {
            for weights in [weights.as_ref(), by_rows.transpose()] {
                let got = drive(all.subrows(0, batch), weights);
                assert_eq!(got, wanted.subcols(0, batch), "{batch} samples on {isa}, {}", T::NAME);
            }
        }
    }
    for isa in Isa::available() {
        each::<f32>(isa);
        each::<f64>(isa);
    }
}

#[test]
fn looking_changes_no_bit() {
    for batch in [12, 20] {
        for run in runs(&[20, 24, 18, 10], batch) {
            let watched = Run { settings: Settings { alignment: true, ..run.settings }, ..run };
            let mut count = 0;
            let trace = watched.with::<f64>(&runtime(), |trainer, x, labels| {
                count += 1;
                trainer.measure_alignment(count % 3 != 0);
                let counted = trainer.step(x, Targets::Classes(labels), 0.01).map(counted);
                trainer.evaluate(x, Targets::Classes(labels)).expect("a sound batch");
                if count % 2 == 0 {
                    trainer.predict(x, Mat::zeros(x.nrows(), 10).as_mut()).expect("a sound batch");
                    trainer.gradient(0, Mat::zeros(24, 20).as_mut(), &mut [0.0; 24]).expect("a layer");
                    trainer.proxy_lipschitz();
                }
                counted
            });
            assert!(trace == run.alone::<f64>(), "{run:?}");
        }
    }
}

#[test]
fn skipping_changes_no_bit() {
    for alpha in [0.0, 0.25, 0.5, 1.0] {
        for method in methods(alpha, 0.5) {
            for schedule in SCHEDULES {
                for output in [Output::Prox, INITIAL, CURRENT] {
                    let settings = Settings { output, schedule, ..Settings::new(method) };
                    let widths = &[6, 8, 7, 9, 5];
                    let on = Run { widths, batch: 4, activation: Activation::Tanh, bias: true, settings, steps: 3 };
                    let off = Run { settings: Settings { skip: false, ..settings }, ..on };
                    let (on, off) = (on.alone::<f64>(), off.alone::<f64>());
                    assert_eq!((&on.parameters, &on.losses), (&off.parameters, &off.losses), "{settings:?}");
                    assert_eq!((on.updates + on.skipped, 0), (off.updates, off.skipped), "{settings:?}");
                }
            }
        }
    }
}

#[test]
fn skipping_saves_what_the_schedule_wastes() {
    const DEEP: [usize; 17] = [8; 17];
    let counts = |method, schedule| {
        let settings = Settings { schedule, ..Settings::new(method) };
        let run = Run { widths: &DEEP, batch: 4, activation: Activation::Tanh, bias: true, settings, steps: 1 };
        let trace = run.alone::<f64>();
        (trace.updates, trace.skipped)
    };
    // Pass p of a forward schedule first reaches layer L + 1 − p with feedback; what lies below is at rest.
    let layers = DEEP.len() - 1;
    let expected = (layers * (layers + 1) / 2, layers * (layers - 1) / 2);
    assert_eq!(counts(Method::Dp { alpha: 0.25, beta: 0.5 }, Schedule::Forward(layers)), expected);
    // DP⊤ with α of 0 or 1 is done after one sweep up and one down; with another α it is not.
    for (alpha, done) in [(0.0, true), (0.25, false), (1.0, true)] {
        let method = Method::DpTranspose { alpha, beta: 0.5 };
        assert_eq!(counts(method, Schedule::Rounds(0)), (layers, 0));
        assert_eq!(counts(method, Schedule::Rounds(5)).0 == layers, done, "α = {alpha}");
    }
    // Damping averages with the old state: no update is in vain.
    assert_eq!(counts(Method::DpDamped { alpha: 0.0, beta: 0.5, damping: Damping::Plain }, Schedule::Rounds(2)).1, 0);
}
