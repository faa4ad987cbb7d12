"""The data sets that the page may read: those below one folder, and nothing else on the machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vtviz.data.segmentation import find_layouts
from vtviz.errors import ConfigError, DataError, did_you_mean
from vtviz.suffixes import IMAGE_SUFFIXES

DEPTH = 2
"""How far below the root data sets are looked for."""


class DataRoot:
    """Data sets below ``root`` by their path below it: those to train a classifier on, or others by what ``suits``.

    Raises:
        DataError: where ``root`` is no folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().resolve()
        if not self.root.is_dir():
            raise DataError(f"no folder at {root}")

    def names(self, suits: Callable[[Path], bool] | None = None) -> list[str]:
        """What can be chosen, sorted; "." where the root is a data set itself."""
        found = self._find(self.root, DEPTH, suits or is_data_set)
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def path(self, name: str, suits: Callable[[Path], bool] | None = None) -> Path:
        """The folder of a data set, as chosen in a browser.

        Raises:
            ConfigError: for a name that is not offered.
            DataError: where something in it is a link to outside of the root, or cannot be read.
        """
        names = self.names(suits)
        if name not in names:
            raise ConfigError(f"there is no data set {str(name)[:80]!r}{did_you_mean(str(name), names)}")
        folder = (self.root / name).resolve()
        try:
            for link in _links(folder, {folder}):
                if not self._holds(link):
                    raise DataError(f"{link.relative_to(self.root)} is a link to outside of the data root")
        except OSError as error:
            where = Path(error.filename or folder).relative_to(self.root)
            raise DataError(f"{where} cannot be read: {error.strerror}") from None
        return folder

    def file(self, name: str, file: str) -> Path | None:
        """A file by its path below a data set that is offered; None where there is none, or it is a way out."""
        path = self.root / name / file
        try:
            return path if path.is_file() and self._holds(path) else None
        except (OSError, ValueError):  # a name that no file can have
            return None

    def _find(self, folder: Path, depth: int, suits: Callable[[Path], bool]) -> Iterator[Path]:
        try:
            suited = suits(folder)
        except OSError:  # not ours to look into, as a disk's lost+found
            return
        if suited:
            yield folder
        elif depth > 0:
            for child in _subfolders(folder):
                if self._holds(child):
                    yield from self._find(child, depth - 1, suits)

    def _holds(self, path: Path) -> bool:
        """Whether a path, all links followed, lies below the root."""
        return path.resolve().is_relative_to(self.root)


def is_data_set(folder: Path) -> bool:
    """Whether a folder looks like ``train/CLASS/*`` or ``CLASS/*``, two classes at least, without listing them all."""
    top = folder / "train" if (folder / "train").is_dir() else folder
    if (top / "masks").is_dir():
        return False  # for segmentation
    classes = 0
    for child in _subfolders(top):
        classes += _has_image(child)
        if classes == 2:
            return True
    return False


def has_masks(folder: Path) -> bool:
    """Whether a folder looks like a data set for segmentation."""
    return bool(find_layouts(folder, "val"))


def has_photos(folder: Path) -> bool:
    """Whether a folder looks like a data set of any kind, or holds photos."""
    return is_data_set(folder) or has_masks(folder) or _has_image(folder)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:  # not ours to read
        return []


def _has_image(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES for entry in entries)  # noqa: PTH122 - a Path for each of 1300 files takes longer
    except OSError:
        return False


def _links(folder: Path, entered: set[Path]) -> Iterator[Path]:
    """Every symbolic link in a folder, and then those in the folder that it leads to, once each."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                yield path
                path = path.resolve()
                if not path.is_dir() or path in entered:
                    continue
                entered.add(path)
            elif not entry.is_dir():
                continue
            yield from _links(path, entered)
