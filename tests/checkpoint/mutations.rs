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
    let set = |text: &str| std::fs::write(folder.join(INDEX), text).unwrap();
    for hostile in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\\\b.safetensors", "x.pt"] {
        set(&text.replacen(&files[0], hostile, 1));
        refused(&folder, INDEX, "expected names of .safetensors files beside the index, found");
    }
    set(&text.replace(&files[1], "model-00009-of-00009.safetensors"));
    refused(&folder, INDEX, "missing shards: model-00009-of-00009.safetensors");
    set(&text.replacen(&files[0], &files[1], 1));
    refused(&folder, INDEX, &format!("weight_map says {}, but it is in {}", files[1], files[0]));
    set(&text.replacen("{\"model.connector", &format!("{{\"ghost\":\"{}\",\"model.connector", files[0]), 1));
    refused(&folder, INDEX, "ghost: weight_map says");
    set(&text.replacen("perceiver_resampler.latents", "perceiver_resampler.latent", 1));
    refused(&folder, INDEX, "perceiver_resampler.latents: in model-");
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
    let set = |text: &str| std::fs::write(folder.join("config.json"), text).unwrap();
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
        std::fs::write(&path, &bytes[..end]).unwrap();
        let error = outcome(&folder.0).expect_err("a shard cut short");
        assert!(error.contains(&files[0]), "{end}: {error}");
    }
    // One changed byte in the header: an error, or another valid file, never a panic.
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for at in 0..header {
        for value in [0, b'9', b'"', b'}', 0xff] {
            let mut changed = bytes.clone();
            changed[at] = value;
            std::fs::write(&path, &changed).unwrap();
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
        std::fs::write(&path, &changed).unwrap();
        let error = outcome(&folder.0).expect_err(name);
        assert!(error.contains(&files[0]), "{name}: {error}");
    }
    // The same tensor in two shards.
    std::fs::write(&path, &bytes).unwrap();
    std::fs::copy(&path, folder.join(&files[1])).unwrap();
    refused(&folder, &files[1], "is also in");
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
    refused(&folder, INDEX, &files[0]);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    refused(&folder, &files[0], "not a regular file");
    let empty = Folder::new("empty");
    refused(&empty, "empty", "no file in this folder ends in .safetensors");
    std::fs::write(empty.join("a.safetensors"), b"").unwrap();
    std::fs::write(empty.join("b.safetensors"), b"").unwrap();
    refused(&empty, "empty", "name one of a.safetensors, b.safetensors");
}
