import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from vtviz import checkpoints
from vtviz.cli import app
from vtviz.errors import CheckpointError, ConfigError, DataError, TrainingError, VtvizError
from vtviz.train.callbacks import read_metrics
from vtviz.train.evaluation import evaluate_classifier
from vtviz.train.job import read_job, write_job
from vtviz.train.recipes import RECIPES
from vtviz.train.verbs import MALLOC, make_job, parse_fields, wants_malloc


def vtviz(*arguments):
    """Runs a command in this process; its stdout, or the error that it raises."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, VtvizError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_train_evaluate_finetune_resume(balls, tmp_path, make_folder, quick):
    run = tmp_path / "run"
    out = vtviz("train", "--data", balls, "--out", run, *quick, "--epochs", 1, "--limit", 20, "--terms", "ours")
    assert out.splitlines()[-1] == str(run)
    job = read_job(run)
    assert (job.limit, job.terms, job.recipe.epochs, job.recipe.sizes) == (20, "ours", 1, "32-48")
    assert job.model_options == {"num_tokens": 4, "channels": 32, "token_channels": 32, "heads": 2}
    assert checkpoints.read_card(run / "last.safetensors").data["n_val"] == 5

    said = json.loads(vtviz("evaluate", "--model", run, "--data", balls, "--split", "val", "--device", "cpu", "--json"))
    assert said == json.loads(json.dumps(evaluate_classifier(str(run), balls, device="cpu").to_dict()))
    assert 0 <= said["top1"] <= said["top5"] == 1
    assert said["n"] == 12
    assert {c["id"] for c in said["per_class"]} == {"Blue-Ball", "green ball", "red_ball"}
    table = vtviz("evaluate", "-m", run, "--data", balls, "--split", "train", "--device", "cpu", "--limit", 6)
    assert table.startswith("run on data/train, 6 images at 48 px")

    vtviz("train", "--resume", "--out", run, "--epochs", 2)
    assert len(read_metrics(run)) == 2
    assert read_job(run).recipe == type(job.recipe)(**{**vars(job.recipe), "epochs": 2})
    assert read_job(run).limit == 20

    two = make_folder("two", train=4, val=2, classes={"cyan": (0, 200, 200), "pink": (240, 120, 180)})
    tuned = tmp_path / "tuned"
    without_model = [*quick[: quick.index("--option")], *quick[quick.index("--set") :]]
    vtviz("finetune", "--from", run, "--data", two, "--out", tuned, *without_model, "--epochs", 1, "--freeze", 4)
    assert checkpoints.read_card(tuned / "best.safetensors").class_ids == ("cyan", "pink")
    job = read_job(tuned)
    assert job.recipe.freeze == 4
    assert job.recipe.layer_decay == RECIPES["finetune"].layer_decay < 1
    vtviz("finetune", "--resume", "--out", tuned, "--epochs", 2)
    assert len(read_metrics(tuned)) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--data", "/nowhere"), DataError, "no data folder at /nowhere"),
        ((), ConfigError, "--data is missing"),
        (("--data", ".", "--recipe", "smal"), ConfigError, "unknown recipe 'smal'"),
        (("--data", ".", "--set", "epoch=3"), ConfigError, "no field 'epoch'; did you mean 'epochs'"),
        (("--data", ".", "--set", "mixup"), ConfigError, "--set takes NAME=VALUE, got 'mixup'"),
        (("--data", ".", "--option", "4"), ConfigError, "--option takes NAME=VALUE, got '4'"),
        (("--data", ".", "--epochs", "0"), ConfigError, "epochs must be from 1 to 100000"),
        (("--resume",), TrainingError, "nothing to resume"),
    ],
)
def test_train_says_what_is_wrong(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        vtviz("train", "--out", tmp_path / "run", "--device", "cpu", *arguments)
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_is_not_called_another_model(tiny_checkpoint, tiny_job, tmp_path):
    """The model is that of the checkpoint that it started from, whatever its job would say."""
    write_job(tmp_path / "run", tiny_job(start="tiny"), [])
    with pytest.raises(ConfigError, match="--from tiny is a vt_resnet18, but --model asks for a resnet34: leave"):
        vtviz("train", "--resume", "--out", tmp_path / "run", "--model", "resnet34")
    assert read_job(tmp_path / "run").model == "vt_resnet18"


def test_evaluate_says_what_is_wrong(balls):
    with pytest.raises(CheckpointError, match="no checkpoint named 'nobody'"):
        vtviz("evaluate", "--model", "nobody", "--data", balls, "--device", "cpu")


def test_options_become_a_job():
    options = {"data": "d", "out": "o", "recipe": "finetune", "device": "cpu", "classes": None, "lr": 0.1, "seed": None}
    job = make_job({**options, "set": ["mixup=0.2"], "option": ["num_tokens=8", "dynamic=false"], "start": "vt"})
    assert (job.accelerator, job.start, job.weights) == ("cpu", "vt", None)
    assert job.model_options == {"num_tokens": 8, "dynamic": False}
    assert (job.recipe.lr, job.recipe.mixup, job.recipe.freeze) == (0.1, 0.2, RECIPES["finetune"].freeze)
    changed = make_job({"epochs": 99, "set": ["mixup=0"]}, job)
    assert (changed.recipe.epochs, changed.recipe.mixup, changed.recipe.lr) == (99, 0, 0.1)
    assert changed.model_options == job.model_options
    backbone = make_job({**options, "start": "torchvision:IMAGENET1K_V1"})
    assert (backbone.start, backbone.weights) == (None, "IMAGENET1K_V1")


def test_a_recipes_word_may_be_a_number():
    """A single milestone or size is no list, and JSON would make a number of it."""
    options = {"data": "d", "out": "o", "recipe": "coco_stuff_paper"}
    recipe = make_job({**options, "set": ["milestones=0.5", "sizes=48", "lr=1", 'schedule="step"']}).recipe
    assert (recipe.milestones, recipe.sizes, recipe.lr, recipe.schedule) == ("0.5", "48", 1, "step")
    changed = make_job({"set": ["milestones=0.25"]}, make_job(options))
    assert changed.recipe.milestones == "0.25"
    with pytest.raises(ConfigError, match="milestones must be rising fractions of all epochs"):
        make_job({**options, "set": ["milestones=2"]})
    with pytest.raises(ConfigError, match="lr must be a number, got 'fast'"):
        make_job({**options, "set": ["lr=fast"]})


def test_fields_are_json_or_words():
    assert parse_fields(["mixup=0.2", "augment=crop", "drop-path=1", "a=x=y", "b=", "c=true"]) == {
        "mixup": 0.2,
        "augment": "crop",
        "drop_path": 1,
        "a": "x=y",
        "b": "",
        "c": True,
    }


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, True),
        ({"program": "/venv/bin/vtviz"}, True),
        ({"device": "auto"}, True),
        ({"device": "auto", "gpu": True}, False),
        ({"device": "cpu", "gpu": True}, True),
        ({"device": "cuda"}, False),
        ({"platform": "darwin"}, False),
        ({"environment": {"MALLOC_TOP_PAD_": "1"}}, False),
        ({"environment": MALLOC}, False),  # or it would go round for ever
        ({"program": "/venv/bin/pytest"}, False),
        ({"program": "/src/pytest/__main__.py"}, False),
        ({"program": "train_mine.py"}, False),
    ],
)
def test_only_vtviz_itself_starts_again_for_malloc(change, wanted):
    case = {"device": "cpu", "program": "/src/vtviz/__main__.py", "environment": {}, "platform": "linux", "gpu": False}
    assert wants_malloc(**{**case, **change}) == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
@pytest.mark.parametrize("how", ["module", "script"])
def test_a_command_started_again_is_the_same_command(tmp_path, how):
    """As ``python -m vtviz`` and as the installed script."""
    script = tmp_path / "vtviz"
    script.write_text("import sys\nfrom vtviz.cli import main\nsys.exit(main())\n")
    command = [sys.executable, *(["-m", "vtviz"] if how == "module" else [str(script)])]
    probe = tmp_path / "site" / "sitecustomize.py"
    probe.parent.mkdir()
    probe.write_text("import os, sys\nprint('MALLOC_TOP_PAD_' in os.environ, sys.orig_argv[-3:], file=sys.stderr)\n")
    paths = os.pathsep.join([str(probe.parent), os.getcwd()])  # noqa: PTH109 - where the package is
    environment = {k: v for k, v in os.environ.items() if k not in MALLOC} | {"PYTHONPATH": paths}
    done = subprocess.run(
        [*command, "train", "--device", "cpu", "--out", "no where"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[:2] == ["False ['cpu', '--out', 'no where']", "True ['cpu', '--out', 'no where']"]
    assert lines[2].startswith("error: --data is missing")


def test_help_loads_no_library_for_training():
    code = (
        "import sys; from typer.testing import CliRunner; from vtviz.cli import app\n"
        "for verb in ('train', 'finetune', 'evaluate'):\n"
        "    assert CliRunner().invoke(app, [verb, '--help']).exit_code == 0\n"
        "print({'torch', 'lightning', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
