//! Benchmarks in captured graphs: what a record says, what a device without a clock leaves out,
//! what cannot run, and the command.

use std::process::Command;

use serde_json::{Value, json};
use xattn::bench::{Case, Session, cases};
use xattn::{CudaAttentionVariant, CudaOptions, DType};

use crate::support::{device, emulated, opened};

fn case(name: &str) -> Case {
    cases().into_iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no case {name}"))
}

const DECODE: &str = "attention/openflamingo-decode/b1-n4";

/// Every number without a clock; the others are present, or null on an emulated device.
#[test]
fn a_record_says_what_a_case_is_and_how_it_was_checked() {
    let Some(device) = device() else { return };
    let mut session = Session::new(&device, DType::BF16).unwrap().with_variant(Some("linear=128".into()));
    let lines = session.run(&case(DECODE));
    assert!(session.report().is_success(), "{lines}");
    let told = |value: &Value| if emulated() { value.is_null() } else { value.as_f64().is_some_and(|x| x > 0.0) };
    let report = session.report().json(Some("abc1234"));
    assert_eq!(
        (&report["commit"], &report["variant"], &report["dtype"]),
        (&json!("abc1234"), &json!("linear=128"), &json!("bf16"))
    );
    assert_eq!(report["device"], json!(device.info().name));
    let capability: Vec<u32> =
        report["compute_capability"].as_str().unwrap().split('.').map(|n| n.parse().unwrap()).collect();
    assert!(capability[0] >= 8 && capability.len() == 2, "{capability:?}");
    assert!(report["multiprocessors"].as_u64().unwrap() > 0 && report["l2_bytes"].as_u64().unwrap() > 0);
    let roofs = &report["roofs"];
    for (roof, reason) in
        [("copy_bytes_per_second", "copy_reason"), ("fp32_flops", "fp32_reason"), ("product_flops", "product_reason")]
    {
        if emulated() {
            assert_eq!((&roofs[roof], &roofs[reason]), (&Value::Null, &json!("the device tells no time")));
        } else {
            assert!(roofs[roof].as_f64().is_some_and(|x| x > 1e9) != roofs[reason].is_string(), "{roofs}");
        }
    }

    // q and out of 512 numbers, one φ, K and V of the 64 of 256 keys that the row sees.
    let (bytes, flops) = (2 * (2 * 512 + 2 * 64 * 512) + 4, 4 * 64 * 512);
    let records = report["cases"].as_array().unwrap();
    assert_eq!(records.len(), 2, "cold and warm: {lines}");
    for (record, cold) in records.iter().zip([true, false]) {
        assert_eq!((&record["case"], &record["backend"]), (&json!(DECODE), &json!("cuda")));
        assert_eq!((&record["cold"], &record["variant"]), (&json!(cold), &json!("linear=128")));
        assert_eq!((&record["bytes"], &record["flops"]), (&json!(bytes), &json!(flops)));
        let step = json!({
            "op": "attention", "label": "attention", "bytes": bytes, "flops": flops, "product": null, "count": 1,
        });
        assert_eq!(record["steps"], json!([step]));
        assert_eq!((&record["rows"], &record["checked_rows"]), (&json!(1), &json!(1)));
        assert_eq!((&record["values"], &record["checked_values"]), (&json!(512), &json!(512)));
        assert_eq!(record["floor_us"].as_f64(), Some(f64::from(bytes) / 4.3e12 * 1e6));
        assert_eq!((&record["bar_us"], &record["peers"]), (&Value::Null, &json!({})));
        for name in ["median_us", "least_us", "largest_us", "empty_us", "floor_here_us"] {
            assert!(told(&record[name]), "{name} of {record}");
        }
        let number = |name: &str| record[name].as_u64().unwrap();
        assert!(number("launches") * number("calls") >= 50, "{record}");
        // Twice the L2 cache, of which there are at most 256 copies.
        let l2 = report["l2_bytes"].as_u64().unwrap();
        let copies = if cold { (2 * l2).div_ceil(number("bytes")) + 1 } else { 1 };
        assert_eq!(number("copies"), copies.min(256));
        assert!(number("calls").is_multiple_of(number("copies")));
        for name in ["build", "check", "time"] {
            assert!(record["seconds"][name].as_f64().is_some_and(|s| s >= 0.0), "{record}");
        }
    }
    assert_eq!(session.report().foot(), "1 timed, 0 failed, 0 cannot run here");
}

