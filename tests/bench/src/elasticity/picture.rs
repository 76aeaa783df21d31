//! Demand and workers over time as one picture for the README: an SVG that is readable on light and on dark paper.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::score::{Moment, Row};

/// The rows that are drawn, if they were run.
const DRAWN: [u32; 4] = [4, 5, 6, 8];
const WIDTH: u32 = 900;
const HEIGHT: u32 = 230;
const WORKERS: RGBColor = RGBColor(25, 113, 194);
const DEMAND: RGBColor = RGBColor(232, 89, 12);
/// In the middle between white and black.
const INK: RGBColor = RGBColor(128, 136, 144);

/// Writes the picture: two rows of the scorecard beside each other.
pub(crate) fn write(path: &Path, results: &[Row]) -> Result<(), Box<dyn Error>> {
    let of = |number: &u32| results.iter().find(|row| row.number == *number && !row.series.is_empty());
    let rows: Vec<&Row> = DRAWN.iter().filter_map(of).collect();
    let lines = u32::try_from(rows.len().div_ceil(2))?;
    let area = SVGBackend::new(path, (WIDTH, (HEIGHT * lines).max(1))).into_drawing_area();
    for (panel, row) in area.split_evenly((lines.max(1) as usize, 2)).iter().zip(rows) {
        draw(panel, row)?;
    }
    area.present()?;
    Ok(())
}

fn draw(area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>, row: &Row) -> Result<(), Box<dyn Error>> {
    let end = row.series.last().map_or(1.0, |point| point.0);
    let text = ("sans-serif", 13).into_font().color(&INK);
    let mut chart = ChartBuilder::on(area)
        .caption(row.workload, ("sans-serif", 14).into_font().color(&INK))
        .margin(8)
        .x_label_area_size(22)
        .y_label_area_size(30)
        .build_cartesian_2d(0.0..end, 0.0..70.0)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.25))
        .axis_style(INK.mix(0.6))
        .label_style(text.clone())
        .x_labels(7)
        .y_labels(4)
        .x_label_formatter(&|seconds| format!("{seconds:.0} s"))
        .y_label_formatter(&|count| format!("{count:.0}"))
        .draw()?;
    let workers = stepped(&row.series, |point| point.2);
    chart.draw_series(AreaSeries::new(workers.iter().copied(), 0.0, WORKERS.mix(0.15)))?;
    chart.draw_series(LineSeries::new(stepped(&row.series, |point| point.1), DEMAND.stroke_width(1)))?;
    chart.draw_series(LineSeries::new(workers, WORKERS.stroke_width(2)))?;
    for (name, color, height) in [("workers", WORKERS, 67.0), ("demand", DEMAND, 60.0)] {
        let style = text.clone().color(&color).pos(Pos::new(HPos::Right, VPos::Center));
        chart.draw_series([Text::new(name, (end, height), style)])?;
    }
    Ok(())
}

/// Each value holds until the next; where nothing changes, points are left out.
fn stepped(series: &[Moment], value: fn(&Moment) -> f64) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = Vec::new();
    for point in series {
        match points.last() {
            Some(&(_, old)) if old.total_cmp(&value(point)).is_eq() => {}
            Some(&(_, old)) => points.extend([(point.0, old), (point.0, value(point))]),
            None => points.push((point.0, value(point))),
        }
    }
    points.extend(series.last().map(|point| (point.0, value(point))));
    points
}
