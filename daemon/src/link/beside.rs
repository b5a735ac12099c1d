//! What is published for other programs, beside the device's own topics: retained, with each connection, and the state of an alarm
//! also when it changes. It is not stored: the next connection says it again.

use super::{Link, hand::Handed};
use crate::flow::record::json_str;

/// Topics of other programs; `mqtt.topic_prefix` does not come before them.
#[derive(Debug, Default)]
pub struct Beside {
    /// Topic, and members of a JSON object; `~` is added: what this device's `up/` topics begin with.
    pub kept: Vec<(String, String)>,
    /// By alarm: its stream, and the topic for `ON` or `OFF`.
    pub alarms: Vec<(String, String)>,
    /// Topics that are published no more: the broker may still keep a message.
    pub gone: Vec<String>,
}

impl Link<'_> {
    pub(super) fn announce_beside(&mut self) {
        let beside = &self.setup.announce.beside;
        let mut root = String::new();
        json_str(&mut root, &format!("{}/up", self.topics.root()));
        for (topic, members) in &beside.kept {
            let json = format!("{{\"~\":{root},{members}}}");
            self.hand.push_back(Handed::nothing(topic.clone(), json.into_bytes(), true));
        }
        for (stream, _) in &beside.alarms {
            self.alarm_beside(stream);
        }
    }

    /// The state of this stream's alarm as it is now: a record that comes late does not undo it.
    pub(super) fn alarm_beside(&mut self, stream: &str) {
        let of_alarm = self.setup.announce.beside.alarms.iter().find(|(of, _)| of == stream);
        let Some((_, topic)) = of_alarm else { return };
        let word = if (self.setup.raised)(stream) == Some(true) { "ON" } else { "OFF" };
        self.hand.push_back(Handed::nothing(topic.clone(), word.into(), true));
    }
}
