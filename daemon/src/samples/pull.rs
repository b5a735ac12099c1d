//! A pull: a blob goes to the broker in chunks, one at a time, within a rate and a budget for each day. Pure: it decides when
//! the next chunk is due; `send` reads the bytes and hands them over.
//!
//! ```text
//! chunk ─ put ─▶ outbox ─▶ broker ─ acknowledged ─▶ next chunk, when rate and budget allow
//!   ▲                         │ not within a minute while connected: again, five times at most
//!   └─────────────────────────┘
//! ```
//!
//! At most one chunk is on its way: while there is no connection none is made, so a pull never fills the outbox. Progress and
//! the used budget are saved ahead, 256 KiB at a time: a restart repeats so much at most, and never exceeds the budget.

use serde::{Deserialize, Serialize};

use crate::{flow::order::Respond, limits};

/// The bytes that may be sent in a day: a bucket that fills evenly.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Bytes that may be sent now.
    bytes: f64,
    /// The boot, the ns since it and the time when that was so.
    boot: String,
    ns: u64,
    ms: Option<i64>,
}

/// A moment: the boot, ns since it, and ms since 1970 where known.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// Id of the boot.
    pub boot: &'a str,
    /// ns since it.
    pub ns: u64,
    /// ms since 1970.
    pub ms: Option<i64>,
}

const DAY_S: f64 = 86_400.0;

impl Budget {
    /// A full one.
    fn full(day: u64, now: Moment<'_>) -> Self {
        Self { bytes: day as f64, boot: now.boot.to_owned(), ns: now.ns, ms: now.ms }
    }

    /// Fills it for the time that has passed, also that of a restart where the clock tells it.
    fn fill(&mut self, day: u64, now: Moment<'_>) {
        let passed_s = if self.boot == now.boot {
            now.ns.saturating_sub(self.ns) as f64 / 1e9
        } else {
            let ms = self.ms.zip(now.ms).map_or(0, |(then, now)| now.saturating_sub(then).max(0));
            ms as f64 / 1e3
        };
        let filled = self.bytes + passed_s * day as f64 / DAY_S;
        *self = Self { bytes: filled.min(day as f64), ..Self::full(day, now) };
    }

    /// Seconds until so many bytes may be sent.
    fn wait_s(&self, bytes: f64, day: u64) -> u64 {
        ((bytes - self.bytes).max(0.0) / day.max(1) as f64 * DAY_S).ceil() as u64
    }
}

/// A pull in progress, as it is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Type of its command.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// Where its result goes beside `up/res`.
    pub respond: Option<Respond>,
    /// Of the blob, hex.
    pub sha256: String,
    /// Bytes of it.
    pub size: u64,
    /// Bytes of a chunk.
    pub chunk: u64,
    /// Bytes a second.
    pub bytes_s: u64,
    /// Files of it.
    pub files: u64,
    /// The tape's name.
    pub tape: Option<String>,
    /// Where a restart goes on.
    pub from: u64,
    /// All of it was acknowledged.
    pub done: bool,
}

/// What is saved.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// The budget.
    pub budget: Budget,
    /// The pull in progress.
    pub job: Option<Job>,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Nothing yet.
    Nothing,
    /// The state is to be saved; then ask again.
    Save,
    /// The bytes from here on are to be sent, so many.
    Send(u64, u64),
    /// It waits; for people.
    Tell(String),
    /// All of it was acknowledged.
    Done,
    /// It cannot go on.
    Failed(String),
}

/// A chunk on its way.
#[derive(Debug, Clone, Copy)]
struct Flying {
    seq: u64,
    end: u64,
    since_ns: u64,
}

/// The pull and its budget.
#[derive(Debug)]
pub struct Pull {
    /// What is saved.
    pub saved: Saved,
    /// Bytes a day; 0: no limit.
    day: u64,
    /// What was acknowledged.
    acked: u64,
    /// Up to here the progress and the budget are saved.
    until: u64,
    flying: Option<Flying>,
    tries: u32,
    /// When the next chunk may go by the rate, ns since boot.
    due_ns: u64,
    /// Why it waits, as it was reported.
    waits: Option<String>,
    /// When that was reported, ns since boot.
    told_ns: Option<u64>,
}

