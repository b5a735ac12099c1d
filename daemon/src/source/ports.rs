//! What is plugged in: serial ports by their stable names and what they seem to speak, gpiochips, the kernel's sensors;
//! each with the lines a configuration needs for it, which `kentledge check` takes as they are. Opening a port may reset
//! the device on it; a port that another process has open is not opened.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    io::ErrorKind,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::OFlag;
use tokio::{io::AsyncReadExt, time::Instant};

use super::{
    serial,
    suggest::{Suggestion, suggest},
    sysfs,
};
use crate::{
    config::{Framing, Line, LineForm, Serial, SysfsClass},
    host::{gpiochip, log::escaped, sys},
    limits,
};

/// The speeds that are tried, the usual ones first.
const BAUDS: [u32; 6] = [115_200, 9_600, 57_600, 38_400, 19_200, 4_800];

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// These ports; without it, all that are there
    paths: Vec<PathBuf>,
    /// Only this speed; without it, the usual ones one after the other
    #[arg(long)]
    baud: Option<u32>,
    /// Seconds to listen at each speed; 0 opens no port
    #[arg(long, default_value_t = 2.0)]
    listen: f64,
}

/// What a port seems to speak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Speech {
    /// Nothing came.
    Silence,
    /// Separated values: the separator, and how many of them.
    Csv(char, usize),
    /// One object a line: its keys.
    Json(Vec<String>),
    /// NMEA: the sentences and how many fields each has, and whether they come without a checksum.
    Nmea(BTreeMap<String, usize>, bool),
    /// Lines that need more than a separator.
    Text(Suggestion),
    /// Lines without a form that is known here.
    Lines,
    /// Frames with this framing, and the length of the last.
    Frames(&'static str, usize),
    /// Bytes that make no sense at this speed.
    Unknown,
}

/// Tells everything.
pub async fn tell(args: &Args) -> String {
    let (mut out, mut used) = (String::new(), Used::default());
    let all = if args.paths.is_empty() { serial_ports() } else { args.paths.clone() };
    for path in &all {
        serial_port(path, args, &mut out, &mut used).await;
    }
    if args.paths.is_empty() {
        if all.is_empty() {
            out.push_str("no serial ports\n");
        }
        gpiochips(&mut out, &mut used);
        kernel_sensors(&mut out, &mut used);
    }
    out
}

/// Names of sources that were given out: each table may stand in a configuration once.
#[derive(Default)]
struct Used(BTreeSet<String>);

impl Used {
    /// A name for a source, from what the thing calls itself.
    fn name(&mut self, text: &str) -> String {
        let own: String = text.to_lowercase().chars().filter(char::is_ascii_alphanumeric).take(48).collect();
        let own = if own.is_empty() { "sensor".to_owned() } else { own };
        let numbered = (2..).map(|n| format!("{own}-{n}"));
        let name = std::iter::once(own.clone()).chain(numbered).find(|name| !self.0.contains(name)).unwrap_or(own);
        self.0.insert(name.clone());
        name
    }
}

/// Text in a configuration.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Which other process has taken a port for itself, if one has. The kernel keeps others out, but not root: for root the port
/// would open, and take half of the other's bytes.
pub fn in_use(path: &Path) -> Option<String> {
    let flags = (OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits();
    let user = || user_of(path).unwrap_or_else(|| "another process".into());
    match fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
        Err(why) => (why.kind() == ErrorKind::ResourceBusy).then(user),
        // The mark may be older than the process that has the port open now.
        Ok(port) if sys::tty_is_exclusive(&port) => user_of(path),
        Ok(_) => None,
    }
}

/// Processes that have a device open, by name and number. Only root sees those of others.
fn user_of(path: &Path) -> Option<String> {
    // By its number: a service may have a /dev of its own.
    let device = |path: &Path| fs::metadata(path).ok().map(|meta| meta.rdev()).filter(|rdev| *rdev != 0);
    let wanted = device(path)?;
    let (own, mut users) = (std::process::id(), Vec::new());
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        if pid != own && open.map(|fd| fd.path()).any(|fd| is_tty(&fd) && device(&fd) == Some(wanted)) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            users.push(format!("{} (process {pid})", escaped(name.trim(), 32)));
        }
    }
    users.truncate(limits::PORTS_USERS);
    (!users.is_empty()).then(|| users.join(", "))
}

