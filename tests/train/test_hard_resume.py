"""A run that is killed again and again ends where the unkilled run ends."""

import os
import random
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from vtviz.train.callbacks import read_metrics
from vtviz.train.job import STATE
from vtviz.train.run import train


@pytest.mark.slow
def test_a_run_killed_five_times_ends_with_the_same_weights(balls, tiny_job, tmp_path, quick, tally):
    recipe = {"mixup": 0.2, "dropout": 0.1, "drop_path": 0.1, "lr": 2e-3, "epochs": 8}
    whole = train(tiny_job("whole", recipe=recipe))
    folder, chance, kills = tmp_path / "killed", random.Random(5), 0
    options = ["--epochs", "8", "--lr", "2e-3", "--set", "mixup=0.2", "--set", "dropout=0.1", "--set", "drop_path=0.1"]
    command = [sys.executable, "-m", "vtviz", "train", "--data", str(balls), "--out", str(folder), *quick, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    while kills < 5:
        before = (folder / STATE).stat().st_mtime_ns if kills else 0
        process = subprocess.Popen(
            [*command, *(["--resume"] if kills else [])],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not (folder / STATE).is_file() or (folder / STATE).stat().st_mtime_ns == before:  # another epoch is safe
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3))  # somewhere in the next one, or while something is written
        process.kill()
        process.communicate()
        kills += 1
        assert len(read_metrics(folder)) < 8  # it was still at it
    train(tiny_job("killed", recipe=recipe), resume=True)

    for name in ("last.safetensors", "best.safetensors"):
        ours, theirs = load_file(folder / name), load_file(whole / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    speed = {"images_per_s", "data_wait", "mfu"}
    rows, same = (
        [{k: v for k, v in r.items() if k not in speed} for r in read_metrics(run)] for run in (folder, whole)
    )
    assert rows == same
    assert not [path for path in folder.iterdir() if path.name.endswith((".tmp", ".part"))]
    tally("training runs killed and resumed", kills)
    tally("steps of them lost or done twice", 0)
