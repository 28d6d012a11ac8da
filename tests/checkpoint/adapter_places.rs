//! Which tensors an adapter changes: by their names, in copies, and where the adapter lies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use xattn::HostTensor;
use xattn::checkpoint::{AdapterChoice, Checkpoint, Files, Overrides};

use crate::adapters::*;
use crate::small::*;

/// Modules of an absent language model are counted; transformers' memory has other names.
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
    // A part of a language model with cross-attention layers: names in memory tell the owner.
    let names = ["model.language_model.layers.0.q", "model.language_model.layers.1.q"];
    let (merged, missing, _) = open("of-mllama", &["language_model.model.layers.1.q.weight"], &names);
    assert_eq!((merged.as_slice(), missing.len()), (&["language_model.model.layers.1.q.weight".to_string()][..], 1));
    // But no other module with these names, of no bridge or of a deeper model.
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

/// OpenFlamingo saves blocks under two names, trainings save copies: the adapter fits one.
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
    // An adapter without configuration is an error; a deeper one is not beside the base.
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

/// A bridge with an adapter in its folder is packed merged. `peft_adapter_beside_base`.
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

/// Split weights: `peft_unmerged`, of a bridge; a language model's do no harm.
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

/// A weight that the file holds once, under two names: a LoRA of either changes both.
#[test]
fn a_weight_under_two_names() {
    let folder = Folder::new("adapter-tied");
    let kept = tensor("kept", &[4, 6]);
    let model = folder.join("model.safetensors");
    let tensors = Tensors::from([("x.kept.weight".to_string(), kept.clone())]);
    write_tied(&model, &tensors, Some(["x.gone.weight", "x.kept.weight"]));
    let bytes = kept.bytes().unwrap();
    for module in ["x.kept", "x.gone"] {
        let path = of_resampler(&folder, module, [4, 6]);
        let files = Files::open_with(&model, AdapterChoice::At(&path)).unwrap();
        let sums = ["x.kept.weight", "x.gone.weight"].map(|name| files.bytes(name).unwrap());
        assert!(sums[0] == sums[1] && sums[0] != *bytes, "{module}");
        std::fs::remove_dir_all(path).unwrap();
    }
}
