//! The system's allocator with accounts: blocks asked for, and the most live bytes.

#![allow(dead_code, reason = "each test uses a part")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

thread_local! {
    /// Blocks that this thread has asked for or resized.
    static BLOCKS: Cell<usize> = const { Cell::new(0) };
    /// Bytes that this thread has asked for and not given back; what it gives back for others
    /// counts too.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    /// The largest LIVE since it was last set.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Whether blocks of all threads are counted now.
static COUNTS: AtomicBool = AtomicBool::new(false);
/// Blocks of all threads.
static ALL: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn asked(bytes: usize) {
    if COUNTS.load(Ordering::SeqCst) {
        ALL.fetch_add(1, Ordering::SeqCst);
    }
    // A thread that is ending has no accounts any more.
    let _ = BLOCKS.try_with(|blocks| blocks.set(blocks.get() + 1));
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes as isize);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

fn given_back(bytes: usize) {
    let _ = LIVE.try_with(|live| live.set(live.get() - bytes as isize));
}

// SAFETY: everything is passed on to the system's allocator, and counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        asked(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        given_back(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        asked(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks may live for a moment.
        asked(size);
        given_back(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Blocks that this thread asks for while it works.
pub fn blocks_of(work: impl FnOnce()) -> usize {
    let before = BLOCKS.get();
    work();
    BLOCKS.get() - before
}

/// Begins to count the blocks of all threads.
pub fn count_all() {
    COUNTS.store(true, Ordering::SeqCst);
}

/// Blocks of all threads since [`count_all`], which ends.
pub fn counted() -> usize {
    COUNTS.store(false, Ordering::SeqCst);
    ALL.swap(0, Ordering::SeqCst)
}

/// The most bytes that live at once while this thread works, beyond those that did before.
pub fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (result, usize::try_from(PEAK.get() - before).unwrap_or(0))
}

/// Bytes that this thread has asked for and not given back.
pub fn live() -> isize {
    LIVE.get()
}

/// The accounts are right: to be called by a test of each program that uses them.
pub fn check() {
    use std::hint::black_box;
    assert_eq!(blocks_of(|| ()), 0);
    assert_eq!(blocks_of(|| drop(black_box(Box::new(1)))), 1);
    let mut grows = vec![0u8; 9];
    assert_eq!(blocks_of(|| grows.reserve_exact(black_box(100))), 1);
    count_all();
    let made = std::thread::spawn(|| drop(black_box(vec![0u8; 9])));
    made.join().unwrap();
    assert!(counted() >= 1 && counted() == 0);
    let ((), peak) = peak_of(|| {
        drop(black_box(vec![0u8; 1000]));
        drop(black_box(vec![0u8; 3000]));
    });
    assert_eq!(peak, 3000);
}
