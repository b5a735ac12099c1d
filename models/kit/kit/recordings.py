"""The Skoltech Anomaly Benchmark's recordings (22 experiments of a water pump, 1 Hz): the sample model, a student, and an oracle.

Protocol, as in the daemon's own test: rows 0 to 399 of each file calibrate without labels, every row from 400 on is scored, a row
without a window keeps the last decision, nothing looks ahead. The student is trained with labels of other recordings only: files that
overlap in time are never on both sides. The recordings are GPL and are not part of this repository; nothing trained on them ships.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import GroupKFold
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from . import evaluate, run
from .collect import from_csv
from .data import Bools, Channels, Doubles, Floats, Ints, Rows, Windows
from .errors import Refused
from .evaluate import Figures, Level

COLUMNS = (
    "Accelerometer1RMS",
    "Accelerometer2RMS",
    "Current",
    "Pressure",
    "Temperature",
    "Thermocouple",
    "Voltage",
    "Volume Flow RateRMS",
)
CHANNELS = Channels(COLUMNS, ("g", "g", "A", "bar", "°C", "°C", "V", "l/min"), 1.0)
STEPS = 20
CALIBRATES = 400
TOGETHER = (("other/2", "other/3", "other/4"), ("other/10", "other/11"), ("other/12", "other/13"))
"""Files that overlap in time."""
OF_SAMPLE = (0, 1, 7)
"""Columns that pump-anomaly takes."""
BANDS = {"pump-anomaly": 0.5, "student": 1.5, "teacher": 1.5}
"""How near to its threshold a score is unsure: half of the threshold for pump-anomaly, 1.5 log-odds for the others."""


@dataclass(frozen=True)
class Experiment:
    name: str
    rows: Rows
    windows: Windows

    @property
    def last_row(self) -> Ints:
        return self.windows.first_row + STEPS - 1


def load(folder: pathlib.Path) -> list[Experiment]:
    """All 22 experiments."""
    files = sorted([*folder.glob("valve1/*.csv"), *folder.glob("other/*.csv")])
    if len(files) != 22:
        raise Refused(f"{folder}: {len(files)} experiments, not 22: another version of the benchmark?")
    out = []
    for file in files:
        name = f"{file.parent.name}/{file.stem}"
        rows = from_csv(file, CHANNELS, COLUMNS, "datetime", "anomaly", {"0.0": "ok", "1.0": "anomaly"}, machine=name)
        # Gaps are cut: they are real, and windows end before them.
        out.append(Experiment(name, rows, rows.windows(STEPS, 1, gap_max_ms=2500, cut_gaps=True)))
    return out


def group_of(name: str) -> str:
    return next((together[0] for together in TOGETHER if name in together), name)


@dataclass(frozen=True)
class Scored:
    """Scores in units of their threshold's distance, row by row from row 400 on, of all experiments."""

    score: Floats
    level: Level
    truth: Bools
    recording: list[str]

    def figures(self) -> Figures:
        decided = evaluate.decide(self.score, self.recording, self.level)
        return evaluate.figures(self.truth, decided, self.recording, 1.0)

    def escalated(self, band: float, share: float) -> tuple[Figures, float]:
        """With an oracle; and the share of windows that was sent."""
        decided, sent = evaluate.escalated(self.score, self.truth, self.recording, self.level, band, share)
        return evaluate.figures(self.truth, decided, self.recording, 1.0), sent


def _rows_from(experiments: list[Experiment], scores: list[tuple[Ints, Floats]], level: Level) -> Scored:
    """A score for each row from 400 on: that of its window, else the last one's (so the decision stays)."""
    score, truth, recording = [], [], []
    for experiment, (last_row, values) in zip(experiments, scores, strict=True):
        count = len(experiment.rows.t_ns)
        of_row = np.full(count, np.nan)
        of_row[last_row] = values
        current = 0.0
        for row in range(count):
            current = current if np.isnan(of_row[row]) else float(of_row[row])
            if row >= CALIBRATES:
                score.append(current)
                truth.append(experiment.rows.label[row] != "ok")
                recording.append(experiment.name)
    return Scored(np.array(score, np.float32), level, np.array(truth), recording)


