//! Escalation: what leaves the device, and what an answer may do. A proxy in front of the broker records every byte.

use std::{collections::BTreeMap, time::Duration};

use rig::{Daemon, Mosquitto, Operator, Recorder, Site, Sub, Tty, eventually};
use serde_json::{Value, json};

/// Numbers of this pipeline in the metrics page.
fn counted(port: u16, name: &str) -> f64 {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("metrics");
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("write");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("read");
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("kentledge_{name} ")).map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().expect("a number")
}

/// Rows `n,a,b` whose windows of four have a mean near 10, each window another one.
fn near(i: u64) -> String {
    format!("{i},{}.{:03},10", 9 + i % 2, i % 1000)
}

/// The bytes of the window of four rows that begins at this one, as they would be sent.
fn window(first: u64) -> Vec<u8> {
    let row = |i: u64| [format!("{}.{:03}", 9 + i % 2, i % 1000).parse::<f32>().expect("a number"), 10.0];
    (first..first + 4).flat_map(row).flat_map(f32::to_le_bytes).collect()
}

fn run(site: &Site, sub: &Sub) -> Daemon {
    let daemon = site.run();
    sub.wait_state("online");
    eventually("a model serves", || daemon.own_log().contains("serving mean").then_some(()));
    daemon
}

#[test]
fn escalation_off_puts_no_byte_of_a_window_on_the_wire_and_on_never_more_than_its_budget_over_restarts() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let off = Recorder::before(broker.port);
    let site = Site::new(off.port).with_sensor(&tty).with_mean_model();
    let daemon = run(&site, &sub);
    tty.rows(0..200, near);
    sub.wait_records("p/x", 197);
    daemon.stop_well();
    assert!(off.sent() > 10_000, "{} bytes: the capture works", off.sent());
    assert_eq!((off.count(b"/up/x/"), off.count(b"KLX1"), off.publishes("/up/x/").len()), (0, 0, 0));
    assert!((0..197).all(|first| off.count(&window(first)) == 0), "no window's values");
    assert!(!off.publishes("/up/p/x").is_empty());

    let (on, metrics) = (Recorder::before(broker.port), rig::free_port());
    let escalate = "[pipeline.x.escalate]\nband = 2.0\nmax_per_hour = 3\nmax_kib_day = 8\n";
    let site = site.with_broker(on.port).with(escalate).with_metrics(&format!("listen = \"{metrics}\""));
    let mut from = 200;
    for life in 0..2 {
        let daemon = run(&site, &sub);
        eventually("windows may be sent", || {
            tty.rows(from..from + 20, near);
            from += 20;
            std::thread::sleep(Duration::from_millis(100));
            (counted(metrics, "not_escalated_total{pipeline=\"x\",reason=\"budget\"}") > 10.0).then_some(())
        });
        assert_eq!(counted(metrics, "escalated_total{pipeline=\"x\"}"), if life == 0 { 3.0 } else { 0.0 });
        daemon.stop_well();
    }
    let packets = on.publishes("/up/x/x");
    assert_eq!((packets.len(), on.count(b"KLX1")), (3, 3), "three an hour, also over a restart");
    assert!(packets.iter().sum::<usize>() <= 8 * 1024, "{packets:?}");
    let values = (200..from).filter(|first| on.count(&window(*first)) > 0).count();
    assert_eq!(values, 3, "what leaves is these three windows");
}

/// What a responder says of this request.
fn answer(request: &Value, verdict: &str) -> Value {
    json!({"v": 1, "id": request["id"], "verdict": verdict, "model": "big@2.0.0", "sha256": "0f".repeat(32), "score": 3.5})
}

