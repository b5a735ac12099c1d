"""Features: the ONNX nodes give what SciPy gives, and refuse what they cannot do."""

import unittest
from dataclasses import replace

import numpy as np

from kit import bearing, front, reference, run, sim
from kit.data import Floats
from kit.errors import Refused

from . import common


def worst(of: front.FrontEnd, x: Floats) -> float:
    """The largest difference, relative for features above 1."""
    (got,) = run.outputs(front.front_model(of), x, ["features"])
    want = reference.features(of, x)
    return float((np.abs(got - want) / np.maximum(1, np.abs(want))).max())


class Features(unittest.TestCase):
    def test_features_of_every_kind_of_1000_windows_equal_scipy_within_1e_5(self) -> None:
        some = sim.fleet(14, 40, 24.0).x
        x = np.concatenate([some, common.repeated(3, (40, sim.STEPS, 2)), 1e3 * some[:20] + 50])[:1000]
        self.assertEqual(len(x), 1000)
        of = bearing.student_front()
        others = (
            front.Bands(1, (50, 400, 1000, 2000, 3000)),
            front.Mel(0, 12, 50, 2700),
            front.Envelope(0, 1500, 3100, bearing.lines()),
        )
        found = worst(front.FrontEnd(of.channels, of.steps, (*of.blocks, *others)), x)
        print(f"MEASURED: features against SciPy on 1,000 windows: at most {found:.1e}")
        self.assertLess(found, 1e-5)

    def test_teacher_features_equal_scipy_within_1e_5(self) -> None:
        self.assertLess(worst(bearing.teacher_front(), common.small().x[:30]), 1e-5)

    def test_long_envelope_equals_scipy_within_1e_5(self) -> None:
        blocks = (front.Envelope(0, 1500, 3100, bearing.lines()), front.Envelope(1, 1000, 1400, bearing.lines()))
        self.assertLess(worst(front.FrontEnd(sim.CHANNELS, sim.STEPS, blocks), common.small().x[:30]), 1e-5)

    def test_short_envelope_equals_scipy_within_1e_5_for_each_stride_and_pool(self) -> None:
        x = common.small().x[:40]
        for stride, pool, taps in ((2, 1, 16), (4, 1, 32), (4, 2, 33), (2, 4, 24)):
            block = front.ShortEnvelope(1, ((1500, 2600), (800, 1200)), bearing.lines(), taps, stride, pool)
            found = worst(front.FrontEnd(sim.CHANNELS, sim.STEPS, (block, front.Stats(0))), x)
            print(f"MEASURED: ShortEnvelope, {taps} taps, stride {stride}, pool {pool}, against SciPy: at most {found:.1e}")
            self.assertLess(found, 1e-5)

    def test_bands_of_one_block_are_those_of_a_block_each(self) -> None:
        bands, x = ((800.0, 1600.0), (1500.0, 3100.0)), common.small().x[:20]

        def features(*blocks: front.Block) -> dict[str, Floats]:
            of = front.FrontEnd(sim.CHANNELS, sim.STEPS, blocks)
            (got,) = run.outputs(front.front_model(of), x, ["features"])
            return dict(zip(of.names(), got.T, strict=True))

        both = features(front.ShortEnvelope(0, bands, bearing.lines()))
        each = features(*(front.ShortEnvelope(0, (band,), bearing.lines()) for band in bands))
        self.assertEqual(both.keys(), each.keys())
        for name in both:
            self.assertLess(float(np.abs(both[name] - each[name]).max()), 1e-5, name)

    def test_short_envelope_takes_less_time_than_the_long_one(self) -> None:
        lines, cost = bearing.lines(), {}
        for block in (front.Envelope(0, 1500, 3100, lines), front.ShortEnvelope(0, ((1500, 3100),), lines)):
            model = front.front_model(front.FrontEnd(sim.CHANNELS, sim.STEPS, (front.Stats(0), block)))
            cost[type(block).__name__] = run.cost(model.SerializeToString(), common.small().x[:32], 150).p50_us
        print(f"MEASURED: front end of statistics and one envelope, p50: {', '.join(f'{k} {v:.0f} µs' for k, v in cost.items())}")
        self.assertLess(cost["ShortEnvelope"], cost["Envelope"])

    def test_wrong_filter_is_seen_by_the_comparison(self) -> None:
        block = front.ShortEnvelope(0, ((1500, 3100),), bearing.lines())
        of, x = front.FrontEnd(sim.CHANNELS, sim.STEPS, (block,)), common.small().x[:5]
        (got,) = run.outputs(front.front_model(of), x, ["features"])
        for wrong in (replace(block, bands_hz=((1700.0, 3100.0),)), replace(block, taps=24), replace(block, pool=2)):
            other = reference.features(front.FrontEnd(sim.CHANNELS, sim.STEPS, (wrong,)), x)
            self.assertGreater(float(np.abs(got - other).max()), 1e-3)

    def test_short_envelope_that_cannot_show_its_lines_is_refused(self) -> None:
        for stride, pool, high, why in (
            (8, 1, 2200.0, "2bpfi is above half of 800 Hz"),
            (4, 2, 2200.0, "2bpfi is above half of 800 Hz"),
            (3, 1, 2200.0, "no power of two"),
            (4, 3, 2200.0, "no power of two"),
            (8, 1, 3100.0, "does not fit"),
            (4, 1, 3300.0, "above half the rate"),
        ):
            with self.assertRaisesRegex(Refused, why):
                bands = ((1000.0, 1400.0), (1500.0, high))
                block = front.ShortEnvelope(0, bands, (("2bpfi", 390.0, 11.0),), stride=stride, pool=pool)
                front.FrontEnd(sim.CHANNELS, sim.STEPS, (block,))

    def test_wrong_window_function_is_seen_by_the_comparison(self) -> None:
        of = front.FrontEnd(sim.CHANNELS, sim.STEPS, (front.Mel(0, 8, 50, 2000),))
        model = front.front_model(of)
        for node in model.graph.node:
            if node.op_type == "HannWindow":
                node.op_type = "HammingWindow"
        x = common.small().x[:5]
        (got,) = run.outputs(model, x, ["features"])
        self.assertGreater(float(np.abs(got - reference.features(of, x)).max()), 1e-3)

    def test_dead_channel_gives_finite_features(self) -> None:
        (got,) = run.outputs(front.front_model(bearing.student_front()), np.zeros((1, sim.STEPS, 2), np.float32), ["features"])
        self.assertTrue(np.isfinite(got).all())

    def test_gain_of_a_sensor_changes_the_level_only(self) -> None:
        of, x = bearing.student_front(), common.small().x[:20]
        level = [name.startswith("rms") for name in of.names()]
        model = front.front_model(of)
        (a,) = run.outputs(model, x, ["features"])
        for gain in (1e-3, 1e3):
            (b,) = run.outputs(model, x * np.float32(gain), ["features"])
            self.assertLess(float(np.abs(b - a - np.where(level, np.log10(gain), 0)).max()), 1e-4, gain)

    def test_slope_and_offset_of_a_sensor_change_nothing(self) -> None:
        x = common.small().x[:4]
        ramp = np.linspace(0, 5, sim.STEPS, dtype=np.float32)[None, :, None]
        model = front.front_model(bearing.student_front())
        (a,), (b,) = run.outputs(model, x, ["features"]), run.outputs(model, x + ramp + 3, ["features"])
        self.assertLess(float(np.abs(a - b).max()), 2e-3)

    def test_band_above_half_the_rate_is_refused(self) -> None:
        with self.assertRaisesRegex(Refused, "above half the rate"):
            front.FrontEnd(sim.CHANNELS, sim.STEPS, (front.Mel(0, 8, 50, 4000),))

    def test_window_that_is_no_power_of_two_is_refused(self) -> None:
        with self.assertRaisesRegex(Refused, "no power of two"):
            front.FrontEnd(sim.CHANNELS, 2000, ())

    def test_channel_that_does_not_exist_is_refused(self) -> None:
        with self.assertRaisesRegex(Refused, "no channel 2"):
            front.FrontEnd(sim.CHANNELS, sim.STEPS, (front.Stats(2),))


class Physics(unittest.TestCase):
    def test_defect_frequencies_of_a_6205_are_those_in_catalogues(self) -> None:
        of = sim.BEARING_6205
        # SKF's 6205 as the Case Western Reserve bearing data centre lists it.
        for value, catalogue in ((of.bpfo, 3.5848), (of.bpfi, 5.4152), (2 * of.bsf, 4.7135), (of.ftf, 0.39828)):
            self.assertAlmostEqual(value, catalogue, delta=2e-4)

    def test_each_fault_shows_its_own_line_in_the_envelope(self) -> None:
        pump = sim.machine("p", 3)
        names = bearing.student_front().names()
        model = front.front_model(bearing.student_front())
        mean = {}
        for fault in sim.CLASSES:
            windows = sim.recording(pump, fault, 1.5, 10.0, 1).windows(sim.STEPS, sim.STEPS, 1.0)
            mean[fault] = run.outputs(model, windows.x, ["features"])[0].mean(axis=0)
        for fault, line in (("outer", "bpfo@"), ("inner", "bpfi@"), ("ball", "2bsf@")):
            at = next(i for i, name in enumerate(names) if name.startswith(line))
            self.assertGreater(mean[fault][at], mean["ok"][at] + 0.3, fault)
