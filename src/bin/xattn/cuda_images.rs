//! `xattn cuda-images`.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use xattn::Error;
use xattn::backend::cuda::{compile_kernels, kernels};

/// Compile every CUDA kernel ahead of time, with NVRTC and without a device.
///
/// The folder is for XATTN_CUDA_IMAGES: while running, where there is no NVRTC; or while building with the feature cuda-aot, which embeds it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  xattn cuda-images --arch sm_80,sm_90a images
  xattn cuda-images --sources texts              the texts only, one .cu file per instance: nvcc compiles them too")]
pub struct CudaImages {
    /// Architectures, separated by commas; Hopper is sm_90a
    #[arg(long, value_name = "LIST", value_delimiter = ',', required_unless_present = "sources")]
    arch: Vec<String>,
    /// Write texts instead of images
    #[arg(long, conflicts_with = "arch")]
    sources: bool,
    /// Where to
    folder: PathBuf,
}

impl CudaImages {
    /// Prints a line per file.
    pub fn run(&self) -> Result<ExitCode, Error> {
        let mut out = std::io::stdout().lock();
        // A closed pipe is the reader's decision.
        if self.sources {
            fs::create_dir_all(&self.folder).map_err(|error| Error::file(&self.folder, error))?;
            let kernels = kernels();
            for kernel in &kernels {
                let path = self.folder.join(format!("{}.cu", kernel.entry));
                fs::write(&path, &kernel.text).map_err(|error| Error::file(&path, error))?;
                let (threads, shared) = (kernel.threads, kernel.shared_bytes);
                let _ = writeln!(out, "{} threads {threads} shared_bytes {shared}", path.display());
            }
            let _ = writeln!(out, "{} texts", kernels.len());
            return Ok(ExitCode::SUCCESS);
        }
        let archs: Vec<&str> = self.arch.iter().map(String::as_str).collect();
        let count = compile_kernels(&archs, &self.folder, |path| {
            let _ = writeln!(out, "{}", path.display());
        })?;
        let _ = writeln!(out, "{count} images");
        Ok(ExitCode::SUCCESS)
    }
}
