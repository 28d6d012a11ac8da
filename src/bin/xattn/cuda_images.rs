//! `xattn cuda-images`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use xattn::{CudaKernel, Error};

use crate::print::Printer;

/// Compile every CUDA kernel ahead of time, with NVRTC and without a device.
///
/// The folder is for XATTN_CUDA_IMAGES: while running, where there is no NVRTC; or while building
/// with the feature cuda-aot, which embeds it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  xattn cuda-images --arch sm_80,sm_90a images")]
pub struct CudaImages {
    /// Architectures, separated by commas; Hopper is sm_90a
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true)]
    arch: Vec<String>,
    /// Where to
    folder: PathBuf,
}

impl CudaImages {
    /// Prints a line per file.
    pub fn run(&self) -> Result<ExitCode, Error> {
        let mut out = Printer::new();
        let mut printed = Ok(());
        let archs: Vec<&str> = self.arch.iter().map(String::as_str).collect();
        let count = CudaKernel::compile_all(&archs, &self.folder, |path| {
            if printed.is_ok() {
                printed = out.line(xattn::escaped(path.display()));
            }
        })?;
        printed?;
        out.line(format!("{count} images"))?;
        Ok(ExitCode::SUCCESS)
    }
}
