//! The backend's cuBLASLt calls. Types are cudarc's; the calls do not go
//! through it, as in `driver.rs`.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::ptr;

use ::cudarc::cublaslt::sys::{self, cublasStatus_t as Known};
use libloading::Library;

use super::super::runtime::libraries::{Found, Wanted};

/// Newest first where it is named by version.
const LIBRARY: Wanted = Wanted {
    name: "cuBLASLt",
    files: if cfg!(windows) {
        &["cublasLt64_13.dll", "cublasLt64_12.dll", "cublasLt64_11.dll"]
    } else {
        &["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"]
    },
    beside: None,
};

/// cuBLASLt from these folders or the default places, or what was looked for. Looked for once.
pub(super) fn cublaslt(folders: &[PathBuf]) -> Result<&'static Calls, String> {
    static FOUND: Found<Calls> = Found::new();
    FOUND.get(&LIBRARY, folders, Calls::of)
}

/// The library's answer to a failed call: a number, since it may be newer than the enum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::backend::cuda) struct Status(u32);

impl Status {
    pub const NOT_SUPPORTED: Status = Status(Known::CUBLAS_STATUS_NOT_SUPPORTED as u32);

    fn expect_success(status: u32) -> Result<(), Status> {
        if status == Known::CUBLAS_STATUS_SUCCESS as u32 { Ok(()) } else { Err(Status(status)) }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = [
            Known::CUBLAS_STATUS_NOT_INITIALIZED,
            Known::CUBLAS_STATUS_ALLOC_FAILED,
            Known::CUBLAS_STATUS_INVALID_VALUE,
            Known::CUBLAS_STATUS_ARCH_MISMATCH,
            Known::CUBLAS_STATUS_MAPPING_ERROR,
            Known::CUBLAS_STATUS_EXECUTION_FAILED,
            Known::CUBLAS_STATUS_INTERNAL_ERROR,
            Known::CUBLAS_STATUS_NOT_SUPPORTED,
            Known::CUBLAS_STATUS_LICENSE_ERROR,
        ];
        match known.into_iter().find(|&status| status as u32 == self.0) {
            Some(status) => write!(f, "{status:?}"),
            None => write!(f, "status {}", self.0),
        }
    }
}

macro_rules! calls {
    ($(fn $name:ident($($arg:ty),*) = $call:ident;)*) => {
        /// Functions of the library, which is never unloaded.
        pub(super) struct Calls {
            $($name: unsafe extern "C" fn($($arg),*) -> u32,)*
            _library: Library,
        }

        impl Calls {
            fn of(library: Library) -> Result<Self, String> {
                // Types are those of cudarc, which are those of cublasLt.h.
                $(const _: unsafe fn($($arg),*) -> Known = sys::$call;)*
                Ok(Calls {
                    $(
                        // SAFETY: the field's type is that of the function.
                        $name: *unsafe { library.get(stringify!($call)) }
                            .map_err(|_| format!("cuBLASLt is too old: it has no {}", stringify!($call)))?,
                    )*
                    _library: library,
                })
            }
        }
    };
}

