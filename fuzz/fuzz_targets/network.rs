//! Whole networks from bytes, with settings that may be nonsense, trained for three steps: values or errors, finite weights, and the same
//! bits on each instruction set.
#![no_main]

use arbitrary::{Result, Unstructured};
use dualprop::network::{
    Damping, Decay, Init, Loss, Method, Network, NudgeAt, Optimizer, Output, Schedule, Settings, Step, Targets, Trainer,
};
use dualprop::{Activation, Isa, MatRef, Par, Real, Runtime};
use libfuzzer_sys::fuzz_target;

/// A number: sensible, extreme, or of any bit pattern.
fn number(u: &mut Unstructured<'_>) -> Result<f64> {
    const EXTREMES: [f64; 12] =
        [0.0, -0.0, 1.0, -1.0, 0.5, 1e6, 1e-38, 1e38, f64::MIN_POSITIVE, f64::MAX, f64::INFINITY, f64::NAN];
    match u.int_in_range(0..=15u8)? {
        0 => u.arbitrary(),
        1 => Ok(*u.choose(&EXTREMES)?),
        2 => Ok(f64::from(f32::from_bits(u.arbitrary()?))),
        _ => share(u),
    }
}

/// From 0 to 1.
fn share(u: &mut Unstructured<'_>) -> Result<f64> {
    Ok(f64::from(u.arbitrary::<u8>()?) / 255.0)
}

/// A size up to `most`, and mostly far below: small networks run often. Rarely 0.
fn size(u: &mut Unstructured<'_>, most: usize) -> Result<usize> {
    let ceiling = match u.int_in_range(0..=15u8)? {
        0 => most,
        15 => return Ok(0),
        k => most >> (1 + k % 4),
    };
    u.int_in_range(1..=ceiling.max(1))
}

/// Numbers of `T`: fractions of a scale, now and then any.
fn numbers<T: Real>(u: &mut Unstructured<'_>, count: usize) -> Result<Vec<T>> {
    let scale = if u.ratio(7u8, 8u8)? { 1.0 } else { number(u)? };
    let element = |u: &mut Unstructured<'_>| match u.arbitrary::<i8>()? {
        i8::MIN => number(u),
        small => Ok(scale * f64::from(small) / 64.0),
    };
    (0..count).map(|_| element(u).map(T::from_f64)).collect()
}

fn settings(u: &mut Unstructured<'_>) -> Result<Settings> {
    let (alpha, beta) = (number(u)?, number(u)?);
    let damping = *u.choose(&[Damping::Scaled, Damping::Plain])?;
    let methods = [
        Method::Backprop,
        Method::Adversarial { beta },
        Method::Dp { alpha, beta },
        Method::DpTranspose { alpha, beta },
        Method::DpDamped { alpha, beta, damping },
        Method::DpOld { alpha, beta },
        Method::DpGain { gain: beta },
        Method::KpDp { alpha, beta },
    ];
    let passes = u.int_in_range(0..=3)?;
    let schedules = [
        Schedule::Rounds(passes),
        Schedule::Forward(passes),
        Schedule::Backward,
        Schedule::ForwardBackward(passes),
        Schedule::OddEven(passes),
        Schedule::EvenOdd(passes),
        Schedule::Parallel(passes),
        Schedule::Random(passes),
        Schedule::Corrupted(passes),
        Schedule::Multistep(passes),
    ];
    let optimizers = [
        Optimizer::Sgd,
        Optimizer::Momentum { mu: number(u)? },
        Optimizer::ADAM,
        Optimizer::Adam { beta1: number(u)?, beta2: number(u)?, epsilon: number(u)? },
    ];
    let outputs = [Output::Prox, Output::Linearized(NudgeAt::Initial), Output::Linearized(NudgeAt::Current)];
    let lambda = number(u)?;
    Ok(Settings {
        loss: *u.choose(&[Loss::Squared, Loss::CrossEntropy])?,
        output: *u.choose(&outputs)?,
        schedule: *u.choose(&schedules)?,
        optimizer: *u.choose(&optimizers)?,
        decay: *u.choose(&[Decay::None, Decay::Coupled(lambda), Decay::Decoupled(lambda)])?,
        seed: u.arbitrary::<u8>()?.into(),
        alignment: u.arbitrary()?,
        skip: u.arbitrary()?,
        ..Settings::new(*u.choose(&methods)?)
    })
}

/// A training of three steps.
#[derive(Debug)]
struct Case<T> {
    widths: Vec<usize>,
    activation: Activation,
    bias: bool,
    /// Weights and biases of all layers in turn, or a seed.
    weights: std::result::Result<Vec<T>, (Init, u64)>,
    settings: Settings,
    batch: usize,
    steps: [Batch<T>; 3],
}

#[derive(Debug)]
struct Batch<T> {
    x: Vec<T>,
    /// Rows of the batch, mostly as many as there should be.
    rows: usize,
    classes: Option<Vec<u32>>,
    values: Vec<T>,
    learning_rate: f64,
}

