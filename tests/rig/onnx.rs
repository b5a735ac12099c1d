//! Tiny ONNX files made here, field by field: good ones, and each kind of bad one. Field numbers as in `onnx.proto3`.

/// One protobuf field with a body.
fn field(number: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    varint(&mut out, body.len() as u64);
    out.extend_from_slice(body);
    out
}

fn int(number: u8, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(&mut out, u64::from(number) << 3);
    varint(&mut out, value);
    out
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A node without attributes but these, each a list of integers.
pub fn node(op: &str, inputs: &[&str], output: &str, ints: &[(&str, &[u64])]) -> Vec<u8> {
    let mut body = Vec::new();
    inputs.iter().for_each(|i| body.extend(field(1, i.as_bytes())));
    body.extend(field(2, output.as_bytes()));
    body.extend(field(4, op.as_bytes()));
    for (name, values) in ints {
        let mut attribute = field(1, name.as_bytes());
        if *name == "keepdims" {
            attribute.extend([int(3, values[0]), int(20, 2)].concat());
        } else {
            values.iter().for_each(|v| attribute.extend(int(8, *v)));
            attribute.extend(int(20, 7));
        }
        body.extend(field(5, &attribute));
    }
    field(1, &body)
}

fn value(number: u8, name: &str, element: u64, shape: &[u64]) -> Vec<u8> {
    let dims: Vec<u8> = shape.iter().flat_map(|d| field(1, &int(1, *d))).collect();
    let tensor = [int(1, element), field(2, &dims)].concat();
    field(number, &[field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat())
}

const FLOAT: u64 = 1;

fn model(nodes: &[Vec<u8>], more: &[u8], inputs: &[Vec<u8>], outputs: &[Vec<u8>]) -> Vec<u8> {
    let graph = [nodes.concat(), field(2, b"g"), more.to_vec(), inputs.concat(), outputs.concat()].concat();
    [int(1, 8), field(7, &graph), field(8, &int(2, 13))].concat()
}

fn mean_of(input: &str, rank: u64) -> Vec<u8> {
    let axes: Vec<u64> = (0..rank).collect();
    node("ReduceMean", &[input], "score", &[("axes", &axes), ("keepdims", &[0])])
}

/// score = mean of the window.
pub fn mean(shape: &[u64]) -> Vec<u8> {
    model(&[mean_of("x", shape.len() as u64)], &[], &[value(11, "x", FLOAT, shape)], &[value(12, "score", FLOAT, &[])])
}

/// score = mean of x / x: 1, or NaN where a value is 0.
pub fn nan_on_zero(shape: &[u64]) -> Vec<u8> {
    let nodes = [node("Div", &["x", "x"], "one", &[]), mean_of("one", shape.len() as u64)];
    model(&nodes, &[], &[value(11, "x", FLOAT, shape)], &[value(12, "score", FLOAT, &[])])
}

/// Two outputs: `score`, and `twice` = x + x.
pub fn two_outputs(shape: &[u64]) -> Vec<u8> {
    let nodes = [mean_of("x", shape.len() as u64), node("Add", &["x", "x"], "twice", &[])];
    let outputs = [value(12, "score", FLOAT, &[]), value(12, "twice", FLOAT, shape)];
    model(&nodes, &[], &[value(11, "x", FLOAT, shape)], &outputs)
}

/// A window of 64-bit integers, and a second input: score = mean(x) + bias, both integers.
pub fn integers(shape: &[u64]) -> Vec<u8> {
    const INT64: u64 = 7;
    let axes: Vec<u64> = (0..shape.len() as u64).collect();
    let nodes = [
        node("ReduceMean", &["x"], "mean", &[("axes", &axes), ("keepdims", &[0])]),
        node("Add", &["mean", "bias"], "score", &[]),
    ];
    let inputs = [value(11, "x", INT64, shape), value(11, "bias", INT64, &[1])];
    model(&nodes, &[], &inputs, &[value(12, "score", INT64, &[1])])
}

/// An operator the standard does not have.
pub fn unknown_op(shape: &[u64]) -> Vec<u8> {
    model(
        &[node("Sorcery", &["x"], "score", &[])],
        &[],
        &[value(11, "x", FLOAT, shape)],
        &[value(12, "score", FLOAT, &[])],
    )
}

/// Weights in another file.
pub fn external_data(shape: &[u64]) -> Vec<u8> {
    let entry = field(13, &[field(1, b"location"), field(2, b"/etc/passwd")].concat());
    let tensor = field(5, &[int(1, 1), int(2, FLOAT), field(8, b"w"), entry, int(14, 1)].concat());
    let nodes = [node("Add", &["x", "w"], "y", &[]), mean_of("y", shape.len() as u64)];
    model(&nodes, &tensor, &[value(11, "x", FLOAT, shape)], &[value(12, "score", FLOAT, &[])])
}
