"""The command line's ``query``."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtviz.console import Crop, Device, Image, Json, Model, Size, name_files, open_model, output_folder, print_json
from vtviz.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from vtviz.explain.query import LayerQuery


def query(
    image: Image,
    at: Annotated[
        str | None, typer.Option(metavar="X,Y", help="A pixel of the image, from 0,0 in the upper left corner.")
    ] = None,
    box: Annotated[
        str | None, typer.Option(metavar="X0,Y0,X1,Y1", help="A region in its place, X1 and Y1 excluded.")
    ] = None,
    model: Model = None,
    size: Size = None,
    crop: Crop = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", parser=output_folder, help="Write DIR/query.png and DIR/query.json."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask about a place in the image: which tokens read it, and which tokens it reads.

    Every layer answers in × uniform: 1 is a token that looks everywhere alike, or a place that reads all tokens alike.

    [bold]Examples[/bold]

    vtviz query cat.jpg --at 165,105

    vtviz query street.png --box 120,180,240,270 --model vt_fpn_resnet18_camvid --out out
    """
    from vtviz.explain.query import query as ask
    from vtviz.explain.query_picture import save_query

    place: dict[str, Any] = {"at": _numbers("--at", at, "120,80"), "box": _numbers("--box", box, "0,0,120,80")}
    if (at is None) == (box is None):
        raise ConfigError("a query needs either --at X,Y or --box X0,Y0,X1,Y1")
    predictor = open_model(model, device)
    maps = predictor.extract(image, size=size, crop=crop)
    result = ask(maps, **place)
    written = {} if out is None else save_query(maps, result, out)
    if as_json:
        print_json(result.to_dict() | name_files(written))
    else:
        for layer, tokens in zip(result.layers, result.names, strict=True):
            typer.echo(_sentence(layer, tokens))


def _numbers(option: str, text: str | None, example: str) -> tuple[int, ...] | None:
    try:
        numbers = None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if numbers is not None and len(numbers) != example.count(",") + 1:
        raise ConfigError(f"{option} must be whole numbers such as {example}, got {text!r}")
    return numbers


def _sentence(layer: LayerQuery, names: list[str]) -> str:
    """The strongest three of either way, on one line."""
    parts = [f"read by {_strongest(layer.read_by.mean(axis=0), names[layer.kept :])}"]
    if layer.reads is not None:
        parts.append(f"reads {_strongest(layer.reads.mean(axis=0) * len(names), names)}")
    return f"{layer.name}: {'; '.join(parts)}"


def _strongest(values: np.ndarray, names: list[str]) -> str:
    best = (-values).argsort(kind="stable")[:3]
    return ", ".join(f"token {names[i]} ({values[i]:.1f}×)" for i in best)
