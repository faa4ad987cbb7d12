"""ImageNet (ILSVRC 2012) as it is downloaded, and as Kaggle's copy lies on a disk.

========== ======================================================================================================
layout     files
========== ======================================================================================================
archives   :data:`ARCHIVES`: a tar of one ``WNID.tar`` a class, a tar of flat ``ILSVRC2012_val_00000001.JPEG``, …, and
           the development kit, which has the classes and the labels. ``python -m vtviz.data.imagenet DIR`` unpacks
           them, once, into ``DIR/train/WNID/*`` and ``DIR/val/WNID/*``, which any reader of image folders reads.
Kaggle's   ``ILSVRC/Data/CLS-LOC/{train/WNID/*,val/*}`` with a flat ``val``, ``LOC_val_solution.csv`` and
           ``LOC_synset_mapping.txt``. It is read as it is.
========== ======================================================================================================
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import re
import shutil
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from vtviz.data.text import read_text
from vtviz.errors import DataError, VtvizError
from vtviz.files import write

ARCHIVES = {
    "train": "ILSVRC2012_img_train.tar",
    "val": "ILSVRC2012_img_val.tar",
    "devkit": "ILSVRC2012_devkit_t12.tar.gz",
}
SPLITS = ("train", "val")
COMMAND = "python -m vtviz.data.imagenet"
NAMES, LABELS = "LOC_synset_mapping.txt", "LOC_val_solution.csv"
"""Kaggle's lists: ``WNID word, word, …`` a line, and of each image of val its WNID. The first is written here too."""
KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")
LARGEST = 100_000_000
"""Bytes of an image or of a file of the development kit; the largest of either has some 15 MB."""


@dataclass(frozen=True)
class Devkit:
    """What the development kit says of the classes.

    Attributes:
        words: WNID -> its synonyms, comma-separated.
        counts: WNID -> number of training images.
        val: WNID of each validation image, in the order of their numbers, from 1.
    """

    words: Mapping[str, str]
    counts: Mapping[str, int]
    val: Sequence[str]


def find(folder: Path) -> tuple[Path, Path]:
    """Where a data set's lists and where its splits lie: below ``folder`` both, but for Kaggle's copy."""
    if (folder / KAGGLE).is_dir():
        return folder, folder / KAGGLE
    if folder.absolute().parts[-len(KAGGLE.parts) :] == KAGGLE.parts:
        return folder.absolute().parents[len(KAGGLE.parts) - 1], folder
    return folder, folder


def check_unpacked(folder: Path, split: str) -> None:
    """Raise DataError where a split lies in its archive still, or is unpacked in part."""
    if split in SPLITS and not (folder / split).is_dir():
        if _staging(folder, split).is_dir():
            raise DataError(f"{folder}: ImageNet's {split} is half unpacked; {COMMAND} goes on with it")
        if (folder / ARCHIVES[split]).is_file():
            raise DataError(f"{folder}: ImageNet's {split} is in its archive still; unpack it: {COMMAND} {folder}")


def read_names(lists: Path) -> dict[str, str] | None:
    """WNID -> the first of its synonyms; None where there is no list of them.

    Raises:
        DataError: where the list is no text.
    """
    file = lists / NAMES
    if not file.is_file():
        return None
    lines = [line.partition(" ") for line in read_text(file).splitlines() if line.strip()]
    return {wnid: words.split(",")[0].strip() for wnid, _, words in lines}


