//! The Perceiver Resampler: learned latents cross-attend to any number of image or video features.
//!
//! ```text
//! x = features + frame embedding + media embedding             [problems, n, width], one problem per medium
//! l = latents                                                   [problems, latents, width]
//! per layer:
//!   fn = norm(x), ln = norm(l)
//!   q = W_q ln;  k, v = W_kv [fn ; ln]                          two segments, never concatenated
//!   l = l + W_o attention(q, k, v)                              optional norms of q and k per head
//!   l = l + ffn(norm(l))
//! out = projection(norm(l))
//! ```
//!
//! Sources: Flamingo A.1.1; flamingo-pytorch and open_flamingo `PerceiverResampler`; transformers
//! `IdeficsPerceiverResampler`, `Idefics2PerceiverResampler`, `Idefics2Connector`; xGen-MM (spec
//! 2.1, 3.1, 4.1, 7.2, 7.5).

use std::sync::Arc;

use super::parts::{DensePart, Epilogue, FfnDims, FfnPart, Loader, NormPart, columns, heads};
use super::program::{Builder, PreparedBridge, Register, refuse};
use super::time_embedding::interpolate;
use super::{NormConfig, NormWeights, Precision, ResamplerConfig, ResamplerLayerWeights, ResamplerWeights};
use crate::device::Device;
use crate::device::Tensor;
use crate::ops::{
    Activation, Attention, AttentionArgs, Keys, Operands, Parameters, Segment, Source, Visibility, Visit, sealed,
};
use crate::size::Size;
use crate::tensor::room;
use crate::tensor::{HostTensor, Spec};
use crate::{Error, Result};

const NAME: &str = "perceiver_resampler";

struct Layer {
    feature_norm: NormPart,
    latent_norm: NormPart,
    q: DensePart,
    kv: DensePart,
    qk_norm: Option<(NormPart, NormPart)>,
    out: DensePart,
    ffn_norm: NormPart,
    ffn: FfnPart,
}

/// Operands of a resampler call.
#[derive(Debug, Clone, PartialEq)]
pub struct ResamplerArgs<R, W> {
    /// Vision features `[batch, media, tokens, feature_width]`, frames in order; or `[1, 1, total,
    /// …]`.
    pub features: R,
    /// Which feature tokens exist, per problem (`batch · media`, or the number of ragged problems).
    pub keys: Keys<R>,
    /// Ragged features: problem p has tokens `offsets[p]..offsets[p+1]`; `u32 [problems + 1]`.
    pub offsets: Option<R>,
    /// `[batch, media, latents, output_width]`; ragged: `[problems, 1, …]`.
    pub out: W,
}

impl<R, W> ResamplerArgs<R, W> {
    /// Every feature token exists.
    pub fn new(features: R, out: W) -> Self {
        ResamplerArgs { features, keys: Keys::All, offsets: None, out }
    }
}

/// The operands of [`PerceiverResampler::prepare`].
#[derive(Debug, Clone, Copy)]
pub struct ResamplerCall;

impl sealed::Sealed for ResamplerCall {}

impl Operands for ResamplerCall {
    const NAME: &'static str = NAME;
    type Args<R, W> = ResamplerArgs<R, W>;

    fn map<R, W, R2, W2>(a: ResamplerArgs<R, W>, v: &mut impl Visit<R, W, R2, W2>) -> Result<ResamplerArgs<R2, W2>> {
        Ok(ResamplerArgs {
            features: v.read("features", a.features)?,
            keys: a.keys.try_map(["lengths", "bits"], v)?,
            offsets: a.offsets.map(|r| v.read("offsets", r)).transpose()?,
            out: v.write("out", a.out)?,
        })
    }

    fn as_ref<R, W>(a: &ResamplerArgs<R, W>) -> ResamplerArgs<&R, &W> {
        ResamplerArgs { features: &a.features, keys: a.keys.as_ref(), offsets: a.offsets.as_ref(), out: &a.out }
    }

    type Form = ResamplerArgs<(), ()>;

    fn form(args: ResamplerArgs<(), ()>) -> Self::Form {
        args
    }

