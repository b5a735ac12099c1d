//! The encoding of ONNX files: the fields of each message of `onnx.proto` (IR version 14), and a strict reader. A runtime's
//! own protobuf reader is more tolerant: it cuts a field key above 32 bits, joins a message that occurs twice, and skips
//! what it does not know. This reader rejects every encoding that could be read in two ways.

use crate::host::Defence;
use std::fmt;

/// The messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // Their names are those of onnx.proto.
pub enum Message {
    Model,
    OpSet,
    Graph,
    Node,
    Attribute,
    Tensor,
    Segment,
    Entry,
    Sparse,
    Value,
    Annotation,
    Function,
    Training,
    Device,
    NodeDevice,
    Sharding,
    IntList,
    ShardedDim,
    SimpleDim,
    Type,
    TensorType,
    SparseType,
    Shape,
    Dimension,
    Sequence,
    Map,
    Optional,
    Opaque,
}

/// The type of a field; the plural is a repeated field (numbers: or packed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    I32,
    I64,
    I32s,
    I64s,
    F32,
    F32s,
    F64s,
    Bytes,
    Texts,
    Part(Message),
    Parts(Message),
}

use Kind::{Bytes, F32, F32s, F64s, I32, I32s, I64, I64s, Part, Parts, Texts};

/// Why a file is rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Truncated, or not protobuf.
    NotOnnx(&'static str),
    /// An unusual encoding that another reader could read differently.
    NotCanonical(String),
    /// A file for another reader than the ONNX one.
    OrtFormat,
    /// A file of another program; which, and what makes ONNX of it.
    Another(&'static str),
    /// Names another file with weights.
    ExternalData,
    /// Uses operators outside the standard.
    Domain(String),
    /// Nested or large beyond the bound.
    TooLarge(&'static str),
    /// An IR or operator version that current runtimes no longer run.
    Opset(u64),
    /// A model for training.
    Training,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::NotOnnx(why) => write!(f, "it is no whole ONNX file: {why}"),
            Refused::NotCanonical(why) => write!(f, "its encoding is not canonical: {why}"),
            Refused::Another(what) => write!(f, "it is no ONNX file but {what}"),
            Refused::OrtFormat => f.write_str("the runtime would read it as its own ORT format, which is not accepted"),
            Refused::ExternalData => f.write_str(
                "it reads weights from another file (external data), and a model is one file here; pack it: \
                     python3 -c 'import onnx; onnx.save(onnx.load(\"model.onnx\"), \"one.onnx\")'",
            ),
            Refused::Domain(name) => write!(f, "it uses operators of the domain `{name}`, which is unknown here"),
            Refused::TooLarge(what) => write!(f, "it has too many {what}"),
            Refused::Training => f.write_str("it is for training, and nothing is trained here"),
            Refused::Opset(version) => write!(f, "it needs operator set {version}; the runtime starts at 7"),
        }
    }
}

impl Message {
    /// All of them.
    pub const ALL: [Message; 28] = [
        Self::Model,
        Self::OpSet,
        Self::Graph,
        Self::Node,
        Self::Attribute,
        Self::Tensor,
        Self::Segment,
        Self::Entry,
        Self::Sparse,
        Self::Value,
        Self::Annotation,
        Self::Function,
        Self::Training,
        Self::Device,
        Self::NodeDevice,
        Self::Sharding,
        Self::IntList,
        Self::ShardedDim,
        Self::SimpleDim,
        Self::Type,
        Self::TensorType,
        Self::SparseType,
        Self::Shape,
        Self::Dimension,
        Self::Sequence,
        Self::Map,
        Self::Optional,
        Self::Opaque,
    ];

