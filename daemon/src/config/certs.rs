//! Reads the certificates and the key of `[mqtt]`, and says in words what is wrong with them. `kentledge check` does that
//! before a connection needs them, and `config.set` before it tries another broker. The daemon does not do it at its start: a
//! device with an expired certificate still samples, and the link, which reads the files with the same functions, reports
//! why it has no connection.

use std::path::Path;

use rustls::{
    Error, InconsistentKeys, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::ParsedCertificate,
    sign::CertifiedKey,
};

use super::{
    Config, Problem, SettingError, layers,
    problem::{At, Problems},
    raw::{Node, Value},
    secret,
};
use crate::{host::clock::rfc3339_ms, model::keyset::Keyset};

impl Config {
    /// Problems of the files for the connection to the broker. `now_s` is the time, s since 1970; without it the expiry of
    /// certificates is not checked.
    pub fn problems_of_files(&self, now_s: Option<i64>) -> Vec<Problem> {
        let Some(mqtt) = &self.mqtt else { return Vec::new() };
        let root = layers::read(&self.layers, &mut Problems::default());
        let mut problems = Problems::default();
        let mut add = |key: &str, why: String| problems.add(&place(&root, key), format!("mqtt.{key}"), why);
        if let Some(Err(why)) = mqtt.password_file.as_deref().map(secret) {
            add("password_file", why.into());
        }
        if let Some(tls) = &mqtt.tls {
            if let Some(Err(why)) = tls.ca_file.as_deref().map(|path| authorities(path, now_s)) {
                add("ca_file", why);
            }
            if let Some((chain, key)) = &tls.client {
                client(chain, key, now_s).into_iter().for_each(|(key, why)| add(key, why));
            }
        }
        problems.into_sorted()
    }
}

impl Config {
    /// What `kentledge check` says of files that may be right, but are a known mistake or of no use any more. `now_s` is `None`
    /// while the clock is not set.
    pub fn remarks_on_files(&self, now_s: Option<i64>) -> Vec<String> {
        self.remarks_on_certificates().into_iter().chain(self.remark_on_keyset(now_s)).collect()
    }

    fn remark_on_keyset(&self, now_s: Option<i64>) -> Option<String> {
        let path = self.commands.keyset.as_ref()?;
        let expired_ms = Keyset::read(path).ok()?.expires_ms;
        (expired_ms <= now_s?.saturating_mul(1000)).then(|| {
            format!(
                "remark: keyset {} expired at {}: nothing can be installed with it; what runs goes on. Replace the file, unless a newer \
                 keyset was sent to this device",
                path.display(),
                rfc3339_ms(expired_ms)
            )
        })
    }

    fn remarks_on_certificates(&self) -> Vec<String> {
        let Some(mqtt) = &self.mqtt else { return Vec::new() };
        let Some(path) = mqtt.tls.as_ref().and_then(|tls| tls.ca_file.as_deref()) else { return Vec::new() };
        let all = certificates(path).unwrap_or_default();
        let [only] = all.as_slice() else { return Vec::new() };
        let broker = mqtt.brokers.iter().find(|broker| broker.secure && is_authority_named(only, &broker.host));
        let remark = |broker: &super::Broker| {
            format!(
                "remark: {} is a CA's certificate and names {}: if it is the broker's own, the connection fails; a broker needs a \
                 certificate that is no CA's (CA:FALSE), signed by this one",
                path.display(),
                broker.host
            )
        };
        broker.map(remark).into_iter().collect()
    }
}

/// Whether the certificate says that it is a CA's (basicConstraints) and names this host (subjectAltName).
fn is_authority_named(certificate: &[u8], host: &str) -> bool {
    let has = |part: &[u8]| certificate.windows(part.len()).any(|bytes| bytes == part);
    let address = match host.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(ip)) => ip.octets().to_vec(),
        Ok(std::net::IpAddr::V6(ip)) => ip.octets().to_vec(),
        Err(_) => host.as_bytes().to_vec(),
    };
    let tag = if host.parse::<std::net::IpAddr>().is_ok() { 0x87 } else { 0x82 };
    let Ok(len) = u8::try_from(address.len()) else { return false };
    // cA = TRUE.
    has(&[0x30, 0x03, 0x01, 0x01, 0xff]) && has(&[&[tag, len], address.as_slice()].concat())
}

/// The position of a key of `[mqtt]`.
fn place(root: &Node, key: &str) -> At {
    let below = |node: &Node, key: &str| match &node.value {
        Value::Table(map) => map.get(key).cloned(),
        _ => None,
    };
    below(root, "mqtt").and_then(|mqtt| below(&mqtt, key)).map_or_else(|| root.at.clone(), |node| node.at)
}

