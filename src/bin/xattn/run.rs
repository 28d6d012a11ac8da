//! `xattn run`.

mod blocks;
mod choice;
mod finite;
mod qformer;
mod tensors;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use xattn::bridge::{PerceiverResampler, Precision, ResamplerArgs};
use xattn::checkpoint::{Bridges, Checkpoint, Provenance};
use xattn::ops::Keys;
use xattn::{DType, Device, DeviceKind, Error, escaped};

pub use choice::CheckpointChoice;
use finite::Count;
use tensors::{Context, Inputs, Outputs};

use crate::choices;
use crate::output::Output;
use crate::print::{Printer, say};

/// Run the bridge of a checkpoint: features and text states in, bridge outputs out.
#[derive(Args)]
#[command(after_help = "\
Tensors by family (B batch, N media, S feature tokens, L text tokens; masks are U8, BOOL, I32 or I64, nonzero = there; ids are I32 or I64).
Features are what the public module of the bridge is given: BLIP-2's and InstructBLIP's behind post_layernorm (LAVIS: ln_vision),
IDEFICS' with the class token and before post_layernorm.

open-flamingo, idefics
  reads   features  [B, N, S, features]        or media [B, N, latents, width], which skips the resampler
          text      [B, L, width]              optional, for every gated block; or text.I for the block with number I
          media_locations       [B, L]         open-flamingo: where media stand; or media_index I32 [B, L]
          image_attention_mask  [B, L, N]      idefics
          Without them every row of text sees all media, which is said.
  writes  media     [B, N, latents, width];  text.I [B, L, width] for each block
xgen-mm, idefics2
  reads   features  [B, N, S, features] or [N, S, features], feature_mask [B, N, S] or [N, S] (optional)
  writes  media     [B, N, latents, out]
mllama
  reads   features  [B, N, tiles, S, features] or media [B, N, tiles, S, width]
          text, text.I (as above), cross_attention_mask [B, L, N, tiles]
  writes  media     [B, N, tiles, S, width];  text.I [B, L, width]
blip-2, instructblip, lavis
  reads   features  [B, S, features]
          text_ids  [B, L], text_mask [B, L]   instructblip: the instruction; otherwise the text to match, optional
          query_embeds [B, queries, width]     where the checkpoint is a Q-Former that was saved alone
  writes  queries   [B, queries, width];  projected [B, queries, language width]
          image_embeds [B, queries, E], text_embeds [B, 1, E], itm_logits [B, 1, 2]   where the checkpoint has those heads

What was written is listed on standard output. An output with NaN or infinity that the inputs do not have is warned of on standard error.

Exit status: 0 success, 1 a failure, or every number of every output is NaN (the file is written all the same), 2 wrong usage.")]
pub struct Run {
    /// A safetensors file, an index file, or a folder with either
    #[arg(long, value_name = "PATH")]
    checkpoint: PathBuf,
    /// The inputs, one safetensors file
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Where to write the outputs: a regular file appears whole or not at all, a device or named
    /// pipe is written to
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Where to run
    #[arg(long, default_value = "cpu", value_parser = choices::device(&DeviceKind::ALL))]
    device: DeviceKind,
    /// Element type of activations and matrices; f64 with --device reference only
    #[arg(long, default_value = "f32", value_parser = choices::dtype(&DTYPES))]
    dtype: DType,
    /// Frames of each medium (resamplers with frame embeddings) [default: 1]
    #[arg(long, value_name = "N")]
    frames: Option<usize>,
    #[command(flatten)]
    choice: CheckpointChoice,
}

const DTYPES: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

impl Run {
    /// Runs and writes the outputs.
    pub fn run(&self) -> Result<ExitCode, Error> {
        let (kind, dtype) = (self.device, self.dtype);
        if dtype == DType::F64 && kind != DeviceKind::Reference {
            say(format!("error: --dtype f64 is for --device reference only; {kind} computes in f32, f16 or bf16"));
            return Ok(ExitCode::from(2));
        }
        let mut output = Output::new(&self.output)?;
        let checkpoint = self.choice.open(&self.checkpoint)?;
        for (what, path) in checkpoint.files().paths() {
            output.keep(what, path)?;
        }
        output.keep_names(checkpoint.files().siblings())?;
        let bridges = checkpoint.bridges(&self.choice.overrides())?;
        self.choice.expect_useful(&checkpoint, &bridges)?;
        let inputs = Inputs::open(&self.inputs)?;
        output.keep("inputs", &self.inputs)?;
        let skips = inputs.has("media") && bridges.qformer.is_none();
        choice::expect_frames(self.frames, &bridges, skips)?;
        self.choice.expect_read(&bridges, &inputs, skips)?;
        let mut run = Context {
            device: Device::open(kind)?,
            precision: Precision::uniform(dtype),
            inputs,
            outputs: Outputs::default(),
        };
        said(&bridges).for_each(say);
        let embedded = bridges.resampler.as_ref().is_some_and(|(_, weights)| weights.frame_embeddings.is_some());
        if embedded && !skips && self.frames.is_none() {
            say("note: --frames 1 is assumed: the resampler has embeddings of frames");
        }
        self.compute(&mut run, &bridges)?;
        run.inputs.expect_all_read()?;
        if run.outputs.is_empty() {
            return Err(run.inputs.missing("text", "of media alone nothing is computed"));
        }
        run.progress("writing");
        output.write(&run.outputs.bytes(&self.output)?)?;
        self.tell(&run, &output, &checkpoint, &bridges)
    }

