//! `adapter_config.json` of PEFT.

use std::time::Duration;

use serde_json::Value;
use xattn::checkpoint::Files;

use crate::harness::{Finding, Folder, LIMIT, Outcome, Rng, Target, fault, file, inputs};
use crate::json::{self, Json};
use crate::messages::all_reached;

const SOURCES: [&str; 1] = [include_str!("../../src/checkpoint/adapter.rs")];

const SEEDS: [&str; 3] = [
    r#"{"peft_type":"LORA","base_model_name_or_path":"Org/idefics2-8b","r":2,"lora_alpha":4,"target_modules":["q_proj","k_proj"]}"#,
    r#"{"base_model_name_or_path":null,"peft_type":"IA3","auto_mapping":{"base_model_class":"Blip2"}}"#,
    r#"{"peft_type":"LORA","inference_mode":true}"#,
];

fn generate(rng: &mut Rng) -> Vec<u8> {
    json::mutated(rng, &SEEDS.map(Json::parse))
}

/// A folder with an adapter's weights, as PEFT saves them.
fn folder(name: &str) -> (Folder, usize) {
    let folder = Folder::new(name);
    let weights =
        file(r#"{"base_model.model.q.lora_A.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4]);
    folder.write("adapter_model.safetensors", &weights);
    (folder, weights.len())
}

const RECOGNISED: &str = "a PEFT adapter (";

/// `Ok` where the adapter was recognised: its error is then the sentence that says so.
fn parse_in(folder: &Folder) -> impl Fn(&[u8]) -> Outcome {
    move |bytes| {
        folder.write("adapter_config.json", bytes);
        let said = fault(&Files::open(&folder.0).err().expect("an adapter was opened as a checkpoint"));
        if said.starts_with(RECOGNISED) { Ok(()) } else { Err(said) }
    }
}

/// What is recognised says what it is an adapter of.
fn judge(bytes: &[u8], outcome: &Outcome) -> Outcome {
    let Some(value) = json::value(bytes) else { return Ok(()) };
    let right = value.as_ref().and_then(Value::as_object).is_some_and(|object| {
        let text = |name: &str| object.get(name).is_none_or(|v| v.is_string() || v.is_null());
        object.get("peft_type").is_some_and(Value::is_string) && text("base_model_name_or_path")
    });
    match outcome {
        Ok(()) if !right => Err("its kind is no text".into()),
        Err(said) if right && !["recursion", "at most"].iter().any(|s| said.contains(s)) => {
            Err("its kind is a text".into())
        }
        _ => Ok(()),
    }
}

fn target<'t>(parse: &'t dyn Fn(&[u8]) -> Outcome, beside: usize, limit: Duration) -> Target<'t> {
    Target { name: "adapter", generate: &generate, parse, judge: &judge, beside, limit }
}

fn heavy() -> Vec<String> {
    let mut texts = json::heavy();
    for text in json::heavy() {
        texts.push(format!(r#"{{"peft_type":{text}}}"#));
        texts.push(format!(r#"{{"peft_type":"LORA","base_model_name_or_path":{text}}}"#));
        texts.push(format!(r#"{{"peft_type":"LORA","target_modules":{text}}}"#));
    }
    texts
}

#[test]
fn adapter() {
    let (folder, beside) = folder("adapter");
    let parse = parse_in(&folder);
    let target = target(&parse, beside, LIMIT);
    let mut said = target.holds().refusals;
    for input in ["{", "{}"] {
        said.push(target.run(input.as_bytes()).unwrap().expect_err("accepted"));
    }
    for input in heavy() {
        let start = &input[..100];
        let outcome = target.run(input.as_bytes()).unwrap_or_else(|what| panic!("{what}: {start}"));
        let long = outcome.err().filter(|refusal| refusal.len() >= 1000);
        assert_eq!(long, None, "{start}");
    }
    // What is said of those that are recognised, whole.
    for (text, named) in SEEDS.iter().zip([
        r#"(LORA) of "Org/idefics2-8b","#,
        "(IA3) of a base that it does not name,",
        "(LORA) of a base that it does not name,",
    ]) {
        folder.write("adapter_config.json", text.as_bytes());
        let error = fault(&Files::open(&folder.0).err().unwrap());
        let advice =
            "merge it into its base (peft's merge_and_unload, then save_pretrained) and open the folder that is saved";
        assert_eq!(error, format!("a PEFT adapter {named} not a checkpoint: {advice}"));
        said.push(error);
    }
    all_reached(&SOURCES, &said, &[]);
}

/// Where the weights are named instead of the folder, as pickles, or beside a base model.
#[test]
fn folders_of_adapters() {
    let (folder, _) = folder("adapter-folders");
    folder.write("adapter_config.json", SEEDS[0].as_bytes());
    let refused = |path: &std::path::Path| fault(&Files::open(path).err().expect("opened"));
    assert!(refused(&folder.0.join("adapter_model.safetensors")).starts_with(RECOGNISED));
    let weights = std::fs::read(folder.0.join("adapter_model.safetensors")).unwrap();
    // A base beside it is what is opened; one more file does not make it unclear which.
    folder.write("base.safetensors", &weights);
    assert_eq!(Files::open(&folder.0).unwrap().shards(), 1);
    std::fs::remove_file(folder.0.join("base.safetensors")).unwrap();
    std::fs::rename(folder.0.join("adapter_model.safetensors"), folder.0.join("adapter_model.bin")).unwrap();
    assert!(refused(&folder.0).starts_with(RECOGNISED));
    // Without a configuration it is a file like others.
    std::fs::remove_file(folder.0.join("adapter_config.json")).unwrap();
    folder.write("adapter_model.safetensors", &weights);
    assert_eq!(Files::open(&folder.0).unwrap().tensors().len(), 1);
}

/// A parser that does not come back from deep nesting.
#[test]
fn adapter_planted() {
    let (folder, beside) = folder("adapter-planted");
    let real = parse_in(&folder);
    let slept = std::cell::Cell::new(false);
    let limit = Duration::from_secs(2);
    let parse = |bytes: &[u8]| {
        if bytes.windows(500).any(|w| w.iter().all(|&b| b == b'[')) {
            slept.set(true);
            std::thread::sleep(limit);
        }
        real(bytes)
    };
    let Finding { what, .. } =
        target(&parse, beside, limit).fuzz(inputs()).expect_err("the planted defect was not found");
    assert!(what.starts_with("time: ") && what.ends_with("at most 2s") && slept.get(), "{what}");
}
