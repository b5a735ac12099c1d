#!/usr/bin/env python3
"""A rollout over three RabbitMQ 4 nodes: simulated devices with a connection each, a node and the controller killed in the first wave.

    tests/onward/rollout.py target/debug [--devices 500] [--arrive-per-s 20]

Needs root, mmdebstrap, minisign, openssl; see cluster.py. The devices are those of `fleet-sim --own`: the daemon's own link, outbox and
decisions about plans, each with the addresses of all nodes. First a good release: each device starts it once. Then a bad one: no device
outside its first wave starts it. In the end all nodes are killed and started again: all devices come back."""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import cluster
import world


class Devices:
    """The simulator; its newest line."""

    def __init__(self, w, programs, nodes, devices, keyset, arrive_per_s):
        self.w = w
        ports = ",".join(str(node.mqtt) for node in nodes)
        self.child = w.start("devices", [programs / "fleet-sim", ports, devices, 7200, keyset, 0, "--own",
                                         f"--arrive-per-s={arrive_per_s}"])

    def now(self):
        assert self.child.poll() is None, "the simulator ended"
        lines = [line for line in self.w.log("devices").splitlines() if line.startswith("{") and line.endswith("}")]
        return json.loads(lines[-1]) if lines else {"standing": 0, "connects": 0, "plans": {}}

    def of_plan(self, name):
        """Of a plan that no device started: nothing."""
        nothing = {"starts": 0, "devices": 0, "waves": {}, "last_s": 0, "halt": None}
        found = [plan for of, plan in self.now()["plans"].items() if of.startswith(f"_plan.{name}.")]
        assert len(found) <= 1, found
        return found[0] if found else nothing


