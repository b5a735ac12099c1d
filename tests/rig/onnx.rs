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

const INT32: u64 = 6;
const INT64: u64 = 7;
const BOOL: u64 = 9;

/// A constant: one number, or a list of them.
fn constant(name: &str, dims: &[u64], values: &[f32]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let dims: Vec<u8> = dims.iter().flat_map(|d| int(1, *d)).collect();
    field(5, &[dims, int(2, FLOAT), field(8, name.as_bytes()), field(9, &raw)].concat())
}

/// A node with one attribute that is an integer, or none.
fn op(op: &str, inputs: &[&str], output: &str, attribute: Option<(&str, u64)>) -> Vec<u8> {
    let mut body: Vec<u8> = inputs.iter().flat_map(|i| field(1, i.as_bytes())).collect();
    body.extend(field(2, output.as_bytes()));
    body.extend(field(4, op.as_bytes()));
    if let Some((name, value)) = attribute {
        body.extend(field(5, &[field(1, name.as_bytes()), int(3, value), int(20, 2)].concat()));
    }
    field(1, &body)
}

/// `score` from `mean` by these nodes; constants: `zero`, `one`, `limit` = 100.
fn from_mean(shape: &[u64], nodes: &[Vec<u8>], more: &[u8]) -> Vec<u8> {
    let axes: Vec<u64> = (0..shape.len() as u64).collect();
    let mut all = vec![node("ReduceMean", &["x"], "mean", &[("axes", &axes), ("keepdims", &[0])])];
    all.extend(nodes.iter().cloned());
    let constants =
        [constant("zero", &[], &[0.0]), constant("one", &[], &[1.0]), constant("limit", &[], &[100.0]), more.to_vec()];
    model(&all, &constants.concat(), &[value(11, "x", FLOAT, shape)], &[value(12, "score", FLOAT, &[])])
}

/// The mean again, by another file: each `tag` is another model.
pub fn mean_tagged(shape: &[u64], tag: f32) -> Vec<u8> {
    let nodes = [op("Mul", &["zero", "tag"], "nothing", None), op("Add", &["mean", "nothing"], "score", None)];
    from_mean(shape, &nodes, &constant("tag", &[], &[tag]))
}

/// The mean, and no number where it is above 100.
pub fn nan_above_100(shape: &[u64]) -> Vec<u8> {
    let nodes = [
        op("Sub", &["limit", "mean"], "left", None),
        op("Sqrt", &["left"], "root", None),
        op("Mul", &["root", "zero"], "nothing", None),
        op("Add", &["mean", "nothing"], "score", None),
    ];
    from_mean(shape, &nodes, &[])
}

/// 5, whatever it is asked.
pub fn constant_5(shape: &[u64]) -> Vec<u8> {
    let nodes = [op("Mul", &["mean", "zero"], "nothing", None), op("Add", &["nothing", "five"], "score", None)];
    from_mean(shape, &nodes, &constant("five", &[], &[5.0]))
}

/// The mean plus 50.
pub fn mean_plus_50(shape: &[u64]) -> Vec<u8> {
    from_mean(shape, &[op("Add", &["mean", "fifty"], "score", None)], &constant("fifty", &[], &[50.0]))
}

/// The mean; where it is above 100 the processor is made to divide the least whole number by -1, which has no answer.
pub fn crash_above_100(shape: &[u64]) -> Vec<u8> {
    let nodes = [
        op("Sub", &["mean", "limit"], "over", None),
        op("Max", &["over", "zero"], "clipped", None),
        op("Min", &["clipped", "one"], "is_over", None),
        op("Mul", &["is_over", "least"], "dividend", None),
        op("Cast", &["dividend"], "whole", Some(("to", INT32))),
        // Not a constant, or it would be looked at when the model is loaded.
        op("Mul", &["mean", "zero"], "nothing", None),
        op("Sub", &["nothing", "one"], "minus", None),
        op("Cast", &["minus"], "divisor", Some(("to", INT32))),
        op("Div", &["whole", "divisor"], "quotient", None),
        op("Cast", &["quotient"], "ratio", Some(("to", FLOAT))),
        op("Mul", &["ratio", "zero"], "none", None),
        op("Add", &["mean", "none"], "score", None),
    ];
    from_mean(shape, &nodes, &constant("least", &[], &[-2_147_483_648.0]))
}

/// The mean; where it is above 100 it asks for 40 GB.
pub fn bomb_above_100(shape: &[u64]) -> Vec<u8> {
    let nodes = [
        op("Sub", &["mean", "limit"], "over", None),
        op("Max", &["over", "zero"], "clipped", None),
        op("Min", &["clipped", "one"], "is_over", None),
        op("Mul", &["is_over", "many"], "n", None),
        op("Cast", &["n"], "size", Some(("to", INT64))),
        op("Reshape", &["size", "flat"], "shape", None),
        op("ConstantOfShape", &["shape"], "huge", None),
        node("ReduceSum", &["huge"], "sum", &[("keepdims", &[0])]),
        op("Mul", &["sum", "zero"], "nothing", None),
        op("Add", &["mean", "nothing"], "score", None),
    ];
    let flat = field(5, &[int(1, 1), int(2, INT64), field(8, b"flat"), field(9, &1i64.to_le_bytes())].concat());
    from_mean(shape, &nodes, &[constant("many", &[], &[1e10]), flat].concat())
}

