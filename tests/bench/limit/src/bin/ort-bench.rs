//! Bare ORT: per-run latency and CPU in a tight loop, and spaced by SLEEP_US (cold-ish caches).
use limit::*;
fn cpu() -> f64 {
    unsafe {
        let mut t: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t);
        t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
    }
}
fn main() {
    let c = cfg();
    let n: usize = std::env::args()
        .nth(1)
        .map(|v| v.parse().unwrap())
        .unwrap_or(20000);
    let sl: u64 = std::env::args()
        .nth(2)
        .map(|v| v.parse().unwrap())
        .unwrap_or(0);
    let pre = std::env::args().nth(3).is_some();
    let t = std::time::Instant::now();
    let mut s = session(&c);
    let load = t.elapsed();
    let x: Vec<f32> = (0..512).map(|i| (i as f32 * 0.1).sin()).collect();
    for _ in 0..200 {
        infer(&mut s, &x);
    }
    let mut d = Vec::with_capacity(n);
    let c0 = cpu();
    for _ in 0..n {
        if sl > 0 {
            std::thread::sleep(std::time::Duration::from_micros(sl));
        }
        if pre {
            infer(&mut s, &x);
        }
        let t = std::time::Instant::now();
        std::hint::black_box(infer(&mut s, &x));
        d.push(t.elapsed().as_nanos() as f64 / 1e3);
    }
    let cp = (cpu() - c0) / n as f64 * 1e6;
    d.sort_by(|a, b| a.partial_cmp(b).unwrap());
    let q = |p: f64| d[(n as f64 * p) as usize];
    println!("{{\"load_ms\":{:.2},\"p50_us\":{:.2},\"p90_us\":{:.2},\"p99_us\":{:.2},\"p999_us\":{:.2},\"cpu_us_per_run\":{:.2}}}", load.as_secs_f64() * 1e3, q(0.5), q(0.9), q(0.99), q(0.999), cp);
}
