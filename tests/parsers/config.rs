//! `config.json` of every family.

use std::path::Path;

use xattn::checkpoint::ModelConfig;

use crate::harness::{Finding, LIMIT, Outcome, Rng, Target, fault, inputs};
use crate::json::{self, Json};
use crate::messages::all_reached;

const SOURCES: [&str; 1] = [include_str!("../../src/checkpoint/config.rs")];

const SEEDS: [&str; 7] = [
    r#"{"model_type":"idefics","hidden_size":32,"num_hidden_layers":2,"num_attention_heads":2,"cross_layer_interval":1,"rms_norm_eps":1e-6,
        "qk_layer_norms":true,"alpha_type":"vector","vision_config":{"embed_dim":12},"perceiver_config":{"resampler_n_heads":2,"resampler_depth":1}}"#,
    r#"{"model_type":"idefics2","perceiver_config":{"num_key_value_heads":1,"resampler_n_heads":2,"rms_norm_eps":1e-5,"hidden_size":4096},
        "text_config":{"hidden_size":16,"rms_norm_eps":1e-5},"vision_config":{"hidden_size":10}}"#,
    r#"{"model_type":"mllama","text_config":{"num_hidden_layers":4,"cross_attention_layers":[1,3],"num_attention_heads":4,"num_key_value_heads":2,"rms_norm_eps":0.00001}}"#,
    r#"{"model_type":"mllama_text_model","hidden_size":32,"cross_attention_layers":null,"architectures":["a",{"b":[]}]}"#,
    r#"{"model_type":"blip-2","num_query_tokens":3,"qformer_config":{"num_attention_heads":2,"num_hidden_layers":4,"layer_norm_eps":1e-12,"cross_attention_frequency":2}}"#,
    r#"{"model_type":"instructblip","qformer_config":{"hidden_size":16}}"#,
    r#"{"resampler_heads":8,"resampler_act":"gelu","xattn_heads":8,"xattn_act":"sqrelu"}"#,
];

fn generate(rng: &mut Rng) -> Vec<u8> {
    json::mutated(rng, &SEEDS.map(Json::parse))
}

fn parse(bytes: &[u8]) -> Outcome {
    config(bytes).map(drop)
}

fn config(bytes: &[u8]) -> Result<ModelConfig, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "not UTF-8")?;
    ModelConfig::parse(Path::new("config.json"), text, None).map_err(|e| fault(&e))
}

/// Whatever is accepted has heads, an eps, and no more layers than one can count.
fn judge(bytes: &[u8], outcome: &Outcome) -> Outcome {
    if outcome.is_err() {
        return Ok(());
    }
    let shown = format!("{:?}", config(bytes)?);
    for (kind, rest) in shown
        .split("Count(")
        .skip(1)
        .map(|rest| ("Count", rest))
        .chain(shown.split("Eps(").skip(1).map(|rest| ("Eps", rest)))
    {
        let value = rest.split(')').next().unwrap_or_default();
        let right = match kind {
            "Eps" => value.parse::<f32>().is_ok_and(|eps| eps.is_finite() && eps >= 0.0),
            _ => value.parse::<u32>().is_ok(),
        };
        if !right {
            return Err(format!("{kind} is {value}"));
        }
    }
    for name in ["num_hidden_layers\": (\"", "resampler_depth\": (\""] {
        for rest in shown.split(name).skip(1) {
            let value = rest.split("Count(").nth(1).and_then(|n| n.split(')').next()).unwrap_or_default();
            if value.parse::<u64>().is_ok_and(|n| n > 10_000) {
                return Err(format!("{name} is {value}"));
            }
        }
    }
    Ok(())
}

fn target<'t>(parse: &'t dyn Fn(&[u8]) -> Outcome) -> Target<'t> {
    Target { name: "config", generate: &generate, parse, judge: &judge, beside: 0, limit: LIMIT }
}

fn corpus() -> Vec<String> {
    let of = |kind: &str, rest: &str| format!(r#"{{"model_type":"{kind}",{rest}}}"#);
    let layers = (0..10_001).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    vec![
        "{".into(),
        of("idefics", r#""num_attention_heads":0"#),
        of("idefics", r#""num_hidden_layers":10001"#),
        of("idefics2", r#""perceiver_config":{"rms_norm_eps":-1}"#),
        of("mllama_text_model", r#""cross_attention_layers":7"#),
        of("mllama_text_model", &format!(r#""cross_attention_layers":[{layers}]"#)),
        r#"{"resampler_act":"tanh"}"#.into(),
        r#"{"model_type":7}"#.into(),
        of("idefics2", r#""text_config":{"model_type":7}"#),
        of("otter", r#""only_attend_previous":false"#),
        of("idefics", r#""num_attention_heads":0"#),
        of("idefics", r#""qk_layer_norms":1"#),
        of("idefics", r#""perceiver_config":[1]"#),
        of("idefics", r#""hidden_size":1,"hidden_size":1"#),
        of("blip-2", r#""qformer_config":{"hidden_act":NaN}"#),
        of("blip-2", r#""qformer_config":{"position_embedding_type":"relative_key"}"#),
    ]
}

fn heavy() -> Vec<String> {
    let mut texts = json::heavy();
    for text in json::heavy() {
        for (kind, field) in [
            ("idefics", "hidden_size"),
            ("idefics", "alpha_type"),
            ("idefics", "rms_norm_eps"),
            ("idefics", "vision_config"),
            ("mllama_text_model", "cross_attention_layers"),
            ("mllama_text_model", "new"),
        ] {
            texts.push(format!(r#"{{"model_type":"{kind}","{field}":{text}}}"#));
        }
        texts.push(format!(r#"{{"model_type":{text}}}"#));
        texts.push(format!(r#"{{"resampler_act":{text}}}"#));
    }
    texts
}

#[test]
fn config_json() {
    let target = target(&parse);
    let mut refusals = target.holds().refusals;
    for input in corpus() {
        let outcome = target.run(input.as_bytes()).unwrap_or_else(|what| panic!("{what}: {input}"));
        refusals.push(outcome.expect_err("accepted"));
    }
    for input in heavy() {
        let start = &input[..100];
        let outcome = target.run(input.as_bytes()).unwrap_or_else(|what| panic!("{what}: {start}"));
        let long = outcome.err().filter(|refusal| refusal.len() >= 1000);
        assert_eq!(long, None, "{start}");
    }
    for text in SEEDS {
        assert_eq!(target.run(text.as_bytes()), Ok(Ok(())), "{text}");
    }
    // A field has the kind of its value, and keys of JSON are names.
    all_reached(&SOURCES, &refusals, &["a field's kind is that of its value", "a name"]);
}

/// A parser that believes a number of layers and makes room for them.
#[test]
fn config_planted() {
    let planted = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        if text.contains("_layers\":4294967295") {
            std::hint::black_box(vec![0u8; 2 << 20]);
        }
        parse(bytes)
    };
    let Finding { what, input, .. } = target(&planted).fuzz(inputs()).expect_err("the planted defect was not found");
    let expected = format!("memory: 2097152 bytes at once for a file of {}", input.len());
    assert!(what.starts_with(&expected), "{what}");
}
