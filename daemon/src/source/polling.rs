//! A device that speaks only when it is asked: which request is due, what of the bytes is only its echo, and which response a
//! frame is. Pure: the caller passes the time; no I/O.
//!
//! One request is sent each `poll_ms`. Of several, one is open at a time: the next one is sent when the response came and the
//! line has been quiet for `pause_ms`, or when none came in time and the line was quiet long enough for a late one to show.
//! What comes while none is open belongs to none.

use std::{borrow::Cow, time::Duration};

use tokio::time::Instant;

use super::cut::Cut;
use crate::{config::Poll, limits};

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Act<'a> {
    /// This request is to be sent.
    Ask(&'a [u8]),
    /// The device did not respond in time.
    NoAnswer,
    /// Nothing yet.
    Wait,
}

/// Whether a response is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    /// By then it was to come.
    Until(Instant),
    /// It came; more of it may follow.
    Answered,
    /// It did not come in time, or no request was sent.
    No,
}

/// The requests of one connection.
#[derive(Debug)]
pub struct Polling<'a> {
    poll: &'a Poll,
    /// The request that is open, or was last.
    at: usize,
    open: Open,
    /// When the next request is due, whatever comes.
    due: Instant,
    /// When the first request is due again.
    round: Instant,
    /// When bytes came last.
    heard: Option<Instant>,
    /// How many bytes of the request were repeated so far; `None`: the bytes are no echo, or it is over.
    echoed: Option<usize>,
    /// A line that repeats the request may still be its echo.
    echo_line: bool,
}

impl<'a> Polling<'a> {
    /// The first request is due at once.
    pub fn new(poll: &'a Poll, now: Instant) -> Self {
        let at = poll.requests.len() - 1;
        let (open, echoed, echo_line) = (Open::No, None, false);
        Self { poll, at, open, due: now, round: now, heard: None, echoed, echo_line }
    }

    fn is_one(&self) -> bool {
        self.poll.requests.len() == 1
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(self.poll.pause_ms)
    }

    /// How long a response may take.
    pub fn answer(&self) -> Duration {
        Duration::from_millis(self.poll.answer_ms)
    }

    /// Whether `act` would ask.
    pub fn is_due(&self, now: Instant) -> bool {
        !matches!(self.open, Open::Until(by) if now >= by) && now >= self.ask_at()
    }

    /// Whether half a frame that stands there belongs to no response that may still come.
    pub fn is_fresh_line(&self) -> bool {
        !self.is_one()
    }

    /// When `act` is to be called.
    pub fn next(&self) -> Instant {
        match self.open {
            Open::Until(by) => by.min(self.ask_at()),
            Open::Answered | Open::No => self.ask_at(),
        }
    }

    /// When the next request may be sent.
    fn ask_at(&self) -> Instant {
        let quiet = self.heard.map_or(self.due, |heard| heard + self.pause());
        match self.open {
            // One request alone has its own pace: a late response still belongs to it.
            _ if self.is_one() => self.due.max(quiet.min(self.due + self.answer())),
            Open::Until(by) => by + self.answer(),
            Open::Answered => self.due.max(quiet),
            // One that talks without an end is asked in the end.
            Open::No => self.due.max(quiet.min(self.due + self.answer())),
        }
    }

