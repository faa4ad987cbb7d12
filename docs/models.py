"""Write the README's table of models from the cards in checkpoints/, so that no figure there is typed by hand.

python docs/models.py [--check]
"""

import argparse
import sys
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))  # whether vtviz is installed or not
from vtviz.card import Card
from vtviz.checkpoints import read_card
from vtviz.errors import VtvizError

README, CHECKPOINTS = CLONE / "README.md", CLONE / "checkpoints"
BEGIN, END = "<!-- models: written by docs/models.py -->\n", "<!-- end of models -->\n"
HEADINGS = ("model", "trained on", "top-1", "at other sizes", "tokens' peak", "tokens' correlation", "people")


def table(folder: Path) -> str:
    """The cards of a folder as a Markdown table, one line per checkpoint, in the order of their names."""
    cards = [(path, read_card(path)) for path in sorted(folder.glob("*.safetensors"))]
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(_line(path, card) for path, card in cards)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _line(path: Path, card: Card) -> list[str]:
    accuracy, data = card.accuracy, card.data
    layers = [v for v in card.tokens.values() if isinstance(v, dict) and "peak" in v]
    person = card.tokens.get("person", {})
    photos = f", {data['n_train']:,} photos" if "n_train" in data else ""
    sizes = {k: v for k, v in accuracy.get("top1_by_size", {}).items() if k != str(accuracy.get("size"))}
    return [
        f"[{card.name}](checkpoints/{path.stem}.json)" + ("" if card.trained else " (untrained)"),
        f"{data.get('name', '')}{photos}, {len(card.classes)} classes",
        f"{_percent(accuracy.get('top1'))} of {accuracy.get('n', 0):,}",
        ", ".join(f"{size} px {_percent(sizes[size])}" for size in sorted(sizes, key=int)),
        " / ".join(f"{layer['peak']:.1f}×" for layer in layers),
        " / ".join(f"{layer['correlation']:.2f}" for layer in layers),
        f"{person['iou']:.2f} ({person['untrained_iou']:.2f})" if person else "",
    ]


def _percent(share: Any) -> str:
    return f"{share:.1%}" if isinstance(share, float) else "?"


def renewed(readme: str, folder: Path) -> str:
    """The README with its table replaced."""
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise VtvizError(f"{README.name} has lost the lines that enclose the table: {BEGIN.strip()} {END.strip()}")
    return f"{before}{BEGIN}\n{table(folder)}\n{END}{after}"


def main() -> None:
    """Write README.md, or with --check only tell whether it is up to date."""
    parser = argparse.ArgumentParser(description="Write README.md's table of models from the cards in checkpoints/.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table is out of date")
    check = parser.parse_args().check
    old = README.read_text(encoding="utf-8")
    new = renewed(old, CHECKPOINTS)
    if check:
        sys.exit("README.md: run python docs/models.py" if new != old else 0)
    README.write_text(new, encoding="utf-8")
    print(f"wrote {README}")


if __name__ == "__main__":
    try:
        main()
    except VtvizError as error:
        sys.exit(f"error: {error}")
