//! TLS: what is read before a connection, and why a handshake failed, in words that say what to do.

use std::{io, sync::Arc};

use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore, crypto::ring};

use crate::config::{Tls, identity, roots};

/// The configuration of one connection. Reads files, which may take its time: not for the runtime's thread.
///
/// # Errors
/// A file cannot be read or used; the text names it.
pub fn config(tls: &Tls) -> Result<ClientConfig, String> {
    let roots = match &tls.ca_file {
        Some(path) => roots(path)?,
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("the system has no certificates of authorities; give `mqtt.ca_file`".into());
            }
            roots
        }
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|why| why.to_string())?
        .with_root_certificates(roots);
    let mut config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let (certificates, private) = identity(chain, key)?;
            builder.with_client_auth_cert(certificates, private).map_err(|why| match why {
                Error::InconsistentKeys(_) => {
                    format!("{} is not the key of the certificate {}", key.display(), chain.display())
                }
                why => format!("use {} with {}: {why}", chain.display(), key.display()),
            })?
        }
    };
    config.alpn_protocols = tls.alpn.iter().map(|word| word.clone().into_bytes()).collect();
    Ok(config)
}

/// Why TLS failed, if it is TLS that failed. `name`: what the certificate must be for.
pub fn words(why: &io::Error, name: &str) -> Option<String> {
    let why = why.get_ref()?.downcast_ref::<Error>()?;
    Some(match why {
        Error::InvalidCertificate(why) => certificate(why, name),
        Error::AlertReceived(alert) => alerted(*alert),
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } | Error::PeerSentOversizedRecord => {
            "the broker does not speak TLS on this port: its answer is no TLS; check the port, and `mqtt://` or `mqtts://`".into()
        }
        Error::NoApplicationProtocol => {
            "the broker takes none of the protocols in `mqtt.alpn`: check their spelling, or leave the key out".into()
        }
        Error::PeerIncompatible(why) => format!("the broker's TLS is too old or too different: {why:?}; it needs TLS 1.2 or 1.3"),
        other => format!("TLS with the broker failed: {other}"),
    })
}

/// What is wrong with the broker's certificate.
fn certificate(why: &CertificateError, name: &str) -> String {
    let clock = "or this device's clock is wrong";
    match why {
        CertificateError::Expired => format!("the broker's certificate has expired, {clock}"),
        CertificateError::ExpiredContext { not_after, time } => format!(
            "the broker's certificate expired at {}, {clock}: it is {} here",
            date(not_after.as_secs()),
            date(time.as_secs())
        ),
        CertificateError::NotValidYet => format!("the broker's certificate is not valid yet, {clock}"),
        CertificateError::NotValidYetContext { not_before, time } => format!(
            "the broker's certificate is not valid before {}, {clock}: it is {} here; set the time, or let the device get it (NTP)",
            date(not_before.as_secs()),
            date(time.as_secs())
        ),
        CertificateError::NotValidForName => {
            format!("the broker's certificate is not for `{name}`: it needs that name as subjectAltName, or set `mqtt.server_name`")
        }
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => format!(
            "the broker's certificate has no subjectAltName: it needs {name} as DNS (or IP) name; a name in the subject (CN) alone does \
             not count"
        ),
        CertificateError::NotValidForNameContext { presented, .. } => format!(
            "the broker's certificate is not for `{name}` but for {}: write one of these into `mqtt.url` or `mqtt.server_name`",
            presented.join(", ")
        ),
        CertificateError::UnknownIssuer => "the broker's certificate is signed by a CA that is not known here: `mqtt.ca_file` needs the \
                                            certificate of that CA, and the broker must send those in between"
            .into(),
        CertificateError::BadSignature => "the broker's certificate has a signature that does not match its CA in `mqtt.ca_file`: a CA \
                                           of the same name with another key"
            .into(),
        CertificateError::Revoked => "the broker's certificate is revoked".into(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the broker's certificate is not meant for servers: its extended key usage lacks serverAuth".into()
        }
        CertificateError::Other(other) => match format!("{other:?}") {
            text if text.contains("UnsupportedCertVersion") => format!(
                "the broker's certificate has no subjectAltName (X.509 version 1): it needs version 3 with {name} as subjectAltName; \
                 `openssl x509 -req` writes that with -extfile"
            ),
            text if text.contains("CaUsedAsEndEntity") => {
                "the broker's certificate is marked as a CA's and cannot be the broker's own: give the broker one that is not \
                 (CA:FALSE), signed by that CA"
                    .into()
            }
            text if text.contains("EndEntityUsedAsCa") => {
                "a certificate in the broker's chain signs others and is not marked as a CA's (CA:TRUE)".into()
            }
            _ => format!("the broker's certificate cannot be used: {other}"),
        },
        other => format!("the broker's certificate cannot be used: {other}"),
    }
}

/// What the broker says of this device's certificate, or of the handshake.
fn alerted(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "the broker demands a certificate of this device: give `mqtt.cert_file` and `mqtt.key_file`".into()
        }
        AlertDescription::CertificateExpired => {
            "the broker says that this device's certificate (`mqtt.cert_file`) has expired, or is not valid yet by its clock".into()
        }
        AlertDescription::UnknownCA => {
            "the broker does not know the CA that signed this device's certificate (`mqtt.cert_file`)".into()
        }
        AlertDescription::CertificateRevoked => "the broker says that this device's certificate is revoked".into(),
        AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate | AlertDescription::CertificateUnknown => {
            format!("the broker does not accept this device's certificate (`mqtt.cert_file`): TLS alert {alert:?}; its log says more")
        }
        AlertDescription::AccessDenied => "the broker does not let this device's certificate in: TLS alert AccessDenied".into(),
        AlertDescription::UnrecognisedName => {
            "the broker does not know the name it was asked for: check the host in `mqtt.url`, or set `mqtt.server_name`".into()
        }
        AlertDescription::NoApplicationProtocol => {
            "the broker takes none of the protocols in `mqtt.alpn`, or demands one: AWS IoT Core on port 443 wants `x-amzn-mqtt-ca`".into()
        }
        AlertDescription::ProtocolVersion => "the broker's TLS is too old: it needs TLS 1.2 or 1.3".into(),
        AlertDescription::HandshakeFailure => {
            "the broker ended the handshake: it has no cipher in common, or demands a certificate of this device".into()
        }
        other => format!("the broker ended TLS with the alert {other:?}; its log says more"),
    }
}

fn date(s: u64) -> String {
    let at = i64::try_from(s).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    at.map(|at| at.to_string()).unwrap_or_default()
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