/// `score`: the mean, after counting to `trips`.
fn counted() -> Vec<u8> {
    let body = [
        op("Identity", &["going"], "going_on", None),
        op("Identity", &["held"], "held_on", None),
        field(2, b"body"),
        value(11, "i", INT64, &[]),
        value(11, "going", BOOL, &[]),
        value(11, "held", FLOAT, &[]),
        value(12, "going_on", BOOL, &[]),
        value(12, "held_on", FLOAT, &[]),
    ]
    .concat();
    let attribute = [field(1, b"body"), field(6, &body), int(20, 5)].concat();
    field(
        1,
        &[
            field(1, b"trips"),
            field(1, b""),
            field(1, b"mean"),
            field(2, b"score"),
            field(4, b"Loop"),
            field(5, &attribute),
        ]
        .concat(),
    )
}

/// The mean; where it is above 100 it counts to a thousand million first.
pub fn hang_above_100(shape: &[u64]) -> Vec<u8> {
    let nodes = [
        op("Sub", &["mean", "limit"], "over", None),
        op("Max", &["over", "zero"], "clipped", None),
        op("Min", &["clipped", "one"], "is_over", None),
        op("Mul", &["is_over", "many"], "n", None),
        op("Cast", &["n"], "trips", Some(("to", INT64))),
        counted(),
    ];
    from_mean(shape, &nodes, &constant("many", &[], &[1e9]))
}

/// The mean, after counting so far: it takes its time for every window.
pub fn slow(shape: &[u64], trips: u64) -> Vec<u8> {
    let trips = field(5, &[int(2, INT64), field(8, b"trips"), field(9, &trips.to_le_bytes())].concat());
    from_mean(shape, &[counted()], &trips)
}

/// score = mean of the determinants of relu(x · w): a matrix product any delegate takes, and a determinant few do.
pub fn partly_for_delegates() -> Vec<u8> {
    let ints = |name: &str, values: &[i64]| {
        let raw: Vec<u8> = values.iter().flat_map(|n| n.to_le_bytes()).collect();
        field(5, &[int(1, values.len() as u64), int(2, INT64), field(8, name.as_bytes()), field(9, &raw)].concat())
    };
    let nodes = [
        op("Reshape", &["x", "rows"], "a", None),
        op("MatMul", &["a", "w"], "b", None),
        op("Relu", &["b"], "c", None),
        op("Det", &["c"], "d", None),
        op("Reshape", &["d", "flat"], "e", None),
        node("ReduceMean", &["e"], "score", &[("axes", &[0]), ("keepdims", &[0])]),
    ];
    let more = [ints("rows", &[4, 2]), ints("flat", &[1]), constant("w", &[2, 4], &[0.5; 8])].concat();
    model(&nodes, &more, &[value(11, "x", FLOAT, &[1, 4, 2])], &[value(12, "score", FLOAT, &[])])
}

/// features = the mean; score = |features − center| / scale, both learnt on the machine. Each `tag` is another model.
pub fn calibrated(shape: &[u64], tag: f32) -> Vec<u8> {
    let one = field(5, &[int(1, 1), int(2, INT64), field(8, b"flat"), field(9, &1i64.to_le_bytes())].concat());
    let axes: Vec<u64> = (0..shape.len() as u64).collect();
    let nodes = [
        node("ReduceMean", &["x"], "mean", &[("axes", &axes), ("keepdims", &[0])]),
        op("Reshape", &["mean", "flat"], "features", None),
        op("Sub", &["features", "center"], "off", None),
        op("Div", &["off", "scale"], "z", None),
        op("Abs", &["z"], "size", None),
        op("Mul", &["zero", "tag"], "nothing", None),
        op("Add", &["size", "nothing"], "score", None),
    ];
    let constants = [one, constant("zero", &[], &[0.0]), constant("tag", &[], &[tag])].concat();
    let inputs = [value(11, "x", FLOAT, shape), value(11, "center", FLOAT, &[1]), value(11, "scale", FLOAT, &[1])];
    let outputs = [value(12, "score", FLOAT, &[1]), value(12, "features", FLOAT, &[1])];
    model(&nodes, &constants, &inputs, &outputs)
}

/// The mean, and `why`: the mean of each channel.
pub fn with_contributions(shape: &[u64]) -> Vec<u8> {
    let rows: Vec<u64> = (0..shape.len() as u64 - 1).collect();
    let nodes =
        [mean_of("x", shape.len() as u64), node("ReduceMean", &["x"], "why", &[("axes", &rows), ("keepdims", &[0])])];
    let outputs = [value(12, "score", FLOAT, &[]), value(12, "why", FLOAT, &shape[shape.len() - 1..])];
    model(&nodes, &[], &[value(11, "x", FLOAT, shape)], &outputs)
}
