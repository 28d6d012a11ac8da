//! Counts what each thread allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts.
pub struct Counting;

thread_local! {
    /// Bytes held now, and the most that was held since the peak was reset.
    static HELD: Cell<[isize; 2]> = const { Cell::new([0; 2]) };
}

fn add(bytes: isize) {
    // A thread that ends has no counts any more.
    let _ = HELD.try_with(|held| {
        let [now, peak] = held.get();
        held.set([now + bytes, peak.max(now + bytes)]);
    });
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as isize);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as isize);
        // SAFETY: passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        add(-(layout.size() as isize));
        // SAFETY: passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there while one is copied to the other.
        add(size as isize);
        add(-(layout.size() as isize));
        // SAFETY: passed on.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// What a call returns, and the most bytes that it held at once on this thread beyond what was there before.
pub fn peak<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.with(|held| {
        let [now, _] = held.get();
        held.set([now, now]);
        now
    });
    let result = call();
    let peak = HELD.with(|held| held.get()[1]);
    (result, (peak - before) as usize)
}

/// Bytes that this thread holds now.
pub fn held() -> isize {
    HELD.with(|held| held.get()[0])
}

#[test]
fn allocations_are_counted() {
    assert_eq!(peak(|| drop(vec![1u8; 1000])).1, 1000);
    let (held, bytes) = peak(|| {
        let mut grown: Vec<u8> = Vec::with_capacity(100);
        grown.extend([1; 100]);
        grown.reserve_exact(900);
        grown
    });
    assert_eq!((held.capacity(), bytes), (1000, 1100));
}
