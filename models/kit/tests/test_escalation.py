"""A real daemon sends the windows of which it is unsure, and the kit's responder answers them."""

import json
import pathlib
import shutil
import sys
import tempfile
import time
import unittest

from kit import bundle, fleet, loop, respond, sim, wire
from kit.errors import Refused

ESCALATE = "[pipeline.bearing.escalate]\nband = 2.0\nmax_per_hour = 100\nmax_kib_day = 10240\ndeadline_ms = 60000\n"


class Escalation(unittest.TestCase):
    def test_unsure_windows_of_a_daemon_are_answered_by_the_teacher(self) -> None:
        try:
            kentledge = loop.kentledge_program()
        except Refused as why:
            print(f"SKIPPED: {why}", file=sys.stderr)
            self.skipTest("no kentledge")
        if not shutil.which("minisign"):
            print("SKIPPED: no minisign", file=sys.stderr)
            self.skipTest("no minisign")
        with tempfile.TemporaryDirectory() as temporary:
            at = pathlib.Path(temporary)
            (at / "keys").mkdir()
            roles = {"ops": ["command"], "release": ["model"]}
            keys = [{"name": name, "public": wire.new_key(at / "keys", name), "roles": of} for name, of in roles.items()]
            keyset = at / "keyset.json"
            keyset.write_text(json.dumps({"_type": "kentledge.keyset", "version": 1, "expires": "2036-01-01T00:00:00Z", "keys": keys}))
            model, level = loop.sample("vibration")
            release = bundle.Release("vibration", "1.0.0", 1, level, 1000, None, sim.STEPS)
            packed = loop.packed(at, "first", model, release, sim.fleet(4, 7000, 8.0), at / "keys", kentledge)
            pump = loop.pumps()[2]
            broker = fleet.Broker(at)
            device = fleet.Device(pump, at / pump.name, broker.port, kentledge, more=ESCALATE)
            operator = wire.Operator(wire.connect("127.0.0.1", broker.port, "ops"), "ops", at / "keys/ops.sec")
            of = fleet.Fleet(broker, [device], operator)
            teacher, teacher_level = loop.sample("vibration-teacher")
            responder = respond.Responder(teacher, "vibration-teacher@1.0.0", teacher_level)
            client = wire.connect("127.0.0.1", broker.port, "respond")

            def online() -> bool:
                of.listen()
                return device.address in operator.nonces

            try:
                operator.listen(fleet.SITE)
                responder.serve(client)
                client.loop_start()
                device.start(packed, keyset)
                device.ready()
                # Without a connection no window is sent, and none later.
                fleet.until("birth", 30, online)
                of.play({pump.name: fleet.story(pump, 20, 2, 5).windows})
                unsure = sum(abs(s["score"] - level.raise_above) <= 2 for s in device.scores.values())

                end = time.monotonic() + 30
                while len(device.answers) < unsure and time.monotonic() < end:
                    of.listen()
                    time.sleep(0.1)
                time.sleep(0.3)
                of.listen()
            finally:
                client.loop_stop()
                of.stop()
            said = device.log()
        print(
            f"MEASURED: escalation: {unsure} of {len(device.scores)} windows unsure, {len(device.answers)} answers of the teacher published"
        )
        self.assertGreater(unsure, 3)
        # A window is sent at most once, and not while another one is slow: on a busy machine some are left out.
        self.assertGreaterEqual(len(device.answers), unsure // 2, said[-3000:])
        self.assertEqual(responder.counted.total(), len(device.answers), said[-3000:])
        self.assertEqual({answer["lineage"] for answer in device.answers}, {"cloud:vibration-teacher@1.0.0"})
