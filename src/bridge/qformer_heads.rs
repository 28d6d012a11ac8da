//! Heads of the Q-Former: the projection into the language model, and those of its objectives.
//!
//! ```text
//! project       y = W h + b                                     soft tokens for the language model
//! itc_image     z = normalize(W_v h_q)                          per query
//! itc_text      z = normalize(W_t h_t[0])                       of the first text token
//! similarity    s[i, t] = max over queries r of ⟨z_image[i, r], z_text[t]⟩              without temperature
//! itm           logits = mean over queries of (W h_q + b)
//! lm            logits = W_d norm(gelu(W h_t + b)) + b_d
//! ```
//!
//! Sources: LAVIS `blip2_qformer.py`; transformers `Blip2ForConditionalGeneration`,
//! `Blip2ForImageTextRetrieval` (spec 5.2).

use super::parts::{DensePart, Epilogue, Loader, NormPart};
use super::program::{Builder, PreparedBridge, Register, refuse};
use super::{DenseWeights, NormConfig, NormWeights, Precision};
use crate::Result;
use crate::device::Device;
use crate::ops::{
    Activation, Linear, LinearArgs, Matrix, Norm, NormArgs, NormKind, Operands, Parameters, RowReduce, Source, Visit,
    sealed,
};
use crate::tensor::Spec;

/// Operands of a head.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadArgs<R, W> {
    /// Rows of the Q-Former's output, `[batch, rows, width]`.
    pub hidden: R,
    /// Result.
    pub out: W,
}

/// The operands of every head's `prepare`.
#[derive(Debug, Clone, Copy)]
pub struct HeadCall;

impl sealed::Sealed for HeadCall {}

impl Operands for HeadCall {
    const NAME: &'static str = "qformer_head";
    type Args<R, W> = HeadArgs<R, W>;

    fn map<R, W, R2, W2>(a: HeadArgs<R, W>, v: &mut impl Visit<R, W, R2, W2>) -> Result<HeadArgs<R2, W2>> {
        Ok(HeadArgs { hidden: v.read("hidden", a.hidden)?, out: v.write("out", a.out)? })
    }

    fn as_ref<R, W>(a: &HeadArgs<R, W>) -> HeadArgs<&R, &W> {
        HeadArgs { hidden: &a.hidden, out: &a.out }
    }

    type Form = HeadArgs<(), ()>;

    fn form(args: HeadArgs<(), ()>) -> Self::Form {
        args
    }

    fn parameters(_: &Self::Form, _: &mut Parameters<'_>) {}
}

/// A dense layer whose sizes come from its own weight.
struct OpenDense {
    device: Device,
    precision: Precision,
    part: DensePart,
}

impl OpenDense {
    fn new(name: &'static str, device: &Device, weights: &DenseWeights<'_>, precision: Precision) -> Result<Self> {
        let load = Loader { device, precision, bridge: HeadCall::NAME };
        let Some(shape) = weights.weight.first().map(|w| w.shape().to_vec()).filter(|s| s.len() == 2) else {
            return refuse(HeadCall::NAME, name, "a matrix", "none");
        };
        Ok(OpenDense { device: device.clone(), precision, part: load.dense(name, weights, shape[0], shape[1])? })
    }

    /// Declares the operands: any rows in, `rows_out` of each batch entry out.
    fn begin(&self, shapes: &HeadArgs<Spec, Spec>, reduced: bool) -> Result<(Builder, HeadArgs<Register, Register>)> {
        let (hidden, weight) = (shapes.hidden, &self.part.weight);
        if hidden.rank() != 3 || hidden.dim(2) != weight.k() {
            return refuse(HeadCall::NAME, "hidden", format!("shape [batch, rows, {}]", weight.k()), hidden);
        }
        let rows = if reduced { 1 } else { hidden.dim(1) };
        let expected = [hidden.dim(0), rows, weight.n()];
        if shapes.out.shape() != expected {
            return refuse(HeadCall::NAME, "out", format!("shape {expected:?}"), shapes.out);
        }
        let mut b = Builder::new(&self.device);
        let args = b.operands::<HeadCall>(shapes)?;
        Ok((b, args))
    }
}

/// The language projection: `language_projection`, `opt_proj`, `t5_proj`, `llm_proj`.
pub struct LanguageProjection(OpenDense);

impl LanguageProjection {
    /// Packs weights for a device.
    ///
    /// # Errors
    /// Weights that are no matrix and vector that fit together.
    pub fn new(device: &Device, weights: &DenseWeights<'_>, precision: Precision) -> Result<Self> {
        Ok(LanguageProjection(OpenDense::new("language_projection", device, weights, precision)?))
    }

    /// Prepares `[batch, rows, width]` to `[batch, rows, language width]`.
    ///
    /// # Errors
    /// Shapes that do not fit the weights.
    pub fn prepare(&self, shapes: HeadArgs<Spec, Spec>) -> Result<PreparedBridge<HeadCall>> {
        let (mut b, args) = self.0.begin(&shapes, false)?;
        self.0.part.push(&mut b, "language_projection", args.hidden, Epilogue::default(), args.out)?;
        PreparedBridge::new(b, shapes)
    }
}

/// The image-text contrastive heads. `Send + Sync`, as every head.
pub struct ItcHeads {
    vision: OpenDense,
    text: OpenDense,
}

impl ItcHeads {
    /// Packs `vision_proj` and `text_proj` for a device.
    ///
    /// # Errors
    /// Weights that are no matrices and vectors that fit together.
    pub fn new(
        device: &Device,
        vision: &DenseWeights<'_>,
        text: &DenseWeights<'_>,
        precision: Precision,
    ) -> Result<Self> {
        Ok(ItcHeads {
            vision: OpenDense::new("vision_projection", device, vision, precision)?,
            text: OpenDense::new("text_projection", device, text, precision)?,
        })
    }

