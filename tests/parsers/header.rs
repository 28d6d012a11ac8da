//! Headers of safetensors files.

use safetensors::SafeTensors;
use xattn::checkpoint::Files;

use crate::harness::{Finding, Folder, LIMIT, Outcome, Rng, Target, fault, file, inputs};
use crate::json::{self, Json, mutate_bytes};
use crate::messages::all_reached;

const SOURCES: [&str; 1] = [include_str!("../../src/checkpoint/header.rs")];

/// A header and the bytes of its tensors.
const SEEDS: [(&str, usize); 6] = [
    (
        r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#,
        32,
    ),
    (r#"{"__metadata__":{"format":"pt","more":"\n"},"a":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}"#, 8),
    (
        r#"{"x":{"data_offsets":[8,16],"shape":[8,1],"dtype":"U8"},"w":{"dtype":"F64","shape":[1],"data_offsets":[0,8],"new":[{}]}}"#,
        16,
    ),
    (
        r#"{"e":{"dtype":"F16","shape":[0,7],"data_offsets":[0,0]},"f":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}"#,
        2,
    ),
    (
        r#"{"a":{"dtype":"F8_E4M3","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,3],"data_offsets":[0,3]},"é.0":{"dtype":"C64","shape":[1],"data_offsets":[3,11]}}"#,
        11,
    ),
    ("{}  ", 0),
];

fn generate(rng: &mut Rng) -> Vec<u8> {
    let (text, bytes) = *rng.pick(&SEEDS);
    let mut text = json::mutated(rng, &[Json::parse(text)]);
    if rng.one_in(4) {
        text.extend(vec![b' '; rng.below(9)]);
    }
    let mut data = vec![7u8; bytes];
    if rng.one_in(6) {
        data.resize((bytes + rng.below(33)).saturating_sub(16), 7);
    }
    let mut length = text.len() as u64;
    if rng.one_in(8) {
        length = *rng.pick(&[
            0,
            1,
            length - length.min(1),
            length + 1,
            length + bytes as u64,
            64 << 20,
            (64 << 20) + 1,
            1 << 63,
            u64::MAX,
        ]);
    }
    let mut whole = [&length.to_le_bytes()[..], &text, &data].concat();
    if rng.one_in(6) {
        mutate_bytes(rng, &mut whole);
    }
    whole
}

/// Writes the file where `Files` reads it.
fn parse_in(folder: &Folder) -> impl Fn(&[u8]) -> Outcome {
    move |bytes| {
        let path = folder.write("a.safetensors", bytes);
        let files = Files::open_one(&path).map_err(|e| fault(&e))?;
        for (name, info) in files.tensors() {
            let read = files.bytes(name).expect("a tensor of an accepted header is not there");
            assert_eq!(read.len(), info.bytes);
        }
        Ok(())
    }
}

/// Compares with the crate that defines the format: what it refuses nobody may accept, and what we
/// refuse besides is said to be so.
fn judge(bytes: &[u8], outcome: &Outcome) -> Outcome {
    let theirs = SafeTensors::deserialize(bytes);
    match (outcome, theirs) {
        // What is ignored may be nested as deep as it likes.
        (Ok(()), Err(theirs)) if theirs.to_string().contains("recursion limit exceeded") => Ok(()),
        (Ok(()), Err(theirs)) => Err(format!("the safetensors crate refuses it: {theirs}")),
        (Err(ours), Ok(_)) => {
            // More than a bridge can have, or said twice.
            let stricter = [" occurs twice", "expected extents that can be addressed", "expected at most "];
            let known = stricter.iter().any(|said| ours.contains(said));
            if known { Ok(()) } else { Err("the safetensors crate accepts it".into()) }
        }
        _ => Ok(()),
    }
}

fn target<'t>(parse: &'t dyn Fn(&[u8]) -> Outcome) -> Target<'t> {
    Target { name: "header", generate: &generate, parse, judge: &judge, beside: 0, limit: LIMIT }
}

