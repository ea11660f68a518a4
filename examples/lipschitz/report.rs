//! What is left of a run: the table, JSON, the witness, and the picture of the local constants.

use std::io::{self, Write};

use dualprop::Runtime;
use dualprop::lipschitz::{Enclosure, Global, Proof, Status};
use plotters::prelude::*;
use serde_json::{Value, json};

use crate::args::Args;
use crate::checkpoint;
use crate::data::Result;

/// The enclosure of an operator's norm.
pub(crate) struct Answer {
    pub(crate) name: String,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stored: usize,
    pub(crate) enclosure: Enclosure,
    pub(crate) seconds: f64,
    /// `x` with `‖Ax‖ ≥ lower·‖x‖`.
    pub(crate) witness: Vec<f64>,
}

/// The constants of a network.
pub(crate) struct Constants {
    pub(crate) whole: Global,
    /// At the samples.
    pub(crate) local: Vec<Enclosure>,
    /// For the network as a whole.
    pub(crate) seconds: f64,
}

impl Constants {
    /// Minimum, median and maximum of the local constants.
    fn spread(&self) -> Option<[f64; 3]> {
        let mut lower: Vec<_> = self.local.iter().map(|enclosure| enclosure.lower).collect();
        lower.sort_by(f64::total_cmp);
        Some([*lower.first()?, lower[lower.len() / 2], *lower.last()?])
    }
}

/// Writes files and prints the table.
pub(crate) fn write(args: &Args, runtime: &Runtime, answers: &[Answer], constants: Option<&Constants>) -> Result<()> {
    let witness = witness(answers, constants);
    let path = args.report.join("witness.json");
    checkpoint::write(&path, serde_json::to_string(&witness)?.as_bytes())?;
    if let Some(constants) = constants.filter(|constants| !constants.local.is_empty()) {
        checkpoint::write(&args.report.join("local-constants.svg"), histogram(constants)?.as_bytes())?;
    }
    if let Some(path) = &args.json {
        let json = json(runtime, answers, constants, &witness);
        checkpoint::write(path, serde_json::to_string_pretty(&json)?.as_bytes())?;
    }
    let picture = if constants.is_some_and(|constants| !constants.local.is_empty()) { " and the picture" } else { "" };
    let footer = format!("\n{} has the witness{picture}.\n", args.report.display());
    io::stdout().write_all((table(answers, constants) + &footer).as_bytes())?;
    Ok(())
}

fn table(answers: &[Answer], constants: Option<&Constants>) -> String {
    let titles = ["operator", "shape", "stored", "at least", "at most", "gap", "proof", "status", "sweeps", "seconds"];
    let mut rows = vec![titles.map(String::from)];
    for answer in answers {
        let Enclosure { lower, upper, proof, status, products, .. } = answer.enclosure;
        rows.push([
            answer.name.clone(),
            format!("{}×{}", answer.rows, answer.cols),
            answer.stored.to_string(),
            significant(lower),
            significant(upper),
            format!("{:.1e}", answer.enclosure.gap()),
            proof_name(proof),
            status_name(status).into(),
            products.to_string(),
            format!("{:.3}", answer.seconds),
        ]);
    }
    let mut text = aligned(&rows);
    if let Some(constants) = constants {
        let Global { enclosure, product, eclipse, absolute, pair, .. } = &constants.whole;
        text += &format!(
            "\nLipschitz constant of the network, with its activations: {} to {} (ratio {:.2}, {:.3} s)\n",
            significant(enclosure.lower),
            significant(enclosure.upper),
            enclosure.upper / enclosure.lower,
            constants.seconds
        );
        text += &format!("  at most, by the product of norms     {}\n", significant(*product));
        text += &format!("  at most, by ECLipsE-Fast             {}\n", significant(*eclipse));
        text += &format!("  at most, by the chain of |W|         {}\n", significant(*absolute));
        if let Some(pair) = pair {
            text += &format!("  at least, by a pair of inputs        {}\n", significant(pair.lower));
        }
        if let Some([min, median, max]) = constants.spread() {
            text += &format!(
                "  local constants at {} samples: {} to {}, median {}\n",
                constants.local.len(),
                significant(min),
                significant(max),
                significant(median)
            );
        }
    }
    text
}

fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text += "\n";
    }
    text
}

/// Nine digits.
fn significant(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let digits = 8 - value.abs().log10().floor() as i32;
    if (0..=12).contains(&digits) { format!("{value:.*}", digits as usize) } else { format!("{value:.8e}") }
}

