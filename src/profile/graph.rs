//! A case's time on a CUDA device, launched from a captured graph so that nothing but the device is
//! measured.

use super::{BuiltCase, Case};
use crate::backend::cuda::self_test::timing::{Empty, Stopwatch, facts, launches};
use crate::{CudaGraph, Device, Recorder, Result};

/// Launches in a graph, at least.
const LAUNCHES: u32 = 50;
/// Timed replays of a graph, after a few that are not.
const REPLAYS: usize = 20;
const WARM_UP: usize = 3;
/// Sets of operands, at most: the smallest cases would need thousands to fill a cache.
const MOST_COPIES: usize = 256;

/// What was measured of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphTiming {
    /// Whether operands come from memory: calls go round over so many copies of them that they
    /// exceed twice the L2 cache.
    pub cold: bool,
    /// Microseconds of one call: of the median replay, the fastest and the slowest. None where the
    /// device tells no time.
    pub microseconds: Option<[f64; 3]>,
    /// Microseconds of one launch of an empty kernel, in a graph of as many launches. None also
    /// where nothing compiles one.
    pub empty: Option<f64>,
    /// Launches of one call.
    pub launches: u32,
    /// Calls in the graph.
    pub calls: usize,
    /// Copies of the operands.
    pub copies: usize,
}

/// Median, least and largest.
fn summary(mut times: Vec<f64>) -> [f64; 3] {
    times.sort_unstable_by(f64::total_cmp);
    [times[times.len() / 2], times[0], times[times.len() - 1]]
}

impl Case {
    /// Times the case on the CUDA device on which `built`, at least one, is: a captured graph of at
    /// least 50 launches, the median of 20 replays. With a cold L2 cache, as many more are built as
    /// that takes; they stay for the next call.
    ///
    /// # Errors
    /// Another backend, memory that cannot be had, a device fault.
    pub fn time_in_graph(&self, built: &mut Vec<BuiltCase>, cold: bool) -> Result<GraphTiming> {
        let Some(first) = built.first_mut() else {
            return Err(crate::Error::argument("bench", "built", "at least one", "none"));
        };
        let (device, dtype, bytes) = (first.device.clone(), first.dtype, first.runnable().cost().bytes);
        let mut copies = 1;
        if cold {
            // Two at least: of a single large one the end would still be in the cache.
            let wanted = (2 * u64::from(facts(&device)?.l2_bytes)).div_ceil(bytes.max(1)) + 1;
            copies = (wanted as usize).min(MOST_COPIES);
        }
        while built.len() < copies {
            built.push(self.build(&device, dtype)?);
        }
        let mut recorder = device.recorder()?;
        // Once outside of the graph: the first call may load what it needs.
        let before = launches(&mut recorder)?;
        built[0].runnable().enqueue(&mut recorder)?;
        let each = launches(&mut recorder)? - before;
        device.finish(recorder)?;
        let calls = (LAUNCHES.div_ceil(each.max(1)) as usize).next_multiple_of(copies);
        let mut replay = Replay::new(&device)?;
        let times = replay.time(calls, |recorder, call| built[call % copies].runnable().enqueue(recorder))?;
        let microseconds = times.map(|times| times.map(|time| time / calls as f64));
        let empty = replay.empty(calls * each.max(1) as usize)?;
        Ok(GraphTiming { cold, microseconds, empty, launches: each, calls, copies })
    }
}

/// Captures work and times its replays.
pub(super) struct Replay {
    device: Device,
    watch: Stopwatch,
    /// Whether the device tells the time. An emulated one does not.
    tells: bool,
}

impl Replay {
    pub fn new(device: &Device) -> Result<Self> {
        let watch = Stopwatch::new(device)?;
        let mut recorder = device.recorder()?;
        let tells = watch.time(&mut recorder, |_| Ok(()))?.is_some();
        device.finish(recorder)?;
        Ok(Replay { device: device.clone(), watch, tells })
    }

    pub fn tells(&self) -> bool {
        self.tells
    }

    /// Microseconds of the median replay of so many calls, of the fastest and of the slowest. Where
    /// the device tells no time, they are replayed once.
    pub fn time(
        &mut self,
        calls: usize,
        mut record: impl FnMut(&mut Recorder<'_>, usize) -> Result<()>,
    ) -> Result<Option<[f64; 3]>> {
        let mut recorder = self.device.recorder()?;
        // SAFETY: what `record` enqueues outlives this call, which drops the graph, and every
        // replay is waited for.
        let mut graph = unsafe {
            self.device.capture(&mut recorder, |recorder| (0..calls).try_for_each(|call| record(recorder, call)))?
        };
        let times = self.replays(&mut graph, &mut recorder)?;
        self.device.finish(recorder)?;
        Ok(times.map(summary))
    }

    fn replays(&self, graph: &mut CudaGraph, recorder: &mut Recorder<'_>) -> Result<Option<Vec<f64>>> {
        for _ in 0..WARM_UP {
            if self.watch.time(recorder, |recorder| graph.launch(recorder))?.is_none() {
                return Ok(None);
            }
        }
        (0..REPLAYS).map(|_| self.watch.time(recorder, |recorder| graph.launch(recorder))).collect()
    }

    /// Microseconds of one of so many launches of an empty kernel.
    fn empty(&mut self, count: usize) -> Result<Option<f64>> {
        let empty = match Empty::new(&self.device) {
            Ok(empty) => empty,
            // Kernels that were compiled elsewhere need no compiler, and this one is not among
            // them.
            Err(crate::Error::Unavailable { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let times = self.time(count, |recorder, _| empty.record(recorder))?;
        Ok(times.map(|[median, ..]| median / count as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn a_summary_is_the_median_and_both_ends() {
        assert_eq!(summary(vec![3.0, 1.0, 2.0, 9.0, 4.0]), [3.0, 1.0, 9.0]);
    }
}
