//! A set of voxels as a bit volume.

use multiversion::multiversion;

use nnunet_image::components::{Components, RowRuns};

/// A set of voxels of a patch, one bit per voxel. Each row along x uses whole 64-bit words, lowest bit first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitVolume {
    shape: [usize; 3],
    /// Words per row.
    row: usize,
    /// Bits past the end of a row are 0.
    words: Vec<u64>,
}

impl BitVolume {
    /// Creates an empty set for a volume of this extent, `(z, y, x)`.
    pub(super) fn empty(shape: [usize; 3]) -> Self {
        let row = shape[2].div_ceil(64);
        Self { shape, row, words: vec![0; shape[0] * shape[1] * row] }
    }

    /// Creates the set of voxels whose entry in `labels` (C order) equals `label`.
    ///
    /// # Panics
    /// Panics if the number of labels differs from the number of voxels.
    pub(super) fn from_label(labels: &[i16], shape: [usize; 3], label: i16) -> Self {
        assert_eq!(labels.len(), shape.iter().product::<usize>());
        let mut set = Self::empty(shape);
        if !labels.is_empty() {
            let rows = set.words.chunks_exact_mut(set.row).zip(labels.chunks_exact(shape[2]));
            rows.for_each(|(words, labels)| pack(labels, label, words));
        }
        set
    }

    /// Returns the extent, `(z, y, x)`.
    pub(super) fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Returns the number of voxels in the set.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Returns true if the set is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Returns true if the voxel is in the set.
    #[cfg(test)]
    pub(crate) fn contains(&self, [z, y, x]: [usize; 3]) -> bool {
        self.words_of(z, y)[x / 64] >> (x % 64) & 1 == 1
    }

    /// Removes the voxels `begin..end` of a row from the set.
    pub(super) fn remove(&mut self, [z, y]: [usize; 2], begin: usize, end: usize) {
        let at = (z * self.shape[1] + y) * self.row;
        for x in begin..end {
            self.words[at + x / 64] &= !(1 << (x % 64));
        }
    }

    /// Removes the voxels of another set of the same extent.
    pub(super) fn subtract(&mut self, other: &Self) {
        debug_assert_eq!(self.shape, other.shape);
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= !other);
    }

    /// Returns the complement of the set.
    pub(super) fn complement(&self) -> Self {
        let last = tail(self.shape[2]);
        let mut words: Vec<u64> = self.words.iter().map(|word| !word).collect();
        words.iter_mut().skip(self.row.saturating_sub(1)).step_by(self.row.max(1)).for_each(|word| *word &= last);
        Self { words, ..*self }
    }

    /// Writes 1 for voxels in the set and 0 for all others, in C order.
    ///
    /// # Panics
    /// Panics if the length of `channel` differs from the number of voxels.
    pub(crate) fn write_to(&self, channel: &mut [f32]) {
        assert_eq!(channel.len(), self.shape.iter().product::<usize>());
        if !channel.is_empty() {
            let rows = self.words.chunks_exact(self.row).zip(channel.chunks_exact_mut(self.shape[2]));
            rows.for_each(|(words, row)| unpack(words, row));
        }
    }

    /// Returns the connected components of the set.
    pub(super) fn components(&self) -> Components {
        let [nz, ny, _] = self.shape;
        Components::find([nz, ny], |[z, y], runs| add_runs(self.words_of(z, y), runs))
    }

    /// Removes a component, as returned by [`BitVolume::components`], from the set.
    pub(super) fn remove_component(&mut self, components: &Components, component: usize) {
        let runs = components.runs().filter(|(_, other)| *other == component);
        runs.for_each(|(run, _)| self.remove(run.row, run.begin, run.end));
    }

    /// Returns the number of words per row.
    pub(super) fn row(&self) -> usize {
        self.row
    }

    /// Returns all words, row by row.
    pub(super) fn words(&self) -> &[u64] {
        &self.words
    }

    pub(super) fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// Returns the words of a row.
    pub(super) fn words_of(&self, z: usize, y: usize) -> &[u64] {
        &self.words[(z * self.shape[1] + y) * self.row..][..self.row]
    }
}

