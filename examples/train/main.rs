//! Trains dense networks by dual propagation and its baselines and compares them: `cargo run --release --example train`.
//!
//! `-- --help` lists the flags. Results are a table on the terminal and the directory `report`. The exit code is 0 even if
//! a method diverges (that is a result), and 2 if the arguments or files are not usable.

#![forbid(unsafe_code)]

mod args;
mod checkpoint;
#[path = "../common/data.rs"]
mod data;
mod plots;
mod report;
mod run;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use dualprop::network::{Init, Network, Trainer};
use dualprop::{Real, Runtime};
use indicatif::{ProgressBar, ProgressStyle};

use args::{Args, Precision, Run};
use data::{Dataset, Result};
use run::{Outcome, Plan, Status};

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.precision {
        Precision::F32 => execute::<f32>(&args),
        Precision::F64 => execute::<f64>(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Everything, in one precision. Whatever can be wrong with arguments and files shows before the first step.
fn execute<T: Real>(args: &Args) -> Result<()> {
    let start = Instant::now();
    let runtime = runtime(args)?;
    let data = Dataset::<T>::load(&args.data)?;
    let plan = plan(args, &data)?;
    let network = network(args, &data)?;
    let trainers = trainers(args, &network, &runtime)?;
    args.check_outputs()?;

    let count = trainers.len();
    let mut done = Vec::new();
    for (run, trainer) in trainers {
        let outcome = train(&run, trainer, &data, &plan)?;
        checkpoint::save(&outcome.network, &args.report.join(format!("{}.safetensors", run.label)))?;
        if let Some(path) = args.save_path(&run.label, count) {
            checkpoint::save(&outcome.network, &path)?;
        }
        done.push((run, outcome));
    }

    report::write(args, &runtime, &data, &done)?;
    let header = format!(
        "{}, {} training and {} test rows, {} on {} with {} thread(s)\n\n",
        data.name,
        data.y_train.len(),
        data.y_test.len(),
        T::NAME,
        runtime.isa().name(),
        runtime.threads()
    );
    let footer = format!(
        "\n{} has curves, pictures, numbers and weights. {:.1} s\n",
        args.report.display(),
        start.elapsed().as_secs_f64()
    );
    io::stdout().write_all([header, report::table(&done), footer].concat().as_bytes())?;
    Ok(())
}

/// The instruction set and the threads: those of the flag, or of the environment, or one for each core.
fn runtime(args: &Args) -> Result<Runtime> {
    let runtime = Runtime::from_env()?;
    Ok(match args.threads {
        Some(threads) => runtime.with_threads(threads),
        None if std::env::var_os("DUALPROP_NUM_THREADS").is_none() => runtime.with_threads(0),
        None => runtime,
    })
}

/// What all runs have in common.
fn plan<T>(args: &Args, data: &Dataset<T>) -> Result<Plan> {
    let count = data.y_train.len();
    if args.batch == 0 || args.batch > count {
        return Err(format!("--batch is {}; allowed are 1 to {count}, the training rows of {}", args.batch, data.name).into());
    }
    let per_epoch = (count / args.batch) as u64;
    let steps = args.total_steps(per_epoch);
    let learning_rate = args.learning_rate(steps as f64 / per_epoch as f64)?;
    Ok(Plan { batch: args.batch, steps, learning_rate, shuffle: !args.no_shuffle, seed: args.seed })
}

/// The network with its initial weights, the same for all runs.
fn network<T: Real>(args: &Args, data: &Dataset<T>) -> Result<Network<T>> {
    let widths: Vec<_> = [&[data.features], &args.hidden[..], &[data.classes]].concat();
    let network = Network::new(&widths, args.activation, !args.no_bias);
    let mut network = network.map_err(|error| format!("--hidden is {:?}: {error}", args.hidden))?;
    match &args.init {
        Some(path) => checkpoint::load(network, path),
        None => {
            network.initialize(Init::LecunNormal, args.seed);
            Ok(network)
        }
    }
}

/// One trainer a run.
fn trainers<T: Real>(args: &Args, network: &Network<T>, runtime: &Runtime) -> Result<Vec<(Run, Trainer<T>)>> {
    let trainer = |run: Run| {
        let trainer = Trainer::new(network.clone(), &run.settings, args.batch, runtime);
        Ok((run.clone(), trainer.map_err(|error| format!("{}: {error}", run.label))?))
    };
    args.runs()?.into_iter().map(trainer).collect()
}

/// One run under a progress bar; without a terminal one line at its end.
fn train<T: Real>(run: &Run, trainer: Trainer<T>, data: &Dataset<T>, plan: &Plan) -> Result<Outcome<T>> {
    let style = ProgressStyle::with_template("{prefix:18} {bar:32} {pos:>6}/{len} steps {elapsed:>4} {msg}")?;
    let bar = ProgressBar::new(plan.steps).with_style(style).with_prefix(run.label.clone());
    let outcome = run::train(trainer, data, plan, &bar)?;
    let message = match outcome.status {
        Status::Finished => format!("test accuracy {:.4}", outcome.last().test_accuracy),
        Status::Diverged { .. } => outcome.status.to_string(),
    };
    if bar.is_hidden() {
        eprintln!("{}: {message}", run.label);
    }
    bar.abandon_with_message(message);
    Ok(outcome)
}
