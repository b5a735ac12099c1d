//! Where rows come from, and how they look on the wire: the words of `[source.NAME]`.

use super::TimeFormat;

/// `[source.NAME]`
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Name.
    pub name: String,
    /// Where the bytes come from.
    pub port: Port,
    /// What a frame looks like.
    pub format: Format,
    /// Column or key with the sensor's own sequence number.
    pub seq: Option<String>,
    /// That number starts again at 0 after this many; 0: never.
    pub seq_modulo: u64,
    /// Column or key with the sensor's own clock, and how it is written.
    pub time: Option<(String, TimeFormat)>,
    /// No frame for this long makes its channels stale.
    pub stale_ms: u64,
    /// A longer step of the sensor's clock (or ours) from row to row is a gap.
    pub gap_max_ms: Option<u64>,
}

/// What is opened.
#[derive(Debug, Clone, PartialEq)]
pub enum Port {
    /// A tty.
    Serial(Serial),
    /// Devices that are asked by Modbus.
    Modbus(Modbus),
    /// Lines of a gpiochip.
    Gpio(Gpio),
    /// Readings the kernel keeps in files: IIO, hwmon, thermal.
    Sysfs(Sysfs),
}

impl Port {
    /// What it is called where people look.
    pub fn shown(&self) -> &str {
        match self {
            Port::Serial(serial) => &serial.path,
            Port::Modbus(Modbus { bus: Bus::Line(serial), .. }) => &serial.path,
            Port::Modbus(Modbus { bus: Bus::Tcp(address), .. }) => address,
            Port::Gpio(gpio) => &gpio.chip,
            Port::Sysfs(sysfs) => &sysfs.device,
        }
    }

    /// What two sources may not share, as a path.
    pub fn path(&self) -> Option<&str> {
        match self {
            Port::Serial(serial) => Some(&serial.path),
            Port::Modbus(Modbus { bus: Bus::Line(serial), .. }) => Some(&serial.path),
            _ => None,
        }
    }
}

/// One serial port's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Serial {
    /// Path of the device node, best a stable one under /dev/serial.
    pub path: String,
    /// Bits per second.
    pub baud: u32,
    /// `8N1` and its relatives.
    pub line: Line,
    /// Longest frame, bytes.
    pub frame_max: usize,
    /// How frames are told apart.
    pub framing: Framing,
    /// What stands at the end of each frame to check it by; not for lines.
    pub check: Option<Check>,
    /// The device speaks only when it is asked.
    pub poll: Option<Poll>,
}

/// How frames are told apart.
#[derive(Debug, Clone, PartialEq)]
pub enum Framing {
    /// Text lines, ended by LF or CR LF.
    Lines,
    /// Consistent overhead byte stuffing, ended by a zero byte.
    Cobs,
    /// RFC 1055.
    Slip,
    /// All of one length, start bytes and check included.
    Fixed {
        /// What each begins with; may be empty where there is a check.
        start: Vec<u8>,
        /// Length, bytes.
        bytes: usize,
    },
    /// Start bytes, a length, so many bytes, the check.
    Length {
        /// What each begins with; may be empty where there is a check.
        start: Vec<u8>,
        /// How the length is written.
        number: (Number, Order),
        /// Bytes of the whole frame that the length does not count; where it counts them all, 0.
        beside: usize,
    },
    /// Between a start and a stop byte.
    Delimited {
        /// First byte.
        start: u8,
        /// Last byte.
        stop: u8,
        /// The byte after this one is data, whatever it is.
        escape: Option<u8>,
    },
}

/// A checksum at the end of a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Check {
    /// Which.
    pub kind: CheckKind,
    /// Least significant byte first.
    pub little: bool,
    /// So many bytes at the frame's start are not covered.
    pub skip: usize,
}

