#!/usr/bin/env python3
"""Draws the pictures of concepts.md as SVG: concepts.py NAME > NAME.svg. Without a name it lists them. A test compares them."""

import sys

PAPER, INK, SOFT, BLUE, GREEN, RED, GREY = "#ffffff", "#1f2933", "#52606d", "#e1ecf7", "#e3f5e6", "#fbe6e1", "#eef1f4"
out = []


def text(x, y, words, size=12, colour=INK, weight="normal", anchor="middle"):
    out.append(f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" font-weight="{weight}" text-anchor="{anchor}">{words}</text>')


def box(x, y, wide, high, words, fill=BLUE, dashed=False):
    """A box with lines in its middle; the first one is bold."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    out.append(f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="6" fill="{fill}" stroke="{SOFT}"{dash}/>')
    lines = words.split("\n")
    top = y + high / 2 - 8 * (len(lines) - 1) + 4
    for n, line in enumerate(lines):
        text(x + wide / 2, top + 16 * n, line, 12 if n == 0 else 11, INK if n == 0 else SOFT, "bold" if n == 0 else "normal")


def arrow(x1, y1, x2, y2, words="", colour=INK):
    out.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="1.5" marker-end="url(#tip)"/>')
    if words and y1 == y2:
        text((x1 + x2) / 2, y1 - 7, words, 11, SOFT)
    elif words:
        text(x1 + 8, (y1 + y2) / 2 + 4, words, 11, SOFT, anchor="start")


def window():
    """Rows of a source; windows of 4 rows, 2 rows apart; one of them has a gap"""
    for row in range(1, 11):
        x = 130 + 50 * (row - 1)
        if row == 8:
            out.append(f'<rect x="{x}" y="20" width="44" height="30" rx="4" fill="{PAPER}" stroke="{SOFT}" stroke-dasharray="4 3"/>')
            text(x + 22, 40, "gap", 11, SOFT)
        else:
            out.append(f'<rect x="{x}" y="20" width="44" height="30" rx="4" fill="{GREY}" stroke="{SOFT}"/>')
            text(x + 22, 40, str(row))
    text(115, 40, "rows", 12, INK, "bold", "end")
    for n in range(4):
        x, y, lost = 130 + 100 * n, 66 + 34 * n, n > 1
        out.append(f'<rect x="{x}" y="{y}" width="194" height="24" rx="4" fill="{RED if lost else BLUE}" stroke="{SOFT}"/>')
        text(x + 97, y + 16, "dropped, or flagged" if lost else "prediction", 11, SOFT)
        text(115, y + 16, f"window {n + 1}", 12, INK, "bold", "end")
    out.append(f'<line x1="130" y1="118" x2="228" y2="118" stroke="{INK}" stroke-width="1.5" marker-end="url(#tip)" marker-start="url(#tip)" stroke-dasharray="none" transform="translate(0 16)"/>')
    text(179, 152, "hop: 2 rows", 11, SOFT)
    return 660, 205


def slots():
    """Slots of a model: the image's bundle, a and b; the new bundle goes into the slot that does not serve"""
    box(20, 40, 150, 58, "factory\nthe image's bundle", GREY)
    box(220, 40, 150, 58, "slot a\n1.0.0, serves", GREEN)
    box(420, 40, 150, 58, "slot b\n1.1.0, on trial", BLUE, True)
    arrow(495, 8, 495, 38)
    text(507, 22, "model.install", 11, SOFT, anchor="start")
    arrow(372, 60, 418, 60)
    arrow(418, 84, 372, 84)
    text(395, 122, "trial passed: b serves, a is the previous model", 11, SOFT)
    text(395, 140, "bad sign, or model.rollback: a serves again", 11, SOFT)
    return 590, 155


def trial():
    """A new model: verified, proven, shadow, trial, steady; and where it can fail"""
    steps = [("verified", "signature,\ndigests, sequence"), ("proven", "golden cases\nin tolerance"), ("shadow", "learns, is\nnot published"),
             ("trial", "serves, is\nwatched"), ("steady", "the result\nis success")]
    for n, (name, words) in enumerate(steps):
        x = 20 + 150 * n
        box(x, 20, 120, 70, f"{name}\n{words}", GREEN if name == "steady" else BLUE)
        if n:
            arrow(x - 30, 55, x - 2, 55)
    box(90, 140, 200, 46, "failed\nit never served", RED)
    box(440, 140, 210, 46, "rolled_back\nthe previous model serves", RED)
    arrow(80, 90, 130, 138)
    arrow(230, 90, 210, 138)
    arrow(380, 90, 278, 138)
    arrow(530, 90, 540, 138)
    return 760, 200


def keyset():
    """Keyset: which key signs what; version N+1 is signed by keyset keys of N and of N+1"""
    box(20, 20, 250, 128, "")
    text(145, 42, "keyset, version N", 13, INK, "bold")
    for n, (name, role) in enumerate([("release", "model"), ("ops", "command"), ("root", "keyset")]):
        text(40, 70 + 28 * n, name, 12, INK, anchor="start")
        text(110, 70 + 28 * n, f"role {role}", 12, SOFT, anchor="start")
        arrow(212, 66 + 28 * n, 318, 66 + 28 * n)
    text(328, 70, "bundles: my-model-1.0.0.kmb", 12, INK, anchor="start")
    text(328, 98, "commands, desired state", 12, INK, anchor="start")
    text(328, 126, "the next keyset", 12, INK, anchor="start")
    box(20, 196, 250, 58, "keyset, version N + 1\nthe device accepts it", GREEN)
    arrow(145, 150, 145, 194, "keyset.update: signed by root of N and by root of N + 1")
    return 560, 270


def outbox():
    """Outbox: records wait in RAM and on disk; each ends as delivered, stored or in the ledger"""
    box(20, 70, 110, 52, "record\nseq 17", GREY)
    box(180, 70, 130, 52, "RAM\nbroker answers", BLUE)
    box(180, 170, 130, 52, "store on disk\nin an outage", GREEN)
    box(390, 70, 120, 52, "broker\nacknowledges", GREY)
    box(390, 170, 120, 52, "ledger\nup/loss", RED)
    arrow(130, 96, 178, 96)
    arrow(310, 96, 388, 96, "live")
    arrow(245, 122, 245, 168)
    arrow(312, 170, 388, 124)
    text(362, 162, "hist: true", 11, SOFT, anchor="start")
    arrow(310, 200, 388, 200, "evicted")
    text(20, 32, "made = delivered + stored + ledger, for each stream", 13, INK, "bold", "start")
    return 530, 240


def lineage():
    """Lineage: each part of the member and what it names"""
    text(20, 32, "Each prediction says what made it:", 13, INK, "bold", "start")
    rows = [('"model":"pump-anomaly@1.0.0"', "name and version"), ('"sha256":"958c…"', "digest of its ONNX file"),
            ('"slot":"a"', "place on the device: a, b, factory"), ('"provider":"cpu"', "what computed it"),
            ('"cal":"sha256:4629…"', "digest of what it learned here"), ('"unsigned":false', "whether a key signed it")]
    for n, (member, words) in enumerate(rows):
        y = 62 + 28 * n
        out.append(f'<text x="30" y="{y}" font-size="12" fill="{INK}" font-family="monospace">{member.replace(chr(34), "&quot;")}</text>')
        arrow(262, y - 4, 318, y - 4)
        text(328, y, words, 12, SOFT, anchor="start")
    return 560, 220


PICTURES = {"window": window, "slots": slots, "trial": trial, "keyset": keyset, "outbox": outbox, "lineage": lineage}

if len(sys.argv) != 2 or sys.argv[1] not in PICTURES:
    print("\n".join(PICTURES))
    sys.exit(0 if len(sys.argv) == 1 else 2)
draw = PICTURES[sys.argv[1]]
wide, high = draw()
print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" font-family="sans-serif" role="img">')
print(f"<title>{draw.__doc__}</title>")
print(f'<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
      f'<path d="M0 0 10 5 0 10z" fill="{INK}"/></marker></defs>')
print(f'<rect width="{wide}" height="{high}" rx="8" fill="{PAPER}"/>')
print("\n".join(out))
print("</svg>")
