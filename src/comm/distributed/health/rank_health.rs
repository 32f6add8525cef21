//! State of the ranks, and the diagnosis of a late collective from it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use nnunet_core::host::host_name;

/// A rank without a heartbeat for this long (five missed heartbeats) is dead, frozen or unreachable.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(5);

/// Tolerance for a last rank that reached the collective just before the timeout of the others.
const RECENT: Duration = Duration::from_secs(2);

/// State of a rank as known to rank 0.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RankHealth {
    pub rank: usize,
    pub host: String,
    /// Milliseconds since its last heartbeat.
    pub silent_ms: u64,
    /// Milliseconds since it last entered a phase, or started or stopped waiting.
    pub idle_ms: u64,
    /// Whether it waits for others in a collective.
    pub waiting: bool,
    /// Current phase.
    pub phase: String,
    /// Whether the phase may take an unbounded time.
    pub long: bool,
}

/// State of this rank, reported to the others.
pub(super) struct OwnHealth {
    rank: usize,
    activity: Mutex<Activity>,
}

/// Current activity of this rank.
struct Activity {
    phase: String,
    /// Whether the phase may take an unbounded time.
    long: bool,
    /// Collective in which the rank waits, if any.
    waiting: Option<String>,
    /// Time of the last change of any of these.
    changed: Instant,
}

