//! The list of cases: the table of published shapes (spec section 12), and single ops at the sizes
//! of its systems.

use super::bridges::{BridgeCase, Head};
use super::ffn::FfnCase;
use super::ops::over_media;
use super::prefill::PrefillCase;
use super::{Case, Shape};
use crate::bridge::{GatedBlockConfig, Objective, QFormerConfig, ResamplerConfig};
use crate::verify::cases::attention::Heads;
use crate::verify::cases::{self, AttentionCase};

fn attention(name: &'static str, rows: &'static [u8], case: AttentionCase) -> Case {
    Case { name, rows, full_only: false, shape: Shape::Op(cases::Case::Attention(case)) }
}

/// The attention of an abridged reproduction string.
fn of(sizes: &str) -> AttentionCase {
    // With seed 3, prefix_causal has no offset.
    let text = format!("attention:{sizes},values=uniform,seed=3");
    AttentionCase::read(&text, true).unwrap_or_else(|e| unreachable!("{e}"))
}

/// Text over media of 64 keys.
fn text(batch: usize, rows: usize, media: usize, h: usize, d: usize) -> AttentionCase {
    AttentionCase { h: Heads { q: h, kv: h }, d, ..over_media(false, batch, rows, media, 64, 1) }
}

/// Text over media of 64 keys, by bits.
fn text_by_bits(rows: usize, media: usize, h: usize, d: usize) -> AttentionCase {
    AttentionCase { h: Heads { q: h, kv: h }, d, ..over_media(true, 1, rows, media, 64, 1) }
}

/// Text over an image of four tiles of 1601 keys.
fn over_tiles(rows: usize, h: usize) -> AttentionCase {
    AttentionCase { h: Heads { q: h, kv: 8 }, d: 128, ..over_media(true, 1, rows, 1, 4 * 1601, 4) }
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
    BridgeCase::Prefill(PrefillCase { config, rows, media, per_media: 64 })
}

fn q_former(config: QFormerConfig, batch: usize, text: usize, tokens: usize) -> BridgeCase {
    BridgeCase::QFormer { config, objective: Objective::Bidirectional, batch, text, tokens }
}

/// The case of an abridged reproduction string. Panics on a wrong one; tests/bench.rs builds the
/// whole list.
fn op(name: &'static str, case: &str) -> Case {
    let case = cases::Case::read(case, true).unwrap_or_else(|e| unreachable!("{e}"));
    Case { name, rows: &[], full_only: false, shape: Shape::Op(case) }
}

/// A product over a prepared weight.
fn linear(name: &'static str, sizes: &str) -> Case {
    op(name, &format!("linear:{sizes},matrix=prepared,values=uniform,parameters=f32,seed=3"))
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
        attention("attention/flamingo-resampler/image", &[1], of("q=64,k=100,k2=64,h=16/16,d=96")),
        attention("attention/flamingo-resampler/frames8", &[2], of("q=64,k=800,k2=64,h=16/16,d=96")),
        attention("attention/flamingo-resampler/frames30", &[3], of("q=64,k=3000,k2=64,h=16/16,d=96")),
        attention("attention/flamingo-3b/l256-n5", &[4], text(1, 256, 5, 16, 128)),
        attention("attention/flamingo-9b/l256-n5", &[5], text(1, 256, 5, 32, 128)),
        full(attention("attention/flamingo-80b/l2048-n32", &[6], text(1, 2048, 32, 64, 128))),
        attention("attention/openflamingo-resampler/b1", &[7], of("q=64,k=256,k2=64,h=8/8,d=64")),
        attention("attention/openflamingo-resampler/b8", &[7], of("batch=8,q=64,k=256,k2=64,h=8/8,d=64")),
        attention("attention/openflamingo/l512-n1", &[8, 9, 10], text(1, 512, 1, 8, 64)),
        attention("attention/openflamingo/l512-n8", &[8, 9, 10], text(1, 512, 8, 8, 64)),
        attention("attention/openflamingo/l2048-n32", &[8, 9, 10], text(1, 2048, 32, 8, 64)),
        attention("attention/openflamingo-decode/b1-n4", &[11], text(1, 1, 4, 8, 64)),
        attention("attention/openflamingo-decode/b16-n4", &[11], text(16, 1, 4, 8, 64)),
        attention("attention/idefics-resampler/b1", &[12], of("q=64,k=257,k2=64,h=16/16,d=96")),
        attention("attention/idefics-9b/l1024-n4", &[13], text_by_bits(1024, 4, 32, 128)),
        full(attention("attention/idefics-80b/l1024-n4", &[14], text_by_bits(1024, 4, 64, 128))),
        attention("attention/blip2-itg/q32-t32", &[15], of("q=64,k=64,h=12/12,d=64,rule=prefix_causal,media=32")),
        attention("attention/blip2-cross/k257", &[16, 20], of("q=32,k=257,h=12/12,d=64")),
        attention("attention/blip2-cross/k677", &[17], of("q=32,k=677,h=12/12,d=64")),
        attention("attention/blip2-cross/b32-k257", &[16, 18], of("batch=32,q=32,k=257,h=12/12,d=64")),
        attention("attention/instructblip-self/q32-t128", &[19], of("q=160,k=32,k2=128,h=12/12,d=64,keys2=most")),
        attention("attention/llama-3.2-11b/l256-k6404", &[21], over_tiles(256, 32)),
        attention("attention/llama-3.2-11b-decode/k6404", &[22], over_tiles(1, 32)),
        full(attention("attention/llama-3.2-90b/l512-k6404", &[23], over_tiles(512, 64))),
        attention("attention/idefics2/k1024", &[24], of("q=64,k=1024,k2=64,h=16/4,d=96,keys=most")),
        attention("attention/minicpm-v-2.6/k1024", &[25], of("q=64,k=1024,h=28/28,d=128,keys=most")),
        attention("attention/qwen-vl/k1024", &[26], of("q=256,k=1024,h=32/32,d=128")),
        attention("attention/xgen-mm/k729", &[27], of("q=128,k=729,k2=128,h=16/16,d=96,keys=most")),
    ]
}

