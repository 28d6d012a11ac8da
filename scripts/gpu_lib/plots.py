"""SVGs of results: times over the floor beside the others', and how time grows. Plain text, the same bytes for the same results."""

import math
import re

from gpu_lib import cases
from gpu_lib.results import number
from gpu_lib.verdict import rivals, rows

OURS, FLOOR, BAR, TEXT, GRID = "#1d4ed8", "#111111", "#b91c1c", "#111111", "#dddddd"
# The other forms, in legend order; unnamed ones are grey.
COLOURS = {
    "varlen": "#b45309", "varlen_packed": "#92400e", "flex": "#7c3aed", "sdpa_flash": "#047857", "sdpa_cudnn": "#0e7490", "sdpa_efficient": "#65a30d",
    "sdpa_math": "#a3a3a3", "eager": "#a3a3a3", "eager_cached": "#737373", "compile": "#c2410c", "compile_cached": "#9a3412",
    "compile_graphs": "#be185d",
}
FAMILIES = {
    "phi": ("Attention under φ", cases.is_phi),
    "keys": ("Attention over all keys", lambda record: record["case"].startswith("attention/") and not cases.is_phi(record)),
    "products": ("Products and what follows them", lambda record: record["case"].startswith(("linear/", "ffn/"))),
    "blocks": ("Whole blocks", lambda record: cases.is_block(record["case"])),
}
GROWTH = {
    "images": ("images in 2048 rows, batch 8", r"attention/openflamingo/b8-l2048-n(\d+)"),
    "text": ("rows of text, 8 images, batch 8", r"attention/openflamingo/b8-l(\d+)-n8"),
    "batch": ("batch, 2048 rows, 8 images", r"attention/openflamingo/b(\d+)-l2048-n8"),
}


