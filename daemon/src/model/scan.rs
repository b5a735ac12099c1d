//! Checks an ONNX file before a runtime reads it: it is complete, names no other file, and uses only standard operators.
//! Walks the protobuf within bounds, without building anything from it. The walk must see what the runtime sees, so
//! `onnx` rejects every encoding that could be read in two ways.

use std::collections::BTreeSet;

use super::onnx::{Fields, Found, Message, varint};
use crate::limits;

pub use super::onnx::Refused;

/// Domains of operators in the plain runtime. Quantisation tools write `com.microsoft`.
const DOMAINS: [&[u8]; 4] = [b"", b"ai.onnx", b"ai.onnx.ml", b"com.microsoft"];

/// Domains below these belong to the runtime too: a function in one of them would allow nodes to use it.
const RESERVED: [&[u8]; 2] = [b"ai.onnx.", b"com.microsoft."];

/// The program whose file this is, where its first bytes say so, and the way from it to ONNX.
fn another(bytes: &[u8]) -> Option<&'static str> {
    let head = bytes.get(..256).unwrap_or(bytes);
    let has = |text: &[u8]| head.windows(text.len()).any(|part| part == text);
    match head {
        [_, _, _, _, b'T', b'F', b'L', b'3', ..] => Some("one of TensorFlow Lite: convert it with `tf2onnx`"),
        [0x89, b'H', b'D', b'F', ..] => Some("an HDF5 file, as Keras saves: convert it with `tf2onnx`"),
        [b'P', b'K', 3, 4, ..] if has(b"data.pkl") => Some("one of PyTorch: write it with `torch.onnx.export`"),
        [b'P', b'K', 3, 4, ..] if has(b"metadata.json") => {
            Some("one of Keras: write it with `model.export(…, format=\"onnx\")`")
        }
        [b'P', b'K', 3, 4, ..] => Some("a zip archive"),
        [0x80, 2..=5, ..] => Some("a pickle of Python: write it with `torch.onnx.export`, `skl2onnx` or `onnxmltools`"),
        [0x1f, 0x8b, ..] => Some("packed by gzip: unpack it"),
        [_, _, _, _, _, 0, 0, 0, b'{', ..] => Some("weights alone, as safetensors has them: export the model to ONNX"),
        [b'<', ..] => Some("a web page or XML"),
        _ if head.starts_with(b"version https://git-lfs") => {
            Some("the pointer of Git LFS to one: `git lfs pull` fetches it")
        }
        _ => None,
    }
}

/// Checks a whole file.
///
/// # Errors
///
/// Why the file is rejected.
pub fn scan(bytes: &[u8]) -> Result<(), Refused> {
    if let Some(what) = another(bytes) {
        return Err(Refused::Another(what));
    }
    // The runtime looks for this mark of its own format before it parses ONNX.
    if bytes.get(4..8) == Some(b"ORTM") {
        return Err(Refused::OrtFormat);
    }
    let mut scan = Scan { nodes: 0, graphs: 0, opsets: 0, own: own_functions(bytes)? };
    scan.message(Message::Model, bytes, 0, 0)?;
    if scan.graphs == 0 || scan.opsets == 0 || scan.nodes == 0 {
        return Err(Refused::NotOnnx("it has no graph, no node or no operator set"));
    }
    Ok(())
}

/// Functions by domain and name.
type Functions<'a> = BTreeSet<(&'a [u8], &'a [u8])>;

/// Functions that the model defines: their bodies are checked like the rest.
fn own_functions(bytes: &[u8]) -> Result<Functions<'_>, Refused> {
    let mut own = BTreeSet::new();
    for field in Fields::of(Message::Model, bytes) {
        let (_, Found::Part(Message::Function, body)) = field? else { continue };
        let (mut domain, mut name): (&[u8], &[u8]) = (&[], &[]);
        for field in Fields::of(Message::Function, body) {
            match field? {
                (1, Found::Bytes(text)) => name = text,
                (10, Found::Bytes(text)) => domain = text,
                _ => {}
            }
        }
        if !DOMAINS.contains(&domain) && RESERVED.iter().any(|reserved| domain.starts_with(reserved)) {
            return Err(foreign(domain));
        }
        own.insert((domain, name));
        if own.len() > limits::ONNX_NODES_MAX {
            return Err(Refused::TooLarge("functions"));
        }
    }
    Ok(own)
}

