//! Prometheus metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Gauge, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use nnunet_train::telemetry::MetricsExporter;

/// Upper bounds of the times of requests, in seconds: from 50 ms to almost 14 minutes, each twice the one before.
const BOUNDS: [f64; 15] = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6, 819.2];

/// Counters, the queue length, and times.
pub struct Metrics {
    exporter: MetricsExporter,
    /// Milliseconds of the last case, in the slower of the two threads.
    last_case: AtomicU64,
}

/// Code label of a request whose client has disconnected.
const ABORTED: &str = "aborted";

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        let exporter = MetricsExporter::new(&[], &[("nnunet_request_seconds", &BOUNDS)]);
        exporter.record(|| {
            describe_counter!("nnunet_requests_total", "Requests by status code; aborted: the client disconnected");
            describe_counter!("nnunet_cases_predicted_total", "Images that were segmented");
            describe_gauge!("nnunet_queue_depth", "Images accepted and not answered yet");
            describe_gauge!("nnunet_images_in_progress", "Images being preprocessed or predicted");
            describe_histogram!("nnunet_request_seconds", "Time from the request for a segmentation to its answer");
            describe_gauge!("nnunet_onednn", "1 if oneDNN computes convolutions on the CPU, 0 if it is missing");
            gauge!("nnunet_onednn").set(f64::from(u8::from(nnunet_nn::ops::cpu::onednn::library().is_some())));
            counter!("nnunet_cases_predicted_total").absolute(0);
            gauge!("nnunet_images_in_progress").set(0.0);
        });
        Self { exporter, last_case: AtomicU64::new(1000) }
    }

    /// Counts a request when the result is dropped, also if it is aborted.
    pub fn request(&self) -> Request<'_> {
        Request { metrics: self, code: None }
    }

    /// Counts an image as in progress until the result is dropped.
    pub fn begin(&self) -> InProgress {
        let gauge = self.exporter.record(|| gauge!("nnunet_images_in_progress"));
        gauge.increment(1.0);
        InProgress(gauge)
    }

    /// Records the time of a segmentation that was answered.
    pub fn answered(&self, after: Duration) {
        self.exporter.record(|| histogram!("nnunet_request_seconds").record(after));
    }

    /// Counts a predicted image and records its time.
    pub fn predicted(&self, within: Duration) {
        self.exporter.record(|| counter!("nnunet_cases_predicted_total").increment(1));
        self.last_case.store(within.as_millis() as u64, Ordering::Relaxed);
    }

    /// Expected seconds for this number of images, based on the last one: between 1 and 600.
    pub fn expected_seconds(&self, images: usize) -> u64 {
        (self.last_case.load(Ordering::Relaxed).saturating_mul(images as u64) / 1000).clamp(1, 600)
    }

    /// Prometheus text format, with `queue` images accepted.
    pub fn text(&self, queue: usize) -> String {
        self.exporter.record(|| gauge!("nnunet_queue_depth").set(queue as f64));
        self.exporter.render()
    }
}

/// Guard that counts an image in progress.
pub struct InProgress(Gauge);

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.decrement(1.0);
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
        self.metrics.exporter.record(|| counter!("nnunet_requests_total", "code" => code).increment(1));
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
