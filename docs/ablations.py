"""The table of docs/ablations.md: what each part of a VT-ResNet-18 does for it, beside the paper's Table 3.

python docs/ablations.py collect RUNS    read run folders, called VARIANT-seedN, into docs/ablations.json
python docs/ablations.py [--check]       write the table from that file, or only tell whether it is up to date
"""

import csv
import json
import math
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))  # whether vtviz is installed or not
from docs import enclosed
from vtviz.checkpoints import read_card
from vtviz.data.loading import BatchPlan, parse_sizes
from vtviz.errors import ConfigError, VtvizError
from vtviz.models.complexity import count_complexity
from vtviz.models.registry import model_from_config
from vtviz.train.recipes import make_recipe, recipe_from_dict

PAGE, RESULTS = CLONE / "docs" / "ablations.md", CLONE / "docs" / "ablations.json"
MARKS = ("<!-- ablations: written by docs/ablations.py -->\n", "<!-- end of ablations -->\n")
HEADINGS = (
    "model",
    "top-1 of each seed",
    "mean ± 95 %",
    "params",
    "MACs",
    "training",
    "paper: top-1",
    "params",
    "MACs",
)
BASE = "vt_resnet18"
VARIANTS: dict[str, tuple[str, float, float, float]] = {
    BASE: ("VT-ResNet-18", 71.45, 12.76, 1.587),
    "no_transformer": ("− transformer", 69.49, 8.57, 1.519),
    "no_dynamic": ("− dynamic tokenization", 70.26, 12.22, 1.608),
    "no_position_encoding": ("− position encoding", 71.43, 12.69, 1.586),
    "resnet18": ("ResNet-18", 69.76, 11.67, 1.814),
}
"""Model, or the preset that takes a part away -> name, and the paper's top-1 in percent, parameters in M, MACs in G.

From Table 3, where there is no ResNet: that one is from Table 1.
"""
OPTIONS = "epochs", "batch_size", "lr", "sizes"
"""Fields of a recipe that are options of ``vtviz train``; the others are set by ``--set``."""
STAR = "\\*"
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % points of Student's t for 1, 2, … degrees of freedom."""


def collect(folders: Sequence[Path]) -> tuple[dict[str, Any], list[str]]:
    """What the table needs of all runs below some folders, and a line on each run that is left out.

    Raises:
        VtvizError: where there is none, or one was trained or scored otherwise than the others.
    """
    runs: list[dict[str, Any]] = []
    settings: dict[str, dict[str, Any]] = {}
    notes = []
    for run in sorted(run for folder in folders for run in folder.glob("*-seed*") if run.is_dir()):
        try:
            found, settings[run.name] = _read_run(run)
        except FileNotFoundError as error:
            notes.append(f"left out {run.name}: it has no {Path(error.filename).name}")
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"left out {run.name}: {error}")
            continue
        runs.append(found)
    if not runs:
        raise ConfigError(f"no finished run in {', '.join(map(str, folders))}")
    (first, setting), *others = settings.items()
    for name, other in others:
        for key in sorted(setting | other):
            if setting.get(key) != other.get(key):
                raise ConfigError(f"{name} has {key} {other.get(key)}, {first} has {setting.get(key)}: not comparable")
    order = list(VARIANTS)
    runs.sort(key=lambda r: (order.index(r["variant"]), r["seed"]))
    return {"setting": setting, "runs": runs}, notes