fn single_ops() -> Vec<Case> {
    vec![
        op("media_index/l2048-n32/b8", "media_index:batch=8,rows=2048,density=spread,plan=true,seed=3"),
        op("norm/layer/512x2048", "norm:rows=512,width=2048,bias=true,values=uniform,parameters=f32,seed=3"),
        op("norm/rms/512x4096", "norm:rows=512,width=4096,kind=rms,values=uniform,parameters=f32,seed=3"),
        op(
            "norm/rms-heads/512x32x128",
            "norm:rows=512,heads=32,width=128,kind=rms,values=uniform,parameters=f32,seed=3",
        ),
        linear("linear/q/512x2048-512", "rows=512,n=512,k=2048"),
        linear("linear/out-gated/512x512-2048", "rows=512,n=2048,k=512,residual=from,gate=scalar"),
        linear("linear/gelu/512x2048-8192", "rows=512,n=8192,k=2048,activation=gelu"),
        linear("linear/down-gated/512x8192-2048", "rows=512,n=2048,k=8192,residual=from,gate=scalar"),
        linear("linear/gelu-bias/32x768-3072", "rows=32,n=3072,k=768,activation=gelu,bias=true"),
        linear("linear/gelu/64x1024-4096", "rows=64,n=4096,k=1024,activation=gelu"),
        linear("linear/squared-relu/64x1536-6144", "rows=64,n=6144,k=1536,activation=squared_relu"),
        linear("linear/swiglu/64x4096-14336", "rows=64,n=14336,k=4096,activation=swiglu"),
        linear("linear/decode/1x4096-4096", "rows=1,n=4096,k=4096,residual=from,gate=scalar"),
        op("gated_residual/512x2048", "gated_residual:rows=512,width=2048,values=uniform,gate_dtype=f32,seed=3"),
        op("gated_residual/2048x4096", "gated_residual:rows=2048,width=4096,values=uniform,gate_dtype=f32,seed=3"),
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

/// Batches that fill a data-centre GPU, with as many media per row as text of that length has. Most
/// goals are among them.
fn at_scale() -> Vec<Case> {
    let attention = |name, case| full(attention(name, &[], case));
    let bridge = |name, case| full(bridge(name, &[], case));
    let block =
        |config, batch, rows, media| BridgeCase::GatedBlock { config, batch, rows, media, per_media: 64, tiles: 1 };
    let of_9b = GatedBlockConfig::open_flamingo_9b;
    // Text over an image of four tiles.
    let tiles = |rows| {
        let config = GatedBlockConfig::llama_3_2_11b();
        BridgeCase::GatedBlock { config, batch: 1, rows, media: 1, per_media: 4 * 1601, tiles: 4 }
    };
    vec![
        attention("attention/openflamingo-resampler/b32", of("batch=32,q=64,k=256,k2=64,h=8/8,d=64")),
        attention("attention/flamingo-resampler/b32-k2304", of("batch=32,q=64,k=2304,k2=64,h=16/16,d=96")),
        attention("attention/flamingo-resampler/b32-k2304-kv4", of("batch=32,q=64,k=2304,k2=64,h=16/4,d=96")),
        attention("attention/flamingo-resampler/b1-k2304", of("q=64,k=2304,k2=64,h=16/16,d=96")),
        attention("attention/flamingo-9b/b8-l2048-n8", text(8, 2048, 8, 32, 128)),
        attention(
            "attention/flamingo-9b/b8-l2048-n8-kv8",
            AttentionCase { h: Heads { q: 32, kv: 8 }, ..text(8, 2048, 8, 32, 128) },
        ),
        attention("attention/openflamingo/b8-l2048-n8", text(8, 2048, 8, 8, 64)),
        attention("attention/flamingo-9b/b8-l8192-n32", text(8, 8192, 32, 32, 128)),
        attention("attention/flamingo-9b-decode/b64-n1", text(64, 1, 1, 32, 128)),
        // How time grows with images, text and batch.
        attention("attention/openflamingo/b8-l2048-n1", text(8, 2048, 1, 8, 64)),
        attention("attention/openflamingo/b8-l2048-n4", text(8, 2048, 4, 8, 64)),
        attention("attention/openflamingo/b8-l2048-n16", text(8, 2048, 16, 8, 64)),
        attention("attention/openflamingo/b8-l2048-n64", text(8, 2048, 64, 8, 64)),
        attention("attention/openflamingo/b8-l512-n8", text(8, 512, 8, 8, 64)),
        attention("attention/openflamingo/b8-l8192-n8", text(8, 8192, 8, 8, 64)),
        attention("attention/openflamingo/b1-l2048-n8", text(1, 2048, 8, 8, 64)),
        attention("attention/openflamingo/b32-l2048-n8", text(32, 2048, 8, 8, 64)),
        full(linear("linear/out-gated/16384x512-4096", "rows=16384,n=4096,k=512,residual=from,gate=scalar")),
        full(linear("linear/gelu/16384x4096-16384", "rows=16384,n=16384,k=4096,activation=gelu")),
        full(linear("linear/down-gated/16384x16384-4096", "rows=16384,n=4096,k=16384,residual=from,gate=scalar")),
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
