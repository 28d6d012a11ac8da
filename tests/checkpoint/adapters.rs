//! Adapters of PEFT: merged as peft merges them, or refused by name. `adapters/make.py` made the fixtures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use xattn::HostTensor;
use xattn::checkpoint::{AdapterChoice, Checkpoint, Files, Overrides};

use crate::small::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoint/adapters").join(name)
}

/// A copy of a fixture, to be changed.
fn copy(fixture_name: &str, name: &str) -> Folder {
    let folder = Folder::new(&format!("adapter-{name}"));
    for entry in std::fs::read_dir(fixture(fixture_name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap().to_str().unwrap())).unwrap();
    }
    std::fs::remove_file(folder.join("merged.safetensors")).unwrap();
    if !folder.join("model.safetensors").exists() {
        std::fs::copy(fixture("model.safetensors"), folder.join("model.safetensors")).unwrap();
    }
    folder
}

#[track_caller]
fn said(path: &Path, choice: AdapterChoice<'_>) -> String {
    Files::open_with(path, choice).err().expect("opened").to_string()
}

/// Sets fields of the adapter's configuration.
fn set(folder: &Folder, fields: &str) {
    let path = folder.join("adapter_config.json");
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config.extend(serde_json::from_str::<serde_json::Map<_, _>>(fields).unwrap());
    std::fs::write(path, serde_json::to_string(&config).unwrap()).unwrap();
}

/// Every tensor has the bits that peft's merge_and_unload gives it. No tolerance: the elements of lora_A and lora_B are such that the sums of
/// their products are exact in f32 in any order, and factor, sum and rounding are single operations.
#[test]
fn merged_as_peft_does() {
    for (name, note) in [
        ("patterns", "is merged into 8 tensors"),
        ("rank_stabilized", "is merged into 8 tensors"),
        ("conv1d", "is merged into 8 tensors"),
        ("biases", "is merged into 4 tensors, and replaces 4"),
        ("whole", "is merged into 3 tensors, and replaces 12"),
    ] {
        let folder = copy(name, name);
        let files = Files::open(&folder.0).unwrap();
        assert_eq!(files.notes(), [format!("adapter_model.safetensors: a LoRA of \"Org/connector\" {note}")], "{name}");
        assert_eq!(files.shards(), 1);
        let base = Files::open_with(&folder.0, AdapterChoice::None).unwrap();
        assert!(base.notes().is_empty() && base.adapter().is_none());
        let expected = Files::open_one(&fixture(name).join("merged.safetensors")).unwrap();
        let mut changed = 0;
        for (tensor, info) in files.tensors() {
            let from = if expected.info(tensor).is_some() { &expected } else { &base };
            changed += usize::from(expected.info(tensor).is_some());
            let (found, right) = (files.tensor(tensor).unwrap(), from.tensor(tensor).unwrap());
            assert_eq!((found.dtype(), found.shape()), (right.dtype(), right.shape()), "{name} {tensor}");
            assert_eq!(found.to_f32().unwrap(), right.to_f32().unwrap(), "{name} {tensor}");
            assert_eq!(files.bytes(tensor).unwrap(), from.bytes(tensor).unwrap(), "{name} {tensor}");
            assert_eq!(found.into_owned().unwrap(), right, "{name} {tensor}");
            assert_eq!(info.bytes, right.bytes().unwrap().len());
        }
        // Some of what is replaced may be what it was.
        assert_eq!(changed, expected.tensors().len(), "{name}: tensors that it changes are not there");
        let adapter = files.adapter().unwrap();
        assert_eq!(adapter.path(), folder.join("adapter_model.safetensors"));
        assert_eq!((adapter.base(), adapter.missing().len()), (Some("Org/connector"), 0));
        for tensor in expected.tensors().keys() {
            assert!(adapter.merged().chain(adapter.replaced()).any(|n| n == &**tensor), "{name} {tensor}");
        }
        // Named, wherever it lies: the folder, or its file; and beside a base that is named by its file.
        let model = folder.join("model.safetensors");
        let named = fixture(name);
        for (path, choice) in [
            (model.as_path(), AdapterChoice::Beside),
            (model.as_path(), AdapterChoice::At(&named)),
            (model.as_path(), AdapterChoice::At(&named.join("adapter_model.safetensors"))),
        ] {
            let again = Files::open_with(path, choice).unwrap();
            for tensor in expected.tensors().keys() {
                assert_eq!(again.bytes(tensor).unwrap(), expected.bytes(tensor).unwrap(), "{name} {tensor}");
            }
        }
    }
}

