//! Checks images before memory is allocated for them.

use super::refusal::Refusal;
use nnunet_data::dataset::{CaseFiles, DatasetError};
use nnunet_data::preprocess::Preprocessor;
use nnunet_image::read_header;
use nnunet_infer::InferError;

/// Checks that an image has the channels of the networks, and fits into `image_bytes` both as stored and after
/// resampling. A file with few voxels and a spacing of meters may exceed any memory after resampling to millimeters.
///
/// # Errors
/// Returns an [unusable](Refusal::unusable) or [too large](Refusal::too_large) refusal.
pub fn check(
    files: &CaseFiles,
    channels: usize,
    image_bytes: u64,
    preprocessors: &[Preprocessor],
) -> Result<(), Refusal> {
    let folder = files.images[0].parent().unwrap_or(&files.images[0]);
    let unreadable = |error| Refusal::of(&InferError::Dataset(DatasetError::Image(error)), folder);
    let headers = files.images.iter().map(|image| read_header(image).map_err(unreadable));
    let headers = headers.collect::<Result<Vec<_>, _>>()?;
    let found: usize = headers.iter().map(|header| header.shape[0]).sum();
    if found != channels {
        return Err(Refusal::unusable(format!("the image has {found} channels, the networks take {channels}")));
    }
    let bytes = |[z, y, x]: [usize; 3]| {
        [z, y, x, channels, 4].iter().fold(1u64, |product, factor| product.saturating_mul(*factor as u64))
    };
    for header in &headers {
        let [_, z, y, x] = header.shape;
        let resampled =
            preprocessors.iter().map(|stage| (stage.shape_after_resampling(header), " at the networks' spacing"));
        for (shape, where_) in [([z, y, x], "")].into_iter().chain(resampled) {
            if bytes(shape) > image_bytes {
                return Err(Refusal::too_large(format!(
                    "an image of {shape:?} voxels{where_} takes {} MiB, over the limit of {} MiB",
                    bytes(shape) >> 20,
                    image_bytes >> 20
                )));
            }
        }
    }
    Ok(())
}
