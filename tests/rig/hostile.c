// A worker that was taken over: a library that the real worker loads as its ONNX Runtime. Its constructor runs inside the
// sandbox, in the first moment that is not ours, and never returns. It speaks the channel's protocol on descriptor 0. What it
// does is chosen by MODE when it is compiled (rig/hostile.rs).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum { TRY = 1, NO_SIZES, WRAPPING_SIZES, RAISE_DONE, DONE_AT_ONCE, FLOOD_STDERR, SHORTEN, HUGE_SHAPE, STALE_ANSWERS, SEND_DESCRIPTORS };

static char said[100000];

static void say(const char *text) { send(0, text, strlen(text), MSG_NOSIGNAL); }

static int hear_fd(void) {
    static char bytes[200000];
    char control[256];
    struct iovec io = {bytes, sizeof bytes - 1};
    struct msghdr message = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(0, &message, 0);
    if (n <= 0) _exit(0);
    bytes[n] = 0;
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message);
    return cmsg ? *(int *)CMSG_DATA(cmsg) : -1;
}

// One attempt: what was let through is put on the list.
static long note(const char *what, long result) {
    if (result >= 0) {
        strcat(said, what);
        strcat(said, ", ");
    }
    return result;
}
#define TRY_CALL(what, ...) note(what, syscall(__VA_ARGS__))

static void forked(const char *what, long pid) {
    if (pid == 0) _exit(0);
    note(what, pid);
}

