"""What several tests share: small sets, made once."""

import functools
import os
import pathlib

import numpy as np
import onnx

from kit import bearing, learn, sim
from kit.data import Floats, Windows

ROOT = pathlib.Path(__file__).resolve().parents[3]
MODELS = ROOT / "models"


def data() -> pathlib.Path | None:
    """The recordings beside the repository, or None."""
    for folder in (os.environ.get("KENTLEDGE_DATA"), str(ROOT.parent / "shared/data"), str(ROOT / "shared/data")):
        if folder and pathlib.Path(folder).is_dir():
            return pathlib.Path(folder)
    return None


@functools.cache
def small() -> Windows:
    """Twelve pumps, some 12 s each."""
    return sim.fleet(12, 500, 12.0)


@functools.cache
def other() -> Windows:
    """Four other pumps."""
    return sim.fleet(4, 700, 12.0)


@functools.cache
def plain() -> Floats:
    return learn.features(bearing.student_front(), small())


@functools.cache
def teacher() -> tuple[learn.Head, Floats]:
    """A teacher on the student's own features (quick), and what it says."""
    head = learn.train(small(), plain(), sim.CLASSES, members=1)
    return head, learn.logits(head, plain())


@functools.cache
def student() -> learn.Head:
    return learn.distil(small(), plain(), teacher()[1], sim.CLASSES)


@functools.cache
def vibration() -> onnx.ModelProto:
    """The sample model."""
    return onnx.load(str(MODELS / "vibration/model.onnx"))


def repeated(seed: int, shape: tuple[int, ...]) -> Floats:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)
