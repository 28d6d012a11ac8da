//! Borrowed operands.

use std::marker::PhantomData;

use super::Spec;
use crate::backend::{Backend, Cuda, Wgpu};
use crate::{Element, Error, Result};

/// A region of memory somewhere, as backends see it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Memory {
    /// Memory of this process: the `reference` and `cpu` backends.
    Host(HostMemory),
    /// Memory of a wgpu device.
    Wgpu(crate::backend::WgpuMemory),
    /// Memory of a CUDA device.
    Cuda(crate::backend::CudaMemory),
}

impl Memory {
    /// The word for messages.
    pub(crate) fn place(&self) -> &'static str {
        match self {
            Memory::Host(_) => "host",
            Memory::Wgpu(_) => "wgpu",
            Memory::Cuda(_) => "cuda",
        }
    }

    /// Where the region begins: an address, or an offset in a buffer whose own beginning is aligned.
    #[allow(unreachable_code, reason = "absent backends are uninhabited")]
    pub(crate) fn address_bits(&self) -> usize {
        match self {
            Memory::Host(m) => <crate::backend::Cpu as Backend>::address_bits(m),
            Memory::Wgpu(m) => <Wgpu as Backend>::address_bits(m),
            Memory::Cuda(m) => <Cuda as Backend>::address_bits(m),
        }
    }

    /// Bytes of the region.
    #[allow(unreachable_code, reason = "absent backends are uninhabited")]
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Memory::Host(m) => m.bytes() as u64,
            Memory::Wgpu(m) => <Wgpu as Backend>::region_bytes(m),
            Memory::Cuda(m) => <Cuda as Backend>::region_bytes(m),
        }
    }

    /// Whether equal positions ([`Memory::address_bits`]) of both are the same memory.
    pub(crate) fn is_with(&self, other: &Memory) -> bool {
        match (self, other) {
            (Memory::Host(_), Memory::Host(_)) => true,
            (Memory::Wgpu(a), Memory::Wgpu(b)) => <Wgpu as Backend>::is_with(a, b),
            (Memory::Cuda(a), Memory::Cuda(b)) => <Cuda as Backend>::is_with(a, b),
            _ => false,
        }
    }

    /// The part that begins `bytes` further on.
    #[allow(unreachable_code, reason = "absent backends are uninhabited")]
    pub(crate) fn skip(&self, bytes: usize) -> Memory {
        match self {
            Memory::Host(m) => Memory::Host(m.skip(bytes)),
            Memory::Wgpu(m) => Memory::Wgpu(<Wgpu as Backend>::skip(m, bytes)),
            Memory::Cuda(m) => Memory::Cuda(<Cuda as Backend>::skip(m, bytes)),
        }
    }
}

/// An address range of this process.
#[derive(Clone, Copy, Debug)]
pub struct HostMemory {
    address: *mut u8,
    bytes: usize,
}

// SAFETY: an address and a length; every use of the memory behind it is governed by the view that carries it.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Names `bytes` bytes at `address`.
    pub fn new(address: *mut u8, bytes: usize) -> Self {
        HostMemory { address, bytes }
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn skip(&self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        HostMemory { address: self.address.wrapping_add(bytes), bytes: self.bytes - bytes }
    }
}

/// A layout and the memory it describes: what backends receive. The holder guarantees lifetime and exclusivity.
#[derive(Clone, Debug)]
pub(crate) struct Bound<M = Memory> {
    pub spec: Spec,
    pub memory: M,
}

impl Bound<HostMemory> {
    /// Address of the first element.
    pub(crate) fn pointer<T: Element>(&self) -> *mut T {
        debug_assert_eq!(T::DTYPE, self.spec.dtype());
        self.memory.address().cast()
    }
}