    /// Its name in onnx.proto.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "ModelProto",
            Self::OpSet => "OperatorSetIdProto",
            Self::Graph => "GraphProto",
            Self::Node => "NodeProto",
            Self::Attribute => "AttributeProto",
            Self::Tensor => "TensorProto",
            Self::Segment => "Segment",
            Self::Entry => "StringStringEntryProto",
            Self::Sparse => "SparseTensorProto",
            Self::Value => "ValueInfoProto",
            Self::Annotation => "TensorAnnotation",
            Self::Function => "FunctionProto",
            Self::Training => "TrainingInfoProto",
            Self::Device => "DeviceConfigurationProto",
            Self::NodeDevice => "NodeDeviceConfigurationProto",
            Self::Sharding => "ShardingSpecProto",
            Self::IntList => "IntIntListEntryProto",
            Self::ShardedDim => "ShardedDimProto",
            Self::SimpleDim => "SimpleShardedDimProto",
            Self::Type => "TypeProto",
            Self::TensorType => "Tensor",
            Self::SparseType => "SparseTensor",
            Self::Shape => "TensorShapeProto",
            Self::Dimension => "Dimension",
            Self::Sequence => "Sequence",
            Self::Map => "Map",
            Self::Optional => "Optional",
            Self::Opaque => "Opaque",
        }
    }

    /// Its fields, by number. `daemon/tests/onnx_scan.rs` compares them with those of the Python package `onnx`. Long, because it
    /// is the table of `onnx.proto`, message by message, and holds nothing else.
    pub fn fields(self) -> &'static [(u8, Kind)] {
        const ENTRIES: Kind = Parts(Message::Entry);
        match self {
            Self::Model => &[
                (1, I64),
                (2, Bytes),
                (3, Bytes),
                (4, Bytes),
                (5, I64),
                (6, Bytes),
                (7, Part(Message::Graph)),
                (8, Parts(Message::OpSet)),
                (14, ENTRIES),
                (20, Parts(Message::Training)),
                (25, Parts(Message::Function)),
                (26, Parts(Message::Device)),
            ],
            Self::OpSet => &[(1, Bytes), (2, I64)],
            Self::Graph => &[
                (1, Parts(Message::Node)),
                (2, Bytes),
                (5, Parts(Message::Tensor)),
                (10, Bytes),
                (11, Parts(Message::Value)),
                (12, Parts(Message::Value)),
                (13, Parts(Message::Value)),
                (14, Parts(Message::Annotation)),
                (15, Parts(Message::Sparse)),
                (16, ENTRIES),
            ],
            Self::Node => &[
                (1, Texts),
                (2, Texts),
                (3, Bytes),
                (4, Bytes),
                (5, Parts(Message::Attribute)),
                (6, Bytes),
                (7, Bytes),
                (8, Bytes),
                (9, ENTRIES),
                (10, Parts(Message::NodeDevice)),
            ],
            Self::Attribute => &[
                (1, Bytes),
                (2, F32),
                (3, I64),
                (4, Bytes),
                (5, Part(Message::Tensor)),
                (6, Part(Message::Graph)),
                (7, F32s),
                (8, I64s),
                (9, Texts),
                (10, Parts(Message::Tensor)),
                (11, Parts(Message::Graph)),
                (13, Bytes),
                (14, Part(Message::Type)),
                (15, Parts(Message::Type)),
                (20, I32),
                (21, Bytes),
                (22, Part(Message::Sparse)),
                (23, Parts(Message::Sparse)),
            ],
            Self::Tensor => &[
                (1, I64s),
                (2, I32),
                (3, Part(Message::Segment)),
                (4, F32s),
                (5, I32s),
                (6, Texts),
                (7, I64s),
                (8, Bytes),
                (9, Bytes),
                (10, F64s),
                (11, I64s),
                (12, Bytes),
                (13, ENTRIES),
                (14, I32),
                (16, ENTRIES),
            ],
            Self::Segment => &[(1, I64), (2, I64)],
            Self::Entry => &[(1, Bytes), (2, Bytes)],
            Self::Sparse => &[(1, Part(Message::Tensor)), (2, Part(Message::Tensor)), (3, I64s)],
            Self::Value => &[(1, Bytes), (2, Part(Message::Type)), (3, Bytes), (4, ENTRIES)],
            Self::Annotation => &[(1, Bytes), (2, ENTRIES)],
            Self::Function => &[
                (1, Bytes),
                (4, Texts),
                (5, Texts),
                (6, Texts),
                (7, Parts(Message::Node)),
                (8, Bytes),
                (9, Parts(Message::OpSet)),
                (10, Bytes),
                (11, Parts(Message::Attribute)),
                (12, Parts(Message::Value)),
                (13, Bytes),
                (14, ENTRIES),
            ],
            Self::Training => &[(1, Part(Message::Graph)), (2, Part(Message::Graph)), (3, ENTRIES), (4, ENTRIES)],
            Self::Device => &[(1, Bytes), (2, I32), (3, Texts)],
            Self::NodeDevice => &[(1, Bytes), (2, Parts(Message::Sharding)), (3, I32)],
            Self::Sharding => &[(1, Bytes), (2, I64s), (3, Parts(Message::IntList)), (4, Parts(Message::ShardedDim))],
            Self::IntList => &[(1, I64), (2, I64s)],
            Self::ShardedDim => &[(1, I64), (2, Parts(Message::SimpleDim))],
            Self::SimpleDim => &[(1, I64), (2, Bytes), (3, I64)],
            Self::Type => &[
                (1, Part(Message::TensorType)),
                (4, Part(Message::Sequence)),
                (5, Part(Message::Map)),
                (6, Bytes),
                (7, Part(Message::Opaque)),
                (8, Part(Message::SparseType)),
                (9, Part(Message::Optional)),
            ],
            Self::TensorType | Self::SparseType => &[(1, I32), (2, Part(Message::Shape))],
            Self::Shape => &[(1, Parts(Message::Dimension))],
            Self::Dimension => &[(1, I64), (2, Bytes), (3, Bytes)],
            Self::Sequence | Self::Optional => &[(1, Part(Message::Type))],
            Self::Map => &[(1, I32), (2, Part(Message::Type))],
            Self::Opaque => &[(1, Bytes), (2, Bytes)],
        }
    }
}

