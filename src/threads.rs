//! Threads of the processor: the only file that enters rayon.
//!
//! A process that was forked from one that used the same threads has none of them: the caller then
//! does all work (`fork.rs`).

use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::fork::{Origin, forked};
use crate::{Error, Result};

/// The threads that do the work of a call.
pub(crate) struct Pool(Kind);

enum Kind {
    /// The threads of the rayon pool that the caller is in, or of the global one.
    Callers,
    /// Threads of our own, and the process that has them.
    Own(ManuallyDrop<rayon::ThreadPool>, Origin),
    One,
}

impl Pool {
    pub fn callers() -> Self {
        Pool(Kind::Callers)
    }

    pub fn one() -> Self {
        Pool(Kind::One)
    }

    /// `threads` threads of its own; 1 is the calling thread.
    ///
    /// # Errors
    /// More threads than rayon manages, or than the system starts.
    pub fn with_threads(threads: NonZeroUsize) -> Result<Self> {
        let most = rayon::max_num_threads();
        if threads.get() > most {
            return Err(Error::argument("device", "threads", format!("at most {most}"), threads));
        }
        if threads.get() == 1 {
            return Ok(Pool::one());
        }
        let build = rayon::ThreadPoolBuilder::new().num_threads(threads.get()).thread_name(|i| format!("xattn {i}"));
        match build.build() {
            Ok(pool) => Ok(Pool(Kind::Own(ManuallyDrop::new(pool), Origin::here()))),
            Err(error) => Err(Error::Unavailable { backend: "cpu", reason: format!("no {threads} threads: {error}") }),
        }
    }

    pub fn threads(&self) -> usize {
        match &self.0 {
            _ if self.is_lost() => 1,
            Kind::Callers => rayon::current_num_threads(),
            Kind::Own(pool, _) => pool.current_num_threads(),
            Kind::One => 1,
        }
    }

    /// Calls `work(0)` to `work(n - 1)`, on `n` threads if the pool has as many, and waits.
    pub fn each(&self, n: usize, work: impl Fn(usize) + Sync + Send) {
        match self.alone(n) {
            true => (0..n).for_each(work),
            false => self.within(|done| {
                (0..n).into_par_iter().with_max_len(1).for_each(|i| {
                    work(i);
                    done.note();
                });
            }),
        }
    }

    /// The results of `f(0)` to `f(n - 1)`, in order.
    #[cfg(feature = "verify")]
    pub fn map<T: Send>(&self, n: usize, f: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        match self.alone(n) {
            true => (0..n).map(f).collect(),
            false => self.within(|done| {
                let results = (0..n).into_par_iter().with_max_len(1).map(|i| {
                    let result = f(i);
                    done.note();
                    result
                });
                results.collect()
            }),
        }
    }

    /// Calls `work(thread, task)` once for every task below `tasks`. Each of `threads` threads
    /// draws the next task when it is done with one.
    pub fn deal(&self, threads: usize, tasks: usize, work: impl Fn(usize, usize) + Sync + Send) {
        if threads <= 1 {
            return (0..tasks).for_each(|task| work(0, task));
        }
        let next = AtomicUsize::new(0);
        let draw = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&task| task < tasks);
        self.each(threads, |thread| {
            while let Some(task) = draw() {
                work(thread, task);
            }
        });
    }

    /// Calls `work` once for every chunk of `len` values with its number. No other call uses its
    /// buffers at the same time.
    #[cfg(any(test, feature = "verify"))]
    pub fn chunks<T: Send, B>(
        &self,
        values: &mut [T],
        len: usize,
        buffers: impl Fn() -> B + Sync + Send,
        work: impl Fn(&mut B, usize, &mut [T]) + Sync + Send,
    ) {
        if self.alone(values.len().div_ceil(len)) {
            let mut buffers = buffers();
            values.chunks_mut(len).enumerate().for_each(|(i, chunk)| work(&mut buffers, i, chunk));
        } else {
            self.within(|done| {
                values.par_chunks_mut(len).enumerate().for_each_init(buffers, |buffers, (i, chunk)| {
                    work(buffers, i, chunk);
                    done.note();
                });
            });
        }
    }

    /// Whether the caller does all `n` calls itself.
    fn alone(&self, n: usize) -> bool {
        n <= 1 || matches!(self.0, Kind::One) || self.is_lost()
    }

    /// Whether the threads stayed in a parent of this process.
    fn is_lost(&self) -> bool {
        match &self.0 {
            Kind::Callers => forked(),
            Kind::Own(_, origin) => origin.is_parent(),
            Kind::One => false,
        }
    }

    fn within<T: Send>(&self, work: impl FnOnce(&Done) -> T + Send) -> T {
        let done = Done::default();
        let result = match &self.0 {
            Kind::Own(pool, _) => pool.install(|| work(&done)),
            Kind::Callers | Kind::One => work(&done),
        };
        done.see();
        result
    }
}

/// Orders the work of threads before what their caller does next. Rayon's own ordering is by a lock
/// in the standard library, which ThreadSanitizer does not see. With this, it judges kernels
/// without an exception for what follows them.
#[derive(Default)]
struct Done(AtomicUsize);

impl Done {
    fn note(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    fn see(&self) {
        self.0.load(Ordering::Acquire);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let lost = self.is_lost();
        if let Kind::Own(pool, _) = &mut self.0
            && !lost
        {
            // SAFETY: nothing uses the pool after this. One whose threads are elsewhere is left as
            // it is: telling them to end takes locks that they may have held when the process was
            // forked.
            unsafe { ManuallyDrop::drop(pool) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Result<Pool> {
        Pool::with_threads(NonZeroUsize::new(threads).unwrap())
    }

    #[test]
    fn a_pool_has_the_threads_it_was_asked_for() {
        for threads in [1, 2, 5] {
            let pool = pool(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            // All at the same time: each waits for the others.
            let met = std::sync::Barrier::new(threads);
            pool.each(threads, |_| {
                met.wait();
            });
            let mut values = [0usize; 23];
            pool.chunks(&mut values, 4, || 1, |one, i, chunk| chunk.fill(i + *one));
            assert_eq!(values, std::array::from_fn(|i| i / 4 + 1));
        }
        let most = rayon::max_num_threads();
        let message = pool(most + 1).err().unwrap().to_string();
        assert_eq!(message, format!("device: threads: expected at most {most}, got {}", most + 1));
    }

    #[test]
    fn the_callers_pool_is_the_one_it_is_in() {
        let outer = pool(3).unwrap();
        let Kind::Own(rayon, _) = &outer.0 else { panic!("a pool of 3 threads") };
        assert_eq!(rayon.install(|| Pool::callers().threads()), 3);
        assert_eq!(rayon.install(|| pool(2).unwrap().threads()), 2);
    }

    #[test]
    fn every_task_is_dealt_once() {
        for threads in [1, 2, 3, 7] {
            let dealt = std::sync::Mutex::new(Vec::new());
            pool(3).unwrap().deal(threads, 1000, |thread, task| {
                assert!(thread < threads);
                dealt.lock().unwrap().push(task);
            });
            let mut dealt = dealt.into_inner().unwrap();
            dealt.sort_unstable();
            assert_eq!(dealt, (0..1000).collect::<Vec<_>>());
        }
    }
}
