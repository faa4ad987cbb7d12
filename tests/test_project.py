"""What the project says about itself: README, requirements, wheel, the script that checks a change."""

import ast
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import typer.main
from PIL import Image

import vtviz
from docs import models as table
from vtviz import checkpoints, cli
from vtviz.card import Card
from vtviz.models.complexity import count_complexity
from vtviz.models.registry import build_model, config_to_dict
from vtviz.predictor import DEFAULT_MODEL, DEFAULT_SEGMENTER

CLONE = Path(__file__).resolve().parents[1]
README = (CLONE / "README.md").read_text(encoding="utf-8")
PAGES = sorted(CLONE.glob("*.md"))
COMMANDS = ("pip install -r requirements.txt && python app.py", "pip install -r requirements-dev.txt && pytest")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def requirements(name: str) -> set[str]:
    """Names of the distributions in a requirements file and in those that it includes."""
    names = set()
    for line in (CLONE / name).read_text().splitlines():
        if line.startswith("-r "):
            names |= requirements(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            assert re.fullmatch(r"[a-z-]+>=[\d.]+(,<[\d.]+)?", line), line
            names.add(re.split("[>=]", line)[0])
    return names


# --- README


@pytest.mark.parametrize("command", COMMANDS)
def test_the_two_commands_are_one_line_each(command):
    assert README.splitlines().count(command) == 1
    assert f"{command}\n" in blocks("bash")


def vtviz_commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line.removeprefix("python -m vtviz ") for line in lines if line.startswith("python -m vtviz ")]


@pytest.mark.parametrize("line", vtviz_commands())
def test_the_command_line_understands_every_command(line):
    verb, *arguments = shlex.split(line)
    group = typer.main.get_command(cli.app)
    assert verb in group.commands
    group.commands[verb].make_context(verb, arguments)  # parses; runs nothing


def test_there_are_commands_for_extraction_and_training():
    shown = {c.split()[0] for c in vtviz_commands()}
    assert {"extract", "segment", "models", "profile", "lineage", "ablate", "report", "train", "evaluate"} <= shown


def test_the_python_examples_run(tiny_checkpoint, tiny_segmenter, tmp_path, monkeypatch, capsys):
    for source, name in ((tiny_checkpoint, DEFAULT_MODEL), (tiny_segmenter, DEFAULT_SEGMENTER)):
        for path in (source, source.with_suffix(".json")):
            shutil.copy(path, path.with_stem(name))
    monkeypatch.chdir(tmp_path)
    Path("app").symlink_to(CLONE / "app")
    namespace: dict = {}
    for code in blocks("python"):  # one after the other, as a reader would
        exec(compile(code, "README.md", "exec"), namespace)
    assert "Prediction(" in capsys.readouterr().out
    with Image.open("overlay.png") as picture:
        assert picture.size == namespace["found"].labels.shape[::-1]
    with Image.open("token3.png") as picture, Image.open("app/photos/cat.jpg") as photo:
        assert picture.size == photo.size == namespace["values"].shape[::-1]
    assert vtviz.TokenMaps.load("out/cat").layers[0].num_tokens == 16


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if not t.startswith("https://") and not (CLONE / t).exists()] == []


def test_the_picture_is_small():
    path = CLONE / "docs/figure6.png"
    assert path.stat().st_size < 600_000
    with Image.open(path) as picture:
        assert picture.width > 1000


# --- the table of models


def test_the_table_of_models_is_that_of_the_cards():
    assert table.renewed(README, CLONE / "checkpoints") == README, "run python docs/models.py"


