//! Conversion between NIfTI affines (RAS, mm) and [`Geometry`] (LPS, mm).

use crate::Geometry;

/// First three rows of a 4 x 4 affine from voxel `(i, j, k)` = (x, y, z) to RAS in mm.
pub type Affine = [[f64; 4]; 3];

/// Affine of a unit quaternion, given by its last three components, and the voxel sizes; z is also multiplied by `qfac`
/// (nifti1.h, method 2).
pub fn from_quaternion([b, c, d]: [f64; 3], offset: [f64; 3], size: [f64; 3], qfac: f64) -> Affine {
    let squares = b * b + c * c + d * d;
    // Rounding may push the norm above 1; the rotation is then by 180 degrees.
    let (a, b, c, d) = if squares > 1.0 {
        let norm = squares.sqrt();
        (0.0, b / norm, c / norm, d / norm)
    } else {
        ((1.0 - squares).sqrt(), b, c, d)
    };
    let rotation = [
        [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
        [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
        [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ];
    let scale = [size[0], size[1], size[2] * qfac];
    std::array::from_fn(|row| {
        let [x, y, z]: [f64; 3] = std::array::from_fn(|column| rotation[row][column] * scale[column]);
        [x, y, z, offset[row]]
    })
}

/// Last three components of the quaternion of a rotation, and `qfac`: -1 if the z axis must be flipped first.
pub fn to_quaternion(direction: [[f64; 3]; 3]) -> ([f64; 3], f64) {
    let mut m = direction;
    let qfac = if determinant(m) < 0.0 { -1.0 } else { 1.0 };
    m.iter_mut().for_each(|row| row[2] *= qfac);
    // Divides by the largest component, which is at least 1/2 (Shepperd 1978).
    let trace = m[0][0] + m[1][1] + m[2][2];
    let largest = (0..3).fold(3, |best, i| {
        let size = |i: usize| if i == 3 { trace } else { m[i][i] };
        if size(i) > size(best) { i } else { best }
    });
    let mut q = [0.0; 4]; // b, c, d, a
    if largest == 3 {
        q[3] = (1.0 + trace).sqrt() / 2.0;
        q[0] = (m[2][1] - m[1][2]) / (4.0 * q[3]);
        q[1] = (m[0][2] - m[2][0]) / (4.0 * q[3]);
        q[2] = (m[1][0] - m[0][1]) / (4.0 * q[3]);
    } else {
        let (i, j, k) = (largest, (largest + 1) % 3, (largest + 2) % 3);
        q[i] = (1.0 + m[i][i] - m[j][j] - m[k][k]).sqrt() / 2.0;
        q[j] = (m[j][i] + m[i][j]) / (4.0 * q[i]);
        q[k] = (m[k][i] + m[i][k]) / (4.0 * q[i]);
        q[3] = (m[k][j] - m[j][k]) / (4.0 * q[i]);
    }
    let sign = if q[3] < 0.0 { -1.0 } else { 1.0 };
    ([q[0] * sign, q[1] * sign, q[2] * sign], qfac)
}

/// Whether the columns are orthonormal, so that a quaternion can represent them.
pub fn is_orthonormal(direction: [[f64; 3]; 3]) -> bool {
    let column = |c: usize| direction.map(|row| row[c]);
    let dot = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    (0..3).all(|a| (0..3).all(|b| (dot(column(a), column(b)) - f64::from(u8::from(a == b))).abs() < 1e-4))
}

/// Geometry of an affine; voxel sizes are the lengths of its columns. Shear stays in the direction.
///
/// Returns `None` if a column has length 0.
pub fn to_geometry(affine: Affine) -> Option<Geometry> {
    let mut geometry = Geometry::default();
    for axis in 0..3 {
        let length = affine.iter().map(|row| row[axis] * row[axis]).sum::<f64>().sqrt();
        if length == 0.0 {
            return None;
        }
        geometry.spacing[2 - axis] = length;
        for (row, entries) in affine.iter().enumerate() {
            geometry.direction[row][axis] = entries[axis] / length * to_lps(row);
        }
    }
    geometry.origin = std::array::from_fn(|row| affine[row][3] * to_lps(row));
    Some(geometry)
}

/// The inverse of [`to_geometry`].
pub fn from_geometry(geometry: &Geometry) -> Affine {
    std::array::from_fn(|row| {
        let [x, y, z]: [f64; 3] =
            std::array::from_fn(|axis| geometry.direction[row][axis] * geometry.spacing[2 - axis] * to_lps(row));
        [x, y, z, geometry.origin[row] * to_lps(row)]
    })
}

/// Sign of a coordinate between RAS and LPS, which differ in the first two coordinates.
pub fn to_lps(row: usize) -> f64 {
    if row < 2 { -1.0 } else { 1.0 }
}

fn determinant(m: [[f64; 3]; 3]) -> f64 {
    let minor = |a: usize, b: usize| m[1][a] * m[2][b] - m[1][b] * m[2][a];
    m[0][0] * minor(1, 2) - m[0][1] * minor(0, 2) + m[0][2] * minor(0, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rotations by every multiple of 30 degrees about each axis, with and without a flip.
    fn directions() -> Vec<[[f64; 3]; 3]> {
        let mut all = Vec::new();
        for step in 0..12 {
            let (s, c) = (f64::from(step) * std::f64::consts::PI / 6.0).sin_cos();
            for rotation in [
                [[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]],
                [[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]],
                [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]],
            ] {
                all.push(rotation);
                all.push(rotation.map(|[x, y, z]| [x, y, -z]));
            }
        }
        all
    }

    #[test]
    fn quaternions_and_geometries_are_inverses() {
        for direction in directions() {
            assert!(is_orthonormal(direction));
            let (quaternion, qfac) = to_quaternion(direction);
            let affine = from_quaternion(quaternion, [1.0, 2.0, 3.0], [0.5, 2.0, 3.0], qfac);
            let geometry = to_geometry(affine).unwrap();
            for (row, expected) in direction.iter().enumerate() {
                for (axis, expected) in expected.iter().enumerate() {
                    let ours = geometry.direction[row][axis] * to_lps(row);
                    assert!((ours - expected).abs() < 1e-9, "{direction:?}");
                }
            }
            let back = from_geometry(&geometry);
            assert!(back.iter().flatten().zip(affine.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-9));
        }
    }
}
