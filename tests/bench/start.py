#!/usr/bin/env python3
"""How soon decisions are made after kill -9, while a large store is still closed.
start.py BINARY [MIB]: fills a store of so many MiB (128) without a broker, ends the daemon by kill -9, starts it beside a
broker, and prints when the first alarm and the first prediction came, and when the store was open. Needs mosquitto."""

import glob, json, os, pty, random, signal, subprocess as sp, sys, tempfile, threading, time, tty

BINARY, MIB = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 128
HERE = os.path.dirname(os.path.abspath(__file__))
PORT, COLUMNS = 18997, 40


def config(folder, runtime):
    names = [f"c{i}" for i in range(COLUMNS)]
    return "\n".join(
        [
            '[device]\nsite = "s"\nid = "d"',
            f"state_dir = {json.dumps(folder + '/state')}",
            f'[mqtt]\nurl = "mqtt://127.0.0.1:{PORT}"',
            f"[models]\nallow_unsigned = true\nruntime = {json.dumps(runtime)}",
            f"[source.s]\npath = {json.dumps(folder + '/sensor')}\ncolumns = {json.dumps(['n', *names])}",
            'seq = "n"\nframe_max_bytes = 4096',
            *(f"[channel.{name}]" for name in names),
            f"[stream.raw]\nchannels = {json.dumps(names)}",
            f"[pipeline.p]\nmodel = {json.dumps(HERE + '/models/ae_f32.onnx')}\nchannels = {json.dumps(names[:8])}",
            'window_steps = 64\nhop_steps = 64\nlayout = "channels_first"\nscore = "score"',
            '[alarm.hot]\nchannel = "c0"\nabove = 5.0\n',
        ]
    )


class Sensor:
    """Rows of random numbers on a pseudo-terminal: what a store cannot pack well."""

    def __init__(self, path):
        self.master, slave = pty.openpty()
        tty.setraw(slave)
        os.symlink(os.ttyname(slave), path)
        self.rows = [",".join(repr(random.random()) for _ in range(COLUMNS - 1)) for _ in range(4000)]
        self.n = 0

    def write(self, count, first="0.5"):
        block = "".join(f"{self.n + i},{first},{random.choice(self.rows)}\n" for i in range(count)).encode()
        self.n += count
        while block:
            block = block[os.write(self.master, block) :]


def start(folder):
    log = open(folder + "/log", "ab")
    return sp.Popen([BINARY, "run", "--config", folder + "/c.toml"], env={**os.environ, "KENTLEDGE_LOG": "info"}, stdout=log, stderr=log)


def stored_mib(folder):
    files = glob.glob(folder + "/state/outbox/store/**", recursive=True)
    return sum(os.path.getsize(file) for file in files if os.path.isfile(file)) / (1 << 20)


def decisions(began, seen):
    """Prints the first alarm and the first prediction that the broker gets."""
    topics = ["-t", "kl/+/+/up/a/#", "-t", "kl/+/+/up/p/#"]
    sub = sp.Popen(["mosquitto_sub", "-p", str(PORT), "-F", "%t", *topics], stdout=sp.PIPE, text=True)

    def read():
        for line in sub.stdout:
            what = "alarm" if "/up/a/" in line else "prediction"
            if what not in seen and began:
                seen[what] = time.time() - began[0]
                print(f"first {what}: {seen[what]:.2f} s after the start", flush=True)

    threading.Thread(target=read, daemon=True).start()
    return sub


def main(folder):
    runtime = glob.glob(HERE + "/venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.*")[0]
    open(folder + "/c.toml", "w").write(config(folder, runtime))
    open(folder + "/m.conf", "w").write(f"listener {PORT} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n")
    sensor, daemon = Sensor(folder + "/sensor"), start(folder)
    while stored_mib(folder) < MIB:
        sensor.write(200)
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    print(f"kill -9 after {sensor.n} rows, {stored_mib(folder):.0f} MiB stored", flush=True)
    broker = sp.Popen(["mosquitto", "-c", folder + "/m.conf"], stdout=sp.DEVNULL, stderr=sp.DEVNULL)
    time.sleep(1)
    began, seen = [], {}
    sub = decisions(began, seen)
    time.sleep(1)
    began.append(time.time())
    daemon = start(folder)
    while time.time() < began[0] + 300:
        sensor.write(1, "9.0" if sensor.n % 2 else "0.5")
        if open(folder + "/log", errors="replace").read().count("store is open") == 2:
            print(f"store open: {time.time() - began[0]:.2f} s after the start")
            break
        time.sleep(0.01)
    for process in (daemon, broker, sub):
        process.kill()


with tempfile.TemporaryDirectory() as folder:
    main(folder)
