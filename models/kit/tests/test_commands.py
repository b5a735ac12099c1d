"""The commands as a user types them, from windows to a packed bundle."""

import contextlib
import io
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

from kit import __main__ as commands
from kit import loop, wire
from kit.errors import Refused

from . import common


def kit(*words: object) -> tuple[int, str, str]:
    """Exit code and what was printed."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", ["kit", *map(str, words)]), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = commands.main()
    return code, out.getvalue(), err.getvalue()


class Commands(unittest.TestCase):
    def test_from_windows_to_a_bundle_that_the_daemon_verifies(self) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            at = pathlib.Path(temporary)

            def done(*words: object) -> str:
                code, out, err = kit(*words)
                self.assertEqual(code, 0, f"{words}: {err}")
                return out

            done("collect", "simulation", "--pumps", 24, "--seconds", 12, "--out", at / "train.parquet")
            test = ("collect", "simulation", "--pumps", 5, "--seed", 3000, "--seconds", 12, "--out", at / "test.parquet")
            done(*test, "--like", at / "train.parquet")
            done("features", "student", "--out", at / "front.onnx")
            done("train", at / "train.parquet", "--test", at / "test.parquet", "--out", at / "teacher.onnx")
            done("distil", at / "train.parquet", "--teacher", at / "teacher.onnx", "--out", at / "student.onnx")
            done("quantise", at / "student.onnx", "--windows", at / "train.parquet", "--out", at / "int8.onnx")
            models = [at / f"{name}.onnx" for name in ("teacher", "student", "int8")]
            windows = ("--windows", at / "test.parquet")
            out = done("evaluate", *models, *windows, "--train", at / "train.parquet", "--plot", at / "sizes.svg")
            for word in ("F1", "FAR", "MAR", "balanced accuracy", "delay"):
                self.assertEqual(out.count(word), 3, out)
            self.assertIn("<svg", (at / "sizes.svg").read_text()[:600])
            chosen = done("choose", *models, *windows, "--deadline-us", 1e6).splitlines()[-1]
            self.assertIn(chosen, ("teacher", "student", "int8"))
            (at / "card.md").write_text("# m 1.0.0\n")
            made = ("--name", "m", "--version", "1.0.0", "--seq", 1, "--threshold", 1.5, "--card", at / "card.md", "--hop", 2048)
            done("bundle", at / "student.onnx", *windows, *made, "--out", at / "m")

            code, _, err = kit("evaluate", at / "student.onnx", "--windows", at / "train.parquet", "--train", at / "train.parquet")
            self.assertEqual(code, 1)
            self.assertIn("refused: leak", err)

            try:
                kentledge = loop.kentledge_program()
            except Refused as why:
                print(f"SKIPPED: {why}", file=sys.stderr)
                return
            if not shutil.which("minisign"):
                print("SKIPPED: no minisign", file=sys.stderr)
                return
            public = wire.new_key(at, "release")
            keys = [{"name": "release", "public": public, "roles": ["model"]}]
            keyset = {"_type": "kentledge.keyset", "version": 1, "expires": "2036-01-01T00:00:00Z", "keys": keys}
            (at / "keyset.json").write_text(json.dumps(keyset))
            for command in (
                [kentledge, "model", "prepare", "m", "--rows", "m-normal.csv"],
                ["minisign", "-Sm", "m/manifest.json", "-s", "release.sec"],
                [kentledge, "model", "pack", "m", "-o", "m.kmb"],
                [kentledge, "model", "verify", "m.kmb", "--keyset", "keyset.json"],
            ):
                said = subprocess.run(command, cwd=at, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
                self.assertEqual(said.returncode, 0, f"{command[:3]}: {said.stderr}")
            bench = subprocess.run(
                [kentledge, "model", "bench", "--json", "--runs", "20", "m.kmb"], cwd=at, capture_output=True, check=True
            )
            (at / "student.json").write_bytes(bench.stdout)
            out = done("choose", at / "student.onnx", "--bench", at / "student.json", "--deadline-us", 1e7)
            self.assertEqual(out.splitlines()[-1], "student")

    def test_csv_with_a_gap_is_refused_on_the_command_line(self) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            path = pathlib.Path(temporary, "x.csv")
            path.write_text("time,a\n" + "".join(f"{n if n < 20 else n + 60},1.5\n" for n in range(40)))
            words = ("collect", "csv", path, "--channels", "a", "--rate-hz", 1, "--steps", 8, "--out", path.with_suffix(".parquet"))
            code, _, err = kit(*words)
            self.assertEqual(code, 1)
            self.assertIn("1 gaps longer than 2500 ms", err)
            code, out, _ = kit(*words, "--gaps", "cut")
            self.assertEqual((code, "4 windows of 8 rows" in out), (0, True), out)

    def test_sample_models_of_the_repository_are_read_with_their_levels(self) -> None:
        level = commands.level_beside(common.MODELS / "vibration/model.onnx", 9.0)
        self.assertLess(level.raise_above, 9.0)
