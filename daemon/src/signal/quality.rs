//! The quality of a source's data: counted, and reported when it changes. Pure; runs on stamps.

use std::{collections::BTreeMap, fmt::Write};

use bytes::Bytes;

use super::{presence::Presence, row::Refused};
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
    /// All of it was: the line's speed or its bits are set wrong.
    WrongBaud,
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
    /// Frames and refusals since the noise was last looked at, and when that was.
    lately: (u64, u64),
    looked_ns: Option<u64>,
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
    pub fn new(name: &str, channels: Vec<String>, stale_ms: u64) -> Self {
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
            lately: (0, 0),
            looked_ns: None,
            noise: 0.0,
            bad: BTreeMap::new(),
            changed: false,
            told_ns: 0,
        }
    }

    /// A frame was decoded.
    pub fn frame(&mut self, stamp: Stamp) {
        self.frames += 1;
        self.lately.0 += 1;
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

    /// A frame was refused.
    pub fn refused(&mut self, why: Refused) {
        self.refused[why as usize] += 1;
        self.presence.refused();
        self.lately.1 += 1;
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
        let (frames, refused) = std::mem::take(&mut self.lately);
        self.looked_ns = Some(now_ns);
        let noise = if refused == 0 { 0.0 } else { refused as f64 / (frames + refused) as f64 };
        self.changed |= (noise - self.noise).abs() > 0.01;
        self.noise = noise;
        let state = match self.state {
            _ if frames + refused >= limits::NOISE_FRAMES && frames == 0 => State::WrongBaud,
            _ if frames + refused >= limits::NOISE_FRAMES && refused > frames => State::Noisy,
            State::Noisy | State::WrongBaud if frames > 0 => State::Ok,
            State::Noisy | State::WrongBaud => State::Stale,
            other => other,
        };
        self.changed |= state != self.state;
        self.state = state;
    }

    /// 0 fine, 1 noisy, 2 nothing but noise.
    pub fn noise(&self) -> u64 {
        match self.state {
            State::Noisy => 1,
            State::WrongBaud => 2,
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
        out
    }
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
        let mut q = SourceQuality::new("pump", vec!["a".into(), "b".into()], 5000);
        assert_eq!(q.tell(at(2000)), None);
        q.frame(at(2000));
        q.sample(1, Quality::Bad(Why::Range));
        q.refused(Refused::Columns);
        q.refused(Refused::Columns);
        let reported = q.tell(at(2001)).expect("changed");
        let json: serde_json::Value =
            serde_json::from_str(&format!("{{{}}}", String::from_utf8_lossy(&reported))).expect("json");
        assert_eq!(json["state"], "ok");
        assert_eq!(json["refused"]["columns"], 2);
        assert_eq!(json["bad"]["b"]["bad:range"], 1);
        q.refused(Refused::Columns);
        assert_eq!(q.tell(at(2500)), None);
        assert!(q.tell(at(3100)).is_some());
        assert_eq!(q.tell(at(6900)), None);
        assert!(String::from_utf8_lossy(&q.tell(at(7100)).expect("stale")).contains("stale"));
    }
}
