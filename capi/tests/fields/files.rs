//! Small checkpoints, written by the test.

#![allow(dead_code, reason = "each test uses a part")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Names and shapes; what a tensor holds follows from its name.
pub type Tensors = Vec<(String, Vec<usize>)>;

/// Odd multiples of 1/16, other ones for every name: sums of products are exact, and no gate is
/// closed.
pub fn values(name: &str, n: usize) -> Vec<f64> {
    let mut state =
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (2.0 * (state >> 60) as f64 - 15.0) / 16.0
    };
    (0..n).map(|_| next()).collect()
}

/// A folder that is deleted with its files.
pub struct Folder(PathBuf);

impl Folder {
    /// With these tensors in `model.safetensors` and, if it is not empty, this `config.json`.
    pub fn new(tensors: &Tensors, config: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("xattn-c-fields-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = Folder(std::env::temp_dir().join(name));
        std::fs::create_dir(&folder.0).unwrap();
        folder.write("model.safetensors", tensors);
        if !config.is_empty() {
            folder.text("config.json", config);
        }
        folder
    }

    pub fn text(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    pub fn write(&self, name: &str, tensors: &Tensors) {
        let (mut entries, mut data) = (Vec::new(), Vec::new());
        for (name, shape) in tensors {
            let from = data.len();
            let elements = values(name, shape.iter().product());
            data.extend(elements.iter().flat_map(|&x| (x as f32).to_le_bytes()));
            let place = format!(r#""data_offsets":[{from},{}]"#, data.len());
            entries.push(format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},{place}}}"#));
        }
        let header = format!("{{{}}}", entries.join(","));
        let whole = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        std::fs::write(self.0.join(name), whole).unwrap();
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A message, in which the folders of this test are `FOLDER`.
pub fn without_folder(text: &str) -> String {
    let base = std::env::temp_dir().join(format!("xattn-c-fields-{}-", std::process::id()));
    let mut parts = text.split(base.to_str().unwrap());
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |said, part| format!("{said}FOLDER{}", part.trim_start_matches(|c: char| c.is_ascii_digit())))
}

pub fn below(prefix: &str, tensors: Tensors) -> Tensors {
    tensors.into_iter().map(|(name, shape)| (format!("{prefix}{name}"), shape)).collect()
}

fn named(tensors: &[(&str, &[usize])]) -> Tensors {
    tensors.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
}

fn layer_norm(name: &str, width: usize) -> Tensors {
    vec![(format!("{name}.weight"), vec![width]), (format!("{name}.bias"), vec![width])]
}

fn dense(name: &str, rows: usize, columns: usize) -> Tensors {
    vec![(format!("{name}.weight"), vec![rows, columns]), (format!("{name}.bias"), vec![rows])]
}

/// OpenFlamingo's resampler: `latents` of width 8, one layer of 8 heads of 2.
pub fn resampler(latents: usize, frames: usize) -> Tensors {
    let mut t = named(&[
        ("latents", &[latents, 8]),
        ("layers.0.0.to_q.weight", &[16, 8]),
        ("layers.0.0.to_kv.weight", &[32, 8]),
        ("layers.0.0.to_out.weight", &[8, 16]),
        ("layers.0.1.1.weight", &[32, 8]),
        ("layers.0.1.3.weight", &[8, 32]),
    ]);
    for norm in ["norm", "layers.0.0.norm_media", "layers.0.0.norm_latents", "layers.0.1.0"] {
        t.extend(layer_norm(norm, 8));
    }
    if frames > 0 {
        t.push(("frame_embs".into(), vec![frames, 8]));
    }
    t
}

/// OpenFlamingo's gated block over text of this width and media of that one: 8 heads, and `inner`
/// columns of all of them.
pub fn block(width: usize, media: usize, inner: usize) -> Tensors {
    let mut t = named(&[
        ("attn.to_q.weight", &[inner, width]),
        ("attn.to_kv.weight", &[2 * inner, media]),
        ("attn.to_out.weight", &[width, inner]),
        ("attn_gate", &[1]),
        ("ff.1.weight", &[4 * width, width]),
        ("ff.3.weight", &[width, 4 * width]),
        ("ff_gate", &[1]),
    ]);
    t.extend(layer_norm("attn.norm", width));
    t.extend(layer_norm("ff.0", width));
    t
}

pub const BLOCK: &str = "lang_encoder.gated_cross_attn_layers.0.";

/// Resampler and gated block.
pub fn flamingo() -> Tensors {
    [below("perceiver.", resampler(2, 0)), below(BLOCK, block(8, 8, 16))].concat()
}

/// Llama-3.2-Vision with a projector and one cross-attention layer of width 16: 2 heads of 8.
pub fn mllama() -> Tensors {
    let layer = named(&[
        ("cross_attn.q_proj.weight", &[16, 16]),
        ("cross_attn.k_proj.weight", &[16, 16]),
        ("cross_attn.v_proj.weight", &[16, 16]),
        ("cross_attn.o_proj.weight", &[16, 16]),
        ("cross_attn.q_norm.weight", &[8]),
        ("cross_attn.k_norm.weight", &[8]),
        ("cross_attn_attn_gate", &[1]),
        ("cross_attn_mlp_gate", &[1]),
        ("input_layernorm.weight", &[16]),
        ("post_attention_layernorm.weight", &[16]),
        ("mlp.gate_proj.weight", &[24, 16]),
        ("mlp.up_proj.weight", &[24, 16]),
        ("mlp.down_proj.weight", &[16, 24]),
    ]);
    [dense("multi_modal_projector", 16, 20), below("language_model.model.layers.0.", layer)].concat()
}

pub const MLLAMA: &str = r#"{"model_type": "mllama", "text_config": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
"num_attention_heads": 2, "num_key_value_heads": 2, "cross_attention_layers": [0]}, "vision_config": {"vision_output_dim": 20}}"#;

