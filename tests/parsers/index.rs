//! Indices of checkpoints in several files.

use std::collections::BTreeMap;

use xattn::checkpoint::Files;

use crate::harness::{Finding, Folder, LIMIT, Outcome, Rng, Target, fault, file, inputs};
use crate::json::{self, Json};
use crate::messages::all_reached;

const SOURCES: [&str; 3] = [
    include_str!("../../src/checkpoint/index.rs"),
    include_str!("../../src/checkpoint/json.rs"),
    include_str!("../../src/checkpoint/files.rs"),
];

const INDEX: &str = "model.safetensors.index.json";

/// Which tensors the shards beside the index hold.
const SHARDS: [(&str, &[&str]); 3] =
    [("a.safetensors", &["q", "k"]), ("b.safetensors", &["v"]), ("again.safetensors", &["v"])];

const SEEDS: [&str; 3] = [
    r#"{"metadata":{"total_size":12},"weight_map":{"q":"a.safetensors","k":"a.safetensors","v":"b.safetensors"}}"#,
    r#"{"weight_map":{"v":"b.safetensors","q":"a.safetensors","k":"a.safetensors"},"more":[1,{"a":null}]}"#,
    r#"{"weight_map":{"v":"b.safetensors"}}"#,
];

fn folder(name: &str) -> (Folder, usize) {
    let folder = Folder::new(name);
    let mut bytes = 0;
    for (shard, tensors) in SHARDS {
        let entries = tensors.iter().enumerate().map(|(i, name)| {
            format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#, 4 * i, 4 * i + 4)
        });
        let whole = file(&format!("{{{}}}", entries.collect::<Vec<_>>().join(",")), &vec![0; 4 * tensors.len()]);
        folder.write(shard, &whole);
        bytes += whole.len();
    }
    (folder, bytes)
}

fn generate(rng: &mut Rng) -> Vec<u8> {
    json::mutated(rng, &SEEDS.map(Json::parse))
}

fn parse_in(folder: &Folder) -> impl Fn(&[u8]) -> Outcome {
    move |bytes| {
        let path = folder.write(INDEX, bytes);
        Files::open(&path).map(drop).map_err(|e| fault(&e))
    }
}

/// What is accepted must name each tensor of the shards that it names, and no other.
fn judge(bytes: &[u8], outcome: &Outcome) -> Outcome {
    let Some(value) = json::value(bytes) else { return Ok(()) };
    let map: Option<BTreeMap<String, String>> =
        value.and_then(|v| serde_json::from_value(v.get("weight_map")?.clone()).ok());
    let right = map.as_ref().is_some_and(|map| {
        let named: BTreeMap<String, String> = SHARDS
            .iter()
            .filter(|(shard, _)| map.values().any(|file| file == shard))
            .flat_map(|(shard, tensors)| tensors.iter().map(|t| (t.to_string(), shard.to_string())))
            .collect();
        !map.is_empty() && *map == named
    });
    // Nothing outside of the folder is even looked for.
    let outside = "expected names of .safetensors files beside the index";
    if map.is_some_and(|map| map.values().any(|file| file.contains(['/', '\\'])))
        && !matches!(outcome, Err(said) if said.contains(outside))
    {
        return Err("it names a file in another folder".into());
    }
    match outcome {
        Ok(()) if !right => Err("it names other tensors or files than there are".into()),
        Err(said) if right && !["at most", "recursion"].iter().any(|s| said.contains(s)) => {
            Err("it names what is there".into())
        }
        _ => Ok(()),
    }
}

fn target<'t>(parse: &'t dyn Fn(&[u8]) -> Outcome, beside: usize) -> Target<'t> {
    Target { name: "index", generate: &generate, parse, judge: &judge, beside, limit: LIMIT }
}

