"""A killed run goes on as if nothing had happened, and two processes are as good as one."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vtviz.errors import ConfigError, TrainingError
from vtviz.train.callbacks import AtomicCheckpoints, read_metrics
from vtviz.train.job import STATE
from vtviz.train.probe import PROBE
from vtviz.train.run import train

ROOT = Path(__file__).resolve().parents[2]
NOISE = ("--set", "mixup=0.2", "--set", "dropout=0.1", "--set", "drop_path=0.1")


def start(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "vtviz", "train", *map(str, arguments)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}, **quiet)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def test_a_run_killed_in_the_middle_of_an_epoch_ends_with_the_same_weights(balls, tiny_job, tmp_path, quick, learned):
    options = {"mixup": 0.2, "dropout": 0.1, "drop_path": 0.1, "lr": 2e-3, "epochs": 4}
    whole = train(tiny_job("whole", recipe=options))
    killed = tmp_path / "killed"
    process = start("--data", balls, "--out", killed, *quick, *NOISE, "--epochs", 4, "--lr", 2e-3)
    deadline = time.monotonic() + 120
    while not (killed / STATE).is_file():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(0.1)  # into the next epoch
    process.kill()
    process.wait()
    done = len(read_metrics(killed))
    assert 1 <= done < 4  # it was still at it
    train(tiny_job("killed", recipe=options), resume=True)

    for name in ("last.safetensors", "best.safetensors"):
        ours, theirs = load_file(killed / name), load_file(whole / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    ours, theirs = (torch.load(run / STATE, weights_only=False) for run in (killed, whole))
    for kind in ("state_dict", "current_model_state"):  # float32: the averages and the weights themselves
        assert all(torch.equal(ours[kind][key], theirs[kind][key]) for key in theirs[kind])
    assert learned(killed) == learned(whole)


def test_what_a_killed_run_had_half_written_goes_when_it_goes_on(trained_copy, tiny_job):
    left = [trained_copy / f".{STATE}.123-7f00.tmp", trained_copy / PROBE / ".epoch0001.npz.123-7f00.tmp"]
    for path in left:
        path.write_bytes(b"half")
    train(tiny_job(trained_copy.name, recipe={"epochs": 3}), resume=True)
    assert not any(path.exists() for path in left)


def test_a_run_killed_before_its_first_epoch_ends_starts_again(tiny_job):
    job = tiny_job(recipe={"epochs": 1})
    run = train(job)
    for file in (run / STATE, run / "last.safetensors", run / "best.safetensors"):
        file.unlink()
    assert len(read_metrics(train(job, resume=True))) == 1


@pytest.mark.parametrize("workers", [0, 1])  # a data-loading process draws the order before the epoch is told
def test_a_run_stopped_between_its_metrics_and_its_state_does_the_epoch_again(tiny_job, monkeypatch, workers):
    """The metrics are then one epoch ahead of the state."""
    options = {"epochs": 3, "mixup": 0.2, "ema": 0.0}
    whole = train(tiny_job("whole", recipe=options, workers=workers))

    def full(self, checkpoint, path, storage_options=None):
        if checkpoint["epoch"] == 1:
            raise OSError(28, "No space left on device")
        save(self, checkpoint, path, storage_options)

    save = AtomicCheckpoints.save_checkpoint
    monkeypatch.setattr(AtomicCheckpoints, "save_checkpoint", full)
    with pytest.raises(TrainingError, match="No space left on device; the last whole epoch is kept"):
        train(tiny_job("stopped", recipe=options, workers=workers))
    monkeypatch.undo()
    stopped = train(tiny_job("stopped", recipe=options, workers=workers), resume=True)
    assert [row["epoch"] for row in read_metrics(stopped)] == [1, 2, 3]
    ours, theirs = (load_file(run / "last.safetensors") for run in (stopped, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("batch_size", [4, 12])
def test_a_run_that_goes_on_with_another_batch_keeps_to_its_schedule(tiny_job, batch_size):
    options = {"epochs": 2, "schedule": "cosine", "warmup_epochs": 0.0}
    run = train(tiny_job(recipe=options | {"epochs": 1}))
    train(tiny_job(recipe=options | {"epochs": 4, "batch_size": batch_size}), resume=True)
    steps = 24 // batch_size  # of an epoch, whose last one's rate is told
    lasts = [1e-3 * 0.5 * (1 + math.cos(math.pi * (epoch - 1 / steps) / 4)) for epoch in (2, 3, 4)]
    assert [row["lr"] for row in read_metrics(run)][1:] == pytest.approx(lasts, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "resnet18"}, "its model: it has vt_resnet18, got resnet18"),
        (
            {"model_options": {"num_tokens": 6, "channels": 32, "token_channels": 32, "heads": 2}},
            "its num_tokens: it has 4, got 6",
        ),
        ({"recipe": {"ema": 0.0}}, r"its averaging: it has an average of its weights \(ema\), got no average"),
        ({"recipe": {"optimizer": "sgd"}}, "its optimizer: it has adamw, got sgd"),
        ({"recipe": {"seed": 7}}, "its seed: it has 0, got 7"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_that_goes_on_keeps_its_model_and_nothing_is_written(trained_copy, tiny_job, change, said):
    before = {path: path.read_bytes() for path in trained_copy.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=f"a resumed run cannot change {said}"):
        train(tiny_job(trained_copy, **change), resume=True)
    after = {path: path.read_bytes() for path in trained_copy.rglob("*") if path.is_file()}
    assert after == before


def test_a_run_that_goes_on_keeps_what_it_started_from(trained, trained_copy, tiny_job):
    """Its state replaces those weights anyway; its card would say what is not so."""
    with pytest.raises(ConfigError, match=f"cannot change its start: it has None, got {trained}"):
        train(tiny_job(trained_copy, start=str(trained)), resume=True)


@pytest.mark.parametrize(("was", "now"), [(0.05, 0.0), (0.0, 0.05)])
def test_a_run_goes_on_with_another_weight_decay(tiny_job, was, now):
    run = train(tiny_job(recipe={"epochs": 1, "weight_decay": was}))
    train(tiny_job(recipe={"epochs": 2, "weight_decay": now}), resume=True)
    (state,) = torch.load(run / STATE, weights_only=False)["optimizer_states"]
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.0, now}


INTERRUPTED = """
import random, signal, sys
from pathlib import Path
import torch
from vtviz.train.callbacks import AtomicCheckpoints

