//! Head of the page: the most important figures.

use super::html::{Html, definitions, tag, text};
use super::tables::dice_bar;
use super::text::{NONE, count, duration, number, percent, score};
use super::{Run, Standing, details};

/// Configuration, fold, state, progress, Dice by class and warnings.
pub fn headline(run: &Run, standing: &Standing) -> Html {
    let state = if standing.is_silent { "silent" } else { "state" };
    let title = tag(
        "h1",
        &[],
        [text(&standing.name), text(" "), tag("span", &[("class", state)], [text(standing.state_text())])],
    );
    let warnings = details::warnings(run, standing);
    let warnings = match warnings.is_empty() {
        true => text(""),
        false => tag("ul", &[("class", "warnings")], warnings.into_iter().map(|line| tag("li", &[], [text(line)]))),
    };
    tag("header", &[], [title, figures(run, standing), classes(standing), warnings])
}

fn figures(run: &Run, standing: &Standing) -> Html {
    let epochs = standing.epochs.map_or(String::new(), |epochs| format!(" of {epochs}"));
    let took: f64 = run.log.iter().map(|record| record.epoch_s).sum();
    let left = standing.left_s.map_or(String::new(), |left| format!(", {} left", duration(left)));
    let mut pairs = vec![match &standing.validated {
        Some(validated) => {
            let cases = format!("over {}", count(validated.cases, "held-out case"));
            ("mean validation Dice", [score(Some(validated.mean_dice)), cases])
        }
        None => ("mean validation Dice", [NONE.to_owned(), "held-out cases not predicted yet".to_owned()]),
    }];
    let best = standing
        .best_epoch
        .map_or(String::new(), |epoch| format!("best {} after epoch {epoch}", score(standing.best_ema_pseudo_dice)));
    pairs.push(("pseudo Dice, moving average", [score(standing.ema_pseudo_dice), best]));
    pairs.push((
        "epochs done",
        [format!("{}{epochs}", standing.epochs_done), format!("{}{left}", percent(standing.part_done()))],
    ));
    pairs.push((
        "time",
        [duration(took), standing.step_s.map_or(String::new(), |step| format!("{} s per step", number(step)))],
    ));
    let processes = standing
        .world_size
        .map_or(String::new(), |size| if size == 1 { "1 process".into() } else { format!("{size} processes") });
    pairs.push(("samples/s", [standing.samples_per_s.map_or(NONE.to_owned(), number), processes]));
    let pair = |(name, [value, more]): (&str, [String; 2])| {
        let value = [tag("b", &[], [text(value)]), tag("small", &[], [text(more)])];
        (name.to_owned(), tag("span", &[], value))
    };
    definitions("figures", pairs.into_iter().map(pair))
}

/// Dice by class: of the held-out cases if they are predicted, else the pseudo Dice.
fn classes(standing: &Standing) -> Html {
    let (what, dice): (_, Vec<(&String, Option<f64>)>) = match &standing.validated {
        Some(validated) => ("Dice by class", validated.dice.iter().map(|(name, dice)| (name, Some(*dice))).collect()),
        None => ("Pseudo Dice by class", standing.pseudo_dice.iter().map(|(name, dice)| (name, *dice)).collect()),
    };
    if dice.is_empty() {
        return text("");
    }
    let pairs = dice.into_iter().map(|(name, dice)| (name.clone(), dice_bar(dice)));
    tag(
        "section",
        &[("aria-label", what)],
        [tag("h2", &[("class", "quiet")], [text(what)]), definitions("classes", pairs)],
    )
}
