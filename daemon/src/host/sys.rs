//! The one module with `unsafe`: system calls for which no safe wrapper exists in our libraries. Each function is
//! safe to call with any argument.
#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    fs::File,
    io::{Read, Write},
    num::NonZeroUsize,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    os::unix::process::CommandExt,
    process::Command,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, ProtFlags, mmap, munmap},
        prctl,
        signal::Signal,
    },
};

use super::defence::Defence;

/// Whether the kernel holds its wall clock to be synchronised (adjtimex: no STA_UNSYNC, no TIME_ERROR).
pub fn clock_is_synchronised() -> bool {
    // SAFETY: `timex` is plain old data for which all zeroes is valid; modes = 0 only reads.
    unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        let state = libc::adjtimex(&raw mut timex);
        state >= 0 && state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0
    }
}

/// Bounds this process's memory: what asks for more is refused it.
pub fn limit_memory(bytes: u64) {
    use nix::sys::resource::{Resource, setrlimit};
    let set = setrlimit(Resource::RLIMIT_AS, bytes, bytes).and_then(|()| setrlimit(Resource::RLIMIT_CORE, 0, 0));
    if let Err(why) = set {
        tracing::warn!("limit the memory of this process: {why}");
    }
}

/// Bounds what the kernel holds unsent on a TCP connection (TCP_NOTSENT_LOWAT), so that what is urgent waits behind no more than
/// that. What it does not take stays as it was.
pub fn limit_unsent(tcp: RawFd, bytes: u32) {
    let size = size_of::<u32>() as libc::socklen_t;
    // SAFETY: the kernel reads four bytes from a local value; `tcp` is only passed on.
    unsafe {
        libc::setsockopt(tcp, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, (&raw const bytes).cast(), size);
    }
}

/// Bytes the kernel lost on a tty for want of room, since it was opened by anyone (TIOCGICOUNT: overrun and
/// buffer overrun). `None` where the driver does not count, as ptys do not.
pub fn tty_overruns(tty: RawFd) -> Option<u64> {
    // SAFETY: the kernel writes one `serial_icounter_struct` (20 ints) or nothing; `tty` is only passed on.
    unsafe {
        let mut counters = [0i32; 20];
        let ok = libc::ioctl(tty, libc::TIOCGICOUNT, counters.as_mut_ptr());
        // cts dsr rng dcd rx tx frame overrun parity brk buf_overrun
        (ok == 0).then(|| counters[7].max(0) as u64 + counters[10].max(0) as u64)
    }
}

/// Whether the device behind a tty waits while nobody reads: that of a pseudo-terminal, and one of the USB class CDC ACM, whose bus has a
/// flow control. A UART's bytes are lost. By the kernel's numbers of devices (its `devices.txt`).
pub fn tty_waits(tty: RawFd) -> bool {
    // SAFETY: `stat` is plain old data for which all zeroes is valid; the kernel fills it or leaves it; `tty` is only passed on.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(tty, &raw mut stat) == 0 && matches!(libc::major(stat.st_rdev), 136..=143 | 166)
    }
}

/// Takes the lock on an open file, unless another open of the same file has it. It is a lock of its own beside `flock`, which
/// serial libraries use while they open, and ends with the last descriptor of this open (F_OFD_SETLK).
pub fn lock_file(file: RawFd) -> bool {
    lock(file, libc::F_WRLCK)
}

/// Gives that lock back.
pub fn unlock_file(file: RawFd) {
    lock(file, libc::F_UNLCK);
}

fn lock(file: RawFd, kind: libc::c_int) -> bool {
    // SAFETY: `flock` is plain old data for which all zeroes is valid (the whole file), and is only read; a descriptor that
    // is not open is an error.
    unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = kind as libc::c_short;
        libc::fcntl(file, libc::F_OFD_SETLK, &raw const lock) == 0
    }
}