def group_flat(lists: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The images of Kaggle's flat val by WNID; nothing where there is no list of their labels.

    Raises:
        DataError: for an image without a label, a label without its image, and a list that is no text.
    """
    if not (lists / LABELS).is_file():
        return {}
    rows = csv.reader(read_text(lists / LABELS).splitlines())
    next(rows, None)
    labels = {row[0]: row[1].split()[0] for row in rows if len(row) > 1 and row[1].strip()}
    groups: dict[str, list[Path]] = {}
    for file in files:
        if file.stem not in labels:
            raise DataError(f"{file} has no label in {LABELS}")
        groups.setdefault(labels.pop(file.stem), []).append(file)
    if labels:
        raise DataError(f"{lists / LABELS} labels {len(labels)} images that are not there, first {min(labels)!r}")
    return dict(sorted(groups.items()))


def unpack(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    splits: Sequence[str] = SPLITS,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Unpack ImageNet's archives into image folders, and write the classes' names beside them.

    A split gets its name only when it is whole. What was stopped goes on where it was, and what is there is left as it
    is, so that the archives may be deleted afterwards.

    Args:
        folder: where :data:`ARCHIVES` lie.
        out: where ``train/WNID/*.JPEG`` and ``val/WNID/*.JPEG`` go; by default there too.
        splits: "train", "val" or both.
        progress: called with (split, bytes of its archive done, bytes in all).

    Returns:
        ``out``, to train on.

    Raises:
        DataError: where an archive is missing, damaged, or not what it should be, or the disk refuses.
    """
    source = Path(folder)
    target = Path(out or folder)
    todo = [split for split in splits if not (target / split).is_dir()]
    for name in ("devkit", *todo):
        if not (source / ARCHIVES[name]).is_file():
            raise DataError(f"{source} has no {ARCHIVES[name]}; download it from image-net.org")
    kit = read_devkit(source / ARCHIVES["devkit"])
    try:
        target.mkdir(parents=True, exist_ok=True)
        _write_names(target / NAMES, kit)
        for split in todo:
            staging = _staging(target, split)
            with _reading(source / ARCHIVES[split]) as (tar, size):
                images = _train_images(tar, kit) if split == "train" else _val_images(tar, kit)
                wanted = kit.counts if split == "train" else Counter(kit.val)
                for done in _write_images(staging, images, wanted):
                    if progress is not None:
                        progress(split, done, size)
            staging.rename(target / split)
    except OSError as error:
        raise DataError(f"{target}: {error.strerror or error}; the same command goes on from there") from None
    return target


def read_devkit(path: Path) -> Devkit:
    """Read the archive of the development kit. Needs SciPy, for the classes are in a MATLAB file.

    Raises:
        DataError: where it is damaged, or a label has no class.
    """
    try:
        from scipy.io import loadmat  # noqa: PLC0415 - nothing else needs it
    except ImportError:
        raise DataError(f"{path.name} holds a MATLAB file, which SciPy reads: pip install scipy") from None
    with _reading(path) as (tar, _):
        files = {PurePosixPath(m.name).name: tar.extractfile(m) for m in tar.getmembers() if m.isreg()}
        try:
            synsets = loadmat(io.BytesIO(_content(files, "meta.mat")), squeeze_me=True)["synsets"]
            leaves = synsets[synsets["num_children"] == 0]  # the others are what WordNet puts above the 1000 classes
            wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in leaves}
            words = {str(s["WNID"]): str(s["words"]) for s in leaves}
            counts = {str(s["WNID"]): int(s["num_train_images"]) for s in leaves}
            labels = [int(n) for n in _content(files, "ILSVRC2012_validation_ground_truth.txt").split()]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise DataError(f"{path} is not ImageNet's development kit: {error}") from None
    if unknown := sorted(set(labels) - set(wnids)):
        raise DataError(f"{path}: label {unknown[0]} is none of the {len(wnids)} classes")
    return Devkit(words, counts, [wnids[label] for label in labels])


def _content(files: Mapping[str, IO[bytes] | None], name: str) -> bytes:
    file = files.get(name)
    if file is None:
        raise ValueError(f"it has no {name}")
    content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{name} has more than {LARGEST:,} bytes")
    return content


@contextmanager
def _reading(path: Path) -> Iterator[tuple[tarfile.TarFile, int]]:
    """An archive and its size in bytes; whatever shows that it is damaged is one line."""
    try:
        with tarfile.open(path) as tar:
            yield tar, path.stat().st_size
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut off ({error}); download it again") from None


