//! Weighted sums of the logits of overlapping windows, keeping only unfinished planes in memory.

use std::collections::VecDeque;

use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::{ArrayView3, ArrayView4, s};
use rayon::prelude::*;

use super::options::AccumulatorDtype;

/// Flags that tell which of the axes z, y, x are mirrored.
pub type Mirroring = [bool; 3];

/// Rows per parallel work item.
const ROWS_PER_TASK: usize = 8;
/// Values of a plane per parallel work item.
const CHUNK: usize = 1 << 16;

/// Logits of one window, to be added to the sums.
pub struct Window<'a> {
    /// First voxel of the window, `(z, y, x)`.
    pub origin: [usize; 3],
    /// Weights of the window's voxels along each axis.
    pub weights: [&'a [f32]; 3],
    /// Weight of each mirroring: 1 / number of mirrorings.
    pub mirror_weight: f32,
    /// Mirrorings of the window and the network's logits for each, `(z, y, x, class)`.
    pub samples: Vec<(Mirroring, ArrayView4<'a, f32>)>,
}

/// Sums of windows as planes `(y, x, class)`, allocated and released in order of z.
pub struct Accumulator {
    /// Shape of a plane, `(y, x, class)`.
    plane: [usize; 3],
    sums: Planes,
    /// Buffer for a finished plane in f32.
    finished: Vec<f32>,
}

enum Planes {
    F32(Slab<f32>),
    F16(Slab<f16>),
}

impl Accumulator {
    /// Creates an accumulator without planes.
    pub fn new(plane: [usize; 3], accumulator_dtype: AccumulatorDtype) -> Self {
        let sums = match accumulator_dtype {
            AccumulatorDtype::F32 => Planes::F32(Slab::new(plane)),
            AccumulatorDtype::F16 => Planes::F16(Slab::new(plane)),
        };
        Self { plane, sums, finished: Vec::new() }
    }

    /// Adds the weighted logits of a window, with all its mirrorings in one pass over the sums.
    ///
    /// # Panics
    /// If the window covers planes that are already finished.
    pub fn add(&mut self, window: &Window) {
        match &mut self.sums {
            Planes::F32(slab) => slab.add(window, add_f32),
            Planes::F16(slab) => slab.add(window, add_f16),
        }
    }

    /// Passes the planes before `end` to `take`, in order, and releases them. No later window may cover them.
    pub fn finish(&mut self, end: usize, mut take: impl FnMut(usize, ArrayView3<f32>)) {
        let Self { plane, sums, finished } = self;
        match sums {
            Planes::F32(slab) => slab.finish(end, |z, sums| take(z, as_plane(*plane, sums))),
            Planes::F16(slab) => slab.finish(end, |z, sums| {
                finished.resize(sums.len(), 0.0);
                let parts = finished.par_chunks_mut(CHUNK).zip(sums.par_chunks(CHUNK));
                parts.for_each(|(wide, sums)| sums.convert_to_f32_slice(wide));
                take(z, as_plane(*plane, finished));
            }),
        }
    }
}

fn as_plane(extent: [usize; 3], values: &[f32]) -> ArrayView3<'_, f32> {
    ArrayView3::from_shape(extent, values).expect("a plane has its extent")
}

