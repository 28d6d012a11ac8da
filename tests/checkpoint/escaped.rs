//! Hostile text on the terminal: control characters are escaped everywhere.

use std::process::Command;

use crate::outputs::inputs;
use crate::small::*;

/// A line of its own, another colour, the writing direction.
const HOSTILE: &str = "a\nnote: all fine\u{1b}[2J\u{9b}m\u{202e}";
const SHOWN: &str = r"a\nnote: all fine\u{1b}[2J\u{9b}m\u{202e}";

/// Exit status, standard output and standard error of a command, with `DIR` for the folder.
fn outcome(folder: &Folder, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xattn"));
    let done = command.args(arguments).current_dir(&folder.0).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(folder.0.to_str().unwrap(), "DIR");
    (done.status.code(), text(done.stdout), text(done.stderr))
}

/// An OpenFlamingo resampler and a further tensor with hostile names, and a hostile config.
fn hostile(name: &str, surplus: &str) -> Folder {
    let folder = Folder::new(name);
    std::fs::create_dir(folder.join(HOSTILE)).unwrap();
    let mut checkpoint = below(&format!("{HOSTILE}.perceiver."), &open_flamingo_resampler());
    if !surplus.is_empty() {
        checkpoint.insert(format!("{HOSTILE}.perceiver.{surplus}"), tensor("surplus", &[2]));
    }
    write(&folder.join(HOSTILE).join("model.safetensors"), &checkpoint);
    let config = serde_json::json!({ "model_type": HOSTILE });
    std::fs::write(folder.join(HOSTILE).join("config.json"), config.to_string()).unwrap();
    write(&folder.join("in.safetensors"), &inputs(1.0));
    folder
}

#[test]
fn what_inspect_prints() {
    let folder = hostile("escaped-inspect", "");
    let (status, out, err) = outcome(&folder, &["inspect", HOSTILE, "--family", "open-flamingo"]);
    assert_eq!((status, err.as_str()), (Some(0), ""));
    let names: String = below("perceiver.", &open_flamingo_resampler())
        .iter()
        .map(|(name, t)| format!("f32   {:<20} {SHOWN}.{name}\n", format!("{:?}", t.shape())))
        .collect();
    let (head, table) = out.split_at(out.find("\nf32 ").unwrap() + 1);
    assert_eq!(table, names);
    let lines: Vec<&str> = head.lines().filter(|line| line.contains("note:")).collect();
    let perceiver = format!("{SHOWN}.perceiver.");
    assert_eq!(
        lines,
        [
            format!("config.json          {SHOWN}").as_str(),
            &format!("{:<35} shape of {perceiver}latents", "resampler latents 3"),
            &format!("{:<35} shape of {perceiver}latents", "resampler width 16"),
            &format!("{:<35} tensors below {perceiver}layers.", "resampler layers 2"),
            &format!("{:<35} tensors below {perceiver}layers.", "resampler hidden 64"),
            &format!("note: config.json has model_type {SHOWN}: only its fields that open-flamingo has too are used"),
        ]
    );
    assert!(!out.contains(|c: char| c.is_control() && c != '\n'));
}

