//! A device that breaks: the error names the op, and nothing panics.

use xattn::ops::{GatedResidual, GatedResidualArgs, Source};
use xattn::{CudaMemory, DType, Dispatch, Error, Memory, Tensor, View, ViewMut, Workspace};

use crate::support::{child, emulated, is_child, said, spec};

/// Reads at invalid addresses. A broken context stays broken: each has its own process.
fn break_the_device() -> (Result<(), Error>, Result<(), Error>, Result<Tensor, Error>) {
    let device = crate::support::device().unwrap();
    let (row, gate) = (spec(DType::F32, &[1, 1, 3]), spec(DType::F32, &[1]));
    let shapes = GatedResidualArgs { x: Source::From(row), y: row, gate, row_mask: None, out: row };
    let prepared = GatedResidual.prepare(&device, shapes).unwrap();
    let nowhere = |address, bytes| Memory::Cuda(CudaMemory::new(address, bytes));
    // SAFETY: none: that is the point. The process ends with this test.
    let args = unsafe {
        GatedResidualArgs {
            x: Source::From(View::from_raw(row, nowhere(64, 12))),
            y: View::from_raw(row, nowhere(128, 12)),
            gate: View::from_raw(gate, nowhere(192, 4)),
            row_mask: None,
            out: ViewMut::from_raw(row, nowhere(256, 12)),
        }
    };
    let mut workspace = Workspace::new(&device, 0).unwrap();
    let mut recorder = device.recorder().unwrap();
    let enqueued = prepared.enqueue(&mut recorder, args, &mut workspace);
    let finished = device.finish(recorder);
    (enqueued, finished, Tensor::zeros(&device, DType::F32, &[4]))
}

fn expect_lost<T: std::fmt::Debug>(result: Result<T, Error>, op: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::DeviceLost { .. }), "{error:?}");
    let words = format!("cuda: device lost in {op}: ");
    assert!(error.to_string().starts_with(&words), "{error}");
}

#[test]
fn a_fault_is_an_error_that_names_the_op() {
    if !emulated() {
        eprintln!("skipped: a fault breaks the device for others; the emulated one has it to itself");
        return;
    }
    said(child("faults::waiting_notices", &[("XATTN_CUDA_SYNC", None)]).output().unwrap());
    let text = said(child("faults::the_switch_names_the_op", &[("XATTN_CUDA_SYNC", Some("1"))]).output().unwrap());
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
#[ignore = "a process of its own"]
fn waiting_notices() {
    if !is_child() {
        return;
    }
    let (enqueued, finished, later) = break_the_device();
    // The kernel may have run by then, or not.
    if enqueued.is_err() {
        expect_lost(enqueued, "gated_residual");
    }
    expect_lost(finished, "finish");
    expect_lost(later, "allocate");
}

#[test]
#[ignore = "a process of its own"]
fn the_switch_names_the_op() {
    if !is_child() {
        return;
    }
    let (enqueued, finished, _) = break_the_device();
    expect_lost(enqueued, "gated_residual");
    expect_lost(finished, "finish");
}
