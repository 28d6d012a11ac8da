//! The Q-Former: post-norm BERT layers over queries (and text) that cross-attend to an image.
//!
//! ```text
//! h = norm([queries ; words[ids] + positions])
//! per layer i:
//!   h = norm(h + W_o attention(W_q h, W_kv h))                  rows and keys: queries, text; ITC, ITM and ITG masks
//!   if i % cross_every = 0:  h_q = norm(h_q + W_o attention(W_q h_q, W_kv features))        query rows only
//!   h_q = norm(h_q + ffn_query(h_q)),  h_t = norm(h_t + ffn_text(h_t))
//! ```
//!
//! The mask of each objective is a rule over two K/V segments, queries and text, never a matrix.
//! With `present`, a call leaves the keys and values of its rows behind; with `past`, it attends to
//! those of earlier calls: the cached form of ITG. Sources: LAVIS `Qformer.py` and
//! `blip2_qformer.py`; transformers `Blip2QFormerModel`, `InstructBlipQFormerModel` (spec 5, 6).

use std::sync::Arc;

use super::parts::{DensePart, Epilogue, FfnDims, FfnPart, Loader, NormPart, columns, heads};
use super::program::{Builder, PreparedBridge, Register, refuse};
use super::qformer_args::{Objective, QFormerArgs, QFormerCall};
use super::{FfnWeights, NormConfig, NormWeights, Precision, QFormerConfig, QFormerWeights, SelfAttentionWeights};
use crate::device::Device;
use crate::device::Tensor;
use crate::ops::{Attention, AttentionArgs, EmptyRows, Keys, Operands, Segment, Source, Visibility};
use crate::tensor::{HostTensor, Spec};
use crate::{DType, Error, Result};

const NAME: &str = QFormerCall::NAME;

struct AttentionPart {
    q: DensePart,
    kv: DensePart,
    out: DensePart,
    norm: NormPart,
}

impl AttentionPart {
    fn load(load: &Loader<'_>, c: &QFormerConfig, w: &SelfAttentionWeights<'_>, kv_input: usize) -> Result<Self> {
        Ok(AttentionPart {
            q: load.dense("attention.q", &w.q, c.width, c.width)?,
            kv: load.dense("attention.kv", &w.kv, c.width.saturating_mul(2), kv_input)?,
            out: load.dense("attention.out", &w.out, c.width, c.width)?,
            norm: load.norm("attention.norm", NormConfig::layer(c.norm_eps), &w.norm, c.width)?,
        })
    }
}

struct FfnWithNorm {
    ffn: FfnPart,
    norm: NormPart,
}

impl FfnWithNorm {
    fn load(load: &Loader<'_>, c: &QFormerConfig, w: &(FfnWeights<'_>, NormWeights<'_>)) -> Result<Self> {
        Ok(FfnWithNorm {
            ffn: load.ffn("ffn", c.activation, &w.0, FfnDims::square(c.width, c.ffn_hidden))?,
            norm: load.norm("ffn.norm", NormConfig::layer(c.norm_eps), &w.1, c.width)?,
        })
    }

    fn push(&self, b: &mut Builder, label: &str, rows: Register) -> Result<()> {
        let residual = Epilogue { residual: Some(Source::InPlace), ..Epilogue::default() };
        self.ffn.push(b, label, rows, residual, rows)?;
        self.norm.push(b, &format!("{label}.norm"), Source::InPlace, None, rows)
    }
}

struct Layer {
    attention: AttentionPart,
    cross_attention: Option<AttentionPart>,
    query_ffn: Option<FfnWithNorm>,
    text_ffn: Option<FfnWithNorm>,
}

struct TextEmbedding {
    words: Arc<Tensor>,
    positions: Arc<Tensor>,
}

