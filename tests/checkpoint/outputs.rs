//! Where `xattn run` writes: what is replaced, what is followed, what is written to, and what is
//! refused before anything is computed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::SafeTensors;
use xattn::HostTensor;

use crate::small::*;

/// A checkpoint in `model.safetensors`, with `config.json`, and inputs beside it.
pub fn sample(name: &str) -> Folder {
    let folder = Folder::new(name);
    let checkpoint = all([
        below("perceiver.", &open_flamingo_resampler()),
        below("lang_encoder.model.layers.2.gated_cross_attn_layer.", &open_flamingo_block()),
    ]);
    write(&folder.join("model.safetensors"), &checkpoint);
    write(&folder.join("in.safetensors"), &inputs(1.0));
    folder
}

/// Inputs of which the first feature is this.
pub fn inputs(first: f32) -> Tensors {
    let mut features: Vec<f32> = tensor("features", &[1, 2, 5, 16]).to_f32().unwrap();
    features[0] = first;
    [
        ("features".to_string(), HostTensor::from_slice(&features, &[1, 2, 5, 16]).unwrap()),
        ("text".to_string(), tensor("text", &[1, 4, 24])),
        ("media_index".to_string(), HostTensor::from_slice(&[0i32, 1, 1, 2], &[1, 4]).unwrap()),
    ]
    .into()
}

/// `xattn run` on the sample.
pub fn command(folder: &Folder, output: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xattn"));
    command.arg("run").arg("--checkpoint").arg(&folder.0).arg("--inputs").arg(folder.join("in.safetensors"));
    command.arg("--output").arg(output).args(arguments);
    command
}

fn run(folder: &Folder, output: &Path) -> Output {
    command(folder, output, &[]).output().unwrap()
}

/// What is said besides the assumed heads of OpenFlamingo, of which `assumed_heads_are_said` is.
pub fn said(done: &Output) -> String {
    let text = String::from_utf8_lossy(&done.stderr);
    text.split_inclusive('\n').filter(|line| !line.contains(" is assumed: what OpenFlamingo takes")).collect()
}

#[test]
fn assumed_heads_are_said() {
    let folder = sample("out-assumed");
    let path = folder.join("out.safetensors");
    let all =
        |arguments: &[&str]| String::from_utf8(command(&folder, &path, arguments).output().unwrap().stderr).unwrap();
    let line = |part: &str| format!("note: {part} heads: 8 is assumed: what OpenFlamingo takes for every model\n");
    assert_eq!(all(&[]), line("resampler") + &line("gated blocks"));
    assert_eq!(all(&["--heads", "8"]), line("gated blocks"));
    assert_eq!(all(&["--heads", "8", "--block-heads", "8"]), "");
}

#[track_caller]
fn refused(folder: &Folder, output: &Path, message: &str) {
    let done = run(folder, output);
    assert_eq!((done.status.code(), said(&done)), (Some(1), format!("error: {}: {message}\n", output.display())));
    assert!(done.stdout.is_empty());
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn expect_results(bytes: &[u8]) {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let mut names = file.names();
    names.sort();
    assert_eq!(names, ["media", "text.2"]);
}

#[test]
fn success_says_what_was_written() {
    let folder = sample("out-said");
    let path = folder.join("out.safetensors");
    let done = run(&folder, &path);
    assert_eq!((done.status.code(), said(&done)), (Some(0), String::new()));
    let list =
        format!("{}: 2 tensors\nf32   [1, 2, 3, 16]        media\nf32   [1, 4, 24]           text.2\n", path.display());
    assert_eq!(String::from_utf8(done.stdout).unwrap(), list);
    expect_results(&std::fs::read(&path).unwrap());
}

#[test]
fn a_file_is_replaced_and_its_neighbours_are_not() {
    let folder = sample("out-file");
    let path = folder.join("out.safetensors");
    for neighbour in ["out.safetensors.new", "out.safetensors.tmp", ".out.safetensors.tmp"] {
        std::fs::write(folder.join(neighbour), neighbour).unwrap();
    }
    std::fs::write(&path, "before").unwrap();
    #[cfg(unix)]
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    let before = names(&folder.0);
    assert_eq!(run(&folder, &path).status.code(), Some(0));
    expect_results(&std::fs::read(&path).unwrap());
    #[cfg(unix)]
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions()) & 0o777,
        0o640
    );
    for neighbour in ["out.safetensors.new", "out.safetensors.tmp", ".out.safetensors.tmp"] {
        assert_eq!(std::fs::read_to_string(folder.join(neighbour)).unwrap(), neighbour);
    }
    assert_eq!(names(&folder.0), before, "nothing is left behind");
}

