//! Incomplete shards, or an index that disagrees: a note, and a reason for each tensor.

use std::path::Path;

use xattn::checkpoint::{Checkpoint, Files, Overrides};
use xattn::{Error, HostTensor};

use crate::small::*;

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";

fn index(folder: &Folder, entries: &[(&str, &str)]) {
    let map: serde_json::Map<_, _> =
        entries.iter().map(|(tensor, file)| (tensor.to_string(), (*file).into())).collect();
    std::fs::write(folder.join(INDEX), serde_json::json!({ "weight_map": map }).to_string()).unwrap();
}

fn shard(folder: &Folder, name: &str, tensors: &[(&str, &str)]) {
    let tensors: Tensors = tensors.iter().map(|(name, values)| (name.to_string(), tensor(values, &[3]))).collect();
    write(&folder.join(name), &tensors);
}

#[track_caller]
fn notes(folder: &Folder) -> (Files, Vec<String>) {
    let files = Files::open(&folder.0).unwrap();
    let notes = files.notes().to_vec();
    (files, notes)
}

/// What may lie in a shard's place, and what is said of it.
fn not_a_shard() -> Vec<(Vec<u8>, &'static str)> {
    let folder = Folder::new("not-a-shard");
    shard(&folder, SECOND, &[("module.lm_head.weight", "l"), ("model.text_model.norm.weight", "n")]);
    let whole = std::fs::read(folder.join(SECOND)).unwrap();
    assert_eq!(whole.len(), 192);
    vec![
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4400000000\n".to_vec(),
            "not a safetensors file: it is a Git LFS pointer, not the file of 4400000000 bytes that it stands for; fetch it: git lfs pull",
        ),
        (Vec::new(), "not a safetensors file: it is empty"),
        (
            b"<html>404</html>".to_vec(),
            "not a safetensors file: it is an HTML page, as servers send instead of a file: <html>404</html>",
        ),
        (whole[..5].to_vec(), "cut short: 5 of at least 8 bytes"),
        (whole[..20].to_vec(), "cut short: 20 of at least 168 bytes, within the header"),
        (whole[..180].to_vec(), "cut short: 180 of 192 bytes"),
        ([&whole[..], b"more"].concat(), "not a safetensors file: no tensor owns the last 4 bytes"),
    ]
}

