#!/usr/bin/env python3
"""The README's table from results/latency.jsonl and results/throughput.jsonl: medians over rounds."""
import json
import os
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
LABEL = sys.argv[1] if len(sys.argv) > 1 else "final"


def rounds(scenario):
    with open(f"{HERE}/results/{scenario}.jsonl") as lines:
        return [r for r in map(json.loads, lines) if r.get("label") == LABEL]


def groups(rows, *keys):
    out = {}
    for row in rows:
        out.setdefault(tuple(row[k] for k in keys), []).append(row)
    return sorted(out.items())


def median(rows, value):
    return statistics.median(value(r) for r in rows)


print("| 100 Hz, 1 port | hop | latency p50 µs | p99 µs | CPU % of a core | PSS MB | lost, doubled or wrong |")
print("|---|---|---|---|---|---|---|")
for (hop, impl), rows in groups(rounds("latency"), "hop", "impl"):
    wrong = sum(r["lost"] + r["dups"] + r["ooo"] + r["score_bad"] for r in rows)
    cells = [
        f"{median(rows, lambda r: r['lat_us']['p50']):.0f}",
        f"{median(rows, lambda r: r['lat_us']['p99']):.0f}",
        f"{median(rows, lambda r: r['cpu_s'] / r['wall'] * 100):.1f}",
        f"{median(rows, lambda r: r['pss_mb']):.0f}",
        f"{wrong}",
    ]
    print(f"| {impl} | {hop} | " + " | ".join(cells) + " |")
print()
print("| as fast as it reads | hop | ports | samples/s | windows/s | CPU s per million samples | lost, doubled or wrong |")
print("|---|---|---|---|---|---|---|")
for (hop, ports, impl), rows in groups(rounds("throughput"), "hop", "ports", "impl"):
    wrong = sum(r["lost"] + r["dups"] + r["ooo"] + r["score_bad"] for r in rows)
    cells = [
        f"{median(rows, lambda r: r['samples_per_s']):,.0f}",
        f"{median(rows, lambda r: r['windows_per_s']):,.0f}",
        f"{median(rows, lambda r: r['cpu_s_per_msample']):.1f}",
        f"{wrong}",
    ]
    print(f"| {impl} | {hop} | {ports} | " + " | ".join(cells) + " |")
