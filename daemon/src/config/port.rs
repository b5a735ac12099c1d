//! The types of `[source.NAME]`: where rows come from, and their format on the wire.

use super::{Bus, KeyValue, LineForm, Modbus, Nmea, NumberText, Pattern, RegisterRow, Span, TimeFormat};

/// `[source.NAME]`
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Name.
    pub name: String,
    /// What is opened.
    pub port: Port,
    /// The format of a frame.
    pub format: Format,
    /// How its text becomes numbers, unless a channel says otherwise.
    pub numbers: NumberText,
    /// Column or key with the sensor's own sequence number.
    pub seq: Option<String>,
    /// That number wraps to 0 after this many; 0: never.
    pub seq_modulo: u64,
    /// Column or key with the sensor's own clock, and its format.
    pub time: Option<(String, TimeFormat)>,
    /// Column or key with the date, where `time` holds the time of day only: the format is for both, a blank between them.
    pub date: Option<String>,
    /// Without a frame for this long, its channels are stale, ms.
    pub stale_ms: u64,
    /// A longer step of the sensor's clock (or ours) between two rows is a gap.
    pub gap_max_ms: Option<u64>,
}

/// What is opened.
#[derive(Debug, Clone, PartialEq)]
pub enum Port {
    /// A tty.
    Serial(Serial),
    /// Modbus devices.
    Modbus(Modbus),
    /// Lines of a gpiochip.
    Gpio(Gpio),
    /// Readings in files of the kernel: IIO, hwmon, thermal.
    Sysfs(Sysfs),
}

impl Port {
    /// The name for people.
    pub fn shown(&self) -> &str {
        match self {
            Port::Serial(serial) => &serial.path,
            Port::Modbus(Modbus { bus: Bus::Line(serial), .. }) => &serial.path,
            Port::Modbus(Modbus { bus: Bus::Tcp(address), .. }) => address,
            Port::Gpio(gpio) => &gpio.chip,
            Port::Sysfs(sysfs) => &sysfs.device,
        }
    }

    /// The resource that two sources cannot share, as a path.
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
    /// Path of the device node, preferably a stable one under /dev/serial.
    pub path: String,
    /// Bits per second.
    pub baud: u32,
    /// `8N1` and its relatives.
    pub line: Line,
    /// Longest frame, bytes.
    pub frame_max: usize,
    /// How frames are delimited.
    pub framing: Framing,
    /// The checksum at the end of each frame; not for lines.
    pub check: Option<Check>,
    /// How lines end and are checked.
    pub lines: LineForm,
    /// A device that must be polled.
    pub poll: Option<Poll>,
}

/// How frames are delimited.
#[derive(Debug, Clone, PartialEq)]
pub enum Framing {
    /// Text lines; `Serial::lines` says how they end.
    Lines,
    /// Consistent overhead byte stuffing, ended by a zero byte.
    Cobs,
    /// SLIP, RFC 1055.
    Slip,
    /// Fixed length, start bytes and check included.
    Fixed {
        /// Start bytes; may be empty if there is a check.
        start: Vec<u8>,
        /// Length, bytes.
        bytes: usize,
    },
    /// Start bytes, a length, so many bytes, the check.
    Length {
        /// Start bytes; may be empty if there is a check.
        start: Vec<u8>,
        /// Type of the length.
        number: (Number, Order),
        /// Bytes of the whole frame that the length does not count; 0: it counts all.
        beside: usize,
    },
    /// Between a start and a stop byte.
    Delimited {
        /// First byte.
        start: u8,
        /// Last byte.
        stop: u8,
        /// The byte after this one is data, whatever its value.
        escape: Option<u8>,
    },
}

/// A checksum at the end of a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Check {
    /// Which checksum.
    pub kind: CheckKind,
    /// Least significant byte first.
    pub little: bool,
    /// Number of bytes at the frame's start that are not covered.
    pub skip: usize,
}

/// Checksums by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckKind {
    /// Sum of all bytes.
    Sum8,
    /// Sum of all bytes, 16 bits of it.
    Sum16,
    /// What makes the sum of all bytes 0, itself included: the two's complement of the sum.
    Zero8,
    /// XOR of all bytes.
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
    /// Names in the configuration.
    pub const NAMES: [(&str, CheckKind); 15] = [
        ("sum8", Self::Sum8),
        ("sum16", Self::Sum16),
        ("sum8-zero", Self::Zero8),
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

    /// Length, bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Sum8 | Self::Zero8 | Self::Xor8 | Self::Crc8 | Self::Crc8Maxim => 1,
            Self::Crc32 | Self::Crc32c | Self::Crc32Mpeg2 => 4,
            _ => 2,
        }
    }
}

