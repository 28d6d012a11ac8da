//! Counts of what a device created and submitted, for tests and engines.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Wgpu, WgpuMemory};
use crate::backend::Backend;
use crate::{Error, Result};

/// What xattn created and submitted on a wgpu device since it was opened. While prepared work runs
/// over operands that it has met before, only `dispatches` and `submissions` grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WgpuCounts {
    /// Buffers: tensors, weights, workspaces, uniforms, staging of downloads.
    pub buffers: u64,
    /// Bind groups.
    pub bind_groups: u64,
    /// Shaders compiled: a module, its layouts and a pipeline each.
    pub pipelines: u64,
    /// Dispatches recorded.
    pub dispatches: u64,
    /// Calls of `Queue::submit`: of our own recorders, uploads and downloads.
    pub submissions: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub buffers: Counter,
    pub bind_groups: Counter,
    pub pipelines: Counter,
    pub dispatches: Counter,
    pub submissions: Counter,
}

#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wgpu {
    pub fn counts(&self) -> WgpuCounts {
        let c = &self.counters;
        WgpuCounts {
            buffers: c.buffers.get(),
            bind_groups: c.bind_groups.get(),
            pipelines: c.pipelines.get(),
            dispatches: c.dispatches.get(),
            submissions: c.submissions.get(),
        }
    }

    /// The counter of the key blocks that `attention` visits, if there is one.
    pub(super) fn key_block_counter(&self) -> Option<&WgpuMemory> {
        self.key_blocks.as_ref()
    }

    /// Key blocks that `attention` visited, summed over problems, tiles of rows and heads, since
    /// the device was opened.
    ///
    /// # Errors
    /// A device that was opened without [`super::WgpuOptions::count_key_blocks`], or that was lost.
    pub fn key_blocks(&self) -> Result<u32> {
        let Some(memory) = self.key_block_counter() else {
            return Err(Error::argument("key_blocks", "device", "one opened with count_key_blocks", "another"));
        };
        let mut bytes = [0; 4];
        self.read(memory, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}
