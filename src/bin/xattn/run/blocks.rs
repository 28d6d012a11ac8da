//! Projector and gated blocks.

use xattn::bridge::{
    DenseWeights, GatedBlock, GatedBlockArgs, HeadArgs, LanguageProjection, MediaRule, ProjectMediaArgs,
};
use xattn::checkpoint::{Bridges, GatedBlockAt};
use xattn::ops::{Keys, Media, Source, Visibility};
use xattn::{DType, Error, HostTensor, Tensor};

use super::finite::States;
use super::tensors::{Context, Inputs, upload};

/// Media tokens on the device.
pub struct MediaTokens {
    /// `[B, …, width]`, with at most as many dimensions as a device tensor may have.
    pub tensor: Tensor,
    /// `[B, N, tokens, width]`, or `[B, N, tiles, tokens, width]`.
    pub shape: Vec<usize>,
    /// Which of them are not finite.
    pub states: States,
}

/// `media` of the inputs: `[B, N, tokens, width]`, or `[B, N, tiles, tokens, width]` for a
/// projector's. A checkpoint with neither resampler nor projector takes both.
pub fn given(run: &Context, bridges: &Bridges<'_>) -> Result<MediaTokens, Error> {
    let media = run.inputs.real("media")?;
    let mut expected = vec!["batch".to_string(), "media".into(), "tokens".into()];
    if let Some((config, _)) = &bridges.resampler {
        expected[2] = config.latents.to_string();
        expected.push(config.output_width().to_string());
    } else {
        if bridges.projector.is_some() || media.shape().len() == 5 {
            expected.insert(2, "tiles".into());
        }
        let width = bridges.gated_blocks.first().map(|b| b.config.media_width);
        expected.push(width.map_or("width".into(), |w| w.to_string()));
    }
    let fits = |(e, d): (&String, &usize)| e.parse().map_or(true, |e: usize| e == *d);
    if media.shape().len() != expected.len() || !expected.iter().zip(media.shape()).all(fits) {
        return Err(run.inputs.fault("media", format!("[{}]", expected.join(", ")), format!("{:?}", media.shape())));
    }
    let shape = media.shape().to_vec();
    let keys = shape[1..shape.len() - 1].iter().product();
    let (tensor, states) = upload(run, "media", media.reshape(&[shape[0], keys, shape[shape.len() - 1]])?)?;
    Ok(MediaTokens { tensor, shape, states })
}

/// Llama-3.2-Vision's projector: `features` `[B, N, tiles, S, features]` to `media`, which stays on
/// the device and is copied to the outputs.
pub fn project(run: &mut Context, weights: &DenseWeights<'_>) -> Result<MediaTokens, Error> {
    let features = run.inputs.real("features")?;
    let [batch, media, tiles, tokens, width] = run.inputs.shape("features")?;
    let input = weights.weight.first().map_or(0, |w| w.shape()[1]);
    if width != input {
        let expected = format!("[batch, media, tiles, tokens, {input}]");
        return Err(run.inputs.fault("features", expected, format!("{:?}", features.shape())));
    }
    let rows = media * tiles * tokens;
    let bridge = LanguageProjection::new(&run.device, weights, run.precision)?;
    let (x, states) = upload(run, "features", features.reshape(&[batch, rows, width])?)?;
    let n = weights.weight.iter().map(|w| w.shape()[0]).sum();
    let mut out = Tensor::zeros(&run.device, run.precision.activations, &[batch, rows, n])?;
    run.progress("projector");
    let prepared = bridge.prepare(HeadArgs { hidden: x.spec(), out: out.spec() })?;
    prepared.run(HeadArgs { hidden: x.view(), out: out.view_mut() })?;
    let shape = vec![batch, media, tiles, tokens, n];
    let states = run.outputs.keep("media", out.download(&run.device)?.reshape(&shape)?, "the projector", &[&states])?;
    Ok(MediaTokens { tensor: out, shape, states })
}

