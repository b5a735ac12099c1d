//! Coils and registers that alarms drive, at pymodbus's devices: over a line that a source reads, and by TCP.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use rig::{Device, Line, Mosquitto, Site, Sub, Tty, eventually, gpio::Guard};

/// What was written to a device, in order: device, address, value.
struct Writes(PathBuf);

impl Writes {
    fn new(dir: &Path, name: &str) -> Self {
        Self(dir.join(name))
    }

    fn arg(&self) -> &str {
        self.0.to_str().expect("text")
    }

    /// The last value that was written there.
    fn last(&self, place: &str) -> Option<String> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().rev().find_map(|line| line.strip_prefix(place)?.strip_prefix(' ').map(str::to_owned))
    }

    #[track_caller]
    fn wait(&self, place: &str, value: &str, what: &str) {
        eventually(what, || (self.last(place)? == value).then_some(()));
    }
}

#[test]
fn alarm_drives_a_coil_on_a_line_that_is_read_and_a_register_by_tcp_and_whatever_ends_the_daemon_makes_them_safe() {
    let (broker, mut tty, line) = (Mosquitto::start(), Tty::default(), Line::default());
    let (sub, dir, port) = (Sub::new(broker.port), tempfile::TempDir::new().expect("folder"), rig::free_port());
    let (coil, register) = (Writes::new(dir.path(), "coil"), Writes::new(dir.path(), "register"));
    let _relay = line.device(&["modbus-rtu", "PORT", "--writes", coil.arg()]);
    let _drive = Device::start(&["modbus-tcp", &port.to_string(), "--writes", register.arg()]);
    let text = format!(
        "[source.s]\npath = \"{}\"\ncolumns = [\"n\", \"a\"]\nseq = \"n\"\n[channel.a]\nsource = \"s\"\n\
         [source.m]\nkind = \"modbus-rtu\"\npath = \"{}\"\nbaud = 115200\npoll_ms = 20\nanswer_ms = 1000\n\
         registers.u = {{ slave = 1, address = 3 }}\n[channel.u]\nsource = \"m\"\n[stream.u]\nchannels = [\"u\"]\n\
         [alarm.hot]\nchannel = \"a\"\nabove = 80\n\
         [output.fan]\nalarms = [\"hot\"]\nmodbus = {{ source = \"m\", slave = 2, coil = 5, refresh_ms = 100 }}\n\
         [output.speed]\nalarms = [\"hot\"]\n\
         modbus = {{ address = \"127.0.0.1:{port}\", register = 40, function = 16, on = 500, off = 20 }}\n",
        tty.path().display(),
        line.path().display()
    );
    let site = Site::new(broker.port).with(&text);
    let _guard = Guard(site.state());
    let daemon = site.run();
    coil.wait("2 5", "0", "the safe state from the start on");
    register.wait("1 40", "20", "and that of the register");
    sub.wait_records("m/u", 20);
    let from = daemon.log().len();
    tty.rows(0..2, |i| format!("{i},90"));
    coil.wait("2 5", "1", "the alarm turns it on");
    register.wait("1 40", "500", "and sets the register");
    let before = sub.records("m/u").len();
    sub.wait_records("m/u", before + 20);
    // The source and the writes take turns: no answer was lost or spoilt by the other.
    assert!(!daemon.log()[from..].contains("answer"), "{}", daemon.log());

    daemon.signal(Signal::SIGSTOP);
    coil.wait("2 5", "0", "a frozen daemon makes it safe");
    register.wait("1 40", "20", "and the register");
    daemon.signal(Signal::SIGCONT);
    coil.wait("2 5", "1", "the alarm still stands");
    register.wait("1 40", "500", "for both");
    daemon.kill();
    coil.wait("2 5", "0", "a killed daemon makes it safe");
    register.wait("1 40", "20", "and the register");
}
