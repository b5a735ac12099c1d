"""One seeded mistake for each stage, and the check of the kit that catches it."""

import pathlib
import tempfile
import unittest
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from kit import bearing, bundle, checks, choose, evaluate, learn, run, sim
from kit.data import Channels, Windows
from kit.errors import Refused
from kit.evaluate import Level

from . import common


def process(seed: int, machine: str = "m") -> Windows:
    """Two channels that differ clearly: 60 °C and 4 bar."""
    draw = np.random.default_rng(seed)
    x = np.stack([draw.normal(60, 3, (50, 16)), draw.normal(4, 0.3, (50, 16))], axis=2).astype(np.float32)
    return Windows(
        Channels(("temp", "pressure"), ("°C", "bar"), 1.0), x, np.full(50, "ok"), np.full(50, machine), np.full(50, f"{machine}-{seed}"),
        np.arange(50, dtype=np.int64) * 16, np.zeros(50, dtype=bool),
    )  # fmt: skip


class Collect(unittest.TestCase):
    def test_swapped_channels_are_found(self) -> None:
        baseline, fresh = checks.baseline_of(process(1)), process(2)
        checks.same_channels(fresh, fresh.channels.names, baseline)
        with self.assertRaisesRegex(Refused, "temp and pressure look swapped"):
            checks.same_channels(replace(fresh, x=fresh.x[:, :, ::-1]), fresh.channels.names, baseline)

    def test_other_names_are_found(self) -> None:
        with self.assertRaisesRegex(Refused, "in this order"):
            checks.same_channels(process(1), ("pressure", "temp"), checks.baseline_of(process(1)))


class Scale(unittest.TestCase):
    def test_metres_per_second_squared_for_g_are_found(self) -> None:
        windows = common.other()
        baseline = checks.baseline_of(common.small())
        checks.same_channels(windows, windows.channels.names, baseline)
        with self.assertRaisesRegex(Refused, "Another unit or scale"):
            checks.same_channels(replace(windows, x=windows.x * np.float32(9.81)), windows.channels.names, baseline)


