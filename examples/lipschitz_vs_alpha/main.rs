//! How the asymmetry α of nudging shows in the Lipschitz constant of what is learned, after section 6.1 of Høier & Zach 2024:
//! `cargo run --release --example lipschitz_vs_alpha`.
//!
//! Trains the same network from the same initial weights by back-propagation, one-step adversarial training, DP, damped DP and
//! DP⊤ at several α, for several seeds, and writes test accuracy, the paper's proxy `‖W_L ⋯ W_1‖₂` and enclosures of the true
//! Lipschitz constant as a table, JSON and a picture with error bars.

#![forbid(unsafe_code)]

#[allow(dead_code, reason = "shared with the example `train`, which uses the rest")]
#[path = "../train/checkpoint.rs"]
mod checkpoint;
#[allow(dead_code, reason = "shared with the example `lipschitz`, which uses the rest")]
#[path = "../common/data.rs"]
mod data;
mod plot;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use dualprop::lipschitz::{Enclosure, Kinks, Search, global, local};
use dualprop::network::{Damping, Init, Method, Network, Schedule, Settings, Targets, Trainer};
use dualprop::random::Counter;
use dualprop::{Activation, Error, MatRef, Runtime};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use data::{Dataset, Result};

/// Trains one network by every method and compares their Lipschitz constants.
///
/// Settings are those of the paper's code: ReLU, squared error, Adam at 1e-3, batches of 50 consecutive rows in an order that is drawn
/// anew each epoch, β = ½, 5 rounds (damped DP: 15), the first 50,000 training rows.
#[derive(Clone, Debug, Parser)]
#[command(name = "lipschitz_vs_alpha", version, verbatim_doc_comment)]
struct Args {
    /// `digits`, `fashion-mnist`, a directory with IDX files, or an NPZ file [default: fashion-mnist if it is installed, or digits]
    #[arg(long)]
    data: Option<String>,
    /// Widths of the hidden layers
    #[arg(long, value_delimiter = ',', default_value = "512,512")]
    hidden: Vec<usize>,
    /// Passes through the training rows
    #[arg(long, default_value_t = 20)]
    epochs: usize,
    /// Training rows that are used at most
    #[arg(long, default_value_t = 50_000)]
    rows: usize,
    /// Nudging strength
    #[arg(long, default_value_t = 0.5)]
    beta: f64,
    /// Seeds 0, 1, …
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Test rows of which local constants are taken
    #[arg(long, default_value_t = 1_000)]
    samples: usize,
    /// Threads, 0 for one on each core; no result depends on it [default: DUALPROP_NUM_THREADS, or 0]
    #[arg(long)]
    threads: Option<usize>,
    /// Directory for the picture and the numbers
    #[arg(long, value_name = "DIR", default_value = "report")]
    report: PathBuf,
}

/// Rows of a step.
const BATCH: usize = 50;

/// The order of the batches in epoch `e` comes from the random stream `ORDER_STREAM + e`.
const ORDER_STREAM: u64 = 1 << 32;

