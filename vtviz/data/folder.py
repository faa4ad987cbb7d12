"""Image folders: one folder a class, reached by its id or its name, never by its position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vtviz.data import imagenet
from vtviz.data.classes import plain_name
from vtviz.errors import DataError, did_you_mean
from vtviz.suffixes import IMAGE_SUFFIXES

SPLIT_NAMES = ("train", "val", "valid", "validation", "test")
"""What splits are usually called."""
VAL_FRACTION = 0.1
"""Share of each class that becomes "val" where a folder has no splits of its own; at least one image of two or more."""


@dataclass(frozen=True)
class ClassList:
    """Classes in the order of a model's logits: ``ids`` as folders are called (e.g. WNIDs), ``names`` for people."""

    ids: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, folder: str) -> list[int]:
        """Positions of the classes that a folder may be called after: by id, else by name in any spelling.

        Case does not matter, nor whether words are joined by blanks, ``_`` or ``-``.
        """
        if folder in self.ids:
            return [self.ids.index(folder)]
        wanted = plain_name(folder)
        return [i for i, name in enumerate(self.names) if plain_name(name) == wanted]

    def index(self, folder: str) -> int:
        """Position of the class that a folder is called after.

        Raises:
            DataError: for a folder that is no class, or whose name two classes share.
        """
        found = self.find(folder)
        if not found:
            hint = did_you_mean(folder, (*self.ids, *self.names))
            raise DataError(f"folder {folder!r} is not one of the {len(self)} classes{hint}")
        if len(found) > 1:
            ids = ", ".join(self.ids[i] for i in found)
            raise DataError(f"folder {folder!r} names {len(found)} classes; call it by one of their ids: {ids}")
        return found[0]


@dataclass(frozen=True)
class ImageList:
    """Labelled image files: ``targets[i]`` is the index in ``classes`` of ``paths[i]``."""

    paths: tuple[Path, ...]
    targets: tuple[int, ...]
    classes: ClassList

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Sequence[int] | np.ndarray) -> ImageList:
        """The same list with only these positions, in this order."""
        return replace(
            self, paths=tuple(self.paths[i] for i in indices), targets=tuple(self.targets[i] for i in indices)
        )

    def limit(self, n: int | None, seed: int = 0) -> ImageList:
        """A random subset of at most ``n`` images, the same for the same seed; all of them for None."""
        if n is None or n >= len(self):
            return self
        if n < 1:
            raise DataError(f"a limit must be at least 1 image, got {n}")
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:n]))


def read_class_names(path: str | Path) -> dict[str, str]:
    """Read a text file of ``ID name`` lines (blank lines allowed) into ``{id: name}``.

    Raises:
        DataError: where the file is missing or a line has no name.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"no class list at {file}")
    names: dict[str, str] = {}
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a text file of 'ID name' lines: {error}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        key, _, name = line.strip().partition(" ")
        if not name:
            raise DataError(f"{file}, line {number}: expected 'ID name', got {line.strip()!r}")
        names[key] = name.strip()
    return names


def open_folder(
    root: str | Path,
    split: str = "train",
    *,
    classes: ClassList | None = None,
    names: Mapping[str, str] | None = None,
    seed: int = 0,
) -> ImageList:
    """List the images of ``root/split/CLASS/*``, or of ``root/CLASS/*`` split by a seed into "train" and "val".

    ImageNet may lie as Kaggle's copy of it does, with a flat "val"; see :mod:`vtviz.data.imagenet`.

    Args:
        root: the data set's folder.
        split: any folder below it; "train" or "val" where the folder has no splits.
        classes: the classes of a model, to which folders are matched by id or name; by default the folders themselves,
            sorted, are the classes.
        names: display names by folder name, for folders called by ids; by default those of ImageNet's own list, where
            it lies in ``root``. Not used with ``classes``.
        seed: of the split that is made where there is none.

    Raises:
        DataError: where the folder or the split is missing or empty, or a folder is none of ``classes``.
    """
    lists, base = imagenet.find(Path(root))
    if not base.is_dir():
        raise DataError(f"no data folder at {base}")
    imagenet.check_unpacked(base, split)
    splits = _split_folders(base)
    seeded = not splits and split in {"train", "val"}  # which a class may be called, too
    own_split = (base / split).is_dir() and not seeded
    top = base / split if own_split else base
    if not own_split and not seeded:
        raise DataError(f"{base} has no split {split!r}{did_you_mean(split, splits)}")
    groups = {p.name: _images(p) for p in _folders(top)}
    if not groups and split == "val":
        groups = imagenet.group_flat(lists, _images(top))
    if not groups:
        raise DataError(f"{top} has no class folders")
    if classes is None:
        names = names or imagenet.read_names(lists) or {}
        classes = ClassList(tuple(groups), tuple(names.get(i, i.replace("_", " ")) for i in groups))
    paths: list[Path] = []
    targets: list[int] = []
    for name, files in groups.items():
        index = classes.index(name)
        chosen = files if own_split else _seeded_part(files, split, seed)
        paths += chosen
        targets += [index] * len(chosen)
    if not paths and any(groups.values()):
        raise DataError(f"{top} has no class of two images or more, so that none is left for {split!r}")
    if not paths:
        raise DataError(f"{top} has {len(groups)} class folders but no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return ImageList(tuple(paths), tuple(targets), classes)


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _split_folders(base: Path) -> list[str]:
    """Names below ``base`` of its splits: of folders that hold folders and no images of their own, or are called so.

    One that only its name makes a split is a class where both it and a folder beside it hold images: VOC has a train.
    """
    folders = _folders(base)
    full = {p.name for p in folders if _has_images(p)}
    splits = {p.name for p in folders if p.name not in full and _folders(p)}
    named = {p.name for p in folders if p.name in SPLIT_NAMES}
    if not splits and len(named) == 1 and named < full:
        return []
    return sorted(splits | named)


def _has_images(folder: Path) -> bool:
    return any(p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() for p in folder.iterdir())


def _seeded_part(files: list[Path], split: str, seed: int) -> list[Path]:
    """One side of a split of a class's files that depends on the seed and the number of files alone."""
    order = np.random.default_rng(seed).permutation(len(files))
    share = max(round(len(files) * VAL_FRACTION), 1 if len(files) > 1 else 0)
    val = set(order[:share].tolist())
    return [f for i, f in enumerate(files) if (i in val) == (split == "val")]
