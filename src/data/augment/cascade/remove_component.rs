//! Random removal of small components, as errors of the previous stage.

use rand::Rng;
use rand::seq::SliceRandom;

use super::{BitVolume, Components};
use crate::augment::distributions::chance;
use nnunet_core::rng::Stream;

/// Removes a connected component of classes (batchgeneratorsv2
/// `RemoveRandomConnectedComponentFromOneHotEncodingTransform`).
///
/// Classes are processed in random order. With probability `per_label`, one component of a class is removed, chosen
/// uniformly among those smaller than `smaller_than` of the patch. nnU-Net can also assign it to another class, with a
/// probability that its trainer sets to 0; this is not implemented.
#[derive(Clone, Debug)]
pub struct RemoveRandomComponent {
    /// Maximum component size as a fraction of the patch's voxels, 0 to 1.
    pub smaller_than: f64,
    /// Probability of changing each class.
    pub per_label: f64,
}

impl RemoveRandomComponent {
    /// Changes the classes in place.
    pub fn apply(&self, classes: &mut [BitVolume], rng: &mut Stream) {
        let mut order: Vec<usize> = (0..classes.len()).collect();
        order.shuffle(rng);
        for class in order {
            if !chance(self.per_label, rng) {
                continue;
            }
            let set = &mut classes[class];
            let components = Components::find(set);
            let bound = set.shape().iter().product::<usize>() as f64 * self.smaller_than;
            let sizes = components.sizes().iter().enumerate();
            let small: Vec<usize> =
                sizes.filter(|(_, size)| (**size as f64) < bound).map(|(number, _)| number).collect();
            if !small.is_empty() {
                components.remove(small[rng.random_range(0..small.len())], set);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnunet_core::rng::{Purpose, stream};

    /// A slab of a fifth of the patch, two small components that touch a third at a corner; a second class of one
    /// component.
    fn classes() -> Vec<BitVolume> {
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
    fn small_parts_go_as_often_as_each_other_and_large_ones_stay() {
        let transform = RemoveRandomComponent { smaller_than: 0.15, per_label: 0.5 };
        let (mut pair, mut single, mut second) = (0, 0, 0);
        for index in 0..2000 {
            let mut classes = classes();
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
    fn a_larger_bound_lets_the_slab_go_too() {
        let transform = RemoveRandomComponent { smaller_than: 0.25, per_label: 1.0 };
        let slab_is_gone = |index: u64| {
            let mut classes = classes();
            transform.apply(&mut classes, &mut stream(4, Purpose::Augment, 0, index));
            assert!(classes[1].is_empty());
            !classes[0].contains([1, 4, 4])
        };
        let gone = (0..600).filter(|index| slab_is_gone(*index)).count();
        assert!((150..250).contains(&gone), "{gone} of 600, a third of them expected");
    }
}
