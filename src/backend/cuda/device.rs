//! Finding a device, its context, and what it can do.

use std::ffi::CStr;
use std::sync::Arc;

use ::cudarc::driver::CudaContext;

use super::compile::KernelText;
use super::compile::image::{Function, Images};
use super::cublaslt::Library;
use super::options::CudaOptions;
use super::runtime::arch::Arch;
use super::runtime::context::{Context, Owner, Stream};
use super::runtime::driver::{self, Attribute, CUcontext, CUdevice, Fault};
use super::runtime::graph::Capturing;
use super::runtime::recorder::CudaRecorder;
use super::runtime::{NAME, probe};
use super::{CudaAttentionVariant, CudaCublasLt, CudaLinear};
use crate::{Error, Result};

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub threads: u32,
    /// Dynamic shared memory of a block, when asked for.
    pub shared_bytes: u32,
    pub grid: [u32; 3],
    pub multiprocessors: u32,
    /// Bytes of the L2 cache.
    #[cfg(feature = "verify")]
    pub l2_bytes: u32,
    memory: usize,
}

fn refused(fault: Fault) -> Error {
    probe::unavailable(fault.to_string())
}

/// A CUDA context and the kernels loaded into it.
pub(crate) struct Cuda {
    // Drop order: what lives in the context goes first.
    pub(super) library: Library,
    pub(super) stream: Arc<Stream>,
    pub(super) context: Arc<Context>,
    pub(super) name: String,
    pub(super) arch: Arch,
    pub(super) limits: Limits,
    /// 1000 · major + 10 · minor.
    driver_version: i32,
    pub(super) synchronise: bool,
    pub(super) dependent_launch: bool,
    pub(super) attention: Option<CudaAttentionVariant>,
    pub(super) cublaslt: CudaCublasLt,
    pub(super) linear: CudaLinear,
    images: Images,
}

impl Cuda {
    /// Opens a device of our own; [`Error::Unavailable`] says what was looked for.
    pub(crate) fn open(options: &CudaOptions) -> Result<Self> {
        let count = probe::devices()?;
        let ordinal = i32::try_from(options.ordinal).unwrap_or(i32::MAX);
        if ordinal >= count {
            return Err(probe::unavailable(format!("there is no device {ordinal}: the driver finds {count}")));
        }
        // SAFETY: the probe has woken the driver, and the ordinal exists.
        let context = unsafe {
            let device = driver::device(ordinal).map_err(refused)?;
            let raw = driver::primary_retain(device).map_err(refused)?;
            Arc::new(Context::new(raw, device, Owner::Primary))
        };
        let stream = {
            let _entered = context.enter().map_err(refused)?;
            // CU_STREAM_NON_BLOCKING: no implicit waits for an engine's work on the legacy stream.
            // SAFETY: the context is current.
            unsafe { driver::stream_create(1) }.map_err(refused)?
        };
        Self::on(Stream::new(stream, context), options)
    }

    /// Uses an engine's context. Creates on it only modules and explicit allocations.
    pub(crate) fn adopt(context: Arc<CudaContext>, options: &CudaOptions) -> Result<Self> {
        probe::devices()?;
        let (raw, device) = (context.cu_ctx(), context.cu_device());
        Self::on_engine(Context::new(raw, device, Owner::Engine(context)), options)
    }

    /// Uses an engine's context by its handle.
    ///
    /// # Safety
    /// The context is alive until everything made with this device is dropped.
    pub(crate) unsafe fn adopt_raw(raw: CUcontext, options: &CudaOptions) -> Result<Self> {
        probe::devices()?;
        if raw.is_null() {
            return Err(Error::argument("device", "context", "a CUDA context", "null"));
        }
        Self::on_engine(Context::of_caller(raw).map_err(refused)?, options)
    }

    fn on_engine(context: Context, options: &CudaOptions) -> Result<Self> {
        Self::on(Stream::new(std::ptr::null_mut(), Arc::new(context)), options)
    }

    fn on(stream: Stream, options: &CudaOptions) -> Result<Self> {
        let context = stream.context().clone();
        let number = |attribute| -> Result<u32> {
            // SAFETY: the device exists.
            let value = unsafe { driver::attribute(attribute, context.device()) }.map_err(refused)?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        let arch = Arch {
            major: number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        };
        let name = device_name(context.device())?;
        if arch.major < 8 {
            let Arch { major, minor } = arch;
            return Err(probe::unavailable(format!("{name} has compute capability {major}.{minor}; kernels need 8.0")));
        }
        if options.dependent_launch && arch.major < 9 {
            return Err(Error::Unsupported {
                op: "device",
                what: format!("programmatic dependent launch on {arch}"),
                backend: NAME,
                available: "launches without it, or compute capability 9.0".into(),
            });
        }
        let limits = Limits {
            threads: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            shared_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            grid: [
                number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?,
                number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?,
                number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)?,
            ],
            multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            #[cfg(feature = "verify")]
            l2_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            // SAFETY: the device exists.
            memory: unsafe { driver::total_memory(context.device()) }.map_err(refused)?,
        };
        // SAFETY: writes a number.
        let driver_version = unsafe { driver::version() }.map_err(refused)?;
        let images = Images::new(options, context.clone(), arch, driver_version)?;
        Ok(Cuda {
            library: Library::new(context.clone(), images.libraries().to_vec()),
            images,
            context,
            stream: Arc::new(stream),
            name,
            arch,
            limits,
            driver_version,
            synchronise: options.synchronise,
            dependent_launch: options.dependent_launch,
            attention: options.attention,
            cublaslt: options.cublaslt,
            linear: options.linear,
        })
    }

    pub(crate) fn context(&self) -> CUcontext {
        self.context.raw()
    }

    pub(crate) fn begin_capture(&self, recorder: &CudaRecorder<'_>) -> Result<Capturing> {
        Capturing::begin(&self.context, recorder)
    }

    pub(super) fn function(&self, source: &KernelText) -> Result<Arc<Function>> {
        self.images.function(source)
    }

    pub(super) fn describe(&self) -> String {
        let Limits { multiprocessors, memory, shared_bytes, .. } = self.limits;
        let version = self.driver_version;
        format!(
            "{}, {multiprocessors} multiprocessors, memory {} MiB, shared memory {} KiB, driver for CUDA {}.{}, kernels from {}{}{}",
            self.arch,
            memory >> 20,
            shared_bytes >> 10,
            version / 1000,
            version % 1000 / 10,
            self.images,
            if self.synchronise { ", waits after each launch" } else { "" },
            if self.dependent_launch { ", dependent launches" } else { "" },
        )
    }
}

fn device_name(device: CUdevice) -> Result<String> {
    let mut name = [0u8; 256];
    // SAFETY: the driver writes at most 255 bytes and a zero.
    unsafe { driver::device_name(name.as_mut_ptr().cast(), name.len() as i32 - 1, device) }.map_err(refused)?;
    Ok(CStr::from_bytes_until_nul(&name).map_or(String::new(), |name| name.to_string_lossy().into_owned()))
}
