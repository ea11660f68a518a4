//! The picture: a panel for each quantity, a point with its error bar for each method.

use plotters::prelude::*;

use crate::data::Result;
use crate::{SHOWN, Series};

const WIDTH: u32 = 1600;
const HEIGHT: u32 = 340;
const COLOUR: RGBColor = RGBColor(0, 114, 178);

/// Means and standard deviations over the seeds, as SVG text.
pub(crate) fn picture(all: &[Series]) -> Result<String> {
    let mut svg = String::new();
    {
        let rows = SHOWN.len().div_ceil(2);
        let root = SVGBackend::with_string(&mut svg, (WIDTH, rows as u32 * HEIGHT)).into_drawing_area();
        root.fill(&WHITE)?;
        for ((title, value), area) in SHOWN.iter().zip(root.split_evenly((rows, 2))) {
            let points: Vec<_> = all
                .iter()
                .enumerate()
                .filter(|(_, series)| !series.outcomes.is_empty())
                .map(|(index, series)| (index as f64, series.statistics(value)))
                .collect();
            let ends = points.iter().flat_map(|&(_, (mean, deviation))| [mean - deviation, mean + deviation]);
            let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)));
            let (low, high) = if low < high { (low, high) } else { (low - 0.5, low + 0.5) };
            let margin = 0.08 * (high - low);
            if !margin.is_finite() {
                continue;
            }
            let mut chart = ChartBuilder::on(&area)
                .caption(title, ("sans-serif", 20))
                .margin(10)
                .x_label_area_size(34)
                .y_label_area_size(66)
                .build_cartesian_2d(-0.5..all.len() as f64 - 0.5, low - margin..high + margin)?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(BLACK.mix(0.12))
                .axis_style(BLACK.mix(0.6))
                .x_labels(all.len())
                .x_label_style(("sans-serif", 12))
                .y_label_style(("sans-serif", 14))
                .x_label_formatter(&|x| match all.get(x.round() as usize) {
                    Some(series) if x.fract() == 0.0 => series.name.clone(),
                    _ => String::new(),
                })
                .draw()?;
            for (x, (mean, deviation)) in points {
                let ends = [mean - deviation, mean + deviation];
                let line = |a: (f64, f64), b: (f64, f64)| PathElement::new([a, b], COLOUR.stroke_width(2));
                let caps = ends.map(|y| line((x - 0.08, y), (x + 0.08, y)));
                chart.draw_series(caps.into_iter().chain([line((x, ends[0]), (x, ends[1]))]))?;
                chart.draw_series([Circle::new((x, mean), 4, COLOUR.filled())])?;
            }
        }
        root.present()?;
    }
    Ok(svg)
}
