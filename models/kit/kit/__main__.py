"""`python -m kit COMMAND`: the kit's commands. Each prints what it did, and refuses with a reason and exit code 1."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable

import numpy as np
import onnx

from . import bearing, bundle, checks, choose, collect, evaluate, front, learn, loop, make, plots, recordings, respond, run, sim, wire
from .data import Channels, Windows, joined
from .errors import Refused

Args = argparse.Namespace
FRONTS = {"student": bearing.student_front, "teacher": bearing.teacher_front}


def channels_of(a: Args) -> Channels:
    names = tuple(a.channels.split(","))
    units = tuple(a.units.split(",")) if a.units else ("",) * len(names)
    if len(units) != len(names):
        raise Refused(f"{len(names)} channels and {len(units)} units")
    return Channels(names, units, a.rate_hz)


def do_collect(a: Args) -> None:
    if a.source == "samples":
        windows = joined([collect.from_samples(pathlib.Path(f).read_bytes(), a.rate_hz, a.fault) for f in a.files])
    elif a.source == "simulation":
        windows = sim.fleet(a.pumps, a.seed, a.seconds)
    else:
        channels = channels_of(a)
        if a.source == "csv":
            columns = tuple((a.columns or a.channels).split(","))
            labels = dict(pair.split("=", 1) for pair in a.labels.split(",")) if a.labels else None
            parts = [collect.from_csv(pathlib.Path(f), channels, columns, a.time, a.label, labels, a.separator) for f in a.files]
        elif a.source == "tape":
            parts = [collect.from_tape(pathlib.Path(f), a.config, a.stream, channels, loop.kentledge_program()) for f in a.files]
        else:
            client = wire.connect(a.host, a.port, "kit", tls_of(a))
            parts = [collect.from_broker(client, a.device, a.stream, a.seconds, channels)]
        gap = a.gap_max_ms or 2500 / a.rate_hz
        windows = joined([rows.windows(a.steps, a.hop or a.steps, gap, a.gaps == "cut") for rows in parts])
    checks.finite(windows)
    if a.like:
        like(windows, Windows.load(a.like))
    windows.save(a.out)
    print(f"{a.out}: {len(windows)} windows of {windows.steps} rows × {len(windows.channels.names)} channels")


def like(windows: Windows, known: Windows) -> None:
    """Channels, their order and their scale are those of windows that are known to be right."""
    checks.same_channels(windows, known.channels.names, checks.baseline_of(known))


def tls_of(a: Args) -> dict[str, str] | None:
    return {"ca": a.ca, "cert": a.cert, "key": a.key} if a.ca else None


def do_features(a: Args) -> None:
    of = FRONTS[a.front]()
    onnx.save(front.front_model(of), str(a.out))
    print(f"{a.out}: {len(of.names())} features of {of.steps} rows × {', '.join(of.channels.names)}: {', '.join(of.names())}")
    if a.profile:
        x = sim.windows_of(sim.machine("profile", 1), 12.0, 1).x
        model = front.front_model(of).SerializeToString()
        cost = run.cost(model, x)
        print(f"one window: p50 {cost.p50_us:.0f} µs, p99 {cost.p99_us:.0f} µs")
        for operator, share, nodes in run.shares(model, x)[:8]:
            print(f"  {operator}: {share:.0%} of the time, {nodes} nodes")


def do_train(a: Args) -> None:
    windows = Windows.load(a.windows)
    if a.test:
        checks.no_leak(windows, Windows.load(a.test))
    of = bearing.teacher_front()
    head = learn.train(windows, learn.features(of, windows), sim.CLASSES)
    save_head(of, head, a.out)


def save_head(of: front.FrontEnd, head: learn.Head, out: pathlib.Path) -> None:
    onnx.save(learn.assemble(of, head), str(out))
    onnx.save(head.model, str(out.with_suffix(".head.onnx")))
    print(f"{out}: {out.stat().st_size} bytes")


def do_distil(a: Args) -> None:
    windows, teacher = Windows.load(a.windows), onnx.load(str(a.teacher))
    (target,) = run.outputs(teacher, windows.x, ["logits"])
    of = bearing.student_front()
    save_head(of, learn.distil(windows, learn.features(of, windows), target, sim.CLASSES), a.out)


def do_quantise(a: Args) -> None:
    windows, of = Windows.load(a.windows), bearing.student_front()
    head = learn.Head(onnx.load(str(a.model.with_suffix(".head.onnx"))), sim.CLASSES)
    small = learn.quantise(head, learn.features(of, windows))
    share = learn.same_decisions(learn.assemble(of, head), learn.assemble(of, small), windows, a.threshold)
    save_head(of, small, a.out)
    print(f"decides as the float model does in {share:.2%} of {len(windows)} windows")


def do_evaluate(a: Args) -> None:
    test = Windows.load(a.windows)
    if a.train:
        known = Windows.load(a.train)
        checks.no_leak(known, test, a.same_machine)
        like(test, known)
    variants = []
    for path in a.models:
        model = onnx.load(str(path))
        (score,) = run.outputs(model, test.x, ["score"])
        of = evaluate.of_windows(score, test, level_beside(path, a.threshold))
        cost = run.cost(path.read_bytes(), test.x[:64])
        name = path.parent.name if path.stem == "model" else path.stem
        variants.append(choose.Variant(name, of, cost))
        print(f"{name}: {of}; {cost.bytes} bytes, p50 {cost.p50_us:.0f} µs, p99 {cost.p99_us:.0f} µs{named(model, test)}")
        path.with_suffix(".figures.json").write_text(json.dumps(of.as_json()))
    if a.plot:
        plots.size_and_time(variants, a.plot)


def named(model: onnx.ModelProto, windows: Windows) -> str:
    """How often a model that names the classes of the simulation names the right one, in words."""
    names = {output.name for output in model.graph.output}
    return f"; names the right class of {bearing.right_class(model, windows):.1%}" if "logits" in names else ""


def level_beside(path: pathlib.Path, otherwise: float) -> evaluate.Level:
    """The thresholds of the manifest beside a bundle's model; else the one that was given."""
    manifest = path.parent / "manifest.json"
    if path.stem == "model" and manifest.exists():
        thresholds = json.loads(manifest.read_text())["thresholds"]
        return evaluate.Level(thresholds["raise"], thresholds["clear_factor"])
    return evaluate.Level(otherwise)


