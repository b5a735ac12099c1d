//! Performs what control decides, in order, and turns results into events. The thread of the stage.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::{
    Control, Leave, Rules, Trials,
    action::{About, Action, Ask, Event, Left, Now, OnError, Record, Which},
    audit::Book,
    candidate::{Candidate, Change, changed, compare, in_use},
    command_state::CommandState,
    jobs::{Jobs, keyset, model_keys, model_rules},
    memory::{MemoryFile, Saved},
    model_action::{ModelEvent, Moment},
    models::Models,
    refusal::{Refusal, Why},
    setup::{ControlSetup, Want},
    slots,
    system::{Place, System},
    tell::{self, Outcome},
    trial::{Trial, digest},
};
use crate::{
    config::Config,
    flow::{
        Class, Draft, Retain, StreamId,
        alarm::NotAcknowledged,
        event::{EventStreams, Kind},
        meter::Meters,
        order::{LinkNews, Orders, Respond, Response, Ticket},
    },
    host::{Keep, clock::rfc3339_ms, fetch::Waits},
    limits,
    model::store::Store,
};

/// Where records, answers and requests go.
struct Doors {
    streams: (StreamId, StreamId),
    blob: StreamId,
    events: EventStreams,
    put: Box<dyn Fn(Draft) -> u64 + Send>,
    settled: Box<dyn Fn(Ticket) + Send>,
    respond: Box<dyn Fn(Response) + Send>,
    want: Want,
    leave: Box<dyn Fn(Leave) + Send>,
}

/// The stage: control, and the world it acts on.
pub struct Effects {
    control: Control,
    jobs: Jobs,
    doors: Doors,
    orders: Orders,
    link: watch::Receiver<LinkNews>,
    memory: MemoryFile,
    audit: Book,
    trials: Trials,
    meters: Arc<Meters>,
    /// The configuration with the change that was compared last.
    candidate: Option<Config>,
    device: String,
}

/// The result of an action.
enum Done {
    /// It is done; the event that follows.
    Yes(Option<Event>),
    /// It failed, and the rest of the list is not done.
    Stop(Event),
}

impl Effects {
    /// Continues with what the previous process left.
    pub fn new(setup: ControlSetup, store: Store) -> Self {
        let Store { disk, mut shelf } = store;
        let ControlSetup {
            config, clock, boot, process, keep, ran_before, trials, orders, streams, blob, events, ..
        } = setup;
        let (put, settled, respond, want, leave) = (setup.put, setup.settled, setup.respond, setup.want, setup.leave);
        let (keys, keys_trouble) = keyset(&config, &disk, &mut shelf);
        let rules = Rules::of(&config, &boot, &process);
        let device = format!("{}/{}", config.device.site, config.device.id);
        let now = Now { stamp: clock.now(), floor_ms: clock.floor_ms() };
        let mut audit = Book::new(setup.audit, clock.clone(), boot.clone(), setup.show_audit);
        let in_use = in_use(&config);
        let damage = audit.started(&process, &in_use);
        let place = Place {
            slot: setup.slots.slot.clone(),
            version: setup.slots.version.clone(),
            boot,
            os_confirm_s: config.commands.os_confirm_s,
        };
        let system = System::new(place, slots::load(&keep), now.stamp.boot_ns);
        let at = Moment { now_ns: now.stamp.boot_ns, now_ms: now.stamp.wall_ms.unwrap_or(0).max(now.floor_ms) };
        let model_keys = model_keys(&keys, keys_trouble.as_deref());
        let jobs = Jobs {
            models: Models::new(model_rules(&config), shelf, model_keys, at),
            disk,
            opened: None,
            local_file: None,
            model_waits: Waits::default(),
            config,
            clock,
            rollout: setup.rollout,
            local: setup.local,
            show_models: setup.show_models,
            reports: mpsc::sync_channel(limits::MODEL_NEWS),
            slots: setup.slots,
            machine: setup.machine,
            board: setup.board,
            samples: setup.samples,
            keys,
            keys_trouble,
            system,
            keep: keep.clone(),
            system_waits: Waits::default(),
            news: Vec::new(),
        };
        let doors = Doors { streams, blob, events, put, settled, respond, want, leave };
        let control = Control::new(rules, now, fastrand::u64(..));
        let (memory, link, meters) = (MemoryFile(keep), setup.link, setup.meters);
        let candidate = None;
        let mut effects = Self { control, jobs, doors, orders, link, memory, audit, trials, meters, candidate, device };
        if let Some(why) = damage {
            effects.publish(Record::Event(Kind::StoreDamaged, "audit".into(), why));
        }
        let keys = effects.jobs.keys_now();
        effects.handle(Event::Began { left: effects.left(), keys, in_use, ran_before });
        effects.jobs.take_up();
        effects.hear();
        effects
    }

