//! `media_index`.

use std::ffi::c_void;
use std::mem::size_of;

use xattn::ops::{DocumentEnd, MediaIndex, MediaIndexArgs, MediaSource};

use super::{choice, flag};

use crate::call::{self, Args, Place, xattn_prepared};
use crate::device::xattn_device;
use crate::status::{Fault, Result, guard, xattn_status};
use crate::tensor::{Operand, Versioned, read, xattn_tensor};

const CALL: &str = "media_index";

/// What the end of a document does to a media index.
#[repr(i32)]
pub enum xattn_document_end {
    /// Nothing.
    XATTN_DOCUMENT_END_IGNORE = 0,
    /// 0 until the next medium; media are still counted through the row.
    XATTN_DOCUMENT_END_HIDE = 1,
    /// 0, and counting starts again at 1.
    XATTN_DOCUMENT_END_RESTART = 2,
}

/// Operands and parameters of `xattn_media_index`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_media_index_args {
    /// `sizeof(xattn_media_index_args)`.
    pub struct_size: usize,
    /// `i32 [B, L]`: token ids; a medium stands where the id is `media_token`. Or null, with
    /// `locations`.
    pub tokens: *const xattn_tensor,
    /// The id of the media token.
    pub media_token: i32,
    /// `u32 [B, L]`: nonzero where a medium stands. Or null, with `tokens`.
    pub locations: *const xattn_tensor,
    /// 1: tokens that are not media see the next medium instead of the last one.
    pub next: u32,
    /// A `xattn_document_end`.
    pub document_end: i32,
    /// The id that ends a document.
    pub document_end_token: i32,
    /// `i32 [B]`: state before the first token. Or null: 0.
    pub carry_in: *const xattn_tensor,
    /// `i32 [B]`: media of the whole row, for `next` over a chunk. Or null.
    pub media_count: *const xattn_tensor,
    /// `i32 [B]`: state after the last token. May be the memory of `carry_in`, in the same layout.
    /// Or null.
    pub carry_out: *const xattn_tensor,
    /// Result: `i32 [B, L]`.
    pub media_index: *const xattn_tensor,
    /// `u32 [B, 1 + L, 2]`: the media plan. Or null.
    pub plan: *const xattn_tensor,
}

// SAFETY: `#[repr(C)]`, size first; numbers, and pointers that may be null.
unsafe impl Versioned for xattn_media_index_args {
    const NAME: &'static str = "xattn_media_index_args";
    const FIRST_SIZE: usize = size_of::<xattn_media_index_args>();
}

/// SAFETY: as the exported functions.
unsafe fn parse(at: *const xattn_media_index_args) -> Result<(MediaIndex, Args<MediaIndex>)> {
    // SAFETY: passed on.
    unsafe {
        let a = read(CALL, "args", at)?;
        let tokens = Operand::read_optional(CALL, "tokens", a.tokens)?;
        let locations = Operand::read_optional(CALL, "locations", a.locations)?;
        let source = match (tokens, locations) {
            (Some(ids), None) => MediaSource::Tokens { ids, token: a.media_token },
            (None, Some(locations)) => MediaSource::Locations(locations),
            (None, None) => return Err(Fault::argument(CALL, "tokens", "tokens or locations", "neither")),
            (Some(_), Some(_)) => return Err(Fault::argument(CALL, "locations", "null beside tokens", "a tensor")),
        };
        let token = a.document_end_token;
        let ends = [DocumentEnd::Ignore, DocumentEnd::Hide { token }, DocumentEnd::Restart { token }];
        let document_end = choice(CALL, "document_end", a.document_end, &ends)?;
        let op = MediaIndex { next: flag(CALL, "next", a.next)?, document_end };
        let args = MediaIndexArgs {
            source,
            carry_in: Operand::read_optional(CALL, "carry_in", a.carry_in)?,
            carry_out: Operand::read_optional(CALL, "carry_out", a.carry_out)?,
            media_count: Operand::read_optional(CALL, "media_count", a.media_count)?,
            media_index: Operand::read(CALL, "media_index", a.media_index)?,
            plan: Operand::read_optional(CALL, "plan", a.plan)?,
        };
        Ok((op, args))
    }
}

/// For each text token the 1-based number of the last medium at or before it: checks, runs and
/// waits.
///
/// # Safety
/// `args` points to a `xattn_media_index_args`, and everything it points to is as described, alive,
/// and not used in conflict until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_media_index(
    device: *const xattn_device,
    args: *const xattn_media_index_args,
) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (op, args) = parse(args)?;
        call::run(device, &op, args)
    })
}

/// Checks and plans for these shapes and this device. Addresses are not kept:
/// `xattn_media_index_enqueue` takes them again.
///
/// # Safety
/// `args` as for `xattn_media_index`; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_media_index_prepare(
    device: *const xattn_device,
    args: *const xattn_media_index_args,
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
/// As `xattn_media_index`, until the stream has passed this point; nothing else uses the workspace
/// until then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_media_index_enqueue(
    prepared: *const xattn_prepared,
    args: *const xattn_media_index_args,
    workspace: *mut c_void,
    workspace_bytes: u64,
    stream: *mut c_void,
) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (op, args) = parse(args)?;
        call::enqueue::<MediaIndex>(prepared, &op, args, Place { workspace, workspace_bytes, stream })
    })
}
