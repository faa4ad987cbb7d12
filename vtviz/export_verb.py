"""The command line's ``export``."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vtviz.console import Json, Model, open_model, output_file, print_json


def export(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", parser=output_file, help="Its name ends in .onnx or .pt2.")
    ],
    model: Model = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="F", help="onnx, or pt2 (torch.export). [dim]\\[as FILE ends][/dim]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model for other programs, with its token maps among the outputs.

    The file takes any number of images of 2 to 256 whole cells a side, as float32 [bold]image[/bold] (N, 3, h, w),
    normalised as the model's card says; the card is inside. It is compared with PyTorch before it is kept, output by
    output: what differs by more than 0.1 % of its largest value is not written.

    [bold]Examples[/bold]

    vtviz export --out vt_resnet18.onnx

    vtviz export --model vt_fpn_resnet18_camvid --format pt2 --out camvid.pt2 --json
    """
    from vtviz.export_model import export_model

    done = export_model(open_model(model, "cpu"), out, form)
    if as_json:
        print_json(asdict(done) | {"path": str(done.path)})
        return
    worst = max(done.differences, key=done.differences.__getitem__)
    typer.echo(
        f"{done.path}: {len(done.outputs)} outputs, for images with sides of {done.sides[0]} to {done.sides[1]} pixels,"
        f" multiples of {done.multiple}; largest difference from PyTorch: {done.differences[worst]:.1e} of the largest "
        f"value ({worst})"
    )
