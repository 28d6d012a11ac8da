//! Weights that a bridge refuses.

use xattn::HostTensor;
use xattn::bridge::{FfnWeights, GatedBlock, GatedBlockConfig};
use xattn::ops::Activation;

use crate::gated_block::{config, weights};
use crate::support::labs;

/// Unsupported combinations are refused: a bias beside a gate, wrong gates for an activation.
#[test]
fn feed_forward_weights_that_do_not_fit_the_activation() {
    let mut gated = config();
    gated.activation = Activation::SwiGlu;
    let bias = HostTensor::from_slice(&vec![1.0f32; gated.ffn_hidden], &[gated.ffn_hidden]).unwrap();
    for lab in labs() {
        let refused = |config: &GatedBlockConfig, change: &dyn Fn(&mut FfnWeights<'static>)| {
            let mut weights = weights(config);
            assert!(GatedBlock::new(&lab.device, config, &weights, lab.precision()).is_ok());
            change(&mut weights.ffn);
            GatedBlock::new(&lab.device, config, &weights, lab.precision()).err().expect("accepted").to_string()
        };
        assert_eq!(
            refused(&gated, &|ffn| ffn.up.bias = vec![bias.clone()]),
            "gated_block: ffn: expected no bias of `up` with swiglu, got one"
        );
        assert_eq!(
            refused(&gated, &|ffn| ffn.gate = None),
            "gated_block: ffn: expected a gate matrix with swiglu, got none"
        );
        let up = weights(&gated).ffn.up.weight[0].clone();
        assert_eq!(
            refused(&config(), &|ffn| ffn.gate = Some(up.clone())),
            "gated_block: ffn: expected none with gelu, got a gate matrix"
        );
    }
}
