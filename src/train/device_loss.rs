//! Loss computed on the device: sums and gradients are queued without waiting for their values.

use burn::tensor::{Int, Tensor, TensorData, TensorMetadata, TensorPrimitive, backend::Backend, ops::FloatTensor};

use nnunet_comm::distributed::{CommError, Communicator, ReduceOp};
use nnunet_nn::loss::{LossSums, SegmentationLoss, Target, VoxelLoss};
use nnunet_nn::ops::{
    DeviceLoss as LossOps, LossGradientInput, LossParams, LossParts, LossTarget, NnOps, VoxelLossTerm, host,
};

/// A loss computed on the device.
pub struct DeviceLoss<B: NnOps> {
    ops: LossOps<B>,
    params: LossParams,
    /// Labels of each channel.
    membership: Tensor<B, 2, Int>,
    /// Factors of the classes' cross-entropies.
    weights: Tensor<B, 1>,
}

/// Intermediate results of a head that its gradient needs.
pub struct HeadSums<B: Backend> {
    parts: LossParts<B>,
    target: LossTarget<B>,
}

impl<B: NnOps> DeviceLoss<B> {
    /// Returns `None` if the backend computes the loss on the host, or does not support this loss.
    pub fn new(loss: &SegmentationLoss, channels: usize, device: &B::Device) -> Option<Self> {
        let ops = B::device_loss()?;
        let voxel_loss = match loss.voxels {
            VoxelLoss::None => VoxelLossTerm::None,
            VoxelLoss::CrossEntropy => VoxelLossTerm::CrossEntropy,
            VoxelLoss::Focal { gamma } => VoxelLossTerm::Focal { gamma },
            // The hardest voxels are found on the host.
            VoxelLoss::TopK { .. } => return None,
        };
        let mut weights = loss.class_weights.clone();
        weights.resize(channels, 1.0);
        let params = LossParams {
            softmax: loss.target == Target::Classes,
            dice: loss.dice,
            voxel_loss,
            weighted: !loss.class_weights.is_empty(),
            include_background: loss.include_background,
            ignore_label: loss.ignore_label.map(i32::from),
            batch_dice: loss.batch_dice,
            smooth: loss.smooth as f32,
        };
        let membership = membership(&loss.target, channels, device);
        Some(Self { ops, params, membership, weights: Tensor::from_data(weights.as_slice(), device) })
    }

    /// Computes the activations and sums of a head's logits.
    pub fn sums(&self, logits: Tensor<B, 5>, labels: Tensor<B, 4, Int>) -> HeadSums<B> {
        let target = LossTarget {
            labels: labels.into_primitive(),
            membership: self.membership.clone().into_primitive(),
            weights: self.weights.clone().into_primitive().tensor(),
            params: self.params,
        };
        HeadSums { parts: (self.ops.parts)(logits.into_primitive().tensor(), &target), target }
    }

    /// Reduces the sums over all ranks; returns one tensor per head. The reduction is queued on the device if it
    /// supports collectives.
    ///
    /// # Errors
    /// Returns an error if the collective fails.
    pub fn all_ranks(&self, heads: &[HeadSums<B>], comm: &dyn Communicator) -> Result<Vec<FloatTensor<B>>, CommError> {
        let locals: Vec<_> = heads.iter().map(|head| head.parts.sums.clone()).collect();
        if comm.world_size() == 1 {
            return Ok(locals);
        }
        let lengths: Vec<_> = locals.iter().map(|sums| sums.shape().num_elements()).collect();
        let flat = B::float_cat(locals, 0);
        let flat = match (comm.device_collectives(), B::device_buffer(&flat)) {
            (Some(collectives), Some(buffer)) => {
                collectives.start_all_reduce(buffer, ReduceOp::Sum, "loss sums")?;
                collectives.finish("loss sums")?;
                flat
            }
            _ => {
                let device = B::float_device(&flat);
                let mut values: Vec<f64> = host::<B>(flat).into_iter().map(f64::from).collect();
                comm.all_reduce_f64(&mut values, ReduceOp::Sum, "loss sums")?;
                let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
                B::float_from_data(values.as_slice().into(), &device)
            }
        };
        let mut begin = 0;
        let parts = lengths.into_iter().map(|len| {
            begin += len;
            B::float_slice(flat.clone(), &[(begin - len..begin).into()])
        });
        Ok(parts.collect())
    }

