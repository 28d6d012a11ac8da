//! `xattn verify`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

use clap::Args;
use xattn::verify::{Options, fixture, run};
use xattn::{DType, Error};

use crate::choices::{self, Devices};
use crate::output::Output;
use crate::print::{self, Printer};

/// Compare every kernel on every device with the f64 reference, and with fixtures of public
/// implementations.
///
/// Without a path: a covering selection of cases per op, in at most a minute on two cores. A
/// software adapter of wgpu, which emulates a GPU, gets one case in sixteen, since it takes a
/// second to compile a shader; --every-case, --filter and paths run all that they mean, in minutes.
/// With paths: fixture files, or folders of them. The last line is `N passed, N failed, N skipped`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  xattn verify                                   every op on every device found
  xattn verify --device cpu --dtype bf16         one device, one dtype
  xattn verify --filter rule=same_media          cases whose reproduction string contains a text
  xattn verify --filter 'norm:batch=1,...'       exactly the case of a reproduction string
  xattn verify --full --json report.json         thousands of random configurations besides
  xattn verify tests/golden                      fixtures made by public implementations

Exit status: 0 all passed, 1 something failed or nothing ran, 2 wrong usage.")]
pub struct Verify {
    /// Where to run
    #[arg(long, default_value = "all", value_parser = choices::devices())]
    device: Devices,
    /// Element type of activations [default: all three]
    #[arg(long, value_parser = choices::dtype(&[DType::F32, DType::F16, DType::BF16]))]
    dtype: Option<DType>,
    /// Only cases (or fixture paths) that contain this text; a whole reproduction string runs
    /// exactly that case
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Thousands of seeded random configurations besides the covering selection
    #[arg(long, conflicts_with = "paths")]
    full: bool,
    /// Every case also on software adapters of wgpu, which get one in sixteen otherwise: minutes,
    /// most of them to compile shaders
    #[arg(long, conflicts_with = "paths")]
    every_case: bool,
    /// Write every result to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fixture files, or folders that are searched for .safetensors files
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

impl Verify {
    /// Runs, prints the table and the counts.
    pub fn run(&self) -> Result<ExitCode, Error> {
        let options = Options {
            devices: self.device.0.into_iter().collect(),
            dtypes: self.dtype.into_iter().collect(),
            filter: self.filter.clone(),
            full: self.full,
            every_case: self.every_case,
            paths: self.paths.clone(),
        };
        let json = self.json.as_deref().map(Output::new).transpose()?;
        let json = json.map(|json| self.beside_fixtures(json)).transpose()?;
        let report = run(&options, &progress())?;
        if let Some(json) = json {
            json.write(format!("{:#}\n", report.json()).as_bytes())?;
        }
        // The exit status also tells those who read no further.
        Printer::new().line(format!("{}{}", report.table(), report.summary()))?;
        Ok(if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Verify {
    /// The JSON file, which must be none of the fixtures.
    fn beside_fixtures(&self, mut json: Output) -> Result<Output, Error> {
        for path in fixture::find(&self.paths)? {
            json.keep("fixture", &path)?;
        }
        Ok(json)
    }
}

/// A counter on the terminal, in steps of one per cent.
fn progress() -> impl Fn(usize, usize) + Sync {
    let shown = Mutex::new(usize::MAX);
    move |done, all| {
        let percent = 100 * done / all.max(1);
        let mut shown = shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Threads finish out of order: the counter never goes back.
        if *shown != usize::MAX && percent <= *shown {
            return;
        }
        *shown = percent;
        print::progress(if done == all { String::new() } else { format!("{done} of {all}") });
    }
}
