//! Sampling of patches: the case of each sample, random or partitioned, and the box within it.

use std::sync::Arc;

use nnunet_core::rng::{Purpose, Stream, stream};
use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::LoaderError;
use crate::store::{ANNOTATED, CaseInfo, CaseStore, StoreError};

/// Identifies a drawn patch, independently of the number of ranks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleId {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Index of the sample in the epoch's global sequence.
    pub index: u64,
    /// Identifier of the case.
    pub case: String,
    /// Lower corner, in the case, of the box read for the patch, `(z, y, x)`; may be negative.
    pub lo: [isize; 3],
    /// Foreground class of the voxel the patch is centered on, if the sample was forced to foreground.
    pub class: Option<i16>,
}

/// Draws patches as nnU-Net v2 does (`nnUNetDataLoader`): a case uniformly with replacement, then a random box in it
/// or, for the last third of each global batch, a box centered on a foreground voxel. If the case has an ignore label,
/// the other boxes are centered on a voxel without it. [`Shard::Epoch`] partitions the cases instead.
///
/// A sample depends only on the options and its index, so threads can share the sampler freely.
pub struct Sampler {
    store: Arc<dyn CaseStore>,
    cases: Vec<String>,
    options: SamplerOptions,
    /// First position in the global batch that is forced to foreground.
    first_forced: u64,
    /// Partition of the cases, for [`Shard::Epoch`].
    case_partition: Option<CasePartition>,
}

/// Selection of the samples forced to foreground.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Oversampling {
    /// Force the last samples of each global batch, as nnU-Net does.
    #[default]
    Deterministic,
    /// Force each sample with a probability (`nnUNetTrainer_probabilisticOversampling`).
    Probabilistic,
}

/// Sampling settings of a [`Sampler`].
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Random seed of the run.
    pub seed: u64,
    /// [`Purpose::TrainSample`] or [`Purpose::ValSample`].
    pub purpose: Purpose,
    /// Extent to read, `(z, y, x)`: [`Pipeline::read_patch_size`](crate::augment::Pipeline::read_patch_size).
    pub patch_size: [usize; 3],
    /// Final patch extent seen by the network, `(z, y, x)`; a box extends beyond the image only as far as such a patch
    /// needs to reach the border.
    pub final_patch_size: [usize; 3],
    /// Samples per iteration over all ranks.
    pub global_batch_size: usize,
    /// Fraction of the global batch forced to foreground; nnU-Net's default is 0.33.
    pub oversample_foreground: f64,
    pub oversampling: Oversampling,
    /// Assignment of cases to samples.
    pub shard: Shard,
}

impl Sampler {
    /// Creates a sampler over `cases` of `store`.
    ///
    /// # Errors
    /// Returns an error if there are no cases, the batch or patch size is 0, or a case is not in the store.
    pub fn new(store: Arc<dyn CaseStore>, cases: Vec<String>, options: SamplerOptions) -> Result<Self, LoaderError> {
        let fail = |problem: String| Err(LoaderError::Setup(problem));
        if cases.is_empty() {
            return fail("no cases to draw from; check that the fold's split is not empty".into());
        }
        if options.global_batch_size == 0 || options.final_patch_size.contains(&0) {
            return fail(format!(
                "batch size {} and patch size {:?} must be at least 1",
                options.global_batch_size, options.final_patch_size
            ));
        }
        if (0..3).any(|axis| options.patch_size[axis] < options.final_patch_size[axis]) {
            return fail(format!(
                "cannot crop a patch of {:?} from {:?}",
                options.final_patch_size, options.patch_size
            ));
        }
        if !(0.0..=1.0).contains(&options.oversample_foreground) {
            return fail(format!("foreground oversampling must be in 0..1, got {}", options.oversample_foreground));
        }
        let known = store.case_ids();
        if let Some(missing) = cases.iter().find(|case| known.binary_search(case).is_err()) {
            return fail(format!("case {missing} is in the split but was not preprocessed; run `preprocess` again"));
        }
        // Python's `round`, which nnU-Net uses here, rounds halves to even.
        let unforced = options.global_batch_size as f64 * (1.0 - options.oversample_foreground);
        let first_forced = unforced.round_ties_even() as u64;
        let case_partition = (options.shard == Shard::Epoch)
            .then(|| CasePartition::new(options.seed, cases.len(), options.global_batch_size));
        Ok(Self { store, cases, options, first_forced, case_partition })
    }