impl Pull {
    /// Goes on with what was saved.
    pub fn new(saved: Option<Saved>, day: u64, now: Moment<'_>) -> Self {
        let mut saved = saved.unwrap_or_else(|| Saved { budget: Budget::full(day, now), job: None });
        saved.budget.fill(day, now);
        let from = saved.job.as_ref().map_or(0, |job| job.from);
        Self { saved, day, acked: from, until: from, flying: None, tries: 0, due_ns: 0, waits: None, told_ns: None }
    }

    /// Begins one. It is to be saved before the next step.
    pub fn begin(&mut self, job: Job) {
        (self.acked, self.until, self.flying, self.tries, self.waits) = (job.from, job.from, None, 0, None);
        self.told_ns = None;
        self.saved.job = Some(job);
    }

    /// The pull ended, and its result is saved.
    pub fn forget(&mut self) {
        self.saved.job = None;
        self.flying = None;
        self.waits = None;
    }

    /// Bytes that were acknowledged, and why it waits.
    pub fn progress(&self) -> (u64, Option<&str>) {
        (self.acked, self.waits.as_deref())
    }

    /// Seconds until so many bytes may be sent, by the budget of the day.
    pub fn wait_s(&self, bytes: u64) -> u64 {
        if self.day == 0 { 0 } else { self.saved.budget.wait_s(bytes as f64, self.day) }
    }

    /// What is to be done now. `acked`: the highest chunk's record that the broker acknowledged.
    pub fn step(&mut self, now: Moment<'_>, acked: u64, online: bool) -> Step {
        let Some(job) = self.saved.job.as_ref().filter(|job| !job.done) else { return Step::Nothing };
        let (size, chunk) = (job.size, job.chunk);
        if let Some(flying) = self.flying {
            if acked >= flying.seq {
                (self.acked, self.flying, self.tries) = (flying.end, None, 0);
            } else if !online {
                // Without a connection the minute does not run.
                self.flying = Some(Flying { since_ns: now.ns, ..flying });
                return Step::Nothing;
            } else if now.ns.saturating_sub(flying.since_ns) < limits::PULL_AGAIN_NS {
                return Step::Nothing;
            } else {
                self.flying = None;
                self.tries += 1;
                if self.tries >= limits::PULL_TRIES {
                    let at = self.acked;
                    return Step::Failed(format!(
                        "the broker did not acknowledge the chunk at {at}, {} tries",
                        self.tries
                    ));
                }
            }
        }
        if self.acked >= size {
            return Step::Done;
        }
        if !online || now.ns < self.due_ns {
            return Step::Nothing;
        }
        let end = (self.acked + chunk).min(size);
        if end > self.until {
            return self.reserve(now, end, size);
        }
        self.waits = None;
        Step::Send(self.acked, end - self.acked)
    }

    /// Takes the next bytes from the budget, before they are sent.
    fn reserve(&mut self, now: Moment<'_>, end: u64, size: u64) -> Step {
        self.saved.budget.fill(self.day, now);
        let ahead = (self.until + limits::PULL_SAVE_BYTES).clamp(end, size);
        // A small budget is used in steps of one chunk.
        let affordable = |upto: u64| self.day == 0 || self.saved.budget.bytes >= (upto - self.until) as f64;
        let Some(upto) = [ahead, end].into_iter().find(|upto| affordable(*upto)) else {
            let text = self.why_waiting((end - self.until) as f64);
            self.waits = Some(text.clone());
            if self.told_ns.is_some_and(|at_ns| now.ns.saturating_sub(at_ns) < limits::PULL_TOLD_NS) {
                return Step::Nothing;
            }
            self.told_ns = Some(now.ns);
            return Step::Tell(text);
        };
        if self.day > 0 {
            self.saved.budget.bytes -= (upto - self.until) as f64;
        }
        if let Some(job) = &mut self.saved.job {
            job.from = self.acked;
        }
        self.until = upto;
        Step::Save
    }

