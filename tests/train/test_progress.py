"""What stands behind the bar."""

import re
import time

import lightning as L
import pytest
import torch
from torch import nn

from vtviz.train import progress as module
from vtviz.train.progress import Progress
from vtviz.train.run import train
from vtviz.train.watch import _BAR, _LEFT

BAR = re.compile(r"(\d+)/(\d+) \[[^\]\r]*img/s=(\d+), wait=(\d+)%(?:, MFU=(\d+)%)?, left=([\d:]+)")
STEP, WAIT = 0.03, 0.03
"""Seconds that a step and its data take."""
BATCHES = (torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 32, 64))
FLOPS = [6 * 3 * 8 * 9 * batch[:, 0].numel() for batch in BATCHES]
"""Of one 3 x 3 convolution from 3 to 8 channels, forward and backward."""
PEAK = 1e9


class Slow(L.LightningModule):
    """One convolution, that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False))

    def training_step(self, batch, batch_idx):
        time.sleep(STEP)
        return self.model(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Batches:
    """The batches of an epoch, each after a while."""

    def __iter__(self):
        for images in BATCHES:
            time.sleep(WAIT)
            yield images, torch.zeros(2)

    def __len__(self) -> int:
        return len(BATCHES)


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Trains for two epochs and gives what stood behind the bar."""
    monkeypatch.setattr(module, "peak_flops", lambda *_: PEAK)

    def run(model=None) -> Progress:
        progress = Progress()
        L.Trainer(
            default_root_dir=tmp_path, accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
            enable_model_summary=False, callbacks=[progress], log_every_n_steps=1,
        ).fit(model or Slow(), Batches())  # fmt: skip
        return progress

    return run


def test_speed_waiting_and_mfu_are_those_of_the_epoch(fit, capfd):
    began = time.perf_counter()
    progress = fit()
    took = time.perf_counter() - began
    lefts = [left for *_, left in BAR.findall(capfd.readouterr().out)]
    assert lefts[-1] == "0:00:00"
    assert all(left.startswith("0:00:0") for left in lefts)
    seconds = len(BATCHES) * 2 / progress.images_per_s
    assert len(BATCHES) * (STEP + WAIT) <= seconds < took
    assert 0.99 * len(BATCHES) * WAIT <= progress.wait * seconds <= seconds - 0.99 * len(BATCHES) * STEP
    assert progress.mfu == pytest.approx(sum(FLOPS) / seconds / PEAK, rel=1e-3)  # whatever the batches' sizes


def test_a_peak_that_training_outruns_is_none(fit, monkeypatch, capfd):
    monkeypatch.setattr(module, "peak_flops", lambda *_: 1e3)  # as measured by a process that hardly got to run
    assert fit().mfu == 0
    assert "MFU" not in capfd.readouterr().err


@pytest.mark.parametrize("broken", ["count_step", "peak_flops"])
def test_a_model_that_cannot_be_counted_trains_without_mfu(fit, monkeypatch, broken, capfd):
    def fail(*_):
        raise NotImplementedError("no such operator on the meta device")

    monkeypatch.setattr(module, broken, fail)
    progress = fit()
    assert progress.mfu == 0
    assert progress.images_per_s > 0
    assert "MFU" not in capfd.readouterr().err


def test_a_run_s_bar_is_what_the_page_reads(tiny_job, capfd):
    train(tiny_job())
    text = capfd.readouterr().err.replace("\n", "\r")
    found = BAR.findall(text)
    assert found[-1][0] == found[-1][1] == "3"  # batches
    assert int(found[-1][2]) > 0
    assert 0 <= int(found[-1][4] or 0) <= 100  # of what matrix products reach on this machine
    assert _BAR.search(text)
    assert _LEFT.search(text)