def do_choose(a: Args) -> None:
    variants = []
    for i, path in enumerate(a.models):
        of = evaluate.Figures(**json.loads(path.with_suffix(".figures.json").read_text()))
        cost = choose.bench(a.bench[i]) if a.bench else run.cost(path.read_bytes(), Windows.load(a.windows).x[:64])
        variants.append(choose.Variant(path.stem, of, cost))
        print(f"{path.stem}: F1 {of.f1:.4f}, p50 {cost.p50_us:.0f} µs, p99 {cost.p99_us:.0f} µs, {cost.peak_kib} KiB on {cost.machine}")
    print(choose.choose(variants, choose.Board(a.deadline_us, a.memory_kib)).name)


def do_bundle(a: Args) -> None:
    release = bundle.Release(a.name, a.version, a.seq, evaluate.Level(a.threshold), a.deadline_ms, a.gap_max_ms, a.hop or 1)
    head = learn.Head(onnx.load(str(a.model.with_suffix(".head.onnx"))), sim.CLASSES)
    model = learn.assemble(FRONTS[a.front](), head, 1, a.name)
    rows = bundle.write(a.out, model, release, Windows.load(a.windows), a.card.read_text())
    print(f"{a.out}: now kentledge model prepare {a.out} --rows {rows}, sign manifest.json with minisign, kentledge model pack")


def do_respond(a: Args) -> None:
    responder = respond.load(a.model, a.name, a.threshold, a.band, a.instance, a.instances)
    client = wire.connect(a.host, a.port, "respond", tls_of(a))
    responder.serve(client, a.site, a.group)
    print(f"{a.name} answers windows of {a.site}", flush=True)
    client.loop_forever()


def do_loop(a: Args) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        figures = loop.loop(a.folder or pathlib.Path(temporary), loop.SHORT)
    loop.better(figures)
    print(json.dumps(figures))


def do_sample_models(a: Args) -> None:
    print(make.sample_models(a.out, loop.kentledge_program(), bearing.QUICK if a.quick else bearing.Sizes()))


def do_recordings(a: Args) -> None:
    """F1 and the rest on the benchmark's recordings: sample model, teacher, student, and each with an oracle."""
    experiments = recordings.load(a.folder)
    scored = {"pump-anomaly": recordings.sample_model(experiments, loop.MODELS / "pump-anomaly/model.onnx")}
    cross = recordings.cross_validated(experiments)
    scored |= {"student": cross.student, "teacher": cross.teacher}
    for name, of in scored.items():
        with_oracle, sent = of.escalated(recordings.BANDS[name], 0.1)
        print(f"{name}: {of.figures()}")
        print(f"{name}, oracle within a budget of 10 % (sent {sent:.1%}, band ±{recordings.BANDS[name]:g}): {with_oracle}")
    if a.plot:
        chosen = {name: (recordings.BANDS[name] / 2, recordings.BANDS[name]) for name in ("pump-anomaly", "student")}
        plots.escalation({name: scored[name] for name in chosen}, chosen, a.plot)


