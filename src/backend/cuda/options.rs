//! How a device is opened: what a caller or the environment says.

use std::path::PathBuf;

use super::{CudaAttentionVariant, CudaCache, CudaCublasLt, CudaLinear};
use crate::{Error, Result, trust};

/// How to open a device.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CudaOptions {
    /// The device's ordinal. Default: 0.
    pub ordinal: usize,
    /// A folder of compiled kernels, as `xattn cuda-images` writes it. Default: none.
    ///
    /// Kernels are code: the folder, its parents and the files must belong to the process's user or
    /// to root, and nobody else may write to them (a parent with the sticky bit will do). Opening a
    /// device with another folder is an error; so is preparing an op with another file. Owners and
    /// permissions are checked on Unix only.
    pub images: Option<PathBuf>,
    /// Folders, by absolute path, in which NVRTC and cuBLASLt are looked for before the places that
    /// `docs/cuda.md` lists. Under the rule of `images`. Default: none.
    pub libraries: Vec<PathBuf>,
    /// Where compiled kernels are kept between processes. Default: the user's cache folder.
    pub cache: CudaCache,
    /// Wait after every launch, so that a fault names the op that caused it.
    pub synchronise: bool,
    /// Programmatic dependent launch: a kernel may be placed on the device while the one before it
    /// on the stream still runs, and waits there for its end. No result changes. Hopper and later
    /// only: elsewhere opening the device is refused. Default: off, until a device has shown what
    /// it saves.
    pub dependent_launch: bool,
    /// Tell profilers and debuggers which line an instruction belongs to.
    pub line_info: bool,
    /// Which kernel runs every `attention`, for tests and profilers; calls that it cannot serve are
    /// refused. Default: the backend's choice.
    pub attention: Option<CudaAttentionVariant>,
    /// Whether cuBLASLt computes matrix products (GEMMs).
    pub cublaslt: CudaCublasLt,
    /// Which of our GEMM kernels runs. Where one is named, cuBLASLt does not.
    pub linear: CudaLinear,
}

impl CudaOptions {
    /// What the environment says: `XATTN_CUDA_DEVICE` (an ordinal), `XATTN_CUDA_IMAGES` (a folder),
    /// `XATTN_CUDA_CACHE` (a folder, or `off`), `XATTN_CUDA_SYNC` (`1`),
    /// `XATTN_CUDA_DEPENDENT_LAUNCH` (`1`), `XATTN_CUDA_LINE_INFO` (`1`), `XATTN_CUDA_ATTENTION`
    /// (the name of a [`CudaAttentionVariant`]), `XATTN_CUDA_CUBLASLT` (`auto`, `on`, `off`,
    /// `two-pass`), `XATTN_CUDA_LINEAR` (`auto`, `any`, `64`, `64-deep`, `128`, `hopper`,
    /// `hopper-turns`).
    ///
    /// The environment does not decide what a process executes that has rights which its user lacks
    /// (a setuid or setgid program, one with capabilities): there `XATTN_CUDA_IMAGES`,
    /// `XATTN_CUDA_CACHE`, the user's cache folder and the variables that name a toolkit are
    /// ignored, and [`DeviceInfo::details`](crate::DeviceInfo::details) says so.
    ///
    /// # Errors
    /// An ordinal that is no number, a word that is none of those, a variant of another name.
    pub fn from_env() -> Result<Self> {
        let variable = |name| std::env::var_os(name).filter(|text| !text.is_empty());
        let flag = |name| variable(name).is_some_and(|text| text == "1");
        let ordinal = match variable("XATTN_CUDA_DEVICE") {
            None => 0,
            Some(text) => text
                .to_str()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| Error::argument("device", "XATTN_CUDA_DEVICE", "an ordinal", text.to_string_lossy()))?,
        };
        Ok(CudaOptions {
            ordinal,
            images: trust::variable("XATTN_CUDA_IMAGES").map(Into::into),
            libraries: Vec::new(),
            cache: match trust::variable("XATTN_CUDA_CACHE") {
                None => CudaCache::User,
                Some(text) if text == "off" => CudaCache::Off,
                Some(folder) => CudaCache::Folder(folder.into()),
            },
            synchronise: flag("XATTN_CUDA_SYNC"),
            dependent_launch: flag("XATTN_CUDA_DEPENDENT_LAUNCH"),
            line_info: flag("XATTN_CUDA_LINE_INFO"),
            attention: match variable("XATTN_CUDA_ATTENTION") {
                None => None,
                Some(text) => Some(text.to_string_lossy().parse()?),
            },
            cublaslt: parse_word("XATTN_CUDA_CUBLASLT", CudaCublasLt::WORDS)?,
            linear: parse_word("XATTN_CUDA_LINEAR", CudaLinear::WORDS)?,
        })
    }
}

/// The value of the word in an environment variable; the first one when there is none.
fn parse_word<T: Copy>(name: &'static str, words: &[(&str, T)]) -> Result<T> {
    let text = std::env::var_os(name).unwrap_or_default();
    let word = if text.is_empty() { words[0].0.into() } else { text.to_string_lossy() };
    words.iter().find(|(known, _)| *known == word).map(|&(_, value)| value).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(known, _)| *known).collect();
        Error::argument("device", name, known.join(", "), word)
    })
}
