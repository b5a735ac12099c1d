//! The rules of the rollout's thread, with workers of the test: no process is started, and each test takes milliseconds.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    sync::mpsc::{Receiver, sync_channel},
};

use super::*;
use crate::model::rollout::{Desk, desk};

/// Workers of the test: `prove` calls `during`, then answers.
struct Fake {
    /// The window of the model that is read.
    window: &'static str,
    /// Groups that fail.
    fails: BTreeSet<usize>,
    /// Groups that were started, by their first pipeline.
    started: RefCell<Vec<usize>>,
    /// Called while a proof runs.
    during: Box<dyn Fn(&Fake)>,
    panics: Cell<bool>,
}

const WINDOW: &str = r#"{"channels":["a"],"length":8}"#;

fn manifest(model: &str, window: &str) -> Manifest {
    let text = format!(r#"{{"model":"{model}","version":"1.0.0","files":[{{"name":"m.onnx"}}],"window":{window}}}"#);
    Manifest::parse(text.as_bytes()).expect("manifest")
}

impl Workers for std::rc::Rc<Fake> {
    type Ready = String;

    fn read(&self, target: Target, _: &Group) -> Result<Artifact, String> {
        Ok(Artifact::of_manifest(manifest(target.model(), self.window)))
    }

    fn prove(
        &self,
        group: &Group,
        source: &Artifact,
        beat: &dyn Fn(),
        stopped: &dyn Fn() -> bool,
    ) -> Result<(String, String), String> {
        let place = group.pipelines[0];
        self.started.borrow_mut().push(place);
        (self.during)(self);
        assert!(!self.panics.get(), "on purpose");
        beat();
        if stopped() {
            return Err("stopped".into());
        }
        if self.fails.contains(&place) {
            return Err(format!("golden case 1 fails in {place}"));
        }
        Ok((format!("{}@{place}", source.manifest.model), format!("figures of {place}")))
    }
}

/// Control, the rollout and two engines of model `m`, and a third of model `n`.
struct Bench {
    desk: std::rc::Rc<Desk>,
    fake: std::rc::Rc<Fake>,
    prover: Prover<std::rc::Rc<Fake>>,
    engines: Vec<Receiver<Message<String>>>,
}

/// What an engine got: the model, or why it goes back.
fn got(engine: &Receiver<Message<String>>) -> Vec<String> {
    let text = |message| match message {
        Message::Offer(offer) => format!("{} watched {}", offer.running, offer.terms.is_some()),
        Message::Back(why) => format!("back: {why}"),
    };
    engine.try_iter().map(text).collect()
}

impl Bench {
    fn with(fake: impl FnOnce(&std::rc::Rc<Desk>) -> Fake) -> Self {
        let (desk, inbox) = desk();
        let desk = std::rc::Rc::new(desk);
        let fake = std::rc::Rc::new(fake(&desk));
        let group = |(place, model): (usize, &str)| Group { manifest: manifest(model, WINDOW), pipelines: vec![place] };
        let groups = ["m", "m", "n"].into_iter().enumerate().map(group).collect();
        let (mail, engines) = (0..3).map(|_| sync_channel(limits::ROLLOUT_MESSAGES)).unzip();
        let models = config::Models {
            runtime: None,
            allow_unsigned: false,
            providers: Vec::new(),
            require: false,
            provider: BTreeMap::new(),
            channel: "stable".into(),
            ca_file: None,
            memory_bytes: 0,
            shadow_s: 5,
            trial_s: 60,
            trial_windows: 10,
        };
        let prover = Prover::new(groups, models, fake.clone(), mail, inbox);
        Self { desk, fake, prover, engines }
    }

    /// Until nothing is left to do.
    fn settle(&self) {
        for _ in 0..20 {
            self.prover.turn(Duration::ZERO, &|| {});
        }
    }

    fn reports(&self) -> Vec<(u64, Result<String, String>)> {
        let proven = |report| match report {
            Report::Proven(number, proof) => (number, proof.map(|proof| proof.text).map_err(String::from)),
            Report::Verdict(verdict) => panic!("no engine reports: {verdict:?}"),
        };
        std::iter::from_fn(|| self.desk.report()).map(proven).collect()
    }
}

fn fake() -> Fake {
    Fake {
        window: WINDOW,
        fails: BTreeSet::new(),
        started: RefCell::default(),
        during: Box::new(|_| {}),
        panics: Cell::new(false),
    }
}

/// Sends this request when the first worker runs.
fn meanwhile(desk: &std::rc::Rc<Desk>, request: impl Fn() -> Request + 'static) -> Fake {
    let desk = desk.clone();
    let during = move |fake: &Fake| {
        if fake.started.borrow().len() == 1 {
            desk.request(request());
        }
    };
    Fake { during: Box::new(during), ..fake() }
}

fn prove(number: u64, model: &str) -> Request {
    Request::Prove { number, target: Target::Factory(model.into()), watched: true }
}

fn back(model: &str) -> Request {
    Request::Back { model: model.into(), why: "rolled back".into() }
}

#[test]
fn model_is_offered_to_all_groups_that_use_it_only_when_control_says_so() {
    let bench = Bench::with(|_| fake());
    bench.desk.request(prove(1, "m"));
    bench.settle();
    let proof = Proof { text: "figures of 0".into(), groups: BTreeSet::from([0, 1]) };
    assert_eq!(bench.desk.report(), Some(Report::Proven(1, Ok(proof))));
    assert!(bench.engines.iter().all(|engine| got(engine).is_empty()), "control has not saved the trial yet");
    bench.desk.request(Request::Offer { number: 1 });
    bench.settle();
    let offered: Vec<_> = bench.engines.iter().map(got).collect();
    assert_eq!(offered, [vec!["m@0 watched true"], vec!["m@1 watched true"], vec![]]);
    assert_eq!(bench.reports(), []);
}

#[test]
fn model_that_served_before_is_offered_without_a_trial() {
    let bench = Bench::with(|_| fake());
    bench.desk.request(Request::Prove { number: 1, target: Target::Factory("n".into()), watched: false });
    bench.settle();
    bench.desk.request(Request::Offer { number: 1 });
    bench.settle();
    assert_eq!(got(&bench.engines[2]), ["n@2 watched false"]);
}

#[test]
fn model_that_fails_in_one_group_is_offered_to_none() {
    let bench = Bench::with(|_| Fake { fails: BTreeSet::from([1]), ..fake() });
    bench.desk.request(prove(1, "m"));
    bench.settle();
    assert_eq!(bench.reports(), [(1, Err("golden case 1 fails in 1".into()))]);
    bench.desk.request(Request::Offer { number: 1 });
    bench.settle();
    assert!(bench.reports().iter().all(|(number, proof)| *number == 1 && proof.is_err()));
    assert!(bench.engines.iter().all(|engine| got(engine).is_empty()));
}

#[test]
fn newest_request_to_prove_wins_over_one_that_waits_and_over_one_that_runs() {
    let bench = Bench::with(|desk| meanwhile(desk, || prove(3, "n")));
    bench.desk.request(prove(1, "m"));
    bench.desk.request(prove(2, "m"));
    bench.prover.requests.borrow_mut().poll();
    bench.settle();
    let reports = bench.reports();
    let numbers: Vec<_> = reports.iter().map(|(number, proof)| (*number, proof.is_ok())).collect();
    assert_eq!(numbers, [(1, false), (2, false), (3, true)], "each request is answered once");
    assert!(reports[1].1.as_ref().is_err_and(|why| why.contains("another model")));
    assert_eq!(*bench.fake.started.borrow(), [0, 2], "no worker is started for what is not needed any more");
}

#[test]
fn proof_that_was_not_offered_is_dropped_by_the_next_request() {
    let bench = Bench::with(|_| fake());
    bench.desk.request(prove(1, "m"));
    bench.settle();
    bench.desk.request(prove(2, "n"));
    bench.settle();
    bench.desk.request(Request::Offer { number: 1 });
    bench.settle();
    let numbers: Vec<_> = bench.reports().into_iter().map(|(number, proof)| (number, proof.is_ok())).collect();
    assert_eq!(numbers, [(1, true), (2, true), (1, false)]);
    assert!(bench.engines.iter().all(|engine| got(engine).is_empty()));
}

#[test]
fn panic_in_a_proof_is_answered_and_the_next_model_is_proven() {
    let bench = Bench::with(|_| fake());
    bench.fake.panics.set(true);
    bench.desk.request(prove(1, "m"));
    bench.settle();
    bench.fake.panics.set(false);
    bench.desk.request(prove(2, "m"));
    bench.settle();
    let reports = bench.reports();
    assert!(matches!(&reports[0], (1, Err(why)) if why.contains("panicked")));
    assert_eq!(reports[1], (2, Ok("figures of 0".into())));
}

#[test]
fn model_with_another_window_is_rejected_before_a_worker_is_started() {
    let bench = Bench::with(|_| Fake { window: r#"{"channels":["a"],"length":9}"#, ..fake() });
    bench.desk.request(prove(1, "m"));
    bench.settle();
    assert!(matches!(&bench.reports()[..], [(1, Err(why))] if why.contains("`length` is 9")));
    assert!(bench.fake.started.borrow().is_empty());
}

#[test]
fn model_that_no_pipeline_uses_is_rejected_by_name() {
    let bench = Bench::with(|_| fake());
    bench.desk.request(prove(1, "fan"));
    bench.settle();
    assert!(matches!(&bench.reports()[..], [(1, Err(why))] if why.contains("`fan`")));
}

#[test]
fn rollback_reaches_the_engines_while_a_proof_runs_and_stops_it() {
    let bench = Bench::with(|desk| meanwhile(desk, || back("m")));
    bench.desk.request(prove(1, "m"));
    bench.settle();
    assert_eq!(bench.reports(), [(1, Err("stopped: rolled back".into()))]);
    let backs: Vec<_> = bench.engines.iter().map(got).collect();
    assert_eq!(backs, [vec!["back: rolled back"], vec!["back: rolled back"], vec![]]);
    assert_eq!(*bench.fake.started.borrow(), [0]);
}

#[test]
fn rollback_of_another_model_reaches_its_engine_and_leaves_the_proof() {
    let bench = Bench::with(|desk| meanwhile(desk, || back("n")));
    bench.desk.request(prove(1, "m"));
    bench.settle();
    assert_eq!(bench.reports(), [(1, Ok("figures of 0".into()))]);
    assert_eq!(got(&bench.engines[2]), ["back: rolled back"]);
}

#[test]
fn rollback_drops_a_proof_that_waits_for_its_offer() {
    let bench = Bench::with(|_| fake());
    bench.desk.request(prove(1, "m"));
    bench.settle();
    bench.desk.request(back("m"));
    bench.desk.request(Request::Offer { number: 1 });
    bench.settle();
    assert!(matches!(&bench.reports()[..], [(1, Ok(_)), (1, Err(why))] if why.contains("dropped")));
    assert_eq!(got(&bench.engines[0]), ["back: rolled back"]);
}

#[test]
fn offer_that_an_engine_does_not_take_is_answered_with_an_error() {
    let bench = Bench::with(|_| fake());
    for _ in 0..limits::ROLLOUT_MESSAGES {
        bench.desk.request(back("n"));
        bench.settle();
    }
    bench.desk.request(prove(1, "n"));
    bench.settle();
    bench.desk.request(Request::Offer { number: 1 });
    bench.settle();
    assert!(matches!(&bench.reports()[..], [(1, Ok(_)), (1, Err(why))] if why.contains("engine 2")));
}

#[test]
fn thread_ends_when_control_is_gone_also_in_the_middle_of_a_proof() {
    let (desk, inbox) = desk();
    desk.request(prove(1, "m"));
    let desk = RefCell::new(Some(desk));
    let fake = std::rc::Rc::new(Fake { during: Box::new(move |_| drop(desk.borrow_mut().take())), ..fake() });
    let group = Group { manifest: manifest("m", WINDOW), pipelines: vec![0] };
    let models = Bench::with(|_| self::fake()).prover.models;
    let (mail, _engine) = sync_channel(limits::ROLLOUT_MESSAGES);
    Prover::new(vec![group], models, fake.clone(), vec![mail], inbox).run(&|| {});
    assert_eq!(*fake.started.borrow(), [0]);
}
