//! Recorder of the `metrics` facade that renders the Prometheus text format.

use std::fmt;
use std::sync::Arc;

use metrics::with_local_recorder;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// Content type of the Prometheus text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics of one process or server, recorded with the macros of the crate `metrics`.
///
/// A recorder of its own, instead of the facade's global one, keeps several runs in one process apart.
#[derive(Clone)]
pub struct MetricsExporter {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
}

impl MetricsExporter {
    /// Creates an exporter whose metrics carry `labels`. Each of the `histograms` has the given upper bounds.
    ///
    /// # Panics
    /// Panics if a histogram has no bounds.
    pub fn new(labels: &[(&str, String)], histograms: &[(&str, &[f64])]) -> Self {
        let mut builder = PrometheusBuilder::new();
        for (name, value) in labels {
            builder = builder.add_global_label(*name, value);
        }
        for (name, bounds) in histograms {
            let matcher = Matcher::Full((*name).to_owned());
            builder = builder.set_buckets_for_metric(matcher, bounds).expect("a histogram has bounds");
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        Self { recorder: Arc::new(recorder), handle }
    }

    /// Runs `record`, whose `metrics::gauge!`, `metrics::counter!` and so on are recorded here.
    pub fn record<T>(&self, record: impl FnOnce() -> T) -> T {
        with_local_recorder(&*self.recorder, record)
    }

    /// Returns all metrics in the text format.
    pub fn render(&self) -> String {
        // Empties the buffers in which observations of histograms wait.
        self.handle.run_upkeep();
        self.handle.render()
    }
}

impl fmt::Debug for MetricsExporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsExporter").finish_non_exhaustive()
    }
}
