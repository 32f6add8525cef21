//! Batches produced by the loader.

use ndarray::{Array4, Array5, Axis, s};
use serde::{Deserialize, Serialize};

use crate::augment::cascade::BitVolume;
use crate::store::Patch;

/// One rank's part of a global batch, in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Intensities, `(sample, channel, z, y, x)`; in a cascade followed by the classes of the previous stage, 0 or 1.
    pub images: Array5<f32>,
    /// Labels, `(sample, z, y, x)`; no value is negative.
    pub labels: Array4<i16>,
    /// Identity and location of each sample.
    pub samples: Vec<SampleId>,
}

impl Batch {
    /// Creates a batch of zeros without sample identities.
    pub(super) fn blank(samples: usize, channels: usize, [z, y, x]: [usize; 3]) -> Self {
        Self {
            images: Array5::zeros((samples, channels, z, y, x)),
            labels: Array4::zeros((samples, z, y, x)),
            samples: Vec::with_capacity(samples),
        }
    }

    /// Writes a sample at `position`; labels outside the image become background, as in nnU-Net's last transform.
    /// `one_hot` are the channels after those of the patch.
    pub(super) fn write_sample(&mut self, position: usize, patch: &Patch, one_hot: &[BitVolume]) {
        let mut sample = self.images.index_axis_mut(Axis(0), position);
        let channels = patch.data.len_of(Axis(0));
        sample.slice_mut(s![..channels, .., .., ..]).assign(&patch.data);
        for (class, mut channel) in one_hot.iter().zip(sample.outer_iter_mut().skip(channels)) {
            class.write_to(channel.as_slice_mut().expect("batches are in C order"));
        }
        self.labels.index_axis_mut(Axis(0), position).zip_mut_with(&patch.labels, |to, &from| *to = from.max(0));
    }
}

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