def test_the_table_has_the_figures_of_the_cards(tmp_path, tiny_model, tiny_card):
    model = tiny_model()
    card = tiny_card(
        model,
        name="second",
        data={"name": "flowers", "n_train": 12345},
        recipe={"epochs": 2, "started_from": {"epochs": 43.0, "recipe": {"epochs": 64}}},
        epochs=2.0,
        accuracy={
            "top1": 0.7216,
            "n": 2000,
            "size": 224,
            "top1_by_size": {"224": 0.7216, "160": 0.7, "96": 0.5},
            "also": {"roses": {"top1": 0.5, "n": 100}},
        },
        tokens={
            "block0": {"peak": 9.95, "correlation": 0.193, "dead": 0},
            "block1": {"peak": 7.2, "correlation": 0.74, "dead": 0},
            "person": {"iou": 0.4, "untrained_iou": 0.25},
        },
    )
    checkpoints.save(tmp_path / "second.safetensors", model, card)
    checkpoints.save(tmp_path / "first.safetensors", model, replace(tiny_card(model), trained=False))
    classifiers, tokens = table.tables(tmp_path).split("\n\n")
    *_, first, second = classifiers.splitlines()
    assert first.startswith("| [tiny](checkpoints/first.json) (untrained) | , 5 classes | ? |  | ")
    assert first.endswith("|  |")  # no epochs
    cost = count_complexity(model, (3, 224, 224))
    assert [cell.strip() for cell in second.strip("|").split("|")] == [
        "[second](checkpoints/second.json)",
        "flowers, 12,345 photos, 5 classes",
        "72.2 ± 2.0% of 2,000",  # 1.96 sqrt(0.7216 0.2784 / 2000)
        "roses 50.0 ± 9.8% of 100",
        f"{cost.params / 1e6:.2f} M",
        f"{cost.macs / 1e9:.3f} G",
        "43 of 64, then 2",
    ]
    assert [cell.strip() for cell in tokens.splitlines()[-1].strip("|").split("|")] == [
        "[second](checkpoints/second.json)",
        "96 px 50.0%, 160 px 70.0%",
        "9.9× / 7.2×",
        "0.19 / 0.74",
        "0.40 (0.25)",
    ]


