"""The responder answers what is well formed, in time and its own, once."""

import hashlib
import json
import pathlib
import struct
import tempfile
import time
import unittest
from collections import Counter
from typing import Any

import numpy as np

from kit import bearing, fleet, learn, respond, run, sim, wire
from kit.evaluate import Level

from . import common

TOPIC = "kl/plant/pump-1/up/x/bearing"


def question(i: int = 0, **more: Any) -> bytes:
    x = common.other().x[i]
    values = np.ascontiguousarray(x, "<f4").tobytes()
    header = {
        "v": 1, "id": "9f86d081884c7d65", "device": "plant/pump-1", "pipeline": "bearing",
        "win": "sha256:" + hashlib.sha256(values).hexdigest(),
        "left_ms": 5000, "dtype": "f32", "shape": list(x.shape), "channels": list(sim.CHANNELS.names), "units": ["g", "g"],
    } | more  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"KLX1" + struct.pack("<I", len(text)) + text + values


def responder(**more: Any) -> respond.Responder:
    model = learn.assemble(bearing.student_front(), common.student())
    return respond.Responder(model, "vibration-teacher@1.0.0", Level(1.0), **more)


class Respond(unittest.TestCase):
    def test_answer_has_topic_verdict_and_lineage(self) -> None:
        of = responder()
        (score,) = run.outputs(of.model, common.other().x[:20], ["score"])
        for i, value in enumerate(score.ravel().tolist()):
            reply = of.answer(TOPIC, question(i))
            assert reply is not None
            topic, said = reply[0], json.loads(reply[1])
            self.assertEqual(said["verdict"], "anomaly" if value > 1.0 else "normal")
            self.assertEqual((said["id"], said["model"], said["sha256"]), ("9f86d081884c7d65", "vibration-teacher@1.0.0", of.sha256))
            self.assertAlmostEqual(said["score"], value, places=3)
            digest = common.other().digests()[i].removeprefix("sha256:")
            self.assertEqual(topic, f"kl/plant/pump-1/dn/x/bearing/{digest}")
        self.assertEqual(of.counted["anomaly"] + of.counted["normal"], 20)

    def test_score_near_the_level_is_unsure(self) -> None:
        reply = responder(band=1e6).answer(TOPIC, question())
        assert reply is not None
        self.assertEqual(json.loads(reply[1])["verdict"], "unsure")

    def test_each_window_is_answered_by_exactly_one_of_three_instances(self) -> None:
        all_of = [responder(instance=i, instances=3) for i in range(3)]
        for i in range(30):
            self.assertEqual(sum(of.answer(TOPIC, question(i)) is not None for of in all_of), 1)

    def test_malformed_foreign_late_and_swapped_windows_get_no_answer(self) -> None:
        good = question()
        for payload, topic, word in (
            (b"", TOPIC, "malformed"),
            (b"KLX2" + good[4:], TOPIC, "malformed"),
            (good[:-4], TOPIC, "malformed"),
            (good[:-1] + bytes([good[-1] ^ 1]), TOPIC, "malformed"),
            (question(shape=[2, 2]), TOPIC, "malformed"),
            (question(channels=["vib_nde", "vib_de"]), TOPIC, "other channels"),
            (good, "kl/plant/pump-2/up/x/bearing", "other topic"),
        ):
            of = responder()
            self.assertIsNone(of.answer(topic, payload))
            self.assertEqual(of.counted, {word: 1})
        of = responder()
        self.assertIsNone(of.answer(TOPIC, question(left_ms=10), time.monotonic() - 1))
        self.assertEqual(of.counted, {"late": 1})


class Shared(unittest.TestCase):
    def test_two_responders_of_a_group_answer_each_window_once_on_a_real_broker(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            broker = fleet.Broker(pathlib.Path(folder))
            clients = []
            try:
                heard: Counter[str] = Counter()
                ears = wire.connect("127.0.0.1", broker.port, "ears")
                ears.on_message = lambda _c, _d, message: heard.update([message.topic])
                ears.subscribe("kl/plant/+/dn/x/#", qos=1)
                clients.append(ears)
                both = [responder(), responder()]
                for of in both:
                    client = wire.connect("127.0.0.1", broker.port, "respond")
                    of.serve(client, "plant", "teachers")
                    clients.append(client)
                for client in clients:
                    client.loop_start()

                def answers() -> bool:
                    ears.publish(TOPIC, question(0), qos=1)
                    time.sleep(0.2)
                    return bool(heard)

                # Subscriptions are there once a first window is answered.
                fleet.until("first answer", 30, answers)
                heard.clear()
                for i in range(1, 21):
                    ears.publish(TOPIC, question(i), qos=1)
                fleet.until("20 answers", 30, lambda: len(heard) >= 20)
                time.sleep(0.3)
                wanted = {f"kl/plant/pump-1/dn/x/bearing/{d.removeprefix('sha256:')}" for d in common.other().digests()[1:21]}
                self.assertEqual({t: n for t, n in heard.items() if t in wanted}, dict.fromkeys(wanted, 1))
                self.assertTrue(all(of.counted.total() > 0 for of in both), "both work")
            finally:
                for client in clients:
                    client.loop_stop()
                broker.stop()
