//! Where a rollout stands: a plan and what devices report of it, counted by wave. Pure. Nothing is remembered: after a restart the
//! same reports give the same picture.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kentledge::control::plans::{Order, Plan, hash, position, secret};
use serde_json::{Value, json};

use crate::state::{
    Fleet,
    device::{Device, Link, PlanState},
    read,
};

/// States that end a plan on a device, other than success.
const BAD: [&str; 2] = ["failed", "rolled_back"];

/// Why a device that is connected does not start, and will not by itself.
const STUCK: [&str; 3] = ["clock", "key", "cohort"];

/// Failures that are listed.
const LISTED: usize = 50;

/// One wave.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Wave {
    /// Its devices.
    pub devices: u64,
    /// Those that are connected.
    pub online: u64,
    /// By reported state; `none`: the plan is not reported.
    pub counts: BTreeMap<String, u64>,
    /// Failed or rolled back, since the last resume.
    pub bad: u64,
    /// Cannot run now: offline, blocked, without the plan; and not at their end.
    pub unready: u64,
    /// At their end.
    pub ended: u64,
    /// Not at their end, and they know their gate: they run, or will.
    pub granted: u64,
    /// The last time one came to its end, ms since 1970.
    pub ended_ms: Option<i64>,
}

impl Wave {
    /// How many are in this state.
    pub fn count(&self, state: &str) -> u64 {
        self.counts.get(state).copied().unwrap_or(0)
    }

    /// A part of the wave as a share of it.
    pub fn share(&self, n: u64) -> f64 {
        n as f64 / self.devices.max(1) as f64
    }
}

/// A device that failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Device.
    pub device: String,
    /// Wave, from 1.
    pub wave: usize,
    /// State.
    pub state: String,
    /// Why.
    pub why: String,
}

/// All of it.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Progress {
    /// By wave.
    pub waves: Vec<Wave>,
    /// Devices in no wave.
    pub outside: u64,
    /// Fewer known devices are only a part of the picture.
    pub least: u64,
    /// Waves that are open, counted from the first: by the broker's gates, or as devices know.
    pub open: usize,
    /// It is halted.
    pub halted: bool,
    /// When it was resumed last, ms since 1970.
    pub resumed_ms: Option<i64>,
    /// Why devices do not start.
    pub reasons: BTreeMap<String, u64>,
    /// Some of those that failed.
    pub failures: Vec<Failure>,
    /// Connected devices that lack the plan, or a gate that is open; with how many gates they know.
    pub lacking: Vec<(String, Option<u64>)>,
    /// Connected devices by wave that do not know the gate of their wave.
    pub closed: Vec<Vec<String>>,
}

/// A plan that the broker keeps.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The plan.
    pub plan: Plan,
    /// The message as it is.
    pub payload: Vec<u8>,
}

/// The plans at the broker; of one name and addressee the newest. Those that no device would take are left out.
pub fn plans(fleet: &Fleet) -> Vec<Found> {
    let mut newest: BTreeMap<(String, String), Found> = BTreeMap::new();
    for (key, down) in &fleet.down {
        let Some(name) = key.splitn(3, '/').nth(2).and_then(|rest| rest.strip_prefix("plan/")) else { continue };
        let Some(plan) = signed(&down.payload).and_then(|text| Plan::read(&text).ok()) else { continue };
        if plan.name != name || plan.to.split('/').next() != Some(down.site.as_str()) {
            continue;
        }
        let place = (plan.to.clone(), plan.name.clone());
        let found = Found { plan, payload: down.payload.clone() };
        let newer = newest.get(&place).is_none_or(|known| known.plan.seq < found.plan.seq);
        if newer {
            newest.insert(place, found);
        }
    }
    newest.into_values().collect()
}

fn signed(payload: &[u8]) -> Option<String> {
    read::payload(payload)?["signed"].as_str().map(str::to_owned)
}

