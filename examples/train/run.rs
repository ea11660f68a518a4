//! One training run: steps, evaluations, and the numbers that come out.

use std::time::{Duration, Instant};

use dualprop::lipschitz::Enclosure;
use dualprop::network::{Evaluation, LearningRate, Network, Step, Targets, Trainer};
use dualprop::random::Counter;
use dualprop::{Error, MatRef, Real};
use indicatif::ProgressBar;

use crate::data::{Dataset, Result};

/// Every step whose number is a multiple of this compares its gradient with back-propagation, outside the timing.
const ALIGNMENT_EVERY: u64 = 10;

/// The order of the rows in epoch `e` comes from the random stream `ORDER_STREAM + e`, apart from those of the initial weights.
const ORDER_STREAM: u64 = 1 << 32;

/// What all runs have in common.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Rows of a step.
    pub(crate) batch: usize,
    /// Steps in total.
    pub(crate) steps: u64,
    /// As a function of the epochs done.
    pub(crate) learning_rate: LearningRate,
    /// Draw the rows of an epoch in random order, or take them as they come.
    pub(crate) shuffle: bool,
    /// Of the order of the rows.
    pub(crate) seed: u64,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Status {
    Finished,
    /// The layer of units in which a number stopped being finite, and the step, both counted from 1.
    Diverged {
        layer: usize,
        step: u64,
    },
}

/// What is measured while steps are made; NaN where there was nothing to measure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measured {
    /// Mean training loss, each batch before its update.
    pub(crate) loss: f64,
    /// Training accuracy, likewise.
    pub(crate) train_accuracy: f64,
    /// Mean cosine between the gradient and that of back-propagation, per layer.
    pub(crate) cosine: Vec<f64>,
    /// Layer updates of a step, divided by the number of layers.
    pub(crate) sweeps: f64,
    /// Time of the timed steps.
    pub(crate) seconds: f64,
    /// Throughput of the timed steps.
    pub(crate) samples_per_second: f64,
}

/// The network at the end of an epoch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Epoch {
    /// Epochs done; 0 is the network before training.
    pub(crate) epoch: usize,
    pub(crate) measured: Measured,
    pub(crate) test_loss: f64,
    pub(crate) test_accuracy: f64,
    /// Largest singular value of the product of all weight matrices, from below.
    pub(crate) proxy_lipschitz: f64,
    /// Norms of the layers of weights.
    pub(crate) norms: Vec<Enclosure>,
}

/// A finished run.
pub(crate) struct Outcome<T> {
    pub(crate) status: Status,
    /// Epoch 0, in which loss and training accuracy are those of the untrained network.
    pub(crate) initial: Epoch,
    /// Epochs 1, 2, …
    pub(crate) epochs: Vec<Epoch>,
    /// Over all steps.
    pub(crate) total: Measured,
    /// The final weights, or the last finite ones.
    pub(crate) network: Network<T>,
}

impl<T> Outcome<T> {
    /// The state of the network at the end.
    pub(crate) fn last(&self) -> &Epoch {
        self.epochs.last().unwrap_or(&self.initial)
    }
}

/// Trains to the end or to divergence.
pub(crate) fn train<T: Real>(mut trainer: Trainer<T>, data: &Dataset<T>, plan: &Plan, bar: &ProgressBar) -> Result<Outcome<T>> {
    let layers = trainer.network().layers();
    let mut batches = Batches::new(data, plan);
    let mut total = Tally::new(layers);
    let mut epochs = Vec::new();
    let mut status = Status::Finished;

    let untrained = trainer.evaluate(rows(&data.x_train, data.features), Targets::Classes(&data.y_train))?;
    let measured = Measured { loss: untrained.loss, train_accuracy: untrained.accuracy, ..total.measured() };
    let initial = finish_epoch(&mut trainer, data, 0, measured)?;

    let mut step = 0;
    while step < plan.steps && status == Status::Finished {
        let mut tally = Tally::new(layers);
        batches.start_epoch(epochs.len() as u64);
        for index in 0..batches.per_epoch.min(plan.steps - step) {
            let learning_rate = plan.learning_rate.at(step as f64 / batches.per_epoch as f64);
            let aligning = step % ALIGNMENT_EVERY == 0;
            trainer.measure_alignment(aligning);
            let start = Instant::now();
            let (x, y) = batches.get(index);
            match trainer.step(x, Targets::Classes(y), learning_rate) {
                Ok(done) => {
                    let time = (!aligning).then(|| start.elapsed());
                    tally.add(&done, plan.batch, time);
                    total.add(&done, plan.batch, time);
                }
                Err(Error::Diverged { layer, step, .. }) => {
                    status = Status::Diverged { layer, step };
                    break;
                }
                Err(error) => return Err(error.into()),
            }
            step += 1;
            bar.inc(1);
        }
        if tally.steps > 0 {
            let epoch = finish_epoch(&mut trainer, data, epochs.len() + 1, tally.measured())?;
            bar.set_message(format!("test accuracy {:.4}", epoch.test_accuracy));
            epochs.push(epoch);
        }
    }
    Ok(Outcome { status, initial, epochs, total: total.measured(), network: trainer.into_network() })
}

