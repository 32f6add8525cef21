//! `progress.png`: losses and pseudo Dice, epoch times and learning rate over the epochs, as in nnU-Net.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{EpochRecord, Observer, TelemetryError, json_lines::read_log};
use nnunet_core::fsio;
use nnunet_viz::chart::{Axis, AxisRange, Chart, Curve, PALETTE, column_svg};
use nnunet_viz::{Color, PictureError, raster};

const TRAIN: Color = PALETTE[0];
const VALIDATION: Color = PALETTE[1];
const DICE: Color = [130, 195, 160];
const EMA: Color = PALETTE[2];

/// Redraws the plot after every epoch.
pub struct ProgressPlot {
    path: PathBuf,
    records: Vec<EpochRecord>,
    warned: bool,
}

impl ProgressPlot {
    /// Creates a plot at `path` that starts with the epochs already in `log`.
    ///
    /// # Errors
    /// Returns an error if the log is damaged.
    pub fn new(path: &Path, log: &Path) -> Result<Self, TelemetryError> {
        let records = if log.exists() { read_log(log)? } else { Vec::new() };
        Ok(Self { path: path.to_owned(), records, warned: false })
    }

    fn charts(&self) -> [Chart; 3] {
        let curve = |name, color, value: &dyn Fn(&EpochRecord) -> Option<f64>| {
            let point = |record: &EpochRecord| (record.epoch as f64, value(record).unwrap_or(f64::NAN));
            Curve::new(name, color, self.records.iter().map(point).collect())
        };
        let mean_dice = |record: &EpochRecord| {
            let known: Vec<f64> = record.pseudo_dice.iter().copied().flatten().collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        };
        let ema = curve("pseudo Dice, moving average", EMA, &|record| record.ema_pseudo_dice);
        let chart = |label, range, curves: Vec<Curve>| Chart {
            x_axis: Axis::new("epoch", AxisRange::Integers),
            y_axis: Axis::new(label, range),
            has_legend: curves.len() > 1,
            size: [900, 290],
            curves,
            ..Chart::default()
        };
        let losses = vec![
            Curve { on_right_axis: true, is_main: true, ..ema },
            Curve { on_right_axis: true, ..curve("pseudo Dice", DICE, &mean_dice) },
            curve("training loss", TRAIN, &|record| Some(record.train_loss)),
            curve("validation loss", VALIDATION, &|record| record.val_loss),
        ];
        let times = vec![curve("epoch", TRAIN, &|record| Some(record.epoch_s))];
        let rates = vec![curve("learning rate", TRAIN, &|record| Some(record.lr))];
        [
            Chart {
                right_axis: Some(Axis::new("pseudo Dice", AxisRange::Unit)),
                size: [900, 400],
                ..chart("loss", AxisRange::Values, losses)
            },
            chart("epoch duration, s", AxisRange::FromZero, times),
            chart("learning rate", AxisRange::FromZero, rates),
        ]
    }

    fn png(&self) -> Result<Vec<u8>, PictureError> {
        raster::to_png(&column_svg(&self.charts())?, 1.25)
    }
}

impl Observer for ProgressPlot {
    fn epoch_finished(&mut self, record: &EpochRecord) -> Result<(), TelemetryError> {
        self.records.push(record.clone());
        let png = self.png().map_err(|error| TelemetryError::invalid(&self.path, error))?;
        // A picture that cannot be written does not end a training.
        if let Err(error) = fsio::write_atomically(&self.path, |file| file.write_all(&png))
            && !std::mem::replace(&mut self.warned, true)
        {
            tracing::warn!("{}: {error}; training continues without it", self.path.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pixels of the picture after some epochs.
    fn pixels(records: &[EpochRecord]) -> Vec<Color> {
        let folder = tempfile::tempdir().unwrap();
        let (path, log) = (folder.path().join("progress.png"), folder.path().join("log.jsonl"));
        let mut plot = ProgressPlot::new(&path, &log).unwrap();
        records.iter().for_each(|record| plot.epoch_finished(record).unwrap());
        let mut decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap()));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        pixels.as_chunks().0.to_vec()
    }

    fn count(pixels: &[Color], color: Color) -> usize {
        pixels.iter().filter(|pixel| **pixel == color).count()
    }

    #[test]
    fn every_curve_is_drawn() {
        let records: Vec<_> = (0..20).map(EpochRecord::example).collect();
        let drawn = pixels(&records);
        for color in [TRAIN, VALIDATION, DICE, EMA] {
            assert!(count(&drawn, color) > 500, "{color:?}: {}", count(&drawn, color));
        }
        // Without validation only the legend has the color.
        let records = records.iter().map(|record| EpochRecord { val_loss: None, ..record.clone() });
        assert!(count(&pixels(&records.collect::<Vec<_>>()), VALIDATION) < 200);
    }

    #[test]
    fn values_that_are_not_finite_are_left_out() {
        let odd = EpochRecord { train_loss: f64::NAN, lr: 0.0, epoch_s: f64::INFINITY, ..EpochRecord::example(0) };
        let drawn = pixels(&[odd]);
        let dark = drawn.iter().filter(|pixel| pixel.iter().all(|channel| *channel < 0x90)).count();
        assert!(dark > 400, "{dark} pixels of text");
    }
}
