import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vtviz

PACKAGE = Path(vtviz.__file__).parent
ROOMS = (
    ("errors", "suffixes", "files", "pipeline"),
    ("models",),
    ("images", "geometry", "card", "statistics", "scores", "hooks", "footage"),
    ("checkpoints", "backbones"),
    ("data",),
    ("tokens",),
    ("segmentation", "graph"),
    ("engines",),
    ("predictor", "shortcuts"),
    (
        "render",
        "render_labels",
        "panels",
        "lettering",
        "drawing",
        "thumbnails",
        "film",
        "token_grid",
        "html_tables",
    ),
    ("export", "export_model", "video"),
    ("explain",),
    ("html_report",),
    ("console",),
    ("train",),
    (
        "cli",
        "segment_verb",
        "ablate_verb",
        "attribute_verb",
        "faithfulness_verb",
        "lineage_verb",
        "query_verb",
        "report_verb",
        "dissect_verb",
        "compare_verb",
        "video_verb",
        "export_verb",
    ),
)
"""Imports go from a later room to an earlier one, or stay. A new module needs a place here."""
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
SOURCES = [
    str(p.relative_to(PACKAGE)) for p in sorted(PACKAGE.rglob("*.py")) if not (p.parent == PACKAGE and "__" in p.name)
]


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    loaded = run("import sys, vtviz; dir(vtviz), vtviz.VtvizError; print(*sorted(sys.modules))").split()
    assert not {"torch", "torchvision", "gradio", "numpy", "PIL", "cv2", "plotly", "captum", "lightning"} & set(loaded)


def test_public_names_appear_on_first_use():
    assert (
        run("import sys, vtviz; print(vtviz.Predictor.__module__, 'gradio' in sys.modules)") == "vtviz.predictor False"
    )
    assert set(vtviz.__all__) <= set(dir(vtviz))
    for name in vtviz.__all__:
        assert getattr(vtviz, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'extract_token'"):
        vtviz.extract_token  # noqa: B018


def test_every_module_imports_without_the_optional_packages():
    code = """
import sys
for name in ("gradio", "plotly", "captum", "onnx", "onnxscript", "onnxruntime", "openvino"):
    sys.modules[name] = None  # importing it now fails
import pkgutil, importlib, vtviz
for module in pkgutil.walk_packages(vtviz.__path__, "vtviz."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert "app" not in sys.modules
"""
    run(code)


def imported_rooms(tree: ast.AST) -> set[str]:
    """Rooms of vtviz that a module imports anywhere, within functions too; "app" if it imports that."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "vtviz":
            names |= {f"vtviz.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    parts = [name.split(".") for name in names]
    modules = {m.name for m in pkgutil.iter_modules(vtviz.__path__)}
    rooms = {p[1] for p in parts if p[0] == "vtviz" and len(p) > 1}
    return (rooms & modules) | ({"app"} & {p[0] for p in parts})


@pytest.mark.parametrize("source", SOURCES)
def test_imports_go_down(source):
    room = source.split("/")[0].removesuffix(".py")
    imported = imported_rooms(ast.parse((PACKAGE / source).read_text()))
    assert imported | {room} <= set(LEVELS)
    assert [other for other in imported if LEVELS[other] > LEVELS[room]] == []


def test_contributors_are_told_the_rooms_in_this_order():
    rows = re.findall(r"^\| (`vtviz/.+?) \|", (PACKAGE.parent / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    told = [set(re.findall(r"`vtviz/([\w*]+)(?:\.py|/)`", row)) for row in rows]
    kept = [{"*_verb" if room.endswith("_verb") else room for room in rooms} for rooms in reversed(ROOMS)]
    assert told == kept
