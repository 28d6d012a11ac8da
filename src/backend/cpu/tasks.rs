//! The tasks of a call, and their scheduling over threads, each with scratch of its own.

use super::rows::{PAD, Raw};
use crate::size::{Size, Word};
use crate::tensor::HostMemory;
use crate::threads::Pool;

/// The tasks of a call, and its scratch: a part that all threads read, then a part per thread.
#[derive(Clone, Copy)]
pub(crate) struct Tasks {
    /// f32 of the shared part, which comes first.
    shared: usize,
    /// f32 per thread.
    per_thread: usize,
    /// Threads that may work at the same time.
    threads: usize,
    /// Bytes of the workspace.
    bytes: usize,
    tasks: usize,
}

/// Multiply-adds (or elements, for ops that only move data) below which a call stays on the
/// caller's thread: about 10 µs, the cost of handing work to rayon from outside its threads. (Tests
/// use threads for small shapes too.)
const INLINE_WORK: usize = if cfg!(test) { 1 << 7 } else { 1 << 17 };

/// Threads for so much work: those of the pool, or 1 if waking threads costs more than it saves.
pub(super) fn threads_for(pool: &Pool, work: usize) -> usize {
    if work < INLINE_WORK { 1 } else { pool.threads() }
}

impl Tasks {
    /// No work, whatever the sizes are.
    pub const EMPTY: Tasks = Tasks { shared: 0, per_thread: 0, threads: 1, bytes: 0, tasks: 0 };

    /// Scratch of `shared` and `per_thread` f32 for `work` multiply-adds in `tasks` tasks; `None` if they
    /// do not fit the address space.
    pub fn of(pool: &Pool, shared: Size, per_thread: Size, work: usize, tasks: Size) -> Option<Self> {
        let tasks = tasks.get()?;
        let threads = threads_for(pool, work).min(tasks).max(1);
        let bytes = scratch_bytes(shared, per_thread, threads).get()?;
        let [shared, per_thread] = [shared, per_thread].map(|part| part.next_multiple_of(PAD).get());
        Some(Tasks { shared: shared?, per_thread: per_thread?, threads, bytes, tasks })
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.tasks == 0
    }

    /// Calls `work` once for every task, on at most `threads` threads. No other call uses its
    /// scratch at the same time.
    ///
    /// # Safety
    /// `workspace` holds [`Tasks::bytes`] bytes, aligned to 4, and nothing else uses it during the
    /// call.
    pub unsafe fn spread(
        &self,
        pool: &Pool,
        workspace: &HostMemory,
        threads: usize,
        work: impl Fn(usize, *mut f32) + Sync + Send,
    ) {
        let scratch = Raw::f32s(workspace.address().cast()).add(self.shared);
        let threads = self.threads.min(threads);
        pool.deal(threads, self.tasks, |thread, task| {
            work(task, scratch.add(thread * self.per_thread).address().cast())
        });
    }
}

/// Bytes of `shared` f32 and of `threads` times `per_thread` f32, each part in whole registers.
pub(super) fn scratch_bytes<W: Word>(shared: Size<W>, per_thread: Size<W>, threads: usize) -> Size<W> {
    (shared.next_multiple_of(PAD) + per_thread.next_multiple_of(PAD) * threads) * size_of::<f32>()
}