    fn parameters(_: &Self::Form, _: &mut Parameters<'_>) {}
}

/// A Perceiver Resampler with its weights on a device. `Send + Sync`.
///
/// ```
/// # #[cfg(feature = "verify")] {
/// use xattn::bridge::{PerceiverResampler, Precision, ResamplerArgs, ResamplerCall, ResamplerConfig};
/// use xattn::bench::RandomWeights;
/// use xattn::{DType, Device, Shapes, View, ViewMut};
///
/// // 3 latents of width 32, 2 heads of 16.
/// let (device, config) = (Device::cpu(), ResamplerConfig::new(32, 3, 2, 16));
/// let mut random = RandomWeights::new(1);
/// let weights = random.resampler(&config)?;
/// let resampler = PerceiverResampler::new(&device, &config, &weights, Precision::uniform(DType::F32))?;
///
/// // An image of 10 features, and a second one with the same features in reverse. Without embeddings of time the order does not count.
/// let image = random.tensor(0.0, 1.0, &[10, 32])?.to_vec::<f32>()?;
/// let features: Vec<f32> = image.chunks(32).chain(image.chunks(32).rev()).flatten().copied().collect();
/// let mut media = vec![0f32; 2 * 3 * 32];
/// let args = ResamplerArgs::new(View::new(&features, &[1, 2, 10, 32])?, ViewMut::new(&mut media, &[1, 2, 3, 32])?);
/// resampler.prepare(1, ResamplerCall::shapes(&args)?)?.run(args)?;
/// let (first, second) = media.split_at(3 * 32);
/// assert!(first.iter().zip(second).all(|(a, b)| (a - b).abs() < 1e-4));
/// assert!(first.iter().any(|x| x.abs() > 0.5));
/// # }
/// # Ok::<(), xattn::Error>(())
/// ```
pub struct PerceiverResampler {
    device: Device,
    config: ResamplerConfig,
    precision: Precision,
    latents: Arc<Tensor>,
    /// Kept in f64: they are combined and interpolated for each number of frames and media.
    frame_embeddings: Option<Vec<f64>>,
    media_embeddings: Option<Vec<f64>>,
    input_mlp: Option<FfnPart>,
    layers: Vec<Layer>,
    final_norm: Option<NormPart>,
    projection: Option<DensePart>,
}

impl PerceiverResampler {
    /// Packs weights for a device.
    ///
    /// # Errors
    /// Weights that do not have the config's shapes, or memory that cannot be had.
    pub fn new(
        device: &Device,
        config: &ResamplerConfig,
        weights: &ResamplerWeights<'_>,
        precision: Precision,
    ) -> Result<Self> {
        let c = config;
        let load = Loader { device, precision, bridge: NAME };
        if weights.layers.len() != c.layers {
            return refuse(NAME, "layers", c.layers, weights.layers.len());
        }
        let width = |name: &'static str, heads: usize| {
            Size::product(&[heads, c.head_dim]).or_refuse(NAME, name, format!("{heads} x {}", c.head_dim))
        };
        let (inner, kv) = (width("heads", c.heads)?, width("kv_heads", c.kv_heads)?);
        let layer = |w: &ResamplerLayerWeights<'_>| -> Result<Layer> {
            Ok(Layer {
                feature_norm: load.norm("feature_norm", c.norm, &w.feature_norm, c.width)?,
                latent_norm: load.norm("latent_norm", c.norm, &w.latent_norm, c.width)?,
                q: load.dense("q", &w.q, inner, c.width)?,
                kv: load.dense("kv", &w.kv, 2 * kv, c.width)?,
                qk_norm: qk_norms(&load, c.qk_norm, w.qk_norm.as_ref(), c.head_dim)?,
                out: load.dense("out", &w.out, c.width, inner)?,
                ffn_norm: load.norm("ffn_norm", c.norm, &w.ffn_norm, c.width)?,
                ffn: load.ffn("ffn", c.activation, &w.ffn, FfnDims::square(c.width, c.ffn_hidden))?,
            })
        };
        let table = |name: &'static str, t: &Option<HostTensor<'_>>| -> Result<Option<Vec<f64>>> {
            let Some(t) = t else { return Ok(None) };
            if t.shape().last() != Some(&c.width) || t.elements() == 0 {
                return refuse(NAME, name, format!("rows of {}", c.width), format!("{:?}", t.shape()));
            }
            Ok(Some(t.to_f64()?))
        };
        let both = |name: &'static str, config: bool, weights: bool| {
            if config == weights { Ok(()) } else { refuse(NAME, name, given(config), given(weights)) }
        };
        both("final_norm", c.final_norm, weights.final_norm.is_some())?;
        both("input_mlp", c.input_mlp.is_some(), weights.input_mlp.is_some())?;
        if c.layers == 0 && !c.final_norm && c.projection.is_none() {
            return refuse(NAME, "layers", "at least one layer, a final norm or a projection", "none");
        }
        both("projection", c.projection.is_some(), weights.projection.is_some())?;
        let latents = weights.latents.clone().reshape(&[c.latents, c.width]);
        Ok(PerceiverResampler {
            device: device.clone(),
            latents: load.vector(&latents.map_err(|_| {
                Error::argument(
                    NAME,
                    "latents",
                    format!("[{}, {}]", c.latents, c.width),
                    format!("{:?}", weights.latents.shape()),
                )
            })?)?,
            frame_embeddings: table("frame_embeddings", &weights.frame_embeddings)?,
            media_embeddings: table("media_embeddings", &weights.media_embeddings)?,
            input_mlp: match (c.input_mlp, &weights.input_mlp) {
                (Some(m), Some(w)) => {
                    let dims = FfnDims { input: m.features, hidden: m.hidden, output: c.width };
                    Some(load.ffn("input_mlp", Activation::SwiGlu, w, dims)?)
                }
                _ => None,
            },
            layers: weights.layers.iter().map(layer).collect::<Result<_>>()?,
            final_norm: weights.final_norm.as_ref().map(|w| load.norm("final_norm", c.norm, w, c.width)).transpose()?,
            projection: match (c.projection, &weights.projection) {
                (Some(n), Some(w)) => Some(load.dense("projection", w, n, c.width)?),
                _ => None,
            },
            config: config.clone(),
            precision,
        })
    }

    /// The config it was built with.
    pub fn config(&self) -> &ResamplerConfig {
        &self.config
    }

    /// Prepares calls of one shape; each medium consists of `frames` frames.
    ///
    /// # Errors
    /// Shapes that do not fit the config or each other, more frames or media than embeddings, a
    /// device's limits.
    pub fn prepare(&self, frames: usize, shapes: ResamplerArgs<Spec, Spec>) -> Result<PreparedBridge<ResamplerCall>> {
        let c = &self.config;
        let dtype = self.precision.activations;
        let features = shapes.features;
        if features.rank() != 4 || features.dim(3) != c.feature_width() {
            return refuse(NAME, "features", format!("shape [batch, media, tokens, {}]", c.feature_width()), features);
        }
        let [batch, media, tokens] = [features.dim(0), features.dim(1), features.dim(2)];
        if frames == 0 || tokens % frames != 0 {
            return refuse(NAME, "frames", format!("a divisor of the {tokens} tokens of a medium"), frames);
        }
        let problems = match &shapes.offsets {
            None => batch * media,
            Some(offsets) if batch == 1 && media == 1 => offsets.dim(0).saturating_sub(1),
            Some(_) => return refuse(NAME, "features", "shape [1, 1, total, width] with offsets", features),
        };
        let (out_batch, out_media) = if shapes.offsets.is_some() { (problems, 1) } else { (batch, media) };
        let out_shape = [out_batch, out_media, c.latents, c.output_width()];
        if shapes.out.shape() != out_shape {
            return refuse(NAME, "out", format!("shape {out_shape:?}"), shapes.out);
        }

        let mut b = Builder::new(&self.device);
        let args = b.operands::<ResamplerCall>(&shapes)?;
        let mut x = args.features;
        if let Some(mlp) = &self.input_mlp {
            let projected = b.scratch(dtype, &[batch, media, tokens, c.width])?;
            mlp.push(&mut b, "input_mlp", x.merge(0)?, Epilogue::default(), projected.merge(0)?)?;
            b.tap("modality_projection", projected.merge(0)?);
            x = projected;
        }
        let embedding = self.embedding(&mut b, frames, media, shapes.offsets.is_some())?;

        // Without norm and projection, the last layer writes the result.
        let bare = self.final_norm.is_none() && self.projection.is_none();
        let stream = if bare { args.out.merge(0)? } else { b.scratch(dtype, &[problems, c.latents, c.width])? };
        // Before the first layer writes the stream, all problems share one entry of latents.
        let latents = b.constant(&self.latents).repeat(0, 1)?;
        let mut l = Source::From(latents);
        for (i, layer) in self.layers.iter().enumerate() {
            let normed = b.scratch(dtype, &[batch, media, tokens, c.width])?;
            let (label, source) = (format!("{i}.feature_norm"), Source::From(x));
            match embedding {
                None => layer.feature_norm.push(&mut b, &label, source, None, normed)?,
                Some(embedding) => {
                    // [batch, media · frames, tokens of a frame, width]
                    let by_frame = |s: Register| s.merge(1)?.split(1, media * frames, tokens / frames);
                    let add = embedding.repeat(1, tokens / frames)?.repeat(0, batch)?;
                    layer.feature_norm.push(
                        &mut b,
                        &label,
                        Source::From(by_frame(x)?),
                        Some(add),
                        by_frame(normed)?,
                    )?;
                }
            }
            self.layer(&mut b, i, layer, normed.merge(0)?, l, stream, &args)?;
            l = Source::InPlace;
            b.tap(format!("layers.{i}"), stream);
        }
        let mut last = match l {
            Source::From(latents) => latents.expand(0, problems)?,
            Source::InPlace => stream,
        };
        if let Some(norm) = &self.final_norm {
            let out = match self.projection {
                Some(_) => b.scratch(dtype, &[problems, c.latents, c.width])?,
                None => args.out.merge(0)?,
            };
            norm.push(&mut b, "final_norm", Source::From(last), None, out)?;
            last = out;
        }
        if let Some(projection) = &self.projection {
            projection.push(&mut b, "projection", last, Epilogue::default(), args.out.merge(0)?)?;
        }
        PreparedBridge::new(b, shapes)
    }

    #[allow(clippy::too_many_arguments, reason = "one private caller")]
    fn layer(
        &self,
        b: &mut Builder,
        i: usize,
        layer: &Layer,
        features: Register,
        latents: Source<Register>,
        stream: Register,
        args: &ResamplerArgs<Register, Register>,
    ) -> Result<()> {
        let c = &self.config;
        let dtype = self.precision.activations;
        let (problems, inner, kv_width) = (stream.spec().dim(0), c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let label = |part: &str| format!("{i}.{part}");

        // First, with only the stream and the features alive: a layer needs most memory here.
        let rows = features.spec();
        let feature_kv = b.scratch(dtype, &[rows.dim(0), rows.dim(1), 2 * kv_width])?;
        layer.kv.push(b, &label("feature_kv"), features, Epilogue::default(), feature_kv)?;

        // Results of the initial latents alone are computed once, for all problems (stride 0).
        let (x, distinct, residual) = match latents {
            Source::From(l) => (l, 1, Source::From(l.expand(0, problems)?)),
            Source::InPlace => (stream, problems, Source::InPlace),
        };
        let shared = |s: Register| if distinct == 1 { s.expand(0, problems) } else { Ok(s) };
        let normed = b.scratch(dtype, &[distinct, c.latents, c.width])?;
        layer.latent_norm.push(b, &label("latent_norm"), Source::From(x), None, normed)?;
        let q = b.scratch(dtype, &[distinct, c.latents, inner])?;
        layer.q.push(b, &label("q"), normed, Epilogue::default(), q)?;
        let latent_kv = b.scratch(dtype, &[distinct, c.latents, 2 * kv_width])?;
        layer.kv.push(b, &label("latent_kv"), normed, Epilogue::default(), latent_kv)?;
        let q = heads(q, c.heads, c.head_dim)?;
        let k = |kv: Register| heads(columns(kv, 0, kv_width)?, c.kv_heads, c.head_dim);
        let v = |kv: Register| heads(columns(kv, kv_width, kv_width)?, c.kv_heads, c.head_dim);
        if let Some((q_norm, k_norm)) = &layer.qk_norm {
            q_norm.push(b, &label("q_norm"), Source::InPlace, None, q)?;
            k_norm.push(b, &label("feature_k_norm"), Source::InPlace, None, k(feature_kv)?)?;
            k_norm.push(b, &label("latent_k_norm"), Source::InPlace, None, k(latent_kv)?)?;
        }
        let context = b.scratch(dtype, &[problems, c.latents, inner])?;
        let attention = AttentionArgs {
            q: shared(q)?,
            q_offsets: None,
            first: Segment {
                k: k(feature_kv)?,
                v: v(feature_kv)?,
                keys: args.keys.clone(),
                offsets: args.offsets,
                slots: None,
            },
            second: Some(Segment::new(shared(k(latent_kv)?)?, shared(v(latent_kv)?)?)),
            visibility: Visibility::All,
            out: heads(context, c.heads, c.head_dim)?,
            log_sum_exp: None,
            row_visible: None,
        };
        b.push(label("attention"), &Attention::for_head_dim(c.head_dim), attention)?;
        let residual = Epilogue { residual: Some(residual), ..Epilogue::default() };
        layer.out.push(b, &label("out"), context, residual, stream)?;

        let normed = b.scratch(dtype, stream.spec().shape())?;
        layer.ffn_norm.push(b, &label("ffn_norm"), Source::From(stream), None, normed)?;
        let residual = Epilogue { residual: Some(Source::InPlace), ..Epilogue::default() };
        layer.ffn.push(b, &label("ffn"), normed, residual, stream)
    }

    /// The sum of frame and media embeddings, `[media · frames, width]`, if there is any.
    fn embedding(&self, b: &mut Builder, frames: usize, media: usize, ragged: bool) -> Result<Option<Register>> {
        let width = self.config.width;
        if self.frame_embeddings.is_none() && self.media_embeddings.is_none() {
            return Ok(None);
        }
        if ragged {
            return refuse(NAME, "offsets", "none with frame or media embeddings", "some");
        }
        let elements = media.saturating_mul(frames).saturating_mul(width);
        let mut sum: Vec<f64> = room("host", elements, "time embeddings")?;
        sum.resize(elements, 0.0);
        if let Some(table) = &self.frame_embeddings {
            let rows = interpolate(table, width, frames, self.config.interpolation)?;
            for medium in sum.chunks_mut((frames * width).max(1)) {
                medium.iter_mut().zip(&rows).for_each(|(s, e)| *s += e);
            }
        }
        if let Some(table) = &self.media_embeddings {
            if table.len() < media * width {
                return refuse(
                    NAME,
                    "features",
                    format!("at most {} media, one per embedding", table.len() / width),
                    media,
                );
            }
            for (frame, s) in sum.chunks_mut(width).enumerate() {
                let row = &table[frame / frames * width..][..width];
                s.iter_mut().zip(row).for_each(|(s, e)| *s += e);
            }
        }
        let host = HostTensor::from_slice(&sum, &[media * frames, width])?;
        let tensor = Arc::new(Tensor::upload(&self.device, &host, self.precision.vectors())?);
        Ok(Some(b.constant(&tensor)))
    }
}

fn given(is: bool) -> &'static str {
    if is { "given" } else { "absent" }
}

/// Norms of q and k, if the config has them.
pub(super) fn qk_norms(
    load: &Loader<'_>,
    config: Option<NormConfig>,
    weights: Option<&(NormWeights<'_>, NormWeights<'_>)>,
    head_dim: usize,
) -> Result<Option<(NormPart, NormPart)>> {
    match (config, weights) {
        (Some(config), Some((q, k))) => {
            Ok(Some((load.norm("q_norm", config, q, head_dim)?, load.norm("k_norm", config, k, head_dim)?)))
        }
        (None, None) => Ok(None),
        (config, weights) => refuse(load.bridge, "qk_norm", given(config.is_some()), given(weights.is_some())),
    }
}
