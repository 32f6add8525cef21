//! Prometheus metrics of a training over HTTP: the values of its log, from every process.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nnunet_dist::telemetry::{EpochRecord, read_log};
use nnunet_dist::work::RunDir;

use crate::http::Response;
use crate::job;
use crate::job::{PATIENCE, Running};
use crate::work::{Workshop, wait_for_epochs};

/// Epochs of a run that is stopped by the test.
const ENDLESS: [&str; 2] = ["--epochs", "100000"];

/// Values by metric name and labels, without the labels that distinguish the ranks.
type Samples = BTreeMap<String, f64>;

#[test]
fn the_metrics_equal_the_log() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let port = free_ports(1);
    let mut train = shop.train(&run);
    // A port without an address is on the loopback interface.
    train.args(ENDLESS).args(["--metrics-addr", &port.to_string()]);
    let mut train = Running::start(train);
    wait_for(&mut train, port);

    let response = get(port, "/metrics").unwrap();
    let format = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!((response.status, response.header("content-type")), (200, Some(format)));
    assert!(response.text().contains("# HELP nnunet_train_run_info Identity of the training run"));
    assert_eq!(get(port, "/").unwrap().status, 404);

    wait_for_epochs(&run, 2);
    let samples = of_a_whole_epoch(&mut train, port, 0);
    same_as_in_log(&samples, &run, &["organ", "core"]);
    let steps = samples["steps_total"];
    assert!(samples["step"] == steps && steps >= 4.0 * (samples["last_epoch"] + 1.0), "{samples:?}");
    assert!((samples["step"] / 4.0).ceil() == samples["epoch"] + 1.0, "{samples:?}");
    assert!(samples["loss"].is_finite() && samples["gradient_norm"] > 0.0, "{samples:?}");
    assert!(samples["step_seconds_total"] >= samples["last_step_seconds"], "{samples:?}");
    assert!(samples["data_wait_seconds_total"] <= samples["step_seconds_total"], "{samples:?}");
    assert!(samples["resident_memory_bytes"] > 1e6, "{samples:?}");
    assert_eq!((samples["restarts_total"], samples["rollbacks_total"]), (0.0, 0.0));
    let info = samples.keys().find(|name| name.starts_with("run_info")).unwrap();
    assert!(info.contains("configuration=\"3d_fullres\",fold=\"0\""), "{info}");
    // There are no GPU metrics on a machine without a GPU.
    assert!(!samples.keys().any(|name| name.starts_with("gpu")), "{samples:?}");
}

#[test]
fn each_process_under_mpirun_answers_at_a_port_of_its_own() {
    let Some(launcher) = job::launcher() else { return };
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let port = free_ports(2);
    let mut rank = shop.train(&run);
    rank.args(ENDLESS).args(["--batch-size", "1", "--metrics-addr", &format!("127.0.0.1:{port}")]);
    let mut job = job::in_parallel(launcher, 2, &[], &rank);
    job.env("NNUNET_LAUNCH_RESTARTS", "2");
    let mut job = Running::start(job);
    wait_for(&mut job, port + 1);
    wait_for_epochs(&run, 2);
    for rank in 0..2 {
        let samples = of_a_whole_epoch(&mut job, port + rank, rank);
        same_as_in_log(&samples, &run, &["organ", "core"]);
        assert_eq!(samples["step"], samples["steps_total"]);
        assert!(samples["communication_seconds_total"] > 0.0, "{samples:?}");
        assert_eq!(samples["restarts_total"], 2.0);
    }
}

#[test]
fn a_port_in_use_is_named_and_the_run_goes_on_under_mpirun() {
    let Some(launcher) = job::launcher() else { return };
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let port = free_ports(2);
    let _taken = TcpListener::bind(("127.0.0.1", port + 1)).unwrap();
    let mut rank = shop.train(&run);
    rank.args(["--batch-size", "1", "--metrics-addr", &format!(":{port}")]);
    let job = job::observe(job::in_parallel(launcher, 2, &[], &rank));
    assert!(job.status.success(), "{}", job.output);
    let warnings: Vec<_> = job.output.lines().filter(|line| line.contains("has no metrics")).collect();
    assert_eq!(warnings.len(), 1, "{}", job.output);
    assert!(
        warnings[0].contains(&format!("127.0.0.1:{}: ", port + 1)) && warnings[0].contains("rank 1"),
        "{warnings:?}"
    );
    job.says(&format!("rank 0: metrics at http://127.0.0.1:{port}/metrics"));
    assert_eq!(read_log(&run.log()).unwrap().len(), 3);
}

