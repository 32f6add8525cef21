//! Gradient buckets in host memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{TensorData, backend::Backend, ops::FloatTensor};

use super::bucket_schedule::BucketSchedule;
use super::reducer::{GradientReducer, GradientReducerOptions};
use nnunet_comm::distributed::{BucketLayout, CommError, ReduceOp, Reducer, Work};
use nnunet_nn::ops::GradHook;

/// Reduces gradients through host memory.
pub struct HostGradientReducer<B: Backend> {
    layout: BucketLayout,
    /// Parameter shapes.
    shapes: Vec<Vec<usize>>,
    options: GradientReducerOptions,
    reducer: Arc<dyn Reducer>,
    device: B::Device,
    state: Mutex<State>,
}

struct State {
    slots: Vec<Slot>,
    schedule: BucketSchedule,
}

/// A bucket.
struct Slot {
    /// Bucket values; empty while the reduction is in flight.
    data: Vec<f32>,
    work: Option<Box<dyn Work>>,
}

impl<B: Backend> HostGradientReducer<B> {
    /// Creates a reducer for parameters with these shapes.
    pub fn new(
        layout: BucketLayout,
        shapes: Vec<Vec<usize>>,
        options: GradientReducerOptions,
        reducer: Arc<dyn Reducer>,
        device: B::Device,
    ) -> Self {
        let slots = layout.buckets().iter().map(|bucket| Slot { data: vec![0.0; bucket.len], work: None });
        let state = Mutex::new(State { slots: slots.collect(), schedule: BucketSchedule::new(&layout) });
        Self { layout, shapes, options, reducer, device, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the full buckets, or all remaining ones.
    fn send(&self, state: &mut State, all: bool) {
        while let Some(number) = state.schedule.next_to_send(all) {
            let slot = &mut state.slots[number];
            let data = std::mem::take(&mut slot.data);
            let what = state.schedule.name_of(number);
            slot.work = Some(self.reducer.start(data, ReduceOp::Mean, self.options.comm_dtype, &what));
        }
    }
}

impl<B: Backend> GradHook<B> for HostGradientReducer<B> {
    fn ready(&self, parameter: usize, gradient: FloatTensor<B>) {
        let Some(position) = self.layout.position(parameter) else { return };
        let gradient = burn::tensor::read_sync(B::float_into_data(gradient))
            .expect("reading a gradient back needs no more than the device that holds it");
        let gradient = gradient.as_slice::<f32>().expect("gradients are f32");
        let mut state = self.state();
        let batch = state.schedule.batch();
        let values = &mut state.slots[position.bucket].data[position.range.clone()];
        let share = 1.0 / self.options.accumulate as f32;
        match (batch, self.options.accumulate) {
            (_, 1) => values.copy_from_slice(gradient),
            (0, _) => values.iter_mut().zip(gradient).for_each(|(sum, value)| *sum = share * value),
            _ => values.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += share * value),
        }
        state.schedule.arrived(position.bucket);
        if self.options.sends_early(batch) {
            self.send(&mut state, false);
        }
    }
}

impl<B: Backend> GradientReducer<B> for HostGradientReducer<B> {
    fn begin(&self, batch: usize) {
        self.state().schedule.begin(batch, &self.layout);
    }

    fn finish(&self) -> Result<Vec<Option<FloatTensor<B>>>, CommError> {
        let mut state = self.state();
        self.send(&mut state, true);
        let mut gradients = vec![None; self.shapes.len()];
        for (slot, bucket) in state.slots.iter_mut().zip(self.layout.buckets()) {
            if let Some(work) = slot.work.take() {
                slot.data = work.wait()?;
            }
            for &parameter in &bucket.parameters {
                let position = self.layout.position(parameter).expect("it is in this bucket");
                let values = slot.data[position.range.clone()].to_vec();
                let data = TensorData::new(values, self.shapes[parameter].clone());
                gradients[parameter] = Some(B::float_from_data(data, &self.device));
            }
        }
        Ok(gradients)
    }
}