/// What does not lie below /dev is not looked at: that could be a disk that hangs.
fn is_tty(fd: &Path) -> bool {
    fs::read_link(fd).is_ok_and(|to| to.starts_with("/dev"))
}

async fn serial_port(path: &Path, args: &Args, out: &mut String, used: &mut Used) {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let stable = stable_names(&real);
    let name = stable.first().unwrap_or(&path.to_owned()).clone();
    let _ = writeln!(out, "{}", name.display());
    if real != name {
        let _ = writeln!(out, "  now {}", real.display());
    }
    for other in stable.iter().skip(1) {
        let _ = writeln!(out, "  also {}", other.display());
    }
    if args.listen > 0.0
        && let Some(user) = in_use(&real)
    {
        let _ = writeln!(out, "  in use by {user}; not listened to\n");
        return;
    }
    let (mut heard, mut example) = (None, None);
    let bauds: Vec<u32> = args.baud.map_or_else(|| BAUDS.to_vec(), |baud| vec![baud]);
    if args.listen > 0.0 {
        for baud in &bauds {
            match listen(path, *baud, args.listen).await {
                Ok(bytes) => {
                    let speech = guess(&bytes);
                    let better = heard.is_none() || !matches!(speech, Speech::Silence | Speech::Unknown);
                    if better {
                        heard = Some((*baud, speech.clone()));
                        example = last_line(&bytes);
                    }
                    // Silence has no speed: the others would say the same.
                    if matches!(speech, Speech::Silence) || !matches!(speech, Speech::Unknown) {
                        break;
                    }
                }
                Err(why) => {
                    let _ = writeln!(out, "  cannot be opened: {why}");
                    return;
                }
            }
        }
    }
    let source = used.name(&real.file_name().map(|name| name.to_string_lossy()).unwrap_or_default());
    let (baud, speech) = heard.unwrap_or((bauds[0], Speech::Silence));
    let _ = match &speech {
        Speech::Silence if args.listen <= 0.0 => writeln!(out, "  not listened to"),
        Speech::Silence => writeln!(out, "  silent: it may have to be asked (`request`, or `kind = \"modbus-rtu\"`)"),
        Speech::Csv(_, n) => writeln!(out, "  speaks lines of {n} values at {baud} baud"),
        // Whatever hangs there chose these words.
        Speech::Json(keys) => {
            let keys = escaped(keys.join(", "), limits::PORTS_KEYS);
            writeln!(out, "  speaks JSON lines at {baud} baud: {keys}")
        }
        Speech::Nmea(all, _) => {
            let names: Vec<_> = all.keys().map(String::as_str).collect();
            writeln!(out, "  speaks NMEA 0183 at {baud} baud: {}", names.join(", "))
        }
        Speech::Text(found) => {
            writeln!(out, "  speaks {} at {baud} baud", escaped(&found.what, limits::PORTS_KEYS))
        }
        Speech::Lines => writeln!(out, "  speaks lines of text at {baud} baud, of no form that is known here"),
        Speech::Frames(framing, n) => writeln!(out, "  speaks frames by {framing} of about {n} bytes at {baud} baud"),
        Speech::Unknown => writeln!(out, "  speaks, but nothing that is known here at {bauds:?} baud"),
    };
    if let Some(line) = example.filter(|_| !matches!(speech, Speech::Silence | Speech::Unknown | Speech::Frames(..))) {
        let _ = writeln!(out, "  for example: {line}");
    }
    out.push('\n');
    out.push_str(&serial_lines(&source, &name.to_string_lossy(), baud, &speech));
    out.push('\n');
}

/// The last whole line, escaped: of the first one the beginning may be missing.
fn last_line(bytes: &[u8]) -> Option<String> {
    let mut lines: Vec<&[u8]> = bytes.split(|b| matches!(b, b'\n' | b'\r')).map(<[u8]>::trim_ascii).collect();
    lines.pop();
    let line = lines.into_iter().rfind(|line| !line.is_empty())?;
    let more = if line.len() > limits::EXAMPLE_BYTES { "…" } else { "" };
    Some(format!("{}{more}", line[..line.len().min(limits::EXAMPLE_BYTES)].escape_ascii()))
}