signal.signal(signal.SIGALRM, signal.default_int_handler)
chance, path, interrupted = random.Random(0), Path(sys.argv[1]), 0
state = {str(i): torch.full((50_000,), i) for i in range(40)}
AtomicCheckpoints().save_checkpoint(state, path)
for _ in range(100):
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0002, 0.02))
        AtomicCheckpoints().save_checkpoint(state, path)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted += 1
assert all(torch.equal(state[name], value) for name, value in torch.load(path).items())
print(interrupted > 10)
"""


@pytest.mark.parametrize("name", ["runs", "läufe"])
def test_ctrl_c_while_the_state_is_written_is_no_crash(tmp_path, name):
    """PyTorch's writer, in C++, aborted the process where the file that it wrote into was closed before it ended."""
    (tmp_path / name).mkdir()
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / name / STATE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    assert [path.name for path in (tmp_path / name).iterdir()] == [STATE]


def test_a_damaged_state_is_one_line(trained_copy, tiny_job):
    whole = (trained_copy / STATE).read_bytes()
    (trained_copy / STATE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=r"state\.ckpt is damaged \(.*\); start a new run, whose --from") as caught:
        train(tiny_job(trained_copy, recipe={"epochs": 3}), resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_two_processes_do_what_one_does_that_accumulates(make_folder, tiny_job, tmp_path, quick):
    data = make_folder(train=10, val=4)  # 30 images: three steps of 8, and 6 that fill none
    # the running statistics of batch norm are each process's own, so validation is not compared
    recipe = {"ema": 0.0, "epochs": 2, "mixup": 0.2, "dropout": 0.1, "drop_path": 0.1}
    one = train(tiny_job("one", data=data, micro_batch=4, recipe=recipe))
    two = tmp_path / "two"
    finish(
        start(
            "--data", data, "--out", two, *quick, *NOISE, "--epochs", 2, "--lr", 1e-3, "--devices", 2, "--set", "ema=0"
        )
    )
    ours, theirs = (torch.load(run / STATE, weights_only=False)["state_dict"] for run in (two, one))
    weights = [k for k in theirs if "running" not in k and "num_batches" not in k]
    assert max(float((ours[k] - theirs[k]).abs().max()) for k in weights) < 1e-4
    for mine, other in zip(read_metrics(two), read_metrics(one), strict=True):
        assert mine["loss/train"] == pytest.approx(other["loss/train"], rel=1e-3)
        assert mine["lr"] == other["lr"]
