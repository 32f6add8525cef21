//! How much a voxel counts within its window.

/// Weights of a window's voxels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Blend {
    /// All voxels alike.
    Constant,
    /// A Gaussian whose standard deviation is 1/8 of the window: the network knows least about a window's border.
    #[default]
    Gaussian,
}

/// nnU-Net's standard deviation as a part of the window.
const SIGMA: f64 = 1.0 / 8.0;

impl Blend {
    /// Weights along one axis of a window; a voxel's weight is the product of those of its three axes.
    pub fn profile(self, window: usize) -> Vec<f32> {
        match self {
            Self::Constant => vec![1.0; window],
            Self::Gaussian => importance(window, SIGMA),
        }
    }
}

/// One axis of nnU-Net's importance map (`compute_gaussian`), 1 at the middle.
///
/// The map is the product of three such profiles: a Gaussian filter of a single voxel, divided by its maximum. `sigma`
/// is the standard deviation as a part of the window.
pub fn importance(window: usize, sigma: f64) -> Vec<f32> {
    let deviation = window as f64 * sigma;
    let centre = (window / 2) as f64;
    (0..window).map(|index| (-0.5 * ((index as f64 - centre) / deviation).powi(2)).exp() as f32).collect()
}
