"""Figures of a detector: F1, false alarms, missed alarms, balanced accuracy and delay, always together.

One of them alone can be made as good as one likes by making another worse. Decisions are those of the daemon: the alarm is raised
above the threshold, and clears below the clear level, window by window in the order of each recording.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from . import checks
from .data import UNLABELLED, Bools, Floats, Windows
from .errors import Refused


@dataclass(frozen=True)
class Level:
    """Where an alarm is raised, and below which score it clears."""

    raise_above: float
    clear_factor: float = 0.8

    @property
    def clear_below(self) -> float:
        return self.raise_above - abs(self.raise_above) * (1 - self.clear_factor)


@dataclass(frozen=True)
class Figures:
    """`far`: share of normal windows with an alarm. `mar`: share of faulty windows without. `delay_s`: mean time from the first faulty
    window of a recording to its alarm, over recordings that were found; `unseen` counts the others."""

    f1: float
    far: float
    mar: float
    balanced: float
    delay_s: float
    unseen: int
    windows: int

    def __str__(self) -> str:
        return (
            f"F1 {self.f1:.4f}, FAR {self.far:.2%}, MAR {self.mar:.2%}, balanced accuracy {self.balanced:.4f}, "
            f"delay {self.delay_s:.2f} s, faults unseen {self.unseen} ({self.windows} windows)"
        )

    def as_json(self) -> dict[str, float | int]:
        return asdict(self)


def decide(score: Floats, recording: list[str], level: Level) -> Bools:
    """Raised or not after each window; each recording begins without an alarm."""
    decided = np.zeros(len(score), dtype=bool)
    state, last = False, None
    for i, (value, of) in enumerate(zip(score.ravel().tolist(), recording, strict=True)):
        if of != last:
            state, last = False, of
        state = value > level.raise_above or (state and value >= level.clear_below)
        decided[i] = state
    return decided


def figures(truth: Bools, decided: Bools, recording: list[str], window_s: float) -> Figures:
    """From truth and decision of each window. Raises Refused where there is nothing to compare with."""
    if truth.all() or not truth.any():
        which = "faulty" if truth.all() else "healthy"
        raise Refused(f"all {len(truth)} windows are {which}: false and missed alarms cannot both be counted. Add the other kind")
    hit, missed = float((truth & decided).sum()), float((truth & ~decided).sum())
    wrong, quiet = float((~truth & decided).sum()), float((~truth & ~decided).sum())
    delays, unseen = [], 0
    for of in dict.fromkeys(recording):
        here = np.array([r == of for r in recording])
        faulty = np.flatnonzero(here & truth)
        if len(faulty):
            found = np.flatnonzero(here & truth & decided)
            if len(found):
                delays.append((found[0] - faulty[0] + 1) * window_s)
            else:
                unseen += 1
    far, mar = wrong / (wrong + quiet), missed / (missed + hit)
    return Figures(
        f1=2 * hit / (2 * hit + wrong + missed),
        far=far,
        mar=mar,
        balanced=1 - (far + mar) / 2,
        delay_s=float(np.mean(delays)) if delays else float("nan"),
        unseen=unseen,
        windows=len(truth),
    )


def of_windows(score: Floats, windows: Windows, level: Level, normal: str = "ok") -> Figures:
    """Figures of scores over labelled windows."""
    if (windows.label == UNLABELLED).any():
        raise Refused(f"{int((windows.label == UNLABELLED).sum())} windows have no label: they cannot be counted")
    recording = windows.recording.tolist()
    window_s = windows.steps / windows.channels.rate_hz
    return figures(windows.label != normal, decide(score, recording, level), recording, window_s)


def threshold(score: Floats, windows: Windows, false_share: float = 0.005, least: float = 1.0) -> Level:
    """A level that `false_share` of healthy windows exceed; never below `least` (log-odds). Raises Refused on alarmed or faulty ones."""
    checks.healthy(windows, "threshold")
    if len(score) * false_share < 2:
        raise Refused(
            f"threshold: {len(score)} healthy windows cannot show a share of {false_share:.3%}: "
            f"take at least {int(np.ceil(2 / false_share))}"
        )
    return Level(max(least, round(float(np.quantile(score, 1 - false_share)), 3)))


def escalated(
    score: Floats, truth: Bools, recording: list[str], level: Level, band: float, share: float, burst: int = 10
) -> tuple[Bools, float]:
    """Decisions when unsure windows go to an oracle that is always right, within a budget; and the share of windows that were sent.

    As the device does it: a window within `band` of the threshold is unsure. It is sent if the budget (a bucket that `share` fills with
    each window, `burst` at most) has room. The answer raises or clears the alarm and stands while windows stay unsure; the first sure
    window gives the decision back to the local rules. No look-ahead.
    """
    decided = np.zeros(len(score), dtype=bool)
    state, stands, last, tokens, sent = False, False, None, 0.0, 0
    for i, (value, of) in enumerate(zip(score.ravel().tolist(), recording, strict=True)):
        if of != last:
            state, stands, last, tokens = False, False, of, 0.0
        tokens = min(tokens + share, max(1.0, burst))
        unsure = abs(value - level.raise_above) <= band
        stands = stands and unsure
        if unsure and tokens >= 1:
            tokens, sent = tokens - 1, sent + 1
            state, stands = bool(truth[i]), True
        elif not stands:
            state = value > level.raise_above or (state and value >= level.clear_below)
        decided[i] = state
    return decided, sent / max(1, len(score))
