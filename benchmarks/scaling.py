"""``python -m benchmarks.scaling --out docs/scaling.png``: time and memory against size, tokens, batch and threads.

Each point is a process of its own, so that its peak memory is its own: a forward pass with its maps, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "size": ("image, pixels a side", (224, 448, 896, 1344, 2048)),
    "tokens": ("tokens of a layer", (4, 8, 16, 32, 64)),
    "batch": ("images at once", (1, 2, 4, 8, 16)),
    "threads": ("threads", (1, 2)),
}
"""What is varied -> its name, its values. The rest is 224 px, 16 tokens, one image, two threads."""
USUAL = {"size": 224, "tokens": 16, "batch": 1, "threads": 2}
MODELS = {"vt_resnet18": ("VT-ResNet-18", (192, 60, 40)), "resnet18": ("ResNet-18", (60, 90, 170))}
MEASURES = {"ms": "ms a pass", "mb": "MB above the idle model"}
LEAST, SECONDS = 6, 2.5
"""Passes of a point, and how long they take together, at least."""
WIDTH, HEIGHT = 300, 220
MARGIN = 52, 34, 16, 44
"""Left, top, right, bottom of each plot."""


def point(model: str, settings: dict[str, int]) -> dict[str, float]:
    """Median time of a pass in ms, and what peak memory it adds in MB, in this process."""
    import resource  # noqa: PLC0415 - not on every system
    import statistics  # noqa: PLC0415

    import torch  # noqa: PLC0415

    from benchmarks.measure import clock  # noqa: PLC0415
    from vtviz.engines import TorchEngine  # noqa: PLC0415
    from vtviz.models.registry import build_model  # noqa: PLC0415

    torch.set_num_threads(settings["threads"])
    options: dict[str, Any] = {"num_tokens": settings["tokens"]} if model.startswith("vt_") else {}
    engine = TorchEngine(build_model(model, **options).eval())
    engine(torch.randn(1, 3, 64, 64))  # what libraries allocate once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    x = torch.randn(settings["batch"], 3, settings["size"], settings["size"])
    engine(x)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times: list[float] = []
    while len(times) < LEAST or sum(times) < SECONDS:
        times.append(clock(lambda: engine(x)))
    times = times[len(times) // 3 :]  # a process begins slowly
    return {"ms": 1e3 * statistics.median(times), "mb": max(1.0, (peak - before) / 1024)}


def measure() -> dict[str, dict[str, list[tuple[int, dict[str, float]]]]]:
    """Axis -> model -> (value, its measures) of each point. A ResNet has no tokens to vary."""
    from vtviz.train.verbs import MALLOC  # noqa: PLC0415

    environment = {**os.environ, **MALLOC}  # or the kernel's page faults are measured
    found: dict[str, dict[str, list[tuple[int, dict[str, float]]]]] = {}
    for axis, (_, values) in AXES.items():
        for model in MODELS:
            if axis == "tokens" and model == "resnet18":
                continue
            for value in values:
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.scaling",
                    "--point",
                    model,
                    json.dumps(USUAL | {axis: value}),
                ]
                done = subprocess.run(command, cwd=CLONE, check=True, capture_output=True, text=True, env=environment)
                found.setdefault(axis, {}).setdefault(model, []).append((value, json.loads(done.stdout)))
                print(model, axis, value, done.stdout.strip(), flush=True)
    return found


def draw(found: dict[str, dict[str, list[tuple[int, dict[str, float]]]]]) -> Any:
    """A column for each axis, a row for each measure, both scales logarithmic: a :class:`vtviz.drawing.Figure`."""
    from vtviz.drawing import Figure, Part, Words, box  # noqa: PLC0415

    parts: list[Part] = []
    for row, (measure, unit) in enumerate(MEASURES.items()):
        everything = [p[measure] for models in found.values() for points in models.values() for _, p in points]
        low, high = 10 ** math.floor(math.log10(min(everything))), 10 ** math.ceil(math.log10(max(everything)))
        for column, (axis, models) in enumerate(found.items()):
            left, top = column * WIDTH + MARGIN[0], row * HEIGHT + MARGIN[1]
            right, bottom = (column + 1) * WIDTH - MARGIN[2], (row + 1) * HEIGHT - MARGIN[3]
            name, values = AXES[axis]

            def at(value: float, y: float, where: Sequence[float] = (left, top, right, bottom, *values)) -> Any:
                a, b, c, d, first, *_, last = where
                across = math.log(value / first) / math.log(last / first)
                return a + across * (c - a), d - math.log(y / low) / math.log(high / low) * (d - b)  # noqa: B023

            power = low
            while power <= high:
                y = at(values[0], power)[1]
                parts += [box(left, y, right - left, 0.6, (205, 205, 210)), Words(left - 6, y, f"{power:g}", 11, "end")]
                power *= 10
            for value in values:
                parts.append(Words(at(value, low)[0], bottom + 14, f"{value}", 11, "middle"))
            parts.append(Words((left + right) / 2, bottom + 31, name, 12, "middle", muted=True))
            parts.append(Words(left, top - 16, unit, 12, muted=True))
            for model, points in models.items():
                colour = MODELS[model][1]
                places = [at(value, p[measure]) for value, p in points]
                parts += [_line(a, b, colour) for a, b in pairwise(places)]
                parts += [box(x - 3, y - 3, 6, 6, colour) for x, y in places]
    x = float(MARGIN[0])
    bottom = len(MEASURES) * HEIGHT + 14
    for label, colour in MODELS.values():
        parts += [box(x, bottom - 4, 8, 8, colour), Words(x + 14, bottom, label, 13)]
        x += 130
    return Figure(len(found) * WIDTH, bottom + 16, parts)


def _line(start: tuple[float, float], end: tuple[float, float], colour: tuple[int, int, int]) -> Any:
    from vtviz.drawing import Shape  # noqa: PLC0415

    (a, b), (c, d) = start, end
    length = math.hypot(c - a, d - b)
    across, up = (d - b) / length * 0.9, (a - c) / length * 0.9
    return Shape(((a + across, b + up), (c + across, d + up), (c - across, d - up), (a - across, b - up)), colour)


def main() -> int:
    """Measure all points and draw them, or one point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--out", type=Path, default=CLONE / "docs" / "scaling.png", metavar="FILE", help="the picture")
    parser.add_argument("--point", nargs=2, metavar=("MODEL", "JSON"), help="measure one point, and print it")
    options = parser.parse_args()
    if options.point:
        print(json.dumps(point(options.point[0], json.loads(options.point[1]))))
        return 0
    from PIL import Image  # noqa: PLC0415

    from vtviz.drawing import to_png  # noqa: PLC0415

    Image.fromarray(to_png(draw(measure()), 1.5)).save(options.out, "PNG", optimize=True)
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
