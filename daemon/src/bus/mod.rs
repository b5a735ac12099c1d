//! Our name and our object on D-Bus, for local clients. `dbus/org.kentledge.Daemon1.xml` is the frozen interface. An edge:
//! the daemon runs without a bus, and retries the connection.
//!
//! Reading is for whom the bus's policy lets in; `Restart` looks at the caller as well.

mod client;
mod error;
mod top;

use std::{os::fd::OwnedFd, sync::Arc};

use serde_json::Value;
use zbus::{Connection, fdo, interface, message::Header, object_server::SignalEmitter};

pub use client::{Asked, show};
pub use error::BusError;
pub use top::top;

use crate::{flow::beat::Beat, host::logind, limits};

/// Our name.
pub const NAME: &str = "org.kentledge.Daemon";
/// Our object.
pub const PATH: &str = "/org/kentledge/Daemon";

/// What the object shows and does.
#[derive(Clone)]
pub struct Shown {
    /// The status document.
    pub status: Arc<dyn Fn() -> Value + Send + Sync>,
    /// Ends the daemon in order; systemd starts it again.
    pub restart: Arc<dyn Fn() + Send + Sync>,
    /// Installs the bundle in this file. The status document has the result.
    pub install: Arc<dyn Fn(OwnedFd) -> Result<(), BusError> + Send + Sync>,
    /// Back to the model before.
    pub roll_back: Arc<dyn Fn(String) -> Result<(), BusError> + Send + Sync>,
}

/// The stage as a task: for ever on the bus, or looking for it.
pub async fn serve(bus: String, shown: Shown, beat: Beat) {
    let mut said = String::new();
    loop {
        let why = match on_the_bus(&bus, &shown, &beat).await {
            Ok(()) => "the connection ended".to_owned(),
            Err(why) => why,
        };
        if why != said {
            tracing::warn!(
                "D-Bus connection failed: {why}; `kentledge status` does not work until it is back; retrying"
            );
            said = why;
        }
        beat.during(tokio::time::sleep(limits::BUS_RETRY.mul_f64(0.5 + fastrand::f64() / 2.0))).await;
    }
}

async fn on_the_bus(bus: &str, shown: &Shown, beat: &Beat) -> Result<(), String> {
    let connection = beat.during(logind::connect_soon(bus)).await?;
    let text = |why: zbus::Error| why.to_string();
    let daemon = Daemon { shown: shown.clone(), seen: Seen::of(&(shown.status)()) };
    connection.object_server().at(PATH, daemon).await.map_err(text)?;
    beat.during(connection.request_name(NAME)).await.map_err(|why| format!("take the name {NAME}: {why}"))?;
    tracing::info!(bus, "on the D-Bus as {NAME}");
    let object = connection.object_server().interface::<_, Daemon>(PATH).await.map_err(text)?;
    loop {
        beat.during(tokio::time::sleep(limits::BUS_TURN)).await;
        if !beat.during(alive(&connection)).await {
            return Ok(());
        }
        let now = Seen::of(&(shown.status)());
        let mut daemon = object.get_mut().await;
        let before = std::mem::replace(&mut daemon.seen, now.clone());
        // One that does not read its signals is the bus's to deal with; here nothing waits longer than a moment.
        let tell = daemon.tell(&before, &now, object.signal_emitter());
        if beat.during(tokio::time::timeout(limits::BUS_ANSWER, tell)).await.is_err() {
            return Err("the bus takes no signals".into());
        }
    }
}

/// The bus answers.
async fn alive(connection: &Connection) -> bool {
    let ask = async { fdo::DBusProxy::new(connection).await?.get_id().await.map_err(zbus::Error::from) };
    matches!(tokio::time::timeout(limits::BUS_ANSWER, ask).await, Ok(Ok(_)))
}

/// The properties whose changes are signalled.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    state: String,
    degraded: Vec<String>,
    online: bool,
    outbox_records: u64,
    oldest_unsent_s: i64,
    lost: u64,
    alarms: Vec<(String, String, bool)>,
    slots: Vec<(String, String, String, bool, bool)>,
}

impl Seen {
    fn of(status: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let outbox = &status["outbox"];
        let count = |key: &str| outbox[key].as_u64().unwrap_or(0);
        let alarm = |a: &Value| (text(&a["name"]), text(&a["severity"]), a["raised"] == true);
        let slot = |p: &Value| {
            (text(&p["name"]), text(&p["model"]), text(&p["slot"]), p["serving"] == true, p["learning"] == true)
        };
        Self {
            state: text(&status["state"]),
            degraded: list(&status["degraded"]).iter().map(text).collect(),
            online: status["link"]["online"] == true,
            outbox_records: count("ram_records") + count("stored_records"),
            oldest_unsent_s: outbox["oldest_s"].as_i64().unwrap_or(-1),
            lost: list(&status["lost"]).iter().filter_map(|entry| entry["n"].as_u64()).sum(),
            alarms: list(&status["alarms"]).iter().map(alarm).collect(),
            slots: list(&status["pipelines"]).iter().map(slot).collect(),
        }
    }
}