/// Appends the runs of set bits of a row.
fn add_runs(words: &[u64], runs: &mut RowRuns) {
    for (index, &word) in words.iter().enumerate() {
        let (mut word, mut at) = (word, 64 * index);
        while word != 0 {
            let skipped = word.trailing_zeros();
            word >>= skipped;
            let length = word.trailing_ones();
            let begin = at + skipped as usize;
            at = begin + length as usize;
            runs.push(begin, at);
            word = word.checked_shr(length).unwrap_or(0);
        }
    }
}

/// Returns the mask of valid bits in the last word of a row.
pub(super) fn tail(row: usize) -> u64 {
    match row % 64 {
        0 => u64::MAX,
        used => (1 << used) - 1,
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn pack(labels: &[i16], label: i16, words: &mut [u64]) {
    for (word, labels) in words.iter_mut().zip(labels.chunks(64)) {
        *word = 0;
        for (bit, other) in labels.iter().enumerate() {
            *word |= u64::from(*other == label) << bit;
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn unpack(words: &[u64], row: &mut [f32]) {
    for (word, voxels) in words.iter().zip(row.chunks_mut(64)) {
        for (bit, voxel) in voxels.iter_mut().enumerate() {
            *voxel = (word >> bit & 1) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_contains_the_voxels_of_its_label() {
        for shape in [[2, 3, 5], [1, 2, 64], [2, 1, 70], [3, 2, 128]] {
            let voxels = shape.iter().product::<usize>();
            let labels: Vec<i16> = (0..voxels).map(|index| (index * index % 7) as i16 - 1).collect();
            let mut set = BitVolume::from_label(&labels, shape, 3);
            let mut written = vec![f32::NAN; voxels];
            set.write_to(&mut written);
            for (index, label) in labels.iter().enumerate() {
                let at = [index / (shape[1] * shape[2]), index / shape[2] % shape[1], index % shape[2]];
                assert_eq!((set.contains(at), written[index]), (*label == 3, f32::from(u8::from(*label == 3))));
            }
            assert_eq!(set.count() + set.complement().count(), voxels);
            assert_eq!(set.complement().complement(), set);
            set.subtract(&set.clone());
            assert!(set.is_empty() && set.complement().count() == voxels);
        }
    }

    #[test]
    fn a_part_of_a_row_is_removed() {
        let mut all = BitVolume::empty([2, 2, 100]).complement();
        all.remove([1, 0], 60, 70);
        assert_eq!(all.count(), 390);
        assert!(!all.contains([1, 0, 60]) && !all.contains([1, 0, 69]) && all.contains([1, 0, 70]));
    }

    #[test]
    fn components_equal_those_of_the_label_map() {
        for shape in [[5, 7, 70], [1, 12, 130], [9, 8, 5]] {
            for every in [2, 3, 5, 9, 40] {
                let is_set = |index: usize| ((index as u64 * 2_654_435_761) >> 7).is_multiple_of(every);
                let labels: Vec<i16> = (0..shape.iter().product()).map(|index| i16::from(is_set(index))).collect();
                let mut set = BitVolume::from_label(&labels, shape, 1);
                let components = set.components();
                let labels = ndarray::Array3::from_shape_vec(shape, labels).unwrap();
                let expected = Components::from_labels(labels.view(), &[1]);
                assert!(components.runs().eq(expected.runs()), "{shape:?}, one in {every}");
                for (number, size) in components.sizes().iter().enumerate() {
                    let before = set.count();
                    set.remove_component(&components, number);
                    assert_eq!(before - set.count(), *size);
                }
                assert!(set.is_empty());
            }
        }
    }

    #[test]
    fn a_run_may_cross_words_and_fill_them() {
        let all = BitVolume::empty([2, 1, 200]).complement();
        assert_eq!(all.components().sizes(), [400]);
        assert!(all.complement().components().sizes().is_empty());
    }
}
