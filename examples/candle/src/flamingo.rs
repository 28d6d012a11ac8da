//! A small Flamingo-style decoder: an interleaved prompt, prefill in two chunks, cached decode.
//! Every part of the bridge is xattn's, the language model is candle's own ops. `flamingo.py` is
//! the same model in PyTorch around open_flamingo's modules.
//!
//! Sizes are OpenFlamingo-3B's (ViT-L/14 features of 256 x 1024, 64 latents, a language model of
//! width 2048 with 16 heads), cut to two layers of the language model, each behind a gated block.
//! Tokens are the prompt's UTF-8 bytes, `<image>` is 256, `<|endofchunk|>` 257.

use candle_core::{DType, Device, Result, Tensor};

use crate::bridges::{GatedBlock, Resampler};
use crate::operand::fault;
use crate::ops::MediaIndex;
use crate::plain::{join_heads, layer_norm, linear, softmax, split_heads, tensor};
use crate::weights::{self, Weights, values};

/// Width of the features and media tokens.
pub const MEDIA_WIDTH: usize = 1024;
/// Feature tokens of an image.
pub const FEATURES: usize = 256;
/// Media tokens of an image.
pub const LATENTS: usize = 64;
/// Layers of the resampler.
pub const RESAMPLER_LAYERS: usize = 6;
/// Width of the language model.
pub const WIDTH: usize = 2048;
/// Its heads.
pub const HEADS: usize = 16;
/// Its layers.
pub const LAYERS: usize = 2;
/// Heads of the bridge, of width 64.
pub const BRIDGE_HEADS: usize = 8;
/// Bytes and the two special tokens.
pub const VOCABULARY: usize = 258;
/// Stands where an image is.
pub const IMAGE: u32 = 256;
/// Ends the text of an image.
pub const END_OF_CHUNK: u32 = 257;

/// The prompt: three images, of which two come with their text.
pub const PROMPT: &str = "Captions: <image>A cat sleeps on a red sofa.<|endofchunk|><image>Two dogs run along the beach.<|endofchunk|><image>A bowl of";
/// Images of the prompt.
pub const IMAGES: usize = 3;

/// Token ids of a text.
pub fn tokens(text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut rest = text;
    while let Some(byte) = rest.bytes().next() {
        let special = [("<image>", IMAGE), ("<|endofchunk|>", END_OF_CHUNK)];
        match special.into_iter().find_map(|(word, id)| Some((id, rest.strip_prefix(word)?))) {
            Some((id, behind)) => {
                ids.push(id);
                rest = behind;
            }
            None => {
                ids.push(u32::from(byte));
                // The prompt is ASCII: every byte is a character.
                rest = &rest[1..];
            }
        }
    }
    ids
}

/// All weights of the model.
pub fn make_weights() -> xattn::Result<Weights> {
    let inner = BRIDGE_HEADS * 64;
    let mut names = weights::resampler("perceiver.", MEDIA_WIDTH, LATENTS, RESAMPLER_LAYERS, inner);
    names.push(("embedding.weight".into(), vec![VOCABULARY, WIDTH]));
    names.push(("norm.weight".into(), vec![WIDTH]));
    names.push(("head.weight".into(), vec![VOCABULARY, WIDTH]));
    for i in 0..LAYERS {
        names.extend(weights::gated_block(&format!("gated.{i}."), WIDTH, MEDIA_WIDTH, inner));
        for norm in ["norm_1", "norm_2"] {
            names.push((format!("layers.{i}.{norm}.weight"), vec![WIDTH]));
        }
        for (name, n, k) in
            [("qkv", 3 * WIDTH, WIDTH), ("out", WIDTH, WIDTH), ("up", 4 * WIDTH, WIDTH), ("down", WIDTH, 4 * WIDTH)]
        {
            names.push((format!("layers.{i}.{name}.weight"), vec![n, k]));
        }
    }
    weights::make(names)
}

/// A layer of the language model: causal self-attention with ALiBi, then a feed-forward network.
struct Layer {
    norms: [Tensor; 2],
    qkv: Tensor,
    out: Tensor,
    up: Tensor,
    down: Tensor,
    /// K and V of the rows so far.
    cache: Option<(Tensor, Tensor)>,
}

impl Layer {
    fn new(weights: &Weights, i: usize) -> Result<Self> {
        let t = |name: &str| tensor(weights, &format!("layers.{i}.{name}.weight"));
        let norms = [t("norm_1")?, t("norm_2")?];
        Ok(Layer { norms, qkv: t("qkv")?, out: t("out")?, up: t("up")?, down: t("down")?, cache: None })
    }

    fn forward(&mut self, x: &Tensor) -> Result<Tensor> {
        let qkv = linear(&layer_norm(x, &self.norms[0], None)?, &self.qkv)?;
        let part = |n: usize| split_heads(&qkv.narrow(2, n * WIDTH, WIDTH)?, HEADS);
        let (q, mut k, mut v) = (part(0)?, part(1)?, part(2)?);
        if let Some((past_k, past_v)) = &self.cache {
            k = Tensor::cat(&[past_k, &k], 2)?;
            v = Tensor::cat(&[past_v, &v], 2)?;
        }
        let scores = (q / ((WIDTH / HEADS) as f64).sqrt())?.matmul(&k.t()?)?;
        let p = softmax(&scores.broadcast_add(&alibi(x.dim(1)?, k.dim(2)?)?)?)?;
        let x = (linear(&join_heads(&p.matmul(&v)?)?, &self.out)? + x)?;
        self.cache = Some((k, v));
        let hidden = linear(&layer_norm(&x, &self.norms[1], None)?, &self.up)?.gelu_erf()?;
        linear(&hidden, &self.down)? + x
    }
}