    /// What is to be done now.
    pub fn act(&mut self, now: Instant) -> Act<'a> {
        if let Open::Until(by) = self.open
            && now >= by
        {
            self.open = Open::No;
            if !self.is_one() {
                self.due = self.due.max(by + self.pause().max(self.answer() / 2));
            }
            return Act::NoAnswer;
        }
        if now < self.ask_at() {
            return Act::Wait;
        }
        self.at = (self.at + 1) % self.poll.requests.len();
        if self.at == 0 {
            let every = Duration::from_millis(self.poll.every_ms);
            self.round = if now > self.round + every { now + every } else { self.round + every };
        }
        // The first one waits for its round, the others only for the line.
        self.due = if self.at + 1 == self.poll.requests.len() { self.round } else { now };
        self.open = Open::Until(now + self.answer());
        (self.echoed, self.echo_line) = (self.poll.echo.then_some(0), self.poll.echo);
        Act::Ask(&self.poll.requests[self.at])
    }

    /// Bytes came: returns those that are no echo. `held`: bytes that looked like one when they came are returned here too.
    pub fn take<'b>(&mut self, bytes: &'b [u8], now: Instant) -> Cow<'b, [u8]> {
        self.heard = Some(now);
        let Some(before) = self.echoed else { return Cow::Borrowed(bytes) };
        let request = &self.poll.requests[self.at];
        let same = request[before..].iter().zip(bytes).take_while(|(a, b)| a == b).count();
        if before + same == request.len() {
            (self.echoed, self.echo_line) = (None, false);
            return Cow::Borrowed(&bytes[same..]);
        }
        if same == bytes.len() {
            self.echoed = Some(before + same);
            return Cow::Borrowed(&[]);
        }
        self.echoed = None;
        match before {
            0 => Cow::Borrowed(bytes),
            _ => Cow::Owned([&request[..before], bytes].concat()),
        }
    }

    /// Bytes that looked like the beginning of an echo, and were none: before the next request.
    pub fn give_back(&mut self) -> Vec<u8> {
        let held = self.echoed.take().unwrap_or(0);
        self.poll.requests[self.at][..held].to_vec()
    }

    /// Frames came: returns those that are a response, each with the place of its request where there are several; and how many
    /// came while no request was open.
    pub fn frames(&mut self, cut: Cut, lines: bool) -> (Cut, u32) {
        let Cut { bytes, mut ranges } = cut;
        let request = self.poll.requests[self.at].trim_ascii();
        if lines && self.echo_line && !request.is_empty() {
            let is_echo = |&(from, to): &(u32, u32)| {
                bytes.get(from as usize..to as usize).is_some_and(|line| line.trim_ascii() == request)
            };
            if let Some(echo) = ranges.iter().position(is_echo) {
                ranges.remove(echo);
                self.echo_line = false;
            }
        }
        if ranges.is_empty() {
            return (Cut { bytes, ranges }, 0);
        }
        if self.is_one() {
            self.open = Open::No;
            return (Cut { bytes, ranges }, 0);
        }
        if self.open == Open::No {
            return (Cut::default(), ranges.len() as u32);
        }
        self.open = Open::Answered;
        (tagged(&Cut { bytes, ranges }, self.at as u16), 0)
    }
}

/// The same frames, each with its tag before it.
fn tagged(cut: &Cut, tag: u16) -> Cut {
    let mut out = Vec::with_capacity(cut.bytes.len() + 2 * cut.ranges.len());
    let ranges = cut.ranges.iter().map(|&(from, to)| match cut.bytes.get(from as usize..to as usize) {
        Some(frame) => {
            let start = out.len() as u32;
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(frame);
            (start, out.len() as u32)
        }
        None => (from, to),
    });
    let ranges = ranges.collect();
    Cut { bytes: out.into(), ranges }
}

