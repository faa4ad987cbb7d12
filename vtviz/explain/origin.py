"""What an analysis of one image is of, and whether that is what a report is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vtviz.errors import DataError
from vtviz.geometry import Geometry

REPEATED = ("image", "model", "weights", "size", "input", "resized", "offset", "versions")
"""What analyses of an image say of themselves and the report says once."""
OF_MODEL = ("model", "weights", "versions")
"""Likewise of analyses of many images, which have sizes of their own."""
CALLED = {
    "weights": "weights are",
    "size": "image size is",
    "resized": "resized size is",
    "offset": "crop's offset is",
    "input": "input size is",
}


class Analysis(Protocol):
    """A finished analysis of one image."""

    @property
    def source(self) -> str | None:
        """Where the image came from, if from a file."""

    @property
    def model(self) -> str:
        """Name of the checkpoint."""

    @property
    def weights(self) -> str:
        """Sha256 of the checkpoint's weights; empty for a model that came from none."""

    @property
    def geometry(self) -> Geometry:
        """How the image became the model's input."""


def origin(found: Analysis) -> dict[str, Any]:
    """Image, model and crop as plain JSON data: what two analyses must share to be told of together."""
    sizes = found.geometry.to_dict()
    said = {"image": found.source, "model": found.model, "weights": found.weights}
    return {**said, "size": sizes.pop("original"), **sizes}


def check_origin(
    name: str, data: Mapping[str, Any], *, source: str | None, model: str, weights: str, geometry: Geometry
) -> None:
    """Refuse an analysis of another image or model, which a report would show as that of its own.

    Args:
        name: of the analysis, for people.
        data: as its ``to_dict`` gives it. What it does not say, or the report does not know, is not compared.
        source: the report's image, if from a file.
        model: the report's, by name.
        weights: sha256 of the model's weights; empty for a model that came from none.
        geometry: how the report's image became the model's input.

    Raises:
        DataError: naming the first thing that differs.
    """
    ours: dict[str, Any] = {"image": source, "model": model, "weights": weights}
    ours |= {"size" if name == "original" else name: pair for name, pair in geometry.to_dict().items()}
    sides = data.get("sides")  # of a comparison: with whatever else, one of both must be the report's
    told = [side for side in sides if isinstance(side, Mapping)] if isinstance(sides, Sequence) else []
    wrong = [_difference(each, ours) for each in told or [data]]
    if all(wrong):
        raise DataError(f"{name}: {wrong[0]}; make the analysis anew, or leave it out")


def _difference(data: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What an analysis says otherwise than the report, in words; empty where they agree."""
    for key in repeated(data):
        said, own = data.get(key), ours.get(key)
        if said and own and said != own and not (key == "image" and _same_file(said, own)):
            its = CALLED.get(key, f"{key} is")
            return f"its {its} {said!r:.200}, that of the report {own!r:.200}"
    return ""


def repeated(data: Mapping[str, Any]) -> Sequence[str]:
    """The keys with which an analysis says of what it is."""
    return REPEATED if "image" in data else OF_MODEL


def _same_file(said: Any, own: str) -> bool:
    """As the disk says, where both are there; otherwise by name alone, for folders are moved."""
    if not isinstance(said, str):
        return False
    try:
        return Path(said).samefile(own)
    except (OSError, ValueError):
        return Path(said).name == Path(own).name
