//! Devices and prepared weights.

use std::ffi::{CStr, c_char, c_void};
use std::num::NonZeroUsize;
use std::sync::Arc;

use xattn::{CpuOptions, Device, DeviceKind, HostTensor, Weight, WeightSource};

use crate::handle;
use crate::status::{Fault, Result, expect_out, guard, xattn_status};
use crate::tensor::{Operand, dtype, xattn_tensor};

/// Where ops run. Any number of threads may use one device.
pub struct xattn_device {
    _opaque: [u8; 0],
}

/// Behind a `xattn_device`.
pub(crate) struct DeviceHandle(pub Device);

impl handle::Kind for DeviceHandle {
    const NAME: &'static str = "xattn_device";
}

/// A constant matrix, packed for one device.
pub struct xattn_weight {
    _opaque: [u8; 0],
}

/// Behind a `xattn_weight`.
pub(crate) struct WeightHandle(pub Arc<Weight>);

impl handle::Kind for WeightHandle {
    const NAME: &'static str = "xattn_weight";
}

/// Reads a text of the caller's.
///
/// # Safety
/// Null, or a C string.
pub(crate) unsafe fn text<'a>(call: &str, argument: &str, at: *const c_char) -> Result<&'a str> {
    if at.is_null() {
        return Err(Fault::argument(call, argument, "a text", "null"));
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { CStr::from_ptr(at) };
    bytes.to_str().map_err(|_| Fault::argument(call, argument, "UTF-8", bytes.to_string_lossy()))
}

/// Opens a device by the name of its kind: "cpu", "reference" (plain f64 loops that judge the
/// others), "cuda".
///
/// # Safety
/// `kind` is null or a C string; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_device_open(kind: *const c_char, out: *mut *mut xattn_device) -> xattn_status {
    const CALL: &str = "xattn_device_open";
    guard(|| {
        expect_out(CALL, out)?;
        // SAFETY: passed on.
        let kind: DeviceKind = unsafe { text(CALL, "kind", kind) }?.parse()?;
        let device = Device::open(kind)?;
        // SAFETY: not null; the caller's promise.
        unsafe { out.write(handle::register(DeviceHandle(device))?) };
        Ok(())
    })
}

/// Opens the processor with `threads` threads of its own; 1 is the calling thread alone. Results
/// have the same bits for any number. The device of `xattn_device_open` with "cpu" has one thread
/// per core, shared with everything that uses the library's default threads.
///
/// After `fork()` without `exec`, a device that the parent opened runs on the calling thread of the
/// child, with the same bits; devices of a GPU answer `XATTN_STATUS_UNAVAILABLE` there.
///
/// # Safety
/// `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_device_open_cpu(threads: u32, out: *mut *mut xattn_device) -> xattn_status {
    const CALL: &str = "xattn_device_open_cpu";
    guard(|| {
        expect_out(CALL, out)?;
        let threads = NonZeroUsize::new(threads as usize)
            .ok_or_else(|| Fault::argument(CALL, "threads", "at least 1", threads))?;
        let mut options = CpuOptions::default();
        options.threads = Some(threads);
        let device = Device::cpu_with(&options)?;
        // SAFETY: not null; the caller's promise.
        unsafe { out.write(handle::register(DeviceHandle(device))?) };
        Ok(())
    })
}

/// Uses an engine's CUDA context (`CUcontext`), in which the engine's addresses and streams live.
/// No stream is created on it. A library that was built without CUDA says so.
///
/// # Safety
/// `context` is null or a live context, which stays so until everything that was made with the
/// device is freed; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_device_from_cuda(context: *mut c_void, out: *mut *mut xattn_device) -> xattn_status {
    const CALL: &str = "xattn_device_from_cuda";
    guard(|| {
        expect_out(CALL, out)?;
        if context.is_null() {
            return Err(Fault::argument(CALL, "context", "a CUcontext", "null"));
        }
        // SAFETY: passed on.
        let device = unsafe { from_cuda(context) }?;
        // SAFETY: not null; the caller's promise.
        unsafe { out.write(handle::register(DeviceHandle(device))?) };
        Ok(())
    })
}

/// SAFETY: as [`xattn_device_from_cuda`].
#[cfg(feature = "cuda")]
unsafe fn from_cuda(context: *mut c_void) -> Result<Device> {
    // SAFETY: passed on.
    Ok(unsafe { Device::from_raw_cuda(context.cast(), &xattn::CudaOptions::from_env()?) }?)
}

