//! The engines: one for each group of pipelines that share a model, and what serves there at the start.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    config::Config,
    control,
    flow::{board::Board, meter::Meters},
    host::Host,
    infer::{self, Artifact, Keeps, Launching, Served},
    model::{slot::Origin, store::Store},
};

use super::super::streams::Table;

/// What serves each model at the start where that is not the configured model, and why a slot was skipped.
pub fn installed(config: &Config, store: &Store) -> (BTreeMap<String, Artifact>, Vec<String>) {
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
    host: &Host,
    config: &Config,
    table: &Table,
    group: &[usize],
    keeps: Option<Keeps>,
    (meters, board): (&Arc<Meters>, &Arc<Board>),
) -> infer::Setup {
    let served = group.iter().map(|pipeline| {
        let streams = (table.signal.prediction[*pipeline], table.drift[*pipeline]);
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
