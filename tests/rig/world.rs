//! A device of a release and all who deal with its models: it believes one key for commands and one for models, and has a
//! signed model in its read-only root.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    Daemon, Maker, Mosquitto, Operator, Site, Sub, Tty, eventually,
    maker::{self, Draft},
    operator::states,
};

/// A device with a signed model in its read-only root, and those who may send it others.
pub struct World {
    pub broker: Mosquitto,
    pub tty: Tty,
    pub sub: Sub,
    pub operator: Operator,
    pub maker: Maker,
    pub site: Site,
    /// Rows sent so far.
    pub rows: u64,
}

impl World {
    pub fn new(models: &str) -> Self {
        Self::on(models, None)
    }

    /// The same with its state elsewhere.
    pub fn on(models: &str, state: Option<&Path>) -> Self {
        let (broker, tty) = (Mosquitto::start(), Tty::default());
        let (sub, operator, maker) = (Sub::new(broker.port), Operator::new(broker.port, "ops"), Maker::new("release"));
        let mut site = Site::new(broker.port).with_sensor(&tty);
        if let Some(state) = state {
            site = site.with_state(state);
        }
        let dir = site.dir.path().to_owned();
        let keys = [operator.key(&["command", "keyset"]), maker.key(&["model"])];
        let keyset = maker::keyset(&dir, 1, &keys, &json!({}));
        let factory = dir.join("factory.kmb");
        fs::copy(maker.bundle(&Draft::mean(1)), &factory).expect("copy");
        let site = site
            .with_models(if models.is_empty() { "trial_s = 1\ntrial_windows = 20\n" } else { models })
            .with(&format!("[commands]\nkeyset = \"{}\"\njitter_s = 0\n", keyset.display()))
            .with("[pipeline.x]\nmodel = \"factory.kmb\"\nchannels = [\"a\", \"b\"]\n");
        Self { broker, tty, sub, operator, maker, site, rows: 0 }
    }

    #[track_caller]
    pub fn run(&self) -> Daemon {
        let daemon = self.site.run();
        let serving = || daemon.own_log().contains("serving mean@").then_some(());
        eventually("a model serves", serving);
        self.sub.wait_state("online");
        daemon
    }

    /// Sends rows whose windows differ, with values from `base`.
    pub fn rows(&mut self, n: u64, base: u64) {
        self.tty.rows(self.rows..self.rows + n, |i| format!("{i},{},{}", base + i % 7, base + i % 5));
        self.rows += n;
    }

    /// Sends rows until the command came to its end.
    #[track_caller]
    pub fn rows_until_end(&mut self, id: &str, base: u64) -> Value {
        let until = Instant::now() + Duration::from_secs(40);
        loop {
            self.rows(10, base);
            let records = self.sub.records(&format!("res/model.install/{id}"));
            let done = |r: &&(Value, bool)| !["accepted", "running"].contains(&r.0["state"].as_str().unwrap_or(""));
            if let Some((record, _)) = records.iter().find(done) {
                return record.clone();
            }
            let states = states(&self.sub, "model.install", id);
            let blob = |m: &&std::sync::Arc<crate::Message>| m.stream.starts_with("blob/");
            let seen = self.sub.messages().iter().rev().find(blob).map(|m| m.payload["data"].to_string());
            assert!(Instant::now() < until, "no end of {id}: {states:?}; what was missing last: {seen:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Orders a bundle and sends its chunks by MQTT.
    pub fn install(&self, id: &str, bundle: &Path) {
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
    pub fn settled(&self, starts: usize) {
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

    pub fn slot_now(&self) -> Value {
        let messages = self.sub.messages();
        let last = messages.iter().rev().find(|m| m.stream == "p/x").expect("a prediction");
        last.payload["lineage"].clone()
    }
}
