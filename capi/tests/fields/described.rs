//! Structs that the library fills in: each number follows the checkpoint that it describes.

use std::mem::size_of;
use std::ptr::null_mut;

use xattn_c::bridge::*;
use xattn_c::device::*;
use xattn_c::xattn_status::{self, *};

use super::bridges::open;
use super::files::{self, BLOCK, Folder, Tensors, below};
use super::header::{Type, committed};
use super::table::last;

/// A struct and what describes: the number of each field for two checkpoints, which differ in this
/// number.
struct Described {
    of: &'static str,
    size: usize,
    describe: fn(*const xattn_checkpoint, *mut u8) -> xattn_status,
    /// Field, then checkpoint and number, twice.
    rows: Vec<(&'static str, [(Checkpoint, u64); 2])>,
}

type Checkpoint = (Tensors, String);

fn device() -> *mut xattn_device {
    let mut device = null_mut();
    // SAFETY: a C string, and a place for the handle.
    assert_eq!(unsafe { xattn_device_open(c"reference".as_ptr(), &mut device) }, XATTN_STATUS_OK);
    device
}

fn contents(checkpoint: *const xattn_checkpoint, out: *mut u8) -> xattn_status {
    // SAFETY: `out` has room for the struct.
    unsafe { xattn_checkpoint_describe(checkpoint, out.cast()) }
}

/// Loads a bridge, describes it, frees it.
fn of_bridge<P>(
    load: impl FnOnce(*const xattn_device, *mut *mut P) -> xattn_status,
    describe: impl FnOnce(*const P) -> xattn_status,
    free: extern "C" fn(*mut P) -> xattn_status,
) -> xattn_status {
    let (device, mut bridge) = (device(), null_mut());
    assert_eq!(load(device, &mut bridge), XATTN_STATUS_OK, "{}", last());
    let status = describe(bridge);
    assert_eq!((free(bridge), xattn_device_free(device)), (XATTN_STATUS_OK, XATTN_STATUS_OK));
    status
}

fn resampler_sizes(checkpoint: *const xattn_checkpoint, out: *mut u8) -> xattn_status {
    // SAFETY: handles and places for them; `out` has room for the struct.
    let load = |device, bridge| unsafe { xattn_resampler_load(checkpoint, device, 1, bridge) };
    // SAFETY: as above.
    of_bridge(load, |bridge| unsafe { xattn_resampler_describe(bridge, out.cast()) }, xattn_resampler_free)
}

fn block_sizes(checkpoint: *const xattn_checkpoint, out: *mut u8) -> xattn_status {
    // SAFETY: handles and places for them; `out` has room for the struct.
    let load = |device, bridge| unsafe { xattn_gated_block_load(checkpoint, device, 0, 1, bridge) };
    // SAFETY: as above.
    of_bridge(load, |bridge| unsafe { xattn_gated_block_describe(bridge, out.cast()) }, xattn_gated_block_free)
}

fn qformer_sizes(checkpoint: *const xattn_checkpoint, out: *mut u8) -> xattn_status {
    // SAFETY: handles and places for them; `out` has room for the struct.
    let load = |device, bridge| unsafe { xattn_qformer_load(checkpoint, device, 1, bridge) };
    // SAFETY: as above.
    of_bridge(load, |bridge| unsafe { xattn_qformer_describe(bridge, out.cast()) }, xattn_qformer_free)
}

fn described() -> Vec<Described> {
    let plain = |tensors: Tensors| (tensors, String::new());
    let resampler = |latents, projection: usize| {
        let mut tensors = files::resampler(latents, 0);
        if projection > 0 {
            tensors.push(("projection.weight".into(), vec![projection, 8]));
            tensors.push(("projection.bias".into(), vec![projection]));
        }
        plain(below("vision_tokenizer.", tensors))
    };
    let blocks = |numbers: &[usize]| -> Checkpoint {
        let list = BLOCK.trim_end_matches("0.");
        plain(numbers.iter().flat_map(|i| below(&format!("{list}{i}."), files::block(8, 8, 16))).collect())
    };
    let block = |width, media, inner| plain(below(BLOCK, files::block(width, media, inner)));
    let qformer = |queries, width, features, language| {
        (files::blip2(queries, width, features, language), files::blip2_config(queries, width, features))
    };
    vec![
        Described {
            of: "xattn_checkpoint_contents",
            size: size_of::<xattn_checkpoint_contents>(),
            describe: contents,
            rows: vec![
                ("has_resampler", [(plain(files::flamingo()), 1), (blocks(&[0]), 0)]),
                ("gated_blocks", [(blocks(&[0]), 1), (blocks(&[0, 1, 2]), 3)]),
                ("has_qformer", [(qformer(4, 16, 12, 24), 1), (blocks(&[0]), 0)]),
                ("has_language_projection", [(qformer(4, 16, 12, 24), 1), (qformer(4, 16, 12, 0), 0)]),
            ],
        },
        Described {
            of: "xattn_resampler_sizes",
            size: size_of::<xattn_resampler_sizes>(),
            describe: resampler_sizes,
            rows: vec![
                ("latents", [(resampler(2, 0), 2), (resampler(5, 0), 5)]),
                // Idefics2's, whose features are narrower than what it computes with.
                ("feature_width", [(resampler(2, 0), 8), (files::idefics2(), 10)]),
                ("output_width", [(resampler(2, 0), 8), (resampler(2, 11), 11)]),
            ],
        },
        Described {
            of: "xattn_gated_block_sizes",
            size: size_of::<xattn_gated_block_sizes>(),
            describe: block_sizes,
            rows: vec![
                ("width", [(block(8, 6, 16), 8), (block(12, 6, 16), 12)]),
                ("media_width", [(block(8, 6, 16), 6), (block(8, 7, 16), 7)]),
                ("kv_width", [(block(8, 6, 16), 32), (block(8, 6, 24), 48)]),
            ],
        },
        Described {
            of: "xattn_qformer_sizes",
            size: size_of::<xattn_qformer_sizes>(),
            describe: qformer_sizes,
            rows: vec![
                ("queries", [(qformer(4, 16, 12, 24), 4), (qformer(3, 16, 12, 24), 3)]),
                ("width", [(qformer(4, 16, 12, 24), 16), (qformer(4, 20, 12, 24), 20)]),
                ("encoder_width", [(qformer(4, 16, 12, 24), 12), (qformer(4, 16, 13, 24), 13)]),
                ("language_width", [(qformer(4, 16, 12, 24), 24), (qformer(4, 16, 12, 0), 0)]),
            ],
        },
    ]
}

pub fn fields() -> Vec<(String, String)> {
    let of = |d: Described| d.rows.into_iter().map(move |(field, _)| (d.of.to_string(), field.to_string()));
    described().into_iter().flat_map(of).collect()
}

pub fn sizes() -> Vec<(&'static str, usize)> {
    described().iter().map(|d| (d.of, d.size)).collect()
}

#[test]
fn numbers_follow_the_checkpoint() {
    const UNTOUCHED: u8 = 0xA5;
    for d in described() {
        let of = committed().of(d.of);
        for (name, sides) in &d.rows {
            assert_ne!(sides[0].1, sides[1].1);
            for ((tensors, config), number) in sides {
                let folder = Folder::new(tensors, config);
                let checkpoint = open(&folder);
                let mut room = [u64::from_le_bytes([UNTOUCHED; 8]); 16];
                let status = (d.describe)(checkpoint, room.as_mut_ptr().cast());
                assert_eq!(status, XATTN_STATUS_OK, "{}: {}", d.of, last());
                assert_eq!(xattn_checkpoint_free(checkpoint), XATTN_STATUS_OK);
                let bytes: Vec<u8> = room.iter().flat_map(|word| word.to_le_bytes()).collect();
                let field = of.field(name);
                let at = &bytes[field.offset..];
                let found = match field.ty {
                    Type::U32 => u64::from(u32::from_le_bytes(at[..4].try_into().unwrap())),
                    _ => u64::from_le_bytes(at[..8].try_into().unwrap()),
                };
                assert_eq!(found, *number, "{}.{name}", d.of);
                assert!(bytes[of.size..].iter().all(|&b| b == UNTOUCHED), "{}: more was written than sizeof", d.of);
            }
        }
    }
}
