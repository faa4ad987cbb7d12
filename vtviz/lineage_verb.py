"""The command line's ``lineage``."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtviz.console import Crop, Device, Image, Json, Model, Size, name_files, open_model, output_folder, print_json

if TYPE_CHECKING:
    from vtviz.explain.lineage import Lineage


def lineage(
    image: Image,
    model: Model = None,
    size: Size = None,
    crop: Crop = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", parser=output_folder, help="Write pictures and arrays to DIR."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Follow the tokens through the layers: which are kept, which are made, and from which filters.

    DIR gets

    - [bold]lineage.png[/bold] and [bold]lineage.svg[/bold], every token's map from layer to layer, and beside it
      which tokens it reads in the transformer; in the SVG the pointer lights up one line of descent;
    - [bold]lineage.json[/bold], tokens, links and the heads' mean of the attention;
    - [bold]attention.npz[/bold], the attention of every head.

    [bold]Examples[/bold]

    vtviz lineage cat.jpg --out out

    vtviz lineage street.png --model vt_fpn_resnet18_camvid --out out --json
    """
    from vtviz.explain.lineage import lineage as follow
    from vtviz.explain.lineage_picture import save_lineage

    predictor = open_model(model, device)
    maps = predictor.extract(image, size=size, crop=crop)
    result = follow(maps)
    written = {} if out is None else save_lineage(maps, result, out)
    if as_json:
        print_json(result.to_dict() | name_files(written))
    else:
        for line in _sentences(result):
            typer.echo(line)


def _sentences(result: Lineage) -> list[str]:
    """Each layer on one line."""
    if result.joint:
        count = sum(map(len, result.tokens))
        return [f"{', '.join(result.layers)}: {count} tokens from learned filters meet in one transformer"]
    lines = []
    for name, tokens in zip(result.layers, result.tokens, strict=True):
        parts = []
        for kind, what in (
            ("static", "from learned filters"),
            ("made", "from filters made of tokens {} of the layer before (T_a)"),
            ("kept", "kept from its tokens {} (T_b)"),
        ):
            of_kind = [token for token in tokens if token.kind == kind]
            origins = [token.origin for token in of_kind if token.origin is not None]
            span = f"{min(origins)} to {max(origins)}" if origins else ""
            parts += [f"{len(of_kind)} {what.format(span)}"] if of_kind else []
        lines.append(f"{name}: {', '.join(parts)}")
    return lines
