//! `xattn bench`.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::{Args, ValueEnum};
use serde_json::json;
use xattn::profile::{Case, Session, cases};
use xattn::{DType, Device, DeviceKind, Error};

/// Time named cases with published shapes. Each is checked before it is timed.
///
/// GB/s and GFLOP/s count every operand once and two operations per multiply-add (attention under φ: of the visible medium only; under bit masks: as if every key were visible).
/// The share of the roof is the least time that the device needs for those bytes from memory or operations, over the time taken; the device
/// is measured before every case, since its clock changes. It can exceed 1 where operands stay in caches. The share of the FP32 peak
/// counts operations alone, over the measured peak or that of --peak-gflops.
/// GPUs are timed by timestamps of their own around many calls in one submission, where they have them; the head of the table says so.
/// Visited key blocks are 64 keys by 64 rows, of one head, and how many there would be without the rule.
#[derive(Args)]
#[command(after_help = "\
Examples:
  xattn bench                                    the default selection, a few minutes on two cores
  xattn bench --filter openflamingo              cases whose name contains a text
  xattn bench --full --json bench.json           the largest shapes too
  xattn bench --device wgpu --peak-gflops 19500  a GPU, with the FP32 peak of its data sheet
  xattn bench --list                             names only

Exit status: 0 something was timed and no check failed, 1 a check failed or nothing ran, 2 wrong usage.
Cases that the device cannot run (limits, memory) are listed at the end with the reason, and are no failure.")]
pub struct Bench {
    /// Where to run; XATTN_WGPU_ADAPTER picks a GPU by a part of its name
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
    /// The device's FP32 peak by its data sheet, in GFLOP/s [default: measured]
    #[arg(long, value_name = "N", value_parser = peak, allow_negative_numbers = true)]
    peak_gflops: Option<f64>,
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

/// A positive number of GFLOP/s.
fn peak(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(peak) if f64::is_finite(peak) && peak > 0.0 => Ok(peak),
        _ => Err("expected a positive number of GFLOP/s, for example 19500".into()),
    }
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
        let mut session = Session::new(&device, dtype, self.peak_gflops)?;
        let _ = writeln!(out, "{}", session.report().head());
        for (i, case) in chosen.iter().enumerate() {
            progress(&format!("{} of {}: {}", i + 1, chosen.len(), case.name));
            let line = session.run(case);
            progress("");
            let _ = writeln!(out, "{line}");
        }
        if left_out > 0 {
            let _ = writeln!(out, "note: {left_out} large cases left out; --full runs them, --list names them");
        }
        if chosen.is_empty() {
            let _ = writeln!(out, "note: no case has {filter:?} in its name; --list names them");
        }
        let report = session.report();
        let _ = writeln!(out, "{}", report.foot());
        if let Some(path) = &self.json {
            let text = format!("{:#}\n", report.json(commit().as_deref()));
            std::fs::write(path, text).map_err(|e| Error::file(path, e))?;
        }
        Ok(if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
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