/// The language model's shard was not downloaded, or not whole, or something else is in its place.
#[test]
fn only_the_bridges_shard() {
    let folder = Folder::new("bridges-shard");
    let bridge = below("model.connector.", &idefics2());
    write(&folder.join(FIRST), &bridge);
    std::fs::write(folder.join("config.json"), IDEFICS2_CONFIG).unwrap();
    let mut entries: Vec<(&str, &str)> = bridge.keys().map(|n| (n.as_str(), FIRST)).collect();
    entries.extend([("module.lm_head.weight", SECOND), ("model.text_model.norm.weight", SECOND)]);
    index(&folder, &entries);
    let others = not_a_shard().into_iter().map(|(bytes, what)| (Some(bytes), what));
    for (bytes, what) in [(None, "")].into_iter().chain(others) {
        let (note, why) = match bytes {
            None => (format!("are not there ({SECOND})"), format!("it is in {SECOND}, which is not there")),
            Some(bytes) => {
                replace(&folder.join(SECOND), bytes);
                let why = format!("it is in {SECOND}, which cannot be read: {what}");
                (format!("cannot be read ({SECOND}: {what})"), why)
            }
        };
        let checkpoint = Checkpoint::open(&folder.0, None).unwrap();
        checkpoint.bridges(&Overrides::default()).unwrap();
        let files = checkpoint.files();
        assert_eq!(
            files.notes(),
            [format!("model.safetensors.index.json: 1 of 2 shards {note}; 2 tensors are in them")]
        );
        assert_eq!(files.why_absent("lm_head.weight"), Some(why));
        assert_eq!((files.why_absent("another"), files.shards()), (None, 1));
        assert_eq!(files.why_absent("model.connector.perceiver_resampler.latents"), None);
    }
    // A folder in its place, and a link that leads to itself.
    let place = folder.join(SECOND);
    std::fs::remove_file(&place).unwrap();
    std::fs::create_dir(&place).unwrap();
    let said = |what: &str| {
        let note = format!("cannot be read ({SECOND}: {what}); 2 tensors are in them");
        let checkpoint = Checkpoint::open(&folder.0, None).unwrap();
        checkpoint.bridges(&Overrides::default()).unwrap();
        assert_eq!(checkpoint.files().notes(), [format!("model.safetensors.index.json: 1 of 2 shards {note}")]);
    };
    said("a folder");
    std::fs::remove_dir(&place).unwrap();
    #[cfg(unix)]
    {
        assert!(std::process::Command::new("mkfifo").arg(&place).status().unwrap().success());
        said("not a regular file");
        std::fs::remove_file(&place).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&place).unwrap());
        said("not a regular file");
        std::fs::remove_file(&place).unwrap();
        std::os::unix::fs::symlink(SECOND, &place).unwrap();
        said(&std::fs::metadata(&place).unwrap_err().to_string());
        std::fs::remove_file(&place).unwrap();
    }
    // Without an index at all.
    std::fs::remove_file(folder.join(INDEX)).unwrap();
    assert!(Checkpoint::open(&folder.0, None).unwrap().bridges(&Overrides::default()).is_ok());
    let (names, half) = (bridge.keys().cloned().collect::<Vec<_>>(), bridge.len() / 2);
    for (file, part) in
        [("m-00001-of-00003.safetensors", &names[..half]), ("m-00003-of-00003.safetensors", &names[half..])]
    {
        write(&folder.join(file), &part.iter().map(|n| (n.clone(), bridge[n].clone())).collect());
    }
    std::fs::remove_file(folder.join(FIRST)).unwrap();
    let checkpoint = Checkpoint::open(&folder.0, None).unwrap();
    checkpoint.bridges(&Overrides::default()).unwrap();
    let name = folder.0.file_name().unwrap().to_string_lossy();
    assert_eq!(checkpoint.files().notes(), [format!("{name}: 2 of 3 shards are there, and no index of them")]);
}

/// A part of the bridge in a missing shard is an error, with or without a configuration.
#[test]
fn a_part_in_a_shard_that_is_not_there() {
    let samples = [
        ("idefics", idefics_checkpoint(), "model.gated_cross_attn_layers.1.", Overrides::default()),
        (
            "open-flamingo",
            all([
                below("perceiver.", &open_flamingo_resampler()),
                below("lang_encoder.gated_cross_attn_layers.0.", &open_flamingo_block()),
                below("lang_encoder.gated_cross_attn_layers.1.", &open_flamingo_block()),
            ]),
            "lang_encoder.gated_cross_attn_layers.1.",
            Overrides::default(),
        ),
        ("blip-2", blip2(), "language_projection.", Overrides { heads: Some(2), ..Overrides::default() }),
        // What is not there also tells the family.
        ("instructblip", instructblip(), "qformer.embeddings.", Overrides { heads: Some(2), ..Overrides::default() }),
    ];
    for (family, tensors, part, overrides) in samples {
        let folder = Folder::new(&format!("absent-{family}"));
        let (gone, there): (Tensors, Tensors) = tensors.into_iter().partition(|(name, _)| name.starts_with(part));
        assert!(!gone.is_empty(), "{family}");
        write(&folder.join(FIRST), &there);
        let listed = there.keys().map(|n| (n.as_str(), FIRST)).chain(gone.keys().map(|n| (n.as_str(), SECOND)));
        index(&folder, &listed.collect::<Vec<_>>());
        let checkpoint = Checkpoint::open(&folder.0, None).unwrap();
        assert_eq!(checkpoint.family().name(), family);
        let Err(Error::Weights { problems, .. }) = checkpoint.bridges(&overrides) else { panic!("{family} was read") };
        let ends = format!("it is in {SECOND}, which is not there");
        for problem in &problems {
            assert!(
                problem.starts_with(part) && problem.contains(": missing") && problem.ends_with(&ends),
                "{problem}"
            );
        }
        assert!(!problems.is_empty(), "{family}");
        // Without an index, that there is more is all that is known.
        std::fs::remove_file(folder.join(INDEX)).unwrap();
        let name = folder.0.file_name().unwrap().to_string_lossy();
        let notes = [format!("{name}: 1 of 2 shards are there, and no index of them")];
        assert_eq!(Files::open(&folder.0).unwrap().notes(), notes);
        // An error about what is missing says so.
        if family == "instructblip" {
            let checkpoint = Checkpoint::open(&folder.0, Some(xattn::checkpoint::Family::InstructBlip)).unwrap();
            let Err(Error::Weights { problems, .. }) = checkpoint.bridges(&overrides) else {
                panic!("{family} was read")
            };
            assert_eq!((problems.len() > 1, problems.first()), (true, notes.last()));
            // So does one about what tells no family.
            let few = there.iter().filter(|(name, _)| name.contains("layer.1.")).map(|(n, t)| (n.clone(), t.clone()));
            write(&folder.join(FIRST), &few.collect());
            let error = Checkpoint::open(&folder.0, None).err().unwrap().to_string();
            let wanted = format!(": no family's tensors found ({}); name one of open-flamingo, ", notes[0]);
            assert!(error.contains(&wanted), "{error}");
        }
        let notes = [format!("{FIRST}: one of 2 shards; what is in the others is not known")];
        assert_eq!(Files::open(&folder.join(FIRST)).unwrap().notes(), notes);
    }
}

