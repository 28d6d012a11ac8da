//! `xattn devices`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use xattn::{Device, DeviceKind, Error};

/// List every backend: the device it found, or why there is none.
#[derive(Args)]
pub struct Devices {}

impl Devices {
    /// Prints one line per backend.
    pub fn run(&self) -> Result<ExitCode, Error> {
        let mut out = std::io::stdout().lock();
        for kind in DeviceKind::ALL {
            let text = match Device::open(kind) {
                Ok(device) => {
                    let info = device.info();
                    format!("available    {}; {}", info.name, info.details)
                }
                Err(Error::Unavailable { reason, .. }) => format!("unavailable  {reason}"),
                Err(error) => format!("unavailable  {error}"),
            };
            // A closed pipe is the reader's decision.
            if writeln!(out, "{kind:<9}  {text}").is_err() {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