/// Whether a process set a tty exclusive (TIOCEXCL): then only root can open it.
pub fn tty_is_exclusive(tty: &File) -> bool {
    // SAFETY: the kernel writes one int or nothing; the descriptor is open for as long as `tty` is borrowed.
    unsafe {
        let mut exclusive = 0i32;
        libc::ioctl(tty.as_raw_fd(), libc::TIOCGEXCL, &raw mut exclusive) == 0 && exclusive != 0
    }
}

/// Makes the child die with the thread that starts it, even when this process is killed.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = nix::unistd::getpid();
    let bind = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // A parent that ended before that sends no signal any more.
        let orphan = nix::unistd::getppid() != parent;
        if orphan { Err(std::io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(()) }
    };
    // SAFETY: prctl and getppid are async-signal-safe and touch nothing of the parent.
    unsafe { command.pre_exec(bind) }
}

/// Bytes of a page of memory: 4 KiB on most machines, 16 KiB on a Raspberry Pi 5.
pub fn page_bytes() -> u64 {
    // SAFETY: reads a constant of the system.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0).unwrap_or(4096)
}

/// Unmaps the pages of the program and its libraries that were touched so far; what is used again is mapped again, from the page
/// cache, 16 pages at a fault. Most of the program runs once, at the start. Only segments that were never writable are given back,
/// so what the loader relocated stays. A debugger that set breakpoints by changing the program loses them here.
pub fn release_program() {
    // SAFETY: the callback is called while the loader's lock holds each object in place, and `info` is valid during the call. The
    // kernel drops pages that it can read again from the file: they are private, and neither the program nor the loader could
    // write to them. What madvise refuses stays as it was.
    unsafe {
        libc::dl_iterate_phdr(Some(release_object), std::ptr::null_mut());
    }
}

/// One program or library, for `release_program`.
unsafe extern "C" fn release_object(
    info: *mut libc::dl_phdr_info,
    _: libc::size_t,
    _: *mut libc::c_void,
) -> libc::c_int {
    let page = page_bytes() as usize;
    // SAFETY: see `release_program`.
    unsafe {
        let info = &*info;
        for at in 0..usize::from(info.dlpi_phnum) {
            let segment = &*info.dlpi_phdr.add(at);
            if segment.p_type != libc::PT_LOAD || segment.p_flags & libc::PF_W != 0 {
                continue;
            }
            // Whole pages of this segment: the first and the last may be shared with a neighbour that is writable.
            let start = (info.dlpi_addr as usize + segment.p_vaddr as usize).next_multiple_of(page);
            let end = (info.dlpi_addr as usize + segment.p_vaddr as usize + segment.p_filesz as usize) / page * page;
            if end > start {
                libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
            }
        }
    }
    0
}

/// An argument of `attempt`.
#[derive(Debug, Clone, Copy)]
pub enum Argument<'a> {
    /// A number; null where the call wants a pointer.
    Number(i64),
    /// A path.
    Path(&'a CStr),
    /// 4 KiB of zeroes that the call may write to.
    Zeroes,
}

/// Makes one system call to see whether it is let through; the number it answers, or the error. What it makes is left as it
/// is; a process that it forks ends at once. Calls that could take memory from under this process are not made (EINVAL).
///
/// # Errors
/// No process could be started.
pub fn attempt(call: i64, arguments: [Argument<'_>; 6]) -> Result<i64, i32> {
    let mut zeroes = [0u64; 512];
    let pointer = zeroes.as_mut_ptr();
    let is_number = |at: usize| matches!(arguments[at], Argument::Number(_));
    let numbers = arguments.map(|argument| match argument {
        Argument::Number(number) => number,
        Argument::Path(path) => path.as_ptr() as i64,
        Argument::Zeroes => pointer as i64,
    });
    let forks = match call {
        libc::SYS_clone => numbers[0] & i64::from(libc::CLONE_VM) == 0,
        libc::SYS_clone3 => true,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork => true,
        _ => false,
    };
    // A number could be an address of anything; small numbers are no addresses.
    let wild = (0..6).any(|at| is_number(at) && !(-4096..1 << 32).contains(&numbers[at]));
    if wild || NOT_ATTEMPTED.contains(&call) || (call == libc::SYS_clone && !forks) {
        return Err(libc::EINVAL);
    }
    let [a, b, c, d, e, f] = numbers;
    // SAFETY: every pointer among the arguments is null, a C string that lives throughout, or zeroes that are ours; the calls
    // that change the address space or the stack are excluded above. A forked child does nothing but end.
    unsafe {
        let answer = libc::syscall(call, a, b, c, d, e, f);
        if answer == 0 && forks {
            libc::_exit(0);
        }
        if answer < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(answer) }
    }
}

