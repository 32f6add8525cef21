//! Prometheus endpoint of a rank.

use std::env;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::collector::{self, AskGpu};
use super::exporter::MetricsExporter;
use super::server::Server;
use super::snapshot::{Facts, Snapshot};
use crate::config::RunConfig;
use crate::telemetry::{EpochRecord, IterationRecord, Observer, TelemetryError};
use nnunet_comm::distributed::{Communicator, host_name};
use nnunet_nn::Device;
use nnunet_nn::checkpoint::Progress;

/// Environment variable with the number of restarts by `nnunet-launch`.
const RESTARTS: &str = "NNUNET_LAUNCH_RESTARTS";

/// Serves the metrics of this rank until it is dropped.
pub struct MetricsEndpoint {
    state: RankState,
    _server: Server,
}

impl MetricsEndpoint {
    /// Starts the endpoint at the configured address, with the local rank added to the port. `classes` are the names of
    /// the classes that have a pseudo Dice.
    ///
    /// Returns `None` if no address is configured, or, with a warning, if it cannot be used: this must not end the run.
    pub fn of_run(config: &RunConfig, classes: Vec<String>, comm: &dyn Communicator) -> Option<Self> {
        // An invalid address has already been rejected when the configuration was validated.
        let first = config.telemetry.metrics_address().ok().flatten()?;
        let rank = comm.rank();
        let state = RankState::new(rank, facts(config, classes, comm), &labels(config, comm));
        let started = address_of(first, comm.local_rank()).and_then(|address| {
            let (exporter, gpu) = (state.exporter.clone(), gpu(config, comm));
            let server = Server::start(address, move || render(&exporter, gpu.as_ref()));
            server.map(|server| (address, server)).map_err(|error| format!("{address}: {error}"))
        });
        match started {
            Ok((address, server)) => {
                match rank {
                    0 => tracing::info!("rank 0: metrics at http://{address}/metrics"),
                    _ => tracing::debug!("rank {rank}: metrics at http://{address}/metrics"),
                }
                Some(Self { state, _server: server })
            }
            Err(defect) => {
                tracing::warn!(
                    "{defect}; rank {rank} has no metrics, training continues; choose another port with --metrics-addr"
                );
                None
            }
        }
    }

    /// Returns an observer that keeps the metrics up to date.
    pub fn observer(&self) -> MetricsObserver {
        MetricsObserver(self.state.clone())
    }

    /// Sets the position at which the run starts, resumes, or continues after a rollback.
    pub fn resume_from(&self, progress: &Progress) {
        self.state.update(|snapshot| snapshot.resume_from(progress));
    }
}

/// Observer that updates the metrics of a [`MetricsEndpoint`].
pub struct MetricsObserver(RankState);

impl Observer for MetricsObserver {
    fn iteration(&mut self, record: &IterationRecord) -> Result<(), TelemetryError> {
        self.0.update(|snapshot| snapshot.iteration(record));
        Ok(())
    }

    fn epoch_finished(&mut self, record: &EpochRecord) -> Result<(), TelemetryError> {
        self.0.update(|snapshot| snapshot.epoch_finished(record));
        Ok(())
    }
}

/// State of the run on this rank, and its metrics.
#[derive(Clone)]
struct RankState {
    snapshot: Arc<Mutex<Snapshot>>,
    exporter: MetricsExporter,
}

impl RankState {
    fn new(rank: usize, facts: Facts, run: &[(&'static str, String)]) -> Self {
        let exporter = MetricsExporter::new(&[("rank", rank.to_string()), ("host", host_name())], &[]);
        exporter.record(|| collector::describe(run));
        let state = Self { snapshot: Arc::default(), exporter };
        state.update(|snapshot| snapshot.facts = facts);
        state
    }

    /// Changes the state and records what follows from it.
    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        // A poisoned lock is ignored, since every field is always valid.
        let mut snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut snapshot);
        self.exporter.record(|| collector::record(&snapshot));
    }
}

/// Returns the metrics in the text format, with the present measurements of the machine.
fn render(exporter: &MetricsExporter, gpu: Option<&AskGpu>) -> String {
    exporter.record(|| collector::record_machine(gpu.map(|ask| ask())));
    exporter.render()
}

fn address_of(first: SocketAddr, local_rank: usize) -> Result<SocketAddr, String> {
    let port = u16::try_from(usize::from(first.port()) + local_rank);
    let port = port.map_err(|_| format!("{first}: no port for rank {local_rank} of the host"))?;
    Ok(SocketAddr::new(first.ip(), port))
}

fn facts(config: &RunConfig, classes: Vec<String>, comm: &dyn Communicator) -> Facts {
    let training = &config.training;
    Facts {
        epochs: training.epochs,
        steps_per_epoch: training.iterations_per_epoch,
        global_batch_size: training.batch_size * training.gradient_accumulation_steps * comm.world_size(),
        classes,
        restarts: env::var(RESTARTS).ok().and_then(|number| number.parse().ok()).unwrap_or(0),
    }
}

