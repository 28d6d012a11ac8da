//! A case's time on a CUDA device, launched from a captured graph so that nothing but the device is measured.

use super::{BuiltCase, Case};
use crate::backend::cuda::timing::{Empty, Stopwatch, l2_bytes, launches};
use crate::{DType, Device, Result};

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
    /// Whether operands come from memory: calls go round over so many copies of them that they exceed twice the L2 cache.
    pub cold: bool,
    /// Microseconds of one call: of the median replay, the fastest and the slowest. None where the device tells no time.
    pub microseconds: Option<[f64; 3]>,
    /// Microseconds of one launch of an empty kernel, in a graph of as many launches.
    pub empty: Option<f64>,
    /// Launches of one call.
    pub launches: u32,
    /// Calls in the graph.
    pub calls: usize,
    /// Copies of the operands.
    pub copies: usize,
    /// Bytes and operations of one call, each operand counted once.
    pub cost: crate::ops::Cost,
}

/// Median, least and largest.
fn summary(mut times: Vec<f64>) -> [f64; 3] {
    times.sort_unstable_by(f64::total_cmp);
    [times[times.len() / 2], times[0], times[times.len() - 1]]
}

impl Case {
    /// Times the case on a CUDA device: a captured graph of at least 50 launches, the median of 20 replays.
    ///
    /// # Errors
    /// Another backend, a device that does not support the case, memory that cannot be had.
    pub fn time_in_graph(&self, device: &Device, dtype: DType, cold: bool) -> Result<GraphTiming> {
        let mut built = vec![self.build(device, dtype)?];
        let cost = built[0].runnable().cost();
        if cold {
            // Two at least: of a single large one the end would still be in the cache.
            let copies = (2 * l2_bytes(device)? as u64).div_ceil(cost.bytes.max(1)) + 1;
            while built.len() < (copies as usize).min(MOST_COPIES) {
                built.push(self.build(device, dtype)?);
            }
        }
        let copies = built.len();
        let mut recorder = device.recorder()?;
        // Once outside of the graph: the first call may load what it needs.
        let before = launches(&mut recorder)?;
        built[0].runnable().enqueue(&mut recorder)?;
        let each = launches(&mut recorder)? - before;
        device.finish(recorder)?;
        let calls = (LAUNCHES.div_ceil(each.max(1)) as usize).next_multiple_of(copies);
        let (times, empty) = replay(device, &mut built, calls, each)?;
        let microseconds = times.map(summary);
        Ok(GraphTiming { cold, microseconds, empty, launches: each, calls, copies, cost })
    }
}

/// Microseconds per call of each replay, and per launch of an empty kernel.
fn replay(
    device: &Device,
    built: &mut [BuiltCase],
    calls: usize,
    launches: u32,
) -> Result<(Option<Vec<f64>>, Option<f64>)> {
    let copies = built.len();
    let mut recorder = device.recorder()?;
    // SAFETY: `built` outlives the graph, which this function drops, and every replay is waited for.
    let mut work = unsafe {
        device.capture(&mut recorder, |recorder| {
            (0..calls).try_for_each(|call| built[call % copies].runnable().enqueue(recorder))
        })?
    };
    let empty = Empty::new(device)?;
    let count = calls * launches.max(1) as usize;
    // SAFETY: as above, for the empty kernel, which touches no memory.
    let mut nothing =
        unsafe { device.capture(&mut recorder, |recorder| (0..count).try_for_each(|_| empty.enqueue(recorder)))? };
    let watch = Stopwatch::new(device)?;
    let mut rounds = |graph: &mut crate::CudaGraph| -> Result<Option<Vec<f64>>> {
        for _ in 0..WARM_UP {
            // An emulated device is slow, and has nothing to tell.
            if watch.time(&mut recorder, |recorder| graph.launch(recorder))?.is_none() {
                return Ok(None);
            }
        }
        (0..REPLAYS).map(|_| watch.time(&mut recorder, |recorder| graph.launch(recorder))).collect()
    };
    let times = rounds(&mut work)?;
    let nothings = rounds(&mut nothing)?;
    device.finish(recorder)?;
    let per_call = times.map(|times| times.into_iter().map(|t| t / calls as f64).collect());
    Ok((per_call, nothings.map(|times| summary(times)[0] / count as f64)))
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn a_summary_is_the_median_and_both_ends() {
        assert_eq!(summary(vec![3.0, 1.0, 2.0, 9.0, 4.0]), [3.0, 1.0, 9.0]);
    }
}