fn main() -> ExitCode {
    match execute(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// What comes out of one training.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    accuracy: f64,
    proxy: Enclosure,
    /// Of the network.
    lower: f64,
    upper: f64,
    /// The median of the local constants of test rows.
    local: f64,
}

/// A method, and the outcomes of its seeds that did not diverge.
struct Series {
    name: String,
    method: Method,
    outcomes: Vec<Outcome>,
    diverged: usize,
}

/// The quantities that are shown, with their names.
const SHOWN: [(&str, fn(&Outcome) -> f64); 5] = [
    ("test accuracy", |outcome| outcome.accuracy),
    ("proxy ‖W_L ⋯ W_1‖₂", |outcome| outcome.proxy.lower),
    ("Lipschitz constant at least", |outcome| outcome.lower),
    ("Lipschitz constant at most", |outcome| outcome.upper),
    ("median local constant", |outcome| outcome.local),
];

impl Series {
    /// Mean and standard deviation over the seeds (0 for a single one).
    fn statistics(&self, value: impl Fn(&Outcome) -> f64) -> (f64, f64) {
        let count = self.outcomes.len() as f64;
        let mean = self.outcomes.iter().map(&value).sum::<f64>() / count;
        let square = self.outcomes.iter().map(|outcome| (value(outcome) - mean).powi(2)).sum::<f64>();
        (mean, (square / (count - 1.0).max(1.0)).sqrt())
    }
}

fn methods(beta: f64) -> Vec<(String, Method)> {
    let damping = Damping::Scaled;
    let mut methods = vec![
        ("BP".to_owned(), Method::Backprop),
        ("adversarial".to_owned(), Method::Adversarial { beta }),
        ("DP α = ½".to_owned(), Method::Dp { alpha: 0.5, beta }),
    ];
    methods.extend([0.0, 1.0].map(|alpha| (format!("damped DP α = {alpha}"), Method::DpDamped { alpha, beta, damping })));
    methods.extend(
        [(0.0, "0"), (0.5, "½"), (1.0, "1")]
            .map(|(alpha, name)| (format!("DP⊤ α = {name}"), Method::DpTranspose { alpha, beta })),
    );
    methods
}

fn execute(args: &Args) -> Result<()> {
    let runtime = Runtime::from_env()?;
    let runtime = match args.threads {
        Some(threads) => runtime.with_threads(threads),
        None if std::env::var_os("DUALPROP_NUM_THREADS").is_none() => runtime.with_threads(0),
        None => runtime,
    };
    let data = match &args.data {
        Some(spec) => Dataset::<f32>::load(spec)?,
        None => Dataset::fashion_mnist().unwrap_or_else(|_| Dataset::digits()),
    };
    let rows = args.rows.min(data.y_train.len());
    let blocks = rows / BATCH;
    if blocks == 0 || args.seeds == 0 {
        return Err(format!("--rows is {rows} and --seeds {}; allowed are at least {BATCH} rows and one seed", args.seeds).into());
    }
    std::fs::create_dir_all(&args.report)
        .map_err(|error| format!("--report is {}, which cannot be made: {error}", args.report.display()))?;

    let methods = methods(args.beta);
    let total = methods.len() as u64 * args.seeds * args.epochs as u64;
    let style = ProgressStyle::with_template("{prefix:18} {bar:32} {pos:>5}/{len} epochs {elapsed_precise} (left: {eta}) {msg}")?;
    let bar = ProgressBar::new(total).with_style(style);
    let mut all = Vec::new();
    for (name, method) in methods {
        bar.set_prefix(name.clone());
        let mut series = Series { name, method, outcomes: Vec::new(), diverged: 0 };
        for seed in 0..args.seeds {
            match train(args, &data, blocks, method, seed, &runtime, &bar)? {
                Some(outcome) => series.outcomes.push(outcome),
                None => series.diverged += 1,
            }
        }
        if bar.is_hidden() {
            eprintln!("{} done", series.name);
        }
        all.push(series);
    }
    bar.finish_and_clear();

    let picture = args.report.join("lipschitz-vs-alpha.svg");
    checkpoint::write(&picture, plot::picture(&all)?.as_bytes())?;
    write_json(&args.report.join("lipschitz-vs-alpha.json"), args, &data, &runtime, &all)?;
    println!(
        "{}, {rows} training rows, {}-{}, {} epochs, β = {}, {} seed(s): mean ± standard deviation\n",
        data.name,
        data.features,
        args.hidden.iter().map(|width| format!("{width}-")).collect::<String>() + &data.classes.to_string(),
        args.epochs,
        args.beta,
        args.seeds
    );
    print!("{}", table(&all));
    println!("\n{} has picture and numbers.", args.report.display());
    Ok(())
}

/// One training and its measurements; `None` if it diverged.
fn train(
    args: &Args,
    data: &Dataset<f32>,
    blocks: usize,
    method: Method,
    seed: u64,
    runtime: &Runtime,
    bar: &ProgressBar,
) -> Result<Option<Outcome>> {
    let widths = [&[data.features], &args.hidden[..], &[data.classes]].concat();
    let mut network = Network::new(&widths, Activation::Relu, true)?;
    network.initialize(Init::LecunNormal, seed);
    let mut settings = Settings::new(method);
    settings.schedule = Schedule::Rounds(if matches!(method, Method::DpDamped { .. }) { 15 } else { 5 });
    settings.seed = seed;
    let mut trainer = Trainer::new(network, &settings, BATCH, runtime)?;
    let mut order: Vec<_> = (0..blocks).collect();
    for epoch in 0..args.epochs {
        Counter::new(seed, ORDER_STREAM + epoch as u64).shuffle(&mut order);
        for block in &order {
            let places = block * BATCH..(block + 1) * BATCH;
            let x = &data.x_train[places.start * data.features..places.end * data.features];
            let x = MatRef::from_row_major_slice(x, BATCH, data.features);
            match trainer.step(x, Targets::Classes(&data.y_train[places]), 1e-3) {
                Ok(_) => {}
                Err(Error::Diverged { .. }) => {
                    bar.inc((args.epochs - epoch) as u64);
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        bar.inc(1);
    }
    let test = MatRef::from_row_major_slice(&data.x_test, data.y_test.len(), data.features);
    let accuracy = trainer.evaluate(test, Targets::Classes(&data.y_test))?.accuracy;
    let samples = test.subrows(0, args.samples.min(test.nrows()));
    let constants = local(trainer.network(), samples, Kinks::Smaller, 1e-3, runtime)?;
    let whole = global(trainer.network(), samples, &Search::new(), runtime)?;
    let mut local: Vec<_> = constants.iter().map(|enclosure| enclosure.lower).collect();
    local.sort_by(f64::total_cmp);
    let median = local.get(local.len() / 2).copied().unwrap_or(f64::NAN);
    let Enclosure { lower, upper, .. } = whole.enclosure;
    Ok(Some(Outcome { accuracy, proxy: whole.proxy, lower, upper, local: median }))
}

/// One row a method.
fn table(all: &[Series]) -> String {
    let mut rows =
        vec![[&["method"][..], &SHOWN.map(|(name, _)| name)].concat().into_iter().map(String::from).collect::<Vec<_>>()];
    for series in all {
        let cell = |(_, value): &(&str, fn(&Outcome) -> f64)| match series.outcomes.len() {
            0 => "–".to_owned(),
            _ => {
                let (mean, deviation) = series.statistics(value);
                let digits = if mean < 1.0 { 4 } else { 2 };
                format!("{mean:.digits$} ± {deviation:.digits$}")
            }
        };
        rows.push([vec![series.name.clone()], SHOWN.iter().map(cell).collect()].concat());
    }
    let widths: Vec<_> = (0..=SHOWN.len()).map(|c| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text += "\n";
    }
    for series in all.iter().filter(|series| series.diverged > 0) {
        text += &format!("{} diverged for {} seed(s), which are not in its means\n", series.name, series.diverged);
    }
    text
}

fn write_json(path: &Path, args: &Args, data: &Dataset<f32>, runtime: &Runtime, all: &[Series]) -> Result<()> {
    let outcome = |outcome: &Outcome| {
        json!({
            "test_accuracy": outcome.accuracy,
            "proxy": { "lower": outcome.proxy.lower, "upper": outcome.proxy.upper },
            "lower": outcome.lower,
            "upper": outcome.upper,
            "local_median": outcome.local,
        })
    };
    let series = |series: &Series| {
        json!({
            "name": series.name,
            "method": series.method.name(),
            "alpha": series.method.alpha(),
            "diverged": series.diverged,
            "seeds": series.outcomes.iter().map(outcome).collect::<Vec<_>>(),
        })
    };
    let json = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "isa": runtime.isa().name(),
        "threads": runtime.threads(),
        "data": data.name,
        "hidden": args.hidden,
        "epochs": args.epochs,
        "rows": args.rows,
        "beta": args.beta,
        "samples": args.samples,
        "methods": all.iter().map(series).collect::<Vec<_>>(),
    });
    checkpoint::write(path, serde_json::to_string_pretty(&json)?.as_bytes())
}
