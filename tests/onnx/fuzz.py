#!/usr/bin/env python3
"""Writes spoilt ONNX files, and what the Python package `onnx` finds in each: what our own scan must then refuse as well.

    fuzz.py N SEED          lines: {"model" (base64), "found": [words]} for each file in which something was found
    fuzz.py table           lines: {"message", "fields": [[number, kind]]} as the package's own descriptors say

A last line {"tried", "parsed"} counts. `daemon/tests/onnx_scan.rs` reads them.
"""
import base64
import copy
import json
import random
import sys

import onnx
from onnx import helper, TensorProto

DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
LEVELS = 16


def table():
    kinds = {3: "I64", 4: "I64", 5: "I32", 14: "I32", 13: "I32", 2: "F32", 1: "F64", 9: "Bytes", 12: "Bytes"}
    todo, seen = [onnx.ModelProto.DESCRIPTOR], set()
    while todo:
        message = todo.pop()
        if message.full_name in seen:
            continue
        seen.add(message.full_name)
        fields = []
        for field in message.fields:
            if field.message_type:
                todo.append(field.message_type)
                kind = ("Parts " if field.is_repeated else "Part ") + field.message_type.name
            else:
                kind = kinds[field.type]
                kind = ("Texts" if kind == "Bytes" else kind + "s") if field.is_repeated else kind
            fields.append([field.number, kind])
        print(json.dumps({"message": message.name, "fields": sorted(fields)}))


def external(tensor):
    return len(tensor.external_data) > 0 or tensor.data_location == TensorProto.EXTERNAL


def found(model):
    """What a reader of this model would meet."""
    words, own = set(), {(f.domain, f.name) for f in model.functions}
    if model.training_info:
        words.add("training")

    def tensors(all):
        if any(external(t) for t in all):
            words.add("external")

    def attribute(a, level):
        tensors([a.t, *a.tensors])
        for s in [a.sparse_tensor, *a.sparse_tensors]:
            tensors([s.values, s.indices])
        for g in ([a.g] if a.HasField("g") else []) + list(a.graphs):
            graph(g, level + 1)

    def node(n, level):
        if n.domain not in DOMAINS and (n.domain, n.op_type) not in own:
            words.add("domain")
        for a in n.attribute:
            attribute(a, level)

    def graph(g, level):
        if level > LEVELS:
            words.add("depth")
            return
        tensors(g.initializer)
        for s in g.sparse_initializer:
            tensors([s.values, s.indices])
        for n in g.node:
            node(n, level)

    graph(model.graph, 0)
    for f in model.functions:
        for n in f.node:
            node(n, 0)
        for a in f.attribute_proto:
            attribute(a, 0)
    if any(o.domain not in DOMAINS and o.domain not in {d for d, _ in own} for o in model.opset_import):
        words.add("domain")
    return sorted(words)


