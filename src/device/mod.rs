//! What callers hold: devices, views and tensors in their memory, prepared ops. Only this folder
//! names all backends.
//!
//! [`kinds`] lists them. [`prepared`] leads from an op to the backend that runs it.

#[cfg(feature = "cuda")]
mod cuda;
mod description;
mod kinds;
mod prepared;
mod tensor;
mod view;
mod weight;
#[cfg(feature = "wgpu")]
mod wgpu;
mod workspace;

use std::fmt;
use std::sync::Arc;

pub(crate) use description::{Description, OperandList};
pub(crate) use kinds::DeviceOn;
use kinds::{Buffer, Listed};
pub use kinds::{DeviceKind, Memory, Recorder};
pub use prepared::{Dispatch, Prepared};
pub use tensor::Tensor;
pub(crate) use view::Bound;
pub use view::{Shapes, View, ViewMut};
#[cfg(feature = "verify")]
pub(crate) use workspace::UNTOUCHED;
pub use workspace::Workspace;

use crate::backend::{Backend, Cpu, CpuOptions, Reference};
use crate::tensor::{HostTensor, room};
use crate::{Error, Result};

/// Identity and properties of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The backend that it belongs to.
    pub kind: DeviceKind,
    /// Its name.
    pub name: String,
    /// For a person who chooses a device: threads, instruction sets, limits.
    pub details: String,
}

impl DeviceInfo {
    /// Whether this is the emulator of `tests/cuda_emulator`: results count, times do not.
    pub fn is_emulated(&self) -> bool {
        self.kind == DeviceKind::Cuda && self.name.starts_with("Emulated ")
    }
}

/// A device to run on. Cheap to clone. `Send + Sync`: results of threads that share it are
/// bit-identical to those of single-threaded calls.
#[derive(Clone)]
pub struct Device(pub(crate) DeviceOn);

impl Device {
    /// The machine's processor with its widest instruction set. It runs on the threads of the rayon
    /// pool that each caller is in, or of rayon's global pool.
    ///
    /// A large op waits inside rayon until its threads are done. A thread of a pool that waits
    /// there runs other tasks of that pool meanwhile, on the same stack. Hold no lock that such a
    /// task needs while an op runs: it would wait for its own thread.
    ///
    /// A child of `fork()` has no other threads. If its parent had used this pool through this
    /// crate, ops run on the calling thread there, with the same bits. Uses of a pool outside this
    /// crate are unknown to it.
    pub fn cpu() -> Self {
        Device(DeviceOn::Cpu(Arc::new(Cpu::new())))
    }

    /// The machine's processor, with threads of its own or a chosen instruction set. In a child of
    /// `fork()`, ops of a device that its parent opened run on the calling thread.
    ///
    /// # Errors
    /// More threads than can be started, an instruction set that the machine does not have.
    pub fn cpu_with(options: &CpuOptions) -> Result<Self> {
        Ok(Device(DeviceOn::Cpu(Arc::new(Cpu::open(options)?))))
    }

    /// The f64 reference.
    pub fn reference() -> Self {
        Device(DeviceOn::Reference(Arc::new(Reference::truth())))
    }

    /// The f64 reference, with roundings of random sign, as in f32, in the mean of each LayerNorm.
    /// Equal rows have equal roundings.
    #[cfg(feature = "verify")]
    pub(crate) fn reference_with_rounded_means(seed: u64) -> Self {
        Device(DeviceOn::Reference(Arc::new(Reference::with_rounded_means(seed))))
    }

    /// A naive f32 computation whose reductions run in an order drawn from `permutation` (0: index
    /// order). This yardstick measures how much error the inputs and dtypes of a case allow
    /// (`docs/numerics.md`).
    pub fn yardstick(permutation: u64) -> Self {
        Device(DeviceOn::Reference(Arc::new(Reference::yardstick(permutation))))
    }

    /// The first device of a kind, with the options of the environment (`CpuOptions::from_env`, …).
    ///
    /// # Errors
    /// [`Error::Unavailable`] with what was looked for; an invalid environment variable.
    pub fn open(kind: DeviceKind) -> Result<Self> {
        match kind {
            DeviceKind::Reference => Ok(Device::reference()),
            DeviceKind::Cpu => Device::cpu_with(&CpuOptions::from_env()?),
            #[cfg(feature = "wgpu")]
            DeviceKind::Wgpu => Device::open_wgpu(&crate::backend::wgpu::WgpuOptions::from_env()?),
            #[cfg(not(feature = "wgpu"))]
            DeviceKind::Wgpu => Err(Error::Unavailable {
                backend: kind.name(),
                reason: "this build of xattn does not contain it: the feature `wgpu` is off".into(),
            }),
            #[cfg(feature = "cuda")]
            DeviceKind::Cuda => Device::open_cuda(&crate::backend::cuda::CudaOptions::from_env()?),
            #[cfg(not(feature = "cuda"))]
            DeviceKind::Cuda => Err(Error::Unavailable {
                backend: kind.name(),
                reason: "this build of xattn does not contain it: the feature `cuda` is off".into(),
            }),
        }
    }

    /// Whether this is a wgpu adapter that emulates a GPU on the processor: times do not count.
    pub fn is_software_adapter(&self) -> bool {
        #[cfg(feature = "wgpu")]
        if let Some((gpu, ..)) = self.as_wgpu() {
            return gpu.adapter_info().device_type == ::wgpu::DeviceType::Cpu;
        }
        false
    }

