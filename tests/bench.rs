//! The benchmark cases: names, coverage of the published shapes, costs and visited key blocks as
//! numbers, and that they can run.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use xattn::bench::{Blocks, Case, Check, ClockKind, Roof, Row, Session, Timing, Visited, cases, spread_media, visited};
use xattn::bridge::{GatedBlockConfig, QFormerConfig, ResamplerConfig};
use xattn::ops::{Cost, Media, Visibility};
use xattn::verify::{Options, run};
use xattn::{DType, Device, DeviceKind};

fn case(name: &str) -> Case {
    cases().into_iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no case {name}"))
}

#[test]
fn names_are_unique_and_plain() {
    let names: Vec<_> = cases().iter().map(|c| c.name).collect();
    let unique: BTreeSet<_> = names.iter().collect();
    assert_eq!(unique.len(), names.len());
    assert_eq!(names.len(), 109);
    for name in names {
        assert!(name.split('/').count() >= 2, "{name}");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "/-_.".contains(c)), "{name}");
    }
}

/// What scripts read: every case with its shape; a number in a name is one of the shape.
#[test]
fn the_list_has_shapes_floors_and_goals() {
    let all: Vec<Value> = cases().iter().map(Case::json).collect();
    assert_eq!(all.len(), 109);
    let keys =
        ["bar_us", "case", "floor_us", "full", "key_blocks", "key_blocks_visited", "published", "shape", "verify"];
    assert!(all.iter().all(|case| case.as_object().unwrap().keys().eq(keys)));
    let of = |name: &str| all.iter().find(|case| case["case"] == name).unwrap();
    let attention = json!({
        "batch": 8, "rows": 2048, "heads": 32, "kv_heads": 8, "head_dim": 128, "keys": [512, 0], "lengths": null,
        "visibility": { "rule": "same_media", "media": 8, "keys_per_media": 64 },
    });
    let asked = of("attention/flamingo-9b/b8-l2048-n8-kv8");
    assert_eq!((&asked["shape"], &asked["full"], &asked["published"]), (&attention, &json!(true), &json!([])));
    assert_eq!((&asked["floor_us"], &asked["bar_us"]), (&json!(66.0), &json!(82.0)));
    // Each of 8 problems has 32 tiles of 64 rows, of which each sees one block of 8.
    assert_eq!((&asked["key_blocks_visited"], &asked["key_blocks"]), (&json!(8 * 32), &json!(8 * 32 * 8)));
    let free = of("linear/gelu-bias/32x768-3072");
    let linear = json!({ "rows": 32, "n": 3072, "k": 768, "activation": "gelu", "epilogue": "bias" });
    assert_eq!((&free["shape"], &free["bar_us"], &free["key_blocks"]), (&linear, &Value::Null, &Value::Null));
    let config = json!({
        "width": 2048, "media_width": 1024, "heads": 8, "kv_heads": 8, "head_dim": 64, "ffn_hidden": 8192,
    });
    let block = json!({
        "batch": 1, "rows": 512, "media": 4, "keys_per_media": 64, "config": config,
        "visibility": { "rule": "same_media", "media": 4, "keys_per_media": 64 },
    });
    assert_eq!(of("gated_block/openflamingo-3b/l512-n4")["shape"], block);
    // A number in a name is one of the shape: batch, rows of text, media, keys.
    for case in &all {
        let (name, shape) = (case["case"].as_str().unwrap(), &case["shape"]);
        let keys = match shape["keys"].as_array() {
            Some(keys) => keys[0].clone(),
            None => json!(shape["keys_per_media"].as_u64().map(|n| n * shape["media"].as_u64().unwrap())),
        };
        for part in name.rsplit('/').next().unwrap().split('-') {
            let Some((what, Ok(number))) = part.split_at_checked(1).map(|(what, n)| (what, n.parse::<u64>())) else {
                continue;
            };
            let found = match what {
                "b" => &shape["batch"],
                "l" => &shape["rows"],
                "n" if !shape["media"].is_null() => &shape["media"],
                "n" => &shape["visibility"]["media"],
                "k" if name.starts_with("resampler/") => &shape["tokens"],
                "k" => &keys,
                _ => continue,
            };
            assert_eq!(found, &json!(number), "{what} of {name}");
        }
    }
}

