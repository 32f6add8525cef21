//! Sliding windows on the GPU: cropping, mirroring and accumulation there give the result of the host.

use burn::backend::Flex;
use gpu_tests::Gpu;
use ndarray::Array4;
use nnunet_dist::infer::{Blend, SlidingWindow};
use nnunet_dist::model::{UNet, UNetSpec};
use nnunet_dist::plan::{NetworkShape, PLAIN_CONV_UNET};

#[test]
fn logits_of_an_image_are_those_of_the_host() {
    let Some(device) = gpu_tests::device() else { return };
    let shape = NetworkShape {
        network: &PLAIN_CONV_UNET,
        features: vec![6, 8],
        kernels: vec![[3; 3]; 2],
        strides: vec![[1; 3], [1, 2, 2]],
        blocks_encoder: vec![2; 2],
        convs_decoder: vec![2],
        conv_bias: true,
        norm_eps: 1e-5,
    };
    let spec = UNetSpec { channels: 2, classes: 3, shape };
    // Larger than the window, smaller along an axis, and a stack of slices.
    for (image, window, axes) in
        [([11, 20, 18], [6, 16, 8], vec![0, 1, 2]), ([4, 12, 9], [8, 8, 10], vec![2]), ([3, 14, 18], [1, 8, 8], vec![])]
    {
        let image = Array4::from_shape_fn((2, image[0], image[1], image[2]), |(c, z, y, x)| {
            ((c * 7 + z * 5 + y * 3 + x) as f32 * 0.7).sin()
        });
        let sliding = SlidingWindow { window, step: 0.5, blend: Blend::Gaussian, mirror_axes: axes };
        let host = UNet::<Flex>::new(spec.clone(), 5, &Default::default());
        let ours = UNet::<Gpu>::new(spec.clone(), 5, &device);
        let expected = sliding.logits(&host, image.view(), &Default::default());
        let ours = sliding.logits(&ours, image.view(), &device);
        assert_eq!(ours.dim(), expected.dim());
        let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let error = (&ours - &expected).iter().fold(0f32, |largest, error| largest.max(error.abs()));
        assert!(error < 1e-4 * largest, "{error} of {largest}");
    }
}