#[test]
fn no_shard_at_all() {
    let folder = Folder::new("no-shard");
    index(&folder, &[("a", FIRST), ("b", SECOND)]);
    let fault = |what: &str| format!("{}: {what}: {FIRST}, {SECOND}", folder.join(INDEX).display());
    let said = || Files::open(&folder.0).err().unwrap().to_string();
    assert_eq!(said(), fault("not one of its 2 shards is there"));
    std::fs::write(folder.join(FIRST), "version https://git-lfs.github.com/spec/v1\nsize 5\n").unwrap();
    let pointer = "not a safetensors file: it is a Git LFS pointer, not the file of 5 bytes that it stands for; fetch it: git lfs pull";
    let fault = |what: &str| format!("{}: not one of its 2 shards can be read: {what}", folder.join(INDEX).display());
    assert_eq!(said(), fault(&format!("{FIRST}: {pointer}, {SECOND}: not there")));
    std::fs::write(folder.join(SECOND), "").unwrap();
    assert_eq!(said(), fault(&format!("{FIRST}: {pointer}, {SECOND}: not a safetensors file: it is empty")));
}

/// A tensor of the bridge in a shard that cannot be read: what that is is the reason why the tensor
/// is missing. Where nothing tells what should be in a shard, it is an error in any case.
#[test]
fn a_part_in_a_shard_that_cannot_be_read() {
    let folder = Folder::new("unreadable-part");
    let mut bridge = below("model.connector.", &idefics2());
    let latents = "model.connector.perceiver_resampler.latents";
    assert!(bridge.remove(latents).is_some());
    write(&folder.join(FIRST), &bridge);
    std::fs::write(folder.join("config.json"), IDEFICS2_CONFIG).unwrap();
    let mut entries: Vec<(&str, &str)> = bridge.keys().map(|n| (n.as_str(), FIRST)).collect();
    entries.push((latents, SECOND));
    index(&folder, &entries);
    for (bytes, what) in not_a_shard() {
        replace(&folder.join(SECOND), bytes);
        let checkpoint = Checkpoint::open(&folder.0, None).unwrap();
        let said = checkpoint.bridges(&Overrides::default()).unwrap_err().to_string();
        let reason = format!("it is in {SECOND}, which cannot be read: {what}");
        assert_eq!(said, format!("{} (idefics2): {latents}: missing, expected [3, 16]; {reason}", folder.0.display()));
    }
    std::fs::remove_file(folder.join(INDEX)).unwrap();
    for (bytes, what) in not_a_shard() {
        replace(&folder.join(SECOND), bytes);
        let said = Files::open(&folder.0).err().unwrap().to_string();
        assert_eq!(said, format!("{}: {what}", folder.join(SECOND).display()));
    }
}

