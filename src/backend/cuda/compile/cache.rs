//! Compiled kernels in files: the folder that ships with a program, and the disk cache.
//!
//! One format for both: a line of text, `xattn-cuda-image 1 ARCH KIND SOURCE CONTENT` with the
//! SHA-256 of the kernel's text and of what follows, then the compiled kernel. It is executed, so
//! folders and files are trusted by the rule of [`crate::trust`] alone: the hashes tell what is
//! whole, not who wrote it. The cache's folder is private (mode 0700). A file appears under its
//! name only when it is whole, so that processes may write the same entry at once. What is damaged
//! or not trusted is compiled again.

use std::fmt;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::nvrtc::Kind;
use super::sha256::{self, Hash};
use crate::{Error, Result, trust};

/// Where compiled kernels are kept between processes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CudaCache {
    /// `xattn/cuda` in the user's cache folder.
    #[default]
    User,
    /// Nowhere.
    Off,
    /// In this folder, which is made where it is missing. Under the rule of
    /// [`CudaOptions::images`](crate::CudaOptions::images); one that breaks it is not used, and
    /// [`DeviceInfo::details`](crate::DeviceInfo::details) says why.
    Folder(PathBuf),
}

const MAGIC: &str = "xattn-cuda-image 1";

/// A larger file is not one of ours.
const MOST_BYTES: u64 = 64 << 20;

/// A compiled kernel.
pub(in crate::backend::cuda) struct Image {
    pub kind: Kind,
    pub bytes: Vec<u8>,
}

/// What a compiled kernel must be made for and from.
pub(in crate::backend::cuda) struct Label {
    pub arch: String,
    pub source: Hash,
}

impl Label {
    /// The name of an entry of the cache: everything that the compiled kernel depends on.
    pub fn key(&self, nvrtc: (i32, i32), driver: i32, line_info: bool) -> Hash {
        let Label { arch, source } = self;
        let text =
            format!("{MAGIC} {arch} {source} nvrtc {}.{} driver {driver} line-info {line_info}", nvrtc.0, nvrtc.1);
        sha256::hash(text.as_bytes())
    }
}

enum Refusal {
    Missing,
    Fault(String),
}

impl Image {
    /// A compiled kernel that ships with a program; None if there is no such file. Refuses a file
    /// that is not trusted, is damaged, or was made from another text.
    pub fn read_shipped(path: &Path, label: &Label) -> Result<Option<Image>> {
        match Image::read(path, label) {
            Ok(image) => Ok(Some(image)),
            Err(Refusal::Missing) => Ok(None),
            Err(Refusal::Fault(fault)) => Err(Error::file(path, fault)),
        }
    }

    fn read(path: &Path, label: &Label) -> Result<Image, Refusal> {
        let file = trust::read(path, MOST_BYTES).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Refusal::Missing,
            _ => Refusal::Fault(trust::reason(path, &error)),
        })?;
        Image::parse(&file, label).map_err(Refusal::Fault)
    }

    pub fn parse(file: &[u8], label: &Label) -> Result<Image, String> {
        let (head, bytes) = match file.iter().position(|&byte| byte == b'\n') {
            Some(end) => (&file[..end], &file[end + 1..]),
            None => return Err("no image of a kernel: it has no first line".into()),
        };
        let head = std::str::from_utf8(head).unwrap_or_default();
        let fields: Vec<&str> = head.strip_prefix(MAGIC).unwrap_or_default().split_whitespace().collect();
        let [arch, kind, source, content] = fields[..] else {
            return Err(format!("no image of a kernel: it does not begin with {MAGIC:?} and four words"));
        };
        if arch != label.arch {
            return Err(format!("made for {arch}, not for {}", label.arch));
        }
        if source != label.source.to_string() {
            return Err(format!("made from another text of the kernel: {source}, this build's is {}", label.source));
        }
        let kind = match kind {
            "cubin" => Kind::Cubin,
            "ptx" => Kind::Ptx,
            _ => return Err(format!("an image of unknown kind {kind:?}")),
        };
        let found = sha256::hash(bytes).to_string();
        if content != found {
            return Err(format!("damaged: its content has the hash {found}, not {content}"));
        }
        Ok(Image { kind, bytes: bytes.to_vec() })
    }

    fn file(&self, label: &Label) -> Vec<u8> {
        let Label { arch, source } = label;
        let content = sha256::hash(&self.bytes);
        let mut file = format!("{MAGIC} {arch} {} {source} {content}\n", self.kind.name()).into_bytes();
        file.extend_from_slice(&self.bytes);
        file
    }

    /// Writes a file that others see whole or not at all.
    pub fn write(&self, path: &Path, label: &Label) -> std::io::Result<()> {
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let write = WRITES.fetch_add(1, Ordering::Relaxed);
        let part = path.with_extension(format!("{}-{write}.part", std::process::id()));
        let mut options = fs::File::options();
        options.write(true).create_new(true);
        // Whatever the umask: nobody else may write to it.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o644);
        let written = options
            .open(&part)
            .and_then(|mut file| file.write_all(&self.file(label)))
            .and_then(|()| fs::rename(&part, path));
        if written.is_err() {
            // A full disk, or a missing folder: leave nothing behind, if that can be had.
            let _ = fs::remove_file(&part);
        }
        written
    }
}

