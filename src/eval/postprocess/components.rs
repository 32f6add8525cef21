//! Connected components of label maps.

use std::ops::Range;

use ndarray::{ArrayView3, ArrayViewMut3};

/// Sets to `background` all voxels of the union of `members` that are not in its largest connected component.
///
/// Connectivity includes faces, edges and corners, the default of scikit-image's `label` and therefore of nnU-Net
/// (`acvl_utils/morphology/morphology_helper.py`, `remove_all_but_largest_component`). If several components share the
/// largest size, all of them are kept.
pub fn keep_largest(mut labels: ArrayViewMut3<i16>, members: &[i16], background: i16) {
    let mut runs = Runs::find(labels.view(), members);
    let is_kept = runs.in_largest();
    for (run, _) in runs.runs.iter().zip(is_kept).filter(|(_, is_kept)| !is_kept) {
        for x in run.first..run.end {
            labels[[run.z, run.y, x]] = background;
        }
    }
}

/// A run of consecutive mask voxels in a row.
#[derive(Clone, Copy, Debug)]
struct Run {
    z: usize,
    y: usize,
    first: usize,
    /// Exclusive end.
    end: usize,
}

/// A mask as runs, with a union-find forest of the connected components.
struct Runs {
    /// In voxel order.
    runs: Vec<Run>,
    parents: Vec<usize>,
}

impl Runs {
    fn find(labels: ArrayView3<i16>, members: &[i16]) -> Self {
        let (_, rows, _) = labels.dim();
        let mut found = Self { runs: Vec::new(), parents: Vec::new() };
        // Index of the first run of each row.
        let mut begins = vec![0];
        for (row, values) in labels.rows().into_iter().enumerate() {
            let (z, y) = (row / rows, row % rows);
            let mut first = None;
            for (x, label) in values.iter().enumerate() {
                match (members.contains(label), first) {
                    (true, None) => first = Some(x),
                    (false, Some(begin)) => {
                        found.push(Run { z, y, first: begin, end: x });
                        first = None;
                    }
                    _ => {}
                }
            }
            if let Some(first) = first {
                found.push(Run { z, y, first, end: values.len() });
            }
            begins.push(found.runs.len());
            for other in neighbours_before(z, y, rows) {
                found.connect(begins[row]..begins[row + 1], begins[other]..begins[other + 1]);
            }
        }
        found
    }

    fn push(&mut self, run: Run) {
        self.parents.push(self.runs.len());
        self.runs.push(run);
    }

    /// Joins the runs of two rows that touch, including at a corner.
    fn connect(&mut self, row: Range<usize>, other: Range<usize>) {
        let (mut one, mut two) = (row.start, other.start);
        while one < row.end && two < other.end {
            let (a, b) = (self.runs[one], self.runs[two]);
            if a.first <= b.end && b.first <= a.end {
                self.join(one, two);
            }
            // Advance past the run that ends first; the other may touch the next run.
            if a.end < b.end { one += 1 } else { two += 1 }
        }
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.parents[one.max(other)] = one.min(other);
    }

    fn root(&mut self, mut run: usize) -> usize {
        while self.parents[run] != run {
            // Path halving.
            self.parents[run] = self.parents[self.parents[run]];
            run = self.parents[run];
        }
        run
    }

    /// For each run, whether its component has the largest size.
    fn in_largest(&mut self) -> Vec<bool> {
        let roots: Vec<usize> = (0..self.runs.len()).map(|run| self.root(run)).collect();
        let mut sizes = vec![0; self.runs.len()];
        for (run, root) in self.runs.iter().zip(&roots) {
            sizes[*root] += run.end - run.first;
        }
        let largest = sizes.iter().copied().max().unwrap_or(0);
        roots.into_iter().map(|root| sizes[root] == largest).collect()
    }
}

/// Indices of the neighboring rows of row `y` in plane `z` that come before it.
fn neighbours_before(z: usize, y: usize, rows: usize) -> impl Iterator<Item = usize> {
    let beside = y.checked_sub(1).map(|y| z * rows + y);
    let below = z.checked_sub(1).map(|z| (y.saturating_sub(1)..(y + 2).min(rows)).map(move |y| z * rows + y));
    beside.into_iter().chain(below.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, s};

    use super::*;

    #[test]
    fn components_hold_together_by_corners() {
        let mut labels = Array3::<i16>::zeros((4, 4, 6));
        // A diagonal of four voxels, a bar of three and a single one.
        (0..4).for_each(|step| labels[[step, step, step]] = 1);
        labels.slice_mut(s![0, 3, 3..6]).fill(1);
        labels[[3, 0, 5]] = 1;
        let mut expected = Array3::<i16>::zeros((4, 4, 6));
        (0..4).for_each(|step| expected[[step, step, step]] = 1);
        keep_largest(labels.view_mut(), &[1], 0);
        assert_eq!(labels, expected);
    }

    #[test]
    fn components_of_equal_size_all_stay_and_other_labels_are_left_alone() {
        let row = |values: [i16; 9]| Array3::from_shape_vec((1, 1, 9), values.to_vec()).unwrap();
        for (members, expected) in [
            (&[1][..], [1, 1, 0, 1, 1, 0, 7, 2, 0]),
            (&[1, 2], [1, 1, 0, 1, 1, 0, 1, 2, 0]),
            (&[2], [1, 1, 0, 1, 1, 0, 1, 2, 0]),
            (&[1, 2, 0], [1, 1, 0, 1, 1, 0, 1, 2, 0]),
            (&[5], [1, 1, 0, 1, 1, 0, 1, 2, 0]),
        ] {
            let mut labels = row([1, 1, 0, 1, 1, 0, 1, 2, 0]);
            keep_largest(labels.view_mut(), members, 7);
            assert_eq!(labels, row(expected), "{members:?}");
        }
        keep_largest(Array3::zeros((0, 0, 0)).view_mut(), &[1], 0);
    }
}