class Desk:
    """An operator: a key, a keyset, `kentledge-fleet` with the addresses of all nodes."""

    def __init__(self, w, programs, nodes):
        self.w, self.program = w, programs / "kentledge-fleet"
        urls = ", ".join(f'"mqtt://127.0.0.1:{node.mqtt}"' for node in nodes)
        self.config = w.folder / "fleet.toml"
        self.config.write_text(f'[device]\nsite = "plant"\n[mqtt]\nurl = [{urls}]\nallow_plaintext = true\n')
        subprocess.run(["minisign", "-G", "-W", "-f", "-p", w.folder / "ops.pub", "-s", w.folder / "ops.sec"], check=True, capture_output=True)
        public = (w.folder / "ops.pub").read_text().splitlines()[-1]
        self.keyset = w.folder / "keyset.json"
        self.keyset.write_text(json.dumps({"_type": "kentledge.keyset", "version": 1, "expires": "2036-01-01T00:00:00Z",
                                           "keys": [{"name": "ops", "public": public, "roles": ["rollout"]}]}))

    def run(self, *words):
        done = subprocess.run([self.program, "--config", self.config, *map(str, words)], cwd=self.w.folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def publish(self, name, linger_ms, waves):
        """Its signed file, and that of its secrets."""
        settings = self.w.folder / f"{name}.toml"
        settings.write_text(f"[outbox]\nlinger_ms = {linger_ms}\n")
        made = json.loads(self.run("plan", "make", "config", settings, "--to", "plant/_all", "--name", name, "--waves", waves,
                                   "--freshness-s", 1, "--hold-s", 0, "--issuer", "ops", "--json"))
        subprocess.run(["minisign", "-S", "-q", "-m", made["plan"], "-s", self.w.folder / "ops.sec"], cwd=self.w.folder, check=True,
                       stdin=subprocess.DEVNULL)
        self.run("plan", "publish", made["plan"], "--keyset", self.keyset)
        return made["plan"], made["secrets"]

    def rollout(self, name, files, devices):
        plan, secrets = files
        words = ["rollout", "run", plan, "--secrets", secrets, "--devices", devices, "--json"]
        return self.w.start(f"controller-{name}", [self.program, "--config", self.config, *words], cwd=self.w.folder)


def ended(child, log):
    """Its exit status, after its words were shown."""
    world.within(900, "the rollout ends", lambda: child.poll() is not None)
    return child.returncode, log()[-600:]


def measured(text):
    print(f"MEASURED: rollout over RabbitMQ: {text}", flush=True)


def good(desk, devices, nodes, number):
    began = time.monotonic()
    files = desk.publish("good", 10, "20,100")
    controller = desk.rollout("good", files, number)
    world.within(300, "the first wave runs", lambda: devices.of_plan("good")["starts"] > 0)
    first = time.monotonic() - began
    nodes[0].kill()
    controller.kill()
    controller.wait()
    killed, before = time.monotonic(), devices.of_plan("good")["starts"]
    controller = desk.rollout("good", files, number)
    world.within(120, "a device goes on", lambda: devices.of_plan("good")["starts"] > before)
    on = time.monotonic() - killed
    world.within(300, "all devices are connected", lambda: devices.now()["standing"] == number)
    back = time.monotonic() - killed
    code, said = ended(controller, lambda: desk.w.log("controller-good"))
    assert code == 0, said
    plan = devices.of_plan("good")
    assert (plan["starts"], plan["devices"]) == (number, number), f"each device once: {plan}"
    measured(f"{number} devices, publish to the first start {first:.1f} s; a node of three and the controller killed in wave 1: the next "
             f"start after {on:.1f} s, all connected after {back:.1f} s, done after {time.monotonic() - killed:.0f} s; started twice 0, "
             f"stranded 0; share of wave 1 {100 * plan['waves']['1'] / number:.1f} %")


def bad(desk, devices, number):
    files = desk.publish("bad", 11, "10,100")
    code, said = ended(desk.rollout("bad", files, number), lambda: desk.w.log("controller-bad"))
    assert code == 1 and "halted" in said, said
    world.within(120, "all devices hear the halt", lambda: (devices.of_plan("bad")["halt"] or {}).get("heard", 0) >= number)
    time.sleep(3)
    plan = devices.of_plan("bad")
    halt = plan["halt"]
    assert list(plan["waves"]) == ["1"], plan
    measured(f"{number} devices, a bad release: {plan['starts']} of wave 1 started it, 0 others; from the first device that has the halt "
             f"to p50 {halt['p50_s']:.2f} s, p99 {halt['p99_s']:.2f} s, the last {halt['last_s']:.2f} s; {halt['starts_after']} starts after "
             f"the first had it, the last {halt['last_start_s']:.2f} s")


def storm(devices, nodes, number):
    for node in nodes:
        node.kill()
    time.sleep(5)
    began = time.monotonic()
    for node in nodes:
        node.start_again()
    world.within(900, "all devices are back", lambda: devices.now()["standing"] == number)
    measured(f"{number} devices after all three nodes were killed and started again: all connected after {time.monotonic() - began:.0f} s")


def memory_mib(child):
    """Of a process and what it started."""
    total = 0
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == child.pid:
                total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            pass
    return total >> 20


def play(w, programs, inside, number, arrive_per_s):
    nodes = cluster.cluster(w, inside)
    # Its older store needs three times as long for a device's subscriptions (measurements.md).
    nodes[0].ctl("enable_feature_flag", "--opt-in", "khepri_db")
    desk = Desk(w, programs, nodes)
    began = time.monotonic()
    devices = Devices(w, programs, nodes, number, desk.keyset, arrive_per_s)
    world.within(1800, "all devices are connected", lambda: devices.now()["standing"] == number)
    mib = [memory_mib(node.child) for node in nodes]
    measured(f"{number} devices, a connection and a quorum queue each, {arrive_per_s:g} a second: all connected after {time.monotonic() - began:.0f} s; memory of the "
             f"nodes {mib} MiB")
    good(desk, devices, nodes, number)
    nodes[0].start_again()
    bad(desk, devices, number)
    storm(devices, nodes, number)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("programs", type=pathlib.Path, help="the folder of the built programs")
    parser.add_argument("--devices", type=int, default=500)
    parser.add_argument("--arrive-per-s", type=float, default=20, help="first connections a second: each makes a queue on three nodes")
    a = parser.parse_args()
    missing = [name for name in ("mmdebstrap", "openssl", "minisign") if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        return world.missing(f"a rollout over RabbitMQ: {'no ' + ', '.join(missing) if missing else 'not root'}")
    with cluster.place() as inside, tempfile.TemporaryDirectory() as folder, world.World(folder, None) as w:
        try:
            play(w, a.programs.resolve(), inside, a.devices, a.arrive_per_s)
        except BaseException:
            for file in sorted(w.folder.glob("*.log")):
                print(f"--- {file.name}\n{file.read_text(errors='replace')[-1500:]}", file=sys.stderr)
            raise


if __name__ == "__main__":
    main()
