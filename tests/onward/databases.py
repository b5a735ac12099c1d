#!/usr/bin/env python3
"""tests/client/kentledge_store.py against the real databases, killed in the middle: no record is lost, none is stored twice.

    tests/onward/databases.py target/debug/kentledge [--rows 3000]

A real daemon publishes by a real mosquitto; PostgreSQL (Debian), InfluxDB 1 (Debian) and Parquet files (pyarrow) are filled at once.
Each consumer is killed (SIGKILL) again and again while rows come. In the end every message of the daemon is published a second time.
A database that is not installed is SKIPPED."""
import argparse
import glob
import importlib.util
import json
import os
import pathlib
import pwd
import shutil
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

import world

sys.path.insert(0, str(world.CACHE / "python"))
TOPICS = ["kl/plant/+/up/m/+", "kl/plant/+/up/loss", "kl/plant/+/up/meta/+"]


def other_user():
    """PostgreSQL does not run as root."""
    return pwd.getpwnam("postgres" if any(u.pw_name == "postgres" for u in pwd.getpwall()) else "nobody")


def postgres(w):
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if not found or not importlib.util.find_spec("psycopg"):
        return world.missing("PostgreSQL: no server (Debian: postgresql) or no psycopg (PyPI)")
    programs, number, data = pathlib.Path(found[-1]).parent, world.port(), w.folder / "postgres"
    data.mkdir()
    as_user = {}
    if os.geteuid() == 0:
        user = other_user()
        os.chown(data, user.pw_uid, user.pw_gid)
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    made = w.start("initdb", [programs / "initdb", "-D", data / "db", "-A", "trust", "-U", "plant", "--no-sync"], cwd=data, **as_user)
    assert made.wait(60) == 0, w.log("initdb")
    # Durable, as a user has it: fsync and synchronous_commit stay on.
    server = w.start("postgres", [programs / "postgres", "-D", data / "db", "-p", str(number), "-h", "127.0.0.1", "-k", ""], cwd=data,
                     start_new_session=True, **as_user)
    into = f"postgresql://plant@127.0.0.1:{number}/plant"
    world.within(30, "PostgreSQL starts", lambda: "ready to accept connections" in w.log("postgres"))
    import psycopg
    with psycopg.connect(into.removesuffix("plant") + "postgres", autocommit=True) as db:
        db.execute("create database plant")

    def stored():
        with psycopg.connect(into) as db:
            return db.execute("select seq, (record->'in_seq'->>0)::int, (record->'v'->>'a')::float from records "
                              "where device = 'plant/pump-1' and stream = 'm/raw'").fetchall()
    return into, stored, server


def influx(w):
    program = shutil.which("influxd") or (str(p) if (p := world.CACHE / "influxdb/usr/bin/influxd").exists() else None)
    if not program:
        return world.missing("InfluxDB: no influxd (Debian: influxdb)")
    number, rpc, home = world.port(), world.port(), w.folder / "influx"
    conf = w.folder / "influx.conf"
    conf.write_text(f"""reporting-disabled = true\nbind-address = "127.0.0.1:{rpc}"\n[meta]\ndir = "{home}/meta"
[data]\ndir = "{home}/data"\nwal-dir = "{home}/wal"\n[http]\nbind-address = "127.0.0.1:{number}"\n""")
    server = w.start("influx", [program, "-config", conf], start_new_session=True)
    world.within(30, "InfluxDB listens", lambda: world.listens(number))

    def ask(query):
        url = f"http://127.0.0.1:{number}/query"
        with urllib.request.urlopen(url, urllib.parse.urlencode({"db": "plant", "q": query}).encode(), timeout=30) as answer:
            return json.load(answer)["results"][0].get("series", [{"values": []}])[0]["values"]

    def stored():
        values = ask("select seq, in_seq_0, v_a from m where device = 'plant/pump-1' and \"stream\" = 'm/raw'")
        return [(int(seq), int(row), a) for _, seq, row, a in values]
    ask("create database plant")
    return f"http://127.0.0.1:{number}/plant", stored, server


def parquet(w):
    if not importlib.util.find_spec("pyarrow"):
        return world.missing("Parquet: no pyarrow (PyPI)")
    folder = w.folder / "parquet"

    def stored():
        import pyarrow.parquet as parquet
        files = folder.glob("site=plant/device=pump-1/stream=m.raw/*.parquet")
        rows = [row for file in files for row in parquet.ParquetFile(file).read(["seq", "in_seq_0", "v_a"]).to_pylist()]
        return [(row["seq"], int(row["in_seq_0"]), row["v_a"]) for row in rows]
    return f"parquet:{folder}", stored, None


