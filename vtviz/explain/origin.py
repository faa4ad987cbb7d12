"""What an analysis of one image is of."""

from __future__ import annotations

from typing import Any, Protocol

from vtviz.geometry import Geometry


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
