//! Positions and weights of the windows over an image.

use super::gaussian::Blend;
use super::steps::window_steps;

/// Windows over an image: all combinations of the positions along the three axes.
pub struct Grid {
    /// Axes z, y, x.
    pub axes: [GridAxis; 3],
}

/// Windows along one axis.
pub struct GridAxis {
    /// First voxel of each window, ascending.
    pub firsts: Vec<usize>,
    /// Weights of each window's voxels. The weights of all windows at a voxel sum to 1, as do the products over three
    /// axes. Sums of weighted logits are therefore means and need no division, and voxels covered only by low weights
    /// lose no precision in f16.
    pub weights: Vec<Vec<f32>>,
}

impl Grid {
    /// Creates the grid of nnU-Net v2's inference, see [`window_steps`].
    pub fn new(image: [usize; 3], window: [usize; 3], step: f64, blend: Blend) -> Self {
        let mut number = 0..3;
        let axes = window_steps(image, window, step).map(|firsts| {
            let axis = number.next().expect("three axes");
            GridAxis::new(firsts, image[axis], &blend.profile(window[axis]))
        });
        Self { axes }
    }

    /// Iterates over all windows as indices into [`GridAxis::firsts`]; the last axis varies fastest.
    pub fn windows(&self) -> impl Iterator<Item = [usize; 3]> {
        let [z, y, x] = [0, 1, 2].map(|axis| self.axes[axis].firsts.len());
        (0..z * y * x).map(move |index| [index / (y * x), index / x % y, index % x])
    }

    /// Returns the first voxel of a window.
    pub fn origin(&self, window: [usize; 3]) -> [usize; 3] {
        std::array::from_fn(|axis| self.axes[axis].firsts[window[axis]])
    }

    /// Returns a window's weights along each axis.
    pub fn weights(&self, window: [usize; 3]) -> [&[f32]; 3] {
        std::array::from_fn(|axis| self.axes[axis].weights[window[axis]].as_slice())
    }
}

impl GridAxis {
    fn new(firsts: Vec<usize>, extent: usize, profile: &[f32]) -> Self {
        let mut total = vec![0.0f32; extent];
        for &first in &firsts {
            total[first..].iter_mut().zip(profile).for_each(|(total, weight)| *total += weight);
        }
        let share =
            |first: &usize| profile.iter().zip(&total[*first..]).map(|(weight, total)| weight / total).collect();
        let weights = firsts.iter().map(share).collect();
        Self { firsts, weights }
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
                for (first, weights) in axis.firsts.iter().zip(&axis.weights) {
                    total[*first..].iter_mut().zip(weights).for_each(|(total, weight)| *total += weight);
                }
                assert!(total.iter().all(|total| (total - 1.0).abs() < 1e-6), "{blend:?}: {total:?}");
            }
        }
    }
}