/// `xattn verify` runs the case of an op under the string that the list has for it: small ones here.
#[test]
fn ops_are_cases_of_verify() {
    for case in cases() {
        let (string, op) = (case.json()["verify"].take(), case.name.split('/').next().unwrap());
        let single = ["attention", "linear", "norm", "gated_residual", "media_index"].contains(&op);
        assert_eq!(string.is_string(), single, "{}", case.name);
        let Some(text) = string.as_str() else { continue };
        let verify: xattn::verify::cases::Case = text.parse().unwrap();
        assert_eq!((verify.op(), verify.to_string().as_str()), (op, text), "{}", case.name);
    }
    for name in ["attention/openflamingo-decode/b1-n4", "attention/blip2-itg/q32-t32", "media_index/l2048-n32/b8"] {
        let filter = case(name).json()["verify"].as_str().map(str::to_owned);
        let options = Options { devices: vec![DeviceKind::Cpu], filter, ..Options::default() };
        let report = run(&options, &|_, _| ()).unwrap();
        assert_eq!(report.summary(), "1 passed, 0 failed, 0 skipped", "{name}: {}", report.table());
    }
}

#[test]
fn every_published_shape_has_a_case() {
    let rows: BTreeSet<u8> = cases().iter().flat_map(|c| c.rows.iter().copied()).collect();
    assert_eq!(rows, (1..=27).collect());
}

/// Parameter counts that spec sections 3.5 and 5.1 give as executed, in millions.
#[test]
fn published_configs_have_their_published_parameters() {
    let millions = |n: usize| (n as f64 / 1e5).round() / 10.0;
    assert_eq!(millions(ResamplerConfig::open_flamingo().parameters()), 63.0);
    assert_eq!(millions(GatedBlockConfig::open_flamingo_3b().parameters()), 36.7);
    assert_eq!(millions(GatedBlockConfig::open_flamingo_4b().parameters()), 56.1);
    assert_eq!(millions(GatedBlockConfig::open_flamingo_9b().parameters()), 139.5);
    let blip2 = QFormerConfig::blip2();
    assert_eq!(millions(blip2.parameters(false, 0)), 105.1);
    assert_eq!(millions(blip2.parameters(true, 0)), 161.8);
    assert_eq!(millions(blip2.parameters(true, 30523 + 512)), 185.7);
}

#[test]
fn phi_leaves_one_block_in_as_many_as_there_are_media() {
    // 512 rows in 8 tiles; 8 media of 64 keys stand at equal distances, so each tile sees one.
    assert_eq!(case("attention/openflamingo/l512-n8").visited(), Some(Visited { visited: 8, total: 64 }));
    assert_eq!(case("attention/openflamingo/l512-n1").visited(), Some(Visited { visited: 8, total: 8 }));
    assert_eq!(case("attention/openflamingo/l2048-n32").visited(), Some(Visited { visited: 32, total: 1024 }));
    assert_eq!(case("attention/blip2-cross/k257").visited(), Some(Visited { visited: 5, total: 5 }));
    let phi = spread_media(1, 100, 5);
    let media_index = phi.iter().map(|&m| m as u32).collect();
    let seen = Visibility::<Vec<u32>>::PrecedingMedia(Media { media_index, keys_per_media: 64, plan: None });
    let preceding = visited(&seen, None, 1, 100, 320, Blocks::STANDARD);
    // Rows 0..64 reach medium 4, rows 64..100 medium 5.
    assert_eq!(preceding, Visited { visited: 4 + 5, total: 10 });
    let causal = Visibility::<Vec<u32>>::PrefixCausal { prefix: 32, offset: None };
    let causal = visited(&causal, None, 1, 128, 128, Blocks::STANDARD);
    assert_eq!(causal, Visited { visited: 1 + 2, total: 4 });
}

#[test]
fn costs_are_those_of_the_shapes() {
    let device = Device::cpu();
    let cost = |name| case(name).build(&device, DType::F32).unwrap().runnable().cost();
    // q and out 64 x 512, K and V 320 x 512 each, f32; 64 rows x 320 keys x 8 heads x 64 x 4
    // operations.
    let attention = cost("attention/openflamingo-resampler/b1");
    assert_eq!((attention.bytes, attention.flops), (4 * (2 * 64 * 512 + 2 * 320 * 512), 4 * 64 * 320 * 512));
    // φ: each row sees 64 of the 512 keys.
    assert_eq!(cost("attention/openflamingo/l512-n8").flops, 4 * 512 * 64 * 512);
    let out = cost("linear/out-gated/512x512-2048");
    assert_eq!(out.flops, 2 * 512 * 512 * 2048);
    assert_eq!(out.bytes, 4 * (512 * 512 + 512 * 2048 + 1 + 512 * 2048 + 512 * 2048));
    assert_eq!(cost("gated_residual/512x2048").bytes, 4 * (3 * 512 * 2048 + 1));
}

