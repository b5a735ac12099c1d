#!/usr/bin/env python3
"""Prints the records of one stream of a kentledge device in order of `seq`. An example consumer: copy it and change it.

    kentledge_follow.py --host broker --to plant/pump-1 m/raw

Within live messages, and within messages with `hist: true`, records come in order of `seq` when they come first. Between
the two there is no order: after an outage live records overtake the backlog. So a consumer that needs one order merges by
`seq`:

- a number below the next one was seen before: drop it (delivery is at least once);
- a number above it waits until the numbers between have come, or `up/loss` says that they are lost;
- numbers that neither come nor are named within --wait seconds are given up, with a line on stderr.

A consumer that may be restarted saves the next number with what it wrote. Needs paho-mqtt 2.
"""
import argparse
import json
import queue
import sys
import time
import uuid

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


class Merge:
    """One stream's records in order of their numbers."""

    def __init__(self, first):
        self.next = first
        self.waiting = {}
        self.lost = set()

    def record(self, record):
        if record["seq"] >= self.next:
            self.waiting.setdefault(record["seq"], record)

    def loss(self, entry):
        # Where fewer are lost than lie between first and last, the others still come.
        if entry["n"] == entry["last"] - entry["first"] + 1:
            self.lost.update(range(max(entry["first"], self.next), entry["last"] + 1))

    def ready(self):
        while self.next in self.waiting or self.next in self.lost:
            self.lost.discard(self.next)
            record = self.waiting.pop(self.next, None)
            self.next += 1
            if record:
                yield record

    def give_up(self):
        gap, self.next = self.next, min(self.waiting)
        return gap, self.next - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["--host", "--to"]:
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int, default=8884)
    for name in ["--ca", "--cert", "--key"]:
        parser.add_argument(name)
    parser.add_argument("--from", dest="first", type=int, default=1, help="the first number wanted")
    parser.add_argument("--wait", type=float, default=600, help="seconds for what is missing")
    parser.add_argument("stream")
    a = parser.parse_args()
    heard, merge = queue.Queue(), Merge(a.first)
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"follow-{uuid.uuid4().hex[:8]}", protocol=mqtt.MQTTv5)
    if a.ca:
        client.tls_set(ca_certs=a.ca, certfile=a.cert, keyfile=a.key)
    data, loss = f"kl/{a.to}/up/{a.stream}", f"kl/{a.to}/up/loss"
    client.on_message = lambda _client, _data, message: heard.put(message)
    client.on_connect = lambda *_: client.subscribe([(data, 1), (loss, 1)])
    client.on_subscribe = lambda *_: print("following", file=sys.stderr, flush=True)
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = 60  # RabbitMQ: without it, the loss of one node stops the devices (fleet.md)
    client.connect(a.host, a.port, properties=session)
    client.loop_start()
    moved = time.monotonic()
    while True:
        try:
            message = heard.get(timeout=1)
        except queue.Empty:
            message = None
        for entry in json.loads(message.payload)["data"] if message and message.payload else []:
            if message.topic == data:
                merge.record(entry)
            elif entry["stream"] == a.stream:
                merge.loss(entry)
        if merge.waiting and time.monotonic() - moved > a.wait:
            print("numbers %d to %d never came" % merge.give_up(), file=sys.stderr, flush=True)
        for record in merge.ready():
            moved = time.monotonic()
            print(json.dumps(record), flush=True)
        if not merge.waiting:
            moved = time.monotonic()


if __name__ == "__main__":
    main()
