//! Matrix products (GEMMs) by cuBLASLt: a thin layer over its C interface with plans made once.
//!
//! A plan is what a GEMM of given extents, strides and types needs: descriptors, and the algorithm
//! that the library's heuristics name, asked once. Plans are kept per device by [`Gemm`];
//! `record` finds everything made. Without the library our own kernels serve.
//!
//! alpha = tanh(gate) and beta = 1 lie in device memory (`linear_factors.cu` writes them to the
//! workspace), so that the host never waits for a gate.

mod calls;
mod gemm;

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ::cudarc::cublaslt::sys;
use calls::{Call, Handle, Layout, Matmul, Preference, Status};
pub(super) use gemm::{ALIGNMENT, Gate, Gemm, Rows};

use super::runtime::context::Context;
use super::runtime::driver::CUstream;
use crate::DType;
use crate::ops::Activation;

/// Whether cuBLASLt or our kernels compute matrix products (GEMMs).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaCublasLt {
    /// cuBLASLt where the table says that it wins.
    #[default]
    Auto,
    /// cuBLASLt wherever it is there and computes what the op says.
    On,
    /// Never.
    Off,
    /// As `Auto`, and for GEMMs followed by GELU or ReLU too: the activation is a second pass over
    /// their rounded result, which rounds it again.
    TwoPass,
}

impl CudaCublasLt {
    /// What `XATTN_CUDA_CUBLASLT` may say.
    pub(super) const WORDS: &[(&str, CudaCublasLt)] = &[
        ("auto", CudaCublasLt::Auto),
        ("on", CudaCublasLt::On),
        ("off", CudaCublasLt::Off),
        ("two-pass", CudaCublasLt::TwoPass),
    ];

    /// Whether an activation may follow as a second pass. Its slope must not exceed 1.13, so that
    /// the first rounding grows no more than the accuracy rule leaves room for (docs/numerics.md
    /// 1). Squared ReLU would double it.
    pub(super) fn takes_activation(self, activation: Activation) -> bool {
        self == CudaCublasLt::TwoPass && matches!(activation, Activation::Gelu | Activation::Relu)
    }

    /// The table: which of the GEMMs that it computes exactly are cuBLASLt's.
    pub(super) fn takes(self, p: &Gemm) -> bool {
        match self {
            CudaCublasLt::Off => false,
            CudaCublasLt::On => true,
            // f32 results: it sums k in one chain, ours in blocks of 256 (no tensor cores for f32).
            _ if p.result == DType::F32 => false,
            // Few rows: both read W once, and ours finishes in the same pass.
            _ if p.batch * p.rows < 64 => false,
            // Narrow: launch latency is all there is.
            _ if p.n < 64 || p.k < 64 => false,
            // On Hopper it has wgmma and TMA, which the table's kernels lack, and split-K.
            CudaCublasLt::Auto | CudaCublasLt::TwoPass => true,
        }
    }
}

/// Largest workspace of an algorithm: what NVIDIA recommends for Hopper.
const MOST_WORKSPACE: usize = 32 << 20;

/// The library in one context, and its plans.
pub(super) struct Library {
    handle: OnceLock<Result<Handle, String>>,
    plans: Mutex<HashMap<Gemm, Option<Arc<Plan>>>>,
    context: Arc<Context>,
    /// Searched first.
    folders: Vec<PathBuf>,
}

impl Library {
    pub fn new(context: Arc<Context>, folders: Vec<PathBuf>) -> Self {
        Library { handle: OnceLock::new(), plans: Mutex::default(), context, folders }
    }

    /// The plan of a GEMM, made if needed; None without the library or an algorithm for it.
    pub fn plan(&self, gemm: &Gemm) -> Option<Arc<Plan>> {
        let handle = self.handle.get_or_init(|| self.open()).as_ref().ok()?;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(gemm) {
            return plan.clone();
        }
        let _entered = self.context.enter().ok()?;
        let plan = Plan::new(handle, gemm).ok().map(Arc::new);
        plans.insert(*gemm, plan.clone());
        plan
    }

    /// Why the library is not there, if it is not.
    #[cfg(feature = "verify")]
    pub fn missing(&self) -> Option<String> {
        self.handle.get_or_init(|| self.open()).as_ref().err().cloned()
    }

    fn open(&self) -> Result<Handle, String> {
        let calls = calls::cublaslt(&self.folders)?;
        let _entered = self.context.enter().map_err(|fault| fault.to_string())?;
        calls.handle().map_err(|status| format!("cublasLtCreate answers {status}"))
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        let Some(Ok(handle)) = self.handle.take() else { return };
        match self.context.enter() {
            // What was enqueued needs the handle no more.
            Ok(_entered) => drop(handle),
            Err(_) => std::mem::forget(handle),
        }
    }
}

/// Addresses of one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub matrix: u64,
    pub x: u64,
    /// `out`, where there is no residual.
    pub residual: u64,
    pub out: u64,
    /// 0 where there is none.
    pub bias: u64,
    /// alpha, and behind it beta. Not read without a gate.
    pub factors: u64,
    /// [`Plan::workspace_bytes`] bytes.
    pub workspace: u64,
}

pub(super) struct Plan {
    descriptors: Mutex<Descriptors>,
    gemm: Gemm,
    workspace: usize,
}

/// Objects of the library. The bias's address is an attribute of one: a call changes it.
struct Descriptors {
    matmul: Matmul,
    /// A: the matrix; B: x; C: the residual; D: y.
    layouts: [Layout; 4],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

fn data_type(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        // Products are made of these three.
        _ => sys::cudaDataType::CUDA_R_32F,
    }
}