    /// The stage as a thread. It ends when every sender of orders is gone.
    pub fn run(mut self, beat: impl Fn()) {
        loop {
            beat();
            match self.orders.take(limits::CONTROL_TURN) {
                Ok(arrived) => self.handle(Event::Arrived(arrived)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.tick();
            self.audit.look();
            if !self.control.is_leaving() {
                self.jobs.look();
                self.hear();
            }
        }
        self.tick();
        if self.control.is_leaving() {
            self.jobs.on_models(ModelEvent::Leaving);
        }
        if let Err(why) = self.control.memory().to_save().and_then(|saved| self.memory.save(&saved)) {
            tracing::warn!("{why}; the next start may publish acknowledged results again");
        }
    }

    fn tick(&mut self) {
        let (link, acked) = (*self.link.borrow(), self.jobs.board.result_acked.load(Ordering::Relaxed));
        self.handle(Event::Tick(link, acked));
    }

    /// Reports of jobs.
    fn hear(&mut self) {
        for news in std::mem::take(&mut self.jobs.news) {
            self.handle(Event::Job(news));
        }
    }

    /// Handles an event, and the events that its actions result in.
    fn handle(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let clock = &self.jobs.clock;
            let now = Now { stamp: clock.now(), floor_ms: clock.floor_ms() };
            for action in self.control.on(now, event) {
                let done = self.perform(action);
                events.extend(std::mem::take(&mut self.jobs.news).into_iter().map(Event::Job));
                match done {
                    Done::Yes(event) => events.extend(event),
                    Done::Stop(event) => {
                        events.push_back(event);
                        break;
                    }
                }
            }
        }
    }

    fn perform(&mut self, action: Action) -> Done {
        Done::Yes(match action {
            Action::Save(saved, or) => return self.save(saved, or),
            Action::Publish(record) => self.publish(record),
            Action::Respond(respond, members) => self.respond(respond, members),
            Action::Settle(ticket) => {
                (self.doors.settled)(ticket);
                None
            }
            Action::CountAccepted => {
                self.meters.commands_accepted.add(1);
                None
            }
            Action::CountRefused => {
                self.meters.commands_refused.add(1);
                None
            }
            Action::Ask(call, ask) => {
                let outcome = self.ask(&ask);
                Some(Event::Done(call, outcome))
            }
            Action::Recalibrate(place) => {
                self.jobs.board.recalibrate(place);
                None
            }
            Action::Compare(change) => {
                let compared = self.compare(&change);
                Some(Event::Compared(change, compared))
            }
            Action::Begin(trial) => return self.begin(trial),
            Action::Commit(trial) => return self.commit(trial),
            Action::PutBack(trial, why, generation) => match self.trials.put_back(&trial, &why) {
                Ok(()) => None,
                Err(failed) => {
                    let stop = super::Stop::PutBack(trial, why, generation);
                    return Done::Stop(Event::Failed(stop, failed));
                }
            },
            Action::Forget => {
                if let Err(why) = self.trials.end() {
                    tracing::error!("{why}; the next start reports the rollback again");
                }
                None
            }
            Action::Connect(which, generation, wait_most) => {
                self.connect(which, generation, wait_most);
                None
            }
            Action::Leave(how) => {
                (self.doors.leave)(how);
                None
            }
            other => self.perform_on_jobs(other),
        })
    }

    /// The actions that read the disk again, or that jobs perform.
    fn perform_on_jobs(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Audit(act) => {
                self.audit.write(&act);
                None
            }
            Action::Reread => Some(Event::Reread(self.left())),
            Action::ReadTrial => Some(Event::TrialRead(self.trials.found())),
            Action::ReadKeys => Some(Event::KeysRead(self.jobs.read_keys())),
            Action::TakeKeys(call, update) => {
                let taken = self.jobs.take_keys(&update.text, &update.minisigs);
                let taken = taken.map(|version| (self.jobs.keys_now(), version));
                Some(Event::KeysTaken(call, taken))
            }
            Action::Install(call, install) => {
                let room = self.jobs.room(install.size);
                let done = self.jobs.on_models(ModelEvent::Install(call, install, room));
                done.map(|(call, outcome)| Event::Done(call, outcome))
            }
            Action::RollBack(call, back) => {
                let done = self.jobs.on_models(ModelEvent::RollBack(call, back.model));
                done.map(|(call, outcome)| Event::Done(call, outcome))
            }
            Action::InstallSystem(call, install) => {
                let done = self.jobs.install_system(call, install);
                done.map(|(call, outcome)| Event::Done(call, outcome))
            }
            Action::Samples(call, ask) => {
                let done = self.jobs.order_samples(call, ask);
                done.map(|(call, outcome)| Event::Done(call, outcome))
            }
            Action::Chunk(sha256, offset, bytes) => {
                self.jobs.on_models(ModelEvent::Chunk(sha256, offset, bytes));
                None
            }
            Action::Newest(models) => {
                self.jobs.models.newest(&models);
                None
            }
            Action::ShowStale(stale) => {
                self.jobs.on_models(ModelEvent::Stale(stale));
                None
            }
            Action::JobHeard(command) => {
                self.jobs.heard(command);
                None
            }
            Action::Again => {
                let acked = self.jobs.board.result_acked.load(Ordering::Relaxed);
                Some(Event::Tick(*self.link.borrow(), acked))
            }
            // `perform` did these. They are named, so that a new action without a performer does not compile.
            Action::Save(..)
            | Action::Publish(_)
            | Action::Respond(..)
            | Action::Settle(_)
            | Action::CountAccepted
            | Action::CountRefused
            | Action::Ask(..)
            | Action::Recalibrate(_)
            | Action::Compare(_)
            | Action::Begin(_)
            | Action::Commit(_)
            | Action::PutBack(..)
            | Action::Forget
            | Action::Connect(..)
            | Action::Leave(_) => None,
        }
    }

