//! Indices of checkpoints in several files.

use std::collections::BTreeMap;

use serde_json::Value;
use xattn::checkpoint::Files;

use crate::harness::{Finding, Folder, LIMIT, Outcome, Rng, Target, fault, file, inputs};
use crate::json::{self, Json};
use crate::messages::all_reached;

const SOURCES: [&str; 3] = [
    include_str!("../../src/checkpoint/index.rs"),
    include_str!("../../src/checkpoint/json.rs"),
    include_str!("../../src/checkpoint/shards.rs"),
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
    let pointer = b"version https://git-lfs.github.com/spec/v1\nsize 4\n";
    folder.write("pointer.safetensors", pointer);
    (folder, bytes + pointer.len())
}

fn generate(rng: &mut Rng) -> Vec<u8> {
    json::mutated(rng, &SEEDS.map(Json::parse))
}

fn parse_in(folder: &Folder) -> impl Fn(&[u8]) -> Outcome {
    move |bytes| {
        let path = folder.write(INDEX, bytes);
        let files = Files::open(&path).map_err(|e| fault(&e))?;
        for name in files.tensors().keys() {
            assert_eq!(files.bytes(name).expect("a tensor of an opened shard is not there").len(), 4);
            assert!(files.why_absent(name).is_none());
        }
        Ok(())
    }
}

/// A reason for each missing tensor, and a note wherever the index is wrong.
fn judge_notes(folder: &Folder, map: &BTreeMap<String, String>) -> Outcome {
    let files = Files::open(&folder.0.join(INDEX)).map_err(|e| fault(&e))?;
    if let Some(tensor) = map.keys().find(|t| files.info(t).is_none() && files.why_absent(t).is_none()) {
        return Err(format!("no reason for {tensor}"));
    }
    if files.notes().is_empty() == (*map == held_by(map)) { Ok(()) } else { Err(format!("notes {:?}", files.notes())) }
}

/// The files of tensors that an index names.
fn map_of(index: &Value) -> Option<BTreeMap<String, String>> {
    serde_json::from_value(index.get("weight_map")?.clone()).ok()
}

/// What the index would say that names the same shards and is right about them; the last of two
/// shards with a tensor counts where it is named.
fn held_by(map: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut held = BTreeMap::new();
    for (shard, tensors) in SHARDS.iter().filter(|(shard, _)| map.values().any(|file| file == shard)) {
        for tensor in *tensors {
            let named = map.get(*tensor).is_some_and(|file| file == shard);
            if named || !held.contains_key(*tensor) {
                held.insert(tensor.to_string(), shard.to_string());
            }
        }
    }
    held
}

/// An accepted index names a shard that exists; missing shards and tensors are notes.
fn judge(folder: &Folder, bytes: &[u8], outcome: &Outcome) -> Outcome {
    let Some(value) = json::value(bytes) else { return Ok(()) };
    let map = value.as_ref().and_then(map_of);
    let right = map.as_ref().is_some_and(|map| !held_by(map).is_empty());
    // Nothing outside of the folder is even looked for.
    let outside = "expected names of .safetensors files beside the index";
    if map.as_ref().is_some_and(|map| map.values().any(|file| file.contains(['/', '\\'])))
        && !matches!(outcome, Err(said) if said.contains(outside))
    {
        return Err("it names a file in another folder".into());
    }
    match outcome {
        Ok(()) if !right => Err("it names no file that is there".into()),
        Ok(()) => map.map_or(Ok(()), |map| judge_notes(folder, &map)),
        Err(said) if right && !said.contains(outside) && !["at most", "recursion"].iter().any(|s| said.contains(s)) => {
            Err("it names what is there".into())
        }
        _ => Ok(()),
    }
}

type Judge<'t> = &'t dyn Fn(&[u8], &Outcome) -> Outcome;

fn target<'t>(parse: &'t dyn Fn(&[u8]) -> Outcome, judge: Judge<'t>, beside: usize) -> Target<'t> {
    Target { name: "index", generate: &generate, parse, judge, beside, limit: LIMIT }
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
        map(r#""q":"gone.safetensors","k":"pointer.txt""#),
        map(r#""q":"gone.safetensors","k":"gone_too.safetensors""#),
        map(r#""q":"gone.safetensors","k":"pointer.safetensors""#),
        // More than a message repeats, some of them long.
        map(&format!(r#"{},"{}":"lost.safetensors""#, files(20), "n".repeat(2000))),
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
    let judge = |bytes: &[u8], outcome: &Outcome| judge(&folder, bytes, outcome);
    let target = target(&parse, &judge, beside);
    let mut refusals = target.holds().refusals;
    for input in corpus() {
        let outcome = target.run(&input).unwrap_or_else(|what| panic!("{what}"));
        refusals.push(outcome.expect_err("accepted"));
    }
    for input in heavy() {
        let start = String::from_utf8_lossy(&input[..100]).into_owned();
        let outcome = target.run(&input).unwrap_or_else(|what| panic!("{what}: {start}"));
        let said = outcome.err().unwrap_or_default();
        let notes = Files::open(&folder.0.join(INDEX)).map_or_else(|_| Vec::new(), |files| files.notes().to_vec());
        let longest = notes.iter().map(String::len).max().unwrap_or(0).max(said.len());
        assert!(longest < 1000, "a message of {longest} bytes: {start}");
    }
    let hole = std::fs::File::create(folder.0.join(INDEX)).unwrap();
    hole.set_len((64 << 20) + 1).unwrap();
    refusals.push(fault(&Files::open(&folder.0).err().unwrap()));
    std::fs::remove_file(folder.0.join(INDEX)).unwrap();
    std::fs::write(folder.0.join(INDEX), b"\x1f\x8b").unwrap();
    refusals.push(fault(&Files::open(&folder.0).err().unwrap()));
    for text in SEEDS {
        assert_eq!(target.run(text.as_bytes()), Ok(Ok(())), "{text}");
    }
    // Notes and reasons, which are no refusals: `tests/checkpoint/shards.rs`.
    let elsewhere = [
        "{} and {} hold it with different values",
        "the index names {}",
        "it is in {}, which is not there",
        "cannot be read",
        "a folder",
        "are not there",
        "{}: {} of {} shards are there, and no index of them",
        "{}: one of {} shards; what is in the others is not known",
        "tensors are in two shards with different values",
        "not a regular file",
        "{} (in {})",
        "{} (of {})",
        "{}: {} of {} shards {} ({}); {} tensors are in them",
        "tensors that it lists are in no shard",
        "tensors are in another shard than it says",
        "tensors of the shards are not in it",
        "{}: {} {}: {}",
    ];
    all_reached(&SOURCES, &refusals, &elsewhere);
}

/// A parser that fails on an escaped zero in a name: one mutation in some hundreds.
#[test]
fn index_planted() {
    let (folder, beside) = folder("index-planted");
    let real = parse_in(&folder);
    let parse = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains("\"\\u0000\":"), "planted");
        real(bytes)
    };
    let judge = |bytes: &[u8], outcome: &Outcome| judge(&folder, bytes, outcome);
    let Finding { what, .. } =
        target(&parse, &judge, beside).fuzz(inputs()).expect_err("the planted defect was not found");
    assert_eq!(what, "panic: planted");
}
