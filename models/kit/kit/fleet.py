"""A fleet for `kit loop`: real daemons, a real broker, and simulated sensors on pseudo terminals."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pty
import shutil
import socket
import struct
import subprocess
import threading
import time
import tty
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import sim, wire
from .data import Bools, Doubles, Windows, joined
from .errors import Refused
from .sim import Machine

ROWS = 512
"""Samples of both channels in one frame of the sensor."""
G_PER_COUNT = 0.001
SITE = "plant"
PIPELINE = "bearing"
AHEAD = 4
"""Windows that a sensor may be ahead of the predictions: so nothing is shed, however slow the machine."""


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def until(what: str, seconds: float, look: Any) -> Any:
    """Looks until something is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise Refused(f"no {what} within {seconds:g} s")


class Broker:
    """mosquitto on a free port."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.port = free_port()
        config = folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\npersistence false\n"
        )
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self.process = subprocess.Popen([program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until("broker", 20, self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
            return True
        return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@dataclass
class Story:
    """What a pump goes through: windows with their truth."""

    windows: Windows
    truth: Bools


def story(pump: Machine, healthy: int, faulty: int, seed: int, severities_g: tuple[float, ...] = (1.0, 1.6)) -> Story:
    """Healthy windows, then each fault at each severity for some windows."""
    length = sim.STEPS / sim.RATE_HZ
    parts = [sim.recording(pump, "ok", 0.0, healthy * length + 0.01, seed)]
    kinds = [(fault, size) for size in severities_g for fault in sim.CLASSES[1:]]
    for i, (fault, size) in enumerate(kinds):
        parts.append(sim.recording(pump, fault, size, faulty * length + 0.01, seed + 100 + i))
    windows = joined([part.windows(sim.STEPS, sim.STEPS, 1.0) for part in parts])
    counts = np.clip(np.round(windows.x.astype(np.float64) / G_PER_COUNT), -32768, 32767)
    # What the device will see: the sensor's counts, in g. A count has no negative zero.
    seen = (counts * G_PER_COUNT + 0.0).astype(np.float32)
    return Story(Windows(**{**windows.__dict__, "x": seen}), windows.label != "ok")


@dataclass
class Device:
    """One daemon with its sensor."""

    pump: Machine
    folder: pathlib.Path
    port: int
    kentledge: str
    more: str = ""
    process: subprocess.Popen[bytes] | None = None
    frames: int = 0
    windows: int = 0
    """Windows sent since the start."""
    scores: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Predictions by number of the window."""
    changes: dict[int, bool] = field(default_factory=dict)
    """Raised (true) or cleared, by number of the window."""
    episodes: dict[int, str] = field(default_factory=dict)
    counted: Counter[str] = field(default_factory=Counter)
    answers: list[dict[str, Any]] = field(default_factory=list)
    """Of a responder, as the device published them."""
    version: str = ""

    @property
    def name(self) -> str:
        return self.pump.name

    @property
    def address(self) -> str:
        return f"{SITE}/{self.name}"

    def start(self, bundle: pathlib.Path, keyset: pathlib.Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.master, slave = pty.openpty()
        tty.setraw(slave)
        self._slave = slave
        config = self.folder / "kentledge.toml"
        config.write_text(
            f"""[device]
state_dir = "{self.folder / "state"}"
site = "{SITE}"
id = "{self.name}"
bus = "off"
[mqtt]
url = "mqtt://127.0.0.1:{self.port}"
[models]
trial_s = 0
trial_windows = 20
[commands]
keyset = "{keyset}"
jitter_s = 0
[source.acc]
path = "{os.ttyname(slave)}"
framing = "fixed"
frame_bytes = {2 + 4 + 4 * ROWS + 4}
frame_max_bytes = 4096
start = "aa 55"
check = "crc32"
fields = ["n:u32le", "de,nde:i16le[{ROWS}]"]
rate_hz = {sim.RATE_HZ:g}
seq = "n"
[channel.vib_de]
column = "de"
unit = "g"
scale = {G_PER_COUNT}
[channel.vib_nde]
column = "nde"
unit = "g"
scale = {G_PER_COUNT}
[pipeline.{PIPELINE}]
model = "{bundle}"
lineage = "full"
[alarm.{PIPELINE}]
pipeline = "{PIPELINE}"
[samples]
max_mib = 64
around_windows = 32
normal_per_day = 86400
pull_kib_s = 1024
pull_mib_day = 0
[metrics]
interval_s = 5
{self.more}"""
        )
        log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen([self.kentledge, "run", "--config", str(config)], stdout=log, stderr=log)

    def ready(self) -> None:
        """Waits until its model serves."""
        until(f"serving model on {self.name}", 90, lambda: self._alive() and "serving " in self.log())

    def _alive(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise Refused(f"device {self.name} ended: {self.log()[-2000:]}")
        return True

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def send(self, x: Doubles) -> None:
        """One window as frames of the sensor; waits while the daemon is behind."""
        until(f"prediction on {self.name}", 60, lambda: self._alive() and self.windows - len(self.scores) < AHEAD)
        counts = np.clip(np.round(np.asarray(x, np.float64) / G_PER_COUNT), -32768, 32767).astype("<i2")
        for part in counts.reshape(-1, ROWS, 2):
            frame = b"\xaa\x55" + struct.pack("<I", self.frames) + part.tobytes()
            frame += struct.pack("<I", zlib.crc32(frame))
            self.frames += 1
            while frame:
                frame = frame[os.write(self.master, frame) :]
        self.windows += 1

    def hear(self, stream: str, payload: bytes) -> None:
        """Takes in what the device publishes."""
        if not payload:
            return
        if stream == f"p/{PIPELINE}":
            message = json.loads(payload)
            self.version = message["lineage"]["model"]
            for record in message["data"]:
                self.scores[record["in_seq"][0] // sim.STEPS] = record
        elif stream == f"a/{PIPELINE}":
            for record in json.loads(payload)["data"]:
                if record["phase"] in ("raised", "cleared") and "in_seq" in record:
                    number = record["in_seq"][0] // sim.STEPS
                    self.changes[number] = record["phase"] == "raised"
                    self.episodes.setdefault(number, str(record.get("id", "")))
        elif stream == f"p/{PIPELINE}/cloud":
            message = json.loads(payload)
            self.answers += [{**record, "lineage": message["lineage"]["model"]} for record in message["data"]]
        elif stream == "loss":
            self.counted["lost"] += sum(record.get("n", 1) for record in json.loads(payload)["data"])

    def decided(self, first: int, count: int) -> Bools:
        """Whether the alarm was raised after each of these windows."""
        before = [number for number in self.changes if number < first]
        state, out = bool(before) and self.changes[max(before)], []
        for number in range(first, first + count):
            state = self.changes.get(number, state)
            out.append(state)
        return np.array(out, dtype=bool)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()


@dataclass
class Fleet:
    """Devices, their broker, and the operator who hears them."""

    broker: Broker
    devices: list[Device]
    operator: wire.Operator
    others: list[tuple[str, bytes]] = field(default_factory=list)
    """Messages that are neither predictions nor alarms: results, chunks."""

    def listen(self) -> None:
        """Sorts what was heard."""
        for topic, payload in self.operator.drain():
            _, _, device, _, stream = topic.split("/", 4)
            for known in self.devices:
                if known.name == device:
                    known.hear(stream, payload)
            if stream.startswith(("res/", "blob/")):
                self.others.append((topic, payload))

    def play(self, windows: dict[str, Windows]) -> dict[str, int]:
        """Sends windows to devices at once, until all are predicted. Returns the number of each device's first window."""
        firsts = {device.name: device.windows for device in self.devices}
        failed: list[str] = []

        def feed(device: Device) -> None:
            try:
                for window in windows[device.name].x:
                    device.send(window.astype(np.float64))
            except Exception as why:
                failed.append(f"{device.name}: {why}")

        threads = [threading.Thread(target=feed, args=(d,), daemon=True) for d in self.devices if d.name in windows]
        for thread in threads:
            thread.start()

        def busy() -> bool:
            pending = any(d.windows > len(d.scores) + d.counted["lost"] for d in self.devices)
            return pending or any(t.is_alive() for t in threads)

        end = time.monotonic() + 300
        while busy() and not failed and time.monotonic() < end:
            self.listen()
            time.sleep(0.02)
        # Alarms come beside predictions, not before them.
        time.sleep(0.3)
        self.listen()
        if not failed and busy():
            missing = [d for d in self.devices if d.windows > len(d.scores) + d.counted["lost"]]
            failed += [f"{d.name}: {len(d.scores)} of {d.windows} windows were predicted, {d.counted['lost']} lost" for d in missing]
            failed += ["its windows are still being sent"] if not missing else []
        if failed:
            raise Refused(f"fleet: {'; '.join(failed)}")
        return firsts

    def result(self, device: Device, command: str) -> dict[str, Any] | None:
        """The end of a command, if it has come."""
        for topic, payload in self.others:
            if topic.startswith(f"kl/{device.address}/up/res/") and topic.endswith(command):
                for record in json.loads(payload)["data"]:
                    if record["state"] in wire.FINAL:
                        return dict(record)
        return None

    def stop(self) -> None:
        for device in self.devices:
            device.stop()
        self.operator.client.loop_stop()
        self.broker.stop()
