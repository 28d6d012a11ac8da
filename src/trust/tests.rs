//! What is trusted, what is not, and why. Most of it needs root, who alone can give files away;
//! without root a test is reported as skipped.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::*;

/// Someone who is neither root nor, in these tests, us.
const OTHER: u32 = 65534;

/// A folder of this test's own, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = fs::canonicalize(std::env::temp_dir()).unwrap();
        let path = path.join(format!("xattn-trust-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        let scratch = Scratch(path);
        scratch.folder("", 0o755);
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.0.clone() } else { self.0.join(name) }
    }

    fn folder(&self, name: &str, mode: u32) -> PathBuf {
        fs::create_dir_all(self.path(name)).unwrap();
        self.mode(name, mode)
    }

    fn file(&self, name: &str, mode: u32) -> PathBuf {
        fs::write(self.path(name), b"kernel").unwrap();
        self.mode(name, mode)
    }

    fn mode(&self, name: &str, mode: u32) -> PathBuf {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
        self.path(name)
    }

    fn give(&self, name: &str, user: u32) -> PathBuf {
        chown(self.path(name), Some(user), None).unwrap();
        self.path(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn is_root() -> bool {
    if unix::effective_user() != 0 {
        eprintln!("skipped: only root can give files to another user");
    }
    unix::effective_user() == 0
}

fn says(path: &Path, user: u32, mode: &str) -> String {
    let us = unix::effective_user();
    format!(
        "{}: belongs to user {user} and has mode {mode}; expected user {us} or root, and nobody else who may write",
        path.display()
    )
}

#[test]
fn a_folder_is_ours_alone() {
    let (scratch, us) = (Scratch::new("folder"), unix::effective_user());
    let ours = scratch.folder("ours", 0o755);
    assert_eq!(folder(&ours).unwrap(), ours);
    for mode in [0o775, 0o757, 0o777, 0o1777] {
        scratch.mode("ours", mode);
        assert_eq!(folder(&ours).unwrap_err().to_string(), says(&ours, us, &format!("{mode:o}")));
    }
    scratch.mode("ours", 0o700);
    assert_eq!(folder(&ours).unwrap(), ours);
    assert_eq!(folder(&scratch.path("none")).unwrap_err().kind(), ErrorKind::NotFound);
    let file = scratch.file("file", 0o600);
    assert_eq!(folder(&file).unwrap_err().to_string(), format!("{}: no folder", file.display()));
}

#[test]
fn a_private_folder_below_one_that_all_may_write_to() {
    let (scratch, us) = (Scratch::new("below"), unix::effective_user());
    let (open_to_all, private) = (scratch.folder("open", 0o755), scratch.folder("open/private", 0o700));
    assert_eq!(folder(&private).unwrap(), private);
    scratch.mode("open", 0o777);
    assert_eq!(folder(&private).unwrap_err().to_string(), says(&open_to_all, us, "777"));
    let image = scratch.file("open/private/image", 0o600);
    assert_eq!(open(&image).unwrap_err().to_string(), says(&open_to_all, us, "777"));
    // Shared, but no one else can move our files in it.
    scratch.mode("open", 0o1777);
    assert_eq!(folder(&private).unwrap(), private);
    assert_eq!(read(&image, 6).unwrap(), b"kernel");
    // Not so for the folder of a file: others put files beside it.
    let beside = scratch.file("open/image", 0o600);
    assert_eq!(open(&beside).unwrap_err().to_string(), says(&open_to_all, us, "1777"));
}

/// A folder of another user with mode 755 is not private, not through a symbolic link either.
#[test]
fn a_folder_of_another_user_is_not_trusted() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("other");
    scratch.folder("theirs", 0o755);
    let theirs = scratch.give("theirs", OTHER);
    assert_eq!(folder(&theirs).unwrap_err().to_string(), says(&theirs, OTHER, "755"));
    let link = scratch.path("link");
    symlink(&theirs, &link).unwrap();
    assert_eq!(folder(&link).unwrap_err().to_string(), says(&theirs, OTHER, "755"));
    assert_eq!(folder(&link.join("below/..")).unwrap_err().to_string(), says(&theirs, OTHER, "755"));
    // The owner can exchange what is ours below it.
    let below = scratch.folder("theirs/ours", 0o700);
    assert_eq!(folder(&below).unwrap_err().to_string(), says(&theirs, OTHER, "755"));
    assert_eq!(make_folder(&theirs.join("new/cache")).unwrap_err().to_string(), says(&theirs, OTHER, "755"));
    assert!(!theirs.join("new").exists(), "nothing is made there");
    // In a folder with the sticky bit, the next folder's owner decides.
    let shared = scratch.folder("shared", 0o1777);
    let (ours, foreign) = (scratch.folder("shared/ours", 0o700), scratch.folder("shared/foreign", 0o755));
    scratch.give("shared/foreign", OTHER);
    assert_eq!(folder(&ours).unwrap(), ours);
    assert_eq!(folder(&foreign).unwrap_err().to_string(), says(&foreign, OTHER, "755"));
    // The owner of such a folder may rename what is in it.
    scratch.give("shared", OTHER);
    assert_eq!(folder(&ours).unwrap_err().to_string(), says(&shared, OTHER, "1777"));
}

/// The owner of a link, and whoever may write to its folder, decide what is found there.
#[test]
fn links_are_trusted_as_what_they_lead_to_is() {
    let scratch = Scratch::new("links");
    let (home, us) = (scratch.folder("home", 0o700), unix::effective_user());
    scratch.folder("home/in", 0o700);
    let open_to_all = scratch.folder("open", 0o755);
    let link = scratch.path("open/link");
    symlink("../home", &link).unwrap();
    assert_eq!(folder(&link).unwrap(), home);
    assert_eq!(folder(&link.join("in/../in")).unwrap(), scratch.path("home/in"));
    scratch.mode("open", 0o777);
    assert_eq!(folder(&link).unwrap_err().to_string(), says(&open_to_all, us, "777"));
    // With the sticky bit only its owner can exchange the link, so the owner of the link decides.
    scratch.mode("open", 0o1777);
    assert_eq!(folder(&link).unwrap(), home);
    let endless = scratch.path("endless");
    symlink("endless", &endless).unwrap();
    assert_eq!(folder(&endless).unwrap_err().to_string(), format!("{}: too many symbolic links", endless.display()));
    if is_root() {
        std::os::unix::fs::lchown(&link, Some(OTHER), None).unwrap();
        assert_eq!(folder(&link).unwrap_err().to_string(), says(&link, OTHER, "777"));
    }
}

#[test]
fn a_file_is_ours_alone() {
    let (scratch, us) = (Scratch::new("file"), unix::effective_user());
    let image = scratch.file("image", 0o644);
    assert_eq!(open(&image).unwrap().1, image);
    for mode in [0o664, 0o646, 0o666, 0o1666] {
        scratch.mode("image", mode);
        assert_eq!(open(&image).unwrap_err().to_string(), says(&image, us, &format!("{mode:o}")));
    }
    assert_eq!(open(&scratch.path("none")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(open(&scratch.0).unwrap_err().to_string(), format!("{}: no regular file", scratch.0.display()));
    scratch.mode("image", 0o644);
    assert_eq!(read(&image, 5).unwrap_err().to_string(), format!("{}: more than 5 bytes", image.display()));
    assert_eq!(read(&image, 6).unwrap(), b"kernel");
}

#[test]
fn a_file_exchanged_for_a_link_is_what_it_leads_to() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("exchanged");
    scratch.file("theirs", 0o644);
    let theirs = scratch.give("theirs", OTHER);
    let image = scratch.path("image");
    symlink(&theirs, &image).unwrap();
    assert_eq!(open(&image).unwrap_err().to_string(), says(&theirs, OTHER, "644"));
    assert_eq!(read(&image, 6).unwrap_err().to_string(), says(&theirs, OTHER, "644"));
    let ours = scratch.file("ours", 0o600);
    fs::remove_file(&image).unwrap();
    symlink(&ours, &image).unwrap();
    assert_eq!(open(&image).unwrap().1, ours);
}

#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let scratch = Scratch::new("pipe");
    let pipe = scratch.path("image");
    if !Command::new("mkfifo").arg(&pipe).status().is_ok_and(|made| made.success()) {
        eprintln!("skipped: no mkfifo");
        return;
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let expected = format!("{}: no regular file", pipe.display());
    std::thread::spawn(move || sender.send(read(&pipe, 6).unwrap_err().to_string()));
    let said = receiver.recv_timeout(std::time::Duration::from_secs(10)).expect("an answer, and no waiting");
    assert_eq!(said, expected);
}

#[test]
fn a_folder_is_made_for_us_alone() {
    let scratch = Scratch::new("make");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let made = make_folder(&scratch.path("a/b")).unwrap();
    assert_eq!(made, scratch.path("a/b"));
    assert_eq!((mode(&made), mode(&scratch.path("a"))), (0o700, 0o700));
    assert_eq!(make_folder(&made).unwrap(), made);
    scratch.mode("a", 0o777);
    let said = make_folder(&scratch.path("a/c/d")).unwrap_err().to_string();
    assert_eq!(said, says(&scratch.path("a"), unix::effective_user(), "777"));
    assert!(!scratch.path("a/c").exists());
}

/// Runs an `#[ignore]`d test of this program in a process of its own, and returns its output.
fn child(program: &Path, test: &str, change: impl FnOnce(&mut Command)) -> Option<String> {
    let mut command = Command::new(program);
    let name = format!("trust::tests::{test}");
    command.args([&name, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"]);
    command.env("XATTN_TEST_CHILD", "1").current_dir("/");
    change(&mut command);
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("skipped: {} cannot be run: {error}", program.display());
            return None;
        }
    };
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    Some(text)
}

fn is_child() -> bool {
    std::env::var_os("XATTN_TEST_CHILD").is_some()
}

/// How a user who is not root judges folders of root, of its own and of a third user.
#[test]
fn root_is_trusted_by_everyone_and_a_third_user_by_nobody() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("user");
    let (roots, own, third) =
        (scratch.folder("roots", 0o755), scratch.folder("own", 0o755), scratch.folder("third", 0o755));
    scratch.give("own", OTHER);
    scratch.give("third", 1000);
    let program = std::env::current_exe().unwrap();
    let said = child(&program, "judges_folders", |command| {
        command.uid(OTHER).gid(OTHER).env("XATTN_TEST_FOLDER", &scratch.0);
    });
    let Some(said) = said else { return };
    assert!(said.contains(&format!("roots: Ok({roots:?})")), "{said}");
    assert!(said.contains(&format!("own: Ok({own:?})")), "{said}");
    let refused = format!(
        "third: {}: belongs to user 1000 and has mode 755; expected user {OTHER} or root, and nobody else who may write",
        third.display()
    );
    assert!(said.contains(&refused), "{said}");
    assert!(said.contains("privileged: false, variable: Some(\"/usr\")"), "{said}");
}

#[test]
#[ignore = "a process of its own"]
fn judges_folders() {
    if !is_child() {
        return;
    }
    let scratch = PathBuf::from(std::env::var_os("XATTN_TEST_FOLDER").unwrap());
    for name in ["roots", "own", "third"] {
        match folder(&scratch.join(name)) {
            Ok(path) => println!("\n{name}: Ok({path:?})"),
            Err(error) => println!("\n{name}: {error}"),
        }
    }
    says_privilege();
}

fn says_privilege() {
    // SAFETY: this process runs one test, on one thread.
    unsafe { std::env::set_var("CUDA_HOME", "/usr") };
    println!("\nprivileged: {}, variable: {:?}", is_privileged(), variable("CUDA_HOME"));
}

/// A program that has put on another user's rights, and one that began with them: its file has the
/// setuid bit.
#[test]
fn a_privileged_process_does_not_ask_the_environment() {
    if !is_root() {
        return;
    }
    let program = std::env::current_exe().unwrap();
    let said = child(&program, "puts_on_another_user", |_| ()).unwrap();
    assert!(said.contains("privileged: true, variable: None"), "{said}");

    let scratch = Scratch::new("setuid");
    let copy = scratch.path("program");
    fs::copy(&program, &copy).unwrap();
    scratch.give("program", OTHER);
    scratch.mode("program", 0o4755);
    let said = child(&copy, "asks_the_kernel", |_| ()).unwrap();
    if said.contains("users: 0 0") {
        eprintln!("skipped: the temporary folder is mounted without setuid programs");
        return;
    }
    assert!(said.contains("privileged: true, variable: None"), "{said}");
    assert!(said.contains("the same users now: privileged: true"), "what the kernel said at the start stays: {said}");
}

unsafe extern "C" {
    safe fn seteuid(user: u32) -> i32;
    safe fn setreuid(real: u32, effective: u32) -> i32;
    safe fn getuid() -> u32;
}

#[test]
#[ignore = "a process of its own"]
fn puts_on_another_user() {
    if is_child() {
        assert!(!is_privileged());
        assert_eq!(seteuid(OTHER), 0);
        says_privilege();
    }
}

#[test]
#[ignore = "a process of its own"]
fn asks_the_kernel() {
    if !is_child() {
        return;
    }
    println!("\nusers: {} {}", getuid(), unix::effective_user());
    says_privilege();
    // Both users the effective one: only the kernel still knows.
    if getuid() != unix::effective_user() && setreuid(unix::effective_user(), unix::effective_user()) == 0 {
        println!("\nthe same users now: privileged: {}", is_privileged());
    }
}
