//! Images that are looked at before memory is asked for.

use super::refusal::Refusal;
use nnunet_data::dataset::{CaseFiles, DatasetError};
use nnunet_data::preprocess::Preprocessor;
use nnunet_image::read_header;
use nnunet_infer::InferError;

/// Whether an image has as many channels as the networks take, and fits into `image_bytes` as it is and as the networks
/// see it: with few voxels of a claimed size of metres, resampled to one of millimetres, it may be larger than any memory.
///
/// # Errors
/// What about it does not suit.
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
                    "an image of {shape:?} voxels{where_} takes {} MiB, the server allows {}",
                    bytes(shape) >> 20,
                    image_bytes >> 20
                )));
            }
        }
    }
    Ok(())
}