/// A Q-Former with its weights on a device. `Send + Sync`.
///
/// ```
/// # #[cfg(feature = "verify")] {
/// use xattn::bridge::{Objective, Precision, QFormer, QFormerArgs, QFormerCall, QFormerConfig};
/// use xattn::ops::Keys;
/// use xattn::bench::RandomWeights;
/// use xattn::{DType, Device, Shapes, View, ViewMut};
///
/// // 4 queries of width 32 in 2 heads over features of width 24, two layers, no text.
/// let (device, mut config) = (Device::cpu(), QFormerConfig::new(32, 2, 24));
/// (config.layers, config.queries) = (2, 4);
/// let mut random = RandomWeights::new(1);
/// let weights = random.qformer(&config, None)?;
/// let qformer = QFormer::new(&device, &config, &weights, Precision::uniform(DType::F32))?;
///
/// // Two images, of which the first has 9 features and the second one 5: what lies behind these has no effect.
/// let mut features = random.tensor(0.0, 1.0, &[2, 9, 24])?.to_vec::<f32>()?;
/// features[(9 + 5) * 24..].fill(f32::NAN);
/// let (lengths, mut hidden) = ([9u32, 5], vec![0f32; 2 * 4 * 32]);
/// let mut args = QFormerArgs::image(View::new(&features, &[2, 9, 24])?, ViewMut::new(&mut hidden, &[2, 4, 32])?);
/// args.feature_keys = Keys::Lengths(View::new(&lengths, &[2])?);
/// qformer.prepare(Objective::Bidirectional, 0, QFormerCall::shapes(&args)?)?.run(args)?;
/// assert!(hidden.iter().all(|x| x.is_finite()) && hidden.iter().any(|x| x.abs() > 0.5));
/// # }
/// # Ok::<(), xattn::Error>(())
/// ```
pub struct QFormer {
    device: Device,
    config: QFormerConfig,
    precision: Precision,
    query_tokens: Option<Arc<Tensor>>,
    embedding_norm: NormPart,
    text_embedding: Option<TextEmbedding>,
    layers: Vec<Layer>,
}

impl QFormer {
    /// Packs weights for a device.
    ///
    /// # Errors
    /// Weights that do not have the config's shapes, or memory that cannot be had.
    pub fn new(
        device: &Device,
        config: &QFormerConfig,
        weights: &QFormerWeights<'_>,
        precision: Precision,
    ) -> Result<Self> {
        let (c, w) = (config, weights);
        c.check()?;
        let load = Loader { device, precision, bridge: NAME };
        if w.layers.len() != c.layers {
            return refuse(NAME, "layers", c.layers, w.layers.len());
        }
        let mut layers = Vec::with_capacity(c.layers);
        for (i, l) in w.layers.iter().enumerate() {
            if l.cross_attention.is_some() != (i % c.cross_every == 0) {
                let expected = format!("weights in every layer divisible by {}, and only there", c.cross_every);
                return refuse(NAME, "cross_attention", expected, format!("otherwise in layer {i}"));
            }
            layers.push(Layer {
                attention: AttentionPart::load(&load, c, &l.attention, c.width)?,
                cross_attention: l
                    .cross_attention
                    .as_ref()
                    .map(|w| AttentionPart::load(&load, c, w, c.encoder_width))
                    .transpose()?,
                query_ffn: l.query_ffn.as_ref().map(|w| FfnWithNorm::load(&load, c, w)).transpose()?,
                text_ffn: l.text_ffn.as_ref().map(|w| FfnWithNorm::load(&load, c, w)).transpose()?,
            });
        }
        let table = |name: &'static str, t: &HostTensor<'_>| -> Result<Arc<Tensor>> {
            if t.shape().len() != 2 || t.shape()[1] != c.width {
                return refuse(NAME, name, format!("shape [rows, {}]", c.width), format!("{:?}", t.shape()));
            }
            Ok(Arc::new(Tensor::upload(device, t, precision.weights)?))
        };
        let query_tokens = match &w.query_tokens {
            None => None,
            Some(t) => {
                let shape = [c.queries, c.width];
                let flat = t.clone().reshape(&shape).map_err(|_| {
                    Error::argument(NAME, "query_tokens", format!("{shape:?}"), format!("{:?}", t.shape()))
                })?;
                Some(load.vector(&flat)?)
            }
        };
        Ok(QFormer {
            device: device.clone(),
            query_tokens,
            embedding_norm: load.norm("embedding_norm", NormConfig::layer(c.norm_eps), &w.embedding_norm, c.width)?,
            text_embedding: match &w.text_embedding {
                None => None,
                Some(t) => Some(TextEmbedding {
                    words: table("words", &t.words)?,
                    positions: table("positions", &t.positions)?,
                }),
            },
            layers,
            config: c.clone(),
            precision,
        })
    }

