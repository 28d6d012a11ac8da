//! `attention`.

use std::ffi::c_void;
use std::mem::size_of;

use xattn::ops::attention::{EmptyRow, EmptyRows};
use xattn::ops::{Attention, AttentionArgs, Media, Segment, Visibility};

use super::{choice, keys};

use crate::call::{self, Args, Place, xattn_prepared};
use crate::device::xattn_device;
use crate::status::{Result, guard, xattn_status};
use crate::tensor::{Operand, Versioned, read, read_optional, xattn_tensor};

const CALL: &str = "attention";

/// Which existing keys a row may see.
#[repr(i32)]
pub enum xattn_visibility {
    /// All.
    XATTN_VISIBILITY_ALL = 0,
    /// Those of the row's medium (Flamingo).
    XATTN_VISIBILITY_SAME_MEDIA = 1,
    /// Those of the row's medium and of all before it.
    XATTN_VISIBILITY_PRECEDING_MEDIA = 2,
    /// A prefix, then causal (Q-Former, image-grounded text).
    XATTN_VISIBILITY_PREFIX_CAUSAL = 3,
    /// A bit per row and block of keys (IDEFICS, Llama-3.2).
    XATTN_VISIBILITY_MEDIA_BITS = 4,
}

/// What a row gets that sees no key.
#[repr(i32)]
pub enum xattn_empty_row {
    /// Zeros.
    XATTN_EMPTY_ROW_ZERO = 0,
    /// The mean of V over every key slot.
    XATTN_EMPTY_ROW_UNIFORM = 1,
    /// The softmax over every key slot.
    XATTN_EMPTY_ROW_ATTEND_ALL = 2,
}

/// Keys and values of one segment.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_segment {
    /// `sizeof(xattn_segment)`.
    pub struct_size: usize,
    /// Keys `[entries, Lk, Hk, d]`; ragged: `[1, total, Hk, d]`.
    pub k: *const xattn_tensor,
    /// Values, like `k`.
    pub v: *const xattn_tensor,
    /// `u32 [B]`: the first so many keys exist. Or null.
    pub lengths: *const xattn_tensor,
    /// `u32 [B, ceil(Lk/32)]`: the keys whose bit is set exist. Or null; not beside `lengths`.
    pub bits: *const xattn_tensor,
    /// Ragged: `u32 [B+1]`. Or null.
    pub offsets: *const xattn_tensor,
    /// `u32 [B]`: which entry a problem reads. Or null: entry b.
    pub slots: *const xattn_tensor,
}

// SAFETY: `#[repr(C)]`, size first; numbers, and pointers that may be null.
unsafe impl Versioned for xattn_segment {
    const NAME: &'static str = "xattn_segment";
    const FIRST_SIZE: usize = size_of::<xattn_segment>();
}

/// Operands and parameters of `xattn_attention`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_attention_args {
    /// `sizeof(xattn_attention_args)`.
    pub struct_size: usize,
    /// Factor on the scores, usually head_dim^-1/2.
    pub scale: f32,
    /// A `xattn_empty_row`: for rows without a medium.
    pub empty_no_media: i32,
    /// A `xattn_empty_row`: for rows whose medium is not there.
    pub empty_beyond_media: i32,
    /// A `xattn_empty_row`: for rows all of whose keys are masked.
    pub empty_masked: i32,
    /// Queries `[B, Lq, H, d]`; ragged: `[1, total, H, d]`.
    pub q: *const xattn_tensor,
    /// Ragged: `u32 [B+1]`. Or null.
    pub q_offsets: *const xattn_tensor,
    /// The first segment (features, media, cached keys).
    pub first: *const xattn_segment,
    /// The second one (latents, new keys), or null.
    pub second: *const xattn_segment,
    /// A `xattn_visibility`.
    pub visibility: i32,
    /// SAME_MEDIA, PRECEDING_MEDIA: `i32 [B, Lq]` (ragged: `[1, total]`), 1-based, 0 and less is
    /// none.
    pub media_index: *const xattn_tensor,
    /// SAME_MEDIA, PRECEDING_MEDIA: the media plan of the same index, or null. Never changes the
    /// result. One of other contents causes no access outside of the operands; on CUDA, rows in
    /// none of its runs may then keep what the outputs held before.
    pub plan: *const xattn_tensor,
    /// MEDIA_BITS: `u32 [B, Lq, words]`.
    pub media_bits: *const xattn_tensor,
    /// SAME_MEDIA, PRECEDING_MEDIA: keys of a medium. MEDIA_BITS: keys of a bit.
    pub keys_per_media: u32,
    /// PREFIX_CAUSAL: keys that every row sees.
    pub causal_prefix: u32,
    /// PREFIX_CAUSAL: key position of query row 0 of each problem, `u32 [B]`, values beyond 2^31 -
    /// 1 count as that; or null: 0.
    pub causal_offset: *const xattn_tensor,
    /// Result, like `q`.
    pub out: *const xattn_tensor,
    /// `f32 [B, Lq, H]`, or null.
    pub log_sum_exp: *const xattn_tensor,
    /// `u32 [B, Lq]`: 1 for rows that saw a key. Or null.
    pub row_visible: *const xattn_tensor,
}

// SAFETY: `#[repr(C)]`, size first; numbers, and pointers that may be null.
unsafe impl Versioned for xattn_attention_args {
    const NAME: &'static str = "xattn_attention_args";
    const FIRST_SIZE: usize = size_of::<xattn_attention_args>();
}

