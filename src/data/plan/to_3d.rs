//! Padding of 2D shapes to 3D.

/// Converts `(y, x)` or `(z, y, x)` to `(z, y, x)`, with `z` as the first entry for 2D.
pub fn to_3d<T: Copy>(axes: &[T], z: T) -> [T; 3] {
    let mut lifted = [z; 3];
    for (to, from) in lifted.iter_mut().rev().zip(axes.iter().rev()) {
        *to = *from;
    }
    lifted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_dimensions_are_three_with_one_slice() {
        assert_eq!(to_3d(&[5, 7], 1), [1, 5, 7]);
        assert_eq!(to_3d(&[3, 5, 7], 1), [3, 5, 7]);
    }
}