const _: () = assert!(limits::REQUESTS <= u16::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::LineForm, source::framing::Lines};

    fn poll(requests: &[&str]) -> Poll {
        let requests = requests.iter().map(|r| r.as_bytes().to_vec()).collect();
        Poll { requests, every_ms: 1000, answer_ms: 200, pause_ms: 50, echo: true }
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A device's bytes, cut into lines; the frames as text.
    struct Talk<'a> {
        polling: Polling<'a>,
        lines: Lines,
        began: Instant,
    }

    impl<'a> Talk<'a> {
        fn new(poll: &'a Poll) -> Self {
            let began = Instant::now();
            Self { polling: Polling::new(poll, began), lines: Lines::new(64, LineForm::default()), began }
        }

        fn act(&mut self, at: u64) -> Act<'a> {
            self.polling.act(self.began + ms(at))
        }

        /// The next act and when it comes, ms.
        fn next(&mut self) -> (u64, Act<'a>) {
            let at = self.polling.next();
            ((at - self.began).as_millis() as u64, self.polling.act(at))
        }

        fn say(&mut self, at: u64, bytes: &str) -> Vec<String> {
            let mut frames = Vec::new();
            let bytes = self.polling.take(bytes.as_bytes(), self.began + ms(at)).into_owned();
            let (cut, _) = self.polling.frames(self.lines.feed(&bytes), true);
            for (from, to) in cut.ranges {
                frames.push(String::from_utf8_lossy(&cut.bytes[from as usize..to as usize]).into_owned());
            }
            frames
        }
    }

    #[test]
    fn echo_is_no_response_however_it_is_cut() {
        for size in 1..12 {
            let poll = poll(&["01\r\n"]);
            let mut talk = Talk::new(&poll);
            assert_eq!(talk.act(0), Act::Ask(b"01\r\n"));
            let all = b"01\r\n12.5\r\n";
            let said: Vec<String> =
                all.chunks(size).flat_map(|part| talk.say(1, std::str::from_utf8(part).expect("text"))).collect();
            assert_eq!(said, ["12.5"], "{size}");
            assert_eq!(talk.act(300), Act::Wait, "it was answered");
        }
        for (request, said, wanted) in [
            ("01\r\n", "01\r\n", &[][..]),
            ("01\r\n", "01\r\n01\r\n", &["01"]), // an echo, and a value that is the same
            ("01\r", "01\r\n7\r\n", &["7"]),     // CR is repeated as CR LF
            ("?", "?7.5\r\n", &["7.5"]),         // without an end of line
            ("01\n", "01\r\n7\r\n", &["7"]),     // another end of line
            ("01\r\n", "\x007\r\n01\r\n8\r\n", &["\x007", "8"]), // a late response before it
            ("0\r\n", "0.75\r\n", &["0.75"]),    // a value that begins like the request
            ("\r\n", "\r\n3\r\n", &["3"]),
            ("A\r\nB\r\n", "A\r\nB\r\n3\r\n", &["3"]),
        ] {
            let poll = poll(&[request]);
            let mut talk = Talk::new(&poll);
            talk.act(0);
            assert_eq!(talk.say(1, said), wanted, "{request:?} {said:?}");
            let no_answer = talk.act(200) == Act::NoAnswer;
            assert_eq!(no_answer, wanted.is_empty(), "{said:?}");
        }
        let poll = Poll { echo: false, ..poll(&["01\r\n"]) };
        let mut talk = Talk::new(&poll);
        talk.act(0);
        assert_eq!(talk.say(1, "01\r\n"), ["01"], "its values may be those of the request");
    }

    #[test]
    fn bytes_that_only_began_like_an_echo_are_given_back() {
        let poll = poll(&["12\r\n"]);
        let mut talk = Talk::new(&poll);
        talk.act(0);
        assert_eq!(talk.say(1, "1"), Vec::<String>::new());
        assert_eq!(talk.act(200), Act::NoAnswer);
        assert_eq!(talk.polling.give_back(), b"1");
        assert_eq!(talk.polling.give_back(), b"");
    }

    #[test]
    fn one_request_is_sent_at_its_pace_and_several_in_turns_with_pauses() {
        let one = poll(&["A"]);
        let mut talk = Talk::new(&one);
        assert_eq!(
            (talk.next(), talk.next(), talk.next()),
            ((0, Act::Ask(b"A")), (200, Act::NoAnswer), (1000, Act::Ask(b"A")))
        );
        assert_eq!(talk.say(1030, "7\n"), ["7"]);
        assert_eq!(talk.next(), (2000, Act::Ask(b"A")));

        let three = poll(&["A", "B", "C"]);
        let mut talk = Talk::new(&three);
        assert_eq!(talk.next(), (0, Act::Ask(b"A")));
        assert_eq!(talk.say(20, "a1\n"), ["\0\0a1"]);
        assert_eq!(talk.act(40), Act::Wait);
        assert_eq!(talk.say(45, "a2\n"), ["\0\0a2"], "a response of two lines");
        assert_eq!(talk.next(), (95, Act::Ask(b"B")), "50 ms of silence later");
        assert_eq!(talk.next(), (295, Act::NoAnswer));
        assert_eq!(talk.say(300, "b\n"), Vec::<String>::new(), "too late: it could be taken for that of C");
        assert_eq!(talk.next(), (395, Act::Ask(b"C")));
        assert_eq!(talk.say(410, "c\n"), ["\x02\0c"]);
        assert_eq!(talk.next(), (1000, Act::Ask(b"A")), "the next round");
    }

    #[test]
    fn device_that_talks_without_an_end_is_asked_all_the_same_and_a_slow_round_does_not_pile_up() {
        let poll = Poll { every_ms: 300, ..poll(&["A", "B"]) };
        let mut talk = Talk::new(&poll);
        let (mut asked, mut at) = (Vec::new(), 0);
        while at < 5000 {
            match talk.act(at) {
                Act::Ask(_) => asked.push(at),
                Act::NoAnswer | Act::Wait => {}
            }
            talk.polling.heard = Some(talk.began + ms(at));
            at += 10;
        }
        assert!(asked.len() >= 8, "{asked:?}");
        assert!(asked.windows(2).all(|pair| pair[1] - pair[0] >= 200), "{asked:?}");
    }
}
