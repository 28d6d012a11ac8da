//! `xattn run`.

mod blocks;
mod qformer;
mod tensors;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use xattn::bridge::{PerceiverResampler, Precision, ResamplerArgs};
use xattn::checkpoint::mllama::EmptyRowBehaviour;
use xattn::checkpoint::{AdapterChoice, Checkpoint, Family, Overrides};
use xattn::ops::Keys;
use xattn::{DType, Device, DeviceKind, Error};

use tensors::{Inputs, Outputs};

/// How to read a checkpoint.
#[derive(Args)]
pub struct CheckpointChoice {
    /// Family [default: what config.json or the tensors' names say]: open-flamingo, xgen-mm, idefics, idefics2, mllama, blip-2,
    /// instructblip, lavis
    #[arg(long)]
    family: Option<String>,
    /// Query heads of the resampler or Q-Former, where no configuration says how many
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Query heads of the gated blocks, where no configuration says how many
    #[arg(long, value_name = "N")]
    block_heads: Option<usize>,
    /// Of several copies in one checkpoint (an EMA, a teacher), read the one whose tensors' names begin with this; empty: the one that no
    /// copy's prefix precedes
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// A LoRA adapter to merge: its folder or its file of weights; `none`: not the one beside the checkpoint [default: that one]
    #[arg(long, value_name = "PATH")]
    adapter: Option<PathBuf>,
    /// Text sees all media before it, not only the last one (OpenFlamingo)
    #[arg(long)]
    attend_preceding: bool,
    /// Llama-3.2-Vision: text before the first image attends to all media, as in transformers (default: to none, as in Meta's code)
    #[arg(long)]
    transformers_empty_rows: bool,
}

impl CheckpointChoice {
    /// Opens the checkpoint, as the named family and with the named adapter.
    pub fn open(&self, path: &Path) -> Result<Checkpoint, Error> {
        let family: Option<Family> = self.family.as_deref().map(str::parse).transpose()?;
        let adapter = match self.adapter.as_deref() {
            None => AdapterChoice::Beside,
            Some(none) if none.as_os_str() == "none" => AdapterChoice::None,
            Some(path) => AdapterChoice::At(path),
        };
        Checkpoint::open_with(path, family, adapter)
    }

    /// The rest.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            prefix: self.prefix.clone(),
            heads: self.heads,
            block_heads: self.block_heads,
            attend_preceding: self.attend_preceding,
            empty_rows: if self.transformers_empty_rows {
                EmptyRowBehaviour::Transformers
            } else {
                EmptyRowBehaviour::Meta
            },
        }
    }
}

/// Run the bridge of a checkpoint: features and text states in, bridge outputs out.
#[derive(Args)]
#[command(after_help = "\
Tensors by family (B batch, N media, S feature tokens, L text tokens; masks are U8, BOOL, I32 or I64, nonzero = there; ids are I32 or I64).
Features are what the public module of the bridge is given: BLIP-2's and InstructBLIP's behind post_layernorm (LAVIS: ln_vision),
IDEFICS' with the class token and before post_layernorm.

open-flamingo, idefics
  reads   features  [B, N, S, features]        or media [B, N, latents, width], which skips the resampler
          text      [B, L, width]              optional, for every gated block; or text.I for the block with number I
          media_locations       [B, L]         open-flamingo: where media stand; or media_index I32 [B, L]; without: no mask
          image_attention_mask  [B, L, N]      idefics
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
  writes  queries   [B, queries, width];  projected [B, queries, language width]
          image_embeds [B, queries, E], text_embeds [B, 1, E], itm_logits [B, 1, 2]   where the checkpoint has those heads

Exit status: 0 success, 1 a failure, 2 wrong usage.")]
pub struct Run {
    /// A safetensors file, an index file, or a folder with either
    #[arg(long, value_name = "PATH")]
    checkpoint: PathBuf,
    /// The inputs, one safetensors file
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Where to write the outputs; the file appears whole or not at all
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Where to run
    #[arg(long, value_enum, default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
    /// Element type of activations and matrices
    #[arg(long, value_enum, default_value_t = DTypeChoice::F32)]
    dtype: DTypeChoice,
    /// Frames of each medium (resamplers with frame embeddings)
    #[arg(long, value_name = "N", default_value_t = 1)]
    frames: usize,
    #[command(flatten)]
    choice: CheckpointChoice,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceChoice {
    Reference,
    Cpu,
    Wgpu,
    Cuda,
}

#[derive(Clone, Copy, ValueEnum)]
enum DTypeChoice {
    F64,
    F32,
    F16,
    Bf16,
}

/// What every step of a run needs.
struct Context {
    device: Device,
    precision: Precision,
    inputs: Inputs,
    outputs: Outputs,
    terminal: bool,
}

impl Context {
    /// A line on the terminal that the next one replaces.
    fn progress(&self, what: &str) {
        if self.terminal {
            eprint!("\r\x1b[K{what}");
        }
    }
}

impl Run {
    /// Runs and writes the outputs.
    pub fn run(&self) -> Result<ExitCode, Error> {
        let device = Device::open(match self.device {
            DeviceChoice::Reference => DeviceKind::Reference,
            DeviceChoice::Cpu => DeviceKind::Cpu,
            DeviceChoice::Wgpu => DeviceKind::Wgpu,
            DeviceChoice::Cuda => DeviceKind::Cuda,
        })?;
        let dtype = match self.dtype {
            DTypeChoice::F64 => DType::F64,
            DTypeChoice::F32 => DType::F32,
            DTypeChoice::F16 => DType::F16,
            DTypeChoice::Bf16 => DType::BF16,
        };
        Outputs::check(&self.output)?;
        let checkpoint = self.choice.open(&self.checkpoint)?;
        let bridges = checkpoint.bridges(&self.choice.overrides())?;
        let mut run = Context {
            device,
            precision: Precision::uniform(dtype),
            inputs: Inputs::open(&self.inputs)?,
            outputs: Outputs::default(),
            terminal: std::io::stderr().is_terminal(),
        };
        if bridges.qformer.is_some() {
            qformer::run(&mut run, &bridges)?;
        } else {
            let media = match (&bridges.resampler, &bridges.projector) {
                _ if run.inputs.has("media") => blocks::given(&run, &bridges)?,
                (Some((config, weights)), _) => {
                    run.progress("resampler: packing weights");
                    let bridge = PerceiverResampler::new(&run.device, config, weights, run.precision)?;
                    resample(&mut run, &bridge, self.frames)?
                }
                (None, Some(projector)) => blocks::project(&mut run, projector)?,
                (None, None) => return Err(run.inputs.missing("media", "this checkpoint makes none of features")),
            };
            blocks::run(&mut run, &bridges.gated_blocks, &media)?;
        }
        run.inputs.expect_all_read()?;
        run.progress("writing");
        run.outputs.write(&self.output)?;
        run.progress("");
        Ok(ExitCode::SUCCESS)
    }
}

/// `features` (and `feature_mask`) to `media`, which stays on the device; a copy goes to the outputs.
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
    let x = tensors::upload(run, features.reshape(&shape)?)?;
    let [batch, media, tokens, _] = shape;
    let bits = match run.inputs.has("feature_mask") {
        true => {
            // As many dimensions as the features have, without the last; one problem per medium.
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
    run.outputs.keep("media", out.download(&run.device)?);
    Ok(blocks::MediaTokens { tensor: out, shape: out_shape.into() })
}
