//! Two dimensions as three.

/// `(y, x)` or `(z, y, x)` as `(z, y, x)`.
pub fn lift<T: Copy>(axes: &[T], z: T) -> [T; 3] {
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
        assert_eq!(lift(&[5, 7], 1), [1, 5, 7]);
        assert_eq!(lift(&[3, 5, 7], 1), [3, 5, 7]);
    }
}
