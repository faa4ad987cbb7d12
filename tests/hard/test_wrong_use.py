"""The command line, used wrongly in every option: one line that says what to do, exit code 2, and nothing written.

The verbs and their options are read from the program itself, so that a new one fails here until it is tried too.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import types
import typing
from pathlib import Path

import lightning
import pytest
import torch
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import vtviz.predictor
from vtviz import cli, query_verb
from vtviz.console import parse_scale
from vtviz.data.classes import find_class, find_groups
from vtviz.errors import VtvizError
from vtviz.models.registry import make_config
from vtviz.train import verbs
from vtviz.train.recipes import make_recipe

ROOT = Path(cli.__file__).resolve().parents[1]
CLASSES = ("tabby cat", "cup", "n0")

LONG = "x" * 5000
NUMBERS = {
    int: ("", "x", "1.5", "nan", "1e3", "0x10", "-", "–1", "½"),
    float: ("", "x", "nan", "inf", "-inf", "1,5", "-", "–1"),
}
"""What is no number of a kind: words, blanks, other dashes and fractions, endless ones."""
LEAST = {
    "size": ("0", "-1", "1", "100000", "9" * 400),
    "n": ("0", "-1"),
    "draws": ("0", "-1", "9" * 18),
    "steps": ("0", "-1", "9" * 18),
    "seed": ("-1", "9" * 30),
    "photos": ("0", "-1", "9" * 18),
    "threshold": ("-1",),
    "opacity": ("-0.1", "1.1"),
    "table": ("0", "9", "-1"),
    "every": ("0", "-1", "9" * 400),
    "frames": ("0", "-1", "9" * 400),
    "layer": ("2", "-3", "9" * 18),
    "fps": ("0", "-1", "1000"),
    "cell": ("0", "-1", "9" * 9),
    "epochs": ("0", "-1"),
    "batch_size": ("0", "-1"),
    "lr": ("0", "-1"),
    "limit": ("0", "-1"),
    "val_limit": ("0", "-1"),
    "micro_batch": ("0", "-1", "7"),
    "devices": ("0", "-1", "999"),
    "nodes": ("0", "-1"),
    "workers": ("-1", "9" * 9),
    "freeze": ("-1", "6"),
    "layer_decay": ("0", "-1", "1.5"),
}
"""Numbers that are out of range, by the name of the option."""
PATHS = ("", "-", "nowhere", "{place}/nowhere", "/dev/null", "{place}/empty", "{place}/" + LONG, "{place}/caf\udce9")
"""What is neither a file nor a folder that has what is wanted."""
NAMES = ("", "-", LONG, "--help", "../tiny", "tіny", "tin\N{ZERO WIDTH SPACE}y", "\udce9")
"""No name of a model, a class, a method ...; the fourth has a Cyrillic letter."""
LISTS = ("", ",", "0,", "0,x", "0,,1", "0;1", "99", "0,0.5", "9" * 400)
MODELS = (
    *NAMES,
    "tinny",
    "/dev/null",
    "{place}/empty",
    "{place}/empty.safetensors",
    "{place}/photo.png",
    "hf://",
    "hf://a",
)
WORDS = {
    "images": (*PATHS, "{place}/notes.txt", "{place}/*.nothing", "http://127.0.0.1/a.png"),
    "image": (*PATHS, "{place}/photos", "{place}/notes.txt", "http://127.0.0.1/a.png"),
    "source": (*PATHS, "{place}/notes.txt", "rtsp://127.0.0.1/a"),
    "reference": (*PATHS, "{place}/notes.txt", "{place}/*.nothing"),
    "model": MODELS,
    "layers": LISTS,
    "tokens": LISTS,
    "crop": ("", "centre", "Center", LONG),
    "align": ("", "receptive-field", "resise", LONG),
    "cmap": ("", "virids", "JET", LONG),
    "scale": ("", "shard", "1,2,3", "5,1", "1,1", "nan,1", "0,inf", ",", LONG),
    "device": ("", "gpu", "cuda:99", "meta", "CPU ", LONG),
    "target": (*NAMES, "class", "-1", "5", "99", "9" * 400, "³"),
    "methods": (*NAMES, "gradcam", "occlusoin"),
    "split": (*NAMES, "vall", "../folders/val"),
    "at": ("", "1", "1,2,3", "x,y", "1.5,2", "-1,0", "999999,0", "9" * 400 + ",1"),
    "box": ("", "1,1", "0,0,x,9", "5,5,1,1", "0,0,0,0", "0,0,999999,1"),
    "epochs": ("", "1", "1,2,3", "a,b", "1,99"),
    "kind": ("", "gif", "webmm", "../webm", LONG),
    "recipe": (*NAMES, "smal"),
    "preset": (*NAMES, "paperr"),
    "option": (
        "",
        "=",
        "num_tokens",
        "num_token=8",
        "num_tokens=x",
        "num_tokens=0",
        "num_tokens=1e9",
        "num_tokens=999999999999",
        "=3",
        "heads=7",
    ),
    "set_": (
        "",
        "=",
        "mixup",
        "mixpu=0.2",
        "mixup=x",
        "mixup=-1",
        "mixup=NaN",
        "optimizer=adam",
        "precision=8",
        "lr={}",
    ),
    "sizes": ("", ",", "x", "0", "-1", "32-", "32@2,48", "9" * 20),
    "start": (*MODELS, "torchvision:", "torchvision:IMAGENET"),
    "weights": ("", "-", LONG, "IMAGENET", "{place}/photo.png", "{place}/empty.safetensors", "{place}/nowhere.pt"),
    "teacher": (*MODELS, "torchvision:", "torchvision:resnet1"),
    "groups": (*NAMES, "ccp15"),
    "pixels": ("", "hots", LONG),
    "engine": (*NAMES, "onnx", "torchh"),
    "dtype": (*NAMES, "bf17", "float16"),
    "form": (*NAMES, "onxn", "tflite"),
    "scales": ("", "x", "0", "-1", "nan", "inf", "1,,2", "9" * 400),
}
"""Wrong texts, by the name of the option."""
FREE = {"terms", "licence", "notes"}
"""Options that take any text."""
FILES = {
    "data": (*PATHS, "{place}/photo.png"),
    "masks": (*PATHS, "{place}/photo.png", "{place}/folders"),
    "mask": (*PATHS, "{place}/photos", "{place}/notes.txt"),
    "add": (*PATHS, "{place}/photo.png", "{place}/photos"),
    "classes": (*PATHS, "{place}/photo.png"),
    "run": (*PATHS, "{place}/photo.png"),
    "also": (*PATHS, "{place}/photo.png"),
    "out": (
        "",
        "/dev/null",
        "/dev/full",
        "/proc/out",
        "{place}/photo.png",
        "{place}/photo.png/deep",
        "{place}/" + LONG,
    ),
}
"""Wrong paths, by the name of the option."""

SHORT = {"--model": "vt_resnet18", "--epochs": "1", "--limit": "4", "--sizes": "32", "--batch-size": "4"}
GOOD: dict[str, tuple[tuple[str, ...], dict[str, str | None]]] = {
    "extract": (("{place}/photo.png",), {"--out": "{out}", "--no-pictures": None}),
    "segment": (("{place}/photo.png",), {"--out": "{out}", "--model": "segmenter"}),
    "ablate": (("{place}/photo.png",), {"--out": "{out}", "--draws": "1"}),
    "attribute": (("{place}/photo.png",), {"--out": "{out}", "--method": "gradient_x_token"}),
    "faithfulness": ((), {"--out": "{out}", "--data": "{place}/folders", "--n": "1", "--method": "gradient_x_token"}),
    "lineage": (("{place}/photo.png",), {"--out": "{out}"}),
    "query": (("{place}/photo.png",), {"--out": "{out}", "--at": "1,1"}),
    "report": (("{place}/photo.png",), {"--out": "{out}"}),
    "dissect": ((), {"--out": "{out}", "--data": "{place}/folders"}),
    "compare": (("{place}/photo.png", "{place}/photos/1.png"), {"--out": "{out}"}),
    "video": (("{place}/photos",), {"--out": "{out}", "--cell": "64"}),
    "evaluate": ((), {"--data": "{place}/folders"}),
    "publish": ((), {"--run": "{tiny}", "--out": "{out}/good.safetensors", "--data": "{place}/folders", "--sizes": ""}),
    "train": ((), {"--out": "{out}", "--data": "{place}/folders", "--recipe": "small"} | SHORT),
    "finetune": ((), {"--out": "{out}", "--data": "{place}/folders", "--from": "tiny"} | SHORT),
    "export": ((), {"--out": "{out}/good.pt2"}),
    "models": ((), {}),
    "profile": ((), {"--table": "1"}),
}
"""A call of each verb that is right: arguments and options."""
ONE_LOOK = {("query", "at"), ("query", "box"), ("video", "tokens")}
"""What can be told only when the model has looked at the one image, or at the first frame."""
USUAL = {"--model": "tiny", "--size": "64", "--device": "cpu"}


def declared() -> dict[tuple[str, str], tuple[str, type]]:
    """(verb, name of the parameter) -> its option ("" for an argument) and type, of the whole program."""
    found = {}
    commands = typer.main.get_command(cli.app).commands
    for command in cli.app.registered_commands:
        verb = command.name or command.callback.__name__
        options = {p.name: max(p.opts, key=len) for p in commands[verb].params if p.param_type_name == "option"}
        for name, hint in typing.get_type_hints(command.callback).items():
            if name not in {"context", "return"}:
                inner = [a for a in typing.get_args(hint) if a is not types.NoneType] or [hint]
                kind = (typing.get_args(inner[0]) or inner)[0]
                found[verb, name] = options.get(name, ""), kind
    return found


DECLARED = declared()


def wrong_values(verb: str, name: str, kind: type) -> tuple[str, ...]:
    if kind in NUMBERS:
        return NUMBERS[kind] + LEAST.get(name, ())
    if (verb, name) == ("publish", "sizes"):
        return "x", "0", "-1", "9" * 20, "96;128"  # none at all is right here
    return (FILES if kind is Path else WORDS).get(name, ())


def tried() -> list:
    """Half of what is wrong for an option of the first verb that has it; all else, and training's, in the slow set."""
    found, seen = [], set()
    for (verb, name), (option, kind) in DECLARED.items():
        if kind is not bool and name not in FREE:
            heavy = verb in {"train", "finetune", "publish"}  # they build whole models
            values, label = wrong_values(verb, name, kind), f"{verb} {option or name}"
            if not heavy and (name, kind) not in seen:
                seen.add((name, kind))
                found.append(pytest.param(verb, option, values[::2], id=label))
                values, label = values[1::2], f"{label}, the rest"
            found.append(pytest.param(verb, option, values, id=label, marks=pytest.mark.slow))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory, chelsea, coffee) -> Path:
    """Photos, class folders, a set with masks, and things that are none of these; to be read only."""
    root = tmp_path_factory.mktemp("place")
    for folder in ("photos", "folders/train/class 0", "folders/train/class 1", "folders/val/class 0", "empty"):
        (root / folder).mkdir(parents=True)
    Image.fromarray(chelsea[:60, :80]).save(root / "photo.png")
    for i in range(4):
        Image.fromarray(coffee[40 * i :][:50, :70]).save(root / f"photos/{i}.png")
        for folder in ("train/class 0", "train/class 1", "val/class 0"):
            Image.fromarray(coffee[30 * i :][:50, :70]).save(root / "folders" / folder / f"{i}.png")
    Image.new("L", (80, 60)).save(root / "mask.png")
    (root / "notes.txt").write_text("no picture\n")
    (root / "empty.safetensors").touch()
    return root


