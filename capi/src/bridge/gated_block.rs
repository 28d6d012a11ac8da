//! Gated blocks, and the projection of media that they read.

use std::ffi::c_void;
use std::mem::size_of;

use xattn::Device;
use xattn::bridge::{GatedBlock, GatedBlockArgs, GatedBlockCall, ProjectMediaArgs, ProjectMediaCall};
use xattn::ops::Operands;

use super::{CheckpointHandle, precision, xattn_checkpoint};
use crate::call::{self, Args, Place, xattn_prepared};
use crate::device::{DeviceHandle, xattn_device};
use crate::handle;
use crate::ops::attention::Rule;
use crate::ops::{keys, source};
use crate::status::{Fault, Result, expect_out, guard, xattn_status};
use crate::tensor::{Operand, Versioned, read, xattn_tensor};

const CALL: &str = GatedBlockCall::NAME;
const MEDIA: &str = ProjectMediaCall::NAME;

/// A gated cross-attention block, its weights on a device.
pub struct xattn_gated_block {
    _opaque: [u8; 0],
}

/// Behind a `xattn_gated_block`.
pub(crate) struct GatedBlockHandle {
    device: Device,
    bridge: GatedBlock,
}

impl handle::Kind for GatedBlockHandle {
    const NAME: &'static str = "xattn_gated_block";
}

/// Sizes of a gated block.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_gated_block_sizes {
    /// Width of the text stream.
    pub width: u64,
    /// Width of the media tokens.
    pub media_width: u64,
    /// Width of a projected media token: K heads, then V heads.
    pub kv_width: u64,
}

/// Operands of the projection of media: once per image, kept for every step.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_project_media_args {
    /// `sizeof(xattn_project_media_args)`.
    pub struct_size: usize,
    /// Media tokens `[entries, keys, media_width]`.
    pub media: *const xattn_tensor,
    /// K and V `[entries, keys, kv_width]`.
    pub kv: *const xattn_tensor,
}

// SAFETY: `#[repr(C)]`, size first; numbers, and pointers that may be null.
unsafe impl Versioned for xattn_project_media_args {
    const NAME: &'static str = "xattn_project_media_args";
    const FIRST_SIZE: usize = size_of::<xattn_project_media_args>();
}

/// Operands and parameters of a gated block call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_gated_block_args {
    /// `sizeof(xattn_gated_block_args)`.
    pub struct_size: usize,
    /// Text stream `[batch, rows, width]`; ragged: `[1, total, width]`. Null with `x_in_place`.
    pub x: *const xattn_tensor,
    /// 1: the text stream is what `out` holds.
    pub x_in_place: u32,
    /// Ragged text: `u32 [batch + 1]`. Or null.
    pub x_offsets: *const xattn_tensor,
    /// K and V `[entries, keys, kv_width]`, as `xattn_project_media` writes them.
    pub kv: *const xattn_tensor,
    /// `u32 [batch]`: media tokens that exist. Or null.
    pub lengths: *const xattn_tensor,
    /// `u32 [batch, words]`, or null; not beside `lengths`.
    pub bits: *const xattn_tensor,
    /// `u32 [batch]`: which entry of `kv` a problem reads. Or null.
    pub slots: *const xattn_tensor,
    /// Ragged media: `u32 [batch + 1]`. Or null.
    pub kv_offsets: *const xattn_tensor,
    /// A `xattn_visibility`.
    pub visibility: i32,
    /// As in `xattn_attention_args`.
    pub media_index: *const xattn_tensor,
    /// As in `xattn_attention_args`.
    pub plan: *const xattn_tensor,
    /// As in `xattn_attention_args`.
    pub media_bits: *const xattn_tensor,
    /// As in `xattn_attention_args`.
    pub keys_per_media: u32,
    /// As in `xattn_attention_args`.
    pub causal_prefix: u32,
    /// As in `xattn_attention_args`.
    pub causal_offset: *const xattn_tensor,
    /// Result, like `x`.
    pub out: *const xattn_tensor,
}

// SAFETY: `#[repr(C)]`, size first; numbers, and pointers that may be null.
unsafe impl Versioned for xattn_gated_block_args {
    const NAME: &'static str = "xattn_gated_block_args";
    const FIRST_SIZE: usize = size_of::<xattn_gated_block_args>();
}

