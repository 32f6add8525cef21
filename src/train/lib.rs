//! Training of a fold: configuration, training loop, validation, checkpoints and progress reports.
//!
//! [`run`] trains a fold and evaluates its held-out cases; every rank of a job calls it with the same arguments.
//! [`validate`] only evaluates a finished run. Both read a [`RunConfig`](config::RunConfig), and write a run directory:
//! configuration, checkpoints, `log.jsonl` and the other outputs of [`telemetry`].
//!
//! The code follows a run from top to bottom:
//!
//! 1. `run.rs` opens the run, trains with rollbacks and evaluates.
//! 2. `context.rs` reads plans, split and preprocessed cases; `trainer_builder.rs` creates the [`Trainer`] from scratch
//!    or from a checkpoint.
//! 3. `trainer.rs` is the loop over epochs and steps.
//! 4. `step.rs` is one optimization step: `forward_backward.rs`, `loss_engine.rs`, `gradient_reducer`.
//! 5. `validation.rs` computes loss and pseudo Dice of an epoch, `final_validation.rs` evaluates the held-out cases.
//!
//! ```no_run
//! use nnunet_comm::distributed::Single;
//! use nnunet_data::work::WorkDir;
//! use nnunet_train::config::{Layer, RunConfig};
//! use nnunet_train::{Outcome, RunOptions, run};
//!
//! let work = WorkDir::new("hippocampus");
//! let mut options = Layer::new("options");
//! options.set("run_dir", Some("hippocampus/runs/2d/fold_0")).set("configuration", Some("2d"));
//! let config = RunConfig::resolve(Layer::new("plans"), None, options)?;
//! if let Outcome::Finished(Some(summary)) = run(&config, &work, &Single, RunOptions::default())? {
//!     println!("mean Dice {:.4}", summary.foreground_mean.dice);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod config;
pub mod http;
pub mod telemetry;

mod batch;
mod benchmark;
mod checkpoint_writer;
mod confusion;
mod context;
mod device_prefetcher;
mod error;
mod final_validation;
mod forward_backward;
mod gradient_reducer;
mod loss_and_optimizer;
mod loss_engine;
mod nan_dump;
mod non_finite;
mod preview;
mod previous_stage;
mod profile;
mod replay;
mod run;
mod step;
mod stop;
mod stragglers;
mod trainer;
mod trainer_builder;
mod truth;
mod validation;
mod weight_check;

pub use batch::{BatchUploader, DeviceBatch, Targets};
pub use benchmark::{StepBenchmark, benchmark_steps};
pub use error::TrainError;
pub use final_validation::FinalValidationOptions;
pub use gradient_reducer::GradientReducerOptions;
pub use nan_dump::{NanDump, RankBatches, list_nan_dumps};
pub use preview::ValidationPreview;
pub use replay::{Replayed, ReplayedSample, replay};
pub use run::{Outcome, Resume, RunOptions, run, validate};
pub use step::{StepMetrics, TrainStep};
pub use trainer::Trainer;
pub use validation::{Validation, ValidationResult};
pub use weight_check::check_weights;
