//! Buckets in device memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use burn::tensor::{FloatDType, Shape, Slice, TensorMetadata, ops::FloatTensor};

use super::{Exchange, ExchangeOptions};
use crate::dist::{BucketLayout, CommError, DeviceCollectives, Fault, ReduceOp, Wire};
use crate::ops::{GradientSink, NnOps};

/// Exchanges gradients without their leaving the devices: the host only queues.
pub struct DeviceExchange<B: NnOps> {
    rank: usize,
    layout: BucketLayout,
    /// Of the parameters.
    shapes: Vec<Vec<usize>>,
    options: ExchangeOptions,
    collectives: Arc<dyn DeviceCollectives>,
    state: Mutex<State<B>>,
}

struct State<B: NnOps> {
    slots: Vec<Slot<B>>,
    /// Which of the step's batches it is.
    batch: usize,
    /// The next bucket to send: they go out in order, which is the same on all ranks.
    next: usize,
    /// What could not be queued, to be met at the end of the step.
    failure: Option<CommError>,
}

/// A bucket.
struct Slot<B: NnOps> {
    /// By place in the bucket, summed up over the step's batches so far.
    gradients: Vec<Option<FloatTensor<B>>>,
    /// Gradients of this batch that have not come yet.
    missing: usize,
    /// All of them one after the other, in the format on the wire, once it is sent.
    flat: Option<FloatTensor<B>>,
}

impl<B: NnOps> DeviceExchange<B> {
    /// An exchange for parameters of these shapes.
    pub fn new(
        rank: usize,
        layout: BucketLayout,
        shapes: Vec<Vec<usize>>,
        options: ExchangeOptions,
        collectives: Arc<dyn DeviceCollectives>,
    ) -> Self {
        let slots = layout.buckets().iter().map(|bucket| Slot {
            gradients: vec![None; bucket.parameters.len()],
            missing: bucket.parameters.len(),
            flat: None,
        });
        let state = Mutex::new(State { slots: slots.collect(), batch: 0, next: 0, failure: None });
        Self { rank, layout, shapes, options, collectives, state }
    }

    fn state(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the buckets that are full, or all of them.
    fn send(&self, state: &mut State<B>, all: bool) {
        let count = state.slots.len();
        while let Some(slot) = state.slots.get_mut(state.next)
            && (all || slot.missing == 0)
        {
            let what = format!("gradient bucket {} of {count}", state.next + 1);
            if let Err(error) = self.start(slot, state.next, &what) {
                state.failure.get_or_insert(error);
            }
            state.next += 1;
        }
    }

    /// Joins a bucket's gradients and queues their reduction.
    fn start(&self, slot: &mut Slot<B>, bucket: usize, what: &str) -> Result<(), CommError> {
        let began = Instant::now();
        let fail = |reason: &str| CommError {
            rank: self.rank,
            operation: format!("all-reduce of {what}"),
            elapsed_s: began.elapsed().as_secs_f64(),
            fault: Fault::Unavailable,
            reason: reason.into(),
        };
        let gradients: Option<Vec<_>> = slot.gradients.iter_mut().map(Option::take).collect();
        let gradients = gradients.ok_or_else(|| fail("a gradient is missing: please report"))?;
        let lines = gradients.into_iter().map(|gradient| {
            let len = gradient.shape().num_elements();
            B::float_reshape(gradient, Shape::new([len]))
        });
        let flat = B::float_cat(lines.collect(), 0);
        debug_assert_eq!(flat.shape().num_elements(), self.layout.buckets()[bucket].len);
        let flat = match self.options.wire {
            Wire::F32 => flat,
            Wire::F16 => B::float_cast(flat, FloatDType::F16),
            Wire::Bf16 => B::float_cast(flat, FloatDType::BF16),
        };
        let buffer = B::device_buffer(&flat).ok_or_else(|| fail("its memory cannot be reached: please report"))?;
        // Kept until the end of the step: NCCL knows only the address.
        slot.flat = Some(flat);
        self.collectives.start_all_reduce(buffer, ReduceOp::Mean, what)
    }
}

impl<B: NnOps> GradientSink<B> for DeviceExchange<B> {
    fn ready(&self, parameter: usize, gradient: FloatTensor<B>) {
        let Some(place) = self.layout.place(parameter) else { return };
        let position = self.layout.buckets()[place.bucket].parameters.iter().position(|&other| other == parameter);
        let position = position.expect("a parameter is in the bucket of its place");
        let gradient = match self.options.accumulate {
            1 => gradient,
            batches => B::float_mul_scalar(gradient, (1.0 / batches as f32).into()),
        };
        let mut state = self.state();
        let is_last = state.batch + 1 == self.options.accumulate;
        let slot = &mut state.slots[place.bucket];
        let sum = match slot.gradients[position].take() {
            Some(sum) => B::float_add(sum, gradient),
            None => gradient,
        };
        slot.gradients[position] = Some(sum);
        slot.missing -= 1;
        if is_last && self.options.overlap {
            self.send(&mut state, false);
        }
    }
}

impl<B: NnOps> Exchange<B> for DeviceExchange<B> {
    fn begin(&self, batch: usize) {
        let mut state = self.state();
        state.batch = batch;
        state.next = 0;
        for (slot, bucket) in state.slots.iter_mut().zip(self.layout.buckets()) {
            slot.missing = bucket.parameters.len();
        }
    }

    fn finish(&self) -> Result<Vec<Option<FloatTensor<B>>>, CommError> {
        let mut state = self.state();
        self.send(&mut state, true);
        if let Some(error) = state.failure.take() {
            return Err(error);
        }
        self.collectives.finish("gradients")?;
        let mut gradients = vec![None; self.shapes.len()];
        for (slot, bucket) in state.slots.iter_mut().zip(self.layout.buckets()) {
            let Some(flat) = slot.flat.take() else { continue };
            let flat = if self.options.wire == Wire::F32 { flat } else { B::float_cast(flat, FloatDType::F32) };
            for &parameter in &bucket.parameters {
                let place = self.layout.place(parameter).expect("it is in this bucket");
                let line = B::float_slice(flat.clone(), &[Slice::from(place.range.clone())]);
                gradients[parameter] = Some(B::float_reshape(line, Shape::from(self.shapes[parameter].clone())));
            }
        }
        Ok(gradients)
    }
}
