//! Compares losses and gradients with nnU-Net's (`fixtures/loss`), and every kind of loss with PyTorch's values.

use std::fs::File;

use ndarray::{Array, ArrayD, Axis, Dimension};
use ndarray_npy::NpzReader;
use nnunet_dist::loss::{GlobalSums, SegmentationLoss, Target, VoxelLoss, select_topk};

use crate::common;

/// Values of `(n, c, voxels…)` as `(n, voxels…, c)`.
fn channels_last<T: Copy, D: Dimension>(array: &Array<T, D>) -> Vec<T> {
    let mut axes: Vec<usize> = (0..array.ndim()).collect();
    axes.remove(1);
    axes.push(1);
    array.view().into_dyn().permuted_axes(axes).iter().copied().collect()
}

struct Fixture {
    npz: NpzReader<File>,
}

impl Fixture {
    fn floats(&mut self, name: &str) -> Option<ArrayD<f32>> {
        self.npz.by_name(&format!("{name}.npy")).ok()
    }

    fn scalar(&mut self, name: &str) -> Option<f64> {
        let array: ArrayD<f64> = self.npz.by_name(&format!("{name}.npy")).ok()?;
        array.first().copied()
    }
}

#[test]
fn losses_and_gradients_agree_with_nnunet() {
    for path in common::fixtures("fixtures/loss", ".npz") {
        let mut fixture = Fixture { npz: NpzReader::new(File::open(&path).unwrap()).unwrap() };
        let logits = fixture.floats("logits").unwrap();
        let (n, channels) = (logits.shape()[0], logits.shape()[1]);
        let mut checked = 0;
        // Regions are stored as one mask per channel; the equivalent label has the masks as its bits.
        let (target, labels) = match fixture.npz.by_name::<ndarray::OwnedRepr<i16>, ndarray::IxDyn>("target.npy") {
            Ok(labels) => (Target::Classes, labels.iter().copied().collect::<Vec<_>>()),
            Err(_) => {
                let masks = channels_last(&fixture.floats("target").unwrap());
                let bits = |mask: &[f32]| mask.iter().enumerate().map(|(k, m)| (*m as i16) << k).sum();
                let labels = masks.chunks_exact(channels).map(bits).collect();
                let with_bit = |k: usize| (0..1i16 << channels).filter(|label| label >> k & 1 == 1).collect();
                (Target::Regions((0..channels).map(with_bit).collect()), labels)
            }
        };
        for batch_dice in [true, false] {
            for ignore in [false, true] {
                let prefix = format!("bd{}{}", u8::from(batch_dice), if ignore { "_ign" } else { "" });
                let Some(expected) = fixture.scalar(&format!("{prefix}_loss")) else { continue };
                let logits = if ignore {
                    logits.slice_axis(Axis(1), (0..channels - 1).into()).to_owned()
                } else {
                    logits.clone()
                };
                let ignore_label = ignore.then_some(channels as i16 - 1);
                let loss = SegmentationLoss::new(target.clone(), batch_dice, ignore_label);
                let mut values = channels_last(&logits);
                let sums = loss.sums(&mut values, &labels, n);
                let value = loss.value(&sums);
                assert!((value.total - expected).abs() < 1e-5, "{}: {prefix}: {value:?}", path.display());
                for (part, ours) in [("ce", value.cross_entropy), ("dc", value.dice)] {
                    if let Some(expected) = fixture.scalar(&format!("{prefix}_{part}")) {
                        assert!((ours - expected).abs() < 1e-5, "{}: {prefix}_{part}", path.display());
                    }
                }
                let expected = channels_last(&fixture.floats(&format!("{prefix}_grad")).unwrap());
                loss.gradient(&mut values, &labels, n, &GlobalSums::single(sums), 1.0);
                let largest = expected.iter().fold(0f32, |largest, g| largest.max(g.abs()));
                for (ours, expected) in values.iter().zip(&expected) {
                    assert!((ours - expected).abs() <= 1e-5 * largest, "{}: {prefix}_grad", path.display());
                }
                checked += 1;
            }
        }
        assert!(checked >= 2, "{}: nothing to check", path.display());
    }
}

/// A loss with its expected value, the norm of its gradient, and its gradient at [`PLACES`].
type Expected = (SegmentationLoss, f64, f64, [f64; 8]);

const PLACES: [usize; 8] = [0, 1, 2, 31, 59, 60, 88, 119];

