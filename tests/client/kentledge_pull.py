#!/usr/bin/env python3
"""Fetches windows and labels, or a tape, from a kentledge device, and checks the digest. An example: copy it and change it.

    kentledge_pull.py --host broker --port 8883 --ca ca.pem --cert ops.pem --key ops.key \\
        --to plant/pump-1 --issuer ops --secret ops.sec --out pump-1.kls samples.pull '{"class": "alarm"}'

Prints what the device answers and, for samples, a line for each record. Started again with the same --id and --out it goes on: the
session is kept by the broker, and what came so far is in OUT.part. Needs paho-mqtt 2 and the `minisign` program.
"""
import argparse
import base64
import hashlib
import json
import pathlib
import queue
import struct
import sys
import time
import uuid
import zlib

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from kentledge_command import FINAL, rfc3339, sign


class Part:
    """A blob that is put together in a file. Chunks may come twice; only what is missing counts."""

    def __init__(self, path):
        self.path, self.state = pathlib.Path(f"{path}.part"), pathlib.Path(f"{path}.part.json")
        known = json.loads(self.state.read_text()) if self.state.exists() else {}
        self.sha256, self.size, self.have = known.get("sha256"), known.get("size"), known.get("have", 0)

    def put(self, chunk):
        data = base64.b64decode(chunk["bytes"], validate=True)
        if self.sha256 not in (None, chunk["sha256"]) or chunk["offset"] + len(data) > chunk["size"]:
            raise ValueError("a chunk of another blob")
        self.sha256, self.size = chunk["sha256"], chunk["size"]
        if chunk["offset"] > self.have:
            raise ValueError(f"bytes {self.have} to {chunk['offset']} are missing: the session was not kept")
        with open(self.path, "r+b" if self.path.exists() else "wb") as file:
            file.seek(chunk["offset"])
            file.write(data)
        self.have = max(self.have, chunk["offset"] + len(data))
        self.state.write_text(json.dumps({"sha256": self.sha256, "size": self.size, "have": self.have}))

    def finish(self, out):
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        if self.have != self.size or digest != self.sha256:
            raise ValueError(f"{self.have} of {self.size} bytes, digest {digest} instead of {self.sha256}")
        self.path.rename(out)
        self.state.unlink()


def records(blob):
    """The records of a blob of samples: (header, values), where values has 4 bytes for each number."""
    at = 0
    while at < len(blob):
        magic, head, body, crc = struct.unpack_from("<4sIII", blob, at)
        rest = blob[at + 16 : at + 16 + head + body]
        if magic != b"KLS1" or len(rest) < head + body or zlib.crc32(rest) != crc:
            raise ValueError(f"damaged record at byte {at}")
        yield json.loads(rest[:head]), rest[head:]
        at += 16 + head + body


def show(blob):
    for head, values in records(blob):
        if head["kind"] == "window":
            # A window's digest is that of its values.
            assert head["win"] == "sha256:" + hashlib.sha256(values).hexdigest()
            assert len(values) == 4 * head["steps"] * len(head["channels"])
        print(json.dumps(head))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["--host", "--to", "--issuer", "--secret", "--out"]:
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int, default=8883)
    for name in ["--ca", "--cert", "--key", "--id"]:
        parser.add_argument(name)
    parser.add_argument("--wait", type=float, default=3600, help="seconds")
    parser.add_argument("type", choices=["samples.pull", "tape.pull"])
    parser.add_argument("args", nargs="?", default="{}", type=json.loads)
    return parser.parse_args()


def connect(a, command_id, heard):
    """Subscribed, in a session that the broker keeps for a day."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"pull-{command_id}", protocol=mqtt.MQTTv5)
    if a.ca:
        client.tls_set(ca_certs=a.ca, certfile=a.cert, keyfile=a.key)
    client.on_message = lambda _client, _data, message: heard.put(message)
    ready = queue.Queue()
    client.on_subscribe = lambda *_: ready.put(True)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 86400
    client.connect(a.host, a.port, clean_start=False, properties=properties)
    client.loop_start()
    client.subscribe([(f"kl/{a.to}/up/{topic}", 1) for topic in ["birth", f"res/{a.type}/{command_id}", "blob/+"]])
    ready.get(timeout=10)
    return client


def command(a, command_id, nonce):
    return sign(json.dumps({
        "v": 1, "id": command_id, "type": a.type, "to": a.to, "issuer": a.issuer, "iseq": time.time_ns() // 1_000_000,
        "issued": rfc3339(0), "expires_at": rfc3339(600), "nonce": nonce, "args": a.args,
    }), a.secret)


def main():
    a = arguments()
    command_id, heard, part = a.id or f"pull-{uuid.uuid4().hex[:12]}", queue.Queue(), Part(a.out)
    client = connect(a, command_id, heard)
    # One that goes on sent its command already.
    sent, ended, deadline = part.sha256 is not None, None, time.monotonic() + a.wait
    while ended is None or part.have != part.size:
        try:
            message = heard.get(timeout=max(0.1, deadline - time.monotonic()))
        except queue.Empty:
            print(f"no end of {a.type} within {a.wait} s; start again with --id {command_id}", file=sys.stderr)
            return 1
        payload = json.loads(message.payload)
        if message.topic.endswith("/up/birth"):
            if not sent:
                client.publish(f"kl/{a.to}/dn/cmd/{a.type}/{command_id}", command(a, command_id, payload["nonce"]), qos=1)
                sent = True
            continue
        for record in payload["data"]:
            if record.get("command") == command_id and "bytes" in record:
                part.put(record)
            elif record.get("id") == command_id:
                print(json.dumps(record), flush=True)
                if record["state"] in FINAL:
                    ended = record["state"]
                    if ended != "success":
                        return 1
    client.loop_stop()
    part.finish(a.out)
    if a.type == "samples.pull":
        show(pathlib.Path(a.out).read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
