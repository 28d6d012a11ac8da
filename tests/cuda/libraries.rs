//! Where NVRTC and cuBLASLt are taken from: folders that somebody named, by full path and if nobody
//! else can write to them; then the loader's own search. Never the current folder, never `PATH`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use xattn::ops::{Linear, LinearArgs, Matrix, Norm, NormArgs, NormKind, Source};
use xattn::{CudaCache, CudaCublasLt, CudaOptions, DType, Device, Dispatch, Tensor};

use crate::linear::counts;
use crate::support::{Scratch, child, emulated, integers, is_child, said, spec, tensor};

/// The emulator's libraries in this test's folders: the driver's in the loader's path.
struct Folders(Scratch);

impl Folders {
    /// None on hardware, whose libraries are not ours to move.
    fn new(name: &str) -> Option<Self> {
        if !emulated() {
            eprintln!("skipped: only the emulator's libraries can be put into other folders");
            return None;
        }
        let folders = Folders(Scratch::new(name));
        folders.link("driver", &["libcuda.so.1", "libcuda.so"]);
        Some(folders)
    }

    /// Links to libraries in a folder, by the names that they have in the emulator's.
    fn link(&self, folder: &str, files: &[&str]) -> PathBuf {
        let search = std::env::var("LD_LIBRARY_PATH").unwrap();
        let emulator = search.split(':').map(Path::new).find(|f| f.join("libnvrtc.so.13").exists()).unwrap();
        let folder = self.path(folder);
        fs::create_dir_all(&folder).unwrap();
        for file in files {
            symlink(fs::canonicalize(emulator.join(file)).unwrap(), folder.join(file)).unwrap();
        }
        folder
    }

    fn toolkit(&self, folder: &str) -> PathBuf {
        self.link(folder, &["libnvrtc.so.13", "libcublasLt.so.13"])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.0.join(name)
    }