macro_rules! shared_view_methods {
    ($name:ident) => {
        /// Layout of the view.
        pub fn spec(&self) -> Spec {
            self.bound.spec
        }

        /// Elements `start..start + len` of dimension `dim`.
        ///
        /// # Errors
        /// A dimension or range that does not exist.
        pub fn narrow(self, dim: usize, start: usize, len: usize) -> Result<Self> {
            let (spec, offset) = self.bound.spec.narrow(dim, start, len)?;
            let memory = self.bound.memory.skip(offset * spec.dtype().size());
            Ok($name { bound: Bound { spec, memory }, life: PhantomData })
        }

        /// Splits dimension `dim` into `outer` x `inner`, as a head split does.
        ///
        /// # Errors
        /// Extents whose product differs from the dimension, or too many dimensions.
        pub fn split(self, dim: usize, outer: usize, inner: usize) -> Result<Self> {
            let spec = self.bound.spec.split(dim, outer, inner)?;
            Ok($name { bound: Bound { spec, ..self.bound }, life: PhantomData })
        }

        /// Joins dimensions `dim` and `dim + 1`.
        ///
        /// # Errors
        /// Dimensions that do not exist or are not adjacent in memory.
        pub fn merge(self, dim: usize) -> Result<Self> {
            let spec = self.bound.spec.merge(dim)?;
            Ok($name { bound: Bound { spec, ..self.bound }, life: PhantomData })
        }

        /// Exchanges two dimensions; no element moves.
        ///
        /// # Errors
        /// A dimension that does not exist.
        pub fn transpose(self, a: usize, b: usize) -> Result<Self> {
            let spec = self.bound.spec.transpose(a, b)?;
            Ok($name { bound: Bound { spec, ..self.bound }, life: PhantomData })
        }

        /// A view of raw memory of any device.
        ///
        /// # Safety
        /// The memory is of the device that will use the view, holds `spec.span_bytes()` bytes, and begins where the element is aligned. Until the
        /// work that uses the view has finished (for queues and streams: until they have passed this point)
        ///
        /// * it stays alive,
        /// * the elements that the layout names are initialised (of a view that is only written: may be anything),
        /// * they are not accessed in conflict with the view. Gaps between them are not accessed by the view: they may be another's, written
        ///   at the same time, and need not be initialised.
        pub unsafe fn from_raw(spec: Spec, memory: Memory) -> Self {
            $name { bound: Bound { spec, memory }, life: PhantomData }
        }

        /// A view of host memory by address.
        ///
        /// # Errors
        /// `bytes` smaller than the layout's span, or an address that is not aligned to the element.
        ///
        /// # Safety
        /// As for `from_raw`.
        pub unsafe fn from_raw_host(spec: Spec, address: *mut u8, bytes: usize) -> Result<Self> {
            if bytes < spec.span_bytes() {
                return Err(Error::argument(
                    "view",
                    "bytes",
                    format!("at least {} for {spec}", spec.span_bytes()),
                    bytes,
                ));
            }
            if address.align_offset(spec.dtype().alignment()) != 0 {
                return Err(Error::argument(
                    "view",
                    "address",
                    format!("a multiple of {}", spec.dtype().alignment()),
                    format!("{address:p}"),
                ));
            }
            // SAFETY: passed on to the caller.
            Ok(unsafe { $name::from_raw(spec, Memory::Host(HostMemory::new(address, bytes))) })
        }

        /// A view of an engine's wgpu buffer, beginning `offset` bytes into it.
        ///
        /// # Errors
        /// A buffer that ends before the layout's span does, without the usage `STORAGE` or of a size that is no multiple of 4; an
        /// offset that is not aligned to the element.
        ///
        /// # Safety
        /// As for `from_raw`; and the buffer belongs to the wgpu device that will run the work, which wgpu does not tell.
        #[cfg(feature = "wgpu")]
        pub unsafe fn from_raw_wgpu(spec: Spec, buffer: &::wgpu::Buffer, offset: u64) -> Result<Self> {
            let memory = crate::backend::WgpuMemory::checked(spec, buffer, offset)?;
            // SAFETY: passed on to the caller.
            Ok(unsafe { $name::from_raw(spec, Memory::Wgpu(memory)) })
        }
    };
}

