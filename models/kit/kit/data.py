"""Rows and windows of vibration or process data, and their Parquet files.

A row is one sample of all channels at one time. A window is `steps` rows in order. Windows never cross a gap. Each window keeps
where it comes from (machine, recording, first row), so that a leak between training and test is found.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import Refused

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Texts = npt.NDArray[np.str_]

UNLABELLED = ""


@dataclass(frozen=True)
class Channels:
    """Names and units in the order of the columns, and the nominal rate in samples a second."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    rate_hz: float

    def as_json(self) -> dict[str, object]:
        return {"names": list(self.names), "units": list(self.units), "rate_hz": self.rate_hz}

    @staticmethod
    def from_json(value: dict[str, object]) -> Channels:
        names, units, rate = value["names"], value["units"], value["rate_hz"]
        assert isinstance(names, list) and isinstance(units, list) and isinstance(rate, (int, float))
        return Channels(tuple(names), tuple(units), float(rate))


@dataclass(frozen=True)
class Rows:
    """One recording of one machine."""

    channels: Channels
    machine: str
    recording: str
    t_ns: Ints
    values: Doubles
    """Rows × channels; NaN where a sample is bad or missing."""
    label: Texts
    """A class for each row; empty where it has no label."""

    def gaps(self, gap_max_ms: float) -> Ints:
        """Rows before which time is missing: a step longer than `gap_max_ms`, or one backwards."""
        step = np.diff(self.t_ns) / 1e6
        return np.flatnonzero((step > gap_max_ms) | (step < 0)) + 1

    def windows(self, steps: int, hop: int, gap_max_ms: float, cut_gaps: bool = False) -> Windows:
        """Cuts windows of `steps` rows.

        Raises Refused where rows are missing or bad, unless `cut_gaps` says that windows end there: filling the hole would teach
        the model a signal that no machine made.
        """
        gaps = self.gaps(gap_max_ms)
        bad = np.flatnonzero(np.isnan(self.values).any(axis=1))
        if not cut_gaps and (len(gaps) or len(bad)):
            what = f"{len(gaps)} gaps longer than {gap_max_ms:g} ms (the first before row {gaps[0]})" if len(gaps) else ""
            more = f"{len(bad)} rows with a bad or missing value (the first is row {bad[0]})" if len(bad) else ""
            raise Refused(
                f"recording {self.recording}: {' and '.join(t for t in (what, more) if t)}: a window across them would hide them. "
                "Say --gaps cut: windows then end before each of them"
            )
        whole = np.ones(len(self.t_ns), dtype=bool)
        whole[bad] = False
        # `run[i]`: the number of the unbroken piece that row i is in.
        breaks = np.zeros(len(self.t_ns), dtype=np.int64)
        breaks[gaps] = 1
        run = np.cumsum(breaks)
        firsts = [
            first
            for first in range(0, len(self.t_ns) - steps + 1, hop)
            if run[first] == run[first + steps - 1] and whole[first : first + steps].all()
        ]
        at = np.array(firsts, dtype=np.int64)
        rows = at[:, None] + np.arange(steps)[None, :]
        x = self.values[rows].astype(np.float32) if len(at) else np.zeros((0, steps, len(self.channels.names)), np.float32)
        return Windows(
            channels=self.channels,
            x=x,
            # A window is called what its last row is called: that is when the daemon decides.
            label=self.label[at + steps - 1] if len(at) else np.zeros(0, dtype=str),
            machine=np.full(len(at), self.machine),
            recording=np.full(len(at), self.recording),
            first_row=at,
            alarmed=np.zeros(len(at), dtype=bool),
        )


