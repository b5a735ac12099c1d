//! The only file that names a gpiochip: the kernel's character device for GPIO lines, version 2 of its interface. Where
//! a path is a named pipe or a plain file instead, it stands in for one: inputs read the kernel's own edge structs from
//! it, outputs write a line for each change. That is how edges are played without a chip.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::error::HostError;
use gpiocdev_uapi::v2::{
    LineConfig, LineFlags, LineRequest, LineValues, get_chip_info, get_line, get_line_info, get_line_values,
    set_line_config, set_line_values,
};

/// Bytes of the kernel's edge struct: time (u64), kind, line, sequence, the line's sequence (u32 each), 24 unused.
pub const EDGE_BYTES: usize = 48;

/// Attributes of one request; the kernel's `GPIO_V2_LINE_NUM_ATTRS_MAX`.
const ATTRIBUTES: u32 = 10;

/// An open chip, or what stands in for it.
pub struct Chip {
    file: File,
    path: PathBuf,
    real: bool,
}

/// What is known of a chip.
pub struct About {
    /// Its device node.
    pub path: PathBuf,
    /// `gpiochip0`
    pub name: String,
    /// What its driver calls it.
    pub label: String,
    /// Its lines, by number: their names, where they have one, and who uses them.
    pub lines: Vec<(String, String)>,
}

/// How a line is read.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    /// Its number.
    pub offset: u32,
    /// Low is active.
    pub active_low: bool,
    /// Resistor: to the supply, to ground, none; as it is.
    pub pull: Option<Pull>,
    /// Changes shorter than this are passed over, µs.
    pub debounce_us: u32,
    /// Report its edges.
    pub edges: bool,
}

/// The resistor of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pull {
    /// To the supply.
    Up,
    /// To ground.
    Down,
    /// None.
    Off,
}

/// An edge, as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// On CLOCK_MONOTONIC, ns.
    pub at_ns: u64,
    /// Into the active level.
    pub rising: bool,
    /// The line's number within its chip.
    pub offset: u32,
    /// How many edges of this line there were, the lost ones too.
    pub line_seqno: u32,
}

impl Edge {
    /// From the kernel's struct.
    pub fn parse(bytes: &[u8; EDGE_BYTES]) -> Self {
        let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
        let at_ns = u64::from_ne_bytes(std::array::from_fn(|i| bytes[i]));
        Self { at_ns, rising: word(8) == 1, offset: word(12), line_seqno: word(20) }
    }
}

fn lower(why: impl std::fmt::Display) -> HostError {
    HostError(why.to_string().to_lowercase())
}

impl Chip {
    /// By path, name or label.
    ///
    /// # Errors
    /// There is none, several match, or it cannot be opened.
    pub fn open(name: &str) -> Result<Self, HostError> {
        if name.contains('/') {
            return Self::at(Path::new(name));
        }
        let mut found: Vec<About> =
            list().into_iter().filter(|about| about.name == name || about.label == name).collect();
        match (found.pop(), found.len()) {
            (Some(about), 0) => Self::at(&about.path),
            (Some(_), _) => Err(format!("several chips are called {name}; give the path of one").into()),
            (None, _) => Err(format!("no chip is called {name}").into()),
        }
    }

    fn at(path: &Path) -> Result<Self, HostError> {
        let kind = fs::metadata(path).map_err(lower)?.file_type();
        let real = kind.is_char_device();
        // A pipe that is held open for writing as well has no end when a writer goes.
        let mut options = OpenOptions::new();
        options.read(true).write(true).append(kind.is_file()).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits());
        let file = options.open(path).map_err(lower)?;
        if real {
            get_chip_info(&file).map_err(|why| HostError(format!("it is no gpiochip: {}", lower(why))))?;
        }
        Ok(Self { file, path: path.to_owned(), real })
    }

    /// The number of a line by its name.
    ///
    /// # Errors
    /// No line has this name, or several have it.
    pub fn offset(&self, name: &str) -> Result<u32, HostError> {
        if !self.real {
            return Err(format!("no line is called {name}").into());
        }
        let lines = get_chip_info(&self.file).map_err(lower)?.num_lines;
        let is = |offset: &u32| get_line_info(&self.file, *offset).is_ok_and(|info| text(&info.name) == name);
        (0..lines).find(is).ok_or_else(|| HostError(format!("no line of {} is called {name}", self.path.display())))
    }

    /// Asks for lines to read, all at once; their order is that of the bits.
    ///
    /// # Errors
    /// The kernel refuses: a line is in use, or has no edges.
    pub fn inputs(self, lines: &[Input], queue: u32) -> Result<Inputs, HostError> {
        let lines = lines.to_vec();
        if !self.real {
            return Ok(Inputs { file: self.file, lines, real: false });
        }
        let mut request = LineRequest {
            config: config(&lines, true)?,
            num_lines: lines.len() as u32,
            event_buffer_size: queue,
            consumer: gpiocdev_uapi::Name::from_bytes(b"kentledge"),
            ..LineRequest::default()
        };
        lines.iter().enumerate().for_each(|(i, line)| request.offsets.set(i, line.offset));
        let file =
            get_line(&self.file, request).map_err(|why| HostError(format!("ask for its lines: {}", lower(why))))?;
        nonblocking(&file)?;
        Ok(Inputs { file, lines, real: true })
    }

    /// Asks for a line to drive, and sets it at once.
    ///
    /// # Errors
    /// The kernel refuses: the line is in use.
    pub fn output(self, offset: u32, active_low: bool, on: bool) -> Result<Output, HostError> {
        if !self.real {
            let mut output = Output { file: self.file, real: false };
            output.set(on)?;
            return Ok(output);
        }
        let low = if active_low { LineFlags::ACTIVE_LOW } else { LineFlags::empty() };
        let mut request = LineRequest {
            config: LineConfig { flags: LineFlags::OUTPUT | low, ..LineConfig::default() },
            num_lines: 1,
            consumer: gpiocdev_uapi::Name::from_bytes(b"kentledge-guard"),
            ..LineRequest::default()
        };
        request.offsets.set(0, offset);
        request.config.add_values(&LineValues::from_slice(&[on]));
        let file =
            get_line(&self.file, request).map_err(|why| HostError(format!("ask for line {offset}: {}", lower(why))))?;
        Ok(Output { file, real: true })
    }
}

