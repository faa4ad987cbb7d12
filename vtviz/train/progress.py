"""How fast a run goes and when it will end, behind Lightning's bar."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import nn

from vtviz.train.flops import StepFlops, count_step, peak_flops

_LOG = logging.getLogger(__name__)


class Progress(TQDMProgressBar):
    """Lightning's bar with images a second, the share of time spent waiting for data, MFU, and the time left.

    Attributes:
        images_per_s: of this epoch so far, over all processes.
        wait: share of this epoch's time spent waiting for data.
        validating: seconds that the last validation took.
        mfu: model FLOPs utilisation of this epoch so far: the FLOP/s that the model's own forward and backward passes
            need (not a teacher's), over those that the device could do; 0 where it cannot be told. See
            :mod:`vtviz.train.flops`.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)
        self.images_per_s = self.wait = self.mfu = self.validating = 0.0
        self._step: StepFlops | None = None
        self._peak = self._computed = 0.0
        self._batch = self._images = 0
        self._began = self._waiting_since = self._waited = self._validation_began = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the model's FLOPs and find the device's, which takes about half a second."""
        super().on_train_start(trainer, pl_module)
        if self.is_enabled:
            try:
                model = cast("nn.Module", pl_module.model)
                self._step = count_step(model, getattr(pl_module, "frozen", ()))
                self._peak = peak_flops(pl_module.device, str(trainer.precision))
            except Exception as error:  # noqa: BLE001 - a number beside the bar must not stop a run
                _LOG.info("no MFU: %s", error)
                self._step = None

    def on_train_epoch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        """Start the clock."""
        super().on_train_epoch_start(trainer, *arguments)
        self._began = self._waiting_since = time.perf_counter()
        self._waited = self._computed = 0.0
        self._images = 0

    def on_train_batch_start(self, *arguments: Any) -> None:
        """Data have come."""
        super().on_train_batch_start(*arguments)
        self._waited += time.perf_counter() - self._waiting_since

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and wait for the next data."""
        self._waiting_since = time.perf_counter()
        passed = max(1e-9, self._waiting_since - self._began)
        self._batch = len(batch[0]) * trainer.world_size  # the set may be smaller than what was asked for
        self._images += self._batch
        self.images_per_s = self._images / passed
        self.wait = self._waited / passed
        if self._step is not None:
            self._computed += self._step.of(batch[0].shape)
            share = self._computed / passed / self._peak
            self.mfu = share if share <= 1 else 0.0  # a peak that training outruns was measured on a busy machine
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the validation's clock."""
        super().on_validation_start(trainer, pl_module)
        self._validation_began = time.perf_counter()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Stop it, before the run's folder is written."""
        self.validating = time.perf_counter() - self._validation_began

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        metrics: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        if self.images_per_s > 0 and trainer.max_epochs:
            epochs = trainer.max_epochs - trainer.current_epoch
            batches = epochs * int(trainer.num_training_batches) - (
                trainer.fit_loop.epoch_loop.batch_progress.current.ready
            )
            left = timedelta(seconds=round(max(0, batches) * self._batch / self.images_per_s))
            metrics |= {"img/s": f"{self.images_per_s:.0f}", "wait": f"{self.wait:.0%}"}
            metrics |= {"MFU": f"{self.mfu:.0%}"} if self.mfu > 0 else {}
            metrics["left"] = str(left)
        return metrics
