//! Loss of a batch over all ranks, computed on the host or on the device.
//!
//! A loss has two passes with an all-reduce between them: sums over this rank's voxels, then the gradient of the logits
//! from the sums of all ranks. [`LossEngine::sums`], [`LossEngine::all_reduce`] and [`LossEngine::gradients`] are these
//! three. On the device all of them are queued, and the reported loss is a tensor that is read later.

use burn::tensor::{Int, Tensor, TensorData, TensorMetadata, TensorPrimitive, backend::Backend, ops::FloatTensor};

use super::batch::Targets;
use super::confusion::{count_confusion, first_scored_channel};
use nnunet_comm::distributed::{CommError, Communicator, ReduceOp};
use nnunet_nn::loss::{GlobalSums, LossSums, SegmentationLoss, Target, VoxelLoss, select_topk};
use nnunet_nn::ops::{DeviceLoss as LossKernels, LossGradientInput, LossParams, LossParts, LossTarget, NnOps, host};

/// Computes a loss with deep supervision.
pub struct LossEngine<B: NnOps> {
    loss: SegmentationLoss,
    /// Non-zero weights of the heads, highest resolution first.
    head_weights: Vec<f64>,
    /// Number of output channels of the network.
    channels: usize,
    device: B::Device,
    /// `None` if the host computes the loss.
    kernels: Option<DeviceLoss<B>>,
}

/// Loss kernels of a device with their constant inputs.
struct DeviceLoss<B: NnOps> {
    kernels: LossKernels<B>,
    params: LossParams,
    /// Labels of each channel.
    membership: Tensor<B, 2, Int>,
    /// Cross-entropy weights of the classes.
    class_weights: Tensor<B, 1>,
}

/// Loss of one batch. Its sums are those of this rank until [`LossEngine::all_reduce`].
pub struct BatchLoss<'a, B: NnOps>(Heads<'a, B>);

enum Heads<'a, B: NnOps> {
    Host(Vec<HostHead<'a>>),
    Device(Vec<DeviceHead<B>>),
}

struct HostHead<'a> {
    /// Extents of the logits, `(n, z, y, x, c)`.
    extents: [usize; 5],
    activations: Vec<f32>,
    labels: &'a [i16],
    local: LossSums,
    global: LossSums,
}

struct DeviceHead<B: NnOps> {
    parts: LossParts<B>,
    target: LossTarget<B>,
    global: FloatTensor<B>,
}

/// Loss of a batch for reports: known, or queued on the device as sums of each head.
pub enum ReportedLoss<B: Backend> {
    Known(f64),
    Queued(Vec<FloatTensor<B>>),
}

/// Confusion counts of a batch: known, or queued on the device.
pub enum ConfusionCounts<B: Backend> {
    /// True positives, false positives and false negatives per scored channel.
    Known(Vec<[f64; 3]>),
    Queued(FloatTensor<B>),
}

impl<B: NnOps> LossEngine<B> {
    /// Creates an engine for a network with `channels` outputs. Heads of weight 0 are not computed.
    pub fn new(loss: SegmentationLoss, head_weights: &[f64], channels: usize, device: &B::Device) -> Self {
        let kernels = DeviceLoss::new(&loss, channels, device);
        let head_weights = head_weights.iter().copied().filter(|weight| *weight > 0.0).collect();
        Self { loss, head_weights, channels, device: device.clone(), kernels }
    }

    /// Returns the number of computed heads.
    pub fn heads(&self) -> usize {
        self.head_weights.len()
    }

    /// Returns whether the device computes the loss, so that all work is queued.
    pub fn is_queued(&self) -> bool {
        self.kernels.is_some()
    }

    /// Returns whether the device has loss kernels, but not for this loss.
    pub fn lacks_kernels(&self) -> bool {
        self.kernels.is_none() && B::device_loss().is_some()
    }

