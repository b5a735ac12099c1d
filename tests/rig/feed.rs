//! What was made, by the test's own log: rows with the time each was given to the daemon. And what came of it: every
//! number of a stream is delivered, or in the ledger, or the test says which promise broke.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{Daemon, SOON, Sub, Tty, within};

/// Within this every record is accepted (promises.md), and what reading a port and a busy machine add.
pub const ACCEPTED: Duration = Duration::from_millis(1200 + 400);

/// A row given to an open port is read within this.
const READ: Duration = Duration::from_millis(150);

/// Rows `n,n,0` given to a port.
#[derive(Default)]
pub struct Feed {
    /// When each row was given.
    pub times: Vec<Instant>,
    /// Rows that an end of the daemon may have cost: too young to be accepted.
    excused: BTreeSet<u64>,
    /// When the daemon was seen to have opened the port, in its present life.
    opened: Option<Instant>,
    /// And the store: before it nothing is accepted but by the broker.
    stores: Option<Instant>,
    /// Rows before this one were read in an earlier life of the daemon, at the latest.
    read: usize,
}

impl Feed {
    /// Gives rows at a rate for some time. Rows wait in the kernel while no daemon reads them.
    pub fn give(&mut self, tty: &mut Tty, daemon: &Daemon, per_s: u64, how_long: Duration) {
        let (began, first) = (Instant::now(), self.times.len() as u64);
        loop {
            let passed = began.elapsed();
            let due = first + (passed.as_secs_f64() * per_s as f64) as u64;
            let next = self.times.len() as u64;
            tty.rows(next..due.max(next), |i| format!("{i},{i},0"));
            self.times.resize(due.max(next) as usize, Instant::now());
            if self.opened.is_none() && daemon.own_log().contains("serial port open") {
                self.opened = Some(Instant::now());
            }
            if self.stores.is_none() && daemon.own_log().contains("the outbox's store is open") {
                self.stores = Some(Instant::now());
            }
            if passed >= how_long {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The daemon ended at this moment without warning.
    pub fn ended(&mut self, at: Instant) {
        // A row is made when it is read: at once while the port is open, else when it is opened.
        let opened = self.opened.take().unwrap_or(at);
        let stores = self.stores.take().unwrap_or(at);
        for (row, given) in self.times.iter().enumerate().skip(self.read) {
            let age = at.saturating_duration_since(opened.max(stores).max(*given));
            if age < ACCEPTED {
                self.excused.insert(row as u64);
            }
        }
        let surely = at - READ;
        if opened < surely {
            self.read = self.times.partition_point(|given| *given < surely);
        }
    }

    /// Compares with what a subscriber saw of `m/raw`.
    pub fn tally(&self, sub: &Sub) -> Tally {
        let messages = sub.messages();
        let mut tally = Tally::default();
        let (mut rows, mut seqs, mut heads) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
        for message in messages.iter().filter(|m| m.stream == "m/raw") {
            if !heads.insert(message.payload["seq"]["first"].as_u64()) {
                tally.doubled_messages += 1;
            }
            tally.wrong += u64::from(message.payload.is_null());
            for record in message.payload["data"].as_array().into_iter().flatten() {
                let (Some(row), Some(seq)) = (record["in_seq"][0].as_u64(), record["seq"].as_u64()) else {
                    tally.wrong += 1;
                    continue;
                };
                let value = record["v"]["a"].as_f64().or_else(|| record["v"][0].as_f64());
                tally.wrong += u64::from(value.is_some_and(|a| a != row as f64));
                tally.wrong += u64::from(seqs.insert(seq, row).is_some_and(|before| before != row));
                rows.insert(row);
            }
        }
        let missing: Vec<u64> = (0..self.times.len() as u64).filter(|row| !rows.contains(row)).collect();
        tally.made = self.times.len() as u64;
        tally.delivered = rows.len() as u64;
        tally.missing = missing.len() as u64;
        tally.lost = missing.iter().copied().filter(|row| !self.excused.contains(row)).collect();
        tally.unbooked = unbooked(&messages, "m/raw");
        tally
    }

    /// Waits until everything that the daemon holds was delivered: a last row, then an empty store.
    #[track_caller]
    pub fn drain(&mut self, tty: &mut Tty, sub: &Sub, most: Duration) {
        let last = self.times.len() as u64;
        tty.rows(last..last + 1, |i| format!("{i},{i},0"));
        self.times.push(Instant::now());
        within(most.max(SOON), "the backlog is delivered", || {
            std::thread::sleep(Duration::from_millis(200));
            let messages = sub.messages();
            let has_last = messages.iter().rev().filter(|m| m.stream == "m/raw").any(|m| {
                let data = m.payload["data"].as_array();
                data.is_some_and(|d| d.iter().any(|r| r["in_seq"][0].as_u64() == Some(last)))
            });
            let health = messages.iter().rev().find(|m| m.stream == "h" && m.payload["hist"] == false);
            let empty = health.is_some_and(|m| {
                m.payload["data"]
                    .as_array()
                    .and_then(|d| d.last())
                    .is_some_and(|h| h["stored_records"] == 0 && h["disk_ok"] == true)
            });
            has_last && empty
        });
    }
}

/// Numbers of a stream, up to the last that came, that were neither delivered nor recorded in the loss ledger.
pub fn unbooked(messages: &[std::sync::Arc<crate::Message>], stream: &str) -> u64 {
    let seqs: BTreeSet<u64> =
        crate::sub::records(messages, stream).iter().filter_map(|(record, _)| record["seq"].as_u64()).collect();
    let entries = crate::sub::records(messages, "loss");
    let of_stream = entries.iter().map(|(entry, _)| entry).filter(|entry| entry["stream"] == stream);
    let mut entered: Vec<(u64, u64)> = of_stream
        .map(|entry| (entry["first"].as_u64().expect("first"), entry["last"].as_u64().expect("last")))
        .collect();
    entered.sort_unstable();
    let (mut next, mut unbooked) = (1, 0);
    for seq in seqs {
        // Gaps may be wide: the ledger's ranges are subtracted one by one.
        let mut open = next;
        for (first, last) in entered.iter().filter(|(_, last)| *last >= next) {
            if *first >= seq {
                break;
            }
            unbooked += first.saturating_sub(open);
            open = open.max(last.saturating_add(1));
        }
        unbooked += seq.saturating_sub(open);
        next = seq + 1;
    }
    unbooked
}

/// The outcome of all rows.
#[derive(Debug, Default)]
pub struct Tally {
    pub made: u64,
    pub delivered: u64,
    /// Not delivered at all.
    pub missing: u64,
    /// Of these, the ones that were old enough to be accepted.
    pub lost: Vec<u64>,
    /// Numbers of the stream that are neither delivered nor in the ledger.
    pub unbooked: u64,
    /// Records with a wrong value, or two with one number.
    pub wrong: u64,
    pub doubled_messages: u64,
}

impl Tally {
    /// The promise about everything that was accepted.
    #[track_caller]
    pub fn check(&self) {
        assert!(self.lost.is_empty(), "{} accepted rows are lost: {:?}", self.lost.len(), self);
        assert_eq!((self.unbooked, self.wrong), (0, 0), "{self:?}");
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { made, delivered, missing, lost, doubled_messages, unbooked, .. } = self;
        let lost = lost.len();
        write!(
            f,
            "{made} rows made, {delivered} delivered, {missing} missing, {lost} of them accepted before, \
             {unbooked} numbers in no ledger, {doubled_messages} messages doubled"
        )
    }
}
