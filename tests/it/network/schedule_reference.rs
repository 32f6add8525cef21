//! Compares learning rates and deep-supervision weights with nnU-Net v2's (`fixtures/misc/schedules_steps.json`).

use nnunet_dist::infer::window_positions;
use nnunet_dist::loss::head_weights;
use nnunet_dist::optim::Schedule;
use nnunet_dist::optim::{ScheduleConfig, ScheduleKind};
use serde_json::Value;

use crate::common;

fn reference() -> Option<Value> {
    let path = common::shared()?.join("fixtures/misc/schedules_steps.json");
    Some(serde_json::from_reader(std::fs::File::open(path).unwrap()).unwrap())
}

#[test]
fn poly_learning_rates_are_identical() {
    let Some(reference) = reference() else { return };
    for (run, rates) in reference["polylr"].as_object().unwrap() {
        let (epochs, base) = run.split_once('_').unwrap();
        let config = ScheduleConfig {
            kind: ScheduleKind::Poly,
            warmup_steps: 0,
            power: 0.9,
            min_lr: 0.0,
            t_0: 1,
            peak_decay: 1.0,
        };
        let schedule = Schedule::new(&config, base.parse().unwrap(), epochs.parse().unwrap(), 250);
        let rates: Vec<(usize, f64)> = match rates {
            Value::Array(rates) => rates.iter().enumerate().map(|(epoch, lr)| (epoch, lr.as_f64().unwrap())).collect(),
            rates => rates
                .as_object()
                .unwrap()
                .iter()
                .map(|(epoch, lr)| (epoch.parse().unwrap(), lr.as_f64().unwrap()))
                .collect(),
        };
        assert!(!rates.is_empty());
        for (epoch, expected) in rates {
            for iteration in [0, 249] {
                let lr = schedule.lr(epoch, iteration);
                assert!((lr - expected).abs() <= 1e-12, "{run}, epoch {epoch}: {lr} instead of {expected}");
            }
        }
    }
}

#[test]
fn deep_supervision_weights_are_identical() {
    let Some(reference) = reference() else { return };
    let mut compared = 0;
    for (heads, expected) in reference["deep_supervision_weights"].as_object().unwrap() {
        // The `_ddp` variants give the last head a weight of 1e-6 to satisfy PyTorch DDP; a head of weight 0 is not
        // computed here.
        let Ok(heads) = heads.parse() else { continue };
        let expected: Vec<f64> = expected.as_array().unwrap().iter().map(|weight| weight.as_f64().unwrap()).collect();
        for (ours, theirs) in head_weights(heads, true).iter().zip(&expected) {
            assert!((ours - theirs).abs() < 1e-12, "{heads} heads");
        }
        assert_eq!(head_weights(heads, true).len(), expected.len());
        compared += 1;
    }
    assert!(compared > 0);
}

#[test]
fn window_steps_are_identical() {
    let Some(reference) = reference() else { return };
    for case in reference["steps"].as_array().unwrap() {
        let triple = |key: &str| -> Vec<usize> { serde_json::from_value(case[key].clone()).unwrap() };
        let (image, tile) = (triple("image"), triple("tile"));
        let steps: Vec<Vec<usize>> = serde_json::from_value(case["steps"].clone()).unwrap();
        // 2D windows are 3D ones of a single slice.
        let lift = |extents: Vec<usize>| match extents[..] {
            [y, x] => [1, y, x],
            [z, y, x] => [z, y, x],
            _ => panic!("two or three axes"),
        };
        let ours = window_positions(lift(image), lift(tile), case["step"].as_f64().unwrap());
        assert_eq!(ours[3 - steps.len()..], steps, "{case}");
    }
}
