#!/usr/bin/env python3
"""Where one window goes: for each window at 100 Hz and hop 1, the voluntary context switches and the system calls of each thread of the daemon
and its worker. Counts, which a busy machine changes less than times. handovers.py BINARY [SECONDS]; needs mosquitto and strace, and no
yardstick beside it. `picture.py` does the same for all that the yardstick compares."""

import collections
import os
import re
import signal
import subprocess as sp
import sys
import tempfile
import threading
import time
import tty

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CONFIG = """
[device]
id = "d"
site = "s"
state_dir = "{folder}/state"
bus = "off"
[mqtt]
url = "mqtt://127.0.0.1:{port}"
[models]
allow_unsigned = true
[source.s]
path = "{tty}"
columns = ["n", "a", "b"]
seq = "n"
[channel.a]
[channel.b]
[pipeline.p]
model = "{root}/tests/onnx/sklearn/autoencoder.onnx"
channels = ["a", "b"]
window_steps = 4
reconstruction = "variable"
"""


def tree(pid):
    """The daemon and its workers."""
    pids = [pid]
    for thread in os.listdir(f"/proc/{pid}/task"):
        pids += [int(child) for child in open(f"/proc/{pid}/task/{thread}/children").read().split()]
    return sorted(set(pids))


def threads(pid):
    """Thread -> its name. The daemon's first thread runs ports and link; the worker has one."""
    names = {}
    for process in tree(pid):
        for thread in os.listdir(f"/proc/{process}/task"):
            name = open(f"/proc/{process}/task/{thread}/comm").read().strip()
            names[thread] = "worker" if process != pid else "main (ports, link)" if int(thread) == pid else name
    return names


def switches(pid):
    counts = collections.Counter()
    for process in tree(pid):
        for thread in os.listdir(f"/proc/{process}/task"):
            status = open(f"/proc/{process}/task/{thread}/status").read()
            counts[thread] = int(re.search(r"\nvoluntary_ctxt_switches:\t(\d+)", status)[1])
    return counts


class Sensor(threading.Thread):
    """Rows at 100 Hz, until the program ends."""

    def __init__(self, fd):
        super().__init__(daemon=True)
        self.fd, self.rows = fd, 0
        self.start()

    def run(self):
        due = time.monotonic()
        while True:
            values = [f"{20 + (self.rows * k % 11) / 3:.4f}" for k in (7, 5)]
            os.write(self.fd, f"{self.rows},{','.join(values)}\n".encode())
            self.rows += 1
            due += 0.01
            time.sleep(max(0.0, due - time.monotonic()))


def system_calls(pid, sensor, seconds, log):
    """(thread, call) -> how often, and the rows meanwhile."""
    names = threads(pid)
    attach = [f"--attach={process}" for process in tree(pid)]
    tracer = sp.Popen(["strace", "-f", "-q", "-o", log, *attach], stderr=sp.DEVNULL)
    time.sleep(1)
    begin, rows = os.path.getsize(log), sensor.rows
    time.sleep(seconds)
    end, rows = os.path.getsize(log), sensor.rows - rows
    tracer.terminate()
    tracer.wait()
    found = re.findall(r"^(\d+)\s+(\w+)\(", open(log, errors="replace").read()[begin:end], re.M)
    return collections.Counter((names.get(thread, thread), call) for thread, call in found), max(rows, 1)


def report(pid, sensor, seconds, folder):
    before, rows = switches(pid), sensor.rows
    time.sleep(seconds)
    after, rows = switches(pid), max(sensor.rows - rows, 1)
    names = threads(pid)
    by_name = collections.Counter()
    for thread in after:
        by_name[names.get(thread, thread)] += (after[thread] - before[thread]) / rows
    calls, traced = system_calls(pid, sensor, seconds, folder + "/calls")
    print(f"{sum(by_name.values()):.2f} voluntary context switches, {sum(calls.values()) / traced:.2f} system calls a window")
    for name, n in by_name.most_common():
        own = ", ".join(f"{call} {k / traced:.2f}" for (of, call), k in calls.most_common() if of == name and k / traced >= 0.03)
        if n >= 0.02:
            print(f"  {name:20s} {n:5.2f}  {own}")


def main(binary, seconds=15.0):
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = os.openpty()
        tty.setraw(theirs)
        port = 20000 + os.getpid() % 20000
        open(folder + "/mosquitto.conf", "w").write(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        config = CONFIG.format(folder=folder, port=port, tty=os.ttyname(theirs), root=ROOT)
        open(folder + "/kentledge.toml", "w").write(config)
        broker = sp.Popen(["mosquitto", "-c", folder + "/mosquitto.conf"], stderr=sp.DEVNULL)
        time.sleep(0.5)
        daemon = sp.Popen([binary, "run", "--config", folder + "/kentledge.toml"], stderr=open(folder + "/log", "w"))
        try:
            time.sleep(4)
            sensor = Sensor(ours)
            time.sleep(3)
            report(daemon.pid, sensor, seconds, folder)
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(20)
            broker.terminate()


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:3]))
