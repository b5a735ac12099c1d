//! Someone who commands devices from afar with plain tools: minisign signs, mosquitto_pub sends. Faults: another's key, a
//! captured command sent again, a command that was kept by the broker.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Sub, eventually, sub};

/// A person with a key.
pub struct Operator {
    dir: TempDir,
    pub port: u16,
    name: String,
    iseq: AtomicU64,
}

/// Seconds since 1970, some time from now.
pub fn time(from_now_s: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs() as i64;
    let mut date = Command::new("date");
    let out = date.args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("@{}", now + from_now_s)]).output().expect("date");
    String::from_utf8(out.stdout).expect("text").trim().to_owned()
}

impl Operator {
    /// With a fresh key, at this broker.
    pub fn new(port: u16, name: &str) -> Self {
        let operator =
            Self { dir: TempDir::new().expect("folder"), port, name: name.into(), iseq: AtomicU64::new(1000) };
        let mut minisign = Command::new("minisign");
        minisign.args(["-G", "-f", "-W"]).arg("-p").arg(operator.path("pub")).arg("-s").arg(operator.path("sec"));
        let made = minisign.stdout(Stdio::null()).stdin(Stdio::null()).status();
        assert!(made.expect("minisign is installed (tests/run installs it)").success());
        operator
    }

    /// With a key that is there already.
    pub fn with_key(port: u16, name: &str, secret: &Path) -> Self {
        let operator =
            Self { dir: TempDir::new().expect("folder"), port, name: name.into(), iseq: AtomicU64::new(1000) };
        fs::copy(secret, operator.path("sec")).expect("a secret key");
        operator
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The secret key's file.
    pub fn secret(&self) -> PathBuf {
        self.path("sec")
    }

    /// This key as a keyset names it.
    pub fn key(&self, roles: &[&str]) -> Value {
        let public = fs::read_to_string(self.path("pub")).expect("public key");
        json!({"name": self.name, "public": public.lines().nth(1).expect("a key"), "roles": roles})
    }

    /// A keyset in which this key may command.
    pub fn keyset(&self) -> PathBuf {
        let public = fs::read_to_string(self.path("pub")).expect("public key");
        let public = public.lines().nth(1).expect("a key").to_owned();
        let keys = json!([{"name": self.name, "public": public, "roles": ["command"]}]);
        let keyset =
            json!({"_type": "kentledge.keyset", "version": 1, "expires": "2036-01-01T00:00:00Z", "keys": keys});
        let path = self.path("keyset.json");
        fs::write(&path, keyset.to_string()).expect("write");
        path
    }

    /// The lines of `[commands]` for a device that believes this key.
    pub fn table(&self) -> String {
        format!("[commands]\nkeyset = \"{}\"\njitter_s = 0\n", self.keyset().display())
    }

    /// The next sequence.
    pub fn next(&self) -> u64 {
        self.iseq.fetch_add(1, Ordering::Relaxed)
    }

    /// Signs a text: the payload to send.
    pub fn sign(&self, inner: &str) -> String {
        let (file, sig) = (self.path("inner"), self.path("inner.minisig"));
        fs::write(&file, inner).expect("write");
        let mut minisign = Command::new("minisign");
        minisign.args(["-S", "-q", "-m"]).arg(&file).arg("-x").arg(&sig).arg("-s").arg(self.path("sec"));
        let signed = minisign.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("minisign");
        assert!(signed.success());
        let base64 = Command::new("base64").arg("-w0").arg(&sig).output().expect("base64").stdout;
        json!({"signed": inner, "sig": String::from_utf8(base64).expect("text")}).to_string()
    }

    /// The inner JSON of a command.
    pub fn inner(&self, to: &str, kind: &str, id: &str, nonce: &str, args: &Value) -> Value {
        json!({"v": 1, "id": id, "type": kind, "to": to, "issuer": self.name, "iseq": self.next(), "issued": time(0),
               "expires_at": time(60), "nonce": nonce, "args": args})
    }

    /// A signed command for `pump-1` as a payload.
    pub fn command(&self, kind: &str, id: &str, nonce: &str, args: &Value) -> String {
        self.sign(&self.inner("plant/pump-1", kind, id, nonce, args).to_string())
    }

    /// Sends a payload to the topic below `kl/plant/`.
    pub fn send(&self, topic: &str, payload: &str) {
        self.publish(&["-q", "1", "-V", "5"], topic, payload);
    }

    /// Sends it, and the broker keeps it.
    pub fn send_retained(&self, topic: &str, payload: &str) {
        self.publish(&["-q", "1", "-V", "5", "-r"], topic, payload);
    }

    /// Sends with these options of mosquitto_pub.
    pub fn publish(&self, options: &[&str], topic: &str, payload: &str) {
        let file = self.path("payload");
        fs::write(&file, payload).expect("write");
        let mut command = Command::new("mosquitto_pub");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]).args(options);
        let done = command.arg("-t").arg(format!("kl/plant/{topic}")).arg("-f").arg(&file).status();
        assert!(done.expect("mosquitto_pub is installed (tests/run installs it)").success());
    }

    /// Sends so many plain pings to a device as fast as it goes, over one connection.
    pub fn flood(&self, device: &str, n: usize) {
        let mut options = rumqttc::v5::MqttOptions::new("flood", "127.0.0.1", self.port);
        options.set_outgoing_inflight_upper_limit(1000);
        let (client, mut connection) = rumqttc::v5::Client::new(options, 100);
        let topics: Vec<String> = (0..n).map(|i| format!("kl/plant/{device}/dn/cmd/ping/f{i}")).collect();
        let sender = std::thread::spawn(move || {
            for (i, topic) in topics.into_iter().enumerate() {
                let payload = format!("{{\"id\":\"f{i}\"}}");
                client.publish(topic, rumqttc::v5::mqttbytes::QoS::AtLeastOnce, false, payload).expect("publish");
            }
            client
        });
        let acked = |event: &Result<_, _>| {
            matches!(event, Ok(rumqttc::v5::Event::Incoming(rumqttc::v5::mqttbytes::v5::Packet::PubAck(_))))
        };
        assert_eq!(connection.iter().filter(acked).take(n).count(), n);
        drop(sender.join().expect("sender"));
    }

    /// Sends a part of a bundle to `pump-1`, so many bytes at a time, over one connection.
    pub fn chunks(&self, sha256: &str, bytes: &[u8], range: std::ops::Range<usize>, chunk: usize) {
        let mut options = rumqttc::v5::MqttOptions::new(format!("maker-{}", fastrand::u32(..)), "127.0.0.1", self.port);
        options.set_outgoing_inflight_upper_limit(20);
        let (client, mut connection) = rumqttc::v5::Client::new(options, 100);
        let parts: Vec<(usize, Vec<u8>)> =
            range.clone().step_by(chunk).map(|at| (at, bytes[at..(at + chunk).min(range.end)].to_vec())).collect();
        let (n, sha256) = (parts.len(), sha256.to_owned());
        let sender = std::thread::spawn(move || {
            for (at, part) in parts {
                let topic = format!("kl/plant/pump-1/dn/blob/{sha256}/{at}");
                client.publish(topic, rumqttc::v5::mqttbytes::QoS::AtLeastOnce, false, part).expect("publish");
            }
            client
        });
        let acked = |event: &Result<_, _>| {
            matches!(event, Ok(rumqttc::v5::Event::Incoming(rumqttc::v5::mqttbytes::v5::Packet::PubAck(_))))
        };
        assert_eq!(connection.iter().filter(acked).take(n).count(), n);
        drop(sender.join().expect("sender"));
    }

    /// Sends a plain command to `pump-1`.
    pub fn plain(&self, kind: &str, id: &str, args: &Value) {
        self.send(&format!("pump-1/dn/cmd/{kind}/{id}"), &json!({"id": id, "args": args}).to_string());
    }

    /// Sends a signed command to `pump-1`, with the nonce that `sub` saw last.
    pub fn order(&self, sub: &Sub, kind: &str, id: &str, args: &Value) {
        let payload = self.command(kind, id, &nonce(sub), args);
        self.send(&format!("pump-1/dn/cmd/{kind}/{id}"), &payload);
    }
}

