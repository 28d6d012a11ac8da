//! Checkpoints.

use std::ffi::c_char;
use std::mem::offset_of;
use std::path::Path;

use xattn::checkpoint::mllama::EmptyRowBehaviour;
use xattn::checkpoint::{AdapterChoice, Bridges, Checkpoint, Family, Overrides};

use crate::device::text;
use crate::handle;
use crate::ops::flag;
use crate::status::{Fault, Result, expect_out, guard, xattn_status};
use crate::tensor::{Versioned, read_optional};

/// Weights of a published model, as its public library saves them.
pub struct xattn_checkpoint {
    _opaque: [u8; 0],
}

/// Behind a `xattn_checkpoint`.
pub(crate) struct CheckpointHandle {
    checkpoint: Checkpoint,
    overrides: Overrides,
}

impl handle::Kind for CheckpointHandle {
    const NAME: &'static str = "xattn_checkpoint";
}

impl CheckpointHandle {
    pub fn bridges(&self) -> Result<Bridges<'_>> {
        Ok(self.checkpoint.bridges(&self.overrides)?)
    }

    /// An error about a bridge that this checkpoint does not hold.
    pub fn lacks(&self, call: &str, argument: &str, expected: &str) -> Fault {
        Fault::argument(call, argument, expected, format!("one of family {}", self.checkpoint.family().name()))
    }
}

/// How to read a checkpoint. All zeros: what `config.json` and the tensors' names say.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_checkpoint_options {
    /// `sizeof(xattn_checkpoint_options)`.
    pub struct_size: usize,
    /// open-flamingo, xgen-mm, idefics, idefics2, mllama, blip-2, instructblip or lavis. Or null.
    pub family: *const c_char,
    /// Query heads of the resampler or Q-Former where no configuration says how many; 0: as
    /// configured.
    pub heads: u32,
    /// Query heads of the gated blocks where no configuration says how many; 0: as configured.
    pub block_heads: u32,
    /// 1: text sees all media before it, not only the last one (OpenFlamingo).
    pub attend_preceding: u32,
    /// 1: Llama-3.2-Vision's text before the first image attends to everything, as in transformers;
    /// 0: to nothing, as in Meta's code.
    pub transformers_empty_rows: u32,
    /// Of several copies in one checkpoint (an EMA, a teacher), the one whose tensors' names begin
    /// with this; "": the one that no copy's prefix precedes. Or null.
    pub prefix: *const c_char,
    /// A PEFT adapter (LoRA) to merge: its folder or its file of weights; "none": not the one
    /// beside the checkpoint. Null: that one.
    pub adapter: *const c_char,
}

// SAFETY: `#[repr(C)]`, size first; numbers, and pointers that may be null.
unsafe impl Versioned for xattn_checkpoint_options {
    const NAME: &'static str = "xattn_checkpoint_options";
    const FIRST_SIZE: usize = offset_of!(xattn_checkpoint_options, prefix);
}

/// What a checkpoint holds.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct xattn_checkpoint_contents {
    /// 1: a Perceiver resampler or connector.
    pub has_resampler: u32,
    /// Gated blocks.
    pub gated_blocks: u32,
    /// 1: a Q-Former.
    pub has_qformer: u32,
    /// 1: a projection of its queries into the language model.
    pub has_language_projection: u32,
}

/// Opens a safetensors file, an index of shards, or a folder with either.
///
/// The files stay open and are never mapped: weights are read when a bridge is loaded. A file that
/// was written, shortened or replaced since it was opened is XATTN_STATUS_FILE then, and harms
/// nothing.
///
/// # Safety
/// `path` is null or a C string; `options` is null or as described; `out` is null or may be
/// written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_checkpoint_open(
    path: *const c_char,
    options: *const xattn_checkpoint_options,
    out: *mut *mut xattn_checkpoint,
) -> xattn_status {
    const CALL: &str = "xattn_checkpoint_open";
    guard(|| {
        expect_out(CALL, out)?;
        // SAFETY: passed on.
        let path = unsafe { text(CALL, "path", path) }?;
        // SAFETY: passed on.
        let options = unsafe { read_optional(CALL, "options", options) }?;
        let (mut family, mut overrides, mut adapter) = (None, Overrides::default(), AdapterChoice::Beside);
        if let Some(o) = options {
            if !o.family.is_null() {
                // SAFETY: passed on.
                family = Some(unsafe { text(CALL, "family", o.family) }?.parse::<Family>()?);
            }
            if !o.adapter.is_null() {
                // SAFETY: passed on.
                adapter = match unsafe { text(CALL, "adapter", o.adapter) }? {
                    "none" => AdapterChoice::None,
                    path => AdapterChoice::At(Path::new(path)),
                };
            }
            let prefix = match o.prefix.is_null() {
                true => None,
                // SAFETY: passed on.
                false => Some(unsafe { text(CALL, "prefix", o.prefix) }?.to_string()),
            };
            let heads = |n: u32| (n > 0).then_some(n as usize);
            overrides = Overrides {
                prefix,
                heads: heads(o.heads),
                block_heads: heads(o.block_heads),
                attend_preceding: flag(CALL, "attend_preceding", o.attend_preceding)?,
                empty_rows: match flag(CALL, "transformers_empty_rows", o.transformers_empty_rows)? {
                    true => EmptyRowBehaviour::Transformers,
                    false => EmptyRowBehaviour::Meta,
                },
            };
        }
        let checkpoint = Checkpoint::open_with(Path::new(path), family, adapter)?;
        // Missing, surplus and mis-shaped tensors are errors here, not at the first load.
        checkpoint.bridges(&overrides)?;
        // SAFETY: not null; the caller's promise.
        unsafe { out.write(handle::register(CheckpointHandle { checkpoint, overrides })?) };
        Ok(())
    })
}

/// What a checkpoint holds.
///
/// # Safety
/// `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xattn_checkpoint_describe(
    checkpoint: *const xattn_checkpoint,
    out: *mut xattn_checkpoint_contents,
) -> xattn_status {
    const CALL: &str = "xattn_checkpoint_describe";
    guard(|| {
        let checkpoint = handle::find::<CheckpointHandle, _>(CALL, "checkpoint", checkpoint)?;
        expect_out(CALL, out)?;
        let bridges = checkpoint.bridges()?;
        let contents = xattn_checkpoint_contents {
            has_resampler: u32::from(bridges.resampler.is_some()),
            gated_blocks: bridges.gated_blocks.len() as u32,
            has_qformer: u32::from(bridges.qformer.is_some()),
            has_language_projection: u32::from(bridges.language_projection.is_some()),
        };
        // SAFETY: not null; the caller's promise.
        unsafe { out.write(contents) };
        Ok(())
    })
}

/// Frees a checkpoint. Bridges that were loaded from it stay usable. Null is fine.
#[unsafe(no_mangle)]
pub extern "C" fn xattn_checkpoint_free(checkpoint: *mut xattn_checkpoint) -> xattn_status {
    guard(|| handle::free::<CheckpointHandle, _>("xattn_checkpoint_free", checkpoint))
}
