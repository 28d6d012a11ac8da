//! `xattn bench`.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use xattn::bench::{Case, Session, cases};
use xattn::{DType, Device, DeviceKind, Error};

use crate::choices;
use crate::output::Output;
use crate::print::{Printer, progress, say};

/// Time named cases with published shapes. Each is checked before it is timed.
///
/// GB/s and GFLOP/s count every operand once, but K and V that no row sees, and two operations per
/// multiply-add (attention under φ: of the visible medium only; under bit masks: as if every key
/// were visible). The share of the roof is the least time that the device needs for those bytes
/// from memory or operations, over the time taken; the device is measured before every case, since
/// its clock changes. It can exceed 1 where operands stay in caches. The share of the FP32 peak
/// counts operations alone, over the measured peak or that of --peak-gflops. wgpu devices are timed
/// by timestamps of their own around many calls in one submission, where they have them; the head
/// of the table says so. Visited key blocks are 64 keys by 64 rows, of one head, and how many there
/// would be without the rule.
///
/// Checks: every output holds NaN before the first run; every number must be written, be finite,
/// and come out of a second run with the same bits. Ops are compared with the reference on all
/// rows, or on up to 256 rows spread over a large case; bridges in a reduced form.
///
/// CUDA devices are timed by their own clock in a captured graph of at least 50 launches: the
/// median of 20 replays, operands from memory (cold) and from the L2 cache (warm; cases whose
/// operands do not fit have no such row). The floor is the least time for the bytes at 4.3 TB/s or
/// the operations at 790 TFLOP/s (f32: 67), summed over the steps of a case; `here` is the same by
/// this device's own roofs, which are measured once; `checked` says how many rows of all were
/// compared with the reference. The file has the steps of each case with the sizes of their
/// products, and what XATTN_CUDA_ATTENTION, XATTN_CUDA_LINEAR and XATTN_CUDA_CUBLASLT named.
#[derive(Args)]
#[command(after_help = "\
Examples:
  xattn bench                                    the default selection, a few minutes on two cores
  xattn bench --filter openflamingo              cases whose name contains a text
  xattn bench --filter norm,media_index          several texts or names, in this order
  xattn bench --full --json bench.json           the largest shapes too
  xattn bench --device wgpu --peak-gflops 19500  a GPU, with the FP32 peak of its data sheet
  xattn bench --device cuda --dtype bf16 --filter attention/openflamingo/b8-l2048-n8 --json graph.json
  xattn bench --list                             names only
  xattn bench --list --json                      shapes, floors and goals

Exit status: 0 something was timed and no check failed, 1 a check failed, nothing ran or a filter names no case, 2 wrong usage.
Cases that the device cannot run (limits, memory, a named kernel that does not serve them) are listed with the reason, and are no failure.
The file is written anew after each case, a device or named pipe once at the end. A reader that closes the pipe ends the run behind its case.")]
pub struct Bench {
    /// Where to run; XATTN_WGPU_ADAPTER picks a GPU by a part of its name
    #[arg(long, default_value = "cpu", value_parser = choices::device(&[DeviceKind::Cpu, DeviceKind::Wgpu, DeviceKind::Cuda]))]
    device: DeviceKind,
    /// Element type of activations and matrices
    #[arg(long, default_value = "f32", value_parser = choices::dtype(&[DType::F32, DType::F16, DType::BF16]))]
    dtype: DType,
    /// Only cases whose name contains this text; the one case, however large, whose name it is.
    /// Several: with commas, or again
    #[arg(long, value_name = "TEXT", value_delimiter = ',')]
    filter: Vec<String>,
    /// The largest shapes besides: gigabytes of weights
    #[arg(long)]
    full: bool,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// The device's FP32 peak by its data sheet, in GFLOP/s; not with --device cuda [default:
    /// measured]
    #[arg(long, value_name = "N", value_parser = peak, allow_negative_numbers = true)]
    peak_gflops: Option<f64>,
    /// Write every result to this file, and the commit that this program was built from; with
    /// --list, the cases, to standard output without FILE
    #[arg(long, value_name = "FILE")]
    json: Option<Option<PathBuf>>,
    /// Print the names and stop; with --json the shape of each case, and its floor and goal on an
    /// H200
    #[arg(long, conflicts_with = "turns")]
    list: bool,
    /// Run the one case once per line of standard input and answer with milliseconds
    /// (scripts/vs-torch)
    #[arg(long, hide = true, requires = "filter", conflicts_with = "json")]
    turns: bool,
}

