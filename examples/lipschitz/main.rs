//! Encloses spectral norms of matrices and Lipschitz constants of networks: `cargo run --release --example lipschitz -- --help`.
//!
//! The exit code is 0 even if a gap cannot be reached (that is a result, with its status), and 2 if the arguments or files are
//! not usable.

#![forbid(unsafe_code)]

mod args;
#[allow(dead_code, reason = "shared with the example `train`, which uses the rest")]
#[path = "../train/checkpoint.rs"]
mod checkpoint;
#[allow(dead_code, reason = "shared with the example `train`, which uses the rest")]
#[path = "../common/data.rs"]
mod data;
mod matrix;
mod report;
mod weights;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use dualprop::lipschitz::{Certainty, Chain, Dense, Enclosure, Kinks, Operator, Search, Seed, enclose, global, local};
use dualprop::network::Network;
use dualprop::sparse::Sparse;
use dualprop::{Activation, Error, MatRef, Real, Runtime};
use indicatif::{ProgressBar, ProgressStyle};

use args::Args;
use data::{Dataset, Result};
use matrix::{Elements, Matrix};
use report::{Answer, Constants};

/// Samples whose local constants are computed between two movements of the progress bar.
const CHUNK: usize = 256;

fn main() -> ExitCode {
    match execute(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn execute(args: &Args) -> Result<()> {
    let runtime = Runtime::from_env()?;
    let runtime = match args.threads {
        Some(threads) => runtime.with_threads(threads),
        None if std::env::var_os("DUALPROP_NUM_THREADS").is_none() => runtime.with_threads(0),
        None => runtime,
    };
    std::fs::create_dir_all(&args.report)
        .map_err(|error| format!("--report is {}, which cannot be made: {error}", args.report.display()))?;
    match (&args.matrix, &args.weights) {
        (Some(path), _) => {
            let matrix = Matrix::read(path)?;
            let name = path.display().to_string();
            let answer = if matrix.single {
                of_matrix::<f32>(args, &name, matrix, &runtime)?
            } else {
                of_matrix::<f64>(args, &name, matrix, &runtime)?
            };
            report::write(args, &runtime, &[answer], None)
        }
        (None, Some(path)) => match weights::precision(path)? {
            "f32" => of_network::<f32>(args, &runtime),
            _ => of_network::<f64>(args, &runtime),
        },
        (None, None) => unreachable!("one of them is required"),
    }
}

/// What the flags say of every search.
fn search(args: &Args) -> Search {
    let certainty = match args.delta {
        Some(delta) => Certainty::Probabilistic { delta },
        None => Certainty::Deterministic,
    };
    Search { gap: args.gap, certainty, seed: Seed::Fixed(args.seed), ..Search::new() }
}

/// Something that turns while a search goes on.
fn spinner(what: &str) -> Result<ProgressBar> {
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}")?);
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    Ok(bar)
}

fn of_matrix<T: Real>(args: &Args, name: &str, matrix: Matrix, runtime: &Runtime) -> Result<Answer> {
    let Matrix { rows, cols, elements, .. } = matrix;
    let numbers = |values: Vec<f64>| values.into_iter().map(T::from_f64).collect::<Vec<_>>();
    let named = |error: Error| format!("{name}: {error}");
    let sparse = match elements {
        Elements::Dense(values) => {
            let values = numbers(values);
            let dense = Dense::new(MatRef::from_row_major_slice(&values, rows, cols));
            return answer(args, name, &dense, runtime);
        }
        Elements::Rows(rows_of) => Sparse::from_csr(rows, cols, &rows_of.starts, &rows_of.indices, &numbers(rows_of.values)),
        Elements::Columns(columns) => Sparse::from_csc(rows, cols, &columns.starts, &columns.indices, &numbers(columns.values)),
        Elements::Blocks { height, width, blocks } => {
            Sparse::from_bsr(rows, cols, (height, width), &blocks.starts, &blocks.indices, &numbers(blocks.values))
        }
    };
    answer(args, name, &sparse.map_err(named)?, runtime)
}

fn answer<T: Real>(args: &Args, name: &str, operator: &dyn Operator<T>, runtime: &Runtime) -> Result<Answer> {
    let bar = spinner(name)?;
    let start = Instant::now();
    let enclosed = enclose(operator, &search(args), runtime).map_err(|error| format!("{name}: {error}"))?;
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let (rows, cols) = operator.shape();
    let (stored, enclosure, witness) = (operator.stored(), enclosed.enclosure, enclosed.witness);
    Ok(Answer { name: name.into(), rows, cols, stored, enclosure, seconds, witness })
}

fn of_network<T: Real>(args: &Args, runtime: &Runtime) -> Result<()> {
    let path = args.weights.as_deref().expect("the caller has looked");
    let network: Network<T> = weights::load(path, args.activation)?;
    let data = samples(args, &network)?;
    let mut answers = Vec::new();
    let weights: Vec<_> = (0..network.layers()).map(|k| network.weights(k)).collect();
    for (k, &weights) in weights.iter().enumerate() {
        answers.push(answer(args, &format!("w{k}"), &Dense::new(weights), runtime)?);
    }
    let product = (0..network.layers()).rev().map(|k| format!("w{k}")).collect::<Vec<_>>().join("·");
    answers.push(answer(args, &product, &Chain::new(&weights)?, runtime)?);

    let (count, features) = (data.len() / network.widths()[0], network.widths()[0]);
    let samples = MatRef::from_row_major_slice(&data, count, features);
    let constants = local_constants(&network, samples, args.gap.max(1e-3), runtime)?;
    let bar = spinner("the network as a whole")?;
    let start = Instant::now();
    let whole = global(&network, samples, &search(args), runtime)?;
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let constants = Constants { whole, local: constants, seconds };
    report::write(args, runtime, &answers, Some(&constants))
}

/// Local constants under a progress bar.
fn local_constants<T: Real>(network: &Network<T>, samples: MatRef<'_, T>, gap: f64, runtime: &Runtime) -> Result<Vec<Enclosure>> {
    let style = ProgressStyle::with_template("local constants {bar:32} {pos}/{len} samples {elapsed} (left: {eta})")?;
    let bar = ProgressBar::new(samples.nrows() as u64).with_style(style);
    let mut constants = Vec::with_capacity(samples.nrows());
    // Larger chunks prepare the network less often.
    for from in (0..samples.nrows()).step_by(16 * CHUNK) {
        let rows = (16 * CHUNK).min(samples.nrows() - from);
        constants.extend(local(network, samples.subrows(from, rows), Kinks::Smaller, gap, runtime)?);
        bar.inc(rows as u64);
    }
    bar.finish_and_clear();
    Ok(constants)
}

/// The first test rows of the data, one after the other.
fn samples<T: Real>(args: &Args, network: &Network<T>) -> Result<Vec<T>> {
    let inputs = network.widths()[0];
    let data = match &args.data {
        _ if args.samples == 0 => return Ok(Vec::new()),
        Some(spec) => Dataset::<T>::load(spec)?,
        None => match inputs {
            64 => Dataset::digits(),
            784 => match Dataset::fashion_mnist() {
                Ok(data) => data,
                Err(_) => return Ok(Vec::new()),
            },
            _ => return Ok(Vec::new()),
        },
    };
    if data.features != inputs {
        return Err(format!("{} has rows of {} numbers, but the network has {inputs} inputs", data.name, data.features).into());
    }
    Ok(data.x_test[..args.samples.min(data.y_test.len()) * inputs].to_vec())
}

/// Activations by the names that the library gives them.
fn activation() -> impl TypedValueParser<Value = Activation> {
    let names = PossibleValuesParser::new(Activation::ALL.iter().map(|activation| activation.name()));
    names.try_map(|name| Activation::by_name(&name).ok_or("unknown"))
}
