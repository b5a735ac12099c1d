"""The sample models beside the kit are what their manifests and cards say."""

import hashlib
import json
import unittest

import onnx

from kit import bearing, bundle, evaluate, run, sim

from . import common

NAMES = {"vibration": bearing.student_front, "vibration-int8": bearing.student_front, "vibration-teacher": bearing.teacher_front}


class SampleModels(unittest.TestCase):
    def test_files_are_those_of_the_manifests(self) -> None:
        for name in NAMES:
            folder = common.MODELS / name
            manifest = json.loads((folder / "manifest.json").read_text())
            content = (folder / "model.onnx").read_bytes()
            (file,) = manifest["files"]
            self.assertEqual((file["size"], file["sha256"]), (len(content), hashlib.sha256(content).hexdigest()), name)
            self.assertEqual(manifest["window"]["channels"], list(sim.CHANNELS.names))
            self.assertEqual(
                [o["name"] for o in bundle.named_outputs(onnx.load_model_from_string(content))][:2], ["score", "probabilities"]
            )
            self.assertIn(f"# {name} ", (folder / "card.md").read_text())

    def test_figures_hold_on_pumps_that_no_model_has_seen(self) -> None:
        fresh = sim.fleet(8, 40_000, 18.0)
        found = {}
        for name in NAMES:
            folder = common.MODELS / name
            thresholds = json.loads((folder / "manifest.json").read_text())["thresholds"]
            level = evaluate.Level(thresholds["raise"], thresholds["clear_factor"])
            (score,) = run.outputs(folder / "model.onnx", fresh.x, ["score"])
            found[name] = evaluate.of_windows(score, fresh, level)
            print(f"MEASURED: {name} on 8 unseen simulated pumps: {found[name]}")
        for name in NAMES:
            self.assertGreater(found[name].f1, 0.85, name)
            self.assertLess(found[name].far, 0.04, name)
        # A small set: the figures in the card come from a larger one.
        self.assertGreater(found["vibration"].f1, found["vibration-teacher"].f1 - 0.03)
        self.assertGreater(found["vibration-int8"].f1, found["vibration"].f1 - 0.03)