def _files(tar: tarfile.TarFile, pattern: str) -> Iterator[tuple[re.Match[str], tarfile.TarInfo, IO[bytes]]]:
    """An archive's files, by the last part of their names, which must match: no other path is ever written to."""
    for member in tar:
        if member.isdir():
            continue
        named = re.fullmatch(pattern, PurePosixPath(member.name).name)
        content = tar.extractfile(member) if member.isreg() else None
        if named is None or content is None:
            raise DataError(f"{tar.name!r}: {member.name[:80]!r} does not belong there, expected {pattern}")
        yield named, member, content


_Image = tuple[str, str, int, int, IO[bytes]]
"""WNID, file name, size, position in the archive, content."""


def _train_images(tar: tarfile.TarFile, kit: Devkit) -> Iterator[_Image]:
    for named, part, content in _files(tar, r"(n\d{8})\.tar"):
        wnid = named[1]
        if wnid not in kit.counts:
            raise DataError(f"{tar.name!r}: {named[0]} is none of the {len(kit.counts)} classes")
        with tarfile.open(named[0], fileobj=content) as inner:
            for image, member, data in _files(inner, rf"{wnid}_\d+\.JPEG"):
                yield wnid, image[0], member.size, part.offset_data + member.offset_data, data


def _val_images(tar: tarfile.TarFile, kit: Devkit) -> Iterator[_Image]:
    for named, member, data in _files(tar, r"ILSVRC2012_val_(\d{8})\.JPEG"):
        number = int(named[1])
        if not 1 <= number <= len(kit.val):
            raise DataError(f"{tar.name!r}: {named[0]} has no label, there are {len(kit.val)}")
        yield kit.val[number - 1], named[0], member.size, member.offset_data, data


def _write_images(folder: Path, images: Iterator[_Image], wanted: Mapping[str, int]) -> Iterator[int]:
    """Write ``folder/WNID/NAME``, but for what is there in full, and compare the numbers with those wanted.

    Yields how many bytes of the archive are done.
    """
    found: Counter[str] = Counter()
    for wnid, name, size, position, content in images:
        if size > LARGEST:  # a sparse file says so in a few bytes, and would fill the disk
            raise DataError(f"{name} unpacks to {size:,} bytes; an image has at most {LARGEST:,}")
        file = folder / wnid / name
        if wnid not in found:
            file.parent.mkdir(parents=True, exist_ok=True)
        found[wnid] += 1
        if not (file.is_file() and file.stat().st_size == size):
            with file.open("wb") as handle:
                shutil.copyfileobj(content, handle)
        yield position + size
    if wrong := sorted(wnid for wnid in wanted if found[wnid] != wanted[wnid]):
        first = f"first {wrong[0]} with {found[wrong[0]]} of {wanted[wrong[0]]}"
        raise DataError(f"{folder}: {len(wrong)} classes have other numbers of images than the devkit says, {first}")


def _write_names(file: Path, kit: Devkit) -> None:
    write(file, "".join(f"{wnid} {kit.words[wnid]}\n" for wnid in sorted(kit.words)))


def _staging(folder: Path, split: str) -> Path:
    return folder / f".{split}.unpacking"


def main(args: Sequence[str] | None = None) -> None:
    """The command: unpack with a progress bar, and say what to do next."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Unpack ImageNet's archives, once, to train on.")
    parser.add_argument("folder", metavar="DIR", help=f"folder that holds {', '.join(ARCHIVES.values())}")
    parser.add_argument("--out", metavar="DIR", help="where train/ and val/ go (default: the same folder)")
    parser.add_argument("--split", choices=SPLITS, help="only this one, which then needs no archive of the other")
    options = parser.parse_args(args)
    with tqdm(unit="B", unit_scale=True, leave=False) as bar:

        def show(split: str, done: int, total: int) -> None:
            if bar.desc != f"{split}: ":
                bar.reset(total)
                bar.set_description(split)
            bar.update(done - bar.n)

        splits = [options.split] if options.split else SPLITS
        out = unpack(options.folder, options.out, splits=splits, progress=show)
    print(f"unpacked: vtviz train --recipe imagenet_paper --data {out} --out RUN")


if __name__ == "__main__":
    try:
        main()
    except VtvizError as error:
        sys.exit(f"error: {error}")
