//! One table of topics.

use crate::flow::order::{Addressee, Asked};

/// Topics of one device.
#[derive(Debug, Clone)]
pub struct Topics {
    /// Empty, or it ends with `/`.
    prefix: String,
    site: String,
    device: String,
    up: String,
    cohorts: Vec<String>,
    /// Answers to windows that are escalated are subscribed.
    escalates: bool,
    plans: bool,
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
        Self {
            prefix: String::new(),
            site: site.into(),
            device: device.into(),
            up,
            cohorts: cohorts.to_vec(),
            escalates: false,
            plans: false,
        }
    }

    /// The same, with answers to windows that are escalated.
    pub fn escalating(self, escalates: bool) -> Self {
        Self { escalates, ..self }
    }

    /// Where an escalated window goes.
    pub fn window(&self, pipeline: &str) -> String {
        self.stream(&format!("x/{pipeline}"))
    }

    /// The filter of their answers; `None`: none are wanted.
    pub fn answers(&self) -> Option<String> {
        self.escalates.then(|| format!("{}/dn/x/+/+", self.root()))
    }

    /// The pipeline and the digest of an answer's topic; `None`: it is no answer, or none is wanted.
    pub fn answer<'a>(&self, topic: &'a str) -> Option<(&'a str, &'a str)> {
        if !self.escalates {
            return None;
        }
        let rest = topic.strip_prefix(&self.root())?.strip_prefix("/dn/x/")?;
        rest.split_once('/').filter(|(_, digest)| !digest.contains('/'))
    }

    /// Plans, gates and halts are subscribed too, or not.
    pub fn with_plans(self, plans: bool) -> Self {
        Self { plans, ..self }
    }

    /// The same below a prefix, which is empty or ends with `/`.
    pub fn below(&self, prefix: &str) -> Self {
        let up = format!("{prefix}kl/{}/{}/up/", self.site, self.device);
        Self { prefix: prefix.into(), up, ..self.clone() }
    }

    /// What all topics of this device begin with.
    pub fn root(&self) -> String {
        format!("{}kl/{}/{}", self.prefix, self.site, self.device)
    }

    /// A response topic as control knows it, without the prefix; `None`: it is not below it.
    pub fn response(&self, topic: &str) -> Option<String> {
        topic.strip_prefix(&self.prefix).map(str::to_owned)
    }

    /// The reverse.
    pub fn whole(&self, topic: &str) -> String {
        format!("{}{topic}", self.prefix)
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

    /// What is subscribed with each connection, and how many filters are left out because they need wildcards.
    pub fn wishes(&self, wildcards: bool) -> (Vec<Wish>, usize) {
        let dn = |to: &str, rest: &str| format!("{}kl/{}/{to}/dn/{rest}", self.prefix, self.site);
        let mut below = vec![self.device.clone(), "_all".into()];
        below.extend(self.cohorts.iter().map(|name| format!("_c-{name}")));
        // What is retained comes in this order: a halt before the gates.
        let plans = ["plan/+", "halt/+", "gate/+/+"].into_iter().filter(|_| self.plans);
        let plans: Vec<Wish> = plans
            .flat_map(|rest| below.iter().map(move |to| (to, rest)))
            .map(|(to, rest)| Wish { filter: dn(to, rest), kept: true })
            .collect();
        let commands = below.iter().map(|to| Wish { filter: dn(to, "cmd/+/+"), kept: false });
        let own = ["desired", "channel"].map(|word| Wish { filter: dn(&self.device, word), kept: true });
        let blob = Wish { filter: dn(&self.device, "blob/+/+"), kept: false };
        let answers = self.answers().map(|filter| Wish { filter, kept: false });
        let all: Vec<Wish> = commands.chain(own).chain([blob]).chain(plans).chain(answers).collect();
        let n = all.len();
        let wishes: Vec<Wish> = all.into_iter().filter(|wish| wildcards || !wish.filter.contains('+')).collect();
        let left_out = n - wishes.len();
        (wishes, left_out)
    }

    /// Whom a message was sent to, and what it is; `None`: nothing of ours.
    pub fn read(&self, topic: &str) -> Option<(Addressee, Asked)> {
        let below = topic.strip_prefix(&self.prefix)?;
        let (to, what) = below.strip_prefix("kl/")?.strip_prefix(&self.site)?.strip_prefix('/')?.split_once("/dn/")?;
        let to = match to {
            "_all" => Addressee::All,
            to if to == self.device => Addressee::Device,
            to => Addressee::Cohort(to.strip_prefix("_c-")?.to_owned()),
        };
        if let Some(asked) = own(what) {
            return (to == Addressee::Device).then_some((to, asked));
        }
        if let Some(asked) = plan(what) {
            return self.plans.then_some((to, asked));
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

/// What is sent about plans.
fn plan(what: &str) -> Option<Asked> {
    let (kind, rest) = what.split_once('/')?;
    match kind {
        "plan" if is_word(rest) => Some(Asked::Plan { name: rest.into() }),
        "halt" if is_word(rest) => Some(Asked::Halt { plan: rest.into() }),
        "gate" => {
            let (plan, wave) = rest.split_once('/')?;
            Some(Asked::Gate { plan: is_word(plan).then(|| plan.to_owned())?, wave: wave.parse().ok()? })
        }
        _ => None,
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
        assert_eq!((topics.wishes(true).0.len(), topics.wishes(true).1), (6, 0));
    }

    #[test]
    fn answers_to_windows_are_read_only_where_windows_are_escalated() {
        let off = Topics::new("s", "d", &[]);
        let on = off.clone().escalating(true).below("t/");
        assert_eq!((off.answers(), off.answer("kl/s/d/dn/x/pump/00ff")), (None, None));
        assert!(off.wishes(true).0.iter().all(|wish| !wish.filter.contains("/x/")));
        assert_eq!(on.window("pump"), "t/kl/s/d/up/x/pump");
        assert_eq!(on.wishes(true).0.last().map(|wish| wish.filter.as_str()), Some("t/kl/s/d/dn/x/+/+"));
        assert_eq!(on.answer("t/kl/s/d/dn/x/pump/00ff"), Some(("pump", "00ff")));
        for other in ["kl/s/d/dn/x/pump/00ff", "t/kl/s/d/dn/x/pump", "t/kl/s/d/dn/x/pump/a/b", "t/kl/s/dd/dn/x/pump/a"]
        {
            assert_eq!(on.answer(other), None, "{other}");
        }
    }

    #[test]
    fn a_prefix_is_before_every_topic_that_is_sent_subscribed_and_read() {
        let topics = Topics::new("s", "d", &["x".into()]).below("tenant/7/");
        assert_eq!(topics.state(), "tenant/7/kl/s/d/up/state");
        assert_eq!(topics.root(), "tenant/7/kl/s/d");
        assert!(topics.wishes(true).0.iter().all(|wish| wish.filter.starts_with("tenant/7/kl/s/")));
        assert_eq!(topics.read("tenant/7/kl/s/d/dn/desired"), Some((Addressee::Device, Asked::Desired)));
        assert_eq!(topics.read("kl/s/d/dn/desired"), None);
        assert_eq!(topics.response("tenant/7/kl/s/d/up/_r/a").as_deref(), Some("kl/s/d/up/_r/a"));
        assert_eq!(topics.response("kl/s/d/up/_r/a"), None, "it would be answered elsewhere");
        assert_eq!(topics.whole("kl/s/d/up/_r/a"), "tenant/7/kl/s/d/up/_r/a");
    }

    #[test]
    fn without_wildcards_only_whole_topics_are_subscribed_and_the_rest_is_counted() {
        let (wishes, left_out) = Topics::new("s", "d", &["x".into()]).wishes(false);
        let filters: Vec<_> = wishes.iter().map(|wish| wish.filter.as_str()).collect();
        assert_eq!((filters, left_out), (vec!["kl/s/d/dn/desired", "kl/s/d/dn/channel"], 4));
    }
}
