//! The list of cases: the table of published shapes (spec section 12), and single ops at the sizes
//! of its systems.

use super::attention::AttentionCase;
use super::bridges::{BridgeCase, Head};
use super::ffn::FfnCase;
use super::ops::{After, OpCase};
use super::prefill::PrefillCase;
use super::rule::{Rule, media_bits, same_media};
use super::{Case, Shape};
use crate::bridge::{GatedBlockConfig, Objective, QFormerConfig, ResamplerConfig};
use crate::ops::{Activation, NormKind};

/// An attention over one segment where everything is visible; the rows below change what differs.
const PLAIN: AttentionCase = AttentionCase {
    batch: 1,
    rows: 64,
    heads: 8,
    kv_heads: 8,
    head_dim: 64,
    keys: [256, 0],
    padded: None,
    rule: Rule::All,
};

fn attention(name: &'static str, rows: &'static [u8], case: AttentionCase) -> Case {
    Case { name, rows, full_only: false, shape: Shape::Attention(case) }
}

/// `batch` problems of `latents` queries over features and latents.
fn resampling(batch: usize, features: usize, latents: usize, heads: usize, head_dim: usize) -> AttentionCase {
    AttentionCase { batch, rows: latents, heads, kv_heads: heads, head_dim, keys: [features, latents], ..PLAIN }
}

/// Text over media of 64 keys.
fn over_media(batch: usize, rows: usize, media: usize, heads: usize, head_dim: usize) -> AttentionCase {
    let rule = same_media(media, 64);
    AttentionCase { batch, rows, heads, kv_heads: heads, head_dim, keys: [64 * media, 0], rule, ..PLAIN }
}

/// Text over images of four tiles of 1601 keys.
fn over_tiles(rows: usize, heads: usize) -> AttentionCase {
    let rule = media_bits(1, 1601);
    AttentionCase { rows, heads, kv_heads: 8, head_dim: 128, keys: [4 * 1601, 0], rule, ..PLAIN }
}

fn q_former_attention(rows: usize, keys: usize) -> AttentionCase {
    AttentionCase { rows, heads: 12, kv_heads: 12, keys: [keys, 0], ..PLAIN }
}

fn bridge(name: &'static str, rows: &'static [u8], case: BridgeCase) -> Case {
    Case { name, rows, full_only: false, shape: Shape::Bridge(case) }
}

fn resampler(config: ResamplerConfig, batch: usize, tokens: usize) -> BridgeCase {
    BridgeCase::Resampler { config, batch, tokens }
}

fn block(config: GatedBlockConfig, rows: usize, media: usize) -> BridgeCase {
    BridgeCase::GatedBlock { config, batch: 1, rows, media, per_media: 64, tiles: 1 }
}

/// A prefill over media of 64 keys.
fn prefill(config: GatedBlockConfig, rows: usize, media: usize) -> BridgeCase {
    BridgeCase::Prefill(PrefillCase { config, rows, media, per_media: 64, rule: same_media(media, 64) })
}

fn q_former(config: QFormerConfig, batch: usize, text: usize, tokens: usize) -> BridgeCase {
    BridgeCase::QFormer { config, objective: Objective::Bidirectional, batch, text, tokens }
}

fn op(name: &'static str, case: OpCase) -> Case {
    Case { name, rows: &[], full_only: false, shape: Shape::Op(case) }
}

fn ffn(name: &'static str, rows: usize) -> Case {
    Case { name, rows: &[], full_only: false, shape: Shape::Ffn(FfnCase { rows, width: 4096, hidden: 16384 }) }
}

fn full(case: Case) -> Case {
    Case { full_only: true, ..case }
}

/// Every case, in the order in which they are listed.
pub fn cases() -> Vec<Case> {
    let mut all = attentions();
    all.extend(single_ops());
    all.extend(whole_bridges());
    all.extend(at_scale());
    all
}

