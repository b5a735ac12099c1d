//! D-Bus, and systemd's login manager on it, which restarts the machine.

use std::time::Duration;

use zbus::{Connection, conn::Builder, proxy};

use super::HostError;

/// How long anyone on D-Bus may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

#[proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    fn reboot(&self, interactive: bool) -> zbus::Result<()>;
}

/// A connection to `system`, `session`, or the bus at an address.
async fn connect(bus: &str) -> zbus::Result<Connection> {
    let builder = match bus {
        "system" => Builder::system(),
        "session" => Builder::session(),
        address => Builder::address(address),
    };
    builder.method_timeout(ANSWER).build().await
}

/// The same, within a bound.
///
/// # Errors
/// There is no such bus, or it does not answer in time.
pub async fn connect_soon(bus: &str) -> Result<Connection, HostError> {
    within(connect(bus)).await.map_err(|why| HostError(format!("connect to the D-Bus `{bus}`: {why}")))
}

/// Asks for a restart of the machine.
///
/// # Errors
/// logind is not there, or polkit refuses.
pub async fn reboot(bus: &str) -> Result<(), HostError> {
    let what = |why: zbus::Error| HostError(format!("ask logind to restart the system: {why}"));
    let connection = connect_soon(bus).await?;
    let manager = ManagerProxy::new(&connection).await.map_err(what)?;
    manager.reboot(false).await.map_err(what)
}

async fn within<T>(act: impl Future<Output = zbus::Result<T>>) -> zbus::Result<T> {
    tokio::time::timeout(ANSWER, act).await.unwrap_or_else(|_| Err(zbus::Error::Failure("no answer".into())))
}
