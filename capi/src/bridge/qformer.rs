//! The Q-Former and its projection into the language model.

use std::ffi::c_void;
use std::mem::size_of;

use xattn::Device;
use xattn::bridge::{HeadArgs, HeadCall, LanguageProjection, Objective, QFormer, QFormerArgs, QFormerCall};
use xattn::ops::{Keys, Operands};

use super::{CheckpointHandle, precision, xattn_checkpoint};
use crate::call::{self, Args, Place, xattn_prepared};
use crate::device::{DeviceHandle, xattn_device};
use crate::handle;
use crate::ops::{choice, keys};
use crate::status::{Fault, Result, expect_out, guard, xattn_status};
use crate::tensor::{Operand, Versioned, read, xattn_tensor};

const CALL: &str = QFormerCall::NAME;
const HEAD: &str = HeadCall::NAME;

/// Who sees what among queries and text.
#[repr(i32)]
pub enum xattn_objective {
    /// Everyone sees everyone (ITC, ITM, InstructBLIP).
    XATTN_OBJECTIVE_BIDIRECTIONAL = 0,
    /// Text sees queries and the text up to itself (ITG).
    XATTN_OBJECTIVE_TEXT_GENERATION = 1,
}

/// A Q-Former, its weights on a device.
pub struct xattn_qformer {
    _opaque: [u8; 0],
}

/// Behind a `xattn_qformer`.
pub(crate) struct QFormerHandle {
    device: Device,
    bridge: QFormer,
    language_projection: Option<(LanguageProjection, usize)>,
}

impl handle::Kind for QFormerHandle {
    const NAME: &'static str = "xattn_qformer";
}

/// Sizes of a Q-Former.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_qformer_sizes {
    /// Learned queries.
    pub queries: u64,
    /// Width of its rows.
    pub width: u64,
    /// Width of the features it reads.
    pub encoder_width: u64,
    /// Width of the projected queries; 0 without a projection.
    pub language_width: u64,
}

/// Operands and parameters of a Q-Former call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_qformer_args {
    /// `sizeof(xattn_qformer_args)`.
    pub struct_size: usize,
    /// A `xattn_objective`.
    pub objective: i32,
    /// Image features `[batch, tokens, encoder_width]`, or null for text alone.
    pub features: *const xattn_tensor,
    /// `u32 [batch]`, or null.
    pub feature_lengths: *const xattn_tensor,
    /// `u32 [batch, words]`, or null; not beside `feature_lengths`.
    pub feature_bits: *const xattn_tensor,
    /// Token ids `i32 [batch, text rows]`: an instruction, or the text to match. Or null.
    pub text: *const xattn_tensor,
    /// `u32 [batch]`, or null.
    pub text_lengths: *const xattn_tensor,
    /// `u32 [batch, words]`, or null; not beside `text_lengths`.
    pub text_bits: *const xattn_tensor,
    /// The last layer's rows, queries first: `[batch, queries + text rows, width]`; without
    /// features only text.
    pub hidden: *const xattn_tensor,
}

// SAFETY: `#[repr(C)]`, size first; numbers, and pointers that may be null.
unsafe impl Versioned for xattn_qformer_args {
    const NAME: &'static str = "xattn_qformer_args";
    const FIRST_SIZE: usize = size_of::<xattn_qformer_args>();
}

/// Operands of the projection of query rows into the language model.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_qformer_head_args {
    /// `sizeof(xattn_qformer_head_args)`.
    pub struct_size: usize,
    /// Query rows `[batch, queries, width]` (strides may skip text rows).
    pub hidden: *const xattn_tensor,
    /// `[batch, queries, language_width]`.
    pub out: *const xattn_tensor,
}

// SAFETY: `#[repr(C)]`, size first; numbers, and pointers that may be null.
unsafe impl Versioned for xattn_qformer_head_args {
    const NAME: &'static str = "xattn_qformer_head_args";
    const FIRST_SIZE: usize = size_of::<xattn_qformer_head_args>();
}