/// A source for a serial port.
fn serial_lines(source: &str, path: &str, baud: u32, speech: &Speech) -> String {
    let head = format!("    [source.{source}]\n    path = {}\n    baud = {baud}\n", quoted(path));
    let rest = match speech {
        Speech::Csv(delimiter, n) => {
            let columns: Vec<_> = (1..=*n).map(|i| format!("\"c{i}\"")).collect();
            let mut text = format!("    columns = [{}]\n", columns.join(", "));
            if *delimiter != ',' {
                let _ = writeln!(text, "    delimiter = {}", quoted(&delimiter.to_string()));
            }
            text
        }
        Speech::Json(_) => "    format = \"json\"\n".into(),
        Speech::Text(found) => found.keys.lines().fold(String::new(), |all, key| all + "    " + key + "\n"),
        Speech::Nmea(all, unsummed) => {
            let sentence = |(name, n): (&String, &usize)| {
                let columns: Vec<_> = (1..=*n).map(|i| format!("\"{}{i}\"", name.to_lowercase())).collect();
                format!("{name} = [{}]", columns.join(", "))
            };
            let all: Vec<_> = all.iter().map(sentence).collect();
            let checksum = if *unsummed { "    checksum = \"optional\"\n" } else { "" };
            format!("    format = \"nmea\"\n{checksum}    sentences = {{ {} }}\n", all.join(", "))
        }
        Speech::Frames(framing, n) => {
            let rest = if *n > 1 { format!(", \"_:{}\"", n - 1) } else { String::new() };
            format!(
                "    framing = \"{framing}\"\n    fields = [\"c1:u8\"{rest}]    # name and type of each number, such as \"x:i16le\"\n"
            )
        }
        Speech::Silence | Speech::Lines | Speech::Unknown => {
            "    columns = [\"c1\"]    # put the name of each value of a line here\n".into()
        }
    };
    head + &rest
}

async fn listen(path: &Path, baud: u32, seconds: f64) -> Result<Vec<u8>, String> {
    let settings = Serial {
        path: path.display().to_string(),
        baud,
        line: Line { data: 8, parity: b'N', stop: 1 },
        frame_max: limits::FRAME_BYTES,
        framing: Framing::Lines,
        check: None,
        lines: LineForm::default(),
        poll: None,
    };
    let mut port = serial::open(&settings)?;
    let until = Instant::now() + Duration::from_secs_f64(seconds.min(60.0));
    let (mut bytes, mut chunk) = (Vec::new(), [0u8; 4096]);
    while bytes.len() < limits::PORTS_BYTES {
        match tokio::time::timeout_at(until, port.read(&mut chunk)).await {
            Ok(Ok(n)) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
            _ => break,
        }
    }
    Ok(bytes)
}

/// What some bytes of a port are, most likely.
pub fn guess(bytes: &[u8]) -> Speech {
    if bytes.is_empty() {
        return Speech::Silence;
    }
    let printable = bytes.iter().filter(|b| matches!(b, b' '..=b'~' | b'\r' | b'\n' | b'\t')).count();
    let text = String::from_utf8_lossy(bytes);
    // The first line may be half of one, the last one too.
    let mut lines: Vec<&str> = text.split(['\n', '\r']).map(str::trim_ascii).collect();
    lines.pop();
    let lines: Vec<&str> = lines.into_iter().skip(1).filter(|line| !line.is_empty()).collect();
    if printable * 20 >= bytes.len() * 19 && !lines.is_empty() {
        return text_lines(&lines);
    }
    [(0u8, "cobs"), (0xC0, "slip")]
        .into_iter()
        .find_map(|(end, name)| frames(bytes, end, name))
        .unwrap_or(Speech::Unknown)
}

