//! `xattn bench`.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use xattn::profile::{Case, Roof, cases};
use xattn::{DType, Device, DeviceKind, Error};

/// Time named cases with published shapes. Each is checked before it is timed.
///
/// GB/s and GFLOP/s count every operand once and two operations per multiply-add (attention under φ: of the visible medium only; under bit masks: as if every key were visible).
/// The share of the roof is the least time that the machine needs for those bytes from memory or operations, over the time taken; the machine
/// is measured before every case, since its clock changes. It can exceed 1 where operands stay in caches. CPU only.
/// Visited key blocks are 64 keys by 64 rows, of one head, and how many there would be without the rule.
#[derive(Args)]
#[command(after_help = "\
Examples:
  xattn bench                                    the default selection, a few minutes on two cores
  xattn bench --filter openflamingo              cases whose name contains a text
  xattn bench --full --json bench.json           the largest shapes too
  xattn bench --list                             names only

Exit status: 0 all timed, 1 a check failed or nothing ran, 2 wrong usage.")]
pub struct Bench {
    /// Where to run
    #[arg(long, value_enum, default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
    /// Element type of activations and matrices
    #[arg(long, value_enum, default_value_t = DTypeChoice::F32)]
    dtype: DTypeChoice,
    /// Only cases whose name contains this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// The largest shapes besides: gigabytes of weights
    #[arg(long)]
    full: bool,
    /// In a captured CUDA graph of at least 50 launches, by the device's clock: median of 20 replays, operands from memory and from the L2 cache
    #[arg(long)]
    graph: bool,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Write every result to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print the names and stop
    #[arg(long)]
    list: bool,
    /// Run the one case once per line of standard input and answer with milliseconds (scripts/vs-torch)
    #[arg(long, hide = true, requires = "filter")]
    turns: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceChoice {
    Cpu,
    Wgpu,
    Cuda,
}

#[derive(Clone, Copy, ValueEnum)]
enum DTypeChoice {
    F32,
    F16,
    Bf16,
}

/// How long a case is repeated, and how often at most.
const BUDGET: Duration = Duration::from_millis(500);
const MOST_RUNS: usize = 10;

struct Row {
    name: &'static str,
    milliseconds: f64,
    runs: usize,
    bytes: u64,
    flops: u64,
    roof: Option<Roof>,
    visited: Option<(usize, usize)>,
    workspace: usize,
    largest: usize,
}

impl Bench {
    /// Runs, prints a line per case.
    pub fn run(&self) -> Result<ExitCode, Error> {
        if let Some(threads) = self.threads {
            let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
            built.map_err(|e| Error::argument("bench", "threads", "a pool that can be built", e))?;
        }
        let filter = self.filter.as_deref().unwrap_or("");
        let all = cases();
        // A case that is named in full is meant alone, however large.
        let exact = all.iter().any(|c| c.name == filter);
        let meant = |c: &Case| if exact { c.name == filter } else { c.name.contains(filter) };
        let named: Vec<Case> = all.into_iter().filter(meant).collect();
        let chosen: Vec<&Case> = named.iter().filter(|c| self.full || !c.full_only || exact).collect();
        let left_out = named.len() - chosen.len();
        let mut out = std::io::stdout().lock();
        if self.list {
            for case in &named {
                let note = if case.full_only { "  (--full)" } else { "" };
                let _ = writeln!(out, "{}{note}", case.name);
            }
            return Ok(ExitCode::SUCCESS);
        }
        let device = Device::open(match self.device {
            DeviceChoice::Cpu => DeviceKind::Cpu,
            DeviceChoice::Wgpu => DeviceKind::Wgpu,
            DeviceChoice::Cuda => DeviceKind::Cuda,
        })?;
        let info = device.info();
        // In a graph the device's own clock counts, and an emulated device has none: cases run, and no time is told.
        if info.is_emulated() && !self.graph {
            // Neither printed nor handed to another process: such a number would only be mistaken for one.
            return Err(Error::argument(
                "bench",
                "device",
                "hardware, since an emulator's times mean nothing",
                info.name,
            ));
        }
        let dtype = match self.dtype {
            DTypeChoice::F32 => DType::F32,
            DTypeChoice::F16 => DType::F16,
            DTypeChoice::Bf16 => DType::BF16,
        };
        if self.turns {
            return turns(&chosen, &device, dtype);
        }
        #[cfg(feature = "cuda")]
        if self.graph {
            return super::bench_graph::run(&chosen, &device, dtype, self.json.as_deref());
        }
        if self.graph {
            return Err(Error::argument("bench", "graph", "a build with the feature `cuda`", "one without"));
        }
        let _ = writeln!(out, "{} ({}), {dtype}; medians of up to {MOST_RUNS} runs", info.name, info.details);
        let _ = writeln!(
            out,
            "{:<46} {:>10} {:>8} {:>9} {:>6} {:>15} {:>9}",
            "case", "ms", "GB/s", "GFLOP/s", "roof", "key blocks", "scratch"
        );
        let (mut rows, mut failures) = (Vec::new(), 0);
        for (i, case) in chosen.iter().enumerate() {
            progress(&format!("{} of {}: {}", i + 1, chosen.len(), case.name));
            let timed = time(case, &device, dtype);
            progress("");
            match timed? {
                Ok(row) => {
                    let _ = writeln!(out, "{}", row.line());
                    rows.push(row);
                }
                Err(failed) => {
                    failures += 1;
                    let _ = writeln!(out, "{:<46} FAILED its check: {}", case.name, failed.join("; "));
                }
            }
        }
        if left_out > 0 {
            let _ = writeln!(out, "note: {left_out} large cases left out; --full runs them, --list names them");
        }
        if chosen.is_empty() {
            let _ = writeln!(out, "note: no case has {filter:?} in its name; --list names them");
        }
        let _ = writeln!(out, "{} timed, {failures} failed", rows.len());
        if let Some(path) = &self.json {
            let report = json!({
                "device": info.name, "details": info.details, "kind": info.kind.name(), "dtype": dtype.name(),
                "unix_seconds": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
                "commit": commit(), "cases": rows.iter().map(Row::json).collect::<Vec<_>>(),
            });
            std::fs::write(path, format!("{report:#}\n")).map_err(|e| Error::file(path, e))?;
        }
        Ok(if failures == 0 && !rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Row {
    /// The least time over the time taken.
    fn share(&self) -> Option<f64> {
        self.roof.map(|roof| roof.seconds(self.bytes, self.flops) * 1e3 / self.milliseconds)
    }

    fn line(&self) -> String {
        let per_second = |n: u64| n as f64 / self.milliseconds / 1e6;
        let visited = self.visited.map_or("-".into(), |(visited, total)| format!("{visited} of {total}"));
        let share = self.share().map_or("-".into(), |share| format!("{share:.2}"));
        format!(
            "{:<46} {:>10.3} {:>8.2} {:>9.2} {share:>6} {visited:>15} {:>7.1} M",
            self.name,
            self.milliseconds,
            per_second(self.bytes),
            per_second(self.flops),
            self.workspace as f64 / f64::from(1 << 20)
        )
    }

    fn json(&self) -> Value {
        json!({
            "case": self.name, "ms": self.milliseconds, "runs": self.runs, "bytes": self.bytes, "flops": self.flops,
            "gb_per_s": self.bytes as f64 / self.milliseconds / 1e6,
            "gflop_per_s": self.flops as f64 / self.milliseconds / 1e6,
            "roof_share": self.share(), "roof_gflop_per_s": self.roof.map(|r| r.flops_per_s / 1e9),
            "roof_gb_per_s": self.roof.map(|r| r.bytes_per_s / 1e9),
            "key_blocks_visited": self.visited.map(|v| v.0), "key_blocks": self.visited.map(|v| v.1),
            "scratch_bytes": self.workspace, "largest_activation_bytes": self.largest,
        })
    }
}

/// The row of a case, or why its check failed.
fn time(case: &Case, device: &Device, dtype: DType) -> Result<Result<Row, Vec<String>>, Error> {
    let mut built = case.build(device, dtype)?;
    let failures = built.check()?;
    if !failures.is_empty() {
        return Ok(Err(failures));
    }
    let roof = (device.kind() == DeviceKind::Cpu).then(Roof::of_cpu);
    let call = built.runnable();
    let mut times = Vec::new();
    let began = Instant::now();
    while times.len() < 3 || (times.len() < MOST_RUNS && began.elapsed() < BUDGET) {
        let start = Instant::now();
        call.run()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_unstable_by(f64::total_cmp);
    let cost = call.cost();
    Ok(Ok(Row {
        name: case.name,
        milliseconds: times[times.len() / 2],
        runs: times.len(),
        bytes: cost.bytes,
        flops: cost.flops,
        roof,
        visited: case.visited().map(|v| (v.visited, v.total)),
        workspace: call.workspace_bytes(),
        largest: call.largest_tensor_bytes(),
    }))
}

/// One run per line of input, so that another process can take turns with this one.
fn turns(chosen: &[&Case], device: &Device, dtype: DType) -> Result<ExitCode, Error> {
    let [case] = chosen else {
        return Err(Error::argument("bench", "turns", "a filter that names one case", chosen.len()));
    };
    let mut built = case.build(device, dtype)?;
    let call = built.runnable();
    let mut out = std::io::stdout().lock();
    let memory =
        json!({ "scratch_bytes": call.workspace_bytes(), "largest_activation_bytes": call.largest_tensor_bytes() });
    let mut answer = |text: String| writeln!(out, "{text}").and_then(|()| out.flush());
    let mut open = answer(memory.to_string()).is_ok();
    for line in std::io::stdin().lock().lines() {
        if !open || line.is_err() {
            break;
        }
        let start = Instant::now();
        call.run()?;
        open = answer(format!("{}", start.elapsed().as_secs_f64() * 1e3)).is_ok();
    }
    Ok(ExitCode::SUCCESS)
}

/// The commit of the checkout it runs in, if there is one.
pub(super) fn commit() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_string())
}

/// One line on the terminal, overwritten by the next.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
    }
}
