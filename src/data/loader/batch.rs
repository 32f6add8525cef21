//! What the loader delivers.

use ndarray::{Array4, Array5, Axis, s};
use serde::{Deserialize, Serialize};

use crate::augment::cascade::BitVolume;
use crate::store::Patch;

/// One rank's part of a global batch, on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Intensities, `(sample, channel, z, y, x)`; in a cascade followed by the classes of the previous stage, 0 or 1.
    pub images: Array5<f32>,
    /// Labels, `(sample, z, y, x)`; no value is negative.
    pub labels: Array4<i16>,
    /// Where each sample was cut.
    pub samples: Vec<SampleId>,
}

impl Batch {
    /// A batch of zeros that names no samples yet.
    pub(super) fn blank(samples: usize, channels: usize, [z, y, x]: [usize; 3]) -> Self {
        Self {
            images: Array5::zeros((samples, channels, z, y, x)),
            labels: Array4::zeros((samples, z, y, x)),
            samples: Vec::with_capacity(samples),
        }
    }

    /// Writes a sample to its place; labels outside the image become background, as nnU-Net's last transform does.
    /// `one_hot` are the channels behind those of the patch.
    pub(super) fn place(&mut self, position: usize, patch: &Patch, one_hot: &[BitVolume]) {
        let mut sample = self.images.index_axis_mut(Axis(0), position);
        let channels = patch.data.len_of(Axis(0));
        sample.slice_mut(s![..channels, .., .., ..]).assign(&patch.data);
        for (class, mut channel) in one_hot.iter().zip(sample.outer_iter_mut().skip(channels)) {
            class.write_to(channel.as_slice_mut().expect("batches are in C order"));
        }
        self.labels.index_axis_mut(Axis(0), position).zip_mut_with(&patch.labels, |to, &from| *to = from.max(0));
    }
}

/// Identifies a drawn patch; the same for any number of ranks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleId {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Number of the sample within the epoch's global sequence.
    pub index: u64,
    /// Identifier of the case.
    pub case: String,
    /// Lower corner, in the case, of the box that is read for the patch; may be negative.
    pub lo: [isize; 3],
    /// The foreground class the patch is centred on, if it was forced to foreground.
    pub class: Option<i16>,
}
