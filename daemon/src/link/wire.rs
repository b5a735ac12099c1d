//! How a connection is made: MQTT 5 options, TLS, last will; and how an envelope is written for it.

use std::{path::Path, sync::Arc, time::Duration};

use rumqttc::{
    NetworkOptions, TlsConfiguration, Transport,
    v5::{
        MqttOptions,
        mqttbytes::{
            QoS,
            v5::{ConnectProperties, Filter, LastWill, RetainForwardRule},
        },
    },
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::topic::Wish;
use crate::{
    config::{Mqtt, Tls, secret},
    limits,
};

/// Options of one connection. Files are re-read each time, so that a renewed certificate is used.
pub fn options(config: &Mqtt, will_topic: &str, will: String) -> Result<MqttOptions, String> {
    let host = if config.host.contains(':') { format!("[{}]", config.host) } else { config.host.clone() };
    let mut options = MqttOptions::new(&config.client_id, host, config.port);
    options
        .set_keep_alive(Duration::from_secs(config.keep_alive_s))
        .set_clean_start(false)
        .set_manual_acks(true)
        .set_connection_timeout(limits::CONNECT.as_secs())
        .set_outgoing_inflight_upper_limit(limits::IN_FLIGHT)
        .set_last_will(LastWill::new(will_topic, will, QoS::AtLeastOnce, true, None));
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(limits::SESSION_EXPIRY_S);
    properties.max_packet_size = Some(limits::PACKET_BYTES);
    // Orders are acknowledged when they are settled: this is what paces chunks of a model.
    properties.receive_maximum = Some(limits::RECEIVE_MAXIMUM);
    options.set_connect_properties(properties);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    if let Some(user) = &config.username {
        let password = match &config.password_file {
            Some(path) => secret(path)?,
            None => String::new(),
        };
        options.set_credentials(user, password);
    }
    if let Some(tls) = &config.tls {
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(client_config(tls)?))));
    }
    Ok(options)
}

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

fn client_config(tls: &Tls) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match &tls.ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|why| format!("use {}: {why}", path.display()))?;
            }
        }
        None => {
            let system = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(system.certs);
            if roots.is_empty() {
                return Err("the system has no certificates; give `mqtt.ca_file`".into());
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|why| why.to_string())?
        .with_root_certificates(roots);
    match &tls.client {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => {
            let private =
                PrivateKeyDer::from_pem_file(key).map_err(|why| format!("read key {}: {why}", key.display()))?;
            let config = builder.with_client_auth_cert(certificates(chain)?, private);
            config.map_err(|why| format!("use {} with {}: {why}", chain.display(), key.display()))
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let what = |why: String| format!("read certificates {}: {why}", path.display());
    let read = CertificateDer::pem_file_iter(path).map_err(|why| what(why.to_string()))?;
    let all: Vec<_> = read.collect::<Result<_, _>>().map_err(|why| what(why.to_string()))?;
    if all.is_empty() { Err(what("the file has no certificate".into())) } else { Ok(all) }
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
