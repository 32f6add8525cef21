//! `progress.png`: losses and pseudo Dice, epoch times, learning rate over the epochs, as nnU-Net draws them.

use std::io::Write;
use std::path::{Path, PathBuf};

use plotters::prelude::*;

use super::glyphs;
use super::{EpochRecord, Observer, TelemetryError, json_lines::read_log};
use crate::fsio;

const SIZE: (u32, u32) = (900, 1080);
/// Pixels per point of a letter.
const SCALE: i32 = 2;
/// Room for numbers beside a panel.
const MARGIN: u32 = 80;
const TRAIN: RGBColor = RGBColor(31, 78, 180);
const VALIDATION: RGBColor = RGBColor(210, 40, 40);
const DICE: RGBColor = RGBColor(120, 190, 120);
const EMA: RGBColor = RGBColor(0, 120, 40);
const GRID: RGBColor = RGBColor(225, 225, 225);

type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;

/// Redraws the picture after every epoch from the log beside it.
pub struct ProgressPlot {
    path: PathBuf,
    records: Vec<EpochRecord>,
}

/// One line of a panel.
struct Curve {
    name: &'static str,
    colour: RGBColor,
    /// Scaled by itself, 0 to 1, with numbers on the right.
    is_dice: bool,
    points: Vec<(f64, f64)>,
}

impl ProgressPlot {
    /// Draws to `path`, with the epochs that `log` has already.
    ///
    /// # Errors
    /// The log is damaged.
    pub fn new(path: &Path, log: &Path) -> Result<Self, TelemetryError> {
        let records = if log.exists() { read_log(log)? } else { Vec::new() };
        Ok(Self { path: path.to_owned(), records })
    }

    /// The picture as a PNG file.
    fn png(&self) -> Result<Vec<u8>, String> {
        let mut pixels = vec![255; (SIZE.0 * SIZE.1 * 3) as usize];
        {
            let root = BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area();
            for (area, curves) in root.split_evenly((3, 1)).iter().zip(self.panels()) {
                draw(area, &curves).map_err(|error| error.to_string())?;
            }
            root.present().map_err(|error| error.to_string())?;
        }
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, SIZE.0, SIZE.1);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().map_err(|error| error.to_string())?;
        writer.write_image_data(&pixels).map_err(|error| error.to_string())?;
        writer.finish().map_err(|error| error.to_string())?;
        Ok(file)
    }

    fn panels(&self) -> [Vec<Curve>; 3] {
        let curve = |name, colour, is_dice, value: &dyn Fn(&EpochRecord) -> Option<f64>| {
            let points = self.records.iter().filter_map(|record| Some((record.epoch as f64, value(record)?)));
            Curve { name, colour, is_dice, points: points.filter(|(_, y)| y.is_finite()).collect() }
        };
        let mean_dice = |record: &EpochRecord| {
            let known: Vec<f64> = record.pseudo_dice.iter().copied().flatten().collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        };
        [
            vec![
                curve("train loss", TRAIN, false, &|record| Some(record.train_loss)),
                curve("val loss", VALIDATION, false, &|record| record.val_loss),
                curve("pseudo dice", DICE, true, &mean_dice),
                curve("pseudo dice EMA", EMA, true, &|record| record.ema_pseudo_dice),
            ],
            vec![curve("epoch duration in s", TRAIN, false, &|record| Some(record.epoch_s))],
            vec![curve("learning rate", TRAIN, false, &|record| Some(record.lr))],
        ]
    }
}

impl Observer for ProgressPlot {
    fn epoch_finished(&mut self, record: &EpochRecord) -> Result<(), TelemetryError> {
        self.records.push(record.clone());
        let fail = |error: String| TelemetryError::new(&self.path, error);
        let png = self.png().map_err(fail)?;
        fsio::write_atomically(&self.path, |file| file.write_all(&png)).map_err(|error| fail(error.to_string()))
    }
}

type DrawError<'a> = DrawingAreaErrorKind<<BitMapBackend<'a> as DrawingBackend>::ErrorType>;

