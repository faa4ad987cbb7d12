"""Keeping an atlas: ``NAME.atlas.json`` beside the checkpoint ``NAME.safetensors``, the one way in and out of the disk.

Nothing that is read is trusted: every field is checked for its kind, size and range.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vtviz import checkpoints
from vtviz.errors import CheckpointError
from vtviz.explain.atlas import FORMAT, Atlas, ClassOverlap, LayerAtlas, Peak, Seen, TokenMeans
from vtviz.export import publish, staged

SUFFIX = ".atlas.json"
MAX_BYTES = 16_000_000
"""Largest atlas that is written or read: that of 128 tokens with a thousand photos each."""
_MOST = 4096
"""Most layers, tokens, classes or photos of a token that a file may claim."""


def save_atlas(path: str | os.PathLike[str], atlas: Atlas) -> Path:
    """Write an atlas as JSON, in one step: a reader sees the old file or the new one.

    Returns:
        The path.

    Raises:
        CheckpointError: where it would be larger than :data:`MAX_BYTES`.
        DataError: where the disk refuses.
    """
    path = Path(path)
    text = json.dumps(atlas.to_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    text = text.replace('{"name":', '\n{"name":')  # a line for each layer, for those who look at differences
    data = text.encode("utf-8", "backslashreplace")  # a file's name need not be UTF-8
    if len(data) > MAX_BYTES:
        raise CheckpointError(
            f"{path}: an atlas of {len(data):,} bytes is more than {MAX_BYTES:,}: keep fewer photos a token"
        )
    with staged(path.parent) as stage:
        (stage / path.name).write_bytes(data)
        publish(stage, path.parent, [path.name])
    return path


def read_atlas(path: str | os.PathLike[str]) -> Atlas:
    """Read and check the atlas in a file.

    Raises:
        CheckpointError: where it cannot be read, is too large, or is no atlas; see :func:`parse_atlas`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"{path}: more than the {MAX_BYTES:,} bytes that an atlas may have")
    try:
        return parse_atlas(json.loads(data))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, CheckpointError) else "not JSON"
        raise CheckpointError(f"{path}: {reason}") from None


def find_atlas(source: str | os.PathLike[str]) -> Path:
    """Where the atlas of a checkpoint lies, or would lie: beside its weights.

    Args:
        source: as :func:`vtviz.checkpoints.find` takes it.

    Raises:
        CheckpointError: where there is no such checkpoint.
    """
    return checkpoints.find(source).with_suffix(SUFFIX)


def load_atlas(source: str | os.PathLike[str]) -> Atlas:
    """The atlas beside a checkpoint.

    Args:
        source: as :func:`vtviz.checkpoints.find` takes it.

    Raises:
        CheckpointError: where there is none, it is damaged, or it was made with other weights.
    """
    path = find_atlas(source)
    if not path.is_file():
        raise CheckpointError(f"no atlas at {path}; vtviz dissect makes one")
    atlas, card = read_atlas(path), checkpoints.read_card(checkpoints.find(source))
    if atlas.weights != card.sha256:
        raise CheckpointError(f"{path}: made with other weights than {card.name} has now; make it anew: vtviz dissect")
    return atlas


def parse_atlas(data: Any) -> Atlas:
    """An atlas from the data of :meth:`Atlas.to_dict`, of any origin.

    Raises:
        CheckpointError: in one line, for what no atlas has: another format, a field that is missing or of the wrong
            kind or size, a number that is not finite or out of its range, or a file name that leads out of the data
            folder.
    """
    reader = _Reader(data, "atlas")
    if (stated := reader.text("format")) != FORMAT:
        raise CheckpointError(f"atlas: expected the format {FORMAT!r}, got {stated[:40]!r}")
    masks = None if reader.get("masks") is None else _seen_from(reader.part("masks"))
    layers = tuple(_layer_from(part, masks) for part in reader.parts("layers"))
    if not layers:
        raise CheckpointError("atlas: has no layers")
    return Atlas(
        model=reader.text("model"),
        weights=reader.text("weights"),
        data=_seen_from(reader.part("data")),
        masks=masks,
        skipped=reader.count("skipped"),
        size=reader.count("size"),
        threshold=float(reader.array("threshold", (), 0, math.inf)),
        seed=reader.count("seed"),
        layers=layers,
    )


