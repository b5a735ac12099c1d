//! The system calls a worker may make, as data: allow lists for each step of its life, with conditions on arguments. What
//! is not listed fails with EPERM (but see `ANSWERED`), so that a runtime with a fallback goes on.
//!
//! ```text
//! processor:    LOAD + MODEL + SERVE ─ library loaded ─▶ MODEL + SERVE ─ session built ─▶ SERVE
//! accelerator:  DRIVER + LOAD + MODEL + SERVE, until it ends: drivers open devices and start threads at any time
//! ```
//!
//! Invariants, for every list: no other process is named (a process id is 0 or the worker's own), nothing is forked or
//! executed, no connection is made, and nothing outlives the worker. The processor's lists create no file and no socket.
//! seccomp compares registers, not memory: clone3 has its flags in memory, so it does not exist here, and the C library
//! falls back to clone, whose flags are checked.

use std::collections::BTreeMap;

use seccompiler::{
    SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use When::{Has, Is, IsNot, Own, Zero};

/// A condition on an argument.
#[derive(Debug, Clone, Copy)]
enum When {
    /// The argument at this place is this, as an `int`.
    Is(u8, i32),
    /// It is not this, as an `int`.
    IsNot(u8, i32),
    /// It is null or zero, all 64 bits.
    Zero(u8),
    /// Of these bits exactly those are set.
    Has(u8, i32, i32),
    /// It is the worker's own process id.
    Own(u8),
}

/// A call, and the alternatives under which it is let through: all conditions of one of them; none means always.
type Call = (i64, &'static [&'static [When]]);

const ALWAYS: &[&[When]] = &[];

/// The bits of `clone` that make a thread of this process and nothing else: no new namespace, no process.
const THREAD: i32 = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;
/// MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE.
const MAP_KIND: i32 = 0x0f;
/// Private memory that counts: what grows downwards is held for a stack, which RLIMIT_DATA does not bound.
const PRIVATE: When = Has(3, MAP_KIND | libc::MAP_GROWSDOWN, libc::MAP_PRIVATE);
const NO_CODE: When = Has(2, libc::PROT_EXEC, 0);
/// Shared only with a file behind it.
const FILE: When = Has(3, libc::MAP_ANONYMOUS, 0);
/// What would create or shorten a file. O_TMPFILE has O_DIRECTORY in it, which is no harm by itself.
const CREATE: i32 = libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY);
/// The kind of a socket, without its flags.
const SOCKET_KIND: i32 = 0x0f;
/// From linux/prctl.h: names of mappings, set by the C library's allocator.
const PR_SET_VMA: i32 = 0x5356_4d41;

/// All that answering windows takes: the doorbell, private memory, locks, time, and the way out.
const SERVE: &[Call] = &[
    (libc::SYS_read, ALWAYS),
    (libc::SYS_readv, ALWAYS),
    (libc::SYS_write, ALWAYS),
    (libc::SYS_writev, ALWAYS),
    (libc::SYS_close, ALWAYS),
    (libc::SYS_recvfrom, ALWAYS),
    // Only to the connected peer: with an address it could reach sockets in the file system.
    (libc::SYS_sendto, &[&[Zero(4)]]),
    (libc::SYS_ppoll, ALWAYS),
    // Private memory counts towards RLIMIT_DATA, and no new code is made. Shared memory would count nowhere.
    (libc::SYS_mmap, &[&[PRIVATE, NO_CODE]]),
    (libc::SYS_mprotect, &[&[NO_CODE]]),
    (libc::SYS_munmap, ALWAYS),
    (libc::SYS_mremap, ALWAYS),
    (libc::SYS_madvise, ALWAYS),
    (libc::SYS_brk, ALWAYS),
    (libc::SYS_futex, ALWAYS),
    (libc::SYS_sched_yield, ALWAYS),
    (libc::SYS_sched_getaffinity, &[&[Is(0, 0)], &[Own(0)]]),
    (libc::SYS_getcpu, ALWAYS),
    (libc::SYS_clock_gettime, ALWAYS),
    (libc::SYS_clock_getres, ALWAYS),
    (libc::SYS_clock_nanosleep, ALWAYS),
    (libc::SYS_nanosleep, ALWAYS),
    (libc::SYS_gettimeofday, ALWAYS),
    (libc::SYS_getrandom, ALWAYS),
    (libc::SYS_getpid, ALWAYS),
    (libc::SYS_getppid, ALWAYS),
    (libc::SYS_gettid, ALWAYS),
    // abort() signals its own thread.
    (libc::SYS_tgkill, &[&[Own(0)]]),
    (libc::SYS_rt_sigaction, ALWAYS),
    (libc::SYS_rt_sigprocmask, ALWAYS),
    (libc::SYS_rt_sigreturn, ALWAYS),
    (libc::SYS_sigaltstack, ALWAYS),
    (libc::SYS_restart_syscall, ALWAYS),
    (libc::SYS_exit, ALWAYS),
    (libc::SYS_exit_group, ALWAYS),
];

