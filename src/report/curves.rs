//! Curves and table of the epoch records.

use super::Run;
use super::chart::{Chart, Curve, Scale};
use super::html::{Html, folded, scrolling, table, tag, text};
use super::text::{number, score};
use nnunet_train::telemetry::EpochRecord;

/// Maximum number of classes whose pseudo Dice is drawn; if there are more, those with the lowest.
const CLASSES: usize = 6;

/// All curves and a table of their values.
pub fn curves(run: &Run) -> Html {
    if run.log.is_empty() {
        return tag("p", &[], [text("No epoch has finished yet.")]);
    }
    let charts = [loss(run), pseudo_dice(run), times(run), speed(run), learning_rate(run), gradient_norm(run)];
    let figures = tag("div", &[("class", "charts")], charts.iter().map(Chart::figure));
    tag("div", &[], [figures, folded("Values", numbers(run))])
}

fn loss(run: &Run) -> Chart {
    let curves = vec![
        curve(run, "training", |record| Some(record.train_loss)),
        curve(run, "validation", |record| record.val_loss),
    ];
    chart(run, "loss", "Loss", "", curves, Scale::Tight)
}

fn pseudo_dice(run: &Run) -> Chart {
    let last = run.log.last().map(|record| record.pseudo_dice.as_slice()).unwrap_or_default();
    let names = run.class_names(last.len());
    let mut classes: Vec<usize> = (0..last.len()).collect();
    let mut title = "Pseudo Dice of validation patches".to_owned();
    if classes.len() > CLASSES {
        classes.sort_by(|&a, &b| last[a].unwrap_or(f64::INFINITY).total_cmp(&last[b].unwrap_or(f64::INFINITY)));
        classes.truncate(CLASSES);
        title = format!("{title}, lowest {CLASSES} of {} classes", last.len());
    }
    let ema = Curve { is_main: true, ..curve(run, "moving average", |record| record.ema_pseudo_dice) };
    let of_class = |class: usize| curve(run, &names[class], |record| record.pseudo_dice.get(class).copied().flatten());
    let curves = [ema].into_iter().chain(classes.into_iter().map(of_class)).collect();
    chart(run, "dice", &title, "", curves, Scale::Unit)
}

fn times(run: &Run) -> Chart {
    let steps = run.steps_per_epoch().unwrap_or(1) as f64;
    let wait = |record: &EpochRecord| record.data_wait_s / steps;
    let comm = |record: &EpochRecord| record.comm_s / steps;
    let curves = vec![
        curve(run, "computing", |record| Some((record.step_s - wait(record) - comm(record)).max(0.0))),
        curve(run, "waiting for data", |record| Some(wait(record))),
        curve(run, "communicating", |record| Some(comm(record))),
    ];
    Chart { is_stacked: true, ..chart(run, "step", "Step time", "s", curves, Scale::FromZero) }
}

fn speed(run: &Run) -> Chart {
    let curves = vec![curve(run, "all processes", |record| Some(record.samples_per_s))];
    chart(run, "speed", "Speed", "samples/s", curves, Scale::FromZero)
}

fn learning_rate(run: &Run) -> Chart {
    chart(run, "lr", "Learning rate", "", vec![curve(run, "first step", |record| Some(record.lr))], Scale::FromZero)
}

fn gradient_norm(run: &Run) -> Chart {
    let curves = vec![curve(run, "before clipping", |record| Some(record.gradient_norm))];
    chart(run, "gradient", "Gradient norm", "", curves, Scale::FromZero)
}

fn chart(run: &Run, id: &'static str, title: &str, unit: &'static str, curves: Vec<Curve>, scale: Scale) -> Chart {
    let epochs = run.log.iter().map(|record| record.epoch + 1).collect();
    Chart { id, title: title.to_owned(), unit, epochs, curves, scale, is_stacked: false }
}

fn curve(run: &Run, name: &str, value: impl Fn(&EpochRecord) -> Option<f64>) -> Curve {
    Curve { name: name.to_owned(), values: run.log.iter().map(value).collect(), is_main: false }
}

/// One row per epoch, latest first.
fn numbers(run: &Run) -> Html {
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
        cells.map(text).collect()
    };
    scrolling("All epochs", table(&heads, run.log.iter().rev().map(row)))
}
