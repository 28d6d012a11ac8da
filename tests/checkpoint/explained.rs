//! Every file is explained: what it is, by its first bytes, and quantised weights by their names.

use std::path::Path;

use xattn::checkpoint::{Checkpoint, Family, Files, Overrides};

use crate::small::*;

#[track_caller]
fn said(path: &Path) -> String {
    Files::open(path).err().expect("opened").to_string()
}

#[test]
fn files_that_are_something_else() {
    let folder = Folder::new("something-else");
    let path = folder.join("model.safetensors");
    let npz = [&b"PK\x03\x04"[..], &[0; 22], &[9, 0, 0, 0], b"arr_0.npy", &[0; 90]].concat();
    let unfinished = [0; 4096];
    for (bytes, what) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 4400000000\n"[..],
            "it is a Git LFS pointer, not the file of 4400000000 bytes that it stands for; fetch it: git lfs pull",
        ),
        (b"", "it is empty"),
        (
            b"<!DOCTYPE html>\n<html><title>Sign in</title></html>",
            "it is an HTML page, as servers send instead of a file: <!DOCTYPE html>",
        ),
        (
            b"<?xml version=\"1.0\"?><Error/>",
            "it is an XML text, as servers send instead of a file: <?xml version=\"1.0\"?><Error/>",
        ),
        (b"{\"error\":\"Repository not found\"}", "it is a JSON text: {\"error\":\"Repository not found\"}"),
        (b"Entry not found", "it is a text: Entry not found"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "it is a GGUF file of llama.cpp; xattn reads the safetensors files it was made of"),
        (b"\x93NUMPY\x01\0v\0{'descr'", "it is a NumPy array (.npy); save it with safetensors.numpy"),
        (&npz, "it is an archive of NumPy arrays (.npz); save them with safetensors.numpy"),
        (
            b"PK\x03\x04",
            "it is a PyTorch pickle, which can run code when it is read; convert it: scripts/convert-checkpoint IN OUT.safetensors",
        ),
        (
            b"\x80\x02}q\0X\x05\0\0\0model",
            "it is a Python pickle, which can run code when it is read; convert it: scripts/convert-checkpoint IN OUT.safetensors",
        ),
        (&unfinished, "its first bytes are zero, as in a download that has not finished"),
        (b"BZh91AY&SY\0\0\0\0", "it is compressed by bzip2; decompress it first"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "it is a PNG image"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "it is a JPEG image"),
        (b"\x7fELF\x02\x01\x01\0\0\0\0\0", "it is an ELF program or library"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "it is a PDF document"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09", "header: expected at most 67108864 bytes, found 578437695752307201"),
    ] {
        replace(&path, bytes);
        let expected = format!("{}: not a safetensors file: {what}", path.display());
        for opened in [said(&path), said(&folder.0), Files::open_one(&path).err().unwrap().to_string()] {
            assert_eq!(opened, expected);
        }
    }
    // The same of a JSON text that should be there.
    std::fs::remove_file(&path).unwrap();
    // A clone without LFS, of a model that was saved by PyTorch.
    let pointer = folder.join("pytorch_model.bin");
    replace(&pointer, "version https://git-lfs.github.com/spec/v1\nsize 70000\n");
    let what = "it is a Git LFS pointer, not the file of 70000 bytes that it stands for; fetch it: git lfs pull";
    assert_eq!(said(&folder.0), format!("{}: {what}", pointer.display()));
    std::fs::remove_file(&pointer).unwrap();
    let index = folder.join("model.safetensors.index.json");
    for (bytes, what) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\nsize 70000\n"[..],
            "it is a Git LFS pointer, not the file of 70000 bytes that it stands for; fetch it: git lfs pull",
        ),
        (b"<html>", "it is an HTML page, as servers send instead of a file: <html>"),
        (b"", "it is empty"),
        (b"\x1f\x8b\x08\0", "it is compressed by gzip; decompress it first"),
    ] {
        replace(&index, bytes);
        assert_eq!(said(&folder.0), format!("{}: not a JSON text: {what}", index.display()));
    }
    write(&path, &dense("a", 2, 2));
    let config = folder.join("config.json");
    std::fs::write(&config, "<html>").unwrap();
    let page = "not a JSON text: it is an HTML page, as servers send instead of a file: <html>";
    assert_eq!(said(&folder.0), format!("{}: {page}", config.display()));
    std::fs::copy(&path, &config).unwrap();
    assert_eq!(said(&folder.0), format!("{}: not a JSON text: it is a safetensors file", config.display()));
}

