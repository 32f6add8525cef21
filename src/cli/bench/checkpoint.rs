//! `nnunet-dist bench checkpoint`

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::bench::{Report, checkpoint, plain_network};

/// Measure writing and reading a checkpoint (weights and momentum of nnU-Net's plain U-Net).
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nnunet-dist bench checkpoint --dir /scratch --features 32,64,128,256,320,320")]
pub(super) struct Checkpoint {
    /// Folder on the disk to measure [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Feature maps per stage of the network.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "32,64,128,256")]
    features: Vec<usize>,
}

impl Checkpoint {
    pub(super) fn run(&self, rounds: usize) -> anyhow::Result<Report> {
        let network = plain_network([40, 56, 40], 1, 3, &self.features);
        let folder = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::tempdir_in(&folder).with_context(|| format!("{}: not writable", folder.display()))?;
        Ok(Report::new("checkpoint", checkpoint(&network, folder.path(), rounds)?))
    }
}