def broker_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=1883)
    for name in ("--ca", "--cert", "--key"):
        p.add_argument(name)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m kit", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run_it: Callable[[Args], None], what: str) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=what, description=what)
        p.set_defaults(run_it=run_it)
        return p

    path = pathlib.Path
    p = command("collect", do_collect, "CSV files, tapes, a broker's stream, pulled samples or the simulation as a Parquet file of windows")
    p.add_argument("source", choices=["csv", "tape", "broker", "samples", "simulation"])
    p.add_argument("files", nargs="*")
    p.add_argument("--out", type=path, required=True)
    p.add_argument("--channels", help="names, in the order of the model's channels")
    p.add_argument("--units")
    p.add_argument("--columns", help="csv: names in the header, in the same order")
    p.add_argument("--time", default="time", help="csv: the column with the clock")
    p.add_argument("--label", help="csv: the column with the class")
    p.add_argument("--labels", help="csv: what its cells mean: 0=ok,1=outer")
    p.add_argument("--separator")
    p.add_argument("--rate-hz", type=float, default=sim.RATE_HZ)
    p.add_argument("--steps", type=int, default=sim.STEPS)
    p.add_argument("--hop", type=int)
    p.add_argument("--gap-max-ms", type=float)
    p.add_argument("--like", type=path, help="windows that are known to be right: channels, their order and their scale must be theirs")
    p.add_argument("--gaps", choices=["refuse", "cut"], default="refuse")
    p.add_argument("--config", type=path, help="tape: the device's configuration")
    p.add_argument("--stream", default="raw")
    p.add_argument("--device", help="broker: SITE/DEVICE")
    p.add_argument("--seconds", type=float, default=60)
    p.add_argument("--fault", default="fault", help="samples: the class of windows labelled true")
    p.add_argument("--pumps", type=int, default=8)
    p.add_argument("--seed", type=int, default=1000)
    broker_options(p)

    p = command("features", do_features, "writes a front end as an ONNX model")
    p.add_argument("front", choices=sorted(FRONTS))
    p.add_argument("--out", type=path, required=True)

    p.add_argument("--profile", action="store_true", help="also measures where the time goes, on simulated windows")

    p = command("train", do_train, "trains a teacher on labelled windows")
    p.add_argument("windows", type=path)
    p.add_argument("--test", type=path, help="windows that must not leak into the training")
    p.add_argument("--out", type=path, required=True)

    p = command("distil", do_distil, "trains a small student to answer as the teacher does; labels are not needed")
    p.add_argument("windows", type=path)
    p.add_argument("--teacher", type=path, required=True)
    p.add_argument("--out", type=path, required=True)

    p = command("quantise", do_quantise, "makes the int8 variant of a student")
    p.add_argument("model", type=path)
    p.add_argument("--windows", type=path, required=True, help="for the ranges of values")
    p.add_argument("--threshold", type=float, default=1.0)
    p.add_argument("--out", type=path, required=True)

    p = command("evaluate", do_evaluate, "F1, false and missed alarms, balanced accuracy and delay of models on labelled windows")
    p.add_argument("models", type=path, nargs="+")
    p.add_argument("--windows", type=path, required=True)
    p.add_argument("--train", type=path, help="what the models were trained on: no window may be in both")
    p.add_argument("--same-machine", action="store_true")
    p.add_argument("--threshold", type=float, default=1.0)
    p.add_argument("--plot", type=path)

    p = command("choose", do_choose, "names the variant that keeps deadline and memory; run evaluate before it")
    p.add_argument("models", type=path, nargs="+")
    p.add_argument("--bench", type=path, nargs="+", help="`kentledge model bench --json` of the board, one for each model")
    p.add_argument("--windows", type=path, help="without --bench: measured here on these")
    p.add_argument("--deadline-us", type=float, required=True)
    p.add_argument("--memory-kib", type=int)

    p = command("bundle", do_bundle, "writes the folder of a bundle: model, manifest, golden cases, card, and rows for the baseline")
    p.add_argument("model", type=path)
    p.add_argument("--front", choices=sorted(FRONTS), default="student")
    p.add_argument("--windows", type=path, required=True, help="labelled, and not trained on")
    p.add_argument("--name", required=True)
    p.add_argument("--version", required=True)
    p.add_argument("--seq", type=int, required=True)
    p.add_argument("--threshold", type=float, required=True)
    p.add_argument("--deadline-ms", type=int, default=100)
    p.add_argument("--gap-max-ms", type=float)
    p.add_argument("--hop", type=int)
    p.add_argument("--card", type=path, required=True)
    p.add_argument("--out", type=path, required=True)

    p = command("respond", do_respond, "answers escalated windows with a larger model")
    p.add_argument("model", type=path)
    p.add_argument("--name", required=True, help="NAME@VERSION, for the lineage of answers")
    p.add_argument("--threshold", type=float, required=True)
    p.add_argument("--band", type=float, default=0.0, help="an answer this near to the threshold is `unsure`")
    p.add_argument("--site", default="+")
    p.add_argument("--group", help="several responders: the broker shares the windows among this group")
    p.add_argument("--instance", type=int, default=0, help="without shared subscriptions: this is number i …")
    p.add_argument("--instances", type=int, default=1, help="… of n")
    broker_options(p)

    p = command("loop", do_loop, "the whole circle on a simulated fleet of four pumps with real daemons")
    p.add_argument("--folder", type=path)

    p = command("sample-models", do_sample_models, "trains and writes models/vibration, vibration-int8, vibration-teacher")
    p.add_argument("--out", type=path, default=loop.MODELS)
    p.add_argument("--quick", action="store_true")

    p = command("recordings", do_recordings, "figures on the recordings of the Skoltech Anomaly Benchmark")
    p.add_argument("folder", type=path)
    p.add_argument("--plot", type=path)
    return top


def main() -> int:
    a = parser().parse_args()
    np.seterr(divide="ignore", invalid="ignore")
    try:
        a.run_it(a)
    except Refused as why:
        print(f"refused: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
