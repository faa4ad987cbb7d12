"""How ratios are measured and written; not what they are: that is the machine's business."""

import json
import re
import time
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import scaling
from benchmarks.measure import Row, compare, interval_of_median, quantiles
from vtviz.drawing import to_png

CLONE = Path(__file__).resolve().parents[1]


def test_a_ratio_is_that_of_the_work_and_its_control_is_1():
    row = compare("x", "three ÷ one", lambda: time.sleep(0.03), lambda: time.sleep(0.01), goal=">= 2", seconds=0.1)
    assert 2 < row.ratio < 3.5
    assert row.interval[0] <= row.ratio <= row.interval[1]
    assert row.spread[0] <= row.control <= row.spread[1]
    assert 0.7 < row.control < 1.4
    assert row.rounds >= 5
    assert row.first > row.second >= 10
    assert row.met is True


def test_rounds_take_turns_and_short_work_is_repeated():
    calls: list[str] = []

    def work(letter: str, seconds: float) -> None:
        calls.append(letter)
        time.sleep(seconds)

    compare("x", "x", lambda: work("a", 0.02), lambda: work("b", 0.02), seconds=0)
    assert "".join(calls[-8:]) == "abbaaaaa"
    calls.clear()
    compare("x", "x", lambda: calls.append("a"), lambda: time.sleep(0.02), seconds=0)
    assert len(calls) > 1000


@pytest.mark.parametrize(
    ("ratio", "goal", "met"),
    [
        (0.9, "<= 0.90", True),
        (0.91, "<= 0.90", False),
        (5.0, ">= 5", True),
        (4.9, ">= 5", False),
        (None, ">= 5", None),
        (1.0, None, None),
    ],
)
def test_a_goal_is_met_or_not_or_not_known(ratio, goal, met):
    row = Row("x", "y", ratio, goal=goal)
    assert row.met is met
    assert row.to_dict()["met"] is met


def test_intervals_hold_the_median():
    values = [1.0, 1.1, 1.2, 1.3, 9.0]
    low, high = interval_of_median(values)
    assert low <= 1.2 <= high
    assert interval_of_median(values) == (low, high)  # the same each time
    assert quantiles([2.0]) == (2.0, 2.0)


@pytest.fixture
def one_suite(monkeypatch):
    rows = [Row("a.b", "this ÷ that", 0.5, (0.4, 0.6), 1.0, (0.9, 1.1), "<= 0.90", 1.0, 2.0, 5), Row("a.c", "no GPU")]
    monkeypatch.setattr(program, "suites", lambda: {"a": lambda: iter(rows)})


def test_json_has_a_row_per_goal(one_suite, capsys):
    assert program.main(["--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["machine"]["cores"] >= 1
    first, second = data["rows"]
    assert {"name", "ratio", "control", "goal", "met"} <= first.keys()
    assert (first["met"], second["met"], second["ratio"]) == (True, None, None)


def test_the_table_is_written_between_its_marks(one_suite, capsys, tmp_path):
    page = tmp_path / "speed.md"
    begin, end = program.MARKS
    page.write_text(f"before\n{begin}old\n{end}after\n", "utf-8")
    assert program.main(["--out", str(page)]) == 0
    assert "| a.b | this ÷ that | 0.500 | 0.400–0.600 |" in capsys.readouterr().out
    text = page.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| yes | 1 / 2 |" in text


def test_a_wrong_name_is_told(one_suite, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(["extractoin"])
    assert ended.value.code == 2
    assert "extractoin" in capsys.readouterr().err


def test_a_point_of_the_scaling_is_measured_and_drawn():
    found = {
        axis: {"vt_resnet18": [(value, {"ms": 10.0 * value, "mb": 3.0 * value}) for value in values]}
        for axis, (_, values) in scaling.AXES.items()
    }
    picture = to_png(scaling.draw(found), 1.0)
    assert picture.shape == (470, 1200, 3)
    assert (picture == scaling.MODELS["vt_resnet18"][1]).all(axis=2).sum() > 4 * 2 * 30
    one = scaling.point("vt_resnet18", scaling.USUAL | {"size": 64, "tokens": 4})
    assert one["ms"] > 0
    assert one["mb"] >= 1


def test_the_page_of_results_has_a_row_for_every_goal_of_the_code():
    page = (CLONE / "docs" / "benchmarks.md").read_text("utf-8")
    for suite in (
        "extraction",
        "rendering",
        "page",
        "folders",
        "forward",
        "training",
        "neck",
        "start",
        "canvas",
        "gpu",
    ):
        assert re.search(rf"^\| {suite}\.", page, re.MULTILINE), suite