class Train(unittest.TestCase):
    def test_test_rows_in_the_training_set_are_found(self) -> None:
        with self.assertRaisesRegex(Refused, "leak: 10 of 10 test windows are also in the training set"):
            checks.no_leak(common.small(), common.small().take(np.arange(10)))

    def test_overlapping_windows_are_found(self) -> None:
        rows = sim.recording(sim.machine("p", 1), "ok", 0, 4, 1)
        all_of = rows.windows(sim.STEPS, sim.STEPS // 2, 1.0)
        even, odd = np.arange(0, len(all_of), 2), np.arange(1, len(all_of), 2)
        with self.assertRaisesRegex(Refused, "share rows"):
            checks.no_leak(all_of.take(even), all_of.take(odd), same_machine=True)

    def test_machine_in_both_sets_is_found(self) -> None:
        pump = sim.machine("p", 1)
        with self.assertRaisesRegex(Refused, "machine p is in training and in test"):
            checks.no_leak(sim.windows_of(pump, 6, 1), sim.windows_of(pump, 6, 2))
        checks.no_leak(sim.windows_of(pump, 6, 1), sim.windows_of(pump, 6, 2), same_machine=True)

    def test_unlabelled_missing_and_unknown_classes_are_found(self) -> None:
        some = common.small()
        for labels, why in (
            (np.where(some.label == "ok", "", some.label), "have no label"),
            (np.where(some.label == "ok", "fine", some.label), "not among the classes"),
            (np.where(some.label == "ball", "inner", some.label), "no window of class ball"),
        ):
            with self.assertRaisesRegex(Refused, why):
                learn.train(replace(some, label=labels), common.plain(), sim.CLASSES)

    def test_dead_channel_and_nan_are_found(self) -> None:
        some = common.small()
        for x, why in ((some.x * np.array([1, 0], np.float32), "not connected"), (np.where(some.x > 1, np.nan, some.x), "not finite")):
            with self.assertRaisesRegex(Refused, why):
                learn.train(replace(some, x=x.astype(np.float32)), common.plain(), sim.CLASSES)


class Distil(unittest.TestCase):
    def test_student_with_swapped_channels_does_not_agree_with_its_teacher(self) -> None:
        some = common.small()
        good = learn.logits(common.student(), common.plain())
        self.assertGreater(learn.agree(good, common.teacher()[1]), 0.85)
        swapped = learn.features(bearing.student_front(), replace(some, x=some.x[:, :, ::-1]))
        with self.assertRaisesRegex(Refused, "another order of classes or channels"):
            learn.agree(learn.logits(common.student(), swapped), common.teacher()[1])

    def test_answers_of_other_windows_are_found(self) -> None:
        with self.assertRaisesRegex(Refused, "not the same set"):
            learn.distil(common.small(), common.plain(), common.teacher()[1][:-1], sim.CLASSES)
        with self.assertRaisesRegex(Refused, "names the teacher's class"):
            learn.agree(learn.logits(common.student(), common.plain()), common.teacher()[1][::-1])


class Quantise(unittest.TestCase):
    def test_calibration_in_another_scale_is_found(self) -> None:
        of = bearing.student_front()
        good = learn.quantise(common.student(), common.plain())
        floating, level = learn.assemble(of, common.student()), 1.0
        self.assertGreater(learn.same_decisions(floating, learn.assemble(of, good), common.other(), level), 0.97)
        wrong = learn.quantise(common.student(), common.plain() * 100)
        with self.assertRaisesRegex(Refused, "int8 decides otherwise"):
            learn.same_decisions(floating, learn.assemble(of, wrong), common.other(), level)

    def test_weights_are_int8_indeed(self) -> None:
        small = learn.quantise(common.student(), common.plain())
        kinds = [t.data_type for t in small.model.graph.initializer if len(t.dims) == 2]
        self.assertEqual(kinds.count(TensorProto.INT8), 3)


class Evaluate(unittest.TestCase):
    def test_figures_are_those_of_a_hand_count(self) -> None:
        truth = np.array([0, 0, 0, 0, 1, 1, 1, 1], dtype=bool)
        decided = np.array([0, 1, 0, 0, 0, 1, 1, 1], dtype=bool)
        of = evaluate.figures(truth, decided, ["r"] * 8, 0.5)
        self.assertEqual((of.f1, of.far, of.mar, of.balanced), (0.75, 0.25, 0.25, 0.75))
        self.assertEqual((of.delay_s, of.unseen), (1.0, 0))

    def test_alarm_clears_below_the_clear_level_and_begins_anew_in_each_recording(self) -> None:
        score = np.array([0, 2, 0.9, 0.7, 0.9, 2, 0.9], np.float32)
        decided = evaluate.decide(score, ["a"] * 6 + ["b"], Level(1.0, 0.8))
        self.assertEqual(decided.tolist(), [False, True, True, False, False, True, False])

    def test_windows_of_one_kind_only_are_refused(self) -> None:
        with self.assertRaisesRegex(Refused, "are healthy"):
            evaluate.figures(np.zeros(4, dtype=bool), np.zeros(4, dtype=bool), ["r"] * 4, 1.0)

    def test_threshold_of_alarmed_or_faulty_windows_is_refused(self) -> None:
        some = common.small()
        healthy = some.take(some.label == "ok")
        score = np.linspace(0, 2, len(healthy), dtype=np.float32)
        self.assertAlmostEqual(evaluate.threshold(score, healthy, 0.05).raise_above, 1.9, delta=0.02)
        alarmed = replace(healthy, alarmed=np.arange(len(healthy)) < 3)
        with self.assertRaisesRegex(Refused, "3 windows with a raised alarm"):
            evaluate.threshold(score, alarmed, 0.05)
        with self.assertRaisesRegex(Refused, "labelled as a fault"):
            evaluate.threshold(np.zeros(len(some), np.float32), some, 0.05)

    def test_threshold_of_too_few_windows_is_refused(self) -> None:
        few = process(1)
        with self.assertRaisesRegex(Refused, "take at least 400"):
            evaluate.threshold(np.zeros(50, np.float32), few, 0.005)

    def test_answer_of_the_oracle_stands_while_windows_are_unsure(self) -> None:
        score = np.array([0, 0.9, 0.9, 1.1, 0, 5, 0.9], np.float32)
        truth = np.array([0, 1, 1, 0, 1, 0, 1], dtype=bool)
        decided, sent = evaluate.escalated(score, truth, ["r"] * 7, Level(1.0, 0.5), band=0.2, share=0.6, burst=1)
        # Sent: the second and the fourth; the third keeps the answer; the fifth and sixth are sure.
        self.assertEqual(decided.tolist(), [False, True, True, False, False, True, True])
        self.assertAlmostEqual(sent, 3 / 7)

    def test_budget_of_zero_changes_nothing(self) -> None:
        score = common.repeated(2, (200,))
        decided, sent = evaluate.escalated(score, score > 0, ["r"] * 200, Level(1.0), 9.0, 0.0)
        self.assertEqual(sent, 0)
        self.assertTrue(np.array_equal(decided, evaluate.decide(score, ["r"] * 200, Level(1.0))))


class Choose(unittest.TestCase):
    @staticmethod
    def variant(name: str, f1: float, p99_us: float, kib: int = 1000, size: int = 10_000) -> choose.Variant:
        figures = evaluate.Figures(f1, 0, 0, 1, 0, 0, 100)
        return choose.Variant(name, figures, run.Cost(p99_us / 2, p99_us, kib, size, "board"))

    def test_best_that_keeps_deadline_and_memory_is_chosen(self) -> None:
        teacher, student, int8 = self.variant("t", 0.95, 9000), self.variant("s", 0.94, 500), self.variant("q", 0.938, 400)
        self.assertEqual(choose.choose([teacher, student, int8], choose.Board(10_000)).name, "t")
        self.assertEqual(choose.choose([teacher, student, int8], choose.Board(1000)).name, "q")
        self.assertEqual(choose.choose([student, self.variant("q", 0.90, 400)], choose.Board(1000)).name, "s")

    def test_nothing_that_fits_is_refused_with_the_figures(self) -> None:
        with self.assertRaisesRegex(Refused, "s: p99 500 µs, 1000 KiB"):
            choose.choose([self.variant("s", 0.9, 500)], choose.Board(100))

    def test_foreign_file_is_no_bench(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "b.json")
            path.write_text('{"provider": "cpu", "p50_us": 10}\n')
            with self.assertRaisesRegex(Refused, "not the output of"):
                choose.bench(path)
            path.write_text('{"provider": "cpu", "p50_us": 10, "p99_us": 20, "memory_mib": 40}\n')
            self.assertEqual((choose.bench(path).p99_us, choose.bench(path).peak_kib), (20, 40 * 1024))
            with self.assertRaisesRegex(Refused, "nothing measured on npu"):
                choose.bench(path, "npu")


class Bundle(unittest.TestCase):
    RELEASE = bundle.Release("m", "1.0.0", 1, Level(1.0), 100, None, sim.STEPS)

    def single(self) -> onnx.ModelProto:
        return learn.assemble(bearing.student_front(), common.student(), 1, "m")

    def test_output_without_a_meaning_is_refused(self) -> None:
        model = self.single()
        model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 34]))
        with self.assertRaisesRegex(Refused, "output features of the model"):
            bundle.named_outputs(model)

    def test_model_without_a_score_or_a_fixed_shape_is_refused(self) -> None:
        model = self.single()
        del model.graph.output[0]
        with self.assertRaisesRegex(Refused, "no output `score`"):
            bundle.named_outputs(model)
        with self.assertRaisesRegex(Refused, "no fixed shape"):
            bundle.named_outputs(learn.assemble(bearing.student_front(), common.student()))

    def test_baseline_of_alarmed_windows_is_refused(self) -> None:
        some = common.other()
        with tempfile.TemporaryDirectory() as folder, self.assertRaisesRegex(Refused, "baseline would be learnt"):
            bundle.write(pathlib.Path(folder, "m"), self.single(), self.RELEASE, replace(some, alarmed=some.label == "ok"), "# m\n")

    def test_windows_with_other_channels_are_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder, self.assertRaisesRegex(Refused, "the windows have temp,pressure"):
            bundle.write(pathlib.Path(folder, "m"), self.single(), self.RELEASE, process(1), "# m\n")
