//! Candle tensors as xattn views, and where calls run: on the host at once, on a GPU on candle's
//! own stream.

use candle_core::{CpuStorage, Error, Layout, Result};
use xattn::{View, ViewMut};

/// One of xattn's errors as one of candle's.
pub fn fault(error: xattn::Error) -> Error {
    Error::wrap(error)
}

/// A candle tensor in host memory, for reading. Strides and start offset are the layout's.
pub fn view<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<View<'a>> {
    let (at, dims, strides) = (layout.start_offset(), layout.dims(), layout.stride());
    let view = match storage {
        CpuStorage::F32(data) => View::strided(&data[at..], dims, strides),
        CpuStorage::F16(data) => View::strided(&data[at..], dims, strides),
        CpuStorage::BF16(data) => View::strided(&data[at..], dims, strides),
        CpuStorage::I32(data) => View::strided(&data[at..], dims, strides),
        CpuStorage::U32(data) => View::strided(&data[at..], dims, strides),
        _ => candle_core::bail!("xattn reads f32, f16, bf16, i32 and u32"),
    };
    view.map_err(fault)
}

/// A candle tensor in host memory, for writing.
pub fn view_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<ViewMut<'a>> {
    let (at, dims, strides) = (layout.start_offset(), layout.dims(), layout.stride());
    let view = match storage {
        CpuStorage::F32(data) => ViewMut::strided(&mut data[at..], dims, strides),
        CpuStorage::F16(data) => ViewMut::strided(&mut data[at..], dims, strides),
        CpuStorage::BF16(data) => ViewMut::strided(&mut data[at..], dims, strides),
        CpuStorage::I32(data) => ViewMut::strided(&mut data[at..], dims, strides),
        CpuStorage::U32(data) => ViewMut::strided(&mut data[at..], dims, strides),
        _ => candle_core::bail!("xattn writes f32, f16, bf16, i32 and u32"),
    };
    view.map_err(fault)
}

/// Candle tensors in CUDA memory.
#[cfg(feature = "cuda")]
pub mod cuda {
    use std::sync::Arc;

    use candle_core::cuda_backend::CudaDType;
    use candle_core::{CudaStorage, DType, Layout, Result, bail};
    use xattn::cudarc::driver::{CudaStream, SyncOnDrop};
    use xattn::{CudaMemory, CudaOptions, CudaRecorder, Device, Memory, Recorder, Spec, View, ViewMut};

    use super::fault;

    /// xattn's device over candle's context. No stream is made on it.
    pub fn device(candle: &candle_core::CudaDevice) -> Result<Device> {
        let options = CudaOptions::from_env().map_err(fault)?;
        Device::from_cuda(candle.cuda_stream().context().clone(), &options).map_err(fault)
    }

    /// Records on candle's stream.
    pub fn recorder(stream: &Arc<CudaStream>) -> Recorder<'_> {
        Recorder::Cuda(CudaRecorder::from_stream(stream))
    }

    fn spec(dtype: xattn::DType, layout: &Layout) -> Result<Spec> {
        Spec::strided(dtype, layout.dims(), layout.stride()).map_err(fault)
    }

    /// The part of a region from the layout's start offset on.
    fn from_offset(memory: CudaMemory, dtype: xattn::DType, layout: &Layout) -> Memory {
        let skip = (layout.start_offset() * dtype.size()) as u64;
        Memory::Cuda(CudaMemory::new(memory.address() + skip, memory.bytes() - skip))
    }

    fn read<'a, T: CudaDType + 'a>(
        storage: &'a CudaStorage,
        stream: &'a CudaStream,
    ) -> Result<(CudaMemory, SyncOnDrop<'a>)> {
        Ok(CudaMemory::read(storage.as_cuda_slice::<T>()?, stream))
    }

    fn write<'a, T: CudaDType + 'a>(
        storage: &'a mut CudaStorage,
        stream: &'a CudaStream,
    ) -> Result<(CudaMemory, SyncOnDrop<'a>)> {
        Ok(CudaMemory::write(storage.as_cuda_slice_mut::<T>()?, stream))
    }

    /// For reading. Keep the guard until the op is enqueued.
    pub fn view<'a>(
        storage: &'a CudaStorage,
        layout: &Layout,
        stream: &'a CudaStream,
    ) -> Result<(View<'a>, SyncOnDrop<'a>)> {
        use candle_core::backend::BackendStorage;
        let (dtype, (memory, guard)) = match storage.dtype() {
            DType::F32 => (xattn::DType::F32, read::<f32>(storage, stream)?),
            DType::F16 => (xattn::DType::F16, read::<half::f16>(storage, stream)?),
            DType::BF16 => (xattn::DType::BF16, read::<half::bf16>(storage, stream)?),
            DType::I32 => (xattn::DType::I32, read::<i32>(storage, stream)?),
            DType::U32 => (xattn::DType::U32, read::<u32>(storage, stream)?),
            other => bail!("xattn reads f32, f16, bf16, i32 and u32, not {other:?}"),
        };
        let spec = spec(dtype, layout)?;
        // SAFETY: candle's layout lies within its storage, which the borrow keeps alive until the
        // op is enqueued; candle frees on the same stream, so that the memory lives until the
        // stream has passed the op.
        Ok((unsafe { View::from_raw(spec, from_offset(memory, dtype, layout)) }, guard))
    }

    /// For writing. Keep the guard until the op is enqueued.
    pub fn view_mut<'a>(
        storage: &'a mut CudaStorage,
        layout: &Layout,
        stream: &'a CudaStream,
    ) -> Result<(ViewMut<'a>, SyncOnDrop<'a>)> {
        use candle_core::backend::BackendStorage;
        let (dtype, (memory, guard)) = match storage.dtype() {
            DType::F32 => (xattn::DType::F32, write::<f32>(storage, stream)?),
            DType::F16 => (xattn::DType::F16, write::<half::f16>(storage, stream)?),
            DType::BF16 => (xattn::DType::BF16, write::<half::bf16>(storage, stream)?),
            DType::I32 => (xattn::DType::I32, write::<i32>(storage, stream)?),
            other => bail!("xattn writes f32, f16, bf16 and i32, not {other:?}"),
        };
        let spec = spec(dtype, layout)?;
        // SAFETY: as for `view`, and the borrow is exclusive.
        Ok((unsafe { ViewMut::from_raw(spec, from_offset(memory, dtype, layout)) }, guard))
    }
}
