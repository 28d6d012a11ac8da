//! `config.json` as transformers saves it: the few fields that a bridge needs, with that library's defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};

use super::{Family, Heads, json};
use crate::ops::Activation;
use crate::{Error, Result};

/// Shapes and numbers of layers that a configuration promises, by the full names of tensors.
#[derive(Debug, Clone, Default)]
pub(super) struct Promise {
    pub shapes: BTreeMap<String, Vec<usize>>,
    pub layers: BTreeMap<String, usize>,
}

impl Promise {
    fn shape(&mut self, prefix: &str, name: &str, shape: &[usize]) {
        self.shapes.insert(format!("{prefix}{name}"), shape.to_vec());
    }
}

/// What a bridge needs of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `model_type`.
    pub model_type: String,
    pub(super) view: View,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum View {
    Idefics(Idefics),
    Idefics2(Box<Idefics2>),
    Mllama(MllamaText, MllamaVision),
    QFormer(QFormer),
    FlamingoMini(FlamingoMini),
    Other,
}

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    model_type: String,
    /// flamingo-mini's configuration has no model type, but always this.
    resampler_act: Option<serde::de::IgnoredAny>,
}

/// Defaults are those of transformers' classes, which save only what differs from them.
macro_rules! view {
    ($(#[$meta:meta])* $name:ident { $($field:ident : $type:ty = $default:expr),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Deserialize)]
        #[serde(default)]
        pub(super) struct $name { $(pub $field: $type),* }

        impl Default for $name {
            fn default() -> Self {
                $name { $($field: $default),* }
            }
        }
    };
}

view!(Idefics {
    hidden_size: u32 = 4096,
    intermediate_size: u32 = 11008,
    num_hidden_layers: u32 = 32,
    num_attention_heads: u32 = 32,
    cross_layer_interval: u32 = 1,
    rms_norm_eps: f32 = 1e-6,
    qk_layer_norms: bool = false,
    use_resampler: bool = false,
    alpha_type: String = "float".into(),
    vision_config: IdeficsVision = IdeficsVision::default(),
    perceiver_config: IdeficsPerceiver = IdeficsPerceiver::default(),
});
view!(IdeficsVision { embed_dim: u32 = 768 });
view!(IdeficsPerceiver {
    resampler_n_latents: u32 = 64,
    resampler_depth: u32 = 6,
    resampler_n_heads: u32 = 16,
    resampler_head_dim: u32 = 96,
    qk_layer_norms_perceiver: bool = false,
});
view!(Idefics2 {
    vision_config: Idefics2Vision = Idefics2Vision::default(),
    perceiver_config: Idefics2Perceiver = Idefics2Perceiver::default(),
    text_config: Idefics2Text = Idefics2Text::default(),
});
view!(Idefics2Vision { hidden_size: u32 = 768 });
view!(Idefics2Text { hidden_size: u32 = 4096, intermediate_size: u32 = 14336, rms_norm_eps: f32 = 1e-5 });
view!(Idefics2Perceiver {
    hidden_size: u32 = 4096,
    rms_norm_eps: f32 = 1e-6,
    resampler_n_latents: u32 = 64,
    resampler_depth: u32 = 3,
    resampler_n_heads: u32 = 16,
    resampler_head_dim: u32 = 96,
    num_key_value_heads: u32 = 4,
});
view!(MllamaText {
    hidden_size: u32 = 4096,
    intermediate_size: u32 = 14336,
    num_hidden_layers: u32 = 40,
    num_attention_heads: u32 = 32,
    num_key_value_heads: u32 = 8,
    rms_norm_eps: f32 = 1e-5,
    cross_attention_layers: Option<Layers> = None,
});
view!(MllamaVision { vision_output_dim: u32 = 7680 });
view!(Mllama {
    text_config: MllamaText = MllamaText::default(),
    vision_config: MllamaVision = MllamaVision::default()
});
view!(FlamingoMini {
    xattn_heads: u32 = 8,
    xattn_act: String = "gelu".into(),
    resampler_heads: u32 = 8,
    resampler_act: String = "gelu".into(),
});
view!(QFormer { num_query_tokens: u32 = 32, qformer_config: QFormerPart = QFormerPart::default() });
view!(QFormerPart {
    hidden_size: u32 = 768,
    num_hidden_layers: u32 = 12,
    num_attention_heads: u32 = 12,
    intermediate_size: u32 = 3072,
    layer_norm_eps: f32 = 1e-12,
    cross_attention_frequency: u32 = 2,
    encoder_hidden_size: u32 = 1408,
});

/// Promised layers are read one by one: a number that no model has would only cost time.
const MAX_LAYERS: usize = 10_000;

/// Numbers of layers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layers(Vec<u32>);

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Layers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of layers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Layers, A::Error> {
                let mut layers = Vec::new();
                while let Some(layer) = list.next_element()? {
                    if layers.len() == MAX_LAYERS {
                        return Err(A::Error::custom(format_args!("expected at most {MAX_LAYERS} layers, found more")));
                    }
                    layers.push(layer);
                }
                Ok(Layers(layers))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

impl MllamaText {
    /// Indices of the cross-attention layers.
    pub fn cross_layers(&self) -> Vec<usize> {
        match &self.cross_attention_layers {
            Some(Layers(layers)) => layers.iter().map(|&i| i as usize).collect(),
            None => (3..self.num_hidden_layers as usize).step_by(5).collect(),
        }
    }

    pub fn heads(&self) -> Heads {
        Heads { heads: self.num_attention_heads as usize, kv_heads: self.num_key_value_heads as usize }
    }

    /// Promises of the layer below `prefix`, whose q, k and gate projections have these names.
    pub fn promise(&self, p: &mut Promise, prefix: &str, [q, k, gate]: [&str; 3]) {
        let width = self.hidden_size as usize;
        let head_dim = width / (self.num_attention_heads as usize).max(1);
        p.shape(prefix, &format!("{q}.weight"), &[width, width]);
        p.shape(prefix, &format!("{k}.weight"), &[self.num_key_value_heads as usize * head_dim, width]);
        p.shape(prefix, &format!("{gate}.weight"), &[self.intermediate_size as usize, width]);
    }
}

impl Idefics {
    /// Promises of the resampler below `prefix`.
    pub fn promise_resampler(&self, p: &mut Promise, prefix: &str) {
        let (c, width) = (&self.perceiver_config, self.vision_config.embed_dim as usize);
        let inner = c.resampler_n_heads as usize * c.resampler_head_dim as usize;
        p.shape(prefix, "latents", &[c.resampler_n_latents as usize, width]);
        p.shape(prefix, "blocks.0.0.q_proj.weight", &[inner, width]);
        p.shape(prefix, "blocks.0.1.fc.weight", &[4 * width, width]);
        p.layers.insert(format!("{prefix}blocks."), c.resampler_depth as usize);
    }

    /// Promises of the gated block below `prefix`.
    pub fn promise_block(&self, p: &mut Promise, prefix: &str) {
        let width = self.hidden_size as usize;
        p.shape(prefix, "cross_attn.q_proj.weight", &[width, width]);
        p.shape(prefix, "cross_attn.k_proj.weight", &[width, self.vision_config.embed_dim as usize]);
        p.shape(prefix, "mlp.gate_proj.weight", &[self.intermediate_size as usize, width]);
    }

    /// Number of gated blocks.
    pub fn blocks(&self) -> usize {
        (self.num_hidden_layers / self.cross_layer_interval.max(1)) as usize
    }
}

impl Idefics2 {
    /// Width and eps of the perceiver: transformers takes the text's where the widths differ (old files of the hub).
    pub fn width_and_eps(&self) -> (usize, f32) {
        let (c, text) = (&self.perceiver_config, &self.text_config);
        if c.hidden_size == text.hidden_size {
            (c.hidden_size as usize, c.rms_norm_eps)
        } else {
            (text.hidden_size as usize, text.rms_norm_eps)
        }
    }

    /// Promises of the connector below `prefix`.
    pub fn promise(&self, p: &mut Promise, prefix: &str) {
        let (c, (width, _)) = (&self.perceiver_config, self.width_and_eps());
        let head_dim = c.resampler_head_dim as usize;
        let below = format!("{prefix}perceiver_resampler.");
        p.shape(&below, "latents", &[c.resampler_n_latents as usize, width]);
        p.shape(&below, "layers.0.self_attn.q_proj.weight", &[c.resampler_n_heads as usize * head_dim, width]);
        p.shape(&below, "layers.0.self_attn.k_proj.weight", &[c.num_key_value_heads as usize * head_dim, width]);
        p.shape(&below, "layers.0.mlp.gate_proj.weight", &[4 * width, width]);
        p.layers.insert(format!("{below}layers."), c.resampler_depth as usize);
        let hidden = self.text_config.intermediate_size as usize;
        p.shape(prefix, "modality_projection.gate_proj.weight", &[hidden, self.vision_config.hidden_size as usize]);
    }
}

impl QFormer {
    /// Promises of the Q-Former whose layers are below `layers`, for example `qformer.encoder.layer.`.
    pub fn promise(&self, p: &mut Promise, layers: &str) {
        let c = &self.qformer_config;
        let (width, encoder) = (c.hidden_size as usize, c.encoder_hidden_size as usize);
        p.layers.insert(layers.into(), c.num_hidden_layers as usize);
        p.shape(layers, "0.attention.output.dense.weight", &[width, width]);
        p.shape(layers, "0.crossattention.attention.key.weight", &[width, encoder]);
        for bank in ["", "_query"] {
            let name = format!("0.intermediate{bank}.dense.weight");
            p.shape(layers, &name, &[c.intermediate_size as usize, width]);
        }
    }
}

impl FlamingoMini {
    /// Of the resampler and of the gated blocks.
    pub fn activations(&self) -> Result<[Activation; 2], String> {
        let one = |field: &str, name: &str| match name {
            "gelu" => Ok(Activation::Gelu),
            "sqrelu" => Ok(Activation::SquaredRelu),
            "relu" => Ok(Activation::Relu),
            other => Err(format!("{field}: expected gelu, sqrelu or relu, found {}", json::brief(other))),
        };
        Ok([one("resampler_act", &self.resampler_act)?, one("xattn_act", &self.xattn_act)?])
    }
}

impl ModelConfig {
    /// Parses the text of `path`.
    ///
    /// # Errors
    /// [`Error::File`] with the field that is not what it should be.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        fn read<'t, T: Deserialize<'t>>(path: &Path, text: &'t str) -> Result<T> {
            json::parse(text).map_err(|e| Error::file(path, format!("not a model's configuration: {e}")))
        }
        let head: Head = read(path, text)?;
        let view = match Family::of_model_type(&head.model_type) {
            Some(Family::Idefics) => View::Idefics(read(path, text)?),
            Some(Family::Idefics2) => View::Idefics2(read(path, text)?),
            Some(Family::Mllama) if head.model_type == "mllama_text_model" => {
                View::Mllama(read(path, text)?, MllamaVision::default())
            }
            Some(Family::Mllama) => {
                let Mllama { text_config, vision_config } = read(path, text)?;
                View::Mllama(text_config, vision_config)
            }
            Some(Family::Blip2 | Family::InstructBlip) => View::QFormer(read(path, text)?),
            _ if head.resampler_act.is_some() => View::FlamingoMini(read(path, text)?),
            _ => View::Other,
        };
        let config = ModelConfig { model_type: head.model_type, view };
        config.check().map_err(|fault| Error::file(path, fault))?;
        Ok(config)
    }

    /// The family that the configuration names.
    pub fn family(&self) -> Option<Family> {
        match self.view {
            View::FlamingoMini(_) => Some(Family::OpenFlamingo),
            _ => Family::of_model_type(&self.model_type),
        }
    }

    fn check(&self) -> Result<(), String> {
        let (heads, eps): (Vec<(&str, u32)>, f32) = match &self.view {
            View::Idefics(c) => (
                vec![
                    ("num_attention_heads", c.num_attention_heads),
                    ("resampler_n_heads", c.perceiver_config.resampler_n_heads),
                    ("cross_layer_interval", c.cross_layer_interval),
                ],
                c.rms_norm_eps,
            ),
            View::Idefics2(c) => (
                vec![
                    ("resampler_n_heads", c.perceiver_config.resampler_n_heads),
                    ("num_key_value_heads", c.perceiver_config.num_key_value_heads),
                ],
                c.width_and_eps().1,
            ),
            View::Mllama(c, _) => (
                vec![("num_attention_heads", c.num_attention_heads), ("num_key_value_heads", c.num_key_value_heads)],
                c.rms_norm_eps,
            ),
            View::QFormer(c) => (
                vec![
                    ("num_attention_heads", c.qformer_config.num_attention_heads),
                    ("cross_attention_frequency", c.qformer_config.cross_attention_frequency),
                ],
                c.qformer_config.layer_norm_eps,
            ),
            View::FlamingoMini(c) => {
                c.activations()?;
                (vec![("xattn_heads", c.xattn_heads), ("resampler_heads", c.resampler_heads)], 0.0)
            }
            View::Other => return Ok(()),
        };
        if let Some((field, _)) = heads.iter().find(|(_, n)| *n == 0) {
            return Err(format!("{field}: expected at least 1, found 0"));
        }
        let layers = match &self.view {
            View::Idefics(c) => c.perceiver_config.resampler_depth.max(c.num_hidden_layers),
            View::Idefics2(c) => c.perceiver_config.resampler_depth,
            View::Mllama(c, _) => c.num_hidden_layers,
            View::QFormer(c) => c.qformer_config.num_hidden_layers,
            View::FlamingoMini(_) | View::Other => 0,
        };
        if layers as usize > MAX_LAYERS {
            return Err(format!("number of layers: expected at most {MAX_LAYERS}, found {layers}"));
        }
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(format!("eps of the norms: expected a number of at least 0, found {eps}"));
        }
        Ok(())
    }
}
