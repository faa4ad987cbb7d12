"""The tables of faithfulness: collected from results, rebuilt from the file in the clone."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from vtviz.errors import VtvizError
from vtviz.explain.faithfulness import BASELINES, Faithfulness, MethodFaithfulness

CLONE = Path(__file__).resolve().parents[1]
SCRIPT = CLONE / "docs" / "faithfulness.py"
spec = importlib.util.spec_from_file_location("faithfulness_page", SCRIPT)
page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(page)
PHOTOS = 40


def result(**insertion: float) -> Faithfulness:
    """A result of methods with these mean insertion areas, each image's a little beside them."""
    noise = np.random.default_rng(0).normal(0, 0.02, (len(insertion), PHOTOS))

    def curve(area: np.ndarray) -> np.ndarray:
        return np.repeat(area[:, None], 21, axis=1)

    methods = tuple(
        MethodFaithfulness(
            name,
            deletion=curve(0.5 - noise[i] / 2),
            insertion=curve(area + noise[i]),
            randomization=np.full(PHOTOS, np.nan if name in BASELINES else 0.125),
            seconds=np.full(PHOTOS, 0.0 if name in BASELINES else 0.25),
        )
        for i, (name, area) in enumerate(insertion.items())
    )
    images = tuple(f"{i}.jpg" for i in range(PHOTOS))
    return Faithfulness("tiny", "0" * 64, methods, images, ("cat",) * PHOTOS, {}, (192, 256), 0)


@pytest.fixture
def saved(tmp_path) -> Path:
    found = result(grad_cam=0.6, gradient_x_token=0.4, token_integrated_gradients=0.503, random=0.2, centre=0.5)
    return found.save(tmp_path / "out")["faithfulness.json"]


def row(text: str, name: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_clone_s_page_is_that_of_its_results():
    results = json.loads((CLONE / "docs" / "faithfulness.json").read_text())
    text = (CLONE / "docs" / "faithfulness.md").read_text()
    assert page.renewed(text, results) == text, "run python docs/faithfulness.py"


def test_the_shipped_results_are_of_shipped_weights_and_of_many_photos():
    results = json.loads((CLONE / "docs" / "faithfulness.json").read_text())
    for found in results:
        card = json.loads((CLONE / "checkpoints" / f"{found['model']}.json").read_text())
        assert found["weights"] == card["sha256"]
        assert {each["method"] for each in found["methods"]} >= {"gradient_x_token", "grad_cam", *BASELINES}
    assert {found["model"]: found["n"] for found in results}["vt_resnet18_in109"] == 100


def test_the_table_says_what_was_measured(saved):
    [found] = page.collect([saved])
    assert "images" not in found
    text = page.table(found)
    assert "**tiny**, 40 photos, input about 256 × 192 px" in text
    whole = json.loads(saved.read_text())
    for each in whole["methods"]:
        _, deletion, _, insertion, over, same, seconds = row(text, page.NAMES[each["method"]])
        assert deletion.startswith(f"{each['deletion']['mean']:.3f} (")
        assert insertion == "{mean:.3f} ({low:.3f} to {high:.3f})".format(**each["insertion"])
        aim = "" if each["method"] == "centre" else f"{each['insertion_over_centre']['mean']:+.3f} ("
        assert over.replace("−", "-").startswith(aim)
        assert bool(over) == bool(aim)
        chance = each["method"] in BASELINES
        assert (same, seconds) == (("", "") if chance else ("0.125 (0.125 to 0.125)", "0.25"))


def test_what_stands_out_of_chance_is_told_by_its_interval(saved):
    [found] = page.collect([saved])
    deletion, insertion = page.table(found).strip().splitlines()[-2:]
    assert insertion == (
        "By insertion, better than the photo's middle: Grad-CAM; level with it: Integrated gradients, tokens; "
        "worse: Gradient × token · *a random map*."
    )
    names = "Grad-CAM · Gradient × token · Integrated gradients, tokens · *a random map*"
    assert deletion == f"By deletion, better than the photo's middle: none; level with it: {names}; worse: none."


@pytest.mark.parametrize(
    ("measure", "low", "high", "group"),
    [
        ("deletion", -0.2, -0.1, "better than the photo's middle"),
        ("deletion", 0.1, 0.2, "worse"),
        ("insertion", 0.1, 0.2, "better than the photo's middle"),
        ("insertion", -0.2, -0.1, "worse"),
        ("insertion", -0.1, 0.2, "level with it"),
    ],
)
def test_less_deletion_and_more_insertion_are_better(saved, measure, low, high, group):
    [found] = page.collect([saved])
    found["methods"][0][f"{measure}_over_centre"] |= {"low": low, "high": high}
    [line] = [line for line in page.table(found).splitlines() if line.startswith(f"By {measure}, ")]
    assert re.search(rf"{group}: Grad-CAM( ·|;|\.)", line)


def test_what_is_no_result_is_one_line(tmp_path):
    (tmp_path / "wrong.json").write_text('{"model": "x"}')
    (tmp_path / "broken.json").write_text("{")
    for name in ("wrong", "broken", "absent"):
        with pytest.raises(VtvizError, match=rf"{name}.json is no faithfulness.json: ") as error:
            page.collect([tmp_path / f"{name}.json"])
        assert "\n" not in str(error.value)


def test_the_command(saved, tmp_path, monkeypatch):
    text = tmp_path / "page.md"
    text.write_text(f"before\n{page.MARKS[0]}old\n{page.MARKS[1]}after\n")
    monkeypatch.setattr(page, "PAGE", text)
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(sys, "argv", ["faithfulness.py", "collect", str(saved)])
    page.main()
    assert "old" not in text.read_text()
    assert "| Grad-CAM | " in text.read_text()
    monkeypatch.setattr(sys, "argv", ["faithfulness.py", "--check"])
    with pytest.raises(SystemExit) as done:
        page.main()
    assert done.value.code == 0
    text.write_text(text.read_text().replace("40 photos", "4,000 photos"))
    with pytest.raises(SystemExit, match="run python docs/faithfulness"):
        page.main()