/// ALiBi and the causal mask: `[1, heads, rows, keys]`, the last row at the last key.
fn alibi(rows: usize, keys: usize) -> Result<Tensor> {
    let mut bias = Vec::with_capacity(HEADS * rows * keys);
    for head in 0..HEADS {
        let slope = 2f64.powf(-8.0 * (head + 1) as f64 / HEADS as f64) as f32;
        for i in 0..rows {
            let position = keys - rows + i;
            bias.extend(
                (0..keys).map(|j| if j <= position { -slope * (position - j) as f32 } else { f32::NEG_INFINITY }),
            );
        }
    }
    Tensor::from_vec(bias, (1, HEADS, rows, keys), &Device::Cpu)
}

/// The model with its caches.
pub struct Flamingo {
    embedding: Tensor,
    norm: Tensor,
    head: Tensor,
    resampler: Resampler,
    media_index: MediaIndex,
    blocks: Vec<GatedBlock>,
    layers: Vec<Layer>,
    /// Media K and V of each block, projected once.
    media: Vec<Tensor>,
    /// φ of the last token so far: what the next chunk carries in.
    carry: Tensor,
}

impl Flamingo {
    /// Packs the weights.
    pub fn new(device: &xattn::Device, weights: &Weights) -> Result<Self> {
        let f32 = xattn::DType::F32;
        let resampler = Resampler::open_flamingo(device, weights, "perceiver.", BRIDGE_HEADS, f32).map_err(fault)?;
        let block =
            |i| GatedBlock::open_flamingo(device, weights, &format!("gated.{i}."), BRIDGE_HEADS, LATENTS as u32, f32);
        Ok(Flamingo {
            embedding: tensor(weights, "embedding.weight")?,
            norm: tensor(weights, "norm.weight")?,
            head: tensor(weights, "head.weight")?,
            resampler,
            media_index: MediaIndex::new(device, IMAGE as i32),
            blocks: (0..LAYERS).map(block).collect::<xattn::Result<_>>().map_err(fault)?,
            layers: (0..LAYERS).map(|i| Layer::new(weights, i)).collect::<Result<_>>()?,
            media: Vec::new(),
            carry: Tensor::zeros(1, DType::I32, &Device::Cpu)?,
        })
    }

    /// Images `[1, images, tokens, width]` through the resampler, and their K and V for every
    /// block.
    pub fn see(&mut self, features: &Tensor) -> Result<()> {
        let images = features.dim(1)?;
        let media = Tensor::zeros((1, images, LATENTS, MEDIA_WIDTH), DType::F32, &Device::Cpu)?;
        media.inplace_op2(features, &self.resampler)?;
        let media = media.reshape((1, images * LATENTS, MEDIA_WIDTH))?;
        let project = |block: &GatedBlock| {
            let kv = Tensor::zeros((1, images * LATENTS, block.kv_width()), DType::F32, &Device::Cpu)?;
            kv.inplace_op2(&media, &block.media())?;
            Ok(kv)
        };
        self.media = self.blocks.iter().map(project).collect::<Result<_>>()?;
        Ok(())
    }

    /// The next tokens, any number: logits `[tokens, vocabulary]`.
    pub fn read(&mut self, ids: &[u32]) -> Result<Tensor> {
        let rows = ids.len();
        let signed = Tensor::from_vec(ids.iter().map(|&id| id as i32).collect(), (1, rows), &Device::Cpu)?;
        let phi = Tensor::zeros((1, rows), DType::I32, &Device::Cpu)?;
        phi.inplace_op3(&signed, &self.carry, &self.media_index)?;
        self.carry = phi.narrow(1, rows - 1, 1)?.reshape(1)?.copy()?;
        let ids = Tensor::from_slice(ids, rows, &Device::Cpu)?;
        let mut x = self.embedding.index_select(&ids, 0)?.unsqueeze(0)?;
        for ((block, layer), kv) in self.blocks.iter().zip(&mut self.layers).zip(&self.media) {
            x.inplace_op3(kv, &phi, block)?;
            x = layer.forward(&x)?;
        }
        linear(&layer_norm(&x, &self.norm, None)?, &self.head)?.squeeze(0)
    }
}

/// Features of the prompt's images.
pub fn features() -> Result<Tensor> {
    let shape = [1, IMAGES, FEATURES, MEDIA_WIDTH];
    Tensor::from_vec(values("features", &shape), &shape, &Device::Cpu)
}

/// What the model says to the prompt.
pub struct Reply {
    /// Tokens, the most likely one each time.
    pub tokens: Vec<u32>,
    /// Logits behind each chunk of the prompt and each token of the reply.
    pub logits: Vec<Vec<f32>>,
}

/// Reads the prompt in two chunks, then answers with `count` tokens.
pub fn reply(model: &mut Flamingo, split: usize, count: usize) -> Result<Reply> {
    let prompt = tokens(PROMPT);
    let mut reply = Reply { tokens: Vec::new(), logits: Vec::new() };
    let last = |logits: &Tensor| logits.get(logits.dim(0)? - 1)?.to_vec1::<f32>();
    reply.logits.push(last(&model.read(&prompt[..split])?)?);
    reply.logits.push(last(&model.read(&prompt[split..])?)?);
    for _ in 0..count {
        let logits = &reply.logits[reply.logits.len() - 1];
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0) as u32;
        reply.tokens.push(best);
        reply.logits.push(last(&model.read(&[best])?)?);
    }
    Ok(reply)
}
