//! `xattn verify` as a program: last line, exit status, JSON, hostile files.
#![cfg(feature = "cli")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use proptest::prelude::*;
use serde_json::{Value, json};
use xattn::Error;
use xattn::verify::Fixture;

const CASE: &str = "gated_residual:batch=1,rows=65,width=64,gate=channel,in_place=true,mask=true,values=normal,layout=padded,dtype=bf16,\
                    stream=f32,gate_dtype=f32,seed=7";

fn xattn(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xattn")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn last_line(output: &Output) -> String {
    text(&output.stdout).lines().last().unwrap_or("").to_string()
}

/// A file of this test, in a folder of its own.
fn scratch(test: &str, name: &str, bytes: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A fixture of two tensors; its class is nobody's.
fn header() -> Value {
    json!({
        "__metadata__": {
            "source_package": "none", "source_class": "none.None", "config": "{\"ctor\": {}}", "semantics": "none",
        },
        "weights.w": { "dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16] },
        "inputs.mask": { "dtype": "U8", "shape": [3], "data_offsets": [16, 19] },
        "outputs.out": { "dtype": "F32", "shape": [2], "data_offsets": [19, 27] },
    })
}

const BODY: [u8; 27] = [0; 27];

fn file(header: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The fault that reading such a file gives.
fn fault(bytes: &[u8]) -> String {
    match Fixture::parse(Path::new("some.safetensors"), bytes) {
        Err(error @ Error::File { .. }) => {
            let message = error.to_string();
            message.strip_prefix("some.safetensors: ").expect("the message names the file").to_string()
        }
        Err(other) => panic!("not a file error: {other}"),
        Ok(_) => "none".into(),
    }
}

#[test]
fn a_reproduction_string_runs_exactly_that_case() {
    let output = xattn(&["verify", "--device", "reference", "--filter", CASE]);
    assert_eq!(last_line(&output), "1 passed, 0 failed, 0 skipped", "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "", "no progress where there is no terminal");
}

#[test]
fn json_holds_every_number() {
    let path = scratch("json", "report.json", b"");
    let name = path.to_str().unwrap();
    let output = xattn(&["verify", "--device", "reference", "--filter", CASE, "--json", name]);
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((&report["passed"], &report["failed"]), (&json!(1), &json!(0)));
    let entry = &report["entries"][0];
    assert_eq!(entry["case"], CASE);
    assert_eq!(
        (&entry["device"], &entry["dtype"], &entry["status"]),
        (&json!("reference"), &json!("bf16"), &json!("passed"))
    );
    let out = &entry["outputs"][0];
    assert_eq!((&out["output"], &out["elements"]), (&json!("out"), &json!(65 * 64)));
    assert!(out["max_bound"].as_f64().unwrap() > out["max_error"].as_f64().unwrap());
}

#[test]
fn nothing_run_is_a_failure() {
    let output = xattn(&["verify", "--filter", "no such case"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains("filter: expected text that occurs in the reproduction string of a case, got no such case"),
        "{message}"
    );

    let empty = scratch("empty", "readme.txt", b"").parent().unwrap().to_path_buf();
    let output = xattn(&["verify", empty.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no file in this folder ends in .safetensors"));

    let output = xattn(&["verify", "--device", "cpu", "--dtype", "f16", "--filter", CASE]);
    assert_eq!((last_line(&output).as_str(), output.status.code()), ("0 passed, 0 failed, 0 skipped", Some(1)));
}

#[test]
fn wrong_usage_is_told_apart() {
    for arguments in [&["verify", "--dtype", "f64"][..], &["verify", "--device", "abacus"], &["verfy"], &[]] {
        assert_eq!(xattn(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert!(text(&xattn(&["verify", "--help"]).stdout).contains("Examples:"));
}

#[test]
fn devices_lists_every_backend() {
    let output = xattn(&["devices"]);
    let lines: Vec<String> = text(&output.stdout).lines().map(String::from).collect();
    assert_eq!(lines.len(), 4);
    for (line, name) in lines.iter().zip(["reference", "cpu", "wgpu", "cuda"]) {
        assert!(line.starts_with(name) && line.contains("available"), "{line}");
    }
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn an_unknown_class_is_a_failure_that_names_file_and_class() {
    let path = scratch("unknown", "none.safetensors", &file(&header().to_string(), &BODY));
    let output = xattn(&["verify", "--device", "reference", path.to_str().unwrap()]);
    assert_eq!((last_line(&output).as_str(), output.status.code()), ("0 passed, 1 failed, 0 skipped", Some(1)));
    let table = text(&output.stdout);
    assert!(table.contains("none.safetensors: unknown class none.None; known: "), "{table}");
}

#[test]
fn a_truncated_file_fails_and_does_not_stop_the_others() {
    let whole = file(&header().to_string(), &BODY);
    let short = scratch("truncated", "short.safetensors", &whole[..whole.len() - 1]);
    scratch("truncated", "tiny.safetensors", &whole[..5]);
    let output = xattn(&["verify", "--device", "reference", short.parent().unwrap().to_str().unwrap()]);
    assert_eq!((last_line(&output).as_str(), output.status.code()), ("0 passed, 2 failed, 0 skipped", Some(1)));
    let cut = format!("short.safetensors: cut short: {} of {} bytes", whole.len() - 1, whole.len());
    for name in [cut.as_str(), "tiny.safetensors: cut short: 5 of at least 8 bytes"] {
        assert!(text(&output.stdout).contains(name), "{}", text(&output.stdout));
    }
    assert!(!text(&output.stderr).contains("panicked"));
}

#[test]
fn every_truncation_is_a_fault() {
    let whole = file(&header().to_string(), &BODY);
    assert_eq!(fault(&whole), "none");
    for length in 0..whole.len() {
        let found = fault(&whole[..length]);
        if length < 8 {
            // Too few bytes to tell a safetensors file from a text.
            let cut = format!("cut short: {length} of at least 8 bytes");
            assert!(found == cut || found.starts_with("not a safetensors file: it is "), "{length}: {found}");
        } else {
            let header = whole.len() - BODY.len();
            let cut = match length < header {
                true => format!("cut short: {length} of at least {header} bytes, within the header"),
                false => format!("cut short: {length} of {} bytes", whole.len()),
            };
            assert_eq!(found, cut);
        }
    }
    let mut longer = whole;
    longer.push(0);
    assert!(fault(&longer).starts_with("not a safetensors file: "));
}

#[test]
fn lying_lengths_are_faults() {
    let text = header().to_string();
    for length in [
        0,
        1,
        text.len() as u64 - 1,
        text.len() as u64 + 1,
        100_000_001,
        1 << 40,
        i64::MAX as u64,
        u64::MAX - 7,
        u64::MAX,
    ] {
        let mut bytes = file(&text, &BODY);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert!(fault(&bytes).starts_with("not a safetensors file: "), "{length}");
    }
}

#[test]
fn lying_entries_are_faults() {
    let with = |pointer: &str, value: Value| {
        let mut header = header();
        *header.pointer_mut(pointer).unwrap() = value;
        fault(&file(&header.to_string(), &BODY))
    };
    let not = "not a safetensors file: ";
    for shape in [
        json!([4294967296u64, 4294967296u64]),
        json!([u64::MAX]),
        json!([u64::MAX, 0, 2]),
        json!([2, 3]),
        json!([-1, 2]),
        json!([1.5]),
        json!("4"),
        json!([]),
        json!(null),
    ] {
        assert!(with("/weights.w/shape", shape.clone()).starts_with(not), "shape {shape}");
    }
    for offsets in [
        json!([0, 17]),
        json!([16, 0]),
        json!([0, u64::MAX]),
        json!([1, 17]),
        json!([0, 1u64 << 40]),
        json!([0]),
        json!([-4, 12]),
    ] {
        assert!(with("/weights.w/data_offsets", offsets.clone()).starts_with(not), "offsets {offsets}");
    }
    for dtype in [json!("f32"), json!("F31"), json!(""), json!(32), json!(null), json!("F64"), json!("U8")] {
        assert!(with("/weights.w/dtype", dtype.clone()).starts_with(not), "dtype {dtype}");
    }
    // The size is right, the kind is not.
    assert_eq!(
        with("/inputs.mask/dtype", json!("BOOL")),
        "tensor inputs.mask: expected f64, f32, f16, bf16, i32 or u32, found bool"
    );
    assert_eq!(
        with("/__metadata__/config", json!("{ctor}")),
        "metadata: config is not JSON: key must be a string at line 1 column 2"
    );
    assert_eq!(with("/__metadata__/config", json!("[1]")), "metadata: config is not a JSON object");
    assert!(
        with("/__metadata__/config", json!("[".repeat(10_000)))
            .starts_with("metadata: config is not JSON: recursion limit")
    );
    let long = json!("[".repeat(100_000));
    assert_eq!(with("/__metadata__/config", long), "metadata: config has 100000 bytes: expected at most 16384");
    assert!(with("/__metadata__/config", json!({"ctor": {}})).starts_with(not), "metadata holds strings only");
}

#[test]
fn missing_and_duplicate_names_are_faults() {
    for field in ["source_package", "source_class", "config", "semantics"] {
        let mut header = header();
        header["__metadata__"].as_object_mut().unwrap().remove(field);
        assert_eq!(fault(&file(&header.to_string(), &BODY)), format!("metadata: {field} is missing"));
    }
    let mut bare = header();
    bare.as_object_mut().unwrap().remove("__metadata__");
    assert_eq!(fault(&file(&bare.to_string(), &BODY)), "metadata: source_package is missing");

    let text = header().to_string();
    let entry = "\"weights.w\":{\"data_offsets\":[0,16],\"dtype\":\"F32\",\"shape\":[2,2]}";
    assert!(text.contains(entry));
    let twice = text.replace(entry, &format!("{entry},{entry}"));
    assert!(fault(&file(&twice, &BODY)).contains("name weights.w occurs twice"), "{}", fault(&file(&twice, &BODY)));
    let twice = text.replace("\"semantics\":", "\"semantics\":\"a\",\"semantics\":");
    assert!(fault(&file(&twice, &BODY)).contains("metadata semantics occurs twice"));

    let strange = text.replace("inputs.mask", "unknown.mask");
    assert_eq!(
        fault(&file(&strange, &BODY)),
        "tensor unknown.mask: expected a name that begins with weights., inputs. or outputs."
    );
    let none = text.replace("outputs.out", "outputs.inter.out");
    assert_eq!(fault(&file(&none, &BODY)), "no tensor outputs.*: nothing to compare");
    let mut body = BODY;
    body[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(fault(&file(&text, &body)), "tensor weights.w: element 1 is NaN");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mutated_files_never_panic(changes in proptest::collection::vec((0usize..1000, any::<u8>()), 1..6)) {
        let mut bytes = file(&header().to_string(), &BODY);
        let length = bytes.len();
        for (at, byte) in changes {
            bytes[at % length] = byte;
        }
        let _ = fault(&bytes);
    }
}

/// Without a driver: a line of `devices`, and an error of a command that wants an adapter.
#[cfg(all(feature = "wgpu", target_os = "linux"))]
#[test]
fn a_machine_without_an_adapter() {
    let command = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_xattn"));
        // What tells the loader of Vulkan where drivers are, by its new name and by its old one.
        let nowhere = std::env::temp_dir().join("no-such-driver.json");
        command.args(arguments).env("VK_DRIVER_FILES", &nowhere).env("VK_ICD_FILENAMES", &nowhere).output().unwrap()
    };
    let devices = command(&["devices"]);
    let listed = text(&devices.stdout);
    let line = listed.lines().find(|line| line.starts_with("wgpu")).unwrap();
    assert!(line.contains("unavailable  no Vulkan, Metal or Direct3D 12 adapter: "), "{line}");
    assert_eq!(devices.status.code(), Some(0));
    let verify = command(&["verify", "--device", "wgpu", "--filter", CASE]);
    let message = text(&verify.stderr);
    assert!(message.contains("wgpu is unavailable: no Vulkan, Metal or Direct3D 12 adapter: "), "{message}");
    assert_eq!(verify.status.code(), Some(1));
}

#[test]
fn bench_writes_what_it_timed() {
    let path = scratch("bench", "bench.json", b"");
    let name = path.to_str().unwrap();
    let output = xattn(&["bench", "--filter", "qformer_head/itm/2", "--peak-gflops", "100", "--json", name]);
    assert_eq!((last_line(&output).as_str(), output.status.code()), ("1 timed, 0 failed, 0 cannot run here", Some(0)));
    assert!(text(&output.stdout).contains("FP32: share of 100 GFLOP/s, as given"), "{}", text(&output.stdout));
    let report: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((&report["device"]["kind"], &report["cases"][0]["case"]), (&json!("cpu"), &json!("qformer_head/itm/2")));
    assert_eq!(report["fp32_peak"]["gflop_per_s"], json!(100.0));

    let output = xattn(&["bench", "--filter", "no such case"]);
    let expected = "note: no case has \"no such case\" in its name; --list names them";
    assert_eq!((last_line(&output).as_str(), output.status.code()), (expected, Some(1)));
    // An earlier result stays where nothing is timed.
    let output = xattn(&["bench", "--filter", "no such case", "--json", name]);
    assert_eq!(
        (output.status.code(), serde_json::from_slice(&std::fs::read(&path).unwrap()).ok()),
        (Some(1), Some(report))
    );
    for peak in ["0", "-3", "nan", "fast"] {
        let output = xattn(&["bench", "--list", "--peak-gflops", peak]);
        assert_eq!(output.status.code(), Some(2), "{peak}");
        let expected = format!(
            "error: invalid value '{peak}' for '--peak-gflops <N>': expected a positive number of GFLOP/s, for example 19500"
        );
        assert_eq!(text(&output.stderr).lines().next(), Some(expected.as_str()));
    }
}

/// The commit is that of the program, whatever checkout it runs in.
#[test]
fn bench_tells_the_commit_of_the_program() {
    let folder = scratch("bench-commit", "file", b"").parent().unwrap().to_path_buf();
    let git = |arguments: &[&str]| {
        let named = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "core.hooksPath=none"];
        Command::new("git").current_dir(&folder).args(named).args(arguments).output().is_ok_and(|o| o.status.success())
    };
    if !git(&["init", "-q"]) || !git(&["add", "file"]) || !git(&["commit", "-q", "--allow-empty", "-m", "other"]) {
        eprintln!("SKIPPED: there is no git");
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_xattn"));
    command.current_dir(&folder).args(["bench", "--filter", "qformer_head/itm/2", "--json", "bench.json"]);
    assert_eq!(command.output().unwrap().status.code(), Some(0));
    let report: Value = serde_json::from_slice(&std::fs::read(folder.join("bench.json")).unwrap()).unwrap();
    assert_eq!(report["commit"], json!(option_env!("XATTN_COMMIT")));
}

/// A pipe gets the report once, not after each case; a fixture is no place for a report.
#[cfg(unix)]
#[test]
fn reports_are_written_where_they_may_be() {
    let folder =
        scratch("report", "none.safetensors", &file(&header().to_string(), &BODY)).parent().unwrap().to_path_buf();
    let pipe = folder.join("pipe");
    let _ = std::fs::remove_file(&pipe);
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reads = pipe.clone();
    let reader = std::thread::spawn(move || std::fs::read(reads).unwrap());
    let two = "qformer_head/itm/2,attention/openflamingo-decode/b1-n4";
    let output = xattn(&["bench", "--filter", two, "--json", pipe.to_str().unwrap()]);
    assert_eq!((last_line(&output).as_str(), output.status.code()), ("2 timed, 0 failed, 0 cannot run here", Some(0)));
    let report: Value = serde_json::from_slice(&reader.join().unwrap()).unwrap();
    assert_eq!(report["cases"].as_array().unwrap().len(), 2);

    let fixture = folder.join("none.safetensors");
    let before = std::fs::read(&fixture).unwrap();
    let link = folder.join("link");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink("none.safetensors", &link).unwrap();
    for json in [&fixture, &link] {
        let output = xattn(&["verify", "--json", json.to_str().unwrap(), folder.to_str().unwrap()]);
        let message =
            format!("error: {}: expected another file than the fixture, found {}\n", json.display(), fixture.display());
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(1), message));
        assert_eq!(std::fs::read(&fixture).unwrap(), before);
    }
    // Found out before anything runs.
    for command in [&["bench", "--filter", "ffn/openflamingo-9b/64"][..], &["verify", "--full"]] {
        let output = xattn(&[command, &["--json", folder.to_str().unwrap()]].concat());
        let message = format!("error: {}: expected the name of a file, found a folder\n", folder.display());
        assert_eq!((output.status.code(), text(&output.stderr), output.stdout.len()), (Some(1), message, 0));
    }
}

#[test]
fn options_that_others_leave_without_effect_are_wrong_usage() {
    for arguments in [&["bench", "--list", "--filter", "norm", "--turns"][..], &["verify", "--every-case", "absent"]] {
        let output = xattn(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).starts_with("error: the argument '--"), "{}", text(&output.stderr));
    }
    let output = xattn(&["bench", "--device", "cuda", "--peak-gflops", "100"]);
    let message = "error: --peak-gflops is not for --device cuda, whose table has no share of the FP32 peak\n";
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(2), message));
}

/// The cases go to standard output, or to a file; results always want a file.
#[test]
fn the_list_of_cases_is_json_too() {
    let names = "gated_residual/512x2048,qformer_head/itm/2";
    let output = xattn(&["bench", "--list", "--filter", names, "--json"]);
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found: Vec<_> = listed["cases"].as_array().unwrap().iter().map(|case| case["case"].as_str().unwrap()).collect();
    assert_eq!((found, output.status.code()), (names.split(',').collect(), Some(0)));
    assert_eq!(listed["version"], env!("CARGO_PKG_VERSION"));
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-list.json");
    let output = xattn(&["bench", "--list", "--filter", names, "--json", path.to_str().unwrap()]);
    assert_eq!((output.stdout.len(), output.status.code()), (0, Some(0)));
    assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap(), listed);
    let output = xattn(&["bench", "--filter", "qformer_head/itm/2", "--json"]);
    let message = "error: --json needs the name of a file; only with --list standard output takes its place\n";
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(2), message));
}

/// A software adapter gets one case in sixteen of each op, unless all are asked for.
#[cfg(feature = "wgpu")]
#[test]
fn a_software_adapter_gets_part_of_the_cases() {
    let device = match xattn::Device::open(xattn::DeviceKind::Wgpu) {
        Ok(device) if device.is_software_adapter() => device,
        Ok(device) => return eprintln!("SKIPPED: {} is hardware", device.info().name),
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    let name = device.info().name;
    let output = xattn(&["verify", "--device", "wgpu", "--dtype", "f32"]);
    let table = text(&output.stdout);
    let note = table.lines().find(|line| line.starts_with("note: wgpu ran ")).expect("a line that says so");
    let numbers = note.strip_prefix("note: wgpu ran ").unwrap();
    let (few, rest) = numbers.split_once(" of ").unwrap();
    let (all, rest) = rest.split_once(' ').unwrap();
    assert_eq!(rest, format!("cases, since {name} is a software adapter; --every-case runs all"));
    let [few, all]: [usize; 2] = [few, all].map(|number| number.parse().unwrap());
    // One more of each of the five ops, at most.
    assert!((all / 16..=all / 16 + 5).contains(&few), "{few} of {all}");
    assert_eq!((last_line(&output), output.status.code()), (format!("{few} passed, 0 failed, 0 skipped"), Some(0)));
    // Asked for by name: all of them.
    let output = xattn(&["verify", "--device", "wgpu", "--dtype", "f32", "--filter", "media_index:"]);
    assert!(!text(&output.stdout).contains("software adapter"), "{}", text(&output.stdout));
    assert_eq!(output.status.code(), Some(0));
}
