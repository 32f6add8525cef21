//! One-hot encoding and augmentation of the previous stage's label map.

use super::{BitVolume, RandomBinaryOperator, RemoveRandomComponent};
use crate::augment::distributions::chance;
use nnunet_core::rng::Stream;

/// Encodes the previous stage's segmentation as one channel per foreground class and augments the channels.
///
/// Follows the last transforms of nnU-Net v2 in a cascade (`nnUNetTrainer.get_training_transforms`): after mirroring
/// and masking, `MoveSegAsOneHotToDataTransform`; then [`RandomBinaryOperator`] with probability 0.4 and
/// [`RemoveRandomComponent`] with probability 0.2.
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
    fn the_channels_are_augmented_as_often_as_documented() {
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
}
