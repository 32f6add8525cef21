//! Image formats, datasets, preprocessing, the case store, augmentation and sampling.

#[path = "../../common/mod.rs"]
mod common;
#[path = "../../common/dicom.rs"]
mod series;
#[path = "../../common/skip.rs"]
mod skip;

mod augmentation;
mod convert;
mod dataset;
mod dicom;
mod fingerprint_reference;
mod formats;
mod nifti_corpus;
mod nifti_places;
mod phantom;
mod preprocess_reference;
mod properties;
mod resample_reference;
mod sampling;
mod store;
mod tiff_kinds;
