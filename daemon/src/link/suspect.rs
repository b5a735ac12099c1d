//! Which message of ours makes the broker close. Pure: ages and times come in as numbers. A broker closes on a message
//! that it does not accept (mosquitto 2.0.11 closes on a topic that its ACL forbids), and the message, being
//! unacknowledged, would be sent with each connection again, for ever.
//!
//! ```text
//! closed, several in flight ─▶ one at a time until as many were acknowledged
//! closed, one in flight ─▶ strike 1 ─▶ strike 2: set aside, others go first
//!                           ─▶ sent alone, after others were acknowledged on that connection ─▶ strike 3: lost, counted
//! ```
//!
//! A connection that breaks for another reason can put a strike on an innocent message, so the third one counts only
//! where the connection had held for some time, and an acknowledgement takes all strikes away.

use std::{collections::VecDeque, time::Duration};

use crate::limits;

/// Names a message over connections: its stream, first and last sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(pub String, pub u64, pub u64);

/// What may happen to a message now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may be sent.
    Send,
    /// It ended two connections: others go first.
    Later,
    /// It ended three: it is lost.
    Never,
}

/// The messages under suspicion.
#[derive(Debug, Default)]
pub struct Suspects {
    known: VecDeque<(Name, u8)>,
    /// So many messages more go one at a time.
    careful: usize,
}

impl Suspects {
    /// The broker closed while these were unacknowledged; with each one's age.
    pub fn closed(&mut self, flying: Vec<(Name, Duration)>) {
        // A broker that closes on a message does so when it reads it.
        let mut recent: Vec<Name> =
            flying.into_iter().filter(|(_, age)| *age <= limits::BLAMED_WITHIN).map(|(name, _)| name).collect();
        if recent.len() > 1 {
            self.careful = recent.len();
        } else if let Some(name) = recent.pop() {
            let before = self.known.iter().position(|(known, _)| *known == name).and_then(|at| self.known.remove(at));
            if self.known.len() >= limits::SUSPECTS {
                self.known.pop_front();
            }
            self.known.push_back((name, before.map_or(0, |(_, strikes)| strikes) + 1));
        }
    }

    /// No second message may be in flight.
    pub fn one_at_a_time(&self) -> bool {
        self.careful > 0
    }

    /// What may happen to this message.
    pub fn verdict(&self, name: &Name) -> Verdict {
        match self.known.iter().find(|(known, _)| known == name) {
            None | Some((_, 0 | 1)) => Verdict::Send,
            Some((_, 2)) => Verdict::Later,
            Some(_) => Verdict::Never,
        }
    }

    /// The broker answered it: it is innocent.
    pub fn answered(&mut self, name: &Name) {
        self.careful = self.careful.saturating_sub(1);
        if !self.known.is_empty() {
            self.known.retain(|(known, _)| known != name);
        }
    }

    /// It is given up, and counted elsewhere.
    pub fn forget(&mut self, name: &Name) {
        self.known.retain(|(known, _)| known != name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn name(seq: u64) -> Name {
        Name("m/x".into(), seq, seq)
    }

    #[test]
    fn a_message_that_ended_two_connections_waits_for_others_and_after_a_third_it_is_lost() {
        let mut suspects = Suspects::default();
        suspects.closed((1..=3).map(|seq| (name(seq), NOW)).collect());
        assert!(suspects.one_at_a_time(), "which of three it was is found out one by one");
        assert_eq!(suspects.verdict(&name(1)), Verdict::Send);
        suspects.answered(&name(1));
        suspects.closed(vec![(name(2), NOW)]);
        assert_eq!(suspects.verdict(&name(2)), Verdict::Send, "once may be an accident");
        suspects.closed(vec![(name(2), NOW)]);
        assert_eq!(suspects.verdict(&name(2)), Verdict::Later);
        suspects.answered(&name(3));
        suspects.answered(&name(4));
        assert!(!suspects.one_at_a_time());
        suspects.closed(vec![(name(2), NOW)]);
        assert_eq!(suspects.verdict(&name(2)), Verdict::Never);
        suspects.forget(&name(2));
        assert_eq!(suspects.verdict(&name(2)), Verdict::Send);
    }

    #[test]
    fn an_acknowledged_message_and_one_that_was_in_flight_for_long_are_not_suspected() {
        let mut suspects = Suspects::default();
        suspects.closed(vec![(name(1), NOW)]);
        suspects.closed(vec![(name(1), NOW)]);
        suspects.answered(&name(1));
        suspects.closed(vec![(name(1), NOW)]);
        assert_eq!(suspects.verdict(&name(1)), Verdict::Send);
        for _ in 0..9 {
            suspects.closed(vec![(name(2), limits::BLAMED_WITHIN * 2)]);
        }
        assert_eq!(suspects.verdict(&name(2)), Verdict::Send);
        (0..1000).for_each(|seq| suspects.closed(vec![(name(seq), NOW)]));
        assert!(suspects.known.len() <= limits::SUSPECTS);
    }
}
