//! What the loader delivers.

use ndarray::{Array4, Array5, Axis};

use crate::store::Patch;

/// One rank's part of a global batch, on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Intensities, `(sample, channel, z, y, x)`.
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
    pub(super) fn place(&mut self, position: usize, patch: &Patch) {
        self.images.index_axis_mut(Axis(0), position).assign(&patch.data);
        self.labels.index_axis_mut(Axis(0), position).zip_mut_with(&patch.labels, |to, &from| *to = from.max(0));
    }
}

/// Identifies a drawn patch; the same for any number of ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
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
