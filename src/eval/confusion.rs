//! Confusion counts of reference and predicted labels.

use std::collections::{BTreeSet, HashMap};

use nnunet_data::dataset::LabelValue;

use super::Metrics;

/// Voxel counts of a case by `(reference label, predicted label)`.
///
/// All overlap metrics follow from these counts, so a case is read once regardless of the number of classes or regions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confusion {
    counts: HashMap<(i16, i16), u64>,
}

impl Confusion {
    /// Counts the voxels of two label maps of the same shape.
    pub fn new<'a>(
        reference: impl IntoIterator<Item = &'a i16>,
        prediction: impl IntoIterator<Item = &'a i16>,
    ) -> Self {
        let mut counts = HashMap::new();
        let mut voxels = reference.into_iter().zip(prediction).map(|(&truth, &predicted)| (truth, predicted));
        let Some(mut current) = voxels.next() else { return Self { counts } };
        // Label maps consist of long runs of equal voxels; the hash map is updated once per run.
        let mut run = 1;
        for pair in voxels {
            if pair == current {
                run += 1;
            } else {
                *counts.entry(current).or_default() += run;
                (current, run) = (pair, 1);
            }
        }
        *counts.entry(current).or_default() += run;
        Self { counts }
    }

    /// All labels that occur in either map.
    pub fn labels(&self) -> BTreeSet<i16> {
        self.counts.keys().flat_map(|&(truth, predicted)| [truth, predicted]).collect()
    }

    /// Metrics of a class or region over the voxels whose reference label is not `ignore_label`.
    pub fn metrics(&self, class: &LabelValue, ignore_label: Option<i16>) -> Metrics<u64> {
        let (mut tp, mut fp, mut fn_, mut tn) = (0, 0, 0, 0);
        for (&(truth, predicted), &count) in &self.counts {
            if Some(truth) == ignore_label {
                continue;
            }
            match (contains(class, truth), contains(class, predicted)) {
                (true, true) => tp += count,
                (false, true) => fp += count,
                (true, false) => fn_ += count,
                (false, false) => tn += count,
            }
        }
        Metrics::from_counts(tp, fp, fn_, tn)
    }
}

fn contains(class: &LabelValue, label: i16) -> bool {
    class.members().contains(&label)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUTH: [i16; 8] = [0, 0, 1, 1, 2, 2, 2, 9];
    const PREDICTED: [i16; 8] = [0, 1, 1, 2, 2, 2, 0, 1];

    fn counts(class: LabelValue, ignore: Option<i16>) -> [u64; 4] {
        let metrics = Confusion::new(&TRUTH, &PREDICTED).metrics(&class, ignore);
        [metrics.tp, metrics.fp, metrics.fn_, metrics.tn]
    }

    #[test]
    fn classes_and_regions_are_counted() {
        assert_eq!(counts(LabelValue::Class(1), None), [1, 2, 1, 4]);
        assert_eq!(counts(LabelValue::Class(2), None), [2, 1, 1, 4]);
        assert_eq!(counts(LabelValue::Region(vec![1, 2]), None), [4, 2, 1, 1]);
        assert_eq!(counts(LabelValue::Class(5), None), [0, 0, 0, 8]);
    }

    #[test]
    fn ignored_voxels_do_not_count() {
        assert_eq!(counts(LabelValue::Class(1), Some(9)), [1, 1, 1, 4]);
        // Predictions in ignored voxels do not count, a prediction of the ignore label elsewhere does.
        let confusion = Confusion::new(&[9, 1], &[1, 9]);
        assert_eq!(confusion.metrics(&LabelValue::Class(1), Some(9)), Metrics::from_counts(0, 0, 1, 0));
    }

    #[test]
    fn labels_of_both_maps_are_listed() {
        assert_eq!(Confusion::new(&[0, 3, 3], &[7, 0, 0]).labels(), BTreeSet::from([0, 3, 7]));
        assert!(Confusion::new(&[], &[]).labels().is_empty());
    }
}
