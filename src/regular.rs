//! Regular files that may change while they are in use.
//!
//! A file is opened once and read by position, never mapped. Before and after each read its size,
//! its modification time and its identity are compared with those at opening: a change is an error.
//! A program that writes a file and sets its time back is not noticed; even then, what was read is
//! memory of ours that no one else changes.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::{Error, Result};

/// An opened regular file. `Send + Sync`.
pub(crate) struct RegularFile {
    path: PathBuf,
    /// Valid after the process changes its folder.
    absolute: PathBuf,
    file: File,
    opened: Stamp,
}

/// Identifies a state of a file.
#[derive(Clone, Copy, PartialEq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    identity: Identity,
}

#[cfg(unix)]
type Identity = (u64, u64);
/// The standard library has no number of a file here; its creation time is the nearest.
#[cfg(not(unix))]
type Identity = Option<SystemTime>;

impl Stamp {
    fn of(about: &Metadata) -> Self {
        #[cfg(unix)]
        let identity = {
            use std::os::unix::fs::MetadataExt;
            (about.dev(), about.ino())
        };
        #[cfg(not(unix))]
        let identity = about.created().ok();
        Stamp { bytes: about.len(), modified: about.modified().ok(), identity }
    }
}

impl RegularFile {
    /// Opens a file, which may be a symbolic link to one. Pipes, devices, sockets and folders are
    /// refused without waiting.
    pub fn open(path: &Path) -> Result<Self> {
        // The name is checked first, so that no device is opened; then the open file, which
        // decides.
        expect_regular(path, std::fs::metadata(path))?;
        Self::open_unasked(path)
    }

    /// Opens whatever has the name now, without waiting, and refuses what is not a regular file.
    fn open_unasked(path: &Path) -> Result<Self> {
        let fault = |e: io::Error| Error::file(path, e);
        let mut options = OpenOptions::new();
        options.read(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, NONBLOCK);
        let file = options.open(path).map_err(fault)?;
        let about = expect_regular(path, file.metadata())?;
        let absolute = std::path::absolute(path).map_err(fault)?;
        Ok(RegularFile { path: path.to_path_buf(), absolute, file, opened: Stamp::of(&about) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> u64 {
        self.opened.bytes
    }

    /// `bytes` bytes from `start` on, by one read.
    ///
    /// # Errors
    /// [`Error::File`] when the file has changed since it was opened, ends before, or cannot be
    /// read; [`Error::OutOfMemory`].
    pub fn read(&self, start: u64, bytes: usize) -> Result<Vec<u8>> {
        self.expect_unchanged()?;
        // The allocator is not asked for more than the file holds.
        let there = self.opened.bytes.saturating_sub(start);
        if bytes as u64 > there {
            return Err(self.cut_short(start, bytes, there));
        }
        // Zeros and the system's copy touch the pages twice: measured, no slower than lazy zeros.
        let mut data = Vec::new();
        data.try_reserve_exact(bytes).map_err(|_| Error::OutOfMemory {
            backend: "host",
            purpose: "a part of a file",
            bytes,
        })?;
        data.resize(bytes, 0);
        let mut done = 0;
        // One read, unless the system cuts it (Linux: at 2 GiB).
        while done < bytes {
            match read_at(&self.file, &mut data[done..], start + done as u64) {
                Ok(0) => break,
                Ok(more) => done += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::file(&self.path, e)),
            }
        }
        self.expect_unchanged()?;
        if done < bytes {
            return Err(self.cut_short(start, bytes, done as u64));
        }
        Ok(data)
    }

    fn cut_short(&self, start: u64, expected: usize, found: u64) -> Error {
        Error::file(&self.path, format!("cut short: expected {expected} bytes behind byte {start}, found {found}"))
    }

    /// Compares the opened file, and what its name leads to now, with what was opened.
    fn expect_unchanged(&self) -> Result<()> {
        let stamp = |about: io::Result<Metadata>| about.map(|a| Stamp::of(&a)).map_err(|e| Error::file(&self.path, e));
        let named = stamp(std::fs::metadata(&self.absolute))?;
        if named.identity != self.opened.identity {
            let fault = format!(
                "another file since it was opened: expected {}, found {}",
                shown(self.opened.identity),
                shown(named.identity)
            );
            return Err(Error::file(&self.path, fault));
        }
        let now = stamp(self.file.metadata())?;
        let change = |what: &str, expected: String, found: String| {
            Err(Error::file(
                &self.path,
                format!("changed since it was opened: expected {what}{expected}, found {found}"),
            ))
        };
        if now.bytes != self.opened.bytes {
            return change("", format!("{} bytes", self.opened.bytes), now.bytes.to_string());
        }
        if now.modified != self.opened.modified {
            return change("modification time ", time(self.opened.modified), time(now.modified));
        }
        Ok(())
    }
}

fn expect_regular(path: &Path, about: io::Result<Metadata>) -> Result<Metadata> {
    let about = about.map_err(|e| Error::file(path, e))?;
    if about.is_file() { Ok(about) } else { Err(Error::file(path, "not a regular file")) }
}

/// A part of a file that is read only when needed.
#[derive(Clone, Copy)]
pub(crate) struct Range<'a> {
    file: &'a RegularFile,
    start: u64,
    bytes: usize,
}

impl<'a> Range<'a> {
    pub fn new(file: &'a RegularFile, start: u64, bytes: usize) -> Self {
        Range { file, start, bytes }
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn read(&self) -> Result<Vec<u8>> {
        self.file.read(self.start, self.bytes)
    }

    /// Whether two parts hold the same bytes, compared piece by piece.
    pub fn same(&self, other: &Range<'_>) -> Result<bool> {
        const PART: usize = 1 << 18;
        if self.bytes != other.bytes {
            return Ok(false);
        }
        for from in (0..self.bytes).step_by(PART) {
            let bytes = PART.min(self.bytes - from);
            let part = |range: &Range<'_>| range.file.read(range.start + from as u64, bytes);
            if part(self)? != part(other)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub fn path(&self) -> &'a Path {
        &self.file.path
    }
}

impl fmt::Display for Range<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes behind byte {} of {}", self.bytes, self.start, self.file.path.display())
    }
}

#[cfg(unix)]
fn shown((device, inode): Identity) -> String {
    format!("inode {inode} of device {device}")
}

#[cfg(not(unix))]
fn shown(made: Identity) -> String {
    format!("one made at {}", time(made))
}

/// Seconds since 1970, for messages.
fn time(time: Option<SystemTime>) -> String {
    let Some(time) = time else { return "none".into() };
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => format!("{}.{:09} s", since.as_secs(), since.subsec_nanos()),
        Err(before) => format!("{:.9} s before 1970", before.duration().as_secs_f64()),
    }
}