@pytest.fixture
def here(tmp_path, monkeypatch, place, tiny_checkpoint, tiny_segmenter) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def idle(monkeypatch):
    """No network may run and no training start; models that were loaded once are kept."""

    def busy(*_, **__):
        raise AssertionError("the model was at work before the complaint")

    monkeypatch.setattr(torch.nn.Conv2d, "forward", busy)
    monkeypatch.setattr(lightning.Trainer, "fit", busy)
    monkeypatch.setattr(vtviz.predictor, "load_model", _load)


_LOADED: dict = {}
_load_model = vtviz.predictor.load_model


def _load(model, device=None, **engine):
    if model not in {"tiny", "segmenter"} or engine != {"engine": "torch", "dtype": "float32"}:
        return _load_model(model, device, **engine)
    if model not in _LOADED:
        _LOADED[model] = _load_model(model, device)
    return _LOADED[model]


def call(verb, arguments, options, capfd, **paths):
    """Exit code, stdout, stderr."""
    allowed = {option for (of, _), (option, _) in DECLARED.items() if of == verb}
    parts = [verb, *arguments]
    for option, value in ({k: v for k, v in USUAL.items() if k in allowed} | options).items():
        parts += [option] if value is None else [f"{option}={value}"]
    with pytest.raises(SystemExit) as stop:
        cli.main([filled(part, paths) for part in parts])
    return stop.value.code or 0, *capfd.readouterr()


