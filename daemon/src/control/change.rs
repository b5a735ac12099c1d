//! Puts a change of the configuration on trial, then commits it or rolls it back; and `dn/desired`. At the start: what the
//! previous process, or the previous run of this process, left.
//!
//! ```text
//! Compare ─▶ Begin, result "running", Connect │ Leave(Reload) ─▶ … the link uses it ─▶ result "in use" (the proof)
//!    the broker acknowledges the proof ─▶ Save(success), Commit ─▶ result "success"
//!    the deadline passes               ─▶ PutBack, Connect, Save(rolled back), result "rolled_back", Forget
//! ```

use super::{
    CommandState, Control, Outcome,
    action::{About, Action, Call, Going, JobNews, Leave, Left, OnError, Stop, Which},
    args::ConfigSet,
    audit::Act,
    candidate::{Candidate, Change, Changed},
    memory::{Known, LOWERED},
    refusal::{Refusal, Why},
    request,
    trial::{Asker, Trial, wait_most},
};
use crate::{
    flow::{
        event::Kind,
        order::{Addressee, Arrived, Ticket},
    },
    limits,
};

/// A change in use, not confirmed yet.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub trial: Trial,
    /// The change that the link must have applied; 0: the stages restarted for it.
    pub generation: u64,
    pub began_ns: u64,
    pub deadline_ns: u64,
    /// Number of the record whose acknowledgement confirms it.
    pub proof_seq: Option<u64>,
}

impl Control {
    /// At the start: continues with what the previous process, or the previous run of this process, left.
    pub(super) fn began(&mut self, mut left: Left, ran_before: bool) {
        let found = self.take_up_memory(&mut left, ran_before);
        self.tell_memory(&found);
        if let Some(why) = self.keys.trouble.clone() {
            self.event(Kind::StoreDamaged, "keys", &format!("{why}; nothing is installed until it is repaired"));
        }
        self.lower_versions();
        let Left { trial, going, audited, .. } = left;
        self.audited = audited;
        let found = trial.unwrap_or_else(|why| {
            tracing::error!("{why}; it is read again later");
            self.trial_unread_ns = Some(self.now_ns());
            None
        });
        self.take_up_commands(found.as_ref(), &going);
        self.take_up_trial(found);
        self.audited.clear();
    }

    fn take_up_trial(&mut self, found: Option<Trial>) {
        let Some(trial) = found else { return self.report() };
        if let Some(why) = trial.put_back.clone() {
            // The process that rolled it back may have published that, and died before it removed the trial.
            let repeated = self.was_rolled_back(&trial);
            self.tell_put_back(&trial, &why, repeated);
            self.act(Action::Forget);
            return self.report();
        }
        self.go_live(trial);
        self.report();
        if !self.rules.set_aside.is_empty() {
            self.put_back("it does not validate any more");
        }
    }

    /// Finishes commands that the previous process left unfinished. Publishes results again that the broker may not have.
    pub(super) fn take_up_commands(&mut self, found: Option<&Trial>, going: &Going) {
        // The trial of this command decides what its result is, whatever was saved before it was committed.
        let tried = |id: &str| found.is_some_and(|trial| trial.asker == Asker::Command(id.to_owned()));
        for known in self.memory.unacked().into_iter().filter(|known| !tried(&known.id)) {
            let outcome = Outcome::again(&known);
            if !self.audited.contains(&known.id) {
                self.audit_result(&known.id, &outcome);
            }
            self.result_about(&known.kind, &known.id, &outcome, None);
        }
        for (kind, ended) in &going.ended {
            self.job(JobNews::Ended(*kind, ended.clone()));
        }
        // A file that is still unreadable may hold the job of one of these commands.
        let unread = [
            ("config.set", self.trial_unread_ns.is_some()),
            ("os.install", going.system_unread),
            ("model.install", going.models_unread),
            ("model.rollback", going.models_unread),
        ];
        let goes_on = |known: &Known| {
            tried(&known.id) || going.commands.contains(&known.id) || unread.contains(&(known.kind.as_str(), true))
        };
        self.plans_taken_up(&going.commands);
        for known in self.memory.unfinished().into_iter().filter(|known| !goes_on(known)) {
            let began = known.state == CommandState::Running;
            let outcome = match known.kind.as_str() {
                "restart" if began => Outcome::new(CommandState::Success, "restarted"),
                "reboot" if began && known.boot != self.rules.boot => Outcome::new(CommandState::Success, "restarted"),
                "reboot" if began => Outcome::failed("the machine was not restarted"),
                "feedback" => {
                    Outcome::failed("the daemon stopped before it answered; send the label again, it is stored once")
                }
                _ => Outcome::failed("the daemon stopped before it was done"),
            };
            self.finish(Call { kind: known.kind, id: known.id, respond: None, ticket: None }, &outcome);
        }
    }

