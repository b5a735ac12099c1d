//! The queues between control and the edges of the daemon (the link, D-Bus, the process): both ends of each.

use std::sync::mpsc;

use tokio::sync::watch;

use crate::{
    config::Config,
    control::{Leave, Local, Trials},
    flow::order::{self, Door, LinkNews, Orders, Response, Ticket},
    limits, link,
};

/// Control's ends.
pub struct ControlEnds {
    /// From the link.
    pub orders: Orders,
    /// To the link: responses, and orders that are settled.
    pub responses: tokio::sync::mpsc::Sender<Response>,
    /// See `responses`.
    pub settled: tokio::sync::mpsc::Sender<Ticket>,
    /// To the link: the connection that it is to have. `None` without a broker.
    pub wanted: Option<watch::Sender<link::Wanted>>,
    /// From the link: how the connection stands.
    pub news: watch::Receiver<LinkNews>,
    /// To the process.
    pub leave: tokio::sync::mpsc::Sender<Leave>,
    /// From D-Bus.
    pub local: mpsc::Receiver<Local>,
}

/// The other ends. Control ends when these and the link are gone.
pub struct EdgeEnds {
    /// To control; full: counted and dropped.
    pub orders: Door,
    /// The link's, where there is a broker.
    pub link: Option<link::Edges>,
    /// How the connection stands.
    pub news: watch::Sender<LinkNews>,
    /// How the process is to go on.
    pub leave: tokio::sync::mpsc::Receiver<Leave>,
    /// The same, from D-Bus.
    pub restart: tokio::sync::mpsc::Sender<Leave>,
    /// Requests about models from D-Bus.
    pub local: mpsc::SyncSender<Local>,
}

/// All of them.
pub fn ends(config: &Config) -> (ControlEnds, EdgeEnds) {
    let (orders_tx, orders) = order::queue(limits::ORDERS, limits::ORDER_BYTES);
    let (responses_tx, responses) = tokio::sync::mpsc::channel(limits::RESPONSES);
    let (settled_tx, settled) = tokio::sync::mpsc::channel(limits::ORDERS);
    let (news_tx, news) = watch::channel(LinkNews::default());
    let (leave_tx, leave) = tokio::sync::mpsc::channel(2);
    let (local_tx, local) = mpsc::sync_channel(2);
    let wanted = config.mqtt.clone().map(|mqtt| {
        // A change that another run of this process began is on trial: then the link hurries.
        let wait_most = Trials::open(&config.device.state_dir).wait_most();
        watch::channel(link::Wanted { mqtt, generation: 0, wait_most })
    });
    let (wanted_tx, wanted) = wanted.unzip();
    let link = wanted.map(|wanted| link::Edges { wanted, responses, settled });
    let restart = leave_tx.clone();
    (
        ControlEnds {
            orders,
            responses: responses_tx,
            settled: settled_tx,
            wanted: wanted_tx,
            news,
            leave: leave_tx,
            local,
        },
        EdgeEnds { orders: orders_tx, link, news: news_tx, leave, restart, local: local_tx },
    )
}