fn attentions() -> Vec<Case> {
    vec![
        attention("attention/flamingo-resampler/image", &[1], resampling(1, 100, 64, 16, 96)),
        attention("attention/flamingo-resampler/frames8", &[2], resampling(1, 800, 64, 16, 96)),
        attention("attention/flamingo-resampler/frames30", &[3], resampling(1, 3000, 64, 16, 96)),
        attention("attention/flamingo-3b/l256-n5", &[4], over_media(1, 256, 5, 16, 128)),
        attention("attention/flamingo-9b/l256-n5", &[5], over_media(1, 256, 5, 32, 128)),
        full(attention("attention/flamingo-80b/l2048-n32", &[6], over_media(1, 2048, 32, 64, 128))),
        attention("attention/openflamingo-resampler/b1", &[7], resampling(1, 256, 64, 8, 64)),
        attention("attention/openflamingo-resampler/b8", &[7], resampling(8, 256, 64, 8, 64)),
        attention("attention/openflamingo/l512-n1", &[8, 9, 10], over_media(1, 512, 1, 8, 64)),
        attention("attention/openflamingo/l512-n8", &[8, 9, 10], over_media(1, 512, 8, 8, 64)),
        attention("attention/openflamingo/l2048-n32", &[8, 9, 10], over_media(1, 2048, 32, 8, 64)),
        attention("attention/openflamingo-decode/b1-n4", &[11], over_media(1, 1, 4, 8, 64)),
        attention("attention/openflamingo-decode/b16-n4", &[11], over_media(16, 1, 4, 8, 64)),
        attention("attention/idefics-resampler/b1", &[12], resampling(1, 257, 64, 16, 96)),
        attention(
            "attention/idefics-9b/l1024-n4",
            &[13],
            AttentionCase { rule: media_bits(4, 64), ..over_media(1, 1024, 4, 32, 128) },
        ),
        full(attention(
            "attention/idefics-80b/l1024-n4",
            &[14],
            AttentionCase { rule: media_bits(4, 64), ..over_media(1, 1024, 4, 64, 128) },
        )),
        attention(
            "attention/blip2-itg/q32-t32",
            &[15],
            AttentionCase { rule: Rule::PrefixCausal { prefix: 32, offset: None }, ..q_former_attention(64, 64) },
        ),
        attention("attention/blip2-cross/k257", &[16, 20], q_former_attention(32, 257)),
        attention("attention/blip2-cross/k677", &[17], q_former_attention(32, 677)),
        attention(
            "attention/blip2-cross/b32-k257",
            &[16, 18],
            AttentionCase { batch: 32, ..q_former_attention(32, 257) },
        ),
        attention(
            "attention/instructblip-self/q32-t128",
            &[19],
            AttentionCase { keys: [32, 128], padded: Some(1), ..q_former_attention(160, 32) },
        ),
        attention("attention/llama-3.2-11b/l256-k6404", &[21], over_tiles(256, 32)),
        attention("attention/llama-3.2-11b-decode/k6404", &[22], over_tiles(1, 32)),
        full(attention("attention/llama-3.2-90b/l512-k6404", &[23], over_tiles(512, 64))),
        attention(
            "attention/idefics2/k1024",
            &[24],
            AttentionCase { kv_heads: 4, padded: Some(0), ..resampling(1, 1024, 64, 16, 96) },
        ),
        attention(
            "attention/minicpm-v-2.6/k1024",
            &[25],
            AttentionCase { heads: 28, kv_heads: 28, head_dim: 128, keys: [1024, 0], padded: Some(0), ..PLAIN },
        ),
        attention(
            "attention/qwen-vl/k1024",
            &[26],
            AttentionCase { rows: 256, heads: 32, kv_heads: 32, head_dim: 128, keys: [1024, 0], ..PLAIN },
        ),
        attention(
            "attention/xgen-mm/k729",
            &[27],
            AttentionCase { padded: Some(0), ..resampling(1, 729, 128, 16, 96) },
        ),
    ]
}

