//! Binary morphology with a ball as structuring element.

use std::ops::Range;

use multiversion::multiversion;

use super::bit_volume::{BitVolume, tail};

/// A ball of voxels with a diameter of `size`, the structuring element of [`Morphology`]; a disk in a single slice.
///
/// Its offsets along each axis are `k - floor((size - 1) / 2)` for `k` in `0..size`, limited to points at most
/// `(size - 1) / 2` from the center. A ball of even size has its center between voxels and therefore shifts its operand
/// by half a voxel, as in nnU-Net: there a radius is any real number, from which scikit-image's `ball` makes a grid of
/// `int(2 * radius + 1)` points. (On that grid, rounding decides points exactly at the radius; here they belong to the ball.
/// scikit-image's `disk` differs in the last column.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ball {
    size: usize,
}

/// The four binary morphology operators (batchgeneratorsv2 `ApplyRandomBinaryOperatorTransform`). Voxels outside the
/// patch have no influence: they are unset for a dilation and set for an erosion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Morphology {
    Dilation,
    Erosion,
    /// Dilation followed by erosion: fills gaps.
    Closing,
    /// Erosion followed by dilation: removes thin structures.
    Opening,
}

impl Morphology {
    /// All operators.
    pub(super) const ALL: [Self; 4] = [Self::Dilation, Self::Erosion, Self::Closing, Self::Opening];

    /// Applies the operator.
    pub(super) fn apply(self, set: &BitVolume, ball: Ball) -> BitVolume {
        match self {
            Self::Dilation => dilate(set, ball),
            Self::Erosion => erode(set, ball),
            Self::Closing => erode(&dilate(set, ball), ball),
            Self::Opening => dilate(&erode(set, ball), ball),
        }
    }
}

/// Padding voxels at either end of a row, at least the reach of the largest ball.
const MARGIN: usize = Ball::MAX_SIZE / 2;

impl Ball {
    /// Diameter of the largest ball: nnU-Net's largest radius is 8.
    pub(super) const MAX_SIZE: usize = 17;

    /// Creates the ball that nnU-Net uses for a radius of 1 to 8 voxels.
    ///
    /// # Panics
    /// Panics if the radius is out of range.
    pub(super) fn new(radius: f64) -> Self {
        assert!((1.0..=8.0).contains(&radius), "a ball of radius {radius}");
        Self { size: (2.0 * radius + 1.0) as usize }
    }

    /// Returns the extent along each axis, in voxels.
    #[cfg(test)]
    pub(super) fn size(self) -> usize {
        self.size
    }

    /// Returns the reach of the ball towards lower coordinates.
    fn before(self) -> usize {
        (self.size - 1) / 2
    }

    /// Returns the rows of the ball, for a volume of `nz` slices.
    fn rows(self, nz: usize) -> impl Iterator<Item = Row> {
        // In a single slice, the disk through the center of the ball.
        let slices = if nz == 1 { self.before()..self.before() + 1 } else { 0..self.size };
        let squared = move |k: usize| (2 * k).abs_diff(self.size - 1).pow(2);
        let of_slice = move |z: usize| if nz == 1 { 0 } else { squared(z) };
        slices.flat_map(move |z| {
            (0..self.size).filter_map(move |y| {
                let rest = (self.size - 1).pow(2).checked_sub(of_slice(z) + squared(y))?;
                let cut = (0..self.size.div_ceil(2)).find(|&x| squared(x) <= rest)?;
                Some(Row { z, y, cut })
            })
        })
    }
}

/// A row of a ball, along x.
struct Row {
    /// Position within the ball.
    z: usize,
    y: usize,
    /// Voxels missing at either end, compared to the ball's diameter.
    cut: usize,
}

fn erode(set: &BitVolume, ball: Ball) -> BitVolume {
    dilate(&set.complement(), ball).complement()
}

/// Sets each voxel for which the ball around it contains a set voxel.
///
/// The rows of the ball have few different lengths. For each length, all rows of the volume are dilated along x once,
/// by shifting whole words; the rows of the ball then only need to be combined with OR.
fn dilate(set: &BitVolume, ball: Ball) -> BitVolume {
    let [nz, ny, nx] = set.shape();
    let mut dilated = BitVolume::empty(set.shape());
    if set.is_empty() {
        return dilated;
    }
    let (before, row, plane) = (ball.before(), set.row(), ny * set.row());
    let is_blank = |plane: &[u64]| plane.iter().all(|word| *word == 0);
    let is_blank: Vec<bool> = set.words().chunks_exact(plane).map(is_blank).collect();
    for cut in 0..ball.size.div_ceil(2) {
        let mut rows = ball.rows(nz).filter(|row| row.cut == cut).peekable();
        if rows.peek().is_none() {
            continue;
        }
        let along_x = dilate_rows(set, MARGIN + cut - before, ball.size - 2 * cut, nx);
        for Row { z, y, .. } in rows {
            let (z, from_z) = overlap(z, before, nz);
            let (y, from_y) = overlap(y, before, ny);
            for (z, from_z) in z.zip(from_z).filter(|(_, from)| !is_blank[*from]) {
                let to = &mut dilated.words_mut()[z * plane..][y.start * row..y.end * row];
                join(to, &along_x[from_z * plane..][from_y.start * row..from_y.end * row]);
            }
        }
    }
    dilated
}

