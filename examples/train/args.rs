//! The command line, and the runs that it asks for.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, ValueEnum};
use dualprop::Activation;
use dualprop::lipschitz::Tracking;
use dualprop::network::{Damping, Decay, LearningRate, Loss, Method, NudgeAt, Optimizer, Output, Schedule, Settings};

use crate::data::Result;

/// Trains dense networks by dual propagation and its baselines, from the same initial weights, and compares them.
///
/// Without arguments: 64-128-128-10 on the embedded digits by DP⊤ at α = 0, ½ and 1, by DP at α = ½, by damped DP at α = 0,
/// and by back-propagation. The table goes to the terminal; learning curves, first-layer weights, all numbers (CSV) and final
/// weights (safetensors) go to the directory `report`.
///
/// Loss and training accuracy are means over the steps of an epoch, each before its update. In every 10th step the gradient is
/// compared with that of back-propagation; seconds and samples per second count the other steps, without evaluations.
#[derive(Clone, Debug, Parser)]
#[command(name = "train", version, verbatim_doc_comment, allow_negative_numbers = true)]
pub(crate) struct Args {
    /// Methods, comma-separated [default: the six runs above]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) method: Vec<MethodName>,
    /// Asymmetry of nudging in [0, 1], one value or several; every method that has an α runs with each
    /// [default: 0.5; damped DP 0]
    #[arg(long, value_delimiter = ',')]
    pub(crate) alpha: Vec<f64>,
    /// Nudging strength, > 0; with the prox output (1 − α)β < 1. For `adversarial` the size of the input step
    #[arg(long, default_value_t = 0.5)]
    pub(crate) beta: f64,
    /// Feedback gain γ of `dp-gain`, in (0, 2)
    #[arg(long, default_value_t = 1.0)]
    pub(crate) gain: f64,
    /// Damping of `dp-damped`: with the factor |1 − 2α|, or without
    #[arg(long, value_enum, default_value_t = DampingName::Scaled)]
    pub(crate) damping: DampingName,
    /// Loss
    #[arg(long, value_enum, default_value_t = LossName::Squared)]
    pub(crate) loss: LossName,
    /// How the output layer is nudged [default: what was published with the method; linearized for cross-entropy]
    #[arg(long, value_enum)]
    pub(crate) output: Option<OutputName>,
    /// The prediction at which a linearized output takes the gradient of the loss; implies `--output linearized`
    /// [default: current]
    #[arg(long, value_enum)]
    pub(crate) nudge_at: Option<NudgeAtName>,
    /// Activation of the hidden layers
    #[arg(long, default_value = "relu", value_parser = activation())]
    pub(crate) activation: Activation,
    /// Widths of the hidden layers
    #[arg(long, value_delimiter = ',', default_value = "128,128")]
    pub(crate) hidden: Vec<usize>,
    /// Layers without biases
    #[arg(long)]
    pub(crate) no_bias: bool,
    /// Order of the layer updates
    #[arg(long, value_enum, default_value_t = ScheduleName::Rounds)]
    pub(crate) schedule: ScheduleName,
    /// Rounds or passes of the schedule; 0 rounds are one sweep up and one down, `bw` ignores it [default: rounds 5, for
    /// `dp-damped` 15; corrupted 1; multistep 2; others the number of layers, parallel twice and random 8 times that]
    #[arg(long)]
    pub(crate) passes: Option<usize>,
    /// Passes through the training rows; 0 only evaluates [default: 20, or as many as `--steps` needs]
    #[arg(long)]
    pub(crate) epochs: Option<usize>,
    /// Stop after this many steps in total
    #[arg(long)]
    pub(crate) steps: Option<u64>,
    /// Rows of a step; an incomplete last batch is dropped
    #[arg(long, default_value_t = 50)]
    pub(crate) batch: usize,
    /// Optimizer: SGD, heavy-ball momentum (0.9), or Adam (0.9, 0.999, 1e-8)
    #[arg(long, value_enum, default_value_t = OptimizerName::Adam)]
    pub(crate) optimizer: OptimizerName,
    /// Learning rate; with `--warmup` its peak
    #[arg(long, default_value_t = 1e-3)]
    pub(crate) lr: f64,
    /// Weight decay
    #[arg(long, default_value_t = 0.0)]
    pub(crate) weight_decay: f64,
    /// Weight decay as part of the gradient, or apart from it
    #[arg(long, value_enum, default_value_t = DecayName::Coupled)]
    pub(crate) decay: DecayName,
    /// Epochs of a linear rise from a 25th of the learning rate to its peak, then half a cosine down to 1/12500 of it at the
    /// end; 0 is the cosine alone [default: constant learning rate]
    #[arg(long)]
    pub(crate) warmup: Option<f64>,
    /// Seed of the initial weights, the order of the rows and whatever else is random
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Precision of everything
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) precision: Precision,
    /// Threads, 0 for one on each core; no result depends on it [default: DUALPROP_NUM_THREADS, or 0]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// `digits`, `fashion-mnist`, a directory with IDX files, or an NPZ file with x_train, y_train, x_test and y_test
    #[arg(long, default_value = "digits")]
    pub(crate) data: String,
    /// Initial weights (safetensors: w0, b0, w1, …) [default: normal, variance 1/inputs; biases 0]
    #[arg(long, value_name = "FILE")]
    pub(crate) init: Option<PathBuf>,
    /// Take consecutive rows in their order, the same in every epoch
    #[arg(long)]
    pub(crate) no_shuffle: bool,
    /// Also save the final weights here; with several runs NAME.safetensors becomes NAME-METHOD-ALPHA.safetensors
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,
    /// Write every number and setting here
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Directory for pictures, CSV and weights
    #[arg(long, value_name = "DIR", default_value = "report")]
    pub(crate) report: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum MethodName {
    /// Dual propagation
    Dp,
    /// DP⊤, the improved variant
    DpTranspose,
    /// DP with damped relaxation
    DpDamped,
    /// DP with α at the output only
    DpOld,
    /// DP of 2023 with a feedback gain
    DpGain,
    /// DP without weight transport (Kolen–Pollack)
    KpDp,
    /// Back-propagation
    Backprop,
    /// Back-propagation at inputs moved up the gradient
    Adversarial,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum DampingName {
    Scaled,
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum LossName {
    Squared,
    CrossEntropy,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum OutputName {
    Prox,
    Linearized,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum NudgeAtName {
    Initial,
    Current,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum ScheduleName {
    Rounds,
    Fw,
    Bw,
    Fwbw,
    Oddeven,
    Evenodd,
    Parallel,
    Random,
    Corrupted,
    Multistep,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum OptimizerName {
    Sgd,
    Momentum,
    Adam,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum DecayName {
    Coupled,
    Decoupled,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Precision {
    F32,
    F64,
}

/// One training run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Run {
    /// Method and α, unique, fit for file names: `dp-transpose-0.5`.
    pub(crate) label: String,
    /// What the trainer is made from.
    pub(crate) settings: Settings,
}

impl Args {
    /// The runs, without repetitions.
    pub(crate) fn runs(&self) -> Result<Vec<Run>> {
        if self.nudge_at.is_some() && self.output == Some(OutputName::Prox) {
            return Err("--nudge-at is given with --output prox; it is allowed with --output linearized".into());
        }
        let mut runs: Vec<Run> = Vec::new();
        for run in self.methods().into_iter().map(|method| self.run(method)) {
            if runs.iter().all(|other| other.label != run.label) {
                runs.push(run);
            }
        }
        Ok(runs)
    }

    /// Every method with each of its α.
    fn methods(&self) -> Vec<Method> {
        use MethodName::{Backprop, Dp, DpDamped, DpTranspose};
        let published = [(DpTranspose, &[0.0, 0.5, 1.0][..]), (Dp, &[0.5]), (DpDamped, &[0.0]), (Backprop, &[0.5])];
        let runs: Vec<(MethodName, &[f64])> = if self.method.is_empty() {
            published.into()
        } else {
            self.method.iter().map(|&name| (name, if name == DpDamped { &[0.0][..] } else { &[0.5] })).collect()
        };
        let alphas = |default| if self.alpha.is_empty() { default } else { &self.alpha[..] };
        runs.into_iter().flat_map(|(name, default)| alphas(default).iter().map(move |&alpha| self.method(name, alpha))).collect()
    }

    fn method(&self, name: MethodName, alpha: f64) -> Method {
        let &Self { beta, gain, .. } = self;
        let damping = match self.damping {
            DampingName::Scaled => Damping::Scaled,
            DampingName::Plain => Damping::Plain,
        };
        match name {
            MethodName::Dp => Method::Dp { alpha, beta },
            MethodName::DpTranspose => Method::DpTranspose { alpha, beta },
            MethodName::DpDamped => Method::DpDamped { alpha, beta, damping },
            MethodName::DpOld => Method::DpOld { alpha, beta },
            MethodName::DpGain => Method::DpGain { gain },
            MethodName::KpDp => Method::KpDp { alpha, beta },
            MethodName::Backprop => Method::Backprop,
            MethodName::Adversarial => Method::Adversarial { beta },
        }
    }

    fn run(&self, method: Method) -> Run {
        let label = match method.alpha() {
            Some(alpha) => format!("{}-{alpha}", method.name()),
            None => method.name().into(),
        };
        let mut settings = Settings::new(method);
        settings.loss = match self.loss {
            LossName::Squared => Loss::Squared,
            LossName::CrossEntropy => Loss::CrossEntropy,
        };
        settings.output = self.output(settings.output);
        settings.schedule = self.schedule(matches!(settings.method, Method::DpDamped { .. }));
        settings.optimizer = self.optimizer();
        settings.decay = self.decay();
        settings.seed = self.seed;
        settings.alignment = true;
        settings.norms = Some(Tracking { seed: self.seed, ..Tracking::new() });
        Run { label, settings }
    }

    fn output(&self, published: Output) -> Output {
        let linearized = match self.nudge_at {
            Some(NudgeAtName::Initial) => Output::Linearized(NudgeAt::Initial),
            Some(NudgeAtName::Current) | None => Output::Linearized(NudgeAt::Current),
        };
        match self.output {
            Some(OutputName::Prox) => Output::Prox,
            Some(OutputName::Linearized) => linearized,
            None if self.nudge_at.is_some() || self.loss == LossName::CrossEntropy => linearized,
            None => published,
        }
    }

    fn schedule(&self, damped: bool) -> Schedule {
        let layers = self.hidden.len() + 1;
        let passes = |default| self.passes.unwrap_or(default);
        match self.schedule {
            ScheduleName::Rounds => Schedule::Rounds(passes(if damped { 15 } else { 5 })),
            ScheduleName::Fw => Schedule::Forward(passes(layers)),
            ScheduleName::Bw => Schedule::Backward,
            ScheduleName::Fwbw => Schedule::ForwardBackward(passes(layers)),
            ScheduleName::Oddeven => Schedule::OddEven(passes(layers)),
            ScheduleName::Evenodd => Schedule::EvenOdd(passes(layers)),
            ScheduleName::Parallel => Schedule::Parallel(passes(2 * layers)),
            ScheduleName::Random => Schedule::Random(passes(8 * layers)),
            ScheduleName::Corrupted => Schedule::Corrupted(passes(1)),
            ScheduleName::Multistep => Schedule::Multistep(passes(2)),
        }
    }

    fn optimizer(&self) -> Optimizer {
        match self.optimizer {
            OptimizerName::Sgd => Optimizer::Sgd,
            OptimizerName::Momentum => Optimizer::MOMENTUM,
            OptimizerName::Adam => Optimizer::ADAM,
        }
    }

    fn decay(&self) -> Decay {
        match self.decay {
            _ if self.weight_decay == 0.0 => Decay::None,
            DecayName::Coupled => Decay::Coupled(self.weight_decay),
            DecayName::Decoupled => Decay::Decoupled(self.weight_decay),
        }
    }

    /// The learning rate over `epochs` epochs.
    pub(crate) fn learning_rate(&self, epochs: f64) -> Result<LearningRate> {
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return Err(format!("--lr is {}; allowed are finite numbers > 0", self.lr).into());
        }
        match self.warmup {
            None => Ok(LearningRate::constant(self.lr)),
            Some(warmup) if warmup >= 0.0 && warmup <= epochs => {
                let (start, end) = (self.lr / 25.0, self.lr * 8e-5);
                Ok(LearningRate { peak: self.lr, start, end, warmup, total: epochs })
            }
            Some(warmup) => Err(format!("--warmup is {warmup}; allowed are 0 to {epochs}, the epochs of the training").into()),
        }
    }

    /// The number of epochs, if anything but `--steps` limits it.
    pub(crate) fn epochs(&self) -> Option<usize> {
        self.epochs.or(if self.steps.is_none() { Some(20) } else { None })
    }

    /// Steps in total, if an epoch has `per_epoch`.
    pub(crate) fn total_steps(&self, per_epoch: u64) -> u64 {
        let by_epochs = self.epochs().map_or(u64::MAX, |epochs| per_epoch.saturating_mul(epochs as u64));
        by_epochs.min(self.steps.unwrap_or(u64::MAX))
    }

    /// Where `--save` puts the weights of a run, one of `count`.
    pub(crate) fn save_path(&self, label: &str, count: usize) -> Option<PathBuf> {
        let path = self.save.as_deref()?;
        if count == 1 {
            return Some(path.into());
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let extension = path.extension().map(|extension| format!(".{}", extension.to_string_lossy())).unwrap_or_default();
        Some(path.with_file_name(format!("{stem}-{label}{extension}")))
    }

    /// Checks before any work that results can be written in the end.
    pub(crate) fn check_outputs(&self) -> Result<()> {
        for (flag, path) in [("--save", &self.save), ("--json", &self.json)] {
            let Some(path) = path else { continue };
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if path.is_dir() || !directory.is_dir() {
                return Err(format!("{flag} is {}; it must be a file in a directory that exists", path.display()).into());
            }
        }
        std::fs::create_dir_all(&self.report)
            .map_err(|error| format!("--report is {}, which cannot be made: {error}", self.report.display()).into())
    }
}

/// Activations by the names that the library gives them.
fn activation() -> impl TypedValueParser<Value = Activation> {
    let names = PossibleValuesParser::new(Activation::ALL.iter().map(|activation| activation.name()));
    names.try_map(|name| Activation::by_name(&name).ok_or("unknown"))
}
