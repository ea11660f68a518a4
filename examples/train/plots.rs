//! The pictures, as SVG text.

use std::collections::BTreeMap;

use dualprop::Real;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::args::Run;
use crate::data::Result;
use crate::run::{Epoch, Outcome};

/// Colours that stay apart for colour-blind readers (Okabe and Ito, without yellow); back-propagation comes sixth by default.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(0, 0, 0),
    RGBColor(86, 180, 233),
];

/// Length of dash and gap of every second line. They are drawn after the solid ones, the shortest dashes last, so that lines on
/// top of each other all show.
const DASHES: [(u32, u32); 3] = [(14, 6), (6, 8), (2, 6)];

/// Width of a figure, height of a row of panels, and height of a line of the legend, in pixels.
const WIDTH: u32 = 1120;
const PANEL_HEIGHT: u32 = 400;
const LEGEND_LINE: u32 = 24;
const LEGEND_COLUMNS: usize = 4;

/// Accuracies that lie further than this below the best are not shown, so that the others can be told apart.
const SHOWN_ACCURACY: f64 = 0.25;

/// Receptive fields have levels of this many colours on either side of white.
const LEVELS: i32 = 24;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Training loss and test accuracy by epoch.
pub(crate) fn curves<T>(runs: &[(Run, Outcome<T>)]) -> Result<String> {
    let accuracies = series(runs, |epoch| Some(epoch.test_accuracy));
    let best = accuracies.iter().flatten().map(|&(_, accuracy)| accuracy).fold(f64::NEG_INFINITY, f64::max);
    let shown = |epoch: &Epoch| Some(epoch.test_accuracy).filter(|accuracy| *accuracy >= best - SHOWN_ACCURACY);
    let log_loss = |epoch: &Epoch| Some(epoch.measured.loss).filter(|&loss| loss > 0.0).map(f64::log10);
    figure(
        runs,
        &[
            Panel { title: "Training loss".into(), y: "loss (log scale)", scale: Scale::Log10, series: series(runs, log_loss) },
            Panel { title: "Test accuracy".into(), y: "accuracy", scale: Scale::Linear, series: series(runs, shown) },
        ],
    )
}

/// Cosine between the gradient and that of back-propagation by epoch, a panel for every layer.
pub(crate) fn cosine<T>(runs: &[(Run, Outcome<T>)]) -> Result<String> {
    let layers = runs.first().map_or(0, |(_, outcome)| outcome.total.cosine.len());
    let panel = |layer: usize| Panel {
        title: format!("Gradient of w{layer}"),
        y: "cosine to back-propagation",
        scale: Scale::Linear,
        series: series(runs, |epoch| epoch.measured.cosine.get(layer).copied()),
    };
    figure(runs, &(0..layers).map(panel).collect::<Vec<_>>())
}

/// Points of all runs: the epochs, or the untrained network if there are none.
fn series<T>(runs: &[(Run, Outcome<T>)], value: impl Fn(&Epoch) -> Option<f64>) -> Vec<Vec<(f64, f64)>> {
    let points = |outcome: &Outcome<T>| {
        let epochs = if outcome.epochs.is_empty() { std::slice::from_ref(&outcome.initial) } else { &outcome.epochs };
        let point = |epoch: &Epoch| Some((epoch.epoch as f64, value(epoch).filter(|value| value.is_finite())?));
        epochs.iter().filter_map(point).collect()
    };
    runs.iter().map(|(_, outcome)| points(outcome)).collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    /// The values are decimal logarithms.
    Log10,
}

struct Panel {
    title: String,
    y: &'static str,
    scale: Scale,
    /// Points of each run.
    series: Vec<Vec<(f64, f64)>>,
}

