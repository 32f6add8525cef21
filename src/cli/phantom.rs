//! `nnunet-dist phantom`

use std::fs;
use std::path::PathBuf;

use clap::Args;

use super::output::outln;
use nnunet_data::phantom::PhantomOptions;
use nnunet_data::work::ConfigError;

/// Generate a labeled dataset for tests and demonstrations.
///
/// Writes bodies with organs and noise as NIfTI, in the folder layout of the Medical Segmentation Decathlon. The same
/// seed produces the same files.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nnunet-dist phantom -o phantoms --train 10 --test 2 --shape 40,56,40")]
pub struct Phantom {
    /// Folder of the dataset.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// Number of training cases.
    #[arg(long, value_name = "N", default_value_t = 10)]
    train: usize,

    /// Number of test cases.
    #[arg(long, value_name = "N", default_value_t = 2)]
    test: usize,

    /// Image shape in voxels along z, y and x, at least 8 each.
    #[arg(long, value_name = "Z,Y,X", value_parser = shape, default_value = "40,56,40")]
    shape: [usize; 3],

    /// Random seed.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

impl Phantom {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Self { train, test, shape, seed, .. } = self;
        let description = self.output.join("dataset.json");
        // Hidden files are those of a killed writer.
        let is_foreign = |entry: fs::DirEntry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            !name.starts_with("phantom_") && !name.starts_with('.')
        };
        let mut images = fs::read_dir(self.output.join("imagesTr")).into_iter().flatten().flatten();
        if description.exists() && images.any(is_foreign) {
            let defect = "holds another dataset; choose another output";
            return Err(ConfigError::new(self.output.display(), defect).into());
        }
        PhantomOptions { train_cases: train, test_cases: test, shape, seed }.generate(&self.output)?;
        outln!("{} cases: {}", train + test, self.output.display());
        Ok(())
    }
}

/// Parses three sizes of at least 8.
fn shape(text: &str) -> Result<[usize; 3], String> {
    let extents: Option<Vec<usize>> = text.split(',').map(|extent| extent.trim().parse().ok()).collect();
    match extents.as_deref() {
        Some(&[z, y, x]) if z.min(y).min(x) >= 8 => Ok([z, y, x]),
        _ => Err("must be three numbers of at least 8, such as 40,56,40".into()),
    }
}