def test_segmentation_models_have_a_table_of_their_own(tmp_path):
    options = {"num_classes": 3, "channels": 32, "head_channels": 64}
    model = build_model("panoptic_fpn_resnet18", **options)
    names = ("background", "hair", "skin")
    accuracy = {"miou": 0.4567, "interval": [0.41, 0.5], "n": 100, "pixel_accuracy": 0.9, "boundary_f": 0.555}
    config, data = config_to_dict(model.config), {"name": "clothes", "n_train": 800}
    card = Card("dressed", "panoptic_fpn_resnet18", config, names, names, task="segmentation", data=data)
    checkpoints.save(tmp_path / "dressed.safetensors", model, replace(card, accuracy=accuracy))
    heading, _, row = table.tables(tmp_path).splitlines()
    assert [cell.strip() for cell in heading.strip("|").split("|")] == list(table.SEGMENTERS)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:6] == [
        "[dressed](checkpoints/dressed.json)",
        "clothes, 800 photos, 3 classes",
        "45.7% of 100",
        "41.0% to 50.0%",
        "90.0%",
        "55.5%",
    ]
    convolutions = sum(32 * 32 * 9 * (352 // 2**k) * (480 // 2**k) for k in (2, 3, 4, 5))
    laterals = sum(32 * 2 ** (4 + k) * (352 // 2**k) * (480 // 2**k) for k in (2, 3, 4, 5))
    assert cells[7] == f"{(convolutions + laterals) / 1e9:.2f}"
    assert float(cells[6]) > float(cells[7])


def test_a_readme_without_the_place_for_the_table_is_refused(tmp_path):
    with pytest.raises(vtviz.VtvizError, match="has lost the lines"):
        table.renewed("# vtviz\n", tmp_path)


def test_the_shipped_models_say_what_may_be_done_with_them():
    cards = {path.stem: checkpoints.read_card(path) for path in (CLONE / "checkpoints").glob("*.safetensors")}
    assert {DEFAULT_MODEL, DEFAULT_SEGMENTER} <= set(cards)
    for name, card in cards.items():
        assert card.name == name
        assert "non-commercial" in card.licence.lower()
        assert card.data["terms"]
        assert card.accuracy


# --- packaging


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of this clone, built in a copy and without a network."""
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("building a wheel takes setuptools >= 77")
    copy = tmp_path_factory.mktemp("wheel")
    for path in (*CLONE.glob("*.*"), CLONE / "LICENSE"):
        if path.is_file():
            shutil.copy(path, copy)
    for name in ("vtviz", "app", "tests", "examples", "docs"):
        shutil.copytree(CLONE / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(copy / "dist" / done.stdout.splitlines()[-1])


def test_the_wheel_ships_the_package_and_nothing_else(wheel):
    information = f"vtviz-{vtviz.__version__}.dist-info"
    shipped = {name for name in wheel.namelist() if not name.startswith(f"{information}/")}
    sources = {p.relative_to(CLONE).as_posix() for p in (CLONE / "vtviz").rglob("*.py")}
    static = {p.relative_to(CLONE).as_posix() for p in (CLONE / "vtviz/static").iterdir()}
    assert shipped == sources | static | {"vtviz/py.typed"}
    assert f"{information}/licenses/LICENSE" in wheel.namelist()


def test_the_wheel_asks_for_what_the_package_imports_and_not_for_the_page(wheel):
    metadata = wheel.read(f"vtviz-{vtviz.__version__}.dist-info/METADATA").decode()
    asked = set(re.findall(r"^Requires-Dist: ([\w-]+)", metadata, re.MULTILINE))
    assert asked == requirements("requirements-vtviz.txt")
    of_the_page = {"gradio", "gradio-client", "httpx", "starlette", "plotly", "captum"}
    assert requirements("requirements.txt") - asked == of_the_page
    assert {"pytest", "scikit-image", "playwright"} <= requirements("requirements-dev.txt")


def test_requirements_name_every_package_that_is_imported():
    distributions = importlib.metadata.packages_distributions()

    def imported(folder: str) -> set[str]:
        names = set()
        for path in (CLONE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module.split(".")[0])
        ours = {"vtviz", "app", "docs"}
        return {distributions.get(n, [n])[0].lower().replace("_", "-") for n in names - ours - sys.stdlib_module_names}

    optional = {"plotly", "captum"} | requirements("requirements-engines.txt")  # imported where they are used
    assert imported("vtviz") - optional <= requirements("requirements-vtviz.txt")
    assert imported("app") | imported("examples") <= requirements("requirements.txt")
    assert imported("docs") <= requirements("requirements-dev.txt")


# --- the house


def tracked() -> list[Path]:
    if not (CLONE / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git clone")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=CLONE, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := CLONE / name).is_file()]


def test_no_file_knows_a_certain_machine_or_an_unfinished_thought():
    wrong = re.compile(
        rb"/(?:work|home|root|Users|mnt|scratch)/\w|\.\./sha" + rb"red|\b(?:TO" + rb"DO|FIX" + rb"ME|XX" + rb"X)\b"
    )
    binary = {".png", ".jpg", ".safetensors"}
    found = [
        f"{path.relative_to(CLONE)}: {match[0].decode()}"
        for path in tracked()
        if path.suffix not in binary
        for match in wrong.finditer(path.read_bytes())
    ]
    assert found == []


def test_the_repository_holds_nothing_large_but_weights():
    large = [p for p in tracked() if p.stat().st_size > 600_000 and p.suffix != ".safetensors"]
    assert large == []


def test_the_checking_script_runs_the_readmes_command(tmp_path):
    script = CLONE / ".ci/run"
    assert os.access(script, os.X_OK)
    clone = tmp_path / "clone"
    (clone / ".ci").mkdir(parents=True)
    shutil.copy(script, clone / ".ci")
    (clone / "README.md").write_text(README.replace(COMMANDS[1], "pytest"))
    done = subprocess.run([clone / ".ci/run"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no longer prints" in done.stderr


CALLS = (
    "pip install -r requirements-dev.txt",
    "pytest",
    "pytest -m slow and not gpu",
    "ruff check",
    "ruff format --check",
    "mypy",
)


@pytest.mark.parametrize(("broken", "calls"), [(None, 6), ("pip", 1), ("pytest", 2), ("ruff", 4), ("mypy", 6)])
def test_the_checking_script_stops_where_a_step_fails(tmp_path, broken, calls):
    """With stand-ins for Python and the tools, which note down that they were called."""
    clone, log, python = tmp_path / "clone", tmp_path / "log", tmp_path / "python"
    (clone / ".ci").mkdir(parents=True)
    shutil.copy(CLONE / ".ci/run", clone / ".ci")
    shutil.copy(CLONE / "README.md", clone)
    lines = [
        "#!/bin/sh",
        'cd "$3" && mkdir bin',
        """echo 'PATH="'$3'/bin:$PATH"' > bin/activate""",
    ]  # python -m venv $3
    for tool in ("pip", "pytest", "ruff", "mypy"):
        lines += [
            f"cat > bin/{tool} <<'END'",
            "#!/bin/sh",
            f'echo {tool} "$@" >> {shlex.quote(str(log))}',
            f"exit {int(tool == broken)}",
            "END",
        ]
    python.write_text("\n".join([*lines, "chmod +x bin/*", ""]))
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "VTVIZ_CHROMIUM": "here", "TMPDIR": str(tmp_path)}
    done = subprocess.run([clone / ".ci/run"], env=environment, capture_output=True, text=True, check=False)
    assert log.read_text().splitlines() == list(CALLS[:calls]), done.stderr
    assert done.returncode == (0 if broken is None else 1)
    assert ("all passed" in done.stdout) == (broken is None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clone", "log", "python"]  # the environment is gone
