//! nnU-Net v2's planners: create plans from a dataset fingerprint.

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::configuration::resampling_fn;
use super::patch::{PatchPlan, PatchRequest};
use super::plans::{ConfigurationEntry, InheritedConfiguration};
use super::presets::Preset;
use super::spacing;
use super::training_images::TrainingImages;
use super::{Architecture, Configuration, PlanError, Planner, Plans, ResamplingSpec};
use crate::dataset::{DatasetJson, Fingerprint};

const TWO_D: &str = "2d";
const LOWRES: &str = "3d_lowres";
const FULLRES: &str = "3d_fullres";
const CASCADE: &str = "3d_cascade_fullres";

/// Extent in voxels from which an axis is pooled, so that the network has more than one stage.
const MIN_EXTENT: usize = 8;

/// A low-resolution configuration is planned if the patch covers less than this fraction of the image.
const LOWRES_BELOW: f64 = 0.25;

/// Minimum ratio of the numbers of voxels at full and at low resolution.
const LOWRES_MIN_REDUCTION: f64 = 2.0;

/// Factor between the spacings tried for the low resolution.
const LOWRES_STEP: f64 = 1.03;

/// Z-scores use the nonzero mask if cropping to nonzero keeps less than this fraction of an image.
const MASK_BELOW: f64 = 0.75;

/// Options of the planner.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannerOptions {
    /// Planner of nnU-Net to use.
    pub planner: Planner,
    /// Target GPU memory in GB that patch and batch size are chosen to fill.
    pub gpu_memory_gb: f64,
    /// Configurations to keep, along with those they inherit from or follow; empty keeps all that apply to the dataset.
    pub configurations: Vec<String>,
    /// Name of the plans; also part of the preprocessed data's folder names.
    pub plans_name: String,
    /// Target spacing at full resolution in mm, along the axes `(z, y, x)` of the stored images; `None` derives it from
    /// the dataset.
    pub target_spacing: Option<[f64; 3]>,
    /// Plan a cascade even if a patch covers enough of the image at full resolution.
    pub force_lowres: bool,
}

impl PlannerOptions {
    /// Returns the default options of a planner.
    pub fn for_planner(planner: Planner) -> Self {
        Self {
            planner,
            gpu_memory_gb: planner.gpu_memory_gb(),
            configurations: Vec::new(),
            plans_name: planner.plans_name().to_owned(),
            target_spacing: None,
            force_lowres: false,
        }
    }
}

impl Default for PlannerOptions {
    fn default() -> Self {
        Self::for_planner(Planner::Default)
    }
}

/// Plans all configurations that apply to a dataset.
///
/// # Errors
/// Returns an error if the fingerprint is empty or does not have three axes, a configuration does not apply to the
/// dataset, or the GPU is too small for any patch.
pub fn plan(
    dataset_name: &str,
    dataset: &DatasetJson,
    fingerprint: &Fingerprint,
    options: &PlannerOptions,
) -> Result<Plans, PlanError> {
    let planning = Planning { dataset_name, dataset, fingerprint, options, preset: options.planner.preset() };
    planning.check()?;
    planning.plan()
}

struct Planning<'a> {
    dataset_name: &'a str,
    dataset: &'a DatasetJson,
    fingerprint: &'a Fingerprint,
    options: &'a PlannerOptions,
    preset: &'static Preset,
}

