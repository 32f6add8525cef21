//! Charts of curves and of stacked areas, as SVG.
//!
//! Plotters places everything in whole units; a chart is drawn with [`UNITS`] units per pixel, which a `viewBox` scales
//! back, so that lines are smooth.

use plotters::chart::DualCoordChartContext;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    Cartesian2d, ChartBuilder, Circle, DrawingArea, DrawingAreaErrorKind, IntoDrawingArea, IntoFont, LineSeries,
    PathElement, Polygon, RGBColor, SVGBackend, TRANSPARENT, Text, TextStyle,
};
use plotters::style::Color as _;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::picture::{Color, PictureError};
use crate::raster::{escape, text_width};

/// Colors of curves; with white below or, exchanged by a style sheet, on black.
pub const PALETTE: [Color; 8] = [
    [0x23, 0x60, 0xb8],
    [0xc8, 0x48, 0x1a],
    [0x14, 0x80, 0x5a],
    [0x84, 0x45, 0xad],
    [0xa0, 0x6f, 0x00],
    [0x00, 0x7f, 0x99],
    [0xb0, 0x30, 0x6f],
    [0x5f, 0x6b, 0x7a],
];
/// Color of grid lines.
pub const GRID: Color = [0xe1, 0xe3, 0xe6];
/// Color of text.
pub const TEXT: Color = [0x4a, 0x52, 0x5b];

/// Units of plotters per pixel.
const UNITS: u32 = 10;
/// Maximum number of points of a curve that have a marker with a tooltip.
const MARKERS: usize = 60;
/// Font sizes in pixels.
const TICK_SIZE: f64 = 12.0;
const LABEL_SIZE: f64 = 13.0;
/// Plotters takes the height of a line and writes this fraction of it as font size.
const LINE_HEIGHT: f64 = 1.24;

/// Curves in one coordinate system.
#[derive(Clone, Debug)]
pub struct Chart {
    pub x_axis: Axis,
    pub y_axis: Axis,
    /// Axis of the curves with `on_right_axis`.
    pub right_axis: Option<Axis>,
    pub curves: Vec<Curve>,
    /// Draw stacked areas, one step per point, instead of lines.
    pub is_stacked: bool,
    /// Write the names of the curves above them.
    pub has_legend: bool,
    /// Width and height in pixels.
    pub size: [u32; 2],
}

/// A coordinate axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// Quantity and unit; may be empty.
    pub label: String,
    pub range: AxisRange,
}

/// Values that an axis covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AxisRange {
    /// From the lowest to the highest value, rounded outward to ticks.
    Values,
    /// As `Values`, and 0.
    FromZero,
    /// 0 to 1.
    Unit,
    /// Exactly from the lowest to the highest value, with ticks at integers: epochs, numbers of ranks.
    Integers,
}

/// A named line.
#[derive(Clone, Debug)]
pub struct Curve {
    pub name: String,
    pub color: Color,
    /// `(x, y)`, in ascending order of x; the line has a gap where y is not finite.
    pub points: Vec<(f64, f64)>,
    /// Draw a thicker line.
    pub is_main: bool,
    pub on_right_axis: bool,
}

impl Axis {
    /// An axis with a label.
    pub fn new(label: &str, range: AxisRange) -> Self {
        Self { label: label.to_owned(), range }
    }
}

impl Curve {
    /// A line of normal width on the left axis.
    pub fn new(name: &str, color: Color, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.to_owned(), color, points, is_main: false, on_right_axis: false }
    }

    /// Last finite value.
    pub fn last_value(&self) -> Option<f64> {
        self.finite().last().map(|(_, y)| y)
    }

    /// Points that can be drawn.
    fn finite(&self) -> impl Iterator<Item = (f64, f64)> {
        self.points.iter().copied().filter(|point| is_drawable(*point))
    }

    /// Lines between gaps.
    fn segments(&self) -> impl Iterator<Item = &[(f64, f64)]> {
        self.points.split(|point| !is_drawable(*point)).filter(|segment| !segment.is_empty())
    }
}

/// Whether a point is finite, and small enough that the length of an axis is finite too.
fn is_drawable((x, y): (f64, f64)) -> bool {
    x.abs() <= 1e300 && y.abs() <= 1e300
}