    /// Computes this rank's sums from the logits `(n, z, y, x, c)` of each head.
    pub fn sums<'a>(&self, logits: Vec<Tensor<B, 5>>, targets: &'a Targets<B>) -> BatchLoss<'a, B> {
        BatchLoss(match (targets, &self.kernels) {
            (Targets::Host(targets), _) => {
                let heads = logits.into_iter().zip(targets).map(|(logits, labels)| {
                    let extents = logits.dims();
                    let mut activations = host_values(logits);
                    let labels = labels.as_slice().expect("targets are made in C order");
                    let local = self.loss.sums(&mut activations, labels, extents[0]);
                    HostHead { extents, activations, labels, local, global: LossSums::default() }
                });
                Heads::Host(heads.collect())
            }
            (Targets::Device(targets), Some(kernels)) => {
                let heads =
                    logits.into_iter().zip(targets).map(|(logits, labels)| kernels.head(logits, labels.clone()));
                Heads::Device(heads.collect())
            }
            (Targets::Device(_), None) => unreachable!("targets are on the device only where the loss is"),
        })
    }

    /// Adds up the sums of all ranks. Returns whether any rank has been asked to stop, if the host computes the loss:
    /// the request is sent with the sums, so that all ranks learn it at the same step without another collective.
    /// A collective, queued on the device if it computes the loss and supports collectives.
    ///
    /// # Errors
    /// Returns an error if the collective fails.
    pub fn all_reduce(
        &self,
        batch: &mut BatchLoss<B>,
        stop_requested: bool,
        comm: &dyn Communicator,
    ) -> Result<bool, CommError> {
        match &mut batch.0 {
            Heads::Host(heads) => self.all_reduce_on_host(heads, stop_requested, comm),
            Heads::Device(heads) => all_reduce_on_device(heads, comm).map(|()| false),
        }
    }

    /// All-reduces the sums of all heads at once. For a top-k loss, first selects the voxels over all ranks and
    /// completes the heads' own sums.
    ///
    /// Without batch Dice, every sample has its own sums, which each rank writes to its section of the global list.
    fn all_reduce_on_host(
        &self,
        heads: &mut [HostHead],
        stop_requested: bool,
        comm: &dyn Communicator,
    ) -> Result<bool, CommError> {
        let mut locals: Vec<_> = heads.iter_mut().map(|head| &mut head.local).collect();
        let add_up = |counts: &mut [f64]| comm.all_reduce_f64(counts, ReduceOp::Sum, "counts of the top-k voxels");
        select_topk(&self.loss, &mut locals, add_up)?;
        let (slots, slot) = if self.loss.batch_dice { (1, 0) } else { (comm.world_size(), comm.rank()) };
        let mut flat = vec![f64::from(u8::from(stop_requested))];
        for sums in &locals {
            flat.extend([sums.cross_entropy, sums.count]);
            let begin = flat.len() + slot * 3 * sums.dice.len();
            flat.resize(flat.len() + slots * 3 * sums.dice.len(), 0.0);
            let dice = sums.dice.iter().flatten();
            flat[begin..].iter_mut().zip(dice).for_each(|(place, sum)| *place = *sum);
        }
        comm.all_reduce_f64(&mut flat, ReduceOp::Sum, "loss sums")?;
        let mut rest = &flat[1..];
        for head in heads {
            let (sums, tail) = rest.split_at(2 + slots * 3 * head.local.dice.len());
            rest = tail;
            let dice = sums[2..].as_chunks().0.to_vec();
            head.global = LossSums { dice, cross_entropy: sums[0], count: sums[1], topk: None };
        }
        Ok(flat[0] > 0.0)
    }

    /// Returns the loss of the batch for reports. Without batch Dice, a loss computed on the device has this rank's own
    /// Dice, and must be averaged over the ranks.
    pub fn reported(&self, batch: &BatchLoss<B>) -> ReportedLoss<B> {
        match &batch.0 {
            Heads::Host(heads) => ReportedLoss::Known(self.weighted(heads.iter().map(|head| &head.global))),
            Heads::Device(heads) => ReportedLoss::Queued(heads.iter().map(|head| self.reported_sums(head)).collect()),
        }
    }

    fn reported_sums(&self, head: &DeviceHead<B>) -> FloatTensor<B> {
        if self.loss.batch_dice {
            return head.global.clone();
        }
        let len = head.global.shape().num_elements();
        let part = |sums: &FloatTensor<B>, range: std::ops::Range<usize>| B::float_slice(sums.clone(), &[range.into()]);
        B::float_cat(vec![part(&head.parts.sums, 0..len - 2), part(&head.global, len - 2..len)], 0)
    }

    /// Computes the loss from the values of the tensors of [`ReportedLoss::Queued`].
    pub fn value(&self, heads: &[Vec<f32>]) -> f64 {
        let sums = heads.iter().map(|values| {
            let (dice, rest) = values.split_at(values.len() - 2);
            let dice = channel_sums(self.loss.first_channel(), dice, self.channels);
            LossSums { dice, cross_entropy: f64::from(rest[0]), count: f64::from(rest[1]), topk: None }
        });
        let sums: Vec<LossSums> = sums.collect();
        self.weighted(sums.iter())
    }

    fn weighted<'s>(&self, heads: impl Iterator<Item = &'s LossSums>) -> f64 {
        heads.zip(&self.head_weights).map(|(sums, weight)| weight * self.loss.value(sums).total).sum()
    }

    /// Computes the gradients with respect to the logits of each head, multiplied by the loss scale, the first value of
    /// `scaler`. Averaged over the ranks, they are those of the global loss.
    pub fn gradients(&self, batch: BatchLoss<B>, scaler: FloatTensor<B>, world_size: usize) -> Vec<Tensor<B, 5>> {
        match (batch.0, &self.kernels) {
            (Heads::Host(heads), _) => {
                let scale = f64::from(host::<B>(scaler)[0]);
                let heads = heads.into_iter().zip(&self.head_weights).map(|(head, weight)| {
                    let HostHead { extents, activations: mut values, labels, local, global } = head;
                    let sums = GlobalSums { local, global, world_size };
                    self.loss.gradient(&mut values, labels, extents[0], &sums, scale * weight);
                    Tensor::from_data(TensorData::new(values, extents), &self.device)
                });
                heads.collect()
            }
            (Heads::Device(heads), Some(DeviceLoss { kernels, .. })) => {
                let heads = heads.into_iter().zip(&self.head_weights).map(|(head, weight)| {
                    let DeviceHead { parts, target, global } = head;
                    let (scaler, weight) = (scaler.clone(), *weight as f32);
                    let input = LossGradientInput { parts, global, scaler, weight, world_size };
                    Tensor::from_primitive(TensorPrimitive::Float((kernels.gradient)(input, &target)))
                });
                heads.collect()
            }
            (Heads::Device(_), None) => unreachable!("sums are on the device only where the loss is"),
        }
    }

    /// Counts the confusion of the first head's decisions, for a batch without gradients. `logits` are those from which
    /// `batch` was computed, which the host needs.
    pub fn confusion(&self, logits: &Tensor<B, 5>, batch: BatchLoss<B>) -> Option<ConfusionCounts<B>> {
        match (batch.0, &self.kernels) {
            (Heads::Host(heads), _) => {
                let head = heads.first()?;
                Some(ConfusionCounts::Known(count_confusion(&self.loss, &host_values(logits.clone()), head.labels)))
            }
            (Heads::Device(heads), Some(DeviceLoss { kernels, .. })) => {
                let DeviceHead { parts, target, .. } = heads.into_iter().next()?;
                Some(ConfusionCounts::Queued((kernels.counts)(parts.activations, &target)))
            }
            (Heads::Device(_), None) => unreachable!("sums are on the device only where the loss is"),
        }
    }

    /// Returns true positives, false positives and false negatives per scored channel from the values of
    /// [`ConfusionCounts::Queued`].
    pub fn confusion_from(&self, values: &[f32]) -> Vec<[f64; 3]> {
        let counts =
            channel_sums(first_scored_channel(&self.loss), &values[..values.len().saturating_sub(2)], self.channels);
        counts.into_iter().map(|[tp, predicted, actual]| [tp, predicted - tp, actual - tp]).collect()
    }
}

