//! Records the bindings of dispatches, to run them elsewhere: in a browser (`verify::web`).

use std::sync::{Mutex, PoisonError};

use super::{Wgpu, WgpuMemory};
use crate::Result;

/// The dispatches of a device since they were last taken.
#[derive(Default)]
pub(super) struct Trace(Mutex<Traced>);

/// Dispatches and the buffers that they bind.
#[derive(Default)]
pub(crate) struct Traced {
    /// In the order in which they were recorded.
    pub dispatches: Vec<TracedDispatch>,
    /// Each buffer with its contents when its first dispatch was recorded, before any has run.
    pub buffers: Vec<(::wgpu::Buffer, Vec<u8>)>,
}

pub(crate) struct TracedDispatch {
    pub entry: &'static str,
    pub text: String,
    pub grid: [u32; 3],
    /// Contents of the uniform, binding 0.
    pub params: Vec<u32>,
    /// Bindings 1 and so on.
    pub bindings: Vec<TracedBinding>,
}

pub(crate) struct TracedBinding {
    /// Index into the traced buffers.
    pub buffer: usize,
    pub offset: u64,
    pub size: u64,
    pub read_only: bool,
}

impl Trace {
    /// Notes a dispatch. `bound`: each binding, and whether it is only read.
    pub fn note(
        &self,
        backend: &Wgpu,
        (entry, text, grid): (&'static str, String, [u32; 3]),
        params: Vec<u32>,
        bound: Vec<(::wgpu::BufferBinding<'_>, bool)>,
    ) -> Result<()> {
        let mut traced = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bindings = Vec::with_capacity(bound.len());
        for (binding, read_only) in bound {
            let known = traced.buffers.iter().position(|(buffer, _)| buffer == binding.buffer);
            let buffer = match known {
                Some(known) => known,
                None => {
                    let mut bytes = vec![0; binding.buffer.size() as usize];
                    backend.read_region(&WgpuMemory::new(binding.buffer, 0, binding.buffer.size()), &mut bytes)?;
                    traced.buffers.push((binding.buffer.clone(), bytes));
                    traced.buffers.len() - 1
                }
            };
            let size = binding.size.map_or(binding.buffer.size() - binding.offset, |size| size.get());
            bindings.push(TracedBinding { buffer, offset: binding.offset, size, read_only });
        }
        traced.dispatches.push(TracedDispatch { entry, text, grid, params, bindings });
        Ok(())
    }
}

impl Wgpu {
    pub(crate) fn traced(mut self) -> Self {
        self.trace = Some(Trace::default());
        self
    }

    /// Dispatches since the last call; none if not traced.
    pub(crate) fn take_trace(&self) -> Traced {
        let take = |trace: &Trace| std::mem::take(&mut *trace.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.trace.as_ref().map(take).unwrap_or_default()
    }
}
