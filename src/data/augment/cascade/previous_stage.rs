//! One-hot encoding of the previous stage's label map, and random errors added to it.

use std::ops::Range;

use nnunet_core::rng::Stream;
use rand::Rng;
use rand::seq::SliceRandom;

use super::bit_volume::BitVolume;
use super::morphology::{Ball, Morphology};
use crate::augment::distributions::{chance, uniform};

/// Encodes the previous stage's segmentation as one channel per foreground class and augments the channels.
///
/// Follows the last transforms of nnU-Net v2 in a cascade (`nnUNetTrainer.get_training_transforms`): after mirroring
/// and masking, `MoveSegAsOneHotToDataTransform`; then `RandomBinaryOperator` with probability 0.4 and
/// `RemoveRandomComponent` with probability 0.2.
#[derive(Clone, Debug)]
pub struct PreviousStage {
    /// Foreground classes in channel order.
    classes: Vec<i16>,
    /// `None` leaves the channels as the previous stage predicted them.
    augmentation: Option<Augmentation>,
}

#[derive(Clone, Debug)]
struct Augmentation {
    operator: RandomBinaryOperator,
    operator_probability: f64,
    removal: RemoveRandomComponent,
    removal_probability: f64,
}

impl PreviousStage {
    /// Creates the encoding without augmentation, for validation.
    pub fn new(classes: Vec<i16>) -> Self {
        Self { classes, augmentation: None }
    }

    /// Creates the encoding with nnU-Net's augmentation, for training.
    pub fn nnunet(classes: Vec<i16>) -> Self {
        let augmentation = Augmentation {
            operator: RandomBinaryOperator { radius: 1.0..8.0, per_label: 0.5 },
            operator_probability: 0.4,
            removal: RemoveRandomComponent { smaller_than: 0.15, per_label: 0.5 },
            removal_probability: 0.2,
        };
        Self { classes, augmentation: Some(augmentation) }
    }

    /// Returns the number of channels added to those of the image.
    pub fn num_channels(&self) -> usize {
        self.classes.len()
    }

    /// Returns the channels of a label map, `(z, y, x)` in C order.
    ///
    /// # Panics
    /// Panics if the number of labels differs from the number of voxels.
    pub fn one_hot(&self, labels: &[i16], shape: [usize; 3], rng: &mut Stream) -> Vec<BitVolume> {
        let mut classes: Vec<BitVolume> =
            self.classes.iter().map(|class| BitVolume::from_label(labels, shape, *class)).collect();
        if let Some(Augmentation { operator, operator_probability, removal, removal_probability }) = &self.augmentation
        {
            if chance(*operator_probability, rng) {
                operator.apply(&mut classes, rng);
            }
            if chance(*removal_probability, rng) {
                removal.apply(&mut classes, rng);
            }
        }
        classes
    }
}

/// Dilates, erodes, closes or opens classes with a ball (batchgeneratorsv2 `ApplyRandomBinaryOperatorTransform`).
///
/// Classes are processed in random order. With probability `per_label`, a class gets one of the four operators, chosen
/// uniformly, with a ball radius drawn uniformly from `radius`, in voxels, within 1 to 8. Voxels gained by a class are
/// removed from the others.
#[derive(Clone, Debug)]
struct RandomBinaryOperator {
    /// Radius of the ball in voxels.
    radius: Range<f64>,
    /// Probability of changing each class.
    per_label: f64,
}

