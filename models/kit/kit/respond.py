"""The responder of escalation: a larger model answers the windows of which devices are unsure.

`up/x/{pipeline}` comes in, `dn/x/{pipeline}/{digest}` goes out (daemon/docs/reference/escalation.md). Several responders share the work
either by the broker (`$share/GROUP/…`) or, where the broker has no shared subscriptions, by the window's digest: instance i of n
answers the windows whose digest modulo n is i. So each window has one answer. What is malformed, late or foreign gets no answer and
is counted.
"""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import paho.mqtt.client as mqtt

from . import run
from .data import Floats
from .errors import Refused
from .evaluate import Level

MAGIC = b"KLX1"
LARGEST = 128 * 1024


@dataclass(frozen=True)
class Question:
    """One escalated window."""

    header: dict[str, Any]
    x: Floats
    """Steps × channels."""


def parse(payload: bytes) -> Question:
    """Reads a payload of `up/x`. Raises Refused with the reason."""
    if len(payload) > LARGEST or len(payload) < 8 or payload[:4] != MAGIC:
        raise Refused("not KLX1, or longer than 128 KiB")
    (size,) = struct.unpack_from("<I", payload, 4)
    if size % 8 or 8 + size > len(payload):
        raise Refused("the length of the header is wrong")
    try:
        header = json.loads(payload[8 : 8 + size])
    except ValueError as why:
        raise Refused(f"the header is no JSON: {why}") from None
    for member in ("id", "win", "pipeline", "device", "shape", "channels", "dtype", "left_ms"):
        if not isinstance(header, dict) or member not in header:
            raise Refused(f"the header has no `{member}`")
    values = payload[8 + size :]
    if header["dtype"] != "f32" or len(values) != 4 * math.prod(header["shape"]) or len(header["shape"]) != 2:
        raise Refused(f"{len(values)} bytes of values are not {header['shape']} of f32")
    if "sha256:" + hashlib.sha256(values).hexdigest() != header["win"]:
        raise Refused("the values are not what `win` says")
    return Question(header, np.frombuffer(values, "<f4").reshape(header["shape"]))


@dataclass
class Responder:
    """Answers with one model. `band` is how near to the level an answer is `unsure`."""

    model: onnx.ModelProto
    name: str
    level: Level
    band: float = 0.0
    instance: int = 0
    instances: int = 1
    counted: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        content = self.model.SerializeToString()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._session = run.session(content)
        props = {p.key: p.value for p in self.model.metadata_props}
        if "channels" not in props or "classes" not in props:
            raise Refused(f"model {self.name}: it does not say its channels and classes. Make it with the kit, or set both as metadata")
        self.channels, self.classes = props["channels"].split(","), props["classes"].split(",")

    def mine(self, win: str) -> bool:
        """Whether this instance answers the window."""
        return int(win.removeprefix("sha256:")[:16], 16) % self.instances == self.instance

    def answer(self, topic: str, payload: bytes, arrived: float | None = None) -> tuple[str, bytes] | None:
        """Topic and payload of the answer; none where there is nothing to answer. `arrived` is on `time.monotonic`'s clock."""
        arrived = time.monotonic() if arrived is None else arrived
        try:
            question = parse(payload)
        except Refused:
            self.counted["malformed"] += 1
            return None
        header = question.header
        if not self.mine(header["win"]):
            self.counted["of another instance"] += 1
            return None
        if header["channels"] != self.channels:
            self.counted["other channels"] += 1
            return None
        head, marker, pipeline = topic.rpartition("/up/x/")
        if not marker or pipeline != header["pipeline"] or not head.endswith(header["device"]):
            self.counted["other topic"] += 1
            return None
        given = self._session.get_inputs()[0]
        if list(given.shape[1:]) != list(question.x.shape):
            self.counted["other shape"] += 1
            return None
        score, shares = self._session.run(["score", "probabilities"], {given.name: question.x[None]})
        value, likely = float(np.ravel(score)[0]), np.ravel(shares)
        if not math.isfinite(value) or not np.isfinite(likely).all():
            self.counted["not finite"] += 1
            return None
        if time.monotonic() - arrived > header["left_ms"] / 1000:
            self.counted["late"] += 1
            return None
        near = abs(value - self.level.raise_above) < self.band
        verdict = "unsure" if near else "anomaly" if value > self.level.raise_above else "normal"
        reply = {
            "v": 1,
            "id": header["id"],
            "verdict": verdict,
            "model": self.name,
            "sha256": self.sha256,
            "score": value,
            "threshold": self.level.raise_above,
            "class": self.classes[int(likely.argmax())],
            "probabilities": {name: float(np.clip(p, 0, 1)) for name, p in zip(self.classes, likely, strict=True)},
        }
        self.counted[verdict] += 1
        return f"{head}/dn/x/{pipeline}/{header['win'].removeprefix('sha256:')}", json.dumps(reply).encode()

    def serve(self, client: mqtt.Client, site: str = "+", group: str | None = None) -> None:
        """Subscribes; answers come from the client's own loop. With `group` the broker shares the windows among its members."""

        def on_message(_client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
            reply = self.answer(message.topic, message.payload)
            if reply:
                client.publish(*reply, qos=1)

        client.on_message = on_message
        topic = f"kl/{site}/+/up/x/+"
        client.subscribe(f"$share/{group}/{topic}" if group else topic, qos=1)


def load(path: pathlib.Path, name: str, raise_above: float, band: float = 0.0, instance: int = 0, instances: int = 1) -> Responder:
    """A responder with a model from a file."""
    return Responder(onnx.load(str(path)), name, Level(raise_above), band, instance, instances)