fn proof_name(proof: Proof) -> String {
    match proof {
        Proof::Zero => "zero".into(),
        Proof::None => "none".into(),
        Proof::Frobenius => "Frobenius".into(),
        Proof::Holder => "Hölder".into(),
        Proof::Collatz { sweeps } => format!("Collatz, {sweeps} sweeps"),
        Proof::Gram { squarings } => format!("Gram, {squarings} squarings"),
        Proof::Cholesky { .. } => "Cholesky".into(),
        Proof::Temple { .. } => "Temple".into(),
        Proof::Compression { block } => format!("blocks of {block}"),
        Proof::Probabilistic { delta } => format!("probable, 1 − {delta:e}"),
        Proof::Product => "product".into(),
        Proof::Eclipse => "ECLipsE-Fast".into(),
        Proof::Frequencies => "frequencies".into(),
        other => format!("{other:?}"),
    }
}

fn status_name(status: Status) -> &'static str {
    match status {
        Status::GapReached => "gap reached",
        Status::Budget => "budget spent",
        Status::KrylovExhausted => "Krylov space exhausted",
        _ => "ended",
    }
}

/// What shows the lower bound: two inputs of the network, or a vector.
fn witness(answers: &[Answer], constants: Option<&Constants>) -> Value {
    match constants {
        Some(constants) => match &constants.whole.pair {
            Some(pair) => json!({ "a": pair.a, "b": pair.b, "lower": pair.lower }),
            None => Value::Null,
        },
        None => json!(answers.first().map(|answer| &answer.witness)),
    }
}

fn json(runtime: &Runtime, answers: &[Answer], constants: Option<&Constants>, witness: &Value) -> Value {
    let operator = |answer: &Answer| {
        let Enclosure { lower, upper, proof, status, products, .. } = answer.enclosure;
        json!({
            "name": answer.name,
            "rows": answer.rows,
            "cols": answer.cols,
            "nnz": answer.stored,
            "lower": lower,
            "upper": upper,
            "gap": answer.enclosure.gap(),
            "proof": proof_name(proof),
            "status": status_name(status),
            "matvecs": products,
            "seconds": answer.seconds,
        })
    };
    let network = constants.map(|constants| {
        let Global { enclosure, product, eclipse, absolute, proxy, .. } = &constants.whole;
        let local = constants
            .spread()
            .map(|[min, median, max]| json!({ "samples": constants.local.len(), "min": min, "median": median, "max": max }));
        json!({
            "lower": enclosure.lower,
            "upper": enclosure.upper,
            "product": product,
            "eclipse": eclipse,
            "absolute": absolute,
            "proxy": { "lower": proxy.lower, "upper": proxy.upper },
            "local": local,
            "witness": witness,
        })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "isa": runtime.isa().name(),
        "threads": runtime.threads(),
        "operators": answers.iter().map(operator).collect::<Vec<_>>(),
        "network": network,
        "witness": if constants.is_none() { witness.clone() } else { Value::Null },
    })
}

/// The distribution of the local constants, between the bounds of the network.
fn histogram(constants: &Constants) -> Result<String> {
    const BINS: usize = 40;
    const COLOUR: RGBColor = RGBColor(0, 114, 178);
    let values: Vec<_> = constants.local.iter().map(|enclosure| enclosure.lower).collect();
    let Global { enclosure, product, eclipse, .. } = &constants.whole;
    let high = values.iter().copied().fold(enclosure.upper, f64::max);
    let right = if high > 0.0 && high.is_finite() { 1.05 * high } else { 1.0 };
    let mut counts = [0u32; BINS];
    for value in &values {
        counts[((value / right * BINS as f64) as usize).min(BINS - 1)] += 1;
    }
    let top = f64::from(*counts.iter().max().expect("there are bins")) * 1.15;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (960, 420)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(format!("Local Lipschitz constants at {} samples", values.len()), ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..right, 0.0..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .label_style(("sans-serif", 14))
            .axis_desc_style(("sans-serif", 15))
            .x_desc("norm of the Jacobian; lines: bounds of the whole network")
            .y_desc("samples")
            .draw()?;
        chart.draw_series(counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(bin, &count)| {
            let x = |bin: usize| bin as f64 / BINS as f64 * right;
            Rectangle::new([(x(bin), 0.0), (x(bin + 1), f64::from(count))], COLOUR.mix(0.7).filled())
        }))?;
        for (name, x, height) in [
            ("at least", enclosure.lower, 0.98),
            ("at most", enclosure.upper, 0.98),
            ("ECLipsE-Fast", *eclipse, 0.9),
            ("product", *product, 0.82),
        ] {
            if x > right || !x.is_finite() {
                continue;
            }
            chart.draw_series([PathElement::new([(x, 0.0), (x, top)], BLACK.mix(0.6).stroke_width(1))])?;
            let place = if x > 0.85 * right { x - 0.13 * right } else { x + 0.006 * right };
            chart.draw_series([Text::new(format!("{name} {x:.2}"), (place, height * top), ("sans-serif", 13))])?;
        }
        root.present()?;
    }
    Ok(svg)
}