/// A named kernel that does not serve a case refuses it, and the next one runs.
#[test]
fn what_a_named_kernel_does_not_serve_is_listed_and_the_rest_runs() {
    let mut options = CudaOptions::default();
    options.attention = Some(CudaAttentionVariant::Media);
    let Some(device) = opened(&options) else { return };
    let mut session = Session::new(&device, DType::F16).unwrap();
    let name = "attention/blip2-cross/k257";
    let line = session.run(&case(name));
    assert_eq!(line, format!("{name:<46} cannot run here: see the end"));
    session.run(&case("gated_residual/512x2048"));
    let foot = session.report().foot();
    let (reason, counts) = foot.split_once('\n').unwrap();
    assert!(reason.starts_with(&format!("cannot run here: {name}: attention: ")), "{reason}");
    assert_eq!(counts, "1 timed, 0 failed, 1 cannot run here");
    assert!(session.report().is_success(), "what cannot run is no failure");
    let report = session.report().json(None);
    let [refused, cold, warm] = report["cases"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!((&refused["case"], &refused["dtype"]), (&json!(name), &json!("f16")));
    assert!(reason.ends_with(refused["refused"].as_str().unwrap()), "{refused}");
    for record in [cold, warm] {
        assert_eq!((&record["rows"], &record["checked_rows"]), (&json!(512), &json!(512)));
        assert_eq!((&record["launches"], &record["bytes"]), (&json!(1), &json!(2 * 3 * 512 * 2048 + 4)));
    }
}

/// A bridge's record counts its ops, and says that no row was compared at full size.
#[test]
fn a_bridge_is_the_sum_of_its_steps() {
    let Some(device) = device() else { return };
    let mut session = Session::new(&device, DType::F16).unwrap();
    session.run(&case("qformer_head/itc/256"));
    let report = session.report().json(None);
    let record = &report["cases"][0];
    let steps = record["steps"].as_array().unwrap();
    assert_eq!(steps[0]["product"], json!({ "rows": 32, "n": 256, "k": 768, "batch": 1 }));
    let sum = |name: &str| steps.iter().map(|s| s[name].as_u64().unwrap() * s["count"].as_u64().unwrap()).sum::<u64>();
    assert_eq!((json!(sum("bytes")), json!(sum("flops"))), (record["bytes"].clone(), record["flops"].clone()));
    let least: f64 = steps.iter().map(|s| s["bytes"].as_f64().unwrap() / 4.3e6).sum();
    assert!((record["floor_us"].as_f64().unwrap() / least - 1.0).abs() < 1e-12, "{record}");
    assert_eq!(
        (&record["rows"], &record["checked_rows"], &record["checked_values"]),
        (&json!(32), &json!(0), &json!(0))
    );
    assert_eq!(record["values"], json!(32 * 256));
}

/// Several names in one process; a name that is none fails it, and the file is there all the same.
#[test]
fn the_command_times_what_it_is_given_and_writes_the_file() {
    if device().is_none() {
        return;
    }
    let Some(xattn) = option_env!("CARGO_BIN_EXE_xattn") else {
        return eprintln!("skipped: the command is not built without the feature `cli`");
    };
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-graph.json");
    let names = "gated_residual/512x2048,no-such-case,media_index/l2048-n32/b8";
    let mut command = Command::new(xattn);
    command.args(["bench", "--device", "cuda", "--dtype", "f32", "--filter", names, "--json"]).arg(&path);
    let output = command.env("XATTN_CUDA_LINEAR", "64").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let note = "note: no case has \"no-such-case\" in its name; --list names them";
    assert!(text.lines().any(|line| line == note), "{text}");
    assert_eq!(text.lines().last(), Some("2 timed, 0 failed, 0 cannot run here"));
    assert_eq!(output.status.code(), Some(1), "{text}");
    let report: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let named: Vec<_> = report["cases"].as_array().unwrap().iter().map(|r| (&r["case"], &r["cold"])).collect();
    let [gated, media] = [json!("gated_residual/512x2048"), json!("media_index/l2048-n32/b8")];
    assert_eq!(
        named,
        [(&gated, &json!(true)), (&gated, &json!(false)), (&media, &json!(true)), (&media, &json!(false))]
    );
    assert_eq!((&report["variant"], &report["dtype"]), (&json!("linear=64"), &json!("f32")));
}