/// `truncated_download`, at every length.
#[test]
fn files_cut_short() {
    let folder = Folder::new("cut-short");
    let path = folder.join("model.safetensors");
    write(&path, &dense("a", 3, 2));
    let bytes = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for end in 1..bytes.len() {
        replace(&path, &bytes[..end]);
        let cut = match end {
            1..8 => format!("cut short: {end} of at least 8 bytes"),
            _ if end < header => format!("cut short: {end} of at least {header} bytes, within the header"),
            _ => format!("cut short: {end} of {} bytes", bytes.len()),
        };
        assert_eq!(said(&path), format!("{}: {cut}", path.display()));
    }
}

#[test]
fn bytes_behind_the_last_tensor() {
    let folder = Folder::new("bytes-behind");
    let path = folder.join("model.safetensors");
    write(&path, &dense("a", 3, 2));
    let bytes = std::fs::read(&path).unwrap();
    for count in [1, 5] {
        replace(&path, [&bytes[..], &vec![0; count]].concat());
        let expected = format!("not a safetensors file: no tensor owns the last {count} bytes");
        assert_eq!(said(&path), format!("{}: {expected}", path.display()));
    }
}

/// `safetensors_named_ckpt`: a file is what its bytes are.
#[test]
fn safetensors_under_other_names() {
    let folder = Folder::new("renamed");
    let tensors = below("model.connector.", &idefics2());
    std::fs::write(folder.join("config.json"), IDEFICS2_CONFIG).unwrap();
    for name in ["model.ckpt", "pytorch_model.bin", "a.pt", "weights", "b.json"] {
        let path = folder.join(name);
        write(&path, &tensors);
        Checkpoint::open(&path, None).unwrap().bridges(&Overrides::default()).unwrap();
        if name.contains('.') && name != "b.json" {
            Checkpoint::open(&folder.0, None).unwrap();
        }
        std::fs::remove_file(path).unwrap();
    }
    for name in ["a.ckpt", "b.bin"] {
        write(&folder.join(name), &tensors);
    }
    let error = said(&folder.0);
    assert!(error.ends_with("several files could hold the checkpoint; name one of a.ckpt, b.bin"), "{error}");
}

