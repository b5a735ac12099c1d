//! The signals that ask the process to stop.

use futures_util::StreamExt;

use crate::error::{Context, Fatal};

/// Ends with the name of the first signal that asks for the stop.
///
/// # Errors
/// The process cannot listen for signals.
pub fn stop() -> Result<impl Future<Output = String>, Fatal> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook_tokio::Signals::new([SIGTERM, SIGINT, SIGHUP]).context("listen for signals")?;
    Ok(async move {
        match signals.next().await {
            Some(SIGTERM) => "SIGTERM".into(),
            Some(SIGINT) => "SIGINT".into(),
            Some(SIGHUP) => "SIGHUP".into(),
            other => format!("signal {other:?}"),
        }
    })
}