#[test]
fn answer_in_time_is_published_and_raises_and_clears_the_alarm_and_any_other_is_counted_and_changes_nothing() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let (sub, responder, metrics) = (Sub::new(broker.port), Operator::new(broker.port, "big"), rig::free_port());
    let escalate = "[pipeline.x.escalate]\nband = 2.0\nmax_per_hour = 100\ndeadline_ms = 2000\nanswer = \"alarm\"\n";
    let site = Site::new(broker.port).with_sensor(&tty).with_mean_model().with(escalate);
    let daemon = run(&site.with_metrics(&format!("listen = \"{metrics}\"")), &sub);
    let came = |what: &str| counted(metrics, &format!("escalation_answers_total{{pipeline=\"x\",outcome=\"{what}\"}}"));
    let topic = |request: &Value| {
        let digest = request["win"].as_str().and_then(|win| win.strip_prefix("sha256:")).expect("win").to_owned();
        format!("pump-1/dn/x/x/{digest}")
    };
    let (mut rows, mut known) = (0, 0);
    // Rows until another window is sent: all are a little below the threshold of 10.
    let mut ask = || {
        let newer = eventually("a window is sent", || {
            tty.rows(rows..rows + 4, |i| format!("{i},9.{:03},9.5", i % 1000));
            rows += 4;
            std::thread::sleep(Duration::from_millis(60));
            let requests: Vec<Value> =
                sub.messages().iter().filter(|m| m.stream == "x/x").map(|m| m.payload.clone()).collect();
            (requests.len() > known).then_some(requests)
        });
        known = newer.len();
        newer.last().expect("a request").clone()
    };

    let first = ask();
    assert_eq!((&first["why"], &first["shape"], &first["threshold"]), (&json!("band"), &json!([4, 2]), &json!(10)));
    responder.send(&topic(&first), "{\"v\":1}");
    responder.send("pump-1/dn/x/x/00", &answer(&first, "anomaly").to_string());
    responder.send("pump-1/dn/x/y/00", &answer(&first, "anomaly").to_string());
    responder.send(&topic(&first), &json!({"id": "0000000000000000"}).to_string());
    let mut foreign = answer(&first, "anomaly");
    foreign["id"] = json!("0123456789abcdef");
    responder.send(&topic(&first), &foreign.to_string());
    eventually("they are counted", || (came("malformed") == 2.0 && came("foreign") == 2.0).then_some(()));
    assert!(sub.records("a/high").is_empty() && sub.records("p/x/cloud").is_empty());

    let second = ask();
    responder.send(&topic(&second), &answer(&second, "anomaly").to_string());
    let (record, _) = sub.wait_records("p/x/cloud", 1).remove(0);
    assert_eq!(
        (&record["verdict"], &record["win"], &record["in_seq"]),
        (&json!("anomaly"), &second["win"], &second["in_seq"])
    );
    assert_eq!((&record["local"]["verdict"], &record["score"]), (&json!("normal"), &json!(3.5)));
    let cloud = sub.messages().into_iter().find(|m| m.stream == "p/x/cloud").expect("a record");
    assert_eq!(cloud.payload["lineage"]["model"], "cloud:big@2.0.0");
    let (raised, _) = sub.wait_records("a/high", 1).remove(0);
    assert_eq!(
        (&raised["phase"], &raised["by"], &raised["win"]),
        (&json!("raised"), &json!("escalation"), &second["win"])
    );
    responder.send(&topic(&second), &answer(&second, "normal").to_string());
    eventually("the second answer is counted", || (came("double") == 1.0).then_some(()));
    assert_eq!(sub.records("a/high").len(), 1);

    let third = ask();
    assert_eq!(sub.records("a/high").len(), 1, "it stands while the model is unsure");
    responder.send(&topic(&third), &answer(&third, "normal").to_string());
    let (cleared, _) = sub.wait_records("a/high", 2).remove(1);
    assert_eq!((&cleared["phase"], &cleared["by"]), (&json!("cleared"), &json!("escalation")));

    let late = ask();
    std::thread::sleep(Duration::from_millis(2100));
    responder.send(&topic(&late), &answer(&late, "anomaly").to_string());
    eventually("it is late", || (came("late") == 1.0).then_some(()));
    assert_eq!((sub.records("a/high").len(), sub.records("p/x/cloud").len(), came("in_time")), (2, 2, 2.0));
    assert!(came("none") >= 2.0, "the first one had no answer either");
    daemon.stop_well();
}

/// A device, and when its rows were written and its predictions came.
struct Beside {
    _broker: Mosquitto,
    tty: Tty,
    sub: Sub,
    daemon: Daemon,
    written_ns: BTreeMap<u64, u64>,
}

impl Beside {
    fn new(more: &str) -> Self {
        let (broker, tty) = (Mosquitto::start(), Tty::default());
        let sub = Sub::new(broker.port);
        let site = Site::new(broker.port).with_sensor(&tty).with_mean_model().with(more);
        let daemon = run(&site, &sub);
        Self { _broker: broker, tty, sub, daemon, written_ns: BTreeMap::new() }
    }

    /// From the last row of each window to its prediction at the broker, ms, ascending.
    fn took_ms(&self) -> Vec<f64> {
        let messages = self.sub.messages();
        let of = messages.iter().filter(|m| m.stream == "p/x");
        let rows = of.flat_map(|m| {
            let data = m.payload["data"].as_array().cloned().unwrap_or_default();
            data.into_iter().filter_map(|record| Some((record["in_seq"][1].as_u64()?, m.at_ns)))
        });
        let took = rows.filter_map(|(row, at_ns)| Some((at_ns - self.written_ns.get(&row)?) as f64 / 1e6));
        let mut took: Vec<f64> = took.collect();
        took.sort_by(f64::total_cmp);
        took
    }
}

#[test]
fn escalation_is_beside_the_local_road_and_delays_no_prediction() {
    let rows = if rig::long() { 12_000 } else { 400 };
    // Nobody answers, so 16 requests are pending all the time, and each second 16 others take their place.
    let escalate = "[pipeline.x.escalate]\nband = 5.0\nmax_per_hour = 600\nmax_kib_day = 10240\ndeadline_ms = 1000\n";
    let mut both = [Beside::new(""), Beside::new(escalate)];
    for i in 0..rows {
        for at in [i % 2, (i + 1) % 2] {
            let device = &mut both[at as usize];
            device.written_ns.insert(i, rig::boot_ns());
            device.tty.rows(i..i + 1, near);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for device in &both {
        device.sub.wait_records("p/x", rows as usize - 3);
    }
    let sent = both[1].sub.messages().iter().filter(|m| m.stream == "x/x").count();
    let [off, on] = [both[0].took_ms(), both[1].took_ms()];
    let at = |took: &[f64], share: f64| took[((took.len() - 1) as f64 * share) as usize];
    let [p50, p99] = [0.5, 0.99].map(|share| (at(&off, share), at(&on, share)));
    rig::measured(&format!(
        "row to prediction at the broker, {} windows each in turns, all of them unsure: escalation off p50 {:.2} ms, p99 {:.2} ms; \
         on, {sent} windows sent: p50 {:.2} ms, p99 {:.2} ms; ratio {:.3} and {:.3}",
        off.len(),
        p50.0,
        p99.0,
        p50.1,
        p99.1,
        p50.1 / p50.0,
        p99.1 / p99.0
    ));
    assert_eq!((off.len(), on.len()), (rows as usize - 3, rows as usize - 3));
    assert!(sent >= 16, "{sent} windows sent");
    // A wait for the budget's write, or for an answer, would be seen in most windows.
    assert!(p50.1 < 2.0 * p50.0 + 5.0, "{p50:?}");
    for device in both {
        device.daemon.stop_well();
    }
}
