"""Simulated pumps with rolling bearings: the physics behind the sample models, and the fleet of `kit loop`.

What is simulated, and after whom:

- Geometry of a 6205 deep-groove ball bearing (9 balls of 7.94 mm on a pitch circle of 39.04 mm). The defect frequencies as multiples of
  the shaft's speed follow from it: BPFO n/2 (1 − d/D cos φ), BPFI n/2 (1 + d/D cos φ), BSF D/2d (1 − (d/D cos φ)²), FTF 1/2 (1 − d/D cos φ)
  (Randall & Antoni, Rolling element bearing diagnostics: a tutorial, Mechanical Systems and Signal Processing 25, 2011).
- A local defect is a train of impacts, each of which excites a structural resonance that decays; the load zone modulates impacts of the
  inner race with the shaft, and of a ball with the cage (McFadden & Smith, Journal of Sound and Vibration 96, 1984).
- Balls slip: the time from impact to impact scatters by about 1 %, so the train is cyclostationary and not periodic (Antoni & Randall,
  Mechanical Systems and Signal Processing 17, 2003).
- Unbalance at 1×, misalignment at 2×, vane pass at (number of vanes)×, the motor's magnetic hum at twice the mains frequency.
- Load wanders: it sets slip of the induction motor (speed), flow noise, and the force of impacts.
- Not a bearing fault, but like one: random impacts of cavitation, and a loose guard that chatters.

Nothing here was fitted to a real machine. A model trained on it is a start and an example, not proof for your pump.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.signal

from .data import Channels, Doubles, Rows, Windows, joined

RATE_HZ = 6400.0
STEPS = 2048
CLASSES = ("ok", "outer", "inner", "ball")
CHANNELS = Channels(("vib_de", "vib_nde"), ("g", "g"), RATE_HZ)
"""Acceleration at the drive end, where the faults are, and at the other end."""
GUARD_HZ = 89.0
GUARD_RINGS_HZ = 1900.0
SPEED_HZ = 24.5
"""Four poles at 50 Hz, with slip."""


@dataclass(frozen=True)
class Bearing:
    balls: int
    ball_mm: float
    pitch_mm: float
    contact_rad: float = 0.0

    @property
    def ratio(self) -> float:
        return self.ball_mm / self.pitch_mm * float(np.cos(self.contact_rad))

    @property
    def bpfo(self) -> float:
        """Impacts on the outer race in one revolution of the shaft."""
        return self.balls / 2 * (1 - self.ratio)

    @property
    def bpfi(self) -> float:
        return self.balls / 2 * (1 + self.ratio)

    @property
    def bsf(self) -> float:
        """Revolutions of a ball; its defect hits a race twice in each."""
        return self.pitch_mm / (2 * self.ball_mm) * (1 - self.ratio**2)

    @property
    def ftf(self) -> float:
        return (1 - self.ratio) / 2


BEARING_6205 = Bearing(balls=9, ball_mm=7.94, pitch_mm=39.04)


@dataclass(frozen=True)
class Machine:
    """One pump: what differs from pump to pump, and does not change."""

    name: str
    seed: int
    resonance_hz: tuple[float, float]
    damping: tuple[float, float]
    path_gain: float
    """How much of an impact at the drive end arrives at the other end."""
    vanes: int
    unbalance_g: float
    misalignment_g: float
    vane_g: float
    hum_g: float
    noise_g: float
    flow_noise_g: float
    cavitation_per_s: float
    guard_g: float = 0.0
    """Impacts of a loose guard that chatters at its own 89 Hz, near the outer race's line; not a bearing fault."""


