//! Output files. A regular file or new name appears whole: it is written beside its place and
//! renamed. A symbolic link is followed and its target replaced. A device or named pipe is written
//! to. All else is refused, as is any file that the command reads.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use xattn::Error;

/// The longest chain of links.
const LINKS: usize = 40;

/// A path that was found fit to be written to.
pub struct Output {
    path: PathBuf,
    /// Files that must not change: kind, name, and identity if they exist.
    kept: Vec<(&'static str, PathBuf, Option<Identity>)>,
}

/// The kind of place at the end of a path.
enum Place {
    /// The name, perhaps of a regular file, that a finished file gets.
    Renamed(PathBuf, Option<Metadata>),
    /// A device, a named pipe, or a file without a name: opened and written to.
    Opened,
    /// Standard output: if it were opened again, its beginning would be overwritten.
    Stdout,
}

impl Output {
    /// Checks that a file can be written there, before anything is computed for it.
    ///
    /// # Errors
    /// [`Error::File`]: a folder, a socket, a file or folder that must not be written to.
    pub fn new(path: &Path) -> Result<Self, Error> {
        let output = Output { path: path.into(), kept: Vec::new() };
        match output.place()? {
            Place::Renamed(target, there) => {
                // A file that may not be written to may not be replaced either.
                if there.is_some() {
                    OpenOptions::new().write(true).open(&target).map_err(|e| Error::file(path, e))?;
                }
                drop(Temporary::beside(&target, None).map_err(|e| Error::file(path, e))?);
            }
            Place::Opened | Place::Stdout => {}
        }
        Ok(output)
    }

    /// Refuses a file that the command reads, under every name, now and in [`Output::write`].
    ///
    /// # Errors
    /// [`Error::File`] that names both.
    pub fn keep(&mut self, what: &'static str, file: &Path) -> Result<(), Error> {
        let about = std::fs::metadata(file).map_err(|e| Error::file(file, e))?;
        self.kept.push((what, file.into(), Some(identity(file, &about))));
        self.expect_other()
    }

    /// Refuses several files, whether they exist or not.
    ///
    /// # Errors
    /// As [`Output::keep`].
    pub fn keep_names(&mut self, names: impl IntoIterator<Item = (&'static str, PathBuf)>) -> Result<(), Error> {
        self.kept.extend(names.into_iter().map(|(what, file)| {
            let there = std::fs::metadata(&file).ok().map(|about| identity(&file, &about));
            (what, file, there)
        }));
        self.expect_other()
    }

    fn expect_other(&self) -> Result<(), Error> {
        let this = std::fs::metadata(&self.path).ok().map(|about| identity(&self.path, &about));
        let is_this = |(_, file, kept): &&(_, PathBuf, Option<Identity>)| match kept {
            Some(_) => *kept == this,
            None => is_same(file, &self.path),
        };
        match self.kept.iter().find(is_this) {
            None => Ok(()),
            Some((what, file, _)) => {
                let expected = format!("expected another file than the {what}, found {}", file.display());
                Err(Error::file(&self.path, expected))
            }
        }
    }

    /// Whether a write replaces the one before; a device or pipe gets one after the other.
    pub fn is_replaced(&self) -> bool {
        matches!(self.place(), Ok(Place::Renamed(..)))
    }

    /// Whether it is standard output, which may then hold nothing else.
    pub fn is_stdout(&self) -> bool {
        matches!(self.place(), Ok(Place::Stdout))
    }

    /// Writes the whole file. A failure leaves the old file, and no other.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        self.expect_other()?;
        let written = match self.place()? {
            Place::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Place::Opened => OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(&self.path)
                .and_then(|mut file| file.write_all(bytes)),
            Place::Renamed(target, there) => {
                Temporary::beside(&target, there.as_ref()).and_then(|file| file.become_file(bytes, &target))
            }
        };
        written.map_err(|e| Error::file(&self.path, e))
    }

    fn place(&self) -> Result<Place, Error> {
        let path = &self.path;
        let fault = |e: io::Error| Error::file(path, e);
        let expected = |found: &str| Err(Error::file(path, format!("expected the name of a file, found {found}")));
        let Some(name) = path.file_name() else { return expected("a folder") };
        if !path.as_os_str().as_encoded_bytes().ends_with(name.as_encoded_bytes()) {
            return expected("the name of a folder");
        }
        match std::fs::metadata(path) {
            Ok(there) if there.is_dir() => expected("a folder"),
            Ok(there) if is_stdout(&there) => Ok(Place::Stdout),
            Ok(there) if there.is_file() => {
                let target = path.canonicalize().map_err(fault)?;
                // Links of /proc may lead to files that have lost their name.
                match std::fs::metadata(&target) {
                    Ok(named) if identity(&target, &named) == identity(path, &there) => {
                        Ok(Place::Renamed(target, Some(there)))
                    }
                    _ => Ok(Place::Opened),
                }
            }
            Ok(there) if is_device_or_pipe(&there) => Ok(Place::Opened),
            Ok(_) => expected("a socket, or something else that is neither file, device nor named pipe"),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let target = end_of_links(path).map_err(fault)?;
                let folder = match target.parent() {
                    Some(folder) if !folder.as_os_str().is_empty() => folder,
                    _ => Path::new("."),
                };
                let about = std::fs::metadata(folder).map_err(|e| Error::file(folder, e))?;
                if !about.is_dir() {
                    return Err(Error::file(folder, "expected a folder for the output, found something else"));
                }
                Ok(Place::Renamed(target, None))
            }
            Err(e) => Err(fault(e)),
        }
    }
}

