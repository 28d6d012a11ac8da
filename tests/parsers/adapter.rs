//! `adapter_config.json` of PEFT.

use std::time::Duration;

use serde_json::Value;
use xattn::checkpoint::Files;

use crate::harness::{Finding, Folder, LIMIT, Outcome, Rng, Target, fault, file, inputs};
use crate::json::{self, Json};
use crate::messages::all_reached;

const SOURCES: [&str; 4] = [
    include_str!("../../src/checkpoint/adapter.rs"),
    include_str!("../../src/checkpoint/adapter_names.rs"),
    include_str!("../../src/checkpoint/adapter_config.rs"),
    include_str!("../../src/checkpoint/pattern.rs"),
];

const SEEDS: [&str; 4] = [
    r#"{"peft_type":"LORA","base_model_name_or_path":"Org/idefics2-8b","r":2,"lora_alpha":4,"target_modules":["q_proj","k_proj"]}"#,
    r#"{"base_model_name_or_path":null,"peft_type":"LORA","auto_mapping":{"base_model_class":"Blip2"},"r":2,"lora_alpha":1.5,"use_dora":false}"#,
    r#"{"peft_type":"LORA","r":2,"use_rslora":true,"fan_in_fan_out":false,"layer_replication":null,"init_lora_weights":true}"#,
    r#"{"peft_type":"LORA","rank_pattern":{"^ayers.0.q":3,"q|k":2},"alpha_pattern":{".*[q]":6,"a{2,3}(b|c)*":1},"lora_alpha":5}"#,
];

fn generate(rng: &mut Rng) -> Vec<u8> {
    json::mutated(rng, &SEEDS.map(Json::parse))
}

/// The base's `q` is 1, 2, …, 6, what the adapter adds 10, 20, …, 60 times its factor.
const A: [f32; 6] = [1.0, 2.0, 3.0, 0.0, 0.0, 0.0];
const B: [f32; 4] = [10.0, 0.0, 40.0, 0.0];
const ADDED: [f32; 6] = [10.0, 20.0, 30.0, 40.0, 80.0, 120.0];

/// A base in a folder, and an adapter beside it as PEFT saves one.
fn folder(name: &str) -> (Folder, usize) {
    let folder = Folder::new(name);
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let base = file(
        r#"{"layers.0.q.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#,
        &bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    );
    let weights = file(
        r#"{"base_model.model.layers.0.q.lora_A.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"base_model.model.layers.0.q.lora_B.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[24,40]}}"#,
        &[bytes(&A), bytes(&B)].concat(),
    );
    folder.write("model.safetensors", &base);
    folder.write("adapter_model.safetensors", &weights);
    (folder, base.len() + weights.len())
}

fn parse_in(folder: &Folder) -> impl Fn(&[u8]) -> Outcome {
    move |bytes| {
        folder.write("adapter_config.json", bytes);
        let files = Files::open(&folder.0).map_err(|e| fault(&e))?;
        files.tensor("layers.0.q.weight").unwrap().to_f32().unwrap();
        Ok(())
    }
}

/// The sum is that of the configuration's own numbers, where no pattern says otherwise.
fn judge_sum(folder: &Folder, value: &Value) -> Outcome {
    let files = Files::open(&folder.0).map_err(|e| fault(&e))?;
    let found = files.tensor("layers.0.q.weight").unwrap().to_vec::<f32>().unwrap();
    let number = |name: &str, none: f64| value.get(name).map_or(Some(none), Value::as_f64);
    let patterns = ["rank_pattern", "alpha_pattern"].iter().any(|name| value.get(*name).is_some_and(|v| !v.is_null()));
    if let (false, Some(alpha), Some(rank)) = (patterns, number("lora_alpha", 8.0), number("r", 8.0)) {
        let root = value.get("use_rslora") == Some(&Value::Bool(true));
        let factor = (alpha / if root { rank.sqrt() } else { rank }) as f32;
        let expected: Vec<f32> = (0..6).map(|i| (i + 1) as f32 + factor * ADDED[i]).collect();
        if rank != 2.0 || found != expected {
            return Err(format!("{found:?}, not {expected:?}"));
        }
    }
    Ok(())
}

