//! Configurations of early versions of nnU-Net v2, which describe the network without an `architecture` key.

use serde_json::{Value, json};

/// Adds the `architecture` to a configuration in the old format, as nnU-Net does (`plans_handler.py`). All other
/// configurations are unchanged, including invalid ones, which then lack the key.
pub(super) fn upgrade_old_format(configuration: &mut Value) {
    if configuration.get("architecture").is_none()
        && let Some(architecture) = architecture(configuration)
    {
        configuration["architecture"] = architecture;
    }
}

fn architecture(configuration: &Value) -> Option<Value> {
    let (class, convolutions) = match configuration.get("UNet_class_name")?.as_str()? {
        "PlainConvUNet" => ("unet.PlainConvUNet", "n_conv_per_stage"),
        "ResidualEncoderUNet" => ("residual_unet.ResidualEncoderUNet", "n_blocks_per_stage"),
        _ => return None,
    };
    let number = |key: &str| configuration.get(key)?.as_u64();
    let (base, max) = (number("UNet_base_num_features")?, number("unet_max_num_features")?);
    let encoder = configuration.get("n_conv_per_stage_encoder")?.as_array()?;
    let features: Vec<u64> =
        (0..encoder.len() as u32).map(|stage| base.saturating_mul(2u64.saturating_pow(stage)).min(max)).collect();
    let axes = configuration.get("patch_size")?.as_array()?.len();
    Some(json!({
        "network_class_name": format!("dynamic_network_architectures.architectures.{class}"),
        "arch_kwargs": {
            "n_stages": encoder.len(),
            "features_per_stage": features,
            "conv_op": format!("torch.nn.modules.conv.Conv{axes}d"),
            "kernel_sizes": configuration.get("conv_kernel_sizes")?,
            "strides": configuration.get("pool_op_kernel_sizes")?,
            convolutions: encoder,
            "n_conv_per_stage_decoder": configuration.get("n_conv_per_stage_decoder")?,
            "conv_bias": true,
            "norm_op": format!("torch.nn.modules.instancenorm.InstanceNorm{axes}d"),
            "norm_op_kwargs": {"eps": 1e-5, "affine": true},
            "dropout_op": null,
            "dropout_op_kwargs": null,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": true},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_become_an_architecture_and_new_plans_stay() {
        let old = json!({
            "patch_size": [40, 56, 40],
            "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 32, "unet_max_num_features": 100,
            "n_conv_per_stage_encoder": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2],
            "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
            "conv_kernel_sizes": [[3, 3, 3], [3, 3, 3], [3, 3, 3]],
        });
        let mut configuration = old.clone();
        upgrade_old_format(&mut configuration);
        let architecture: crate::plan::Architecture =
            serde_json::from_value(configuration["architecture"].clone()).unwrap();
        assert_eq!(architecture.arch_kwargs["features_per_stage"], json!([32, 64, 100]));
        assert_eq!(architecture.arch_kwargs["conv_op"], "torch.nn.modules.conv.Conv3d");
        assert_eq!(architecture.arch_kwargs["strides"], old["pool_op_kernel_sizes"]);
        let new = configuration.clone();
        upgrade_old_format(&mut configuration);
        assert_eq!(configuration, new);
        let mut unknown = json!({"UNet_class_name": "MyUNet"});
        upgrade_old_format(&mut unknown);
        assert!(unknown.get("architecture").is_none());
    }
}