#[test]
fn an_invalid_address_is_refused() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let output = shop.train(&run).args(["--metrics-addr", "node1"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("`telemetry.metrics_addr` is \"node1\"; it must be ADDRESS:PORT"), "{error}");
}

/// The first of `count` consecutive ports that nothing listens on.
fn free_ports(count: u16) -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let others = (1..count).map(|more| TcpListener::bind(("127.0.0.1", port.checked_add(more)?)).ok());
        if others.collect::<Option<Vec<_>>>().is_some() {
            return port;
        }
    }
}

fn get(port: u16, path: &str) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes())?;
    Response::try_read(stream)
}

/// Waits until the port answers.
#[track_caller]
fn wait_for(train: &mut Running, port: u16) {
    let began = Instant::now();
    while get(port, "/metrics").is_err() {
        assert!(!train.is_over() && began.elapsed() < PATIENCE, "no answer at port {port}\n{}", train.output());
        thread::sleep(Duration::from_millis(10));
    }
}

/// The samples of a rank after its first epoch.
#[track_caller]
fn of_a_whole_epoch(train: &mut Running, port: u16, rank: u16) -> Samples {
    let began = Instant::now();
    loop {
        let samples = samples(&get(port, "/metrics").unwrap().text(), rank);
        if samples.contains_key("last_epoch") {
            return samples;
        }
        assert!(!train.is_over() && began.elapsed() < PATIENCE, "no epoch finished in time\n{}", train.output());
        thread::sleep(Duration::from_millis(10));
    }
}

/// The samples of a text, all of which must be of this rank.
fn samples(text: &str, rank: u16) -> Samples {
    let host = Command::new("uname").arg("-n").output().unwrap().stdout;
    let labels = format!("rank=\"{rank}\",host=\"{}\"", String::from_utf8_lossy(&host).trim());
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let samples = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.contains(&labels), "no {labels} in {line}");
        let name = name.replace(&format!("{labels},"), "").replace(&format!("{{{labels}}}"), "");
        (name.strip_prefix("nnunet_train_").expect(line).to_owned(), value.parse().unwrap())
    });
    samples.collect()
}

/// Compares the samples with the log line of the same epoch.
#[track_caller]
fn same_as_in_log(samples: &Samples, run: &RunDir, classes: &[&str]) {
    let epoch = samples["last_epoch"] as usize;
    // Other ranks have the values before rank 0 has logged them.
    wait_for_epochs(run, epoch + 1);
    let log = read_log(&run.log()).unwrap();
    let record: &EpochRecord = &log[epoch];
    let mut expected = BTreeMap::from([
        ("epoch_loss".to_owned(), record.train_loss),
        ("epoch_validation_loss".to_owned(), record.val_loss.unwrap()),
        ("ema_pseudo_dice".to_owned(), record.ema_pseudo_dice.unwrap()),
        ("epoch_samples_per_second".to_owned(), record.samples_per_s),
        ("epoch_step_seconds".to_owned(), record.step_s),
        ("epoch_data_wait_seconds".to_owned(), record.data_wait_s),
        ("epoch_communication_seconds".to_owned(), record.comm_s),
        ("epoch_straggler_seconds".to_owned(), record.straggler_s),
        ("epoch_gradient_norm".to_owned(), record.gradient_norm),
        ("epoch_skipped_steps".to_owned(), record.skipped_steps as f64),
    ]);
    for (class, dice) in classes.iter().zip(&record.pseudo_dice) {
        expected.extend(dice.map(|dice| (format!("pseudo_dice{{class=\"{class}\"}}"), dice)));
    }
    let best = log[..=epoch].iter().filter_map(|record| record.ema_pseudo_dice).fold(0.0, f64::max);
    expected.insert("best_ema_pseudo_dice".to_owned(), best);
    for (name, value) in expected {
        assert_eq!(samples.get(&name), Some(&value), "{name} in {samples:?}");
    }
    // The learning rate of the epoch's first step; with nnU-Net's schedule, of all its steps.
    let lrs: Vec<f64> = log.iter().map(|record| record.lr).collect();
    let lr = samples["learning_rate"];
    assert!(lrs.contains(&lr) || lr < lrs[epoch], "{lr} is not of {lrs:?}");
    assert!(samples["epoch_checkpoint_seconds"] == record.checkpoint_s || samples["epoch_checkpoint_seconds"] == 0.0);
}
