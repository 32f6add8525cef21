//! From the label map of the previous stage to channels of the network's input.

use super::{BitVolume, RandomBinaryOperator, RemoveRandomComponent};
use crate::augment::draw::chance;
use nnunet_core::rng::Stream;

/// Makes channels of the previous stage's segmentation, one per foreground class, and augments them.
///
/// This is the end of nnU-Net v2's list of transforms in a cascade (`nnUNetTrainer.get_training_transforms`): after
/// mirroring and masking, `MoveSegAsOneHotToDataTransform`; then [`RandomBinaryOperator`] with probability 0.4 and
/// [`RemoveRandomComponent`] with probability 0.2.
#[derive(Clone, Debug)]
pub struct PreviousStage {
    /// The foreground classes in the order of their channels.
    classes: Vec<i16>,
    /// `None` where the channels are to stay as the previous stage has said.
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
    /// Channels as they are: for validation.
    pub fn new(classes: Vec<i16>) -> Self {
        Self { classes, augmentation: None }
    }

    /// nnU-Net's augmentation: for training.
    pub fn nnunet(classes: Vec<i16>) -> Self {
        let augmentation = Augmentation {
            operator: RandomBinaryOperator { radius: 1.0..8.0, per_label: 0.5 },
            operator_probability: 0.4,
            removal: RemoveRandomComponent { smaller_than: 0.15, per_label: 0.5 },
            removal_probability: 0.2,
        };
        Self { classes, augmentation: Some(augmentation) }
    }

    /// Number of channels that it adds to those of the image.
    pub fn num_channels(&self) -> usize {
        self.classes.len()
    }

    /// The channels of a label map, `(z, y, x)` in C order.
    ///
    /// # Panics
    /// If there are not as many labels as voxels.
    pub fn one_hot(&self, labels: &[i16], shape: [usize; 3], rng: &mut Stream) -> Vec<BitVolume> {
        let mut classes: Vec<BitVolume> =
            self.classes.iter().map(|class| BitVolume::of_label(labels, shape, *class)).collect();
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
        // A single voxel is lost to an erosion or an opening and to its removal, and grows by a dilation alone, as a
        // closing takes back what it has added: by an eighth, a quarter of the 0.4 * 0.5, and 0.2 * 0.5 where any is left.
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
