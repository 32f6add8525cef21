//! Status of runs as text.

use super::RunStatus;
use super::format::{NONE, count, duration, number, percent, score};

/// Length of a progress bar in characters.
const BAR_LENGTH: usize = 30;
/// Maximum length of a sparkline in characters.
const SPARK_LENGTH: usize = 40;
const SPARK_BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Status of a run in several lines.
pub fn lines(status: &RunStatus) -> String {
    let mut text = format!("{}   {}   {}\n", status.name, status.state_text(), status.run.display());
    let mut line = |name: &str, parts: &[String]| {
        let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        if !parts.is_empty() {
            text += &format!("  {name:<11} {}\n", parts.join("   "));
        }
    };
    let left = status.left_s.map_or(String::new(), |left| format!("{} left", duration(left)));
    line("progress", &[bar(status.progress()), percent(status.progress()), epochs(status), steps(status), left]);
    if status.epochs_done > 0 {
        let losses = [("train", status.train_loss), ("val", status.val_loss)]
            .map(|(name, loss)| format!("{name} {}", score(loss)));
        line("loss", &[losses.join("  "), spark(&status.losses)]);
        let classes: Vec<_> =
            status.pseudo_dice.iter().map(|(name, dice)| format!("{name} {}", score(*dice))).collect();
        line("pseudo Dice", &[classes.join("  ")]);
        let best = status
            .best_epoch
            .map_or(String::new(), |epoch| format!("best {} after epoch {epoch}", score(status.best_ema_pseudo_dice)));
        line("  EMA", &[score(status.ema_pseudo_dice), best, spark(&status.dice)]);
        let rate =
            |rate: Option<f64>, unit: &str| rate.map_or(String::new(), |rate| format!("{} {unit}", number(rate)));
        let part =
            |part: Option<f64>, name: &str| part.map_or(String::new(), |part| format!("{name} {}", percent(part)));
        let processes = status.world_size.map_or(String::new(), |size| match size {
            1 => "1 process".to_owned(),
            size => format!("{size} processes"),
        });
        line(
            "speed",
            &[
                rate(status.samples_per_s, "samples/s"),
                rate(status.step_s, "s per step"),
                part(status.data_wait, "data wait"),
                part(status.communication, "communication"),
                processes,
            ],
        );
    }
    let checkpoint = status.checkpoint.as_ref().map_or(["none yet".to_owned(), String::new()], |checkpoint| {
        let step = checkpoint.step.map_or("latest".to_owned(), |step| format!("step {step}"));
        [step, checkpoint.age_s.map_or(String::new(), |age| format!("{} ago", duration(age as f64)))]
    });
    line("checkpoint", &checkpoint);
    if status.skipped_steps > 0 {
        line("skipped", &[format!("{} without an update", count(status.skipped_steps, "step"))]);
    }
    if let Some(validated) = &status.validated {
        let classes: Vec<_> =
            validated.dice.iter().map(|(name, dice)| format!("{name} {}", score(Some(*dice)))).collect();
        let mean = format!("{}: mean Dice {}", count(validated.cases, "case"), score(Some(validated.mean_dice)));
        line("validation", &[mean, classes.join("  ")]);
    }
    text
}

/// One line per run, below a heading.
pub fn line_per_run(statuses: &[RunStatus]) -> String {
    let heading = [
        "run",
        "state",
        "progress",
        "epochs",
        "train",
        "val",
        "EMA",
        "best",
        "samples/s",
        "data wait",
        "comm",
        "left",
        "Dice",
    ];
    let row = |status: &RunStatus| {
        let part = |part: Option<f64>| part.map_or(NONE.to_owned(), percent);
        vec![
            status.run.display().to_string(),
            short_state(status),
            percent(status.progress()),
            format!("{}/{}", status.epochs_done, status.epochs.map_or(NONE.to_owned(), |epochs| epochs.to_string())),
            score(status.train_loss),
            score(status.val_loss),
            score(status.ema_pseudo_dice),
            score(status.best_ema_pseudo_dice),
            status.samples_per_s.map_or(NONE.to_owned(), number),
            part(status.data_wait),
            part(status.communication),
            status.left_s.map_or(NONE.to_owned(), duration),
            score(status.validated.as_ref().map(|validated| validated.mean_dice)),
        ]
    };
    let rows: Vec<Vec<String>> =
        [heading.map(str::to_owned).to_vec()].into_iter().chain(statuses.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            // Names to the left, numbers to the right.
            0 | 1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ") + "\n"
    };
    rows.iter().map(line).collect()
}

fn short_state(status: &RunStatus) -> String {
    match status.is_silent {
        true => format!("silent {}", duration(status.silent_s.unwrap_or(0) as f64)),
        false => status.state_text().split([',', ':']).next().unwrap_or_default().replace(" the held-out cases", ""),
    }
}

fn epochs(status: &RunStatus) -> String {
    match status.epochs {
        Some(epochs) => format!("{} of {} done", status.epochs_done, count(epochs, "epoch")),
        None => format!("{} done", count(status.epochs_done, "epoch")),
    }
}

fn steps(status: &RunStatus) -> String {
    status.steps.map_or(String::new(), |steps| format!("step {}/{steps}", status.step))
}

fn bar(part: f64) -> String {
    let full = (part * BAR_LENGTH as f64).floor() as usize;
    "█".repeat(full) + &"░".repeat(BAR_LENGTH - full)
}

/// Sparkline of values; averages neighbors if there are more values than columns.
fn spark(values: &[f64]) -> String {
    let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    if values.len() < 2 {
        return String::new();
    }
    let columns = values.len().min(SPARK_LENGTH);
    let mean = |column: usize| {
        let part = &values[column * values.len() / columns..(column + 1) * values.len() / columns];
        part.iter().sum::<f64>() / part.len() as f64
    };
    let means: Vec<f64> = (0..columns).map(mean).collect();
    let (low, high) =
        means.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)));
    let height =
        |value: f64| ((value - low) / (high - low).max(f64::MIN_POSITIVE) * (SPARK_BARS.len() - 1) as f64).round();
    means.into_iter().map(|value| SPARK_BARS[height(value) as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_rises_with_its_values() {
        assert_eq!(spark(&[0.0, 1.0, 2.0, 7.0]), "▁▂▃█");
        assert_eq!(spark(&[3.0, f64::NAN, 3.0]), "▁▁");
        assert_eq!(spark(&[1.0]), "");
        let long: Vec<f64> = (0..1000).map(f64::from).collect();
        let line = spark(&long);
        assert_eq!(
            (line.chars().count(), line.chars().next(), line.chars().last()),
            (SPARK_LENGTH, Some('▁'), Some('█'))
        );
    }

    #[test]
    fn a_bar_fills_up() {
        assert_eq!((bar(0.0), bar(1.0)), ("░".repeat(BAR_LENGTH), "█".repeat(BAR_LENGTH)));
        assert_eq!(bar(0.5).chars().filter(|letter| *letter == '█').count(), BAR_LENGTH / 2);
    }
}