def filled(text: str, paths: dict[str, Path]) -> str:
    for name, path in paths.items():
        text = text.replace(f"{{{name}}}", str(path))
    return text


def tree(*folders: Path) -> dict[str, int]:
    """Files and folders; of files, when they changed."""
    found = (p for folder in folders for p in folder.rglob("*"))
    return {str(p): 0 if p.is_dir() else p.stat().st_mtime_ns for p in found}


def test_every_verb_and_every_option_is_tried():
    """A new one needs a call in GOOD, and what is wrong for it in LEAST, WORDS or FILES (or a place in FREE)."""
    assert {verb for verb, _ in DECLARED} == set(GOOD)
    known = {int: LEAST, float: LEAST, str: WORDS, Path: FILES}
    tried = {key: name for key, (_, kind) in DECLARED.items() for name in [key[1]] if kind is not bool}
    assert [key for key, name in tried.items() if name not in FREE and name not in known[DECLARED[key][1]]] == []


@pytest.mark.parametrize(("verb", "option", "values"), tried())
def test_a_wrong_value_is_one_line_before_any_work(
    verb, option, values, request, here, place, capfd, tmp_path, tally, tiny_checkpoint
):
    if (verb, option.strip("-")) not in ONE_LOOK:
        request.getfixturevalue("idle")
    arguments, options = GOOD[verb]
    faults = []
    for value in values:
        before = tree(tmp_path, place)
        given = (arguments, options | {option: value}) if option else ((value, *arguments[1:]), options)
        if not option and value.startswith("-") and value != "-":
            given = (("--", *given[0]), given[1])
        paths = {"place": place, "out": here / "out", "tiny": tiny_checkpoint}
        try:
            code, out, err = call(verb, *given, capfd, **paths)
        except BaseException as error:  # noqa: BLE001
            faults.append(f"{value[:40]!r}: {type(error).__name__}: {str(error)[:200]}")
            capfd.readouterr()
            shutil.rmtree(here / "out", ignore_errors=True)
            continue
        shown = filled(value, paths)
        said = [option.strip("-"), option.strip("-").replace("-", "_"), shown[:30], repr(shown)[1:-1][:30]]
        said += [*re.split("[:=,]", value), "" if value else "''", Path(value).suffix[1:]]
        named = any(word in err for word in said if word)
        if code != 2 or out or not re.fullmatch(r"error: [^\n]{10,700}\n", err):
            faults.append(f"{value[:40]!r}: code {code}, out {out[:80]!r}, err {len(err)} {err[:300]!r}")
        elif not named:
            faults.append(f"{value[:40]!r}: does not say which: {err[:300]!r}")
        if (after := tree(tmp_path, place)) != before:
            faults.append(f"{value[:40]!r}: wrote {sorted(after.keys() - before.keys())[:3]}")
            shutil.rmtree(here / "out", ignore_errors=True)
    tally("wrong options tried", len(values))
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


