//! The gated cross-attention block (GATED XATTN-DENSE) and the projection of media to its K and V.
//!
//! ```text
//! k, v = W_kv norm?(media)                                      once per medium: see `MediaCache`
//! u = x + tanh(attention_gate) · W_o attention(W_q norm(x), k, v)
//! z = u + tanh(ffn_gate) · row_mask? · ffn(norm(u))
//! ```
//!
//! At most 8 ops: norm, q, (q norm), attention, out, norm, up, down. Sources: Flamingo 3.1.1 and
//! A.1.2; flamingo-pytorch and open_flamingo `GatedCrossAttentionBlock`; transformers
//! `IdeficsGatedCrossAttentionLayer`, `MllamaCrossAttentionDecoderLayer`; Meta's
//! `llama3/multimodal/model.py` (spec 2.2, 3.2, 4.2, 7.1).

use std::sync::Arc;

use super::parts::{DensePart, Epilogue, FfnDims, FfnPart, Loader, NormPart, columns, heads};
use super::perceiver_resampler::qk_norms;
use super::program::{Builder, PreparedBridge, Register, refuse};
use super::{DenseWeights, FfnWeights, NormConfig, NormWeights, Precision};
use crate::device::Device;
use crate::device::Tensor;
use crate::ops::{
    Activation, Attention, AttentionArgs, EmptyRows, Keys, Media, Operands, Parameters, Segment, Source, Visibility,
    Visit, sealed,
};
use crate::size::Size;
use crate::tensor::{HostTensor, Spec};
use crate::{DType, Error, Result};

const NAME: &str = "gated_block";

/// Which media a text row sees, given φ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MediaRule {
    /// The last medium at or before the row ([`Visibility::SameMedia`]).
    Same,
    /// All media up to it ([`Visibility::PrecedingMedia`]).
    Preceding,
    /// Those that a bitset per row names ([`Visibility::MediaBits`]).
    Bits,
}

/// Sizes and choices of a gated block.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GatedBlockConfig {
    /// Width of the text stream.
    pub width: usize,
    /// Width of the media tokens.
    pub media_width: usize,
    /// Query heads.
    pub heads: usize,
    /// K/V heads.
    pub kv_heads: usize,
    /// Width of a head; `heads · head_dim` need not be `width`.
    pub head_dim: usize,
    /// Hidden width of the feed-forward network.
    pub ffn_hidden: usize,
    /// Its nonlinearity.
    pub activation: Activation,
    /// Norms of the text before attention and before the feed-forward network.
    pub norm: NormConfig,
    /// Norm of the media before K and V, shared by both (the paper; no public code).
    pub media_norm: Option<NormConfig>,
    /// Norms of q and k per head.
    pub qk_norm: Option<NormConfig>,
    /// How φ or bits name what a row sees. [`GatedBlock::prepare`] also takes any other visibility.
    pub rule: MediaRule,
    /// What rows get that see nothing.
    pub empty_rows: EmptyRows,
    /// Whether rows that saw nothing skip the feed-forward branch (Llama-3.2-Vision).
    pub ffn_row_mask: bool,
}

impl GatedBlockConfig {
    /// OpenFlamingo's block of these sizes: as many K/V heads as query heads, a feed-forward
    /// network with GELU four times as wide as the text, the default norm, no norm of media, q and
    /// k, the last medium alone, default empty rows and no row mask. The presets, such as
    /// [`GatedBlockConfig::open_flamingo_3b`], are whole published configs.
    pub fn new(width: usize, media_width: usize, heads: usize, head_dim: usize) -> Self {
        GatedBlockConfig {
            width,
            media_width,
            heads,
            kv_heads: heads,
            head_dim,
            ffn_hidden: width.saturating_mul(4),
            activation: Activation::Gelu,
            norm: NormConfig::default(),
            media_norm: None,
            qk_norm: None,
            rule: MediaRule::Same,
            empty_rows: EmptyRows::default(),
            ffn_row_mask: false,
        }
    }

