//! GPIO lines, by the kernel's own structs: edges, losses, storms; outputs that alarms drive, and their safe state.

use std::time::Duration;

use nix::sys::signal::Signal;
use rig::{
    Mosquitto, Operator, Site, Sub, Tty, eventually,
    gpio::{Edges, Guard, Lamp, monotonic_ns},
};
use serde_json::Value;

fn last(sub: &Sub, stream: &str) -> Option<Value> {
    sub.records(stream).pop().map(|(record, _)| record)
}

#[test]
fn edges_are_counted_timed_and_told_lost_ones_named_and_a_storm_ends_in_sampling() {
    let (broker, mut chip) = (Mosquitto::start(), Edges::default());
    let sub = Sub::new(broker.port);
    let text = format!(
        "[source.pins]\nkind = \"gpio\"\nchip = \"{}\"\nsample_ms = 50\nstorm_hz = 500\n[source.pins.lines]\n\
         flow = {{ line = 4, read = \"counter\" }}\nhz = {{ line = 4, read = \"frequency\" }}\n\
         door = {{ line = 5, read = \"edges\" }}\nenc = {{ line = 6, line_b = 7, read = \"quadrature\" }}\n\
         [channel.flow]\nscale = 0.5\n[channel.hz]\n[channel.door]\n[channel.enc]\n\
         [stream.counts]\nchannels = [\"flow\", \"hz\", \"enc\"]\n[stream.door]\nchannels = [\"door\"]\n",
        chip.path.display()
    );
    let daemon = Site::new(broker.port).with(&text).run();
    sub.wait_records("m/counts", 2);
    let t0 = monotonic_ns();
    const MS: u64 = 1_000_000;
    for i in 0..40 {
        chip.edge(4, true, t0 + i * 5 * MS);
        chip.edge(4, false, t0 + i * 5 * MS + MS);
    }
    for (line, rising) in [(6, true), (7, true), (6, false), (7, false), (6, true)] {
        chip.edge(line, rising, t0 + 300 * MS);
    }
    for i in 0..4 {
        chip.edge(5, i % 2 == 0, t0 + 400 * MS + i * 7 * MS);
    }
    let counted = || last(&sub, "m/counts").filter(|r| r["v"]["flow"] == 20.0 && r["v"]["enc"] == 5.0).map(drop);
    eventually("40 pulses of half a litre, 5 steps", counted);
    let hz: Vec<f64> = sub.records("m/counts").iter().filter_map(|(r, _)| r["v"]["hz"].as_f64()).collect();
    assert!(hz.iter().any(|hz| (hz - 200.0).abs() < 0.01), "{hz:?}");
    let door = sub.wait_records("m/door", 4);
    let seen: Vec<(f64, i64)> =
        door.iter().map(|(r, _)| (r["v"]["door"].as_f64().expect("v"), r["in_t_ns"][0].as_i64().expect("t"))).collect();
    assert_eq!(seen.iter().map(|(v, _)| *v).collect::<Vec<_>>(), [1.0, 0.0, 1.0, 0.0]);
    assert!(seen.windows(2).all(|pair| (pair[1].1 - pair[0].1 - 7_000_000).abs() < 100_000), "{seen:?}");

    chip.lose(4, 3);
    chip.edge(4, true, monotonic_ns());
    let faults = |word: &str| last(&sub, "q/pins").and_then(|q| q["faults"][word].as_u64());
    eventually("three lost edges are reported", || (faults("lost_edges") == Some(3)).then_some(()));

    let t0 = monotonic_ns();
    for i in 0..1500 {
        chip.edge(4, i % 2 == 0, t0 + i * MS / 2);
    }
    eventually("the storm is reported", || (faults("storm") == Some(1)).then_some(()));
    eventually("meanwhile nothing is said of what is not seen", || {
        last(&sub, "m/counts").filter(|r| r["v"]["flow"].is_null() && r["q"]["flow"] == "missing").map(drop)
    });
    eventually("edges are looked at again", || daemon.log().contains("edges are looked at again").then_some(()));
    sub.wait("and counted", |_| {
        chip.edge(4, true, monotonic_ns());
        std::thread::sleep(Duration::from_millis(20));
        last(&sub, "m/counts").filter(|r| r["v"]["flow"].is_number()).map(drop)
    });
    daemon.stop_well();
}

