//! Cases of whole bridges.

use serde_json::{Value, json};

use super::call::{Call, Input, Runnable, judge};
use super::ops::{Benchmark, over_media, plain, rule_json, unread, upload};
use super::prefill::PrefillCase;
use super::visited::Visited;
use super::weights::{RandomWeights, Text};
use crate::bridge::{
    GatedBlock, GatedBlockArgs, GatedBlockConfig, HeadArgs, InputMlp, ItcHeads, ItmHead, LanguageProjection, LmHead,
    MediaRule, Objective, PerceiverResampler, Precision, ProjectMediaArgs, QFormer, QFormerArgs, QFormerConfig,
    ResamplerArgs, ResamplerConfig,
};
use crate::ops::{Keys, Source};
use crate::verify::cases::AttentionCase;
use crate::verify::compare::Outcome;
use crate::{DType, Device, HostTensor, Result, Spec};

/// What follows a Q-Former.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Head {
    /// The projection to this width.
    Language(usize),
    /// Normalised embeddings of this width.
    Itc(usize),
    /// Two logits, averaged over rows.
    Itm,
    /// Logits over this vocabulary.
    Lm(usize),
}

impl Head {
    /// Width of the result.
    fn columns(self) -> usize {
        match self {
            Head::Language(n) | Head::Itc(n) | Head::Lm(n) => n,
            Head::Itm => 2,
        }
    }
}

/// Shapes of a bridge.
#[derive(Debug, Clone)]
pub(super) enum BridgeCase {
    Resampler {
        config: ResamplerConfig,
        batch: usize,
        tokens: usize,
    },
    /// Over a filled cache; the text stream is read from one tensor and written to another, so that
    /// runs repeat.
    GatedBlock {
        config: GatedBlockConfig,
        batch: usize,
        rows: usize,
        media: usize,
        per_media: usize,
        tiles: usize,
    },
    ProjectMedia {
        config: GatedBlockConfig,
        media: usize,
        per_media: usize,
    },
    /// Both, and φ before them.
    Prefill(PrefillCase),
    QFormer {
        config: QFormerConfig,
        objective: Objective,
        batch: usize,
        text: usize,
        tokens: usize,
    },
    Head {
        head: Head,
        batch: usize,
        rows: usize,
        width: usize,
    },
}

/// Inputs are rounded to the case's dtype before any device sees them.
struct Inputs<'d> {
    device: &'d Device,
    random: RandomWeights,
    dtype: DType,
    precision: Precision,
}

impl Inputs<'_> {
    fn real(&mut self, shape: &[usize]) -> Result<Input> {
        let host = self.random.rounded(0.0, 1.0, shape, self.dtype)?;
        Input::new(self.device, &host, self.precision.activations)
    }

    fn out(&self, shape: &[usize]) -> Result<Spec> {
        Spec::contiguous(self.precision.activations, shape)
    }
}

fn block_json(config: &GatedBlockConfig) -> Value {
    fields!(config; width, media_width, heads, kv_heads, head_dim, ffn_hidden)
}

impl BridgeCase {
    pub fn json(&self) -> Value {
        match self {
            BridgeCase::Resampler { config, batch, tokens } => {
                let layers = fields!(config; width, latents, layers, heads, kv_heads, head_dim, ffn_hidden);
                json!({ "batch": batch, "tokens": tokens, "config": layers })
            }
            BridgeCase::GatedBlock { config, batch, rows, media, per_media, .. } => json!({
                "batch": batch, "rows": rows, "media": media, "keys_per_media": per_media,
                "visibility": rule_json(&self.attention()), "config": block_json(config),
            }),
            BridgeCase::ProjectMedia { config, media, per_media } => {
                json!({ "media": media, "keys_per_media": per_media, "config": block_json(config) })
            }
            BridgeCase::Prefill(PrefillCase { config, rows, media, per_media }) => json!({
                "batch": 1, "rows": rows, "media": media, "keys_per_media": per_media,
                "visibility": rule_json(&self.attention()), "config": block_json(config),
            }),
            BridgeCase::QFormer { config, batch, text, tokens, .. } => {
                let layers = fields!(config; width, heads, layers, ffn_hidden, encoder_width, cross_every, queries);
                json!({ "batch": batch, "text": text, "tokens": tokens, "config": layers })
            }
            BridgeCase::Head { head, batch, rows, width } => {
                json!({ "batch": batch, "rows": rows, "width": width, "n": head.columns() })
            }
        }
    }

