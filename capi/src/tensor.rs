//! Operands: C's descriptions as layouts and views.

use std::mem::{MaybeUninit, size_of};

use xattn::{DType, Device, HostMemory, MAX_RANK, Memory, Spec, View, ViewMut};

use crate::status::{Fault, Result};

/// Element types.
#[repr(i32)]
pub enum xattn_dtype {
    /// 64-bit reals; only the reference computes with them.
    XATTN_F64 = 0,
    /// 32-bit reals.
    XATTN_F32 = 1,
    /// IEEE half precision.
    XATTN_F16 = 2,
    /// bfloat16.
    XATTN_BF16 = 3,
    /// Signed integers: media indices, token ids.
    XATTN_I32 = 4,
    /// Unsigned integers: lengths, slots, offsets, bits, media plans.
    XATTN_U32 = 5,
}

/// Dimensions that a `xattn_tensor` has room for.
pub const XATTN_MAX_RANK: usize = 8;

/// A tensor in memory of the caller's. Host memory for a host device, a CUDA address for a CUDA
/// device.
///
/// `struct_size` is `sizeof(xattn_tensor)`. The memory stays the caller's and must stay alive until
/// the call, or the work that it enqueued on a stream, has finished.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_tensor {
    /// `sizeof(xattn_tensor)`.
    pub struct_size: usize,
    /// The first element, aligned to the element's size. May be null if the tensor has no elements.
    pub data: *mut std::ffi::c_void,
    /// Bytes of memory from `data` on: at least the span of shape and strides.
    pub bytes: u64,
    /// A `xattn_dtype`.
    pub dtype: i32,
    /// Dimensions.
    pub rank: u32,
    /// Extents, outermost first.
    pub shape: [u64; XATTN_MAX_RANK],
    /// `rank` strides in elements, or null: without gaps. 0 repeats an input.
    pub strides: *const u64,
}

/// Structs that begin with their size. A caller may have been compiled with an older header: what
/// it lacks counts as zeros.
///
/// # Safety
/// `#[repr(C)]`, begins with a `usize` that is its size, and all zeros is a valid value of every
/// later field.
pub(crate) unsafe trait Versioned: Copy {
    /// The C name.
    const NAME: &'static str;
    /// Size in version 1.
    const FIRST_SIZE: usize;
}

// SAFETY: `#[repr(C)]`, size first; integers and pointers.
unsafe impl Versioned for xattn_tensor {
    const NAME: &'static str = "xattn_tensor";
    const FIRST_SIZE: usize = size_of::<xattn_tensor>();
}