@dataclass(frozen=True)
class Windows:
    """Windows of one shape, with labels and origin."""

    channels: Channels
    x: Floats
    """Windows × steps × channels."""
    label: Texts
    machine: Texts
    recording: Texts
    first_row: Ints
    alarmed: Bools
    """An alarm was raised on the device while the window was made."""
    extra: dict[str, object] = field(default_factory=dict)
    """Kept in the Parquet file's metadata: how the windows were made."""

    def __len__(self) -> int:
        return len(self.x)

    @property
    def steps(self) -> int:
        return int(self.x.shape[1])

    def take(self, chosen: Bools | Ints) -> Windows:
        """Some of them."""
        return replace(
            self,
            x=self.x[chosen],
            label=self.label[chosen],
            machine=self.machine[chosen],
            recording=self.recording[chosen],
            first_row=self.first_row[chosen],
            alarmed=self.alarmed[chosen],
        )

    def digests(self) -> list[str]:
        """SHA-256 of each window's float32 values, little-endian, row-major: what the daemon calls `win`."""
        return ["sha256:" + hashlib.sha256(np.ascontiguousarray(w, dtype="<f4").tobytes()).hexdigest() for w in self.x]

    def save(self, path: pathlib.Path) -> None:
        """Writes a Parquet file."""
        values = pa.array(self.x.reshape(len(self), -1).ravel())
        size = int(np.prod(self.x.shape[1:]))
        table = pa.table(
            {
                "machine": pa.array(self.machine.tolist(), pa.string()),
                "recording": pa.array(self.recording.tolist(), pa.string()),
                "first_row": pa.array(self.first_row),
                "label": pa.array(self.label.tolist(), pa.string()),
                "alarmed": pa.array(self.alarmed),
                "digest": pa.array(self.digests(), pa.string()),
                "x": pa.FixedSizeListArray.from_arrays(values, size),
            }
        )
        meta = {"channels": self.channels.as_json(), "shape": list(self.x.shape[1:]), "extra": self.extra}
        pq.write_table(table.replace_schema_metadata({"kit": json.dumps(meta)}), path, compression="zstd")

    @staticmethod
    def load(path: pathlib.Path) -> Windows:
        """Reads a Parquet file of `save`, and checks that the values are those that were written."""
        table = pq.read_table(path)
        if b"kit" not in (table.schema.metadata or {}):
            raise Refused(f"{path}: no file of windows: it was not written by `kit collect`")
        meta = json.loads(table.schema.metadata[b"kit"])
        x = table["x"].combine_chunks()
        flat = x.chunk(0).values if isinstance(x, pa.ChunkedArray) else x.values
        read = Windows(
            channels=Channels.from_json(meta["channels"]),
            x=np.asarray(flat, dtype=np.float32).reshape(len(table), *meta["shape"]),
            label=np.array(table["label"].to_pylist(), dtype=str),
            machine=np.array(table["machine"].to_pylist(), dtype=str),
            recording=np.array(table["recording"].to_pylist(), dtype=str),
            first_row=np.asarray(table["first_row"], dtype=np.int64),
            alarmed=np.asarray(table["alarmed"], dtype=bool),
            extra=meta["extra"],
        )
        wrong = [i for i, (a, b) in enumerate(zip(read.digests(), table["digest"].to_pylist(), strict=True)) if a != b]
        if wrong:
            raise Refused(f"{path}: {len(wrong)} windows do not have the digest beside them (the first is {wrong[0]}): damaged, or edited")
        return read


def joined(parts: list[Windows]) -> Windows:
    """Windows of several recordings as one set. Raises Refused where their channels differ."""
    if not parts:
        raise Refused("no windows at all: nothing to work with")
    first = parts[0]
    for part in parts[1:]:
        if part.channels != first.channels:
            raise Refused(
                f"channels differ: {list(first.channels.names)} {list(first.channels.units)} at {first.channels.rate_hz:g} Hz, "
                f"and {list(part.channels.names)} {list(part.channels.units)} at {part.channels.rate_hz:g} Hz"
            )
        if part.x.shape[1:] != first.x.shape[1:]:
            raise Refused(f"windows differ in shape: {first.x.shape[1:]} and {part.x.shape[1:]}")
    return Windows(
        channels=first.channels,
        x=np.concatenate([p.x for p in parts]),
        label=np.concatenate([p.label.astype(str) for p in parts]),
        machine=np.concatenate([p.machine.astype(str) for p in parts]),
        recording=np.concatenate([p.recording.astype(str) for p in parts]),
        first_row=np.concatenate([p.first_row for p in parts]),
        alarmed=np.concatenate([p.alarmed for p in parts]),
        extra=first.extra,
    )