/// `folder_of_pickles_names_optimizer`, and folders with weights of other formats, or none.
#[test]
fn folders_without_safetensors() {
    let folder = Folder::new("pickles-only");
    let there = |name: &str| std::fs::write(folder.join(name), b"PK\x03\x04").unwrap();
    let expect = |what: &str| assert_eq!(said(&folder.0), format!("{}: {what}", folder.0.display()));
    expect("no file in this folder ends in .safetensors");
    for name in ["optimizer.pt", "training_args.bin", "scheduler.pt", "rng_state_0.pth"] {
        there(name);
    }
    expect(
        "no weights are in this folder, only the state of a trainer: optimizer.pt, rng_state_0.pth, scheduler.pt and 1 more",
    );
    there("model.gguf");
    expect("no file in this folder is a safetensors file; there are weights of other formats: model.gguf");
    let advice = |what: &str| {
        format!("which can run code when it is read; convert it: scripts/convert-checkpoint {what} OUT.safetensors")
    };
    there("pytorch_model-00002-of-00002.bin");
    expect(&format!("its weights are a PyTorch pickle, {}", advice("pytorch_model-00002-of-00002.bin")));
    there("pytorch_model-00001-of-00002.bin");
    std::fs::write(folder.join("pytorch_model.bin.index.json"), r#"{"weight_map": {}}"#).unwrap();
    expect(&format!(
        "its weights are 2 PyTorch pickles with the index pytorch_model.bin.index.json (pytorch_model-00001-of-00002.bin, \
         pytorch_model-00002-of-00002.bin), {}",
        advice("pytorch_model.bin.index.json")
    ));
}

/// Files with PyTorch's names: only a pickle, or an archive with one, is called a pickle.
#[test]
fn folders_of_files_that_are_no_pickles() {
    let others = [
        (&b"<html>Sign in</html>"[..], "it is an HTML page, as servers send instead of a file: <html>Sign in</html>"),
        (b"<?xml version='1.0'?>", "it is an XML text, as servers send instead of a file: <?xml version='1.0'?>"),
        (b"{\"error\":\"none\"}", "it is a JSON text: {\"error\":\"none\"}"),
        (b"GGUF\x03\0\0\0", "it is a GGUF file of llama.cpp; xattn reads the safetensors files it was made of"),
        (b"\x93NUMPY\x01\0v\0{'descr'", "it is a NumPy array (.npy); save it with safetensors.numpy"),
        (b"", "it is empty"),
        (&[0; 600], "its first bytes are zero, as in a download that has not finished"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09", "it is neither a safetensors file nor a pickle"),
    ];
    let folder = Folder::new("no-pickles");
    let at = |name: &str, what: &str| assert_eq!(said(&folder.0), format!("{}: {what}", folder.join(name).display()));
    let of_all = |what: &str| assert_eq!(said(&folder.0), format!("{}: {what}", folder.0.display()));
    let advice = |what: &str| {
        format!("which can run code when it is read; convert it: scripts/convert-checkpoint {what} OUT.safetensors")
    };
    for name in ["pytorch_model.bin", "model.ckpt", "a.pt", "b.pth"] {
        let path = folder.join(name);
        for (bytes, what) in others {
            replace(&path, bytes);
            at(name, what);
        }
        for pickle in [&b"PK\x03\x04"[..], b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46", b"\x80\x04\x95\x01"] {
            replace(&path, pickle);
            of_all(&format!("its weights are a PyTorch pickle, {}", advice(name)));
        }
        std::fs::remove_file(path).unwrap();
    }
    // A pickle's own archive only.
    let npz = [&b"PK\x03\x04"[..], &[0; 22], &[9, 0, 0, 0], b"arr_0.npy", &[0; 90]].concat();
    replace(&folder.join("a.bin"), npz);
    at("a.bin", "it is an archive of NumPy arrays (.npz); save them with safetensors.numpy");
    // Several files.
    let arrays = "a.bin (it is an archive of NumPy arrays (.npz); save them with safetensors.numpy)";
    replace(&folder.join("b.ckpt"), "");
    of_all(&format!("its weights are neither safetensors files nor pickles: {arrays}, b.ckpt (it is empty)"));
    replace(&folder.join("c.pt"), "PK\x03\x04");
    of_all(&format!(
        "its weights are a PyTorch pickle, {}; not pickles: {arrays}, b.ckpt (it is empty)",
        advice("c.pt")
    ));
    // Shards of an index.
    for (number, bytes) in [(1, "PK\x03\x04"), (2, "PK\x03\x04"), (3, "Not found")] {
        replace(&folder.join(&format!("pytorch_model-0000{number}-of-00003.bin")), bytes);
    }
    replace(&folder.join("pytorch_model.bin.index.json"), "{}");
    of_all(&format!(
        "its weights are 2 PyTorch pickles with the index pytorch_model.bin.index.json (pytorch_model-00001-of-00003.bin, \
         pytorch_model-00002-of-00003.bin), {}; not pickles: pytorch_model-00003-of-00003.bin (it is a text: Not found)",
        advice("pytorch_model.bin.index.json")
    ));
}

/// A checkpoint of tensors by name, type and bytes per element, of which nobody reads the bytes.
fn typed(name: &str, tensors: &[(&str, &str, usize)], config: Option<&str>) -> (Folder, Files) {
    let folder = Folder::new(&format!("quantised-{name}"));
    let (mut header, mut bytes) = (serde_json::Map::new(), 0);
    for (name, dtype, size) in tensors {
        let entry = serde_json::json!({"dtype": dtype, "shape": [2], "data_offsets": [bytes, bytes + 2 * size]});
        header.insert(name.to_string(), entry);
        bytes += 2 * size;
    }
    let header = serde_json::to_string(&header).unwrap();
    let whole = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; bytes]].concat();
    std::fs::write(folder.join("model.safetensors"), whole).unwrap();
    if let Some(config) = config {
        std::fs::write(folder.join("config.json"), config).unwrap();
    }
    let files = Files::open(&folder.0).unwrap();
    (folder, files)
}

