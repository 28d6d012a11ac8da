//! Benchmarks on wgpu: the device's clock, its roof, and cases that it cannot run.

use std::time::Instant;

use serde_json::json;
use xattn::bench::{About, Case, ClockKind, Session, cases, clock};
use xattn::wgpu::{self, Features, Limits};
use xattn::{DType, Device, WgpuOptions};

use crate::support::device;

fn case(name: &str) -> Case {
    cases().into_iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no case {name}"))
}

/// A device of an engine's, which has not asked for timestamps.
fn without_timestamps() -> Option<Device> {
    device(&WgpuOptions::default())?;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).unwrap();
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap();
    Some(Device::from_wgpu(device, queue, &WgpuOptions::default()).unwrap())
}

/// The host's interval contains the work; sixteen times the work takes longer.
#[test]
fn timestamps_count_the_work_and_nothing_else() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let mut clock = clock(&device).unwrap();
    let has = device.as_wgpu().unwrap().0.features().contains(Features::TIMESTAMP_QUERY);
    let expected = if has { (ClockKind::GpuTimestamps, None) } else { (ClockKind::Wall, Some(MISSING)) };
    assert_eq!((clock.kind(), clock.reason()), expected);
    let mut built = case("norm/layer/512x2048").build(&device, DType::F32).unwrap();
    let call = built.runnable();
    call.run().unwrap();
    let mut fastest = |runs| {
        let once = |_| {
            let start = Instant::now();
            let seconds = clock.total(&mut |recorder| call.enqueue(recorder), runs).unwrap();
            let wall = start.elapsed().as_secs_f64();
            assert!(0.0 < seconds && seconds <= wall, "{runs} runs: {seconds} s of {wall} s");
            seconds
        };
        (0..3).map(once).fold(f64::INFINITY, f64::min)
    };
    let (one, sixteen) = (fastest(1), fastest(16));
    assert!(sixteen > one, "16 runs took {sixteen} s, one {one} s");
    assert_eq!(clock.kind(), expected.0, "the clock advanced");
    assert_eq!(clock.total(&mut |_| unreachable!("no run"), 0).unwrap(), 0.0);
}

const MISSING: &str = "timestamps: TIMESTAMP_QUERY is not supported by wgpu; available: the wall clock";

#[test]
fn without_timestamps_the_wall_clock_runs_and_says_why() {
    let Some(device) = without_timestamps() else { return };
    let mut session = Session::new(&device, DType::F32).unwrap();
    session.run(&case("norm/rms-heads/512x32x128"));
    let report = session.report();
    assert!(report.head().contains(&format!("\nwall clock ({MISSING}); ")), "{}", report.head());
    let json = report.json(None);
    assert_eq!((&json["clock"], &json["clock_reason"]), (&json!("wall clock"), &json!(MISSING)));
    let row = report.rows().next().unwrap();
    assert_eq!((row.timing.clock, row.name), (ClockKind::Wall, "norm/rms-heads/512x32x128"));
    assert!(row.timing.milliseconds.unwrap()[1] > 0.0 && row.timing.calls >= 1);
}

/// A small device times what fits and lists the rest, with the reason, in text and JSON.
#[test]
fn what_the_device_cannot_run_is_listed_with_the_reason() {
    let limits = Limits { max_storage_buffer_binding_size: 1 << 20, ..Limits::default() };
    let mut options = WgpuOptions::default();
    options.limits = Some(limits);
    let Some(device) = device(&options) else { return };
    let mut session = Session::new(&device, DType::F32).unwrap();
    assert_eq!(
        session.run(&case("norm/layer/512x2048")),
        format!("{:<46} cannot run here: see the end", "norm/layer/512x2048")
    );
    let line = session.run(&case("attention/blip2-itg/q32-t32"));
    assert!(line.starts_with("attention/blip2-itg/q32-t32 ") && !line.contains("FAILED"), "{line}");
    let report = session.report();
    let reason = "norm: x of 4194304 bytes is not supported by wgpu; \
                  available: at most 1048320 bytes (max_storage_buffer_binding_size 1048576)";
    let foot = report.foot();
    assert_eq!(foot.lines().next(), Some(format!("cannot run here: norm/layer/512x2048: {reason}").as_str()));
    assert_eq!(foot.lines().last(), Some("1 timed, 0 failed, 1 cannot run here"));
    let json = report.json(None);
    assert_eq!(json["cannot_run"], json!([{ "case": "norm/layer/512x2048", "reason": reason }]));
    assert_eq!(json["cases"][0]["case"], json!("attention/blip2-itg/q32-t32"));
    assert!(report.is_success(), "what cannot run is no failure");
}

#[test]
fn after_a_lost_device_nothing_runs() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let mut session = Session::new(&device, DType::F32).unwrap();
    device.as_wgpu().unwrap().0.destroy();
    let line = session.run(&case("norm/layer/512x2048"));
    assert!(line.contains(" FAILED: ") && line.contains("wgpu: device lost in "), "{line}");
    session.run(&case("gated_residual/512x2048"));
    let report = session.report();
    let refused: Vec<_> = report.refused().collect();
    assert_eq!(refused, [("gated_residual/512x2048", "the device was lost before")]);
    assert!(!report.is_success());
}

/// Adapter, driver, tier and whether it is hardware, as wgpu says it; a software adapter is called
/// one wherever numbers are shown.
#[test]
fn a_report_says_which_adapter_it_is_and_whether_it_is_hardware() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let (gpu, _, tier) = device.as_wgpu().unwrap();
    let info = gpu.adapter_info();
    let software = info.device_type == wgpu::DeviceType::Cpu;
    assert_eq!(About::new(&device).is_software_adapter(), software);
    let session = Session::new(&device, DType::BF16).unwrap();
    let json = session.report().json(None);
    let about = &json["device"];
    assert_eq!((&about["kind"], &about["software_adapter"]), (&json!("wgpu"), &json!(software)));
    let expected = json!({
        "name": info.name, "driver": info.driver, "driver_info": info.driver_info, "api": info.backend.to_string(),
        "type": format!("{:?}", info.device_type), "tier": tier.name(),
    });
    assert_eq!(about["adapter"], expected);
    let label = "software adapter: these numbers say nothing about graphics hardware";
    assert_eq!(session.report().head().lines().any(|line| line == label), software);
    assert_eq!(session.report().foot().contains(label), software);
    assert_eq!(json["warning"], if software { json!(label) } else { json!(null) });
    assert_eq!((&json["dtype"], &json["commit"]), (&json!("bf16"), &json!(null)));
}

/// The multiply-adds and the copy were done (`Clock::roof` checks their results); the numbers are
/// those of some machine.
#[test]
fn the_roof_is_measured() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let roof = clock(&device).unwrap().roof(DType::F32).unwrap();
    // Between a slow emulator and a hundred times the fastest GPU there is.
    assert!((1e7..1e16).contains(roof.flops_per_s.as_ref().unwrap()), "{roof:?}");
    assert!((1e7..1e15).contains(roof.bytes_per_s.as_ref().unwrap()), "{roof:?}");
}
