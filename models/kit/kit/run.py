"""Runs ONNX models on the processor as the daemon does: one thread, ONNX Runtime's CPU provider."""

from __future__ import annotations

import os
import pathlib
import resource
import time
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


def cost(model: bytes, x: Floats, windows: int = 300) -> Cost:
    """Measured here, window by window, after 20 to warm up. Peak memory is that of this process and only an upper bound."""
    open_session = session(model)
    given = open_session.get_inputs()[0].name
    took: list[float] = []
    for i in range(windows + 20):
        one = x[i % len(x)][None]
        start = time.perf_counter_ns()
        open_session.run(None, {given: one})
        took.append((time.perf_counter_ns() - start) / 1000)
    sorted_us: Doubles = np.sort(np.array(took[20:]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    at = lambda share: float(sorted_us[int((len(sorted_us) - 1) * share)])  # noqa: E731
    return Cost(at(0.5), at(0.99), peak, len(model), "this machine, onnxruntime in Python")
