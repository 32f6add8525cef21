//! Alpha-beta model of the all-reduce, and the resulting parallel efficiency.

use serde::{Deserialize, Serialize};

/// Measured time of an all-reduce.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AllReduceTime {
    pub ranks: usize,
    pub bytes: usize,
    pub seconds: f64,
}

/// A network between ranks: a message of `n` bytes takes `latency_s + n / bytes_per_s` (Hockney 1994).
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    pub name: String,
    pub latency_s: f64,
    /// Bandwidth of one rank, in each direction.
    pub bytes_per_s: f64,
}

/// Time and communication volume of a step of one rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepCost {
    /// Time of everything except communication.
    pub busy_s: f64,
    /// Bytes of all gradients in communication precision.
    pub gradient_bytes: usize,
    /// Bytes of the last bucket, which no computation overlaps.
    pub last_bucket_bytes: usize,
}

/// Predicted efficiency of a number of ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    pub ranks: usize,
    /// Time of the all-reduce.
    pub all_reduce_s: f64,
    /// The part of it that the backward pass does not overlap.
    pub exposed_s: f64,
    /// Throughput per rank relative to a single rank.
    pub efficiency: f64,
}

/// Fraction of a step that can overlap with buckets: the backward pass, which takes twice the computation of the
/// forward pass.
const BACKWARD_FRACTION: f64 = 2.0 / 3.0;

/// Ranks per node, connected by NVLink regardless of the network between nodes.
const RANKS_PER_NODE: usize = 8;

/// Fraction of the nominal bandwidth that collectives reach.
const BANDWIDTH_EFFICIENCY: f64 = 0.8;

impl Link {
    /// Links by their nominal bandwidth: NVLink 4 of an H100 (450 GB/s each way) and networks with one port per GPU.
    /// Latencies are those of NCCL's tuning model (`src/graph/tuning.cc`: some microseconds a hop within a node, more
    /// than ten between nodes).
    pub fn presets() -> [Self; 3] {
        let link = |name: &str, latency_s, gigabits: f64| Self {
            name: name.into(),
            latency_s,
            bytes_per_s: BANDWIDTH_EFFICIENCY * gigabits * 1e9 / 8.0,
        };
        [link("NVLink", 3e-6, 3600.0), link("400 Gb/s", 15e-6, 400.0), link("100 Gb/s", 15e-6, 100.0)]
    }

    /// Fits a link to measured times by least squares of the relative errors; `None` without at least two sizes on two
    /// or more ranks.
    pub fn fit(times: &[AllReduceTime]) -> Option<Self> {
        let (mut aa, mut ab, mut bb, mut a, mut b) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for time in times.iter().filter(|time| time.ranks > 1 && time.seconds > 0.0) {
            let (messages, bytes) = ring(time.ranks, time.bytes);
            let (x, y) = (messages / time.seconds, bytes / time.seconds);
            aa += x * x;
            ab += x * y;
            bb += y * y;
            a += x;
            b += y;
        }
        let determinant = aa * bb - ab * ab;
        if determinant <= 1e-9 * aa * bb {
            return None;
        }
        let latency_s = ((a * bb - b * ab) / determinant).max(0.0);
        let seconds_per_byte = (b * aa - a * ab) / determinant;
        (seconds_per_byte > 0.0).then(|| Self {
            name: "measured".into(),
            latency_s,
            bytes_per_s: 1.0 / seconds_per_byte,
        })
    }

    /// Time of an all-reduce: the faster of a ring and of a double tree, which large jobs use for its logarithmic depth
    /// (Sanders et al. 2009; NCCL 2.4).
    pub fn all_reduce_s(&self, ranks: usize, bytes: usize) -> f64 {
        let (messages, ring_bytes) = ring(ranks, bytes);
        let ring = messages * self.latency_s + ring_bytes / self.bytes_per_s;
        let depth = (ranks.max(1) as f64).log2().ceil();
        let tree = 2.0 * depth * self.latency_s + if ranks > 1 { 2.0 * bytes as f64 / self.bytes_per_s } else { 0.0 };
        ring.min(tree)
    }
}

/// Number of messages and bytes that each rank of a ring sends sequentially.
fn ring(ranks: usize, bytes: usize) -> (f64, f64) {
    let steps = 2.0 * (ranks as f64 - 1.0);
    (steps, steps / ranks as f64 * bytes as f64)
}

/// Predicted efficiency of `ranks` ranks. If `within_node` is given, it connects the ranks of a node, and `link`
/// connects the nodes.
pub fn predict(step: StepCost, ranks: usize, link: &Link, within_node: Option<&Link>) -> Prediction {
    let all_reduce = |bytes: usize| match within_node {
        Some(node) if ranks <= RANKS_PER_NODE => node.all_reduce_s(ranks, bytes),
        // Hierarchical: reduce-scatter within the node, all-reduce of each rank's share between nodes, all-gather
        // within the node.
        Some(node) => {
            let nodes = ranks.div_ceil(RANKS_PER_NODE);
            node.all_reduce_s(RANKS_PER_NODE, bytes) + link.all_reduce_s(nodes, bytes / RANKS_PER_NODE)
        }
        None => link.all_reduce_s(ranks, bytes),
    };
    let all_reduce_s = all_reduce(step.gradient_bytes);
    let exposed_s = (all_reduce_s - BACKWARD_FRACTION * step.busy_s).max(all_reduce(step.last_bucket_bytes));
    Prediction { ranks, all_reduce_s, exposed_s, efficiency: step.busy_s / (step.busy_s + exposed_s) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fit_finds_the_link_that_made_the_times() {
        let link = Link { name: "made up".into(), latency_s: 2e-5, bytes_per_s: 1.25e8 };
        let sizes = [1 << 10, 1 << 16, 1 << 22];
        let times: Vec<_> = [2, 4]
            .into_iter()
            .flat_map(|ranks| {
                sizes.map(|bytes| {
                    let (messages, ring_bytes) = ring(ranks, bytes);
                    let seconds = messages * link.latency_s + ring_bytes / link.bytes_per_s;
                    AllReduceTime { ranks, bytes, seconds }
                })
            })
            .collect();
        let fitted = Link::fit(&times).unwrap();
        assert!((fitted.latency_s / link.latency_s - 1.0).abs() < 1e-6, "{fitted:?}");
        assert!((fitted.bytes_per_s / link.bytes_per_s - 1.0).abs() < 1e-6, "{fitted:?}");
    }

    #[test]
    fn one_size_or_one_rank_tells_nothing() {
        let time = AllReduceTime { ranks: 2, bytes: 1 << 20, seconds: 0.01 };
        assert_eq!(Link::fit(&[time, time]), None);
        assert_eq!(Link::fit(&[AllReduceTime { ranks: 1, ..time }]), None);
    }

    #[test]
    fn what_the_backward_pass_hides_costs_nothing_but_the_last_bucket() {
        let step = StepCost { busy_s: 0.3, gradient_bytes: 120 << 20, last_bucket_bytes: 1 << 20 };
        let [nvlink, fast, slow] = Link::presets();
        let near = predict(step, 8, &fast, Some(&nvlink));
        assert!(near.efficiency > 0.99 && near.exposed_s == nvlink.all_reduce_s(8, 1 << 20), "{near:?}");
        let modem = Link { bytes_per_s: 1e7, ..slow };
        let far = predict(step, 1024, &modem, Some(&nvlink));
        assert!(far.efficiency < 0.2 && far.all_reduce_s > 3.0, "{far:?}");
        assert_eq!(predict(step, 1, &fast, None).efficiency, 1.0);
    }
}
