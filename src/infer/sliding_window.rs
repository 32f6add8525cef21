//! Sliding-window inference.

use std::ops::AddAssign;
use std::time::{Duration, Instant};

use burn::tensor::{Tensor, TensorData};
use ndarray::{Array4, Array5, ArrayView3, ArrayView4, Axis, CowArray, Ix4, Ix5, s};

use super::accumulator::{Accumulator, Mirroring, Window};
use super::networks::Ensemble;
use super::options::{AccumulatorDtype, Batching};
use super::windows::{Blend, Grid};
use nnunet_nn::model::UNet;
use nnunet_nn::ops::NnOps;

/// Sliding window of a network over an image (nnU-Net v2, `predict_sliding_window_return_logits`).
#[derive(Clone, Debug, PartialEq)]
pub struct SlidingWindow {
    /// Window shape `(z, y, x)`: the patch size of training.
    pub window: [usize; 3],
    /// Maximum distance between neighboring windows as a fraction of the window size; 0.5 in nnU-Net.
    pub step: f64,
    pub blend: Blend,
    /// Axes to mirror; the results of all their subsets are averaged (test-time augmentation). May be empty.
    pub mirror_axes: Vec<usize>,
}

/// Time spent on an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InferenceTimings {
    /// Number of windows, without mirrored ones.
    pub windows: usize,
    /// Time in the network.
    pub network: Duration,
    /// Time for cutting windows and accumulating their logits.
    pub accumulate: Duration,
    /// Time for converting finished logits to labels: resampling to the raw image's voxel grid and argmax.
    pub export: Duration,
}

impl AddAssign for InferenceTimings {
    fn add_assign(&mut self, other: Self) {
        self.windows += other.windows;
        self.network += other.network;
        self.accumulate += other.accumulate;
        self.export += other.export;
    }
}

impl SlidingWindow {
    /// Computes the logits `(class, z, y, x)` of an image `(channel, z, y, x)`.
    pub fn logits<B: NnOps>(&self, network: &UNet<B>, image: ArrayView4<f32>, device: &B::Device) -> Array4<f32> {
        let (_, z, y, x) = image.dim();
        let classes = network.spec().classes;
        let mut logits = Array4::zeros((z, y, x, classes));
        let batching = Batching { batch_size: 1, accumulator_dtype: AccumulatorDtype::F32, on_device: true };
        let networks = Ensemble::from(network.clone());
        self.run_with(&networks, device, image, batching, |z, plane| {
            logits.index_axis_mut(Axis(0), z).assign(&plane);
        });
        logits.permuted_axes([3, 0, 1, 2])
    }

    /// Passes the networks' mean logits `(y, x, class)` for an image `(channel, z, y, x)` to `take`, plane by plane in
    /// order of z. They are accumulated on the device if it is supported and allowed.
    pub(crate) fn run_with<B: NnOps>(
        &self,
        networks: &Ensemble<B>,
        device: &B::Device,
        image: ArrayView4<f32>,
        batching: Batching,
        take: impl FnMut(usize, ArrayView3<f32>),
    ) -> InferenceTimings {
        match B::device_windows().filter(|_| batching.on_device) {
            Some(ops) => self.run_on_device((networks, device, &ops), image, batching.batch_size, take),
            None => self.run(image, networks.spec().classes, batching, forward(networks, device), take),
        }
    }

