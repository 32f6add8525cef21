//! Random morphological errors of the previous stage: classes that are too large, too small or too smooth.

use std::ops::Range;

use rand::Rng;
use rand::seq::SliceRandom;

use super::{Ball, BitVolume, Morphology};
use crate::augment::distributions::{chance, uniform};
use nnunet_core::rng::Stream;

/// Dilates, erodes, closes or opens classes with a ball (batchgeneratorsv2 `ApplyRandomBinaryOperatorTransform`).
///
/// Classes are processed in random order. With probability `per_label`, a class gets one of the four operators, chosen
/// uniformly, with a ball radius drawn uniformly from `radius`, in voxels, within 1 to 8. Voxels gained by a class are
/// removed from the others.
#[derive(Clone, Debug)]
pub struct RandomBinaryOperator {
    /// Radius of the ball in voxels.
    pub radius: Range<f64>,
    /// Probability of changing each class.
    pub per_label: f64,
}

impl RandomBinaryOperator {
    /// Changes the classes in place.
    pub fn apply(&self, classes: &mut [BitVolume], rng: &mut Stream) {
        let mut order: Vec<usize> = (0..classes.len()).collect();
        order.shuffle(rng);
        for class in order {
            if chance(self.per_label, rng) {
                let operator = Morphology::ALL[rng.random_range(0..Morphology::ALL.len())];
                replace(classes, class, operator.apply(&classes[class], Ball::new(uniform(&self.radius, rng))));
            }
        }
    }
}

/// Replaces the voxels of a class; voxels it gains are removed from the other classes.
fn replace(classes: &mut [BitVolume], class: usize, by: BitVolume) {
    let mut gained = by.clone();
    gained.subtract(&classes[class]);
    let others = classes.iter_mut().enumerate().filter(|(other, _)| *other != class);
    others.for_each(|(_, other)| other.subtract(&gained));
    classes[class] = by;
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnunet_core::rng::{Purpose, stream};

    fn transform() -> RandomBinaryOperator {
        RandomBinaryOperator { radius: 1.0..8.0, per_label: 0.5 }
    }

    /// A cube of label 1 beside one of label 2.
    fn classes() -> Vec<BitVolume> {
        let label = |index: usize| {
            let [z, y, x] = [index / 576, index / 24 % 24, index % 24];
            let is_inside = (8..16).contains(&z) && (8..16).contains(&y);
            match x {
                4..12 if is_inside => 1,
                12..20 if is_inside => 2,
                _ => 0,
            }
        };
        let labels: Vec<i16> = (0..24 * 24 * 24).map(label).collect();
        [1, 2].map(|label| BitVolume::from_label(&labels, [24; 3], label)).to_vec()
    }

    #[test]
    fn each_class_is_changed_half_of_the_time_and_classes_never_overlap() {
        let original = classes();
        let (mut changed, mut grown, mut shrunk) = (0, 0, 0);
        for index in 0..400 {
            let mut classes = classes();
            transform().apply(&mut classes, &mut stream(1, Purpose::Augment, 0, index));
            let mut rest = classes[0].clone();
            rest.subtract(&classes[1]);
            assert_eq!(rest, classes[0], "no voxel is of two classes");
            changed += usize::from(classes != original);
            let count: usize = classes.iter().map(BitVolume::count).sum();
            grown += usize::from(count > 1024);
            shrunk += usize::from(count < 1024);
        }
        // Opening and closing change only the corners of a cube; a quarter of the classes is unchanged.
        assert!((0.65..0.80).contains(&(f64::from(changed as u32) / 400.0)), "{changed}");
        assert!(grown > 60 && shrunk > 100, "{grown} {shrunk}");
    }

    #[test]
    fn what_a_class_gains_another_loses() {
        let mut classes = classes();
        let grown = Morphology::Dilation.apply(&classes[0], Ball::new(2.0));
        let expected = {
            let mut other = classes[1].clone();
            other.subtract(&grown);
            other
        };
        replace(&mut classes, 0, grown.clone());
        assert_eq!(classes, [grown, expected]);
        // Lost voxels are not assigned to another class.
        let shrunk = Morphology::Erosion.apply(&classes[0], Ball::new(2.0));
        let other = classes[1].clone();
        replace(&mut classes, 0, shrunk.clone());
        assert_eq!(classes, [shrunk, other]);
    }

    #[test]
    fn a_probability_of_zero_changes_nothing() {
        let mut classes = classes();
        let never = RandomBinaryOperator { per_label: 0.0, ..transform() };
        (0..50).for_each(|index| never.apply(&mut classes, &mut stream(1, Purpose::Augment, 0, index)));
        assert_eq!(classes, self::classes());
    }
}
