#!/usr/bin/env python3
"""results/*.jsonl -> results/results.json + results/results.md (medians over rounds, [min-max])."""

import json, os, glob, statistics as st, sys, numpy as np

H = os.path.dirname(os.path.abspath(__file__))
LBL = sys.argv[1] if len(sys.argv) > 1 else "final"


def load(sc, lbl=LBL):
    p = f"{H}/results/{sc}.jsonl"
    return (
        [r for r in map(json.loads, open(p)) if r.get("label", "") == lbl or lbl is None] if os.path.exists(p) else []
    )


def med(rs, f):
    v = [f(r) for r in rs]
    v = [x for x in v if x is not None]
    return (st.median(v), min(v), max(v), len(v)) if v else None


def g(k):
    return lambda r: r.get(k)


def F(m, d=0, rng=True):
    if not m:
        return "-"
    return f"{m[0]:,.{d}f}" + (f" [{m[1]:,.{d}f}-{m[2]:,.{d}f}]" if rng and m[3] > 1 else "")


def groups(rs, *ks):
    o = {}
    for r in rs:
        o.setdefault(tuple(r[k] for k in ks), []).append(r)
    return o


md, js = (
    [],
    {
        "machine": "2 vCPU AMD EPYC (Zen 5, 2.6 GHz nominal), virtual machine, 24 GiB, Debian 12, mosquitto 2.0.11, ORT 1.31.1 (Node: 1.30.0). Foreign load is in each row."
    },
)


def table(title, head, rows, note=""):
    md.append(
        f"\n### {title}\n\n| "
        + " | ".join(head)
        + " |\n|"
        + "---|" * len(head)
        + "\n"
        + "\n".join("| " + " | ".join(map(str, r)) + " |" for r in rows)
        + ("\n\n" + note if note else "")
    )


def put(sc, key, **kw):
    js.setdefault(sc, {})["/".join(map(str, key))] = {
        k: ({"median": v[0], "min": v[1], "max": v[2], "rounds": v[3]} if isinstance(v, tuple) else v)
        for k, v in kw.items()
    }


rows = []
for k, rs in groups(load("ort"), "model", "sleep_us", "prewarm").items():
    a = {x: med(rs, g(x)) for x in ("p50_us", "p99_us", "cpu_us_per_run", "load_ms")}
    put("ort", k, **a)
    rows.append(
        [
            k[0],
            {0: "hot loop", 10000: "every 10 ms"}[k[1]] + (" after a warm-up run" if k[2] else ""),
            F(a["p50_us"], 1),
            F(a["p99_us"], 1),
            F(a["cpu_us_per_run"], 1, 0),
        ]
    )
table("Bare ORT (Rust, 1 thread)", ["model", "spacing", "p50 us", "p99 us", "CPU us/run"], rows)
rows = []
for k, rs in sorted(groups(load("latency"), "hop", "impl").items()):
    pool = [np.load(f) for f in glob.glob(f"{H}/results/lat-{k[1]}-h{k[0]}-f32-r100-{LBL}*.npy")]
    P = np.concatenate(pool)
    q = {p: float(np.percentile(P, p)) for p in (10, 50, 90, 99, 99.9)}
    q["max"] = float(P.max())
    a = dict(
        p50=med(rs, lambda r: r["lat_us"]["p50"]),
        p99=med(rs, lambda r: r["lat_us"]["p99"]),
        cpu_pct=med(rs, lambda r: r["cpu_s"] / r["wall"] * 100),
        cpu_us_per_window=med(rs, g("cpu_us_per_window")),
        pss_mb=med(rs, g("pss_mb")),
        foreign=med(rs, lambda r: r["foreign_cpu"] / r["wall"] / 2 * 100),
    )
    lost = sum(r["lost"] + r["dups"] + r["ooo"] for r in rs)
    put("latency", k, pooled_us=q, n=len(P), lost_dup_ooo=lost, **a)
    rows.append(
        [
            k[0],
            k[1],
            f"{q[10]:,.0f}",
            F(a["p50"]),
            f"{q[90]:,.0f}",
            F(a["p99"]),
            f"{q[99.9]:,.0f}",
            f"{q['max']:,.0f}",
            len(P),
            F(a["cpu_pct"], 2, 0),
            F(a["pss_mb"], 1, 0),
            lost,
            F(a["foreign"], 0, 0),
        ]
    )
table(
    "Latency, 100 Hz x 1 port: sensor write -> message received (us)",
    [
        "hop",
        "impl",
        "p10 (pooled)",
        "p50",
        "p90 (pooled)",
        "p99",
        "p99.9 (pooled)",
        "max",
        "n",
        "CPU % of a core",
        "PSS MB",
        "lost+dup+disorder",
        "foreign load %",
    ],
    rows,
)
rows = []
for k, rs in sorted(groups(load("throughput"), "model", "hop", "ports", "impl").items()):
    a = {
        x: med(rs, g(x))
        for x in (
            "samples_per_s",
            "windows_per_s",
            "cpu_s_per_msample",
            "samples_per_core_s",
            "pss_mb",
            "cpu_us_per_window",
        )
    }
    a["foreign"] = med(rs, lambda r: r["foreign_cpu"] / r["wall"] / 2 * 100)
    a["broker"] = med(rs, lambda r: r["broker_cpu"] / r["frames_ok"] * 1e6)
    lost = sum(r["lost"] + r["dups"] + r["ooo"] + r["score_bad"] for r in rs)
    put("throughput", k, lost_dup_ooo_bad=lost, **a)
    rows.append(
        [
            k[0],
            k[1],
            k[2],
            k[3],
            F(a["samples_per_s"]),
            F(a["windows_per_s"], 0, 0),
            F(a["cpu_s_per_msample"], 2),
            F(a["samples_per_core_s"], 0, 0),
            F(a["pss_mb"], 1, 0),
            lost,
            F(a["foreign"], 0, 0),
        ]
    )