/// The disk cache. Nothing here fails: without it, kernels are compiled again.
pub(in crate::backend::cuda) enum Cache {
    At(PathBuf),
    Off(String),
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cache::At(folder) => write!(f, "cache {}", folder.display()),
            Cache::Off(reason) => write!(f, "no cache ({reason})"),
        }
    }
}

impl Cache {
    pub fn new(options: &CudaCache) -> Self {
        let folder = match options {
            CudaCache::Off => return Cache::Off("switched off".into()),
            CudaCache::Folder(folder) => folder.clone(),
            CudaCache::User => match user_folder() {
                Some(folder) => folder.join("xattn").join("cuda"),
                None if trust::is_privileged() => return Cache::Off(trust::NOT_ASKED.into()),
                None => return Cache::Off("the user has no cache folder".into()),
            },
        };
        match trust::make_folder(&folder) {
            Ok(folder) => Cache::At(folder),
            Err(error) => Cache::Off(format!("{}: {}", folder.display(), trust::reason(&folder, &error))),
        }
    }

    /// An entry that is whole and ours.
    pub fn read(&self, key: &Hash, label: &Label) -> Option<Image> {
        match self {
            Cache::At(folder) => Image::read(&folder.join(format!("{key}.image")), label).ok(),
            Cache::Off(_) => None,
        }
    }

    /// Keeps an entry, if that can be done.
    pub fn write(&self, key: &Hash, label: &Label, image: &Image) {
        if let Cache::At(folder) = self {
            // A cache that cannot be written to costs time, nothing else.
            let _ = image.write(&folder.join(format!("{key}.image")), label);
        }
    }
}

