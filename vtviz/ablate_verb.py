"""The command line's ``ablate``."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtviz.console import (
    FAILED,
    MOST_SEED,
    Crop,
    Device,
    Image,
    Json,
    Model,
    Size,
    counting,
    find_images,
    named_path,
    open_model,
    output_folder,
    print_json,
)
from vtviz.errors import ConfigError

if TYPE_CHECKING:
    from vtviz.explain.ablation import Ablation

REFERENCE_IMAGES = 64
"""At most so many images make the mean tokens, evenly spread over those given."""


def ablate(
    image: Image,
    model: Model = None,
    target: Annotated[
        str | None,
        typer.Option("--class", metavar="C", help="Watch this class, by name or index. [dim]\\[the first guess][/dim]"),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGES", help="Also put each token's mean over these images in its place; repeatable."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG", parser=named_path, help="Segmentation: the right classes, for the change of the IoU."
        ),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Shuffled maps a token.")] = 4,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, metavar="N", help="Of the shuffles.")] = 0,
    size: Size = None,
    crop: Crop = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", parser=output_folder, help="Also write DIR/ablation.json."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Take each token out, one at a time, and see what becomes of the answer.

    Beside it two baselines: the token gathered with its own map shuffled, and with a centred Gaussian. A token matters
    for [italic]where[/italic] it looks only as far as its absence matters more than those do.

    [bold]Examples[/bold]

    vtviz ablate cat.jpg --class "golden retriever"

    vtviz ablate street.png --model vt_fpn_resnet18_camvid --mask street_mask.png --json
    """
    from vtviz.data.classes import find_class
    from vtviz.data.segmentation import read_mask
    from vtviz.explain.ablation import ablate as run
    from vtviz.explain.ablation import mean_tokens
    from vtviz.explain.faithfulness import pick_images

    files, failures = find_images(reference or ())
    if failures:
        raise typer.Exit(FAILED)
    truth = None if mask is None else read_mask(mask)
    predictor = open_model(model, device)
    if predictor.palette is not None and target is not None:
        raise ConfigError(f"--class is for classifiers: of {predictor.name} all classes are watched")
    if predictor.palette is None and truth is not None:
        raise ConfigError(f"--mask is for segmentation; {predictor.name} is a classifier")
    watched = None if target is None else find_class(target, predictor.classes)
    modes = ["absent", "random", "gaussian"]
    means = None
    if files:
        means = mean_tokens(predictor, pick_images(files, REFERENCE_IMAGES), size=size, crop=crop)
        modes.insert(1, "mean")
    with counting("Taking tokens out") as progress:
        result = run(
            predictor,
            image,
            target=watched,
            modes=modes,
            reference=means,
            truth=truth,
            draws=draws,
            seed=seed,
            size=size,
            crop=crop,
            progress=progress,
        )
    if out is not None:
        result.save(out)
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)


def _print(result: Ablation) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(100, Console().width))
    if result.target is None:
        console.print("Share of the pixels that get another class, in %", highlight=False)
    else:
        console.print(
            f"Change of the probability of {result.classes[result.target]} ({result.probability:.1%}), in points",
            highlight=False,
        )
    shown = [[_column(effects) for effects in layer.effects.values()] for layer in result.layers]
    for layer, names, columns in zip(result.layers, result.names, shown, strict=True):
        grid = Table(title=layer.name, title_justify="left", box=None)
        for heading in ("token", *layer.effects):
            grid.add_column(heading, justify="right")
        for name, *cells in zip(names, *columns, strict=True):
            grid.add_row(name, *cells)
        console.print(grid)


def _column(effects: Any) -> list[str]:
    values = effects.changed if hasattr(effects, "changed") else effects.probability
    return ["" if value != value else f"{100 * value:+.1f}" for value in values.tolist()]  # noqa: PLR0124 - NaN
