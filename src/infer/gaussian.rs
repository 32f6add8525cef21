//! Weights of voxels within a window.

/// Weighting of the voxels of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Blend {
    /// Equal weights for all voxels.
    Constant,
    /// Gaussian with a standard deviation of 1/8 of the window size: predictions are least reliable near the border.
    #[default]
    Gaussian,
}

/// Standard deviation of nnU-Net as a fraction of the window size.
const SIGMA: f64 = 1.0 / 8.0;

impl Blend {
    /// Returns the weights along one axis of a window; the weight of a voxel is the product over its three axes.
    pub fn profile(self, window: usize) -> Vec<f32> {
        match self {
            Self::Constant => vec![1.0; window],
            Self::Gaussian => importance(window, SIGMA),
        }
    }
}

/// Returns one axis of nnU-Net's importance map (`compute_gaussian`), with value 1 at the center.
///
/// The map is the product of three such profiles: a Gaussian filter of a single voxel, divided by its maximum. `sigma`
/// is the standard deviation as a fraction of the window size.
pub fn importance(window: usize, sigma: f64) -> Vec<f32> {
    let deviation = window as f64 * sigma;
    let centre = (window / 2) as f64;
    (0..window).map(|index| (-0.5 * ((index as f64 - centre) / deviation).powi(2)).exp() as f32).collect()
}
