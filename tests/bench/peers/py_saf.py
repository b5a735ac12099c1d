#!/usr/bin/env python3
"""Store-and-forward people write: subscribe local QoS1 -> sqlite -> publish remote QoS1, delete on PUBACK."""

import os, queue, sqlite3, threading, time
import paho.mqtt.client as mqtt

E = os.environ.get
lock = threading.Lock()
wake = threading.Event()
mids = {}
last = 0
acks = queue.SimpleQueue()
early = set()
db = sqlite3.connect(os.path.join(E("HB_STATE"), "q.db"), check_same_thread=False)
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA synchronous=NORMAL")
db.execute("CREATE TABLE IF NOT EXISTS q(id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT, payload BLOB)")
db.commit()
V = mqtt.CallbackAPIVersion.VERSION2
loc = mqtt.Client(V, client_id="saf-local", clean_session=False)
rem = mqtt.Client(V, client_id="saf-remote", clean_session=False)
rem.max_queued_messages_set(0)
rem.reconnect_delay_set(1, 5)


def on_msg(c, u, m):
    with lock:
        db.execute("INSERT INTO q(topic,payload) VALUES(?,?)", (m.topic, m.payload))
        db.commit()
    wake.set()


def on_pub(c, u, mid, rc, pr):
    acks.put(mid)
    wake.set()


def reap():
    done = []
    while not acks.empty():
        early.add(acks.get())
    for m in [m for m in early if m in mids]:
        early.discard(m)
        done.append((mids.pop(m),))
    if done:
        with lock:
            db.executemany("DELETE FROM q WHERE id=?", done)
            db.commit()


loc.on_message = on_msg
rem.on_publish = on_pub
loc.on_connect = lambda c, *a: c.subscribe("bench/#", 1)
rem.on_connect = lambda *a: wake.set()


def conn(c, port):
    while True:
        try:
            c.connect("127.0.0.1", port, 60)
            c.loop_start()
            return
        except OSError:
            time.sleep(1)


threading.Thread(target=conn, args=(rem, int(E("HB_REMOTE_PORT"))), daemon=True).start()
conn(loc, int(E("HB_LOCAL_PORT")))
while True:
    wake.wait(1)
    wake.clear()
    reap()
    while rem.is_connected() and len(mids) < 500:
        with lock:
            rows = db.execute("SELECT id,topic,payload FROM q WHERE id>? ORDER BY id LIMIT 100", (last,)).fetchall()
        for i, t, p in rows:
            mids[rem.publish(t, p, qos=1).mid] = i
            last = i
        reap()
        if not rows:
            break
