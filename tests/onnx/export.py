#!/usr/bin/env python3
"""Writes what the Python package `onnx` carries as test data as lines that the worker's test reads: every operator of the
standard with inputs and expected outputs (computed by the package itself, in numpy), and the small real models beside them.

    export.py OUT.jsonl

Each line: {"name", "model" (base64), "inputs"/"outputs": {name: {"shape", "values"}}} or, for what is no tensor of numbers
(sequences, optionals, strings, complex), {"name", "model", "other": why}.
"""
import base64
import json
import pathlib
import sys
import warnings

warnings.filterwarnings("ignore")
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

LARGEST = 1 << 16
NUMBERS = set("float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split())


def tensor(value):
    if isinstance(value, TensorProto):
        value = numpy_helper.to_array(value)
    if not isinstance(value, np.ndarray) and not np.isscalar(value):
        raise ValueError(type(value).__name__)
    value = np.asarray(value)
    if str(value.dtype) not in NUMBERS:
        raise ValueError(str(value.dtype))
    if value.size > LARGEST:
        raise ValueError("too large a case")
    if value.dtype == np.float64 and not np.array_equal(value, value.astype(np.float32).astype(np.float64), equal_nan=True):
        raise ValueError("numbers that do not fit a window's float32")
    if value.size and np.abs(value[np.isfinite(value)].astype(np.float64)).max(initial=0) > 2**24 and value.dtype != np.float32:
        raise ValueError("numbers that do not fit a window's float32")
    number = lambda x: float(x) if np.isfinite(x) else str(float(x))
    return {"shape": list(value.shape), "values": [number(x) for x in value.astype(np.float64).ravel()]}


def case(name, model, inputs, outputs):
    graph = model.graph
    # Optional inputs that are left out stand as empty names.
    taken = [i.name for i in graph.input]
    line = {"name": name, "model": base64.b64encode(model.SerializeToString()).decode()}
    try:
        if len(taken) != len(inputs):
            raise ValueError("inputs that are left out")
        line["inputs"] = {n: tensor(v) for n, v in zip(taken, inputs)}
        line["outputs"] = {o.name: tensor(v) for o, v in zip(graph.output, outputs)}
    except (ValueError, TypeError) as why:
        line = {"name": name, "model": line["model"], "other": str(why)}
    return line


def stored(folder):
    model = onnx.load(str(folder / "model.onnx"))
    for data in sorted(folder.glob("test_data_set_*")):
        def read(kind):
            files = sorted(data.glob(f"{kind}_*.pb"), key=lambda p: int(p.stem.split("_")[1]))
            return [numpy_helper.to_array(TensorProto.FromString(p.read_bytes())) for p in files]
        try:
            yield case(folder.name, model, read("input"), read("output"))
        except Exception as why:
            yield {"name": folder.name, "model": base64.b64encode(model.SerializeToString()).decode(), "other": str(why)}


def main():
    data = pathlib.Path(onnx.__file__).parent / "backend/test/data"
    with open(sys.argv[1], "w") as out:
        for test in collect_testcases(None):
            for inputs, outputs in test.data_sets or []:
                out.write(json.dumps(case(test.name, test.model, inputs, outputs)) + "\n")
        for folder in sorted(p.parent for p in data.glob("*/*/model.onnx")):
            for line in stored(folder):
                out.write(json.dumps(line) + "\n")


main()
