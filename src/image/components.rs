//! Connected components of a mask.
//!
//! A mask is a list of runs: maximal ranges of consecutive set voxels in a row along x. A union-find joins the runs that
//! touch in neighboring rows, so its cost grows with the number of runs, not of voxels.

use std::ops::Range;

use ndarray::ArrayView3;

/// The connected components of a mask, ordered by their first voxel; voxels are connected if they share a face, edge or
/// corner (scikit-image `label` with full connectivity).
#[derive(Clone, Debug)]
pub struct Components {
    runs: Vec<VoxelRun>,
    /// Component index of each run.
    component: Vec<usize>,
    /// Number of voxels of each component.
    sizes: Vec<usize>,
}

/// A maximal run of consecutive mask voxels in a row along x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoxelRun {
    /// Indices of the row, `(z, y)`.
    pub row: [usize; 2],
    /// Index of the first voxel along x.
    pub begin: usize,
    /// Index after the last voxel along x.
    pub end: usize,
}

/// The runs of one row, filled from left to right by the caller of [`Components::find`].
pub struct RowRuns<'a> {
    row: [usize; 2],
    runs: &'a mut Vec<VoxelRun>,
    /// Index of the first run of this row.
    first: usize,
}

impl RowRuns<'_> {
    /// Appends the mask voxels `begin..end` of the row; voxels adjacent to the previous ones extend their run.
    pub fn push(&mut self, begin: usize, end: usize) {
        match self.runs[self.first..].last_mut() {
            Some(last) if last.end == begin => last.end = end,
            _ => self.runs.push(VoxelRun { row: self.row, begin, end }),
        }
    }
}

impl Components {
    /// Finds the components of a mask of `nz` slices of `ny` rows. `add_runs` is called once for each row `(z, y)`, in
    /// order, and appends the runs of that row.
    pub fn find([nz, ny]: [usize; 2], mut add_runs: impl FnMut([usize; 2], &mut RowRuns)) -> Self {
        let (mut runs, mut sets) = (Vec::new(), DisjointSets::default());
        // Index of the first run of each row, followed by the number of runs.
        let mut begins = Vec::with_capacity(nz * ny + 1);
        begins.push(0);
        for (z, y) in (0..nz).flat_map(|z| (0..ny).map(move |y| (z, y))) {
            let first = runs.len();
            add_runs([z, y], &mut RowRuns { row: [z, y], runs: &mut runs, first });
            begins.push(runs.len());
            sets.grow_to(runs.len());
            for other in preceding_rows(z, y, ny) {
                sets.join_touching(&runs, first..runs.len(), begins[other]..begins[other + 1]);
            }
        }
        Self::number(runs, sets)
    }

    /// Finds the components of the voxels whose label is one of `members`. Different members belong to one mask, so
    /// they connect to each other.
    pub fn from_labels(labels: ArrayView3<i16>, members: &[i16]) -> Self {
        let (nz, ny, _) = labels.dim();
        let mut rows = labels.rows().into_iter();
        Self::find([nz, ny], |_, runs| {
            let mut first = None;
            let row = rows.next().expect("one row of labels for each row of the mask");
            for (x, label) in row.iter().enumerate() {
                match (members.contains(label), first) {
                    (true, None) => first = Some(x),
                    (false, Some(begin)) => {
                        runs.push(begin, x);
                        first = None;
                    }
                    _ => {}
                }
            }
            if let Some(begin) = first {
                runs.push(begin, row.len());
            }
        })
    }

    /// Numbers the components in the order of their first runs and counts their voxels.
    fn number(runs: Vec<VoxelRun>, mut sets: DisjointSets) -> Self {
        let (mut component, mut sizes) = (vec![0; runs.len()], Vec::new());
        for (index, run) in runs.iter().enumerate() {
            let root = sets.root(index);
            if root == index {
                component[index] = sizes.len();
                sizes.push(0);
            } else {
                component[index] = component[root];
            }
            sizes[component[index]] += run.end - run.begin;
        }
        Self { runs, component, sizes }
    }

    /// Returns the number of voxels of each component.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// Returns the runs of the mask in voxel order, each with the index of its component.
    pub fn runs(&self) -> impl Iterator<Item = (VoxelRun, usize)> + '_ {
        self.runs.iter().copied().zip(self.component.iter().copied())
    }
}

/// Returns the indices of the rows that touch row `y` of slice `z` and precede it, in a volume of `ny` rows per slice.
fn preceding_rows(z: usize, y: usize, ny: usize) -> impl Iterator<Item = usize> {
    let in_slice = y.checked_sub(1).map(|y| z * ny + y);
    let below = z.checked_sub(1).map(|z| (y.saturating_sub(1)..(y + 2).min(ny)).map(move |y| z * ny + y));
    in_slice.into_iter().chain(below.into_iter().flatten())
}

