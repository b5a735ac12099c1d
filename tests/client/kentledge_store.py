#!/usr/bin/env python3
"""Stores the records of kentledge devices, each once: in PostgreSQL, InfluxDB 1 or Parquet files. Copy it and change it.

    kentledge_store.py --from mqtt://broker:1884 --into postgresql:///plant 'kl/plant/+/up/p/+' 'kl/plant/+/up/loss'
    kentledge_store.py --from 'amqp://user:secret@a,b,c/?queue=records' --into http://localhost:8086/plant
    kentledge_store.py --from mqtt://broker:1884 --into parquet:/srv/plant 'kl/plant/+/up/m/+'

Delivery is at least once: a record comes again until it was acknowledged. Each record has one place, by (device, stream, seq). So
this program writes a batch, waits until the database has it on disk, and only then acknowledges. Kill it at any moment: what was
not acknowledged comes again, and takes the place that it had. On any error it ends; systemd starts it again (Restart=always).
Needs paho-mqtt 2, or pika 1.3 for amqp; psycopg 3 for PostgreSQL; pyarrow for Parquet.
"""
import argparse
import base64
import collections
import datetime
import json
import os
import pathlib
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

BATCH = 500  # messages
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)

# `at_ns`: wall time of the record, ns since 1970; None while the device's clock was not set.
Row = collections.namedtuple("Row", "device stream seq at_ns mono_ns boot clk hist lineage record")


def rows(topic, payload):
    """The records of a message. What is no record (state, birth) has none."""
    device, stream = re.fullmatch(r"(?:.*/)?kl/([^/]+/[^/]+)/up/(.+)", topic).groups()
    whole = json.loads(payload) if payload else {}
    start = whole.get("ts") and (datetime.datetime.fromisoformat(whole["ts"].replace("Z", "+00:00")) - EPOCH)
    start = start and round(start / datetime.timedelta(milliseconds=1)) * 1_000_000
    for record in whole.get("data", []):
        at_ns = start + record["t"] if start else None
        yield Row(device, stream, record["seq"], at_ns, whole["mono_ns"] + record["t"], whole["boot"], whole["clk"],
                  whole["hist"], whole.get("lineage"), record)


def when(r):
    return EPOCH + datetime.timedelta(microseconds=r.at_ns // 1000) if r.at_ns else None


def fields(value, name=""):
    """Flat: `{"v": {"a": 1}}` is `v_a` 1. Every number is a float, so that a column has one type."""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in parts for k, v in fields(part, f"{name}_{key}" if name else str(key)).items()}
    if value is None or name in ("seq", "t"):
        return {}
    return {name: value if isinstance(value, bool | str) else float(value)}


class Postgres:
    """One row for each record; its primary key does the deduplication."""

    TABLES = """create table if not exists records (device text, stream text, seq bigint, at timestamptz, mono_ns bigint not null,
        boot text not null, clk text not null, hist boolean not null, lineage jsonb, record jsonb not null,
        primary key (device, stream, seq));
    create table if not exists meta (device text, stream text, meta jsonb not null, primary key (device, stream))"""

    def __init__(self, url):
        import psycopg
        self.db, self.json = psycopg.connect(url), psycopg.types.json.Jsonb
        with self.db.transaction():
            # Several consumers may start at once.
            self.db.execute("select pg_advisory_xact_lock(20261127)")
            self.db.execute(self.TABLES)

    def write(self, batch, metas):
        def values(r):
            return (*r[:3], when(r), *r[4:8], self.json(r.lineage), self.json(r.record))
        # In one order, so that two consumers do not wait for each other.
        batch = sorted(batch, key=lambda r: r[:3])
        with self.db.transaction(), self.db.cursor() as cursor:
            cursor.executemany(f"insert into records values ({','.join(['%s'] * 10)}) on conflict do nothing", map(values, batch))
            cursor.executemany("insert into meta values (%s, %s, %s) on conflict (device, stream) do update set meta = excluded.meta",
                               [(*key, self.json(meta)) for key, meta in sorted(metas.items())])


