//! A training plan and its step.

use core::ops::Range;

use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::optimizer::Update;
use dualprop_kernels::reduce;
use dualprop_kernels::strided::{Input, Output};
use dualprop_kernels::threads;
use dualprop_kernels::vector::Real;
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{MatMut, MatRef};

use super::alignment::{Alignment, Gradient};
use super::evaluator::Evaluator;
use super::rule::{Residual, Rule};
use super::schedule::{Schedule, Start, sequence};
use super::settings::{Decay, Method, Optimizer, Settings};
use super::state::{Clock, FREE, Inputs, NUDGED, Units};
use super::synapse::{Synapse, gradient};
use super::targets::Targets;
use super::{Init, Network, draw, fits_memory};
use crate::check::{self, READING};
use crate::error::Error;
use crate::lipschitz::{Chain, Enclosure, Search, Tracker, Tracking, Warm, enclose};
use crate::matrix::RowMajor;
use crate::random::Counter;
use crate::runtime::Runtime;
use crate::workspace::Workspace;

/// What a training step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step<'a> {
    /// Mean loss over the batch of the plain forward pass before the update.
    pub loss: f64,
    /// Samples whose largest output was the target's largest entry, before the update.
    pub correct: usize,
    /// Layers that were relaxed after the forward pass.
    pub updates: usize,
    /// Layers that the schedule named and that were left alone because their inputs had not changed.
    pub skipped: usize,
    /// Cosine between the step's gradient and that of back-propagation for each layer of weights (with its biases); empty unless
    /// [`Trainer::measure_alignment`] is on. With several weight updates in a step it is that of the first.
    pub cosine: &'a [f64],
}

/// Loss and accuracy of a network on some samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss.
    pub loss: f64,
    /// Share of samples whose largest output is the target's largest entry.
    pub accuracy: f64,
}

/// A network in training: made once for fixed settings and batch size (the only place that allocates), then stepped.
///
/// Results have the same bits on every instruction set and for every number of threads.
#[derive(Clone, Debug)]
pub struct Trainer<T> {
    network: Network<T>,
    settings: Settings,
    rule: Rule,
    runtime: Runtime,
    /// Layers of units, inputs first.
    units: Vec<Units<T>>,
    /// Layers of weights.
    synapses: Vec<Synapse<T>>,
    work: Workspace<T>,
    clock: Clock,
    targets: RowMajor<T>,
    residual: RowMajor<T>,
    /// Of the loss of each sample.
    totals: Vec<f64>,
    ones: Vec<T>,
    /// `max |x|` of the inputs.
    largest_input: f64,
    /// In place of biases for a network without.
    zeros: Vec<T>,
    /// Of each layer of weights that damping or the settings ask for.
    norms: Vec<Option<Norm<T>>>,
    /// What [`norms`](Self::norms) gave last.
    enclosures: Vec<Enclosure>,
    proxy: Warm<T>,
    alignment: Option<Alignment<T>>,
    measuring: bool,
    evaluator: Evaluator<T>,
    rng: Counter,
    /// Steps of training, and of the optimizer (more with several updates a step).
    steps: u64,
    optimizer_steps: u64,
    counts: Counts,
}

/// The spectral norm of a layer of weights.
#[derive(Clone, Debug)]
struct Norm<T> {
    tracker: Tracker<T>,
    /// Of the present weights, if they have not changed since.
    enclosure: Option<Enclosure>,
    /// The damping that follows from it.
    lambda: f64,
}

