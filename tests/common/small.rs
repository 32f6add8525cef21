//! A network and samples so small that a step takes milliseconds.
#![allow(dead_code)]

use ndarray::{Array4, Array5};
use nnunet_dist::backend::Cpu;
use nnunet_dist::distributed::{CommDtype, Communicator};
use nnunet_dist::loss::{SegmentationLoss, Target};
use nnunet_dist::model::{UNet, UNetSpec};
use nnunet_dist::optim::{Optimizer, Sgd};
use nnunet_dist::plan::{NetworkShape, PLAIN_CONV_UNET};
use nnunet_dist::train::{GradientReducerOptions, TrainStep, check_weights};

const STEPS: usize = 4;
/// Samples per step, over all ranks.
pub const SAMPLES: usize = 4;

pub const PLAIN: GradientReducerOptions =
    GradientReducerOptions { bucket_len: 2000, comm_dtype: CommDtype::F32, overlap: true, accumulate: 1 };

/// Trains on all ranks, then flips a bit of rank 1's weights: the ranks detect it and end the job.
pub fn differ(comm: &dyn Communicator) {
    let mut step = network().connect(PLAIN, comm).unwrap();
    advance(&mut step, 1, comm);
    check_weights(&step.network, STEPS as u64, comm).expect("so far they are the same");
    if comm.rank() == 1 {
        let mut state = step.network.state();
        let value = &mut state[3].values[0];
        *value = f32::from_bits(value.to_bits() ^ 1);
        let spec = step.network.spec().clone();
        step.network = UNet::with_state(spec, &state, &Default::default()).unwrap();
    }
    let error = check_weights(&step.network, STEPS as u64, comm).unwrap_err();
    comm.abort(75, &error.to_string());
}

pub fn network() -> TrainStep<Cpu> {
    let shape = NetworkShape {
        network: &PLAIN_CONV_UNET,
        features: vec![4, 8, 8],
        kernels: vec![[3; 3]; 3],
        strides: vec![[1; 3], [2; 3], [2; 3]],
        blocks_encoder: vec![2; 3],
        convs_decoder: vec![2; 2],
        conv_bias: true,
        norm_eps: 1e-5,
    };
    let spec = UNetSpec { channels: 1, classes: 3, shape };
    let device = Default::default();
    let sgd = Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.0 };
    // Without batch Dice, so that a batch may be divided into several.
    let loss = SegmentationLoss::new(Target::Classes, false, None);
    TrainStep::new(UNet::new(spec, 7, &device), Optimizer::new(sgd, Some(12.0)), loss, vec![0.75, 0.25], device)
}

/// Some steps on this rank's part of the samples.
pub fn advance(step: &mut TrainStep<Cpu>, batches: usize, comm: &dyn Communicator) {
    let per_batch = SAMPLES.div_ceil(comm.world_size() * batches);
    for number in 0..STEPS {
        for batch in 0..batches {
            // The first batches of all ranks, then the second ones.
            let first = (batch * comm.world_size() + comm.rank()) * per_batch;
            let value = |n: usize, z: usize, y: usize, x: usize| {
                let sample = (number * SAMPLES + first + n) % 1000;
                ((sample * 5 + z * 3 + y * 7 + x * 11) as f32 * 0.7).sin()
            };
            let images = Array5::from_shape_fn((per_batch, 1, 8, 8, 8), |(n, _, z, y, x)| value(n, z, y, x));
            let labels = Array4::from_shape_fn((per_batch, 8, 8, 8), |(n, z, y, x)| {
                (value(n, z, y, x) > 0.0) as i16 + (value(n, z, y, x) > 0.5) as i16
            });
            let targets = step.targets(labels.view());
            step.add(step.uploader().batch_with(images.view(), targets.to_vec()), comm).unwrap();
        }
        step.update(0.05).unwrap();
    }
}
