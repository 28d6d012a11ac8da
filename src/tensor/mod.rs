//! Operands without a device: layouts ([`Spec`]), regions of memory, and tensors in host memory or
//! files ([`HostTensor`]). No backend is named here.

mod bits;
mod host;
#[cfg(feature = "checkpoint")]
pub(crate) mod merged;
mod overlap;
mod region;
mod spec;

pub use bits::{bit_words, pack_bits};
pub use host::HostTensor;
pub(crate) use overlap::may_share;
pub use region::HostMemory;
pub(crate) use region::{Bound, room};
pub(crate) use spec::checked_elements;
pub use spec::{MAX_RANK, Spec};