impl<T: Real> Norm<T> {
    fn get(&mut self, weights: MatRef<'_, T>, work: &mut Workspace<T>) -> Enclosure {
        let tracker = &mut self.tracker;
        *self.enclosure.get_or_insert_with(|| tracker.update(weights, work).expect("the shape it was made for"))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    updates: usize,
    skipped: usize,
}

/// Largest sum of outer products that a step forms, and largest gradient that it applies: the square of a gradient, and sums of many
/// of them, stay finite.
fn largest<T: Real>() -> (f64, f64) {
    if T::NAME == "f32" { (1e37, 1e18) } else { (1e307, 1e150) }
}

/// Most Lanczos steps for the norm of the product of all weights.
const PROXY_STEPS: usize = 64;

impl<T: Real> Trainer<T> {
    /// A plan for batches of exactly `batch` samples.
    ///
    /// # Errors
    /// Those of [`Settings::check`]; [`Error::Parameter`] for an empty batch, a β whose inverse overflows `T`, or an ε by which
    /// gradients divided do; [`Error::NotFinite`] for weights with NaN or infinity.
    pub fn new(network: Network<T>, settings: &Settings, batch: usize, runtime: &Runtime) -> Result<Self, Error> {
        settings.check()?;
        check::parameter("batch", batch as f64, "at least 1", batch > 0)?;
        network.check_finite()?;
        let rule = Rule::new(settings);
        let layers = network.layers();
        let widest = *network.widths().iter().max().expect("at least two widths");
        check::parameter("batch", batch as f64, "small enough for the address space", fits_memory::<T>(batch, widest))?;
        if let Optimizer::Adam { beta2, epsilon, .. } = settings.optimizer {
            // Where the second moment has vanished, a moment of past gradients is divided by this alone.
            let smallest = T::from_f64(epsilon * (1.0 - beta2).sqrt()).to_f64();
            let fits = T::from_f64(largest::<T>().1 / smallest).is_finite();
            check::parameter("epsilon", epsilon, "large enough that a gradient over it is finite, also beside beta2", fits)?;
        }
        if settings.nudges() {
            let fits = (1..=layers).all(|k| T::from_f64(rule.inverse_beta(k, layers)).is_finite());
            let (argument, value) = settings.method.beta().map_or(("gain", rule.gain()), |beta| ("beta", beta));
            check::parameter(argument, value, "large enough that the gradient's factor 1/beta is finite", fits)?;
        }

        let widths = network.widths();
        let n_out = widths[layers];
        let repeats = settings.nudges() && settings.schedule.repeats();
        let synapse = |k: usize| {
            let (n_in, n_out) = (widths[k], widths[k + 1]);
            let feedback = matches!(settings.method, Method::KpDp { .. }).then(|| {
                let mut weights = RowMajor::zeros(n_out, n_in);
                draw(&mut weights, Init::LecunNormal, &mut Counter::new(settings.seed, (layers + k) as u64));
                weights
            });
            // The inputs of the first layer do not change between two updates.
            Synapse::new(settings.optimizer, n_out, n_in, feedback, repeats && (k > 0 || !settings.skip))
        };
        let norm = |k: usize| {
            let tracking = settings.norms.unwrap_or(Tracking { seed: settings.seed, ..Tracking::new() });
            let is_wanted = settings.norms.is_some() || (rule.damping.is_some() && k > 0);
            let tracker = || Tracker::new(widths[k + 1], widths[k], &tracking);
            is_wanted.then(|| Ok(Norm { tracker: tracker()?, enclosure: None, lambda: 0.0 })).transpose()
        };
        Ok(Self {
            units: widths.iter().map(|&n| Units::new(batch, n)).collect(),
            synapses: (0..layers).map(synapse).collect(),
            work: Workspace::new(runtime),
            clock: Clock::new(),
            targets: RowMajor::zeros(batch, n_out),
            residual: RowMajor::zeros(batch, n_out),
            totals: vec![0.0; batch],
            ones: vec![T::ONE; batch],
            largest_input: 0.0,
            zeros: vec![T::ZERO; widest],
            norms: (0..layers).map(norm).collect::<Result<_, Error>>()?,
            enclosures: Vec::with_capacity(layers),
            proxy: Warm::new(widths, PROXY_STEPS, settings.seed),
            alignment: settings.alignment.then(|| Alignment::new(widths, batch)),
            measuring: settings.alignment,
            evaluator: Evaluator::new(batch, widest, runtime),
            rng: Counter::new(settings.seed, u64::MAX),
            steps: 0,
            optimizer_steps: 0,
            counts: Counts::default(),
            network,
            settings: *settings,
            rule,
            runtime: *runtime,
        })
    }

    /// The network as it is now.
    pub fn network(&self) -> &Network<T> {
        &self.network
    }

    /// Ends the training.
    pub fn into_network(self) -> Network<T> {
        self.network
    }

    /// The settings it was made for.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Feedback weights of layer `k` under [`Method::KpDp`].
    ///
    /// # Panics
    /// If there is no layer `k`.
    pub fn feedback(&self, k: usize) -> Option<MatRef<'_, T>> {
        self.synapses[k].feedback()
    }

    /// Switches the comparison with back-propagation on or off for the steps to come; it costs about two back-propagation steps.
    /// Without [`Settings::alignment`] there is no room for it and it stays off.
    pub fn measure_alignment(&mut self, on: bool) {
        self.measuring = on && self.alignment.is_some();
    }

