//! The whole system on one screen: which stages there are, what lies between them, and how it stops. `connect` builds each
//! stage.

use std::{future::Future, sync::atomic::Ordering};

use crate::{
    config::Config,
    control::Leave,
    error::Fatal,
    flow::event::Kind,
    host::{Host, Scribe, notify},
    infer::rollout::Rollout,
    limits,
    model::{rollout, store::Store},
    outbox::Outbox,
};

use super::{
    connect::{self, Base},
    crew::Crew,
    retained::Gone,
    streams::Table,
};

/// How a run ended, where nothing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// On a signal, by D-Bus, or by a command: the process ends.
    Stopped,
    /// Another configuration is to be used: the next run begins.
    Reload,
}

/// Runs the daemon until `stop` names a reason, or a command does. Data walks down this function, orders walk up.
///
/// # Errors
/// A stage cannot be started, ended before the stop, or did not end in time.
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
    let (keeps, times) = (connect::keeps(state, &scribe), connect::times(host, state));
    let opened = Outbox::open(connect::outbox_setup(host, &config, &table)); // the store comes later
    let Outbox { writer, reader, committer, reports } = opened;
    let status = connect::status(host, &config, &writer);
    let base = Base { host, config: &config, table: &table, writer: &writer, status: &status };
    let mut crew = Crew::default();
    base.scribe(&mut crew, &scribe, times)?;
    base.event(Kind::Boot, "kentledge", concat!("version ", env!("CARGO_PKG_VERSION")));
    reports.iter().for_each(|(kind, why)| base.event(*kind, "store", why));
    lock.trouble.iter().for_each(|why| base.event(Kind::DiskFailed, "state", why));
    let set_aside = config.set_aside.iter().chain(&config.not_provisioned);
    set_aside.for_each(|why| base.event(Kind::ConfigSetAside, "config", why));
    base.put(gone.records(host.clock.now()));
    // the runtime itself: whatever else hangs or is not configured, it must come round
    crew.task("runtime", |beat| async move { beat.during(std::future::pending()).await });

    // sources ─ frames ─▶ signal
    let connect::Windows { lanes: windows, groups } = base.windows();
    let connect::Frames { lane: frames, shed, idle } = base.sources(&mut crew, &windows);

    // signal ─ windows ─▶ infer: a worker for each model
    let (store, damaged) = Store::open(state); // which bundle serves, of those installed
    let (installed, trouble) = connect::installed(&config, &store);
    damaged.iter().chain(&trouble).for_each(|why| base.event(Kind::StoreDamaged, "models", why));
    let (desk, inbox) = rollout::desk(); // control ─ prove, offer, roll back ─▶ infer
    let mut rollout = Rollout::new(inbox);
    let (samples, finished) = base.samples(&mut crew)?; // windows that are kept, and pulls: asked by control
    base.engines(&mut crew, &keeps, groups, installed, &mut rollout, finished.as_ref())?;
    drop(finished);
    let tap = base.ring(&mut crew)?; // the last minute of all frames, for tapes of alarms
    base.signal(&mut crew, &keeps, (frames, shed), tap, windows)?;

    // signal, infer ─ bell ─▶ outputs ─▶ guard: alarms to lines
    let stop_outputs = base.outputs(&mut crew)?;

    // all of them ─ records ─▶ outbox ─ cursor ─▶ link ─▶ broker
    let close_outbox = base.outbox(&mut crew, committer)?;
    let (control_ends, mut ends) = connect::ends(&config); // link ─ orders ─▶ control, and results back
    let stop_link = base.link(&mut crew, reader, &mut ends, gone.removed());
    tokio::spawn(gone.settle(ends.news.subscribe())); // ends with the run
    let stop_health = base.looks(&mut crew, &ends)?; // systemd, Prometheus, D-Bus

    // control: last, for it takes up what the last run left, and that all stages started is a part of it
    rollout.start(host, &config, keeps, crew.beats.add("prove"))?;
    base.control(&mut crew, control_ends, (desk, store), samples, lock.ran_before)?;

    notify::ready("started");
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "running");
    tokio::spawn(connect::release_program()); // most of the program is needed only until here
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
    match ending {
        Ending::Stopped => notify::stopping(&format!("draining: {why}")),
        // The stages do not report until they are drained and restarted.
        Ending::Reload => notify::watchdog(),
    }
    base.event(Kind::Stopping, "kentledge", why);
    drop((stop_health, idle));
    stop_outputs.store(true, Ordering::Relaxed);
    ["runtime", "source", "bus", "metrics"].iter().for_each(|edge| crew.abort(edge));
    let edges = ["runtime", "source", "outputs", "signal", "ring", "infer", "health", "bus", "metrics"];
    let mut wrong = crew.join(&edges, limits::DRAIN).await;
    let _ = stop_link.send(true);
    wrong.extend(crew.join(&["link"], limits::DRAIN_LINK * 2).await);
    drop(ends);
    wrong.extend(crew.join(&["control", "samples"], limits::DRAIN).await);
    close_outbox();
    scribe.close();
    let opening = writer.stats().opening; // what is in RAM goes into the store once it is open
    let most = if opening { limits::DRAIN_OPENING } else { limits::DRAIN };
    wrong.extend(crew.join(&["outbox", "scribe"], most).await);
    wrong.extend(reason.err());
    if wrong.is_empty() { Ok(ending) } else { Err(Fatal::failed(wrong.join("; "))) }
}
