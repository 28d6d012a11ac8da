//! `xattn cuda-wrappers`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use xattn::{Device, DeviceKind, Error, WrapperCheck};

use crate::output::Output;
use crate::print::Printer;

/// Compare each instruction that kernels use through inline PTX, lane by lane, with what the PTX
/// ISA says of it.
///
/// On compute capability 9.0 this includes products of a warpgroup (wgmma: type, columns n, order
/// and swizzle of b, where a comes from) and tensor copies; elsewhere they are left out.
#[derive(Args)]
pub struct CudaWrappers {
    /// Decides the registers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write every result to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl CudaWrappers {
    /// Prints a line per wrapper.
    pub fn run(&self) -> Result<ExitCode, Error> {
        let json = self.json.as_deref().map(Output::new).transpose()?;
        let device = Device::open(DeviceKind::Cuda)?;
        let checks = WrapperCheck::all(&device, self.seed)?;
        let mut out = Printer::new();
        let mut wrong = 0;
        for check in &checks {
            wrong += usize::from(check.wrong > 0);
            let first = check.first.as_deref().map_or(String::new(), |first| format!("; {first}"));
            out.line(format!("{:<32} {} of {} words wrong{first}", check.name, check.wrong, check.words))?;
        }
        out.line(format!("{} wrappers, {wrong} wrong, on {}", checks.len(), device.info().name))?;
        if let Some(json) = json {
            let list: Vec<_> = checks
                .iter()
                .map(|c| json!({ "wrapper": c.name, "words": c.words, "wrong": c.wrong, "first": c.first }))
                .collect();
            let report = json!({ "device": device.info().name, "seed": self.seed, "wrappers": list });
            json.write(format!("{report:#}\n").as_bytes())?;
        }
        Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
