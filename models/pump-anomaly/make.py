#!/usr/bin/env python3
"""Makes model.onnx and manifest.json from arithmetic alone: no trained weights, no data.

A multi-scale control chart. Input x is a window of 20 rows of 3 channels. Features are the means of the last 5, 10 and
20 rows of each channel (9 numbers). The daemon learns mean and standard deviation of the features on the machine itself
and binds them to `center` and `scale`; score = max |(features - center) / scale|.

    python3 -m pip install onnx numpy
    ./make.py            writes the files
    ./make.py --check    exits 1 if the files in this folder are not what it would write
"""
import hashlib
import json
import pathlib
import sys

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent
CHANNELS = ["accelerometer1rms", "accelerometer2rms", "volume_flow_raterms"]
STEPS = 20
SCALES = [5, 10, 20]
FEATURES = len(CHANNELS) * len(SCALES)
CALIBRATION_WINDOWS = 380


def ints(name, values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def model():
    initializers = [ints("axis1", [1]), ints("axis0", [0]), ints("end", [STEPS]), ints("flat", [FEATURES])]
    nodes, means = [], []
    for rows in SCALES:
        start = f"start{rows}"
        initializers.append(ints(start, [STEPS - rows]))
        nodes.append(helper.make_node("Slice", ["x", start, "end", "axis1"], [f"last{rows}"]))
        nodes.append(helper.make_node("ReduceMean", [f"last{rows}", "axis1"], [f"mean{rows}"], keepdims=0))
        means.append(f"mean{rows}")
    nodes += [
        helper.make_node("Concat", means, ["means"], axis=1),
        helper.make_node("Reshape", ["means", "flat"], ["features"]),
        helper.make_node("Sub", ["features", "center"], ["off"]),
        helper.make_node("Div", ["off", "scale"], ["z"]),
        helper.make_node("Abs", ["z"], ["abs_z"]),
        helper.make_node("ReduceMax", ["abs_z", "axis0"], ["score"], keepdims=1),
    ]
    f32 = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "pump-anomaly",
        [
            helper.make_tensor_value_info("x", f32, [1, STEPS, len(CHANNELS)]),
            helper.make_tensor_value_info("center", f32, [FEATURES]),
            helper.make_tensor_value_info("scale", f32, [FEATURES]),
        ],
        [
            helper.make_tensor_value_info("score", f32, [1]),
            helper.make_tensor_value_info("features", f32, [FEATURES]),
        ],
        initializers,
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="kentledge"
    )
    checker.check_model(made)
    return made.SerializeToString(deterministic=True)


def manifest(onnx):
    digest = hashlib.sha256(onnx).hexdigest()
    return {
        "_type": "model",
        "product": "kentledge",
        "channel": "stable",
        "model": "pump-anomaly",
        "version": "1.0.0",
        "seq": 1,
        "created": "2026-11-20T00:00:00Z",
        "expires": "2031-11-20T00:00:00Z",
        "device_class": ["any"],
        "min_supervisor": "0.1.0",
        "files": [{"name": "model.onnx", "size": len(onnx), "sha256": digest}],
        "inputs": [
            {"name": "x", "type": "float32", "shape": [1, STEPS, len(CHANNELS)], "role": "window", "layout": "steps_first"},
            {"name": "center", "type": "float32", "shape": [FEATURES], "role": "center"},
            {"name": "scale", "type": "float32", "shape": [FEATURES], "role": "scale"},
        ],
        "outputs": [
            {"name": "score", "type": "float32", "shape": [1], "role": "score"},
            {"name": "features", "type": "float32", "shape": [FEATURES], "role": "features"},
        ],
        "window": {"channels": CHANNELS, "length": STEPS, "hop": 1, "gap_max_ms": 2500},
        "calibration": {
            "windows": CALIBRATION_WINDOWS,
            "features": "features",
            "center": "center",
            "scale": "scale",
            "factor": 1.75,
        },
        "thresholds": {"clear_factor": 0.6},
        "providers": ["cpu"],
        "deadline_ms": 1000,
    }


def main():
    onnx = model()
    text = json.dumps(manifest(onnx), indent=2) + "\n"
    files = {"model.onnx": onnx, "manifest.json": text.encode()}
    if "--check" in sys.argv[1:]:
        stale = [name for name, content in files.items() if (HERE / name).read_bytes() != content]
        sys.exit(f"not what make.py writes: {', '.join(stale)}" if stale else 0)
    for name, content in files.items():
        (HERE / name).write_bytes(content)


main()
