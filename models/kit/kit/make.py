"""Makes the sample models beside the kit: models/vibration, vibration-int8 and vibration-teacher, with manifest and card."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import tempfile
import textwrap

from . import bearing, bundle, learn, run, sim
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


WHY = {
    "student": "",
    "int8": "",
    "teacher": """**Why its student is better.** The teacher learns the pumps of its training by heart. Release 1.0.0 names the right class of
99.1 % of the windows of 24 pumps that it was trained on, and of 92.7 % on the 24 others (the student: 94.2 % and 93.5 %). It has 502
features of 160 pumps; the student has 34. So take the student on a device, and train the teacher again on more machines before
it answers escalated windows. `kit evaluate` shows both figures.

""",
}


def card(made: bearing.Trained, cost: dict[str, Cost], which: str, sizes: bearing.Sizes) -> str:
    features = len(bearing.FRONTS[which]().names())
    return wrapped(f"""# {NAMES[which]} {VERSION}

**What it is for.** {ROLE[which].capitalize()} It names a local fault of a 6205 bearing (outer race, inner race, ball) from acceleration at
both ends of a pump of 1,470 to 1,490 revolutions a minute. **It was trained on simulated pumps only.** Take it as an example and as a
start for your own training, not as proof for a machine.

**How it works.** Window: {sim.STEPS} samples at {sim.RATE_HZ:.0f} Hz of `vib_de` and `vib_nde`, in g. {features} features stand before the
model in the same file: RMS, crest factor, kurtosis, log-mel bands, and lines of the envelope's spectrum at the bearing's defect
frequencies. Outputs: `probabilities` of `ok`, `outer`, `inner`, `ball`; `score`, the log-odds of a fault. The alarm is raised above
{made.level[which].raise_above:g}, which 0.5 % of the healthy windows of {sizes.validate} other pumps exceed.

**How it was made.** `python -m kit sample-models`: {sizes.train} simulated pumps of {sizes.seconds:g} s each train, {sizes.validate}
set the level, {sizes.test} test. No pump is in two of these sets. The physics and its sources: `models/kit/kit/sim.py`.

**How good it is.** On {sizes.test} pumps that no model has seen ({made.figures[which].windows} windows; half of them healthy, the rest
faults whose impacts have a mean peak of {", ".join(f"{s:g}" for s in sim.SEVERITIES_G)} g, in noise of 0.04 to 0.09 g):

{table(made, cost)}

{WHY[which]}Times are of one window on one core of a shared x86-64 machine with ONNX Runtime in Python; measure on your board with
`kentledge model bench`.

**Where it fails.** About half of the faults of {sim.SEVERITIES_G[0]:g} g are missed. Another speed, another bearing or another rate
needs another training: the lines are fixed. Whatever knocks in the rhythm of a bearing looks like one; a loose guard, which was not in the
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
    cost = {name: run.cost(model.SerializeToString(deterministic=True), made.test.x[:64]) for name, model in single.items()}
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