/// Returns the labels that identify the run.
fn labels(config: &RunConfig, comm: &dyn Communicator) -> Vec<(&'static str, String)> {
    let labels = [
        ("configuration", config.configuration.clone()),
        ("fold", config.fold.to_string()),
        ("plans", config.plans.clone()),
        ("run_dir", config.run_dir.display().to_string()),
        ("world_size", comm.world_size().to_string()),
        ("version", nnunet_core::VERSION.to_owned()),
    ];
    labels.into()
}

/// Returns a function that reads the GPU of this rank, if NVML supports it.
fn gpu(config: &RunConfig, comm: &dyn Communicator) -> Option<AskGpu> {
    #[cfg(feature = "nccl")]
    if config.device == Device::Cuda {
        // A single process uses the first visible GPU.
        match super::GpuMeter::open(comm.gpu().unwrap_or(0)) {
            Ok(meter) => return Some(Box::new(move || meter.read())),
            Err(defect) => tracing::debug!("rank {}: no GPU metrics: {defect}", comm.rank()),
        }
    }
    let _ = (config.device == Device::Cuda, comm);
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use serde_json::Value;

    use super::super::GpuReading;
    use super::*;
    use crate::telemetry::StepTimes;

    /// Returns the text for a rank with all values known.
    fn metrics() -> String {
        let facts =
            Facts { epochs: 10, steps_per_epoch: 5, classes: vec!["a \"b\"".into(), "c".into()], ..Facts::default() };
        let state = RankState::new(3, facts, &[("fold", "0".into())]);
        let times = StepTimes { total: 0.5, data_wait: 0.125, communication: 0.25 };
        let step =
            IterationRecord { epoch: 3, iteration: 1, loss: -0.5, loss_scale: Some(2.0), times, ..Default::default() };
        state.update(|snapshot| snapshot.iteration(&step));
        let pseudo_dice = vec![Some(0.25), None];
        let epoch = EpochRecord { loss_scale: Some(2.0), pseudo_dice, ..EpochRecord::example(2) };
        state.update(|snapshot| snapshot.epoch_finished(&epoch));
        let reading = GpuReading { memory: Some([60, 80]), utilization: Some(0.75) };
        let gpu: AskGpu = Box::new(move || reading);
        render(&state.exporter, Some(&gpu))
    }

    /// Returns the names of all samples in a text.
    fn names(text: &str) -> BTreeSet<&str> {
        let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        samples.map(|line| line.split(['{', ' ']).next().unwrap_or_default()).collect()
    }

    #[test]
    fn every_metric_has_its_rank_and_what_is_unknown_is_left_out() {
        let text = metrics();
        let labels = format!("rank=\"3\",host=\"{}\"", host_name());
        for (name, own, value) in [
            ("run_info", ",fold=\"0\"", "1"),
            ("step", "", "17"),
            ("steps_total", "", "1"),
            ("loss", "", "-0.5"),
            ("epoch_loss", "", "0.3"),
            ("pseudo_dice", ",class=\"a \\\"b\\\"\"", "0.25"),
            // A class that did not occur has no Dice.
            ("pseudo_dice", ",class=\"c\"", "NaN"),
            ("last_communication_seconds", "", "0.25"),
            ("communication_seconds_total", "", "0.25"),
            ("gpu_memory_used_bytes", "", "60"),
            ("gpu_utilization_ratio", "", "0.75"),
        ] {
            let line = format!("nnunet_train_{name}{{{labels}{own}}} {value}");
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        let before_the_first_step = RankState::new(0, Facts::default(), &[]).exporter.render();
        assert!(!names(&before_the_first_step).contains("nnunet_train_loss"), "{before_the_first_step}");
    }

    #[test]
    fn ports_follow_the_first() {
        let first: SocketAddr = "10.0.0.1:65534".parse().unwrap();
        assert_eq!(address_of(first, 1), Ok("10.0.0.1:65535".parse().unwrap()));
        assert!(address_of(first, 2).unwrap_err().contains("no port for rank 2"));
    }

    /// Collects every expression of a dashboard.
    fn queries<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| queries(value, found)),
            Value::Object(entries) => entries.iter().for_each(|(key, value)| match value {
                Value::String(text) if ["expr", "query", "definition"].contains(&key.as_str()) => found.push(text),
                value => queries(value, found),
            }),
            _ => {}
        }
    }

    #[test]
    fn the_dashboard_asks_for_what_there_is() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/grafana/nnunet-dist.json");
        let dashboard: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let mut found = Vec::new();
        queries(&dashboard, &mut found);
        let words = found.iter().flat_map(|query| query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
        let asked: BTreeSet<&str> = words.filter(|word| word.starts_with(collector::PREFIX)).collect();
        let text = metrics();
        let there = names(&text);
        let missing: Vec<_> = asked.difference(&there).collect();
        assert!(missing.is_empty(), "the dashboard uses {missing:?}, which no rank exports");
        // The dashboard must use every metric.
        let left_out: Vec<_> = there.difference(&asked).map(|name| name.trim_start_matches("nnunet_train_")).collect();
        assert_eq!(left_out, Vec::<&str>::new());
        for panel in dashboard["panels"].as_array().unwrap() {
            let source = &panel["datasource"]["uid"];
            assert!(panel["type"] == "row" || source == "${datasource}", "{panel}");
        }
    }
}