/// `width` by `rows` in memory: a row of the row-major operand is a column.
fn layout(
    handle: &Handle,
    dtype: DType,
    width: usize,
    count: usize,
    rows: Rows,
    batch: usize,
) -> Result<Layout, Status> {
    use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
    let layout = handle.layout(data_type(dtype), width as u64, count as u64, rows.stride as i64)?;
    if batch > 1 {
        layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &(batch as i32))?;
        layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &(rows.batch_stride as i64))?;
    }
    Ok(layout)
}

impl Plan {
    fn new(handle: &Handle, p: &Gemm) -> Result<Self, Status> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let matmul = handle.matmul()?;
        // CUBLAS_OP_T: A is stored K by N.
        matmul.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &1_i32)?;
        let mode = match p.gate {
            Gate::None => sys::cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_HOST,
            Gate::Scalar => sys::cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_DEVICE,
            Gate::Channel => sys::cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_ALPHA_DEVICE_VECTOR_BETA_HOST,
        };
        matmul.set(Attribute::CUBLASLT_MATMUL_DESC_POINTER_MODE, &mode)?;
        if p.bias {
            // Its type is that of D.
            matmul.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
        }
        let matrix = Rows { stride: p.matrix_stride, batch_stride: 0 };
        let layouts = [
            layout(handle, p.operands, p.k, p.n, matrix, p.batch)?,
            layout(handle, p.operands, p.k, p.rows, p.x, p.batch)?,
            layout(handle, p.result, p.n, p.rows, p.residual.unwrap_or(p.out), p.batch)?,
            layout(handle, p.result, p.n, p.rows, p.out, p.batch)?,
        ];
        let (algorithm, workspace) = handle.best(&matmul, &layouts, &preference(handle)?)?;
        Ok(Plan { descriptors: Mutex::new(Descriptors { matmul, layouts, algorithm }), gemm: *p, workspace })
    }

    /// Scratch memory of a call, for cuBLASLt itself.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace
    }

    /// How many floats [`Addresses::factors`] holds.
    pub fn factors(&self) -> usize {
        match self.gemm.gate {
            Gate::None => 0,
            Gate::Scalar => 2,
            Gate::Channel => self.gemm.n + 1,
        }
    }

    /// Whether the addresses lie as was promised.
    pub fn fits(&self, at: &Addresses) -> bool {
        [at.matrix, at.x, at.residual, at.out, at.bias].into_iter().all(|a| a.is_multiple_of(ALIGNMENT as u64))
    }

    /// Enqueues the GEMM.
    ///
    /// # Safety
    /// The context is current, the stream is its own, and the addresses hold what the GEMM says
    /// until the stream has passed.
    pub unsafe fn record(&self, library: &Library, stream: CUstream, at: &Addresses) -> Result<(), String> {
        let Some(Ok(handle)) = library.handle.get() else { return Err("cuBLASLt is not loaded".into()) };
        let d = self.descriptors.lock().unwrap_or_else(PoisonError::into_inner);
        if self.gemm.bias {
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            let set = d.matmul.set(attribute, &at.bias);
            set.map_err(|status| format!("cublasLtMatmulDescSetAttribute answers {status}"))?;
        }
        let (one, keep) = (1.0_f32, if self.gemm.residual.is_some() { 1.0_f32 } else { 0.0 });
        let host = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
        let device = |address: u64| address as *const c_void;
        let (alpha, beta) = match self.gemm.gate {
            Gate::None => (host(&one), host(&keep)),
            Gate::Scalar => (device(at.factors), device(at.factors + 4)),
            Gate::Channel => (device(at.factors), host(&keep)),
        };
        let operands = [at.matrix, at.x, at.residual, at.out];
        let call = Call { alpha, beta, operands, workspace: (at.workspace, self.workspace), stream: stream.cast() };
        // SAFETY: the addresses are the caller's promise, aligned as promised to the heuristics.
        unsafe { handle.multiply(&d.matmul, &d.layouts, &d.algorithm, call) }
            .map_err(|status| format!("cublasLtMatmul answers {status}"))
    }
}

fn preference(handle: &Handle) -> Result<Preference, Status> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let preference = handle.preference()?;
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &MOST_WORKSPACE)?;
    for attribute in [
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    ] {
        preference.set(attribute, &(ALIGNMENT as u32))?;
    }
    Ok(preference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let rows = Rows { stride: 1024, batch_stride: 0 };
        let large = Gemm {
            operands: DType::BF16,
            result: DType::BF16,
            batch: 1,
            rows: 256,
            n: 1024,
            k: 1024,
            matrix_stride: 1024,
            x: rows,
            residual: None,
            out: rows,
            gate: Gate::None,
            bias: false,
        };
        let auto = |p| CudaCublasLt::Auto.takes(&p);
        assert!(auto(large));
        assert!(auto(Gemm { batch: 8, rows: 8, ..large }));
        assert!(!auto(Gemm { rows: 63, ..large }));
        assert!(!auto(Gemm { result: DType::F32, ..large }));
        assert!(!auto(Gemm { operands: DType::F32, result: DType::F32, ..large }));
        assert!(!auto(Gemm { n: 63, ..large }));
        assert!(!auto(Gemm { k: 63, ..large }));
        assert!(!CudaCublasLt::Off.takes(&large));
        assert!(CudaCublasLt::On.takes(&Gemm { operands: DType::F32, result: DType::F32, rows: 1, ..large }));
    }
}
