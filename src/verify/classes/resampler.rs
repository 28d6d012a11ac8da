//! Classes that are Perceiver Resamplers.

use super::run::Run;
use crate::Result;
use crate::bridge::{Interpolation, PerceiverResampler, ResamplerArgs, ResamplerConfig, ResamplerWeights};
use crate::checkpoint::{
    Heads, flamingo as paper, idefics as idefics_names, idefics2 as idefics2_names, open_flamingo as names,
};
use crate::ops::Keys;

/// How a fixture's features are laid out.
struct Features<'n> {
    input: &'n str,
    mask: Option<&'n str>,
    batch: usize,
    media: usize,
    frames: usize,
    tokens_per_frame: usize,
    width: usize,
}

/// `inputs.x` is `[batch, media, tokens, width]`, or without `media`.
pub(super) fn flamingo_pytorch(run: &mut Run<'_>) -> Result<()> {
    let [batch, media, tokens_per_frame, width] = match run.fixture.input("x")?.shape() {
        &[batch, tokens, width] => [batch, 1, tokens, width],
        _ => run.shape("x")?,
    };
    let (config, weights) = names::resampler(&run.fixture.weights, "", run.ctor(&["heads"])?)?;
    let features = Features { input: "x", mask: None, batch, media, frames: 1, tokens_per_frame, width };
    resample(run, &config, &weights, &features)
}

/// `inputs.x` is `[batch, media, frames, tokens, width]`.
pub(super) fn open_flamingo(run: &mut Run<'_>) -> Result<()> {
    let [batch, media, frames, tokens_per_frame, width] = run.shape("x")?;
    let (config, weights) = names::resampler(&run.fixture.weights, "", run.ctor(&["heads"])?)?;
    let features = Features { input: "x", mask: None, batch, media, frames, tokens_per_frame, width };
    resample(run, &config, &weights, &features)
}

/// `inputs.x_f` is `[batch, frames, tokens, width]`: one clip each.
pub(super) fn flamingo(run: &mut Run<'_>) -> Result<()> {
    let [batch, frames, tokens_per_frame, width] = run.shape("x_f")?;
    let (config, weights) = paper::resampler(&run.fixture.weights, "", run.ctor(&["heads"])?, Interpolation::None)?;
    let features = Features { input: "x_f", mask: None, batch, media: 1, frames, tokens_per_frame, width };
    resample(run, &config, &weights, &features)
}

/// `inputs.context` is `[batch, tokens, width]`.
pub(super) fn idefics(run: &mut Run<'_>) -> Result<()> {
    let (config, weights) = idefics_names::resampler(&run.fixture.weights, "", run.ctor(&["n_heads", "heads"])?)?;
    context(run, &config, &weights)
}

/// `inputs.context` with a mask of its tokens.
pub(super) fn idefics2(run: &mut Run<'_>) -> Result<()> {
    let (heads, eps) = idefics2_numbers(run)?;
    let (config, weights) = idefics2_names::resampler(&run.fixture.weights, "", heads, eps)?;
    context(run, &config, &weights)
}

/// The same behind a modality projection.
pub(super) fn idefics2_connector(run: &mut Run<'_>) -> Result<()> {
    let (heads, eps) = idefics2_numbers(run)?;
    let (config, weights) = idefics2_names::connector(&run.fixture.weights, "", heads, eps)?;
    context(run, &config, &weights)
}

fn idefics2_numbers(run: &Run<'_>) -> Result<(Heads, f32)> {
    let heads = Heads { heads: run.ctor(&["heads", "n_heads"])?, kv_heads: run.ctor(&["kv_heads"])? };
    Ok((heads, run.ctor_real(&["rms_norm_eps", "eps"], 1e-6)?))
}

fn context(run: &mut Run<'_>, config: &ResamplerConfig, weights: &ResamplerWeights<'_>) -> Result<()> {
    let [batch, tokens_per_frame, width] = run.shape("context")?;
    let mask = Some("attention_mask");
    let features = Features { input: "context", mask, batch, media: 1, frames: 1, tokens_per_frame, width };
    resample(run, config, weights, &features)
}

fn resample(
    run: &mut Run<'_>,
    config: &ResamplerConfig,
    weights: &ResamplerWeights<'_>,
    layout: &Features<'_>,
) -> Result<()> {
    let bridge = PerceiverResampler::new(run.device, config, weights, run.precision)?;
    let (problems, tokens) = (layout.batch * layout.media, layout.frames * layout.tokens_per_frame);
    let features = run.activations(layout.input, &[layout.batch, layout.media, tokens, layout.width])?;
    let flags = layout.mask.map(|name| run.flags(name, &[problems, tokens])).transpose()?.flatten();
    let bits = flags.map(|flags| run.bits(flags, &[problems], tokens)).transpose()?;
    let mut out = run.result("out", &[layout.batch, layout.media, config.latents, config.output_width()])?;
    let shapes = ResamplerArgs {
        features: features.spec(),
        keys: bits.as_ref().map_or(Keys::All, |b| Keys::Bits(b.spec())),
        offsets: None,
        out: out.spec(),
    };
    let prepared = bridge.prepare(layout.frames, shapes)?;
    let taps = prepared.run_tapped(ResamplerArgs {
        features: features.view(),
        keys: bits.as_ref().map_or(Keys::All, |b| Keys::Bits(b.view())),
        offsets: None,
        out: out.view_mut(),
    })?;
    run.keep("out", &out)?;
    run.keep_taps(taps, str::to_string)
}