impl RandomBinaryOperator {
    /// Changes the classes in place.
    fn apply(&self, classes: &mut [BitVolume], rng: &mut Stream) {
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

/// Removes a connected component of classes (batchgeneratorsv2
/// `RemoveRandomConnectedComponentFromOneHotEncodingTransform`).
///
/// Classes are processed in random order. With probability `per_label`, one component of a class is removed, chosen
/// uniformly among those smaller than `smaller_than` of the patch. nnU-Net can also assign it to another class, with a
/// probability that its trainer sets to 0; this is not implemented.
#[derive(Clone, Debug)]
struct RemoveRandomComponent {
    /// Maximum component size as a fraction of the patch's voxels, 0 to 1.
    smaller_than: f64,
    /// Probability of changing each class.
    per_label: f64,
}

impl RemoveRandomComponent {
    /// Changes the classes in place.
    fn apply(&self, classes: &mut [BitVolume], rng: &mut Stream) {
        let mut order: Vec<usize> = (0..classes.len()).collect();
        order.shuffle(rng);
        for class in order {
            if !chance(self.per_label, rng) {
                continue;
            }
            let set = &mut classes[class];
            let components = set.components();
            let bound = set.shape().iter().product::<usize>() as f64 * self.smaller_than;
            let sizes = components.sizes().iter().enumerate();
            let small: Vec<usize> =
                sizes.filter(|(_, size)| (**size as f64) < bound).map(|(number, _)| number).collect();
            if !small.is_empty() {
                set.remove_component(&components, small[rng.random_range(0..small.len())]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnunet_core::rng::{Purpose, stream};

    #[test]
    fn a_label_map_becomes_a_channel_per_foreground_class() {
        let labels = [-1, 0, 1, 2, 2, 7];
        let one_hot =
            PreviousStage::new(vec![1, 2]).one_hot(&labels, [1, 2, 3], &mut stream(1, Purpose::Augment, 0, 0));
        let channels = one_hot.iter().map(|class| {
            let mut channel = [f32::NAN; 6];
            class.write_to(&mut channel);
            channel
        });
        let expected = [[0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]];
        assert_eq!(channels.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn augmentations_have_the_documented_probability() {
        let mut labels = [0; 16 * 16 * 16];
        labels[8 * 256 + 8 * 16 + 8] = 1;
        let stage = PreviousStage::nnunet(vec![1]);
        // A single voxel is lost to an erosion, an opening or its removal, and grows only by a dilation, as a closing
        // undoes its own dilation. So it grows with probability 0.25 * 0.4 * 0.5, and is removed with 0.2 * 0.5 if any
        // is left.
        let (mut lost, mut grown) = (0, 0);
        for index in 0..4000 {
            let one_hot = stage.one_hot(&labels, [16; 3], &mut stream(5, Purpose::Augment, 0, index));
            match one_hot[0].count() {
                0 => lost += 1,
                1 => {}
                _ => grown += 1,
            }
        }
        let parts = [lost, grown].map(|count| f64::from(count) / 4000.0);
        let (operated, removed) = (0.4 * 0.5, 0.2 * 0.5);
        let expected = [0.5 * operated + (1.0 - 0.5 * operated) * removed, 0.25 * operated];
        for (part, expected) in parts.into_iter().zip(expected) {
            assert!((part - expected).abs() < 0.025, "{part} instead of {expected}");
        }
    }

    fn random_operator() -> RandomBinaryOperator {
        RandomBinaryOperator { radius: 1.0..8.0, per_label: 0.5 }
    }

    /// A cube of label 1 beside one of label 2.
    fn two_cubes() -> Vec<BitVolume> {
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
    fn classes_change_with_the_given_probability_and_never_overlap() {
        let original = two_cubes();
        let (mut changed, mut grown, mut shrunk) = (0, 0, 0);
        for index in 0..400 {
            let mut classes = two_cubes();
            random_operator().apply(&mut classes, &mut stream(1, Purpose::Augment, 0, index));
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
    fn voxels_gained_by_a_class_are_removed_from_the_others() {
        let mut classes = two_cubes();
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
        let mut classes = two_cubes();
        let never = RandomBinaryOperator { per_label: 0.0, ..random_operator() };
        (0..50).for_each(|index| never.apply(&mut classes, &mut stream(1, Purpose::Augment, 0, index)));
        assert_eq!(classes, two_cubes());
    }

    /// A slab of a fifth of the patch, two small components that touch a third at a corner; a second class of one
    /// component.
    fn slab_and_components() -> Vec<BitVolume> {
        let label = |index: usize| {
            let at = [index / 100, index / 10 % 10, index % 10];
            match at {
                [0 | 1, ..] => 1,
                [5, 5, 5] | [6, 6, 6] | [9, 0, 0] => 1,
                [5, 0, 9] => 2,
                _ => 0,
            }
        };
        let labels: Vec<i16> = (0..1000).map(label).collect();
        [1, 2].map(|label| BitVolume::from_label(&labels, [10; 3], label)).to_vec()
    }

    #[test]
    fn small_components_are_removed_equally_often_and_large_ones_never() {
        let transform = RemoveRandomComponent { smaller_than: 0.15, per_label: 0.5 };
        let (mut pair, mut single, mut second) = (0, 0, 0);
        for index in 0..2000 {
            let mut classes = slab_and_components();
            transform.apply(&mut classes, &mut stream(3, Purpose::Augment, 0, index));
            assert!(classes[0].contains([1, 4, 4]), "a fifth of the patch is too large to be overlooked");
            match classes[0].count() {
                203 => {}
                202 => single += 1,
                201 => pair += 1,
                other => panic!("{other} voxels are left"),
            }
            second += usize::from(classes[1].is_empty());
        }
        for (count, probability) in [(pair, 0.25), (single, 0.25), (second, 0.5)] {
            let part = f64::from(count as u32) / 2000.0;
            assert!((part - probability).abs() < 0.04, "{part} instead of {probability}");
        }
    }

    #[test]
    fn a_larger_bound_includes_the_slab() {
        let transform = RemoveRandomComponent { smaller_than: 0.25, per_label: 1.0 };
        let slab_is_gone = |index: u64| {
            let mut classes = slab_and_components();
            transform.apply(&mut classes, &mut stream(4, Purpose::Augment, 0, index));
            assert!(classes[1].is_empty());
            !classes[0].contains([1, 4, 4])
        };
        let gone = (0..600).filter(|index| slab_is_gone(*index)).count();
        assert!((150..250).contains(&gone), "{gone} of 600, a third of them expected");
    }
}
