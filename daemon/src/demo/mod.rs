//! x
pub mod csv;
#[derive(Debug, clap::Args)]
pub struct Args {}
pub fn demo(_: &Args) -> Result<(), crate::error::Fatal> { Ok(()) }