fn foreign(domain: &[u8]) -> Refused {
    Refused::Domain(String::from_utf8_lossy(domain).chars().take(64).collect())
}

struct Scan<'a> {
    nodes: usize,
    graphs: usize,
    opsets: usize,
    own: Functions<'a>,
}

impl<'a> Scan<'a> {
    /// Checks one message and all in it; `level`: enclosing subgraphs, `depth`: enclosing messages.
    fn message(&mut self, message: Message, body: &'a [u8], level: usize, depth: usize) -> Result<(), Refused> {
        if level > limits::ONNX_DEPTH_MAX || depth > limits::ONNX_NESTING_MAX {
            return Err(Refused::TooLarge("levels of subgraphs"));
        }
        let (mut domain, mut name, mut version): (&[u8], &[u8], _) = (&[], &[], 0);
        let mut shape = Shape::default();
        for field in Fields::of(message, body) {
            match (message, field?) {
                (Message::Model, (20, _)) => return Err(Refused::Training),
                (Message::Tensor, (13, _) | (14, Found::Int(1..))) => return Err(Refused::ExternalData),
                (Message::Tensor, (1, Found::Int(n))) => shape.dimension(n)?,
                (Message::Tensor, (1, Found::Packed(mut all))) => {
                    while !all.is_empty() {
                        shape.dimension(varint(&mut all)?)?;
                    }
                }
                (Message::Node, (7, Found::Bytes(text))) | (Message::OpSet, (1, Found::Bytes(text))) => domain = text,
                (Message::Node, (4, Found::Bytes(text))) => name = text,
                (Message::OpSet, (2, Found::Int(n))) => version = n,
                (_, (_, Found::Part(part, body))) => {
                    let inner = message == Message::Attribute && part == Message::Graph;
                    self.message(part, body, level + usize::from(inner), depth + 1)?;
                }
                _ => {}
            }
        }
        match message {
            Message::Node => self.node(domain, name),
            Message::OpSet => self.opset(domain, version),
            Message::Graph => {
                self.graphs += 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn node(&mut self, domain: &[u8], name: &[u8]) -> Result<(), Refused> {
        self.nodes += 1;
        if self.nodes > limits::ONNX_NODES_MAX {
            return Err(Refused::TooLarge("nodes"));
        }
        if DOMAINS.contains(&domain) || self.own.contains(&(domain, name)) { Ok(()) } else { Err(foreign(domain)) }
    }

    fn opset(&mut self, domain: &[u8], version: u64) -> Result<(), Refused> {
        self.opsets += 1;
        if !DOMAINS.contains(&domain) && !self.own.iter().any(|(own, _)| *own == domain) {
            return Err(foreign(domain));
        }
        if domain.is_empty() && version < 7 { Err(Refused::Opset(version)) } else { Ok(()) }
    }
}

/// A tensor's shape so far.
struct Shape {
    rank: usize,
    values: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { rank: 0, values: 1 }
    }
}

impl Shape {
    fn dimension(&mut self, n: u64) -> Result<(), Refused> {
        self.rank += 1;
        self.values = self.values.saturating_mul(n.max(1));
        if self.rank > limits::ONNX_RANK_MAX || self.values > limits::ONNX_VALUES_MAX {
            return Err(Refused::TooLarge("values in one tensor"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, body: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, body.len() as u8], body].concat()
    }

    fn model(node: &[u8], initializer: &[u8]) -> Vec<u8> {
        let graph = [field(1, node), field(5, initializer)].concat();
        [field(7, &graph), field(8, &[0x10, 18])].concat()
    }

    #[test]
    fn file_of_another_program_is_named_with_what_makes_onnx_of_it() {
        for (bytes, part) in [
            (&b"\x1c\0\0\0TFL3\0\0"[..], "TensorFlow Lite"),
            (b"\x89HDF\r\n\x1a\n", "Keras"),
            (b"PK\x03\x04archive/data.pkl", "`torch.onnx.export`"),
            (b"PK\x03\x04metadata.json", "Keras"),
            (b"PK\x03\x04else", "zip archive"),
            (b"\x80\x04\x95", "`skl2onnx`"),
            (b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"<!DOCTYPE html>", "web page"),
            (b"\x10\0\0\0\0\0\0\0{\"a\":1}", "safetensors"),
        ] {
            let why = scan(bytes).expect_err(part).to_string();
            assert!(why.starts_with("it is no ONNX file but ") && why.contains(part), "{why}");
        }
        assert!(matches!(scan(b"\x08"), Err(Refused::NotOnnx(_))), "a cut ONNX file is none of these");
    }

    #[test]
    fn a_plain_model_passes_and_every_truncation_is_refused() {
        let good = model(&field(4, b"Relu"), &[]);
        assert_eq!(scan(&good), Ok(()));
        for len in 0..good.len() {
            assert!(scan(&good[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn external_data_foreign_domains_and_old_operator_sets_are_refused_by_name() {
        assert_eq!(scan(&model(&field(4, b"Relu"), &field(13, b"x"))), Err(Refused::ExternalData));
        let foreign = [field(4, b"Evil"), field(7, b"com.evil")].concat();
        assert_eq!(scan(&model(&foreign, &[])), Err(Refused::Domain("com.evil".into())));
        let old = [field(7, &field(1, &field(4, b"Relu"))), field(8, &[0x10, 6])].concat();
        assert_eq!(scan(&old), Err(Refused::Opset(6)));
    }

    #[test]
    fn external_data_is_found_wherever_it_may_stand() {
        let tensor = field(13, b"x");
        let graph = |body: &[u8]| [field(7, body), field(8, &[0x10, 18])].concat();
        let plain = field(1, &field(4, b"Relu"));
        // An attribute's tensor, one of several; a sparse tensor, alone or in an attribute; a function's node and default.
        let attribute = |number: u8, body: &[u8]| field(1, &field(5, &field(number, body)));
        let long = |number: u16, body: &[u8]| {
            [&[(number << 3 | 2) as u8 & 0x7f | 0x80, (number >> 4) as u8], &[body.len() as u8][..], body].concat()
        };
        for hidden in [
            graph(&attribute(5, &tensor)),
            graph(&attribute(10, &tensor)),
            graph(&[plain.clone(), field(15, &field(1, &tensor))].concat()),
            graph(&[plain.clone(), field(15, &field(2, &tensor))].concat()),
            graph(&field(1, &field(5, &long(22, &field(1, &tensor))))),
            [graph(&plain), long(25, &field(7, &field(5, &field(5, &tensor))))].concat(),
            [graph(&plain), long(25, &field(11, &field(5, &tensor)))].concat(),
        ] {
            assert_eq!(scan(&hidden), Err(Refused::ExternalData));
        }
        assert_eq!(scan(&[graph(&plain), long(20, b"x")].concat()), Err(Refused::Training));
        // A function of the model's own, and a node that calls it by its domain.
        let function = [field(1, b"F"), field(7, &field(4, b"Relu")), field(10, b"mine")].concat();
        let caller = field(1, &[field(4, b"F"), field(7, b"mine")].concat());
        assert_eq!(scan(&[graph(&caller), long(25, &function)].concat()), Ok(()));
        assert_eq!(scan(&graph(&caller)), Err(Refused::Domain("mine".into())));
        // A function allows its own domain only, and none of the runtime's.
        let other = field(1, &[field(4, b"G"), field(7, b"mine")].concat());
        assert_eq!(scan(&[graph(&other), long(25, &function)].concat()), Err(Refused::Domain("mine".into())));
        let inside = [field(1, b"F"), field(10, b"com.microsoft.nchwc")].concat();
        assert!(matches!(scan(&[graph(&plain), long(25, &inside)].concat()), Err(Refused::Domain(_))));
    }

    /// Encodings that protobuf readers read differently: each hides external data, or could.
    #[test]
    fn onnx_file_that_two_readers_could_read_differently_is_refused() {
        let tensor = field(13, b"");
        let hidden = |key: &[u8], body: &[u8]| [key, &[body.len() as u8], body].concat();
        let graph = |tensor: &[u8]| [field(1, &field(4, b"Relu")), hidden(&[5 << 3 | 2], tensor)].concat();
        let model = |graph: &[u8]| [field(7, graph), field(8, &[0x10, 18])].concat();
        assert_eq!(scan(&model(&graph(&tensor))), Err(Refused::ExternalData));
        let plain = graph(&[8, 1]);
        assert_eq!(scan(&model(&plain)), Ok(()));
        let cases: [(&str, Vec<u8>); 13] = [
            // 13 << 3 | 2 and bit 32: a reader that cuts the key to 32 bits sees external data.
            ("key above 32 bits", model(&graph(&hidden(&[0xea, 0x80, 0x80, 0x80, 0x10], b"")))),
            ("key of field 7 above 32 bits", [model(&plain), hidden(&[0xba, 0x80, 0x80, 0x80, 0x10], &plain)].concat()),
            ("overlong key", model(&graph(&hidden(&[0xea, 0x00], b"")))),
            (
                "overlong length",
                [&[7 << 3 | 2, plain.len() as u8 | 0x80, 0][..], &plain, &field(8, &[0x10, 18])].concat(),
            ),
            ("overlong number", model(&graph(&[8, 0x81, 0x00]))),
            ("number of more than 64 bits", model(&graph(&[8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2]))),
            ("32-bit number with more bits", model(&graph(&[14 << 3, 0x80, 0x80, 0x80, 0x80, 0x10]))),
            ("field 0", model(&graph(&[0, 0]))),
            ("group", model(&graph(&[13 << 3 | 3, 13 << 3 | 4]))),
            ("wire type of another", model(&graph(&[8 << 3, 1]))),
            ("unknown field", model(&graph(&hidden(&[0xfa, 0x01], b"")))),
            ("graph twice", [model(&plain), field(7, &plain)].concat()),
            ("name twice", model(&graph(&[field(8, b"a"), field(8, b"b")].concat()))),
        ];
        for (what, bytes) in cases {
            let why = scan(&bytes).expect_err(what);
            assert!(matches!(why, Refused::NotCanonical(_)), "{what}: {why}");
        }
        for wire in [6, 7] {
            assert!(scan(&model(&graph(&[8 << 3 | wire, 0]))).is_err(), "wire type {wire}");
        }
        assert!(scan(&[field(7, &plain), vec![8 << 3 | 2, 9, 0x10, 18]].concat()).is_err(), "length beyond the end");
    }

    #[test]
    fn onnx_file_that_the_runtime_takes_for_its_own_format_is_refused() {
        let named = |name: &[u8]| [field(2, name), model(&field(4, b"Relu"), &[])].concat();
        assert_eq!(scan(&named(b"xxpytorch")), Ok(()));
        assert_eq!(scan(&named(b"xxORTMxxx")), Err(Refused::OrtFormat));
    }

    #[test]
    fn shapes_beyond_any_board_are_refused() {
        let tensor = |dims: &[u8]| model(&field(4, b"Relu"), &field(1, dims));
        assert_eq!(scan(&tensor(&[4, 4])), Ok(()));
        assert!(matches!(scan(&tensor(&[0xff, 0xff, 0xff, 0xff, 0x7f])), Err(Refused::TooLarge(_))));
        assert!(matches!(scan(&tensor(&[1; 40])), Err(Refused::TooLarge(_))));
    }

    #[test]
    fn external_data_inside_a_subgraph_is_found() {
        let inner = field(5, &field(13, b"x"));
        let node = field(5, &field(6, &inner));
        assert_eq!(scan(&model(&node, &[])), Err(Refused::ExternalData));
    }
    proptest::proptest! {
        #[test]
        fn parts_of_a_bundle_are_read_or_refused_whatever_they_say(data in crate::flow::spoilt::spoilt(vec![
            br#"{"model":"m","version":"1.2.0","seq":3,"files":[{"name":"m.onnx","sha256":"00"}],
                "window":{"channels":["a"],"length":4}}"#.to_vec(),
            br#"{"_type":"kentledge.keyset","version":1,"expires":"2036-01-01T00:00:00Z","keys":[]}"#.to_vec(),
            br#"{"inputs":{"x":[1.0,2.0]},"outputs":{"score":[0.5]}}"#.to_vec(),
            field(7, &field(1, b"\x0a\x01x")),
        ])) {
            use crate::model::{baseline::Baseline, golden, keyset::Keyset, manifest::{Manifest, Release}};
            let _ = (Release::parse(&data), Manifest::parse(&data), Keyset::parse(&data));
            let _ = (golden::read(&data), Baseline::parse(&data), scan(&data));
        }
    }
}
