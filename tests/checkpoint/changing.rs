//! Files that others write while a checkpoint is in use: what was read stays, what is read later is
//! an error that says what changed.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use xattn::bridge::{PerceiverResampler, Precision};
use xattn::checkpoint::{Checkpoint, Files, Overrides};
use xattn::{DType, Device, Error};

use crate::small::*;

/// A file with the tensor `a` of 4096 zeros, and its bytes.
fn zeros(folder: &Folder) -> (PathBuf, Vec<u8>) {
    let path = folder.join("a.safetensors");
    let header = br#"{"a":{"dtype":"F32","shape":[4096],"data_offsets":[0,16384]}}"#;
    let mut bytes = [&(header.len() as u64).to_le_bytes()[..], header].concat();
    bytes.resize(bytes.len() + 16384, 0);
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

fn time(path: &Path) -> String {
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    format!("{}.{:09} s", since.as_secs(), since.subsec_nanos())
}

/// Makes sure that the next write has another time, on file systems with coarse clocks too.
fn let_time_pass() {
    std::thread::sleep(std::time::Duration::from_millis(20));
}

/// Reads `a`, lets `change` happen, and compares what reading says then.
#[track_caller]
fn refused(name: &str, change: impl FnOnce(&Path, &[u8]), message: impl FnOnce(&Path) -> String) {
    let folder = Folder::new(name);
    let (path, bytes) = zeros(&folder);
    let files = Files::open(&path).unwrap();
    let tensor = files.tensor("a").unwrap();
    let read = tensor.bytes().unwrap();
    assert_eq!(read.len(), 16384);
    let_time_pass();
    change(&path, &bytes);
    assert!(read.iter().all(|&b| b == 0), "memory that was read has changed");
    let expected = Error::file(&path, message(&path));
    assert_eq!(tensor.bytes().unwrap_err(), expected);
    assert_eq!(tensor.to_f32().unwrap_err(), expected);
    assert_eq!(tensor.to_f64().unwrap_err(), expected);
    assert_eq!(tensor.to_vec::<f32>().unwrap_err(), expected);
    assert_eq!(tensor.to_dtype(DType::F16).unwrap_err(), expected);
    assert_eq!(tensor.to_dtype(DType::F32).unwrap_err(), expected);
    assert_eq!(tensor.clone().into_owned().unwrap_err(), expected);
    assert_eq!(files.bytes("a").unwrap_err(), expected);
    assert!(tensor != tensor.clone(), "a tensor that cannot be read equals none");
}

#[test]
fn rewritten_in_place() {
    let opened = std::cell::Cell::new(String::new());
    refused(
        "rewritten",
        |path, bytes| {
            use std::io::{Seek, SeekFrom, Write};
            opened.set(time(path));
            let mut file = OpenOptions::new().write(true).open(path).unwrap();
            file.seek(SeekFrom::Start(bytes.len() as u64 - 16384)).unwrap();
            file.write_all(&[0xff]).unwrap();
        },
        |path| {
            format!("changed since it was opened: expected modification time {}, found {}", opened.take(), time(path))
        },
    );
}

#[test]
fn shortened_and_prolonged() {
    let set_len = |bytes: u64| {
        move |path: &Path, _: &[u8]| OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap()
    };
    for bytes in [0, 16384, 16452, 16454, 1 << 30] {
        refused(&format!("length-{bytes}"), set_len(bytes), |_| {
            format!("changed since it was opened: expected 16453 bytes, found {bytes}")
        });
    }
}

#[cfg(unix)]
#[test]
fn replaced_and_removed() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let named = |path: &Path| {
        let about = std::fs::metadata(path).unwrap();
        format!("inode {} of device {}", about.ino(), about.dev())
    };
    let opened = std::cell::Cell::new(String::new());
    // As a download does that is ready: the same bytes, even.
    let moved = |path: &Path, bytes: &[u8]| {
        opened.set(named(path));
        std::fs::write(path.with_extension("new"), bytes).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    };
    let message =
        |path: &Path| format!("another file since it was opened: expected {}, found {}", opened.take(), named(path));
    refused("moved", moved, message);
    let linked = |path: &Path, bytes: &[u8]| {
        moved(path, bytes);
        std::fs::rename(path, path.with_extension("elsewhere")).unwrap();
        symlink(path.with_extension("elsewhere"), path).unwrap();
    };
    refused("linked", linked, message);
    let fifo = |path: &Path, _: &[u8]| {
        opened.set(named(path));
        std::fs::remove_file(path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    refused("piped", fifo, message);
    refused(
        "removed",
        |path, _| std::fs::remove_file(path).unwrap(),
        |_| "No such file or directory (os error 2)".into(),
    );
}

/// A link of the hub's cache that leads to another blob after an update.
#[cfg(unix)]
#[test]
fn a_link_that_leads_elsewhere() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new("relinked");
    let (path, bytes) = zeros(&folder);
    std::fs::rename(&path, folder.join("blob-1")).unwrap();
    std::fs::write(folder.join("blob-2"), &bytes).unwrap();
    symlink("blob-1", &path).unwrap();
    let files = Files::open(&path).unwrap();
    assert_eq!(files.bytes("a").unwrap().len(), 16384);
    std::fs::remove_file(&path).unwrap();
    symlink("blob-2", &path).unwrap();
    let error = files.bytes("a").unwrap_err().to_string();
    assert!(error.contains("a.safetensors: another file since it was opened: expected inode"), "{error}");
}

#[test]
fn a_bridge_whose_file_changed_is_not_packed() {
    let folder = Folder::new("packed");
    let path = folder.join("model.safetensors");
    write(&path, &below("perceiver.", &open_flamingo_resampler()));
    let checkpoint = Checkpoint::open(&folder.0, None).unwrap();
    let bridges = checkpoint.bridges(&Overrides::default()).unwrap();
    let (config, weights) = bridges.resampler.as_ref().unwrap();
    let pack = || PerceiverResampler::new(&Device::cpu(), config, weights, Precision::uniform(DType::F32)).map(drop);
    pack().unwrap();
    let bytes = std::fs::metadata(&path).unwrap().len();
    OpenOptions::new().append(true).open(&path).unwrap().set_len(bytes + 1).unwrap();
    let fault = format!("changed since it was opened: expected {bytes} bytes, found {}", bytes + 1);
    assert_eq!(pack().unwrap_err(), Error::file(&path, fault));
}

/// The same module under two names is compared by content: a change is not a difference.
#[test]
fn aliases_whose_file_changed() {
    let folder = Folder::new("aliases-changed");
    let path = folder.join("model.safetensors");
    let block = open_flamingo_block();
    let both = all([
        below("perceiver.", &open_flamingo_resampler()),
        below("lang_encoder.model.layers.2.gated_cross_attn_layer.", &block),
        below("lang_encoder.gated_cross_attn_layers.2.", &block),
    ]);
    write(&path, &both);
    let checkpoint = Checkpoint::open(&folder.0, None).unwrap();
    let again = Checkpoint::open(&folder.0, None).unwrap();
    checkpoint.bridges(&Overrides::default()).unwrap();
    let bytes = std::fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes - 1).unwrap();
    let error = again.bridges(&Overrides::default()).unwrap_err();
    let fault = format!("changed since it was opened: expected {bytes} bytes, found {}", bytes - 1);
    assert_eq!(error, Error::file(&path, fault));
    // What was compared once is not read again; nothing else is read here.
    checkpoint.bridges(&Overrides::default()).unwrap();
}

