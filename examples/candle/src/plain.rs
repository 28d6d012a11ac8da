//! OpenFlamingo's modules in candle's own ops: what a candle model would do without xattn.

use candle_core::{D, DType, Result, Tensor};

use crate::weights::Weights;

/// A weight of a prefix as a candle tensor.
pub fn tensor(weights: &Weights, name: &str) -> Result<Tensor> {
    let Some(host) = weights.get(name) else { candle_core::bail!("no weight {name}") };
    let values = host.to_f32().map_err(candle_core::Error::wrap)?;
    Tensor::from_vec(values, host.shape(), &candle_core::Device::Cpu)
}

/// LayerNorm, eps 1e-5.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let out = centred.broadcast_div(&(variance + 1e-5)?.sqrt()?)?.broadcast_mul(weight)?;
    bias.map_or(Ok(out.clone()), |bias| out.broadcast_add(bias))
}

/// x Wᵀ.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (batch, rows, k) = x.dims3()?;
    x.reshape((batch * rows, k))?.matmul(&weight.t()?)?.reshape((batch, rows, weight.dim(0)?))
}

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

/// `[batch, rows, heads · d]` to `[batch, heads, rows, d]`.
pub fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, rows, width) = x.dims3()?;
    x.reshape((batch, rows, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// Back.
pub fn join_heads(x: &Tensor) -> Result<Tensor> {
    let (batch, heads, rows, d) = x.dims4()?;
    x.transpose(1, 2)?.reshape((batch, rows, heads * d))
}

/// The mask `[batch, rows, keys]` of φ: 1 where the key belongs to the row's medium.
pub fn media_mask(phi: &Tensor, media: usize, keys_per_media: usize) -> Result<Tensor> {
    let (batch, rows) = phi.dims2()?;
    let of_key: Vec<i32> = (0..media * keys_per_media).map(|j| (j / keys_per_media) as i32 + 1).collect();
    let of_key = Tensor::from_vec(of_key, (1, 1, media * keys_per_media), phi.device())?;
    let shape = (batch, rows, media * keys_per_media);
    phi.unsqueeze(2)?.broadcast_as(shape)?.eq(&of_key.broadcast_as(shape)?)
}

/// Masked attention as the public module computes it; rows of φ = 0 become zeros. q
/// `[b, h, rows, d]`, k and v `[b, h, keys, d]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<(&Tensor, &Tensor)>) -> Result<Tensor> {
    let scale = 1.0 / (q.dim(D::Minus1)? as f64).sqrt();
    let scores = (q * scale)?.matmul(&k.t()?)?;
    let Some((mask, phi)) = mask else { return softmax(&scores)?.matmul(v) };
    let shown = mask.unsqueeze(1)?.broadcast_as(scores.shape())?;
    let hidden = Tensor::new(f32::MIN, scores.device())?.broadcast_as(scores.shape())?;
    let p = softmax(&shown.where_cond(&scores, &hidden)?)?;
    let seen = phi.gt(0i32)?.to_dtype(DType::F32)?.unsqueeze(1)?.unsqueeze(3)?;
    p.broadcast_mul(&seen)?.matmul(v)
}

/// OpenFlamingo's gated block. kv as [`project_media`] gives it.
pub struct GatedBlock {
    attn_norm: (Tensor, Tensor),
    to_q: Tensor,
    to_kv: Tensor,
    to_out: Tensor,
    attn_gate: Tensor,
    ff_norm: (Tensor, Tensor),
    up: Tensor,
    down: Tensor,
    ff_gate: Tensor,
    heads: usize,
}

impl GatedBlock {
    /// From named weights.
    pub fn new(weights: &Weights, prefix: &str, heads: usize) -> Result<Self> {
        let t = |name: &str| tensor(weights, &format!("{prefix}{name}"));
        let norm =
            |name: &str| Ok::<_, candle_core::Error>((t(&format!("{name}.weight"))?, t(&format!("{name}.bias"))?));
        Ok(GatedBlock {
            attn_norm: norm("attn.norm")?,
            to_q: t("attn.to_q.weight")?,
            to_kv: t("attn.to_kv.weight")?,
            to_out: t("attn.to_out.weight")?,
            attn_gate: t("attn_gate")?,
            ff_norm: norm("ff.0")?,
            up: t("ff.1.weight")?,
            down: t("ff.3.weight")?,
            ff_gate: t("ff_gate")?,
            heads,
        })
    }

    /// K and V `[batch, keys, 2 · inner]` of media tokens.
    pub fn project_media(&self, media: &Tensor) -> Result<Tensor> {
        linear(media, &self.to_kv)
    }

    /// The text stream through the block.
    pub fn forward(&self, x: &Tensor, kv: &Tensor, mask: &Tensor, phi: &Tensor) -> Result<Tensor> {
        let inner = kv.dim(2)? / 2;
        let (k, v) = (kv.narrow(2, 0, inner)?, kv.narrow(2, inner, inner)?);
        let q = linear(&layer_norm(x, &self.attn_norm.0, Some(&self.attn_norm.1))?, &self.to_q)?;
        let [q, k, v] = [&q, &k, &v].map(|t| split_heads(t, self.heads));
        let out = linear(&join_heads(&attention(&q?, &k?, &v?, Some((mask, phi)))?)?, &self.to_out)?;
        let x = (out.broadcast_mul(&self.attn_gate.tanh()?)? + x)?;
        let hidden = linear(&layer_norm(&x, &self.ff_norm.0, Some(&self.ff_norm.1))?, &self.up)?.gelu_erf()?;
        linear(&hidden, &self.down)?.broadcast_mul(&self.ff_gate.tanh()?)? + x
    }
}

/// OpenFlamingo's resampler over features `[media, tokens, width]`.
pub fn resampler(weights: &Weights, prefix: &str, layers: usize, heads: usize, features: &Tensor) -> Result<Tensor> {
    let t = |name: String| tensor(weights, &format!("{prefix}{name}"));
    let norm =
        |x: &Tensor, name: String| layer_norm(x, &t(format!("{name}.weight"))?, Some(&t(format!("{name}.bias"))?));
    let (media, _, width) = features.dims3()?;
    let latents = t("latents".into())?;
    let mut x = latents.unsqueeze(0)?.broadcast_as((media, latents.dim(0)?, width))?.contiguous()?;
    for i in 0..layers {
        let (f, l) =
            (norm(features, format!("layers.{i}.0.norm_media"))?, norm(&x, format!("layers.{i}.0.norm_latents"))?);
        let kv = linear(&Tensor::cat(&[&f, &l], 1)?, &t(format!("layers.{i}.0.to_kv.weight"))?)?;
        let inner = kv.dim(2)? / 2;
        let q = linear(&l, &t(format!("layers.{i}.0.to_q.weight"))?)?;
        let [q, k, v] = [&q, &kv.narrow(2, 0, inner)?, &kv.narrow(2, inner, inner)?].map(|t| split_heads(t, heads));
        let out = join_heads(&attention(&q?, &k?, &v?, None)?)?;
        x = (linear(&out, &t(format!("layers.{i}.0.to_out.weight"))?)? + x)?;
        let hidden =
            linear(&norm(&x, format!("layers.{i}.1.0"))?, &t(format!("layers.{i}.1.1.weight"))?)?.gelu_erf()?;
        x = (linear(&hidden, &t(format!("layers.{i}.1.3.weight"))?)? + x)?;
    }
    norm(&x, "norm".into())
}
