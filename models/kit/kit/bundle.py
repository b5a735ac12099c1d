"""The folder of a bundle: model, manifest, golden cases, card, rows for the baseline. `kentledge model prepare` and minisign go on."""

from __future__ import annotations

import csv
import json
import pathlib
import subprocess
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from . import checks, run, wire
from .data import Windows
from .errors import Refused
from .evaluate import Level

ROLES = {"score": "score", "probabilities": "probabilities"}
"""Outputs of the kit's models, and what they are to the daemon. `logits` is for the kit itself."""


@dataclass(frozen=True)
class Release:
    """What a manifest says beside the model."""

    name: str
    version: str
    seq: int
    level: Level
    deadline_ms: int
    gap_max_ms: float | None
    hop: int
    normal: str = "ok"


def named_outputs(model: onnx.ModelProto) -> list[dict[str, object]]:
    """The outputs as the manifest names them. Raises Refused for one without a name."""
    known = {"score", "probabilities", "logits"}
    out = []
    for output in model.graph.output:
        if output.name not in known:
            raise Refused(
                f"output {output.name} of the model: neither `score` nor `probabilities` nor `logits`: the daemon could not say what it "
                "means. Rename it, or leave it out"
            )
        kind = output.type.tensor_type.elem_type
        if kind != TensorProto.FLOAT:
            raise Refused(f"output {output.name} has type {TensorProto.DataType.Name(kind)}, not float32")
        shape = [d.dim_value for d in output.type.tensor_type.shape.dim]
        if 0 in shape:
            raise Refused(f"output {output.name} has no fixed shape: assemble the model with batch 1")
        entry: dict[str, object] = {"name": output.name, "type": "float32", "shape": shape}
        if output.name in ROLES:
            entry["role"] = ROLES[output.name]
        out.append(entry)
    if not any(o["name"] == "score" for o in out):
        raise Refused(f"the model has no output `score`; it has {', '.join(str(o['name']) for o in out)}")
    return out


def golden(model: onnx.ModelProto, windows: Windows, per_class: int = 1) -> str:
    """Golden cases: windows of each class with what the model answers, a JSON line each."""
    lines = []
    for label in dict.fromkeys(windows.label.tolist()):
        for window in windows.x[windows.label == label][:per_class]:
            # As the file says it: rounded values, so that the case is what it says.
            shown = np.array([float(f"{v:.5g}") for v in window.ravel()], np.float32).reshape(window.shape)
            score, shares = run.outputs(model, shown[None], ["score", "probabilities"])
            case = {
                "inputs": {"x": [float(f"{v:.5g}") for v in shown.ravel().tolist()]},
                "outputs": {"score": [float(score.ravel()[0])], "probabilities": [float(p) for p in shares.ravel()]},
                "atol": 0.02,
                "rtol": 0.01,
            }
            lines.append(json.dumps(case, separators=(",", ":")))
    return "\n".join(lines) + "\n"


def write(folder: pathlib.Path, model: onnx.ModelProto, release: Release, windows: Windows, card: str) -> pathlib.Path:
    """Writes model.onnx, manifest.json, golden.jsonl, card.md, and normal.csv beside the folder: healthy rows for `prepare --rows`.

    `windows` are labelled and none of them was trained on. Raises Refused where the model or the rows are not fit.
    """
    outputs = named_outputs(model)
    props = {p.key: p.value for p in model.metadata_props}
    if props.get("channels", "").split(",") != list(windows.channels.names):
        raise Refused(f"bundle: the model wants channels {props.get('channels')}, and the windows have {','.join(windows.channels.names)}")
    healthy = windows.take(windows.label == release.normal)
    checks.healthy(healthy, "baseline", release.normal)
    folder.mkdir(parents=True, exist_ok=True)
    classes = props["classes"].split(",")
    manifest = {
        "model": release.name,
        "version": release.version,
        "seq": release.seq,
        "inputs": [{"name": "x", "role": "window", "layout": "steps_first"}],
        "outputs": [{k: v for k, v in output.items() if k in ("name", "role")} for output in outputs],
        "score": "score",
        "classes": classes,
        "probabilities": "probabilities",
        "window": {
            "channels": list(windows.channels.names),
            "length": windows.steps,
            "hop": release.hop,
            **({} if release.gap_max_ms is None else {"gap_max_ms": release.gap_max_ms}),
        },
        "thresholds": {"raise": release.level.raise_above, "clear_factor": release.level.clear_factor},
        "providers": ["cpu"],
        "deadline_ms": release.deadline_ms,
    }
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    (folder / "golden.jsonl").write_text(golden(model, windows))
    (folder / "card.md").write_text(card)
    rows = folder.parent / f"{folder.name}-normal.csv"
    with rows.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(windows.channels.names)
        # Of all machines: what is normal is more than one of them.
        some = healthy.x[:: max(1, len(healthy) // 32)]
        flat = some.reshape(-1, len(windows.channels.names))
        writer.writerows([f"{v:.6g}" for v in row] for row in flat.tolist())
    return rows


def pack(folder: pathlib.Path, rows: pathlib.Path, secret: pathlib.Path, out: pathlib.Path, kentledge: str = "kentledge") -> pathlib.Path:
    """Completes, signs and packs the folder, with the tools that a person would use."""
    _tool(kentledge, "model", "prepare", str(folder), "--rows", str(rows))
    wire.minisign(folder / "manifest.json", secret, folder / "manifest.json.minisig")
    _tool(kentledge, "model", "pack", str(folder), "-o", str(out))
    return out


def verify(bundle: pathlib.Path, keyset: pathlib.Path, kentledge: str = "kentledge") -> str:
    """What `kentledge model verify` says."""
    return _tool(kentledge, "model", "verify", str(bundle), "--keyset", str(keyset))


def _tool(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise Refused(f"{' '.join(command[:3])} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