    /// A change was compared with what is set: puts it on trial.
    pub(super) fn compared(&mut self, change: Change, compared: Result<Box<Candidate>, Refusal>) {
        let put_back = |candidate: &Candidate| {
            matches!(change.asker, Asker::Desired(_)) && self.memory.was_put_back(&candidate.digest)
        };
        let candidate = match compared {
            Ok(candidate) if put_back(&candidate) => {
                let text = "this configuration was put back before; it is not tried again";
                return self.end_change(&change, &Outcome::rejected(Why::Invalid, text), "");
            }
            Ok(candidate) => *candidate,
            Err(refusal) => return self.end_change(&change, &Outcome::refused(refusal), ""),
        };
        let Candidate { previous, text, digest, same, confirm_s, link_only, changed } = candidate;
        if same {
            let outcome = Outcome::new(CommandState::Success, "it is set already");
            return self.end_change(&change, &Outcome { result: Some(changed.result), ..outcome }, &digest);
        }
        let trial = Trial {
            asker: change.asker,
            previous,
            text,
            digest,
            confirm_s,
            process: self.rules.process.clone(),
            put_back: None,
            respond: change.respond,
        };
        let list = changed.list;
        tracing::info!(digest = trial.digest, confirm_s, "a configuration is on trial: {list}");
        self.audit_config("on_trial", &trial);
        self.act(Action::Begin(Box::new(trial.clone())));
        if link_only {
            self.tell_asker(&trial, &Outcome::new(CommandState::Running, "the connection restarts"), None);
            self.generation += 1;
            self.act(Action::Connect(Which::Candidate, self.generation, confirm_s.map(wait_most)));
            self.go_live(trial);
        } else {
            self.tell_asker(&trial, &Outcome::new(CommandState::Running, "the stages restart"), None);
            self.leave(Leave::Reload);
        }
    }

    /// Ends a change that was not begun.
    fn end_change(&mut self, change: &Change, outcome: &Outcome, digest: &str) {
        match &change.asker {
            Asker::Command(id) => {
                let (kind, id, respond) = ("config.set".into(), id.clone(), change.respond.clone());
                self.finish(Call { kind, id, respond, ticket: None }, outcome);
            }
            Asker::Desired(version) if outcome.state == CommandState::Success => {
                self.memory.applied(*version, digest);
                self.end_desired(*version, "applied", &outcome.text);
            }
            Asker::Desired(version) => self.end_desired(*version, "rejected", &outcome.text),
        }
    }

    /// The trial could not be written: everything is as it was.
    pub(super) fn not_begun(&mut self, trial: &Trial, why: &str) {
        self.live = None;
        let change = Change { asker: trial.asker.clone(), set: ConfigSet::default(), respond: trial.respond.clone() };
        self.end_change(&change, &Outcome::failed(why), "");
    }

    fn go_live(&mut self, trial: Trial) {
        let began_ns = self.now_ns();
        let wait_s = trial.confirm_s.unwrap_or(limits::CONFIRM_S);
        let deadline_ns = began_ns + wait_s * 1_000_000_000;
        self.live = Some(Live { trial, generation: self.generation, began_ns, deadline_ns, proof_seq: None });
    }

    /// Commits the trial, rolls it back, or publishes the record that confirms it.
    pub(super) fn look_at_trial(&mut self) {
        let now_ns = self.now_ns();
        let due = |at_ns: u64| now_ns.saturating_sub(at_ns) >= limits::UNREADABLE_TRY.as_nanos() as u64;
        if self.trial_unread_ns.is_some_and(due) {
            self.trial_unread_ns = Some(now_ns);
            return self.act(Action::ReadTrial);
        }
        let Some(live) = &self.live else { return };
        let news = self.link;
        let here = news.taken == live.generation;
        let confirmed = match live.trial.confirm_s {
            // No confirmation is needed: commit once the stages have run for `SETTLE`.
            None => now_ns >= live.began_ns + limits::SETTLE.as_nanos() as u64,
            Some(_) => here && news.subscribed && live.proof_seq.is_some_and(|seq| news.acked >= seq),
        };
        if confirmed {
            return self.keep_change();
        }
        if now_ns >= live.deadline_ns {
            return self.put_back("it was not confirmed in time");
        }
        if here && live.proof_seq.is_none() && live.trial.confirm_s.is_some() {
            let trial = live.trial.clone();
            self.tell_asker(
                &trial,
                &Outcome::new(CommandState::Running, "in use, not confirmed yet"),
                Some(About::Proof),
            );
        }
    }

