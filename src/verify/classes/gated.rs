//! Classes that are gated cross-attention blocks.

use super::run::Run;
use crate::Result;
use crate::bridge::{GatedBlock, GatedBlockArgs, GatedBlockConfig, GatedBlockWeights, ProjectMediaArgs};
use crate::checkpoint::mllama::EmptyRowBehaviour;
use crate::checkpoint::{
    Heads, flamingo as paper, idefics as idefics_names, mllama as mllama_names, open_flamingo as names,
};
use crate::device::Tensor;
use crate::ops::{Keys, MediaIndex, MediaIndexArgs, MediaSource, Source, Visibility};
use crate::{DType, Dispatch};

/// A block with its media projected.
struct Block {
    bridge: GatedBlock,
    kv: Tensor,
    batch: usize,
    media: usize,
    tokens: usize,
}

/// `GatedCrossAttentionBlock`: `x`, `media`, `media_locations` (a prefill's if media are cached).
pub(super) fn open_flamingo_block(run: &mut Run<'_>) -> Result<()> {
    let (config, weights) = names::gated_block(
        &run.fixture.weights,
        "",
        run.ctor(&["heads"])?,
        run.ctor_flag("only_attend_immediate_media")?,
    )?;
    let block = project(run, "media", &config, &weights)?;
    let cached = run.fixture.config.get("use_cached_media").and_then(serde_json::Value::as_bool).unwrap_or(false);
    let text = if cached { Text::Decode } else { Text::Prefill };
    over_media(run, &block, "x", "out", text)
}

/// `FlamingoLayer` around an identity: prefill, then cached decode.
pub(super) fn open_flamingo_layer(run: &mut Run<'_>) -> Result<()> {
    let (config, weights) = names::gated_block(
        &run.fixture.weights,
        "gated_cross_attn_layer.",
        run.ctor(&["heads"])?,
        run.ctor_flag("only_attend_immediate_media")?,
    )?;
    let block = project(run, "media", &config, &weights)?;
    over_media(run, &block, "x", "out_prefill", Text::Prefill)?;
    over_media(run, &block, "x_decode", "out_decode", Text::Decode)
}

/// The paper's block: `y` is the text, `x` the media.
pub(super) fn flamingo(run: &mut Run<'_>) -> Result<()> {
    let (config, weights) =
        paper::gated_block(&run.fixture.weights, "", run.ctor(&["heads"])?, run.ctor_flag("immediate")?)?;
    let block = project(run, "x", &config, &weights)?;
    over_media(run, &block, "y", "out", Text::Prefill)
}

/// `IdeficsGatedCrossAttentionLayer`: a bit per row and image.
pub(super) fn idefics(run: &mut Run<'_>) -> Result<()> {
    let heads = run.ctor(&["heads", "n_heads"])?;
    let eps = run.ctor_real(&["rms_norm_eps", "eps"], 1e-6)?;
    let (config, weights) = idefics_names::gated_block(&run.fixture.weights, "", heads, eps)?;
    let block = project(run, "image_hidden_states", &config, &weights)?;
    let images = run.fixture.masks.get("image_attention_mask").map_or(0, |m| m.shape.last().copied().unwrap_or(0));
    over_bits(run, &block, "hidden_states", "out", "image_attention_mask", &[images], Rows::Each)
}

/// `MllamaCrossAttentionDecoderLayer`: a bit per row, image and tile; decode reuses the last row.
pub(super) fn mllama(run: &mut Run<'_>) -> Result<()> {
    let heads = Heads { heads: run.ctor(&["heads"])?, kv_heads: run.ctor(&["kv_heads"])? };
    let eps = run.ctor_real(&["eps", "rms_norm_eps"], 1e-5)?;
    let (config, weights) =
        mllama_names::gated_block(&run.fixture.weights, "", heads, eps, EmptyRowBehaviour::Transformers)?;
    let block = project(run, "cross_attention_states", &config, &weights)?;
    let blocks = match run.fixture.masks.get("cross_attention_mask").map(|m| m.shape.as_slice()) {
        Some(&[_, _, images, tiles]) => [images, tiles],
        Some(other) => {
            return Err(
                run.fault(format!("tensor inputs.cross_attention_mask: expected 4 dimensions, found {other:?}"))
            );
        }
        None => [0, 0],
    };
    over_bits(run, &block, "hidden_states", "out", "cross_attention_mask", &blocks, Rows::Each)?;
    if run.fixture.inputs.contains_key("decode_hidden_states") {
        over_bits(run, &block, "decode_hidden_states", "out_decode", "cross_attention_mask", &blocks, Rows::Last)?;
    }
    Ok(())
}

fn project(
    run: &mut Run<'_>,
    input: &str,
    config: &GatedBlockConfig,
    weights: &GatedBlockWeights<'_>,
) -> Result<Block> {
    let bridge = GatedBlock::new(run.device, config, weights, run.precision)?;
    // `[batch, media, tokens, width]`, or the media's tokens in one row.
    let [batch, media, tokens, width] = match run.fixture.input(input)?.shape() {
        &[batch, tokens, width] => [batch, 1, tokens, width],
        _ => run.shape(input)?,
    };
    let host = run.activations(input, &[batch, media * tokens, width])?;
    let mut kv = run.scratch(&[batch, media * tokens, config.kv_width()])?;
    let prepared = bridge.prepare_media(ProjectMediaArgs { media: host.spec(), kv: kv.spec() })?;
    prepared.run(ProjectMediaArgs { media: host.view(), kv: kv.view_mut() })?;
    let projected = vec![("kv".to_string(), kv.download(run.device)?)];
    run.keep_taps(projected, str::to_string)?;
    Ok(Block { bridge, kv, batch, media, tokens })
}

