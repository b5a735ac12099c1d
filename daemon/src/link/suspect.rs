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
//!
//! A broker that answers "not now" is no such case: a cluster that lost a node says so of every message for which it has a queue there,
//! until the node is back. Others go first, it is tried again for an hour, and only then counted as lost. Where more than a few wait
//! for that, it is the broker, and none of them is suspected.

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

/// A message that the broker could not take.
#[derive(Debug)]
struct Refused {
    name: Name,
    /// When it said so first and last.
    first: Duration,
    last: Duration,
    times: u32,
}

/// The messages under suspicion.
#[derive(Debug, Default)]
pub struct Suspects {
    known: VecDeque<(Name, u8)>,
    refused: VecDeque<Refused>,
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

    /// The broker cannot take it now. `false`: it says so since too long, and has taken others.
    pub fn refused(&mut self, name: &Name, now: Duration) -> bool {
        if let Some(known) = self.refused.iter_mut().find(|known| known.name == *name) {
            (known.last, known.times) = (now, known.times.saturating_add(1));
            return now.saturating_sub(known.first) < limits::REFUSED_MOST;
        }
        if self.refused.len() >= limits::SUSPECTS {
            self.refused.pop_front();
        }
        self.refused.push_back(Refused { name: name.clone(), first: now, last: now, times: 1 });
        true
    }

    /// Whether one that waits may be tried again.
    pub fn is_due(&self, name: &Name, now: Duration) -> bool {
        let known = self.refused.iter().find(|known| known.name == *name);
        known.is_none_or(|known| now.saturating_sub(known.last) >= limits::SUSPECT_AGAIN)
    }

    /// Whether it waits because the broker could not take it: once may be an accident.
    pub fn was_refused(&self, name: &Name) -> bool {
        self.refused.iter().any(|known| known.name == *name && known.times > 1)
    }

    /// So many cannot be taken that it is the broker.
    pub fn all_are_innocent(&mut self) {
        self.refused.clear();
    }

    /// No second message may be in flight.
    pub fn one_at_a_time(&self) -> bool {
        self.careful > 0
    }

    /// What may happen to this message.
    pub fn verdict(&self, name: &Name) -> Verdict {
        match self.known.iter().find(|(known, _)| known == name) {
            None | Some((_, 0 | 1)) if self.was_refused(name) => Verdict::Later,
            None | Some((_, 0 | 1)) => Verdict::Send,
            Some((_, 2)) => Verdict::Later,
            Some(_) => Verdict::Never,
        }
    }

    /// The broker answered it: it is innocent.
    pub fn answered(&mut self, name: &Name) {
        self.careful = self.careful.saturating_sub(1);
        if !self.known.is_empty() || !self.refused.is_empty() {
            self.forget(name);
        }
    }

    /// It is given up, and counted elsewhere.
    pub fn forget(&mut self, name: &Name) {
        self.known.retain(|(known, _)| known != name);
        self.refused.retain(|known| known.name != *name);
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
    fn message_that_the_broker_cannot_take_waits_for_others_and_is_lost_after_an_hour_only() {
        let (mut suspects, s) = (Suspects::default(), Duration::from_secs);
        assert!(suspects.refused(&name(1), s(9)));
        assert_eq!(suspects.verdict(&name(1)), Verdict::Send, "once may be an accident");
        assert!(suspects.refused(&name(1), s(10)));
        assert_eq!((suspects.verdict(&name(1)), suspects.verdict(&name(2))), (Verdict::Later, Verdict::Send));
        assert!(!suspects.is_due(&name(1), s(15)) && suspects.is_due(&name(1), s(10) + limits::SUSPECT_AGAIN));
        assert!((1..100).all(|n| suspects.refused(&name(1), s(10 + 30 * n))), "no number of answers makes it lost");
        assert!(!suspects.refused(&name(1), s(11) + limits::REFUSED_MOST));
        suspects.answered(&name(1));
        assert_eq!(suspects.verdict(&name(1)), Verdict::Send);
        (0..1000).for_each(|seq| assert!(suspects.refused(&name(seq), s(1))));
        assert!(suspects.refused.len() <= limits::SUSPECTS);
        suspects.all_are_innocent();
        assert_eq!(suspects.verdict(&name(999)), Verdict::Send);
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
