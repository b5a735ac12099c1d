//! What the worker may not do, in two steps: before the runtime's library is loaded it loses the network, every file but
//! the libraries, and the way to other programs; once the session is built, whatever it does not need to answer windows.
//! It puts this on itself and cannot take it off. A kernel without Landlock still has the system-call filter, and the
//! report says which of the two stand.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::ErrorKind,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{SeccompAction, SeccompFilter, SeccompRule, TargetArch};

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
const READABLE_BY_DRIVERS: [&str; 11] = [
    "/usr/local",
    "/etc/OpenCL",
    "/etc/ld.so.conf.d",
    "/proc/driver",
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

/// First step. `folders` hold the runtime and its providers.
pub fn before_library(profile: Profile, folders: &[PathBuf], memory_bytes: u64) -> Result<Fences, String> {
    let limit = |what, value| setrlimit(what, value, value).map_err(|why| format!("limit {what:?}: {why}"));
    limit(Resource::RLIMIT_CORE, 0)?;
    if profile == Profile::Cpu {
        // Drivers map more than they use: theirs is watched from outside.
        limit(Resource::RLIMIT_DATA, memory_bytes)?;
        limit(Resource::RLIMIT_NOFILE, 64)?;
    }
    let landlock = landlock(profile, folders).map_err(|why| format!("landlock: {why}"))?;
    let deny: BTreeMap<i64, Vec<SeccompRule>> = FORBIDDEN.iter().map(|call| (*call, Vec::new())).collect();
    filter(deny, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32))?;
    Ok(Fences { profile, landlock })
}

/// Second step.
pub fn before_serving(fences: &Fences) -> Result<(), String> {
    if fences.profile == Profile::Accelerator {
        return Ok(());
    }
    let allow: BTreeMap<i64, Vec<SeccompRule>> = NEEDED.iter().map(|call| (*call, Vec::new())).collect();
    filter(allow, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

impl Fences {
    /// For status: `landlock, seccomp`.
    pub fn words(&self) -> String {
        format!("{}, seccomp", self.landlock)
    }
}

fn landlock(profile: Profile, folders: &[PathBuf]) -> Result<&'static str, landlock::RulesetError> {
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
    if profile == Profile::Accelerator {
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

fn filter(rules: BTreeMap<i64, Vec<SeccompRule>>, other: SeccompAction, these: SeccompAction) -> Result<(), String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|why| format!("seccomp: {why}"))?;
    let filter = SeccompFilter::new(rules, other, these, arch).map_err(|why| format!("seccomp: {why}"))?;
    let program: seccompiler::BpfProgram = filter.try_into().map_err(|why| format!("seccomp: {why}"))?;
    seccompiler::apply_filter_all_threads(&program).map_err(|why| format!("seccomp: {why}"))
}

/// Never needed: other programs, other machines, other processes, the kernel itself.
const FORBIDDEN: &[i64] = &[
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
];

/// All that answering windows on the processor takes: the doorbell, memory, locks, time, and the way out.
const NEEDED: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_ppoll,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Tries, from inside, what must not be possible: the act, and what came of it (`refused`, or what happened instead).
pub fn judge(keys: &Path) -> Vec<(String, String)> {
    fn came<T>(result: std::io::Result<T>) -> String {
        match result {
            Ok(_) => "ALLOWED".into(),
            Err(why) if why.kind() == ErrorKind::PermissionDenied => "refused".into(),
            Err(why) => format!("not refused, but failed: {why}"),
        }
    }
    let parent = nix::unistd::getppid();
    let write = |path: &str| OpenOptions::new().create(true).append(true).open(path);
    let exec = std::process::Command::new("/bin/true").status();
    let signal = nix::sys::signal::kill(parent, None).map_err(std::io::Error::from);
    let trace = nix::sys::ptrace::attach(parent).map_err(std::io::Error::from);
    [
        ("connect by TCP", came(std::net::TcpStream::connect(("127.0.0.1", 9)))),
        ("send by UDP", came(std::net::UdpSocket::bind(("127.0.0.1", 0)))),
        ("connect to a local socket", came(UnixStream::connect("/run/dbus/system_bus_socket"))),
        ("open a file for writing", came(write("/tmp/kentledge-worker-was-here"))),
        ("open a file for reading", came(File::open("/etc/passwd"))),
        ("read keys", came(File::open(keys))),
        ("open a tty", came(OpenOptions::new().read(true).write(true).open("/dev/ptmx"))),
        ("open a gpiochip", came(File::open("/dev/gpiochip0"))),
        ("run a program", came(exec)),
        ("trace the supervisor", came(trace)),
        ("signal the supervisor", came(signal)),
        ("read the supervisor's memory", came(File::open(format!("/proc/{parent}/mem")))),
    ]
    .map(|(what, came)| (what.to_owned(), came))
    .to_vec()
}