/// A positive number of GFLOP/s.
fn peak(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(peak) if f64::is_finite(peak) && peak > 0.0 => Ok(peak),
        _ => Err("expected a positive number of GFLOP/s, for example 19500".into()),
    }
}

impl Bench {
    /// Runs, prints a line per case.
    pub fn run(&self) -> Result<ExitCode, Error> {
        if let Some(threads) = self.threads {
            let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
            built.map_err(|e| Error::argument("bench", "threads", "a pool that can be built", e))?;
        }
        if self.peak_gflops.is_some() && self.device == DeviceKind::Cuda {
            say("error: --peak-gflops is not for --device cuda, whose table has no share of the FP32 peak");
            return Ok(ExitCode::from(2));
        }
        let Selection { named, chosen, left_out, unknown } = select(cases(), &self.filter, self.full);
        let chosen: Vec<&Case> = chosen.into_iter().map(|i| &named[i]).collect();
        let mut out = Printer::new();
        if matches!(self.json, Some(None)) && !self.list {
            say("error: --json needs the name of a file; only with --list standard output takes its place");
            return Ok(ExitCode::from(2));
        }
        let file = || self.json.as_ref().and_then(Option::as_deref).map(Output::new).transpose();
        if self.list {
            if self.json.is_some() {
                let all = json!({ "version": env!("CARGO_PKG_VERSION"), "commit": COMMIT,
                                  "cases": named.iter().map(Case::json).collect::<Vec<_>>() });
                match file()? {
                    Some(file) => put(Some(&file), &all)?,
                    None => out.line(format!("{all:#}"))?,
                }
                return Ok(ExitCode::SUCCESS);
            }
            for case in &named {
                let note = if case.full_only { "  (--full)" } else { "" };
                out.line(format!("{}{note}", case.name))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        if chosen.is_empty() {
            // Nothing is written: an earlier result stays.
            tell(&mut out, left_out, &unknown)?;
            return Ok(ExitCode::FAILURE);
        }
        let json = file()?;
        let device = Device::open(self.device)?;
        if self.turns {
            return turns(&chosen, &device, self.dtype);
        }
        let mut session = Session::new(&device, self.dtype)?.with_variant(variant(|name| std::env::var(name).ok()));
        if let Some(peak) = self.peak_gflops {
            session = session.with_peak(peak)?;
        }
        out.line(session.report().head())?;
        for (i, case) in chosen.iter().enumerate() {
            progress(format!("{} of {}: {}", i + 1, chosen.len(), case.name));
            let line = session.run(case);
            progress("");
            out.line(line)?;
            put(json.as_ref().filter(|json| json.is_replaced()), &session.report().json(COMMIT))?;
            if out.is_closed() {
                break;
            }
        }
        let mistaken = tell(&mut out, left_out, &unknown)?;
        let report = session.report();
        out.line(report.foot())?;
        put(json.as_ref(), &report.json(COMMIT))?;
        Ok(if report.is_success() && !mistaken { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Cases by the names that were given.
struct Selection {
    /// All whose names were meant, in the order of the filters.
    named: Vec<Case>,
    /// Which of them run.
    chosen: Vec<usize>,
    /// How many are too large for a run that does not ask for them.
    left_out: usize,
    /// Filters that mean nothing.
    unknown: Vec<String>,
}

/// The cases that some filter means, each once; all of them without a filter. A case that is named
/// in full is meant alone, however large.
fn select(all: Vec<Case>, filters: &[String], full: bool) -> Selection {
    let any = [String::new()];
    let filters = if filters.is_empty() { &any } else { filters };
    let mut selection = Selection { named: Vec::new(), chosen: Vec::new(), left_out: 0, unknown: Vec::new() };
    for filter in filters {
        let exact = all.iter().any(|c| c.name == filter);
        let meant: Vec<&Case> =
            all.iter().filter(|c| if exact { c.name == filter } else { c.name.contains(filter.as_str()) }).collect();
        if meant.is_empty() {
            selection.unknown.push(filter.clone());
        }
        for case in meant {
            let known = selection.named.iter().position(|c| c.name == case.name);
            let at = known.unwrap_or_else(|| {
                selection.named.push(case.clone());
                selection.named.len() - 1
            });
            if (full || exact || !case.full_only) && !selection.chosen.contains(&at) {
                selection.chosen.push(at);
            }
        }
    }
    selection.left_out = selection.named.len() - selection.chosen.len();
    selection
}

/// Says what of the names did not run. Whether one of them means nothing.
fn tell(out: &mut Printer, left_out: usize, unknown: &[String]) -> Result<bool, Error> {
    if left_out > 0 {
        out.line(format!("note: {left_out} large cases left out; --full runs them, --list names them"))?;
    }
    for filter in unknown {
        out.line(format!("note: no case has {filter:?} in its name; --list names them"))?;
    }
    Ok(!unknown.is_empty())
}

/// What the environment names in place of the CUDA backend's choices, for example
/// `attention=general linear=128`.
fn variant(get: impl Fn(&str) -> Option<String>) -> Option<String> {
    let named = ["attention", "linear", "cublaslt"].into_iter().filter_map(|what| {
        let value = get(&format!("XATTN_CUDA_{}", what.to_uppercase())).filter(|value| !value.is_empty())?;
        Some(format!("{what}={value}"))
    });
    Some(named.collect::<Vec<_>>().join(" ")).filter(|all| !all.is_empty())
}

/// The commit that this program was built from: see `build.rs`.
const COMMIT: Option<&str> = option_env!("XATTN_COMMIT");

/// Writes what there is so far, where it was asked for.
fn put(json: Option<&Output>, report: &Value) -> Result<(), Error> {
    json.map_or(Ok(()), |json| json.write(format!("{report:#}\n").as_bytes()))
}

/// One run per line of input, so that another process can take turns with this one.
fn turns(chosen: &[&Case], device: &Device, dtype: DType) -> Result<ExitCode, Error> {
    let [case] = chosen else {
        return Err(Error::argument("bench", "turns", "a filter that names one case", chosen.len()));
    };
    let info = device.info();
    if info.is_emulated() {
        // Handed to another process, such a number would only be mistaken for one.
        return Err(Error::argument("bench", "device", "hardware, since an emulator's times mean nothing", info.name));
    }
    let mut built = case.build(device, dtype)?;
    let call = built.runnable();
    let mut out = Printer::new();
    let memory =
        json!({ "scratch_bytes": call.workspace_bytes(), "largest_activation_bytes": call.largest_tensor_bytes() });
    out.line(memory)?;
    for line in std::io::stdin().lock().lines() {
        if out.is_closed() || line.is_err() {
            break;
        }
        let start = Instant::now();
        call.run()?;
        out.line(start.elapsed().as_secs_f64() * 1e3)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(filters: &[&str], full: bool) -> (Vec<&'static str>, usize, Vec<String>) {
        let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
        let Selection { named, chosen, left_out, unknown } = select(cases(), &filters, full);
        (chosen.into_iter().map(|i| named[i].name).collect(), left_out, unknown)
    }

    #[test]
    fn filters_choose_in_their_order_and_each_case_once() {
        let decode = ["attention/openflamingo-decode/b1-n4", "attention/openflamingo-decode/b16-n4"];
        assert_eq!(selected(&["attention/openflamingo-decode"], false), (decode.to_vec(), 0, vec![]));
        let large = "ffn/openflamingo-9b/16384";
        let (names, left_out, unknown) = selected(&[large, "no such case", "openflamingo-decode/b1", large], false);
        assert_eq!((names, left_out), (vec![large, decode[0], decode[1]], 0));
        assert_eq!(unknown, ["no such case"]);
        // A part of a name means no large case, unless all are meant.
        assert_eq!(selected(&["ffn/"], false), (vec![], 2, vec![]));
        assert_eq!(selected(&["ffn/"], true), (vec!["ffn/openflamingo-9b/64", large], 0, vec![]));
        assert_eq!(selected(&["attention/openflamingo/l512-n1"], false).0, ["attention/openflamingo/l512-n1"]);
        let all = cases();
        assert_eq!(selected(&[], true).0.len(), all.len());
        assert_eq!(selected(&[], false).0.len(), all.iter().filter(|c| !c.full_only).count());
    }

    #[test]
    fn a_variant_is_what_the_environment_names() {
        assert_eq!(variant(|_| None), None);
        assert_eq!(variant(|_| Some(String::new())), None);
        let some = |name: &str| match name {
            "XATTN_CUDA_LINEAR" => Some("128".to_string()),
            "XATTN_CUDA_ATTENTION" => Some("general".to_string()),
            _ => None,
        };
        assert_eq!(variant(some).as_deref(), Some("attention=general linear=128"));
    }
}
