//! What is left of the runs: the table, CSV, JSON, and the pictures.

use std::fmt;

use clap::ValueEnum;
use dualprop::network::{Method, NudgeAt, Optimizer, Output, Schedule};
use dualprop::{Real, Runtime};
use serde_json::{Value, json};

use crate::args::{Args, Run};
use crate::data::{Dataset, Result};
use crate::run::{Epoch, Measured, Outcome, Status};
use crate::{checkpoint, plots};

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::Finished => write!(f, "finished"),
            Status::Diverged { layer, step } => write!(f, "diverged in layer {layer} at step {step}"),
        }
    }
}

/// Writes all files but the weights.
pub(crate) fn write<T: Real>(args: &Args, runtime: &Runtime, data: &Dataset<T>, runs: &[(Run, Outcome<T>)]) -> Result<()> {
    checkpoint::write(&args.report.join("epochs.csv"), csv(runs).as_bytes())?;
    checkpoint::write(&args.report.join("curves.svg"), plots::curves(runs)?.as_bytes())?;
    checkpoint::write(&args.report.join("cosine.svg"), plots::cosine(runs)?.as_bytes())?;
    if let Some(image) = data.image {
        checkpoint::write(&args.report.join("first-layer.svg"), plots::first_layer(runs, image).as_bytes())?;
    }
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&json(args, runtime, data, runs))?;
        checkpoint::write(path, json.as_bytes())?;
    }
    Ok(())
}

