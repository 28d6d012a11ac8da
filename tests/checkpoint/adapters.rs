//! PEFT adapters, merged as in PEFT or refused by name. `adapters/make.py` made the fixtures.

use std::path::{Path, PathBuf};

use xattn::HostTensor;
use xattn::checkpoint::{AdapterChoice, Files};

use crate::small::*;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoint/adapters").join(name)
}

/// A copy of a fixture, to be changed.
pub fn copy(fixture_name: &str, name: &str) -> Folder {
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
pub fn said(path: &Path, choice: AdapterChoice<'_>) -> String {
    Files::open_with(path, choice).err().expect("opened").to_string()
}

/// Sets fields of the adapter's configuration.
pub fn set(folder: &Folder, fields: &str) {
    let path = folder.join("adapter_config.json");
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config.extend(serde_json::from_str::<serde_json::Map<_, _>>(fields).unwrap());
    std::fs::write(path, serde_json::to_string(&config).unwrap()).unwrap();
}

/// Every tensor has the bits that peft's merge_and_unload gives it. No tolerance: the elements of
/// lora_A and lora_B are such that the sums of their products are exact in f32 in any order, and
/// factor, sum and rounding are single operations.
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
        // Named anywhere: by folder or file; and beside a base named by its file.
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

/// No element more than needed is in memory; messages tell a merged tensor's origin.
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
pub fn small(name: &str, base: &[(&str, &[usize])], adapter: &[(&str, &[usize])], config: &str) -> Folder {
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

pub const LORA: &str = r#"{"peft_type": "LORA", "base_model_name_or_path": "Org/a", "r": 2, "lora_alpha": 4}"#;

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

/// Which of a weight's two dimensions are the inputs: peft asks the class of each module, and saves
/// one `fan_in_fan_out` for all.
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
    // Only the language model has Conv1Ds, though the last module decided what was saved.
    assert_eq!(turned("beside", true, &[("to_q", square), conv1d]), [false, true]);
    assert_eq!(turned("beside-square", true, &[("to_q", square), ("c_attn", square)]), [false, true]);
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
