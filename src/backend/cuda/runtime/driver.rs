//! The driver calls that the backend makes. Each returns a [`Fault`]: the call and its answer.
//!
//! Types are cudarc's. The calls do not go through it: it would open a library by names of its own,
//! in folders that are not ours to choose, and panic where that or a symbol is missing. [`load`]
//! finds all calls at once in the library that `probe.rs` opened, so that an old driver is an
//! error.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

use ::cudarc::driver::sys;
use libloading::Library;

use super::NAME;
use crate::{Error, fork};

pub(in crate::backend::cuda) use sys::{
    CUcontext, CUdevice, CUdevice_attribute_enum as Attribute, CUevent, CUfunction, CUgraph, CUgraphExec, CUmodule,
    CUresult, CUstream,
};

/// What went wrong in a call of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::backend::cuda) struct Fault {
    call: &'static str,
    /// A number: a driver may be newer than the enum [`CUresult`].
    code: u32,
}

impl Fault {
    /// Whether the driver answered one of these.
    pub fn is(&self, codes: &[CUresult]) -> bool {
        codes.iter().any(|&code| code as u32 == self.code)
    }

    /// The fault in our words, in the course of an op.
    pub fn during(self, op: &'static str) -> Error {
        use CUresult as C;
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
        if self.is(&[C::CUDA_ERROR_OUT_OF_MEMORY]) {
            return Error::OutOfMemory { backend: NAME, purpose: "the driver", bytes: 0 };
        }
        if self.is(&REFUSED) {
            return Error::argument(op, NAME, "calls that the driver accepts", self);
        }
        Error::DeviceLost { backend: NAME, op, reason: self.to_string() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |get: fn(&Calls) -> Words| {
            let mut text = ptr::null();
            // SAFETY: the driver writes a pointer to a constant string of its own, or none.
            let found = DRIVER.get().is_some_and(|d| unsafe { get(&d.calls)(self.code, &mut text) } == 0);
            if !found || text.is_null() {
                return format!("code {}", self.code);
            }
            // SAFETY: as above.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        write!(f, "{} answers {} ({})", self.call, text(|c| c.cuGetErrorName), text(|c| c.cuGetErrorString))
    }
}

struct Driver {
    calls: Calls,
    /// What the calls are in: never unloaded.
    library: Library,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

/// Takes the calls from the driver's library, or names one that it lacks.
pub(in crate::backend::cuda) fn load(library: Library) -> Result<(), &'static str> {
    let calls = Calls::of(&library)?;
    DRIVER.get_or_init(|| Driver { calls, library });
    Ok(())
}

/// A call that older drivers lack.
///
/// # Safety
/// `F` is the type of the function of that name in cuda.h.
pub(in crate::backend::cuda) unsafe fn optional<F: Copy>(name: &str) -> Option<F> {
    // SAFETY: passed on to the caller; the library stays.
    DRIVER.get().and_then(|d| unsafe { d.library.get::<F>(name) }.ok().map(|found| *found))
}

/// The calls, where the process may make them. A child of `fork()` has the handles of its parent
/// and not their driver, and drops them as they are.
fn calls(call: &'static str) -> Result<&'static Calls, Fault> {
    let calls = DRIVER.get().filter(|_| fork::refuse(NAME).is_ok()).map(|driver| &driver.calls);
    calls.ok_or(Fault { call, code: CUresult::CUDA_ERROR_NOT_INITIALIZED as u32 })
}

fn expect_success(call: &'static str, code: u32) -> Result<(), Fault> {
    if code == CUresult::CUDA_SUCCESS as u32 { Ok(()) } else { Err(Fault { call, code }) }
}

/// The function of a name in the library, or its name.
///
/// # Safety
/// `F` is the type of that function.
unsafe fn symbol<F: Copy>(library: &Library, name: &'static str) -> Result<F, &'static str> {
    // SAFETY: passed on to the caller.
    unsafe { library.get::<F>(name) }.map(|found| *found).map_err(|_| name)
}

/// `cuGetErrorName` and `cuGetErrorString`.
type Words = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;

macro_rules! driver {
    ($(
        $(#[doc = $doc:literal])* $(#[cfg($($on:tt)*)])?
        fn $name:ident ( $($arg:ident : $ty:ty),* ) $(-> $out:ty)? = $call:ident;
    )*) => {
        /// Everything that must be in the library.
        #[allow(non_snake_case, reason = "the driver's names")]
        #[cfg_attr(not(feature = "verify"), allow(dead_code, reason = "an old driver is refused in every build"))]
        struct Calls {
            cuGetErrorName: Words,
            cuGetErrorString: Words,
            $($call: driver!(@type extern "C" ($($ty),*) $(-> $out)? => u32)),*
        }

        impl Calls {
            fn of(library: &Library) -> Result<Self, &'static str> {
                // Types are those of cudarc, which are those of cuda.h.
                $(const _: driver!(@type ($($ty),*) $(-> $out)? => CUresult) = sys::$call;)*
                // SAFETY: so they are the functions'.
                unsafe {
                    Ok(Calls {
                        cuGetErrorName: symbol(library, "cuGetErrorName")?,
                        cuGetErrorString: symbol(library, "cuGetErrorString")?,
                        $($call: symbol(library, stringify!($call))?),*
                    })
                }
            }
        }

        $(
            driver! { @one $(#[doc = $doc])* $(#[cfg($($on)*)])? fn $name ( $($arg : $ty),* ) $(-> $out)? = $call; }
        )*
    };
    (@type $(extern $abi:literal)? ($($ty:ty),*) -> $out:ty => $answer:ty) => {
        unsafe $(extern $abi)? fn(*mut $out, $($ty),*) -> $answer
    };
    (@type $(extern $abi:literal)? ($($ty:ty),*) => $answer:ty) => {
        unsafe $(extern $abi)? fn($($ty),*) -> $answer
    };
    (@one $(#[$about:meta])* fn $name:ident ( $($arg:ident : $ty:ty),* ) -> $out:ty = $call:ident;) => {
        $(#[$about])*
        ///
        /// # Safety
        /// The handles are alive, and addresses hold what the call reads and writes.
        pub(in crate::backend::cuda) unsafe fn $name($($arg: $ty),*) -> Result<$out, Fault> {
            const CALL: &str = stringify!($call);
            let mut value = MaybeUninit::<$out>::uninit();
            // SAFETY: the arguments are the caller's promise.
            expect_success(CALL, unsafe { (calls(CALL)?.$call)(value.as_mut_ptr(), $($arg),*) })?;
            // SAFETY: on success the driver has written the value.
            Ok(unsafe { value.assume_init() })
        }
    };
    (@one $(#[$about:meta])* fn $name:ident ( $($arg:ident : $ty:ty),* ) = $call:ident;) => {
        $(#[$about])*
        ///
        /// # Safety
        /// The handles are alive, and addresses hold what the call reads and writes.
        pub(in crate::backend::cuda) unsafe fn $name($($arg: $ty),*) -> Result<(), Fault> {
            const CALL: &str = stringify!($call);
            // SAFETY: the arguments are the caller's promise.
            expect_success(CALL, unsafe { (calls(CALL)?.$call)($($arg),*) })
        }
    };
}

driver! {
    /// Wakes the driver.
    fn init(flags: c_uint) = cuInit;
    /// 1000 · major + 10 · minor of the newest CUDA that the driver knows.
    fn version() -> c_int = cuDriverGetVersion;
    fn device_count() -> c_int = cuDeviceGetCount;
    fn device(ordinal: c_int) -> CUdevice = cuDeviceGet;
    /// A number that a device has.
    fn attribute(attribute: Attribute, device: CUdevice) -> c_int = cuDeviceGetAttribute;
    fn total_memory(device: CUdevice) -> usize = cuDeviceTotalMem_v2;
    fn device_name(name: *mut c_char, bytes: c_int, device: CUdevice) = cuDeviceGetName;
    /// The context that a device's libraries share, kept alive.
    fn primary_retain(device: CUdevice) -> CUcontext = cuDevicePrimaryCtxRetain;
    fn primary_release(device: CUdevice) = cuDevicePrimaryCtxRelease_v2;
    /// This thread's context, or null.
    fn current() -> CUcontext = cuCtxGetCurrent;
    fn push(context: CUcontext) = cuCtxPushCurrent_v2;
    fn pop() -> CUcontext = cuCtxPopCurrent_v2;
    fn current_device() -> CUdevice = cuCtxGetDevice;
    fn context_wait() = cuCtxSynchronize;
    /// Memory of the current context.
    fn allocate(bytes: usize) -> u64 = cuMemAlloc_v2;
    fn free(address: u64) = cuMemFree_v2;
    /// Fills memory with a byte.
    fn fill(address: u64, byte: u8, bytes: usize, stream: CUstream) = cuMemsetD8Async;
    /// Copies from the host.
    fn upload(to: u64, from: *const c_void, bytes: usize, stream: CUstream) = cuMemcpyHtoDAsync_v2;
    /// Copies to the host.
    fn download(to: *mut c_void, from: u64, bytes: usize, stream: CUstream) = cuMemcpyDtoHAsync_v2;
    /// A stream that does not wait for the legacy stream.
    fn stream_create(flags: c_uint) -> CUstream = cuStreamCreate;
    fn stream_destroy(stream: CUstream) = cuStreamDestroy_v2;
    fn stream_wait(stream: CUstream) = cuStreamSynchronize;
    /// Loads a CUBIN, a fatbin or PTX.
    fn module_load(image: *const c_void) -> CUmodule = cuModuleLoadData;
    fn module_unload(module: CUmodule) = cuModuleUnload;
    fn function(module: CUmodule, name: *const c_char) -> CUfunction = cuModuleGetFunction;
    /// What the compiler used for a kernel.
    fn function_attribute(attribute: sys::CUfunction_attribute, function: CUfunction) -> c_int = cuFuncGetAttribute;
    /// What a kernel may use.
    fn set_function_attribute(function: CUfunction, attribute: sys::CUfunction_attribute, value: c_int) = cuFuncSetAttribute;
    fn launch_kernel(config: *const sys::CUlaunchConfig, function: CUfunction, arguments: *mut *mut c_void, extra: *mut *mut c_void) = cuLaunchKernelEx;
    /// Starts recording a stream's work instead of running it.
    fn capture_begin(stream: CUstream, mode: sys::CUstreamCaptureMode) = cuStreamBeginCapture_v2;
    /// Ends a recording and writes the graph.
    fn capture_end(stream: CUstream, graph: *mut CUgraph) = cuStreamEndCapture;
    /// Whether a stream is being recorded.
    fn capture_status(stream: CUstream, status: *mut sys::CUstreamCaptureStatus) = cuStreamIsCapturing;
    /// What an executable graph is made of.
    fn graph_instantiate(graph: CUgraph, flags: u64) -> CUgraphExec = cuGraphInstantiateWithFlags;
    fn graph_launch(graph: CUgraphExec, stream: CUstream) = cuGraphLaunch;
    fn graph_destroy(graph: CUgraph) = cuGraphDestroy;
    fn graph_exec_destroy(graph: CUgraphExec) = cuGraphExecDestroy;
    /// A point in time of a stream, once it is recorded there.
    #[cfg(feature = "verify")]
    fn event_create(flags: c_uint) -> CUevent = cuEventCreate;
    /// Puts the event behind what is on the stream.
    #[cfg(feature = "verify")]
    fn event_record(event: CUevent, stream: CUstream) = cuEventRecord;
    /// Waits until the stream has reached the event.
    #[cfg(feature = "verify")]
    fn event_wait(event: CUevent) = cuEventSynchronize;
    #[cfg(feature = "verify")]
    fn event_destroy(event: CUevent) = cuEventDestroy_v2;
}

/// How large a launch is.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cuda) struct Size {
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared_bytes: u32,
}

/// Runs a kernel with two arguments, or three. A `dependent` one may be placed on the device while
/// the kernel before it on the stream still runs, and waits there for its end (programmatic
/// dependent launch; compute capability 9.0).
///
/// # Safety
/// The function is loaded in the current context and takes what the arguments point at; its
/// operands hold what it reads and writes. A dependent one itself waits before it touches memory.
pub(in crate::backend::cuda) unsafe fn launch(
    function: CUfunction,
    size: Size,
    stream: CUstream,
    dependent: bool,
    mut arguments: [*mut c_void; 3],
) -> Result<(), Fault> {
    let mut early = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let [x, y, z] = size.grid;
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: size.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: size.shared_bytes,
        hStream: stream,
        attrs: &mut early,
        numAttrs: u32::from(dependent),
    };
    // SAFETY: the arguments are the caller's promise; the driver reads the configuration before it
    // returns.
    unsafe { launch_kernel(&config, function, arguments.as_mut_ptr(), ptr::null_mut()) }
}

pub(in crate::backend::cuda) fn is_capturing(stream: CUstream) -> Result<bool, Fault> {
    use sys::CUstreamCaptureStatus;
    let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the stream is alive, and the driver writes a number.
    unsafe { capture_status(stream, &mut status) }?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}
