//! The sandbox the worker puts on itself and cannot take off, in steps (`calls` lists what each leaves): before the runtime's
//! library is loaded it keeps the libraries as files and the system calls that loading takes; before the model's bytes are
//! read it loses all files; before the first window whatever answering does not take. Resource limits bound what it may
//! hold. A kernel without Landlock still has the system-call filter, and the report says which of the two stand.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::sys::resource::{Resource, setrlimit};

use super::{
    calls::{Step, leave_only, leave_out_answered},
    channel::EngineFolder,
};
use crate::{host::defence::Defence, limits};

/// What a worker is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Computes on the processor: nothing more is needed once the session is built.
    Cpu,
    /// Talks to a driver, which opens its device and starts threads when it likes.
    Accelerator,
}

/// Which fences stand.
#[derive(Debug, Clone)]
pub struct Fences {
    profile: Profile,
    landlock: &'static str,
}

/// Libraries lie here, and what the runtime asks of the processor.
const READABLE: [&str; 12] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system",
    "/dev/null",
    "/dev/urandom",
];
/// What a driver's library reads beside that.
const READABLE_BY_DRIVERS: [&str; 12] = [
    "/usr/local",
    "/etc/OpenCL",
    "/etc/ld.so.conf.d",
    "/proc/driver",
    "/proc/sys/vm/mmap_min_addr",
    "/proc/devices",
    "/proc/modules",
    "/sys/module",
    "/sys/bus",
    "/sys/devices",
    "/sys/kernel/mm",
    "/sys/class",
];
/// Device nodes of accelerators, by the beginning of their names in /dev.
const DEVICES: [&str; 6] = ["nvidia", "nvhost", "nvmap", "dri", "accel", "dma_heap"];

/// Before the runtime's library is loaded. `folders` hold the runtime and its providers; `engine` is what this provider built for
/// the model, or is to build.
pub fn before_library(
    profile: Profile,
    folders: &[PathBuf],
    memory_bytes: u64,
    engine: Option<&EngineFolder>,
) -> Result<Fences, String> {
    let builds = engine.is_some_and(|engine| engine.writable);
    let limit = |what, value| setrlimit(what, value, value).map_err(|why| format!("limit {what:?}: {why}"));
    // Where memory runs out, the kernel ends a worker before the daemon. Raising this needs no right; lowering does.
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
    limit(Resource::RLIMIT_CORE, 0)?;
    limit(Resource::RLIMIT_FSIZE, if builds { limits::ENGINE_BYTES } else { 0 })?;
    limit(Resource::RLIMIT_MSGQUEUE, 0)?;
    limit(Resource::RLIMIT_NPROC, limits::WORKER_TASKS)?;
    if profile == Profile::Cpu {
        // Drivers map more than they use: theirs is watched from outside.
        limit(Resource::RLIMIT_DATA, memory_bytes)?;
        limit(Resource::RLIMIT_AS, memory_bytes.saturating_add(limits::WORKER_MAPPED_BYTES))?;
        limit(Resource::RLIMIT_NOFILE, 64)?;
    }
    let landlock = if Defence::Landlock.stands() {
        landlock(profile, folders, engine).map_err(|why| format!("landlock: {why}"))?
    } else {
        "no landlock"
    };
    let fences = Fences { profile, landlock };
    if Defence::WorkerCalls.stands() {
        leave_out_answered(builds)?;
    }
    fences.narrow(match profile {
        Profile::Cpu => Step::Load,
        Profile::Accelerator if builds => Step::Build,
        Profile::Accelerator => Step::Driver,
    })?;
    Ok(fences)
}

impl Fences {
    /// Before the model's bytes are read, which are the first thing here that a stranger may have made.
    pub fn before_model(&self) -> Result<(), String> {
        if self.profile == Profile::Cpu { self.narrow(Step::Model) } else { Ok(()) }
    }

    /// Before the first window.
    pub fn before_serving(&self) -> Result<(), String> {
        if self.profile == Profile::Cpu { self.narrow(Step::Serve) } else { Ok(()) }
    }

    fn narrow(&self, step: Step) -> Result<(), String> {
        if Defence::WorkerCalls.stands() { leave_only(step) } else { Ok(()) }
    }

    /// For status: `landlock, seccomp`.
    pub fn words(&self) -> String {
        format!("{}, seccomp", self.landlock)
    }
}

fn landlock(
    profile: Profile,
    folders: &[PathBuf],
    engine: Option<&EngineFolder>,
) -> Result<&'static str, landlock::RulesetError> {
    const NEWEST: ABI = ABI::V6;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let more: &[&str] = if profile == Profile::Accelerator { &READABLE_BY_DRIVERS } else { &[] };
    let named = READABLE.iter().chain(more).map(PathBuf::from);
    for path in named.chain(folders.iter().cloned()) {
        // A path that is not there needs no rule.
        if let Ok(fd) = PathFd::new(&path) {
            let access = if path.is_dir() { read } else { AccessFs::ReadFile.into() };
            rules = rules.add_rule(PathBeneath::new(fd, access))?;
        }
    }
    if let Some((engine, fd)) = engine.and_then(|engine| Some((engine, PathFd::new(&engine.path).ok()?))) {
        let write = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
        let access = if engine.writable { read | write } else { read };
        rules = rules.add_rule(PathBeneath::new(fd, access))?;
    }
    if profile == Profile::Accelerator {
        // CUDA's library names its threads there, and gives up where it cannot.
        if let Ok(fd) = PathFd::new("/proc/self/task") {
            rules = rules.add_rule(PathBeneath::new(fd, read | AccessFs::WriteFile | AccessFs::Truncate))?;
        }
        let use_it = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
        for path in devices() {
            if let Ok(fd) = PathFd::new(&path) {
                let access = if path.is_dir() { use_it | AccessFs::ReadDir } else { use_it };
                rules = rules.add_rule(PathBeneath::new(fd, access))?;
            }
        }
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => "landlock",
        RulesetStatus::PartiallyEnforced => "landlock (in part)",
        RulesetStatus::NotEnforced => "no landlock",
    })
}

fn devices() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten().map(|entry| entry.path());
    let ours = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        DEVICES.iter().any(|device| name.starts_with(device))
    };
    entries.filter(ours).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_bounds_memory_and_tasks_and_leaves_some_to_the_daemon() {
        let unit = include_str!("../../../systemd/kentledge.service");
        let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let tasks: u64 = value("TasksMax").and_then(|n| n.parse().ok()).expect("TasksMax");
        assert_eq!(tasks, limits::WORKER_TASKS + 256);
        assert!(value("MemoryMax").is_some_and(|share| share.ends_with('%')));
        // With `stop` a worker that is killed for its memory would take the daemon along.
        assert_eq!(value("OOMPolicy"), Some("continue"));
    }
}