/// SAFETY: none is needed: the context is not looked at.
#[cfg(not(feature = "cuda"))]
unsafe fn from_cuda(_: *mut c_void) -> Result<Device> {
    let reason = "this build of xattn does not contain it: the feature `cuda` is off".into();
    Err(xattn::Error::Unavailable { backend: "cuda", reason }.into())
}

/// Writes name and properties of a device for people, as many bytes as fit `capacity`, with a zero
/// at the end.
///
/// # Safety
/// `buffer` is null or has room for `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_device_describe(
    device: *const xattn_device,
    buffer: *mut c_char,
    capacity: usize,
) -> xattn_status {
    const CALL: &str = "xattn_device_describe";
    guard(|| {
        let device = handle::find::<DeviceHandle, _>(CALL, "device", device)?;
        if buffer.is_null() || capacity == 0 {
            return Err(Fault::argument(CALL, "buffer", "room for at least one byte", "none"));
        }
        let info = device.0.info();
        let full = format!("{}: {} ({})", info.kind, info.name, info.details).replace('\0', "\u{fffd}");
        let mut end = full.len().min(capacity - 1);
        while !full.is_char_boundary(end) {
            end -= 1;
        }
        // SAFETY: `end` bytes and the zero fit `capacity`; the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(full.as_ptr(), buffer.cast(), end);
            buffer.add(end).write(0);
        }
        Ok(())
    })
}

/// Frees a device. What was prepared on it stays usable. Null is fine.
#[unsafe(no_mangle)]
pub extern "C" fn xattn_device_free(device: *mut xattn_device) -> xattn_status {
    guard(|| handle::free::<DeviceHandle, _>("xattn_device_free", device))
}

/// Handles of every kind that were made and not freed: 0 at the end of a program that leaks none.
#[unsafe(no_mangle)]
pub extern "C" fn xattn_live_handles() -> usize {
    handle::count()
}

/// Packs constant matrices `[n_i, K]` for `linear`, stacked by rows, stored as `dtype`. With
/// `up_count` > 0, the matrices of `parts` are the gate rows of a SwiGLU and those of `up` the rows
/// that the gate multiplies, equally many. All in host memory, without gaps.
///
/// # Safety
/// `parts` points to `part_count` pointers to tensors, `up` to `up_count`; `out` is null or may be
/// written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_weight_prepare(
    device: *const xattn_device,
    parts: *const *const xattn_tensor,
    part_count: usize,
    up: *const *const xattn_tensor,
    up_count: usize,
    dtype: i32,
    out: *mut *mut xattn_weight,
) -> xattn_status {
    const CALL: &str = "xattn_weight_prepare";
    guard(|| {
        let device = handle::find::<DeviceHandle, _>(CALL, "device", device)?;
        expect_out(CALL, out)?;
        let dtype = self::dtype(CALL, "dtype", dtype)?;
        // SAFETY: passed on.
        let source = unsafe {
            WeightSource { parts: matrices(CALL, "parts", parts, part_count)?, up: matrices(CALL, "up", up, up_count)? }
        };
        let weight = Weight::prepare(&device.0, &source, dtype)?;
        // SAFETY: not null; the caller's promise.
        unsafe { out.write(handle::register(WeightHandle(Arc::new(weight)))?) };
        Ok(())
    })
}

/// SAFETY: `at` points to `count` pointers to tensors.
unsafe fn matrices<'a>(
    call: &str,
    argument: &str,
    at: *const *const xattn_tensor,
    count: usize,
) -> Result<Vec<HostTensor<'a>>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if at.is_null() {
        return Err(Fault::argument(call, argument, format!("{count} matrices"), "null"));
    }
    // SAFETY: the caller's promise.
    let list = unsafe { std::slice::from_raw_parts(at, count) };
    // SAFETY: the caller's promise.
    list.iter().map(|&tensor| unsafe { Operand::read(call, argument, tensor)?.host(call, argument) }).collect()
}

/// Frees a prepared weight. Bridges and calls that hold it keep it. Null is fine.
#[unsafe(no_mangle)]
pub extern "C" fn xattn_weight_free(weight: *mut xattn_weight) -> xattn_status {
    guard(|| handle::free::<WeightHandle, _>("xattn_weight_free", weight))
}
