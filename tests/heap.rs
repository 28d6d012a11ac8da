//! What enqueueing allocates, counted: nothing inside a rayon pool. From outside, rayon's queue
//! takes a block for every 63 times that work is handed to its threads.

mod calls;
mod counting;

use std::num::NonZeroUsize;

use calls::{Call, Lab};
use counting::{count_all, counted};
use xattn::{CpuOptions, Device};

/// Allocations of one enqueue, on all threads. Making the operands does not count.
fn allocations(call: &mut Call) -> usize {
    let mut blocks = 0;
    call.enqueue(&mut count_all, &mut || blocks = counted()).unwrap();
    blocks
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
    counting::check();
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
