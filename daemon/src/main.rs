//! Parses the command line, does it, and ends with the exit code of `error::Code`.

use std::process::ExitCode;

use clap::Parser;
use kentledge::cli::{Cli, exit};

fn main() -> ExitCode {
    exit("kentledge", Cli::parse().act())
}
