//! `norm`.

use std::ffi::c_void;
use std::mem::size_of;

use xattn::ops::{Norm, NormArgs, NormKind};

use super::{choice, source};

use crate::call::{self, Args, Place, xattn_prepared};
use crate::device::xattn_device;
use crate::status::{Fault, Result, guard, xattn_status};
use crate::tensor::{Operand, Versioned, read, xattn_tensor};

const CALL: &str = "norm";

/// Kinds of `norm`.
#[repr(i32)]
pub enum xattn_norm_kind {
    /// LayerNorm, biased variance.
    XATTN_NORM_LAYER = 0,
    /// RMSNorm.
    XATTN_NORM_RMS = 1,
    /// Division by the Euclidean norm.
    XATTN_NORM_L2 = 2,
}

/// Operands and parameters of `xattn_norm`, over the last dimension of `[A, B, C, D]`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_norm_args {
    /// `sizeof(xattn_norm_args)`.
    pub struct_size: usize,
    /// A `xattn_norm_kind`.
    pub kind: i32,
    /// Under the root; of L2 the least norm.
    pub eps: f32,
    /// Input `[A, B, C, D]`, or with `rows` a table `[1, V, 1, D]`; null with `x_in_place`.
    pub x: *const xattn_tensor,
    /// 1: the input is what `out` holds.
    pub x_in_place: u32,
    /// `i32 [A, B]`: which rows of the table. Or null.
    pub rows: *const xattn_tensor,
    /// Added to the input first, `[A, B, C, D]`, usually with strides 0. Or null.
    pub add: *const xattn_tensor,
    /// Factor `[D]`, or null.
    pub weight: *const xattn_tensor,
    /// Offset `[D]`, or null.
    pub bias: *const xattn_tensor,
    /// Result `[A, B, C, D]`.
    pub out: *const xattn_tensor,
}

// SAFETY: `#[repr(C)]`, size first; numbers, and pointers that may be null.
unsafe impl Versioned for xattn_norm_args {
    const NAME: &'static str = "xattn_norm_args";
    const FIRST_SIZE: usize = size_of::<xattn_norm_args>();
}

/// SAFETY: as the exported functions.
unsafe fn parse(at: *const xattn_norm_args) -> Result<(Norm, Args<Norm>)> {
    // SAFETY: passed on.
    unsafe {
        let a = read(CALL, "args", at)?;
        let kind = choice(CALL, "kind", a.kind, &[NormKind::Layer, NormKind::Rms, NormKind::L2])?;
        let x = source(CALL, "x", a.x, a.x_in_place)?;
        let x = x.ok_or_else(|| Fault::argument(CALL, "x", "a tensor, or x_in_place", "neither"))?;
        let args = NormArgs {
            x,
            rows: Operand::read_optional(CALL, "rows", a.rows)?,
            add: Operand::read_optional(CALL, "add", a.add)?,
            weight: Operand::read_optional(CALL, "weight", a.weight)?,
            bias: Operand::read_optional(CALL, "bias", a.bias)?,
            out: Operand::read(CALL, "out", a.out)?,
        };
        Ok((Norm { kind, eps: a.eps }, args))
    }
}

/// LayerNorm, RMSNorm or L2 normalisation: checks, runs and waits.
///
/// # Safety
/// `args` points to a `xattn_norm_args`, and everything it points to is as described, alive, and
/// not used in conflict until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_norm(device: *const xattn_device, args: *const xattn_norm_args) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (op, args) = parse(args)?;
        call::run(device, &op, args)
    })
}

/// Checks and plans for these shapes and this device. Addresses are not kept: `xattn_norm_enqueue`
/// takes them again.
///
/// # Safety
/// `args` as for `xattn_norm`; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_norm_prepare(
    device: *const xattn_device,
    args: *const xattn_norm_args,
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
/// As `xattn_norm`, until the stream has passed this point; nothing else uses the workspace until
/// then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_norm_enqueue(
    prepared: *const xattn_prepared,
    args: *const xattn_norm_args,
    workspace: *mut c_void,
    workspace_bytes: u64,
    stream: *mut c_void,
) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (op, args) = parse(args)?;
        call::enqueue::<Norm>(prepared, &op, args, Place { workspace, workspace_bytes, stream })
    })
}
