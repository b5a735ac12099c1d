"""Which variant goes on a board: the one with the best F1 among those that keep the deadline and the memory there.

The figures come from `kentledge model bench --json` on that board. Where there is none, the kit measures here and says so: then the
times are those of this machine.
"""

from __future__ import annotations

import json
import pathlib
from dataclasses import dataclass

from .errors import Refused
from .evaluate import Figures
from .run import Cost


@dataclass(frozen=True)
class Variant:
    name: str
    figures: Figures
    cost: Cost


@dataclass(frozen=True)
class Board:
    """What a board allows: time for one window, and memory of the worker."""

    deadline_us: float
    memory_kib: int | None = None


WITHIN = 0.005
"""F1 that counts as equal: then the faster variant wins."""


def bench(path: pathlib.Path, provider: str | None = None) -> Cost:
    """What `kentledge model bench --json` wrote: an object a line for each provider, with `p50_us`, `p99_us`, `memory_mib` (or `peak_kib`).

    The first provider's, unless one is named.
    """
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    found = [line for line in lines if isinstance(line, dict) and provider in (None, line.get("provider"))]
    if not found:
        raise Refused(f"{path}: nothing measured{f' on {provider}' if provider else ''}")
    of = found[0]
    kib = of.get("peak_kib", of.get("memory_mib", 0) * 1024)
    if "p50_us" not in of or "p99_us" not in of or not kib:
        raise Refused(f"{path}: no p50_us, p99_us and memory_mib: not the output of `kentledge model bench --json`")
    return Cost(float(of["p50_us"]), float(of["p99_us"]), int(kib), int(of.get("model_bytes", 0)), str(path))


def choose(variants: list[Variant], board: Board) -> Variant:
    """The variant to use. Raises Refused where none fits, with the figures of all."""

    def fits(v: Variant) -> bool:
        return v.cost.p99_us <= board.deadline_us and (board.memory_kib is None or v.cost.peak_kib <= board.memory_kib)

    fit = [v for v in variants if fits(v)]
    if not fit:
        all_of = "; ".join(f"{v.name}: p99 {v.cost.p99_us:.0f} µs, {v.cost.peak_kib} KiB" for v in variants)
        memory = "" if board.memory_kib is None else f" and {board.memory_kib} KiB"
        raise Refused(f"no variant fits {board.deadline_us:.0f} µs{memory}: {all_of}. Take a smaller student or fewer features")
    best = max(v.figures.f1 for v in fit)
    near = [v for v in fit if v.figures.f1 >= best - WITHIN]
    return min(near, key=lambda v: (v.cost.p50_us, v.cost.bytes))
