//! Sampling of class locations for foreground oversampling.

use std::collections::BTreeMap;

use ndarray::{ArrayView1, ArrayView3, Axis};
use rand::Rng;

use crate::dataset::DatasetJson;
use crate::store::{ANNOTATED, OUTSIDE_LABEL};
use nnunet_core::rng::{Purpose, Stream, stream};

/// Minimum number of voxels kept per class, or all if it has fewer (nnU-Net v2, `_sample_foreground_locations`).
const MIN_SAMPLES: u64 = 10_000;
/// At least one in this many voxels of each class is kept.
const MIN_COVERAGE: u64 = 100;
/// Fixed seed: the locations are part of the dataset and do not depend on the seed of a training run.
const SEED: u64 = 1234;

/// Foreground groups that patches are centered on: classes, or regions if the dataset has them.
///
/// A region is keyed by its output class in `regions_class_order`, as in the predicted label map; regions of the same
/// output class are merged. If there is an ignore label, all voxels without it form an additional group, [`ANNOTATED`].
#[derive(Clone, Debug, PartialEq)]
pub struct ClassGroups {
    /// Key and member labels of each group.
    groups: Vec<(i16, Vec<i16>)>,
}

impl ClassGroups {
    /// Creates the groups of a dataset's classes or regions, without background and the ignore label.
    ///
    /// # Errors
    /// Returns a description of the problem if `regions_class_order` is invalid.
    pub fn from_dataset(dataset: &DatasetJson) -> Result<Self, String> {
        if let Some(problem) = dataset.region_problem() {
            return Err(problem);
        }
        let mut groups = BTreeMap::<i16, Vec<i16>>::new();
        for group in dataset.foreground() {
            let members = groups.entry(group.output).or_default();
            members.extend(group.members);
            members.sort_unstable();
            members.dedup();
        }
        if dataset.ignore_label().is_some() {
            groups.insert(ANNOTATED, [OUTSIDE_LABEL].into_iter().chain(dataset.classes()).collect());
        }
        Ok(Self { groups: groups.into_iter().collect() })
    }

    /// Draws a bounded sample of the voxels of each group that occurs, in C order.
    ///
    /// From `n` voxels, `max(min(10000, n), ceil(n / 100))` are drawn uniformly without replacement. The sample depends
    /// only on `labels` and `case` (an integer that identifies the case, such as [`case_number`]).
    pub fn sample(&self, labels: ArrayView3<i16>, case: u64) -> BTreeMap<i16, Vec<[u32; 3]>> {
        let memberships = self.memberships();
        let groups_of = |label: i16| memberships.get(label_index(label)?);

        let mut counts = vec![0u64; self.groups.len()];
        // Most rows contain none of the classes; testing for that is cheaper than a lookup per label.
        let (first, last) = self.label_range();
        let holds_any = |row: &ArrayView1<i16>| row.fold(false, |any, label| any | (first..=last).contains(label));
        for row in labels.rows().into_iter().filter(holds_any) {
            for &group in row.iter().filter_map(|&label| groups_of(label)).flatten() {
                counts[group] += 1;
            }
        }
        let mut samplers: Vec<_> = counts.iter().enumerate().map(|(i, &n)| Sampler::new(n, case, i as u64)).collect();
        let rows_of_a_plane = labels.len_of(Axis(1));
        for (number, row) in labels.rows().into_iter().enumerate().filter(|(_, row)| holds_any(row)) {
            let (z, y) = (number / rows_of_a_plane, number % rows_of_a_plane);
            for (x, &label) in row.iter().enumerate() {
                for &group in groups_of(label).into_iter().flatten() {
                    samplers[group].offer([z as u32, y as u32, x as u32]);
                }
            }
        }
        let keys = self.groups.iter().map(|(key, _)| *key);
        keys.zip(samplers).filter(|(_, sampler)| !sampler.drawn.is_empty()).map(|(key, s)| (key, s.drawn)).collect()
    }

    /// Returns the smallest and largest label that belongs to a group.
    fn label_range(&self) -> (i16, i16) {
        let members = || self.groups.iter().flat_map(|(_, members)| members.iter().copied());
        (members().min().unwrap_or(i16::MAX), members().max().unwrap_or(i16::MIN))
    }

    /// Returns the groups of each label.
    fn memberships(&self) -> Vec<Vec<usize>> {
        let mut memberships = Vec::new();
        for (group, (_, members)) in self.groups.iter().enumerate() {
            for label in members.iter().filter_map(|&label| label_index(label)) {
                if memberships.len() <= label {
                    memberships.resize(label + 1, Vec::new());
                }
                memberships[label].push(group);
            }
        }
        memberships
    }
}

/// Returns the index of a label in a table that starts at the label of voxels outside the image (-1).
fn label_index(label: i16) -> Option<usize> {
    usize::try_from(i32::from(label) - i32::from(OUTSIDE_LABEL)).ok()
}

