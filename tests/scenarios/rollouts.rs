//! Rollouts to many devices with a connection each: the broker and the controller die in the middle, a bad release stays in its first
//! wave. The short form has 500 devices, the long one (`KENTLEDGE_LONG=1`) 10,000, or as many as `KENTLEDGE_DEVICES` says.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rig::{
    Mosquitto,
    fleet::{
        Ills, Size,
        linked::{Connected, Linked, Manner, storm},
        rollout::{Play, Start},
    },
    measured, within,
};
use serde_json::{Value, json};

use crate::fleet::{Desk, Running, broker};

/// A large fleet on a small machine takes its time.
const LONG: Duration = Duration::from_secs(600);

/// Of a plan that says nothing else.
const OFFLINE_MAX: f64 = 0.3;

fn devices() -> usize {
    let said = std::env::var("KENTLEDGE_DEVICES").ok().and_then(|text| text.parse().ok());
    said.unwrap_or(if rig::long() { 10_000 } else { 500 })
}

/// A line of `/proc/PID/status`, KiB.
fn memory_kib(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Processor time that a process used, s.
fn processor_s(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or("").split(' ').collect();
    let ticks = |i: usize| fields.get(i).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// What a controller used, until it ended.
#[derive(Debug, Default)]
struct Used {
    code: Option<i32>,
    took_s: f64,
    memory_kib: u64,
    processor_s: f64,
}

fn until_it_ends(controller: &mut Running) -> Used {
    let (began, pid) = (Instant::now(), controller.0.id());
    let mut used = Used::default();
    within(LONG, "the rollout ends", || {
        used.memory_kib = used.memory_kib.max(memory_kib(pid, "VmHWM"));
        used.processor_s = used.processor_s.max(processor_s(pid));
        used.code = controller.0.try_wait().expect("wait").and_then(|status| status.code());
        used.code.is_some()
    });
    Used { took_s: began.elapsed().as_secs_f64(), ..used }
}

fn fleet(broker: &Mosquitto, desk: &Desk, devices: usize) -> Linked {
    let size = Size { devices, lines: 0, health_s: 60.0, score_s: 0.0 };
    let play = Play { keyset: desk.keyset(), fails: 0.0, takes_s: 0.5, bad: "bad" };
    let manner = Manner {
        brokers: vec![broker.port],
        stores: devices.min(40),
        slow: devices.min(2000) / 40,
        keep_alive_s: 15,
        arrive_per_s: None,
    };
    let (began, before) = (Instant::now(), memory_kib(std::process::id(), "VmRSS"));
    let fleet = Linked::start(&manner, size, Ills::NONE, play);
    within(LONG, "all devices are connected", || fleet.standing() == devices);
    let each = (memory_kib(std::process::id(), "VmRSS").saturating_sub(before)) as f64 / devices as f64;
    measured(&format!(
        "{devices} devices with the daemon's link, outbox ({} with its store, the others in RAM) and plans, a connection each, {} of them \
         slow: all connected after {:.1} s; memory of a device {each:.0} KiB; of the broker {} MiB",
        manner.stores,
        manner.slow,
        began.elapsed().as_secs_f64(),
        memory_kib(broker.pid().expect("a broker"), "VmRSS") / 1024
    ));
    fleet
}

fn of_plan(starts: &[Start], name: &str) -> Vec<Start> {
    starts.iter().filter(|start| start.plan.starts_with(&format!("_plan.{name}."))).cloned().collect()
}

fn first_of_wave(starts: &[Start], wave: u64) -> Option<Instant> {
    starts.iter().filter(|start| start.wave == wave).map(|start| start.at).min()
}

#[test]
fn a_broker_and_a_controller_that_die_in_a_wave_strand_no_device_and_a_bad_release_stays_in_its_first_wave() {
    let (mut broker, devices) = (broker(), devices());
    let desk = Desk::new(broker.port, "rollout");
    let fleet = fleet(&broker, &desk, devices);
    good_release(&mut broker, &desk, &fleet, devices);
    bad_release(&desk, &fleet, devices);
}

/// As RabbitMQ, which sends nothing that it keeps to subscriptions with wildcards: here the broker keeps nothing at all.
#[test]
fn at_a_broker_that_sends_nothing_it_keeps_devices_are_asked_and_the_plan_comes_from_its_file() {
    const DEVICES: usize = 40;
    let broker = Mosquitto::with("max_queued_messages 0\nmax_inflight_messages 0\nretain_available false");
    let desk = Desk::new(broker.port, "rollout");
    let fleet = fleet(&broker, &desk, DEVICES);
    let site = |words: &[&str]| desk.run(&[words, &["--site", "plant"]].concat());
    let devices = site(&["devices", "--json"]);
    let listed: Vec<Value> = devices.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let online = listed.iter().filter(|device| device["state"] == "online" && device["version"] != "").count();
    assert_eq!((listed.len(), online), (DEVICES, DEVICES), "{}", devices.err);
    assert!(devices.err.contains("the devices of plant are asked"), "{}", devices.err);
    let (plan, secrets) = desk.make("good", "[outbox]\nlinger_ms = 10\n", &["--waves", "20,100"]);
    desk.publish_made("good", &plan);
    let secrets = secrets.display().to_string();
    let named = site(&["rollout", "run", "good", "--secrets", &secrets]);
    assert!(named.code == Some(1) && named.err.contains("give the plan's signed file"), "{}", named.err);
    let (plan, all) = (plan.display().to_string(), DEVICES.to_string());
    let done = site(&["rollout", "run", &plan, "--secrets", &secrets, "--devices", &all]);
    assert_eq!(done.code, Some(0), "{} {}", done.out, done.err);
    let starts = of_plan(&fleet.starts(), "good");
    let names: BTreeSet<&str> = starts.iter().map(|start| start.device.as_str()).collect();
    assert_eq!((names.len(), starts.len()), (DEVICES, DEVICES), "each device once");
}

fn good_release(broker: &mut Mosquitto, desk: &Desk, fleet: &Linked, devices: usize) {
    let (plan, secrets) = desk.make("good", "[outbox]\nlinger_ms = 10\n", &["--waves", "20,100"]);
    let published = Instant::now();
    desk.publish_made("good", &plan);
    let secrets = secrets.display().to_string();
    let run = ["rollout", "run", "good", "--secrets", &secrets];
    let mut controller = desk.start(&run);
    within(LONG, "the first wave runs", || !fleet.starts().is_empty());
    // What it kept is lost: the plan, the gate, what devices reported.
    broker.kill();
    let killed = Instant::now();
    if rig::long() {
        std::thread::sleep(Duration::from_secs(5));
    }
    broker.up();
    let up = Instant::now();
    let log = desk.dir.path().join("running.log");
    let again = "published it again";
    within(LONG, "the controller publishes the plan again", || {
        let ended = controller.0.try_wait().expect("wait");
        assert!(ended.is_none(), "{ended:?} before that: {}", controller.said());
        fs::read_to_string(&log).is_ok_and(|log| log.contains(again))
    });
    controller.kill();
    // The broker kept nothing, and some devices are not back: the new controller must not take them for absent.
    let all = devices.to_string();
    let mut controller = desk.start(&[&run[..], &["--devices", &all]].concat());
    let used = until_it_ends(&mut controller);
    assert_eq!(used.code, Some(0), "{}", fs::read_to_string(&log).unwrap_or_default());
    let starts = of_plan(&fleet.starts(), "good");
    let names: BTreeSet<&str> = starts.iter().map(|start| start.device.as_str()).collect();
    assert_eq!((names.len(), starts.len()), (devices, devices), "each device once");
    let share = starts.iter().filter(|start| start.wave == 1).count() as f64 / devices as f64;
    let most = if devices >= 10_000 { 0.01 } else { 0.12 };
    assert!((share - 0.2).abs() < most, "{share} in the first wave");
    let first_of_second = first_of_wave(&starts, 2).expect("a start");
    // Except for those that were offline, or had not reported again, when the second wave was opened: `offline_max` of the plan at most.
    let late = starts.iter().filter(|start| start.wave == 1 && start.at >= first_of_second).count() as f64;
    assert!(late <= OFFLINE_MAX * share * devices as f64, "{late} of the first wave start after the second has begun");
    let first = first_of_wave(&starts, 1).expect("a start");
    // Those that the broker had acknowledged start while it is away.
    let on = starts.iter().filter(|start| start.at > up).map(|start| start.at).min().expect("a start");
    let seconds = |from: Instant, to: Instant| (to - from).as_secs_f64();
    measured(&format!(
        "{devices} devices, waves 20 and 100 %: {:.2} % in the first; `plan publish` → first device of wave 1 runs {:.1} s; broker killed \
         in the wave (away for {:.1} s), then the controller: the next device starts {:.1} s after it is back, {} of them twice",
        share * 100.0,
        seconds(published, first),
        seconds(killed, up),
        seconds(up, on),
        starts.len() - names.len()
    ));
    measured(&format!(
        "{devices} devices: the controller used {} MiB, {:.1} s of processor time in {:.0} s",
        used.memory_kib / 1024,
        used.processor_s,
        used.took_s
    ));
    all_are_back(&fleet.connected(), up, devices);
}

fn all_are_back(connected: &[Connected], up: Instant, devices: usize) {
    let (most, took) = storm(connected, up, devices);
    let took = took.expect("all devices are back").as_secs_f64();
    measured(&format!(
        "{devices} devices come back after an outage: all of them within {took:.1} s, at most {most} in a second"
    ));
    assert!(took < 90.0, "{took}");
}

fn bad_release(desk: &Desk, fleet: &Linked, devices: usize) {
    // Some are away while it is halted, and come back.
    fleet.away(devices / 20);
    let (plan, secrets) = desk.make("bad", "[outbox]\nlinger_ms = 11\n", &["--waves", "10,100"]);
    desk.publish_made("bad", &plan);
    let mut heard = Command::new("mosquitto_sub");
    heard.args([
        "-h",
        "127.0.0.1",
        "-p",
        &desk.port.to_string(),
        "-C",
        "1",
        "-W",
        "600",
        "-t",
        "kl/plant/_all/dn/halt/bad",
    ]);
    let mut heard = heard.stdout(Stdio::null()).spawn().expect("mosquitto_sub");
    let halt = std::thread::spawn(move || heard.wait().map(|_| Instant::now()).expect("mosquitto_sub"));
    let done = desk.run(&["rollout", "run", "bad", "--secrets", &secrets.display().to_string()]);
    assert!(done.code == Some(1) && done.err.contains("is halted"), "{} {}", done.out, done.err);
    let there = devices - devices / 20;
    within(LONG, "connected devices hear the halt", || fleet.halts("bad").len() >= there);
    let heard = fleet.halts("bad");
    // The first that has it, of all that listen.
    let halt = halt.join().expect("the halt was heard").min(heard[0]);
    let returned = Instant::now();
    fleet.away(0);
    within(LONG, "the others are back", || fleet.halts("bad").len() >= devices);
    // They listen for `freshness_s`, 1 s, and longer.
    std::thread::sleep(Duration::from_millis(1500));
    let starts = of_plan(&fleet.starts(), "bad");
    assert!(!starts.is_empty() && starts.iter().all(|start| start.wave == 1), "no device outside wave 1 starts it");
    assert_eq!(starts.iter().filter(|start| start.at > returned).count(), 0, "a device that was away starts it");
    let late: Vec<f64> =
        starts.iter().filter(|start| start.at > halt).map(|start| (start.at - halt).as_secs_f64()).collect();
    let (last, p99) = (late.iter().copied().fold(0.0, f64::max), heard[there * 99 / 100 - 1] - halt);
    measured(&format!(
        "{devices} devices, a bad release: {} of wave 1 started it, {} of them after the halt, the last one {last:.2} s after it; a device \
         has heard the halt after p50 {:.2} s, p99 {:.2} s, the last one {:.2} s; starts by {} devices that were away: 0",
        starts.len(),
        late.len(),
        (heard[there / 2] - halt).as_secs_f64(),
        p99.as_secs_f64(),
        (heard[there - 1] - halt).as_secs_f64(),
        devices / 20
    ));
    assert!(last < 5.0, "{last} s after the halt a device still starts");
    let status = desk.json(&["rollout", "status", "bad", "--json"]).remove(0);
    assert_eq!((&status["halted"], &status["waves"][1]["open"]), (&json!(true), &json!(false)), "{status}");
}
