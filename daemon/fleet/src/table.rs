//! Devices as a table, and as JSON. Pure.

use serde_json::{Value, json};

use crate::state::{
    Fleet,
    device::{Device, Link},
};

const HEADS: [&str; 9] = ["DEVICE", "STATE", "VERSION", "MODELS", "ALARMS", "BACKLOG", "LOST", "CLOCK", "PLANS"];

/// One row.
fn row(id: &str, device: &Device) -> [String; 9] {
    let state = match (device.state, device.degraded().len()) {
        (Link::Online, 0) => "online".into(),
        (Link::Online, n) => format!("degraded ({n})"),
        (Link::Stopping, _) => "stopping".into(),
        (Link::Offline, _) => "OFFLINE".into(),
        (Link::Unknown, _) => "?".into(),
    };
    let alarms = match (device.raised(), device.worst()) {
        (0, _) => String::new(),
        (n, 3) => format!("{n} CRITICAL"),
        (n, 2) => format!("{n} warning"),
        (n, _) => format!("{n} info"),
    };
    let plans: Vec<String> = device.plans.iter().map(|(name, plan)| format!("{name}:{}", plan.state)).collect();
    let n = |n: u64| if n == 0 { String::new() } else { n.to_string() };
    let lost = device.health.as_ref().map_or(0, |h| h.lost);
    [
        id.to_owned(),
        state,
        device.version.clone(),
        device.models().join(","),
        alarms,
        n(device.backlog()),
        n(lost),
        device.clk.clone(),
        plans.join(","),
    ]
}

/// The table, and a line with sums.
pub fn table(fleet: &Fleet) -> String {
    let rows: Vec<[String; 9]> = fleet.devices.iter().map(|(id, device)| row(id, device)).collect();
    let heads = HEADS.map(str::to_owned);
    let width = |i: usize| rows.iter().chain([&heads]).map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: [usize; 9] = std::array::from_fn(width);
    let mut out = String::new();
    for row in [&heads].into_iter().chain(&rows) {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out.push_str(&sums(fleet));
    out
}

/// How many of what.
pub fn sums(fleet: &Fleet) -> String {
    let of = |wanted: fn(&Device) -> bool| fleet.devices.values().filter(|device| wanted(device)).count();
    let mut parts = vec![
        format!("{} devices", fleet.devices.len()),
        format!("{} online", of(|d| d.state == Link::Online)),
        format!("{} offline", of(|d| d.state == Link::Offline)),
        format!("{} with alarms", of(|d| d.raised() > 0)),
        format!("{} degraded", of(|d| !d.degraded().is_empty())),
    ];
    if fleet.ignored > 0 {
        parts.push(format!("{} messages of further devices ignored", fleet.ignored));
    }
    if fleet.unread > 0 {
        parts.push(format!("{} messages could not be read", fleet.unread));
    }
    parts.join(" · ")
}

/// A device as JSON: all that is known of it.
pub fn json(id: &str, device: &Device) -> Value {
    let mut value = serde_json::to_value(device).unwrap_or(Value::Null);
    value["device"] = json!(id);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_is_wrong_at_a_glance() {
        let mut fleet = Fleet::new("");
        let state = |s: &str| format!(r#"{{"state":"{s}","clk":"sync","boot":"b","ts":null}}"#);
        fleet.on("kl/plant/pump-1/up/state", state("online").as_bytes(), true, 0);
        fleet.on("kl/plant/pump-22/up/state", state("offline").as_bytes(), true, 0);
        let alarm = br#"{"ts":null,"seq":{"last":1},"data":[{"phase":"raised","severity":"critical","score":2}]}"#;
        fleet.on("kl/plant/pump-1/up/a/leak", alarm, true, 0);
        let text = table(&fleet);
        assert!(text.contains("plant/pump-1   online"), "{text}");
        assert!(text.contains("1 CRITICAL") && text.contains("plant/pump-22  OFFLINE"), "{text}");
        assert!(text.ends_with("2 devices · 1 online · 1 offline · 1 with alarms · 0 degraded"), "{text}");
        assert_eq!(json("plant/pump-1", &fleet.devices["plant/pump-1"])["alarms"]["leak"]["severity"], "critical");
    }
}