/// Checksums by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckKind {
    /// Sum of all bytes.
    Sum8,
    /// All bytes by exclusive or.
    Xor8,
    /// CRC-8, polynomial 07.
    Crc8,
    /// CRC-8 of Dallas and Maxim.
    Crc8Maxim,
    /// CRC-16 of Modbus.
    Crc16Modbus,
    /// CRC-16, polynomial 1021, from FFFF.
    Crc16Ccitt,
    /// CRC-16, polynomial 1021, from 0.
    Crc16Xmodem,
    /// CRC-16, polynomial 1021 reflected, from 0.
    Crc16Kermit,
    /// CRC-16, polynomial 1021 reflected, as HDLC has it.
    Crc16X25,
    /// CRC-16, polynomial 8005 reflected, from 0.
    Crc16Arc,
    /// CRC-32 of Ethernet and zip.
    Crc32,
    /// CRC-32C of Castagnoli.
    Crc32c,
    /// CRC-32 of MPEG-2.
    Crc32Mpeg2,
}

impl CheckKind {
    /// As the configuration names them.
    pub const NAMES: [(&str, CheckKind); 13] = [
        ("sum8", Self::Sum8),
        ("xor8", Self::Xor8),
        ("crc8", Self::Crc8),
        ("crc8-maxim", Self::Crc8Maxim),
        ("crc16-modbus", Self::Crc16Modbus),
        ("crc16-ccitt", Self::Crc16Ccitt),
        ("crc16-xmodem", Self::Crc16Xmodem),
        ("crc16-kermit", Self::Crc16Kermit),
        ("crc16-x25", Self::Crc16X25),
        ("crc16-arc", Self::Crc16Arc),
        ("crc32", Self::Crc32),
        ("crc32c", Self::Crc32c),
        ("crc32-mpeg2", Self::Crc32Mpeg2),
    ];

    /// Its length, bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Sum8 | Self::Xor8 | Self::Crc8 | Self::Crc8Maxim => 1,
            Self::Crc32 | Self::Crc32c | Self::Crc32Mpeg2 => 4,
            _ => 2,
        }
    }
}

/// A device that speaks only when it is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Poll {
    /// What it is asked.
    pub request: Vec<u8>,
    /// How often, ms.
    pub every_ms: u64,
    /// How long it may take to answer, ms.
    pub answer_ms: u64,
}

/// Bits of a character, as `8N1` writes them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// 5–8.
    pub data: u8,
    /// `N`, `E` or `O`.
    pub parity: u8,
    /// 1 or 2.
    pub stop: u8,
}

impl Line {
    /// Reads `8N1`; `None` if it is no such word.
    pub fn parse(text: &str) -> Option<Self> {
        match *text.as_bytes() {
            [d @ b'5'..=b'8', p @ (b'N' | b'E' | b'O'), s @ (b'1' | b'2')] => {
                Some(Self { data: d - b'0', parity: p, stop: s - b'0' })
            }
            _ => None,
        }
    }
}

/// What a frame looks like.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// Separated values.
    Csv {
        /// Separator.
        delimiter: u8,
        /// Names of all columns, in order.
        columns: Vec<String>,
    },
    /// One JSON object a line; keys are columns.
    Json,
    /// NMEA 0183: `$` talker sentence, fields, `*` checksum. Sentences that are not named here are passed over.
    Nmea(Vec<Sentence>),
    /// Numbers at fixed places.
    Binary(Layout),
    /// The same, several of them: the first two bytes, least significant first, say which.
    Tagged(Vec<Layout>),
    /// Edges and levels of GPIO lines, as `source/gpio.rs` writes them.
    Edges(Vec<GpioLine>),
}

impl Format {
    /// The names of all columns, where the frame does not bring them along.
    pub fn columns(&self) -> Option<Vec<&str>> {
        match self {
            Format::Csv { columns, .. } => Some(columns.iter().map(String::as_str).collect()),
            Format::Json => None,
            Format::Nmea(all) => {
                Some(all.iter().flat_map(|s| &s.columns).filter_map(|c| Some(c.as_ref()?.0.as_str())).collect())
            }
            Format::Binary(layout) => Some(layout.fields.iter().map(|f| f.column.as_str()).collect()),
            Format::Tagged(all) => Some(all.iter().flat_map(|l| &l.fields).map(|f| f.column.as_str()).collect()),
            Format::Edges(lines) => Some(lines.iter().map(|l| l.column.as_str()).collect()),
        }
    }