/// One file for every message.
fn corpus() -> Vec<Vec<u8>> {
    let one = |entry: &str, bytes: usize| file(&format!("{{\"a\":{entry}}}"), &vec![0; bytes]);
    let many = |n: usize| (0..n).map(|i| format!("\"{i}\":\"\"")).collect::<Vec<_>>().join(",");
    vec![
        b"short".to_vec(),
        [&((64u64 << 20) + 1).to_le_bytes()[..], b"{}"].concat(),
        [&100u64.to_le_bytes()[..], b"{}"].concat(),
        [&3u64.to_le_bytes()[..], b"{\xff}"].concat(),
        file("[", b""),
        file("[]", b""),
        file(r#""text""#, b""),
        file(r#"{"__metadata__":"text"}"#, b""),
        file(r#"{"__metadata__":7}"#, b""),
        file(r#"{"__metadata__":{},"__metadata__":{}}"#, b""),
        file(r#"{"__metadata__":{"a":"","a":""}}"#, b""),
        file(&format!("{{\"__metadata__\":{{{}}}}}", many(1025)), b""),
        file(
            r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#,
            b"",
        ),
        one("7", 0),
        one(r#""text""#, 0),
        one(r#"{"dtype":"F32","dtype":"F32"}"#, 0),
        one(r#"{"shape":[],"data_offsets":[0,4]}"#, 4),
        one(r#"{"dtype":"F32","data_offsets":[0,4]}"#, 4),
        one(r#"{"dtype":"F32","shape":[]}"#, 4),
        one(r#"{"dtype":"F33","shape":[],"data_offsets":[0,4]}"#, 4),
        one(r#"{"dtype":7,"shape":[],"data_offsets":[0,4]}"#, 4),
        one(r#"{"dtype":"F32","shape":"3","data_offsets":[0,4]}"#, 4),
        one(r#"{"dtype":"F32","shape":7,"data_offsets":[0,4]}"#, 4),
        one(r#"{"dtype":"F32","shape":["3"],"data_offsets":[0,4]}"#, 4),
        one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#, 4),
        one(r#"{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}"#, 4),
        one(r#"{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}"#, 4),
        one(r#"{"dtype":"F32","shape":[9223372036854775807,0,2],"data_offsets":[0,0]}"#, 0),
        one(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,1]}"#, 1),
        one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#, 8),
        one(r#"{"dtype":"F32","shape":[3],"data_offsets":[18446744073709551612,8]}"#, 8),
        one(r#"{"dtype":"F32","shape":[1],"data_offsets":"0"}"#, 4),
        one(r#"{"dtype":"F32","shape":[1],"data_offsets":7}"#, 4),
        one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0]}"#, 4),
        one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}"#, 4),
        one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#, 8),
        one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#, 3),
        one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#, 5),
    ]
}

/// Files whose structure costs the most for their size.
fn heavy() -> Vec<Vec<u8>> {
    let tensor = |shape: &str, bytes: usize| format!(r#"{{"dtype":"U8","shape":{shape},"data_offsets":[0,{bytes}]}}"#);
    let list =
        |n: usize, one: &dyn Fn(usize) -> String| format!("{{{}}}", (0..n).map(one).collect::<Vec<_>>().join(","));
    let mut files: Vec<Vec<u8>> = json::heavy().iter().map(|text| file(text, b"")).collect();
    for text in json::heavy() {
        files.push(file(&format!("{{\"a\":{text}}}"), b""));
        for field in ["dtype", "shape", "data_offsets", "new"] {
            files.push(file(&format!("{{\"a\":{{\"{field}\":{text}}}}}"), b""));
            files.push(file(&format!("{{\"a\":{{\"{field}\":[{text}]}}}}"), b""));
        }
        files.push(file(&format!("{{\"__metadata__\":{text}}}"), b""));
        files.push(file(&format!("{{\"__metadata__\":{{\"a\":{text}}}}}"), b""));
    }
    let long = "n".repeat(1 << 20);
    files.extend([
        file(&list(40_000, &|i| format!("\"{i:x}\":{}", tensor("[0]", 0))), b""),
        // Just behind a power of two of entries, in falling order.
        file(&list(32_769, &|i| format!("\"{:05x}\":{}", 99_999 - i, tensor("[0]", 0))), b""),
        file(&list(20_000, &|i| format!("\"{i:x}\":{}", tensor("[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]", 0))), b""),
        file(&list(2, &|_| format!("\"{long}\":{}", tensor("[0]", 0))), b""),
        file(&list(1, &|_| format!("\"{long}\":{}", tensor("[1]", 1))), b""),
        file(&list(1, &|_| format!("\"{}\":{}", "\\u0001".repeat(1 << 18), tensor("[2]", 1))), b""),
        file(&list(1000, &|i| format!("\"{i}{}\":7", "n".repeat(1000))), b""),
    ]);
    files
}

#[test]
fn header() {
    let folder = Folder::new("header");
    let parse = parse_in(&folder);
    let target = target(&parse);
    let mut refusals = target.holds().refusals;
    for input in corpus() {
        let outcome = target.run(&input).unwrap_or_else(|what| panic!("{what}: {}", String::from_utf8_lossy(&input)));
        refusals.push(outcome.expect_err("accepted"));
    }
    for input in heavy() {
        let start = String::from_utf8_lossy(&input[8..120.min(input.len())]).into_owned();
        let outcome = target.run(&input).unwrap_or_else(|what| panic!("{what}: {start}"));
        if let Err(refusal) = outcome {
            assert!(refusal.len() < 1000, "a message of {} bytes: {start}", refusal.len());
        }
    }
    for (text, bytes) in SEEDS {
        assert_eq!(target.run(&file(text, &vec![0; bytes])), Ok(Ok(())), "{text}");
    }
    all_reached(&SOURCES, &refusals, &[]);
}

/// Opening rewrites names in wrappers, also within four times the file.
#[test]
fn header_wrapped_names() {
    let folder = Folder::new("header-wrapped");
    let parse = |bytes: &[u8]| {
        let path = folder.write("a.safetensors", bytes);
        let files = Files::open(&path).map_err(|e| fault(&e))?;
        assert!(files.tensors().len() > 1000);
        Ok(())
    };
    let list = |n: usize, one: &dyn Fn(usize) -> String| {
        let entry = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
        let all = (0..n).map(|i| format!("\"{}\":{entry}", one(i))).collect::<Vec<_>>();
        file(&format!("{{{}}}", all.join(",")), b"")
    };
    let metadata = (0..1024).map(|i| format!("\"t{i}\":\"module.{i}\"")).collect::<Vec<_>>().join(",");
    let tied = String::from_utf8(list(1024, &|i| format!("module.{i}"))[8..].to_vec()).unwrap();
    for input in [
        list(40_000, &|i| format!("module.{i:x}")),
        list(32_769, &|i| format!("a._orig_mod.{:05x}", 99_999 - i)),
        list(40_000, &|i| format!("{}{}", if i % 2 == 0 { "module." } else { "" }, i / 2)),
        list(40_000, &|i| format!("m.{}.w{}", if i % 2 == 0 { "original_module" } else { "modules_to_save.x" }, i / 2)),
        list(20_000, &|i| format!("{}{i}", "module.".repeat(20))),
        file(&format!("{{\"__metadata__\":{{{metadata}}},{}", &tied[1..]), b""),
    ] {
        assert_eq!(target(&parse).run(&input), Ok(Ok(())), "{}", String::from_utf8_lossy(&input[8..100]));
    }
}

/// A parser that takes offsets beyond the file: the run says so.
#[test]
fn header_planted() {
    let folder = Folder::new("header-planted");
    let real = parse_in(&folder);
    let parse = |bytes: &[u8]| match real(bytes) {
        Err(refusal) if refusal.starts_with("cut short: ") && !refusal.contains(" at least ") => Ok(()),
        outcome => outcome,
    };
    let Finding { what, .. } = target(&parse).fuzz(inputs()).expect_err("the planted defect was not found");
    assert_eq!(what, "answer Ok(()): the safetensors crate refuses it: incomplete metadata, file not fully covered");
}
