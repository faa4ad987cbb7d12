"""How far each engine is from PyTorch in float32, as the table of docs/engines.md.

``python docs/engines.py MODEL=DIR ...``: for each model, scikit-image's photos and a choice of those in DIR.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vtviz.engines import PRECISIONS
from vtviz.images import ImageSource
from vtviz.predictor import load_model
from vtviz.suffixes import IMAGE_SUFFIXES

# all but the first, which is what they differ from
COMBINATIONS = [(name, dtype) for name, dtypes in PRECISIONS.items() for dtype in dtypes][1:]
HEADING = (
    "| model | photos | engine | dtype | same class | logits: largest difference | maps: mean difference | largest |"
    " recomputed AᵀV − T |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def rows(name: str, photos: Sequence[ImageSource]) -> list[str]:
    """A model's rows: each engine beside PyTorch in float32, maps in x uniform."""
    plain = load_model(name, "cpu")
    opened = [plain.open(photo) for photo in photos]
    lines = []
    for engine, dtype in COMBINATIONS:
        other = load_model(name, "cpu", engine=engine, dtype=dtype)
        same, logits, means, largest, errors = [], [], [], [], []
        for photo in opened:
            expected, got = plain.extract(photo), other.extract(photo)
            same.append((expected.logits.argmax(0) == got.logits.argmax(0)).mean())
            logits.append(np.abs(expected.logits - got.logits).max())
            for one, two in zip(expected.layers, got.layers, strict=True):
                difference = np.abs(one.times_uniform() - two.times_uniform())
                means.append(difference.mean())
                largest.append(difference.max())
                errors.append(two.error)
        lines.append(
            f"| {name} | {len(opened)} | {engine} | {dtype} | {100 * np.mean(same):.2f} % | {max(logits):.1e} | "
            f"{np.mean(means):.1e}× | {max(largest):.1e}× | {max(errors):.1e} |"
        )
    return lines


def choose(folder: Path, count: int) -> list[Path]:
    """So many of a folder's photos, evenly spread over their names."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return paths[:: max(1, len(paths) // count)][:count]


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    data = skimage.data
    print(HEADING)
    for argument in arguments:
        name, _, folder = argument.partition("=")
        photos: list[ImageSource] = [data.chelsea(), data.coffee(), data.astronaut(), data.rocket()]
        if folder:
            photos += choose(Path(folder), 10 if "fpn" in name else 50)
        print(*rows(name, photos), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
