"""How ratios are measured and written; not what they are: that is the machine's business."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import measure, scaling, start
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


@pytest.mark.parametrize(
    ("ratio", "interval", "spread", "rounds", "certain", "cells"),
    [
        (0.8, (0.7, 0.85), (0.9, 1.1), 5, True, "| yes |  |  |"),
        (0.8, (0.7, 0.95), (0.9, 1.1), 5, False, "| yes, not certain |  |  |"),
        (1.0, (0.7, 1.1), (0.9, 1.1), 5, False, "| **no**, not certain |  |  |"),
        (1.0, (0.95, 1.1), (0.9, 1.1), 5, True, "| **no** |  |  |"),
        (0.8, (0.7, 0.85), (1.01, 1.1), 5, False, f"| yes, not certain |  | {program.UNSTEADY} |"),
        (0.8, (0.7, 0.85), (0.9, 0.99), 5, False, f"| yes, not certain |  | {program.UNSTEADY} |"),
        (0.8, None, (1.01, 1.1), 3, None, "| yes |  |  |"),  # three controls are above 1 in a case of eight
        (None, None, None, 0, None, "|  |  |  |"),
    ],
)
def test_what_is_met_is_certain_only_where_interval_and_control_say_so(ratio, interval, spread, rounds, certain, cells):
    row = Row("x", "y", ratio, interval, spread=spread, goal="<= 0.90", rounds=rounds)
    assert row.certain is certain
    assert row.to_dict()["certain"] is certain
    assert program.table([row]).rstrip().endswith(cells)


def test_no_goal_is_neither_certain_nor_uncertain_but_its_control_is_told():
    row = Row("x", "y", 0.8, (0.7, 0.9), spread=(1.01, 1.1), rounds=5, note="why")
    assert (row.certain, row.to_dict()["steady"]) == (None, False)
    assert f"| why; {program.UNSTEADY} |" in program.table([row])


@pytest.mark.parametrize(("disturbed", "measured", "steady"), [(0, 1, True), (1, 2, True), (2, 2, False)])
def test_a_row_whose_control_was_not_1_is_measured_once_more(monkeypatch, disturbed, measured, steady):
    """As if the machine were slower in the middle of each control, in the first so many measurements."""
    calls = 2 + 5 * 8  # of the clock in a measurement: how long the works take, then A B B A A A A A

    times = []

    def clock(work):
        work()
        measurement, at = divmod(len(times), calls)
        times.append(1.5 if measurement < disturbed and at >= 2 and (at - 2) % 8 in {5, 6} else 1.0)
        return times[-1]

    monkeypatch.setattr(measure, "clock", clock)
    row = compare("x", "y", lambda: None, lambda: 0, goal="<= 1.00", seconds=0, note="a note")
    assert len(times) == measured * calls
    assert (row.rounds, row.ratio, row.steady) == (5, 1.0, steady)
    assert (row.name, row.what, row.goal, row.note) == ("x", "y", "<= 1.00", "a note")


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


def test_a_page_that_is_killed_while_it_is_written_stays_whole(one_suite, monkeypatch, tmp_path):
    page = tmp_path / "speed.md"
    page.write_text("old".join(program.MARKS), "utf-8")
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        program.main(["--out", str(page)])
    assert page.read_text("utf-8") == "old".join(program.MARKS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extractoin"], "no suite 'extractoin': there are a"),
        (["--out", "none.md"], "none.md: No such file"),
        (["--out", "."], ".: Is a directory"),
        (["--out", "bare.md"], "bare.md: it has lost the lines that enclose the table"),
        (["--out", "latin.md"], "latin.md: 'utf-8' codec"),
        (["a", "--out", "whole.md"], "--out writes the whole table: name no suites with it"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_measured(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.setattr(program, "suites", lambda: {"a": lambda: pytest.fail("measured")})
    monkeypatch.chdir(tmp_path)
    Path("bare.md").touch()
    Path("latin.md").write_bytes(b"\xe9")
    Path("whole.md").write_text("old".join(program.MARKS), "utf-8")
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    assert ended.value.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m benchmarks: error: {message}")


def test_three_rounds_of_the_page_make_no_interval(monkeypatch):
    monkeypatch.setattr(start, "_python", lambda code: "100")
    monkeypatch.setattr(start, "_timed", lambda code: 1.0)
    monkeypatch.setattr(start, "_page", lambda: (1.2, 300.0))
    page = next(row for row in start.start() if row.name == "start.page")
    assert (page.ratio, page.rounds, page.interval) == (1.2, 3, None)
    assert "| 1.200 |  | 1.000 |" in program.table([page])


def test_without_chromium_the_rows_keep_their_goals(monkeypatch):
    monkeypatch.setattr(start, "find_chromium", lambda: None)
    rows = list(start.canvas())
    assert [(row.name, row.goal, row.met) for row in rows] == [
        ("canvas.first", "<= 1.00", None),
        ("canvas.draw", "<= 1.00", None),
        ("canvas.requests", "<= 0", None),
    ]
    assert all(row.note.startswith("not measured: no Chromium") for row in rows)


@pytest.mark.browser
@pytest.mark.slow
def test_uploads_and_every_display_option_are_drawn_in_chromium(monkeypatch):
    if not start.find_chromium():
        pytest.skip("no Chromium")
    monkeypatch.setattr(start, "UPLOADS", 2)
    with ThreadPoolExecutor(1) as pool:  # where another test drove a browser, this thread has a loop that runs
        first, drawn, requests = pool.submit(lambda: list(start.canvas())).result()
    assert (first.rounds, drawn.rounds) == (2, len(start.CHANGES))
    assert min(first.ratio, drawn.ratio) > 0
    assert requests.ratio == 0
    assert len({name for name, _ in start.CHANGES}) >= 6


SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(503)
HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


@pytest.mark.parametrize(
    ("app", "longest", "message"),
    [
        (SERVER, 8, r"python app.py gave no page within 8 s: HTTP Error 503"),  # a busy machine starts it in 3
        ("import time; time.sleep(60)", 1, r"gave no page within 1 s: .*refused"),
        ("", 60, "ended before it answered"),
    ],
    ids=["errors", "silence", "end"],
)
def test_a_page_that_never_comes_is_not_waited_for_for_ever(monkeypatch, tmp_path, app, longest, message):
    (tmp_path / "app.py").write_text(app)
    monkeypatch.setattr(start, "CLONE", tmp_path)
    monkeypatch.setattr(start, "LONGEST", longest)
    with pytest.raises(RuntimeError, match=message):
        start._page()


def test_a_point_of_the_scaling_is_measured_and_drawn():
    found = {
        axis: {"vt_resnet18": [(value, {"ms": 10.0 * value, "mb": 3.0 * value}) for value in values]}
        for axis, (_, values) in scaling.AXES.items()
    }
    picture = to_png(scaling.draw(found), 1.0)
    assert picture.shape == (470, 1200, 3)
    assert (picture == scaling.MODELS["vt_resnet18"][1]).all(axis=2).sum() > 4 * 2 * 30
    here = {"threads": torch.get_num_threads()}  # it sets them for the whole process
    one = scaling.point("vt_resnet18", scaling.USUAL | here | {"size": 64, "tokens": 4})
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