/// The system's place for caches.
fn user_folder() -> Option<PathBuf> {
    let variable = |name| trust::variable(name).map(PathBuf::from);
    if cfg!(windows) {
        return variable("LOCALAPPDATA");
    }
    let absolute = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    absolute.or_else(|| {
        Some(variable("HOME")?.join(if cfg!(target_vendor = "apple") { "Library/Caches" } else { ".cache" }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label() -> Label {
        Label { arch: "sm_90a".into(), source: sha256::hash(b"text") }
    }

    /// A folder of this test's own, gone when dropped.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("xattn-cache-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn fault(file: &[u8]) -> String {
        Image::parse(file, &label()).err().expect("refused")
    }

    #[test]
    fn an_image_is_read_back_and_everything_else_is_refused() {
        let image = Image { kind: Kind::Cubin, bytes: b"machine\ncode\0".to_vec() };
        let file = image.file(&label());
        let back = Image::parse(&file, &label()).unwrap();
        assert_eq!((back.kind, &back.bytes), (Kind::Cubin, &image.bytes));

        let other = Label { source: sha256::hash(b"other"), ..label() };
        let said = Image::parse(&file, &other).err().unwrap();
        assert!(said.starts_with("made from another text of the kernel: 982d9e3e"), "{said}");
        let other = Label { arch: "sm_80".into(), ..label() };
        assert_eq!(Image::parse(&file, &other).err().unwrap(), "made for sm_90a, not for sm_80");

        // Every byte counts, those of the first line too.
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert!(Image::parse(&damaged, &label()).is_err(), "byte {at}");
        }
        assert!(fault(&file[..file.len() - 1]).starts_with("damaged: its content has the hash "));
        assert_eq!(fault(b""), "no image of a kernel: it has no first line");
        let words = "no image of a kernel: it does not begin with \"xattn-cuda-image 1\" and four words";
        assert_eq!(fault(b"ELF\n"), words);
        assert_eq!(fault(&[0xff, 0xfe, b'\n']), words);
    }

    #[test]
    fn a_shipped_image_must_fit_a_cached_one_is_passed_over() {
        let scratch = Scratch::new("fit");
        let cache = Cache::new(&CudaCache::Folder(scratch.0.clone()));
        let (key, image) = (label().key((13, 0), 13000, false), Image { kind: Kind::Ptx, bytes: vec![7; 100] });
        assert!(cache.read(&key, &label()).is_none());
        cache.write(&key, &label(), &image);
        let path = scratch.0.join(format!("{key}.image"));
        assert_eq!(cache.read(&key, &label()).unwrap().bytes, image.bytes);
        assert!(Image::read_shipped(&path, &label()).unwrap().is_some());
        assert!(Image::read_shipped(&scratch.0.join("none"), &label()).unwrap().is_none());

        let mut file = fs::read(&path).unwrap();
        *file.last_mut().unwrap() ^= 1;
        fs::write(&path, &file).unwrap();
        assert!(cache.read(&key, &label()).is_none(), "damaged");
        let error = Image::read_shipped(&path, &label()).err().unwrap().to_string();
        assert!(error.contains(": damaged: its content has the hash "), "{error}");
        cache.write(&key, &label(), &image);
        assert_eq!(cache.read(&key, &label()).unwrap().bytes, image.bytes, "made anew");
        let names: Vec<_> = fs::read_dir(&scratch.0).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 1, "nothing half written stays: {names:?}");
    }

    #[test]
    fn the_key_depends_on_everything() {
        let keys = [
            label().key((13, 0), 13000, false),
            label().key((13, 1), 13000, false),
            label().key((13, 0), 12080, false),
            label().key((13, 0), 13000, true),
            Label { arch: "sm_80".into(), ..label() }.key((13, 0), 13000, false),
            Label { source: sha256::hash(b"other"), ..label() }.key((13, 0), 13000, false),
        ];
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(key), "{i}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_folder_is_private_or_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new("private");
        let options = CudaCache::Folder(scratch.0.join("a").join("b"));
        assert!(matches!(Cache::new(&options), Cache::At(_)));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&scratch.0), mode(&scratch.0.join("a").join("b"))), (0o700, 0o700));

        fs::set_permissions(scratch.0.join("a").join("b"), fs::Permissions::from_mode(0o777)).unwrap();
        let cache = Cache::new(&options);
        let said = cache.to_string();
        assert!(said.starts_with(&format!("no cache ({}/a/b: belongs to user ", scratch.0.display())), "{said}");
        assert!(
            said.contains(" and has mode 777; expected user ")
                && said.ends_with(" or root, and nobody else who may write)"),
            "{said}"
        );
        let image = Image { kind: Kind::Ptx, bytes: vec![1] };
        let key = label().key((13, 0), 13000, false);
        cache.write(&key, &label(), &image);
        assert!(cache.read(&key, &label()).is_none());
        assert!(fs::read_dir(scratch.0.join("a").join("b")).unwrap().next().is_none(), "nothing is written");

        // An entry that others may write to is compiled again; a shipped one is an error.
        fs::set_permissions(scratch.0.join("a").join("b"), fs::Permissions::from_mode(0o700)).unwrap();
        let cache = Cache::new(&options);
        let entry = scratch.0.join("a").join("b").join(format!("{key}.image"));
        cache.write(&key, &label(), &image);
        assert_eq!(mode(&entry) & 0o022, 0);
        fs::set_permissions(&entry, fs::Permissions::from_mode(0o664)).unwrap();
        assert!(cache.read(&key, &label()).is_none());
        let said = Image::read_shipped(&entry, &label()).err().unwrap().to_string();
        assert!(
            said.starts_with(&format!("{}: belongs to user ", entry.display())) && said.contains(" and has mode 664; "),
            "{said}"
        );
        cache.write(&key, &label(), &image);
        assert_eq!(cache.read(&key, &label()).unwrap().bytes, image.bytes);
        assert_eq!(Cache::new(&CudaCache::Off).to_string(), "no cache (switched off)");
    }
}