/// The value of a field.
#[derive(Debug, Clone, Copy)]
pub enum Found<'a> {
    /// One whole number.
    Int(u64),
    /// Several, packed: read them with `varint`.
    Packed(&'a [u8]),
    /// Text or bytes.
    Bytes(&'a [u8]),
    /// A message.
    Part(Message, &'a [u8]),
    /// Floating-point numbers; not read here.
    Floats,
}

/// The fields of one message, in file order.
pub struct Fields<'a> {
    rest: &'a [u8],
    message: Message,
    /// Non-repeated fields that occurred, a bit each.
    seen: u32,
}

impl<'a> Fields<'a> {
    /// Reads a message with this body.
    pub fn of(message: Message, body: &'a [u8]) -> Self {
        Self { rest: body, message, seen: 0 }
    }

    fn read(&mut self) -> Result<(u8, Found<'a>), Refused> {
        let odd = |what: String| Refused::NotCanonical(what);
        let name = self.message.name();
        let key = varint(&mut self.rest)?;
        if key > u64::from(u32::MAX) {
            return Err(odd(format!("a field of {name} has a key of more than 32 bits")));
        }
        let (number, wire) = (key >> 3, key & 7);
        let known = self.message.fields().iter().find(|(known, _)| u64::from(*known) == number);
        let Some((number, kind)) = known.copied() else {
            return Err(odd(format!("{name} has no field {number}")));
        };
        let once = matches!(kind, I32 | I64 | F32 | Bytes | Part(_));
        if once && self.seen & 1 << number != 0 && Defence::OnnxTwice.stands() {
            return Err(odd(format!("field {number} of {name} occurs twice")));
        }
        self.seen |= 1 << number;
        let body = |rest: &mut &'a [u8]| {
            let len = usize::try_from(varint(rest)?).map_err(|_| ENDS)?;
            take(rest, len)
        };
        let rest = &mut self.rest;
        let found = match (kind, wire) {
            (I64 | I64s, 0) => Found::Int(varint(rest)?),
            (I32 | I32s, 0) => Found::Int(narrow(varint(rest)?)?),
            (Bytes | Texts, 2) => Found::Bytes(body(rest)?),
            (Part(message) | Parts(message), 2) => Found::Part(message, body(rest)?),
            (I64s | I32s, 2) => {
                let packed = body(rest)?;
                let mut left = packed;
                while !left.is_empty() {
                    let n = varint(&mut left)?;
                    if kind == I32s {
                        narrow(n)?;
                    }
                }
                Found::Packed(packed)
            }
            (F32 | F32s, 5) => take(rest, 4).map(|_| Found::Floats)?,
            (F64s, 1) => take(rest, 8).map(|_| Found::Floats)?,
            (F32s | F64s, 2) => {
                let size = if kind == F32s { 4 } else { 8 };
                if !body(rest)?.len().is_multiple_of(size) {
                    return Err(odd(format!("field {number} of {name} is no whole list of numbers")));
                }
                Found::Floats
            }
            (_, wire) => return Err(odd(format!("field {number} of {name} has wire type {wire}"))),
        };
        Ok((number, found))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u8, Found<'a>), Refused>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

const ENDS: Refused = Refused::NotOnnx("it ends in the middle of a field");

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], Refused> {
    let (body, left) = rest.split_at_checked(len).ok_or(ENDS)?;
    *rest = left;
    Ok(body)
}

/// A 32-bit number: protobuf writes it sign-extended to 64 bits.
fn narrow(n: u64) -> Result<u64, Refused> {
    match i32::try_from(n as i64) {
        Ok(_) => Ok(n),
        Err(_) => Err(Refused::NotCanonical(format!("{n} stands where a number of 32 bits is to be"))),
    }
}

/// One protobuf number, in its shortest encoding.
///
/// # Errors
/// The bytes end, or the encoding is longer than needed.
pub fn varint(rest: &mut &[u8]) -> Result<u64, Refused> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, left) = rest.split_first().ok_or(ENDS)?;
        *rest = left;
        if byte == 0 && shift > 0 || shift == 63 && byte > 1 {
            return Err(Refused::NotCanonical("a number is written with more bytes or bits than it has".into()));
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ENDS)
}