enum Text {
    /// `media_locations` are those of the rows.
    Prefill,
    /// `media_locations` are those of the tokens before.
    Decode,
}

fn over_media(run: &mut Run<'_>, block: &Block, input: &str, output: &str, text: Text) -> Result<()> {
    let [batch, rows, _] = run.shape(input)?;
    if batch != block.batch {
        return Err(run.fault(format!("tensor inputs.{input}: expected a batch of {}, found {batch}", block.batch)));
    }
    let located = match (run.fixture.masks.get("media_locations").map(|m| m.shape.as_slice()), &text) {
        (None, _) => None,
        (Some(&[_, located]), Text::Decode) => Some(located),
        (Some(_), _) => Some(rows),
    };
    let Some(located) = located else {
        return over(run, block, input, output, Visibility::All, Visibility::All);
    };
    let flags = run.flags("media_locations", &[batch, located])?.unwrap_or(&[]);
    let words: Vec<u32> = flags.iter().map(|&f| u32::from(f)).collect();
    let locations = run.words(&words, &[batch, located])?;
    let mut carry = Tensor::zeros(run.device, DType::I32, &[batch])?;
    let (mut media_index, mut plan) = index(run, &locations, None, Some(&mut carry))?;
    if matches!(text, Text::Decode) {
        let none = run.words(&vec![0; batch * rows], &[batch, rows])?;
        (media_index, plan) = index(run, &none, Some(&carry), None)?;
    }
    let keys = u32::try_from(block.tokens.max(1)).map_err(|e| run.fault(e))?;
    let config = block.bridge.config();
    let specs = config.visibility(media_index.spec(), keys, Some(plan.spec()))?;
    let views = config.visibility(media_index.view(), keys, Some(plan.view()))?;
    over(run, block, input, output, specs, views)
}

/// φ and its plan.
fn index(
    run: &Run<'_>,
    locations: &Tensor,
    carry_in: Option<&Tensor>,
    carry_out: Option<&mut Tensor>,
) -> Result<(Tensor, Tensor)> {
    let spec = locations.spec();
    let shape = [spec.dim(0), spec.dim(1)];
    let mut media_index = Tensor::zeros(run.device, DType::I32, &shape)?;
    let mut plan = Tensor::zeros(run.device, DType::U32, &crate::ops::media_index::plan_shape(shape[0], shape[1]))?;
    let args = MediaIndexArgs {
        source: MediaSource::Locations(locations.view()),
        carry_in: carry_in.map(Tensor::view),
        carry_out: carry_out.map(Tensor::view_mut),
        media_count: None,
        media_index: media_index.view_mut(),
        plan: Some(plan.view_mut()),
    };
    MediaIndex::default().run(run.device, args)?;
    Ok((media_index, plan))
}

enum Rows {
    Each,
    /// Every row of the text uses the mask's last row.
    Last,
}

fn over_bits(
    run: &mut Run<'_>,
    block: &Block,
    input: &str,
    output: &str,
    mask: &str,
    blocks: &[usize],
    rows: Rows,
) -> Result<()> {
    let Some(flags) = run.fixture.masks.get(mask) else {
        return over(run, block, input, output, Visibility::All, Visibility::All);
    };
    let [batch, text_rows, _] = run.shape(input)?;
    let mask_rows = match rows {
        Rows::Each => text_rows,
        Rows::Last => flags.shape.get(1).copied().unwrap_or(0),
    };
    let mut shape = vec![batch, mask_rows];
    shape.extend_from_slice(blocks);
    let flags = run.flags(mask, &shape)?.unwrap_or(&[]);
    let (count, keys) = (blocks.iter().product::<usize>(), block.media * block.tokens);
    if count == 0 || keys % count != 0 || mask_rows == 0 {
        return Err(run.fault(format!("tensor inputs.{mask}: {count} blocks do not divide {keys} keys")));
    }
    let flags: Vec<u8> = match rows {
        Rows::Each => flags.to_vec(),
        Rows::Last => flags
            .chunks(mask_rows * count)
            .flat_map(|sample| sample[(mask_rows - 1) * count..].repeat(text_rows))
            .collect(),
    };
    let bits = run.bits(&flags, &[batch, text_rows], count)?;
    let keys_per_block = u32::try_from((keys / count).max(1)).map_err(|e| run.fault(e))?;
    let specs = Visibility::MediaBits { bits: bits.spec(), keys_per_block };
    let views = Visibility::MediaBits { bits: bits.view(), keys_per_block };
    over(run, block, input, output, specs, views)
}

fn over(
    run: &mut Run<'_>,
    block: &Block,
    input: &str,
    output: &str,
    specs: Visibility<crate::Spec>,
    views: Visibility<crate::View<'_>>,
) -> Result<()> {
    let shape: [usize; 3] = run.shape(input)?;
    let x = run.activations(input, &shape)?;
    let mut out = run.result(output, &shape)?;
    let prepared = block.bridge.prepare(args(Source::From(x.spec()), block.kv.spec(), specs, out.spec()))?;
    let taps = prepared.run_tapped(args(Source::From(x.view()), block.kv.view(), views, out.view_mut()))?;
    run.keep(output, &out)?;
    if output == "out_decode" {
        // The file's intermediates are the prefill's.
        return Ok(());
    }
    run.keep_taps(taps, |name| match name {
        "row_visible" => "full_text_row_masked_out_mask".to_string(),
        other => other.to_string(),
    })
}

fn args<R, W>(x: Source<R>, kv: R, visibility: Visibility<R>, out: W) -> GatedBlockArgs<R, W> {
    GatedBlockArgs { x, x_offsets: None, kv, keys: Keys::All, slots: None, kv_offsets: None, visibility, out }
}
