//! Logs: journald's own fields under systemd, readable lines on a terminal. Much of what is logged was written by others,
//! so the value of every field goes through `host::log::Escaping` on its way to either.
//!
//! `journalctl` and the command `log.pull` show the message of a line and no other field. So the message that the journal
//! gets ends with the other fields (`name=value`), as a line on a terminal does.

use std::{
    fmt::{Debug, Write},
    io::IsTerminal,
};

use tracing::{
    Event, Subscriber,
    field::{Field, Value, Visit},
};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    fmt::{MakeWriter, format},
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::{
    host::log::{Escaping, escaped},
    limits,
};

/// Starts logging. `KENTLEDGE_LOG` filters as `RUST_LOG` does elsewhere, by level and `target=level`; without it `default`
/// applies.
pub fn start(default: &str) {
    let asked = std::env::var("KENTLEDGE_LOG").ok().filter(|text| text.parse::<Targets>().is_ok());
    let text = asked.as_deref().unwrap_or(default);
    let filter = || text.parse::<Targets>().unwrap_or_default();
    let journald = stderr_is_journal().then(tracing_journald::layer).and_then(Result::ok);
    // Fields without a prefix, so that `message_id` is the journal's own.
    let journald = journald.map(|layer| layer.with_field_prefix(None).with_syslog_identifier("kentledge".into()));
    let lines = journald.is_none().then(|| lines(std::io::stderr, std::io::stderr().is_terminal()));
    // A second start (a test, the demo) keeps the first.
    let _ = tracing_subscriber::registry()
        .with(journald.map(|layer| Escaped(layer).with_filter(filter())))
        .with(lines.map(|layer| layer.with_filter(filter())))
        .try_init();
}

/// Fields that a line does not repeat behind its message: the journal's id, and what the message itself names.
const NAMED: [&str; 7] = ["message_id", "event", "subject", "alarm", "kind", "id", "state"];

/// Whether a field stands behind the message. Libraries that use `log` add where their source code lay (`log.file`).
fn is_shown(name: &str) -> bool {
    name != "message" && !NAMED.contains(&name) && !name.starts_with("log.")
}

/// One line for each event.
fn lines<S, W>(writer: W, ansi: bool) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    // Each field but the message brings its own blank: a field that is left out leaves none.
    let fields = format::debug_fn(|out, field, value| {
        let out = &mut Escaping::new(out, limits::LOG_FIELD);
        match field.name() {
            "message" => write!(out, "{value:?}"),
            name if is_shown(name) => write!(out, " {name}={value:?}"),
            _ => Ok(()),
        }
    });
    tracing_subscriber::fmt::layer().fmt_fields(fields).with_target(false).with_ansi(ansi).with_writer(writer)
}

/// Gives a layer each event with its values escaped, and with the fields in the message.
struct Escaped<L>(L);

impl<S: Subscriber, L: Layer<S>> Layer<S> for Escaped<L> {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut values = Values::default();
        event.record(&mut values);
        values.name_fields();
        let fields = event.metadata().fields();
        let text = |field: Field| values.0.iter().find(|(f, _)| *f == field).map(|(_, text)| text as &dyn Value);
        let all: Vec<Option<&dyn Value>> = fields.iter().map(text).collect();
        self.0.on_event(&Event::new(event.metadata(), &fields.value_set_all(&all)), context);
    }
}

/// The values of an event, as they may be written.
#[derive(Default)]
struct Values(Vec<(Field, String)>);

impl Values {
    /// Appends the other fields to the message, within the bound of one field.
    fn name_fields(&mut self) {
        let Some(at) = self.0.iter().position(|(field, _)| field.name() == "message") else { return };
        let mut message = std::mem::take(&mut self.0[at].1);
        for (field, value) in &self.0 {
            if is_shown(field.name()) {
                let _ = write!(message, " {}={value}", field.name());
            }
        }
        self.0[at].1 = escaped(message, limits::LOG_FIELD);
    }
}