    /// Width of K plus V of a media token: the last dimension of a media cache.
    pub fn kv_width(&self) -> usize {
        // Saturates for a config that no weights can have: no tensor is that wide.
        self.kv_heads.saturating_mul(self.head_dim).saturating_mul(2)
    }

    /// The config's rule over φ.
    pub fn visibility<R>(&self, media_index: R, keys_per_media: u32, plan: Option<R>) -> Result<Visibility<R>> {
        let media = Media { media_index, keys_per_media, plan };
        match self.rule {
            MediaRule::Same => Ok(Visibility::SameMedia(media)),
            MediaRule::Preceding => Ok(Visibility::PrecedingMedia(media)),
            MediaRule::Bits => refuse(NAME, "rule", "a rule over φ", "bits per row"),
        }
    }
}

/// Weights of a gated block, in host memory.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GatedBlockWeights<'a> {
    /// Norm of the text before attention.
    pub attention_norm: NormWeights<'a>,
    /// Norm of the media.
    pub media_norm: Option<NormWeights<'a>>,
    /// `[heads · head_dim, width]`.
    pub q: DenseWeights<'a>,
    /// K rows, then V rows: `[2 · kv_heads · head_dim, media_width]` in one or two parts.
    pub kv: DenseWeights<'a>,
    /// Norms of q and k, `[head_dim]` each.
    pub qk_norm: Option<(NormWeights<'a>, NormWeights<'a>)>,
    /// `[width, heads · head_dim]`.
    pub out: DenseWeights<'a>,
    /// Raw gate of the attention branch: one number, or one per channel.
    pub attention_gate: HostTensor<'a>,
    /// Norm of the text before the feed-forward network.
    pub ffn_norm: NormWeights<'a>,
    /// The feed-forward network.
    pub ffn: FfnWeights<'a>,
    /// Raw gate of the feed-forward branch.
    pub ffn_gate: HostTensor<'a>,
}