/// Not an element more is in memory than needed, and a message shows where a merged tensor comes from.
#[test]
fn a_merged_tensor_is_not_in_memory() {
    let folder = copy("patterns", "view");
    let files = Files::open(&folder.0).unwrap();
    let t = files.tensor("model.connector.layers.0.k_proj.weight").unwrap();
    let error = t.view().unwrap_err().to_string();
    assert!(error.starts_with("host tensor: view: expected a tensor in memory, got 96 bytes behind byte "), "{error}");
    assert!(error.contains(" and an adapter's HostTensor(f32[4, 6], 96 bytes behind byte "), "{error}");
    // What changes behind it is an error, as for other tensors.
    let path = folder.join("adapter_model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes.len() as u64 + 1).unwrap();
    let error = t.bytes().unwrap_err().to_string();
    assert!(error.contains("adapter_model.safetensors: changed since it was opened"), "{error}");
}

#[test]
fn configurations_that_are_refused_by_name() {
    let folder = copy("biases", "refused");
    let advice = "xattn does not merge that; merge it with peft (merge_and_unload, then save_pretrained)";
    let original = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    for (fields, fault) in [
        (r#"{"use_dora": true}"#, format!("use_dora: expected none: {advice}")),
        (r#"{"lora_bias": true}"#, format!("lora_bias: expected none: {advice}")),
        (r#"{"layer_replication": [[0, 2]]}"#, format!("layer_replication: expected none: {advice}")),
        (r#"{"trainable_token_indices": [1]}"#, format!("trainable_token_indices: expected none: {advice}")),
        (r#"{"kasa_config": {"beta": 1}}"#, format!("kasa_config: expected none: {advice}")),
        (r#"{"use_next_years_lora": true}"#, format!("use_next_years_lora: expected none: {advice}")),
        (r#"{"peft_type": "IA3"}"#, format!("peft_type: expected LORA, found IA3: {advice}")),
        (r#"{"peft_type": null}"#, "peft_type: expected the kind of the adapter, found none".into()),
        (r#"{"init_lora_weights": "pissa_niter_4"}"#, format!("init_lora_weights: pissa_niter_4 changes the base: {advice}")),
        (
            r#"{"rank_pattern": {"(?<!x)q": 3}}"#,
            "not an adapter's configuration: rank_pattern: the pattern (?<!x)q is not understood: look-around is not supported"
                .into(),
        ),
        (r#"{"r": "8"}"#, "not an adapter's configuration: r: invalid type: string \"8\", expected u32".into()),
    ] {
        std::fs::write(folder.join("adapter_config.json"), &original).unwrap();
        set(&folder, fields);
        let error = said(&folder.0, AdapterChoice::Beside);
        let expected = format!("{}: {fault}", folder.join("adapter_config.json").display());
        assert!(error.starts_with(&expected), "{error}\n{expected}");
    }
    // Numbers and names that are not known are said, and harmless values are not.
    std::fs::write(folder.join("adapter_config.json"), &original).unwrap();
    set(
        &folder,
        r#"{"group_size": 16, "mode": "b", "use_c": false, "d": [], "e": null, "init_lora_weights": "gaussian"}"#,
    );
    let files = Files::open(&folder.0).unwrap();
    assert_eq!(
        files.notes()[1..],
        ["adapter_config.json: fields that xattn does not know were not used: group_size, mode"]
    );
    // Ranks that are not those of the matrices.
    std::fs::write(folder.join("adapter_config.json"), &original).unwrap();
    set(&folder, r#"{"rank_pattern": {"k_proj": 7}}"#);
    let fault = "module model.connector.layers.0.k_proj: expected lora_A of rank 7, found 2";
    let file = folder.join("adapter_model.safetensors").display().to_string();
    assert_eq!(said(&folder.0, AdapterChoice::Beside), format!("{file}: {fault}"));
}

/// A base of one linear layer, and an adapter for it.
fn small(name: &str, base: &[(&str, &[usize])], adapter: &[(&str, &[usize])], config: &str) -> Folder {
    let folder = Folder::new(&format!("adapter-{name}"));
    let of = |list: &[(&str, &[usize])]| -> Tensors {
        list.iter().map(|(name, shape)| (name.to_string(), tensor(name, shape))).collect()
    };
    write(&folder.join("model.safetensors"), &of(base));
    std::fs::create_dir(folder.join("a")).unwrap();
    write(&folder.join("a/adapter_model.safetensors"), &of(adapter));
    std::fs::write(folder.join("a/adapter_config.json"), config).unwrap();
    folder
}

const LORA: &str = r#"{"peft_type": "LORA", "base_model_name_or_path": "Org/a", "r": 2, "lora_alpha": 4}"#;

#[test]
fn adapters_of_other_models() {
    const Q: [(&str, &[usize]); 2] =
        [("base_model.model.x.q.lora_A.weight", &[2, 6]), ("base_model.model.x.q.lora_B.weight", &[4, 2])];
    let refused = |name: &str, base: &[(&str, &[usize])], adapter: &[(&str, &[usize])], config: &str, fault: &str| {
        let folder = small(name, base, adapter, config);
        let file = folder.join("a/adapter_model.safetensors");
        let expected = format!("{}: {}", file.display(), fault.replace("BASE", &folder.0.display().to_string()));
        assert_eq!(said(&folder.0, AdapterChoice::At(&folder.join("a"))), expected);
    };
    refused(
        "other-names",
        &[("y.q.weight", &[4, 6])],
        &Q,
        LORA,
        "an adapter of another model or of another part of it, \"Org/a\": none of the 1 tensors that it changes is in BASE: x.q.weight",
    );
    let misfit = "an adapter of another model: module x.q: lora_A [2, 6] and lora_B [4, 2] do not fit a weight of";
    refused("other-shapes", &[("x.q.weight", &[4, 5])], &Q, LORA, &format!("{misfit} [4, 5]"));
    // Transposed only where the configuration says so.
    refused("turned", &[("x.q.weight", &[6, 4])], &Q, LORA, &format!("{misfit} [6, 4]"));
    refused(
        "half",
        &[("x.q.weight", &[4, 6])],
        &Q[..1],
        LORA,
        "module x.q: expected lora_A and lora_B, found one of them",
    );
    refused(
        "magnitudes",
        &[("x.q.weight", &[4, 6])],
        &[Q[0], Q[1], ("base_model.model.x.q.lora_magnitude_vector", &[4])],
        LORA,
        "tensor x.q.lora_magnitude_vector: not one that xattn merges",
    );
    refused("empty", &[("x.q.weight", &[4, 6])], &[], LORA, "an adapter without any tensor");
}

/// Modules of a language model that is not there are counted; names differ between transformers' memory and its files.
#[test]
fn targets_are_found_by_their_names() {
    let q = |module: &str| -> [(String, Vec<usize>); 2] {
        [
            (format!("base_model.model.{module}.lora_A.weight"), vec![2, 6]),
            (format!("base_model.model.{module}.lora_B.weight"), vec![4, 2]),
        ]
    };
    let open = |name: &str, base: &[&str], modules: &[&str]| {
        let base: Vec<(&str, &[usize])> = base.iter().map(|n| (*n, &[4, 6][..])).collect();
        let adapter: Vec<_> = modules.iter().flat_map(|m| q(m)).collect();
        let adapter: Vec<(&str, &[usize])> = adapter.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
        let folder = small(name, &base, &adapter, LORA);
        let files = Files::open_with(&folder.0, AdapterChoice::At(&folder.join("a"))).unwrap();
        let merged: Vec<String> = files.adapter().unwrap().merged().map(str::to_string).collect();
        let missing = files.adapter().unwrap().missing().to_vec();
        (merged, missing, files.notes().to_vec())
    };
    let (merged, missing, notes) = open("some", &["x.q.weight"], &["x.q", "l.0.q", "l.1.q", "l.2.q", "l.3.q"]);
    assert_eq!((merged.as_slice(), missing.len()), (&["x.q.weight".to_string()][..], 4));
    assert_eq!(
        notes,
        [
            "adapter_model.safetensors: a LoRA of \"Org/a\" is merged into 1 tensors; 4 that it would change are not in these files: \
          l.0.q.weight, l.1.q.weight, l.2.q.weight and 1 more"
        ]
    );
    let (merged, ..) = open("order", &["language_model.model.layers.3.q.weight"], &["model.language_model.layers.3.q"]);
    assert_eq!(merged, ["language_model.model.layers.3.q.weight"]);
    // A model below a prefix: all of it is in the base, and the note says where.
    let (merged, _, notes) = open(
        "part",
        &["net.perceiver.layers.3.q.weight", "net.perceiver.layers.4.q.weight"],
        &["perceiver.layers.3.q", "perceiver.layers.4.q"],
    );
    assert_eq!(merged, ["net.perceiver.layers.3.q.weight", "net.perceiver.layers.4.q.weight"]);
    let note = "adapter_model.safetensors: a LoRA of \"Org/a\" is merged into 2 tensors, below net.";
    assert_eq!(notes, [note]);
    // A part that was saved alone, of the whole that was trained, however many others come first.
    let others: Vec<String> = (0..20).map(|i| format!("language_model.layers.{i}.q")).collect();
    let modules: Vec<&str> = others.iter().map(String::as_str).chain(["model.qformer.encoder.layer.3.q"]).collect();
    let (merged, missing, _) = open("of-whole", &["encoder.layer.3.q.weight", "layernorm.weight"], &modules);
    assert_eq!((merged.as_slice(), missing.len()), (&["encoder.layer.3.q.weight".to_string()][..], 20));
    let (merged, missing, _) =
        open("of-list", &["0.q.weight"], &["model.gated_cross_attn_layers.0.q", "model.gated_cross_attn_layers.1.q"]);
    assert_eq!((merged.as_slice(), missing.len()), (&["0.q.weight".to_string()][..], 1));
    // But no other module with the same names in it: neither one that is no bridge's, nor a deeper model's.
    let refused = |name: &str, base: &[&str], modules: &[&str]| {
        let base: Vec<(&str, &[usize])> = base.iter().map(|n| (*n, &[4, 6][..])).collect();
        let adapter: Vec<_> = modules.iter().flat_map(|m| q(m)).collect();
        let adapter: Vec<(&str, &[usize])> = adapter.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
        let folder = small(name, &base, &adapter, LORA);
        let error = said(&folder.0, AdapterChoice::At(&folder.join("a")));
        let fault = format!(
            "an adapter of another model or of another part of it, \"Org/a\": none of the {} tensors that it changes is in ",
            modules.len()
        );
        assert!(error.contains(&fault), "{error}");
    };
    refused("of-other", &["encoder.layer.3.q.weight"], &["vit.encoder.layer.3.q"]);
    let resampler = ["connector.layers.0.q.weight", "connector.layers.1.q.weight"];
    refused("deeper", &resampler, &["model.layers.0.q", "model.layers.1.q", "model.layers.2.q"]);
    refused("as-deep", &resampler, &["model.layers.0.q", "model.layers.1.q"]);
    refused("of-alone", &["layers.0.q.weight", "layers.1.q.weight"], &["model.layers.0.q", "model.layers.2.q"]);
    refused("tails", &["qformer.encoder.layer.0.attention.q.weight"], &["attention.q"]);
    // The exact name counts more than a similar one, and one of two similar ones is not chosen.
    let (merged, ..) = open("exact", &["model.x.q.weight", "x.q.weight"], &["x.q"]);
    assert_eq!(merged, ["x.q.weight"]);
    let (merged, missing, _) = open("two", &["a.model.x.q.weight", "model.a.x.q.weight", "k.weight"], &["a.x.q", "k"]);
    assert_eq!((merged, missing), (vec!["k.weight".to_string()], vec!["a.x.q.weight".to_string()]));
}

/// Which of a weight's two dimensions are the inputs: peft asks the class of each module, and saves one `fan_in_fan_out` for all.
#[test]
fn weights_of_conv1d_among_others() {
    // Whether B·A is added to the weight, or its transpose: B·A of ones in its first row alone.
    let turned = |name: &str, flag: bool, modules: &[(&str, [usize; 2])]| -> Vec<bool> {
        let folder = Folder::new(&format!("adapter-fan-{name}"));
        let host = |values: &[f32], shape: &[usize]| HostTensor::from_slice(values, shape).unwrap();
        let (mut base, mut adapter) = (Tensors::new(), Tensors::new());
        for (module, [rows, columns]) in modules {
            let (outputs, inputs) = if *module == "c_attn" { (*columns, *rows) } else { (*rows, *columns) };
            let zeros = |n: usize| vec![0.0f32; n];
            base.insert(format!("{module}.weight"), host(&zeros(rows * columns), &[*rows, *columns]));
            let mut b = zeros(outputs);
            b[0] = 1.0;
            adapter.insert(format!("base_model.model.{module}.lora_A.weight"), host(&vec![1.0; inputs], &[1, inputs]));
            adapter.insert(format!("base_model.model.{module}.lora_B.weight"), host(&b, &[outputs, 1]));
        }
        write(&folder.join("model.safetensors"), &base);
        write(&folder.join("adapter_model.safetensors"), &adapter);
        let config = format!(r#"{{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "fan_in_fan_out": {flag}}}"#);
        std::fs::write(folder.join("adapter_config.json"), config).unwrap();
        let files = Files::open(&folder.0).unwrap();
        let of = |(module, shape): &(&str, [usize; 2])| {
            let weight = files.tensor(&format!("{module}.weight")).unwrap().to_f32().unwrap();
            // Element [1, 0] is one only of the transpose.
            weight[shape[1]] == 1.0
        };
        modules.iter().map(of).collect()
    };
    let (square, conv1d, linear) = ([4, 4], ("c_attn", [2, 6]), ("to_q", [6, 2]));
    // All of one class; the fixture `conv1d` is peft's word for it.
    assert_eq!(turned("all", true, &[("q", square), ("k", square)]), [true, true]);
    assert_eq!(turned("none", false, &[("q", square), linear]), [false, false]);
    // GPT-2's modules and others, in either order of their making.
    for flag in [true, false] {
        let modules = [conv1d, linear, ("c_proj", square), ("to_out", square)];
        assert_eq!(turned(&format!("both-{flag}"), flag, &modules), [true, false, true, false], "{flag}");
    }
}

/// A convolution of the vision encoder, and NaN in a field that nobody reads.
#[test]
fn what_is_no_matrix_stays_as_it_is() {
    let name = |module: &str, part: &str| format!("base_model.model.{module}.lora_{part}.weight");
    let adapter = [
        (name("c", "A"), vec![2, 3, 1, 1]),
        (name("c", "B"), vec![4, 2, 1, 1]),
        (name("q", "A"), vec![2, 6]),
        (name("q", "B"), vec![4, 2]),
    ];
    let adapter: Vec<(&str, &[usize])> = adapter.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    let config = LORA.replace("{", "{\"lora_dropout\": NaN, ");
    let folder = small("convolution", &[("c.weight", &[4, 3, 1, 1]), ("q.weight", &[4, 6])], &adapter, &config);
    let files = Files::open_with(&folder.0, AdapterChoice::At(&folder.join("a"))).unwrap();
    let note = "adapter_model.safetensors: a LoRA of \"Org/a\" is merged into 1 tensors; 1 are no matrices of reals and stay as they are: \
                c.weight";
    assert_eq!(files.notes(), [note]);
    let base = Files::open_with(&folder.0, AdapterChoice::None).unwrap();
    assert_eq!(files.bytes("c.weight").unwrap(), base.bytes("c.weight").unwrap());
    assert_ne!(files.bytes("q.weight").unwrap(), base.bytes("q.weight").unwrap());
}

/// A LoRA of a resampler's first q projection.
fn of_resampler(folder: &Folder, module: &str, [rows, columns]: [usize; 2]) -> PathBuf {
    let path = folder.join("lora");
    std::fs::create_dir(&path).unwrap();
    let name = |part: &str| format!("base_model.model.{module}.lora_{part}.weight");
    let adapter: Tensors = [(name("A"), tensor("a", &[2, columns])), (name("B"), tensor("b", &[rows, 2]))].into();
    write(&path.join("adapter_model.safetensors"), &adapter);
    std::fs::write(path.join("adapter_config.json"), LORA).unwrap();
    path
}

/// OpenFlamingo saves each block under two names, and trainings save copies: the adapter is for one of them.
#[test]
fn second_names_and_copies_of_what_an_adapter_changes() {
    let block = open_flamingo_block();
    let shape: [usize; 2] = block["attn.to_q.weight"].shape().try_into().unwrap();
    let folder = Folder::new("adapter-second-names");
    let names =
        ["lang_encoder.gated_cross_attn_layers.0.", "lang_encoder.transformer.blocks.0.gated_cross_attn_layer."];
    write(&folder.join("model.safetensors"), &all(names.map(|name| below(name, &block))));
    let read = |files: &Folder, path: &Path, prefix: Option<&str>| -> Result<(String, Vec<f32>, Vec<String>), String> {
        let checkpoint = Checkpoint::open_with(&files.0, None, AdapterChoice::At(path)).map_err(|e| e.to_string())?;
        let overrides = Overrides { prefix: prefix.map(String::from), ..Overrides::default() };
        let b = checkpoint.bridges(&overrides).map_err(|e| e.to_string())?;
        let block = &b.gated_blocks[0];
        Ok((block.prefix.clone(), block.weights.q.weight[0].to_f32().unwrap(), b.notes.clone()))
    };
    let base = block["attn.to_q.weight"].to_f32().unwrap();
    let mut sums = Vec::new();
    for name in names {
        let path = of_resampler(&folder, &format!("{name}attn.to_q"), shape);
        let (prefix, sum, notes) = read(&folder, &path, None).unwrap();
        assert_eq!(prefix, name);
        assert!(
            notes.contains(&"adapter_model.safetensors: it changes 1 tensors of the bridge, and 0 outside it".into())
        );
        sums.push(sum);
        std::fs::remove_dir_all(path).unwrap();
    }
    assert!(sums[0] == sums[1] && sums[0] != base);
    // Copies: of equal ones either, of others the one that is chosen.
    let other: Tensors = block.iter().map(|(name, t)| (name.clone(), tensor("other", t.shape()))).collect();
    for (name, second) in [("equal", &block), ("other", &other)] {
        let folder = Folder::new(&format!("adapter-copies-{name}"));
        let at = |copy: &str| format!("{copy}.gated_cross_attn_layers.0.");
        write(&folder.join("model.safetensors"), &all([below(&at("student"), &block), below(&at("teacher"), second)]));
        let path = of_resampler(&folder, "gated_cross_attn_layers.0.attn.to_q", shape);
        let note = "adapter_model.safetensors: a LoRA of \"Org/a\" is merged into 2 tensors, below student., teacher.";
        let (_, sum, notes) = read(&folder, &path, Some("student.")).unwrap();
        assert!(sum == sums[0] && notes.contains(&note.into()), "{notes:?}");
        match (name, read(&folder, &path, None)) {
            ("equal", Ok((_, sum, _))) => assert_eq!(sum, sums[0]),
            ("other", Err(error)) => assert!(error.contains("different weights at student.gated"), "{error}"),
            (_, answer) => panic!("{answer:?}"),
        }
    }
    // Below a model's own module too.
    let folder = Folder::new("adapter-copies-deeper");
    let at = |copy: &str| format!("model.{copy}.gated_cross_attn_layers.0.");
    write(&folder.join("model.safetensors"), &all([below(&at("student"), &block), below(&at("teacher"), &other)]));
    let path = of_resampler(&folder, "gated_cross_attn_layers.0.attn.to_q", shape);
    assert_eq!(read(&folder, &path, Some("model.student.")).unwrap().1, sums[0]);
    // Of a module that is no bridge and one that is, none.
    let folder = Folder::new("adapter-alike");
    let name = "gated_cross_attn_layer.attn.to_q";
    let one: Tensors = [(format!("text.{name}.weight"), tensor("t", &shape))].into();
    write(&folder.join("model.safetensors"), &all([below("lang.0.gated_cross_attn_layer.", &block), one]));
    let path = of_resampler(&folder, name, shape);
    let fault = "the tensors that it changes are below lang.0., text. alike: save the part that it is for alone, or name its tensors in full";
    let file = path.join("adapter_model.safetensors");
    assert_eq!(read(&folder, &path, None).unwrap_err(), format!("{}: {fault}", file.display()));
}

#[test]
fn one_of_several_is_named() {
    let folder = copy("biases", "several");
    let model = folder.join("model.safetensors");
    let place = |to: &str| {
        std::fs::create_dir(folder.join(to)).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(fixture("biases").join(file), folder.join(&format!("{to}/{file}"))).unwrap();
        }
    };
    // A training's earlier states are none to choose from.
    place("checkpoint-500");
    assert!(Files::open(&folder.0).unwrap().adapter().is_some());
    place("other");
    let shown =
        |names: &[&str]| names.iter().map(|n| folder.join(n).display().to_string()).collect::<Vec<_>>().join(", ");
    let error = said(&folder.0, AdapterChoice::Beside);
    let expected = format!(
        "{}: 2 adapters could be merged: {}, {}; --adapter names one, or none",
        folder.0.display(),
        folder.0.display(),
        shown(&["other"])
    );
    assert_eq!(error, expected);
    assert!(Files::open_with(&folder.0, AdapterChoice::At(&folder.join("other"))).unwrap().adapter().is_some());
    assert!(Files::open_with(&folder.0, AdapterChoice::None).unwrap().adapter().is_none());
    // One without its configuration is not passed over, and one that lies deeper is not beside the base.
    std::fs::remove_dir_all(folder.join("other")).unwrap();
    std::fs::remove_file(folder.join("adapter_config.json")).unwrap();
    let fault = "no adapter_config.json lies beside this adapter: it tells rank and alpha; --adapter none leaves the adapter out";
    let file = folder.join("adapter_model.safetensors");
    assert_eq!(said(&folder.0, AdapterChoice::Beside), format!("{}: {fault}", file.display()));
    std::fs::remove_file(file).unwrap();
    place("other");
    let files = Files::open(&folder.0).unwrap();
    assert_eq!(files.notes(), ["the adapter in the folder other is not merged; --adapter merges it"]);
    place("third");
    let error = said(&folder.0, AdapterChoice::Beside);
    assert!(error.contains(&format!("2 adapters could be merged: {}", shown(&["other", "third"]))), "{error}");
    // PEFT saves an adapter with a name of its own in a folder of that name.
    let outer = folder.join("outer");
    std::fs::create_dir(&outer).unwrap();
    std::fs::rename(folder.join("third"), outer.join("mine")).unwrap();
    let files = Files::open_with(&model, AdapterChoice::At(&outer)).unwrap();
    assert_eq!(files.adapter().unwrap().path(), outer.join("mine/adapter_model.safetensors"));
    for n in 1..=2 {
        std::fs::copy(
            fixture("biases").join("adapter_model.safetensors"),
            outer.join(format!("mine/adapter_model-0000{n}-of-00002.safetensors")),
        )
        .unwrap();
    }
    std::fs::remove_file(outer.join("mine/adapter_model.safetensors")).unwrap();
    let error = said(&model, AdapterChoice::At(&outer));
    let shards = "adapter_model-00001-of-00002.safetensors, adapter_model-00002-of-00002.safetensors";
    let fault = format!("the adapter is in 2 shards ({shards}): save it in one file");
    assert_eq!(error, format!("{}: {fault}", outer.join("mine").display()));
    // Several files of one folder.
    let other = folder.join("other");
    std::fs::copy(other.join("adapter_model.safetensors"), other.join("adapter_model_2.safetensors")).unwrap();
    let error = said(&model, AdapterChoice::At(&other));
    let files = shown(&["other/adapter_model.safetensors", "other/adapter_model_2.safetensors"]);
    assert_eq!(
        error,
        format!("{}: 2 adapters could be merged: {files}; --adapter names one, or none", other.display())
    );
    let one = other.join("adapter_model_2.safetensors");
    assert_eq!(Files::open_with(&model, AdapterChoice::At(&one)).unwrap().adapter().unwrap().path(), one);
}

#[test]
fn adapters_that_are_not_whole() {
    let folder = copy("biases", "parts");
    let model = folder.join("model.safetensors");
    let named = folder.join("named");
    std::fs::create_dir(&named).unwrap();
    let at = || said(&model, AdapterChoice::At(&named));
    assert_eq!(at(), format!("{}: no adapter_config.json is in this folder", named.display()));
    std::fs::copy(folder.join("adapter_config.json"), named.join("adapter_config.json")).unwrap();
    assert_eq!(at(), format!("{}: adapter_config.json is there, but no adapter_model.safetensors", named.display()));
    std::fs::write(named.join("adapter_model.bin"), b"PK\x03\x04").unwrap();
    let pickle = "not a safetensors file: it is a PyTorch pickle, which can run code when it is read; convert it: \
                  scripts/convert-checkpoint IN OUT.safetensors";
    assert_eq!(at(), format!("{}: {pickle}", named.join("adapter_model.bin").display()));
    let alone = folder.join("alone.safetensors");
    std::fs::copy(folder.join("adapter_model.safetensors"), &alone).unwrap();
    std::fs::remove_file(folder.join("adapter_config.json")).unwrap();
    let error = said(&model, AdapterChoice::At(&alone));
    assert_eq!(
        error,
        format!("{}: no adapter_config.json lies beside this adapter: it tells rank and alpha", alone.display())
    );
    // As a checkpoint it is none, and said to be an adapter by its names.
    let error = said(&alone, AdapterChoice::Beside);
    let fault = "the matrices of a LoRA adapter, not a checkpoint, and without the adapter_config.json that tells their alpha: put it \
                 beside them, open the base with --adapter and that folder";
    assert_eq!(error, format!("{}: {fault}", alone.display()));
}

/// The folder that only holds an adapter: `peft_adapter_only`.
#[test]
fn an_adapter_without_its_base() {
    let folder = Folder::new("adapter-only");
    std::fs::write(folder.join("adapter_config.json"), LORA).unwrap();
    std::fs::copy(fixture("biases").join("adapter_model.safetensors"), folder.join("adapter_model.safetensors"))
        .unwrap();
    let fault = "a PEFT adapter (LORA) of \"Org/a\", not a checkpoint: open its base with --adapter and this folder, or merge it (peft's \
                 merge_and_unload, then save_pretrained) and open the folder that is saved";
    let expected = format!("{}: {fault}", folder.join("adapter_config.json").display());
    assert_eq!(said(&folder.0, AdapterChoice::Beside), expected);
    assert_eq!(said(&folder.join("adapter_model.safetensors"), AdapterChoice::Beside), expected);
}

/// A bridge with an adapter in its folder: what is packed is the sum. `peft_adapter_beside_base`, with matrices that fit.
#[test]
fn a_bridge_with_an_adapter() {
    let folder = Folder::new("adapter-bridge");
    let base = below("model.connector.", &idefics2());
    write(&folder.join("model.safetensors"), &base);
    std::fs::write(folder.join("config.json"), IDEFICS2_CONFIG).unwrap();
    let gate = "model.connector.modality_projection.gate_proj";
    let (a, b) = (tensor("a", &[2, 10]), tensor("b", &[20, 2]));
    let adapter: Tensors = [
        (format!("base_model.model.{gate}.lora_A.weight"), a.clone()),
        (format!("base_model.model.{gate}.lora_B.weight"), b.clone()),
    ]
    .into();
    write(&folder.join("adapter_model.safetensors"), &adapter);
    std::fs::write(folder.join("adapter_config.json"), LORA).unwrap();
    let checkpoint = Checkpoint::open(&folder.0, None).unwrap();
    let bridges = checkpoint.bridges(&Overrides::default()).unwrap();
    let (a, b, w) = (a.to_f32().unwrap(), b.to_f32().unwrap(), base[&format!("{gate}.weight")].to_f32().unwrap());
    let expected: Vec<f32> =
        (0..200).map(|i| w[i] + 2.0 * (0..2).map(|r| b[i / 10 * 2 + r] * a[r * 10 + i % 10]).sum::<f32>()).collect();
    let (_, weights) = bridges.resampler.as_ref().unwrap();
    let found = weights.input_mlp.as_ref().unwrap().gate.as_ref().unwrap();
    assert_eq!(*found, HostTensor::from_slice(&expected, &[20, 10]).unwrap());
    assert_ne!(expected, w);
}

/// Weights that are split: `peft_unmerged`, of a bridge; those of a language model beside it do no harm.
#[test]
fn unmerged_weights() {
    let folder = Folder::new("adapter-unmerged");
    let names =
        ["b.q.base_layer.weight", "b.q.lora_A.default.weight", "b.q.lora_B.default.weight", "l.k.base_layer.weight"];
    let tensors: BTreeMap<String, HostTensor<'static>> =
        names.iter().map(|n| (format!("base_model.model.{n}"), tensor(n, &[2, 2]))).collect();
    write(&folder.join("model.safetensors"), &tensors);
    let files = Files::open(&folder.0).unwrap();
    let expected = "an unmerged LoRA: 1 weights (b.q.weight) are split into base_layer, lora_A and lora_B, and no tensor tells the alpha; \
                    merge it (peft's merge_and_unload, then save_pretrained) and open what is saved";
    assert_eq!(files.obstacle(|name| name.starts_with("b.")).as_deref(), Some(expected));
    assert_eq!(files.obstacle(|name| name.starts_with("c.")), None);
}