fn single_ops() -> Vec<Case> {
    let linear = |rows, n, k, activation, after| OpCase::Linear { rows, n, k, activation, after };
    vec![
        op("media_index/l2048-n32/b8", OpCase::MediaIndex { batch: 8, rows: 2048, media: 32 }),
        op("norm/layer/512x2048", OpCase::Norm { kind: NormKind::Layer, rows: 512, heads: 1, width: 2048 }),
        op("norm/rms/512x4096", OpCase::Norm { kind: NormKind::Rms, rows: 512, heads: 1, width: 4096 }),
        op("norm/rms-heads/512x32x128", OpCase::Norm { kind: NormKind::Rms, rows: 512, heads: 32, width: 128 }),
        op("linear/q/512x2048-512", linear(512, 512, 2048, Activation::None, After::Nothing)),
        op("linear/out-gated/512x512-2048", linear(512, 2048, 512, Activation::None, After::GatedResidual)),
        op("linear/gelu/512x2048-8192", linear(512, 8192, 2048, Activation::Gelu, After::Nothing)),
        op("linear/down-gated/512x8192-2048", linear(512, 2048, 8192, Activation::None, After::GatedResidual)),
        op("linear/gelu-bias/32x768-3072", linear(32, 3072, 768, Activation::Gelu, After::Bias)),
        op("linear/gelu/64x1024-4096", linear(64, 4096, 1024, Activation::Gelu, After::Nothing)),
        op("linear/squared-relu/64x1536-6144", linear(64, 6144, 1536, Activation::SquaredRelu, After::Nothing)),
        op("linear/swiglu/64x4096-14336", linear(64, 14336, 4096, Activation::SwiGlu, After::Nothing)),
        op("linear/decode/1x4096-4096", linear(1, 4096, 4096, Activation::None, After::GatedResidual)),
        op("gated_residual/512x2048", OpCase::GatedResidual { rows: 512, width: 2048 }),
        op("gated_residual/2048x4096", OpCase::GatedResidual { rows: 2048, width: 4096 }),
        full(ffn("ffn/openflamingo-9b/64", 64)),
    ]
}