impl<B: NnOps> DeviceLoss<B> {
    /// Returns `None` if the backend computes the loss on the host, or has no kernel for this loss.
    fn new(loss: &SegmentationLoss, channels: usize, device: &B::Device) -> Option<Self> {
        let kernels = B::device_loss()?;
        if matches!(loss.voxels, VoxelLoss::TopK { .. }) {
            return None;
        }
        let mut class_weights = loss.class_weights.clone();
        class_weights.resize(channels, 1.0);
        let params = LossParams {
            softmax: loss.target == Target::Classes,
            dice: loss.dice,
            voxel_loss: loss.voxels,
            weighted: !loss.class_weights.is_empty(),
            include_background: loss.include_background,
            ignore_label: loss.ignore_label.map(i32::from),
            batch_dice: loss.batch_dice,
            smooth: loss.smooth as f32,
        };
        let membership = membership(&loss.target, channels, device);
        let class_weights = Tensor::from_data(class_weights.as_slice(), device);
        Some(Self { kernels, params, membership, class_weights })
    }

    fn head(&self, logits: Tensor<B, 5>, labels: Tensor<B, 4, Int>) -> DeviceHead<B> {
        let target = LossTarget {
            labels: labels.into_primitive(),
            membership: self.membership.clone().into_primitive(),
            weights: self.class_weights.clone().into_primitive().tensor(),
            params: self.params,
        };
        let parts = (self.kernels.parts)(logits.into_primitive().tensor(), &target);
        DeviceHead { global: parts.sums.clone(), parts, target }
    }
}

/// All-reduces the sums of all heads at once, on the device if it supports collectives.
fn all_reduce_on_device<B: NnOps>(heads: &mut [DeviceHead<B>], comm: &dyn Communicator) -> Result<(), CommError> {
    if comm.world_size() == 1 {
        return Ok(());
    }
    let flat = B::float_cat(heads.iter().map(|head| head.parts.sums.clone()).collect(), 0);
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
    for head in heads {
        let end = begin + head.parts.sums.shape().num_elements();
        head.global = B::float_slice(flat.clone(), &[(begin..end).into()]);
        begin = end;
    }
    Ok(())
}

/// Returns the sums of each group, for its channels from `first` on.
fn channel_sums(first: usize, values: &[f32], channels: usize) -> Vec<[f64; 3]> {
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

fn host_values<B: Backend>(tensor: Tensor<B, 5>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().expect("converted to f32")
}

/// Copies flat tensors to the host with a single read; waits for the device.
pub(super) fn read_all<'a, B: Backend>(tensors: impl Iterator<Item = &'a FloatTensor<B>>) -> Vec<Vec<f32>> {
    let tensors: Vec<_> = tensors.cloned().collect();
    if tensors.is_empty() {
        return Vec::new();
    }
    let lengths: Vec<_> = tensors.iter().map(|tensor| tensor.shape().num_elements()).collect();
    let mut values = host::<B>(B::float_cat(tensors, 0)).into_iter();
    lengths.into_iter().map(|len| values.by_ref().take(len).collect()).collect()
}