/// K and V that φ, bits or lengths exclude are not counted, in steps or in the whole.
#[test]
fn keys_that_no_row_sees_are_not_counted() {
    let device = Device::cpu();
    let bytes = |name: &str, dtype| {
        let mut built = case(name).build(&device, dtype).unwrap();
        let bytes = built.runnable().cost().bytes;
        assert_eq!(built.steps().iter().map(|s| s.count as u64 * s.cost.bytes).sum::<u64>(), bytes, "{name}");
        bytes
    };
    // q and out 512, K and V of 64 keys of 512 each, φ of one row: one medium of four is read.
    let row = 2 * 512 + 2 * 64 * 512;
    assert_eq!(bytes("attention/openflamingo-decode/b1-n4", DType::F32), 4 * (row + 1));
    assert_eq!(bytes("attention/openflamingo-decode/b16-n4", DType::BF16), 16 * (2 * row + 4));
    // All eight media are seen by some row.
    assert_eq!(bytes("attention/openflamingo/l512-n8", DType::F32), 4 * (2 * 512 * 512 + 2 * 512 * 512 + 512));
    // One medium of four tiles, all visible; 8 heads of K and V of 128, a word of bits.
    assert_eq!(bytes("attention/llama-3.2-11b-decode/k6404", DType::F32), 4 * (2 * 4096 + 2 * 6404 * 1024 + 1));
    // A decode step reads 64 keys of K and V of 512 each, however many media there are.
    let block = |n: usize| format!("gated_block/openflamingo-3b-decode/n{n}");
    let one = bytes(&block(1), DType::BF16);
    for n in [4, 16, 64] {
        assert_eq!(bytes(&block(n), DType::BF16), one, "{n} media");
    }
    let prefill = |n: usize| bytes(&format!("prefill/openflamingo-3b/l512-n{n}"), DType::BF16);
    let [one, four] = [1, 4].map(prefill);
    // Media 64 x 1024 each, projected to 64 x 1024, which are written and read.
    assert_eq!(four - one, 3 * 2 * (64 * 1024 + 2 * 64 * 1024));
}

/// Memory beyond weights, inputs and outputs, on two threads as `scripts/vs-torch` runs them: below
/// three times the largest activation.
#[test]
fn scratch_memory_is_a_few_activations() {
    let two = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let device = Device::cpu();
    for name in [
        "resampler/openflamingo/b1",
        "resampler/openflamingo/b8",
        "prefill/openflamingo-3b/l512-n4",
        "qformer/blip2/b1",
        "prefill/llama-3.2-11b/l256-k1601",
    ] {
        let (scratch, largest) = two.install(|| {
            let mut built = case(name).build(&device, DType::F32).unwrap();
            (built.runnable().workspace_bytes(), built.runnable().largest_tensor_bytes())
        });
        assert!(scratch < 3 * largest, "{name}: {scratch} bytes of scratch, {largest} of the largest activation");
        assert!(scratch > largest / 2, "{name}: {scratch} bytes of scratch are too few to be true");
    }
}

/// Small cases pass their own check; `tests/verify_rules.rs` plants errors that fail it.
#[test]
fn small_cases_pass_their_checks() {
    let device = Device::cpu();
    for name in [
        "attention/openflamingo-decode/b1-n4",
        "attention/blip2-itg/q32-t32",
        "attention/instructblip-self/q32-t128",
        "media_index/l2048-n32/b8",
        "norm/rms-heads/512x32x128",
        "gated_residual/512x2048",
        "qformer_head/itm/2",
    ] {
        for dtype in [DType::F32, DType::BF16] {
            let check = case(name).build(&device, dtype).unwrap().check().unwrap();
            assert!(check.failures.is_empty(), "{name} {dtype}: {check:?}");
        }
    }
}