/// Hashes a case identifier (64-bit FNV-1a), so that adding a case does not change the samples of others.
pub fn case_number(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Selection sampling in one pass (Knuth, The Art of Computer Programming vol. 2, algorithm 3.4.2 S).
struct Sampler {
    remaining: u64,
    wanted: u64,
    random: Stream,
    drawn: Vec<[u32; 3]>,
}

impl Sampler {
    fn new(population: u64, case: u64, group: u64) -> Self {
        let wanted = population.min(MIN_SAMPLES).max(population.div_ceil(MIN_COVERAGE));
        let drawn = Vec::with_capacity(wanted as usize);
        Self { remaining: population, wanted, random: stream(SEED, Purpose::Dataset, group, case), drawn }
    }

    fn offer(&mut self, location: [u32; 3]) {
        if self.wanted == self.remaining || self.random.random_range(0..self.remaining) < self.wanted {
            self.drawn.push(location);
            self.wanted -= 1;
        }
        self.remaining -= 1;
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, s};

    use super::*;

    fn dataset(json: &str) -> DatasetJson {
        let text = format!(r#"{{"channel_names": {{"0": "MR"}}, "numTraining": 1, "file_ending": ".nii", {json}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn keeps_all_of_a_small_class_and_a_sample_of_a_large_one() {
        let groups = ClassGroups::from_dataset(&dataset(
            r#""labels": {"background": 0, "small": 1, "large": 2, "huge": 3, "absent": 4, "ignore": 5}"#,
        ))
        .unwrap();
        let mut labels = Array3::<i16>::zeros((150, 100, 100));
        labels.slice_mut(s![0, 0, ..50]).fill(1);
        labels.slice_mut(s![1..3, .., ..]).fill(2);
        labels.slice_mut(s![5..145, .., ..]).fill(3);
        labels.slice_mut(s![146.., .., ..]).fill(5);
        labels.slice_mut(s![149.., .., ..]).fill(-1);

        let sample = groups.sample(labels.view(), 7);
        let sizes: Vec<_> = sample.iter().map(|(class, list)| (*class, list.len())).collect();
        // All voxels except the 30000 with the ignore label.
        assert_eq!(sizes, [(ANNOTATED, 14_700), (1, 50), (2, 10_000), (3, 14_000)]);
        let ignored = |l: &[u32; 3]| labels[l.map(|i| i as usize)] == 5;
        assert!(!sample[&ANNOTATED].iter().any(ignored) && sample[&ANNOTATED].iter().any(|l| l[0] == 149));
        for (class, list) in sample.iter().filter(|(class, _)| **class != ANNOTATED) {
            assert!(list.iter().all(|l| labels[l.map(|i| i as usize)] == *class));
            assert!(list.windows(2).all(|pair| pair[0] < pair[1]), "drawn without replacement, in C order");
        }
        // Uniform draws: the mean of 14000 locations is the center of the class (standard error 0.34 slices).
        let mean = sample[&3].iter().map(|l| f64::from(l[0])).sum::<f64>() / 14_000.0;
        assert!((mean - 74.5).abs() < 2.0, "mean slice {mean}");

        assert_eq!(sample, groups.sample(labels.view(), 7));
        assert_ne!(sample, groups.sample(labels.view(), 8));
    }

    #[test]
    fn regions_are_keyed_by_their_output_class() {
        let regions = r#""labels": {"background": 0, "whole": [1, 2], "core": [2]}"#;
        let groups =
            ClassGroups::from_dataset(&dataset(&format!(r#"{regions}, "regions_class_order": [1, 2]"#))).unwrap();
        let labels = Array3::from_shape_vec((1, 1, 4), vec![0, 1, 2, 1]).unwrap();
        let sample = groups.sample(labels.view(), 0);
        assert_eq!(sample[&1], [[0, 0, 1], [0, 0, 2], [0, 0, 3]]);
        assert_eq!(sample[&2], [[0, 0, 2]]);

        let ignoring = regions.replace(r#""core""#, r#""ignore": 3, "core""#);
        let groups =
            ClassGroups::from_dataset(&dataset(&format!(r#"{ignoring}, "regions_class_order": [1, 2]"#))).unwrap();
        let labels = Array3::from_shape_vec((1, 1, 5), vec![0, 1, 3, 2, -1]).unwrap();
        let sample = groups.sample(labels.view(), 0);
        assert_eq!(sample[&ANNOTATED], [[0, 0, 0], [0, 0, 1], [0, 0, 3], [0, 0, 4]]);
        assert_eq!((sample[&1].len(), sample[&2].len()), (2, 1));

        assert!(ClassGroups::from_dataset(&dataset(regions)).unwrap_err().contains("regions_class_order"));
        assert!(ClassGroups::from_dataset(&dataset(&format!(r#"{regions}, "regions_class_order": [1]"#))).is_err());
    }
}
