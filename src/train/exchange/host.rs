//! Buckets in host memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{TensorData, backend::Backend, ops::FloatTensor};

use super::{Exchange, ExchangeOptions};
use crate::dist::{BucketLayout, CommError, Pending, ReduceOp, Reducer};
use crate::ops::GradientSink;

/// Exchanges gradients through host memory.
pub struct HostExchange<B: Backend> {
    layout: BucketLayout,
    /// Of the parameters.
    shapes: Vec<Vec<usize>>,
    options: ExchangeOptions,
    reducer: Arc<dyn Reducer>,
    device: B::Device,
    state: Mutex<State>,
}

struct State {
    slots: Vec<Slot>,
    /// Which of the step's batches it is.
    batch: usize,
    /// The next bucket to send: they go out in order, which is the same on all ranks.
    next: usize,
}

/// A bucket.
struct Slot {
    /// Empty while it is under way.
    data: Vec<f32>,
    under_way: Option<Box<dyn Pending>>,
    /// Gradients that have not come yet.
    missing: usize,
}

impl<B: Backend> HostExchange<B> {
    /// An exchange for parameters of these shapes.
    pub fn new(
        layout: BucketLayout,
        shapes: Vec<Vec<usize>>,
        options: ExchangeOptions,
        reducer: Arc<dyn Reducer>,
        device: B::Device,
    ) -> Self {
        let slots = layout.buckets().iter().map(|bucket| Slot {
            data: vec![0.0; bucket.len],
            under_way: None,
            missing: bucket.parameters.len(),
        });
        let state = Mutex::new(State { slots: slots.collect(), batch: 0, next: 0 });
        Self { layout, shapes, options, reducer, device, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the buckets that are full, or all of them.
    fn send(&self, state: &mut State, all: bool) {
        let count = state.slots.len();
        while let Some(slot) = state.slots.get_mut(state.next)
            && (all || slot.missing == 0)
        {
            let what = format!("gradient bucket {} of {count}", state.next + 1);
            let data = std::mem::take(&mut slot.data);
            slot.under_way = Some(self.reducer.start(data, ReduceOp::Mean, self.options.wire, &what));
            state.next += 1;
        }
    }
}

impl<B: Backend> GradientSink<B> for HostExchange<B> {
    fn ready(&self, parameter: usize, gradient: FloatTensor<B>) {
        let Some(place) = self.layout.place(parameter) else { return };
        let gradient = burn::tensor::read_sync(B::float_into_data(gradient))
            .expect("reading a gradient back needs no more than the device that holds it");
        let gradient = gradient.as_slice::<f32>().expect("gradients are f32");
        let mut state = self.state();
        let (batch, is_last) = (state.batch, state.batch + 1 == self.options.accumulate);
        let slot = &mut state.slots[place.bucket];
        let values = &mut slot.data[place.range.clone()];
        let share = 1.0 / self.options.accumulate as f32;
        match (batch, self.options.accumulate) {
            (_, 1) => values.copy_from_slice(gradient),
            (0, _) => values.iter_mut().zip(gradient).for_each(|(sum, value)| *sum = share * value),
            _ => values.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += share * value),
        }
        slot.missing -= 1;
        if is_last && self.options.overlap {
            self.send(&mut state, false);
        }
    }
}

impl<B: Backend> Exchange<B> for HostExchange<B> {
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
        let mut gradients = vec![None; self.shapes.len()];
        for (slot, bucket) in state.slots.iter_mut().zip(self.layout.buckets()) {
            if let Some(under_way) = slot.under_way.take() {
                slot.data = under_way.wait()?;
            }
            for &parameter in &bucket.parameters {
                let place = self.layout.place(parameter).expect("it is in this bucket");
                let values = slot.data[place.range.clone()].to_vec();
                let data = TensorData::new(values, self.shapes[parameter].clone());
                gradients[parameter] = Some(B::float_from_data(data, &self.device));
            }
        }
        Ok(gradients)
    }
}