impl Planning<'_> {
    fn plan(&self) -> Result<Plans, PlanError> {
        let target = self.options.target_spacing.unwrap_or_else(|| spacing::target_spacing(self.fingerprint));
        let (forward, backward) = spacing::transposition(&target);
        let spacing = forward.map(|axis| target[axis]);
        let resampled = spacing::median_resampled_shape(self.fingerprint, &target);
        let shape = forward.map(|axis| resampled[axis]);
        let median_spacing = spacing::median_spacing(self.fingerprint);
        let median_shape = spacing::median_shape(self.fingerprint);
        let configurations = self.selected(self.configurations(&spacing, &shape)?)?;
        Ok(Plans {
            dataset_name: self.dataset_name.to_owned(),
            plans_name: self.options.plans_name.clone(),
            original_median_spacing_after_transp: forward.map(|axis| median_spacing[axis]).to_vec(),
            original_median_shape_after_transp: forward.map(|axis| median_shape[axis]).to_vec(),
            image_reader_writer: self.image_reader_writer(),
            transpose_forward: forward.to_vec(),
            transpose_backward: backward.to_vec(),
            configurations,
            experiment_planner_used: self.preset.class.to_owned(),
            label_manager: "LabelManager".to_owned(),
            foreground_intensity_properties_per_channel: self
                .fingerprint
                .foreground_intensity_properties_per_channel
                .clone(),
            other: TrainingImages::from_fingerprint(self.fingerprint).into_iter().map(TrainingImages::entry).collect(),
            origin: Default::default(),
        })
    }

    /// Returns all configurations that apply to the dataset, in nnU-Net's order.
    fn configurations(
        &self,
        spacing: &[f64; 3],
        shape: &[f64; 3],
    ) -> Result<IndexMap<String, ConfigurationEntry>, PlanError> {
        let full = |configuration| ConfigurationEntry::Full(Box::new(configuration));
        let voxels = self.dataset_voxels(shape);
        let mut configurations = IndexMap::new();
        match self.configuration(TWO_D, &spacing[1..], &shape[1..], voxels) {
            Ok(two_d) => {
                drop(configurations.insert(TWO_D.to_owned(), full(Configuration { batch_dice: true, ..two_d })))
            }
            // A long stack of small slices is enough for a 3D network.
            Err(error @ PlanError::Unplannable { .. }) if shape[0] > shape[1].max(shape[2]) => {
                tracing::warn!("{TWO_D} is left out: {error}");
            }
            Err(error) => return Err(error),
        }
        if shape[0] == 1.0 {
            if self.options.force_lowres {
                return Err(self.unplannable("a cascade requires images of more than one slice".to_owned()));
            }
            return Ok(configurations);
        }
        let mut fullres = self.configuration(FULLRES, spacing, shape, voxels)?;
        let Some(mut lowres) = self.lowres(&fullres, spacing, shape)? else {
            configurations.insert(FULLRES.to_owned(), full(fullres));
            return Ok(configurations);
        };
        // Small patches often lack a class; the Dice over the batch is more stable.
        fullres.batch_dice = true;
        lowres.next_stage = Some(json!(CASCADE));
        configurations.insert(LOWRES.to_owned(), full(lowres));
        configurations.insert(FULLRES.to_owned(), full(fullres));
        let cascade = InheritedConfiguration {
            inherits_from: FULLRES.to_owned(),
            overrides: IndexMap::from([("previous_stage".to_owned(), json!(LOWRES))]),
        };
        configurations.insert(CASCADE.to_owned(), ConfigurationEntry::Inherited(cascade));
        Ok(configurations)
    }

    /// Returns the configuration with the finest spacing for which a patch covers enough of the image; `None` if this
    /// is close to the full resolution.
    ///
    /// The fine axes are coarsened first, until they are within a factor of two of the coarsest axis. With
    /// [`PlannerOptions::force_lowres`], coarsening continues until the image is small enough.
    fn lowres(
        &self,
        fullres: &Configuration,
        full_spacing: &[f64; 3],
        full_shape: &[f64; 3],
    ) -> Result<Option<Configuration>, PlanError> {
        let full_voxels: f64 = full_shape.iter().product();
        let mut voxels = full_voxels;
        let mut patch_voxels = product(&fullres.patch_size);
        let mut spacing = *full_spacing;
        let mut lowres = None;
        let is_small = |voxels: f64| full_voxels / voxels >= LOWRES_MIN_REDUCTION;
        while patch_voxels / voxels < LOWRES_BELOW || (self.options.force_lowres && !is_small(voxels)) {
            let coarsest = spacing.iter().copied().fold(0.0, f64::max);
            let fine = spacing.map(|mm| coarsest / mm > 2.0);
            let grow_all = !fine.contains(&true);
            for axis in 0..3 {
                if fine[axis] || grow_all {
                    spacing[axis] *= LOWRES_STEP;
                }
            }
            let shape: [f64; 3] = std::array::from_fn(|axis| full_spacing[axis] / spacing[axis] * full_shape[axis]);
            voxels = shape.iter().product();
            let rounded = shape.map(|extent| extent.round_ties_even().max(1.0));
            let candidate = self.configuration(LOWRES, &spacing, &rounded, self.dataset_voxels(&shape))?;
            patch_voxels = product(&candidate.patch_size);
            lowres = Some(candidate);
        }
        Ok(lowres.filter(|_| is_small(voxels)))
    }

    /// Creates a configuration at this spacing for images of this median shape, without batch Dice.
    fn configuration(
        &self,
        name: &str,
        spacing: &[f64],
        median_shape: &[f64],
        dataset_voxels: f64,
    ) -> Result<Configuration, PlanError> {
        let (classes, gpu_memory_gb) = (self.dataset.labels.len(), self.options.gpu_memory_gb);
        let request =
            PatchRequest { spacing, median_shape, dataset_voxels, classes, gpu_memory_gb, preset: self.preset };
        let Some(PatchPlan { patch_size, batch_size, shape }) = request.fit() else {
            return Err(self.unplannable(format!("no patch size of {name} fits into {gpu_memory_gb} GB of GPU memory")));
        };
        if shape.strides.len() < 2 {
            let (extents, mm) = (as_product(median_shape), as_product(spacing));
            return Err(self.unplannable(format!(
                "the images are too small for {name}: their median is {extents} voxels of {mm} mm, and a U-Net needs at \
                 least one axis of {MIN_EXTENT} voxels"
            )));
        }
        let normalization_schemes: Vec<_> = self.dataset.channel_names.values().map(|name| scheme(name)).collect();
        let use_mask = self.fingerprint.median_relative_size_after_cropping < MASK_BELOW;
        Ok(Configuration {
            data_identifier: self.data_identifier(name),
            preprocessor_name: "DefaultPreprocessor".to_owned(),
            batch_size,
            patch_size,
            median_image_size_in_voxels: median_shape.to_vec(),
            spacing: spacing.to_vec(),
            use_mask_for_norm: normalization_schemes.iter().map(|&scheme| use_mask && scheme == Z_SCORE).collect(),
            normalization_schemes: normalization_schemes.into_iter().map(str::to_owned).collect(),
            resampling_fn_data: resampling_fn(),
            resampling_fn_seg: resampling_fn(),
            resampling_fn_data_kwargs: ResamplingSpec::data(),
            resampling_fn_seg_kwargs: ResamplingSpec::labels(),
            resampling_fn_probabilities: resampling_fn(),
            resampling_fn_probabilities_kwargs: ResamplingSpec::probabilities(),
            architecture: Architecture::from_shape(&shape, spacing.len()),
            batch_dice: false,
            previous_stage: None,
            next_stage: None,
            other: IndexMap::new(),
        })
    }

    /// Returns the folder name of the preprocessed data: its own, or that of plans with identical data.
    ///
    /// nnU-Net's residual planners share data even with a custom target spacing, and so train on data resampled to a
    /// different spacing; here they do not.
    fn data_identifier(&self, configuration: &str) -> String {
        let shared = self.preset.shares_data_with.filter(|_| self.options.target_spacing.is_none());
        let plans = match configuration {
            TWO_D | FULLRES => shared.unwrap_or(&self.options.plans_name),
            _ => &self.options.plans_name,
        };
        format!("{plans}_{configuration}")
    }

    /// Selects the requested configurations and those they depend on.
    fn selected(
        &self,
        mut planned: IndexMap<String, ConfigurationEntry>,
    ) -> Result<IndexMap<String, ConfigurationEntry>, PlanError> {
        let wanted = &self.options.configurations;
        if let Some(unknown) = wanted.iter().find(|name| !planned.contains_key(*name)) {
            return Err(PlanError::UnknownConfiguration {
                name: unknown.clone(),
                plans: format!("the configurations for {}", self.dataset_name),
                available: planned.keys().cloned().collect(),
            });
        }
        let asks = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
        planned.retain(|name, _| asks(name) || (asks(CASCADE) && [LOWRES, FULLRES].contains(&name.as_str())));
        if let Some(ConfigurationEntry::Full(lowres)) = planned.get_mut(LOWRES)
            && !asks(CASCADE)
        {
            lowres.next_stage = None;
        }
        Ok(planned)
    }

    /// Rejects fingerprints and options that would break the statistics below.
    fn check(&self) -> Result<(), PlanError> {
        let Fingerprint { shapes_after_crop: shapes, spacings, .. } = self.fingerprint;
        if shapes.is_empty() || shapes.len() != spacings.len() {
            let (shapes, spacings) = (shapes.len(), spacings.len());
            return Err(self.unplannable(format!("the fingerprint has {shapes} shapes and {spacings} spacings")));
        }
        if let Some(shape) = shapes.iter().find(|shape| shape.len() != 3 || shape.contains(&0)) {
            return Err(self.unplannable(format!("shape {shape:?} in the fingerprint is not three positive numbers")));
        }
        let is_length = |mm: &f64| mm.is_finite() && *mm > 0.0;
        let positive = |spacing: &Vec<f64>| spacing.len() == 3 && spacing.iter().all(is_length);
        if let Some(spacing) = spacings.iter().find(|spacing| !positive(spacing)) {
            return Err(
                self.unplannable(format!("spacing {spacing:?} in the fingerprint is not three positive numbers"))
            );
        }
        if !(self.options.gpu_memory_gb.is_finite() && self.options.gpu_memory_gb > 0.0) {
            return Err(self.unplannable(format!("GPU memory of {} GB is not positive", self.options.gpu_memory_gb)));
        }
        match self.options.target_spacing {
            Some(target) if !target.iter().all(is_length) => {
                Err(self.unplannable(format!("target spacing {target:?} is not three positive numbers")))
            }
            _ => Ok(()),
        }
    }

    fn dataset_voxels(&self, shape: &[f64; 3]) -> f64 {
        shape.iter().product::<f64>() * self.dataset.num_training as f64
    }

    /// Returns the nnU-Net class that reads this file type (`reader_writer_registry.py`).
    fn image_reader_writer(&self) -> String {
        let stated = self.dataset.other.get("overwrite_image_reader_writer").and_then(Value::as_str);
        if let Some(class) = stated.filter(|class| *class != "None") {
            return class.to_owned();
        }
        let flat = self.fingerprint.shapes_after_crop.iter().all(|shape| shape[0] == 1);
        let class = match self.dataset.file_ending.to_lowercase().as_str() {
            ".png" | ".bmp" => "NaturalImage2DIO",
            ".tif" if flat => "NaturalImage2DIO",
            ".tif" | ".tiff" => "Tiff3DIO",
            ".nii" => "NibabelIO",
            _ => "SimpleITKIO",
        };
        class.to_owned()
    }

    fn unplannable(&self, reason: String) -> PlanError {
        PlanError::Unplannable { dataset: self.dataset_name.to_owned(), reason }
    }
}

/// Joins extents or spacings: `3 x 3 x 3`.
fn as_product(values: &[f64]) -> String {
    values.iter().map(f64::to_string).collect::<Vec<_>>().join(" x ")
}

const Z_SCORE: &str = "ZScoreNormalization";

/// Returns the normalization class of a channel (`map_channel_name_to_normalization.py`).
fn scheme(channel: &str) -> &'static str {
    match channel.to_lowercase().as_str() {
        "ct" => "CTNormalization",
        "nonorm" => "NoNormalization",
        "rescale_to_0_1" => "RescaleTo01Normalization",
        "rgb_to_0_1" => "RGBTo01Normalization",
        _ => Z_SCORE,
    }
}

fn product(extents: &[usize]) -> f64 {
    extents.iter().map(|&extent| extent as f64).product()
}
