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


# --- no other way of writing

WRITERS = {"write_text", "write_bytes", "to_csv", "save", "savez", "savez_compressed", "savetxt", "save_file", "tofile"}
"""Calls that write, unless into what :func:`vtviz.files.replacing` gives."""
HARMLESS = {"checkpoints.save", "safetensors.torch.save"}
"""The one gate for weights, which is among the files that are looked at; and what makes bytes of them."""
OTHERS = {
    ("callbacks.py", "torch.save(checkpoint, buffer)"): "into memory",
    ("jobs.py", "(self.root / '.lock').open('w')"): "a lock, which has no content",
    ("jobs.py", "(folder / LOG).open('ab')"): "a job's process only adds to its log",
    ("module.py", "safetensors.torch.save_file(kept, file)"): "of the batch that ended a run, for people to look at",
}


def other_writes(source: str) -> list[ast.Call]:
    """Calls that write to a file by themselves, or may: a mode that is no constant could be any."""
    tree = ast.parse(source)
    safe = [call for block in ast.walk(tree) if isinstance(block, ast.With) for call in _calls_on_replacing(block)]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if _opens_for_writing(call) or (_writes(call) and call not in safe)]


def _calls_on_replacing(block: ast.With) -> list[ast.Call]:
    """Calls within the block that are given the file of its ``with replacing(...) as file``."""
    given = [item for item in block.items if isinstance(item.context_expr, ast.Call)]
    names = {ast.unparse(i.optional_vars) for i in given if _name(i.context_expr) == "replacing" and i.optional_vars}
    calls = [node for line in block.body for node in ast.walk(line) if isinstance(node, ast.Call)]
    return [call for call in calls if names & {ast.unparse(each) for each in call.args}]


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _writes(call: ast.Call) -> bool:
    return _name(call) in WRITERS and ast.unparse(call.func) not in HARMLESS


def _opens_for_writing(call: ast.Call) -> bool:
    """``open(file, mode)``, ``path.open(mode)``, and ``os.open`` and the like, which have their own modes."""
    if _name(call) not in {"open", "fdopen"}:
        return False
    module = ast.unparse(call.func).rpartition(".")[0]
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if None in given or any(isinstance(each, ast.Starred) for each in call.args):
        return True
    if module == "os":
        return True
    place = 1 if module in {"", "io", "gzip", "zipfile", "Image"} else 0  # the file comes first
    mode = given.get("mode", call.args[place] if len(call.args) > place else ast.Constant("r"))
    return not (isinstance(mode, ast.Constant) and isinstance(mode.value, str)) or bool(set("wax+") & set(mode.value))


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')",
        "open(path, mode='wb')",
        "open(path, mode)",
        "open(path, *more)",
        "open(path, **more)",
        "open(path, 'r+b')",
        "open(path, 'x')",
        "io.open(path, 'w')",
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "os.fdopen(number, 'w')",
        "path.open('w')",
        "path.open('ab')",
        "path.open(mode='wt')",
        "path.open('w', encoding='utf-8')",
        "(folder / 'state.ckpt').open('xb')",
        "path.write_text('a')",
        "path.write_bytes(b'a')",
        "frame.to_csv(path)",
        "torch.save(state, path)",
        "np.save(path, array)",
        "np.savez(path, a=array)",
        "np.savez_compressed(path, a=array)",
        "np.savetxt(path, array)",
        "array.tofile(path)",
        "safetensors.torch.save_file(tensors, path)",
        "save_file(tensors, path)",
        "Image.fromarray(array).save(path)",
        "with path.open('wb') as file:\n    torch.save(state, file)",
        "with staged(folder) as stage:\n    np.save(stage / 'a.npy', array)",
        "with replacing(path) as file:\n    other.open('wb')",
        "with replacing(path) as file:\n    torch.save(state, path)",
        "with replacing(path):\n    torch.save(state, file)",
        "with replacing(path) as file:\n    pass\ntorch.save(state, path)",
        "def late():\n    if state:\n        torch.save(state, path)",
    ],
)
def test_every_other_way_of_writing_is_found(line):
    assert other_writes(line)


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "path.open()",
        "path.open('rb')",
        "path.open(newline='', encoding='utf-8')",
        "open(path, encoding='utf-8')",
        "Image.open(path)",
        "write(path, 'a')",
        "checkpoints.save(path, model, card)",
        "data = safetensors.torch.save(tensors)",
        "with replacing(path) as file:\n    torch.save(state, file)",
        "with replacing(path) as file:\n    if all:\n        np.savez_compressed(file, **arrays)",
    ],
)
def test_reading_and_replacing_are_let_pass(line):
    assert not other_writes(line)


def test_checkpoints_and_runs_write_no_other_way():
    """Their modules write through :mod:`vtviz.files` alone, but for :data:`OTHERS`, all of which are still there."""
    sources = [ROOT / "vtviz" / "checkpoints.py", *sorted((ROOT / "vtviz" / "train").glob("*.py"))]
    assert len(sources) > 15
    found = {(file.name, ast.unparse(call)): call.lineno for file in sources for call in other_writes(file.read_text())}
    unknown = [f"{file}, line {line}: {code}" for (file, code), line in found.items() if (file, code) not in OTHERS]
    assert not unknown
    assert set(found) == set(OTHERS)
