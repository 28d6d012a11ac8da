//! Handles from several threads at once: one prepared call with a workspace each gives the bits of
//! one thread, a handle freed by many is freed once, one that is freed while a call uses it stays
//! alive for that call, and each thread has its own last error.

use std::ffi::CStr;
use std::mem::size_of;
use std::ptr::{null, null_mut};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use xattn_c::call::*;
use xattn_c::device::*;
use xattn_c::ops::linear::*;
use xattn_c::status::*;
use xattn_c::tensor::*;
use xattn_c::xattn_status::{self, *};

const THREADS: usize = 8;
const CALLS: usize = 5;
const ROWS: usize = 64;
const WIDTH: usize = 96;

/// A prepared call that threads share, as those of a C program would.
#[derive(Clone, Copy)]
struct Shared(*mut xattn_prepared);
// SAFETY: a key into the library's table, never followed; the header says that threads may share
// handles.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(self) -> *mut xattn_prepared {
        self.0
    }
}

fn tensor(data: &[f32], shape: &[u64]) -> xattn_tensor {
    let mut extents = [0; XATTN_MAX_RANK];
    extents[..shape.len()].copy_from_slice(shape);
    xattn_tensor {
        struct_size: size_of::<xattn_tensor>(),
        data: data.as_ptr().cast_mut().cast(),
        bytes: size_of_val(data) as u64,
        dtype: 1,
        rank: shape.len() as u32,
        shape: extents,
        strides: null(),
    }
}

fn cpu() -> *mut xattn_device {
    let mut device = null_mut();
    // SAFETY: a C string, and a place for the handle.
    assert_eq!(unsafe { xattn_device_open(c"cpu".as_ptr(), &mut device) }, XATTN_STATUS_OK);
    device
}

/// Numbers that fill every bit of a mantissa.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next()).collect()
}

/// x Wᵀ over `f`'s choice of call.
fn linear(x: &[f32], w: &[f32], out: &mut [f32], call: impl FnOnce(&xattn_linear_args)) {
    let x = tensor(x, &[1, ROWS as u64, WIDTH as u64]);
    let weight = tensor(w, &[WIDTH as u64, WIDTH as u64]);
    let out = tensor(out, &[1, ROWS as u64, WIDTH as u64]);
    call(&xattn_linear_args {
        struct_size: size_of::<xattn_linear_args>(),
        activation: 1,
        reduce: 0,
        x: &x,
        weight: &weight,
        weight_up: null(),
        prepared: null(),
        bias: null(),
        residual: null(),
        residual_in_place: 0,
        gate: null(),
        row_mask: null(),
        out: &out,
    });
}

/// Prepares a linear call of the tests' shape.
fn prepare(device: *mut xattn_device, x: &[f32], w: &[f32]) -> Shared {
    let (mut prepared, mut out) = (null_mut(), vec![0.0; ROWS * WIDTH]);
    linear(x, w, &mut out, |args| {
        // SAFETY: operands as described, a place for the handle.
        assert_eq!(unsafe { xattn_linear_prepare(device, args, &mut prepared) }, XATTN_STATUS_OK);
    });
    Shared(prepared)
}

/// Enqueues with a workspace of this thread's own.
fn enqueue(prepared: Shared, x: &[f32], w: &[f32], bytes: u64) -> (xattn_status, Vec<f32>) {
    let (mut out, mut status) = (vec![f32::NAN; ROWS * WIDTH], XATTN_STATUS_OK);
    let mut room = vec![0u8; bytes as usize + 64];
    let workspace = room.as_mut_ptr().wrapping_add(room.as_ptr().align_offset(64));
    linear(x, w, &mut out, |args| {
        // SAFETY: operands and workspace as described and used by this call alone.
        status = unsafe { xattn_linear_enqueue(prepared.get(), args, workspace.cast(), bytes, null_mut()) };
    });
    (status, out)
}

/// Waits for each thread by itself: the end of a scope orders nothing that ThreadSanitizer sees.
fn join(threads: Vec<std::thread::ScopedJoinHandle<'_, ()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
}

fn workspace_bytes(prepared: Shared) -> u64 {
    let mut bytes = 0;
    // SAFETY: a place for the number.
    assert_eq!(unsafe { xattn_prepared_workspace_bytes(prepared.get(), &mut bytes) }, XATTN_STATUS_OK);
    bytes
}

#[test]
fn threads_share_a_prepared_call() {
    let device = cpu();
    let (x, w) = (numbers(ROWS * WIDTH, 1), numbers(WIDTH * WIDTH, 2));
    let prepared = prepare(device, &x, &w);
    let bytes = workspace_bytes(prepared);
    let (status, expected) = enqueue(prepared, &x, &w, bytes);
    assert_eq!(status, XATTN_STATUS_OK);
    assert!(expected.iter().all(|y| y.is_finite()) && expected.iter().any(|&y| y != 0.0));
    let begin = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        let threads = (0..THREADS).map(|thread| {
            let (x, w, expected, begin) = (&x, &w, &expected, &begin);
            scope.spawn(move || {
                begin.wait();
                for call in 0..CALLS {
                    let (status, out) = enqueue(prepared, x, w, bytes);
                    assert_eq!(status, XATTN_STATUS_OK);
                    let differs = out.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
                    assert_eq!(differs, None, "thread {thread}, call {call}: first element that differs");
                }
            })
        });
        join(threads.collect());
    });
    assert_eq!(xattn_prepared_free(prepared.get()), XATTN_STATUS_OK);
    assert_eq!(xattn_device_free(device), XATTN_STATUS_OK);
}

#[test]
fn a_handle_is_freed_once_whoever_tries_and_calls_under_way_finish() {
    let device = cpu();
    let (x, w) = (numbers(ROWS * WIDTH, 3), numbers(WIDTH * WIDTH, 4));
    for _ in 0..20 {
        let prepared = prepare(device, &x, &w);
        let bytes = workspace_bytes(prepared);
        let (begin, freed) = (Barrier::new(2 * THREADS), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let threads = (0..2 * THREADS).map(|thread| {
                let (x, w, begin, freed) = (&x, &w, &begin, &freed);
                scope.spawn(move || {
                    begin.wait();
                    let status = if thread % 2 == 0 {
                        xattn_prepared_free(prepared.get())
                    } else {
                        enqueue(prepared, x, w, bytes).0
                    };
                    match status {
                        XATTN_STATUS_OK if thread % 2 == 0 => _ = freed.fetch_add(1, Ordering::Relaxed),
                        XATTN_STATUS_OK => {}
                        other => assert_eq!(other, XATTN_STATUS_INVALID_HANDLE),
                    }
                })
            });
            join(threads.collect());
        });
        assert_eq!(freed.into_inner(), 1);
    }
    assert_eq!(xattn_device_free(device), XATTN_STATUS_OK);
}

#[test]
fn each_thread_has_its_own_last_error() {
    let last = || {
        // SAFETY: never null, valid until the thread's next failure.
        unsafe { CStr::from_ptr(xattn_last_error()) }.to_string_lossy().into_owned()
    };
    let mut device = null_mut();
    // SAFETY: a C string, and a place for the handle.
    let status = unsafe { xattn_device_open(c"abacus".as_ptr(), &mut device) };
    assert_eq!(status, XATTN_STATUS_INVALID_ARGUMENT);
    let mine = last();
    assert!(mine.ends_with("got abacus"), "{mine}");
    std::thread::spawn(move || assert_eq!(last(), "", "another thread's failure")).join().unwrap();
    assert_eq!(last(), mine);
}
