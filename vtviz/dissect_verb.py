"""The command line's ``dissect``."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from vtviz.console import (
    MOST_SEED,
    Device,
    Dtype,
    Engine,
    Json,
    Model,
    Out,
    Size,
    counting,
    folder_name,
    named_path,
    open_model,
    print_json,
)
from vtviz.errors import ConfigError

if TYPE_CHECKING:
    from vtviz.explain.atlas import Atlas


def dissect(
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR", parser=named_path, help="A folder of photos, class folders, or a set of images and masks."
        ),
    ],
    out: Out,
    model: Model = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=named_path,
            help="A set of images and masks, the same or another: which class is a token?",
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="S", parser=folder_name, help="Part of the data that is looked at.")
    ] = "val",
    n: Annotated[
        int | None,
        typer.Option("--n", min=2, metavar="N", help="A random choice of so many photos. [dim]\\[all][/dim]"),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, metavar="X", help="A token's region is where its map lies above this, in x uniform.")
    ] = 1.0,
    photos: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="Photos kept of those that a token peaks on most.")
    ] = 12,
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, metavar="N", help="Of the choice, the order and the untrained model.")
    ] = 0,
    size: Size = None,
    device: Device = None,
    engine: Engine = "torch",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """See what each token stands for over a data set: the photos it peaks on, how selective and how redundant it is.

    With masks also which class its region covers, beside an untrained model and the masks of other photos.

    - [bold]DIR/atlas.json[/bold], statistics and file names; as NAME.atlas.json beside NAME.safetensors it is found
      again.
    - [bold]DIR/sheet_LAYER.png[/bold], the photos with the token's map over them.

    [bold]Examples[/bold]

    vtviz dissect --data photos --out out

    vtviz dissect --model vt_fpn_resnet18_camvid --data camvid --masks camvid --out out --json
    """
    from vtviz.explain.atlas_file import save_atlas
    from vtviz.explain.contact_sheet import contact_sheet
    from vtviz.explain.dissection import dissect as run
    from vtviz.export import publish, staged

    if out.resolve().is_relative_to(data.resolve()):
        raise ConfigError(f"--out {out} lies within --data {data}: its pictures would be photos the next time")
    predictor = open_model(model, device, engine=engine, dtype=dtype)
    with counting("Dissecting") as progress:
        atlas = run(
            predictor,
            data,
            split=split,
            masks=masks,
            limit=n,
            photos=photos,
            threshold=threshold,
            size=size,
            seed=seed,
            progress=progress,
        )
    path = save_atlas(out / "atlas.json", atlas)
    names = [f"sheet_{layer.name}.png" for layer in atlas.layers]
    with counting("Drawing") as progress, staged(out) as stage:
        for index, name in enumerate(names):
            contact_sheet(atlas, predictor, data, index, progress=progress).save(stage / name)
        publish(stage, out, names)
    files = {file.name: str(file) for file in (path, *map(out.joinpath, names))}
    if as_json:
        print_json(atlas.to_dict() | {"files": files})
    else:
        _print(atlas, files)


def _print(atlas: Atlas, files: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from vtviz.explain.atlas import mean_of_pairs

    console = Console(width=max(100, Console().width))
    skipped = f", {atlas.skipped} could not be read" if atlas.skipped else ""
    typer.echo(f"{atlas.model} on {atlas.data.n} photos of {atlas.data.name}{skipped}; in brackets: untrained")
    for index, layer in enumerate(atlas.layers):
        ours, twin = layer.trained, layer.untrained
        dead = f"dead: {', '.join(map(str, ours.dead)) or 'none'}"
        title = (
            f"{layer.name}: two tokens share {ours.redundancy:.0%} of their mass (those of two photos "
            f"{mean_of_pairs(layer.shuffled_overlap):.0%}, untrained {twin.redundancy:.0%}); {dead}"
        )
        grid = Table(title=title, title_justify="left", box=None)
        for heading in (
            "token",
            "peak",
            "",
            "entropy",
            "",
            "peaks most on",
            *(("class", "IoU", "shuffled", "untrained") if layer.classes else ()),
        ):
            grid.add_column(heading, justify="left" if heading in {"peaks most on", "class"} else "right")
        for token, name in enumerate(atlas.token_names(index, margin=-1.0)):
            cells = [
                f"{token}",
                f"{ours.peak[token]:.1f}×",
                f"({twin.peak[token]:.1f})",
                f"{ours.entropy[token]:.2f}",
                f"({twin.entropy[token]:.2f})",
                PurePosixPath(layer.photos[token][0].file).name,
            ]
            if layer.classes is not None and atlas.masks is not None:
                at = (token, atlas.masks.classes.index(name or ""))
                measures = (layer.classes.iou, layer.classes.shuffled, layer.classes.untrained)
                cells += [f"{name}", *(f"{measure[at]:.2f}" for measure in measures)]
            grid.add_row(*cells)
        console.print(grid)
    for file in files.values():
        typer.echo(file)
