//! Trust in files and folders with code: compiled kernels, libraries.
//!
//! A path is trusted when everything on it, from the root down and through symbolic links, belongs
//! to the process's effective user or to root, and no other user may write to it. Then no other
//! user can exchange anything on it, before the check or after. A folder with the sticky bit (a
//! shared temporary folder) is allowed on the way, since others cannot rename or remove our files
//! in it. It is not allowed as the folder of a file, since others can put files beside it. A file
//! is checked when it is open, not by its name.
//!
//! On other systems than Unix, only regular files pass; owners and permissions are not checked.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

#[cfg(all(test, unix))]
mod tests;

/// Checks a folder. Returns its path without symbolic links, which is the one to use.
///
/// # Errors
/// A missing or untrusted folder: the offending part of the path, its owner and its mode.
pub(crate) fn folder(path: &Path) -> io::Result<PathBuf> {
    let resolved = resolve(path)?;
    let about = fs::metadata(&resolved)?;
    if !about.is_dir() {
        return Err(refusal(&resolved, "no folder"));
    }
    expect_ours(&resolved, &about, false)?;
    Ok(resolved)
}

/// Creates a folder that only this user can use, if it is missing, below trusted folders.
pub(crate) fn make_folder(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let there = path.ancestors().find(|ancestor| fs::symlink_metadata(ancestor).is_ok()).unwrap_or(&path);
    if there != path {
        let resolved = resolve(there)?;
        expect_ours(&resolved, &fs::metadata(&resolved)?, true)?;
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path)?;
    }
    folder(&path)
}

/// Opens a trusted file for reading, and returns its path without symbolic links. It is a regular
/// file, so that no pipe is waited for.
///
/// # Errors
/// A file that is missing, not regular, or untrusted: the offending part, its owner, its mode.
pub(crate) fn open(path: &Path) -> io::Result<(File, PathBuf)> {
    let resolved = resolve(path)?;
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, unix::OPEN);
    // By name first, for systems whose flags are not known here: opening a pipe waits.
    expect_regular(&resolved, &fs::metadata(&resolved)?)?;
    let file = options.open(&resolved)?;
    let about = file.metadata()?;
    expect_regular(&resolved, &about)?;
    expect_ours(&resolved, &about, false)?;
    // The folder of the file is not on the way to it: files beside it are code too.
    if let Some(holder) = resolved.parent() {
        expect_ours(holder, &fs::metadata(holder)?, false)?;
    }
    Ok((file, resolved))
}

/// The bytes of a trusted file, at most `most`.
///
/// # Errors
/// As [`open`]; a file that is larger or exceeds memory.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (file, resolved) = open(path)?;
    let room = file.metadata()?.len().min(most + 1);
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(room).unwrap_or(usize::MAX)).map_err(|_| ErrorKind::OutOfMemory)?;
    // Not bounded by the file's length, which may change.
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(refusal(&resolved, &format!("more than {most} bytes")));
    }
    Ok(bytes)
}

/// An environment variable that names code or a place of code, if it is not empty. A privileged
/// process ignores it: its user has fewer rights than the process.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty() && !is_privileged())
}

/// Why [`variable`] is none in a privileged process.
pub(crate) const NOT_ASKED: &str = "the environment was not asked: this process has rights that its user lacks";

/// The fault of a file or folder, without its path if that is the one asked for.
pub(crate) fn reason(path: &Path, error: &io::Error) -> String {
    let text = error.to_string();
    text.strip_prefix(&format!("{}: ", path.display())).map_or(text.clone(), str::to_string)
}

/// Whether this process has rights that its user lacks: a setuid or setgid program, or one with
/// capabilities. Known on Unix only.
pub(crate) fn is_privileged() -> bool {
    #[cfg(unix)]
    return unix::is_privileged();
    #[cfg(not(unix))]
    false
}

fn refusal(path: &Path, what: &str) -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, format!("{}: {what}", path.display()))
}