/// Compared with the reference: small cases, 256 rows of large ones, reduced bridges.
#[test]
fn checks_say_how_much_was_compared() {
    let device = Device::cpu();
    for (name, dtype, [rows, checked_rows, values, checked_values]) in [
        ("attention/blip2-cross/k257", DType::F32, [32, 32, 32 * 768, 32 * 768]),
        ("attention/openflamingo/b8-l512-n8", DType::BF16, [4096, 256, 4096 * 512, 256 * 64]),
        ("linear/gelu/64x1024-4096", DType::BF16, [64, 64, 64 * 4096, 64 * 96]),
        ("linear/out-gated/512x512-2048", DType::F32, [512, 256, 512 * 2048, 256 * 96]),
        ("gated_residual/2048x4096", DType::F16, [2048, 256, 2048 * 4096, 256 * 4096]),
        ("qformer_head/itc/256", DType::F32, [32, 0, 32 * 256, 0]),
    ] {
        let check = case(name).build(&device, dtype).unwrap().check().unwrap();
        assert!(check.failures.is_empty(), "{name}: {check:?}");
        let found = [check.rows, check.checked_rows, check.values, check.checked_values];
        assert_eq!(found, [rows, checked_rows, values, checked_values], "{name}");
    }
}

#[test]
fn steps_add_up_and_name_their_products() {
    let device = Device::cpu();
    let mut built = case("gated_block/openflamingo-3b-decode/n4").build(&device, DType::BF16).unwrap();
    let steps = built.steps();
    let ops: Vec<_> = steps.iter().map(|s| (s.op, s.count, s.gemm.map(|p| [p.batch, p.rows, p.n, p.k]))).collect();
    let expected = [
        ("norm", 2, None),
        ("linear", 1, Some([1, 1, 512, 2048])),
        ("attention", 1, None),
        ("linear", 1, Some([1, 1, 2048, 512])),
        ("linear", 1, Some([1, 1, 8192, 2048])),
        ("linear", 1, Some([1, 1, 2048, 8192])),
    ];
    assert_eq!(ops, expected);
    let sum = |of: fn(&xattn::ops::Cost) -> u64| steps.iter().map(|s| s.count as u64 * of(&s.cost)).sum::<u64>();
    let cost = built.runnable().cost();
    assert_eq!((sum(|c| c.bytes), sum(|c| c.flops)), (cost.bytes, cost.flops));
    // A pair of matrices is one product of twice the columns, and all problems share it.
    let mut built = case("linear/swiglu/64x4096-14336").build(&device, DType::BF16).unwrap();
    let [step] = &built.steps()[..] else { panic!("one step") };
    let gemm = step.gemm.unwrap();
    assert_eq!([gemm.batch, gemm.rows, gemm.n, gemm.k], [1, 64, 2 * 14336, 4096]);
    assert_eq!(step.cost.flops, 2 * (gemm.rows * gemm.n * gemm.k) as u64);
}

/// The feed-forward network is two dependent GEMMs at full size.
#[test]
fn the_network_is_checked_product_by_product() {
    let mut built = case("ffn/openflamingo-9b/64").build(&Device::cpu(), DType::BF16).unwrap();
    let check = built.check().unwrap();
    assert!(check.failures.is_empty(), "{check:?}");
    assert_eq!((check.rows, check.checked_rows, check.values), (64, 64, 64 * 4096));
    // 96 columns of each of the 64 rows, in both products.
    assert_eq!(check.checked_values, 2 * 64 * 96);
    let cost = built.runnable().cost();
    let [narrow, wide, matrix] = [64 * 4096, 64 * 16384, 4096 * 16384];
    assert_eq!(cost.bytes, 2 * (narrow + matrix + wide) + 2 * (wide + matrix + 2 * narrow) + 4);
    assert_eq!(cost.flops, 4 * 64 * matrix);
}

/// 8 MB and 4 GFLOP in 2 ms, on a machine of 100 GB/s and 10 TFLOP/s.
#[test]
fn shares_are_those_of_the_roof_and_of_the_peak() {
    let mut cost = Cost::default();
    (cost.bytes, cost.flops) = (8_000_000, 4_000_000_000);
    let clock = ClockKind::Wall;
    let gemm_flops_per_s = Err("not measured".to_string());
    let row = Row {
        name: "op/of/numbers",
        timing: Timing { clock, milliseconds: Some([2.0, 1.5, 4.0]), submissions: 5, calls: 7, graph: None },
        cost,
        steps: Vec::new(),
        roof: Some(Roof { flops_per_s: Ok(1e13), bytes_per_s: Ok(1e11), gemm_flops_per_s }),
        visited: None,
        workspace: 0,
        largest: 0,
        check: Check::default(),
        seconds: [0.0; 3],
    };
    assert_eq!((row.gb_per_s(), row.gflop_per_s()), (Some(4.0), Some(2000.0)));
    // The operations take 0.4 ms at least, the bytes 0.08.
    assert_eq!(row.roof_share(), Some(0.2));
    assert_eq!((row.fp32_share(None), row.fp32_share(Some(4000.0))), (Some(0.2), Some(0.5)));
    let unknown = Row { roof: None, ..row };
    assert_eq!(
        (unknown.roof_share(), unknown.fp32_share(None), unknown.fp32_share(Some(8000.0))),
        (None, None, Some(0.25))
    );
    // An emulated device tells no time.
    let timeless = Row { timing: Timing { milliseconds: None, ..unknown.timing }, ..unknown };
    assert_eq!((timeless.gb_per_s(), timeless.gflop_per_s(), timeless.fp32_share(Some(1.0))), (None, None, None));
}

