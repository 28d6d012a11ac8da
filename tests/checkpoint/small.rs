//! Small checkpoints of every family, and files of them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use xattn::checkpoint::{Bridges, Checkpoint, Family, Overrides};
use xattn::{DType, HostTensor};

/// Named tensors.
pub type Tensors = BTreeMap<String, HostTensor<'static>>;

/// A folder that is deleted when the test ends.
pub struct Folder(pub PathBuf);

impl Folder {
    /// Each is another one: tests of one name run side by side.
    pub fn new(name: &str) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("xattn-checkpoint-{process}-{number}-{name}"));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Different values for every name.
pub fn tensor(name: &str, shape: &[usize]) -> HostTensor<'static> {
    let mut state =
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Multiples of 1/8: exact in every float dtype.
            ((state >> 60) as f32 - 7.5) / 8.0 + 0.0625
        })
        .collect();
    HostTensor::from_slice(&values, shape).unwrap()
}

fn insert(to: &mut Tensors, prefix: &str, names: &[(&str, &[usize])]) {
    for (name, shape) in names {
        let name = format!("{prefix}{name}");
        to.insert(name.clone(), tensor(&name, shape));
    }
}

/// OpenFlamingo's resampler: width 16, 8 heads of 8, 3 latents, 2 layers.
pub fn open_flamingo_resampler() -> Tensors {
    let mut t = Tensors::new();
    insert(&mut t, "", &[("latents", &[3, 16]), ("norm.weight", &[16]), ("norm.bias", &[16])]);
    for i in 0..2 {
        insert(
            &mut t,
            &format!("layers.{i}.0."),
            &[
                ("norm_media.weight", &[16]),
                ("norm_media.bias", &[16]),
                ("norm_latents.weight", &[16]),
                ("norm_latents.bias", &[16]),
                ("to_q.weight", &[64, 16]),
                ("to_kv.weight", &[128, 16]),
                ("to_out.weight", &[16, 64]),
            ],
        );
        insert(
            &mut t,
            &format!("layers.{i}.1."),
            &[("0.weight", &[16]), ("0.bias", &[16]), ("1.weight", &[64, 16]), ("3.weight", &[16, 64])],
        );
    }
    t
}

/// OpenFlamingo's gated block: text 24, media 16.
pub fn open_flamingo_block() -> Tensors {
    let mut t = Tensors::new();
    insert(
        &mut t,
        "",
        &[
            ("attn.norm.weight", &[24]),
            ("attn.norm.bias", &[24]),
            ("attn.to_q.weight", &[64, 24]),
            ("attn.to_kv.weight", &[128, 16]),
            ("attn.to_out.weight", &[24, 64]),
            ("attn_gate", &[1]),
            ("ff.0.weight", &[24]),
            ("ff.0.bias", &[24]),
            ("ff.1.weight", &[96, 24]),
            ("ff.3.weight", &[24, 96]),
            ("ff_gate", &[1]),
        ],
    );
    t
}

/// Otter's names of the same resampler.
pub fn otter_resampler() -> Tensors {
    let names = [
        ("layers.0.0.", "layers.0."),
        ("layers.0.1.", "layers.0.feed_forward."),
        ("layers.1.0.", "layers.1."),
        ("layers.1.1.", "layers.1.feed_forward."),
    ];
    renamed(&open_flamingo_resampler(), &names)
}

/// Otter's names of the gated block.
pub const OTTER_BLOCK: [(&str, &str); 1] = [("ff.", "feed_forward.")];

/// flamingo-mini splits `to_kv`; stacked again they are the same rows. Embeddings of 2 frames.
pub fn mini_resampler() -> Tensors {
    let mut mini = open_flamingo_resampler();
    for i in 0..2 {
        let name = format!("layers.{i}.0.");
        let kv = mini.remove(&format!("{name}to_kv.weight")).unwrap();
        for (half, bytes) in ["to_k", "to_v"].iter().zip(kv.bytes().unwrap().chunks(kv.bytes().unwrap().len() / 2)) {
            let t = HostTensor::from_bytes(DType::F32, &[64, 16], bytes.to_vec()).unwrap();
            mini.insert(format!("{name}{half}.weight"), t);
        }
    }
    mini.insert("time_pos_emb".into(), tensor("time", &[2, 1, 16]));
    mini
}