fn text_lines(lines: &[&str]) -> Speech {
    let most = |n: usize| n * 2 > lines.len();
    let nmea: BTreeMap<String, usize> = lines
        .iter()
        .filter_map(|line| {
            let inner = line.strip_prefix(['$', '!'])?;
            let (inner, sum) = match inner.rsplit_once('*') {
                Some((inner, sum)) => (inner, u8::from_str_radix(sum, 16).ok()?),
                None => (inner, inner.bytes().fold(0, |x, b| x ^ b)),
            };
            let (address, fields) = inner.split_once(',')?;
            let name = address.get(2..).filter(|_| address.len() == 5).unwrap_or(address);
            let is_name = !name.is_empty() && name.len() <= 16 && name.bytes().all(|b| b.is_ascii_alphanumeric());
            let is_name = is_name && fields.split(',').count() <= limits::PORTS_COLUMNS;
            (is_name && sum == inner.bytes().fold(0, |x, b| x ^ b))
                .then(|| (name.to_owned(), fields.split(',').count()))
        })
        .collect();
    if !nmea.is_empty() && most(lines.iter().filter(|line| line.starts_with(['$', '!'])).count()) {
        let unsummed = lines.iter().any(|line| line.starts_with(['$', '!']) && !line.contains('*'));
        return Speech::Nmea(nmea.into_iter().take(limits::PORTS_COLUMNS).collect(), unsummed);
    }
    let object = |line: &&str| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line).ok();
    let objects: Vec<_> = lines.iter().filter_map(object).collect();
    if let Some(last) = objects.last().filter(|_| most(objects.len())) {
        return Speech::Json(last.keys().cloned().collect());
    }
    if let Some(found) = suggest(lines) {
        return Speech::Text(found);
    }
    for delimiter in [',', ';', '\t', ' '] {
        let fields = |line: &&str| split(line, delimiter).filter(|f| f.trim().parse::<f64>().is_ok()).count();
        let count = |line: &&str| split(line, delimiter).count();
        let n = lines.iter().map(count).max().unwrap_or(0);
        let numbers = |line: &&str| fields(line) * 2 > n;
        if (2..=limits::PORTS_COLUMNS).contains(&n)
            && most(lines.iter().filter(|line| count(line) == n && numbers(line)).count())
        {
            return Speech::Csv(delimiter, n);
        }
    }
    if most(lines.iter().filter(|line| line.parse::<f64>().is_ok()).count()) {
        return Speech::Csv(',', 1);
    }
    Speech::Lines
}

/// Columns of a line; a blank stands for any number of them.
fn split(line: &str, delimiter: char) -> impl Iterator<Item = &str> {
    line.split(delimiter).filter(move |field| delimiter != ' ' || !field.is_empty())
}

/// Frames between `end` bytes that all decode.
fn frames(bytes: &[u8], end: u8, name: &'static str) -> Option<Speech> {
    let mut parts: Vec<&[u8]> = bytes.split(|b| *b == end).skip(1).collect();
    parts.pop();
    parts.retain(|part| !part.is_empty());
    let decoded = |part: &&[u8]| match end {
        0 => cobs::decode(part, &mut vec![0; part.len() + 1]).ok().map(|report| report.frame_size()),
        _ => {
            let escapes = part.windows(2).filter(|pair| pair[0] == 0xDB);
            let fine = escapes.fold(part.last() != Some(&0xDB), |fine, pair| fine && matches!(pair[1], 0xDC | 0xDD));
            fine.then_some(part.len())
        }
    };
    let sizes: Vec<usize> = parts.iter().filter_map(decoded).collect();
    let typical = *sizes.last()?;
    // Chance would not end frames of one length again and again.
    let alike = sizes.iter().filter(|n| n.abs_diff(typical) <= typical / 2).count();
    (parts.len() >= 3 && sizes.len() == parts.len() && alike * 4 >= parts.len() * 3)
        .then_some(Speech::Frames(name, typical))
}

/// Names that stay when the device is plugged in elsewhere or with others: by its serial number, then by its socket.
fn stable_names(real: &Path) -> Vec<PathBuf> {
    let mut names = Vec::new();
    for folder in ["/dev/serial/by-id", "/dev/serial/by-path"] {
        let Ok(all) = fs::read_dir(folder) else { continue };
        let mut here: Vec<PathBuf> = all.filter_map(|entry| Some(entry.ok()?.path())).collect();
        here.retain(|path| fs::canonicalize(path).is_ok_and(|to| to == real));
        here.sort();
        names.extend(here);
    }
    names
}

/// Ports with something behind them; not the console.
fn serial_ports() -> Vec<PathBuf> {
    let Ok(all) = fs::read_dir("/sys/class/tty") else { return Vec::new() };
    let console = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in all.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let usual = ["ttyUSB", "ttyACM", "ttyAMA", "ttyTHS", "ttyS"].iter().any(|kind| name.starts_with(kind));
        // A port of the old kind that is not there has type 0.
        let there = !fs::read_to_string(entry.path().join("type")).is_ok_and(|kind| kind.trim() == "0");
        if usual && there && !console.split_whitespace().any(|c| c == name) {
            paths.push(Path::new("/dev").join(name));
        }
    }
    paths.retain(|path| path.exists());
    paths.sort();
    paths
}

