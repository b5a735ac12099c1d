//! How subscriptions and envelopes are written.

use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{Filter, RetainForwardRule},
};

use super::topic::Wish;

/// The subscriptions. Of retained messages the broker sends only the desired state, never a command.
pub fn filters(wishes: Vec<Wish>) -> Vec<Filter> {
    let filter = |wish: Wish| Filter {
        path: wish.filter,
        qos: QoS::AtLeastOnce,
        nolocal: false,
        preserve_retain: true,
        retain_forward_rule: if wish.kept { RetainForwardRule::OnEverySubscribe } else { RetainForwardRule::Never },
    };
    wishes.into_iter().map(filter).collect()
}

/// JSON text as it is, or as CBOR.
pub fn encode(json: String, cbor: bool) -> Vec<u8> {
    if !cbor {
        return json.into_bytes();
    }
    let mut out = Vec::with_capacity(json.len());
    let written = serde_json::from_str::<serde_json::Value>(&json)
        .map_err(|why| why.to_string())
        .and_then(|value| ciborium::into_writer(&value, &mut out).map_err(|why| why.to_string()));
    match written {
        Ok(()) => out,
        Err(why) => {
            tracing::error!("write as cbor: {why}; sent as json");
            json.into_bytes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cbor_says_the_same_as_json() {
        let json = r#"{"v":1,"ts":null,"data":[{"seq":18446744073709551615,"t":-5,"score":0.25,"out":{}}]}"#;
        let read: serde_json::Value = ciborium::from_reader(encode(json.into(), true).as_slice()).expect("cbor");
        assert_eq!(read, serde_json::from_str::<serde_json::Value>(json).expect("json"));
        assert_eq!(encode(json.into(), false), json.as_bytes());
    }
}