/// SAFETY: as the exported functions.
unsafe fn segment(names: [&str; 6], s: &xattn_segment) -> Result<Segment<Operand>> {
    // SAFETY: passed on.
    unsafe {
        Ok(Segment {
            k: Operand::read(CALL, names[0], s.k)?,
            v: Operand::read(CALL, names[1], s.v)?,
            keys: keys(CALL, [names[2], names[3]], s.lengths, s.bits)?,
            offsets: Operand::read_optional(CALL, names[4], s.offsets)?,
            slots: Operand::read_optional(CALL, names[5], s.slots)?,
        })
    }
}

/// The rule that the fields of this name in several structs describe.
pub(crate) struct Rule {
    pub visibility: i32,
    pub media_index: *const xattn_tensor,
    pub plan: *const xattn_tensor,
    pub media_bits: *const xattn_tensor,
    pub keys_per_media: u32,
    pub causal_prefix: u32,
    pub causal_offset: *const xattn_tensor,
}

impl Rule {
    /// Reads the tensors that the rule needs; the others are not looked at.
    ///
    /// # Safety
    /// As [`Operand::read`].
    pub unsafe fn parse(&self, call: &str) -> Result<Visibility<Operand>> {
        // SAFETY: passed on.
        let media = || unsafe {
            Ok::<_, crate::status::Fault>(Media {
                media_index: Operand::read(call, "media_index", self.media_index)?,
                keys_per_media: self.keys_per_media,
                plan: Operand::read_optional(call, "plan", self.plan)?,
            })
        };
        Ok(match choice(call, "visibility", self.visibility, &[0, 1, 2, 3, 4])? {
            1 => Visibility::SameMedia(media()?),
            2 => Visibility::PrecedingMedia(media()?),
            3 => Visibility::PrefixCausal {
                prefix: self.causal_prefix,
                // SAFETY: passed on.
                offset: unsafe { Operand::read_optional(call, "causal_offset", self.causal_offset) }?,
            },
            4 => Visibility::MediaBits {
                // SAFETY: passed on.
                bits: unsafe { Operand::read(call, "media_bits", self.media_bits) }?,
                keys_per_block: self.keys_per_media,
            },
            _ => Visibility::All,
        })
    }
}

/// SAFETY: as the exported functions.
unsafe fn parse(at: *const xattn_attention_args) -> Result<(Attention, Args<Attention>)> {
    // SAFETY: passed on.
    unsafe {
        let a = read(CALL, "args", at)?;
        const POLICIES: [EmptyRow; 3] = [EmptyRow::Zero, EmptyRow::Uniform, EmptyRow::AttendAll];
        let empty = |name: &str, number: i32| choice(CALL, name, number, &POLICIES);
        let empty_rows = EmptyRows {
            no_media: empty("empty_no_media", a.empty_no_media)?,
            beyond_media: empty("empty_beyond_media", a.empty_beyond_media)?,
            masked: empty("empty_masked", a.empty_masked)?,
        };
        let rule = Rule {
            visibility: a.visibility,
            media_index: a.media_index,
            plan: a.plan,
            media_bits: a.media_bits,
            keys_per_media: a.keys_per_media,
            causal_prefix: a.causal_prefix,
            causal_offset: a.causal_offset,
        };
        let first = read(CALL, "first", a.first)?;
        let second = read_optional(CALL, "second", a.second)?;
        let args = AttentionArgs {
            q: Operand::read(CALL, "q", a.q)?,
            q_offsets: Operand::read_optional(CALL, "q_offsets", a.q_offsets)?,
            first: segment(FIRST, &first)?,
            second: second.map(|s| segment(SECOND, &s)).transpose()?,
            visibility: rule.parse(CALL)?,
            out: Operand::read(CALL, "out", a.out)?,
            log_sum_exp: Operand::read_optional(CALL, "log_sum_exp", a.log_sum_exp)?,
            row_visible: Operand::read_optional(CALL, "row_visible", a.row_visible)?,
        };
        Ok((Attention { scale: a.scale, empty_rows }, args))
    }
}

const FIRST: [&str; 6] = ["first.k", "first.v", "first.lengths", "first.bits", "first.offsets", "first.slots"];
const SECOND: [&str; 6] = ["second.k", "second.v", "second.lengths", "second.bits", "second.offsets", "second.slots"];

/// softmax(scale * q k^T) v over one or two segments: checks, runs and waits.
///
/// # Safety
/// `args` points to a `xattn_attention_args`, and everything it points to is as described, alive,
/// and not used in conflict until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_attention(
    device: *const xattn_device,
    args: *const xattn_attention_args,
) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (op, args) = parse(args)?;
        call::run(device, &op, args)
    })
}

/// Checks and plans for these shapes and this device. Addresses are not kept:
/// `xattn_attention_enqueue` takes them again.
///
/// # Safety
/// `args` as for `xattn_attention`; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_attention_prepare(
    device: *const xattn_device,
    args: *const xattn_attention_args,
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
/// As `xattn_attention`, until the stream has passed this point; nothing else uses the workspace
/// until then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_attention_enqueue(
    prepared: *const xattn_prepared,
    args: *const xattn_attention_args,
    workspace: *mut c_void,
    workspace_bytes: u64,
    stream: *mut c_void,
) -> xattn_status {
    // SAFETY: passed on.
    guard(|| unsafe {
        let (op, args) = parse(args)?;
        call::enqueue::<Attention>(prepared, &op, args, Place { workspace, workspace_bytes, stream })
    })
}