/// See `attempt`.
const NOT_ATTEMPTED: [i64; 9] = [
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_shmat,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigaction,
];

/// Takes ownership of a descriptor that the kernel just made for us (SCM_RIGHTS).
pub fn adopt_fd(fd: RawFd) -> OwnedFd {
    // SAFETY: called with a descriptor from a control message only; it has no other owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Memory shared with another process. All access goes through copies and atomics with bounds checked here, because
/// the other side may change it at any time.
#[derive(Debug)]
pub struct SharedMemory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone in this process; `&self` methods only copy out or use atomics,
// and `&mut self` is needed to write plain bytes.
unsafe impl Send for SharedMemory {}

/// Immutable bytes in memory: no process can change them (a memfd with all seals). The bytes that were checked are the
/// bytes that are used.
#[derive(Debug)]
pub struct Sealed {
    fd: OwnedFd,
    len: usize,
}

/// Those bytes, readable; the pages leave this process when it is dropped.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

const SEALS: SealFlag =
    SealFlag::F_SEAL_SEAL.union(SealFlag::F_SEAL_SHRINK).union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_WRITE);

impl Sealed {
    /// Takes in at most `most` bytes, showing each part to `look` on its way.
    ///
    /// # Errors
    /// It cannot be read or has more bytes, or no sealed memory can be made.
    pub fn copy(from: &mut dyn Read, most: u64, mut look: impl FnMut(&[u8])) -> std::io::Result<Self> {
        let fd = memfd_create(c"kentledge-model", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let mut file = File::from(fd);
        let (mut buffer, mut len) = (vec![0u8; 64 * 1024], 0u64);
        loop {
            let n = from.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            len += n as u64;
            if len > most {
                return Err(std::io::Error::other(format!("more than {most} bytes")));
            }
            look(&buffer[..n]);
            file.write_all(&buffer[..n])?;
        }
        fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
        Ok(Self { fd: file.into(), len: len as usize })
    }

    /// Takes over a descriptor that came from elsewhere; refused unless it is sealed.
    ///
    /// # Errors
    /// It is no sealed memory.
    pub fn adopt(fd: OwnedFd) -> std::io::Result<Self> {
        let seals = SealFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GET_SEALS)?);
        if !seals.contains(SEALS) {
            return Err(std::io::Error::other("the memory is not sealed"));
        }
        let len = usize::try_from(nix::sys::stat::fstat(&fd)?.st_size).unwrap_or(0);
        Ok(Self { fd, len })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// To read them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn map(&self) -> std::io::Result<Mapped> {
        let length = NonZeroUsize::new(self.len).ok_or_else(|| std::io::Error::other("it is empty"))?;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, &self.fd, 0)? };
        Ok(Mapped { start: start.cast(), len: self.len })
    }
}

impl AsFd for Sealed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::ops::Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped with this length for as long as `self` lives, and sealed against writing and shrinking.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length; the slices that `deref` gave out are gone.
        if let Err(why) = unsafe { munmap(self.start.cast(), self.len) } {
            tracing::error!("unmap a model: {why}");
        }
    }
}

/// Types that may be copied in and out: any bit pattern is a value.
pub trait Plain: Copy + Default {}
impl Plain for f32 {}
impl Plain for f64 {}
impl Plain for u32 {}

