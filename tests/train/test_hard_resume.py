"""A run that is killed again and again ends where the unkilled run ends."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vtviz.train.callbacks import read_metrics
from vtviz.train.job import STATE

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, KILLS = 8, 5
TRAINER = textwrap.dedent(
    """
    import json, os, sys, traceback
    import torch
    import vtviz.train.run
    from vtviz.cli import main

    torch.set_num_threads(1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)
            try:
                main(json.loads(line))
            except SystemExit as stop:
                os._exit(stop.code or 0)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    """
)
"""Runs ``vtviz`` again and again, each time in a process of its own, which need not import torch anew."""

Start = Callable[[list[str]], tuple[int, Callable[[], int]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts ``vtviz`` with these arguments: the process's id, and what waits for its exit code."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", TRAINER], env=environment, **pipes) as server:

        def begin(arguments: list[str]) -> tuple[int, Callable[[], int]]:
            server.stdin.write(json.dumps(arguments) + "\n")
            return int(server.stdout.readline()), lambda: int(server.stdout.readline())

        yield begin
        server.stdin.close()


@pytest.mark.slow
def test_a_run_killed_five_times_ends_with_the_same_weights(start, balls, tmp_path, quick, learned, tally):
    command = ["train", "--data", str(balls), *quick, "--epochs", str(EPOCHS), "--lr", "2e-3", "--model", "vt_resnet18"]
    command += [part for name in ("mixup", "dropout", "drop_path") for part in ("--set", f"{name}=0.1")]
    whole, folder, chance = tmp_path / "whole", tmp_path / "killed", random.Random(5)
    assert start([*command, "--out", str(whole)])[1]() == 0
    safe = 0  # epochs in the table, once a state was seen
    for kill in range(KILLS):
        before = (folder / STATE).stat().st_mtime_ns if kill else 0
        process, ended = start([*command, "--out", str(folder), *(["--resume"] if kill else [])])
        while not (folder / STATE).is_file() or (folder / STATE).stat().st_mtime_ns == before:  # another epoch is safe
            os.kill(process, 0)  # raises if it ended by itself
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3))  # somewhere in the next one, or while something is written
        os.kill(process, signal.SIGKILL)
        assert ended() == -signal.SIGKILL
        assert safe <= len(read_metrics(folder)) < EPOCHS  # it was still at it, and nothing is gone
        safe = len(read_metrics(folder))
    assert start([*command, "--out", str(folder), "--resume"])[1]() == 0

    for name in ("last.safetensors", "best.safetensors"):
        ours, theirs = load_file(folder / name), load_file(whole / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert learned(folder) == learned(whole)
    assert not list(folder.rglob("*.tmp"))
    tally("training runs killed and resumed", KILLS)
