"""Makes the sample models beside the kit: models/vibration, vibration-int8 and vibration-teacher, with manifest and card."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import tempfile
import textwrap
from dataclasses import replace

import numpy as np
import onnx

from . import bearing, bundle, evaluate, learn, run, sim
from .data import Floats
from .errors import Refused
from .run import Cost

NAMES = {"student": "vibration", "int8": "vibration-int8", "teacher": "vibration-teacher"}
VERSION = "1.0.0"
FIXED = {"seq": 1, "created": "2026-11-27T00:00:00Z", "expires": "2031-11-27T00:00:00Z", "min_supervisor": "0.1.0"}


def table(made: bearing.Trained, cost: dict[str, Cost]) -> str:
    """Figures of all three, side by side, as Markdown."""
    lines = [
        "| | F1 | FAR | MAR | balanced accuracy | delay, s | faults unseen | class right | bytes | p50, µs | p99, µs |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ("teacher", "student", "int8"):
        f, c = made.figures[name], cost[name]
        right = bearing.right_class(made.models[name], made.test)
        lines.append(
            f"| {name} | {f.f1:.4f} | {f.far:.2%} | {f.mar:.2%} | {f.balanced:.4f} | {f.delay_s:.2f} | {f.unseen} | {right:.1%} "
            f"| {c.bytes} | {c.p50_us:.0f} | {c.p99_us:.0f} |"
        )
    return "\n".join(lines)


ROLE = {
    "student": "the small model of the kit: distilled from vibration-teacher.",
    "int8": "the same as `vibration` with 8-bit weights and activations behind the features.",
    "teacher": "the larger model from which `vibration` learnt, and which can answer escalated windows (`python -m kit respond`).",
}


LOOKS = {
    "student": "RMS, crest factor and kurtosis of both channels, and of the envelopes of three bands of `vib_de` and a wide one the lines at "
    "the bearing's defect frequencies and the share of the power.",
    "teacher": "RMS, crest factor, kurtosis and log-mel bands of both channels, and of the envelopes of 48 bands of three widths the lines at "
    "the bearing's defect frequencies and the share of the power.",
}
LOOKS["int8"] = LOOKS["student"]


def costs(models: dict[str, onnx.ModelProto], x: Floats, rounds: int = 7) -> dict[str, Cost]:
    """What one window costs, measured in turns: a machine that is busy for a while is busy for all models. The medians of the rounds."""
    content = {name: model.SerializeToString(deterministic=True) for name, model in models.items()}
    found: dict[str, list[Cost]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in content.items():
            found[name].append(run.cost(model, x))
    return {
        name: replace(of[0], p50_us=float(np.median([c.p50_us for c in of])), p99_us=float(np.median([c.p99_us for c in of])))
        for name, of in found.items()
    }


def missed(made: bearing.Trained, which: str, severity_g: float) -> float:
    """The share of faulty windows of this severity without an alarm."""
    (score,) = run.outputs(made.models[which], made.test.x, ["score"])
    decided = evaluate.decide(score, made.test.recording.tolist(), made.level[which])
    here = (made.test.label != "ok") & np.array([f"-{severity_g:.3f}-" in name for name in made.test.recording.tolist()])
    return float((~decided[here]).mean())


def card(made: bearing.Trained, cost: dict[str, Cost], which: str, sizes: bearing.Sizes) -> str:
    features = len(bearing.FRONTS[which]().names())
    return wrapped(f"""# {NAMES[which]} {VERSION}

**What it is for.** {ROLE[which].capitalize()} It names a local fault of a 6205 bearing (outer race, inner race, ball) from acceleration at
both ends of a pump of 1,470 to 1,490 revolutions a minute. **It was trained on simulated pumps only.** Take it as an example and as a
start for your own training, not as proof for a machine.

**How it works.** Window: {sim.STEPS} samples at {sim.RATE_HZ:.0f} Hz of `vib_de` and `vib_nde`, in g. {features} features stand before the
model in the same file: {LOOKS[which]} Outputs: `probabilities` of `ok`, `outer`, `inner`, `ball`; `score`, the log-odds of a fault. The alarm is raised above
{made.level[which].raise_above:g}, which at most 0.5 % of the healthy windows of {sizes.validate} other pumps exceed.

**How it was made.** `python -m kit sample-models`: {sizes.train} simulated pumps of {sizes.seconds:g} s each train, {sizes.validate}
set the level, {sizes.test} test. No pump is in two of these sets. The physics and its sources: `models/kit/kit/sim.py`.

**How good it is.** On {sizes.test} pumps that no model has seen ({made.figures[which].windows} windows; half of them healthy, the rest
faults whose impacts have a mean peak of {", ".join(f"{s:g}" for s in sim.SEVERITIES_G)} g, in noise of 0.04 to 0.09 g):

{table(made, cost)}

Times are processor time of one window on one core of a busy x86-64 machine with ONNX Runtime in Python: the three models in turns, seven
times, medians. Measure on your board with `kentledge model bench`.

**Where it fails.** It misses {missed(made, which, sim.SEVERITIES_G[0]):.0%} of the windows with a fault of {sim.SEVERITIES_G[0]:g} g.
Another speed, another bearing or another rate needs another training: the lines are fixed. Whatever knocks in the rhythm of a bearing looks like one; a loose guard, which was not in the
training, raises false alarms, and `kit loop` shows how labels cure that. A window of 0.32 s has lines of 3.1 Hz, too wide to tell
a bearing from one of nearly the same geometry.

**Licence.** Apache-2.0 OR MIT, as the project.
""")


def wrapped(text: str) -> str:
    """Paragraphs in lines of 120 characters; tables and headings as they are."""
    parts = [part if part.startswith(("|", "#")) else textwrap.fill(part, 120) for part in text.strip().split("\n\n")]
    return "\n\n".join(parts) + "\n"


def sample_models(into: pathlib.Path, kentledge: str, sizes: bearing.Sizes = bearing.Sizes()) -> str:  # noqa: B008
    """Trains and writes all three. Returns the table of figures."""
    made = bearing.make(sizes)
    single = {name: learn.assemble(bearing.FRONTS[name](), head, 1, NAMES[name]) for name, head in made.heads.items()}
    cost = costs(single, made.test.x[:64])
    for which, name in NAMES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary, name)
            release = bundle.Release(name, VERSION, 1, made.level[which], 1000, None, sim.STEPS)
            bundle.write(folder, single[which], release, made.test, card(made, cost, which, sizes))
            manifest = folder / "manifest.json"
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | FIXED, indent=2) + "\n")
            done = subprocess.run([kentledge, "model", "prepare", str(folder)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise Refused(f"{name}: kentledge model prepare: {done.stderr.strip()}")
            # Golden cases are 145 KB: `prepare` makes them again where a bundle is packed.
            said = json.loads(manifest.read_text())
            said["files"] = [file for file in said["files"] if file["name"] == "model.onnx"]
            manifest.write_text(json.dumps(said, indent=2) + "\n")
            (into / name).mkdir(exist_ok=True)
            for file in ("model.onnx", "manifest.json", "card.md"):
                shutil.copy(folder / file, into / name / file)
    return table(made, cost)