def sql(into):
    """The queries of the how-to page, on what is stored: no hole, and the one that is made is found."""
    import psycopg
    page = (world.ROOT / "daemon/docs/howto/data.md").read_text()
    holes, view = [block.split("```")[0] for block in page.split("```sql\n")[1:]]
    with psycopg.connect(into) as db:
        assert db.execute(holes).fetchall() == [], "holes"
        db.execute("delete from records where stream = 'm/raw' and seq = 100")
        found = db.execute(holes).fetchall()
        assert [(stream, hole.lower, hole.upper) for _, stream, hole in found] == [("m/raw", 100, 101)], found
        # A row of the time before the clock was set.
        db.execute(view)
        before = db.execute("select wall from readings where stream = 'm/raw' and seq = 50").fetchone()
        db.execute("update records set at = null where stream = 'm/raw' and seq < 60")
        after = db.execute("select wall from readings where stream = 'm/raw' and seq = 50").fetchone()
        assert abs((before[0] - after[0]).total_seconds()) < 0.1, (before, after)
        clock = db.execute("select meta->>'clock' from meta where stream = 'm/raw'").fetchone()
        assert clock == ("boot",), clock
        db.rollback()


class Heard:
    """What the daemon published, by a client that is never killed."""

    def __init__(self, number):
        import paho.mqtt.client as mqtt
        self.messages, ready = [], threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_message = lambda _c, _d, m: self.messages.append((m.topic, m.payload))
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.connect("127.0.0.1", number)
        self.client.subscribe([(topic, 1) for topic in TOPICS])
        self.client.loop_start()
        assert ready.wait(10)

    def raw(self):
        return sum(json.loads(payload)["seq"]["n"] for topic, payload in list(self.messages) if topic.endswith("/m/raw"))

    def again(self):
        messages, self.messages = list(self.messages), []
        for topic, payload in messages:
            self.client.publish(topic, payload, 1).wait_for_publish(10)
        return len(messages)


def play(w, rows):
    number = w.mosquitto()
    sinks = {name: made for name, make in [("postgres", postgres), ("influx", influx), ("parquet", parquet)] if (made := make(w))}
    assert sinks, "no database at all"
    heard = Heard(number)
    source = f"mqtt://127.0.0.1:{number}"
    consumers = {name: w.consumer(f"store-{name}", into, source, *TOPICS) for name, (into, _, _) in sinks.items()}
    # Until each has its session, nothing waits for it at the broker.
    log = lambda: w.log("mosquitto")
    world.within(30, "all consumers have subscribed", lambda: all(f" store-{name} " in log() for name in consumers))
    time.sleep(0.5)
    _, sensor, config = w.daemon([source])
    until, n = time.monotonic() + 90, 0
    # Rows come until each consumer was killed three times while it was at work.
    while n < rows or (min(consumer.starts for consumer in consumers.values()) < 4 and time.monotonic() < until):
        some = 20 if n < rows else 1
        sensor.write(b"".join(b"%d,%d\n" % (i, i % 997) for i in range(n, n + some)))
        n += some
        time.sleep(0.02)
        [consumer.kill_at_work(sinks[name][2]) for name, consumer in consumers.items()]
    rows = n
    [consumer.thaw(sinks[name][2]) for name, consumer in consumers.items()]
    [consumer.tend() for consumer in consumers.values()]
    world.within(20, "the daemon published all rows", lambda: heard.raw() >= rows)

    def all_stored():
        for name, (_, stored, _) in sinks.items():
            def whole(found=stored):
                return len({row for _, row, _ in found()}) >= rows
            world.within(40, f"all rows are in {name}", whole)
    all_stored()
    # The same again, and a stop in the middle of it. One more row: when it is there, all before it has come.
    again = heard.again()
    [consumer.kill() for consumer in consumers.values()]
    [consumer.tend() for consumer in consumers.values()]
    sensor.write(b"%d,%d\n" % (rows, rows % 997))
    rows += 1
    all_stored()
    want = [(i, i % 997) for i in range(rows)]
    for name, (_, stored, _) in sinks.items():
        found = sorted(stored())
        assert [(row, int(a)) for _, row, a in found] == want, f"{name}: {len(found)} rows of {rows}"
        assert len({seq for seq, _, _ in found}) == rows, f"{name}: a number twice"
        rejected = w.folder / f"store-{name}.rejected"
        assert not rejected.exists(), rejected.read_text()[:500]
    if "postgres" in sinks:
        sql(sinks["postgres"][0])
    kills = {name: consumer.starts - 1 for name, consumer in consumers.items()}
    print(f"MEASURED: data onward: {rows} rows, each once in {', '.join(sinks)}; consumers killed {kills}; {again} messages came twice")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--rows", type=int, default=3000)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with world.World(folder, os.path.abspath(a.program)) as w:
            try:
                play(w, a.rows)
            except AssertionError:
                for file in sorted(w.folder.glob("*.log")):
                    print(f"--- {file.name}\n{file.read_text(errors='replace')[-1500:]}", file=sys.stderr)
                raise


if __name__ == "__main__":
    main()
