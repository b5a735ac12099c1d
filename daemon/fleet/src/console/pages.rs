//! The files of the page, and a task for each open page that sends it what changed.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use bytes::Bytes;
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{Answer, Hub, failed, stream, view};
use crate::{heard::now_ms, limits, rollout::progress, state::Fleet, table};

/// The page.
pub const INDEX: &str = include_str!("../../page/index.html");
const APP: &str = include_str!("../../page/app.js");
/// Its looks.
pub const STYLE: &str = include_str!("../../page/style.css");
/// Its parts, by path.
pub const PARTS: [(&str, &str); 6] = [
    ("/app.js", APP),
    ("/list.js", include_str!("../../page/list.js")),
    ("/chart.js", include_str!("../../page/chart.js")),
    ("/device.js", include_str!("../../page/device.js")),
    ("/rollouts.js", include_str!("../../page/rollouts.js")),
    ("/words.js", include_str!("../../page/words.js")),
];
/// Asks for the token.
pub const LOGIN: &str = include_str!("../../page/login.html");

/// One event.
fn event(kind: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {kind}\ndata: {data}\n\n"))
}

/// A page that is open: what it has been sent, and its end.
struct Page {
    hub: Hub,
    send: mpsc::Sender<Bytes>,
    idle: Instant,
}

impl Page {
    /// Sends; `None`: the page was closed.
    async fn send(&mut self, kind: &str, data: &Value) -> Option<()> {
        self.idle = Instant::now();
        self.send.send(event(kind, data)).await.ok()
    }

    /// Waits for the next look; says something where nothing was said for long.
    async fn pause(&mut self) -> Option<()> {
        tokio::select! {
            () = sleep(limits::PUSH) => {}
            () = self.send.closed() => return None,
        }
        if self.idle.elapsed() < limits::PUSH_IDLE {
            return Some(());
        }
        self.idle = Instant::now();
        self.send.send(Bytes::from_static(b": idle\n\n")).await.ok()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.hub.pages.fetch_sub(1, Ordering::Relaxed);
    }
}

fn too_many() -> Answer {
    failed(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open")
}

/// All devices: their rows first, then what changes.
pub fn fleet(hub: &Hub) -> Answer {
    let Some((send, answer)) = stream(hub) else { return too_many() };
    let mut page = Page { hub: hub.clone(), send, idle: Instant::now() };
    tokio::spawn(async move {
        let _ = follow_fleet(&mut page).await;
    });
    answer
}

async fn follow_fleet(page: &mut Page) -> Option<()> {
    let (mut seen, mut whole, mut told, mut rollouts) = (0, true, Value::Null, Rollouts::default());
    page.send("begin", &json!({"columns": view::COLUMNS, "now": now_ms()})).await?;
    loop {
        let (rows, lost, ignored, plans) = {
            let inner = page.hub.shared.lock();
            let rows = view::rows_since(&inner.fleet, &mut seen);
            (rows, inner.lost.clone(), inner.fleet.ignored, rollouts.look(&inner.fleet))
        };
        for some in rows.chunks(limits::ROWS) {
            page.send("rows", &json!(some)).await?;
        }
        if std::mem::take(&mut whole) {
            page.send("whole", &json!(rows.len())).await?;
        }
        let state = json!({"lost": lost, "ignored": ignored, "now": now_ms(), "plans": plans});
        let now = json!([&state["lost"], &state["ignored"], &state["plans"]]);
        if now != told {
            told = now;
            page.send("state", &state).await?;
        }
        page.pause().await?;
    }
}

/// Plans and where they stand: counted again when something changed, and not more often than every two seconds, because each plan
/// looks at each device.
#[derive(Default)]
struct Rollouts {
    counted: Option<(Instant, u64)>,
    plans: Value,
}

impl Rollouts {
    fn look(&mut self, fleet: &Fleet) -> Value {
        let due = |(at, changes): (Instant, u64)| at.elapsed() > limits::COUNT && changes != fleet.changes;
        if self.counted.is_none_or(due) {
            let all = progress::plans(fleet);
            let one = |found: &progress::Found| {
                progress::json(&found.plan, &progress::progress(&found.plan, fleet), now_ms())
            };
            self.plans = all.iter().map(one).collect();
            self.counted = Some((Instant::now(), fleet.changes));
        }
        self.plans.clone()
    }
}

/// Ends the subscription with the last page of the device.
struct Watch {
    hub: Hub,
    device: String,
    filter: String,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.hub.scores().close(&self.device) {
            let (line, filter) = (self.hub.line.clone(), std::mem::take(&mut self.filter));
            tokio::spawn(async move { line.unsubscribe(&filter).await });
        }
    }
}

/// One device: all of it, and its scores as they come.
pub fn device(hub: &Hub, device: String) -> Answer {
    if !hub.shared.lock().fleet.devices.contains_key(&device) {
        return failed(StatusCode::NOT_FOUND, "there is no such device");
    }
    let Some((send, answer)) = stream(hub) else { return too_many() };
    let mut page = Page { hub: hub.clone(), send, idle: Instant::now() };
    let opened = hub.scores().open(&device);
    let filter = format!("{}kl/{device}/up/p/+", hub.prefix);
    let watch = opened.map(|_| Watch { hub: hub.clone(), device: device.clone(), filter: filter.clone() });
    tokio::spawn(async move {
        if opened == Some(true) {
            page.hub.line.subscribe(&filter).await;
        }
        let _ = follow_device(&mut page, &device, watch.is_some()).await;
        drop(watch);
    });
    answer
}

async fn follow_device(page: &mut Page, id: &str, follows: bool) -> Option<()> {
    let (mut seen, mut points) = (None, BTreeMap::new());
    loop {
        let whole = {
            let inner = page.hub.shared.lock();
            let device = inner.fleet.devices.get(id)?;
            (seen.replace(device.changed) != Some(device.changed)).then(|| table::json(id, device))
        };
        if let Some(mut whole) = whole {
            whole["follows"] = json!(follows);
            page.send("device", &whole).await?;
        }
        let scores = page.hub.scores().since(id, &mut points);
        if let Some(scores) = scores {
            page.send("scores", &scores).await?;
        }
        page.pause().await?;
    }
}