/// Returns the positions of an axis that have a neighbor at offset `k - before`, and these neighbors.
fn overlap(k: usize, before: usize, extent: usize) -> (Range<usize>, Range<usize>) {
    let (down, up) = (before.saturating_sub(k).min(extent), k.saturating_sub(before).min(extent));
    (down..extent - up, up..extent - down)
}

/// Sets each voxel of a row if any of the `length` voxels at offsets from `first - MARGIN` on is set.
fn dilate_rows(set: &BitVolume, first: usize, length: usize, nx: usize) -> Vec<u64> {
    let mut dilated = vec![0; set.words().len()];
    let words = (nx + 2 * MARGIN).div_ceil(64);
    let doublings = length.ilog2();
    let (mut joined, mut shifted) = (vec![0; words], vec![0; words]);
    let mut join_shifted = |joined: &mut [u64], by: usize| {
        shift_down(joined, by, &mut shifted);
        joined.iter_mut().zip(&shifted).for_each(|(joined, shifted)| *joined |= shifted);
    };
    for (row, target) in set.words().chunks_exact(set.row()).zip(dilated.chunks_exact_mut(set.row())) {
        if row.iter().all(|word| *word == 0) {
            continue;
        }
        joined.fill(0);
        for (index, word) in row.iter().enumerate() {
            joined[index] |= word << MARGIN;
            if let Some(next) = joined.get_mut(index + 1) {
                *next |= word >> (64 - MARGIN);
            }
        }
        // OR each bit with the next one, then the next 2, 4, ..., and finally up to the requested length.
        (0..doublings).for_each(|doubling| join_shifted(&mut joined, 1 << doubling));
        join_shifted(&mut joined, length - (1 << doublings));
        shift_down(&joined, first, target);
        if let Some(last) = target.last_mut() {
            *last &= tail(nx);
        }
    }
    dilated
}

