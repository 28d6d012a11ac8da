//! Warnings of `xattn run`: non-finite numbers, options without effect, missing masks.

use xattn::HostTensor;

use crate::outputs::{command, inputs, said, sample};
use crate::small::*;

/// Exit status, and what is said of the output file.
fn outcome(folder: &Folder, arguments: &[&str]) -> (Option<i32>, String) {
    let path = folder.join("out.safetensors");
    let done = command(folder, &path, arguments).output().unwrap();
    assert_eq!(path.exists(), !said(&done).contains("xattn: "), "{}", said(&done));
    let _ = std::fs::remove_file(&path);
    (done.status.code(), said(&done).replace(path.to_str().unwrap(), "OUT"))
}

#[test]
fn overflow_names_output_count_step_and_precision() {
    let folder = sample("warn-f16");
    let wider = "; f16 ends at 65504, --dtype bf16 and --dtype f32 at 3.4e38";
    let rounded = format!("since features was rounded to f16{wider}");
    write(&folder.join("in.safetensors"), &inputs(70000.0));
    let lines = format!(
        "warning: OUT: media: 48 of 96 numbers are NaN and 0 are infinite, {rounded}\n\
         warning: OUT: text.2: 48 of 96 numbers are NaN and 0 are infinite, {rounded}\n"
    );
    assert_eq!(outcome(&folder, &["--dtype", "f16"]), (Some(0), lines));
    for dtype in ["bf16", "f32"] {
        assert_eq!(outcome(&folder, &["--dtype", dtype]), (Some(0), String::new()), "{dtype}");
    }
    // An input that is not finite itself is no news; all NaN is a failure however it came about.
    write(&folder.join("in.safetensors"), &inputs(f32::INFINITY));
    assert_eq!(outcome(&folder, &["--dtype", "f16"]), (Some(0), String::new()));
    let mut all = inputs(70000.0);
    all.remove("text");
    all.remove("media_index");
    let features: Vec<f32> = vec![70000.0; 160];
    all.insert("features".into(), HostTensor::from_slice(&features, &[1, 2, 5, 16]).unwrap());
    write(&folder.join("in.safetensors"), &all);
    let lines = format!(
        "warning: OUT: media: 96 of 96 numbers are NaN and 0 are infinite, {rounded}\n\
         error: OUT: written, but every number of every output is NaN\n"
    );
    assert_eq!(outcome(&folder, &["--dtype", "f16"]), (Some(1), lines));
}

/// Weights that overflow in one step: it is named, and the next is not blamed.
#[test]
fn the_step_is_the_first_that_overflows() {
    let folder = sample("warn-step");
    let large = |name: &str, shape: &[usize]| {
        let values = tensor(name, shape).to_f32().unwrap().into_iter().map(|x| 6e4 * x).collect::<Vec<_>>();
        HostTensor::from_slice(&values, shape).unwrap()
    };
    let block = "lang_encoder.model.layers.2.gated_cross_attn_layer.";
    let checkpoint = all([below("perceiver.", &open_flamingo_resampler()), below(block, &open_flamingo_block())]);
    for (name, step) in [
        ("perceiver.layers.1.1.3.weight", "the resampler"),
        ("attn.to_kv.weight", "K and V of gated block 2"),
        ("ff.3.weight", "gated block 2"),
    ] {
        let name = if step == "the resampler" { name.to_string() } else { format!("{block}{name}") };
        let mut changed = checkpoint.clone();
        let shape = changed[&name].shape().to_vec();
        changed.insert(name.clone(), large(&name, &shape));
        write(&folder.join("model.safetensors"), &changed);
        let (status, said) = outcome(&folder, &["--dtype", "f16"]);
        let lines: Vec<&str> = said.lines().collect();
        assert!(
            lines.iter().all(|line| line.starts_with("warning: OUT: ") && line.contains(&format!(", since {step};"))),
            "{step}: {said}"
        );
        let outputs = if step == "the resampler" { 2 } else { 1 };
        assert_eq!((status, lines.len()), (Some(0), outputs), "{step}: {said}");
        assert_eq!(outcome(&folder, &["--dtype", "f32"]), (Some(0), String::new()), "{step}");
    }
}