/// A device that must be polled.
#[derive(Debug, Clone, PartialEq)]
pub struct Poll {
    /// What it is asked, one after the other. The frames of a source with several requests begin with the place of theirs, two
    /// bytes, least significant first.
    pub requests: Vec<Vec<u8>>,
    /// Interval of the first request, ms.
    pub every_ms: u64,
    /// Response timeout, ms.
    pub answer_ms: u64,
    /// How long the line is quiet before the next request, ms.
    pub pause_ms: u64,
    /// What repeats the request is its echo, and no response.
    pub echo: bool,
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
    /// Parses `8N1`; `None` if the text is invalid.
    pub fn parse(text: &str) -> Option<Self> {
        match *text.as_bytes() {
            [d @ b'5'..=b'8', p @ (b'N' | b'E' | b'O'), s @ (b'1' | b'2')] => {
                Some(Self { data: d - b'0', parity: p, stop: s - b'0' })
            }
            _ => None,
        }
    }
}

/// The format of a frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// Separated values.
    Csv {
        /// Separator; a blank: any number of blanks and tabs.
        delimiter: u8,
        /// Names of all columns, in order; empty: not of use.
        columns: Vec<String>,
    },
    /// One JSON object or array a line; keys and paths are columns.
    Json,
    /// Columns at fixed places of a line.
    Fixed {
        /// Those of use.
        columns: Vec<Span>,
        /// Length of the whole line, bytes.
        width: usize,
    },
    /// Labels with values; labels are columns.
    KeyValue(KeyValue),
    /// Regular expressions; the first that fits a line reads it.
    Pattern(Vec<Pattern>),
    /// NMEA 0183: `$` talker sentence, fields, `*` checksum. Sentences that are not named here are skipped.
    Nmea(Nmea),
    /// Numbers at fixed positions.
    Binary(Layout),
    /// What a device answers to each of several requests; the first two bytes select one.
    Answers(Vec<Format>),
    /// Registers of Modbus devices, a row for each read, as `source/modbus` writes them.
    Registers(Vec<RegisterRow>),
    /// Edges and levels of GPIO lines, as `source/gpio.rs` writes them.
    Edges(Vec<GpioLine>),
}

impl Format {
    /// The names of all columns, if the frame does not contain them.
    pub fn columns(&self) -> Option<Vec<&str>> {
        match self {
            Format::Csv { columns, .. } => {
                Some(columns.iter().map(String::as_str).filter(|name| !name.is_empty()).collect())
            }
            Format::Json | Format::KeyValue(_) => None,
            Format::Fixed { columns, .. } => Some(columns.iter().map(|span| span.column.as_str()).collect()),
            Format::Pattern(all) => {
                let mut columns: Vec<&str> = all.iter().flat_map(|p| &p.columns).map(String::as_str).collect();
                columns.sort_unstable();
                columns.dedup();
                Some(columns)
            }
            Format::Nmea(nmea) => Some(nmea.columns().collect()),
            Format::Answers(all) => Some(all.iter().map(Format::columns).collect::<Option<Vec<_>>>()?.concat()),
            Format::Binary(layout) => Some(layout.fields.iter().map(|f| f.column.as_str()).collect()),
            Format::Registers(all) => Some(all.iter().flat_map(|r| &r.columns).map(|c| c.name.as_str()).collect()),
            Format::Edges(lines) => Some(lines.iter().map(|l| l.column.as_str()).collect()),
        }
    }

    /// Rows that one frame makes.
    pub fn rows_of_a_frame(&self) -> u64 {
        match self {
            Format::Binary(Layout { block: Some(block), .. }) => block.rows as u64,
            _ => 1,
        }
    }

    /// How old the first of them is when the frame comes, ms.
    pub fn span_ms(&self) -> u64 {
        match self {
            Format::Binary(Layout { block: Some(block), .. }) => {
                (block.rows as f64 * block.period_ns / 1e6).ceil() as u64
            }
            _ => 0,
        }
    }

    /// Whether its values are text that becomes numbers by `NumberText`.
    pub fn is_text(&self) -> bool {
        let text = |f: &Self| {
            matches!(f, Self::Csv { .. } | Self::Json | Self::Fixed { .. } | Self::KeyValue(_) | Self::Pattern(_))
        };
        match self {
            Format::Answers(all) => all.iter().any(text),
            other => text(other),
        }
    }

    /// Whether every row has a text for this column.
    pub fn always_has(&self, column: &str) -> bool {
        match self {
            Format::Pattern(all) => {
                all.iter().map(|p| &p.columns).filter(|c| !c.is_empty()).all(|c| c.iter().any(|name| name == column))
            }
            Format::KeyValue(_) => !self.is_partial(),
            Format::Answers(_) => false,
            _ => true,
        }
    }

