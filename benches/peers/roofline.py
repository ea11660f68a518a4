"""The picture and the tables of PERFORMANCE.md from a record of `all.py`.

    python benches/peers/roofline.py RECORD.csv PICTURE.svg PERFORMANCE.md

The picture is written anew; in the Markdown file everything between the lines `<!-- tables -->` and `<!-- end of tables -->` is replaced.
Needs nothing but Python. The last record of a row counts.
"""

import csv
import math
import pathlib
import re
import sys

TITLES = {
    1: "plain update with decay, f32 (m×n×B)",
    2: "plain update with decay, f64 (m×n×B)",
    3: "update with momentum or Adam, f32 (m×n×B)",
    4: "relaxation of a layer (below-here-above-B)",
    5: "products of few samples",
    6: "online step: update, then product with the next sample",
    7: "elementary functions",
    8: "training step with Adam",
    10: "inference",
}


def batch(shape):
    return int(re.split(r"[x-]", shape)[-1])


def plain_share(shape, threads):
    """Share of the bound that is asked for in an update."""
    b = batch(shape)
    if b == 1 and threads == 2 and shape == "256x784x1":
        return 0.90
    if b >= 256:
        return 0.90 if shape.startswith("4096") else 0.92
    return {1: 0.95, 8: 0.85, 16: 0.72, 32: 0.88}.get(b, 0.90)


def targets(line, shape, threads):
    """What is asked for: share of the bound, and how much slower the best peer is to be; None where nothing is."""
    if line in (1, 2):
        return plain_share(shape, threads), 1.0
    if line == 3:
        what, size = shape.split()
        b = batch(size)
        multiples = {
            "Adam": {8: 1.10, 16: 1.25, 32: 2.0, 64: 1.6, 100: 1.42, 128: 1.42, 256: 1.28},
            "momentum": {8: 1.05, 16: 1.25, 32: 1.7, 64: 1.4, 100: 1.25, 128: 1.25, 256: 1.25},
        }
        return 1 / multiples[what][b], 1.25 if b > 128 else 1.4
    if line == 4:
        return (0.86, 1.4) if batch(shape) == 32 else (0.90, 1.15)
    if line == 5:
        return 0.85, 1.0
    if line == 6:
        return 0.85, 1.4
    if line == 7:
        return None, 1.2 if shape == "tanh 16384" else 1.0
    if line == 8:
        return None, 2.0 if "-128-" in shape else 1.8 if "-512-" in shape else 1.4
    return None, 1.0


class Cell:
    """The rows of a line, shape and number of threads."""

    def __init__(self, rows):
        self.rows = {row["row"]: row for row in rows}
        first = rows[0]
        self.line, self.shape, self.dtype, self.threads = int(first["line"]), first["shape"], first["dtype"], int(first["threads"])
        own = [row for row in rows if row["row"].startswith("dualprop")]
        self.ours = next(row for row in own if float(row["over_ours"]) == 1)
        self.in_place = next((row for row in own if row["row"] == "dualprop, in place"), None)
        peers = [row for row in rows if row not in own]
        if self.line == 8 and "R=5" not in self.shape:  # peers' back-propagation
            peers = [row for row in peers if "DPt" not in row["row"]]
        self.peers = sorted(peers, key=lambda row: float(row["median_us"]))
        self.best = self.peers[0]

    def at_beta(self, decays):
        """The best peer of an update whose call decays the weights, or of those that do not."""
        found = [row for row in self.peers if row["row"].endswith("beta 1") != decays]
        return found[0] if found else None

    @property
    def share(self):
        return float(self.ours["share_of_bound"])

    def short(self):
        """What falls short of the share of the bound, and of the ratio to the best peer, that are asked for: each in words or nothing."""
        share, ratio = targets(self.line, self.shape, self.threads)
        best = self.at_beta(True) if self.line in (1, 2) else self.best
        below = f"{self.shape} {percent(self.share)} ({percent(share)})" if share and self.share < share else ""
        over = float(best["over_ours"])
        most = over / self.share  # what a kernel at the bound would have
        limit = f"; {most:.2f} at the bound" if most < ratio else ""
        return below, f"{self.shape} {over:.2f} ({ratio:.2f}, {best['row']}{limit})" if over < ratio else ""


def percent(share):
    return f"{100 * share:.0f} %"


