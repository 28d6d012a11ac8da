//! Finding a device, its context, and what it can do.

use std::ffi::CStr;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::cudarc::driver::CudaContext;

use super::driver::{self, Attribute, CUcontext, CUdevice, CUmodule, CUstream, Fault};
use super::image::Images;
use super::lt::Library;
use super::{Cuda, CudaAttentionVariant, CudaCublasLt, CudaLinear, NAME, probe};
use crate::{Error, Result, fork, trust};

/// Devices opened or adopted so far.
static DEVICES: AtomicU64 = AtomicU64::new(0);

/// How to open a device.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CudaOptions {
    /// The device's ordinal. Default: 0.
    pub ordinal: usize,
    /// A folder of compiled kernels, as `xattn cuda-images` writes it. Default: none.
    ///
    /// Kernels are code: the folder, its parents and the files must belong to the process's user or to root, and nobody else may write to them
    /// (a parent with the sticky bit will do). Opening a device with another folder is an error; so is preparing an op with another file. Owners
    /// and permissions are looked at on Unix only.
    pub images: Option<PathBuf>,
    /// Folders, by absolute path, in which NVRTC and cuBLASLt are looked for before the places that `docs/cuda.md` lists. Under the rule of
    /// `images`. Default: none.
    pub libraries: Vec<PathBuf>,
    /// Where compiled kernels are kept between processes. Default: the user's cache folder.
    pub cache: CudaCache,
    /// Wait after every launch, so that a fault names the op that caused it.
    pub synchronise: bool,
    /// Let a kernel be placed on the device while the one before it on the stream still runs; it waits there for that one's end (programmatic
    /// dependent launch). No result changes. Hopper and later only: elsewhere opening the device is refused. Default: off, until a device has
    /// shown what it saves.
    pub dependent_launch: bool,
    /// Tell profilers and debuggers which line an instruction belongs to.
    pub line_info: bool,
    /// Which kernel runs every `attention`, to test or time it; calls that it cannot serve are refused. Default: the backend's choice.
    pub attention: Option<CudaAttentionVariant>,
    /// Whether cuBLASLt multiplies.
    pub cublaslt: CudaCublasLt,
    /// Which of our kernels multiplies. Where one is named, cuBLASLt does not.
    pub linear: CudaLinear,
}

/// Where compiled kernels are kept between processes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CudaCache {
    /// `xattn/cuda` in the user's cache folder.
    #[default]
    User,
    /// Nowhere.
    Off,
    /// In this folder, which is made where it is missing. Under the rule of [`CudaOptions::images`]; one that breaks it is not used, and
    /// [`DeviceInfo::details`](crate::DeviceInfo::details) says why.
    Folder(PathBuf),
}

impl CudaOptions {
    /// What the environment says: `XATTN_CUDA_DEVICE` (an ordinal), `XATTN_CUDA_IMAGES` (a folder), `XATTN_CUDA_CACHE` (a folder, or `off`),
    /// `XATTN_CUDA_SYNC` (`1`), `XATTN_CUDA_DEPENDENT_LAUNCH` (`1`), `XATTN_CUDA_LINE_INFO` (`1`), `XATTN_CUDA_ATTENTION` (the name of a
    /// [`CudaAttentionVariant`]), `XATTN_CUDA_CUBLASLT` (`auto`, `on`, `off`, `two-pass`), `XATTN_CUDA_LINEAR` (`auto`, `any`, `64`, `64-deep`, `128`, `hopper`,
    /// `hopper-turns`).
    ///
    /// A process with rights that its user lacks (a setuid or setgid program, one with capabilities) is not told by the environment what to execute:
    /// there `XATTN_CUDA_IMAGES`, `XATTN_CUDA_CACHE`, the user's cache folder and the variables that name a toolkit count for nothing, and
    /// [`DeviceInfo::details`](crate::DeviceInfo::details) says so.
    ///
    /// # Errors
    /// An ordinal that is no number, a word that is none of those, a variant of another name.
    pub fn from_env() -> Result<Self> {
        let variable = |name| std::env::var_os(name).filter(|text| !text.is_empty());
        let flag = |name| variable(name).is_some_and(|text| text == "1");
        let ordinal = match variable("XATTN_CUDA_DEVICE") {
            None => 0,
            Some(text) => text
                .to_str()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| Error::argument("device", "XATTN_CUDA_DEVICE", "an ordinal", text.to_string_lossy()))?,
        };
        Ok(CudaOptions {
            ordinal,
            images: trust::variable("XATTN_CUDA_IMAGES").map(Into::into),
            libraries: Vec::new(),
            cache: match trust::variable("XATTN_CUDA_CACHE") {
                None => CudaCache::User,
                Some(text) if text == "off" => CudaCache::Off,
                Some(folder) => CudaCache::Folder(folder.into()),
            },
            synchronise: flag("XATTN_CUDA_SYNC"),
            dependent_launch: flag("XATTN_CUDA_DEPENDENT_LAUNCH"),
            line_info: flag("XATTN_CUDA_LINE_INFO"),
            attention: match variable("XATTN_CUDA_ATTENTION") {
                None => None,
                Some(text) => Some(text.to_string_lossy().parse()?),
            },
            cublaslt: one_of("XATTN_CUDA_CUBLASLT", CudaCublasLt::WORDS)?,
            linear: one_of("XATTN_CUDA_LINEAR", CudaLinear::WORDS)?,
        })
    }
}

