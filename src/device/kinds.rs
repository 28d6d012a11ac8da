//! The one list of backends: kinds, devices, memory, buffers, recorders; how to find one's own.
//!
//! The enums are closed: a backend that is added here does not compile until every `match` has it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::backend::{Backend, Cpu, Reference};
use crate::tensor::HostMemory;
use crate::{Error, Result};

/// The CUDA backend of this build.
#[cfg(feature = "cuda")]
pub(crate) use crate::backend::cuda::Cuda;
#[cfg(feature = "cuda")]
pub use crate::backend::cuda::{CudaMemory, CudaRecorder};
/// The wgpu backend of this build.
#[cfg(feature = "wgpu")]
pub(crate) use crate::backend::wgpu::Wgpu;
#[cfg(feature = "wgpu")]
pub use crate::backend::wgpu::{WgpuMemory, WgpuRecorder};

/// The placeholder for the wgpu backend in a build without it.
#[cfg(not(feature = "wgpu"))]
mod no_wgpu {
    use crate::backend::Absent;

    /// The wgpu backend of this build.
    pub type Wgpu = Absent;
    /// Memory of a wgpu device.
    pub type WgpuMemory = Absent;
    /// A wgpu encoder.
    pub type WgpuRecorder<'r> = Absent;
}
#[cfg(not(feature = "wgpu"))]
pub use no_wgpu::{Wgpu, WgpuMemory, WgpuRecorder};

/// The placeholder for the CUDA backend in a build without it.
#[cfg(not(feature = "cuda"))]
mod no_cuda {
    use crate::backend::Absent;

    /// The CUDA backend of this build.
    pub type Cuda = Absent;
    /// Memory of a CUDA device.
    pub type CudaMemory = Absent;
    /// A CUDA stream. As a projection, so that a build without any GPU uses the lifetime.
    pub type CudaRecorder<'r> = <Absent as crate::backend::Backend>::Recorder<'r>;
}
#[cfg(not(feature = "cuda"))]
pub use no_cuda::{Cuda, CudaMemory, CudaRecorder};

/// The kinds of backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DeviceKind {
    /// Plain f64 loops that read like the equations. The judge of all backends, never timed.
    Reference,
    /// The machine's processor, in parallel.
    Cpu,
    /// Any GPU through wgpu.
    Wgpu,
    /// NVIDIA GPUs through CUDA.
    Cuda,
}

impl DeviceKind {
    /// Every kind, the reference first.
    pub const ALL: [DeviceKind; 4] = [DeviceKind::Reference, DeviceKind::Cpu, DeviceKind::Wgpu, DeviceKind::Cuda];

    /// The name used in messages and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            DeviceKind::Reference => "reference",
            DeviceKind::Cpu => "cpu",
            DeviceKind::Wgpu => "wgpu",
            DeviceKind::Cuda => "cuda",
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DeviceKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        DeviceKind::ALL.into_iter().find(|k| k.name() == text).ok_or_else(|| {
            let names = DeviceKind::ALL.map(DeviceKind::name).join(", ");
            Error::argument("device", "name", format!("one of {names}"), text)
        })
    }
}

#[cfg_attr(
    not(all(feature = "wgpu", feature = "cuda")),
    allow(dead_code, reason = "backends that this build lacks are uninhabited")
)]
#[derive(Clone)]
pub(crate) enum DeviceOn {
    Reference(Arc<Reference>),
    Cpu(Arc<Cpu>),
    Wgpu(Arc<Wgpu>),
    Cuda(Arc<Cuda>),
}

/// Runs an expression with the backend of a device.
macro_rules! on_device {
    ($device:expr, $b:ident => $body:expr) => {
        match &$device.0 {
            $crate::device::DeviceOn::Reference($b) => $body,
            $crate::device::DeviceOn::Cpu($b) => $body,
            $crate::device::DeviceOn::Wgpu($b) => $body,
            $crate::device::DeviceOn::Cuda($b) => $body,
        }
    };
}
pub(super) use on_device;

impl DeviceOn {
    pub fn kind(&self) -> DeviceKind {
        match self {
            DeviceOn::Reference(_) => DeviceKind::Reference,
            DeviceOn::Cpu(_) => DeviceKind::Cpu,
            DeviceOn::Wgpu(_) => DeviceKind::Wgpu,
            DeviceOn::Cuda(_) => DeviceKind::Cuda,
        }
    }
}

/// A region of memory of any backend.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Memory {
    /// Memory of this process: the `reference` and `cpu` backends.
    Host(HostMemory),
    /// Memory of a wgpu device.
    Wgpu(WgpuMemory),
    /// Memory of a CUDA device.
    Cuda(CudaMemory),
}

