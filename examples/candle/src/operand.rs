//! Candle tensors as xattn views, and where calls run: on the host at once, on a GPU on candle's own stream.

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
