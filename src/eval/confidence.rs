//! Confidence intervals of mean metrics: percentile bootstrap over the cases.

use indexmap::IndexMap;
use rand::Rng;
use rayon::prelude::*;

use super::summary::{BACKGROUND, Confidence, Interval, Metrics, Summary, mean_of, mean_of_defined, quantile};
use nnunet_core::rng::{Purpose, stream};

/// Confidence level of the intervals.
const LEVEL: f64 = 0.95;

impl Summary {
    /// Adds [`Summary::confidence`] from `resamples` bootstrap resamples; no-op if there are no resamples or no cases.
    pub fn with_confidence(self, resamples: usize, seed: u64) -> Self {
        if self.metric_per_case.is_empty() || resamples == 0 {
            return self;
        }
        let names: Vec<&str> = self.foreground_mean.scores().map(|(name, _)| name).collect();
        let classes: Vec<&String> = self.mean.keys().collect();
        let table = ScoreTable::new(&self, &classes, &names);
        let draws: Vec<Vec<f64>> = (0..resamples as u64)
            .into_par_iter()
            .map(|number| {
                let mut rng = stream(seed, Purpose::Bootstrap, 0, number);
                let cases: Vec<usize> = (0..table.cases).map(|_| rng.random_range(0..table.cases)).collect();
                table.means(&cases)
            })
            .collect();
        let interval = |column: usize, cases: usize| {
            let mut values: Vec<f64> = draws.iter().map(|draw| draw[column]).filter(|value| !value.is_nan()).collect();
            let [lower, upper] = [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0].map(|part| quantile(&mut values, part));
            Interval { lower, upper, cases }
        };
        // Columns are ordered by class, then by metric; index `classes.len()` is the mean over classes.
        let intervals_of = |class: usize| {
            let named = names.iter().enumerate().map(|(metric, name)| {
                let column = class * names.len() + metric;
                ((*name).to_owned(), interval(column, table.defined(column)))
            });
            named.collect::<IndexMap<String, Interval>>()
        };
        let mean = classes.iter().enumerate().map(|(class, name)| ((*name).clone(), intervals_of(class))).collect();
        let foreground_mean = intervals_of(classes.len());
        Self { confidence: Some(Confidence { level: LEVEL, resamples, seed, foreground_mean, mean }), ..self }
    }
}

/// Metric values of all cases.
struct ScoreTable {
    cases: usize,
    metrics: usize,
    /// Whether a class is part of the mean over classes.
    is_foreground: Vec<bool>,
    /// Indexed by case, class and metric.
    scores: Vec<f64>,
}

impl ScoreTable {
    fn new(summary: &Summary, classes: &[&String], names: &[&str]) -> Self {
        let undefined = Metrics::from_counts(0, 0, 0, 0);
        let scores = summary.metric_per_case.iter().flat_map(|case| {
            classes.iter().flat_map(|class| {
                let metrics = case.metrics.get(*class).unwrap_or(&undefined);
                let score = |name: &&str| metrics.scores().find(|(key, _)| key == name).map_or(f64::NAN, |(_, x)| x);
                names.iter().map(score).collect::<Vec<_>>()
            })
        });
        Self {
            cases: summary.metric_per_case.len(),
            metrics: names.len(),
            is_foreground: classes.iter().map(|class| *class != BACKGROUND).collect(),
            scores: scores.collect(),
        }
    }

    fn columns(&self) -> usize {
        self.is_foreground.len() * self.metrics
    }

    /// Means over these cases by class and metric, followed by the means over classes by metric.
    fn means(&self, cases: &[usize]) -> Vec<f64> {
        let mean_of_column =
            |column: usize| mean_of_defined(&mut cases.iter().map(|case| self.scores[case * self.columns() + column]));
        let mut means: Vec<f64> = (0..self.columns()).map(mean_of_column).collect();
        let over_classes = (0..self.metrics).map(|metric| {
            let foreground = self.is_foreground.iter().enumerate().filter(|(_, is_foreground)| **is_foreground);
            mean_of(&mut foreground.map(|(class, _)| means[class * self.metrics + metric]))
        });
        let over_classes: Vec<f64> = over_classes.collect();
        means.extend(over_classes);
        means
    }

    /// Number of cases in which a column is defined; for the mean over classes, in which it is defined for any class.
    fn defined(&self, column: usize) -> usize {
        let (class, metric) = (column / self.metrics, column % self.metrics);
        let includes =
            |other: usize| if class < self.is_foreground.len() { other == class } else { self.is_foreground[other] };
        let is_defined = |case: &usize| {
            let classes = (0..self.is_foreground.len()).filter(|class| includes(*class));
            classes.map(|class| self.scores[case * self.columns() + class * self.metrics + metric]).any(|x| !x.is_nan())
        };
        (0..self.cases).filter(is_defined).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CaseResult;

    fn summary(dice: &[[f64; 2]]) -> Summary {
        let metrics = |dice: f64| Metrics { dice, ..Metrics::from_counts(1, 1, 1, 1) };
        let case = |[first, second]: &[f64; 2]| CaseResult {
            metrics: IndexMap::from([("1".to_owned(), metrics(*first)), ("2".to_owned(), metrics(*second))]),
            prediction_file: "p.nii".into(),
            reference_file: "r.nii".into(),
        };
        Summary::new(dice.iter().map(case).collect())
    }

    #[test]
    fn interval_of_many_cases_is_that_of_the_normal_distribution() {
        // Uniformly spread over 0..1: the mean is 0.5 with a standard error of sqrt(1 / 12 / 400).
        let dice: Vec<[f64; 2]> = (0..400).map(|case| [(case as f64 + 0.5) / 400.0, f64::NAN]).collect();
        let confidence = summary(&dice).with_confidence(4000, 1).confidence.unwrap();
        let Interval { lower, upper, cases } = confidence.mean["1"]["Dice"];
        let half = 1.96 * (1.0 / 12.0 / 400.0f64).sqrt();
        assert!((lower - (0.5 - half)).abs() < 0.003 && (upper - (0.5 + half)).abs() < 0.003, "{lower} {upper}");
        assert_eq!(cases, 400);
        let nowhere = confidence.mean["2"]["Dice"];
        assert!(nowhere.lower.is_nan() && nowhere.cases == 0);
        assert!(confidence.foreground_mean["Dice"].lower.is_nan(), "as the mean itself");
    }

    #[test]
    fn interval_is_reproducible_and_empty_for_equal_cases() {
        let mut dice: Vec<[f64; 2]> = (0..12).map(|case| [f64::from(case * case) / 121.0, 0.8]).collect();
        dice.push([f64::NAN, 0.8]);
        let draw = |seed| summary(&dice).with_confidence(200, seed).confidence.unwrap();
        assert_eq!(draw(7).mean["1"]["Dice"], draw(7).mean["1"]["Dice"]);
        assert_ne!(draw(7).mean["1"]["Dice"], draw(8).mean["1"]["Dice"]);
        let same = draw(7).mean["2"]["Dice"];
        assert!((same.lower - 0.8).abs() < 1e-12 && (same.upper - 0.8).abs() < 1e-12);
        assert_eq!((draw(7).mean["1"]["Dice"].cases, draw(7).foreground_mean["Dice"].cases), (12, 13));
        assert!(summary(&dice).with_confidence(0, 7).confidence.is_none());
    }
}
