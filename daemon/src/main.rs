//! Parses the command line, does it, and ends with the exit code of `error::Code`.

use std::process::ExitCode;

use clap::Parser;
use kentledge::{cli::Cli, error::Code};

fn main() -> ExitCode {
    match Cli::parse().act() {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            // Problems of a configuration stand alone, so that an editor can jump to them.
            if fatal.code == Code::Config {
                eprintln!("{fatal}");
            } else {
                eprintln!("kentledge: {fatal}");
            }
            ExitCode::from(fatal.code as u8)
        }
    }
}
