//! The commit that `build.rs` finds: the package's own, never that of a checkout around it.

#[path = "../build/commit.rs"]
mod commit;

use std::path::{Path, PathBuf};
use std::process::Command;

fn folder(name: &str) -> PathBuf {
    // Outside of this checkout, so that none lies around it.
    let folder = std::env::temp_dir().join(format!("xattn-commit-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn git(root: &Path, arguments: &[&str]) -> String {
    let named = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "core.hooksPath=none"];
    let output = Command::new("git").arg("-C").arg(root).args(named).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

#[test]
fn a_commit_is_that_of_the_package() {
    if Command::new("git").arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no git");
        return;
    }
    let root = folder("checkout");
    assert_eq!(commit::of(&root), None, "no checkout");
    git(&root, &["init", "-q"]);
    assert_eq!(commit::of(&root), None, "no commit");
    std::fs::write(root.join("Cargo.toml"), "1").unwrap();
    git(&root, &["add", "Cargo.toml"]);
    git(&root, &["commit", "-q", "-m", "one"]);
    let head = git(&root, &["rev-parse", "--short", "HEAD"]);
    assert!(head.len() >= 7);
    assert_eq!(commit::of(&root), Some(head.clone()));
    std::fs::write(root.join("untracked"), "1").unwrap();
    assert_eq!(commit::of(&root), Some(head.clone()));
    std::fs::write(root.join("Cargo.toml"), "2").unwrap();
    assert_eq!(commit::of(&root), Some(format!("{head}-dirty")));
    let names: Vec<_> = commit::watched(&root).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["HEAD", "HEAD", "index", "Cargo.toml"]);

    // A package that lies in somebody else's checkout.
    let inner = root.join("vendor");
    std::fs::create_dir(&inner).unwrap();
    assert_eq!(commit::of(&inner), None);
    let info = r#"{"git": {"sha1": "0123456789abcdef0123456789abcdef01234567"}, "path_in_vcs": ""}"#;
    std::fs::write(inner.join(".cargo_vcs_info.json"), info).unwrap();
    assert_eq!(commit::of(&inner).as_deref(), Some("0123456"));
    std::fs::remove_dir_all(root).unwrap();
}
