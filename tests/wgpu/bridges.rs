//! What whole bridges cost, as numbers: dispatches, submissions, bytes of the model, blocks of keys
//! visited; and that steady state makes nothing.
//!
//! Sizes are small, structures those of the published configs. In the sums of bytes each op counts
//! every operand once, all in f32; what is worked on in place counts twice.

use xattn::bench::weights::{RandomWeights, Text};
use xattn::bench::{cases, spread_media};
use xattn::bridge::{
    GatedBlock, GatedBlockArgs, GatedBlockConfig, MediaCache, MediaRule, PerceiverResampler, Precision, QFormer,
    QFormerArgs, QFormerConfig, ResamplerArgs, ResamplerConfig,
};
use xattn::ops::{Keys, Media, Operands, Source, Visibility};
use xattn::{
    DType, Device, HostTensor, PreparedBridge, Recorder, Spec, Tensor, View, ViewMut, WgpuCounts, WgpuOptions,
    Workspace,
};

use crate::support::{device, since};

const F32: Precision = Precision { activations: DType::F32, weights: DType::F32 };

/// A device whose kernels count the blocks of keys that they visit.
fn counting() -> Option<Device> {
    let mut options = WgpuOptions::default();
    options.count_key_blocks = true;
    device(&options)
}

fn real(device: &Device, shape: &[usize]) -> Tensor {
    Tensor::upload(device, &RandomWeights::new(7).tensor(0.0, 1.0, shape).unwrap(), DType::F32).unwrap()
}

/// What work makes and sends, and how many blocks of keys it visits.
fn cost(device: &Device, work: impl FnOnce()) -> (WgpuCounts, u32) {
    let blocks = device.wgpu_key_blocks().unwrap().unwrap();
    let before = device.wgpu_counts().unwrap();
    work();
    let counts = since(device, &before);
    (counts, device.wgpu_key_blocks().unwrap().unwrap() - blocks)
}

