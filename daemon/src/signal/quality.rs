//! The quality of a source's data: counted, and reported when it changes. Pure; runs on stamps.

use std::{collections::BTreeMap, fmt::Write};

use bytes::Bytes;

use super::{presence::Presence, row::Refused, values};
use crate::{
    flow::{Fault, Quality, Stamp, Why, record::json_str},
    limits,
};

/// The state of a source as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No frame yet.
    Waiting,
    /// Frames arrive.
    Ok,
    /// None for `stale_ms`.
    Stale,
    /// More than half of what came in the last 10 s was refused.
    Noisy,
    /// All of it was, and its bytes look like those of another speed, or of other bits.
    WrongBaud,
    /// All of it was, and it was received without a fault: it has another format than the configured one.
    WrongFormat,
}

/// What was refused since the last look.
#[derive(Debug, Default)]
struct Lately {
    frames: u64,
    refused: u64,
    /// Of what was refused: bytes that look like those of another speed.
    strange: u64,
    /// The first that was refused: why, and its bytes, escaped.
    example: Option<(Refused, String)>,
}

/// Counters of one source.
#[derive(Debug)]
pub struct SourceQuality {
    name: String,
    channels: Vec<String>,
    /// Whether it delivers.
    pub(super) presence: Presence,
    stale_ns: u64,
    state: State,
    last_frame_ns: u64,
    frames: u64,
    refused: [u64; Refused::ALL.len()],
    gaps: u64,
    missing: u64,
    breaks: u64,
    shed: u64,
    late: u64,
    duplicates: u64,
    reordered: u64,
    backward: u64,
    faults: BTreeMap<Fault, u64>,
    /// Its frames are lines of text.
    text: bool,
    /// Since the noise was last looked at, and when that was.
    lately: Lately,
    looked_ns: Option<u64>,
    /// An example of what is refused, while nothing else comes; and whether it is to be logged.
    example: Option<(Refused, String)>,
    complain: Option<String>,
    /// Share of refusals in the last look.
    noise: f64,
    bad: BTreeMap<(usize, &'static str), u64>,
    /// By channel: when it came last, and whether that is too long ago while others come.
    heard_ns: Vec<Option<u64>>,
    silent: Vec<bool>,
    changed: bool,
    told_ns: u64,
}

impl SourceQuality {
    /// Nothing known yet.
    pub fn new(name: &str, channels: Vec<String>, stale_ms: u64, text: bool) -> Self {
        Self {
            name: name.to_owned(),
            heard_ns: vec![None; channels.len()],
            silent: vec![false; channels.len()],
            channels,
            presence: Presence::new(stale_ms),
            stale_ns: stale_ms * 1_000_000,
            state: State::Waiting,
            last_frame_ns: 0,
            frames: 0,
            refused: Default::default(),
            gaps: 0,
            missing: 0,
            breaks: 0,
            shed: 0,
            late: 0,
            duplicates: 0,
            reordered: 0,
            backward: 0,
            faults: BTreeMap::new(),
            text,
            lately: Lately::default(),
            looked_ns: None,
            example: None,
            complain: None,
            noise: 0.0,
            bad: BTreeMap::new(),
            changed: false,
            told_ns: 0,
        }
    }

    /// A frame was decoded.
    pub fn frame(&mut self, stamp: Stamp) {
        self.frames += 1;
        self.lately.frames += 1;
        self.presence.heard(stamp.boot_ns);
        self.last_frame_ns = stamp.boot_ns;
        if matches!(self.state, State::Waiting | State::Stale) {
            self.state = State::Ok;
            self.changed = true;
        }
    }

    /// A sample of it is not good.
    pub fn sample(&mut self, channel: usize, quality: Quality) {
        *self.bad.entry((channel, quality.word())).or_default() += 1;
        self.changed = true;
    }

    /// A channel that does not come with every row was in this one.
    pub fn heard(&mut self, channel: usize, now_ns: u64) {
        self.heard_ns[channel] = Some(now_ns);
        if std::mem::take(&mut self.silent[channel]) {
            self.changed = true;
        }
    }