/// flamingo-mini's names of the gated block.
pub const MINI_BLOCK: [(&str, &str); 3] = [("ff.", "ffw."), ("attn_gate", "alpha_attn"), ("ff_gate", "alpha_ffw")];

/// IDEFICS' resampler (2 heads of 8, q and k norms, 1 layer), block (2 heads of 16, channel gates).
pub fn idefics() -> (Tensors, Tensors) {
    let (mut r, mut g) = (Tensors::new(), Tensors::new());
    insert(&mut r, "", &[("latents", &[3, 12]), ("layer_norm.weight", &[12]), ("layer_norm.bias", &[12])]);
    for (name, width) in
        [("context_layer_norm", 12), ("latents_layer_norm", 12), ("q_layer_norm", 8), ("k_layer_norm", 8)]
    {
        insert(&mut r, &format!("blocks.0.0.{name}."), &[("weight", &[width]), ("bias", &[width])]);
    }
    for name in ["q_proj", "k_proj", "v_proj"] {
        insert(&mut r, &format!("blocks.0.0.{name}."), &[("weight", &[16, 12])]);
    }
    insert(
        &mut r,
        "blocks.0.",
        &[
            ("0.output_proj.weight", &[12, 16]),
            ("1.ln.weight", &[12]),
            ("1.ln.bias", &[12]),
            ("1.fc.weight", &[48, 12]),
            ("1.c_proj.weight", &[12, 48]),
        ],
    );
    insert(
        &mut g,
        "",
        &[
            ("alpha_cross_attn", &[1, 1, 32]),
            ("alpha_dense", &[1, 1, 32]),
            ("cross_attn.q_proj.weight", &[32, 32]),
            ("cross_attn.k_proj.weight", &[32, 12]),
            ("cross_attn.v_proj.weight", &[32, 12]),
            ("cross_attn.o_proj.weight", &[32, 32]),
            ("cross_attn.q_layer_norm.weight", &[16]),
            ("cross_attn.k_layer_norm.weight", &[16]),
            ("input_layernorm.weight", &[32]),
            ("post_attention_layernorm.weight", &[32]),
            ("mlp.gate_proj.weight", &[40, 32]),
            ("mlp.up_proj.weight", &[40, 32]),
            ("mlp.down_proj.weight", &[32, 40]),
        ],
    );
    (r, g)
}

/// The configuration of [`idefics`] with one gated block before each of two layers.
pub const IDEFICS_CONFIG: &str = r#"{"model_type": "idefics", "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
"num_attention_heads": 2, "cross_layer_interval": 1, "qk_layer_norms": true, "use_resampler": true, "alpha_type": "vector",
"vision_config": {"embed_dim": 12}, "perceiver_config": {"resampler_n_latents": 3, "resampler_depth": 1, "resampler_n_heads": 2,
"resampler_head_dim": 8, "qk_layer_norms_perceiver": true}}"#;

/// Idefics2's connector: features 10, width 16, 2 heads (1 K/V) of 8, 1 layer.
pub fn idefics2() -> Tensors {
    let mut t = Tensors::new();
    insert(
        &mut t,
        "modality_projection.",
        &[("gate_proj.weight", &[20, 10]), ("up_proj.weight", &[20, 10]), ("down_proj.weight", &[16, 20])],
    );
    insert(&mut t, "perceiver_resampler.", &[("latents", &[3, 16]), ("norm.weight", &[16])]);
    insert(
        &mut t,
        "perceiver_resampler.layers.0.",
        &[
            ("input_latents_norm.weight", &[16]),
            ("input_context_norm.weight", &[16]),
            ("post_attention_layernorm.weight", &[16]),
            ("self_attn.q_proj.weight", &[16, 16]),
            ("self_attn.k_proj.weight", &[8, 16]),
            ("self_attn.v_proj.weight", &[8, 16]),
            ("self_attn.o_proj.weight", &[16, 16]),
            ("mlp.gate_proj.weight", &[64, 16]),
            ("mlp.up_proj.weight", &[64, 16]),
            ("mlp.down_proj.weight", &[16, 64]),
        ],
    );
    t
}