/// SAFETY: as the exported functions.
unsafe fn parse(at: *const xattn_qformer_args) -> Result<(Objective, Args<QFormerCall>)> {
    // SAFETY: passed on.
    unsafe {
        let a = read(CALL, "args", at)?;
        let objectives = [Objective::Bidirectional, Objective::TextGeneration];
        let args = QFormerArgs {
            features: Operand::read_optional(CALL, "features", a.features)?,
            feature_keys: keys(CALL, ["feature_lengths", "feature_bits"], a.feature_lengths, a.feature_bits)?,
            queries: None,
            query_keys: Keys::All,
            text: Operand::read_optional(CALL, "text", a.text)?,
            text_keys: keys(CALL, ["text_lengths", "text_bits"], a.text_lengths, a.text_bits)?,
            past: Vec::new(),
            past_keys: Keys::All,
            present: Vec::new(),
            hidden: Operand::read(CALL, "hidden", a.hidden)?,
        };
        Ok((choice(CALL, "objective", a.objective, &objectives)?, args))
    }
}

/// SAFETY: as the exported functions.
unsafe fn parse_head(at: *const xattn_qformer_head_args) -> Result<((), Args<HeadCall>)> {
    // SAFETY: passed on.
    unsafe {
        let a = read(HEAD, "args", at)?;
        let (hidden, out) = (Operand::read(HEAD, "hidden", a.hidden)?, Operand::read(HEAD, "out", a.out)?);
        Ok(((), HeadArgs { hidden, out }))
    }
}

impl QFormerHandle {
    fn head(&self) -> Result<&LanguageProjection> {
        let head = self.language_projection.as_ref().map(|(head, _)| head);
        head.ok_or_else(|| {
            Fault::argument(HEAD, "qformer", "one with a projection into a language model", "one without")
        })
    }
}

/// Packs the weights of the checkpoint's Q-Former, and of its projection if there is one, for a
/// device.
///
/// # Safety
/// `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_qformer_load(
    checkpoint: *const xattn_checkpoint,
    device: *const xattn_device,
    dtype: i32,
    out: *mut *mut xattn_qformer,
) -> xattn_status {
    const CALL: &str = "xattn_qformer_load";
    guard(|| {
        let checkpoint = handle::find::<CheckpointHandle, _>(CALL, "checkpoint", checkpoint)?;
        let device = handle::find::<DeviceHandle, _>(CALL, "device", device)?;
        expect_out(CALL, out)?;
        let precision = precision(CALL, dtype)?;
        let bridges = checkpoint.bridges()?;
        let (config, weights) = bridges
            .qformer
            .as_ref()
            .ok_or_else(|| checkpoint.lacks(CALL, "checkpoint", "a checkpoint with a Q-Former"))?;
        let bridge = QFormer::new(&device.0, config, weights, precision)?;
        let head = bridges.language_projection.as_ref().map(|weights| {
            let width = weights.weight.iter().map(|w| w.shape()[0]).sum();
            Ok::<_, Fault>((LanguageProjection::new(&device.0, weights, precision)?, width))
        });
        let loaded = QFormerHandle { device: device.0.clone(), bridge, language_projection: head.transpose()? };
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
pub unsafe extern "C" fn xattn_qformer_describe(
    qformer: *const xattn_qformer,
    out: *mut xattn_qformer_sizes,
) -> xattn_status {
    const CALL: &str = "xattn_qformer_describe";
    guard(|| {
        let bridge = handle::find::<QFormerHandle, _>(CALL, "qformer", qformer)?;
        expect_out(CALL, out)?;
        let c = bridge.bridge.config();
        let sizes = xattn_qformer_sizes {
            queries: c.queries as u64,
            width: c.width as u64,
            encoder_width: c.encoder_width as u64,
            language_width: bridge.language_projection.as_ref().map_or(0, |&(_, width)| width as u64),
        };
        // SAFETY: not null; the caller's promise.
        unsafe { out.write(sizes) };
        Ok(())
    })
}

/// Frees it. Calls that were prepared with it stay usable. Null is fine.
#[unsafe(no_mangle)]
pub extern "C" fn xattn_qformer_free(qformer: *mut xattn_qformer) -> xattn_status {
    guard(|| handle::free::<QFormerHandle, _>("xattn_qformer_free", qformer))
}

/// Image features and text through the Q-Former: checks, runs and waits.
///
/// # Safety
/// `args` points to a `xattn_qformer_args`, and everything it points to is as described, alive, and
/// not used in conflict until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_qformer_run(
    qformer: *const xattn_qformer,
    args: *const xattn_qformer_args,
) -> xattn_status {
    guard(|| {
        let bridge = handle::find::<QFormerHandle, _>(CALL, "qformer", qformer)?;
        // SAFETY: passed on.
        unsafe {
            let (objective, args) = parse(args)?;
            call::run_bridge::<QFormerCall>(&bridge.device, args, |specs| bridge.bridge.prepare(objective, 0, specs))
        }
    })
}

/// Checks and plans for these shapes. Addresses are not kept: `xattn_qformer_enqueue` takes them
/// again.
///
/// # Safety
/// `args` as for `xattn_qformer_run`; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_qformer_prepare(
    qformer: *const xattn_qformer,
    args: *const xattn_qformer_args,
    out: *mut *mut xattn_prepared,
) -> xattn_status {
    guard(|| {
        let bridge = handle::find::<QFormerHandle, _>(CALL, "qformer", qformer)?;
        // SAFETY: passed on.
        unsafe {
            let (objective, args) = parse(args)?;
            call::prepare_bridge::<QFormerCall, _>(
                &bridge.device,
                objective,
                &args,
                |specs| bridge.bridge.prepare(objective, 0, specs),
                out,
            )
        }
    })
}

/// Enqueues a prepared call, as `xattn_attention_enqueue` does.
///
/// # Safety
/// As `xattn_qformer_run`, until the stream has passed this point; nothing else uses the workspace
/// until then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_qformer_enqueue(
    prepared: *const xattn_prepared,
    args: *const xattn_qformer_args,
    workspace: *mut c_void,
    workspace_bytes: u64,
    stream: *mut c_void,
) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (parameters, args) = parse(args)?;
        call::enqueue_bridge::<QFormerCall, _>(
            prepared,
            &parameters,
            args,
            Place { workspace, workspace_bytes, stream },
        )
    })
}

