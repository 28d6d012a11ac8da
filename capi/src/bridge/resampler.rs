//! The Perceiver resampler.

use std::ffi::c_void;
use std::mem::size_of;

use xattn::Device;
use xattn::bridge::{PerceiverResampler, ResamplerArgs, ResamplerCall};
use xattn::ops::Operands;

use super::{CheckpointHandle, precision, xattn_checkpoint};
use crate::call::{self, Args, Place, xattn_prepared};
use crate::device::{DeviceHandle, xattn_device};
use crate::handle;
use crate::ops::keys;
use crate::status::{Result, expect_out, guard, xattn_status};
use crate::tensor::{Operand, Versioned, read, xattn_tensor};

const CALL: &str = ResamplerCall::NAME;

/// A Perceiver resampler or connector, its weights on a device.
pub struct xattn_resampler {
    _opaque: [u8; 0],
}

/// Behind a `xattn_resampler`.
pub(crate) struct ResamplerHandle {
    device: Device,
    bridge: PerceiverResampler,
}

impl handle::Kind for ResamplerHandle {
    const NAME: &'static str = "xattn_resampler";
}

/// Sizes of a resampler.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_resampler_sizes {
    /// Learned queries: media tokens that a medium becomes.
    pub latents: u64,
    /// Width of the features it reads.
    pub feature_width: u64,
    /// Width of the media tokens it writes.
    pub output_width: u64,
}

/// Operands and parameters of a resampler call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_resampler_args {
    /// `sizeof(xattn_resampler_args)`.
    pub struct_size: usize,
    /// Frames of each medium, for models with frame embeddings; 0 counts as 1.
    pub frames: u64,
    /// `[batch, media, tokens, feature_width]`, a medium's frames one after the other; ragged:
    /// `[1, 1, total, ...]`.
    pub features: *const xattn_tensor,
    /// `u32 [batch * media]`: feature tokens that exist. Or null.
    pub lengths: *const xattn_tensor,
    /// `u32 [batch * media, words]`, or null; not beside `lengths`.
    pub bits: *const xattn_tensor,
    /// Ragged: `u32 [problems + 1]`. Or null.
    pub offsets: *const xattn_tensor,
    /// `[batch, media, latents, output_width]`; ragged: `[problems, 1, ...]`.
    pub out: *const xattn_tensor,
}

// SAFETY: `#[repr(C)]`, size first; numbers, and pointers that may be null.
unsafe impl Versioned for xattn_resampler_args {
    const NAME: &'static str = "xattn_resampler_args";
    const FIRST_SIZE: usize = size_of::<xattn_resampler_args>();
}

/// SAFETY: as the exported functions.
unsafe fn parse(at: *const xattn_resampler_args) -> Result<(usize, Args<ResamplerCall>)> {
    // SAFETY: passed on.
    unsafe {
        let a = read(CALL, "args", at)?;
        let args = ResamplerArgs {
            features: Operand::read(CALL, "features", a.features)?,
            keys: keys(CALL, ["lengths", "bits"], a.lengths, a.bits)?,
            offsets: Operand::read_optional(CALL, "offsets", a.offsets)?,
            out: Operand::read(CALL, "out", a.out)?,
        };
        // The bridge refuses any number of frames for which it has no embeddings.
        Ok((usize::try_from(a.frames).unwrap_or(usize::MAX).max(1), args))
    }
}

/// Packs the weights of the checkpoint's resampler for a device. `dtype`: a real `xattn_dtype`, of
/// activations and matrices.
///
/// # Safety
/// `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_resampler_load(
    checkpoint: *const xattn_checkpoint,
    device: *const xattn_device,
    dtype: i32,
    out: *mut *mut xattn_resampler,
) -> xattn_status {
    const CALL: &str = "xattn_resampler_load";
    guard(|| {
        let checkpoint = handle::find::<CheckpointHandle, _>(CALL, "checkpoint", checkpoint)?;
        let device = handle::find::<DeviceHandle, _>(CALL, "device", device)?;
        expect_out(CALL, out)?;
        let precision = precision(CALL, dtype)?;
        let bridges = checkpoint.bridges()?;
        let (config, weights) = bridges
            .resampler
            .as_ref()
            .ok_or_else(|| checkpoint.lacks(CALL, "checkpoint", "a checkpoint with a resampler"))?;
        let bridge = PerceiverResampler::new(&device.0, config, weights, precision)?;
        let loaded = ResamplerHandle { device: device.0.clone(), bridge };
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
pub unsafe extern "C" fn xattn_resampler_describe(
    resampler: *const xattn_resampler,
    out: *mut xattn_resampler_sizes,
) -> xattn_status {
    const CALL: &str = "xattn_resampler_describe";
    guard(|| {
        let bridge = handle::find::<ResamplerHandle, _>(CALL, "resampler", resampler)?;
        expect_out(CALL, out)?;
        let c = bridge.bridge.config();
        let sizes = xattn_resampler_sizes {
            latents: c.latents as u64,
            feature_width: c.feature_width() as u64,
            output_width: c.output_width() as u64,
        };
        // SAFETY: not null; the caller's promise.
        unsafe { out.write(sizes) };
        Ok(())
    })
}

/// Frees it. Calls that were prepared with it stay usable. Null is fine.
#[unsafe(no_mangle)]
pub extern "C" fn xattn_resampler_free(resampler: *mut xattn_resampler) -> xattn_status {
    guard(|| handle::free::<ResamplerHandle, _>("xattn_resampler_free", resampler))
}

/// Features to media tokens: checks, runs and waits.
///
/// # Safety
/// `args` points to a `xattn_resampler_args`, and everything it points to is as described, alive,
/// and not used in conflict until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_resampler_run(
    resampler: *const xattn_resampler,
    args: *const xattn_resampler_args,
) -> xattn_status {
    guard(|| {
        let bridge = handle::find::<ResamplerHandle, _>(CALL, "resampler", resampler)?;
        // SAFETY: passed on.
        unsafe {
            let (frames, args) = parse(args)?;
            call::run_bridge::<ResamplerCall>(&bridge.device, args, |specs| bridge.bridge.prepare(frames, specs))
        }
    })
}

/// Checks and plans for these shapes. Addresses are not kept: `xattn_resampler_enqueue` takes them
/// again.
///
/// # Safety
/// `args` as for `xattn_resampler_run`; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_resampler_prepare(
    resampler: *const xattn_resampler,
    args: *const xattn_resampler_args,
    out: *mut *mut xattn_prepared,
) -> xattn_status {
    guard(|| {
        let bridge = handle::find::<ResamplerHandle, _>(CALL, "resampler", resampler)?;
        // SAFETY: passed on.
        unsafe {
            let (frames, args) = parse(args)?;
            call::prepare_bridge::<ResamplerCall, _>(
                &bridge.device,
                frames,
                &args,
                |specs| bridge.bridge.prepare(frames, specs),
                out,
            )
        }
    })
}

/// Enqueues a prepared call, as `xattn_attention_enqueue` does.
///
/// # Safety
/// As `xattn_resampler_run`, until the stream has passed this point; nothing else uses the
/// workspace until then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_resampler_enqueue(
    prepared: *const xattn_prepared,
    args: *const xattn_resampler_args,
    workspace: *mut c_void,
    workspace_bytes: u64,
    stream: *mut c_void,
) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (parameters, args) = parse(args)?;
        call::enqueue_bridge::<ResamplerCall, _>(
            prepared,
            &parameters,
            args,
            Place { workspace, workspace_bytes, stream },
        )
    })
}
