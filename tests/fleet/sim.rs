//! A fleet of light devices at a broker, for trials by hand:
//!
//! ```text
//! fleet-sim PORT[,PORT…] DEVICES [SECONDS [KEYSET [PERCENT_THAT_FAIL]]] [--own] [--arrive-per-s=NUMBER]
//! ```
//!
//! They share a few connections. With `--own` each has one of its own, by the daemon's link, and a JSON line a second says how it goes.
//! With `--arrive-per-s` they connect for the first time one after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rig::fleet::{
    Fleet, Ills, Size,
    linked::{Linked, Manner},
    rollout::{Play, Start},
};
use serde_json::json;

fn main() {
    let (options, args): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let number = |i: usize| args.get(i).map(|text| text.parse::<f64>().expect("a number"));
    let ports: Vec<u16> = args.first().expect("PORT").split(',').map(|port| port.parse().expect("a port")).collect();
    let devices = number(1).expect("DEVICES") as usize;
    let seconds = number(2).unwrap_or(3600.0);
    let fails = number(4).unwrap_or(1.0) / 100.0;
    let play = args.get(3).map(|keyset| Play { keyset: keyset.into(), fails, takes_s: 8.0, bad: "bad" });
    let lines = devices.div_ceil(1000).clamp(1, 16);
    let (health_s, score_s) = if devices <= 100 { (10.0, 0.5) } else { (60.0, 30.0) };
    let size = Size { devices, lines, health_s, score_s };
    if options.iter().any(|option| option == "--own") {
        let play = play.expect("KEYSET");
        let arrive_per_s = options.iter().find_map(|option| option.strip_prefix("--arrive-per-s="));
        let arrive_per_s = arrive_per_s.map(|number| number.parse().expect("--arrive-per-s=NUMBER"));
        let manner = Manner { brokers: ports, stores: 0, slow: 0, keep_alive_s: 15, arrive_per_s };
        return own(&Linked::start(&manner, size, Ills::NONE, play), seconds);
    }
    let fleet = Fleet::start(ports[0], size, Ills::SOME, play);
    std::thread::sleep(Duration::from_secs_f64(seconds));
    println!("{} devices had announced themselves, {} commands of plans", fleet.announced(), fleet.starts().len());
}

/// What started a plan so far.
#[derive(Default)]
struct Started<'a> {
    starts: usize,
    devices: BTreeSet<&'a str>,
    waves: BTreeMap<u64, usize>,
    last_s: f64,
}

/// How a halt came through to the devices, from the first one that heard it; null before that.
fn halted(fleet: &Linked, plan: &str, starts: &[Start]) -> serde_json::Value {
    let heard = fleet.halts(plan.split('.').nth(1).unwrap_or(""));
    let Some(first) = heard.first() else { return json!(null) };
    let after_s = |share: f64| (heard[((heard.len() - 1) as f64 * share) as usize] - *first).as_secs_f64();
    let late = starts.iter().filter(|start| start.plan == plan).map(|start| start.at.saturating_duration_since(*first));
    let late: Vec<f64> = late.map(|late| late.as_secs_f64()).filter(|late| *late > 0.0).collect();
    json!({"heard": heard.len(), "p50_s": after_s(0.5), "p99_s": after_s(0.99), "last_s": after_s(1.0),
           "starts_after": late.len(), "last_start_s": late.iter().copied().fold(0.0, f64::max)})
}

/// How it goes, once a second. Times are in seconds since the start.
fn own(fleet: &Linked, seconds: f64) {
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < seconds {
        std::thread::sleep(Duration::from_secs(1));
        let (all, connected) = (fleet.starts(), fleet.connected());
        let mut plans: BTreeMap<&str, Started> = BTreeMap::new();
        for start in &all {
            let plan = plans.entry(&start.plan).or_default();
            plan.starts += 1;
            plan.devices.insert(&start.device);
            *plan.waves.entry(start.wave).or_default() += 1;
            plan.last_s = start.at.saturating_duration_since(began).as_secs_f64();
        }
        let plans: BTreeMap<&str, serde_json::Value> = plans
            .into_iter()
            .map(|(plan, Started { starts, devices, waves, last_s })| {
                (
                    plan,
                    json!({"starts": starts, "devices": devices.len(), "waves": waves, "last_s": last_s,
                              "halt": halted(fleet, plan, &all)}),
                )
            })
            .collect();
        let last_s = connected.last().map(|one| one.at.saturating_duration_since(began).as_secs_f64());
        println!(
            "{}",
            json!({"t_s": began.elapsed().as_secs_f64(), "standing": fleet.standing(), "connects": connected.len(),
                   "connected_s": last_s, "plans": plans, "refused": fleet.refused().len()})
        );
    }
}
