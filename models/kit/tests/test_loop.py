"""Parts of the loop that need no daemon."""

import pathlib
import unittest
from typing import Any

import numpy as np

from kit import fleet, loop, sim
from kit.errors import Refused
from kit.evaluate import Level


def figures(false: int, missed: int) -> dict[str, Any]:
    return {"false": false, "healthy": 80, "missed": missed, "faulty": 36}


class Promise(unittest.TestCase):
    def test_30_percent_fewer_false_alarms_and_no_more_missed_ones_pass(self) -> None:
        loop.better({"before": {loop.ODD: figures(20, 3)}, "after": {loop.ODD: figures(14, 3)}})

    def test_too_few_fewer_or_more_missed_ones_are_refused(self) -> None:
        for false, missed, why in ((15, 3, "not 30 % fewer"), (0, 4, "more than before")):
            with self.assertRaisesRegex(Refused, why):
                loop.better({"before": {loop.ODD: figures(20, 3)}, "after": {loop.ODD: figures(false, missed)}})


class Fleet(unittest.TestCase):
    def device(self) -> fleet.Device:
        return fleet.Device(sim.machine("pump-1", 1), pathlib.Path("."), 0, "kentledge")

    def test_alarm_holds_between_its_changes(self) -> None:
        device = self.device()
        device.changes = {3: True, 6: False, 8: True}
        self.assertEqual(device.decided(2, 5).tolist(), [False, True, True, True, False])
        self.assertEqual(device.decided(9, 2).tolist(), [True, True])

    def test_count_of_alarms_is_that_of_a_hand_count(self) -> None:
        truth, decided = np.array([0, 0, 1, 1], dtype=bool), np.array([1, 0, 1, 0], dtype=bool)
        self.assertEqual(loop.Count.of(truth, decided), loop.Count(1, 2, 1, 2))

    def test_story_holds_what_a_sensor_with_counts_can_say(self) -> None:
        story = fleet.story(sim.machine("pump-1", 1), 3, 1, 1)
        counts = story.windows.x / fleet.G_PER_COUNT
        self.assertLess(float(np.abs(counts - np.round(counts)).max()), 1e-2)
        self.assertEqual(int(story.truth.sum()), 6)
        self.assertFalse(np.signbit(story.windows.x[story.windows.x == 0]).any())

    def test_windows_with_an_alarm_are_labelled_first_then_unsure_ones(self) -> None:
        device = self.device()
        device.scores = {i: {"score": s} for i, s in enumerate((-3.0, 0.9, 2.0, 0.0))}
        device.changes = {2: True, 3: False}
        story = fleet.story(sim.machine("pump-1", 1), 4, 1, 1)
        order = loop.to_label(device, 0, story.windows.take(np.arange(4)), Level(1.0))
        self.assertEqual(order.tolist(), [2, 1, 3, 0])

    def test_only_the_loose_guard_tells_pump_3_from_others(self) -> None:
        self.assertEqual([pump.guard_g > 0 for pump in loop.pumps()], [False, False, True, False])