/// The certificates that may sign the broker's.
///
/// # Errors
/// The file cannot be read, has no certificate, or one that cannot be used; the text names the file.
pub fn roots(path: &Path) -> Result<RootCertStore, SettingError> {
    let mut roots = RootCertStore::empty();
    for (i, certificate) in certificates(path)?.into_iter().enumerate() {
        let added = roots.add(certificate);
        added.map_err(|why| format!("{}: certificate {} cannot sign others: {why}", path.display(), i + 1))?;
    }
    Ok(roots)
}

/// The device's certificate chain and its key.
///
/// # Errors
/// One of the files cannot be read, or holds something else; the text names the file.
pub fn identity(
    chain: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SettingError> {
    Ok((certificates(chain)?, private(key)?))
}

/// Problems of the authorities: none of them is valid now, or the file cannot be used.
fn authorities(path: &Path, now_s: Option<i64>) -> Result<(), String> {
    roots(path)?;
    let all = certificates(path)?;
    let outdated = |certificate: &CertificateDer<'_>| now_s.and_then(|now| not_valid(certificate, now));
    // A bundle may hold some that have expired.
    match all.iter().map(outdated).collect::<Option<Vec<_>>>().as_deref() {
        Some([why]) => Err(format!("{}: {why}", path.display())),
        Some([why, ..]) => Err(format!("{}: none of {} certificates is valid now: {why}", path.display(), all.len())),
        _ => Ok(()),
    }
}

/// Why a certificate is not valid at this time.
fn not_valid(certificate: &[u8], now: i64) -> Option<String> {
    let (from, to) = validity(certificate)?;
    if now < from {
        return Some(format!("it is not valid before {}", date(from)));
    }
    (now > to).then(|| format!("it expired at {}", date(to)))
}

/// Problems of the device's certificate and key, by configuration key.
fn client(chain: &Path, key: &Path, now_s: Option<i64>) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    let private = private(key).map_err(|why| wrong.push(("key_file", why))).ok();
    let all = certificates(chain).map_err(|why| wrong.push(("cert_file", why))).unwrap_or_default();
    let Some(own) = all.first() else { return wrong };
    let mut cert = |why: String| wrong.push(("cert_file", format!("{}: {why}", chain.display())));
    if let Some(version) = version(own).filter(|version| *version != 3) {
        cert(format!("it is an X.509 certificate of version {version}; TLS needs version 3 (with extensions)"));
        return wrong;
    }
    if let Some(why) = now_s.and_then(|now| not_valid(own, now)) {
        cert(why);
    }
    if let Err(why) = ParsedCertificate::try_from(own) {
        cert(format!("it cannot be used: {why}"));
        return wrong;
    }
    let Some(private) = private else { return wrong };
    match ring::default_provider().key_provider.load_private_key(private) {
        Err(why) => wrong.push(("key_file", format!("{}: the key cannot be used: {why}", key.display()))),
        // For some kinds of key it is unknown whether key and certificate match.
        Ok(signing) => {
            let matches = |chain: Vec<_>| {
                CertifiedKey::new(chain, signing.clone()).keys_match()
                    != Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch))
            };
            if !matches(all.clone()) {
                let (key, chain) = (key.display(), chain.display());
                wrong.push((
                    "key_file",
                    match all.iter().skip(1).any(|other| matches(vec![other.clone()])) {
                        true => format!(
                            "{key} is the key of a later certificate in {chain}: the device's own must be the first"
                        ),
                        false => format!("{key} is not the key of the certificate {chain}"),
                    },
                ));
            }
        }
    }
    wrong
}

fn private(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = std::fs::read(path).map_err(|why| format!("{}: {why}", path.display()))?;
    let what = |why: &str| format!("{}: no private key: {why}", path.display());
    let has = |word: &str| bytes.windows(word.len()).any(|part| part == word.as_bytes());
    // PKCS #8 says it in its label, the older form in a header.
    if has("BEGIN ENCRYPTED PRIVATE KEY") || has("Proc-Type: 4,ENCRYPTED") {
        return Err(format!(
            "{}: the key is encrypted; a key with a password cannot be used: write it without one (`openssl pkey -in FILE -out NEW`) \
             and protect it by its owner and mode",
            path.display()
        ));
    }
    if has("BEGIN CERTIFICATE") && !has("PRIVATE KEY") {
        return Err(what("it is a certificate; is it the file for `cert_file`?"));
    }
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|why| what(&not_pem(&bytes).unwrap_or_else(|| why.to_string())))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let what = |why: String| format!("{}: {why}", path.display());
    let bytes = std::fs::read(path).map_err(|why| what(why.to_string()))?;
    let read = CertificateDer::pem_slice_iter(&bytes);
    let all: Vec<_> = read.collect::<Result<_, _>>().map_err(|why| what(why.to_string()))?;
    if all.is_empty() {
        let why = not_pem(&bytes).map_or(String::new(), |why| format!(": {why}"));
        return Err(what(format!("there is no PEM certificate in it{why}")));
    }
    Ok(all)
}

