"""The program: what it says of itself, its models and their parameters."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

import vtviz
from vtviz import checkpoints, predictor
from vtviz.console import print_json
from vtviz.errors import CheckpointError
from vtviz.models.complexity import profile_rows

# --- models


def test_models_lists_checkpoints(run, tiny_checkpoint, tiny_model, tiny_card):
    model = tiny_model()
    card = tiny_card(model, name="good", accuracy={"top1": 0.5, "n": 2}, data={"name": "two photos"})
    checkpoints.save(tiny_checkpoint.with_name("good.safetensors"), model, card)
    checkpoints.save(tiny_checkpoint.with_name("raw.safetensors"), model, tiny_card(model, name="raw", trained=False))
    scored = tiny_card(model, name="parts", task="segmentation", accuracy={"miou": 0.625})
    checkpoints.save(tiny_checkpoint.with_name("parts.safetensors"), model, scored)
    code, out, err = run("models")
    assert (code, err) == (0, "")
    assert set(out.splitlines()) >= {
        "good  vt_resnet18, 5 classes, top-1 50.0%",
        "parts  vt_resnet18, 5 classes, mIoU 62.5%",
        "raw  vt_resnet18, 5 classes, untrained",
        "tiny  vt_resnet18, 5 classes, trained",
    }
    stated = {m["name"]: m for m in json.loads(run("models", "--json")[1])}
    assert stated["good"]["top1"] == 0.5
    assert stated["good"]["data"] == "two photos"
    assert (stated["raw"]["trained"], stated["raw"]["top1"]) == (False, None)
    assert (stated["parts"]["miou"], stated["good"]["miou"]) == (0.625, None)
    assert stated["tiny"]["path"] == str(tiny_checkpoint)


def test_a_damaged_card_does_not_hide_the_other_models(run, tiny_checkpoint):
    tiny_checkpoint.with_name("bad.safetensors").write_bytes(b"")
    tiny_checkpoint.with_name("bad.json").write_text("{")
    code, out, err = run("models")
    assert code == 2
    assert "tiny  vt_resnet18" in out
    assert "bad.json" in err
    assert err.count("\n") == 1


def test_what_is_no_checkpoint_does_not_hide_the_other_models(run, tiny_checkpoint, monkeypatch):
    for name, make in (("link", lambda path: path.symlink_to("nowhere")), ("folder", lambda path: path.mkdir())):
        make(tiny_checkpoint.with_name(f"{name}.safetensors"))
        tiny_checkpoint.with_name(f"{name}.json").write_bytes(tiny_checkpoint.with_suffix(".json").read_bytes())
    code, out, err = run("models")
    assert (code, err) == (0, "")
    assert "tiny" in out
    names = [*checkpoints.available(), "gone"]
    assert not {"link", "folder"} & set(names)
    monkeypatch.setattr(checkpoints, "available", lambda: names)  # of which one is deleted meanwhile
    code, listed, err = run("models")
    assert (code, listed) == (2, out)
    assert err.startswith("error: no checkpoint named 'gone'")


def test_a_folder_of_checkpoints_of_a_user_that_there_is_not_is_one_line(run, monkeypatch):
    monkeypatch.setenv("VTVIZ_CHECKPOINTS", "~nosuchuser/x")
    assert run("models") == (2, "", "error: '~nosuchuser/x': Could not determine home directory.\n")
    with pytest.raises(CheckpointError, match="'~nosuchuser/x'"):
        checkpoints.load("tiny")


# --- profile


def test_profile_json(run):
    code, out, err = run("profile", "--table", "1", "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert len(rows) == 8
    for row in rows:
        assert set(row) >= {"table", "row", "params_paper", "params", "macs_paper", "macs", "note"}
        assert row["table"] == 1
        assert row["params"] == pytest.approx(row["params_paper"], rel=1e-3)
        assert row["macs"] == pytest.approx(row["macs_paper"], rel=1e-3)


def test_profile_prints_paper_ours_and_difference(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("profile", "--table", "1")
    assert code == 0
    line = next(line for line in out.splitlines() if line.split()[:1] == ["VT-R-101"])
    assert line.split() == ["VT-R-101", "40.33", "40.329", "+0.00", "7.127", "7.1246", "-0.03"]
    assert all(row.row in out for row in profile_rows(1))
    assert "4.84" in out


def test_profile_of_a_table_that_is_not_covered(run):
    code, out, err = run("profile", "--table", "9")
    assert (code, out) == (2, "")
    assert err.startswith("error: no table 9; choose from 1, 2, 3,")
    assert err.count("\n") == 1


# --- the program


def test_help_names_every_verb_and_teaches(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(verb in out for verb in ("extract", "segment", "models", "profile"))
    assert vtviz.__version__ in run("--version")[1]
    out = run("extract", "--help")[1]
    assert "vtviz extract cat.jpg --out out" in out
    assert "panel.png" in out
    assert predictor.DEFAULT_MODEL in out


def test_segment_help_names_the_model_that_is_taken(run):
    out = run("segment", "--help")[1]
    assert predictor.DEFAULT_SEGMENTER in out
    assert "NAME_overlay.png" in out


@pytest.mark.parametrize("args", [["exract"], ["extract"], ["extract", "a.jpg"], ["profile", "--table", "one"]])
def test_usage_errors_exit_2(run, args):
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]*; see vtviz [^\n]*--help\n", err)


def test_json_has_null_where_there_is_no_number(capsys):
    data = {"a": [float("nan"), 0.1, np.float64("inf")], "b": ("é\N{CAT}\udce9", None, 2**63)}
    print_json(data)
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=pytest.fail) == {"a": [None, 0.1, None], "b": list(data["b"])}


def test_help_imports_nothing_heavy():
    code = """
import sys
from vtviz.cli import main
try:
    main(["extract", "--help"])
except SystemExit as e:
    assert not e.code
heavy = {"torch", "numpy", "PIL", "cv2", "torchvision", "gradio", "lightning"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
