//! Logs: journald's own fields under systemd, readable lines on a terminal.

use std::io::IsTerminal;

use tracing_subscriber::{
    EnvFilter, Layer, field::MakeExt, fmt::format, layer::SubscriberExt, util::SubscriberInitExt,
};

/// Starts logging. `KENTLEDGE_LOG` filters as `RUST_LOG` does elsewhere; without it `default` applies.
pub fn start(default: &str) {
    // The MQTT library warns of each refused message; the link counts them and logs a sum. What is asked for comes after it.
    let quiet = |text: &str| format!("rumqttc=error,{text}");
    let asked =
        std::env::var("KENTLEDGE_LOG").ok().and_then(|text| EnvFilter::try_new(quiet(&text)).ok().map(|_| text));
    let text = quiet(asked.as_deref().unwrap_or(default));
    let filter = || EnvFilter::new(&text);
    let journald = stderr_is_journal().then(tracing_journald::layer).and_then(Result::ok);
    // Fields without a prefix, so that `message_id` is the journal's own.
    let journald = journald.map(|layer| layer.with_field_prefix(None).with_syslog_identifier("kentledge".into()));
    let lines = journald.is_none().then(|| {
        // The journal's ids are nothing for people.
        let fields = format::debug_fn(|out, field, value| match field.name() {
            "message_id" => Ok(()),
            "message" => write!(out, "{value:?}"),
            name => write!(out, "{name}={value:?}"),
        });
        tracing_subscriber::fmt::layer()
            .fmt_fields(fields.delimited(" "))
            .with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
    });
    // A second start (a test, the demo) keeps the first.
    let _ = tracing_subscriber::registry()
        .with(journald.map(|layer| layer.with_filter(filter())))
        .with(lines.map(|layer| layer.with_filter(filter())))
        .try_init();
}

/// systemd names the journal's socket by device and inode; our standard error must be that very socket.
fn stderr_is_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    nix::sys::stat::fstat(std::io::stderr()).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}
