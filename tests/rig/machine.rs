//! A booted image: a board that QEMU plays without hardware virtualisation, its serial console, a sensor on its second serial
//! line, its network by way of this host. Faults: the plug pulled at any moment, a hung kernel, a hung program, another clock,
//! a full disk, a network that is not there.

use std::{
    fs,
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Board, free_port, maker::sha256};

/// This host as a machine's network names it.
pub const HOST: &str = "10.0.2.2";
/// A start under emulation, beside another one: generous.
pub const START: Duration = Duration::from_secs(300);
/// Between two rows of the sensor.
pub const ROW: Duration = Duration::from_millis(50);

/// The image under test, as `image/build qemu` leaves it.
pub fn image(file: &str) -> PathBuf {
    Board::Virtual.image("test", file)
}

/// The folder with the keys it was signed with.
pub fn keys() -> PathBuf {
    PathBuf::from(fs::read_to_string(image("keys")).expect("keys").trim())
}

pub struct Machine {
    pub dir: TempDir,
    pub board: Board,
    flavour: &'static str,
    pub ssh_port: u16,
    qemu: Option<Child>,
    console: Option<UnixStream>,
    /// All console output since it was switched on. A thread reads it all the time: QEMU stalls when its console is not read.
    heard: Arc<Mutex<String>>,
    /// The same as it was looked at last, and how far it was read.
    said: String,
    read: usize,
    asked: u32,
    sensor: Option<Sensor>,
    /// More words for QEMU.
    pub options: Vec<String>,
}

