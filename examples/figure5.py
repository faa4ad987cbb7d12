"""The paper's Figure 5 with our model: photo, segmentation, and where the tokens of one level look.

python examples/figure5.py [PHOTO ...] [--model NAME] [--layer N] [--margin SHARE] [--out FILE]
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
from vtviz.explain.token_classes import MARGIN, TokenClasses, token_classes
from vtviz.panels import panel
from vtviz.render import value_range
from vtviz.render_labels import label_overlay, legend
from vtviz.segmentation import from_maps

PHOTOS = [CLONE / "app" / "photos" / "astronaut.jpg"]
CELL = 108
"""Width of a picture in pixels."""

parser = argparse.ArgumentParser(description="Draw photos, their segmentation and the token maps of one level.")
parser.add_argument("photos", nargs="*", metavar="PHOTO", default=PHOTOS, help="image files; by default the page's")
parser.add_argument(
    "--model", default="vt_fpn_resnet18_ccp14", help="a VT-FPN: a name that `vtviz models` lists, or a path"
)
parser.add_argument("--layer", type=int, default=2, help="whose tokens: 0 is p2, 3 is p5 (default: %(default)s)")
parser.add_argument(
    "--margin",
    type=float,
    default=MARGIN,
    help="a class names a token if its share of the mass exceeds that of the area by this",
)
parser.add_argument("--out", type=Path, default=Path("out/figure5.png"), help="a PNG file (default: %(default)s)")


def draw(
    maps: Sequence[vtviz.TokenMaps], segmentations: Sequence[vtviz.Segmentation], named: Sequence[TokenClasses]
) -> Image.Image:
    """The figure: a photo, its segmentation and its maps per row, below each map the class that its token favours.

    The maps hold one layer, the one to draw.
    """
    tokens = range(maps[0].layers[0].num_tokens)
    peaks = np.array([m.times_uniform(0).max(axis=(1, 2)) for m in maps])
    scale = value_range(peaks, "shared")  # one for all: half of the maps reach its last colour
    rows = [
        [vtviz.overlay(m, opacity=0), label_overlay(s), *(vtviz.overlay(m, 0, token, scale=scale) for token in tokens)]
        for m, s in zip(maps, segmentations, strict=True)
    ]
    captions = [["", "", *(name or "-" for name in n.names)] for n in named]
    first = segmentations[0]
    there = [i for i in range(len(first.classes)) if any(s.pixels()[i] for s in segmentations)]
    width = (2 + len(tokens)) * CELL
    return panel(
        rows,
        ["photo", "segmentation", *(f"token {token}" for token in tokens)],
        captions=captions,
        scale=scale,
        key=legend([first.classes[i] for i in there], [first.palette[i] for i in there], width=width),
        apart=2,
        width=CELL,
    )


def main() -> None:
    """Run the model once on each photo, find out which class each token favours, draw, write."""
    options = parser.parse_args()
    model = vtviz.load_model(options.model)
    maps = model.extract(options.photos, layers=[options.layer])
    segmentations = [from_maps(m, model.palette or ()) for m in maps]
    named = [token_classes(m, s.labels, margin=options.margin) for m, s in zip(maps, segmentations, strict=True)]
    figure = draw(maps, segmentations, named)

    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.save(options.out, "PNG", optimize=True)
    for m, n in zip(maps, named, strict=True):
        favoured = [f"{token} {name}" for token, name in enumerate(n.names) if name is not None]
        print(f"{Path(m.source).name}: tokens {', '.join(favoured) or 'favour no class'}")
    print(
        f"(named by the class whose share of the token's mass exceeds its share of the photo by {options.margin:.0%})"
    )
    print(f"wrote {options.out.resolve()} ({options.out.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    try:
        main()
    except (vtviz.VtvizError, OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