def _read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A finished run's figures, and everything that must be the same in all of them."""
    name = re.fullmatch(r"(.+)-seed(\d+)", run.name)
    job = json.loads((run / "run.json").read_text(encoding="utf-8"))
    variant = job["model"] if job.get("preset") in {None, "counts"} else job["preset"]
    if name is None or (name[1], int(name[2])) != (variant, job["recipe"]["seed"]) or variant not in VARIANTS:
        raise ValueError(f"it holds {variant} with seed {job['recipe']['seed']}")
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    recipe = asdict(recipe_from_dict(job["recipe"]))
    seed, epochs = recipe.pop("seed"), recipe["epochs"]
    if len(rows) < epochs:
        raise ValueError(f"{len(rows)} of {epochs} epochs are done")
    scores = json.loads((run / "evaluate.json").read_text(encoding="utf-8"))
    card = read_card(run / "best.safetensors")
    with torch.device("meta"):
        cost = count_complexity(model_from_config(card.model, card.config))
    found = {
        "variant": variant,
        "seed": seed,
        "top1": scores["top1"],
        "params": cost.params,
        "macs": cost.macs,
        "seconds": _seconds(rows, recipe, card.data["n_train"]),
        "device": job["environment"]["device"],
    }
    setting = {f"recipe.{key}": value for key, value in recipe.items()} | {
        "data": scores["data"],
        "split": scores["split"],
        "size": scores["size"],
        "n": scores["n"],
        "n_train": card.data["n_train"],
        "n_val": card.data["n_val"],
        "classes": len(card.classes),
        "teacher": card.teacher,
        "pixels": job.get("pixels", "host"),  # where photos are cropped and jittered, by code that differs
    }
    return found, setting


def _seconds(rows: Sequence[dict[str, str]], recipe: dict[str, Any], n_train: int) -> float | None:
    """How long the epochs take at the median speed of those of the same crop size; None where no speed was noted.

    The median: a run that was stopped meanwhile, or shared its machine, is not taken for a slow one.
    """
    plan = BatchPlan(1, 1, parse_sizes(recipe["sizes"]), epochs=recipe["epochs"], seed=0)
    speeds = defaultdict(list)
    for row in rows:
        speeds[plan.sides(int(row["epoch"]) - 1)].append(float(row.get("images_per_s") or 0))
    if not all(map(all, speeds.values())):
        return None
    return sum(len(found) * n_train / statistics.median(found) for found in speeds.values())


def interval(top1: Sequence[float], n: int) -> float:
    """Half of a 95 % interval, in the unit of ``top1`` (shares).

    Of the mean over several seeds: Student's t, which knows of the runs' differences only. Of a single run, and of
    seeds that happen to have one score: the binomial one, which knows of the ``n`` photos only.
    """
    if len(set(top1)) == 1:
        return 1.96 * math.sqrt(top1[0] * (1 - top1[0]) / n)
    t = T_975[len(top1) - 2] if len(top1) - 2 < len(T_975) else 1.96
    return t * statistics.stdev(top1) / math.sqrt(len(top1))


def table(results: dict[str, Any]) -> str:
    """The runs of :func:`collect` as a Markdown table, a line a variant, and what one can and cannot tell from it."""
    runs = {key: [run for run in results["runs"] if run["variant"] == key] for key in VARIANTS}
    runs = {key: found for key, found in runs.items() if found}
    scores = {key: [run["top1"] for run in found] for key, found in runs.items()}
    n = results["setting"]["n"]
    lines = [HEADINGS, ["---"] * len(HEADINGS)]
    for key, found in runs.items():
        label, top1, params, macs = VARIANTS[key]
        ours = statistics.mean(scores[key])
        gap = f" ({_signed(100 * (ours - statistics.mean(scores[BASE])))})" if BASE in runs and key != BASE else ""
        gap_paper = "" if key == BASE else f" ({_signed(top1 - VARIANTS[BASE][1])})"
        times = [run["seconds"] for run in found if run["seconds"]]
        cells = [
            label,
            ", ".join(f"{100 * score:.2f}" for score in scores[key]),
            f"{100 * ours:.2f} ± {100 * interval(scores[key], n):.2f}{'' if len(set(scores[key])) > 1 else STAR}{gap}",
            f"{found[0]['params'] / 1e6:.2f} M",
            f"{found[0]['macs'] / 1e9:.3f} G",
            f"{statistics.mean(times) / 60:.1f} min" if times else "–",
            f"{top1:.2f}{gap_paper}",
            f"{params:.2f} M",
            f"{macs:.3f} G",
        ]
        lines.append(cells)
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    note = (
        f"\n{STAR} One score: the interval is that of the photos, and knows nothing of seeds.\n" if STAR in text else ""
    )
    return f"{_describe(results)}\n\n{text}{note}\n{_conclude(scores, n)}\n\n{_how(results['setting'])}\n"