impl Memory {
    pub(crate) fn place(&self) -> &'static str {
        match self {
            Memory::Host(_) => "host",
            Memory::Wgpu(_) => "wgpu",
            Memory::Cuda(_) => "cuda",
        }
    }

    /// Where the region begins: an address, or an offset in a buffer that is itself aligned.
    #[allow(unreachable_code, reason = "absent backends are uninhabited")]
    pub(crate) fn address_bits(&self) -> usize {
        match self {
            Memory::Host(m) => <Cpu as Backend>::address_bits(m),
            Memory::Wgpu(m) => <Wgpu as Backend>::address_bits(m),
            Memory::Cuda(m) => <Cuda as Backend>::address_bits(m),
        }
    }

    #[allow(unreachable_code, reason = "absent backends are uninhabited")]
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Memory::Host(m) => m.bytes() as u64,
            Memory::Wgpu(m) => <Wgpu as Backend>::region_bytes(m),
            Memory::Cuda(m) => <Cuda as Backend>::region_bytes(m),
        }
    }

    /// Whether equal positions ([`Memory::address_bits`]) of both are the same memory.
    pub(crate) fn is_with(&self, other: &Memory) -> bool {
        match (self, other) {
            (Memory::Host(_), Memory::Host(_)) => true,
            (Memory::Wgpu(a), Memory::Wgpu(b)) => <Wgpu as Backend>::is_with(a, b),
            (Memory::Cuda(a), Memory::Cuda(b)) => <Cuda as Backend>::is_with(a, b),
            _ => false,
        }
    }

    #[allow(unreachable_code, reason = "absent backends are uninhabited")]
    pub(crate) fn skip(&self, bytes: usize) -> Memory {
        match self {
            Memory::Host(m) => Memory::Host(m.skip(bytes)),
            Memory::Wgpu(m) => Memory::Wgpu(<Wgpu as Backend>::skip(m, bytes)),
            Memory::Cuda(m) => Memory::Cuda(<Cuda as Backend>::skip(m, bytes)),
        }
    }
}

pub(crate) enum Buffer {
    Host(<Cpu as Backend>::Buffer),
    Wgpu(<Wgpu as Backend>::Buffer),
    Cuda(<Cuda as Backend>::Buffer),
}

impl Buffer {
    #[allow(unreachable_code, reason = "absent backends are uninhabited")]
    pub(crate) fn memory(&self) -> Memory {
        match self {
            Buffer::Host(b) => Memory::Host(Cpu::memory(b)),
            Buffer::Wgpu(b) => Memory::Wgpu(Wgpu::memory(b)),
            Buffer::Cuda(b) => Memory::Cuda(Cuda::memory(b)),
        }
    }
}

/// Records commands, into the caller's stream or encoder if there is one. `Send`: one thread
/// records at a time. A recorder of [`Device::recorder`](super::Device::recorder) keeps alive what
/// its commands need, and serves that device only.
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "one per recording, on the stack: a box would be a block of the heap")]
pub enum Recorder<'r> {
    /// The host backends run at once.
    Host,
    /// A wgpu encoder.
    Wgpu(WgpuRecorder<'r>),
    /// A CUDA stream.
    Cuda(CudaRecorder<'r>),
}

impl Recorder<'_> {
    pub(crate) fn place(&self) -> &'static str {
        match self {
            Recorder::Host => "host",
            Recorder::Wgpu(_) => "wgpu",
            Recorder::Cuda(_) => "cuda",
        }
    }

    /// The stream of the commands; 0 where all commands of the device run in order.
    pub(crate) fn stream(&self) -> usize {
        match self {
            Recorder::Host => 0,
            Recorder::Wgpu(r) => <Wgpu as Backend>::stream(r),
            Recorder::Cuda(r) => <Cuda as Backend>::stream(r),
        }
    }
}

/// A backend of the list, which finds its own variants in the enums.
pub(crate) trait Listed: Backend {
    /// The memory, if it is of this backend.
    fn own_memory(memory: &Memory) -> Option<&Self::Memory>;

    /// Calls `f` with the backend's own recorder; the error names where the recorder's commands go.
    fn with_recorder<T>(
        recorder: &mut Recorder<'_>,
        f: impl FnOnce(&mut Self::Recorder<'_>) -> T,
    ) -> std::result::Result<T, &'static str>;
}

macro_rules! listed {
    ($($backend:ty: $memory:ident, $recorder:pat => $own:expr;)*) => { $(impl Listed for $backend {
        fn own_memory(memory: &Memory) -> Option<&Self::Memory> {
            match memory {
                Memory::$memory(own) => Some(own),
                _ => None,
            }
        }

        fn with_recorder<T>(
            recorder: &mut Recorder<'_>,
            f: impl FnOnce(&mut Self::Recorder<'_>) -> T,
        ) -> std::result::Result<T, &'static str> {
            match recorder {
                $recorder => Ok(f($own)),
                other => Err(other.place()),
            }
        }
    })* };
}
listed! {
    Reference: Host, Recorder::Host => &mut ();
    Cpu: Host, Recorder::Host => &mut ();
}
#[cfg(feature = "wgpu")]
listed! { Wgpu: Wgpu, Recorder::Wgpu(own) => own; }
#[cfg(feature = "cuda")]
listed! { Cuda: Cuda, Recorder::Cuda(own) => own; }

#[cfg(not(all(feature = "wgpu", feature = "cuda")))]
impl Listed for crate::backend::Absent {
    fn own_memory(_: &Memory) -> Option<&Self> {
        None
    }

    fn with_recorder<T>(
        recorder: &mut Recorder<'_>,
        _: impl FnOnce(&mut Self) -> T,
    ) -> std::result::Result<T, &'static str> {
        Err(recorder.place())
    }
}
