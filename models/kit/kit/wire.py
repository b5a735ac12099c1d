"""To devices over MQTT: signed commands, installs, and what they answer. Signing is minisign's work."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import pathlib
import queue
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from .errors import Refused

FINAL = {"success", "failed", "rejected", "expired", "rolled_back"}
CHUNK = 48 * 1024
"""Bytes of a bundle in one message, as reference/models.md says."""


def connect(host: str, port: int, name: str, tls: dict[str, str] | None = None, clean: bool = True) -> mqtt.Client:
    """A client of MQTT 5; `tls` has ca, cert and key. Call `loop_start` on it."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"{name}-{uuid.uuid4().hex[:8]}", protocol=mqtt.MQTTv5)
    if tls:
        client.tls_set(ca_certs=tls.get("ca"), certfile=tls.get("cert"), keyfile=tls.get("key"))
    # RabbitMQ: the queue of a session that ends with its connection lives on one node; when that node is gone, all whose messages
    # would go there are refused.
    session = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    session.SessionExpiryInterval = 60
    client.connect(host, port, clean_start=clean, properties=session)
    return client


def minisign(file: pathlib.Path, secret: pathlib.Path, into: pathlib.Path) -> None:
    """Signs a file."""
    command = ["minisign", "-S", "-q", "-s", str(secret), "-m", str(file), "-x", str(into)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"sign {file}: minisign: {done.stderr.strip() or done.stdout.strip()}")


def new_key(folder: pathlib.Path, name: str) -> str:
    """Makes NAME.sec and NAME.pub without a password, and returns the public key."""
    public = folder / f"{name}.pub"
    command = ["minisign", "-G", "-f", "-W", "-p", str(public), "-s", str(folder / f"{name}.sec")]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return public.read_text().splitlines()[1]


@dataclass
class Operator:
    """Someone with a command key and a connection; hears everything below `kl/{site}/+/up`."""

    client: mqtt.Client
    issuer: str
    secret: pathlib.Path
    heard: queue.Queue[tuple[str, bytes]] = field(default_factory=queue.Queue)
    nonces: dict[str, str] = field(default_factory=dict)
    backlog: list[tuple[str, bytes]] = field(default_factory=list)
    _iseq: int = 0

    def listen(self, site: str) -> None:
        """Subscribes; then everything that is heard waits in `heard`."""
        self.client.on_message = lambda _c, _d, message: self.heard.put((message.topic, message.payload))
        self.client.subscribe([(f"kl/{site}/+/up/#", 1)])
        self.client.loop_start()

    def drain(self) -> list[tuple[str, bytes]]:
        """All that was heard since the last call, in order."""
        out, self.backlog = self.backlog, []
        while True:
            try:
                topic, payload = self.heard.get_nowait()
            except queue.Empty:
                return out
            if topic.endswith("/up/birth") and payload:
                self.nonces["/".join(topic.split("/")[1:3])] = json.loads(payload)["nonce"]
            out.append((topic, payload))

    def send(self, device: str, kind: str, args: dict[str, Any], lives_s: float = 300) -> str:
        """Publishes a signed command and returns its id."""
        command = f"{kind.replace('.', '-')}-{uuid.uuid4().hex[:12]}"
        self._iseq = max(self._iseq + 1, time.time_ns() // 1_000_000)
        inner = {
            "v": 1,
            "id": command,
            "type": kind,
            "to": device,
            "issuer": self.issuer,
            "iseq": self._iseq,
            "issued": _time(0),
            "expires_at": _time(lives_s),
            "args": args,
        }
        if device in self.nonces:
            inner["nonce"] = self.nonces[device]
        with tempfile.TemporaryDirectory() as folder:
            file, signature = pathlib.Path(folder, "inner"), pathlib.Path(folder, "inner.minisig")
            file.write_text(json.dumps(inner))
            minisign(file, self.secret, signature)
            payload = json.dumps({"signed": file.read_text(), "sig": base64.b64encode(signature.read_bytes()).decode()})
        self.client.publish(f"kl/{device}/dn/cmd/{kind}/{command}", payload, qos=1)
        return command

    def install(self, device: str, bundle: pathlib.Path) -> str:
        """Orders an install by MQTT; `chunks` sends the bytes once the device asks for them."""
        content = bundle.read_bytes()
        return self.send(device, "model.install", {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)})

    def chunks(self, device: str, bundle: pathlib.Path, missing: list[list[int]]) -> None:
        """Sends the parts that the device says are missing."""
        content = bundle.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        for start, end in missing:
            for at in range(start, end, CHUNK):
                self.client.publish(f"kl/{device}/dn/blob/{sha256}/{at}", content[at : min(at + CHUNK, end)], qos=1)


def _time(from_now_s: float) -> str:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=from_now_s)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