fn gpiochips(out: &mut String, used: &mut Used) {
    let all = gpiochip::list();
    for chip in &all {
        let _ = writeln!(out, "{} ({}), {} lines", chip.path.display(), escaped(&chip.label, 64), chip.lines.len());
        let free: Vec<String> = (0..)
            .zip(&chip.lines)
            .filter(|(_, (_, user))| user.is_empty())
            .map(|(i, (name, _))| if name.is_empty() { format!("{i}") } else { format!("{i} {name}") })
            .collect();
        let more = if free.len() > 8 { ", …" } else { "" };
        let _ = writeln!(out, "  free: {}{more}", free[..free.len().min(8)].join(", "));
        let first = free.first().and_then(|f| f.split(' ').next()).unwrap_or("0");
        // A label that two chips have names neither.
        let alone = all.iter().filter(|other| other.label == chip.label).count() == 1 && !chip.label.is_empty();
        let name = if alone { chip.label.clone() } else { chip.path.display().to_string() };
        let source = used.name(&chip.name);
        let _ = writeln!(out, "\n{}", gpio_lines(&source, &name, first));
    }
}

/// A source for a line of a gpiochip.
fn gpio_lines(source: &str, chip: &str, line: &str) -> String {
    format!(
        "    [source.{source}]\n    kind = \"gpio\"\n    chip = {}\n    lines.in1 = {{ line = {line}, read = \"level\" }}\n",
        quoted(chip)
    )
}

/// A source for readings of the kernel's.
fn kernel_lines(source: &str, kind: &str, device: &str, readings: &[String]) -> String {
    let list: Vec<_> = readings.iter().map(|reading| quoted(reading)).collect();
    let (device, list) = (quoted(device), list.join(", "));
    format!("    [source.{source}]\n    kind = \"{kind}\"\n    device = {device}\n    readings = [{list}]\n")
}

fn kernel_sensors(out: &mut String, used: &mut Used) {
    for (class, kind) in [(SysfsClass::Iio, "iio"), (SysfsClass::Hwmon, "hwmon"), (SysfsClass::Thermal, "thermal")] {
        let (root, file) = sysfs::class(class);
        let Ok(all) = fs::read_dir(root) else { continue };
        let mut folders: Vec<PathBuf> = all.filter_map(|entry| Some(entry.ok()?.path())).collect();
        folders.sort();
        let named = |folder: PathBuf| Some((fs::read_to_string(folder.join(file)).ok()?.trim().to_owned(), folder));
        let all: Vec<(String, PathBuf)> = folders.into_iter().filter_map(named).collect();
        for (name, folder) in &all {
            let readings = readings(folder, class);
            if readings.is_empty() {
                continue;
            }
            let _ = writeln!(out, "{} ({})", folder.display(), escaped(name, 64));
            // A name that two of them have names neither.
            let alone = all.iter().filter(|(other, _)| other == name).count() == 1 && !name.is_empty();
            let device = if alone { name.clone() } else { folder.display().to_string() };
            let _ = writeln!(out, "\n{}", kernel_lines(&used.name(name), kind, &device, &readings));
        }
    }
}

