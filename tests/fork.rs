//! In a child of fork(), which has one thread: ops and bridges give the bits that they gave in the
//! parent, and nothing waits for threads that are not there.
#![cfg(unix)]

mod calls;

use std::ffi::c_int;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use calls::{Call, Lab};
use xattn::{CpuOptions, DType, Device};

// The C library that the standard library links.
unsafe extern "C" {
    fn fork() -> c_int;
    fn waitpid(process: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn kill(process: c_int, signal: c_int) -> c_int;
    fn _exit(code: c_int) -> !;
}

const WNOHANG: c_int = 1;
const SIGKILL: c_int = 9;
/// A child that takes longer waits for what never comes.
const LIMIT: Duration = Duration::from_secs(60);
/// Of children that panicked.
const PANICKED: c_int = 101;

/// Runs `work` in a child and returns its exit code.
#[track_caller]
fn in_child(work: impl FnOnce() -> u8) -> c_int {
    // SAFETY: the child calls nothing that another thread of the parent may have locked but the
    // allocator, which the C library keeps usable, and leaves by `_exit`, so that nothing of the
    // test harness runs twice.
    let child = unsafe { fork() };
    assert!(child >= 0, "fork() failed");
    if child == 0 {
        // A panic's message would want the lock of stderr.
        std::panic::set_hook(Box::new(|_| ()));
        let code = catch_unwind(AssertUnwindSafe(work)).map_or(PANICKED, c_int::from);
        // SAFETY: ends this process.
        unsafe { _exit(code) }
    }
    let started = Instant::now();
    let mut status = 0;
    loop {
        // SAFETY: a child of this process, and a status to write to.
        match unsafe { waitpid(child, &mut status, WNOHANG) } {
            0 if started.elapsed() > LIMIT => {
                // SAFETY: a child that has not been waited for.
                unsafe {
                    kill(child, SIGKILL);
                    waitpid(child, &mut status, 0);
                }
                panic!("the child still runs after {LIMIT:?}");
            }
            0 => std::thread::sleep(Duration::from_millis(5)),
            done => {
                assert_eq!(done, child, "waitpid failed");
                assert_eq!(status & 0x7f, 0, "the child died of signal {}", status & 0x7f);
                return status >> 8 & 0xff;
            }
        }
    }
}

fn calls_on(device: &Device) -> Vec<Call> {
    let mut lab = Lab::new(device);
    lab.ops().into_iter().chain(lab.bridges()).collect()
}

/// The number of the first call that gives other bits than expected, from 1 on; 0: none.
fn first_difference(calls: &mut [Call], expected: &[Vec<u8>]) -> u8 {
    let differs = |(call, expected): (&mut Call, &Vec<u8>)| call.bits().ok().as_ref() != Some(expected);
    calls.iter_mut().zip(expected).position(differs).map_or(0, |i| i as u8 + 1)
}

fn with_threads(threads: usize) -> Device {
    let mut options = CpuOptions::default();
    options.threads = NonZeroUsize::new(threads);
    Device::cpu_with(&options).unwrap()
}

/// One test: rayon's global pool must have been used before the fork.
#[test]
fn a_child_of_fork_computes_the_same_bits() {
    // Nothing has been used yet: a child has threads of its own.
    assert_eq!(in_child(|| u8::from(with_threads(2).info().details.starts_with("2 threads"))), 1);

    for device in [Device::cpu(), with_threads(3), with_threads(1)] {
        let mut calls = calls_on(&device);
        let names: Vec<_> = calls.iter().map(|call| call.name).collect();
        let expected: Vec<_> = calls.iter_mut().map(|call| call.bits().unwrap()).collect();
        let told = device.info().details;

        let code = in_child(|| first_difference(&mut calls, &expected));
        assert_ne!(code, PANICKED, "on {device:?}: a call panicked in the child");
        assert_eq!(code, 0, "on {device:?}: {} gave other bits in the child", names[code as usize - 1]);

        // Calls that are prepared in the child, whose weights are packed there.
        let code = in_child(|| {
            let weight = Lab::new(&device).weight(DType::F16);
            assert_eq!((weight.n(), weight.k()), (160, 208));
            first_difference(&mut calls_on(&device), &expected)
        });
        assert_eq!(code, 0, "on {device:?}: a call that was prepared in the child gave other bits");

        let code = in_child(|| u8::from(device.info().details.starts_with("1 threads")));
        assert_eq!(code, 1, "on {device:?}: one thread");
        assert_eq!(device.info().details, told, "the parent keeps its threads");
        assert_eq!(first_difference(&mut calls, &expected), 0, "the parent goes on");
    }

    // A device opened in the child has threads; one that uses the parent's does not.
    let mut calls = calls_on(&Device::cpu());
    let expected: Vec<_> = calls.iter_mut().map(|call| call.bits().unwrap()).collect();
    let code = in_child(|| {
        let (own, callers) = (with_threads(2), Device::cpu());
        assert!(own.info().details.starts_with("2 threads") && callers.info().details.starts_with("1 threads"));
        first_difference(&mut calls_on(&own), &expected).max(first_difference(&mut calls_on(&callers), &expected))
    });
    assert_eq!(code, 0, "a device that the child opened");
    // The last owner of threads that are elsewhere does not wait for their end.
    let last = with_threads(3);
    let code = in_child(move || {
        drop(last);
        3
    });
    assert_eq!(code, 3, "dropping a device");
    // And so on: a child of a child.
    let code = in_child(|| {
        let own = with_threads(2);
        let mut calls = calls_on(&own);
        let in_the_child = first_difference(&mut calls, &expected);
        in_child(|| first_difference(&mut calls, &expected)) as u8 + in_the_child
    });
    assert_eq!(code, 0, "a grandchild");
}
