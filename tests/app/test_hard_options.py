"""``python app.py``, used wrongly in every option: one line, exit code 2, before any port is opened."""

import gradio as gr
import pytest

from app.__main__ import main, make_parser

LONG = "x" * 5000
WRONG = {
    "--host": ("", "no such host", "256.1.1.1"),
    "--port": ("", "x", "0", "-1", "65536", "80.5", "９９", "9" * 400),
    "--model": ("", "onw", "оwn", LONG, "../own", "/dev/null", "/", "-"),
    "--device": ("", "gpu", "cuda:99", "meta", LONG),
    "--engine": ("", "onnx", LONG),
    "--dtype": ("", "bf17", LONG),
    "--auth": ("", "me", ":secret", "me:"),
    "--data-root": ("", "nowhere", "/dev/null", LONG),
    "--runs": ("", "/dev/null", "/dev/null/runs", "/proc/runs", LONG),
}
"""Wrong values by option; the first of --model's names has a Cyrillic letter."""
ALONE = {"--share", "--public", "--allow-training", "--mcp"}
"""Options without a value."""
OPTIONS = {action.option_strings[-1] for action in make_parser()._actions} - {"--help"}


def start(arguments, capsys):
    """Exit code and stderr."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().err


@pytest.fixture(autouse=True)
def closed(monkeypatch, models, tmp_path):
    """Nothing may listen."""

    def launch(*_, **__):
        raise AssertionError("the page was served")

    monkeypatch.setattr(gr.Blocks, "launch", launch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def test_every_option_is_tried():
    assert set(WRONG) | ALONE == OPTIONS


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, values in WRONG.items() for v in values])
def test_a_wrong_value_is_one_line(option, value, capsys, tmp_path, tally):
    code, error = start(["--model=own", "--device=cpu", f"{option}={value}"], capsys)
    assert code == 2
    assert error.startswith("error: ")
    assert (error.count("\n"), len(error) < 700) == (1, True)
    assert option in error or value[:30] in error
    assert list(tmp_path.iterdir()) == []
    tally("wrong options tried", 1)


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_a_misspelt_option_suggests_the_right_one(option, capsys):
    code, error = start([f"{option}s"], capsys)
    assert code == 2
    assert error.count("\n") == 1
    assert f"did you mean {option!r}?" in error


def test_words_without_an_option_are_one_line(capsys):
    code, error = start(["photo.jpg"], capsys)
    assert (code, error.count("\n")) == (2, 1)
    assert "photo.jpg" in error
