//! Cases of `xattn::profile` as criterion benches: checked, then timed, with throughput in bytes and in operations (as elements).

use std::time::Duration;

use criterion::{Criterion, Throughput};
use xattn::profile::cases;
use xattn::{DType, Device};

/// Runs the cases whose name is chosen; `XATTN_BENCH_FULL=1` adds the largest shapes.
pub fn run(chosen: impl Fn(&str) -> bool) {
    let full = std::env::var_os("XATTN_BENCH_FULL").is_some();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let list = arguments.iter().any(|a| a == "--list");
    // Criterion's own filter comes too late: the throughput is known only once a case is built, which takes time for the large ones.
    let plain = |text: &&String| {
        text.chars().all(|c| c.is_ascii_alphanumeric() || "-_/.".contains(c)) && !text.starts_with('-')
    };
    let filter = arguments.iter().find(plain).cloned().unwrap_or_default();
    let device = Device::cpu();
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for case in cases().iter().filter(|c| chosen(c.name) && (full || !c.full_only)) {
        if list {
            criterion.bench_function(case.name, |_| {});
            continue;
        }
        if !case.name.contains(&filter) {
            continue;
        }
        let mut built = case.build(&device, DType::F32).expect("a case that fits this machine");
        assert_eq!(built.check().expect("a run"), Vec::<String>::new(), "{} fails its check", case.name);
        let call = built.runnable();
        let cost = call.cost();
        let (op, shape) = case.name.split_once('/').unwrap_or((case.name, ""));
        let mut group = criterion.benchmark_group(op);
        group.throughput(Throughput::ElementsAndBytes { elements: cost.flops, bytes: cost.bytes });
        group.bench_function(shape, |bencher| bencher.iter(|| call.run().expect("a run")));
        group.finish();
    }
    criterion.final_summary();
}
