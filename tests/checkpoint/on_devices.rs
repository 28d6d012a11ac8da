//! `xattn run` on wgpu and CUDA, from the checkpoint to the output, for every family: what the f64
//! reference makes of the same files. Behind `scripts/emulated-cuda` on CUDA alone.

use std::collections::BTreeMap;
use std::process::Command;

use safetensors::SafeTensors;
use xattn::{DType, Device, DeviceKind, Error, HostTensor};

use crate::small::*;

/// Longest chain of additions in these checkpoints: sums of at most 64 terms through up to 4
/// layers, whose roundings may all line up.
const TERMS: f64 = 256.0;

/// The devices to run on. wgpu without an adapter is skipped aloud, and with `CI=true` a failure;
/// so is CUDA behind the emulator.
fn devices() -> Vec<&'static str> {
    let emulated = std::env::var_os("XATTN_EMULATOR_SEED").is_some();
    let mut kinds = Vec::new();
    if cfg!(feature = "wgpu") && !emulated {
        kinds.push((DeviceKind::Wgpu, std::env::var("CI").as_deref() == Ok("true")));
    }
    if cfg!(feature = "cuda") {
        kinds.push((DeviceKind::Cuda, emulated));
    }
    let there = |&(kind, required): &(DeviceKind, bool)| match Device::open(kind) {
        Ok(_) => true,
        Err(error @ Error::Unavailable { .. }) => {
            assert!(!required, "{error}");
            eprintln!("skipped: {error}");
            false
        }
        Err(error) => panic!("{error}"),
    };
    kinds.into_iter().filter(there).map(|(kind, _)| kind.name()).collect()
}

fn ints(shape: &[usize], values: &[i32]) -> HostTensor<'static> {
    HostTensor::from_slice(values, shape).unwrap()
}

/// The outputs of a run, by name.
fn outputs(folder: &Folder, arguments: &[&str], device: &str, dtype: DType) -> BTreeMap<String, HostTensor<'static>> {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
    let output = path("out.safetensors");
    let done = Command::new(env!("CARGO_BIN_EXE_xattn"))
        .args(["run", "--checkpoint", folder.0.to_str().unwrap(), "--inputs", &path("in.safetensors")])
        .args(["--output", &output, "--device", device, "--dtype", dtype.name()])
        .args(arguments)
        .output()
        .unwrap();
    assert!(done.status.success(), "{device}: {}", String::from_utf8_lossy(&done.stderr));
    let bytes = std::fs::read(&output).unwrap();
    std::fs::remove_file(&output).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: &str| {
        let t = file.tensor(name).unwrap();
        (name.to_string(), HostTensor::from_bytes(dtype, t.shape(), t.data().to_vec()).unwrap())
    };
    file.names().into_iter().map(read).collect()
}

/// Writes checkpoint and inputs, and compares the named outputs.
fn compare(
    devices: &[&str],
    family: &str,
    checkpoint: &Tensors,
    config: Option<&str>,
    arguments: &[&str],
    inputs: &[(&str, HostTensor<'static>)],
    names: &[&str],
) {
    let folder = Folder::new(&format!("device-{family}"));
    write(&folder.join("model.safetensors"), checkpoint);
    if let Some(config) = config {
        std::fs::write(folder.join("config.json"), config).unwrap();
    }
    write(&folder.join("in.safetensors"), &inputs.iter().map(|(name, t)| (name.to_string(), t.clone())).collect());
    let truth = outputs(&folder, arguments, "reference", DType::F64);
    let runs = devices.iter().flat_map(|device| {
        let actual = outputs(&folder, arguments, device, DType::F32);
        assert_eq!(actual.keys().collect::<Vec<_>>(), names, "{family} on {device}");
        actual
    });
    for (name, actual) in runs {
        let expected = &truth[&name];
        assert_eq!(actual.shape(), expected.shape(), "{family}: {name}");
        let (actual, expected) = (actual.to_f64().unwrap(), expected.to_f64().unwrap());
        let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert!(largest.is_finite() && largest > 1e-3, "{family}: {name}: largest {largest:e}");
        let bound = TERMS * DType::F32.epsilon() / 2.0 * largest;
        for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
            assert!((a - e).abs() <= bound, "{family}: {name}[{i}]: {a:e}, the reference has {e:e}, bound {bound:e}");
        }
    }
}

#[test]
fn resamplers_and_gated_blocks() {
    let devices = devices();
    let checkpoint = all([
        below("perceiver.", &open_flamingo_resampler()),
        below("lang_encoder.model.layers.2.gated_cross_attn_layer.", &open_flamingo_block()),
    ]);
    let inputs = [
        ("features", tensor("features", &[1, 2, 5, 16])),
        ("text", tensor("text", &[1, 4, 24])),
        ("media_locations", ints(&[1, 4], &[0, 1, 0, 1])),
    ];
    compare(&devices, "open-flamingo", &checkpoint, None, &[], &inputs, &["media", "text.2"]);

    let xgen = below("vision_tokenizer.", &all([open_flamingo_resampler(), dense("projection", 20, 16)]));
    let inputs = [
        ("features", tensor("features", &[1, 2, 5, 16])),
        ("feature_mask", ints(&[1, 2, 5], &[1, 1, 1, 0, 0, 1, 1, 1, 1, 1])),
    ];
    compare(&devices, "xgen-mm", &xgen, None, &[], &inputs, &["media"]);

    let checkpoint = idefics_checkpoint();
    let inputs = [
        ("features", tensor("features", &[1, 2, 5, 12])),
        ("text", tensor("text", &[1, 4, 32])),
        ("image_attention_mask", ints(&[1, 4, 2], &[0, 0, 1, 0, 1, 0, 0, 1])),
    ];
    compare(&devices, "idefics", &checkpoint, Some(IDEFICS_CONFIG), &[], &inputs, &["media", "text.0", "text.1"]);

    let inputs = [("features", tensor("features", &[1, 2, 5, 10]))];
    let connector = below("model.connector.", &idefics2());
    compare(&devices, "idefics2", &connector, Some(IDEFICS2_CONFIG), &[], &inputs, &["media"]);

    let checkpoint = mllama_checkpoint();
    let inputs = [
        ("features", tensor("features", &[1, 2, 2, 3, 20])),
        ("text", tensor("text", &[1, 4, 32])),
        ("cross_attention_mask", ints(&[1, 4, 2, 2], &[0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1])),
    ];
    for (name, arguments) in [("mllama", &[][..]), ("mllama-transformers", &["--transformers-empty-rows"])] {
        compare(&devices, name, &checkpoint, Some(MLLAMA_CONFIG), arguments, &inputs, &["media", "text.1", "text.3"]);
    }
}

#[test]
fn q_formers() {
    let devices = devices();
    let inputs = [
        ("features", tensor("features", &[2, 7, 12])),
        ("text_ids", ints(&[2, 3], &[0, 8, 1, 2, 3, 4])),
        ("text_mask", ints(&[2, 3], &[1, 1, 1, 1, 0, 0])),
    ];
    let config = qformer_config("blip-2");
    let names = ["image_embeds", "itm_logits", "projected", "queries", "text_embeds"];
    compare(&devices, "blip-2", &blip2(), Some(&config), &[], &inputs, &names);
    let config = qformer_config("instructblip");
    compare(&devices, "instructblip", &instructblip(), Some(&config), &[], &inputs, &["projected", "queries"]);
    compare(&devices, "lavis", &lavis(), None, &["--heads", "2"], &inputs[..1], &["projected", "queries"]);
}
