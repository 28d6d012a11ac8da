//! `xattn inspect`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use xattn::checkpoint::{Bridges, Checkpoint};
use xattn::{Error, escaped};

use crate::print::Printer;
use crate::run::CheckpointChoice;

/// Show a checkpoint's family, configuration, bridge tensors and parameter counts.
#[derive(Args)]
pub struct Inspect {
    /// A safetensors file, an index file, or a folder with either
    path: PathBuf,
    #[command(flatten)]
    choice: CheckpointChoice,
    /// Leave out the list of tensors
    #[arg(long)]
    brief: bool,
}

impl Inspect {
    /// Prints to standard output.
    pub fn run(&self) -> Result<ExitCode, Error> {
        let checkpoint = self.choice.open(&self.path)?;
        let bridges = checkpoint.bridges(&self.choice.overrides())?;
        self.choice.expect_useful(&checkpoint, &bridges)?;
        let text = report(&checkpoint, &bridges, &checkpoint.parameters(&bridges)?, self.brief);
        Printer::new().line(text.trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Parts of a bridge, in the order in which a sample passes through them.
const PARTS: [&str; 9] = [
    "resampler",
    "projector",
    "gated blocks",
    "Q-Former",
    "embeddings",
    "language projection",
    "contrastive heads",
    "matching head",
    "language-model head",
];

fn report(
    checkpoint: &Checkpoint,
    bridges: &Bridges<'_>,
    parameters: &BTreeMap<&'static str, usize>,
    brief: bool,
) -> String {
    let mut text = String::new();
    let tensors = checkpoint.files().tensors();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<20} {value}");
    };
    line("family", checkpoint.family().to_string());
    let config = checkpoint.config().map_or("none", |c| c.model_type.as_str());
    line("config.json", escaped(config).to_string());
    let read = bridges.names.keys().filter(|name| tensors.contains_key(name.as_str())).count();
    line("files", format!("{}, {} tensors, {read} of them the bridge's", checkpoint.files().shards(), tensors.len()));
    if let Some((c, _)) = &bridges.resampler {
        line(
            "resampler",
            format!(
                "{} layers, {} latents, width {}, {} heads ({} K/V) of {}, hidden {}, {}, features {}, out {}{}",
                c.layers,
                c.latents,
                c.width,
                c.heads,
                c.kv_heads,
                c.head_dim,
                c.ffn_hidden,
                c.activation.name(),
                c.feature_width(),
                c.output_width(),
                if c.qk_norm.is_some() { ", norms of q and k" } else { "" },
            ),
        );
    }
    if let Some(projector) = bridges.projector.as_ref().and_then(|p| p.weight.first()) {
        line("projector", format!("{:?}", projector.shape()));
    }
    if let Some(first) = bridges.gated_blocks.first() {
        let c = &first.config;
        let at: Vec<String> = bridges.gated_blocks.iter().map(|b| b.index.to_string()).collect();
        line(
            "gated blocks",
            format!(
                "{} (at {}), width {}, media {}, {} heads ({} K/V) of {}, hidden {}, {}, {}",
                at.len(),
                at.join(" "),
                c.width,
                c.media_width,
                c.heads,
                c.kv_heads,
                c.head_dim,
                c.ffn_hidden,
                c.activation.name(),
                if first.weights.attention_gate.elements() == 1 { "scalar gates" } else { "gates per channel" },
            ),
        );
    }
    if let Some((c, _)) = &bridges.qformer {
        line(
            "Q-Former",
            format!(
                "{} layers, {} queries, width {}, {} heads of {}, hidden {}, features {}, cross-attention every {}",
                c.layers,
                c.queries,
                c.width,
                c.heads,
                c.head_dim(),
                c.ffn_hidden,
                c.encoder_width,
                c.cross_every
            ),
        );
    }
    line("parameters", parameters.values().sum::<usize>().to_string());
    for part in PARTS {
        let Some(&elements) = parameters.get(part) else { continue };
        line(&format!("  {part}"), elements.to_string());
        if part == "gated blocks" {
            line("    each of them", (elements / bridges.gated_blocks.len().max(1)).to_string());
        }
    }
    let _ = writeln!(text, "\n{:<35} from", "value");
    for origin in &bridges.origins {
        let value = format!("{} {} {}", origin.part, origin.value, escaped(&origin.shown));
        let _ = writeln!(text, "{value:<35} {}", escaped(&origin.from));
    }
    for note in &bridges.notes {
        let _ = writeln!(text, "\nnote: {}", escaped(note));
    }
    if !brief {
        let _ = writeln!(text);
        for (name, info) in bridges.names.keys().filter_map(|name| tensors.get_key_value(name.as_str())) {
            let _ = writeln!(text, "{:<5} {:<20} {}", info.dtype(), format!("{:?}", info.shape), escaped(name));
        }
    }
    text
}