def machine(name: str, seed: int) -> Machine:
    """A pump of the fleet, drawn from what pumps of this size differ in."""
    draw = np.random.default_rng(seed)
    return Machine(
        name=name,
        seed=seed,
        resonance_hz=(draw.uniform(1750, 2950), draw.uniform(1300, 2900)),
        damping=(draw.uniform(0.02, 0.06), draw.uniform(0.02, 0.06)),
        path_gain=draw.uniform(0.15, 0.4),
        vanes=int(draw.integers(5, 8)),
        unbalance_g=draw.uniform(0.05, 0.25),
        misalignment_g=draw.uniform(0.02, 0.15),
        vane_g=draw.uniform(0.05, 0.3),
        hum_g=draw.uniform(0.01, 0.1),
        noise_g=draw.uniform(0.04, 0.09),
        flow_noise_g=draw.uniform(0.1, 0.3),
        cavitation_per_s=draw.choice([0.0, 0.0, 4.0, 15.0]),
    )


def _load(draw: np.random.Generator, n: int) -> Doubles:
    """Load between 0.5 and 1, wandering over seconds."""
    knots = max(2, int(n / RATE_HZ / 2) + 2)
    walk = np.cumsum(draw.normal(0, 0.12, knots)) + draw.uniform(0.5, 1.0)
    # Reflected at both ends.
    walk = 0.5 + np.abs((walk - 0.5) % 1.0 - 0.5)
    return np.asarray(np.interp(np.arange(n), np.linspace(0, n, knots), walk))


def _at_phases(turns: Doubles, per_turn: float, jitter: float, draw: np.random.Generator) -> Doubles:
    """Sample positions of impacts that come `per_turn` times in a revolution, with slip."""
    count = int((turns[-1] - turns[0]) * per_turn) + 1
    steps = 1 / per_turn * (1 + draw.normal(0, jitter, count))
    at = np.cumsum(steps) - steps[0] * draw.uniform()
    at = at[at < turns[-1]]
    return np.asarray(np.interp(at, turns, np.arange(len(turns))))


def _ring(at: Doubles, force: Doubles, n: int, resonance_hz: float, damping: float) -> Doubles:
    """The resonance's answer to impacts at (fractional) samples: amplitude 1 g for a force of 1."""
    drive = np.zeros(n + 2)
    whole = at.astype(np.int64)
    part = at - whole
    np.add.at(drive, whole, force * (1 - part))
    np.add.at(drive, whole + 1, force * part)
    w = 2 * np.pi * resonance_hz / RATE_HZ
    r = np.exp(-damping * w)
    wd = w * np.sqrt(1 - damping**2)
    return np.asarray(scipy.signal.lfilter([0, r * np.sin(wd)], [1, -2 * r * np.cos(wd), r * r], drive)[:n])


def _impacts(fault: str, turns: Doubles, load: Doubles, severity_g: float, draw: np.random.Generator) -> tuple[Doubles, Doubles]:
    bearing = BEARING_6205
    n = len(turns)
    phase = draw.uniform(0, 2 * np.pi)
    if fault == "outer":
        at = _at_phases(turns, bearing.bpfo, 0.01, draw)
        zone = np.ones(len(at))
    elif fault == "inner":
        at = _at_phases(turns, bearing.bpfi, 0.01, draw)
        zone = np.clip(0.35 + 0.65 * np.cos(2 * np.pi * turns[at.astype(np.int64).clip(0, n - 1)] + phase), 0, None)
    else:
        at = _at_phases(turns, 2 * bearing.bsf, 0.01, draw)
        cage = bearing.ftf * turns[at.astype(np.int64).clip(0, n - 1)]
        zone = np.clip(0.45 + 0.55 * np.cos(2 * np.pi * cage + phase), 0, None)
    scatter = draw.lognormal(0, 0.25, len(at))
    return at, severity_g * zone * scatter * load[at.astype(np.int64).clip(0, n - 1)]


