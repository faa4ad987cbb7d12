"""Writing files so that nothing is lost: whoever looks, or pulls the plug, finds the old file or the new one, whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import BinaryIO

from vtviz.errors import ConfigError

_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]+\.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of ``path`` at the end of the block; an error leaves the old one.

    It lies beside ``path`` meanwhile, hidden; only a process that is killed leaves it there, for :func:`sweep`.

    Raises:
        OSError: where the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_ident():x}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, data: bytes | str) -> None:
    """Replace a whole file at once, text as UTF-8. Raises OSError as :func:`replacing` does."""
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def spare(images: Iterable[str | os.PathLike[str] | None], files: Iterable[Path]) -> None:
    """Refuse to write over what was looked at.

    Args:
        images: where they came from; None for one that came from no file.
        files: that are to be written or removed.

    Raises:
        ConfigError: where one of the files is one of the images.
    """
    kept = {os.path.realpath(image) for image in images if image is not None and "\0" not in os.fspath(image)}
    for file in files:
        if os.path.realpath(file) in kept:
            raise ConfigError(f"{file} is one of the images and would be lost: choose another folder")


def sweep(folder: Path) -> None:
    """Delete what killed processes left half written in a folder, if there is one, that nobody else writes into now.

    Raises:
        OSError: where the disk refuses.
    """
    if folder.is_dir():
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
