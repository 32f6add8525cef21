//! Every operation's kernel on the GPU, or on Vulkan in software, agrees with its reference implementation on the CPU.

#[path = "../../../common/operations.rs"]
mod common;

use gpu_tests::{Gpu, formats};

use self::common::{BF16, F16, F32, Subject};

fn gpu() -> Option<Subject<Gpu>> {
    let device = gpu_tests::device()?;
    let formats = formats(&device, &[F32, F16, BF16]);
    Some(Subject { device, formats })
}

macro_rules! tests {
    ($($name:ident)*) => { $(
        #[test]
        fn $name() {
            if let Some(gpu) = gpu() {
                gpu.$name();
            }
        }
    )* };
}

tests! {
    convolution_agrees
    transposed_convolution_agrees
    norm_and_activation_agree
    average_pool_agrees
    sum_and_activation_agree
    head_agrees
    gradients_of_one_activation_add_up
    concat_and_split_are_inverse
    updates_agree_over_several_steps
    loss_agrees
    focal_loss_agrees
}