#[test]
fn an_index_that_says_otherwise() {
    let folder = Folder::new("otherwise");
    shard(&folder, FIRST, &[("a", "a"), ("b", "b"), ("new", "n")]);
    shard(&folder, SECOND, &[("c", "c")]);
    let lost: Vec<String> = (0..5).map(|i| format!("lost.{i}")).collect();
    let mut entries = vec![("a", FIRST), ("b", SECOND), ("c", SECOND)];
    entries.extend(lost.iter().map(|n| (n.as_str(), SECOND)));
    index(&folder, &entries);
    let (files, notes) = notes(&folder);
    assert_eq!(
        notes,
        [
            "model.safetensors.index.json: 5 tensors that it lists are in no shard: lost.0, lost.1, lost.2 and 2 more",
            "model.safetensors.index.json: 1 tensors are in another shard than it says: b (in model-00001-of-00002.safetensors)",
            "model.safetensors.index.json: 1 tensors of the shards are not in it: new",
        ]
    );
    assert_eq!(files.tensors().keys().map(|n| &**n).collect::<Vec<_>>(), ["a", "b", "c", "new"]);
    assert_eq!(files.tensor("b").unwrap(), tensor("b", &[3]));
    let why = "the index names model-00002-of-00002.safetensors, which does not hold it";
    assert_eq!(files.why_absent("lost.4").as_deref(), Some(why));
    // An index is one whatever it is called.
    for name in ["index", "index.txt"] {
        std::fs::copy(folder.join(INDEX), folder.join(name)).unwrap();
        assert_eq!(Files::open(&folder.join(name)).unwrap().tensors().len(), 4);
    }
}

/// A tensor in two shards: equal, decided by the index, or undecided.
#[test]
fn a_tensor_in_two_shards() {
    let folder = Folder::new("two-shards");
    shard(&folder, FIRST, &[("same", "s"), ("chosen", "first"), ("either", "first")]);
    shard(&folder, SECOND, &[("same", "s"), ("chosen", "second"), ("either", "second"), ("z", "z")]);
    index(&folder, &[("same", FIRST), ("chosen", SECOND), ("z", SECOND)]);
    let (files, notes) = notes(&folder);
    let twice = "tensors are in two shards with different values";
    let chosen = format!("1 {twice}; the index chooses: chosen (of {SECOND})");
    assert_eq!(notes, [chosen, format!("1 {twice} and are not read: either")]);
    assert_eq!(files.tensor("chosen").unwrap(), tensor("second", &[3]));
    assert_eq!(files.tensor("same").unwrap(), tensor("s", &[3]));
    let why = format!("{FIRST} and {SECOND} hold it with different values");
    assert_eq!(files.why_absent("either"), Some(why.clone()));
    assert!(files.info("either").is_none());
    index(&folder, &[("same", FIRST), ("chosen", FIRST), ("z", SECOND), ("either", SECOND)]);
    let files = Files::open(&folder.0).unwrap();
    assert_eq!(files.tensor("chosen").unwrap(), tensor("first", &[3]));
    let chosen = format!("2 {twice}; the index chooses: chosen (of {FIRST}), either (of {SECOND})");
    assert_eq!(files.notes(), [chosen]);
    // Without an index nothing decides.
    std::fs::remove_file(folder.join(INDEX)).unwrap();
    let files = Files::open(&folder.0).unwrap();
    assert_eq!(files.why_absent("chosen"), Some(why));
    assert!(files.info("same").is_some() && files.info("chosen").is_none());
}

fn opened(name: &str, tensors: &[(&str, &str)]) -> (Folder, Files) {
    let folder = Folder::new(name);
    shard(&folder, "model.safetensors", tensors);
    let files = Files::open(&folder.0).unwrap();
    (folder, files)
}

fn held(files: &Files) -> Vec<(&str, HostTensor<'_>)> {
    files.tensors().keys().map(|name| (&**name, files.tensor(name).unwrap())).collect()
}