/// The path without symbolic links. All its parents are trusted, and those of links: nothing below
/// a trusted folder can be exchanged.
#[cfg(unix)]
fn resolve(path: &Path) -> io::Result<PathBuf> {
    // More than any system follows.
    const MOST_LINKS: usize = 64;
    let parts = |path: &Path| path.components().rev().map(|part| part.as_os_str().to_owned()).collect::<Vec<_>>();
    let mut rest = parts(&std::path::absolute(path)?);
    let (mut resolved, mut links) = (PathBuf::new(), 0);
    while let Some(part) = rest.pop() {
        if part == ".." {
            resolved.pop();
            continue;
        }
        let next = resolved.join(&part);
        let about = fs::symlink_metadata(&next)?;
        if about.is_symlink() {
            links += 1;
            if links > MOST_LINKS {
                return Err(refusal(path, "too many symbolic links"));
            }
            expect_owner(&next, &about)?;
            rest.extend(parts(&fs::read_link(&next)?));
            continue;
        }
        if !rest.is_empty() {
            expect_ours(&next, &about, true)?;
        }
        resolved = next;
    }
    Ok(resolved)
}

/// Owners are not checked here, and library loaders refuse some canonical paths of Windows.
#[cfg(not(unix))]
fn resolve(path: &Path) -> io::Result<PathBuf> {
    std::path::absolute(path)
}

fn expect_regular(path: &Path, about: &Metadata) -> io::Result<()> {
    if about.is_file() { Ok(()) } else { Err(refusal(path, "no regular file")) }
}

/// Refuses what belongs to others or is writable for them. `on_the_way`: the sticky bit is enough.
#[cfg(unix)]
fn expect_ours(path: &Path, about: &Metadata, on_the_way: bool) -> io::Result<()> {
    let mode = std::os::unix::fs::MetadataExt::mode(about);
    if mode & 0o022 == 0 || (on_the_way && mode & 0o1000 != 0) {
        return expect_owner(path, about);
    }
    Err(not_ours(path, about))
}

/// Refuses what belongs to others. The mode of a link has no meaning.
#[cfg(unix)]
fn expect_owner(path: &Path, about: &Metadata) -> io::Result<()> {
    let user = std::os::unix::fs::MetadataExt::uid(about);
    if user == 0 || user == unix::effective_user() { Ok(()) } else { Err(not_ours(path, about)) }
}

#[cfg(unix)]
fn not_ours(path: &Path, about: &Metadata) -> io::Error {
    use std::os::unix::fs::MetadataExt;
    let (user, mode, us) = (about.uid(), about.mode() & 0o7777, unix::effective_user());
    let what = format!(
        "belongs to user {user} and has mode {mode:o}; expected user {us} or root, and nobody else who may write"
    );
    refusal(path, &what)
}

#[cfg(not(unix))]
fn expect_ours(_: &Path, _: &Metadata, _: bool) -> io::Result<()> {
    Ok(())
}

/// Calls of the C library, which every Rust program on Unix links.
#[cfg(unix)]
mod unix {
    use std::ffi::c_int;

    unsafe extern "C" {
        safe fn getuid() -> u32;
        safe fn geteuid() -> u32;
        safe fn getgid() -> u32;
        safe fn getegid() -> u32;
        #[cfg(any(target_os = "linux", target_os = "android"))]
        safe fn getauxval(kind: std::ffi::c_ulong) -> std::ffi::c_ulong;
        #[cfg(any(target_vendor = "apple", target_os = "freebsd", target_os = "openbsd", target_os = "netbsd"))]
        safe fn issetugid() -> c_int;
    }

    /// Does not follow a symbolic link, and does not wait for the other end of a pipe: `O_NOFOLLOW`
    /// and `O_NONBLOCK`, where their numbers are known.
    pub const OPEN: c_int = if cfg!(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "x86"))) {
        0o400000 | 0o4000
    } else if cfg!(all(target_os = "linux", any(target_arch = "aarch64", target_arch = "arm"))) {
        0o100000 | 0o4000
    } else if cfg!(target_vendor = "apple") {
        0x100 | 0x4
    } else {
        0
    };

    pub fn effective_user() -> u32 {
        geteuid()
    }

    pub fn is_privileged() -> bool {
        getuid() != geteuid() || getgid() != getegid() || is_secure()
    }

    /// What the kernel or the loader recorded at the program's start.
    fn is_secure() -> bool {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            const AT_SECURE: std::ffi::c_ulong = 23;
            getauxval(AT_SECURE) != 0
        }
        #[cfg(any(target_vendor = "apple", target_os = "freebsd", target_os = "openbsd", target_os = "netbsd"))]
        {
            issetugid() != 0
        }
        #[cfg(not(any(
            target_os = "linux",
            target_os = "android",
            target_vendor = "apple",
            target_os = "freebsd",
            target_os = "openbsd",
            target_os = "netbsd"
        )))]
        false
    }
}
