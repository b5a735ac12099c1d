#!/usr/bin/env python3
"""How much memory the daemon needs while it has nothing to do: no model, one silent source, one stream, a broker.
idle.py BINARY [SECONDS]: starts it beside mosquitto, waits (20 s), and prints PSS by mapping, and what of the program was touched in the
15 s after that. Needs mosquitto; run it as root, or as the daemon's user."""

import collections, json, os, pty, re, subprocess as sp, sys, tempfile, time, tty

BINARY, SECONDS = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 20
PORT = 18998


def config(folder, sensor):
    return f"""[device]
site = "s"
id = "d"
state_dir = {json.dumps(folder + "/state")}
bus = "off"
[mqtt]
url = "mqtt://127.0.0.1:{PORT}"
[source.x]
path = {json.dumps(sensor)}
columns = ["a"]
[channel.a]
[stream.raw]
channels = ["a"]
"""


def mappings(pid, field):
    """KiB of this field of smaps by file and permissions."""
    sums, name = collections.Counter(), ""
    for line in open(f"/proc/{pid}/smaps"):
        head = re.match(r"^[0-9a-f]+-[0-9a-f]+ (\S+) \S+ \S+ \S+\s*(.*)$", line)
        if head:
            name = f"{os.path.basename(head[2]) or 'anonymous'} {head[1]}"
        elif line.startswith(field + ":"):
            sums[name] += int(line.split()[1])
    return sums


def main():
    with tempfile.TemporaryDirectory() as folder:
        master, slave = pty.openpty()
        tty.setraw(slave)
        open(f"{folder}/kentledge.toml", "w").write(config(folder, os.ttyname(slave)))
        open(f"{folder}/broker.conf", "w").write(f"listener {PORT} 127.0.0.1\nallow_anonymous true\n")
        broker = sp.Popen(["mosquitto", "-c", f"{folder}/broker.conf"], stderr=sp.DEVNULL)
        time.sleep(0.5)
        daemon = sp.Popen([BINARY, "run", "--config", f"{folder}/kentledge.toml"], stderr=open(f"{folder}/log", "w"))
        try:
            time.sleep(SECONDS)
            if daemon.poll() is not None:
                sys.exit(open(f"{folder}/log").read())
            shares = mappings(daemon.pid, "Pss")
            for name, kib in shares.most_common(8):
                print(f"{kib:7} KiB  {name}")
            print(f"MEASURED: idle, without a model: PSS {sum(shares.values())} KiB after {SECONDS:.0f} s")
            open(f"/proc/{daemon.pid}/clear_refs", "w").write("1")
            time.sleep(15)
            own = os.path.basename(BINARY)
            touched = sum(kib for name, kib in mappings(daemon.pid, "Referenced").items() if name.startswith(own))
            print(f"MEASURED: pages of the program touched in 15 s: {touched} KiB")
        finally:
            for process in (daemon, broker):
                process.terminate()
                process.wait()


main()
