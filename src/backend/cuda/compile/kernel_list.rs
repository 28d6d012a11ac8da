//! The kernels that this crate ships, for tools that compile them without a device.

/// A kernel instance: its text, and what a launch asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CudaKernel {
    /// The op.
    pub op: &'static str,
    /// Name of the entry point and of the instance; unique.
    pub entry: String,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// The only architecture that it compiles for (`sm_90a`); none where all do.
    pub only: Option<String>,
    /// CUDA C++ without headers, as it is given to NVRTC.
    pub text: String,
}

impl CudaKernel {
    /// Every instance of every op, in a fixed order.
    pub fn all() -> Vec<CudaKernel> {
        let kernel = |source: super::kernel_text::KernelText| CudaKernel {
            op: source.op(),
            entry: source.entry().to_string(),
            threads: source.block(),
            shared_bytes: source.shared(),
            only: source.only().map(|arch| arch.to_string()),
            text: source.text(),
        };
        crate::backend::cuda::instances().into_iter().map(kernel).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::CudaKernel;

    #[test]
    fn names_are_unique_and_in_their_texts() {
        let all = CudaKernel::all();
        for (i, kernel) in all.iter().enumerate() {
            assert!(kernel.entry.starts_with(kernel.op), "{} is named after {}", kernel.entry, kernel.op);
            assert!(kernel.text.starts_with(&format!("#define ENTRY {}\n", kernel.entry)), "{}", kernel.entry);
            assert!(all[..i].iter().all(|other| other.entry != kernel.entry), "{} twice", kernel.entry);
        }
        // A budget for what is compiled, cached and shipped: for all architectures, and for one.
        let own = all.iter().filter(|kernel| kernel.only.is_some()).count();
        assert!((16..=66).contains(&(all.len() - own)), "{} instances for every architecture", all.len() - own);
        assert!(own <= 24, "{own} instances for one architecture");
    }
}
