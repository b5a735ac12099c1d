//! `[stream.NAME]`: channels as measurements, without any pipeline and without ONNX Runtime.

use rig::{Mosquitto, Site, Sub, Tty, daemon};

const STREAMS: &str = "
[stream.raw]
channels = [\"a\", \"b\"]
[stream.every-third]
channels = [\"a\"]
mode = \"decimate\"
every = 3
[stream.summary]
channels = [\"a\", \"b\"]
mode = \"stats\"
interval_ms = 1000
";

#[test]
fn channels_are_published_without_a_pipeline_and_without_onnx_runtime() {
    let (broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    let site = Site::new(broker.port);
    let site = site.with(&format!(
        "[source.s]\npath = \"{}\"\ncolumns = [\"n\", \"t\", \"a\", \"b\"]\nseq = \"n\"\ntime = \"t\"\ntime_format = \"ms\"\n\
         [channel.a]\nunit = \"bar\"\nscale = 2.0\noffset = 1.0\nmax = 100.0\n[channel.b]\n{STREAMS}",
        tty.path().display()
    ));
    let mut command = daemon::command();
    command.args(["run", "--config"]).arg(site.config()).env("KENTLEDGE_ORT_LIB", "/nowhere/libonnxruntime.so");
    let daemon = site.spawn(&mut command);
    sub.wait_state("online");
    tty.rows(0..50, |i| {
        format!(
            "{i},{},{},{}",
            i * 100,
            if i == 7 { "60".into() } else { i.to_string() },
            if i == 9 { "nan" } else { "5" }
        )
    });

    let raw = sub.wait_records("m/raw", 50);
    assert_eq!(raw[3].0["v"], serde_json::json!({"a": 7, "b": 5}));
    assert_eq!(raw[7].0["q"], serde_json::json!({"a": "bad:range"}));
    assert_eq!((&raw[9].0["v"]["b"], &raw[9].0["q"]["b"]), (&serde_json::Value::Null, &"bad:not_a_number".into()));
    assert_eq!(raw[4].0["in_t_ns"], serde_json::json!([400_000_000, 400_000_000]));
    let thirds: Vec<_> = sub.wait_records("m/every-third", 17).iter().map(|(r, _)| r["in_seq"][0].clone()).collect();
    assert_eq!(thirds, (0..50).step_by(3).collect::<Vec<_>>());

    let stats = sub.wait_records("m/summary", 4);
    assert_eq!(stats[1].0["v"]["a"], serde_json::json!({"min": 21, "mean": 30, "max": 39, "n": 10}));
    assert_eq!(stats[0].0["v"]["b"]["n"], 9);
    assert_eq!(stats[0].0["q"], serde_json::json!({"a": "bad:range", "b": "bad:not_a_number"}));

    let meta = sub.wait("meta", |m| m.iter().find(|m| m.stream == "meta/summary").cloned());
    assert_eq!((&meta.payload["channels"]["a"]["unit"], &meta.payload["interval_ms"]), (&"bar".into(), &1000.into()));
    // The open interval is closed by the stop, so that nothing of it is lost.
    daemon.stop_well();
    assert_eq!(sub.wait_records("m/summary", 5).len(), 5);
}
