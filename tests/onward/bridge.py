#!/usr/bin/env python3
"""A mosquitto at the site, bridged to one in the centre with the lines of daemon/docs/fleet.md; the centre is killed while rows come.

    tests/onward/bridge.py target/debug/kentledge

In the end each row of the device is in the centre, what the centre keeps is kept at the site, and a command from the centre is obeyed."""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import world

DOCS = world.ROOT / "daemon/docs/fleet.md"
BOTH = "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\npersistence true\nautosave_interval 1\nautosave_on_changes true\n"
AWAY_S = 10


def bridge(centre):
    """The lines of the page, with this centre."""
    block = next(block for block in DOCS.read_text().split("```text\n") if block.startswith("connection centre"))
    lines = block.split("```")[0].replace("centre.example:8883", f"127.0.0.1:{centre}").splitlines(True)
    return "".join(line for line in lines if not line.startswith("bridge_cafile"))


def broker(w, name, port, more=""):
    folder = w.folder / name
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    conf = w.folder / f"{name}.conf"
    conf.write_text(f"listener {port} 127.0.0.1\n{BOTH}persistence_location {folder}/\n{more}")
    child = w.start(name, ["mosquitto", "-c", conf])
    world.within(10, f"{name} listens", lambda: world.listens(port))
    return child


def listen(w, port, heard):
    """A session that lives on, as a consumer has it."""
    words = ["mosquitto_sub", "-V", "5", "-i", "keeper", "-c", "-x", "3600", "-q", "1", "-p", port, "-t", "kl/plant/+/up/#", "-F", "%t %p"]
    child = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True)
    w.callback(child.kill)
    threading.Thread(target=lambda: [heard.append(line.split(" ", 1)) for line in child.stdout], daemon=True).start()


def kept(port, topic):
    words = ["mosquitto_sub", "-V", "5", "-p", str(port), "-t", topic, "-C", "1", "-W", "10", "-F", "%r"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip() == "1"


def publish(port, topic, text, *options):
    subprocess.run(["mosquitto_pub", "-V", "5", "-q", "1", "-p", str(port), "-t", topic, "-m", text, *options], check=True)


def play(w):
    centre, site, heard, n = world.port(), world.port(), [], 0
    first = broker(w, "centre", centre)
    broker(w, "site", site, bridge(centre))
    _, sensor, _ = w.daemon([f"mqtt://127.0.0.1:{site}"])
    listen(w, centre, heard)
    world.within(30, "the device is online in the centre", lambda: any(t.endswith("/up/state") and '"online"' in p for t, p in heard))
    assert kept(centre, "kl/plant/+/up/state"), "the centre keeps the state"
    publish(centre, "kl/plant/_all/dn/gate/x/1", "{}", "-r")
    assert kept(site, "kl/plant/_all/dn/gate/x/1"), "the site keeps the gate"

    def feed(seconds):
        nonlocal n
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sensor.write(b"%d,%d\n" % (n, n % 97))
            n += 1
            time.sleep(0.01)

    def rows():
        return {r["in_seq"][0] for t, p in heard if t.endswith("/up/m/raw") for r in json.loads(p)["data"]}

    feed(2)
    first.kill()
    first.wait()
    feed(AWAY_S)
    broker(w, "centre", centre)
    feed(2)
    world.within(90, "all rows are in the centre", lambda: rows() >= set(range(n)))
    publish(centre, "kl/plant/pump-1/dn/cmd/ping/p1", '{"id":"p1"}')
    world.within(30, "a command from the centre is obeyed", lambda: any("/up/res/ping/p1" in t and '"success"' in p for t, p in heard))
    print(f"MEASURED: bridge: the centre killed for {AWAY_S} s: of {n} rows of a device behind the site's mosquitto 0 are lost")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with world.World(pathlib.Path(folder), os.path.abspath(a.program)) as w:
            try:
                play(w)
            except BaseException:
                for file in sorted(w.folder.glob("*.log")):
                    print(f"--- {file.name}\n{file.read_text(errors='replace')[-1500:]}", file=sys.stderr)
                raise


if __name__ == "__main__":
    main()
