//! `xattn run` and `inspect` on small checkpoints: the outputs are those of the built bridge.

use std::process::{Command, Output};

use safetensors::SafeTensors;
use xattn::bridge::{GatedBlock, GatedBlockArgs, PerceiverResampler, Precision, ProjectMediaArgs, ResamplerArgs};
use xattn::checkpoint::open_flamingo;
use xattn::ops::{Keys, Source};
use xattn::{DType, Device, HostTensor, Tensor};

use crate::small::*;

fn xattn(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xattn")).args(arguments).output().unwrap()
}

/// An OpenFlamingo checkpoint with a block in layer 2, and inputs: 2 media of 5 tokens, 4 text
/// tokens with media at 1 and 3.
fn prepared(name: &str) -> Folder {
    let folder = Folder::new(name);
    let checkpoint = all([
        below("perceiver.", &open_flamingo_resampler()),
        below("lang_encoder.model.layers.2.gated_cross_attn_layer.", &open_flamingo_block()),
    ]);
    write(&folder.join("model.safetensors"), &checkpoint);
    write(&folder.join("inputs.safetensors"), &inputs());
    folder
}

fn inputs() -> Tensors {
    let locations = HostTensor::from_slice(&[0i32, 1, 0, 1], &[1, 4]).unwrap();
    [
        ("features".to_string(), tensor("features", &[1, 2, 5, 16])),
        ("text".to_string(), tensor("text", &[1, 4, 24])),
        ("media_locations".to_string(), locations),
    ]
    .into()
}

fn run(folder: &Folder) -> Output {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
    let [checkpoint, inputs, output] = [path("model.safetensors"), path("inputs.safetensors"), path("out.safetensors")];
    let device = ["--device", "reference", "--dtype", "f64"];
    xattn(&[&["run", "--checkpoint", &checkpoint, "--inputs", &inputs, "--output", &output], &device[..]].concat())
}