/// One connection on which messages go out without waiting for each.
pub struct Sender(rumqttc::v5::Client);

impl Sender {
    pub fn new(port: u16) -> Self {
        let name = format!("sender-{}", fastrand::u32(..));
        let mut options = rumqttc::v5::MqttOptions::new(name, "127.0.0.1", port);
        options.set_outgoing_inflight_upper_limit(1000);
        let (client, mut connection) = rumqttc::v5::Client::new(options, 1000);
        std::thread::spawn(move || {
            for event in connection.iter() {
                if event.is_err() {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            }
        });
        Self(client)
    }

    /// Sends to a topic below `kl/plant/`, QoS 1.
    pub fn send(&self, topic: &str, payload: String) {
        let qos = rumqttc::v5::mqttbytes::QoS::AtLeastOnce;
        self.0.publish(format!("kl/plant/{topic}"), qos, false, payload).expect("publish");
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.0.try_disconnect();
    }
}

/// Connections so far: each has a nonce of its own. A birth is published again when another model serves.
pub fn connections(sub: &Sub) -> usize {
    let messages = sub.messages();
    let births = messages.iter().filter(|m| m.stream == "birth");
    births.filter_map(|m| m.payload["nonce"].as_str()).collect::<std::collections::BTreeSet<_>>().len()
}

/// The nonce of the last birth.
pub fn nonce(sub: &Sub) -> String {
    eventually("a birth", || {
        let messages = sub.messages();
        let birth = messages.iter().rev().find(|m| m.stream == "birth")?;
        birth.payload["nonce"].as_str().map(str::to_owned)
    })
}

/// States of a command so far, in order, each once.
pub fn states(sub: &Sub, kind: &str, id: &str) -> Vec<String> {
    let mut states = Vec::new();
    for (record, _) in sub::records(&sub.messages(), &format!("res/{kind}/{id}")) {
        states.push(record["state"].as_str().expect("state").to_owned());
    }
    states
}

/// Waits for a command's end; returns its last record.
#[track_caller]
pub fn end(sub: &Sub, kind: &str, id: &str) -> Value {
    sub.wait(&format!("the end of {kind} {id}"), |messages| {
        let found = sub::records(messages, &format!("res/{kind}/{id}")).into_iter().map(|(record, _)| record);
        found.into_iter().find(|r| !["accepted", "running"].contains(&r["state"].as_str().unwrap_or("")))
    })
}
