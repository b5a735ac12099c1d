//! Escalation: windows of which a pipeline's model is unsure go to a larger model elsewhere, and its answers come back. Off unless
//! configured. Nothing here waits: the local prediction and alarm are made before, and stand until an answer comes.
//!
//! ```text
//! rules: unsure? ─▶ decide: in time, connected, rows not sent before, budget ─▶ packet ─▶ saved? ─▶ exchange ─▶ link ─▶ up/x
//! dn/x ─▶ link ─▶ exchange ─▶ answer: sound? awaited? ─▶ record on up/p/NAME/cloud ─▶ alarms, where configured
//! ```
//!
//! Owns the budget and the requests of one pipeline. The budget is saved before a window is handed to the link, so neither a kill nor a
//! power cut makes room for more. Requests are not saved: an answer to an earlier process is foreign.

mod answer;
mod budget;
mod decide;
mod packet;
mod rules;

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed},
};

pub use self::answer::Verdict;
use self::{
    answer::{Answer, Request, Requests},
    budget::Budget,
    decide::{Decider, Look},
    packet::{Facts, Origin},
};
use crate::{
    config::{Config, Escalate},
    flow::{
        Class, Draft, Retain, Scored, Stamp, StreamId, Window,
        board::Board,
        escalation::{Came, EscalationMeter, NotSent, Outgoing},
        meter::Meters,
        record::json_str,
    },
    host::{Later, nonce},
    limits,
};

/// The escalation of one pipeline.
pub struct Escalation {
    rules: Escalate,
    origin: Origin,
    name: Arc<str>,
    index: usize,
    /// Bytes of a packet around its payload, with the longest topic that it can have.
    around: usize,
    stream: StreamId,
    keep: Later,
    decider: Decider,
    requests: Requests,
    /// Windows that wait for the budget to be written, with the ids of their requests.
    held: VecDeque<(String, Outgoing)>,
    meters: Arc<Meters>,
    board: Arc<Board>,
    /// The newest window was unsure.
    unsure: bool,
}

/// What an escalation is made with.
#[derive(Clone)]
pub struct Parts<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Id of this boot.
    pub boot: &'a str,
    /// `up/p/NAME/cloud`
    pub stream: StreamId,
    /// Where the budget is saved.
    pub keep: Later,
    /// What is counted.
    pub meters: Arc<Meters>,
    /// The queues to and from the link.
    pub board: Arc<Board>,
}

/// What an answer says for the alarms of the pipeline.
pub struct Second {
    /// What it says.
    pub verdict: Verdict,
    /// The class, where it names one.
    pub class: Option<String>,
    /// Of the model that answered, JSON.
    pub lineage: Arc<str>,
    /// Of the window, 64 hexadecimal digits.
    pub digest: String,
}

impl Escalation {
    /// For the pipeline at this place, if it is configured there.
    pub fn new(parts: Parts<'_>, index: usize) -> Option<Self> {
        let Parts { config, boot, stream, keep, meters, board } = parts;
        let pipeline = &config.pipelines[index];
        let rules = pipeline.escalate.clone()?;
        let saved = match keep.load_patiently(&pipeline.name) {
            Ok(saved) => saved,
            Err(why) => {
                let pipeline = &pipeline.name;
                tracing::error!(pipeline, "read the budget of escalation: {why}; it counts as spent just now");
                // No budget: as one that is damaged.
                Some(Vec::new())
            }
        };
        let budget = Budget::new(decide::most(&rules), boot, saved.as_deref());
        let device = format!("{}/{}", config.device.site, config.device.id);
        let topic = limits::TOPIC_PREFIX_BYTES + "kl//up/x/".len() + device.len() + pipeline.name.len();
        let channel = |c: &usize| (config.channels[*c].name.clone(), config.channels[*c].unit.clone());
        let channels = pipeline.channels.iter().map(channel).collect();
        Some(Self {
            decider: Decider::new(rules.deadline_ms, (pipeline.steps, pipeline.hop), budget),
            origin: Origin { device, boot: boot.to_owned(), pipeline: pipeline.name.clone(), channels },
            name: pipeline.name.as_str().into(),
            index,
            around: limits::ESCALATE_PACKET_BYTES + topic,
            stream,
            keep,
            requests: Requests::default(),
            held: VecDeque::new(),
            meters,
            board,
            unsure: false,
            rules,
        })
    }

    /// It has something to look at soon.
    pub fn awaits(&self) -> bool {
        self.requests.len() > 0
    }

    fn meter(&self) -> &EscalationMeter {
        &self.meters.pipelines[self.index].escalation
    }

    /// Takes what the model said of the newest window; whether it is unsure of it.
    pub fn said(&mut self, said: &Scored) -> bool {
        self.unsure = rules::unsure(&self.rules, said).is_some();
        self.unsure
    }

    /// Sends the window, if it is to be sent. `drifted`: it completes a look at the inputs that found drift. Returns its digest, if it
    /// is on its way.
    pub fn window(
        &mut self,
        now: &Stamp,
        window: &Window,
        said: &Scored,
        lineage: &str,
        drifted: bool,
    ) -> Option<String> {
        let why = rules::why(&self.rules, said, drifted)?;
        self.ask(now, window, said, lineage, why).inspect_err(|why| self.meter().skipped(*why)).ok()
    }

