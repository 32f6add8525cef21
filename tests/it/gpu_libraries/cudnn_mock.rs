//! Convolutions by cuDNN, on a mocked cuDNN and a mocked CUDA driver (tests/mock), which are compiled here and loaded
//! like the real ones. The mock computes the convolutions from the given strides, checks every descriptor, and fails on
//! demand.

use std::env;
use std::path::PathBuf;

use nnunet_dist::ops::cudnn::{ConvError, Convolutions, Cudnn, Options, Problem};
use nnunet_dist::ops::{BufferDtype, Pass};

use crate::machine::{Machine, PART};

const TABLE: &str = "NNUNET_TEST_TABLE";

fn machine() -> Option<Machine> {
    Machine::with(module_path!(), &[("cuda.c", "libcuda.so.1", &[]), ("cudnn.c", "libcudnn.so.9", &[])])
}

fn problem(pass: Pass, tf32: bool) -> Problem {
    Problem {
        pass,
        n: 2,
        input: [4, 5, 6],
        c_in: 3,
        c_out: 2,
        kernel: [3, 3, 1],
        stride: [1, 2, 2],
        padding: [1, 1, 0],
        element: BufferDtype::F32,
        weight_element: BufferDtype::F32,
        tf32,
    }
}

/// Includes a 2D one, and one without padding whose kernel equals its stride, as in a transposed convolution.
fn problems() -> Vec<Problem> {
    let all = [Pass::Forward, Pass::BackwardInput, Pass::BackwardWeights].map(|pass| {
        let solid = problem(pass, true);
        let along = |z, rest: [usize; 2]| [z, rest[0], rest[1]];
        let flat = Problem {
            input: along(1, [7, 6]),
            kernel: along(1, [3, 3]),
            stride: along(1, [2, 1]),
            padding: along(0, [1, 1]),
            ..solid
        };
        let transposed = Problem { input: [4, 6, 2], kernel: [2, 2, 1], stride: [2, 2, 1], padding: [0; 3], ..solid };
        [solid, flat, transposed]
    });
    all.concat()
}

/// Input, weights and output, channels last; the output of the pass is computed by its definition.
fn tensors(problem: &Problem) -> [Vec<f32>; 3] {
    let Problem { n, input, c_in, c_out, kernel, stride, padding, .. } = *problem;
    let output = problem.output();
    let volume = |extent: [usize; 3]| extent.iter().product::<usize>();
    let fill = |len: usize, seed: usize| (0..len).map(|i| (((i + seed) * 37 % 19) as f32 - 9.0) / 4.0).collect();
    let x: Vec<f32> = fill(n * volume(input) * c_in, 1);
    let w: Vec<f32> = fill(c_out * volume(kernel) * c_in, 2);
    let y: Vec<f32> = fill(n * volume(output) * c_out, 3);
    let mut result = [&x, &w, &y].map(|tensor| vec![0.0; tensor.len()]);
    let positions = |extent: [usize; 3]| {
        (0..volume(extent)).map(move |i| [i / extent[2] / extent[1], i / extent[2] % extent[1], i % extent[2]])
    };
    for sample in 0..n {
        for (o, out) in positions(output).enumerate() {
            for (k, tap) in positions(kernel).enumerate() {
                let from: [usize; 3] = std::array::from_fn(|axis| out[axis] * stride[axis] + tap[axis]);
                if (0..3).any(|axis| from[axis] < padding[axis] || from[axis] - padding[axis] >= input[axis]) {
                    continue;
                }
                let [z, row, column] = std::array::from_fn(|axis| from[axis] - padding[axis]);
                let i = (z * input[1] + row) * input[2] + column;
                for co in 0..c_out {
                    for ci in 0..c_in {
                        let places = [
                            (sample * volume(input) + i) * c_in + ci,
                            (co * volume(kernel) + k) * c_in + ci,
                            (sample * volume(output) + o) * c_out + co,
                        ];
                        result[0][places[0]] += w[places[1]] * y[places[2]];
                        result[1][places[1]] += x[places[0]] * y[places[2]];
                        result[2][places[2]] += x[places[0]] * w[places[1]];
                    }
                }
            }
        }
    }
    let [dx, dw, forward] = result;
    match problem.pass {
        Pass::Forward => [x, w, forward],
        Pass::BackwardInput => [dx, w, y],
        Pass::BackwardWeights => [x, dw, y],
    }
}

