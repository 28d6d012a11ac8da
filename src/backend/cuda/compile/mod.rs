//! From the text of a kernel to a function of a module: put together, found compiled or compiled,
//! loaded.

mod cache;
pub(super) mod image;
mod kernel_list;
mod kernel_text;
mod nvrtc;
mod prebuild;
mod sha256;

pub use cache::CudaCache;
pub use kernel_list::CudaKernel;
pub(super) use kernel_text::{File, KernelText, kernel};
