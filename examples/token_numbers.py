"""Which token looks where, as numbers: one line per token of each layer, and a CSV file of the same.

python examples/token_numbers.py [PHOTO] [--model NAME] [--out DIR]
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))  # whether vtviz is installed or not
import vtviz

PHOTO = CLONE / "app" / "photos" / "astronaut.jpg"

parser = argparse.ArgumentParser(description="Tell where each token looks in a photo, and how narrowly.")
parser.add_argument("photo", nargs="?", default=PHOTO, help="image file; by default the page's astronaut")
parser.add_argument("--model", default="vt_resnet18_in109", help="a name that `vtviz models` lists, or a path")
parser.add_argument("--out", type=Path, default=Path("out"), help="folder for token_numbers.csv (default: %(default)s)")


def numbers(maps: vtviz.TokenMaps) -> list[dict[str, str | float]]:
    """One row per token.

    - peak: the largest value of its map, in x uniform;
    - top10: the share of its mass in the tenth of the cells that it weighs most (0.1: looks everywhere alike);
    - entropy: of the map over its maximum (1: looks everywhere alike, 0: looks at one cell);
    - x, y: the pixel of the photo where it looks most.
    """
    rows: list[dict[str, str | float]] = []
    for i, layer in enumerate(maps.layers):
        statistics = layer.statistics()
        for token in range(layer.num_tokens):
            at_photo = maps.at_image_size(i, token)
            y, x = np.unravel_index(np.nanargmax(at_photo), at_photo.shape)
            rows.append(
                {
                    "layer": layer.name,
                    "token": token,
                    "peak": round(float(statistics.token_peak[token]), 2),
                    "top10": round(float(statistics.token_top10[token]), 3),
                    "entropy": round(float(statistics.token_entropy_normalized[token]), 3),
                    "x": int(x),
                    "y": int(y),
                }
            )
    return rows


def main() -> None:
    """Extract, print, write."""
    options = parser.parse_args()
    maps = vtviz.extract_tokens(options.photo, options.model)
    rows = numbers(maps)

    print("".join(f"{name:>9}" for name in rows[0]))
    for row in rows:
        print("".join(f"{value:>9}" for value in row.values()))
    for name, statistics in maps.statistics().items():
        print(
            f"{name}: mean peak {statistics.peak:.1f} x uniform, mean correlation of two maps "
            f"{statistics.correlation:.2f}, {statistics.dead} tokens look everywhere alike"
        )

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out.resolve() / "token_numbers.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}")


if __name__ == "__main__":
    try:
        main()
    except (vtviz.VtvizError, OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
