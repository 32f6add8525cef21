//! Connected components of a set of voxels.

use super::bits::BitVolume;

/// The connected components of a set, ordered by their first voxel; voxels are connected if they share a face, edge or
/// corner (scikit-image `label` with full connectivity).
#[derive(Clone, Debug)]
pub struct Components {
    runs: Vec<VoxelRun>,
    /// Component index of each run.
    component: Vec<usize>,
    /// Number of voxels of each component.
    sizes: Vec<usize>,
}

/// A maximal run of consecutive set voxels in a row.
#[derive(Clone, Copy, Debug)]
struct VoxelRun {
    row: [usize; 2],
    begin: usize,
    end: usize,
}

impl Components {
    /// Finds the connected components of a set.
    pub fn find(set: &BitVolume) -> Self {
        let [nz, ny, _] = set.shape();
        let mut runs = Vec::new();
        // Index of the first run of each row, followed by the total number of runs.
        let mut begins = Vec::with_capacity(nz * ny + 1);
        for row in (0..nz).flat_map(|z| (0..ny).map(move |y| [z, y])) {
            begins.push(runs.len());
            add_runs(set.words_of(row[0], row[1]), row, &mut runs);
        }
        begins.push(runs.len());

        let mut forest = DisjointSets((0..runs.len()).collect());
        for (z, y) in (0..nz).flat_map(|z| (0..ny).map(move |y| (z, y))) {
            let runs_of = |z: usize, y: usize| begins[z * ny + y]..begins[z * ny + y + 1];
            // Half of the neighboring rows: the preceding ones.
            let above =
                z.checked_sub(1).into_iter().flat_map(|z| (y.saturating_sub(1)..(y + 2).min(ny)).map(move |y| (z, y)));
            let beside = y.checked_sub(1).map(|y| (z, y));
            for (other_z, other_y) in above.chain(beside) {
                forest.join_touching(&runs, runs_of(z, y), runs_of(other_z, other_y));
            }
        }

        let (mut component, mut sizes) = (vec![0; runs.len()], Vec::new());
        for (number, run) in runs.iter().enumerate() {
            let root = forest.root(number);
            if root == number {
                component[number] = sizes.len();
                sizes.push(0);
            } else {
                component[number] = component[root];
            }
            sizes[component[number]] += run.end - run.begin;
        }
        Self { runs, component, sizes }
    }

    /// Returns the number of voxels of each component.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// Removes a component from a set.
    pub fn remove(&self, component: usize, set: &mut BitVolume) {
        let runs = self.runs.iter().zip(&self.component).filter(|(_, of)| **of == component);
        runs.for_each(|(run, _)| set.remove(run.row, run.begin, run.end));
    }
}

/// Appends the runs of a row.
fn add_runs(words: &[u64], row: [usize; 2], runs: &mut Vec<VoxelRun>) {
    let first = runs.len();
    for (index, &word) in words.iter().enumerate() {
        let (mut word, mut at) = (word, 64 * index);
        while word != 0 {
            let skipped = word.trailing_zeros();
            word >>= skipped;
            let length = word.trailing_ones();
            let begin = at + skipped as usize;
            let end = begin + length as usize;
            match runs[first..].last_mut() {
                // Continues the run of the previous word.
                Some(last) if last.end == begin => last.end = end,
                _ => runs.push(VoxelRun { row, begin, end }),
            }
            word = word.checked_shr(length).unwrap_or(0);
            at = end;
        }
    }
}

/// Disjoint sets of runs, each represented by its first run (union-find).
struct DisjointSets(Vec<usize>);

impl DisjointSets {
    fn root(&mut self, mut run: usize) -> usize {
        while self.0[run] != run {
            self.0[run] = self.0[self.0[run]];
            run = self.0[run];
        }
        run
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.0[one.max(other)] = one.min(other);
    }

    /// Joins touching runs of two neighboring rows, including diagonal contact.
    fn join_touching(&mut self, runs: &[VoxelRun], mut row: std::ops::Range<usize>, mut other: std::ops::Range<usize>) {
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
    use super::*;

    /// Returns a set with about one in `every` voxels.
    fn scattered(shape: [usize; 3], every: u64) -> BitVolume {
        let is_set = |index: usize| ((index as u64 * 2_654_435_761) >> 7).is_multiple_of(every);
        let labels: Vec<i16> = (0..shape.iter().product()).map(|index| i16::from(is_set(index))).collect();
        BitVolume::from_label(&labels, shape, 1)
    }

    /// Returns the component sizes in the order of their first voxels, by flood fill.
    fn flooded(set: &BitVolume) -> Vec<usize> {
        let [nz, ny, nx] = set.shape();
        let mut left = set.clone();
        let mut sizes = Vec::new();
        for first in (0..nz * ny * nx).map(|index| [index / (ny * nx), index / nx % ny, index % nx]) {
            if !left.contains(first) {
                continue;
            }
            let mut queue = vec![first];
            let mut size = 0;
            while let Some([z, y, x]) = queue.pop() {
                if !left.contains([z, y, x]) {
                    continue;
                }
                left.remove([z, y], x, x + 1);
                size += 1;
                let near = |at: usize, extent: usize| at.saturating_sub(1)..(at + 2).min(extent);
                for (z, y) in near(z, nz).flat_map(|z| near(y, ny).map(move |y| (z, y))) {
                    queue.extend(near(x, nx).map(|x| [z, y, x]));
                }
            }
            sizes.push(size);
        }
        sizes
    }

    #[test]
    fn components_are_those_of_flooding() {
        for shape in [[5, 7, 70], [1, 12, 130], [9, 8, 5]] {
            for every in [2, 3, 5, 9, 40] {
                let mut set = scattered(shape, every);
                let components = Components::find(&set);
                assert_eq!(components.sizes(), flooded(&set), "{shape:?}, one in {every}");
                for (number, size) in components.sizes().iter().enumerate() {
                    let before = set.count();
                    components.remove(number, &mut set);
                    assert_eq!(before - set.count(), *size);
                }
                assert!(set.is_empty());
            }
        }
    }

    /// Compares with `label` of scikit-image 0.26.0.
    #[test]
    fn components_are_those_of_the_reference() {
        let components = Components::find(&scattered([6, 10, 70], 7));
        assert_eq!((components.sizes().len(), components.sizes().iter().sum::<usize>()), (14, 601));
        assert_eq!(components.sizes()[..12], [43, 90, 93, 100, 96, 93, 66, 1, 10, 1, 1, 5]);
    }

    #[test]
    fn a_run_may_cross_words_and_fill_them() {
        let all = BitVolume::empty([2, 1, 200]).complement();
        assert_eq!(Components::find(&all).sizes(), [400]);
        assert!(Components::find(&all.complement()).sizes().is_empty());
    }
}
