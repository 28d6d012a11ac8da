//! Embeds compiled CUDA kernels, when asked (feature `cuda-aot` and `XATTN_CUDA_IMAGES`), and in
//! programs that are optimised the commit of their sources. Everything else builds without CUDA.

#[path = "build/commit.rs"]
mod commit;

use std::path::{Path, PathBuf};
use std::{env, fs};

/// The folder that `xattn cuda-images` wrote.
const FOLDER: &str = "XATTN_CUDA_IMAGES";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/commit.rs");
    tell_commit();
    if env::var_os("CARGO_FEATURE_CUDA_AOT").is_none() {
        return;
    }
    println!("cargo::rerun-if-env-changed={FOLDER}");
    println!("cargo::rerun-if-env-changed=DOCS_RS");
    let asked = env::var_os(FOLDER).filter(|folder| !folder.is_empty() && env::var_os("DOCS_RS").is_none());
    let files = match &asked {
        None => {
            println!("cargo::warning=cuda-aot embeds nothing: {FOLDER} names no folder of `xattn cuda-images`");
            Vec::new()
        }
        Some(folder) => match images(Path::new(folder)) {
            Ok(files) => files,
            // Asked for in so many words: a program without its kernels is not what was meant.
            Err(reason) => {
                println!("cargo::error={FOLDER}={}: {reason}", folder.to_string_lossy());
                Vec::new()
            }
        },
    };
    let mut text = String::from("&[\n");
    for path in files {
        println!("cargo::rerun-if-changed={}", path.display());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        text.push_str(&format!("({name:?}, include_bytes!({:?})),\n", path.display().to_string()));
    }
    text.push_str("]\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("cuda_images.rs");
    if let Err(error) = fs::write(&out, text) {
        println!("cargo::error={}: {error}", out.display());
    }
}

/// `XATTN_COMMIT`, for `xattn bench --json`. Programs that are not optimised have none: after each
/// commit everything would be compiled again, and their times mean nothing.
fn tell_commit() {
    if env::var("PROFILE").as_deref() != Ok("release") {
        return;
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    for path in commit::watched(&root) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    if let Some(commit) = commit::of(&root) {
        println!("cargo::rustc-env=XATTN_COMMIT={commit}");
    }
}

/// The images in a folder, by absolute path.
fn images(folder: &Path) -> Result<Vec<PathBuf>, String> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let folder = folder.canonicalize().map_err(|error| error.to_string())?;
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).map_err(|error| error.to_string())? {
        let path = entry.map_err(|error| error.to_string())?.path();
        if path.extension().is_some_and(|extension| extension == "image") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err("no images in it; `xattn cuda-images` writes them".into());
    }
    files.sort();
    Ok(files)
}