def escaped(text):
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class Svg:
    """Shapes on a white ground, so that a dark page shows them as well."""

    def __init__(self, width, height):
        self.lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
                      '<rect width="100%" height="100%" fill="#ffffff"/>']

    def text(self, x, y, text, anchor="start", colour=TEXT, bold=False):
        weight = ' font-weight="bold"' if bold else ""
        self.lines.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>{escaped(text)}</text>')

    def line(self, x1, y1, x2, y2, colour, width=1.0, dashed=False):
        dash = ' stroke-dasharray="3 2"' if dashed else ""
        self.lines.append(f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="{width}"{dash}/>')

    def dot(self, x, y, colour, title, filled=True, radius=4):
        fill = colour if filled else "#ffffff"
        self.lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}" stroke="{colour}" stroke-width="1.5">'
                          f"<title>{escaped(title)}</title></circle>")

    def curve(self, points, colour, dashed=False):
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.lines.append(f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')

    def done(self):
        return "\n".join([*self.lines, "</svg>"]) + "\n"


def ordered(names):
    return sorted(names, key=lambda name: (list(COLOURS).index(name) if name in COLOURS else len(COLOURS), name))


def legend(svg, x, y, names):
    for name in names:
        colour = {"xattn": OURS, "floor": FLOOR, "bar": BAR}.get(name) or COLOURS.get(name, "#a3a3a3")
        if name in ("floor", "bar"):
            svg.line(x + 4, y - 9, x + 4, y + 1, colour, 2, dashed=name == "bar")
        else:
            svg.dot(x + 4, y - 4, colour, name, filled=name == "xattn")
        svg.text(x + 13, y, name)
        x += 24 + 7 * len(name)


def family(title, records, about):
    """A row per case: its time over the floor, the bar, and the others'; None where nothing has both a time and a floor."""
    shown = [r for r in records if number(r.get("median_us")) and number(r.get("floor_us")) and r["floor_us"] > 0]
    if not shown:
        return None
    left, width, top, step = 330, 520, 74, 26
    most = max(max([r["median_us"], *rivals(r).values()]) / r["floor_us"] for r in shown)
    least = min(min([r["median_us"], *rivals(r).values()]) / r["floor_us"] for r in shown)
    low, high = min(math.floor(math.log2(least)), 0), max(math.ceil(math.log2(most)), 1)
    bottom = top + step * len(shown)
    svg = Svg(left + width + 110, bottom + 44)

    def across(ratio):
        return left + width * (math.log2(ratio) - low) / (high - low)

    svg.text(16, 22, f"{title}: time over the floor, {about}", bold=True)
    others = ordered({name for r in shown for name in rivals(r)})
    legend(svg, 16, 46, ["xattn", "floor", "bar", *others])
    for power in range(low, high + 1):
        svg.line(across(2.0**power), top - 8, across(2.0**power), bottom, GRID)
        svg.text(across(2.0**power), bottom + 16, f"{2.0**power:g}x", "middle")
    for at, record in enumerate(shown):
        y, floor = top + step * at + step / 2 - 4, record["floor_us"]
        svg.text(left - 10, y + 4, record["case"], "end")
        svg.line(across(1), y - 7, across(1), y + 7, FLOOR, 2)
        if number(record.get("bar_us")):
            svg.line(across(record["bar_us"] / floor), y - 7, across(record["bar_us"] / floor), y + 7, BAR, 2, dashed=True)
        for name in ordered(rivals(record)):
            us = rivals(record)[name]
            svg.dot(across(us / floor), y, COLOURS.get(name, "#a3a3a3"), f"{name}: {us:.2f} us", filled=False)
        svg.dot(across(record["median_us"] / floor), y, OURS, f"xattn: {record['median_us']:.2f} us", radius=5)
        svg.text(left + width + 12, y + 4, f"{record['median_us']:.2f} us", colour=OURS)
    return svg.done()


def growth(records, about):
    """A panel each for images, text and batch: microseconds on two logarithmic axes; None where no panel has two points."""
    panels = []
    for what, pattern in GROWTH.values():
        points = sorted((int(found[1]), r) for r in records if number(r.get("median_us")) and (found := re.fullmatch(pattern, r["case"])))
        if len(points) > 1:
            panels.append((what, points))
    if not panels:
        return None
    width, height, gap, top = 260, 200, 90, 74
    svg = Svg(gap + len(panels) * (width + gap), top + height + 52)
    svg.text(16, 22, f"Attention under φ, 8 heads of 64: microseconds, {about}", bold=True)
    others = ordered({name for _, points in panels for _, r in points for name in rivals(r)})
    legend(svg, 16, 46, ["xattn", "floor", *others])
    for panel, (what, points) in enumerate(panels):
        x0, y0 = gap + panel * (width + gap), top + height
        curves = {"floor": [(n, r.get("floor_us")) for n, r in points], "xattn": [(n, r["median_us"]) for n, r in points]}
        curves |= {name: [(n, rivals(r).get(name)) for n, r in points] for name in others}
        curves = {name: [(n, us) for n, us in curve if number(us) and us > 0] for name, curve in curves.items()}
        values = [us for curve in curves.values() for _, us in curve]
        low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
        high = max(high, low + 1)
        first, last = math.log2(points[0][0]), math.log2(points[-1][0])

        def place(n, us):
            return x0 + width * (math.log2(n) - first) / (last - first), y0 - height * (math.log2(us) - low) / (high - low)

        for power in range(low, high + 1, max((high - low) // 6, 1)):
            y = place(points[0][0], 2.0**power)[1]
            svg.line(x0, y, x0 + width, y, GRID)
            svg.text(x0 - 8, y + 4, f"{2.0**power:g} us", "end")
        for n, _ in points:
            svg.text(place(n, 2.0**low)[0], y0 + 18, n, "middle")
        svg.text(x0 + width / 2, y0 + 38, what, "middle")
        for name in ["floor", *others, "xattn"]:
            colour = {"xattn": OURS, "floor": FLOOR}.get(name) or COLOURS.get(name, "#a3a3a3")
            at = [place(n, us) for n, us in curves[name]]
            if len(at) > 1:
                svg.curve(at, colour, dashed=name == "floor")
            for (x, y), (n, us) in zip(at, curves[name]) if name != "floor" else []:
                svg.dot(x, y, colour, f"{name}, {n}: {us:.2f} us", filled=name == "xattn", radius=3)
    return svg.done()


class Refused(Exception):
    """Results that cannot be drawn, and why."""


def merged(reports):
    """One report of several files, later ones before earlier ones; refuses what has no times, and devices that differ."""
    found, device = {}, None
    for path, report in reports:
        if report.get("emulated"):
            raise Refused(f"{path}: of an emulated device, which tells no time; there is nothing to plot")
        if not any(number(record.get("median_us")) for record in report.get("cases", [])):
            raise Refused(f"{path}: no record has a time (median_us); there is nothing to plot")
        if device not in (None, report.get("device")):
            raise Refused(f"{path}: of {report.get('device')}, the files before it of {device}; times of two devices are not comparable")
        device = report.get("device")
        for record in report["cases"]:
            found[record["case"], record.get("backend"), record["dtype"], record.get("cold")] = record
    latest = reports[-1][1]
    return {**latest, "cases": list(found.values())}


def plots(report):
    """File name and text of each plot that there is something for."""
    shown = rows(report)
    about = f"{report['device']}, bf16, L2 cold, {str(report.get('date'))[:10]}, {report.get('commit')}"
    found = {f"gpu-{name}.svg": family(title, [r for r in shown if meant(r)], about) for name, (title, meant) in FAMILIES.items()}
    found["gpu-growth.svg"] = growth(shown, about)
    found = {name: text for name, text in found.items() if text}
    if not found:
        raise Refused("no case in bf16 with a cold cache has a time and a floor; there is nothing to plot")
    return found
