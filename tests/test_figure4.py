"""The plot of accuracy against cost: the paper's figures as printed, ours on axes of their own."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vtviz import checkpoints
from vtviz.models.complexity import count_complexity, profile_rows

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "figure4.py"


@pytest.fixture
def figure4(monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_the_paper_s_figures_are_those_that_the_profile_compares_with(figure4):
    points = {p.name: p for p in figure4.paper() if p.family != figure4.OTHERS}
    rows = profile_rows(1)
    assert len(points) == len(rows) == 8
    for row in rows:
        assert (points[row.row].macs, points[row.row].params) == (row.macs_paper, row.params_paper)
    gains = [round(points[f"VT-R-{d}"].top1 - points[f"R-{d}"].top1, 2) for d in (18, 34, 50, 101)]
    assert gains == [4.53, 4.14, 2.88, 3.70]  # as Table 1 prints them
    assert len(figure4.paper()) == 8 + 16


@pytest.fixture
def scored(tmp_path, tiny_model, tiny_card, monkeypatch):
    """Only these checkpoints: two that were scored on one set, one on another, and three that cannot be shown."""
    accuracy = {"top1": 0.64, "n": 10_000, "data": "balls"}
    for name, model, fields in (
        ("tiny", "vt_resnet18", {"accuracy": accuracy}),
        ("plain", "resnet18", {"accuracy": {**accuracy, "top1": 0.5}}),
        ("other", "resnet18", {"accuracy": {**accuracy, "data": "discs"}}),
        ("blank", "resnet18", {"accuracy": accuracy, "trained": False}),
        ("unscored", "resnet18", {}),
        ("segmenter", "vt_fpn_resnet18", {"accuracy": {**accuracy, "miou": 0.4}, "task": "segmentation"}),
    ):
        made = tiny_model(model)
        palette = {"palette": tuple((i, i, i) for i in range(5))} if model.startswith("vt_fpn") else {}
        card = replace(tiny_card(made, name=name, model=model, **palette), **fields)
        checkpoints.save(tmp_path / f"{name}.safetensors", made, card)
    monkeypatch.setattr(checkpoints, "_folders", lambda: [tmp_path])
    return tiny_model


def test_ours_stand_apart_by_the_photos_that_they_were_scored_on(figure4, scored):
    rows = figure4.ours()
    assert [title.split(":")[0] for title in rows] == ["Ours, discs", "Ours, balls"]
    plain, tiny = sorted(rows[next(t for t in rows if "balls" in t)], key=lambda p: p.name)
    assert (plain.name, plain.family, tiny.name, tiny.family) == ("plain", "ResNet", "tiny", "VT-ResNet")
    assert (tiny.top1, tiny.half) == (64.0, pytest.approx(100 * 1.96 * (0.64 * 0.36 / 10_000) ** 0.5))
    cost = count_complexity(scored("vt_resnet18"))
    assert (tiny.macs, tiny.params) == (cost.macs / 1e9, cost.params / 1e6)
    assert not {"blank", "unscored", "segmenter"} & {p.name for points in rows.values() for p in points}


def test_points_lie_where_their_figures_say(figure4):
    point = figure4.Point(figure4.VT, "x", 75.0, 2.0, 2.0, 10.0)
    picture = Image.new("RGB", (3 * 600, 3 * 480), "white")
    plot = figure4.Plot(picture, 0, 0, 480, [0.0, 1.0, 2.0, 3.0, 4.0], [70.0, 75.0, 80.0])
    plot.draw([(2.0, point)])
    pixels = np.asarray(picture)
    y, x = np.nonzero((pixels == figure4.COLOURS[figure4.VT]).all(axis=2))
    left, top, right, bottom = plot.box
    assert (x.min() + x.max()) / 6 == pytest.approx((left + right) / 2, abs=0.5)  # half of 4 G
    assert (y.min() + y.max()) / 6 == pytest.approx((top + bottom) / 2, abs=0.5)
    bar = np.nonzero((pixels[:, round(3 * (left + right) / 2)] == figure4.INK).all(axis=1))[0]
    assert (bar.max() - bar.min()) / 3 == pytest.approx((bottom - top) * 4 / 10, abs=2)  # 4 of 10 points


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [(0, 8.7, 6, [0, 2, 4, 6, 8, 10]), (72.3, 76.5, 4, [72, 74, 76, 78]), (0, 1.96, 6, [0, 0.5, 1, 1.5, 2])],
)
def test_axes_have_round_numbers(figure4, low, high, most, expected):
    assert figure4.ticks(low, high, most) == expected


def test_no_name_covers_another_or_a_point(figure4):
    picture = Image.new("RGB", (1800, 1440))
    for field in ("macs", "params"):
        along = [(getattr(p, field), p) for p in figure4.paper()]
        reach = 1.08 * max(x for x, _ in along)
        plot = figure4.Plot(picture, 0, 0, 480, figure4.ticks(0, reach), figure4.ticks(68, 82, 8))
        plot.draw(along)
        names, others = plot.taken[-len(along) :], plot.taken[: -len(along)]
        shrunk = [(a + 6, b, c - 6, d) for a, b, c, d in names]
        for i, (a, b, c, d) in enumerate(shrunk):
            assert not any(a < x and w < c and b < y and z < d for w, z, x, y in others + shrunk[:i])


def test_it_writes_a_picture_and_says_what_is_ours(figure4, scored, tmp_path, monkeypatch, capsys):
    out = tmp_path / "deep" / "figure.png"
    monkeypatch.setattr(sys, "argv", ["figure4.py", "--out", str(out)])
    figure4.main()
    printed = capsys.readouterr().out
    assert "tiny: top-1 64.0 +- 0.9 %, " in printed
    with Image.open(out) as picture:
        assert picture.width == 1200
        assert picture.height > 480 + 2 * 260
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20
