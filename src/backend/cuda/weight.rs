//! Matrices prepared for `linear`: row-major, as they come.

use super::memory::Allocation;
use super::{Cuda, CudaMemory};
use crate::tensor::HostTensor;
use crate::{DType, Result, WeightSource};

/// A prepared matrix `[N, K]`, or a pair of them: gate rows, then up rows.
pub(crate) struct PreparedWeight {
    memory: Allocation,
}

impl PreparedWeight {
    pub(super) fn pack(backend: &Cuda, source: &WeightSource<'_>, dtype: DType) -> Result<Self> {
        let mut bytes = Vec::new();
        for part in source.parts.iter().chain(&source.up) {
            bytes.extend_from_slice(HostTensor::to_dtype(part, dtype)?.bytes());
        }
        let memory = backend.allocate_region(bytes.len(), "a weight")?;
        backend.write_region(&memory.memory(), &bytes)?;
        Ok(PreparedWeight { memory })
    }

    pub(super) fn memory(&self) -> CudaMemory {
        self.memory.memory()
    }
}
