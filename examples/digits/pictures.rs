//! Draws the findings.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use plotters::prelude::*;

use super::Failure;
use super::chart::{
    Area, GREY, draw_axes, draw_band, draw_dashes, draw_discs, draw_legend, draw_line, font, titled,
};
use super::data::CLASSES;
use super::findings::{Drift, Findings, Point, mean};

const SIZE: (u32, u32) = (800, 500);
const FOOT: u32 = 24;

/// How a network looks.
struct Look {
    name: &'static str,
    color: RGBColor,
}

/// Without batch norm and with it, in two colours of Okabe and Ito's that every eye tells apart.
const LOOKS: [Look; 2] = [
    Look {
        name: "without batch norm",
        color: RGBColor(213, 94, 0),
    },
    Look {
        name: "with batch norm",
        color: RGBColor(0, 114, 178),
    },
];

/// Draws every picture; returns their files.
pub fn draw_all(findings: &Findings) -> Result<Vec<PathBuf>, Failure> {
    type Draw = fn(&Findings, &Area) -> Result<(), Failure>;
    let pictures: [(&str, Draw); 4] = [
        ("loss.svg", draw_losses),
        ("learning_rate.svg", draw_learning_rates),
        ("initial_scale.svg", draw_initial_scales),
        ("drift.svg", draw_drift),
    ];
    let folder = &findings.settings.out;
    fs::create_dir_all(folder)?;
    let note = format!("Batch norm on {}", findings.device);
    let mut files = Vec::new();
    for (name, draw) in pictures {
        let file = folder.join(name);
        let root = SVGBackend::new(&file, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (area, foot) = root.split_vertically(SIZE.1 - FOOT);
        foot.draw_text(&note, &font(11), (14, 2))?;
        draw(findings, &area)?;
        root.present()?;
        files.push(file.clone());
    }
    Ok(files)
}

/// The losses, over the epochs.
fn draw_losses(findings: &Findings, area: &Area) -> Result<(), Failure> {
    let common = findings.common();
    let train = common
        .train_losses()
        .map(|losses| over_epochs(losses))
        .into_array();
    let test = common
        .test_losses()
        .map(|losses| over_epochs(losses))
        .into_array();
    let all = train.iter().chain(&test).flatten();
    let losses = bounds(all.map(|&(_, loss)| loss), 0.01..1.0);
    let (low, high) = (losses.start / 1.2, losses.end * 1.2);
    let mut ticks = vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
    ticks.retain(|tick| (low..high).contains(tick));

    let title = format!("Mean loss at learning rate {}", common.value);
    let mut chart = titled(area, &title).build_cartesian_2d(
        1.0..findings.settings.epochs.max(2) as f64,
        (low..high).log_scale().with_key_points(ticks),
    )?;
    draw_axes(&mut chart, "epoch", "cross-entropy (nats)")?;
    for ((look, train), test) in LOOKS.iter().zip(train).zip(test) {
        let style = look.color.stroke_width(2);
        draw_line(
            &mut chart,
            &train,
            style,
            &format!("training, {}", look.name),
        )?;
        draw_dashes(&mut chart, &test, style, &format!("test, {}", look.name))?;
    }
    draw_legend(&mut chart, SeriesLabelPosition::UpperRight)
}

/// A curve as far as a logarithmic axis can show it.
fn over_epochs(losses: &[f64]) -> Vec<(f64, f64)> {
    let visible = losses
        .iter()
        .copied()
        .take_while(|loss| loss.is_finite() && *loss > 0.0);
    (1..).map(f64::from).zip(visible).collect()
}

fn draw_learning_rates(findings: &Findings, area: &Area) -> Result<(), Failure> {
    let title = format!(
        "Test accuracy after {} epochs (each training, and their mean)",
        findings.settings.epochs
    );
    let points = findings.over_rates();
    let legend = SeriesLabelPosition::LowerLeft;
    draw_accuracies(area, &title, "learning rate", &points, legend)
}

fn draw_initial_scales(findings: &Findings, area: &Area) -> Result<(), Failure> {
    let title = format!(
        "Test accuracy after {} epochs at learning rate {} (each training, and their mean)",
        findings.settings.epochs, findings.settings.learning_rate
    );
    let variable = "standard deviation of the initial weights, in units of He's";
    let points = findings.over_scales();
    let legend = SeriesLabelPosition::LowerMiddle;
    draw_accuracies(area, &title, variable, &points, legend)
}

/// The test accuracies over what varies: a small disc for each training, a line for their mean.
fn draw_accuracies(
    area: &Area,
    title: &str,
    variable: &str,
    points: &[Point],
    legend: SeriesLabelPosition,
) -> Result<(), Failure> {
    let ticks: Vec<f64> = points.iter().map(|point| point.value).collect();
    let values = bounds(ticks.iter().copied(), 0.1..1.0);
    let (left, right) = (values.start / 1.4, values.end * 1.4);
    let mut chart = titled(area, title)
        .build_cartesian_2d((left..right).log_scale().with_key_points(ticks), 0.0..104.0)?;
    draw_axes(&mut chart, variable, "test accuracy (%)")?;

    for (index, look) in LOOKS.iter().enumerate() {
        let mut means = Vec::new();
        for point in points {
            let accuracies = &point.test_accuracies().into_array()[index];
            let discs: Vec<_> = accuracies
                .iter()
                .map(|accuracy| (point.value, 100.0 * accuracy))
                .collect();
            draw_discs(&mut chart, &discs, 3, look.color.mix(0.5).filled())?;
            means.push((point.value, 100.0 * mean(accuracies.iter().copied())));
        }
        draw_line(&mut chart, &means, look.color.stroke_width(2), look.name)?;
    }
    let chance = 100.0 / CLASSES as f64;
    draw_dashes(
        &mut chart,
        &[(left, chance), (right, chance)],
        GREY.into(),
        "chance",
    )?;
    draw_legend(&mut chart, legend)
}

/// What enters a typical hidden ReLU, over the steps of training.
fn draw_drift(findings: &Findings, area: &Area) -> Result<(), Failure> {
    let title = format!(
        "What enters a typical unit of the last hidden ReLU (learning rate {})",
        findings.settings.learning_rate
    );
    let area = area.margin(14, 0, 0, 0).titled(&title, font(18))?;
    let drifts = [&findings.drift.without, &findings.drift.with];
    let percentiles = drifts.iter().flat_map(|drift| &drift.track);
    let inputs = percentiles.flat_map(|(_, percentiles)| percentiles);
    let Range { start, end } = bounds(inputs.map(|&input| input.into()), -1.0..1.0);
    // Room for the legend above.
    let height = end - start;
    let inputs = start - 0.1 * height..end + 0.4 * height;
    for ((half, look), drift) in area.split_evenly((1, 2)).iter().zip(&LOOKS).zip(drifts) {
        draw_track(half, look, drift, inputs.clone())?;
    }
    Ok(())
}

/// The 15th to the 85th percentile of one unit's input as a band, the median as a line.
fn draw_track(area: &Area, look: &Look, drift: &Drift, inputs: Range<f64>) -> Result<(), Failure> {
    let curve = |index: usize| -> Vec<(f64, f64)> {
        let of =
            |(step, percentiles): &(usize, [f32; 3])| (*step as f64, percentiles[index].into());
        drift.track.iter().map(of).collect()
    };
    let steps = drift.track.last().map_or(1, |&(step, _)| step.max(1)) as f64;
    let mut chart = titled(area, look.name).build_cartesian_2d(0.0..steps, inputs)?;
    draw_axes(&mut chart, "training step", "input on the test images")?;
    draw_dashes(
        &mut chart,
        &[(0.0, 0.0), (steps, 0.0)],
        GREY.into(),
        "the ReLU's threshold",
    )?;
    draw_band(
        &mut chart,
        &curve(0),
        &curve(2),
        look.color.mix(0.25).into(),
        "15th to 85th percentile",
    )?;
    draw_line(&mut chart, &curve(1), look.color.stroke_width(2), "median")?;
    draw_legend(&mut chart, SeriesLabelPosition::UpperLeft)
}

/// From the smallest to the largest value, or `otherwise` where that is no range.
fn bounds(values: impl Iterator<Item = f64>, otherwise: Range<f64>) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low < high { low..high } else { otherwise }
}
