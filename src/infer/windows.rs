//! Positions of the windows on an image and the weights of their voxels.

/// Returns the first voxels of the windows along each axis (nnU-Net v2, `compute_steps_for_sliding_window`).
///
/// Windows are evenly spaced, at most `step` of a window size apart, `0 < step <= 1`. The first starts at the image's
/// start and the last ends at its end. A window of one slice, that of a 2D network, covers every slice once.
///
/// # Panics
/// If the window is larger than the image or `step` is out of range.
pub fn window_positions(image: [usize; 3], window: [usize; 3], step: f64) -> [Vec<usize>; 3] {
    assert!(step > 0.0 && step <= 1.0, "a step of {step} windows");
    std::array::from_fn(|axis| {
        assert!(window[axis] <= image[axis], "a window of {window:?} in an image of {image:?}");
        let room = image[axis] - window[axis];
        if window[axis] == 1 {
            return (0..=room).collect();
        }
        let count = (room as f64 / (window[axis] as f64 * step)).ceil() as usize + 1;
        let distance = room as f64 / (count - 1).max(1) as f64;
        (0..count).map(|index| (distance * index as f64).round_ties_even() as usize).collect()
    })
}

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

/// Windows over an image: all combinations of the positions along the three axes.
pub struct Grid {
    /// Axes z, y, x.
    pub axes: [GridAxis; 3],
}

/// Windows along one axis.
pub struct GridAxis {
    /// First voxel of each window, ascending.
    pub starts: Vec<usize>,
    /// Weights of each window's voxels. The weights of all windows at a voxel sum to 1, as do the products over three
    /// axes. Sums of weighted logits are therefore means and need no division, and voxels covered only by low weights
    /// lose no precision in f16.
    pub weights: Vec<Vec<f32>>,
}

impl Grid {
    /// Creates the grid of nnU-Net v2's inference, see [`window_positions`].
    pub fn new(image: [usize; 3], window: [usize; 3], step: f64, blend: Blend) -> Self {
        let mut number = 0..3;
        let axes = window_positions(image, window, step).map(|starts| {
            let axis = number.next().expect("three axes");
            GridAxis::new(starts, image[axis], &blend.profile(window[axis]))
        });
        Self { axes }
    }

    /// Iterates over all windows as indices into [`GridAxis::starts`]; the last axis varies fastest.
    pub fn windows(&self) -> impl Iterator<Item = [usize; 3]> {
        let [z, y, x] = [0, 1, 2].map(|axis| self.axes[axis].starts.len());
        (0..z * y * x).map(move |index| [index / (y * x), index / x % y, index % x])
    }

    /// Returns the first voxel of a window.
    pub fn origin(&self, window: [usize; 3]) -> [usize; 3] {
        std::array::from_fn(|axis| self.axes[axis].starts[window[axis]])
    }

    /// Returns a window's weights along each axis.
    pub fn weights(&self, window: [usize; 3]) -> [&[f32]; 3] {
        std::array::from_fn(|axis| self.axes[axis].weights[window[axis]].as_slice())
    }
}

impl GridAxis {
    fn new(starts: Vec<usize>, extent: usize, profile: &[f32]) -> Self {
        let mut total = vec![0.0f32; extent];
        for &first in &starts {
            total[first..].iter_mut().zip(profile).for_each(|(total, weight)| *total += weight);
        }
        let share =
            |first: &usize| profile.iter().zip(&total[*first..]).map(|(weight, total)| weight / total).collect();
        let weights = starts.iter().map(share).collect();
        Self { starts, weights }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_of_a_voxel_add_up_to_one() {
        for blend in [Blend::Gaussian, Blend::Constant] {
            let grid = Grid::new([37, 20, 9], [16, 20, 1], 0.5, blend);
            for (axis, extent) in grid.axes.iter().zip([37, 20, 9]) {
                let mut total = vec![0.0f32; extent];
                for (first, weights) in axis.starts.iter().zip(&axis.weights) {
                    total[*first..].iter_mut().zip(weights).for_each(|(total, weight)| *total += weight);
                }
                assert!(total.iter().all(|total| (total - 1.0).abs() < 1e-6), "{blend:?}: {total:?}");
            }
        }
    }
}