/// Query rows into the language model: checks, runs and waits.
///
/// # Safety
/// `args` points to a `xattn_qformer_head_args`, and everything it points to is as described,
/// alive, and not used in conflict until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_qformer_head_run(
    qformer: *const xattn_qformer,
    args: *const xattn_qformer_head_args,
) -> xattn_status {
    guard(|| {
        let bridge = handle::find::<QFormerHandle, _>(HEAD, "qformer", qformer)?;
        // SAFETY: passed on.
        unsafe {
            let ((), args) = parse_head(args)?;
            let head = bridge.head()?;
            call::run_bridge::<HeadCall>(&bridge.device, args, |specs| head.prepare(specs))
        }
    })
}

/// Checks and plans for these shapes. Addresses are not kept: `xattn_qformer_head_enqueue` takes
/// them again.
///
/// # Safety
/// `args` as for `xattn_qformer_head_run`; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_qformer_head_prepare(
    qformer: *const xattn_qformer,
    args: *const xattn_qformer_head_args,
    out: *mut *mut xattn_prepared,
) -> xattn_status {
    guard(|| {
        let bridge = handle::find::<QFormerHandle, _>(HEAD, "qformer", qformer)?;
        // SAFETY: passed on.
        unsafe {
            let ((), args) = parse_head(args)?;
            let head = bridge.head()?;
            call::prepare_bridge::<HeadCall, _>(&bridge.device, (), &args, |specs| head.prepare(specs), out)
        }
    })
}

/// Enqueues a prepared call, as `xattn_attention_enqueue` does.
///
/// # Safety
/// As `xattn_qformer_head_run`, until the stream has passed this point; nothing else uses the
/// workspace until then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_qformer_head_enqueue(
    prepared: *const xattn_prepared,
    args: *const xattn_qformer_head_args,
    workspace: *mut c_void,
    workspace_bytes: u64,
    stream: *mut c_void,
) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (parameters, args) = parse_head(args)?;
        call::enqueue_bridge::<HeadCall, _>(prepared, &parameters, args, Place { workspace, workspace_bytes, stream })
    })
}
