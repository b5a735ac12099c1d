//! What is sent on a connection: messages of the outbox in parts that fit, those that may be why the broker closes, announcements,
//! pings.

use bytes::Bytes;
use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{Packet, PingReq, PubAck, Publish, PublishProperties, Subscribe},
};

use super::{
    Failed, Link,
    alias::Named,
    escalate,
    hand::{self, Handed, Settles},
    packet,
    session::Session,
    suspect::{Name, Verdict},
    wire,
};
use crate::{
    flow::{Class, Retain},
    limits,
    outbox::ToSend,
};

impl Link<'_> {
    pub(super) fn send(&mut self, message: &ToSend) {
        let result = message.sealed.class == Class::Reply;
        let (topics, stream) = (&self.topics, &message.sealed.stream);
        let topic = match message.sealed.items.first().filter(|_| result) {
            Some(item) => topics.result(stream, &item.body),
            None => topics.stream(stream),
        };
        let sizes = self.most();
        let room = sizes.most.saturating_sub(packet::publish_bytes(topic.len(), 0, None) + 3);
        let parts = packet::split(&message.sealed, message.hist, self.wanted.mqtt.cbor, room);
        let retain = self.retain(message);
        if retain == Retain::Remove && self.offer.retain {
            self.hand.push_back(Handed::nothing(topic.clone(), Vec::new(), true));
        }
        self.alarm_beside(&message.sealed.stream);
        self.parcels.begin(message.id, parts.len());
        for packet::Part { seqs, n, payload } in parts {
            if message.backlog {
                self.pace.went(payload.len());
            }
            let size = packet::publish_bytes(topic.len(), payload.len(), None);
            let part = hand::Part {
                id: message.id,
                name: Name(stream.clone(), seqs.0, seqs.1),
                n,
                size,
                result: result.then_some(seqs.1),
            };
            if size >= sizes.never {
                let (tally, last) = &mut self.outage.tallies.large;
                tally.add(n);
                *last = format!("the last one: stream {stream}, {size} bytes, the broker takes {}", sizes.never - 1);
                self.settled_part(&part, Some("packet_too_large"));
                continue;
            }
            let verdict = self.outage.suspects.verdict(&part.name);
            let handed = Handed {
                settles: Settles::Parcel(part),
                backlog: message.backlog,
                ..Handed::nothing(topic.clone(), payload, retain == Retain::Keep)
            };
            match verdict {
                Verdict::Send => self.hand.push_back(handed),
                Verdict::Later => self.wait_for_others(handed),
                Verdict::Never => self.give_up(&handed),
            }
        }
    }

    /// It ended two connections, or the broker cannot take it now: it waits until others were acknowledged.
    fn wait_for_others(&mut self, handed: Handed) {
        if self.later.len() >= limits::SUSPECTS_HELD {
            let blamed = self.later.iter().position(|held| !self.was_refused(held));
            match blamed.and_then(|at| self.later.remove(at)) {
                Some(oldest) => self.give_up(&oldest),
                None => self.all_refused = true,
            }
        }
        self.later.push_back(handed);
    }

    fn was_refused(&self, handed: &Handed) -> bool {
        matches!(&handed.settles, Settles::Parcel(part) if self.outage.suspects.was_refused(&part.name))
    }

    /// It ended three connections, or it is one of too many that ended two.
    fn give_up(&mut self, handed: &Handed) {
        let Settles::Parcel(part) = &handed.settles else { return };
        let part = part.clone();
        let (tally, last) = &mut self.outage.tallies.closed;
        tally.add(1);
        *last = format!("the last one: topic {}, {} bytes", handed.topic, part.size);
        self.outage.suspects.forget(&part.name);
        self.settled_part(&part, Some("closed_by_broker"));
    }

    /// The connection held long enough, and others were acknowledged: one that waited for that is sent, alone.
    pub(super) fn try_alone(&mut self) {
        if self.alone.is_none()
            && self.hand.is_empty()
            && self.flight.len() == 0
            && let Some(handed) = self.due().and_then(|at| self.later.remove(at))
        {
            if let Settles::Parcel(part) = &handed.settles {
                self.alone = Some(part.name.clone());
            }
            self.hand.push_back(handed);
        }
    }

    /// One that waits is due: nothing else is begun until it was sent.
    pub(super) fn wants_alone(&self) -> bool {
        self.alone.is_some() || self.due().is_some()
    }

    /// One that was refused needs no other that was acknowledged: there may be none.
    fn due(&self) -> Option<usize> {
        let (now, held) = (self.outage.began.elapsed(), self.began.elapsed() >= limits::SUSPECT_AGAIN);
        self.later.iter().position(|handed| match &handed.settles {
            Settles::Parcel(part) if self.was_refused(handed) => self.outage.suspects.is_due(&part.name, now),
            _ => held && self.acknowledged,
        })
    }

    fn retain(&self, message: &ToSend) -> Retain {
        let wanted = message.sealed.retain;
        if !message.backlog || wanted == Retain::No {
            return wanted;
        }
        let still = match (self.setup.raised)(&message.sealed.stream) {
            Some(true) => wanted == Retain::Keep,
            Some(false) => wanted == Retain::Remove,
            None => false,
        };
        if still { wanted } else { Retain::No }
    }

    /// Announces something, retained.
    pub(super) fn publish(&mut self, topic: String, json: String) {
        let payload = wire::encode(json, self.wanted.mqtt.cbor);
        self.hand.push_back(Handed::nothing(topic, payload, true));
    }

    /// Writes the next message when the previous one is with the kernel: an alarm waits behind one at most.
    pub(super) fn hand_over(&mut self, session: &mut Session) -> Result<(), Failed> {
        // A QoS 0 message has no id and needs no acknowledgement. An order is acknowledged before it is answered: should the
        // broker close on the answer, the order does not come again.
        for id in self.settled.drain(..).filter(|id| *id > 0) {
            push(session, &Packet::PubAck(PubAck::new(id, None)))?;
        }
        let one = self.outage.suspects.one_at_a_time() || self.alone.is_some();
        if session.is_idle() && self.flight.has_room() && !(one && self.flight.len() > 0) {
            while let Some(next) = self.hand.pop_front() {
                if self.fits(&next) {
                    self.write(next, session)?;
                    break;
                }
            }
        }
        self.ping(session)
    }

    /// Whether the broker takes a packet of this size. Records were split and measured before (`send`); what is announced, or
    /// answered, cannot be split.
    fn fits(&mut self, next: &Handed) -> bool {
        let correlation = next.correlation.as_ref().map(Bytes::len);
        let size = packet::publish_bytes(next.topic.len(), next.payload.len(), correlation);
        let never = self.most().never;
        let fits = size < never || !next.wishes.is_empty() || matches!(next.settles, Settles::Parcel(_));
        if !fits {
            tracing::warn!("{} is not sent: it has {size} bytes, and the broker takes {}", next.topic, never - 1);
        }
        fits
    }

    fn write(&mut self, next: Handed, session: &mut Session) -> Result<(), Failed> {
        let Handed { topic, payload, retain, settles, backlog, correlation, until_ns, wishes } = next;
        let Some(expiry_s) = escalate::left_s(until_ns) else {
            self.window_late(&settles);
            return Ok(());
        };
        self.window_goes(&settles, packet::publish_bytes(topic.len(), payload.len(), None));
        // A stream's next message has the same topic; an answer's has not, and what is announced is sent once.
        let of_a_stream = matches!(&settles, Settles::Parcel(part) if part.result.is_none());
        let id = self.flight.begin(settles, backlog, self.began.elapsed());
        let packet = if wishes.is_empty() {
            let size = packet::publish_bytes(topic.len(), payload.len(), None);
            self.newest = Some((id, topic.clone(), size));
            let named = match of_a_stream && size + packet::ALIAS_BYTES < self.most().never {
                true => self.aliases.name(&topic),
                false => Named::Topic,
            };
            let (topic, alias) = match named {
                Named::Topic => (topic, None),
                Named::Both(alias) => (topic, Some(alias)),
                Named::Alias(alias) => (String::new(), Some(alias)),
            };
            Packet::Publish(Publish {
                dup: false,
                qos: if self.offer.qos1 { QoS::AtLeastOnce } else { QoS::AtMostOnce },
                retain: retain && self.offer.retain,
                topic: topic.into(),
                pkid: id,
                payload: payload.into(),
                properties: (correlation.is_some() || expiry_s.is_some() || alias.is_some()).then(|| {
                    PublishProperties {
                        topic_alias: alias,
                        correlation_data: correlation,
                        message_expiry_interval: expiry_s,
                        ..PublishProperties::default()
                    }
                }),
            })
        } else {
            let mut subscribe = Subscribe::new_many(wire::filters(wishes), None);
            subscribe.pkid = id;
            Packet::Subscribe(subscribe)
        };
        push(session, &packet)
    }

    /// Pings when it is time, or when that is the only answer to what was sent.
    fn ping(&mut self, session: &mut Session) -> Result<(), Failed> {
        let now = self.began.elapsed();
        let due = now.saturating_sub(self.pinged) >= self.keep_alive;
        let message = |(settles, _): (&Settles, _)| !matches!(settles, Settles::Subscriptions(_));
        let asks = !self.offer.qos1 && !self.flight.awaits_pong() && self.flight.flying().any(message);
        if due || asks {
            push(session, &Packet::PingReq(PingReq))?;
            self.flight.pinged();
            self.pinged = now;
        }
        Ok(())
    }
}

fn push(session: &mut Session, packet: &Packet) -> Result<(), Failed> {
    session.push(packet).map_err(|why| Failed::broker(format!("write a packet: {why}")))
}
