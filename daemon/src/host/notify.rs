//! Notifications to systemd: READY, STATUS, WATCHDOG, STOPPING. Sends nothing without NOTIFY_SOCKET.

use std::time::Duration;

use sd_notify::NotifyState;

use super::log::escaped;
use crate::limits;

/// The service is up; `status` is shown by `systemctl status`.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(&line(status))]);
}

/// One line for `systemctl status`.
pub fn status(status: &str) {
    send(&[NotifyState::Status(&line(status))]);
}

/// The drain began.
pub fn stopping(status: &str) {
    send(&[NotifyState::Stopping, NotifyState::Status(&line(status))]);
}

/// Every core stage moved since the last one.
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// How often systemd wants to hear `watchdog`, if at all.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// A line feed would begin another message to systemd.
fn line(status: &str) -> String {
    escaped(status, limits::LOG_LINE)
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(why) = sd_notify::notify(states) {
        tracing::warn!("notify systemd: {why}");
    }
}
