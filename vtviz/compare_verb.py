"""The command line's ``compare``."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtviz.console import Crop, Device, Json, Out, Size, open_model, parse_scale, print_json
from vtviz.errors import ConfigError

if TYPE_CHECKING:
    from vtviz.explain.compare import Side


def compare(
    out: Out,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE [IMAGE]]", help="One image file, or two.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="M", help="As [bold]vtviz extract[/bold] takes it; give one or two."),
    ] = None,
    epochs: Annotated[
        str | None, typer.Option(metavar="A,B", help="Two epochs of the run that --model names, on its own photo.")
    ] = None,
    scale: Annotated[
        str, typer.Option(metavar="S", help="Colours: one scale for both (shared), or LOW,HIGH in x uniform.")
    ] = "shared",
    cmap: Annotated[str, typer.Option(metavar="NAME", help="As [bold]vtviz extract[/bold] takes it.")] = "jet",
    size: Size = None,
    crop: Crop = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """See which token of one is which of the other: of two models, two images, or two epochs of a run.

    Tokens are matched, layer by layer, so that their maps share as much of their mass as possible; beside that stands
    what they share by chance.

    - [bold]DIR/compare.json[/bold], what was compared, the pairs, what they share, and what is left over;
    - [bold]DIR/compare_LAYER.png[/bold], the pairs one above the other on one colour scale.

    [bold]Examples[/bold]

    vtviz compare cat.jpg --model vt_resnet18_in109 --model runs/mine --out out

    vtviz compare cat.jpg dog.jpg --out out

    vtviz compare --model runs/mine --epochs 1,30 --out out --json
    """
    from vtviz.explain.compare import compare as run
    from vtviz.explain.compare_picture import check_scale, draw_comparison
    from vtviz.export import publish, staged
    from vtviz.render import check_drawing

    limits = parse_scale(scale)
    check_drawing(cmap=cmap, scale=limits)
    check_scale(limits)
    first, second = _sides(images or [], model or [], epochs, size, crop, device)
    comparison = run(first, second)
    with staged(out) as stage:
        names = []
        for index, layer in enumerate(comparison.layers):
            names.append(f"compare_{'_'.join(dict.fromkeys(layer.names))}.png")
            draw_comparison(comparison, first, second, index, cmap=cmap, scale=limits).save(stage / names[-1])
        names.append("compare.json")
        text = json.dumps(comparison.to_dict(), indent=1, ensure_ascii=False)
        (stage / names[-1]).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        files = publish(stage, out, names, images=images or [])
    if as_json:
        print_json(comparison.to_dict() | {"files": {name: str(path) for name, path in files.items()}})
        return
    typer.echo(f"{first.label} and {second.label}")
    for layer in comparison.layers:
        best = ", ".join(f"{p.first} & {p.second} {p.overlap:.0%}" for p in layer.pairs[:4])
        alone = sum(map(len, layer.unmatched))
        typer.echo(
            f"{' & '.join(dict.fromkeys(layer.names))}: {len(layer.pairs)} pairs share {layer.mean:.0%} of their mass"
            f" (by chance {layer.chance:.0%}); {best}{f'; {alone} left over' if alone else ''}"
        )
    for path in files.values():
        typer.echo(str(path))


def _sides(
    images: list[str], models: list[str], epochs: str | None, size: int | None, crop: str | None, device: str | None
) -> tuple[Side, Side]:
    from vtviz.explain.compare import side_of_epoch, side_of_maps

    if epochs is not None:
        try:
            first, second = (int(part) for part in epochs.split(","))
        except ValueError:
            raise ConfigError(f"--epochs must be two whole numbers such as 1,30, got {epochs!r}") from None
        if images or len(models) != 1 or size is not None or crop is not None:
            raise ConfigError(
                "--epochs compares one run on its own photo: give one --model, the run's folder, and no more"
            )
        return (  # both are of one run: its name would tell nothing
            side_of_epoch(models[0], first, f"epoch {first}"),
            side_of_epoch(models[0], second, f"epoch {second}"),
        )
    if (len(images), len(models)) not in {(1, 2), (2, 1), (2, 0)}:
        raise ConfigError(
            "compare takes one image and two --model, two images, or --model RUN and --epochs A,B; "
            f"got {len(images)} images and {len(models)} models"
        )
    names: list[str | None] = [*models] or [None]
    predictors = [open_model(name, device) for name in names]
    seen = [predictor.extract(image, size=size, crop=crop) for predictor in predictors for image in images]
    labels = _labels(*(models if len(models) == 2 else images))
    return side_of_maps(seen[0], labels[0]), side_of_maps(seen[1], labels[1])


def _labels(first: str, second: str) -> tuple[str, str]:
    """The names of two files, with as many folders as tell them apart; of the same file twice its name."""
    parts = Path(first).parts, Path(second).parts
    for count in range(1, max(map(len, parts)) + 1):
        one, other = (str(Path(*each[-count:])) for each in parts)
        if one != other:
            return one, other
    return Path(first).name, Path(second).name