/// Copies a struct of the caller's, whatever version it was compiled with.
///
/// # Safety
/// `at` is null or points to a `usize` that is followed by as many bytes, itself included, as it
/// says.
pub(crate) unsafe fn read<T: Versioned>(call: &str, argument: &str, at: *const T) -> Result<T> {
    if at.is_null() {
        return Err(Fault::argument(call, argument, format!("a {}", T::NAME), "null"));
    }
    // SAFETY: the caller's promise.
    let size = unsafe { at.cast::<usize>().read_unaligned() };
    let own = size_of::<T>();
    if !(T::FIRST_SIZE..=own).contains(&size) {
        let expected = if own == T::FIRST_SIZE { own.to_string() } else { format!("{} to {own}", T::FIRST_SIZE) };
        let expected = format!("struct_size {expected} (sizeof({}))", T::NAME);
        return Err(Fault::argument(call, argument, expected, size));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `size` bytes are there (the caller's promise) and fit; zeros are valid for the rest
    // (`Versioned`).
    unsafe {
        std::ptr::copy_nonoverlapping(at.cast::<u8>(), value.as_mut_ptr().cast(), size);
        Ok(value.assume_init())
    }
}

/// As [`read`], and null is absence.
///
/// # Safety
/// As [`read`].
pub(crate) unsafe fn read_optional<T: Versioned>(call: &str, argument: &str, at: *const T) -> Result<Option<T>> {
    if at.is_null() {
        return Ok(None);
    }
    // SAFETY: passed on.
    unsafe { read(call, argument, at) }.map(Some)
}

/// The element type with this number.
pub(crate) fn dtype(call: &str, argument: &str, number: i32) -> Result<DType> {
    Ok(match number {
        0 => DType::F64,
        1 => DType::F32,
        2 => DType::F16,
        3 => DType::BF16,
        4 => DType::I32,
        5 => DType::U32,
        other => return Err(Fault::argument(call, argument, "a xattn_dtype (0 to 5)", other)),
    })
}

/// An operand, checked as far as numbers go.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    pub spec: Spec,
    data: *mut u8,
}

impl Operand {
    /// Checks a tensor of the caller's.
    ///
    /// # Safety
    /// As [`read`]; `strides` is null or points to `rank` numbers.
    pub unsafe fn read(call: &str, argument: &str, at: *const xattn_tensor) -> Result<Self> {
        // SAFETY: passed on.
        let tensor = unsafe { read(call, argument, at) }?;
        // SAFETY: passed on.
        unsafe { Operand::of(call, argument, &tensor) }
    }

    /// As [`Operand::read`], and null is absence.
    ///
    /// # Safety
    /// As [`Operand::read`].
    pub unsafe fn read_optional(call: &str, argument: &str, at: *const xattn_tensor) -> Result<Option<Self>> {
        if at.is_null() {
            return Ok(None);
        }
        // SAFETY: passed on.
        unsafe { Operand::read(call, argument, at) }.map(Some)
    }

    /// SAFETY: `strides` is null or points to `rank` numbers.
    unsafe fn of(call: &str, argument: &str, tensor: &xattn_tensor) -> Result<Self> {
        let refuse = |expected: String, actual: String| Err(Fault::argument(call, argument, expected, actual));
        let dtype = dtype(call, argument, tensor.dtype)?;
        let rank = tensor.rank as usize;
        let most = MAX_RANK.min(XATTN_MAX_RANK);
        if rank > most {
            return refuse(format!("rank at most {most}"), rank.to_string());
        }
        let narrow = |numbers: &[u64]| -> Result<Vec<usize>> {
            let number = |&n: &u64| {
                usize::try_from(n).map_err(|_| Fault::argument(call, argument, "extents that fit this machine", n))
            };
            numbers.iter().map(number).collect()
        };
        let shape = narrow(&tensor.shape[..rank])?;
        let named = |error: xattn::Error| Fault { text: format!("{call}: {argument}: {error}"), ..error.into() };
        let spec = if tensor.strides.is_null() {
            Spec::contiguous(dtype, &shape)
        } else {
            // SAFETY: the caller's promise.
            let strides = narrow(unsafe { std::slice::from_raw_parts(tensor.strides, rank) })?;
            Spec::strided(dtype, &shape, &strides)
        };
        let spec = spec.map_err(named)?;
        let data: *mut u8 = tensor.data.cast();
        if tensor.bytes < spec.span_bytes() as u64 {
            return refuse(format!("at least {} bytes for {spec}", spec.span_bytes()), tensor.bytes.to_string());
        }
        if data.is_null() && spec.span_bytes() > 0 {
            return refuse(format!("an address for {spec}"), "null".into());
        }
        if data.align_offset(dtype.size()) != 0 {
            return refuse(format!("an address that is a multiple of {}", dtype.size()), format!("{data:p}"));
        }
        Ok(Operand { spec, data })
    }

    fn memory(&self, device: &Device) -> xattn::Result<Memory> {
        memory(device, self.data, self.spec.span_bytes())
    }

    /// A view of the caller's memory.
    ///
    /// # Safety
    /// The memory is as the caller described it, and stays alive while the view or the work
    /// enqueued with it is in use.
    pub unsafe fn view<'a>(&self, device: &Device) -> xattn::Result<View<'a>> {
        // SAFETY: passed on; the span was compared with the bytes, the address with the alignment.
        Ok(unsafe { View::from_raw(self.spec, self.memory(device)?) })
    }

    /// A view for writing.
    ///
    /// # Safety
    /// As [`Operand::view`], and nothing else uses the memory meanwhile.
    pub unsafe fn view_mut<'a>(&self, device: &Device) -> xattn::Result<ViewMut<'a>> {
        // SAFETY: as above.
        Ok(unsafe { ViewMut::from_raw(self.spec, self.memory(device)?) })
    }

    /// The elements in host memory, for weights. Strides must be those of a gapless tensor.
    ///
    /// # Safety
    /// The memory is as the caller described it during `'a`.
    pub unsafe fn host<'a>(&self, call: &str, argument: &str) -> Result<xattn::HostTensor<'a>> {
        if !self.spec.is_contiguous() {
            return Err(Fault::argument(call, argument, "a tensor without gaps", self.spec));
        }
        let bytes: &'a [u8] = match self.spec.span_bytes() {
            0 => &[],
            // SAFETY: not null and that many bytes long (checked in `of`), alive (the caller's
            // promise).
            n => unsafe { std::slice::from_raw_parts(self.data, n) },
        };
        Ok(xattn::HostTensor::from_bytes(self.spec.dtype(), self.spec.shape(), bytes)?)
    }
}

/// A region of the device's kind of memory.
pub(crate) fn memory(device: &Device, data: *mut u8, bytes: usize) -> xattn::Result<Memory> {
    use xattn::{DeviceKind, Error};
    match device.kind() {
        DeviceKind::Cpu | DeviceKind::Reference => Ok(Memory::Host(HostMemory::new(data, bytes))),
        #[cfg(feature = "cuda")]
        DeviceKind::Cuda => Ok(Memory::Cuda(xattn::CudaMemory::new(data.addr() as u64, bytes as u64))),
        other => Err(Error::argument("tensor", "device", "one whose memory C can name (cpu, reference, cuda)", other)),
    }
}
