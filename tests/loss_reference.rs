//! Losses and gradients agree with nnU-Net's (`fixtures/loss`).

mod common;

use std::fs::File;

use ndarray::{Array, ArrayD, Axis, Dimension};
use ndarray_npy::NpzReader;
use nnunet_dist::loss::{GlobalSums, SegmentationLoss, Target};

/// `(n, c, voxels…)` to `(n, voxels…, c)` values.
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
fn losses_and_gradients_agree_with_nnunets() {
    for path in common::fixtures("fixtures/loss", ".npz") {
        let mut fixture = Fixture { npz: NpzReader::new(File::open(&path).unwrap()).unwrap() };
        let logits = fixture.floats("logits").unwrap();
        let (n, channels) = (logits.shape()[0], logits.shape()[1]);
        let mut checked = 0;
        // Regions come as one mask per channel; a label whose bits are the masks says the same.
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