/// A pump with an alarm that turns a lamp on.
fn site(port: Option<u16>, tty: &Tty, lamp: &Lamp, more: &str) -> Site {
    let site = port.map_or_else(Site::offline, Site::new).with_sensor(tty).with_mean_model();
    site.with(&format!("[output.lamp]\nchip = \"{}\"\nline = 3\nalarms = [\"high\"]\n{more}", lamp.path.display()))
}

#[test]
fn an_alarm_turns_a_line_on_without_a_broker_and_whatever_ends_the_daemon_makes_it_safe() {
    let (mut tty, lamp) = (Tty::default(), Lamp::default());
    let site = site(None, &tty, &lamp, "");
    let guard = Guard(site.state());
    let mut n = 0;
    let mut give = |tty: &mut Tty, value: u32| {
        tty.rows(n..n + 4, |i| format!("{i},{value},{value}"));
        n += 4;
    };
    let daemon = site.run();
    lamp.wait(false, "the safe state from the start on");
    eventually("a model serves", || daemon.own_log().contains("serving").then_some(()));
    give(&mut tty, 50);
    let on = lamp.wait(true, "the alarm turns it on");
    give(&mut tty, 0);
    lamp.wait(false, "and off when it is cleared");
    give(&mut tty, 50);
    lamp.wait(true, "on");
    let first = guard.pid().expect("a guard");

    // How long it takes from the row to the line.
    let mut took: Vec<Duration> = Vec::new();
    for on in [false, true].into_iter().cycle().take(100) {
        std::thread::sleep(Duration::from_millis(5));
        let began = std::time::Instant::now();
        give(&mut tty, if on { 50 } else { 0 });
        lamp.wait(on, "it follows the alarm");
        took.push(began.elapsed());
    }
    took.sort();

    // The line does not wait for the disk; what follows does.
    eventually("the alarm is kept", || site.state().join("alarms/high").exists().then_some(()));

    // The daemon hangs: silence of half a second.
    daemon.signal(Signal::SIGSTOP);
    let frozen = lamp.wait(false, "a frozen daemon makes it safe");
    daemon.signal(Signal::SIGCONT);
    lamp.wait(true, "the alarm still stands");

    // It dies: the end of the connection. The guard goes on holding, and the next daemon finds it.
    daemon.kill();
    let killed = lamp.wait(false, "a killed daemon makes it safe");
    assert_eq!(guard.pid(), Some(first));
    let daemon = site.run();
    // The alarm was kept: it is raised from the start on.
    lamp.wait(true, "a raised alarm is remembered");
    assert_eq!(guard.pid(), Some(first), "the same process still holds the line");

    // The guard dies, or hangs: another one takes the line over.
    let before = lamp.seen().len();
    guard.signal(Signal::SIGKILL);
    eventually("another guard", || guard.pid().filter(|pid| *pid != first));
    eventually("which sets it again", || {
        let seen = lamp.seen();
        (seen.len() >= before + 2 && lamp.is_on() == Some(true)).then_some(())
    });
    let second = guard.signal(Signal::SIGSTOP);
    let third = eventually("a third guard", || guard.pid().filter(|pid| *pid != second));
    assert_ne!(third, second);
    lamp.wait(true, "on");

    // Both at once: only the kernel is left to act; the next daemon makes it safe first.
    let before = lamp.seen().len();
    guard.signal(Signal::SIGKILL);
    daemon.kill();
    let daemon = site.run();
    eventually("safe first, then on", || {
        let seen: Vec<bool> = lamp.seen()[before..].iter().map(|(on, _)| *on).collect();
        (seen.contains(&false) && seen.last() == Some(&true)).then_some(())
    });

    give(&mut tty, 0);
    lamp.wait(false, "off");
    give(&mut tty, 50);
    lamp.wait(true, "on");
    daemon.stop_well();
    let stopped = lamp.wait(false, "the stop makes it safe");
    rig::measured(&format!(
        "output: {:.1} ms after the first row was given, p50 of 100 changes {:.2} ms, the longest {:.1} ms; safe after SIGSTOP of the daemon {:.0} ms, kill -9 {:.1} ms, its stop {:.1} ms",
        on.as_secs_f64() * 1e3,
        took[50].as_secs_f64() * 1e3,
        took[99].as_secs_f64() * 1e3,
        frozen.as_secs_f64() * 1e3,
        killed.as_secs_f64() * 1e3,
        stopped.as_secs_f64() * 1e3
    ));
    assert!(frozen < Duration::from_secs(2) && killed < Duration::from_secs(1));
}