def microseconds(text):
    x = float(text)
    return f"{x / 1000:.3g} ms" if x >= 999.5 else f"{x:.3g} µs"


def ratio(row):
    return f"{float(row['over_ours']):.2f} ({float(row['over_ours_low']):.2f}–{float(row['over_ours_high']):.2f})"


def table(cells):
    line = cells[0].line
    wide = line in (1, 2)
    head = ["shape", "bound", "limit", "ours", "of the bound", "asked for", "best peer", "peer / ours", "asked for"]
    if wide:
        head[6:9] = ["best peer, beta = 0.999", "peer / ours", "best peer, beta = 1", "peer / ours"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for cell in cells:
        share, wanted = targets(cell.line, cell.shape, cell.threads)
        asked = percent(share) if share else "–"
        ours = cell.ours
        name = "" if ours["row"] == "dualprop" or "(" not in ours["row"] else " " + ours["row"][ours["row"].index("(") :]
        if cell.in_place:
            name += f" (in place {microseconds(cell.in_place['median_us'])})"
        row = [cell.shape, microseconds(ours["bound_us"]), ours["limited_by"], microseconds(ours["median_us"]) + name, percent(cell.share)]
        row.append(asked)
        for peer in [cell.at_beta(True), cell.at_beta(False)] if wide else [cell.best]:
            row += [f"{peer['row'].removesuffix(', beta 0.999').removesuffix(', beta 1')}, {microseconds(peer['median_us'])}", ratio(peer)]
        if not wide:
            row.append(f"{wanted:.2f}")
        lines.append("| " + " | ".join(row) + " |")
    return lines


COLOURS = {1: "#4477aa", 2: "#66ccee", 3: "#ee6677", 4: "#228833", 5: "#aa8800", 6: "#aa3377", 8: "#777777", 10: "#bb5500"}
STYLE = """<style>
text { font: 12px sans-serif; fill: #333; } .axis { stroke: #888; } .grid { stroke: #8883; } .roof { stroke: #333; stroke-width: 2; fill: none; }
@media (prefers-color-scheme: dark) { text { fill: #ddd; } .roof { stroke: #ddd; } }
</style>"""


def picture(cells):
    """Share of the FMA peak over arithmetic intensity, relative to that of the ridge; ours full, the best peer hollow."""
    cells = [cell for cell in cells if cell.threads == 1 and float(cell.ours["memory_us"]) > 0 and cell.line in COLOURS]
    left, top, width, height = 84, 20, 640, 420
    low, high, floor = 2.0**-5, 2.0**7, 2.0**-6

    def x(value):
        return left + width * math.log(min(max(value, low), high) / low) / math.log(high / low)

    def y(value):
        return top + height * math.log(1 / max(value, floor)) / math.log(1 / floor)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 500" role="img">', STYLE]
    for k in range(-5, 8):
        parts.append(f'<path class="grid" d="M{x(2.0**k):.1f} {top}V{top + height}"/>')
        label = f"{2**k}" if k >= 0 else f"1/{2**-k}"
        parts.append(f'<text x="{x(2.0**k):.1f}" y="{top + height + 16}" text-anchor="middle">{label}</text>')
    for k in range(-6, 1):
        parts.append(f'<path class="grid" d="M{left} {y(2.0**k):.1f}H{left + width}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(2.0**k) + 4:.1f}" text-anchor="end">{100 * 2.0**k:.3g} %</text>')
    parts.append(f'<path class="roof" d="M{x(low):.1f} {y(low):.1f}L{x(1):.1f} {y(1):.1f}H{x(high):.1f}"/>')
    caption = "arithmetic intensity, relative to where flops and bytes take the same time"
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 36}" text-anchor="middle">{caption}</text>')
    parts.append(f'<text transform="translate(14 {top + height / 2}) rotate(-90)" text-anchor="middle">share of the FMA peak</text>')
    for cell in cells:
        colour, row = COLOURS[cell.line], cell.ours
        arithmetic, memory = float(row["arithmetic_us"]), float(row["memory_us"])
        peer = cell.at_beta(True) if cell.line in (1, 2) else cell.best
        at, ours, theirs = x(arithmetic / memory), *(y(arithmetic / float(each["median_us"])) for each in (row, peer))
        title = f"<title>line {cell.line}, {cell.shape}: {percent(cell.share)} of the bound; {peer['row']}: {ratio(peer)} of our time</title>"
        parts.append(f'<g stroke="{colour}">{title}<path d="M{at:.1f} {ours:.1f}V{theirs:.1f}" opacity=".35"/>')
        parts.append(f'<circle cx="{at:.1f}" cy="{theirs:.1f}" r="3" fill="none"/>')
        parts.append(f'<circle cx="{at:.1f}" cy="{ours:.1f}" r="4" fill="{colour}"/></g>')
    for k, line in enumerate(sorted({cell.line for cell in cells})):
        parts.append(f'<circle cx="{left + width + 20}" cy="{top + 10 + 20 * k}" r="4" fill="{COLOURS[line]}"/>')
        words = {1: "update f32", 2: "update f64", 3: "with moments", 4: "relaxation", 5: "few samples", 6: "online step"}
        text = words.get(line, {8: "training step", 10: "inference"}.get(line))
        parts.append(f'<text x="{left + width + 30}" y="{top + 14 + 20 * k}">{line} {text}</text>')
    parts.append(f'<text x="{left + width + 16}" y="{top + 194}">full: dualprop</text>')
    parts.append(f'<text x="{left + width + 16}" y="{top + 212}">hollow: best peer</text></svg>\n')
    return "\n".join(parts)