@pytest.mark.parametrize("verb", sorted(GOOD.keys() - {"train", "finetune", "export", "profile"}))  # they take seconds
def test_the_calls_that_the_others_spoil_are_right(verb, here, place, capfd, tiny_checkpoint):
    """With --json, where there is one: stdout is JSON and nothing else."""
    arguments, options = GOOD[verb]
    options = options | ({"--json": None} if (verb, "as_json") in DECLARED else {})
    code, out, err = call(verb, arguments, options, capfd, place=place, out=here / "out", tiny=tiny_checkpoint)
    assert (code, "error" in err) == (0, False), err
    if "--json" in options or verb == "publish":
        json.loads(out)


def main(*arguments, capfd):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return stop.value.code or 0, *capfd.readouterr()


# --- names


def swapped(word: str) -> str:
    return word[:-3] + word[-2] + word[-3] + word[-1]


@pytest.mark.parametrize("verb", sorted(GOOD))
def test_a_misspelt_verb_or_option_suggests_the_right_one(verb, capfd, tally):
    options = [option for (of, _), (option, _) in DECLARED.items() if of == verb and len(option) > 5][::4]
    for wrong, right in [((swapped(verb),), verb), *(((verb, swapped(option)), option) for option in options)]:
        code, out, err = main(*wrong, capfd=capfd)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: ")
        assert right in err.replace(" ".join(wrong), "")
    tally("names misspelt", 1 + len(options))