/// One recorder's work, submitted and waited for.
fn submit(device: &Device, record: impl FnOnce(&mut Recorder<'_>)) {
    let mut recorder = device.recorder().unwrap();
    record(&mut recorder);
    device.finish(recorder).unwrap();
}

/// Nothing was made, and everything went in one submission.
#[track_caller]
fn expect_steady(counts: &WgpuCounts, dispatches: u64) {
    assert_eq!((counts.buffers, counts.bind_groups, counts.pipelines), (0, 0, 0), "{counts:?}");
    assert_eq!((counts.dispatches, counts.submissions), (dispatches, 1), "{counts:?}");
}

/// Runs a bridge three times; only the first makes objects. Dispatches, bytes, blocks of keys.
fn numbers<C: Operands>(
    device: &Device,
    bridge: &PreparedBridge<C>,
    mut run: impl FnMut(&mut Recorder<'_>, &mut Workspace),
) -> (u64, u64, u32) {
    let mut workspace = Workspace::new(device, bridge.workspace_bytes()).unwrap();
    let (first, blocks) = cost(device, || submit(device, |r| run(r, &mut workspace)));
    assert!(first.buffers > 0 && first.bind_groups > 0, "the counters are blind: {first:?}");
    for _ in 0..2 {
        let (again, same) = cost(device, || submit(device, |r| run(r, &mut workspace)));
        expect_steady(&again, first.dispatches);
        assert_eq!(same, blocks);
    }
    (first.dispatches, bridge.cost().bytes, blocks)
}

/// A gated block over a media cache.
struct Block {
    device: Device,
    bridge: GatedBlock,
    cache: MediaCache,
    text: Tensor,
    seen: Tensor,
    per_media: usize,
}

impl Block {
    /// `seen`: φ, or where the config's rule wants them, words of bits.
    fn new(device: &Device, config: &GatedBlockConfig, media: usize, per_media: usize, seen: &[i32]) -> Self {
        let weights = RandomWeights::new(3).gated_block(config).unwrap();
        let bridge = GatedBlock::new(device, config, &weights, F32).unwrap();
        let rows = seen.len();
        let seen = match config.rule {
            MediaRule::Bits => {
                let bits: Vec<u32> = seen.iter().map(|&bits| bits as u32).collect();
                let bits = HostTensor::from_slice(&bits, &[1, rows, 1]).unwrap();
                Tensor::upload(device, &bits, DType::U32).unwrap()
            }
            _ => Tensor::upload(device, &HostTensor::from_slice(seen, &[1, rows]).unwrap(), DType::I32).unwrap(),
        };
        let cache = MediaCache::new(&[&bridge], 1, media, per_media).unwrap();
        Block { device: device.clone(), cache, text: real(device, &[1, rows, config.width]), bridge, seen, per_media }
    }

    fn args<R, W>(&self, x: R, kv: R, seen: R, out: W) -> GatedBlockArgs<R, W> {
        let per = self.per_media as u32;
        let visibility = match self.bridge.config().rule {
            MediaRule::Bits => Visibility::MediaBits { bits: seen, keys_per_block: per },
            MediaRule::Same => Visibility::SameMedia(Media { media_index: seen, keys_per_media: per, plan: None }),
            MediaRule::Preceding => {
                Visibility::PrecedingMedia(Media { media_index: seen, keys_per_media: per, plan: None })
            }
            rule => unreachable!("a rule that this test does not know: {rule:?}"),
        };
        let x = Source::From(x);
        GatedBlockArgs { x, x_offsets: None, kv, keys: Keys::All, slots: None, kv_offsets: None, visibility, out }
    }

    /// Fills the cache, in steady state: its dispatches.
    fn fill(&mut self) -> u64 {
        let (device, media) = (self.device.clone(), self.cache.media());
        let fresh = real(&device, &[media, self.per_media, self.bridge.config().media_width]);
        let fill = self.cache.prepare_fill(&[&self.bridge], media).unwrap();
        let mut workspace = Workspace::new(&device, fill.workspace_bytes()).unwrap();
        let mut run =
            || submit(&device, |r| self.cache.enqueue_fill(&fill, r, 0, 0, &fresh.view(), &mut workspace).unwrap());
        run();
        let (counts, _) = cost(&device, run);
        expect_steady(&counts, counts.dispatches);
        counts.dispatches
    }

    /// Dispatches, bytes and blocks of keys of the block over the filled cache.
    fn run(&self) -> (u64, u64, u32) {
        let mut out = Tensor::zeros(&self.device, DType::F32, self.text.spec().shape()).unwrap();
        let shapes = self.args(self.text.spec(), self.cache.spec(), self.seen.spec(), out.spec());
        let prepared = self.bridge.prepare(shapes).unwrap();
        numbers(&self.device, &prepared, |recorder, workspace| {
            let kv = self.cache.kv(0).unwrap();
            let args = self.args(self.text.view(), kv, self.seen.view(), out.view_mut());
            prepared.enqueue(recorder, args, workspace).unwrap();
        })
    }
}

/// OpenFlamingo's block: 4 heads of 64, text of 96, media of 80.
fn open_flamingo() -> GatedBlockConfig {
    let mut config = GatedBlockConfig::new(96, 80, 4, 64);
    config.empty_rows = GatedBlockConfig::open_flamingo_3b().empty_rows;
    config.ffn_hidden = 128;
    config
}

/// Bytes of [`open_flamingo`] over `rows` rows and `keys` keys.
fn open_flamingo_bytes(rows: usize, keys: usize) -> u64 {
    let (width, inner, hidden) = (96, 256, 128);
    let norm = 2 * rows * width + 2 * width;
    let product = |k: usize, n: usize| rows * k + n * k + rows * n;
    // Beside the product: a gate, and a residual as large as the result.
    let gated = |k: usize| product(k, width) + 1 + rows * width;
    let attention = 2 * rows * inner + 2 * keys * inner + rows;
    4 * (2 * norm + product(width, inner) + attention + gated(inner) + product(width, hidden) + gated(hidden)) as u64
}

#[test]
fn a_gated_block_takes_seven_dispatches_and_one_submission() {
    let Some(device) = counting() else { return };
    // norm, q, attention, out, norm, up, down; new media: kv. Tiles of 32 rows; media change every
    // 25 rows, so the tiles see 2, 2, 2 and 1 of the media of one block each; in each of 4 heads.
    let mut prefill = Block::new(&device, &open_flamingo(), 4, 64, &spread_media(1, 100, 4));
    assert_eq!(prefill.fill(), 1);
    assert_eq!(prefill.run(), (7, open_flamingo_bytes(100, 256), 4 * (2 + 2 + 2 + 1)));
    // One row sees the last medium.
    let decode = Block::new(&device, &open_flamingo(), 4, 64, &[4]);
    assert_eq!(decode.run(), (7, open_flamingo_bytes(1, 256), 4));
    // All media up to the row's own: 1 + 2 blocks become 2 for a tile that ends in the second
    // medium, and so on.
    let mut preceding = open_flamingo();
    preceding.rule = MediaRule::Preceding;
    let preceding = Block::new(&device, &preceding, 4, 64, &spread_media(1, 100, 4));
    assert_eq!(preceding.run(), (7, open_flamingo_bytes(100, 256), 4 * (2 + 3 + 4 + 4)));
    // The paper's block norms new media before kv.
    let mut flamingo = open_flamingo();
    flamingo.media_norm = GatedBlockConfig::flamingo_3b().media_norm;
    let mut flamingo = Block::new(&device, &flamingo, 4, 64, &spread_media(1, 100, 4));
    assert_eq!((flamingo.fill(), flamingo.run().0), (2, 7));
}

#[test]
fn a_gated_block_with_norms_of_q_and_k_takes_at_most_ten() {
    let Some(device) = counting() else { return };
    let small = |mut c: GatedBlockConfig, heads, kv_heads| {
        (c.width, c.media_width, c.ffn_hidden) = (64, 48, 96);
        (c.heads, c.kv_heads, c.head_dim) = (heads, kv_heads, 32);
        c
    };
    // IDEFICS: q_norm beside the seven; new media: kv, k_norm. Media of 64 keys, one bit each; rows
    // see the first, none, both.
    let bits: Vec<i32> = (0..96).map(|row| [1, 0, 3][row / 32]).collect();
    let mut idefics = Block::new(&device, &small(GatedBlockConfig::idefics_9b(), 2, 2), 2, 64, &bits);
    let (dispatches, _, blocks) = idefics.run();
    assert_eq!((idefics.fill(), dispatches, blocks), (2, 8, 2 * (1 + 2)));
    // Llama: q_norm and, for the mask of the feed-forward network, row_visible. 2 tiles of 70 keys,
    // of which rows from 20 on see the second: keys 70 .. 140, blocks 1 and 2 of 64. Four query
    // heads share keys: tiles of 8 rows, three of which have such rows; two K/V heads.
    let bits: Vec<i32> = (0..40).map(|row| if row < 20 { 0 } else { 2 }).collect();
    let mut llama = Block::new(&device, &small(GatedBlockConfig::llama_3_2_11b(), 8, 2), 2, 70, &bits);
    let (dispatches, _, blocks) = llama.run();
    assert_eq!((llama.fill(), dispatches, blocks), (2, 9, 2 * 3 * 2));
}

#[test]
fn a_decode_step_of_a_published_size() {
    let Some(device) = counting() else { return };
    let case = cases().into_iter().find(|c| c.name == "gated_block/openflamingo-3b-decode/n4").unwrap();
    let mut built = case.build(&device, DType::F32).unwrap();
    built.runnable().run().unwrap();
    let (counts, blocks) = cost(&device, || built.runnable().run().unwrap());
    expect_steady(&counts, 7);
    // One block of one medium in each of 8 heads.
    assert_eq!(blocks, 8);
}

#[test]
fn a_resampler() {
    let Some(device) = counting() else { return };
    let mut sizes = ResamplerConfig::new(64, 40, 2, 32);
    (sizes.layers, sizes.ffn_hidden) = (2, 96);
    // Two images of 100 tokens: 140 keys in a joint axis make 3 blocks of 64; 40 latents are two
    // tiles of 32 rows; 2 problems, 2 heads, 2 layers.
    let blocks = 2 * 2 * 2 * (2 * 3);
    let run = |config: &ResamplerConfig| {
        let weights = RandomWeights::new(4).resampler(config).unwrap();
        let bridge = PerceiverResampler::new(&device, config, &weights, F32).unwrap();
        let features = real(&device, &[2, 1, 100, config.width]);
        let mut out = Tensor::zeros(&device, DType::F32, &[2, 1, 40, config.width]).unwrap();
        let specs = ResamplerArgs { features: features.spec(), keys: Keys::All, offsets: None, out: out.spec() };
        let prepared = bridge.prepare(1, specs).unwrap();
        numbers(&device, &prepared, |recorder, workspace| {
            let (features, out) = (features.view(), out.view_mut());
            let args = ResamplerArgs { features, keys: Keys::All, offsets: None, out };
            prepared.enqueue(recorder, args, workspace).unwrap();
        })
    };
    // Each layer: norm and kv of the features; norm, q, kv of the latents; attention, out, norm,
    // up, down. In the end a norm.
    let norm = |rows: usize| 2 * rows * 64 + 2 * 64;
    let product = |rows: usize, k: usize, n: usize| rows * k + n * k + rows * n;
    let layer = |problems: usize, latents: usize| {
        let rows = problems * 40;
        norm(200) + product(200, 64, 128) + norm(latents) + product(latents, 64, 64) + product(latents, 64, 128)
            // q, k and v of the features, k and v of the latents, out.
            + latents * 64 + 2 * 200 * 64 + 2 * latents * 64 + rows * 64
            // The residual of the first layer is the latents themselves.
            + product(rows, 64, 64) + latents * 64
            + norm(rows) + product(rows, 64, 96) + product(rows, 96, 64) + rows * 64
    };
    // The first layer's latents are one set for both images.
    let bytes = 4 * (layer(2, 40) + layer(2, 80) + norm(80)) as u64;
    assert_eq!(run(&sizes), (2 * 10 + 1, bytes, blocks));
    // IDEFICS norms q and both k per head.
    sizes.qk_norm = ResamplerConfig::idefics().qk_norm;
    let (dispatches, _, visited) = run(&sizes);
    assert_eq!((dispatches, visited), (2 * 13 + 1, blocks));
}

#[test]
fn a_q_former() {
    let Some(device) = counting() else { return };
    let mut config = QFormerConfig::new(64, 2, 48);
    (config.layers, config.queries, config.ffn_hidden) = (2, 8, 96);
    let run = |text: usize| {
        let vocabulary = (text > 0).then_some(Text { vocabulary: 20, positions: 16 });
        let weights = RandomWeights::new(5).qformer(&config, vocabulary).unwrap();
        let bridge = QFormer::new(&device, &config, &weights, F32).unwrap();
        let features = real(&device, &[1, 100, 48]);
        let mut hidden = Tensor::zeros(&device, DType::F32, &[1, 8 + text, 64]).unwrap();
        let ids: Vec<i32> = (0..text as i32).collect();
        let ids = Tensor::upload(&device, &HostTensor::from_slice(&ids, &[1, text]).unwrap(), DType::I32).unwrap();
        let mut specs: QFormerArgs<Spec, Spec> = QFormerArgs::image(features.spec(), hidden.spec());
        specs.text = (text > 0).then_some(ids.spec());
        let prepared = bridge.prepare(Default::default(), 0, specs).unwrap();
        numbers(&device, &prepared, |recorder, workspace| {
            let mut args: QFormerArgs<View<'_>, ViewMut<'_>> = QFormerArgs::image(features.view(), hidden.view_mut());
            args.text = (text > 0).then(|| ids.view());
            prepared.enqueue(recorder, args, workspace).unwrap();
        })
    };
    // A norm of the queries. Each layer: q, kv, attention, out, norm; up, down, norm. The first one
    // also crosses: q, kv, attention, out, norm. Blocks of keys in 2 heads: 8 queries in 2 layers,
    // 100 features are 2 blocks.
    let norm = |rows: usize| 2 * rows * 64 + 2 * 64;
    let product = |rows: usize, k: usize, n: usize| rows * k + n * k + n + rows * n;
    let attend = |keys: usize, k: usize| {
        product(8, 64, 64) + product(keys, k, 128) + 2 * 8 * 64 + 2 * keys * 64 + product(8, 64, 64) + 8 * 64 + norm(8)
    };
    let ffn = product(8, 64, 96) + product(8, 96, 64) + 8 * 64 + norm(8);
    // The queries are one set of weights.
    let bytes = 4 * (norm(8) + 2 * (attend(8, 64) + ffn) + attend(100, 48)) as u64;
    assert_eq!(run(0), (1 + 2 * 8 + 5, bytes, 2 * (1 + 1 + 2)));
    // With text: embedding and norm in one gather, and an own feed-forward network per layer.
    let (dispatches, _, blocks) = run(6);
    assert_eq!((dispatches, blocks), (1 + 1 + 2 * (8 + 3) + 5, 2 * (1 + 1 + 2)));
}

#[test]
fn operands_that_moved_and_new_shapes_are_noticed() {
    let Some(device) = counting() else { return };
    let block = Block::new(&device, &open_flamingo(), 4, 64, &[4]);
    let mut outs = [(); 2].map(|()| Tensor::zeros(&device, DType::F32, &[1, 1, 96]).unwrap());
    let shapes = block.args(block.text.spec(), block.cache.spec(), block.seen.spec(), outs[0].spec());
    let (preparing, _) = cost(&device, || {
        block.bridge.prepare(shapes.clone()).unwrap();
    });
    assert!(preparing.pipelines > 0, "{preparing:?}");
    let prepared = block.bridge.prepare(shapes).unwrap();
    let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
    let mut run = |out: usize| {
        let args = block.args(block.text.view(), block.cache.kv(0).unwrap(), block.seen.view(), outs[out].view_mut());
        cost(&device, || submit(&device, |r| prepared.enqueue(r, args, &mut workspace).unwrap())).0
    };
    run(0);
    // Its dispatches (out, second norm, down) get a uniform and a bind group each.
    let moved = run(1);
    assert_eq!((moved.buffers, moved.bind_groups, moved.pipelines), (3, 3, 0));
    expect_steady(&run(0), 7);
    expect_steady(&run(1), 7);
}
