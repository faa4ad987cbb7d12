"""Write the README's table of models from the cards in checkpoints/, so that no figure there is typed by hand.

python docs/models.py [--check]
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))  # whether vtviz is installed or not
from docs import enclosed
from docs.ablations import interval
from vtviz.card import Card
from vtviz.checkpoints import read_card
from vtviz.errors import VtvizError
from vtviz.models.complexity import count_complexity, count_segmenter
from vtviz.models.registry import model_from_config
from vtviz.models.vt_fpn import Segmenter

README, CHECKPOINTS = CLONE / "README.md", CLONE / "checkpoints"
MARKS = ("<!-- models: written by docs/models.py -->\n", "<!-- end of models -->\n")
CLASSIFIERS = ("model", "trained on", "top-1", "also on", "params", "MACs", "epochs")
TOKENS = ("model", "top-1 at other sizes", "tokens' peak", "tokens' correlation", "people")
SEGMENTERS = ("model", "trained on", "mIoU", "95 % interval", "pixel accuracy", "boundary F", "GMACs", "of the neck")
COUNTED_AT = 352, 480
"""Height and width at which a segmentation model's MACs are counted."""


def tables(folder: Path) -> str:
    """The cards of a folder as Markdown tables, two of classifiers and one of segmentation models, ordered by name."""
    cards = [(path, read_card(path)) for path in sorted(folder.glob("*.safetensors"))]
    kinds = (
        ("classification", CLASSIFIERS, _classifier),
        ("classification", TOKENS, _tokens),  # in one table they would not fit a telephone
        ("segmentation", SEGMENTERS, _segmenter),
    )
    return "\n".join(
        _table([headings, *(line(path, card) for path, card in cards if card.task == task)])
        for task, headings, line in kinds
        if any(card.task == task for _, card in cards)
    )


def _table(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(lines[0])
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def _name(path: Path, card: Card) -> str:
    return f"[{card.name}](checkpoints/{path.stem}.json)" + ("" if card.trained else " (untrained)")


def _data(card: Card) -> str:
    photos = f", {card.data['n_train']:,} photos" if "n_train" in card.data else ""
    return f"{card.data.get('name', '')}{photos}, {len(card.classes)} classes"


def _classifier(path: Path, card: Card) -> list[str]:
    cost = count_complexity(model_from_config(card.model, card.config), (3, *[card.preprocessing.size] * 2))
    return [
        _name(path, card),
        _data(card),
        _top1(card.accuracy),
        ", ".join(f"{name} {_top1(scores)}" for name, scores in card.accuracy.get("also", {}).items()),
        f"{cost.params / 1e6:.2f} M",
        f"{cost.macs / 1e9:.3f} G",
        _epochs(card),
    ]


def _top1(scores: Mapping[str, Any]) -> str:
    """Top-1 with half of its 95 % interval, in percent, and of how many photos."""
    if "top1" not in scores:
        return "?"
    top1, n = scores["top1"], scores["n"]
    return f"{100 * top1:.1f} ± {100 * interval([top1], n):.1f}% of {n:,}"


def _epochs(card: Card) -> str:
    """Epochs done, of how many planned where those are more; those of the run that it started from come first."""
    before = card.recipe.get("started_from") or {}
    runs = (before.get("epochs"), before.get("recipe", {}).get("epochs")), (card.epochs, card.recipe.get("epochs"))
    texts = [f"{done:g}" + (f" of {planned:g}" if planned and done < planned else "") for done, planned in runs if done]
    return ", then ".join(texts)


def _tokens(path: Path, card: Card) -> list[str]:
    accuracy = card.accuracy
    layers = [v for v in card.tokens.values() if isinstance(v, dict) and "peak" in v]
    person = card.tokens.get("person", {})
    sizes = {k: v for k, v in accuracy.get("top1_by_size", {}).items() if k != str(accuracy.get("size"))}
    return [
        _name(path, card),
        ", ".join(f"{size} px {_percent(sizes[size])}" for size in sorted(sizes, key=int)),
        " / ".join(f"{layer['peak']:.1f}×" for layer in layers),
        " / ".join(f"{layer['correlation']:.2f}" for layer in layers),
        f"{person['iou']:.2f} ({person['untrained_iou']:.2f})" if person else "",
    ]


def _segmenter(path: Path, card: Card) -> list[str]:
    accuracy = card.accuracy
    whole, neck = count_segmenter(cast("Segmenter", model_from_config(card.model, card.config)), *COUNTED_AT)
    return [
        _name(path, card),
        _data(card),
        f"{_percent(accuracy.get('miou'))} of {accuracy.get('n', 0):,}",
        " to ".join(_percent(end) for end in accuracy.get("interval", ())),
        _percent(accuracy.get("pixel_accuracy")),
        _percent(accuracy.get("boundary_f")),
        f"{whole.macs / 1e9:.1f}",
        f"{neck / 1e9:.2f}",
    ]


def _percent(share: Any) -> str:
    return f"{share:.1%}" if isinstance(share, float) else "?"


def renewed(readme: str, folder: Path) -> str:
    """The README with its table replaced."""
    return enclosed.renewed(readme, MARKS, lambda: tables(folder), README.name)


def main() -> None:
    """Write README.md, or with --check only tell whether it is up to date."""
    parser = argparse.ArgumentParser(description="Write README.md's table of models from the cards in checkpoints/.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table is out of date")
    check = parser.parse_args().check
    new = renewed(README.read_text(encoding="utf-8"), CHECKPOINTS)
    enclosed.put(README, new, check=check, hint="README.md: run python docs/models.py")


if __name__ == "__main__":
    try:
        main()
    except VtvizError as error:
        sys.exit(f"error: {error}")