    /// The trial could be read again, or not.
    pub(super) fn trial_read(&mut self, found: Result<Option<Trial>, String>) {
        if let Ok(found) = found {
            self.trial_unread_ns = None;
            if found.is_some() {
                // The reload rolls the trial back, or continues it.
                self.leave(Leave::Reload);
            }
        }
    }

    fn keep_change(&mut self) {
        let Some(trial) = self.live.as_ref().map(|live| live.trial.clone()) else { return };
        // Save the result first: after a power cut between the two writes, no command would finish a committed change.
        self.remember_change(&trial, CommandState::Success, "");
        self.act(Action::Commit(Box::new(trial)));
    }

    /// The change is committed.
    pub(super) fn committed(&mut self, trial: &Trial, changed: Changed) {
        self.live = None;
        self.audit_config("in_use", trial);
        self.rules.set_aside.clear();
        self.act(Action::Connect(Which::InUse, self.generation, None));
        let (list, digest) = (&changed.list, &trial.digest);
        self.in_use.clone_from(digest);
        self.event(Kind::ConfigChanged, "config", &format!("sha256:{digest} is in use: {list}"));
        let text = if changed.removes { format!("in use: {list}") } else { "in use".into() };
        let outcome = Outcome { result: Some(changed.result), ..Outcome::new(CommandState::Success, text) };
        self.tell_asker(trial, &outcome, None);
        self.report();
    }

    /// Rolls the trial back.
    pub(super) fn put_back(&mut self, why: &str) {
        let Some(Live { trial, generation, .. }) = self.live.take() else { return };
        self.act(Action::PutBack(Box::new(trial.clone()), why.to_owned(), generation));
        self.after_put_back(&trial, why, generation, true);
    }

    /// What follows a rollback. `generation`: the change of the connection, 0: the stages restarted for the change; `done`: the
    /// previous layer is restored.
    pub(super) fn after_put_back(&mut self, trial: &Trial, why: &str, generation: u64, done: bool) {
        if generation == 0 {
            // The stages run with the change: the next run publishes the rollback.
            return self.leave(Leave::Reload);
        }
        // Only the connection differed.
        self.generation += 1;
        self.act(Action::Connect(Which::InUse, self.generation, None));
        self.tell_put_back(trial, why, false);
        if done {
            self.act(Action::Forget);
        }
        self.report();
    }

    fn was_rolled_back(&self, trial: &Trial) -> bool {
        match &trial.asker {
            Asker::Command(id) => self.memory.known(id).is_some_and(|known| known.state == CommandState::RolledBack),
            Asker::Desired(_) => false,
        }
    }

    /// The entry of a configuration.
    fn audit_config(&mut self, state: &'static str, trial: &Trial) {
        let by = match &trial.asker {
            Asker::Command(id) => format!("config.set {id}"),
            Asker::Desired(version) => format!("desired {version}"),
        };
        self.act(Action::Audit(Act::Config { state, sha256: trial.digest.clone(), by }));
    }

    /// The entry of a desired state that begins or ended.
    fn audit_desired(&mut self, version: u64, by: &str) {
        let wish = self.memory.wish();
        let (state, text) = (wish.state.clone(), super::audit::short(&wish.text));
        self.act(Action::Audit(Act::Desired { version, by: by.to_owned(), state, text }));
    }

    fn tell_put_back(&mut self, trial: &Trial, why: &str, repeated: bool) {
        if !repeated {
            self.audit_config("rolled_back", trial);
        }
        self.memory.put_back(&trial.digest);
        self.remember_change(trial, CommandState::RolledBack, why);
        self.event(Kind::ConfigRolledBack, "config", &format!("sha256:{}: {why}", trial.digest));
        self.tell_asker(trial, &Outcome { repeated, ..Outcome::new(CommandState::RolledBack, why) }, None);
    }

    fn remember_change(&mut self, trial: &Trial, state: CommandState, text: &str) {
        match &trial.asker {
            Asker::Command(id) => self.memory.became(id, state, text),
            Asker::Desired(version) if state == CommandState::Success => {
                self.memory.wished(*version, "applied", text);
                self.memory.applied(*version, &trial.digest);
            }
            Asker::Desired(version) => self.memory.wished(*version, "rolled_back", text),
        }
        self.save(OnError::Log("a restart may lose the result of a configuration change".into()));
    }