/// Disjoint sets of runs, each represented by its first run (union-find with path halving).
#[derive(Default)]
struct DisjointSets {
    parents: Vec<usize>,
}

impl DisjointSets {
    /// Adds sets of one run each, up to `runs` runs in total.
    fn grow_to(&mut self, runs: usize) {
        self.parents.extend(self.parents.len()..runs);
    }

    fn root(&mut self, mut run: usize) -> usize {
        while self.parents[run] != run {
            self.parents[run] = self.parents[self.parents[run]];
            run = self.parents[run];
        }
        run
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.parents[one.max(other)] = one.min(other);
    }

    /// Joins the touching runs of two neighboring rows, including diagonal contact.
    fn join_touching(&mut self, runs: &[VoxelRun], mut row: Range<usize>, mut other: Range<usize>) {
        while !row.is_empty() && !other.is_empty() {
            let (a, b) = (runs[row.start], runs[other.start]);
            if a.begin <= b.end && b.begin <= a.end {
                self.join(row.start, other.start);
            }
            // The run that ends first cannot touch later runs of the other row.
            if a.end < b.end { row.start += 1 } else { other.start += 1 }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    /// Returns a label map with 1 in about one of `every` voxels and 0 elsewhere.
    fn scattered(shape: [usize; 3], every: u64) -> Array3<i16> {
        let is_set = |index: usize| ((index as u64 * 2_654_435_761) >> 7).is_multiple_of(every);
        let labels = (0..shape.iter().product()).map(|index| i16::from(is_set(index))).collect();
        Array3::from_shape_vec(shape, labels).unwrap()
    }

    /// Returns the component sizes in the order of their first voxels, by flood fill.
    fn flooded(mask: &Array3<i16>) -> Vec<usize> {
        let (nz, ny, nx) = mask.dim();
        let mut left = mask.clone();
        let mut sizes = Vec::new();
        for (first, _) in mask.indexed_iter().filter(|(_, label)| **label == 1) {
            let mut queue = vec![first];
            let mut size = 0;
            while let Some((z, y, x)) = queue.pop() {
                if left[(z, y, x)] == 0 {
                    continue;
                }
                left[(z, y, x)] = 0;
                size += 1;
                let near = |at: usize, extent: usize| at.saturating_sub(1)..(at + 2).min(extent);
                for (z, y) in near(z, nz).flat_map(|z| near(y, ny).map(move |y| (z, y))) {
                    queue.extend(near(x, nx).map(|x| (z, y, x)));
                }
            }
            sizes.extend((size > 0).then_some(size));
        }
        sizes
    }

    #[test]
    fn equals_flood_fill() {
        for shape in [[5, 7, 70], [1, 12, 130], [9, 8, 5]] {
            for every in [2, 3, 5, 9, 40] {
                let mask = scattered(shape, every);
                let components = Components::from_labels(mask.view(), &[1]);
                assert_eq!(components.sizes(), flooded(&mask), "{shape:?}, one in {every}");
                let mut counted = vec![0; components.sizes().len()];
                for (VoxelRun { row: [z, y], begin, end }, component) in components.runs() {
                    assert!((begin..end).all(|x| mask[[z, y, x]] == 1));
                    counted[component] += end - begin;
                }
                assert_eq!(counted, components.sizes());
            }
        }
    }

    /// Compares with `label` of scikit-image 0.26.0.
    #[test]
    fn equals_the_reference() {
        let components = Components::from_labels(scattered([6, 10, 70], 7).view(), &[1]);
        assert_eq!((components.sizes().len(), components.sizes().iter().sum::<usize>()), (14, 601));
        assert_eq!(components.sizes()[..12], [43, 90, 93, 100, 96, 93, 66, 1, 10, 1, 1, 5]);
    }

    #[test]
    fn adjacent_parts_of_a_row_form_one_run() {
        let components = Components::find([1, 2], |_, runs| {
            runs.push(3, 64);
            runs.push(64, 70);
        });
        let expected = [[0, 0], [0, 1]].map(|row| (VoxelRun { row, begin: 3, end: 70 }, 0));
        assert_eq!(components.runs().collect::<Vec<_>>(), expected);
        assert_eq!(components.sizes(), [134]);
    }

    #[test]
    fn an_empty_mask_has_no_components() {
        assert!(Components::from_labels(Array3::zeros((2, 3, 4)).view(), &[1]).sizes().is_empty());
        assert!(Components::from_labels(Array3::zeros((0, 0, 0)).view(), &[1]).sizes().is_empty());
    }
}
