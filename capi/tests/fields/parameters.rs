//! What calls take beside structs: the matrices of a weight, the buffer of a description.

use std::ptr::{null, null_mut};

use xattn_c::device::*;
use xattn_c::ops::linear::*;
use xattn_c::tensor::*;
use xattn_c::xattn_status::*;

use super::ops;
use super::table::last;
use super::world::Value::{At, Data, Handle, Int, Null};
use super::world::World;

/// `linear` of [`ops::linear`] by a weight of these matrices: its result, or what is said.
fn multiplied(world: &mut World, parts: &[&str], up: &[&str]) -> Result<Vec<f64>, String> {
    let list = |names: &[&str]| names.iter().map(|name| world.at(name)).collect::<Vec<*const xattn_tensor>>();
    let (parts, up, mut weight) = (list(parts), list(up), null_mut());
    let device = world.handle("device");
    // SAFETY: as many tensors as are said, as they say; a place for the handle.
    let status =
        unsafe { xattn_weight_prepare(device, parts.as_ptr(), parts.len(), up.as_ptr(), up.len(), 1, &mut weight) };
    if status != XATTN_STATUS_OK {
        assert_eq!((status, weight), (XATTN_STATUS_INVALID_ARGUMENT, null_mut()));
        return Err(last());
    }
    world.set("args", "weight", Null);
    world.handles.insert("made", weight.cast());
    world.set("args", "prepared", Handle("made"));
    // SAFETY: everything in the world is as it says.
    let status = unsafe { xattn_linear(device, world.at("args")) };
    assert_eq!(xattn_weight_free(weight), XATTN_STATUS_OK);
    if status == XATTN_STATUS_OK { Ok(world.memory["out"].values()) } else { Err(last()) }
}

#[test]
fn matrices_of_a_weight() {
    let world = || (ops::linear().world)(c"cpu").strides("turned", &[1, 2]);
    assert_eq!(multiplied(&mut world(), &["weight"], &[]), Ok(vec![3., -1., -1., 7.]));
    // Two of one row each, stacked in their order.
    let mut rows = world();
    ["weight", "weight2"].into_iter().for_each(|name| rows.set(name, "shape[0]", Int(1)));
    assert_eq!(multiplied(&mut rows, &["weight", "weight2"], &[]), Ok(vec![3., 2., -1., 6.]));
    assert_eq!(multiplied(&mut rows, &["weight2", "weight"], &[]), Ok(vec![2., 3., 6., -1.]));
    // silu(x Wᵀ) (x Uᵀ).
    let mut gated = world();
    gated.set("args", "activation", Int(4));
    gated.set("args", "x", At("big"));
    assert_eq!(multiplied(&mut gated, &["weight"], &["up"]), Ok(vec![4096., 12288., 4096., 12288.]));
    // A transposed matrix is not read as if it were none.
    for (parts, up, name) in [(&["weight"][..], &[][..], "parts"), (&["up"], &["weight"], "up")] {
        let mut turned = world();
        turned.set("weight", "strides", Data("turned"));
        let said =
            format!("xattn_weight_prepare: {name}: expected a tensor without gaps, got f32[2, 2] strides [1, 2]");
        assert_eq!(multiplied(&mut turned, parts, up), Err(said));
    }
    // A list that is not there.
    let (world, mut weight) = (world(), null_mut());
    for (name, counts) in [("parts", [2, 0]), ("up", [0, 2])] {
        // SAFETY: null is what is being tested.
        let status = unsafe {
            xattn_weight_prepare(world.handle("device"), null(), counts[0], null(), counts[1], 1, &mut weight)
        };
        let said = format!("xattn_weight_prepare: {name}: expected 2 matrices, got null");
        assert_eq!((status, last()), (XATTN_STATUS_INVALID_ARGUMENT, said));
    }
}

/// As much of the text as fits, a zero behind it, and nothing beyond the buffer.
#[test]
fn descriptions_in_buffers_of_every_size() {
    const UNTOUCHED: u8 = 0xA5;
    let world = World::new(c"reference");
    let described = |capacity: usize| {
        let mut room = vec![UNTOUCHED; 512];
        // SAFETY: the buffer is larger than is said.
        let status = unsafe { xattn_device_describe(world.handle("device"), room.as_mut_ptr().cast(), capacity) };
        (status, room)
    };
    let (status, room) = described(512);
    assert_eq!(status, XATTN_STATUS_OK);
    let whole = room[..room.iter().position(|&b| b == 0).unwrap()].to_vec();
    assert!(whole.starts_with(b"reference: ") && whole.is_ascii(), "{whole:?}");
    for capacity in 1..whole.len() + 3 {
        let (status, room) = described(capacity);
        let written = whole.len().min(capacity - 1);
        assert_eq!(status, XATTN_STATUS_OK);
        assert_eq!((&room[..written], room[written]), (&whole[..written], 0), "{capacity} bytes");
        assert!(room[written + 1..].iter().all(|&b| b == UNTOUCHED), "{capacity} bytes: more is written");
    }
    let (status, room) = described(0);
    let said = "xattn_device_describe: buffer: expected room for at least one byte, got none";
    assert_eq!((status, last().as_str()), (XATTN_STATUS_INVALID_ARGUMENT, said));
    assert!(room.iter().all(|&b| b == UNTOUCHED));
}
