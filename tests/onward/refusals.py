#!/usr/bin/env python3
"""A node of a RabbitMQ cluster is away, and with it the queue of a stranger: the broker refuses a device's rows meanwhile. None is lost.

    tests/onward/refusals.py target/debug/kentledge [--away-s 90]

Needs root, mmdebstrap, openssl, mosquitto_sub; see cluster.py. The stranger subscribes as mosquitto_sub does, with a session that ends with
its connection: RabbitMQ keeps such a queue on one node, and refuses what it would have got for as long as that node is away."""
import argparse
import json
import os
import shutil
import sys
import tempfile
import time

import cluster
import world

sys.path.insert(0, world.PYTHON["PYTHONPATH"])


class Rows:
    """What the cluster's own queue has, how often each, and the entries of the loss ledger."""

    def __init__(self, node):
        import pika
        self.channel = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", node.amqp)).channel()
        self.seen, self.lost = {}, []

    def look(self):
        method, _, body = self.channel.basic_get("records", auto_ack=True)
        while body is not None:
            records = json.loads(body)["data"]
            if method.routing_key.endswith(".loss"):
                self.lost += records
            else:
                for record in records:
                    row = record["in_seq"][0]
                    self.seen[row] = self.seen.get(row, 0) + 1
            method, _, body = self.channel.basic_get("records", auto_ack=True)
        return len(self.seen)


def play(w, inside, away_s):
    nodes = cluster.cluster(w, inside)
    cluster.queue(nodes)
    _, sensor, _ = w.daemon([f"mqtt://127.0.0.1:{node.mqtt}" for node in nodes[1:]])
    stranger = w.start("stranger", ["mosquitto_sub", "-V", "5", "-q", "1", "-p", nodes[0].mqtt, "-t", "kl/plant/+/up/m/+"])
    rows = 0

    def feed(seconds):
        nonlocal rows
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sensor.write(b"%d,%d\n" % (rows, rows % 997))
            rows += 1
            time.sleep(0.1)

    feed(5)
    heard = Rows(nodes[1])
    world.within(30, "rows arrive before the node is killed", lambda: heard.look() > 30)
    nodes[0].kill()
    stranger.kill()
    feed(away_s)
    refused = w.log("pump-1").count("the broker could not take")
    assert refused, "this broker refuses nothing then: the play shows nothing"
    nodes[0].start_again()
    world.within(150, "the node is back", nodes[0].is_up)
    back = time.monotonic()
    feed(5)
    world.within(150, "all rows arrive", lambda: heard.look() == rows)
    assert not [entry for entry in heard.lost if entry["stream"] == "m/raw"], heard.lost
    print(f"MEASURED: a node and a stranger's queue on it away for {away_s} s: of {rows} rows lost 0; all there {time.monotonic() - back:.0f} s after "
          f"the node was back, {sum(n - 1 for n in heard.seen.values())} twice")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--away-s", type=int, default=90)
    a = parser.parse_args()
    missing = [name for name in ("mmdebstrap", "openssl", "mosquitto_sub") if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        return world.missing(f"refusals of RabbitMQ: {'no ' + ', '.join(missing) if missing else 'not root'}")
    with cluster.place() as inside, tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with world.World(folder, os.path.abspath(a.program)) as w:
            play(w, inside, a.away_s)


if __name__ == "__main__":
    main()