struct Sensor {
    stop: Arc<AtomicBool>,
    odd: Arc<AtomicBool>,
    /// The next row's number.
    next: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Machine {
    /// A card with the image written to it, put into a board that is not switched on.
    pub fn new() -> Self {
        Self::with(Board::Virtual, "test")
    }

    /// The same with the image of another board or flavour.
    pub fn with(board: Board, flavour: &'static str) -> Self {
        let dir = TempDir::new().expect("folder");
        let disk = dir.path().join("disk.img");
        let image = board.image(flavour, "disk.img");
        let done = Command::new("cp").arg("--sparse=always").arg(image).arg(&disk).status().expect("cp");
        assert!(done.success());
        // The card is larger than the image: /data grows.
        fs::OpenOptions::new().write(true).open(&disk).and_then(|f| f.set_len(2 << 30)).expect("a larger card");
        Self {
            dir,
            board,
            flavour,
            ssh_port: free_port(),
            qemu: None,
            console: None,
            heard: Arc::default(),
            said: String::new(),
            read: 0,
            asked: 0,
            sensor: None,
            options: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a file onto the boot partition, as a person does with a card reader.
    pub fn onto_boot(&self, name: &str, text: &str) {
        let file = self.path("onto");
        fs::write(&file, text).expect("write");
        let image = format!("{}@@1M", self.path("disk.img").display());
        let done = Command::new("mcopy").args(["-o", "-i", &image]).arg(&file).arg(format!("::{name}")).status();
        assert!(done.expect("mtools is installed (image/boot-test installs it)").success());
    }

    /// The digest of a partition of its card, whole, as it lies there now.
    pub fn partition_sha256(&self, label: &str) -> String {
        let disk = self.path("disk.img");
        let table = Command::new("sfdisk").arg("-J").arg(&disk).output().expect("sfdisk is installed");
        let table: Value = serde_json::from_slice(&table.stdout).expect("a table");
        let partitions = table["partitiontable"]["partitions"].as_array().expect("partitions");
        let it = partitions.iter().find(|p| p["name"] == label).expect("a partition of this name");
        let [first, bytes] = ["start", "size"].map(|of| it[of].as_u64().expect("sectors") * 512);
        let copy = self.path("partition");
        let mut from = fs::File::open(disk).expect("disk");
        from.seek(SeekFrom::Start(first)).expect("seek");
        let copied = std::io::copy(&mut from.take(bytes), &mut fs::File::create(&copy).expect("copy")).expect("copy");
        assert_eq!(copied, bytes);
        let digest = sha256(&copy);
        let _ = fs::remove_file(copy);
        digest
    }

    /// Switches it on.
    pub fn start(&mut self) {
        assert!(self.qemu.is_none(), "it is on");
        for socket in ["qmp", "console", "sensor"] {
            let _ = fs::remove_file(self.path(socket));
        }
        let socket = |id: &str| format!("socket,id={id},path={},server=on,wait=off", self.path(id).display());
        // It does not outlive a test that is killed.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL"]).arg(self.board.program());
        qemu.args(["-accel", "tcg,thread=multi,tb-size=256", "-display", "none", "-monitor", "none"]);
        qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", self.path("qmp").display()));
        qemu.arg("-chardev").arg(format!("{},logfile={},logappend=on", socket("console"), self.path("log").display()));
        qemu.arg("-chardev").arg(socket("sensor"));
        qemu.args(self.board.qemu(self.flavour, self.dir.path(), self.ssh_port)).args(&self.options);
        let log = fs::File::create(self.path("qemu.log")).expect("log");
        qemu.stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        self.qemu = Some(qemu.spawn().expect("qemu-system-arm is installed (image/boot-test installs it)"));
        let console = self.connect("console");
        (self.heard, self.said, self.read) = (Arc::default(), String::new(), 0);
        let (mut reader, heard) = (console.try_clone().expect("console"), self.heard.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 65536];
            loop {
                match reader.read(&mut bytes) {
                    Ok(0) => return,
                    Ok(n) => {
                        let text = String::from_utf8_lossy(&bytes[..n]).replace('\r', "");
                        heard.lock().expect("heard").push_str(&text);
                    }
                    Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => return,
                }
            }
        });
        self.console = Some(console);
    }

    fn connect(&self, name: &str) -> UnixStream {
        let stream = crate::eventually("QEMU's socket", || UnixStream::connect(self.path(name)).ok());
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("time-out");
        stream
    }

    /// A sensor of the pump's columns begins to send; `odd` makes the bearing shake.
    pub fn sense(&mut self) {
        self.sense_from(0);
    }

    /// The same with rows that are numbered from `first`, one every `ROW`.
    pub fn sense_from(&mut self, first: u64) {
        let (stop, odd, next) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default(), Arc::new(first.into()));
        let (ends, is_odd, at) = (stop.clone(), odd.clone(), Arc::<AtomicU64>::clone(&next));
        let mut line = self.connect("sensor");
        let _ = line.set_write_timeout(Some(Duration::from_secs(1)));
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            for i in first.. {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let vib = if is_odd.load(Ordering::Relaxed) { 0.9 } else { 0.027 + (i * 7 % 13) as f64 / 5000.0 };
                let flow = 32.0 + (i * 5 % 11) as f64 / 50.0;
                let row = format!("{i},{},{vib:.4},{:.4},2.4,0.1,68.0,25.1,231.0,{flow:.4}\n", i * 50, vib + 0.013);
                // A machine that is off, or restarts, does not take it.
                let _ = line.write_all(row.as_bytes());
                at.store(i + 1, Ordering::Relaxed);
                std::thread::sleep((ROW * (i - first + 1) as u32).saturating_sub(began.elapsed()));
            }
        });
        self.sensor = Some(Sensor { stop, odd, next, thread });
    }

    /// How many rows were sent, by number.
    pub fn sensed(&self) -> u64 {
        self.sensor.as_ref().map_or(0, |sensor| sensor.next.load(Ordering::Relaxed))
    }

    /// The sensor falls silent.
    pub fn hush(&mut self) {
        if let Some(sensor) = self.sensor.take() {
            sensor.stop.store(true, Ordering::Relaxed);
            let _ = sensor.thread.join();
        }
    }

    /// The bearing shakes, or not.
    pub fn odd(&self, yes: bool) {
        self.sensor.iter().for_each(|sensor| sensor.odd.store(yes, Ordering::Relaxed));
    }

    fn pump(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
        if let Some(Ok(Some(status))) = self.qemu.as_mut().map(Child::try_wait) {
            panic!("QEMU ended ({status}): {}", fs::read_to_string(self.path("qemu.log")).unwrap_or_default());
        }
        let heard = self.heard.lock().expect("heard");
        self.said.push_str(&heard[self.said.len()..]);
    }

    /// Waits until the console says it; what was said before that.
    #[track_caller]
    pub fn says(&mut self, text: &str, most: Duration) -> String {
        let most = most * self.board.slowness();
        let until = Instant::now() + most;
        loop {
            if let Some(at) = self.said[self.read..].find(text) {
                let before = self.said[self.read..self.read + at].to_owned();
                self.read += at + text.len();
                return before;
            }
            assert!(
                Instant::now() < until,
                "the console did not say `{text}` within {} s: …{}",
                most.as_secs(),
                self.tail()
            );
            self.pump();
        }
    }

    /// Waits until it says one of them; which.
    #[track_caller]
    pub fn says_one_of(&mut self, texts: &[&str], most: Duration) -> usize {
        let most = most * self.board.slowness();
        let until = Instant::now() + most;
        loop {
            let found = texts
                .iter()
                .enumerate()
                .filter_map(|(i, text)| Some((self.said[self.read..].find(text)?, i, text.len())));
            if let Some((at, which, length)) = found.min() {
                self.read += at + length;
                return which;
            }
            assert!(Instant::now() < until, "the console said none of {texts:?}: …{}", self.tail());
            self.pump();
        }
    }

    fn tail(&self) -> String {
        let from = self.said.char_indices().rev().nth(2500).map_or(0, |(at, _)| at);
        self.said[from..].to_owned()
    }

    /// Whatever it has said by now is past.
    pub fn read_on(&mut self) {
        self.pump();
        self.read = self.said.len();
    }

    /// What was said before its last start is past.
    pub fn since_its_start(&mut self) {
        self.pump();
        self.read = self.said.rfind("KENTLEDGE: starting slot").unwrap_or(self.read);
    }

    /// Waits for the test flavour's root shell.
    #[track_caller]
    pub fn shell(&mut self) {
        self.says("kl# ", START);
    }

    /// Runs a line in it; exit code and output.
    #[track_caller]
    pub fn try_run(&mut self, line: &str) -> (i32, String) {
        self.asked += 1;
        let mark = format!("E{}", self.asked);
        let text = format!("{line}; echo \"<{mark}\"\":$?>\"\n");
        self.console.as_mut().expect("on").write_all(text.as_bytes()).expect("console");
        let out = self.says(&format!("<{mark}:"), Duration::from_secs(120));
        let code = self.says(">", Duration::from_secs(5));
        (code.parse().expect("an exit code"), out.replace("kl# ", "").trim().to_owned())
    }

    /// The same, and it must end well.
    #[track_caller]
    pub fn run(&mut self, line: &str) -> String {
        let (code, out) = self.try_run(line);
        assert_eq!(code, 0, "{line}: {out}");
        out
    }

    /// Begins a line that will not come back.
    pub fn send(&mut self, line: &str) {
        self.console.as_mut().expect("on").write_all(format!("{line}\n").as_bytes()).expect("console");
    }

    /// Types at the console, as a stranger would; no process may be reading it.
    pub fn type_at_console(&mut self, text: &str) {
        let _ = self.console.as_mut().expect("on").write_all(text.as_bytes());
    }

    /// `ssh admin@` with this key.
    pub fn ssh(&self, key: &Path, line: &str) -> Output {
        self.ssh_as("admin", &["-o", "LogLevel=ERROR", "-i", &key.display().to_string()], line)
    }

    /// The same as another user, with more arguments for ssh.
    pub fn ssh_as(&self, user: &str, words: &[&str], line: &str) -> Output {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-p", &self.ssh_port.to_string()]).args(words);
        for option in ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "ConnectTimeout=60"]
        {
            ssh.args(["-o", option]);
        }
        ssh.arg(format!("{user}@127.0.0.1")).arg(line).stdin(Stdio::null()).output().expect("ssh is installed")
    }

    /// An order to QEMU.
    pub fn qmp(&self, order: &Value) -> Value {
        let mut stream = self.connect("qmp");
        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
        let mut answers = std::io::BufReader::new(stream.try_clone().expect("socket"));
        let mut line = String::new();
        let mut answer = |line: &mut String| {
            line.clear();
            std::io::BufRead::read_line(&mut answers, line).expect("QMP");
        };
        answer(&mut line);
        for order in [&json!({"execute": "qmp_capabilities"}), order] {
            stream.write_all(format!("{order}\n").as_bytes()).expect("QMP");
            loop {
                answer(&mut line);
                if line.is_empty() || line.contains("\"return\"") || line.contains("\"error\"") {
                    break;
                }
            }
        }
        serde_json::from_str(&line).unwrap_or(Value::Null)
    }

    /// All that its console said since it was switched on.
    pub fn console(&mut self) -> String {
        self.pump();
        self.said.clone()
    }

    /// Pulls the plug. The sensor is off as well.
    pub fn cut(&mut self) {
        self.cut_power();
        self.hush();
    }

    /// Pulls the plug; what the sensor sends is lost.
    pub fn cut_power(&mut self) {
        if let Some(mut qemu) = self.qemu.take() {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
        self.console = None;
    }

    /// Seconds of processor time that the machine took so far.
    pub fn cpu_s(&self) -> f64 {
        let pid = self.qemu.as_ref().expect("on").id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        (fields[11].parse::<f64>().expect("utime") + fields[12].parse::<f64>().expect("stime")) / 100.0
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cut();
        if std::thread::panicking() {
            eprintln!("--- the console's last words:\n{}", self.tail());
        }
    }
}