fn nonblocking(file: &File) -> Result<(), HostError> {
    use nix::fcntl::{F_SETFL, OFlag, fcntl};
    fcntl(file, F_SETFL(OFlag::O_NONBLOCK)).map(drop).map_err(lower)
}

fn text(name: &gpiocdev_uapi::Name) -> String {
    name.as_os_str().to_string_lossy().into_owned()
}

/// What the first line needs is the rule, what others need besides are attributes.
fn config(lines: &[Input], edges: bool) -> Result<LineConfig, HostError> {
    let flags = |line: &Input| {
        let mut flags = LineFlags::INPUT;
        flags.set(LineFlags::ACTIVE_LOW, line.active_low);
        flags.set(LineFlags::EDGE_RISING | LineFlags::EDGE_FALLING, line.edges && edges);
        flags.set(LineFlags::BIAS_PULL_UP, line.pull == Some(Pull::Up));
        flags.set(LineFlags::BIAS_PULL_DOWN, line.pull == Some(Pull::Down));
        flags.set(LineFlags::BIAS_DISABLED, line.pull == Some(Pull::Off));
        flags
    };
    let mut config = LineConfig { flags: lines.first().map_or(LineFlags::INPUT, flags), ..LineConfig::default() };
    let mut others: Vec<(LineFlags, u64)> = Vec::new();
    let mut debounces: Vec<(u32, u64)> = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let (flags, bit) = (flags(line), 1u64 << i);
        if flags != config.flags {
            match others.iter_mut().find(|(other, _)| *other == flags) {
                Some((_, mask)) => *mask |= bit,
                None => others.push((flags, bit)),
            }
        }
        if line.debounce_us > 0 {
            match debounces.iter_mut().find(|(us, _)| *us == line.debounce_us) {
                Some((_, mask)) => *mask |= bit,
                None => debounces.push((line.debounce_us, bit)),
            }
        }
    }
    if others.len() + debounces.len() > ATTRIBUTES as usize {
        return Err("its lines have more different settings than the kernel takes at once; make two sources".into());
    }
    others.into_iter().for_each(|(flags, mask)| config.add_flags(flags, mask));
    debounces.into_iter().for_each(|(us, mask)| config.add_debounce(us, mask));
    Ok(config)
}

/// Lines that are read.
pub struct Inputs {
    file: File,
    lines: Vec<Input>,
    real: bool,
}

impl Inputs {
    /// All levels, a bit each, where the kernel can be asked.
    ///
    /// # Errors
    /// The kernel refuses, for example because the chip is gone.
    pub fn levels(&self) -> Result<Option<u64>, HostError> {
        if !self.real {
            return Ok(None);
        }
        let mask = u64::MAX >> (64 - self.lines.len().clamp(1, 64));
        let mut values = LineValues { bits: 0, mask };
        get_line_values(&self.file, &mut values).map_err(lower)?;
        Ok(Some(values.bits & mask))
    }

    /// Tells edges, or does not.
    ///
    /// # Errors
    /// The kernel refuses, for example because the chip is gone.
    pub fn set_edges(&self, on: bool) -> Result<(), HostError> {
        if self.real { set_line_config(&self.file, config(&self.lines, on)?).map_err(lower) } else { Ok(()) }
    }

    /// The edges that wait, as structs of `EDGE_BYTES`.
    ///
    /// # Errors
    /// `WouldBlock`: none waits. Otherwise the chip is gone.
    pub fn read(&self, into: &mut [u8]) -> std::io::Result<usize> {
        (&self.file).read(into)
    }
}

impl std::os::fd::AsRawFd for Inputs {
    fn as_raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

/// A line that is driven, for as long as this lives.
pub struct Output {
    file: File,
    real: bool,
}

impl Output {
    /// On or off, in the sense of `active_low`.
    ///
    /// # Errors
    /// The kernel refuses, for example because the chip is gone.
    pub fn set(&mut self, on: bool) -> Result<(), HostError> {
        if self.real {
            return set_line_values(&self.file, &LineValues::from_slice(&[on])).map_err(lower);
        }
        self.file.write_all(if on { b"1\n" } else { b"0\n" }).map_err(lower)
    }
}

/// The chips of this machine.
pub fn list() -> Vec<About> {
    let Ok(all) = fs::read_dir("/dev") else { return Vec::new() };
    let is_chip = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with("gpiochip") && fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device())
    };
    let mut paths: Vec<PathBuf> = all.filter_map(|entry| Some(entry.ok()?.path())).filter(is_chip).collect();
    paths.sort();
    let about = |path: PathBuf| {
        let file = OpenOptions::new().read(true).open(&path).ok()?;
        let info = get_chip_info(&file).ok()?;
        let line = |offset| {
            let info = get_line_info(&file, offset).unwrap_or_default();
            (text(&info.name), text(&info.consumer))
        };
        let lines = (0..info.num_lines).map(line).collect();
        Some(About { path, name: text(&info.name), label: text(&info.label), lines })
    };
    paths.into_iter().filter_map(about).collect()
}
