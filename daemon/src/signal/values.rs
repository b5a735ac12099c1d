//! How good the values of each channel are: the share of bad ones, an example of them, and whether a device of a bus gives
//! any. Pure; runs on stamps.

use super::presence::Pulse;
use crate::{
    flow::{event::Kind, meter::ChannelState},
    limits,
};

/// A channel went bad, or is good again: an event.
#[derive(Debug, Clone, PartialEq)]
pub struct News {
    /// Place in the source's row.
    pub channel: usize,
    /// What it is now.
    pub state: ChannelState,
    /// Share of bad values when it was looked at.
    pub share: f64,
    /// A frame with a bad value, escaped; and what was wrong with it.
    pub example: Option<(String, &'static str)>,
}

impl News {
    /// The event, and what happened in words, to a channel of this source.
    pub fn report(&self, source: &str) -> (Kind, String) {
        let percent = self.share * 100.0;
        match (self.state, &self.example) {
            (ChannelState::Good, _) => (Kind::ChannelGood, "its values can be used again".into()),
            (ChannelState::Silent, _) => {
                (Kind::ChannelBad, format!("no value comes, while others of source {source} do"))
            }
            (ChannelState::Bad, None) => {
                (Kind::ChannelBad, format!("{percent:.0} % of its values from source {source} are bad"))
            }
            (ChannelState::Bad, Some((frame, word))) => {
                let text = format!("{percent:.0} % of its values from source {source} are bad; {word} in: {frame}");
                (Kind::ChannelBad, text)
            }
        }
    }
}

#[derive(Debug, Default)]
struct Channel {
    values: u64,
    bad: u64,
    /// Not yet handed to the meters.
    unmetered: (u64, u64),
    share: Option<f64>,
    state: ChannelState,
    example: Option<(String, &'static str)>,
    pulse: Pulse,
}

/// The channels of one source.
#[derive(Debug)]
pub struct Values {
    channels: Vec<Channel>,
    /// Each is asked for by itself, so that its silence says something of its device.
    asked: bool,
    stale_ns: u64,
    looked_ns: Option<u64>,
}

impl Values {
    /// For so many channels.
    pub fn new(channels: usize, asked: bool, stale_ms: u64) -> Self {
        let channels = std::iter::repeat_with(Channel::default).take(channels).collect();
        Self { channels, asked, stale_ns: stale_ms * 1_000_000, looked_ns: None }
    }

    /// A value came; `wrong`: what is wrong with it. Returns whether the frame it came in is wanted as an example.
    pub fn value(&mut self, channel: usize, now_ns: u64, wrong: Option<&'static str>) -> bool {
        let asked = self.asked;
        let channel = &mut self.channels[channel];
        channel.values += 1;
        channel.unmetered.0 += 1;
        if asked {
            channel.pulse.heard(now_ns, true);
        }
        let Some(word) = wrong else { return false };
        channel.bad += 1;
        channel.unmetered.1 += 1;
        let wanted = channel.example.is_none();
        if wanted {
            channel.example = Some((String::new(), word));
        }
        wanted
    }

    /// The frame of the values that `value` wanted one for.
    pub fn example(&mut self, frame: &[u8]) {
        let text = example(frame);
        let open = self.channels.iter_mut().filter_map(|channel| channel.example.as_mut());
        open.filter(|(text, _)| text.is_empty()).for_each(|(known, _)| known.clone_from(&text));
    }

    /// Time went on. Returns what changed; nothing is said of the devices of a source that is lost as a whole.
    pub fn look(&mut self, now_ns: u64, began_ns: u64, lost: bool) -> Vec<News> {
        let since = *self.looked_ns.get_or_insert(now_ns);
        if now_ns.saturating_sub(since) < limits::BAD_NS {
            return Vec::new();
        }
        self.looked_ns = Some(now_ns);
        let (asked, stale_ns) = (self.asked, self.stale_ns);
        let changed = self.channels.iter_mut().enumerate().filter_map(|(place, channel)| {
            let silent = asked && !lost && channel.pulse.is_lost(now_ns, began_ns, stale_ns);
            let state = channel.judge(silent);
            let example = (channel.values == 0).then(|| channel.example.take()).flatten();
            if state == channel.state {
                return None;
            }
            channel.state = state;
            let example = example.filter(|_| state == ChannelState::Bad);
            Some(News { channel: place, state, share: channel.share.unwrap_or(0.0), example })
        });
        changed.collect()
    }

