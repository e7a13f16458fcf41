//! Axes, curves and legends that look alike in all pictures.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::Failure;

/// A part of a picture.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Room for a chart.
pub type Builder<'a, 'b> = ChartBuilder<'b, 'b, SVGBackend<'a>>;
/// A pair of axes to draw on.
pub type Chart<'a, X, Y> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>;

const GRID: RGBColor = RGBColor(228, 228, 228);
/// Neither of the two networks.
pub const GREY: RGBColor = RGBColor(120, 120, 120);
/// The length of a line's sample in the legend.
const SAMPLE: i32 = 26;

/// Text of this size.
pub fn font(size: u32) -> TextStyle<'static> {
    TextStyle::from(("sans-serif", size)).color(&RGBColor(50, 50, 50))
}

/// Room for a chart under a title.
pub fn titled<'a, 'b>(area: &'b Area<'a>, title: &str) -> Builder<'a, 'b> {
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(title, font(18))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(58);
    builder
}

/// Draws the axes and the lines at their ticks.
pub fn draw_axes<X, Y>(chart: &mut Chart<X, Y>, x: &str, y: &str) -> Result<(), Failure>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    // Without the digits that come of 0.1 + 0.2.
    let format = |value: &f64| ((value * 1e6).round() / 1e6).to_string();
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&format)
        .y_label_formatter(&format)
        .label_style(font(13))
        .axis_desc_style(font(14))
        .axis_style(GREY)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .draw()?;
    Ok(())
}

/// Draws a curve; it enters the legend if it has a name.
pub fn draw_line<X, Y>(
    chart: &mut Chart<X, Y>,
    curve: &[(f64, f64)],
    style: ShapeStyle,
    name: &str,
) -> Result<(), Failure>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    chart
        .draw_series(LineSeries::new(curve.iter().copied(), style))?
        .label(name)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + SAMPLE, y)], style));
    Ok(())
}

/// Draws a dashed curve, with its name in the legend.
pub fn draw_dashes<X, Y>(
    chart: &mut Chart<X, Y>,
    curve: &[(f64, f64)],
    style: ShapeStyle,
    name: &str,
) -> Result<(), Failure>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    chart
        .draw_series(DashedLineSeries::new(curve.iter().copied(), 6, 4, style))?
        .label(name)
        .legend(move |(x, y)| DashedPathElement::new([(x, y), (x + SAMPLE, y)], 6, 4, style));
    Ok(())
}

/// Fills the room between two curves over the same values.
pub fn draw_band<X, Y>(
    chart: &mut Chart<X, Y>,
    lower: &[(f64, f64)],
    upper: &[(f64, f64)],
    style: ShapeStyle,
    name: &str,
) -> Result<(), Failure>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    let outline: Vec<_> = lower.iter().chain(upper.iter().rev()).copied().collect();
    chart
        .draw_series([Polygon::new(outline, style)])?
        .label(name)
        .legend(move |(x, y)| Rectangle::new([(x, y - 6), (x + SAMPLE, y + 6)], style.filled()));
    Ok(())
}

/// Draws discs of a radius.
pub fn draw_discs<X, Y>(
    chart: &mut Chart<X, Y>,
    centers: &[(f64, f64)],
    radius: i32,
    style: ShapeStyle,
) -> Result<(), Failure>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    chart.draw_series(PointSeries::of_element(
        centers.iter().copied(),
        radius,
        style,
        &Circle::new,
    ))?;
    Ok(())
}

/// Draws the names of all curves so far.
pub fn draw_legend<X, Y>(
    chart: &mut Chart<X, Y>,
    position: SeriesLabelPosition,
) -> Result<(), Failure>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    chart
        .configure_series_labels()
        .position(position)
        .margin(10)
        .legend_area_size(SAMPLE + 8)
        .label_font(font(13))
        .background_style(WHITE.mix(0.9))
        .border_style(GRID)
        .draw()?;
    Ok(())
}
