//! The calls of the driver that the backend makes, and no others: each returns a [`Fault`] that says which call it was and what it answered.
//!
//! cudarc resolves a symbol at its first use and panics if the library lacks it. `probe.rs` asks for all of [`SYMBOLS`] before anything here
//! runs, so that an old driver is an error.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;

use ::cudarc::driver::sys;

#[cfg(feature = "verify")]
pub(super) use sys::CUevent;
pub(super) use sys::{
    CUcontext, CUdevice, CUdevice_attribute_enum as Attribute, CUfunction, CUgraph, CUgraphExec, CUmodule, CUresult,
    CUstream,
};

/// What went wrong in a call of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    call: &'static str,
    pub code: CUresult,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |get: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
            let mut text = ptr::null();
            // SAFETY: the driver writes a pointer to a constant string of its own, or none.
            if unsafe { get(self.code, &mut text) } != CUresult::CUDA_SUCCESS || text.is_null() {
                return format!("code {}", self.code as u32);
            }
            // SAFETY: as above.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        write!(f, "{} answers {} ({})", self.call, text(sys::cuGetErrorName), text(sys::cuGetErrorString))
    }
}

macro_rules! driver {
    ($($(#[$doc:meta])* fn $name:ident ( $($arg:ident : $ty:ty),* ) $(-> $out:ty)? = $call:ident;)*) => {
        /// Everything that must be in the library.
        pub(super) const SYMBOLS: &[&str] = &["cuGetErrorName", "cuGetErrorString", "cuLaunchKernelEx", $(stringify!($call)),*];

        $(driver! { @one $(#[$doc])* fn $name ( $($arg : $ty),* ) $(-> $out)? = $call; })*
    };
    (@one $(#[$doc:meta])* fn $name:ident ( $($arg:ident : $ty:ty),* ) -> $out:ty = $call:ident;) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The handles are alive, and addresses hold what the call reads and writes.
        pub(super) unsafe fn $name($($arg: $ty),*) -> Result<$out, Fault> {
            let mut value = MaybeUninit::<$out>::uninit();
            // SAFETY: the arguments are the caller's promise.
            match unsafe { sys::$call(value.as_mut_ptr(), $($arg),*) } {
                // SAFETY: on success the driver has written the value.
                CUresult::CUDA_SUCCESS => Ok(unsafe { value.assume_init() }),
                code => Err(Fault { call: stringify!($call), code }),
            }
        }
    };
    (@one $(#[$doc:meta])* fn $name:ident ( $($arg:ident : $ty:ty),* ) = $call:ident;) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The handles are alive, and addresses hold what the call reads and writes.
        pub(super) unsafe fn $name($($arg: $ty),*) -> Result<(), Fault> {
            // SAFETY: the arguments are the caller's promise.
            match unsafe { sys::$call($($arg),*) } {
                CUresult::CUDA_SUCCESS => Ok(()),
                code => Err(Fault { call: stringify!($call), code }),
            }
        }
    };
}

driver! {
    /// Wakes the driver.
    fn init(flags: c_uint) = cuInit;
    /// 1000 · major + 10 · minor of the newest CUDA that the driver knows.
    fn version() -> c_int = cuDriverGetVersion;
    /// How many devices there are.
    fn device_count() -> c_int = cuDeviceGetCount;
    /// The device of an ordinal.
    fn device(ordinal: c_int) -> CUdevice = cuDeviceGet;
    /// A number that a device has.
    fn attribute(attribute: Attribute, device: CUdevice) -> c_int = cuDeviceGetAttribute;
    /// Bytes of memory of a device.
    fn total_memory(device: CUdevice) -> usize = cuDeviceTotalMem_v2;
    /// Writes the device's name.
    fn device_name(name: *mut c_char, bytes: c_int, device: CUdevice) = cuDeviceGetName;
    /// The context that a device's libraries share, kept alive.
    fn primary_retain(device: CUdevice) -> CUcontext = cuDevicePrimaryCtxRetain;
    /// Undoes one `primary_retain`.
    fn primary_release(device: CUdevice) = cuDevicePrimaryCtxRelease_v2;
    /// This thread's context, or null.
    fn current() -> CUcontext = cuCtxGetCurrent;
    /// Makes a context current, above the one that was.
    fn push(context: CUcontext) = cuCtxPushCurrent_v2;
    /// Takes the current context away again.
    fn pop() -> CUcontext = cuCtxPopCurrent_v2;
    /// The device of the current context.
    fn current_device() -> CUdevice = cuCtxGetDevice;
    /// Memory of the current context.
    fn allocate(bytes: usize) -> u64 = cuMemAlloc_v2;
    /// Gives memory back.
    fn free(address: u64) = cuMemFree_v2;
    /// Fills memory with a byte.
    fn fill(address: u64, byte: u8, bytes: usize, stream: CUstream) = cuMemsetD8Async;
    /// Copies from the host.
    fn upload(to: u64, from: *const c_void, bytes: usize, stream: CUstream) = cuMemcpyHtoDAsync_v2;
    /// Copies to the host.
    fn download(to: *mut c_void, from: u64, bytes: usize, stream: CUstream) = cuMemcpyDtoHAsync_v2;
    /// A stream that does not wait for the legacy stream.
    fn stream_create(flags: c_uint) -> CUstream = cuStreamCreate;
    /// Gives a stream back.
    fn stream_destroy(stream: CUstream) = cuStreamDestroy_v2;
    /// Waits for a stream.
    fn stream_wait(stream: CUstream) = cuStreamSynchronize;
    /// Loads a CUBIN, a fatbin or PTX.
    fn module_load(image: *const c_void) -> CUmodule = cuModuleLoadData;
    /// Gives a module back.
    fn module_unload(module: CUmodule) = cuModuleUnload;
    /// A kernel of a module.
    fn function(module: CUmodule, name: *const c_char) -> CUfunction = cuModuleGetFunction;
    /// What the compiler used for a kernel.
    fn function_attribute(attribute: sys::CUfunction_attribute, function: CUfunction) -> c_int = cuFuncGetAttribute;
    /// What a kernel may use.
    fn set_function_attribute(function: CUfunction, attribute: sys::CUfunction_attribute, value: c_int) = cuFuncSetAttribute;
    /// Starts recording a stream's work instead of running it.
    fn capture_begin(stream: CUstream, mode: sys::CUstreamCaptureMode) = cuStreamBeginCapture_v2;
    /// Ends a recording and writes the graph.
    fn capture_end(stream: CUstream, graph: *mut CUgraph) = cuStreamEndCapture;
    /// Whether a stream is being recorded.
    fn capture_status(stream: CUstream, status: *mut sys::CUstreamCaptureStatus) = cuStreamIsCapturing;
    /// What an executable graph is made of.
    fn graph_instantiate(graph: CUgraph, flags: u64) -> CUgraphExec = cuGraphInstantiateWithFlags;
    /// Runs a captured graph.
    fn graph_launch(graph: CUgraphExec, stream: CUstream) = cuGraphLaunch;
    /// Gives a graph back.
    fn graph_destroy(graph: CUgraph) = cuGraphDestroy;
    /// Gives an executable graph back.
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
    /// Gives an event back.
    #[cfg(feature = "verify")]
    fn event_destroy(event: CUevent) = cuEventDestroy_v2;
}

/// How large a launch is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared_bytes: u32,
}

/// Runs a kernel with two arguments, or three. A `dependent` one may be placed on the device while the kernel before it on the stream still runs, and
/// waits there for its end (programmatic dependent launch; compute capability 9.0).
///
/// # Safety
/// The function is loaded in the current context and takes what the arguments point at; its operands hold what it reads and writes. A dependent
/// one waits by itself before it touches memory.
pub(super) unsafe fn launch(
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
    // SAFETY: the arguments are the caller's promise; the driver reads the configuration before it returns.
    match unsafe { sys::cuLaunchKernelEx(&config, function, arguments.as_mut_ptr(), ptr::null_mut()) } {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(Fault { call: "cuLaunchKernelEx", code }),
    }
}