/// The value of the word in an environment variable; the first one when there is none.
fn one_of<T: Copy>(name: &'static str, words: &[(&str, T)]) -> Result<T> {
    let text = std::env::var_os(name).unwrap_or_default();
    let word = if text.is_empty() { words[0].0.into() } else { text.to_string_lossy() };
    words.iter().find(|(known, _)| *known == word).map(|&(_, value)| value).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(known, _)| *known).collect();
        Error::argument("device", name, known.join(", "), word)
    })
}

/// A CUDA context, who answers for its life, and the code that was loaded into it.
pub(super) struct Context {
    raw: CUcontext,
    device: CUdevice,
    owner: Owner,
    /// Unloaded with the context: a kernel that still runs needs its code, and NVIDIA does not promise that unloading waits for it.
    modules: Mutex<Vec<Module>>,
}

struct Module(CUmodule);

// SAFETY: handles of a context may be used from any thread in which it is current.
unsafe impl Send for Module {}

enum Owner {
    /// The device's primary context, retained by us.
    Primary,
    /// An engine's, kept alive.
    Engine(#[expect(dead_code, reason = "held, not read")] Arc<CudaContext>),
    /// An engine's, by its handle: it lives longer than we do.
    Caller,
}

// SAFETY: a context's handle may be used from any thread; `enter` makes it current there.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn new(raw: CUcontext, device: CUdevice, owner: Owner) -> Self {
        Context { raw, device, owner, modules: Mutex::default() }
    }

    /// Keeps a module that was loaded into the context as long as the context.
    pub fn keep(&self, module: CUmodule) {
        self.modules.lock().unwrap_or_else(PoisonError::into_inner).push(Module(module));
    }

    /// Makes the context current until the result is dropped, if it is not. The engine's context is current again then.
    pub fn enter(&self) -> Result<Entered, Fault> {
        // SAFETY: the context is alive as long as `self`.
        unsafe {
            let pushed = driver::current()? != self.raw;
            if pushed {
                driver::push(self.raw)?;
            }
            Ok(Entered { pushed, thread: PhantomData })
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.unload();
        if let Owner::Primary = self.owner {
            // SAFETY: retained once by `Context::primary`. At the end of the process the driver may already be gone, which does no harm.
            let _ = unsafe { driver::primary_release(self.device) };
        }
    }
}

impl Context {
    /// Unloads the modules when nothing runs any more. Where that cannot be waited for (the device is lost, somebody captures a graph), they stay as
    /// long as the driver's own context.
    fn unload(&mut self) {
        let modules = std::mem::take(self.modules.get_mut().unwrap_or_else(PoisonError::into_inner));
        let Ok(_entered) = self.enter() else { return };
        // SAFETY: the context is current. Nothing that holds a kernel of the modules is left, and no launch of one is.
        unsafe {
            if !modules.is_empty() && driver::context_wait().is_ok() {
                let _ = modules.iter().try_for_each(|module| driver::module_unload(module.0));
            }
        }
    }
}

/// The context is current on this thread.
pub(super) struct Entered {
    pushed: bool,
    /// Not `Send`: it is this thread's context that is restored.
    thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.pushed {
            // SAFETY: undoes the push of `Context::enter` on this thread. It fails only when the driver is gone.
            let _ = unsafe { driver::pop() };
        }
    }
}

/// An instruction set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Arch {
    pub major: u32,
    pub minor: u32,
}

impl Arch {
    /// Compute capability 9.0 with the instructions that it alone has.
    pub const HOPPER: Arch = Arch { major: 9, minor: 0 };
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Hopper's own instructions are in the set with an `a`.
        let own = if (self.major, self.minor) == (9, 0) { "a" } else { "" };
        write!(f, "sm_{}{}{own}", self.major, self.minor)
    }
}

impl FromStr for Arch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.strip_prefix("sm_").map(|rest| rest.strip_suffix('a').unwrap_or(rest));
        let number = digits.and_then(|digits| digits.parse::<u32>().ok()).filter(|number| (80..1000).contains(number));
        let arch = number.map(|number| Arch { major: number / 10, minor: number % 10 });
        arch.filter(|arch| arch.to_string() == text)
            .ok_or_else(|| Error::argument("device", "arch", "sm_80, sm_89, sm_90a and the like", text))
    }
}

/// What a device allows.
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

/// A stream of ours, or the legacy stream of an engine's context.
pub(super) struct Stream {
    raw: CUstream,
    context: Arc<Context>,
}