/// SAFETY: as the exported functions.
unsafe fn parse_media(at: *const xattn_project_media_args) -> Result<((), Args<ProjectMediaCall>)> {
    // SAFETY: passed on.
    unsafe {
        let a = read(MEDIA, "args", at)?;
        let (media, kv) = (Operand::read(MEDIA, "media", a.media)?, Operand::read(MEDIA, "kv", a.kv)?);
        Ok(((), ProjectMediaArgs { media, kv }))
    }
}

/// SAFETY: as the exported functions.
unsafe fn parse(at: *const xattn_gated_block_args) -> Result<((), Args<GatedBlockCall>)> {
    // SAFETY: passed on.
    unsafe {
        let a = read(CALL, "args", at)?;
        let x = source(CALL, "x", a.x, a.x_in_place)?;
        let rule = Rule {
            visibility: a.visibility,
            media_index: a.media_index,
            plan: a.plan,
            media_bits: a.media_bits,
            keys_per_media: a.keys_per_media,
            causal_prefix: a.causal_prefix,
            causal_offset: a.causal_offset,
        };
        let args = GatedBlockArgs {
            x: x.ok_or_else(|| Fault::argument(CALL, "x", "a tensor, or x_in_place", "neither"))?,
            x_offsets: Operand::read_optional(CALL, "x_offsets", a.x_offsets)?,
            kv: Operand::read(CALL, "kv", a.kv)?,
            keys: keys(CALL, ["lengths", "bits"], a.lengths, a.bits)?,
            slots: Operand::read_optional(CALL, "slots", a.slots)?,
            kv_offsets: Operand::read_optional(CALL, "kv_offsets", a.kv_offsets)?,
            visibility: rule.parse(CALL)?,
            out: Operand::read(CALL, "out", a.out)?,
        };
        Ok(((), args))
    }
}

/// Packs the weights of the checkpoint's gated block number `index` (from 0, in the order of the
/// layers) for a device.
///
/// # Safety
/// `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_gated_block_load(
    checkpoint: *const xattn_checkpoint,
    device: *const xattn_device,
    index: u32,
    dtype: i32,
    out: *mut *mut xattn_gated_block,
) -> xattn_status {
    const CALL: &str = "xattn_gated_block_load";
    guard(|| {
        let checkpoint = handle::find::<CheckpointHandle, _>(CALL, "checkpoint", checkpoint)?;
        let device = handle::find::<DeviceHandle, _>(CALL, "device", device)?;
        expect_out(CALL, out)?;
        let precision = precision(CALL, dtype)?;
        let bridges = checkpoint.bridges()?;
        let count = bridges.gated_blocks.len();
        let at = bridges.gated_blocks.get(index as usize);
        let at = at.ok_or_else(|| Fault::argument(CALL, "index", format!("less than {count}"), index))?;
        let bridge = GatedBlock::new(&device.0, &at.config, &at.weights, precision)?;
        let loaded = GatedBlockHandle { device: device.0.clone(), bridge };
        // SAFETY: not null; the caller's promise.
        unsafe { out.write(handle::register(loaded)?) };
        Ok(())
    })
}

/// Sizes that the tensors of its calls have.
///
/// # Safety
/// `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_gated_block_describe(
    gated_block: *const xattn_gated_block,
    out: *mut xattn_gated_block_sizes,
) -> xattn_status {
    const CALL: &str = "xattn_gated_block_describe";
    guard(|| {
        let bridge = handle::find::<GatedBlockHandle, _>(CALL, "gated_block", gated_block)?;
        expect_out(CALL, out)?;
        let c = bridge.bridge.config();
        let sizes = xattn_gated_block_sizes {
            width: c.width as u64,
            media_width: c.media_width as u64,
            kv_width: c.kv_width() as u64,
        };
        // SAFETY: not null; the caller's promise.
        unsafe { out.write(sizes) };
        Ok(())
    })
}

/// Frees it. Calls that were prepared with it stay usable. Null is fine.
#[unsafe(no_mangle)]
pub extern "C" fn xattn_gated_block_free(gated_block: *mut xattn_gated_block) -> xattn_status {
    guard(|| handle::free::<GatedBlockHandle, _>("xattn_gated_block_free", gated_block))
}