#[test]
fn wrappers_are_taken_out_of_names() {
    let (_folder, files) = opened(
        "wrappers",
        &[
            ("module.a._orig_mod.w", "aw"),
            ("_fsdp_wrapped_module.b.w", "bw"),
            ("c.base_model.model.w", "cw"),
            ("d.w", "dw"),
        ],
    );
    let of = |name: &'static str, values: &str| (name, tensor(values, &[3]));
    assert_eq!(held(&files), [of("a.w", "aw"), of("b.w", "bw"), of("c.w", "cw"), of("d.w", "dw")]);
    // The copy that was trained counts.
    let (_folder, files) = opened(
        "trained",
        &[("x.original_module.w", "old"), ("x.modules_to_save.default.w", "new"), ("y.original_module.w", "only")],
    );
    assert_eq!(held(&files), [of("x.w", "new"), of("y.w", "only")]);
    assert_eq!(files.notes(), ["tensors below original_module: 1 are not read, their trained copies are"]);
    // The same twice is once; a wrapper of which one tensor differs keeps all of its names.
    let (_folder, files) = opened("twice", &[("module.x.a", "a"), ("module.x.b", "b"), ("x.a", "a"), ("x.b", "b")]);
    assert_eq!(held(&files), [of("x.a", "a"), of("x.b", "b")]);
    let (_folder, files) = opened(
        "differ",
        &[
            ("module.x.a", "a"),
            ("module.x.b", "old"),
            ("module.z", "z"),
            ("x.a", "a"),
            ("x.b", "b"),
            ("_orig_mod.k", "k"),
        ],
    );
    assert_eq!(
        held(&files),
        [
            of("k", "k"),
            of("module.x.a", "a"),
            of("module.x.b", "old"),
            of("module.z", "z"),
            of("x.a", "a"),
            of("x.b", "b")
        ]
    );
    let (_folder, files) = opened("copies", &[("x.modules_to_save.one.w", "1"), ("x.modules_to_save.two.w", "2")]);
    assert_eq!(held(&files), [of("x.modules_to_save.one.w", "1"), of("x.modules_to_save.two.w", "2")]);
}

/// A resampler saved alone out of a wrapper: `resampler_alone_with_wrapper_prefix`.
#[test]
fn a_wrapped_module_saved_alone() {
    let resampler = open_flamingo_resampler();
    for wrapper in ["_orig_mod.", "module.", "_fsdp_wrapped_module._checkpoint_wrapped_module.", "base_model.model."] {
        let folder = Folder::new(&format!("alone-{}", wrapper.len()));
        write(&folder.join("model.safetensors"), &below(wrapper, &resampler));
        let checkpoint = Checkpoint::open(&folder.0, None).unwrap();
        let bridges = checkpoint.bridges(&Overrides { heads: Some(8), ..Overrides::default() }).unwrap();
        assert_eq!(bridges.names.len(), resampler.len(), "{wrapper}");
    }
}

/// safetensors' save_model leaves out tensors that share memory, and says so.
#[test]
fn tied_tensors() {
    let folder = Folder::new("tied");
    let write = |metadata: &str| {
        let header = format!(
            r#"{{"__metadata__":{metadata},"module.kept":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}},"other":{{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}}}"#
        );
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[1, 2, 3, 4, 5, 6, 7, 8]].concat();
        std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
        Files::open(&folder.0).unwrap()
    };
    let files = write(r#"{"format":"pt","module.gone":"module.kept","other":"module.kept","lost":"nowhere"}"#);
    let names: Vec<&str> = files.tensors().keys().map(|n| &**n).collect();
    assert_eq!(names, ["gone", "kept", "other"]);
    assert_eq!((files.bytes("gone").unwrap(), files.bytes("other").unwrap()), (vec![1, 2, 3, 4], vec![5, 6, 7, 8]));
    // An adapter changes both, as it changes the one weight that they are.
    let folder_of = |path: &Path| path.parent().unwrap().to_path_buf();
    let mut adapter = Tensors::new();
    adapter.insert("base_model.model.gone".into(), tensor("x", &[1]));
    crate::small::write(&folder.join("adapter_model.safetensors"), &adapter);
    std::fs::write(folder.join("adapter_config.json"), r#"{"peft_type":"LORA"}"#).unwrap();
    let files = Files::open(&folder_of(&folder.join("model.safetensors"))).unwrap();
    assert_eq!(files.tensor("kept").unwrap(), tensor("x", &[1]));
    assert_eq!(files.tensor("gone").unwrap(), tensor("x", &[1]));
    assert_eq!(files.bytes("other").unwrap(), [5, 6, 7, 8]);
}
