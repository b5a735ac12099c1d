//! Every command, in one table: its name, its arguments, whether it needs a signature, what handles it, and a help text.
//!
//! To add a command: a type for its arguments with `Args` (`args.rs`), one row in the table, its handler in `handlers.rs` (which
//! returns actions, see `action.rs`), `docs/schema/dn.args.NAME.json` and a row in `docs/reference/commands.md`. A test compares
//! the table with both.

use super::{
    Control,
    action::Call,
    args::{
        Acknowledge, Args, AuditPull, Calibrate, ConfigGet, ConfigSet, Erase, Install, InstallSystem, KeysetUpdate,
        NoArgs, RollBack,
    },
    refusal::{Refusal, malformed},
    samples_args::{SamplesPull, TapePull},
};
use crate::flow::{order::LogQuery, samples::Feedback};

/// The command is signed with a key of the keyset for commands.
pub const SIGNED: bool = true;
/// Any client that may publish to the topic may send it.
pub const UNSIGNED: bool = false;

/// One row of the table.
pub struct Row {
    /// The type of the command, as in its topic.
    pub name: &'static str,
    /// It needs a signature.
    pub signed: bool,
    /// What it does, in one sentence.
    pub help: &'static str,
    read: fn(&str) -> Result<Command, Refusal>,
}

macro_rules! commands {
    ($($name:literal $variant:ident($args:ty) $signed:ident $handler:path, $help:literal;)*) => {
        /// A command with its arguments.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Command {
            $(#[doc = $help] $variant($args),)*
        }

        /// The table.
        pub const TABLE: &[Row] = &[$(Row {
            name: $name,
            signed: $signed,
            help: $help,
            read: |text| <$args>::read(text).map(Command::$variant),
        },)*];

        impl Command {
            /// Hands it to its handler, which pushes what is to be done.
            pub(super) fn handle(self, control: &mut Control, call: Call) {
                match self {
                    $(Self::$variant(args) => $handler(control, call, args),)*
                }
            }
        }
    };
}

commands! {
    "ping"            Ping(NoArgs)                  UNSIGNED Control::ping,           "Returns version and boot.";
    "status"          Status(NoArgs)                UNSIGNED Control::status,         "Returns the status document.";
    "report"          Report(NoArgs)                UNSIGNED Control::publish_report, "Publishes state, birth and report again.";
    "config.set"      ConfigSet(ConfigSet)          SIGNED   Control::config_set,     "Replaces or merges the remote layer.";
    "config.get"      ConfigGet(ConfigGet)          UNSIGNED Control::config_get,     "Returns all layers, or the remote one.";
    "model.install"   Install(Install)              SIGNED   Control::model_install,  "Installs a model bundle.";
    "model.rollback"  RollBack(RollBack)            SIGNED   Control::model_rollback, "Rolls back to the previous model.";
    "model.calibrate" Calibrate(Calibrate)          SIGNED   Control::calibrate,      "Learns again what is normal.";
    // It can switch an output off.
    "alarm.ack"       Acknowledge(Acknowledge)      SIGNED   Control::acknowledge,    "Acknowledges a latched alarm.";
    // It is training data, and may move a threshold.
    "feedback"        Feedback(Feedback)            SIGNED   Control::feedback,       "Labels an alarm or a window.";
    "samples.pull"    SamplesPull(SamplesPull)      SIGNED   Control::samples_pull,   "Fetches windows and labels.";
    "tape.pull"       TapePull(TapePull)            SIGNED   Control::tape_pull,      "Fetches a tape.";
    "os.install"      InstallSystem(InstallSystem)  SIGNED   Control::os_install,     "Installs another operating system.";
    "audit.pull"      AuditPull(AuditPull)          SIGNED   Control::audit_pull,     "Returns a part of the audit log.";
    "log.pull"        LogPull(LogQuery)             SIGNED   Control::log_pull,       "Returns a part of the journal.";
    "restart"         Restart(NoArgs)               SIGNED   Control::restart,        "Ends the process; systemd starts it again.";
    "reboot"          Reboot(NoArgs)                SIGNED   Control::reboot,         "Restarts the machine.";
    "erase"           Erase(Erase)                  SIGNED   Control::erase,          "Erases /data.";
    // The keyset itself is signed, by more keys than one command could be.
    "keyset.update"   Keyset(KeysetUpdate)          UNSIGNED Control::keyset_update,  "Replaces the keyset by its successor.";
}

/// The row of a command.
pub fn row(kind: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == kind)
}

/// Whether this type needs a signature.
pub fn needs_signature(kind: &str) -> bool {
    row(kind).is_some_and(|row| row.signed)
}

/// Reads a command of this type.
pub(in crate::control) fn read(row: &Row, args: &str) -> Result<Command, Refusal> {
    if !args.starts_with('{') {
        return Err(malformed("args: no JSON object"));
    }
    (row.read)(args)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn every_command_of_the_table_has_a_schema_and_a_row_in_the_docs_and_nothing_else_has() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let page = fs::read_to_string(docs.join("reference/commands.md")).expect("docs/reference/commands.md");
        for row in TABLE {
            assert!(docs.join(format!("schema/dn.args.{}.json", row.name)).is_file(), "{} has no schema", row.name);
            assert!(
                page.contains(&format!("| `{}`", row.name)),
                "docs/reference/commands.md has no row for {}",
                row.name
            );
            assert!(row.help.ends_with('.'), "{}: the help is a sentence", row.name);
        }
        let schemas = fs::read_dir(docs.join("schema")).expect("docs/schema").flatten();
        let schemas = schemas.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_prefix("dn.args.")?.strip_suffix(".json").map(str::to_owned)
        });
        assert_eq!(schemas.filter(|name| row(name).is_none()).collect::<Vec<_>>(), Vec::<String>::new());
    }

    #[test]
    fn arguments_out_of_bounds_are_malformed() {
        let digest = "a".repeat(64);
        for (kind, args) in [
            ("ping", r#"[]"#.to_owned()),
            ("config.get", r#"{"layer":"local"}"#.into()),
            ("config.set", r#"{"toml":"","confirm_s":5}"#.into()),
            ("config.set", r#"{"toml":"","mode":"patch"}"#.into()),
            ("config.set", r#"{"toml":"","if_digest":"sha256:1"}"#.into()),
            ("model.install", r#"{"sha256":"A","size":1}"#.into()),
            ("model.install", format!(r#"{{"sha256":"{digest}","size":0}}"#)),
            ("model.install", format!(r#"{{"sha256":"{digest}","size":1,"url":"http://a"}}"#)),
            ("os.install", format!(r#"{{"sha256":"{digest}","size":1}}"#)),
            ("os.install", format!(r#"{{"sha256":"{digest}","size":1,"file":"a"}}"#)),
            ("log.pull", r#"{"unit":"-x"}"#.into()),
            ("log.pull", r#"{"lines":0}"#.into()),
            ("keyset.update", r#"{"keyset":"","signatures":["%"]}"#.into()),
        ] {
            let refused = row(kind).map(|row| read(row, &args));
            assert!(matches!(refused, Some(Err(Refusal(crate::control::refusal::Why::Malformed, _)))), "{kind} {args}");
        }
    }
}