    /// A frame was refused; its bytes, where there are any.
    pub fn refused(&mut self, why: Refused, frame: Option<&[u8]>) {
        self.refused[why as usize] += 1;
        self.presence.refused();
        self.lately.refused += 1;
        let broken = matches!(why, Refused::Garbage | Refused::Encoding);
        self.lately.strange += u64::from(broken || self.text && frame.is_some_and(|frame| !looks_like_text(frame)));
        if let Some(frame) = frame.filter(|_| self.lately.example.is_none()) {
            self.lately.example = Some((why, values::example(frame)));
        }
        self.changed = true;
    }

    /// Rows are missing before this one.
    pub fn gap(&mut self, missing: u64) {
        self.gaps += 1;
        self.missing = self.missing.saturating_add(missing);
        self.changed = true;
    }

    /// A row came twice; the second is not used.
    pub fn duplicate(&mut self) {
        self.duplicates += 1;
        self.changed = true;
    }

    /// A row is older than the previous one by the sensor's sequence.
    pub fn reordered(&mut self) {
        self.reordered += 1;
        self.changed = true;
    }

    /// A row is older than the previous one by the sensor's clock.
    pub fn backward(&mut self) {
        self.backward += 1;
        self.changed = true;
    }

    /// Something went wrong with a device of the source.
    pub fn fault(&mut self, fault: Fault, n: u64) {
        *self.faults.entry(fault).or_default() += n;
        self.presence.fault(fault);
        self.changed = true;
    }

    /// The port was opened, closed or overrun.
    pub fn broke(&mut self, how: &str) {
        self.breaks += 1;
        self.presence.broke(how);
        self.changed = true;
    }

    /// Frames were shed because a lane was full.
    pub fn shed(&mut self, frames: u64) {
        self.shed += frames;
        self.changed = true;
    }

    /// Samples came after their cell was closed.
    pub fn late(&mut self, samples: u64) {
        self.late += samples;
        self.changed = true;
    }

    /// Time went on. Returns the record's members when there is something to tell.
    pub fn tell(&mut self, stamp: Stamp) -> Option<Bytes> {
        self.look(stamp.boot_ns);
        for (channel, heard_ns) in self.heard_ns.iter().enumerate() {
            let silent = heard_ns.is_some_and(|at| stamp.boot_ns.saturating_sub(at) > self.stale_ns);
            if silent && !std::mem::replace(&mut self.silent[channel], true) {
                *self.bad.entry((channel, Quality::Bad(Why::Stale).word())).or_default() += 1;
                self.changed = true;
            }
        }
        if self.state == State::Ok && stamp.boot_ns.saturating_sub(self.last_frame_ns) > self.stale_ns {
            self.state = State::Stale;
            self.changed = true;
        }
        if !self.changed || stamp.boot_ns.saturating_sub(self.told_ns) < limits::QUALITY_EVERY_NS {
            return None;
        }
        self.changed = false;
        self.told_ns = stamp.boot_ns;
        Some(self.body().into())
    }

    /// How noisy the port is, once in a while.
    fn look(&mut self, now_ns: u64) {
        let since = *self.looked_ns.get_or_insert(now_ns);
        if now_ns.saturating_sub(since) < limits::NOISE_NS {
            return;
        }
        let Lately { frames, refused, strange, example } = std::mem::take(&mut self.lately);
        self.looked_ns = Some(now_ns);
        let noise = if refused == 0 { 0.0 } else { refused as f64 / (frames + refused) as f64 };
        self.changed |= (noise - self.noise).abs() > 0.01;
        self.noise = noise;
        let state = match self.state {
            _ if frames + refused >= limits::NOISE_FRAMES && frames == 0 && strange * 2 > refused => State::WrongBaud,
            _ if frames + refused >= limits::NOISE_FRAMES && frames == 0 => State::WrongFormat,
            _ if frames + refused >= limits::NOISE_FRAMES && refused > frames => State::Noisy,
            State::Noisy | State::WrongBaud | State::WrongFormat if frames > 0 => State::Ok,
            State::Noisy | State::WrongBaud | State::WrongFormat => State::Stale,
            other => other,
        };
        self.example = example.filter(|_| frames == 0).or(self.example.take()).filter(|_| self.is_unread(state));
        if state != self.state {
            self.changed = true;
            self.complain = self.is_unread(state).then(|| self.complaint(state, refused));
        }
        self.state = state;
    }

    fn is_unread(&self, state: State) -> bool {
        matches!(state, State::WrongBaud | State::WrongFormat)
    }