static void try_everything(void) {
    pid_t parent = getppid(), own = getpid();
    char path[64], buffer[4096] = {0};
    unsigned long mask[16] = {1};
    struct iovec here = {buffer, 8}, there = {buffer, 8};
    struct sockaddr_un journal = {.sun_family = AF_UNIX, .sun_path = "/run/systemd/journal/dev-log"};
    struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
    // The supervisor.
    TRY_CALL("kill", SYS_kill, parent, 0);
    TRY_CALL("kill a group", SYS_kill, 0, 0);
    TRY_CALL("tgkill", SYS_tgkill, parent, parent, 0);
    TRY_CALL("tkill", SYS_tkill, parent, 0);
    siginfo_t info = {.si_code = SI_QUEUE};
    TRY_CALL("rt_sigqueueinfo", SYS_rt_sigqueueinfo, parent, 0, &info);
    TRY_CALL("rt_tgsigqueueinfo", SYS_rt_tgsigqueueinfo, parent, parent, 0, &info);
    TRY_CALL("pidfd_open", SYS_pidfd_open, parent, 0);
    TRY_CALL("prlimit of the parent", SYS_prlimit64, parent, RLIMIT_FSIZE, NULL, &limit);
    TRY_CALL("sched_getaffinity", SYS_sched_getaffinity, parent, sizeof mask, mask);
    TRY_CALL("sched_setaffinity", SYS_sched_setaffinity, parent, sizeof mask, mask);
    struct sched_param param = {0};
    TRY_CALL("sched_setscheduler", SYS_sched_setscheduler, parent, SCHED_OTHER, &param);
    TRY_CALL("setpriority", SYS_setpriority, PRIO_PROCESS, parent, 0);
    TRY_CALL("ioprio_set", SYS_ioprio_set, 1, parent, 0);
    TRY_CALL("process_vm_readv", SYS_process_vm_readv, parent, &here, 0, &there, 0, 0);
    if (TRY_CALL("ptrace", SYS_ptrace, PTRACE_SEIZE, parent, 0, 0) >= 0) ptrace(PTRACE_DETACH, parent, 0, 0);
    snprintf(path, sizeof path, "/proc/%d/mem", parent);
    TRY_CALL("write the parent's memory", SYS_openat, AT_FDCWD, path, O_RDWR);
    TRY_CALL("READ the parent's memory", SYS_openat, AT_FDCWD, path, O_RDONLY);
    TRY_CALL("READ /etc/shadow", SYS_openat, AT_FDCWD, "/etc/shadow", O_RDONLY);
    TRY_CALL("fcntl F_SETOWN", SYS_fcntl, 0, F_SETOWN, parent);
    TRY_CALL("fcntl F_SETSIG", SYS_fcntl, 0, F_SETSIG, SIGKILL);
    TRY_CALL("ioctl FIOSETOWN", SYS_ioctl, 0, FIOSETOWN, &parent);
    TRY_CALL("kcmp", SYS_kcmp, own, parent, 1, 0, 0);
    // To outlive it.
    forked("clone", syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    forked("clone CLONE_PARENT", syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0));
    forked("clone CLONE_NEWUSER", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    uint64_t clone_args[8] = {0, 0, 0, 0, SIGCHLD};
    forked("clone3", syscall(SYS_clone3, clone_args, sizeof clone_args));
    TRY_CALL("execve", SYS_execve, "/bin/true", NULL, NULL);
    TRY_CALL("unshare", SYS_unshare, CLONE_NEWUSER);
    TRY_CALL("setsid", SYS_setsid);
    TRY_CALL("setpgid", SYS_setpgid, 0, 0);
    TRY_CALL("prctl PR_SET_PDEATHSIG", SYS_prctl, 1, 0, 0, 0, 0);
    TRY_CALL("prctl PR_SET_PTRACER", SYS_prctl, 0x59616d61, parent, 0, 0, 0);
    TRY_CALL("prctl PR_SET_DUMPABLE", SYS_prctl, 4, 1, 0, 0, 0);
    TRY_CALL("setrlimit", SYS_prlimit64, 0, RLIMIT_FSIZE, &limit, NULL);
    // Other programs, files.
    int s = TRY_CALL("socket AF_UNIX", SYS_socket, AF_UNIX, SOCK_DGRAM, 0);
    if (s >= 0 && sendto(s, "forged", 6, 0, (void *)&journal, sizeof journal) >= 0) note("a forged journal entry", 0);
    TRY_CALL("socket AF_INET", SYS_socket, AF_INET, SOCK_STREAM, 0);
    TRY_CALL("socket AF_NETLINK", SYS_socket, AF_NETLINK, SOCK_RAW, 0);
    TRY_CALL("socket AF_ALG", SYS_socket, 38, SOCK_SEQPACKET, 0);
    int pair[2];
    TRY_CALL("socketpair", SYS_socketpair, AF_UNIX, SOCK_DGRAM, 0, pair);
    // An invalid descriptor: if the filter lets the call through, the error is EBADF.
    if (sendto(-1, "x", 1, 0, (void *)&journal, sizeof journal) >= 0 || errno != EPERM) note("sendto with an address", 0);
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec one = {"{}", 2};
    struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message);
    cmsg->cmsg_level = SOL_SOCKET, cmsg->cmsg_type = SCM_RIGHTS, cmsg->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cmsg), &(int){0}, sizeof(int));
    if (MODE == TRY) TRY_CALL("send a descriptor", SYS_sendmsg, -1, &message, 0);
    TRY_CALL("openat O_CREAT", SYS_openat, AT_FDCWD, "/tmp/kentledge-hostile", O_WRONLY | O_CREAT, 0600);
    TRY_CALL("openat O_TMPFILE", SYS_openat, AT_FDCWD, "/tmp", O_RDWR | O_TMPFILE, 0600);
    TRY_CALL("openat O_WRONLY", SYS_openat, AT_FDCWD, "/dev/null", O_WRONLY);
    TRY_CALL("mkdirat", SYS_mkdirat, AT_FDCWD, "/tmp/kentledge-hostile.d", 0700);
    TRY_CALL("symlinkat", SYS_symlinkat, "/", AT_FDCWD, "/tmp/kentledge-hostile.l");
    TRY_CALL("fchmodat", SYS_fchmodat, AT_FDCWD, "/tmp", 01777);
    TRY_CALL("fchownat", SYS_fchownat, AT_FDCWD, "/tmp", 0, 0, 0);
    TRY_CALL("utimensat", SYS_utimensat, AT_FDCWD, "/tmp", NULL, 0);
    TRY_CALL("setxattr", SYS_setxattr, "/tmp", "user.x", "x", 1, 0);
    TRY_CALL("fchmod", SYS_fchmod, 0, 0600);
    TRY_CALL("fchown", SYS_fchown, 0, 0, 0);
#ifdef SYS_chmod
    TRY_CALL("chmod", SYS_chmod, "/tmp", 01777);
    TRY_CALL("rename", SYS_rename, "/tmp/kentledge-hostile", "/tmp/kentledge-hostile.2");
    TRY_CALL("creat", SYS_creat, "/tmp/kentledge-hostile.3", 0600);
    TRY_CALL("open O_CREAT", SYS_open, "/tmp/kentledge-hostile.4", O_RDWR | O_CREAT, 0600);
    forked("fork", syscall(SYS_fork));
