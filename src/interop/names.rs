//! Mapping between nnU-Net's names and shapes of weights and those of this crate.
//!
//! PyTorch lists a module under every name that it can be reached by: the encoder again below the decoder, and the
//! parts of a convolution block again by their index in `all_modules`. This crate uses one name per tensor, the first
//! of these. Kernels of 2D networks have two spatial axes in PyTorch, and three with a z extent of 1 in this crate.

use nnunet_nn::model::TensorState;

/// Prefixes added by PyTorch's wrappers.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// Names of the parts of a block and their indices in `all_modules`.
const PARTS: [(&str, &str); 2] = [(".conv.", ".all_modules.0."), (".norm.", ".all_modules.1.")];

/// Returns the canonical name of a tensor; `None` if the name is an alias of another one.
pub fn canonical_name(name: &str) -> Option<&str> {
    let mut name = name;
    while let Some(rest) = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
        name = rest;
    }
    (!name.starts_with("decoder.encoder.") && !name.contains(".all_modules.")).then_some(name)
}

/// Returns all names under which PyTorch lists a tensor, starting with the canonical one.
pub fn all_names(name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    names.extend(PARTS.iter().filter(|(part, _)| name.contains(part)).map(|(part, number)| name.replace(part, number)));
    if name.starts_with("encoder.") {
        let again: Vec<_> = names.iter().map(|name| format!("decoder.{name}")).collect();
        names.extend(again);
    }
    names
}

/// Changes the shape of a 2D kernel `(a, b, y, x)` to `(a, b, 1, y, x)`.
pub fn to_3d(shape: &mut Vec<usize>) {
    if shape.len() == 4 {
        shape.insert(2, 1);
    }
}

/// Reverses [`to_3d`] for the weights of a 2D network.
pub fn to_2d(weights: &mut [TensorState]) {
    for tensor in weights {
        if let [_, _, 1, _, _] = tensor.spec.shape[..] {
            tensor.spec.shape.remove(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tensor_has_one_name_here_and_all_of_pytorchs_there() {
        let own = "encoder.stages.0.0.convs.1.conv.weight";
        let names = all_names(own);
        assert_eq!(
            names,
            [
                own,
                "encoder.stages.0.0.convs.1.all_modules.0.weight",
                "decoder.encoder.stages.0.0.convs.1.conv.weight",
                "decoder.encoder.stages.0.0.convs.1.all_modules.0.weight"
            ]
        );
        let canonical_names: Vec<_> = names.iter().filter_map(|name| canonical_name(name)).collect();
        assert_eq!(canonical_names, [own]);
        assert_eq!(all_names("decoder.seg_layers.0.bias").len(), 1);
        assert_eq!(all_names("decoder.stages.0.convs.0.norm.bias")[1], "decoder.stages.0.convs.0.all_modules.1.bias");
        assert_eq!(
            canonical_name("module._orig_mod.encoder.stem.convs.0.norm.bias"),
            Some("encoder.stem.convs.0.norm.bias")
        );
    }

    #[test]
    fn kernels_in_the_plane_gain_and_lose_an_axis() {
        let mut shape = vec![8, 4, 3, 3];
        to_3d(&mut shape);
        assert_eq!(shape, [8, 4, 1, 3, 3]);
        to_3d(&mut shape);
        assert_eq!(shape, [8, 4, 1, 3, 3]);
    }
}