pub const IDEFICS2_CONFIG: &str = r#"{"model_type": "idefics2", "vision_config": {"hidden_size": 10}, "text_config": {"hidden_size": 16,
"intermediate_size": 20}, "perceiver_config": {"hidden_size": 16, "resampler_n_latents": 3, "resampler_depth": 1,
"resampler_n_heads": 2, "resampler_head_dim": 8, "num_key_value_heads": 1, "rms_norm_eps": 1e-5}}"#;

/// Llama-3.2-Vision's cross-attention layer: width 32, 4 heads (2 K/V) of 8.
pub fn mllama_layer() -> Tensors {
    let mut t = Tensors::new();
    insert(
        &mut t,
        "",
        &[
            ("cross_attn.q_proj.weight", &[32, 32]),
            ("cross_attn.k_proj.weight", &[16, 32]),
            ("cross_attn.v_proj.weight", &[16, 32]),
            ("cross_attn.o_proj.weight", &[32, 32]),
            ("cross_attn.q_norm.weight", &[8]),
            ("cross_attn.k_norm.weight", &[8]),
            ("cross_attn_attn_gate", &[1]),
            ("cross_attn_mlp_gate", &[1]),
            ("input_layernorm.weight", &[32]),
            ("post_attention_layernorm.weight", &[32]),
            ("mlp.gate_proj.weight", &[48, 32]),
            ("mlp.up_proj.weight", &[48, 32]),
            ("mlp.down_proj.weight", &[32, 48]),
        ],
    );
    t
}

/// The same with Meta's names.
pub fn mllama_meta_layer() -> Tensors {
    let names = [
        ("cross_attn.q_proj", "attention.wq"),
        ("cross_attn.k_proj", "attention.wk"),
        ("cross_attn.v_proj", "attention.wv"),
        ("cross_attn.o_proj", "attention.wo"),
        ("cross_attn.q_norm", "attention.q_norm"),
        ("cross_attn.k_norm", "attention.k_norm"),
        ("cross_attn_attn_gate", "gate_attn"),
        ("cross_attn_mlp_gate", "gate_ffwd"),
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "feed_forward.w1"),
        ("mlp.up_proj", "feed_forward.w3"),
        ("mlp.down_proj", "feed_forward.w2"),
    ];
    renamed(&mllama_layer(), &names)
}

pub const MLLAMA_CONFIG: &str = r#"{"model_type": "mllama", "text_config": {"hidden_size": 32, "intermediate_size": 48,
"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "cross_attention_layers": [1, 3]},
"vision_config": {"vision_output_dim": 20}}"#;

