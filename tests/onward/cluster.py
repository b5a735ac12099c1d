#!/usr/bin/env python3
"""Three RabbitMQ 4 nodes, two real daemons, a quorum queue with three consumers; a node and a consumer are killed while rows come.

    tests/onward/cluster.py target/debug/kentledge [--rows 2000]

Needs root, mmdebstrap, PostgreSQL, openssl. RabbitMQ comes from Debian trixie into the cache, once (250 MB; minutes). pump-1 has the MQTT
addresses of all nodes, pump-2 those of MQTT in a WebSocket with TLS. In the end each row of both is in the database, once."""
import argparse
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import databases
import world

sys.path.insert(0, str(world.STORE.parent))
import kentledge_store  # noqa: E402

SYSTEM = world.CACHE / "rabbitmq-trixie"
CHROOT = shutil.which("chroot") or "/usr/sbin/chroot"
NODES = [1, 2, 3]


def system():
    """Debian's packages, unpacked and configured, to chroot into."""
    if not (SYSTEM / "usr/lib/rabbitmq").exists():
        made = SYSTEM.with_suffix(".new")
        shutil.rmtree(made, ignore_errors=True)
        made.parent.mkdir(parents=True, exist_ok=True)
        # No documents, and a unit is not started here.
        without = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "locale")]
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--format=directory", *without,
                        '--aptopt=Apt::Install-Recommends "false"', "--include=rabbitmq-server", "trixie", made], check=True)
        made.rename(SYSTEM)


@contextlib.contextmanager
def place():
    """The nodes' folder, by its path within the system; gone afterwards."""
    system()
    folder = pathlib.Path(tempfile.mkdtemp(dir=SYSTEM / "tmp"))
    try:
        yield pathlib.Path("/") / folder.relative_to(SYSTEM)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Node:
    def __init__(self, w, inside, i, certs):
        self.w, self.i, self.inside, self.starts = w, i, inside, 1
        self.amqp, self.mqtt, self.wss, self.dist = (world.port() for _ in range(4))
        home = SYSTEM / inside.relative_to("/")
        (home / f"n{i}.plugins").write_text("[rabbitmq_mqtt,rabbitmq_web_mqtt].\n")
        (home / f"n{i}.conf").write_text(f"""listeners.tcp.1 = 127.0.0.1:{self.amqp}
mqtt.listeners.tcp.1 = 127.0.0.1:{self.mqtt}
web_mqtt.tcp.listener = 127.0.0.1:{world.port()}
web_mqtt.ssl.listener = 127.0.0.1:{self.wss}
web_mqtt.ssl.cacertfile = {certs}/ca.pem
web_mqtt.ssl.certfile = {certs}/server.pem
web_mqtt.ssl.keyfile = {certs}/server.key
mqtt.durable_queue_type = quorum
cluster_partition_handling = pause_minority
log.console.level = warning
cluster_formation.peer_discovery_backend = classic_config
""" + "".join(f"cluster_formation.classic_config.nodes.{n} = n{n}@localhost\n" for n in NODES))
        self.env = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(inside), "LANG": "C.UTF-8", "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(w.epmd), "RABBITMQ_NODENAME": f"n{i}@localhost", "RABBITMQ_DIST_PORT": str(self.dist),
            "RABBITMQ_MNESIA_BASE": f"{inside}/n{i}", "RABBITMQ_LOG_BASE": f"{inside}/log", "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": f"{inside}/n{i}.conf", "RABBITMQ_ENABLED_PLUGINS_FILE": f"{inside}/n{i}.plugins",
            "RABBITMQ_PID_FILE": f"{inside}/n{i}.pid",
            # Idle schedulers sleep: three nodes share two processors with the rest.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none +S 2:2",
        }

    def start(self):
        program = [CHROOT, SYSTEM, "/usr/lib/rabbitmq/bin/rabbitmq-server"]
        self.child = self.w.start(f"n{self.i}", program, env=self.env, start_new_session=True)
        self.w.callback(self.kill)

    def is_up(self):
        return self.w.log(f"n{self.i}").count("completed with") >= self.starts

    def ctl(self, *words):
        run = [CHROOT, SYSTEM, "/usr/lib/rabbitmq/bin/rabbitmqctl", "--node", f"n{self.i}@localhost", *words]
        done = subprocess.run(run, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, f"rabbitmqctl {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def start_again(self):
        self.starts += 1
        self.start()

    def kill(self):
        """As the loss of a machine: all its processes at once."""
        if self.child.poll() is None:
            os.killpg(self.child.pid, 9)
            self.child.wait()


def certificates(folder):
    """For `localhost`, by an authority of our own."""
    run = lambda *words: subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, cwd=folder)
    run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key", "-out", "ca.pem",
        "-days", "2", "-subj", "/CN=test authority", "-addext", "basicConstraints=critical,CA:TRUE")
    run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "server.key", "-out", "server.csr",
        "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")
    run("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-days", "2", "-extfile", "names", "-out", "server.pem")