/// What building a session and mapping the tensors takes beside that; no file is opened any more.
const MODEL: &[Call] = &[
    // The shared memory comes as a descriptor; none can be sent: sendmsg is in no list.
    (libc::SYS_recvmsg, ALWAYS),
    (libc::SYS_mmap, &[&[FILE, NO_CODE]]),
    // The C library's fstat.
    (libc::SYS_fstat, ALWAYS),
    (libc::SYS_newfstatat, &[&[Is(3, libc::AT_EMPTY_PATH)]]),
    (libc::SYS_lseek, ALWAYS),
    // Seals and flags. Not F_SETOWN or F_SETSIG: they make the kernel signal another process.
    (
        libc::SYS_fcntl,
        &[
            &[Is(1, libc::F_GETFD)],
            &[Is(1, libc::F_SETFD)],
            &[Is(1, libc::F_GETFL)],
            &[Is(1, libc::F_GET_SEALS)],
            &[Is(1, libc::F_DUPFD_CLOEXEC)],
        ],
    ),
    (libc::SYS_prlimit64, &[&[Is(0, 0), Zero(2)], &[Own(0), Zero(2)]]),
    (libc::SYS_sysinfo, ALWAYS),
    (libc::SYS_uname, ALWAYS),
    // For the next, narrower step. Not PR_SET_PDEATHSIG: the worker would outlive its parent.
    (libc::SYS_seccomp, ALWAYS),
    (libc::SYS_prctl, &[&[Is(0, libc::PR_SET_NO_NEW_PRIVS)], &[Is(0, PR_SET_VMA)]]),
];

/// What loading the runtime's library takes beside that: files, to read; code.
const LOAD: &[Call] = &[
    (libc::SYS_openat, &[&[Has(2, libc::O_ACCMODE | CREATE, libc::O_RDONLY)]]),
    (libc::SYS_pread64, ALWAYS),
    (libc::SYS_newfstatat, ALWAYS),
    (libc::SYS_statx, ALWAYS),
    (libc::SYS_fstatfs, ALWAYS),
    (libc::SYS_statfs, ALWAYS),
    (libc::SYS_readlinkat, ALWAYS),
    (libc::SYS_faccessat, ALWAYS),
    (libc::SYS_faccessat2, ALWAYS),
    (libc::SYS_getdents64, ALWAYS),
    (libc::SYS_getcwd, ALWAYS),
    (libc::SYS_fadvise64, ALWAYS),
    (libc::SYS_mmap, &[&[PRIVATE], &[FILE]]),
    (libc::SYS_mprotect, ALWAYS),
    (libc::SYS_prctl, &[&[Is(0, libc::PR_SET_NAME)], &[Is(0, libc::PR_GET_NAME)]]),
    (libc::SYS_getuid, ALWAYS),
    (libc::SYS_geteuid, ALWAYS),
    (libc::SYS_getgid, ALWAYS),
    (libc::SYS_getegid, ALWAYS),
    (libc::SYS_getrusage, ALWAYS),
    (libc::SYS_times, ALWAYS),
    (libc::SYS_membarrier, ALWAYS),
    (libc::SYS_set_robust_list, ALWAYS),
    (libc::SYS_rseq, ALWAYS),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, &[&[Has(1, libc::O_ACCMODE | CREATE, libc::O_RDONLY)]]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_stat, ALWAYS),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lstat, ALWAYS),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_access, ALWAYS),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_readlink, ALWAYS),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, ALWAYS),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_time, ALWAYS),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_getrlimit, &[]),
    // Permission for the processor's matrix unit (AMX); nothing of the address space.
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_arch_prctl, &[&[Is(0, 0x1021)], &[Is(0, 0x1022)], &[Is(0, 0x1023)]]),
];