/// Whether two names mean one file, even if it does not exist yet.
fn is_same(one: &Path, other: &Path) -> bool {
    let there = |path: &Path| std::fs::metadata(path).ok().map(|about| identity(path, &about));
    let place = |path: &Path| {
        let end = end_of_links(path).ok()?;
        let folder = end.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some((there(folder)?, end.file_name()?.to_os_string()))
    };
    match (there(one), there(other)) {
        (None, None) => place(one).is_some_and(|one| Some(one) == place(other)),
        (one, other) => one == other,
    }
}

/// The end of a chain of links to a missing name.
fn end_of_links(path: &Path) -> io::Result<PathBuf> {
    let mut at = path.to_path_buf();
    for _ in 0..LINKS {
        match std::fs::symlink_metadata(&at) {
            Ok(about) if about.is_symlink() => {
                let to = std::fs::read_link(&at)?;
                at = at.parent().unwrap_or(Path::new("")).join(to);
            }
            Ok(_) => return Err(io::Error::other("something took its place meanwhile")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(at),
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other(format!("more than {LINKS} symbolic links")))
}

/// A new file beside its later place, deleted unless it is renamed.
struct Temporary {
    path: PathBuf,
    file: File,
    permissions: Option<Permissions>,
}

impl Temporary {
    /// A new file under an unused name; private until it gets the permissions of a replaced file.
    fn beside(target: &Path, replaced: Option<&Metadata>) -> io::Result<Self> {
        let name = target.file_name().ok_or_else(|| io::Error::other("not the name of a file"))?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        if replaced.is_some() {
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        }
        let mut number = 0;
        loop {
            // Names have at most 255 bytes: a long output's name is left out.
            let middle = if name.len() > 200 { "output".into() } else { name.to_string_lossy() };
            let path = target.with_file_name(format!(".{middle}.{}.{number}.tmp", std::process::id()));
            match options.open(&path) {
                Ok(file) => {
                    let temporary = Temporary { path, file, permissions: replaced.map(Metadata::permissions) };
                    #[cfg(unix)]
                    if let Some(replaced) = replaced {
                        use std::os::unix::fs::MetadataExt;
                        // Only root may change a file's owner.
                        let _ = std::os::unix::fs::fchown(&temporary.file, Some(replaced.uid()), Some(replaced.gid()));
                    }
                    return Ok(temporary);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && number < 1000 => number += 1,
                Err(e) => return Err(e),
            }
        }
    }

    fn become_file(mut self, bytes: &[u8], target: &Path) -> io::Result<()> {
        self.file.write_all(bytes)?;
        if let Some(permissions) = self.permissions.take() {
            self.file.set_permissions(permissions)?;
        }
        self.file.sync_all()?;
        std::fs::rename(&self.path, target)?;
        // It was renamed: nothing to delete.
        self.path.clear();
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode.
#[cfg(unix)]
type Identity = (u64, u64);
/// The standard library has no file numbers here: the full name, without links.
#[cfg(not(unix))]
type Identity = Option<PathBuf>;

#[cfg(unix)]
fn identity(_: &Path, about: &Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt;
    (about.dev(), about.ino())
}

#[cfg(not(unix))]
fn identity(path: &Path, _: &Metadata) -> Identity {
    path.canonicalize().ok()
}

#[cfg(unix)]
fn is_device_or_pipe(about: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let kind = about.file_type();
    kind.is_fifo() || kind.is_char_device() || kind.is_block_device()
}

#[cfg(not(unix))]
fn is_device_or_pipe(_: &Metadata) -> bool {
    false
}

/// Whether this is standard output's file or pipe. A device can be opened twice.
#[cfg(unix)]
fn is_stdout(about: &Metadata) -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt;
    let kind = about.file_type();
    let here = || File::from(io::stdout().as_fd().try_clone_to_owned().ok()?).metadata().ok();
    (about.is_file() || kind.is_fifo())
        && here().is_some_and(|here| identity(Path::new(""), &here) == identity(Path::new(""), about))
}

#[cfg(not(unix))]
fn is_stdout(_: &Metadata) -> bool {
    false
}
