#!/usr/bin/env python3
"""Draws the road of a value as SVG, for the README: road.py > road.svg. A test compares the two."""

TITLE = "From the sensor to the broker: sources, signal, infer, outbox, link; worker and guard are processes of their own"
PAPER, INK, SOFT, BLUE, GREEN, RED = "#ffffff", "#1f2933", "#52606d", "#e1ecf7", "#e3f5e6", "#fbe6e1"
out = []


def text(x, y, words, size=13, colour=INK, weight="normal", anchor="middle"):
    out.append(f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" font-weight="{weight}" text-anchor="{anchor}">{words}</text>')


def box(x, y, wide, high, name, lines, fill=BLUE, dashed=False):
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    out.append(f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="8" fill="{fill}" stroke="{SOFT}"{dash}/>')
    text(x + wide / 2, y + 22, name, 14, INK, "bold")
    for n, line in enumerate(lines):
        text(x + wide / 2, y + 41 + 16 * n, line, 11.5, SOFT)


def arrow(x1, y1, x2, y2, words="", both=False):
    start = ' marker-start="url(#tip)"' if both else ""
    out.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.5" marker-end="url(#tip)"{start}/>')
    if words:
        if y1 == y2:
            text((x1 + x2) / 2, y1 - 7, words, 11, SOFT)
        else:
            text(x1 + 8, (y1 + y2) / 2 + 4, words, 11, SOFT, anchor="start")


box(10, 70, 120, 92, "sensors", ["serial, Modbus,", "GPIO, IIO,", "thermometers"], PAPER)
out.append(f'<rect x="160" y="20" width="640" height="330" rx="12" fill="none" stroke="{SOFT}"/>')
text(175, 42, "the device: one daemon", 12, SOFT, anchor="start")
box(180, 70, 120, 92, "signal", ["decodes, checks,", "makes windows", "and statistics"])
box(350, 70, 120, 92, "infer", ["scores, alarms,", "calibration,", "drift"])
box(500, 70, 120, 92, "outbox", ["keeps records", "until they are", "acknowledged"])
box(660, 70, 120, 92, "link", ["MQTT 5, TLS,", "own certificate", ""])
box(830, 70, 100, 92, "broker", ["any MQTT 5", "broker, your", "services"], PAPER)
box(320, 230, 130, 92, "worker", ["a process in a", "sandbox: runs", "ONNX Runtime"], RED, True)
box(180, 230, 120, 92, "guard", ["a process: holds", "GPIO lines, safe", "state if all fails"], RED, True)
box(500, 230, 120, 92, "disk", ["records in an", "outage, models,", "ledger of losses"], GREEN)
box(660, 230, 120, 92, "control", ["signed commands,", "trials, rollback", ""])
arrow(130, 116, 178, 116)
arrow(300, 116, 348, 116, "windows")
arrow(470, 116, 498, 116)
arrow(620, 116, 658, 116)
arrow(780, 116, 828, 116, "", True)
arrow(400, 162, 400, 228, "shared memory", True)
arrow(362, 162, 262, 228)
text(282, 190, "alarms", 11, SOFT)
arrow(560, 162, 560, 228, "offline", True)
arrow(720, 162, 720, 228, "commands", True)
arrow(658, 276, 622, 276)

print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 940 365" font-family="sans-serif" role="img">')
print(f"<title>{TITLE}</title>")
print(f'<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
      f'<path d="M0 0 10 5 0 10z" fill="{INK}"/></marker></defs>')
print(f'<rect width="940" height="365" fill="{PAPER}"/>')
print("\n".join(out))
print("</svg>")
