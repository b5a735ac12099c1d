//! Reason codes of MQTT 5, and a broker that closes without one, in words that say what to do. Pure.

use crate::config::Mqtt;

/// How far a connection had come when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// CONNECT was sent and not answered.
    Connect,
    /// Subscriptions were not answered yet.
    Subscribe,
    /// Messages were unacknowledged.
    Publish,
    /// Nothing was pending.
    Idle,
}

/// A reason code by its name in the standard.
pub fn name(code: u8) -> &'static str {
    match code {
        0x00 => "normal disconnection",
        0x01 | 0x84 => "unsupported protocol version",
        0x04 => "disconnect with will message",
        0x80 => "unspecified error",
        0x81 => "malformed packet",
        0x82 => "protocol error",
        0x83 => "implementation specific error",
        0x02 | 0x85 => "client identifier not valid",
        0x05 | 0x87 => "not authorized",
        0x86 => "bad user name or password",
        0x03 | 0x88 => "server unavailable",
        0x89 => "server busy",
        0x8a => "banned",
        0x8b => "server shutting down",
        0x8c => "bad authentication method",
        0x8d => "keep alive timeout",
        0x8e => "session taken over",
        0x8f => "topic filter invalid",
        0x90 => "topic name invalid",
        0x91 => "packet identifier in use",
        0x93 => "receive maximum exceeded",
        0x94 => "topic alias invalid",
        0x95 => "packet too large",
        0x96 => "message rate too high",
        0x97 => "quota exceeded",
        0x98 => "administrative action",
        0x99 => "payload format invalid",
        0x9a => "retain not supported",
        0x9b => "QoS not supported",
        0x9c => "use another server",
        0x9d => "server moved",
        0x9e => "shared subscriptions not supported",
        0x9f => "connection rate exceeded",
        0xa0 => "maximum connect time",
        0xa1 => "subscription identifiers not supported",
        0xa2 => "wildcard subscriptions not supported",
        _ => "a reason that MQTT 5 does not have",
    }
}

/// What to do about it, where that is known.
fn advice(code: u8, mqtt: &Mqtt) -> Option<String> {
    Some(match code {
        0x01 | 0x84 => "it does not speak MQTT 5: kentledge needs a broker that does".into(),
        0x85 => format!("it does not accept the client id `{}`: set `mqtt.client_id`", mqtt.client_id),
        0x86 => "check `mqtt.username` and the password in `mqtt.password_file`".into(),
        0x87 => format!("its ACL does not allow this user, certificate or client id (`{}`)", mqtt.client_id),
        0x8a => "an operator of the broker must lift the ban".into(),
        0x8c => "it demands an extended authentication, which kentledge does not have".into(),
        0x8d => {
            "it heard nothing of this device for one and a half keep-alives: the network between lost packets".into()
        }
        0x90 => "its ACL or its rules do not allow the topics of this device; some brokers demand `mqtt.topic_prefix`"
            .into(),
        0x96 | 0x97 | 0x9f => {
            "a limit of the broker or of the tariff is reached: send less, or raise the limit there".into()
        }
        0x9c | 0x9d => "put the other address into `mqtt.url`".into(),
        _ => return None,
    })
}

/// What a broker says with a code: its name, the code, its own text, another server, and what to do.
pub fn words(code: u8, text: Option<&str>, server: Option<&str>, mqtt: &Mqtt) -> String {
    let mut out = format!("{} (0x{code:02X})", name(code));
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        out.push_str(&format!(", it says `{}`", short(text)));
    }
    if let Some(server) = server {
        out.push_str(&format!(", it names the server `{}`", short(server)));
    }
    if let Some(advice) = advice(code, mqtt) {
        out.push_str(&format!(": {advice}"));
    }
    out
}

/// A text of others, as long as a line may be.
pub fn short(text: &str) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let start: String = chars.by_ref().take(200).collect();
    if chars.next().is_some() { format!("{start}…") } else { start }
}

/// A broker that closed without a reason: what that is likely to mean at this stage. `last`: topic and size of the only message
/// that was unacknowledged.
pub fn silent(stage: Stage, last: Option<(&str, usize)>, mqtt: &Mqtt, root: &str) -> String {
    let gave = "and gave no reason";
    match stage {
        Stage::Connect => format!(
            "the broker closed the connection after CONNECT {gave}: likely it does not allow the user, the certificate or the client \
             id `{}`, or the port speaks another protocol (TLS, WebSocket, MQTT 3 only)",
            mqtt.client_id
        ),
        Stage::Subscribe => format!(
            "the broker closed the connection after SUBSCRIBE {gave}: likely its ACL forbids reading `{root}/dn/#`, or \
             it limits the number of subscriptions"
        ),
        Stage::Publish => {
            let which = last
                .map_or(String::new(), |(topic, size)| format!(" (the only message pending: {topic}, {size} bytes)"));
            format!(
                "the broker closed the connection after PUBLISH {gave}: likely its ACL forbids writing `{root}/up/#`, a \
                 quota is used up, or a packet is larger than it takes{which}"
            )
        }
        Stage::Idle => format!(
            "the broker closed the connection while nothing was pending {gave}: likely it restarted, the network between ends idle \
             connections (`mqtt.keep_alive_s` is {}), or another client connected as `{}`",
            mqtt.keep_alive_s, mqtt.client_id
        ),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::Broker;

    /// Of one broker in plain text.
    pub fn mqtt() -> Mqtt {
        Mqtt {
            brokers: vec![Broker { host: "b".into(), port: 1883, secure: false, path: None }],
            tls: None,
            proxy: None,
            username: None,
            password_file: None,
            keep_alive_s: 15,
            cbor: false,
            client_id: "kl-s-d".into(),
            topic_prefix: String::new(),
        }
    }

    #[test]
    fn a_reason_has_its_name_its_code_the_brokers_text_and_advice() {
        let text = words(0x97, Some("1000 messages a day\nbuy more"), None, &mqtt());
        let expected = "quota exceeded (0x97), it says `1000 messages a day buy more`: a limit of the broker";
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(words(0x80, None, None, &mqtt()), "unspecified error (0x80)");
        assert!(words(0x85, Some(""), None, &mqtt()).contains("`kl-s-d`: set `mqtt.client_id`"));
        assert!(
            words(0x9d, None, Some("b2:1883"), &mqtt()).contains("names the server `b2:1883`: put the other address")
        );
        assert!(short(&"x".repeat(500)).chars().count() == 201);
    }

    #[test]
    fn each_stage_of_a_silent_end_has_its_own_cause_and_none_claims_a_second_client_as_a_fact() {
        let of = |stage| silent(stage, None, &mqtt(), "kl/s/d");
        let all = [Stage::Connect, Stage::Subscribe, Stage::Publish, Stage::Idle].map(of);
        for (text, part) in all.iter().zip(["allow the user", "kl/s/d/dn/#", "kl/s/d/up/#", "keep_alive_s"]) {
            assert!(text.contains(part) && text.contains("gave no reason: likely"), "{text}");
        }
        let one = silent(Stage::Publish, Some(("kl/s/d/up/m/x", 70)), &mqtt(), "kl/s/d");
        assert!(one.ends_with(" (the only message pending: kl/s/d/up/m/x, 70 bytes)"), "{one}");
    }
}
