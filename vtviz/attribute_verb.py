"""The command line's ``attribute``."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtviz.console import (
    Crop,
    Device,
    Image,
    Json,
    Model,
    Size,
    counting,
    name_files,
    open_model,
    output_folder,
    print_json,
)

if TYPE_CHECKING:
    from vtviz.explain.attribution import Attributions


def attribute(
    image: Image,
    model: Model = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--class", metavar="C", help="Explain this class, by name or index. [dim]\\[the first guess][/dim]"
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="token_integrated_gradients, gradient_x_token, integrated_gradients, grad_cam, occlusion; repeatable."
            " [dim]\\[all][/dim]",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="Points of the path of integrated gradients.")
    ] = 20,
    size: Size = None,
    crop: Crop = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            parser=output_folder,
            help="Write DIR/attributions.png, attributions.npz and .json.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask which pixels speak for a class, by the tokens and by methods that know nothing of tokens.

    What a token adds to the class's score, times where it looks, summed over the tokens, makes the token maps.
    Integrated gradients must add up to what the score rose by; how far they are off is said. For segmentation the score
    is the sum of the class's logits over the pixels predicted as it.

    [bold]Examples[/bold]

    vtviz attribute dog.jpg --out out

    vtviz attribute dog.jpg --class "golden retriever" --method grad_cam --method gradient_x_token --json
    """
    from vtviz.data.classes import find_class
    from vtviz.explain.attribution import attribute as run
    from vtviz.explain.attribution_picture import save_attributions

    predictor = open_model(model, device)
    with counting("Attributing") as progress:
        found = run(
            predictor,
            image,
            methods or None,
            target=None if target is None else find_class(target, predictor.classes),
            steps=steps,
            size=size,
            crop=crop,
            progress=progress,
        )
    written = {} if out is None else save_attributions(found, out)
    if as_json:
        print_json(found.to_dict() | name_files(written))
    else:
        _print(found)
        for path in written.values():
            typer.echo(path)


def _print(found: Attributions) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(100, Console().width))
    typer.echo(f"{found.model}: what speaks for {found.label} ({found.probability:.1%})")
    grid = Table(box=None)
    grid.add_column("method")
    for heading in ("adds up to", "should", "seconds", *(str(i + 1) for i in range(len(found.items)))):
        grid.add_column(heading, justify="right")
    for index, item in enumerate(found.items):
        sums = ("" if value is None else f"{value:.3f}" for value in (item.total, item.difference))
        agreement = (f"{value:.2f}" for value in found.agreement[index].tolist())
        grid.add_row(f"{index + 1} {item.method}", *sums, f"{item.seconds:.1f}", *agreement)
    console.print(grid)
    typer.echo("1, 2, ...: rank correlation of the maps")
    for item in found.items:
        for layer, tokens in (item.tokens or {}).items():
            best = (-tokens).argsort(kind="stable")[:3].tolist()
            typer.echo(f"{item.method}, {layer}: " + ", ".join(f"token {i} {tokens[i]:+.2f}" for i in best))