/// `O_NONBLOCK`: a pipe that replaces the file between check and opening is opened without waiting
/// for a writer. It does not affect reads of regular files.
#[cfg(unix)]
const NONBLOCK: i32 = if cfg!(any(target_os = "linux", target_os = "android")) {
    if cfg!(any(target_arch = "mips", target_arch = "mips64", target_arch = "mips32r6", target_arch = "mips64r6")) {
        0o200
    } else if cfg!(any(target_arch = "sparc", target_arch = "sparc64")) {
        0o40000
    } else {
        0o4000
    }
} else if cfg!(any(
    target_vendor = "apple",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd",
    target_os = "dragonfly"
)) {
    4
} else {
    0
};

#[cfg(unix)]
fn read_at(file: &File, to: &mut [u8], start: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, to, start)
}

#[cfg(windows)]
fn read_at(file: &File, to: &mut [u8], start: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, to, start)
}

#[cfg(not(any(unix, windows)))]
fn read_at(_: &File, _: &mut [u8], _: u64) -> io::Result<usize> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "reads by position are not known on this system"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("xattn-regular-{}-{name}", std::process::id()))
    }

    /// A pipe that replaces a file after the check is refused without waiting.
    #[cfg(unix)]
    #[test]
    fn what_takes_the_place_of_a_file() {
        let path = place("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let (said, says) = std::sync::mpsc::channel();
        let opened = path.clone();
        std::thread::spawn(move || said.send(RegularFile::open_unasked(&opened).err()));
        // A writer would end a wait; there is none.
        let error = says.recv_timeout(std::time::Duration::from_secs(30)).expect("opening waits for a writer");
        assert_eq!(error, Some(Error::file(&path, "not a regular file")));
        std::fs::remove_file(&path).unwrap();
        let folder = std::env::temp_dir();
        assert_eq!(RegularFile::open_unasked(&folder).err(), Some(Error::file(&folder, "not a regular file")));
    }

    #[test]
    fn parts_of_a_file() {
        let path = place("parts");
        std::fs::write(&path, b"0123456789").unwrap();
        let file = RegularFile::open(&path).unwrap();
        assert_eq!((file.path(), file.bytes()), (&*path, 10));
        assert_eq!(file.read(3, 4).unwrap(), b"3456");
        assert_eq!(file.read(10, 0).unwrap(), b"");
        // Sizes beyond the file are not allocated.
        for (start, bytes, there) in [(8, 3, 2), (11, 1, 0), (u64::MAX, 1, 0), (0, usize::MAX, 10)] {
            let fault = format!("cut short: expected {bytes} bytes behind byte {start}, found {there}");
            assert_eq!(file.read(start, bytes), Err(Error::file(&path, fault)));
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn times_in_messages() {
        let second = std::time::Duration::from_nanos(1_000_000_007);
        assert_eq!(time(Some(SystemTime::UNIX_EPOCH + second)), "1.000000007 s");
        assert_eq!(time(Some(SystemTime::UNIX_EPOCH - second)), "1.000000007 s before 1970");
        assert_eq!(time(None), "none");
    }
}
