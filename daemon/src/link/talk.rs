//! One connection's packets: what the broker says, and what follows.

use std::{sync::atomic::Ordering, time::Duration};

use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Disconnect, DisconnectReasonCode, Packet, PubAckReason, Publish, SubAck, SubscribeReasonCode,
};

use super::{
    Ended, Failed, Link,
    alias::Aliases,
    hand::{self, Handed, Settles},
    offer::Offer,
    open, packet,
    packet::Sizes,
    reason::{self, Stage},
    seen,
    session::Closed,
    suspect::Name,
    wire,
};
use crate::{
    flow::{
        event::Kind,
        order::{Arrived, LinkNews, Respond, Response, Ticket},
    },
    host::{Clock, Defence},
    limits,
    outbox::Loss,
};

impl Link<'_> {
    pub(super) fn packet(&mut self, packet: Packet) -> Result<(), Ended> {
        self.heard = self.began.elapsed();
        match packet {
            Packet::SubAck(ack) => {
                if let Some((Settles::Subscriptions(asked), _)) = self.flight.answered(ack.pkid) {
                    self.subscribed(&asked, &ack);
                }
            }
            Packet::Publish(publish) => self.arrived(publish),
            Packet::PubAck(ack) => {
                let text = ack.properties.and_then(|p| p.reason_string);
                self.answered(ack.pkid, ack.reason, text.as_deref()).map_err(Ended::Failed)?;
            }
            Packet::PingResp(_) => self.ponged().map_err(Ended::Failed)?,
            Packet::Disconnect(end) => return Err(self.disconnected(&end)),
            _ => {}
        }
        Ok(())
    }

    fn answered(&mut self, id: u16, reason: PubAckReason, text: Option<&str>) -> Result<(), Failed> {
        match self.flight.answered(id) {
            Some((Settles::Parcel(part), since)) => {
                self.setup.meters.acknowledge.took_time(self.began.elapsed().saturating_sub(since));
                self.setup.board.acked_ns.store(Clock::boot_ns(), Ordering::Relaxed);
                return self.settle(part, reason, text);
            }
            Some((Settles::Gone, _)) => self.gone.acked(reason, &self.setup.news),
            Some((Settles::Window(pipeline), _)) if !is_good(reason) => self.window_refused(pipeline, reason, text),
            Some((Settles::Nothing, _)) if !is_good(reason) => {
                let text = text.map_or(String::new(), |text| format!(", it says `{}`", reason::short(text)));
                tracing::warn!(
                    "the broker rejected an announcement of this device: {reason:?}{text}; it goes on without it"
                );
            }
            _ => {}
        }
        Ok(())
    }

    /// A broker without QoS 1 has read what was sent before the ping that it answers now.
    fn ponged(&mut self) -> Result<(), Failed> {
        for id in self.flight.ponged() {
            let is_message = !matches!(self.flight.what(id), Some(Settles::Subscriptions(_)));
            if !self.offer.qos1 && is_message {
                self.answered(id, PubAckReason::Success, None)?;
            }
        }
        Ok(())
    }

    /// The broker ended the session, with a reason.
    fn disconnected(&mut self, end: &Disconnect) -> Ended {
        let said = end.properties.as_ref();
        let text = said.and_then(|p| p.reason_string.as_deref());
        let server = said.and_then(|p| p.server_reference.as_deref());
        if end.reason_code == DisconnectReasonCode::SessionTakenOver {
            return Ended::Twin(text.map_or(String::new(), |text| format!(" (it says `{}`)", reason::short(text))));
        }
        let words = reason::words(end.reason_code as u8, text, server, &self.wanted.mqtt);
        let failed = Failed::broker(format!("the broker closed: {words}"));
        Ended::Failed(match end.reason_code {
            DisconnectReasonCode::TopicAliasInvalid => {
                Failed { taught: self.outage.known().learnt.refused(end.reason_code as u8), ..failed }
            }
            DisconnectReasonCode::PacketTooLarge => Failed { closed: true, too_large: true, ..failed },
            // It stops, or is busy: none of our messages is why.
            DisconnectReasonCode::ServerShuttingDown | DisconnectReasonCode::ServerBusy => failed,
            _ => Failed { closed: true, ..failed },
        })
    }

    /// The session ended without a reason of the broker's: what was pending says what is likely.
    pub(super) fn closed(&mut self, closed: &Closed) -> Failed {
        let pending = self.flight.len();
        let stage = match pending {
            // A broker reads in order, and subscriptions were sent first.
            _ if self.subscriptions_left > 0 => Stage::Subscribe,
            0 => Stage::Idle,
            _ => Stage::Publish,
        };
        // It may be that it takes fewer of them in one packet.
        let taught = stage == Stage::Subscribe && self.outage.known().filters() > 1;
        self.outage.known().closed_on_filters += u32::from(taught);
        let newest = self.newest.as_ref().filter(|(id, ..)| pending == 1 && self.flight.what(*id).is_some());
        let last = newest.map(|(_, topic, size)| (topic.as_str(), *size));
        let failed = open::ended(closed, stage, last, &self.wanted.mqtt, &self.topics.root(), self.broker);
        Failed { taught, ..failed }
    }

    /// Only a successful answer removes a record. An answer that no repetition can change counts it as lost; any other
    /// ends the connection, and everything unacknowledged is sent again after a pause.
    fn settle(&mut self, part: hand::Part, reason: PubAckReason, text: Option<&str>) -> Result<(), Failed> {
        if self.alone.as_ref() == Some(&part.name) {
            self.alone = None;
        }
        match reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {
                self.acknowledged = true;
                self.outage.suspects.answered(&part.name);
                if let Some(seq) = part.result.filter(|_| part.name.0 == "blob") {
                    self.setup.board.blob_acked.fetch_max(seq, Ordering::Relaxed);
                } else if let Some(seq) = part.result {
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
                let text = text.map_or(String::new(), |text| format!(", it says `{}`", reason::short(text)));
                *last = format!("the last one: {reason:?}, stream {}{text}", part.name.0);
                self.settled_part(&part, Some("refused_by_broker"));
            }
            other => {
                // It gives no reason that passes with time, so it may be this message.
                let vague = matches!(other, PubAckReason::UnspecifiedError | PubAckReason::ImplementationSpecificError);
                let now = self.outage.began.elapsed();
                if vague && !self.outage.suspects.refused(&part.name, now) && self.acknowledged {
                    self.outage.suspects.forget(&part.name);
                    let (tally, last) = &mut self.outage.tallies.refused;
                    tally.add(1);
                    *last = format!("the last one: {other:?} for an hour, stream {}", part.name.0);
                    self.settled_part(&part, Some("refused_by_broker"));
                    return Ok(());
                }
                let text = text.map_or(String::new(), |text| format!(", it says `{}`", reason::short(text)));
                return Err(Failed::broker(format!("the broker could not take a message: {other:?}{text}")));
            }
        }
        Ok(())
    }

    /// One part of a message is delivered, or lost with a reason; with its last part the outbox forgets the message.
    pub(super) fn settled_part(&mut self, part: &hand::Part, reason: Option<&'static str>) {
        let loss = reason.map(|reason| Loss { seqs: (part.name.1, part.name.2), n: part.n, reason });
        if let Some(lost) = self.parcels.settle(part.id, loss) {
            self.setup.reader.settled(part.id, &lost);
        }
    }

    /// The broker accepted: what it offers is obeyed from here on.
    pub(super) fn connected(&mut self, ack: &ConnAck) {
        let setup = self.setup;
        self.offer = Offer::read(ack, self.outage.known().learnt);
        self.outage.known().learnt.accepted(&self.offer, ack);
        self.keep_alive = open::keep_alive(&self.wanted.mqtt, self.offer.keep_alive);
        self.pinged = self.began.elapsed();
        self.flight.open(self.offer.at_once);
        self.aliases = Aliases::new(self.offer.aliases);
        self.connected = true;
        setup.meters.connections.add(1);
        let broker = self.broker;
        tracing::info!(broker = %broker, session = self.outage.session, "connected");
        self.remark(ack);
        self.short_lived = self.outage.soon >= limits::SOON_TIMES;
        // What the broker lacks is no fault of this device: it is logged, and the device is not degraded for it.
        (setup.note)(&if self.short_lived { self.outage.short_lived() } else { String::new() });
        let away = self.outage.since.elapsed();
        if away >= limits::OUTAGE_TOLD && !self.outage.why.is_empty() {
            (setup.tell)(
                Kind::Outage,
                &format!("connected again, after no connection for {:.1} s: {}", away.as_secs_f64(), self.outage.why),
            );
        }
        let (wishes, without) = self.topics.wishes(self.offer.wildcards);
        self.subscriptions_refused.0 = without;
        let filters = self.outage.known().filters();
        for wishes in packet::subscriptions(wishes, filters, self.most().most) {
            self.subscriptions_left += wishes.len();
            self.hand.push_back(Handed::subscriptions(wishes));
        }
        self.announce();
        for (stream, members) in &setup.announce.meta {
            self.publish(self.topics.meta(stream), self.head(members));
        }
        self.announce_beside();
        let gone = setup.announce.gone.iter().map(|stream| self.topics.stream(stream));
        let gone: Vec<String> = gone.chain(setup.announce.beside.gone.iter().cloned()).collect();
        if self.offer.retain {
            self.hand.extend(self.gone.handed(gone));
        } else if !gone.is_empty() {
            // A broker that keeps nothing has nothing to remove.
            setup.news.send_modify(|news: &mut LinkNews| news.cleared = true);
        }
        setup.reader.online();
    }

    /// Logs what the broker says beside, and once what it lacks.
    fn remark(&mut self, ack: &ConnAck) {
        let broker = self.broker;
        let said = ack.properties.as_ref();
        if let Some(text) = said.and_then(|p| p.reason_string.as_deref()).filter(|text| !text.is_empty()) {
            tracing::info!(broker = %broker, "the broker says `{}`", reason::short(text));
        }
        if let Some(id) = said.and_then(|p| p.assigned_client_identifier.as_deref()) {
            tracing::warn!(
                broker = %broker,
                "the broker assigned the client id `{}` instead of `{}`: write it into `mqtt.client_id`, or commands sent while this \
                 device is away are lost",
                reason::short(id),
                self.wanted.mqtt.client_id
            );
        }
        let lacks = self.offer.lacks().join("; ");
        if std::mem::replace(&mut self.outage.known().lacks, lacks.clone()) != lacks && !lacks.is_empty() {
            tracing::warn!(broker = %broker, "the broker offers less than this device asks for: {lacks}");
        }
    }

    /// What is known of the broker's largest packet.
    pub(super) fn most(&mut self) -> Sizes {
        let (said, learnt) = (self.offer.sizes, self.outage.known().sizes);
        Sizes { most: said.most.min(learnt.most), never: said.never.min(learnt.never) }
    }

    /// That it is connected, who this is and what serves, retained; said again when that changed, or on request.
    pub(super) fn announce(&mut self) {
        self.announced = self.began.elapsed();
        if self.birth.is_empty() {
            let word = if self.is_stopping { "stopping" } else { "online" };
            self.publish(self.topics.state(), self.state(word));
        }
        let birth = (self.setup.announce.birth)();
        if birth != self.birth {
            let members = format!("{birth},\"nonce\":\"{}\"", self.nonce);
            self.publish(self.setup.topics.birth(), self.head(&members));
            self.birth = birth;
        }
    }

    /// What the broker said to subscriptions; there may be several packets of them. One that was refused leaves the device
    /// without commands: it is reported, and data goes on.
    fn subscribed(&mut self, asked: &[String], ack: &SubAck) {
        let codes = ack.return_codes.iter().map(Some).chain(std::iter::repeat(None));
        for (filter, code) in asked.iter().zip(codes) {
            if matches!(code, Some(SubscribeReasonCode::Success(_))) {
                self.answers_arrive(filter);
            } else {
                self.subscriptions_refused.0 += 1;
                let why = code.map_or("no answer".into(), |code| format!("{code:?}"));
                self.subscriptions_refused.1 = format!(" (the last one: {filter}: {why})");
            }
        }
        self.subscriptions_left = self.subscriptions_left.saturating_sub(asked.len());
        if self.subscriptions_left > 0 {
            return;
        }
        let (refused, last) = &self.subscriptions_refused;
        if *refused == 0 {
            self.setup.news.send_if_modified(|news| !std::mem::replace(&mut news.subscribed, true));
        } else if !last.is_empty() {
            let all = self.topics.wishes(true).0.len();
            let text = format!("the broker refuses {refused} of {all} subscriptions");
            let said = ack.properties.as_ref().and_then(|p| p.reason_string.as_deref());
            let said = said.map_or(String::new(), |text| format!(", it says `{}`", reason::short(text)));
            tracing::error!(
                "MQTT session: {text}{last}{said}: messages on these topics do not arrive; publishing goes on"
            );
            (self.setup.note)(&text);
        }
    }

    /// Hands an order to control, which says when it is settled; only then the broker may forget it. One that was settled
    /// before is only acknowledged.
    fn arrived(&mut self, publish: Publish) {
        let topic = String::from_utf8_lossy(&publish.topic);
        if self.answer_arrived(&topic, &publish) {
            return self.settled.push_back(publish.pkid);
        }
        let Some((to, asked)) = self.topics.read(&topic) else {
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
        if asked.is_report() {
            // Not every broker sends what it keeps to who connects later: RabbitMQ does not for filters with wildcards.
            self.birth.clear();
        }
        let properties = publish.properties.as_ref();
        let respond = properties.and_then(|p| {
            let topic = self.topics.response(p.response_topic.as_deref()?)?;
            Some(Respond { topic, correlation: p.correlation_data.clone() })
        });
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
        let topic = self.topics.whole(&topic);
        let payload = wire::encode(response.payload, self.wanted.mqtt.cbor);
        self.hand.push_back(Handed { correlation, ..Handed::nothing(topic, payload, false) });
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

fn is_good(reason: PubAckReason) -> bool {
    matches!(reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers)
}
