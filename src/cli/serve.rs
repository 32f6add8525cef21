//! `nnunet-dist serve`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::infer_flags::{InferFlags, gibibytes};
use super::output::outln;
use crate::serve::{self, ServeLimits, ServeOptions};
use nnunet_comm::distributed;

/// Segment images sent over HTTP, until SIGTERM.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist serve -w hippocampus -c 3d_fullres -f 0 --listen 127.0.0.1:8080
  curl --data-binary @image.nii.gz http://127.0.0.1:8080/predict -o labels.nii.gz
  nnunet-dist serve -w WORK -c 3d_cascade_fullres --prev-stage WORK/runs/3d_lowres --listen 127.0.0.1:8081")]
pub struct Serve {
    #[command(flatten)]
    infer: InferFlags,

    /// For the second stage of a cascade: runs of the first stage, given as for --run; they segment each image first
    /// [default: none].
    #[arg(long, value_name = "DIR", num_args = 1..)]
    prev_stage: Vec<PathBuf>,

    /// Address and port to listen on. There is no authentication: put anything but loopback behind an authenticating
    /// proxy.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Maximum number of images in progress, including those being received or predicted; further requests get 503.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    queue: u16,

    /// Maximum size of a request in GiB; larger ones get 413 [default: 0.5].
    #[arg(long, value_name = "GIB", value_parser = gibibytes)]
    max_upload: Option<u64>,

    /// Maximum size of an image in memory in GiB, at 4 bytes per voxel and channel, both as received and at the
    /// networks' spacing; larger ones get 413 [default: 2].
    #[arg(long, value_name = "GIB", value_parser = gibibytes)]
    max_image: Option<u64>,

    /// Seconds in which a request must have sent its image; slower ones get 408.
    #[arg(long, value_name = "S", default_value_t = 120.0, value_parser = super::positive)]
    upload_timeout: f64,

    /// Folder for temporary image files, each removed after its request [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<()> {
        distributed::divide_threads(&distributed::Single)?;
        let default = ServeLimits::default();
        let options = ServeOptions {
            listen: self.listen,
            predict: self.infer.options()?,
            first_stage: self.infer.previous_stage_checkpoints(&self.prev_stage)?,
            limits: ServeLimits {
                queue: self.queue.into(),
                upload_bytes: self.max_upload.unwrap_or(default.upload_bytes),
                image_bytes: self.max_image.unwrap_or(default.image_bytes),
                upload_time: Duration::try_from_secs_f64(self.upload_timeout).unwrap_or(Duration::MAX),
            },
            spool: self.spool.unwrap_or_else(std::env::temp_dir),
        };
        serve::serve(&options, |address| outln!("listening on http://{address}"))?;
        Ok(())
    }
}
