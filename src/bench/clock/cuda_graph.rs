//! A CUDA device's events around the replay of a captured graph, so that nothing but the device is
//! measured.

use super::{Clock, ClockKind, GraphTiming, Timing, Work, first, summary};
use crate::backend::cuda::self_test::roof::{self, LibraryGemm, MultiplyAdd};
use crate::backend::cuda::self_test::timing::{Empty, Events, facts, launches};
use crate::bench::roof::Limit;
use crate::bench::{BuiltCase, Case, RandomWeights, Roof};
use crate::{DType, Device, Error, Recorder, Result};

/// Launches in a graph, at least.
const LAUNCHES: u32 = 50;
/// Timed replays of a graph, after a few that are not.
const REPLAYS: usize = 20;
const WARM_UP: usize = 3;
/// Sets of operands, at most: the smallest cases would need thousands to fill a cache.
const MOST_COPIES: usize = 256;

/// Rows and columns of the GEMM that is a limit.
const GEMM_SIZE: usize = 8192;
/// Bytes of noise that are repeated in what is copied, and the least that is copied.
const NOISE: usize = 16 << 20;
const COPIED: usize = 256 << 20;
/// Blocks of multiply-adds for each multiprocessor: sixteen times what it holds at once.
const BLOCKS: usize = 128;
/// Runs of a limit in a graph: a millisecond of the shortest.
const CALLS: usize = 10;

pub(super) struct Graphs {
    device: Device,
    events: Events,
    /// Whether the device tells the time. An emulated one does not.
    tells: bool,
    l2_bytes: u64,
    /// Measured once.
    roof: Option<Roof>,
}

impl Graphs {
    pub fn new(device: &Device) -> Result<Self> {
        let events = Events::new(device)?;
        let mut recorder = device.recorder()?;
        let tells = events.time(&mut recorder, |_| Ok(()))?.is_some();
        device.finish(recorder)?;
        let l2_bytes = facts(device)?.l2_bytes.into();
        Ok(Graphs { device: device.clone(), events, tells, l2_bytes, roof: None })
    }