impl Default for Chart {
    fn default() -> Self {
        Self {
            x_axis: Axis::new("", AxisRange::Integers),
            y_axis: Axis::new("", AxisRange::Values),
            right_axis: None,
            curves: Vec::new(),
            is_stacked: false,
            has_legend: true,
            size: [900, 340],
        }
    }
}

impl Chart {
    /// The chart as an SVG document.
    ///
    /// # Errors
    /// Returns an error if plotters cannot draw the axes.
    pub fn to_svg(&self) -> Result<String, PictureError> {
        column_svg(std::slice::from_ref(self))
    }

    /// The chart as an element of an HTML page: without namespace and size, with a description for screen readers and
    /// tooltips at the points.
    ///
    /// # Errors
    /// Returns an error if plotters cannot draw the axes.
    pub fn to_inline_svg(&self, description: &str) -> Result<String, PictureError> {
        let (elements, [width, height]) = draw_column(std::slice::from_ref(self))?;
        let description = escape(description);
        Ok(format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{description}\">\n{elements}</svg>"
        ))
    }

    fn x_ticks(&self) -> Ticks {
        let values = self.curves.iter().flat_map(Curve::finite).map(|(x, _)| x);
        let ticks = Ticks::new(values, &self.x_axis, 8);
        // A step of the areas is as wide as an epoch; a single point is centered.
        let margin = if self.is_stacked || ticks.low == ticks.high { 0.5 } else { 0.0 };
        Ticks { low: ticks.low - margin, high: ticks.high + margin, ..ticks }
    }

    fn y_ticks(&self) -> Ticks {
        if self.is_stacked {
            let layers = self.layers();
            return Ticks::new(layers.into_iter().flatten().map(|(_, y)| y), &self.y_axis, 5);
        }
        let values = self.curves.iter().filter(|curve| !curve.on_right_axis).flat_map(Curve::finite);
        Ticks::new(values.map(|(_, y)| y), &self.y_axis, 5)
    }

    fn right_ticks(&self, axis: &Axis) -> Ticks {
        let values = self.curves.iter().filter(|curve| curve.on_right_axis).flat_map(Curve::finite);
        Ticks::new(values.map(|(_, y)| y), axis, 5)
    }

    /// Upper edges of the stacked areas.
    fn layers(&self) -> Vec<Vec<(f64, f64)>> {
        let xs: Vec<f64> = self.curves.first().into_iter().flat_map(|curve| &curve.points).map(|(x, _)| *x).collect();
        let mut sums = vec![0.0; xs.len()];
        let layer = |curve: &Curve| {
            let values = curve.points.iter().map(|point| if is_drawable(*point) { point.1 } else { 0.0 });
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            xs.iter().copied().zip(sums.iter().copied()).collect()
        };
        self.curves.iter().map(layer).collect()
    }
}

/// Charts one below the other, as one SVG document.
///
/// # Errors
/// Returns an error if plotters cannot draw the axes.
pub fn column_svg(charts: &[Chart]) -> Result<String, PictureError> {
    let (elements, size) = draw_column(charts)?;
    let [width, height] = size.map(|units| units / UNITS);
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {} {}\">\n{elements}</svg>",
        size[0], size[1]
    ))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Context<'a> = DualCoordChartContext<
    'a,
    SVGBackend<'a>,
    Cartesian2d<RangedCoordf64, RangedCoordf64>,
    Cartesian2d<RangedCoordf64, RangedCoordf64>,
>;
type DrawError = DrawingAreaErrorKind<std::io::Error>;

/// SVG elements of the charts, and their size in units.
fn draw_column(charts: &[Chart]) -> Result<(String, [u32; 2]), PictureError> {
    let width = charts.iter().map(|chart| chart.size[0]).max().unwrap_or(1);
    let height: u32 = charts.iter().map(|chart| chart.size[1]).sum();
    let size = [width, height.max(1)].map(|pixels| pixels * UNITS);
    let mut svg = String::new();
    let mut tooltips = Vec::new();
    {
        let mut rest = SVGBackend::with_string(&mut svg, size.into()).into_drawing_area();
        for chart in charts {
            let (area, below) = rest.split_vertically(units(chart.size[1].into()));
            draw(&area, chart, &mut tooltips).map_err(|error| PictureError::Chart(error.to_string()))?;
            rest = below;
        }
        rest.present().map_err(|error| PictureError::Chart(error.to_string()))?;
    }
    Ok((elements(&svg, &tooltips), size))
}

