#!/usr/bin/env python3
"""System calls and context switches per window at 100 Hz: counts, which a busy machine changes less than times.
picture.py IMPL [HOP] [SECONDS]; needs strace. Several rows at one wake-up make fewer of both: compare counts of one quiet machine."""

import collections, os, re, subprocess as sp, sys, time

argv, sys.argv = sys.argv, sys.argv[:1]
import bench


def switches(process):
    """(process, thread, name) -> voluntary context switches."""
    out = {}
    for pid in process.tree():
        for thread in os.listdir(f"/proc/{pid}/task"):
            try:
                status = open(f"/proc/{pid}/task/{thread}/status").read()
            except OSError:
                continue
            name = status.split("Name:\t")[1].split("\n")[0]
            out[(pid, thread, name)] = int(re.search(r"\nvoluntary_ctxt_switches:\t(\d+)", status)[1])
    return out


def calls(process, seconds, probe, log):
    """System calls by thread and name, and the windows meanwhile."""
    pids = process.tree()
    tracer = sp.Popen(["strace", "-f", "-q", "-o", log] + [f"--attach={pid}" for pid in pids], stderr=sp.DEVNULL)
    time.sleep(1)
    begin, before = os.path.getsize(log), probe.n[0]
    time.sleep(seconds)
    windows, end = probe.n[0] - before, os.path.getsize(log)
    names = {}
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            names[thread] = open(f"/proc/{pid}/task/{thread}/comm").read().strip()
    tracer.terminate()
    tracer.wait()
    counts = collections.Counter()
    for line in open(log, errors="replace").read()[begin:end].splitlines():
        call = re.match(r"(\d+)\s+(\w+)\(", line)
        if call:
            counts[(names.get(call[1], call[1]), call[2])] += 1
    return counts, max(windows, 1)


def main(name, hop=1, seconds=10.0):
    rig = bench.Rig(name, 1, hop, 100, "picture", secs=2 * seconds + 15)
    try:
        rig.start()
        rig.sim.wait_line("START", 60)
        time.sleep(4)
        before, windows = switches(rig.imp), rig.probe.n[0]
        time.sleep(seconds)
        after, windows = switches(rig.imp), max(rig.probe.n[0] - windows, 1)
        each = {key: (after[key] - before.get(key, 0)) / windows for key in after}
        print(f"{name}, hop {hop}: {sum(each.values()):.2f} voluntary context switches per window ({windows} windows)")
        for (_, _, thread), n in sorted(each.items(), key=lambda item: -item[1]):
            if n >= 0.02:
                print(f"    {thread:16s} {n:.2f}")
        counts, windows = calls(rig.imp, seconds, rig.probe, rig.d + "/strace")
        print(f"{name}, hop {hop}: {sum(counts.values()) / windows:.2f} system calls per window ({windows} windows)")
        for (thread, call), n in counts.most_common():
            if n / windows >= 0.05:
                print(f"    {thread:16s} {call:14s} {n / windows:.2f}")
    finally:
        for process in (rig.imp, rig.sim, rig.probe, rig.broker.p):
            if process and process.alive():
                process.stop()


main(argv[1], *map(int, argv[2:3]), *map(float, argv[3:4]))