def _describe(results: dict[str, Any]) -> str:
    """How the runs were made, in words."""
    setting = results["setting"]
    recipe = {key.removeprefix("recipe."): value for key, value in setting.items()}
    devices = sorted({run["device"] for run in results["runs"]})
    timed = sorted({run["device"] for run in results["runs"] if run["seconds"]})
    most = max(Counter(run["variant"] for run in results["runs"] if run["seconds"]).values(), default=0)
    training = (
        f" Training: the {'time of one run' if most == 1 else 'mean time of the runs that noted it'}, at the median "
        f"speed of the epochs of each crop size, on {', '.join(timed)}."
        if timed
        else ""
    )
    chosen = f"{setting['n_val']:,} of the" if setting["n_val"] < setting["n"] else "the"
    return (
        f"Each run: {setting['data']}, {setting['n_train']:,} photos of {setting['classes']} classes, from random "
        f"weights, without a teacher, {recipe['epochs']} epochs at crops of `{recipe['sizes']}` px, batch "
        f"{recipe['batch_size']}, {recipe['optimizer']}; the same recipe for all but the seed ({', '.join(devices)}). "
        f"Top-1 in percent on all {setting['n']:,} photos of {setting['split']} at {setting['size']} px, of the epoch "
        f"that was best on {chosen} photos. In brackets the difference from VT-ResNet-18. MACs at 224 px.{training}"
    )


def _how(setting: dict[str, Any]) -> str:
    """The command that trains one of the runs, with every setting that is not the usual one."""
    usual = asdict(make_recipe("small"))
    recipe = {key.removeprefix("recipe."): value for key, value in setting.items() if key.startswith("recipe.")}
    words = [
        f"--{key.replace('_', '-')} {value}" if key in OPTIONS else f"--set {key}={value}"
        for key, value in recipe.items()
        if value != usual[key]
    ]
    words += [f"--val-limit {setting['n_val']}"] * (setting["n_val"] < setting["n"]) + [f"--pixels {setting['pixels']}"]
    return (
        "Trained by this command, for every preset and seed; with `--model resnet18` in place of the preset for "
        "ResNet-18, and with neither for VT-ResNet-18:\n\n```bash\nvtviz train --data DIR "
        f"--out RUNS/no_dynamic-seed0 --preset no_dynamic --seed 0 \\\n  {' '.join(words)}\n```"
    )


def _conclude(scores: dict[str, list[float]], n: int) -> str:
    """Which differences the intervals leave standing."""
    ends = {
        key: (statistics.mean(s) - interval(s, n), statistics.mean(s) + interval(s, n)) for key, s in scores.items()
    }
    if BASE not in ends:
        return "There is no run of VT-ResNet-18 to compare with."
    low, high = ends[BASE]
    apart = [VARIANTS[key][0] for key, (a, b) in ends.items() if a > high or b < low]
    if apart:
        return f"Its interval and VT-ResNet-18's do not overlap: {', '.join(apart)}."
    return "Every interval overlaps VT-ResNet-18's: these runs do not tell the models apart."


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")


def renewed(page: str, results: dict[str, Any]) -> str:
    """The page with its table replaced."""
    return enclosed.renewed(page, MARKS, lambda: table(results), PAGE.name)


def main() -> None:
    """Collect runs where asked to, and write the page, or with --check only tell whether it is up to date."""

    def read(folders: Sequence[Path]) -> tuple[dict[str, Any], str]:
        results, notes = collect(folders)
        for note in notes:
            print(note, file=sys.stderr)
        return results, f", {len(results['runs'])} runs"

    enclosed.main(PAGE, RESULTS, read, renewed, ("RUNS", "folder of runs called VARIANT-seedN"))


if __name__ == "__main__":
    try:
        main()
    except VtvizError as error:
        sys.exit(f"error: {error}")
