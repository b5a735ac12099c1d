//! sensor-sim: N pty pairs fed with CSV frames `seq,unix_ns,ch0..ch7\n`.
//! The master side is kept; the slave is symlinked as DIR/ttyN. A reader's absence shows as POLLHUP on the master.
use hbench::*;
use std::{
    ffi::CString,
    io::Write,
    os::unix::fs::symlink,
    sync::atomic::{AtomicBool, Ordering},
};
static STOP: AtomicBool = AtomicBool::new(false);
extern "C" fn on_sig(_: i32) {
    STOP.store(true, Ordering::SeqCst)
}
const OK: u8 = 0;
const OVERRUN: u8 = 1;
const NOREADER: u8 = 2;
const NOISE: u8 = 3;
const PARTIAL: u8 = 4;
struct Port {
    fd: i32,
    pend: Vec<u8>,
    off: usize,
    seq: u64,
    due: u64,
    log: Vec<(u64, u64, u8)>,
    bytes: u64,
    n: [u64; 5],
    link: String,
    open: bool,
    done: bool,
    start: bool,
}
fn open_pty(link: &str) -> i32 {
    unsafe {
        let m =
            libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC);
        assert!(m >= 0);
        libc::grantpt(m);
        libc::unlockpt(m);
        let mut name = [0i8; 128];
        libc::ptsname_r(m, name.as_mut_ptr() as *mut _, 128);
        let name = std::ffi::CStr::from_ptr(name.as_ptr() as *const _)
            .to_str()
            .unwrap()
            .to_string();
        let s = libc::open(
            CString::new(name.clone()).unwrap().as_ptr(),
            libc::O_RDWR | libc::O_NOCTTY,
        );
        let mut t: libc::termios = std::mem::zeroed();
        libc::tcgetattr(s, &mut t);
        libc::cfmakeraw(&mut t);
        libc::tcsetattr(s, libc::TCSANOW, &t);
        libc::close(s); // closing it makes POLLHUP mean "no reader"
        let tmp = format!("{link}.new");
        let _ = std::fs::remove_file(&tmp);
        symlink(&name, &tmp).unwrap();
        std::fs::rename(&tmp, link).unwrap();
        m
    }
}
fn hup(fd: i32) -> bool {
    let mut p = libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    };
    unsafe { libc::poll(&mut p, 1, 0) };
    p.revents & libc::POLLHUP != 0
}
struct Rng(u64);
impl Rng {
    fn u(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn f(&mut self) -> f64 {
        (self.u() >> 11) as f64 / (1u64 << 53) as f64
    }
}
fn main() {
    let a = Args::new();
    if a.flag("help") {
        eprintln!("sensor-sim --dir D --ports N --rate HZ(0=flood) [--count N|--duration S] [--csv F] [--log-dir D]\n [--slow drop|block] [--no-wait] [--settle-ms 500] [--tick-us N] [--chunk 4096] [--noise P] [--partial P] [--hangup-at S --hangup-for S] [--seed N]\n Each line of --csv is the text after `seq,unix_ns,`; row = seq mod rows. log: portN.log, records (u64 seq, u64 t_ns, u8 status) LE, status 0 ok 1 overrun 2 no reader 3 noise before 4 truncated");
        return;
    }
    let dir = a.s("dir", ".");
    let n = a.u("ports", 1) as usize;
    let rate = a.f("rate", 100.0);
    let count = a.u("count", u64::MAX);
    let dur = a.f("duration", 1e12);
    let block = a.s("slow", "drop") == "block";
    let settle = a.u("settle-ms", 500);
    let chunk = a.u("chunk", 4096) as usize;
    let (pn, pp) = (a.f("noise", 0.0), a.f("partial", 0.0));
    let (hat, hfor) = (a.f("hangup-at", -1.0), a.f("hangup-for", 2.0));
    let mut rng = Rng(a.u("seed", 42) | 1);
    let rows: Vec<Vec<u8>> = match a.get("csv") {
        Some(f) => std::fs::read_to_string(f)
            .expect("csv")
            .lines()
            .filter(|l| !l.is_empty())
            .map(|l| format!(",{l}\n").into_bytes())
            .collect(),
        None => (0..4096)
            .map(|i| {
                let t = i as f64;
                let v: Vec<String> = (0..8)
                    .map(|c| {
                        format!(
                            "{:.5}",
                            (t * 0.01 * (c + 1) as f64).sin() + 0.2 * (rng.f() - 0.5)
                        )
                    })
                    .collect();
                format!(",{}\n", v.join(",")).into_bytes()
            })
            .collect(),
    };
    unsafe {
        libc::signal(libc::SIGTERM, on_sig as *const () as usize);
        libc::signal(libc::SIGINT, on_sig as *const () as usize);
        libc::prctl(libc::PR_SET_TIMERSLACK, 1000usize);
    }
    std::fs::create_dir_all(&dir).unwrap();
    let mut ports: Vec<Port> = (0..n)
        .map(|i| {
            let link = format!("{dir}/tty{i}");
            Port {
                fd: open_pty(&link),
                pend: Vec::with_capacity(65536),
                off: 0,
                seq: 0,
                due: 0,
                log: Vec::with_capacity(1 << 16),
                bytes: 0,
                n: [0; 5],
                link,
                open: true,
                done: false,
                start: false,
            }
        })
        .collect();
    println!("READY");
    std::io::stdout().flush().unwrap();
    if !a.flag("no-wait") {
        while !STOP.load(Ordering::Relaxed) && ports.iter().any(|p| hup(p.fd)) {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        std::thread::sleep(std::time::Duration::from_millis(settle));
    }
    println!("START {}", now_ns());
    std::io::stdout().flush().unwrap();
    let t0 = mono_ns();
    let end = if dur > 1e11 {
        u64::MAX
    } else {
        t0 + (dur * 1e9) as u64
    };
    let per = if rate > 0.0 { (1e9 / rate) as u64 } else { 0 };
    let tick = a.u("tick-us", if rate > 1000.0 { 500 } else { 0 }) * 1000;
    for (i, p) in ports.iter_mut().enumerate() {
        p.due = t0 + per * i as u64 / n as u64;
    }
    let mut hstate = 0;
    let mut end_seen = u64::MAX;
    let mut junk = [0u8; 4096];
    loop {
        let now = mono_ns();
        if STOP.load(Ordering::Relaxed) {
            break;
        }
        if hat >= 0.0 && hstate == 0 && now >= t0 + (hat * 1e9) as u64 {
            for p in ports.iter_mut() {
                unsafe {
                    libc::close(p.fd);
                }
                p.open = false;
                p.pend.clear();
                p.off = 0;
            }
            hstate = 1;
        }
        if hstate == 1 && now >= t0 + ((hat + hfor) * 1e9) as u64 {
            for p in ports.iter_mut() {
                p.fd = open_pty(&p.link);
                p.open = true;
            }
            hstate = 2;
        }
        let mut alldone = true;
        let mut progressed = false;
        let mut next = u64::MAX;
        for p in ports.iter_mut() {
            if p.pend.len() > p.off && p.open {
                let r = unsafe {
                    libc::write(
                        p.fd,
                        p.pend[p.off..].as_ptr() as *const _,
                        p.pend.len() - p.off,
                    )
                };
                if r > 0 {
                    p.off += r as usize;
                    p.bytes += r as u64;
                    progressed = true;
                    if p.off == p.pend.len() {
                        p.pend.clear();
                        p.off = 0;
                    }
                } else if r < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EIO)
                {
                    p.pend.clear();
                    p.off = 0;
                }
            }
            unsafe {
                libc::read(
                    p.fd,
                    junk.as_mut_ptr() as *mut _,
                    if p.open && p.seq % 1024 == 0 { 4096 } else { 0 },
                )
            };
            if p.done {
                if p.pend.len() > p.off && p.open && now < end_seen.saturating_add(5_000_000_000) {
                    alldone = false
                }
                continue;
            }
            alldone = false;
            if now >= end || p.seq >= count {
                p.done = true;
                end_seen = now;
                continue;
            }
            // build what is due
            let busy = p.pend.len() > p.off;
            let mut batch = 0;
            if per == 0 {
                if busy {
                    continue;
                }
                while p.pend.len() < chunk && p.seq < count {
                    p.frame(&rows, OK, &mut rng, pn, pp);
                    batch += 1;
                }
            } else {
                if busy && block {
                    next = next.min(now + 200_000);
                    continue;
                }
                while p.due <= now && p.seq < count {
                    let st = if !p.open || hup(p.fd) {
                        NOREADER
                    } else if busy {
                        OVERRUN
                    } else {
                        OK
                    };
                    p.frame(&rows, st, &mut rng, pn, pp);
                    p.due += per;
                    batch += 1;
                    if p.pend.len() > 16384 {
                        break;
                    }
                }
                let d = if tick > 0 {
                    p.due.max(now + tick)
                } else {
                    p.due
                };
                next = next.min(d);
            }
            if batch > 0 && p.pend.len() > p.off && p.open && !busy {
                let r = unsafe { libc::write(p.fd, p.pend.as_ptr() as *const _, p.pend.len()) };
                if r > 0 {
                    p.off = r as usize;
                    p.bytes += r as u64;
                    progressed = true;
                    if p.off == p.pend.len() {
                        p.pend.clear();
                        p.off = 0;
                    }
                } else if r < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EIO)
                {
                    p.pend.clear();
                    p.off = 0;
                }
            }
            if p.pend.len() > p.off {
                next = next.min(now + 200_000);
            }
        }
        if alldone {
            break;
        }
        if per == 0 {
            if !progressed {
                let mut fds: Vec<libc::pollfd> = ports
                    .iter()
                    .filter(|p| p.open && !(p.done && p.pend.is_empty()))
                    .map(|p| libc::pollfd {
                        fd: p.fd,
                        events: libc::POLLOUT,
                        revents: 0,
                    })
                    .collect();
                unsafe {
                    libc::poll(fds.as_mut_ptr(), fds.len() as u64, 1);
                }
                if fds.iter().any(|f| f.revents & libc::POLLHUP != 0) {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
        } else {
            let now = mono_ns();
            if next == u64::MAX {
                next = now + 1_000_000
            }
            if next > now {
                let d = (next - now).min(50_000_000);
                let ts = libc::timespec {
                    tv_sec: 0,
                    tv_nsec: d as i64,
                };
                unsafe {
                    libc::nanosleep(&ts, std::ptr::null_mut());
                }
            }
        }
    }
    println!("END {}", now_ns());
    std::io::stdout().flush().unwrap();
    let mut out = vec![];
    for (i, p) in ports.iter().enumerate() {
        if let Some(d) = a.get("log-dir") {
            std::fs::create_dir_all(&d).unwrap();
            let mut f =
                std::io::BufWriter::new(std::fs::File::create(format!("{d}/port{i}.log")).unwrap());
            for (s, t, st) in &p.log {
                f.write_all(&s.to_le_bytes()).unwrap();
                f.write_all(&t.to_le_bytes()).unwrap();
                f.write_all(&[*st]).unwrap();
            }
            f.flush().unwrap();
        }
        out.push(serde_json::json!({"port": i, "frames": p.seq, "bytes": p.bytes, "ok": p.n[0], "overrun": p.n[1], "no_reader": p.n[2], "noise": p.n[3], "partial": p.n[4], "unsent_bytes": p.pend.len() - p.off}));
    }
    println!("STATS {}", serde_json::json!({"ports": out}));
    std::io::stdout().flush().unwrap();
    // keep the ptys open until SIGTERM, so that the reader can drain what is left
    if !a.flag("exit") {
        while !STOP.load(Ordering::Relaxed) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
impl Port {
    fn frame(&mut self, rows: &[Vec<u8>], st: u8, rng: &mut Rng, pn: f64, pp: f64) {
        let t = now_ns();
        let mut st = st;
        if st == OK {
            if pn > 0.0 && rng.f() < pn {
                st = NOISE;
                for _ in 0..1 + rng.u() % 16 {
                    let b = (rng.u() >> 20) as u8;
                    self.pend.push(b);
                }
            }
            let at = self.pend.len();
            put_itoa(&mut self.pend, self.seq);
            self.pend.push(b',');
            put_itoa(&mut self.pend, t);
            self.pend
                .extend_from_slice(&rows[(self.seq % rows.len() as u64) as usize]);
            if pp > 0.0 && rng.f() < pp {
                st = PARTIAL;
                let len = self.pend.len() - at;
                self.pend.truncate(at + 1 + (rng.u() as usize) % (len - 2));
            }
        }
        self.n[st as usize] += 1;
        self.log.push((self.seq, t, st));
        self.seq += 1;
        let _ = self.start;
    }
}