/// Panels side by side, at most three a row, over a legend.
fn figure<T>(runs: &[(Run, Outcome<T>)], panels: &[Panel]) -> Result<String> {
    /// Length of the line in the legend.
    const SAMPLE: u32 = 36;
    let columns = if panels.len() == 4 { 2 } else { panels.len().clamp(1, 3) };
    let panel_rows = panels.len().div_ceil(columns) as u32;
    let legend = runs.len().div_ceil(LEGEND_COLUMNS) as u32 * LEGEND_LINE + 16;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, panel_rows * PANEL_HEIGHT + legend)).into_drawing_area();
        root.fill(&WHITE)?;
        let (upper, lower) = root.split_vertically(panel_rows * PANEL_HEIGHT);
        for (panel, area) in panels.iter().zip(upper.split_evenly((panel_rows as usize, columns))) {
            draw_panel(panel, &area)?;
        }
        for (index, (run, _)) in runs.iter().enumerate() {
            let x = 60 + (index % LEGEND_COLUMNS) as i32 * (WIDTH as i32 - 60) / LEGEND_COLUMNS as i32;
            let y = (index / LEGEND_COLUMNS) as i32 * LEGEND_LINE as i32 + 12;
            let (dash, gap) = dash(index).unwrap_or((SAMPLE, 0));
            for start in (0..SAMPLE).step_by((dash + gap) as usize) {
                let ends = [start, (start + dash).min(SAMPLE)].map(|offset| (x + offset as i32, y));
                lower.draw(&PathElement::new(ends, stroke(index)))?;
            }
            lower.draw(&Text::new(name(run), (x + SAMPLE as i32 + 8, y - 7), ("sans-serif", 15)))?;
        }
        root.present()?;
    }
    Ok(svg)
}

fn draw_panel(panel: &Panel, area: &Area) -> Result<()> {
    let points = || panel.series.iter().flatten();
    let (left, right) = range(points().map(|point| point.0), 0.0);
    let (bottom, top) = range(points().map(|point| point.1), 0.04);
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 20))
        .margin(12)
        .margin_right(20)
        .x_label_area_size(44)
        .y_label_area_size(66)
        .build_cartesian_2d(left..right, bottom..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .axis_style(BLACK.mix(0.6))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .x_desc("epoch")
        .y_desc(panel.y)
        .x_labels(10)
        .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() })
        .y_label_formatter(&|&y| match panel.scale {
            Scale::Linear => significant(y, top - bottom),
            Scale::Log10 => significant(10f64.powf(y), 10f64.powf(y).min(10f64.powf(top) - 10f64.powf(bottom))),
        })
        .draw()?;
    let mut order: Vec<_> = panel.series.iter().enumerate().collect();
    order.sort_by_key(|&(index, _)| std::cmp::Reverse(dash(index).map_or(u32::MAX, |(dash, _)| dash)));
    for (index, points) in order {
        match dash(index) {
            None => chart.draw_series(LineSeries::new(points.iter().copied(), stroke(index)))?,
            Some((dash, gap)) => chart.draw_series(DashedLineSeries::new(points.iter().copied(), dash, gap, stroke(index)))?,
        };
        if let [point] = points[..] {
            chart.draw_series([Circle::new(point, 4, stroke(index).filled())])?;
        }
    }
    Ok(())
}

/// Length of dash and gap, none for a solid line.
fn dash(run: usize) -> Option<(u32, u32)> {
    (run % 2 == 1).then(|| DASHES[run / 2 % DASHES.len()])
}

fn stroke(run: usize) -> ShapeStyle {
    COLOURS[run % COLOURS.len()].stroke_width(2)
}

/// Smallest and largest value, a `margin` of their distance apart from the edge; never empty.
fn range(values: impl Iterator<Item = f64>, margin: f64) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    match high - low {
        width if width > 0.0 => (low - margin * width, high + margin * width),
        0.0 => (low - 0.5, high + 0.5),
        _ => (0.0, 1.0),
    }
}

/// With two digits or so of what matters at this scale.
fn significant(value: f64, scale: f64) -> String {
    let digits = (1.99 - scale.log10()).clamp(0.0, 8.0) as usize;
    format!("{value:.digits$}")
}

/// Method and α for the reader.
fn name(run: &Run) -> String {
    match run.settings.method.alpha() {
        Some(alpha) => format!("{}, α = {alpha}", run.settings.method.name()),
        None => run.settings.method.name().into(),
    }
}

