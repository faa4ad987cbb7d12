"""A photo in; the maps of a model's tokens, its answer and a picture out.

python examples/extract.py [PHOTO] [--model NAME] [--out DIR]
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))  # whether vtviz is installed or not
import vtviz

PHOTO = CLONE / "app" / "photos" / "cat.jpg"

parser = argparse.ArgumentParser(description="Write the token maps of a photo, and the first layer's drawn over it.")
parser.add_argument("photo", nargs="?", default=PHOTO, help="image file; by default the page's cat")
parser.add_argument("--model", default="vt_resnet18_in109", help="a name that `vtviz models` lists, or a path")
parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results (default: %(default)s)")


def main() -> None:
    """Extract, look at the arrays, draw, save."""
    options = parser.parse_args()
    maps = vtviz.extract_tokens(options.photo, options.model)

    for answer in maps.topk(3):
        print(f"{answer.probability:6.1%}  {answer.label}")

    for layer in maps.layers:
        heads, tokens, h, w = layer.coefficients.shape  # float32, each map sums to 1
        print(f"{layer.name}: {tokens} tokens of {heads} head(s) over {h} x {w} cells, one every {layer.stride} pixels")

    # One map at the photo's size, in "x uniform": 1 is what a token that looks everywhere alike would have.
    values = maps.at_image_size(layer=0, token=0)
    print(f"block0, token 0: {values.min():.2f} to {values.max():.2f} x uniform over {values.shape} pixels")

    maps.save(options.out)  # maps.npz and manifest.json, which vtviz.TokenMaps.load reads
    Image.fromarray(vtviz.overlay(maps, layer=0, token=0)).save(options.out / "token0.png")
    Image.fromarray(vtviz.grid(maps)).save(options.out / "panel.png")
    print(f"wrote maps.npz, manifest.json, token0.png and panel.png to {options.out.resolve()}")


if __name__ == "__main__":
    try:
        main()
    except (vtviz.VtvizError, OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
