//! `progress.png`: losses and pseudo Dice, epoch times and learning rate over the epochs, as in nnU-Net.

use std::io::Write;
use std::path::{Path, PathBuf};

use plotters::prelude::RGBColor;

use super::{EpochRecord, Observer, TelemetryError, json_lines::read_log};
use nnunet_core::fsio;
use nnunet_viz::chart::{self, Curve};

const TRAIN: RGBColor = RGBColor(31, 78, 180);
const VALIDATION: RGBColor = RGBColor(210, 40, 40);
const DICE: RGBColor = RGBColor(120, 190, 120);
const EMA: RGBColor = RGBColor(0, 120, 40);

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
    /// Returns an error if the log is invalid.
    pub fn new(path: &Path, log: &Path) -> Result<Self, TelemetryError> {
        let records = if log.exists() { read_log(log)? } else { Vec::new() };
        Ok(Self { path: path.to_owned(), records, warned: false })
    }

    fn panels(&self) -> [Vec<Curve>; 3] {
        let curve = |name, colour, is_part, value: &dyn Fn(&EpochRecord) -> Option<f64>| {
            let points = self.records.iter().filter_map(|record| Some((record.epoch as f64, value(record)?)));
            Curve { name, colour, is_part, points: points.filter(|(_, y)| y.is_finite()).collect() }
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
        let png = chart::png(&self.panels()).map_err(|error| TelemetryError::invalid(&self.path, error))?;
        // A plot that cannot be written must not end the training.
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
    use plotters::prelude::BLACK;

    use super::*;

    fn colours(records: &[EpochRecord]) -> Vec<[u8; 3]> {
        let folder = tempfile::tempdir().unwrap();
        let (path, log) = (folder.path().join("progress.png"), folder.path().join("log.jsonl"));
        let mut plot = ProgressPlot::new(&path, &log).unwrap();
        records.iter().for_each(|record| plot.epoch_finished(record).unwrap());
        let mut reader =
            png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap())).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size()];
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
        // Without validation only the curve names are drawn.
        let bare = EpochRecord { val_loss: None, pseudo_dice: vec![], ema_pseudo_dice: None, ..records[0].clone() };
        assert!(count(&colours(&[bare]), VALIDATION) < 500);
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        let odd = EpochRecord { train_loss: f64::NAN, lr: 0.0, epoch_s: f64::INFINITY, ..EpochRecord::example(0) };
        assert!(count(&colours(&[odd]), BLACK) > 100);
    }
}
