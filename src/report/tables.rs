//! Dice of the held-out cases, by class and by case.

use super::Run;
use super::html::{Html, scrolling, table, tag, text};
use super::text::{count, number, score};
use nnunet_eval::{self as eval, CaseResult, Summary};

/// Tables of the classes and of the cases, worst first.
pub fn validation(run: &Run, summary: &Summary) -> Html {
    let cases = worst_first(summary);
    let [classes_title, cases_title] = ["Classes", "Cases, worst first"].map(|title| tag("h3", &[], [text(title)]));
    let cases = scrolling("Dice of each case", case_table(run, summary, &cases));
    tag("div", &[], [classes_title, scrolling("Classes", class_table(run, summary)), cases_title, cases])
}

/// Cases in ascending order of their mean Dice; cases without any class last.
pub fn worst_first(summary: &Summary) -> Vec<&CaseResult> {
    let mut cases: Vec<&CaseResult> = summary.metric_per_case.iter().collect();
    let rank = |case: &CaseResult| mean_dice(case).unwrap_or(f64::INFINITY);
    cases.sort_by(|a, b| rank(a).total_cmp(&rank(b)));
    cases
}

/// Mean Dice over the classes in the reference or the prediction of the case.
pub fn mean_dice(case: &CaseResult) -> Option<f64> {
    let defined: Vec<f64> = case.metrics.values().map(|metrics| metrics.dice).filter(|dice| !dice.is_nan()).collect();
    (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64)
}

/// A Dice with a bar in the background.
pub fn dice_bar(dice: Option<f64>) -> Html {
    let part = dice.filter(|dice| dice.is_finite()).map_or(0.0, |dice| dice.clamp(0.0, 1.0));
    let style = format!("--part:{:.1}%", 100.0 * part);
    tag("span", &[("class", "bar"), ("style", &style)], [text(score(dice))])
}

fn class_table(run: &Run, summary: &Summary) -> Html {
    let further: Vec<&str> =
        summary.foreground_mean.scores().map(|(name, _)| name).filter(|name| *name != "Dice").collect();
    let heads = ["class", "mean Dice", "lowest", "median", "cases"].into_iter().chain(further.iter().copied());
    let heads: Vec<&str> = heads.chain(["reference voxels", "predicted", "FN", "FP"]).collect();
    let row = |(key, metrics): (&String, &eval::Metrics<f64>)| {
        let dice = summary.metric_per_case.iter().filter_map(|case| Some(case.metrics.get(key)?.dice));
        let mut dice: Vec<f64> = dice.filter(|dice| !dice.is_nan()).collect();
        dice.sort_by(f64::total_cmp);
        let median = (!dice.is_empty()).then(|| (dice[(dice.len() - 1) / 2] + dice[dice.len() / 2]) / 2.0);
        let further =
            further.iter().map(|name| score(metrics.scores().find(|(other, _)| other == name).map(|(_, value)| value)));
        let counts = [metrics.n_ref, metrics.n_pred, metrics.fn_, metrics.fp].map(number);
        let cells = [score(dice.first().copied()), score(median), dice.len().to_string()]
            .into_iter()
            .chain(further)
            .chain(counts);
        [text(run.class_name(key)), dice_bar(Some(metrics.dice))].into_iter().chain(cells.map(text)).collect()
    };
    let note = format!("Voxel counts are means over {}.", count(summary.metric_per_case.len(), "case"));
    let note = tag("p", &[("class", "note")], [text(note)]);
    tag("div", &[], [table(&heads, summary.mean.iter().map(row)), note])
}

fn case_table(run: &Run, summary: &Summary, cases: &[&CaseResult]) -> Html {
    let keys: Vec<&String> = summary.mean.keys().collect();
    let names: Vec<String> = keys.iter().map(|key| run.class_name(key)).collect();
    let heads: Vec<&str> = ["case", "mean Dice"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let row = |case: &&CaseResult| {
        let dice = keys.iter().map(|key| dice_bar(case.metrics.get(*key).map(|metrics| metrics.dice)));
        let name = text(eval::case_name(&case.prediction_file));
        [name, dice_bar(mean_dice(case))].into_iter().chain(dice).collect()
    };
    table(&heads, cases.iter().map(row))
}
