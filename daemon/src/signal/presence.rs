//! Whether a source delivers, and whether each device of a bus does: by the pace it had, not by the clock alone. Pure; runs
//! on stamps.

use crate::{
    flow::{Fault, event::Kind, meter::Lost},
    limits,
};

/// How often something comes.
#[derive(Debug, Default)]
pub struct Pulse {
    last_ns: Option<u64>,
    period_ns: Option<u64>,
}

impl Pulse {
    /// It came. `joins`: nothing is known to have interrupted it since it came before.
    pub fn heard(&mut self, now_ns: u64, joins: bool) {
        let step = self.last_ns.replace(now_ns).map(|last| now_ns.saturating_sub(last));
        if let Some(step) = step.filter(|step| *step > 0 && joins) {
            // The newest step weighs an eighth: a single pause does not count for long.
            self.period_ns = Some(self.period_ns.map_or(step, |period| period - period / 8 + step / 8));
        }
    }

    /// Since when nothing came; `began_ns` where nothing came yet.
    fn silent_ns(&self, now_ns: u64, began_ns: u64) -> u64 {
        now_ns.saturating_sub(self.last_ns.unwrap_or(began_ns))
    }

    /// How long a silence of it means nothing.
    fn most_ns(&self, stale_ns: u64) -> u64 {
        let most = match self.period_ns {
            Some(period) => limits::LOST_NS.max(period.saturating_mul(limits::LOST_PERIODS)),
            None => limits::LOST_FIRST_NS,
        };
        most.max(stale_ns)
    }

    /// Nothing came for longer than means nothing.
    pub fn is_lost(&self, now_ns: u64, began_ns: u64, stale_ns: u64) -> bool {
        self.silent_ns(now_ns, began_ns) > self.most_ns(stale_ns)
    }
}

/// A source was lost, or is back: an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It has delivered nothing for so long, and why.
    Lost(u64, Lost),
    /// It delivers again, after so long.
    Back(u64),
}

impl News {
    /// The event, how long the silence was, ns, and what happened in words.
    pub fn report(self) -> (Kind, u64, String) {
        match self {
            News::Lost(silent_ns, why) => {
                let (s, why) = (silent_ns / 1_000_000_000, why.text().unwrap_or_default());
                (Kind::SourceLost, silent_ns, format!("no row for {s} s: {why}"))
            }
            News::Back(silent_ns) => {
                (Kind::SourceBack, silent_ns, format!("rows again after {} s", silent_ns / 1_000_000_000))
            }
        }
    }
}

/// One source.
#[derive(Debug)]
pub struct Presence {
    stale_ns: u64,
    /// When it was looked at first.
    began_ns: Option<u64>,
    pulse: Pulse,
    open: bool,
    /// The port was closed or opened since a frame came.
    broke: bool,
    /// Something came since a frame did, and was no frame.
    refused: bool,
    /// A device did not answer since a frame came.
    unanswered: bool,
    lost: bool,
    news: Option<News>,
}

impl Presence {
    /// Nothing known yet.
    pub fn new(stale_ms: u64) -> Self {
        Self {
            stale_ns: stale_ms * 1_000_000,
            began_ns: None,
            pulse: Pulse::default(),
            open: false,
            broke: false,
            refused: false,
            unanswered: false,
            lost: false,
            news: None,
        }
    }

    /// A frame came.
    pub fn heard(&mut self, now_ns: u64) {
        let silent_ns = self.pulse.silent_ns(now_ns, *self.began_ns.get_or_insert(now_ns));
        if std::mem::take(&mut self.lost) {
            self.news = Some(News::Back(silent_ns));
        }
        self.pulse.heard(now_ns, !std::mem::take(&mut self.broke));
        (self.open, self.refused, self.unanswered) = (true, false, false);
    }

    /// The port was closed, opened, or the kernel lost bytes of it.
    pub fn broke(&mut self, how: &str) {
        self.broke = true;
        match how {
            "opened" => self.open = true,
            "closed" => self.open = false,
            _ => {}
        }
    }

    /// What came was no frame.
    pub fn refused(&mut self) {
        self.refused = true;
    }

    /// A device of it has a fault.
    pub fn fault(&mut self, fault: Fault) {
        self.unanswered |= fault == Fault::NoAnswer;
    }

