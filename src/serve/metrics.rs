//! Prometheus metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::{
    counter::Counter,
    family::Family,
    gauge::Gauge,
    histogram::{Histogram, exponential_buckets},
};
use prometheus_client::registry::Registry;

/// Counters, the queue length, and times.
pub struct Metrics {
    registry: Registry,
    requests: Family<Code, Counter>,
    cases: Counter,
    queue: Gauge,
    in_progress: Gauge,
    seconds: Histogram,
    /// Milliseconds of the last case, in the slower of the two threads.
    last_case: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: String,
}

/// Code label of a request whose client has disconnected.
const ABORTED: &str = "aborted";

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("nnunet");
        let requests = Family::default();
        registry.register("requests", "Requests by status code; aborted: the client disconnected", requests.clone());
        let cases = Counter::default();
        registry.register("cases_predicted", "Images that were segmented", cases.clone());
        let queue = Gauge::default();
        registry.register("queue_depth", "Images accepted and not answered yet", queue.clone());
        let in_progress = Gauge::default();
        let help = "Images being preprocessed or predicted";
        registry.register("images_in_progress", help, in_progress.clone());
        // Buckets from 50 ms to almost 14 minutes.
        let seconds = Histogram::new(exponential_buckets(0.05, 2.0, 15));
        let help = "Time from the request for a segmentation to its answer";
        registry.register("request_seconds", help, seconds.clone());
        Self { registry, requests, cases, queue, in_progress, seconds, last_case: AtomicU64::new(1000) }
    }

    /// Counts a request when the result is dropped, also if it is aborted.
    pub fn request(&self) -> Request<'_> {
        Request { metrics: self, code: None }
    }

    /// Counts an image as in progress until the result is dropped.
    pub fn begin(&self) -> InProgress {
        self.in_progress.inc();
        InProgress(self.in_progress.clone())
    }

    /// Records the time of a segmentation that was answered.
    pub fn answered(&self, after: Duration) {
        self.seconds.observe(after.as_secs_f64());
    }

    /// Counts a predicted image and records its time.
    pub fn predicted(&self, within: Duration) {
        self.cases.inc();
        self.last_case.store(within.as_millis() as u64, Ordering::Relaxed);
    }

    /// Expected seconds for this number of images, based on the last one: between 1 and 600.
    pub fn expected_seconds(&self, images: usize) -> u64 {
        (self.last_case.load(Ordering::Relaxed).saturating_mul(images as u64) / 1000).clamp(1, 600)
    }

    /// OpenMetrics text format, with `queue` images accepted.
    pub fn text(&self, queue: usize) -> String {
        self.queue.set(queue as i64);
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("writing to a string cannot fail");
        text
    }
}

/// Guard that counts an image in progress.
pub struct InProgress(Gauge);

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Guard that counts a request.
pub struct Request<'m> {
    metrics: &'m Metrics,
    code: Option<u16>,
}

impl Request<'_> {
    /// Sets the status code of the response.
    pub fn ends_with(&mut self, code: u16) {
        self.code = Some(code);
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let code = self.code.map_or(ABORTED.to_owned(), |code| code.to_string());
        self.metrics.requests.get_or_create(&Code { code }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_however_they_end() {
        let metrics = Metrics::new();
        metrics.request().ends_with(200);
        drop(metrics.request());
        let _begun = metrics.begin();
        drop(metrics.begin());
        metrics.predicted(Duration::from_millis(2500));
        metrics.answered(Duration::from_secs(3));
        let text = metrics.text(4);
        for line in [
            "nnunet_requests_total{code=\"200\"} 1",
            "nnunet_requests_total{code=\"aborted\"} 1",
            "nnunet_cases_predicted_total 1",
            "nnunet_queue_depth 4",
            "nnunet_images_in_progress 1",
            "nnunet_request_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert_eq!([0, 4, 1000].map(|images| metrics.expected_seconds(images)), [1, 10, 600]);
    }
}