// SAFETY: a stream's handle may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub fn raw(&self) -> CUstream {
        self.raw
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.raw.is_null() {
            return;
        }
        let Ok(_entered) = self.context.enter() else { return };
        // SAFETY: created by `Cuda::open`. What still runs on it finishes.
        let _ = unsafe { driver::stream_destroy(self.raw) };
    }
}

fn refused(fault: Fault) -> Error {
    probe::unavailable(fault.to_string())
}

impl Cuda {
    /// Opens a device of our own.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with what was looked for.
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
            // CU_STREAM_NON_BLOCKING: what an engine does on the legacy stream is no business of ours.
            // SAFETY: the context is current.
            unsafe { driver::stream_create(1) }.map_err(refused)?
        };
        let stream = Stream { raw: stream, context: context.clone() };
        Self::on(context, stream, options)
    }

    /// Uses an engine's context. Nothing is created on it but modules and what is allocated in so many words.
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
        let mut context = Context::new(raw, 0, Owner::Caller);
        context.device = {
            let _entered = context.enter().map_err(refused)?;
            // SAFETY: a context is current.
            unsafe { driver::current_device() }.map_err(refused)?
        };
        Self::on_engine(context, options)
    }

    fn on_engine(context: Context, options: &CudaOptions) -> Result<Self> {
        let context = Arc::new(context);
        let stream = Stream { raw: std::ptr::null_mut(), context: context.clone() };
        Self::on(context, stream, options)
    }

    fn on(context: Arc<Context>, stream: Stream, options: &CudaOptions) -> Result<Self> {
        let number = |attribute| -> Result<u32> {
            // SAFETY: the device exists.
            let value = unsafe { driver::attribute(attribute, context.device) }.map_err(refused)?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        let arch = Arch {
            major: number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        };
        let name = device_name(context.device)?;
        if arch.major < 8 {
            let Arch { major, minor } = arch;
            return Err(probe::unavailable(format!("{name} has compute capability {major}.{minor}; kernels need 8.0")));
        }
        if options.dependent_launch && arch.major < 9 {
            return Err(Error::Unsupported {
                op: "device",
                what: format!("launching dependent kernels on {arch}"),
                backend: NAME,
                available: "launches that wait, or compute capability 9.0".into(),
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
            memory: unsafe { driver::total_memory(context.device) }.map_err(refused)?,
        };
        // SAFETY: writes a number.
        let driver_version = unsafe { driver::version() }.map_err(refused)?;
        let images = Images::new(options, arch, driver_version)?;
        Ok(Cuda {
            library: Library::new(context.clone(), images.libraries().to_vec()),
            images,
            context,
            stream,
            name,
            arch,
            limits,
            driver_version,
            serial: DEVICES.fetch_add(1, Ordering::Relaxed) + 1,
            synchronise: options.synchronise,
            dependent_launch: options.dependent_launch,
            attention: options.attention,
            cublaslt: options.cublaslt,
            linear: options.linear,
            functions: Default::default(),
        })
    }

    /// The context's handle.
    pub(crate) fn context(&self) -> CUcontext {
        self.context.raw
    }

    /// Makes the context current.
    ///
    /// # Errors
    /// [`Error::Unavailable`] in a child of `fork()`.
    pub(super) fn enter(&self, op: &'static str) -> Result<Entered> {
        fork::refuse(NAME)?;
        self.context.enter().map_err(|fault| self.fault(op, fault))
    }

    /// For `info`.
    pub(super) fn details(&self) -> String {
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

    /// A fault of the driver in our words.
    pub(super) fn fault(&self, op: &'static str, fault: Fault) -> Error {
        use driver::CUresult as C;
        const REFUSED: [C; 14] = [
            C::CUDA_ERROR_INVALID_VALUE,
            C::CUDA_ERROR_INVALID_HANDLE,
            C::CUDA_ERROR_INVALID_CONTEXT,
            C::CUDA_ERROR_NOT_FOUND,
            C::CUDA_ERROR_NOT_SUPPORTED,
            C::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
            C::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
            C::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
            C::CUDA_ERROR_STREAM_CAPTURE_MERGE,
            C::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
            C::CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
            C::CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
            C::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
            C::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
        ];
        if fault.is(&[C::CUDA_ERROR_OUT_OF_MEMORY]) {
            return Error::OutOfMemory { backend: NAME, purpose: "the driver", bytes: 0 };
        }
        if fault.is(&REFUSED) {
            return Error::argument(op, NAME, "calls that the driver accepts", fault);
        }
        Error::DeviceLost { backend: NAME, op, reason: fault.to_string() }
    }
}

fn device_name(device: CUdevice) -> Result<String> {
    let mut name = [0u8; 256];
    // SAFETY: the driver writes at most 255 bytes and a zero.
    unsafe { driver::device_name(name.as_mut_ptr().cast(), name.len() as i32 - 1, device) }.map_err(refused)?;
    Ok(CStr::from_bytes_until_nul(&name).map_or(String::new(), |name| name.to_string_lossy().into_owned()))
}
