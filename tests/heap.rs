//! What enqueueing allocates, counted: nothing inside a rayon pool. From outside, rayon's queue takes a block for every 63 times that work is handed
//! to its threads.

mod calls;

use std::alloc::{GlobalAlloc, Layout, System};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use calls::{Call, Lab};
use xattn::{CpuOptions, Device};

/// The system's allocator, which counts while it is told to, on all threads.
struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

fn count() {
    if COUNTS.load(Ordering::SeqCst) {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: everything is passed on to the system's allocator, and counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of one enqueue. Making the operands does not count.
fn allocations(call: &mut Call) -> usize {
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    let result = call.enqueue(&mut || COUNTS.store(true, Ordering::SeqCst));
    COUNTS.store(false, Ordering::SeqCst);
    result.unwrap();
    ALLOCATIONS.load(Ordering::SeqCst) - before
}

/// Work that rayon's queue takes with one block.
const BLOCK: usize = 63;
/// Calls before counting begins: threads make what they need when they first work.
const WARM: usize = 20;
const CALLS: usize = 100;

fn calls_on(device: &Device) -> Vec<Call> {
    let mut lab = Lab::new(device);
    lab.ops().into_iter().chain(lab.bridges()).collect()
}

/// One test: what others allocate at the same time would count.
#[test]
fn enqueue_allocates_nothing() {
    // The count counts.
    COUNTS.store(true, Ordering::SeqCst);
    drop(std::hint::black_box(vec![1u8]));
    COUNTS.store(false, Ordering::SeqCst);
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst), 1);

    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let mut inside = calls_on(&Device::cpu());
    pool.install(|| {
        for call in &mut inside {
            for round in 0..WARM + CALLS {
                let n = allocations(call);
                assert!(n == 0 || round < WARM, "{} inside a pool: {n} allocations in call {round}", call.name);
            }
        }
    });

    let mut options = CpuOptions::default();
    options.threads = NonZeroUsize::new(1);
    for call in &mut calls_on(&Device::cpu_with(&options).unwrap()) {
        for round in 0..CALLS {
            assert_eq!(allocations(call), 0, "{} on the calling thread, call {round}", call.name);
        }
    }

    options.threads = NonZeroUsize::new(3);
    for device in [Device::cpu(), Device::cpu_with(&options).unwrap()] {
        for call in &mut calls_on(&device) {
            let counts: Vec<usize> = (0..WARM + CALLS).map(|_| allocations(call)).skip(WARM).collect();
            let (most, all) = (counts.iter().max().unwrap(), counts.iter().sum::<usize>());
            assert!(*most <= 1, "{} on {device:?}: {most} allocations in one call", call.name);
            let blocks = (CALLS * call.hands).div_ceil(BLOCK) + 1;
            assert!(all <= blocks, "{} on {device:?}: {all} allocations in {CALLS} calls, not {blocks}", call.name);
        }
    }
}
