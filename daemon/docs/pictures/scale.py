#!/usr/bin/env python3
"""Draws scale.svg: what a sample and a window cost, in instructions, with more and more channels, models and ports. The numbers are those
that `KENTLEDGE_LONG=1 cargo test -p kentledge --lib -- --nocapture scale_tests` printed. Run: scale.py > scale.svg"""

COUNTED = {
    "channels": [(8, 4749, 42148), (32, 3273, 42118), (128, 2893, 42246), (512, 2801, 42980)],
    "models": [(1, 4746, 42112), (2, 4746, 41610), (4, 4746, 41305), (8, 4746, 41316), (16, 4746, 41385)],
    "ports": [(1, 4746, 42112), (2, 4747, 42137), (4, 4747, 42070), (8, 4746, 42164), (16, 4746, 41830)],
}

WIDTH, HEIGHT, PLOT, TOP = 720, 300, 190, 46
STYLE = (
    "text{font:12px sans-serif;fill:#222}.t{font-weight:bold}.g{stroke:#ddd}.l{fill:none;stroke-width:2}"
    ".s{stroke:#0b6e4f;fill:#0b6e4f}.w{stroke:#a23b72;fill:#a23b72}.b{fill:#eef3f1}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.g{stroke:#444}.b{fill:#24302c}}"
)


def share(costs):
    """Each cost as a share of the first."""
    return [cost / costs[0] for cost in costs]


def curve(points, x, style):
    """A line with a dot at each point; 1.0 is in the middle of the plot, 0 and 2 at its ends."""
    xs = [x + 14 + i * 172 / (len(points) - 1) for i in range(len(points))]
    ys = [TOP + PLOT * (1 - min(point, 2.0) / 2) for point in points]
    path = " ".join(f"{a:.0f},{b:.0f}" for a, b in zip(xs, ys))
    dots = "".join(f'<circle class="{style}" cx="{a:.0f}" cy="{b:.0f}" r="3"/>' for a, b in zip(xs, ys))
    return f'<polyline class="l {style}" style="fill:none" points="{path}"/>{dots}', xs


def plot(what, rows, x):
    out = [f'<text class="t" x="{x}" y="{TOP - 12}">{what}</text>']
    flat = (TOP + PLOT * (1 - 1.2 / 2), TOP + PLOT * (1 - 0.8 / 2))
    out.append(f'<rect class="b" x="{x}" y="{flat[0]:.0f}" width="200" height="{flat[1] - flat[0]:.0f}"/>')
    for level in (0, 0.5, 1, 1.5, 2):
        y = TOP + PLOT * (1 - level / 2)
        out.append(f'<line class="g" x1="{x}" y1="{y:.0f}" x2="{x + 200}" y2="{y:.0f}"/>')
        if x < 60:
            out.append(f'<text x="{x - 8}" y="{y + 4:.0f}" text-anchor="end">{level:g}</text>')
    for style, place in (("s", 1), ("w", 2)):
        drawn, xs = curve(share([row[place] for row in rows]), x, style)
        out.append(drawn)
    out += [f'<text x="{a:.0f}" y="{TOP + PLOT + 18}" text-anchor="middle">{row[0]}</text>' for a, row in zip(xs, rows)]
    return "".join(out)


def main():
    parts = [plot(what, rows, 40 + i * 228) for i, (what, rows) in enumerate(COUNTED.items())]
    legend = (
        f'<circle class="s" cx="46" cy="{HEIGHT - 20}" r="4"/><text x="56" y="{HEIGHT - 16}">a sample</text>'
        f'<circle class="w" cx="136" cy="{HEIGHT - 20}" r="4"/><text x="146" y="{HEIGHT - 16}">a window of 64 rows of 8 channels</text>'
        f'<text x="400" y="{HEIGHT - 16}">as a share of the first; the band is within 20 %</text>'
    )
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Instructions for a sample and for '
        f'a window, by channels, models and ports"><style>{STYLE}</style>{"".join(parts)}{legend}</svg>'
    )


if __name__ == "__main__":
    main()
