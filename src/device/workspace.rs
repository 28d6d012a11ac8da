//! Scratch memory of calls.

use super::kinds::Buffer;
use super::{Device, Memory, Recorder};
use crate::{Error, Result};

/// Scratch memory for enqueued work. `Send + Sync`; each thread that enqueues needs one of its own.
///
/// One stream uses it at a time: it remembers the first CUDA stream that work was enqueued on with
/// it, and refuses work on another until [`Workspace::release`]. Work of one stream, encoder or
/// queue runs in order.
pub struct Workspace {
    memory: Memory,
    bytes: usize,
    /// Keeps memory of ours alive; the caller keeps its own alive.
    owned: Option<Buffer>,
    /// The stream whose work may still use it; 0 is none.
    stream: usize,
}

/// Bytes before and behind a guarded workspace.
const GUARD: usize = 256;
/// What guards hold, and the workspace before its first use: NaN in every dtype, and far beyond any
/// index.
pub(crate) const UNTOUCHED: u8 = 0xFF;

/// Alignment of scratch memory, in bytes.
const WORKSPACE_ALIGNMENT: usize = 64;

impl Workspace {
    /// Allocates `bytes` bytes: at least [`crate::Prepared::workspace_bytes`] of every op in it.
    ///
    /// # Errors
    /// Failed allocation.
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

    /// The first overwritten byte of the guard bands, counted from the start of the workspace.
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
    /// Memory that does not begin at a multiple of 64 bytes, or has fewer than `bytes`.
    ///
    /// # Safety
    /// The memory is of the device that will use it and holds `bytes` bytes, which need not be
    /// initialised. Until the work that was enqueued with it has run (until the stream has passed
    /// it) it stays alive and nothing else uses it, no other `Workspace` over it either.
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
    /// The caller has ordered the streams: what was enqueued with this workspace has run, or
    /// whatever will be enqueued with it next waits for that.
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
