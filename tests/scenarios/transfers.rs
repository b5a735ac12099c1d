//! Bundles by HTTPS, from servers that behave and servers that do not; and from a file on the machine, over D-Bus.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rig::{
    bus::Bus,
    daemon, eventually,
    maker::{self, Draft},
    measured, onnx,
    operator::end,
    tls,
    world::World,
};
use serde_json::{Value, json};

/// A server of one file.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(certs: &Path, file: &Path, manner: &str) -> Self {
        let mut python = Command::new("python3");
        python.arg(rig::root().join("tests/client/https_server.py"));
        python.arg(certs.join("server.pem")).arg(certs.join("server.key")).arg(file).arg(manner);
        let mut child = python.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("python3");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("its port");
        Self { child, port: line.trim().parse().expect("a port") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A bundle of this sequence, 200 KB of it.
fn large(world: &World, seq: u64) -> std::path::PathBuf {
    let mut draft = Draft::mean(seq);
    let text: String =
        (0..200_000u32).map(|i| char::from(b'a' + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 26)).collect();
    draft.files.push(("card.md".into(), text.into_bytes()));
    world.maker.bundle(&draft)
}

fn certs(world: &World) -> std::path::PathBuf {
    let dir = world.maker.path("tls");
    fs::create_dir_all(&dir).expect("folder");
    let ca = tls::authority(&dir, "ca");
    tls::certificate(&dir, "server", &ca);
    dir
}

fn fetch(world: &mut World, id: &str, bundle: &Path, port: u16) -> Value {
    let size = fs::metadata(bundle).expect("bundle").len();
    let url = format!("https://localhost:{port}/m.kmb");
    world.operator.order(
        &world.sub,
        "model.install",
        id,
        &json!({"sha256": maker::sha256(bundle), "size": size, "url": url}),
    );
    world.rows_until_end(id, 0)
}

#[test]
fn a_bundle_comes_by_https_in_pieces_and_from_servers_that_misbehave_nothing_else_comes() {
    let mut world = World::new("trial_s = 0\ntrial_windows = 5\n");
    let certs = certs(&world);
    let ca = certs.join("ca.pem");
    world.site = world.site.clone().with_more_in_models(&format!("ca_file = \"{}\"\n", ca.display()));
    let mut daemon = world.run();
    for (seq, manner, expected, word) in [
        (2, "good", "success", ""),
        (3, "plain", "success", ""),
        (4, "cuts", "success", ""),
        (5, "liar", "success", ""),
        (6, "endless", "failed", "was asked for"),
        (7, "other", "failed", "was asked for"),
        (8, "missing", "failed", "404"),
    ] {
        let bundle = large(&world, seq);
        let server = Server::start(&certs, &bundle, manner);
        let began = Instant::now();
        let ended = fetch(&mut world, &format!("by-{manner}"), &bundle, server.port);
        assert_eq!(ended["state"], expected, "{manner}: {ended}");
        assert!(ended["text"].as_str().is_some_and(|text| text.contains(word)), "{manner}: {ended}");
        measured(&format!("{manner}: {expected} after {:.1} s", began.elapsed().as_secs_f64()));
        let left = fs::read_dir(world.site.state().join("models/incoming")).expect("incoming").count();
        assert_eq!(left, 0, "{manner} leaves something");
    }
    assert!(daemon.is_alive() && daemon.rss_kib() < 40 * 1024, "{} KiB", daemon.rss_kib());
    assert_eq!(world.slot_now()["model"], "mean@1.5.0");
    daemon.stop_well();
}

/// Long, for it is a minute of silence eight times over (`tests/long`).
#[test]
fn a_server_that_drips_is_left() {
    if !rig::long() {
        return;
    }
    let world = World::new("trial_s = 0\ntrial_windows = 5\n");
    let certs = certs(&world);
    let site = world.site.clone().with_more_in_models(&format!("ca_file = \"{}\"\n", certs.join("ca.pem").display()));
    let daemon = site.run();
    world.sub.wait_state("online");
    let bundle = large(&world, 2);
    let server = Server::start(&certs, &bundle, "drips");
    let size = fs::metadata(&bundle).expect("bundle").len();
    let url = format!("https://localhost:{}/m.kmb", server.port);
    let args = json!({"sha256": maker::sha256(&bundle), "size": size, "url": url});
    world.operator.order(&world.sub, "model.install", "drip", &args);
    rig::within(Duration::from_secs(900), "it is left", || {
        let records = world.sub.records("res/model.install/drip");
        records
            .iter()
            .any(|(r, _)| r["state"] == "failed" && r["text"].as_str().is_some_and(|t| t.contains("in a row")))
    });
    daemon.stop_well();
}

#[test]
fn a_file_on_the_machine_is_installed_and_taken_back_by_the_command_line() {
    let bus = Bus::start();
    let mut world = World::new("trial_s = 0\ntrial_windows = 20\n");
    world.site =
        world.site.clone().with_device(&format!("site = \"plant\"\nid = \"pump-1\"\nbus = \"{}\"", bus.address()));
    let daemon = world.run();
    let bundle = world.maker.bundle(&Draft::mean(2));
    eventually("the daemon is on the bus", || {
        daemon::run(&["status", "--bus", &bus.address()]).code.filter(|code| *code == 0)
    });
    let play = |world: &mut World, args: &[&str]| {
        let mut child = daemon::command();
        child.args(args).args(["--bus", &bus.address()]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().expect("kentledge");
        while child.try_wait().expect("wait").is_none() {
            world.rows(4, 0);
            std::thread::sleep(Duration::from_millis(20));
        }
        rig::Done::from(child.wait_with_output().expect("output"))
    };
    let path = bundle.display().to_string();
    // A requester that stopped sending chunks is not waited for.
    let args = json!({"sha256": "0".repeat(64), "size": 1000});
    world.operator.order(&world.sub, "model.install", "stopped", &args);
    world.sub.wait("it waits for chunks", |m| m.iter().any(|m| m.stream.starts_with("blob/0000")).then_some(()));
    let done = play(&mut world, &["model", "install", &path]);
    assert_eq!(end(&world.sub, "model.install", "stopped")["state"], "failed");
    assert_eq!(done.code, Some(0), "{} {}", done.out, done.err);
    assert!(done.out.contains("installed: healthy for"), "{}", done.out);
    let done = play(&mut world, &["model", "install", &path]);
    assert!(done.out.contains("serves already"), "{} {}", done.out, done.err);
    let done = play(&mut world, &["model", "rollback"]);
    assert_eq!(done.code, Some(0), "{} {}", done.out, done.err);
    assert!(done.out.contains("factory"), "{}", done.out);
    // What is no bundle is refused with a reason, and the daemon lives on.
    let rubbish = world.maker.path("rubbish.kmb");
    fs::write(&rubbish, vec![7u8; 10_000]).expect("write");
    let play = |path: &Path| daemon::run(&["model", "install", &path.display().to_string(), "--bus", &bus.address()]);
    let done = play(&rubbish);
    assert_eq!(done.code, Some(1));
    assert!(done.err.contains("a file of an unknown kind"), "{}", done.err);
    // What it is, what is needed, and which command makes it, for other kinds of file too.
    let model = world.maker.path("x.onnx");
    fs::write(&model, onnx::mean(&maker::SHAPE)).expect("write");
    let done = play(&model);
    assert_eq!(done.code, Some(1));
    assert!(done.err.is_ascii() && done.err.contains("it is an ONNX model"), "{}", done.err);
    assert!(done.err.contains("kentledge model pack"), "{}", done.err);
    let config = world.site.config().display().to_string();
    let (model, out) = (model.display().to_string(), world.maker.path("out.kmb").display().to_string());
    for (args, words) in [
        (&["model", "verify", &model, "--config", &config][..], "it is an ONNX model; expected a signed bundle"),
        (&["model", "pack", &model, "-o", &out], "it is an ONNX model; expected a folder"),
        (&["model", "prepare", &model], "it is an ONNX model; expected a folder"),
        (&["replay", &config, "--config", &config], "not a tape but a TOML"),
        (&["replay", &model, "--config", &config], "not a tape but an ONNX model"),
    ] {
        let done = daemon::run(args);
        assert_eq!(done.code, Some(1), "{args:?}");
        assert!(done.err.contains(words), "{args:?}: {}", done.err);
    }
    daemon.stop_well();
}