/// A writer that never rests: every outcome is bytes or an error about the file.
#[test]
fn under_a_writer() {
    let folder = Folder::new("writer");
    let (path, bytes) = zeros(&folder);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut read, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut turn = 0u32;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                turn += 1;
                match turn % 4 {
                    0 => std::fs::write(&path, &bytes).unwrap(),
                    1 => std::fs::write(&path, &bytes[..turn as usize % bytes.len()]).unwrap(),
                    2 => std::fs::write(folder.join("other"), &bytes).unwrap(),
                    _ => std::fs::rename(folder.join("other"), &path).unwrap(),
                }
            }
        });
        for _ in 0..2000 {
            match Files::open(&path).and_then(|files| files.bytes("a")) {
                Ok(bytes) => {
                    assert_eq!(bytes.len(), 16384);
                    read += 1;
                }
                Err(Error::File { .. }) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(refused > 0, "{read} read, {refused} refused");
}

#[cfg(unix)]
#[test]
fn what_is_no_regular_file() {
    let folder = Folder::new("special");
    let refused = |path: &Path| {
        for error in [Files::open_one(path).err().unwrap(), Files::open(path).err().unwrap()] {
            assert_eq!(error, Error::file(path, "not a regular file"));
        }
    };
    let path = folder.join("a.safetensors");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    refused(&path);
    std::fs::remove_file(&path).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    refused(&path);
    drop(socket);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(Files::open_one(&path).err().unwrap(), Error::file(&path, "not a regular file"));
    // A whole checkpoint in front of a special file of the other kinds: see
    // `mutations::links_and_special_files`.
}

/// Opening reads headers, a bridge each tensor once; the tower beside it is a hole of 8 GiB.
#[cfg(target_os = "linux")]
#[test]
fn a_tower_is_never_read() {
    /// Bytes and calls of this thread's reads so far.
    fn reads() -> Option<[u64; 2]> {
        let text = std::fs::read_to_string("/proc/thread-self/io").ok()?;
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name))?.trim().parse().ok();
        Some([field("rchar:")?, field("syscr:")?])
    }
    let folder = Folder::new("tower");
    let path = folder.join("model.safetensors");
    let resampler = below("perceiver.", &open_flamingo_resampler());
    let tower: u64 = 8 << 30;
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, tensor) in &resampler {
        let start = data.len();
        data.extend_from_slice(&tensor.bytes().unwrap());
        let entry = serde_json::json!({"dtype": "F32", "shape": tensor.shape(), "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let offsets = [data.len() as u64, data.len() as u64 + tower];
    let entry = serde_json::json!({"dtype": "F32", "shape": [tower / 4], "data_offsets": offsets});
    header.insert("vision_encoder.w".into(), entry);
    let header = serde_json::to_string(&header).unwrap();
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()).unwrap();
    let bytes = (8 + header.len()) as u64 + offsets[1];
    OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes).unwrap();

    let Some(_) = reads() else {
        println!("skipped: no counts of reads on this system");
        return;
    };
    let own = {
        let (a, b) = (reads().unwrap(), reads().unwrap());
        [b[0] - a[0], b[1] - a[1]]
    };
    let counted = |what: &dyn Fn()| {
        let before = reads().unwrap();
        what();
        let after = reads().unwrap();
        [after[0] - before[0] - own[0], after[1] - before[1] - own[1]]
    };
    // The texts of the counts differ by some digits.
    let about = |found: [u64; 2], bytes: usize, calls: usize| {
        assert!(found[0].abs_diff(bytes as u64) < 64 && found[1] == calls as u64, "{found:?}, not {bytes} in {calls}");
    };
    let checkpoint = Checkpoint::open(&path, None).unwrap();
    about(counted(&|| drop(Checkpoint::open(&path, None).unwrap())), 8 + header.len(), 2);
    about(counted(&|| drop(checkpoint.bridges(&Overrides::default()).unwrap())), 0, 0);
    let bridges = checkpoint.bridges(&Overrides::default()).unwrap();
    let (config, weights) = bridges.resampler.as_ref().unwrap();
    let packed = counted(&|| {
        drop(PerceiverResampler::new(&Device::reference(), config, weights, Precision::uniform(DType::F64)).unwrap());
    });
    about(packed, data.len(), resampler.len());
}
