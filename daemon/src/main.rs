//! Parses the command line, does it, and ends with the exit code of `error::Code`.

use std::process::ExitCode;

use clap::Parser;
use kentledge::{cli::Cli, error::Code, host::log::escaped, limits};

fn main() -> ExitCode {
    match Cli::parse().act() {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            // Problems of a configuration stand alone, so that an editor can jump to them.
            let lines: Vec<_> = fatal.text.lines().map(|line| escaped(line, limits::LOG_LINE)).collect();
            let before = if fatal.code == Code::Config { "" } else { "kentledge: " };
            eprintln!("{before}{}", lines.join("\n"));
            ExitCode::from(fatal.code as u8)
        }
    }
}