/// A borrowed, strided operand that is read. `Send + Sync`.
#[derive(Clone, Debug)]
pub struct View<'a> {
    bound: Bound,
    life: PhantomData<&'a ()>,
}

impl<'a> View<'a> {
    /// A gapless view of a slice.
    ///
    /// # Errors
    /// A slice shorter than the shape.
    pub fn new<T: Element>(data: &'a [T], shape: &[usize]) -> Result<Self> {
        Self::over(data, Spec::contiguous(T::DTYPE, shape)?)
    }

    /// A view of a slice with strides in elements.
    ///
    /// # Errors
    /// A slice shorter than the span of shape and strides.
    pub fn strided<T: Element>(data: &'a [T], shape: &[usize], strides: &[usize]) -> Result<Self> {
        Self::over(data, Spec::strided(T::DTYPE, shape, strides)?)
    }

    fn over<T: Element>(data: &'a [T], spec: Spec) -> Result<Self> {
        expect_span(spec, data)?;
        let memory = HostMemory::new(data.as_ptr().cast_mut().cast(), size_of_val(data));
        // SAFETY: the slice holds the span, is aligned and borrowed for 'a; a `View` is never written through.
        Ok(unsafe { View::from_raw(spec, Memory::Host(memory)) })
    }

    /// Inserts a dimension of extent `n` along which the operand repeats (stride 0).
    ///
    /// # Errors
    /// Too many dimensions.
    pub fn repeat(self, dim: usize, n: usize) -> Result<Self> {
        let spec = self.bound.spec.repeat(dim, n)?;
        Ok(View { bound: Bound { spec, ..self.bound }, life: PhantomData })
    }

    pub(crate) fn into_bound(self) -> Bound {
        self.bound
    }

    pub(crate) fn bound(&self) -> &Bound {
        &self.bound
    }

    shared_view_methods!(View);
}

/// A borrowed, strided operand that is written (and read, where an op works in place). `Send + Sync`.
#[derive(Debug)]
pub struct ViewMut<'a> {
    bound: Bound,
    life: PhantomData<&'a mut ()>,
}

impl<'a> ViewMut<'a> {
    /// A gapless view of a slice.
    ///
    /// # Errors
    /// A slice shorter than the shape.
    pub fn new<T: Element>(data: &'a mut [T], shape: &[usize]) -> Result<Self> {
        Self::over(data, Spec::contiguous(T::DTYPE, shape)?)
    }

    /// A view of a slice with strides in elements.
    ///
    /// # Errors
    /// A slice shorter than the span of shape and strides.
    pub fn strided<T: Element>(data: &'a mut [T], shape: &[usize], strides: &[usize]) -> Result<Self> {
        Self::over(data, Spec::strided(T::DTYPE, shape, strides)?)
    }

    fn over<T: Element>(data: &'a mut [T], spec: Spec) -> Result<Self> {
        expect_span(spec, data)?;
        let memory = HostMemory::new(data.as_mut_ptr().cast(), size_of_val(data));
        // SAFETY: the slice holds the span, is aligned and borrowed exclusively for 'a.
        Ok(unsafe { ViewMut::from_raw(spec, Memory::Host(memory)) })
    }

    /// A shorter borrow of the same view.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { bound: self.bound.clone(), life: PhantomData }
    }

    /// The view for reading.
    pub fn as_view(&self) -> View<'_> {
        View { bound: self.bound.clone(), life: PhantomData }
    }

    pub(crate) fn into_bound(self) -> Bound {
        self.bound
    }

    shared_view_methods!(ViewMut);
}

/// Bytes and alignment: `Element` is sealed, and its types have their dtype's size.
fn expect_span<T: Element>(spec: Spec, data: &[T]) -> Result<()> {
    const { assert!(size_of::<T>() == T::DTYPE.size() && align_of::<T>() >= T::DTYPE.alignment()) };
    if size_of_val(data) >= spec.span_bytes() {
        return Ok(());
    }
    Err(Error::argument("view", "data", format!("at least {} elements for {spec}", spec.span()), data.len()))
}
