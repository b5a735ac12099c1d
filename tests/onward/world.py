"""A small real world for the programs beside this file: free ports, processes that end with the test, a daemon with a sensor."""
import contextlib
import os
import pathlib
import pty
import random
import signal
import socket
import subprocess
import sys
import time
import tty

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "kentledge"
PYTHON = {**os.environ, "PYTHONPATH": str(CACHE / "python")}
STORE = ROOT / "tests/client/kentledge_store.py"


def port():
    """A free one, not of those that Linux gives to outgoing connections."""
    while True:
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", random.randrange(15000, 32000)))
            return s.getsockname()[1]


def within(seconds, what, look):
    until = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)
    return found


def listens(number):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", number)) == 0


class World(contextlib.ExitStack):
    """All processes that it started end with it."""

    def __init__(self, folder, program):
        super().__init__()
        self.folder, self.program = pathlib.Path(folder), program

    def start(self, name, args, **more):
        log = (self.folder / f"{name}.log").open("ab")
        child = subprocess.Popen(list(map(str, args)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, **more)
        self.callback(lambda: child.poll() is None and (child.kill(), child.wait()))
        return child

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def mosquitto(self):
        number, conf = port(), self.folder / "mosquitto.conf"
        conf.write_text(f"listener {number} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n"
                        f"persistence true\npersistence_location {self.folder}/\n")
        self.start("mosquitto", ["mosquitto", "-c", conf], user="root" if os.geteuid() == 0 else None)
        within(10, "mosquitto listens", lambda: listens(number))
        return number

    def daemon(self, urls, name="pump-1", more="", mqtt=""):
        """A real daemon with a stream `raw`; the file to write rows `n,a` to."""
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        config = self.folder / f"{name}.toml"
        config.write_text(f"""[device]\nsite = "plant"\nid = "{name}"\nstate_dir = "{self.folder}/{name}"\nbus = "off"
[mqtt]\nurl = [{", ".join(f'"{url}"' for url in urls)}]\nallow_plaintext = true\n{mqtt}[metrics]\ninterval_s = 1
[source.s]\npath = "{os.ttyname(theirs)}"\ncolumns = ["n", "a"]\nseq = "n"\n[channel.a]\n[stream.raw]\nchannels = ["a"]\n{more}""")
        child = self.start(name, [self.program, "run", "--config", config], env={**os.environ, "KENTLEDGE_LOG": "info"})
        within(20, "the daemon opens its port", lambda: "serial port open" in self.log(name))
        return child, os.fdopen(ours, "wb", buffering=0), config

    def consumer(self, name, into, source, *topics, every_s=0.2):
        return Consumer(self, name, [sys.executable, STORE, "--from", source, "--into", into, "--id", name, "--every-s", str(every_s),
                                     "--verbose", "--rejected", self.folder / f"{name}.rejected", *topics])


class Consumer:
    """It is started again whenever it ended, as systemd does."""

    def __init__(self, world, name, args):
        self.world, self.name, self.args, self.starts = world, name, args, 0
        self.child, self.due, self.stopped = None, None, None
        self.tend()

    def tend(self):
        if self.child is None or self.child.poll() is not None:
            self.child, self.starts = self.world.start(self.name, self.args, env=PYTHON), self.starts + 1

    def kill_at_work(self, server):
        """Killed in the middle of a write, and started again: its database stands still from some time after its start."""
        log = self.world.log(self.name)
        if self.due is None and log.count("storing") == self.starts:
            self.due = time.monotonic() + random.uniform(0.1, 0.5)
        if self.due and self.stopped is None and time.monotonic() > self.due:
            self.stopped = log.count("writing")
            if server:
                os.killpg(server.pid, signal.SIGSTOP)
        elif self.stopped is not None and log.count("writing") > self.stopped:
            self.due = self.stopped = None
            self.kill()
            if server:
                os.killpg(server.pid, signal.SIGCONT)
        self.tend()

    def thaw(self, server):
        if server and self.stopped is not None:
            os.killpg(server.pid, signal.SIGCONT)

    def kill(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGKILL)
            self.child.wait()


def missing(what):
    print(f"SKIPPED: {what}", file=sys.stderr, flush=True)