/// First-layer weights of some units as pictures: a row for each run, a column for each unit. All runs start from the same
/// weights, so that a column shows what the methods make of the same unit.
pub(crate) fn first_layer<T: Real>(runs: &[(Run, Outcome<T>)], (height, width): (usize, usize)) -> String {
    const FIELD: f64 = 72.0;
    const STEP: f64 = FIELD + 8.0;
    const LEFT: f64 = 204.0;
    const TOP: f64 = 56.0;
    let units = strongest_units(runs, if height * width > 256 { 8 } else { 12 });
    let scale = FIELD / height.max(width) as f64;
    let size = (LEFT + STEP * units.len() as f64 + 8.0, TOP + STEP * runs.len() as f64 + 8.0);
    let mut svg = format!(
        "<svg width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" xmlns=\"http://www.w3.org/2000/svg\" \
         font-family=\"sans-serif\" font-size=\"15\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"18\">First-layer weights of {2} units</text>\n\
         <text x=\"16\" y=\"44\" font-size=\"13\">the same units in every row; blue negative, white zero, red positive, each \
         picture up to its largest weight</text>\n",
        size.0,
        size.1,
        units.len()
    );
    for (row, (run, outcome)) in runs.iter().enumerate() {
        let y = TOP + STEP * row as f64;
        svg += &format!("<text x=\"16\" y=\"{}\">{}</text>\n", y + FIELD / 2.0 + 5.0, name(run));
        let weights = outcome.network.weights(0);
        for (column, &unit) in units.iter().enumerate() {
            let field: Vec<_> = (0..weights.ncols()).map(|pixel| weights[(unit, pixel)].to_f64()).collect();
            let x = LEFT + STEP * column as f64;
            svg += &format!("<g transform=\"translate({x} {y}) scale({scale})\" shape-rendering=\"crispEdges\">\n");
            svg += &receptive_field(&field, width);
            svg += &format!(
                "<rect width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#999\" stroke-width=\"{}\"/>\n</g>\n",
                1.0 / scale
            );
        }
    }
    svg + "</svg>\n"
}

/// The units of the first layer with the largest weights over all runs, in their order.
fn strongest_units<T: Real>(runs: &[(Run, Outcome<T>)], count: usize) -> Vec<usize> {
    let width = runs.first().map_or(0, |(_, outcome)| outcome.network.weights(0).nrows());
    let strength = |unit: usize| {
        let row = |(_, outcome): &(Run, Outcome<T>)| {
            let weights = outcome.network.weights(0);
            (0..weights.ncols()).map(|pixel| weights[(unit, pixel)].to_f64().powi(2)).sum::<f64>()
        };
        runs.iter().map(row).sum::<f64>()
    };
    let mut units: Vec<_> = (0..width).map(|unit| (strength(unit), unit)).collect();
    units.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut units: Vec<_> = units.into_iter().take(count).map(|(_, unit)| unit).collect();
    units.sort_unstable();
    units
}

/// Unit squares, those of one colour in one path.
fn receptive_field(field: &[f64], width: usize) -> String {
    let largest = field.iter().map(|weight| weight.abs()).fold(0.0, f64::max);
    let mut paths: BTreeMap<i32, String> = BTreeMap::new();
    for (pixel, weight) in field.iter().enumerate() {
        let level = if largest > 0.0 { (weight / largest * f64::from(LEVELS)).round() as i32 } else { 0 };
        paths.entry(level).or_default().push_str(&format!("M{} {}h1v1h-1z", pixel % width, pixel / width));
    }
    paths.iter().map(|(&level, squares)| format!("<path fill=\"{}\" d=\"{squares}\"/>\n", diverging(level))).collect()
}

/// Blue through white to red.
fn diverging(level: i32) -> String {
    let end = if level < 0 { [33.0, 102.0, 172.0] } else { [178.0, 24.0, 43.0] };
    let share = f64::from(level.abs()) / f64::from(LEVELS);
    let [red, green, blue] = end.map(|colour| (255.0 + share * (colour - 255.0)).round() as u8);
    format!("#{red:02x}{green:02x}{blue:02x}")
}
