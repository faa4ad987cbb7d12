"""What can be told about a job from outside: how far it is, what it said, and what one would cost."""

from __future__ import annotations

import csv
import re
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtviz.data.folder import open_folder
from vtviz.data.loading import SIZE_STEP, BatchPlan, parse_sizes
from vtviz.errors import ConfigError, TrainingError, VtvizError
from vtviz.train.jobs import LOG, Jobs
from vtviz.train.recipes import Recipe, recipe_from_dict

METRICS = "metrics.csv"
TRIAL_STEPS = 20
TRIAL_SECONDS = 600
"""A trial that takes longer is given up."""
LOG_BYTES = 2**20
"""How much of a log's end is read."""
_BAR = re.compile(r"Epoch (\d+)[^:]*:\s+\d+%\|[^|]*\|\s*(\d+)/(\d+) \[([^\]\r\n]*)")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LOSS = re.compile(r"\bloss=(nan|-?inf|[-+.\deE]+)")
_LEFT = re.compile(r"\bleft=((?:\d+ days?, )?[\d:]+)")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        epochs: passes done, fractions included, as its progress bar last said.
        left: the bar's estimate of the time left, e.g. "0:12:30"; empty where it has none.
        losses: (passes done, loss of that step), every few steps.
        rows: the metrics after each whole epoch, see :class:`vtviz.train.callbacks.RunFolder`.
    """

    epochs: float
    left: str
    losses: tuple[tuple[float, float], ...]
    rows: tuple[dict[str, float], ...]


def read_progress(folder: Path) -> Progress:
    """The progress of the run in ``folder``; all empty before it has any."""
    losses: list[tuple[float, float]] = []
    epochs, left = 0.0, ""
    for epoch, step, steps, text in _BAR.findall(_read_end(folder / LOG)):
        epochs = int(epoch) + int(step) / max(1, int(steps))
        if found := _LEFT.search(text):
            left = found[1]
        if int(step) and (found := _LOSS.search(text)):  # at step 0 the bar still shows the last epoch's
            while losses and losses[-1][0] >= epochs:  # a resumed run does an epoch again
                losses.pop()
            with suppress(ValueError):  # a number that is half written
                losses.append((epochs, float(found[1])))
    return Progress(epochs, left, tuple(losses), tuple(_read_metrics(folder / METRICS)))


def read_log(folder: Path, lines: int = 12) -> list[str]:
    """The last lines that a job wrote, a progress bar as it last stood, without tracebacks."""
    kept: list[str] = []
    inside = False
    for line in _ANSI.sub("", _read_end(folder / LOG)).split("\n"):
        shown = line.rstrip().rpartition("\r")[2]
        if shown.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and not shown.startswith(" "):
            inside = False  # the line that ends a traceback names the error, which the job tells in its own line
        elif shown and not inside and not shown.startswith("Validation"):
            if kept and "%|" in shown and kept[-1].startswith(shown.partition("%|")[0].rstrip("0123456789 ")):
                kept.pop()  # the same bar, earlier
            kept.append(shown)
    return kept[-lines:]


def _read_end(file: Path) -> str:
    try:
        with file.open("rb") as handle:
            handle.seek(max(0, file.stat().st_size - LOG_BYTES))
            return handle.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _read_metrics(file: Path) -> list[dict[str, float]]:
    """As vtviz.train.callbacks.read_metrics, which would bring Lightning into the page."""
    try:
        with file.open(newline="", encoding="utf-8") as handle:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(handle)]
    except (OSError, ValueError):
        return []


@dataclass(frozen=True)
class Cost:
    """What a run takes.

    Attributes:
        train, val: images trained on and validated on in an epoch.
        classes: folders.
        steps: optimiser steps in all.
    """

    train: int
    val: int
    classes: int
    steps: int


def count_cost(data: Path, recipe: Recipe) -> Cost:
    """Count images, classes and steps. Raises DataError where training could not start either."""
    train = open_folder(data, "train", seed=recipe.seed)
    val = open_folder(data, "val", classes=train.classes, seed=recipe.seed)
    steps = recipe.epochs * max(1, len(train) // recipe.batch_size)
    return Cost(len(train), len(val), len(train.classes), steps)


def mean_side(recipe: Recipe) -> int:
    """The crop's side in pixels whose area is the mean over all epochs, in whole cells."""
    plan = BatchPlan(1, 1, parse_sizes(recipe.sizes), epochs=recipe.epochs, seed=0)
    steps = [plan.sides(epoch) for epoch in range(recipe.epochs)]
    area = sum((step.low**2 + step.high**2) / 2 for step in steps) / len(steps)
    return max(32, round(area**0.5 / SIZE_STEP) * SIZE_STEP)


def estimate_seconds(jobs: Jobs, training: Mapping[str, Any], cost: Cost) -> float:
    """Train a throw-away model for :data:`TRIAL_STEPS` steps, half of them to warm up, and say how long all would take.

    Decoding the photos, which is done once, is not reckoned.

    Args:
        jobs: none of them may be at work, or the trial would measure both.
        training: as for :meth:`vtviz.train.jobs.Jobs.start`.
        cost: of that training.

    Returns:
        Seconds.

    Raises:
        ConfigError: where a job is at work, or is started meanwhile.
        TrainingError: where the trial fails, with its reason.
    """
    _refuse_company(jobs)
    recipe = recipe_from_dict(training["recipe"])
    train = min(cost.train, recipe.batch_size * TRIAL_STEPS // 2)
    val = min(cost.val, 2 * recipe.batch_size)
    short = {**training["recipe"], "epochs": 2, "sizes": str(mean_side(recipe))}
    with tempfile.TemporaryDirectory(prefix="vtviz-trial-", ignore_cleanup_errors=True) as folder:
        row, epoch = _measure(Jobs(folder), {**training, "recipe": short, "limit": train, "val_limit": val}, jobs)
    training_s, validation_s = train / row["images_per_s"], row["validation_s"]
    writing = max(0.0, epoch - training_s - validation_s)  # the checkpoint and the probe: the same of any number
    return recipe.epochs * (training_s * cost.train / train + validation_s * cost.val / val + writing)


def _refuse_company(jobs: Jobs) -> None:
    if running := [job.name for job in jobs.all() if job.active]:
        raise ConfigError(f"{running[0]} is at work, and a trial beside it would measure both; try when it has ended")


def _measure(trials: Jobs, training: Mapping[str, Any], jobs: Jobs) -> tuple[dict[str, float], float]:
    """The metrics of the second of two epochs, and how long that took with everything, in seconds.

    A job that is started meanwhile goes before: the trial ends.
    """
    job = trials.start("trial", training)
    deadline = time.monotonic() + TRIAL_SECONDS
    ends: list[float] = []
    rows: list[dict[str, float]] = []
    while job.active:
        rows = _read_metrics(job.folder / METRICS)
        ends += [time.monotonic()] * (len(rows) - len(ends))
        try:
            _refuse_company(jobs)
            if time.monotonic() > deadline:
                raise TrainingError(f"{TRIAL_STEPS} steps took more than {TRIAL_SECONDS // 60} minutes; choose less")
        except VtvizError:
            trials.cancel(job.name)
            trials.cancel(job.name)
            raise
        time.sleep(0.1)
        job = trials.get(job.name)
    if job.state != "done" or len(ends) < 2:
        raise TrainingError(job.error or "the trial ended early")
    return rows[-1], ends[1] - ends[0]
