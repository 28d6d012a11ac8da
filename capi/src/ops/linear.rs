//! `linear`.

use std::ffi::c_void;
use std::mem::size_of;

use xattn::ops::{Activation, Linear, LinearArgs, Matrix, RowReduce};

use super::{choice, source};

use crate::call::{self, Args, Place, xattn_prepared};
use crate::device::{WeightHandle, xattn_device, xattn_weight};
use crate::handle;
use crate::status::{Fault, Result, guard, xattn_status};
use crate::tensor::{Operand, Versioned, read, xattn_tensor};

const CALL: &str = "linear";

/// Activations of `linear`.
#[repr(i32)]
pub enum xattn_activation {
    /// None.
    XATTN_ACTIVATION_NONE = 0,
    /// GELU with erf (not the tanh form).
    XATTN_ACTIVATION_GELU = 1,
    /// ReLU.
    XATTN_ACTIVATION_RELU = 2,
    /// The square of ReLU.
    XATTN_ACTIVATION_SQUARED_RELU = 3,
    /// silu(x W_gate) * (x W_up): needs a pair of matrices.
    XATTN_ACTIVATION_SWIGLU = 4,
}

/// Reductions over the rows of a batch entry.
#[repr(i32)]
pub enum xattn_row_reduce {
    /// None.
    XATTN_ROW_REDUCE_NONE = 0,
    /// The largest.
    XATTN_ROW_REDUCE_MAX = 1,
    /// The mean.
    XATTN_ROW_REDUCE_MEAN = 2,
}

/// Operands and parameters of `xattn_linear`: out = residual + tanh(gate) * row_mask * activation(x
/// W^T + bias).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_linear_args {
    /// `sizeof(xattn_linear_args)`.
    pub struct_size: usize,
    /// A `xattn_activation`.
    pub activation: i32,
    /// A `xattn_row_reduce`; not beside residual, gate or row mask.
    pub reduce: i32,
    /// `[batch, rows, K]`.
    pub x: *const xattn_tensor,
    /// `[N, K]`, read as it is; null with `prepared`.
    pub weight: *const xattn_tensor,
    /// `[N, K]`, the second matrix of a SwiGLU. Or null.
    pub weight_up: *const xattn_tensor,
    /// A prepared matrix or pair; null with `weight`.
    pub prepared: *const xattn_weight,
    /// `[N]`, or null.
    pub bias: *const xattn_tensor,
    /// `[batch, rows, N]`, or null.
    pub residual: *const xattn_tensor,
    /// 1: the residual is what `out` holds.
    pub residual_in_place: u32,
    /// Raw gate, `[1]` or `[N]`, or null: factor 1.
    pub gate: *const xattn_tensor,
    /// `u32 [batch, rows]`: where it is 0, only the residual remains. Or null.
    pub row_mask: *const xattn_tensor,
    /// `[batch, rows, N]`; with a reduction `[batch, 1, N]`.
    pub out: *const xattn_tensor,
}

// SAFETY: `#[repr(C)]`, size first; numbers, and pointers that may be null.
unsafe impl Versioned for xattn_linear_args {
    const NAME: &'static str = "xattn_linear_args";
    const FIRST_SIZE: usize = size_of::<xattn_linear_args>();
}

/// SAFETY: as the exported functions.
unsafe fn parse(at: *const xattn_linear_args) -> Result<(Linear, Args<Linear>)> {
    // SAFETY: passed on.
    unsafe {
        let a = read(CALL, "args", at)?;
        let activation = choice(CALL, "activation", a.activation, &Activation::ALL)?;
        let reduce = choice(CALL, "reduce", a.reduce, &[RowReduce::None, RowReduce::Max, RowReduce::Mean])?;
        let (weight, up) = (
            Operand::read_optional(CALL, "weight", a.weight)?,
            Operand::read_optional(CALL, "weight_up", a.weight_up)?,
        );
        let weight = match (weight, up, a.prepared.is_null()) {
            (Some(weight), None, true) => Matrix::View(weight),
            (Some(gate), Some(up), true) => Matrix::Pair(gate, up),
            (None, None, false) => {
                Matrix::Prepared(handle::find::<WeightHandle, _>(CALL, "prepared", a.prepared)?.0.clone())
            }
            _ => {
                let expected = "one of: weight; weight and weight_up; prepared";
                return Err(Fault::argument(CALL, "weight", expected, "another combination"));
            }
        };
        let args = LinearArgs {
            x: Operand::read(CALL, "x", a.x)?,
            weight,
            bias: Operand::read_optional(CALL, "bias", a.bias)?,
            residual: source(CALL, "residual", a.residual, a.residual_in_place)?,
            gate: Operand::read_optional(CALL, "gate", a.gate)?,
            row_mask: Operand::read_optional(CALL, "row_mask", a.row_mask)?,
            out: Operand::read(CALL, "out", a.out)?,
        };
        Ok((Linear { activation, reduce }, args))
    }
}

/// A product with its epilogue: checks, runs and waits.
///
/// # Safety
/// `args` points to a `xattn_linear_args`, and everything it points to is as described, alive, and
/// not used in conflict until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_linear(device: *const xattn_device, args: *const xattn_linear_args) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (op, args) = parse(args)?;
        call::run(device, &op, args)
    })
}

/// Checks and plans for these shapes and this device. Addresses are not kept:
/// `xattn_linear_enqueue` takes them again.
///
/// # Safety
/// `args` as for `xattn_linear`; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_linear_prepare(
    device: *const xattn_device,
    args: *const xattn_linear_args,
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
/// As `xattn_linear`, until the stream has passed this point; nothing else uses the workspace until
/// then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_linear_enqueue(
    prepared: *const xattn_prepared,
    args: *const xattn_linear_args,
    workspace: *mut c_void,
    workspace_bytes: u64,
    stream: *mut c_void,
) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (op, args) = parse(args)?;
        call::enqueue::<Linear>(prepared, &op, args, Place { workspace, workspace_bytes, stream })
    })
}