def cluster(w, inside):
    certificates(SYSTEM / inside.relative_to("/"))
    cookie = SYSTEM / inside.relative_to("/") / ".erlang.cookie"
    cookie.write_text("kentledge")
    cookie.chmod(0o400)
    w.epmd = world.port()
    w.start("epmd", [CHROOT, SYSTEM, "epmd"], env={"PATH": "/usr/bin", "ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(w.epmd)})
    nodes = [Node(w, inside, i, inside) for i in NODES]
    for node in nodes:
        node.start()
    for node in nodes:
        world.within(150, f"node {node.i} starts", node.is_up)
    return nodes


def queue(nodes):
    import pika
    channel = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", nodes[0].amqp)).channel()
    channel.queue_declare("records", durable=True, arguments={"x-queue-type": "quorum", "x-quorum-initial-group-size": 3})
    for key in ["kl.plant.*.up.m.*", "kl.plant.*.up.loss"]:
        channel.queue_bind("records", "amq.topic", key)
    channel.connection.close()


def play(w, rows, inside):
    if not (made := databases.postgres(w)):
        return
    into, _, _ = made
    import psycopg
    began = time.monotonic()
    nodes = cluster(w, inside)
    queue(nodes)
    print(f"MEASURED: cluster: three RabbitMQ nodes joined in {time.monotonic() - began:.0f} s")
    home = SYSTEM / inside.relative_to("/")
    _, one, _ = w.daemon([f"mqtt://127.0.0.1:{node.mqtt}" for node in nodes], "pump-1")
    addresses = [f"wss://localhost:{node.wss}/ws" for node in nodes[1:] + nodes[:1]]
    _, two, _ = w.daemon(addresses, "pump-2", mqtt=f'ca_file = "{home}/ca.pem"\n')
    hosts = ",".join(f"127.0.0.1:{node.amqp}" for node in nodes)
    with psycopg.connect(into) as db:
        db.execute(kentledge_store.Postgres.TABLES)
    consumers = [w.consumer(f"store-{i}", into, f"amqp://guest:guest@{hosts}/?queue=records") for i in NODES]

    def stored():
        with psycopg.connect(into) as db:
            return db.execute("select device, (record->'in_seq'->>0)::int, count(*) from records where stream = 'm/raw' "
                              "group by 1, 2").fetchall()

    def newest(device):
        return max((row for of, row, _ in stored() if of == f"plant/{device}"), default=-1)

    def feed(to):
        for i in range(feed.next, to):
            for sensor in (one, two):
                sensor.write(b"%d,%d\n" % (i, i % 997))
            time.sleep(0.005)
            [consumer.tend() for consumer in consumers]
        feed.next = to
    feed.next = 0
    feed(rows // 3)
    world.within(60, "rows arrive before anything is killed", lambda: newest("pump-1") > 0 and newest("pump-2") > 0)
    # The node that pump-1 is connected to.
    nodes[0].kill()
    killed = time.monotonic()
    feed(rows // 3 + 40)
    for device in ("pump-1", "pump-2"):
        world.within(120, f"{device} goes on", lambda device=device: ([c.tend() for c in consumers], newest(device) >= rows // 3 + 30)[1])
        took = time.monotonic() - killed
        print(f"MEASURED: cluster: a node of three killed: {device}'s rows are in the database again after {took:.1f} s")
    feed(rows * 2 // 3)
    consumers[0].kill()
    feed(rows)
    whole = {(f"plant/{device}", i) for device in ("pump-1", "pump-2") for i in range(rows)}
    world.within(120, "all rows are in the database", lambda: ([c.tend() for c in consumers], {row[:2] for row in stored()} >= whole)[1])
    found = stored()
    assert {row[:2] for row in found} == whole and all(n == 1 for _, _, n in found), "a row is lost or there twice"
    assert all(consumer.starts > 0 for consumer in consumers) and consumers[0].starts > 1
    print(f"MEASURED: cluster: {len(whole)} rows of two daemons by three consumers, one node and one consumer killed: none lost, "
          "none twice")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--rows", type=int, default=2000)
    a = parser.parse_args()
    missing = [name for name in ("mmdebstrap", "openssl") if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        return world.missing(f"the RabbitMQ cluster: {'no ' + ', '.join(missing) if missing else 'not root'}")
    with place() as inside, tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with world.World(folder, os.path.abspath(a.program)) as w:
            try:
                play(w, a.rows, inside)
            except BaseException:
                for file in sorted(w.folder.glob("*.log")):
                    print(f"--- {file.name}\n{file.read_text(errors='replace')[-1500:]}", file=sys.stderr)
                raise


if __name__ == "__main__":
    main()
