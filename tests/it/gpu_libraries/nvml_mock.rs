//! GPU metrics on a mocked NVML and a mocked CUDA driver (tests/mock), which are compiled here and loaded like the real
//! ones.

use std::env;

use nnunet_dist::telemetry::GpuMeter;

use crate::machine::{Machine, PART};
use crate::skip::skip;

const DRIVER: (&str, &str, &[&str]) = ("cuda.c", "libcuda.so.1", &[]);
const NVML: (&str, &str, &[&str]) = ("nvml.c", "libnvidia-ml.so.1", &[]);

#[test]
fn memory_and_load_are_those_of_the_ranks_own_gpu() {
    let Some(machine) = Machine::with(module_path!(), &[DRIVER, NVML]) else { return };
    let job = machine.run("1", &[("MOCK_GPUS", "2")]);
    job.says("GpuReading { memory: Some([60, 80]), utilization: Some(0.75) }");
    // The driver has it, but NVML does not.
    let job = machine.run("0", &[("MOCK_GPUS", "2")]);
    job.says("NVML does not know GPU-00000000-0000-0000-0000-000000000000: ");
}

#[test]
fn values_that_nvml_does_not_report_are_omitted() {
    let Some(machine) = Machine::with(module_path!(), &[DRIVER, NVML]) else { return };
    let job = machine.run("1", &[("MOCK_GPUS", "2"), ("MOCK_NVML", "old")]);
    job.says("GpuReading { memory: None, utilization: None }");
}

#[test]
fn a_missing_library_is_reported() {
    let Some(machine) = Machine::with(module_path!(), &[DRIVER]) else { return };
    // SAFETY: it is opened and not used.
    if unsafe { libloading::Library::new("libnvidia-ml.so.1") }.is_ok() {
        skip("this machine has NVML");
        return;
    }
    let job = machine.run("0", &[]);
    job.says("NVML: ");
    assert!(!job.output.contains("panicked"), "{}", job.output);
}

/// Not a test: run by a rank that another test has started.
#[test]
fn part_of_a_rank() {
    let Ok(gpu) = env::var(PART) else { return };
    match GpuMeter::open(gpu.parse().unwrap()) {
        Ok(meter) => println!("{:?}", meter.read()),
        Err(defect) => println!("{defect}"),
    }
}