    /// Prepares the query rows' embeddings: `[batch, queries, width]` to
    /// `[batch, queries, itc width]`, each of length 1.
    ///
    /// # Errors
    /// Shapes that do not fit the weights.
    pub fn prepare_image(&self, shapes: HeadArgs<Spec, Spec>) -> Result<PreparedBridge<HeadCall>> {
        embed(&self.vision, "itc_image", shapes)
    }

    /// Prepares the texts' embeddings: `[batch, 1, width]`, the first row of each text, to
    /// `[batch, 1, itc width]`, each of length 1.
    ///
    /// # Errors
    /// Shapes that do not fit the weights.
    pub fn prepare_text(&self, shapes: HeadArgs<Spec, Spec>) -> Result<PreparedBridge<HeadCall>> {
        embed(&self.text, "itc_text", shapes)
    }
}

fn embed(dense: &OpenDense, label: &str, shapes: HeadArgs<Spec, Spec>) -> Result<PreparedBridge<HeadCall>> {
    let (mut b, args) = dense.begin(&shapes, false)?;
    dense.part.push(&mut b, label, args.hidden, Epilogue::default(), args.out)?;
    let out = super::parts::four_dims(args.out)?;
    // torch.nn.functional.normalize's eps.
    let op = Norm { kind: NormKind::L2, eps: 1e-12 };
    b.push(format!("{label}.normalize"), &op, NormArgs::new(Source::InPlace, None, None, out))?;
    PreparedBridge::new(b, shapes)
}

/// The op and operands of the contrastive similarity: images `[images, queries, width]` against
/// texts `[texts, width]` (a view of the texts' embeddings) into `[images, 1, texts]`.
pub fn itc_similarity<R, W>(image: R, text: R, out: W) -> (Linear, LinearArgs<R, W>) {
    (Linear { activation: Activation::None, reduce: RowReduce::Max }, LinearArgs::new(image, Matrix::View(text), out))
}

/// The image-text matching head.
pub struct ItmHead(OpenDense);

impl ItmHead {
    /// Packs weights for a device.
    ///
    /// # Errors
    /// Weights that are no matrix and vector that fit together.
    pub fn new(device: &Device, weights: &DenseWeights<'_>, precision: Precision) -> Result<Self> {
        Ok(ItmHead(OpenDense::new("itm_head", device, weights, precision)?))
    }

    /// Prepares `[batch, queries, width]` to the mean logits `[batch, 1, 2]`.
    ///
    /// # Errors
    /// Shapes that do not fit the weights.
    pub fn prepare(&self, shapes: HeadArgs<Spec, Spec>) -> Result<PreparedBridge<HeadCall>> {
        let (mut b, args) = self.0.begin(&shapes, true)?;
        let mean = Epilogue { reduce: RowReduce::Mean, ..Epilogue::default() };
        self.0.part.push(&mut b, "itm_head", args.hidden, mean, args.out)?;
        PreparedBridge::new(b, shapes)
    }
}

/// Weights of the language-model head.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LmHeadWeights<'a> {
    /// `[width, width]` and bias.
    pub transform: DenseWeights<'a>,
    /// LayerNorm behind it.
    pub norm: NormWeights<'a>,
    /// `[vocabulary, width]` and bias.
    pub decoder: DenseWeights<'a>,
}

impl<'a> LmHeadWeights<'a> {
    /// The fields say the shapes.
    pub fn new(transform: DenseWeights<'a>, norm: NormWeights<'a>, decoder: DenseWeights<'a>) -> Self {
        LmHeadWeights { transform, norm, decoder }
    }
}

/// The language-model head of the ITG objective (`cls.predictions`).
pub struct LmHead {
    transform: DensePart,
    norm: NormPart,
    decoder: OpenDense,
}

impl LmHead {
    /// Packs weights for a device. `norm_eps` is that of the Q-Former.
    ///
    /// # Errors
    /// Weights that do not fit together.
    pub fn new(device: &Device, weights: &LmHeadWeights<'_>, norm_eps: f32, precision: Precision) -> Result<Self> {
        let load = Loader { device, precision, bridge: HeadCall::NAME };
        let decoder = OpenDense::new("decoder", device, &weights.decoder, precision)?;
        let width = decoder.part.weight.k();
        Ok(LmHead {
            transform: load.dense("transform", &weights.transform, width, width)?,
            norm: load.norm("transform.norm", NormConfig::layer(norm_eps), &weights.norm, width)?,
            decoder,
        })
    }

    /// Prepares `[batch, rows, width]` to logits `[batch, rows, vocabulary]`.
    ///
    /// # Errors
    /// Shapes that do not fit the weights.
    pub fn prepare(&self, shapes: HeadArgs<Spec, Spec>) -> Result<PreparedBridge<HeadCall>> {
        let (mut b, args) = self.decoder.begin(&shapes, false)?;
        let rows = b.scratch(self.decoder.precision.activations, shapes.hidden.shape())?;
        let gelu = Epilogue { activation: Activation::Gelu, ..Epilogue::default() };
        self.transform.push(&mut b, "transform", args.hidden, gelu, rows)?;
        self.norm.push(&mut b, "transform.norm", Source::InPlace, None, rows)?;
        self.decoder.part.push(&mut b, "decoder", rows, Epilogue::default(), args.out)?;
        PreparedBridge::new(b, shapes)
    }
}