#[test]
fn names_that_are_no_files_are_refused() {
    let folder = sample("out-names");
    refused(&folder, &folder.0, "expected the name of a file, found a folder");
    refused(&folder, &folder.join("absent/"), "expected the name of a file, found the name of a folder");
    let done = run(&folder, &folder.join("in.safetensors/out"));
    assert_eq!(done.status.code(), Some(1));
    assert!(said(&done).contains("Not a directory"), "{}", said(&done));
}

/// By its name, another name, and from another folder.
#[test]
fn what_is_read_is_not_written_to() {
    let folder = sample("out-same");
    std::fs::write(folder.join("config.json"), r#"{"model_type": "flamingo"}"#).unwrap();
    let keep = |name: &str| std::fs::read(folder.join(name)).unwrap();
    for (what, name) in [("checkpoint", "model.safetensors"), ("config", "config.json"), ("inputs", "in.safetensors")] {
        let (path, before) = (folder.join(name), keep(name));
        let message = format!("expected another file than the {what}, found {}", path.display());
        refused(&folder, &path, &message);
        refused(&folder, &folder.join(".").join(name), &message);
        let hard = folder.join("hard");
        std::fs::hard_link(&path, &hard).unwrap();
        refused(&folder, &hard, &message);
        std::fs::remove_file(&hard).unwrap();
        #[cfg(unix)]
        {
            let link = folder.join("link");
            std::os::unix::fs::symlink(name, &link).unwrap();
            refused(&folder, &link, &message);
            std::fs::remove_file(&link).unwrap();
        }
        assert_eq!(keep(name), before, "{name}");
    }
    assert_eq!(names(&folder.0), ["config.json", "in.safetensors", "model.safetensors"]);
}

#[test]
fn shards_and_their_index_are_not_written_to() {
    let folder = Folder::new("out-shards");
    let shards = write_sharded(&folder.0, &below("perceiver.", &open_flamingo_resampler()));
    let inputs: Tensors = [("features".to_string(), tensor("features", &[1, 2, 5, 16]))].into();
    write(&folder.join("in.safetensors"), &inputs);
    for (what, name) in
        shards.iter().map(|name| ("shard", name.as_str())).chain([("index", "model.safetensors.index.json")])
    {
        let path = folder.join(name);
        refused(&folder, &path, &format!("expected another file than the {what}, found {}", path.display()));
    }
    assert_eq!(run(&folder, &folder.join("out.safetensors")).status.code(), Some(0));
}

/// A shard opened by name: the rest of its set and the index are refused as outputs.
#[test]
fn siblings_of_a_shard_are_not_written_to() {
    let folder = Folder::new("out-siblings");
    let shards = write_sharded(&folder.0, &below("perceiver.", &open_flamingo_resampler()));
    let inputs: Tensors = [("features".to_string(), tensor("features", &[1, 2, 5, 16]))].into();
    let beside = Folder::new("out-siblings-inputs");
    write(&beside.join("in.safetensors"), &inputs);
    let index = folder.join("model.safetensors.index.json");
    let refused = |opened: &Path, output: &Path, what: &str, found: &Path| {
        let before = (names(&folder.0), std::fs::read(output).ok());
        let mut command = Command::new(env!("CARGO_BIN_EXE_xattn"));
        command.arg("run").arg("--checkpoint").arg(opened).arg("--inputs").arg(beside.join("in.safetensors"));
        let done = command.arg("--output").arg(output).args(["--family", "open-flamingo"]).output().unwrap();
        let message = format!("expected another file than the {what}, found {}", found.display());
        assert_eq!(
            (done.status.code(), said(&done)),
            (Some(1), format!("error: {}: {message}\n", output.display())),
            "{}",
            opened.display()
        );
        assert_eq!((names(&folder.0), std::fs::read(output).ok()), before);
    };
    let [first, second] = [&shards[0], &shards[1]].map(|name| folder.join(name));
    refused(&first, &second, "shard", &second);
    refused(&first, &index, "index", &index);
    refused(&first, &folder.join(".").join(&shards[1]), "shard", &second);
    let hard = folder.join("hard");
    std::fs::hard_link(&second, &hard).unwrap();
    refused(&first, &hard, "shard", &second);
    std::fs::remove_file(&hard).unwrap();
    // A shard that was not fetched, whether the shard beside it is opened, the index or the folder.
    let bytes = std::fs::read(&second).unwrap();
    std::fs::remove_file(&second).unwrap();
    for opened in [&first, &index, &folder.0] {
        refused(opened, &second, "shard", &second);
    }
    std::fs::remove_file(&index).unwrap();
    for opened in [&first, &folder.0] {
        refused(opened, &second, "shard", &second);
    }
    std::fs::write(&second, bytes).unwrap();
    // Names that tell nothing: the index does.
    let [a, b] = ["a.safetensors", "b.safetensors"].map(|name| folder.join(name));
    std::fs::rename(&first, &a).unwrap();
    std::fs::rename(&second, &b).unwrap();
    std::fs::write(&index, r#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "c.safetensors"}}"#)
        .unwrap();
    refused(&a, &b, "shard", &b);
    refused(&a, &folder.join("c.safetensors"), "shard", &folder.join("c.safetensors"));
}

/// A snapshot as Hugging Face's cache keeps it: links to files that are called by their hashes.
#[cfg(unix)]
#[test]
fn blobs_of_sibling_shards_are_not_written_to() {
    let folder = sample("out-blobs");
    std::fs::create_dir_all(folder.join("snapshots/1")).unwrap();
    std::fs::create_dir(folder.join("blobs")).unwrap();
    let shard = |i: usize| format!("snapshots/1/model-0000{i}-of-00003.safetensors");
    for (i, blob) in [(1, "abc"), (2, "def"), (3, "not-fetched")] {
        std::os::unix::fs::symlink(format!("../../blobs/{blob}"), folder.join(&shard(i))).unwrap();
    }
    std::fs::rename(folder.join("model.safetensors"), folder.join("blobs/abc")).unwrap();
    std::fs::write(folder.join("blobs/def"), "another shard").unwrap();
    let (inner, link) = (folder.join(&shard(1)), folder.join("link"));
    std::os::unix::fs::symlink(&inner, &link).unwrap();
    for opened in [&inner, &link] {
        for (blob, i) in [("def", 2), ("not-fetched", 3)] {
            let output = folder.join("blobs").join(blob);
            let mut command = Command::new(env!("CARGO_BIN_EXE_xattn"));
            command.arg("run").arg("--checkpoint").arg(opened).arg("--inputs").arg(folder.join("in.safetensors"));
            let done = command.arg("--output").arg(&output).output().unwrap();
            let message = format!("expected another file than the shard, found {}", folder.join(&shard(i)).display());
            let message = format!("error: {}: {message}\n", output.display());
            assert_eq!((done.status.code(), said(&done)), (Some(1), message));
        }
        assert_eq!(names(&folder.join("blobs")), ["abc", "def"]);
    }
    assert_eq!(std::fs::read_to_string(folder.join("blobs/def")).unwrap(), "another shard");
}

#[cfg(unix)]
mod nodes {
    use std::os::unix::fs::FileTypeExt;

    use super::*;

    fn make(tool: &str, path: &Path, arguments: &[&str]) -> bool {
        Command::new(tool).arg(path).args(arguments).output().is_ok_and(|output| output.status.success())
    }

    #[test]
    fn links_are_followed() {
        let folder = sample("out-links");
        std::fs::create_dir(folder.join("there")).unwrap();
        for (there, text) in [("there/old", Some("before")), ("there/new", None)] {
            let (link, target) = (folder.join("link"), folder.join(there));
            if let Some(text) = text {
                std::fs::write(&target, text).unwrap();
            }
            std::os::unix::fs::symlink(there, folder.join("second")).unwrap();
            std::os::unix::fs::symlink("second", &link).unwrap();
            assert_eq!(run(&folder, &link).status.code(), Some(0));
            assert_eq!(std::fs::read_link(&link).unwrap(), PathBuf::from("second"));
            assert!(std::fs::symlink_metadata(&target).unwrap().is_file());
            expect_results(&std::fs::read(&target).unwrap());
            std::fs::remove_file(&link).unwrap();
            std::fs::remove_file(folder.join("second")).unwrap();
        }
        assert_eq!(names(&folder.join("there")), ["new", "old"]);
        let circle = folder.join("circle");
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        let done = run(&folder, &circle);
        assert!(said(&done).contains("Too many levels of symbolic links"), "{}", said(&done));
    }

    #[test]
    fn a_named_pipe_is_written_to() {
        let folder = sample("out-pipe");
        let pipe = folder.join("pipe");
        assert!(make("mkfifo", &pipe, &[]));
        let reads = pipe.clone();
        let reader = std::thread::spawn(move || std::fs::read(reads).unwrap());
        assert_eq!(run(&folder, &pipe).status.code(), Some(0));
        expect_results(&reader.join().unwrap());
        assert!(std::fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
        assert_eq!(names(&folder.0), ["in.safetensors", "model.safetensors", "pipe"]);
    }

    #[test]
    fn a_socket_is_refused() {
        let folder = sample("out-socket");
        let socket = folder.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let message = "a socket, or something else that is neither file, device nor named pipe";
        refused(&folder, &socket, &format!("expected the name of a file, found {message}"));
        assert!(std::fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
    }

    /// Devices of our own: one that takes everything (1, 3), one that is always full (1, 7).
    #[test]
    fn devices_are_written_to_and_stay_devices() {
        let folder = sample("out-devices");
        let [null, full] = [("null", "3"), ("full", "7")].map(|(name, minor)| {
            let path = folder.join(name);
            make("mknod", &path, &["c", "1", minor]).then_some(path)
        });
        let (Some(null), Some(full)) = (null, full) else {
            eprintln!("SKIPPED: only root makes devices");
            return;
        };
        if std::fs::OpenOptions::new().write(true).open(&null).is_err() {
            eprintln!("SKIPPED: the file system of temporary files has no devices");
            return;
        }
        let link = folder.join("link");
        std::os::unix::fs::symlink("null", &link).unwrap();
        for path in [&null, &link] {
            let done = run(&folder, path);
            assert_eq!((done.status.code(), said(&done)), (Some(0), String::new()));
        }
        refused(&folder, &full, "No space left on device (os error 28)");
        for path in [&null, &full] {
            assert!(std::fs::symlink_metadata(path).unwrap().file_type().is_char_device(), "{}", path.display());
        }
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(names(&folder.0), ["full", "in.safetensors", "link", "model.safetensors", "null"]);

        // A full disk behind standard output, in every command that prints.
        let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
        let model = path("model.safetensors");
        for arguments in [
            &["devices"][..],
            &["inspect", &model],
            &["bench", "--list"],
            &["verify", "--device", "reference", "--filter", "norm:"],
            &["--help"],
            &["run", "--help"],
            &["--version"],
            &["run", "--checkpoint", &model, "--inputs", &path("in.safetensors"), "--output", &path("out.safetensors")],
        ] {
            let disk = std::fs::OpenOptions::new().write(true).open(&full).unwrap();
            let done = Command::new(env!("CARGO_BIN_EXE_xattn")).args(arguments).stdout(disk).output().unwrap();
            let message = "error: standard output: No space left on device (os error 28)\n";
            assert_eq!((done.status.code(), said(&done).as_str()), (Some(1), message), "{arguments:?}");
        }
    }

    /// The tensors, and nothing else, in the pipe or file that standard output is.
    #[cfg(target_os = "linux")]
    #[test]
    fn standard_output_can_be_the_file() {
        let folder = sample("out-stdout");
        let link = folder.join("link");
        std::os::unix::fs::symlink("/proc/self/fd/1", &link).unwrap();
        let done = run(&folder, &link);
        let list = format!("{}: 2 tensors\nf32   [1, 2, 3, 16]        media\n", link.display());
        assert_eq!(done.status.code(), Some(0), "{}", said(&done));
        assert!(said(&done).starts_with(&list), "{}", said(&done));
        expect_results(&done.stdout);
        let path = folder.join("out.safetensors");
        let file = std::fs::File::create(&path).unwrap();
        assert!(command(&folder, &link, &[]).stdout(file).status().unwrap().success());
        expect_results(&std::fs::read(&path).unwrap());
    }

    /// A reader that reads nothing: the command says nothing, and does not fail.
    #[test]
    fn a_closed_pipe_ends_a_command_quietly() {
        let folder = sample("out-closed");
        let model = folder.join("model.safetensors");
        for arguments in [
            &["devices"][..],
            &["inspect", model.to_str().unwrap()],
            &["bench", "--list"],
            &["bench", "--filter", "qformer_head/itm/2"],
            &["verify", "--device", "reference", "--filter", "gated_residual:"],
            &["--help"],
        ] {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let done = Command::new(env!("CARGO_BIN_EXE_xattn")).args(arguments).stdout(writer).output().unwrap();
            assert_eq!((done.status.code(), said(&done).as_str()), (Some(0), ""), "{arguments:?}");
        }
        // Nor where messages go.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let absent = ["inspect", "absent.safetensors"];
        let done = Command::new(env!("CARGO_BIN_EXE_xattn")).args(absent).stderr(writer).output().unwrap();
        assert_eq!(done.status.code(), Some(1));
    }
}
