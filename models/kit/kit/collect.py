"""Where rows and windows come from: CSV files, tapes, a broker, and the blobs of `samples.pull`."""

from __future__ import annotations

import csv
import datetime
import json
import pathlib
import struct
import subprocess
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt

from .data import UNLABELLED, Channels, Rows, Windows
from .errors import Refused

NS = 1_000_000_000
RECORD_MAX = 1 << 20
"""Bytes of a header or of the values of one kept window; the device's largest window has 256 KiB."""


def time_ns(text: str) -> int:
    """RFC 3339 or `YYYY-MM-DD hh:mm:ss` (taken as UTC), or seconds as a number."""
    try:
        at = datetime.datetime.fromisoformat(text)
        at = at if at.tzinfo else at.replace(tzinfo=datetime.UTC)
        return int(at.timestamp() * NS)
    except ValueError:
        return round(float(text) * NS)


def from_csv(
    path: pathlib.Path,
    channels: Channels,
    columns: tuple[str, ...],
    time_column: str,
    label_column: str | None = None,
    labels: dict[str, str] | None = None,
    separator: str | None = None,
    machine: str | None = None,
) -> Rows:
    """A CSV file as one recording. `columns` are the header's names of the channels, in order; `labels` maps cells to classes.

    A cell that is no number is missing (NaN), and a window is never made of it. A row without a time is refused.
    """
    with path.open(newline="") as file:
        first = file.readline()
        file.seek(0)
        reader = csv.DictReader(file, delimiter=separator or max(",;\t", key=first.count))
        header = reader.fieldnames or []
        wanted = [*columns, time_column, *([label_column] if label_column else [])]
        missing = [name for name in wanted if name not in header]
        if missing:
            raise Refused(f"{path}: no column {', '.join(missing)}; it has {', '.join(header)}")
        times, values, marks = [], [], []
        for line, row in enumerate(reader, 2):
            try:
                times.append(time_ns(row[time_column]))
            except (TypeError, ValueError):
                raise Refused(f"{path}:{line}: no time in column {time_column}: '{row[time_column]}'") from None
            values.append([_number(row[name]) for name in columns])
            marks.append((labels or {}).get(row[label_column], row[label_column]) if label_column else UNLABELLED)
    return Rows(
        channels=channels,
        machine=machine or path.stem,
        recording=str(path),
        t_ns=np.array(times, dtype=np.int64),
        values=np.array(values, dtype=np.float64).reshape(len(times), len(columns)),
        label=np.array(marks, dtype=str),
    )


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return float("nan")


def from_records(records: Iterable[dict[str, Any]], channels: Channels, machine: str, recording: str) -> Rows:
    """Rows of a raw stream: objects with `v` by channel and `in_t_ns`, as `kentledge replay` prints and `up/m` holds."""
    times, values = [], []
    for record in records:
        if any(isinstance(value, dict) for value in record["v"].values()):
            raise Refused(f"{recording}: the stream has min, mean and max of intervals. A model needs the rows: use a stream with mode raw")
        known = [name for name in channels.names if name in record["v"]]
        if len(known) != len(channels.names):
            missing = sorted(set(channels.names) - set(known))
            raise Refused(f"{recording}: no channel {', '.join(missing)} in the stream; it has {', '.join(record['v'])}")
        times.append(record["in_t_ns"][0])
        values.append([float("nan") if record["v"][n] is None else float(record["v"][n]) for n in channels.names])
    return Rows(
        channels=channels,
        machine=machine,
        recording=recording,
        t_ns=np.array(times, dtype=np.int64),
        values=np.array(values, dtype=np.float64).reshape(len(times), len(channels.names)),
        label=np.full(len(times), UNLABELLED),
    )