    /// Returns the options of the sampler.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Returns the number of channels of the cases.
    ///
    /// # Errors
    /// Returns an error if the store does not contain the first case.
    pub fn channels(&self) -> Result<usize, StoreError> {
        self.store.info(&self.cases[0]).map(|info| info.channels)
    }

    /// Draws sample `index` of the epoch's global sequence.
    ///
    /// # Errors
    /// Returns [`LoaderError::Sample`] if the store does not contain the drawn case.
    pub fn draw(&self, epoch: u64, index: u64) -> Result<SampleId, LoaderError> {
        let mut rng = stream(self.options.seed, self.options.purpose, epoch, index);
        let (iteration, position) = (index / self.options.global_batch_size as u64, self.position(index));
        let case = match &self.case_partition {
            Some(case_partition) => &self.cases[case_partition.case(epoch, iteration, position as usize)],
            None => choose(&self.cases, &mut rng),
        };
        let info = self.store.info(case).map_err(|error| LoaderError::Sample {
            case: case.clone(),
            epoch,
            index,
            cause: error.to_string(),
        })?;
        let forced = match self.options.oversampling {
            Oversampling::Probabilistic => rng.random::<f64>() < self.options.oversample_foreground,
            Oversampling::Deterministic => {
                // With partitioned cases, rotate the forced positions; otherwise the same cases would always be forced.
                let turn = if self.case_partition.is_some() { iteration } else { 0 };
                self.position(position + turn) >= self.first_forced
            }
        };
        let (class, voxel) = draw_center_voxel(info, forced, &mut rng).unzip();
        let lo = self.draw_corner(info.shape, voxel, &mut rng);
        let class = class.filter(|class| *class != ANNOTATED);
        Ok(SampleId { epoch, index, case: case.clone(), lo, class })
    }

    /// Returns the position in the global batch of a sample index.
    fn position(&self, index: u64) -> u64 {
        index % self.options.global_batch_size as u64
    }

    /// Returns the lower corner of the box to read: centered on `voxel` but not below the lower bound, or random within
    /// the bounds (nnU-Net's `get_bbox`). Axes shorter than the patch are padded on both sides.
    fn draw_corner(&self, shape: [usize; 3], voxel: Option<[u32; 3]>, rng: &mut Stream) -> [isize; 3] {
        std::array::from_fn(|axis| {
            let read = self.options.patch_size[axis] as i64;
            let extent = shape[axis] as i64;
            let margin = read - self.options.final_patch_size[axis] as i64;
            let padding = margin.max(read - extent);
            let outside = padding - padding / 2;
            let lo = match voxel {
                // As in the reference, the upper bound is not enforced: a voxel at the far border stays in the center.
                Some(voxel) => (i64::from(voxel[axis]) - read / 2).max(-outside),
                None => rng.random_range(-outside..=extent + outside - read),
            };
            lo as isize
        })
    }
}

/// Draws the voxel to center a patch on: if `forced` to foreground, a voxel of a class drawn uniformly among those
/// present, otherwise a voxel without the ignore label (nnU-Net's `get_bbox`). Returns `None` if the case has no such
/// voxels or no ignore label; the patch is then placed at random.
fn draw_center_voxel(info: &CaseInfo, forced: bool, rng: &mut Stream) -> Option<(i16, [u32; 3])> {
    let known = |key: &i16| Some(info.class_locations.get_key_value(key)?).filter(|(_, voxels)| !voxels.is_empty());
    let present = info.class_locations.iter().filter(|(class, voxels)| **class != ANNOTATED && !voxels.is_empty());
    let present: Vec<_> = if forced { present.collect() } else { Vec::new() };
    let (class, voxels) = if present.is_empty() { known(&ANNOTATED)? } else { *choose(&present, rng) };
    Some((*class, *choose(voxels, rng)))
}