/// Counts.
pub fn progress(plan: &Plan, fleet: &Fleet) -> Progress {
    let mut all = Progress { waves: vec![Wave::default(); plan.waves.len()], ..Progress::default() };
    all.closed = vec![Vec::new(); plan.waves.len()];
    let (kept, order) = gates_and_order(plan, fleet);
    let reports: Vec<(&String, &Device, Option<&PlanState>)> = addressed(plan, fleet).collect();
    let known = reports.iter().filter_map(|(.., report)| report.map(|r| r.gates)).max().unwrap_or(0);
    all.open = kept.max(usize::try_from(known).unwrap_or(0)).min(plan.waves.len());
    all.resumed_ms = order.as_ref().filter(|order| order.resume.is_some()).map(|order| order.issued_ms);
    all.halted = is_halted(plan, fleet, order.as_ref(), &reports);
    for (id, device, report) in reports {
        one(plan, &mut all, id, device, report);
    }
    all
}

/// The devices that a plan is for. Who is in a cohort only the devices know: those that report the plan.
fn addressed<'a>(
    plan: &'a Plan,
    fleet: &'a Fleet,
) -> impl Iterator<Item = (&'a String, &'a Device, Option<&'a PlanState>)> {
    let (site, to) = plan.to.split_once('/').unwrap_or(("", ""));
    fleet.devices.iter().filter_map(move |(id, device)| {
        let name = id.strip_prefix(site)?.strip_prefix('/')?;
        let report = device.plans.get(&plan.name).filter(|report| report.seq == plan.seq);
        let is = to == "_all" || to == name || (to.starts_with("_c-") && report.is_some());
        is.then_some((id, device, report))
    })
}

/// How many gates the broker keeps, from the first, and the last signed halt or resume.
fn gates_and_order(plan: &Plan, fleet: &Fleet) -> (usize, Option<Order>) {
    let payload = |rest: &str| fleet.down.get(&format!("{}/{rest}", plan.to)).map(|down| down.payload.as_slice());
    let gate = |wave: usize| {
        let text = payload(&format!("gate/{}/{wave}", plan.name)).and_then(|bytes| std::str::from_utf8(bytes).ok());
        text.and_then(|text| secret(text).ok()).is_some_and(|secret| hash(&secret) == plan.waves[wave - 1].gate)
    };
    let kept = (1..=plan.waves.len()).take_while(|wave| gate(*wave)).count();
    let order = payload(&format!("halt/{}", plan.name)).and_then(signed).and_then(|text| Order::read(&text).ok());
    (kept, order.filter(|order| order.plan == plan.name && order.seq == plan.seq))
}

fn is_halted(
    plan: &Plan,
    fleet: &Fleet,
    order: Option<&Order>,
    reports: &[(&String, &Device, Option<&PlanState>)],
) -> bool {
    let reported: Vec<&PlanState> = reports.iter().filter_map(|(.., report)| *report).collect();
    let highest = reported.iter().map(|report| report.n).max().unwrap_or(0);
    match order {
        Some(order) if order.n >= highest => return order.resume.is_none(),
        _ => {}
    }
    // The plan's own halt secret counts until the first resume.
    let key = format!("{}/halt/{}", plan.to, plan.name);
    let text = fleet.down.get(&key).and_then(|down| std::str::from_utf8(&down.payload).ok().map(str::to_owned));
    let by_secret = text.and_then(|text| secret(&text).ok()).is_some_and(|secret| hash(&secret) == plan.halt);
    (by_secret && highest == 0) || reported.iter().any(|report| report.halted && report.n == highest)
}