/// Values of nnunetv2 2.8.1 (`DC_and_topk_loss`, `RobustCrossEntropyLoss`, `DC_and_CE_loss`, `DC_and_BCE_loss`,
/// `MemoryEfficientSoftDiceLoss`) for logits `3 sin(1.7 i)` of 2 samples, 20 voxels and 3 channels. The focal losses
/// are MONAI's, written with `binary_cross_entropy_with_logits`.
fn expected() -> Vec<Expected> {
    let classes = |batch_dice, ignore_label| SegmentationLoss::new(Target::Classes, batch_dice, ignore_label);
    let regions = |ignore_label| {
        SegmentationLoss::new(Target::Regions(vec![vec![1, 2], vec![2], vec![0, 1]]), true, ignore_label)
    };
    let weights = || vec![0.5, 2.0, 1.0];
    let focal = VoxelLoss::Focal { gamma: 2.0 };
    vec![
        (
            SegmentationLoss { voxels: VoxelLoss::TopK { percent: 10.0 }, ..classes(true, None) },
            5.458117,
            0.6934072,
            [
                -0.0002996699,
                0.0003108174,
                -1.114757e-05,
                -0.006554843,
                0.0005497403,
                0.2380811,
                -0.0003960676,
                0.0005008748,
            ],
        ),
        (
            SegmentationLoss { voxels: VoxelLoss::TopK { percent: 30.0 }, ..classes(false, Some(3)) },
            4.479649,
            0.3970517,
            [-0.0006753872, 0.0007039056, -2.851863e-05, 0.0, 0.001224166, 0.07929264, 0.0, 0.0],
        ),
        (
            SegmentationLoss {
                voxels: VoxelLoss::TopK { percent: 25.0 },
                class_weights: weights(),
                ..classes(true, None)
            },
            7.545589,
            0.8305074,
            [-0.0002996699, 0.0003108174, -1.114757e-05, -0.006554843, 0.0005497403, 0.09511258, -0.197841, 0.1965264],
        ),
        (
            SegmentationLoss { dice: false, ..classes(true, Some(3)) },
            2.448702,
            0.1881324,
            [-0.03175011, 0.03101458, 0.0007355327, 0.0, 0.003599177, 0.03177079, 0.0, 0.0],
        ),
        (
            SegmentationLoss { class_weights: weights(), ..classes(true, Some(3)) },
            2.080963,
            0.2383312,
            [-0.01466679, 0.0143593, 0.0003074882, 0.0, 0.002415404, 0.02812367, 0.0, 0.0],
        ),
        (
            SegmentationLoss { voxels: VoxelLoss::None, include_background: true, ..classes(false, None) },
            -0.3553696,
            0.02408573,
            [
                -0.00126162,
                0.001193753,
                6.786674e-05,
                -0.00529776,
                0.002815685,
                0.0001972743,
                -0.0002316632,
                0.0002343384,
            ],
        ),
        (
            SegmentationLoss { voxels: focal, ..classes(true, None) },
            0.4639651,
            0.09054549,
            [-0.0002996699, 0.01440116, 0.001043211, -0.00662437, 0.001778309, -0.0001997865, -0.01450836, 0.01461175],
        ),
        (
            SegmentationLoss { voxels: focal, include_background: true, ..classes(false, None) },
            0.441523,
            0.07422228,
            [-0.003747343, 0.01058731, 0.0007707727, -0.005344111, 0.003634731, 0.009589376, -0.009639855, 0.009641591],
        ),
        (
            SegmentationLoss { voxels: focal, ..regions(None) },
            0.3652452,
            0.07305053,
            [
                0.003445599,
                0.009548881,
                -0.007460447,
                0.009270465,
                -0.007189002,
                -0.0004600942,
                0.0001876057,
                -0.0004823515,
            ],
        ),
        (
            regions(None),
            0.6892703,
            0.0667205,
            [
                0.005126542,
                0.008083917,
                -0.007667726,
                0.007661161,
                -0.007577272,
                -0.000858451,
                0.0006640954,
                -0.000940151,
            ],
        ),
        (
            regions(Some(3)),
            3.03587,
            0.2094862,
            [0.01798994, 0.03194705, -0.02574887, 0.0, -0.02524828, -0.002259518, 0.0, 0.0],
        ),
    ]
}

#[test]
fn every_kind_of_loss_agrees_with_pytorch() {
    let (samples, voxels, channels) = (2, 20, 3);
    let logits: Vec<f32> =
        (0..samples * voxels * channels).map(|i| (3.0 * (1.7 * f64::from(i as u32)).sin()) as f32).collect();
    for (loss, value, norm, places) in expected() {
        let label = |i: usize| match (i * 7 / 3 % 4) as i16 {
            3 if loss.ignore_label.is_none() => 1,
            label => label,
        };
        let labels: Vec<i16> = (0..samples * voxels).map(label).collect();
        let mut values = logits.clone();
        let mut sums = loss.sums(&mut values, &labels, samples);
        select_topk(&loss, &mut [&mut sums], |_| Ok::<_, ()>(())).unwrap();
        let total = loss.value(&sums).total;
        assert!((total - value).abs() < 2e-6 * value.abs().max(1.0), "{loss:?}: {total} instead of {value}");
        loss.gradient(&mut values, &labels, samples, &GlobalSums::single(sums), 1.0);
        let ours = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        assert!((ours - norm).abs() < 1e-5 * norm, "{loss:?}: norm {ours} instead of {norm}");
        for (place, expected) in PLACES.into_iter().zip(places) {
            let ours = f64::from(values[place]);
            assert!((ours - expected).abs() < 1e-5 * norm, "{loss:?}: {ours} instead of {expected} at {place}");
        }
    }
}