impl<T: Real> Case<T> {
    fn new(u: &mut Unstructured<'_>) -> Result<Self> {
        let mut widths = Vec::new();
        // Where bytes have run out, the usual.
        let layers = if u.ratio(31u8, 32u8)? { u.int_in_range(2..=5)? } else { u.int_in_range(0..=1u8)? };
        for _ in 0..layers {
            let usual = u.ratio(63u8, 64u8)?;
            widths.push(if usual { 1 + size(u, 7)? } else { *u.choose(&[0, usize::MAX, usize::MAX / 64])? });
        }
        let layers = || widths.windows(2).map(|pair| (pair[0], pair[1]));
        let is_small = widths.iter().all(|&width| width <= 8);
        let parameters = if is_small { layers().map(|(n_in, n_out)| n_out * (n_in + 1)).sum() } else { 0 };
        let weights = if u.ratio(1u8, 4u8)? {
            Err((*u.choose(&[Init::LecunNormal, Init::GlorotUniform])?, u.arbitrary()?))
        } else {
            Ok(numbers(u, parameters)?)
        };
        let (settings, batch) = (settings(u)?, size(u, 17)?);
        let [n_in, n_out] = [widths.first(), widths.last()].map(|width| width.map_or(0, |&width| width.min(8)));
        let mut step = || {
            let rows = if u.ratio(63u8, 64u8)? { batch } else { u.int_in_range(0..=18)? };
            let label = |u: &mut Unstructured<'_>| Ok(u32::from(u.arbitrary::<u8>()?) % (n_out as u32 + 1));
            Ok(Batch {
                x: numbers(u, rows * n_in)?,
                rows,
                classes: if u.arbitrary()? { Some((0..rows).map(|_| label(u)).collect::<Result<_>>()?) } else { None },
                values: numbers(u, rows * n_out)?,
                learning_rate: number(u)?,
            })
        };
        let steps = [step()?, step()?, step()?];
        Ok(Self { activation: *u.choose(Activation::ALL)?, bias: u.arbitrary()?, widths, weights, settings, batch, steps })
    }

    fn network(&self) -> std::result::Result<Network<T>, dualprop::Error> {
        let mut network = Network::new(&self.widths, self.activation, self.bias)?;
        match &self.weights {
            &Err((init, seed)) => network.initialize(init, seed),
            Ok(numbers) => {
                let mut numbers = numbers.iter().copied().chain(core::iter::repeat(T::ONE));
                let mut next = || numbers.next().expect("without end");
                for k in 0..network.layers() {
                    let mut weights = network.weights_mut(k);
                    for i in 0..weights.nrows() {
                        weights.as_mut().row_mut(i).iter_mut().for_each(|w| *w = next());
                    }
                    network.bias_mut(k).into_iter().flatten().for_each(|b| *b = next());
                }
            }
        }
        Ok(network)
    }

    /// All that can be seen of the training.
    fn train(&self, isa: Isa) -> Vec<Seen> {
        let trainer =
            self.network().and_then(|network| Trainer::new(network, &self.settings, self.batch, &Runtime::new(isa, Par::Seq)));
        let mut trainer = match trainer {
            Ok(trainer) => trainer,
            Err(error) => return vec![Seen::error(error)],
        };
        let mut seen = Vec::new();
        let mut before = bits(trainer.network());
        for step in &self.steps {
            let [n_in, n_out] = [self.widths.first(), self.widths.last()].map(|width| *width.expect("two widths"));
            let x = MatRef::from_row_major_slice(&step.x, step.rows, n_in);
            let targets = match &step.classes {
                Some(classes) => Targets::Classes(classes),
                None => Targets::Values(MatRef::from_row_major_slice(&step.values, step.rows, n_out)),
            };
            let result = trainer.step(x, targets, step.learning_rate).map(|Step { loss, correct, updates, skipped, cosine }| {
                let counts = [correct, updates, skipped].map(|count| count as u64);
                let numbers = core::iter::once(&loss).chain(cosine).map(|&x| number_bits(x));
                Seen::Numbers(numbers.chain(counts).collect())
            });
            let failed = result.is_err();
            seen.push(result.unwrap_or_else(Seen::error));
            let after = bits(trainer.network());
            let several = matches!(self.settings.schedule, Schedule::Multistep(_));
            assert!(!failed || several || before == after, "a failed step has changed the weights: {self:?}");
            before.clone_from(&after);
            seen.push(Seen::Numbers(after));
            let result = trainer.evaluate(x, targets);
            seen.push(result.map_or_else(Seen::error, |e| Seen::Numbers(vec![number_bits(e.loss), number_bits(e.accuracy)])));
        }
        seen
    }
}

/// What a call shows: an error as text, or numbers as bits.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Numbers(Vec<u64>),
    Error(String),
}

impl Seen {
    fn error(error: dualprop::Error) -> Self {
        Seen::Error(format!("{error:?}: {error}"))
    }
}

/// The bits of `x`, where any NaN equals any other.
fn number_bits(x: f64) -> u64 {
    if x.is_nan() { f64::NAN.to_bits() } else { x.to_bits() }
}

/// The bits of all weights and biases, which must be finite.
fn bits<T: Real>(network: &Network<T>) -> Vec<u64> {
    let mut bits = Vec::new();
    for k in 0..network.layers() {
        let weights = network.weights(k);
        let weights = (0..weights.nrows()).flat_map(|i| weights.row(i).iter().copied());
        for w in weights.chain(network.bias(k).into_iter().flatten().copied()) {
            assert!(w.is_finite(), "layer {k} has {w:e}");
            bits.push(w.to_bits());
        }
    }
    bits
}

fn run<T: Real>(u: &mut Unstructured<'_>) -> Result<()> {
    let case = Case::<T>::new(u)?;
    let mut first = None;
    for isa in Isa::available() {
        let seen = case.train(isa);
        let first = first.get_or_insert_with(|| seen.clone());
        assert_eq!(&seen, first, "{isa}: {case:?}");
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    // Too few bytes are no case.
    let _ = if u.arbitrary().unwrap_or(false) { run::<f64>(&mut u) } else { run::<f32>(&mut u) };
});