/// What a file is that is not PEM, where that can be seen.
fn not_pem(bytes: &[u8]) -> Option<String> {
    let has = |word: &[u8]| bytes.windows(word.len()).any(|part| part == word);
    match bytes.first()? {
        // PKCS #7 data inside, by its object identifier: what a .p12 or .pfx file begins with.
        0x30 if has(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01]) => {
            Some("it looks like PKCS #12 (.p12, .pfx): take it apart with `openssl pkcs12 -nodes`".into())
        }
        0x30 => Some(
            "it looks like DER: write it as PEM with `openssl x509 -inform der` or `openssl pkey -inform der`".into(),
        ),
        _ if has(b"PRIVATE KEY") => Some("it has a private key".into()),
        _ => None,
    }
}

/// One DER element: its tag, its content, and the bytes after it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (inner, rest) = rest.split_at_checked(len)?;
    Some((tag, inner, rest))
}

/// The signed part of a certificate, from its serial number on, and its version (1 if absent).
fn signed(certificate: &[u8]) -> Option<(u8, &[u8])> {
    let (_, whole, _) = element(certificate)?;
    let (_, signed, _) = element(whole)?;
    match element(signed)? {
        (0xa0, version, rest) => Some((element(version)?.1.first()?.checked_add(1)?, rest)),
        _ => Some((1, signed)),
    }
}

fn version(certificate: &[u8]) -> Option<u8> {
    signed(certificate).map(|(version, _)| version)
}

/// The validity period, s since 1970.
fn validity(certificate: &[u8]) -> Option<(i64, i64)> {
    let (_, mut rest) = signed(certificate)?;
    // After the serial number, the algorithm and the issuer.
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (_, times, _) = element(rest)?;
    let (tag, from, rest) = element(times)?;
    let (to_tag, to, _) = element(rest)?;
    Some((time(tag, from)?, time(to_tag, to)?))
}

