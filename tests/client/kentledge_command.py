#!/usr/bin/env python3
"""Sends one command to a kentledge device and prints its result. An example: copy it and change it.

    kentledge_command.py --host broker --port 8883 --ca ca.pem --cert ops.pem --key ops.key \\
        --to plant/pump-1 --issuer ops --secret ops.sec config.set '{"toml": "[metrics]\\ninterval_s = 10\\n"}'

Needs paho-mqtt 2 and the `minisign` program. Without --secret the command goes unsigned, which ping, status, report and
config.get may. The exit code is 0 for success.
"""
import argparse
import base64
import datetime
import json
import pathlib
import queue
import subprocess
import sys
import tempfile
import time
import uuid

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

FINAL = {"success", "failed", "rejected", "expired", "rolled_back"}


def rfc3339(seconds_from_now):
    at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds_from_now)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def sign(inner, secret):
    """The wrapper: the inner JSON as a string, and the whole .minisig file over exactly these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "inner")
        file.write_text(inner)
        subprocess.run(["minisign", "-S", "-q", "-s", secret, "-m", file], check=True, stdin=subprocess.DEVNULL)
        minisig = pathlib.Path(folder, "inner.minisig").read_bytes()
    return json.dumps({"signed": inner, "sig": base64.b64encode(minisig).decode()})


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["--host", "--to"]:
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int, default=8883)
    for name in ["--ca", "--cert", "--key", "--issuer", "--secret"]:
        parser.add_argument(name)
    parser.add_argument("--wait", type=float, default=150, help="seconds")
    parser.add_argument("type")
    parser.add_argument("args", nargs="?", default="{}", type=json.loads)
    return parser.parse_args()


def main():
    a = arguments()
    command_id = f"{a.type.replace('.', '-')}-{uuid.uuid4().hex[:12]}"
    heard = queue.Queue()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"ops-{uuid.uuid4().hex[:8]}", protocol=mqtt.MQTTv5)
    if a.ca:
        client.tls_set(ca_certs=a.ca, certfile=a.cert, keyfile=a.key)
    client.on_message = lambda _client, _data, message: heard.put(message)
    ready = queue.Queue()
    client.on_subscribe = lambda *_: ready.put(True)
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = 60  # RabbitMQ: without it, the loss of one node stops the devices (fleet.md)
    client.connect(a.host, a.port, properties=session)
    client.loop_start()
    birth, results = f"kl/{a.to}/up/birth", f"kl/{a.to}/up/res/{a.type}/{command_id}"
    # A response topic: a device answers strictly below its own up/_r/ only. Results come beside it as records.
    answers = f"kl/{a.to}/up/_r/{command_id}"
    client.subscribe([(birth, 1), (results, 1), (answers, 1)])
    ready.get(timeout=10)
    deadline = time.monotonic() + a.wait

    nonce = None
    if a.secret:
        while nonce is None:
            message = heard.get(timeout=max(0.1, deadline - time.monotonic()))
            if message.topic == birth:
                nonce = json.loads(message.payload)["nonce"]
        inner = {
            "v": 1, "id": command_id, "type": a.type, "to": a.to, "issuer": a.issuer,
            # Grows with every command: the time in milliseconds does.
            "iseq": time.time_ns() // 1_000_000,
            "issued": rfc3339(0), "expires_at": rfc3339(a.wait), "nonce": nonce, "args": a.args,
        }
        payload = sign(json.dumps(inner), a.secret)
    else:
        payload = json.dumps({"id": command_id, "expires_at": rfc3339(a.wait), "args": a.args})
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic = answers
    properties.CorrelationData = command_id.encode()
    client.publish(f"kl/{a.to}/dn/cmd/{a.type}/{command_id}", payload, qos=1, properties=properties)

    while time.monotonic() < deadline:
        try:
            message = heard.get(timeout=max(0.1, deadline - time.monotonic()))
        except queue.Empty:
            break
        if message.topic == results:
            for record in json.loads(message.payload)["data"]:
                print(json.dumps(record), flush=True)
                if record["state"] in FINAL:
                    client.loop_stop()
                    return 0 if record["state"] == "success" else 1
    print(f"no end of {a.type} within {a.wait} s", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
