//! Code that other users could have put there is not run, and a privileged process does not ask its
//! environment for code. `src/trust.rs` has the rule, and tests of each part of it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;
use std::time::{Duration, Instant};

use xattn::{CudaOptions, Device};

use crate::absence::reason;
use crate::support::{Scratch, child, emulated, is_child, said};

const OTHER: u32 = 65534;

fn skip() -> bool {
    // SAFETY: a number.
    let root = unsafe { geteuid() } == 0;
    if !emulated() || !root {
        eprintln!("skipped: needs the emulator, and root to give files away");
    }
    !emulated() || !root
}

unsafe extern "C" {
    fn geteuid() -> u32;
    fn seteuid(user: u32) -> i32;
}

fn norm(environment: &[(&str, Option<&str>)]) -> String {
    said(child("cache::norm", environment).output().unwrap())
}

fn rule(mode: &str, user: u32) -> String {
    format!("belongs to user {user} and has mode {mode}; expected user 0 or root, and nobody else who may write")
}

/// `p14_cache_owner`, from the outside.
#[test]
fn folders_of_other_users_hold_no_kernels() {
    if skip() {
        return;
    }
    let scratch = Scratch::new("users");
    let folder = scratch.0.join("theirs");
    fs::create_dir_all(&folder).unwrap();
    chown(&folder, Some(OTHER), None).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.to_str().unwrap();
    let text = norm(&[("XATTN_CUDA_CACHE", Some(path))]);
    let words = format!("kernels from no cache ({path}: {}), then NVRTC", rule("755", OTHER));
    assert!(text.contains(&words) && text.contains("norm ran"), "{text}");
    assert!(fs::read_dir(&folder).unwrap().next().is_none(), "nothing is written");
    let below = format!("{path}/private/cache");
    let text = norm(&[("XATTN_CUDA_CACHE", Some(&below))]);
    assert!(text.contains(&format!("no cache ({below}: {path}: {})", rule("755", OTHER))), "{text}");
    assert!(!folder.join("private").exists(), "nothing is made");

    let said = reason(&[("XATTN_CUDA_IMAGES", Some(path))]);
    assert_eq!(said, format!("{path}: {}", rule("755", OTHER)));
    chown(&folder, Some(0), None).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).unwrap();
    let said = reason(&[("XATTN_CUDA_IMAGES", Some(path))]);
    assert_eq!(said, format!("{path}: {}", rule("1777", 0)));
}

/// What is kept can be used again, also by those who let everybody write to their new files.
#[test]
fn entries_are_private_whatever_the_umask() {
    if skip() {
        return;
    }
    let scratch = Scratch::new("umask");
    let run = || {
        let inner = child("cache::norm", &[]);
        let mut outer = Command::new("sh");
        outer.args(["-c", "umask 0; exec \"$0\" \"$@\""]).arg(inner.get_program()).args(inner.get_args());
        outer.env("XATTN_TEST_CHILD", "1").env("XATTN_CUDA_CACHE", scratch.text());
        said(outer.output().unwrap())
    };
    assert!(run().contains("norm ran"));
    let entry = fs::read_dir(&scratch.0).unwrap().next().unwrap().unwrap().path();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&scratch.0), mode(&entry)), (0o700, 0o644));
}

/// One image, in the folder that ships with a program.
#[test]
fn shipped_images_that_others_may_write_to_are_refused() {
    if skip() {
        return;
    }
    let (cache, images) = (Scratch::new("made"), Scratch::new("shipped"));
    norm(&[("XATTN_CUDA_CACHE", Some(cache.text()))]);
    let made = fs::read_dir(&cache.0).unwrap().next().unwrap().unwrap().path();
    let image = fs::read(&made).unwrap();
    let arch = String::from_utf8_lossy(&image).split_whitespace().nth(2).unwrap().to_string();
    fs::create_dir_all(&images.0).unwrap();
    let path = images.0.join(format!("norm_l2_head.{arch}.image"));
    let shipped = [("XATTN_CUDA_IMAGES", Some(images.text())), ("XATTN_CUDA_CACHE", Some("off"))];
    let expect = |what: &str| {
        let text = norm(&shipped);
        assert!(text.contains(&format!("error: {}: {what}", path.display())), "{text}");
    };
    fs::write(&path, &image).unwrap();
    assert!(norm(&shipped).contains("norm ran"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
    expect(&rule("664", 0));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    chown(&path, Some(OTHER), None).unwrap();
    expect(&rule("644", OTHER));
    // A link to another user's file; a pipe, which nobody writes to.
    let theirs = cache.0.join("theirs");
    fs::rename(&path, &theirs).unwrap();
    std::os::unix::fs::symlink(&theirs, &path).unwrap();
    expect(&format!("{}: {}", theirs.display(), rule("644", OTHER)));
    fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let started = Instant::now();
    expect("no regular file");
    assert!(started.elapsed() < Duration::from_secs(60), "it did not wait for a writer");
}

#[test]
fn a_privileged_process_takes_no_code_from_the_environment() {
    if skip() {
        return;
    }
    // Folders that would be an error, and one that would be used.
    let scratch = Scratch::new("privileged");
    let environment = [
        ("XATTN_CUDA_IMAGES", Some("/no/such/folder")),
        ("XATTN_CUDA_CACHE", Some(scratch.text())),
        ("CUDA_HOME", Some(scratch.text())),
    ];
    let text = said(child("users::opens_as_another_user", &environment).output().unwrap());
    let why = "the environment was not asked: this process has rights that its user lacks";
    assert!(text.contains(&format!("kernels from no cache ({why}), then NVRTC 13.0 ({why})")), "{text}");
    assert!(!scratch.0.exists(), "nothing is made");
}

#[test]
#[ignore = "a process of its own"]
fn opens_as_another_user() {
    if !is_child() {
        return;
    }
    // SAFETY: this process runs one test.
    assert_eq!(unsafe { seteuid(OTHER) }, 0);
    println!("\n{}", Device::open_cuda(&CudaOptions::from_env().unwrap()).unwrap().info().details);
}
