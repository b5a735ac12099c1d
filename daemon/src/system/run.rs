//! The whole system on one screen: which stages there are, what lies between them, and how it stops.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::StreamExt;
use tokio::sync::watch;

use crate::{
    bus,
    config::Config,
    control::{self, Control, Leave},
    error::{Context, Fatal},
    flow::{Sink, SourceId, event::Kind, lane, verdict::Serving},
    host::{Clock, Host, Scribe, notify},
    infer::{self, rollout::Rollout},
    limits, link,
    model::{rollout, store::Store},
    outbox::Outbox,
    output,
    report::{health, metrics},
    signal, source,
};

use super::{connect, crew::Crew, retained::Gone, streams::Table};

/// How a run ended, where nothing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// On a signal, by D-Bus, or by a command: the process ends.
    Stopped,
    /// Another configuration is to be used: the next run begins.
    Reload,
}

/// Runs the daemon until `stop` names a reason, or a command does. Data walks down this function, orders walk up.
pub async fn run(
    host: &Host,
    config: Config,
    stop: &mut (impl Future<Output = String> + Unpin),
) -> Result<Ending, Fatal> {
    notify::status("starting");
    let state = &config.device.state_dir;
    let lock = host.lock_state(state)?; // one daemon for each state directory
    let mut table = Table::new(&config);
    let gone = Gone::find(state, &config, &mut table); // retained at the broker, not configured any more
    let scribe = Scribe::default(); // the one who waits for the disk when a small file is written
    let keeps = host.keeps(state, &scribe);
    let times = host.times(state);
    let Outbox { writer, reader, committer, reports } = Outbox::open(host.outbox(&config, &table)); // the store comes later
    let counters = Arc::new(health::Counters::default());
    let (meters, board) = connect::meters(&config);
    let status = host.status(&config, (&meters, &board), &counters, &writer);
    let mut crew = Crew::default();
    crew.scribe(host, &scribe, (state, times), &counters)?;
    let mut events = writer.clone();
    let event = |kind, subject: &str, text: &str| vec![table.events.draft(kind, host.clock.now(), subject, text)];
    events.put(&mut event(Kind::Boot, "kentledge", concat!("version ", env!("CARGO_PKG_VERSION"))));
    reports.iter().for_each(|(kind, why)| events.put(&mut event(*kind, "store", why)));
    lock.trouble.iter().for_each(|why| events.put(&mut event(Kind::DiskFailed, "state", why)));
    config
        .set_aside
        .iter()
        .chain(&config.not_provisioned)
        .for_each(|why| events.put(&mut event(Kind::ConfigSetAside, "config", why)));

    events.put(&mut gone.records(host.clock.now()));
    // the runtime itself: whatever else hangs or is not configured, it must come round
    crew.task("runtime", |beat| async move { beat.during(std::future::pending()).await });

    // frames: full, it waits 50 ms and then sheds its oldest, counted
    let (frames_tx, frames) = lane::lane(lane::Bounds {
        items: limits::FRAME_BATCHES,
        bytes: limits::FRAME_LANE_BYTES,
        patience: Some(limits::LANE_PATIENCE),
    });
    let (shed, lots) = (Shed::default(), config.lots()); // one that floods delays no other
    for (i, port) in config.sources.iter().enumerate() {
        let source = SourceId(i as u16);
        let outlet = |beat| source::Outlet {
            source,
            clock: host.clock.clone(),
            frames: frames_tx.of_lot(lots[i]),
            shed: shed.counter(),
            beat,
        };
        crew.task(&format!("source {}", port.name), |beat| source::run(port.port.clone(), outlet(beat)));
    }
    // A device without sources runs on as well: it is there to be managed.
    let idle = config.sources.is_empty().then_some(frames_tx);

    // windows: one lane and one worker for each model; full, it waits 50 ms, then sheds its oldest into the loss ledger
    let (store, damaged) = Store::open(state); // which bundle serves, of those installed
    let (installed, trouble) = connect::installed(&config, &store);
    damaged.iter().chain(&trouble).for_each(|why| events.put(&mut event(Kind::StoreDamaged, "models", why)));
    let (desk, inbox) = rollout::desk(); // between control and the engines, where a model is rolled out
    let (mut lanes, mut rollout) = (BTreeMap::new(), Rollout::new(inbox));
    for (i, group) in infer::groups(&config).into_iter().enumerate() {
        let (windows_tx, windows) = lane::lane(lane::Bounds {
            items: limits::WINDOWS,
            bytes: limits::WINDOW_LANE_BYTES,
            patience: Some(limits::LANE_PATIENCE),
        });
        lanes.extend(group.iter().enumerate().map(|(lot, pipeline)| (*pipeline, windows_tx.of_lot(lot))));
        let setup = connect::engine(host, &config, &table, &group, Some(keeps.clone()), (&meters, &board));
        let installed = installed.get(&config.pipelines[group[0]].model.manifest.model).cloned();
        let engine = infer::Engine::new(infer::Setup { installed, seat: Some(rollout.seat()), ..setup });
        let (sink, clock, counters) = (writer.clone(), host.clock.clone(), counters.clone());
        crew.thread(&format!("infer {i}"), move |beat| {
            let tell = |serving: Option<&Serving>, lost| counters.model(i, serving, lost);
            infer::run(engine, windows, || clock.now(), sink, || beat.beat(), tell);
            Ok(())
        })
        .context("start a thread")?;
    }

    drop(installed); // a large model must not stay in memory after another one took its place

    // signal: between the two; what it makes for the broker waits for room in the outbox
    let tap = crew.ring(host, &config, &board)?; // and keeps the last minute for tapes of alarms
    let (stage, sink, lanes, count) = (
        signal::Signal::new(&config, table.signal.clone(), meters.clone()),
        writer.clone(),
        lanes.into_values().collect(),
        counters.clone(),
    );
    crew.thread("signal", move |beat| {
        signal::run(
            stage,
            signal::Inlet { frames, shed: || shed.take(), tap },
            lanes,
            sink,
            Clock::boot_ns,
            |waiting| {
                beat.beat();
                count.frames_waiting.store(waiting as u64, Ordering::Relaxed);
            },
        );
        Ok(())
    })
    .context("start a thread")?;

    // outputs: alarms to lines, by a bell; a process of its own holds them
    let stop_outputs = Arc::new(AtomicBool::new(false));
    let setup = host.outputs(&config, &board, &crew);
    if setup.outputs.is_empty() {
        output::release(&setup.socket);
    } else {
        let stop = stop_outputs.clone();
        crew.thread("outputs", move |beat| {
            output::run(setup, || stop.load(Ordering::Relaxed), || beat.beat());
            Ok(())
        })
        .context("start a thread")?;
    }

    // outbox: RAM and disk; link: from there to the broker
    let close_outbox = committer.closer();
    let around = host.around(table.events.clone(), meters.clone());
    crew.thread("outbox", move |beat| committer.run(around(beat))).context("start a thread")?;
    let (stop_link, link_stop) = watch::channel(false);
    let (lines, mut ends) = connect::lines(&config); // orders from the broker to control, and back
    if let Some(edges) = ends.edges.take() {
        let setup = host.link(&config, reader, &writer, &table, &status, (&ends, gone.topics()));
        crew.task("link", |beat| link::run(setup, edges, link_stop, beat));
    }
    tokio::spawn(gone.settle(ends.news.subscribe())); // ends with the run
    let (stop_health, clock) = (crew.health(host, &config, &table, status.clone())?, host.clock.clone());
    if let Some(address) = config.metrics.listen {
        crew.task("metrics", |beat| metrics::serve(address, status.clone(), beat));
    }
    if let Some(bus) = config.device.bus.clone() {
        crew.task("bus", |beat| bus::serve(bus, connect::shown(&status, &ends), beat));
    }

    // control: last, for it takes up what the last run left, and that all stages started is a part of it
    rollout.start(host, &config, keeps, crew.beats.add("prove"))?;
    let setup = host.control(config, &table, &writer, status, lines, desk);
    let control = Control::new(control::Setup { ran_before: lock.ran_before, ..setup }, store);
    crew.thread("control", move |beat| {
        control.run(|| beat.beat());
        Ok(())
    })
    .context("start a thread")?;

    notify::ready("started");
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "running");
    let mut ending = Ending::Stopped;
    let reason = tokio::select! {
        reason = stop => Ok(reason),
        Some(leave) = ends.leave.recv() => {
            ending = if leave == Leave::Reload { Ending::Reload } else { Ending::Stopped };
            Ok(if leave == Leave::Reload { "another configuration is to be used" } else { "a restart was requested" }.into())
        }
        end = crew.first_end() => Err(format!("{}: {}", end.name, end.result.err().unwrap_or_else(|| "it ended".into()))),
    };

    // The stop: doors close from left to right, and each queue empties into the next.
    let why = reason.as_ref().unwrap_or_else(|why| why);
    tracing::info!("stopping: {why}");
    match ending {
        Ending::Stopped => notify::stopping(&format!("draining: {why}")),
        // The stages do not report until they are drained and restarted.
        Ending::Reload => notify::watchdog(),
    }
    events.put(&mut vec![table.events.draft(Kind::Stopping, clock.now(), "kentledge", why)]);
    drop((stop_health, idle));
    stop_outputs.store(true, Ordering::Relaxed);
    for edge in ["runtime", "source", "bus", "metrics"] {
        crew.abort(edge);
    }
    let mut wrong = crew
        .join(&["runtime", "source", "outputs", "signal", "ring", "infer", "health", "bus", "metrics"], limits::DRAIN)
        .await;
    let _ = stop_link.send(true);
    wrong.extend(crew.join(&["link"], limits::DRAIN_LINK * 2).await);
    drop(ends);
    wrong.extend(crew.join(&["control"], limits::DRAIN).await);
    close_outbox();
    scribe.close();
    let opening = events.stats().opening; // what is in RAM goes into the store once it is open
    let most = if opening { limits::DRAIN_OPENING } else { limits::DRAIN };
    wrong.extend(crew.join(&["outbox", "scribe"], most).await);
    wrong.extend(reason.err());
    if wrong.is_empty() { Ok(ending) } else { Err(Fatal::failed(wrong.join("; "))) }
}

/// Ends with the name of the first signal that asks for the stop.
pub fn signals() -> Result<impl Future<Output = String>, Fatal> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook_tokio::Signals::new([SIGTERM, SIGINT, SIGHUP]).context("listen for signals")?;
    Ok(async move {
        match signals.next().await {
            Some(SIGTERM) => "SIGTERM".into(),
            Some(SIGINT) => "SIGINT".into(),
            Some(SIGHUP) => "SIGHUP".into(),
            other => format!("signal {other:?}"),
        }
    })
}

/// Frames that the lane shed, between the ports that met it and the stage that tells it.
#[derive(Clone, Default)]
struct Shed(Arc<Mutex<BTreeMap<SourceId, u64>>>);

impl Shed {
    fn counter(&self) -> Arc<dyn Fn(SourceId, u64) + Send + Sync> {
        let shed = self.0.clone();
        Arc::new(move |source, frames| {
            *shed.lock().unwrap_or_else(PoisonError::into_inner).entry(source).or_default() += frames;
        })
    }

    fn take(&self) -> Vec<(SourceId, u64)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect()
    }
}
