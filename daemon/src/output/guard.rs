//! The guard: a small process that holds output lines, and writes coils and registers (`bus`). It sets them as the daemon tells
//! it, every 100 ms and at once when something changes; at the end of the connection, or after 500 ms of silence, it sets
//! the safe state of each and goes on holding it, until another daemon comes. A daemon with other outputs makes it end.
//!
//! ```text
//! daemon → guard   len:u32le Order as JSON        then bits:u64le, again and again
//! guard → daemon   code:u8 0 0 0 number:u32le     HOLDS and its pid, or REFUSES, a length and why;
//!                                                 then for each bits SET, or LINES_SET where a coil cannot be written
//! ```

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::Path,
    time::Instant,
};

use nix::sys::socket::{getsockopt, sockopt};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    error::{Context, Fatal},
    host::gpiochip::{self, Chip},
    limits,
    output::bus::{Point, Points},
};

/// Of what is spoken here.
pub const VERSION: u32 = 2;
/// The lines are held.
pub const HOLDS: u8 = 1;
/// They are not; why follows.
pub const REFUSES: u8 = 2;
/// All is set as requested, or will be as soon as the bus allows.
pub const SET: u8 = 3;
/// The lines are, and a coil or register cannot be written: its device does not answer.
pub const LINES_SET: u8 = 4;

/// What the guard is to hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Of what is spoken here.
    pub version: u32,
    /// The lines, by bit.
    pub lines: Vec<Line>,
    /// Coils and registers: the bits behind those of the lines.
    #[serde(default)]
    pub points: Vec<Point>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The output's name.
    pub output: String,
    /// Path, name or label of the chip.
    pub chip: String,
    /// The line's number,
    pub offset: Option<u32>,
    /// or its name.
    pub name: Option<String>,
    /// Low is on.
    pub active_low: bool,
    /// Its safe state: where it is set without a message from the daemon.
    pub safe_on: bool,
}

/// The socket's name where its folder cannot be written: in the kernel's abstract name space, by the digest of its path. Any
/// process on the machine can reach such a name, so both sides look whose process the other one is.
fn unwritten(socket: &Path) -> io::Result<SocketAddr> {
    let digest: String = Sha256::digest(socket.as_os_str().as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    SocketAddr::from_abstract_name(format!("kentledge-guard-{digest}"))
}

/// Whether the other end is a process of our own user.
fn is_ours(stream: &UnixStream) -> bool {
    let peer = getsockopt(stream, sockopt::PeerCredentials);
    peer.is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw())
}

fn listen(socket: &Path) -> io::Result<UnixListener> {
    let _ = fs::remove_file(socket);
    UnixListener::bind(socket).or_else(|why| {
        tracing::warn!("listen on {}: {why}; using an abstract socket", socket.display());
        UnixListener::bind_addr(&unwritten(socket)?)
    })
}

/// Reaches a guard that listens for this socket, wherever it does.
///
/// # Errors
/// No process of our own user listens.
pub fn reach(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket).or_else(|_| UnixStream::connect_addr(&unwritten(socket)?))?;
    if is_ours(&stream) { Ok(stream) } else { Err(ErrorKind::PermissionDenied.into()) }
}

/// `kentledge gpio-guard SOCKET`
pub fn main(socket: &Path) -> Result<(), Fatal> {
    let listener = listen(socket).context(format!("listen on {}", socket.display()))?;
    let mut held: Option<Held> = None;
    for stream in listener.incoming() {
        let mut stream = stream.context("take a connection")?;
        if !is_ours(&stream) {
            continue;
        }
        let Ok(order) = read_order(&mut stream) else { continue };
        if let Some(held) = held.as_ref().filter(|held| held.order != order) {
            tracing::info!("the configuration has other outputs: the guard ends");
            held.points.settle();
            // The name is free for the next one before the daemon hears of it.
            let _ = fs::remove_file(socket);
            return Ok(());
        }
        let taken = match held.take() {
            Some(held) => Ok(held),
            None => Held::take(order),
        };
        match taken {
            Ok(mut lines) => {
                if answer(&mut stream, HOLDS, std::process::id(), &[]).is_ok() {
                    lines.follow(stream);
                }
                held = Some(lines);
            }
            Err(why) => {
                let _ = answer(&mut stream, REFUSES, why.len() as u32, why.as_bytes());
                let _ = fs::remove_file(socket);
                return Ok(());
            }
        }
    }
    Ok(())
}