impl<'a> GatedBlockWeights<'a> {
    /// What every block has: no norms of media, q and k. The fields say the shapes.
    pub fn new(
        [attention_norm, ffn_norm]: [NormWeights<'a>; 2],
        [q, kv, out]: [DenseWeights<'a>; 3],
        ffn: FfnWeights<'a>,
        [attention_gate, ffn_gate]: [HostTensor<'a>; 2],
    ) -> Self {
        let (media_norm, qk_norm) = (None, None);
        GatedBlockWeights { attention_norm, media_norm, q, kv, qk_norm, out, attention_gate, ffn_norm, ffn, ffn_gate }
    }
}

/// Operands of a gated block.
#[derive(Debug, Clone, PartialEq)]
pub struct GatedBlockArgs<R, W> {
    /// Text stream `[batch, rows, width]`; ragged: `[1, total, width]`. In place: in `out`.
    pub x: Source<R>,
    /// Ragged text: problem b has rows `offsets[b]..offsets[b+1]`; `u32 [batch + 1]`.
    pub x_offsets: Option<R>,
    /// K and V of the media, `[entries, keys, kv_width]`, from [`GatedBlock::prepare_media`].
    pub kv: R,
    /// Which media tokens exist.
    pub keys: Keys<R>,
    /// Which entry of `kv` a problem reads: `u32 [batch]`.
    pub slots: Option<R>,
    /// Ragged media: problem b has tokens `offsets[b]..offsets[b+1]` of `[1, total, kv_width]`.
    pub kv_offsets: Option<R>,
    /// Who sees what.
    pub visibility: Visibility<R>,
    /// Result, like `x`.
    pub out: W,
}

impl<R, W> GatedBlockArgs<R, W> {
    /// Problem b reads entry b of `kv`, whose media tokens all exist.
    pub fn new(x: Source<R>, kv: R, visibility: Visibility<R>, out: W) -> Self {
        GatedBlockArgs { x, x_offsets: None, kv, keys: Keys::All, slots: None, kv_offsets: None, visibility, out }
    }
}

/// The operands of [`GatedBlock::prepare`].
#[derive(Debug, Clone, Copy)]
pub struct GatedBlockCall;

impl sealed::Sealed for GatedBlockCall {}

impl Operands for GatedBlockCall {
    const NAME: &'static str = NAME;
    type Args<R, W> = GatedBlockArgs<R, W>;

    fn map<R, W, R2, W2>(a: GatedBlockArgs<R, W>, v: &mut impl Visit<R, W, R2, W2>) -> Result<GatedBlockArgs<R2, W2>> {
        Ok(GatedBlockArgs {
            x: a.x.try_map(|r| v.read("x", r))?,
            x_offsets: a.x_offsets.map(|r| v.read("x_offsets", r)).transpose()?,
            kv: v.read("kv", a.kv)?,
            keys: a.keys.try_map(["lengths", "bits"], v)?,
            slots: a.slots.map(|r| v.read("slots", r)).transpose()?,
            kv_offsets: a.kv_offsets.map(|r| v.read("kv_offsets", r)).transpose()?,
            visibility: a.visibility.try_map(v)?,
            out: v.write("out", a.out)?,
        })
    }

    fn as_ref<R, W>(a: &GatedBlockArgs<R, W>) -> GatedBlockArgs<&R, &W> {
        GatedBlockArgs {
            x: a.x.as_ref(),
            x_offsets: a.x_offsets.as_ref(),
            kv: &a.kv,
            keys: a.keys.as_ref(),
            slots: a.slots.as_ref(),
            kv_offsets: a.kv_offsets.as_ref(),
            visibility: a.visibility.as_ref(),
            out: &a.out,
        }
    }

    type Form = GatedBlockArgs<(), ()>;

    fn form(args: GatedBlockArgs<(), ()>) -> Self::Form {
        args
    }

    fn parameters(a: &Self::Form, say: &mut Parameters<'_>) {
        say("x", a.x.name().into());
        a.visibility.parameters(say);
    }
}

/// Operands of the projection of media.
#[derive(Debug, Clone, PartialEq)]
pub struct ProjectMediaArgs<R, W> {
    /// Media tokens `[entries, keys, media_width]`.
    pub media: R,
    /// K and V `[entries, keys, kv_width]`: K heads, then V heads.
    pub kv: W,
}

/// The operands of [`GatedBlock::prepare_media`].
#[derive(Debug, Clone, Copy)]
pub struct ProjectMediaCall;

impl sealed::Sealed for ProjectMediaCall {}

impl Operands for ProjectMediaCall {
    const NAME: &'static str = "gated_block.project_media";
    type Args<R, W> = ProjectMediaArgs<R, W>;

    fn map<R, W, R2, W2>(
        a: ProjectMediaArgs<R, W>,
        v: &mut impl Visit<R, W, R2, W2>,
    ) -> Result<ProjectMediaArgs<R2, W2>> {
        Ok(ProjectMediaArgs { media: v.read("media", a.media)?, kv: v.write("kv", a.kv)? })
    }

    fn as_ref<R, W>(a: &ProjectMediaArgs<R, W>) -> ProjectMediaArgs<&R, &W> {
        ProjectMediaArgs { media: &a.media, kv: &a.kv }
    }

    type Form = ProjectMediaArgs<(), ()>;

    fn form(args: ProjectMediaArgs<(), ()>) -> Self::Form {
        args
    }

    fn parameters(_: &Self::Form, _: &mut Parameters<'_>) {}
}

/// A gated block with its weights on a device. `Send + Sync`.
///
/// Two sequences share a [`MediaCache`](super::MediaCache): a prefill, then a decode step in which
/// one has two new rows and the other one.
///
/// ```
/// # #[cfg(feature = "verify")] {
/// use xattn::bridge::{GatedBlock, GatedBlockArgs, GatedBlockCall, GatedBlockConfig, MediaCache, Precision};
/// use xattn::ops::Source;
/// use xattn::bench::RandomWeights;
/// use xattn::{DType, Device, Shapes, View, ViewMut};
///
/// // Text of width 32, media of width 24, 2 heads of 16. Up to 3 images a sequence, of 4 tokens each.
/// let (device, config) = (Device::cpu(), GatedBlockConfig::new(32, 24, 2, 16));
/// let mut random = RandomWeights::new(1);
/// let block = GatedBlock::new(&device, &config, &random.gated_block(&config)?, Precision::uniform(DType::F32))?;
/// let mut cache = MediaCache::new(&[&block], 2, 3, 4)?;
///
/// // Once per image: sequence 0 has two images, sequence 1 one.
/// for (sequence, images) in [(0, 2), (1, 1)] {
///     let media = random.tensor(0.0, 1.0, &[images, 4, 24])?.to_vec::<f32>()?;
///     cache.fill(&[&block], sequence, 0, &View::new(&media, &[images, 4, 24])?)?;
/// }
///
/// // Prefill: five rows each, and φ of every row.
/// let text = random.tensor(0.0, 1.0, &[2, 5, 32])?.to_vec::<f32>()?;
/// let (phi, mut prefill) = ([0i32, 1, 1, 2, 2, 0, 0, 1, 1, 1], vec![0f32; text.len()]);
/// let visibility = config.visibility(View::new(&phi, &[2, 5])?, 4, None)?;
/// let x = Source::From(View::new(&text, &[2, 5, 32])?);
/// let args = GatedBlockArgs::new(x, cache.kv(0)?, visibility, ViewMut::new(&mut prefill, &[2, 5, 32])?);
/// block.prepare(GatedBlockCall::shapes(&args)?)?.run(args)?;
///
/// // Decode, ragged and in place: the last two rows of sequence 1, then the last row of sequence 0.
/// let (two, one) = (8 * 32..10 * 32, 4 * 32..5 * 32);
/// let mut rows = [&text[two.clone()], &text[one.clone()]].concat();
/// let (phi, offsets, slots) = ([1i32, 1, 2], [0u32, 2, 3], [1u32, 0]);
/// let visibility = config.visibility(View::new(&phi, &[1, 3])?, 4, None)?;
/// let mut args =
///     GatedBlockArgs::new(Source::InPlace, cache.kv(0)?, visibility, ViewMut::new(&mut rows, &[1, 3, 32])?);
/// args.x_offsets = Some(View::new(&offsets, &[3])?);
/// args.slots = Some(View::new(&slots, &[2])?);
/// block.prepare(GatedBlockCall::shapes(&args)?)?.run(args)?;
/// let expected = [&prefill[two], &prefill[one]].concat();
/// assert!(rows.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
/// # }
/// # Ok::<(), xattn::Error>(())
/// ```
pub struct GatedBlock {
    device: Device,
    config: GatedBlockConfig,
    precision: Precision,
    attention_norm: NormPart,
    media_norm: Option<NormPart>,
    q: DensePart,
    kv: DensePart,
    qk_norm: Option<(NormPart, NormPart)>,
    out: DensePart,
    attention_gate: Arc<Tensor>,
    ffn_norm: NormPart,
    ffn: FfnPart,
    ffn_gate: Arc<Tensor>,
}

impl GatedBlock {
    /// Packs weights for a device.
    ///
    /// # Errors
    /// Weights that do not have the config's shapes, or memory that cannot be had.
    pub fn new(
        device: &Device,
        config: &GatedBlockConfig,
        weights: &GatedBlockWeights<'_>,
        precision: Precision,
    ) -> Result<Self> {
        let (c, w) = (config, weights);
        let load = Loader { device, precision, bridge: NAME };
        let inner =
            Size::product(&[c.heads, c.head_dim]).or_refuse(NAME, "heads", format!("{} x {}", c.heads, c.head_dim))?;
        let gate = |name: &'static str, gate: &HostTensor<'_>| -> Result<Arc<Tensor>> {
            let n = gate.elements();
            if n != 1 && n != c.width {
                return refuse(NAME, name, format!("1 or {} numbers", c.width), format!("{:?}", gate.shape()));
            }
            load.vector(&gate.clone().reshape(&[n])?)
        };
        Ok(GatedBlock {
            device: device.clone(),
            attention_norm: load.norm("attention_norm", c.norm, &w.attention_norm, c.width)?,
            media_norm: match (c.media_norm, &w.media_norm) {
                (Some(config), Some(w)) => Some(load.norm("media_norm", config, w, c.media_width)?),
                (None, None) => None,
                (Some(_), None) => return refuse(NAME, "media_norm", "weights", "none"),
                (None, Some(_)) => return refuse(NAME, "media_norm", "no weights", "some"),
            },
            q: load.dense("q", &w.q, inner, c.width)?,
            kv: load.dense("kv", &w.kv, c.kv_width(), c.media_width)?,
            qk_norm: qk_norms(&load, c.qk_norm, w.qk_norm.as_ref(), c.head_dim)?,
            out: load.dense("out", &w.out, c.width, inner)?,
            attention_gate: gate("attention_gate", &w.attention_gate)?,
            ffn_norm: load.norm("ffn_norm", c.norm, &w.ffn_norm, c.width)?,
            ffn: load.ffn("ffn", c.activation, &w.ffn, FfnDims::square(c.width, c.ffn_hidden))?,
            ffn_gate: gate("ffn_gate", &w.ffn_gate)?,
            config: c.clone(),
            precision,
        })
    }

    /// The config it was built with.
    pub fn config(&self) -> &GatedBlockConfig {
        &self.config
    }

    /// The device its weights are on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Element types.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Prepares the projection of media to K and V: once per medium, whatever the text does.
    ///
    /// # Errors
    /// Shapes that do not fit the config, a device's limits.
    pub fn prepare_media(&self, shapes: ProjectMediaArgs<Spec, Spec>) -> Result<PreparedBridge<ProjectMediaCall>> {
        let c = &self.config;
        let (media, kv) = (shapes.media, shapes.kv);
        if media.rank() != 3 || media.dim(2) != c.media_width {
            return refuse(ProjectMediaCall::NAME, "media", format!("shape [entries, keys, {}]", c.media_width), media);
        }
        let expected = [media.dim(0), media.dim(1), c.kv_width()];
        if kv.shape() != expected {
            return refuse(ProjectMediaCall::NAME, "kv", format!("shape {expected:?}"), kv);
        }
        let mut b = Builder::new(&self.device);
        let args = b.operands::<ProjectMediaCall>(&shapes)?;
        let mut x = args.media;
        if let Some(norm) = &self.media_norm {
            let normed = b.scratch(self.precision.activations, media.shape())?;
            norm.push(&mut b, "media_norm", Source::From(x), None, normed)?;
            x = normed;
        }
        self.kv.push(&mut b, "kv", x, Epilogue::default(), args.kv)?;
        if let Some((_, k_norm)) = &self.qk_norm {
            let k = heads(columns(args.kv, 0, c.kv_width() / 2)?, c.kv_heads, c.head_dim)?;
            k_norm.push(&mut b, "k_norm", Source::InPlace, None, k)?;
        }
        PreparedBridge::new(b, shapes)
    }

    /// Prepares calls of one shape over projected media.
    ///
    /// # Errors
    /// Shapes that do not fit the config or each other, a device's limits.
    pub fn prepare(&self, shapes: GatedBlockArgs<Spec, Spec>) -> Result<PreparedBridge<GatedBlockCall>> {
        let c = &self.config;
        let dtype = self.precision.activations;
        let out = shapes.out;
        if out.rank() != 3 || out.dim(2) != c.width {
            return refuse(NAME, "out", format!("shape [batch, rows, {}]", c.width), out);
        }
        if let Source::From(x) = &shapes.x
            && x.shape() != out.shape()
        {
            return refuse(NAME, "x", format!("shape {:?} as out", out.shape()), x);
        }
        if shapes.kv.rank() != 3 || shapes.kv.dim(2) != c.kv_width() {
            return refuse(NAME, "kv", format!("shape [entries, keys, {}]", c.kv_width()), shapes.kv);
        }
        let [batch, rows] = [out.dim(0), out.dim(1)];
        let inner = c.heads * c.head_dim;

        let mut b = Builder::new(&self.device);
        let args = b.operands::<GatedBlockCall>(&shapes)?;
        let normed = b.scratch(dtype, out.shape())?;
        self.attention_norm.push(&mut b, "attention_norm", from(args.x, args.out), None, normed)?;
        b.tap("attn_norm", normed);
        let q = b.scratch(dtype, &[batch, rows, inner])?;
        self.q.push(&mut b, "q", normed, Epilogue::default(), q)?;
        b.tap("q_unscaled", q);
        let q = heads(q, c.heads, c.head_dim)?;
        if let Some((q_norm, _)) = &self.qk_norm {
            q_norm.push(&mut b, "q_norm", Source::InPlace, None, q)?;
        }
        let kv_half = |start: usize| heads(columns(args.kv, start, c.kv_width() / 2)?, c.kv_heads, c.head_dim);
        let context = b.scratch(dtype, &[batch, rows, inner])?;
        let seen = if c.ffn_row_mask { Some(b.scratch(DType::U32, &[batch, rows])?) } else { None };
        let attention = AttentionArgs {
            q,
            q_offsets: args.x_offsets,
            first: Segment {
                k: kv_half(0)?,
                v: kv_half(c.kv_width() / 2)?,
                keys: args.keys.clone(),
                offsets: args.kv_offsets,
                slots: args.slots,
            },
            second: None,
            visibility: args.visibility.clone(),
            out: heads(context, c.heads, c.head_dim)?,
            log_sum_exp: None,
            row_visible: seen,
        };
        let op = Attention { empty_rows: c.empty_rows, ..Attention::for_head_dim(c.head_dim) };
        b.push("attention", &op, attention)?;
        if let Some(seen) = seen {
            b.tap("row_visible", seen);
        }
        let gate = b.constant(&self.attention_gate);
        let gated = Epilogue { residual: Some(args.x), gate: Some(gate), ..Epilogue::default() };
        self.out.push(&mut b, "out", context, gated, args.out)?;

        let normed = b.scratch(dtype, out.shape())?;
        self.ffn_norm.push(&mut b, "ffn_norm", Source::From(args.out), None, normed)?;
        let gate = b.constant(&self.ffn_gate);
        let gated =
            Epilogue { residual: Some(Source::InPlace), gate: Some(gate), row_mask: seen, ..Epilogue::default() };
        self.ffn.push(&mut b, "ffn", normed, gated, args.out)?;
        PreparedBridge::new(b, shapes)
    }
}

/// Where an operand that may be in place is read from.
fn from(x: Source<Register>, out: Register) -> Source<Register> {
    match x {
        Source::From(x) => Source::From(x),
        Source::InPlace => Source::From(out),
    }
}

impl GatedBlock {
    /// Refuses blocks that cannot share a media cache.
    pub(super) fn expect_same_media(&self, other: &GatedBlock) -> Result<()> {
        if self.config.media_width == other.config.media_width && self.config.kv_width() == other.config.kv_width() {
            return Ok(());
        }
        Err(Error::argument(
            "media_cache",
            "blocks",
            format!("media of width {} and K/V of width {}", self.config.media_width, self.config.kv_width()),
            format!("{} and {}", other.config.media_width, other.config.kv_width()),
        ))
    }
}