/// Runs every gated block with text, one by one: only one block's weights are packed at a time.
pub fn run(run: &mut Context, blocks: &[GatedBlockAt<'_>], media: &MediaTokens) -> Result<(), Error> {
    let blocks = with_text(&run.inputs, blocks);
    let Some((first, _)) = blocks.first() else { return Ok(()) };
    note_missing_mask(run, first.config.rule, media.shape.len() == 5);
    let media_states = &media.states;
    // [B, N, tokens, width], or with tiles.
    let shape = &media.shape;
    let (batch, count, tiles) = match *shape.as_slice() {
        [batch, count, _, _] => (batch, count, None),
        [batch, count, tiles, _, _] => (batch, count, Some(tiles)),
        _ => return Err(run.inputs.fault("media", "4 or 5 dimensions", format!("{shape:?}"))),
    };
    let tokens = shape[shape.len() - 2];
    let keys = count * tiles.unwrap_or(1) * tokens;
    // One row of keys per batch entry.
    let mut media = media.tensor.view();
    while media.spec().rank() > 3 {
        media = media.merge(1)?;
    }
    for (i, (block, input)) in blocks.iter().enumerate() {
        run.progress(&format!("gated block {} of {}", i + 1, blocks.len()));
        let c = &block.config;
        let [text_batch, rows, text_width] = run.inputs.shape(input)?;
        if (text_batch, text_width) != (batch, c.width) {
            let expected = format!("[{batch}, rows, {}]", c.width);
            return Err(run.inputs.fault(input, expected, format!("{:?}", [text_batch, rows, text_width])));
        }
        let mask = Mask::read(run, c.rule, batch, rows, count, tiles)?;
        let bridge = GatedBlock::new(&run.device, c, &block.weights, run.precision)?;
        let mut kv = Tensor::zeros(&run.device, run.precision.activations, &[batch, keys, c.kv_width()])?;
        let project = bridge.prepare_media(ProjectMediaArgs { media: media.spec(), kv: kv.spec() })?;
        project.run(ProjectMediaArgs { media: media.clone(), kv: kv.view_mut() })?;
        let (x, states) = upload(run, input, run.inputs.real(input)?)?;
        let mut out = Tensor::zeros(&run.device, run.precision.activations, x.spec().shape())?;
        let tokens = u32::try_from(tokens).map_err(|e| run.inputs.fault("media", "fewer tokens", e))?;
        let specs = mask.visibility(tokens, Tensor::spec);
        let prepared = bridge.prepare(arguments(x.spec(), kv.spec(), specs, out.spec()))?;
        let views = mask.visibility(tokens, Tensor::view);
        prepared.run(arguments(x.view(), kv.view(), views, out.view_mut()))?;
        let out = out.download(&run.device)?;
        let mut operands = vec![media_states, &states];
        let step = format!("gated block {}", block.index);
        // Intermediate results are examined only if a result is not finite.
        let kv_states = match States::after(&step, &out, &operands)?.since() {
            Some(_) => States::after(&format!("K and V of {step}"), &kv.download(&run.device)?, &[media_states])?,
            None => States::default(),
        };
        operands.push(&kv_states);
        run.outputs.keep(format!("text.{}", block.index), out, &step, &operands)?;
    }
    Ok(())
}

/// The gated blocks with text, and the text's name.
pub fn with_text<'b, 'a>(inputs: &Inputs, blocks: &'b [GatedBlockAt<'a>]) -> Vec<(&'b GatedBlockAt<'a>, String)> {
    let named = blocks.iter().map(|block| {
        let own = format!("text.{}", block.index);
        (block, if inputs.has(&own) { own } else { "text".into() })
    });
    named.filter(|(_, input)| inputs.has(input)).collect()
}

/// Notes that every row sees all media, if no input has a mask.
fn note_missing_mask(run: &Context, rule: MediaRule, tiles: bool) {
    let names = mask_names(rule, tiles);
    if !names.iter().any(|name| run.inputs.has(name)) {
        run.say(format!(
            "note: {}: no {}: every row of text sees all media",
            xattn::escaped(run.inputs.path().display()),
            names.join(" or ")
        ));
    }
}

/// Names of inputs with masks of media. Only those of media with tiles have a dimension for them.
pub fn mask_names(rule: MediaRule, tiles: bool) -> &'static [&'static str] {
    match (rule, tiles) {
        (MediaRule::Bits, true) => &["cross_attention_mask"],
        (MediaRule::Bits, false) => &["image_attention_mask"],
        _ => &["media_index", "media_locations"],
    }
}

fn arguments<R, W>(x: R, kv: R, visibility: Visibility<R>, out: W) -> GatedBlockArgs<R, W> {
    GatedBlockArgs {
        x: Source::From(x),
        x_offsets: None,
        kv,
        keys: Keys::All,
        slots: None,
        kv_offsets: None,
        visibility,
        out,
    }
}

/// The visibility, on the device.
enum Mask {
    All,
    Same(Tensor),
    Preceding(Tensor),
    Bits(Tensor),
}

impl Mask {
    fn read(
        run: &Context,
        rule: MediaRule,
        batch: usize,
        rows: usize,
        count: usize,
        tiles: Option<usize>,
    ) -> Result<Self, Error> {
        let inputs = &run.inputs;
        if rule == MediaRule::Bits {
            let name = mask_names(rule, tiles.is_some())[0];
            let per_row = std::iter::once(count).chain(tiles).collect::<Vec<_>>();
            if !inputs.has(name) {
                return Ok(Mask::All);
            }
            let bits = per_row.iter().product();
            let shape = [&[batch, rows], &per_row[..]].concat();
            return Ok(Mask::Bits(inputs.bits(&run.device, name, &shape, &[batch, rows], bits)?));
        }
        let media_index = if inputs.has("media_index") {
            inputs.indices("media_index", &[batch, rows], count)?
        } else if inputs.has("media_locations") {
            let locations = inputs.integers("media_locations", &[batch, rows])?;
            let counted = locations.chunks(rows.max(1)).flat_map(|row| {
                row.iter().scan(0, |seen, &here| {
                    *seen += i32::from(here != 0);
                    Some(*seen)
                })
            });
            let counted: Vec<i32> = counted.collect();
            if let Some(&most) = counted.iter().max().filter(|&&most| most as usize > count) {
                return Err(inputs.fault("media_locations", format!("at most {count} in a row, as media"), most));
            }
            counted
        } else {
            return Ok(Mask::All);
        };
        let host = HostTensor::from_slice(&media_index, &[batch, rows])?;
        let index = Tensor::upload(&run.device, &host, DType::I32)?;
        Ok(if rule == MediaRule::Same { Mask::Same(index) } else { Mask::Preceding(index) })
    }

    fn visibility<'t, R>(&'t self, tokens: u32, operand: impl Fn(&'t Tensor) -> R) -> Visibility<R> {
        let media = |t| Media { media_index: operand(t), keys_per_media: tokens, plan: None };
        match self {
            Mask::All => Visibility::All,
            Mask::Same(t) => Visibility::SameMedia(media(t)),
            Mask::Preceding(t) => Visibility::PrecedingMedia(media(t)),
            Mask::Bits(t) => Visibility::MediaBits { bits: operand(t), keys_per_block: tokens },
        }
    }
}