/// Weights that are not finite themselves: no precision helps, and the tensor is named.
#[test]
fn a_weight_that_is_not_finite_is_named() {
    let folder = sample("warn-weight");
    let mut resampler = below("perceiver.", &open_flamingo_resampler());
    let mut bias = vec![0.5f32; 16];
    bias[3] = f32::INFINITY;
    resampler.insert("perceiver.norm.bias".into(), HostTensor::from_slice(&bias, &[16]).unwrap());
    write(&folder.join("model.safetensors"), &resampler);
    write(&folder.join("in.safetensors"), &[("features".to_string(), tensor("features", &[1, 2, 5, 16]))].into());
    let wider = "; f32 and bf16 end at 3.4e38, --device reference --dtype f64 at 1.8e308";
    let lines = format!(
        "warning: OUT: media: 0 of 96 numbers are NaN and 6 are infinite, since the resampler{wider}\n\
         warning: {}: tensor perceiver.norm.bias: 0 of 16 numbers are NaN and 1 are infinite, in any precision\n",
        folder.0.display()
    );
    assert_eq!(outcome(&folder, &[]), (Some(0), lines));
}

#[test]
fn f64_is_of_the_reference() {
    let folder = sample("warn-f64");
    for device in ["cpu", "wgpu", "cuda"] {
        let path = folder.join("out.safetensors");
        let done = command(&folder, &path, &["--dtype", "f64", "--device", device]).output().unwrap();
        let message =
            format!("error: --dtype f64 is for --device reference only; {device} computes in f32, f16 or bf16\n");
        assert_eq!((done.status.code(), said(&done), path.exists()), (Some(2), message, false));
    }
    assert_eq!(outcome(&folder, &["--dtype", "f64", "--device", "reference"]), (Some(0), String::new()));
}

#[test]
fn options_without_effect_are_errors() {
    let refused = |folder: &Folder, arguments: &[&str], option: &str, expected: &str| {
        let message =
            format!("error: xattn: {option}: expected {expected}, got none, so that the option changes nothing\n");
        assert_eq!(outcome(folder, arguments), (Some(1), message), "{arguments:?}");
    };
    let folder = sample("idle");
    refused(&folder, &["--frames", "1"], "--frames", "a resampler with frame embeddings");
    refused(&folder, &["--adapter", "none"], "--adapter none", "an adapter beside the checkpoint");
    refused(&folder, &["--transformers-empty-rows"], "--transformers-empty-rows", "gated blocks of Llama-3.2-Vision");
    for used in [&["--heads", "4"][..], &["--block-heads", "4"], &["--attend-preceding"]] {
        assert_eq!(outcome(&folder, used), (Some(0), String::new()), "{used:?}");
    }
    let mut changed = inputs(1.0);
    changed.remove("media_index");
    write(&folder.join("in.safetensors"), &changed);
    let masked = "text in the inputs, with media_locations or media_index";
    refused(&folder, &["--attend-preceding"], "--attend-preceding", masked);
    changed.remove("text");
    write(&folder.join("in.safetensors"), &changed);
    refused(&folder, &["--block-heads", "4"], "--block-heads", "text in the inputs");
    let media: Tensors =
        [("media".to_string(), tensor("m", &[1, 2, 3, 16])), ("text".into(), tensor("t", &[1, 4, 24]))].into();
    write(&folder.join("in.safetensors"), &media);
    refused(&folder, &["--heads", "4"], "--heads", "features in the inputs, which `media` replaces");

    let folder = Folder::new("idle-blip2");
    write(&folder.join("model.safetensors"), &blip2());
    std::fs::write(folder.join("config.json"), qformer_config("blip-2")).unwrap();
    write(&folder.join("in.safetensors"), &[("features".to_string(), tensor("f", &[2, 7, 12]))].into());
    refused(&folder, &["--frames", "2"], "--frames", "a resampler with frame embeddings");
    refused(&folder, &["--block-heads", "2"], "--block-heads", "a checkpoint with gated blocks");
    refused(&folder, &["--attend-preceding"], "--attend-preceding", "gated blocks of OpenFlamingo");

    let folder = Folder::new("idle-mllama");
    let layers = below("language_model.model.layers.1.", &mllama_layer());
    write(
        &folder.join("model.safetensors"),
        &all([
            dense("multi_modal_projector", 32, 20),
            layers.clone(),
            below("language_model.model.layers.3.", &mllama_layer()),
        ]),
    );
    std::fs::write(folder.join("config.json"), MLLAMA_CONFIG).unwrap();
    let mut t: Tensors =
        [("features".to_string(), tensor("f", &[1, 2, 2, 3, 20])), ("text".into(), tensor("t", &[1, 4, 32]))].into();
    write(&folder.join("in.safetensors"), &t);
    refused(&folder, &["--heads", "4"], "--heads", "a checkpoint with a resampler or Q-Former");
    let masked = "text in the inputs, with cross_attention_mask";
    refused(&folder, &["--transformers-empty-rows"], "--transformers-empty-rows", masked);
    t.insert("cross_attention_mask".into(), HostTensor::from_slice(&[1i32; 16], &[1, 4, 2, 2]).unwrap());
    write(&folder.join("in.safetensors"), &t);
    assert_eq!(outcome(&folder, &["--transformers-empty-rows"]), (Some(0), String::new()));
    let inspect = |option: &str| {
        let path = folder.0.to_str().unwrap();
        let done =
            std::process::Command::new(env!("CARGO_BIN_EXE_xattn")).args(["inspect", path, option]).output().unwrap();
        (done.status.code(), said(&done))
    };
    let message = "error: xattn: --attend-preceding: expected gated blocks of OpenFlamingo, got none, so that the option changes nothing\n";
    assert_eq!(inspect("--attend-preceding"), (Some(1), message.to_string()));
}