    /// What [`finds`] says in a process of its own, whose current folder is this one.
    fn found(&self, environment: &[(&str, &str)]) -> String {
        let none = ["CUDA_PATH", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX", "XATTN_TEST_LIBRARIES"];
        let mut command = child("libraries::finds", &none.map(|name| (name, None)));
        command.env("LD_LIBRARY_PATH", self.path("driver")).current_dir(&self.0.0);
        let text = said(command.envs(environment.iter().copied()).output().unwrap());
        let answer = text.lines().filter_map(|line| line.strip_prefix("finds: "));
        answer.collect::<Vec<_>>().join("\n")
    }
}

const BOTH: &str = "NVRTC, cuBLASLt";

/// Opens a device, compiles a kernel and multiplies. Prints which libraries it had, or the error.
#[test]
#[ignore = "a process of its own"]
fn finds() {
    if !is_child() {
        return;
    }
    let mut options = CudaOptions::from_env().unwrap();
    options.cache = CudaCache::Off;
    options.cublaslt = CudaCublasLt::On;
    options.libraries = std::env::var_os("XATTN_TEST_LIBRARIES").into_iter().map(PathBuf::from).collect();
    let device = match Device::open_cuda(&options) {
        Ok(device) => device,
        Err(error) => return println!("\nfinds: {error}"),
    };
    let row = spec(DType::F32, &[1, 1, 1, 2]);
    let norm = Norm { kind: NormKind::L2, eps: 1e-12 };
    if let Err(error) = norm.prepare(&device, NormArgs::new(Source::From(row), None, None, row)) {
        return println!("\nfinds: {error}");
    }
    let (x, w) = (
        tensor(&device, &integers(64, 1), &[1, 8, 8], DType::F32),
        tensor(&device, &integers(64, 2), &[8, 8], DType::F32),
    );
    let mut out = Tensor::zeros(&device, DType::F32, &[1, 8, 8]).unwrap();
    let args = LinearArgs::new(x.view(), Matrix::View(w.view()), out.view_mut());
    Linear::default().run(&device, args).unwrap();
    let cublaslt = if counts().is_some_and(|(_, made)| made > 0) { ", cuBLASLt" } else { "" };
    println!("\nfinds: NVRTC{cublaslt}");
}

#[test]
fn full_paths_of_named_folders() {
    let Some(folders) = Folders::new("named") else { return };
    let text = |path: PathBuf| path.to_str().unwrap().to_string();
    folders.toolkit("toolkit/lib64");
    folders.toolkit("venv/lib/python3.11/site-packages/nvidia/cu13/lib");
    folders.toolkit("conda/lib");
    for (variable, folder) in
        [("CUDA_PATH", "toolkit"), ("CUDA_HOME", "toolkit"), ("VIRTUAL_ENV", "venv"), ("CONDA_PREFIX", "conda")]
    {
        assert_eq!(folders.found(&[(variable, &text(folders.path(folder)))]), BOTH, "{variable}");
    }
    // NVIDIA's wheels for CUDA 12 have a folder for each.
    folders.link("wheels/lib/python3.12/site-packages/nvidia/cublas/lib", &["libcublasLt.so.13"]);
    folders.link("wheels/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib", &["libnvrtc.so.13"]);
    assert_eq!(folders.found(&[("VIRTUAL_ENV", &text(folders.path("wheels")))]), BOTH);
    let libraries = text(folders.path("conda/lib"));
    assert_eq!(folders.found(&[("XATTN_TEST_LIBRARIES", &libraries)]), BOTH);
    assert_eq!(
        folders.found(&[("XATTN_TEST_LIBRARIES", "conda/lib")]),
        "device: libraries: expected absolute paths, got conda/lib"
    );
}

#[test]
fn neither_the_current_folder_nor_path() {
    let Some(folders) = Folders::new("current") else { return };
    folders.toolkit("");
    folders.toolkit("lib64");
    let here = folders.path("").to_str().unwrap().to_string();
    let said = folders.found(&[("PATH", &format!("{here}:{}", std::env::var("PATH").unwrap()))]);
    let words = "norm: no compiled norm_l2_head for sm_90a in no cache (switched off), and XATTN_CUDA_IMAGES names no folder; no NVRTC: looked for \
                 libnvrtc.so, libnvrtc.so.13, libnvrtc.so.12, libnvrtc.so.11.2 (";
    assert!(said.starts_with(&format!("cuda is unavailable: {words}")), "{said}");
    assert!(said.ends_with("; CUDA_PATH, CUDA_HOME, VIRTUAL_ENV, CONDA_PREFIX name no folder"), "{said}");
    // A relative folder is one of the current folder.
    let said = folders.found(&[("CUDA_HOME", ".")]);
    assert!(said.ends_with("; CUDA_PATH, CUDA_HOME, VIRTUAL_ENV, CONDA_PREFIX name no folder"), "{said}");
}

#[test]
fn folders_that_others_may_write_to_are_not_taken() {
    let Some(folders) = Folders::new("open") else { return };
    let (root, lib64) = (folders.path("toolkit"), folders.toolkit("toolkit/lib64"));
    fs::set_permissions(&lib64, fs::Permissions::from_mode(0o777)).unwrap();
    let said = folders.found(&[("CUDA_HOME", root.to_str().unwrap())]);
    let looked = format!("; nor in {0}/lib64, {0}/lib, {0}/targets/x86_64-linux/lib", root.display());
    let why = format!("; not taken: {}: belongs to user ", lib64.display());
    assert!(said.contains(&format!("{looked}{why}")) && said.contains(" and has mode 777; expected user "), "{said}");
    // The next one that is named does.
    folders.toolkit("conda/lib");
    let conda = folders.path("conda");
    let both = [("CUDA_HOME", root.to_str().unwrap()), ("CONDA_PREFIX", conda.to_str().unwrap())];
    assert_eq!(folders.found(&both), BOTH);
    // What a program names in so many words must do.
    let said =
        folders.found(&[("XATTN_TEST_LIBRARIES", lib64.to_str().unwrap()), ("CONDA_PREFIX", conda.to_str().unwrap())]);
    assert!(said.starts_with(&format!("{}: belongs to user ", lib64.display())), "{said}");
}