    /// The kind of its backend.
    pub fn kind(&self) -> DeviceKind {
        self.0.kind()
    }

    /// Name and properties.
    pub fn info(&self) -> DeviceInfo {
        let (name, details) = kinds::on_device!(self, b => (b.name(), b.details()));
        DeviceInfo { kind: self.kind(), name, details }
    }

    /// A recorder of this device's own: a stream or an encoder of ours; the host runs ops at once.
    ///
    /// # Errors
    /// A lost device.
    pub fn recorder(&self) -> Result<Recorder<'static>> {
        Ok(match &self.0 {
            DeviceOn::Reference(_) | DeviceOn::Cpu(_) => Recorder::Host,
            DeviceOn::Wgpu(b) => Recorder::Wgpu(b.recorder()?),
            DeviceOn::Cuda(b) => Recorder::Cuda(b.recorder()?),
        })
    }

    /// Submits what [`Device::recorder`] recorded, and waits for it.
    ///
    /// # Errors
    /// A recorder of another device, or a lost device.
    pub fn finish(&self, recorder: Recorder<'static>) -> Result<()> {
        match (&self.0, recorder) {
            (DeviceOn::Reference(_) | DeviceOn::Cpu(_), Recorder::Host) => Ok(()),
            (DeviceOn::Wgpu(b), Recorder::Wgpu(r)) if b.accepts(&r) => b.finish(r),
            (DeviceOn::Cuda(b), Recorder::Cuda(r)) if b.accepts(&r) => b.finish(r),
            (_, other) if other.place() == self.kind().name() => {
                let actual = format!("one of another {} device", other.place());
                Err(Error::argument("finish", "recorder", "one of this device", actual))
            }
            (_, other) => Err(Error::argument("finish", "recorder", self.kind(), other.place())),
        }
    }

    /// Whether both share memory and kernels: clones of one device do, two devices that were opened
    /// alike do not. The host is one device.
    pub(crate) fn is_same(&self, other: &Device) -> bool {
        match (&self.0, &other.0) {
            (DeviceOn::Reference(_), DeviceOn::Reference(_)) | (DeviceOn::Cpu(_), DeviceOn::Cpu(_)) => true,
            (DeviceOn::Wgpu(a), DeviceOn::Wgpu(b)) => Arc::ptr_eq(a, b),
            (DeviceOn::Cuda(a), DeviceOn::Cuda(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// Copies a view of this device's memory to the host, without its gaps. On CUDA the copy runs
    /// on a stream of ours: order an engine's stream before it (by an event, or a wait).
    ///
    /// # Errors
    /// A view of another device's memory, or a lost device.
    pub fn download(&self, view: &View<'_>) -> Result<HostTensor<'static>> {
        let (spec, memory) = (view.spec(), &view.bound().memory);
        let mut raw = room(self.kind().name(), spec.span_bytes(), "a download")?;
        raw.resize(spec.span_bytes(), 0u8);
        self.read(memory, &mut raw)?;
        if spec.is_contiguous() {
            return HostTensor::from_bytes(spec.dtype(), spec.shape(), raw);
        }
        let size = spec.dtype().size();
        let bytes = spec.elements().saturating_mul(size);
        let mut packed = room(self.kind().name(), bytes, "a download")?;
        let mut index = vec![0usize; spec.rank()];
        for _ in 0..spec.elements() {
            let at = spec.offset(&index) * size;
            packed.extend_from_slice(&raw[at..at + size]);
            for d in (0..spec.rank()).rev() {
                index[d] += 1;
                if index[d] < spec.dim(d) {
                    break;
                }
                index[d] = 0;
            }
        }
        HostTensor::from_bytes(spec.dtype(), spec.shape(), packed)
    }

    pub(crate) fn allocate(&self, bytes: usize, purpose: &'static str) -> Result<Buffer> {
        Ok(match &self.0 {
            DeviceOn::Reference(b) => Buffer::Host(b.allocate(bytes, purpose)?),
            DeviceOn::Cpu(b) => Buffer::Host(b.allocate(bytes, purpose)?),
            DeviceOn::Wgpu(b) => Buffer::Wgpu(b.allocate(bytes, purpose)?),
            DeviceOn::Cuda(b) => Buffer::Cuda(b.allocate(bytes, purpose)?),
        })
    }

    fn read(&self, from: &Memory, bytes: &mut [u8]) -> Result<()> {
        kinds::on_device!(self, b => {
            fn read<B: Listed>(backend: &B, from: &Memory, bytes: &mut [u8]) -> Result<()> {
                let own = B::own_memory(from)
                    .ok_or_else(|| Error::argument("download", "view", B::NAME, from.place()))?;
                backend.read(own, bytes)
            }
            read(&**b, from, bytes)
        })
    }

    pub(crate) fn write(&self, to: &Memory, bytes: &[u8]) -> Result<()> {
        kinds::on_device!(self, b => {
            fn write<B: Listed>(backend: &B, to: &Memory, bytes: &[u8]) -> Result<()> {
                let own = B::own_memory(to)
                    .ok_or_else(|| Error::argument("upload", "memory", B::NAME, to.place()))?;
                backend.write(own, bytes)
            }
            write(&**b, to, bytes)
        })
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.info();
        write!(f, "{} ({})", info.kind, info.name)
    }
}
