//! The worker's self-test: what a worker that was taken over would try, as data, and what came of it. `kentledge model bench`
//! prints the list. Every attempt is harmless where it is let through: it asks and changes nothing, or names what is not there.

use std::{ffi::CString, os::unix::ffi::OsStrExt, path::Path};

use Arg::{Keys, Memory, N, Own, Parent, Text, Zeroes};

use crate::host::sys::{self, Argument};

/// One argument.
#[derive(Debug, Clone, Copy)]
enum Arg {
    /// A number, or null.
    N(i64),
    /// The process id of the daemon.
    Parent,
    /// The worker's own process id.
    Own,
    /// Zeroes in memory.
    Zeroes,
    /// A path.
    Text(&'static std::ffi::CStr),
    /// The path of the keys.
    Keys,
    /// The path of the daemon's memory.
    Memory,
}

/// What is tried, the name of the call, the call, its arguments, and the errors that say it is refused.
type Attempt = (&'static str, &'static str, i64, &'static [Arg], &'static [i32]);

/// The answer of the filter.
const FILTER: &[i32] = &[libc::EPERM];
/// The answer of the filter, or of Landlock, where the filter lets the call through for a driver.
const EITHER: &[i32] = &[libc::EPERM, libc::EACCES];
/// The answer to what must look as if this kernel did not have it.
const ABSENT: &[i32] = &[libc::ENOSYS];

/// The answer of the filter where a driver looks for a server: no such peer. Without the filter the kernel returns EBADF.
const NO_PEER: &[i32] = &[libc::EPERM, libc::ENOENT];

const AT_CWD: Arg = N(libc::AT_FDCWD as i64);
const WRITE: Arg = N((libc::O_WRONLY | libc::O_APPEND | libc::O_CLOEXEC) as i64);
const READ: Arg = N((libc::O_RDONLY | libc::O_CLOEXEC) as i64);
const BOTH: Arg = N((libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC) as i64);
const NOWHERE: Arg = Text(c"/nonexistent/kentledge");
const UNIX: Arg = N(libc::AF_UNIX as i64);
const DGRAM: Arg = N(libc::SOCK_DGRAM as i64);

/// All of them, the supervisor first.
const ATTEMPTS: &[Attempt] = &[
    ("signal the supervisor", "kill", libc::SYS_kill, &[Parent, N(0)], FILTER),
    ("signal the supervisor's thread", "tgkill", libc::SYS_tgkill, &[Parent, Parent, N(0)], FILTER),
    ("signal any thread", "tkill", libc::SYS_tkill, &[Parent, N(0)], FILTER),
    ("queue a signal to the supervisor", "rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, &[Parent, N(0), Zeroes], FILTER),
    (
        "queue a signal to its thread",
        "rt_tgsigqueueinfo",
        libc::SYS_rt_tgsigqueueinfo,
        &[Parent, Parent, N(0), Zeroes],
        FILTER,
    ),
    ("take hold of the supervisor", "pidfd_open", libc::SYS_pidfd_open, &[Parent, N(0)], FILTER),
    ("signal by a hold", "pidfd_send_signal", libc::SYS_pidfd_send_signal, &[N(0), N(0), N(0), N(0)], FILTER),
    ("take a descriptor of the supervisor", "pidfd_getfd", libc::SYS_pidfd_getfd, &[N(0), N(0), N(0)], FILTER),
    ("let the kernel signal the supervisor", "fcntl F_SETOWN", libc::SYS_fcntl, &[N(0), N(8), Parent], FILTER),
    ("read the supervisor's limits", "prlimit64", libc::SYS_prlimit64, &[Parent, N(1), N(0), Zeroes], FILTER),
    ("set a limit of its own", "prlimit64", libc::SYS_prlimit64, &[N(0), N(99), Zeroes, N(0)], FILTER),
    (
        "set the supervisor's processors",
        "sched_setaffinity",
        libc::SYS_sched_setaffinity,
        &[Parent, N(0), N(0)],
        FILTER,
    ),
    (
        "set the supervisor's scheduler",
        "sched_setscheduler",
        libc::SYS_sched_setscheduler,
        &[Parent, N(-1), N(0)],
        FILTER,
    ),
    ("set the supervisor's priority", "sched_setparam", libc::SYS_sched_setparam, &[Parent, N(0)], FILTER),
    ("set the supervisor's attributes", "sched_setattr", libc::SYS_sched_setattr, &[Parent, N(0), N(0)], FILTER),
    ("slow the supervisor down", "setpriority", libc::SYS_setpriority, &[N(9), Parent, N(0)], FILTER),
    ("slow the supervisor's disk down", "ioprio_set", libc::SYS_ioprio_set, &[N(9), Parent, N(0)], FILTER),
    ("change its process group", "setpgid", libc::SYS_setpgid, &[N(-1), N(0)], FILTER),
    ("trace the supervisor", "ptrace", libc::SYS_ptrace, &[N(3), Parent, N(0), Zeroes], FILTER),
    ("read the supervisor's memory", "process_vm_readv", libc::SYS_process_vm_readv, &[Parent], FILTER),
    ("write the supervisor's memory", "process_vm_writev", libc::SYS_process_vm_writev, &[Parent], FILTER),
    ("move the supervisor's pages", "move_pages", libc::SYS_move_pages, &[Parent], FILTER),
    ("open the supervisor's memory", "openat", libc::SYS_openat, &[AT_CWD, Memory, READ], EITHER),
    ("stay when the supervisor ends", "prctl PR_SET_PDEATHSIG", libc::SYS_prctl, &[N(1), N(9)], FILTER),
    ("fork", "clone", libc::SYS_clone, &[N(libc::SIGCHLD as i64)], FILTER),
    ("fork, the new way", "clone3", libc::SYS_clone3, &[Zeroes, N(64)], ABSENT),
    #[cfg(target_arch = "x86_64")]
    ("fork, the old way", "fork", libc::SYS_fork, &[], FILTER),
    ("run a program", "execve", libc::SYS_execve, &[NOWHERE, N(0), N(0)], FILTER),
    ("run a program by descriptor", "execveat", libc::SYS_execveat, &[N(-1), NOWHERE, N(0), N(0), N(0)], FILTER),
    (
        "make a user namespace with a process",
        "clone CLONE_NEWUSER",
        libc::SYS_clone,
        &[N((libc::CLONE_NEWUSER | libc::SIGCHLD) as i64)],
        FILTER,
    ),
    ("make a user namespace", "unshare", libc::SYS_unshare, &[N(libc::CLONE_NEWUSER as i64)], FILTER),
    ("enter a namespace", "setns", libc::SYS_setns, &[N(-1), N(0)], FILTER),
    ("mount", "mount", libc::SYS_mount, &[N(0), NOWHERE, N(0), N(0), N(0)], FILTER),
    ("change the root", "chroot", libc::SYS_chroot, &[NOWHERE], FILTER),
    ("make a network socket", "socket AF_INET", libc::SYS_socket, &[N(libc::AF_INET as i64), DGRAM, N(0)], FILTER),
    ("make a local socket", "socket AF_UNIX", libc::SYS_socket, &[UNIX, DGRAM, N(0)], FILTER),
    ("make a pair of sockets", "socketpair", libc::SYS_socketpair, &[UNIX, DGRAM, N(0), Zeroes], FILTER),
    ("send to a socket by its path", "sendto", libc::SYS_sendto, &[N(0), N(0), N(0), N(0), Zeroes, N(110)], FILTER),
    ("send a descriptor", "sendmsg", libc::SYS_sendmsg, &[N(-1), Zeroes, N(0)], FILTER),
    ("connect", "connect", libc::SYS_connect, &[N(-1), Zeroes, N(16)], NO_PEER),
    ("open a file for writing", "openat", libc::SYS_openat, &[AT_CWD, Text(c"/etc/passwd"), WRITE], EITHER),
    ("open a file for reading", "openat", libc::SYS_openat, &[AT_CWD, Text(c"/etc/passwd"), READ], EITHER),
    ("read keys", "openat", libc::SYS_openat, &[AT_CWD, Keys, READ], EITHER),
    ("open a tty", "openat", libc::SYS_openat, &[AT_CWD, Text(c"/dev/ptmx"), BOTH], EITHER),
    ("open a gpiochip", "openat", libc::SYS_openat, &[AT_CWD, Text(c"/dev/gpiochip0"), READ], EITHER),
    ("open by another call", "openat2", libc::SYS_openat2, &[AT_CWD, NOWHERE, Zeroes, N(24)], FILTER),
    ("open by a handle", "open_by_handle_at", libc::SYS_open_by_handle_at, &[N(-1), Zeroes, N(0)], FILTER),
    (
        "get a handle",
        "name_to_handle_at",
        libc::SYS_name_to_handle_at,
        &[AT_CWD, NOWHERE, Zeroes, Zeroes, N(0)],
        FILTER,
    ),
    ("change a file's mode", "fchmodat", libc::SYS_fchmodat, &[AT_CWD, NOWHERE, N(0o777)], FILTER),
    ("change a file's owner", "fchownat", libc::SYS_fchownat, &[AT_CWD, NOWHERE, N(0), N(0), N(0)], FILTER),
    ("change a file's times", "utimensat", libc::SYS_utimensat, &[AT_CWD, NOWHERE, N(0), N(0)], FILTER),
    ("change a file's attributes", "setxattr", libc::SYS_setxattr, &[NOWHERE, NOWHERE, Zeroes, N(1), N(0)], FILTER),
    ("remove a file", "unlinkat", libc::SYS_unlinkat, &[AT_CWD, NOWHERE, N(0)], FILTER),
    ("rename a file", "renameat2", libc::SYS_renameat2, &[AT_CWD, NOWHERE, AT_CWD, NOWHERE, N(0)], FILTER),
    ("link a file", "linkat", libc::SYS_linkat, &[AT_CWD, NOWHERE, AT_CWD, NOWHERE, N(0)], FILTER),
    ("make a folder", "mkdirat", libc::SYS_mkdirat, &[AT_CWD, NOWHERE, N(0o700)], FILTER),
    ("shorten a file", "truncate", libc::SYS_truncate, &[NOWHERE, N(0)], FILTER),
    ("shorten the shared memory", "ftruncate", libc::SYS_ftruncate, &[N(-1), N(0)], FILTER),
    ("watch files", "inotify_init1", libc::SYS_inotify_init1, &[N(0)], FILTER),
    ("make a file in memory", "memfd_create", libc::SYS_memfd_create, &[Text(c"x"), N(1)], FILTER),
    ("lock memory", "mlockall", libc::SYS_mlockall, &[N(0)], FILTER),
    ("get System V shared memory", "shmget", libc::SYS_shmget, &[N(7_654_321), N(0), N(0)], FILTER),
    ("get a System V queue", "msgget", libc::SYS_msgget, &[N(7_654_321), N(0)], FILTER),
    ("get System V semaphores", "semget", libc::SYS_semget, &[N(7_654_321), N(0), N(0)], FILTER),
    ("open a POSIX queue", "mq_open", libc::SYS_mq_open, &[Text(c"nonexistent"), N(0), N(0), N(0)], FILTER),
    ("set up io_uring", "io_uring_setup", libc::SYS_io_uring_setup, &[N(0), Zeroes], FILTER),
    ("read the kernel's keys", "keyctl", libc::SYS_keyctl, &[N(0), N(-3), N(0)], FILTER),
    ("add a key", "add_key", libc::SYS_add_key, &[N(0), N(0), N(0), N(0), N(0)], FILTER),
    ("load a program into the kernel", "bpf", libc::SYS_bpf, &[N(-1), Zeroes, N(0)], FILTER),
    ("measure others", "perf_event_open", libc::SYS_perf_event_open, &[Zeroes, N(-1), N(-1), N(-1), N(0)], FILTER),
    ("handle page faults", "userfaultfd", libc::SYS_userfaultfd, &[N(-1)], FILTER),
    ("change its personality", "personality", libc::SYS_personality, &[N(0xffff_ffff)], FILTER),
    ("compare with the supervisor", "kcmp", libc::SYS_kcmp, &[Own, Parent, N(1), N(0), N(0)], FILTER),
    ("type into a terminal", "ioctl TIOCSTI", libc::SYS_ioctl, &[N(0), N(libc::TIOCSTI as i64), Zeroes], FILTER),
    ("read the kernel's log", "syslog", libc::SYS_syslog, &[N(10), N(0), N(0)], FILTER),
];

/// Tries all of them: what and by which call, and what came of it (`refused`, or what happened instead).
pub fn judge(keys: &Path) -> Vec<(String, String)> {
    let parent = i64::from(nix::unistd::getppid().as_raw());
    let keys = CString::new(keys.as_os_str().as_bytes()).unwrap_or_default();
    let memory = CString::new(format!("/proc/{parent}/mem")).unwrap_or_default();
    let try_one = |(what, name, call, args, refused): &Attempt| {
        let argument = |at: usize| match args.get(at) {
            None => Argument::Number(0),
            Some(N(number)) => Argument::Number(*number),
            Some(Parent) => Argument::Number(parent),
            Some(Own) => Argument::Number(i64::from(std::process::id())),
            Some(Zeroes) => Argument::Zeroes,
            Some(Text(text)) => Argument::Path(text),
            Some(Keys) => Argument::Path(&keys),
            Some(Memory) => Argument::Path(&memory),
        };
        let came = match sys::attempt(*call, std::array::from_fn(argument)) {
            Ok(_) => "ALLOWED".to_owned(),
            Err(errno) if refused.contains(&errno) => "refused".into(),
            Err(errno) => format!("not refused, but failed: {}", std::io::Error::from_raw_os_error(errno)),
        };
        (format!("{what} ({name})"), came)
    };
    ATTEMPTS.iter().map(try_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_harmless_and_found_out_without_a_sandbox() {
        let found = judge(Path::new("/etc/hostname"));
        assert_eq!(found.len(), ATTEMPTS.len());
        let names: std::collections::BTreeSet<_> = found.iter().map(|(what, _)| what).collect();
        assert_eq!(names.len(), found.len(), "each is named once");
        // Most are let through where nothing refuses them; a few the kernel itself refuses to a process without rights.
        let refused = found.iter().filter(|(_, came)| came == "refused").count();
        assert!(refused * 3 < found.len(), "{found:?}");
    }
}
