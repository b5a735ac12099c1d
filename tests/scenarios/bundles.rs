//! Models that cannot brick a device: signed bundles, proven before they serve, rolled back by themselves.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rig::{
    Daemon, Maker, Mosquitto, Operator, Site, Sub, Tty, eventually,
    maker::{self, Draft, SHAPE},
    measured, onnx,
    operator::states,
};
use serde_json::{Value, json};

/// A device with a signed model in its read-only root, and those who may send it others.
struct World {
    _broker: Mosquitto,
    tty: Tty,
    sub: Sub,
    operator: Operator,
    maker: Maker,
    site: Site,
    /// Rows sent so far.
    rows: u64,
}

impl World {
    fn new(models: &str) -> Self {
        let (broker, tty) = (Mosquitto::start(), Tty::default());
        let (sub, operator, maker) = (Sub::new(broker.port), Operator::new(broker.port, "ops"), Maker::new("release"));
        let site = Site::new(broker.port).with_sensor(&tty);
        let dir = site.dir.path().to_owned();
        let keys = [operator.key(&["command", "keyset"]), maker.key(&["model"])];
        let keyset = maker::keyset(&dir, 1, &keys, &json!({}));
        let factory = dir.join("factory.kmb");
        fs::copy(maker.bundle(&Draft::mean(1)), &factory).expect("copy");
        let site = site
            .with_models(if models.is_empty() { "trial_s = 1\ntrial_windows = 20\n" } else { models })
            .with(&format!("[commands]\nkeyset = \"{}\"\njitter_s = 0\n", keyset.display()))
            .with("[pipeline.x]\nmodel = \"factory.kmb\"\nchannels = [\"a\", \"b\"]\n");
        Self { _broker: broker, tty, sub, operator, maker, site, rows: 0 }
    }

    #[track_caller]
    fn run(&self) -> Daemon {
        let daemon = self.site.run();
        let serving = || daemon.own_log().contains("serving mean@").then_some(());
        eventually("a model serves", serving);
        self.sub.wait_state("online");
        daemon
    }

    /// Sends rows whose windows differ, with values from `base`.
    fn rows(&mut self, n: u64, base: u64) {
        self.tty.rows(self.rows..self.rows + n, |i| format!("{i},{},{}", base + i % 7, base + i % 5));
        self.rows += n;
    }

