//! Conversion of logits to labels (argmax) and probabilities.

use nnunet_data::dataset::DatasetJson;

/// Number of values compared in parallel (SIMD lanes).
const SIMD_LANES: usize = 8;

/// Rule that maps the logits of a voxel to its label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelRule {
    /// Argmax over the classes; the first of equal logits.
    Classes,
    /// Overlapping regions: the label of the last region with a positive logit, or 0. Later regions lie inside earlier
    /// ones.
    Regions(Vec<i16>),
}

impl LabelRule {
    /// Returns the rule for the labels of a dataset.
    pub fn for_dataset(dataset: &DatasetJson) -> Self {
        match &dataset.regions_class_order {
            Some(order) if dataset.has_regions() => Self::Regions(order.clone()),
            _ => Self::Classes,
        }
    }

    /// Returns whether the outputs are regions with independent probabilities.
    pub fn is_of_regions(&self) -> bool {
        matches!(self, Self::Regions(_))
    }

    /// Returns the label of a voxel from its logits, one per class or region.
    pub fn label(&self, logits: &[f32]) -> i16 {
        match self {
            Self::Classes => {
                let largest = largest(logits);
                logits.iter().position(|logit| *logit == largest).unwrap_or(0) as i16
            }
            Self::Regions(order) => {
                let found = logits.iter().zip(order).rev().find(|(logit, _)| **logit > 0.0);
                found.map_or(0, |(_, label)| *label)
            }
        }
    }

    /// Converts the logits of a voxel to probabilities in place: softmax over classes, or sigmoid of each region.
    pub fn to_probabilities(&self, logits: &mut [f32]) {
        if self.is_of_regions() {
            logits.iter_mut().for_each(|logit| *logit = 1.0 / (1.0 + (-*logit).exp()));
            return;
        }
        let largest = largest(logits);
        logits.iter_mut().for_each(|logit| *logit = (*logit - largest).exp());
        let sum: f32 = logits.iter().sum();
        logits.iter_mut().for_each(|value| *value /= sum);
    }
}

/// Returns the largest value, ignoring NaN.
fn largest(values: &[f32]) -> f32 {
    let larger = |one: f32, other: f32| if one > other { one } else { other };
    let mut lanes = [f32::NEG_INFINITY; SIMD_LANES];
    let (whole, rest) = values.as_chunks::<SIMD_LANES>();
    for values in whole {
        lanes.iter_mut().zip(values).for_each(|(lane, value)| *lane = larger(*value, *lane));
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |largest, value| larger(*value, largest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_classes_wins() {
        for classes in [1, 3, 8, 21] {
            for winner in 0..classes {
                let mut logits = vec![-2.0; classes];
                logits[winner..].fill(1.5);
                assert_eq!(LabelRule::Classes.label(&logits), winner as i16);
            }
        }
        assert_eq!(LabelRule::Classes.label(&[f32::NAN, -1.0, f32::NAN]), 1);
        assert_eq!(LabelRule::Classes.label(&[f32::NAN; 9]), 0);
    }

    #[test]
    fn the_last_positive_region_wins() {
        let label_rule = LabelRule::Regions(vec![7, 9, 2]);
        assert_eq!(label_rule.label(&[-1.0, 0.0, -0.5]), 0);
        assert_eq!(label_rule.label(&[3.0, 0.1, -0.5]), 9);
        assert_eq!(label_rule.label(&[3.0, -0.1, 0.5]), 2);
    }

    #[test]
    fn probabilities_of_classes_add_up_and_those_of_regions_need_not() {
        let mut classes = [0.0, 2f32.ln(), 0.0];
        LabelRule::Classes.to_probabilities(&mut classes);
        assert!(classes.iter().zip([0.25, 0.5, 0.25]).all(|(one, other)| (one - other).abs() < 1e-6), "{classes:?}");
        let mut regions = [0.0, 0.0];
        LabelRule::Regions(vec![1, 2]).to_probabilities(&mut regions);
        assert_eq!(regions, [0.5, 0.5]);
    }
}