def vibration(pump: Machine, fault: str, severity_g: float, seconds: float, seed: int) -> Doubles:
    """Acceleration in g, rows × 2 channels. `severity_g` is the mean peak of one impact at full load."""
    draw = np.random.default_rng([pump.seed, seed])
    n = int(seconds * RATE_HZ)
    load = _load(draw, n)
    speed = SPEED_HZ * (1.015 - 0.03 * (load - 0.5))
    turns = np.cumsum(speed) / RATE_HZ
    time = np.arange(n) / RATE_HZ

    def tone(times: float, size: float) -> Doubles:
        return np.asarray(size * np.sin(2 * np.pi * times * turns + draw.uniform(0, 2 * np.pi)))

    rough = scipy.signal.lfilter([1.0], [1, -0.9], draw.normal(0, 1, (n, 2)), axis=0) * np.sqrt(1 - 0.81)
    out = draw.normal(0, pump.noise_g, (n, 2)) + rough * (pump.flow_noise_g * load**2)[:, None] * 0.5
    for channel, share in ((0, 1.0), (1, 0.7)):
        out[:, channel] += share * (tone(1, pump.unbalance_g) + tone(2, pump.misalignment_g) + tone(pump.vanes, pump.vane_g) * load)
        out[:, channel] += share * pump.hum_g * np.sin(2 * np.pi * 100 * time + draw.uniform(0, 2 * np.pi))
    rings: list[tuple[Doubles, Doubles]] = []
    if fault != "ok":
        rings.append(_impacts(fault, turns, load, severity_g, draw))
    if pump.cavitation_per_s:
        count = draw.poisson(pump.cavitation_per_s * seconds)
        rings.append((np.sort(draw.uniform(0, n - 1, count)), draw.exponential(0.3, count)))
    if pump.guard_g:
        at = _at_phases(time * GUARD_HZ, 1.0, 0.01, draw).clip(0, n - 1)
        force = pump.guard_g * draw.lognormal(0, 0.25, len(at)) * _load(draw, n)[at.astype(np.int64)]
        # Sheet metal rings at its own frequency, and both ends feel it alike.
        chatter = _ring(at, force, n, GUARD_RINGS_HZ, 0.02)
        out += chatter[:, None]
    for at, force in rings:
        at = at.clip(0, n - 1)
        out[:, 0] += _ring(at, force, n, pump.resonance_hz[0], pump.damping[0])
        out[:, 1] += pump.path_gain * _ring(at, force, n, pump.resonance_hz[1], pump.damping[1])
    return np.asarray(out)


def recording(pump: Machine, fault: str, severity_g: float, seconds: float, seed: int) -> Rows:
    """The same as rows of a recording, labelled."""
    values = vibration(pump, fault, severity_g, seconds, seed)
    return Rows(
        channels=CHANNELS,
        machine=pump.name,
        recording=f"{pump.name}/{fault}-{severity_g:.3f}-{seed}",
        t_ns=(np.arange(len(values)) * (1e9 / RATE_HZ)).astype(np.int64),
        values=values,
        label=np.full(len(values), fault),
    )


SEVERITIES_G = (0.3, 0.5, 0.8, 1.3)
"""From hardly visible to plain, against noise of 0.04 to 0.09 g."""


def windows_of(pump: Machine, seconds: float, seed: int, severities_g: tuple[float, ...] = SEVERITIES_G) -> Windows:
    """Windows of one pump: half of them healthy, the rest with one fault each, at several severities."""
    faults = CLASSES[1:]
    parts = [recording(pump, "ok", 0.0, seconds / 2, seed)]
    each = seconds / 2 / (len(faults) * len(severities_g))
    for i, fault in enumerate(faults):
        for j, severity_g in enumerate(severities_g):
            parts.append(recording(pump, fault, severity_g, each, seed + 100 + 10 * i + j))
    return joined([part.windows(STEPS, STEPS, gap_max_ms=1.0) for part in parts])


def fleet(count: int, seed: int, seconds: float, name: str = "pump") -> Windows:
    """Windows of `count` different pumps."""
    return joined([windows_of(machine(f"{name}-{seed + i}", seed + i), seconds, seed) for i in range(count)])


def with_loose_guard(pump: Machine, size_g: float) -> Machine:
    return replace(pump, guard_g=size_g)