struct Daemon {
    shown: Shown,
    seen: Seen,
}

impl Daemon {
    async fn tell(&self, before: &Seen, now: &Seen, to: &SignalEmitter<'_>) {
        let mut done = Vec::new();
        if before.state != now.state {
            done.push(self.state_changed(to).await);
        }
        if before.degraded != now.degraded {
            done.push(self.degraded_changed(to).await);
        }
        if before.online != now.online {
            done.push(self.online_changed(to).await);
        }
        if before.lost != now.lost {
            done.push(self.lost_changed(to).await);
        }
        if before.slots != now.slots {
            done.push(self.slots_changed(to).await);
        }
        for (alarm, _) in now.alarms.iter().zip(&before.alarms).filter(|(alarm, was)| alarm != was) {
            done.push(Self::alarm_changed(to, &alarm.0, &alarm.1, alarm.2).await);
        }
        if before.alarms != now.alarms {
            done.push(self.alarms_changed(to).await);
        }
        for why in done.into_iter().filter_map(Result::err) {
            tracing::warn!("signal a changed property on the D-Bus: {why}");
        }
    }

    /// Root, and the user the daemon runs as, may act.
    async fn allow(&self, header: &Header<'_>, connection: &Connection, what: &str) -> fdo::Result<()> {
        let sender = header.sender().ok_or_else(|| fdo::Error::AccessDenied("who asks?".into()))?;
        let bus = fdo::DBusProxy::new(connection).await?;
        let uid = bus.get_connection_unix_user(sender.to_owned().into()).await?;
        if uid == 0 || uid == nix::unistd::Uid::effective().as_raw() {
            return Ok(());
        }
        tracing::warn!(uid, "D-Bus caller is denied `{what}`");
        Err(fdo::Error::AccessDenied(format!("`{what}` is for root")))
    }
}

#[interface(name = "org.kentledge.Daemon1")]
impl Daemon {
    /// The status document, JSON; its shape is docs/schema/status.json.
    fn status(&self) -> String {
        (self.shown.status)().to_string()
    }

    /// Drains and ends; systemd starts it again.
    async fn restart(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<()> {
        self.allow(&header, connection, "Restart").await?;
        (self.shown.restart)();
        Ok(())
    }

    /// Installs the model bundle in this file; `Status` has the result under `models.job`.
    async fn install_model(
        &self,
        file: zbus::OwnedFd,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<()> {
        self.allow(&header, connection, "InstallModel").await?;
        (self.shown.install)(file.into()).map_err(|why| fdo::Error::Failed(why.into()))
    }

    /// Goes back to the model before; the name may be empty where only one was installed.
    async fn roll_back_model(
        &self,
        model: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<()> {
        self.allow(&header, connection, "RollBackModel").await?;
        (self.shown.roll_back)(model).map_err(|why| fdo::Error::Failed(why.into()))
    }

    /// An alarm was raised or cleared.
    #[zbus(signal)]
    async fn alarm_changed(to: &SignalEmitter<'_>, name: &str, severity: &str, raised: bool) -> zbus::Result<()>;

    /// Version of the program.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &str {
        env!("CARGO_PKG_VERSION")
    }

    /// SITE/DEVICE.
    #[zbus(property(emits_changed_signal = "const"))]
    fn device(&self) -> String {
        let status = (self.shown.status)();
        let text = |key: &str| status["device"][key].as_str().unwrap_or("").to_owned();
        format!("{}/{}", text("site"), text("id"))
    }

    /// `running` or `degraded`.
    #[zbus(property)]
    fn state(&self) -> &str {
        &self.seen.state
    }

    /// What is not as it should be, in words.
    #[zbus(property)]
    fn degraded(&self) -> &[String] {
        &self.seen.degraded
    }

    /// The broker is there.
    #[zbus(property)]
    fn online(&self) -> bool {
        self.seen.online
    }

    /// Records that no broker has acknowledged.
    #[zbus(property(emits_changed_signal = "false"))]
    fn outbox_records(&self) -> u64 {
        self.seen.outbox_records
    }

    /// Age of the oldest of them, s; -1: no record is unsent.
    #[zbus(property(emits_changed_signal = "false"))]
    fn oldest_unsent_s(&self) -> i64 {
        self.seen.oldest_unsent_s
    }

    /// Records lost since the device was set up: the ledger's sum.
    #[zbus(property)]
    fn lost(&self) -> u64 {
        self.seen.lost
    }

    /// Name, severity, raised.
    #[zbus(property)]
    fn alarms(&self) -> Vec<(String, String, bool)> {
        self.seen.alarms.clone()
    }

    /// Pipeline, model, slot, serving, learning.
    #[zbus(property)]
    fn slots(&self) -> Vec<(String, String, String, bool, bool)> {
        self.seen.slots.clone()
    }
}
