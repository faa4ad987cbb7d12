"""The table of ablations: collected from run folders, rebuilt from the file in the clone."""

import importlib.util
import json
import re
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main

from vtviz import cli
from vtviz.errors import ConfigError, VtvizError
from vtviz.models.complexity import count_complexity, profile_rows
from vtviz.models.registry import build_model, config_to_dict
from vtviz.train.recipes import make_recipe
from vtviz.train.verbs import make_job

CLONE = Path(__file__).resolve().parents[1]
SCRIPT = CLONE / "docs" / "ablations.py"
spec = importlib.util.spec_from_file_location("ablations", SCRIPT)
ablations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ablations)
EPOCHS, PHOTOS = 2, 400


@pytest.fixture
def make_run(tmp_path, tiny_card):
    """Writes what the table reads of a run: make_run("no_dynamic", seed=1, top1=0.7)."""

    def make(variant="vt_resnet18", seed=0, top1=0.5, *, rows=EPOCHS, speed=100.0, recipe=(), job=(), **scores):
        run = tmp_path / "runs" / f"{variant}-seed{seed}"
        run.mkdir(parents=True)
        name, preset = ("vt_resnet18", variant) if variant.startswith("no_") else (variant, None)
        chosen = make_recipe("small", **{"epochs": EPOCHS, "seed": seed, **dict(recipe)})
        environment = {"device": "abacus"}
        job = {"model": name, "preset": preset, "recipe": asdict(chosen), "environment": environment, **dict(job)}
        with torch.device("meta"):
            model = build_model(name, preset, num_classes=10)
        card = tiny_card(model, model=name, config=config_to_dict(model.config), data={"n_train": 6000, "n_val": 100})
        scored = {"data": "balls", "split": "val", "size": 128, "n": PHOTOS, "top1": top1, **scores}
        for file, content in (("run", job), ("best", card.to_dict()), ("evaluate", scored)):
            (run / f"{file}.json").write_text(json.dumps(content))
        speeds = speed if isinstance(speed, list) else [speed] * rows
        lines = ["epoch,images_per_s", *(f"{i + 1},{each or ''}" for i, each in enumerate(speeds))]
        (run / "metrics.csv").write_text("\n".join(lines))
        return run

    return make