class Influx:
    """One point for each record. A point is replaced by one with the same tags and time, so its time must be the record's own: the
    record's time in µs, and in the place of the ns `seq` mod 1000, because rows of one read have the same time."""

    def __init__(self, url):
        self.base, _, self.db = url.rpartition("/")

    def line(self, r):
        def tag(text):
            return re.sub(r"([,= ])", r"\\\1", text)

        def field(value):
            if isinstance(value, str):
                return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
            return str(value)
        tags = {"device": r.device, "stream": r.stream}
        kind, at = r.stream.split("/")[0], r.at_ns
        if at is None:
            # The clock was not set: the time since boot, under the name of the boot.
            kind, at, tags["boot"] = kind + "_unset", r.mono_ns, r.boot
        at = at // 1000 * 1000 + r.seq % 1000
        names = "".join(f",{k}={tag(v)}" for k, v in tags.items())
        values = "".join(f",{tag(k)}={field(v)}" for k, v in fields(r.record).items())
        return f"{kind}{names} seq={r.seq}i,hist={r.hist}{values} {at}"

    def write(self, batch, _metas):
        body = "\n".join(map(self.line, batch)).encode()
        url = f"{self.base}/write?" + urllib.parse.urlencode({"db": self.db, "precision": "ns"})
        try:
            urllib.request.urlopen(urllib.request.Request(url, body), timeout=30).close()
        except urllib.error.HTTPError as why:
            sys.exit(f"write to InfluxDB: {why}: {why.read().decode()}")


class Parquet:
    """A file holds the numbers N to N + 9999 of a stream, and is replaced as a whole. One consumer for each folder."""

    EACH = 10_000

    def __init__(self, url):
        self.folder = pathlib.Path(url.removeprefix("parquet:"))

    def place(self, device, stream):
        site, name = device.split("/")
        return self.folder / f"site={site}" / f"device={name}" / f"stream={stream.replace('/', '.', 1).replace('/', '_')}"

    def write(self, batch, metas):
        import pyarrow as arrow
        import pyarrow.parquet as parquet
        files = collections.defaultdict(dict)
        for r in batch:
            at = {"seq": r.seq, "at": when(r), "mono_ns": r.mono_ns, "boot": r.boot, "clk": r.clk, "hist": r.hist}
            model = {"model": r.lineage["model"]} if r.lineage else {}
            first = r.seq // self.EACH * self.EACH
            files[self.place(r.device, r.stream) / f"{first:020}.parquet"][r.seq] = at | model | fields(r.record)
        for path, new in files.items():
            old = parquet.ParquetFile(path).read().to_pylist() if path.exists() else []
            all_rows = dict(sorted((new | {row["seq"]: row for row in old}).items())).values()
            names = dict.fromkeys(name for row in all_rows for name in row)
            table = arrow.table({name: [row.get(name) for row in all_rows] for name in names})
            self.replace(path, lambda to, table=table: parquet.write_table(table, to))
        for (device, stream), meta in metas.items():
            text = json.dumps(meta).encode()
            self.replace(self.place(device, stream) / "_meta.json", lambda to, text=text: to.write(text))

    @staticmethod
    def replace(path, write):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        with new.open("wb") as to:
            write(to)
            to.flush()
            os.fsync(to.fileno())
        new.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