    /// Not every row holds every column.
    pub fn is_partial(&self) -> bool {
        match self {
            Format::Nmea(all) => all.len() > 1,
            Format::Tagged(all) => all.len() > 1,
            Format::Edges(lines) => lines.len() > 1 && lines.iter().any(|l| l.read == GpioRead::Edges),
            _ => false,
        }
    }
}

/// One NMEA sentence.
#[derive(Debug, Clone, PartialEq)]
pub struct Sentence {
    /// Three letters, such as `RMC`, or the whole address.
    pub name: String,
    /// Its fields: name, and whether it is an angle in degrees and minutes with its hemisphere in the field behind.
    pub columns: Vec<Option<(String, bool)>>,
}

/// Numbers at fixed places.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Layout {
    /// The numbers.
    pub fields: Vec<Field>,
    /// Length, bytes.
    pub bytes: usize,
}

/// One of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its column.
    pub column: String,
    /// First byte.
    pub at: usize,
    /// What it is.
    pub number: Number,
    /// How its bytes are ordered.
    pub order: Order,
}

/// What a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// Unsigned, so many bytes.
    U(u8),
    /// Two's complement, so many bytes.
    I(u8),
    /// IEEE 754, 4 or 8 bytes.
    F(u8),
}

impl Number {
    /// As the configuration names them.
    pub const NAMES: [(&str, Number); 12] = [
        ("u8", Self::U(1)),
        ("i8", Self::I(1)),
        ("u16", Self::U(2)),
        ("i16", Self::I(2)),
        ("u24", Self::U(3)),
        ("i24", Self::I(3)),
        ("u32", Self::U(4)),
        ("i32", Self::I(4)),
        ("u64", Self::U(8)),
        ("i64", Self::I(8)),
        ("f32", Self::F(4)),
        ("f64", Self::F(8)),
    ];

    /// Its length, bytes.
    pub fn bytes(self) -> usize {
        let (Self::U(n) | Self::I(n) | Self::F(n)) = self;
        usize::from(n)
    }

    /// Its bits, from `bytes` in their order on the wire; 8 bytes at most.
    pub fn bits(self, order: Order, bytes: &[u8]) -> u64 {
        let place = |i: usize| match order {
            Order::Big => i,
            Order::Little => bytes.len() - 1 - i,
            Order::WordsSwapped => (bytes.len() / 2).saturating_sub(1 + i / 2) * 2 + i % 2,
            Order::BytesSwapped => i ^ 1,
        };
        (0..bytes.len()).fold(0, |bits, i| bits << 8 | u64::from(bytes.get(place(i)).copied().unwrap_or(0)))
    }

    /// Its value; beyond 2^53 rounded to what a double holds.
    pub fn value(self, order: Order, bytes: &[u8]) -> f64 {
        let bits = self.bits(order, bytes);
        match self {
            Self::U(_) => bits as f64,
            Self::I(n) => {
                let unused = 64 - 8 * u32::from(n);
                ((bits << unused) as i64 >> unused) as f64
            }
            Self::F(4) => f32::from_bits(bits as u32).into(),
            Self::F(_) => f64::from_bits(bits),
        }
    }
}

/// How the bytes of a number are ordered; `A` is the most significant one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `ABCD`
    Big,
    /// `DCBA`
    Little,
    /// `CDAB`: registers of two bytes, the least significant first.
    WordsSwapped,
    /// `BADC`: bytes swapped within registers.
    BytesSwapped,
}

/// `kind = "modbus-rtu"` and `"modbus-tcp"`.
#[derive(Debug, Clone, PartialEq)]
pub struct Modbus {
    /// What the devices hang on.
    pub bus: Bus,
    /// How long one may take to answer, ms.
    pub answer_ms: u64,
    /// What is read, grouped; the place in this list is the tag of its rows.
    pub reads: Vec<Read>,
}

