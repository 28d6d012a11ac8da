//! Regions of wgpu buffers, and copies between them and the host.

use super::{NAME, Wgpu};
use crate::tensor::Spec;
use crate::{Error, Result};

/// Part of a wgpu buffer: the memory of a [`crate::View`] of this backend.
///
/// Any byte offset that is a multiple of the element's size is allowed, and several views may share
/// one buffer. The buffer needs the usage `STORAGE` (and `COPY_DST` to upload, `COPY_SRC` as well
/// to download) and a size that is a multiple of 4. It must belong to the device that uses it: wgpu
/// cannot tell.
#[derive(Clone, Debug)]
pub struct WgpuMemory {
    pub(super) buffer: ::wgpu::Buffer,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    /// The serial number of our device that made the buffer, from 1; 0 for a caller's buffer, which
    /// the caller answers for.
    pub(super) owner: u64,
}

impl WgpuMemory {
    /// `bytes` bytes of `buffer` from `offset` on; the part beyond the buffer's end is cut off.
    pub fn new(buffer: &::wgpu::Buffer, offset: u64, bytes: u64) -> Self {
        let offset = offset.min(buffer.size());
        WgpuMemory { buffer: buffer.clone(), offset, bytes: bytes.min(buffer.size() - offset), owner: 0 }
    }

    /// The region of a view of `spec` that begins `offset` bytes into an engine's buffer.
    pub(crate) fn checked(spec: Spec, buffer: &::wgpu::Buffer, offset: u64) -> Result<Self> {
        let refuse = |argument: &'static str, expected: String, actual: String| {
            Err(Error::argument("view", argument, expected, actual))
        };
        if !buffer.usage().contains(::wgpu::BufferUsages::STORAGE) {
            return refuse("buffer", "the usage STORAGE".into(), format!("{:?}", buffer.usage()));
        }
        if !buffer.size().is_multiple_of(WORD) {
            return refuse("buffer", format!("a size that is a multiple of {WORD}"), buffer.size().to_string());
        }
        let (bytes, element) = (spec.span_bytes() as u64, spec.dtype().size() as u64);
        if !offset.is_multiple_of(element) {
            return refuse("offset", format!("a multiple of {element}"), offset.to_string());
        }
        if offset.checked_add(bytes).is_none_or(|end| end > buffer.size()) {
            let expected = format!("at least {bytes} bytes for {spec} from {offset} on");
            return refuse("buffer", expected, format!("{} bytes", buffer.size()));
        }
        Ok(WgpuMemory::new(buffer, offset, bytes))
    }

    /// The buffer.
    pub fn buffer(&self) -> &::wgpu::Buffer {
        &self.buffer
    }

    /// Where the region begins in the buffer.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Size of the region.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn skip(&self, bytes: usize) -> Self {
        let bytes = (bytes as u64).min(self.bytes);
        WgpuMemory { offset: self.offset + bytes, bytes: self.bytes - bytes, ..self.clone() }
    }
}

/// Copies move whole words.
const WORD: u64 = ::wgpu::COPY_BUFFER_ALIGNMENT;

/// The words that contain `offset .. offset + bytes`: first byte and size.
fn words(offset: u64, bytes: u64) -> (u64, u64) {
    let start = offset / WORD * WORD;
    (start, (offset + bytes).next_multiple_of(WORD) - start)
}

impl Wgpu {
    /// Zeroed memory, as WebGPU promises of every buffer; a multiple of 16 bytes, at least 16.
    pub(super) fn allocate_region(&self, bytes: usize, purpose: &'static str) -> Result<WgpuMemory> {
        let size = (bytes as u64).max(1).checked_next_multiple_of(16).unwrap_or(u64::MAX);
        let limit = self.limits.max_buffer_size;
        if size > limit {
            return Err(Error::argument(
                "allocate",
                purpose,
                format!("at most {limit} bytes (max_buffer_size)"),
                bytes,
            ));
        }
        let usage = ::wgpu::BufferUsages::STORAGE | ::wgpu::BufferUsages::COPY_SRC | ::wgpu::BufferUsages::COPY_DST;
        let descriptor = ::wgpu::BufferDescriptor { label: Some(purpose), size, usage, mapped_at_creation: false };
        self.counters.buffers.add();
        let buffer = self.scoped("allocate", Some((purpose, bytes)), || self.device.create_buffer(&descriptor))?;
        Ok(WgpuMemory { buffer, offset: 0, bytes: size, owner: self.serial })
    }

    pub(super) fn write_region(&self, to: &WgpuMemory, bytes: &[u8]) -> Result<()> {
        self.expect_own("upload", "view", to)?;
        if bytes.len() as u64 > to.bytes {
            return Err(Error::argument("upload", "bytes", format!("at most {}", to.bytes), bytes.len()));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let (start, size) = words(to.offset, bytes.len() as u64);
        let whole = start == to.offset && size == bytes.len() as u64;
        let mut padded = Vec::new();
        if !whole {
            // The first and last word may have bytes of a neighbour, which stay.
            padded = vec![0; size as usize];
            let around = WgpuMemory { offset: start, bytes: size, ..to.clone() };
            self.read_region(&around, &mut padded)?;
            let at = (to.offset - start) as usize;
            padded[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let data = if whole { bytes } else { &padded };
        self.counters.submissions.add();
        self.scoped("upload", None, || {
            self.queue.write_buffer(&to.buffer, start, data);
            self.queue.submit([])
        })?;
        self.wait("upload")
    }

    pub(super) fn read_region(&self, from: &WgpuMemory, bytes: &mut [u8]) -> Result<()> {
        self.expect_own("download", "view", from)?;
        if bytes.len() as u64 > from.bytes {
            return Err(Error::argument("download", "bytes", format!("at most {}", from.bytes), bytes.len()));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let (start, size) = words(from.offset, bytes.len() as u64);
        let descriptor = ::wgpu::BufferDescriptor {
            label: Some("download"),
            size,
            usage: ::wgpu::BufferUsages::MAP_READ | ::wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let purpose = Some(("a download", size as usize));
        self.counters.buffers.add();
        let staging = self.scoped("download", purpose, || self.device.create_buffer(&descriptor))?;
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        self.counters.submissions.add();
        self.scoped("download", None, || {
            let mut encoder = self.device.create_command_encoder(&::wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(&from.buffer, start, &staging, 0, size);
            self.queue.submit([encoder.finish()]);
            staging.map_async(::wgpu::MapMode::Read, .., move |result| {
                // A receiver that is gone needs no result.
                let _ = tell.send(result);
            });
        })?;
        self.wait("download")?;
        // Another thread's wait may have taken our callback and not called it yet: wait for it too.
        match told.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.lost("download", error)),
            Err(_) => return Err(self.lost("download", "the buffer was never mapped")),
        }
        let at = (from.offset - start) as usize;
        let view = staging.get_mapped_range(..).map_err(|error| self.lost("download", error))?;
        bytes.copy_from_slice(&view[at..at + bytes.len()]);
        Ok(())
    }

    /// Refuses memory of another of our devices: wgpu would take it for the buffer of this device
    /// that has the same number.
    pub(super) fn expect_own(&self, op: &'static str, argument: &'static str, memory: &WgpuMemory) -> Result<()> {
        if memory.owner == 0 || memory.owner == self.serial {
            return Ok(());
        }
        Err(Error::argument(op, argument, "memory of this device", "memory of another wgpu device"))
    }

    pub(super) fn lost(&self, op: &'static str, reason: impl ToString) -> Error {
        Error::DeviceLost { backend: NAME, op, reason: reason.to_string() }
    }
}
