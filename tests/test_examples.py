"""The examples, run as a newcomer runs them, on a small model in the place of the shipped one."""

import csv
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vtviz
from vtviz.explain.token_classes import token_classes
from vtviz.predictor import DEFAULT_MODEL, DEFAULT_SEGMENTER

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")

CLONE = Path(__file__).resolve().parents[1]
SCRIPTS = (
    "examples/extract.py",
    "examples/figure4.py",
    "examples/figure5.py",
    "examples/figure6.py",
    "examples/token_numbers.py",
    "docs/ablations.py",
    "docs/faithfulness.py",
    "docs/models.py",
)


@pytest.fixture
def elsewhere(tiny_checkpoint, tiny_segmenter, tmp_path, monkeypatch) -> Path:
    """An empty working folder; small random models answer to the default models' names."""
    for saved, name in ((tiny_checkpoint, DEFAULT_MODEL), (tiny_segmenter, DEFAULT_SEGMENTER)):
        for path in (saved, saved.with_suffix(".json")):
            shutil.copy(path, path.with_stem(name))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return folder


@pytest.fixture
def run(elsewhere, monkeypatch, capsys):
    """Runs an example and returns what it printed."""

    def call(script: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(CLONE / "examples" / script), run_name="__main__")
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_start_in_any_folder_without_an_installed_package(script, tmp_path):
    packages = [p for p in sys.path if "site-packages" in p]
    code = f"import runpy, sys; sys.path += {packages!r}; runpy.run_path({str(CLONE / script)!r})"
    command = [sys.executable, "-S", "-c", code]  # -S: as if vtviz had never been installed
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_extract(run, elsewhere):
    printed = run("extract.py")
    assert f"wrote maps.npz, manifest.json, token0.png and panel.png to {elsewhere / 'out'}" in printed
    assert "block0: 16 tokens of 1 head(s) over 11 x 17 cells, one every 16 pixels" in printed
    stored = vtviz.TokenMaps.load("out")
    np.testing.assert_array_equal(
        stored.layers[1].coefficients,
        vtviz.extract_tokens(CLONE / "app/photos/cat.jpg").layers[1].coefficients,
    )
    with Image.open("out/token0.png") as overlay, Image.open(CLONE / "app/photos/cat.jpg") as photo:
        assert overlay.size == photo.size


def test_extract_takes_a_photo_a_model_and_a_folder(run, elsewhere, coffee, tiny_checkpoint):
    Image.fromarray(coffee).save("my photo.png")
    run("extract.py", "my photo.png", "--model", tiny_checkpoint, "--out", "here")
    assert sorted(p.name for p in Path("here").iterdir()) == ["manifest.json", "maps.npz", "panel.png", "token0.png"]
    assert vtviz.TokenMaps.load("here").source == "my photo.png"