fn one(plan: &Plan, all: &mut Progress, id: &str, device: &Device, report: Option<&PlanState>) {
    let place = report.and_then(|report| report.wave).and_then(|wave| usize::try_from(wave).ok()?.checked_sub(1));
    let place = place.or_else(|| plan.wave_of(position(&plan.seed, id))).filter(|place| *place < plan.waves.len());
    let Some(place) = place else {
        all.outside += 1;
        return;
    };
    let online = device.state == Link::Online;
    let state = report.map_or("none", |report| report.state.as_str());
    let wave = &mut all.waves[place];
    wave.devices += 1;
    wave.online += u64::from(online);
    *wave.counts.entry(state.to_owned()).or_default() += 1;
    let since_ms = report.and_then(|report| report.since.as_deref()?.parse::<Timestamp>().ok());
    let since_ms = since_ms.map(Timestamp::as_millisecond);
    let why = report.map_or("", |report| report.why.as_str());
    if BAD.contains(&state) {
        let before = all.resumed_ms.is_some_and(|resumed| since_ms.is_some_and(|since| since < resumed));
        wave.bad += u64::from(!before);
        if all.failures.len() < LISTED {
            let text = report.map_or("", |report| report.text.as_str());
            let why = [why, text].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(": ");
            all.failures.push(Failure { device: id.into(), wave: place + 1, state: state.into(), why });
        }
    }
    if BAD.contains(&state) || ["success", "skipped"].contains(&state) {
        wave.ended += 1;
        wave.ended_ms = wave.ended_ms.max(since_ms);
        return;
    }
    if !why.is_empty() {
        *all.reasons.entry(why.to_owned()).or_default() += 1;
    }
    if state != "running" && (!online || STUCK.contains(&why) || report.is_none()) {
        wave.unready += 1;
    }
    if online {
        let gates = report.map(|report| report.gates);
        if gates.is_none_or(|gates| gates < all.open as u64) {
            all.lacking.push((id.into(), gates));
        }
        if gates.is_none_or(|gates| gates <= place as u64) {
            all.closed[place].push(id.into());
        }
    }
    if report.is_some_and(|report| report.gates > place as u64) {
        all.waves[place].granted += 1;
    }
}

impl Progress {
    /// Devices that were just given their gate and have not reported it: they count as if they had.
    pub fn given(&mut self, is: impl Fn(&str) -> bool) {
        for (wave, closed) in self.waves.iter_mut().zip(&mut self.closed) {
            let before = closed.len();
            closed.retain(|id| !is(id));
            wave.granted += (before - closed.len()) as u64;
        }
    }
}

/// What a page and a script get.
pub fn json(plan: &Plan, all: &Progress, now_ms: i64) -> Value {
    let wave = |(i, wave): (usize, &Wave)| {
        let rule = &plan.waves[i];
        json!({"wave": i + 1, "share": rule.share, "hold_s": rule.hold_s, "open": i < all.open, "devices": wave.devices,
               "online": wave.online, "counts": wave.counts, "bad": wave.bad})
    };
    let failures: Vec<Value> = all
        .failures
        .iter()
        .map(|f| json!({"device": f.device, "wave": f.wave, "state": f.state, "why": f.why}))
        .collect();
    let (limits, time) = (&plan.limits, kentledge::host::clock::rfc3339_ms);
    let complete = all.waves.iter().all(|wave| wave.ended == wave.devices);
    let expired = now_ms >= plan.expires_ms && !complete;
    json!({
        "name": plan.name, "to": plan.to, "seq": plan.seq, "kind": plan.kind, "what": what(plan), "issuer": plan.issuer,
        "issued": time(plan.issued_ms), "expires_at": time(plan.expires_ms), "halted": all.halted, "expired": expired,
        "complete": complete, "active": all.open > 0 && !complete && !expired && !all.halted, "open": all.open,
        "limits": {"failed_max": limits.failed_max, "offline_max": limits.offline_max, "concurrent_max": limits.concurrent_max},
        "waves": all.waves.iter().enumerate().map(wave).collect::<Vec<_>>(), "outside": all.outside,
        "reasons": all.reasons.iter().collect::<Vec<_>>(), "failures": failures,
    })
}

/// The artifact in a few words.
pub fn what(plan: &Plan) -> String {
    let artifact: Value = serde_json::from_str(&plan.artifact).unwrap_or(Value::Null);
    let text = |name: &str| artifact[name].as_str().unwrap_or("").to_owned();
    let file = |url: &str| url.rsplit('/').next().unwrap_or("").to_owned();
    match (text("url"), text("file"), text("toml")) {
        (url, _, _) if !url.is_empty() => file(&url),
        (_, path, _) if !path.is_empty() => path,
        (_, _, toml) if !toml.is_empty() => {
            let tables: BTreeSet<&str> = toml.lines().map(str::trim).filter(|line| line.starts_with('[')).collect();
            if tables.is_empty() { "settings".into() } else { tables.into_iter().collect::<Vec<_>>().join(" ") }
        }
        _ => text("sha256").chars().take(12).collect(),
    }
}
