//! The machine's processor, in parallel: the default without a GPU.
//!
//! `simd/` has one generic register type and runs a kernel on the device's set. `rows.rs` has
//! conversions and `tasks.rs` the scheduling over threads, for all ops. `gemm/` is the matrix
//! product (GEMM) under `linear`. Every op keeps its scratch in the workspace, one part per thread
//! of the pool for which it was *prepared*: in a larger pool it uses no more threads than that.

mod attention;
mod gated_residual;
mod gemm;
mod instructions;
mod linear;
mod media_index;
mod norm;
#[cfg(feature = "verify")]
pub(crate) mod roof;
mod rows;
mod simd;
mod tasks;

use std::num::NonZeroUsize;

use instructions::Detected;
pub use instructions::InstructionSet;

use super::{Backend, host::host_backend};
use crate::ops::WeightSource;
use crate::threads::Pool;
use crate::{DType, Result};

/// How to open the processor.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CpuOptions {
    /// Threads that a call may use. They are the device's own, started when it is opened; 1 is the
    /// calling thread alone. Results are bit-identical for any number. Default: the threads of the
    /// rayon pool that the caller is in, or of rayon's global one.
    pub threads: Option<NonZeroUsize>,
    /// The instruction set of all kernels. Results of different sets differ in their last bits.
    /// Default: the fastest one that the machine has.
    pub instruction_set: Option<InstructionSet>,
}

impl CpuOptions {
    /// Options from the environment: `XATTN_CPU`, the name of an [`InstructionSet`].
    ///
    /// # Errors
    /// An unknown set.
    pub fn from_env() -> Result<Self> {
        let named = std::env::var(instructions::VARIABLE).ok().filter(|text| !text.is_empty());
        let instruction_set = named.map(|text| text.parse()).transpose()?;
        Ok(CpuOptions { instruction_set, ..CpuOptions::default() })
    }
}

pub(crate) struct Cpu {
    pool: Pool,
    set: Detected,
}

impl Cpu {
    pub fn new() -> Self {
        Cpu { pool: Pool::callers(), set: Detected::fastest() }
    }

    /// # Errors
    /// Threads that do not start; an instruction set that the machine does not have.
    pub fn open(options: &CpuOptions) -> Result<Self> {
        let set = options.instruction_set.map_or(Ok(Detected::fastest()), Detected::of)?;
        Ok(Cpu { pool: options.threads.map_or(Ok(Pool::callers()), Pool::with_threads)?, set })
    }
}

impl Backend for Cpu {
    type Weight = linear::PackedWeight;
    host_backend!("cpu");

    fn name(&self) -> String {
        processor_name()
    }

    fn details(&self) -> String {
        format!("{} threads, {}", self.pool.threads(), self.set.set())
    }

    fn prepare_weight(&self, source: &WeightSource<'_>, dtype: DType) -> Result<Self::Weight> {
        linear::PackedWeight::pack(self, source, dtype)
    }
}

/// The processor's own name (x86), else the architecture.
fn processor_name() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        const BRAND: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;
        if __cpuid(0x8000_0000).eax >= *BRAND.end() {
            let words = BRAND.flat_map(|leaf| {
                let r = __cpuid(leaf);
                [r.eax, r.ebx, r.ecx, r.edx]
            });
            let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).take_while(|&byte| byte != 0).collect();
            return String::from_utf8_lossy(&bytes).trim().to_string();
        }
    }
    std::env::consts::ARCH.to_string()
}
