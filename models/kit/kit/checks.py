"""Mistakes that make a figure better than it is, or a model worse than it looks; each stage asks here before it works.

Every function raises Refused and names what it found. None of them repairs anything.
"""

from __future__ import annotations

import numpy as np

from .data import UNLABELLED, Doubles, Windows
from .errors import Refused

QUANTILES = np.linspace(0, 1, 33)
"""As in a bundle's baseline.json."""


def no_leak(train: Windows, test: Windows, same_machine: bool = False) -> None:
    """Test windows must be new: no equal window, no window that shares rows, and by default no machine that was trained on."""
    known = set(train.digests())
    equal = sum(digest in known for digest in test.digests())
    if equal:
        raise Refused(f"leak: {equal} of {len(test)} test windows are also in the training set. Split by recording, before windows are cut")
    shared = _overlapping(train, test)
    if shared:
        raise Refused(f"leak: {shared} test windows share rows with training windows of the same recording. Split by recording")
    both = set(train.machine.tolist()) & set(test.machine.tolist())
    if both and not same_machine:
        raise Refused(
            f"leak: machine {', '.join(sorted(both))} is in training and in test: the figure would not hold for a new machine. "
            "Split by machine, or say --same-machine if the model is for these machines only"
        )


def _overlapping(train: Windows, test: Windows) -> int:
    taken: dict[str, list[int]] = {}
    for recording, first in zip(train.recording.tolist(), train.first_row.tolist(), strict=True):
        taken.setdefault(recording, []).append(first)
    firsts = {recording: np.sort(np.array(rows)) for recording, rows in taken.items()}
    shared = 0
    for recording, first in zip(test.recording.tolist(), test.first_row.tolist(), strict=True):
        if recording in firsts:
            rows = firsts[recording]
            at = int(np.searchsorted(rows, first - train.steps + 1))
            shared += at < len(rows) and bool(rows[at] < first + test.steps)
    return shared


def baseline_of(windows: Windows) -> dict[str, Doubles]:
    """33 quantiles of the values of each channel."""
    flat = windows.x.reshape(-1, windows.x.shape[2]).astype(np.float64)
    return {name: np.quantile(flat[:, i], QUANTILES) for i, name in enumerate(windows.channels.names)}


def _distance(values: Doubles, quantiles: Doubles) -> float:
    """Mean distance of the quantiles of the values, in the baseline's range between 10 % and 90 %."""
    spread = max(float(quantiles[29] - quantiles[3]), 1e-12)
    return float(np.abs(np.quantile(values, QUANTILES) - quantiles)[2:31].mean() / spread)


def same_channels(windows: Windows, names: tuple[str, ...], baseline: dict[str, Doubles]) -> None:
    """The channels are those of the baseline: in name and order, in unit (scale), and not swapped."""
    if windows.channels.names != names:
        raise Refused(f"channels are {list(windows.channels.names)}, and the model was trained on {list(names)}, in this order")
    flat = windows.x.reshape(-1, windows.x.shape[2]).astype(np.float64)
    at = np.array([[_distance(flat[:, i], baseline[other]) for other in names] for i in range(len(names))])
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            straight, crossed = at[i, i] + at[j, j], at[i, j] + at[j, i]
            if straight > 0.1 and crossed < straight / 3:
                raise Refused(
                    f"channels {names[i]} and {names[j]} look swapped: as named they are {straight:.2f} spreads from the "
                    f"baseline, exchanged {crossed:.2f}. Check the wiring, or the order of the columns"
                )
    for i, name in enumerate(names):
        spread = float(np.quantile(flat[:, i], 0.9) - np.quantile(flat[:, i], 0.1))
        known = float(baseline[name][29] - baseline[name][3])
        if known > 0 and not 1 / 6 < max(spread, 1e-12) / known < 6:
            raise Refused(
                f"channel {name}: values spread over {spread:.3g}, and over {known:.3g} in the training data: a factor of "
                f"{spread / known:.3g}. Another unit or scale? (g and m/s² differ by 9.81)"
            )


def labelled(windows: Windows, classes: tuple[str, ...]) -> None:
    """Every window has one of the classes, and every class occurs."""
    unknown = sorted({label for label in windows.label.tolist() if label not in classes})
    if UNLABELLED in unknown:
        raise Refused(f"{int((windows.label == UNLABELLED).sum())} of {len(windows)} windows have no label. Leave them out, or label them")
    if unknown:
        raise Refused(f"labels {unknown} are not among the classes {list(classes)}")
    missing = [c for c in classes if c not in windows.label]
    if missing:
        raise Refused(f"no window of class {', '.join(missing)}: the model could never learn it")


def healthy(windows: Windows, what: str, normal: str = "ok") -> None:
    """A threshold or a baseline is learnt on healthy, unalarmed windows only."""
    alarmed, faulty = int(windows.alarmed.sum()), int(((windows.label != normal) & (windows.label != UNLABELLED)).sum())
    if alarmed or faulty:
        raise Refused(
            f"{what} would be learnt on {alarmed} windows with a raised alarm and {faulty} windows labelled as a fault: it would call "
            "them normal. Leave them out"
        )
    if not len(windows):
        raise Refused(f"{what}: no healthy windows")


def finite(windows: Windows) -> None:
    """No NaN and no infinity: the daemon drops such windows, so a model must not learn from them."""
    bad = ~np.isfinite(windows.x).all(axis=(1, 2))
    if bad.any():
        raise Refused(f"{int(bad.sum())} windows have values that are not finite (the first is window {int(np.argmax(bad))})")


def alive(windows: Windows) -> None:
    """No channel that never moves: a cable that is off teaches nothing."""
    still = np.ptp(windows.x.reshape(-1, windows.x.shape[2]), axis=0) == 0
    if still.any():
        names = [n for n, s in zip(windows.channels.names, still.tolist(), strict=True) if s]
        raise Refused(f"channel {', '.join(names)} has one value in all {len(windows)} windows: not connected?")
