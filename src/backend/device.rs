//! Devices, their memory, and where their commands go.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::host::room;
use super::{Backend, Cpu, CpuOptions, Cuda, Reference, Wgpu};
use crate::tensor::{HostTensor, Memory, View};
use crate::{Error, Result};

/// The kinds of backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DeviceKind {
    /// Plain f64 loops that read like the equations. Judges everyone, never timed.
    Reference,
    /// The machine's processor, in parallel.
    Cpu,
    /// Any GPU through wgpu.
    Wgpu,
    /// NVIDIA GPUs through CUDA.
    Cuda,
}

impl DeviceKind {
    /// Every kind, the judge first.
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

/// What a device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Which backend it belongs to.
    pub kind: DeviceKind,
    /// Its name.
    pub name: String,
    /// What a person choosing a device wants to know: threads, instruction sets, limits.
    pub details: String,
}

impl DeviceInfo {
    /// Whether this is the emulator of `tests/cuda_emulator`, which stands in for a GPU: results count, times mean nothing.
    pub fn is_emulated(&self) -> bool {
        self.kind == DeviceKind::Cuda && self.name.starts_with("Emulated ")
    }
}

/// A device to run on. Cheap to clone. `Send + Sync`: threads share it, and each gets the bits that it would get alone.
#[derive(Clone)]
pub struct Device(pub(crate) DeviceOn);

/// The backends, and the one that a device is of.
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

macro_rules! on_device {
    ($device:expr, $b:ident => $body:expr) => {
        match &$device.0 {
            DeviceOn::Reference($b) => $body,
            DeviceOn::Cpu($b) => $body,
            DeviceOn::Wgpu($b) => $body,
            DeviceOn::Cuda($b) => $body,
        }
    };
}

impl Device {
    /// The machine's processor with its widest instruction set, on the threads of the rayon pool that each caller is in, of rayon's global pool outside of any.
    ///
    /// An op that is large enough waits inside rayon until its threads are done, and a thread of a pool that waits there takes up other tasks
    /// of that pool meanwhile, on the same stack. Hold no lock while an op runs that such a task wants: it would wait for its own thread.
    ///
    /// A child of `fork()` has no other threads. If its parent had used this pool, ops run on the calling thread there, with the same bits;
    /// that is known only of a pool that was used through this crate.
    pub fn cpu() -> Self {
        Device(DeviceOn::Cpu(Arc::new(Cpu::new())))
    }

    /// The machine's processor, with threads of its own or a chosen instruction set. In a child of `fork()`, ops of a device that its parent opened run on the calling thread.
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

    /// The f64 reference with roundings of random sign, as in f32, in the mean of each LayerNorm. Equal rows have equal ones.
    #[cfg(feature = "verify")]
    pub(crate) fn reference_with_rounded_means(seed: u64) -> Self {
        Device(DeviceOn::Reference(Arc::new(Reference::with_rounded_means(seed))))
    }

    /// A naive f32 computation whose reductions run in an order drawn from `permutation` (0: index order): the yardstick that
    /// measures how much error the inputs and dtypes of a case allow (`docs/numerics.md`).
    pub fn yardstick(permutation: u64) -> Self {
        Device(DeviceOn::Reference(Arc::new(Reference::yardstick(permutation))))
    }

    /// The first device of a kind, as the environment chooses: `CpuOptions::from_env` and its like say how.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with what was looked for; a variable of the environment that says what it cannot.
    pub fn open(kind: DeviceKind) -> Result<Self> {
        match kind {
            DeviceKind::Reference => Ok(Device::reference()),
            DeviceKind::Cpu => Device::cpu_with(&CpuOptions::from_env()?),
            #[cfg(feature = "wgpu")]
            DeviceKind::Wgpu => Device::open_wgpu(&super::wgpu::WgpuOptions::from_env()?),
            #[cfg(not(feature = "wgpu"))]
            DeviceKind::Wgpu => Err(Error::Unavailable {
                backend: kind.name(),
                reason: "this build of xattn does not contain it: the feature `wgpu` is off".into(),
            }),
            #[cfg(feature = "cuda")]
            DeviceKind::Cuda => Device::open_cuda(&super::cuda::CudaOptions::from_env()?),
            #[cfg(not(feature = "cuda"))]
            DeviceKind::Cuda => Err(Error::Unavailable {
                backend: kind.name(),
                reason: "this build of xattn does not contain it: the feature `cuda` is off".into(),
            }),
        }
    }

    /// Opens a wgpu device of our own.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with what was looked for, a tier that the adapter cannot run, limits beyond its own.
    #[cfg(feature = "wgpu")]
    pub fn open_wgpu(options: &super::wgpu::WgpuOptions) -> Result<Self> {
        Ok(Device(DeviceOn::Wgpu(Arc::new(Wgpu::open(options)?))))
    }