/// Runs a problem and compares its output.
fn check(convolutions: &Convolutions, problem: &Problem) -> Result<(), ConvError> {
    let expected = tensors(problem);
    let mut given = expected.clone();
    let computed = match problem.pass {
        Pass::Forward => 2,
        Pass::BackwardInput => 0,
        Pass::BackwardWeights => 1,
    };
    given[computed].fill(f32::NAN);
    let addresses = given.each_mut().map(|tensor| tensor.as_mut_ptr().expose_provenance() as u64);
    // SAFETY: the mock's device memory is host memory.
    unsafe { convolutions.run(problem, addresses) }?;
    for (place, (ours, expected)) in given[computed].iter().zip(&expected[computed]).enumerate() {
        assert!((ours - expected).abs() < 1e-4, "{problem}: {ours} for {expected} at {place}");
    }
    Ok(())
}

/// Run by a process of the tests below.
#[test]
fn part_of_a_rank() {
    let Ok(part) = env::var(PART) else { return };
    let options = Options { table: env::var_os(TABLE).map(PathBuf::from), ..Options::default() };
    let convolutions = match Convolutions::new(0, options) {
        Ok(convolutions) => convolutions,
        Err(reason) => {
            println!("not there: {reason}");
            return;
        }
    };
    match part.as_str() {
        "all" => problems().iter().for_each(|problem| check(&convolutions, problem).unwrap()),
        "one" => match check(&convolutions, &problem(Pass::Forward, true)) {
            Ok(()) => println!("{:?}", convolutions.choice(&problem(Pass::Forward, true))),
            Err(error) => {
                println!("{}: {error}", if matches!(error, ConvError::NoEngine(_)) { "left" } else { "failed" })
            }
        },
        "mixed" => {
            let mixed = Problem { element: BufferDtype::Bf16, ..problem(Pass::BackwardWeights, false) };
            // SAFETY: the mock refuses before it reads anything.
            match unsafe { convolutions.run(&mixed, [16, 32, 48]) } {
                Err(error @ ConvError::NoEngine(_)) => println!("left: {error}"),
                other => panic!("{other:?}"),
            }
        }
        "exact" => check(&convolutions, &problem(Pass::Forward, false)).unwrap(),
        other => panic!("{other}"),
    }
    drop(convolutions);
    println!("rank 0 of 1 is done, with cuDNN {}", Cudnn::open().unwrap().version());
}

#[test]
fn all_passes_compute_their_definition() {
    let Some(machine) = machine() else { return };
    let table = tempfile::tempdir().unwrap();
    let settings = [(TABLE, table.path().to_str().unwrap()), ("MOCK_LIVE", "1")];
    let job = machine.run("all", &settings);
    job.succeeded(1);
    job.says("with cuDNN 9.10.2");
    // Engine 7 is not allowed and 12 has no plan; of the others 11 is the fastest, and each runs four times in the
    // measurement.
    machine.was_called("cudnnBackendExecute engine=7", 0);
    machine.was_called("cudnnBackendExecute engine=10", 9 * 4);
    machine.was_called("cudnnBackendExecute engine=11", 9 * 4 + 9);
    machine.was_called("live descriptors: 0", 1);

    // The next process uses the recorded choice.
    machine.forget_calls();
    machine.run("all", &settings).succeeded(1);
    machine.was_called("cudnnBackendExecute engine=10", 0);
    machine.was_called("cudnnBackendExecute engine=11", 9);
}