table(
    "Throughput, as fast as the reader drains",
    [
        "model",
        "hop",
        "ports",
        "impl",
        "samples/s",
        "windows/s",
        "CPU s / M samples",
        "samples / core-second",
        "PSS MB",
        "lost+dup+disorder+wrong",
        "foreign load %",
    ],
    rows,
)
rows = []
for k, rs in sorted(groups(load("cold"), "impl").items()):
    a = {x: med(rs, g(x)) for x in ("cold_ms", "cpu_start_s", "pss_mb")}
    put("cold", k, **a)
    rows.append([k[0], F(a["cold_ms"]), F(a["cpu_start_s"], 2)])
table(
    "Cold start (spawn -> first inference received; 64 ms is the window filling at 1 kHz)",
    ["impl", "ms", "CPU s until ~50 messages"],
    rows,
)
for lbl, ttl in (
    (LBL, "Outage 8 s at 500 Hz, hop 1 (other load present; autogroup -20)"),
    ("out60loaded", "Outage 60 s at 100 Hz, hop 1 (heavy other load: read loss and duplicates, not rates)"),
    ("out60", "Outage 60 s at 100 Hz"),
):
    rows = []
    for k, rs in sorted(groups(load("outage", lbl), "impl").items()):
        a = {x: med(rs, g(x)) for x in ("reconnect_s", "catchup_s", "catchup_msgs_s", "cpu_outage_per_msample")}
        t = {
            x: sum(r.get(x) or 0 for r in rs)
            for x in ("expected", "lost", "dups", "ooo", "outage_windows", "overrun", "lost_outside_outage")
        }
        pss = med(rs, lambda r: r["mem_end_of_outage"].get("pss_mb"))
        put("outage-" + lbl, k, pss_end=pss, **a, **t)
        rows.append(
            [
                k[0],
                len(rs),
                t["outage_windows"],
                t["lost"],
                t["dups"],
                t["ooo"],
                F(a["reconnect_s"], 2),
                F(a["catchup_msgs_s"]),
                F(pss, 1, 0),
            ]
        )
    if rows:
        table(
            ttl,
            [
                "impl",
                "rounds",
                "windows in outage",
                "lost",
                "dup",
                "disorder",
                "reconnect s",
                "catch-up msgs/s",
                "PSS at end MB",
            ],
            rows,
        )
for lbl in (LBL, "kill100loaded"):
    rows = []
    for k, rs in sorted(groups(load("killoutage", lbl), "impl").items()):
        t = {
            x: sum(r.get(x) or 0 for r in rs)
            for x in ("buffered", "buffered_lost", "pre_lost", "dups", "post_windows", "post_lost", "no_reader_frames")
        }
        rpo = med(rs, g("rpo_ms"))
        put("kill-" + lbl, k, rpo_ms=rpo, **t)
        rows.append(
            [
                k[0],
                t["buffered"],
                t["buffered_lost"],
                F(rpo, 1),
                t["pre_lost"],
                t["post_lost"],
                t["dups"],
                t["no_reader_frames"],
            ]
        )
    if rows:
        table(
            f"kill -9 during outage ({lbl}, 100 Hz)",
            [
                "impl",
                "windows buffered",
                "of them lost",
                "newest survivor is older than the kill by ms",
                "lost before outage",
                "lost after restart",
                "dup",
                "frames with no reader",
            ],
            rows,
        )
rows = []
for k, rs in sorted(groups(load("saf") + load("saf", "durable"), "mode", "impl").items()):
    a = {x: med(rs, g(x)) for x in ("deliver_msgs_s", "reconnect_s", "cpu_us_per_msg", "pss_mb", "accept_s")}
    t = {x: sum(r[x] for r in rs) for x in ("N", "lost", "dups")}
    put("saf", k, **a, **t)
    rows.append(
        [
            k[0],
            k[1],
            t["N"],
            t["lost"],
            t["dups"],
            F(a["deliver_msgs_s"]),
            F(a["reconnect_s"], 2, 0),
            F(a["cpu_us_per_msg"], 1),
            F(a["pss_mb"], 1, 0),
        ]
    )
table(
    "Store-and-forward alone",
    ["mode", "impl", "messages", "lost", "dup", "delivered msgs/s", "first after s", "CPU us/msg", "PSS MB"],
    rows,
)
rows = [
    [
        r["impl"],
        r["clean_windows"],
        r["clean_received"],
        f"{r['score_bad']} / {r['unique']}",
        r["alive"],
        r["received_after_hangup"],
    ]
    for r in load("noise", None)
]
js["noise"] = load("noise", None)
table(
    "Noise 1 %, truncation 1 %, hang-up 2 s",
    [
        "impl",
        "clean windows before hang-up",
        "of them received",
        "published windows not equal to 64 contiguous good frames",
        "alive at end",
        "messages after hang-up",
    ],
    rows,
)
rows = [
    [r["impl"], r["model"], r["hop"], f"{r['insn_per_sample']:,.0f}", f"{r['insn_startup']:,.0f}"]
    for r in load("insn", None)
]
js["insn"] = load("insn", None)
table("Instructions (callgrind, AVX2 paths)", ["impl", "model", "hop", "per sample", "start-up"], rows)
open(f"{H}/results/results.json", "w").write(json.dumps(js, indent=1))
open(f"{H}/results/results.md", "w").write("# bench results\n\n" + js["machine"] + "\n" + "\n".join(md) + "\n")
print(open(f"{H}/results/results.md").read())
