//! Gradient buckets in device memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use burn::tensor::{FloatDType, Shape, Slice, TensorMetadata, ops::FloatTensor};

use super::bucket_schedule::BucketSchedule;
use super::reducer::{GradientReducer, GradientReducerOptions};
use nnunet_comm::distributed::{
    Bucket, BucketLayout, BucketPosition, CommDtype, CommError, DeviceBuffer, DeviceCollectives, Fault, ReduceOp,
};
use nnunet_core::trace::{self, AsyncSpan};
use nnunet_nn::ops::{GradHook, NnOps};

/// Reduces gradients in device memory; the host only queues the work.
pub struct DeviceGradientReducer<B: NnOps> {
    rank: usize,
    layout: BucketLayout,
    /// Parameter shapes.
    shapes: Vec<Vec<usize>>,
    options: GradientReducerOptions,
    collectives: Arc<dyn DeviceCollectives>,
    /// Returns the memory of a tensor: [`NnOps::device_buffer`], except in tests.
    locate: fn(&FloatTensor<B>) -> Option<DeviceBuffer>,
    state: Mutex<State<B>>,
}

struct State<B: NnOps> {
    slots: Vec<Slot<B>>,
    schedule: BucketSchedule,
    /// First error while queueing, to be returned at the end of the step.
    failure: Option<CommError>,
}

/// A bucket.
struct Slot<B: NnOps> {
    /// Gradients by position in the bucket, summed over the step's batches so far.
    gradients: Vec<Option<FloatTensor<B>>>,
    /// All gradients concatenated in the transfer format, once the bucket is sent.
    flat: Option<FloatTensor<B>>,
    /// Trace span, from queueing the reduction until the device has completed all of them.
    trace_span: Option<AsyncSpan>,
}

impl<B: NnOps> DeviceGradientReducer<B> {
    /// Creates a reducer for parameters with these shapes.
    pub fn new(
        rank: usize,
        layout: BucketLayout,
        shapes: Vec<Vec<usize>>,
        options: GradientReducerOptions,
        collectives: Arc<dyn DeviceCollectives>,
    ) -> Self {
        let slot =
            |bucket: &Bucket| Slot { gradients: vec![None; bucket.parameters.len()], flat: None, trace_span: None };
        let slots = layout.buckets().iter().map(slot).collect();
        let state = Mutex::new(State { slots, schedule: BucketSchedule::new(&layout), failure: None });
        Self { rank, layout, shapes, options, collectives, locate: B::device_buffer, state }
    }

    fn state(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the full buckets, or all remaining ones.
    fn send(&self, state: &mut State<B>, all: bool) {
        while let Some(number) = state.schedule.next_to_send(all) {
            let what = state.schedule.name_of(number);
            if let Err(error) = self.start(&mut state.slots[number], number, &what) {
                state.failure.get_or_insert(error);
            }
        }
    }

    /// Concatenates a bucket's gradients and queues their reduction.
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
        let gradients = gradients.ok_or_else(|| fail("a gradient is missing; please report"))?;
        let lines = gradients.into_iter().map(|gradient| {
            let len = gradient.shape().num_elements();
            B::float_reshape(gradient, Shape::new([len]))
        });
        let flat = B::float_cat(lines.collect(), 0);
        debug_assert_eq!(flat.shape().num_elements(), self.layout.buckets()[bucket].len);
        let flat = match self.options.comm_dtype {
            CommDtype::F32 => flat,
            CommDtype::F16 => B::float_cast(flat, FloatDType::F16),
            CommDtype::Bf16 => B::float_cast(flat, FloatDType::BF16),
        };
        let buffer = (self.locate)(&flat).ok_or_else(|| fail("its memory is inaccessible; please report"))?;
        // Kept alive until the end of the step: NCCL only has the address.
        slot.flat = Some(flat);
        slot.trace_span = Some(trace::async_span(|| format!("all-reduce of {what}")));
        self.collectives.start_all_reduce(buffer, ReduceOp::Mean, what)
    }
}