@pytest.mark.parametrize("verb", sorted(GOOD.keys() - {"models", "profile"}))
def test_without_its_arguments_a_verb_names_one_and_its_help(verb, here, capfd):
    code, out, err = main(verb, capfd=capfd)
    assert (code, out) == (2, "")
    assert re.fullmatch(
        rf"error: [^\n]*(Missing (argument|option) '|is missing)[^\n]*see vtviz {verb} --help\n|"
        r"error: compare takes one image and two --model[^\n]*\n",
        err,
    ), err
    assert list(here.iterdir()) == []


# --- what contradicts itself


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("query {place}/photo.png -m tiny", "either --at X,Y or --box"),
        ("query {place}/photo.png -m tiny --at 1,1 --box 0,0,2,2", "either --at X,Y or --box"),
        ("compare --out {out} -m tiny", "one image and two --model"),
        ("compare {place}/photo.png {place}/photo.png {place}/photo.png --out {out} -m tiny", "got 3 images"),
        ("compare {place}/photo.png --out {out} -m tiny -m tiny -m tiny", "3 models"),
        ("compare {place}/photo.png --out {out} -m tiny --epochs 1,2", "on its own photo"),
        ("compare --out {out} --epochs 1,2", "give one --model"),
        ("evaluate -m tiny --data {place}/folders --flip", "tiny is a classifier"),
        ("evaluate -m tiny --data {place}/folders --scales 1,2", "tiny is a classifier"),
        ("evaluate -m segmenter --data {place}/folders --crop center", "--crop is for classifiers"),
        ("evaluate -m segmenter --data {place}/folders", "has no layout that is known"),
        ("segment {place}/photo.png --out {out} -m tiny", "tiny is a classifier"),
        ("ablate {place}/photo.png -m segmenter --class 0", "--class is for classifiers"),
        ("ablate {place}/photo.png -m tiny --mask {place}/mask.png", "--mask is for segmentation"),
        ("dissect --data {place}/folders --masks {place}/folders --out {out} -m tiny", "has no layout that is known"),
        ("train --out {out}", "--data is missing"),
        ("train --resume --out {out}", "nothing to resume"),
        ("train --data {place}/folders --out {out} --recipe segment_small", "has no layout that is known"),
        ("train --data {place}/folders --out {out} --model vt_fpn_resnet18 --recipe small", "is a segmentation model"),
        ("train --data {place}/folders --out {out} --groups ccp14", "--groups is for segmentation"),
        ("train --data {place}/folders --out {out} --from tiny --option num_tokens=8", "no --preset, --option"),
        ("train --data {place}/folders --out {out} --from tiny --weights IMAGENET1K_V1", "no --preset, --option"),
        ("train --data {place}/folders --out {out} --from tiny --model resnet18", "leave --model out"),
        ("train --data {place}/folders --out {out} --micro-batch 5", "no multiple"),
        ("train --data {place}/folders --out {place}/photo.png/run", "cannot write"),
        ("finetune --out {out}", "--data is missing"),
    ],
)
def test_contradictions_are_one_line_before_any_work(line, message, here, place, idle, capfd, tmp_path, tally):
    before = tree(tmp_path, place)
    code, out, err = main(*(filled(part, {"place": place, "out": here / "out"}) for part in line.split()), capfd=capfd)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]{10,700}\n", err)
    assert message in err
    assert tree(tmp_path, place) == before
    tally("contradictions tried", 1)


