//! What a broker offers, by its CONNACK, and what this device does without. Pure.
//!
//! | the broker says | then |
//! |---|---|
//! | maximum packet size | messages are split; a record that does not fit is lost, and counted |
//! | retain not available | nothing is sent with the retain flag; nothing is removed |
//! | maximum QoS 0 | messages go with QoS 0, and count as sent when a ping after them is answered |
//! | no wildcard subscriptions | what needs a wildcard is not subscribed: commands and parts of models do not arrive |
//! | receive maximum, server keep-alive | are kept to |
//! | topic alias maximum | so many topics of streams are sent once, and a number in their place then |
//! | shared subscriptions | are not used |

use std::time::Duration;

use rumqttc::v5::mqttbytes::v5::ConnAck;

use super::packet::Sizes;
use crate::limits;

/// What a broker offers; MQTT's defaults where it says nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// Messages with QoS 1 that it takes at once.
    pub at_once: u16,
    /// It acknowledges messages: QoS 1.
    pub qos1: bool,
    /// It keeps retained messages.
    pub retain: bool,
    /// The largest packet.
    pub sizes: Sizes,
    /// `+` in subscriptions.
    pub wildcards: bool,
    /// Topic aliases that it takes.
    pub aliases: u16,
    /// The keep-alive that it demands; `None` where the broker answers 0 and does not check it.
    pub keep_alive: Option<Duration>,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            at_once: limits::IN_FLIGHT,
            qos1: true,
            retain: true,
            sizes: Sizes::default(),
            wildcards: true,
            aliases: 0,
            keep_alive: None,
        }
    }
}

impl Offer {
    /// Reads it from CONNACK. `learnt`: what an earlier refusal taught.
    pub fn read(ack: &ConnAck, learnt: Learnt) -> Self {
        let all = Self { qos1: !learnt.no_qos1, retain: !learnt.no_retain, ..Self::default() };
        let Some(said) = &ack.properties else { return all };
        Self {
            // 0 is an error of the protocol; one at a time is what comes nearest.
            at_once: said.receive_max.map_or(all.at_once, |n| n.clamp(1, limits::IN_FLIGHT)),
            qos1: all.qos1 && said.max_qos != Some(0),
            retain: all.retain && said.retain_available != Some(0),
            sizes: said.max_packet_size.map_or(all.sizes, |n| all.sizes.announced(n)),
            wildcards: said.wildcard_subscription_available != Some(0),
            aliases: said.topic_alias_max.filter(|_| !learnt.no_aliases).unwrap_or(0),
            keep_alive: said.server_keep_alive.filter(|s| *s > 0).map(|s| Duration::from_secs(u64::from(s))),
        }
    }

    /// What the broker lacks and what follows, for the log and the status.
    pub fn lacks(&self) -> Vec<&'static str> {
        let lacks = [
            (
                self.qos1,
                "it acknowledges no message (QoS 0 only): a message counts as sent when the broker answered a ping after it, \
                         and what the broker drops itself is lost unseen",
            ),
            (
                self.retain,
                "it keeps no retained messages: a client that connects later does not see state, birth and raised alarms",
            ),
            (self.wildcards, "it offers no wildcard subscriptions: commands and parts of models do not arrive"),
        ];
        lacks.into_iter().filter(|(there, _)| !there).map(|(_, what)| what).collect()
    }
}

/// What a refusal taught about a broker: it offers less than it was asked for, or than it says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Learnt {
    /// 0x9A: no will that is retained.
    pub no_retain: bool,
    /// 0x9B: no will with QoS 1.
    pub no_qos1: bool,
    /// 0x94: it says that it takes aliases, and does not.
    pub no_aliases: bool,
}

impl Learnt {
    /// Takes in a refusal's code. `true`: it taught something, and the next CONNECT asks for less.
    pub fn refused(&mut self, code: u8) -> bool {
        let known = match code {
            0x9a => &mut self.no_retain,
            0x9b => &mut self.no_qos1,
            0x94 => &mut self.no_aliases,
            _ => return false,
        };
        !std::mem::replace(known, true)
    }

    /// What the next CONNECT to this broker asks for, after one that was accepted: a broker that was reconfigured is noticed with
    /// the connection after.
    pub fn accepted(&mut self, offer: &Offer, ack: &ConnAck) {
        let said = ack.properties.as_ref();
        self.no_retain = !offer.retain && said.and_then(|p| p.retain_available) == Some(0);
        self.no_qos1 = !offer.qos1 && said.and_then(|p| p.max_qos) == Some(0);
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use rumqttc::v5::mqttbytes::v5::Packet;

    use super::*;

    /// CONNACK with these properties.
    fn ack(properties: &[u8]) -> ConnAck {
        let mut bytes = vec![0x20, 3 + properties.len() as u8, 0, 0, properties.len() as u8];
        bytes.extend(properties);
        match Packet::read(&mut BytesMut::from(bytes.as_slice()), None) {
            Ok(Packet::ConnAck(ack)) => ack,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_said_is_offered_and_what_is_said_is_obeyed() {
        assert_eq!(Offer::read(&ack(&[]), Learnt::default()), Offer::default());
        let limited = ack(&[0x21, 0, 5, 0x24, 0, 0x25, 0, 0x27, 0, 0, 0x1f, 0x40, 0x28, 0, 0x13, 0, 30, 0x22, 0, 10]);
        let offer = Offer::read(&limited, Learnt::default());
        let expected = Offer {
            at_once: 5,
            qos1: false,
            retain: false,
            sizes: Sizes::default().announced(8000),
            wildcards: false,
            aliases: 10,
            keep_alive: Some(Duration::from_secs(30)),
        };
        assert_eq!(offer, expected);
        assert_eq!((offer.lacks().len(), Offer::default().lacks().len()), (3, 0));
        let odd = Offer::read(&ack(&[0x21, 0, 0, 0x13, 0, 0, 0x24, 1, 0x25, 1]), Learnt::default());
        assert_eq!((odd.at_once, odd.keep_alive, odd.qos1, odd.retain), (1, None, true, true));
        assert_eq!(Offer::read(&ack(&[0x21, 0xff, 0xff]), Learnt::default()).at_once, limits::IN_FLIGHT);
    }

    #[test]
    fn a_refused_will_is_asked_for_once_less_and_again_when_the_broker_offers_it() {
        let mut learnt = Learnt::default();
        assert!(
            learnt.refused(0x9a) && !learnt.refused(0x9a),
            "taught once: a second refusal is a failure like others"
        );
        assert!(learnt.refused(0x9b) && !learnt.refused(0x87));
        assert!(learnt.refused(0x94) && !learnt.refused(0x94), "a broker that takes no alias though it says so");
        assert_eq!(Offer::read(&ack(&[0x22, 0, 9]), learnt).aliases, 0);
        let offer = Offer::read(&ack(&[]), learnt);
        assert!(!offer.retain && !offer.qos1, "a broker that refused it and does not say so in CONNACK");
        learnt.accepted(&offer, &ack(&[]));
        assert_eq!(learnt, Learnt { no_aliases: true, ..Learnt::default() }, "the next connection asks again");
        let said = ack(&[0x25, 0]);
        learnt.refused(0x9a);
        learnt.accepted(&Offer::read(&said, learnt), &said);
        assert!(learnt.no_retain && !learnt.no_qos1, "it says so itself: no refused connect in between");
    }
}