/// What is merged is LoRA, and nothing asks for more.
fn judge(folder: &Folder, bytes: &[u8], outcome: &Outcome) -> Outcome {
    // Python's numbers that JSON does not have stand where nobody reads them.
    let text =
        String::from_utf8_lossy(bytes).replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null");
    let Some(value) = json::value(text.as_bytes()) else { return Ok(()) };
    let kind = value.as_ref().and_then(|v| v.get("peft_type")).and_then(Value::as_str);
    let set = |v: &Value| match v {
        Value::Null | Value::Bool(false) => false,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(true) => true,
    };
    let more = ["use_dora", "layer_replication", "lora_bias"];
    let asks = value.as_ref().is_some_and(|v| more.iter().any(|name| v.get(*name).is_some_and(set)));
    match outcome {
        Ok(()) if kind != Some("LORA") || asks => Err("it is not LoRA as it is merged".into()),
        Ok(()) => value.map_or(Ok(()), |value| judge_sum(folder, &value)),
        Err(_) => Ok(()),
    }
}

type Judge<'t> = &'t dyn Fn(&[u8], &Outcome) -> Outcome;

fn target<'t>(parse: &'t dyn Fn(&[u8]) -> Outcome, judge: Judge<'t>, beside: usize, limit: Duration) -> Target<'t> {
    Target { name: "adapter", generate: &generate, parse, judge, beside, limit }
}

