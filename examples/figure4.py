"""The paper's Figure 4: accuracy against MACs and parameters, and our own models below, on axes of their own.

python examples/figure4.py [--out FILE]

The paper's models are those of its Table 1, on ImageNet's 1000 classes. Ours are what `vtviz models` lists, on the
validation photos that their cards name: other photos and other classes, so that no point of theirs compares with ours.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image, ImageDraw

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))  # whether vtviz is installed or not
import vtviz
from vtviz import checkpoints
from vtviz.models.complexity import count_complexity
from vtviz.models.registry import model_from_config

VT, RESNET, OTHERS = "VT-ResNet", "ResNet", "other ResNets with attention"
COLOURS = {VT: (29, 93, 196), RESNET: (214, 106, 12), OTHERS: (150, 150, 156)}
INK, GRID = (38, 38, 38), (226, 226, 230)
WIDTH, HEIGHTS, MARGIN = 600, (480, 260), (64, 54, 24, 50)
"""Width of a plot and the heights of the paper's and of ours; left, top, right and bottom of each; in pixels."""
TEXT, DOT = 13, 5
FINE = 3
"""Everything is drawn this many times larger, and made smaller at the end."""

TABLE_1 = """
    ResNet     R-18 69.76 1.814 11.67 | R-34 73.32 3.664 21.78 | R-50 76.0 4.089 25.5 | R-101 77.39 7.802 44.44
    VT-ResNet  VT-R-18 74.29 1.587 12.76 | VT-R-34 77.46 3.151 18.02 | VT-R-50 78.88 3.412 21.4
    VT-ResNet  VT-R-101 81.09 7.127 40.33
    +SE        R-18 70.59 1.814 11.78 | R-34 73.87 3.664 21.96 | R-50 76.86 3.860 28.1 | R-101 77.65 7.575 49.33
    +CBAM      R-18 70.73 1.815 11.78 | R-34 74.01 3.664 21.96 | R-50 77.34 3.864 28.1 | R-101 78.49 7.581 49.33
    LR         R-18 74.6 2.5 14.4 | R-50 77.3 4.3 23.3 | R-101 78.5 7.79 42.0
    AA         R-34 74.7 3.55 20.7 | R-50 77.7 4.1 25.6 | R-101 78.7 8.05 45.4
    Stand-Alone R-50 77.6 3.6 18.0
    SAN19      R-50 78.2 3.3 20.5
"""
"""Table 1 as printed: top-1 in percent, MACs in G, parameters in M. A2-R-50 has neither of the last two."""

parser = argparse.ArgumentParser(description="Plot accuracy against MACs and parameters: the paper's models and ours.")
parser.add_argument("--out", type=Path, default=Path("out/figure4.png"), help="a PNG file (default: %(default)s)")


@dataclass(frozen=True)
class Point:
    """A model: its family, name, top-1 in percent with half of its 95 % interval, MACs in G, parameters in M."""

    family: str
    name: str
    top1: float
    half: float
    macs: float
    params: float


def paper() -> list[Point]:
    """The models of Table 1 whose costs are printed."""
    points = []
    for line in TABLE_1.strip().splitlines():
        family, _, rest = line.strip().partition(" ")
        for part in rest.split("|"):
            name, *figures = part.split()
            top1, macs, params = map(float, figures)
            known = family in COLOURS
            points.append(Point(family if known else OTHERS, name if known else family, top1, 0.0, macs, params))
    return points


