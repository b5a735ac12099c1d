//! Errors of TLS in words.

use std::{fmt, fs};

use rustls::{
    InvalidMessage, OtherError,
    pki_types::{ServerName, UnixTime},
};

use super::*;

/// An error of the verifier's library, which shows its name only.
#[derive(Debug)]
#[allow(dead_code)]
enum Pki {
    UnsupportedCertVersion,
    CaUsedAsEndEntity,
    Odd,
}

impl fmt::Display for Pki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Pki {}

fn said(why: Error) -> String {
    words(&io::Error::new(io::ErrorKind::InvalidData, why), "broker.example").expect("TLS")
}

#[test]
fn a_broker_certificate_that_is_not_accepted_says_what_to_do() {
    let at = |s| UnixTime::since_unix_epoch(std::time::Duration::from_secs(s));
    let name = || ServerName::try_from("broker.example").expect("name");
    let other = |why| CertificateError::Other(OtherError(Arc::new(why)));
    for (why, parts) in [
        (
            CertificateError::ExpiredContext { time: at(1_800_000_000), not_after: at(1_700_000_000) },
            ["expired at 2023-11-14T22:13:20Z", "it is 2027-01-15T08:00:00Z here"],
        ),
        (
            CertificateError::NotValidYetContext { time: at(1_700_000_000), not_before: at(1_800_000_000) },
            ["not valid before 2027-01-15T08:00:00Z", "set the time"],
        ),
        (
            CertificateError::NotValidForNameContext {
                expected: name(),
                presented: vec!["DnsName(\"a.example\")".into()],
            },
            ["not for `broker.example` but for DnsName(\"a.example\")", "`mqtt.server_name`"],
        ),
        (
            CertificateError::NotValidForNameContext { expected: name(), presented: vec![] },
            ["has no subjectAltName", "(CN) alone does not count"],
        ),
        (CertificateError::UnknownIssuer, ["signed by a CA that is not known here", "`mqtt.ca_file`"]),
        (CertificateError::BadSignature, ["does not match its CA", "another key"]),
        (CertificateError::InvalidPurpose, ["not meant for servers", "serverAuth"]),
        (other(Pki::UnsupportedCertVersion), ["X.509 version 1", "-extfile"]),
        (other(Pki::CaUsedAsEndEntity), ["marked as a CA's and cannot be the broker's own", "CA:FALSE"]),
        (other(Pki::Odd), ["cannot be used", "Odd"]),
    ] {
        let text = said(Error::InvalidCertificate(why));
        assert!(parts.iter().all(|part| text.contains(part)), "{text} lacks one of {parts:?}");
    }
}

#[test]
fn what_the_broker_says_of_this_device_is_told_from_what_this_device_says_of_it() {
    for (alert, part) in [
        (AlertDescription::CertificateRequired, "give `mqtt.cert_file` and `mqtt.key_file`"),
        (AlertDescription::UnknownCA, "does not know the CA that signed this device's certificate"),
        (AlertDescription::CertificateExpired, "this device's certificate (`mqtt.cert_file`) has expired"),
        (AlertDescription::BadCertificate, "does not accept this device's certificate"),
        (AlertDescription::NoApplicationProtocol, "`mqtt.alpn`"),
        (AlertDescription::UnrecognisedName, "`mqtt.server_name`"),
        (AlertDescription::InternalError, "alert InternalError"),
    ] {
        let text = said(Error::AlertReceived(alert));
        assert!(text.contains("the broker") && text.contains(part), "{text}");
    }
    assert!(
        said(Error::InvalidMessage(InvalidMessage::InvalidContentType)).contains("does not speak TLS on this port")
    );
    assert_eq!(words(&io::Error::from(io::ErrorKind::ConnectionReset), "b"), None, "not TLS");
}

#[test]
fn files_that_cannot_be_used_are_named_by_the_connection_as_by_check() {
    let dir = tempfile::tempdir().expect("folder");
    let path = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("write");
        path
    };
    let tls = |ca: &std::path::Path, client: Option<(&std::path::Path, &std::path::Path)>| Tls {
        ca_file: Some(ca.to_owned()),
        client: client.map(|(cert, key)| (cert.to_owned(), key.to_owned())),
        server_name: None,
        alpn: Vec::new(),
    };
    let why = |tls: &Tls| config(tls).err().expect("refused").replace(&format!("{}/", dir.path().display()), "");
    let empty = path("empty.pem", "\n");
    assert_eq!(why(&tls(&empty, None)), "empty.pem: there is no PEM certificate in it");
    let der = path("ca.der", "0\u{1}\u{1}");
    assert!(why(&tls(&der, None)).starts_with("ca.der: there is no PEM certificate in it: it looks like DER"));
    let missing = dir.path().join("missing.pem");
    assert!(why(&tls(&missing, None)).starts_with("missing.pem: No such file"));
}