/// What a driver's library takes beside that, when it likes: its devices, threads of this process, waiting for events.
const DRIVER: &[Call] = &[
    // Landlock says which devices may be written, and that nothing is created. CUDA names its threads through
    // /proc/self/task with O_CREAT and O_TRUNC, and gives up where it cannot.
    (libc::SYS_openat, ALWAYS),
    // Not what writes into a terminal's input, nor what makes the kernel signal another process.
    (
        libc::SYS_ioctl,
        &[&[
            IsNot(1, libc::TIOCSTI as i32),
            IsNot(1, libc::TIOCLINUX as i32),
            IsNot(1, libc::TIOCSETD as i32),
            IsNot(1, 0x8901), // FIOSETOWN
            IsNot(1, 0x8902), // SIOCSPGRP
            IsNot(1, libc::FIOASYNC as i32),
        ]],
    ),
    // CUDA also makes a socket with an abstract name and listens on it, and gives up where it cannot. It gets no peer:
    // connect, accept and sendmsg are in no list.
    (libc::SYS_socket, &[&[Is(0, libc::AF_UNIX), Has(1, SOCKET_KIND, libc::SOCK_SEQPACKET)]]),
    (libc::SYS_setsockopt, &[&[Is(1, libc::SOL_SOCKET), Is(2, libc::SO_PASSCRED)]]),
    (libc::SYS_bind, ALWAYS),
    (libc::SYS_listen, ALWAYS),
    // Memory shared between threads: resident as long as it is mapped, and looked at from outside like the rest.
    (libc::SYS_mmap, ALWAYS),
    (libc::SYS_clone, &[&[Has(0, THREAD | NAMESPACES, THREAD)]]),
    (libc::SYS_set_tid_address, ALWAYS),
    (libc::SYS_fcntl, &[&[Is(1, libc::F_SETFL)], &[Is(1, libc::F_DUPFD)]]),
    (libc::SYS_eventfd2, ALWAYS),
    (libc::SYS_epoll_create1, ALWAYS),
    (libc::SYS_epoll_ctl, ALWAYS),
    (libc::SYS_epoll_pwait, ALWAYS),
    (libc::SYS_timerfd_create, ALWAYS),
    (libc::SYS_timerfd_settime, ALWAYS),
    (libc::SYS_timerfd_gettime, ALWAYS),
    (libc::SYS_pipe2, ALWAYS),
    (libc::SYS_dup, ALWAYS),
    (libc::SYS_dup3, ALWAYS),
    (libc::SYS_pselect6, ALWAYS),
    (libc::SYS_flock, ALWAYS),
    (libc::SYS_msync, ALWAYS),
    (libc::SYS_mincore, ALWAYS),
    (libc::SYS_sched_setaffinity, &[&[Is(0, 0)], &[Own(0)]]),
    (libc::SYS_sched_getscheduler, &[&[Is(0, 0)], &[Own(0)]]),
    (libc::SYS_sched_getparam, &[&[Is(0, 0)], &[Own(0)]]),
    (libc::SYS_sched_get_priority_max, ALWAYS),
    (libc::SYS_sched_get_priority_min, ALWAYS),
    (libc::SYS_get_mempolicy, ALWAYS),
    (libc::SYS_set_mempolicy, ALWAYS),
    (libc::SYS_mbind, ALWAYS),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, ALWAYS),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_pipe, ALWAYS),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_dup2, ALWAYS),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, ALWAYS),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_select, ALWAYS),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_getdents, ALWAYS),
];

/// What writing an engine takes beside that: files of one folder, as Landlock says.
const BUILD: &[Call] = &[
    (libc::SYS_pwrite64, ALWAYS),
    (libc::SYS_ftruncate, ALWAYS),
    (libc::SYS_fallocate, ALWAYS),
    (libc::SYS_fsync, ALWAYS),
    (libc::SYS_fdatasync, ALWAYS),
    (libc::SYS_renameat2, ALWAYS),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, ALWAYS),
    (libc::SYS_renameat, ALWAYS),
];

/// How far a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Before a driver's library is loaded, in a worker that builds an engine and ends.
    Build,
    /// Before a driver's library is loaded, and ever after.
    Driver,
    /// Before the runtime's library is loaded.
    Load,
    /// Before the model's bytes are read.
    Model,
    /// Before the first window.
    Serve,
}

impl Step {
    fn lists(self) -> &'static [&'static [Call]] {
        match self {
            Self::Build => &[SERVE, MODEL, LOAD, DRIVER, BUILD],
            Self::Driver => &[SERVE, MODEL, LOAD, DRIVER],
            Self::Load => &[SERVE, MODEL, LOAD],
            Self::Model => &[SERVE, MODEL],
            Self::Serve => &[SERVE],
        }
    }
}

