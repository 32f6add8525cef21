//! Line charts as PNG files, drawn without a system font.

use plotters::prelude::*;

use super::glyphs;

/// Size of a panel in pixels.
const SIZE: (u32, u32) = (900, 360);
/// Pixels per dot of a letter.
const SCALE: i32 = 2;
/// Margin beside a panel for axis labels, in pixels.
const MARGIN: u32 = 80;
/// Color of the labels on the right axis.
const RIGHT: RGBColor = RGBColor(0, 120, 40);
const GRID: RGBColor = RGBColor(225, 225, 225);

type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;

/// One line of a panel.
pub struct Curve {
    pub name: &'static str,
    pub colour: RGBColor,
    /// Plotted on the right axis, which is scaled from 0 to 1.
    pub is_part: bool,
    pub points: Vec<(f64, f64)>,
}

/// Draws panels one below the other and encodes them as a PNG file.
///
/// # Errors
/// Returns an error if the drawing library fails.
pub fn png(panels: &[Vec<Curve>]) -> Result<Vec<u8>, String> {
    let (width, height) = (SIZE.0, SIZE.1 * panels.len() as u32);
    let mut pixels = vec![255; (width * height * 3) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        for (area, curves) in root.split_evenly((panels.len(), 1)).iter().zip(panels) {
            draw(area, curves).map_err(|error| error.to_string())?;
        }
        root.present().map_err(|error| error.to_string())?;
    }
    encode(&pixels, width, height)
}

/// Encodes rows of RGB pixels, three bytes each, as a PNG file.
///
/// # Errors
/// Returns an error if the encoder fails.
pub(crate) fn encode(pixels: &[u8], width: u32, height: u32) -> Result<Vec<u8>, String> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().map_err(|error| error.to_string())?;
    writer.write_image_data(pixels).map_err(|error| error.to_string())?;
    writer.finish().map_err(|error| error.to_string())?;
    Ok(file)
}

type DrawError<'a> = DrawingAreaErrorKind<<BitMapBackend<'a> as DrawingBackend>::ErrorType>;

fn draw<'a>(area: &Area<'a>, curves: &[Curve]) -> Result<(), DrawError<'a>> {
    let plain = || curves.iter().filter(|curve| !curve.is_part).flat_map(|curve| &curve.points);
    let last = plain().map(|(x, _)| *x).fold(1.0, f64::max);
    let (low, high) = range(plain().map(|(_, value)| *value));
    let mut chart = ChartBuilder::on(area)
        .margin(30)
        .margin_left(MARGIN)
        .margin_right(MARGIN)
        .build_cartesian_2d(0.0..last, low..high)?
        .set_secondary_coord(0.0..last, 0.0..1.0);
    chart.configure_mesh().axis_style(BLACK).light_line_style(WHITE).bold_line_style(GRID).draw()?;

    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let value = low + part * (high - low);
        let (x, y) = chart.backend_coord(&(0.0, value));
        let text = number(value);
        write(area, (x - width(&text) - 6, y - 7), &text, BLACK)?;
        let tick = (part * last).round();
        let (x, y) = chart.backend_coord(&(tick, low));
        write(area, (x - width(&number(tick)) / 2, y + 6), &number(tick), BLACK)?;
        if curves.iter().any(|curve| curve.is_part) {
            let (x, y) = chart.backend_coord(&(last, value));
            write(area, (x + 6, y - 7), &number(part), RIGHT)?;
        }
    }
    let (mut x, y) = chart.backend_coord(&(0.0, high));
    for curve in curves {
        write(area, (x, y - 18), curve.name, curve.colour)?;
        x += width(curve.name) + 24;
        let line = || curve.points.iter().copied();
        // A single value is drawn as a point, not a line.
        let point = line().take(if curve.points.len() == 1 { 1 } else { 0 });
        let style = curve.colour.stroke_width(2);
        if curve.is_part {
            chart.draw_secondary_series(LineSeries::new(line(), style))?;
            chart.draw_secondary_series(point.map(|point| Circle::new(point, 3, curve.colour.filled())))?;
        } else {
            chart.draw_series(LineSeries::new(line(), style))?;
            chart.draw_series(point.map(|point| Circle::new(point, 3, curve.colour.filled())))?;
        }
    }
    Ok(())
}

/// Returns axis bounds with a margin; the range is never empty.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let air = ((high - low) * 0.05).max(high.abs() * 1e-3).max(1e-9);
    (low - air, high + air)
}

fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        small if small < 0.01 => format!("{value:.1e}"),
        large if large >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// Returns the width of a text in pixels.
fn width(text: &str) -> i32 {
    text.chars().count() as i32 * (glyphs::WIDTH as i32 + 1) * SCALE
}

fn write<'a>(area: &Area<'a>, (x, y): (i32, i32), text: &str, colour: RGBColor) -> Result<(), DrawError<'a>> {
    let (left, top) = area.get_base_pixel();
    for (index, letter) in text.chars().enumerate() {
        for (row, bits) in glyphs::rows(letter).into_iter().enumerate() {
            for column in (0..glyphs::WIDTH).filter(|column| bits >> (glyphs::WIDTH - 1 - column) & 1 == 1) {
                let at =
                    (x - left + (index * (glyphs::WIDTH + 1) + column) as i32 * SCALE, y - top + row as i32 * SCALE);
                area.draw(&Rectangle::new([at, (at.0 + SCALE, at.1 + SCALE)], colour.filled()))?;
            }
        }
    }
    Ok(())
}
