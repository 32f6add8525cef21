//! Plans for small networks.

use serde_json::{Value, json};

/// Reduces a configuration of the plans to two stages and patches of 16 voxels along each axis.
pub fn shrink(configuration: &mut Value) {
    let axes = configuration["patch_size"].as_array().unwrap().len();
    configuration["patch_size"] = json!(vec![16; axes]);
    let network = &mut configuration["architecture"]["arch_kwargs"];
    network["n_stages"] = json!(2);
    network["features_per_stage"] = json!([4, 8]);
    network["kernel_sizes"] = json!([vec![3; axes], vec![3; axes]]);
    network["strides"] = json!([vec![1; axes], vec![2; axes]]);
    network["n_conv_per_stage"] = json!([1, 1]);
    network["n_conv_per_stage_decoder"] = json!([1]);
}
