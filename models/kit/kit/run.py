"""Runs ONNX models on the processor as the daemon does: one thread, ONNX Runtime's CPU provider."""

from __future__ import annotations

import json
import os
import pathlib
import resource
import tempfile
import time
from collections import Counter
from dataclasses import dataclass

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnxruntime as ort

from .data import Doubles, Floats
from .errors import Refused


def session(model: onnx.ModelProto | bytes | pathlib.Path) -> ort.InferenceSession:
    """A session with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    given = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return ort.InferenceSession(given if isinstance(given, bytes) else str(given), options, providers=["CPUExecutionProvider"])


def outputs(model: onnx.ModelProto | bytes | pathlib.Path | ort.InferenceSession, x: Floats, names: list[str]) -> list[Floats]:
    """The named outputs for windows [N, steps, channels], in batches where the model takes them and else one by one."""
    open_session = model if isinstance(model, ort.InferenceSession) else session(model)
    known = [o.name for o in open_session.get_outputs()]
    missing = [name for name in names if name not in known]
    if missing:
        raise Refused(f"the model has no output {', '.join(missing)}; it has {', '.join(known)}")
    (given,) = [i for i in open_session.get_inputs() if len(i.shape) == x.ndim][:1]
    size = given.shape[0] if isinstance(given.shape[0], int) else 64
    parts: list[list[Floats]] = [[] for _ in names]
    for start in range(0, len(x), size):
        for part, value in zip(parts, open_session.run(names, {given.name: x[start : start + size]}), strict=True):
            part.append(np.asarray(value, dtype=np.float32).reshape(min(size, len(x) - start), -1))
    return [np.concatenate(part) for part in parts]


@dataclass(frozen=True)
class Cost:
    """What one window costs on a machine."""

    p50_us: float
    p99_us: float
    peak_kib: int
    bytes: int
    machine: str


def shares(model: bytes, x: Floats, windows: int = 200) -> list[tuple[str, float, int]]:
    """Where the time goes: for each operator its share, and how many nodes of it there are; the slowest first."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(pathlib.Path(folder, "profile"))
        profiled = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        given = profiled.get_inputs()[0].name
        for i in range(windows):
            profiled.run(None, {given: x[i % len(x)][None]})
        events = json.loads(pathlib.Path(profiled.end_profiling()).read_text())
    took: Counter[str] = Counter()
    nodes: dict[str, set[str]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            operator = event["args"]["op_name"]
            took[operator] += event["dur"]
            nodes.setdefault(operator, set()).add(event["args"].get("node_index", event["name"]))
    total = max(1, sum(took.values()))
    return [(operator, us / total, len(nodes[operator])) for operator, us in took.most_common()]


def cost(model: bytes, x: Floats, windows: int = 300) -> Cost:
    """Measured here, window by window, after 20 to warm up: processor time, so that other programs on the laptop do not count.

    Peak memory is that of this process and only an upper bound.
    """
    open_session = session(model)
    given = open_session.get_inputs()[0].name
    took: list[float] = []
    for i in range(windows + 20):
        one = x[i % len(x)][None]
        # One thread: it is the caller's.
        start = time.thread_time_ns()
        open_session.run(None, {given: one})
        took.append((time.thread_time_ns() - start) / 1000)
    sorted_us: Doubles = np.sort(np.array(took[20:]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    half, nearly_all = (float(sorted_us[int((len(sorted_us) - 1) * share)]) for share in (0.5, 0.99))
    return Cost(half, nearly_all, peak, len(model), "this machine, onnxruntime in Python")
