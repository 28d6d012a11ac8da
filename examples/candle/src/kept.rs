//! What a call leaves for the next one: a plan, and its workspace.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Something that one caller at a time takes out, uses and puts back.
///
/// No lock is held meanwhile. An op on the CPU waits inside rayon, and a thread of its pool that
/// waits there takes up other tasks, among which may be another call of this very op: it would wait
/// for a lock that its own thread holds. Such a call makes a plan of its own.
pub struct Kept<T>(Mutex<Option<T>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept(Mutex::new(None))
    }
}

impl<T> Kept<T> {
    /// What is there, if it fits and nobody else uses it; the caller makes a new one otherwise.
    /// What does not fit is dropped.
    pub fn take(&self, fits: impl FnOnce(&T) -> bool) -> Option<T> {
        let taken = self.lock().take();
        taken.filter(fits)
    }

    /// Keeps it for the next caller, instead of what is there.
    pub fn put(&self, kept: T) {
        let before = self.lock().replace(kept);
        drop(before);
    }

    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    /// A call that runs another one before it comes back, as a thread of rayon's pool does that
    /// takes up a task while it waits.
    fn call(kept: &Kept<i32>, plan: i32, within: &mut dyn FnMut()) -> bool {
        let taken = kept.take(|&have| have == plan);
        let made = taken.is_none();
        within();
        kept.put(taken.unwrap_or(plan));
        made
    }

    #[test]
    fn a_call_within_a_call_does_not_wait_for_it() {
        let (done, result) = channel();
        std::thread::spawn(move || {
            let (kept, mut made) = (Kept::default(), Vec::new());
            for (outer, inner) in [(1, 1), (1, 1), (1, 2), (1, 1)] {
                let mut made_inside = false;
                let made_outside = call(&kept, outer, &mut || made_inside = call(&kept, inner, &mut || ()));
                made.push([made_outside, made_inside]);
            }
            done.send(made).unwrap();
        });
        let made = result.recv_timeout(Duration::from_secs(20)).expect("a call waits for a lock of its own thread");
        assert_eq!(made, [[true, true], [false, true], [false, true], [false, true]], "whether each call made a plan");
    }
}
