//! One connection's events: what the broker says, and what is handed to the client library.

use std::{sync::atomic::Ordering, time::Duration};

use rumqttc::{
    Outgoing,
    v5::{
        AsyncClient, Event, Incoming,
        mqttbytes::{
            QoS,
            v5::{ConnAck, PubAckReason, Publish, PublishProperties, SubAck, SubscribeReasonCode},
        },
    },
};

use super::{
    Failed, Link,
    hand::{self, Handed, Settles},
    packet::{self, Sizes},
    seen,
    suspect::{Name, Verdict},
    wire,
};
use crate::{
    flow::{
        Class, Retain,
        event::Kind,
        order::{Arrived, Respond, Response, Ticket},
    },
    host::{Clock, Defence, sys},
    limits,
    outbox::{Loss, ToSend},
};

impl Link<'_> {
    pub(super) fn event(&mut self, event: Event) -> Result<(), Failed> {
        if matches!(event, Event::Incoming(_)) {
            self.heard = self.began.elapsed();
        }
        match event {
            Event::Incoming(Incoming::ConnAck(ack)) => self.connected(&ack),
            Event::Outgoing(Outgoing::Publish(id)) => self.flight.written(id, self.began.elapsed()),
            Event::Outgoing(Outgoing::PubAck(_)) => self.acks = self.acks.saturating_sub(1),
            Event::Outgoing(Outgoing::Subscribe(id)) => self.flight.written(id, self.began.elapsed()),
            Event::Incoming(Incoming::SubAck(ack)) => {
                if let Some((Settles::Subscriptions(asked), _)) = self.flight.answered(ack.pkid) {
                    self.subscribed(asked, &ack);
                }
            }
            Event::Incoming(Incoming::Publish(publish)) => self.arrived(publish),
            Event::Incoming(Incoming::PubAck(ack)) => {
                let answered = self.flight.answered(ack.pkid);
                match answered {
                    Some((Settles::Parcel(part), since)) => {
                        self.setup.meters.acknowledge.took_time(self.began.elapsed().saturating_sub(since));
                        self.setup.board.acked_ns.store(Clock::boot_ns(), Ordering::Relaxed);
                        return self.settle(part, ack.reason);
                    }
                    Some((Settles::Gone, _)) => self.gone.acked(ack.reason, &self.setup.news),
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Only a successful answer removes a record. An answer that no repetition can change counts it as lost; any other
    /// ends the connection, and everything unacknowledged is sent again after a pause.
    fn settle(&mut self, part: hand::Part, reason: PubAckReason) -> Result<(), Failed> {
        if self.alone.as_ref() == Some(&part.name) {
            self.alone = None;
        }
        match reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {
                self.acknowledged = true;
                self.outage.suspects.answered(&part.name);
                if let Some(seq) = part.result {
                    self.setup.board.result_acked.fetch_max(seq, Ordering::Relaxed);
                    self.setup.news.send_modify(|news| news.acked = news.acked.max(seq));
                }
                self.settled_part(&part, None);
            }
            _ if !Defence::PubackReason.stands() => self.settled_part(&part, None),
            PubAckReason::NotAuthorized | PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid => {
                self.outage.suspects.answered(&part.name);
                let (tally, last) = &mut self.outage.tallies.refused;
                tally.add(1);
                *last = format!("the last one: {reason:?}, stream {}", part.name.0);
                self.settled_part(&part, Some("refused_by_broker"));
            }
            other => {
                // It gives no reason that passes with time, so it may be this message.
                if matches!(other, PubAckReason::UnspecifiedError | PubAckReason::ImplementationSpecificError) {
                    self.outage.suspects.closed(vec![(part.name, Duration::ZERO)]);
                }
                return Err(Failed::broker(format!("the broker could not take a message: {other:?}")));
            }
        }
        Ok(())
    }

    /// One part of a message is delivered, or lost with a reason; with its last part the outbox forgets the message.
    fn settled_part(&mut self, part: &hand::Part, reason: Option<&'static str>) {
        let loss = reason.map(|reason| Loss { seqs: (part.name.1, part.name.2), n: part.n, reason });
        if let Some(lost) = self.parcels.settle(part.id, loss) {
            self.setup.reader.settled(part.id, &lost);
        }
    }

    fn connected(&mut self, ack: &ConnAck) {
        let properties = ack.properties.as_ref();
        let theirs = properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX);
        // 0 is a broker that does not look; this side goes on looking.
        if let Some(seconds) = properties.and_then(|p| p.server_keep_alive).filter(|seconds| *seconds > 0) {
            self.keep_alive = Duration::from_secs(u64::from(seconds));
        }
        self.sizes =
            properties.and_then(|p| p.max_packet_size).map_or(Sizes::default(), |n| Sizes::default().announced(n));
        let setup = self.setup;
        self.flight.open(limits::IN_FLIGHT.min(theirs));
        let mqtt = &self.wanted.mqtt;
        sys::limit_unsent(mqtt.port, limits::UNSENT_BYTES);
        self.connected = true;
        self.setup.meters.connections.add(1);
        let broker = format!("{}:{}", mqtt.host, mqtt.port);
        tracing::info!(broker, session = self.outage.session, "connected");
        self.short_lived = self.outage.soon >= limits::SOON_TIMES;
        (setup.note)(&if self.short_lived { self.outage.short_lived() } else { String::new() });
        let away = self.outage.since.elapsed();
        if away >= limits::OUTAGE_TOLD && !self.outage.why.is_empty() {
            (setup.tell)(Kind::Outage, &format!("no connection for {:.1} s: {}", away.as_secs_f64(), self.outage.why));
        }
        for wishes in packet::subscriptions(setup.topics.wishes(), self.most().most) {
            self.subscriptions_left += wishes.len();
            self.hand.push_back(Handed::subscriptions(wishes));
        }
        self.publish(setup.topics.state(), self.state("online"));
        self.announce();
        for (stream, members) in &setup.announce.meta {
            self.publish(setup.topics.meta(stream), self.head(members));
        }
        self.hand.extend(self.gone.handed(&setup.announce.gone, &setup.topics));
        setup.reader.online();
    }

    /// What is known of the broker's largest packet.
    fn most(&self) -> Sizes {
        let learnt = self.outage.sizes;
        Sizes { most: self.sizes.most.min(learnt.most), never: self.sizes.never.min(learnt.never) }
    }

    /// Who this is and what serves, retained; said again when that changed.
    pub(super) fn announce(&mut self) {
        self.announced = self.began.elapsed();
        let birth = (self.setup.announce.birth)();
        if birth != self.birth {
            let members = format!("{birth},\"nonce\":\"{}\"", self.nonce);
            self.publish(self.setup.topics.birth(), self.head(&members));
            self.birth = birth;
        }
    }

    /// What the broker said to subscriptions; there may be several packets of them. One that was refused leaves the device
    /// without commands: it is reported, and data goes on.
    fn subscribed(&mut self, asked: usize, ack: &SubAck) {
        let granted = ack.return_codes.iter().filter(|code| matches!(code, SubscribeReasonCode::Success(_))).count();
        self.subscriptions_refused += asked.saturating_sub(granted);
        self.subscriptions_left = self.subscriptions_left.saturating_sub(asked);
        if self.subscriptions_left > 0 {
            return;
        }
        if self.subscriptions_refused == 0 {
            self.setup.news.send_if_modified(|news| !std::mem::replace(&mut news.subscribed, true));
        } else {
            let all = self.setup.topics.wishes().len();
            let text = format!("the broker refuses {} of {all} subscriptions", self.subscriptions_refused);
            tracing::error!("MQTT session: {text}: messages on these topics do not arrive; publishing goes on");
            (self.setup.note)(&text);
        }
    }

    /// Hands an order to control, which says when it is settled; only then the broker may forget it. One that was settled
    /// before is only acknowledged.
    fn arrived(&mut self, publish: Publish) {
        let topic = String::from_utf8_lossy(&publish.topic);
        let Some((to, asked)) = self.setup.topics.read(&topic) else {
            tracing::debug!(%topic, "a message that is not for this device");
            return self.settled.push_back(publish.pkid);
        };
        let ticket = Ticket { session: self.outage.session, id: publish.pkid };
        let order = (publish.topic.as_ref(), publish.payload.as_ref());
        // What is retained comes with each connection, and is not sent again because it was unacknowledged.
        let came = match publish.retain {
            true => seen::Incoming::New,
            false => self.outage.seen.came(order, publish.dup, ticket, self.began.elapsed()),
        };
        match came {
            seen::Incoming::New => {}
            again => {
                tracing::info!(%topic, "the broker sent a message again that was handled: acknowledged, not handled again");
                if again == seen::Incoming::Dropped {
                    self.drop_order();
                }
                return self.settled.push_back(publish.pkid);
            }
        }
        let properties = publish.properties.as_ref();
        let respond = properties
            .and_then(|p| Some(Respond { topic: p.response_topic.clone()?, correlation: p.correlation_data.clone() }));
        let (payload, retained, nonce) = (publish.payload.clone(), publish.retain, self.nonce.clone());
        self.waiting.push_back(Box::new(Arrived { to, asked, payload, retained, respond, nonce, ticket }));
        self.hand_in();
    }

    /// Hands in what waits, in its order. Where control has no room, what came with QoS 1 waits: the broker sends no more
    /// than the receive maximum of it. What is beyond that, or came with QoS 0, is dropped.
    pub(super) fn hand_in(&mut self) {
        while let Some(arrived) = self.waiting.pop_front() {
            if let Err(arrived) = self.setup.orders.hand_in(arrived) {
                self.waiting.push_front(arrived);
                break;
            }
        }
        let before = self.waiting.len();
        self.waiting.retain(|arrived| arrived.ticket.id > 0);
        (self.waiting.len()..before).for_each(|_| self.drop_order());
        while self.waiting.len() > usize::from(limits::RECEIVE_MAXIMUM)
            && let Some(arrived) = self.waiting.pop_back()
        {
            self.drop_order();
            self.settled.push_back(arrived.ticket.id);
        }
    }

    /// Counts it; `Outage::report` makes an event of the first one and of the sum of those that follow.
    fn drop_order(&mut self) {
        self.setup.meters.commands_dropped.add(1);
        self.outage.tallies.orders.add(1);
    }

    pub(super) fn respond(&mut self, response: Response) {
        let Respond { topic, correlation } = response.respond;
        let payload = wire::encode(response.payload, self.wanted.mqtt.cbor);
        self.hand.push_back(Handed { correlation, answer: true, ..Handed::nothing(topic, payload, false) });
    }

    pub(super) fn send(&mut self, message: &ToSend) {
        let result = message.sealed.class == Class::Reply;
        let (topics, stream) = (&self.setup.topics, &message.sealed.stream);
        let topic = match message.sealed.items.first().filter(|_| result) {
            Some(item) => topics.result(stream, &item.body),
            None => topics.stream(stream),
        };
        let sizes = self.most();
        let room = sizes.most.saturating_sub(packet::publish_bytes(topic.len(), 0, None) + 3);
        let parts = packet::split(&message.sealed, message.hist, self.wanted.mqtt.cbor, room);
        let retain = self.retain(message);
        if retain == Retain::Remove {
            self.hand.push_back(Handed::nothing(topic.clone(), Vec::new(), true));
        }
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

    /// It ended two connections: it waits until others were acknowledged.
    fn wait_for_others(&mut self, handed: Handed) {
        if self.later.len() >= limits::SUSPECTS_HELD
            && let Some(oldest) = self.later.pop_front()
        {
            self.give_up(&oldest);
        }
        self.later.push_back(handed);
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
        let held = self.acknowledged && self.began.elapsed() >= limits::SUSPECT_AGAIN;
        if held
            && self.alone.is_none()
            && self.hand.is_empty()
            && self.flight.len() == 0
            && let Some(handed) = self.later.pop_front()
        {
            if let Settles::Parcel(part) = &handed.settles {
                self.alone = Some(part.name.clone());
            }
            self.hand.push_back(handed);
        }
    }

    /// One that waits is due: nothing else is begun until it was sent.
    pub(super) fn wants_alone(&self) -> bool {
        let due = self.acknowledged && self.began.elapsed() >= limits::SUSPECT_AGAIN && !self.later.is_empty();
        due || self.alone.is_some()
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

    /// Gives the client library the next message when it is done with the previous one.
    pub(super) fn hand_over(&mut self, client: &AsyncClient) -> Result<(), Failed> {
        let failed = |what: &str, why: String| Failed::broker(format!("hand {what} to the client: {why}"));
        while self.acks < limits::ACKS_QUEUED
            && let Some(id) = self.settled.pop_front()
        {
            // A QoS 0 message has no id and needs no acknowledgement.
            if id > 0 {
                let publish = Publish { qos: QoS::AtLeastOnce, pkid: id, ..Publish::default() };
                client.try_ack(&publish).map_err(|why| failed("an acknowledgement", why.to_string()))?;
                self.acks += 1;
            }
        }
        let one = self.outage.suspects.one_at_a_time() || self.alone.is_some();
        if !self.flight.has_room() || (one && self.flight.len() > 0) {
            return Ok(());
        }
        // An order is acknowledged first: should the broker close on its answer, it does not come again.
        if self.hand.front().is_some_and(|next| next.answer) && !self.settled.is_empty() {
            return Ok(());
        }
        let Some(next) = self.hand.pop_front() else { return Ok(()) };
        let Handed { topic, payload, retain, .. } = next;
        if next.wishes.is_empty() && !matches!(next.settles, Settles::Parcel(_)) {
            let size = packet::publish_bytes(topic.len(), payload.len(), next.correlation.as_ref().map(|c| c.len()));
            if size >= self.most().never {
                let (tally, last) = &mut self.outage.tallies.large;
                tally.add(1);
                *last = format!("the last one: topic {topic}, {size} bytes");
                return Ok(());
            }
        }
        let handed = match (&next.settles, next.correlation) {
            (Settles::Subscriptions(_), _) => client.try_subscribe_many(wire::filters(next.wishes)),
            (_, None) => client.try_publish(topic, QoS::AtLeastOnce, retain, payload),
            (_, correlation_data) => {
                let properties = PublishProperties { correlation_data, ..PublishProperties::default() };
                client.try_publish_with_properties(topic, QoS::AtLeastOnce, retain, payload, properties)
            }
        };
        handed.map_err(|why| failed("a message", why.to_string()))?;
        self.flight.handed(next.settles, next.backlog);
        Ok(())
    }

    /// Messages of the outbox that are unacknowledged, with their age.
    pub(super) fn flying(&self) -> Vec<(Name, Duration)> {
        let now = self.began.elapsed();
        let parts = self.flight.flying().filter_map(|(settles, since)| match settles {
            Settles::Parcel(part) => Some((part.name.clone(), now.saturating_sub(since))),
            _ => None,
        });
        parts.collect()
    }

    /// The largest of them, bytes.
    pub(super) fn largest(&self) -> Option<usize> {
        let sizes = self.flight.flying().filter_map(|(settles, _)| match settles {
            Settles::Parcel(part) => Some(part.size),
            _ => None,
        });
        sizes.max()
    }
}