#[test]
fn a_report_holds_device_clock_and_every_number() {
    let mut session = Session::new(&Device::cpu(), DType::F32).unwrap().with_peak(250.0).unwrap();
    let line = session.run(&case("attention/openflamingo-decode/b1-n4"));
    assert!(line.starts_with("attention/openflamingo-decode/b1-n4 ") && line.contains(" 1 of 4 "), "{line}");
    let report = session.report();
    assert!(report.is_success());
    assert!(
        report.head().contains("\nwall clock; medians of up to 10 submissions\nFP32: share of 250 GFLOP/s, as given\n")
    );
    assert_eq!(report.foot(), "1 timed, 0 failed, 0 cannot run here");
    let json = report.json(Some("abc1234"));
    let device = &json["device"];
    assert_eq!(
        (&device["kind"], &device["adapter"], &device["software_adapter"]),
        (&json!("cpu"), &Value::Null, &json!(false))
    );
    assert_eq!(
        (&json["clock"], &json["clock_reason"], &json["warning"]),
        (&json!("wall clock"), &Value::Null, &Value::Null)
    );
    assert_eq!(json["fp32_peak"], json!({ "source": "given", "gflop_per_s": 250.0 }));
    assert_eq!((&json["version"], &json["commit"]), (&json!(env!("CARGO_PKG_VERSION")), &json!("abc1234")));
    assert!(json["date"].as_str().unwrap().starts_with("20"), "{}", json["date"]);
    assert_eq!((&json["failed"], &json["cannot_run"], &json["notes"]), (&json!([]), &json!([]), &json!([])));
    let row = &json["cases"][0];
    let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name} in {row}"));
    // q and out 512, K and V of 64 of 256 keys, φ of one row; the row sees 64 keys.
    assert_eq!(
        (number("bytes"), number("flops")),
        (4.0 * (2.0 * 512.0 + 2.0 * 64.0 * 512.0 + 1.0), 4.0 * 64.0 * 512.0)
    );
    assert_eq!((number("key_blocks_visited"), number("key_blocks"), number("calls_per_submission")), (1.0, 4.0, 1.0));
    assert!((3.0..=10.0).contains(&number("submissions")));
    let ms = number("ms");
    assert!(0.0 < number("ms_least") && number("ms_least") <= ms && ms <= number("ms_most"));
    assert_eq!((&row["backend"], &row["dtype"]), (&json!("cpu"), &json!("f32")));
    assert_eq!((number("median_us"), number("least_us")), (1e3 * ms, 1e3 * number("ms_least")));
    assert_eq!(number("largest_us"), 1e3 * number("ms_most"));
    // One row of 8 heads of 64.
    assert_eq!((number("rows"), number("checked_rows")), (1.0, 1.0));
    assert_eq!((number("values"), number("checked_values")), (512.0, 512.0));
    assert_eq!(number("gb_per_s"), number("bytes") / ms / 1e6);
    assert_eq!(number("fp32_share"), number("flops") / ms / 1e6 / 250.0);
    let least = (number("bytes") / number("roof_gb_per_s")).max(number("flops") / number("roof_gflop_per_s")) / 1e6;
    assert!((number("roof_share") * ms / least - 1.0).abs() < 1e-12);
}

#[test]
fn a_peak_is_a_positive_number() {
    for (peak, text) in [(0.0, "0"), (-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let session = Session::new(&Device::cpu(), DType::F32).unwrap();
        let error = session.with_peak(peak).err().unwrap().to_string();
        assert_eq!(error, format!("bench: peak: expected a positive number of GFLOP/s, got {text}"));
    }
}