def sample_model(experiments: list[Experiment], model: pathlib.Path) -> Scored:
    """models/pump-anomaly as the daemon runs it: learns from the first 380 windows, then scores; in units of the threshold."""
    session = run.session(model)
    scores = []
    for experiment in experiments:
        x = experiment.windows.x[:, :, list(OF_SAMPLE)]
        zero, one = np.zeros(9, np.float32), np.ones(9, np.float32)
        feats = np.array([session.run(["features"], {"x": w[None], "center": zero, "scale": one})[0] for w in x])
        learnt = feats[:380]
        centre, scale = learnt.mean(axis=0), np.maximum(learnt.std(axis=0), 1e-9)
        all_scores = np.abs((feats - centre) / scale).max(axis=1)
        threshold = 1.75 * all_scores[:380].max()
        scores.append((experiment.last_row[380:], (all_scores[380:] / threshold).astype(np.float32)))
    return _rows_from(experiments, scores, Level(1.0, 0.6))


def features(experiment: Experiment) -> Doubles:
    """How far a window is from the machine's own first 400 rows: of the sample model's channels, means over 5, 10 and 20 rows and the
    spread over 20, each in standard deviations, whichever way."""
    x = experiment.windows.x[:, :, list(OF_SAMPLE)].astype(np.float64)
    spread = np.log(x.std(axis=1) + 1e-6)
    raw = np.concatenate([x[:, -n:].mean(axis=1) for n in (5, 10, 20)] + [spread], axis=1)
    learnt = raw[experiment.last_row < CALIBRATES]
    z = (raw - learnt.mean(axis=0)) / np.maximum(learnt.std(axis=0), 1e-6)
    return np.asarray(np.log1p(np.abs(z)))


@dataclass(frozen=True)
class Cross:
    """Teacher and student, each scored on recordings that neither has seen."""

    teacher: Scored
    student: Scored


def cross_validated(experiments: list[Experiment], folds: int = 6, trees: int = 150, seed: int = 1) -> Cross:
    """Trains on the other recordings for each fold. The score is the log-odds of an anomaly."""
    x = [features(e) for e in experiments]
    y = [(e.windows.label != "ok").astype(np.int64) for e in experiments]
    groups = [group_of(e.name) for e in experiments]
    by_model: dict[str, list[tuple[Ints, Floats]]] = {"teacher": [], "student": []}
    empty = (np.zeros(0, np.int64), np.zeros(0, np.float32))
    for found in by_model.values():
        found.extend([empty] * len(experiments))
    for train, test in GroupKFold(folds).split(x, groups=groups):
        if {groups[i] for i in train} & {groups[i] for i in test}:
            raise Refused("leak: recordings that overlap in time are in training and in test")
        fit_x, fit_y = np.concatenate([x[i][::2] for i in train]), np.concatenate([y[i][::2] for i in train])
        teacher = ExtraTreesClassifier(trees, min_samples_leaf=10, max_features=0.5, class_weight="balanced", random_state=seed)
        teacher.fit(fit_x, fit_y)

        def odds(values: Doubles, teacher: ExtraTreesClassifier = teacher) -> Doubles:
            p = np.clip(teacher.predict_proba(values)[:, 1], 0.02, 0.98)
            return np.asarray(np.log(p / (1 - p)))

        student = make_pipeline(
            StandardScaler(),
            MLPRegressor(hidden_layer_sizes=(32, 16), alpha=1.0, early_stopping=True, max_iter=60, random_state=seed),
        ).fit(fit_x, odds(fit_x))
        for i in test:
            after = experiments[i].last_row >= CALIBRATES
            rows = experiments[i].last_row[after]
            by_model["teacher"][i] = (rows, odds(x[i][after]).astype(np.float32))
            by_model["student"][i] = (rows, student.predict(x[i][after]).astype(np.float32))
    # Log-odds 1 above zero, so that the clear level (a share of it) lies below.
    shifted = {name: [(rows, values + 1) for rows, values in found] for name, found in by_model.items()}
    level = Level(1.0, 0.5)
    return Cross(_rows_from(experiments, shifted["teacher"], level), _rows_from(experiments, shifted["student"], level))