impl<B: NnOps> GradHook<B> for DeviceGradientReducer<B> {
    fn ready(&self, parameter: usize, gradient: FloatTensor<B>) {
        let Some(&BucketPosition { bucket, .. }) = self.layout.position(parameter) else { return };
        let index = self.layout.buckets()[bucket].parameters.iter().position(|&other| other == parameter);
        let index = index.expect("a parameter is in the bucket of its position");
        let gradient = match self.options.accumulate {
            1 => gradient,
            batches => B::float_mul_scalar(gradient, (1.0 / batches as f32).into()),
        };
        let mut state = self.state();
        let sum = match state.slots[bucket].gradients[index].take() {
            Some(sum) => B::float_add(sum, gradient),
            None => gradient,
        };
        state.slots[bucket].gradients[index] = Some(sum);
        state.schedule.arrived(bucket);
        if self.options.sends_early(state.schedule.batch()) {
            self.send(&mut state, false);
        }
    }
}

impl<B: NnOps> GradientReducer<B> for DeviceGradientReducer<B> {
    fn begin(&self, batch: usize) {
        self.state().schedule.begin(batch, &self.layout);
    }

    fn finish(&self) -> Result<Vec<Option<FloatTensor<B>>>, CommError> {
        let mut state = self.state();
        self.send(&mut state, true);
        if let Some(error) = state.failure.take() {
            return Err(error);
        }
        self.collectives.finish("gradients")?;
        end_trace_spans(&mut state);
        let mut gradients = vec![None; self.shapes.len()];
        for (slot, bucket) in state.slots.iter_mut().zip(self.layout.buckets()) {
            let Some(flat) = slot.flat.take() else { continue };
            let flat =
                if self.options.comm_dtype == CommDtype::F32 { flat } else { B::float_cast(flat, FloatDType::F32) };
            for &parameter in &bucket.parameters {
                let position = self.layout.position(parameter).expect("it is in this bucket");
                let line = B::float_slice(flat.clone(), &[Slice::from(position.range.clone())]);
                gradients[parameter] = Some(B::float_reshape(line, Shape::from(self.shapes[parameter].clone())));
            }
        }
        Ok(gradients)
    }
}

