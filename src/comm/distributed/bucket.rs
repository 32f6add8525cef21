//! How gradients are packed into buckets.

use std::fmt::Write;
use std::ops::Range;

/// Parameters laid out one after the other in flat buckets.
///
/// They lie in reverse order of use, which is the order in which the backward pass finishes their gradients, so that a
/// bucket fills up from its beginning to its end and the first is full while the pass has still most of its way to go
/// (Li et al. 2020, "PyTorch Distributed", section 3.2.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketLayout {
    buckets: Vec<Bucket>,
    /// By parameter.
    places: Vec<Option<Place>>,
}

/// Some parameters that are reduced together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Numbers of its parameters, in the order they lie in.
    pub parameters: Vec<usize>,
    /// Number of values.
    pub len: usize,
}

/// Where a parameter lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the bucket.
    pub bucket: usize,
    /// The parameter's values in it.
    pub range: Range<usize>,
}

impl BucketLayout {
    /// Packs the parameters `used`, in the order of their use, into buckets of at most `capacity` values; a parameter
    /// that is larger has one for itself. `lengths` are the numbers of values of all parameters.
    pub fn new(lengths: &[usize], used: &[usize], capacity: usize) -> Self {
        let mut buckets: Vec<Bucket> = Vec::new();
        let mut places = vec![None; lengths.len()];
        for &parameter in used.iter().rev() {
            let length = lengths[parameter];
            if buckets.last().is_none_or(|bucket| bucket.len + length > capacity) {
                buckets.push(Bucket { parameters: Vec::new(), len: 0 });
            }
            let number = buckets.len() - 1;
            let bucket = &mut buckets[number];
            places[parameter] = Some(Place { bucket: number, range: bucket.len..bucket.len + length });
            bucket.parameters.push(parameter);
            bucket.len += length;
        }
        Self { buckets, places }
    }

    /// The buckets, in the order in which they fill up.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Where a parameter lies; `None` if it is not used.
    pub fn place(&self, parameter: usize) -> Option<&Place> {
        self.places.get(parameter)?.as_ref()
    }

    /// What ranks compare: all that decides which value of one rank meets which of another.
    pub fn fingerprint(&self) -> String {
        let mut text = String::new();
        for bucket in &self.buckets {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} {:?}", bucket.len, bucket.parameters);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_used_comes_first() {
        let layout = BucketLayout::new(&[10, 20, 30], &[0, 2, 1], 1000);
        assert_eq!(layout.buckets(), [Bucket { parameters: vec![1, 2, 0], len: 60 }]);
        assert_eq!(layout.place(2), Some(&Place { bucket: 0, range: 20..50 }));
    }

    #[test]
    fn buckets_are_no_fuller_than_allowed_unless_a_parameter_is() {
        let layout = BucketLayout::new(&[4, 4, 4, 100, 4], &[0, 1, 2, 3, 4], 10);
        let contents: Vec<_> = layout.buckets().iter().map(|bucket| bucket.parameters.clone()).collect();
        assert_eq!(contents, [vec![4], vec![3], vec![2, 1], vec![0]]);
    }

    #[test]
    fn what_is_not_used_has_no_place() {
        let layout = BucketLayout::new(&[4, 4], &[1], 10);
        assert_eq!(layout.place(0), None);
        assert_eq!(layout.buckets().len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn every_value_has_one_place(
            lengths in proptest::collection::vec(0usize..50, 0..40),
            capacity in 1usize..200,
        ) {
            let used: Vec<_> = (0..lengths.len()).collect();
            let layout = BucketLayout::new(&lengths, &used, capacity);
            let mut taken: Vec<Vec<bool>> = layout.buckets().iter().map(|bucket| vec![false; bucket.len]).collect();
            for (parameter, &length) in lengths.iter().enumerate() {
                let place = layout.place(parameter).unwrap();
                assert_eq!(place.range.len(), length);
                for taken in &mut taken[place.bucket][place.range.clone()] {
                    assert!(!std::mem::replace(taken, true));
                }
            }
            assert!(taken.into_iter().flatten().all(|taken| taken));
        }
    }
}