    /// Sends rows until the command came to its end.
    #[track_caller]
    fn rows_until_end(&mut self, id: &str, base: u64) -> Value {
        let until = Instant::now() + Duration::from_secs(40);
        loop {
            self.rows(10, base);
            let records = self.sub.records(&format!("res/model.install/{id}"));
            let done = |r: &&(Value, bool)| !["accepted", "running"].contains(&r.0["state"].as_str().unwrap_or(""));
            if let Some((record, _)) = records.iter().find(done) {
                return record.clone();
            }
            assert!(Instant::now() < until, "no end of {id}: {:?}", states(&self.sub, "model.install", id));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Orders a bundle and sends its chunks by MQTT.
    fn install(&self, id: &str, bundle: &Path) {
        let bytes = fs::read(bundle).expect("bundle");
        let sha256 = maker::sha256(bundle);
        self.operator.order(&self.sub, "model.install", id, &json!({"sha256": sha256, "size": bytes.len()}));
        self.sub.wait("it waits for chunks", |messages| {
            messages.iter().any(|m| m.stream == format!("blob/{sha256}")).then_some(())
        });
        self.operator.chunks(&sha256, &bytes, 0..bytes.len(), 4096);
    }

    /// Waits until every window was predicted once: none is lost but those that a start of the daemon cuts (3 rows each).
    #[track_caller]
    fn settled(&self, starts: usize) {
        let all = self.rows as usize - 3 * starts;
        let firsts = self.sub.wait("every window is predicted", |_| {
            let records = self.sub.records("p/x");
            (records.len() >= all)
                .then(|| records.iter().map(|(p, _)| p["in_seq"][0].as_u64().expect("seq")).collect::<Vec<_>>())
        });
        let jumps = firsts.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count();
        assert!(firsts.windows(2).all(|pair| pair[0] < pair[1]), "in order, none doubled");
        assert_eq!((firsts.len(), jumps), (all, starts - 1), "none lost");
    }

    fn slot_now(&self) -> Value {
        let messages = self.sub.messages();
        let last = messages.iter().rev().find(|m| m.stream == "p/x").expect("a prediction");
        last.payload["lineage"].clone()
    }
}

#[test]
fn a_bundle_comes_by_mqtt_alone_is_proven_tried_and_kept_and_a_bad_one_is_rolled_back() {
    let mut world = World::new("");
    let daemon = world.run();
    world.rows(40, 0);
    world.settled(1);
    assert_eq!(world.slot_now()["slot"], "factory");
    // The outage in the middle: half of it, another process, the rest.
    let bundle = world.maker.bundle(&Draft::mean(2));
    let (bytes, sha256) = (fs::read(&bundle).expect("bundle"), maker::sha256(&bundle));
    world.operator.order(&world.sub, "model.install", "good", &json!({"sha256": sha256, "size": bytes.len()}));
    let missing = |world: &World| {
        world.sub.wait("what is missing", |messages| {
            let told = messages.iter().rev().find(|m| m.stream == format!("blob/{sha256}"))?;
            told.payload["data"][0]["missing"][0][0].as_u64()
        }) as usize
    };
    assert_eq!(missing(&world), 0);
    world.operator.chunks(&sha256, &bytes, 0..bytes.len() / 2, 1000);
    let half = world.site.state().join("models/incoming").join(&sha256);
    eventually("half of it is there", || (half.metadata().ok()?.len() as usize >= bytes.len() / 2).then_some(()));
    assert_eq!(daemon.stop(), Some(0));
    let daemon = world.run();
    let from = world.sub.wait("what is missing after the restart", |messages| {
        let told = messages.iter().rev().find(|m| m.stream == format!("blob/{sha256}"))?;
        told.payload["data"][0]["missing"][0][0].as_u64().filter(|from| *from > 0)
    }) as usize;
    assert!(from >= bytes.len() / 2, "{from}");
    // A hole is answered with what is missing, and what came twice is taken once.
    world.operator.chunks(&sha256, &bytes, from + 100..from + 200, 100);
    world.operator.chunks(&sha256, &bytes, from - 50..bytes.len(), 3000);
    let ended = world.rows_until_end("good", 0);
    assert_eq!(ended["state"], "success", "{ended}");
    world.settled(2);
    let lineage = world.slot_now();
    assert_eq!(
        (&lineage["slot"], &lineage["model"], &lineage["unsigned"]),
        (&json!("a"), &json!("mean@1.2.0"), &json!(false))
    );

    // The same way, and bad: no number once it is on trial.
    world.install("bad", &world.maker.bundle(&Draft::new(3, &onnx::nan_above_100(&SHAPE), 4.5)));
    let ended = world.rows_until_end("bad", 200);
    assert_eq!(ended["state"], "rolled_back", "{ended}");
    world.settled(2);
    assert_eq!(world.slot_now()["model"], "mean@1.2.0");
    // What serves is the same after a start.
    assert_eq!(daemon.stop(), Some(0));
    let daemon = world.run();
    world.rows(10, 0);
    world.sub.wait("a prediction of the next process", |m| {
        let now = m.iter().rev().find(|m| m.stream == "p/x")?;
        (now.payload["lineage"]["slot"] == "a").then_some(())
    });
    assert_eq!(daemon.stop(), Some(0));
}

/// A validly signed bundle that must not stay; returns how it ended and how long after the first bad window.
#[track_caller]
fn bad(name: &str, draft: &Draft, models: &str, expected: &str, words: &str) {
    let mut world = World::new(models);
    let mut daemon = world.run();
    world.rows(30, 0);
    world.install("bad", &world.maker.bundle(draft));
    let began = Instant::now();
    let ended = world.rows_until_end("bad", 200);
    let took = began.elapsed();
    assert_eq!(ended["state"], expected, "{name}: {ended}");
    assert!(ended["text"].as_str().is_some_and(|text| text.contains(words)), "{name}: {ended}");
    measured(&format!("{name}: {expected} {:.1} s after its last chunk", took.as_secs_f64()));
    assert!(took < Duration::from_secs(30));
    assert!(daemon.is_alive());
    // The sensors never stopped, and every window has an answer of the model before or of this one.
    world.rows(20, 0);
    let all = world.rows - 3;
    world.sub.wait("every window is predicted", |_| (world.sub.records("p/x").len() as u64 >= all).then_some(()));
    assert_eq!(world.slot_now()["slot"], "factory");
    // It is not tried again: no loop.
    let again = world.maker.path("again.kmb");
    fs::copy(world.bundle_in_store(), &again).ok();
    assert_eq!(daemon.stop(), Some(0));
}

impl World {
    fn bundle_in_store(&self) -> PathBuf {
        let folder = self.site.state().join("models/bundles");
        fs::read_dir(folder).expect("store").flatten().map(|e| e.path()).next().unwrap_or_default()
    }
}

#[test]
fn a_model_that_answers_no_number_is_rolled_back() {
    bad("NaN", &Draft::new(2, &onnx::nan_above_100(&SHAPE), 4.5), "", "rolled_back", "not_finite");
}

#[test]
fn a_model_that_answers_the_same_to_everything_is_rolled_back() {
    bad(
        "constant",
        &Draft::new(2, &onnx::constant_5(&SHAPE), 5.0),
        "trial_s = 1\ntrial_windows = 2000\n",
        "rolled_back",
        "whatever it is asked",
    );
}

#[test]
fn a_model_that_hangs_is_rolled_back_at_its_deadline() {
    bad("hang", &Draft::new(2, &onnx::hang_above_100(&SHAPE), 4.5), "", "rolled_back", "deadline");
}

#[test]
fn a_model_that_crashes_its_worker_is_rolled_back() {
    bad("crash", &Draft::new(2, &onnx::crash_above_100(&SHAPE), 4.5), "", "rolled_back", "signal");
}

#[test]
fn a_model_that_wants_all_memory_is_rolled_back() {
    bad("memory bomb", &Draft::new(2, &onnx::bomb_above_100(&SHAPE), 4.5), "", "rolled_back", "run_failed");
}

#[test]
fn a_model_of_another_shape_is_refused_before_it_serves() {
    bad("wrong shape", &Draft::new(2, &onnx::mean(&[1, 5, 2]), 4.5), "", "failed", "4 rows × 2 channels");
}

#[test]
fn a_model_for_another_board_is_refused_before_it_serves() {
    let draft = Draft::mean(2).with("device_class", json!(["jetson-orin"]));
    bad("wrong device", &draft, "", "failed", "jetson-orin");
}

#[test]
fn a_model_that_does_not_answer_as_it_must_is_refused_before_it_serves() {
    bad("golden", &Draft::new(2, &onnx::mean_plus_50(&SHAPE), 4.5), "", "failed", "golden case 1");
}
