"""Tables that scripts write into Markdown pages, between two marks."""

import sys
from collections.abc import Callable
from pathlib import Path

from vtviz.errors import DataError


def renewed(page: str, marks: tuple[str, str], table: Callable[[], str], name: str) -> str:
    """The page called ``name`` with what stands between its marks made anew. Raises DataError where it lacks them."""
    begin, end = marks
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise DataError(f"{name} has lost the lines that enclose the table: {begin.strip()} {end.strip()}")
    return f"{before}{begin}\n{table()}\n{end}{after}"


def put(path: Path, new: str, *, check: bool, hint: str) -> None:
    """Write the page, or where ``check`` is asked for only leave: with ``hint`` and code 1 if it is out of date."""
    if check:
        sys.exit(hint if new != path.read_text(encoding="utf-8") else 0)
    path.write_text(new, encoding="utf-8")
    print(f"wrote {path}")
