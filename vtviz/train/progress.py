"""How fast a run goes and when it will end, behind Lightning's bar."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Lightning's bar with images a second, the share of time spent waiting for data, and the time left of the run.

    Attributes:
        images_per_s: of this epoch so far, over all processes.
        wait: share of this epoch's time spent waiting for data.
    """

    def __init__(self, batch_size: int) -> None:
        """``batch_size``: images a micro-batch, over all processes."""
        super().__init__(refresh_rate=10)
        self.batch_size = batch_size
        self.images_per_s = self.wait = 0.0
        self._began = self._waiting_since = self._waited = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        """Start the clock."""
        super().on_train_epoch_start(trainer, *arguments)
        self._began = self._waiting_since = time.perf_counter()
        self._waited = 0.0

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
        self.images_per_s = (batch_idx + 1) * self.batch_size / passed
        self.wait = self._waited / passed
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        metrics: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        if self.images_per_s > 0 and trainer.max_epochs:
            epochs = trainer.max_epochs - trainer.current_epoch
            batches = epochs * int(trainer.num_training_batches) - (
                trainer.fit_loop.epoch_loop.batch_progress.current.ready
            )
            left = timedelta(seconds=round(max(0, batches) * self.batch_size / self.images_per_s))
            metrics |= {"img/s": f"{self.images_per_s:.0f}", "wait": f"{self.wait:.0%}", "left": str(left)}
        return metrics