def ours() -> dict[str, list[Point]]:
    """The classifiers at hand by the data that they were scored on, with costs counted at the size they run at."""
    found: dict[str, list[Point]] = {}
    for name in checkpoints.available():
        card = checkpoints.read_card(checkpoints.find(name))
        top1, n, data = (card.accuracy.get(key) for key in ("top1", "n", "data"))
        if card.task != "classification" or not card.trained or not (top1 and n and data):
            continue
        with torch.device("meta"):
            model = model_from_config(card.model, card.config)
        size = card.preprocessing.size
        cost = count_complexity(model, (3, size, size))
        half = 196 * math.sqrt(top1 * (1 - top1) / n)
        family = VT if card.model.startswith("vt_") else RESNET
        title = f"Ours, {data}: {len(card.classes)} classes, {n:,} validation photos, {size} px; bars: 95 % intervals"
        point = Point(family, card.name, 100 * top1, half, cost.macs / 1e9, cost.params / 1e6)
        found.setdefault(title, []).append(point)
    return found


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values, 1, 2 or 5 times a power of ten apart, that enclose low and high."""
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(n * unit for n in (1, 2, 5, 10, 20) if (high - low) / (n * unit) <= most)
    return [n * step for n in range(math.floor(low / step), math.ceil(high / step) + 1)]


class Plot:
    """One pair of axes on a picture that is drawn :data:`FINE` times larger."""

    def __init__(self, picture: Image.Image, left: int, top: int, height: int, x: list[float], y: list[float]) -> None:
        self.letters = ImageDraw.Draw(picture)
        self.box = left + MARGIN[0], top + MARGIN[1], left + WIDTH - MARGIN[2], top + height - MARGIN[3]
        self.x, self.y = x, y
        self.taken: list[tuple[float, float, float, float]] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a value lies, in pixels."""
        left, top, right, bottom = self.box
        across, up = (x - self.x[0]) / (self.x[-1] - self.x[0]), (y - self.y[0]) / (self.y[-1] - self.y[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    def line(self, points: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: float = 1) -> None:
        """A line through pixels."""
        self.letters.line([(FINE * x, FINE * y) for x, y in points], colour, round(FINE * width), joint="curve")

    def write(
        self, xy: tuple[float, float], text: str, anchor: str, colour: tuple[int, int, int] = INK, size: int = TEXT
    ) -> None:
        """One line of text; ``anchor`` as Pillow has it."""
        self.letters.text((FINE * xy[0], FINE * xy[1]), text, colour, anchor=anchor, font_size=FINE * size)

    def axes(self, title: str, x_name: str, y_name: str) -> None:
        """Grid, numbers and names."""
        left, top, right, bottom = self.box
        for value in self.x:
            self.line([self.at(value, self.y[0]), self.at(value, self.y[-1])], GRID)
            self.write((self.at(value, 0)[0], bottom + 7), f"{value:g}", "mt")
        for value in self.y:
            self.line([self.at(self.x[0], value), self.at(self.x[-1], value)], GRID)
            self.write((left - 8, self.at(0, value)[1]), f"{value:g}", "rm")
        self.line([(left, top), (left, bottom), (right, bottom)], INK)
        self.write(((left + right) / 2, bottom + 27), x_name, "mt")
        self.write((left - 40, top - 14), y_name, "ls")
        self.write((left - 40, top - 32), title, "ls", size=TEXT + 2)

    def draw(self, points: Sequence[tuple[float, Point]]) -> None:
        """Points with their names, those of a family on one line; (where along x, the point)."""
        radius = DOT + 1
        for x, point in points:
            a, b = self.at(x, point.top1)
            self.taken.append((a - radius, b - radius, a + radius, b + radius))
        for family in (RESNET, VT):
            along = [self.at(x, p.top1) for x, p in sorted(points, key=lambda each: each[0]) if p.family == family]
            self.line(along, COLOURS[family], 1.5)
            for (a, b), (c, d) in pairwise(along):  # names keep off the line
                self.taken += [(a + (c - a) * i / 30, b + (d - b) * i / 30) * 2 for i in range(31)]
        for x, point in sorted(points, key=lambda each: list(COLOURS).index(each[1].family), reverse=True):
            a, b = self.at(x, point.top1)
            if point.half:
                self.line([self.at(x, point.top1 - point.half), self.at(x, point.top1 + point.half)], INK)
            dot = DOT if point.family in (VT, RESNET) else DOT - 1.5
            self.letters.ellipse([FINE * v for v in (a - dot, b - dot, a + dot, b + dot)], COLOURS[point.family])
        for x, point in sorted(points, key=lambda each: list(COLOURS).index(each[1].family)):
            self._name(*self.at(x, point.top1), point)

    def _name(self, x: float, y: float, point: Point) -> None:
        """The name at the first place where it covers nothing, else right of its point; a line to it if far."""
        size = TEXT if point.family in (VT, RESNET) else TEXT - 3
        width = self.letters.textlength(point.name, font_size=FINE * size) / FINE
        high, boxes = size * 0.9, []
        for gap in (DOT + 3, 3 * DOT, 6 * DOT, 9 * DOT, 12 * DOT):
            left, right, above, below = x - gap - width, x + gap, y - gap - high, y + gap
            sides = [(right, y - high / 2), (left, y - high / 2), (x - width / 2, above), (x - width / 2, below)]
            corners = [(right, above), (right, below), (left, above), (left, below)]
            boxes += [(a, b, a + width, b + high) for a, b in sides + corners]
        box = next((b for b in boxes if self._free(b)), boxes[0])
        self.taken.append((box[0] - 6, box[1], box[2] + 6, box[3]))
        colour = INK if point.family in (VT, RESNET) else (105, 105, 112)
        near = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        if math.dist((x, y), near) > 2 * DOT:
            self.line([(x, y), near], (190, 190, 196))
        self.write((box[0], (box[1] + box[3]) / 2), point.name, "lm", colour, size)

    def _free(self, box: tuple[float, float, float, float]) -> bool:
        inside = box[0] > self.box[0] and box[2] < self.box[2] and box[3] < self.box[3]
        return inside and not any(
            box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in self.taken
        )


def draw(rows: dict[str, list[Point]]) -> Image.Image:
    """The figure: a row of two plots for each set of photos, its title above, and below all what the colours mean."""
    heights = [HEIGHTS[min(i, 1)] for i in range(len(rows))]
    size = 2 * WIDTH, sum(heights) + 3 * TEXT
    picture = Image.new("RGB", (FINE * size[0], FINE * size[1]), "white")
    top = 0
    for (title, points), height in zip(rows.items(), heights, strict=True):
        accuracy = ticks(
            min(p.top1 - max(p.half, 1) for p in points), max(p.top1 + max(p.half, 1) for p in points), height // 60
        )
        for column, (field, name) in enumerate((("macs", "MACs, G"), ("params", "parameters, M"))):
            along = [(getattr(point, field), point) for point in points]
            reach = max(x for x, _ in along)
            plot = Plot(picture, column * WIDTH, top, height, ticks(0, 1.08 * reach), accuracy)
            plot.axes("" if column else title, name, "top-1, %")
            plot.draw(along)
        top += height
    x, letters = MARGIN[0], ImageDraw.Draw(picture)
    for family, colour in COLOURS.items():
        letters.ellipse([FINE * v for v in (x, top + TEXT - DOT, x + 2 * DOT, top + TEXT + DOT)], colour)
        label = {"fill": INK, "anchor": "lm", "font_size": FINE * TEXT}
        letters.text((FINE * (x + 3 * DOT), FINE * (top + TEXT)), family, **label)  # type: ignore[arg-type]
        x += 3 * DOT + round(letters.textlength(family, font_size=FINE * TEXT) / FINE) + 24
    return picture.resize(size, Image.Resampling.BOX)


def main() -> None:
    """Read the cards, draw, write."""
    options = parser.parse_args()
    mine = ours()
    figure = draw({"The paper's Table 1: ImageNet, 1,000 classes, 224 px": paper()} | mine)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.save(options.out, "PNG", optimize=True)
    for points in mine.values():
        for p in points:
            print(f"{p.name}: top-1 {p.top1:.1f} +- {p.half:.1f} %, {p.macs:.2f} G MACs, {p.params:.1f} M parameters")
    print(f"wrote {options.out.resolve()} ({options.out.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    try:
        main()
    except (vtviz.VtvizError, OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
