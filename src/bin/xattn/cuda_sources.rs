//! `xattn cuda-sources`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use xattn::{CudaKernel, Error};

use crate::output::Output;

/// Write the text of every CUDA kernel to a folder, and `kernels.json`: name, op, threads, shared
/// memory of each, and the only architecture that it compiles for where there is one.
#[derive(Args)]
pub struct CudaSources {
    /// The folder, which is made where it is missing
    folder: PathBuf,
}

impl CudaSources {
    /// Writes the files.
    pub fn run(&self) -> Result<ExitCode, Error> {
        let write = |name: &str, text: &str| Output::new(&self.folder.join(name))?.write(text.as_bytes());
        std::fs::create_dir_all(&self.folder).map_err(|e| Error::file(&self.folder, e))?;
        let mut list = Vec::new();
        for kernel in CudaKernel::all() {
            write(&format!("{}.cu", kernel.entry), &kernel.text)?;
            list.push(json!({
                "entry": kernel.entry, "op": kernel.op, "threads": kernel.threads, "shared_bytes": kernel.shared_bytes,
                "only": kernel.only,
            }));
        }
        write("kernels.json", &format!("{:#}\n", serde_json::Value::from(list)))?;
        Ok(ExitCode::SUCCESS)
    }
}
