//! Cases for browsers: the dispatches of the wgpu backend, and their expected results.
//!
//! `examples/web_cases.rs` writes them to files, `examples/web/` is the page that runs those.

use std::sync::Arc;

use super::cases::{Case, Placed, long, selection};
use crate::backend::wgpu::Wgpu;
use crate::device::DeviceOn;
use crate::{DType, Device, Error, Memory, Result, WgpuOptions, WgpuTier};

/// Cases of each op in [`cases`].
const PER_OP: usize = 12;
/// Bytes that a case may read and write: a page fetches them.
const MOST_BYTES: u64 = 1 << 18;

/// One dispatch.
#[derive(Debug, Clone)]
pub struct WebDispatch {
    /// Entry point.
    pub entry: &'static str,
    /// The shader, as the backend compiles it.
    pub text: String,
    /// Workgroups.
    pub grid: [u32; 3],
    /// Contents of the uniform at binding 0.
    pub params: Vec<u32>,
    /// Bindings 1 and so on.
    pub bindings: Vec<WebBinding>,
}

/// Part of a storage buffer.
#[derive(Debug, Clone)]
pub struct WebBinding {
    /// Which buffer of the case.
    pub buffer: usize,
    /// Where the binding begins, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
    /// `read` in the shader, else `read_write`.
    pub read_only: bool,
}

/// What one buffer must hold in the end.
#[derive(Debug, Clone)]
pub struct WebOutput {
    /// The operand's name.
    pub name: &'static str,
    /// Which buffer of the case. The output begins with it.
    pub buffer: usize,
    /// Type of its elements.
    pub dtype: DType,
    /// The f64 reference's value of each element, 0 in gaps.
    pub expected: Vec<f64>,
    /// The largest error of each element (`docs/numerics.md`); negative in gaps, which stay.
    pub bounds: Vec<f64>,
    /// The largest root of the mean square error; infinite if only elements are judged.
    pub rms_bound: f64,
}

/// A case.
#[derive(Debug, Clone)]
pub struct WebCase {
    /// Its reproduction string.
    pub case: String,
    /// In order.
    pub dispatches: Vec<WebDispatch>,
    /// What each buffer holds before the first dispatch.
    pub buffers: Vec<Vec<u8>>,
    /// What is judged.
    pub outputs: Vec<WebOutput>,
}

/// Small cases with f32 activations: the same number of each op, spread over its list, and those of
/// `attention` that run the kernels for few rows and long keys.
///
/// # Errors
/// A case that its op refuses.
pub fn cases() -> Result<Vec<Case>> {
    let small = |cases: Vec<Case>| -> Result<Vec<Case>> {
        let mut chosen = Vec::new();
        for case in cases {
            let bytes = case.cost()?.bytes;
            if case.dtype().is_none_or(|dtype| dtype == DType::F32) && (1..=MOST_BYTES).contains(&bytes) {
                chosen.push(case);
            }
        }
        Ok(chosen)
    };
    let mut all = small(selection())?;
    let long = small(long())?;
    all.retain(|case| !long.contains(case));
    let mut chosen: Vec<Case> = all.chunk_by(|a, b| a.op() == b.op()).flat_map(spread).collect();
    chosen.extend(long);
    Ok(chosen)
}

/// [`PER_OP`] cases at equal distances.
fn spread(cases: &[Case]) -> Vec<Case> {
    let n = PER_OP.min(cases.len());
    (0..n).map(|i| cases[i * cases.len() / n].clone()).collect()
}

/// A wgpu device within the limits of every browser, which notes its dispatches.
pub struct Tracer {
    backend: Arc<Wgpu>,
    device: Device,
}

impl Tracer {
    /// Opens one on any adapter: baseline kernels, WebGPU's default limits.
    ///
    /// # Errors
    /// No adapter.
    pub fn open() -> Result<Self> {
        let options = WgpuOptions {
            tier: Some(WgpuTier::Baseline),
            limits: Some(crate::wgpu::Limits::default()),
            ..WgpuOptions::from_env()?
        };
        let backend = Arc::new(Wgpu::open(&options)?.traced());
        Ok(Tracer { device: Device(DeviceOn::Wgpu(backend.clone())), backend })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs a case and returns its dispatches, if any.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the backend lacks the op; errors of device and reference.
    pub fn trace(&self, case: &Case) -> Result<Option<WebCase>> {
        // Drops what a failed case left behind.
        self.backend.take_trace();
        let placed = case.place(&self.device)?;
        let traced = self.backend.take_trace();
        if traced.dispatches.is_empty() {
            return Ok(None);
        }
        let outputs = placed.into_iter().map(|output| {
            let Placed { name, memory, dtype, places, allowed } = output;
            let found = match &memory {
                Memory::Wgpu(memory) => traced.buffers.iter().position(|(buffer, _)| buffer == memory.buffer()),
                _ => None,
            };
            let buffer = found.ok_or_else(|| Error::argument("verify", name, "a buffer of a dispatch", "another"))?;
            let at = |values: &[f64], gap: f64| places.iter().map(|p| p.map_or(gap, |i| values[i])).collect();
            let (expected, bounds) = (at(&allowed.expected, 0.0), at(&allowed.bounds, -1.0));
            Ok(WebOutput { name, buffer, dtype, expected, bounds, rms_bound: allowed.rms })
        });
        let outputs = outputs.collect::<Result<_>>()?;
        let dispatches = traced.dispatches.into_iter().map(|d| WebDispatch {
            entry: d.entry,
            text: d.text,
            grid: d.grid,
            params: d.params,
            bindings: d
                .bindings
                .into_iter()
                .map(|b| WebBinding { buffer: b.buffer, offset: b.offset, size: b.size, read_only: b.read_only })
                .collect(),
        });
        Ok(Some(WebCase {
            case: case.to_string(),
            dispatches: dispatches.collect(),
            buffers: traced.buffers.into_iter().map(|(_, bytes)| bytes).collect(),
            outputs,
        }))
    }
}
