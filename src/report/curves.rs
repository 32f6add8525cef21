//! Charts over the epochs, a table of their values, and the time breakdown.

use maud::{Markup, PreEscaped, html};

use super::RunFiles;
use super::elements::{cell, folded, note, scrolling, table};
use super::format::{NONE, duration, number, percent, score};
use nnunet_train::telemetry::EpochRecord;
use nnunet_viz::chart::{Axis, AxisRange, Chart, Curve, PALETTE};

/// Maximum number of classes whose pseudo Dice is drawn; if there are more, those with the lowest.
const CLASSES: usize = 6;
/// Size of a chart in its own pixels; a page scales it to the width of its column.
const SIZE: [u32; 2] = [420, 230];

/// All curves and a table of their values.
pub fn curves(run: &RunFiles) -> Markup {
    if run.log.is_empty() {
        return html! { p { "No epoch has finished yet." } };
    }
    html! {
        div.charts {
            (loss(run)) (pseudo_dice(run)) (step_time(run)) (speed(run)) (learning_rate(run)) (gradient_norm(run))
        }
        (folded("Values", values(run)))
    }
}

fn loss(run: &RunFiles) -> Markup {
    let curves = vec![
        curve(run, "training", 0, |record| Some(record.train_loss)),
        curve(run, "validation", 1, |record| record.val_loss),
    ];
    figure("Loss", curves, AxisRange::Values, false)
}

fn pseudo_dice(run: &RunFiles) -> Markup {
    let last = run.log.last().map(|record| record.pseudo_dice.as_slice()).unwrap_or_default();
    let names = run.class_names(last.len());
    let mut classes: Vec<usize> = (0..last.len()).collect();
    let mut title = "Pseudo Dice of validation patches".to_owned();
    if classes.len() > CLASSES {
        classes.sort_by(|&a, &b| last[a].unwrap_or(f64::INFINITY).total_cmp(&last[b].unwrap_or(f64::INFINITY)));
        classes.truncate(CLASSES);
        title = format!("{title}, lowest {CLASSES} of {} classes", last.len());
    }
    let ema = Curve { is_main: true, ..curve(run, "moving average", 0, |record| record.ema_pseudo_dice) };
    let class_curve = |(index, class): (usize, usize)| {
        curve(run, &names[class], index + 1, |record| record.pseudo_dice.get(class).copied().flatten())
    };
    let curves = [ema].into_iter().chain(classes.into_iter().enumerate().map(class_curve)).collect();
    figure(&title, curves, AxisRange::Unit, false)
}

fn step_time(run: &RunFiles) -> Markup {
    let steps = run.steps_per_epoch().unwrap_or(1) as f64;
    let wait = |record: &EpochRecord| record.data_wait_s / steps;
    let comm = |record: &EpochRecord| record.comm_s / steps;
    let curves = vec![
        curve(run, "computing", 0, |record| Some((record.step_s - wait(record) - comm(record)).max(0.0))),
        curve(run, "waiting for data", 1, |record| Some(wait(record))),
        curve(run, "communicating", 2, |record| Some(comm(record))),
    ];
    figure("Step time, s", curves, AxisRange::FromZero, true)
}

fn speed(run: &RunFiles) -> Markup {
    let curves = vec![curve(run, "all processes", 0, |record| Some(record.samples_per_s))];
    figure("Speed, samples/s", curves, AxisRange::FromZero, false)
}

fn learning_rate(run: &RunFiles) -> Markup {
    let curves = vec![curve(run, "first step", 0, |record| Some(record.lr))];
    figure("Learning rate", curves, AxisRange::FromZero, false)
}

fn gradient_norm(run: &RunFiles) -> Markup {
    let curves = vec![curve(run, "before clipping", 0, |record| Some(record.gradient_norm))];
    figure("Gradient norm", curves, AxisRange::FromZero, false)
}

/// A curve in the color of this number.
fn curve(run: &RunFiles, name: &str, color: usize, value: impl Fn(&EpochRecord) -> Option<f64>) -> Curve {
    let point = |record: &EpochRecord| ((record.epoch + 1) as f64, value(record).unwrap_or(f64::NAN));
    Curve::new(name, PALETTE[color % PALETTE.len()], run.log.iter().map(point).collect())
}