class Store:
    """Takes messages, writes batches."""

    def __init__(self, sink, rejected, verbose):
        self.sink, self.rejected, self.verbose = sink, rejected, verbose
        self.batch, self.metas, self.tokens = [], {}, []

    def take(self, topic, payload, token):
        try:
            stream = re.fullmatch(r"(?:.*/)?kl/([^/]+/[^/]+)/up/meta/(.+)", topic)
            if stream and payload:
                device, name = stream.groups()  # of measurements the topic says NAME only
                self.metas[device, name if "/" in name else f"m/{name}"] = json.loads(payload)
            else:
                self.batch += rows(topic, payload)
        except (ValueError, KeyError, TypeError, AttributeError) as why:
            # Not from a device of this version: kept beside, so that it stops nothing.
            print(f"reject message on {topic}: {why!r}", file=sys.stderr, flush=True)
            with open(self.rejected, "a") as file:
                file.write(json.dumps({"topic": topic, "payload": base64.b64encode(payload).decode()}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.tokens.append(token)

    def flush(self, acknowledge):
        if self.verbose:
            print(f"writing {len(self.batch)} records", file=sys.stderr, flush=True)
        if self.batch or self.metas:
            self.sink.write(self.batch, self.metas)
        acknowledge(self.tokens)
        self.batch, self.metas, self.tokens = [], {}, []


def by_mqtt(url, a, store):
    """A session that outlives its connection. All in one thread: an acknowledgement never meets another connection."""
    import paho.mqtt.client as mqtt
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=a.id, protocol=mqtt.MQTTv5, manual_ack=True)
    client.username_pw_set(url.username, url.password) if url.username else None
    if url.scheme == "mqtts":
        client.tls_set(ca_certs=a.ca, certfile=a.cert, keyfile=a.key)
    client.on_connect = lambda *_: client.subscribe([(topic, 1) for topic in a.topics])
    client.on_message = lambda _client, _data, m: store.take(m.topic, m.payload, (m.mid, m.qos))
    session = mqtt.Properties(mqtt.PacketTypes.CONNECT)
    session.SessionExpiryInterval, session.ReceiveMaximum = a.session_s, 2 * BATCH
    client.connect(url.hostname, url.port or 8883, clean_start=False, properties=session)
    due = time.monotonic()
    while client.loop(0.1) == mqtt.MQTT_ERR_SUCCESS:
        if len(store.tokens) >= BATCH or (store.tokens and time.monotonic() > due):
            store.flush(lambda tokens: [client.ack(*token) for token in tokens])
            due = time.monotonic() + a.every_s
    sys.exit("the connection to the broker ended")


def by_amqp(url, a, store):
    """One of several consumers of a queue; the broker gives what one did not acknowledge to another."""
    import pika
    login = pika.PlainCredentials(urllib.parse.unquote(url.username or "guest"), urllib.parse.unquote(url.password or "guest"))
    hosts = [host.partition(":") for host in url.netloc.rpartition("@")[2].split(",")]
    nodes = [pika.ConnectionParameters(name, int(port or 5672), credentials=login, heartbeat=20) for name, _, port in hosts]
    channel = pika.BlockingConnection(nodes).channel()
    channel.basic_qos(prefetch_count=2 * BATCH)
    # RabbitMQ writes the levels of a topic with dots, and dots with slashes.
    swap = str.maketrans("./", "/.")
    queue = urllib.parse.parse_qs(url.query)["queue"][0]
    due = time.monotonic()
    for method, _, payload in channel.consume(queue, inactivity_timeout=0.1):
        if method:
            store.take(method.routing_key.translate(swap), payload, method.delivery_tag)
        if len(store.tokens) >= BATCH or (store.tokens and time.monotonic() > due):
            store.flush(lambda tokens: channel.basic_ack(tokens[-1], multiple=True))
            due = time.monotonic() + a.every_s


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", required=True, help="mqtt://, mqtts:// or amqp://")
    parser.add_argument("--into", required=True, help="postgresql://, http:// (InfluxDB) or parquet:FOLDER")
    parser.add_argument("--id", default="kentledge-store", help="client id: the name of the session")
    parser.add_argument("--session-s", type=int, default=7 * 86400, help="the broker keeps what comes meanwhile so long")
    parser.add_argument("--every-s", type=float, default=1, help="at least so long between two batches that are not full")
    parser.add_argument("--rejected", default="rejected.jsonl", help="file for messages that cannot be read")
    parser.add_argument("--verbose", action="store_true", help="a line for each batch")
    for name in ["--ca", "--cert", "--key"]:
        parser.add_argument(name)
    parser.add_argument("topics", nargs="*", help="what to subscribe to; not with amqp")
    a = parser.parse_args()
    sink = {"postgresql": Postgres, "http": Influx, "https": Influx, "parquet": Parquet}[a.into.partition(":")[0]](a.into)
    url = urllib.parse.urlsplit(a.source)
    print("storing", file=sys.stderr, flush=True)
    (by_amqp if url.scheme == "amqp" else by_mqtt)(url, a, Store(sink, a.rejected, a.verbose))


if __name__ == "__main__":
    main()