    pub fn build(&self, device: &Device, dtype: DType, precision: Precision) -> Result<Box<dyn Runnable>> {
        let mut random = RandomWeights::new(3).with_matrices(dtype);
        match self {
            BridgeCase::Resampler { config, batch, tokens } => {
                let bridge = PerceiverResampler::new(device, config, &random.resampler(config)?, precision)?;
                let mut inputs = Inputs { device, random, dtype, precision };
                let args = ResamplerArgs {
                    features: inputs.real(&[*batch, 1, *tokens, config.feature_width()])?,
                    keys: Keys::All,
                    offsets: None,
                    out: inputs.out(&[*batch, 1, config.latents, config.output_width()])?,
                };
                Ok(Box::new(Call::bridge(device, args, |shapes| bridge.prepare(1, shapes))?))
            }
            BridgeCase::GatedBlock { config, batch, rows, media, per_media, .. } => {
                let attention = self.attention();
                let bridge = GatedBlock::new(device, config, &random.gated_block(config)?, precision)?;
                let mut inputs = Inputs { device, random, dtype, precision };
                let text = [*batch, *rows, config.width];
                let args = GatedBlockArgs {
                    x: Source::From(inputs.real(&text)?),
                    x_offsets: None,
                    kv: inputs.real(&[*batch, media * per_media, config.kv_width()])?,
                    keys: Keys::All,
                    slots: None,
                    kv_offsets: None,
                    visibility: upload(&attention, device)?,
                    out: inputs.out(&text)?,
                };
                let unread = unread(&attention)? * config.kv_width() * precision.activations.size();
                Ok(Box::new(Call::bridge(device, args, |shapes| bridge.prepare(shapes))?.leaving(unread)))
            }
            BridgeCase::ProjectMedia { config, media, per_media } => {
                let bridge = GatedBlock::new(device, config, &random.gated_block(config)?, precision)?;
                let mut inputs = Inputs { device, random, dtype, precision };
                let args = ProjectMediaArgs {
                    media: inputs.real(&[*media, *per_media, config.media_width])?,
                    kv: inputs.out(&[*media, *per_media, config.kv_width()])?,
                };
                Ok(Box::new(Call::bridge(device, args, |shapes| bridge.prepare_media(shapes))?))
            }
            BridgeCase::Prefill(case) => case.build(&self.attention(), device, dtype, precision),
            BridgeCase::QFormer { config, objective, batch, text, tokens } => {
                // The vocabulary is small: which rows are gathered makes no difference to the time.
                let vocabulary = Text { vocabulary: 1000, positions: 512 };
                let weights = random.qformer(config, (*text > 0).then_some(vocabulary))?;
                let bridge = QFormer::new(device, config, &weights, precision)?;
                let mut inputs = Inputs { device, random, dtype, precision };
                let features = inputs.real(&[*batch, *tokens, config.encoder_width])?;
                let hidden = inputs.out(&[*batch, config.queries + text, config.width])?;
                let mut args = QFormerArgs::image(features, hidden);
                if *text > 0 {
                    let ids: Vec<i32> = (0..batch * text).map(|i| (i * 37 % 1000) as i32).collect();
                    args.text = Some(Input::new(device, &HostTensor::from_slice(&ids, &[*batch, *text])?, DType::I32)?);
                    let lengths: Vec<u32> = (0..*batch).map(|b| (text - b * text / (2 * batch)) as u32).collect();
                    let lengths = HostTensor::from_slice(&lengths, &[*batch])?;
                    args.text_keys = Keys::Lengths(Input::new(device, &lengths, DType::U32)?);
                }
                Ok(Box::new(Call::bridge(device, args, |shapes| bridge.prepare(*objective, 0, shapes))?))
            }
            BridgeCase::Head { head, batch, rows, width } => {
                let n = head.columns();
                let out_rows = if *head == Head::Itm { 1 } else { *rows };
                let weights = random.biased(n, *width)?;
                let lm = if let Head::Lm(n) = head { Some(random.lm_head(*width, *n)?) } else { None };
                let mut inputs = Inputs { device, random, dtype, precision };
                let args = HeadArgs {
                    hidden: inputs.real(&[*batch, *rows, *width])?,
                    out: inputs.out(&[*batch, out_rows, n])?,
                };
                Ok(Box::new(Call::bridge(device, args, |shapes| match (head, &lm) {
                    (Head::Language(_), _) => LanguageProjection::new(device, &weights, precision)?.prepare(shapes),
                    (Head::Itc(_), _) => ItcHeads::new(device, &weights, &weights, precision)?.prepare_image(shapes),
                    (Head::Lm(_), Some(lm)) => LmHead::new(device, lm, 1e-12, precision)?.prepare(shapes),
                    _ => ItmHead::new(device, &weights, precision)?.prepare(shapes),
                })?))
            }
        }
    }

