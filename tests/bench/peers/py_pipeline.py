#!/usr/bin/env python3
"""What people write: pyserial -> numpy -> onnxruntime -> paho-mqtt QoS1. PERSIST=none: paho's own in-memory queue. PERSIST=sqlite: an outbox table."""

import json, os, queue, sqlite3, threading, time
from collections import deque
import numpy as np, onnxruntime as ort, serial
import paho.mqtt.client as mqtt

E = os.environ.get
TTYS = E("HB_TTYS").split(",")
HOP = int(E("HB_HOP", "1"))
TOPIC = E("HB_TOPIC", "bench")
PERSIST = E("PERSIST", "none")
so = ort.SessionOptions()
if E("ORT_THREADS"):
    so.intra_op_num_threads = int(E("ORT_THREADS"))
sess = ort.InferenceSession(E("HB_MODEL"), so, providers=["CPUExecutionProvider"])
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=E("HB_CLIENT_ID", "py"), clean_session=False)
client.reconnect_delay_set(1, 5)
client.max_queued_messages_set(0)


class Outbox:
    """sqlite outbox: insert on produce, delete on PUBACK, everything left is (re)sent after (re)connect."""

    def __init__(s, path):
        s.db = sqlite3.connect(path, check_same_thread=False)
        s.lock = threading.Lock()
        s.mid = {}
        s.acks = queue.SimpleQueue()
        s.early = set()
        s.wake = threading.Event()
        s.db.execute("PRAGMA journal_mode=WAL")
        s.db.execute("PRAGMA synchronous=NORMAL")
        s.db.execute(
            "CREATE TABLE IF NOT EXISTS outbox(id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT, payload TEXT)"
        )
        s.db.commit()
        s.last = 0
        client.on_publish = s.on_pub
        client.on_disconnect = s.on_dis
        threading.Thread(target=s.run, daemon=True).start()

    def put(s, topic, payload):
        with s.lock:
            s.db.execute("INSERT INTO outbox(topic,payload) VALUES(?,?)", (topic, payload))
            s.db.commit()
        s.wake.set()

    def on_pub(s, c, u, mid, rc, props):
        s.acks.put(mid)
        s.wake.set()  # no lock here: paho holds its own

    def on_dis(s, *a):
        s.wake.set()

    def reap(s):
        done = []
        while not s.acks.empty():
            s.early.add(s.acks.get())
        for m in [m for m in s.early if m in s.mid]:
            s.early.discard(m)
            done.append((s.mid.pop(m),))
        if done:
            with s.lock:
                s.db.executemany("DELETE FROM outbox WHERE id=?", done)
                s.db.commit()

    def run(s):
        while True:
            s.wake.wait(1)
            s.wake.clear()
            s.reap()
            while client.is_connected() and len(s.mid) < 500:
                with s.lock:
                    rows = s.db.execute(
                        "SELECT id,topic,payload FROM outbox WHERE id>? ORDER BY id LIMIT 100", (s.last,)
                    ).fetchall()
                for i, t, p in rows:
                    s.mid[client.publish(t, p, qos=1).mid] = i
                    s.last = i
                s.reap()
                if not rows:
                    break


box = Outbox(os.path.join(E("HB_STATE", "."), "outbox.db")) if PERSIST == "sqlite" else None


def emit(topic, payload):
    if box:
        box.put(topic, payload)
    else:
        client.publish(topic, payload, qos=1)


def connect():
    while True:
        try:
            client.connect(E("HB_MQTT_HOST", "127.0.0.1"), int(E("HB_MQTT_PORT", "1883")), 60)
            client.loop_start()
            return
        except OSError:
            time.sleep(1)


def reader(i, dev):
    win = deque(maxlen=64)
    n = 0
    topic = f"{TOPIC}/{i}"
    ser = serial.Serial(dev, 115200, timeout=1)

    def lines_plain():
        while True:
            yield ser.readline()

    def lines_chunk():  # what one writes after profiling readline()
        buf = b""
        while True:
            buf += ser.read(max(1, ser.in_waiting))
            *ls, buf = buf.split(b"\n")
            yield from ls

    it = lines_chunk() if E("READ") == "chunk" else lines_plain()
    while True:
        try:
            line = next(it)
        except (serial.SerialException, OSError):
            return
        if not line:
            continue
        try:
            f = line.decode().strip().split(",")
            seq = int(f[0])
            t = int(f[1])
            v = [float(x) for x in f[2:10]]
        except (ValueError, IndexError):
            continue
        if len(v) != 8:
            continue
        win.append(v)
        n += 1
        if n >= 64 and (n - 64) % HOP == 0:
            x = np.array(win, dtype=np.float32).T[None]
            score = sess.run(["score"], {"x": x})[0][0]
            emit(topic, json.dumps({"seq_last": seq, "t_last_ns": t, "score": float(score)}))


threading.Thread(target=connect, daemon=True).start()
ts = [threading.Thread(target=reader, args=(i, d), daemon=True) for i, d in enumerate(TTYS)]
[t.start() for t in ts]
[t.join() for t in ts]