fn whole_bridges() -> Vec<Case> {
    let of_3b = GatedBlockConfig::open_flamingo_3b;
    let tiled =
        |config, rows, keys| BridgeCase::GatedBlock { config, batch: 1, rows, media: 1, per_media: keys, tiles: 1 };
    let head = |head, rows| BridgeCase::Head { head, batch: 1, rows, width: 768 };
    vec![
        bridge("resampler/flamingo/image", &[1], resampler(ResamplerConfig::flamingo(), 1, 100)),
        full(bridge("resampler/flamingo/frames8", &[2], resampler(ResamplerConfig::flamingo(), 1, 800))),
        bridge("resampler/openflamingo/b1", &[7], resampler(ResamplerConfig::open_flamingo(), 1, 256)),
        bridge("resampler/openflamingo/b8", &[7], resampler(ResamplerConfig::open_flamingo(), 8, 256)),
        bridge("resampler/idefics/b1", &[12], resampler(ResamplerConfig::idefics(), 1, 257)),
        full(bridge("resampler/idefics2/k1024", &[24], resampler(ResamplerConfig::idefics2_8b(), 1, 1024))),
        full(bridge("resampler/xgen-mm/k729", &[27], resampler(ResamplerConfig::xgen_mm(), 1, 729))),
        full(bridge("gated_block/flamingo-3b/l256-n5", &[4], block(GatedBlockConfig::flamingo_3b(), 256, 5))),
        full(bridge("gated_block/flamingo-9b/l256-n5", &[5], block(GatedBlockConfig::flamingo_9b(), 256, 5))),
        bridge("gated_block/openflamingo-3b/l512-n1", &[8], block(of_3b(), 512, 1)),
        bridge("gated_block/openflamingo-3b/l512-n4", &[8], block(of_3b(), 512, 4)),
        bridge("gated_block/openflamingo-3b/l512-n16", &[8], block(of_3b(), 512, 16)),
        bridge("gated_block/openflamingo-3b/l512-n64", &[8], block(of_3b(), 512, 64)),
        full(bridge("gated_block/openflamingo-4b/l512-n4", &[9], block(GatedBlockConfig::open_flamingo_4b(), 512, 4))),
        full(bridge("gated_block/openflamingo-9b/l512-n4", &[10], block(GatedBlockConfig::open_flamingo_9b(), 512, 4))),
        bridge("gated_block/openflamingo-3b-decode/n1", &[11], block(of_3b(), 1, 1)),
        bridge("gated_block/openflamingo-3b-decode/n4", &[11], block(of_3b(), 1, 4)),
        bridge("gated_block/openflamingo-3b-decode/n16", &[11], block(of_3b(), 1, 16)),
        bridge("gated_block/openflamingo-3b-decode/n64", &[11], block(of_3b(), 1, 64)),
        full(bridge("gated_block/idefics-9b/l1024-n4", &[13], block(GatedBlockConfig::idefics_9b(), 1024, 4))),
        full(bridge(
            "gated_block/llama-3.2-11b/l256-k1601",
            &[21],
            tiled(GatedBlockConfig::llama_3_2_11b(), 256, 1601),
        )),
        full(bridge(
            "gated_block/llama-3.2-11b-decode/k1601",
            &[22],
            tiled(GatedBlockConfig::llama_3_2_11b(), 1, 1601),
        )),
        bridge(
            "project_media/openflamingo-3b/n4",
            &[8],
            BridgeCase::ProjectMedia { config: of_3b(), media: 4, per_media: 64 },
        ),
        full(bridge(
            "project_media/llama-3.2-11b/k1601",
            &[21],
            BridgeCase::ProjectMedia { config: GatedBlockConfig::llama_3_2_11b(), media: 1, per_media: 1601 },
        )),
        bridge("prefill/openflamingo-3b/l512-n1", &[8], prefill(of_3b(), 512, 1)),
        bridge("prefill/openflamingo-3b/l512-n4", &[8], prefill(of_3b(), 512, 4)),
        bridge("prefill/openflamingo-3b/l512-n16", &[8], prefill(of_3b(), 512, 16)),
        bridge("prefill/openflamingo-3b/l512-n64", &[8], prefill(of_3b(), 512, 64)),
        full(bridge(
            "prefill/llama-3.2-11b/l256-k1601",
            &[21],
            BridgeCase::Prefill(PrefillCase {
                config: GatedBlockConfig::llama_3_2_11b(),
                rows: 256,
                media: 1,
                per_media: 1601,
                rule: media_bits(1, 1601),
            }),
        )),
        bridge("qformer/blip2/b1", &[15, 16], q_former(QFormerConfig::blip2(), 1, 0, 257)),
        full(bridge("qformer/blip2-coco/b1", &[17], q_former(QFormerConfig::blip2(), 1, 0, 677))),
        full(bridge("qformer/blip2-vit-l/b1", &[18], q_former(QFormerConfig::blip2_vit_l(), 1, 0, 257))),
        bridge("qformer/instructblip/t128", &[19, 20], q_former(QFormerConfig::instruct_blip(), 1, 128, 257)),
        bridge("qformer_head/language/opt-2.7b", &[], head(Head::Language(2560), 32)),
        bridge("qformer_head/itc/256", &[], head(Head::Itc(256), 32)),
        bridge("qformer_head/itm/2", &[], head(Head::Itm, 32)),
        bridge("qformer_head/lm/30523", &[], head(Head::Lm(30523), 32)),
    ]
}