fn draw<'a>(area: &Area<'a>, curves: &[Curve]) -> Result<(), DrawError<'a>> {
    let plain = || curves.iter().filter(|curve| !curve.is_dice).flat_map(|curve| &curve.points);
    let epochs = plain().map(|(epoch, _)| *epoch).fold(1.0, f64::max);
    let (low, high) = range(plain().map(|(_, value)| *value));
    let mut chart = ChartBuilder::on(area)
        .margin(30)
        .margin_left(MARGIN)
        .margin_right(MARGIN)
        .build_cartesian_2d(0.0..epochs, low..high)?
        .set_secondary_coord(0.0..epochs, 0.0..1.0);
    chart.configure_mesh().axis_style(BLACK).light_line_style(WHITE).bold_line_style(GRID).draw()?;

    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let value = low + part * (high - low);
        let (x, y) = chart.backend_coord(&(0.0, value));
        let text = number(value);
        write(area, (x - width(&text) - 6, y - 7), &text, BLACK)?;
        let epoch = (part * epochs).round();
        let (x, y) = chart.backend_coord(&(epoch, low));
        write(area, (x - width(&number(epoch)) / 2, y + 6), &number(epoch), BLACK)?;
        if curves.iter().any(|curve| curve.is_dice) {
            let (x, y) = chart.backend_coord(&(epochs, value));
            write(area, (x + 6, y - 7), &number(part), EMA)?;
        }
    }
    let (mut x, y) = chart.backend_coord(&(0.0, high));
    for curve in curves {
        write(area, (x, y - 18), curve.name, curve.colour)?;
        x += width(curve.name) + 24;
        let line = || curve.points.iter().copied();
        // A single epoch is a point, not a line.
        let point = line().take(if curve.points.len() == 1 { 1 } else { 0 });
        let style = curve.colour.stroke_width(2);
        if curve.is_dice {
            chart.draw_secondary_series(LineSeries::new(line(), style))?;
            chart.draw_secondary_series(point.map(|point| Circle::new(point, 3, curve.colour.filled())))?;
        } else {
            chart.draw_series(LineSeries::new(line(), style))?;
            chart.draw_series(point.map(|point| Circle::new(point, 3, curve.colour.filled())))?;
        }
    }
    Ok(())
}

/// Bounds with some air, never empty.
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

/// Pixels that a text takes along x.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn colours(records: &[EpochRecord]) -> Vec<[u8; 3]> {
        let folder = tempfile::tempdir().unwrap();
        let (path, log) = (folder.path().join("progress.png"), folder.path().join("log.jsonl"));
        let mut plot = ProgressPlot::new(&path, &log).unwrap();
        records.iter().for_each(|record| plot.epoch_finished(record).unwrap());
        let mut reader =
            png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap())).read_info().unwrap();
        let mut pixels = vec![0; (SIZE.0 * SIZE.1 * 3) as usize];
        reader.next_frame(&mut pixels).unwrap();
        pixels.as_chunks().0.to_vec()
    }

    fn count(pixels: &[[u8; 3]], RGBColor(r, g, b): RGBColor) -> usize {
        pixels.iter().filter(|pixel| **pixel == [r, g, b]).count()
    }

    #[test]
    fn every_curve_is_drawn() {
        let records: Vec<_> = (0..20).map(EpochRecord::example).collect();
        let pixels = colours(&records);
        for colour in [TRAIN, VALIDATION, DICE, EMA] {
            assert!(count(&pixels, colour) > 500, "{colour:?}");
        }
        // Without validation there are only names.
        let bare = EpochRecord { val_loss: None, pseudo_dice: vec![], ema_pseudo_dice: None, ..records[0].clone() };
        assert!(count(&colours(&[bare]), VALIDATION) < 500);
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        let odd = EpochRecord { train_loss: f64::NAN, lr: 0.0, epoch_s: f64::INFINITY, ..EpochRecord::example(0) };
        assert!(count(&colours(&[odd]), BLACK) > 100);
    }
}