    /// One training step on `x` (`batch × inputs`, any strides): forward pass, relaxation by the schedule, weight update. Allocates nothing
    /// after the first.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Length`], [`Error::NotFinite`], [`Error::Label`] and [`Error::Parameter`] for the arguments;
    /// [`Error::Diverged`] when a state or gradient has left the range of numbers. In every case the weights are those of before the
    /// update that failed: before the step, unless [`Schedule::Multistep`] had already done some.
    pub fn step(&mut self, x: MatRef<'_, T>, targets: Targets<'_, T>, learning_rate: f64) -> Result<Step<'_>, Error> {
        self.check_rate(learning_rate)?;
        let (loss, correct) = self.infer_and_update(x, targets, learning_rate)?;
        Ok(self.report(loss, correct))
    }

    fn infer_and_update(&mut self, x: MatRef<'_, T>, targets: Targets<'_, T>, learning_rate: f64) -> Result<(f64, usize), Error> {
        let score = self.infer_batch(x, targets)?;
        self.update(learning_rate);
        if let (true, Schedule::Multistep(updates)) = (self.settings.nudges(), self.settings.schedule) {
            let layers = self.network.layers();
            for _ in 1..updates {
                self.refresh_damping();
                (1..=layers).chain((1..layers).rev()).for_each(|k| self.relax_layer(k));
                self.check_states()?;
                self.update(learning_rate);
            }
        }
        Ok(score)
    }

    /// The part of a step before the update: forward pass and relaxation. [`gradient`](Self::gradient) then gives what an update would
    /// follow. Weights are changed by [`step`](Self::step) alone: a sum of gradients of several trainers cannot be applied yet.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn infer(&mut self, x: MatRef<'_, T>, targets: Targets<'_, T>) -> Result<Step<'_>, Error> {
        let (loss, correct) = self.infer_batch(x, targets)?;
        Ok(self.report(loss, correct))
    }

    /// Gradient of the mean loss from the states of the last [`infer`](Self::infer) (or of the last update of a
    /// [`step`](Self::step)): `∂ℓ/∂W_k = −Δ_{k+1}ᵀ s̄_k/(β_{k+1}B)`, `widths[k+1] × widths[k]`, and for the bias `−Σ Δ_{k+1}/(β_{k+1}B)`.
    /// Decay is not in it. Zero before the first batch.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless `k` is a layer of weights, [`Error::Shape`] and [`Error::Length`] for the outputs.
    pub fn gradient(&mut self, k: usize, mut weights: MatMut<'_, T>, bias: &mut [T]) -> Result<(), Error> {
        let layers = self.network.layers();
        check::parameter("k", k as f64, "below the number of weight layers", k < layers)?;
        let (n_out, n_in) = (self.network.widths[k + 1], self.network.widths[k]);
        check::shape("weights", weights.rb(), (n_out, n_in))?;
        check::length("bias", bias.len(), n_out)?;
        let (scale, ones) = (self.scale(k), &self.ones[..]);
        let operands = (self.units[k + 1].diff.view(), self.units[k].mean.view(), ones);
        gradient(&mut self.work, weights.rb_mut(), bias, operands, scale);
        Ok(())
    }

    fn report(&self, loss: f64, correct: usize) -> Step<'_> {
        let cosine = self.alignment.as_ref().filter(|_| self.measuring).map_or(&[][..], |a| &a.cosine);
        Step { loss, correct, updates: self.counts.updates, skipped: self.counts.skipped, cosine }
    }

    /// Checks and takes a batch, and relaxes. After an error the states are zero.
    fn infer_batch(&mut self, x: MatRef<'_, T>, targets: Targets<'_, T>) -> Result<(f64, usize), Error> {
        let batch = self.ones.len();
        check::shape("x", x, (batch, self.network.widths[0]))?;
        targets.check(batch, self.targets.cols())?;
        (0..batch).for_each(|row| targets.write(row, self.targets.row_mut(row)));
        self.set_input(x)?;
        self.units[0].mean_stamp = self.clock.tick();
        self.steps += 1;
        self.counts = Counts::default();
        let result = self.settle();
        if result.is_err() {
            for units in &mut self.units {
                units.mean.fill(T::ZERO);
                units.diff.fill(T::ZERO);
                units.forget();
            }
        }
        result
    }

    fn settle(&mut self) -> Result<(f64, usize), Error> {
        let score = self.start()?;
        match self.settings.method {
            Method::Backprop => self.back_propagate(),
            Method::Adversarial { beta } => {
                self.back_propagate();
                self.perturb_input(beta);
                self.forward_pass();
                self.set_residual(Residual::Current);
                self.back_propagate();
            }
            _ => {
                self.refresh_damping();
                self.relax();
            }
        }
        self.check_states()?;
        if self.measuring {
            self.measure();
        }
        Ok(score)
    }

    /// Copies the batch, and refuses what is not finite.
    fn set_input(&mut self, x: MatRef<'_, T>) -> Result<(), Error> {
        let input = &mut self.units[0].mean;
        let tasks = threads::tasks(self.runtime.par(), READING * input.rows() * input.cols());
        self.largest_input = copy_rows(self.runtime.isa(), tasks, input.view_mut(), x);
        if !self.largest_input.is_finite() {
            check::finite("x", x)?;
        }
        if let Some(alignment) = self.alignment.as_mut().filter(|_| self.measuring) {
            copy(&mut alignment.units[0].mean, input);
        }
        Ok(())
    }

    /// Bounds within which one update cannot turn finite weights into infinite ones.
    fn check_rate(&self, rate: f64) -> Result<(), Error> {
        check::parameter("learning_rate", rate, "from 0 to 1e6", (0.0..=1e6).contains(&rate))?;
        let (Decay::Coupled(lambda) | Decay::Decoupled(lambda)) = self.settings.decay else { return Ok(()) };
        let allowed = "such that learning rate times weight decay is at most 1";
        check::parameter("learning_rate", rate, allowed, rate * lambda <= 1.0)
    }

    /// Brings the states to where the schedule starts. Returns the mean loss of the plain forward pass and the hits.
    fn start(&mut self) -> Result<(f64, usize), Error> {
        let (isa, loss, layers) = (self.runtime.isa(), self.settings.loss, self.network.layers());
        let start = if self.settings.nudges() { self.settings.schedule.start() } else { Start::Forward };
        if start == Start::Forward {
            self.forward_pass();
        } else {
            if start == Start::Zero {
                for units in &mut self.units[1..] {
                    units.mean.fill(T::ZERO);
                }
            }
            for units in &mut self.units[1..] {
                if start == Start::Zero {
                    units.diff.fill(T::ZERO);
                }
                units.mean_stamp = self.clock.tick();
                units.diff_stamp = self.clock.tick();
                units.forget();
            }
        }
        let batch = self.ones.len();
        let prediction = match start {
            Start::Forward => self.units[layers].drive.view(),
            _ => {
                let input = self.units[0].mean.view();
                let network = &self.network;
                self.evaluator.predict(network, &mut self.synapses, &self.zeros, input)
            }
        };
        loss.totals(isa, &mut self.totals, prediction);
        loss.residual(isa, &mut self.residual, prediction, &self.targets);
        let (mut sum, mut correct) = (0.0, 0);
        for (row, &total) in self.totals.iter().enumerate() {
            let (prediction, target) = (row_of(prediction, row), self.targets.row(row));
            sum += loss.value(isa, total, prediction, target);
            correct += usize::from(reduce::arg_max(prediction) == reduce::arg_max(target));
        }
        let mean = sum / batch as f64;
        if mean.is_finite() { Ok((mean, correct)) } else { Err(Error::Diverged { layer: layers, step: self.steps }) }
    }

    /// Plain forward pass; the output keeps `a_L`, all differences are zero.
    fn forward_pass(&mut self) {
        let layers = self.network.layers();
        for k in 1..=layers {
            let [below, here] = self.units.get_disjoint_mut([k - 1, k]).expect("two layers");
            let (weights, bias) = self.network.incoming(k, &self.zeros);
            let synapse = &mut self.synapses[k - 1];
            let (below_mean, drive) = (below.mean.view(), here.drive.view_mut());
            if k < layers {
                let out = (drive, here.mean.view_mut(), self.network.activation);
                synapse.activate(&mut self.work, (weights, bias), below_mean, out);
            } else {
                synapse.drive(&mut self.work, (weights, bias), below_mean, drive);
                copy(&mut here.mean, &here.drive);
            }
            here.diff.fill(T::ZERO);
            here.mean_stamp = self.clock.tick();
            here.diff_stamp = self.clock.tick();
            here.drive_from = below.mean_stamp;
        }
        for k in 1..layers {
            // A hidden layer with no feedback is at rest.
            self.units[k].relaxed_from = Inputs { below: self.units[k].drive_from, above: self.units[k + 1].diff_stamp };
        }
        self.units[layers].relaxed_from = Inputs { below: self.units[layers].drive_from, above: FREE };
    }

    /// Computes the damping constants of the present weights.
    fn refresh_damping(&mut self) {
        if self.rule.damping.is_none() {
            return;
        }
        for (k, norm) in self.norms.iter_mut().enumerate().skip(1) {
            if let Some(norm) = norm {
                norm.lambda = self.rule.lambda(norm.get(self.network.weights(k), &mut self.work).upper);
            }
        }
    }

    /// Relaxes by the schedule.
    fn relax(&mut self) {
        let layers = self.network.layers();
        if let Schedule::Parallel(steps) = self.settings.schedule {
            for t in 1..=steps {
                (1..=layers).for_each(|k| self.refresh_drive(k));
                // Ascending: layer k reads the difference of k + 1, which is still the old one, and the drives are all computed.
                (1..layers).for_each(|k| self.relax_hidden(k));
                self.relax_output(t >= layers);
            }
            return;
        }
        let mut rng = self.rng.clone();
        sequence(self.settings.schedule, layers, &mut rng, |k| self.relax_layer(k));
        self.rng = rng;
    }

    fn relax_layer(&mut self, k: usize) {
        if k == self.network.layers() {
            self.refresh_drive(k);
            self.relax_output(true);
        } else if self.settings.skip
            && self.units[k].feedback_from == self.units[k + 1].diff_stamp
            && self.units[k].drive_from != self.units[k - 1].mean_stamp
        {
            self.relax_from_below(k);
        } else {
            self.refresh_drive(k);
            self.relax_hidden(k);
        }
    }

    /// Computes the bottom-up drive of layer `k` unless it is that of the present mean below.
    fn refresh_drive(&mut self, k: usize) {
        let [below, here] = self.units.get_disjoint_mut([k - 1, k]).expect("two layers");
        if self.settings.skip && here.drive_from == below.mean_stamp {
            return;
        }
        let incoming = self.network.incoming(k, &self.zeros);
        self.synapses[k - 1].drive(&mut self.work, incoming, below.mean.view(), here.drive.view_mut());
        here.drive_from = below.mean_stamp;
    }

    /// Relaxes hidden layer `k` from its drive and the difference above.
    fn relax_hidden(&mut self, k: usize) {
        let inputs = Inputs { below: self.units[k].drive_from, above: self.units[k + 1].diff_stamp };
        if self.settings.skip && self.rule.damping.is_none() && self.units[k].relaxed_from == inputs {
            self.counts.skipped += 1;
            return;
        }
        let damping = self.damping(k);
        let [here, above] = self.units.get_disjoint_mut([k, k + 1]).expect("two layers");
        let keeps_feedback = self.settings.skip && self.settings.schedule.repeats();
        let relax = Epilogue::Dyad {
            drive: Input::new(here.drive.view()),
            feedback: keeps_feedback.then(|| Output::new(here.feedback.view_mut())),
            mean: Output::new(here.mean.view_mut()),
            diff: Output::new(here.diff.view_mut()),
            nudge: self.rule.nudge(),
            damping,
            activation: self.network.activation,
        };
        let weights = self.network.weights[k].view();
        self.synapses[k].feed_back(&mut self.work, weights, above.diff.view(), relax);
        if keeps_feedback {
            here.feedback_from = inputs.above;
        }
        self.relaxed(k, inputs);
    }

    /// Relaxes hidden layer `k` from a new mean below, with the feedback that it was relaxed with before.
    fn relax_from_below(&mut self, k: usize) {
        let damping = self.damping(k);
        let [below, here] = self.units.get_disjoint_mut([k - 1, k]).expect("two layers");
        let (weights, bias) = self.network.incoming(k, &self.zeros);
        let relax = Epilogue::DyadFromBelow {
            drive: Output::new(here.drive.view_mut()),
            bias: Input::repeated(bias, below.mean.rows()),
            feedback: Input::new(here.feedback.view()),
            mean: Output::new(here.mean.view_mut()),
            diff: Output::new(here.diff.view_mut()),
            nudge: self.rule.nudge(),
            damping,
            activation: self.network.activation,
        };
        self.synapses[k - 1].forward(&mut self.work, weights, below.mean.view(), relax);
        here.drive_from = below.mean_stamp;
        let inputs = Inputs { below: here.drive_from, above: here.feedback_from };
        self.relaxed(k, inputs);
    }

    fn damping(&self, k: usize) -> Option<f64> {
        self.rule.damping.and_then(|_| self.norms[k].as_ref()).map(|norm| norm.lambda)
    }

    /// Stamps hidden layer `k`, which has been relaxed from `inputs`.
    fn relaxed(&mut self, k: usize, inputs: Inputs) {
        let here = &mut self.units[k];
        self.counts.updates += 1;
        here.diff_stamp = self.clock.tick();
        if !(self.rule.mean_is_forward() && here.relaxed_from.below == inputs.below) {
            here.mean_stamp = self.clock.tick();
        }
        here.relaxed_from = inputs;
    }

    /// Sets the output from its drive: `mean ← a_L`, and a difference along the residual if it is nudged, else none.
    fn relax_output(&mut self, nudged: bool) {
        let layers = self.network.layers();
        let residual = self.rule.output.residual;
        let inputs = Inputs { below: self.units[layers].drive_from, above: if nudged { NUDGED } else { FREE } };
        let old = self.units[layers].relaxed_from;
        if self.settings.skip && residual != Residual::Previous && old == inputs {
            self.counts.skipped += 1;
            return;
        }
        if nudged && residual != Residual::Initial {
            self.set_residual(residual);
        }
        let here = &mut self.units[layers];
        copy(&mut here.mean, &here.drive);
        here.mean_stamp = self.clock.tick();
        // A residual that was taken at the first prediction stays what it is.
        if !(nudged && old.above == NUDGED && residual == Residual::Initial) {
            if nudged {
                let gain = T::from_f64(self.rule.output.gain);
                for row in 0..self.residual.rows() {
                    for (d, &e) in here.diff.row_mut(row).iter_mut().zip(self.residual.row(row)) {
                        *d = gain * e;
                    }
                }
            } else {
                here.diff.fill(T::ZERO);
            }
            here.diff_stamp = self.clock.tick();
        }
        here.relaxed_from = inputs;
        self.counts.updates += 1;
    }

    /// `residual ← −∇ℓ` at the present drive of the output, or at its last.
    fn set_residual(&mut self, at: Residual) {
        let output = &self.units[self.network.layers()];
        let prediction = if at == Residual::Previous { &output.mean } else { &output.drive };
        self.settings.loss.residual(self.runtime.isa(), &mut self.residual, prediction.view(), &self.targets);
    }

    /// `Δ_L ← residual`, `Δ_k ← f'(a_k) ⊙ Δ_{k+1}W_k`.
    fn back_propagate(&mut self) {
        let layers = self.network.layers();
        copy(&mut self.units[layers].diff, &self.residual);
        for k in (1..layers).rev() {
            let [here, above] = self.units.get_disjoint_mut([k, k + 1]).expect("two layers");
            let back = Epilogue::Derivative {
                drive: Input::new(here.drive.view()),
                diff: Output::new(here.diff.view_mut()),
                activation: self.network.activation,
            };
            let (weights, above) = (self.network.weights[k].view(), above.diff.view());
            self.work.top_down(weights, above, back);
        }
        self.counts.updates += layers;
    }

    /// `x ← x + β∇ₓℓ` of each sample: `∇ₓℓ = −Δ₁W₀`.
    fn perturb_input(&mut self, beta: f64) {
        let [input, first] = self.units.get_disjoint_mut([0, 1]).expect("two layers");
        let out = Epilogue::Accumulate { out: Output::new(input.mean.view_mut()), scale: T::from_f64(-beta) };
        let weights = self.network.weights[0].view();
        self.work.top_down(weights, first.diff.view(), out);
        input.mean_stamp = self.clock.tick();
        self.largest_input = largest_of(&self.runtime, &input.mean);
    }

    /// What turns `Σ_b Δ s̄` of weight layer `k` into the gradient: `−1/(β_{k+1}B)`.
    fn scale(&self, k: usize) -> f64 {
        -self.rule.inverse_beta(k + 1, self.network.layers()) / self.ones.len() as f64
    }

    /// Refuses states from which an update might leave the range of numbers.
    fn check_states(&self) -> Result<(), Error> {
        let isa = self.runtime.isa();
        let max_abs = |states: &RowMajor<T>| largest_of(&self.runtime, states);
        let batch = self.ones.len() as f64;
        // Coupled decay is part of the gradient, which moments add up and square.
        let decay = match self.settings.decay {
            Decay::Coupled(lambda) if self.settings.optimizer.moments() > 0 => lambda,
            _ => 0.0,
        };
        let mut below = self.largest_input;
        for k in 1..=self.network.layers() {
            let (mean, diff) = (max_abs(&self.units[k].mean), max_abs(&self.units[k].diff));
            let sum = batch * diff * below.max(1.0);
            let mut pull = 0.0;
            if decay > 0.0 {
                let bias = self.network.bias(k - 1).map_or(0.0, |bias| reduce::max_abs(isa, bias));
                pull = decay * max_abs(&self.network.weights[k - 1]).max(bias);
            }
            let (largest_sum, largest_gradient) = largest::<T>();
            let gradient = self.scale(k - 1).abs() * sum + pull;
            if !(mean.is_finite() && sum <= largest_sum && gradient <= largest_gradient) {
                return Err(Error::Diverged { layer: k, step: self.steps });
            }
            below = mean;
        }
        Ok(())
    }

    /// Updates all layers of weights from the present states.
    fn update(&mut self, learning_rate: f64) {
        self.optimizer_steps += 1;
        for k in 0..self.network.layers() {
            let update = Update {
                optimizer: self.settings.optimizer,
                decay: self.settings.decay,
                learning_rate,
                step: self.optimizer_steps,
                scale: self.scale(k),
            };
            let operands = (self.units[k + 1].diff.view(), self.units[k].mean.view(), &self.ones[..]);
            let weights = self.network.weights[k].view_mut();
            let bias = self.network.biases.as_mut().map(|biases| &mut biases[k][..]);
            self.synapses[k].update(&mut self.work, weights, bias, operands, &update);
        }
        self.units.iter_mut().for_each(Units::forget);
        self.norms.iter_mut().flatten().for_each(|norm| norm.enclosure = None);
    }

    /// Compares the gradient of the present states with that of back-propagation at the same weights and inputs.
    fn measure(&mut self) {
        let Some(mut alignment) = self.alignment.take() else { return };
        let counts = self.counts;
        core::mem::swap(&mut self.units, &mut alignment.units);
        self.forward_pass();
        self.set_residual(Residual::Current);
        self.back_propagate();
        core::mem::swap(&mut self.units, &mut alignment.units);
        self.counts = counts;
        let plain = -1.0 / self.ones.len() as f64;
        for k in 0..self.network.layers() {
            let (n_out, n_in) = (self.network.widths[k + 1], self.network.widths[k]);
            let sources = [(&self.units, self.scale(k)), (&alignment.units, plain)];
            for (out, (units, scale)) in alignment.gradients.iter_mut().zip(sources) {
                let weights = out.weights.view_mut().submatrix_mut(0, 0, n_out, n_in);
                let operands = (units[k + 1].diff.view(), units[k].mean.view(), &self.ones[..]);
                gradient(&mut self.work, weights, &mut out.bias[..n_out], operands, scale);
            }
            let [ours, theirs] = &alignment.gradients;
            let with_bias = self.network.biases.is_some();
            let dot = |a: &Gradient<T>, b: &Gradient<T>| a.dot(b, self.runtime.isa(), n_out, n_in, with_bias);
            let norms = dot(ours, ours).sqrt() * dot(theirs, theirs).sqrt();
            alignment.cosine[k] = dot(ours, theirs) / norms;
        }
        self.alignment = Some(alignment);
    }

    /// Outputs of the network for `x` (any number of rows, any strides), without nudging.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::NotFinite`] for the arguments.
    pub fn predict(&mut self, x: MatRef<'_, T>, mut out: MatMut<'_, T>) -> Result<(), Error> {
        let layers = self.network.layers();
        check::shape("x", x, (x.nrows(), self.network.widths[0]))?;
        check::shape("out", out.rb(), (x.nrows(), self.network.widths[layers]))?;
        check::finite_on(self.runtime.par(), "x", x)?;
        let chunk = self.evaluator.capacity();
        for from in (0..x.nrows()).step_by(chunk) {
            let rows = chunk.min(x.nrows() - from);
            let prediction = self.predict_chunk(x.subrows(from, rows));
            for row in 0..rows {
                let to = out.rb_mut().row_mut(from + row);
                to.iter_mut().zip(row_of(prediction, row)).for_each(|(to, &value)| *to = value);
            }
        }
        Ok(())
    }

    /// Loss and accuracy on any number of samples.
    ///
    /// # Errors
    /// As [`step`](Self::step) for the arguments; [`Error::Parameter`] for no samples.
    pub fn evaluate(&mut self, x: MatRef<'_, T>, targets: Targets<'_, T>) -> Result<Evaluation, Error> {
        let (samples, n_out) = (x.nrows(), self.network.widths[self.network.layers()]);
        check::shape("x", x, (samples, self.network.widths[0]))?;
        check::parameter("samples", samples as f64, "at least 1", samples > 0)?;
        targets.check(samples, n_out)?;
        check::finite_on(self.runtime.par(), "x", x)?;
        let (isa, loss, chunk) = (self.runtime.isa(), self.settings.loss, self.evaluator.capacity());
        let (mut target, mut totals) = (vec![T::ZERO; n_out], vec![0.0; chunk.min(samples)]);
        let (mut sum, mut correct) = (0.0, 0);
        for from in (0..samples).step_by(chunk) {
            let rows = chunk.min(samples - from);
            let prediction = self.predict_chunk(x.subrows(from, rows));
            loss.totals(isa, &mut totals[..rows], prediction);
            for (row, &total) in totals[..rows].iter().enumerate() {
                let prediction = row_of(prediction, row);
                targets.write(from + row, &mut target);
                sum += loss.value(isa, total, prediction, &target);
                correct += usize::from(reduce::arg_max(prediction) == reduce::arg_max(&target));
            }
        }
        Ok(Evaluation { loss: sum / samples as f64, accuracy: correct as f64 / samples as f64 })
    }

    fn predict_chunk(&mut self, x: MatRef<'_, T>) -> MatRef<'_, T> {
        self.evaluator.predict(&self.network, &mut self.synapses, &self.zeros, x)
    }

    /// `‖W_k‖₂` of every layer, for the weights as they are now, within the gap of [`Settings::norms`]; empty without. Costs nothing until asked, and nothing
    /// the second time between two updates; what a call costs is said at [`Tracker::update`].
    pub fn norms(&mut self) -> &[Enclosure] {
        self.enclosures.clear();
        if self.settings.norms.is_some() {
            for (k, norm) in self.norms.iter_mut().enumerate() {
                self.enclosures.extend(norm.as_mut().map(|norm| norm.get(self.network.weights(k), &mut self.work)));
            }
        }
        &self.enclosures
    }

    /// [`proxy_lipschitz`](Self::proxy_lipschitz) between two bounds, as near as `search` asks for.
    ///
    /// # Errors
    /// Those of [`enclose`].
    pub fn proxy_enclosure(&self, search: &Search) -> Result<Enclosure, Error> {
        let factors: Vec<_> = (0..self.network.layers()).map(|k| self.network.weights(k)).collect();
        Ok(enclose(&Chain::new(&factors)?, search, &self.runtime)?.enclosure)
    }

    /// A lower bound of `‖W_{L−1} ⋯ W_0‖₂`, the proxy for the Lipschitz constant in Høier & Zach 2024 (activations ignored): Lanczos
    /// steps until the rank is exhausted, at most 64.
    pub fn proxy_lipschitz(&mut self) -> f64 {
        let chain: Vec<_> = (0..self.network.layers()).map(|k| self.network.weights(k)).collect();
        self.proxy.lower_bound(&chain, &self.runtime)
    }
}