def cells(text: str, model: str) -> list[str]:
    """A line of the table by its first cell."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {model} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_clone_s_page_is_that_of_its_results():
    results = json.loads((CLONE / "docs" / "ablations.json").read_text())
    page = (CLONE / "docs" / "ablations.md").read_text()
    assert ablations.renewed(page, results) == page, "run python docs/ablations.py"


def test_the_paper_s_figures_are_those_that_the_profile_compares_with():
    printed = {row.row: (row.params_paper, row.macs_paper) for table in (1, 3) for row in profile_rows(table)}
    rows = ("VT-R-18", "VT-R-18 -TF", "VT-R-18 -DT", "VT-R-18 -PE", "R-18")
    assert [variant[2:] for variant in ablations.VARIANTS.values()] == [printed[row] for row in rows]


def test_the_page_s_command_makes_the_stored_settings():
    """Parsed as the command line does, but for the work."""
    setting = json.loads((CLONE / "docs" / "ablations.json").read_text())["setting"]
    page = (CLONE / "docs" / "ablations.md").read_text()
    command = re.search(r"```bash\nvtviz train (.*?)```", page, re.DOTALL)[1].replace("\\\n", "")
    train = typer.main.get_command(cli.app).commands["train"]
    with train.make_context("train", shlex.split(command)) as context:
        given = {key.rstrip("_"): value for key, value in context.params.items()}
    options = {key: given[key] for key in ("data", "out", "epochs", "batch_size", "lr", "sizes", "set")}
    job = make_job(options | {"recipe": "small"})
    assert {f"recipe.{key}": value for key, value in asdict(job.recipe).items() if key != "seed"} == {
        key: value for key, value in setting.items() if key.startswith("recipe.")
    }
    assert (given["preset"], given["seed"]) == ("no_dynamic", 0)
    assert (given["pixels"], given["val_limit"]) == (setting["pixels"], setting["n_val"])


def test_a_run_that_was_held_up_is_not_taken_for_a_slow_one(make_run, tmp_path):
    speeds = [100.0, 100.0, 0.1, 100.0, 50.0, 50.0, 1.0]  # of crops of 64 px, then of 128
    make_run(recipe={"epochs": 7, "sizes": "64@0.5,128"}, speed=speeds)
    make_run("resnet18", recipe={"epochs": 7, "sizes": "64@0.5,128"}, speed=[*speeds[:6], 0])
    results, _ = ablations.collect([tmp_path / "runs"])
    assert [run["seconds"] for run in results["runs"]] == [4 * 6000 / 100 + 3 * 6000 / 50, None]
    told = "Training: the time of one run, at the median speed of the epochs of each crop size, on abacus."
    assert told in ablations.table(results)


def test_runs_become_a_line_a_variant(make_run, tmp_path):
    for seed, top1 in enumerate((0.5, 0.52, 0.54)):
        make_run(seed=seed, top1=top1)
    make_run("no_dynamic", top1=0.25, speed=0)
    make_run("resnet18", seed=7, top1=0.9)
    results, notes = ablations.collect([tmp_path / "runs"])
    assert notes == []
    assert [(r["variant"], r["seed"]) for r in results["runs"]] == [
        ("vt_resnet18", 0),
        ("vt_resnet18", 1),
        ("vt_resnet18", 2),
        ("no_dynamic", 0),
        ("resnet18", 7),
    ]
    text = ablations.table(json.loads(json.dumps(results)))
    cost = count_complexity(build_model("vt_resnet18", num_classes=10))
    ours = [f"{cost.params / 1e6:.2f} M", f"{cost.macs / 1e9:.3f} G"]
    # two epochs of 6000 photos at 100 a second; t of 2 degrees of freedom times 0.02 / sqrt(3)
    first = ["VT-ResNet-18", "50.00, 52.00, 54.00", "52.00 ± 4.97", *ours, "2.0 min", "71.45", "12.76 M", "1.587 G"]
    assert cells(text, "VT-ResNet-18") == first
    # 1.96 sqrt(0.25 0.75 / 400)
    line = cells(text, "− dynamic tokenization")
    assert line[:3] == ["− dynamic tokenization", "25.00", r"25.00 ± 4.24\* (−27.00)"]
    assert line[5:] == ["–", "70.26 (−1.19)", "12.22 M", "1.608 G"]
    assert cells(text, "ResNet-18")[2] == r"90.00 ± 2.94\* (+38.00)"
    assert cells(text, "ResNet-18")[6] == "69.76 (−1.69)"
    assert "do not overlap: − dynamic tokenization, ResNet-18." in text
    assert "abacus" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_seeds_of_one_score_are_not_taken_for_certainty(make_run, tmp_path):
    for seed in (0, 1):
        make_run("no_position_encoding", seed=seed, top1=0.5)
    text = ablations.table(ablations.collect([tmp_path / "runs"])[0])
    assert r"50.00, 50.00 | 50.00 ± 4.90\*" in text
    assert "One score: the interval is that of the photos" in text


def test_what_overlaps_is_not_told_apart(make_run, tmp_path):
    make_run(top1=0.5)
    make_run("no_transformer", top1=0.52)
    text = ablations.table(ablations.collect([tmp_path / "runs"])[0])
    assert "these runs do not tell the models apart" in text
    assert r"52.00 ± 4.90\* (+2.00)" in text
    shutil.rmtree(tmp_path / "runs" / "vt_resnet18-seed0")
    text = ablations.table(ablations.collect([tmp_path / "runs"])[0])
    assert "There is no run of VT-ResNet-18 to compare with." in text


def test_several_folders_are_one_table(make_run, tmp_path):
    make_run(top1=0.5)
    (tmp_path / "runs").rename(tmp_path / "before")
    make_run(seed=1, top1=0.6)
    results, _ = ablations.collect([tmp_path / "runs", tmp_path / "before"])
    assert [run["top1"] for run in results["runs"]] == [0.5, 0.6]


@pytest.mark.parametrize(
    ("spoil", "note"),
    [
        (lambda run: (run / "evaluate.json").unlink(), "it has no evaluate.json"),
        (lambda run: (run / "evaluate.json").write_text(""), "Expecting value"),
        (lambda run: (run / "run.json").unlink(), "it has no run.json"),
        (lambda run: (run / "metrics.csv").write_text("epoch,images_per_s\n1,10"), "1 of 2 epochs are done"),
        (lambda run: run.rename(run.with_name("no_dynamic-seed3")), "it holds no_transformer with seed 3"),
        (lambda run: run.rename(run.with_name("no_transformer-seed4")), "it holds no_transformer with seed 3"),
        (lambda run: (run / "best.json").write_text("{}"), "lacks the field"),
    ],
)
def test_unfinished_runs_are_left_out_with_a_note(make_run, tmp_path, spoil, note):
    make_run()
    spoil(make_run("no_transformer", seed=3))
    results, notes = ablations.collect([tmp_path / "runs"])
    assert [run["variant"] for run in results["runs"]] == ["vt_resnet18"]
    assert len(notes) == 1
    assert note in notes[0]


@pytest.mark.parametrize(
    ("difference", "line"),
    [
        ({"recipe": {"lr": 0.5}}, r"vt_resnet18-seed0 has recipe\.lr 0\.002, no_dynamic-seed0 has 0\.5"),
        ({"job": {"pixels": "device"}}, "vt_resnet18-seed0 has pixels host, no_dynamic-seed0 has device"),
        ({"n": 200}, "vt_resnet18-seed0 has n 400, no_dynamic-seed0 has 200: not comparable"),
        ({"data": "discs"}, "vt_resnet18-seed0 has data balls, no_dynamic-seed0 has discs"),
    ],
)
def test_runs_that_differ_in_more_than_model_and_seed_are_refused(make_run, tmp_path, difference, line):
    make_run()
    make_run("no_dynamic", **difference)
    with pytest.raises(ConfigError, match=line):
        ablations.collect([tmp_path / "runs"])


def test_nothing_to_collect(tmp_path):
    with pytest.raises(ConfigError, match="no finished run in"):
        ablations.collect([tmp_path])


def test_an_interval_over_seeds_holds_their_mean_in_95_of_100_cases():
    random = np.random.default_rng(0)
    for count in (2, 3, 5, 9):
        draws = random.normal(0.5, 0.02, (3000, count))
        held = [abs(draw.mean() - 0.5) <= ablations.interval(draw.tolist(), 1) for draw in draws]
        assert np.mean(held) == pytest.approx(0.95, abs=0.012)
    single = random.binomial(400, 0.8, 4000) / 400
    assert np.mean([abs(share - 0.8) <= ablations.interval([share], 400) for share in single]) == pytest.approx(
        0.95, abs=0.015
    )


def test_a_page_without_its_marks_is_one_line():
    with pytest.raises(VtvizError, match="has lost the lines that enclose the table"):
        ablations.renewed("# nothing", {})


def test_the_command(make_run, tmp_path, monkeypatch, capsys):
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(f"before\n{ablations.MARKS[0]}old\n{ablations.MARKS[1]}after\n")
    monkeypatch.setattr(ablations, "PAGE", page)
    monkeypatch.setattr(ablations, "RESULTS", results)
    make_run(top1=0.5)
    (make_run("no_dynamic") / "evaluate.json").unlink()
    monkeypatch.setattr(sys, "argv", ["ablations.py", "collect", str(tmp_path / "runs")])
    ablations.main()
    printed = capsys.readouterr()
    assert printed.err == "left out no_dynamic-seed0: it has no evaluate.json\n"
    assert "1 runs" in printed.out
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "50.00" in text
    monkeypatch.setattr(sys, "argv", ["ablations.py", "--check"])
    with pytest.raises(SystemExit) as done:
        ablations.main()
    assert done.value.code == 0
    page.write_text(text.replace("50.00", "60.00"))
    with pytest.raises(SystemExit, match="run python docs/ablations"):
        ablations.main()
