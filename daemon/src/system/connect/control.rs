//! Control: what it works with, and its thread.

use std::sync::Arc;

use super::{super::crew::Crew, Base, ControlEnds};
use crate::{
    control::{self, Effects, Machine, Slots, Trials},
    error::Fatal,
    flow::samples,
    host::{Keep, log, logind, rauc},
    link,
    model::{rollout::Desk, store::Store},
};

impl Base<'_> {
    /// Starts the thread. It takes up what the last run left.
    pub fn control(
        &self,
        crew: &mut Crew,
        ends: ControlEnds,
        (rollout, store): (Desk, Store),
        samples: Option<samples::Desk>,
        ran_before: bool,
    ) -> Result<(), Fatal> {
        let setup = control::ControlSetup { samples, ..self.control_setup(ends, rollout, ran_before) };
        let control = Effects::new(setup, store);
        crew.thread("control", move |beat| {
            control.run(|| beat.beat());
            Ok(())
        })
    }

    fn control_setup(&self, ends: ControlEnds, rollout: Desk, ran_before: bool) -> control::ControlSetup {
        let ControlEnds { orders, responses, settled, wanted, news, leave, local } = ends;
        let state = &self.config.device.state_dir;
        let (writer, counters, shown) = (self.writer.clone(), self.counters(), self.counters());
        control::ControlSetup {
            config: self.config.clone(),
            clock: self.host.clock.clone(),
            boot: self.host.boot.clone(),
            process: self.host.process.clone(),
            keep: Keep::at(state.join("control")),
            ran_before,
            trials: Trials::open(state),
            audit: control::audit::Log::at(state),
            show_audit: Box::new(move |head| shown.show_audit(head.seq, &head.sha256)),
            orders,
            streams: (self.table.results, self.table.reported),
            blob: self.table.blob,
            events: self.table.events.clone(),
            put: Box::new(move |draft| writer.put_now(draft)),
            settled: Box::new(move |ticket| {
                // It has room for as many tickets as there are orders; without a link they are not needed.
                let _ = settled.try_send(ticket);
            }),
            respond: Box::new(move |response| {
                if responses.try_send(response).is_err() {
                    tracing::warn!("drop a response: the queue of responses to the link is full");
                }
            }),
            link: news,
            want: Box::new(move |mqtt, generation, wait_most| {
                if let Some(wanted) = &wanted {
                    wanted.send_replace(link::Wanted { mqtt, generation, wait_most });
                }
            }),
            meters: self.status.meters.clone(),
            board: self.board(),
            machine: self.machine(),
            rollout,
            samples: None,
            local,
            show_models: Box::new(move |models| counters.show_slots(models)),
            slots: self.slots(),
            leave: Box::new(move |how| {
                let _ = leave.try_send(how);
            }),
        }
    }

    fn machine(&self) -> Machine {
        let (bus, runtime) = (self.config.device.bus.clone(), tokio::runtime::Handle::current());
        let status = self.status.clone();
        Machine {
            reboot: Box::new(move || {
                let bus = bus.as_deref().ok_or("restart the system: there is no D-Bus (device.bus = \"off\")")?;
                runtime.block_on(logind::reboot(bus))
            }),
            log: Box::new(log::pull),
            status: Box::new(move || status.json()),
        }
    }

    /// The slots of the system, by RAUC.
    fn slots(&self) -> Slots {
        let (bus, runtime) = (self.config.device.bus.clone(), tokio::runtime::Handle::current());
        let (counters, serving) = (self.counters(), self.counters());
        Slots {
            slot: rauc::slot(),
            version: rauc::version(),
            good: Box::new(rauc::marked_good),
            write: Arc::new(move |path, tell| {
                let bus = bus.as_deref().ok_or("ask RAUC: there is no D-Bus (device.bus = \"off\")")?;
                let serving = serving.all_serving().into_iter().map(|serving| (serving.model, serving.provider));
                runtime.block_on(rauc::install(bus, path, &serving.collect::<Vec<_>>(), tell))
            }),
            show: Box::new(move |system| counters.show_system(system)),
        }
    }
}
