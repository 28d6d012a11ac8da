//! Cases of `xattn::bench` as criterion benches: checked, then timed, with throughput in bytes and
//! in operations (as elements).

use std::time::Duration;

use criterion::{Criterion, Throughput};
use xattn::bench::{About, cases, clock};
use xattn::{DType, Device, DeviceKind, Error};

/// The device that `XATTN_BENCH_DEVICE` names; the processor, if it names none.
fn device() -> Result<Device, Error> {
    let name = std::env::var("XATTN_BENCH_DEVICE").ok().filter(|name| !name.is_empty());
    match name.as_deref().unwrap_or("cpu").parse()? {
        DeviceKind::Reference => {
            Err(Error::argument("bench", "XATTN_BENCH_DEVICE", "a device that is timed", "reference"))
        }
        kind => Device::open(kind),
    }
}

/// Runs the cases whose name is chosen; `XATTN_BENCH_FULL=1` adds the largest shapes. On a GPU the
/// names begin with the kind of device, so that criterion compares like with like.
pub fn run(chosen: impl Fn(&str) -> bool) {
    let full = std::env::var_os("XATTN_BENCH_FULL").is_some();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let list = arguments.iter().any(|a| a == "--list");
    // Criterion's own filter comes too late: the throughput is known only once a case is built,
    // which takes time for the large ones.
    let plain = |text: &&String| {
        text.chars().all(|c| c.is_ascii_alphanumeric() || "-_/.".contains(c)) && !text.starts_with('-')
    };
    let filter = arguments.iter().find(plain).cloned().unwrap_or_default();
    let opened = device().and_then(|device| Ok((clock(&device)?, device)));
    let (mut clock, device) = opened.unwrap_or_else(|error| {
        eprintln!("error: nothing was timed: {error}");
        std::process::exit(1);
    });
    let prefix = match device.kind() {
        DeviceKind::Cpu => String::new(),
        kind => format!("{kind}/"),
    };
    if !list {
        let about = About::new(&device);
        let software = if about.is_software_adapter() { ", a software adapter" } else { "" };
        println!("{}{software}, by {}", about.info.name, clock.kind());
        if let Some(reason) = clock.reason() {
            println!("note: {reason}");
        }
    }
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let mut refused = Vec::new();
    for case in cases().iter().filter(|c| chosen(c.name) && (full || !c.full_only)) {
        if list {
            criterion.bench_function(&format!("{prefix}{}", case.name), |_| {});
            continue;
        }
        if !format!("{prefix}{}", case.name).contains(&filter) {
            continue;
        }
        let checked = case.build(&device, DType::F32).and_then(|mut built| Ok((built.check()?, built)));
        let mut built = match checked {
            Ok((check, built)) => {
                assert_eq!(check.failures, Vec::<String>::new(), "{} fails its check", case.name);
                built
            }
            Err(error) => {
                refused.push(format!("cannot run here: {}: {error}", case.name));
                continue;
            }
        };
        let call = built.runnable();
        let cost = call.cost();
        let (op, shape) = case.name.split_once('/').unwrap_or((case.name, ""));
        let mut group = criterion.benchmark_group(format!("{prefix}{op}"));
        group.throughput(Throughput::ElementsAndBytes { elements: cost.flops, bytes: cost.bytes });
        group.bench_function(shape, |bencher| {
            let mut total = |runs| clock.total(&mut |recorder| call.enqueue(recorder), runs);
            bencher.iter_custom(|runs| Duration::from_secs_f64(total(runs).expect("a run")))
        });
        group.finish();
    }
    criterion.final_summary();
    for line in refused {
        println!("{line}");
    }
}