#[test]
fn work_is_ordered_by_events_and_the_host_waits_for_nothing() {
    let Some(machine) = machine() else { return };
    let table = tempfile::tempdir().unwrap();
    let settings = [(TABLE, table.path().to_str().unwrap())];
    machine.run("one", &settings).succeeded(1);
    machine.forget_calls();
    machine.run("one", &settings).succeeded(1);
    let calls = machine.calls();
    let run = calls.iter().position(|call| call.starts_with("cudnnBackendExecute")).unwrap();
    let around: Vec<&str> = calls[run - 3..run + 3].iter().map(String::as_str).collect();
    // The workspace is allocated once, between the events.
    let expected = ["cuMemAlloc 1000", "cudnnBackendExecute engine=11", "cuEventRecord", "cuCtxWaitEvent"];
    assert_eq!(around[2..], expected, "{calls:#?}");
    let waited = calls.iter().position(|call| call == "cuStreamWaitEvent").unwrap();
    assert!(waited < run && calls[waited - 1] == "cuCtxRecordEvent", "{calls:#?}");
}

#[test]
fn exact_arithmetic_leaves_tensor_cores_out() {
    let Some(machine) = machine() else { return };
    let table = tempfile::tempdir().unwrap();
    machine.run("exact", &[(TABLE, table.path().to_str().unwrap())]).succeeded(1);
    machine.was_called("cudnnBackendExecute engine=10", 0);
    machine.was_called("cudnnBackendExecute engine=11", 5);
}

#[test]
fn unsupported_convolutions_use_another_implementation() {
    let Some(machine) = machine() else { return };
    for failure in ["graph", "heuristics-empty"] {
        let table = tempfile::tempdir().unwrap();
        let job = machine.run("one", &[(TABLE, table.path().to_str().unwrap()), ("MOCK_CUDNN", failure)]);
        job.says("left: cuDNN has no engine for Forward 2 3->2 @4x5x6 kernel 3x3x1 stride 1x2x2 padding 1x1x0");
    }
    let table = tempfile::tempdir().unwrap();
    let job = machine.run("mixed", &[(TABLE, table.path().to_str().unwrap()), ("MOCK_CUDNN", "mixed")]);
    job.says(
        "left: cuDNN has no engine for BackwardWeights 2 3->2 @4x5x6 kernel 3x3x1 stride 1x2x2 padding 1x1x0 Bf16",
    );
}

#[test]
fn every_failure_is_an_error_in_one_line() {
    let Some(machine) = machine() else { return };
    let says = |settings: &[(&str, &str)], line: &str| {
        let table = tempfile::tempdir().unwrap();
        let settings: Vec<_> = settings.iter().copied().chain([(TABLE, table.path().to_str().unwrap())]).collect();
        machine.run("one", &settings).says(line);
    };
    says(&[("MOCK_CUDNN", "create")], "not there: cuDNN: cudnnCreate: CUDNN_STATUS_INTERNAL_ERROR\n");
    says(&[("MOCK_CUDNN", "heuristics")], "failed: cudnnBackendFinalize: CUDNN_STATUS_INTERNAL_ERROR\n");
    says(&[("MOCK_CUDNN", "execute")], "failed: cudnnBackendExecute: CUDNN_STATUS_EXECUTION_FAILED\n");
    says(&[("MOCK_NO_MEMORY", "1")], "failed: the GPU's memory is full: cuDNN needs 1000 bytes of workspace\n");
    says(&[("MOCK_GPUS", "0")], "not there: the CUDA driver finds no GPU");
    says(&[("NNUNET_DIST_CUDNN", "/nowhere")], "not there: NNUNET_DIST_CUDNN=/nowhere: no libcudnn.so.9 can be");
}

#[test]
fn a_library_that_is_too_old_or_incomplete_is_named() {
    for (flag, line) in [
        ("-DVERSION=8907", "libcudnn.so.9: cuDNN 9 or newer is needed (this is version 8907)"),
        ("-DINCOMPLETE", "libcudnn.so.9: cuDNN 9 or newer is needed (cudnnBackendExecute is missing)"),
    ] {
        let libraries: [(&str, &str, &[&str]); 2] =
            [("cuda.c", "libcuda.so.1", &[]), ("cudnn.c", "libcudnn.so.9", &[flag])];
        let Some(machine) = Machine::with(module_path!(), &libraries) else { return };
        machine.run("one", &[]).says(line);
    }
    let Some(machine) = Machine::with(module_path!(), &[("cuda.c", "libcuda.so.1", &[])]) else { return };
    machine.run("one", &[]).says("not there: libcudnn.so.9 is not found");
}
