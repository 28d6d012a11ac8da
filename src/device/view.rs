//! Borrowed operands.

use std::marker::PhantomData;

use super::Memory;
use crate::ops::{Operands, visit};
use crate::tensor::{self, HostMemory, HostTensor, Spec};
use crate::{Element, Error, Result};

pub(crate) type Bound = tensor::Bound<Memory>;

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
        /// The memory is of the device that will use the view, holds `spec.span_bytes()` bytes, and
        /// is aligned to the element. Until the work that uses the view has finished (for queues
        /// and streams: until they have passed this point)
        ///
        /// * it stays alive,
        /// * the elements that the layout names are initialised (except in a view that is only
        ///   written),
        /// * they are not accessed in conflict with the view. The view does not access gaps between
        ///   them: these may be another's, written at the same time, and need not be initialised.
        pub unsafe fn from_raw(spec: Spec, memory: Memory) -> Self {
            $name { bound: Bound { spec, memory }, life: PhantomData }
        }

        /// A view of host memory by address.
        ///
        /// # Errors
        /// `bytes` smaller than the layout's span, or an address not aligned to the element.
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

        /// A view of an engine's wgpu buffer that begins `offset` bytes into it.
        ///
        /// # Errors
        /// A buffer that ends before the layout's span, lacks the usage `STORAGE` or has a size
        /// that is no multiple of 4; an offset that is not aligned to the element.
        ///
        /// # Safety
        /// As for `from_raw`; and the buffer belongs to the wgpu device that will run the work,
        /// which wgpu does not check.
        #[cfg(feature = "wgpu")]
        pub unsafe fn from_raw_wgpu(spec: Spec, buffer: &::wgpu::Buffer, offset: u64) -> Result<Self> {
            let memory = super::kinds::WgpuMemory::checked(spec, buffer, offset)?;
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
    /// A contiguous view of a slice.
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
        // SAFETY: the slice holds the span, is aligned and borrowed for 'a; a `View` is never
        // written through.
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

/// A borrowed, strided operand that is written (and read, where an op works in place). `Send +
/// Sync`.
#[derive(Debug)]
pub struct ViewMut<'a> {
    bound: Bound,
    life: PhantomData<&'a mut ()>,
}

impl<'a> ViewMut<'a> {
    /// A contiguous view of a slice.
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

impl HostTensor<'_> {
    /// A view for the host backends.
    ///
    /// # Errors
    /// More dimensions than a view has, bytes that are not aligned to the element (see
    /// [`HostTensor::to_vec`]), or a tensor that is still in its file (see
    /// [`HostTensor::into_owned`]).
    pub fn view(&self) -> Result<View<'_>> {
        let spec = Spec::contiguous(self.dtype(), self.shape())?;
        let bytes = self.in_memory()?;
        // SAFETY: the bytes are borrowed for the view's lifetime and only read; length and
        // alignment are checked.
        unsafe { View::from_raw_host(spec, bytes.as_ptr().cast_mut(), bytes.len()) }
    }
}

/// Layouts from views, for every op and every call of a bridge.
pub trait Shapes: Operands {
    /// Layouts of operands for `prepare`, from the views for `enqueue`.
    ///
    /// ```
    /// use xattn::ops::{GatedResidual, GatedResidualArgs, Source};
    /// use xattn::{Device, Dispatch, Shapes, View, ViewMut, Workspace};
    ///
    /// let (y, gate, mut x) = ([1.0f32; 6], [0.0f32], [2.0f32; 6]);
    /// let shape = [1, 2, 3];
    /// let out = ViewMut::new(&mut x, &shape)?;
    /// let args = GatedResidualArgs::new(Source::InPlace, View::new(&y, &shape)?, View::new(&gate, &[1])?, out);
    /// let device = Device::cpu();
    /// let prepared = GatedResidual.prepare(&device, GatedResidual::shapes(&args)?)?;
    /// let mut workspace = Workspace::new(&device, prepared.workspace_bytes())?;
    /// let mut recorder = device.recorder()?;
    /// prepared.enqueue(&mut recorder, args, &mut workspace)?;
    /// device.finish(recorder)?;
    /// assert_eq!(x, [2.0; 6], "a gate of 0 is closed");
    /// # Ok::<(), xattn::Error>(())
    /// ```
    ///
    /// # Errors
    /// None of its own: those of [`Operands::map`], whose visitor does not fail here.
    fn shapes(args: &Self::Args<View<'_>, ViewMut<'_>>) -> Result<Self::Args<Spec, Spec>> {
        Self::map(Self::as_ref(args), &mut visit(|_, r: &View<'_>| Ok(r.spec()), |_, w: &ViewMut<'_>| Ok(w.spec())))
    }
}

impl<C: Operands> Shapes for C {}