def main():
    record, drawing, document = map(pathlib.Path, sys.argv[1:])
    groups = {}
    with record.open(newline="") as file:
        for row in csv.DictReader(file):
            groups.setdefault((int(row["line"]), int(row["threads"]), row["shape"], row["dtype"]), {})[row["row"]] = row
    cells = [Cell(list(rows.values())) for _, rows in sorted(groups.items(), key=lambda item: item[0][:2])]
    drawing.write_text(picture(cells), encoding="utf-8")

    lines = [f"Versions: {cells[-1].ours['versions']}.", ""]
    for line, title in TITLES.items():
        for threads in (1, 2):
            chosen = [cell for cell in cells if (cell.line, cell.threads) == (line, threads)]
            if chosen:
                count = "one thread" if threads == 1 else "two threads (line 9)"
                lines += [f"### Line {line}: {title}, {count}", "", *table(chosen), ""]
    alone = {(cell.line, cell.shape): cell for cell in cells if cell.threads == 1}
    pairs = [(cell, alone[cell.line, cell.shape]) for cell in cells if cell.threads == 2 and (cell.line, cell.shape) in alone]
    if pairs:
        lines += ["### Line 9: two threads against one", "", "| line | shape | one | two | gain | the bound allows |", "|---" * 6 + "|"]
        for two, one in pairs:
            times = [float(cell.ours["median_us"]) for cell in (one, two)]
            bounds = [float(cell.ours["bound_us"]) for cell in (one, two)]
            numbers = [*map(microseconds, times), f"{times[0] / times[1]:.2f}", f"{bounds[0] / bounds[1]:.2f}"]
            lines.append("| " + " | ".join([str(two.line), two.shape, *numbers]) + " |")
        lines.append("")
    lines += ["## What falls short", "", "In brackets what is asked for; of peers, how long they take for each unit of our time, and what that would be at the bound where"]
    lines += ["even there it is less than asked for.", ""]
    for line in TITLES:
        for threads in (1, 2):
            chosen = [cell.short() for cell in cells if (cell.line, cell.threads) == (line, threads)]
            name = f"Line {line}" + (", two threads" if threads == 2 else "")
            for what, words in zip(("share of the bound", "best peer / ours"), zip(*chosen)):
                if any(words):
                    lines.append(f"* {name}, {what}: {'; '.join(filter(None, words))}.")
    slow = []
    for two, one in pairs:
        gain = float(one.ours["median_us"]) / float(two.ours["median_us"])
        wanted = min(1.85, float(one.ours["bound_us"]) / float(two.ours["bound_us"]))
        if gain < wanted:
            slow.append(f"line {two.line} {two.shape} {gain:.2f} ({wanted:.2f})")
    if slow:
        lines.append(f"* Line 9, gain by the second thread: {'; '.join(slow)}.")
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- tables -->\n")
    _, _, after = rest.partition("<!-- end of tables -->\n")
    inside = "\n".join(lines)
    document.write_text(f"{before}<!-- tables -->\n{inside}\n<!-- end of tables -->\n{after}", encoding="utf-8")


main()
