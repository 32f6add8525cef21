//! From the store to batches: which patch comes next, and the threads that fetch and augment it ahead of time.

use ndarray::{Array4, Array5};

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

/// Identifies a drawn patch; the same for any number of ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleId {
    pub epoch: u64,
    /// Number of the sample within the epoch's global sequence.
    pub index: u64,
    pub case: String,
    /// Lower corner of the patch in the case; may be negative.
    pub lo: [isize; 3],
    /// The foreground class the patch is centred on, if it was forced to foreground.
    pub class: Option<i16>,
}
