"""SIGKILL while files are written: what is found is the old file or the new one, whole, and its card fits."""

import ast
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

import numpy as np
import pytest
import torch

from vtviz import checkpoints
from vtviz.errors import CheckpointError
from vtviz.files import replacing, write
from vtviz.tokens import TokenMaps

ROOT = Path(__file__).resolve().parents[2]

WRITER = textwrap.dedent(
    """
    import itertools, os, signal, sys
    from dataclasses import replace
    from pathlib import Path
    import numpy as np
    import torch
    from vtviz import checkpoints
    from vtviz.export import write_extraction
    from vtviz.files import write
    from vtviz.predictor import Predictor
    from vtviz.train.callbacks import AtomicCheckpoints

    torch.set_num_threads(1)
    model, card = checkpoints.load(sys.argv[1])
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    maps = Predictor(model, card).extract(photo)

    def checkpoint(folder, number):
        with torch.no_grad():
            model.fc.bias.fill_(number)
        checkpoints.save(folder / "m.safetensors", model, replace(card, notes=str(number)))

    def state(folder, number):
        data = {"epoch": number, "w": torch.full((200_000,), number)}
        AtomicCheckpoints().save_checkpoint(data, folder / "state.ckpt")

    def table(folder, number):
        write(folder / "metrics.csv", f"{number}\\n" * 100_000)

    def extraction(folder, number):
        write_extraction(replace(maps, source=str(number)), folder, pictures=False)

    KINDS = {f.__name__: f for f in (checkpoint, state, table, extraction)}

    def child(kind, folder, first, steps):
        if steps:  # die before the n-th change of the folder
            left = itertools.count(steps - 1, -1)
            def watch(event, args):
                made = event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT
                if (made or event in ("os.rename", "os.remove")) and str(folder) in str(args[0]) and next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(watch)
            KINDS[kind](folder, first)
            return
        for number in itertools.count(first):
            KINDS[kind](folder, number)

    print("ready", flush=True)
    for line in sys.stdin:
        kind, folder, first, steps = line.split("\\t")
        pid = os.fork()
        if pid == 0:
            child(kind, Path(folder), int(first), int(steps))
            os._exit(0)
        print(pid, flush=True)
        print("killed" if os.WIFSIGNALED(os.waitpid(pid, 0)[1]) else "done", flush=True)
    """
)

Writes = Callable[..., bool]


