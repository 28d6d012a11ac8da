//! Every call of the tables, prepared and enqueued: with a workspace one byte too small, then with
//! one that is large enough.

use std::ffi::c_void;
use std::ptr::null_mut;

use xattn_c::bridge::*;
use xattn_c::call::*;
use xattn_c::ops::attention::*;
use xattn_c::ops::gated_residual::*;
use xattn_c::ops::linear::*;
use xattn_c::ops::media_index::*;
use xattn_c::ops::norm::*;
use xattn_c::xattn_status::{self, *};

use super::table::{Case, last};
use super::world::World;
use super::{attention, bridges, ops};

/// A call in its two steps.
struct Planned {
    case: Case,
    /// What messages call it.
    name: &'static str,
    prepare: unsafe fn(&World, *mut *mut xattn_prepared) -> xattn_status,
    enqueue: unsafe fn(&World, *const xattn_prepared, *mut c_void, u64) -> xattn_status,
}

macro_rules! planned {
    ($case:expr, $name:literal, $handle:literal, $prepare:ident, $enqueue:ident) => {{
        unsafe fn prepare(world: &World, out: *mut *mut xattn_prepared) -> xattn_status {
            // SAFETY: the caller's promise.
            unsafe { $prepare(world.handle($handle), world.at($case.record), out) }
        }
        unsafe fn enqueue(world: &World, prepared: *const xattn_prepared, at: *mut c_void, bytes: u64) -> xattn_status {
            // SAFETY: the caller's promise.
            unsafe { $enqueue(prepared, world.at($case.record), at, bytes, null_mut()) }
        }
        Planned { case: $case, name: $name, prepare, enqueue }
    }};
}

fn ops() -> Vec<Planned> {
    vec![
        planned!(ops::norm(), "norm", "device", xattn_norm_prepare, xattn_norm_enqueue),
        planned!(ops::linear(), "linear", "device", xattn_linear_prepare, xattn_linear_enqueue),
        planned!(
            ops::gated_residual(),
            "gated_residual",
            "device",
            xattn_gated_residual_prepare,
            xattn_gated_residual_enqueue
        ),
        planned!(ops::media_index(), "media_index", "device", xattn_media_index_prepare, xattn_media_index_enqueue),
        planned!(attention::attention(), "attention", "device", xattn_attention_prepare, xattn_attention_enqueue),
    ]
}

fn bridges() -> Vec<Planned> {
    vec![
        planned!(
            bridges::project_media(),
            "gated_block.project_media",
            "bridge",
            xattn_project_media_prepare,
            xattn_project_media_enqueue
        ),
        planned!(bridges::gated_block(), "gated_block", "bridge", xattn_gated_block_prepare, xattn_gated_block_enqueue),
        planned!(
            bridges::resampler(),
            "perceiver_resampler",
            "with_frames",
            xattn_resampler_prepare,
            xattn_resampler_enqueue
        ),
        planned!(bridges::qformer(), "qformer", "bridge", xattn_qformer_prepare, xattn_qformer_enqueue),
        planned!(bridges::head(), "qformer_head", "bridge", xattn_qformer_head_prepare, xattn_qformer_head_enqueue),
    ]
}

/// Bytes of the workspace; in between, the call as it must go with one byte less and with all of
/// them.
fn enqueued(planned: &Planned, device: &std::ffi::CStr) -> u64 {
    let about = format!("{} on {device:?}", planned.name);
    let run = (planned.case.world)(device);
    let world = (planned.case.world)(device);
    let (mut prepared, mut bytes) = (null_mut(), 0);
    // SAFETY: what the worlds hold is as they say; the workspace is as large as is said, or said to
    // be smaller.
    unsafe {
        assert_eq!((planned.case.run)(&run), XATTN_STATUS_OK, "{about}: {}", last());
        assert_eq!((planned.prepare)(&world, &mut prepared), XATTN_STATUS_OK, "{about}: {}", last());
        assert_eq!(xattn_prepared_workspace_bytes(prepared, &mut bytes), XATTN_STATUS_OK);
        let mut room = vec![0u8; bytes as usize + 64];
        let at: *mut c_void = room.as_mut_ptr().wrapping_add(room.as_ptr().align_offset(64)).cast();
        let before = world.contents();
        if bytes > 0 {
            let status = (planned.enqueue)(&world, prepared, at, bytes - 1);
            let text = format!("{}: workspace: expected at least {bytes} bytes, got {} bytes", planned.name, bytes - 1);
            assert_eq!((status, last()), (XATTN_STATUS_INVALID_ARGUMENT, text), "{about}");
            assert_eq!(world.contents(), before, "{about}: a call that was refused wrote");
        }
        let status = (planned.enqueue)(&world, prepared, at, bytes);
        assert_eq!(status, XATTN_STATUS_OK, "{about}: {}", last());
        assert_ne!(world.contents(), before, "{about}: nothing was written");
    }
    assert_eq!(world.contents(), run.contents(), "{about}: not what the run in one go writes");
    assert_eq!(xattn_prepared_free(prepared), XATTN_STATUS_OK);
    bytes
}

#[test]
fn ops_refuse_a_workspace_one_byte_too_small() {
    let sizes: Vec<u64> = ops().iter().flat_map(|p| p.case.devices.iter().map(|device| enqueued(p, device))).collect();
    assert!(sizes.iter().any(|&bytes| bytes > 0), "no op here needs a workspace: nothing was tried");
}

#[test]
fn bridges_refuse_a_workspace_one_byte_too_small() {
    for planned in bridges() {
        for device in [c"reference", c"cpu"] {
            let bytes = enqueued(&planned, device);
            // A single product needs none.
            let single = ["gated_block.project_media", "qformer_head"].contains(&planned.name);
            assert!(single || bytes > 0, "{} on {device:?} needs no workspace: nothing was tried", planned.name);
        }
    }
}