impl OwnHealth {
    pub(super) fn new(rank: usize) -> Arc<Self> {
        let activity = Activity { phase: "the start".into(), long: false, waiting: None, changed: Instant::now() };
        Arc::new(Self { rank, activity: Mutex::new(activity) })
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// Sets the current phase, and whether it may take an unbounded time.
    pub(super) fn enter_phase(&self, phase: &str, long: bool) {
        let mut activity = self.lock();
        activity.long = long;
        phase.clone_into(&mut activity.phase);
        activity.changed = Instant::now();
    }

    /// Returns the current phase.
    pub(super) fn phase(&self) -> String {
        self.lock().phase.clone()
    }

    /// Sets the collective in which this rank waits, if any.
    pub(super) fn set_waiting(&self, operation: Option<&str>) {
        let mut activity = self.lock();
        activity.waiting = operation.map(str::to_owned);
        activity.changed = Instant::now();
    }

    /// Like [`OwnHealth::set_waiting`], without effect if the rank is already in that state.
    pub(super) fn update_waiting(&self, operation: Option<&str>) {
        let mut activity = self.lock();
        if activity.waiting.as_deref() != operation {
            activity.waiting = operation.map(str::to_owned);
            activity.changed = Instant::now();
        }
    }

    /// Returns the state as reported to other ranks.
    pub(super) fn report(&self) -> RankHealth {
        let activity = self.lock();
        RankHealth {
            rank: self.rank,
            host: host_name(),
            silent_ms: 0,
            idle_ms: activity.changed.elapsed().as_millis() as u64,
            waiting: activity.waiting.is_some(),
            long: activity.long,
            phase: match &activity.waiting {
                Some(operation) => format!("{}, {operation}", activity.phase),
                None => activity.phase.clone(),
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cause of a late collective.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::distributed) enum Diagnosis {
    /// Another rank is still working: continue to wait.
    Slow(String),
    /// The collective can never complete.
    Lost(String),
}

/// Diagnoses the collective in which rank `own` has waited for `limit`, from the `members` that have ever sent a
/// heartbeat.
pub(super) fn diagnose(own: usize, ranks: &[RankHealth], limit: Duration) -> Diagnosis {
    let ms = |duration: Duration| duration.as_millis() as u64;
    let others = || ranks.iter().filter(|health| health.rank != own);
    let silent: Vec<_> = others().filter(|health| health.silent_ms >= ms(HEARTBEAT_TIMEOUT)).collect();
    if let Some(longest) = silent.iter().max_by_key(|health| health.silent_ms) {
        return Diagnosis::Lost(format!(
            "no heartbeat from {} for {:.1} s: the process is frozen or dead, or its host or network link is down",
            names(&silent),
            longest.silent_ms as f64 / 1000.0
        ));
    }
    let busy: Vec<_> = others().filter(|health| !health.waiting).collect();
    let stuck = busy.iter().filter(|health| !health.long && health.idle_ms >= ms(limit));
    if let Some(stuck) = stuck.max_by_key(|health| health.idle_ms) {
        return Diagnosis::Lost(format!(
            "{} is alive but has made no progress for {:.1} s in {}",
            name(stuck),
            stuck.idle_ms as f64 / 1000.0,
            stuck.phase
        ));
    }
    if let Some(last) = busy.first() {
        return Diagnosis::Slow(format!("{} is still working in {}", name(last), last.phase));
    }
    match others().min_by_key(|health| health.idle_ms) {
        Some(last) if last.idle_ms < ms(RECENT) => Diagnosis::Slow(format!("{} has only just reached it", name(last))),
        Some(last) => Diagnosis::Lost(format!(
            "all ranks are alive and waiting, {} in {}: messages were lost, or the ranks are at different steps",
            name(last),
            last.phase
        )),
        None => Diagnosis::Lost("timeout, and no other rank has ever sent a heartbeat".into()),
    }
}

fn name(health: &RankHealth) -> String {
    format!("rank {} on {}", health.rank, health.host)
}

/// Lists at most 8 ranks with their hosts.
fn names(ranks: &[&RankHealth]) -> String {
    const NAMED: usize = 8;
    let mut text = ranks.iter().take(NAMED).map(|health| name(health)).collect::<Vec<_>>().join(", ");
    if ranks.len() > NAMED {
        text += &format!(" and {} more", ranks.len() - NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn health(rank: usize, silent_ms: u64, idle_ms: u64, waiting: bool) -> RankHealth {
        RankHealth {
            rank,
            host: format!("node{rank}"),
            silent_ms,
            idle_ms,
            waiting,
            phase: "step 3".into(),
            long: false,
        }
    }

    fn lost(ranks: &[RankHealth]) -> String {
        match diagnose(0, ranks, LIMIT) {
            Diagnosis::Lost(reason) => reason,
            Diagnosis::Slow(reason) => panic!("only slow: {reason}"),
        }
    }

    #[test]
    fn ranks_without_heartbeats_are_lost() {
        let reason = lost(&[
            health(0, 0, 0, true),
            health(1, 9_000, 25_000, true),
            health(2, 0, 0, true),
            health(3, 7_000, 0, false),
        ]);
        assert!(reason.starts_with("no heartbeat from rank 1 on node1, rank 3 on node3 for 9.0 s"), "{reason}");
    }

    #[test]
    fn a_working_rank_is_slow_and_an_idle_one_hangs() {
        let ranks = [health(0, 0, 20_000, true), health(1, 500, 19_000, false), health(2, 0, 20_000, true)];
        assert_eq!(diagnose(0, &ranks, LIMIT), Diagnosis::Slow("rank 1 on node1 is still working in step 3".into()));
        let ranks = [health(0, 0, 20_000, true), health(1, 500, 21_000, false)];
        assert_eq!(lost(&ranks), "rank 1 on node1 is alive but has made no progress for 21.0 s in step 3");
        let ranks = [ranks[0].clone(), RankHealth { long: true, ..ranks[1].clone() }];
        assert!(matches!(diagnose(0, &ranks, LIMIT), Diagnosis::Slow(_)));
    }

    #[test]
    fn all_ranks_waiting_is_a_deadlock_unless_one_has_just_arrived() {
        assert!(lost(&[health(0, 0, 20_000, true), health(1, 0, 20_000, true)]).starts_with("all ranks are alive"));
        let ranks = [health(0, 0, 20_000, true), health(1, 0, 100, true)];
        assert!(matches!(diagnose(0, &ranks, LIMIT), Diagnosis::Slow(_)));
    }

    #[test]
    fn reports_that_no_rank_ever_sent_a_heartbeat() {
        assert!(lost(&[health(0, 0, 20_000, true)]).contains("no other rank has ever"));
    }
}