@pytest.fixture(scope="module")
def writes(tmp_path_factory, tiny_model, tiny_card) -> Iterator[Writes]:
    """Writes, and is killed: at one of its steps, or after some seconds of writing again and again."""
    seed = tmp_path_factory.mktemp("seed") / "tiny.safetensors"
    checkpoints.save(seed, tiny_model(), tiny_card(tiny_model()))
    command = [sys.executable, "-c", WRITER, str(seed)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as server:
        assert server.stdout.readline() == "ready\n"

        def run(kind: str, folder: Path, number: int, *, step: int = 0, seconds: float = 0.0) -> bool:
            """Whether it was killed: at that step of writing ``number``, or after so long, from ``number`` on."""
            server.stdin.write(f"{kind}\t{folder}\t{number}\t{step}\n")
            pid = int(server.stdout.readline())
            if not step:
                time.sleep(seconds)
                os.kill(pid, signal.SIGKILL)
            return server.stdout.readline() == "killed\n"

        yield run
        server.stdin.close()


def number_of_checkpoint(folder: Path) -> int | None:
    """Of what was saved, which weights and card must agree on; None where nothing was."""
    path = folder / "m.safetensors"
    if not path.exists():
        with pytest.raises(CheckpointError):
            checkpoints.load(path)
        return None
    model, card = checkpoints.load(path)
    assert set(model.fc.bias.tolist()) == {float(card.notes)}
    return int(card.notes)


def number_of_state(folder: Path) -> int | None:
    if not (folder / "state.ckpt").exists():
        return None
    state = torch.load(folder / "state.ckpt", weights_only=True)
    assert (state["w"] == state["epoch"]).all()
    return state["epoch"]


def number_of_table(folder: Path) -> int | None:
    if not (folder / "metrics.csv").exists():
        return None
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert len(lines) == 100_000
    assert len(set(lines)) == 1
    return int(lines[0])


def number_of_extraction(folder: Path) -> int | None:
    """Here an old one may be gone, for its many files are replaced: but what has a manifest is complete."""
    for part in folder.glob("maps.npz"):
        with np.load(part) as arrays:
            assert all(arrays[name].size for name in arrays.files)
    return int(TokenMaps.load(folder).source) if (folder / "manifest.json").exists() else None


FOUND = {
    "checkpoint": number_of_checkpoint,
    "state": number_of_state,
    "table": number_of_table,
    "extraction": number_of_extraction,
}


def kill_two_saves(writes: Writes, folder: Path, first: int, second: int) -> list[bool]:
    """Kill a save and the next one at these steps; whether each was killed, having that many."""
    folder.mkdir()
    killed = [writes("checkpoint", folder, 1, step=first)]
    before = number_of_checkpoint(folder)
    assert before in ({None, 1} if killed[0] else {1})
    killed.append(writes("checkpoint", folder, 2, step=second))
    assert number_of_checkpoint(folder) in ({before, 2} if killed[1] else {2})
    assert not writes("checkpoint", folder, 3, step=99)
    assert number_of_checkpoint(folder) == 3
    assert len([p for p in folder.iterdir() if p.suffix != ".tmp"]) == 2
    return killed


def test_a_save_that_is_killed_at_any_step_leaves_the_old_pair_or_the_new_one(writes, tmp_path, tally):
    """Twice in a row, too: the second save must not lose the card that the first one left behind."""
    tried = 0
    for step in range(1, 20):
        killed = kill_two_saves(writes, tmp_path / str(step), step, step)
        killed += kill_two_saves(writes, tmp_path / f"{step}-4", step, 4)  # before the weights are written
        tried += sum(killed)
        if not killed[0]:
            break
    assert step > 6  # card, weights and the card's move: there was something to kill
    tally("kills while files were written", tried)
    tally("files lost to a kill", 0)


@pytest.mark.slow
def test_two_saves_that_are_killed_at_any_two_steps(writes, tmp_path, tally):
    tried = 0
    for first in range(1, 9):
        for second in range(1, 9):
            tried += sum(kill_two_saves(writes, tmp_path / f"{first}-{second}", first, second))
    assert tried > 60
    tally("kills while files were written", tried)
    tally("files lost to a kill", 0)


def test_the_first_save_of_a_run_may_be_killed_between_weights_and_card(writes, tmp_path):
    """Such a pair loads, and its card is read as a resumed run reads it, though the card has not its name yet."""
    for step in range(1, 20):
        folder = tmp_path / str(step)
        folder.mkdir()
        killed = writes("checkpoint", folder, 7, step=step)
        if (folder / "m.safetensors").exists() and not (folder / "m.json").exists():
            break
    assert killed
    assert checkpoints.load(folder)[1].notes == "7"
    assert checkpoints.read_card(folder / "m.safetensors").notes == "7"


def test_weights_without_any_card_of_theirs_are_refused(writes, tmp_path):
    writes("checkpoint", tmp_path, 1, step=99)
    card = tmp_path / "m.json"
    text = card.read_text()
    card.unlink()
    for stray in ("0" * 16, json.loads(text)["sha256"][:15] + "x"):
        (tmp_path / f".m.{stray}.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"m\.json: cannot read: No such file"):
        checkpoints.load(tmp_path)


def kill_at_random(writes: Writes, folder: Path, kills: int, kind: str) -> int:
    """Kill a writer again and again, in its first three writes or so; how often what was found had moved on."""
    rng, moved, start = random.Random(kind), 0, time.monotonic()
    assert not writes(kind, folder, 0, step=99)
    once, found = time.monotonic() - start, FOUND[kind](folder)
    for turn in range(kills):
        assert writes(kind, folder, 1 + 10_000 * turn, seconds=rng.uniform(0.0, 3 * once))
        number = FOUND[kind](folder)
        assert number is not None or kind == "extraction"
        moved += number != found
        found = number
    return moved


@pytest.mark.parametrize("kind", FOUND)
def test_kills_at_random_lose_nothing(writes, tmp_path, tally, kind):
    kills = 5
    assert kill_at_random(writes, tmp_path, kills, kind) > 0
    tally("kills while files were written", kills)
    tally("files lost to a kill", 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FOUND)
def test_many_kills_at_random_lose_nothing(writes, tmp_path, tally, kind):
    kills = 15
    assert kill_at_random(writes, tmp_path, kills, kind) > 2
    tally("kills while files were written", kills)
    tally("files lost to a kill", 0)


def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    write(path, "old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half of")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_and_runs_write_no_other_way():
    """Their modules open nothing for writing by themselves; to job.log, a job's process only adds."""
    sources = [ROOT / "vtviz" / "checkpoints.py", *sorted((ROOT / "vtviz" / "train").glob("*.py"))]
    assert len(sources) > 15
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            name, values = node.func.attr, [a.value for a in node.args if isinstance(a, ast.Constant)]
            assert name not in {"write_text", "write_bytes", "to_csv"}, f"{source.name}, line {node.lineno}"
            assert name != "open" or not {"wb", "wt"} & set(values), f"{source.name}, line {node.lineno}"