/// The largest magnitude of some states; infinity if one is NaN.
fn largest_of<T: Real>(runtime: &Runtime, states: &RowMajor<T>) -> f64 {
    let largest = |rows: Range<usize>| rows.map(|row| reduce::max_abs(runtime.isa(), states.row(row))).fold(0.0, f64::max);
    let tasks = threads::tasks(runtime.par(), READING * states.rows() * states.cols());
    threads::fold(tasks, 0..states.rows(), &largest, f64::max)
}

/// Copies the rows of any matrix. Returns the largest magnitude, infinity if one is NaN.
fn copy_rows<T: Real>(isa: Isa, tasks: usize, mut to: MatMut<'_, T>, from: MatRef<'_, T>) -> f64 {
    if tasks <= 1 {
        let mut largest = 0.0;
        for row in 0..from.nrows() {
            let to =
                to.rb_mut().row_mut(row).try_as_row_major_mut().expect("the trainer's own matrices are row-major").as_slice_mut();
            match from.row(row).try_as_row_major() {
                Some(from) => to.copy_from_slice(from.as_slice()),
                None => to.iter_mut().zip(from.row(row).iter()).for_each(|(to, &from)| *to = from),
            }
            largest = f64::max(largest, reduce::max_abs(isa, to));
        }
        return largest;
    }
    let (left, middle) = (tasks / 2, from.nrows() * (tasks / 2) / tasks);
    let ((to, below), (from, rest)) = (to.split_at_row_mut(middle), from.split_at_row(middle));
    let (a, b) = threads::join(|| copy_rows(isa, left, to, from), || copy_rows(isa, tasks - left, below, rest));
    a.max(b)
}