/// Batches that fill a data-centre GPU, the media of a row as many as text of that length has: what
/// `goals` asks times of.
fn at_scale() -> Vec<Case> {
    let attention = |name, case| full(attention(name, &[], case));
    let bridge = |name, case| full(bridge(name, &[], case));
    let linear =
        |name, n, k, activation, after| full(op(name, OpCase::Linear { rows: 16384, n, k, activation, after }));
    let block =
        |config, batch, rows, media| BridgeCase::GatedBlock { config, batch, rows, media, per_media: 64, tiles: 1 };
    let of_9b = GatedBlockConfig::open_flamingo_9b;
    // Text over an image of four tiles.
    let tiles = |rows| {
        let config = GatedBlockConfig::llama_3_2_11b();
        BridgeCase::GatedBlock { config, batch: 1, rows, media: 1, per_media: 4 * 1601, tiles: 4 }
    };
    vec![
        attention("attention/openflamingo-resampler/b32", resampling(32, 256, 64, 8, 64)),
        attention("attention/flamingo-resampler/b32-k2304", resampling(32, 2304, 64, 16, 96)),
        attention(
            "attention/flamingo-resampler/b32-k2304-kv4",
            AttentionCase { kv_heads: 4, ..resampling(32, 2304, 64, 16, 96) },
        ),
        attention("attention/flamingo-resampler/b1-k2304", resampling(1, 2304, 64, 16, 96)),
        attention("attention/flamingo-9b/b8-l2048-n8", over_media(8, 2048, 8, 32, 128)),
        attention(
            "attention/flamingo-9b/b8-l2048-n8-kv8",
            AttentionCase { kv_heads: 8, ..over_media(8, 2048, 8, 32, 128) },
        ),
        attention("attention/openflamingo/b8-l2048-n8", over_media(8, 2048, 8, 8, 64)),
        attention("attention/flamingo-9b/b8-l8192-n32", over_media(8, 8192, 32, 32, 128)),
        attention("attention/flamingo-9b-decode/b64-n1", over_media(64, 1, 1, 32, 128)),
        // How time grows with images, text and batch.
        attention("attention/openflamingo/b8-l2048-n1", over_media(8, 2048, 1, 8, 64)),
        attention("attention/openflamingo/b8-l2048-n4", over_media(8, 2048, 4, 8, 64)),
        attention("attention/openflamingo/b8-l2048-n16", over_media(8, 2048, 16, 8, 64)),
        attention("attention/openflamingo/b8-l2048-n64", over_media(8, 2048, 64, 8, 64)),
        attention("attention/openflamingo/b8-l512-n8", over_media(8, 512, 8, 8, 64)),
        attention("attention/openflamingo/b8-l8192-n8", over_media(8, 8192, 8, 8, 64)),
        attention("attention/openflamingo/b1-l2048-n8", over_media(1, 2048, 8, 8, 64)),
        attention("attention/openflamingo/b32-l2048-n8", over_media(32, 2048, 8, 8, 64)),
        linear("linear/out-gated/16384x512-4096", 4096, 512, Activation::None, After::GatedResidual),
        linear("linear/gelu/16384x4096-16384", 16384, 4096, Activation::Gelu, After::Nothing),
        linear("linear/down-gated/16384x16384-4096", 4096, 16384, Activation::None, After::GatedResidual),
        full(ffn("ffn/openflamingo-9b/16384", 16384)),
        bridge("resampler/openflamingo/b32", resampler(ResamplerConfig::open_flamingo(), 32, 256)),
        bridge("gated_block/openflamingo-9b/b8-l2048-n8", block(of_9b(), 8, 2048, 8)),
        bridge("gated_block/openflamingo-9b/b1-l2048-n8", block(of_9b(), 1, 2048, 8)),
        bridge("gated_block/openflamingo-9b-decode/n8", block(of_9b(), 1, 1, 8)),
        bridge("qformer/blip2/b32", q_former(QFormerConfig::blip2(), 32, 0, 257)),
        bridge("gated_block/llama-3.2-11b/l512-k6404", tiles(512)),
        bridge("gated_block/llama-3.2-11b-decode/k6404", tiles(1)),
    ]
}