/// Media tokens to the K and V that the block reads: checks, runs and waits.
///
/// # Safety
/// `args` points to a `xattn_project_media_args`, and everything it points to is as described,
/// alive, and not used in conflict until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_project_media_run(
    gated_block: *const xattn_gated_block,
    args: *const xattn_project_media_args,
) -> xattn_status {
    guard(|| {
        let bridge = handle::find::<GatedBlockHandle, _>(MEDIA, "gated_block", gated_block)?;
        // SAFETY: passed on.
        unsafe {
            let ((), args) = parse_media(args)?;
            call::run_bridge::<ProjectMediaCall>(&bridge.device, args, |specs| bridge.bridge.prepare_media(specs))
        }
    })
}

/// Checks and plans for these shapes. Addresses are not kept: `xattn_project_media_enqueue` takes
/// them again.
///
/// # Safety
/// `args` as for `xattn_project_media_run`; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_project_media_prepare(
    gated_block: *const xattn_gated_block,
    args: *const xattn_project_media_args,
    out: *mut *mut xattn_prepared,
) -> xattn_status {
    guard(|| {
        let bridge = handle::find::<GatedBlockHandle, _>(MEDIA, "gated_block", gated_block)?;
        // SAFETY: passed on.
        unsafe {
            let ((), args) = parse_media(args)?;
            call::prepare_bridge::<ProjectMediaCall, _>(
                &bridge.device,
                (),
                &args,
                |specs| bridge.bridge.prepare_media(specs),
                out,
            )
        }
    })
}

/// Enqueues a prepared call, as `xattn_attention_enqueue` does.
///
/// # Safety
/// As `xattn_project_media_run`, until the stream has passed this point; nothing else uses the
/// workspace until then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_project_media_enqueue(
    prepared: *const xattn_prepared,
    args: *const xattn_project_media_args,
    workspace: *mut c_void,
    workspace_bytes: u64,
    stream: *mut c_void,
) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (parameters, args) = parse_media(args)?;
        call::enqueue_bridge::<ProjectMediaCall, _>(
            prepared,
            &parameters,
            args,
            Place { workspace, workspace_bytes, stream },
        )
    })
}

/// The text stream through the block: checks, runs and waits.
///
/// # Safety
/// `args` points to a `xattn_gated_block_args`, and everything it points to is as described, alive,
/// and not used in conflict until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_gated_block_run(
    gated_block: *const xattn_gated_block,
    args: *const xattn_gated_block_args,
) -> xattn_status {
    guard(|| {
        let bridge = handle::find::<GatedBlockHandle, _>(CALL, "gated_block", gated_block)?;
        // SAFETY: passed on.
        unsafe {
            let ((), args) = parse(args)?;
            call::run_bridge::<GatedBlockCall>(&bridge.device, args, |specs| bridge.bridge.prepare(specs))
        }
    })
}

/// Checks and plans for these shapes. Addresses are not kept: `xattn_gated_block_enqueue` takes
/// them again.
///
/// # Safety
/// `args` as for `xattn_gated_block_run`; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_gated_block_prepare(
    gated_block: *const xattn_gated_block,
    args: *const xattn_gated_block_args,
    out: *mut *mut xattn_prepared,
) -> xattn_status {
    guard(|| {
        let bridge = handle::find::<GatedBlockHandle, _>(CALL, "gated_block", gated_block)?;
        // SAFETY: passed on.
        unsafe {
            let ((), args) = parse(args)?;
            call::prepare_bridge::<GatedBlockCall, _>(
                &bridge.device,
                (),
                &args,
                |specs| bridge.bridge.prepare(specs),
                out,
            )
        }
    })
}

/// Enqueues a prepared call, as `xattn_attention_enqueue` does.
///
/// # Safety
/// As `xattn_gated_block_run`, until the stream has passed this point; nothing else uses the
/// workspace until then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_gated_block_enqueue(
    prepared: *const xattn_prepared,
    args: *const xattn_gated_block_args,
    workspace: *mut c_void,
    workspace_bytes: u64,
    stream: *mut c_void,
) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (parameters, args) = parse(args)?;
        call::enqueue_bridge::<GatedBlockCall, _>(
            prepared,
            &parameters,
            args,
            Place { workspace, workspace_bytes, stream },
        )
    })
}
