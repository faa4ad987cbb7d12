"""The command line's ``faithfulness``."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtviz.console import (
    FAILED,
    MOST_SEED,
    Crop,
    Device,
    Json,
    Model,
    Size,
    complain,
    counting,
    folder_name,
    name_files,
    named_path,
    open_model,
    output_folder,
    print_json,
)
from vtviz.train.verbs import restart_for_malloc

if TYPE_CHECKING:
    from vtviz.explain.curves import Interval
    from vtviz.explain.faithfulness import Faithfulness


def faithfulness(
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR", parser=named_path, help="A folder of photos, class folders, or a set of images and masks."
        ),
    ],
    model: Model = None,
    split: Annotated[
        str, typer.Option(metavar="S", parser=folder_name, help="Part of the data that is looked at.")
    ] = "val",
    n: Annotated[
        int, typer.Option("--n", min=1, metavar="N", help="So many images, spread evenly over the data.")
    ] = 100,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method", metavar="NAME", help="As [bold]vtviz attribute[/bold] has it; repeatable. [dim]\\[all][/dim]"
        ),
    ] = None,
    randomize: Annotated[bool, typer.Option(help="Also make each map with random weights.")] = True,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=MOST_SEED, metavar="N", help="Of the choice, the random maps and weights, and the intervals."
        ),
    ] = 0,
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
            help="Write DIR/faithfulness.json, and all curves as .npz.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure whether maps point at what the model's answer hangs on, beside random maps and a centre prior.

    - [bold]deletion[/bold]: area under the probability of the first guess as the pixels that a map ranks highest are
      blurred away first; lower is better.
    - [bold]insertion[/bold]: the same as they come back into the blurred image; higher is better.
    - [bold]random weights[/bold]: rank correlation with the map of the same network untrained, another for each photo;
      0 is right. Maps that are the same everywhere rank nothing and are left out: "of 98" says how many were not.

    With 95 % intervals over the images. It takes minutes: try it with a few images first.

    [bold]Examples[/bold]

    vtviz faithfulness --data photos --n 20

    vtviz faithfulness --model vt_resnet18_in109 --data in109 --n 100 --out out --json
    """
    restart_for_malloc(device or "auto")
    from vtviz.data.photos import list_photos
    from vtviz.explain.faithfulness import measure_faithfulness, pick_images

    images = pick_images(list_photos(data, split), n, seed)
    predictor = open_model(model, device)
    with counting("Measuring") as progress:
        found = measure_faithfulness(
            predictor, images, methods or None, randomize=randomize, size=size, crop=crop, seed=seed, progress=progress
        )
    for error in found.skipped.values():
        complain(error)
    written = {} if out is None else found.save(out)
    if as_json:
        print_json(found.to_dict() | name_files(written))
    else:
        _print(found)
        for path in written.values():
            typer.echo(path)
    if found.skipped:
        raise typer.Exit(FAILED)


COLUMNS = {
    "deletion": "deletion\n(lower is better)",
    "insertion": "insertion\n(higher is better)",
    "insertion_over_centre": "insertion\nminus centre's",
    "randomization": "random weights\n(0 is right)",
}
"""Measure -> heading."""


def _print(found: Faithfulness) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(136, Console().width))  # let a narrow terminal wrap the figures
    typer.echo(f"{found.model} on {len(found.images)} images, 95 % intervals over them in brackets")
    grid = Table(box=None)
    grid.add_column("method", no_wrap=True)
    for heading in (*COLUMNS.values(), "seconds\na map"):
        grid.add_column(heading, justify="right", no_wrap=True)
    summary = found.summary()
    for each in found.methods:
        measures = summary[each.method]
        cells = (
            _cell(measures.get(name), len(found.images), signed=name not in {"deletion", "insertion"})
            for name in COLUMNS
        )
        grid.add_row(each.method, *cells, f"{each.seconds.mean():.2f}")
    console.print(grid, markup=False)


def _cell(interval: Interval | None, images: int, *, signed: bool) -> str:
    if interval is None:
        return ""
    sign = "+" if signed else ""
    span = "–" if interval.low is None else f"{interval.low:{sign}.3f}, {interval.high:{sign}.3f}"
    fewer = f" of {interval.n}" if interval.n < images else ""
    return f"{interval.mean:{sign}.3f} [{span}]{fewer}"