impl Visit for Values {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.clone(), escaped(value, limits::LOG_FIELD)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push((field.clone(), escaped(format_args!("{value:?}"), limits::LOG_FIELD)));
    }
}

/// systemd names the journal's socket by device and inode; our standard error must be that very socket.
fn stderr_is_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    nix::sys::stat::fstat(std::io::stderr()).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What the journal would be given.
    #[derive(Clone, Default)]
    struct Given(Arc<Mutex<Vec<(String, String)>>>);

    impl<S: Subscriber> Layer<S> for Given {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            struct Raw<'a>(&'a mut Vec<(String, String)>);
            impl Visit for Raw<'_> {
                fn record_str(&mut self, field: &Field, value: &str) {
                    self.0.push((field.name().into(), value.into()));
                }
                fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                    self.0.push((field.name().into(), format!("{value:?}")));
                }
            }
            event.record(&mut Raw(&mut self.0.lock().expect("given")));
        }
    }

    #[derive(Clone, Default)]
    struct Terminal(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Terminal {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("terminal").extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn journal_message_and_terminal_line_name_the_same_fields() {
        let (given, terminal) = (Given::default(), Terminal::default());
        let writer = terminal.clone();
        let both =
            tracing_subscriber::registry().with(Escaped(given.clone())).with(lines(move || writer.clone(), false));
        tracing::subscriber::with_default(both, || {
            tracing::info!(message_id = "f00d", alarm = "hot", broker = "b:8883", session = 3, "connected");
            tracing::info!(log.file = "/home/maker/a.rs", log.line = 7, "nothing beside it");
        });
        let given = given.0.lock().expect("given").clone();
        let messages: Vec<&str> = given.iter().filter(|(n, _)| n == "message").map(|(_, v)| v.as_str()).collect();
        assert_eq!(messages, ["connected broker=b:8883 session=3", "nothing beside it"]);
        assert!(given.contains(&("alarm".into(), "hot".into())), "a query of the journal finds the alarm by its field");
        let text = String::from_utf8(terminal.0.lock().expect("terminal").clone()).expect("text");
        assert!(text.contains(" connected broker=\"b:8883\" session=3\n"), "{text}");
        assert!(text.ends_with(" nothing beside it\n"), "{text}");
    }

    #[test]
    fn every_field_with_control_characters_is_escaped_for_the_terminal_and_the_journal() {
        let (given, terminal) = (Given::default(), Terminal::default());
        let writer = terminal.clone();
        let both =
            tracing_subscriber::registry().with(Escaped(given.clone())).with(lines(move || writer.clone(), false));
        let evil = "x\x1b[2J\n2026-01-01 ERROR forged";
        tracing::subscriber::with_default(both, || {
            tracing::warn!(kind = evil, path = %evil, text = ?evil, n = 7, yes = true, none = None::<u8>, "a {evil}");
            tracing::warn!("{}", "y".repeat(100_000));
        });
        let given = given.0.lock().expect("given").clone();
        let value = |name: &str| given.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let clean = "x\\u{1b}[2J\\n2026-01-01 ERROR forged";
        assert_eq!((value("kind"), value("path")), (Some(clean), Some(clean)));
        assert!(value("message").is_some_and(|text| text.starts_with(&format!("a {clean} path={clean}"))));
        assert_eq!((value("n"), value("yes"), value("none")), (Some("7"), Some("true"), None));
        assert!(given.iter().all(|(_, v)| v.chars().count() <= limits::LOG_FIELD && !v.contains(char::is_control)));
        let text = String::from_utf8(terminal.0.lock().expect("terminal").clone()).expect("text");
        assert_eq!(text.lines().count(), 2, "one line for each event: {}", &text[..200]);
        assert!(!text.contains('\x1b') && text.contains("ERROR forged") && text.len() < 2 * limits::LOG_FIELD + 1000);
    }
}
