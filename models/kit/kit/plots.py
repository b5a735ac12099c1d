"""Curves as SVG pictures."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

from .choose import Variant
from .recordings import Scored

matplotlib.rcParams["svg.hashsalt"] = "kentledge-kit"
SHARES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2)


def escalation(
    scored: dict[str, Scored], bands: Mapping[str, Sequence[float]], path: pathlib.Path
) -> list[tuple[str, float, float, float]]:
    """F1 against the share of windows that an oracle answers. Returns (model, band, share, F1) of each point."""
    points = []
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, of in scored.items():
        for band in bands[name]:
            xs, ys = [], []
            for share in SHARES:
                found, sent = of.escalated(band, share)
                xs.append(100 * sent)
                ys.append(found.f1)
                points.append((name, band, sent, found.f1))
            axes.plot(xs, ys, marker="o", markersize=3, label=f"{name}, band ±{band:g}")
    axes.axhline(0.9, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("windows that an oracle answers, %")
    axes.set_ylabel("F1 over the rows of 22 recordings")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return points


def size_and_time(variants: list[Variant], path: pathlib.Path) -> None:
    """Size and time against F1, for teacher, student and int8."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True)
    for variant in variants:
        for axes, value in ((left, variant.cost.bytes / 1024), (right, variant.cost.p50_us)):
            axes.scatter([value], [variant.figures.f1])
            axes.annotate(variant.name, (value, variant.figures.f1), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    for axes, what in ((left, "size of the file, KiB"), (right, "one window, processor time, p50, µs")):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(what)
        axes.grid(alpha=0.3)
        axes.margins(0.35, 0.2)
    left.set_ylabel("F1 on unseen simulated pumps")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
