//! Devices with habits, at the other end of real connections and a real pty.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::pty::openpty;

use super::*;
use crate::config::{Check, Framing, Line as Bits, LineForm, Manners, Serial};

fn settings(bus: Bus, manners: Manners) -> Modbus {
    Modbus { bus, manners, shared: false, reads: vec![] }
}

const MANNERS: Manners = Manners { tcp_frames: true, echo: false, lenient_ids: false, answer_ms: 2000, pause_us: 0 };
const ASKED: Question = Question { number: 0, slave: 5, function: 3, address: 7, word: 1 };

/// A TCP device that answers each question with the register 0x1234; its answers go through `shape`. Returns its address and
/// how many connections it had. `many`: answers on one connection before it closes it.
fn tcp_device(many: usize, shape: fn(Vec<u8>) -> Vec<u8>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let (address, count) = (listener.local_addr().expect("address").to_string(), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            counted.fetch_add(1, Ordering::SeqCst);
            for _ in 0..many {
                let mut asked = [0u8; 12];
                if stream.read_exact(&mut asked).is_err() {
                    break;
                }
                let mut answer = asked[..2].to_vec();
                answer.extend([0, 0, 0, 5, asked[6], 3, 2, 0x12, 0x34]);
                stream.write_all(&shape(answer)).expect("answer");
            }
        }
    });
    (address, count)
}

fn run<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(what)
}

#[test]
fn device_that_closes_after_each_answer_is_connected_again_and_no_question_fails() {
    let (address, connections) = tcp_device(1, |answer| answer);
    let settings = settings(Bus::Tcp(address), MANNERS);
    run(async {
        let mut line = Line::open(&settings).await.expect("open");
        for _ in 0..5 {
            assert_eq!(line.ask(ASKED).await.expect("an answer"), [0x12, 0x34]);
        }
    });
    assert_eq!(connections.load(Ordering::SeqCst), 5);
}

#[test]
fn device_that_closes_without_an_answer_is_gone() {
    let (address, _) = tcp_device(0, |answer| answer);
    let settings = settings(Bus::Tcp(address), MANNERS);
    run(async {
        let mut line = Line::open(&settings).await.expect("open");
        assert!(matches!(line.ask(ASKED).await, Err(Failure::Gone(_))));
    });
}

#[test]
fn gateway_with_ids_of_its_own_is_named_and_read_where_ids_are_lenient() {
    let shape = |mut answer: Vec<u8>| {
        (answer[0], answer[1], answer[6]) = (0, 0, 255);
        answer
    };
    let (address, _) = tcp_device(9, shape);
    let strict = settings(Bus::Tcp(address.clone()), Manners { answer_ms: 200, ..MANNERS });
    let lenient = settings(Bus::Tcp(address), Manners { lenient_ids: true, ..MANNERS });
    run(async {
        let mut line = Line::open(&strict).await.expect("open");
        let outcome = line.ask(ASKED).await;
        assert!(matches!(&outcome, Err(Failure::Wrong(why)) if why.contains("lenient_ids = true")), "{outcome:?}");
        drop(line);
        let mut line = Line::open(&lenient).await.expect("open");
        assert_eq!(line.ask(ASKED).await.expect("an answer"), [0x12, 0x34]);
    });
}

/// The answer to the first question comes with that to the second one.
#[test]
fn late_answer_is_not_taken_for_that_of_the_next_question() {
    static HELD: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());
    let shape = |answer: Vec<u8>| {
        let mut held = HELD.lock().expect("held");
        if held.is_empty() {
            *held = answer;
            held[9] = 0x99;
            return vec![];
        }
        [held.clone(), answer].concat()
    };
    let (address, connections) = tcp_device(9, shape);
    let settings = settings(Bus::Tcp(address), Manners { answer_ms: 300, ..MANNERS });
    run(async {
        let mut line = Line::open(&settings).await.expect("open");
        assert!(matches!(line.ask(ASKED).await, Err(Failure::NoAnswer)));
        assert_eq!(line.ask(ASKED).await.expect("an answer"), [0x12, 0x34]);
    });
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// A line whose other end sends, for each question of 8 bytes, what `answer` makes of it.
fn tty_device(manners: Manners, answer: fn(&[u8]) -> Vec<u8>) -> (Modbus, OwnedFd) {
    let pty = openpty(None, None).expect("pty");
    let path = nix::unistd::ttyname(&pty.slave).expect("name").to_string_lossy().into_owned();
    let mut master = std::fs::File::from(pty.master);
    std::thread::spawn(move || {
        let mut asked = [0u8; 8];
        while master.read_exact(&mut asked).is_ok() {
            master.write_all(&answer(&asked)).expect("answer");
        }
    });
    let line = Bits { data: 8, parity: b'N', stop: 1 };
    let (framing, check, poll): (_, Option<Check>, _) = (Framing::Lines, None, None);
    let serial = Serial { path, baud: 115_200, line, frame_max: 64, framing, lines: LineForm::default(), check, poll };
    (settings(Bus::Line(serial), Manners { tcp_frames: false, ..manners }), pty.slave)
}

/// Register 0x1234 by RTU, of device 5.
const RTU_ANSWER: [u8; 7] = [5, 3, 2, 0x12, 0x34, 0x44, 0xF3];

#[test]
fn echo_on_a_line_is_named_and_skipped_where_it_is_declared() {
    let both = |asked: &[u8]| [asked, &RTU_ANSWER].concat();
    run(async {
        let (settings, _slave) = tty_device(Manners { answer_ms: 300, ..MANNERS }, both);
        let mut line = Line::open(&settings).await.expect("open");
        assert!(matches!(line.ask(ASKED).await, Err(Failure::Echo)));
        let (settings, _slave) = tty_device(Manners { echo: true, ..MANNERS }, both);
        let mut line = Line::open(&settings).await.expect("open");
        assert_eq!(line.ask(ASKED).await.expect("an answer"), [0x12, 0x34]);
    });
}

#[test]
fn zero_byte_of_the_turn_round_costs_no_answer() {
    run(async {
        let (settings, _slave) = tty_device(MANNERS, |_| [&[0], &RTU_ANSWER[..], &[0, 0]].concat());
        let mut line = Line::open(&settings).await.expect("open");
        for _ in 0..3 {
            assert_eq!(line.ask(ASKED).await.expect("an answer"), [0x12, 0x34]);
        }
    });
}

#[test]
fn pause_is_kept_between_an_answer_and_the_next_question() {
    run(async {
        let (settings, _slave) = tty_device(Manners { pause_us: 60_000, ..MANNERS }, |_| RTU_ANSWER.to_vec());
        let mut line = Line::open(&settings).await.expect("open");
        line.ask(ASKED).await.expect("an answer");
        let began = Instant::now();
        line.ask(ASKED).await.expect("an answer");
        assert!(began.elapsed() >= Duration::from_millis(55), "{:?}", began.elapsed());
    });
}
