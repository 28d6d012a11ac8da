//! `xattn bench --graph`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use xattn::profile::{Case, GraphTiming, target};
use xattn::{DType, Device, Error};

use super::bench::commit;

/// Checks and times cases, cold and warm; the file is written anew after each.
pub fn run(chosen: &[&Case], device: &Device, dtype: DType, json: Option<&Path>) -> Result<ExitCode, Error> {
    let info = device.info();
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{} ({}), {dtype}; microseconds per call in a graph", info.name, info.details);
    let columns = ["median", "least", "largest", "empty", "floor", "bar"];
    let _ = write!(out, "{:<46} {:<4} {:>8}", "case", "L2", "launches");
    let _ = writeln!(out, "{}", columns.map(|name| format!(" {name:>9}")).concat());
    let (mut records, mut failures) = (Vec::new(), 0);
    for case in chosen {
        let failed = case.build(device, dtype)?.check()?.failures;
        if !failed.is_empty() {
            failures += 1;
            let _ = writeln!(out, "{:<46} FAILED its check: {}", case.name, failed.join("; "));
            records.push(json!({ "case": case.name, "dtype": dtype.name(), "backend": "cuda", "failed": failed }));
        } else {
            for cold in [true, false] {
                let timing = case.time_in_graph(device, dtype, cold)?;
                let _ = writeln!(out, "{}", line(case.name, dtype, &timing));
                records.push(record(case.name, dtype, &timing));
            }
        }
        if let Some(path) = json {
            let report = json!({
                "device": info.name, "details": info.details, "commit": commit(),
                "unix_seconds": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
                "cases": records,
            });
            std::fs::write(path, format!("{report:#}\n")).map_err(|e| Error::file(path, e))?;
        }
    }
    let _ = writeln!(out, "{} timed, {failures} failed", chosen.len() - failures);
    Ok(if failures == 0 && !chosen.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is asked of a case: in bf16, from memory.
fn asked(name: &str, meant: bool) -> [Option<f64>; 2] {
    let target = target(name).filter(|_| meant);
    [target.map(|t| t.floor_us), target.map(|t| t.bar_us)]
}

fn line(name: &str, dtype: DType, timing: &GraphTiming) -> String {
    let [median, least, largest] = match timing.microseconds {
        Some(times) => times.map(Some),
        None => [None; 3],
    };
    let [floor, bar] = asked(name, timing.cold && dtype == DType::BF16);
    let l2 = if timing.cold { "cold" } else { "warm" };
    let numbers = [median, least, largest, timing.empty, floor, bar]
        .map(|number| number.map_or(format!(" {:>9}", "-"), |number| format!(" {number:>9.2}")));
    format!("{name:<46} {l2:<4} {:>8}{}", timing.launches, numbers.concat())
}

fn record(name: &str, dtype: DType, timing: &GraphTiming) -> Value {
    let [floor, bar] = asked(name, timing.cold && dtype == DType::BF16);
    json!({
        "case": name, "backend": "cuda", "dtype": dtype.name(), "cold": timing.cold,
        "median_us": timing.microseconds.map(|t| t[0]), "least_us": timing.microseconds.map(|t| t[1]),
        "largest_us": timing.microseconds.map(|t| t[2]), "empty_us": timing.empty, "floor_us": floor, "bar_us": bar,
        "launches": timing.launches, "calls": timing.calls, "copies": timing.copies,
        "bytes": timing.cost.bytes, "flops": timing.cost.flops, "peers": {},
    })
}
