"""The sample models: front ends for the simulated 6205 bearing, and the recipe that makes teacher, student and int8 variant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from . import checks, evaluate, learn, run, sim
from .data import Windows
from .front import Block, FrontEnd, Mel, ShortEnvelope, Stats


def lines(width: float = 0.016) -> tuple[tuple[str, float, float], ...]:
    """Lines of the envelope's spectrum: (name, Hz, ± Hz). Load changes the speed by 1.5 %, so the width grows with the frequency."""
    bearing, speed = sim.BEARING_6205, sim.SPEED_HZ
    turns = {
        "ftf": bearing.ftf,
        "1x": 1.0,
        "2x": 2.0,
        "3x": 3.0,
        "4x": 4.0,
        "bpfo": bearing.bpfo,
        "2bpfo": 2 * bearing.bpfo,
        "3bpfo": 3 * bearing.bpfo,
        "bpfi": bearing.bpfi,
        "2bpfi": 2 * bearing.bpfi,
        "bpfi-1x": bearing.bpfi - 1,
        "bpfi+1x": bearing.bpfi + 1,
        "2bsf": 2 * bearing.bsf,
        "4bsf": 4 * bearing.bsf,
        "2bsf-ftf": 2 * bearing.bsf - bearing.ftf,
        "2bsf+ftf": 2 * bearing.bsf + bearing.ftf,
    }
    return tuple((name, times * speed, max(1.6, width * times * speed)) for name, times in turns.items())


def bands(low: int, high: int, wide: int, step: int) -> tuple[tuple[float, float], ...]:
    """Bands of one width, in Hz."""
    return tuple((at, at + wide) for at in range(low, high - wide + 1, step))


def student_front() -> FrontEnd:
    """Statistics of both ends, and of the drive end the envelopes of three bands and a wide one: one filter and one product."""
    drive = ShortEnvelope(0, (*bands(800, 3200, 800, 800), (1500, 3100)), lines(), taps=24, pool=2)
    return FrontEnd(sim.CHANNELS, sim.STEPS, (Stats(0), Stats(1), drive))


def teacher_front() -> FrontEnd:
    """Fine spectra, and envelopes in 48 bands of three widths at both ends: it finds the resonance wherever it is, for twelve times the
    features."""
    blocks: list[Block] = [Stats(0), Stats(1), Mel(0, 24, 50, 2700), Mel(1, 24, 50, 2700)]
    for channel in (0, 1):
        blocks += [
            ShortEnvelope(channel, bands(1000, 3200, 400, 200), lines(), taps=64, stride=8),
            ShortEnvelope(channel, bands(800, 3200, 800, 200), lines()),
            ShortEnvelope(channel, bands(800, 3200, 1600, 200), lines()),
        ]
    return FrontEnd(sim.CHANNELS, sim.STEPS, tuple(blocks))


@dataclass(frozen=True)
class Sizes:
    """How much is simulated: pumps, and seconds for each of them."""

    train: int = 960
    validate: int = 96
    test: int = 96
    seconds: float = 16.0


QUICK = Sizes(train=24, validate=12, test=6, seconds=24.0)


@dataclass(frozen=True)
class Trained:
    """All three models, with the level of the student's alarm and figures on pumps that none of them has seen."""

    models: dict[str, onnx.ModelProto]
    """`teacher`, `student`, `int8`; batch `N`."""
    heads: dict[str, learn.Head]
    level: dict[str, evaluate.Level]
    figures: dict[str, evaluate.Figures]
    train: Windows
    test: Windows


FRONTS = {"teacher": teacher_front, "student": student_front, "int8": student_front}


def level_of(model: onnx.ModelProto, validate: Windows) -> evaluate.Level:
    healthy = validate.take(validate.label == "ok")
    (score,) = run.outputs(model, healthy.x, ["score"])
    return evaluate.threshold(score, healthy)


def make(sizes: Sizes = Sizes(), seed: int = 1000) -> Trained:
    """Simulates, trains, distils, quantises and evaluates. Pumps of training, validation and test are different ones."""
    train = sim.fleet(sizes.train, seed, sizes.seconds)
    validate = sim.fleet(sizes.validate, seed + 1000, sizes.seconds)
    test = sim.fleet(sizes.test, seed + 2000, sizes.seconds)
    checks.no_leak(train, validate)
    checks.no_leak(train, test)
    checks.no_leak(validate, test)
    rich, plain = learn.features(teacher_front(), train), learn.features(student_front(), train)
    heads = {"teacher": learn.train(train, rich, sim.CLASSES, members=8)}
    heads["student"] = learn.distil(train, plain, learn.logits(heads["teacher"], rich), sim.CLASSES)
    heads["int8"] = learn.quantise(heads["student"], plain)
    models = {name: learn.assemble(FRONTS[name](), head, name=f"vibration-{name}") for name, head in heads.items()}
    level = {name: level_of(model, validate) for name, model in models.items()}
    learn.same_decisions(models["student"], models["int8"], validate, level["student"].raise_above)
    figures = {}
    for name, model in models.items():
        (score,) = run.outputs(model, test.x, ["score"])
        figures[name] = evaluate.of_windows(score, test, level[name])
    return Trained(models, heads, level, figures, train, test)


def right_class(model: onnx.ModelProto, windows: Windows) -> float:
    """The share of windows whose class is named rightly."""
    (logits,) = run.outputs(model, windows.x, ["logits"])
    named = np.array(sim.CLASSES)[logits.argmax(axis=1)]
    return float((named == windows.label).mean())
