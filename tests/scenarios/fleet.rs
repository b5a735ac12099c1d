//! `kentledge-fleet` as an operator uses it: real daemons and light devices at a real broker, real minisign, the real program.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rig::{
    Done, Mosquitto, Operator, Site, Tty, eventually,
    fleet::{Fleet, Ills, Size, rollout::Play},
    free_port,
};
use serde_json::{Value, json};

/// An operator's laptop: the program, a folder, a key.
pub struct Desk {
    pub dir: tempfile::TempDir,
    pub port: u16,
    pub operator: Operator,
    role: &'static str,
}

impl Desk {
    pub fn new(port: u16, role: &'static str) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let desk = Self { dir, port, operator: Operator::new(port, "release"), role };
        let keys = json!([desk.operator.key(&[desk.role])]);
        let keyset =
            json!({"_type": "kentledge.keyset", "version": 1, "expires": "2036-01-01T00:00:00Z", "keys": keys});
        fs::write(desk.keyset(), keyset.to_string()).expect("write");
        desk
    }

    pub fn keyset(&self) -> PathBuf {
        self.dir.path().join("keyset.json")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(rig::daemon::binary().with_file_name("kentledge-fleet"));
        command.args(["--broker", &format!("mqtt://127.0.0.1:{}", self.port)]).args(args);
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Done {
        Done::from(self.command(args).output().expect("run kentledge-fleet"))
    }

    /// Its output is one JSON value a line.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Vec<Value> {
        let done = self.run(args);
        assert_eq!(done.code, Some(0), "{args:?}: {}", done.err);
        done.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn sign(&self, file: &Path, key: &Operator) {
        let mut minisign = Command::new("minisign");
        minisign.args(["-S", "-q", "-m"]).arg(self.dir.path().join(file)).arg("-s").arg(key.secret());
        let signed = minisign.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("minisign");
        assert!(signed.success());
    }

    /// Makes, signs and publishes a plan that brings settings; its name, and its secrets file.
    fn publish(&self, name: &str, options: &[&str]) -> (PathBuf, PathBuf) {
        let files = self.make(name, "[outbox]\nlinger_ms = 10\n", options);
        self.publish_made(name, &files.0);
        files
    }

    /// The files of a plan that brings these settings, and of its secrets.
    pub fn make(&self, name: &str, settings: &str, options: &[&str]) -> (PathBuf, PathBuf) {
        fs::write(self.dir.path().join("fleet.toml"), settings).expect("write");
        let fixed =
            ["plan", "make", "config", "fleet.toml", "--to", "plant/_all", "--name", name, "--freshness-s", "1"];
        let made = self.json(&[&fixed[..], &["--hold-s", "0", "--json"], options].concat()).remove(0);
        let file = |key: &str| PathBuf::from(made[key].as_str().expect("a file"));
        (file("plan"), file("secrets"))
    }

    pub fn publish_made(&self, name: &str, plan: &Path) {
        self.sign(plan, &self.operator);
        let plan = plan.display().to_string();
        let keyset = self.keyset().display().to_string();
        let published = self.json(&["plan", "publish", &plan, "--keyset", &keyset, "--json"]);
        assert_eq!(published[0]["published"], format!("kl/plant/_all/dn/plan/{name}"));
    }

    pub fn start(&self, args: &[&str]) -> Running {
        let log = fs::File::create(self.dir.path().join("running.log")).expect("log");
        Running(self.command(args).stdout(Stdio::piped()).stderr(log).spawn().expect("start kentledge-fleet"))
    }
}

/// A program that is killed when the test ends.
pub struct Running(pub Child);

impl Running {
    /// What one that has ended said.
    pub fn said(&mut self) -> String {
        let mut text = String::new();
        if let Some(out) = &mut self.0.stdout {
            let _ = std::io::Read::read_to_string(out, &mut text);
        }
        text
    }

    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn light(port: u16, devices: usize, desk: &Desk, fails: f64) -> Fleet {
    let size = Size { devices, lines: 2, health_s: 20.0, score_s: 0.0 };
    let play = Play { keyset: desk.keyset(), fails, takes_s: 0.5, bad: "bad" };
    let fleet = Fleet::start(port, size, Ills::NONE, Some(play));
    eventually("all devices are announced", || (fleet.announced() == devices).then_some(()));
    fleet
}

pub fn broker() -> Mosquitto {
    Mosquitto::with("max_queued_messages 0\nmax_inflight_messages 0")
}

#[test]
fn a_real_daemon_is_listed_and_obeys_a_plain_and_a_signed_command() {
    let broker = Mosquitto::start();
    let desk = Desk::new(broker.port, "command");
    let commands = format!("[commands]\nkeyset = \"{}\"\njitter_s = 0\n", desk.keyset().display());
    let tty = Tty::default();
    let _daemon = Site::new(broker.port).with(&commands).with_sensor(&tty).run();
    let device = eventually("the device is listed", || {
        desk.json(&["devices", "--json"]).into_iter().find(|device| device["state"] == "online")
    });
    assert_eq!((&device["device"], &device["nonce"].is_string()), (&json!("plant/pump-1"), &true));
    assert!(desk.run(&["devices"]).out.contains("plant/pump-1  online"));
    let pong = desk.json(&["send", "plant/pump-1", "ping", "--json"]);
    assert_eq!(pong.last().expect("a result")["record"]["state"], "success");
    let config = r#"{"toml":"[outbox]\nlinger_ms = 10\n"}"#;
    let args = ["send", "plant/pump-1", "config.set", config, "--issuer", "release", "--json"];
    let file = desk.json(&args)[0]["file"].as_str().expect("a file").to_owned();
    desk.sign(Path::new(&file), &Operator::new(broker.port, "thief"));
    assert_eq!(desk.run(&["send", "--signed", &file]).code, Some(1), "another's signature");
    let file = desk.json(&args)[0]["file"].as_str().expect("a file").to_owned();
    desk.sign(Path::new(&file), &desk.operator);
    let done = desk.run(&["send", "--signed", &file]);
    assert_eq!(done.code, Some(0), "{} {}", done.out, done.err);
    let wrong = desk.run(&["send", "plant/pump-1", "config.set", r#"{"toml":1}"#, "--issuer", "release"]);
    assert!(wrong.code == Some(1) && wrong.err.contains("a device would reject it"), "{}", wrong.err);
}

/// A request of HTTP/1.0; the answer's head and body.
fn ask(port: u16, head: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the console");
    stream.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
    let length = body.len();
    write!(stream, "{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}").expect("write");
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    // A stream of events does not end: what came until it pauses counts.
    while let Ok(n) = stream.read(&mut chunk) {
        all.extend_from_slice(&chunk[..n]);
        if n == 0 || String::from_utf8_lossy(&all).contains("event: whole") {
            break;
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn the_console_shows_all_devices_and_keeps_strangers_out() {
    let broker = broker();
    let desk = Desk::new(broker.port, "command");
    let fleet =
        Fleet::start(broker.port, Size { devices: 300, lines: 1, health_s: 1.0, score_s: 0.5 }, Ills::SOME, None);
    eventually("all are announced", || (fleet.announced() == 300).then_some(()));
    let port = free_port();
    let mut console = desk.start(&["console", "--listen", &format!("127.0.0.1:{port}")]);
    eventually("it listens", || TcpStream::connect(("127.0.0.1", port)).ok());
    let get = |path: &str, host: &str| ask(port, &format!("GET {path} HTTP/1.1\r\nHost: {host}"), "");
    assert!(get("/", "localhost").contains("<title>Kentledge fleet</title>"));
    assert!(get("/", "evil.example").starts_with("HTTP/1.1 403"));
    eventually("all devices are in the stream", || {
        get("/events", "localhost").contains("plant/pump-00300").then_some(())
    });
    let asked = json!({"to": "plant/pump-00007", "type": "restart", "issuer": "release", "args": {}}).to_string();
    let post = |path: &str, origin: &str, body: &str| {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nContent-Type: application/json");
        ask(port, &head, body)
    };
    assert!(post("/api/inner", "http://localhost", &asked).contains("restart"));
    assert!(post("/api/inner", "http://evil.example", &asked).starts_with("HTTP/1.1 403"));
    assert!(post("/api/signed", "http://localhost", "{}").starts_with("HTTP/1.1 400"));
    if std::env::var_os("KENTLEDGE_LONG").is_some() {
        // In a real browser (Debian: chromium, chromium-driver).
        let mut script = Command::new("python3");
        script.arg(rig::root().join("tests/fleet/console.py")).arg(format!("http://127.0.0.1:{port}/"));
        let done = Done::from(script.args(["--devices", "300", "--watch-s", "2"]).output().expect("python3"));
        assert_eq!(done.code, Some(0), "{} {}", done.out, done.err);
    }
    // Without a token no other machine may reach it.
    let open = desk.run(&["console", "--listen", &format!("0.0.0.0:{}", free_port())]);
    assert!(open.code == Some(1) && open.err.contains("--token-file"), "{}", open.err);
    console.kill();
}

#[test]
fn a_stolen_controller_opens_the_waves_of_a_signed_plan_and_nothing_else() {
    let broker = broker();
    let desk = Desk::new(broker.port, "rollout");
    let fleet = light(broker.port, 60, &desk, 0.0);
    let (plan, secrets) = desk.publish("pumps", &["--waves", "50,100", "--concurrent-max", "5"]);
    let text = fs::read_to_string(desk.dir.path().join(&plan)).expect("the plan");
    let secrets: Value =
        serde_json::from_slice(&fs::read(desk.dir.path().join(secrets)).expect("secrets")).expect("JSON");
    let thief = Operator::new(broker.port, "release");
    let send = |topic: &str, payload: &str| thief.send_retained(&format!("_all/dn/{topic}"), payload);
    let before = fleet.refused().len();
    let sig = |file: &Path| -> String {
        let out = Command::new("base64").arg("-w0").arg(desk.dir.path().join(file)).output().expect("base64").stdout;
        String::from_utf8(out).expect("text")
    };
    let signature = sig(&PathBuf::from(format!("{}.minisig", plan.display())));
    // Its own plan, by a key that no device knows; the signed plan with another artifact; an old signature for a newer sequence.
    let other = text.replace("linger_ms = 10", "linger_ms = 99");
    let later = text.replace("\"name\":\"pumps\"", "\"name\":\"pumps2\"");
    send("plan/pumps", &thief.sign(&other));
    send("plan/pumps", &json!({"signed": other, "sig": signature}).to_string());
    send("plan/pumps2", &json!({"signed": later, "sig": signature}).to_string());
    // The same plan under another name, a gate with a guessed secret, the second gate's secret for the first wave, an unsigned resume.
    send("plan/pumps3", &json!({"signed": text, "sig": signature}).to_string());
    let gate = |secret: &Value| json!({"v": 1, "secret": secret}).to_string();
    send("gate/pumps/1", &gate(&json!("0123456789abcdef0123456789abcdef0123456789abcdef")));
    send("gate/pumps/1", &gate(&secrets["waves"][1]));
    send("halt/pumps", &json!({"v": 1, "type": "resume"}).to_string());
    eventually("all of it is refused", || (fleet.refused().len() >= before + 5 + 2 * 60).then_some(()));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(fleet.starts(), [], "nothing of it starts anything");
    // What it can do: halt; a signed resume alone undoes that. And open what was signed, all waves at once.
    send("halt/pumps", &gate(&secrets["halt"]));
    send("gate/pumps/1", &gate(&secrets["waves"][0]));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(fleet.starts(), [], "it is halted");
    let issued = rig::operator::time(0);
    let resume = |by: &Operator| {
        let text: Value = serde_json::from_str(&text).expect("JSON");
        by.sign(&json!({"v": 1, "type": "resume", "to": "plant/_all", "issuer": "release", "plan": "pumps", "seq": text["seq"],
                        "n": 1, "issued": issued, "halt": text["halt"].as_str().expect("a hash").replace('a', "b")}).to_string())
    };
    send("halt/pumps", &resume(&thief));
    std::thread::sleep(Duration::from_millis(1000));
    assert_eq!(fleet.starts(), [], "its own resume is refused");
    send("halt/pumps", &resume(&desk.operator));
    send("gate/pumps/2", &gate(&secrets["waves"][1]));
    let since = Instant::now();
    eventually("the signed plan runs", || (fleet.starts().len() == 60).then_some(()));
    assert!(since.elapsed() < Duration::from_secs(12), "all waves at once");
    // The secret that was published halts no more.
    send("halt/pumps", &gate(&secrets["halt"]));
    assert!(fleet.starts().iter().all(|start| start.plan.starts_with("_plan.pumps.")));
}

/// Three real daemons that obey plans.
const PUMPS: [&str; 3] = ["plant/pump-1", "plant/pump-2", "plant/pump-3"];

/// Makes and publishes a plan of two waves whose first holds some of the pumps, not all. Returns them, and the secrets file.
fn publish_in_two_waves(desk: &Desk, name: &str, settings: &str) -> (Vec<&'static str>, String) {
    loop {
        let (plan, secrets) = desk.make(name, settings, &["--waves", "50,100"]);
        let text = fs::read(desk.dir.path().join(&plan)).expect("the plan");
        let text: Value = serde_json::from_slice(&text).expect("JSON");
        let seed = text["seed"].as_str().expect("a seed");
        let is_first = |device: &&&str| kentledge::control::plans::position(seed, device) < 0.5;
        let first: Vec<&str> = PUMPS.iter().filter(is_first).copied().collect();
        // Positions are by chance: another plan has others.
        if (1..=2).contains(&first.len()) {
            desk.publish_made(name, &plan);
            return (first, secrets.display().to_string());
        }
    }
}

#[test]
fn real_daemons_bring_in_a_plan_wave_after_wave_and_only_the_first_wave_starts_a_bad_one() {
    let broker = broker();
    let desk = Desk::new(broker.port, "rollout");
    let commands = format!("[commands]\nkeyset = \"{}\"\nplans = true\njitter_s = 0\n", desk.keyset().display());
    let mut daemons = Vec::new();
    for device in PUMPS {
        let id = device.replace("plant/", "");
        let names = format!("site = \"plant\"\nid = \"{id}\"\nbus = \"off\"");
        let site = Site::new(broker.port).with(&commands).with_device(&names);
        let Some(site) = crate::state::synced(site) else { return };
        daemons.push(site.run());
    }
    let plans = |name: &str| -> Vec<(String, Value)> {
        let of = |device: Value| (device["device"].as_str().unwrap_or("").to_owned(), device["plans"][name].clone());
        desk.json(&["devices", "--json"]).into_iter().map(of).collect()
    };
    eventually("all are online", || {
        let online = desk.json(&["devices", "--json"]).iter().filter(|device| device["state"] == "online").count();
        (online == 3).then_some(())
    });
    let (first, secrets) = publish_in_two_waves(&desk, "good", "[outbox]\nlinger_ms = 10\n");
    let done = desk.run(&["rollout", "run", "good", "--secrets", &secrets]);
    assert_eq!(done.code, Some(0), "{} {}", done.out, done.err);
    let good = plans("good");
    assert!(good.iter().all(|(_, plan)| plan["state"] == "success"), "{good:?}");
    let wave = |device: &String| 2 - u64::from(first.contains(&device.as_str()));
    assert!(good.iter().all(|(device, plan)| plan["wave"] == wave(device)), "{first:?} {good:?}");
    let logs = |text: &str| daemons.iter().filter(|daemon| daemon.own_log().contains(text)).count();
    assert_eq!(logs("a configuration is on trial"), 3, "each took the settings");

    // No device has this channel: each that starts rejects the settings.
    let (first, secrets) = publish_in_two_waves(&desk, "bad", "[alarm.x]\nchannel = \"none\"\nabove = 1.0\n");
    let done = desk.run(&["rollout", "run", "bad", "--secrets", &secrets]);
    assert!(done.code == Some(1) && done.err.contains("is halted"), "{} {}", done.out, done.err);
    for (device, plan) in plans("bad") {
        let started = ["failed", "rolled_back"].contains(&plan["state"].as_str().unwrap_or(""));
        let waits = ["waiting", "blocked"].contains(&plan["state"].as_str().unwrap_or(""));
        assert!(if first.contains(&device.as_str()) { started || waits } else { waits }, "{device} {plan} {first:?}");
    }
    assert!(plans("bad").iter().any(|(_, plan)| plan["state"] == "failed" || plan["state"] == "rolled_back"));
    assert!(daemons.into_iter().all(|daemon| daemon.stop() == Some(0)));
}
