//! Hostile files: an error that names file and fault, never a panic.

use std::path::Path;

use xattn::checkpoint::{Checkpoint, Overrides};

use crate::small::*;

fn sharded(name: &str) -> (Folder, Vec<String>) {
    let folder = Folder::new(name);
    let tensors = below("model.connector.", &idefics2());
    let files = write_sharded(&folder.0, &tensors);
    std::fs::write(folder.join("config.json"), IDEFICS2_CONFIG).unwrap();
    (folder, files)
}

fn outcome(path: &Path) -> Result<(), String> {
    let checkpoint = Checkpoint::open(path, None).map_err(|e| e.to_string())?;
    checkpoint.bridges(&Overrides::default()).map(|_| ()).map_err(|e| e.to_string())
}

#[track_caller]
fn refused(folder: &Folder, file: &str, fault: &str) {
    let error = outcome(&folder.0).expect_err("accepted");
    assert!(error.contains(file) && error.contains(fault), "{error}");
}

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn indices() {
    let (folder, files) = sharded("index");
    outcome(&folder.0).unwrap();
    let text = std::fs::read_to_string(folder.join(INDEX)).unwrap();
    let set = |text: &str| replace(&folder.join(INDEX), text);
    for hostile in [
        "../model.safetensors",
        "./model.safetensors",
        "a\\u0000.safetensors",
        "c:model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
        "a\\\\b.safetensors",
        "x.pt",
    ] {
        set(&text.replacen(&files[0], hostile, 1));
        refused(&folder, INDEX, "expected names of .safetensors files beside the index, found");
    }
    // What it says of tensors that no shard holds, or another: tests/checkpoint/shards.rs.
    set(&text.replace(&files[1], "model-00009-of-00009.safetensors"));
    refused(&folder, "idefics2", "missing, expected");
    set(&text.replacen("{\"model.connector", &format!("{{\"a\":\"{0}\",\"a\":\"{0}\",\"model.connector", files[0]), 1));
    refused(&folder, INDEX, "name a occurs twice");
    for broken in
        ["", "{", "[]", "null", "{}", r#"{"weight_map": 3}"#, r#"{"weight_map": {"a": 3}}"#, r#"{"weight_map": {}}"#]
    {
        set(broken);
        refused(&folder, INDEX, "");
    }
    for end in 0..text.len() {
        set(&text[..end]);
        assert!(outcome(&folder.0).is_err(), "an index cut at {end}");
    }
}

#[test]
fn configurations() {
    let (folder, _) = sharded("config");
    let set = |text: &str| replace(&folder.join("config.json"), text);
    for (from, to) in [
        (r#""resampler_depth": 1"#, r#""resampler_depth": -1"#),
        (r#""resampler_depth": 1"#, r#""resampler_depth": "1""#),
        (r#""resampler_depth": 1"#, r#""resampler_depth": 4294967295"#),
        (r#""resampler_depth": 1"#, r#""resampler_depth": 99999999999999999999999"#),
        (r#""resampler_n_heads": 2"#, r#""resampler_n_heads": 0"#),
        (r#""num_key_value_heads": 1"#, r#""num_key_value_heads": 1.5"#),
        (r#""rms_norm_eps": 1e-5"#, r#""rms_norm_eps": -1"#),
        (r#""rms_norm_eps": 1e-5"#, r#""rms_norm_eps": []"#),
        (r#""vision_config": {"hidden_size": 10}"#, r#""vision_config": 10"#),
        (r#""model_type": "idefics2""#, r#""model_type": 2"#),
    ] {
        set(&IDEFICS2_CONFIG.replace(from, to));
        refused(&folder, "config.json", "");
    }
    // Sizes that are numbers, but not those of the tensors.
    for (from, to) in [
        (r#""resampler_n_latents": 3"#, r#""resampler_n_latents": 4294967295"#),
        (r#""resampler_head_dim": 8"#, r#""resampler_head_dim": 4294967295"#),
        (r#""resampler_n_heads": 2"#, r#""resampler_n_heads": 4294967295"#),
        (r#""resampler_depth": 1"#, r#""resampler_depth": 3"#),
    ] {
        set(&IDEFICS2_CONFIG.replace(from, to));
        refused(&folder, "idefics2", "model.connector.perceiver_resampler.");
    }
    for end in 0..IDEFICS2_CONFIG.len() {
        set(&IDEFICS2_CONFIG[..end]);
        assert!(outcome(&folder.0).is_err(), "a configuration cut at {end}");
    }
    set(&format!("{{\"model_type\": \"idefics2\", \"perceiver_config\": {}", "{\"a\": ".repeat(100_000)));
    refused(&folder, "config.json", "not a model's configuration");
    std::fs::remove_file(folder.join("config.json")).unwrap();
    // A hole of 65 MB.
    std::fs::File::create(folder.join("config.json")).unwrap().set_len((64 << 20) + 1).unwrap();
    refused(&folder, "config.json", "67108865 bytes: expected at most 67108864");
    std::fs::remove_file(folder.join("config.json")).unwrap();
    std::fs::create_dir(folder.join("config.json")).unwrap();
    refused(&folder, "config.json", "not a regular file");
}

#[test]
fn shards() {
    let (folder, files) = sharded("shards");
    let path = folder.join(&files[0]);
    let bytes = std::fs::read(&path).unwrap();
    for end in 0..bytes.len() {
        replace(&path, &bytes[..end]);
        let error = outcome(&folder.0).expect_err("a shard cut short");
        assert!(error.contains(&files[0]), "{end}: {error}");
    }
    // One changed byte in the header: an error, or another valid file, never a panic.
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for at in 0..header {
        for value in [0, b'9', b'"', b'}', 0xff] {
            let mut changed = bytes.clone();
            changed[at] = value;
            replace(&path, &changed);
            let _ = outcome(&folder.0);
        }
    }
    let text = |replace: &dyn Fn(&str) -> String| {
        let new = replace(std::str::from_utf8(&bytes[8..header]).unwrap().trim_end());
        [&(new.len() as u64).to_le_bytes()[..], new.as_bytes(), &bytes[header..]].concat()
    };
    for (name, changed) in [
        ("overflowing shape", text(&|h| h.replacen("[20,10]", "[18446744073709551615,10]", 1))),
        ("negative extent", text(&|h| h.replacen("[20,10]", "[-20,10]", 1))),
        ("offsets beyond the file", text(&|h| h.replacen("\"data_offsets\":[0,", "\"data_offsets\":[9999999,", 1))),
        ("unknown type", text(&|h| h.replacen("\"F32\"", "\"F33\"", 1))),
        ("a type of another size", text(&|h| h.replacen("\"F32\"", "\"F64\"", 1))),
    ] {
        replace(&path, &changed);
        let error = outcome(&folder.0).expect_err(name);
        assert!(error.contains(&files[0]), "{name}: {error}");
    }
    // JSON headers that are not safetensors', over unchanged data.
    let data = &bytes[header..];
    let with = |header: &str| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    let one = |entries: &str| with(&format!("{{{entries}}}"));
    let entry = |name: &str, dtype: &str, shape: &str, from: usize, to: usize| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let half = data.len() / 2;
    let floats = |n: usize| format!("[{}]", n / 4);
    for (name, changed) in [
        (
            "overlapping offsets",
            one(&[
                entry("a", "F32", &floats(half + 4), 0, half + 4),
                entry("b", "F32", &floats(half), half, data.len()),
            ]
            .join(",")),
        ),
        (
            "the same bytes twice",
            one(&[
                entry("a", "F32", &floats(data.len()), 0, data.len()),
                entry("b", "F32", &floats(data.len()), 0, data.len()),
            ]
            .join(",")),
        ),
        (
            "a gap",
            one(&[
                entry("a", "F32", &floats(half - 4), 0, half - 4),
                entry("b", "F32", &floats(half), half, data.len()),
            ]
            .join(",")),
        ),
        ("offsets backwards", one(&entry("a", "F32", "[0]", 8, 0))),
        ("bytes that nobody owns", one(&entry("a", "F32", "[1]", 0, 4))),
        (
            "the same name twice",
            one(&[entry("a", "F32", &floats(half), 0, half), entry("a", "F32", &floats(half), half, data.len())]
                .join(",")),
        ),
        (
            "extents beyond every address",
            one(&[
                entry("a", "F32", &floats(data.len()), 0, data.len()),
                entry("b", "F32", "[18446744073709551615,0]", data.len(), data.len()),
            ]
            .join(",")),
        ),
        ("no object", with("[]")),
        ("nested without end", with(&"[".repeat(100_000))),
        ("metadata that are no strings", one(r#""__metadata__":{"a":{"b":1}}"#)),
        ("not UTF-8", [&8u64.to_le_bytes()[..], &[b'{', b'"', 0xff, 0xfe, b'"', b':', b'1', b'}'], data].concat()),
        ("a header longer than the file", [&(bytes.len() as u64).to_le_bytes()[..], &bytes[8..]].concat()),
        ("a header of 2^64 - 1 bytes", [&u64::MAX.to_le_bytes()[..], &bytes[8..]].concat()),
        ("a header of no bytes", [&0u64.to_le_bytes()[..], &bytes[8..]].concat()),
    ] {
        replace(&path, &changed);
        let error = outcome(&folder.0).expect_err(name);
        assert!(error.contains(&files[0]), "{name}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn links_and_special_files() {
    use std::os::unix::fs::symlink;
    let (folder, files) = sharded("links");
    let path = folder.join(&files[0]);
    // As the hub's cache does: a shard may be a link.
    std::fs::rename(&path, folder.join("blob")).unwrap();
    symlink("blob", &path).unwrap();
    outcome(&folder.0).unwrap();
    std::fs::remove_file(&path).unwrap();
    symlink(&files[0], &path).unwrap();
    refused(&folder, &files[0], "Too many levels of symbolic links");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    refused(&folder, &files[0], "which cannot be read: a folder");
    // Opening a FIFO would wait for ever.
    std::fs::remove_dir(&path).unwrap();
    let fifo = |path: &Path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    fifo(&path);
    refused(&folder, &files[0], "not a regular file");
    std::fs::remove_file(&path).unwrap();
    std::fs::rename(folder.join("blob"), &path).unwrap();
    outcome(&folder.0).unwrap();
    for name in [INDEX, "config.json"] {
        let text = std::fs::read(folder.join(name)).unwrap();
        std::fs::remove_file(folder.join(name)).unwrap();
        fifo(&folder.join(name));
        refused(&folder, name, "not a regular file");
        std::fs::remove_file(folder.join(name)).unwrap();
        std::fs::write(folder.join(name), text).unwrap();
    }
    let error = outcome(&folder.join("absent.safetensors")).unwrap_err();
    assert!(error.contains("absent.safetensors"), "{error}");
    let empty = Folder::new("empty");
    refused(&empty, "empty", "no file in this folder ends in .safetensors");
    std::fs::write(empty.join("a.safetensors"), b"").unwrap();
    std::fs::write(empty.join("b.safetensors"), b"").unwrap();
    refused(&empty, "empty", "name one of a.safetensors, b.safetensors");
}

/// One checkpoint of every kind of configuration and finder.
fn kinds() -> Vec<(&'static str, Tensors, Option<String>)> {
    let mini = all([
        below("flamingo.resampler.", &mini_resampler()),
        below("flamingo.lm.transformer.h.0.xattn_block.", &renamed(&open_flamingo_block(), &MINI_BLOCK)),
    ]);
    let idefics = idefics_checkpoint();
    let mllama = mllama_checkpoint();
    let mini_config = r#"{"resampler_heads": 8, "resampler_act": "gelu", "xattn_heads": 8, "xattn_act": "sqrelu"}"#;
    vec![
        ("mini", mini, Some(mini_config.to_string())),
        ("idefics", idefics, Some(IDEFICS_CONFIG.to_string())),
        ("idefics2", below("model.connector.", &idefics2()), Some(IDEFICS2_CONFIG.to_string())),
        ("mllama", mllama, Some(MLLAMA_CONFIG.to_string())),
        ("blip2", blip2(), Some(qformer_config("blip-2"))),
        ("instructblip", instructblip(), Some(qformer_config("instructblip"))),
        ("lavis", lavis(), None),
    ]
}

/// Every configuration's values, with another type or size: an error or a model, no panic.
#[test]
fn every_value_of_every_configuration() {
    use serde_json::{Value, json};
    fn paths(value: &Value, at: &str, out: &mut Vec<String>) {
        let members: Vec<(String, &Value)> = match value {
            Value::Object(members) => members.iter().map(|(name, v)| (name.clone(), v)).collect(),
            Value::Array(members) => members.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
            _ => Vec::new(),
        };
        for (name, member) in members {
            let path = format!("{at}/{name}");
            paths(member, &path, out);
            out.push(path);
        }
    }
    let others = [
        json!(0),
        json!(1),
        json!(3),
        json!(65536),
        json!(2147483648u32),
        json!(4294967295u32),
        json!(u64::MAX),
        json!(-1),
        json!(1.5),
        json!(1e308),
        json!(null),
        json!(true),
        json!("8"),
        json!([]),
        json!([0, 1, 2, 4294967295u32]),
        json!({}),
    ];
    let mut refused = 0;
    for (name, tensors, config) in kinds() {
        let Some(config) = config else { continue };
        let folder = Folder::new(&format!("values-{name}"));
        write(&folder.join("model.safetensors"), &tensors);
        std::fs::write(folder.join("config.json"), &config).unwrap();
        outcome_with_heads(&folder.0).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        let mut all = Vec::new();
        paths(&config, "", &mut all);
        for path in all {
            for other in &others {
                let mut changed = config.clone();
                *changed.pointer_mut(&path).unwrap() = other.clone();
                replace(&folder.join("config.json"), changed.to_string());
                refused += usize::from(outcome_with_heads(&folder.0).is_err());
            }
        }
    }
    assert!(refused > 500, "{refused} refused");
}

/// The heads of a LAVIS file are not 64 wide here.
fn outcome_with_heads(path: &Path) -> Result<(), String> {
    let checkpoint = Checkpoint::open(path, None).map_err(|e| e.to_string())?;
    let lavis = checkpoint.family() == xattn::checkpoint::Family::Lavis;
    let overrides = Overrides { heads: lavis.then_some(2), ..Overrides::default() };
    checkpoint.bridges(&overrides).map(|_| ()).map_err(|e| e.to_string())
}

/// Bytes changed, cut or repeated in index, configuration and header, with fixed seeds.
#[test]
fn random_changes() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut below_n = move |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n.max(1) as u64) as usize
    };
    let mut refused = 0;
    for (name, tensors, config) in kinds() {
        let folder = Folder::new(&format!("random-{name}"));
        let files = write_sharded(&folder.0, &tensors);
        let mut targets = vec![INDEX.to_string(), files[0].clone()];
        if let Some(config) = config {
            std::fs::write(folder.join("config.json"), config).unwrap();
            targets.push("config.json".into());
        }
        outcome_with_heads(&folder.0).unwrap();
        for target in targets {
            let path = folder.join(&target);
            let whole = std::fs::read(&path).unwrap();
            let text = if target.ends_with("json") {
                0..whole.len()
            } else {
                0..8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize
            };
            for _ in 0..300 {
                let mut changed = whole.clone();
                for _ in 0..1 + below_n(3) {
                    let at = below_n(text.len().min(changed.len()));
                    let to = (at + 1 + below_n(8)).min(changed.len());
                    match below_n(4) {
                        0 => changed[at] = below_n(256) as u8,
                        1 => changed[at] = b"0123456789-.{}[],:\"ex"[below_n(21)],
                        2 => drop(changed.drain(at..to)),
                        _ => {
                            let again: Vec<u8> = changed[at..to].to_vec();
                            changed.splice(at..at, again);
                        }
                    }
                }
                replace(&path, &changed);
                refused += usize::from(outcome_with_heads(&folder.0).is_err());
            }
            replace(&path, &whole);
        }
    }
    assert!(refused > 3000, "{refused} refused");
}
