//! A supervised training over several hosts, disturbed at random moments: ranks are killed, hosts frozen or powered
//! off, links cut, the disk filled. It ends with the weights of the same training without disturbances, bit for bit.
//!
//! `NNUNET_CHAOS_SECONDS` sets the duration of the disturbances (two minutes by default, for a total of three; `make
//! chaos`: half an hour), and `NNUNET_CHAOS_SEED` selects them.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nnunet_dist::work::RunDir;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::hosts::Cluster;
use super::launch::over_all_hosts;
use super::runs::{HOSTS, count_steps};
use crate::disk::SmallDisk;
use crate::job::Running;
use crate::work::{Workshop, tensors_of};

/// Epochs of the first part of the run, which measures the speed of this machine.
const FIRST_EPOCHS: usize = 30;

/// A fault to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Disturbance {
    KillRank,
    PowerOff,
    Freeze,
    CutLink,
    FillDisk,
    /// As a batch system does before the time limit.
    AskToStop,
}

#[test]
fn a_training_under_chaos_ends_with_the_same_weights() {
    let shop = Workshop::new();
    let number = |name: &str, default: u64| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (seconds, seed) = (number("NNUNET_CHAOS_SECONDS", 120), number("NNUNET_CHAOS_SEED", 1));
    let limit = Duration::from_secs(seconds);
    // Mounted before the hosts start, so that they see it. The log grows by half a KiB per epoch, at a few dozen epochs
    // per second.
    let Some(disk) = SmallDisk::mount(shop.path("disk"), (8 << 20) + ((seconds as usize) << 15)) else { return };
    let Some(cluster) = Cluster::up(HOSTS) else { return };

    let [first, whole] = ["first", "whole"].map(|name| shop.run_dir(name));
    let began = Instant::now();
    let Some(mut job) = launch(&cluster, &shop, &first, FIRST_EPOCHS) else { return };
    finish(&mut job, Duration::from_secs(120));
    // Without disturbances the run takes half as long as the disturbances last; with them, about as long.
    let speed = FIRST_EPOCHS as f64 / began.elapsed().as_secs_f64();
    let epochs = ((limit.as_secs_f64() * speed / 2.0) as usize).max(FIRST_EPOCHS);
    let mut job = launch(&cluster, &shop, &whole, epochs).unwrap();
    // Slower, if other processes use the machine meanwhile.
    finish(&mut job, limit * 3 + Duration::from_secs(120));

    let run = RunDir::new(disk.folder.join("run"));
    let mut chaos = Chaos {
        cluster: &cluster,
        disk: &disk,
        random: Xoshiro256PlusPlus::seed_from_u64(seed),
        done: BTreeMap::new(),
    };
    let (began, mut starts) = (Instant::now(), 1);
    let mut job = launch(&cluster, &shop, &run, epochs).unwrap();
    let status = loop {
        if let Some(status) = job.finished() {
            match status.code() {
                Some(0) => break status,
                // Lost without a restart left, or asked to stop.
                Some(75 | 79 | 130 | 137 | 143) => {}
                _ => panic!("{status}\n{}", job.output()),
            }
            starts += 1;
            job = launch(&cluster, &shop, &run, epochs).unwrap();
        }
        assert!(began.elapsed() < limit * 4 + Duration::from_secs(300), "the job does not end\n{}", job.output());
        if began.elapsed() < limit {
            chaos.strike(&run, &mut job);
        } else {
            thread::sleep(Duration::from_millis(200));
        }
    };
    println!(
        "{epochs} epochs, seed {seed}: {:.0} s, {starts} start(s) by hand, {:?}; {status}",
        began.elapsed().as_secs_f64(),
        chaos.done
    );
    assert!(tensors_of(&whole.checkpoint_latest()) == tensors_of(&run.checkpoint_latest()), "the weights differ");
    assert!(tensors_of(&whole.checkpoint_best()) == tensors_of(&run.checkpoint_best()), "the best checkpoints differ");
    let lines = |run: &RunDir| fs::read_to_string(run.log()).unwrap().lines().count();
    assert_eq!((lines(&whole), lines(&run)), (epochs, epochs), "the log has every epoch once");
    let left = |folder: &Path| {
        fs::read_dir(folder).unwrap().flatten().any(|e| e.file_name().to_string_lossy().starts_with(".partial-"))
    };
    assert!(!left(run.root()) && !left(&run.checkpoints()), "partial files remain");
}

struct Chaos<'a> {
    cluster: &'a Cluster,
    disk: &'a SmallDisk,
    random: Xoshiro256PlusPlus,
    done: BTreeMap<Disturbance, usize>,
}

impl Chaos<'_> {
    /// Waits for a while in which the job may make progress, then injects a fault.
    fn strike(&mut self, run: &RunDir, job: &mut Running) {
        let before = count_steps(run);
        let pause = Duration::from_secs_f64(self.random.random_range(0.0..3.0));
        let began = Instant::now();
        // Long enough for progress in most rounds, not in all.
        while began.elapsed() < Duration::from_secs(20) && (count_steps(run) < before + 2 || began.elapsed() < pause) {
            if job.is_over() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let all = [
            Disturbance::KillRank,
            Disturbance::PowerOff,
            Disturbance::Freeze,
            Disturbance::CutLink,
            Disturbance::FillDisk,
            Disturbance::AskToStop,
        ];
        let disturbance = all[self.random.random_range(0..all.len())];
        // The first host runs the launcher.
        let victim = self.random.random_range(2..=HOSTS);
        let duration = Duration::from_secs_f64(self.random.random_range(0.2..12.0));
        *self.done.entry(disturbance).or_default() += 1;
        match disturbance {
            Disturbance::KillRank => self.cluster.try_signal(victim, "KILL"),
            Disturbance::PowerOff => self.cluster.power_off(victim),
            Disturbance::AskToStop => job.ask_to_stop(),
            Disturbance::Freeze => {
                self.cluster.freeze(victim);
                thread::sleep(duration);
                self.cluster.thaw(victim);
            }
            Disturbance::CutLink => {
                self.cluster.cut_link(victim);
                thread::sleep(duration);
                self.cluster.mend_link(victim);
            }
            Disturbance::FillDisk => {
                let filler = self.disk.fill();
                thread::sleep(duration / 2);
                fs::remove_file(filler).unwrap();
            }
        }
    }
}

/// One rank on each host, supervised, resuming the run.
fn launch(cluster: &Cluster, shop: &Workshop, run: &RunDir, epochs: usize) -> Option<Running> {
    let mut train: Command = shop.train(run);
    train.args(["--resume=auto", "--batch-size", "1", "--epochs", &epochs.to_string(), "--iters-per-epoch", "2"]);
    train.args(["--val-iters", "1", "--comm-timeout", "5"]);
    let flags = ["--max-restarts", "100", "--grace", "3", "--hang-timeout", "20", "--host-wait", "60"];
    over_all_hosts(cluster, HOSTS, &flags, &train).map(Running::start)
}

#[track_caller]
fn finish(job: &mut Running, patience: Duration) {
    let began = Instant::now();
    while !job.is_over() {
        assert!(began.elapsed() < patience, "the undisturbed job hangs\n{}", job.output());
        thread::sleep(Duration::from_millis(20));
    }
    let status = job.finished().unwrap();
    assert!(status.success(), "{status}\n{}", job.output());
}
