"""Writes a model as a file for other programs, ONNX or ``torch.export``, and compares it with the model at once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from vtviz import graph
from vtviz.engines import check_engine, import_onnxruntime
from vtviz.errors import ConfigError, DataError
from vtviz.files import write
from vtviz.predictor import Predictor

FORMATS = {"onnx": ".onnx", "pt2": ".pt2"}
"""Format -> the ending of its files."""
CARD = "card.json"
"""Where a file keeps the model's card: this key of an ONNX file's metadata, this extra file of a ``.pt2``."""
TOLERANCE = 1e-3
"""Largest difference of an output from PyTorch's, as a share of that output's largest value."""
_SIZES = ((1, 2, 3), (2, 5, 4))
"""Images, rows and columns of cells that a written file is tried with."""


@dataclass(frozen=True)
class Exported:
    """A model's file.

    Attributes:
        path: of the file.
        format: "onnx" or "pt2".
        outputs: names of the outputs; see :data:`vtviz.graph.PARTS`.
        multiple: sides of images are multiples of so many pixels,
        sides: and from the one to the other in length.
        differences: output -> its largest difference from PyTorch's, as a share of its largest value.
    """

    path: Path
    format: str
    outputs: tuple[str, ...]
    multiple: int
    sides: tuple[int, int]
    differences: Mapping[str, float]


def export_model(predictor: Predictor, path: str | os.PathLike[str], form: str | None = None) -> Exported:
    """Write a predictor's model, token maps among its outputs, and compare the file with PyTorch before it is kept.

    The input is ``image``, (N, 3, h, w) float32, normalised; N, h and w are free within the bounds that the result
    states. The weights and the model's card are inside.

    Args:
        predictor: its model is exported in float32 and eval mode, and stays as it is.
        path: of the file; folders are made, an earlier file is replaced.
        form: "onnx" or "pt2" (``torch.export``); by default what the path's ending says.

    Raises:
        ConfigError: for an unknown format, or where a package is missing.
        DataError: where the file's outputs are not PyTorch's, or the disk refuses.
    """
    path = Path(path)
    form = _format(path, form)
    if form == "onnx":
        check_engine("onnxruntime")
    facts = predictor.card.to_dict() if predictor.card else {"name": predictor.name, "classes": predictor.classes}
    card = json.dumps({**facts, "preprocessing": asdict(predictor.preprocessing)}, ensure_ascii=False)
    frozen = graph.freeze(predictor.model)
    program = graph.trace(frozen)
    if form == "onnx":
        data = graph.to_onnx(program, {CARD: card})
        run = _onnx_runner(data)
    else:
        buffer = BytesIO()
        torch.export.save(program, buffer, extra_files={CARD: card})
        data = buffer.getvalue()
        run = _pt2_runner(data)
    differences = _compare(run, frozen)
    worst = max(differences, key=differences.__getitem__)
    if not differences[worst] <= TOLERANCE:
        raise DataError(
            f"{path}: not written: output {worst} differs by {differences[worst]:.1e} of its largest value, "
            f"{TOLERANCE:.0e} is allowed"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, data)
    except OSError as error:
        raise DataError(f"{path}: cannot write: {error.strerror or error}") from None
    unit = graph.cell(predictor.model)
    sides = (unit * graph.LEAST_CELLS, unit * graph.MOST_CELLS)
    return Exported(path, form, tuple(differences), unit, sides, differences)


def _format(path: Path, form: str | None) -> str:
    if form is None:
        form = path.suffix.lstrip(".")
    if form not in FORMATS:
        raise ConfigError(f"format must be onnx or pt2, got {form!r}")
    if path.suffix != FORMATS[form]:
        raise ConfigError(f"{path}: a file of format {form} must end in {FORMATS[form]}")
    return form


Runner = Callable[[Tensor], Mapping[str, Tensor]]


def _onnx_runner(data: bytes) -> Runner:
    session = import_onnxruntime().InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda x: dict(zip(names, map(torch.from_numpy, session.run(names, {graph.INPUT: x.numpy()})), strict=True))


def _pt2_runner(data: bytes) -> Runner:
    return torch.export.load(BytesIO(data)).module()


def _compare(run: Runner, frozen: graph.Graph) -> dict[str, float]:
    """Output -> its largest difference from the model's over a few inputs, as a share of its largest value."""
    random = torch.Generator().manual_seed(0)
    unit = graph.cell(frozen.model)
    largest: dict[str, float] = {}
    for count, rows, columns in _SIZES:
        image = torch.randn(count, frozen.model.config.in_channels, rows * unit, columns * unit, generator=random)  # type: ignore[union-attr, arg-type]
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            expected, got = frozen(image), run(image)
        if list(got) != list(expected):
            raise DataError(f"the file's outputs are {', '.join(got)}, the model's {', '.join(expected)}")
        for name, value in expected.items():
            if got[name].shape != value.shape:
                raise DataError(f"the file's {name} is {tuple(got[name].shape)}, the model's {tuple(value.shape)}")
            difference = float((got[name] - value).abs().max() / value.abs().max().clamp(min=1e-30))
            largest[name] = max(largest.get(name, 0.0), difference if math.isfinite(difference) else math.inf)
    return largest
