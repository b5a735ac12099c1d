"""Rows from a real broker, and from a tape that a real daemon recorded."""

import json
import os
import pathlib
import pty
import subprocess
import sys
import tempfile
import threading
import time
import tty
import unittest

from kit import collect, fleet, loop, wire
from kit.data import Channels
from kit.errors import Refused

TWO = Channels(("a", "b"), ("", ""), 10.0)


class Sources(unittest.TestCase):
    def test_stream_on_a_broker_becomes_rows_once_and_in_order(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            broker = fleet.Broker(pathlib.Path(folder))
            device = wire.connect("127.0.0.1", broker.port, "device")
            device.loop_start()
            stop = threading.Event()

            def publish() -> None:
                # The newest first, and all of it again and again, as after a broken connection.
                while not stop.wait(0.2):
                    for seq in reversed(range(10)):
                        record = {"seq": seq, "t": 0, "in_t_ns": [seq * 100_000_000] * 2, "v": {"a": seq, "b": None if seq == 4 else 1.5}}
                        device.publish("kl/plant/p/up/m/raw", json.dumps({"data": [record]}), qos=1)

            sender = threading.Thread(target=publish)
            sender.start()
            try:
                rows = collect.from_broker(wire.connect("127.0.0.1", broker.port, "kit"), "plant/p", "raw", 3.0, TWO)
            finally:
                stop.set()
                sender.join()
                device.loop_stop()
                broker.stop()
        self.assertEqual(rows.values[:, 0].tolist(), list(range(10)))
        self.assertEqual(len(rows.gaps(250)), 0)
        with self.assertRaisesRegex(Refused, "1 rows with a bad or missing value"):
            rows.windows(4, 4, 250)

    def test_tape_of_a_daemon_becomes_rows(self) -> None:
        try:
            kentledge = loop.kentledge_program()
        except Refused as why:
            print(f"SKIPPED: {why}", file=sys.stderr)
            self.skipTest("no kentledge")
        with tempfile.TemporaryDirectory() as folder:
            at = pathlib.Path(folder)
            master, slave = pty.openpty()
            tty.setraw(slave)
            config = at / "kentledge.toml"
            config.write_text(
                f'[device]\nstate_dir = "{at / "state"}"\nbus = "off"\nsite = "plant"\nid = "p"\n'
                f'[source.s]\npath = "{os.ttyname(slave)}"\ncolumns = ["n", "a", "b"]\nseq = "n"\n[channel.a]\n[channel.b]\n'
                '[stream.raw]\nchannels = ["a", "b"]\n'
            )
            recorder = subprocess.Popen(
                [kentledge, "record", "--config", str(config), "--out", str(at / "t.tape")], stderr=subprocess.PIPE, text=True
            )
            assert recorder.stderr is not None
            for line in recorder.stderr:
                if "serial port open" in line:
                    break
            # The first line after a port was opened may be the rest of one.
            time.sleep(0.3)
            for n in range(30):
                os.write(master, f"{n},{n / 2},1\n".encode())
                time.sleep(0.01)
            time.sleep(1.0)
            recorder.terminate()
            recorder.stderr.read()
            self.assertEqual(recorder.wait(20), 0)
            rows = collect.from_tape(at / "t.tape", config, "raw", TWO, kentledge)
            with self.assertRaisesRegex(Refused, "no channel c in the stream"):
                collect.from_tape(at / "t.tape", config, "raw", Channels(("a", "c"), ("", ""), 10.0), kentledge)
        self.assertEqual(rows.values[-5:, 0].tolist(), [12.5, 13.0, 13.5, 14.0, 14.5])
