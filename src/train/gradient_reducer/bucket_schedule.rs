//! Order in which buckets are sent.

use nnunet_comm::distributed::BucketLayout;

/// Missing gradients of a batch, and the next bucket to send.
pub(super) struct BucketSchedule {
    /// Number of missing gradients per bucket.
    missing: Vec<usize>,
    /// Number of the batch within the step.
    batch: usize,
    /// Next bucket to send. Buckets are sent in order, which is the same on all ranks.
    next: usize,
}

impl BucketSchedule {
    /// Starts with the first batch.
    pub(super) fn new(layout: &BucketLayout) -> Self {
        let missing = layout.buckets().iter().map(|bucket| bucket.parameters.len()).collect();
        Self { missing, batch: 0, next: 0 }
    }

    /// Starts one of the step's batches.
    pub(super) fn begin(&mut self, batch: usize, layout: &BucketLayout) {
        *self = Self { batch, ..Self::new(layout) };
    }

    /// Returns the number of the batch within the step.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    /// Records the arrival of a gradient of a bucket.
    pub(super) fn arrived(&mut self, bucket: usize) {
        self.missing[bucket] -= 1;
    }

    /// Returns the next bucket to send if it is full, or, with `any`, the next remaining one.
    pub(super) fn next_to_send(&mut self, any: bool) -> Option<usize> {
        let missing = self.missing.get(self.next)?;
        (any || *missing == 0).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Returns the name of a bucket in errors.
    pub(super) fn name_of(&self, bucket: usize) -> String {
        format!("gradient bucket {} of {}", bucket + 1, self.missing.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_go_out_in_order_even_if_a_later_one_is_full_first() {
        let layout = BucketLayout::new(&[1, 1, 1], &[2, 1, 0], 1);
        let mut schedule = BucketSchedule::new(&layout);
        schedule.arrived(1);
        assert_eq!(schedule.next_to_send(false), None);
        schedule.arrived(0);
        assert_eq!([schedule.next_to_send(false), schedule.next_to_send(false)], [Some(0), Some(1)]);
        assert_eq!(
            [schedule.next_to_send(false), schedule.next_to_send(true), schedule.next_to_send(true)],
            [None, Some(2), None]
        );
        schedule.begin(1, &layout);
        assert_eq!((schedule.batch(), schedule.next_to_send(false)), (1, None));
    }
}
