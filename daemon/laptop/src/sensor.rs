//! The sensor's end of a pseudo-terminal: rows of the simulated pump, or of a CSV file, written when they are due.

use std::{
    fs::File,
    io::Write,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
};

use super::{
    pump::{COLUMNS, Pump, ROWS_PER_S, fault_at},
    view::Heard,
};
use kentledge::{
    cli::replay::recording::{Made, Recording, channel_names},
    error::{Context, Fatal},
};

/// A pseudo-terminal. Its other end, `path`, is a serial port to any program that opens it.
pub struct Pty {
    master: PtyMaster,
    /// Held open, so that the port does not hang up before its first reader opens it.
    _slave: File,
    /// The port.
    pub path: PathBuf,
}

impl Pty {
    /// Opens a pair and makes it raw, as a real line is.
    pub fn open() -> Result<Self, Fatal> {
        let what = "open a pseudo-terminal";
        // Close-on-exec: the daemon's workers must not hold the line open.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).context(what)?;
        grantpt(&master).context(what)?;
        unlockpt(&master).context(what)?;
        let path = PathBuf::from(ptsname_r(&master).context(what)?);
        let slave =
            File::options().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(&path).context(what)?;
        let mut settings = tcgetattr(slave.as_fd()).context(what)?;
        cfmakeraw(&mut settings);
        tcsetattr(slave.as_fd(), SetArg::TCSANOW, &settings).context(what)?;
        Ok(Self { master, _slave: slave, path })
    }
}

/// What the sensor plays.
pub enum Plays {
    /// The simulated pump, from this wall time on (ms since 1970).
    Pump(i64),
    /// Rows of a file.
    Recording(Box<Recording>),
}

/// Writes rows until `stop`, or to the end of the file. Returns how many, and the line: it hangs up when that is dropped,
/// and what was not read yet would be lost.
pub fn play(
    mut pty: Pty,
    plays: Plays,
    speed: f64,
    stop: &Arc<AtomicBool>,
    heard: &mpsc::SyncSender<Heard>,
) -> Result<(u64, Pty), Fatal> {
    let rows = match plays {
        Plays::Pump(began_ms) => pump(&mut pty, began_ms, speed, stop, heard),
        Plays::Recording(recording) => csv(&mut pty, &recording, speed, stop),
    }?;
    Ok((rows, pty))
}

fn pump(
    pty: &mut Pty,
    began_ms: i64,
    speed: f64,
    stop: &AtomicBool,
    heard: &mpsc::SyncSender<Heard>,
) -> Result<u64, Fatal> {
    let (began, mut pump, mut n, mut fault) = (Instant::now(), Pump::default(), 0u64, None);
    while !stop.load(Ordering::Relaxed) {
        let t_s = n as f64 / ROWS_PER_S as f64;
        let due = Duration::from_secs_f64(t_s / speed);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        let now = fault_at(t_s).map(|(fault, _)| fault);
        if now != fault {
            let _ = heard.try_send(Heard::Fault { t_s, fault: now.or(fault), begins: now.is_some() });
            fault = now;
        }
        let values = pump.row(t_s).map(|x| format!("{x:.5}")).join(",");
        let row = format!("{},{n},{values}\n", began_ms + (t_s * 1000.0) as i64);
        pty.master.write_all(row.as_bytes()).context("write to the pseudo-terminal")?;
        n += 1;
    }
    Ok(n)
}

fn csv(pty: &mut Pty, recording: &Recording, speed: f64, stop: &AtomicBool) -> Result<u64, Fatal> {
    let (mut last_ns, mut n) = (None, 0);
    let mut due = Instant::now();
    for row in recording.play()? {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let row = row?;
        let step_s = last_ns.map_or(1.0, |last_ns| ((row.t_ns - last_ns) as f64 / 1e9).max(0.0));
        // A gap of minutes in the file is cut to 1 s: the daemon sees the gap in the file's own time stamps.
        due += Duration::from_secs_f64((step_s / speed).min(1.0));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        last_ns = Some(row.t_ns);
        pty.master.write_all(format!("{}\n", row.text).as_bytes()).context("write to the pseudo-terminal")?;
        n += 1;
    }
    Ok(n)
}

/// What the configuration for the simulated pump is made of.
pub fn pump_rows() -> Made {
    let channels = channel_names(&COLUMNS.into_iter().enumerate().skip(2).collect::<Vec<_>>(), "seq");
    Made {
        file: "the simulated pump".into(),
        delimiter: ',',
        time: (COLUMNS[0].into(), "ms"),
        seq: Some(COLUMNS[1].into()),
        channels: channels.into_iter().map(|name| (name, String::new())).collect(),
    }
}