#[test]
fn a_mask_that_is_not_there_is_said() {
    let folder = sample("warn-mask");
    let mut changed = inputs(1.0);
    changed.remove("media_index");
    write(&folder.join("in.safetensors"), &changed);
    let file = folder.join("in.safetensors");
    let line =
        format!("note: {}: no media_index or media_locations: every row of text sees all media\n", file.display());
    assert_eq!(outcome(&folder, &[]), (Some(0), line));
    // Masks that are bits: with a dimension for tiles, and without.
    for (name, checkpoint, config, features, mask) in [
        ("mllama", mllama_checkpoint(), MLLAMA_CONFIG, &[1, 2, 2, 3, 20][..], "cross_attention_mask"),
        ("idefics", idefics_checkpoint(), IDEFICS_CONFIG, &[1, 2, 5, 12], "image_attention_mask"),
    ] {
        let folder = Folder::new(&format!("warn-mask-{name}"));
        write(&folder.join("model.safetensors"), &checkpoint);
        std::fs::write(folder.join("config.json"), config).unwrap();
        let file = folder.join("in.safetensors");
        let t = [("features".to_string(), tensor("f", features)), ("text".into(), tensor("t", &[1, 4, 32]))];
        write(&file, &t.into());
        let line = format!("note: {}: no {mask}: every row of text sees all media\n", file.display());
        assert_eq!(outcome(&folder, &[]), (Some(0), line));
    }
}

#[test]
fn nothing_to_compute_is_an_error() {
    let folder = sample("warn-nothing");
    let media: Tensors = [("media".to_string(), tensor("m", &[1, 2, 3, 16]))].into();
    write(&folder.join("in.safetensors"), &media);
    let path = folder.join("out.safetensors");
    let done = command(&folder, &path, &[]).output().unwrap();
    let message = "tensor text is missing (of media alone nothing is computed); the file has media";
    let message = format!("error: {}: {message}\n", folder.join("in.safetensors").display());
    assert_eq!((done.status.code(), said(&done), path.exists()), (Some(1), message, false));
}

#[test]
fn names_that_occur_twice_in_the_inputs_are_an_error() {
    let folder = sample("warn-twice");
    let path = folder.join("in.safetensors");
    let one = r#""features":{"dtype":"F32","shape":[1,1,1,16],"data_offsets":[0,64]}"#;
    let header = format!("{{{one},{one}}}");
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 64]].concat();
    std::fs::write(&path, file).unwrap();
    let done = command(&folder, &folder.join("out.safetensors"), &[]).output().unwrap();
    let message = "not a safetensors file: header: name features occurs twice";
    assert_eq!(done.status.code(), Some(1));
    assert!(said(&done).starts_with(&format!("error: {}: {message}", path.display())), "{}", said(&done));
}

#[test]
fn a_wrong_family_names_the_nearest() {
    let folder = sample("warn-family");
    let all = "open-flamingo, xgen-mm, idefics, idefics2, mllama, blip-2, instructblip, lavis";
    let path = folder.join("out.safetensors");
    for (family, nearest) in [("blip2", "blip-2"), ("openflamingo", "open-flamingo"), ("mlama", "mllama")] {
        let done = command(&folder, &path, &["--family", family]).output().unwrap();
        let line = format!(
            "error: invalid value '{family}' for '--family <FAMILY>': the nearest is {nearest}; there are {all}"
        );
        assert_eq!((done.status.code(), said(&done).lines().next()), (Some(2), Some(&*line)));
    }
}
