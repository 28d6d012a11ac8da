//! `xattn inspect` on published models at full size, of which only the headers are there: the
//! files' data are holes. The counts are those that `spec.md` 3.5 and 5.1 took from the executed
//! public classes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::small::Folder;

/// Names and shapes.
type Shapes = BTreeMap<String, Vec<usize>>;

fn insert(to: &mut Shapes, prefix: &str, shapes: &[(&str, &[usize])]) {
    to.extend(shapes.iter().map(|(name, shape)| (format!("{prefix}{name}"), shape.to_vec())));
}

/// OpenFlamingo, CLIP ViT-L/14: 6 layers of 8 heads of 64 over 1024, blocks in these layers.
fn open_flamingo(attribute: &str, width: usize, layers: impl Iterator<Item = usize>) -> Shapes {
    let mut shapes = Shapes::new();
    let p = "perceiver.";
    insert(&mut shapes, p, &[("latents", &[64, 1024]), ("norm.weight", &[1024]), ("norm.bias", &[1024])]);
    for i in 0..6 {
        let norms = ["0.norm_media.weight", "0.norm_media.bias", "0.norm_latents.weight", "0.norm_latents.bias"];
        insert(&mut shapes, &format!("{p}layers.{i}."), &norms.map(|n| (n, &[1024usize][..])));
        insert(
            &mut shapes,
            &format!("{p}layers.{i}."),
            &[
                ("0.to_q.weight", &[512, 1024]),
                ("0.to_kv.weight", &[1024, 1024]),
                ("0.to_out.weight", &[1024, 512]),
                ("1.0.weight", &[1024]),
                ("1.0.bias", &[1024]),
                ("1.1.weight", &[4096, 1024]),
                ("1.3.weight", &[1024, 4096]),
            ],
        );
    }
    for i in layers {
        insert(
            &mut shapes,
            &format!("lang_encoder.{attribute}.{i}.gated_cross_attn_layer."),
            &[
                ("attn.norm.weight", &[width]),
                ("attn.norm.bias", &[width]),
                ("attn.to_q.weight", &[512, width]),
                ("attn.to_kv.weight", &[1024, 1024]),
                ("attn.to_out.weight", &[width, 512]),
                ("attn_gate", &[1]),
                ("ff.0.weight", &[width]),
                ("ff.0.bias", &[width]),
                ("ff.1.weight", &[4 * width, width]),
                ("ff.3.weight", &[width, 4 * width]),
                ("ff_gate", &[1]),
            ],
        );
    }
    shapes
}

/// LAVIS' Q-Former over EVA ViT-g/14, with or without its text half.
fn lavis(text: bool) -> Shapes {
    let mut shapes = Shapes::new();
    let dense = |shapes: &mut Shapes, name: String, n: usize, k: usize| {
        insert(shapes, &name, &[(".weight", &[n, k]), (".bias", &[n])]);
    };
    let norm = |shapes: &mut Shapes, name: String| insert(shapes, &name, &[(".weight", &[768]), (".bias", &[768])]);
    insert(&mut shapes, "query_tokens", &[("", &[1, 32, 768])]);
    norm(&mut shapes, "Qformer.bert.embeddings.LayerNorm".into());
    if text {
        insert(&mut shapes, "Qformer.bert.embeddings.word_embeddings", &[(".weight", &[30523, 768])]);
        insert(&mut shapes, "Qformer.bert.embeddings.position_embeddings", &[(".weight", &[512, 768])]);
    }
    for i in 0..12 {
        let layer = format!("Qformer.bert.encoder.layer.{i}.");
        for (kind, features) in [("attention", 768), ("crossattention", 1408)] {
            if kind == "crossattention" && i % 2 == 1 {
                continue;
            }
            for (name, input) in [("query", 768), ("key", features), ("value", features)] {
                dense(&mut shapes, format!("{layer}{kind}.self.{name}"), 768, input);
            }
            dense(&mut shapes, format!("{layer}{kind}.output.dense"), 768, 768);
            norm(&mut shapes, format!("{layer}{kind}.output.LayerNorm"));
        }
        for bank in if text { &["", "_query"][..] } else { &["_query"] } {
            dense(&mut shapes, format!("{layer}intermediate{bank}.dense"), 3072, 768);
            dense(&mut shapes, format!("{layer}output{bank}.dense"), 768, 3072);
            norm(&mut shapes, format!("{layer}output{bank}.LayerNorm"));
        }
    }
    shapes
}

/// A header, and a hole as long as the data would be.
fn write_header(path: &Path, shapes: &Shapes) {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes {
        let end = at + 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + at) as u64).unwrap();
}

/// What `xattn inspect` says behind some words, as numbers.
fn inspected<const N: usize>(name: &str, shapes: &Shapes, lines: [&str; N]) -> [usize; N] {
    let folder = Folder::new(&format!("published-{name}"));
    let path = folder.join("model.safetensors");
    write_header(&path, shapes);
    let done = Command::new(env!("CARGO_BIN_EXE_xattn")).args(["inspect", "--brief", path.to_str().unwrap()]).output();
    let done = done.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout).unwrap();
    lines.map(|line| {
        let found = text.lines().find_map(|l| l.strip_prefix(&format!("{line:<21}")));
        found.and_then(|n| n.split([' ', ',']).next()?.parse().ok()).unwrap_or_else(|| panic!("{line} in\n{text}"))
    })
}

/// Millions with one digit.
fn millions(n: usize) -> f64 {
    (n as f64 / 1e5).round() / 10.0
}

#[test]
fn open_flamingo_3b_4b_and_9b() {
    for (name, attribute, width, every, layers, block) in [
        ("3b", "transformer.blocks", 2048, 1, 24, 36.7),
        ("4b", "gpt_neox.layers", 2560, 2, 32, 56.1),
        ("9b", "transformer.blocks", 4096, 4, 32, 139.5),
    ] {
        let shapes = open_flamingo(attribute, width, (every - 1..layers).step_by(every));
        let lines = ["gated blocks", "parameters", "  resampler", "  gated blocks", "    each of them"];
        let [count, all, resampler, blocks, each] = inspected(name, &shapes, lines);
        assert_eq!(count, layers / every, "{name}");
        assert_eq!((millions(resampler), millions(each)), (63.0, block), "{name}");
        assert_eq!((blocks, all), (count * each, resampler + blocks), "{name}");
    }
}

#[test]
fn the_qformer_without_and_with_its_text_half() {
    let [qformer, all] = inspected("lavis-generation", &lavis(false), ["  Q-Former", "parameters"]);
    assert_eq!((millions(qformer), all), (105.1, qformer + 32 * 768));
    let lines = ["  Q-Former", "  embeddings", "parameters"];
    let [qformer, embeddings, all] = inspected("lavis-text", &lavis(true), lines);
    assert_eq!((millions(qformer), millions(all)), (161.8, 185.7));
    assert_eq!((embeddings, all), ((32 + 30523 + 512) * 768, qformer + embeddings));
}
