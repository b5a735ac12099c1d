//! The schedule against played devices: fair, patient with silence, and around holes.

use super::*;
use crate::config::Registers;

/// A read of single registers at these addresses.
fn read(slave: u8, addresses: &[u16], every_ms: u64) -> Read {
    let parts: Vec<(u16, u16)> = addresses.iter().map(|address| (*address, 1)).collect();
    let (address, last) = (addresses[0], addresses[addresses.len() - 1]);
    Read { slave, table: Registers::Holding, address, count: last - address + 1, every_ms, parts }
}

/// A bus whose devices are played: it says what a question to a slave brings, and how long that takes.
struct Bus {
    pace: Pace,
    start: Instant,
    now: Instant,
    /// Slave, address, count, and when, ms.
    asked: Vec<(u8, Piece, u64)>,
    news: Vec<News>,
}

impl Bus {
    fn new(reads: &[Read]) -> Self {
        let now = Instant::now();
        Self { pace: Pace::new(reads, now), start: now, now, asked: vec![], news: vec![] }
    }

    fn ms(&self) -> u64 {
        self.now.duration_since(self.start).as_millis() as u64
    }

    fn run(&mut self, until_ms: u64, device: impl Fn(u8, Piece, u64) -> (Outcome, u64)) {
        while let Some((at, due)) = self.pace.next() {
            self.now = self.now.max(due);
            if self.ms() >= until_ms {
                return;
            }
            let slave = self.pace.reads[at].slave;
            for (part, piece) in self.pace.begin(at, self.now) {
                let ms = self.ms();
                let (outcome, took) = device(slave, piece, ms);
                self.asked.push((slave, piece, ms));
                self.now += Duration::from_millis(took);
                self.news.extend(self.pace.took(at, part, outcome, self.now));
            }
            self.pace.done(at, self.now);
        }
    }

    fn count(&self, slave: u8, address: u16) -> usize {
        self.asked.iter().filter(|(s, piece, _)| (*s, piece.address) == (slave, address)).count()
    }
}

const GOOD: (Outcome, u64) = (Outcome::Values, 5);
const SILENT: (Outcome, u64) = (Outcome::Failed(Fault::NoAnswer), 300);

fn refused(fault: Fault) -> (Outcome, u64) {
    (Outcome::Failed(fault), 5)
}

#[test]
fn every_read_comes_round_at_its_period() {
    let mut bus = Bus::new(&[read(1, &[0], 100), read(1, &[50], 250), read(2, &[0], 1000)]);
    bus.run(10_000, |_, _, _| GOOD);
    assert_eq!((bus.count(1, 0), bus.count(1, 50), bus.count(2, 0)), (100, 40, 10));
}

/// More is wanted than the bus can bring: all come round, none is left out.
#[test]
fn overloaded_bus_leaves_no_read_out() {
    let mut bus = Bus::new(&[read(1, &[0], 10), read(1, &[50], 10), read(2, &[0], 500)]);
    bus.run(10_000, |_, _, _| (Outcome::Values, 40));
    let counts = [bus.count(1, 0), bus.count(1, 50), bus.count(2, 0)];
    assert!(counts[0].abs_diff(counts[1]) <= 1 && counts[2] >= 18, "{counts:?}");
}

/// A device that hears nothing for 60 ms behind its answer, and no `pause_ms`: the two reads separate by themselves.
#[test]
fn read_that_is_not_heard_after_its_neighbour_is_read_all_the_same() {
    let mut bus = Bus::new(&[read(1, &[0], 500), read(1, &[100], 500)]);
    let last = std::cell::Cell::new(None::<u64>);
    bus.run(14_000, |_, _, ms| {
        if last.get().is_some_and(|last| ms < last + 60) {
            return SILENT;
        }
        last.set(Some(ms + 5));
        GOOD
    });
    let answered = [bus.count(1, 0), bus.count(1, 100)];
    assert!(answered.iter().all(|n| *n >= 26), "{answered:?}");
}

#[test]
fn silent_device_is_asked_less_and_less_and_takes_little_of_the_others_time() {
    let mut reads = vec![read(1, &[0], 200)];
    reads.extend((0..20).map(|i| read(9, &[10 * i], 200)));
    let mut bus = Bus::new(&reads);
    bus.run(120_000, |slave, _, _| if slave == 1 { GOOD } else { SILENT });
    let dead = bus.asked.iter().filter(|(slave, ..)| *slave == 9).count();
    // Each of its 20 reads once, then one of them at a time: 0.2 s, 0.4 s … 30 s.
    assert!((22..40).contains(&dead), "{dead}");
    assert!(bus.count(1, 0) > 530, "{} of 600", bus.count(1, 0));
    // It answers again: all are read as if nothing had been.
    let before = bus.asked.len();
    bus.run(160_000, |_, _, _| GOOD);
    let back = bus.asked[before..].iter().find(|(slave, ..)| *slave == 9).expect("it is tried").2;
    let soon = bus.asked.iter().filter(|(slave, _, ms)| *slave == 9 && (back..back + 1_000).contains(ms)).count();
    assert!(soon >= 60, "{soon} in the first second");
}

