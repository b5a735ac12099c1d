//! The limit: tty -> parse -> window -> ORT. No buffer, no quality checks.
use ort::{
    session::{builder::GraphOptimizationLevel, Session},
    value::TensorRef,
};
pub struct Cfg {
    pub ttys: Vec<String>,
    pub model: String,
    pub lib: String,
    pub host: String,
    pub port: u16,
    pub topic: String,
    pub hop: u64,
}
pub fn cfg() -> Cfg {
    let e = |k: &str, d: &str| std::env::var(k).unwrap_or_else(|_| d.into());
    Cfg {
        ttys: e("HB_TTYS", "./tty0")
            .split(',')
            .map(String::from)
            .collect(),
        model: e("HB_MODEL", "./models/ae_f32.onnx"),
        lib: e("HB_ORT_LIB", ""),
        host: e("HB_MQTT_HOST", "127.0.0.1"),
        port: e("HB_MQTT_PORT", "1883").parse().unwrap(),
        topic: e("HB_TOPIC", "bench"),
        hop: e("HB_HOP", "1").parse().unwrap(),
    }
}
pub fn session(c: &Cfg) -> Session {
    let env = ort::init_from(&c.lib)
        .expect("ort lib")
        .with_telemetry(false)
        .build()
        .unwrap();
    let env = Box::leak(Box::new(env));
    Session::builder(env)
        .unwrap()
        .with_optimization_level(GraphOptimizationLevel::Level3)
        .unwrap()
        .with_intra_threads(1)
        .unwrap()
        .with_inter_threads(1)
        .unwrap()
        .commit_from_file(&c.model)
        .unwrap()
}
pub fn infer(s: &mut Session, x: &[f32]) -> f32 {
    let o = s
        .run(ort::inputs!["x" => TensorRef::from_array_view(([1usize, 8, 64], x)).unwrap()])
        .unwrap();
    let v = o["score"].try_extract_tensor::<f32>().unwrap().1[0];
    v
}
pub fn open_tty(p: &str) -> i32 {
    unsafe {
        let fd = libc::open(
            std::ffi::CString::new(p).unwrap().as_ptr(),
            libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK,
        );
        assert!(fd >= 0, "{p}");
        let mut t: libc::termios = std::mem::zeroed();
        libc::tcgetattr(fd, &mut t);
        libc::cfmakeraw(&mut t);
        libc::tcsetattr(fd, libc::TCSANOW, &t);
        fd
    }
}
/// Sliding window: channel-major history, compacted when full.
pub struct Win {
    h: Vec<f32>,
    cap: usize,
    n: usize,
    total: u64,
    pub x: Vec<f32>,
    pub part: Vec<u8>,
}
impl Win {
    pub fn new() -> Self {
        let cap = 4096;
        Win {
            h: vec![0.0; 8 * cap],
            cap,
            n: 0,
            total: 0,
            x: vec![0.0; 512],
            part: Vec::with_capacity(1 << 17),
        }
    }
    fn push(&mut self, v: &[f32; 8]) {
        if self.n == self.cap {
            for c in 0..8 {
                self.h.copy_within(
                    c * self.cap + self.cap - 63..c * self.cap + self.cap,
                    c * self.cap,
                );
            }
            self.n = 63;
        }
        for c in 0..8 {
            self.h[c * self.cap + self.n] = v[c];
        }
        self.n += 1;
        self.total += 1;
    }
    fn fill(&mut self) {
        for c in 0..8 {
            let a = c * self.cap + self.n - 64;
            self.x[c * 64..c * 64 + 64].copy_from_slice(&self.h[a..a + 64]);
        }
    }
    /// feed bytes; f(seq, t, window) for each due window
    pub fn feed(&mut self, d: &[u8], hop: u64, mut f: impl FnMut(u64, u64, &[f32])) {
        let mut part = std::mem::take(&mut self.part);
        part.extend_from_slice(d);
        let mut at = 0;
        while let Some(i) = part[at..].iter().position(|b| *b == b'\n') {
            if let Some((seq, t, v)) = parse(&part[at..at + i]) {
                self.push(&v);
                if self.total >= 64 && (self.total - 64) % hop == 0 {
                    self.fill();
                    f(seq, t, &self.x);
                }
            }
            at += i + 1;
        }
        part.drain(..at);
        self.part = part;
    }
}
fn num(b: &[u8], i: &mut usize) -> Option<u64> {
    let s = *i;
    let mut n = 0u64;
    while *i < b.len() && b[*i].is_ascii_digit() {
        n = n.wrapping_mul(10).wrapping_add((b[*i] - b'0') as u64);
        *i += 1;
    }
    if *i == s {
        None
    } else {
        Some(n)
    }
}
const P10: [f64; 10] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
pub fn parse(b: &[u8]) -> Option<(u64, u64, [f32; 8])> {
    let mut i = 0;
    let seq = num(b, &mut i)?;
    if *b.get(i)? != b',' {
        return None;
    }
    i += 1;
    let t = num(b, &mut i)?;
    let mut v = [0f32; 8];
    for c in 0..8 {
        if *b.get(i)? != b',' {
            return None;
        }
        i += 1;
        let neg = *b.get(i)? == b'-';
        if neg {
            i += 1
        }
        let w = num(b, &mut i)? as f64;
        let mut x = w;
        if i < b.len() && b[i] == b'.' {
            i += 1;
            let s = i;
            let fr = num(b, &mut i)? as f64;
            if i - s > 9 {
                return None;
            }
            x += fr / P10[i - s];
        }
        v[c] = if neg { -x } else { x } as f32;
    }
    Some((seq, t, v))
}
pub fn payload(buf: &mut Vec<u8>, seq: u64, t: u64, score: f32) {
    use std::io::Write;
    buf.clear();
    write!(
        buf,
        "{{\"seq_last\":{seq},\"t_last_ns\":{t},\"score\":{score}}}"
    )
    .unwrap();
}