/// transformers' Q-Former encoder, relative to `qformer.`: width 16, 2 heads, 2 layers, features
/// 12.
pub fn qformer_encoder() -> Tensors {
    let mut t = Tensors::new();
    for i in 0..2 {
        let mut attention = vec![("attention", 16)];
        if i == 0 {
            attention.push(("crossattention", 12));
        }
        for (kind, features) in attention {
            let p = format!("encoder.layer.{i}.{kind}.");
            for (name, input) in [("query", 16), ("key", features), ("value", features)] {
                insert(&mut t, &format!("{p}attention.{name}."), &[("weight", &[16, input]), ("bias", &[16])]);
            }
            insert(
                &mut t,
                &format!("{p}output."),
                &[
                    ("dense.weight", &[16, 16]),
                    ("dense.bias", &[16]),
                    ("LayerNorm.weight", &[16]),
                    ("LayerNorm.bias", &[16]),
                ],
            );
        }
        for bank in ["", "_query"] {
            let p = format!("encoder.layer.{i}.");
            insert(&mut t, &format!("{p}intermediate{bank}.dense."), &[("weight", &[32, 16]), ("bias", &[32])]);
            insert(
                &mut t,
                &format!("{p}output{bank}."),
                &[
                    ("dense.weight", &[16, 32]),
                    ("dense.bias", &[16]),
                    ("LayerNorm.weight", &[16]),
                    ("LayerNorm.bias", &[16]),
                ],
            );
        }
    }
    t
}

/// The Q-Former's norm, embeddings and query tokens, relative to each library's place.
fn qformer_rest() -> [Tensors; 3] {
    let named = |tensors: &[(&str, &str, &[usize])]| -> Tensors {
        tensors.iter().map(|&(name, values, shape)| (name.to_string(), tensor(values, shape))).collect()
    };
    [
        named(&[("weight", "n.w", &[16]), ("bias", "n.b", &[16])]),
        named(&[("word_embeddings.weight", "words", &[9, 16]), ("position_embeddings.weight", "positions", &[5, 16])]),
        named(&[("query_tokens", "queries", &[1, 4, 16])]),
    ]
}

/// BLIP-2 with every head, as transformers saves it.
pub fn blip2() -> Tensors {
    let [norm, words, queries] = qformer_rest();
    all([
        queries,
        below("qformer.", &qformer_encoder()),
        below("qformer.layernorm.", &norm),
        below("embeddings.", &words),
        dense("language_projection", 24, 16),
        dense("vision_projection", 6, 16),
        dense("text_projection", 6, 16),
        dense("itm_head", 2, 16),
    ])
}

/// InstructBLIP, as transformers saves it.
pub fn instructblip() -> Tensors {
    let [norm, words, queries] = qformer_rest();
    all([
        queries,
        below("qformer.", &qformer_encoder()),
        below("qformer.embeddings.layernorm.", &norm),
        below("qformer.embeddings.", &words),
        dense("language_projection", 24, 16),
    ])
}

/// The same Q-Former as LAVIS saves it, with OPT's projection, without the encoder's norm.
pub fn lavis() -> Tensors {
    let [norm, words, queries] = qformer_rest();
    let encoder = renamed(&qformer_encoder(), &[("attention.attention.", "attention.self.")]);
    all([
        queries,
        below("Qformer.bert.", &encoder),
        below("Qformer.bert.embeddings.LayerNorm.", &norm),
        below("Qformer.bert.embeddings.", &words),
        dense("opt_proj", 24, 16),
    ])
}

/// The configuration of [`blip2`] or [`instructblip`].
pub fn qformer_config(model_type: &str) -> String {
    format!(
        r#"{{"model_type": "{model_type}", "num_query_tokens": 4, "qformer_config": {{"hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 32, "encoder_hidden_size": 12}}}}"#
    )
}

/// The same tensors, with words of their names replaced in order.
pub fn renamed(tensors: &Tensors, pairs: &[(&str, &str)]) -> Tensors {
    let new = |name: &String| pairs.iter().fold(name.clone(), |n, (from, to)| n.replace(from, to));
    tensors.iter().map(|(name, t)| (new(name), t.clone())).collect()
}

/// A dense layer.
pub fn dense(name: &str, n: usize, k: usize) -> Tensors {
    let mut t = Tensors::new();
    insert(&mut t, &format!("{name}."), &[("weight", &[n, k]), ("bias", &[n])]);
    t
}

/// The same tensors under a prefix.
pub fn below(prefix: &str, tensors: &Tensors) -> Tensors {
    tensors.iter().map(|(name, t)| (format!("{prefix}{name}"), t.clone())).collect()
}