/// Some devices say nothing to an address that they do not have.
#[test]
fn register_that_is_never_answered_holds_up_the_others_of_its_device_ever_more_seldom() {
    let mut bus = Bus::new(&[read(1, &[0], 1000), read(1, &[500], 1000), read(1, &[700], 60_000)]);
    bus.run(180_000, |_, piece, _| if piece.address == 500 { SILENT } else { GOOD });
    assert!(bus.count(1, 0) >= 178, "{}", bus.count(1, 0));
    assert!(bus.count(1, 500) < 15, "{}", bus.count(1, 500));
    assert_eq!(bus.count(1, 700), 3);
}

#[test]
fn joined_read_falls_apart_around_its_hole_and_remembers_it() {
    let addresses: Vec<u16> = (0..20).collect();
    let mut bus = Bus::new(&[read(1, &addresses, 500)]);
    let hole = |_, piece: Piece, _| {
        let hit = (piece.address..piece.address + piece.count).contains(&7);
        if hit { refused(Fault::IllegalDataAddress) } else { GOOD }
    };
    bus.run(60_000, hole);
    let whole = Piece { address: 0, count: 20 };
    let alone = Piece { address: 7, count: 1 };
    let fault = Fault::IllegalDataAddress;
    assert_eq!(bus.news, [News::FallsApart(whole, fault), News::Fails(alone, fault)]);
    // From then on each round brings all the others, and asks for the hole ever more seldom.
    let round: Vec<_> = bus.asked.iter().filter(|(_, _, ms)| (40_000..40_400).contains(ms)).collect();
    let brought: u16 = round.iter().filter(|(_, piece, _)| *piece != alone).map(|(_, piece, _)| piece.count).sum();
    assert_eq!(brought, 19, "{round:?}");
    assert!(round.len() <= 6, "{round:?}");
    assert!(bus.count(1, 7) < 16, "{}", bus.count(1, 7));
}

#[test]
fn read_that_is_too_long_for_the_device_is_asked_in_halves() {
    let addresses: Vec<u16> = (100..140).collect();
    let mut bus = Bus::new(&[read(1, &addresses, 1000)]);
    bus.run(20_000, |_, piece, _| if piece.count > 12 { refused(Fault::IllegalDataValue) } else { GOOD });
    let round: Vec<u16> =
        bus.asked.iter().filter(|(_, _, ms)| (10_000..10_900).contains(ms)).map(|(_, piece, _)| piece.count).collect();
    assert_eq!((round.iter().sum::<u16>(), round.len()), (40, 4), "{round:?}");
    assert_eq!(bus.news.len(), 1, "{:?}", bus.news);
}

/// A device that starts refuses everything for a while: that is no hole.
#[test]
fn device_that_refuses_everything_for_a_while_is_read_in_one_piece_afterwards() {
    let mut bus = Bus::new(&[read(1, &[0, 1, 2, 3], 100)]);
    bus.run(3_000, |_, _, _| refused(Fault::IllegalDataAddress));
    let before = bus.asked.len();
    bus.run(60_000, |_, _, _| GOOD);
    let first: Vec<u16> = bus.asked[before..].iter().map(|(_, piece, _)| piece.count).collect();
    assert!(first.ends_with(&[4, 4, 4]), "{:?}", &first[..8]);
}

#[test]
fn joined_read_that_a_living_device_never_answers_falls_apart_too() {
    let mut bus = Bus::new(&[read(1, &[0], 500), read(1, &[40, 41, 43], 500)]);
    bus.run(
        60_000,
        |_, piece, _| if (piece.address..piece.address + piece.count).contains(&42) { SILENT } else { GOOD },
    );
    assert!(bus.news.contains(&News::FallsApart(Piece { address: 40, count: 4 }, Fault::NoAnswer)), "{:?}", bus.news);
    assert!(bus.count(1, 43) > 60 && bus.count(1, 40) > 80, "{} {}", bus.count(1, 43), bus.count(1, 40));
}

#[test]
fn faults_are_reported_when_they_begin_and_end() {
    let mut bus = Bus::new(&[read(1, &[5], 1000)]);
    bus.run(4_000, |_, _, _| SILENT);
    bus.run(60_000, |_, _, _| GOOD);
    bus.run(62_000, |_, _, _| refused(Fault::DeviceBusy));
    let piece = Piece { address: 5, count: 1 };
    let wanted = [News::Fails(piece, Fault::NoAnswer), News::Again(piece), News::Fails(piece, Fault::DeviceBusy)];
    assert_eq!(bus.news, wanted);
}