    /// Nothing that came could be read: what, and what to do.
    fn complaint(&self, state: State, refused: u64) -> String {
        let what = format!("source {}: none of {refused} frames could be read", self.name);
        let example =
            self.example.as_ref().map(|(why, frame)| format!(": {} in: {frame}", why.word())).unwrap_or_default();
        let advice = match (state, self.example.as_ref().and_then(|(why, _)| why.advice())) {
            (State::WrongBaud, _) => {
                "the bytes look like those of another speed: compare `baud` and `line` with the device"
            }
            (_, Some(advice)) => advice,
            (_, None) => "they came without a fault, in another format: compare `format` and its keys with the example",
        };
        format!("{what}{example}; {advice}")
    }

    /// What is to be logged.
    pub fn take_complaint(&mut self) -> Option<String> {
        self.complain.take()
    }

    /// 0 fine, 1 noisy, 2 nothing but noise, 3 nothing in its format.
    pub fn noise(&self) -> u64 {
        match self.state {
            State::Noisy => 1,
            State::WrongBaud => 2,
            State::WrongFormat => 3,
            _ => 0,
        }
    }

    fn body(&self) -> String {
        let mut out = String::from("\"source\":");
        json_str(&mut out, &self.name);
        let state = match self.state {
            State::Waiting => "waiting",
            State::Ok => "ok",
            State::Stale => "stale",
            State::Noisy => "noisy",
            State::WrongBaud => "wrong_baud",
            State::WrongFormat => "wrong_format",
        };
        let _ = write!(out, ",\"state\":\"{state}\",\"frames\":{},\"refused\":{{", self.frames);
        let counts = Refused::ALL.iter().map(|why| (why.word(), self.refused[*why as usize]));
        join(&mut out, counts.filter(|(_, n)| *n > 0), |out, (word, n)| write!(out, "\"{word}\":{n}"));
        let _ = write!(
            out,
            "}},\"gaps\":{},\"missing\":{},\"duplicates\":{},\"reordered\":{},\"backward\":{}",
            self.gaps, self.missing, self.duplicates, self.reordered, self.backward
        );
        let _ = write!(
            out,
            ",\"breaks\":{},\"shed\":{},\"late\":{},\"noise\":{:.3},\"faults\":{{",
            self.breaks, self.shed, self.late, self.noise
        );
        join(&mut out, self.faults.iter(), |out, (fault, n)| write!(out, "\"{}\":{n}", fault.word()));
        out.push_str("},\"bad\":{");
        let channels = (0..self.channels.len()).filter(|c| self.bad.keys().any(|(channel, _)| channel == c));
        join(&mut out, channels, |out, c| {
            json_str(out, &self.channels[c]);
            out.push_str(":{");
            let words = self.bad.iter().filter(|((channel, _), _)| *channel == c);
            join(out, words, |out, ((_, word), n)| write!(out, "\"{word}\":{n}"));
            out.write_char('}')
        });
        out.push('}');
        if let Some((why, frame)) = &self.example {
            let _ = write!(out, ",\"example\":{{\"why\":\"{}\",\"frame\":", why.word());
            json_str(&mut out, frame);
            out.push('}');
        }
        out
    }
}

/// Whether bytes are text that was received without a fault, in whatever encoding: a wrong speed makes bytes of any value.
fn looks_like_text(bytes: &[u8]) -> bool {
    let control = |c: char| c.is_control() && !matches!(c, '\t' | '\r' | '\x02' | '\x03');
    let plain = bytes.iter().filter(|b| matches!(b, b' '..=b'~' | b'\t' | b'\r')).count();
    plain * 4 >= bytes.len() * 3 || std::str::from_utf8(bytes).is_ok_and(|text| !text.contains(control))
}

/// Writes items with commas between them.
pub(super) fn join<T>(
    out: &mut String,
    items: impl Iterator<Item = T>,
    mut each: impl FnMut(&mut String, T) -> std::fmt::Result,
) {
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(',');
        }
        let _ = each(out, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Clk;

    #[test]
    fn changes_are_told_once_a_second_at_most_and_silence_is_told_too() {
        let at = |ms: u64| Stamp { boot_ns: ms * 1_000_000, wall_ms: None, clk: Clk::Unset };
        let mut q = SourceQuality::new("pump", vec!["a".into(), "b".into()], 5000, true);
        assert_eq!(q.tell(at(2000)), None);
        q.frame(at(2000));
        q.sample(1, Quality::Bad(Why::Range));
        q.refused(Refused::Columns, Some(b"1"));
        q.refused(Refused::Columns, Some(b"2"));
        let reported = q.tell(at(2001)).expect("changed");
        let json: serde_json::Value =
            serde_json::from_str(&format!("{{{}}}", String::from_utf8_lossy(&reported))).expect("json");
        assert_eq!(json["state"], "ok");
        assert_eq!(json["refused"]["columns"], 2);
        assert_eq!(json["bad"]["b"]["bad:range"], 1);
        q.refused(Refused::Columns, Some(b"3"));
        assert_eq!(q.tell(at(2500)), None);
        assert!(q.tell(at(3100)).is_some());
        assert_eq!(q.tell(at(6900)), None);
        assert!(String::from_utf8_lossy(&q.tell(at(7100)).expect("stale")).contains("stale"));
    }

    /// The state after 10 s of these refusals, and what is logged.
    fn after(text: bool, refused: &[(Refused, Option<&[u8]>)]) -> (State, String, String) {
        let at = |s: u64| Stamp { boot_ns: s * 1_000_000_000, wall_ms: None, clk: Clk::Unset };
        let mut q = SourceQuality::new("s", vec!["a".into()], 5000, text);
        q.tell(at(1));
        refused.iter().for_each(|(why, frame)| q.refused(*why, *frame));
        let body = q.tell(at(12)).map(|body| String::from_utf8_lossy(&body).into_owned()).unwrap_or_default();
        let complaint = q.take_complaint().unwrap_or_default();
        assert_eq!(q.take_complaint(), None, "once");
        (q.state, complaint, body)
    }

    #[test]
    fn text_that_was_received_without_a_fault_is_never_a_wrong_speed() {
        let lines: [(Refused, &[u8], &str); 7] = [
            (Refused::Columns, b"17.5;18.1;4", "columns in: 17.5;18.1;4"),
            (Refused::NotJson, b"ready.", "not_json in: ready."),
            (Refused::NoChecksum, b"$SDDPT,4.4,0.3", "checksum = \"optional\""),
            (Refused::NotNmea, b"AT+CSQ", "AT+CSQ"),
            (Refused::NotText, b"t=21.4\xb0C p=3", "t=21.4\\xb0C"),
            (Refused::Columns, "\u{442}\u{435}\u{43c}\u{43f} 5".as_bytes(), "columns in"),
            (Refused::Checksum, b"$GPGLL,1*00", "checksum in: $GPGLL"),
        ];
        for (why, line, wanted) in lines {
            let (state, complaint, body) = after(true, &[(why, Some(line)); 5]);
            assert_eq!(state, State::WrongFormat, "{line:?}");
            assert!(complaint.contains(wanted) && !complaint.contains("another speed"), "{complaint}");
            assert!(body.contains("\"state\":\"wrong_format\"") && body.contains("\"example\":{\"why\":"), "{body}");
        }
    }

    #[test]
    fn bytes_of_another_speed_are_named_so_and_a_wrong_check_is_not() {
        let noise: [&[u8]; 2] = [b"\xfe\x83\x9e", b"\x00x\x18\x1e\x07"];
        for bytes in noise {
            assert_eq!(after(true, &[(Refused::NotText, Some(bytes)); 5]).0, State::WrongBaud);
        }
        assert_eq!(after(false, &[(Refused::Encoding, None); 5]).0, State::WrongBaud);
        let garbage = [(Refused::Garbage, None), (Refused::Checksum, None), (Refused::Garbage, None)];
        assert_eq!(after(false, &[garbage, garbage].concat()).0, State::WrongBaud);
        // Every frame stands where it should and has its length: the check, or the layout, is another one.
        assert_eq!(after(false, &[(Refused::Checksum, None); 5]).0, State::WrongFormat);
        assert_eq!(after(false, &[(Refused::Length, Some(&[1, 255, 0][..])); 5]).0, State::WrongFormat);
        assert_eq!(after(true, &[(Refused::Columns, Some(&b"1"[..])); 3]).0, State::Waiting, "too few to say");
    }
}
