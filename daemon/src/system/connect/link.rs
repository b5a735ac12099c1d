//! The link: from the outbox to the broker.

use tokio::sync::watch;

use super::{
    super::{
        crew::Crew,
        streams::{self, Removed},
    },
    Base, EdgeEnds,
};
use crate::{
    link::{self, Topics},
    outbox::Reader,
};

impl Base<'_> {
    /// Starts the task, if a broker is configured; `gone` are topics that are not configured any more. Sending `true` stops
    /// it.
    pub fn link(&self, crew: &mut Crew, reader: Reader, ends: &mut EdgeEnds, gone: Removed) -> watch::Sender<bool> {
        let (stop, stopped) = watch::channel(false);
        if let Some(edges) = ends.link.take() {
            let setup = self.link_setup(reader, ends, gone);
            crew.task("link", |beat| link::run(setup, edges, stopped, beat));
        }
        stop
    }

    fn link_setup(&self, reader: Reader, ends: &EdgeEnds, gone: Removed) -> link::Setup {
        let (writer, events, clock) = (self.writer.clone(), self.table.events.clone(), self.host.clock.clone());
        let (counters, going_to) = (self.counters(), self.counters());
        let device = &self.config.device;
        let alarms: Vec<String> = self.config.alarms.iter().map(|alarm| alarm.name.clone()).collect();
        let pipelines = self.config.pipelines.iter().enumerate().filter(|(_, pipeline)| pipeline.escalate.is_some());
        let escalating: Vec<_> = pipelines.map(|(place, pipeline)| (pipeline.name.clone(), place)).collect();
        let board = self.board();
        link::Setup {
            orders: ends.orders.clone(),
            news: ends.news.clone(),
            meters: self.status.meters.clone(),
            board: self.board(),
            topics: Topics::new(&device.site, &device.id, &device.cohorts)
                .with_plans(self.config.commands.plans)
                .escalating(!escalating.is_empty()),
            escalating,
            announce: streams::announce(self.host, self.config, &counters, gone),
            reader,
            clock: self.host.clock.clone(),
            backlog_kib_s: self.config.outbox.backlog_kib_s,
            tell: Box::new(move |kind, text| {
                writer.put_now(events.draft(kind, clock.now(), "link", text));
            }),
            going_to: Box::new(move |broker| going_to.going_to(broker)),
            note: Box::new(move |text| counters.link(text)),
            raised: Box::new(move |stream| {
                let name = stream.strip_prefix("a/")?;
                let place = alarms.iter().position(|alarm| alarm == name);
                // One that is not configured any more is not raised.
                Some(place.is_some_and(|place| board.alarms[place].shown().episode.is_some()))
            }),
        }
    }
}