    /// The attention over media of a gated block; one without keys elsewhere.
    fn attention(&self) -> AttentionCase {
        match self {
            BridgeCase::GatedBlock { config, batch, rows, media, per_media, tiles } => {
                over_media(config.rule == MediaRule::Bits, *batch, *rows, *media, *per_media, *tiles)
            }
            BridgeCase::Prefill(PrefillCase { config, rows, media, per_media }) => {
                over_media(config.rule == MediaRule::Bits, 1, *rows, *media, *per_media, 1)
            }
            _ => plain(),
        }
    }

    /// Blocks of keys that this attention visits.
    pub fn visited(&self) -> Option<Visited> {
        Some(self.attention()).filter(|attention| attention.k > 0).and_then(|attention| attention.visited())
    }

    /// The same structure, small enough for the reference: narrower, shorter, fewer layers.
    pub fn reduced(&self) -> Self {
        let heads = |heads: usize, kv_heads: usize| (heads.min(4), (kv_heads * heads.min(4) / heads).max(1));
        let block = |c: &GatedBlockConfig| {
            let (heads, kv_heads) = heads(c.heads, c.kv_heads);
            GatedBlockConfig { width: 72, media_width: 56, heads, kv_heads, head_dim: 16, ffn_hidden: 96, ..c.clone() }
        };
        match self {
            BridgeCase::Resampler { config: c, batch, tokens } => {
                let (heads, kv_heads) = heads(c.heads, c.kv_heads);
                let config = ResamplerConfig {
                    width: 72,
                    latents: 8,
                    layers: c.layers.min(2),
                    heads,
                    kv_heads,
                    head_dim: 16,
                    ffn_hidden: 96,
                    input_mlp: c.input_mlp.map(|_| InputMlp { features: 40, hidden: 88 }),
                    projection: c.projection.map(|_| 56),
                    ..c.clone()
                };
                BridgeCase::Resampler { config, batch: (*batch).min(2), tokens: (*tokens).min(70) }
            }
            BridgeCase::GatedBlock { config, batch, rows, media, tiles, .. } => BridgeCase::GatedBlock {
                config: block(config),
                batch: (*batch).clamp(4, 8),
                rows: (*rows).min(20),
                media: (*media).min(3),
                per_media: 5 * tiles,
                tiles: *tiles,
            },
            BridgeCase::ProjectMedia { config, .. } => {
                BridgeCase::ProjectMedia { config: block(config), media: 2, per_media: 9 }
            }
            BridgeCase::Prefill(case) => BridgeCase::Prefill(case.reduced(block(&case.config))),
            BridgeCase::QFormer { config, objective, batch, text, tokens } => BridgeCase::QFormer {
                config: QFormerConfig {
                    width: 64,
                    heads: 4,
                    layers: 3,
                    ffn_hidden: 96,
                    encoder_width: 72,
                    queries: 8,
                    ..config.clone()
                },
                objective: *objective,
                batch: (*batch).min(2),
                text: (*text).min(6),
                tokens: (*tokens).min(30),
            },
            BridgeCase::Head { head, .. } => {
                let head = match head {
                    Head::Language(_) => Head::Language(80),
                    Head::Itc(_) => Head::Itc(40),
                    Head::Lm(_) => Head::Lm(120),
                    Head::Itm => Head::Itm,
                };
                BridgeCase::Head { head, batch: 160, rows: 5, width: 64 }
            }
        }
    }

    /// Compares the reduced form with the reference.
    pub fn check(&self, device: &Device, dtype: DType) -> Result<Vec<Outcome>> {
        let small = self.reduced();
        let run = |device: &Device, precision: Precision| -> Result<Vec<HostTensor<'static>>> {
            let mut call = small.build(device, dtype, precision)?;
            call.run()?;
            call.outputs()
        };
        let actual = run(device, Precision::uniform(dtype))?;
        let truth = || run(&Device::reference(), Precision::truth(dtype));
        judge(truth, &actual, |p| run(&Device::yardstick(p), Precision::uniform(dtype)))
    }
}