fn readings(folder: &Path, class: SysfsClass) -> Vec<String> {
    let Ok(all) = fs::read_dir(folder) else { return Vec::new() };
    let names = all.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let reading = |name: String| match class {
        SysfsClass::Thermal => (name == "temp").then_some(name),
        SysfsClass::Hwmon => name.strip_suffix("_input").map(str::to_owned),
        SysfsClass::Iio => name.strip_suffix("_raw").or(name.strip_suffix("_input")).map(str::to_owned),
    };
    let mut readings: Vec<String> = names.filter_map(reading).collect();
    readings.sort();
    readings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_port_speaks_is_told_by_its_bytes() {
        assert_eq!(guess(b""), Speech::Silence);
        assert_eq!(guess(b"2.5,3\n1,2.5,3\n4,5,6\n7,8"), Speech::Csv(',', 3));
        assert_eq!(guess(b"x\n1;2\n3;4\n"), Speech::Csv(';', 2));
        assert_eq!(guess(b"\n21.5\n21.6\n21.6\n"), Speech::Csv(',', 1));
        assert_eq!(guess(b"1}\n{\"a\":1,\"b\":2}\n{\"a\":1,\"b\":2}\n"), Speech::Json(vec!["a".into(), "b".into()]));
        let nmea = b"x\r\n$GPGLL,4916.45,N,12311.12,W,225444,A*31\r\n$GPGLL,4916.45,N,12311.12,W,225444,A*31\r\n";
        assert_eq!(guess(nmea), Speech::Nmea([("GLL".to_owned(), 6)].into(), false));
        assert_eq!(
            guess(b"x\r\n$SDDPT,4.4,0.3\r\n$SDDPT,4.5,0.3\r\n"),
            Speech::Nmea([("DPT".to_owned(), 2)].into(), true)
        );
        assert_eq!(last_line(b"1,2\r\n3,4\x1b\r\n5,").as_deref(), Some("3,4\\x1b"));
        assert_eq!(last_line(b"1,2\r3,4\r5").as_deref(), Some("3,4"));
        assert_eq!(last_line(b"1,2"), None);
        assert_eq!(guess(b"\r1,2\r3,4\r5,6\r7"), Speech::Csv(',', 2));
        assert_eq!(guess(b"x\n 1.5   2\n10.5  12\n"), Speech::Csv(' ', 2));
        assert!(matches!(guess(b"x\nT=23.5;P=1.0\nT=23.5;P=1.0\n"), Speech::Text(_)));
        assert_eq!(guess(b"hello\nready.\nready.\n"), Speech::Lines);
        assert_eq!(
            guess(b"\x00\x03\x11\x22\x02\x33\x00\x03\x11\x22\x02\x34\x00\x05\x01\x02\x03\x04\x00"),
            Speech::Frames("cobs", 4)
        );
        assert_eq!(guess(b"\xc0\x01\x02\x03\xc0\x01\xdb\xdc\xc0\x01\x05\x03\xc0"), Speech::Frames("slip", 3));
        // Lines that are no rows, however long.
        assert_eq!(guess(format!("x\n{0}\n{0}\n", "1,".repeat(5000)).as_bytes()), Speech::Lines);
        assert_eq!(guess(&[0xfe, 0x81, 0x33, 0x7f, 0x80, 0xaa, 0x91]), Speech::Unknown);
    }

    #[test]
    fn every_line_that_ports_prints_is_taken_by_check() {
        use crate::config::{Config, Problem};
        let check = |text: &str| -> Result<Config, Vec<Problem>> {
            let dir = tempfile::tempdir().expect("folder");
            let file = dir.path().join("c.toml");
            fs::write(&file, text).expect("write");
            Config::local(Some(&file))
        };
        let nmea = [("GLL".to_owned(), 6), ("VTG".to_owned(), 9)].into();
        let mut used = Used::default();
        let mut all = String::new();
        for speech in [
            Speech::Silence,
            Speech::Unknown,
            Speech::Lines,
            Speech::Csv(',', 3),
            Speech::Csv(';', 1),
            Speech::Csv('\t', 2),
            Speech::Csv(' ', 2),
            guess(b"x\nT=23,5C;P=1,013bar\nT=23,5C;P=1,013bar\n"),
            guess(b"x\rST,GS,+  1.5kg*1E\rUS,GS,+  1.5kg*1F\r"),
            Speech::Json(vec!["a".into(), "\x1b".into()]),
            Speech::Nmea(nmea, true),
            Speech::Frames("cobs", 4),
            Speech::Frames("slip", 1),
        ] {
            // Two adapters of one kind, and one with a name that says nothing.
            for name in ["ttyUSB0", "ttyUSB0", "…"] {
                let source = used.name(name);
                let lines = serial_lines(&source, &format!("/dev/x \"{source}\""), 9600, &speech);
                let checked = check(&lines);
                assert!(checked.is_ok(), "{speech:?}: {:#?}\n{lines}", checked.err());
                all += &lines;
            }
        }
        for label in ["pinctrl-bcm2711", "a \"b\""] {
            all += &gpio_lines(&used.name("gpiochip0"), label, "4");
        }
        for (kind, readings) in [("iio", vec!["in_voltage0".into()]), ("hwmon", vec!["temp1".into()])] {
            all += &kernel_lines(&used.name("ads1015"), kind, "ads1015", &readings);
        }
        all += &kernel_lines(&used.name("x86_pkg_temp"), "thermal", "x86_pkg_temp", &["temp".into()]);
        let checked = check(&all);
        assert!(checked.is_ok(), "{:#?}\n{all}", checked.err());
        assert_eq!(checked.map(|config| config.sources.len()).unwrap_or(0), 3 * 13 + 5);
    }
}