/// `YYMMDDhhmmssZ` (tag 23; below 50 in this century) or `YYYYMMDDhhmmssZ`.
fn time(tag: u8, text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let whole = match tag {
        23 if text.len() == 12 => format!("{}{text}", if text < "5" { "20" } else { "19" }),
        _ => text.to_owned(),
    };
    let civil = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", whole).ok()?;
    Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

fn date(s: i64) -> String {
    jiff::Timestamp::from_second(s).map(|at| at.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Made by openssl, valid for ten years from 2026-11-26. Its key is used nowhere else.
    const CERT: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBbTCCAROgAwIBAgIUYuSjrQY0L3dPOVV/SF4xC6AeZJQwCgYIKoZIzj0EAwIw\n\
        DDEKMAgGA1UEAwwBZDAeFw0yNjExMjYxODAzMzVaFw0zNjExMjMxODAzMzVaMAwx\n\
        CjAIBgNVBAMMAWQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQ6N5wr+K06lMlN\n\
        aSgiEYARhd8Lldug9RBt0xXAU1gpISJxZ+LPG1bTGJMgrtkXB2uvdjEkQAVdXHhU\n\
        mEgywiq8o1MwUTAdBgNVHQ4EFgQUDhHWHrWAzP5EcKIVU3q9LECTRJcwHwYDVR0j\n\
        BBgwFoAUDhHWHrWAzP5EcKIVU3q9LECTRJcwDwYDVR0TAQH/BAUwAwEB/zAKBggq\n\
        hkjOPQQDAgNIADBFAiEAkYA/LPkM1IoOKE7SCd2FtC6E05Yo6dbJFHW11ZJBKGMC\n\
        ICHlvNvPZRZNGMQDfbPecLo6bMBxGNOfXv5jobHe1BIi\n\
        -----END CERTIFICATE-----";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
        MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgS+GL26d16hoFevj2\n\
        LJCGHkqRNrObUjNLe7bBk511fpyhRANCAAQ6N5wr+K06lMlNaSgiEYARhd8Lldug\n\
        9RBt0xXAU1gpISJxZ+LPG1bTGJMgrtkXB2uvdjEkQAVdXHhUmEgywiq8\n\
        -----END PRIVATE KEY-----";
    const OTHER_KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
        MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgR25sQO1L5Kq/6aGX\n\
        7g/Y8lgvofsKZp3auSffbDgxeVShRANCAARptcwTs7l61nJAh4rMMZbyC33FPytb\n\
        QHDQoUV0M4eWhJAbwnUulfg0jYeXb2UBrmjBgHXvvK2svQyKdJrXkEBs\n\
        -----END PRIVATE KEY-----";
    /// The same key, signed without extensions, as `openssl x509 -req` does.
    const VERSION_1: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBEjCBuQIUVCsyw2543XO2jlwdDwDa21RhF38wCgYIKoZIzj0EAwIwDDEKMAgG\n\
        A1UEAwwBZDAeFw0yNjExMjYxODAzMzVaFw0zNjExMjMxODAzMzVaMAwxCjAIBgNV\n\
        BAMMAWQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQ6N5wr+K06lMlNaSgiEYAR\n\
        hd8Lldug9RBt0xXAU1gpISJxZ+LPG1bTGJMgrtkXB2uvdjEkQAVdXHhUmEgywiq8\n\
        MAoGCCqGSM49BAMCA0gAMEUCIBNUCEKF6B/EFegQ9pw6mVpefeJJF1R+NJ0/snqN\n\
        HVWeAiEAyO7kods83VVaOtLOHfKnqpSrS6rdUqcXrkU12F63EDE=\n\
        -----END CERTIFICATE-----";
    const NOW_S: i64 = 1_800_000_000;

    /// What `kentledge check` reports for a device with these files.
    fn problems(ca: &str, cert: &str, key: &str, now_s: Option<i64>) -> Vec<String> {
        let dir = tempfile::tempdir().expect("folder");
        for (name, text) in [("ca.pem", ca), ("cert.pem", cert), ("key.pem", key)] {
            fs::write(dir.path().join(name), text).expect("write");
        }
        let (file, show) = (dir.path().join("c.toml"), dir.path().display());
        let text = format!(
            "[device]\nsite = \"s\"\n[mqtt]\nurl = \"mqtts://127.0.0.1\"\nca_file = \"{show}/ca.pem\"\n\
             cert_file = \"{show}/cert.pem\"\nkey_file = \"{show}/key.pem\"\n"
        );
        fs::write(&file, text).expect("write");
        let config = Config::local(Some(&file)).expect("valid");
        let problems = config.problems_of_files(now_s).into_iter();
        problems.map(|p| p.to_string().replace(&format!("{show}/"), "")).collect()
    }

    #[test]
    fn check_of_certificates_that_cannot_be_used_names_file_line_and_reason() {
        assert_eq!(problems(CERT, CERT, KEY, Some(NOW_S)), Vec::<String>::new());
        for (ca, cert, key, now_s, expected) in [
            (
                CERT,
                VERSION_1,
                KEY,
                NOW_S,
                "c.toml:6: mqtt.cert_file: cert.pem: it is an X.509 certificate of version 1;",
            ),
            (
                CERT,
                CERT,
                OTHER_KEY,
                NOW_S,
                "c.toml:7: mqtt.key_file: key.pem is not the key of the certificate cert.pem",
            ),
            (CERT, CERT, CERT, NOW_S, "c.toml:7: mqtt.key_file: key.pem: no private key: "),
            (KEY, CERT, KEY, NOW_S, "c.toml:5: mqtt.ca_file: ca.pem: there is no PEM certificate in it"),
            ("no PEM", CERT, KEY, NOW_S, "c.toml:5: mqtt.ca_file: ca.pem: there is no PEM certificate in it"),
            (CERT, "", KEY, NOW_S, "c.toml:6: mqtt.cert_file: cert.pem: there is no PEM certificate in it"),
        ] {
            let problems = problems(ca, cert, key, Some(now_s));
            assert!(problems.len() == 1 && problems[0].starts_with(expected), "{problems:#?} is not {expected}");
        }
        for (key, part) in [
            (
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMC4=\n-----END ENCRYPTED PRIVATE KEY-----",
                "key.pem: the key is encrypted; a key with a password",
            ),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMC4=\n-----END RSA PRIVATE KEY-----",
                "the key is encrypted",
            ),
            (CERT, "it is a certificate; is it the file for `cert_file`?"),
            ("0\u{1}\u{1}", "it looks like DER"),
        ] {
            let problems = problems(CERT, CERT, key, Some(NOW_S));
            assert!(problems.len() == 1 && problems[0].contains(part), "{problems:#?} is not {part}");
        }
        let swapped = problems(CERT, KEY, KEY, Some(NOW_S));
        assert!(
            swapped[0].contains("cert.pem: there is no PEM certificate in it: it has a private key"),
            "{swapped:?}"
        );
        let expired = problems(CERT, CERT, KEY, Some(2_200_000_000));
        assert!(
            expired[0].contains("mqtt.ca_file: ca.pem: it expired at 2036-11-") && expired.len() == 2,
            "{expired:?}"
        );
        assert!(expired[1].contains("c.toml:6: mqtt.cert_file: cert.pem: it expired at 2036-11-"), "{expired:?}");
        let early = problems(CERT, CERT, KEY, Some(1_700_000_000));
        assert!(early[1].contains("c.toml:6: mqtt.cert_file: cert.pem: it is not valid before 2026-11-"), "{early:?}");
        let torn = CERT.replace("MIIB", "MIIC");
        assert!(problems(&torn, CERT, KEY, Some(NOW_S))[0].contains("ca.pem: certificate 1 cannot sign others"));
        assert!(problems(CERT, &torn, KEY, Some(NOW_S))[0].contains("cert.pem: it cannot be used"));
        // With a clock that is not set, dates are not checked.
        assert_eq!(problems(CERT, CERT, KEY, None), Vec::<String>::new());
    }

    #[test]
    fn a_ca_that_names_the_broker_is_remarked_on_and_refused_by_nothing() {
        let whole = CertificateDer::from_pem_slice(CERT.as_bytes()).expect("a certificate");
        assert!(!is_authority_named(&whole, "localhost"), "a CA without the name");
        let named = [&whole[..], &[0x82, 9], b"localhost", &[0x87, 4, 127, 0, 0, 1]].concat();
        assert!(is_authority_named(&named, "localhost") && is_authority_named(&named, "127.0.0.1"));
        assert!(!is_authority_named(&named, "localhos") && !is_authority_named(b"\x82\x09localhost", "localhost"));
    }

    #[test]
    fn an_expired_keyset_is_remarked_on_when_the_clock_is_set() {
        let dir = tempfile::tempdir().expect("folder");
        let keyset = dir.path().join("keyset.json");
        let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
        let text = format!(
            r#"{{"_type":"kentledge.keyset","version":1,"expires":"2020-01-01T00:00:00Z",
                "keys":[{{"name":"ops","public":"{key}","roles":["model"]}}]}}"#
        );
        fs::write(&keyset, text).expect("write");
        let file = dir.path().join("c.toml");
        fs::write(&file, format!("[commands]\nkeyset = \"{}\"\n", keyset.display())).expect("write");
        let config = Config::local(Some(&file)).expect("valid");
        let remarks = config.remarks_on_files(Some(1_800_000_000));
        assert!(remarks.len() == 1 && remarks[0].contains("expired at 2020-01-01T00:00:00"), "{remarks:?}");
        assert_eq!(config.remarks_on_files(Some(1_500_000_000)), Vec::<String>::new());
        assert_eq!(config.remarks_on_files(None), Vec::<String>::new());
    }

    #[test]
    fn a_missing_keyset_is_reported_once_whatever_needs_it() {
        let dir = tempfile::tempdir().expect("folder");
        fs::write(dir.path().join("m.kmb"), "no bundle").expect("write");
        let file = dir.path().join("c.toml");
        let text = "[commands]\nkeyset = \"no.json\"\n[source.s]\npath = \"/dev/ttyUSB0\"\ncolumns = [\"a\"]\n\
            [channel.a]\nsource = \"s\"\n[pipeline.p]\nmodel = \"m.kmb\"\nchannels = [\"a\"]\n";
        fs::write(&file, text).expect("write");
        let problems = Config::local(Some(&file)).expect_err("no keyset");
        let of_keyset = problems.iter().filter(|problem| problem.to_string().contains("no.json")).count();
        assert_eq!(of_keyset, 1, "{problems:?}");
    }

    #[test]
    fn der_reader_meets_any_bytes_without_a_panic() {
        use rustls::pki_types::pem::PemObject;
        let whole = CertificateDer::from_pem_slice(CERT.as_bytes()).expect("a certificate");
        assert_eq!(version(&whole), Some(3));
        for at in 0..whole.len() {
            let _ = (version(&whole[..at]), validity(&whole[..at]));
            let mut torn = whole.to_vec();
            torn[at] = !torn[at];
            let _ = (version(&torn), validity(&torn));
        }
    }
}
