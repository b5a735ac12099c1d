#!/usr/bin/env python3
"""Yardstick for serial -> window -> ONNX -> MQTT QoS1 pipelines. See README.md. `bench.py <scenario> --impls a,b --rounds 5`."""

import argparse, json, os, signal, statistics as st, subprocess as sp, sys, threading, time, shutil, glob
import numpy as np

H = os.path.dirname(os.path.abspath(__file__))
T = f"{H}/tools/target/release"
W, CH = 64, 8
LIB = (glob.glob(f"{H}/venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.*") or [""])[0]
CLK = os.sysconf("SC_CLK_TCK")
SIMT = np.dtype([("seq", "<u8"), ("t", "<u8"), ("st", "u1")])
RECT = np.dtype([("recv", "<u8"), ("t", "<u8"), ("seq", "<u8"), ("score", "<f8"), ("port", "<u4"), ("fl", "<u4")])
LIVE = []
PORT0 = int(os.environ.get("HB_PORT0", "18830"))


def _rt():
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))


class Proc:
    """A child with its stdout lines collected; own process group; ended by pid."""

    def __init__(s, cmd, env=None, cwd=None, log=None):
        e = dict(os.environ)
        e.update(env or {})
        s.lines = []
        s.cv = threading.Condition()
        s.t_spawn = time.time_ns()
        s.p = sp.Popen(
            cmd,
            env=e,
            cwd=cwd,
            stdout=sp.PIPE,
            stderr=open(log, "ab") if log else sp.DEVNULL,
            stdin=sp.DEVNULL,
            start_new_session=True,
            preexec_fn=_rt if os.environ.get("HB_RT") else None,
        )
        s.pid = s.p.pid
        LIVE.append(s)
        if os.environ.get("HB_AG"):
            try:
                open(f"/proc/{s.pid}/autogroup", "w").write(os.environ["HB_AG"])
            except OSError as ex:
                print("autogroup", ex)
        s.th = threading.Thread(target=s._rd, daemon=True)
        s.th.start()

    def _rd(s):
        for l in s.p.stdout:
            with s.cv:
                l = l.decode(errors="replace").rstrip()
                if l.startswith("N "):
                    s.n = tuple(map(int, l.split()[1:3]))
                else:
                    s.lines.append(l)
                s.cv.notify_all()

    n = (0, 0)

    def wait_line(s, pre, to=30):
        end = time.time() + to
        with s.cv:
            while True:
                for l in s.lines:
                    if l.startswith(pre):
                        return l
                if time.time() > end or (s.p.poll() is not None and not s.th.is_alive()):
                    raise RuntimeError(f"no '{pre}' from {s.p.args}: {s.lines[-5:]}")
                s.cv.wait(0.2)

    def tree(s):
        kids = {}
        for d in os.listdir("/proc"):
            if d.isdigit():
                try:
                    kids.setdefault(int(open(f"/proc/{d}/stat").read().rsplit(")", 1)[1].split()[1]), []).append(int(d))
                except OSError:
                    pass
        out, q = [], [s.pid]
        while q:
            x = q.pop()
            out.append(x)
            q += kids.get(x, [])
        return out

    def cpu(s):
        tot = 0.0
        for p in s.tree():
            try:
                f = open(f"/proc/{p}/stat").read().rsplit(")", 1)[1].split()
                tick = (int(f[11]) + int(f[12])) / CLK
                ns = 0
                for t in os.listdir(f"/proc/{p}/task"):
                    try:
                        ns += int(open(f"/proc/{p}/task/{t}/schedstat").read().split()[0])
                    except OSError:
                        pass
                tot += max(tick - 0.01, ns / 1e9)
            except OSError:
                pass
        return tot

    def mem(s):
        pss = anon = hwm = 0
        for p in s.tree():
            try:
                for l in open(f"/proc/{p}/smaps_rollup"):
                    if l.startswith("Pss:"):
                        pss += int(l.split()[1])
                    if l.startswith("Pss_Anon:"):
                        anon += int(l.split()[1])
                for l in open(f"/proc/{p}/status"):
                    if l.startswith("VmHWM"):
                        hwm += int(l.split()[1])
            except OSError:
                pass
        return {"pss_mb": pss / 1024, "anon_mb": anon / 1024, "peak_rss_mb": hwm / 1024}

    def alive(s):
        return s.p.poll() is None

    def stop(s, sig=signal.SIGTERM, to=5):
        if s.alive():
            try:
                os.kill(s.pid, sig)
                s.p.wait(to)
            except sp.TimeoutExpired:
                pass
            except ProcessLookupError:
                pass
        if s.alive():
            try:
                os.killpg(s.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            s.p.wait(5)
        s.th.join(5)
        if s in LIVE:
            LIVE.remove(s)

    def kill9(s):
        try:
            os.killpg(s.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        s.p.wait(5)
        if s in LIVE:
            LIVE.remove(s)


class Broker:
    def __init__(s, d, port, extra=""):
        s.d, s.port = d, port
        os.makedirs(d, exist_ok=True)
        s.cfg = f"{d}/m.conf"
        open(s.cfg, "w").write(
            f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\npersistence_location {d}/\nmax_inflight_messages 0\nmax_queued_messages 0\nset_tcp_nodelay true\nlog_dest none\n"
            + extra
        )
        s.start()

    def start(s):
        s.p = Proc(["mosquitto", "-c", s.cfg])
        import socket

        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", s.port), 0.2).close()
                return time.time_ns()
            except OSError:
                time.sleep(0.005)
        raise RuntimeError("broker")

    def save(s):
        os.kill(s.p.pid, signal.SIGUSR1)
        time.sleep(0.2)

    def kill9(s):
        s.p.kill9()
        return time.time_ns()

    def stop(s):
        s.p.stop()


def impls():
    return json.load(open(os.environ.get("HB_IMPLS", f"{H}/impls.json")))


def ptr_args(im):
    a = []
    for k, v in (im.get("ptr") or {}).items():
        if v:
            a += [f"--ptr-{k}", v]
    return a


class Rig:
    def __init__(s, name, ports, hop, rate, tag="", sim_args=(), model="f32", lane=0, secs=None, wait=True):
        s.name, s.im, s.ports, s.hop, s.model = name, impls()[name], ports, hop, model
        s.d = f"{H}/run/{name}-{tag or 'x'}-{lane}"
        shutil.rmtree(s.d, ignore_errors=True)
        os.makedirs(s.d + "/state")
        s.mport = PORT0 + lane
        s.ttys = (
            [f"{s.d}/tty{i}" for i in range(ports)]
            if lane or os.environ.get("HB_RUN_TTY")
            else [f"{H}/tty{i}" for i in range(ports)]
        )
        s.broker = Broker(s.d + "/broker", s.mport)
        s.t_broker = time.time_ns()
        s.probe = Proc(
            [
                f"{T}/mqtt-probe",
                "--port",
                str(s.mport),
                "--topic",
                s.im.get("topic", "bench/#"),
                "--id",
                "probe",
                "--out",
                s.d + "/probe.bin",
            ]
            + ptr_args(s.im)
        )
        s.probe.wait_line("SUBSCRIBED")
        s.broker.save()
        a = [
            f"{T}/sensor-sim",
            "--dir",
            os.path.dirname(s.ttys[0]),
            "--ports",
            str(ports),
            "--rate",
            str(rate),
            "--csv",
            f"{H}/models/values.csv",
            "--log-dir",
            s.d,
            "--settle-ms",
            "1500",
        ]
        if secs:
            a += ["--duration", str(secs)]
        if not wait:
            a += ["--no-wait"]
        s.sim = Proc(a + list(sim_args))
        s.sim.wait_line("READY")
        s.env = {
            "HB_TTYS": ",".join(s.ttys),
            "HB_PORTS": str(ports),
            "HB_HOP": str(hop),
            "HB_WINDOW": "64",
            "HB_CHANNELS": "8",
            "HB_MODEL": f"{H}/models/ae_{model}.onnx",
            "HB_ORT_LIB": LIB,
            "HB_MQTT_HOST": "127.0.0.1",
            "HB_MQTT_PORT": str(s.mport),
            "HB_TOPIC": "bench",
            "HB_STATE": s.d + "/state",
            "HB_CLIENT_ID": f"dut-{name}",
            "HB_BAUD": "115200",
            "HB_HOME": H,
        }
        s.env.update(s.im.get("env", {}))
        s.imp = None

    def start(s):
        cmd = s.im["cmd"]
        for k, v in s.env.items():
            cmd = cmd.replace("{" + k + "}", v)
        if s.im.get("pre"):
            sp.run(["bash", "-c", s.im["pre"]], env={**os.environ, **s.env}, check=True)
        s.imp = Proc(["bash", "-c", "exec " + cmd], env=s.env, log=s.d + "/impl.log")
        return s.imp.t_spawn

    def drain(s, idle=2.0, to=120, expect=None):
        end = time.time() + to
        last = (-1, 0)
        t = time.time()
        while time.time() < end:
            n = s.probe.n
            if n[0] != last[0]:
                last, t = n, time.time()
            if time.time() - t > idle:
                break
            if expect and n[0] >= expect:
                time.sleep(0.3)
                break
            time.sleep(0.05)

    def finish(s):
        for x in (s.sim, s.imp, s.probe, s.broker):
            if x:
                x.stop()
        stats = [l for l in s.sim.lines if l.startswith("STATS")]
        summ = [l for l in s.probe.lines if l.startswith("SUMMARY")]
        s.stats = json.loads(stats[0][6:]) if stats else None
        s.summary = json.loads(summ[0][8:]) if summ else None
        s.rec = np.fromfile(s.d + "/probe.bin", RECT)
        s.log = [np.fromfile(f"{s.d}/port{i}.log", SIMT) for i in range(s.ports)]
        return s.analyse()

    def analyse(s):
        exp = np.load(f"{H}/models/expected_{s.model}.npy")
        r = {
            "impl": s.name,
            "ports": s.ports,
            "hop": s.hop,
            "frames_ok": 0,
            "overrun": 0,
            "no_reader": 0,
            "expected": 0,
            "received": len(s.rec),
            "unique": 0,
            "lost": 0,
            "dups": 0,
            "ooo": 0,
            "unexpected": 0,
            "score_bad": 0,
            "t_mismatch": 0,
        }
        lat = []
        for p in range(s.ports):
            L = s.log[p]
            ok = L["st"] == 0
            r["frames_ok"] += int(ok.sum())
            r["overrun"] += int((L["st"] == 1).sum())
            r["no_reader"] += int((L["st"] == 2).sum())
            m = s.rec[s.rec["port"] == p]
            u, first = np.unique(m["seq"], return_index=True)
            nf = len(L)
            e = np.arange(W - 1, nf, s.hop) if ok.all() else None
            r["unique"] += len(u)
            r["dups"] += len(m) - len(u)
            r["ooo"] += int((np.diff(m["seq"].astype(np.int64)) < 0).sum())
            if e is not None:
                r["expected"] += len(e)
                r["lost"] += len(np.setdiff1d(e, u))
                r["unexpected"] += len(np.setdiff1d(u, e))
            f = m[first]
            f = f[f["seq"] < nf]
            tw = L["t"][f["seq"].astype(np.int64)]
            r["t_mismatch"] += int((tw != f["t"]).sum())
            r["score_bad"] += int(
                (
                    np.abs(f["score"] - exp[f["seq"].astype(np.int64) % len(exp)])
                    > 1e-4 * (1 if s.model == "f32" else 300)
                ).sum()
            )
            lat.append(f["recv"].astype(np.int64) - tw.astype(np.int64))
        lat = np.concatenate(lat) / 1e3 if lat else np.array([])
        s.lat = lat
        if len(lat):
            r["lat_us"] = {
                k: float(np.percentile(lat, q, method="higher"))
                for k, q in (("p50", 50), ("p90", 90), ("p99", 99), ("p99.9", 99.9), ("max", 100))
            }
        if s.summary:
            r["bad"] = s.summary["bad"]
        if s.summary and s.summary["bad"]:
            r["bad_sample"] = s.summary["bad_sample"]
        return r


def save(sc, r):
    r["scenario"] = sc
    r["when"] = time.strftime("%H:%M:%S")
    r["loadavg"] = os.getloadavg()[0]
    os.makedirs(f"{H}/results", exist_ok=True)
    open(f"{H}/results/{sc}.jsonl", "a").write(json.dumps(r) + "\n")
    return r


def steal():
    f = open("/proc/stat").readline().split()
    return int(f[8]) / CLK


def busy():
    f = list(map(int, open("/proc/stat").readline().split()[1:9]))
    return (sum(f) - f[3] - f[4]) / CLK


def run_rate(name, ports, hop, rate, secs, tag, model="f32", sim_args=()):
    g = Rig(name, ports, hop, rate, tag, sim_args, model, secs=secs)
    try:
        g.start()
        t0 = int(g.sim.wait_line("START", 90).split()[1])
        c0, w0, b0, q0 = g.imp.cpu(), time.time(), busy(), steal()
        bc0, pc0, sc0 = g.broker.p.cpu(), g.probe.cpu(), g.sim.cpu()
        g.sim.wait_line("END", secs + 60)
        st_ = json.loads(g.sim.wait_line("STATS")[6:])
        frames = sum(p["frames"] for p in st_["ports"])
        exp = sum(max(0, (p["frames"] - W) // hop + 1) for p in st_["ports"])
        g.drain(2.0, 180, exp)
        cpu = g.imp.cpu() - c0
        wall = time.time() - w0
        mem = g.imp.mem()
        other = busy() - b0 - cpu - (g.broker.p.cpu() - bc0) - (g.probe.cpu() - pc0) - (g.sim.cpu() - sc0)
        x = {"broker_cpu": g.broker.p.cpu() - bc0, "probe_cpu": g.probe.cpu() - pc0, "sim_cpu": g.sim.cpu() - sc0}
        r = g.finish()
        tl = int(g.rec["recv"].max()) if len(g.rec) else t0
        el = (tl - t0) / 1e9
        r.update(
            mem,
            cpu_s=cpu,
            wall=wall,
            foreign_cpu=max(0, other),
            steal=steal() - q0,
            elapsed=el,
            samples_per_s=frames / el if el > 0 else 0,
            windows_per_s=r["unique"] / el if el > 0 else 0,
            cpu_s_per_msample=cpu / frames * 1e6 if frames else None,
            samples_per_core_s=frames / cpu if cpu > 0 else None,
            cpu_us_per_window=cpu / max(1, r["unique"]) * 1e6,
            rate=rate,
            model=model,
            **x,
        )
        return r, g
    finally:
        for x in (g.imp, g.sim, g.probe, g.broker.p):
            if x and x.alive():
                x.stop()


def rotate(l, k):
    k %= len(l)
    return l[k:] + l[:k]


def sc_latency(a):
    for k in range(a.rounds):
        for hop in a.hops:
            for n in rotate(a.impls, k):
                r, g = run_rate(n, 1, hop, a.rate or 100, a.secs or 10, "lat", a.model)
                np.save(f"{H}/results/lat-{n}-h{hop}-{a.model}-r{int(a.rate or 100)}-{a.label}{k}.npy", g.lat)
                r["round"] = k
                r["label"] = a.label
                save("latency", r)
                show(r)


def sc_throughput(a):
    for k in range(a.rounds):
        for ports in a.ports:
            for hop in a.hops:
                for n in rotate(a.impls, k):
                    r, _ = run_rate(n, ports, hop, a.rate or 0, a.secs or 4, "thr", a.model)
                    r["round"] = k
                    r["label"] = a.label
                    save("throughput", r)
                    show(r)


def sc_cold(a):
    for k in range(a.rounds):
        for n in rotate(a.impls, k):
            g = Rig(n, 1, 1, 1000, "cold", model=a.model, wait=False)
            try:
                g.sim.wait_line("START")
                time.sleep(0.3)
                t = g.start()
                end = time.time() + 30
                while time.time() < end and g.probe.n[0] < 50:
                    time.sleep(0.02)
                cpu = g.imp.cpu()
                mem = g.imp.mem()
                g.finish()
                rec = g.rec
                rec = rec[rec["recv"] > t]
                r = {
                    "impl": n,
                    "cold_ms": (int(rec["recv"].min()) - t) / 1e6 if len(rec) else None,
                    "cpu_start_s": cpu,
                    "round": k,
                    "label": a.label,
                    **mem,
                }
                save("cold", r)
                print(n, r["cold_ms"], flush=True)
            finally:
                for x in (g.imp, g.sim, g.probe, g.broker.p):
                    if x and x.alive():
                        x.stop()


def catchup(rec, logt, t_kill, t_back):
    """backlog = first copies of windows written during the outage and received after it"""
    o = np.argsort(rec["recv"], kind="stable")
    rec = rec[o]
    _, f = np.unique(rec["seq"], return_index=True)
    r = rec[np.sort(f)]
    tw = logt[r["seq"].astype(np.int64)]
    b = r[(tw >= t_kill) & (tw <= t_back) & (r["recv"] >= t_back)]
    out = {
        "outage_windows": int(((logt[W - 1 :] >= t_kill) & (logt[W - 1 :] <= t_back)).sum()),
        "backlog_received": len(b),
    }
    aft = r[r["recv"] >= t_back]
    if len(aft):
        out["reconnect_s"] = (int(aft["recv"].min()) - t_back) / 1e9
    if len(b) > 1:
        dt = (int(b["recv"].max()) - int(b["recv"].min())) / 1e9
        out["catchup_s"] = dt
        n = (aft["recv"] <= b["recv"].max()).sum()
        out["catchup_msgs_s"] = float(n / dt) if dt else None
    return out


def sc_outage(a):
    down, rate = a.down, a.rate or 500
    for k in range(a.rounds):
        for n in rotate(a.impls, k):
            g = Rig(
                n,
                1,
                a.hops[0],
                rate,
                "out",
                model=a.model,
                lane=a.lane,
                secs=5 + down + a.tail,
                sim_args=["--slow", "drop"],
            )
            try:
                g.start()
                g.sim.wait_line("START", 60)
                time.sleep(5)
                tk = g.broker.kill9()
                time.sleep(down / 2)
                c1 = g.imp.cpu()
                time.sleep(down / 2)
                memo = g.imp.mem() if g.imp.alive() else {}
                c2 = g.imp.cpu()
                tb = g.broker.start()
                g.sim.wait_line("END", 120)
                g.drain(4, 180)
                alive = g.imp.alive()
                r = g.finish()
                r.update(catchup(g.rec[g.rec["port"] == 0], g.log[0]["t"], tk, tb))
                L = g.log[0]
                ls = np.setdiff1d(np.arange(W - 1, len(L), a.hops[0]), g.rec["seq"]).astype(np.int64)
                ls = ls[L["st"][ls] == 0]
                d_ = (L["t"][ls].astype(np.int64) - tk) / 1e6
                r.update(
                    lost_sent=len(ls),
                    lost_outside_outage=int(((d_ < 0) | (L["t"][ls] > tb)).sum()),
                    lost_ms_after_kill=[float(d_.min()), float(d_.max())] if len(ls) else None,
                )
                r.update(
                    down=down,
                    rate=rate,
                    round=k,
                    alive=alive,
                    mem_end_of_outage=memo,
                    cpu_outage_per_msample=(c2 - c1) / (down / 2 * rate) * 1e6,
                    label=a.label,
                )
                save("outage", r)
                show(
                    r,
                    "lost_sent lost_ms_after_kill outage_windows backlog_received reconnect_s catchup_s catchup_msgs_s cpu_outage_per_msample",
                )
            finally:
                for x in (g.imp, g.sim, g.probe, g.broker.p):
                    if x and x.alive():
                        x.stop()


def sc_kill(a):
    rate = a.rate or 500
    A, B, C, D, Z = 5, 10, 3, 7, 10
    for k in range(a.rounds):
        for n in rotate(a.impls, k):
            g = Rig(n, 1, a.hops[0], rate, "kill", model=a.model, lane=a.lane, secs=A + B + C + D + Z)
            try:
                g.start()
                g.sim.wait_line("START", 60)
                time.sleep(A)
                tk = g.broker.kill9()
                time.sleep(B)
                g.imp.kill9()
                ti = time.time_ns()
                time.sleep(C)
                tr = g.start()
                time.sleep(D)
                tb = g.broker.start()
                g.sim.wait_line("END", 120)
                g.drain(6, 180)
                r = g.finish()
                L = g.log[0]
                ws = np.arange(W - 1, len(L), a.hops[0])
                got = np.unique(g.rec["seq"][g.rec["port"] == 0]).astype(np.int64)
                tw = L["t"]
                sent = L["st"] == 0
                ws = ws[sent[ws]] if a.hops[0] == 1 else ws
                pre = ws[(tw[ws] < tk)]
                mid = ws[(tw[ws] >= tk) & (tw[ws] < ti)]
                gm = np.intersect1d(mid, got)
                idx = np.nonzero(sent & (tw > ti))[0]
                firstr = int(idx[0]) + W - 1 if len(idx) else len(L)
                post = np.arange(firstr, len(L), a.hops[0])
                post = post[sent[post]]
                r.update(
                    pre_windows=len(pre),
                    pre_lost=len(np.setdiff1d(pre, got)),
                    buffered=len(mid),
                    buffered_lost=len(mid) - len(gm),
                    rpo_ms=(ti - int(tw[gm.max()])) / 1e6 if len(gm) else None,
                    post_windows=len(post),
                    post_lost=len(np.setdiff1d(post, got)) if a.hops[0] == 1 else None,
                    no_reader_frames=int((L["st"] == 2).sum()),
                    restart_to_first_s=None,
                    rate=rate,
                    round=k,
                    label=a.label,
                )
                r.update({"catch_" + x: y for x, y in catchup(g.rec[g.rec["port"] == 0], tw, tk, tb).items()})
                save("killoutage", r)
                show(r, "pre_lost buffered buffered_lost rpo_ms post_windows post_lost dups no_reader_frames")
            finally:
                for x in (g.imp, g.sim, g.probe, g.broker.p):
                    if x and x.alive():
                        x.stop()


SAF = {
    "direct": None,
    "bridge-default": "persistence true\nautosave_interval 1800\n",
    "bridge-tuned": "persistence true\nautosave_interval 5\nmax_inflight_messages 0\nmax_queued_messages 0\nset_tcp_nodelay true\n",
    "bridge-durable": "persistence true\nautosave_on_changes true\nautosave_interval 1\nmax_inflight_messages 0\nmax_queued_messages 0\nset_tcp_nodelay true\n",
    "py-sqlite": "max_inflight_messages 0\nmax_queued_messages 0\n",
}


def sc_saf(a):
    """generator -> local broker A -> forwarder -> remote broker B -> probe; modes: steady, outage (B down while N messages are accepted), kill (forwarder kill -9 after acceptance, then B back)"""
    N = a.count
    for k in range(a.rounds):
        for mode in a.modes:
            for n in rotate([x for x in a.impls if x in SAF] or list(SAF), k):
                if n == "direct" and mode != "steady":
                    continue
                d = f"{H}/run/saf-{n}-{mode}"
                shutil.rmtree(d, ignore_errors=True)
                os.makedirs(d + "/state")
                ap, bp = PORT0 + 20, PORT0 + 21
                b = Broker(d + "/B", bp)
                fw = la = None
                pr = Proc([f"{T}/mqtt-probe", "--port", str(bp), "--id", "probe", "--out", d + "/probe.bin"])
                pr.wait_line("SUBSCRIBED")
                b.save()

                def local():
                    os.makedirs(d + "/A", exist_ok=True)
                    br = (
                        ""
                        if n == "py-sqlite"
                        else f"connection up\naddress 127.0.0.1:{bp}\ntopic bench/# out 1\ncleansession false\nrestart_timeout 1\nremote_clientid bridge-a\nlocal_clientid bridge-a-local\n"
                    )
                    open(d + "/A/m.conf", "w").write(
                        f"listener {ap} 127.0.0.1\nallow_anonymous true\nuser root\npersistence_location {d}/A/\nlog_dest none\n"
                        + SAF[n]
                        + br
                    )
                    p = Proc(["mosquitto", "-c", d + "/A/m.conf"])
                    time.sleep(0.5)
                    return p

                def pyfw():
                    return Proc(
                        [f"{H}/venv/bin/python", f"{H}/peers/py_saf.py"],
                        env={"HB_LOCAL_PORT": str(ap), "HB_REMOTE_PORT": str(bp), "HB_STATE": d + "/state"},
                        log=d + "/fw.log",
                    )

                try:
                    if n != "direct":
                        la = local()
                        if n == "py-sqlite":
                            fw = pyfw()
                    time.sleep(2.5)
                    dut = fw or la or b.p
                    tk = 0
                    if mode != "steady":
                        b.kill9()
                        tk = time.time_ns()
                        time.sleep(0.5)
                    c0 = dut.cpu()
                    t0 = time.time_ns()
                    pub = Proc(
                        [
                            f"{T}/mqtt-pub",
                            "--port",
                            str(bp if n == "direct" else ap),
                            "--count",
                            str(N),
                            "--log",
                            d + "/pub.log",
                            "--inflight",
                            "200",
                        ]
                    )
                    pub.wait_line("PUB", 120)
                    tp = time.time_ns()
                    pub.stop()
                    lost_by = None
                    if mode != "steady":
                        time.sleep(3 if n == "py-sqlite" else 0.5)
                        cacc = dut.cpu() - c0
                        if mode == "kill":
                            dut.kill9()
                            time.sleep(0.5)
                            if n == "py-sqlite":
                                fw = dut = pyfw()
                            else:
                                la = dut = local()
                            c0 = dut.cpu()
                            time.sleep(1)
                        tb = b.start()
                    else:
                        tb = t0
                    end = time.time() + 90
                    last = -1
                    tt = time.time()
                    while time.time() < end and pr.n[0] < N and time.time() - tt < 25:
                        if pr.n[0] != last:
                            last, tt = pr.n[0], time.time()
                        time.sleep(0.05)
                    time.sleep(0.3)
                    cpu = dut.cpu() - c0
                    mem = dut.mem()
                    for x in (pr, fw, la, b.p):
                        if x:
                            x.stop()
                    rec = np.fromfile(d + "/probe.bin", RECT)
                    u = np.unique(rec["seq"])
                    aft = rec[rec["recv"] >= tb]
                    dt = (
                        (int(aft["recv"].max()) - (int(aft["recv"].min()) if mode != "steady" else t0)) / 1e9
                        if len(aft) > 1
                        else 0
                    )
                    r = {
                        "impl": n,
                        "mode": mode,
                        "N": N,
                        "unique": len(u),
                        "lost": N - len(u),
                        "dups": len(rec) - len(u),
                        "accept_s": (tp - t0) / 1e9,
                        "reconnect_s": (int(aft["recv"].min()) - tb) / 1e9 if len(aft) else None,
                        "deliver_msgs_s": len(aft) / dt if dt else None,
                        "cpu_s": cpu,
                        "cpu_us_per_msg": cpu / max(1, len(u)) * 1e6,
                        "round": k,
                        "label": a.label,
                        **mem,
                    }
                    save("saf", r)
                    print({x: (round(y, 2) if isinstance(y, float) else y) for x, y in r.items()}, flush=True)
                finally:
                    for x in (pr, fw, la, b.p):
                        if x and x.alive():
                            x.stop()


def sc_ort(a):
    for k in range(a.rounds):
        for m in ("f32", "int8"):
            for sl, cnt, *pw in ((0, 20000), (10000, 200), (10000, 200, "prewarm")):
                o = json.loads(
                    sp.run(
                        [f"{H}/limit/target/release/ort-bench", str(cnt), str(sl), *pw],
                        env={**os.environ, "HB_MODEL": f"{H}/models/ae_{m}.onnx", "HB_ORT_LIB": LIB},
                        capture_output=True,
                        text=True,
                    ).stdout
                )
                r = {
                    "impl": "bare-ort",
                    "model": m,
                    "sleep_us": sl,
                    "prewarm": bool(pw),
                    "round": k,
                    "label": a.label,
                    **o,
                }
                save("ort", r)
                print(r, flush=True)


def sc_insn(a):
    """instructions per sample under callgrind (AVX2 paths; deterministic): run n and 3n frames, take the difference. Native programs only."""
    for n in a.impls:
        out = []
        for cnt in (a.count // 4, a.count):
            g = Rig(n, 1, a.hops[0], 0, "insn", ["--count", str(cnt)], a.model, lane=a.lane)
            g.im = dict(g.im)
            g.im["cmd"] = (
                f"valgrind --tool=callgrind --callgrind-out-file=/dev/null --log-file={g.d}/vg.log " + g.im["cmd"]
            )
            try:
                g.start()
                g.sim.wait_line("START", 120)
                g.sim.wait_line("END", 500)
                g.drain(4, 60, (cnt - W) // a.hops[0] + 1)
                r = g.finish()
                v = [l for l in open(g.d + "/vg.log") if "Collected" in l]
                out.append((cnt, int(v[-1].split(":")[1]), r["unique"]))
            finally:
                for x in (g.imp, g.sim, g.probe, g.broker.p):
                    if x and x.alive():
                        x.stop()
        (a1, i1, _), (a2, i2, _) = out
        r = {
            "impl": n,
            "hop": a.hops[0],
            "model": a.model,
            "insn_per_sample": (i2 - i1) / (a2 - a1),
            "insn_startup": i1 - (i2 - i1) / (a2 - a1) * a1,
            "label": a.label,
        }
        save("insn", r)
        print(r, flush=True)


def sc_check(a):
    """quick functional check of an implementation: 2 ports x 200 Hz x 5 s, hop 4"""
    for n in a.impls:
        r, g = run_rate(n, 2, 4, 200, 5, "chk", a.model)
        print(json.dumps(r, indent=1))
        ok = (
            r["lost"] == r["dups"] == r["ooo"] == r["unexpected"] == r["score_bad"] == r["t_mismatch"] == 0
            and r["received"] > 0
        )
        print("CHECK", n, "OK" if ok else "FAIL")


def sc_noise(a):
    """noise bytes, truncated frames, one hang-up: does it survive, are windows made of good frames only?"""
    for n in a.impls:
        g = Rig(
            n,
            1,
            1,
            500,
            "noise",
            secs=a.secs or 30,
            lane=a.lane,
            sim_args=["--noise", "0.01", "--partial", "0.01", "--hangup-at", "6", "--hangup-for", "2"],
            wait=True,
        )
        try:
            g.start()
            g.sim.wait_line("START", 60)
            g.sim.wait_line("END", 60)
            g.drain(3, 20)
            alive = g.imp.alive()
            r = g.finish()
            L = g.log[0]
            hang = L["t"][0] + 6 * 10**9
            after = int((g.rec["recv"] > hang + 2 * 10**9 + 10**8).sum())
            okf = (L["st"] == 0) & np.r_[True, L["st"][:-1] != 4]
            cs = np.r_[0, np.cumsum(~okf)]
            clean = [s for s in range(W - 1, len(L)) if cs[s + 1] == cs[s + 1 - W] and L["t"][s] < hang - 5 * 10**7]
            u = np.unique(g.rec["seq"]).astype(np.int64)
            r.update(
                alive=alive,
                clean_windows=len(clean),
                clean_received=len(np.intersect1d(clean, u)),
                received_after_hangup=after,
            )
            save("noise", r)
            show(r, "alive clean_windows clean_received received_after_hangup score_bad")
        finally:
            for x in (g.imp, g.sim, g.probe, g.broker.p):
                if x and x.alive():
                    x.stop()


def show(r, keys=""):
    s = f"{r['impl']:14s} p{r['ports']} h{r['hop']} lost {r['lost']}/{r['expected']} dup {r['dups']} ooo {r['ooo']} bad {r['score_bad']}/{r['t_mismatch']} ovr {r['overrun']}"
    if "lat_us" in r:
        s += " lat " + "/".join(f"{r['lat_us'][k]:.0f}" for k in ("p50", "p99", "max"))
    if "samples_per_s" in r:
        s += f" | {r['samples_per_s']:.0f} smp/s {r['windows_per_s']:.0f} win/s cpu/M {r['cpu_s_per_msample'] or 0:.2f}s pss {r['pss_mb']:.1f} foreign {r['foreign_cpu']:.2f} steal {r['steal']:.2f}"
    for k in keys.split():
        v = r.get(k)
        s += f" {k}={v:.2f}" if isinstance(v, float) else f" {k}={v}"
    print(time.strftime("%H:%M:%S"), s, flush=True)


if __name__ == "__main__":
    os.makedirs(f"{H}/results", exist_ok=True)
    sc = {k[3:]: v for k, v in list(globals().items()) if k.startswith("sc_")}
    p = argparse.ArgumentParser()
    p.add_argument("scenario", choices=sorted(sc))
    p.add_argument("--impls", default="")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--ports", default="1")
    p.add_argument("--hops", default="1")
    p.add_argument("--rate", type=float, default=0)
    p.add_argument("--secs", type=float, default=0)
    p.add_argument("--model", default="f32")
    p.add_argument("--down", type=float, default=60)
    p.add_argument("--lane", type=int, default=0)
    p.add_argument("--count", type=int, default=20000)
    p.add_argument("--modes", default="steady,outage,kill")
    p.add_argument("--label", default="")
    p.add_argument("--tail", type=float, default=15)
    a = p.parse_args()
    a.impls = [x for x in a.impls.split(",") if x] or (list(impls()) if a.scenario not in ("saf",) else list(SAF))
    a.ports = list(map(int, a.ports.split(",")))
    a.hops = list(map(int, a.hops.split(",")))
    a.modes = a.modes.split(",")
    import fcntl

    lk = open(f"{H}/run-lane{a.lane}.lock", "w")
    fcntl.flock(lk, fcntl.LOCK_EX)  # one run at a time per lane
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sc[a.scenario](a)
    finally:
        for x in list(LIVE):
            x.stop()