impl SharedMemory {
    /// Memory of `len` bytes for two processes, and the descriptor for the other one. Its size is sealed: who shortens it
    /// would end the other one with SIGBUS.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn create(len: usize) -> std::io::Result<(Self, OwnedFd)> {
        let fd = memfd_create(c"kentledge-tensors", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&fd, len as i64)?;
        if Defence::SharedSeals.stands() {
            fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL))?;
        }
        Ok((Self::map(fd.as_fd(), len)?, fd))
    }

    /// Maps `len` bytes of a memory file descriptor, readable and writable.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn map(fd: BorrowedFd<'_>, len: usize) -> std::io::Result<Self> {
        let length = NonZeroUsize::new(len).ok_or(std::io::ErrorKind::InvalidInput)?;
        let size = nix::sys::stat::fstat(fd.as_fd())?.st_size;
        if u64::try_from(size).is_ok_and(|size| size < len as u64) {
            return Err(std::io::Error::other("shared memory is smaller than its layout"));
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start =
            unsafe { mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd, 0)? };
        Ok(Self { start: start.cast(), len })
    }

    fn at<T>(&self, offset: usize, n: usize) -> *mut T {
        let bytes = n.checked_mul(size_of::<T>()).and_then(|b| b.checked_add(offset));
        assert!(bytes.is_some_and(|end| end <= self.len), "shared memory: {n} values at {offset} of {}", self.len);
        assert!(offset.is_multiple_of(align_of::<T>()), "shared memory: offset {offset} is not aligned");
        // SAFETY: in bounds and aligned by the asserts above.
        unsafe { self.start.as_ptr().add(offset).cast() }
    }

    /// Copies values out.
    pub fn read<T: Plain>(&self, offset: usize, into: &mut [T]) {
        let from = self.at::<T>(offset, into.len());
        // SAFETY: `at` checked bounds and alignment; T allows any bit pattern; `into` is ours alone.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) }
    }

    /// Copies values in.
    pub fn write<T: Plain>(&mut self, offset: usize, from: &[T]) {
        let to = self.at::<T>(offset, from.len());
        // SAFETY: as above; `&mut self` keeps this process from writing twice at a time.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }

    /// A counter both sides may touch.
    pub fn load(&self, offset: usize) -> u32 {
        let at = self.at::<u32>(offset, 1);
        // SAFETY: in bounds and aligned; only ever accessed as an atomic.
        unsafe { AtomicU32::from_ptr(at) }.load(Ordering::Acquire)
    }

    /// Sets a counter both sides may touch.
    pub fn store(&self, offset: usize, value: u32) {
        let at = self.at::<u32>(offset, 1);
        // SAFETY: as for `load`.
        unsafe { AtomicU32::from_ptr(at) }.store(value, Ordering::Release)
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and no pointer into it is left.
        if let Err(why) = unsafe { munmap(self.start.cast(), self.len) } {
            tracing::error!("unmap shared memory: {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(len: usize) -> OwnedFd {
        let fd = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).expect("memfd");
        nix::unistd::ftruncate(&fd, len as i64).expect("truncate");
        fd
    }

    #[test]
    fn two_mappings_of_one_memory_see_each_other() {
        let fd = memory(4096);
        let mut a = SharedMemory::map(fd.as_fd(), 4096).expect("map");
        let b = SharedMemory::map(fd.as_fd(), 4096).expect("map");
        a.write(64, &[1.5f32, -2.0]);
        let mut got = [0f32; 2];
        b.read(64, &mut got);
        b.store(0, 7);
        assert_eq!((got, a.load(0)), ([1.5, -2.0], 7));
    }

    #[test]
    fn shared_memory_cannot_be_shortened_by_the_other_side() {
        let (memory, fd) = SharedMemory::create(8192).expect("create");
        assert_eq!(nix::unistd::ftruncate(&fd, 0), Err(nix::errno::Errno::EPERM), "the daemon would end by SIGBUS");
        assert_eq!(memory.load(8188), 0);
    }

    #[test]
    fn sensor_behind_a_pseudo_terminal_waits_and_one_behind_another_device_does_not() {
        use nix::{fcntl::OFlag, pty};
        use std::os::unix::fs::OpenOptionsExt;
        let master = pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).expect("a pty");
        pty::grantpt(&master).expect("grant");
        pty::unlockpt(&master).expect("unlock");
        let path = pty::ptsname_r(&master).expect("name");
        let slave = File::options().read(true).custom_flags(libc::O_NOCTTY).open(path).expect("slave");
        assert!(tty_waits(slave.as_raw_fd()));
        assert!(!tty_waits(File::open("/dev/null").expect("null").as_raw_fd()));
    }

    #[test]
    fn page_size_is_the_one_of_this_machine() {
        let out = Command::new("getconf").arg("PAGESIZE").output().expect("getconf");
        assert_eq!(page_bytes().to_string(), String::from_utf8_lossy(&out.stdout).trim());
    }

    #[test]
    fn released_program_has_fewer_pages_in_memory_and_runs_on() {
        // In a process of its own: other tests map pages at the same time.
        const PLAYED: &str = "KL_RELEASED";
        if std::env::var_os(PLAYED).is_none() {
            let own = std::env::current_exe().expect("own program");
            let test = "host::sys::tests::released_program_has_fewer_pages_in_memory_and_runs_on";
            let run =
                Command::new(own).args(["--exact", test, "--test-threads=1"]).env(PLAYED, "1").output().expect("run");
            let said = String::from_utf8_lossy(&run.stdout);
            assert!(run.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let shared = || {
            let text = std::fs::read_to_string("/proc/self/status").expect("status");
            let line = text.lines().find_map(|line| line.strip_prefix("RssFile:"));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).expect("a number")
        };
        let before = shared();
        release_program();
        let after = shared();
        assert!(after < before / 2, "{after} kB of {before} kB are still mapped");
        assert!(regex::Regex::new("^b+$").expect("a pattern").is_match("bbb"), "what was released works");
    }

    #[test]
    fn attempt_reports_the_error_and_never_touches_the_address_space() {
        use Argument::{Number, Path};
        let none = Number(0);
        assert_eq!(attempt(libc::SYS_faccessat, [none, Path(c"/"), none, none, none, none]), Ok(0));
        assert_eq!(attempt(libc::SYS_faccessat, [none, Path(c"/nowhere"), none, none, none, none]), Err(libc::ENOENT));
        assert_eq!(attempt(libc::SYS_munmap, [none; 6]), Err(libc::EINVAL));
        assert_eq!(attempt(libc::SYS_read, [none, Number(1 << 40), Number(8), none, none, none]), Err(libc::EINVAL));
    }

    #[test]
    fn what_is_sealed_cannot_be_changed_and_what_is_not_is_refused() {
        let sealed = Sealed::copy(&mut &b"abc"[..], 3, |_| ()).expect("copy");
        assert_eq!(&*sealed.map().expect("map"), b"abc");
        let mut file = File::from(sealed.as_fd().try_clone_to_owned().expect("clone"));
        assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
        assert!(Sealed::adopt(file.into()).is_ok() && Sealed::adopt(memory(3)).is_err());
        assert!(Sealed::copy(&mut &b"abcd"[..], 3, |_| ()).is_err());
    }

    #[test]
    #[should_panic(expected = "shared memory")]
    fn reading_past_the_end_is_refused() {
        let fd = memory(4096);
        SharedMemory::map(fd.as_fd(), 4096).expect("map").read(4092, &mut [0f32; 2]);
    }

    #[test]
    fn a_memory_smaller_than_said_is_refused() {
        assert!(SharedMemory::map(memory(100).as_fd(), 4096).is_err());
    }
}
