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
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hard.wrong import (
    DECLARED,
    FILES,
    FREE,
    GOOD,
    LEAST,
    ONE_LOOK,
    WORDS,
    call,
    filled,
    tree,
    tried,
)
from vtviz import cli, query_verb
from vtviz.console import parse_scale
from vtviz.data.classes import find_class, find_groups
from vtviz.errors import VtvizError
from vtviz.models.registry import make_config
from vtviz.train import verbs
from vtviz.train.recipes import make_recipe

ROOT = Path(cli.__file__).resolve().parents[1]
CLASSES = ("tabby cat", "cup", "n0")


def test_every_verb_and_every_option_is_tried():
    """A new one needs a call in GOOD, and what is wrong for it in LEAST, WORDS or FILES (or a place in FREE)."""
    assert {verb for verb, _ in DECLARED} == set(GOOD)
    known = {int: LEAST, float: LEAST, str: WORDS, Path: FILES}
    tried = {key: name for key, (_, kind) in DECLARED.items() for name in [key[1]] if kind is not bool}
    assert [key for key, name in tried.items() if name not in FREE and name not in known[DECLARED[key][1]]] == []


@pytest.mark.parametrize(("verb", "option", "values"), tried())
def test_a_wrong_value_is_one_line_before_any_work(
    verb, option, values, request, here, place, run, capfd, tmp_path, tally, tiny_checkpoint
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
            code, out, err = call(verb, *given, run, **paths)
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
def test_the_calls_that_the_others_spoil_are_right(verb, here, place, run, tiny_checkpoint):
    """With --json, where there is one: stdout is JSON and nothing else."""
    arguments, options = GOOD[verb]
    options = options | ({"--json": None} if (verb, "as_json") in DECLARED else {})
    code, out, err = call(verb, arguments, options, run, place=place, out=here / "out", tiny=tiny_checkpoint)
    assert (code, "error" in err) == (0, False), err
    if "--json" in options or verb == "publish":
        json.loads(out)


# --- names


def swapped(word: str) -> str:
    return word[:-3] + word[-2] + word[-3] + word[-1]


@pytest.mark.parametrize("verb", sorted(GOOD))
def test_a_misspelt_verb_or_option_suggests_the_right_one(verb, run, tally):
    options = [option for (of, _), (option, _) in DECLARED.items() if of == verb and len(option) > 5][::4]
    for wrong, right in [((swapped(verb),), verb), *(((verb, swapped(option)), option) for option in options)]:
        code, out, err = run(*wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: ")
        assert right in err.replace(" ".join(wrong), "")
    tally("names misspelt", 1 + len(options))


@pytest.mark.parametrize("verb", sorted(GOOD.keys() - {"models", "profile"}))
def test_without_its_arguments_a_verb_names_one_and_its_help(verb, here, run):
    code, out, err = run(verb)
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
        ("evaluate -m segmenter --data {place}/folders --workers 1", "--workers is for classifiers; segmenter is a"),
        ("evaluate -m segmenter --data {place}/folders", "has no layout that is known"),
        *(
            (
                f"publish --run {{segmenter}} --out {{out}}/x.safetensors --data {{place}}/folders {option}",
                "--sizes, --also and --masks are for classifiers",
            )
            for option in ("--sizes 7", "--also /no/such/folder", "--masks /no/such/masks")
        ),
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
        ("train --data {place}/folders --out {out} --from segmenter --model vt_resnet34", "leave --model out"),
        ("train --data {place}/folders --out {out} --from segmenter --model resnet18", "leave --model out"),
        ("train --data {place}/folders --out {out} --micro-batch 5", "no multiple"),
        ("train --data {place}/folders --out {place}/photo.png/run", "cannot write"),
        ("finetune --out {out}", "--data is missing"),
    ],
)
def test_contradictions_are_one_line_before_any_work(
    line, message, here, place, idle, run, tmp_path, tally, tiny_segmenter
):
    before = tree(tmp_path, place)
    paths = {"place": place, "out": here / "out", "segmenter": tiny_segmenter}
    code, out, err = run(*(filled(part, paths) for part in line.split()))
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


buffered = pytest.mark.parametrize("environment", [{"PYTHONUNBUFFERED": ""}, {"PYTHONUNBUFFERED": "1"}], ids=str)


@pytest.mark.slow
@buffered
def test_a_closed_pipe_says_nothing(environment):
    code, err = program("vtviz models --json | true", **environment)
    assert code in (0, 1)
    assert err == ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@buffered
def test_a_full_stdout_is_one_line(environment):
    code, err = program("vtviz models > /dev/full", **environment)
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
def test_any_file_name_will_do(name, here, place, run):
    """Names that are no UTF-8, look like another, like an option, or have two lines: results and JSON all the same."""
    photo = Path(os.fsdecode(bytes(here / "photos") + b"/" + name))
    photo.parent.mkdir()
    shutil.copy(place / "photo.png", photo)
    for verb in ("segment", "lineage", "report"):
        options = GOOD[verb][1] | {"--json": None}
        code, out, err = call(verb, (str(photo),), options, run, place=place, out=here / "out")
        assert (code, err) == (0, "")
        json.loads(out)


def test_a_bad_image_among_good_ones_keeps_json_whole(here, place, run):
    photos = (f"{place}/photo.png", f"{place}/notes.txt")
    code, out, err = call("extract", photos, {"--out": str(here / "out"), "--json": None}, run)
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
