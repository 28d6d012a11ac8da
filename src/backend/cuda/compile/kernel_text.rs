//! The text of an instance: constants, the shared files of `kernels/lib/`, and the op's file.
//!
//! There is no `#include`: NVRTC needs no folder, and the hash of the text says everything about
//! what was compiled. `#line` directives keep compiler messages and profiler lines in the files
//! that people edit.

use std::borrow::Cow;
use std::fmt::{Display, Write};

use crate::backend::cuda::runtime::arch::Arch;

/// A file of `kernels/`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::backend::cuda) struct File {
    /// Path in the repository.
    pub path: &'static str,
    pub text: &'static str,
}

/// `kernel!("norm.cu")`: a file of `kernels/`, embedded.
macro_rules! kernel {
    ($path:literal) => {
        $crate::backend::cuda::compile::File {
            path: concat!("kernels/", $path),
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $path)),
        }
    };
}
pub(in crate::backend::cuda) use kernel;

/// What every kernel begins with, in this order. Helpers of one op are declared in the op's file:
/// `const TILE: File = kernel!("lib/tile.cuh")`.
const BASE: [File; 5] = [
    kernel!("lib/port.cuh"),
    kernel!("lib/real.cuh"),
    kernel!("lib/ptx.cuh"),
    kernel!("lib/math.cuh"),
    kernel!("lib/reduce.cuh"),
];

/// One kernel instance: its text, and what a launch needs to know of it.
#[derive(Clone, Debug)]
pub(in crate::backend::cuda) struct KernelText {
    op: &'static str,
    entry: Cow<'static, str>,
    body: File,
    constants: String,
    libraries: Vec<File>,
    operands: &'static [&'static str],
    threads: u32,
    /// On Hopper and later, and before.
    min_blocks: [u32; 2],
    shared_bytes: u32,
    /// The only instruction set that has its instructions, where it is not for all.
    only: Option<Arch>,
}

impl KernelText {
    /// A kernel of `op` whose entry point is `entry`, the name of the instance, and whose own text
    /// is `body`. `operands` are the fields of the kernel's `Operands` struct, in order.
    pub fn new(
        op: &'static str,
        entry: impl Into<Cow<'static, str>>,
        body: File,
        operands: &'static [&'static str],
    ) -> Self {
        KernelText {
            op,
            entry: entry.into(),
            body,
            constants: String::new(),
            libraries: Vec::new(),
            operands,
            threads: 256,
            min_blocks: [1, 1],
            shared_bytes: 0,
            only: None,
        }
    }

    /// `#define name value`, with `value` printed as it is.
    pub fn constant(mut self, name: &str, value: impl Display) -> Self {
        let _ = writeln!(self.constants, "#define {name} {value}");
        self
    }

    /// Adds a helper after `lib/{port,real,ptx,math,reduce}.cuh`, once.
    pub fn library(mut self, file: File) -> Self {
        if !self.libraries.contains(&file) {
            self.libraries.push(file);
        }
        self
    }

    /// Threads of a block: `THREADS`. Unset: 256.
    pub fn threads(mut self, threads: u32) -> Self {
        self.threads = threads;
        self
    }

    /// Blocks per SM that registers must leave room for: `MIN_BLOCKS`. Unset: 1.
    pub fn min_blocks(mut self, blocks: u32) -> Self {
        self.min_blocks = [blocks, blocks];
        self
    }

    /// The same, where the compiler needs more registers before Hopper than on it.
    pub fn min_blocks_by_arch(mut self, hopper: u32, before: u32) -> Self {
        self.min_blocks = [hopper, before];
        self
    }

    /// Dynamic shared memory of a block, in bytes.
    pub fn shared_bytes(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }

    /// Adds `lib/hopper.cuh`: the kernel is one of compute capability 9.0 alone.
    pub fn hopper(self) -> Self {
        KernelText { only: Some(Arch::HOPPER), ..self.library(kernel!("lib/hopper.cuh")) }
    }

    pub fn serves(&self, arch: Arch) -> bool {
        self.only.is_none_or(|only| only == arch)
    }

    pub fn only(&self) -> Option<Arch> {
        self.only
    }

    pub fn op(&self) -> &'static str {
        self.op
    }

    pub fn entry(&self) -> &str {
        &self.entry
    }

    pub fn operand_names(&self) -> &'static [&'static str] {
        self.operands
    }

    pub fn block(&self) -> u32 {
        self.threads
    }

    pub fn shared(&self) -> u32 {
        self.shared_bytes
    }

    #[cfg(test)]
    pub fn body(&self) -> File {
        self.body
    }

    pub fn text(&self) -> String {
        let [hopper, before] = self.min_blocks;
        let min_blocks = match hopper == before {
            true => format!("#define MIN_BLOCKS {hopper}\n"),
            false => format!(
                "#if __CUDA_ARCH__ >= 900\n#define MIN_BLOCKS {hopper}\n#else\n#define MIN_BLOCKS {before}\n#endif\n"
            ),
        };
        let mut text =
            format!("#define ENTRY {}\n#define THREADS {}\n{min_blocks}{}", self.entry, self.threads, self.constants);
        for file in BASE.iter().chain(&self.libraries).chain([&self.body]) {
            let _ = writeln!(text, "#line 1 \"{}\"", file.path);
            text.push_str(file.text);
            if !file.text.ends_with('\n') {
                text.push('\n');
            }
        }
        text
    }
}
