//! HTML page of a run: its frame, and its head with the most important figures.

use std::time::SystemTime;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::elements::{definitions, dice_bar};
use super::format::{NONE, count, duration, number, percent, score, time};
use super::{ReportError, RunFiles, RunStatus};
use super::{cases, curves, details};
use nnunet_viz::{Color, chart};

/// Forbids loading external resources.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";

/// HTML page of a run as of `now`, with pictures of its `worst` worst cases: a single self-contained file.
///
/// # Errors
/// Returns an error if a file of the run is damaged.
pub fn page(run: &RunFiles, worst: usize, now: SystemTime) -> Result<String, ReportError> {
    let status = RunStatus::from_run(run, now);
    let mut sections = vec![("curves", "Curves over the epochs", curves::curves(run))];
    if let Some(summary) = &run.summary {
        sections.push(("validation", "Held-out cases", cases::tables(run, summary)));
        if worst > 0 {
            sections.push(("worst", "Worst cases", cases::pictures(run, summary, worst)));
        }
    }
    sections.push(("times", "Time breakdown", curves::time_breakdown(run)));
    sections.push(("configuration", "Configuration", details::configuration(run)));
    sections.push(("environment", "Environment", details::environment(run, &status)));
    sections.push(("nan-steps", "NaN steps", details::nan_dump_list(run, &status)?));
    sections.push(("checkpoints", "Checkpoints", details::checkpoints(run)));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (status.name) }
                style { (PreEscaped(include_str!("page.css"))) (PreEscaped(chart_style())) }
            }
            body {
                main {
                    (head(run, &status))
                    nav aria-label="Sections" {
                        @for (id, title, _) in &sections { a href={ "#" (id) } { (title) } }
                    }
                    @for (id, title, contents) in &sections {
                        section id=(id) { h2 { (title) } (contents) }
                    }
                    footer { "Generated " (time(now)) " by " (env!("CARGO_PKG_NAME")) " " (env!("CARGO_PKG_VERSION")) "." }
                }
            }
        }
    };
    Ok(page.into_string() + "\n")
}

/// Rules that exchange the colors of charts for those of the page's light or dark scheme.
fn chart_style() -> String {
    let curves = (0..).zip(chart::PALETTE).map(|(index, color)| (format!("c{index}"), color));
    let others = [("rule".to_owned(), chart::GRID), ("quiet".to_owned(), chart::TEXT)];
    let rule = |(name, [red, green, blue]): (String, Color)| {
        let color = format!("#{red:02X}{green:02X}{blue:02X}");
        format!(
            "svg [fill=\"{color}\"] {{ fill: var(--{name}); }} svg [stroke=\"{color}\"] {{ stroke: var(--{name}); }}\n"
        )
    };
    curves.chain(others).map(rule).collect()
}

/// Configuration, fold, state, key figures, Dice by class and warnings.
fn head(run: &RunFiles, status: &RunStatus) -> Markup {
    let warnings = details::warnings(run, status);
    html! {
        header {
            h1 { (status.name) " " span class=(if status.is_silent { "silent" } else { "state" }) { (status.state_text()) } }
            (key_figures(run, status))
            (dice_by_class(status))
            @if !warnings.is_empty() {
                ul.warnings { @for line in &warnings { li { (line) } } }
            }
        }
    }
}

fn key_figures(run: &RunFiles, status: &RunStatus) -> Markup {
    let (dice, validated) = match &status.validated {
        Some(validated) => {
            (score(Some(validated.mean_dice)), format!("over {}", count(validated.cases, "held-out case")))
        }
        None => (NONE.to_owned(), "held-out cases not predicted yet".to_owned()),
    };
    let best =
        status.best_epoch.map(|epoch| format!("best {} after epoch {epoch}", score(status.best_ema_pseudo_dice)));
    let epochs = status.epochs.map_or(String::new(), |epochs| format!(" of {epochs}"));
    let left = status.left_s.map_or(String::new(), |left| format!(", {} left", duration(left)));
    let took: f64 = run.log.iter().map(|record| record.epoch_s).sum();
    let step = status.step_s.map(|step| format!("{} s per step", number(step)));
    let processes =
        status.world_size.map(|size| if size == 1 { "1 process".into() } else { format!("{size} processes") });
    let figures = [
        ("mean validation Dice", dice, validated),
        ("pseudo Dice, moving average", score(status.ema_pseudo_dice), best.unwrap_or_default()),
        ("epochs done", format!("{}{epochs}", status.epochs_done), format!("{}{left}", percent(status.progress()))),
        ("time", duration(took), step.unwrap_or_default()),
        ("samples/s", status.samples_per_s.map_or(NONE.to_owned(), number), processes.unwrap_or_default()),
    ];
    let figures = figures.into_iter().map(|(name, value, more)| (name, html! { b { (value) } small { (more) } }));
    definitions("figures", figures)
}

/// Dice by class: of the held-out cases if they are predicted, else the pseudo Dice.
fn dice_by_class(status: &RunStatus) -> Markup {
    let (title, dice): (_, Vec<(&str, Option<f64>)>) = match &status.validated {
        Some(validated) => {
            ("Dice by class", validated.dice.iter().map(|(name, dice)| (name.as_str(), Some(*dice))).collect())
        }
        None => {
            ("Pseudo Dice by class", status.pseudo_dice.iter().map(|(name, dice)| (name.as_str(), *dice)).collect())
        }
    };
    html! {
        @if !dice.is_empty() {
            section aria-label=(title) {
                h2.quiet { (title) }
                (definitions("classes", dice.into_iter().map(|(name, dice)| (name, dice_bar(dice)))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_color_for_each_color_of_charts() {
        let style = include_str!("page.css");
        for rule in chart_style().lines() {
            let (_, variable) = rule.split_once("var(").unwrap();
            let variable = variable.split(')').next().unwrap();
            // Once in the light and once in the dark scheme.
            assert_eq!(style.matches(&format!("{variable}: #")).count(), 2, "{variable}");
        }
        let style = chart_style();
        assert!(style.contains("svg [stroke=\"#2360B8\"] { stroke: var(--c0); }"), "{style}");
    }
}