/// Several parts of one checkpoint.
pub fn all<const N: usize>(parts: [Tensors; N]) -> Tensors {
    parts.into_iter().flatten().collect()
}

/// Writes a file anew. One that is shortened and written again is flushed to the disk by some
/// systems, which takes milliseconds.
pub fn replace(path: &Path, bytes: impl AsRef<[u8]>) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
}

/// Writes one file.
pub fn write(path: &Path, tensors: &Tensors) {
    write_tied(path, tensors, None);
}

/// Writes a file in which an unsaved tensor is tied to another: both names.
pub fn write_tied(path: &Path, tensors: &Tensors, tied: Option<[&str; 2]>) {
    let held: Vec<_> = tensors.iter().map(|(name, t)| (name, t, t.bytes().unwrap())).collect();
    let views = held.iter().map(|(name, t, bytes)| {
        let dtype = match t.dtype() {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I32 => Dtype::I32,
            other => panic!("no test writes {other}"),
        };
        (name.as_str(), TensorView::new(dtype, t.shape().to_vec(), bytes).unwrap())
    });
    let tied = tied.map(|[name, kept]| HashMap::from([(name.to_string(), kept.to_string())]));
    std::fs::write(path, safetensors::serialize(views, tied).unwrap()).unwrap();
}

/// Writes shards of a few tensors each, and their index; returns the shards' names.
pub fn write_sharded(folder: &Path, tensors: &Tensors) -> Vec<String> {
    let names: Vec<&String> = tensors.keys().collect();
    let count = names.len().div_ceil(7);
    let (mut map, mut files) = (serde_json::Map::new(), Vec::new());
    for (i, chunk) in names.chunks(7).enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        let shard: Tensors = chunk.iter().map(|&n| (n.clone(), tensors[n].clone())).collect();
        write(&folder.join(&file), &shard);
        map.extend(chunk.iter().map(|n| (n.to_string(), file.clone().into())));
        files.push(file);
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    files
}

/// IDEFICS in transformers: [`idefics`]'s resampler and two blocks, by [`IDEFICS_CONFIG`].
pub fn idefics_checkpoint() -> Tensors {
    let (resampler, block) = idefics();
    all([
        below("model.perceiver_resampler.", &resampler),
        below("model.gated_cross_attn_layers.0.", &block),
        below("model.gated_cross_attn_layers.1.", &block),
    ])
}

/// Llama-3.2-Vision in transformers: projector and two layers, by [`MLLAMA_CONFIG`].
pub fn mllama_checkpoint() -> Tensors {
    all([
        dense("multi_modal_projector", 32, 20),
        below("language_model.model.layers.1.", &mllama_layer()),
        below("language_model.model.layers.3.", &mllama_layer()),
    ])
}

/// Opens tensors, with a configuration beside them or not.
pub fn opened<T>(
    name: &str,
    tensors: &Tensors,
    config: Option<&str>,
    family: Option<Family>,
    overrides: &Overrides,
    look: impl FnOnce(&Checkpoint, &Bridges<'_>) -> T,
) -> Result<T, String> {
    let folder = Folder::new(name);
    write(&folder.join("model.safetensors"), tensors);
    if let Some(config) = config {
        std::fs::write(folder.join("config.json"), config).unwrap();
    }
    let shown = |e: xattn::Error| {
        e.to_string().replace(&format!("{}/", folder.0.display()), "").replace(&folder.0.display().to_string(), ".")
    };
    let checkpoint = Checkpoint::open(&folder.0, family).map_err(shown)?;
    let bridges = checkpoint.bridges(overrides).map_err(shown)?;
    Ok(look(&checkpoint, &bridges))
}

/// The error of tensors and their configuration.
pub fn refused(name: &str, tensors: &Tensors, config: Option<&str>) -> String {
    opened(name, tensors, config, None, &Overrides::default(), |_, _| ()).expect_err("accepted")
}