    /// What the previous run left on the disk.
    fn left(&self) -> Left {
        let (trial, going, audited) = (self.trials.found(), self.jobs.going(), self.audit.ids());
        Left { memory: self.memory.load(), trial, going, audited }
    }

    fn save(&self, saved: Result<Box<Saved>, String>, or: OnError) -> Done {
        match (saved.and_then(|saved| self.memory.save(&saved)), or) {
            (Ok(()), _) => Done::Yes(None),
            (Err(why), OnError::Log(then)) => {
                tracing::error!("{why}; {then}");
                Done::Yes(None)
            }
            (Err(why), OnError::Stop(stop)) => Done::Stop(Event::Failed(stop, why)),
        }
    }

    fn publish(&self, record: Record) -> Option<Event> {
        match record {
            Record::Result { kind, id, outcome, about } => {
                let members = outcome.members(&kind, &id);
                let seq = self.put(self.doors.streams.0, Class::Reply, &members, Retain::No);
                (about != About::Nothing).then_some(Event::Numbered(about, seq))
            }
            Record::Reported(mut members) => {
                members.insert("models".into(), self.jobs.models.slots());
                self.put(self.doors.streams.1, Class::Status, &members, Retain::Keep);
                None
            }
            Record::Event(kind, subject, text) => {
                (self.doors.put)(self.doors.events.draft(kind, self.jobs.clock.now(), &subject, &text));
                None
            }
            Record::Blob(members) => {
                self.put(self.doors.blob, Class::Reply, &members, Retain::No);
                None
            }
        }
    }

    fn put(&self, stream: StreamId, class: Class, members: &Map<String, Value>, retain: Retain) -> u64 {
        let (stamp, body) = (self.jobs.clock.now(), tell::body(members).into());
        (self.doors.put)(Draft { stream, class, stamp, lineage: None, body, retain })
    }

    fn respond(&self, respond: Respond, members: Map<String, Value>) -> Option<Event> {
        let now = self.jobs.clock.now();
        let mut payload = Map::new();
        payload.insert("v".into(), 1.into());
        payload.insert("ts".into(), now.wall_ms.map(rfc3339_ms).into());
        payload.insert("clk".into(), now.clk.word().into());
        payload.insert("device".into(), self.device.as_str().into());
        payload.extend(members);
        (self.doors.respond)(Response { respond, payload: Value::Object(payload).to_string() });
        None
    }