fn copy<T: Real>(to: &mut RowMajor<T>, from: &RowMajor<T>) {
    for row in 0..from.rows() {
        to.row_mut(row).copy_from_slice(from.row(row));
    }
}

/// A row of a matrix whose columns are contiguous.
fn row_of<T>(matrix: MatRef<'_, T>, row: usize) -> &[T] {
    matrix.row(row).try_as_row_major().expect("the trainer's own matrices are row-major").as_slice()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Damping;
    use crate::{Activation, Isa, Par};

    #[test]
    fn damping_is_never_below_that_of_the_true_norm() {
        let runtime = Runtime::new(Isa::best(), Par::Seq);
        let mut network = Network::<f32>::new(&[20, 40, 30, 5], Activation::Relu, true).expect("sound widths");
        network.initialize(Init::LecunNormal, 1);
        let settings = Settings::new(Method::DpDamped { alpha: 0.0, beta: 0.5, damping: Damping::Plain });
        let mut trainer = Trainer::new(network, &settings, 10, &runtime).expect("sound settings");
        let mut random = Counter::new(2, 0);
        let mut damped = 0;
        for _ in 0..30 {
            let x: Vec<f32> = (0..10 * 20).map(|_| random.uniform() as f32).collect();
            let x = MatRef::from_row_major_slice(&x, 10, 20);
            let y = core::array::from_fn::<u32, 10, _>(|i| i as u32 % 5);
            trainer.infer(x, Targets::Classes(&y)).expect("a sound batch");
            for k in 1..3 {
                let weights = crate::lipschitz::Dense::new(trainer.network().weights(k));
                let norm = enclose(&weights, &Search::default(), &runtime).expect("finite weights").enclosure;
                let lambda = trainer.norms[k].as_ref().expect("damping asks for it").lambda;
                assert!(lambda >= trainer.rule.lambda(norm.lower), "layer {k}: {lambda} for {norm:?}");
                assert!(lambda <= trainer.rule.lambda(1.05 * norm.upper), "layer {k}: {lambda} for {norm:?}");
                damped += usize::from(lambda > 0.0);
            }
            trainer.step(x, Targets::Classes(&y), 1e-3).expect("a sound batch");
        }
        assert!(damped >= 30, "{damped}");
    }
}