#[test]
fn quantised_weights() {
    let advice = "save the model with the bridge in f32, f16 or bf16";
    let nf4 = [
        ("b.q.weight", "U8", 1),
        ("b.q.weight.absmax", "U8", 1),
        ("b.q.weight.quant_state.bitsandbytes__nf4", "U8", 1),
    ];
    let bnb8 = [("b.q.weight", "I8", 1), ("b.q.SCB", "F32", 4)];
    let gptq = [("b.q.qweight", "I32", 4), ("b.q.g_idx", "I32", 4), ("b.q.scales", "F16", 2)];
    let awq = [("b.q.qweight", "I32", 4), ("b.q.qzeros", "I32", 4)];
    let fp8 = [("b.q.weight", "F8_E4M3", 1), ("b.q.weight_scale", "F32", 4)];
    let mlx = [("b.q.weight", "U32", 4), ("b.q.scales", "F16", 2), ("b.q.biases", "F16", 2)];
    let hqq = [("b.q.W_q", "U8", 1), ("b.q.meta", "F32", 4)];
    let packed = [("b.q.weight_packed", "I32", 4), ("b.q.weight_shape", "I32", 4)];
    let bare = [("b.q.weight", "F8_E5M2", 1)];
    for (name, tensors, config, what) in [
        (
            "nf4",
            &nf4[..],
            Some(
                r#"{"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}}"#,
            ),
            "config.json declares bitsandbytes 4-bit (nf4) weights",
        ),
        ("nf4-alone", &nf4, None, "bitsandbytes 4-bit (nf4) weights"),
        (
            "bnb8",
            &bnb8,
            Some(r#"{"quantization_config": {"load_in_8bit": true}}"#),
            "config.json declares bitsandbytes 8-bit weights",
        ),
        ("bnb8-alone", &bnb8, None, "bitsandbytes 8-bit weights"),
        (
            "gptq",
            &gptq,
            Some(r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#),
            "config.json declares GPTQ 4-bit weights",
        ),
        ("gptq-alone", &gptq, None, "GPTQ weights"),
        (
            "awq",
            &awq,
            Some(r#"{"quantization_config": {"quant_method": "awq", "bits": 4}}"#),
            "config.json declares AWQ 4-bit weights",
        ),
        ("awq-alone", &awq, None, "AWQ or GPTQ weights"),
        (
            "fp8",
            &fp8,
            Some(r#"{"quantization_config": {"quant_method": "fbgemm_fp8"}}"#),
            "config.json declares FP8 weights",
        ),
        ("fp8-alone", &fp8, None, "FP8 or int8 weights"),
        (
            "mlx",
            &mlx,
            Some(r#"{"quantization": {"group_size": 64, "bits": 4}}"#),
            "config.json declares MLX 4-bit weights",
        ),
        ("mlx-alone", &mlx, None, "MLX weights"),
        ("hqq", &hqq, None, "HQQ weights"),
        (
            "packed",
            &packed,
            Some(r#"{"quantization_config": {"quant_method": "compressed-tensors"}}"#),
            "config.json declares compressed-tensors weights",
        ),
        ("packed-alone", &packed, None, "compressed-tensors weights"),
        ("bare", &bare, None, "quantised (f8_e5m2) weights"),
    ] {
        let (_folder, files) = typed(name, tensors, config);
        let expected = format!("{what}, which xattn does not read: b.q.weight; {advice}");
        assert_eq!(files.obstacle(|name| name.starts_with("b.")), Some(expected), "{name}");
        // A bridge beside it that is not quantised.
        assert_eq!(files.obstacle(|name| name.starts_with("c.")), None, "{name}");
    }
    let many: Vec<String> = (0..5).map(|i| format!("b.{i}.weight")).collect();
    let tensors: Vec<(&str, &str, usize)> = many.iter().map(|n| (n.as_str(), "I8", 1)).collect();
    let (_folder, files) = typed("many", &tensors, None);
    let names = "b.0.weight, b.1.weight, b.2.weight and 2 more";
    assert_eq!(
        files.obstacle(|_| true),
        Some(format!("quantised (i8) weights, which xattn does not read: {names}; {advice}"))
    );
    let (_folder, files) = typed("none", &[("b.q.weight", "BF16", 2), ("b.mask", "BOOL", 1)], None);
    assert_eq!(files.obstacle(|_| true), None);
}

/// FSDP's flat modules and copies of several PEFT adapters are not called missing tensors.
#[test]
fn weights_that_training_left_otherwise() {
    let opened = |tensors: &Tensors, family: Option<Family>| -> String {
        let folder = Folder::new("left-otherwise");
        write(&folder.join("model.safetensors"), tensors);
        let error =
            Checkpoint::open(&folder.0, family).and_then(|c| c.bridges(&Overrides::default()).map(drop)).unwrap_err();
        error.to_string().replace(&folder.0.display().to_string(), ".")
    };
    let flat = "_fsdp_wrapped_module._flat_param";
    let fault = "FSDP keeps the weights of this module as one flat tensor, which tells neither names nor shapes; save the model with \
                 StateDictType.FULL_STATE_DICT";
    let one: Tensors = [(format!("perceiver.{flat}"), tensor(flat, &[9]))].into();
    for family in [None, Some(Family::OpenFlamingo)] {
        assert_eq!(opened(&one, family), format!(".: perceiver._flat_param: {fault}"));
    }
    let connector = idefics2();
    let other =
        connector.iter().map(|(name, t)| (format!("connector.modules_to_save.b.{name}"), tensor("b", t.shape())));
    let copies = all([below("connector.modules_to_save.a.", &connector), other.collect()]);
    let fault = "copies that several adapters trained, of which none is said to count: connector.modules_to_save.a., \
                 connector.modules_to_save.b.; choose one in peft (set_adapter, merge_and_unload, then save_pretrained) and open what is \
                 saved";
    assert_eq!(opened(&copies, Some(Family::Idefics2)), format!(".: {fault}"));
}

#[test]
fn a_byte_order_mark_does_no_harm() {
    let folder = Folder::new("byte-order-mark");
    write(&folder.join("model.safetensors"), &below("perceiver.", &open_flamingo_resampler()));
    let config = folder.join("config.json");
    std::fs::write(&config, "\u{feff}{\"model_type\": \"flamingo\"}").unwrap();
    assert_eq!(Checkpoint::open(&folder.0, None).unwrap().config().unwrap().model_type, "flamingo");
    std::fs::write(&config, "\u{feff}model_type: flamingo").unwrap();
    let fault = "not a JSON text: it is a text: model_type: flamingo";
    assert_eq!(Checkpoint::open(&folder.0, None).err().unwrap().to_string(), format!("{}: {fault}", config.display()));
}

/// Lists of names show three and a count; the error keeps them all.
#[test]
fn long_lists_are_counted() {
    let folder = Folder::new("long-lists");
    let mut tensors = below("model.connector.", &idefics2());
    let all = tensors.len();
    tensors.retain(|name, _| name.ends_with("latents"));
    write(&folder.join("model.safetensors"), &tensors);
    std::fs::write(folder.join("config.json"), IDEFICS2_CONFIG).unwrap();
    let error = Checkpoint::open(&folder.0, None).unwrap().bridges(&Overrides::default()).unwrap_err();
    let xattn::Error::Weights { problems, .. } = &error else { panic!("{error}") };
    assert_eq!(problems.len(), all - 1);
    let shown = error.to_string();
    assert!(shown.ends_with(&format!("{}; and {} more", problems[2], problems.len() - 3)), "{shown}");
    assert!(!shown.contains(&problems[3]), "{shown}");
}

/// What `run --output` of an earlier version, or a mistake, left in the place of an index.
#[test]
fn a_file_of_other_tensors_in_the_place_of_an_index() {
    let folder = Folder::new("index-replaced");
    write_sharded(&folder.0, &below("perceiver.", &open_flamingo_resampler()));
    let index = folder.join("model.safetensors.index.json");
    write(&index, &all([dense("a", 2, 2), dense("b", 2, 2)]));
    for path in [&folder.0, &index] {
        for family in [None, Some(Family::OpenFlamingo)] {
            let said = match Checkpoint::open(path, family) {
                Err(error) => error.to_string(),
                Ok(checkpoint) => checkpoint.bridges(&Overrides::default()).unwrap_err().to_string(),
            };
            let what = "a safetensors file in the place of an index of shards; it holds 4 tensors: a.bias, a.weight, b.bias and 1 more";
            assert_eq!(said, format!("{}: model.safetensors.index.json is {what}", path.display()));
        }
    }
    // Tensors of a bridge are read, whatever their file is called.
    write(&index, &below("perceiver.", &open_flamingo_resampler()));
    let checkpoint = Checkpoint::open(&folder.0, None).unwrap();
    assert!(checkpoint.bridges(&Overrides::default()).unwrap().resampler.is_some());
}