calls! {
    fn create(*mut sys::cublasLtHandle_t) = cublasLtCreate;
    fn destroy(sys::cublasLtHandle_t) = cublasLtDestroy;
    fn matmul(
        sys::cublasLtHandle_t,
        sys::cublasLtMatmulDesc_t,
        *const c_void,
        *const c_void,
        sys::cublasLtMatrixLayout_t,
        *const c_void,
        sys::cublasLtMatrixLayout_t,
        *const c_void,
        *const c_void,
        sys::cublasLtMatrixLayout_t,
        *mut c_void,
        sys::cublasLtMatrixLayout_t,
        *const sys::cublasLtMatmulAlgo_t,
        *mut c_void,
        usize,
        sys::cudaStream_t
    ) = cublasLtMatmul;
    fn heuristic(
        sys::cublasLtHandle_t,
        sys::cublasLtMatmulDesc_t,
        sys::cublasLtMatrixLayout_t,
        sys::cublasLtMatrixLayout_t,
        sys::cublasLtMatrixLayout_t,
        sys::cublasLtMatrixLayout_t,
        sys::cublasLtMatmulPreference_t,
        c_int,
        *mut sys::cublasLtMatmulHeuristicResult_t,
        *mut c_int
    ) = cublasLtMatmulAlgoGetHeuristic;
    fn create_matmul(*mut sys::cublasLtMatmulDesc_t, sys::cublasComputeType_t, sys::cudaDataType) = cublasLtMatmulDescCreate;
    fn destroy_matmul(sys::cublasLtMatmulDesc_t) = cublasLtMatmulDescDestroy;
    fn set_matmul(sys::cublasLtMatmulDesc_t, sys::cublasLtMatmulDescAttributes_t, *const c_void, usize) = cublasLtMatmulDescSetAttribute;
    fn create_preference(*mut sys::cublasLtMatmulPreference_t) = cublasLtMatmulPreferenceCreate;
    fn destroy_preference(sys::cublasLtMatmulPreference_t) = cublasLtMatmulPreferenceDestroy;
    fn set_preference(sys::cublasLtMatmulPreference_t, sys::cublasLtMatmulPreferenceAttributes_t, *const c_void, usize) = cublasLtMatmulPreferenceSetAttribute;
    fn create_layout(*mut sys::cublasLtMatrixLayout_t, sys::cudaDataType, u64, u64, i64) = cublasLtMatrixLayoutCreate;
    fn destroy_layout(sys::cublasLtMatrixLayout_t) = cublasLtMatrixLayoutDestroy;
    fn set_layout(sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayoutAttribute_t, *const c_void, usize) = cublasLtMatrixLayoutSetAttribute;
}

/// An object of the library's, destroyed when dropped.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident($raw:ty) by $destroy:ident) => {
        $(#[$doc])*
        pub(super) struct $name {
            raw: $raw,
            calls: &'static Calls,
        }

        // SAFETY: plain memory of the library, which any thread may use.
        unsafe impl Send for $name {}

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: made by the library, nobody else's. Fails only when the driver is gone.
                let _ = unsafe { (self.calls.$destroy)(self.raw) };
            }
        }
    };
}

object! {
    /// The library's own state in one context, which must be current when it is dropped.
    Handle(sys::cublasLtHandle_t) by destroy
}
object! {
    /// A GEMM's descriptor, in host memory: what was enqueued needs it no more.
    Matmul(sys::cublasLtMatmulDesc_t) by destroy_matmul
}
object! {
    /// How an operand lies.
    Layout(sys::cublasLtMatrixLayout_t) by destroy_layout
}
object! {
    /// What an algorithm may assume, and may use.
    Preference(sys::cublasLtMatmulPreference_t) by destroy_preference
}

// SAFETY: cuBLASLt's handle may be used from several threads at once.
unsafe impl Sync for Handle {}

/// A value as an attribute: its address and its size.
fn bytes_of<T>(value: &T) -> (*const c_void, usize) {
    (ptr::from_ref(value).cast(), size_of::<T>())
}

impl Calls {
    pub fn handle(&'static self) -> Result<Handle, Status> {
        let mut raw = ptr::null_mut();
        // SAFETY: the library writes a handle.
        Status::expect_success(unsafe { (self.create)(&mut raw) })?;
        Ok(Handle { raw, calls: self })
    }
}

impl Handle {
    /// f32 accumulation, `COMPUTE_32F`: never TF32.
    pub fn matmul(&self) -> Result<Matmul, Status> {
        let (calls, mut raw) = (self.calls, ptr::null_mut());
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        // SAFETY: the library writes a pointer.
        Status::expect_success(unsafe { (calls.create_matmul)(&mut raw, compute, scale) })?;
        Ok(Matmul { raw, calls })
    }

    pub fn layout(&self, dtype: sys::cudaDataType, rows: u64, columns: u64, stride: i64) -> Result<Layout, Status> {
        let (calls, mut raw) = (self.calls, ptr::null_mut());
        // SAFETY: the library writes a pointer.
        Status::expect_success(unsafe { (calls.create_layout)(&mut raw, dtype, rows, columns, stride) })?;
        Ok(Layout { raw, calls })
    }