/// The elements within the document that plotters wrote, one a line; circles with their tooltips.
fn elements(svg: &str, tooltips: &[String]) -> String {
    let mut tooltips = tooltips.iter();
    let lines = svg.lines().filter(|line| !line.starts_with("<svg") && !line.starts_with("</svg"));
    let with_tooltip = |line: &str| match line.strip_prefix("<circle").and_then(|rest| rest.strip_suffix("/>")) {
        Some(circle) => {
            let tooltip = tooltips.next().map_or("", String::as_str);
            format!("<circle{circle}><title>{}</title></circle>\n", escape(tooltip))
        }
        None => format!("{line}\n"),
    };
    lines.map(with_tooltip).collect()
}

fn draw(area: &Area, chart: &Chart, tooltips: &mut Vec<String>) -> Result<(), DrawError> {
    let legend_height = if chart.has_legend { draw_legend(area, chart)? } else { 0 };
    let (x, y) = (chart.x_ticks(), chart.y_ticks());
    let right = chart.right_axis.as_ref().map(|axis| chart.right_ticks(axis));
    let label_width = |ticks: &Ticks, axis: &Axis| {
        let widest = ticks.labels().map(|label| text_width(&label, TICK_SIZE)).fold(0.0, f64::max);
        units(widest + 10.0 + if axis.label.is_empty() { 0.0 } else { LABEL_SIZE + 10.0 })
    };
    let right_width = chart.right_axis.as_ref().zip(right.as_ref()).map_or(0, |(axis, ticks)| label_width(ticks, axis));
    let mut builder = ChartBuilder::on(area);
    builder
        .margin_top(units(if legend_height > 0 { 20.0 } else { 12.0 }) + legend_height)
        .margin_left(units(8.0))
        .margin_right(units(if right.is_some() { 8.0 } else { 18.0 }))
        .margin_bottom(units(6.0))
        .x_label_area_size(units(if chart.x_axis.label.is_empty() { 22.0 } else { 44.0 }))
        .y_label_area_size(label_width(&y, &chart.y_axis))
        .right_y_label_area_size(right_width);
    let right_range = right.as_ref().map_or(0.0..1.0, Ticks::range);
    let mut context = builder.build_cartesian_2d(x.range(), y.range())?.set_secondary_coord(x.range(), right_range);
    let tick_style = text_style(TICK_SIZE, TEXT);
    let label_style = text_style(LABEL_SIZE, TEXT);
    let line = |color: Color| rgb(color).stroke_width(units(1.0));
    context
        .configure_mesh()
        .disable_x_mesh()
        .set_all_tick_mark_size(units(3.0))
        .bold_line_style(line(GRID))
        .light_line_style(TRANSPARENT)
        .axis_style(line(GRID))
        .label_style(tick_style.clone())
        .axis_desc_style(label_style.clone())
        .x_desc(&chart.x_axis.label)
        .y_desc(&chart.y_axis.label)
        .x_labels(x.count())
        .y_labels(y.count())
        .x_label_formatter(&|value| x.label(*value))
        .y_label_formatter(&|value| y.label(*value))
        .draw()?;
    if let Some((axis, ticks)) = chart.right_axis.as_ref().zip(right.as_ref()) {
        context
            .configure_secondary_axes()
            .set_all_tick_mark_size(units(3.0))
            .axis_style(line(GRID))
            .label_style(tick_style)
            .axis_desc_style(label_style)
            .y_desc(&axis.label)
            .y_labels(ticks.count())
            .y_label_formatter(&|value: &f64| ticks.label(*value))
            .draw()?;
    }
    if chart.is_stacked {
        draw_areas(&mut context, chart, &y)
    } else {
        draw_lines(&mut context, chart, [&y, right.as_ref().unwrap_or(&y)], tooltips)
    }
}

