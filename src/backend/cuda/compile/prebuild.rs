//! Every kernel compiled without a device: a folder of cubins that ships with a program.

use std::fs;
use std::path::Path;

use super::cache::{Image, Label};
use super::image::file_name;
use super::nvrtc::{Kind, nvrtc};
use super::{CudaKernel, sha256};
use crate::backend::cuda::instances;
use crate::backend::cuda::runtime::arch::Arch;
use crate::backend::cuda::runtime::probe;
use crate::{Error, Result};

impl CudaKernel {
    /// Compiles every kernel instance for each of `archs` (`sm_80`, `sm_90a`) that it serves into a
    /// folder, for `XATTN_CUDA_IMAGES` or the feature `cuda-aot`. Needs NVRTC, but no device.
    /// `note` is told of each file. Returns how many there are.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without NVRTC, an architecture that it does not know, a folder that
    /// cannot be written.
    pub fn compile_all(archs: &[&str], folder: &Path, mut note: impl FnMut(&Path)) -> Result<usize> {
        let nvrtc = nvrtc(&[]).map_err(probe::unavailable)?;
        let archs: Vec<Arch> = archs.iter().map(|arch| arch.parse()).collect::<Result<_>>()?;
        fs::create_dir_all(folder).map_err(|error| Error::file(folder, error))?;
        let mut count = 0;
        for source in instances() {
            let text = source.text();
            let hash = sha256::hash(text.as_bytes());
            for &arch in archs.iter().filter(|&&arch| source.serves(arch)) {
                let bytes = nvrtc.compile(&source, &text, arch, Kind::Cubin, false)?;
                let path = folder.join(file_name(&source, arch));
                let label = Label { arch: arch.to_string(), source: hash };
                Image { kind: Kind::Cubin, bytes }.write(&path, &label).map_err(|error| Error::file(&path, error))?;
                note(&path);
                count += 1;
            }
        }
        Ok(count)
    }
}