fn corpus() -> Vec<Vec<u8>> {
    let map = |entries: &str| format!("{{\"weight_map\":{{{entries}}}}}").into_bytes();
    let files = |n: usize| (0..n).map(|i| format!("\"{i}\":\"{i}.safetensors\"")).collect::<Vec<_>>().join(",");
    vec![
        b"{".to_vec(),
        b"{\"weight_map\":7}".to_vec(),
        b"\xff".to_vec(),
        map(""),
        map(r#""q":"../a.safetensors""#),
        map(r#""q":"a.safetensors","q":"a.safetensors""#),
        map(&files(4097)),
        map(r#""q":"a.safetensors""#),
        map(r#""q":"a.safetensors","k":"a.safetensors","v":"a.safetensors""#),
        map(r#""q":"b.safetensors","k":"a.safetensors","v":"b.safetensors""#),
        map(r#""v":"b.safetensors","w":"again.safetensors""#),
        // More problems than a message repeats, some of them long.
        map(&format!(r#"{},"{}":"a.safetensors""#, files(20), "n".repeat(2000))),
        map(&(0..20).map(|i| format!("\"{i}\":\"a.safetensors\"")).collect::<Vec<_>>().join(",")),
        format!("{{\"weight_map\":\"{}\"}}", "x".repeat(40_000)).into_bytes(),
    ]
}

fn heavy() -> Vec<Vec<u8>> {
    let list = |n: usize, one: &dyn Fn(usize) -> String| {
        format!("{{\"weight_map\":{{{}}}}}", (0..n).map(one).collect::<Vec<_>>().join(","))
    };
    let mut texts = json::heavy();
    for text in json::heavy() {
        texts.push(format!("{{\"weight_map\":{text}}}"));
        texts.push(format!("{{\"weight_map\":{{\"a\":{text}}}}}"));
        texts.push(format!("{{\"metadata\":{text}}}"));
    }
    texts.extend([
        list(50_000, &|i| format!("\"{i:x}\":\"a.safetensors\"")),
        list(32_769, &|i| format!("\"{:05x}\":\"a.safetensors\"", 99_999 - i)),
        list(4000, &|i| format!("\"{i}\":\"{i}.safetensors\"")),
        list(50_000, &|i| format!("\"{i}\":\"{i}.safetensors\"")),
        list(40, &|i| format!("\"{i}{}\":\"a.safetensors\"", "n".repeat(30_000))),
        list(40, &|i| format!("\"{i}\":\"{i}{}.safetensors\"", "n".repeat(30_000))),
    ]);
    texts.into_iter().map(String::into_bytes).collect()
}

#[test]
fn index() {
    let (folder, beside) = folder("index");
    let parse = parse_in(&folder);
    let target = target(&parse, beside);
    let mut refusals = target.holds().refusals;
    for input in corpus() {
        let outcome = target.run(&input).unwrap_or_else(|what| panic!("{what}"));
        refusals.push(outcome.expect_err("accepted"));
    }
    for input in heavy() {
        let start = String::from_utf8_lossy(&input[..100]).into_owned();
        let outcome = target.run(&input).unwrap_or_else(|what| panic!("{what}: {start}"));
        let refusal = outcome.expect_err("accepted");
        assert!(refusal.len() < 16 * 700, "a message of {} bytes: {start}", refusal.len());
    }
    let hole = std::fs::File::create(folder.0.join(INDEX)).unwrap();
    hole.set_len((64 << 20) + 1).unwrap();
    refusals.push(fault(&Files::open(&folder.0).err().unwrap()));
    for (text, accepted) in SEEDS.iter().zip([true, true, true]) {
        assert_eq!(target.run(text.as_bytes()).unwrap().is_ok(), accepted, "{text}");
    }
    // What `tests/checkpoint` reaches: files of other kinds, and tensors that are asked for.
    let elsewhere = [
        "not a safetensors file",
        "several files could hold",
        "no file in this folder",
        "a PyTorch pickle",
        "is also there as",
        "expected f64, f32",
        "tensor {}: {}, found {}",
        "tensor {}: not there",
    ];
    all_reached(&SOURCES, &refusals, &elsewhere);
}

/// A parser that fails on a name with an escaped zero, which only one mutation in some hundreds makes.
#[test]
fn index_planted() {
    let (folder, beside) = folder("index-planted");
    let real = parse_in(&folder);
    let parse = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains("\"\\u0000\":"), "planted");
        real(bytes)
    };
    let Finding { what, .. } = target(&parse, beside).fuzz(inputs()).expect_err("the planted defect was not found");
    assert_eq!(what, "panic: planted");
}
