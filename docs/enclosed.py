"""Tables that scripts write into Markdown pages, between two marks."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vtviz.errors import DataError


def renewed(page: str, marks: tuple[str, str], table: Callable[[], str], name: str) -> str:
    """The page called ``name`` with what stands between its marks made anew. Raises DataError where it lacks them."""
    begin, end = marks
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise DataError(f"{name} has lost the lines that enclose the table: {begin.strip()} {end.strip()}")
    return f"{before}{begin}\n{table()}\n{end}{after}"


def main(
    page: Path,
    results: Path,
    collect: Callable[[Sequence[Path]], tuple[Any, str]],
    renewed: Callable[[str, Any], str],
    paths: tuple[str, str],
) -> None:
    """The command of a page whose table is made from a file of results, which is collected now and then.

    Args:
        page: in docs/.
        results: the file, JSON.
        collect: reads the paths of the verb ``collect``: the results, and what to say of them.
        renewed: the page's text and the results -> its new text.
        paths: how the help calls one of those paths, and what they are.
    """
    parser = argparse.ArgumentParser(description=f"Write the tables of docs/{page.name}.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a table is out of date")
    verbs = parser.add_subparsers(dest="verb")
    reading = verbs.add_parser("collect", help=f"read results into {results.name} first")
    reading.add_argument("paths", nargs="+", type=Path, metavar=paths[0], help=paths[1])
    options = parser.parse_args()
    if options.verb == "collect":
        found, remark = collect(options.paths)
        results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {results}{remark}")
    new = renewed(page.read_text(encoding="utf-8"), json.loads(results.read_text(encoding="utf-8")))
    put(page, new, check=options.check, hint=f"docs/{page.name}: run python docs/{Path(sys.argv[0]).name}")


def put(path: Path, new: str, *, check: bool, hint: str) -> None:
    """Write the page, or where ``check`` is asked for only leave: with ``hint`` and code 1 if it is out of date."""
    if check:
        sys.exit(hint if new != path.read_text(encoding="utf-8") else 0)
    path.write_text(new, encoding="utf-8")
    print(f"wrote {path}")