class _Reader:
    """A JSON object of unknown origin, read field by field."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, Mapping):
            raise CheckpointError(f"{where}: must be a JSON object, got {type(data).__name__}")
        self.data, self.where = data, where

    def get(self, name: str) -> Any:
        if name not in self.data:
            raise CheckpointError(f"{self.where}: lacks the field {name!r}")
        return self.data[name]

    def wrong(self, name: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {name} must be {wanted}, got {str(self.get(name))[:60]!r}")

    def text(self, name: str) -> str:
        if not isinstance(self.get(name), str):
            raise self.wrong(name, "text")
        return self.get(name)

    def count(self, name: str) -> int:
        if type(self.get(name)) is not int or self.get(name) < 0:
            raise self.wrong(name, "a whole number from 0")
        return self.get(name)

    def items(self, name: str) -> list[Any]:
        return _list(self.get(name), f"{self.where}: {name}")

    def part(self, name: str) -> _Reader:
        return _Reader(self.get(name), f"{self.where}: {name}")

    def parts(self, name: str) -> list[_Reader]:
        return [_Reader(item, f"{self.where}: {name}[{i}]") for i, item in enumerate(self.items(name))]

    def array(self, name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
        wanted = f"numbers of shape {shape} from {low:g} to {high:g}"
        try:
            array = np.asarray(self.get(name))
        except ValueError:  # lists of different lengths
            raise self.wrong(name, wanted) from None
        if array.shape != shape or (array.size and array.dtype.kind not in "iuf"):
            raise self.wrong(name, wanted)
        array = array.astype(np.float64)
        if not (np.isfinite(array) & (array >= low) & (array <= high)).all():
            raise self.wrong(name, wanted)
        return array


def _seen_from(reader: _Reader) -> Seen:
    classes = tuple(reader.items("classes"))
    if not all(isinstance(name, str) for name in classes):
        raise reader.wrong("classes", "a list of names")
    share = tuple(reader.array("share", (len(classes),), 0, 1).tolist())
    return Seen(reader.text("folder"), reader.text("split"), reader.count("n"), classes, share)


def _layer_from(reader: _Reader, masks: Seen | None) -> LayerAtlas:
    where = f"{reader.where}: photos"
    photos = tuple(tuple(_peak_from(peak, where) for peak in _list(t, where)) for t in reader.items("photos"))
    count = len(photos)

    def means(name: str) -> TokenMeans:
        part = reader.part(name)
        return TokenMeans(
            peak=part.array("peak", (count,), 0, math.inf),
            entropy=part.array("entropy", (count,), 0, 1),
            overlap=part.array("overlap", (count, count), 0, 1),
        )

    classes = None
    if masks is not None:
        part, shape = reader.part("classes"), (count, len(masks.classes))
        classes = ClassOverlap(*(part.array(name, shape, 0, 1) for name in ("iou", "untrained", "shuffled")))
    return LayerAtlas(
        name=reader.text("name"),
        trained=means("trained"),
        untrained=means("untrained"),
        shuffled_overlap=reader.array("shuffled_overlap", (count, count), 0, 1),
        photos=photos,
        classes=classes,
    )


def _list(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list) or len(data) > _MOST:
        raise CheckpointError(f"{where} must be a list of at most {_MOST}, got {str(data)[:60]!r}")
    return data


def _peak_from(data: Any, where: str) -> Peak:
    numbers = data[1:] if isinstance(data, list) and len(data) == 4 and isinstance(data[0], str) else ()
    limits = (1e9, 1, 1)
    if not numbers or not all(type(n) in {int, float} and 0 <= n <= m for n, m in zip(numbers, limits, strict=True)):
        raise CheckpointError(f"{where} must hold [file, peak, y, x], y and x from 0 to 1, got {str(data)[:60]!r}")
    file = data[0]
    steps = re.split(r"[/\\]", file)  # as any system may read it
    if ".." in steps or not steps[0] or re.match("[A-Za-z]:", file) or "\0" in file:
        raise CheckpointError(f"{where} must lie below the data folder, got {file[:60]!r}")
    return Peak(file, *map(float, numbers))
