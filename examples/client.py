"""Ask a running page over the network, from any program: arrays, whether tokens matter, a comparison, an atlas.

python app.py                                       # in one terminal
python examples/client.py [PHOTO] [--page ADDRESS]  # in another

The arrays are those of `vtviz.extract_tokens` on the page's machine, bit for bit. Only gradio_client and NumPy are
needed here; the page itself describes its endpoints under "Use via API".
"""

import argparse
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

PHOTO = Path(__file__).resolve().parents[1] / "app" / "photos" / "cat.jpg"
WHOLE = "Whole photo"
"""Or "Centre 224 px, as in the paper"."""

parser = argparse.ArgumentParser(description="Ask a running page for the tokens of a photo.")
parser.add_argument("photo", nargs="?", default=PHOTO, help="image file; by default the page's cat")
parser.add_argument("--page", default="http://127.0.0.1:7860", help="its address (default: %(default)s)")
parser.add_argument("--model", default="vt_resnet18_in109", help="a name that the page offers (default: %(default)s)")
parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the arrays (default: %(default)s)")


def extract(client: Client, photo: str | Path, model: str, view: str = WHOLE) -> tuple[dict[str, Any], Path]:
    """The token maps of a photo: a summary (prediction, geometry, statistics) and the path of an .npz file."""
    summary, file = client.predict(handle_file(photo), model, view, api_name="/extract")
    return summary, Path(file)


def ablate(client: Client, photo: str | Path, model: str, target: str = "", view: str = WHOLE) -> dict[str, Any]:
    """What becomes of the answer without each token, beside baselines; `target` is a class, by name or index."""
    return client.predict(handle_file(photo), model, view, target, api_name="/ablate")


def compare(client: Client, photo: str | Path, model: str, other: str | Path) -> dict[str, Any]:
    """Which token of one photo is which of the other: pairs, and the share of their weight that they have in common."""
    return client.predict(handle_file(photo), model, handle_file(other), model, api_name="/compare")


def atlas(client: Client, model: str) -> dict[str, Any]:
    """What each token of a model stood for over a data set."""
    return client.predict(model, api_name="/atlas")


def main() -> None:
    """Ask for each and print a line."""
    options = parser.parse_args()
    client = Client(options.page, verbose=False, download_files=options.out)

    summary, file = extract(client, options.photo, options.model)
    print(", ".join(f"{each['label']} {each['probability']:.1%}" for each in summary["prediction"][:3]))
    with np.load(file) as arrays:
        for name in arrays.files:
            print(f"{name}: {arrays[name].dtype} {arrays[name].shape}")
    print(f"in {file}")

    ablated = ablate(client, options.photo, options.model)
    for layer in ablated["layers"] if "target" in ablated else ():
        changes = layer["effects"]["absent"]["probability"]
        token = max(range(len(changes)), key=lambda i: abs(changes[i]))
        name = layer["tokens"][token]
        print(
            f"{layer['name']}: without token {name} {ablated['target']['label']} has {100 * changes[token]:+.2f} points"
        )

    found = compare(client, options.photo, options.model, PHOTO.with_name("astronaut.jpg"))
    for layer in found["layers"]:
        print(f"{layer['names'][0]}: tokens of both photos share {layer['mean']:.0%} (by chance {layer['chance']:.0%})")

    try:
        seen = atlas(client, options.model)
    except AppError as error:  # the line that the page would show
        print(error)
        return
    print(f"atlas over {seen['data']['n']} photos of {seen['data']['folder']}")
    peaks = {layer["name"]: layer["trained"]["peak"] for layer in seen["layers"]}
    print(json.dumps(peaks))


if __name__ == "__main__":
    try:
        main()
    except (AppError, httpx.HTTPError, OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