    /// The config it was built with.
    pub fn config(&self) -> &QFormerConfig {
        &self.config
    }

    /// The device its weights are on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Prepares calls of one shape.
    ///
    /// `position` is the position of the first text token (0 but when text follows cached text).
    ///
    /// # Errors
    /// Shapes that do not fit the config or each other; text where the weights have none; a
    /// device's limits.
    pub fn prepare(
        &self,
        objective: Objective,
        position: usize,
        shapes: QFormerArgs<Spec, Spec>,
    ) -> Result<PreparedBridge<QFormerCall>> {
        let sizes = self.sizes(&shapes)?;
        let mut b = Builder::new(&self.device);
        let args = b.operands::<QFormerCall>(&shapes)?;
        let query_rows = args.hidden.narrow(1, 0, sizes.queries)?;
        let text_rows = args.hidden.narrow(1, sizes.queries, sizes.text)?;
        let visibility = self.visibility(&mut b, objective, &sizes)?;
        if sizes.queries > 0 {
            let queries = match (&args.queries, &self.query_tokens) {
                (Some(given), _) => *given,
                (None, Some(learned)) => b.constant(learned).repeat(0, sizes.batch)?,
                (None, None) => return refuse(NAME, "queries", "an operand, since there are no learned ones", "none"),
            };
            self.embedding_norm.push(&mut b, "query_norm", Source::From(queries), None, query_rows)?;
        }
        if let Some(ids) = args.text {
            self.embed_text(&mut b, ids, position, text_rows)?;
        }
        b.tap("embeddings", args.hidden);
        for (i, layer) in self.layers.iter().enumerate() {
            self.self_attention(&mut b, i, &layer.attention, &visibility, &sizes, &args)?;
            b.tap(format!("layer.{i}.self_attention"), args.hidden);
            if sizes.queries > 0 {
                if let (Some(cross), Some(features)) = (&layer.cross_attention, args.features) {
                    self.cross_attention(&mut b, i, cross, query_rows, features, &args.feature_keys)?;
                    b.tap(format!("layer.{i}.cross_attention"), query_rows);
                }
                let Some(ffn) = &layer.query_ffn else {
                    return refuse(NAME, "query_ffn", format!("weights in layer {i}"), "none");
                };
                ffn.push(&mut b, &format!("{i}.query_ffn"), query_rows)?;
            }
            if sizes.text > 0 {
                let Some(ffn) = &layer.text_ffn else {
                    return refuse(NAME, "text", "none, since there is no text feed-forward network", "some");
                };
                ffn.push(&mut b, &format!("{i}.text_ffn"), text_rows)?;
            }
            b.tap(format!("layer.{i}"), args.hidden);
        }
        PreparedBridge::new(b, shapes)
    }