    fn ask(&self, ask: &Ask) -> Outcome {
        match ask {
            Ask::Status => Outcome::done((self.jobs.machine.status)()),
            Ask::Config => Outcome::done(json!({"config": self.jobs.config.written()})),
            Ask::RemoteLayer => {
                let text = self.trials.current().ok().flatten();
                let digest = text.as_ref().map(|text| format!("sha256:{}", digest(text)));
                Outcome::done(json!({"toml": text, "digest": digest, "set_aside": self.jobs.config.set_aside}))
            }
            Ask::Log(query) => (self.jobs.machine.log)(query).map_or_else(Outcome::failed, Outcome::done),
            Ask::Audit(from) => self.audit.pull(*from),
            Ask::Reboot => match (self.jobs.machine.reboot)() {
                Ok(()) => Outcome::new(CommandState::Running, "the system restarts"),
                Err(why) => Outcome::failed(why),
            },
            Ask::Erase => self.erase(),
            Ask::Acknowledge(place, episode) => self.acknowledge(*place, episode.as_deref()),
        }
    }

    /// The stage that evaluates the alarm takes the acknowledgement with its next look, within a second.
    fn acknowledge(&self, place: usize, episode: Option<&str>) -> Outcome {
        let name = &self.jobs.config.alarms[place].name;
        match self.jobs.board.alarms[place].acknowledge(episode) {
            Ok(id) => Outcome {
                result: Some(json!({"alarm": name, "id": id})),
                ..Outcome::new(
                    CommandState::Success,
                    "acknowledged; the alarm clears as soon as its condition has ended",
                )
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
    fn erase(&self) -> Outcome {
        let keep = Keep::open(&self.jobs.config.device.state_dir, ".");
        let written = keep.and_then(|keep| keep.save(limits::ERASE_REQUEST, b"erase\n").map(|()| keep));
        let keep = match written {
            Ok(keep) => keep,
            Err(why) => return Outcome::failed(format!("write the request: {why}")),
        };
        match (self.jobs.machine.reboot)() {
            Ok(()) => Outcome::new(
                CommandState::Success,
                "the request is written and the system restarts; /data is erased before it is mounted",
            ),
            Err(why) => {
                let removed = keep
                    .remove(limits::ERASE_REQUEST)
                    .err()
                    .map(|why| format!("; and the request could not be removed: {why}"));
                Outcome::failed(format!("{why}{}", removed.unwrap_or_default()))
            }
        }
    }

    fn compare(&mut self, change: &Change) -> Result<Box<Candidate>, Refusal> {
        let busy = |why| Refusal(Why::Busy, why);
        // An earlier change that could not be rolled back because the disk was full: roll it back first.
        if let Some(owed) = self.trials.found().map_err(busy)? {
            let back = self.trials.put_back(&owed, "the disk works again");
            back.and_then(|()| self.trials.end()).map_err(busy)?;
        }
        let previous = self.trials.current().map_err(busy)?;
        let (candidate, next) = compare(&self.jobs.config, previous, change)?;
        self.candidate = Some(next);
        Ok(candidate)
    }

    fn begin(&mut self, trial: Box<Trial>) -> Done {
        let Err(why) = self.trials.begin(&trial) else { return Done::Yes(None) };
        let back = self.trials.put_back(&trial, &why).and_then(|()| self.trials.end());
        let text = format!("{why}{}", back.err().map(|why| format!("; {why}")).unwrap_or_default());
        Done::Stop(Event::Failed(super::Stop::Begin(trial), text))
    }

    fn commit(&mut self, trial: Box<Trial>) -> Done {
        if let Err(why) = self.trials.keep(&trial) {
            return Done::Stop(Event::Failed(super::Stop::Commit, why));
        }
        let config = &mut self.jobs.config;
        if let Some(next) = self.candidate.take() {
            *config = Config { layers: config.layers.clone(), ..next };
        }
        config.set_remote_layer();
        let changes = config.changes(trial.previous.as_deref(), trial.text.as_deref());
        let changed = changed(&changes, &trial.digest);
        Done::Yes(Some(Event::Committed(trial, changed)))
    }

    fn connect(&self, which: Which, generation: u64, wait_most: Option<Duration>) {
        let config = match which {
            Which::Candidate => self.candidate.as_ref().unwrap_or(&self.jobs.config),
            Which::InUse => &self.jobs.config,
        };
        if let Some(mqtt) = &config.mqtt {
            (self.doors.want)(mqtt.clone(), generation, wait_most);
        }
    }
}