/// While recording, waits until the device has completed the reductions.
fn end_trace_spans<B: NnOps>(state: &mut State<B>) {
    if trace::is_on()
        && let Some(flat) = state.slots.iter().find_map(|slot| slot.flat.as_ref())
    {
        // An error on the device is reported when its results are read.
        let _ = B::sync(&B::float_device(flat));
    }
    state.slots.iter_mut().for_each(|slot| slot.trace_span = None);
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{TensorData, ops::FloatTensorOps};

    use super::*;
    use nnunet_comm::distributed::BufferDtype;

    /// Records the buffers and leaves them unchanged.
    #[derive(Default)]
    struct Recorder {
        reduced: Mutex<Vec<(String, Vec<f32>)>>,
        refuses: bool,
    }

    impl Recorder {
        fn refusal(&self) -> Result<(), CommError> {
            let (operation, reason) = ("all-reduce".into(), "no".into());
            match self.refuses {
                true => Err(CommError { rank: 0, operation, elapsed_s: 0.0, fault: Fault::Lost, reason }),
                false => Ok(()),
            }
        }
    }

    impl DeviceCollectives for Recorder {
        fn start_all_reduce(&self, buffer: DeviceBuffer, op: ReduceOp, what: &str) -> Result<(), CommError> {
            assert_eq!((op, buffer.dtype), (ReduceOp::Mean, BufferDtype::F32));
            let pointer = std::ptr::with_exposed_provenance::<f32>(buffer.pointer as usize);
            // SAFETY: the buffer belongs to a tensor that the reducer keeps alive.
            let values = unsafe { std::slice::from_raw_parts(pointer, buffer.len) }.to_vec();
            self.reduced.lock().unwrap().push((what.into(), values));
            self.refusal()
        }

        fn finish(&self, _: &str) -> Result<(), CommError> {
            self.refusal()
        }

        fn check(&self) -> Result<(), CommError> {
            self.refusal()
        }
    }

    fn locate(tensor: &FloatTensor<Flex>) -> Option<DeviceBuffer> {
        let values = tensor.as_slice::<f32>()?;
        Some(DeviceBuffer {
            pointer: values.as_ptr().expose_provenance() as u64,
            len: values.len(),
            dtype: BufferDtype::F32,
        })
    }

    fn tensor(values: &[f32], shape: &[usize]) -> FloatTensor<Flex> {
        Flex::float_from_data(TensorData::new(values.to_vec(), shape.to_vec()), &Default::default())
    }

    /// Three parameters in two buckets, the last two parameters in the first bucket.
    fn reducer_with(recorder: &Arc<Recorder>, accumulate: usize, overlap: bool) -> DeviceGradientReducer<Flex> {
        let shapes = vec![vec![2, 2], vec![1, 2], vec![3]];
        let layout = BucketLayout::new(&[4, 2, 3], &[0, 1, 2], 5);
        let options = GradientReducerOptions { bucket_len: 5, comm_dtype: CommDtype::F32, overlap, accumulate };
        DeviceGradientReducer { locate, ..DeviceGradientReducer::new(0, layout, shapes, options, recorder.clone()) }
    }

    fn give(reducer: &DeviceGradientReducer<Flex>, factor: f32) {
        let values = |values: &[f32]| values.iter().map(|value| value * factor).collect::<Vec<_>>();
        reducer.ready(2, tensor(&values(&[7.0, 8.0, 9.0]), &[3]));
        reducer.ready(1, tensor(&values(&[5.0, 6.0]), &[1, 2]));
        reducer.ready(0, tensor(&values(&[1.0, 2.0, 3.0, 4.0]), &[2, 2]));
    }

    #[test]
    fn a_bucket_goes_out_when_it_is_full_and_comes_back_in_pieces() {
        let recorder = Arc::new(Recorder::default());
        let reducer = reducer_with(&recorder, 1, true);
        reducer.begin(0);
        give(&reducer, 1.0);
        let reduced = recorder.reduced.lock().unwrap().clone();
        assert_eq!(reduced[0], ("gradient bucket 1 of 2".into(), vec![7.0, 8.0, 9.0, 5.0, 6.0]));
        assert_eq!(reduced[1].1, [1.0, 2.0, 3.0, 4.0]);
        let gradients = reducer.finish().unwrap();
        let shapes: Vec<_> = gradients.iter().flatten().map(|gradient| gradient.shape().to_vec()).collect();
        assert_eq!(shapes, [vec![2, 2], vec![1, 2], vec![3]]);
        let last = burn::tensor::read_sync(Flex::float_into_data(gradients[2].clone().unwrap())).unwrap();
        assert_eq!(last.to_vec::<f32>().unwrap(), [7.0, 8.0, 9.0]);
    }

    #[test]
    fn batches_are_averaged_before_anything_goes_out() {
        let recorder = Arc::new(Recorder::default());
        let reducer = reducer_with(&recorder, 2, true);
        for (batch, factor) in [(0, 1.0), (1, 3.0)] {
            assert!(recorder.reduced.lock().unwrap().is_empty());
            reducer.begin(batch);
            give(&reducer, factor);
        }
        assert_eq!(recorder.reduced.lock().unwrap()[1].1, [2.0, 4.0, 6.0, 8.0]);
        reducer.finish().unwrap();
    }

    #[test]
    fn without_overlap_nothing_goes_out_before_the_end() {
        let recorder = Arc::new(Recorder::default());
        let reducer = reducer_with(&recorder, 1, false);
        reducer.begin(0);
        give(&reducer, 1.0);
        assert!(recorder.reduced.lock().unwrap().is_empty());
        reducer.finish().unwrap();
        assert_eq!(recorder.reduced.lock().unwrap().len(), 2);
    }

    #[test]
    fn a_refusal_in_the_backward_pass_is_met_at_the_end_of_the_step() {
        let recorder = Arc::new(Recorder { refuses: true, ..Recorder::default() });
        let reducer = reducer_with(&recorder, 1, true);
        reducer.begin(0);
        give(&reducer, 1.0);
        assert_eq!(reducer.finish().unwrap_err().reason, "no");
    }
}