    fn sizes(&self, a: &QFormerArgs<Spec, Spec>) -> Result<Sizes> {
        let c = &self.config;
        if a.hidden.rank() != 3 || a.hidden.dim(2) != c.width {
            return refuse(NAME, "hidden", format!("shape [batch, rows, {}]", c.width), a.hidden);
        }
        let [batch, rows] = [a.hidden.dim(0), a.hidden.dim(1)];
        let text = match &a.text {
            None => 0,
            Some(ids) if ids.rank() == 2 && ids.dim(0) == batch && ids.dtype() == DType::I32 => ids.dim(1),
            Some(ids) => return refuse(NAME, "text", format!("i32[{batch}, text rows]"), ids),
        };
        let Some(queries) = rows.checked_sub(text) else {
            return refuse(NAME, "hidden", format!("at least {text} rows"), a.hidden);
        };
        if queries != 0 && queries != c.queries {
            return refuse(NAME, "hidden", format!("{text} or {} rows", text + c.queries), a.hidden);
        }
        if let Some(given) = &a.queries {
            let shape = [batch, c.queries, c.width];
            if given.shape() != shape || queries == 0 {
                return refuse(NAME, "queries", format!("shape {shape:?} and rows for them in hidden"), given);
            }
        }
        match (&a.features, queries) {
            (Some(f), 1..) if f.rank() == 3 && f.dim(0) == batch && f.dim(2) == c.encoder_width => {}
            (None, 0) => {}
            (Some(f), _) => {
                let expected = format!("shape [{batch}, tokens, {}] beside queries", c.encoder_width);
                return refuse(NAME, "features", expected, f);
            }
            (None, _) => return refuse(NAME, "features", "image features for the queries", "none"),
        }
        let past = match a.past.as_slice() {
            [] => 0,
            past => {
                if queries != 0 {
                    return refuse(
                        NAME,
                        "past",
                        "text rows only, since past holds the queries",
                        format!("{queries} queries"),
                    );
                }
                let rows = past[0].dim(1);
                expect_layers("past", past, c.layers, [batch, rows, 2 * c.width])?;
                rows
            }
        };
        if !a.present.is_empty() {
            expect_layers("present", &a.present, c.layers, [batch, rows, 2 * c.width])?;
        }
        Ok(Sizes { batch, queries, text, past })
    }

    fn embed_text(&self, b: &mut Builder, ids: Register, position: usize, out: Register) -> Result<()> {
        let Some(embedding) = &self.text_embedding else {
            return refuse(NAME, "text", "none, since there are no word embeddings", "some");
        };
        let rows = out.spec().dim(1);
        let positions = b.constant(&embedding.positions);
        let available = positions.spec().dim(0);
        if position.checked_add(rows).is_none_or(|end| end > available) {
            return refuse(
                NAME,
                "text",
                format!("positions within 0..{available}"),
                format!("{position}..{position}+{rows}"),
            );
        }
        let positions = positions.narrow(0, position, rows)?.repeat(0, out.spec().dim(0))?;
        let words = b.constant(&embedding.words).repeat(0, 1)?;
        self.embedding_norm.push_gather(b, "text_norm", Source::From(words), Some(ids), Some(positions), out)
    }

    /// Visibility in every self-attention: row i of this call stands behind the cached rows.
    fn visibility(&self, b: &mut Builder, objective: Objective, sizes: &Sizes) -> Result<Visibility<Register>> {
        let cached = sizes.past > 0;
        let prefix = if cached { self.config.queries.min(sizes.past) } else { sizes.queries } as u32;
        Ok(match objective {
            Objective::Bidirectional => Visibility::All,
            Objective::TextGeneration if cached => {
                let past = HostTensor::from_slice(&[sizes.past as u32], &[1])?;
                let past = b.constant(&Arc::new(Tensor::upload(&self.device, &past, DType::U32)?));
                Visibility::PrefixCausal { prefix, offset: Some(past.expand(0, sizes.batch)?) }
            }
            Objective::TextGeneration => Visibility::PrefixCausal { prefix, offset: None },
        })
    }

