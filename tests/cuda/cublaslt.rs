//! The stand-in for cuBLASLt refuses what the library refuses: each misuse has its status. What it
//! computes is judged through `linear`.

use std::ffi::c_void;
use std::mem::size_of_val;
use std::ptr;

use xattn::cudarc::cublaslt::result::{self, CublasError};
use xattn::cudarc::cublaslt::sys;
use xattn::cudarc::driver::result as driver;

use crate::support::{child, emulated, said};

use sys::cublasLtMatmulDescAttributes_t as Op;
use sys::cublasLtMatmulPreferenceAttributes_t as Prefer;
use sys::cublasStatus_t as Status;
use sys::cudaDataType as Type;

const N: usize = 8;
const ROWS: usize = 4;
const K: usize = 16;

/// A product of 16-bit floats, D [8 x 4] = Aᵀ B: every test spoils one thing.
struct Product {
    handle: sys::cublasLtHandle_t,
    op: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
    d: sys::cublasLtMatrixLayout_t,
    preference: sys::cublasLtMatmulPreference_t,
}

fn layout(dtype: Type, rows: usize, columns: usize, ld: usize) -> sys::cublasLtMatrixLayout_t {
    result::create_matrix_layout(dtype, rows as u64, columns as u64, ld as i64).unwrap()
}

impl Product {
    fn new() -> Self {
        let half = Type::CUDA_R_16F;
        let product = Product {
            handle: result::create_handle().unwrap(),
            op: result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, Type::CUDA_R_32F).unwrap(),
            a: layout(half, K, N, K),
            b: layout(half, K, ROWS, K),
            c: layout(half, N, ROWS, N),
            d: layout(half, N, ROWS, N),
            preference: result::create_matmul_pref().unwrap(),
        };
        product.set(Op::CUBLASLT_MATMUL_DESC_TRANSA, 1_i32).unwrap();
        product.prefer(Prefer::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, 1_usize << 20);
        for operand in [
            Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            product.prefer(operand, 16_u32);
        }
        product
    }

    fn set<T>(&self, attribute: Op, value: T) -> Result<(), CublasError> {
        let at: *const T = &value;
        // SAFETY: the descriptor is alive, the value is copied.
        unsafe { result::set_matmul_desc_attribute(self.op, attribute, at.cast(), size_of_val(&value)) }
    }

    fn prefer<T>(&self, attribute: Prefer, value: T) {
        let at: *const T = &value;
        // SAFETY: the preference is alive, the value is copied.
        unsafe { result::set_matmul_pref_attribute(self.preference, attribute, at.cast(), size_of_val(&value)) }
            .unwrap();
    }

    fn seek(&self) -> Result<sys::cublasLtMatmulHeuristicResult_t, Status> {
        // SAFETY: the objects are alive, or the stand-in says that they are not.
        unsafe {
            result::get_matmul_algo_heuristic(self.handle, self.op, self.a, self.b, self.c, self.d, self.preference)
        }
        .map_err(|error| error.0)
    }
}

/// Addresses and numbers of a call.
struct Call {
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    alpha: *const c_void,
    beta: *const c_void,
    workspace: u64,
    workspace_bytes: usize,
}

static ONE: f32 = 1.0;
static ZERO: f32 = 0.0;

/// Device memory for a call, which holds zeros. A has room to be shifted.
struct Operands {
    a: u64,
    b: u64,
    d: u64,
    workspace: u64,
}

impl Operands {
    fn new() -> Self {
        let memory = |bytes: usize| {
            // SAFETY: a context is current; the memory lives as long as the process.
            unsafe {
                let at = driver::malloc_sync(bytes).unwrap();
                driver::memset_d8_sync(at, 0, bytes).unwrap();
                at
            }
        };
        Operands { a: memory(1024), b: memory(2 * ROWS * K), d: memory(2 * ROWS * N), workspace: memory(4096) }
    }

    fn call(&self) -> Call {
        Call {
            a: self.a,
            b: self.b,
            c: self.d,
            d: self.d,
            alpha: ptr::from_ref(&ONE).cast(),
            beta: ptr::from_ref(&ZERO).cast(),
            workspace: self.workspace,
            workspace_bytes: 4096,
        }
    }
}

impl Product {
    fn multiply(&self, found: &sys::cublasLtMatmulHeuristicResult_t, call: Call) -> Result<(), Status> {
        let at = |address: u64| address as *const c_void;
        // SAFETY: what is not right, the stand-in refuses.
        unsafe {
            result::matmul(
                self.handle,
                self.op,
                call.alpha,
                call.beta,
                at(call.a),
                self.a,
                at(call.b),
                self.b,
                at(call.c),
                self.c,
                call.d as *mut c_void,
                self.d,
                &found.algo,
                call.workspace as *mut c_void,
                call.workspace_bytes,
                ptr::null_mut(),
            )
        }
        .map_err(|error| error.0)
    }
}