    pub fn preference(&self) -> Result<Preference, Status> {
        let (calls, mut raw) = (self.calls, ptr::null_mut());
        // SAFETY: the library writes a pointer.
        Status::expect_success(unsafe { (calls.create_preference)(&mut raw) })?;
        Ok(Preference { raw, calls })
    }

    /// The first algorithm that the heuristics name for A, B, C and D, and its workspace.
    pub fn best(
        &self,
        matmul: &Matmul,
        [a, b, c, d]: &[Layout; 4],
        preference: &Preference,
    ) -> Result<(sys::cublasLtMatmulAlgo_t, usize), Status> {
        let mut found = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit();
        let mut count = 0;
        // SAFETY: all objects are alive; there is room for one result.
        let answer = unsafe {
            let (handle, to) = (self.raw, found.as_mut_ptr());
            let [a, b, c, d] = [a.raw, b.raw, c.raw, d.raw];
            (self.calls.heuristic)(handle, matmul.raw, a, b, c, d, preference.raw, 1, to, &mut count)
        };
        Status::expect_success(answer)?;
        if count == 0 {
            return Err(Status::NOT_SUPPORTED);
        }
        let found = found.as_ptr();
        // SAFETY: the library has written one result. Its state is read as a number: it may be
        // newer than the enum.
        unsafe {
            Status::expect_success(ptr::addr_of!((*found).state).cast::<u32>().read())?;
            Ok(((*found).algo, (*found).workspaceSize))
        }
    }

    /// Enqueues D = alpha · op(A) op(B) + beta · C on a stream.
    ///
    /// # Safety
    /// The handle's context is current and the stream is its own; the addresses hold what the
    /// layouts say until the stream has passed.
    pub unsafe fn multiply(
        &self,
        matmul: &Matmul,
        layouts: &[Layout; 4],
        algorithm: &sys::cublasLtMatmulAlgo_t,
        call: Call,
    ) -> Result<(), Status> {
        let [a, b, c, d] = call.operands.map(|address| address as *mut c_void);
        let [a_layout, b_layout, c_layout, d_layout] = layouts;
        let (workspace, bytes) = call.workspace;
        // SAFETY: objects are alive, addresses are the caller's promise; numbers of the host are
        // read before the call returns.
        Status::expect_success(unsafe {
            (self.calls.matmul)(
                self.raw,
                matmul.raw,
                call.alpha,
                a,
                a_layout.raw,
                b,
                b_layout.raw,
                call.beta,
                c,
                c_layout.raw,
                d,
                d_layout.raw,
                algorithm,
                workspace as *mut c_void,
                bytes,
                call.stream,
            )
        })
    }
}

/// Arguments of one call.
pub(super) struct Call {
    /// On the host or the device, as the product's pointer mode says.
    pub alpha: *const c_void,
    pub beta: *const c_void,
    /// Addresses of A, B, C and D.
    pub operands: [u64; 4],
    /// Address and bytes.
    pub workspace: (u64, usize),
    pub stream: sys::cudaStream_t,
}

impl Matmul {
    pub fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), Status> {
        let (at, bytes) = bytes_of(value);
        // SAFETY: the object is alive, and the value is copied.
        Status::expect_success(unsafe { (self.calls.set_matmul)(self.raw, attribute, at, bytes) })
    }
}

impl Layout {
    pub fn set<T>(&self, attribute: sys::cublasLtMatrixLayoutAttribute_t, value: &T) -> Result<(), Status> {
        let (at, bytes) = bytes_of(value);
        // SAFETY: the object is alive, and the value is copied.
        Status::expect_success(unsafe { (self.calls.set_layout)(self.raw, attribute, at, bytes) })
    }
}

impl Preference {
    pub fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<(), Status> {
        let (at, bytes) = bytes_of(value);
        // SAFETY: the object is alive, and the value is copied.
        Status::expect_success(unsafe { (self.calls.set_preference)(self.raw, attribute, at, bytes) })
    }
}
