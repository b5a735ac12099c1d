//! Executes commands. Puts a change of the configuration on trial, then commits it or rolls it back.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    Asker, Control, Job, Leave, Live, Outcome, Respond, State, Trial,
    memory::{Known, LOWERED},
    request::{self, Command, Refusal, Why},
    trial::wait_most,
};
use crate::{
    config::{self, Changes, Config},
    flow::{alarm::NotAcknowledged, event::Kind, order::Arrived},
    host::Clock,
    limits,
    model::file::hex,
};

/// Digest of a configuration's text.
pub fn digest(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// A requested change of the remote configuration layer.
struct Change {
    asker: Asker,
    toml: String,
    confirm_s: Option<u64>,
    merge: bool,
    if_digest: Option<String>,
    respond: Option<Respond>,
}

impl Control {
    /// Executes one command. A command that takes longer, or that ends the process, publishes its result elsewhere.
    pub(super) fn act(&mut self, job: Job) {
        let Job { request, respond, .. } = job;
        let (kind, id) = (request.kind.as_str(), request.id.as_str());
        if request::needs_signature(kind) {
            self.memory.became(id, State::Running, "");
            if let Err(why) = self.memory.save() {
                return self.finish(kind, id, respond.as_ref(), &Outcome::new(State::Failed, why));
            }
        }
        let outcome = match request.command {
            Command::Ping => Outcome::done(json!({
                "version": env!("CARGO_PKG_VERSION"), "boot": self.setup.boot, "device": self.device,
            })),
            Command::Status => self.large((self.setup.machine.status)()),
            Command::Report => {
                self.report();
                Outcome::new(State::Success, "up/reported is published again")
            }
            Command::ConfigGet { merged: true } => self.large(json!({"config": self.setup.config.written()})),
            Command::ConfigGet { merged: false } => {
                let text = self.setup.trials.current().ok().flatten();
                let digest = text.as_ref().map(|text| format!("sha256:{}", digest(text)));
                let set_aside = &self.setup.config.set_aside;
                self.large(json!({"toml": text, "digest": digest, "set_aside": set_aside}))
            }
            Command::ConfigSet { toml, confirm_s, merge, if_digest } => {
                let asker = Asker::Command(id.to_owned());
                let change = Change { asker, toml, confirm_s, merge, if_digest, respond: respond.clone() };
                match self.change(change) {
                    Ok(None) => return,
                    Ok(Some(outcome)) => outcome,
                    Err(Refusal(why, text)) => Outcome::rejected(why, text),
                }
            }
            Command::Calibrate { pipeline } => self.calibrate(&pipeline),
            Command::Acknowledge { alarm, id } => self.acknowledge(&alarm, id.as_deref()),
            Command::LogPull(query) => match (self.setup.machine.log)(&query) {
                Ok(result) => self.large(result),
                Err(why) => Outcome::new(State::Failed, why),
            },
            Command::Restart => {
                // Answer on the response topic now: the next process does not know that topic.
                self.result(kind, id, respond.as_ref(), &Outcome::new(State::Running, "draining"));
                return self.leave(Leave::Restart);
            }
            Command::Reboot => {
                let running = Outcome::new(State::Running, "the system restarts");
                match (self.setup.machine.reboot)() {
                    Ok(()) => {
                        self.result(kind, id, respond.as_ref(), &running);
                        return;
                    }
                    Err(why) => Outcome::new(State::Failed, why),
                }
            }
            Command::Erase { confirm } => self.erase(&confirm),
            Command::Install(install) => match self.install(id, install, respond.clone()) {
                Ok(None) => return,
                Ok(Some(outcome)) => outcome,
                Err(Refusal(why, text)) => Outcome::rejected(why, text),
            },
            Command::RollBack { model } => match self.roll_back(id, model, respond.clone()) {
                Ok(None) => return,
                Ok(Some(outcome)) => outcome,
                Err(Refusal(why, text)) => Outcome::rejected(why, text),
            },
            Command::Keyset { text, minisigs } => self.update_keyset(&text, &minisigs),
            Command::InstallSystem(install) => match self.install_system(id, install, respond.clone()) {
                Ok(None) => return,
                Ok(Some(outcome)) => outcome,
                Err(Refusal(why, text)) => Outcome::rejected(why, text),
            },
        };
        self.finish(kind, id, respond.as_ref(), &outcome);
    }

    /// The outcome with this result, or `Failed` if the result is too large for a record.
    fn large(&self, result: Value) -> Outcome {
        let size = result.to_string().len();
        if size > limits::RESULT_BYTES {
            return Outcome::new(State::Failed, format!("{size} bytes are more than {}", limits::RESULT_BYTES));
        }
        Outcome::done(result)
    }

    fn calibrate(&self, name: &str) -> Outcome {
        let found = self.setup.config.pipelines.iter().position(|p| p.name == name);
        let Some(place) = found else {
            return Outcome::rejected(Why::Invalid, format!("no pipeline is called `{name}`"));
        };
        if self.setup.config.pipelines[place].model.manifest.calibration.is_none() {
            return Outcome::rejected(Why::Invalid, format!("the model of `{name}` is not calibrated"));
        }
        self.setup.board.recalibrate(place);
        Outcome::new(State::Success, "the model learns again; up/e/model.calibrated reports the end")
    }

    /// The stage that evaluates the alarm takes the acknowledgement with its next look, within a second.
    fn acknowledge(&self, name: &str, id: Option<&str>) -> Outcome {
        let Some(place) = self.setup.config.alarms.iter().position(|alarm| alarm.name == name) else {
            return Outcome::rejected(Why::Invalid, format!("no alarm is called `{name}`"));
        };
        match self.setup.board.alarms[place].acknowledge(id) {
            Ok(id) => Outcome {
                result: Some(json!({"alarm": name, "id": id})),
                ..Outcome::new(State::Success, "acknowledged; the alarm clears as soon as its condition has ended")
            },
            Err(NotAcknowledged::NotLatched) => {
                let text =
                    format!("alarm `{name}` is not latched: it is not raised, or clears without acknowledgement");
                Outcome::rejected(Why::Invalid, text)
            }
            Err(NotAcknowledged::OtherEpisode(open)) => {
                Outcome::rejected(Why::Conflict, format!("the open episode of alarm `{name}` is `{open}`"))
            }
        }
    }

    /// Writes the request that `kentledge-erase` reads before /data is mounted, then restarts the machine.
    fn erase(&self, confirm: &str) -> Outcome {
        if confirm != self.device {
            return Outcome::rejected(Why::Invalid, format!("`confirm` is not `{}`", self.device));
        }
        let keep = crate::host::Keep::open(&self.setup.config.device.state_dir, ".");
        let written = keep.and_then(|keep| keep.save(limits::ERASE_REQUEST, b"erase\n").map(|()| keep));
        let keep = match written {
            Ok(keep) => keep,
            Err(why) => return Outcome::new(State::Failed, format!("write the request: {why}")),
        };
        match (self.setup.machine.reboot)() {
            Ok(()) => Outcome::new(
                State::Success,
                "the request is written and the system restarts; /data is erased before it is mounted",
            ),
            Err(why) => {
                let removed = keep
                    .remove(limits::ERASE_REQUEST)
                    .err()
                    .map(|why| format!("; and the request could not be removed: {why}"));
                Outcome::new(State::Failed, format!("{why}{}", removed.unwrap_or_default()))
            }
        }
    }

    /// Starts a change of the remote configuration layer. `None`: the change is on trial.
    fn change(&mut self, change: Change) -> Result<Option<Outcome>, Refusal> {
        let invalid = |text: String| Refusal(Why::Invalid, text);
        if self.live.is_some() {
            return Err(Refusal(Why::Busy, "another change is not confirmed yet".into()));
        }
        // An earlier change that could not be rolled back because the disk was full: roll it back first.
        if let Some(owed) = self.setup.trials.found().map_err(|why| Refusal(Why::Busy, why))? {
            let back = self.setup.trials.put_back(&owed, "the disk works again");
            back.and_then(|()| self.setup.trials.end()).map_err(|why| Refusal(Why::Busy, why))?;
        }
        let previous = self.setup.trials.current().map_err(|why| Refusal(Why::Busy, why))?;
        let is_set = previous.as_ref().map_or_else(|| "none".to_owned(), |text| format!("sha256:{}", digest(text)));
        if let Some(other) = change.if_digest.filter(|digest| *digest != is_set) {
            return Err(Refusal(Why::Conflict, format!("`if_digest` is {other}, but {is_set} is set")));
        }
        let toml = match &previous {
            Some(under) if change.merge => config::merge(under, &change.toml).map_err(invalid)?,
            _ => change.toml,
        };
        if toml.len() > limits::REMOTE_CONFIG_BYTES {
            let (is, most) = (toml.len(), limits::REMOTE_CONFIG_BYTES);
            return Err(invalid(format!("together with what is set it has {is} bytes, more than {most}")));
        }
        let text = Some(toml).filter(|toml| !toml.trim().is_empty());
        let next = self.setup.config.with_remote(text.as_deref()).map_err(|problems| {
            let lines: Vec<String> = problems.iter().take(limits::PROBLEMS_TOLD).map(ToString::to_string).collect();
            invalid(lines.join("\n"))
        })?;
        if self.setup.config.mqtt.is_some() && next.mqtt.is_none() {
            return Err(invalid("it would leave the device without a broker".into()));
        }
        if next.mqtt != self.setup.config.mqtt {
            // Reject now what can be checked without a trial.
            let problems: Vec<String> = next.problems_of_files(None).iter().map(ToString::to_string).collect();
            if !problems.is_empty() {
                return Err(invalid(problems.join("\n")));
            }
        }
        let digest = digest(text.as_deref().unwrap_or(""));
        if matches!(change.asker, Asker::Desired(_)) && self.memory.was_put_back(&digest) {
            return Err(invalid("this configuration was put back before; it is not tried again".into()));
        }
        let changes = self.setup.config.changes(previous.as_deref(), text.as_deref());
        if previous == text && self.setup.config.set_aside.is_empty() {
            let outcome = Outcome::new(State::Success, "it is set already");
            return Ok(Some(Outcome { result: Some(changed(&changes, &digest)), ..outcome }));
        }
        let cutting = self.setup.config.could_cut_off(&next);
        let trial = Trial {
            asker: change.asker,
            previous,
            text,
            digest,
            confirm_s: cutting.then(|| change.confirm_s.unwrap_or(next.commands.confirm_s)),
            process: self.setup.process.clone(),
            put_back: None,
            respond: change.respond.map(|r| (r.topic, r.correlation.map(|bytes| bytes.to_vec()))),
        };
        if let Err(why) = self.setup.trials.begin(&trial) {
            let back = self.setup.trials.put_back(&trial, &why).and_then(|()| self.setup.trials.end());
            let text = format!("{why}{}", back.err().map(|why| format!("; {why}")).unwrap_or_default());
            return Ok(Some(Outcome::new(State::Failed, text)));
        }
        let list = changes.text();
        tracing::info!(digest = trial.digest, confirm_s = trial.confirm_s, "a configuration is on trial: {list}");
        if self.setup.config.differs_in_link_only(&next) {
            self.tell_asker(&trial, &Outcome::new(State::Running, "the connection restarts"));
            self.generation += 1;
            self.want(&next, trial.confirm_s);
            self.go_live(trial, next);
        } else {
            self.tell_asker(&trial, &Outcome::new(State::Running, "the stages restart"));
            self.leave(Leave::Reload);
        }
        Ok(None)
    }

    fn want(&self, config: &Config, confirm_s: Option<u64>) {
        if let Some(mqtt) = &config.mqtt {
            (self.setup.want)(mqtt.clone(), self.generation, confirm_s.map(wait_most));
        }
    }

    fn go_live(&mut self, trial: Trial, next: Config) {
        let began_ns = Clock::boot_ns();
        let wait_s = trial.confirm_s.unwrap_or(limits::CONFIRM_S);
        self.live = Some(Live {
            trial,
            next,
            generation: self.generation,
            began_ns,
            deadline_ns: began_ns + wait_s * 1_000_000_000,
            proof_seq: None,
        });
    }

    /// At the start: continues with what the previous process, or the previous run of this process, left.
    pub(super) fn take_up(&mut self) {
        let found = self.setup.trials.found().unwrap_or_else(|why| {
            tracing::error!("{why}; it is read again later");
            self.trial_unread_ns = Some(Clock::boot_ns());
            None
        });
        self.take_up_commands(found.as_ref());
        match found {
            Some(trial) if trial.put_back.is_some() => {
                self.tell_put_back(&trial, trial.put_back.as_deref().unwrap_or(""));
                self.forget_trial();
            }
            Some(trial) if !self.setup.config.set_aside.is_empty() => {
                let next = self.setup.config.clone();
                self.go_live(trial, next);
                self.put_back("it does not validate any more");
            }
            Some(trial) => {
                let next = self.setup.config.clone();
                self.go_live(trial, next);
            }
            None => {}
        }
        self.report();
    }

    /// Finishes commands that the previous process left unfinished. Publishes results again that the broker may not have.
    pub(super) fn take_up_commands(&mut self, found: Option<&Trial>) {
        let command = |trial: &Trial| match &trial.asker {
            Asker::Command(id) => Some(id.clone()),
            Asker::Desired(_) => None,
        };
        let tried = found.and_then(command);
        let installing = [self.models.command(), self.system.command()].map(|id| id.map(str::to_owned));
        for known in self.memory.unacked() {
            let outcome = Outcome { repeated: true, ..Outcome::new(known.state, known.text.clone()) };
            self.result(&known.kind, &known.id, None, &outcome);
        }
        let goes_on = |id: &String| tried.as_ref() == Some(id) || installing.contains(&Some(id.clone()));
        // A file that is still unreadable may hold the job of one of these commands.
        let unread = [
            ("config.set", self.trial_unread_ns.is_some()),
            ("os.install", self.system.is_unread()),
            ("model.install", self.models.store.is_unread()),
            ("model.rollback", self.models.store.is_unread()),
        ];
        let may_go_on = |known: &Known| goes_on(&known.id) || unread.contains(&(known.kind.as_str(), true));
        for known in self.memory.unfinished().into_iter().filter(|known| !may_go_on(known)) {
            let began = known.state == State::Running;
            let outcome = match known.kind.as_str() {
                "restart" if began => Outcome::new(State::Success, "restarted"),
                "reboot" if began && known.boot != self.setup.boot => Outcome::new(State::Success, "restarted"),
                "reboot" if began => Outcome::new(State::Failed, "the machine was not restarted"),
                _ => Outcome::new(State::Failed, "the daemon stopped before it was done"),
            };
            self.finish(&known.kind, &known.id, None, &outcome);
        }
    }

    pub(super) fn look_at_trial(&mut self, now_ns: u64) {
        let due = |at_ns: u64| now_ns.saturating_sub(at_ns) >= limits::UNREADABLE_TRY.as_nanos() as u64;
        if self.trial_unread_ns.is_some_and(due) {
            let found = self.setup.trials.found();
            self.trial_unread_ns = found.is_err().then_some(now_ns);
            if matches!(found, Ok(Some(_))) {
                // The reload rolls the trial back, or continues it.
                return self.leave(Leave::Reload);
            }
        }
        let Some(live) = &mut self.live else { return };
        let news = *self.setup.link.borrow();
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
            let seq = self.tell_asker(&trial, &Outcome::new(State::Running, "in use, not confirmed yet"));
            self.live.iter_mut().for_each(|live| live.proof_seq = Some(seq));
        }
    }

    fn keep_change(&mut self) {
        let Some(live) = self.live.take() else { return };
        // Save the result first: after a power cut between the two writes, no command would finish a committed change.
        self.remember(&live.trial, State::Success, "");
        if let Err(why) = self.setup.trials.keep(&live.trial) {
            tracing::error!("{why}; rolling back to the previous configuration");
            self.live = Some(live);
            return self.put_back(&why);
        }
        self.setup.config = Config { layers: self.setup.config.layers.clone(), ..live.next };
        self.setup.config.set_remote_layer();
        self.want(&self.setup.config.clone(), None);
        let Trial { previous, text, digest, .. } = &live.trial;
        let changes = self.setup.config.changes(previous.as_deref(), text.as_deref());
        digest.clone_into(&mut self.in_use);
        self.event(Kind::ConfigChanged, "config", &format!("sha256:{digest} is in use: {}", changes.text()));
        let text = if changes.removed.is_empty() { "in use".into() } else { format!("in use: {}", changes.text()) };
        let outcome = Outcome { result: Some(changed(&changes, digest)), ..Outcome::new(State::Success, text) };
        self.tell_asker(&live.trial, &outcome);
        self.report();
    }

    fn put_back(&mut self, why: &str) {
        let Some(live) = self.live.take() else { return };
        let done = self.setup.trials.put_back(&live.trial, why);
        if let Err(why) = &done {
            // The trial's file stays on the disk: another process rolls back, or this one does at the next attempt.
            tracing::error!("{why}; the next change or the next start tries again");
        }
        if live.generation > 0 {
            // Only the connection differed.
            self.generation += 1;
            self.want(&self.setup.config.clone(), None);
            self.tell_put_back(&live.trial, why);
            if done.is_ok() {
                self.forget_trial();
            }
            self.report();
        } else {
            self.leave(Leave::Reload);
        }
    }

    fn tell_put_back(&mut self, trial: &Trial, why: &str) {
        self.memory.put_back(&trial.digest);
        self.remember(trial, State::RolledBack, why);
        self.event(Kind::ConfigRolledBack, "config", &format!("sha256:{}: {why}", trial.digest));
        self.tell_asker(trial, &Outcome::new(State::RolledBack, why));
    }

    fn forget_trial(&self) {
        if let Err(why) = self.setup.trials.end() {
            tracing::error!("{why}; the next start reports the rollback again");
        }
    }

    fn remember(&mut self, trial: &Trial, state: State, text: &str) {
        match &trial.asker {
            Asker::Command(id) => self.memory.became(id, state, text),
            Asker::Desired(version) if state == State::Success => {
                self.memory.wished(*version, "applied", text);
                self.memory.applied(*version, &trial.digest);
            }
            Asker::Desired(version) => self.memory.wished(*version, "rolled_back", text),
        }
        if let Err(why) = self.memory.save() {
            tracing::error!("{why}; a restart may lose the result of a configuration change");
        }
    }

    fn tell_asker(&mut self, trial: &Trial, outcome: &Outcome) -> u64 {
        let respond = trial.respond.clone().filter(|_| outcome.state.is_final());
        let respond = respond.map(|(topic, bytes)| Respond { topic, correlation: bytes.map(Into::into) });
        match &trial.asker {
            Asker::Command(id) => self.result("config.set", id, respond.as_ref(), outcome),
            // A desired state is confirmed by the acknowledgement of a result record too.
            Asker::Desired(version) => self.result("desired", &version.to_string(), None, outcome),
        }
    }

    /// Rejects a `dn/desired` message. It has no result; `commands.refused` reports a flood.
    fn refuse_desired(&mut self, why: &str) {
        if self.others.refusals.take(Clock::boot_ns()) {
            tracing::warn!("a desired state is refused: {why}");
        } else {
            self.unanswered += 1;
        }
    }

    /// Handles `dn/desired`: retained, so each connection delivers it again.
    pub(super) fn desired(&mut self, to: &str, arrived: Arrived) {
        let desired = match request::guarded(|| request::desired(to, &arrived.payload)) {
            Ok(desired) => desired,
            Err(Refusal(_, why)) => return self.refuse_desired(&why),
        };
        if self.memory.unread().is_some() {
            self.later = Some(arrived);
            return;
        }
        // Handle a version again if its change had not started when the process ended, or if it counts again because the key
        // of a later version was dropped.
        let wish = self.memory.wish();
        let again = matches!(wish.state.as_str(), "applying" | LOWERED);
        let unbegun = desired.version == wish.version && again && self.live.is_none();
        let high = self.memory.desired_high(&|name, key| self.key_of(name) == Some(key));
        if desired.version <= high && !unbegun {
            return;
        }
        let believed = self.verify(&desired.signed).and_then(|key| {
            self.not_issued_ahead(Some(desired.issued_ms))?;
            self.not_ahead("version", desired.version, high).map(|()| key)
        });
        let key = match believed {
            Ok(key) => key,
            Err(Refusal(_, why)) => return self.refuse_desired(&why),
        };
        if self.live.is_some() {
            self.later = Some(arrived);
            return;
        }
        let version = desired.version;
        self.memory.looked_at_desired(&desired.signed.issuer, &key, version);
        self.memory.wished(version, "applying", "");
        let end = |control: &mut Self, state: &str, text: &str| {
            control.memory.wished(version, state, text);
            if let Err(why) = control.memory.save() {
                tracing::error!("{why}; a restart may lose the result of desired state {version}");
            }
            control.report();
        };
        if desired.expires_ms.is_some_and(|at| self.now_ms() >= at) {
            return end(self, "rejected", "it came too late");
        }
        if let Err(why) = self.memory.save() {
            // Not saved, so not applied. The next connection delivers the retained message again.
            return tracing::error!("desired state {version} is not applied: {why}; the next connection tries again");
        }
        self.report();
        let asker = Asker::Desired(version);
        let (toml, confirm_s) = (desired.toml, desired.confirm_s);
        let digest = digest(if toml.trim().is_empty() { "" } else { &toml });
        let change = Change { asker, toml, confirm_s, merge: false, if_digest: None, respond: None };
        match self.change(change) {
            Ok(None) => {}
            Ok(Some(outcome)) if outcome.state == State::Success => {
                self.memory.applied(version, &digest);
                end(self, "applied", &outcome.text);
            }
            Ok(Some(outcome)) => end(self, "rejected", &outcome.text),
            Err(Refusal(_, why)) => end(self, "rejected", &why),
        }
    }
}

/// The result of a configuration change: the changed keys and the digest of the layer.
fn changed(changes: &Changes, digest: &str) -> Value {
    let mut result = changes.json();
    let none = self::digest("") == digest;
    result.insert("digest".into(), (!none).then(|| format!("sha256:{digest}")).into());
    Value::Object(result)
}

/// Digest of the remote layer that this configuration contains; without a remote layer, the digest of an empty text.
pub(super) fn in_use(config: &Config) -> String {
    let text = config.layers.iter().rev().find_map(|layer| match layer {
        config::Layer::Remote(file) => std::fs::read_to_string(file).ok(),
        _ => None,
    });
    digest(text.as_deref().unwrap_or(""))
}

impl Config {
    /// Updates `layers` for the remote layer in use: its file is the last layer, or no remote file exists.
    fn set_remote_layer(&mut self) {
        self.layers.retain(|layer| matches!(layer, config::Layer::Local(_)));
        let file = config::remote_file(&self.device.state_dir);
        if file.exists() {
            self.layers.push(config::Layer::Remote(file));
        }
        self.set_aside.clear();
    }
}
