//! Fixtures of `xattn verify`.

use std::path::Path;

use safetensors::SafeTensors;
use xattn::verify::fixture::Fixture;

use crate::harness::{Finding, LIMIT, Outcome, Rng, Target, fault, file, inputs};
use crate::json::{self, Json, mutate_bytes};
use crate::messages::all_reached;

const SOURCES: [&str; 1] = [include_str!("../../src/verify/fixture.rs")];

const HEAD: &str = r#""__metadata__":{"source_package":"p 1.0","source_class":"C","config":"{\"ctor\":{\"heads\":2}}","semantics":"none"}"#;

fn seeds() -> Vec<(String, usize)> {
    let tensor = |name: &str, dtype: &str, shape: &str, from: usize, to: usize| {
        format!(r#","{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = [
        tensor("weights.w", "F32", "[2,2]", 0, 16),
        tensor("inputs.x", "F16", "[2]", 16, 20),
        tensor("inputs.mask", "U8", "[4]", 20, 24),
        tensor("outputs.inter.h", "BF16", "[2]", 24, 28),
        tensor("outputs.y", "F64", "[1]", 28, 36),
    ];
    let two = [tensor("outputs.y", "I32", "[0,3]", 0, 0), tensor("inputs.ids", "U32", "[1]", 0, 4)];
    vec![(format!("{{{HEAD}{}}}", one.concat()), 36), (format!("{{{HEAD}{}}}", two.concat()), 4)]
}

fn generate(rng: &mut Rng) -> Vec<u8> {
    let seeds = seeds();
    let (text, bytes) = rng.pick(&seeds);
    let mut text = json::mutated(rng, &[Json::parse(text)]);
    if rng.one_in(8) {
        // The configuration is JSON within JSON.
        let mut inner = json::mutated(rng, &[Json::parse(r#"{"ctor":{"heads":2,"list":[1,2]},"note":"a"}"#)]);
        inner.retain(u8::is_ascii);
        let inner = serde_json::to_string(&String::from_utf8_lossy(&inner)).unwrap();
        let whole = String::from_utf8_lossy(&text).replace(r#""{\"ctor\":{\"heads\":2}}""#, &inner);
        text = whole.into_bytes();
    }
    // Bit patterns of small numbers, or now and then of NaN and infinity.
    let mut data: Vec<u8> = (0..*bytes).map(|_| (rng.next() % 60) as u8).collect();
    if rng.one_in(6) && !data.is_empty() {
        let at = rng.below(data.len() / 4) * 4;
        data[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    }
    let mut whole = [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat();
    if rng.one_in(6) {
        mutate_bytes(rng, &mut whole);
    }
    whole
}

fn parse(bytes: &[u8]) -> Outcome {
    Fixture::parse(Path::new("a.safetensors"), bytes).map(drop).map_err(|e| fault(&e))
}

/// What is accepted is a safetensors file with outputs, and its weights are finite.
fn judge(bytes: &[u8], outcome: &Outcome) -> Outcome {
    if outcome.is_err() {
        return Ok(());
    }
    let file = SafeTensors::deserialize(bytes).map_err(|e| format!("the safetensors crate refuses it: {e}"))?;
    let fixture = Fixture::parse(Path::new("a.safetensors"), bytes).map_err(|e| e.to_string())?;
    let all = fixture.weights.len() + fixture.inputs.len() + fixture.masks.len() + fixture.outputs.len();
    if all + fixture.intermediates.len() != file.len() || fixture.outputs.is_empty() {
        return Err("tensors are lost".into());
    }
    for (name, view) in file.iter() {
        let Some(short) = name.strip_prefix("weights.") else { continue };
        let held = fixture.weights.get(short).ok_or("a weight is lost")?;
        if *held.bytes().map_err(|e| e.to_string())? != *view.data() {
            return Err("a weight has other bytes".into());
        }
        if held.dtype().is_float() && held.to_f64().map_err(|e| e.to_string())?.iter().any(|x| !x.is_finite()) {
            return Err("a weight is not finite".into());
        }
    }
    Ok(())
}

fn target<'t>(parse: &'t dyn Fn(&[u8]) -> Outcome) -> Target<'t> {
    Target { name: "fixture", generate: &generate, parse, judge: &judge, beside: 0, limit: LIMIT }
}

fn corpus() -> Vec<Vec<u8>> {
    let without = |field: &str| {
        let fields = [("source_package", ""), ("source_class", ""), ("config", "{}"), ("semantics", "")];
        let fields = fields.iter().filter(|(name, _)| *name != field);
        let fields: Vec<String> = fields.map(|(name, text)| format!("\"{name}\":\"{text}\"")).collect();
        file(&format!("{{\"__metadata__\":{{{}}}}}", fields.join(",")), b"")
    };
    let config = |text: &str| {
        let text = serde_json::to_string(text).unwrap();
        file(
            &format!(r#"{{"__metadata__":{{"source_package":"","source_class":"","config":{text},"semantics":""}}}}"#),
            b"",
        )
    };
    let tensor = |name: &str, dtype: &str, data: &[u8]| {
        let entry = format!(r#""{name}":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,{}]}}"#, data.len());
        file(&format!("{{{HEAD},{entry}}}"), data)
    };
    vec![
        b"short".to_vec(),
        without("semantics"),
        config("{"),
        config("[]"),
        config(&format!("[{}0]", "0,".repeat(10_000))),
        file(&format!("{{{HEAD}}}"), b""),
        tensor("w", "F32", &[0; 4]),
        tensor("weights.w", "I64", &[0; 8]),
        tensor("weights.w", "F32", &f32::INFINITY.to_le_bytes()),
    ]
}

fn heavy() -> Vec<Vec<u8>> {
    let metadata = |config: &str, semantics: &str, more: &str, data: &[u8], tensors: &str| {
        let [config, semantics] = [config, semantics].map(|text| serde_json::to_string(text).unwrap());
        let head = format!(r#""source_package":"","source_class":"","config":{config},"semantics":{semantics}{more}"#);
        file(&format!(r#"{{"__metadata__":{{{head}}}{tensors}}}"#), data)
    };
    let half = |bytes: usize, name: &str| {
        format!(r#","{name}":{{"dtype":"BF16","shape":[{}],"data_offsets":[0,{bytes}]}}"#, bytes / 2)
    };
    let n = (1 << 21) + 2;
    let fields: String = (0..1000).map(|i| format!(",\"{i}\":\"\"")).collect();
    let mut files: Vec<Vec<u8>> = json::heavy().iter().map(|text| file(text, b"")).collect();
    files.extend(json::heavy().iter().map(|text| metadata(text, "", "", b"", "")));
    files.extend(json::heavy().iter().map(|text| metadata("{}", text, "", b"", "")));
    files.extend([
        metadata(&format!("{{\"a\":[{}0]}}", "0,".repeat(8000)), "", "", b"", ""),
        metadata(&format!("{{\"a\":[{}0]}}", "[],".repeat(5000)), "", "", b"", ""),
        metadata("{}", "", &fields, b"", ""),
        metadata("{}", "", "", &vec![0; n], &half(n, "weights.w")),
        metadata("{}", "", "", &vec![0; n], &half(n, "outputs.y")),
    ]);
    files
}

#[test]
fn fixture() {
    let target = target(&parse);
    let mut refusals = target.holds().refusals;
    for input in corpus() {
        let outcome = target.run(&input).unwrap_or_else(|what| panic!("{what}: {}", String::from_utf8_lossy(&input)));
        refusals.push(outcome.expect_err("accepted"));
    }
    for input in heavy() {
        let start = String::from_utf8_lossy(&input[..200.min(input.len())]).into_owned();
        target.run(&input).unwrap_or_else(|what| panic!("{what}: {start}")).ok();
    }
    for (text, bytes) in seeds() {
        assert_eq!(target.run(&file(&text, &vec![0; bytes])), Ok(Ok(())), "{text}");
    }
    // Said of a fixture that was read, by `input` and `weight`, and of folders.
    all_reached(&SOURCES, &refusals, &["is missing (or of type U8)", "weights.{} is missing", "in this folder"]);
}

/// A parser that looks at no weight's values.
#[test]
fn fixture_planted() {
    let planted = |bytes: &[u8]| match parse(bytes) {
        Err(refusal) if refusal.contains(": element ") => Ok(()),
        outcome => outcome,
    };
    // The judge asks the real parser again, which names the element.
    let Finding { what, .. } = target(&planted).fuzz(inputs()).expect_err("the planted defect was not found");
    assert!(what.starts_with("answer Ok(()): a.safetensors: tensor weights.w: element "), "{what}");
}
