//! Handles that were freed, used while newcomers of their kind are there.

use std::ffi::CStr;
use std::mem::size_of;
use std::ptr::{null, null_mut};

use xattn_c::bridge::*;
use xattn_c::call::*;
use xattn_c::device::*;
use xattn_c::xattn_status::{self, *};

use super::bridges::open;
use super::files::{self, Folder};
use super::table::last;
use super::{bridges, ops};

/// Makes a handle, frees it, makes others, and uses the first one.
fn freed_before<P>(
    make: impl Fn() -> *mut P,
    free: extern "C" fn(*mut P) -> xattn_status,
    said: &str,
    use_it: impl Fn(*mut P) -> xattn_status,
) {
    let old = make();
    assert_eq!(use_it(old), XATTN_STATUS_OK, "{}", last());
    assert_eq!(free(old), XATTN_STATUS_OK);
    let new: Vec<*mut P> = (0..4).map(|_| make()).collect();
    let refused = (XATTN_STATUS_INVALID_HANDLE, format!("{said}, got one that was freed or never made"));
    assert_eq!((use_it(old), last()), refused);
    let kind = said.rsplit(' ').next().unwrap();
    let named = format!("{kind}_free: handle: expected a handle of {kind}, got one that was freed or never made");
    assert_eq!((free(old), last()), (XATTN_STATUS_INVALID_HANDLE, named));
    // The newcomers are as they were.
    for handle in new {
        assert_eq!(use_it(handle), XATTN_STATUS_OK, "{}", last());
        assert_eq!(free(handle), XATTN_STATUS_OK);
    }
}

fn device(kind: &CStr) -> *mut xattn_device {
    let mut device = null_mut();
    // SAFETY: a C string, and a place for the handle.
    assert_eq!(unsafe { xattn_device_open(kind.as_ptr(), &mut device) }, XATTN_STATUS_OK);
    device
}

#[test]
fn a_device() {
    let describe = |device: *mut xattn_device| {
        let mut text = [0u8; 64];
        // SAFETY: room for as many bytes.
        unsafe { xattn_device_describe(device, text.as_mut_ptr().cast(), text.len()) }
    };
    let said = "xattn_device_describe: device: expected a handle of xattn_device";
    freed_before(|| device(c"cpu"), xattn_device_free, said, describe);
}

#[test]
fn a_weight() {
    let case = ops::linear();
    let world = (case.world)(c"cpu");
    let make = || {
        let (mut packed, parts) = (null_mut(), [world.at("packing")]);
        // SAFETY: one tensor, and a place for the handle.
        let status =
            unsafe { xattn_weight_prepare(world.handle("device"), parts.as_ptr(), 1, null(), 0, 1, &mut packed) };
        assert_eq!(status, XATTN_STATUS_OK, "{}", last());
        packed
    };
    let multiply = |weight: *mut xattn_weight| {
        // SAFETY: the world's arguments are as they say.
        let mut args = unsafe { *world.at::<xattn_c::ops::linear::xattn_linear_args>("args") };
        (args.weight, args.prepared) = (null(), weight);
        assert_eq!(args.struct_size, size_of_val(&args));
        // SAFETY: as above; the handle is looked up.
        unsafe { xattn_c::ops::linear::xattn_linear(world.handle("device"), &args) }
    };
    freed_before(make, xattn_weight_free, "linear: prepared: expected a handle of xattn_weight", multiply);
}

#[test]
fn a_prepared_call() {
    let case = ops::norm();
    let world = (case.world)(c"cpu");
    let make = || {
        let mut prepared = null_mut();
        // SAFETY: the world's arguments are as they say.
        let status =
            unsafe { xattn_c::ops::norm::xattn_norm_prepare(world.handle("device"), world.at("args"), &mut prepared) };
        assert_eq!(status, XATTN_STATUS_OK, "{}", last());
        prepared
    };
    let ask = |prepared: *mut xattn_prepared| {
        // SAFETY: a place for the number.
        unsafe { xattn_prepared_workspace_bytes(prepared, &mut 0) }
    };
    let said = "xattn_prepared_workspace_bytes: prepared: expected a handle of xattn_prepared";
    freed_before(make, xattn_prepared_free, said, ask);
}

#[test]
fn a_checkpoint() {
    let folder = Folder::new(&files::flamingo(), "");
    let describe = |checkpoint: *mut xattn_checkpoint| {
        let mut room = [0u64; size_of::<xattn_checkpoint_contents>().div_ceil(8)];
        // SAFETY: room for the struct.
        unsafe { xattn_checkpoint_describe(checkpoint, room.as_mut_ptr().cast()) }
    };
    let said = "xattn_checkpoint_describe: checkpoint: expected a handle of xattn_checkpoint";
    freed_before(|| open(&folder), xattn_checkpoint_free, said, describe);
}

#[test]
fn a_bridge() {
    let folder = Folder::new(&files::flamingo(), "");
    let (checkpoint, device) = (open(&folder), device(c"reference"));
    let resampler = || {
        let mut bridge = null_mut();
        // SAFETY: handles, and a place for another.
        let status = unsafe { xattn_resampler_load(checkpoint, device, 1, &mut bridge) };
        assert_eq!(status, XATTN_STATUS_OK, "{}", last());
        bridge
    };
    let describe = |bridge: *mut xattn_resampler| {
        let mut room = [0u64; size_of::<xattn_resampler_sizes>().div_ceil(8)];
        // SAFETY: room for the struct.
        unsafe { xattn_resampler_describe(bridge, room.as_mut_ptr().cast()) }
    };
    let said = "xattn_resampler_describe: resampler: expected a handle of xattn_resampler";
    freed_before(resampler, xattn_resampler_free, said, describe);
    let block = || {
        let mut bridge = null_mut();
        // SAFETY: handles, and a place for another.
        let status = unsafe { xattn_gated_block_load(checkpoint, device, 0, 1, &mut bridge) };
        assert_eq!(status, XATTN_STATUS_OK, "{}", last());
        bridge
    };
    let world = (bridges::gated_block().world)(c"reference");
    // SAFETY: the world's arguments are as they say; the handle is looked up.
    let run = |bridge: *mut xattn_gated_block| unsafe { xattn_gated_block_run(bridge, world.at("args")) };
    let said = "gated_block: gated_block: expected a handle of xattn_gated_block";
    freed_before(block, xattn_gated_block_free, said, run);
    assert_eq!(xattn_checkpoint_free(checkpoint), XATTN_STATUS_OK);
    assert_eq!(xattn_device_free(device), XATTN_STATUS_OK);
}