    /// Uses an engine's wgpu device and queue as they are. No error handler and no callback is installed on them, and nothing is submitted
    /// but uploads, downloads and what [`Device::finish`] is given. Of `options`, only tier, bounds checks and the named variant of `attention` matter.
    ///
    /// # Errors
    /// A tier that the device's features do not allow.
    #[cfg(feature = "wgpu")]
    pub fn from_wgpu(device: ::wgpu::Device, queue: ::wgpu::Queue, options: &super::wgpu::WgpuOptions) -> Result<Self> {
        Ok(Device(DeviceOn::Wgpu(Arc::new(Wgpu::adopt(device, queue, options)?))))
    }

    /// The wgpu device and queue behind this device, if it is one, and which kernels it runs.
    #[cfg(feature = "wgpu")]
    pub fn as_wgpu(&self) -> Option<(&::wgpu::Device, &::wgpu::Queue, super::wgpu::Tier)> {
        match &self.0 {
            DeviceOn::Wgpu(b) => Some((b.device(), b.queue(), b.tier())),
            _ => None,
        }
    }

    /// Whether this is an adapter of wgpu that emulates a GPU on the processor: results count, times say nothing about hardware.
    pub fn is_software_adapter(&self) -> bool {
        #[cfg(feature = "wgpu")]
        if let Some((gpu, ..)) = self.as_wgpu() {
            return gpu.adapter_info().device_type == ::wgpu::DeviceType::Cpu;
        }
        false
    }

    /// Opens a CUDA device of our own: retains the primary context of the device, which other libraries use too.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with what was looked for.
    #[cfg(feature = "cuda")]
    pub fn open_cuda(options: &super::cuda::CudaOptions) -> Result<Self> {
        Ok(Device(DeviceOn::Cuda(Arc::new(Cuda::open(options)?))))
    }

    /// Uses an engine's CUDA context. No stream is created on it, and memory is allocated only for tensors, weights and workspaces. The ordinal
    /// among `options` does not matter.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for a device that kernels do not run on, a folder of images that is none.
    #[cfg(feature = "cuda")]
    pub fn from_cuda(context: Arc<::cudarc::driver::CudaContext>, options: &super::cuda::CudaOptions) -> Result<Self> {
        Ok(Device(DeviceOn::Cuda(Arc::new(Cuda::adopt(context, options)?))))
    }

    /// As [`Device::from_cuda`], for a context by its handle, of whatever version of cudarc or none.
    ///
    /// # Errors
    /// As [`Device::from_cuda`].
    ///
    /// # Safety
    /// `context` is a live context, and stays so until this device and all that was made with it are dropped.
    #[cfg(feature = "cuda")]
    pub unsafe fn from_raw_cuda(
        context: ::cudarc::driver::sys::CUcontext,
        options: &super::cuda::CudaOptions,
    ) -> Result<Self> {
        // SAFETY: passed on to the caller.
        Ok(Device(DeviceOn::Cuda(Arc::new(unsafe { Cuda::adopt_raw(context, options)? }))))
    }

    /// The CUDA context behind this device, if it is one: of a device that we opened, the primary context.
    #[cfg(feature = "cuda")]
    pub fn as_cuda(&self) -> Option<::cudarc::driver::sys::CUcontext> {
        match &self.0 {
            DeviceOn::Cuda(b) => Some(b.context()),
            _ => None,
        }
    }

    /// What xattn made and sent on this device so far, if it is one of wgpu.
    #[cfg(feature = "wgpu")]
    pub fn wgpu_counts(&self) -> Option<super::wgpu::WgpuCounts> {
        match &self.0 {
            DeviceOn::Wgpu(b) => Some(b.counts()),
            _ => None,
        }
    }

    /// Blocks of keys that `attention` visited so far, summed over problems, tiles of rows and heads, if this is a device of wgpu. It waits.
    ///
    /// # Errors
    /// A device that was opened without [`count_key_blocks`](super::wgpu::WgpuOptions::count_key_blocks), or that stopped answering.
    #[cfg(feature = "wgpu")]
    pub fn wgpu_key_blocks(&self) -> Result<Option<u32>> {
        match &self.0 {
            DeviceOn::Wgpu(b) => b.key_blocks().map(Some),
            _ => Ok(None),
        }
    }

    /// Which kind of backend this is.
    pub fn kind(&self) -> DeviceKind {
        match &self.0 {
            DeviceOn::Reference(_) => DeviceKind::Reference,
            DeviceOn::Cpu(_) => DeviceKind::Cpu,
            DeviceOn::Wgpu(_) => DeviceKind::Wgpu,
            DeviceOn::Cuda(_) => DeviceKind::Cuda,
        }
    }

