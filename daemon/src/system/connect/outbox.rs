//! The outbox: RAM and disk.

use super::{
    super::{crew::Crew, streams::Table},
    Base,
};
use crate::{
    config::Config,
    error::Fatal,
    flow::Class,
    host::Host,
    outbox::{Around, Committer, Expiry, OpenWith},
};

/// What the outbox is opened with.
pub fn setup(host: &Host, config: &Config, table: &Table) -> OpenWith {
    const HOUR_NS: u64 = 3_600_000_000_000;
    let (outbox, now) = (&config.outbox, host.clock.now());
    let mut ages = vec![(Class::Reply, outbox.expire_reply_h), (Class::Status, outbox.expire_status_h)];
    ages.extend([Class::Score, Class::Measurement].map(|class| (class, outbox.expire_data_h)));
    let ages = ages.into_iter().filter(|(_, hours)| *hours > 0).map(|(class, hours)| (class, hours * HOUR_NS));
    OpenWith {
        state_dir: config.device.state_dir.clone(),
        boot: host.boot.clone(),
        streams: table.names.clone(),
        loss: table.loss,
        max_bytes: outbox.max_bytes,
        expiry: Expiry(ages.collect()),
        program: Some(host.program.clone()),
        now_s: now.wall_ms.unwrap_or(0).max(host.clock.floor_ms()) as u64 / 1000,
        linger_ms: outbox.linger_ms,
    }
}

impl Base<'_> {
    /// Starts the thread that owns the store. Called, what is returned closes the outbox.
    pub fn outbox(&self, crew: &mut Crew, committer: Committer) -> Result<impl FnOnce() + use<>, Fatal> {
        let close = committer.closer();
        let (events, meters, clock) = (self.table.events.clone(), self.status.meters.clone(), self.host.clock.clone());
        crew.thread("outbox", move |beat| {
            let ended = committer.run(Around {
                floor_ms: clock.floor_ms(),
                now: Box::new(move || clock.now()),
                beat: Box::new(move || beat.beat()),
                event: Box::new(move |kind, stamp, text| events.draft(kind, stamp, "store", text)),
                committed: Box::new(move |time| meters.commit.took_time(time)),
            });
            ended.map_err(|why| why.to_string())
        })?;
        Ok(close)
    }
}
