//! Which family a checkpoint belongs to: what its configuration says, else what its tensors are called.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::TensorInfo;
use crate::{Error, Result};

/// The families of checkpoints, each with the names of its public libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// flamingo-pytorch, OpenFlamingo, Otter, flamingo-mini: a resampler and gated blocks.
    OpenFlamingo,
    /// xGen-MM (BLIP-3): a resampler with a projection.
    XgenMm,
    /// IDEFICS 9B and 80B: a resampler and gated blocks.
    Idefics,
    /// Idefics2: a connector.
    Idefics2,
    /// Llama-3.2-Vision: a projector and cross-attention layers.
    Mllama,
    /// BLIP-2 as transformers saves it: a Q-Former and its heads.
    Blip2,
    /// InstructBLIP as transformers saves it.
    InstructBlip,
    /// BLIP-2 and InstructBLIP as LAVIS saves them.
    Lavis,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 8] = [
        Family::OpenFlamingo,
        Family::XgenMm,
        Family::Idefics,
        Family::Idefics2,
        Family::Mllama,
        Family::Blip2,
        Family::InstructBlip,
        Family::Lavis,
    ];

    /// The name used in messages and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Family::OpenFlamingo => "open-flamingo",
            Family::XgenMm => "xgen-mm",
            Family::Idefics => "idefics",
            Family::Idefics2 => "idefics2",
            Family::Mllama => "mllama",
            Family::Blip2 => "blip-2",
            Family::InstructBlip => "instructblip",
            Family::Lavis => "lavis",
        }
    }

    /// The family of a `model_type` or of the model type of a part saved alone.
    pub(super) fn of_model_type(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "idefics" => Family::Idefics,
            "idefics2" => Family::Idefics2,
            "mllama" | "mllama_text_model" => Family::Mllama,
            "blip-2" | "blip_2" => Family::Blip2,
            "instructblip" => Family::InstructBlip,
            "flamingo" | "otter" => Family::OpenFlamingo,
            "xgenmm" => Family::XgenMm,
            _ => return None,
        })
    }

    /// The family whose names these tensors have: every name that only one family gives counts for it.
    pub(super) fn of_tensors(tensors: &BTreeMap<Box<str>, TensorInfo>) -> Vec<Self> {
        let any = |test: &dyn Fn(&str) -> bool| tensors.keys().any(|name| test(name));
        let has = |text: &str| any(&|name| name.contains(text));
        let ends = |text: &str| any(&|name| name.ends_with(text));
        let mut found = Vec::new();
        let resampler = ends("layers.0.0.norm_media.weight") || ends("layers.0.norm_media.weight");
        if resampler && ends("projection.weight") && !ends("attn_gate") && has("vision_tokenizer.") {
            found.push(Family::XgenMm);
        } else if resampler || any(&is_open_gate) {
            found.push(Family::OpenFlamingo);
        }
        if has("perceiver_resampler.blocks.") || has("gated_cross_attn_layers.") && ends("alpha_cross_attn") {
            found.push(Family::Idefics);
        }
        if has("perceiver_resampler.") && has(".input_context_norm.") {
            found.push(Family::Idefics2);
        }
        if has(".cross_attn.q_norm.") || has("cross_attention_layers.") && ends("gate_ffwd") {
            found.push(Family::Mllama);
        }
        if has("Qformer.bert.") {
            found.push(Family::Lavis);
        }
        if has("qformer.embeddings.layernorm.") {
            found.push(Family::InstructBlip);
        } else if has("qformer.encoder.layer.") {
            found.push(Family::Blip2);
        }
        found
    }
}

/// Gates of flamingo-pytorch, OpenFlamingo and Otter (`attn_gate`), and of flamingo-mini (`alpha_attn`); not Llama's `cross_attn_attn_gate`.
pub(super) fn is_open_gate(name: &str) -> bool {
    ["attn_gate", "alpha_attn"].iter().any(|gate| name == *gate || name.ends_with(&format!(".{gate}")))
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Family {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Family::ALL.into_iter().find(|f| f.name() == text).ok_or_else(|| {
            let names: Vec<_> = Family::ALL.iter().map(|f| f.name()).collect();
            Error::argument("checkpoint", "family", format!("one of {}", names.join(", ")), text)
        })
    }
}
