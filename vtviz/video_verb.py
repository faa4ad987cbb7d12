"""The command line's ``video``."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vtviz.console import (
    Crop,
    Device,
    Dtype,
    Engine,
    Json,
    Model,
    Out,
    Size,
    counting,
    open_model,
    parse_scale,
    print_json,
)
from vtviz.errors import ConfigError


def video(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A video file (MP4, MOV, WebM, MKV, AVI) or a folder of frames.")
    ],
    out: Out,
    model: Model = None,
    layer: Annotated[int, typer.Option(metavar="N", help="From 0, negative from the end.")] = 0,
    tokens: Annotated[str | None, typer.Option(metavar="0,3,5", help="Of that layer. [dim]\\[all][/dim]")] = None,
    every: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="Look at one frame of N.")] = 1,
    frames: Annotated[
        int, typer.Option(min=1, max=100_000, metavar="N", help="Look at no more frames than this.")
    ] = 300,
    kind: Annotated[str, typer.Option("--format", metavar="F", help="webm, or webp (an animated picture).")] = "webm",
    fps: Annotated[
        float | None, typer.Option(metavar="N", help="Frames a second. [dim]\\[as it was; 10 for a folder][/dim]")
    ] = None,
    scale: Annotated[
        str, typer.Option(metavar="S", help="Colours: one scale for all frames (shared), or LOW,HIGH in x uniform.")
    ] = "shared",
    cmap: Annotated[str, typer.Option(metavar="NAME", help="As [bold]vtviz extract[/bold] takes it.")] = "jet",
    cell: Annotated[int, typer.Option(metavar="PX", help="Longer side of a map in the film.")] = 160,
    size: Size = None,
    crop: Crop = None,
    device: Device = None,
    engine: Engine = "torch",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Write a film of what each token looks at in a video or a folder of frames, and its arrays.

    Every token keeps its place and all frames one colour scale, so that what changes on the film changed in the maps.

    - [bold]NAME.webm[/bold] or [bold]NAME.webp[/bold], which browsers play;
    - [bold]NAME.npz[/bold], for each frame the maps (tokens, h, w), each summing to 1;
    - [bold]NAME.json[/bold], which says what they are.

    [bold]Examples[/bold]

    vtviz video street.mp4 --every 5 --out out

    vtviz video frames/ --model vt_fpn_resnet18_camvid --layer 2 --tokens 0,4 --format webp --out out
    """
    from vtviz.export import name_results
    from vtviz.video import write_film

    try:
        chosen = None if tokens is None else [int(part) for part in tokens.split(",")]
    except ValueError:
        raise ConfigError(f"--tokens must be whole numbers such as 0,3,5, got {tokens!r}") from None
    limits = parse_scale(scale)
    (name,) = name_results([Path(os.path.expanduser(source)).resolve()])  # noqa: PTH111 - pathlib raises for ~nobody
    predictor = open_model(model, device, engine=engine, dtype=dtype)
    with counting("Filming") as progress:
        film = write_film(
            predictor,
            source,
            out,
            name,
            layer=layer,
            tokens=chosen,
            every=every,
            most=frames,
            fps=fps,
            kind=kind,
            scale=limits,
            cmap=cmap,
            cell=cell,
            size=size,
            crop=crop,
            progress=progress,
        )
    if as_json:
        print_json(film.to_dict())
        return
    seen = film.frames[-1].number + 1
    rest = f", of {film.available}: --frames says how many" if film.available and film.available >= seen + every else ""
    low, high = film.scale
    typer.echo(
        f"{film.source} -> {next(iter(film.files.values()))}: {len(film.frames)} frames{rest}; "
        f"{len(film.tokens)} tokens of {film.layer}, colours {low:g} to {high:.3g} x uniform, {film.fps:.3g} frames/s"
    )