def from_tape(tape: pathlib.Path, config: pathlib.Path, stream: str, channels: Channels, kentledge: str = "kentledge") -> Rows:
    """A tape of a device, played by `kentledge replay` with the device's configuration."""
    done = subprocess.run([kentledge, "replay", str(tape), "--config", str(config)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"tape {tape}: kentledge replay ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    records = (json.loads(line) for line in done.stdout.splitlines())
    return from_records((r for r in records if r["stream"] == f"m/{stream}"), channels, tape.stem, str(tape))


def from_broker(client: mqtt.Client, device: str, stream: str, seconds: float, channels: Channels) -> Rows:
    """Rows that a device publishes as `up/m/{stream}` (mode raw) within so many seconds. Doubles are taken once, order is by `seq`."""
    seen: dict[int, dict[str, Any]] = {}

    def on_message(_client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        for record in json.loads(message.payload)["data"]:
            seen[record["seq"]] = record

    client.on_message = on_message
    client.subscribe(f"kl/{device}/up/m/{stream}", qos=1)
    client.loop_start()
    time.sleep(seconds)
    client.loop_stop()
    return from_records([seen[seq] for seq in sorted(seen)], channels, device, f"{device}/{stream}")


def records_of(blob: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Headers and values in a blob of `samples.pull` (daemon/docs/reference/samples.md)."""
    at = 0
    while at < len(blob):
        if at + 16 > len(blob):
            raise Refused(f"samples: {len(blob) - at} bytes after the last record: the blob is cut")
        magic, head, body, crc = struct.unpack_from("<4sIII", blob, at)
        if magic != b"KLS1" or head > RECORD_MAX or body > RECORD_MAX:
            raise Refused(f"samples: no record at byte {at}: another file, or damaged")
        rest = blob[at + 16 : at + 16 + head + body]
        if len(rest) < head + body or zlib.crc32(rest) != crc:
            raise Refused(f"samples: the record at byte {at} is damaged or cut")
        yield json.loads(rest[:head]), rest[head:]
        at += 16 + head + body


def from_samples(blob: bytes, rate_hz: float, fault: str = "fault", normal: str = "ok") -> Windows:
    """Windows that a device kept, with the labels that came back for them.

    A label `true` becomes the class `fault`, `false` becomes `normal`, a text stays. A later label replaces an earlier one.
    Windows with missing samples (coverage below 1) are refused: their holes are filled, and not by the machine.
    """
    found: dict[str, tuple[dict[str, Any], bytes]] = {}
    labels: dict[str, str] = {}
    for header, values in records_of(blob):
        if header["kind"] == "label":
            word = header["label"]
            named = (fault if word else normal) if isinstance(word, bool) else str(word)
            labels.update(dict.fromkeys(header["wins"], named))
        elif header["kind"] == "window":
            found[header["win"]] = (header, values)
    kept = list(found.values())
    if not kept:
        raise Refused("samples: no window in the blob")
    holed = [header["win"] for header, _ in kept if header["coverage"] < 1]
    if holed:
        raise Refused(f"samples: {len(holed)} windows have missing samples (coverage below 1; the first is {holed[0]}). Leave them out")
    first = kept[0][0]
    channels = Channels(tuple(first["channels"]), tuple(u or "" for u in first["units"]), rate_hz)
    shape = (first["steps"], len(first["channels"]))
    for header, values in kept:
        if tuple(header["channels"]) != channels.names or len(values) != 4 * shape[0] * shape[1]:
            raise Refused(f"samples: window {header['win']} has other channels or another length than {first['win']}: pull one pipeline")
    windows = Windows(
        channels=channels,
        x=np.stack([np.frombuffer(values, "<f4").reshape(shape) for _, values in kept]),
        label=np.array([labels.get(header["win"], UNLABELLED) for header, _ in kept], dtype=str),
        machine=np.array([header["device"] for header, _ in kept], dtype=str),
        recording=np.array([f"{header['device']}/{header['boot']}" for header, _ in kept], dtype=str),
        first_row=np.array([header["in_seq"][0] for header, _ in kept], dtype=np.int64),
        alarmed=np.array([header.get("at") in ("raised", "after") for header, _ in kept], dtype=bool),
    )
    wrong = [header["win"] for (header, _), digest in zip(kept, windows.digests(), strict=True) if header["win"] != digest]
    if wrong:
        raise Refused(f"samples: {len(wrong)} windows are not what their digest says (the first is {wrong[0]})")
    return windows