def test_token_numbers(run, elsewhere):
    printed = run("token_numbers.py").splitlines()
    with Path("out/token_numbers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [len(line.split()) for line in printed[: 1 + len(rows)]] == [len(rows[0])] * (1 + len(rows))

    maps = vtviz.extract_tokens(CLONE / "app/photos/astronaut.jpg")
    assert [(r["layer"], int(r["token"])) for r in rows] == [
        (layer.name, token) for layer in maps.layers for token in range(layer.num_tokens)
    ]
    row = rows[3]
    values = maps.at_image_size(0, 3)
    assert values[int(row["y"]), int(row["x"])] == values.max()
    assert float(row["peak"]) == pytest.approx(maps.times_uniform(0)[3].max(), abs=0.005)


def test_figure5(run, elsewhere, coffee):
    printed = run("figure5.py")
    assert printed.startswith("astronaut.jpg: tokens ")
    with Image.open("out/figure5.png") as one:
        size, colours = one.size, {c for _, c in one.convert("RGB").getcolors(1 << 24)}
    found = vtviz.segment(CLONE / "app/photos/astronaut.jpg")
    assert {found.palette[c] for c in np.unique(found.labels)} <= colours  # the legend has them as they are
    Image.fromarray(coffee[:300]).save("wide.png")
    printed = run("figure5.py", "wide.png", CLONE / "app/photos/astronaut.jpg", "--layer", "-1", "--out", "deep/er.png")
    with Image.open("deep/er.png") as two:
        assert two.width - size[0] < 20  # the colour bar's numbers differ
        assert two.height > size[1] + 54
    assert [line.split(":")[0] for line in printed.splitlines()[:2]] == ["wide.png", "astronaut.jpg"]


def test_figure5_names_tokens_by_their_classes(elsewhere, run, tiny_segmenter):
    photo = CLONE / "app/photos/cat.jpg"
    printed = run("figure5.py", photo, "--layer", "3", "--margin", "0")
    maps = vtviz.extract_tokens(photo, DEFAULT_SEGMENTER)
    named = token_classes(maps, vtviz.segment(photo).labels, layer=3, margin=0).names
    assert any(named)
    expected = ", ".join(f"{token} {name}" for token, name in enumerate(named) if name)
    assert printed.startswith(f"cat.jpg: tokens {expected}\n")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere", "no checkpoint named 'nowhere'"),
        (DEFAULT_MODEL, "labels need a segmentation model"),
    ],
)
def test_figure5_needs_a_segmentation_model(run, model, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("figure5.py", "--model", model, "--layer", "0")
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", capsys.readouterr().err)


def test_figure6(run, elsewhere):
    chosen = run("figure6.py", "--tokens", "3").split(" of ")[0]
    assert len(chosen.split(",")) == 3
    with Image.open("out/figure6.png") as narrow:
        few = narrow.size
    run("figure6.py", "--tokens", "all", "--layer", "-1", "--out", "deep/er/all.png")
    with Image.open("deep/er/all.png") as wide:
        assert wide.height == few[1]  # of the same photos
        pitch = (wide.width - few[0]) / (8 - 3)
        assert pitch == int(pitch) > 100
    assert run("figure6.py", "--tokens", "7,2").startswith("tokens 7, 2 of block0, 4 photos")
    with pytest.raises(SystemExit, match="2"):
        run("figure6.py", "--tokens", "2,16")


def test_figure6_chooses_the_tokens_that_are_least_alike(elsewhere):
    least_alike = runpy.run_path(str(CLONE / "examples/figure6.py"))["least_alike"]

    class Maps:  # of two photos: token 0 left, 1 almost left, 2 right, 3 top
        def __init__(self, height: int) -> None:
            left = np.repeat([[1.0, 1, 0, 0]], height, axis=0)
            almost = left + np.linspace(0, 0.1, 4 * height).reshape(height, 4)
            self.maps = np.stack([left, almost, 1 - left, np.flipud(np.tri(height, 4))])

        def times_uniform(self, layer: int) -> np.ndarray:
            assert layer == 0
            return self.maps

    photos = [Maps(4), Maps(6)]
    assert least_alike(photos, 2) == [0, 2]
    assert least_alike(photos, 3) == [0, 2, 3]
    assert least_alike(photos, 9) == [0, 1, 2, 3]


@pytest.mark.parametrize("script", ["extract.py", "figure5.py", "figure6.py", "token_numbers.py"])
def test_a_missing_photo_is_one_line(run, script, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(script, "nowhere.jpg")
    assert re.fullmatch(r"error: [^\n]*nowhere\.jpg[^\n]*\n", capsys.readouterr().err)


WRONG = {
    "extract.py": ["--out=/dev/null/x", "--model=onw"],
    "figure4.py": ["--out=/dev/null/x.png"],
    "figure5.py": ["--out=/dev/null/x.png", "--model=onw", "--layer=99"],
    "figure6.py": ["--out=/dev/null/x.png", "--model=onw", "--layer=99", "--tokens=x", "--tokens=99"],
    "token_numbers.py": ["--out=/dev/null/x", "--model=onw"],
}


TRIED = [(script, each) for script, options in WRONG.items() for each in options]


@pytest.mark.parametrize(("script", "option"), TRIED)
def test_a_wrong_option_of_an_example_is_one_line(run, script, option, capsys, elsewhere):
    with pytest.raises(SystemExit, match="2"):
        run(script, option)
    assert capsys.readouterr().err.splitlines()[-1].count("error: ") == 1


def test_the_notebook_runs(elsewhere):
    notebook = nbformat.read(CLONE / "examples/tokens.ipynb", as_version=4)
    nbformat.validate(notebook)
    for name in ("vtviz", "app"):  # it looks for the clone in the folders above
        Path(name).symlink_to(CLONE / name)
    Path("examples").mkdir()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    namespace: dict = {}
    for cell in cells:
        exec(compile(cell.source, cell.id, "exec"), namespace)
    assert "<table>" in namespace["maps"]._repr_html_()
    assert namespace["again"].model == namespace["maps"].model
