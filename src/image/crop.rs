//! Cropping to the nonzero region of an image (nnU-Net v2, `cropping.py`).

use ndarray::{Array3, ArrayView4, Zip};

/// Mask `(z, y, x)` of the voxels where any channel of the `(channel, z, y, x)` image is not 0, with holes filled. A
/// hole is a region of zeros that is not connected to the border through voxel faces.
pub fn nonzero_mask(image: ArrayView4<f32>) -> Array3<bool> {
    let (_, z, y, x) = image.dim();
    let mut mask = Array3::from_elem((z, y, x), false);
    for channel in image.outer_iter() {
        Zip::from(&mut mask).and(channel).par_for_each(|inside, value| *inside |= *value != 0.0);
    }
    fill_holes(&mut mask);
    mask
}

/// Bounding box of the set voxels as `[start, end)` per axis; the whole array if no voxel is set.
pub fn bounding_box(mask: &Array3<bool>) -> [[usize; 2]; 3] {
    let (z, y, x) = mask.dim();
    let mut bounds = [[usize::MAX, 0]; 3];
    for ((k, j), row) in mask.rows().into_iter().enumerate().map(|(row, values)| ((row / y, row % y), values)) {
        let Some(first) = row.iter().position(|inside| *inside) else { continue };
        let last = x - 1 - row.iter().rev().position(|inside| *inside).unwrap_or(0);
        for (axis, (low, high)) in [(k, k), (j, j), (first, last)].into_iter().enumerate() {
            bounds[axis] = [bounds[axis][0].min(low), bounds[axis][1].max(high + 1)];
        }
    }
    if bounds[0][1] == 0 { [[0, z], [0, y], [0, x]] } else { bounds }
}

/// Sets every unset voxel that is not connected to the border (flood fill from the border).
fn fill_holes(mask: &mut Array3<bool>) {
    let (z, y, x) = mask.dim();
    let inside = mask.as_slice_mut().expect("the mask is made in C order");
    if inside.iter().all(|inside| *inside) {
        return;
    }
    let mut outside = vec![false; inside.len()];
    let mut reached = Vec::new();
    let reach = |index: usize, outside: &mut [bool], reached: &mut Vec<usize>| {
        if !inside[index] && !outside[index] {
            outside[index] = true;
            reached.push(index);
        }
    };
    for k in 0..z {
        for j in 0..y {
            let is_face = k == 0 || k == z - 1 || j == 0 || j == y - 1;
            let step = if is_face { 1 } else { (x - 1).max(1) };
            for i in (0..x).step_by(step) {
                reach((k * y + j) * x + i, &mut outside, &mut reached);
            }
        }
    }
    while let Some(index) = reached.pop() {
        let (k, j, i) = (index / (y * x), index / x % y, index % x);
        let neighbors = [
            (i > 0, index.wrapping_sub(1)),
            (i + 1 < x, index + 1),
            (j > 0, index.wrapping_sub(x)),
            (j + 1 < y, index + x),
            (k > 0, index.wrapping_sub(y * x)),
            (k + 1 < z, index + y * x),
        ];
        for (_, neighbor) in neighbors.into_iter().filter(|(exists, _)| *exists) {
            reach(neighbor, &mut outside, &mut reached);
        }
    }
    inside.iter_mut().zip(outside).for_each(|(inside, outside)| *inside = !outside);
}

#[cfg(test)]
mod tests {
    use ndarray::{Array4, s};

    use super::*;

    #[test]
    fn fills_holes_but_not_dents() {
        let mut image = Array4::<f32>::zeros((2, 7, 7, 7));
        image.slice_mut(s![0, 1..6, 1..6, 1..6]).fill(3.0);
        image.slice_mut(s![0, 2..4, 2..4, 2..4]).fill(0.0); // a hole
        image.slice_mut(s![0, 3, 3, 4..6]).fill(0.0); // opens the hole to the right
        let dented = nonzero_mask(image.view());
        assert!(!dented[[2, 2, 2]] && !dented[[3, 3, 5]]);
        image[[1, 3, 3, 5]] = -1.0; // closed by the second channel
        let closed = nonzero_mask(image.view());
        assert!(closed.slice(s![1..6, 1..6, 1..6]).iter().all(|inside| *inside));
        assert_eq!(closed.iter().filter(|inside| **inside).count(), 125);
        assert_eq!(bounding_box(&closed), [[1, 6]; 3]);
    }

    #[test]
    fn keeps_an_empty_image_whole() {
        let mask = nonzero_mask(Array4::zeros((1, 2, 3, 4)).view());
        assert_eq!(bounding_box(&mask), [[0, 2], [0, 3], [0, 4]]);
    }
}