    fn compute(&self, run: &mut Context, bridges: &Bridges<'_>) -> Result<(), Error> {
        if bridges.qformer.is_some() {
            return qformer::run(run, bridges);
        }
        let media = match (&bridges.resampler, &bridges.projector) {
            _ if run.inputs.has("media") => blocks::given(run, bridges)?,
            (Some((config, weights)), _) => {
                run.progress("resampler: packing weights");
                let bridge = PerceiverResampler::new(&run.device, config, weights, run.precision)?;
                resample(run, &bridge, self.frames.unwrap_or(1))?
            }
            (None, Some(projector)) => blocks::project(run, projector)?,
            (None, None) => return Err(run.inputs.missing("media", "this checkpoint makes none of features")),
        };
        blocks::run(run, &bridges.gated_blocks, &media)
    }

    /// Reports what was written, and which numbers are not finite.
    fn tell(
        &self,
        run: &Context,
        output: &Output,
        checkpoint: &Checkpoint,
        bridges: &Bridges<'_>,
    ) -> Result<ExitCode, Error> {
        run.progress("");
        let path = escaped(self.output.display());
        let count = run.outputs.len();
        let text = format!("{path}: {count} tensor{}\n{}", if count == 1 { "" } else { "s" }, run.outputs.list());
        let warnings = run.outputs.warnings(run)?;
        for line in &warnings {
            run.say(format!("warning: {path}: {line}"));
        }
        if !warnings.is_empty()
            && let Some((name, count)) = weights_not_finite(checkpoint, bridges)?
        {
            let Count { all, nan, infinite } = count;
            let counts = format!("{nan} of {all} numbers are NaN and {infinite} are infinite, in any precision");
            run.say(format!("warning: {}: tensor {}: {counts}", escaped(self.checkpoint.display()), escaped(name)));
        }
        // A stream of tensors must hold nothing else.
        if output.is_stdout() {
            run.say(text)
        } else {
            Printer::new().line(text)?
        }
        if run.outputs.are_all_nan()? {
            run.say(format!("error: {path}: written, but every number of every output is NaN"));
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Notes for before the numbers: the checkpoint's, and head counts that are guessed.
fn said(bridges: &Bridges<'_>) -> impl Iterator<Item = String> {
    let notes = bridges.notes.iter().map(|note| format!("note: {}", escaped(note)));
    let heads = bridges.origins.iter().filter(|o| o.value.ends_with("heads"));
    let assumed = heads.filter_map(|o| match &o.from {
        Provenance::Assumed(reason) => {
            Some(format!("note: {} {}: {} is assumed: {}", o.part, o.value, escaped(&o.shown), escaped(reason)))
        }
        _ => None,
    });
    notes.chain(assumed)
}

/// The first weight of the bridge that is not finite.
fn weights_not_finite(checkpoint: &Checkpoint, bridges: &Bridges<'_>) -> Result<Option<(String, Count)>, Error> {
    let files = checkpoint.files();
    for name in bridges.names.keys().filter(|name| files.info(name).is_some()) {
        let Ok(tensor) = files.tensor(name) else { continue };
        let count = Count::of(&tensor)?;
        if !count.is_finite() {
            return Ok(Some((name.clone(), count)));
        }
    }
    Ok(None)
}

/// `features` (and `feature_mask`) to `media`, kept on the device and copied to the outputs.
fn resample(run: &mut Context, bridge: &PerceiverResampler, frames: usize) -> Result<blocks::MediaTokens, Error> {
    let features = run.inputs.real("features")?;
    let shape = match *features.shape() {
        [batch, media, tokens, width] => [batch, media, tokens, width],
        [media, tokens, width] => [media, 1, tokens, width],
        ref other => return Err(run.inputs.fault("features", "3 or 4 dimensions", format!("{other:?}"))),
    };
    let c = bridge.config();
    let found = features.shape().to_vec();
    if shape[3] != c.feature_width() {
        let expected = format!("[batch, media, tokens, {}]", c.feature_width());
        return Err(run.inputs.fault("features", expected, format!("{found:?}")));
    }
    let (x, states) = tensors::upload(run, "features", features.reshape(&shape)?)?;
    let [batch, media, tokens, _] = shape;
    let bits = match run.inputs.has("feature_mask") {
        true => {
            // The features' dimensions without the last; one problem per medium.
            Some(run.inputs.bits(&run.device, "feature_mask", &found[..found.len() - 1], &[batch * media], tokens)?)
        }
        false => None,
    };
    let out_shape = [batch, media, c.latents, c.output_width()];
    let mut out = xattn::Tensor::zeros(&run.device, run.precision.activations, &out_shape)?;
    run.progress("resampler");
    let prepared = bridge.prepare(
        frames,
        ResamplerArgs {
            features: x.spec(),
            keys: bits.as_ref().map_or(Keys::All, |b| Keys::Bits(b.spec())),
            offsets: None,
            out: out.spec(),
        },
    )?;
    prepared.run(ResamplerArgs {
        features: x.view(),
        keys: bits.as_ref().map_or(Keys::All, |b| Keys::Bits(b.view())),
        offsets: None,
        out: out.view_mut(),
    })?;
    let states = run.outputs.keep("media", out.download(&run.device)?, "the resampler", &[&states])?;
    Ok(blocks::MediaTokens { tensor: out, shape: out_shape.into(), states })
}