    /// Values and bad values since the last call, the share of bad ones in the last look, and the state.
    pub fn take_counts(&mut self) -> impl Iterator<Item = ((u64, u64), Option<f64>, ChannelState)> {
        self.channels.iter_mut().map(|c| (std::mem::take(&mut c.unmetered), c.share, c.state))
    }
}

/// A frame as an example: escaped, and cut where it is long.
pub(super) fn example(frame: &[u8]) -> String {
    let text = frame[..frame.len().min(limits::EXAMPLE_BYTES)].escape_ascii();
    let more = if frame.len() > limits::EXAMPLE_BYTES { "…" } else { "" };
    format!("{text}{more}")
}

impl Channel {
    /// What it is now. A look at too few values is put off.
    fn judge(&mut self, silent: bool) -> ChannelState {
        if self.values >= limits::BAD_VALUES {
            let share = self.bad as f64 / self.values as f64;
            (self.values, self.bad, self.share) = (0, 0, Some(share));
            if silent {
                return ChannelState::Silent;
            }
            let most = if self.state == ChannelState::Bad { limits::GOOD_SHARE } else { limits::BAD_SHARE };
            return if share > most { ChannelState::Bad } else { ChannelState::Good };
        }
        match self.state {
            _ if silent => ChannelState::Silent,
            // It came again, though not often enough for a share.
            ChannelState::Silent => ChannelState::Good,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn give(values: &mut Values, at: u64, n: u64, bad: u64) {
        for i in 0..n {
            if values.value(0, at, (i < bad).then_some("bad:not_a_number")) {
                values.example(b"7,\x1bjunk\n\xff");
            }
        }
    }

    #[test]
    fn channel_with_mostly_bad_values_is_reported_with_an_escaped_example_and_so_is_its_end() {
        let mut values = Values::new(1, false, 5000);
        assert_eq!(values.look(0, 0, false), []);
        give(&mut values, S, 100, 40);
        assert_eq!(values.look(10 * S, 0, false), [], "a good deal, but not most");
        give(&mut values, 11 * S, 100, 60);
        assert_eq!(values.look(19 * S, 0, false), [], "not yet");
        let example = Some(("7,\\x1bjunk\\n\\xff".to_owned(), "bad:not_a_number"));
        let news = News { channel: 0, state: ChannelState::Bad, share: 0.6, example };
        assert_eq!(values.look(20 * S, 0, false), [news]);
        give(&mut values, 21 * S, 100, 40);
        assert_eq!(values.look(30 * S, 0, false), [], "it does not flap");
        give(&mut values, 31 * S, 100, 10);
        let news = News { channel: 0, state: ChannelState::Good, share: 0.1, example: None };
        assert_eq!(values.look(40 * S, 0, false), [news]);
        assert_eq!(values.take_counts().collect::<Vec<_>>(), [((400, 150), Some(0.1), ChannelState::Good)]);
    }

    #[test]
    fn few_values_are_waited_for() {
        let mut values = Values::new(1, false, 5000);
        values.look(0, 0, false);
        (1..4).for_each(|i| give(&mut values, i * 60 * S, 1, 1));
        assert_eq!(values.look(200 * S, 0, false), []);
        give(&mut values, 240 * S, 1, 1);
        assert_eq!(values.look(250 * S, 0, false).len(), 1);
    }

    #[test]
    fn long_frame_is_cut() {
        let mut values = Values::new(1, false, 5000);
        values.look(0, 0, false);
        for _ in 0..4 {
            if values.value(0, S, Some("bad:range")) {
                values.example(&[b'x'; 10_000]);
            }
        }
        let news = values.look(10 * S, 0, false);
        let (text, _) = news[0].example.clone().expect("an example");
        assert_eq!(text.chars().count(), limits::EXAMPLE_BYTES + 1);
    }

    #[test]
    fn device_of_a_bus_that_gives_nothing_is_named_while_others_answer() {
        let mut values = Values::new(2, true, 5000);
        values.look(0, 0, false);
        for i in 1..=30 {
            values.value(0, i * S, None);
            if i <= 5 {
                values.value(1, i * S, None);
            }
        }
        let named: Vec<_> = values.look(30 * S, 0, false).into_iter().map(|n| (n.channel, n.state)).collect();
        assert_eq!(named, [(1, ChannelState::Silent)]);
        values.value(1, 31 * S, None);
        let named: Vec<_> = values.look(40 * S, 0, false).into_iter().map(|n| (n.channel, n.state)).collect();
        assert_eq!(named, [(1, ChannelState::Good)]);
    }
}
