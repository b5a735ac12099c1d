//! Looks at an ONNX file before any runtime does: is it whole, does it stay within itself, does it use only operators
//! of the standard? Walks the protobuf by hand, in bounds, without building anything from it.
//!
//! Field numbers are those of `onnx.proto3`: ModelProto 7 graph, 8 opset_import, 20 training_info, 25 functions;
//! GraphProto 1 node, 5 initializer, 15 sparse_initializer; NodeProto 4 op_type, 5 attribute, 7 domain; AttributeProto 5 t,
//! 6 g, 10 tensors, 11 graphs, 22 sparse_tensor, 23 sparse_tensors; TensorProto 1 dims, 13 external_data,
//! 14 data_location; SparseTensorProto 1 values, 2 indices; FunctionProto 7 node, 9 opset_import, 10 domain,
//! 11 attribute_proto; OperatorSetIdProto 1 domain, 2 version.

use std::fmt;

use crate::limits;

/// Why a file is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Ends in the middle of something, or is no protobuf at all.
    NotOnnx(&'static str),
    /// Names another file to read weights from.
    ExternalData,
    /// Uses operators from outside the standard.
    Domain(String),
    /// Nested or large beyond the bound.
    TooLarge(&'static str),
    /// Older than current runtimes still run.
    Opset(u64),
    /// It is for training.
    Training,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::NotOnnx(why) => write!(f, "it is no whole ONNX file: {why}"),
            Refused::ExternalData => {
                f.write_str("it reads weights from another file (external data), which is refused")
            }
            Refused::Domain(name) => write!(f, "it uses operators of the domain `{name}`, which is unknown here"),
            Refused::TooLarge(what) => write!(f, "it has too many {what}"),
            Refused::Training => f.write_str("it is for training, and nothing is trained here"),
            Refused::Opset(version) => write!(f, "it needs operator set {version}; the runtime starts at 7"),
        }
    }
}

/// Domains whose operators the plain runtime brings. `com.microsoft` is what quantisation tools write.
const DOMAINS: [&str; 4] = ["", "ai.onnx", "ai.onnx.ml", "com.microsoft"];

/// Checks a whole file.
pub fn scan(bytes: &[u8]) -> Result<(), Refused> {
    let mut scan = Scan { nodes: 0, own: own_domains(bytes)? };
    let (mut graph, mut opsets) = (false, 0);
    for field in Fields(bytes) {
        match field? {
            (20, _) => return Err(Refused::Training),
            (7, Value::Bytes(body)) => {
                graph = true;
                scan.graph(body, 0)?;
            }
            (8, Value::Bytes(body)) => {
                opsets += 1;
                scan.opset(body)?;
            }
            (25, Value::Bytes(body)) => scan.function(body)?,
            _ => {}
        }
    }
    if !graph || opsets == 0 || scan.nodes == 0 {
        return Err(Refused::NotOnnx("it has no graph, no node or no operator set"));
    }
    Ok(())
}

/// Functions that the model brings itself stand in domains of their own: what they are made of is looked at like the rest.
fn own_domains(bytes: &[u8]) -> Result<Vec<&[u8]>, Refused> {
    let mut own = Vec::new();
    for field in Fields(bytes) {
        if let (25, Value::Bytes(body)) = field? {
            for field in Fields(body) {
                if let (10, Value::Bytes(domain)) = field? {
                    own.push(domain);
                }
            }
        }
        if own.len() > limits::ONNX_NODES_MAX {
            return Err(Refused::TooLarge("functions"));
        }
    }
    Ok(own)
}

struct Scan<'a> {
    nodes: usize,
    own: Vec<&'a [u8]>,
}

