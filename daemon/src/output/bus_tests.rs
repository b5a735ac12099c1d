//! What is written when, and what devices on real connections and a real pty make of it.

use std::{fs::File, net::TcpListener, os::fd::OwnedFd, sync::mpsc};

use nix::pty::openpty;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn aim_is_written_until_it_is_there_and_again_only_where_that_is_configured() {
    let now = Instant::now();
    let mut aim = Aim::new(false);
    assert_eq!(aim.due(Duration::ZERO, now), Some(now), "the safe state is written first");
    aim.took(false, true, now);
    assert!(aim.is_there());
    assert_eq!((aim.due(Duration::ZERO, now), aim.due(SECOND, now)), (None, Some(now + SECOND)));
    aim.want(true);
    assert_eq!((aim.due(Duration::ZERO, now), aim.is_there()), (Some(now), false));
    aim.took(true, true, now);
    assert_eq!(aim.due(Duration::ZERO, now), None);
}

#[test]
fn failed_write_is_repeated_later_and_later_and_a_change_at_once() {
    let now = Instant::now();
    let mut aim = Aim::new(true);
    let mut waits = Vec::new();
    for _ in 0..8 {
        aim.took(true, false, now);
        waits.push(aim.due(Duration::ZERO, now).expect("due").duration_since(now).as_millis());
    }
    assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000, 2000]);
    aim.want(true);
    assert!(aim.due(Duration::ZERO, now) > Some(now), "nothing changed");
    aim.want(false);
    assert_eq!(aim.due(Duration::ZERO, now), Some(now));
    // It changed while the write that failed was on its way.
    aim.want(true);
    aim.took(false, false, now);
    assert_eq!(aim.due(Duration::ZERO, now), Some(now));
}

fn bus() -> Bus {
    let (address, path, line) = (None, None, (8, b'N', 1));
    Bus { address, path, baud: 115_200, line, tcp: false, echo: false, lenient: false, answer_ms: 300, pause_us: 0 }
}

fn point(bus: Bus, address: u16) -> Point {
    let (output, words) = ("fan".into(), (500, 20));
    Point { output, bus, slave: 3, coil: address < 100, several: false, address, words, refresh_ms: 0, safe_on: false }
}

/// A TCP device; returns its address and what it is asked, content alone. It closes after each answer.
fn tcp_device() -> (String, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let (address, (sender, asked)) = (listener.local_addr().expect("address").to_string(), mpsc::channel());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut frame) = (stream.expect("a connection"), [0u8; 12]);
            if stream.read_exact(&mut frame).is_ok() {
                let _ = sender.send(frame[6..].to_vec());
                let _ = stream.write_all(&frame);
            }
        }
    });
    (address, asked)
}

#[test]
fn points_write_the_safe_state_first_and_then_what_is_wanted() {
    let (address, asked) = tcp_device();
    let bus = Bus { address: Some(address), tcp: true, ..bus() };
    let points = Points::start(&[point(bus.clone(), 7), point(bus, 400)]).expect("start");
    let next = || asked.recv_timeout(10 * SECOND).expect("a question");
    assert_eq!([next(), next()], [vec![3, 5, 0, 7, 0, 0], vec![3, 6, 1, 144, 0, 20]]);
    points.settle();
    points.want(0, true);
    assert_eq!(next(), [3, 5, 0, 7, 0xFF, 0]);
    points.settle();
    points.want(1, true);
    assert_eq!(next(), [3, 6, 1, 144, 1, 244]);
    points.settle();
    assert!(!points.fails());
    assert!(asked.recv_timeout(Duration::from_millis(100)).is_err(), "nothing more is written");
}

#[test]
fn device_that_is_not_there_is_reported_as_failing_and_ends_in_time() {
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("address");
    let points =
        Points::start(&[point(Bus { address: Some(closed.to_string()), tcp: true, ..bus() }, 7)]).expect("start");
    let began = Instant::now();
    points.settle();
    assert!(points.fails());
    assert!(began.elapsed() >= limits::OUTPUT_SETTLE && began.elapsed() < 4 * limits::OUTPUT_SETTLE);
}

/// A line whose other end sends what `answer` makes of each question of 8 bytes.
fn tty_device(answer: fn(&[u8]) -> Vec<u8>) -> (Bus, OwnedFd) {
    let pty = openpty(None, None).expect("pty");
    let path = nix::unistd::ttyname(&pty.slave).expect("name").to_string_lossy().into_owned();
    let mut master = File::from(pty.master);
    std::thread::spawn(move || {
        let mut asked = [0u8; 8];
        while master.read_exact(&mut asked).is_ok() {
            master.write_all(&answer(&asked)).expect("answer");
        }
    });
    (Bus { path: Some(path), ..bus() }, pty.slave)
}

/// The echo of a write is what its answer would be: a dead device behind an adapter with echo would seem to follow.
#[test]
fn line_that_only_echoes_is_not_taken_for_a_device_that_follows() {
    let (bus, _slave) = tty_device(<[u8]>::to_vec);
    let point = point(bus.clone(), 7);
    assert_eq!(Line::new(bus.clone()).write(&point, true), Err(ECHO.into()));
    let declared = Bus { echo: true, ..bus };
    assert_eq!(Line::new(declared).write(&point, true), Err("no answer".into()));
}

#[test]
fn writer_waits_for_its_turn_on_a_line_that_another_process_uses() {
    let (bus, _slave) = tty_device(<[u8]>::to_vec);
    let path = bus.path.clone().expect("path");
    let settings = tty::Settings { path: &path, baud: 115_200, data: 8, parity: b'N', stop: 1, shared: true };
    let other = tty::Shared::open(settings).expect("open");
    assert!(tty::take(other.fd()));
    let began = Instant::now();
    let asked = std::thread::spawn(move || (Line::new(bus.clone()).write(&point(bus, 7), true), Instant::now()));
    std::thread::sleep(Duration::from_millis(300));
    tty::free(other.fd());
    let (outcome, ended) = asked.join().expect("a writer");
    assert_eq!(outcome, Err(ECHO.into()));
    assert!(ended.duration_since(began) >= Duration::from_millis(300));
}
