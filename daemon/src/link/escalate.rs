//! Windows that are escalated, and their answers. A window is sent on the connection that stands when it was made, once, and not
//! after its deadline: it is never stored, and what a connection leaves unacknowledged is not sent again.

use rumqttc::v5::mqttbytes::v5::{PubAckReason, Publish};

use super::{
    Link, Setup,
    hand::{Handed, Settles},
    packet, reason,
};
use crate::{
    flow::escalation::{Answer, Came, NotSent},
    host::Clock,
    limits,
};

/// Bytes of the property that says when the broker forgets a message.
const EXPIRY_BYTES: usize = 5;

/// After how many seconds the broker forgets what may be written until then; `Some(None)`: never. `None`: it is too late.
pub(super) fn left_s(until_ns: Option<u64>) -> Option<Option<u32>> {
    let Some(until_ns) = until_ns else { return Some(None) };
    let left_ns = until_ns.checked_sub(Clock::boot_ns()).filter(|left| *left > 0)?;
    Some(Some(u32::try_from(left_ns.div_ceil(1_000_000_000)).unwrap_or(u32::MAX)))
}

/// The connection ended: windows that waited for it are not sent.
pub(super) fn closed(setup: &Setup) {
    for window in setup.board.exchange.close() {
        setup.meters.pipelines[window.pipeline].escalation.skipped(NotSent::Offline);
    }
}

impl Link<'_> {
    /// A window may go now: nothing live waits.
    pub(super) fn may_escalate(&self) -> bool {
        !self.setup.escalating.is_empty() && !self.setup.reader.has_live()
    }

    /// Hands over the next window, to be written at once.
    pub(super) fn escalate(&mut self) {
        let Some(window) = self.setup.board.exchange.take() else { return };
        let topic = self.topics.window(&window.name);
        let size = packet::publish_bytes(topic.len(), window.payload.len(), None) + EXPIRY_BYTES;
        if size > self.most().most {
            return self.setup.meters.pipelines[window.pipeline].escalation.skipped(NotSent::TooLarge);
        }
        let (settles, until_ns) = (Settles::Window(window.pipeline), Some(window.deadline_ns));
        self.hand.push_back(Handed { settles, until_ns, ..Handed::nothing(topic, window.payload, false) });
    }

    /// Something is written now, in a packet of so many bytes: counts a window.
    pub(super) fn window_goes(&self, what: &Settles, bytes: usize) {
        if let Settles::Window(pipeline) = what {
            let meter = &self.setup.meters.pipelines[*pipeline].escalation;
            meter.sent.add(1);
            meter.bytes.add((bytes + EXPIRY_BYTES) as u64);
        }
    }

    /// Its time had come before it could be written.
    pub(super) fn window_late(&self, what: &Settles) {
        if let Settles::Window(pipeline) = what {
            self.setup.meters.pipelines[*pipeline].escalation.skipped(NotSent::Late);
        }
    }

    /// The broker does not take a window.
    pub(super) fn window_refused(&self, pipeline: usize, reason: PubAckReason, text: Option<&str>) {
        self.setup.meters.pipelines[pipeline].escalation.skipped(NotSent::Refused);
        let text = text.map_or(String::new(), |text| format!(", it says `{}`", reason::short(text)));
        let name = self.setup.escalating.iter().find(|(_, place)| *place == pipeline).map_or("", |(name, _)| name);
        tracing::warn!(
            pipeline = name,
            "pipeline {name}: the broker rejected an escalated window: {reason:?}{text}; its topic is {}",
            self.topics.window(name)
        );
    }

    /// The broker granted a subscription: if it is that of answers, windows may be sent.
    pub(super) fn answers_arrive(&self, filter: &str) {
        if self.topics.answers().is_some_and(|answers| answers == filter) {
            self.setup.board.exchange.open();
        }
    }

    /// Hands an answer to the stage that asked. `false`: the topic is no answer's.
    pub(super) fn answer_arrived(&self, topic: &str, publish: &Publish) -> bool {
        let Some((pipeline, digest)) = self.topics.answer(topic) else { return false };
        let Some((_, place)) = self.setup.escalating.iter().find(|(name, _)| name == pipeline) else {
            tracing::debug!(%topic, "ignore an answer: no pipeline of this name escalates");
            return true;
        };
        let meter = &self.setup.meters.pipelines[*place].escalation;
        if publish.payload.len() > limits::ESCALATION_ANSWER_BYTES {
            meter.came(Came::Malformed);
            return true;
        }
        let (digest, payload) = (digest.to_owned(), publish.payload.clone());
        if !self.setup.board.exchange.answer(*place, Answer { digest, payload, retained: publish.retain }) {
            meter.came(Came::Dropped);
        }
        true
    }
}