#[test]
fn run_writes_what_the_bridges_compute() {
    let folder = prepared("run");
    let done = run(&folder);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let bytes = std::fs::read(folder.join("out.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let found = |name: &str| -> Vec<f64> {
        let t = file.tensor(name).unwrap();
        HostTensor::from_bytes(DType::F64, t.shape(), t.data().to_vec()).unwrap().to_f64().unwrap()
    };
    let mut names = file.names();
    names.sort();
    assert_eq!(names, ["media", "text.2"]);

    let (device, precision) = (Device::reference(), Precision::uniform(DType::F64));
    let inputs = inputs();
    let up = |name: &str| Tensor::upload(&device, &inputs[name], DType::F64).unwrap();
    let resampler = open_flamingo_resampler();
    let (config, weights) = open_flamingo::resampler(&resampler, "", 8).unwrap();
    let bridge = PerceiverResampler::new(&device, &config, &weights, precision).unwrap();
    let features = up("features");
    let mut media = Tensor::zeros(&device, DType::F64, &[1, 2, 3, 16]).unwrap();
    let specs = ResamplerArgs { features: features.spec(), keys: Keys::All, offsets: None, out: media.spec() };
    let views = ResamplerArgs { features: features.view(), keys: Keys::All, offsets: None, out: media.view_mut() };
    bridge.prepare(1, specs).unwrap().run(views).unwrap();
    assert_eq!(found("media"), media.download(&device).unwrap().to_f64().unwrap());

    let block = open_flamingo_block();
    let (config, weights) = open_flamingo::gated_block(&block, "", 8, true).unwrap();
    let bridge = GatedBlock::new(&device, &config, &weights, precision).unwrap();
    let media = media.download(&device).unwrap().reshape(&[1, 6, 16]).unwrap();
    let media = Tensor::upload(&device, &media, DType::F64).unwrap();
    let mut kv = Tensor::zeros(&device, DType::F64, &[1, 6, config.kv_width()]).unwrap();
    let project = bridge.prepare_media(ProjectMediaArgs { media: media.spec(), kv: kv.spec() }).unwrap();
    project.run(ProjectMediaArgs { media: media.view(), kv: kv.view_mut() }).unwrap();
    let index = HostTensor::from_slice(&[0i32, 1, 1, 2], &[1, 4]).unwrap();
    let index = Tensor::upload(&device, &index, DType::I32).unwrap();
    let (text, mut out) = (up("text"), Tensor::zeros(&device, DType::F64, &[1, 4, 24]).unwrap());
    fn arguments<R, W>(x: R, kv: R, visibility: xattn::ops::Visibility<R>, out: W) -> GatedBlockArgs<R, W> {
        let x = Source::From(x);
        GatedBlockArgs { x, x_offsets: None, kv, keys: Keys::All, slots: None, kv_offsets: None, visibility, out }
    }
    let rule = config.visibility(index.spec(), 3, None).unwrap();
    let prepared = bridge.prepare(arguments(text.spec(), kv.spec(), rule, out.spec())).unwrap();
    let rule = config.visibility(index.view(), 3, None).unwrap();
    prepared.run(arguments(text.view(), kv.view(), rule, out.view_mut())).unwrap();
    assert_eq!(found("text.2"), out.download(&device).unwrap().to_f64().unwrap());
}

#[test]
fn run_leaves_nothing_behind_when_inputs_are_wrong() {
    let folder = prepared("run-wrong");
    let mut listed: Vec<_> = Vec::new();
    for (change, message) in [
        ("missing", "tensor features is missing"),
        ("surplus", "tensors that this checkpoint does not read: medialocations"),
        ("width", "tensor features: expected [batch, media, tokens, 16], found [1, 2, 5, 15]"),
        ("rows", "tensor media_locations: expected [1, 4], found [1, 3]"),
        ("batch", "tensor text: expected [1, rows, 24], found [2, 4, 24]"),
    ] {
        let mut t = inputs();
        match change {
            "missing" => drop(t.remove("features")),
            "surplus" => drop(t.insert("medialocations".into(), tensor("x", &[1]))),
            "width" => drop(t.insert("features".into(), tensor("x", &[1, 2, 5, 15]))),
            "rows" => {
                t.insert("media_locations".into(), HostTensor::from_slice(&[0i32, 1, 0], &[1, 3]).unwrap());
            }
            _ => drop(t.insert("text".into(), tensor("x", &[2, 4, 24]))),
        }
        write(&folder.join("inputs.safetensors"), &t);
        let done = run(&folder);
        let error = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{change}: {error}");
        assert!(error.contains(message), "{change}: {error}");
        listed = std::fs::read_dir(&folder.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        listed.sort();
        assert_eq!(listed, ["inputs.safetensors", "model.safetensors"], "{change}");
    }
    assert_eq!(listed.len(), 2);
}

#[test]
fn inspect_counts_parameters() {
    let folder = prepared("inspect");
    let done = xattn(&["inspect", folder.join("model.safetensors").to_str().unwrap()]);
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // Resampler: 48 + 32 + 2 (64 + 1024 + 2048 + 1024 + 32 + 2 · 1024); block: 48 + 1536 + 2048 +
    // 1536 + 1 + 48 + 2 · 2304 + 1.
    for line in [
        "family               open-flamingo",
        "  resampler          12560",
        "  gated blocks       9826",
        "    each of them     9826",
        "parameters           22386",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    assert!(text.contains("f32   [3, 16]              perceiver.latents"), "{text}");
    let done = xattn(&["inspect", folder.join("absent").to_str().unwrap()]);
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).contains("absent"));
}

#[test]
fn no_heads_are_a_fault_of_the_command() {
    let folder = prepared("no-heads");
    for option in ["--heads", "--block-heads"] {
        let done = xattn(&["inspect", folder.0.to_str().unwrap(), option, "0"]);
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(2), "{said}");
        assert!(
            said.starts_with(&format!("error: invalid value '0' for '{option} <N>': expected at least 1\n")),
            "{said}"
        );
    }
}

#[test]
fn a_configuration_that_is_null() {
    let folder = prepared("null");
    std::fs::write(folder.join("config.json"), "null\n").unwrap();
    let done = xattn(&["inspect", folder.join("model.safetensors").to_str().unwrap()]);
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.ends_with("config.json: expected an object with a model's configuration, found null\n"), "{said}");
}