    /// Time went on. Returns what is to be reported.
    pub fn look(&mut self, now_ns: u64) -> Option<News> {
        let began_ns = *self.began_ns.get_or_insert(now_ns);
        let silent_ns = self.pulse.silent_ns(now_ns, began_ns);
        let lost = match self.open {
            true => self.pulse.is_lost(now_ns, began_ns, self.stale_ns),
            // Nothing can come: its pace does not matter.
            false => silent_ns > limits::LOST_NS,
        };
        if lost && !std::mem::replace(&mut self.lost, true) {
            return Some(News::Lost(silent_ns, self.why()));
        }
        self.news.take()
    }

    /// Since when it was looked at.
    pub fn began_ns(&self) -> u64 {
        self.began_ns.unwrap_or(0)
    }

    /// Why it is lost; `Lost::No`: it is not.
    pub fn lost(&self) -> Lost {
        if self.lost { self.why() } else { Lost::No }
    }

    fn why(&self) -> Lost {
        match (self.open, self.refused, self.unanswered) {
            (_, _, true) => Lost::NoAnswer,
            (false, ..) => Lost::Closed,
            (true, true, _) => Lost::Refused,
            (true, false, _) => Lost::Silent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    /// A source that was opened and gave frames `step` apart up to `until`.
    fn source(step: u64, until: u64) -> Presence {
        let mut presence = Presence::new(5000);
        presence.broke("opened");
        presence.look(S);
        (S..=until).step_by(step as usize).for_each(|at| presence.heard(at));
        presence
    }

    /// When it is reported as lost, looked at every 100 ms.
    fn lost_at(presence: &mut Presence, from: u64) -> Option<u64> {
        (from..from + 2000 * S).step_by(S as usize / 10).find(|at| matches!(presence.look(*at), Some(News::Lost(..))))
    }

    #[test]
    fn unplugged_source_is_lost_once_and_back_once_and_a_short_hang_up_is_neither() {
        let mut presence = source(S / 10, 20 * S);
        presence.broke("closed");
        assert_eq!(presence.look(28 * S), None, "8 s");
        presence.broke("opened");
        presence.heard(29 * S);
        assert_eq!((presence.look(29 * S), presence.lost()), (None, Lost::No));
        presence.broke("closed");
        assert_eq!(presence.look(40 * S), Some(News::Lost(11 * S, Lost::Closed)));
        assert_eq!(presence.look(50 * S), None, "once");
        presence.broke("opened");
        assert_eq!(presence.lost(), Lost::Silent);
        presence.refused();
        assert_eq!(presence.lost(), Lost::Refused);
        presence.heard(69 * S);
        assert_eq!((presence.look(69 * S), presence.lost()), (Some(News::Back(40 * S)), Lost::No));
        assert_eq!(presence.look(70 * S), None, "once");
    }

    #[test]
    fn silence_is_measured_by_the_pace_of_the_source() {
        let mut fast = source(S / 100, 20 * S);
        let at = lost_at(&mut fast, 20 * S).expect("lost");
        assert!((30 * S..32 * S).contains(&at), "{at}");
        let mut slow = source(60 * S, 601 * S);
        let at = lost_at(&mut slow, 601 * S).expect("lost");
        assert!((1200 * S..1203 * S).contains(&at), "ten minutes of a row a minute: {at}");
        slow.broke("closed");
        slow.heard(1300 * S);
        slow.broke("closed");
        assert!(matches!(slow.look(1311 * S), Some(News::Lost(_, Lost::Closed))), "a closed port is no matter of pace");
    }

    #[test]
    fn port_that_was_never_there_and_device_that_never_answers_are_lost() {
        let mut absent = Presence::new(5000);
        assert!((10 * S..12 * S).contains(&lost_at(&mut absent, S).expect("lost")));
        assert_eq!(absent.lost(), Lost::Closed);
        let mut mute = Presence::new(5000);
        mute.broke("opened");
        mute.fault(Fault::NoAnswer);
        assert!((60 * S..62 * S).contains(&lost_at(&mut mute, S).expect("lost")), "its pace is not known");
        assert_eq!(mute.lost(), Lost::NoAnswer);
    }
}
