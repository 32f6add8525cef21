//! Optimizers update weights as PyTorch's do, and continue from a saved state without a difference.

use nnunet_dist::backend::Cpu;
use nnunet_dist::model::{Parameter, ParameterSpec};
use nnunet_dist::optim::{Adam, Optimizer, Rule, Sgd};

const STEPS: usize = 14;
const LEARNING_RATE: f64 = 0.01;

type Weights = Vec<Parameter<Cpu>>;
type CpuOptimizer = Optimizer<burn::backend::Flex>;

fn start() -> Weights {
    let values = (0..4).map(|i| (1.3 * f64::from(i) + 0.5).sin() as f32).collect();
    let spec = ParameterSpec { name: "weight".into(), shape: vec![4] };
    vec![Parameter::new(spec, values, &Default::default())]
}

fn advance(optimizer: &mut CpuOptimizer, weights: &mut Weights, steps: std::ops::Range<usize>) {
    for step in steps {
        let gradient = (0..4).map(|i| (0.9 * f64::from(i) + 0.7 * step as f64).cos() as f32).collect();
        let spec = ParameterSpec { name: "gradient".into(), shape: vec![4] };
        let gradient = Parameter::<Cpu>::new(spec, gradient, &Default::default()).inner();
        optimizer.step(weights, vec![Some(gradient)], LEARNING_RATE, &Default::default());
    }
}

/// Each optimizer with the expected weights from torch 2 (`SGD`, `Adam`, `AdamW`, `RAdam`, weight decay 0.1, 14 steps;
/// for Lookahead a slow step with factor 0.5 every sixth step, as in TensorFlow Addons).
fn rules() -> Vec<(CpuOptimizer, [f32; 4])> {
    let sgd = Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.1 };
    let adam = Adam { weight_decay: 0.1, ..Adam::default() };
    let plain = |rule: Rule| Optimizer::new(rule, None);
    vec![
        (plain(sgd.into()), [0.384_54, 0.965_059_9, 0.177_894_3, -0.771_111_1]),
        (plain(adam.into()), [0.440_635_4, 0.962_858_3, 0.097_869_1, -0.894_697_7]),
        (plain(Adam { decoupled: true, ..adam }.into()), [0.440_978_1, 0.966_468, 0.097_772_7, -0.893_976_7]),
        (plain(Adam { rectified: true, ..adam }.into()), [0.448_922_1, 0.968_408_5, 0.069_179_6, -0.911_737_1]),
        (plain(adam.into()).with_lookahead(), [0.458_704_8, 0.969_168_2, 0.073_060_1, -0.919_940_7]),
    ]
}

#[test]
fn weights_equal_pytorchs() {
    for (mut optimizer, expected) in rules() {
        let mut weights = start();
        advance(&mut optimizer, &mut weights, 0..STEPS);
        for (ours, expected) in weights[0].state().values.iter().zip(expected) {
            assert!((ours - expected).abs() < 2e-6, "{optimizer:?}: {ours} instead of {expected}");
        }
    }
}

#[test]
fn a_restored_state_continues_identically() {
    let fresh = || rules().into_iter().map(|(optimizer, _)| optimizer);
    for ((mut whole, mut first), mut second) in fresh().zip(fresh()).zip(fresh()) {
        let (mut expected, mut weights) = (start(), start());
        advance(&mut whole, &mut expected, 0..STEPS);
        // Between two of Lookahead's slow steps, and before RAdam's first rectified one.
        advance(&mut first, &mut weights, 0..4);
        let specs: Vec<_> = weights.iter().map(|weight| weight.spec.clone()).collect();
        second.load_state(&specs, &first.state(&specs), &Default::default()).unwrap();
        advance(&mut second, &mut weights, 4..STEPS);
        assert_eq!(weights[0].state().values, expected[0].state().values, "{second:?}");
    }
}