/// Shifts bits towards the start by less than a word, as far as `shifted` has room.
fn shift_down(bits: &[u64], by: usize, shifted: &mut [u64]) {
    if by == 0 {
        return shifted.copy_from_slice(bits);
    }
    for (index, shifted) in shifted.iter_mut().enumerate() {
        let next = bits.get(index + 1).copied().unwrap_or(0);
        *shifted = bits[index] >> by | next << (64 - by);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn join(to: &mut [u64], from: &[u64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to |= from);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ellipsoids and scattered voxels.
    fn set(shape: [usize; 3]) -> BitVolume {
        let [nz, ny, nx] = shape;
        let mut labels = vec![0; nz * ny * nx];
        for (index, label) in labels.iter_mut().enumerate() {
            let at = [index / (ny * nx), index / nx % ny, index % nx].map(|at| at as i64);
            let is_within = |centre: [i64; 3], weights: [i64; 3], bound: i64| {
                (0..3).map(|axis| weights[axis] * (at[axis] - centre[axis]).pow(2)).sum::<i64>() <= bound
            };
            let is_scattered = (index as u64 * 2_654_435_761).is_multiple_of(211);
            let first = is_within([9, 10, 20], [2, 1, 1], 72);
            let second = is_within([12, 12, 50], [1, 1, 2], 90) && !is_within([12, 12, 50], [1, 1, 1], 16);
            *label = i16::from(first || second || is_scattered);
        }
        BitVolume::from_label(&labels, shape, 1)
    }

    /// 64-bit FNV-1a of one byte per voxel.
    fn hash(set: &BitVolume) -> u64 {
        let mut voxels = vec![0.0; set.shape().iter().product()];
        set.write_to(&mut voxels);
        voxels.iter().fold(0xcbf2_9ce4_8422_2325, |hash, voxel| (hash ^ *voxel as u64).wrapping_mul(0x0100_0000_01b3))
    }

    /// Counts and hashes of the results of batchgeneratorsv2 0.3.6 and scikit-image 0.26.0 for the same set and `ball`.
    #[test]
    fn the_operators_match_the_reference() {
        let set = set([18, 22, 70]);
        assert_eq!(set.count(), 3937);
        for (radius, size, expected) in [
            (
                1.26,
                3,
                [
                    (5992, 0x47c4_6f81_de61_4881),
                    (2487, 0x5324_946d_7cc3_afe6),
                    (3972, 0xee7b_b3a8_05ed_ba05),
                    (3792, 0x5603_ad78_4770_1ed5),
                ],
            ),
            (
                1.96,
                4,
                [
                    (5988, 0x522e_f687_229f_0ae1),
                    (2702, 0x0015_605b_c4d3_257d),
                    (4130, 0x46aa_d894_fb81_e615),
                    (3961, 0x0585_d043_a10f_9ba0),
                ],
            ),
            (
                2.09,
                5,
                [
                    (9658, 0xf140_d27a_0618_a70d),
                    (1259, 0x2411_1d9e_f8a6_38d8),
                    (4165, 0xb9c8_0981_bf6b_330e),
                    (3612, 0x97c6_2713_fbf8_6c97),
                ],
            ),
            (
                3.96,
                8,
                [
                    (17052, 0xfef8_5026_40c8_f8cb),
                    (333, 0x46eb_701d_28ea_6f76),
                    (5095, 0x35c6_9a85_dea8_1ff4),
                    (1972, 0x09d2_451b_e3f6_3c25),
                ],
            ),
            (
                5.16,
                11,
                [
                    (24020, 0x6252_9ac8_8e9f_9935),
                    (39, 0xd4cc_8a77_c1a6_56bc),
                    (9170, 0xda56_7bed_64fa_0c7d),
                    (1585, 0xe0cd_cd1f_f577_05a4),
                ],
            ),
            (
                6.27,
                13,
                [
                    (25723, 0xb735_9862_c4bb_3d7a),
                    (1, 0x32ee_866f_3cc5_98f4),
                    (16591, 0xe698_5a12_dfdd_4662),
                    (925, 0x5583_3f86_d22e_7c88),
                ],
            ),
            (
                7.53,
                16,
                [
                    (26897, 0xe17f_b8d5_f309_bf8a),
                    (0, 0x1d25_b7a7_824c_2ec5),
                    (19582, 0xf803_9365_d700_9f85),
                    (0, 0x1d25_b7a7_824c_2ec5),
                ],
            ),
        ] {
            let ball = Ball::new(radius);
            assert_eq!(ball.size(), size);
            let found = Morphology::ALL.map(|operator| operator.apply(&set, ball));
            assert_eq!(found.each_ref().map(|set| (set.count(), hash(set))), expected, "radius {radius}");
        }
    }

    /// Compares with a voxel-by-voxel implementation of the definition.
    #[test]
    fn dilation_matches_its_definition() {
        for shape in [[7, 9, 66], [1, 20, 30], [2, 3, 4]] {
            let set = set(shape);
            for radius in [1.0, 1.5, 2.7, 4.2, 7.9, 8.0] {
                let ball = Ball::new(radius);
                let middle = (ball.size() as f64 - 1.0) / 2.0;
                let offsets = |k: usize| k as isize - ((ball.size() - 1) / 2) as isize;
                let covers = |[k, j, i]: [usize; 3]| {
                    let z = if shape[0] == 1 { 0.0 } else { (k as f64 - middle).powi(2) };
                    let is_there = shape[0] > 1 || offsets(k) == 0;
                    is_there && z + (j as f64 - middle).powi(2) + (i as f64 - middle).powi(2) <= middle.powi(2)
                };
                let dilated = Morphology::Dilation.apply(&set, ball);
                let all = 0..ball.size();
                let ball: Vec<[usize; 3]> = (all.clone())
                    .flat_map(|k| all.clone().flat_map(move |j| (0..17).map(move |i| [k, j, i])))
                    .filter(|at| at[2] < all.end && covers(*at))
                    .collect();
                for index in 0..shape.iter().product() {
                    let at = [index / (shape[1] * shape[2]), index / shape[2] % shape[1], index % shape[2]];
                    let meets = ball.iter().any(|offset| {
                        let seen: [isize; 3] = std::array::from_fn(|axis| at[axis] as isize + offsets(offset[axis]));
                        let is_inside = (0..3).all(|axis| (0..shape[axis] as isize).contains(&seen[axis]));
                        is_inside && set.contains(seen.map(|at| at as usize))
                    });
                    assert_eq!(dilated.contains(at), meets, "{shape:?}, radius {radius}, at {at:?}");
                }
            }
        }
    }

    #[test]
    fn erosion_does_not_start_at_the_border() {
        let all = BitVolume::empty([5, 6, 80]).complement();
        assert_eq!(Morphology::Erosion.apply(&all, Ball::new(8.0)), all);
        let none = all.complement();
        assert_eq!(Morphology::Closing.apply(&none, Ball::new(3.0)), none);
    }
}
