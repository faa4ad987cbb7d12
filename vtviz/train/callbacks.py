"""What a run does beside training: averaging weights, writing its folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vtviz import checkpoints
from vtviz.card import Card
from vtviz.files import replacing, write
from vtviz.models.registry import model_from_config
from vtviz.predictor import Predictor
from vtviz.train.probe import animate, write_probe
from vtviz.train.progress import Progress

METRICS = "metrics.csv"
CONFUSION = "confusion.csv"
SPEED = ("images_per_s", "data_wait", "mfu", "validation_s")
"""The columns of :data:`METRICS` that tell of the machine, not of what was learned: no two runs agree in them."""


class Averaging(WeightAveraging):
    """Exponential moving average of the weights, whose decay rises from 0.1 so that short runs are not all start."""

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=self._average)
        self.decay = decay

    def _average(self, averaged: Any, current: Any, count: Any) -> None:
        n = int(count)
        get_ema_multi_avg_fn(min(self.decay, (1 + n) / (10 + n)))(averaged, current, count)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes the state beside its old version and then puts it in its place, so that no kill leaves a part of it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        """Write ``path``; raises OSError where the disk refuses, with the old version intact."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # in memory first: PyTorch's writer, in C++, aborts the process where Ctrl-C closed the file that it writes into
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with replacing(target) as file:
            file.write(buffer.getbuffer())


class RunFolder(Callback):
    """Writes, after each epoch, everything that a run leaves behind; a resumed run replaces what it does again.

    ``last.safetensors`` and the ``best`` on "val" with their cards; :data:`METRICS`, one row an epoch;
    :data:`CONFUSION` of the best weights; the token maps of one image, see :func:`vtviz.train.probe.write_probe`.
    """

    def __init__(self, folder: Path, card: Card, progress: Progress, probe: np.ndarray) -> None:
        """``probe``: the image (H, W, 3) uint8 whose maps are kept."""
        self.folder, self.card, self.progress, self.probe = folder, card, progress, probe
        self.best = -1.0
        self._rate = 0.0
        self._snapshot = model_from_config(card.model, card.config).eval()
        self._weights: dict[str, torch.Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs to know."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the stopped run was."""
        self.best = state_dict["best"]

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:  # noqa: ARG002
        """Note the rate of this step: when the epoch is told of, the schedule is one step ahead."""
        self._rate = optimizer.param_groups[0]["lr"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Keep the weights that were validated: after this hook the averaged ones are swapped out again."""
        if trainer.is_global_zero:
            self._weights = {k: v.detach().cpu().clone() for k, v in pl_module.model.state_dict().items()}

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write weights, card and the epoch's metrics."""
        if not trainer.is_global_zero:
            return
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        epoch = trainer.current_epoch + 1
        card = replace(
            self.card,
            epochs=float(epoch),
            accuracy={
                **pl_module.accuracy(metrics),
                "n": self.card.data["n_val"],
                "size": self.card.preprocessing.size,
                "split": "val",
                "precision": self.card.recipe["precision"],
            },
            tokens=pl_module.tokens,
            date=datetime.now(tz=UTC).date().isoformat(),
        )
        self._snapshot.load_state_dict(self._weights)
        checkpoints.save(self.folder / "last.safetensors", self._snapshot, card)
        if metrics[pl_module.score] > self.best:
            self.best = metrics[pl_module.score]
            checkpoints.save(self.folder / "best.safetensors", self._snapshot, card)
            rows = zip(card.class_ids, pl_module.confusion.tolist(), strict=True)
            _write_csv(
                self.folder / CONFUSION, [["right \\ predicted", *card.class_ids], *([i, *row] for i, row in rows)]
            )
        write_probe(self.folder, Predictor(self._snapshot, card), self.probe, epoch)
        measured = (self.progress.images_per_s, self.progress.wait, self.progress.mfu, self.progress.validating)
        speed = dict(zip(SPEED, measured, strict=True))
        self._append({"epoch": epoch, "lr": self._rate, **speed, **metrics})

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Make the probe's panels into an animation."""
        if trainer.is_global_zero:
            animate(self.folder)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Do the same for a run that is cancelled or fails: what it learned until then is worth seeing too."""
        with suppress(OSError):  # what ended the run is what is told
            self.on_fit_end(trainer, pl_module)

    def _append(self, row: Mapping[str, float]) -> None:
        """Add a row to the metrics; rows of epochs that a resumed run does again are replaced."""
        rows: list[Mapping[str, Any]] = [r for r in read_metrics(self.folder) if r["epoch"] < row["epoch"]]
        rows.append(row)
        names = list(dict.fromkeys(key for r in rows for key in r))
        _write_csv(self.folder / METRICS, [names, *([_figure(r.get(name)) for name in names] for r in rows)])


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """A run's metrics, one dict an epoch; empty where it has none yet."""
    file = Path(folder) / METRICS
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as handle:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(handle)]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _write_csv(file: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a table so that whoever reads it meanwhile sees the old or the new one."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write(file, text.getvalue())
