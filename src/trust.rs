//! Which files and folders are trusted with code: compiled kernels, libraries.
//!
//! A path is trusted when everything on it, from the root down and through symbolic links, belongs to the process's effective user or to root, and
//! nobody else may write to it. Then no other user can exchange anything on it, neither before it is looked at nor afterwards. A folder
//! with the sticky bit (a shared temporary folder) may stand on the way: others cannot rename or remove what is ours in it; it may not be the folder
//! of a file, since others can put files beside it. Of a file the opened one is asked, not its name.
//!
//! Other systems than Unix: that a file is a regular one is checked; owners and permissions are not.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

#[cfg(all(test, unix))]
mod tests;

/// A trusted folder: its path without symbolic links, which is the one to use.
///
/// # Errors
/// A folder that is missing or not trusted, with the part of the path that is not, its owner and its mode.
pub(crate) fn folder(path: &Path) -> io::Result<PathBuf> {
    let resolved = resolve(path)?;
    let about = fs::metadata(&resolved)?;
    if !about.is_dir() {
        return Err(refusal(&resolved, "no folder"));
    }
    expect_ours(&resolved, &about, false)?;
    Ok(resolved)
}

/// Makes a folder that only this user can use, where it is missing, below folders that are trusted.
///
/// # Errors
/// As [`folder`].
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

/// Opens a trusted file for reading: it, and its path without symbolic links. It is a regular file, so that nothing waits for a pipe.
///
/// # Errors
/// A file that is missing, no regular one, or not trusted, with the part of the path that is not, its owner and its mode.
pub(crate) fn open(path: &Path) -> io::Result<(File, PathBuf)> {
    let resolved = resolve(path)?;
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, unix::OPEN);
    // The name, for systems whose flags are not known here: opening a pipe waits.
    expect_regular(&resolved, &fs::metadata(&resolved)?)?;
    let file = options.open(&resolved)?;
    let about = file.metadata()?;
    expect_regular(&resolved, &about)?;
    expect_ours(&resolved, &about, false)?;
    // The folder that holds it is not on the way to it: a file that is found beside it is code too.
    if let Some(holder) = resolved.parent() {
        expect_ours(holder, &fs::metadata(holder)?, false)?;
    }
    Ok((file, resolved))
}

/// The bytes of a trusted file, of which there are `most` at most.
///
/// # Errors
/// As [`open`]; a larger file, and one that memory has no room for.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (file, resolved) = open(path)?;
    let room = file.metadata()?.len().min(most + 1);
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(room).unwrap_or(usize::MAX)).map_err(|_| ErrorKind::OutOfMemory)?;
    // Not by its length, which may change.
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(refusal(&resolved, &format!("more than {most} bytes")));
    }
    Ok(bytes)
}

/// An environment variable that names code or a place where code lies, if it is set to something. A privileged process does not ask: whoever
/// started it has fewer rights than it.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty() && !is_privileged())
}

/// Why [`variable`] says nothing in a privileged process.
pub(crate) const NOT_ASKED: &str = "the environment was not asked: this process has rights that its user lacks";

/// What is wrong with a file or folder, without its path, if that is the one asked for.
pub(crate) fn reason(path: &Path, error: &io::Error) -> String {
    let text = error.to_string();
    text.strip_prefix(&format!("{}: ", path.display())).map_or(text.clone(), str::to_string)
}

/// Whether this process has rights that its user lacks: it runs a setuid or setgid program, or one with capabilities. Not known elsewhere than on
/// Unix.
pub(crate) fn is_privileged() -> bool {
    #[cfg(unix)]
    return unix::is_privileged();
    #[cfg(not(unix))]
    false
}

fn refusal(path: &Path, what: &str) -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, format!("{}: {what}", path.display()))
}

/// The path without symbolic links, all of whose parents are trusted, those of links too: what is below a trusted folder stays what it is.
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

/// Nobody is asked here, and loaders of libraries do not take every canonical path of Windows.
#[cfg(not(unix))]
fn resolve(path: &Path) -> io::Result<PathBuf> {
    std::path::absolute(path)
}

fn expect_regular(path: &Path, about: &Metadata) -> io::Result<()> {
    if about.is_file() { Ok(()) } else { Err(refusal(path, "no regular file")) }
}

/// Refuses what belongs to others or that they may write to. `on_the_way`: the sticky bit will do.
#[cfg(unix)]
fn expect_ours(path: &Path, about: &Metadata, on_the_way: bool) -> io::Result<()> {
    let mode = std::os::unix::fs::MetadataExt::mode(about);
    if mode & 0o022 == 0 || (on_the_way && mode & 0o1000 != 0) {
        return expect_owner(path, about);
    }
    Err(not_ours(path, about))
}

/// Refuses what belongs to others. Of a link its mode says nothing.
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

/// The calls of the system's C library, which every Rust program on Unix is linked with.
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

    /// Not through a symbolic link, and without waiting for the other end of a pipe: `O_NOFOLLOW` and `O_NONBLOCK`, where their numbers are known.
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

    /// What the kernel or the loader knows of the program's start.
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