    fn why_waiting(&self, bytes: f64) -> String {
        let (mib, minutes) = (self.day >> 20, self.saved.budget.wait_s(bytes, self.day).div_ceil(60));
        format!(
            "waits: the {mib} MiB a day of samples.pull_mib_day are used up; goes on in {minutes} min, then as they become free"
        )
    }

    /// The state could not be saved: what was taken from the budget is not used.
    pub fn not_saved(&mut self, now: Moment<'_>) {
        self.until = self.acked;
        self.due_ns = now.ns + limits::SCRIBE_RETRY.as_nanos() as u64;
    }

    /// The chunk was handed over, under this number.
    pub fn sent(&mut self, seq: u64, len: u64, now: Moment<'_>) {
        let bytes_s = self.saved.job.as_ref().map_or(1, |job| job.bytes_s.max(1));
        self.flying = Some(Flying { seq, end: self.acked + len, since_ns: now.ns });
        self.due_ns = now.ns + (len as u128 * 1_000_000_000 / u128::from(bytes_s)) as u64;
    }
}

/// Bytes of a chunk for this rate: half a second of it.
pub fn chunk(bytes_s: u64) -> u64 {
    (bytes_s / 2).clamp(limits::PULL_CHUNK_MIN, limits::PULL_CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn job(size: u64) -> Job {
        let (kind, id, sha256) = ("samples.pull".into(), "p-1".into(), "0".repeat(64));
        let bytes_s = 16 * 1024;
        let chunk = chunk(bytes_s);
        Job { kind, id, respond: None, sha256, size, chunk, bytes_s, files: 1, tape: None, from: 0, done: false }
    }

    fn at(s: f64) -> Moment<'static> {
        Moment { boot: "b", ns: (s * 1e9) as u64, ms: Some(1_800_000_000_000 + (s * 1e3) as i64) }
    }

    /// A link: what it acknowledged, and whether it is there.
    struct Played {
        pull: Pull,
        seq: u64,
        sent: Vec<(u64, u64)>,
        told: Vec<String>,
        disk: Saved,
        end: Option<Step>,
    }

    impl Played {
        fn new(pull: Pull) -> Self {
            let disk = pull.saved.clone();
            Self { pull, seq: 0, sent: Vec::new(), told: Vec::new(), disk, end: None }
        }

        /// Steps of 0.1 s over this stretch; chunks are acknowledged at once where the broker takes them.
        fn play(&mut self, from_s: f64, to_s: f64, online: bool, takes: bool) {
            let mut s = from_s;
            while s < to_s && self.end.is_none() {
                let acked = if takes { self.seq } else { 0 };
                match self.pull.step(at(s), acked, online) {
                    Step::Nothing => s += 0.1,
                    Step::Save => self.disk = self.pull.saved.clone(),
                    Step::Send(offset, len) => {
                        self.seq += 1;
                        self.sent.push((offset, len));
                        self.pull.sent(self.seq, len, at(s));
                    }
                    Step::Tell(text) => self.told.push(text),
                    end => self.end = Some(end),
                }
            }
        }

        fn bytes(&self) -> u64 {
            self.sent.iter().map(|(_, len)| len).sum()
        }
    }

    fn begun(size: u64, day: u64) -> Played {
        let mut pull = Pull::new(None, day, at(0.0));
        pull.begin(job(size));
        Played::new(pull)
    }

    #[test]
    fn blob_goes_in_order_at_its_rate_and_ends_when_all_of_it_is_acknowledged() {
        let mut played = begun(100_000, 16 * MIB);
        played.play(0.0, 3.0, true, true);
        assert!((40_000..66_000).contains(&played.bytes()), "{} in 3 s of 16 KiB/s", played.bytes());
        played.play(3.0, 20.0, true, true);
        assert_eq!((played.end.clone(), played.bytes()), (Some(Step::Done), 100_000));
        let mut end = 0;
        for (offset, len) in &played.sent {
            assert_eq!((*offset, *len <= 8192), (end, true));
            end += len;
        }
    }

    #[test]
    fn pull_beyond_the_budget_of_a_day_waits_says_so_and_goes_on_as_it_fills() {
        let mut played = begun(3 * MIB, MIB);
        played.play(0.0, 3600.0, true, true);
        let hour = MIB as f64 / 24.0;
        assert!((played.bytes() as f64) <= MIB as f64 + hour, "{}", played.bytes());
        assert!(played.bytes() > MIB - 8192 && played.told.len() == 1, "{} {:?}", played.bytes(), played.told);
        assert!(played.told[0].contains("samples.pull_mib_day"), "{:?}", played.told);
        assert!(played.pull.progress().1.is_some_and(|why| why.contains("used up")));
        played.play(3600.0, 2.1 * 86_400.0, true, true);
        assert_eq!(played.end, Some(Step::Done));
    }

    #[test]
    fn restarts_repeat_little_and_never_exceed_the_budget() {
        let (mut sent, mut s) = (0, 0.0);
        let mut disk = {
            let mut played = begun(100 * MIB, 2 * MIB);
            played.play(0.0, 1.0, true, true);
            sent += played.bytes();
            played.disk
        };
        for _ in 0..50 {
            s += 20.0;
            let mut played = Played::new(Pull::new(Some(disk), 2 * MIB, at(s)));
            played.play(s, s + 20.0, true, true);
            sent += played.bytes();
            disk = played.disk;
        }
        assert!(sent <= 2 * MIB + 2 * MIB / 86, "{sent} bytes in 1,000 s of a budget of 2 MiB a day");
        assert!(disk.job.expect("it goes on").from > 0);
    }

    #[test]
    fn nothing_is_made_while_there_is_no_connection_and_the_chunk_on_its_way_waits() {
        let mut played = begun(100_000, 16 * MIB);
        played.play(0.0, 1.0, false, false);
        assert_eq!(played.sent, []);
        played.play(1.0, 1.2, true, false);
        played.play(1.2, 4000.0, false, false);
        assert_eq!(played.sent.len(), 1, "none is added to the backlog");
        played.play(4000.0, 4030.0, true, true);
        assert_eq!((played.end, played.sent[1].0), (Some(Step::Done), played.sent[0].1), "it was not sent twice");
    }

    #[test]
    fn chunk_that_is_never_acknowledged_is_repeated_and_then_ends_the_pull() {
        let mut played = begun(100_000, 16 * MIB);
        played.play(0.0, 1000.0, true, false);
        assert!(matches!(&played.end, Some(Step::Failed(why)) if why.contains("chunk at 0")), "{:?}", played.end);
        assert_eq!(played.sent.len() as u32, limits::PULL_TRIES);
    }

    #[test]
    fn budget_fills_over_a_reboot_only_where_the_clock_tells_how_long_it_took() {
        let mut budget = Budget { bytes: 0.0, boot: "a".into(), ns: 5, ms: Some(0) };
        budget.fill(MIB, Moment { boot: "b", ns: 9, ms: None });
        assert_eq!(budget.bytes, 0.0);
        budget = Budget { bytes: 0.0, boot: "a".into(), ns: 5, ms: Some(0) };
        budget.fill(MIB, Moment { boot: "b", ns: 9, ms: Some(43_200_000) });
        assert_eq!(budget.bytes, (MIB / 2) as f64);
        assert_eq!(budget.wait_s(MIB as f64, MIB), 43_200);
    }

    #[test]
    fn chunk_is_half_a_second_of_the_rate_within_its_bounds() {
        assert_eq!([1024, 16 * 1024, 1 << 20].map(chunk), [2048, 8192, 32 * 1024]);
    }
}