#[test]
fn a_line_rests_for_its_time_and_its_safe_state_may_be_on() {
    let (broker, mut tty, lamp) = (Mosquitto::start(), Tty::default(), Lamp::default());
    let sub = Sub::new(broker.port);
    let site = site(Some(broker.port), &tty, &lamp, "safe = \"on\"\ndwell_ms = 700\n");
    let _guard = Guard(site.state());
    let daemon = site.run();
    sub.wait_state("online");
    lamp.wait(false, "no alarm: off");
    assert!(lamp.seen()[0].0, "but safe first: {:?}", lamp.seen());
    let mut n = 0;
    for value in [50, 0, 50, 0, 50, 0] {
        tty.rows(n..n + 4, |i| format!("{i},{value},{value}"));
        n += 4;
        std::thread::sleep(Duration::from_millis(150));
    }
    sub.wait_records("a/high", 6);
    std::thread::sleep(Duration::from_millis(1500));
    let rested: Vec<_> = lamp.seen().windows(2).skip(1).map(|pair| pair[1].1 - pair[0].1).collect();
    // Alarms change every 150 ms; what is seen of 700 ms is skewed by a busy machine.
    assert!(!rested.is_empty() && rested.iter().all(|rest| *rest >= Duration::from_millis(250)), "{rested:?}");
    assert_eq!(lamp.is_on(), Some(false));
    daemon.stop_well();
    lamp.wait(true, "safe is on");
}