    /// Name and properties.
    pub fn info(&self) -> DeviceInfo {
        on_device!(self, b => b.info())
    }

    /// A recorder of this device's own: at once on the host, a stream or an encoder of ours elsewhere.
    ///
    /// # Errors
    /// A device that stopped answering.
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
    /// A recorder of another device, or a device that stopped answering.
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

    /// Whether memory and kernels of one serve the other: clones of one device, not two that were opened alike. On the host all are one.
    pub(crate) fn is_same(&self, other: &Device) -> bool {
        match (&self.0, &other.0) {
            (DeviceOn::Reference(_), DeviceOn::Reference(_)) | (DeviceOn::Cpu(_), DeviceOn::Cpu(_)) => true,
            (DeviceOn::Wgpu(a), DeviceOn::Wgpu(b)) => Arc::ptr_eq(a, b),
            (DeviceOn::Cuda(a), DeviceOn::Cuda(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// Copies a view of this device's memory to the host, without its gaps. On CUDA the copy runs on a stream of ours: order an engine's stream
    /// before it (wait for an event, or for the stream).
    ///
    /// # Errors
    /// A view of another device's memory, or a device that stopped answering.
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
        on_device!(self, b => {
            fn read<B: Backend>(backend: &B, from: &Memory, bytes: &mut [u8]) -> Result<()> {
                let own = B::unwrap_memory(from)
                    .ok_or_else(|| Error::argument("download", "view", backend.info().kind, from.place()))?;
                backend.read(own, bytes)
            }
            read(&**b, from, bytes)
        })
    }

    pub(crate) fn write(&self, to: &Memory, bytes: &[u8]) -> Result<()> {
        on_device!(self, b => {
            fn write<B: Backend>(backend: &B, to: &Memory, bytes: &[u8]) -> Result<()> {
                let own = B::unwrap_memory(to)
                    .ok_or_else(|| Error::argument("upload", "memory", backend.info().kind, to.place()))?;
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

/// Memory that a device owns.
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

/// Where commands go. The caller's stream or encoder where there is one. `Send`: one thread records at a time. One of [`Device::recorder`] keeps
/// alive what its commands need and is of that device alone.
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "one per recording, on the stack: a box would be a block of the heap")]
pub enum Recorder<'r> {
    /// The host backends run at once.
    Host,
    /// A wgpu encoder.
    Wgpu(super::WgpuRecorder<'r>),
    /// A CUDA stream.
    Cuda(super::CudaRecorder<'r>),
}

impl Recorder<'_> {
    pub(crate) fn place(&self) -> &'static str {
        match self {
            Recorder::Host => "host",
            Recorder::Wgpu(_) => "wgpu",
            Recorder::Cuda(_) => "cuda",
        }
    }

    /// Which stream the commands go to; 0 where all commands of the device run in order.
    fn stream(&self) -> usize {
        match self {
            Recorder::Host => 0,
            Recorder::Wgpu(r) => <Wgpu as Backend>::stream(r),
            Recorder::Cuda(r) => <Cuda as Backend>::stream(r),
        }
    }
}

/// Scratch memory for enqueued work. `Send + Sync`; each thread that enqueues needs one of its own.
///
/// One stream uses it at a time: it remembers the first CUDA stream that work was enqueued on with it, and work on another is refused until
/// [`Workspace::release`]. Work of one stream, encoder or queue runs in order.
pub struct Workspace {
    memory: Memory,
    bytes: usize,
    /// Keeps memory of ours alive; a caller's is kept alive by the caller.
    owned: Option<Buffer>,
    /// The stream whose work may still use it; 0 is none.
    stream: usize,
}

/// Bytes before and behind a guarded workspace.
const GUARD: usize = 256;
/// What guards hold, and the workspace before its first use: NaN in every dtype, and far beyond any index.
const UNTOUCHED: u8 = 0xFF;

/// Where scratch memory must begin.
const WORKSPACE_ALIGNMENT: usize = 64;

impl Workspace {
    /// Allocates `bytes` bytes: at least what [`crate::Prepared::workspace_bytes`] of every op that will use it says.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn new(device: &Device, bytes: usize) -> Result<Self> {
        let buffer = device.allocate(bytes, "a workspace")?;
        Ok(Workspace { memory: buffer.memory(), bytes, owned: Some(buffer), stream: 0 })
    }

    /// A workspace that holds NaN, between guard bands.
    pub(crate) fn guarded(device: &Device, bytes: usize) -> Result<Self> {
        let all = vec![UNTOUCHED; 2 * GUARD + bytes.next_multiple_of(GUARD)];
        let buffer = device.allocate(all.len(), "a guarded workspace")?;
        device.write(&buffer.memory(), &all)?;
        Ok(Workspace { memory: buffer.memory().skip(GUARD), bytes, owned: Some(buffer), stream: 0 })
    }

    /// The first byte of the guard bands of a guarded workspace that was overwritten, counted from the start of the workspace.
    pub(crate) fn stray(&self, device: &Device) -> Result<Option<isize>> {
        let Some(buffer) = &self.owned else { return Ok(None) };
        let mut all = vec![0; 2 * GUARD + self.bytes.next_multiple_of(GUARD)];
        device.read(&buffer.memory(), &mut all)?;
        let own = GUARD..GUARD + self.bytes;
        let stray = all.iter().enumerate().position(|(at, &byte)| !own.contains(&at) && byte != UNTOUCHED);
        Ok(stray.map(|at| at as isize - GUARD as isize))
    }

    /// Uses `bytes` bytes of the caller's memory.
    ///
    /// # Errors
    /// Memory that does not begin at a multiple of 64 bytes, or is smaller than that.
    ///
    /// # Safety
    /// The memory is of the device that will use it and holds `bytes` bytes, which need not be initialised. Until the work that was enqueued with
    /// it has run (until the stream has passed it) it stays alive and nothing else uses it, no other `Workspace` over it either.
    pub unsafe fn from_raw(memory: Memory, bytes: usize) -> Result<Self> {
        let address = memory.address_bits();
        if !address.is_multiple_of(WORKSPACE_ALIGNMENT) {
            let expected = format!("an address that is a multiple of {WORKSPACE_ALIGNMENT}");
            return Err(Error::argument("workspace", "memory", expected, format!("{address:#x}")));
        }
        if memory.bytes() < bytes as u64 {
            let actual = format!("a region of {} bytes", memory.bytes());
            return Err(Error::argument("workspace", "memory", format!("at least {bytes} bytes"), actual));
        }
        Ok(Workspace { memory, bytes, owned: None, stream: 0 })
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// Allows work on another stream than before.
    ///
    /// # Safety
    /// The caller has ordered the streams: what was enqueued with this workspace has run, or whatever will be enqueued with it next waits for that.
    pub unsafe fn release(&mut self) {
        self.stream = 0;
    }

    /// Refuses a workspace that is too small, or that work on another stream may still use.
    pub(crate) fn expect(&self, op: &'static str, bytes: usize, recorder: &Recorder<'_>) -> Result<()> {
        if self.bytes < bytes {
            let actual = format!("{} bytes", self.bytes);
            return Err(Error::argument(op, "workspace", format!("at least {bytes} bytes"), actual));
        }
        let stream = recorder.stream();
        if self.stream != 0 && stream != 0 && self.stream != stream {
            let expected = "the stream that it was used on before, or `Workspace::release`";
            return Err(Error::argument(op, "workspace", expected, "another stream"));
        }
        Ok(())
    }

    /// Notes the stream that work was enqueued on.
    pub(crate) fn remember(&mut self, recorder: &Recorder<'_>) {
        match recorder.stream() {
            0 => {}
            stream => self.stream = stream,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_of_the_callers_is_no_larger_than_its_memory() {
        let device = Device::cpu();
        let buffer = device.allocate(192, "a test").unwrap();
        // SAFETY: nothing is enqueued with it.
        let workspace = |bytes| unsafe { Workspace::from_raw(buffer.memory().skip(64), bytes) };
        assert_eq!(workspace(128).unwrap().bytes(), 128);
        let message = workspace(129).err().unwrap().to_string();
        assert_eq!(message, "workspace: memory: expected at least 129 bytes, got a region of 128 bytes");
    }

    #[test]
    fn guards_around_a_workspace_notice_a_single_byte() {
        let device = Device::cpu();
        for (at, noticed) in [(0, None), (9, None), (10, Some(10)), (15, Some(15)), (256, Some(256))] {
            let workspace = Workspace::guarded(&device, 10).unwrap();
            assert_eq!(workspace.stray(&device).unwrap(), None);
            device.write(&workspace.memory().skip(at), &[0]).unwrap();
            assert_eq!(workspace.stray(&device).unwrap(), noticed);
        }
        let workspace = Workspace::guarded(&device, 10).unwrap();
        device.write(&workspace.owned.as_ref().unwrap().memory().skip(GUARD - 1), &[0]).unwrap();
        assert_eq!(workspace.stray(&device).unwrap(), Some(-1));
    }
}