impl Scan<'_> {
    fn opset(&self, bytes: &[u8]) -> Result<(), Refused> {
        let (mut domain, mut version) = (String::new(), 0);
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(name)) => domain = String::from_utf8_lossy(name).into_owned(),
                (2, Value::Int(n)) => version = n,
                _ => {}
            }
        }
        self.domain(&domain)?;
        if domain.is_empty() && version < 7 { Err(Refused::Opset(version)) } else { Ok(()) }
    }

    fn domain(&self, domain: &str) -> Result<(), Refused> {
        if DOMAINS.contains(&domain) || self.own.contains(&domain.as_bytes()) {
            Ok(())
        } else {
            Err(Refused::Domain(domain.to_owned()))
        }
    }

    fn graph(&mut self, bytes: &[u8], depth: usize) -> Result<(), Refused> {
        if depth > limits::ONNX_DEPTH_MAX {
            return Err(Refused::TooLarge("levels of subgraphs"));
        }
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(body)) => self.node(body, depth)?,
                (5, Value::Bytes(body)) => tensor(body)?,
                (15, Value::Bytes(body)) => sparse(body)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn function(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        for field in Fields(bytes) {
            match field? {
                (7, Value::Bytes(body)) => self.node(body, 0)?,
                (9, Value::Bytes(body)) => self.opset(body)?,
                (11, Value::Bytes(body)) => self.attribute(body, 0)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn node(&mut self, bytes: &[u8], depth: usize) -> Result<(), Refused> {
        self.nodes += 1;
        if self.nodes > limits::ONNX_NODES_MAX {
            return Err(Refused::TooLarge("nodes"));
        }
        for field in Fields(bytes) {
            match field? {
                (5, Value::Bytes(body)) => self.attribute(body, depth)?,
                (7, Value::Bytes(name)) => self.domain(&String::from_utf8_lossy(name))?,
                _ => {}
            }
        }
        Ok(())
    }

    fn attribute(&mut self, bytes: &[u8], depth: usize) -> Result<(), Refused> {
        for field in Fields(bytes) {
            match field? {
                (5 | 10, Value::Bytes(body)) => tensor(body)?,
                (6 | 11, Value::Bytes(body)) => self.graph(body, depth + 1)?,
                (22 | 23, Value::Bytes(body)) => sparse(body)?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn tensor(bytes: &[u8]) -> Result<(), Refused> {
    let (mut values, mut rank) = (1u64, 0usize);
    let mut dimension = |n: u64| {
        rank += 1;
        values = values.saturating_mul(n.max(1));
        if rank > limits::ONNX_RANK_MAX || values > limits::ONNX_VALUES_MAX {
            return Err(Refused::TooLarge("values in one tensor"));
        }
        Ok(())
    };
    for field in Fields(bytes) {
        match field? {
            (1, Value::Int(n)) => dimension(n)?,
            // Packed.
            (1, Value::Bytes(body)) => {
                let mut rest = Fields(body);
                while !rest.0.is_empty() {
                    dimension(rest.varint().ok_or(Refused::NotOnnx("it ends in the middle of a shape"))?)?;
                }
            }
            (13, _) | (14, Value::Int(1..)) => return Err(Refused::ExternalData),
            _ => {}
        }
    }
    Ok(())
}

fn sparse(bytes: &[u8]) -> Result<(), Refused> {
    for field in Fields(bytes) {
        if let (1 | 2, Value::Bytes(body)) = field? {
            tensor(body)?;
        }
    }
    Ok(())
}

enum Value<'a> {
    Int(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The fields of one protobuf message.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Refused>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(Refused::NotOnnx("it ends in the middle of a field")))
    }
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Int(self.varint()?),
            1 => self.skip(8)?,
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                let (body, rest) = self.0.split_at_checked(len)?;
                self.0 = rest;
                Value::Bytes(body)
            }
            5 => self.skip(4)?,
            _ => return None,
        };
        (key >> 3 > 0).then_some((key >> 3, value))
    }

    fn skip(&mut self, n: usize) -> Option<Value<'a>> {
        self.0 = self.0.split_at_checked(n)?.1;
        Some(Value::Fixed)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
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
        let function = [field(7, &field(4, b"Relu")), field(10, b"mine")].concat();
        let caller = field(1, &[field(4, b"F"), field(7, b"mine")].concat());
        assert_eq!(scan(&[graph(&caller), long(25, &function)].concat()), Ok(()));
        assert_eq!(scan(&graph(&caller)), Err(Refused::Domain("mine".into())));
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
}