/// BLIP-2: one layer of 2 heads over features.
pub fn blip2(queries: usize, width: usize, features: usize, language: usize) -> Tensors {
    let mut t = named(&[
        ("query_tokens", &[1, queries, width]),
        ("embeddings.word_embeddings.weight", &[9, width]),
        ("embeddings.position_embeddings.weight", &[5, width]),
    ]);
    t.extend(layer_norm("qformer.layernorm", width));
    for (kind, input) in [("attention", width), ("crossattention", features)] {
        let part = format!("qformer.encoder.layer.0.{kind}.");
        for (name, input) in [("query", width), ("key", input), ("value", input)] {
            t.extend(dense(&format!("{part}attention.{name}"), width, input));
        }
        t.extend(dense(&format!("{part}output.dense"), width, width));
        t.extend(layer_norm(&format!("{part}output.LayerNorm"), width));
    }
    for bank in ["", "_query"] {
        let layer = "qformer.encoder.layer.0.";
        t.extend(dense(&format!("{layer}intermediate{bank}.dense"), 2 * width, width));
        t.extend(dense(&format!("{layer}output{bank}.dense"), width, 2 * width));
        t.extend(layer_norm(&format!("{layer}output{bank}.LayerNorm"), width));
    }
    if language > 0 {
        t.extend(dense("language_projection", language, width));
    }
    t
}

pub fn blip2_config(queries: usize, width: usize, features: usize) -> String {
    format!(
        r#"{{"model_type": "blip-2", "num_query_tokens": {queries}, "qformer_config": {{"hidden_size": {width}, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": {}, "encoder_hidden_size": {features}}}}}"#,
        2 * width
    )
}

/// Idefics2's connector: features 10, width 16, 2 heads of 8 and one of K and V, one layer.
pub fn idefics2() -> (Tensors, String) {
    let tensors = named(&[
        ("connector.modality_projection.gate_proj.weight", &[20, 10]),
        ("connector.modality_projection.up_proj.weight", &[20, 10]),
        ("connector.modality_projection.down_proj.weight", &[16, 20]),
        ("connector.perceiver_resampler.latents", &[3, 16]),
        ("connector.perceiver_resampler.norm.weight", &[16]),
        ("connector.perceiver_resampler.layers.0.input_latents_norm.weight", &[16]),
        ("connector.perceiver_resampler.layers.0.input_context_norm.weight", &[16]),
        ("connector.perceiver_resampler.layers.0.post_attention_layernorm.weight", &[16]),
        ("connector.perceiver_resampler.layers.0.self_attn.q_proj.weight", &[16, 16]),
        ("connector.perceiver_resampler.layers.0.self_attn.k_proj.weight", &[8, 16]),
        ("connector.perceiver_resampler.layers.0.self_attn.v_proj.weight", &[8, 16]),
        ("connector.perceiver_resampler.layers.0.self_attn.o_proj.weight", &[16, 16]),
        ("connector.perceiver_resampler.layers.0.mlp.gate_proj.weight", &[64, 16]),
        ("connector.perceiver_resampler.layers.0.mlp.up_proj.weight", &[64, 16]),
        ("connector.perceiver_resampler.layers.0.mlp.down_proj.weight", &[16, 64]),
    ]);
    let config = r#"{"model_type": "idefics2", "vision_config": {"hidden_size": 10}, "text_config": {"hidden_size": 16,
        "intermediate_size": 20}, "perceiver_config": {"hidden_size": 16, "resampler_n_latents": 3, "resampler_depth": 1,
        "resampler_n_heads": 2, "resampler_head_dim": 8, "num_key_value_heads": 1, "rms_norm_eps": 1e-5}}"#;
    (below("model.", tensors), config.into())
}
