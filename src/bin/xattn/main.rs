//! The command line of `xattn`.

mod bench;
mod choices;
#[cfg(feature = "cuda")]
mod cuda_images;
#[cfg(feature = "cuda")]
mod cuda_sources;
#[cfg(feature = "cuda")]
mod cuda_wrappers;
mod devices;
mod inspect;
mod output;
mod print;
mod run;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Kernels for the bridge between a vision encoder and a language model: validate them, and see
/// what they run on.
#[derive(Parser)]
#[command(version, after_help = "Exit status: 0 success, 1 a failure or nothing ran, 2 wrong usage.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Verify(verify::Verify),
    Bench(bench::Bench),
    Run(run::Run),
    Inspect(inspect::Inspect),
    Devices(devices::Devices),
    #[cfg(feature = "cuda")]
    CudaImages(cuda_images::CudaImages),
    #[cfg(feature = "cuda")]
    #[command(hide = true)]
    CudaSources(cuda_sources::CudaSources),
    #[cfg(feature = "cuda")]
    #[command(hide = true)]
    CudaWrappers(cuda_wrappers::CudaWrappers),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(told) => return tell(&told),
    };
    let result = match arguments.command {
        Command::Verify(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Run(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Devices(command) => command.run(),
        #[cfg(feature = "cuda")]
        Command::CudaImages(command) => command.run(),
        #[cfg(feature = "cuda")]
        Command::CudaSources(command) => command.run(),
        #[cfg(feature = "cuda")]
        Command::CudaWrappers(command) => command.run(),
    };
    result.unwrap_or_else(|error| {
        print::progress("");
        print::say(format!("error: {error}"));
        ExitCode::FAILURE
    })
}

/// Prints help, the version, or what is wrong with the arguments.
fn tell(told: &clap::Error) -> ExitCode {
    let status = u8::try_from(told.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
    let printed = told.print().and_then(|()| std::io::stdout().flush());
    match printed {
        Err(error) if !told.use_stderr() && error.kind() != std::io::ErrorKind::BrokenPipe => {
            print::say(format!("error: {}", print::failed(error)));
            ExitCode::FAILURE
        }
        _ => status,
    }
}