    fn ask(
        &mut self,
        now: &Stamp,
        window: &Window,
        said: &Scored,
        lineage: &str,
        why: rules::Why,
    ) -> Result<String, NotSent> {
        let room = self.requests.has_room() && self.held.len() < limits::ESCALATIONS_HELD;
        let bytes = (self.around + window.values.len() * 4) as u64;
        let look = Look { now, tag: &window.tag, bytes, open: self.board.exchange.is_open(), room };
        self.decider.check(look)?;
        let digest = packet::digest(&window.values);
        if self.requests.awaits(&digest) {
            return Err(NotSent::Repeated);
        }
        let mut id = nonce();
        id.truncate(16);
        let deadline_ns = self.decider.deadline_ns(&window.tag);
        let facts = Facts { id: &id, digest: &digest, why, tag: &window.tag, said, lineage, now, deadline_ns };
        let payload = packet::payload(&self.origin, facts, &window.values).ok_or(NotSent::TooLarge)?;
        let budget = self.decider.charge(Look { bytes: (self.around + payload.len()) as u64, ..look })?;
        self.keep.save(&self.origin.pipeline, budget);
        let (pipeline, size) = (&self.origin.pipeline, payload.len());
        tracing::info!(pipeline, "pipeline {pipeline}: escalate window {digest} ({}), {size} bytes", why.word());
        let local = local(said, lineage);
        let (tag, asked_ns) = (window.tag, now.boot_ns);
        let request = Request { id: id.clone(), digest: digest.clone(), why, tag, asked_ns, deadline_ns, local };
        self.requests.add(request);
        let outgoing = Outgoing { pipeline: self.index, name: self.name.clone(), payload, deadline_ns };
        self.held.push_back((id, outgoing));
        self.hand_over(now);
        Ok(digest)
    }

    /// Hands over what waits, once the budget is written.
    fn hand_over(&mut self, now: &Stamp) {
        if self.held.is_empty() {
            return;
        }
        let written = self.keep.is_written(&self.origin.pipeline);
        for (id, outgoing) in std::mem::take(&mut self.held) {
            let sent = match (written, outgoing.deadline_ns > now.boot_ns) {
                (_, false) => Err(NotSent::Late),
                (true, _) => self.board.exchange.send(outgoing),
                (false, _) => {
                    self.held.push_back((id, outgoing));
                    continue;
                }
            };
            if let Err(why) = sent {
                self.requests.cancel(&id);
                self.meter().skipped(why);
            }
        }
    }

    /// Time went on: hands over windows, and takes answers. Their records go to `drafts`; those that may act on alarms are returned.
    pub fn look(&mut self, now: &Stamp, drafts: &mut Vec<Draft>) -> Vec<Second> {
        self.hand_over(now);
        for _ in 0..self.requests.expire(now.boot_ns) {
            self.meter().came(Came::None);
        }
        let mut seconds = Vec::new();
        for came in self.board.exchange.take_answers(self.index) {
            let answer = Answer::parse(&came.payload).filter(|_| !came.retained).ok_or(Came::Malformed);
            let found = answer.and_then(|answer| Ok((self.requests.answered(&came.digest, &answer)?, answer)));
            match found {
                Ok((request, answer)) => seconds.extend(self.answered(now, &request, answer, drafts)),
                Err(what) => {
                    let pipeline = &self.origin.pipeline;
                    tracing::debug!(pipeline, "pipeline {pipeline}: ignore an answer, it is {}", what.word());
                    self.meter().came(what);
                }
            }
        }
        let (hour, day_bytes) = self.decider.used(now);
        self.meter().pending.store(self.requests.len() as u64, Relaxed);
        self.meter().hour.store(hour.into(), Relaxed);
        self.meter().day_bytes.store(day_bytes, Relaxed);
        seconds
    }

    /// An answer in time: its record, and what it may do.
    fn answered(&self, now: &Stamp, request: &Request, answer: Answer, drafts: &mut Vec<Draft>) -> Option<Second> {
        self.meter().came(Came::InTime);
        let (lineage, digest) = (answer.lineage(), request.digest.clone());
        drafts.push(Draft {
            stream: self.stream,
            class: Class::Score,
            stamp: *now,
            lineage: Some(lineage.clone()),
            body: answer.members(request, now.boot_ns).into(),
            retain: Retain::No,
        });
        // The local model is sure again: what it says is newer than the answer.
        let acts = self.rules.alarms && self.unsure && request.why != rules::Why::Drift;
        acts.then_some(Second { verdict: answer.verdict, class: answer.class, lineage, digest })
    }

    /// An answer raised or cleared so many alarms.
    pub fn acted(&self, alarms: u64) {
        self.meter().alarms.add(alarms);
    }
}

/// What the device itself said, as a JSON object.
fn local(said: &Scored, lineage: &str) -> String {
    let number = |value: Option<f32>| value.filter(|x| x.is_finite()).map_or("null".to_owned(), |x| x.to_string());
    let mut out = format!("{{\"score\":{},\"threshold\":{}", number(said.score), number(said.threshold));
    if let Some(class) = said.classes.as_ref().and_then(|classes| classes.likeliest()) {
        out.push_str(",\"class\":");
        json_str(&mut out, class);
    }
    if let Some((score, threshold)) = said.score.zip(said.threshold) {
        let word = if said.direction.is_beyond(score, threshold) { "anomaly" } else { "normal" };
        out.push_str(&format!(",\"verdict\":\"{word}\""));
    }
    out.push_str(&format!(",\"lineage\":{lineage}}}"));
    out
}
