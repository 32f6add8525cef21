//! Engine candidates of a graph and their execution plans.

use std::ffi::c_int;

use super::descriptor::{Descriptor, Kind, Name, Value};
use super::graph::ConvProblem;
use super::graph::{Graph, IDS};
use super::library::{CallError, Cudnn, Pointer};
use crate::ops::BufferDtype;

/// `CUDNN_HEUR_MODE_A` and `_FALLBACK`: engines ranked by a performance model, then engines that support most problems.
const MODES: [c_int; 2] = [3, 2];
/// Number of candidates per mode. Some take seconds to compile, and the fastest is nearly always among the first.
const PER_MODE: usize = 8;

/// `CUDNN_NUMERICAL_NOTE_TENSOR_CORE`.
const TENSOR_CORE: c_int = 0;
/// `CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS`.
const DOWN_CONVERT: c_int = 1;
/// `CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION`.
const REDUCED_PRECISION: c_int = 2;
/// `CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC`.
const NONDETERMINISTIC: c_int = 4;

/// An execution plan. Its graph must outlive it.
pub(super) struct Plan {
    // Dropped in this order: referring descriptors first.
    descriptor: Descriptor,
    _config: Descriptor,
    /// cuDNN's index of the engine.
    pub(super) engine: i64,
    /// Required workspace in bytes.
    pub(super) workspace: usize,
}

/// Returns the engine configurations allowed for a problem, in cuDNN's order.
pub(super) fn candidates(
    library: &'static Cudnn,
    graph: &Graph,
    problem: &ConvProblem,
    deterministic: bool,
) -> Result<Vec<Candidate>, CallError> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for mode in MODES {
        let attributes = [
            (Name::HeuristicsGraph, Value::Descriptors(&[&graph.descriptor])),
            (Name::HeuristicsMode, Value::HeuristicsMode(mode)),
        ];
        let heuristics = match Descriptor::with(library, Kind::EngineHeuristics, &attributes) {
            Ok(heuristics) => heuristics,
            Err(error) if error.is_unsupported() => continue,
            Err(error) => return Err(error),
        };
        for config in heuristics.descriptors(Name::HeuristicsResults, Kind::EngineConfig, PER_MODE)? {
            let engines = config.descriptors(Name::ConfigEngine, Kind::Engine, 1)?;
            let Some(engine) = engines.first() else { continue };
            if satisfies_precision(&engine.numerical_notes()?, problem, deterministic) {
                candidates.push(Candidate { engine: engine.int(Name::EngineIndex)?, config });
            }
        }
    }
    Ok(candidates)
}

/// An engine configuration.
pub(super) struct Candidate {
    pub(super) engine: i64,
    config: Descriptor,
}

impl Candidate {
    /// Builds the execution plan; `None` if the engine does not support the problem or needs too much workspace.
    pub(super) fn plan(
        self,
        library: &'static Cudnn,
        handle: Pointer,
        max_workspace: usize,
    ) -> Result<Option<Plan>, CallError> {
        let Self { engine, config } = self;
        let attributes =
            [(Name::PlanHandle, Value::Handle(handle)), (Name::PlanConfig, Value::Descriptors(&[&config]))];
        let descriptor = match Descriptor::with(library, Kind::ExecutionPlan, &attributes) {
            Ok(descriptor) => descriptor,
            Err(error) if error.is_unsupported() => return Ok(None),
            Err(error) => return Err(error),
        };
        let workspace = descriptor.int(Name::PlanWorkspace)?.max(0) as usize;
        let plan = Plan { descriptor, _config: config, engine, workspace };
        Ok((workspace <= max_workspace).then_some(plan))
    }
}

impl Plan {
    /// Queues the plan on the handle's stream. `addresses` are those of input, weights and output, or their gradients.
    ///
    /// # Safety
    /// The addresses must be those of device memory with the problem's sizes that lives until the work is done.
    pub(super) unsafe fn run(
        &self,
        library: &'static Cudnn,
        handle: Pointer,
        addresses: [u64; 3],
        workspace: u64,
    ) -> Result<(), CallError> {
        let pointers = addresses.map(pointer);
        let pack = Descriptor::with(
            library,
            Kind::VariantPack,
            &[
                (Name::PackIds, Value::Ints(&IDS)),
                (Name::PackPointers, Value::Pointers(&pointers)),
                (Name::PackWorkspace, Value::Pointers(&[pointer(workspace)])),
            ],
        )?;
        // SAFETY: guaranteed by the caller.
        let code = unsafe { (library.functions.cudnnBackendExecute)(handle, self.descriptor.handle, pack.handle) };
        library.check("cudnnBackendExecute", code)
    }
}

fn pointer(address: u64) -> Pointer {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

/// Whether an engine's numerical notes satisfy the problem's precision (as in PyTorch's `plan_filter`).
fn satisfies_precision(notes: &[c_int], problem: &ConvProblem, deterministic: bool) -> bool {
    let has = |note| notes.contains(&note);
    let is_f32 = problem.dtype == BufferDtype::F32;
    !(has(REDUCED_PRECISION)
        || has(DOWN_CONVERT) && !(is_f32 && problem.tf32)
        || has(TENSOR_CORE) && is_f32 && !problem.tf32
        || has(NONDETERMINISTIC) && deterministic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::ConvPass;

    fn problem(dtype: BufferDtype, tf32: bool) -> ConvProblem {
        ConvProblem {
            pass: ConvPass::Forward,
            n: 1,
            input: [8; 3],
            c_in: 4,
            c_out: 4,
            kernel: [3; 3],
            stride: [1; 3],
            padding: [1; 3],
            dtype,
            weight_dtype: dtype,
            tf32,
        }
    }

    #[test]
    fn rejects_imprecise_and_nondeterministic_engines() {
        let [fp32, tf32, bf16] =
            [problem(BufferDtype::F32, false), problem(BufferDtype::F32, true), problem(BufferDtype::Bf16, false)];
        assert!(satisfies_precision(&[], &fp32, true));
        assert!(!satisfies_precision(&[TENSOR_CORE], &fp32, false));
        assert!(satisfies_precision(&[TENSOR_CORE], &tf32, false) && satisfies_precision(&[TENSOR_CORE], &bf16, false));
        assert!(!satisfies_precision(&[REDUCED_PRECISION], &bf16, false));
        assert!(
            !satisfies_precision(&[DOWN_CONVERT], &bf16, false) && satisfies_precision(&[DOWN_CONVERT], &tf32, false)
        );
        assert!(
            satisfies_precision(&[NONDETERMINISTIC], &bf16, false)
                && !satisfies_precision(&[NONDETERMINISTIC], &bf16, true)
        );
    }
}
