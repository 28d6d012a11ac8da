//! The time of recorded ops by the device's clock: timestamps at both ends of a compute pass.
//!
//! For benchmarks only. The recorder needs no support: it records into a caller's pass, ours.

use super::{NAME, Wgpu, WgpuMemory, WgpuRecorder};
use crate::{Error, Result};

/// Two timestamps, and the memory that they are read from. Reused between measurements.
pub(crate) struct Timestamps {
    queries: ::wgpu::QuerySet,
    resolved: ::wgpu::Buffer,
    /// Nanoseconds per tick.
    period: f64,
}

const BYTES: u64 = 16;

impl Wgpu {
    /// Creates the queries.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on a device without timestamps, whatever its adapter has.
    pub(crate) fn timestamps(&self) -> Result<Timestamps> {
        if !self.device.features().contains(::wgpu::Features::TIMESTAMP_QUERY) {
            return Err(Error::Unsupported {
                op: "timestamps",
                what: "TIMESTAMP_QUERY".into(),
                backend: NAME,
                available: "the wall clock".into(),
            });
        }
        let (queries, resolved) = self.scoped("timestamps", Some(("timestamps", BYTES as usize)), || {
            let queries = self.device.create_query_set(&::wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: ::wgpu::QueryType::Timestamp,
                count: 2,
            });
            let resolved = self.device.create_buffer(&::wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: BYTES,
                usage: ::wgpu::BufferUsages::QUERY_RESOLVE | ::wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            (queries, resolved)
        })?;
        Ok(Timestamps { queries, resolved, period: f64::from(self.queue.get_timestamp_period()) })
    }

    /// Seconds between beginning and end of one compute pass with the commands of `record`,
    /// submitted alone and waited for. `None` if the clock did not advance: some are coarse or
    /// stop.
    pub(crate) fn elapsed(
        &self,
        timestamps: &Timestamps,
        record: impl FnOnce(WgpuRecorder<'_>) -> Result<()>,
    ) -> Result<Option<f64>> {
        let op = "timestamps";
        let label = Some(op);
        let mut encoder =
            self.scoped(op, None, || self.device.create_command_encoder(&::wgpu::CommandEncoderDescriptor { label }))?;
        let timestamp_writes = Some(::wgpu::ComputePassTimestampWrites {
            query_set: &timestamps.queries,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        });
        let descriptor = ::wgpu::ComputePassDescriptor { label, timestamp_writes };
        let mut pass = encoder.begin_compute_pass(&descriptor).forget_lifetime();
        let recorded = record(WgpuRecorder::pass(&mut pass));
        drop(pass);
        recorded?;
        self.scoped(op, None, || {
            encoder.resolve_query_set(&timestamps.queries, 0..2, &timestamps.resolved, 0);
            self.queue.submit([encoder.finish()])
        })?;
        self.wait(op)?;
        let mut ticks = [0u64; 2];
        let resolved = WgpuMemory::new(&timestamps.resolved, 0, BYTES);
        self.read_region(&resolved, bytemuck::cast_slice_mut(&mut ticks))?;
        Ok(seconds(ticks, timestamps.period))
    }
}

/// Seconds between two timestamps, if the clock advanced.
fn seconds([begin, end]: [u64; 2], period: f64) -> Option<f64> {
    let ticks = end.checked_sub(begin)?;
    (ticks > 0 && period > 0.0).then_some(ticks as f64 * period * 1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_seconds_where_time_went_by() {
        assert_eq!(seconds([1_000_000, 3_000_000], 1.0), Some(2e-3));
        assert_eq!(seconds([0, 1_000_000], 83.333), Some(1e6 * 83.333 * 1e-9));
        assert_eq!(seconds([5, 5], 1.0), None, "a clock that stands still");
        assert_eq!(seconds([6, 5], 1.0), None, "a clock that was reset");
        assert_eq!(seconds([5, 9], 0.0), None, "a period that nobody knows");
    }
}
