//! Topic aliases of MQTT 5: a number in place of a topic that was sent before on this connection. Pure.
//!
//! A stream's topic of 30 to 60 bytes goes with every message. The broker says how many aliases it takes; none is taken without.

use crate::limits;

/// How one message names its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// The topic alone.
    Topic,
    /// The topic, and the alias that it has from now on.
    Both(u16),
    /// The alias alone.
    Alias(u16),
}

/// The aliases of one connection.
#[derive(Debug, Default)]
pub struct Aliases {
    most: usize,
    /// Alias n is the topic at place n − 1.
    given: Vec<String>,
    /// Topics that were sent once: an alias costs three bytes, which only a second message gets back.
    once: Vec<String>,
}

impl Aliases {
    /// As many as the broker takes, within reason.
    pub fn new(offered: u16) -> Self {
        Self { most: usize::from(offered).min(limits::TOPIC_ALIASES), ..Self::default() }
    }

    /// What a message on this topic carries. It must be sent then: the broker learns the alias from it.
    pub fn name(&mut self, topic: &str) -> Named {
        if let Some(at) = self.given.iter().position(|known| known == topic) {
            return Named::Alias(at as u16 + 1);
        }
        if self.given.len() >= self.most {
            return Named::Topic;
        }
        if let Some(at) = self.once.iter().position(|known| known == topic) {
            self.given.push(self.once.swap_remove(at));
            return Named::Both(self.given.len() as u16);
        }
        if self.once.len() < limits::TOPIC_ALIASES {
            self.once.push(topic.to_owned());
        }
        Named::Topic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_gets_an_alias_with_its_second_message_and_no_more_are_given_than_the_broker_takes() {
        let mut aliases = Aliases::new(2);
        let mut name = |topic: &str| aliases.name(topic);
        assert_eq!([name("a"), name("a"), name("a")], [Named::Topic, Named::Both(1), Named::Alias(1)]);
        assert_eq!([name("b"), name("c"), name("c")], [Named::Topic, Named::Topic, Named::Both(2)]);
        assert_eq!(
            [name("b"), name("b"), name("c"), name("a")],
            [Named::Topic, Named::Topic, Named::Alias(2), Named::Alias(1)]
        );
        let mut none = Aliases::new(0);
        assert_eq!([none.name("a"), none.name("a"), none.name("a")], [Named::Topic; 3]);
        let mut many = Aliases::new(u16::MAX);
        for _ in 0..3 {
            (0..1000).for_each(|i| assert_ne!(many.name(&i.to_string()), Named::Both(0)));
        }
        assert_eq!((many.given.len(), many.once.len()), (limits::TOPIC_ALIASES, 0));
    }
}