/// Limits this process to the calls of this step. This cannot be undone.
pub fn leave_only(step: Step) -> Result<(), String> {
    let own = std::process::id();
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut always: Vec<i64> = Vec::new();
    for (call, alternatives) in step.lists().iter().copied().flatten() {
        let of_call = rules.entry(*call).or_default();
        if alternatives.is_empty() {
            always.push(*call);
        }
        for conditions in *alternatives {
            let conditions: Result<Vec<_>, String> = conditions.iter().map(|when| condition(*when, own)).collect();
            of_call.push(SeccompRule::new(conditions?).map_err(text)?);
        }
    }
    // No rules means no conditions.
    always.iter().for_each(|call| drop(rules.insert(*call, Vec::new())));
    // Two filters stand, and the stricter answer counts: this list lets pass what the other one answers with its own error.
    let answered = if matches!(step, Step::Driver | Step::Build) { ANSWERED } else { &ANSWERED[..1] };
    let of_builders = if step == Step::Build { ANSWERED_TO_BUILDERS } else { &[] };
    answered.iter().chain(of_builders).for_each(|(call, _)| drop(rules.insert(*call, Vec::new())));
    apply(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

/// Refused with an error of their own. clone3: this kernel does not have it, and the C library takes clone. The others are for
/// drivers: CUDA looks for a server of its own and removes an old socket, and gives up unless the answer is that nothing is
/// there.
const ANSWERED: &[(i64, i32)] = &[
    (libc::SYS_clone3, libc::ENOSYS),
    (libc::SYS_connect, libc::ENOENT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, libc::ENOENT),
    #[cfg(not(target_arch = "x86_64"))]
    (libc::SYS_unlinkat, libc::ENOENT),
];

/// Answered as if they were done, to a worker that builds an engine: OpenVINO makes its file read-only, and gives up where it cannot. No
/// filter sees whose file a path names, and Landlock does not look at modes.
const ANSWERED_TO_BUILDERS: &[(i64, i32)] = &[
    (libc::SYS_fchmodat, 0),
    (libc::SYS_fchmod, 0),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, 0),
];

/// Answers these calls with their own errors. This cannot be undone. `leave_only` rejects the others.
pub fn leave_out_answered(builds: bool) -> Result<(), String> {
    let of_builders = if builds { ANSWERED_TO_BUILDERS } else { &[] };
    ANSWERED.iter().chain(of_builders).try_for_each(|(call, error)| {
        apply(BTreeMap::from([(*call, Vec::new())]), SeccompAction::Allow, SeccompAction::Errno(*error as u32))
    })
}

fn condition(when: When, own: u32) -> Result<SeccompCondition, String> {
    // A process id or flag is an `int`: the kernel does not look at the upper half, so neither does the filter.
    let (at, len, op, value) = match when {
        Is(at, value) => (at, Len::Dword, Op::Eq, value as u32),
        IsNot(at, value) => (at, Len::Dword, Op::Ne, value as u32),
        Zero(at) => (at, Len::Qword, Op::Eq, 0),
        Has(at, of, value) => (at, Len::Dword, Op::MaskedEq(u64::from(of as u32)), value as u32),
        Own(at) => (at, Len::Dword, Op::Eq, own),
    };
    SeccompCondition::new(at, len, op, u64::from(value)).map_err(text)
}

fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, other: SeccompAction, these: SeccompAction) -> Result<(), String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(text)?;
    let filter = SeccompFilter::new(rules, other, these, arch).map_err(text)?;
    let program: seccompiler::BpfProgram = filter.try_into().map_err(text)?;
    seccompiler::apply_filter_all_threads(&program).map_err(text)
}

fn text(why: impl std::fmt::Display) -> String {
    format!("seccomp: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_narrower_than_the_previous_one_and_none_names_another_process() {
        let calls =
            |step: Step| -> Vec<i64> { step.lists().iter().copied().flatten().map(|(call, _)| *call).collect() };
        let (build, driver, load, model, serve) =
            (calls(Step::Build), calls(Step::Driver), calls(Step::Load), calls(Step::Model), calls(Step::Serve));
        assert!(
            driver.len() < build.len()
                && load.len() < driver.len()
                && model.len() < load.len()
                && serve.len() < model.len()
        );
        for call in [
            libc::SYS_kill,
            libc::SYS_execve,
            libc::SYS_connect,
            libc::SYS_accept,
            libc::SYS_accept4,
            libc::SYS_sendmsg,
            libc::SYS_memfd_create,
        ] {
            assert!(!build.contains(&call), "{call}");
        }
        // Calls whose first argument is a process id let through 0 and the own one alone.
        let by_pid = [
            libc::SYS_tgkill,
            libc::SYS_prlimit64,
            libc::SYS_sched_getaffinity,
            libc::SYS_sched_setaffinity,
            libc::SYS_sched_getparam,
            libc::SYS_sched_getscheduler,
        ];
        for (call, alternatives) in Step::Build.lists().iter().copied().flatten() {
            if by_pid.contains(call) {
                let own = |all: &&[When]| all.iter().any(|when| matches!(when, Own(0) | Is(0, 0)));
                assert!(!alternatives.is_empty() && alternatives.iter().all(own), "{call}");
            }
        }
    }
}