#[test]
fn misuse_has_its_status() {
    if !emulated() {
        eprintln!("skipped: the stand-in for cuBLASLt is the emulator's");
        return;
    }
    let said = said(child("cublaslt::misuse", &[]).output().unwrap());
    for line in [
        "A has 8 rows and a leading dimension of 7",
        "the workspace is not",
        "alpha is in device memory, but the pointer mode says host",
        "GELU here would be the tanh form",
        "A does not lie on a multiple of the 16 bytes that were promised",
        "the algorithm was found for another product",
        "a descriptor is null or gone",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
}

#[test]
#[ignore = "a process of its own"]
fn misuse() {
    const INVALID: Status = Status::CUBLAS_STATUS_INVALID_VALUE;
    const UNSUPPORTED: Status = Status::CUBLAS_STATUS_NOT_SUPPORTED;
    // A context is current from here on: cuBLASLt wants one.
    let _context = xattn::cudarc::driver::CudaContext::new(0).unwrap();
    let half = Type::CUDA_R_16F;
    let refused = |product: Product, status: Status, what: &str| {
        assert_eq!(product.seek().err(), Some(status), "{what}");
    };
    let with = |change: &dyn Fn(&mut Product)| {
        let mut product = Product::new();
        change(&mut product);
        product
    };
    let good = Product::new();
    let found = good.seek().unwrap();
    assert_eq!(found.workspaceSize, 1536);

    // Descriptors.
    refused(with(&|p| p.b = layout(half, K + 8, ROWS, K + 8)), INVALID, "depths differ");
    refused(with(&|p| p.d = layout(half, N, ROWS + 1, N)), INVALID, "D does not fit");
    refused(with(&|p| p.c = layout(half, N + 8, ROWS, N + 8)), INVALID, "C does not fit");
    refused(with(&|p| p.set(Op::CUBLASLT_MATMUL_DESC_TRANSA, 0_i32).unwrap()), INVALID, "A is not transposed");
    let short = || {
        let p = with(&|p| p.a = layout(half, 8, N, 7));
        Product { b: layout(half, 8, ROWS, 8), ..p }
    };
    refused(short(), INVALID, "rows overlap");
    refused(with(&|p| p.b = layout(Type::CUDA_R_16BF, K, ROWS, K)), UNSUPPORTED, "A and B differ in type");
    refused(with(&|p| p.c = layout(Type::CUDA_R_32F, N, ROWS, N)), UNSUPPORTED, "C and D differ in type");
    refused(with(&|p| p.b = layout(half, K, ROWS, K + 1)), UNSUPPORTED, "columns that are not aligned as promised");
    let gelu = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU;
    refused(with(&|p| p.set(Op::CUBLASLT_MATMUL_DESC_EPILOGUE, gelu).unwrap()), UNSUPPORTED, "GELU");
    let fast = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32;
    let tf32 = with(&|p| p.op = result::create_matmul_desc(fast, Type::CUDA_R_32F).unwrap());
    tf32.set(Op::CUBLASLT_MATMUL_DESC_TRANSA, 1_i32).unwrap();
    refused(tf32, UNSUPPORTED, "TF32");
    assert_eq!(good.set(Op::CUBLASLT_MATMUL_DESC_TRANSA, 1_u64).err(), Some(CublasError(INVALID)), "eight bytes");
    refused(with(&|p| p.a = ptr::null_mut()), INVALID, "null");
    let gone = layout(half, K, N, K);
    // SAFETY: alive until now.
    unsafe { result::destroy_matrix_layout(gone) }.unwrap();
    refused(with(&|p| p.a = gone), INVALID, "destroyed");

    // Calls.
    let operands = Operands::new();
    let spoilt = |change: &dyn Fn(&mut Call)| {
        let mut call = operands.call();
        change(&mut call);
        good.multiply(&found, call)
    };
    assert_eq!(spoilt(&|_| ()), Ok(()));
    assert_eq!(spoilt(&|c| c.a += 2), Err(UNSUPPORTED), "an address two bytes off");
    assert_eq!(spoilt(&|c| c.a += 1024 - 16), Err(INVALID), "an address past the end");
    assert_eq!(spoilt(&|c| c.b = 0), Err(INVALID), "null");
    assert_eq!(spoilt(&|c| c.d = c.a), Err(INVALID), "D over A");
    assert_eq!(spoilt(&|c| c.workspace_bytes = 1535), Err(INVALID), "a workspace that is too small");
    assert_eq!(spoilt(&|c| c.workspace_bytes = 1 << 20), Err(INVALID), "a workspace that is not there");
    assert_eq!(spoilt(&|c| c.workspace += 8), Err(INVALID), "a workspace that is not aligned");
    assert_eq!(spoilt(&|c| c.alpha = c.workspace as *const c_void), Err(INVALID), "alpha on the device");
    assert_eq!(spoilt(&|c| c.beta = ptr::null()), Err(INVALID), "no beta");
    let mode = sys::cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_DEVICE;
    let on_device = with(&|p| p.set(Op::CUBLASLT_MATMUL_DESC_POINTER_MODE, mode).unwrap());
    let algorithm = on_device.seek().unwrap();
    assert_eq!(on_device.multiply(&algorithm, operands.call()), Err(INVALID), "alpha on the host");
    assert_eq!(on_device.multiply(&found, operands.call()), Err(UNSUPPORTED), "another product's algorithm");
    let biased =
        with(&|p| p.set(Op::CUBLASLT_MATMUL_DESC_EPILOGUE, sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS).unwrap());
    assert_eq!(biased.multiply(&biased.seek().unwrap(), operands.call()), Err(INVALID), "no bias");

    // Without a context.
    // SAFETY: no context is needed to take one away.
    unsafe { driver::ctx::set_current(ptr::null_mut()) }.unwrap();
    assert_eq!(result::create_handle().err(), Some(CublasError(Status::CUBLAS_STATUS_NOT_INITIALIZED)));
}