/// What the devices hang on.
#[derive(Debug, Clone, PartialEq)]
pub enum Bus {
    /// RTU on a tty.
    Line(Serial),
    /// TCP, `HOST:PORT`.
    Tcp(String),
}

/// Registers of one device that are read together.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// The device, 1–247; by TCP also 0 and 255.
    pub slave: u8,
    /// What is read.
    pub table: Registers,
    /// First address, from 0.
    pub address: u16,
    /// How many.
    pub count: u16,
    /// How often, ms.
    pub every_ms: u64,
}

/// The four tables of a Modbus device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Registers {
    /// Function 1: bits.
    Coil,
    /// Function 2: bits.
    Discrete,
    /// Function 3: words.
    Holding,
    /// Function 4: words.
    Input,
}

/// `kind = "gpio"`
#[derive(Debug, Clone, PartialEq)]
pub struct Gpio {
    /// Path, name or label of the chip.
    pub chip: String,
    /// How often levels are told and counters read, ms.
    pub sample_ms: u64,
    /// More edges of one line in a second are a storm.
    pub storm_hz: u32,
    /// The lines asked of the kernel, in the order of their bits.
    pub lines: Vec<Pin>,
}

/// A line as it is asked of the kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Pin {
    /// Its number, or its name.
    pub line: PinName,
    /// A contact to ground: low is active.
    pub active_low: bool,
    /// `up`, `down`, `off`, or as it is.
    pub bias: Bias,
    /// The kernel passes over changes shorter than this, µs.
    pub debounce_us: u32,
    /// Its edges are of use, not only its level.
    pub edges: bool,
}

/// Number or name of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinName {
    /// Offset within the chip.
    Offset(u32),
    /// As the device tree names it.
    Name(String),
}

impl std::fmt::Display for PinName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PinName::Offset(n) => write!(f, "{n}"),
            PinName::Name(name) => f.write_str(name),
        }
    }
}

/// The resistor of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// As it is.
    AsIs,
    /// To the supply.
    Up,
    /// To ground.
    Down,
    /// None.
    Off,
}

/// What is made of a line's edges.
#[derive(Debug, Clone, PartialEq)]
pub struct GpioLine {
    /// The column.
    pub column: String,
    /// Bit of the line in `Gpio::lines`.
    pub bit: u32,
    /// What is made of it.
    pub read: GpioRead,
}

/// What is made of a line's edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpioRead {
    /// 0 or 1, at each sample.
    Level,
    /// 0 or 1, a row for each edge, at the kernel's time.
    Edges,
    /// Edges into the active level since the start.
    Counter,
    /// Edges into the active level in a second.
    Frequency,
    /// How long the last active pulse was, µs.
    PulseWidth,
    /// Position by two lines, this one and the one with that bit; four counts a period.
    Quadrature(u32),
}

/// `kind = "iio"`, `"hwmon"`, `"thermal"`
#[derive(Debug, Clone, PartialEq)]
pub struct Sysfs {
    /// Folder, or the `name` the driver gives it.
    pub device: String,
    /// Which class of device.
    pub class: SysfsClass,
    /// What is read, as the kernel names it without `_raw` or `_input`.
    pub readings: Vec<String>,
    /// How often, ms.
    pub every_ms: u64,
}

/// Classes of devices with readings in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SysfsClass {
    /// Converters and accelerometers; value = (raw + offset) × scale.
    Iio,
    /// The board's own health; thousandths.
    Hwmon,
    /// Temperatures of the processor; thousandths.
    Thermal,
}

/// `[output.NAME]`
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Name.
    pub name: String,
    /// Path, name or label of the chip.
    pub chip: String,
    /// The line.
    pub line: PinName,
    /// Low is on.
    pub active_low: bool,
    /// On while one of these alarms is raised; indices.
    pub alarms: Vec<usize>,
    /// What it is set to at start, stop, hang and crash.
    pub safe_on: bool,
    /// It stays so long at least, ms.
    pub dwell_ms: u64,
}