/// Areas between the layers, in steps as wide as an epoch.
fn draw_areas(context: &mut Context, chart: &Chart, ticks: &Ticks) -> Result<(), DrawError> {
    let mut layers = chart.layers();
    layers.iter_mut().flatten().for_each(|(_, y)| *y = ticks.clamp(*y));
    let mut lower: Vec<(f64, f64)> = layers.first().into_iter().flatten().map(|(x, _)| (*x, 0.0)).collect();
    for (curve, upper) in chart.curves.iter().zip(layers) {
        let forward = upper.iter().flat_map(|&(x, y)| [(x - 0.5, y), (x + 0.5, y)]);
        let back = lower.iter().rev().flat_map(|&(x, y)| [(x + 0.5, y), (x - 0.5, y)]);
        let outline: Vec<_> = forward.chain(back).collect();
        context.draw_series([Polygon::new(outline, rgb(curve.color).filled())])?;
        lower = upper;
    }
    Ok(())
}

/// Lines and markers; the first curve last, above the others. `ticks` are those of the left and the right axis.
fn draw_lines(
    context: &mut Context,
    chart: &Chart,
    ticks: [&Ticks; 2],
    tooltips: &mut Vec<String>,
) -> Result<(), DrawError> {
    for curve in chart.curves.iter().rev() {
        let style = rgb(curve.color).stroke_width(units(if curve.is_main { 3.0 } else { 2.0 }));
        let is_few = curve.finite().count() <= MARKERS;
        let ticks = ticks[usize::from(curve.on_right_axis)];
        for segment in curve.segments() {
            let inside = |(x, y)| (x, ticks.clamp(y));
            let line = LineSeries::new(segment.iter().copied().map(inside), style);
            // A single point between two gaps has no line.
            let marked = segment.iter().copied().filter(|_| is_few || segment.len() == 1);
            let radius = units(if segment.len() == 1 { 4.0 } else { 2.4 });
            let markers = marked.clone().map(|point| Circle::new(inside(point), radius, rgb(curve.color).filled()));
            tooltips.extend(marked.map(|(x, y)| tooltip(chart, curve, x, y)));
            if curve.on_right_axis {
                context.draw_secondary_series(line)?;
                context.draw_secondary_series(markers)?;
            } else {
                context.draw_series(line)?;
                context.draw_series(markers)?;
            }
        }
    }
    Ok(())
}

fn tooltip(chart: &Chart, curve: &Curve, x: f64, y: f64) -> String {
    format!("{}, {} {x}: {}", curve.name, chart.x_axis.label, significant(y))
}

/// Names of the curves with a piece of their line, in rows above the chart. Returns the height in units.
fn draw_legend(area: &Area, chart: &Chart) -> Result<u32, DrawError> {
    const SWATCH: f64 = 22.0;
    const GAP: f64 = 22.0;
    const LINE: f64 = 22.0;
    let (left, right) = (16.0, f64::from(chart.size[0]) - 16.0);
    let [mut x, mut y] = [left, 20.0];
    for curve in &chart.curves {
        let width = SWATCH + 7.0 + text_width(&curve.name, LABEL_SIZE);
        if x + width > right && x > left {
            [x, y] = [left, y + LINE];
        }
        let at = |x: f64| (units(x) as i32, units(y) as i32);
        let thickness = if curve.is_main { 4.0 } else { 3.0 };
        let swatch = vec![at(x), at(x + SWATCH)];
        area.draw(&PathElement::new(swatch, rgb(curve.color).stroke_width(units(thickness))))?;
        let style = text_style(LABEL_SIZE, TEXT).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(curve.name.clone(), at(x + SWATCH + 7.0), style))?;
        x += width + GAP;
    }
    Ok(units(y))
}

/// Range of an axis, and the distance between its ticks.
#[derive(Clone, Debug, PartialEq)]
struct Ticks {
    low: f64,
    high: f64,
    step: f64,
}

