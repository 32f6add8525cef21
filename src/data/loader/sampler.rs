//! Which patch comes next.

use std::sync::Arc;

use rand::Rng;

use super::order::Deal;
use super::{LoaderError, SampleId, Shard};
use crate::store::{ANNOTATED, CaseInfo, CaseStore, StoreError};
use nnunet_core::rng::{Purpose, Stream, stream};

/// Draws patches as nnU-Net v2 does (`nnUNetDataLoader`): the case uniformly with replacement, then a box anywhere in
/// it or, for the last third of each global batch, a box centred on a voxel of a foreground class. Where voxels have been
/// marked to be ignored, the others are centred on one that has not. [`Shard::Epoch`] deals the cases out instead.
///
/// A sample depends on nothing but the options and its number, so the sampler is shared freely between threads.
pub struct Sampler {
    store: Arc<dyn CaseStore>,
    cases: Vec<String>,
    options: SamplerOptions,
    /// Positions in the global batch from this one on are forced to foreground.
    first_forced: u64,
    /// For [`Shard::Epoch`].
    deal: Option<Deal>,
}

/// Which samples are forced to foreground.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Oversampling {
    /// The last ones of each global batch, as nnU-Net does.
    #[default]
    Deterministic,
    /// Each by chance (`nnUNetTrainer_probabilisticOversampling`).
    Probabilistic,
}

/// What a [`Sampler`] draws from and for.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// The run's seed.
    pub seed: u64,
    /// [`Purpose::TrainSample`] or [`Purpose::ValSample`].
    pub purpose: Purpose,
    /// Extent to read, `(z, y, x)`: [`Pipeline::read_patch_size`](crate::augment::Pipeline::read_patch_size).
    pub patch_size: [usize; 3],
    /// Extent the network sees; a box lies beyond the image no further than lets such a patch reach its border.
    pub final_patch_size: [usize; 3],
    /// Samples per iteration over all ranks.
    pub global_batch_size: usize,
    /// Part of the global batch that is forced to foreground; nnU-Net's default is 0.33.
    pub oversample_foreground: f64,
    pub oversampling: Oversampling,
    /// Which case each sample takes.
    pub shard: Shard,
}

impl Sampler {
    /// A sampler over `cases` of `store`.
    ///
    /// # Errors
    /// If there is no case, the batch or patch is empty, or a case is not in the store.
    pub fn new(store: Arc<dyn CaseStore>, cases: Vec<String>, options: SamplerOptions) -> Result<Self, LoaderError> {
        let fail = |problem: String| Err(LoaderError::Setup(problem));
        if cases.is_empty() {
            return fail("no cases to draw from; is the fold's split empty?".into());
        }
        if options.global_batch_size == 0 || options.final_patch_size.contains(&0) {
            return fail(format!(
                "batch size {} and patch size {:?} must not be 0",
                options.global_batch_size, options.final_patch_size
            ));
        }
        if (0..3).any(|axis| options.patch_size[axis] < options.final_patch_size[axis]) {
            return fail(format!(
                "cannot cut a patch of {:?} out of {:?}",
                options.final_patch_size, options.patch_size
            ));
        }
        if !(0.0..=1.0).contains(&options.oversample_foreground) {
            return fail(format!("foreground oversampling is {}, not in 0..1", options.oversample_foreground));
        }
        let known = store.case_ids();
        if let Some(missing) = cases.iter().find(|case| known.binary_search(case).is_err()) {
            return fail(format!("case {missing} is in the split but was not preprocessed; run `preprocess` again"));
        }
        // Python's `round`, with which nnU-Net decides, rounds halves to even.
        let unforced = options.global_batch_size as f64 * (1.0 - options.oversample_foreground);
        let first_forced = unforced.round_ties_even() as u64;
        let deal =
            (options.shard == Shard::Epoch).then(|| Deal::new(options.seed, cases.len(), options.global_batch_size));
        Ok(Self { store, cases, options, first_forced, deal })
    }

    /// The options it was made with.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Number of channels of the cases.
    ///
    /// # Errors
    /// If the store cannot tell.
    pub fn channels(&self) -> Result<usize, StoreError> {
        self.store.info(&self.cases[0]).map(|info| info.channels)
    }

    /// Draws sample number `index` of the epoch's global sequence.
    ///
    /// # Errors
    /// [`LoaderError::Sample`] if the store knows nothing of the drawn case.
    pub fn draw(&self, epoch: u64, index: u64) -> Result<SampleId, LoaderError> {
        let mut rng = stream(self.options.seed, self.options.purpose, epoch, index);
        let (iteration, position) = (index / self.options.global_batch_size as u64, self.position(index));
        let case = match &self.deal {
            Some(deal) => &self.cases[deal.case(epoch, iteration, position as usize)],
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
                // Positions that have cases of their own take turns in being forced; or else some cases always were.
                let turn = if self.deal.is_some() { iteration } else { 0 };
                self.position(position + turn) >= self.first_forced
            }
        };
        let (class, voxel) = draw_centre(info, forced, &mut rng).unzip();
        let lo = self.place(info.shape, voxel, &mut rng);
        let class = class.filter(|class| *class != ANNOTATED);
        Ok(SampleId { epoch, index, case: case.clone(), lo, class })
    }

    /// The position in the global batch of a sample's number.
    fn position(&self, index: u64) -> u64 {
        index % self.options.global_batch_size as u64
    }

    /// The lower corner of the box to read: centred on `voxel` but not below the lower bound, or anywhere within the
    /// bounds (nnU-Net's `get_bbox`). Axes shorter than the patch are padded on both sides.
    fn place(&self, shape: [usize; 3], voxel: Option<[u32; 3]>, rng: &mut Stream) -> [isize; 3] {
        std::array::from_fn(|axis| {
            let read = self.options.patch_size[axis] as i64;
            let extent = shape[axis] as i64;
            let margin = read - self.options.final_patch_size[axis] as i64;
            let padding = margin.max(read - extent);
            let outside = padding - padding / 2;
            let lo = match voxel {
                // As in the reference the upper bound is not enforced: a voxel at the far border stays in the centre.
                Some(voxel) => (i64::from(voxel[axis]) - read / 2).max(-outside),
                None => rng.random_range(-outside..=extent + outside - read),
            };
            lo as isize
        })
    }
}

/// The voxel that a patch is centred on: if it is `forced` to foreground, one of a class drawn uniformly among those present,
/// or else one that is not to be ignored (nnU-Net's `get_bbox`). `None` where the case has none, or has no voxels to be
/// ignored: then the patch may lie anywhere.
fn draw_centre(info: &CaseInfo, forced: bool, rng: &mut Stream) -> Option<(i16, [u32; 3])> {
    let known = |key: &i16| Some(info.class_locations.get_key_value(key)?).filter(|(_, voxels)| !voxels.is_empty());
    let present = info.class_locations.iter().filter(|(class, voxels)| **class != ANNOTATED && !voxels.is_empty());
    let present: Vec<_> = if forced { present.collect() } else { Vec::new() };
    let (class, voxels) = if present.is_empty() { known(&ANNOTATED)? } else { *choose(&present, rng) };
    Some((*class, *choose(voxels, rng)))
}

/// A uniformly drawn element of a list that is not empty.
fn choose<'a, T>(list: &'a [T], rng: &mut Stream) -> &'a T {
    &list[rng.random_range(0..list.len())]
}
