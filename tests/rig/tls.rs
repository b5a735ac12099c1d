//! Throw-away certificates. Faults: an authority that the other side does not know.

use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

/// A certificate and its key, signed by `ca`, written as PEM files.
pub fn certificate(dir: &Path, name: &str, ca: &CertifiedIssuer<'_, KeyPair>) {
    let key = KeyPair::generate().expect("key");
    let mut params =
        CertificateParams::new(["localhost", "127.0.0.1", crate::machine::HOST].map(str::to_owned)).expect("names");
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, ca).expect("certificate");
    fs::write(dir.join(format!("{name}.pem")), certificate.pem()).expect("write");
    fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).expect("write");
}

/// An authority, its certificate written as a PEM file.
pub fn authority(dir: &Path, name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![]).expect("names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, name);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("ca");
    fs::write(dir.join(format!("{name}.pem")), ca.pem()).expect("write");
    ca
}
