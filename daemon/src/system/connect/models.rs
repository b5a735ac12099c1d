//! What control and the engines have of each other: workers, proofs, and the models that serve at the start.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use crate::{
    config::Config,
    control::{self, Local, News, Proof},
    error::{Context, Fatal},
    flow::{beat::Beat, meter::Meters, verdict::Verdict},
    host::{Host, beats::caught},
    infer::{self, Artifact, Keeps, Launching, Message, Offer, Served},
    limits,
    model::{manifest::Manifest, slot::Origin, store::Store},
    report::health::Counters,
};

use super::super::streams::Table;

impl Host {
    /// How the workers of one group of pipelines are started.
    pub fn launching(&self, config: &Config, group: &[usize], keeps: Option<&Keeps>) -> Launching {
        Launching {
            program: self.program.clone(),
            runtime: infer::find_runtime(config.models.runtime.as_deref()),
            models: config.models.clone(),
            pipelines: group.iter().map(|pipeline| config.pipelines[*pipeline].clone()).collect(),
            keep: keeps.map(|keeps| keeps.calibration.clone()),
        }
    }

    /// What control proves and swaps models by: each group of pipelines that uses the model starts a worker of its own for
    /// it; only when all of them are proven it is offered, and then to all.
    pub(in crate::system) fn stage(
        &self,
        config: &Config,
        engines: Engines,
        asks: mpsc::Receiver<Local>,
        counters: Arc<Counters>,
        beat: Beat,
    ) -> Result<control::Stage, Fatal> {
        let Engines { keeps, mail, news, .. } = engines;
        let (tell, config, host, mail) = (news.0.clone(), config.clone(), self.clone(), Arc::new(mail));
        let uses = |config: &Config, model: &str| -> Vec<(usize, Vec<usize>)> {
            let is_of = |group: &Vec<usize>| config.pipelines[group[0]].model.manifest.model == model;
            infer::groups(config).into_iter().enumerate().filter(|(_, group)| is_of(group)).collect()
        };
        let back = {
            let (config, mail) = (config.clone(), mail.clone());
            move |model: &str, why: &str| {
                for (group, _) in uses(&config, model) {
                    let _ = mail[group].try_send(Message::Back(why.to_owned()));
                }
            }
        };
        // One thread for all proofs, as long as control lives: a worker dies with the thread that started it.
        let (wanted, proofs) = mpsc::sync_channel::<(u64, control::What, bool)>(2);
        let newest = Arc::new(AtomicU64::new(0));
        let asked = newest.clone();
        let proving = move || {
            loop {
                beat.beat();
                let (number, what, watched) = match proofs.recv_timeout(limits::BEAT) {
                    Ok(wanted) => wanted,
                    Err(mpsc::RecvTimeoutError::Timeout) => continue,
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                };
                let model = match &what {
                    control::What::Slot(bundle, _) => bundle.release.model.clone(),
                    control::What::Factory(model) => model.clone(),
                };
                let stopped = || newest.load(Ordering::Relaxed) != number;
                // A panic is an answer too: without one control would wait for this bundle for ever.
                let proof = caught(|| {
                    prove(&config, &host, &keeps, &uses(&config, &model), (what, watched), &mail, (&stopped, &beat))
                });
                // Waits for room: control waits for this, and only for this.
                let _ = tell.send(News::Proven(number, proof));
            }
        };
        std::thread::Builder::new().name("prove".into()).spawn(proving).context("start a thread")?;
        let tell = news.0.clone();
        let prove = move |number, what, watched| {
            // What was proven until now is of no use any more.
            asked.store(number, Ordering::Relaxed);
            if wanted.try_send((number, what, watched)).is_err() {
                let _ = tell.try_send(News::Proven(number, Err("the thread that proves models is gone".into())));
            }
        };
        Ok(control::Stage {
            prove: Box::new(prove),
            back: Box::new(back),
            news,
            asks,
            show: Box::new(move |slots| counters.show_slots(slots)),
        })
    }

    /// What serves each model at the start, where that is not what the configuration names.
    pub fn installed(&self, config: &Config, store: &Store) -> (BTreeMap<String, Artifact>, Vec<String>) {
        let (mut installed, mut trouble) = (BTreeMap::new(), Vec::new());
        for (model, _) in store.lines() {
            let Some(floor) = control::floor(config, model) else { continue };
            let (serving, why) = store.serving(model, floor);
            trouble.extend(why.into_iter().map(|why| format!("{model}: {why}")));
            if let Some((id, bundle)) = serving {
                installed.insert(model.clone(), Artifact::bundle(bundle, Origin::Slot(id)));
            }
        }
        (installed, trouble)
    }

    /// The engine of one model and its pipelines. Without `keeps` it is a replay: nothing is kept, nothing is late.
    pub fn engine(
        &self,
        config: &Config,
        table: &Table,
        group: &[usize],
        keeps: Option<Keeps>,
        meters: &Arc<Meters>,
    ) -> infer::Setup {
        let patient = keeps.is_none();
        let model = config.pipelines[group[0]].model.clone();
        let launching = self.launching(config, group, keeps.as_ref());
        let served = group.iter().map(|pipeline| {
            let stream = (table.signal.prediction[*pipeline], table.drift[*pipeline]);
            let place = *pipeline as u16;
            Served::new(place, config, stream, &table.alarms, &self.boot, keeps.clone(), meters.clone())
        });
        infer::Setup {
            launching,
            served: served.collect(),
            source: Box::new(move || Artifact::factory(&model)),
            events: table.events.clone(),
            patient,
            mailbox: None,
            report: Box::new(|_, _| {}),
        }
    }
}