/// Title, legend with the last values, and the chart.
fn figure(title: &str, curves: Vec<Curve>, range: AxisRange, is_stacked: bool) -> Markup {
    let last = |curve: &Curve| curve.last_value().map_or(NONE.to_owned(), number);
    let lasts: Vec<String> = curves.iter().map(|curve| format!("{} {}", curve.name, last(curve))).collect();
    let epochs = curves.first().map_or(0, |curve| curve.points.len());
    let description = format!("{title} over {epochs} epoch(s), last values {}", lasts.join(", "));
    let color = |curve: &Curve| PALETTE.iter().position(|color| *color == curve.color).unwrap_or(0);
    let chart = Chart {
        x_axis: Axis::new("epoch", AxisRange::Integers),
        y_axis: Axis::new("", range),
        right_axis: None,
        is_stacked,
        has_legend: false,
        size: SIZE,
        curves,
    };
    html! {
        figure.chart {
            figcaption {
                h3 { (title) }
                ul.legend {
                    @for curve in &chart.curves {
                        li class={ "c" (color(curve)) } { (curve.name) " " b { (last(curve)) } }
                    }
                }
            }
            @match chart.to_inline_svg(&description) {
                Ok(svg) => (PreEscaped(svg)),
                Err(error) => (note(&error.to_string())),
            }
        }
    }
}

/// One row per epoch, latest first.
fn values(run: &RunFiles) -> Markup {
    let classes = run.log.iter().map(|record| record.pseudo_dice.len()).max().unwrap_or(0);
    let names = run.class_names(classes);
    let heads =
        ["epoch", "training loss", "validation loss", "EMA"].into_iter().chain(names.iter().map(String::as_str));
    let heads: Vec<&str> = heads
        .chain(["learning rate", "samples/s", "step s", "data wait s", "comm s", "gradient norm", "epoch s"])
        .collect();
    let row = |record: &EpochRecord| {
        let dice = (0..classes).map(|class| score(record.pseudo_dice.get(class).copied().flatten()));
        let scores = [Some(record.train_loss), record.val_loss, record.ema_pseudo_dice].map(score);
        let numbers = [
            record.lr,
            record.samples_per_s,
            record.step_s,
            record.data_wait_s,
            record.comm_s,
            record.gradient_norm,
            record.epoch_s,
        ];
        let cells = [(record.epoch + 1).to_string()].into_iter().chain(scores).chain(dice).chain(numbers.map(number));
        cells.map(cell).collect()
    };
    scrolling("All epochs", table(&heads, run.log.iter().rev().map(row)))
}

/// Parts of the total time of all epochs, as a bar and as a table.
pub fn time_breakdown(run: &RunFiles) -> Markup {
    let parts = TimeParts::from_run(run).named();
    let total: f64 = parts.iter().map(|(_, seconds)| seconds).sum();
    if total <= 0.0 {
        return html! { p { "No epoch has finished yet." } };
    }
    let row = |(color, (name, seconds)): (usize, (&str, f64))| {
        vec![
            html! { span class={ "key c" (color) } { (name) } },
            cell(duration(seconds)),
            cell(percent(seconds / total)),
        ]
    };
    let all = vec![cell("all epochs"), cell(duration(total)), cell(percent(1.0))];
    html! {
        div.parts aria-hidden="true" {
            @for (color, (name, seconds)) in parts.into_iter().enumerate() {
                span class={ "c" (color) } style=(format!("--part:{:.2}%", 100.0 * seconds / total)) title=(name) {}
            }
        }
        (table(&["part", "time", "share"], parts.into_iter().enumerate().map(row).chain([all])))
        (note("The prediction of the held-out cases after the last epoch is not included."))
    }
}

/// Seconds over all epochs, mean over the processes.
#[derive(Debug, Default, PartialEq)]
struct TimeParts {
    computing: f64,
    data: f64,
    /// Without waiting for slower processes.
    communicating: f64,
    stragglers: f64,
    checkpoints: f64,
    rest: f64,
}

impl TimeParts {
    fn from_run(run: &RunFiles) -> Self {
        let steps = run.steps_per_epoch().unwrap_or(0) as f64;
        let mut parts = Self::default();
        for record in run.log.iter().filter(|record| record.epoch_s.is_finite()) {
            let in_steps = (record.step_s * steps).min(record.epoch_s);
            let waiting = record.data_wait_s + record.comm_s;
            parts.computing += (in_steps - waiting).max(0.0);
            parts.data += record.data_wait_s;
            parts.communicating += (record.comm_s - record.straggler_s).max(0.0);
            parts.stragglers += record.straggler_s;
            parts.checkpoints += record.checkpoint_s;
            parts.rest += record.epoch_s - in_steps;
        }
        parts
    }

    /// Names and seconds, in the color order of the step time chart.
    fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("computing", self.computing),
            ("waiting for data", self.data),
            ("communicating", self.communicating),
            ("waiting for slower processes", self.stragglers),
            ("waiting for checkpoints", self.checkpoints),
            ("patch validation and other", self.rest),
        ]
    }
}
