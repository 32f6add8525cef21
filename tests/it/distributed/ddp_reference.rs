//! Two real MPI processes average gradients and update weights as two ranks of PyTorch's DDP do (`fixtures/ddp`).

use std::env;
use std::fs::File;
use std::path::Path;

use burn::backend::Flex;
use burn::tensor::ops::FloatTensorOps;
use ndarray::{Array1, Axis, Slice};
use ndarray_npy::NpzReader;
use nnunet_dist::backend::Cpu;
use nnunet_dist::distributed::{self, CommDtype, Communicator};
use nnunet_dist::loss::{SegmentationLoss, Target};
use nnunet_dist::model::{TensorState, UNet};
use nnunet_dist::optim::{Optimizer, Sgd};
use nnunet_dist::train::{GradientReducerOptions, TrainStep};

use crate::common;
use crate::job;
use crate::network::{Fixture, assert_close, is_rounding};

/// The environment variable with the fixture that a rank reads.
const FIXTURE: &str = "NNUNET_TEST_FIXTURE";
const RANKS: usize = 2;

#[test]
fn two_processes_agree_with_pytorchs() {
    for path in common::fixtures("fixtures/ddp", ".npz") {
        let Some(launcher) = job::launcher() else { return };
        let rank = job::me(module_path!(), FIXTURE, path.to_str().unwrap());
        job::observe(job::in_parallel(launcher, RANKS, &[], &rank)).succeeded(RANKS);
    }
}

/// Not a test: run by each rank.
#[test]
fn part_of_a_rank() {
    let Some(path) = env::var_os(FIXTURE) else { return };
    let comm = distributed::init().unwrap();
    assert_eq!(comm.world_size(), RANKS);
    // One bucket per parameter, several buckets, one for all; with and without overlap of the backward pass.
    for (bucket_len, overlap) in [(1, true), (50_000, true), (50_000, false), (usize::MAX, true)] {
        let options = GradientReducerOptions { bucket_len, comm_dtype: CommDtype::F32, overlap, accumulate: 1 };
        for batch_dice in [false, true] {
            follow(Path::new(&path), batch_dice, options, &*comm);
        }
    }
    println!("rank {} of {} is done", comm.rank(), comm.world_size());
}

/// Three steps from the fixture's weights on this rank's half of its batch.
fn follow(path: &Path, batch_dice: bool, options: GradientReducerOptions, comm: &dyn Communicator) {
    // `ddp2_NAME.npz` starts from the weights of `net/NAME.npz`.
    let name = path.file_name().unwrap().to_str().unwrap().split_once('_').unwrap().1;
    let mut initial = Fixture::open(&path.parent().unwrap().with_file_name("net").join(name));
    let device = Default::default();
    let fresh = UNet::<Cpu>::new(initial.spec.clone(), 0, &device);
    let specs: Vec<_> = fresh.parameters().iter().map(|parameter| parameter.spec.clone()).collect();
    let weights: Vec<TensorState> = initial.state("w/", &specs).into_values().collect();
    let network = UNet::<Cpu>::with_state(initial.spec.clone(), &weights, &device).unwrap();

    let mut fixture = Fixture { npz: NpzReader::new(File::open(path).unwrap()).unwrap(), ..initial };
    let head_weights: Array1<f64> = fixture.npz.by_name("ds_weights.npy").unwrap();
    let samples = fixture.volume("x").len_of(Axis(0)) / RANKS;
    let mine = Slice::from(comm.rank() * samples..(comm.rank() + 1) * samples);
    let images = fixture.volume("x").slice_axis(Axis(0), mine).to_owned();
    let targets: Vec<_> = (0..head_weights.len())
        .map(|head| fixture.labels(&format!("target{head}")).slice_axis(Axis(0), mine).to_owned())
        .collect();

    let sgd = Sgd { momentum: 0.99, nesterov: true, weight_decay: 3e-5 };
    let loss = SegmentationLoss::new(Target::Classes, batch_dice, None);
    let set = if batch_dice { "bd1" } else { "bd0" };

    let step = TrainStep::new(network, Optimizer::new(sgd, Some(12.0)), loss, head_weights.to_vec(), device);
    let mut step = step.connect(options, comm).unwrap();
    step.add(step.uploader().batch_with(images.view(), targets.to_vec()), comm).unwrap();
    let gradients = step.gradients().unwrap();
    let expected = fixture.state(&format!("{set}/g/"), &specs);
    let largest = expected.values().flat_map(|state| &state.values).fold(0f32, |largest, g| largest.max(g.abs()));
    for (spec, gradient) in specs.iter().zip(gradients) {
        let gradient = gradient.expect("every head has a weight here");
        let data = burn::tensor::read_sync(<Flex as FloatTensorOps<Flex>>::float_into_data(gradient)).unwrap();
        let averaged = data.to_vec::<f32>().unwrap();
        for (ours, theirs) in averaged.iter().zip(&expected[&spec.name].values) {
            assert!((ours - theirs).abs() <= 1e-5 * largest, "{set}: gradient of {}: {ours} for {theirs}", spec.name);
        }
    }

    let mut of_ranks = |what: &str| -> Vec<Vec<f64>> {
        let of_rank = |rank| {
            fixture.npz.by_name::<ndarray::OwnedRepr<f64>, ndarray::Ix1>(&format!("{set}/{what}_rank{rank}.npy"))
        };
        (0..RANKS).map(of_rank).map(|values| values.unwrap().to_vec()).collect()
    };
    let (losses, norms) = (of_ranks("losses"), of_ranks("gradnorms"));
    for iteration in 0..losses[0].len() {
        let metrics = step.run(images.view(), &targets, 1e-2, comm).unwrap();
        // A PyTorch rank reports the cross-entropy of its own samples; here it is the mean over the global batch.
        let mean = losses.iter().map(|losses| losses[iteration]).sum::<f64>() / RANKS as f64;
        assert!((metrics.loss - mean).abs() < 1e-4, "{set}: loss {} for {mean}", metrics.loss);
        let norm = norms[0][iteration];
        assert!((metrics.gradient_norm - norm).abs() < 1e-3 * norm, "{set}: norm {} for {norm}", metrics.gradient_norm);
    }
    let expected = fixture.state(&format!("{set}/w3/"), &specs);
    for state in step.network.state().iter().filter(|state| !is_rounding(&state.spec.name)) {
        assert_close(&state.spec.name, &state.values, &expected[&state.spec.name].values, 1e-3);
    }
}