    /// Returns true positives, predicted positives and actual positives per channel, for a head without gradient.
    pub fn counts(&self, head: HeadSums<B>) -> FloatTensor<B> {
        (self.ops.counts)(head.parts.activations, &head.target)
    }

    /// Returns the gradient with respect to a head's logits, multiplied by `weight` and by the loss scale.
    pub fn gradient(
        &self,
        head: HeadSums<B>,
        global: FloatTensor<B>,
        scaler: FloatTensor<B>,
        weight: f64,
        world_size: usize,
    ) -> Tensor<B, 5> {
        let HeadSums { parts, target } = head;
        let input = LossGradientInput { parts, global, scaler, weight: weight as f32, world_size };
        Tensor::from_primitive(TensorPrimitive::Float((self.ops.gradient)(input, &target)))
    }

    /// Returns the sums for the reported loss: the global sums, or, without batch Dice, with this rank's own Dice sums.
    pub fn logged(&self, head: &HeadSums<B>, global: &FloatTensor<B>) -> FloatTensor<B> {
        if self.params.batch_dice {
            return global.clone();
        }
        let len = global.shape().num_elements();
        let part = |sums: &FloatTensor<B>, range: std::ops::Range<usize>| B::float_slice(sums.clone(), &[range.into()]);
        B::float_cat(vec![part(&head.parts.sums, 0..len - 2), part(global, len - 2..len)], 0)
    }

    /// Converts the values of a tensor to loss sums.
    pub fn loss_sums(&self, values: &[f32], channels: usize) -> LossSums {
        let (dice, rest) = values.split_at(values.len() - 2);
        let dice = sums_from(self.params.first_channel(), dice, channels);
        LossSums { dice, cross_entropy: f64::from(rest[0]), count: f64::from(rest[1]), hardest: None }
    }

    /// Returns true positives, predicted positives and actual positives per class (without the background) or region,
    /// from the values of [`DeviceLoss::counts`].
    pub fn counts_of(&self, values: &[f32], channels: usize) -> Vec<[f64; 3]> {
        sums_from(usize::from(self.params.softmax), &values[..values.len().saturating_sub(2)], channels)
    }
}

/// Returns the sums of each group, for its channels from `first` on.
fn sums_from(first: usize, values: &[f32], channels: usize) -> Vec<[f64; 3]> {
    let groups = values.chunks_exact(3 * channels);
    let sums = groups.flat_map(|group| group.as_chunks().0[first..].iter().map(|sums: &[f32; 3]| sums.map(f64::from)));
    sums.collect()
}

/// `(labels, channels)`: 1 where a label belongs to a channel.
fn membership<B: Backend>(target: &Target, channels: usize, device: &B::Device) -> Tensor<B, 2, Int> {
    let regions: Vec<Vec<i16>> = match target {
        Target::Classes => (0..channels as i16).map(|class| vec![class]).collect(),
        Target::Regions(regions) => regions.clone(),
    };
    let labels = regions.iter().flatten().max().map_or(1, |largest| *largest as usize + 1);
    let mut membership = vec![0i32; labels * channels];
    for (channel, region) in regions.iter().enumerate() {
        for &label in region.iter().filter(|label| **label >= 0) {
            membership[label as usize * channels + channel] = 1;
        }
    }
    Tensor::from_data(TensorData::new(membership, [labels, channels]), device)
}

/// Copies flat tensors to the host with a single read; waits for the device.
pub(super) fn host_all<'a, B: Backend>(tensors: impl Iterator<Item = &'a FloatTensor<B>>) -> Vec<Vec<f32>> {
    let tensors: Vec<_> = tensors.cloned().collect();
    if tensors.is_empty() {
        return Vec::new();
    }
    let lengths: Vec<_> = tensors.iter().map(|tensor| tensor.shape().num_elements()).collect();
    let mut values = host::<B>(B::float_cat(tensors, 0)).into_iter();
    lengths.into_iter().map(|len| values.by_ref().take(len).collect()).collect()
}
