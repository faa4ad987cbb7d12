"""What is told of a run: what it will cost, and how far it is."""

import math
from dataclasses import asdict, replace

import pytest

from vtviz.data.folder import open_folder
from vtviz.errors import DataError
from vtviz.train import watch
from vtviz.train.jobs import LOG, Jobs
from vtviz.train.recipes import RECIPES
from vtviz.train.watch import Cost, count_cost, estimate_seconds, mean_side, read_log, read_progress

QUICK = RECIPES["small"]


@pytest.mark.parametrize(("sizes", "side"), [("64", 64), ("64@0.5,128", 96), ("224", 224), ("32-64", 48)])
def test_the_trial_s_side_has_the_mean_area(sizes, side):
    assert mean_side(replace(QUICK, sizes=sizes, epochs=10)) == side


def test_the_cost_counts_what_training_reads(balls, tmp_path):
    cost = count_cost(balls, replace(QUICK, epochs=3, batch_size=100))
    assert cost.train == len(open_folder(balls, "train"))
    assert cost.steps == 3
    with pytest.raises(DataError, match="has no class folders"):
        count_cost(tmp_path, QUICK)


def test_what_a_trial_writes_once_is_reckoned_once_an_epoch(monkeypatch, tmp_path):
    """Of 1,280 photos in 10 s, 256 validated in 1 s, and 2 s for the checkpoint."""
    row = {"images_per_s": 128.0, "validation_s": 1.0}
    monkeypatch.setattr(watch, "_measure", lambda trials, training, jobs: (row, 13.0))
    training = {"recipe": asdict(replace(QUICK, epochs=3, batch_size=128))}
    assert estimate_seconds(Jobs(tmp_path), training, Cost(12_800, 10_240, 10, 300)) == pytest.approx(
        3 * (100 + 40 + 2)
    )


def test_a_log_is_read_without_bars_repeated_and_without_tracebacks(tmp_path):
    bar = "Epoch {}:  50%|█████     | 2/4 [00:01<00:01,  2.0it/s, loss={}, left=1 day, 0:00:09]"
    (tmp_path / LOG).write_text(
        "left out: a.png\n"
        + "\r".join(("decoding train", "  ", bar.format(0, 0.75), bar.format(0, "nan")))
        + "\nValidation: 0/?\x1b[A\n\x1b[A\r"
        + bar.format(1, 0.5).replace("2/4", "0/4")
        + "\n"
        + bar.format(1, 0.5)
        + '\nTraceback (most recent call last):\n  File "x.py", line 1, in f\nValueError: secret\nerror: bad\n'
    )
    assert read_log(tmp_path) == ["left out: a.png", bar.format(0, "nan"), bar.format(1, 0.5), "error: bad"]
    assert read_log(tmp_path, 1) == ["error: bad"]
    progress = read_progress(tmp_path)
    assert progress.epochs == 1.5
    assert progress.left == "1 day, 0:00:09"
    assert [x for x, _ in progress.losses] == [0.5, 1.5]
    assert progress.losses[1][1] == 0.5
    (tmp_path / LOG).write_text((tmp_path / LOG).read_text() + "\n" + bar.format(0, 0.25))  # done again
    assert read_progress(tmp_path).losses == ((0.5, 0.25),)


@pytest.mark.parametrize(
    ("text", "losses"), [("-inf", [-math.inf]), ("1e-05", [1e-5]), ("2.3e-", []), ("-", []), ("1.2.3", [])]
)
def test_a_loss_that_is_no_number_is_passed_over(tmp_path, text, losses):
    (tmp_path / LOG).write_text(f"Epoch 0:  50%|█████     | 2/4 [00:01<00:01,  2.0it/s, loss={text}")
    progress = read_progress(tmp_path)
    assert [loss for _, loss in progress.losses] == losses
    assert progress.epochs == 0.5


def test_nothing_to_tell_is_nothing(tmp_path):
    progress = read_progress(tmp_path)
    assert (progress.epochs, progress.left, progress.losses, progress.rows) == (0.0, "", (), ())
    assert read_log(tmp_path) == []