#endif
    // What is counted nowhere, and the kernel's far corners.
    TRY_CALL("memfd_create", SYS_memfd_create, "x", 0);
    TRY_CALL("memfd_secret", 447, 0);
    if (mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) note("mmap MAP_SHARED", 0);
    int down = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN;
    if (mmap(0, 4096, PROT_READ | PROT_WRITE, down, -1, 0) != MAP_FAILED) note("mmap MAP_GROWSDOWN", 0);
    if (mmap(0, 1UL << 36, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED) note("mmap 64 GiB", 0);
    int id = TRY_CALL("shmget", SYS_shmget, IPC_PRIVATE, 4096, 01600);
    if (id >= 0) syscall(SYS_shmctl, id, 0, 0);
    if ((id = TRY_CALL("msgget", SYS_msgget, IPC_PRIVATE, 01600)) >= 0) syscall(SYS_msgctl, id, 0, 0);
    if ((id = TRY_CALL("semget", SYS_semget, IPC_PRIVATE, 1, 01600)) >= 0) syscall(SYS_semctl, id, 0, 0, 0);
    if (TRY_CALL("mq_open", SYS_mq_open, "kentledge-hostile", O_RDWR | O_CREAT, 0600, NULL) >= 0)
        syscall(SYS_mq_unlink, "kentledge-hostile");
    TRY_CALL("io_uring_setup", SYS_io_uring_setup, 4, buffer);
    TRY_CALL("keyctl", SYS_keyctl, 0, -3, 1);
    TRY_CALL("add_key", SYS_add_key, "user", "x", "x", 1, -2);
    TRY_CALL("userfaultfd", SYS_userfaultfd, O_CLOEXEC);
    uint32_t perf[32] = {1, sizeof perf};
    TRY_CALL("perf_event_open", SYS_perf_event_open, perf, 0, -1, -1, 0);
    TRY_CALL("bpf", SYS_bpf, 0, buffer, 128);
    TRY_CALL("inotify_init1", SYS_inotify_init1, 0);
    TRY_CALL("fanotify_init", SYS_fanotify_init, 0, 0);
    TRY_CALL("pipe2", SYS_pipe2, pair, 0);
    TRY_CALL("epoll_create1", SYS_epoll_create1, 0);
    TRY_CALL("personality", SYS_personality, 0xffffffff);
    TRY_CALL("chroot", SYS_chroot, "/");
    TRY_CALL("mount", SYS_mount, "none", "/nonexistent", "tmpfs", 0, "");
    TRY_CALL("sethostname", SYS_sethostname, "x", 0);
    TRY_CALL("landlock_create_ruleset", SYS_landlock_create_ruleset, NULL, 0, 1);
}

static void flood(void) {
    char line[] = "the quick brown fox jumps over the lazy dog and writes it to its standard error\n";
    for (int i = 0; i < 100000; i++) (void)!write(2, line, sizeof line - 1);
}

__attribute__((constructor)) static void take_over(void) {
    if (MODE == TRY) {
        strcpy(said, "{\"Err\":\"let through: ");
        try_everything();
        strcat(said, "nothing else\"}");
        say(said);
        _exit(0);
    }
    if (MODE == SEND_DESCRIPTORS) {
        char text[100], control[CMSG_SPACE(2 * sizeof(int))] = {0};
        int fds[2] = {2, 2};
        struct iovec one = {text, snprintf(text, sizeof text, "{\"Err\":\"descriptors of %d\"}", getpid())};
        struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message);
        cmsg->cmsg_level = SOL_SOCKET, cmsg->cmsg_type = SCM_RIGHTS, cmsg->cmsg_len = CMSG_LEN(sizeof fds);
        memcpy(CMSG_DATA(cmsg), fds, sizeof fds);
        if (sendmsg(0, &message, MSG_NOSIGNAL) < 0) say(text);
        _exit(0);
    }
    const char *shape = MODE == HUGE_SHAPE ? "[9223372036854775807,4,2]" : "[1,4,2]";
    char loaded[1000];
    snprintf(loaded, sizeof loaded,
             "{\"Ok\":{\"inputs\":[{\"name\":\"x\",\"kind\":\"float32\",\"shape\":%s}],\"outputs\":[{\"name\":\"score\",\"kind\":"
             "\"float32\",\"shape\":[1]}],\"runtime\":\"hostile\",\"placement\":[],\"sandbox\":\"\"}}",
             shape);
    say(loaded);
    hear_fd();
    say(MODE == NO_SIZES         ? "{\"Ok\":{\"outputs\":[]}}"
        : MODE == WRAPPING_SIZES ? "{\"Ok\":{\"outputs\":[18446744073709551615]}}"
                                 : "{\"Ok\":{\"outputs\":[1]}}");
    int memory = hear_fd();
    volatile uint32_t *done = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (MODE == FLOOD_STDERR) flood();
    say("{\"Ok\":{\"judged\":[]}}");
    uint32_t ring[2];
    while (recv(0, ring, sizeof ring, 0) == sizeof ring) {
        if (MODE == SHORTEN && ftruncate(memory, 0) < 0) _exit(3);
        if (MODE == DONE_AT_ONCE) {
            *done = 0xffffffff;
            _exit(4);
        }
        while (MODE == RAISE_DONE) {
            *done += 1;
            usleep(1000);
        }
        if (MODE == FLOOD_STDERR) flood();
        // Twice: the second answers a ring that was not made yet.
        for (int i = 0; i <= (MODE == STALE_ANSWERS); i++) send(0, ring, sizeof ring, MSG_NOSIGNAL);
    }
    _exit(0);
}