impl Ticks {
    /// Ticks for some values, about `count` of them.
    fn new(values: impl Iterator<Item = f64>, axis: &Axis, count: usize) -> Self {
        let range = axis.range;
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        match range {
            AxisRange::Unit => Self { low: 0.0, high: 1.0, step: 0.2 },
            AxisRange::Integers if low > high => Self { low: 0.0, high: 1.0, step: 1.0 },
            AxisRange::Integers => Self { low, high, step: round_step((high - low) / count as f64).max(1.0) },
            _ if low > high => Self { low: 0.0, high: 1.0, step: 0.2 },
            AxisRange::Values | AxisRange::FromZero => {
                let [low, high] =
                    if range == AxisRange::FromZero { [low.min(0.0), high.max(0.0)] } else { [low, high] };
                let span = if high > low { high - low } else { high.abs().max(1e-9) };
                let step = round_step(span / (count - 1) as f64);
                let [low, end] = [(low / step).floor() * step, (high / step).ceil() * step];
                Self { low, high: if end > low { end } else { low + step }, step }
            }
        }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }

    /// The nearest value on the axis.
    fn clamp(&self, value: f64) -> f64 {
        value.clamp(self.low, self.high)
    }

    /// Numbers of the first and the last tick, in steps.
    fn numbers(&self) -> [i64; 2] {
        [(self.low / self.step - 1e-9).ceil() as i64, (self.high / self.step + 1e-9).floor() as i64]
    }

    fn count(&self) -> usize {
        let [first, last] = self.numbers();
        usize::try_from(last - first + 1).unwrap_or(1).max(1)
    }

    fn labels(&self) -> impl Iterator<Item = String> {
        let [first, last] = self.numbers();
        (first..=last).map(|number| self.label(number as f64 * self.step))
    }

    /// A value with the decimals of the step.
    fn label(&self, value: f64) -> String {
        let digits = (-(self.step.log10() + 1e-9).floor()).max(0.0) as usize;
        let value = if value.abs() < self.step * 1e-6 { 0.0 } else { value };
        if value != 0.0 && (digits > 5 || value.abs() >= 1e7) {
            format!("{value:.0e}")
        } else {
            format!("{value:.*}", if digits > 5 { 0 } else { digits })
        }
    }
}

/// Smallest of 1, 2, 5, 10, 20, ... and their decimal fractions that is not below `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-12).log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|digit| digit * power);
    steps.into_iter().find(|step| *step >= least * (1.0 - 1e-9)).unwrap_or(10.0 * power)
}

/// A value with about four significant digits.
fn significant(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        small if !(1e-4..1e6).contains(&small) => format!("{value:.2e}"),
        size => format!("{value:.*}", (3.0 - size.log10().floor()).max(0.0) as usize),
    }
}

fn units(pixels: f64) -> u32 {
    (pixels * f64::from(UNITS)).round() as u32
}

fn rgb([red, green, blue]: Color) -> RGBColor {
    RGBColor(red, green, blue)
}