fn answer(stream: &mut UnixStream, code: u8, number: u32, text: &[u8]) -> io::Result<()> {
    let mut bytes = vec![code, 0, 0, 0];
    bytes.extend(number.to_le_bytes());
    bytes.extend(text);
    stream.write_all(&bytes)
}

fn read_order(stream: &mut UnixStream) -> io::Result<Order> {
    stream.set_read_timeout(Some(limits::GUARD_ANSWER))?;
    let mut head = [0u8; 4];
    stream.read_exact(&mut head)?;
    let len = u32::from_le_bytes(head) as usize;
    if len > limits::GUARD_BYTES {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut text = vec![0u8; len];
    stream.read_exact(&mut text)?;
    serde_json::from_slice(&text).map_err(|_| ErrorKind::InvalidData.into())
}

/// Lines that are held, and the threads of the buses.
struct Held {
    order: Order,
    lines: Vec<gpiochip::Output>,
    points: Points,
    /// What they are.
    bits: u64,
}

impl Held {
    /// Asks for all of them; each is in its safe state from the first moment on.
    fn take(order: Order) -> Result<Self, String> {
        if order.version != VERSION || order.lines.len() + order.points.len() > limits::OUTPUTS {
            return Err("it speaks another version".into());
        }
        let mut lines = Vec::new();
        for line in &order.lines {
            let held = Chip::open(&line.chip).and_then(|chip| {
                let offset = match (line.offset, &line.name) {
                    (Some(offset), _) => offset,
                    (None, Some(name)) => chip.offset(name)?,
                    (None, None) => return Err("it names no line".into()),
                };
                chip.output(offset, line.active_low, line.safe_on)
            });
            lines.push(held.map_err(|why| format!("output `{}` on {}: {why}", line.output, line.chip))?);
        }
        let bits = Self::safe(&order);
        let points = Points::start(&order.points).map_err(|why| format!("start a thread: {why}"))?;
        Ok(Self { order, lines, points, bits })
    }

    fn safe(order: &Order) -> u64 {
        let all = order.lines.iter().map(|line| line.safe_on).chain(order.points.iter().map(|point| point.safe_on));
        all.enumerate().fold(0, |bits, (i, on)| bits | u64::from(on) << i)
    }

    /// Sets the lines as requested until the connection ends. Silence makes them safe; the next message sets them again.
    fn follow(&mut self, mut stream: UnixStream) {
        let mut heard = Instant::now();
        let (mut word, mut have) = ([0u8; 8], 0);
        loop {
            let left = limits::GUARD_SILENCE.saturating_sub(heard.elapsed());
            if left.is_zero() {
                self.make_safe("the daemon is silent");
                heard = Instant::now();
                continue;
            }
            let _ = stream.set_read_timeout(Some(left));
            match stream.read(&mut word[have..]) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(why)
                    if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(_) => break,
            }
            if have == word.len() {
                (have, heard) = (0, Instant::now());
                let done = self.set(u64::from_le_bytes(word));
                let answer = match done {
                    false => REFUSES,
                    true if self.points.fails() => LINES_SET,
                    true => SET,
                };
                if stream.write_all(&[answer]).is_err() {
                    break;
                }
            }
        }
        self.make_safe("the daemon is gone");
    }

    fn make_safe(&mut self, why: &str) {
        let safe = Self::safe(&self.order);
        if self.bits != safe {
            tracing::warn!("{why}: outputs go to their safe state");
        }
        self.set(safe);
    }

    fn set(&mut self, bits: u64) -> bool {
        let mut done = true;
        for i in 0..self.order.points.len() {
            let bit = self.lines.len() + i;
            let on = bits >> bit & 1 == 1;
            self.points.want(i, on);
            self.bits = self.bits & !(1 << bit) | u64::from(on) << bit;
        }
        for (i, line) in self.lines.iter_mut().enumerate() {
            let on = bits >> i & 1 == 1;
            if on != (self.bits >> i & 1 == 1) {
                match line.set(on) {
                    Ok(()) => self.bits = self.bits & !(1 << i) | u64::from(on) << i,
                    Err(why) => {
                        tracing::error!(output = self.order.lines[i].output, "set output: {why}");
                        done = false;
                    }
                }
            }
        }
        done
    }
}
