//! `kentledge audit`: checks the audit log of this device, or entries that were pulled from another one.

use std::{fs, io::Read, path::PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::say;
use crate::{
    config::Config,
    control::audit::{
        chain::{self, Head},
        files,
    },
    error::{Context, Fatal},
};

/// The acts.
#[derive(Debug, Subcommand)]
pub enum Act {
    /// Checks that no entry was edited, cut or is missing
    Verify(Verify),
}

/// Which log, and what is known of it.
#[derive(Debug, Args)]
pub struct Verify {
    /// Files with entries in order, `-`: standard input; without them, the log below the state directory
    files: Vec<PathBuf>,
    /// The state directory; without it, as in the configuration
    #[arg(long)]
    state: Option<PathBuf>,
    /// A head that was noted, as in up/h: SEQ:DIGEST. May be given again
    #[arg(long, value_name = "SEQ:DIGEST")]
    head: Vec<Head>,
    /// The files are a part of a log: entries before them are not missed
    #[arg(long)]
    part: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Act {
    /// Runs it.
    ///
    /// # Errors
    /// A file cannot be read, or the log does not verify.
    pub fn act(self) -> Result<(), Fatal> {
        let Self::Verify(args) = self;
        let logs = args.read()?;
        let report =
            chain::verify(logs.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())), &args.head, args.part);
        if args.json {
            say(&json!({
                "entries": report.entries, "first": report.first, "head": report.head,
                "problems": report.problems, "remarks": report.remarks,
            })
            .to_string())?;
        } else {
            report.remarks.iter().try_for_each(|remark| say(remark))?;
        }
        if !report.problems.is_empty() {
            let n = report.problems.len();
            return Err(Fatal::failed(format!("the audit log does not verify ({n}):\n{}", report.problems.join("\n"))));
        }
        if !args.json {
            let (entries, head) = (report.entries, &report.head);
            let heads = match args.head.len() {
                0 => "; without --head an end that was cut off is not noticed".to_owned(),
                n => format!(", and so do the {n} heads that were given"),
            };
            say(&format!("{entries} entries verify{heads}\nhead {head}"))?;
        }
        Ok(())
    }
}

impl Verify {
    /// The names and the content of the files.
    fn read(&self) -> Result<Vec<(String, Vec<u8>)>, Fatal> {
        let mut paths = self.files.clone();
        if paths.is_empty() {
            let state = match &self.state {
                Some(state) => state.clone(),
                None => Config::local(None).map_err(|problems| Fatal::problems(&problems))?.device.state_dir,
            };
            let folder = state.join("audit");
            let found = files(&folder).context(format!("read {}", folder.display()))?;
            if found.is_empty() {
                return Err(Fatal::failed(format!("{} holds no audit log", folder.display())));
            }
            paths = found.into_iter().map(|(_, path)| path).collect();
        }
        let mut logs = Vec::new();
        for path in paths {
            let mut bytes = Vec::new();
            if path.as_os_str() == "-" {
                std::io::stdin().read_to_end(&mut bytes).context("read standard input")?;
            } else {
                bytes = fs::read(&path).context(format!("read {}", path.display()))?;
            }
            let name = path.file_name().map_or_else(|| "-".into(), |name| name.to_string_lossy().into_owned());
            logs.push((name, bytes));
        }
        Ok(logs)
    }
}