fn add_f32(sums: &mut [f32], values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

fn add_f16(sums: &mut [f16], values: &[f32]) {
    let mut wide = [0.0f32; 256];
    for (sums, values) in sums.chunks_mut(wide.len()).zip(values.chunks(wide.len())) {
        let wide = &mut wide[..values.len()];
        sums.convert_to_f32_slice(wide);
        add_f32(wide, values);
        sums.convert_from_f32_slice(wide);
    }
}

/// Consecutive planes.
struct Slab<T> {
    /// Shape of a plane, `(y, x, class)`.
    plane: [usize; 3],
    /// Index of the first plane in `planes`.
    first: usize,
    planes: VecDeque<Vec<T>>,
    /// Buffers of finished planes, for reuse.
    free_planes: Vec<Vec<T>>,
}

impl<T: Copy + Default + Send> Slab<T> {
    fn new(plane: [usize; 3]) -> Self {
        Self { plane, first: 0, planes: VecDeque::new(), free_planes: Vec::new() }
    }

    fn add(&mut self, window: &Window, add: impl Fn(&mut [T], &[f32]) + Sync) {
        let [_, x, classes] = self.plane;
        let [z0, y0, x0] = window.origin;
        let [wz, wy, wx] = window.weights;
        let begin = z0.checked_sub(self.first).expect("windows come in order of z");
        self.ensure_planes(begin + wz.len());
        let planes: Vec<_> = self.planes.range_mut(begin..begin + wz.len()).collect();
        planes.into_par_iter().zip(wz).enumerate().for_each(|(k, (plane, wz))| {
            let rows = plane[y0 * x * classes..][..wy.len() * x * classes].par_chunks_exact_mut(x * classes);
            let rows = rows.zip(wy).enumerate().with_min_len(ROWS_PER_TASK);
            rows.for_each_init(Vec::new, |logits, (j, (row, wy))| {
                window.sum_mirrorings(logits, k, j, classes);
                let weight = window.mirror_weight * wz * wy;
                for (voxel, wx) in logits.chunks_exact_mut(classes).zip(wx) {
                    voxel.iter_mut().for_each(|logit| *logit *= weight * wx);
                }
                add(&mut row[x0 * classes..][..logits.len()], logits);
            });
        });
    }

    /// Appends zeroed planes until there are `count`.
    fn ensure_planes(&mut self, count: usize) {
        while self.planes.len() < count {
            let mut plane = self.free_planes.pop().unwrap_or_default();
            plane.clear();
            plane.resize(self.plane.iter().product(), T::default());
            self.planes.push_back(plane);
        }
    }

    fn finish(&mut self, end: usize, mut take: impl FnMut(usize, &[T])) {
        while self.first < end
            && let Some(plane) = self.planes.pop_front()
        {
            take(self.first, &plane);
            self.free_planes.push(plane);
            self.first += 1;
        }
    }
}

impl Window<'_> {
    /// Sets `sum` to the sum over all mirrorings of row `(z, y)` of the window. A row mirrored in x is read in reverse.
    fn sum_mirrorings(&self, sum: &mut Vec<f32>, z: usize, y: usize, classes: usize) {
        let [wz, wy, wx] = self.weights.map(<[f32]>::len);
        sum.clear();
        sum.resize(wx * classes, 0.0);
        let add = |(sum, logit): (&mut f32, &f32)| *sum += logit;
        for ([mirror_z, mirror_y, mirror_x], logits) in &self.samples {
            let z = if *mirror_z { wz - 1 - z } else { z };
            let y = if *mirror_y { wy - 1 - y } else { y };
            let row = logits.slice(s![z, y, .., ..]).to_slice().expect("a row of logits is contiguous");
            if *mirror_x {
                let voxels = sum.chunks_exact_mut(classes).zip(row.chunks_exact(classes).rev());
                voxels.for_each(|(sum, logits)| sum.iter_mut().zip(logits).for_each(add));
            } else {
                sum.iter_mut().zip(row).for_each(add);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_planes_of_a_window_are_in_memory() {
        let mut slab = Slab::<f32>::new([4, 4, 2]);
        let (ones, logits) = ([1.0; 4], ndarray::Array4::ones((4, 4, 4, 2)));
        let mut finished = Vec::new();
        for z in (0..40).step_by(2) {
            slab.finish(z, |plane, sums| finished.push((plane, sums.iter().sum::<f32>())));
            let samples = vec![([false; 3], logits.view())];
            slab.add(&Window { origin: [z, 0, 0], weights: [&ones; 3], mirror_weight: 1.0, samples }, add_f32);
            assert_eq!(slab.planes.len() + slab.free_planes.len(), 4);
        }
        // Two windows cover every plane except the first two.
        let expected = (0..38).map(|plane| (plane, if plane < 2 { 32.0 } else { 64.0 }));
        assert!(expected.eq(finished));
    }
}