/// What the engines and control have of each other.
pub struct Engines {
    keeps: Keeps,
    /// What serves at the start instead of what the configuration names.
    installed: BTreeMap<String, Artifact>,
    mail: Vec<mpsc::SyncSender<Message>>,
    news: (mpsc::SyncSender<News>, mpsc::Receiver<News>),
}

impl Engines {
    /// Before the first one.
    pub fn new(keeps: Keeps, installed: BTreeMap<String, Artifact>) -> Self {
        Self { keeps, installed, mail: Vec::new(), news: mpsc::sync_channel(limits::MODEL_NEWS) }
    }

    /// The next group's engine hears from control, and reports to it.
    pub fn join(&mut self, setup: infer::Setup) -> infer::Setup {
        // The offer of a trial, its end, and the offer of what comes after it.
        let (mail, mailbox) = mpsc::sync_channel(4);
        let (group, news) = (self.mail.len(), self.news.0.clone());
        self.mail.push(mail);
        let report = move |bundle, said| {
            if news.try_send(News::Verdict(Verdict { group, bundle, said })).is_err() {
                tracing::error!(group, "drop a model's verdict: control's queue is full or closed");
            }
        };
        // Given out once: a large model must not lie in memory for ever after another took its place.
        let model = setup.launching.pipelines.first().map(|pipeline| &pipeline.model.manifest.model);
        let (mut installed, mut factory) = (model.and_then(|model| self.installed.get(model).cloned()), setup.source);
        let source = move || installed.take().map_or_else(&mut factory, Ok);
        infer::Setup { mailbox: Some(mailbox), report: Box::new(report), source: Box::new(source), ..setup }
    }
}

/// Starts and proves a worker for each group of pipelines, side by side.
fn prove(
    config: &Config,
    host: &Host,
    keeps: &Keeps,
    groups: &[(usize, Vec<usize>)],
    (what, watched): (control::What, bool),
    mail: &Arc<Vec<mpsc::SyncSender<Message>>>,
    (stopped, beat): (&dyn Fn() -> bool, &Beat),
) -> Result<Proof, String> {
    let (first, _) = groups.first().ok_or("no pipeline uses it")?;
    let source = match what {
        control::What::Slot(bundle, id) => Artifact::bundle(*bundle, Origin::Slot(id)),
        control::What::Factory(_) => Artifact::factory(&config.pipelines[groups[0].1[0]].model)?,
    };
    let scores = source.baseline.as_ref().and_then(|baseline| baseline.score.clone());
    let (mut offers, mut text) = (Vec::new(), String::new());
    for (group, pipelines) in groups {
        same_window(&config.pipelines[pipelines[0]].model.manifest, &source.manifest)?;
        let launching = host.launching(config, pipelines, Some(keeps));
        let proven = infer::prove(&launching, &source, &|| beat.beat(), stopped)?;
        if group == first {
            let (p50, p99) = proven.took_us;
            text = format!(
                "{} golden cases, p50 {p50} µs, p99 {p99} µs, {}",
                source.golden.len(),
                proven.running.describe()
            );
        }
        let terms = watched.then(|| infer::terms(&config.models, scores.clone()));
        let shadow_ns = if watched { config.models.shadow_s * 1_000_000_000 } else { 0 };
        let why = if watched { "it is on trial".to_owned() } else { "back to it".to_owned() };
        offers.push((*group, Offer { running: proven.running, terms, shadow_ns, why }));
    }
    let mail = mail.clone();
    let groups = offers.iter().map(|(group, _)| *group).collect();
    let go = move || {
        for (group, offer) in offers {
            let _ = mail[group].try_send(Message::Offer(Box::new(offer)));
        }
    };
    Ok(Proof { text, groups, go: Box::new(go) })
}

/// The windows are made before any model sees them: another one must take the same.
fn same_window(now: &Manifest, next: &Manifest) -> Result<(), String> {
    let differs =
        |name: &str, now: String, next: String| format!("its window's `{name}` is {next}, and the pipeline's is {now}");
    // What the configured model does not say, the configuration does.
    fn both<T: PartialEq + Debug>(now: &Option<T>, next: &Option<T>) -> Option<(String, String)> {
        let (now, next) = (now.as_ref()?, next.as_ref()?);
        (now != next).then(|| (format!("{now:?}"), format!("{next:?}")))
    }
    let all = [
        ("channels", both(&now.channels, &next.channels)),
        ("length", both(&now.steps, &next.steps)),
        ("hop", both(&now.hop, &next.hop)),
        ("step_ms", both(&now.step_ms, &next.step_ms)),
        ("gap_max_ms", both(&now.gap_max_ms, &next.gap_max_ms)),
    ];
    match all.into_iter().find_map(|(name, pair)| pair.map(|(now, next)| differs(name, now, next))) {
        Some(why) => Err(why),
        None => Ok(()),
    }
}