#[test]
fn errors_about_hostile_files() {
    let folder = hostile("escaped-errors", HOSTILE);
    let model = folder.join(HOSTILE).join("model.safetensors");
    let error = |arguments: &[&str], said: &str| {
        let expected = (Some(1), String::new(), format!("error: {said}\n"));
        assert_eq!(outcome(&folder, arguments), expected);
    };
    let family = ["inspect", HOSTILE, "--family", "open-flamingo"];
    error(
        &["inspect", HOSTILE],
        &format!(
            "{SHOWN}/config.json: model_type {SHOWN} is not supported; to read its tensors as those of another family, name it: \
             open-flamingo, xgen-mm, idefics, idefics2, mllama, blip-2, instructblip, lavis"
        ),
    );
    let surplus = format!("{SHOWN}.perceiver.{SHOWN}: surplus, expected no such tensor, found [2]");
    error(&family, &format!("{SHOWN} (open-flamingo): {surplus}"));
    let file = format!("{SHOWN}/model.safetensors: not a safetensors file");
    replace(&model, "<\u{9b}2J>");
    error(&family, &format!(r"{file}: it is an XML text, as servers send instead of a file: <\u{{9b}}2J>"));
    let described = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let name = serde_json::Value::from(HOSTILE);
    for (header, fault) in [
        (
            format!("{{{name}:{described},{name}:{described}}}"),
            format!("name {SHOWN} occurs twice at line 1 column 169"),
        ),
        (
            format!("{{{name}:7}}"),
            format!(
                "tensor {SHOWN}: invalid type: integer `7`, expected an object with dtype, shape and data_offsets at line 1 column 37"
            ),
        ),
        (
            format!(r#"{{"a":{{"dtype":{name},"shape":[1],"data_offsets":[0,4]}}}}"#),
            format!("tensor a: unknown dtype {SHOWN} at line 1 column 48"),
        ),
        (
            format!(r#"{{"__metadata__":{{{name}:"",{name}:""}}}}"#),
            format!("metadata {SHOWN} occurs twice at line 1 column 93"),
        ),
    ] {
        replace(&model, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat());
        error(&family, &format!("{file}: header: {fault}"));
    }
    std::fs::remove_file(&model).unwrap();
    let index = folder.join(HOSTILE).join("model.safetensors.index.json");
    for (name, fault) in [
        (
            format!("../{HOSTILE}"),
            format!(
                "not an index of shards: weight_map: expected names of .safetensors files beside the index, found \"../{SHOWN}\" at \
                 line 1 column 88"
            ),
        ),
        ("absent.safetensors".to_string(), "not one of its 1 shards is there: absent.safetensors".to_string()),
    ] {
        std::fs::write(&index, serde_json::json!({ "weight_map": { HOSTILE: name } }).to_string()).unwrap();
        error(&family, &format!("{SHOWN}/model.safetensors.index.json: {fault}"));
    }
    std::fs::remove_file(&index).unwrap();
    let files = ["a", "b"].map(|end| format!("{HOSTILE}{end}.safetensors"));
    std::fs::write(folder.join(HOSTILE).join(&files[0]), "").unwrap();
    error(&family, &format!("{SHOWN}/{SHOWN}a.safetensors: not a safetensors file: it is empty"));
    std::fs::write(folder.join(HOSTILE).join(&files[1]), "").unwrap();
    let both = format!("{SHOWN}a.safetensors, {SHOWN}b.safetensors");
    error(&family, &format!("{SHOWN}: several files could hold the checkpoint; name one of {both}"));
}

#[test]
fn what_run_and_verify_print() {
    let folder = hostile("escaped-run", "");
    let output = format!("{HOSTILE}/out");
    let run = |inputs: &str| {
        let checkpoint = ["run", "--checkpoint", HOSTILE, "--family", "open-flamingo", "--heads", "8"];
        outcome(&folder, &[&checkpoint[..], &["--inputs", inputs, "--output", &output]].concat())
    };
    let mut given: Tensors = [("features".to_string(), tensor("features", &[1, 2, 5, 16]))].into();
    write(&folder.join("in.safetensors"), &given);
    assert_eq!(
        run("in.safetensors"),
        (
            Some(0),
            format!("{SHOWN}/out: 1 tensor\nf32   [1, 2, 3, 16]        media\n"),
            format!("note: config.json has model_type {SHOWN}: only its fields that open-flamingo has too are used\n")
        )
    );
    given.insert(HOSTILE.into(), tensor("surplus", &[2]));
    let inputs = format!("{HOSTILE}/in.safetensors");
    write(&folder.join(&inputs), &given);
    let (status, out, err) = run(&inputs);
    assert_eq!((status, out.as_str()), (Some(1), ""));
    let fault = format!("tensors that this checkpoint does not read: {SHOWN} (see xattn run --help)");
    assert_eq!(err.lines().last().unwrap(), format!("error: {SHOWN}/in.safetensors: {fault}"));
    let (status, out, err) = outcome(&folder, &["verify", "--device", "reference", &inputs]);
    assert_eq!((status, err.as_str()), (Some(1), ""));
    // Of a long path the table shows the end.
    let path = format!("{SHOWN}/in.safetensors");
    let end = &path[path.len() - 44..];
    let none = format!("{:>10}", "-");
    assert_eq!(
        out,
        format!(
            "{:<44} {:<9} {:<5} {:>6} {:>10} {:>10} {:>10} {:>10}  \n\
             {end} reference f64        1 {none} {none} {none} {none}  FAILED\n\
             FAILED {path} [reference f64]\n    {path}: metadata: source_package is missing\n\
             0 passed, 1 failed, 0 skipped\n",
            "case", "device", "dtype", "runs", "max error", "bound", "rms error", "bound"
        )
    );
}
