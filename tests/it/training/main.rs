//! Whole training runs and their output.

#[path = "../../common/disk.rs"]
mod disk;
#[path = "../../common/http.rs"]
mod http;
#[path = "../../common/job.rs"]
mod job;
#[path = "../../common/skip.rs"]
mod skip;
#[path = "../../common/work.rs"]
mod work;
#[path = "../../common/written_run.rs"]
mod written_run;

mod cascade;
mod checkpoints;
mod compatibility;
mod guards;
mod killed;
mod no_number;
mod profile;
mod prometheus;
mod report;
mod residual_encoder;
mod status;
mod stopping;
mod streams;
mod targets;
mod tensorboard;
mod training;