/// Evaluates the network at the end of an epoch.
fn finish_epoch<T: Real>(trainer: &mut Trainer<T>, data: &Dataset<T>, epoch: usize, measured: Measured) -> Result<Epoch> {
    let Evaluation { loss: test_loss, accuracy: test_accuracy } =
        trainer.evaluate(rows(&data.x_test, data.features), Targets::Classes(&data.y_test))?;
    let (proxy_lipschitz, norms) = (trainer.proxy_lipschitz(), trainer.norms().to_vec());
    Ok(Epoch { epoch, measured, test_loss, test_accuracy, proxy_lipschitz, norms })
}

/// Row-major numbers as a matrix.
fn rows<T>(values: &[T], features: usize) -> MatRef<'_, T> {
    MatRef::from_row_major_slice(values, values.len() / features, features)
}

/// The batches of an epoch.
struct Batches<'a, T> {
    data: &'a Dataset<T>,
    plan: &'a Plan,
    per_epoch: u64,
    /// Numbers of the training rows in the order of this epoch.
    order: Vec<usize>,
    x: Vec<T>,
    y: Vec<u32>,
}

impl<'a, T: Real> Batches<'a, T> {
    fn new(data: &'a Dataset<T>, plan: &'a Plan) -> Self {
        let count = data.y_train.len();
        let order = if plan.shuffle { (0..count).collect() } else { Vec::new() };
        Self { data, plan, per_epoch: (count / plan.batch) as u64, order, x: Vec::new(), y: Vec::new() }
    }

    /// Draws the order of an epoch, the same for every method.
    fn start_epoch(&mut self, epoch: u64) {
        for (row, place) in self.order.iter_mut().enumerate() {
            *place = row;
        }
        Counter::new(self.plan.seed, ORDER_STREAM + epoch).shuffle(&mut self.order);
    }

    /// Inputs and labels of a batch: gathered, or consecutive rows where they are.
    fn get(&mut self, index: u64) -> (MatRef<'_, T>, &[u32]) {
        let features = self.data.features;
        let start = index as usize * self.plan.batch;
        let places = start..start + self.plan.batch;
        if !self.plan.shuffle {
            let x = &self.data.x_train[places.start * features..places.end * features];
            return (rows(x, features), &self.data.y_train[places]);
        }
        self.x.clear();
        self.y.clear();
        for &row in &self.order[places] {
            self.x.extend_from_slice(&self.data.x_train[row * features..][..features]);
            self.y.push(self.data.y_train[row]);
        }
        (rows(&self.x, features), &self.y)
    }
}

/// Sums over steps.
struct Tally {
    layers: usize,
    steps: u64,
    samples: usize,
    loss: f64,
    correct: usize,
    updates: usize,
    aligned: usize,
    cosine: Vec<f64>,
    timed_samples: usize,
    time: Duration,
}

impl Tally {
    fn new(layers: usize) -> Self {
        Self {
            layers,
            steps: 0,
            samples: 0,
            loss: 0.0,
            correct: 0,
            updates: 0,
            aligned: 0,
            cosine: vec![0.0; layers],
            timed_samples: 0,
            time: Duration::ZERO,
        }
    }

    /// Adds a step of `samples` rows, which took `time` if that is to be counted.
    fn add(&mut self, step: &Step, samples: usize, time: Option<Duration>) {
        self.steps += 1;
        self.samples += samples;
        self.loss += step.loss * samples as f64;
        self.correct += step.correct;
        self.updates += step.updates;
        if !step.cosine.is_empty() {
            self.aligned += 1;
            self.cosine.iter_mut().zip(step.cosine).for_each(|(sum, cosine)| *sum += cosine);
        }
        if let Some(time) = time {
            self.timed_samples += samples;
            self.time += time;
        }
    }

    fn measured(&self) -> Measured {
        let seconds = self.time.as_secs_f64();
        Measured {
            loss: self.loss / self.samples as f64,
            train_accuracy: self.correct as f64 / self.samples as f64,
            cosine: self.cosine.iter().map(|sum| sum / self.aligned as f64).collect(),
            sweeps: self.updates as f64 / (self.steps as f64 * self.layers as f64),
            seconds,
            samples_per_second: self.timed_samples as f64 / seconds,
        }
    }
}
