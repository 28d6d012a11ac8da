//! `xattn devices`.

use std::process::ExitCode;

use clap::Args;
use xattn::{Device, DeviceKind, Error};

use crate::print::Printer;

/// List every backend: the device it found, or why there is none.
#[derive(Args)]
pub struct Devices {}

impl Devices {
    /// Prints one line per backend.
    pub fn run(&self) -> Result<ExitCode, Error> {
        let mut out = Printer::new();
        for kind in DeviceKind::ALL {
            let text = match Device::open(kind) {
                Ok(device) => {
                    let info = device.info();
                    format!("available    {}; {}", info.name, info.details)
                }
                Err(Error::Unavailable { reason, .. }) => format!("unavailable  {reason}"),
                Err(error) => format!("unavailable  {error}"),
            };
            out.line(format!("{kind:<9}  {text}"))?;
            if out.is_closed() {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