# --- streams and disks


def program(line: str, **environment) -> tuple[int, str]:
    """A shell's line with ``vtviz`` in it: exit code of its last part, and stderr."""
    command = f'vtviz() {{ "{sys.executable}" -m vtviz "$@"; }}; set -o pipefail; {line}'
    where = {"env": {**os.environ, **environment}, "cwd": ROOT}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, **where)
    return done.returncode, done.stderr


@pytest.mark.slow
def test_a_closed_pipe_says_nothing():
    code, err = program("vtviz models --json | true")
    assert code in (0, 1)
    assert err == ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_stdout_is_one_line():
    code, err = program("vtviz models > /dev/full")
    assert (code, err) == (2, "error: stdout: No space left on device\n")


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(here, place, tiny_checkpoint):
    """A limit on the size of files stands in for a full disk."""
    line = f"ulimit -f 4; vtviz extract {place}/photo.png -m tiny --size 64 --device cpu -o {here}/out"
    code, err = program(line, VTVIZ_CHECKPOINTS=str(tiny_checkpoint.parent))
    assert code == 2
    assert re.fullmatch(rf"error: {here}/out/photo\S*: cannot write: File too large\n", err)
    assert list(here.iterdir()) == []


NAMED = [b"caf\xe9.png", "\N{RIGHT-TO-LEFT OVERRIDE}gnp.png".encode(), b"-x.png", b"a\nb.png"]


@pytest.mark.parametrize("name", [NAMED[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMED[1:])])
def test_any_file_name_will_do(name, here, place, capfd):
    """Names that are no UTF-8, look like another, like an option, or have two lines: results and JSON all the same."""
    photo = Path(os.fsdecode(bytes(here / "photos") + b"/" + name))
    photo.parent.mkdir()
    shutil.copy(place / "photo.png", photo)
    for verb in ("segment", "lineage", "report"):
        options = GOOD[verb][1] | {"--json": None}
        code, out, err = call(verb, (str(photo),), options, capfd, place=place, out=here / "out")
        assert (code, err) == (0, "")
        json.loads(out)


def test_a_bad_image_among_good_ones_keeps_json_whole(here, place, capfd):
    photos = (f"{place}/photo.png", f"{place}/notes.txt")
    code, out, err = call("extract", photos, {"--out": str(here / "out"), "--json": None}, capfd)
    assert (code, err.count("\n")) == (2, 1)
    assert ["error" in each for each in json.loads(out)] == [False, True]


# --- any text at all


SLACK = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]  # the machine may be busy


@settings(max_examples=100, deadline=None, suppress_health_check=SLACK)
@given(text=st.text() | st.text("0123456789,.-+eE@nainf= ") | st.lists(st.floats() | st.integers()).map(repr))
def test_what_options_parse_is_a_value_or_a_line(text, tally):
    parsers = {
        "scale": parse_scale,
        "class": lambda text: find_class(text, CLASSES),
        "layers": cli._parse_layers,
        "at": lambda text: query_verb._numbers("--at", text, "120,80"),
        "set": lambda text: make_recipe("small", **verbs.parse_fields([text])),
        "option": lambda text: make_config("vt_resnet18", **verbs.parse_fields([f"num_tokens={text}"], "--option")),
        "sizes": lambda text: make_recipe("small", sizes=text),
        "milestones": lambda text: make_recipe("small", milestones=text),
        "groups": find_groups,
    }
    for parse in parsers.values():
        with contextlib.suppress(VtvizError):
            parse(text)
    tally("texts parsed", len(parsers))