    /// Passes the logits `(y, x, class)` of an image `(channel, z, y, x)` to `take`, plane by plane in order of z.
    ///
    /// Windows are processed in order of z. A plane is passed on as soon as no later window covers it, so at most about
    /// as many planes as a window has are in memory. `network` maps windows `(n, z, y, x, channel)` to logits `(n, z,
    /// y, x, class)`.
    pub fn run<'n>(
        &self,
        image: ArrayView4<f32>,
        classes: usize,
        batching: Batching,
        mut network: impl FnMut(Array5<f32>) -> CowArray<'n, f32, Ix5>,
        mut take: impl FnMut(usize, ArrayView3<f32>),
    ) -> InferenceTimings {
        let began = Instant::now();
        let mut timings = InferenceTimings::default();
        let (_, z, y, x) = image.dim();
        let (image, [z0, y0, x0]) = self.pad(image);
        let (_, pz, py, px) = image.dim();
        let grid = Grid::new([pz, py, px], self.window, self.step, self.blend);
        let mirrorings = self.mirrorings();
        let calls = self.calls(&grid, &mirrorings, batching.batch_size);
        timings.windows = grid.windows().count();
        let mut accumulator = Accumulator::new([py, px, classes], batching.accumulator_dtype);
        for (number, call) in calls.iter().enumerate() {
            let input = self.cut(image.view(), &grid, call);
            let called = Instant::now();
            let logits = network(input);
            timings.network += called.elapsed();
            call.add(&logits, &grid, 1.0 / mirrorings.len() as f32, &mut accumulator);
            let finished = calls.get(number + 1).map_or(pz, |next| grid.origin(next.windows[0])[0]);
            let finishing = Instant::now();
            accumulator.finish(finished, |plane, logits| {
                if (z0..z0 + z).contains(&plane) {
                    take(plane - z0, logits.slice(s![y0..y0 + y, x0..x0 + x, ..]));
                }
            });
            timings.export += finishing.elapsed();
        }
        timings.accumulate = began.elapsed() - timings.network - timings.export;
        timings
    }

    /// Returns the maximum size in bytes of the accumulator that [`SlidingWindow::run`] keeps in memory for an image
    /// `(z, y, x)`.
    pub(crate) fn slab_bytes(&self, image: [usize; 3], classes: usize, accumulator_dtype: AccumulatorDtype) -> u64 {
        let [_, y, x]: [usize; 3] = std::array::from_fn(|axis| image[axis].max(self.window[axis]));
        [self.window[0], y, x, classes, accumulator_dtype.bytes()].iter().map(|&factor| factor as u64).product()
    }

    /// Returns the number of mirrorings, including the identity.
    pub fn num_mirrorings(&self) -> usize {
        1 << self.mirror_axes.len()
    }

    /// Returns all subsets of the axes to mirror, starting with the empty one.
    pub(super) fn mirrorings(&self) -> Vec<Mirroring> {
        let members = |subset: usize| {
            let mut mirroring = [false; 3];
            self.mirror_axes.iter().enumerate().for_each(|(bit, axis)| mirroring[*axis] = subset >> bit & 1 == 1);
            mirroring
        };
        (0..self.num_mirrorings()).map(members).collect()
    }

    /// Divides windows and mirrorings into forward calls of at most `batch_size` samples.
    pub(super) fn calls<'m>(
        &self,
        grid: &Grid,
        mirrorings: &'m [Mirroring],
        batch_size: usize,
    ) -> Vec<ForwardCall<'m>> {
        let mirrored: Vec<_> = mirrorings.chunks(batch_size).collect();
        let windows: Vec<_> = grid.windows().collect();
        // Windows at different z in one call would delay finishing planes, unless windows are single slices.
        let layers = windows.chunk_by(|one, other| self.window[0] == 1 || one[0] == other[0]);
        let together = layers.flat_map(|layer| layer.chunks((batch_size / mirrorings.len()).max(1)));
        let calls = together.flat_map(|windows| {
            mirrored.iter().map(|mirrorings| ForwardCall { windows: windows.to_vec(), mirrorings })
        });
        calls.collect()
    }

    /// Cuts the samples `(n, z, y, x, channel)` of a call.
    fn cut(&self, image: ArrayView4<f32>, grid: &Grid, call: &ForwardCall) -> Array5<f32> {
        let [wz, wy, wx] = self.window;
        let mut samples = Array5::zeros((call.len(), wz, wy, wx, image.len_of(Axis(0))));
        for ((window, mirroring), mut sample) in call.samples().zip(samples.outer_iter_mut()) {
            let [z, y, x] = grid.origin(window);
            let mut from = image.slice(s![.., z..z + wz, y..y + wy, x..x + wx]).permuted_axes([1, 2, 3, 0]);
            (0..3).filter(|axis| mirroring[*axis]).for_each(|axis| from.invert_axis(Axis(axis)));
            sample.assign(&from);
        }
        samples
    }

    /// Pads an image smaller than the window with zeros and returns the position of the image in it (`pad_nd_image`).
    pub(super) fn pad<'a>(&self, image: ArrayView4<'a, f32>) -> (CowArray<'a, f32, Ix4>, [usize; 3]) {
        let (channels, z, y, x) = image.dim();
        let extent = [z, y, x];
        let padded: [usize; 3] = std::array::from_fn(|axis| extent[axis].max(self.window[axis]));
        if padded == extent {
            return (image.into(), [0; 3]);
        }
        let first: [usize; 3] = std::array::from_fn(|axis| (padded[axis] - extent[axis]) / 2);
        let mut larger = Array4::zeros((channels, padded[0], padded[1], padded[2]));
        let inner = s![.., first[0]..first[0] + z, first[1]..first[1] + y, first[2]..first[2] + x];
        larger.slice_mut(inner).assign(&image);
        (larger.into(), first)
    }
}