    /// Whether a row may lack columns.
    pub fn is_partial(&self) -> bool {
        match self {
            Format::KeyValue(form) => form.delimiter.is_none() && form.block_end.is_none(),
            Format::Pattern(all) => {
                let mut kinds = all.iter().map(|p| &p.columns).filter(|columns| !columns.is_empty());
                kinds.next().is_some_and(|first| kinds.any(|columns| columns != first))
            }
            Format::Nmea(nmea) => nmea.is_partial(),
            Format::Answers(_) => true,
            Format::Registers(all) => all.len() > 1,
            Format::Edges(lines) => lines.len() > 1 && lines.iter().any(|l| l.read == GpioRead::Edges),
            _ => false,
        }
    }
}

/// Numbers at fixed positions.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Layout {
    /// The numbers.
    pub fields: Vec<Field>,
    /// Length, bytes.
    pub bytes: usize,
    /// A frame holds several samples of some of them.
    pub block: Option<Block>,
}

/// Several samples in one frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Samples, and rows that a frame makes.
    pub rows: usize,
    /// By field: bytes from one sample to the next; 0: the frame holds one, which is that of all its rows.
    pub steps: Vec<usize>,
    /// From one sample to the next, ns.
    pub period_ns: f64,
}

/// One number.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Column.
    pub column: String,
    /// Offset, bytes.
    pub at: usize,
    /// Type.
    pub number: Number,
    /// Byte order.
    pub order: Order,
}

/// The type of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// Unsigned; number of bytes.
    U(u8),
    /// Two's complement; number of bytes.
    I(u8),
    /// IEEE 754, 4 or 8 bytes.
    F(u8),
    /// Decimal digits of four bits each; number of bytes.
    Bcd(u8),
}

impl Number {
    /// Names in the configuration.
    pub const NAMES: [(&str, Number); 15] = [
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
        ("bcd16", Self::Bcd(2)),
        ("bcd32", Self::Bcd(4)),
        ("bcd64", Self::Bcd(8)),
    ];

    /// Length, bytes.
    pub fn bytes(self) -> usize {
        let (Self::U(n) | Self::I(n) | Self::F(n) | Self::Bcd(n)) = self;
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

    /// Its value; beyond 2^53 rounded to a double; not a number where a digit of a BCD number is above 9.
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
            Self::Bcd(n) => {
                let digit = |i: u32| (bits >> (4 * i) & 0xF) as f64;
                let digits = || (0..2 * u32::from(n)).rev().map(digit);
                if digits().any(|digit| digit > 9.0) { f64::NAN } else { digits().fold(0.0, |all, d| all * 10.0 + d) }
            }
        }
    }
}

/// The byte order of a number; `A` is the most significant byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `ABCD`
    Big,
    /// `DCBA`
    Little,
    /// `CDAB`: two-byte registers, the least significant first.
    WordsSwapped,
    /// `BADC`: bytes swapped within registers.
    BytesSwapped,
}

/// `kind = "gpio"`
#[derive(Debug, Clone, PartialEq)]
pub struct Gpio {
    /// Path, name or label of the chip.
    pub chip: String,
    /// Interval at which levels are reported and counters read, ms.
    pub sample_ms: u64,
    /// More edges than this of one line in a second are a storm.
    pub storm_hz: u32,
    /// The requested lines, in the order of their bits.
    pub lines: Vec<Pin>,
}

/// A requested line.
#[derive(Debug, Clone, PartialEq)]
pub struct Pin {
    /// Its number, or its name.
    pub line: PinName,
    /// A contact to ground: low is active.
    pub active_low: bool,
    /// `up`, `down`, `off`, or unchanged.
    pub bias: Bias,
    /// Debounce: the kernel ignores changes shorter than this, µs.
    pub debounce_us: u32,
    /// Its edges are read, not only its level.
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

/// The bias resistor of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// Unchanged.
    AsIs,
    /// To the supply.
    Up,
    /// To ground.
    Down,
    /// None.
    Off,
}

/// A column made from a line's edges.
#[derive(Debug, Clone, PartialEq)]
pub struct GpioLine {
    /// The column.
    pub column: String,
    /// Bit of the line in `Gpio::lines`.
    pub bit: u32,
    /// What it measures.
    pub read: GpioRead,
}

/// What a column measures.
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
    /// Duration of the last active pulse, µs.
    PulseWidth,
    /// Position from two lines, this one and the one with that bit; four counts a period.
    Quadrature(u32),
}

/// `kind = "iio"`, `"hwmon"`, `"thermal"`
#[derive(Debug, Clone, PartialEq)]
pub struct Sysfs {
    /// Folder, or the `name` the driver gives it.
    pub device: String,
    /// Which class of device.
    pub class: SysfsClass,
    /// The readings, as the kernel names them without `_raw` or `_input`.
    pub readings: Vec<String>,
    /// Interval, ms.
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
