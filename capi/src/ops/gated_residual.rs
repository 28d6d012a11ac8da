//! `gated_residual`.

use std::ffi::c_void;
use std::mem::size_of;

use xattn::ops::{GatedResidual, GatedResidualArgs};

use super::source;

use crate::call::{self, Args, Place, xattn_prepared};
use crate::device::xattn_device;
use crate::status::{Fault, Result, guard, xattn_status};
use crate::tensor::{Operand, Versioned, read, xattn_tensor};

const CALL: &str = "gated_residual";

/// Operands of `xattn_gated_residual`: out = x + tanh(gate) * row_mask * y.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_gated_residual_args {
    /// `sizeof(xattn_gated_residual_args)`.
    pub struct_size: usize,
    /// The residual stream `[batch, rows, D]`; null with `x_in_place`.
    pub x: *const xattn_tensor,
    /// 1: the residual stream is what `out` holds.
    pub x_in_place: u32,
    /// The branch `[batch, rows, D]`.
    pub y: *const xattn_tensor,
    /// Raw gate, `[1]` or per channel `[D]`.
    pub gate: *const xattn_tensor,
    /// `u32 [batch, rows]`: where it is 0, only x remains. Or null.
    pub row_mask: *const xattn_tensor,
    /// Result `[batch, rows, D]`.
    pub out: *const xattn_tensor,
}

// SAFETY: `#[repr(C)]`, size first; numbers, and pointers that may be null.
unsafe impl Versioned for xattn_gated_residual_args {
    const NAME: &'static str = "xattn_gated_residual_args";
    const FIRST_SIZE: usize = size_of::<xattn_gated_residual_args>();
}

/// SAFETY: as the exported functions.
unsafe fn parse(at: *const xattn_gated_residual_args) -> Result<(GatedResidual, Args<GatedResidual>)> {
    // SAFETY: passed on.
    unsafe {
        let a = read(CALL, "args", at)?;
        let x = source(CALL, "x", a.x, a.x_in_place)?;
        let x = x.ok_or_else(|| Fault::argument(CALL, "x", "a tensor, or x_in_place", "neither"))?;
        let (y, gate) = (Operand::read(CALL, "y", a.y)?, Operand::read(CALL, "gate", a.gate)?);
        let (row_mask, out) =
            (Operand::read_optional(CALL, "row_mask", a.row_mask)?, Operand::read(CALL, "out", a.out)?);
        Ok((GatedResidual, GatedResidualArgs { x, y, gate, row_mask, out }))
    }
}

/// x + tanh(gate) * y: checks, runs and waits.
///
/// # Safety
/// `args` points to a `xattn_gated_residual_args`, and everything it points to is as described,
/// alive, and not used in conflict until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_gated_residual(
    device: *const xattn_device,
    args: *const xattn_gated_residual_args,
) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (op, args) = parse(args)?;
        call::run(device, &op, args)
    })
}

/// Checks and plans for these shapes and this device. Addresses are not kept:
/// `xattn_gated_residual_enqueue` takes them again.
///
/// # Safety
/// `args` as for `xattn_gated_residual`; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_gated_residual_prepare(
    device: *const xattn_device,
    args: *const xattn_gated_residual_args,
    out: *mut *mut xattn_prepared,
) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (op, args) = parse(args)?;
        call::prepare(device, &op, &args, out)
    })
}

/// Enqueues a prepared call: allocates, compiles and waits for nothing. Parameters and layouts are
/// those that were prepared: others are refused. `workspace` has `xattn_prepared_workspace_bytes`
/// bytes from an address that is a multiple of 64. `stream` is null on a host device, which runs at
/// once, and a `CUstream` on CUDA.
///
/// # Safety
/// As `xattn_gated_residual`, until the stream has passed this point; nothing else uses the
/// workspace until then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_gated_residual_enqueue(
    prepared: *const xattn_prepared,
    args: *const xattn_gated_residual_args,
    workspace: *mut c_void,
    workspace_bytes: u64,
    stream: *mut c_void,
) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (op, args) = parse(args)?;
        call::enqueue::<GatedResidual>(prepared, &op, args, Place { workspace, workspace_bytes, stream })
    })
}