/// Samples of one forward call: some mirrorings of some windows.
pub(super) struct ForwardCall<'m> {
    pub(super) windows: Vec<[usize; 3]>,
    pub(super) mirrorings: &'m [Mirroring],
}

impl ForwardCall<'_> {
    pub(super) fn len(&self) -> usize {
        self.windows.len() * self.mirrorings.len()
    }

    /// Iterates over window and mirroring of each sample.
    pub(super) fn samples(&self) -> impl Iterator<Item = ([usize; 3], Mirroring)> {
        self.windows.iter().flat_map(|window| self.mirrorings.iter().map(|mirroring| (*window, *mirroring)))
    }

    /// Adds the network's logits to the accumulator; `mirror_weight` is the weight of one mirroring.
    fn add(&self, logits: &CowArray<f32, Ix5>, grid: &Grid, mirror_weight: f32, accumulator: &mut Accumulator) {
        let of_windows = logits.axis_chunks_iter(Axis(0), self.mirrorings.len());
        for (&window, logits) in self.windows.iter().zip(of_windows) {
            let samples = self.mirrorings.iter().enumerate();
            let samples = samples.map(|(number, mirroring)| (*mirroring, logits.index_axis_move(Axis(0), number)));
            let (origin, weights) = (grid.origin(window), grid.weights(window));
            accumulator.add(&Window { origin, weights, mirror_weight, samples: samples.collect() });
        }
    }
}

