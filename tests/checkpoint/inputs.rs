//! `xattn run` with hostile inputs: the error names the tensor, what was expected and what was
//! found; nothing panics, nothing is written.

use std::process::Command;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use xattn::HostTensor;

use crate::small::*;

/// A checkpoint, and inputs that it accepts.
struct Sample {
    folder: Folder,
    inputs: Tensors,
}

impl Sample {
    fn new(name: &str, checkpoint: &Tensors, config: Option<&str>, inputs: &[(&str, HostTensor<'static>)]) -> Self {
        let folder = Folder::new(name);
        write(&folder.join("model.safetensors"), checkpoint);
        if let Some(config) = config {
            std::fs::write(folder.join("config.json"), config).unwrap();
        }
        let inputs = inputs.iter().map(|(name, t)| (name.to_string(), t.clone())).collect();
        let sample = Sample { folder, inputs };
        sample.runs(&[], None);
        sample
    }

    /// What the command says of the inputs, one of them replaced; its output file is deleted again.
    fn outcome(&self, arguments: &[&str], changed: Option<(&str, HostTensor<'static>)>) -> Result<(), String> {
        let mut inputs = self.inputs.clone();
        inputs.extend(changed.map(|(name, t)| (name.to_string(), t)));
        write(&self.folder.join("in.safetensors"), &inputs);
        self.written(arguments)
    }

    /// The same with the file of inputs that is there.
    fn written(&self, arguments: &[&str]) -> Result<(), String> {
        let path = |name: &str| self.folder.join(name).to_str().unwrap().to_string();
        let output = self.folder.join("out.safetensors");
        let done = Command::new(env!("CARGO_BIN_EXE_xattn"))
            .args(["run", "--checkpoint", self.folder.0.to_str().unwrap(), "--inputs", &path("in.safetensors")])
            .args(["--output", &path("out.safetensors")])
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(matches!(done.status.code(), Some(0 | 1)), "{:?}: {error}", done.status);
        assert_eq!(output.exists(), done.status.success(), "{error}");
        let _ = std::fs::remove_file(output);
        if done.status.success() { Ok(()) } else { Err(error) }
    }

    #[track_caller]
    fn runs(&self, arguments: &[&str], changed: Option<(&str, HostTensor<'static>)>) {
        self.outcome(arguments, changed).unwrap();
    }

    #[track_caller]
    fn refuses(&self, name: &str, tensor: HostTensor<'static>, message: &str) {
        let error = self.outcome(&[], Some((name, tensor))).expect_err("accepted");
        let wanted = format!("in.safetensors: tensor {name}: {message}");
        assert!(error.contains(&wanted), "expected {wanted}, found {error}");
    }
}

fn ints(shape: &[usize], values: &[i32]) -> HostTensor<'static> {
    HostTensor::from_slice(values, shape).unwrap()
}

fn open_flamingo(test: &str) -> Sample {
    let checkpoint = all([
        below("perceiver.", &open_flamingo_resampler()),
        below("lang_encoder.model.layers.2.gated_cross_attn_layer.", &open_flamingo_block()),
    ]);
    let inputs = [
        ("features", tensor("features", &[1, 2, 5, 16])),
        ("text", tensor("text", &[1, 4, 24])),
        ("media_index", ints(&[1, 4], &[0, 1, 1, 2])),
    ];
    Sample::new(&format!("in-{test}"), &checkpoint, None, &inputs)
}

#[test]
fn media_indices() {
    let s = open_flamingo("index");
    s.refuses("media_index", ints(&[1, 4], &[0, 1, -1, 2]), "expected numbers from 0 to 2, found -1");
    s.refuses("media_index", ints(&[1, 4], &[0, 1, i32::MAX, 2]), "expected numbers from 0 to 2, found 2147483647");
    s.refuses("media_index", ints(&[1, 4], &[0, 1, 3, 2]), "expected numbers from 0 to 2, found 3");
    s.refuses("media_index", ints(&[4, 1], &[0; 4]), "expected [1, 4], found [4, 1]");
    s.refuses("media_index", ints(&[4], &[0; 4]), "expected [1, 4], found [4]");
    let nan = HostTensor::from_slice(&[0.0f32, 1.0, f32::NAN, 2.0], &[1, 4]).unwrap();
    s.refuses("media_index", nan, "expected i32, i64, u8 or bool, found f32");

    let mut with_locations = open_flamingo("locations");
    with_locations.inputs.remove("media_index");
    with_locations.inputs.insert("media_locations".into(), ints(&[1, 4], &[1, 0, 1, 0]));
    with_locations.runs(&[], None);
    // A medium stands where a location is not 0, whatever it is.
    with_locations.runs(&[], Some(("media_locations", ints(&[1, 4], &[2, 0, -7, 0]))));
    with_locations.runs(&[], Some(("media_locations", ints(&[1, 4], &[2, 0, 2, 0]))));
    with_locations.refuses("media_locations", ints(&[1, 4], &[1; 4]), "expected at most 2 in a row, as media, found 4");
}

#[test]
fn shapes() {
    let s = open_flamingo("shapes");
    s.refuses("features", tensor("x", &[2, 5, 15]), "expected [batch, media, tokens, 16], found [2, 5, 15]");
    s.refuses("features", tensor("x", &[5, 16]), "expected 3 or 4 dimensions, found [5, 16]");
    s.refuses("features", ints(&[1, 2, 5, 16], &[0; 160]), "expected f64, f32, f16 or bf16, found i32");
    s.refuses("text", tensor("x", &[1, 4, 23]), "expected [1, rows, 24], found [1, 4, 23]");
    s.refuses("text", tensor("x", &[3, 4, 24]), "expected [1, rows, 24], found [3, 4, 24]");
    s.refuses("text", tensor("x", &[4, 24]), "expected 3 dimensions, found [4, 24]");
    s.refuses("media", tensor("x", &[1, 2, 4, 16]), "expected [batch, media, 3, 16], found [1, 2, 4, 16]");
    s.refuses("media", tensor("x", &[1, 2, 3]), "expected [batch, media, 3, 16], found [1, 2, 3]");
    s.refuses("feature_mask", ints(&[2, 5], &[1; 10]), "expected [1, 2, 5], found [2, 5]");
    s.runs(&[], Some(("feature_mask", ints(&[1, 2, 5], &[1; 10]))));
    // Nothing to compute: an error or an empty result, never a panic.
    for shape in [[0, 2, 5, 16], [1, 0, 5, 16], [1, 2, 0, 16]] {
        let _ = s.outcome(&[], Some(("features", tensor("x", &shape))));
    }
    // An extent of 0 does not let the others be of any size.
    let shape = "[0,1099511627776,1099511627776,16]";
    let header = format!(r#"{{"features":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#);
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    std::fs::write(s.folder.join("in.safetensors"), file).unwrap();
    let error = s.written(&[]).unwrap_err();
    let message =
        "tensor features: expected extents that can be addressed, found [0, 1099511627776, 1099511627776, 16]";
    assert!(error.contains(&format!("in.safetensors: not a safetensors file: header: {message}")), "{error}");
}

#[test]
fn frames() {
    let mut resampler = open_flamingo_resampler();
    resampler.insert("frame_embs".into(), tensor("frame_embs", &[2, 16]));
    let inputs = [("features", tensor("features", &[1, 2, 4, 16]))];
    let s = Sample::new("in-frames", &below("perceiver.", &resampler), None, &inputs);
    s.runs(&["--frames", "2"], None);
    for frames in ["0", "3", "18446744073709551615"] {
        let error = s.outcome(&["--frames", frames], None).expect_err("accepted");
        assert!(error.contains("frames: expected ") && error.ends_with(&format!(", got {frames}\n")), "{error}");
    }
}

#[test]
fn text_of_a_qformer() {
    let inputs = [
        ("features", tensor("features", &[2, 7, 12])),
        ("text_ids", ints(&[2, 3], &[0, 8, 1, 2, 3, 4])),
        ("text_mask", ints(&[2, 3], &[1, 1, 1, 1, 0, 0])),
    ];
    let s = Sample::new("in-instruct", &instructblip(), Some(&qformer_config("instructblip")), &inputs);
    s.refuses("text_ids", ints(&[2, 3], &[0, 9, 1, 2, 3, 4]), "expected numbers from 0 to 8, found 9");
    s.refuses("text_ids", ints(&[2, 3], &[0, -1, 1, 2, 3, 4]), "expected numbers from 0 to 8, found -1");
    s.refuses("text_ids", ints(&[2, 3], &[i32::MIN; 6]), "expected numbers from 0 to 8, found -2147483648");
    s.refuses("text_ids", ints(&[2, 6], &[0; 12]), "expected [2, 1 to 5], found [2, 6]");
    s.refuses("text_ids", ints(&[1, 3], &[0; 3]), "expected [2, 1 to 5], found [1, 3]");
    s.refuses("text_ids", ints(&[2, 0], &[]), "expected [2, 1 to 5], found [2, 0]");
    s.refuses("text_ids", ints(&[6], &[0; 6]), "expected 2 dimensions, found [6]");
    let nan = HostTensor::from_slice(&[f32::NAN; 6], &[2, 3]).unwrap();
    s.refuses("text_ids", nan, "expected i32, i64, u8 or bool, found f32");
    s.refuses("text_mask", ints(&[3, 2], &[1; 6]), "expected [2, 3], found [3, 2]");
    s.refuses("features", tensor("x", &[2, 7, 13]), "expected [batch, tokens, 12], found [2, 7, 13]");
    s.refuses("features", tensor("x", &[7, 12]), "expected 3 dimensions, found [7, 12]");
    // Ids of 64 bits: those that fit are read, others are refused, not cut.
    for (value, message) in [(8i64, None), (1 << 32, Some("expected numbers of 32 bits, found 4294967296"))] {
        let ids: Vec<u8> = [value; 6].iter().flat_map(|v| v.to_le_bytes()).collect();
        let [features, mask] = ["features", "text_mask"].map(|name| s.inputs[name].bytes().unwrap());
        let views = [
            ("features", TensorView::new(Dtype::F32, vec![2, 7, 12], &features).unwrap()),
            ("text_mask", TensorView::new(Dtype::I32, vec![2, 3], &mask).unwrap()),
            ("text_ids", TensorView::new(Dtype::I64, vec![2, 3], &ids).unwrap()),
        ];
        std::fs::write(s.folder.join("in.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        match (s.written(&[]), message) {
            (Ok(()), None) => {}
            (Err(error), Some(message)) => assert!(error.contains(&format!("tensor text_ids: {message}")), "{error}"),
            (other, _) => panic!("{value}: {other:?}"),
        }
    }

    let mut without_words = blip2();
    without_words.retain(|name, _| !name.starts_with("embeddings."));
    let s = Sample::new("in-blip2", &without_words, Some(&qformer_config("blip-2")), &inputs[..1]);
    s.refuses(
        "text_ids",
        ints(&[2, 3], &[0; 6]),
        "expected no text, since the checkpoint has no word embeddings, found [2, 3]",
    );
}

#[test]
fn masks_of_images_and_tiles() {
    let checkpoint = idefics_checkpoint();
    let inputs = [
        ("features", tensor("features", &[1, 2, 5, 12])),
        ("text", tensor("text", &[1, 4, 32])),
        ("image_attention_mask", ints(&[1, 4, 2], &[0, 0, 1, 0, 1, 0, 0, 1])),
    ];
    let s = Sample::new("in-idefics", &checkpoint, Some(IDEFICS_CONFIG), &inputs);
    // As many flags, but media and rows exchanged.
    s.refuses("image_attention_mask", ints(&[1, 2, 4], &[1; 8]), "expected [1, 4, 2], found [1, 2, 4]");
    let error = s.outcome(&[], Some(("cross_attention_mask", ints(&[1, 4, 2, 1], &[1; 8])))).unwrap_err();
    assert!(error.contains("tensors that this checkpoint does not read: cross_attention_mask"), "{error}");
    // Lists of names show three and a count.
    let mut s = s;
    s.inputs.extend((0..5).map(|i| (format!("z{i}"), ints(&[1], &[0]))));
    let error = s.outcome(&[], None).unwrap_err();
    assert!(error.contains("does not read: z0, z1, z2 and 2 more (see xattn run --help)"), "{error}");
    s.inputs.remove("features");
    let error = s.outcome(&[], None).unwrap_err();
    assert!(error.contains("; the file has image_attention_mask, text, z0 and 4 more"), "{error}");

    let checkpoint = mllama_checkpoint();
    let inputs = [
        ("features", tensor("features", &[1, 2, 2, 3, 20])),
        ("text", tensor("text", &[1, 4, 32])),
        ("cross_attention_mask", ints(&[1, 4, 2, 2], &[1; 16])),
    ];
    let s = Sample::new("in-mllama", &checkpoint, Some(MLLAMA_CONFIG), &inputs);
    s.refuses("cross_attention_mask", ints(&[1, 4, 4], &[1; 16]), "expected [1, 4, 2, 2], found [1, 4, 4]");
    s.refuses(
        "features",
        tensor("x", &[1, 2, 2, 3, 21]),
        "expected [batch, media, tiles, tokens, 20], found [1, 2, 2, 3, 21]",
    );
    s.refuses("features", tensor("x", &[1, 2, 3, 20]), "expected 5 dimensions, found [1, 2, 3, 20]");
    s.refuses("media", tensor("x", &[1, 2, 3, 32]), "expected [batch, media, tiles, tokens, 32], found [1, 2, 3, 32]");
}

#[test]
fn files_that_are_no_inputs_or_outputs() {
    let s = open_flamingo("files");
    let inputs = s.folder.join("in.safetensors");
    let whole = std::fs::read(&inputs).unwrap();
    for end in (0..whole.len()).step_by(7) {
        replace(&inputs, &whole[..end]);
        let error = s.written(&[]).expect_err("inputs cut short");
        let said = match end {
            0 => "in.safetensors: not a safetensors file: it is empty".into(),
            1..8 => format!("in.safetensors: cut short: {end} of at least 8 bytes"),
            _ => format!("in.safetensors: cut short: {end} of "),
        };
        assert!(error.contains(&said), "{end}: {error}");
    }
    std::fs::remove_file(&inputs).unwrap();
    std::fs::create_dir(&inputs).unwrap();
    assert!(s.written(&[]).unwrap_err().contains("in.safetensors: not a regular file"));
    std::fs::remove_dir(&inputs).unwrap();
    write(&inputs, &s.inputs);
    s.written(&[]).unwrap();
    // Outputs that cannot be written are refused before the checkpoint is opened.
    let run = |output: &str, checkpoint: &str| {
        let done = Command::new(env!("CARGO_BIN_EXE_xattn"))
            .args(["run", "--checkpoint", checkpoint, "--inputs", inputs.to_str().unwrap(), "--output", output])
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(1));
        String::from_utf8_lossy(&done.stderr).into_owned()
    };
    let folder = s.folder.0.to_str().unwrap();
    assert!(run(folder, "absent").contains("expected the name of a file, found a folder"));
    let error = run(s.folder.join("no/out.safetensors").to_str().unwrap(), "absent");
    assert!(error.contains("no: ") && !error.contains("absent"), "{error}");
}
