"""Lists that come with data sets."""

from __future__ import annotations

from pathlib import Path

from vtviz.errors import DataError


def read_text(file: Path) -> str:
    """A text file, UTF-8. Raises DataError where it is in another encoding."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}") from None