/// Returns the networks as a function from windows `(n, z, y, x, channel)` to logits `(n, z, y, x, class)`.
fn forward<'n, B: NnOps>(
    networks: &'n Ensemble<B>,
    device: &'n B::Device,
) -> impl FnMut(Array5<f32>) -> CowArray<'n, f32, Ix5> {
    move |windows| {
        let shape = windows.shape().to_vec();
        let (values, _) = windows.into_raw_vec_and_offset();
        let logits = networks.logits(Tensor::from_data(TensorData::new(values, shape), device));
        let [n, z, y, x, classes] = logits.dims();
        let values = logits.into_data().convert::<f32>().into_vec().expect("converted to f32");
        Array5::from_shape_vec((n, z, y, x, classes), values).expect("as many values as the tensor has").into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: usize = 3;

    fn sliding(window: [usize; 3], mirror_axes: &[usize]) -> SlidingWindow {
        SlidingWindow { window, step: 0.5, blend: Blend::Gaussian, mirror_axes: mirror_axes.to_vec() }
    }

    fn image([z, y, x]: [usize; 3]) -> Array4<f32> {
        Array4::from_shape_fn((2, z, y, x), |(c, z, y, x)| ((c * 7 + z * 5 + y * 3 + x) as f32 * 0.7).sin())
    }

    /// Network without symmetry: its logits depend on the position of the voxel in the window.
    fn network(windows: Array5<f32>) -> CowArray<'static, f32, Ix5> {
        let (n, z, y, x, _) = windows.dim();
        let logit = |(n, z, y, x, class): (usize, usize, usize, usize, usize)| {
            windows[[n, z, y, x, class % 2]] * (1.0 + class as f32) + 0.1 * z as f32 - 0.2 * y as f32 + 0.05 * x as f32
        };
        Array5::from_shape_fn((n, z, y, x, CLASSES), logit).into()
    }

    /// Collects the planes and asserts that they arrive in order.
    fn run(sliding: &SlidingWindow, image: &Array4<f32>, batching: Batching) -> Array4<f32> {
        let (_, z, y, x) = image.dim();
        let mut logits = Array4::zeros((z, y, x, CLASSES));
        let mut next = 0;
        sliding.run(image.view(), CLASSES, batching, network, |z, plane| {
            assert_eq!(z, next);
            next += 1;
            logits.index_axis_mut(Axis(0), z).assign(&plane);
        });
        assert_eq!(next, z);
        logits
    }

    /// Computes the mean over all windows and mirrorings voxel by voxel, as a reference.
    fn expected(sliding: &SlidingWindow, image: &Array4<f32>) -> Array4<f32> {
        let (image, [z0, y0, x0]) = sliding.pad(image.view());
        let (_, z, y, x) = image.dim();
        let profiles = sliding.window.map(|extent| sliding.blend.profile(extent));
        let (mut accumulator, mut weights) =
            (Array4::<f64>::zeros((z, y, x, CLASSES)), Array4::<f64>::zeros((z, y, x, 1)));
        let grid = Grid::new([z, y, x], sliding.window, sliding.step, sliding.blend);
        for window in grid.windows() {
            let [k, j, i] = grid.origin(window);
            for mirroring in sliding.mirrorings() {
                let call = ForwardCall { windows: vec![window], mirrorings: &[mirroring] };
                let mut logits = network(sliding.cut(image.view(), &grid, &call));
                (0..3).filter(|axis| mirroring[*axis]).for_each(|axis| logits.invert_axis(Axis(axis + 1)));
                for ((_, dz, dy, dx, class), logit) in logits.indexed_iter() {
                    let weight = f64::from(profiles[0][dz]) * f64::from(profiles[1][dy]) * f64::from(profiles[2][dx]);
                    accumulator[[k + dz, j + dy, i + dx, class]] += weight * f64::from(*logit);
                    weights[[k + dz, j + dy, i + dx, 0]] += if class == 0 { weight } else { 0.0 };
                }
            }
        }
        let means = (accumulator / weights).mapv(|mean| mean as f32);
        let [z, y, x] = [z - 2 * z0, y - 2 * y0, x - 2 * x0];
        means.slice(s![z0..z0 + z, y0..y0 + y, x0..x0 + x, ..]).to_owned()
    }

    fn assert_near(ours: &Array4<f32>, expected: &Array4<f32>, tolerance: f32) {
        assert_eq!(ours.dim(), expected.dim());
        let error = (ours - expected).iter().fold(0f32, |largest, error| largest.max(error.abs()));
        assert!(error < tolerance, "{error}");
    }

    #[test]
    fn batches_of_any_size_give_the_mean_of_all_windows_and_mirrorings() {
        for (extent, window, axes) in [
            ([19, 12, 11], [6, 8, 4], &[0, 1, 2][..]),
            ([5, 13, 14], [1, 8, 6], &[1, 2][..]),
            ([4, 12, 9], [8, 8, 9], &[0][..]),
            ([16, 8, 8], [8, 8, 8], &[][..]),
        ] {
            let (sliding, image) = (sliding(window, axes), image(extent));
            let expected = expected(&sliding, &image);
            for batch_size in [1, 2, 3, 8, 17] {
                for (accumulator_dtype, tolerance) in [(AccumulatorDtype::F32, 1e-5), (AccumulatorDtype::F16, 3e-2)] {
                    assert_near(
                        &run(&sliding, &image, Batching { batch_size, accumulator_dtype, on_device: false }),
                        &expected,
                        tolerance,
                    );
                }
            }
        }
    }

    /// Voxels covered only by the corner of a window have weights far below the smallest number of half precision.
    #[test]
    fn half_precision_loses_nothing_in_the_corners() {
        let (sliding, image) = (sliding([16; 3], &[]), image([16; 3]));
        let batching = Batching { batch_size: 1, accumulator_dtype: AccumulatorDtype::F16, on_device: false };
        let expected = network(sliding.cut(
            image.view(),
            &Grid::new([16; 3], [16; 3], 0.5, Blend::Gaussian),
            &ForwardCall { windows: vec![[0; 3]], mirrorings: &[[false; 3]] },
        ));
        assert_near(&run(&sliding, &image, batching), &expected.index_axis(Axis(0), 0).to_owned(), 5e-3);
    }
}