#[test]
fn another_configuration_makes_no_lamp_flicker() {
    let (broker, mut tty, lamp) = (Mosquitto::start(), Tty::default(), Lamp::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let dir = tempfile::TempDir::new().expect("folder");
    let keys = [operator.key(&["command", "keyset"])];
    let keyset = rig::maker::keyset(dir.path(), 1, &keys, &serde_json::json!({}));
    let commands = format!("[commands]\nkeyset = \"{}\"\njitter_s = 0\n", keyset.display());
    let site = site(Some(broker.port), &tty, &lamp, &commands);
    let _guard = Guard(site.state());
    let daemon = site.run();
    sub.wait_state("online");
    eventually("a model serves", || daemon.own_log().contains("serving").then_some(()));
    tty.rows(0..4, |i| format!("{i},50,50"));
    lamp.wait(true, "on");
    let before = lamp.seen().len();
    operator.order(&sub, "config.set", "c1", &serde_json::json!({"toml": "[channel.a]\nmax = 2e6\n"}));
    sub.wait("the setting is in use", |_| {
        let states = rig::operator::states(&sub, "config.set", "c1");
        states.last().filter(|state| *state == "success").map(drop)
    });
    assert_eq!(daemon.log().matches("the guard holds the outputs").count(), 2, "{}", daemon.log());
    // A machine so busy that the guard heard nothing for half a second is another case.
    if !daemon.log().contains("the daemon is silent") {
        assert_eq!(lamp.seen().len(), before, "{:?}", lamp.seen());
    }
    lamp.wait(true, "on");
    tty.rows(4..8, |i| format!("{i},0,0"));
    lamp.wait(false, "and it still follows");
    daemon.stop_well();
}

#[test]
fn lines_that_are_no_longer_wanted_are_safe_and_let_go() {
    let (broker, mut tty, lamp) = (Mosquitto::start(), Tty::default(), Lamp::default());
    let (sub, operator) = (Sub::new(broker.port), Operator::new(broker.port, "ops"));
    let dir = tempfile::TempDir::new().expect("folder");
    let keyset = rig::maker::keyset(dir.path(), 1, &[operator.key(&["command", "keyset"])], &serde_json::json!({}));
    let commands = format!("[commands]\nkeyset = \"{}\"\njitter_s = 0\n", keyset.display());
    let site = Site::new(broker.port).with_sensor(&tty).with_mean_model().with(&commands);
    let guard = Guard(site.state());
    let set = |id: &str, toml: &str| {
        operator.order(&sub, "config.set", id, &serde_json::json!({ "toml": toml }));
        sub.wait("the setting is in use", |_| {
            let states = rig::operator::states(&sub, "config.set", id);
            states.last().filter(|state| *state == "success").map(drop)
        });
    };
    let output =
        |name: &str| format!("[output.{name}]\nchip = \"{}\"\nline = 3\nalarms = [\"high\"]\n", lamp.path.display());
    let daemon = site.run();
    sub.wait_state("online");
    eventually("a model serves", || daemon.own_log().contains("serving").then_some(()));
    tty.rows(0..4, |i| format!("{i},50,50"));
    sub.wait_records("a/high", 1);
    assert_eq!(guard.pid(), None);
    set("c1", &output("lamp"));
    lamp.wait(true, "the alarm stands");
    let first = guard.pid().expect("a guard");
    // The same line under another name: another guard.
    set("c2", &output("siren"));
    eventually("another guard", || guard.pid().filter(|pid| *pid != first));
    lamp.wait(true, "the alarm still stands");
    assert_eq!(daemon.zombies(), 0);
    set("c3", "");
    lamp.wait(false, "no alarm or command turns it on");
    assert_eq!((guard.pid(), daemon.zombies()), (None, 0), "{}", daemon.log());
    // One that a killed daemon left behind, too.
    set("c4", &output("lamp"));
    lamp.wait(true, "on");
    daemon.kill();
    lamp.wait(false, "the daemon is gone");
    assert!(guard.pid().is_some());
    std::fs::remove_file(site.state().join("config/remote.toml")).expect("what was set remotely");
    let daemon = site.run();
    eventually("it is let go", || guard.pid().is_none().then_some(()));
    daemon.stop_well();
}

#[test]
fn a_line_that_cannot_be_had_is_told_and_costs_nothing_else() {
    let (broker, mut tty, lamp) = (Mosquitto::start(), Tty::default(), Lamp::default());
    let sub = Sub::new(broker.port);
    let site =
        site(Some(broker.port), &tty, &lamp, "[output.siren]\nchip = \"nowhere\"\nline = 1\nalarms = [\"high\"]\n");
    let _guard = Guard(site.state());
    let daemon = site.run();
    sub.wait_state("online");
    eventually("it is reported", || {
        daemon.log().contains("output `siren` on nowhere: no chip is called nowhere").then_some(())
    });
    tty.rows(0..4, |i| format!("{i},50,50"));
    sub.wait_records("a/high", 1);
    daemon.stop_well();
}

#[test]
fn outputs_work_without_a_writable_state_directory() {
    let (mut tty, lamp) = (Tty::default(), Lamp::default());
    let Some(disk) = rig::Disk::new(24) else { return };
    disk.read_only(true);
    let site = site(None, &tty, &lamp, "").with_state(&disk.path().join("state"));
    let guard = Guard(site.state());
    let daemon = site.run();
    eventually("the guard holds the lamp", || daemon.own_log().contains("the guard holds the outputs").then_some(()));
    eventually("a model serves", || daemon.own_log().contains("serving").then_some(()));
    tty.rows(0..4, |i| format!("{i},50,50"));
    lamp.wait(true, "on");
    daemon.kill();
    lamp.wait(false, "the daemon is gone");
    // The next daemon finds the guard of the previous one.
    let pid = guard.pid().expect("a guard");
    let daemon = site.run();
    eventually("the guard holds the lamp", || daemon.own_log().contains("the guard holds the outputs").then_some(()));
    assert_eq!(guard.pid(), Some(pid));
    daemon.kill();
}
