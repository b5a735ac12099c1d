//! What the page gets: devices as short rows, and one device whole. Pure.

use serde_json::{Value, json};

use crate::state::{
    Fleet,
    device::{Device, Link},
};

/// The members of a row, in order; the page reads them by this list.
pub const COLUMNS: [&str; 14] = [
    "id",
    "state",
    "version",
    "models",
    "alarms",
    "worst",
    "backlog",
    "lost",
    "degraded",
    "problem",
    "clk",
    "heard",
    "plans",
    "alarm_names",
];

/// A device as a row.
pub fn row(id: &str, device: &Device) -> Value {
    let state = match device.state {
        Link::Online => "online",
        Link::Stopping => "stopping",
        Link::Offline => "offline",
        Link::Unknown => "unknown",
    };
    let plans: Vec<String> = device.plans.iter().map(|(name, plan)| format!("{name} {}", plan.state)).collect();
    let raised = device.alarms.iter().filter(|(_, alarm)| alarm.phase == "raised");
    let names: Vec<&str> = raised.map(|(name, _)| name.as_str()).collect();
    json!([
        id,
        state,
        device.version,
        device.models().join(", "),
        device.raised(),
        device.worst(),
        device.backlog(),
        device.health.as_ref().map_or(0, |h| h.lost),
        device.degraded().len(),
        device.degraded().first(),
        device.clk,
        device.heard_ms,
        plans.join(", "),
        names.join(", "),
    ])
}

/// Rows that changed after `seen`, which becomes the fleet's count of now. At most `most`, and whether there are more.
pub fn rows_since(fleet: &Fleet, seen: &mut u64) -> Vec<Value> {
    let after = std::mem::replace(seen, fleet.changes);
    let changed = fleet.devices.iter().filter(|(_, device)| device.changed > after);
    changed.map(|(id, device)| row(id, device)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_member_for_each_column_and_only_changes_are_sent() {
        let mut fleet = Fleet::new("");
        let state = br#"{"state":"online","clk":"sync","boot":"b","ts":null}"#;
        for i in 0..3 {
            fleet.on(&format!("kl/s/d{i}/up/state"), state, true, 0);
        }
        let mut seen = 0;
        let rows = rows_since(&fleet, &mut seen);
        assert!(rows.len() == 3 && rows.iter().all(|row| row.as_array().map(Vec::len) == Some(COLUMNS.len())));
        assert!(rows_since(&fleet, &mut seen).is_empty());
        fleet.on("kl/s/d1/up/state", state, false, 5);
        assert_eq!(rows_since(&fleet, &mut seen), [row("s/d1", &fleet.devices["s/d1"])]);
    }
}