/// One row a run; what diverged is said below.
pub(crate) fn table<T>(runs: &[(Run, Outcome<T>)]) -> String {
    let titles = [
        "method",
        "α",
        "test accuracy",
        "loss",
        "proxy Lipschitz",
        "norms at most",
        "cosine to backprop by layer",
        "samples/s",
        "sweeps",
    ];
    let mut rows = vec![titles.map(String::from)];
    rows.extend(runs.iter().map(|(run, outcome)| {
        let Epoch { measured, test_accuracy, proxy_lipschitz, norms, .. } = outcome.last();
        let norms: Vec<_> = norms.iter().map(|norm| number(norm.upper, 2)).collect();
        let cosine: Vec<_> = outcome.total.cosine.iter().map(|&cosine| number(cosine, 4)).collect();
        [
            run.settings.method.name().into(),
            run.settings.method.alpha().map_or("–".into(), |alpha| alpha.to_string()),
            number(*test_accuracy, 4),
            number(measured.loss, 4),
            number(*proxy_lipschitz, 2),
            norms.join(" "),
            cosine.join(" "),
            number(outcome.total.samples_per_second, 0),
            number(outcome.total.sweeps, 2),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 9] = std::array::from_fn(width);
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text.extend([cells.collect::<Vec<_>>().join("  "), "\n".into()]);
        if index == 0 {
            text.extend([widths.map(|width| "─".repeat(width)).join("  "), "\n".into()]);
        }
    }
    for (run, outcome) in runs.iter().filter(|(_, outcome)| outcome.status != Status::Finished) {
        text.extend([format!("{} {}; its row and weights are the last finite ones\n", run.label, outcome.status)]);
    }
    text
}

/// Fixed-point unless it is huge, or a dash for what was not measured.
fn number(value: f64, digits: usize) -> String {
    match value.abs() {
        0.0..1e8 => format!("{value:.digits$}"),
        1e8..f64::INFINITY => format!("{value:.2e}"),
        _ => "–".into(),
    }
}

/// All epochs of all runs, the untrained network as epoch 0; empty fields where nothing was measured.
fn csv<T>(runs: &[(Run, Outcome<T>)]) -> String {
    let layers = runs.first().map_or(0, |(_, outcome)| outcome.total.cosine.len());
    let mut text = String::from("run,method,alpha,beta,epoch,loss,train_accuracy,test_loss,test_accuracy,proxy_lipschitz,");
    text.extend((0..layers).map(|layer| format!("cosine_{layer},")));
    text.push_str("sweeps,seconds,samples_per_second\n");
    for (run, outcome) in runs {
        let method = &run.settings.method;
        for epoch in std::iter::once(&outcome.initial).chain(&outcome.epochs) {
            let Measured { loss, train_accuracy, cosine, sweeps, seconds, samples_per_second } = &epoch.measured;
            let evaluated = [*loss, *train_accuracy, epoch.test_loss, epoch.test_accuracy, epoch.proxy_lipschitz];
            let numbers = [&evaluated, &cosine[..], &[*sweeps, *seconds, *samples_per_second]].concat();
            let field =
                |value: Option<f64>| value.filter(|value| value.is_finite()).map_or(String::new(), |value| value.to_string());
            let mut fields = vec![run.label.clone(), method.name().into(), field(method.alpha()), field(method.beta())];
            fields.push(epoch.epoch.to_string());
            fields.extend(numbers.into_iter().map(|value| field(Some(value))));
            text.extend([fields.join(","), "\n".into()]);
        }
    }
    text
}

/// Every number and setting; what is not finite becomes null.
fn json<T: Real>(args: &Args, runtime: &Runtime, data: &Dataset<T>, runs: &[(Run, Outcome<T>)]) -> Value {
    let run = |(run, outcome): &(Run, Outcome<T>)| {
        let (last, total) = (outcome.last(), &outcome.total);
        json!({
            "label": run.label,
            "method": run.settings.method.name(),
            "alpha": run.settings.method.alpha(),
            "beta": run.settings.method.beta(),
            "settings": settings(args, run, outcome.network.widths()),
            "status": outcome.status.to_string(),
            "loss": last.measured.loss,
            "test_accuracy": last.test_accuracy,
            "proxy_lipschitz": last.proxy_lipschitz,
            "norms": norms(last),
            "cosine": total.cosine,
            "sweeps": total.sweeps,
            "seconds": total.seconds,
            "samples_per_second": total.samples_per_second,
            "initial": epoch(&outcome.initial),
            "epochs": outcome.epochs.iter().map(epoch).collect::<Vec<_>>(),
        })
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "isa": runtime.isa().name(),
        "threads": runtime.threads(),
        "data": data.name,
        "runs": runs.iter().map(run).collect::<Vec<_>>(),
    })
}

fn epoch(epoch: &Epoch) -> Value {
    let measured = &epoch.measured;
    json!({
        "epoch": epoch.epoch,
        "loss": measured.loss,
        "train_accuracy": measured.train_accuracy,
        "test_loss": epoch.test_loss,
        "test_accuracy": epoch.test_accuracy,
        "proxy_lipschitz": epoch.proxy_lipschitz,
        "norms": norms(epoch),
        "cosine": measured.cosine,
        "sweeps": measured.sweeps,
        "seconds": measured.seconds,
        "samples_per_second": measured.samples_per_second,
    })
}

/// Both bounds for each layer of weights.
fn norms(epoch: &Epoch) -> Vec<Value> {
    epoch.norms.iter().map(|norm| json!({ "lower": norm.lower, "upper": norm.upper })).collect()
}

/// The settings of a run in the words of the command line.
fn settings(args: &Args, run: &Run, widths: &[usize]) -> Value {
    let (gain, damping) = match run.settings.method {
        Method::DpGain { gain } => (Some(gain), None),
        Method::DpDamped { .. } => (None, Some(name(args.damping))),
        _ => (None, None),
    };
    let (output, nudge_at) = match run.settings.output {
        Output::Prox => ("prox", None),
        Output::Linearized(NudgeAt::Initial) => ("linearized", Some("initial")),
        _ => ("linearized", Some("current")),
    };
    let passes = match run.settings.schedule {
        Schedule::Rounds(n) | Schedule::Forward(n) | Schedule::ForwardBackward(n) | Schedule::OddEven(n) => Some(n),
        Schedule::EvenOdd(n) | Schedule::Parallel(n) | Schedule::Random(n) => Some(n),
        Schedule::Corrupted(n) | Schedule::Multistep(n) => Some(n),
        _ => None,
    };
    let mut optimizer = json!({ "name": name(args.optimizer) });
    match run.settings.optimizer {
        Optimizer::Momentum { mu } => optimizer["mu"] = json!(mu),
        Optimizer::Adam { beta1, beta2, epsilon } => {
            (optimizer["beta1"], optimizer["beta2"], optimizer["epsilon"]) = (json!(beta1), json!(beta2), json!(epsilon));
        }
        _ => {}
    }
    json!({
        "gain": gain,
        "damping": damping,
        "loss": name(args.loss),
        "output": output,
        "nudge_at": nudge_at,
        "activation": args.activation.name(),
        "widths": widths,
        "bias": !args.no_bias,
        "schedule": name(args.schedule),
        "passes": passes,
        "epochs": args.epochs(),
        "steps": args.steps,
        "batch": args.batch,
        "shuffle": !args.no_shuffle,
        "optimizer": optimizer,
        "lr": args.lr,
        "warmup": args.warmup,
        "weight_decay": args.weight_decay,
        "decay": name(args.decay),
        "seed": args.seed,
        "precision": name(args.precision),
        "init": args.init,
    })
}

/// The word of the command line for a value.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}