    fn tell_asker(&mut self, trial: &Trial, outcome: &Outcome, about: Option<About>) {
        match &trial.asker {
            Asker::Command(id) => {
                if !outcome.repeated || !self.audited.contains(id) {
                    self.audit_result(id, outcome);
                }
                self.result_about("config.set", id, outcome, about);
                if outcome.is_final() && !outcome.repeated {
                    let (kind, id, respond) = ("config.set".into(), id.clone(), trial.respond.clone());
                    self.respond(&Call { kind, id, respond, ticket: None }, outcome);
                }
            }
            // A desired state is confirmed by the acknowledgement of a result record too.
            Asker::Desired(version) => {
                if outcome.is_final() {
                    self.audit_desired(*version, "");
                }
                self.result_about("desired", &version.to_string(), outcome, about);
            }
        }
    }

    /// SITE/DEVICE, SITE/_all or SITE/_c-COHORT.
    pub(super) fn addressee(&self, arrived: &Arrived) -> String {
        match &arrived.to {
            Addressee::Device => self.device(),
            Addressee::All => format!("{}/_all", self.rules.site),
            Addressee::Cohort(name) => format!("{}/_c-{name}", self.rules.site),
        }
    }

    /// Rejects a `dn/desired` message. It has no result; `commands.refused` reports a flood.
    fn refuse_desired(&mut self, why: &str) {
        let now_ns = self.now_ns();
        if self.others.refusals.take(now_ns) {
            tracing::warn!("a desired state is refused: {why}");
        } else {
            self.unanswered += 1;
        }
    }

    /// Handles `dn/desired`: retained, so each connection delivers it again.
    pub(super) fn desired(&mut self, to: &str, arrived: Arrived, ticket: Option<Ticket>) {
        let desired = match request::guarded(|| request::desired(to, &arrived.payload)) {
            Ok(desired) => desired,
            Err(Refusal(_, why)) => {
                self.refuse_desired(&why);
                return self.settle(ticket);
            }
        };
        if self.memory.unread().is_some() {
            self.later = Some(arrived);
            return self.settle(ticket);
        }
        // Handle a version again if its change had not started when the process ended, or if it counts again because the key
        // of a later version was dropped.
        let wish = self.memory.wish();
        let again = matches!(wish.state.as_str(), "applying" | LOWERED);
        let unbegun = desired.version == wish.version && again && self.live.is_none();
        let high = self.memory.desired_high(&|name, key| self.key_of(name) == Some(key));
        if desired.version <= high && !unbegun {
            return self.settle(ticket);
        }
        let believed = self.verify(&desired.signed).and_then(|key| {
            self.not_issued_ahead(Some(desired.issued_ms))?;
            self.not_ahead("version", desired.version, high).map(|()| key)
        });
        let key = match believed {
            Ok(key) => key,
            Err(Refusal(_, why)) => {
                self.refuse_desired(&why);
                return self.settle(ticket);
            }
        };
        if self.live.is_some() {
            self.later = Some(arrived);
            return self.settle(ticket);
        }
        self.apply_desired(desired, &key, ticket);
    }

    fn apply_desired(&mut self, desired: request::Desired, key: &str, ticket: Option<Ticket>) {
        let version = desired.version;
        self.memory.looked_at_desired(&desired.signed.issuer, key, version);
        self.memory.wished(version, "applying", "");
        if desired.expires_ms.is_some_and(|at| self.now_ms() >= at) {
            self.end_desired(version, "rejected", "it came too late");
            return self.settle(ticket);
        }
        self.save(OnError::Stop(Stop::Desired(version, ticket)));
        self.audit_desired(version, &desired.signed.issuer);
        self.settle(ticket);
        self.report();
        let toml = if desired.toml.trim().is_empty() { String::new() } else { desired.toml };
        let set = ConfigSet { toml, confirm_s: desired.confirm_s, ..ConfigSet::default() };
        self.act(Action::Compare(Change { asker: Asker::Desired(version), set, respond: None }));
    }

    fn end_desired(&mut self, version: u64, state: &str, text: &str) {
        self.memory.wished(version, state, text);
        self.save(OnError::Log(format!("a restart may lose the result of desired state {version}")));
        self.audit_desired(version, "");
        self.report();
    }
}
