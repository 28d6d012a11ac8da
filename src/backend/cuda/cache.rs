//! Images in files: the folder that ships with a program, and the disk cache.
//!
//! One format for both: a line of text, `xattn-cuda-image 1 ARCH KIND SOURCE CONTENT` with the SHA-256 of the kernel's text and of what follows,
//! then the image. The cache's folder is private (mode 0700), since what is in it is executed; a file appears under its name only when it is
//! whole, so that processes may write the same entry at once; what is damaged is made anew.

use std::fmt;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::compiler::Kind;
use super::device::CudaCache;
use super::sha256::{self, Hash};
use crate::{Error, Result};

const MAGIC: &str = "xattn-cuda-image 1";

/// No image is larger: a file that is, is not one of ours.
const MOST_BYTES: u64 = 64 << 20;

/// A compiled kernel.
pub(super) struct Image {
    pub kind: Kind,
    pub bytes: Vec<u8>,
}

/// What an image must be made for and from.
pub(super) struct Label {
    pub arch: String,
    pub source: Hash,
}

impl Label {
    /// The name of an entry of the cache: everything that the image depends on.
    pub fn key(&self, nvrtc: (i32, i32), driver: i32, line_info: bool) -> Hash {
        let Label { arch, source } = self;
        let text =
            format!("{MAGIC} {arch} {source} nvrtc {}.{} driver {driver} line-info {line_info}", nvrtc.0, nvrtc.1);
        sha256::hash(text.as_bytes())
    }
}

/// Why a file is not the image that was looked for.
enum Refusal {
    Missing,
    Fault(String),
}

impl Image {
    /// An image that ships with a program. None if there is no such file.
    ///
    /// # Errors
    /// A file that is damaged, or was made from another text: then kernels and images do not belong together.
    pub fn read_shipped(path: &Path, label: &Label) -> Result<Option<Image>> {
        match Image::read(path, label) {
            Ok(image) => Ok(Some(image)),
            Err(Refusal::Missing) => Ok(None),
            Err(Refusal::Fault(fault)) => Err(Error::file(path, fault)),
        }
    }

    fn read(path: &Path, label: &Label) -> Result<Image, Refusal> {
        let fault = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => Refusal::Missing,
            _ => Refusal::Fault(error.to_string()),
        };
        let bytes = fs::metadata(path).map_err(fault)?.len();
        if bytes > MOST_BYTES {
            return Err(Refusal::Fault(format!("{bytes} bytes: an image has at most {MOST_BYTES}")));
        }
        Image::parse(&fs::read(path).map_err(fault)?, label).map_err(Refusal::Fault)
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

    /// The file's content.
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
        let written = fs::File::create_new(&part)
            .and_then(|mut file| file.write_all(&self.file(label)))
            .and_then(|()| fs::rename(&part, path));
        if written.is_err() {
            // The disk is full, or the folder is gone: leave nothing behind, if that can be had.
            let _ = fs::remove_file(&part);
        }
        written
    }
}

/// Compiled kernels, kept between processes. Nothing here fails: without a cache, kernels are compiled again.
pub(super) enum Cache {
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
                None => return Cache::Off("the user has no cache folder".into()),
            },
        };
        match private_folder(&folder) {
            Ok(()) => Cache::At(folder),
            Err(reason) => Cache::Off(format!("{}: {reason}", folder.display())),
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

/// Where the system keeps what can be made again.
fn user_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|text| !text.is_empty()).map(PathBuf::from);
    if cfg!(windows) {
        return variable("LOCALAPPDATA");
    }
    let absolute = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    absolute.or_else(|| {
        Some(variable("HOME")?.join(if cfg!(target_vendor = "apple") { "Library/Caches" } else { ".cache" }))
    })
}

/// Makes a folder that only this user can write to, or sees to it that it is one.
fn private_folder(folder: &Path) -> Result<(), String> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|error| error.to_string())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(folder).map_err(|error| error.to_string())?.permissions().mode();
        if mode & 0o022 != 0 {
            return Err(format!("others can write to it (mode {:o})", mode & 0o777));
        }
    }
    Ok(())
}
