//! The commit of the sources that are compiled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The commit of a package whose manifest lies in `root`, in seven or more digits: of its checkout,
/// with `-dirty` where files that git follows have changed since; else the one that `cargo package`
/// wrote down. None outside of both, and inside of another project's checkout.
pub fn of(root: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_string())
    };
    let top = git(&["rev-parse", "--show-toplevel"]).and_then(|top| PathBuf::from(top).canonicalize().ok());
    if top.is_none() || top != root.canonicalize().ok() {
        return packaged(root);
    }
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { format!("{commit}-dirty") })
}

/// What decides about it, as far as it is there: where HEAD stands, and the files of the package.
pub fn watched(root: &Path) -> Vec<PathBuf> {
    let git = |name: &str| {
        let output = Command::new("git").arg("-C").arg(root).args(["rev-parse", "--git-path", name]).output().ok()?;
        Some(root.join(String::from_utf8_lossy(&output.stdout).trim_end()))
    };
    let heads = ["HEAD", "logs/HEAD", "index"].into_iter().filter_map(git);
    let package = ["src", "kernels", "shaders", "Cargo.toml", "Cargo.lock", ".cargo_vcs_info.json"];
    heads.chain(package.map(|name| root.join(name))).filter(|path| path.exists()).collect()
}

/// The hash in the file that `cargo package` adds: the first text of hexadecimal digits that is as
/// long as one.
fn packaged(root: &Path) -> Option<String> {
    let text = fs::read_to_string(root.join(".cargo_vcs_info.json")).ok()?;
    let hash = text.split('"').find(|part| part.len() >= 40 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
    Some(hash[..7].to_string())
}