def seeds():
    """Good models with everything in them that a scan walks through."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    one = helper.make_tensor("one", TensorProto.FLOAT, [2], [1, 2])
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("v", TensorProto.FLOAT, [1], [3]), helper.make_tensor("", TensorProto.INT64, [1], [0]), [4]
    )
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=one)], "inner", [], [y], [one])
    nodes = [
        helper.make_node("Add", ["x", "one"], ["a"]),
        helper.make_node("If", ["a"], ["b"], then_branch=inner, else_branch=inner),
        helper.make_node("Constant", [], ["s"], sparse_value=sparse),
        helper.make_node("F", ["b"], ["y"], domain="mine"),
    ]
    function = helper.make_function(
        "mine", "F", ["i"], ["o"], [helper.make_node("Relu", ["i"], ["o"])], [helper.make_opsetid("", 18)]
    )
    graph = helper.make_graph(nodes, "g", [x], [y], [one], sparse_initializer=[sparse])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    full = helper.make_model(graph, functions=[function], opset_imports=imports, producer_name="kentledge")
    small = helper.make_model(
        helper.make_graph([helper.make_node("Add", ["x", "one"], ["y"])], "g", [x], [y], [one]),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    return [full.SerializeToString(), small.SerializeToString()]


# A file as a tree: [number, wire, value], where the value of a message is such a list again.
def varint(n, longer=0):
    out = bytearray()
    while True:
        byte, n = n & 0x7F, n >> 7
        if n or longer:
            out.append(byte | 0x80)
            if not n:
                out += b"\x80" * (longer - 1) + b"\x00"
                return bytes(out)
        else:
            out.append(byte)
            return bytes(out)


def read_varint(data, at):
    n = shift = 0
    while True:
        byte = data[at]
        n |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return n, at


def tree(data, message):
    out, at = [], 0
    while at < len(data):
        key, at = read_varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = read_varint(data, at)
        elif wire == 2:
            size, at = read_varint(data, at)
            value, at = data[at : at + size], at + size
            field = message.fields_by_number.get(number) if message else None
            if field is not None and field.message_type:
                value = tree(value, field.message_type)
        else:
            size = 8 if wire == 1 else 4
            value, at = data[at : at + size], at + size
        out.append([number, wire, value])
    return out


def write(nodes, rng, tricks):
    out = b""
    for number, wire, value in nodes:
        trick = rng.random() < tricks
        key = number << 3 | wire
        kind = rng.randrange(6) if trick else -1
        if kind == 0:
            key += rng.randrange(1, 8) << 32
        head = varint(key, rng.randrange(1, 5) if kind == 1 else 0)
        if wire == 0:
            out += head + varint(value, rng.randrange(1, 4) if kind == 2 else 0)
            continue
        body = write(value, rng, tricks) if isinstance(value, list) else value
        if wire != 2:
            out += head + body
        elif kind == 3 and isinstance(value, list) and value:
            # One message in two halves, which readers join.
            cut = rng.randrange(len(value) + 1)
            for half in (value[:cut], value[cut:]):
                part = write(half, rng, 0)
                out += head + varint(len(part)) + part
        elif kind == 4:
            out += varint(number << 3 | 3) + body + varint(number << 3 | 4)
        else:
            out += head + varint(len(body), rng.randrange(1, 4) if kind == 5 else 0) + body
    return out


ENTRY = [[1, 2, b"location"], [2, 2, b"/etc/passwd"]]


def lists(nodes, message=onnx.ModelProto.DESCRIPTOR):
    """All messages in it, each with what it is; `None` where a spoilt number made it something else."""
    yield nodes, message
    for number, _, value in nodes:
        if isinstance(value, list):
            field = message.fields_by_number.get(number) if message else None
            yield from lists(value, field.message_type if field is not None else None)


def evil(rng, message):
    """Something a scan must find in such a message, or what is of no harm there."""
    deep = []
    for _ in range(rng.choice([2, 16, 17, 18])):
        deep = [[1, 2, [[4, 2, b"If"], [5, 2, [[1, 2, b"b"], [6, 2, deep]]]]]]
    node = [[4, 2, b"Evil"], [7, 2, b"com.evil"]]
    tensor = [[13, 2, ENTRY]]
    by_message = {
        "ModelProto": [
            [20, 2, []],
            [7, 2, deep],
            [7, 2, [[1, 2, node]]],
            [8, 2, [[1, 2, b"com.evil"], [2, 0, 1]]],
            [25, 2, [[1, 2, b"G"], [10, 2, b"com.other"], [7, 2, [[5, 2, [[5, 2, tensor]]]]]]],
            [25, 2, [[1, 2, b"G"], [10, 2, b"com.other"], [7, 2, node]]],
            [25, 2, [[1, 2, b"G"], [10, 2, b"com.other"], [11, 2, [[5, 2, tensor]]]]],
        ],
        "GraphProto": [[1, 2, node], [5, 2, tensor], [15, 2, [[2, 2, [[14, 0, 1]]]]]],
        "NodeProto": [[7, 2, b"com.evil"], [5, 2, [[6, 2, deep]]]],
        "AttributeProto": [[5, 2, tensor], [6, 2, deep], [10, 2, tensor], [11, 2, deep], [22, 2, [[1, 2, tensor]]]],
        "TensorProto": [[13, 2, ENTRY], [14, 0, rng.choice([1, 1 << 32 | 1, 2])]],
        "SparseTensorProto": [[1, 2, tensor], [2, 2, tensor]],
        "FunctionProto": [[7, 2, node], [10, 2, b"com.evil"], [11, 2, [[5, 2, tensor]]]],
        "OperatorSetIdProto": [[1, 2, b"com.evil"]],
    }
    name = message.name if message else ""
    return copy.deepcopy(rng.choice(by_message.get(name, [[13, 2, ENTRY], [7, 2, b"com.evil"]])))


def spoilt(rng, good):
    nodes = tree(good, onnx.ModelProto.DESCRIPTOR)
    for _ in range(rng.randrange(0, 4)):
        at, message = rng.choice(list(lists(nodes)))
        do = rng.randrange(4)
        if do == 0 and at:
            at.insert(rng.randrange(len(at) + 1), copy.deepcopy(rng.choice(at)))
        elif do == 1 and at:
            rng.choice(at)[0] = rng.randrange(0, 28)
        else:
            at.insert(rng.randrange(len(at) + 1), evil(rng, message))
    data = bytearray(write(nodes, rng, rng.choice([0, 0, 0.02, 0.1])))
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        at = rng.randrange(len(data)) if data else 0
        do = rng.randrange(3)
        if do == 0 and data:
            data[at] = rng.randrange(256)
        elif do == 1:
            data.insert(at, rng.randrange(256))
        elif data:
            del data[at]
    return bytes(data)


def main():
    if sys.argv[1] == "table":
        return table()
    rng, good, parsed = random.Random(int(sys.argv[2])), seeds(), 0
    for model in good:
        print(json.dumps({"model": base64.b64encode(model).decode(), "found": found(onnx.ModelProto.FromString(model))}))
    n = int(sys.argv[1])
    for _ in range(n):
        data = spoilt(rng, rng.choice(good))
        try:
            model = onnx.ModelProto.FromString(data)
        except Exception:
            continue
        parsed += 1
        words = found(model)
        if words:
            print(json.dumps({"model": base64.b64encode(data).decode(), "found": words}))
    print(json.dumps({"tried": n, "parsed": parsed}))


main()
