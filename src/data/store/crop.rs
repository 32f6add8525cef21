//! Copying boxes out of arrays, with padding.

use std::ops::Range;

/// Copies the box `lo .. lo + target_shape` of a C-order `(z, y, x)` array into a C-order target, one row at a time;
/// voxels outside the source become `padding`.
///
/// # Panics
/// Panics if the length of a slice does not match its shape.
pub fn copy_box<T: Copy>(
    source: &[T],
    source_shape: [usize; 3],
    lo: [isize; 3],
    target: &mut [T],
    target_shape: [usize; 3],
    padding: T,
) {
    assert_eq!(source.len(), source_shape.iter().product::<usize>());
    assert_eq!(target.len(), target_shape.iter().product::<usize>());
    let overlap: [Range<usize>; 3] =
        std::array::from_fn(|axis| overlap(lo[axis], target_shape[axis], source_shape[axis]));
    if (0..3).any(|axis| overlap[axis].len() < target_shape[axis]) {
        target.fill(padding);
    }
    let [zs, ys, xs] = overlap;
    if zs.is_empty() || ys.is_empty() || xs.is_empty() {
        return;
    }
    // Within the overlap, every source index is at least 0 and below the source extent.
    let source_index = |axis: usize, index: usize| lo[axis].wrapping_add_unsigned(index) as usize;
    let (x, width) = (source_index(2, xs.start), xs.len());
    for z in zs {
        for y in ys.clone() {
            let from = (source_index(0, z) * source_shape[1] + source_index(1, y)) * source_shape[2] + x;
            let to = (z * target_shape[1] + y) * target_shape[2] + xs.start;
            target[to..to + width].copy_from_slice(&source[from..from + width]);
        }
    }
}

/// Returns the target indices along one axis that are inside the source.
fn overlap(lo: isize, target: usize, source: usize) -> Range<usize> {
    let begin = lo.min(0).unsigned_abs().min(target);
    let left = source.saturating_sub(lo.max(0).unsigned_abs());
    begin..begin.max(left.saturating_add(begin).min(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overlap_is_what_both_have() {
        assert_eq!(overlap(0, 4, 4), 0..4);
        assert_eq!(overlap(2, 4, 4), 0..2);
        assert_eq!(overlap(-1, 4, 9), 1..4);
        assert_eq!(overlap(-1, 6, 4), 1..5);
        assert!(overlap(-9, 4, 4).is_empty());
        assert!(overlap(4, 4, 4).is_empty());
        assert!(overlap(isize::MAX, 4, 4).is_empty());
        assert!(overlap(isize::MIN, 4, 4).is_empty());
    }
}
