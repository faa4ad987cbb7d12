"""The tables of docs/faithfulness.md: do maps point at what an answer hangs on? From ``vtviz faithfulness``.

python docs/faithfulness.py collect FILE ...    read faithfulness.json files into docs/faithfulness.json
python docs/faithfulness.py [--check]           write the tables from it, or only tell whether they are up to date
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))  # whether vtviz is installed or not
from docs import enclosed
from vtviz.errors import ConfigError, VtvizError
from vtviz.explain.explainer import METHODS
from vtviz.explain.faithfulness import BASELINES

PAGE, RESULTS = CLONE / "docs" / "faithfulness.md", CLONE / "docs" / "faithfulness.json"
MARKS = ("<!-- faithfulness: written by docs/faithfulness.py -->\n", "<!-- end of faithfulness -->\n")
COLUMNS = {
    "deletion": "deletion (lower is better)",
    "deletion_over_centre": "minus the middle's",
    "insertion": "insertion (higher is better)",
    "insertion_over_centre": "minus the middle's",
    "randomization": "with random weights (0 is right)",
}
"""Measure -> heading."""
NAMES = {name: method.title for name, method in METHODS.items()} | dict(
    zip(BASELINES, ("*a random map*", "*the photo's middle*"), strict=True)
)


def collect(files: Sequence[Path]) -> list[dict[str, Any]]:
    """What the tables need of each result: all but the names of the images.

    Raises:
        VtvizError: for a file that is no result.
    """
    found = []
    for file in files:
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            found.append({key: value for key, value in result.items() if key not in {"images", "files"}})
            table(found[-1])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} is no faithfulness.json: {error!r}") from None
    return found


def table(result: dict[str, Any]) -> str:
    """One model's methods as a Markdown table, and what stands out of chance."""
    lines = [["method", *COLUMNS.values(), "s a map"], ["---"] * (len(COLUMNS) + 2)]
    for each in result["methods"]:
        shown = {name: each.get(name) for name in COLUMNS if each["method"] != "centre" or "over" not in name}
        cells = [_interval(shown.get(name), signed="over" in name) for name in COLUMNS]
        lines.append([NAMES[each["method"]], *cells, f"{each['seconds']:.2f}" if each["seconds"] else ""])
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    height, width = result["input"]
    return (
        f"**{result['model']}**, {result['n']} photos, input about {width} × {height} px. The answer's probability is "
        f"{result['probability']:.3f} on the photos and {result['probability_blurred']:.3f} on blurred ones.\n\n"
        f"{text}\n{_conclude(result['methods'])}\n"
    )


def _interval(value: dict[str, float] | None, *, signed: bool) -> str:
    if value is None:
        return ""
    mean, *ends = (
        f"{value[key]:{'+' if signed else ''}.3f}".replace("-", "−")
        for key in ("mean", "low", "high")
        if value[key] is not None  # as of a single photo
    )
    return f"{mean} ({' to '.join(ends)})" if ends else mean


def _conclude(methods: Sequence[dict[str, Any]]) -> str:
    """Which areas differ from those of the photo's middle, by their intervals."""
    lines = []
    for measure, better in (("deletion", -1), ("insertion", 1)):
        groups: dict[str, list[str]] = {"better than the photo's middle": [], "level with it": [], "worse": []}
        for each in methods:
            if each["method"] != "centre":
                value = each[f"{measure}_over_centre"]
                ends = (-1.0, 1.0) if value["low"] is None else (better * value["low"], better * value["high"])
                low, high = sorted(ends)
                group = list(groups)[0 if low > 0 else 2 if high < 0 else 1]
                groups[group].append(NAMES[each["method"]])
        found = "; ".join(f"{words}: {' · '.join(names) or 'none'}" for words, names in groups.items())
        lines.append(f"By {measure}, {found}.")
    return "\n".join(lines)


def renewed(page: str, results: Sequence[dict[str, Any]]) -> str:
    """The page with its tables replaced."""
    return enclosed.renewed(page, MARKS, lambda: "\n".join(map(table, results)), PAGE.name)


def main() -> None:
    """Collect results where asked to, and write the page, or with --check only tell whether it is up to date."""
    enclosed.main(PAGE, RESULTS, lambda files: (collect(files), ""), renewed, ("FILE", "a faithfulness.json"))


if __name__ == "__main__":
    try:
        main()
    except VtvizError as error:
        sys.exit(f"error: {error}")
