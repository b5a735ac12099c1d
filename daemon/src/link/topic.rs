//! One table of topics.

use crate::flow::order::{Addressee, Asked};

/// Topics of one device.
#[derive(Debug, Clone)]
pub struct Topics {
    site: String,
    device: String,
    up: String,
    cohorts: Vec<String>,
}

/// What is subscribed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Topic filter.
    pub filter: String,
    /// What the broker kept is wanted as well.
    pub kept: bool,
}

impl Topics {
    /// `kl/{site}/{device}/…`, and what is sent to the site and to these cohorts.
    pub fn new(site: &str, device: &str, cohorts: &[String]) -> Self {
        let up = format!("kl/{site}/{device}/up/");
        Self { site: site.into(), device: device.into(), up, cohorts: cohorts.to_vec() }
    }

    /// Retained, last will: online, stopping, offline.
    pub fn state(&self) -> String {
        self.stream("state")
    }

    /// Retained: who this is and what it can.
    pub fn birth(&self) -> String {
        self.stream("birth")
    }

    /// Retained: unit, type and rate of a stream.
    pub fn meta(&self, stream: &str) -> String {
        self.stream(&format!("meta/{stream}"))
    }

    /// Records: `p/pump` → `kl/{site}/{device}/up/p/pump`.
    pub fn stream(&self, stream: &str) -> String {
        format!("{}{stream}", self.up)
    }

    /// A command's result is a message of its own, and so is what is missing of a bundle; the record names the command, or
    /// the bundle, and so does its topic.
    pub fn result(&self, stream: &str, body: &[u8]) -> String {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Named {
            Result {
                #[serde(rename = "type")]
                kind: String,
                id: String,
            },
            Blob {
                sha256: String,
            },
        }
        match serde_json::from_slice::<Named>(&[b"{", body, b"}"].concat()) {
            Ok(Named::Result { kind, id }) => self.stream(&format!("{stream}/{kind}/{id}")),
            Ok(Named::Blob { sha256 }) => self.stream(&format!("{stream}/{sha256}")),
            Err(_) => self.stream(stream),
        }
    }

    /// What is subscribed with each connection.
    pub fn wishes(&self) -> Vec<Wish> {
        let mut below = vec![self.device.clone(), "_all".into()];
        below.extend(self.cohorts.iter().map(|name| format!("_c-{name}")));
        let commands = below.iter().map(|to| Wish { filter: format!("kl/{}/{to}/dn/cmd/+/+", self.site), kept: false });
        let desired = Wish { filter: format!("kl/{}/{}/dn/desired", self.site, self.device), kept: true };
        let channel = Wish { filter: format!("kl/{}/{}/dn/channel", self.site, self.device), kept: true };
        let blob = Wish { filter: format!("kl/{}/{}/dn/blob/+/+", self.site, self.device), kept: false };
        commands.chain([desired, channel, blob]).collect()
    }

    /// Whom a message was sent to, and what it is; `None`: nothing of ours.
    pub fn read(&self, topic: &str) -> Option<(Addressee, Asked)> {
        let (to, what) = topic.strip_prefix("kl/")?.strip_prefix(&self.site)?.strip_prefix('/')?.split_once("/dn/")?;
        let to = match to {
            "_all" => Addressee::All,
            to if to == self.device => Addressee::Device,
            to => Addressee::Cohort(to.strip_prefix("_c-")?.to_owned()),
        };
        if let Some(asked) = own(what) {
            return (to == Addressee::Device).then_some((to, asked));
        }
        let (kind, id) = what.strip_prefix("cmd/")?.split_once('/')?;
        // They become part of a topic of ours.
        (is_word(kind) && is_word(id)).then(|| (to, Asked::Command { kind: kind.into(), id: id.into() }))
    }
}

/// What is sent to one device only.
fn own(what: &str) -> Option<Asked> {
    match what {
        "desired" => Some(Asked::Desired),
        "channel" => Some(Asked::Channel),
        what => {
            let (sha256, offset) = what.strip_prefix("blob/")?.split_once('/')?;
            let hex = sha256.len() == 64 && sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            Some(Asked::Blob { sha256: hex.then(|| sha256.to_owned())?, offset: offset.parse().ok()? })
        }
    }
}

/// `[a-z0-9][a-z0-9._-]*`, 64 at most.
fn is_word(text: &str) -> bool {
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 64
        && bytes.first().is_some_and(|b| first(*b))
        && bytes.iter().all(|b| first(*b) || b"._-".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_topics_of_this_device_its_site_and_cohorts_are_read() {
        let topics = Topics::new("s", "d", &["x".into()]);
        let command = |kind: &str, id: &str| Asked::Command { kind: kind.into(), id: id.into() };
        assert_eq!(
            topics.read("kl/s/d/dn/cmd/config.set/a-1"),
            Some((Addressee::Device, command("config.set", "a-1")))
        );
        assert_eq!(topics.read("kl/s/_all/dn/cmd/ping/a"), Some((Addressee::All, command("ping", "a"))));
        assert_eq!(topics.read("kl/s/_c-x/dn/cmd/ping/a"), Some((Addressee::Cohort("x".into()), command("ping", "a"))));
        assert_eq!(topics.read("kl/s/d/dn/desired"), Some((Addressee::Device, Asked::Desired)));
        let blob = Asked::Blob { sha256: "0a".repeat(32), offset: 48 };
        assert_eq!(topics.read(&format!("kl/s/d/dn/blob/{}/48", "0a".repeat(32))), Some((Addressee::Device, blob)));
        assert_eq!(topics.read(&format!("kl/s/_all/dn/blob/{}/48", "0a".repeat(32))), None);
        assert_eq!(topics.read(&format!("kl/s/d/dn/blob/{}/x", "0a".repeat(32))), None);
        for other in [
            "kl/s/_all/dn/desired",
            "kl/s/e/dn/cmd/ping/a",
            "kl/t/d/dn/cmd/ping/a",
            "kl/s/d/dn/cmd/ping",
            "kl/s/d/up/h",
            "kl/s/d/dn/cmd/ping/a/b",
            "kl/s/d/dn/cmd/Ping/a",
            "kl/s/d/dn/cmd/ping/_a",
            "kl/s/d/dn/cmd//a",
            "kl/sx/d/dn/cmd/ping/a",
        ] {
            assert_eq!(topics.read(other), None, "{other}");
        }
        assert_eq!(topics.wishes().len(), 6);
    }
}
