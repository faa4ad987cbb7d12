"""The paper's Figure 6 with our model: photos down, tokens across, every map on one colour scale.

python examples/figure6.py [PHOTO ...] [--model NAME] [--layer N] [--tokens N|N,N,...|all] [--out FILE]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))  # whether vtviz is installed or not
import vtviz
from vtviz.panels import panel
from vtviz.render import value_range
from vtviz.tokens import check_index

PHOTOS = [CLONE / "app" / "photos" / f"{name}.jpg" for name in ("cat", "coffee", "astronaut", "rocket")]
CELL = 108
"""Width of a picture in pixels."""

parser = argparse.ArgumentParser(description="Draw token maps over photos: photos down, tokens across.")
parser.add_argument("photos", nargs="*", metavar="PHOTO", default=PHOTOS, help="image files; by default the page's")
parser.add_argument("--model", default="vt_resnet18_in109", help="a name that `vtviz models` lists, or a path")
parser.add_argument("--layer", type=int, default=0, help="whose tokens (default: %(default)s)")
parser.add_argument(
    "--tokens", default="8", help="how many, the least alike ones; or which (0,3,5); or all (default: %(default)s)"
)
parser.add_argument("--out", type=Path, default=Path("out/figure6.png"), help="a PNG file (default: %(default)s)")


def least_alike(maps: Sequence[vtviz.TokenMaps], count: int) -> list[int]:
    """``count`` tokens by a rule and not by taste, in their order.

    The two whose maps correlate least over all photos together; then, again and again, the one whose closest relative
    among those chosen is the furthest.
    """
    several = [m.times_uniform(0) for m in maps]  # each (tokens, h, w)
    similar = np.corrcoef(np.concatenate([m.reshape(len(m), -1) for m in several], axis=1))
    if count >= len(similar):
        return list(range(len(similar)))
    chosen = [int(i) for i in np.unravel_index(similar.argmin(), similar.shape)][:count]
    while len(chosen) < count:
        closest = similar[:, chosen].max(axis=1)
        closest[chosen] = np.inf
        chosen.append(int(closest.argmin()))
    return sorted(chosen)


def choose(text: str, maps: Sequence[vtviz.TokenMaps]) -> list[int]:
    """Which tokens the option --tokens means."""
    number = maps[0].layers[0].num_tokens
    if text == "all":
        return list(range(number))
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise vtviz.ConfigError(f"--tokens must be a number, numbers such as 0,3,5, or all, got {text!r}") from None
    if len(values) == 1:
        if not 1 <= values[0] <= number:
            raise vtviz.ConfigError(f"--tokens must be at most the {number} that there are, and at least 1, got {text}")
        return least_alike(maps, values[0])
    return [check_index("token", value, number) % number for value in values]


def draw(maps: Sequence[vtviz.TokenMaps], tokens: Sequence[int]) -> Image.Image:
    """The figure: a photo and its maps per row, the tokens' numbers above, one colour bar at the right.

    The maps hold one layer, the one to draw.
    """
    peaks = np.array([m.times_uniform(0)[tokens].max(axis=(1, 2)) for m in maps])
    scale = value_range(peaks, "shared")  # one for all: half of the maps that are shown reach its last colour
    rows = [[vtviz.overlay(m, opacity=0), *(vtviz.overlay(m, 0, token, scale=scale) for token in tokens)] for m in maps]
    headings = ["photo", *(f"token {token}" for token in tokens)]
    return panel(rows, headings, scale=scale, width=CELL)


def main() -> None:
    """Extract the maps of all photos, choose tokens, draw, write."""
    options = parser.parse_args()
    maps = vtviz.extract_tokens(options.photos, options.model, layers=[options.layer])
    tokens = choose(options.tokens, maps)
    figure = draw(maps, tokens)

    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.save(options.out, "PNG", optimize=True)
    print(f"tokens {', '.join(map(str, tokens))} of {maps[0].layers[0].name}, {len(maps)} photos")
    print(f"wrote {options.out.resolve()} ({options.out.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    try:
        main()
    except (vtviz.VtvizError, OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
