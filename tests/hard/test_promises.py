"""Every test that SECURITY.md names is there: a promise whose test was renamed has none."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py|…)(?:::(\w+))?`")
"""A test, or all of a file; `…` is the file named last."""
SLOW = "(*slow*)"
"""Behind one that only `pytest -m slow` runs."""


def named(text: str) -> list[tuple[str, str]]:
    """(file, test) of each that the table names, in its order; "" for all tests of a file."""
    pairs, file = [], ""
    for path, test in NAMED.findall(text):
        file = file if path == "…" else path
        pairs.append((file, test))
    return pairs


def names_of(file: str) -> set[str]:
    """Names of a file's tests, read and not imported; those in classes too."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    defined = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name for node in defined if node.name.startswith("test_")}


def slow_of(file: str) -> set[str]:
    """Names of those whose every case is slow."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    defined = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name for node in defined if "pytest.mark.slow" in map(ast.unparse, node.decorator_list)}


def table() -> list[str]:
    lines = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## Promises and their tests")[2].splitlines()
    return [line for line in lines if line.startswith("|")][2:]


def test_the_file_of_an_ellipsis_is_the_one_named_last():
    text = "`tests/a.py::test_one`, `…::test_two` and `tests/b/c.py`, then `…::test_three`, and `notes.py` is none"
    pairs = [
        ("tests/a.py", "test_one"),
        ("tests/a.py", "test_two"),
        ("tests/b/c.py", ""),
        ("tests/b/c.py", "test_three"),
    ]
    assert named(text) == pairs


def test_every_promise_names_a_test():
    assert len(table()) > 40
    for row in table():
        promise, tests = row.strip("|").split("|")[-2:]
        assert promise.strip()
        assert NAMED.search(tests), row
        assert not NAMED.sub("", tests).replace(SLOW, "").strip(" ,"), f"not understood: {row}"


@pytest.mark.parametrize("file", sorted({file for file, _ in named("\n".join(table()))}))
def test_every_test_that_is_named_is_there(file):
    wanted = {test for path, test in named("\n".join(table())) if path == file}
    assert (ROOT / file).is_file()
    assert names_of(file)
    assert wanted - {""} <= names_of(file), f"{file} has no {', '.join(sorted(wanted - {''} - names_of(file)))}"


def test_those_without_a_short_form_are_marked():
    told = {test for test, mark in re.findall(r"::(\w+)`( \(\*slow\*\))?", "\n".join(table())) if mark}
    assert told == {test for file, test in named("\n".join(table())) if test in slow_of(file)} != set()