/// Draws an element uniformly from a non-empty list.
fn choose<'a, T>(list: &'a [T], rng: &mut Stream) -> &'a T {
    &list[rng.random_range(0..list.len())]
}

/// Order in which cases are drawn for training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Shard {
    /// Draw each sample from all cases with replacement, as nnU-Net does; every rank sees all cases.
    #[default]
    Random,
    /// Partition the cases over the positions of the global batch; each position visits its own cases in an order
    /// reshuffled on every pass and epoch, so a rank sees only the cases of its positions.
    Epoch,
}

/// A partition of the cases over the positions of a global batch.
///
/// The number of ranks determines only the positions of each rank, not the cases of a position: the global batch is the
/// same for any number of ranks, and with `n` ranks each sees `1 / n` of the cases. The partition is fixed for a run,
/// so that a rank finds its cases where it cached them, in memory or on a local disk. A position visits its cases
/// equally often, up to a difference of one. If the cases cannot be divided evenly, the cases of positions with fewer
/// cases come up correspondingly more often. If there are fewer cases than positions, positions share cases.
struct CasePartition {
    seed: u64,
    /// Case indices of each position.
    parts: Vec<Vec<usize>>,
}

impl CasePartition {
    /// Partitions `cases` cases over `positions` positions.
    fn new(seed: u64, cases: usize, positions: usize) -> Self {
        let mut order: Vec<usize> = (0..cases).collect();
        order.shuffle(&mut stream(seed, Purpose::CaseOrder, u64::MAX, 0));
        let part = |position: usize| match cases < positions {
            true => vec![order[position % cases]],
            false => order.iter().copied().skip(position).step_by(positions).collect(),
        };
        Self { seed, parts: (0..positions).map(part).collect() }
    }

    /// Returns the case of a position in an iteration of an epoch.
    fn case(&self, epoch: u64, iteration: u64, position: usize) -> usize {
        let part = &self.parts[position];
        let (turn, place) = (iteration / part.len() as u64, iteration as usize % part.len());
        let mut order: Vec<usize> = part.clone();
        // One random stream per pass: positions and passes per epoch are far below 2^32.
        let index = (position as u64) << 32 | turn;
        order.shuffle(&mut stream(self.seed, Purpose::CaseOrder, epoch, index));
        order[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_position_visits_all_of_its_cases_in_changing_order() {
        let partition = CasePartition::new(7, 12, 3);
        for position in 0..3 {
            let turn = |epoch, turn: u64| -> Vec<usize> {
                (0..4).map(|place| partition.case(epoch, turn * 4 + place, position)).collect()
            };
            let sorted = |mut cases: Vec<usize>| {
                cases.sort_unstable();
                cases
            };
            assert_eq!(sorted(turn(0, 0)), sorted(partition.parts[position].clone()));
            assert_eq!(sorted(turn(0, 5)), sorted(turn(3, 1)));
            let orders: std::collections::BTreeSet<_> = (0..10).map(|number| turn(number / 5, number % 5)).collect();
            assert!(orders.len() > 3, "{orders:?}");
        }
        let mut all: Vec<usize> = partition.parts.into_iter().flatten().collect();
        all.sort_unstable();
        assert_eq!(all, (0..12).collect::<Vec<_>>());
    }

    #[test]
    fn every_case_is_drawn_equally_often() {
        let partition = CasePartition::new(1, 20, 4);
        let mut counts = BTreeMap::<usize, usize>::new();
        for iteration in 0..53 {
            for position in 0..4 {
                *counts.entry(partition.case(2, iteration, position)).or_default() += 1;
            }
        }
        let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        assert!(counts.len() == 20 && most - least <= 1, "{counts:?}");
    }

    #[test]
    fn positions_share_cases_if_there_are_too_few() {
        let partition = CasePartition::new(1, 2, 5);
        let taken: std::collections::BTreeSet<_> = (0..5).map(|position| partition.case(0, 3, position)).collect();
        assert_eq!(taken.len(), 2);
    }
}