fn text_style(pixels: f64, color: Color) -> TextStyle<'static> {
    ("sans-serif", pixels * LINE_HEIGHT * f64::from(UNITS)).into_font().color(&rgb(color))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raster::{decode_png, to_png};

    fn chart(values: &[f64], range: AxisRange, is_stacked: bool) -> Chart {
        let points = (1..).map(f64::from).zip(values.iter().copied()).collect();
        Chart {
            x_axis: Axis::new("epoch", AxisRange::Integers),
            y_axis: Axis::new("", range),
            curves: vec![Curve::new("<loss>", PALETTE[1], points)],
            is_stacked,
            ..Chart::default()
        }
    }

    fn labels(ticks: &Ticks) -> Vec<String> {
        ticks.labels().collect()
    }

    #[test]
    fn axes_have_round_numbers_around_the_values() {
        let y = |values: &[f64], range| labels(&chart(values, range, false).y_ticks());
        assert_eq!(y(&[0.13, 0.87], AxisRange::Values), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(y(&[1.09, 1.58], AxisRange::Values), ["1.0", "1.2", "1.4", "1.6"]);
        assert_eq!(y(&[90.0, 101.0], AxisRange::FromZero), ["0", "50", "100", "150"]);
        assert_eq!(y(&[0.002, 0.01], AxisRange::FromZero), ["0.000", "0.005", "0.010"]);
        assert_eq!(labels(&chart(&[1.0; 4], AxisRange::Values, false).x_ticks()), ["1", "2", "3", "4"]);
        assert_eq!(labels(&chart(&[1.0], AxisRange::Values, false).x_ticks()), ["1"]);
        assert_eq!([0.7, 1.0, 3.0, 60.0].map(round_step), [1.0, 1.0, 5.0, 100.0]);
    }

    #[test]
    fn plotters_draws_the_ticks_that_were_planned() {
        for (values, range) in [
            (vec![0.13, 0.87], AxisRange::Values),
            (vec![1.09, 1.58], AxisRange::Values),
            (vec![0.002, 0.01], AxisRange::FromZero),
            (vec![0.1; 37], AxisRange::Unit),
            (vec![1e-7, 3e-7], AxisRange::FromZero),
        ] {
            let chart = chart(&values, range, false);
            let svg = chart.to_svg().unwrap();
            let drawn: Vec<&str> =
                svg.split("</text>").filter_map(|piece| piece.rsplit_once('>')).map(|(_, text)| text.trim()).collect();
            for label in labels(&chart.y_ticks()).into_iter().chain(labels(&chart.x_ticks())) {
                assert!(drawn.contains(&label.as_str()), "no {label} in {drawn:?}");
            }
        }
    }

    #[test]
    fn a_line_has_gaps_where_values_are_not_finite() {
        let chart = Chart { has_legend: false, ..chart(&[1.0, f64::NAN, 2.0, 3.0], AxisRange::FromZero, false) };
        let svg = chart.to_inline_svg("a \"loss\"").unwrap();
        let line = |line: &&str| line.starts_with("<polyline") && line.contains("stroke=\"#C8481A\"");
        assert_eq!((svg.lines().filter(line).count(), svg.matches("<circle").count()), (2, 3), "{svg}");
        assert!(svg.contains("<title>&lt;loss&gt;, epoch 4: 3.000</title>"), "{svg}");
        assert!(svg.contains("aria-label=\"a &quot;loss&quot;\"") && !svg.contains("NaN"));
        assert_eq!(chart.curves[0].last_value(), Some(3.0));
    }

    #[test]
    fn every_curve_is_drawn_on_its_axis_and_named() {
        let right = Curve { on_right_axis: true, ..Curve::new("Dice", PALETTE[2], vec![(1.0, 0.2), (4.0, 0.9)]) };
        let mut chart = chart(&[10.0, 20.0, 15.0, 30.0], AxisRange::Values, false);
        chart.curves.push(right);
        chart.right_axis = Some(Axis::new("pseudo Dice", AxisRange::Unit));
        let (pixels, size) = decode_png(&to_png(&chart.to_svg().unwrap(), 1.0).unwrap());
        assert_eq!(size, chart.size);
        for color in [PALETTE[1], PALETTE[2]] {
            let count = pixels.iter().filter(|pixel| **pixel == color).count();
            assert!(count > 400, "{color:?}: {count}");
        }
        let dark = pixels.iter().filter(|pixel| pixel.iter().all(|channel| *channel < 0x90)).count();
        assert!(dark > 400, "{dark} pixels of text");
    }

    #[test]
    fn unusual_values_are_drawn() {
        let long = vec![0.5; 1000];
        for values in [&[][..], &[f64::NAN], &[0.0], &[-1e300, 1e300], &[5e-324], &[f64::INFINITY, 1.0], &long] {
            for range in [AxisRange::Values, AxisRange::FromZero, AxisRange::Unit] {
                for is_stacked in [false, true] {
                    let svg = chart(values, range, is_stacked).to_svg().unwrap();
                    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{values:?}: {svg}");
                    to_png(&svg, 0.2).unwrap();
                }
            }
        }
    }

    #[test]
    fn charts_stand_one_below_the_other() {
        let charts = [chart(&[1.0, 2.0], AxisRange::Values, false), chart(&[3.0, 1.0], AxisRange::FromZero, true)];
        let (pixels, size) = decode_png(&to_png(&column_svg(&charts).unwrap(), 1.0).unwrap());
        assert_eq!(size, [900, 680]);
        let halves = pixels.split_at(pixels.len() / 2);
        let count = |half: &[Color]| half.iter().filter(|pixel| **pixel == PALETTE[1]).count();
        // A line above, an area below.
        assert!(count(halves.0) > 400 && count(halves.1) > 50_000, "{} {}", count(halves.0), count(halves.1));
    }
}