    fn self_attention(
        &self,
        b: &mut Builder,
        i: usize,
        part: &AttentionPart,
        visibility: &Visibility<Register>,
        sizes: &Sizes,
        args: &QFormerArgs<Register, Register>,
    ) -> Result<()> {
        let c = &self.config;
        let dtype = self.precision.activations;
        let label = |part: &str| format!("{i}.self_attention.{part}");
        let hidden = args.hidden;
        let rows = sizes.queries + sizes.text;
        let q = b.scratch(dtype, &[sizes.batch, rows, c.width])?;
        part.q.push(b, &label("q"), hidden, Epilogue::default(), q)?;
        let kv = match args.present.get(i) {
            Some(present) => *present,
            None => b.scratch(dtype, &[sizes.batch, rows, 2 * c.width])?,
        };
        part.kv.push(b, &label("kv"), hidden, Epilogue::default(), kv)?;
        let queries = (self.segment(kv.narrow(1, 0, sizes.queries)?)?, &args.query_keys);
        let text = (self.segment(kv.narrow(1, sizes.queries, sizes.text)?)?, &args.text_keys);
        let keyed = |(segment, keys): (Segment<Register>, &Keys<Register>)| segment.with_keys(keys.clone());
        let (first, second) = match (args.past.get(i), sizes.queries, sizes.text) {
            (Some(past), _, _) => (keyed((self.segment(*past)?, &args.past_keys)), Some(keyed(text))),
            (None, 0, _) => (keyed(text), None),
            (None, _, 0) => (keyed(queries), None),
            (None, _, _) => (keyed(queries), Some(keyed(text))),
        };
        let context = b.scratch(dtype, &[sizes.batch, rows, c.width])?;
        let attention = AttentionArgs {
            q: heads(q, c.heads, c.head_dim())?,
            q_offsets: None,
            first,
            second,
            visibility: visibility.clone(),
            out: heads(context, c.heads, c.head_dim())?,
            log_sum_exp: None,
            row_visible: None,
        };
        self.attend(b, &label("attention"), attention)?;
        let residual = Epilogue { residual: Some(Source::InPlace), ..Epilogue::default() };
        part.out.push(b, &label("out"), context, residual, hidden)?;
        part.norm.push(b, &label("norm"), Source::InPlace, None, hidden)
    }

    fn cross_attention(
        &self,
        b: &mut Builder,
        i: usize,
        part: &AttentionPart,
        rows: Register,
        features: Register,
        keys: &Keys<Register>,
    ) -> Result<()> {
        let c = &self.config;
        let dtype = self.precision.activations;
        let label = |part: &str| format!("{i}.cross_attention.{part}");
        let q = b.scratch(dtype, rows.spec().shape())?;
        part.q.push(b, &label("q"), rows, Epilogue::default(), q)?;
        let kv = b.scratch(dtype, &[features.spec().dim(0), features.spec().dim(1), 2 * c.width])?;
        part.kv.push(b, &label("kv"), features, Epilogue::default(), kv)?;
        let context = b.scratch(dtype, rows.spec().shape())?;
        let attention = AttentionArgs {
            q: heads(q, c.heads, c.head_dim())?,
            q_offsets: None,
            first: self.segment(kv)?.with_keys(keys.clone()),
            second: None,
            visibility: Visibility::All,
            out: heads(context, c.heads, c.head_dim())?,
            log_sum_exp: None,
            row_visible: None,
        };
        self.attend(b, &label("attention"), attention)?;
        let residual = Epilogue { residual: Some(Source::InPlace), ..Epilogue::default() };
        part.out.push(b, &label("out"), context, residual, rows)?;
        part.norm.push(b, &label("norm"), Source::InPlace, None, rows)
    }

    fn attend(&self, b: &mut Builder, label: &str, args: AttentionArgs<Register, Register>) -> Result<()> {
        let empty_rows = EmptyRows::all(self.config.empty_row);
        b.push(label, &Attention { empty_rows, ..Attention::for_head_dim(self.config.head_dim()) }, args)
    }

    /// `[batch, rows, 2 · width]` as keys and values.
    fn segment(&self, kv: Register) -> Result<Segment<Register>> {
        let c = &self.config;
        Ok(Segment::new(
            heads(columns(kv, 0, c.width)?, c.heads, c.head_dim())?,
            heads(columns(kv, c.width, c.width)?, c.heads, c.head_dim())?,
        ))
    }
}

struct Sizes {
    batch: usize,
    queries: usize,
    text: usize,
    past: usize,
}

fn expect_layers(name: &'static str, given: &[Spec], layers: usize, shape: [usize; 3]) -> Result<()> {
    if given.len() != layers {
        return refuse(NAME, name, format!("{layers} tensors, one per layer"), given.len());
    }
    match given.iter().find(|spec| spec.shape() != shape) {
        None => Ok(()),
        Some(spec) => refuse(NAME, name, format!("shape {shape:?}"), spec),
    }
}