/// One configuration for every message.
fn corpus() -> Vec<String> {
    let lora = |fields: &str| format!(r#"{{"peft_type":"LORA","r":2,{fields}}}"#);
    let rank = |key: &str| lora(&format!(r#""rank_pattern":{{"{key}":2}}"#));
    let deep = "(".repeat(40);
    let mut texts = vec![
        "{".into(),
        "7".into(),
        "{}".into(),
        r#"{"peft_type":"IA3"}"#.into(),
        lora(r#""use_dora":true"#),
        lora(r#""init_lora_weights":"pissa""#),
        lora(r#""init_lora_weights":7"#),
        lora(r#""next_years":true"#),
        lora(r#""rank_pattern":7"#),
        lora(r#""rank_pattern":{"q":3}"#),
        lora(&format!(
            r#""rank_pattern":{{{}}}"#,
            (0..4097).map(|i| format!("\"{i}\":1")).collect::<Vec<_>>().join(",")
        )),
        lora(&format!(
            r#""rank_pattern":{{{}}}"#,
            (0..33).map(|i| format!("\"({i})\":1")).collect::<Vec<_>>().join(",")
        )),
        r#"{"peft_type":"LORA","r":3}"#.into(),
        lora(r#""lora_alpha":1e300"#),
    ];
    let keys =
        ["(?=a)", "(a", "a)", "*a", "a*+", "a{3,2}", "(a{99}){99}", "[a", "[z-a]", r"a\\", &deep, &"é".repeat(300)];
    texts.extend(keys.iter().map(|key| rank(key)));
    texts
}

fn heavy() -> Vec<String> {
    let mut texts = json::heavy();
    for text in json::heavy() {
        texts.push(format!(r#"{{"peft_type":{text}}}"#));
        texts.push(format!(r#"{{"peft_type":"LORA","base_model_name_or_path":{text}}}"#));
        for field in ["target_modules", "rank_pattern", "init_lora_weights", "use_dora", "new", "r"] {
            texts.push(format!(r#"{{"peft_type":"LORA","r":2,"{field}":{text}}}"#));
        }
    }
    let patterns = |n: usize, key: &dyn Fn(usize) -> String| {
        let keys: Vec<String> = (0..n).map(|i| format!("\"{}\":2", key(i))).collect();
        format!(r#"{{"peft_type":"LORA","r":2,"rank_pattern":{{{}}}}}"#, keys.join(","))
    };
    texts.push(patterns(4096, &|i| format!("layers.{i}.q")));
    texts.push(patterns(4096, &|i| format!("{i}{}", "n".repeat(500))));
    texts.push(patterns(4096, &|i| format!("({i})")));
    texts.push(patterns(2000, &|i| format!("(a|b){{{i}}}")));
    texts.push(patterns(30, &|i| format!("(((){{999}}){{999}}){{{i}}}")));
    // Fields that nobody knows are counted in a note.
    let fields: Vec<String> = (0..50_000).map(|i| format!("\"{i:x}\":1")).collect();
    texts.push(format!(r#"{{"peft_type":"LORA","r":2,{}}}"#, fields.join(",")));
    texts
}

#[test]
fn adapter() {
    let (folder, beside) = folder("adapter");
    let parse = parse_in(&folder);
    let judge = |bytes: &[u8], outcome: &Outcome| judge(&folder, bytes, outcome);
    let target = target(&parse, &judge, beside, LIMIT);
    let mut said = target.holds().refusals;
    for input in corpus() {
        let outcome = target.run(input.as_bytes()).unwrap_or_else(|what| panic!("{what}: {input}"));
        said.push(outcome.expect_err(&input));
    }
    for text in SEEDS {
        assert_eq!(target.run(text.as_bytes()), Ok(Ok(())), "{text}");
    }
    for input in heavy() {
        let start = &input[..100];
        let outcome = target.run(input.as_bytes()).unwrap_or_else(|what| panic!("{what}: {start}"));
        let long = outcome.err().filter(|refusal| refusal.len() >= 1000);
        assert_eq!(long, None, "{start}");
    }
    // What is said of a folder without a base.
    std::fs::remove_file(folder.0.join("model.safetensors")).unwrap();
    for text in [SEEDS[0], "{", "{}"] {
        folder.write("adapter_config.json", text.as_bytes());
        said.push(fault(&Files::open(&folder.0).err().unwrap()));
    }
    // Adapters of other models, several of them, without weights: `tests/checkpoint/adapters.rs`.
    let elsewhere = [
        "the matrices of a LoRA adapter",
        "the adapter in the folder",
        "adapters could be merged",
        "lies beside this adapter",
        "is in this folder",
        "is there, but no adapter_model.safetensors",
        "not one that xattn merges",
        "is merged into {} tensors",
        ", and replaces {}",
        "that it would change are not in these files",
        "fields that xattn does not know",
        "an adapter without any tensor",
        "an adapter of another model",
        "expected lora_A and lora_B",
        "expected matrices of reals",
        "the adapter is in {} shards",
        "are no matrices of reals and stay as they are",
        ", below {}",
        "the tensors that it changes are below",
        "a base that it does not name",
    ];
    all_reached(&SOURCES, &said, &elsewhere);
}

/// A parser that does not come back from deep nesting.
#[test]
fn adapter_planted() {
    let (folder, beside) = folder("adapter-planted");
    let real = parse_in(&folder);
    let slept = std::cell::Cell::new(false);
    let limit = Duration::from_secs(2);
    let judge = |bytes: &[u8], outcome: &Outcome| judge(&folder, bytes, outcome);
    let parse = |bytes: &[u8]| {
        if bytes.windows(500).any(|w| w.iter().all(|&b| b == b'[')) {
            slept.set(true);
            std::thread::sleep(limit);
        }
        real(bytes)
    };
    let Finding { what, .. } =
        target(&parse, &judge, beside, limit).fuzz(inputs()).expect_err("the planted defect was not found");
    assert!(what.starts_with("time: ") && what.ends_with("at most 2s") && slept.get(), "{what}");
}