    /// Microseconds of the median replay of so many calls, of the fastest and of the slowest. Where
    /// the device tells no time, they are replayed once.
    fn replays(
        &self,
        calls: usize,
        mut record: impl FnMut(&mut Recorder<'_>, usize) -> Result<()>,
    ) -> Result<Option<[f64; 3]>> {
        let mut recorder = self.device.recorder()?;
        // SAFETY: what `record` enqueues outlives this call, which drops the graph, and every
        // replay is waited for.
        let mut graph = unsafe {
            self.device.capture(&mut recorder, |recorder| (0..calls).try_for_each(|call| record(recorder, call)))?
        };
        let mut replay = || self.events.time(&mut recorder, |recorder| graph.launch(recorder));
        let warm_up = if self.tells { WARM_UP } else { 1 };
        (0..warm_up).try_for_each(|_| replay().map(drop))?;
        let replays = if self.tells { REPLAYS } else { 0 };
        let times: Option<Vec<f64>> = (0..replays).map(|_| replay()).collect::<Result<_>>()?;
        self.device.finish(recorder)?;
        Ok(times.filter(|times| !times.is_empty()).map(summary))
    }

    /// Microseconds of one of so many launches of an empty kernel.
    fn empty(&self, count: usize) -> Result<Option<f64>> {
        let empty = match Empty::new(&self.device) {
            Ok(empty) => empty,
            // Kernels that were compiled elsewhere need no compiler, and this one is not among
            // them.
            Err(Error::Unavailable { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let times = self.replays(count, |recorder, _| empty.record(recorder))?;
        Ok(times.map(|[median, ..]| median / count as f64))
    }

    /// The work's amount per second in the median replay. It is checked once it has run.
    fn limit<R: roof::Roof>(&self, new: impl FnOnce() -> Result<R>) -> Result<Limit> {
        let calls = if self.tells { CALLS } else { 1 };
        let measured = new().and_then(|roof| {
            let times = self.replays(calls, |recorder, _| roof.record(recorder))?;
            roof.check()?;
            Ok(times.map(|[median, ..]| roof.amount() * calls as f64 / (median * 1e-6)))
        });
        match measured {
            Ok(Some(rate)) => Ok(Ok(rate)),
            Ok(None) => Ok(Err("the device tells no time".into())),
            Err(error @ Error::DeviceLost { .. }) => Err(error),
            Err(error) => Ok(Err(error.to_string())),
        }
    }
}

impl Clock for Graphs {
    fn device(&self) -> &Device {
        &self.device
    }

    fn kind(&self) -> ClockKind {
        ClockKind::CudaGraph
    }

    fn seconds(&mut self, work: &mut Work<'_>, calls: usize) -> Result<Option<f64>> {
        Ok(self.replays(calls, |recorder, _| work(recorder))?.map(|[median, ..]| median * 1e-6))
    }

    /// A copy of at least four L2 caches, multiply-adds in f32 without matrix units, and cuBLASLt's
    /// GEMM of 8192 rows, columns and terms in a 16-bit type, bf16 for f32.
    fn roof(&mut self, dtype: DType) -> Result<Roof> {
        if let Some(roof) = &self.roof {
            return Ok(roof.clone());
        }
        let dtype = if dtype.size() == 2 { dtype } else { DType::BF16 };
        // Without times, an emulator's, the work is done once and small.
        let [copied, blocks, size] = match self.tells {
            true => [COPIED.max(4 * self.l2_bytes as usize), BLOCKS, GEMM_SIZE],
            false => [1 << 20, 1, 64],
        };
        let device = &self.device;
        let mut random = RandomWeights::new(6).with_matrices(dtype);
        let noise = random.tensor(0.0, 1.0, &[NOISE.min(copied) / 4])?;
        let bytes_per_s = self.limit(|| roof::Copy::new(device, copied, &noise))?;
        let flops_per_s = self.limit(|| MultiplyAdd::new(device, blocks))?;
        let operands = [random.rounded(0.0, 1.0, &[size, size], dtype)?, random.matrix(size, size)?];
        let gemm_flops_per_s = self.limit(|| LibraryGemm::new(device, operands))?;
        Ok(self.roof.insert(Roof { bytes_per_s, flops_per_s, gemm_flops_per_s }).clone())
    }

    /// Cold, and warm where the operands fit into the L2 cache.
    fn cold(&self, bytes: u64) -> &'static [bool] {
        if bytes <= self.l2_bytes { &[true, false] } else { &[true] }
    }

    fn submissions(&self) -> usize {
        REPLAYS
    }

    /// A graph of at least 50 launches, the median of 20 replays.
    fn measure(&mut self, case: &Case, built: &mut Vec<BuiltCase>, cold: bool) -> Result<Timing> {
        let one = first(built)?;
        let (dtype, bytes) = (one.dtype, one.runnable().cost().bytes);
        let mut copies = 1;
        if cold {
            // Two at least: of a single large one the end would still be in the cache.
            let wanted = (2 * self.l2_bytes).div_ceil(bytes.max(1)) + 1;
            copies = (wanted as usize).min(MOST_COPIES);
        }
        while built.len() < copies {
            built.push(case.build(&self.device, dtype)?);
        }
        let mut recorder = self.device.recorder()?;
        // Once outside of the graph: the first call may load what it needs.
        let before = launches(&mut recorder)?;
        built[0].runnable().enqueue(&mut recorder)?;
        let each = launches(&mut recorder)? - before;
        self.device.finish(recorder)?;
        let calls = (LAUNCHES.div_ceil(each.max(1)) as usize).next_multiple_of(copies);
        let times = self.replays(calls, |recorder, call| built[call % copies].runnable().enqueue(recorder))?;
        let milliseconds = times.map(|times| times.map(|time| time / calls as f64 / 1e3));
        let empty_us = self.empty(calls * each.max(1) as usize)?;
        let graph = Some(GraphTiming { cold, empty_us, launches: each, copies });
        Ok(Timing { clock: ClockKind::CudaGraph, milliseconds, submissions: REPLAYS, calls, graph })
    }
}
