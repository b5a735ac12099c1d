//! Those who look at the daemon: systemd and `up/h` (health), Prometheus, and D-Bus, which also takes requests.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use super::{super::crew::Crew, Base, EdgeEnds};
use crate::{
    bus,
    control::{Leave, Local},
    error::Fatal,
    report::{health, metrics},
};

impl Base<'_> {
    /// Starts health, and the others where they are configured. Health ends when the result is dropped.
    pub fn looks(&self, crew: &mut Crew, ends: &EdgeEnds) -> Result<mpsc::Sender<()>, Fatal> {
        if let Some(address) = self.config.metrics.listen {
            crew.task("metrics", |beat| metrics::serve(address, self.status.clone(), beat));
        }
        if let Some(bus) = self.config.device.bus.clone() {
            crew.task("bus", |beat| bus::serve(bus, self.shown(ends), beat));
        }
        self.health(crew)
    }

    fn health(&self, crew: &mut Crew) -> Result<mpsc::Sender<()>, Fatal> {
        let setup = health::Reporter {
            stream: self.table.health,
            every: Duration::from_secs(self.config.metrics.interval_s),
            beats: crew.beats.clone(),
            status: self.status.clone(),
        };
        let (stop, stopped) = mpsc::channel();
        let clock = self.host.clock.clone();
        let wait = move |most| stopped.recv_timeout(most) != Err(mpsc::RecvTimeoutError::Timeout);
        crew.thread("health", move |beat| {
            health::run(setup, || clock.now(), &beat, wait);
            Ok(())
        })?;
        Ok(stop)
    }

    /// What D-Bus shows and does.
    fn shown(&self, ends: &EdgeEnds) -> bus::Shown {
        let (status, restart) = (self.status.clone(), ends.restart.clone());
        let (install, roll_back) = (ends.local.clone(), ends.local.clone());
        let busy = |_| bus::BusError::from("busy: the daemon has not taken up the last request yet");
        bus::Shown {
            install: Arc::new(move |fd| install.try_send(Local::Install(fd)).map_err(busy)),
            roll_back: Arc::new(move |model| roll_back.try_send(Local::RollBack(model)).map_err(busy)),
            status: Arc::new(move || status.json()),
            restart: Arc::new(move || {
                let _ = restart.try_send(Leave::Restart);
            }),
        }
    }
}
