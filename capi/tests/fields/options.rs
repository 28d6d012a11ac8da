//! `xattn_checkpoint_options`: what is opened with them is run, and compared with a checkpoint that
//! says the same by itself.

use std::ffi::{CStr, CString};
use std::mem::size_of;
use std::ptr::null_mut;

use xattn_c::bridge::*;
use xattn_c::xattn_status::{self, *};

use super::bridges::REFERENCE;
use super::files::{self, BLOCK, Folder, below, values};
use super::table::{Case, Seen, refused, row, says};
use super::world::Value::{Int, Text};
use super::world::{F32, I32, Sets, U32, Value, World};

pub fn cases() -> Vec<Case> {
    vec![options()]
}

/// The checkpoints of the rows.
fn checkpoint(kind: &str) -> Folder {
    let copy = |prefix: &str| below(prefix, files::flamingo());
    let mini = |heads: &str| format!(r#"{{"resampler_act": "gelu", {heads}}}"#);
    match kind {
        "flamingo" => Folder::new(&files::flamingo(), ""),
        "resampler with 4 heads" => Folder::new(&files::flamingo(), &mini(r#""resampler_heads": 4"#)),
        "blocks with 4 heads" => Folder::new(&files::flamingo(), &mini(r#""xattn_heads": 4"#)),
        "resampler" => Folder::new(&below("vision_tokenizer.", files::resampler(2, 0)), ""),
        "two copies" => Folder::new(&[copy(""), copy("ema.")].concat(), ""),
        "one copy" => Folder::new(&copy("ema."), ""),
        "mllama" => Folder::new(&files::mllama(), files::MLLAMA),
        "adapted" => {
            let folder = Folder::new(&files::flamingo(), "");
            let module = format!("base_model.model.{BLOCK}attn.to_q");
            let lora =
                vec![(format!("{module}.lora_A.weight"), vec![2, 8]), (format!("{module}.lora_B.weight"), vec![16, 2])];
            folder.write("adapter_model.safetensors", &lora);
            folder.text(
                "adapter_config.json",
                r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["to_q"]}"#,
            );
            folder
        }
        other => panic!("no checkpoint {other}"),
    }
}

fn world(device: &CStr) -> World {
    let mut world = World::new(device)
        .tensor("features", F32, &[1, 1, 4, 8], &values("features", 32))
        .tensor("latents", F32, &[1, 1, 2, 8], &[9.; 16])
        .tensor("text", F32, &[1, 3, 8], &values("text", 24))
        .tensor("kv", F32, &[1, 4, 32], &values("kv", 128))
        .tensor("no_medium", I32, &[1, 3], &[0., 0., 1.])
        .tensor("beyond", I32, &[1, 3], &[9., 9., 1.])
        .tensor("out", F32, &[1, 3, 8], &[9.; 24])
        // For Llama: twice as wide; its last row sees nothing.
        .tensor("wide_text", F32, &[1, 3, 16], &values("text", 48))
        .tensor("row_bits", U32, &[1, 3, 1], &[1., 3., 0.])
        .tensor("wide", F32, &[1, 3, 16], &[9.; 48])
        .tensor("contents", U32, &[4], &[9.; 4])
        .record("options", "xattn_checkpoint_options", &[])
        .record(
            "resampling",
            "xattn_resampler_args",
            &[("frames", Int(1)), ("features", Value::At("features")), ("out", Value::At("latents"))],
        )
        .record(
            "flamingo",
            "xattn_gated_block_args",
            &[
                ("x", Value::At("text")),
                ("kv", Value::At("kv")),
                ("visibility", Int(1)),
                ("media_index", Value::At("no_medium")),
                ("keys_per_media", Int(2)),
                ("out", Value::At("out")),
            ],
        )
        .record(
            "llama",
            "xattn_gated_block_args",
            &[
                ("x", Value::At("wide_text")),
                ("kv", Value::At("kv")),
                ("visibility", Int(4)),
                ("media_bits", Value::At("row_bits")),
                ("keys_per_media", Int(2)),
                ("out", Value::At("wide")),
            ],
        );
    world.inputs.insert("#checkpoint", Text(c"flamingo"));
    world
}

/// Opens the checkpoint with the options and runs what it holds.
unsafe fn run(world: &World) -> xattn_status {
    let Text(kind) = world.inputs["#checkpoint"] else { panic!("no name") };
    let folder = checkpoint(kind.to_str().unwrap());
    let path = CString::new(folder.path()).unwrap();
    let (mut checkpoint, mut resampler, mut block) = (null_mut(), null_mut(), null_mut());
    let device = world.handle("device");
    let options: *const xattn_checkpoint_options = world.at("options");
    // SAFETY: the caller's promise; places for handles and contents, which are as long as the
    // memory of that name.
    unsafe {
        let status = xattn_checkpoint_open(path.as_ptr(), options, &mut checkpoint);
        if status != XATTN_STATUS_OK {
            return status;
        }
        let contents: *mut xattn_checkpoint_contents = world.memory["contents"].address().cast();
        let mut done = vec![xattn_checkpoint_describe(checkpoint, contents)];
        if (*contents).has_resampler == 1 {
            done.push(xattn_resampler_load(checkpoint, device, F32 as i32, &mut resampler));
            done.push(xattn_resampler_run(resampler, world.at("resampling")));
        }
        if (*contents).gated_blocks == 1 {
            let args = if kind == c"mllama" { "llama" } else { "flamingo" };
            done.push(xattn_gated_block_load(checkpoint, device, 0, F32 as i32, &mut block));
            done.push(xattn_gated_block_run(block, world.at(args)));
        }
        done.push(xattn_resampler_free(resampler));
        done.push(xattn_gated_block_free(block));
        done.push(xattn_checkpoint_free(checkpoint));
        done.into_iter().find(|&status| status != XATTN_STATUS_OK).unwrap_or(XATTN_STATUS_OK)
    }
}

fn options() -> Case {
    const FAMILIES: &str = "checkpoint: family: expected one of open-flamingo, xgen-mm, idefics, idefics2, mllama, blip-2, instructblip, lavis, \
                            got flamingo";
    const COPIES: &str = "FOLDER (open-flamingo): resampler: different weights at perceiver. and ema.perceiver. (in latents); --prefix chooses; \
                          gated block 0: different weights at ema.lang_encoder.gated_cross_attn_layers.0. and \
                          lang_encoder.gated_cross_attn_layers.0. (in attn.norm.bias); --prefix chooses";
    const NONE: &str = "FOLDER (open-flamingo): resampler: none below the prefix none., but at perceiver.; gated block 0: none below the prefix none., \
                        but at lang_encoder.gated_cross_attn_layers.0.";
    const LATENTS: fn(Sets) -> Seen = |sets| Seen::Same { sets, there: "latents", here: "latents", first: None };
    const BLOCKS: fn(Sets) -> Seen = |sets| Seen::Same { sets, there: "out", here: "out", first: None };
    const TOKENIZER: Sets = &[("#checkpoint", Text(c"resampler"))];
    const TWO: Sets = &[("#checkpoint", Text(c"two copies"))];
    const ONE: Sets = &[("#checkpoint", Text(c"one copy"))];
    const ADAPTED: Sets = &[("#checkpoint", Text(c"adapted"))];
    const MLLAMA: Sets = &[("#checkpoint", Text(c"mllama"))];
    Case {
        of: "xattn_checkpoint_options",
        size: size_of::<xattn_checkpoint_options>(),
        record: "options",
        call: "xattn_checkpoint_open",
        argument: "options",
        prefix: "",
        first_size: 32,
        devices: REFERENCE,
        world,
        run,
        base: Seen::Something,
        rows: vec![
            row("family", Text(c"flamingo"), says(FAMILIES)),
            // xGen-MM has 16 heads, OpenFlamingo 8.
            row("family", Text(c"xgen-mm"), LATENTS(&[("#checkpoint", Text(c"resampler")), ("heads", Int(16))]))
                .beside(TOKENIZER),
            row("heads", Int(4), LATENTS(&[("#checkpoint", Text(c"resampler with 4 heads"))])),
            row("block_heads", Int(4), BLOCKS(&[("#checkpoint", Text(c"blocks with 4 heads"))])),
            // Text without a medium gets the mean of all, as text beyond the media does in any
            // case.
            row("attend_preceding", Int(1), BLOCKS(&[("flamingo.media_index", Value::At("beyond"))])),
            row("transformers_empty_rows", Int(1), Seen::Something).from(MLLAMA, Seen::Something),
            row("prefix", Text(c"ema."), BLOCKS(ONE)).from(TWO, refused(XATTN_STATUS_WEIGHTS, COPIES)),
            row("prefix", Text(c"none."), refused(XATTN_STATUS_WEIGHTS, NONE)),
            row("adapter", Text(c"none"), BLOCKS(&[])).from(ADAPTED, Seen::Something),
            row(
                "adapter",
                Text(c"/absent/adapter"),
                refused(XATTN_STATUS_FILE, "/absent/adapter: No such file or directory (os error 2)"),
            ),
        ],
    }
}

#[test]
fn checkpoint_options_fields() {
    options().check();
}

/// Text before the first image: as it was, in Meta's code; changed by attention to everything in
/// transformers.
#[test]
fn llamas_rows_that_see_nothing() {
    let last_row = |transformers: i64| {
        let mut world = world(c"reference");
        world.set("options", "#checkpoint", Text(c"mllama"));
        world.set("options", "transformers_empty_rows", Int(transformers));
        // SAFETY: everything in the world is as it says.
        assert_eq!(unsafe { run(&world) }, XATTN_STATUS_OK, "{}", super::table::last());
        world.memory["wide"].values()[32..].to_vec()
    };
    let text = &values("text", 48)[32..];
    assert_eq!(last_row(0), text);
    assert!(last_row(1).iter().zip(text).all(|(now, was)| now != was), "{:?}", last_row(1));
}
