//! The engines: one for each group of pipelines that share a model, and what serves there at the start.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    super::{crew::Crew, streams::Table},
    Base,
};
use crate::{
    config::{self, Config},
    control,
    error::Fatal,
    flow::{Finished, Window, board::Board, lane, meter::Meters, verdict::Serving},
    host::Host,
    infer::{
        self, Artifact, Engine, Keeps, Launching, Served,
        escalate::{Escalation, Parts},
        rollout::Rollout,
    },
    limits,
    model::{slot::Origin, store::Store},
};

/// What serves each model at the start where that is not the configured model, and why a slot was skipped.
pub fn installed(config: &Config, store: &Store) -> (BTreeMap<String, Artifact>, Vec<String>) {
    let (mut installed, mut trouble) = (BTreeMap::new(), Vec::new());
    for (model, _) in store.shelf.lines() {
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
    host: &Host,
    config: &Config,
    table: &Table,
    group: &[usize],
    keeps: Option<Keeps>,
    (meters, board): (&Arc<Meters>, &Arc<Board>),
) -> infer::Setup {
    let served = group.iter().map(|pipeline| {
        let streams = (table.signal.prediction[*pipeline], table.drift[*pipeline], table.shadow[*pipeline]);
        let index = *pipeline as u16;
        Served::new(index, config, streams, &table.alarms, &host.boot, keeps.clone(), (meters.clone(), board.clone()))
    });
    infer::Setup {
        launching: Launching::new(host, config, group, keeps.as_ref()),
        installed: None,
        served: served.collect(),
        events: table.events.clone(),
        patient: keeps.is_none(),
        seat: None,
    }
}

/// Between the stage that makes windows and the engines.
pub struct Windows {
    /// By pipeline: where its windows go.
    pub lanes: Vec<lane::Sender<Window>>,
    /// By engine: its pipelines, and where their windows come.
    pub groups: Vec<(Vec<usize>, lane::Receiver<Window>)>,
}

impl Base<'_> {
    /// What sends unsure windows of this pipeline to a larger model, if that is configured.
    fn escalation(&self, keeps: &Keeps, pipeline: usize) -> Option<Escalation> {
        let (config, boot, stream) = (self.config, self.host.boot.as_str(), self.table.cloud[pipeline]?);
        let (meters, board) = (self.status.meters.clone(), self.status.board.clone());
        Escalation::new(Parts { config, boot, stream, keep: keeps.escalation.clone(), meters, board }, pipeline)
    }

    /// Lanes of windows, one for each group. A full lane waits 50 ms, then sheds its oldest windows into the loss ledger.
    pub fn windows(&self) -> Windows {
        let (mut lanes, mut groups) = (BTreeMap::new(), Vec::new());
        for group in config::groups(self.config) {
            let (sender, windows) = lane::lane(lane::Bounds {
                items: limits::WINDOWS,
                bytes: limits::WINDOW_LANE_BYTES,
                patience: Some(limits::LANE_PATIENCE),
            });
            lanes.extend(group.iter().enumerate().map(|(lot, pipeline)| (*pipeline, sender.of_lot(lot))));
            groups.push((group, windows));
        }
        Windows { lanes: lanes.into_values().collect(), groups }
    }

    /// Starts a thread for each group.
    pub fn engines(
        &self,
        crew: &mut Crew,
        keeps: &Keeps,
        groups: Vec<(Vec<usize>, lane::Receiver<Window>)>,
        installed: BTreeMap<String, Artifact>,
        rollout: &mut Rollout,
        samples: Option<&lane::Sender<Finished>>,
    ) -> Result<(), Fatal> {
        for (i, (group, windows)) in groups.into_iter().enumerate() {
            let shown = (&self.status.meters, &self.status.board);
            let mut setup = engine(self.host, self.config, self.table, &group, Some(keeps.clone()), shown);
            let served = std::mem::take(&mut setup.served).into_iter().map(|served| {
                let escalation = self.escalation(keeps, usize::from(served.index()));
                served.with_samples(samples.cloned()).with_escalation(escalation)
            });
            setup.served = served.collect();
            let installed = installed.get(&self.config.pipelines[group[0]].model.manifest.model).cloned();
            let engine = Engine::new(infer::Setup { installed, seat: Some(rollout.seat()), ..setup });
            let (sink, clock, counters) = (self.writer.clone(), self.host.clock.clone(), self.counters());
            crew.thread(&format!("infer {i}"), move |beat| {
                let tell = |serving: Option<&Serving>, lost| counters.model(i, serving, lost);
                infer::run(engine, windows, || clock.now(), sink, || beat.beat(), tell);
                Ok(())
            })?;
        }
        Ok(())
    }
}
